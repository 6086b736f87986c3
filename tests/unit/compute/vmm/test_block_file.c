/* THREADED. The raw file driver against a model in memory: random reads, writes, zeroes, discards and flushes of odd
 * shapes, many at once, on both engines, through the page cache and past it. And the limits: more requests than slots,
 * drain, a file that became shorter, growth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compute/vmm/block/block_file.h"
#include "tests/unit/unit_seed.h"

enum {
    SECTORS = 8192, /* of the disk */
    DISK_BYTES = SECTORS * 512,
    AREA_SECTORS = 1024, /* each request at once has its own, so that the model is exact; more than a bounce buffer */
    AT_ONCE = SECTORS / AREA_SECTORS,
    SEGMENTS_MAX = 9,
    ROUNDS = 30,
};

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct uring *uring; /* NULL: threads */
    struct block *block;
    char path[64];
    int fd;
    unsigned seed;
    unsigned done;
    uint8_t model[DISK_BYTES];
    bool unknown[SECTORS]; /* discarded: either the old bytes or zeroes */
};

static struct bench *bench_create(bool with_uring, bool direct)
{
    struct bench *b = NEW(struct bench);
    struct error err;
    pthread_mutex_init(&b->lock, NULL);
    assert_int_equal(io_loop_create(&b->lock, &b->loop, NULL), 0);
    if (with_uring && uring_create(b->loop, &b->uring, &err) < 0) {
        print_message("skipped, no io_uring here: %s\n", err.text);
        skip();
    }
    snprintf(b->path, sizeof b->path, "build/test-file-XXXXXX");
    b->fd = mkstemp(b->path);
    assert_true(b->fd >= 0);
    assert_int_equal(ftruncate(b->fd, DISK_BYTES), 0);
    struct block_file_options options = {.direct = direct, .uring = b->uring};
    if (block_file_open(b->path, &options, b->loop, &b->block, &err) < 0) {
        unlink(b->path);
        if (!direct)
            fail_msg("%s", err.text);
        print_message("skipped: %s\n", err.text);
        skip();
    }
    b->seed = (unsigned)unit_seed();
    return b;
}

static void bench_destroy(struct bench *b)
{
    block_close(b->block);
    uring_destroy(b->uring);
    io_loop_destroy(b->loop);
    close(b->fd);
    unlink(b->path);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

struct try {
    struct block_request request;
    struct bench *bench;
    struct iovec iovecs[SEGMENTS_MAX];
    uint8_t *memory;
    int result;
    bool ended;
};

static void try_done(struct block_request *r, int result)
{
    struct try *t = CONTAINER_OF(r, struct try, request);
    assert_false(t->ended);
    t->ended = true;
    t->result = result;
    t->bench->done++;
}

static unsigned chance(struct bench *b, unsigned below)
{
    return (unsigned)rand_r(&b->seed) % below;
}

/* A random request within area @area. */
static void try_make(struct bench *b, struct try *t, unsigned area)
{
    static const enum block_op ops[] = {BLOCK_READ, BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE, BLOCK_FLUSH,
                                        BLOCK_DISCARD, BLOCK_WRITE_ZEROES};
    unsigned start = chance(b, AREA_SECTORS), sectors = 1 + chance(b, AREA_SECTORS - start);
    *t = (struct try){.bench = b};
    t->request = (struct block_request){.op = ops[chance(b, ARRAY_SIZE(ops))],
                                        .may_unmap = chance(b, 2),
                                        .offset = ((uint64_t)area * AREA_SECTORS + start) * 512,
                                        .size = (uint64_t)sectors * 512,
                                        .iovecs = t->iovecs,
                                        .done = try_done};
    t->memory = aligned_alloc(4096, AREA_SECTORS * 512 + 4096);
    size_t at = chance(b, 2) ? 0 : chance(b, 4096), left = t->request.size;
    uint64_t x = (uint64_t)rand_r(&b->seed) << 16 | 1;
    for (size_t i = 0; i < AREA_SECTORS * 512 + 4096; i += sizeof x) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(t->memory + i, &x, sizeof x);
    }
    while (left > 0) {
        size_t piece = t->request.iovec_count == SEGMENTS_MAX - 1 ? left : 1 + chance(b, (unsigned)left);
        t->iovecs[t->request.iovec_count++] = (struct iovec){t->memory + at, piece};
        at += piece;
        left -= piece;
    }
}

