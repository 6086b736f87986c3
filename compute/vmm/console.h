/* The guest's serial console as the outside sees it: the last bytes kept in a ring, and readers that follow.
 *
 * The guest never waits for a reader: console_output() copies into the ring and wakes the control loop, which writes
 * to each reader as much as it takes. A follower (console stream of a control connection) that falls behind by more
 * than the ring is cut off; a log or the terminal gets a note of how many bytes are missing, and goes on. Input from
 * readers goes to `input` as it comes. A log file is kept in two parts of bounded size, for the guest decides how much
 * is written.
 *
 * Threads: console_output from any thread; all else on the control loop's thread. */
#ifndef COMPUTE_VMM_CONSOLE_H
#define COMPUTE_VMM_CONSOLE_H

#include <pthread.h>

#include "common/base.h"
#include "common/error.h"
#include "common/list.h"
#include "compute/vmm/io_loop.h"

#define CONSOLE_RING_BYTES 65536u
#define CONSOLE_READERS_MAX 16u
#define CONSOLE_LOG_BYTES_MAX (8u * 1024 * 1024) /* of a log file; then it becomes "<path>.1", and is begun anew */
#define CONSOLE_FLUSH_NS 5000000u /* least time between flushes: guests print byte by byte, readers want lines */

/* Bytes for the guest. Returns how many were taken; the rest is lost, as on a serial line. */
typedef size_t (*console_input_fn)(void *arg, const uint8_t *data, size_t size);

enum console_reader_kind {
    CONSOLE_FOLLOWER, /* cut off when too slow; its descriptor is closed by the console */
    CONSOLE_LOG,      /* skips when too slow */
    CONSOLE_LOG_FILE, /* the same; its descriptor and its size are the console's affair */
};

struct console {
    struct io_loop *loop; /* the control loop */
    console_input_fn input;
    void *input_arg;
    pthread_mutex_t lock; /* guards ring, written, wake_pending */
    uint64_t written;     /* bytes of output ever */
    bool wake_pending;    /* the control loop will flush, now or by the timer */
    uint64_t flushed_ns;  /* CLOCK_MONOTONIC of the last flush */
    struct io_timer flush_timer;
    uint8_t ring[CONSOLE_RING_BYTES];
    struct list readers;
    unsigned reader_count;
    uint64_t followers_dropped;
};

void console_init(struct console *c, struct io_loop *loop);
/* Cuts every follower off, after giving logs what is left. */
void console_finish(struct console *c);
void console_set_input(struct console *c, console_input_fn input, void *arg);

void console_output(struct console *c, const void *data, size_t size);
/* What was put out so far goes to the readers now, as far as they take it: before the guest goes on in another process,
 * whose output is to come after it. */
void console_flush(struct console *c);
/* Let a non-blocking socket follow from the oldest byte in the ring; what it sends is input. The descriptor is the
 * console's from now on, also on failure. -EUSERS when there are CONSOLE_READERS_MAX. */
int console_follow(struct console *c, int fd, struct error *err);
/* Output is written to @fd (a file or terminal), which stays the caller's; @input_fd is read for input, -1: none. */
int console_log_to(struct console *c, int fd, int input_fd, struct error *err);
/* Append the output to the file at @path, up to CONSOLE_LOG_BYTES_MAX and as much again in "<path>.1". */
int console_log_file(struct console *c, const char *path, struct error *err);
unsigned console_reader_count(const struct console *c);

#endif
