/* A disk made of layers: see layer_chain.h. Below: what a request touches, its pieces, its end. */
#include "block/layer_chain.h"

#include <errno.h>
#include <string.h>

#include "block/layer_merge.h"

enum { AT_HAND_IOVECS_MAX = 128 }; /* of a read of several layers: no guest's has more */

enum chain_piece_kind {
    PIECE_PASS,  /* a stretch, straight from or to a layer */
    PIECE_WRITE, /* the same, and clusters become the top's at its end */
    PIECE_FILL,  /* copy on write: the cluster is being read */
    PIECE_STORE, /*                and written whole */
};

struct chain_piece {
    struct block_request below;
    struct chain_op *op;
    enum chain_piece_kind kind;
    bool missed;     /* it waits for the source */
    uint8_t *buffer; /* of FILL and STORE */
    struct iovec one;
    struct iovec *iovecs; /* a slice of the request's; NULL: the request's own, or `one` */
};

struct chain_op {
    struct layer_chain *chain;
    struct block_request *request; /* NULL: a lock of a merge */
    struct list link;              /* in active, waiting or ended */
    uint64_t first, last;          /* clusters */
    unsigned pending;              /* pieces, and 1 while they are being submitted */
    int result;
    bool slow;
    struct layer_flush flush, flush_behind;
    const struct layer *behind; /* that flush_behind is of */
    struct chain_piece whole; /* the piece of a request that is one piece */
};

static struct layer_chain *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct layer_chain, block);
}

/* ---- the index ---- */

static bool is_tops(const struct layer_chain *c, uint64_t cluster)
{
    return layer_map_get(&layer_chain_top(c)->map, cluster) == LAYER_DATA;
}

/* Its first change needs care: a lower layer's, or a hole that a failed write may have filled. */
static bool is_slow(const struct layer_chain *c, uint64_t cluster)
{
    return !is_tops(c, cluster) && (c->owner[cluster] != 0 || layer_chain_top(c)->stained);
}

static void clusters_take(struct layer_chain *c, uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) {
        layer_map_set(&layer_chain_top(c)->map, i, LAYER_DATA);
        c->owner[i] = (uint8_t)c->count;
    }
}

static void index_add(struct layer_chain *c, const struct layer_map *map, uint8_t number)
{
    for (uint64_t i = layer_map_next(map, 0); i < map->clusters; i = layer_map_next(map, i + 1))
        c->owner[i] = layer_map_get(map, i) == LAYER_DATA ? number : 0;
}

int layer_chain_find(const struct layer_chain *chain, const struct layer_id *id)
{
    for (unsigned i = 0; i < chain->count; i++)
        if (chain->layers[i]->map_file != NULL && layer_id_equal(&chain->layers[i]->header.id, id))
            return (int)i;
    return -1;
}

static enum layer_state state_above(const struct layer_chain *c, int since, uint64_t cluster)
{
    for (int i = (int)c->count - 1; i > since; i--) {
        const struct layer_map *map = &c->layers[i]->map;
        enum layer_state state = cluster < map->clusters ? layer_map_get(map, cluster) : LAYER_ABSENT;
        if (state != LAYER_ABSENT)
            return c->owner[cluster] != 0 ? LAYER_DATA : LAYER_ZERO;
    }
    return LAYER_ABSENT;
}

static uint64_t next_above(const struct layer_chain *c, int since, uint64_t from)
{
    uint64_t next = c->clusters;
    for (unsigned i = (unsigned)(since + 1); i < c->count; i++) {
        uint64_t found = layer_map_next(&c->layers[i]->map, from);
        if (found < c->layers[i]->map.clusters)
            next = MIN(next, found);
    }
    return next;
}

bool layer_chain_changed(const struct layer_chain *chain, int since, uint64_t from, uint64_t *ret_first,
                         uint64_t *ret_count, enum layer_state *ret_state)
{
    uint64_t first = next_above(chain, since, from), end;
    if (first >= chain->clusters)
        return false;
    enum layer_state state = state_above(chain, since, first);
    for (end = first + 1; end < chain->clusters && state_above(chain, since, end) == state;)
        end++;
    *ret_first = first;
    *ret_count = end - first;
    *ret_state = state;
    return true;
}