static void model_check_and_follow(struct bench *b, struct try *t)
{
    struct block_request *r = &t->request;
    uint8_t *model = b->model + r->offset;
    assert_true(t->ended);
    assert_int_equal(t->result, 0);
    for (uint64_t i = 0; i < r->size && r->op != BLOCK_FLUSH; i++) {
        uint8_t byte = ((uint8_t *)t->iovecs[0].iov_base)[i]; /* segments lie one behind the other */
        bool *unknown = &b->unknown[(r->offset + i) / 512];
        if (r->op == BLOCK_READ)
            assert_true(byte == model[i] || (*unknown && byte == 0));
        else if (r->op == BLOCK_DISCARD)
            *unknown = true;
        else
            model[i] = r->op == BLOCK_WRITE ? byte : 0, *unknown = i % 512 == 511 ? false : *unknown;
    }
    free(t->memory);
}

static void random_requests_follow_the_model(bool with_uring, bool direct)
{
    struct bench *b = bench_create(with_uring, direct);
    struct try *tries = xcalloc(AT_ONCE, sizeof *tries);
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned count = 1 + chance(b, AT_ONCE);
        b->done = 0;
        pthread_mutex_lock(&b->lock);
        block_plug(b->block);
        for (unsigned i = 0; i < count; i++) {
            try_make(b, &tries[i], i);
            assert_int_equal(block_submit(b->block, &tries[i].request), 0);
        }
        assert_int_equal(b->done, 0); /* never from within submit */
        block_unplug(b->block);
        if (chance(b, 3) == 0)
            block_drain(b->block);
        pthread_mutex_unlock(&b->lock);
        while (b->done < count)
            io_loop_run_once(b->loop, -1);
        for (unsigned i = 0; i < count; i++)
            model_check_and_follow(b, &tries[i]);
    }
    uint8_t *seen = xcalloc(1, DISK_BYTES);
    assert_int_equal(pread(b->fd, seen, DISK_BYTES, 0), DISK_BYTES);
    for (unsigned i = 0; i < DISK_BYTES; i++)
        assert_true(seen[i] == b->model[i] || (b->unknown[i / 512] && seen[i] == 0));
    free(seen);
    free(tries);
    bench_destroy(b);
}

static void threads_follow_the_model(void **state UNUSED)
{
    random_requests_follow_the_model(false, false);
}
static void threads_direct_follow_the_model(void **state UNUSED)
{
    random_requests_follow_the_model(false, true);
}
static void uring_follows_the_model(void **state UNUSED)
{
    random_requests_follow_the_model(true, false);
}
static void uring_direct_follows_the_model(void **state UNUSED)
{
    random_requests_follow_the_model(true, true);
}

/* Twice as many as the kernel gets at once, in one go; then the lock is not given up before all are done. */
static void more_than_fit_wait_their_turn(bool with_uring)
{
    enum { MANY = 2 * BLOCK_FILE_IN_FLIGHT_MAX + 7 };
    struct bench *b = bench_create(with_uring, false);
    struct try *tries = xcalloc(MANY, sizeof *tries);
    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < MANY; i++) {
        tries[i].bench = b;
        tries[i].memory = xcalloc(1, 512);
        memset(tries[i].memory, (int)(i % 251), 512);
        tries[i].iovecs[0] = (struct iovec){tries[i].memory, 512};
        tries[i].request = (struct block_request){.op = BLOCK_WRITE,
                                                  .offset = 512ull * i,
                                                  .size = 512,
                                                  .iovecs = tries[i].iovecs,
                                                  .iovec_count = 1,
                                                  .done = try_done};
        assert_int_equal(block_submit(b->block, &tries[i].request), 0);
    }
    assert_int_equal(b->block->in_flight, MANY);
    block_drain(b->block);
    assert_int_equal(b->done, MANY);
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < MANY; i++) {
        uint8_t seen = 0;
        assert_int_equal(tries[i].result, 0);
        assert_int_equal(pread(b->fd, &seen, 1, 512 * (off_t)i), 1);
        assert_int_equal(seen, i % 251);
        free(tries[i].memory);
    }
    free(tries);
    bench_destroy(b);
}
static void threads_take_more_than_fit(void **state UNUSED)
{
    more_than_fit_wait_their_turn(false);
}
static void uring_takes_more_than_fit(void **state UNUSED)
{
    more_than_fit_wait_their_turn(true);
}

