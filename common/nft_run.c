/* One run of nft; see the header. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/nft_run.h"

#define WORDS_BYTES 300u

extern char **environ;

/* A file in memory that holds @data, at its beginning. */
static int memory_file(const void *data, size_t size)
{
    int fd = memfd_create("nft", MFD_CLOEXEC);
    size_t done = 0;
    while (fd >= 0 && done < size) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        if (n < 0 && errno != EINTR) {
            int r = -errno;
            close(fd);
            return r;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        lseek(fd, 0, SEEK_SET);
    return fd < 0 ? -errno : fd;
}

static int spawn_nft(bool json, int input, int words, pid_t *ret_pid)
{
    static char *const with_json[] = {(char *)"nft", (char *)"-j", (char *)"-f", (char *)"-", NULL};
    static char *const plain[] = {(char *)"nft", (char *)"-f", (char *)"-", NULL};
    char *const *argv = json ? with_json : plain;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, words, STDERR_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int r = posix_spawnp(ret_pid, argv[0], &actions, &attributes, argv, environ);
    if (r == ENOENT) /* a service's path may lack it */
        r = posix_spawn(ret_pid, "/usr/sbin/nft", &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

/* Wait for the end of @pid; one that takes too long is killed. */
static int wait_end(pid_t pid, int deadline_ms, int *ret_status)
{
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    int r = 0;
    if (pidfd >= 0 && poll(&poll_fd, 1, deadline_ms) == 0) {
        kill(pid, SIGKILL);
        r = -ETIMEDOUT;
    }
    while (waitpid(pid, ret_status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return r;
}

/* The first line that it wrote, made printable. */
static void read_words(int fd, char buffer[WORDS_BYTES])
{
    ssize_t n = pread(fd, buffer, WORDS_BYTES - 1, 0);
    buffer[MAX(n, (ssize_t)0)] = '\0';
    buffer[strcspn(buffer, "\n")] = '\0';
    for (char *at = buffer; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
}

int nft_run(const void *text, size_t size, bool json, int deadline_ms, struct error *err)
{
    char heard[WORDS_BYTES];
    pid_t pid;
    int status = 0;
    CLEANUP_FD int input = memory_file(text, size);
    CLEANUP_FD int words = memory_file("", 0);
    if (input < 0 || words < 0)
        return error_errno(err, input < 0 ? input : words, "cannot hand the packet rules to nft");
    int r = spawn_nft(json, input, words, &pid);
    if (r == -ENOENT)
        return error_set(err, r, ERROR_NOT_SUPPORTED, "this host has no nft; install the package nftables");
    if (r < 0)
        return error_errno(err, r, "cannot start nft");
    r = wait_end(pid, deadline_ms, &status);
    if (r < 0)
        return error_errno(err, r, "nft did not end");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    read_words(words, heard);
    return error_set(err, -EIO, ERROR_INTERNAL, "nft refused the packet rules (%s %d): %s",
                     WIFEXITED(status) ? "status" : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), heard);
}
