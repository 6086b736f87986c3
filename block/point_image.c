/* Copy before write: see point_image.h. Below: copies of clusters, the front's requests, the back's. */
#include "block/point_image.h"

#include <errno.h>
#include <string.h>

enum {
    CLUSTER_BLOCKS = POINT_CLUSTER_BYTES / POINT_BLOCK_BYTES,
    ANSWERS_MAX = 4,
    BUCKETS = 512,
    RUN_COPIES_MAX = 256, /* in one write to the spill: a MiB of single blocks, 16 MiB of clusters */
    RUNS_AT_ONCE = 8,     /* the writer's own requests meet no more of them */
};
STATIC_ASSERT(CLUSTER_BLOCKS == 16, "a bit of `kept` for each block of a cluster");

/* Of a cluster. KEPT: of the blocks in image->kept; the others are in place. */
enum cluster_state { CLUSTER_IN_PLACE, CLUSTER_KEPT, CLUSTER_ZERO, CLUSTER_GONE };
enum point_state { POINT_IN_PLACE, POINT_READING, POINT_HELD, POINT_SPILLED, POINT_ZERO, POINT_GONE };

/* Blocks of one cluster, their old content on its way to the spill: READING, then HELD; or GONE meanwhile. */
struct point_copy {
    struct block_request request; /* the read */
    struct iovec one;
    struct list link;   /* in reading, held or its run's */
    struct list bucket; /* in buckets */
    struct point_image *image;
    uint64_t first, count; /* blocks */
    bool is_read;
    struct spill_run *run; /* NULL: not on its way yet */
    uint8_t *buffer;
};

/* Copies that follow each other on the disk, in one write to the spill. */
struct spill_run {
    struct block_request request;
    struct list link; /* in runs, until it begins */
    struct point_image *image;
    struct list copies;
    struct iovec iovecs[];
};

/* What block_next_data has said of the disk: nothing from `from` on, then data from `start` to `end`. */
struct point_answer {
    uint64_t from, start, end;
};

struct front_op {
    struct block_request below;
    struct block_request *request;
    struct point_image *image;
    struct list link; /* in front_waiting or ended; else unlinked */
    uint64_t first, last; /* blocks */
};

struct back_piece {
    struct block_request below;
    struct back_op *op;
    struct iovec iovecs[];
};

struct back_op {
    struct block_request *request;
    struct point_image *image;
    struct list link; /* in back_waiting, reading or ended */
    uint64_t first, last; /* blocks */
    unsigned pending; /* pieces, and 1 while they are being submitted */
    int result;
};

struct point_image {
    struct block front, back;
    struct point_image_options options;
    uint8_t *state; /* enum cluster_state of each cluster */
    uint16_t *kept; /* a bit for each block of each cluster; memory only where something was kept */
    uint64_t clusters, blocks;
    struct point_answer answers[ANSWERS_MAX];
    unsigned answer_next;
    struct list reading, held; /* struct point_copy; those on their way are their run's */
    struct list runs;          /* struct spill_run: to begin when others have ended */
    struct list buckets[BUCKETS]; /* of all copies, by cluster */
    unsigned reading_count, held_count, run_count; /* runs under way */
    uint64_t copies_bytes; /* in memory */
    struct list front_waiting; /* struct front_op: for copies, or for reads of the back */
    struct list front_ended;
    struct list back_waiting;  /* struct back_op: for blocks in state READING */
    struct list back_reading;  /* pieces are under way */
    struct list back_ended;
    struct error why; /* code 0: not lost */
    struct point_counters counters;
};

static void waiting_retry(struct point_image *image);

static void image_wake(struct point_image *image)
{
    if (image->options.wake != NULL)
        image->options.wake(image->options.arg);
}

static uint64_t cluster_size(const struct point_image *image, uint64_t cluster)
{
    return MIN((uint64_t)POINT_CLUSTER_BYTES, image->back.size_bytes - cluster * POINT_CLUSTER_BYTES);
}

/* ---- losing it ---- */

static void punch_done(struct block_request *request, int result UNUSED)
{
    free(request);
}

/* [@offset, @offset + @size) of the spill is needed no more. One that cannot punch keeps the space until the end. */
static void spill_punch(struct point_image *image, uint64_t offset, uint64_t size)
{
    struct block_request *request = NEW(struct block_request);
    *request = (struct block_request){
        .op = BLOCK_DISCARD, .may_unmap = true, .offset = offset, .size = size, .done = punch_done};
    if (block_submit(image->options.spill, request) < 0)
        free(request);
}