/* ---- the end of a request ---- */

static void waiting_begin(struct layer_chain *c);

static void chain_wake(struct layer_chain *c)
{
    if (c->wake != NULL)
        c->wake(c->wake_arg);
}

static bool is_change(const struct block_request *r)
{
    return r->op != BLOCK_READ && r->op != BLOCK_FLUSH;
}

static void op_finish(struct chain_op *op)
{
    struct layer_chain *c = op->chain;
    struct block_request *request = op->request;
    bool was_slow = op->slow;
    if (is_change(request) && --c->changing == 0 && c->held)
        chain_wake(c);
    request->result = op->result;
    list_remove(&op->link);
    free(op);
    if (was_slow)
        waiting_begin(c);
    block_complete(&c->block, request);
}

/* A piece is done, or (within submit) all have been submitted. */
static void op_let_go(struct chain_op *op, bool within_submit)
{
    if (--op->pending > 0)
        return;
    if (!within_submit) {
        op_finish(op);
        return;
    }
    if (!op->slow) /* slow ones are in active */
        list_append(&op->chain->ended, &op->link);
    chain_wake(op->chain);
}

static struct chain_op *op_ended(struct layer_chain *c)
{
    if (!list_empty(&c->ended))
        return LIST_ENTRY(c->ended.next, struct chain_op, link);
    LIST_FOREACH(link, &c->active) {
        struct chain_op *op = LIST_ENTRY(link, struct chain_op, link);
        if (op->pending == 0 && op->request != NULL)
            return op;
    }
    return NULL;
}

void layer_chain_run(struct layer_chain *chain)
{
    struct chain_op *op;
    while ((op = op_ended(chain)) != NULL)
        op_finish(op);
    if (layer_chain_is_quiet(chain))
        chain->hold_news(chain->hold_arg);
    if (chain->merge != NULL && !chain->draining)
        layer_merge_pump(chain->merge);
}

/* A real error rules over -EAGAIN: the device would never hear of it. */
static void op_result(struct chain_op *op, int result)
{
    if (result < 0 && (op->result == 0 || op->result == -EAGAIN))
        op->result = result;
}

/* ---- pieces ---- */

static struct chain_piece *piece_new(struct chain_op *op, enum chain_piece_kind kind)
{
    struct chain_piece *p = op->whole.op == NULL ? &op->whole : NEW(struct chain_piece);
    *p = (struct chain_piece){.op = op, .kind = kind};
    return p;
}

static void piece_free(struct chain_piece *p)
{
    free(p->buffer);
    free(p->iovecs);
    if (p != &p->op->whole)
        free(p);
}

static void piece_ended(struct chain_piece *p, int result, bool within_submit)
{
    struct chain_op *op = p->op;
    struct layer_chain *c = op->chain;
    bool writes = p->kind == PIECE_WRITE || p->kind == PIECE_STORE;
    uint64_t first = p->below.offset / LAYER_CLUSTER_BYTES;
    uint64_t last = (p->below.offset + MAX(p->below.size, 1u) - 1) / LAYER_CLUSTER_BYTES;
    if (writes && result == 0)
        clusters_take(c, first, last);
    for (uint64_t i = first; writes && result < 0 && result != -EAGAIN && i <= last; i++)
        if (!is_tops(c, i))
            layer_chain_top(c)->stained = true;
    op_result(op, result);
    piece_free(p);
    if (!within_submit)
        op_let_go(op, false);
    else
        op->pending--;
}

static void piece_done(struct block_request *request, int result);

/* What was read from the source is in memory there still: it is to be filled in next. */
static void miss_end(struct chain_piece *p, int result)
{
    struct layer_chain *c = p->op->chain;
    uint64_t first = p->below.offset / LAYER_CLUSTER_BYTES, end = layer_clusters(p->below.offset + p->below.size);
    if (!p->missed)
        return;
    p->missed = false;
    c->misses--;
    for (uint64_t i = first; i < end && result == 0 && p->kind == PIECE_PASS; i++) {
        if (c->hot_count == LAYER_CHAIN_HOT_MAX)
            memmove(c->hot, c->hot + 1, --c->hot_count * sizeof *c->hot);
        c->hot[c->hot_count++] = i;
    }
    if (c->merge != NULL)
        chain_wake(c);
}

