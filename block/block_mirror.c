/* Marks, copies and writes to both: see block_mirror.h. */
#include "block/block_mirror.h"

#include <errno.h>
#include <string.h>

enum { ZERO_GRAIN_BYTES = 16384 }; /* stretches of zeroes are found in such steps */

struct mirror_copy {
    struct block_mirror *mirror;
    struct block_request request;
    struct iovec one;
    uint8_t *buffer; /* MIRROR_COPY_CLUSTERS; NULL: not in use yet */
    bool busy;
    uint64_t first, count; /* clusters */
    uint64_t size, at;     /* bytes of it in all, and how many are done */
};

struct mirror_op {
    struct block_mirror *mirror;
    struct block_request *above;
    struct block_request below, beside; /* of source and target */
    struct list link;                   /* in both, waiting or kept */
    uint64_t number;                    /* in the order that they came */
    uint64_t first, last;               /* clusters */
    bool is_both, marks;
    bool is_lost;                       /* the target has not got it, and is guarded: it is kept */
    unsigned pending;
    int result;
    uint8_t *bounce;
    struct iovec one;
};

struct block_mirror {
    struct block front;
    struct block_mirror_options options;
    uint64_t clusters, marked; /* marked: set bits */
    uint64_t *marks;
    uint64_t next;             /* where the round is */
    uint64_t numbers;          /* of requests, given out */
    uint64_t left_before;      /* clusters, when the round began */
    bool is_sync, draining, was_level, no_lease, is_limited;
    int64_t allowed_bytes;     /* is_limited: may be copied; less than 0: so much was copied too early */
    struct mirror_copy copies[MIRROR_COPIES_MAX];
    unsigned copying;
    struct list both;    /* struct mirror_op: under way to both */
    struct list waiting; /* struct mirror_op: for a copy, or for a flush */
    struct list flushes; /* struct mirror_op: is_guarded; until nothing is marked */
    struct list flushing; /* struct mirror_op: is_guarded; under way to both */
    bool is_held, is_guarded;
    struct list kept;    /* struct mirror_op: is_held, or is_guarded and FAILED */
    struct mirror_progress progress;
};

static struct block_mirror *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct block_mirror, front);
}

static void pump(struct block_mirror *m);
static void flushes_begin(struct block_mirror *m);

/* What the device asks for waits for its owner's word. */
static bool is_shut(const struct block_mirror *m)
{
    return m->is_held || (m->is_guarded && m->progress.state == MIRROR_FAILED);
}

/* ---- marks ---- */

static bool is_marked(const struct block_mirror *m, uint64_t cluster)
{
    return m->marks[cluster / 64] >> (cluster % 64) & 1;
}

static void marks_set(struct block_mirror *m, uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) {
        m->marked += !is_marked(m, i);
        m->marks[i / 64] |= UINT64_C(1) << (i % 64);
    }
}

void block_mirror_mark(struct block_mirror *m, uint64_t offset, uint64_t size)
{
    if (size > 0 && offset < m->front.size_bytes)
        marks_set(m, offset / MIRROR_CLUSTER_BYTES,
                  (MIN(offset + size, m->front.size_bytes) - 1) / MIRROR_CLUSTER_BYTES);
}

int block_mirror_mark_data(struct block_mirror *m)
{
    uint64_t start, end, from = 0;
    int code;
    while ((code = block_next_data(m->options.source, from, &start, &end)) > 0) {
        block_mirror_mark(m, start, end - start);
        from = end;
    }
    return code;
}

static bool any_marked(const struct block_mirror *m, uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++)
        if (is_marked(m, i))
            return true;
    return false;
}

/* ---- state ---- */

static void changed_tell(struct block_mirror *m)
{
    if (m->options.changed)
        m->options.changed(m->options.arg);
}

static void mirror_fail(struct block_mirror *m, int code)
{
    if (m->progress.state == MIRROR_FAILED)
        return;
    m->progress.state = MIRROR_FAILED;
    m->progress.failure = code;
    changed_tell(m);
}