static void image_lost(struct point_image *image, const struct error *why)
{
    if (image->why.code != 0)
        return;
    image->why = *why;
    spill_punch(image, 0, image->back.size_bytes); /* the guest may be in need of it */
    if (image->options.failed != NULL)
        image->options.failed(image->options.arg, why);
}

static void image_failed(struct point_image *image, int code, const char *what)
{
    struct error err = {0};
    if (code == -ENOSPC || code == -EDQUOT)
        error_set(&err, -ENOSPC, ERROR_NO_SPACE,
                  "the backup was given up so that the VM can go on: the spill is full (%llu MiB); give it more room, "
                  "or back up to a faster store",
                  (unsigned long long)(image->options.budget->bytes >> 20));
    else
        error_errno(&err, code, "the backup was given up: %s", what);
    image_lost(image, &err);
}

/* ---- copies ---- */

static bool budget_take(struct point_budget *budget, uint64_t bytes)
{
    if (budget->bytes > budget->bytes_max || budget->bytes_max - budget->bytes < bytes)
        return false;
    budget->bytes += bytes;
    budget->bytes_peak = MAX(budget->bytes_peak, budget->bytes);
    return true;
}

/* Bits of `kept`: @count blocks from block @first of the disk on, all of one cluster. */
static uint16_t blocks_mask(uint64_t first, uint64_t count)
{
    return (uint16_t)(((1u << count) - 1) << first % CLUSTER_BLOCKS);
}

/* The blocks [@first, @last] as far as they are in @cluster. */
static uint16_t mask_within(uint64_t cluster, uint64_t first, uint64_t last)
{
    uint64_t from = MAX(first, cluster * CLUSTER_BLOCKS), end = MIN(last + 1, (cluster + 1) * CLUSTER_BLOCKS);
    return blocks_mask(from, end - from);
}

static bool copy_is_gone(const struct point_copy *c)
{
    return c->image->state[c->first / CLUSTER_BLOCKS] == CLUSTER_GONE;
}

/* Blocks that the spill has, or was to have, are needed no more. */
static void spill_release(struct point_image *image, uint64_t first, uint64_t count)
{
    uint64_t offset = first * POINT_BLOCK_BYTES;
    spill_punch(image, offset, MIN(count * POINT_BLOCK_BYTES, image->back.size_bytes - offset));
}

static struct list *bucket_of(struct point_image *image, uint64_t cluster)
{
    return &image->buckets[cluster % BUCKETS];
}

static void copy_unlink(struct point_copy *c)
{
    struct point_image *image = c->image;
    list_remove(&c->link);
    image->reading_count -= !c->is_read;
    image->held_count -= c->is_read && c->run == NULL;
}

static void copy_free(struct point_copy *c)
{
    copy_unlink(c);
    list_remove(&c->bucket);
    c->image->copies_bytes -= c->count * POINT_BLOCK_BYTES;
    free(c->buffer);
    free(c);
}

/* It will not come into the spill, or is needed there no more. */
static void copy_drop(struct point_copy *c)
{
    c->image->kept[c->first / CLUSTER_BLOCKS] &= (uint16_t)~blocks_mask(c->first, c->count);
    c->image->options.budget->bytes -= c->count * POINT_BLOCK_BYTES;
    copy_free(c);
}

static void copy_hold(struct point_copy *c)
{
    struct point_image *image = c->image;
    copy_unlink(c);
    c->is_read = true;
    list_append(&image->held, &c->link);
    image->held_count++;
}

static void copy_read(struct block_request *request, int result)
{
    struct point_copy *c = CONTAINER_OF(request, struct point_copy, request);
    struct point_image *image = c->image;
    if (result == 0 && !copy_is_gone(c))
        copy_hold(c);
    else
        copy_drop(c);
    if (result < 0)
        image_failed(image, result, "cannot read what the VM is about to overwrite");
    waiting_retry(image);
}

