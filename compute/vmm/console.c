/* The ring and its readers.
 *
 * Happy path: output -> ring -> one posted wake-up -> a flush -> every reader is written to until it would block;
 * then EPOLLOUT brings it back. Failure modes: a follower that hangs up, fails or is lapped is closed and forgotten;
 * a log that fails is given up with one line in the VMM's own log; a log file that has grown long enough becomes
 * "<path>.1" in place of the one before. */
#include "compute/vmm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>

#include "common/log.h"

#define CHUNK_BYTES 4096u
#define CHUNKS_PER_ROUND 32u /* so that one reader does not keep the control loop for itself */

struct console_reader {
    struct console *console;
    struct list link;
    enum console_reader_kind kind;
    int fd, input_fd;
    char *path;         /* CONSOLE_LOG_FILE */
    uint64_t log_bytes; /* in the file at `path` */
    uint64_t position;                                 /* of the next byte to be written */
    bool waiting;                                      /* for EPOLLOUT */
    struct io_handler *output_handler, *input_handler; /* one and the same watch for a follower: output_handler */
};

static void flush(void *arg);

void console_init(struct console *c, struct io_loop *loop)
{
    memset(c, 0, sizeof(*c));
    io_timer_init(&c->flush_timer, flush, c);
    c->loop = loop;
    pthread_mutex_init(&c->lock, NULL);
    list_init(&c->readers);
}

void console_set_input(struct console *c, console_input_fn input, void *arg)
{
    c->input = input;
    c->input_arg = arg;
}

static void reader_destroy(struct console_reader *r)
{
    io_loop_remove(r->console->loop, r->output_handler);
    io_loop_remove(r->console->loop, r->input_handler);
    if (r->kind != CONSOLE_LOG)
        close(r->fd);
    free(r->path);
    list_remove(&r->link);
    r->console->reader_count--;
    free(r);
}

/* Copy from the ring at @position; 0 when there is nothing. *ret_lost counts bytes that were overwritten before. */
static size_t ring_read(struct console *c, uint64_t *position, uint8_t *to, size_t room, uint64_t *ret_lost)
{
    pthread_mutex_lock(&c->lock);
    uint64_t oldest = c->written > CONSOLE_RING_BYTES ? c->written - CONSOLE_RING_BYTES : 0;
    *ret_lost = *position < oldest ? oldest - *position : 0;
    *position += *ret_lost;
    size_t n = (size_t)MIN((uint64_t)room, c->written - *position);
    for (size_t i = 0; i < n; i++)
        to[i] = c->ring[(*position + i) % CONSOLE_RING_BYTES];
    pthread_mutex_unlock(&c->lock);
    return n;
}

static void reader_wait(struct console_reader *r, bool wait)
{
    if (r->waiting == wait)
        return;
    r->waiting = wait;
    if (r->output_handler)
        io_loop_change(r->console->loop, r->output_handler, EPOLLIN | (wait ? EPOLLOUT : 0u));
}

static void note_gap(struct console_reader *r, uint64_t lost)
{
    char note[80];
    int n = snprintf(note, sizeof(note), "\r\n[%llu bytes of console output lost]\r\n", (unsigned long long)lost);
    ssize_t written = write(r->fd, note, (size_t)n);
    (void)written;
}

