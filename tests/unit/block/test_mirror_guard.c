/* A guarded mirror under a device that writes, discards and flushes what it likes, between two disks that end their requests in any order
 * and keep after a power cut only what was flushed and some of the rest. The way to the target is cut at a random moment, the source's
 * host dies at another: whenever the target may be taken for the disk, every byte that the device was told is flushed is there, and none
 * that it never wrote. Random; the seed is printed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "block/block_mirror.h"
#include "tests/unit/unit_seed.h"

enum { CLUSTERS = 6, BYTES = CLUSTERS * MIRROR_CLUSTER_BYTES - 512, SECTORS = BYTES / 512, REQUESTS = 10, SECTORS_MAX = 200, RUNS = 60,
       STEPS = 4000, HISTORY_MAX = 64, ANYTHING = 0x7fffffff };

static uint64_t seed;

static uint64_t random_next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static bool chance(unsigned one_in)
{
    return random_next() % one_in == 0;
}

/* ---- a disk with a cache: a number for each sector ---- */

struct frail {
    struct block block;
    int cached[SECTORS], lasting[SECTORS];
    struct list under_way;
    bool is_cut; /* nobody reaches it any more */
};

static int frail_submit(struct block *b, struct block_request *r)
{
    list_append(&CONTAINER_OF(b, struct frail, block)->under_way, &r->link);
    return 0;
}

static void frail_do(struct frail *d, const struct block_request *r)
{
    uint64_t sector = r->offset / 512;
    for (unsigned i = 0; (r->op == BLOCK_READ || r->op == BLOCK_WRITE) && i < r->iovec_count; i++)
        for (size_t at = 0; at < r->iovecs[i].iov_len; at += 512, sector++) {
            char *buffer = (char *)r->iovecs[i].iov_base + at;
            if (r->op == BLOCK_READ) {
                memset(buffer, 0, 512);
                memcpy(buffer, &d->cached[sector], sizeof(int));
            } else {
                memcpy(&d->cached[sector], buffer, sizeof(int));
            }
        }
    for (uint64_t i = 0; (r->op == BLOCK_WRITE_ZEROES || r->op == BLOCK_DISCARD) && i < r->size / 512; i++)
        d->cached[sector + i] = r->op == BLOCK_DISCARD ? ANYTHING : 0;
    if (r->op == BLOCK_FLUSH)
        memcpy(d->lasting, d->cached, sizeof d->lasting);
}

static bool frail_step(struct frail *d)
{
    unsigned count = 0;
    LIST_FOREACH(link, &d->under_way)
        count++;
    if (count == 0)
        return false;
    struct list *link = d->under_way.next;
    for (uint64_t n = random_next() % count; n > 0; n--)
        link = link->next;
    struct block_request *r = LIST_ENTRY(link, struct block_request, link);
    list_remove(link);
    if (!d->is_cut || (r->op != BLOCK_FLUSH && chance(2))) /* it may have arrived */
        frail_do(d, r);
    r->result = d->is_cut ? -EIO : 0;
    block_complete(&d->block, r);
    return true;
}

static void frail_drain(struct block *b)
{
    while (frail_step(CONTAINER_OF(b, struct frail, block)))
        continue;
}

static const struct block_ops frail_ops = {.submit = frail_submit, .drain = frail_drain};

static void frail_init(struct frail *d)
{
    memset(d, 0, sizeof *d);
    d->block = (struct block){
        .ops = &frail_ops, .size_bytes = BYTES, .block_bytes = 512, .can_discard = true, .can_write_zeroes = true};
    list_init(&d->under_way);
}

/* ---- a device that remembers all that it wrote ---- */

struct written {
    int value;
    uint64_t begun, ended; /* 0: not ended */
};

struct device_request {
    struct block_request request;
    struct iovec one;
    uint8_t *buffer;
    bool busy, again; /* again: the right to the disk was gone */
    int value;
    uint64_t begun;
};

static struct {
    struct frail source, target;
    struct block_mirror *mirror;
    struct block *disk; /* what the device writes to */
    struct device_request requests[REQUESTS];
    struct written history[SECTORS][HISTORY_MAX];
    unsigned counts[SECTORS];
    uint64_t now, flushed; /* flushed: when the last flush that ended was begun */
    int values;
    unsigned flushes, errors;
} world;

/* Is it certain that a later one lies over it, and that this was flushed? */
static bool is_over(unsigned sector, const struct written *w)
{
    const struct written *all = world.history[sector];
    for (unsigned i = 0; w->ended > 0 && i < world.counts[sector]; i++)
        if (all[i].begun > w->ended && all[i].ended > 0 && all[i].ended < world.flushed)
            return true;
    return false;
}

static void history_thin(unsigned sector)
{
    struct written *all = world.history[sector], left[HISTORY_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < world.counts[sector]; i++)
        if (!is_over(sector, &all[i]))
            left[count++] = all[i];
    memcpy(all, left, count * sizeof *all);
    world.counts[sector] = count;
}