/* Keep what blocks of one cluster hold that are in place. False: too much is in memory. */
static bool copy_begin(struct point_image *image, uint64_t first, uint64_t count)
{
    uint64_t offset = first * POINT_BLOCK_BYTES, bytes = count * POINT_BLOCK_BYTES;
    uint64_t size = MIN(bytes, image->back.size_bytes - offset);
    /* There is something in memory then: after held_write some of it is being read or written, and its end begins this anew. */
    if (image->copies_bytes + bytes > image->options.memory_bytes) {
        image->counters.waited++;
        return false;
    }
    if (!budget_take(image->options.budget, bytes)) {
        image_failed(image, -ENOSPC, NULL);
        return true;
    }
    struct point_copy *c = NEW(struct point_copy);
    c->image = image;
    c->first = first;
    c->count = count;
    c->buffer = aligned_alloc(BLOCK_SECTOR_BYTES, bytes); /* as much as a disk past the page cache asks for */
    c->one = (struct iovec){c->buffer, size};
    c->request = (struct block_request){
        .op = BLOCK_READ, .offset = offset, .size = size, .iovecs = &c->one, .iovec_count = 1, .done = copy_read};
    list_append(&image->reading, &c->link);
    list_append(bucket_of(image, first / CLUSTER_BLOCKS), &c->bucket);
    image->reading_count++;
    image->copies_bytes += bytes;
    image->counters.copied_bytes += size;
    image->kept[first / CLUSTER_BLOCKS] |= blocks_mask(first, count);
    int code = c->buffer == NULL ? -ENOMEM : block_read_at_hand(image->options.disk, &c->request);
    if (code == 0)
        copy_hold(c);
    else if (code == -EAGAIN && (code = block_submit(image->options.disk, &c->request)) == 0)
        image->counters.read_bytes += size;
    if (code < 0) {
        copy_drop(c);
        image_failed(image, code, "cannot read what the VM is about to overwrite");
    }
    return true;
}

/* ---- from memory to the spill ---- */

/* Its copies are in the spill, or not needed there any more, or (@result) the image is lost. */
static void run_end(struct spill_run *run, int result)
{
    struct point_image *image = run->image;
    LIST_FOREACH_SAFE(link, &run->copies) {
        struct point_copy *c = LIST_ENTRY(link, struct point_copy, link);
        if (!copy_is_gone(c)) {
            copy_free(c);
            continue;
        }
        spill_release(image, c->first, c->count);
        copy_drop(c);
    }
    free(run);
    if (result < 0)
        image_failed(image, result, "cannot write the spill");
}

static void runs_begin(struct point_image *image)
{
    while (image->run_count < RUNS_AT_ONCE && !list_empty(&image->runs) && image->why.code == 0) {
        struct spill_run *run = LIST_ENTRY(image->runs.next, struct spill_run, link);
        list_remove(&run->link);
        image->run_count++;
        int code = block_submit(image->options.spill, &run->request);
        if (code == 0)
            continue;
        image->run_count--;
        run_end(run, code);
        image_wake(image); /* who waited for memory has nothing to wait for any more */
    }
}

static void run_written(struct block_request *request, int result)
{
    struct spill_run *run = CONTAINER_OF(request, struct spill_run, request);
    struct point_image *image = run->image;
    image->run_count--;
    run_end(run, result);
    runs_begin(image);
    waiting_retry(image);
}

/* Of @copies, which follow each other. */
static void run_add(struct point_image *image, struct point_copy *const *copies, unsigned count)
{
    struct spill_run *run = xcalloc(1, sizeof *run + count * sizeof(struct iovec));
    run->image = image;
    list_init(&run->copies);
    run->request = (struct block_request){.op = BLOCK_WRITE,
                                          .offset = copies[0]->first * POINT_BLOCK_BYTES,
                                          .iovecs = run->iovecs,
                                          .iovec_count = count,
                                          .done = run_written};
    for (unsigned i = 0; i < count; i++) {
        copy_unlink(copies[i]);
        copies[i]->run = run;
        list_append(&run->copies, &copies[i]->link);
        run->iovecs[i] = copies[i]->one;
        run->request.size += copies[i]->one.iov_len;
    }
    list_append(&image->runs, &run->link);
}

