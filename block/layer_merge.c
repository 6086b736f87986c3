/* Two neighbouring layers become one: see layer_merge.h. */
#include "block/layer_merge.h"

#include <errno.h>
#include <string.h>

struct merge_copy {
    struct layer_merge *merge;
    struct block_request request;
    struct iovec iovec;
    struct chain_op *held; /* where the target is the top */
    uint64_t cluster;
    bool writing;
    bool is_zero; /* of a source: nothing need be written */
    uint8_t *buffer;
};

struct layer_merge {
    struct layer_chain *chain;
    struct layer_pool *pool;
    unsigned from, to;
    uint64_t next, end; /* clusters of `from` */
    unsigned copies;    /* under way */
    bool fills;         /* from a source, into the top */
    unsigned unflushed; /* clusters filled since the last flush */
    bool flushing, pumping;
    bool ready; /* for layer_merge_conclude, with `result` */
    int result;
    struct layer_flush flush;
    layer_merge_cb done;
    void *arg;
};

static struct layer *layer_from(const struct layer_merge *m)
{
    return m->chain->layers[m->from];
}

static struct layer *layer_to(const struct layer_merge *m)
{
    return m->chain->layers[m->to];
}

static bool is_up(const struct layer_merge *m)
{
    return m->to > m->from;
}

static bool into_top(const struct layer_merge *m)
{
    return m->to == m->chain->count - 1;
}

/* Whether cluster @c of @from has to get into @to. */
static bool is_wanted(const struct layer *from, const struct layer *to, bool up, uint64_t c)
{
    return layer_map_get(&from->map, c) != LAYER_ABSENT &&
           (!up || c >= to->map.clusters || layer_map_get(&to->map, c) == LAYER_ABSENT);
}

uint64_t layer_merge_cost(const struct layer_chain *chain, unsigned from, bool up)
{
    const struct layer *f = chain->layers[from], *to = chain->layers[up ? from + 1 : from - 1];
    uint64_t count = 0;
    for (uint64_t c = layer_map_next(&f->map, 0); c < f->map.clusters; c = layer_map_next(&f->map, c + 1))
        count += layer_map_get(&f->map, c) == LAYER_DATA && is_wanted(f, to, up, c);
    return count;
}

void layer_merge_progress(const struct layer_merge *merge, uint64_t *ret_done, uint64_t *ret_total)
{
    *ret_done = merge->next;
    *ret_total = merge->end;
}

/* ---- the end ---- */

/* Nothing below the top is written any more: others may read it. Where that fails it is found open, which does no harm. */
static void below_share(struct layer_chain *chain)
{
    for (unsigned i = 0; i + 1 < chain->count; i++)
        if (chain->layers[i]->writable && layer_settle(chain->layers[i]) == 0)
            layer_share(chain->layers[i]);
}

static void merge_end(struct layer_merge *m, int result, const struct layer_id *gone)
{
    layer_merge_cb done = m->done;
    void *arg = m->arg;
    m->chain->merge = NULL;
    below_share(m->chain);
    free(m);
    done(arg, result, gone);
}

/* All is copied and durable: from here on the chain leaves `from` out. */
static int merge_commit(struct layer_merge *m)
{
    struct layer *from = layer_from(m), *to = layer_to(m), *child = is_up(m) ? to : m->chain->layers[m->from + 1];
    const struct layer_header before = child->header;
    struct error err;
    int code = layer_make_writable(m->pool, child, &err);
    if (code == 0 && !is_up(m)) {
        to->header.generation = from->header.generation;
        code = layer_write_header(to);
    }
    if (code < 0)
        return code;
    if (is_up(m)) {
        child->header.source_bytes = from->header.source_bytes; /* of a source's, 0: then it is whole */
        child->header.parent_kind = from->header.parent_kind;
        child->header.parent = from->header.parent;
        memcpy(child->header.parent_name, from->header.parent_name, LAYER_NAME_BYTES);
    } else {
        child->header.parent = to->header.id;
    }
    code = layer_write_header(child);
    if (code < 0) { /* which of the two is on disk is not known, and both are right */
        child->header.parent_kind = before.parent_kind;
        child->header.parent = before.parent;
        child->header.source_bytes = before.source_bytes;
        memcpy(child->header.parent_name, before.parent_name, LAYER_NAME_BYTES);
    }
    return code;
}

void layer_merge_conclude(struct layer_chain *chain)
{
    struct layer_merge *m = chain->merge;
    if (m == NULL || !m->ready)
        return;
    int result = m->result;
    if (result == 0)
        result = merge_commit(m);
    if (result < 0) {
        merge_end(m, result, NULL);
        return;
    }
    struct layer *from = layer_chain_take(m->chain, m->from, m->to);
    const struct layer_id gone = from->header.id;
    layer_close(from);
    merge_end(m, 0, &gone);
}

