/* Copy before write against a model: a writer at the front and a reader at the back at the same time, many requests at
 * once, carried out in random order on a simulated disk (power_pool.h). Whatever the writer does, the reader sees what was
 * there at the beginning, and the writer what it would see without the image. In every third trial the power goes at some
 * call: what the writer had flushed is on the disk then. Every second disk is one of layers, with snapshots and merges meanwhile.
 *
 *     test_point_image --seeds N [--seed FIRST]      the long version
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "block/layer_disk.h"
#include "block/point_image.h"
#include "tests/unit/block/power_pool.h"

enum {
    SECTOR = 512,
    CLUSTER_SECTORS = POINT_CLUSTER_BYTES / SECTOR,
    BLOCK_SECTORS = POINT_BLOCK_BYTES / SECTOR,
    SECTORS = 11 * CLUSTER_SECTORS + 43, /* the last cluster is not whole, nor is its last block */
    AT_ONCE_MAX = 8,
    STEPS = 400,
};

struct request {
    struct block_request block;
    struct iovec iovecs[3];
    uint8_t *memory;
    struct trial *trial;
    bool busy, at_back;
    unsigned begun; /* t->clock */
};

struct trial {
    struct power_pool *pool;
    struct block *disk;
    struct layer_disk *layered; /* NULL: the disk is a file */
    unsigned snapshots, dropped, chain_wakes;
    bool merging;
    struct point_image *image;
    struct point_budget budget;
    uint64_t random, seed;
    uint8_t *then, *now;       /* what the image and the disk hold */
    bool unsure[SECTORS];      /* discarded through the front: content undefined */
    bool given_back[SECTORS];  /* by the reader */
    unsigned clock;            /* events of the front so far */
    unsigned begun[SECTORS], ended[SECTORS]; /* the last change of each; ended with success */
    unsigned flushed; /* what had ended then is on the disk */
    struct request requests[AT_ONCE_MAX];
    unsigned wakes, failures, reads_checked;
};

static uint32_t chance(struct trial *t, uint32_t below)
{
    t->random ^= t->random << 13, t->random ^= t->random >> 7, t->random ^= t->random << 17;
    return (uint32_t)((t->random >> 20) % below);
}

static _Noreturn void broken(const struct trial *t, const char *what, uint64_t sector)
{
    fail_msg("seed %llu: %s at sector %llu", (unsigned long long)t->seed, what, (unsigned long long)sector);
    abort();
}

static void on_wake(void *arg)
{
    ((struct trial *)arg)->wakes++;
}

static void on_chain_wake(void *arg)
{
    ((struct trial *)arg)->chain_wakes++;
}

static void on_failed(void *arg, const struct error *why)
{
    struct trial *t = arg;
    assert_true(why->code < 0 && why->text[0] != '\0');
    t->failures++;
}

/* ---- requests ---- */

static void back_check(struct trial *t, const struct request *r, int result)
{
    uint64_t first = r->block.offset / SECTOR, count = r->block.size / SECTOR;
    bool lost = point_image_is_lost(t->image, NULL) || t->pool->dead, forgotten = false;
    if (r->block.op != BLOCK_READ)
        return;
    for (uint64_t i = first; i < first + count; i++)
        forgotten = forgotten || t->given_back[i];
    if (result < 0 && (lost || forgotten))
        return;
    if (result < 0)
        broken(t, "the image cannot be read", first);
    for (uint64_t i = 0; i < count && !lost && !forgotten; i++)
        if (memcmp(r->memory + i * SECTOR, t->then + (first + i) * SECTOR, SECTOR) != 0)
            broken(t, "the image has changed", first + i);
    t->reads_checked++;
}

static void front_check(struct trial *t, const struct request *r, int result)
{
    uint64_t first = r->block.offset / SECTOR, count = r->block.size / SECTOR;
    if (result < 0 && !t->pool->dead)
        broken(t, "the writer got an error", first);
    if (result == 0 && r->block.op == BLOCK_FLUSH)
        t->flushed = MAX(t->flushed, r->begun);
    t->clock++;
    for (uint64_t i = 0; i < count && result == 0; i++) {
        if (r->block.op != BLOCK_READ)
            t->ended[first + i] = t->clock;
        uint8_t *now = t->now + (first + i) * SECTOR;
        if (r->block.op == BLOCK_WRITE)
            memcpy(now, r->memory + i * SECTOR, SECTOR);
        if (r->block.op == BLOCK_WRITE_ZEROES)
            memset(now, 0, SECTOR);
        if (r->block.op == BLOCK_WRITE || r->block.op == BLOCK_WRITE_ZEROES)
            t->unsure[first + i] = false;
        if (r->block.op == BLOCK_DISCARD)
            t->unsure[first + i] = true;
        if (r->block.op == BLOCK_READ && !t->unsure[first + i] && memcmp(r->memory + i * SECTOR, now, SECTOR) != 0)
            broken(t, "the writer reads something else than it wrote", first + i);
    }
}