/* Within submit of the op, or at the end of its FILL: then an error ends the piece there. */
static void piece_submit(struct chain_piece *p, struct layer *layer, bool within_submit)
{
    p->below.done = piece_done;
    p->missed = layer->is_source;
    p->op->chain->misses += layer->is_source;
    int code = block_submit(layer->data, &p->below);
    if (code < 0) {
        miss_end(p, code);
        piece_ended(p, code, within_submit);
    }
}

/* Bytes [@skip, @skip + @size) of @r's buffers as iovecs of their own; NULL: no memory. */
static struct iovec *iovecs_slice(const struct block_request *r, uint64_t skip, uint64_t size, unsigned *ret_count)
{
    struct iovec *slice = malloc(r->iovec_count * sizeof *slice);
    unsigned count = 0;
    for (unsigned i = 0; slice != NULL && i < r->iovec_count && size > 0; i++) {
        size_t length = r->iovecs[i].iov_len;
        if (skip >= length) {
            skip -= length;
            continue;
        }
        size_t take = (size_t)MIN(size, length - skip);
        slice[count++] = (struct iovec){(uint8_t *)r->iovecs[i].iov_base + skip, take};
        size -= take;
        skip = 0;
    }
    *ret_count = count;
    return slice;
}

/* Copy between @buffer and bytes [@skip, ...) of @r; @buffer NULL: zeroes to @r. */
static void request_copy(const struct block_request *r, uint64_t skip, uint8_t *buffer, uint64_t size)
{
    for (unsigned i = 0; i < r->iovec_count && size > 0; i++) {
        size_t length = r->iovecs[i].iov_len;
        if (skip >= length) {
            skip -= length;
            continue;
        }
        size_t take = (size_t)MIN(size, length - skip);
        uint8_t *at = (uint8_t *)r->iovecs[i].iov_base + skip;
        if (buffer == NULL)
            memset(at, 0, take);
        else
            memcpy(buffer, at, take), buffer += take;
        size -= take;
        skip = 0;
    }
}

/* [@start, @end) of the disk, straight from or to @layer. */
static void stretch_submit(struct chain_op *op, struct layer *layer, uint64_t start, uint64_t end)
{
    const struct block_request *r = op->request;
    bool carries_data = r->op == BLOCK_READ || r->op == BLOCK_WRITE;
    struct chain_piece *p = piece_new(op, r->op == BLOCK_WRITE ? PIECE_WRITE : PIECE_PASS);
    p->below = (struct block_request){.op = r->op, .may_unmap = r->may_unmap, .offset = start, .size = end - start};
    op->pending++;
    if (carries_data && end - start == r->size) {
        p->below.iovecs = r->iovecs;
        p->below.iovec_count = r->iovec_count;
    } else if (carries_data) {
        p->iovecs = iovecs_slice(r, start - r->offset, end - start, &p->below.iovec_count);
        p->below.iovecs = p->iovecs;
        if (p->iovecs == NULL) {
            piece_ended(p, -ENOMEM, true);
            return;
        }
    }
    piece_submit(p, layer, true);
}

/* The cluster is in memory: lay the request over it and write it whole. */
static void copy_store(struct chain_piece *p, bool within_submit)
{
    const struct block_request *r = p->op->request;
    uint64_t cluster_start = p->below.offset / LAYER_CLUSTER_BYTES * LAYER_CLUSTER_BYTES;
    uint64_t start = MAX(r->offset, cluster_start), end = MIN(r->offset + r->size, cluster_start + LAYER_CLUSTER_BYTES);
    uint8_t *at = p->buffer + (start - cluster_start);
    if (r->op == BLOCK_WRITE)
        request_copy(r, start - r->offset, at, end - start);
    else
        memset(at, 0, end - start);
    p->kind = PIECE_STORE;
    p->one = (struct iovec){p->buffer, LAYER_CLUSTER_BYTES};
    p->below = (struct block_request){.op = BLOCK_WRITE,
                                      .offset = cluster_start,
                                      .size = LAYER_CLUSTER_BYTES,
                                      .iovecs = &p->one,
                                      .iovec_count = 1};
    piece_submit(p, layer_chain_top(p->op->chain), within_submit);
}