static void merge_ready(struct layer_merge *m, int result)
{
    struct layer_chain *chain = m->chain;
    m->ready = true;
    if (m->result == 0)
        m->result = result;
    if (chain->merge_ready != NULL)
        chain->merge_ready(chain->merge_ready_arg);
    else
        layer_merge_conclude(chain);
}

static void merge_flushed(struct layer_flush *flush, int result)
{
    struct layer_merge *m = CONTAINER_OF(flush, struct layer_merge, flush);
    m->flushing = false;
    merge_ready(m, result);
}

/* Nothing is under way and nothing is left to begin. */
static void merge_finish(struct layer_merge *m)
{
    if (m->result < 0) {
        merge_ready(m, m->result);
        return;
    }
    m->flushing = true;
    m->flush.done = merge_flushed;
    int code = layer_flush(layer_to(m), &m->flush);
    if (code < 0) {
        m->flushing = false;
        merge_ready(m, code);
    }
}

/* ---- copies ---- */

static void copy_end(struct merge_copy *copy, int result)
{
    struct layer_merge *m = copy->merge;
    struct layer *to = layer_to(m);
    if (result == 0) {
        layer_map_set(&to->map, copy->cluster, copy->is_zero ? LAYER_ZERO : LAYER_DATA);
        if (is_up(m) && m->chain->owner[copy->cluster] == m->from + 1)
            m->chain->owner[copy->cluster] = copy->is_zero ? 0 : (uint8_t)(m->to + 1);
        m->unflushed++;
    } else {
        m->result = m->result == 0 ? result : m->result;
        to->stained = to->stained || (copy->writing && result != -EAGAIN);
    }
    m->copies--;
    struct chain_op *held = copy->held;
    struct layer_chain *chain = m->chain;
    free(copy->buffer);
    free(copy);
    if (held != NULL)
        layer_chain_unlock(chain, held);
    if (!chain->draining)
        layer_merge_pump(m);
}

static bool is_zero(const uint8_t *cluster)
{
    return cluster[0] == 0 && memcmp(cluster, cluster + 1, LAYER_CLUSTER_BYTES - 1) == 0;
}

static void copy_moved(struct block_request *request, int result)
{
    struct merge_copy *copy = CONTAINER_OF(request, struct merge_copy, request);
    copy->is_zero = result == 0 && !copy->writing && copy->merge->fills && is_zero(copy->buffer);
    if (result == 0 && !copy->writing && !copy->is_zero) {
        copy->writing = true;
        copy->iovec.iov_len = LAYER_CLUSTER_BYTES;
        copy->request.op = BLOCK_WRITE;
        copy->request.size = LAYER_CLUSTER_BYTES;
        result = block_submit(layer_to(copy->merge)->data, &copy->request);
        if (result == 0)
            return;
    }
    copy_end(copy, result);
}

/* Begin to copy cluster @c; false: a write holds it. */
static bool copy_begin(struct layer_merge *m, uint64_t c)
{
    struct layer *from = layer_from(m);
    uint64_t offset = c * LAYER_CLUSTER_BYTES;
    struct chain_op *held = into_top(m) ? layer_chain_lock(m->chain, c, c) : NULL;
    if (into_top(m) && held == NULL)
        return false;
    struct merge_copy *copy = NEW(struct merge_copy);
    copy->merge = m;
    copy->cluster = c;
    copy->held = held;
    copy->buffer = aligned_alloc(LAYER_BLOCK_BYTES, LAYER_CLUSTER_BYTES);
    ASSERT(copy->buffer != NULL);
    memset(copy->buffer, 0, LAYER_CLUSTER_BYTES);
    copy->iovec = (struct iovec){copy->buffer, MIN((uint64_t)LAYER_CLUSTER_BYTES, from->data->size_bytes - offset)};
    copy->request = (struct block_request){.op = BLOCK_READ,
                                           .offset = offset,
                                           .size = copy->iovec.iov_len,
                                           .iovecs = &copy->iovec,
                                           .iovec_count = 1,
                                           .done = copy_moved};
    m->copies++;
    int code = block_submit(from->data, &copy->request);
    if (code < 0)
        copy_end(copy, code);
    return true;
}