static void on_done(struct block_request *block, int result)
{
    struct request *r = CONTAINER_OF(block, struct request, block);
    struct trial *t = r->trial;
    if (r->at_back)
        back_check(t, r, result);
    else
        front_check(t, r, result);
    free(r->memory);
    r->busy = false;
}

static bool overlaps(const struct trial *t, bool at_back, uint64_t offset, uint64_t size)
{
    for (unsigned i = 0; i < AT_ONCE_MAX; i++) {
        const struct block_request *b = &t->requests[i].block;
        if (t->requests[i].busy && t->requests[i].at_back == at_back && b->offset < offset + size &&
            offset < b->offset + b->size)
            return true;
    }
    return false;
}

static void iovecs_cut(struct trial *t, struct request *r)
{
    uint64_t sectors = r->block.size / SECTOR, first = chance(t, (uint32_t)sectors + 1) * SECTOR;
    unsigned n = 0;
    if (first > 0)
        r->iovecs[n++] = (struct iovec){r->memory, first};
    if (first < r->block.size)
        r->iovecs[n++] = (struct iovec){r->memory + first, r->block.size - first};
    r->block.iovecs = r->iovecs;
    r->block.iovec_count = n;
}

static void request_begin(struct trial *t)
{
    static const enum block_op front_ops[] = {BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_READ,
                                              BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES};
    struct request *r = NULL;
    for (unsigned i = 0; i < AT_ONCE_MAX; i++)
        r = t->requests[i].busy ? r : &t->requests[i];
    if (r == NULL)
        return;
    bool at_back = chance(t, 3) == 0;
    uint64_t first = chance(t, SECTORS), most = chance(t, 3) == 0 ? 3 * CLUSTER_SECTORS : 16;
    uint64_t count = 1 + chance(t, (uint32_t)MIN(most, SECTORS - first));
    enum block_op op = at_back ? (chance(t, 6) == 0 ? BLOCK_DISCARD : BLOCK_READ) : front_ops[chance(t, ARRAY_SIZE(front_ops))];
    if (overlaps(t, at_back, first * SECTOR, count * SECTOR))
        return; /* what two at once do to the same place is not defined */
    count = op == BLOCK_FLUSH ? 0 : count;
    *r = (struct request){.trial = t, .busy = true, .at_back = at_back, .begun = ++t->clock};
    for (uint64_t i = 0; !at_back && op != BLOCK_READ && i < count; i++)
        t->begun[first + i] = t->clock;
    r->block = (struct block_request){.op = op, .offset = first * SECTOR, .size = count * SECTOR, .done = on_done};
    if (op == BLOCK_READ || op == BLOCK_WRITE) {
        r->memory = xcalloc(count, SECTOR);
        memset(r->memory, 1 + (int)chance(t, 255), op == BLOCK_WRITE ? count * SECTOR : 0);
        iovecs_cut(t, r);
    }
    for (uint64_t i = 0; at_back && op == BLOCK_DISCARD && i < count; i++)
        t->given_back[first + i] = true;
    struct block *b = at_back ? point_image_back(t->image) : point_image_front(t->image);
    assert_int_equal(block_submit(b, &r->block), 0);
}

/* ---- trials ---- */

/* Drains the disk. */
static void snapshot_make(struct trial *t)
{
    struct error err;
    char name[16];
    snprintf(name, sizeof name, "s%u", t->snapshots);
    if (t->image != NULL)
        block_drain(point_image_front(t->image)); /* making files takes steps, and none may begin something */
    if (layer_disk_snapshot(t->layered, name, &err) < 0 && !t->pool->dead)
        fail_msg("seed %llu: %s", (unsigned long long)t->seed, err.text);
    t->snapshots += !t->pool->dead;
}

static void on_merged(void *arg, int result)
{
    struct trial *t = arg;
    assert_true(result == 0 || result == -ECANCELED || t->pool->dead);
    t->merging = false;
}

