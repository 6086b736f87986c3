/* THREADED. A disk with layers on real files in the VMM's engines: random requests, many at once, against a model, with
 * snapshots in between; the lease; what is there after closing; copies of an image; changed clusters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/vmm/block/block_layers.h"
#include "tests/unit/unit_seed.h"

enum {
    SECTORS = 4096,
    IMAGE_SECTORS = 3000,
    AREA_SECTORS = 512, /* each request at once has its own */
    AT_ONCE = SECTORS / AREA_SECTORS,
    ROUNDS = 60,
};

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct uring *uring;
    struct block *block;
    char folder[64], path[96];
    unsigned seed, done;
    bool leased;
    uint8_t model[SECTORS * 512];
    bool unknown[SECTORS]; /* discarded: the old bytes or zeroes */
};

static bool ask_lease(void *arg)
{
    return *(bool *)arg;
}

static void bench_open(struct bench *b, bool direct)
{
    struct error err;
    struct block_file_options options = {.uring = b->uring, .direct = direct};
    if (block_layers_open(b->path, &options, b->loop, &b->block, &err) < 0)
        fail_msg("%s", err.text);
    b->leased = true;
    b->block->may_submit = ask_lease;
    b->block->may_submit_arg = &b->leased;
}

static struct bench *bench_create(bool with_uring)
{
    struct bench *b = NEW(struct bench);
    struct layer_pool *pool;
    struct error err;
    char image[96];
    b->seed = (unsigned)unit_seed();
    pthread_mutex_init(&b->lock, NULL);
    assert_int_equal(io_loop_create(&b->lock, &b->loop, NULL), 0);
    if (with_uring && uring_create(b->loop, &b->uring, &err) < 0) {
        print_message("skipped, no io_uring here: %s\n", err.text);
        skip();
    }
    snprintf(b->folder, sizeof b->folder, "build/test-layers-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->path, sizeof b->path, "%s/root.disk", b->folder);
    snprintf(image, sizeof image, "%s/base.img", b->folder);
    for (unsigned i = 0; i < IMAGE_SECTORS * 512; i++)
        b->model[i] = i / 65536 == 3 ? 0 : (uint8_t)(i * 31 / 512 + i);
    assert_int_equal(file_write_atomic(image, b->model, IMAGE_SECTORS * 512, 0400, NULL), 0);
    assert_int_equal(layer_pool_dir_create(b->folder, NULL, NULL, &pool, NULL), 0);
    if (layer_disk_create(pool, "root", SECTORS * 512, "base.img", &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(layer_disk_create(pool, "root", SECTORS * 512, "base.img", &err), -EEXIST);
    assert_int_equal(layer_disk_create(pool, "less", 512, "base.img", &err), -EFBIG);
    assert_int_equal(layer_disk_create(pool, "none", 512, "no.img", &err), -ENOENT);
    assert_int_equal(layer_disk_create(pool, "up", 512, "../base.img", &err), -EINVAL);
    layer_pool_dir_destroy(pool);
    return b;
}

static void bench_destroy(struct bench *b)
{
    block_close(b->block);
    uring_destroy(b->uring);
    io_loop_destroy(b->loop);
    pthread_mutex_destroy(&b->lock);
    assert_int_equal(file_remove_tree("build", b->folder + 6, NULL), 0);
    free(b);
}

struct try {
    struct block_request request;
    struct iovec iovec;
    struct bench *bench;
    uint8_t *memory;
    int result;
};

static void try_done(struct block_request *r, int result)
{
    struct try *t = CONTAINER_OF(r, struct try, request);
    t->result = result;
    t->bench->done++;
}

static unsigned chance(struct bench *b, unsigned below)
{
    return (unsigned)rand_r(&b->seed) % below;
}

static void try_make(struct bench *b, struct try *t, unsigned area)
{
    static const enum block_op ops[] = {BLOCK_READ,  BLOCK_WRITE,   BLOCK_WRITE,       BLOCK_WRITE,
                                        BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES};
    unsigned start = chance(b, AREA_SECTORS), sectors = 1 + chance(b, AREA_SECTORS - start);
    *t = (struct try){.bench = b, .memory = aligned_alloc(4096, AREA_SECTORS * 512)};
    for (unsigned i = 0; i < AREA_SECTORS * 512; i++)
        t->memory[i] = (uint8_t)rand_r(&b->seed);
    t->iovec = (struct iovec){t->memory, sectors * 512};
    t->request = (struct block_request){.op = ops[chance(b, ARRAY_SIZE(ops))],
                                        .may_unmap = chance(b, 2),
                                        .offset = ((uint64_t)area * AREA_SECTORS + start) * 512,
                                        .size = (uint64_t)sectors * 512,
                                        .iovecs = &t->iovec,
                                        .iovec_count = 1,
                                        .done = try_done};
}

static void model_follow(struct bench *b, struct try *t)
{
    struct block_request *r = &t->request;
    uint8_t *model = b->model + r->offset;
    assert_int_equal(t->result, 0);
    for (uint64_t i = 0; i < r->size && r->op != BLOCK_FLUSH; i++) {
        bool *unknown = &b->unknown[(r->offset + i) / 512];
        if (r->op == BLOCK_READ) {
            assert_true(t->memory[i] == model[i] || (*unknown && t->memory[i] == 0));
        } else if (r->op == BLOCK_DISCARD) {
            *unknown = true;
        } else {
            model[i] = r->op == BLOCK_WRITE ? t->memory[i] : 0;
            *unknown = i % 512 == 511 ? false : *unknown;
        }
    }
    free(t->memory);
}

static void disk_is_the_model(struct bench *b)
{
    uint8_t *seen = aligned_alloc(4096, SECTORS * 512);
    pthread_mutex_lock(&b->lock);
    assert_int_equal(block_now(b->block, BLOCK_READ, 0, seen, SECTORS * 512), 0);
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < SECTORS * 512; i++)
        assert_true(seen[i] == b->model[i] || (b->unknown[i / 512] && seen[i] == 0));
    free(seen);
}

static void requests_follow_the_model(bool with_uring)
{
    struct bench *b = bench_create(with_uring);
    struct try tries[AT_ONCE];
    char name[16];
    bench_open(b, false);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned count = 1 + chance(b, AT_ONCE);
        b->done = 0;
        pthread_mutex_lock(&b->lock);
        for (unsigned i = 0; i < count; i++) {
            try_make(b, &tries[i], i);
            assert_int_equal(block_submit(b->block, &tries[i].request), 0);
        }
        assert_int_equal(b->done, 0); /* never from within submit */
        if (chance(b, 3) == 0)
            block_drain(b->block);
        pthread_mutex_unlock(&b->lock);
        while (b->done < count)
            io_loop_run_once(b->loop, -1);
        for (unsigned i = 0; i < count; i++)
            model_follow(b, &tries[i]);
        if (round % 10 == 9) {
            snprintf(name, sizeof name, "s%u", round);
            pthread_mutex_lock(&b->lock);
            assert_int_equal(layer_disk_snapshot(block_layers_disk(b->block), name, NULL), 0);
            pthread_mutex_unlock(&b->lock);
        }
    }
    disk_is_the_model(b);
    block_close(b->block);
    bench_open(b, true);
    disk_is_the_model(b);
    bench_destroy(b);
}
static void threads_follow_the_model(void **state UNUSED)
{
    requests_follow_the_model(false);
}
static void uring_follows_the_model(void **state UNUSED)
{
    requests_follow_the_model(true);
}

static int one(struct bench *b, enum block_op op, uint64_t sector, uint8_t *memory, size_t size)
{
    pthread_mutex_lock(&b->lock);
    int code = block_now(b->block, op, sector * 512, memory, size);
    pthread_mutex_unlock(&b->lock);
    return code;
}

/* Without the lease nothing touches the files, whichever way a request would go; with it again all is as before. */
static void without_the_lease_nothing_is_touched(bool with_uring)
{
    struct bench *b = bench_create(with_uring);
    uint8_t memory[1024] = {7};
    bench_open(b, false);
    b->model[3500 * 512] = 7;
    assert_int_equal(one(b, BLOCK_WRITE, 3500, memory, sizeof memory), 0);
    b->leased = false;
    assert_int_equal(one(b, BLOCK_READ, 0, memory, 512), -EAGAIN);
    assert_int_equal(one(b, BLOCK_WRITE, 3500, memory, 512), -EAGAIN); /* straight to the top */
    assert_int_equal(one(b, BLOCK_WRITE, 10, memory, 512), -EAGAIN);   /* copy on write */
    assert_int_equal(one(b, BLOCK_FLUSH, 0, NULL, 0), -EAGAIN);
    b->leased = true;
    disk_is_the_model(b);
    memory[0] = 9;
    memcpy(b->model + 10 * 512, memory, 512);
    assert_int_equal(one(b, BLOCK_WRITE, 10, memory, 512), 0);
    assert_int_equal(one(b, BLOCK_FLUSH, 0, NULL, 0), 0);
    disk_is_the_model(b);
    bench_destroy(b);
}
static void threads_need_the_lease(void **state UNUSED)
{
    without_the_lease_nothing_is_touched(false);
}
static void uring_needs_the_lease(void **state UNUSED)
{
    without_the_lease_nothing_is_touched(true);
}

/* What has changed since a snapshot, and who else may have the files. */
static void changes_are_known_and_files_are_locked(void **state UNUSED)
{
    struct bench *b = bench_create(false);
    struct layer_pool *pool;
    struct layer_disk *second;
    struct error err;
    uint8_t memory[65536] = {1};
    uint64_t first, count;
    enum layer_state what;
    int since;
    bench_open(b, false);
    struct layer_disk *disk = block_layers_disk(b->block);
    assert_int_equal(one(b, BLOCK_WRITE, 0, memory, 512), 0);
    assert_int_equal(layer_disk_snapshot(disk, "monday", &err), 0);
    assert_int_equal(layer_disk_snapshot(disk, "monday", &err), -EEXIST);
    assert_int_equal(layer_disk_snapshot(disk, "Monday!", &err), -EINVAL);
    assert_int_equal(one(b, BLOCK_WRITE, 128 * 5 + 3, memory, 512), 0);
    assert_int_equal(one(b, BLOCK_WRITE, 128 * 6 - 1, memory, 1024), 0);
    assert_int_equal(one(b, BLOCK_WRITE_ZEROES, 128 * 8, NULL, 65536), 0);
    const struct disk_snapshot *s = disk->head.snapshots.items;
    assert_int_equal(layer_disk_since(disk, s[0].layer, &since), 0);
    assert_true(layer_chain_changed(disk->chain, since, 0, &first, &count, &what));
    assert_true(first == 5 && count == 2 && what == LAYER_DATA);
    assert_true(layer_chain_changed(disk->chain, since, first + count, &first, &count, &what));
    assert_true(first == 8 && count == 1 && what == LAYER_ZERO);
    assert_false(layer_chain_changed(disk->chain, since, first + count, &first, &count, &what));
    assert_int_equal(layer_disk_since(disk, "00000000000000000000000000000000", &since), -ESTALE);
    assert_int_equal(layer_pool_dir_create(b->folder, NULL, NULL, &pool, NULL), 0);
    assert_int_equal(layer_disk_open(pool, "root", false, 0, &second, &err), -EBUSY);
    assert_int_equal(layer_disk_open_snapshot(pool, "root", "monday", &second, &err), 0); /* as a backup does */
    layer_disk_close(second);
    assert_int_equal(layer_disk_open_snapshot(pool, "root", "tuesday", &second, &err), -ENOENT);
    layer_pool_dir_destroy(pool);
    bench_destroy(b);
}

/* As a migration does: the target has it open all the time, and the right to it when the source has let go. */
static void the_right_to_it_is_handed_over(void **state UNUSED)
{
    struct bench *b = bench_create(false);
    struct block_file_options incoming = {.unlocked = true};
    struct block *target;
    struct error err;
    uint8_t memory[512] = {3};
    bench_open(b, false);
    assert_int_equal(block_layers_open(b->path, &incoming, b->loop, &target, &err), 0);
    assert_int_equal(target->size_bytes, SECTORS * 512);
    assert_false(target->read_only);
    pthread_mutex_lock(&b->lock);
    assert_int_equal(block_now(target, BLOCK_READ, 0, memory, 512), -ENODEV);
    assert_int_equal(block_own(target, true, &err), -EBUSY);
    memory[0] = b->model[10 * 512] = 3;
    memset(b->model + 10 * 512 + 1, 0, 511);
    memset(memory + 1, 0, 511);
    assert_int_equal(block_now(b->block, BLOCK_WRITE, 10 * 512, memory, 512), 0);
    assert_int_equal(layer_disk_snapshot(block_layers_disk(b->block), "before", &err), 0);
    assert_int_equal(block_now(b->block, BLOCK_WRITE, 11 * 512, b->model + 10 * 512, 512), 0);
    memcpy(b->model + 11 * 512, b->model + 10 * 512, 512);
    assert_int_equal(block_own(b->block, false, &err), 0);
    assert_int_equal(block_own(target, true, &err), 0);
    assert_int_equal(block_own(b->block, true, &err), -EBUSY);
    struct block *source = b->block;
    b->block = target;
    pthread_mutex_unlock(&b->lock);
    disk_is_the_model(b);
    pthread_mutex_lock(&b->lock);
    assert_int_equal(block_now(target, BLOCK_WRITE, 12 * 512, b->model + 10 * 512, 512), 0);
    memcpy(b->model + 12 * 512, b->model + 10 * 512, 512);
    block_close(target);
    assert_int_equal(block_own(source, true, &err), 0); /* the target failed: it goes on here */
    b->block = source;
    pthread_mutex_unlock(&b->lock);
    disk_is_the_model(b);
    assert_int_equal(one(b, BLOCK_WRITE, 13, memory, 512), 0);
    bench_destroy(b);
}

static struct block *waiting_open(struct bench *b, uint64_t epoch, bool *lease)
{
    struct block_file_options options = {.unlocked = true, .direct = true, .epoch = epoch, .may_open = ask_lease, .may_open_arg = lease};
    struct block *block;
    struct error err;
    if (block_layers_open(b->path, &options, b->loop, &block, &err) < 0)
        fail_msg("%s", err.text);
    block->may_submit = ask_lease;
    block->may_submit_arg = lease;
    return block;
}

/* A disk that other hosts reach: looked at without the lease, taken under it alone; locks that a file server keeps for a host that is
 * gone are waited for, until its owner is known to have let go before, and never where a higher epoch has been there. */
static void a_lock_that_is_nobodys_is_passed_over(void **state UNUSED)
{
    struct bench *b = bench_create(false);
    bool lease = false;
    struct error err;
    bench_open(b, false);
    struct block *holder = b->block, *target = waiting_open(b, 7, &lease), *late = waiting_open(b, 5, &lease);
    pthread_mutex_lock(&b->lock);
    memset(b->model + 10 * 512, 3, 512);
    assert_int_equal(block_now(holder, BLOCK_WRITE, 10 * 512, b->model + 10 * 512, 512), 0);
    assert_int_equal(block_now(holder, BLOCK_FLUSH, 0, NULL, 0), 0);
    lease = true;
    assert_int_equal(block_own(target, true, &err), -EBUSY);
    block_layers_released(target);
    lease = false;
    assert_int_equal(block_own(target, true, &err), -EAGAIN);
    lease = true;
    assert_int_equal(block_own(target, true, &err), 0);
    assert_int_equal(layer_chain_top(block_layers_disk(target)->chain)->header.epoch, 7);
    block_layers_released(late);
    assert_int_equal(block_own(late, true, &err), -ESTALE);
    assert_int_equal(block_own(late, true, &err), -ESTALE);
    block_close(late);
    b->block = target;
    pthread_mutex_unlock(&b->lock);
    disk_is_the_model(b);
    pthread_mutex_lock(&b->lock);
    block_close(holder);
    pthread_mutex_unlock(&b->lock);
    bench_destroy(b);
}

/* An image of 10 GiB becomes a disk without being read. */
static void a_large_image_is_cloned_at_once(void **state UNUSED)
{
    struct bench *b = bench_create(false);
    struct timespec begin, end;
    struct layer_pool *pool;
    char path[96];
    snprintf(path, sizeof path, "%s/large.img", b->folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 10ll << 30), 0);
    for (off_t at = 0; at < 10ll << 30; at += 64 << 20)
        assert_int_equal(pwrite(fd, "data", 4, at), 4);
    close(fd);
    assert_int_equal(layer_pool_dir_create(b->folder, NULL, NULL, &pool, NULL), 0);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_int_equal(layer_disk_create(pool, "large", 20ull << 30, "large.img", NULL), 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    print_message("10 GiB image to disk: %.1f ms\n",
                  (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6);
    layer_pool_dir_destroy(pool);
    bench_open(b, false);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_follow_the_model),
        cmocka_unit_test(uring_follows_the_model),
        cmocka_unit_test(threads_need_the_lease),
        cmocka_unit_test(uring_needs_the_lease),
        cmocka_unit_test(changes_are_known_and_files_are_locked),
        cmocka_unit_test(the_right_to_it_is_handed_over),
        cmocka_unit_test(a_lock_that_is_nobodys_is_passed_over),
        cmocka_unit_test(a_large_image_is_cloned_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
