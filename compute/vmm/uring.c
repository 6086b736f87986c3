/* The machine's io_uring: see uring.h. */
#include "compute/vmm/uring.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SUBMIT_AGAIN_NS = 1000000 };

struct uring {
    struct io_uring ring;
    struct io_loop *loop;
    struct io_handler *handler;
    struct io_timer again; /* armed while the kernel would not take what is in the ring */
    int event_fd;
    unsigned plugs;
};

static void submit_now(struct uring *u)
{
    int n;
    do
        n = io_uring_submit(&u->ring);
    while (n == -EINTR);
    if (n < 0 || io_uring_sq_ready(&u->ring) > 0)
        io_timer_arm(u->loop, &u->again, SUBMIT_AGAIN_NS);
}

static void submit_again(void *arg)
{
    struct uring *u = arg;
    if (io_uring_sq_ready(&u->ring) > 0)
        submit_now(u);
}

struct io_uring_sqe *uring_entry(struct uring *u, struct uring_op *op)
{
    struct io_uring_sqe *e;
    while ((e = io_uring_get_sqe(&u->ring)) == NULL)
        submit_now(u);
    io_uring_sqe_set_data(e, op);
    return e;
}

void uring_submit(struct uring *u)
{
    if (u->plugs == 0 && io_uring_sq_ready(&u->ring) > 0)
        submit_now(u);
}

void uring_plug(struct uring *u)
{
    u->plugs++;
}

void uring_unplug(struct uring *u)
{
    ASSERT(u->plugs > 0);
    u->plugs--;
    uring_submit(u);
}

/* One after another, for done may wait for others or take entries. */
static void reap(struct uring *u)
{
    struct io_uring_cqe *c;
    uring_plug(u);
    while (io_uring_peek_cqe(&u->ring, &c) == 0 && c != NULL) {
        struct uring_op *op = io_uring_cqe_get_data(c);
        int result = c->res;
        io_uring_cqe_seen(&u->ring, c);
        op->done(op, result);
    }
    uring_unplug(u);
}

void uring_wait(struct uring *u)
{
    /* Errors here are of the moment (EINTR, EAGAIN, EBUSY): the caller comes again while it waits for something. */
    int code UNUSED = io_uring_submit_and_wait(&u->ring, 1);
    reap(u);
}

static void completions_rung(void *arg, uint32_t events UNUSED)
{
    struct uring *u = arg;
    uint64_t count;
    ssize_t n UNUSED = read(u->event_fd, &count, sizeof count);
    reap(u);
}

/* What block_file_uring.c asks for. */
static const uint8_t operations[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
                                     IORING_OP_FADVISE};

static bool operations_known(struct uring *u)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool known = probe != NULL;
    for (size_t i = 0; known && i < ARRAY_SIZE(operations); i++)
        known = io_uring_opcode_supported(probe, operations[i]);
    io_uring_free_probe(probe);
    return known;
}

/* No filter of system calls sees what goes through a ring: from here on it takes these operations and no others, and
 * nothing is registered with it any more. */
static int ring_restrict(struct uring *u)
{
    struct io_uring_restriction allowed[ARRAY_SIZE(operations)] = {{0}};
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        allowed[i] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = operations[i]};
    /* liburing declares functions for both, and Debian 12's does not export them. */
    if (syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_RESTRICTIONS, allowed, ARRAY_SIZE(allowed)) < 0 ||
        syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

int uring_create(struct io_loop *loop, struct uring **ret_uring, struct error *err)
{
    struct uring *u = NEW(struct uring);
    struct io_uring_params params = {.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED,
                                     .cq_entries = URING_COMPLETIONS};
    int code = io_uring_queue_init_params(URING_ENTRIES, &u->ring, &params);
    if (code < 0) {
        free(u);
        return error_errno(err, code, "cannot make an io_uring");
    }
    u->loop = loop;
    io_timer_init(&u->again, submit_again, u);
    u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (u->event_fd < 0)
        code = error_errno(err, -errno, "cannot create an eventfd");
    else if (!(params.features & IORING_FEAT_NODROP) || !operations_known(u))
        code = error_set(err, -EOPNOTSUPP, ERROR_NOT_SUPPORTED, "this kernel's io_uring is too old");
    else if ((code = io_uring_register_eventfd(&u->ring, u->event_fd)) < 0)
        error_errno(err, code, "cannot register an eventfd with io_uring");
    else if ((code = ring_restrict(u)) < 0)
        error_errno(err, code, "cannot restrict io_uring to the operations of disks");
    if (code == 0)
        code = io_loop_add(loop, u->event_fd, EPOLLIN, completions_rung, u, &u->handler, err);
    if (code < 0) {
        uring_destroy(u);
        return code;
    }
    *ret_uring = u;
    return 0;
}

void uring_destroy(struct uring *u)
{
    if (u == NULL)
        return;
    io_timer_cancel(&u->again);
    io_loop_remove(u->loop, u->handler);
    io_uring_queue_exit(&u->ring);
    close_fd(&u->event_fd);
    free(u);
}