/* The oldest snapshot goes, by a merge. */
static void snapshot_drop(struct trial *t)
{
    struct error err;
    char name[16];
    snprintf(name, sizeof name, "s%u", t->dropped);
    if (t->merging || t->dropped == t->snapshots)
        return;
    if (layer_disk_drop(t->layered, name, &err) < 0 && !t->pool->dead)
        fail_msg("seed %llu: %s", (unsigned long long)t->seed, err.text);
    t->dropped++;
    t->merging = !t->pool->dead && layer_disk_tidy(t->layered, on_merged, t, &err) == 1;
}

static void disk_fill(struct trial *t)
{
    for (uint64_t c = 0; c * CLUSTER_SECTORS < SECTORS; c++) {
        uint64_t first = c * CLUSTER_SECTORS, count = MIN((uint64_t)CLUSTER_SECTORS, SECTORS - first);
        if (chance(t, 3) == 0)
            continue; /* a hole */
        bool whole = chance(t, 3) != 0;
        if (t->layered != NULL && chance(t, 3) == 0)
            snapshot_make(t);
        for (uint64_t at = first, n; at < first + count; at += n) {
            n = MIN((uint64_t)BLOCK_SECTORS, first + count - at);
            if (!whole && chance(t, 2) == 0)
                continue;
            for (uint64_t i = 0; i < n * SECTOR; i++)
                t->then[at * SECTOR + i] = (uint8_t)(1 + chance(t, 255));
            assert_int_equal(block_now(t->disk, BLOCK_WRITE, at * SECTOR, t->then + at * SECTOR, n * SECTOR), 0);
        }
    }
    memcpy(t->now, t->then, SECTORS * SECTOR);
    assert_int_equal(block_now(t->disk, BLOCK_FLUSH, 0, NULL, 0), 0);
    names_sync(t->pool);
}

static struct block *file_block(struct trial *t, const char *name)
{
    struct power_file *f = power_add(t->pool, name);
    change_add(f, POWER_SIZE, 0, NULL, (uint64_t)SECTORS * SECTOR);
    return block_of_file(t->pool, f, false);
}

static void layers_open(struct trial *t)
{
    struct error err;
    if (layer_disk_open(&t->pool->pool, "disk", false, 0, &t->layered, &err) < 0)
        fail_msg("seed %llu: %s", (unsigned long long)t->seed, err.text);
    t->disk = &t->layered->chain->block;
    t->layered->chain->wake = on_chain_wake;
    t->layered->chain->wake_arg = t;
}

static void trial_begin(struct trial *t, uint64_t seed, bool layered)
{
    static const uint64_t memory[] = {1, POINT_CLUSTER_BYTES + 3 * POINT_BLOCK_BYTES, 5 * POINT_CLUSTER_BYTES, 0};
    *t = (struct trial){.seed = seed, .random = seed * 0x9e3779b97f4a7c15ull + 1};
    t->pool = power_pool_create(seed);
    t->pool->all_at_hand = chance(t, 3) == 0;
    t->then = xcalloc(SECTORS, SECTOR);
    t->now = xcalloc(SECTORS, SECTOR);
    if (layered) {
        assert_int_equal(layer_disk_create(&t->pool->pool, "disk", (uint64_t)SECTORS * SECTOR, NULL, NULL), 0);
        layers_open(t);
    } else {
        t->disk = file_block(t, "disk");
    }
    disk_fill(t);
    t->budget.bytes_max = chance(t, 4) == 0 ? chance(t, 60) * (uint64_t)POINT_BLOCK_BYTES : UINT64_MAX;
    struct point_image_options options = {.disk = t->disk,
                                          .spill = file_block(t, "spill"),
                                          .budget = &t->budget,
                                          .memory_bytes = memory[chance(t, ARRAY_SIZE(memory))],
                                          .wake = on_wake,
                                          .failed = on_failed,
                                          .arg = t};
    assert_int_equal(point_image_create(&options, &t->image, NULL), 0);
}