static void level_look(struct block_mirror *m)
{
    if (m->progress.state == MIRROR_FAILED)
        return;
    bool is_level = m->is_sync && m->marked == 0 && m->copying == 0;
    m->progress.state = is_level ? MIRROR_LEVEL : MIRROR_COPYING;
    if (!is_level || m->was_level)
        return;
    m->was_level = true;
    changed_tell(m);
}

struct mirror_progress block_mirror_progress(const struct block_mirror *m)
{
    struct mirror_progress p = m->progress;
    uint64_t left = m->marked;
    for (unsigned i = 0; i < MIRROR_COPIES_MAX; i++)
        left += m->copies[i].busy ? m->copies[i].count : 0;
    p.is_sync = m->is_sync;
    p.left_bytes = left * MIRROR_CLUSTER_BYTES;
    return p;
}

/* ---- writes ---- */

static bool is_copied_now(const struct block_mirror *m, uint64_t first, uint64_t last)
{
    for (unsigned i = 0; i < MIRROR_COPIES_MAX; i++) {
        const struct mirror_copy *c = &m->copies[i];
        if (c->busy && c->first <= last && first < c->first + c->count)
            return true;
    }
    return false;
}

static void op_free(struct mirror_op *op)
{
    free(op->bounce);
    free(op);
}

static void op_let_go(struct mirror_op *op)
{
    struct block_mirror *m = op->mirror;
    struct block_request *above = op->above;
    if (--op->pending > 0)
        return;
    if (op->marks)
        marks_set(m, op->first, op->last);
    list_remove(&op->link);
    if (op->is_lost && op->result == 0) {
        list_append(&m->kept, &op->link);
        pump(m);
        return;
    }
    above->result = op->result;
    op_free(op);
    block_complete(&m->front, above);
    pump(m);
}

static void below_done(struct block_request *request, int result)
{
    struct mirror_op *op = CONTAINER_OF(request, struct mirror_op, below);
    op->result = result;
    op->marks |= op->is_both && op->above->op != BLOCK_FLUSH && result < 0; /* the target may have what the source has not */
    op_let_go(op);
}

static void beside_done(struct block_request *request, int result)
{
    struct mirror_op *op = CONTAINER_OF(request, struct mirror_op, beside);
    bool failed = result < 0 && (result != -EAGAIN || op->above->op == BLOCK_FLUSH);
    op->marks |= result < 0 && op->above->op != BLOCK_FLUSH;
    op->is_lost = op->mirror->is_guarded && failed;
    if (failed)
        mirror_fail(op->mirror, result);
    op_let_go(op);
}

/* One copy for both sides. */
static int bounce_make(struct mirror_op *op)
{
    const struct block_request *r = op->above;
    size_t at = 0;
    op->bounce = aligned_alloc(4096, (r->size + 4095) / 4096 * 4096);
    if (!op->bounce)
        return -ENOMEM;
    for (unsigned i = 0; i < r->iovec_count; i++) {
        memcpy(op->bounce + at, r->iovecs[i].iov_base, r->iovecs[i].iov_len);
        at += r->iovecs[i].iov_len;
    }
    op->one = (struct iovec){op->bounce, r->size};
    op->below.iovecs = op->beside.iovecs = &op->one;
    op->below.iovec_count = op->beside.iovec_count = 1;
    return 0;
}

/* Two writes of the same bytes at once: which of them is last may differ from side to side. */
static bool overlaps_both(const struct block_mirror *m, const struct block_request *r)
{
    LIST_FOREACH(link, &m->both) {
        const struct block_request *other = &LIST_ENTRY(link, struct mirror_op, link)->below;
        if (r->offset < other->offset + other->size && other->offset < r->offset + r->size)
            return true;
    }
    return false;
}

static bool changes_data(const struct block_request *r)
{
    return r->op != BLOCK_READ && r->op != BLOCK_FLUSH;
}