static int by_place(const void *a, const void *b)
{
    const struct point_copy *x = *(struct point_copy *const *)a, *y = *(struct point_copy *const *)b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* All that is held, when there are few runs: what lies side by side is one. To let more come together first was tried: the
 * writer felt the many writes that followed more than one beside each of its own. */
static void held_write(struct point_image *image)
{
    unsigned count = 0, length;
    if (image->held_count == 0 || image->run_count >= RUNS_AT_ONCE || !list_empty(&image->runs) || image->why.code != 0)
        return;
    CLEANUP_FREE struct point_copy **copies = xcalloc(image->held_count, sizeof *copies);
    LIST_FOREACH(link, &image->held)
        copies[count++] = LIST_ENTRY(link, struct point_copy, link);
    qsort(copies, count, sizeof *copies, by_place);
    for (unsigned at = 0; at < count; at += length) {
        for (length = 1; at + length < count && length < RUN_COPIES_MAX; length++)
            if (copies[at + length]->first != copies[at + length - 1]->first + copies[at + length - 1]->count)
                break;
        run_add(image, copies + at, length);
    }
    runs_begin(image);
}

/* What is not on its way. */
static void held_drop(struct point_image *image)
{
    while (!list_empty(&image->held))
        copy_drop(LIST_ENTRY(image->held.next, struct point_copy, link));
    while (!list_empty(&image->runs)) {
        struct spill_run *run = LIST_ENTRY(image->runs.next, struct spill_run, link);
        list_remove(&run->link);
        run_end(run, 0);
    }
}

/* ---- which blocks ---- */

/* Whether @cluster, of which nothing was changed yet, is all hole. What the disk has said of others is remembered: to find
 * the end of a long stretch may cost it much, and no hole is filled that is still in place. */
static bool cluster_is_hole(struct point_image *image, uint64_t cluster)
{
    uint64_t from = cluster * POINT_CLUSTER_BYTES, stop = from + cluster_size(image, cluster);
    for (unsigned i = 0; i < ANSWERS_MAX; i++) {
        const struct point_answer *a = &image->answers[i];
        if (a->from <= from && stop <= a->start)
            return true;
        if (a->start < stop && from < a->end)
            return false;
    }
    struct point_answer answer = {.from = from};
    int code = block_next_data(image->options.disk, from, &answer.start, &answer.end);
    if (code < 0)
        return false;
    if (code == 0)
        answer.start = answer.end = UINT64_MAX;
    image->answers[image->answer_next++ % ANSWERS_MAX] = answer;
    return stop <= answer.start;
}

static bool is_kept(const struct point_image *image, uint64_t block)
{
    uint64_t cluster = block / CLUSTER_BLOCKS;
    return image->state[cluster] == CLUSTER_KEPT && (image->kept[cluster] & blocks_mask(block, 1)) != 0;
}

/* A write from block @first on: a run that begins there, right behind what was kept before, is one of somebody who writes in
 * sequence. It is to be kept up to the end of the cluster, so that he need not wait again so soon. */
static uint64_t run_length(const struct point_image *image, uint64_t first, uint64_t start, uint64_t needed)
{
    uint64_t end = MIN((start / CLUSTER_BLOCKS + 1) * CLUSTER_BLOCKS, image->blocks);
    if (start != first || start == 0 || !is_kept(image, start - 1))
        return needed;
    while (start + needed < end && !is_kept(image, start + needed))
        needed++;
    return needed;
}

/* Begin to keep those blocks of [@first, @last] in @cluster that are still in place. False: too much is in memory. */
static bool cluster_keep(struct point_image *image, uint64_t cluster, uint64_t first, uint64_t last)
{
    unsigned needs = mask_within(cluster, first, last);
    if (image->state[cluster] == CLUSTER_IN_PLACE)
        image->state[cluster] = cluster_is_hole(image, cluster) ? CLUSTER_ZERO : CLUSTER_KEPT;
    if (image->state[cluster] != CLUSTER_KEPT)
        return true;
    for (unsigned missing; (missing = needs & (unsigned)~image->kept[cluster]) != 0 && image->why.code == 0;) {
        unsigned skip = (unsigned)__builtin_ctz(missing), run = (unsigned)__builtin_ctz(~(missing >> skip));
        uint64_t start = cluster * CLUSTER_BLOCKS + skip;
        if (!copy_begin(image, start, run_length(image, first, start, run)))
            return false;
    }
    return true;
}

/* Is one of the blocks [@first, @last] being read, by somebody who still wants it? */
static bool is_being_kept(const struct point_image *image, uint64_t first, uint64_t last)
{
    LIST_FOREACH(link, &image->reading) {
        const struct point_copy *c = LIST_ENTRY(link, struct point_copy, link);
        if (c->first <= last && c->first + c->count > first && !copy_is_gone(c))
            return true;
    }
    return false;
}

static struct point_copy *copy_find(struct point_image *image, uint64_t block)
{
    LIST_FOREACH(link, bucket_of(image, block / CLUSTER_BLOCKS)) {
        struct point_copy *c = LIST_ENTRY(link, struct point_copy, bucket);
        if (c->first <= block && block < c->first + c->count)
            return c;
    }
    return NULL;
}

static enum point_state block_state(struct point_image *image, uint64_t block)
{
    uint64_t cluster = block / CLUSTER_BLOCKS;
    switch ((enum cluster_state)image->state[cluster]) {
    case CLUSTER_IN_PLACE:
        return POINT_IN_PLACE;
    case CLUSTER_ZERO:
        return POINT_ZERO;
    case CLUSTER_GONE:
        return POINT_GONE;
    case CLUSTER_KEPT:
        break;
    }
    if ((image->kept[cluster] & blocks_mask(block, 1)) == 0)
        return POINT_IN_PLACE;
    const struct point_copy *c = copy_find(image, block);
    return c == NULL ? POINT_SPILLED : c->is_read ? POINT_HELD : POINT_READING;
}

/* ---- the front ---- */

static struct point_image *of_front(struct block *b)
{
    return CONTAINER_OF(b, struct point_image, front);
}

static void front_finish(struct front_op *op, int result)
{
    struct point_image *image = op->image;
    struct block_request *request = op->request;
    list_remove(&op->link);
    free(op);
    request->result = result;
    block_complete(&image->front, request);
}

static void front_done(struct block_request *below, int result)
{
    front_finish(CONTAINER_OF(below, struct front_op, below), result);
}

static bool is_read_in_place(const struct point_image *image, uint64_t first, uint64_t last)
{
    LIST_FOREACH(link, &image->back_reading) {
        const struct back_op *op = LIST_ENTRY(link, struct back_op, link);
        if (op->first <= last && op->last >= first)
            return true;
    }
    return false;
}

/* Begin what has to be kept of the blocks that @op changes. True: all of it is, @op may go to the disk. */
static bool front_may_pass(struct front_op *op)
{
    struct point_image *image = op->image;
    bool begun = true;
    if (op->first >= image->blocks)
        return true;
    uint64_t last = MIN(op->last, image->blocks - 1);
    for (uint64_t c = op->first / CLUSTER_BLOCKS; begun && c <= last / CLUSTER_BLOCKS && image->why.code == 0; c++)
        begun = cluster_keep(image, c, op->first, last);
    bool may = image->why.code != 0 || (begun && !is_being_kept(image, op->first, last));
    return may && !is_read_in_place(image, op->first, last);
}

/* A DISCARD may do nothing, and does where the image would have to keep what it throws away. */
static bool front_passes_over(const struct front_op *op)
{
    const struct point_image *image = op->image;
    if (op->request->op != BLOCK_DISCARD || image->why.code != 0 || op->first >= image->blocks)
        return false;
    uint64_t last = MIN(op->last, image->blocks - 1);
    for (uint64_t c = op->first / CLUSTER_BLOCKS; c <= last / CLUSTER_BLOCKS; c++)
        if (image->state[c] == CLUSTER_IN_PLACE ||
            (image->state[c] == CLUSTER_KEPT && (mask_within(c, op->first, last) & ~image->kept[c]) != 0))
            return true;
    return is_being_kept(image, op->first, last);
}

static int front_pass(struct front_op *op)
{
    op->below = *op->request;
    op->below.done = front_done;
    return block_submit(op->image->options.disk, &op->below);
}

static int front_submit(struct block *b, struct block_request *request)
{
    struct point_image *image = of_front(b);
    struct front_op *op = NEW(struct front_op);
    op->image = image;
    op->request = request;
    list_init(&op->link);
    bool changes = request->op != BLOCK_READ && request->op != BLOCK_FLUSH;
    if (changes) {
        op->first = request->offset / POINT_BLOCK_BYTES;
        op->last = (request->offset + request->size - 1) / POINT_BLOCK_BYTES;
    }
    if (changes && front_passes_over(op)) {
        request->result = 0;
        list_append(&image->front_ended, &op->link);
        image_wake(image);
        return 0;
    }
    if (changes && !front_may_pass(op)) {
        list_append(&image->front_waiting, &op->link);
        held_write(image); /* it may be what this one waits for */
        return 0;
    }
    int code = front_pass(op);
    if (code < 0)
        free(op);
    held_write(image); /* the writer first: it is what waits */
    return code;
}

/* ---- the back ---- */

static struct point_image *of_back(struct block *b)
{
    return CONTAINER_OF(b, struct point_image, back);
}

static void back_finish(struct back_op *op)
{
    struct point_image *image = op->image;
    struct block_request *request = op->request;
    request->result = op->result;
    list_remove(&op->link);
    free(op);
    waiting_retry(image); /* writers wait for reads in place */
    block_complete(&image->back, request);
}

static void back_let_go(struct back_op *op, bool within_submit)
{
    if (--op->pending > 0)
        return;
    if (!within_submit) {
        back_finish(op);
        return;
    }
    list_remove(&op->link);
    list_append(&op->image->back_ended, &op->link);
    image_wake(op->image);
}

static void back_piece_done(struct block_request *below, int result)
{
    struct back_piece *p = CONTAINER_OF(below, struct back_piece, below);
    struct back_op *op = p->op;
    free(p);
    if (result < 0 && op->result == 0)
        op->result = result;
    back_let_go(op, false);
}

/* [@at, @stop) from @from, which holds it at its place. */
static void back_read_piece(struct back_op *op, struct block *from, uint64_t at, uint64_t stop)
{
    const struct block_request *r = op->request;
    struct back_piece *p = xcalloc(1, sizeof *p + r->iovec_count * sizeof(struct iovec));
    p->op = op;
    p->below = (struct block_request){
        .op = BLOCK_READ, .offset = at, .size = stop - at, .iovecs = p->iovecs, .done = back_piece_done};
    p->below.iovec_count = block_iovecs_slice(r->iovecs, r->iovec_count, at - r->offset, stop - at, p->iovecs);
    op->pending++;
    int code = block_submit(from, &p->below);
    if (code < 0) {
        op->pending--;
        op->result = op->result == 0 ? code : op->result;
        free(p);
    }
}

/* [@at, @stop) from memory; NULL: zeroes. */
static void back_copy_piece(struct back_op *op, uint64_t at, uint64_t stop, const uint8_t *from)
{
    const struct block_request *r = op->request;
    CLEANUP_FREE struct iovec *slice = xcalloc(r->iovec_count, sizeof *slice);
    unsigned count = block_iovecs_slice(r->iovecs, r->iovec_count, at - r->offset, stop - at, slice);
    for (unsigned i = 0; i < count; i++) {
        if (from == NULL) {
            memset(slice[i].iov_base, 0, slice[i].iov_len);
        } else {
            memcpy(slice[i].iov_base, from, slice[i].iov_len);
            from += slice[i].iov_len;
        }
    }
}

static void back_read_stretch(struct back_op *op, enum point_state state, uint64_t at, uint64_t stop)
{
    struct point_image *image = op->image;
    switch (state) {
    case POINT_IN_PLACE:
        back_read_piece(op, image->options.disk, at, stop);
        break;
    case POINT_SPILLED:
        back_read_piece(op, image->options.spill, at, stop);
        break;
    case POINT_HELD: { /* one block */
        const struct point_copy *c = copy_find(image, at / POINT_BLOCK_BYTES);
        back_copy_piece(op, at, stop, c->buffer + (at - c->first * POINT_BLOCK_BYTES));
        break;
    }
    case POINT_ZERO:
        back_copy_piece(op, at, stop, NULL);
        break;
    case POINT_READING:
    case POINT_GONE: /* the reader has said that it would not ask */
        op->result = op->result == 0 ? -EIO : op->result;
    }
}

static bool back_must_wait(const struct back_op *op)
{
    return op->image->why.code == 0 && is_being_kept(op->image, op->first, op->last);
}

/* The end of the blocks from @block on that are as it is: one where it is in memory. */
static uint64_t stretch_end(struct point_image *image, uint64_t block, uint64_t last)
{
    enum point_state state = block_state(image, block);
    uint64_t end = block + 1;
    while (end <= last && state != POINT_HELD && block_state(image, end) == state)
        end += image->state[end / CLUSTER_BLOCKS] == CLUSTER_KEPT ? 1 : CLUSTER_BLOCKS - end % CLUSTER_BLOCKS;
    return end;
}

static void back_begin(struct back_op *op)
{
    struct point_image *image = op->image;
    uint64_t end = op->request->offset + op->request->size;
    op->pending = 1;
    list_append(&image->back_reading, &op->link);
    op->result = image->why.code != 0 ? -EIO : 0;
    for (uint64_t at = op->request->offset, stop; at < end && op->result == 0; at = stop) {
        uint64_t block = at / POINT_BLOCK_BYTES;
        stop = MIN(end, stretch_end(image, block, op->last) * POINT_BLOCK_BYTES);
        back_read_stretch(op, block_state(image, block), at, stop);
    }
    back_let_go(op, true);
}

/* What memory and the spill hold of @cluster. What is being read or written finds it GONE. */
static void cluster_release(struct point_image *image, uint64_t cluster)
{
    unsigned spilled = image->kept[cluster];
    LIST_FOREACH_SAFE(link, bucket_of(image, cluster)) {
        struct point_copy *c = LIST_ENTRY(link, struct point_copy, bucket);
        if (c->first / CLUSTER_BLOCKS != cluster)
            continue;
        spilled &= (unsigned)~blocks_mask(c->first, c->count);
        if (c->is_read && c->run == NULL)
            copy_drop(c);
    }
    if (spilled == 0)
        return;
    image->kept[cluster] &= (uint16_t)~spilled;
    image->options.budget->bytes -= (uint64_t)__builtin_popcount(spilled) * POINT_BLOCK_BYTES;
    spill_release(image, cluster * CLUSTER_BLOCKS, CLUSTER_BLOCKS);
}

void point_image_forget(struct point_image *image, uint64_t offset, uint64_t size)
{
    uint64_t first = (offset + POINT_CLUSTER_BYTES - 1) / POINT_CLUSTER_BYTES, end = (offset + size) / POINT_CLUSTER_BYTES;
    if (offset + size >= image->back.size_bytes)
        end = image->clusters;
    for (uint64_t c = first; c < end; c++) {
        if (image->state[c] == CLUSTER_KEPT)
            cluster_release(image, c);
        image->counters.forgotten += image->state[c] != CLUSTER_GONE;
        image->state[c] = CLUSTER_GONE;
    }
}

static int back_submit(struct block *b, struct block_request *request)
{
    struct point_image *image = of_back(b);
    if (request->op == BLOCK_WRITE || request->op == BLOCK_WRITE_ZEROES)
        return -EROFS;
    struct back_op *op = NEW(struct back_op);
    op->image = image;
    op->request = request;
    list_init(&op->link);
    if (request->op == BLOCK_READ) {
        op->first = request->offset / POINT_BLOCK_BYTES;
        op->last = (request->offset + request->size - 1) / POINT_BLOCK_BYTES;
        if (back_must_wait(op))
            list_append(&image->back_waiting, &op->link);
        else
            back_begin(op);
        return 0;
    }
    if (request->op == BLOCK_DISCARD)
        point_image_forget(image, request->offset, request->size);
    list_append(&image->back_ended, &op->link);
    image_wake(image);
    return 0;
}

/* From cluster @c on, all in place and wholly before @hole_end on the disk: the first that may be otherwise. */
static uint64_t hole_skip(const struct point_image *image, uint64_t c, uint64_t hole_end)
{
    static const uint8_t in_place[64]; /* CLUSTER_IN_PLACE is 0 */
    uint64_t last = MIN(hole_end / POINT_CLUSTER_BYTES, image->clusters);
    while (c + sizeof in_place <= last && memcmp(image->state + c, in_place, sizeof in_place) == 0)
        c += sizeof in_place;
    return c;
}

/* A cluster that cannot be read any more counts as data: whoever asks for it shall hear so. */
static bool is_data_anyhow(enum cluster_state state)
{
    return state == CLUSTER_KEPT || state == CLUSTER_GONE;
}

static int back_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct point_image *image = of_back(b);
    uint64_t start = 0, end = 0; /* of the disk: no data from where was asked to `start`, data up to `end` */
    if (image->why.code != 0)
        return -EIO;
    for (uint64_t c = from / POINT_CLUSTER_BYTES; c < image->clusters; c++) {
        uint64_t at = MAX(from, c * POINT_CLUSTER_BYTES), stop = c * POINT_CLUSTER_BYTES + cluster_size(image, c);
        if (is_data_anyhow(image->state[c])) {
            for (; c < image->clusters && is_data_anyhow(image->state[c]); c++)
                stop = c * POINT_CLUSTER_BYTES + cluster_size(image, c);
            *ret_start = at;
            *ret_end = stop;
            return 1;
        }
        if (image->state[c] == CLUSTER_ZERO)
            continue;
        int code = at < end ? 1 : block_next_data(image->options.disk, at, &start, &end);
        if (code < 0)
            return code;
        if (code == 0)
            start = end = UINT64_MAX;
        if (start >= stop) {
            c = hole_skip(image, c + 1, start) - 1;
            continue;
        }
        *ret_start = MAX(at, start);
        for (; end > stop && c + 1 < image->clusters && image->state[c + 1] == CLUSTER_IN_PLACE; c++)
            stop += cluster_size(image, c + 1);
        *ret_end = MIN(end, stop);
        return 1;
    }
    return 0;
}