/* `from` says zero: so says the target, without any data. Under a target that has data there, a hole in it says so. */
static void zero_take(struct layer_merge *m, uint64_t c)
{
    struct layer *to = layer_to(m);
    if (layer_map_get(&to->map, c) != LAYER_DATA) {
        layer_map_set(&to->map, c, LAYER_ZERO);
        return;
    }
    int code = block_now(to->data, BLOCK_WRITE_ZEROES, c * LAYER_CLUSTER_BYTES, NULL, LAYER_CLUSTER_BYTES);
    if (code < 0)
        m->result = code;
}

/* What the guest has read from the source is there already: that first. */
static void hot_begin(struct layer_merge *m)
{
    struct layer_chain *chain = m->chain;
    while (m->copies < LAYER_FILL_COPIES_MAX && m->result == 0 && chain->hot_count > 0) {
        uint64_t c = chain->hot[--chain->hot_count];
        if (is_wanted(layer_from(m), layer_to(m), true, c))
            (void)copy_begin(m, c); /* where a write has it, it comes later, if at all */
    }
}

static void fill_flushed(struct layer_flush *flush, int result)
{
    struct layer_merge *m = CONTAINER_OF(flush, struct layer_merge, flush);
    m->flushing = false;
    m->result = m->result == 0 ? result : m->result;
    if (!m->chain->draining)
        layer_merge_pump(m);
}

/* Now and then, so that a crash does not lose all that has come. True: it has begun. */
static bool fill_flush(struct layer_merge *m)
{
    if (!m->fills || m->unflushed < LAYER_FILL_FLUSH_CLUSTERS || m->result < 0)
        return false;
    m->unflushed = 0;
    m->flush.done = fill_flushed;
    m->flushing = layer_flush(layer_to(m), &m->flush) == 0;
    return m->flushing;
}

/* Copies under way at once. Of a source's none is begun while the guest waits for it. */
static unsigned copies_max(const struct layer_merge *m)
{
    return !m->fills ? LAYER_MERGE_COPIES_MAX : m->chain->misses > 0 ? 0 : LAYER_FILL_COPIES_MAX;
}

void layer_merge_pump(struct layer_merge *m)
{
    if (m->flushing || m->pumping || m->ready || fill_flush(m))
        return;
    m->pumping = true;
    const struct layer *from = layer_from(m);
    if (m->fills)
        hot_begin(m);
    while (m->copies < copies_max(m) && m->result == 0 && m->next < m->end) {
        uint64_t c = layer_map_next(&from->map, m->next);
        if (c < m->end && is_wanted(from, layer_to(m), is_up(m), c)) {
            if (layer_map_get(&from->map, c) == LAYER_ZERO)
                zero_take(m, c);
            else if (!copy_begin(m, c))
                break;
        }
        m->next = MIN(c + 1, m->end);
    }
    m->pumping = false;
    if (m->copies == 0 && (m->next == m->end || m->result < 0))
        merge_finish(m);
}

void layer_merge_cancel(struct layer_merge *merge)
{
    struct layer_chain *chain = merge->chain;
    if (merge->result == 0)
        merge->result = -ECANCELED;
    while (chain->merge != NULL) {
        layer_merge_pump(merge);
        for (unsigned i = 0; i < chain->count && chain->merge != NULL; i++)
            layer_drain(chain->layers[i]);
        layer_merge_conclude(chain);
    }
}

int layer_merge_start(struct layer_chain *chain, struct layer_pool *pool, unsigned from, bool up, layer_merge_cb done,
                      void *arg, struct error *err)
{
    if (chain->merge != NULL)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a merge of this disk is under way");
    if (from + 1 >= chain->count || (!up && (from == 0 || chain->layers[from - 1]->map_file == NULL)))
        return error_set(err, -EINVAL, ERROR_INVALID, "layer %u of %u cannot be merged %s", from, chain->count,
                         up ? "up" : "down");
    unsigned to = up ? from + 1 : from - 1;
    ASSERT(!chain->layers[from]->is_source || to == chain->count - 1); /* its copies are kept apart from writes by locks */
    int code = layer_make_writable(pool, chain->layers[to], err);
    if (code == 0 && !up && chain->layers[to]->header.size_bytes < chain->layers[from]->header.size_bytes)
        code = layer_grow(chain->layers[to], chain->layers[from]->header.size_bytes, err);
    if (code < 0)
        return code;
    struct layer_merge *m = NEW(struct layer_merge);
    m->chain = chain;
    m->pool = pool;
    m->from = from;
    m->to = to;
    m->fills = chain->layers[from]->is_source;
    m->end = chain->layers[from]->map.clusters;
    m->done = done;
    m->arg = arg;
    chain->merge = m;
    if (chain->wake != NULL)
        chain->wake(chain->wake_arg);
    return 0;
}