/* Would it go to the target as well? */
static bool goes_to_both(const struct mirror_op *op)
{
    const struct block_mirror *m = op->mirror;
    const struct block_request *r = op->above;
    return (r->op == BLOCK_WRITE || r->op == BLOCK_WRITE_ZEROES) && m->is_sync && m->progress.state != MIRROR_FAILED &&
           !any_marked(m, op->first, op->last) && !overlaps_both(m, r);
}

/* To the source, and to the target where that keeps both the same. Negative: nothing has begun. */
static int op_begin(struct mirror_op *op)
{
    struct block_mirror *m = op->mirror;
    const struct block_request *r = op->above;
    bool flushes_both = r->op == BLOCK_FLUSH && m->is_guarded && m->progress.state != MIRROR_FAILED;
    op->below = op->beside = (struct block_request){.op = r->op,
                                                    .may_unmap = r->may_unmap,
                                                    .offset = r->offset,
                                                    .size = r->size,
                                                    .iovecs = r->iovecs,
                                                    .iovec_count = r->iovec_count};
    op->below.done = below_done;
    op->beside.done = beside_done;
    op->is_both = flushes_both || goes_to_both(op);
    op->marks = !op->is_both && changes_data(r);
    op->is_lost = false;
    if (op->is_both && r->op == BLOCK_WRITE && bounce_make(op) < 0) {
        op->is_both = false;
        op->marks = true;
    }
    op->pending = op->is_both ? 2 : 1;
    if (op->is_both)
        list_append(flushes_both ? &m->flushing : &m->both, &op->link);
    int code = block_submit(m->options.source, &op->below);
    if (code < 0) {
        list_remove(&op->link);
        return code;
    }
    code = op->is_both ? block_submit(m->options.target, &op->beside) : 0;
    if (code < 0) {
        op->marks = !flushes_both;
        op->is_lost = m->is_guarded;
        op->pending--; /* the source's is under way */
        mirror_fail(m, code);
    }
    return 0;
}

/* It ends with @code, and nothing of it is under way. */
static void op_refuse(struct mirror_op *op, int code)
{
    struct block_mirror *m = op->mirror;
    struct block_request *above = op->above;
    above->result = code;
    op_free(op);
    block_complete(&m->front, above);
}

/* For a copy of what it changes; or, where it would mark something, for a flush, which would have to wait for that, too. */
static bool has_to_wait(const struct mirror_op *op)
{
    const struct block_mirror *m = op->mirror;
    return changes_data(op->above) && m->is_sync &&
           (is_copied_now(m, op->first, op->last) || (!list_empty(&m->flushes) && !goes_to_both(op)));
}

static int front_submit(struct block *b, struct block_request *r)
{
    struct block_mirror *m = of_block(b);
    struct mirror_op *op = NEW(struct mirror_op);
    op->mirror = m;
    op->above = r;
    op->number = ++m->numbers;
    list_init(&op->link);
    if (changes_data(r)) {
        op->first = r->offset / MIRROR_CLUSTER_BYTES;
        op->last = (r->offset + r->size - 1) / MIRROR_CLUSTER_BYTES;
    }
    if (m->is_held || (is_shut(m) && r->op != BLOCK_READ)) {
        list_append(&m->kept, &op->link);
        return 0;
    }
    if (has_to_wait(op)) {
        list_append(&m->waiting, &op->link);
        return 0;
    }
    if (r->op == BLOCK_FLUSH && m->is_guarded) {
        list_append(&m->flushes, &op->link);
        flushes_begin(m);
        return 0;
    }
    int code = op_begin(op);
    if (code < 0)
        op_free(op);
    return code;
}

static void waiting_begin(struct block_mirror *m)
{
    LIST_FOREACH_SAFE(link, &m->waiting) {
        struct mirror_op *op = LIST_ENTRY(link, struct mirror_op, link);
        if (!is_shut(m) && has_to_wait(op))
            continue;
        list_remove(&op->link);
        if (is_shut(m)) {
            list_append(&m->kept, &op->link);
            continue;
        }
        int code = op_begin(op);
        if (code >= 0)
            continue;
        op_refuse(op, code);
        return; /* the list may be another now; who comes next begins the rest */
    }
}