static int one_read(struct bench *b, uint64_t offset, uint64_t size)
{
    struct try t = {.bench = b, .memory = xcalloc(1, size)};
    t.iovecs[0] = (struct iovec){t.memory, size};
    t.request = (struct block_request){
        .op = BLOCK_READ, .offset = offset, .size = size, .iovecs = t.iovecs, .iovec_count = 1, .done = try_done};
    pthread_mutex_lock(&b->lock);
    int code = block_submit(b->block, &t.request);
    pthread_mutex_unlock(&b->lock);
    while (code == 0 && !t.ended)
        io_loop_run_once(b->loop, -1);
    free(t.memory);
    return code < 0 ? code : t.result;
}

static void a_file_may_shrink_and_grow(bool with_uring)
{
    struct bench *b = bench_create(with_uring, false);
    struct error err;
    assert_int_equal(ftruncate(b->fd, DISK_BYTES / 2 + 512), 0);
    assert_int_equal(one_read(b, DISK_BYTES / 2, 512), 0);
    assert_int_equal(one_read(b, DISK_BYTES / 2, 1024), -EIO); /* a short read, then nothing */
    assert_int_equal(one_read(b, DISK_BYTES - 512, 512), -EIO);
    assert_int_equal(block_grow(b->block, DISK_BYTES - 512, &err), -EINVAL);
    assert_int_equal(block_grow(b->block, DISK_BYTES + 1, &err), -EINVAL);
    assert_int_equal(b->block->size_bytes, DISK_BYTES);
    assert_int_equal(one_read(b, DISK_BYTES, 512), -ERANGE);
    assert_int_equal(block_grow(b->block, DISK_BYTES * 2, &err), 0);
    assert_int_equal(lseek(b->fd, 0, SEEK_END), DISK_BYTES * 2);
    assert_int_equal(one_read(b, DISK_BYTES * 2 - 512, 512), 0);
    /* Its name may go: we hold the file. */
    assert_int_equal(unlink(b->path), 0);
    assert_int_equal(one_read(b, 0, 512), 0);
    bench_destroy(b);
}
static void threads_see_the_file_shrink_and_grow(void **state UNUSED)
{
    a_file_may_shrink_and_grow(false);
}
static void uring_sees_the_file_shrink_and_grow(void **state UNUSED)
{
    a_file_may_shrink_and_grow(true);
}

static bool may_submit(void *arg)
{
    unsigned *calls_left = arg;
    return (*calls_left)-- > 0;
}

/* A request of two system calls, and the right to the disk ends after the first: the rest of the disk is another host's. */
static void the_right_may_end_within_a_request(bool with_uring)
{
    enum { SEGMENTS = 1500, BYTES = SEGMENTS * 512 }; /* more than one call takes */
    struct bench *b = bench_create(with_uring, false);
    struct try t = {.bench = b, .memory = xcalloc(1, BYTES)};
    struct iovec *iovecs = xcalloc(SEGMENTS, sizeof *iovecs);
    unsigned calls_left = 1;
    memset(t.memory, 0x5a, BYTES);
    for (unsigned i = 0; i < SEGMENTS; i++)
        iovecs[i] = (struct iovec){t.memory + i * 512, 512};
    b->block->may_submit = may_submit;
    b->block->may_submit_arg = &calls_left;
    t.request = (struct block_request){
        .op = BLOCK_WRITE, .size = BYTES, .iovecs = iovecs, .iovec_count = SEGMENTS, .done = try_done};
    pthread_mutex_lock(&b->lock);
    assert_int_equal(block_submit(b->block, &t.request), 0);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    assert_int_equal(t.result, -EAGAIN);
    assert_int_equal(pread(b->fd, b->model, BYTES, 0), BYTES);
    assert_int_equal(b->model[0], 0x5a);
    assert_int_equal(b->model[BYTES - 1], 0);
    free(iovecs);
    free(t.memory);
    bench_destroy(b);
}
static void threads_ask_before_each_call(void **state UNUSED)
{
    the_right_may_end_within_a_request(false);
}
static void uring_asks_before_each_call(void **state UNUSED)
{
    the_right_may_end_within_a_request(true);
}

