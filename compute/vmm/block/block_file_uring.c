/* The raw file driver's engine on io_uring.
 *
 * Happy path:  submit takes a free slot -> may_submit is asked -> an entry in the machine's ring (uring.h) -> its
 *              completion goes to block_file_io.c, which ends the request or asks may_submit, and for one more call.
 *              No slot free: the request waits, and goes first when one is.
 *              What will be read is asked for with IORING_OP_FADVISE, which the kernel carries out on a thread of its own;
 *              where BLOCK_FILE_HINTS_MAX are under way the rest is left out.
 * Failures:    without the right to the disk (may_submit) a request ends with -EAGAIN; before its first call from a timer
 * that fires at once, for done must not come from within submit.
 *
 * Everything with the device lock held. The kernel may put a call on a thread of its own, where it begins a little
 * later than may_submit was asked; how much later is bounded by the slots, and so covered by the lease's margin. */
#include "compute/vmm/block/block_file_engine.h"
#include "compute/vmm/block/block_file_io.h"

#include <errno.h>
#include <fcntl.h>

struct slot {
    struct uring_op op;
    struct list link; /* in free */
    struct file_ring *owner;
    struct block_file_io io;
    struct block_file_call call;
};

struct hint {
    struct uring_op op;
    struct list link; /* in hints_free */
    struct file_ring *owner;
};

struct file_ring {
    struct block_file *file;
    struct list free;     /* struct slot */
    struct list waiting;  /* struct block_request: no slot yet */
    struct list refused;  /* struct block_request: ended without a call, to be told */
    struct io_timer tell; /* armed while `refused` has something */
    struct slot slots[BLOCK_FILE_IN_FLIGHT_MAX];
    unsigned hinting;        /* under way */
    struct list hints_free;  /* struct hint */
    struct hint hints[BLOCK_FILE_HINTS_MAX];
};

static void call_submit(struct slot *s)
{
    struct block_file *f = s->owner->file;
    const struct block_file_call *c = &s->call;
    struct io_uring_sqe *e = uring_entry(f->uring, &s->op);
    switch (c->kind) {
    case BLOCK_FILE_READV:
        io_uring_prep_readv(e, f->fd, c->iovecs, c->iovec_count, c->offset);
        break;
    case BLOCK_FILE_WRITEV:
        io_uring_prep_writev(e, f->fd, c->iovecs, c->iovec_count, c->offset);
        break;
    case BLOCK_FILE_SYNC:
        io_uring_prep_fsync(e, f->fd, IORING_FSYNC_DATASYNC);
        break;
    case BLOCK_FILE_ALLOCATE:
        io_uring_prep_fallocate(e, f->fd, c->mode, (off_t)c->offset, (off_t)c->size);
        break;
    }
    io_uring_sqe_set_data(e, &s->op);
    uring_submit(f->uring);
}

static void waiting_begin(struct file_ring *r);

/* The next call of the request in @s, or its end. */
static void slot_go_on(struct slot *s)
{
    struct file_ring *r = s->owner;
    if (block_file_call_next(&s->io, &s->call)) {
        call_submit(s);
        return;
    }
    struct block_request *request = s->io.request;
    request->result = s->io.result;
    block_file_io_end(&s->io);
    list_append(&r->free, &s->link);
    block_file_end(r->file, request);
    waiting_begin(r);
}

static void call_done(struct uring_op *op, int result)
{
    struct slot *s = CONTAINER_OF(op, struct slot, op);
    block_file_call_returned(&s->io, &s->call, result);
    slot_go_on(s);
}

static void refused_tell(void *arg)
{
    struct file_ring *r = arg;
    struct list refused;
    list_init(&refused);
    list_take(&refused, &r->refused);
    while (!list_empty(&refused)) {
        struct block_request *request = LIST_ENTRY(refused.next, struct block_request, link);
        list_remove(&request->link);
        block_file_end(r->file, request);
    }
}