/* ---- both ---- */

/* From local lists, in order; those that must go on waiting come back. */
static void waiting_retry(struct point_image *image)
{
    struct list again;
    list_init(&again);
    list_take(&again, &image->back_waiting);
    while (!list_empty(&again)) {
        struct back_op *op = LIST_ENTRY(again.next, struct back_op, link);
        list_remove(&op->link);
        if (back_must_wait(op))
            list_append(&image->back_waiting, &op->link);
        else
            back_begin(op);
    }
    list_take(&again, &image->front_waiting);
    while (!list_empty(&again)) {
        struct front_op *op = LIST_ENTRY(again.next, struct front_op, link);
        list_remove(&op->link);
        if (!front_may_pass(op)) {
            list_append(&image->front_waiting, &op->link);
            continue;
        }
        int code = front_pass(op);
        if (code < 0)
            front_finish(op, code);
    }
    if (image->why.code != 0)
        held_drop(image);
    held_write(image);
}

void point_image_run(struct point_image *image)
{
    if (image->why.code != 0)
        waiting_retry(image);
    while (!list_empty(&image->front_ended))
        front_finish(LIST_ENTRY(image->front_ended.next, struct front_op, link), 0);
    while (!list_empty(&image->back_ended))
        back_finish(LIST_ENTRY(image->back_ended.next, struct back_op, link));
}

