/* The one I/O thread of the machine: epoll, timers, and work posted by other threads.
 *
 * All callbacks run on the loop's thread with the device lock held; the loop sleeps without it. io_loop_add, _change,
 * _remove and the timer calls are made with the device lock held (or before the thread starts): then a handler that
 * was removed never runs again, even if its event was already fetched.
 * io_loop_post is for every thread and takes no lock. */
#ifndef COMPUTE_VMM_IO_LOOP_H
#define COMPUTE_VMM_IO_LOOP_H

#include <pthread.h>

#include "common/base.h"
#include "common/error.h"
#include "common/list.h"

struct io_handler; /* one watched descriptor; owned by the loop */
struct io_loop;

typedef void (*io_fn)(void *arg, uint32_t events); /* EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLERR */
typedef void (*io_post_fn)(void *arg);

/* Embedded by its owner; io_timer_init before first use. */
struct io_timer {
    struct list link; /* in the loop's list while armed, ascending by due time */
    uint64_t due_ns;  /* CLOCK_MONOTONIC */
    io_post_fn callback;
    void *arg;
};

/* @device_lock is shared with the buses (bus.h) and outlives the loop. */
int io_loop_create(pthread_mutex_t *device_lock, struct io_loop **ret_loop, struct error *err);
/* Stops the thread if it runs, drops handlers (not their descriptors) and posted work that has not run. */
void io_loop_destroy(struct io_loop *loop);

/* Run on a thread of its own, named "io". */
int io_loop_start(struct io_loop *loop, struct error *err);
/* Ask it to end and wait. Not from the loop's own thread and not with the device lock held. */
void io_loop_stop(struct io_loop *loop);
/* One round on the calling thread, waiting @timeout_ms at most (0: not at all, -1: for ever); for tests, and for
 * waiting on I/O while the thread is not started. The device lock must not be held. */
void io_loop_run_once(struct io_loop *loop, int timeout_ms);

/* Watch @fd for @events (EPOLLIN, EPOLLOUT; level-triggered). The descriptor stays the caller's: remove, then
 * close. */
int io_loop_add(struct io_loop *loop, int fd, uint32_t events, io_fn callback, void *arg,
                struct io_handler **ret_handler, struct error *err);
void io_loop_change(struct io_loop *loop, struct io_handler *handler, uint32_t events);
/* NULL is allowed. */
void io_loop_remove(struct io_loop *loop, struct io_handler *handler);

void io_timer_init(struct io_timer *timer, io_post_fn callback, void *arg);
/* Fire once, @delay_ns from now; an armed timer is armed anew. */
void io_timer_arm(struct io_loop *loop, struct io_timer *timer, uint64_t delay_ns);
void io_timer_cancel(struct io_timer *timer);

/* Run @callback on the loop's thread, in order of posting. */
void io_loop_post(struct io_loop *loop, io_post_fn callback, void *arg);

#endif