/* Flushes that wait, once the target has all that a device was told is written. */
static void flushes_begin(struct block_mirror *m)
{
    LIST_FOREACH_SAFE(link, &m->flushes) {
        struct mirror_op *op = LIST_ENTRY(link, struct mirror_op, link);
        if (!is_shut(m) && (m->marked > 0 || m->copying > 0))
            return;
        list_remove(&op->link);
        if (is_shut(m)) {
            list_append(&m->kept, &op->link);
            continue;
        }
        int code = op_begin(op);
        if (code >= 0)
            continue;
        op_refuse(op, code);
        return; /* as above */
    }
}

/* ---- copies ---- */

static void copy_end(struct mirror_copy *c, int result)
{
    struct block_mirror *m = c->mirror;
    c->busy = false;
    m->copying--;
    if (result < 0)
        marks_set(m, c->first, c->first + c->count - 1);
    if (result == -EAGAIN)
        m->no_lease = true; /* until block_mirror_run */
    else if (result < 0)
        mirror_fail(m, result);
    waiting_begin(m);
    pump(m);
}

static void copy_done(struct block_request *request, int result);

/* @size bytes from c->at on. */
static void copy_submit(struct mirror_copy *c, struct block *to, enum block_op op, uint64_t size)
{
    c->one = (struct iovec){c->buffer + c->at, size};
    c->request = (struct block_request){.op = op,
                                        .may_unmap = true,
                                        .offset = c->first * MIRROR_CLUSTER_BYTES + c->at,
                                        .size = size,
                                        .done = copy_done};
    if (op != BLOCK_WRITE_ZEROES) {
        c->request.iovecs = &c->one;
        c->request.iovec_count = 1;
    }
    int code = block_submit(to, &c->request);
    if (code < 0)
        copy_end(c, code);
}

static bool is_all_zero(const uint8_t *at, size_t size)
{
    return at[0] == 0 && memcmp(at, at + 1, size - 1) == 0;
}

/* What follows c->at and is all zeroes, or is not. */
static bool stretch_next(const struct mirror_copy *c, bool can_write_zeroes, uint64_t *ret_size)
{
    bool zero = false;
    uint64_t end = c->at;
    for (bool first = true; end < c->size; first = false) {
        uint64_t grain = MIN((uint64_t)ZERO_GRAIN_BYTES, c->size - end);
        bool is_zero = can_write_zeroes && is_all_zero(c->buffer + end, grain);
        if (first)
            zero = is_zero;
        else if (is_zero != zero)
            break;
        end += grain;
    }
    *ret_size = end - c->at;
    return zero;
}

static void copy_done(struct block_request *request, int result)
{
    struct mirror_copy *c = CONTAINER_OF(request, struct mirror_copy, request);
    struct block_mirror *m = c->mirror;
    if (result == 0 && request->op != BLOCK_READ) {
        c->at += request->size;
        m->progress.copied_bytes += request->size;
        m->allowed_bytes -= m->is_limited && request->op == BLOCK_WRITE ? (int64_t)request->size : 0;
        m->progress.zero_bytes += request->op == BLOCK_WRITE_ZEROES ? request->size : 0;
    }
    if (result < 0 || c->at == c->size) {
        copy_end(c, result);
        return;
    }
    uint64_t size;
    bool zero = stretch_next(c, m->options.target->can_write_zeroes, &size);
    copy_submit(c, m->options.target, zero ? BLOCK_WRITE_ZEROES : BLOCK_WRITE, size);
}

static bool is_written_now(const struct block_mirror *m, uint64_t first, uint64_t last)
{
    LIST_FOREACH(link, &m->both) {
        const struct mirror_op *op = LIST_ENTRY(link, struct mirror_op, link);
        if (op->first <= last && first <= op->last)
            return true;
    }
    return false;
}