/* Where the image says that nothing is, nothing was. */
static void holes_check(struct trial *t)
{
    struct block *back = point_image_back(t->image);
    uint64_t start, end = 0;
    for (uint64_t at = 0; at < back->size_bytes && !point_image_is_lost(t->image, NULL); at = end) {
        int code = block_next_data(back, at, &start, &end);
        assert_true(code >= 0);
        start = code == 0 ? back->size_bytes : start;
        end = code == 0 ? back->size_bytes : end;
        assert_true(start >= at && end >= start && (code == 0 || end > start) && end <= back->size_bytes);
        for (uint64_t i = at / SECTOR * SECTOR; i < start; i++)
            if (t->then[i] != 0)
                broken(t, "a hole that was none", i / SECTOR);
    }
}

static void disk_close(struct trial *t)
{
    if (t->layered != NULL)
        layer_disk_close(t->layered);
    else
        block_close(t->disk);
}

static void trial_free(struct trial *t)
{
    disk_close(t);
    power_pool_destroy(t->pool);
    free(t->then);
    free(t->now);
    free(t);
}

/* The power has gone, or goes now. */
static void trial_cut(struct trial *t)
{
    uint8_t found[SECTOR];
    t->pool->dead = true;
    point_image_destroy(t->image);
    disk_close(t);
    if (t->budget.bytes != 0)
        broken(t, "the budget does not come out even", t->budget.bytes);
    power_cut(t->pool);
    if (t->layered != NULL)
        layers_open(t);
    else
        t->disk = block_of_file(t->pool, power_find(t->pool, "disk"), false);
    for (uint64_t i = 0; i < SECTORS; i++) {
        assert_int_equal(block_now(t->disk, BLOCK_READ, i * SECTOR, found, SECTOR), 0);
        bool lasts = t->begun[i] <= t->ended[i] && t->ended[i] <= t->flushed;
        if (lasts && !t->unsure[i] && memcmp(found, t->now + i * SECTOR, SECTOR) != 0)
            broken(t, "what was flushed is not there after a power cut", i);
    }
    trial_free(t);
}

static void trial_end(struct trial *t)
{
    block_drain(point_image_front(t->image));
    block_drain(point_image_back(t->image));
    bool lost = point_image_is_lost(t->image, NULL);
    assert_int_equal(t->failures, lost ? 1 : 0);
    if (lost && t->budget.bytes_max == UINT64_MAX)
        broken(t, "the image was lost", 0);
    holes_check(t);
    uint8_t *found = xcalloc(CLUSTER_SECTORS, SECTOR);
    for (uint64_t i = 0; i < SECTORS; i++) {
        int code = block_now(point_image_back(t->image), BLOCK_READ, i * SECTOR, found, SECTOR);
        if (code < 0 && !lost && !t->given_back[i])
            broken(t, "the image cannot be read at the end", i);
        if (code == 0 && !t->given_back[i] && memcmp(found, t->then + i * SECTOR, SECTOR) != 0)
            broken(t, "the image has changed at the end", i);
    }
    point_image_destroy(t->image);
    if (t->budget.bytes != 0)
        broken(t, "the budget does not come out even", t->budget.bytes);
    for (uint64_t i = 0; i < SECTORS; i++) {
        assert_int_equal(block_now(t->disk, BLOCK_READ, i * SECTOR, found, SECTOR), 0);
        if (!t->unsure[i] && memcmp(found, t->now + i * SECTOR, SECTOR) != 0)
            broken(t, "the disk does not hold what was written", i);
    }
    free(found);
    trial_free(t);
}

static void trial_run(uint64_t seed)
{
    struct trial *t = NEW(struct trial);
    trial_begin(t, seed, seed % 2 != 0);
    bool is_cut = chance(t, 3) == 0;
    t->pool->steps_max = is_cut ? t->pool->steps + 1 + chance(t, STEPS / 2) : 0;
    for (unsigned i = 0; i < STEPS && !t->pool->dead; i++) {
        if (chance(t, 2) == 0)
            request_begin(t);
        else if (t->wakes > 0 && chance(t, 2) == 0) {
            t->wakes = 0;
            point_image_run(t->image);
        } else if (t->chain_wakes > 0 && chance(t, 2) == 0) {
            t->chain_wakes = 0;
            layer_chain_run(t->layered->chain);
        } else if (t->layered != NULL && chance(t, 60) == 0) {
            if (chance(t, 2) == 0)
                snapshot_make(t);
            else
                snapshot_drop(t);
        } else {
            (void)power_step(t->pool);
        }
        if (chance(t, 40) == 0)
            holes_check(t);
    }
    if (is_cut)
        trial_cut(t);
    else
        trial_end(t);
}

static uint64_t seeds = 150, seed_first = 1;