/* Copy on write of @cluster. What a raw image has not of its last cluster stays zero. */
static void copy_submit(struct chain_op *op, uint64_t cluster)
{
    struct layer_chain *c = op->chain;
    uint64_t offset = cluster * LAYER_CLUSTER_BYTES;
    struct chain_piece *p = piece_new(op, PIECE_FILL);
    op->pending++;
    p->below = (struct block_request){.op = BLOCK_READ, .offset = offset, .size = LAYER_CLUSTER_BYTES};
    p->buffer = aligned_alloc(LAYER_BLOCK_BYTES, LAYER_CLUSTER_BYTES);
    if (p->buffer == NULL) {
        piece_ended(p, -ENOMEM, true);
        return;
    }
    memset(p->buffer, 0, LAYER_CLUSTER_BYTES);
    if (c->owner[cluster] == 0) {
        copy_store(p, true);
        return;
    }
    struct layer *from = c->layers[c->owner[cluster] - 1];
    p->below.size = MIN((uint64_t)LAYER_CLUSTER_BYTES, from->data->size_bytes - offset);
    p->one = (struct iovec){p->buffer, p->below.size};
    p->below.iovecs = &p->one;
    p->below.iovec_count = 1;
    piece_submit(p, from, true);
}

static void piece_done(struct block_request *request, int result)
{
    struct chain_piece *p = CONTAINER_OF(request, struct chain_piece, below);
    miss_end(p, result);
    if (p->kind == PIECE_FILL && result == 0)
        copy_store(p, false);
    else
        piece_ended(p, result, false);
}

/* ---- requests ---- */

/* The next stretch of a read from @at on, up to @end, that one layer shows (@ret_owner; 0: none): its end, and where in it
 * what reads as zeroes begins: what a raw image has not of its last cluster. */
static uint64_t stretch_next(const struct layer_chain *c, uint64_t at, uint64_t end, uint8_t *ret_owner, uint64_t *ret_there)
{
    uint64_t cluster = at / LAYER_CLUSTER_BYTES, stop = at;
    uint8_t owner = c->owner[cluster];
    for (; stop < end && c->owner[cluster] == owner; cluster++)
        stop = MIN(end, (cluster + 1) * LAYER_CLUSTER_BYTES);
    *ret_owner = owner;
    *ret_there = owner == 0 ? at : MAX(at, MIN(stop, c->layers[owner - 1]->data->size_bytes));
    return stop;
}

/* @r is being read: ask for what follows. The stretch that it ends in is one file's, and left to the kernel, which sees that
 * being read in order; and so a disk of one layer has no use for any of this. */
static void next_ask(struct layer_chain *c, const struct block_request *r, bool waits)
{
    uint64_t last = (r->offset + r->size - 1) / LAYER_CLUSTER_BYTES, at, end, stop, there;
    uint8_t owner;
    if (c->count < 2 || c->draining || !read_ahead_next(&c->ahead, r->offset, r->size, waits, c->block.size_bytes, &at, &end))
        return;
    stop = stretch_next(c, last * LAYER_CLUSTER_BYTES, end, &owner, &there);
    block_plug(&c->block);
    for (at = MAX(at, stop); at < end; at = stop) {
        stop = stretch_next(c, at, end, &owner, &there);
        if (there > at && !c->layers[owner - 1]->is_source)
            block_will_read(c->layers[owner - 1]->data, at, there - at);
    }
    block_unplug(&c->block);
}

static void read_submit(struct chain_op *op)
{
    struct layer_chain *c = op->chain;
    const struct block_request *r = op->request;
    uint64_t end = r->offset + r->size, stop, there;
    uint8_t owner;
    for (uint64_t at = r->offset; at < end; at = stop) {
        stop = stretch_next(c, at, end, &owner, &there);
        if (there < stop)
            request_copy(r, there - r->offset, NULL, stop - there);
        if (there > at)
            stretch_submit(op, c->layers[owner - 1], at, there);
    }
}