static int log_file_open(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

/* The log file is long enough: go on in a new one. Where that cannot be made the old one is emptied. */
static void log_file_turn(struct console_reader *r)
{
    CLEANUP_FREE char *before = xasprintf("%s.1", r->path);
    int fd = rename(r->path, before) < 0 ? -errno : log_file_open(r->path);
    r->log_bytes = 0;
    if (fd >= 0) {
        close(r->fd);
        r->fd = fd;
    } else if (ftruncate(r->fd, 0) < 0) {
        log_warning("console-log-long", "path=%s error=\"%s, ignoring\"", r->path, strerror(errno));
    }
}

/* False: the reader is gone. */
static bool reader_write(struct console_reader *r)
{
    uint8_t chunk[CHUNK_BYTES];
    for (unsigned round = 0; round < CHUNKS_PER_ROUND; round++) {
        uint64_t lost;
        size_t n = ring_read(r->console, &r->position, chunk, sizeof(chunk), &lost);
        if (lost && r->kind == CONSOLE_FOLLOWER) {
            r->console->followers_dropped++;
            log_warning("console-follower-dropped", "behind_bytes=%llu", (unsigned long long)lost);
            reader_destroy(r);
            return false;
        }
        if (lost)
            note_gap(r, lost);
        if (n == 0) {
            reader_wait(r, false);
            return true;
        }
        ssize_t written = write(r->fd, chunk, n);
        if (written < 0 && (errno == EAGAIN || errno == EINTR)) {
            reader_wait(r, true);
            return true;
        }
        if (written < 0) {
            if (r->kind != CONSOLE_FOLLOWER)
                log_warning("console-log-failed", "error=\"%s\", ignoring", strerror(errno));
            reader_destroy(r);
            return false;
        }
        r->position += (uint64_t)written;
        r->log_bytes += (uint64_t)written;
        if (r->kind == CONSOLE_LOG_FILE && r->log_bytes >= CONSOLE_LOG_BYTES_MAX)
            log_file_turn(r);
    }
    reader_wait(r, true);
    return true;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void flush(void *arg)
{
    struct console *c = arg;
    c->flushed_ns = now_ns();
    pthread_mutex_lock(&c->lock);
    c->wake_pending = false;
    pthread_mutex_unlock(&c->lock);
    LIST_FOREACH_SAFE(link, &c->readers)
    {
        struct console_reader *r = LIST_ENTRY(link, struct console_reader, link);
        if (!r->waiting || !r->output_handler)
            reader_write(r);
    }
}

void console_flush(struct console *c)
{
    flush(c);
}

/* The first byte after a silence goes out at once; what follows waits for company. */
static void on_wake(void *arg)
{
    struct console *c = arg;
    uint64_t since = now_ns() - c->flushed_ns;
    if (since >= CONSOLE_FLUSH_NS)
        flush(c);
    else
        io_timer_arm(c->loop, &c->flush_timer, CONSOLE_FLUSH_NS - since);
}

void console_output(struct console *c, const void *data, size_t size)
{
    const uint8_t *from = data;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < size; i++)
        c->ring[(c->written + i) % CONSOLE_RING_BYTES] = from[i];
    c->written += size;
    bool wake = !c->wake_pending;
    c->wake_pending = true;
    pthread_mutex_unlock(&c->lock);
    if (wake)
        io_loop_post(c->loop, on_wake, c);
}

/* False: the other side has hung up. */
static bool input_read(struct console_reader *r, int fd)
{
    uint8_t data[256];
    ssize_t n = read(fd, data, sizeof(data));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0)
        return false;
    if (r->console->input)
        r->console->input(r->console->input_arg, data, (size_t)n);
    return true;
}

static void on_follower(void *arg, uint32_t events)
{
    struct console_reader *r = arg;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !input_read(r, r->fd)) {
        reader_destroy(r);
        return;
    }
    if (events & EPOLLOUT)
        reader_write(r);
}

static void on_input(void *arg, uint32_t events)
{
    struct console_reader *r = arg;
    (void)events;
    if (!input_read(r, r->input_fd)) {
        io_loop_remove(r->console->loop, r->input_handler);
        r->input_handler = NULL;
    }
}

static struct console_reader *reader_create(struct console *c, enum console_reader_kind kind, int fd, int input_fd)
{
    struct console_reader *r = NEW(struct console_reader);
    *r = (struct console_reader){.console = c, .kind = kind, .fd = fd, .input_fd = input_fd};
    list_append(&c->readers, &r->link);
    c->reader_count++;
    return r;
}

int console_follow(struct console *c, int fd, struct error *err)
{
    if (c->reader_count >= CONSOLE_READERS_MAX) {
        close(fd);
        return error_set(err, -EUSERS, ERROR_OVERLOAD, "the console has %u readers already", CONSOLE_READERS_MAX);
    }
    struct console_reader *r = reader_create(c, CONSOLE_FOLLOWER, fd, -1);
    pthread_mutex_lock(&c->lock);
    r->position = c->written > CONSOLE_RING_BYTES ? c->written - CONSOLE_RING_BYTES : 0;
    pthread_mutex_unlock(&c->lock);
    int code = io_loop_add(c->loop, fd, EPOLLIN, on_follower, r, &r->output_handler, err);
    if (code < 0)
        reader_destroy(r);
    else
        reader_write(r);
    return code;
}

int console_log_to(struct console *c, int fd, int input_fd, struct error *err)
{
    struct console_reader *r = reader_create(c, CONSOLE_LOG, fd, input_fd);
    int code = 0;
    if (input_fd >= 0)
        code = io_loop_add(c->loop, input_fd, EPOLLIN, on_input, r, &r->input_handler, err);
    /* A regular file (standard input from /dev/null or a file) cannot be watched: no input then. */
    return code == -EPERM ? 0 : code;
}

int console_log_file(struct console *c, const char *path, struct error *err)
{
    struct stat st;
    int fd = log_file_open(path);
    if (fd < 0)
        return error_errno(err, fd, "cannot open console log %s", path);
    struct console_reader *r = reader_create(c, CONSOLE_LOG_FILE, fd, -1);
    r->path = xstrdup(path);
    r->log_bytes = fstat(fd, &st) == 0 ? (uint64_t)st.st_size : 0;
    return 0;
}

unsigned console_reader_count(const struct console *c)
{
    return c->reader_count;
}

void console_finish(struct console *c)
{
    io_timer_cancel(&c->flush_timer);
    LIST_FOREACH_SAFE(link, &c->readers)
    {
        struct console_reader *r = LIST_ENTRY(link, struct console_reader, link);
        if (reader_write(r))
            reader_destroy(r);
    }
    pthread_mutex_destroy(&c->lock);
}
