/*
 * remote-shell: run a command on a lab host over plain TCP.
 *
 *     remote-shell --listen PORT           serve: one process per connection
 *     remote-shell ADDRESS PORT COMMAND    run COMMAND there; exits with its status, 255 when the host is lost
 *
 * A fresh ssh connection costs about a second of emulated CPU. The lab's network is a private namespace, so its
 * driver may do without the secrecy.
 *
 * One connection runs one command. The client sends "LENGTH\n" and LENGTH bytes of shell text, then its standard
 * input; the server answers with frames "o LENGTH\n<bytes>" (standard output and error, mixed as they come) and ends
 * with "x STATUS\n". The command's own end is what counts: a daemon that it leaves behind may keep the pipe open.
 *
 * Environment of the client: REMOTE_SHELL_CONNECT_MS, how long connecting may take (3000).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_SIZE_MAX (1L << 20)
#define CHUNK_SIZE 65536
#define REAP_POLL_MS 20
#define STATUS_LOST 255

static bool write_all(int fd, const void *data, size_t size)
{
    const char *at = data;

    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool read_all(int fd, void *data, size_t size)
{
    char *at = data;

    while (size > 0) {
        ssize_t n = read(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* Reads up to the next newline, which is dropped. Byte by byte: lines are short and what follows is not ours. */
static bool read_line(int fd, char *line, size_t size)
{
    for (size_t i = 0; i + 1 < size; i++) {
        if (!read_all(fd, line + i, 1))
            return false;
        if (line[i] == '\n') {
            line[i] = '\0';
            return true;
        }
    }
    return false;
}

static bool send_frame(int fd, const char *data, size_t size)
{
    char head[32];
    int n = snprintf(head, sizeof head, "o %zu\n", size);

    return write_all(fd, head, (size_t)n) && write_all(fd, data, size);
}

static char *receive_command(int connection)
{
    char line[32];
    long size;
    char *command;

    if (!read_line(connection, line, sizeof line))
        return NULL;
    size = strtol(line, NULL, 10);
    if (size <= 0 || size > COMMAND_SIZE_MAX)
        return NULL;
    command = calloc(1, (size_t)size + 1);
    if (command == NULL)
        return NULL;
    if (!read_all(connection, command, (size_t)size)) {
        free(command);
        return NULL;
    }
    return command;
}

/* Starts the command in a session of its own, its input the connection, its output @ret_output. */
static pid_t start_command(const char *command, int connection, int *ret_output)
{
    int output[2];
    pid_t pid;

    if (pipe(output) < 0)
        return -1;
    pid = fork();
    if (pid == 0) {
        setsid();
        signal(SIGPIPE, SIG_DFL);
        dup2(connection, STDIN_FILENO);
        dup2(output[1], STDOUT_FILENO);
        dup2(output[1], STDERR_FILENO);
        close(connection);
        close(output[0]);
        close(output[1]);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(output[1]);
    *ret_output = output[0];
    return pid;
}

/* Hands the command's output on until the command has ended and the pipe is empty. False: the client is gone. */
static bool relay_output(int connection, int output, pid_t pid, int *ret_status)
{
    char chunk[CHUNK_SIZE];
    bool ended = false;

    for (;;) {
        struct pollfd wait = { .fd = output, .events = POLLIN };
        ssize_t n = 0;

        if (!ended)
            ended = waitpid(pid, ret_status, WNOHANG) == pid;
        if (poll(&wait, 1, ended ? 0 : REAP_POLL_MS) <= 0) {
            if (ended)
                return true;
            continue;
        }
        n = read(output, chunk, sizeof chunk);
        if (n > 0) {
            if (!send_frame(connection, chunk, (size_t)n))
                return false;
        } else {
            if (!ended)
                waitpid(pid, ret_status, 0);
            return true;
        }
    }
}

static int serve_connection(int connection)
{
    char line[32];
    int output = -1, status = 0, n;
    char *command = receive_command(connection);
    pid_t pid;

    if (command == NULL)
        return 1;
    pid = start_command(command, connection, &output);
    free(command);
    if (pid < 0)
        return 1;
    if (!relay_output(connection, output, pid, &status)) {
        kill(-pid, SIGHUP);
        return 1;
    }
    status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    n = snprintf(line, sizeof line, "x %d\n", status);
    return write_all(connection, line, (size_t)n) ? 0 : 1;
}

static int serve(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0) {
        perror("remote-shell: socket");
        return 1;
    }
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0) {
        perror("remote-shell: listen");
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0)
            continue;
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fork() == 0) {
            signal(SIGCHLD, SIG_DFL);
            _exit(serve_connection(connection));
        }
        close(connection);
    }
}

static int connect_to(const char *host, int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    const char *text = getenv("REMOTE_SHELL_CONNECT_MS");
    int timeout_ms = text != NULL ? atoi(text) : 3000;
    struct timeval limit = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
    struct timeval none = { 0 };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 ||
        connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* One frame from the server. Returns the command's status when it was the last one, -1 to go on. */
static int receive_frame(int fd)
{
    char line[64], chunk[CHUNK_SIZE];
    long left;

    if (!read_line(fd, line, sizeof line) || strlen(line) < 3)
        return STATUS_LOST;
    left = strtol(line + 2, NULL, 10);
    if (line[0] == 'x')
        return (int)left;
    while (left > 0) {
        size_t n = left > (long)sizeof chunk ? sizeof chunk : (size_t)left;
        if (!read_all(fd, chunk, n) || !write_all(STDOUT_FILENO, chunk, n))
            return STATUS_LOST;
        left -= (long)n;
    }
    return -1;
}

static int run_command(const char *host, int port, const char *command)
{
    char chunk[CHUNK_SIZE];
    int fd = connect_to(host, port);
    struct pollfd wait[2] = { { .fd = fd, .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };
    int n;

    if (fd < 0)
        return STATUS_LOST;
    n = snprintf(chunk, sizeof chunk, "%zu\n", strlen(command));
    if (!write_all(fd, chunk, (size_t)n) || !write_all(fd, command, strlen(command)))
        return STATUS_LOST;
    for (;;) {
        if (poll(wait, 2, -1) < 0)
            continue;
        if (wait[1].fd >= 0 && wait[1].revents != 0) {
            ssize_t got = read(STDIN_FILENO, chunk, sizeof chunk);
            if (got <= 0) {
                shutdown(fd, SHUT_WR);
                wait[1].fd = -1;
            } else if (!write_all(fd, chunk, (size_t)got)) {
                wait[1].fd = -1; /* the command may have ended without reading all: its status is still to come */
            }
        }
        if (wait[0].revents != 0) {
            int status = receive_frame(fd);
            if (status >= 0)
                return status;
        }
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "--listen") == 0)
        return serve(atoi(argv[2]));
    if (argc == 4)
        return run_command(argv[1], atoi(argv[2]), argv[3]);
    fprintf(stderr, "usage: remote-shell --listen PORT | remote-shell ADDRESS PORT COMMAND\n");
    return 2;
}