static bool may_hold(unsigned sector, int value)
{
    const struct written *all = world.history[sector];
    for (unsigned i = 0; i < world.counts[sector]; i++)
        if ((all[i].value == value || all[i].value == ANYTHING) && !is_over(sector, &all[i]))
            return true;
    return false;
}

static void device_done(struct block_request *r, int result)
{
    struct device_request *d = CONTAINER_OF(r, struct device_request, request);
    d->busy = false;
    d->again = result == -EAGAIN;
    world.errors += result < 0 && !d->again;
    world.now++;
    if (result == 0 && r->op == BLOCK_FLUSH) {
        world.flushed = MAX(world.flushed, d->begun);
        world.flushes++;
    }
    for (uint64_t i = 0; result == 0 && r->op != BLOCK_FLUSH && r->op != BLOCK_READ && i < r->size / 512; i++) {
        unsigned sector = (unsigned)(r->offset / 512 + i);
        for (unsigned k = 0; k < world.counts[sector]; k++)
            if (world.history[sector][k].begun == d->begun)
                world.history[sector][k].ended = world.now;
    }
}

static void device_submit(struct device_request *d)
{
    d->busy = true;
    d->again = false;
    assert_int_equal(block_submit(world.disk, &d->request), 0);
}

static bool has_room(uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (world.counts[i] == HISTORY_MAX)
            history_thin((unsigned)i);
        if (world.counts[i] == HISTORY_MAX)
            return false;
    }
    return true;
}

static void device_start(struct device_request *d)
{
    static const enum block_op ops[] = {BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_DISCARD, BLOCK_FLUSH,
                                        BLOCK_FLUSH, BLOCK_READ};
    enum block_op op = ops[random_next() % ARRAY_SIZE(ops)];
    uint64_t first = random_next() % SECTORS, wish = 1 + random_next() % SECTORS_MAX, count = MIN(wish, SECTORS - first);
    bool changes = op != BLOCK_FLUSH && op != BLOCK_READ;
    if (changes && !has_room(first, count))
        op = BLOCK_FLUSH, changes = false;
    d->begun = ++world.now;
    d->value = op == BLOCK_WRITE ? ++world.values : op == BLOCK_DISCARD ? ANYTHING : 0;
    for (uint64_t i = 0; changes && i < count; i++) {
        world.history[first + i][world.counts[first + i]++] = (struct written){.value = d->value, .begun = d->begun};
        memcpy(d->buffer + i * 512, &d->value, sizeof d->value);
    }
    d->one = (struct iovec){d->buffer, count * 512};
    d->request = (struct block_request){.op = op, .done = device_done};
    if (op != BLOCK_FLUSH) {
        d->request.offset = first * 512;
        d->request.size = count * 512;
    }
    if (op == BLOCK_READ || op == BLOCK_WRITE) {
        d->request.iovecs = &d->one;
        d->request.iovec_count = 1;
    }
    device_submit(d);
}

static void step(void)
{
    struct device_request *d = &world.requests[random_next() % REQUESTS];
    switch (random_next() % 4) {
    case 0:
        if (d->again)
            device_submit(d);
        else if (!d->busy)
            device_start(d);
        break;
    case 1:
        frail_step(&world.source);
        break;
    default:
        frail_step(&world.target);
        break;
    }
    if (chance(50) && world.mirror != NULL)
        block_mirror_run(world.mirror); /* its owner looks now and then */
    if (chance(400))
        block_drain(world.disk); /* or somebody else wants the disk quiet */
}

static void setup(void)
{
    memset(&world, 0, sizeof world);
    frail_init(&world.source);
    frail_init(&world.target);
    world.now = 1;
    for (unsigned i = 0; i < SECTORS; i++) {
        world.source.cached[i] = world.source.lasting[i] = chance(2) ? ++world.values : 0;
        world.history[i][world.counts[i]++] = (struct written){.value = world.source.cached[i], .ended = 1};
    }
    for (unsigned i = 0; i < REQUESTS; i++)
        world.requests[i].buffer = calloc(SECTORS_MAX, 512);
    const struct block_mirror_options options = {.source = &world.source.block, .target = &world.target.block};
    assert_int_equal(block_mirror_create(&options, &world.mirror, NULL), 0);
    block_mirror_mark(world.mirror, 0, BYTES);
    block_mirror_run(world.mirror);
    world.disk = block_mirror_front(world.mirror);
}

static void teardown(void)
{
    block_mirror_destroy(world.mirror);
    for (unsigned i = 0; i < REQUESTS; i++)
        free(world.requests[i].buffer);
}