static void random_trials(void **state UNUSED)
{
    for (uint64_t i = 0; i < seeds; i++)
        trial_run(seed_first + i);
}

/* ---- one thing at a time ---- */

static void front_now(struct trial *t, enum block_op op, uint64_t offset, uint64_t size)
{
    CLEANUP_FREE uint8_t *memory = xcalloc(1, size);
    memset(memory, 0xa5, size);
    assert_int_equal(block_now(point_image_front(t->image), op, offset, op == BLOCK_WRITE ? memory : NULL, size), 0);
    if (op != BLOCK_DISCARD)
        memset(t->now + offset, op == BLOCK_WRITE ? 0xa5 : 0, size);
}

static void back_expect(struct trial *t, uint64_t offset, uint64_t size)
{
    CLEANUP_FREE uint8_t *memory = xcalloc(1, size);
    assert_int_equal(block_now(point_image_back(t->image), BLOCK_READ, offset, memory, size), 0);
    assert_memory_equal(memory, t->then + offset, size);
}

/* All has data; the disk ends within a block. */
static struct trial *whole_disk(uint64_t memory_bytes)
{
    struct trial *t = NEW(struct trial);
    trial_begin(t, 7, false);
    point_image_destroy(t->image);
    for (uint64_t i = 0; i < SECTORS * SECTOR; i++)
        t->now[i] = t->then[i] = (uint8_t)(1 + chance(t, 255));
    for (uint64_t i = 0; i < SECTORS; i++)
        assert_int_equal(block_now(t->disk, BLOCK_WRITE, i * SECTOR, t->then + i * SECTOR, SECTOR), 0);
    t->budget = (struct point_budget){.bytes_max = UINT64_MAX};
    struct point_image_options options = {
        .disk = t->disk, .spill = file_block(t, "spill 2"), .budget = &t->budget, .wake = on_wake, .arg = t};
    options.memory_bytes = memory_bytes;
    assert_int_equal(point_image_create(&options, &t->image, NULL), 0);
    return t;
}

/* What is overwritten is kept, no more and only once; the rest of the cluster is read where it is. */
static void only_what_is_overwritten(void **state UNUSED)
{
    struct trial *t = whole_disk(0);
    const uint64_t block = POINT_BLOCK_BYTES, cluster = POINT_CLUSTER_BYTES;
    front_now(t, BLOCK_WRITE, cluster + 3 * block, block);
    assert_int_equal(point_image_counters(t->image).copied_bytes, block);
    assert_int_equal(t->budget.bytes, block);
    front_now(t, BLOCK_WRITE, cluster + 3 * block, block); /* again */
    assert_int_equal(t->budget.bytes, block);
    front_now(t, BLOCK_WRITE, cluster + 7 * block - SECTOR, 2 * SECTOR); /* the ends of two */
    assert_int_equal(t->budget.bytes, 3 * block);
    front_now(t, BLOCK_WRITE_ZEROES, cluster + 2 * block, 6 * block); /* of which there are three */
    assert_int_equal(t->budget.bytes, 6 * block);
    front_now(t, BLOCK_WRITE, 3 * cluster - block, 2 * cluster + 2 * block);
    assert_int_equal(t->budget.bytes, 8 * block + 2 * cluster);
    front_now(t, BLOCK_WRITE, (SECTORS - 1) * SECTOR, SECTOR); /* less than a block is there */
    assert_int_equal(t->budget.bytes, 9 * block + 2 * cluster);
    back_expect(t, 0, SECTORS * SECTOR);
    back_expect(t, cluster + 3 * block + SECTOR, 3 * SECTOR);
    point_image_forget(t->image, cluster, cluster);
    assert_int_equal(t->budget.bytes, 3 * block + 2 * cluster);
    point_image_forget(t->image, 2 * cluster, SECTORS * SECTOR - 2 * cluster);
    assert_int_equal(t->budget.bytes, 0);
    front_now(t, BLOCK_WRITE, cluster, 3 * cluster);
    assert_int_equal(t->budget.bytes, 0);
    memset(t->given_back + CLUSTER_SECTORS, true, SECTORS - CLUSTER_SECTORS);
    trial_end(t);
}