/* The next marked cluster from m->next on, going round; there is one. */
static uint64_t mark_next(struct block_mirror *m)
{
    uint64_t at = m->next;
    while (true) {
        if (at >= m->clusters) {
            uint64_t sync_bytes = m->options.sync_bytes ? m->options.sync_bytes : MIRROR_SYNC_BYTES_DEFAULT;
            m->progress.rounds++;
            m->is_sync |= m->marked * MIRROR_CLUSTER_BYTES <= sync_bytes || m->marked > m->left_before / 4 * 3;
            m->left_before = m->marked;
            at = 0;
        } else if (at % 64 == 0 && m->marks[at / 64] == 0) {
            at += 64;
        } else if (is_marked(m, at)) {
            return at;
        } else {
            at++;
        }
    }
}

static bool copy_begin(struct block_mirror *m, struct mirror_copy *c)
{
    uint64_t first = m->next = mark_next(m), end = first;
    while (end < MIN(first + MIRROR_COPY_CLUSTERS, m->clusters) && is_marked(m, end))
        end++;
    if (is_written_now(m, first, end - 1) || is_copied_now(m, first, end - 1))
        return false; /* its end comes back here */
    if (!c->buffer)
        c->buffer = aligned_alloc(4096, (size_t)MIRROR_COPY_CLUSTERS * MIRROR_CLUSTER_BYTES);
    if (!c->buffer) {
        mirror_fail(m, -ENOMEM);
        return false;
    }
    for (uint64_t i = first; i < end; i++)
        m->marks[i / 64] &= ~(UINT64_C(1) << (i % 64));
    m->marked -= end - first;
    m->next = end;
    c->first = first;
    c->count = end - first;
    c->busy = true;
    c->at = 0;
    c->size = MIN(end * MIRROR_CLUSTER_BYTES, m->front.size_bytes) - first * MIRROR_CLUSTER_BYTES;
    m->copying++;
    copy_submit(c, m->options.source, BLOCK_READ, c->size);
    return true;
}

static void pump(struct block_mirror *m)
{
    for (unsigned i = 0; i < MIRROR_COPIES_MAX; i++) {
        if (m->marked == 0 || (m->draining && list_empty(&m->flushes)) || m->no_lease || m->progress.state == MIRROR_FAILED ||
            (m->is_limited && m->allowed_bytes <= 0 && !m->draining))
            break;
        if (!m->copies[i].busy && !copy_begin(m, &m->copies[i]))
            break;
    }
    if (m->marked == 0 && m->copying == 0)
        m->is_sync = true; /* all is there: it stays so */
    level_look(m);
    if (m->is_guarded) {
        flushes_begin(m);
        waiting_begin(m);
    }
}

static uint64_t oldest_of(const struct list *ops, uint64_t oldest)
{
    LIST_FOREACH(link, ops) {
        uint64_t number = LIST_ENTRY(link, struct mirror_op, link)->number;
        oldest = oldest == 0 ? number : MIN(oldest, number);
    }
    return oldest;
}

uint64_t block_mirror_oldest(const struct block_mirror *m)
{
    return oldest_of(&m->both, oldest_of(&m->waiting, oldest_of(&m->flushing, oldest_of(&m->flushes, 0))));
}

void block_mirror_allow(struct block_mirror *m, uint64_t bytes)
{
    m->is_limited = true;
    m->allowed_bytes = MIN(m->allowed_bytes, INT64_C(0)) + (int64_t)MIN(bytes, (uint64_t)INT64_MAX / 2);
}

void block_mirror_run(struct block_mirror *m)
{
    m->no_lease = false;
    pump(m);
}

int block_mirror_settle(struct block_mirror *m)
{
    m->is_limited = false;
    block_mirror_run(m);
    while (m->progress.state == MIRROR_COPYING && !m->no_lease) {
        block_drain(m->options.source);
        block_drain(m->options.target);
        pump(m);
    }
    return m->progress.state == MIRROR_LEVEL ? 0 : m->no_lease ? -EAGAIN : m->progress.failure;
}