static void flush_begin(struct bench *b, struct try *t)
{
    *t = (struct try){.bench = b, .request = {.op = BLOCK_FLUSH, .done = try_done}};
    assert_int_equal(block_submit(b->block, &t->request), 0);
}

static int one_flush(struct bench *b)
{
    struct try t;
    pthread_mutex_lock(&b->lock);
    flush_begin(b, &t);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    assert_true(t.ended);
    return t.result;
}

/* The kernel says once that it could not write, and then has nothing more to write. What is no file has nothing to be synced. */
static void a_failed_flush_stays_failed(bool with_uring, bool direct)
{
    struct bench *b = bench_create(with_uring, direct);
    struct block_file_options options = {.name = "test", .direct = direct, .uring = b->uring, .unlocked = true};
    struct error err;
    struct try tries[4];
    int pipes[2], fd = open(b->path, O_RDWR | O_CLOEXEC), kept = dup(fd);
    assert_int_equal(pipe(pipes), 0);
    block_close(b->block);
    assert_int_equal(block_file_from_fd(fd, &options, b->loop, &b->block, &err), 0);
    assert_int_equal(one_flush(b), 0);
    assert_int_equal(dup2(pipes[0], fd), fd);
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < ARRAY_SIZE(tries); i++)
        flush_begin(b, &tries[i]);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    for (size_t i = 0; i < ARRAY_SIZE(tries); i++)
        assert_int_equal(tries[i].result, direct ? -EINVAL : -ENOTRECOVERABLE);
    assert_int_equal(dup2(kept, fd), fd);
    assert_int_equal(one_flush(b), direct ? 0 : -ENOTRECOVERABLE); /* past the page cache each write has said whether it was made */
    assert_int_equal(one_read(b, 0, 512), 0);
    assert_int_equal(block_own(b->block, false, &err), direct ? 0 : -ENOTRECOVERABLE);
    close(kept);
    close(pipes[0]);
    close(pipes[1]);
    bench_destroy(b);
}
static void threads_fail_a_flush_for_good(void **state UNUSED)
{
    a_failed_flush_stays_failed(false, false);
    a_failed_flush_stays_failed(false, true);
}
static void uring_fails_a_flush_for_good(void **state UNUSED)
{
    a_failed_flush_stays_failed(true, false);
    a_failed_flush_stays_failed(true, true);
}

static bool may_not_submit(void *arg UNUSED)
{
    return false;
}

static void some_flushes(struct bench *b, int result)
{
    struct try tries[8];
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < ARRAY_SIZE(tries); i++)
        flush_begin(b, &tries[i]);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    for (size_t i = 0; i < ARRAY_SIZE(tries); i++) {
        assert_true(tries[i].ended);
        assert_int_equal(tries[i].result, result);
    }
}

/* The first one is under way when the others come: these cannot know whether it saw their writes, and one more call is enough. */
static void flushes_share_one_call(bool with_uring)
{
    struct bench *b = bench_create(with_uring, false);
    unsigned calls_left = 100;
    b->block->may_submit = may_submit;
    b->block->may_submit_arg = &calls_left;
    some_flushes(b, 0);
    assert_int_equal(calls_left, 98);
    b->block->may_submit = may_not_submit;
    some_flushes(b, -EAGAIN);
    b->block->may_submit = NULL;
    some_flushes(b, 0); /* without the right nothing was lost */
    bench_destroy(b);
}
static void threads_share_a_flush(void **state UNUSED)
{
    flushes_share_one_call(false);
}
static void uring_shares_a_flush(void **state UNUSED)
{
    flushes_share_one_call(true);
}

static int at_hand(struct block *b, enum block_op op, uint64_t offset, void *memory, size_t size)
{
    struct iovec iovecs[2] = {{(uint8_t *)memory + 512, size - 512}, {memory, 512}};
    return block_read_at_hand(b, &(struct block_request){
                                     .op = op, .offset = offset, .size = size, .iovecs = iovecs, .iovec_count = 2});
}