/* All of it, of however many layers; what is not at hand is mostly found out at the first. */
static int chain_read_at_hand(struct block *b, const struct block_request *r)
{
    struct layer_chain *c = of_block(b);
    struct iovec iovecs[AT_HAND_IOVECS_MAX];
    uint64_t end = r->offset + r->size, stop, there;
    uint8_t owner;
    int code = c->count == 0 ? -EAGAIN : 0;
    for (uint64_t at = r->offset; at < end && code == 0; at = stop) {
        stop = stretch_next(c, at, end, &owner, &there);
        struct block_request piece = {.op = BLOCK_READ, .offset = at, .size = there - at, .iovecs = r->iovecs, .iovec_count = r->iovec_count};
        if (there < stop)
            request_copy(r, there - r->offset, NULL, stop - there);
        if (there == at)
            continue;
        if (c->layers[owner - 1]->is_source || (piece.size < r->size && r->iovec_count > AT_HAND_IOVECS_MAX))
            return -EAGAIN;
        if (piece.size < r->size) {
            piece.iovecs = iovecs;
            piece.iovec_count = block_iovecs_slice(r->iovecs, r->iovec_count, at - r->offset, piece.size, iovecs);
        }
        code = block_read_at_hand(c->layers[owner - 1]->data, &piece);
    }
    if (code == 0)
        next_ask(c, r, false);
    return code;
}

static bool covers(const struct layer_chain *c, const struct block_request *r, uint64_t cluster)
{
    uint64_t start = cluster * LAYER_CLUSTER_BYTES;
    return r->offset <= start && r->offset + r->size >= MIN(start + LAYER_CLUSTER_BYTES, c->block.size_bytes);
}

static bool needs_copy(const struct layer_chain *c, const struct block_request *r, uint64_t cluster)
{
    return is_slow(c, cluster) && !covers(c, r, cluster);
}

static void write_submit(struct chain_op *op)
{
    struct layer_chain *c = op->chain;
    const struct block_request *r = op->request;
    uint64_t start = r->offset, end = r->offset + r->size;
    bool copy_first = needs_copy(c, r, op->first), copy_last = op->last > op->first && needs_copy(c, r, op->last);
    if (copy_first)
        start = MIN(end, (op->first + 1) * LAYER_CLUSTER_BYTES);
    if (copy_last)
        end = op->last * LAYER_CLUSTER_BYTES;
    if (start < end)
        stretch_submit(op, layer_chain_top(c), start, end);
    if (copy_first)
        copy_submit(op, op->first);
    if (copy_last)
        copy_submit(op, op->last);
}

static void zeroes_submit(struct chain_op *op)
{
    struct layer_chain *c = op->chain;
    const struct block_request *r = op->request;
    uint64_t end = r->offset + r->size;
    for (uint64_t at = r->offset; at < end;) {
        uint64_t cluster = at / LAYER_CLUSTER_BYTES, stop = at;
        if (is_tops(c, cluster)) {
            for (; stop < end && is_tops(c, cluster); cluster++)
                stop = MIN(end, (cluster + 1) * LAYER_CLUSTER_BYTES);
            stretch_submit(op, layer_chain_top(c), at, stop);
            at = stop;
            continue;
        }
        if (c->owner[cluster] != 0 && covers(c, r, cluster)) {
            layer_map_set(&layer_chain_top(c)->map, cluster, LAYER_ZERO);
            c->owner[cluster] = 0;
        } else if (c->owner[cluster] != 0 && r->op == BLOCK_WRITE_ZEROES) {
            copy_submit(op, cluster);
        }
        at = (cluster + 1) * LAYER_CLUSTER_BYTES;
    }
}

static void op_flushed(struct layer_flush *flush, int result)
{
    struct chain_op *op = CONTAINER_OF(flush, struct chain_op, flush);
    op_result(op, result);
    op_let_go(op, false);
}

/* It began after the switch, and so has all that was written before it. */
static void op_flushed_behind(struct layer_flush *flush, int result)
{
    struct chain_op *op = CONTAINER_OF(flush, struct chain_op, flush_behind);
    if (result == 0 && op->chain->behind == op->behind) /* another flush may have been quicker, and another switch come since */
        op->chain->behind = NULL;
    op_result(op, result);
    op_let_go(op, false);
}