/* ---- the front ---- */

static void give_back(struct list *ops)
{
    while (!list_empty(ops)) {
        struct mirror_op *op = LIST_ENTRY(ops->next, struct mirror_op, link);
        list_remove(&op->link);
        op_refuse(op, -EAGAIN);
    }
}

void block_mirror_hold(struct block_mirror *m)
{
    ASSERT(m->progress.state == MIRROR_LEVEL && m->front.in_flight == 0);
    m->is_held = true;
}

int block_mirror_guard(struct block_mirror *m)
{
    if (m->progress.state != MIRROR_LEVEL)
        return m->progress.state == MIRROR_FAILED ? m->progress.failure : -EAGAIN;
    m->is_guarded = true;
    return 0;
}

static void front_drain(struct block *b)
{
    struct block_mirror *m = of_block(b);
    m->draining = true;
    do {
        pump(m);
        give_back(&m->kept);
        if (m->no_lease) { /* nothing is copied meanwhile */
            give_back(&m->flushes);
            waiting_begin(m);
        }
        block_drain(m->options.source);
        block_drain(m->options.target);
    } while (b->in_flight > 0 || m->copying > 0);
    m->draining = false;
}

static void front_plug(struct block *b, bool plugged)
{
    struct block_mirror *m = of_block(b);
    if (plugged)
        block_plug(m->options.source);
    else
        block_unplug(m->options.source);
}

static int front_own(struct block *b, bool own, struct error *err)
{
    return block_own(of_block(b)->options.source, own, err);
}

static int front_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return block_next_data(of_block(b)->options.source, from, ret_start, ret_end);
}

/* Whoever made the mirror destroys it; a device that closes its disk has drained it. */
static void front_close(struct block *b UNUSED)
{
}

static const struct block_ops front_ops = {
    .submit = front_submit,
    .drain = front_drain,
    .plug = front_plug,
    .own = front_own,
    .close = front_close,
    .next_data = front_next_data,
};

int block_mirror_create(const struct block_mirror_options *options, struct block_mirror **ret_mirror, struct error *err)
{
    const struct block *source = options->source, *target = options->target;
    if (target->size_bytes != source->size_bytes || target->read_only)
        return error_set(err, -EINVAL, ERROR_INVALID, "the disk has %llu bytes and can only move to one of the same size that can be written, not of %llu",
                         (unsigned long long)source->size_bytes, (unsigned long long)target->size_bytes);
    struct block_mirror *m = NEW(struct block_mirror);
    m->options = *options;
    m->clusters = (source->size_bytes + MIRROR_CLUSTER_BYTES - 1) / MIRROR_CLUSTER_BYTES;
    m->left_before = UINT64_MAX;
    m->marks = calloc((m->clusters + 63) / 64, sizeof(*m->marks));
    if (!m->marks) {
        free(m);
        return error_set(err, -ENOMEM, ERROR_INTERNAL, "no memory for the marks of a disk");
    }
    m->front = (struct block){.ops = &front_ops,
                              .size_bytes = source->size_bytes,
                              .block_bytes = source->block_bytes,
                              .read_only = source->read_only,
                              .can_discard = source->can_discard,
                              .can_write_zeroes = source->can_write_zeroes,
                              .lost_with_process = source->lost_with_process};
    list_init(&m->both);
    list_init(&m->waiting);
    list_init(&m->flushes);
    list_init(&m->flushing);
    list_init(&m->kept);
    for (unsigned i = 0; i < MIRROR_COPIES_MAX; i++)
        m->copies[i].mirror = m;
    *ret_mirror = m;
    return 0;
}

struct block *block_mirror_front(struct block_mirror *m)
{
    return &m->front;
}

void block_mirror_destroy(struct block_mirror *m)
{
    if (!m)
        return;
    m->options.changed = NULL;
    block_drain(&m->front);
    for (unsigned i = 0; i < MIRROR_COPIES_MAX; i++)
        free(m->copies[i].buffer);
    free(m->marks);
    free(m);
}