/* What is in the page cache is read without a request; what is not there, or may not be read, takes one. */
static void what_is_cached_is_at_hand(void **state UNUSED)
{
    enum { BYTES = 6 * 512 };
    struct bench *b = bench_create(false, false);
    uint8_t found[BYTES] = {0};
    unsigned calls_left = 0;
    memset(b->model, 1, DISK_BYTES);
    memset(b->model + 4096 + BYTES - 512, 2, 512);
    assert_int_equal(pwrite(b->fd, b->model, DISK_BYTES, 0), DISK_BYTES);
    if (at_hand(b->block, BLOCK_READ, 4096, found, BYTES) == -EAGAIN) {
        bench_destroy(b);
        print_message("skipped: this file system has nothing at hand\n");
        skip();
    }
    assert_int_equal(found[0], 2);
    assert_int_equal(found[512], 1);
    assert_int_equal(at_hand(b->block, BLOCK_WRITE, 4096, found, BYTES), -EAGAIN);
    assert_int_equal(at_hand(b->block, BLOCK_READ, DISK_BYTES - 512, found, BYTES), -ERANGE);
    assert_int_equal(ftruncate(b->fd, 4096 + 512), 0);
    assert_int_equal(at_hand(b->block, BLOCK_READ, 4096, found, BYTES), -EAGAIN); /* the request says what is wrong */
    assert_int_equal(at_hand(b->block, BLOCK_READ, 0, found, BYTES), 0);
    b->block->may_submit = may_submit;
    b->block->may_submit_arg = &calls_left;
    assert_int_equal(at_hand(b->block, BLOCK_READ, 0, found, BYTES), -EAGAIN);
    bench_destroy(b);
}

static void past_the_cache_nothing_is_at_hand(void **state UNUSED)
{
    struct bench *b = bench_create(false, true);
    uint8_t found[4096] __attribute__((aligned(4096)));
    assert_int_equal(at_hand(b->block, BLOCK_READ, 0, found, sizeof found), -EAGAIN);
    bench_destroy(b);
}

/* Whether all of [@offset, @offset + @size) of the file is in the page cache. */
static bool is_cached(struct bench *b, uint64_t offset, size_t size)
{
    unsigned char pages[64];
    void *at = mmap(NULL, size, PROT_READ, MAP_SHARED, b->fd, (off_t)offset);
    bool all = at != MAP_FAILED && size <= sizeof pages * 4096 && mincore(at, size, pages) == 0;
    for (size_t i = 0; i < size / 4096 && all; i++)
        all = pages[i] & 1;
    munmap(at, size);
    return all;
}

/* Only through the page cache, with the right to the file, and as much as there is room for. A drain waits for it, and then the
 * kernel has begun to read. */
static void said_to_be_read(bool with_uring)
{
    enum { BYTES = 48 * 4096, AT = 1 << 20, REFUSED = 2 << 20, TRIES = 10000 };
    struct bench *b = bench_create(with_uring, false);
    unsigned calls_left = 0, tries = 0;
    memset(b->model, 1, DISK_BYTES);
    assert_int_equal(pwrite(b->fd, b->model, DISK_BYTES, 0), DISK_BYTES);
    if (fsync(b->fd) < 0 || posix_fadvise(b->fd, 0, 0, POSIX_FADV_DONTNEED) != 0 || is_cached(b, AT, BYTES)) {
        bench_destroy(b);
        print_message("skipped: this file system keeps all in memory\n");
        skip();
    }
    pthread_mutex_lock(&b->lock);
    b->block->may_submit = may_submit;
    b->block->may_submit_arg = &calls_left;
    block_will_read(b->block, REFUSED, BYTES);
    b->block->may_submit = NULL;
    block_will_read(b->block, REFUSED, DISK_BYTES);
    block_will_read(b->block, AT, BYTES);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    while (!is_cached(b, AT, BYTES) && tries++ < TRIES)
        poll(NULL, 0, 1);
    assert_true(tries < TRIES);
    assert_false(is_cached(b, REFUSED, 4096));
    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < 3 * BLOCK_FILE_HINTS_MAX; i++) /* more than there is room for, and closed with them */
        block_will_read(b->block, 0, DISK_BYTES);
    pthread_mutex_unlock(&b->lock);
    bench_destroy(b);
}