static void flush_submit(struct chain_op *op)
{
    struct layer *top = layer_chain_top(op->chain);
    if (op->chain->behind != NULL) {
        op->flush_behind.done = op_flushed_behind;
        op->behind = op->chain->behind;
        int behind = layer_flush(op->chain->behind, &op->flush_behind);
        if (behind < 0)
            op_result(op, behind);
        else
            op->pending++;
    }
    if (!layer_has_news(top)) {
        stretch_submit(op, top, 0, 0);
        return;
    }
    op->flush.done = op_flushed;
    int code = layer_flush(top, &op->flush);
    if (code < 0)
        op_result(op, code);
    else
        op->pending++;
}

static void op_begin(struct chain_op *op)
{
    op->pending = 1;
    op->chain->changing += is_change(op->request);
    if (op->slow)
        list_append(&op->chain->active, &op->link);
    switch (op->request->op) {
    case BLOCK_READ:
        read_submit(op);
        break;
    case BLOCK_WRITE:
        write_submit(op);
        break;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        zeroes_submit(op);
        break;
    case BLOCK_FLUSH:
    case BLOCK_OPS:
        flush_submit(op);
        break;
    }
    op_let_go(op, true);
}

static bool is_held(const struct layer_chain *c, uint64_t first, uint64_t last)
{
    LIST_FOREACH(link, &c->active) {
        const struct chain_op *op = LIST_ENTRY(link, struct chain_op, link);
        if (op->first <= last && op->last >= first)
            return true;
    }
    return false;
}

static bool op_may_begin(struct chain_op *op)
{
    struct layer_chain *c = op->chain;
    op->slow = false;
    if (!is_change(op->request))
        return true;
    if (c->held)
        return false;
    if (!list_empty(&c->active) && is_held(c, op->first, op->last))
        return false;
    for (uint64_t i = op->first; i <= op->last && !op->slow; i++)
        op->slow = is_slow(c, i);
    return true;
}

/* From a local list, in order; those that must go on waiting come back. */
static void waiting_begin(struct layer_chain *c)
{
    struct list again;
    list_init(&again);
    list_take(&again, &c->waiting);
    while (!list_empty(&again)) {
        struct chain_op *op = LIST_ENTRY(again.next, struct chain_op, link);
        list_remove(&op->link);
        if (op_may_begin(op))
            op_begin(op);
        else
            list_append(&c->waiting, &op->link);
    }
    if (c->merge != NULL)
        chain_wake(c); /* it may have found the cluster held */
}

static int chain_submit(struct block *b, struct block_request *request)
{
    struct layer_chain *c = of_block(b);
    if (c->count == 0) /* another process has it */
        return -ENODEV;
    struct chain_op *op = NEW(struct chain_op);
    op->chain = c;
    op->request = request;
    list_init(&op->link);
    op->first = request->op == BLOCK_FLUSH ? 0 : request->offset / LAYER_CLUSTER_BYTES;
    op->last = request->op == BLOCK_FLUSH ? 0 : (request->offset + request->size - 1) / LAYER_CLUSTER_BYTES;
    if (op_may_begin(op))
        op_begin(op);
    else
        list_append(&c->waiting, &op->link);
    if (request->op == BLOCK_READ)
        next_ask(c, request, true);
    return 0;
}

struct chain_op *layer_chain_lock(struct layer_chain *chain, uint64_t first, uint64_t last)
{
    if (is_held(chain, first, last))
        return NULL;
    struct chain_op *op = NEW(struct chain_op);
    op->chain = chain;
    op->first = first;
    op->last = last;
    list_append(&chain->active, &op->link);
    return op;
}

void layer_chain_unlock(struct layer_chain *chain, struct chain_op *op)
{
    list_remove(&op->link);
    free(op);
    waiting_begin(chain);
}

/* ---- holding ---- */

void layer_chain_hold(struct layer_chain *chain, void (*news)(void *arg), void *arg)
{
    ASSERT(!chain->held);
    chain->held = true;
    chain->hold_news = news;
    chain->hold_arg = arg;
    if (chain->changing == 0)
        chain_wake(chain);
}

