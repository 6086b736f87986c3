/* One io_uring for the I/O of a machine: who has a struct uring_op asks for an entry, fills it in (liburing's
 * io_uring_prep_*) and hears of its end on the I/O loop.
 *
 * Happy path:  uring_entry -> io_uring_prep_x -> uring_submit -> the kernel rings a registered eventfd -> the I/O
 *              loop calls done. Between uring_plug and uring_unplug submissions are gathered into one system call.
 * Failures:    io_uring not permitted or too old: uring_create says so and callers do without. The kernel is short of
 *              memory at a submission: tried again 1 ms later. An entry is never lost: the ring is flushed when full,
 *              and the kernel keeps completions that do not fit.
 *
 * The ring takes reads, writes, syncs, allocations and advice on what will be read only: the sandbox (sandbox.h) cannot look into it.
 *
 * The kernel cancels what a thread has under way when that thread ends (-ECANCELED): callers start such an operation
 * again. Threads: all with the device lock held, from any thread. */
#ifndef COMPUTE_VMM_URING_H
#define COMPUTE_VMM_URING_H

#include <liburing.h>

#include "compute/vmm/io_loop.h"

enum { URING_ENTRIES = 256, URING_COMPLETIONS = 4096 };

struct uring;

/* Embedded by its owner, who keeps it until done. */
struct uring_op {
    void (*done)(struct uring_op *, int result); /* as of the system call: negative errno */
};

/* -EPERM, -ENOSYS, -ENOMEM, -EOPNOTSUPP in words where this host does not let us. @loop must outlive it. */
int uring_create(struct io_loop *loop, struct uring **ret_uring, struct error *err);
/* Nothing is in flight. NULL is allowed. */
void uring_destroy(struct uring *u);
/* An empty entry whose end goes to @op. */
struct io_uring_sqe *uring_entry(struct uring *u, struct uring_op *op);
/* Tell the kernel of the entries, unless plugged. */
void uring_submit(struct uring *u);
void uring_plug(struct uring *u);
void uring_unplug(struct uring *u);
/* Submit all, wait for at least one completion and call done of each that is there. Something is in flight. */
void uring_wait(struct uring *u);

#endif