/* Whatever waits and has a slot. A request that ends without any call (no right, no memory) keeps none. */
static void waiting_begin(struct file_ring *r)
{
    while (!list_empty(&r->waiting) && !list_empty(&r->free)) {
        struct block_request *request = LIST_ENTRY(r->waiting.next, struct block_request, link);
        struct slot *s = LIST_ENTRY(r->free.next, struct slot, link);
        list_remove(&request->link);
        block_file_begin(&s->io, r->file, request);
        if (!block_file_call_next(&s->io, &s->call)) {
            block_file_io_end(&s->io);
            request->result = s->io.result;
            list_append(&r->refused, &request->link);
            io_timer_arm(r->file->loop, &r->tell, 0);
            continue;
        }
        list_remove(&s->link);
        call_submit(s);
    }
}

static void ring_submit(struct block_file *f, struct block_request *request)
{
    struct file_ring *r = f->engine_state;
    list_append(&r->waiting, &request->link);
    waiting_begin(r);
}

static void hint_done(struct uring_op *op, int result UNUSED)
{
    struct hint *h = CONTAINER_OF(op, struct hint, op);
    h->owner->hinting--;
    list_append(&h->owner->hints_free, &h->link);
}

static void ring_will_read(struct block_file *f, uint64_t offset, uint64_t size)
{
    struct file_ring *r = f->engine_state;
    for (uint64_t at = offset; at < offset + size && !list_empty(&r->hints_free); at += BLOCK_FILE_HINT_BYTES) {
        struct hint *h = LIST_ENTRY(r->hints_free.next, struct hint, link);
        uint64_t piece = MIN(offset + size - at, (uint64_t)BLOCK_FILE_HINT_BYTES);
        struct io_uring_sqe *e = uring_entry(f->uring, &h->op);
        list_remove(&h->link);
        r->hinting++;
        io_uring_prep_fadvise(e, f->fd, at, (off_t)piece, POSIX_FADV_WILLNEED);
        io_uring_sqe_set_data(e, &h->op);
        uring_submit(f->uring);
    }
}

static void ring_plug(struct block_file *f, bool plugged)
{
    if (plugged)
        uring_plug(f->uring);
    else
        uring_unplug(f->uring);
}

static void ring_drain(struct block_file *f)
{
    struct file_ring *r = f->engine_state;
    while (f->block.in_flight > 0 || r->hinting > 0) {
        refused_tell(r);
        if ((f->block.in_flight > 0 || r->hinting > 0) && list_empty(&r->refused))
            uring_wait(f->uring);
    }
    io_timer_cancel(&r->tell);
}

static void ring_stop(struct block_file *f)
{
    struct file_ring *r = f->engine_state;
    ASSERT(list_empty(&r->waiting) && list_empty(&r->refused) && r->hinting == 0);
    io_timer_cancel(&r->tell);
    free(r);
}

static int ring_start(struct block_file *f, struct error *err UNUSED)
{
    struct file_ring *r = NEW(struct file_ring);
    f->engine_state = r;
    r->file = f;
    list_init(&r->free);
    list_init(&r->waiting);
    list_init(&r->refused);
    io_timer_init(&r->tell, refused_tell, r);
    for (unsigned i = 0; i < BLOCK_FILE_IN_FLIGHT_MAX; i++) {
        r->slots[i] = (struct slot){.op.done = call_done, .owner = r};
        list_append(&r->free, &r->slots[i].link);
    }
    list_init(&r->hints_free);
    for (unsigned i = 0; i < BLOCK_FILE_HINTS_MAX; i++) {
        r->hints[i] = (struct hint){.op.done = hint_done, .owner = r};
        list_append(&r->hints_free, &r->hints[i].link);
    }
    return 0;
}

const struct block_file_engine block_file_uring = {
    .start = ring_start, .submit = ring_submit, .will_read = ring_will_read, .drain = ring_drain, .plug = ring_plug, .stop = ring_stop};