void layer_chain_release(struct layer_chain *chain)
{
    if (!chain->held)
        return;
    chain->held = false;
    waiting_begin(chain);
}

/* ---- the chain ---- */

static void layers_drain(struct layer_chain *c)
{
    for (unsigned i = 0; i < c->count; i++)
        layer_drain(c->layers[i]);
}

/* A merge stops between clusters meanwhile; what it has under way ends here too. */
static void chain_drain(struct block *b)
{
    struct layer_chain *c = of_block(b);
    c->draining = true;
    if (c->held) { /* those who drain wait for what waits, too */
        layer_chain_release(c);
        c->hold_news(c->hold_arg);
    }
    do {
        layer_chain_run(c);
        layers_drain(c);
    } while (b->in_flight > 0);
    c->draining = false;
    if (c->merge != NULL)
        chain_wake(c);
}

void layer_chain_progress(struct layer_chain *chain)
{
    layer_chain_run(chain);
    layers_drain(chain);
}

static void chain_plug(struct block *b, bool plugged)
{
    if (of_block(b)->count == 0)
        return;
    struct block *top = layer_chain_top(of_block(b))->data;
    if (plugged)
        block_plug(top);
    else
        block_unplug(top);
}

static void chain_close(struct block *b)
{
    struct layer_chain *c = of_block(b);
    if (c->merge != NULL)
        layer_merge_cancel(c->merge);
    for (unsigned i = 0; i < c->count; i++) {
        layer_settle(c->layers[i]); /* where that fails it is found open, and cleaned up, at the next opening */
        layer_close(c->layers[i]);
    }
    if (c->released != NULL)
        c->released(c->released_arg);
    free(c->owner);
    free(c);
}

static int owner_grow(struct layer_chain *c, uint64_t size_bytes)
{
    uint64_t clusters = layer_clusters(size_bytes);
    uint8_t *owner = calloc(clusters, 1);
    if (owner == NULL)
        return -ENOMEM;
    if (c->owner != NULL)
        memcpy(owner, c->owner, MIN(c->clusters, clusters));
    free(c->owner);
    c->owner = owner;
    c->clusters = clusters;
    return 0;
}

static int chain_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct layer_chain *c = of_block(b);
    int code = layer_grow(layer_chain_top(c), size_bytes, err);
    if (code == 0 && (code = owner_grow(c, size_bytes)) < 0)
        error_errno(err, code, "no memory for the disk's index");
    if (code == 0)
        b->size_bytes = size_bytes;
    return code;
}

static int chain_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct layer_chain *c = of_block(b);
    uint64_t first = from / LAYER_CLUSTER_BYTES, end;
    while (first < c->clusters && c->owner[first] == 0)
        first++;
    for (end = first; end < c->clusters && c->owner[end] != 0;)
        end++;
    *ret_start = MAX(from, first * LAYER_CLUSTER_BYTES);
    *ret_end = MIN(end * LAYER_CLUSTER_BYTES, b->size_bytes);
    return first < c->clusters;
}

static int chain_own(struct block *b, bool own, struct error *err)
{
    struct layer_chain *c = of_block(b);
    return c->own != NULL ? c->own(c->released_arg, own, err) : 0;
}

static const struct block_ops chain_ops = {.submit = chain_submit,
                                           .read_at_hand = chain_read_at_hand,
                                           .drain = chain_drain,
                                           .plug = chain_plug,
                                           .close = chain_close,
                                           .own = chain_own,
                                           .grow = chain_grow,
                                           .next_data = chain_next_data};

static int layers_check(struct layer **layers, unsigned count, struct error *err)
{
    for (unsigned i = 0; i < count; i++) {
        const struct layer_header *h = &layers[i]->header;
        bool follows = i == 0                               ? h->parent_kind == LAYER_PARENT_NONE
                       : layers[i - 1]->is_source           ? h->parent_kind == LAYER_PARENT_SOURCE
                       : layers[i - 1]->map_file == NULL    ? h->parent_kind == LAYER_PARENT_RAW
                                                            : h->parent_kind == LAYER_PARENT_LAYER &&
                                                           layer_id_equal(&h->parent, &layers[i - 1]->header.id);
        if (!follows)
            return error_set(err, -EINVAL, ERROR_INVALID, "layer %s does not follow the one below it", layers[i]->name);
        if (i > 0 && h->size_bytes < layers[i - 1]->header.size_bytes)
            return error_set(err, -EINVAL, ERROR_INVALID, "layer %s is smaller than the one below it", layers[i]->name);
    }
    return 0;
}