static void what_is_said_to_be_read_next_is_cached(void **state UNUSED)
{
    said_to_be_read(true);
}

static void what_is_said_to_be_read_next_is_cached_by_threads(void **state UNUSED)
{
    said_to_be_read(false);
}

/* What is asked for keeps no request from being carried out, nor the other way round. */
static void threads_read_ahead_beside_requests(void **state UNUSED)
{
    struct bench *b = bench_create(false, false);
    memset(b->model, 1, DISK_BYTES);
    assert_int_equal(pwrite(b->fd, b->model, DISK_BYTES, 0), DISK_BYTES);
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct try tries[AT_ONCE];
        pthread_mutex_lock(&b->lock);
        if (fsync(b->fd) == 0)
            posix_fadvise(b->fd, 0, 0, POSIX_FADV_DONTNEED);
        for (unsigned i = 0; i < AT_ONCE; i++) {
            try_make(b, &tries[i], i);
            block_will_read(b->block, tries[i].request.offset, tries[i].request.size);
            assert_int_equal(block_submit(b->block, &tries[i].request), 0);
        }
        block_drain(b->block);
        pthread_mutex_unlock(&b->lock);
        for (unsigned i = 0; i < AT_ONCE; i++) {
            assert_true(tries[i].ended);
            assert_int_equal(tries[i].result, 0);
            free(tries[i].memory);
        }
    }
    bench_destroy(b);
}

static void past_the_cache_nothing_is_read_ahead(void **state UNUSED)
{
    struct bench *b = bench_create(true, true);
    pthread_mutex_lock(&b->lock);
    posix_fadvise(b->fd, 0, 0, POSIX_FADV_DONTNEED);
    block_will_read(b->block, 0, DISK_BYTES);
    block_drain(b->block);
    pthread_mutex_unlock(&b->lock);
    assert_false(is_cached(b, 0, 4096));
    bench_destroy(b);
}

/* A block whose reads are at hand or not, as it is told. */
struct memory {
    struct block block;
    unsigned tries;
    int answer;
};

static int memory_read(struct block *block, const struct block_request *r UNUSED)
{
    struct memory *m = CONTAINER_OF(block, struct memory, block);
    m->tries++;
    return m->answer;
}

static unsigned tries_of(struct memory *m, unsigned reads)
{
    uint8_t found[512];
    struct iovec iovec = {found, sizeof found};
    unsigned before = m->tries;
    while (reads-- > 0) {
        unsigned tried = m->tries;
        int code = block_read_likely(&m->block, &(struct block_request){.op = BLOCK_READ, .size = 512, .iovecs = &iovec, .iovec_count = 1});
        assert_int_equal(code, m->tries > tried ? m->answer : -EAGAIN);
    }
    return m->tries - before;
}

/* Of a disk that is not in memory hardly any read is looked for there first; of one that is, or is again, each. */
static void misses_make_tries_rare(void **state UNUSED)
{
    static const struct block_ops ops = {.read_at_hand = memory_read};
    struct memory m = {.block = {.ops = &ops, .size_bytes = 512}};
    assert_int_equal(tries_of(&m, 100), 100);
    m.answer = -EAGAIN;
    assert_int_equal(tries_of(&m, 1 + 1 + 1 + 3 + 1 + 7), 3);
    assert_int_equal(tries_of(&m, 1 + 15 + 1 + 31 + 1), 3);
    assert_int_equal(tries_of(&m, BLOCK_UNTRIED_MAX), 0);
    assert_int_equal(tries_of(&m, 10 * (1 + BLOCK_UNTRIED_MAX)), 10);
    m.answer = 0;
    assert_int_equal(tries_of(&m, 1), 1);
    assert_int_equal(tries_of(&m, 100), 100);
    m.answer = -EAGAIN;
    assert_int_equal(tries_of(&m, 2), 1);
    m.answer = 0;
    assert_int_equal(tries_of(&m, 100), 100);
}

