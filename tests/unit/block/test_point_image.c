/* Copy before write against a model: a writer at the front and a reader at the back at the same time, many requests at
 * once, carried out in random order on a simulated disk (power_pool.h). Whatever the writer does, the reader sees what was
 * there at the beginning, and the writer what it would see without the image.
 *
 *     test_point_image --seeds N [--seed FIRST]      the long version
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "block/point_image.h"
#include "tests/unit/block/power_pool.h"

enum {
    SECTOR = 512,
    CLUSTER_SECTORS = POINT_CLUSTER_BYTES / SECTOR,
    SECTORS = 11 * CLUSTER_SECTORS + 40, /* the last cluster is not whole */
    AT_ONCE_MAX = 8,
    STEPS = 400,
};

struct request {
    struct block_request block;
    struct iovec iovecs[3];
    uint8_t *memory;
    struct trial *trial;
    bool busy, at_back;
};

struct trial {
    struct power_pool *pool;
    struct block *disk;
    struct point_image *image;
    struct point_budget budget;
    uint64_t random, seed;
    uint8_t *then, *now;       /* what the image and the disk hold */
    bool unsure[SECTORS];      /* discarded through the front: content undefined */
    bool given_back[SECTORS];  /* by the reader */
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
    bool lost = point_image_is_lost(t->image, NULL), forgotten = false;
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
    if (result < 0)
        broken(t, "the writer got an error", first);
    for (uint64_t i = 0; i < count; i++) {
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
    else if (block->op != BLOCK_FLUSH)
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
    *r = (struct request){.trial = t, .busy = true, .at_back = at_back};
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

static void disk_fill(struct trial *t)
{
    for (uint64_t c = 0; c * CLUSTER_SECTORS < SECTORS; c++) {
        uint64_t first = c * CLUSTER_SECTORS, count = MIN((uint64_t)CLUSTER_SECTORS, SECTORS - first);
        if (chance(t, 3) == 0)
            continue; /* a hole */
        for (uint64_t i = 0; i < count * SECTOR; i++)
            t->then[first * SECTOR + i] = (uint8_t)(1 + chance(t, 255));
        assert_int_equal(block_now(t->disk, BLOCK_WRITE, first * SECTOR, t->then + first * SECTOR, count * SECTOR), 0);
    }
    memcpy(t->now, t->then, SECTORS * SECTOR);
}

static struct block *file_block(struct trial *t, const char *name)
{
    struct power_file *f = power_add(t->pool, name);
    change_add(f, POWER_SIZE, 0, NULL, (uint64_t)SECTORS * SECTOR);
    return block_of_file(t->pool, f, false);
}

static void trial_begin(struct trial *t, uint64_t seed)
{
    *t = (struct trial){.seed = seed, .random = seed * 0x9e3779b97f4a7c15ull + 1};
    t->pool = power_pool_create(seed);
    t->then = xcalloc(SECTORS, SECTOR);
    t->now = xcalloc(SECTORS, SECTOR);
    t->disk = file_block(t, "disk");
    disk_fill(t);
    t->budget.bytes_max = chance(t, 4) == 0 ? chance(t, 8) * (uint64_t)POINT_CLUSTER_BYTES : UINT64_MAX;
    struct point_image_options options = {.disk = t->disk,
                                          .spill = file_block(t, "spill"),
                                          .budget = &t->budget,
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
    block_close(t->disk);
    power_pool_destroy(t->pool);
    free(t->then);
    free(t->now);
}

static void trial_run(uint64_t seed)
{
    struct trial *t = NEW(struct trial);
    trial_begin(t, seed);
    for (unsigned i = 0; i < STEPS; i++) {
        if (chance(t, 2) == 0)
            request_begin(t);
        else if (t->wakes > 0 && chance(t, 2) == 0) {
            t->wakes = 0;
            point_image_run(t->image);
        } else {
            (void)power_step(t->pool);
        }
        if (chance(t, 40) == 0)
            holes_check(t);
    }
    trial_end(t);
    free(t);
}

static uint64_t seeds = 150, seed_first = 1;

static void random_trials(void **state UNUSED)
{
    for (uint64_t i = 0; i < seeds; i++)
        trial_run(seed_first + i);
}

static void unplugged(void **state UNUSED)
{
    struct trial *t = NEW(struct trial);
    uint8_t sector[SECTOR];
    struct error why;
    trial_begin(t, 7);
    point_image_lose(t->image, "the disk was unplugged");
    assert_true(point_image_is_lost(t->image, &why));
    assert_non_null(strstr(why.text, "unplugged"));
    assert_int_equal(t->failures, 1);
    assert_int_equal(block_now(point_image_back(t->image), BLOCK_READ, 0, sector, SECTOR), -EIO);
    assert_true(block_next_data(point_image_back(t->image), 0, &(uint64_t){0}, &(uint64_t){0}) < 0);
    point_image_destroy(t->image);
    block_close(t->disk);
    power_pool_destroy(t->pool);
    free(t->then);
    free(t->now);
    free(t);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_trials), cmocka_unit_test(unplugged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
