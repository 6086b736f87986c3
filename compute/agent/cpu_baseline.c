/* One word from a short-lived process. Failure modes: no such program, no word, an unknown one, none in time: all mean
 * that VMs which ask for a named model are not placed here, and are told in the log. */
#include "compute/agent/cpu_baseline.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/log.h"

extern char **environ;

enum { WORD_BYTES_MAX = 64 };

static int start(const char *vmm_path, int output, pid_t *ret_pid)
{
    char *argv[] = {(char *)vmm_path, (char *)"--cpu-baseline", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    int r = posix_spawn(ret_pid, vmm_path, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* What comes until the end of the stream, of the line, of the room or of the time. */
static void word_read(int fd, char word[WORD_BYTES_MAX])
{
    int64_t end = now_ms() + CPU_BASELINE_ASK_MS, left;
    size_t size = 0;
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    while ((left = end - now_ms()) > 0 && size < WORD_BYTES_MAX - 1) {
        int ready = poll(&poll_fd, 1, (int)left);
        ssize_t n = ready > 0 ? read(fd, word + size, WORD_BYTES_MAX - 1 - size) : ready;
        if (n == 0 || (n < 0 && errno != EINTR))
            break;
        size += n > 0 ? (size_t)n : 0;
        if (memchr(word, '\n', size) != NULL)
            break;
    }
    word[size] = '\0';
    word[strcspn(word, "\n")] = '\0';
}

enum cpu_kind cpu_baseline_ask(const char *vmm_path)
{
    char word[WORD_BYTES_MAX] = "";
    int ends[2], status;
    pid_t pid;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return cpu_kind_HOST;
    int r = start(vmm_path, ends[1], &pid);
    close(ends[1]);
    if (r == 0) {
        word_read(ends[0], word);
        kill(pid, SIGKILL); /* it has nothing more to say */
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            continue;
    }
    close(ends[0]);
    for (unsigned i = 0; i < cpu_kind_desc.count; i++)
        if (strcmp(cpu_kind_desc.names[i], word) == 0)
            return (enum cpu_kind)i;
    log_warning("cpu-baseline", "program=\"%s\" error=\"%s\" why=\"VMs that ask for a named cpu_model are not placed here\"",
                vmm_path, r < 0 ? strerror(-r) : "it names no CPU model");
    return cpu_kind_HOST;
}