/* The space of discarded and of unmapped zeroed ranges goes back to the host. */
static void holes_give_space_back(void **state UNUSED)
{
    struct bench *b = bench_create(false, false);
    struct stat before, after;
    uint8_t *all = xcalloc(1, DISK_BYTES);
    memset(all, 1, DISK_BYTES);
    assert_int_equal(pwrite(b->fd, all, DISK_BYTES, 0), DISK_BYTES);
    fsync(b->fd);
    assert_int_equal(fstat(b->fd, &before), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct try t = {.bench = b};
        t.request = (struct block_request){.op = i == 0 ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES,
                                           .may_unmap = true,
                                           .offset = i * (uint64_t)DISK_BYTES / 2,
                                           .size = DISK_BYTES / 2,
                                           .done = try_done};
        pthread_mutex_lock(&b->lock);
        assert_int_equal(block_submit(b->block, &t.request), 0);
        block_drain(b->block);
        pthread_mutex_unlock(&b->lock);
        assert_int_equal(t.result, 0);
    }
    assert_int_equal(fstat(b->fd, &after), 0);
    assert_true(before.st_blocks >= SECTORS);
    assert_true(after.st_blocks < 64);
    free(all);
    bench_destroy(b);
}

/* Though something else has the open file for a moment longer: the kernel, or a child that is being started. */
static void a_closed_disk_is_free_at_once(void **state UNUSED)
{
    struct bench *b = bench_create(false, false);
    struct block_file_options options = {.name = "disk"};
    struct block *block;
    block_close(TAKE_PTR(b->block));
    int fd = open(b->path, O_RDWR | O_CLOEXEC), longer = dup(fd);
    assert_int_equal(block_file_from_fd(fd, &options, b->loop, &block, NULL), 0);
    assert_int_equal(block_file_open(b->path, &options, b->loop, &b->block, NULL), -EBUSY);
    block_close(block);
    assert_int_equal(block_file_open(b->path, &options, b->loop, &b->block, NULL), 0);
    close(longer);
    bench_destroy(b);
}

struct outcome {
    struct uring_op op;
    bool done;
    int result;
};
static void on_outcome(struct uring_op *op, int result)
{
    struct outcome *o = CONTAINER_OF(op, struct outcome, op);
    o->done = true;
    o->result = result;
}

/* Behind the sandbox's back nothing but disks' operations: not opening files, say. */
static void uring_takes_no_other_operations(void **state UNUSED)
{
    struct bench *b = bench_create(true, false);
    struct outcome o = {.op.done = on_outcome};
    if (b == NULL)
        skip();
    struct io_uring_sqe *e = uring_entry(b->uring, &o.op);
    io_uring_prep_openat(e, AT_FDCWD, "/dev/null", O_RDONLY, 0);
    io_uring_sqe_set_data(e, &o.op);
    uring_submit(b->uring);
    while (!o.done)
        uring_wait(b->uring);
    assert_int_equal(o.result, -EACCES);
    bench_destroy(b);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_follow_the_model),
        cmocka_unit_test(threads_direct_follow_the_model),
        cmocka_unit_test(uring_follows_the_model),
        cmocka_unit_test(uring_direct_follows_the_model),
        cmocka_unit_test(threads_take_more_than_fit),
        cmocka_unit_test(uring_takes_more_than_fit),
        cmocka_unit_test(uring_takes_no_other_operations),
        cmocka_unit_test(threads_see_the_file_shrink_and_grow),
        cmocka_unit_test(uring_sees_the_file_shrink_and_grow),
        cmocka_unit_test(threads_ask_before_each_call),
        cmocka_unit_test(uring_asks_before_each_call),
        cmocka_unit_test(threads_fail_a_flush_for_good),
        cmocka_unit_test(uring_fails_a_flush_for_good),
        cmocka_unit_test(threads_share_a_flush),
        cmocka_unit_test(uring_shares_a_flush),
        cmocka_unit_test(what_is_cached_is_at_hand),
        cmocka_unit_test(past_the_cache_nothing_is_at_hand),
        cmocka_unit_test(what_is_said_to_be_read_next_is_cached),
        cmocka_unit_test(what_is_said_to_be_read_next_is_cached_by_threads),
        cmocka_unit_test(threads_read_ahead_beside_requests),
        cmocka_unit_test(past_the_cache_nothing_is_read_ahead),
        cmocka_unit_test(misses_make_tries_rare),
        cmocka_unit_test(holes_give_space_back),
        cmocka_unit_test(a_closed_disk_is_free_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