int layer_chain_fill(struct layer_chain *chain, struct layer **layers, unsigned count, struct error *err)
{
    ASSERT(chain->count == 0 && count > 0 && count <= LAYER_CHAIN_MAX);
    const struct layer *top = layers[count - 1];
    int code = layers_check(layers, count, err);
    if (code < 0)
        return code;
    if (!chain->block.read_only && !top->writable)
        return error_set(err, -EROFS, ERROR_INVALID, "layer %s is not open for writing", top->name);
    if (owner_grow(chain, top->header.size_bytes) < 0)
        return error_errno(err, -ENOMEM, "no memory for the disk's index");
    memset(chain->owner, 0, chain->clusters);
    chain->block.size_bytes = top->header.size_bytes;
    for (unsigned i = 0; i < count; i++) {
        chain->layers[chain->count++] = layers[i];
        index_add(chain, &layers[i]->map, (uint8_t)chain->count);
    }
    return 0;
}

int layer_chain_empty(struct layer_chain *chain)
{
    ASSERT(chain->block.in_flight == 0);
    if (chain->merge != NULL)
        layer_merge_cancel(chain->merge);
    for (unsigned i = 0; i < chain->count; i++) {
        int code = layer_settle(chain->layers[i]);
        if (code < 0)
            return code;
    }
    while (chain->count > 0)
        layer_close(chain->layers[--chain->count]);
    chain->behind = NULL; /* one of them */
    return 0;
}

int layer_chain_create(struct layer **layers, unsigned count, bool read_only, struct layer_chain **ret_chain,
                       struct error *err)
{
    struct layer_chain *c = NEW(struct layer_chain);
    c->block = (struct block){.ops = &chain_ops,
                              .block_bytes = 4096,
                              .read_only = read_only,
                              .can_discard = true,
                              .can_write_zeroes = true,
                              .lost_with_process = !read_only};
    list_init(&c->active);
    list_init(&c->waiting);
    list_init(&c->ended);
    int code = layer_chain_fill(c, layers, count, err);
    if (code < 0) {
        free(c->owner);
        free(c);
        return code;
    }
    *ret_chain = c;
    return 0;
}

int layer_chain_push(struct layer_chain *chain, struct layer *top, struct error *err)
{
    ASSERT(chain->block.in_flight == 0 && top->header.size_bytes == chain->block.size_bytes);
    if (chain->count == LAYER_CHAIN_MAX)
        return error_set(err, -E2BIG, ERROR_CONFLICT, "a disk has at most %d layers; delete snapshots first",
                         LAYER_CHAIN_MAX);
    chain->layers[chain->count++] = top;
    return 0;
}

void layer_chain_switch(struct layer_chain *chain, struct layer *top)
{
    ASSERT(chain->count < LAYER_CHAIN_MAX && chain->behind == NULL);
    ASSERT(chain->block.in_flight == 0 || layer_chain_is_quiet(chain));
    ASSERT(top->header.size_bytes == chain->block.size_bytes);
    chain->behind = layer_chain_top(chain);
    chain->layers[chain->count++] = top;
}

struct layer *layer_chain_take(struct layer_chain *chain, unsigned index, unsigned to)
{
    struct layer *layer = chain->layers[index];
    uint8_t from_number = (uint8_t)(index + 1), to_number = (uint8_t)(to + 1);
    layer_drain(layer);
    for (uint64_t i = 0; i < chain->clusters; i++) {
        uint8_t n = chain->owner[i] == from_number ? to_number : chain->owner[i];
        chain->owner[i] = n > from_number ? (uint8_t)(n - 1) : n;
    }
    for (unsigned i = index; i + 1 < chain->count; i++)
        chain->layers[i] = chain->layers[i + 1];
    chain->count--;
    if (chain->behind == layer) /* what it had is on the disk elsewhere, and flushed there */
        chain->behind = NULL;
    return layer;
}