/* Each waits for the other's, and for copies that are being read or written. */
static void image_drain(struct point_image *image)
{
    do {
        point_image_run(image);
        if (image->options.disk != NULL)
            block_drain(image->options.disk);
        block_drain(image->options.spill);
    } while (image->front.in_flight > 0 || image->back.in_flight > 0 || image->reading_count > 0 || image->run_count > 0);
}

static void front_drain(struct block *b)
{
    image_drain(of_front(b));
}

static void back_drain(struct block *b)
{
    image_drain(of_back(b));
}

static void front_plug(struct block *b, bool plugged)
{
    struct block *disk = of_front(b)->options.disk;
    if (plugged)
        block_plug(disk);
    else
        block_unplug(disk);
}

static void image_close(struct block *b UNUSED)
{
}

static int front_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return block_next_data(of_front(b)->options.disk, from, ret_start, ret_end);
}

static const struct block_ops front_ops = {.submit = front_submit,
                                           .drain = front_drain,
                                           .plug = front_plug,
                                           .close = image_close,
                                           .next_data = front_next_data};
static const struct block_ops back_ops = {
    .submit = back_submit, .drain = back_drain, .close = image_close, .next_data = back_next_data};

struct block *point_image_front(struct point_image *image)
{
    return &image->front;
}