/* The source's host dies, and the target's after it: what is there then is the disk. */
static void target_check(void)
{
    for (unsigned i = 0; i < SECTORS; i++) {
        int value = chance(2) ? world.target.cached[i] : world.target.lasting[i];
        if (!may_hold(i, value))
            fail_msg("sector %u is %d on the target, which was overwritten and flushed, or never written", i, value);
    }
}

/* Guarded, and all that the device was told before lasts on both sides. */
static void get_in_sync(void)
{
    static struct device_request flush;
    while (block_mirror_guard(world.mirror) == -EAGAIN)
        step();
    flush.request = (struct block_request){.op = BLOCK_FLUSH, .done = device_done};
    flush.begun = ++world.now;
    device_submit(&flush);
    while (flush.busy || flush.again) {
        if (flush.again)
            device_submit(&flush);
        step();
    }
}

static void quiet(void)
{
    for (bool busy = true; busy;) {
        busy = false;
        block_drain(world.disk);
        for (unsigned i = 0; i < REQUESTS; i++) {
            busy = busy || world.requests[i].busy || world.requests[i].again;
            if (world.requests[i].again)
                device_submit(&world.requests[i]);
        }
    }
}

static void a_flushed_byte_is_on_the_target_while_it_is_in_sync(void **state UNUSED)
{
    unsigned checks = 0, flushes = 0;
    for (unsigned run = 0; run < RUNS; run++) {
        setup();
        get_in_sync();
        unsigned cut_at = (unsigned)(random_next() % STEPS), known_at = cut_at + 200;
        for (unsigned i = 0; i < STEPS && i < known_at; i++) {
            world.target.is_cut = i >= cut_at;
            step();
            if (chance(100)) {
                target_check();
                checks++;
            }
        }
        flushes += world.flushes;
        target_check();
        assert_int_equal(world.errors, 0);
        if (world.target.is_cut) { /* the record says that it is not in sync: the disk goes on alone, and whoever waited goes on */
            block_drain(world.disk);
            block_mirror_destroy(TAKE_PTR(world.mirror));
            world.disk = &world.source.block;
            for (unsigned i = 0; i < 200; i++)
                step();
        }
        quiet();
        assert_int_equal(world.errors, 0);
        for (unsigned i = 0; i < SECTORS; i++)
            assert_true(may_hold(i, world.source.cached[i]));
        teardown();
    }
    assert_true(checks > RUNS && flushes > RUNS * 10);
}

/* Neither writes nor flushes end once the target is silent for good or gone; reads do. Given back, they are asked again and wait again. */
static void after_the_cut_the_device_waits(void **state UNUSED)
{
    static uint8_t data[512];
    struct iovec one = {data, sizeof data};
    setup();
    get_in_sync();
    quiet();
    assert_int_equal(block_mirror_settle(world.mirror), 0); /* of discards */
    world.target.is_cut = true;
    struct device_request *d = world.requests;
    d[0].request = (struct block_request){.op = BLOCK_WRITE, .size = 512, .iovecs = &one, .iovec_count = 1, .done = device_done};
    d[1].request = (struct block_request){.op = BLOCK_FLUSH, .done = device_done};
    d[2].request = (struct block_request){.op = BLOCK_DISCARD, .offset = 4096, .size = 512, .done = device_done};
    d[3].request = (struct block_request){.op = BLOCK_READ, .size = 512, .iovecs = &one, .iovec_count = 1, .done = device_done};
    for (unsigned i = 0; i < 2; i++)
        device_submit(&d[i]);
    while (frail_step(&world.source) || frail_step(&world.target))
        continue;
    assert_true(d[0].busy && d[1].busy);
    assert_int_equal(block_mirror_progress(world.mirror).state, MIRROR_FAILED);
    for (unsigned i = 2; i < 4; i++)
        device_submit(&d[i]);
    while (frail_step(&world.source))
        continue;
    assert_true(d[2].busy && !d[3].busy);
    block_drain(world.disk);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(d[i].again && !d[i].busy);
        device_submit(&d[i]);
    }
    while (frail_step(&world.source))
        continue;
    assert_true(d[0].busy && d[1].busy && d[2].busy);
    assert_int_equal(block_mirror_guard(world.mirror), -EIO);
    block_drain(world.disk);
    teardown();
}

/* It is not level: what the target lacks nobody may rely on. */
static void only_what_is_level_is_guarded(void **state UNUSED)
{
    setup();
    assert_int_equal(block_mirror_guard(world.mirror), -EAGAIN);
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    block_mirror_mark(world.mirror, 0, 512);
    block_mirror_run(world.mirror);
    assert_int_equal(block_mirror_guard(world.mirror), -EAGAIN);
    teardown();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flushed_byte_is_on_the_target_while_it_is_in_sync),
        cmocka_unit_test(after_the_cut_the_device_waits),
        cmocka_unit_test(only_what_is_level_is_guarded),
    };
    seed = unit_seed() * 2654435761u + 88172645463325252u;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