/* What was not at hand is counted. */
static void reads_counted(void **state UNUSED)
{
    struct trial *t = whole_disk(0);
    t->pool->all_at_hand = true;
    front_now(t, BLOCK_WRITE, 5 * POINT_BLOCK_BYTES, POINT_BLOCK_BYTES);
    assert_int_equal(point_image_counters(t->image).read_bytes, 0);
    t->pool->all_at_hand = false;
    t->pool->steps = 0; /* nothing that begins at an even page is */
    front_now(t, BLOCK_WRITE, 20 * POINT_BLOCK_BYTES, 2 * POINT_BLOCK_BYTES);
    assert_int_equal(point_image_counters(t->image).read_bytes, 2 * POINT_BLOCK_BYTES);
    assert_int_equal(point_image_counters(t->image).copied_bytes, 3 * POINT_BLOCK_BYTES);
    back_expect(t, 0, SECTORS * SECTOR);
    trial_end(t);
}

/* Who writes in sequence waits once for each cluster. */
static void in_sequence(void **state UNUSED)
{
    struct trial *t = whole_disk(0);
    const uint64_t block = POINT_BLOCK_BYTES, cluster = POINT_CLUSTER_BYTES;
    front_now(t, BLOCK_WRITE, 2 * block, block);
    front_now(t, BLOCK_WRITE, 10 * block, block);
    assert_int_equal(t->budget.bytes, 2 * block);
    front_now(t, BLOCK_WRITE, 3 * block, block); /* up to what is kept */
    assert_int_equal(t->budget.bytes, 9 * block);
    front_now(t, BLOCK_WRITE, 11 * block, 2 * block);
    assert_int_equal(t->budget.bytes, 14 * block);
    front_now(t, BLOCK_WRITE, cluster, 512);
    assert_int_equal(t->budget.bytes, 14 * block + cluster);
    front_now(t, BLOCK_WRITE, 5 * cluster - block, 2 * block); /* one request is no sequence */
    assert_int_equal(t->budget.bytes, 16 * block + cluster);
    front_now(t, BLOCK_WRITE, (SECTORS - 24) * SECTOR / block * block, block);
    front_now(t, BLOCK_WRITE, (SECTORS - 24) * SECTOR / block * block + block, block);
    assert_int_equal(t->budget.bytes, 20 * block + cluster); /* to the end of the disk */
    back_expect(t, 0, SECTORS * SECTOR);
    trial_end(t);
}

static unsigned writes_of(struct trial *t, const char *name)
{
    unsigned count = 0;
    LIST_FOREACH(link, &power_find(t->pool, name)->changes)
        count += LIST_ENTRY(link, struct power_change, link)->kind == POWER_WRITE;
    return count;
}

/* A request of more than memory takes goes on when the spill has some of it, though nothing else happens; and where that fails,
 * too, and the image is lost. */
static void more_than_memory(void **state UNUSED)
{
    for (unsigned refuses = 0; refuses < 2; refuses++) {
        struct trial *t = whole_disk(1);
        t->pool->all_at_hand = true;
        power_find(t->pool, "spill 2")->refuses = refuses;
        front_now(t, BLOCK_WRITE, POINT_BLOCK_BYTES, 4 * POINT_CLUSTER_BYTES);
        assert_int_equal(point_image_is_lost(t->image, NULL), refuses);
        if (refuses) {
            point_image_destroy(t->image);
            trial_free(t);
            continue;
        }
        assert_true(point_image_counters(t->image).waited > 0);
        back_expect(t, 0, SECTORS * SECTOR);
        trial_end(t);
    }
}

static void front_begin(struct trial *t, struct request *r, uint64_t block)
{
    *r = (struct request){.trial = t, .busy = true, .memory = xcalloc(1, POINT_BLOCK_BYTES)};
    r->iovecs[0] = (struct iovec){r->memory, POINT_BLOCK_BYTES};
    r->block = (struct block_request){.op = BLOCK_WRITE,
                                      .offset = block * POINT_BLOCK_BYTES,
                                      .size = POINT_BLOCK_BYTES,
                                      .iovecs = r->iovecs,
                                      .iovec_count = 1,
                                      .done = on_done};
    assert_int_equal(block_submit(point_image_front(t->image), &r->block), 0);
}

/* Few writes to the spill at a time; what comes meanwhile and lies side by side is one; what is given back meanwhile never goes
 * there; and it fails in the midst of them. */