struct block *point_image_back(struct point_image *image)
{
    return &image->back;
}

void point_image_grown(struct point_image *image)
{
    image->front.size_bytes = image->options.disk->size_bytes;
}

bool point_image_is_lost(const struct point_image *image, struct error *ret_why)
{
    if (ret_why != NULL)
        *ret_why = image->why;
    return image->why.code != 0;
}

void point_image_lose(struct point_image *image, const char *why)
{
    struct error err = {0};
    error_set(&err, -ENODEV, ERROR_CONFLICT, "the backup was given up: %s", why);
    image_lost(image, &err);
    waiting_retry(image);
    image_drain(image);
    image->options.disk = NULL;
}

struct point_counters point_image_counters(const struct point_image *image)
{
    return image->counters;
}

int point_image_create(const struct point_image_options *options, struct point_image **ret_image, struct error *err)
{
    struct block *disk = options->disk;
    ASSERT(disk->in_flight == 0 && options->spill->size_bytes == disk->size_bytes);
    uint64_t clusters = (disk->size_bytes + POINT_CLUSTER_BYTES - 1) / POINT_CLUSTER_BYTES;
    uint8_t *state = calloc(clusters, sizeof *state); /* CLUSTER_IN_PLACE */
    uint16_t *kept = calloc(clusters, sizeof *kept);
    if (state == NULL || kept == NULL) {
        free(state);
        free(kept);
        return error_errno(err, -ENOMEM, "no memory for a backup of a disk of %llu bytes",
                           (unsigned long long)disk->size_bytes);
    }
    struct point_image *image = NEW(struct point_image);
    image->options = *options;
    uint64_t memory_bytes = options->memory_bytes == 0 ? (uint64_t)POINT_MEMORY_BYTES : options->memory_bytes;
    image->options.memory_bytes = MAX(memory_bytes, (uint64_t)POINT_CLUSTER_BYTES);
    image->state = state;
    image->kept = kept;
    image->clusters = clusters;
    image->blocks = (disk->size_bytes + POINT_BLOCK_BYTES - 1) / POINT_BLOCK_BYTES;
    image->front = *disk;
    image->front.ops = &front_ops;
    image->front.changes = NULL; /* the disk's own tells */
    image->back = (struct block){
        .ops = &back_ops, .size_bytes = disk->size_bytes, .block_bytes = disk->block_bytes, .can_discard = true};
    list_init(&image->reading);
    list_init(&image->held);
    list_init(&image->runs);
    for (unsigned i = 0; i < BUCKETS; i++)
        list_init(&image->buckets[i]);
    list_init(&image->front_waiting);
    list_init(&image->front_ended);
    list_init(&image->back_waiting);
    list_init(&image->back_reading);
    list_init(&image->back_ended);
    *ret_image = image;
    return 0;
}

void point_image_destroy(struct point_image *image)
{
    if (image == NULL)
        return;
    image_drain(image);
    held_drop(image);
    for (uint64_t c = 0; c < image->clusters; c++)
        if (image->state[c] == CLUSTER_KEPT)
            image->options.budget->bytes -= (uint64_t)__builtin_popcount(image->kept[c]) * POINT_BLOCK_BYTES;
    block_close(image->options.spill);
    free(image->state);
    free(image->kept);
    free(image);
}