static void few_at_a_time(void **state UNUSED)
{
    enum { SCATTERED = 40, SIDE_BY_SIDE = 10, LAST = SCATTERED + SIDE_BY_SIDE, AT_ONCE = 8 };
    for (unsigned refuses = 0; refuses < 2; refuses++) {
        struct trial *t = whole_disk(0);
        struct request *requests = xcalloc(LAST + 1, sizeof *requests);
        t->pool->all_at_hand = true;
        for (unsigned i = 0; i < SCATTERED; i++)
            front_begin(t, &requests[i], 2 + 2 * i);
        for (unsigned i = 0; i < SIDE_BY_SIDE; i++)
            front_begin(t, &requests[SCATTERED + i], 103 + i);
        assert_int_equal(t->pool->queued, LAST + AT_ONCE);
        uint64_t before = t->budget.bytes;
        front_begin(t, &requests[LAST], 8 * 16 + 3);
        point_image_forget(t->image, 8 * POINT_CLUSTER_BYTES, POINT_CLUSTER_BYTES);
        memset(t->given_back + 8 * CLUSTER_SECTORS, true, CLUSTER_SECTORS);
        assert_int_equal(t->budget.bytes, before);
        power_find(t->pool, "spill 2")->refuses = refuses;
        block_drain(point_image_front(t->image));
        assert_int_equal(point_image_is_lost(t->image, NULL), refuses);
        free(requests);
        if (refuses) {
            assert_int_equal(writes_of(t, "spill 2"), AT_ONCE);
            point_image_destroy(t->image);
            assert_int_equal(t->budget.bytes, 0);
            trial_free(t);
            continue;
        }
        assert_int_equal(writes_of(t, "spill 2"), SCATTERED + 1);
        back_expect(t, 0, 8 * POINT_CLUSTER_BYTES);
        trial_end(t);
    }
}

/* A discard of what is kept is carried out, beside it not; and what is kept stays. */
static void discards(void **state UNUSED)
{
    struct trial *t = whole_disk(0);
    uint64_t start, end;
    front_now(t, BLOCK_WRITE, 4 * POINT_BLOCK_BYTES, POINT_BLOCK_BYTES);
    front_now(t, BLOCK_DISCARD, 4 * POINT_BLOCK_BYTES, 2 * POINT_BLOCK_BYTES);
    assert_int_equal(t->budget.bytes, POINT_BLOCK_BYTES);
    assert_int_equal(block_next_data(t->disk, 4 * POINT_BLOCK_BYTES, &start, &end), 1);
    assert_int_equal(start, 4 * POINT_BLOCK_BYTES);
    for (unsigned i = 0; i < 64 && start == 4 * POINT_BLOCK_BYTES; i++) { /* a disk need not */
        front_now(t, BLOCK_DISCARD, 4 * POINT_BLOCK_BYTES, POINT_BLOCK_BYTES);
        assert_int_equal(block_next_data(t->disk, 4 * POINT_BLOCK_BYTES, &start, &end), 1);
    }
    assert_int_equal(start, 5 * POINT_BLOCK_BYTES);
    memset(t->unsure + 4 * BLOCK_SECTORS, true, BLOCK_SECTORS);
    back_expect(t, 0, POINT_CLUSTER_BYTES);
    trial_end(t);
}

static void unplugged(void **state UNUSED)
{
    struct trial *t = NEW(struct trial);
    uint8_t sector[SECTOR];
    struct error why;
    trial_begin(t, 7, false);
    point_image_lose(t->image, "the disk was unplugged");
    assert_true(point_image_is_lost(t->image, &why));
    assert_non_null(strstr(why.text, "unplugged"));
    assert_int_equal(t->failures, 1);
    assert_int_equal(block_now(point_image_back(t->image), BLOCK_READ, 0, sector, SECTOR), -EIO);
    assert_true(block_next_data(point_image_back(t->image), 0, &(uint64_t){0}, &(uint64_t){0}) < 0);
    point_image_destroy(t->image);
    trial_free(t);
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seeds") == 0)
            seeds = strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--seed") == 0)
            seed_first = strtoull(argv[i + 1], NULL, 10);
    }
    print_message("seeds %llu to %llu\n", (unsigned long long)seed_first, (unsigned long long)(seed_first + seeds - 1));
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_trials), cmocka_unit_test(only_what_is_overwritten),
                                       cmocka_unit_test(reads_counted), cmocka_unit_test(in_sequence),
                                       cmocka_unit_test(few_at_a_time), cmocka_unit_test(more_than_memory),
                                       cmocka_unit_test(discards), cmocka_unit_test(unplugged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
