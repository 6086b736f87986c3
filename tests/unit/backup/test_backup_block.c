/* A backup's disk as a block: what is read is what was backed up, many requests at once; where the store fails only what
 * is in it fails, in words, and reads again when the store is back. THREADED: the block has threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "backup/backup_block.h"
#include "backup/backup_writer.h"
#include "tests/unit/backup/memory_source.h"
#include "tests/unit/backup/memory_store.h"
#include "tests/unit/unit_seed.h"

enum { CHUNK = REPO_CHUNK_BYTES_MIN, SIZE = 30 * CHUNK + 700, ROUNDED = 30 * CHUNK + 1024, REQUESTS = 20 };

struct world {
    struct memory_store store;
    struct repo repo;
    struct backup_reader *reader;
    struct block *block;
    uint8_t *data;
    unsigned complaints;
    char said[512];
};

static void complain(void *arg, const struct error *err)
{
    struct world *w = arg;
    w->complaints++;
    snprintf(w->said, sizeof w->said, "%s", err->text);
}

static void world_open(struct world *w, unsigned *seed)
{
    struct memory_source s;
    struct backup_writer *writer;
    struct manifest m;
    const struct backup_writer_options o = {.vm_name = "a", .threads = 2};
    const struct backup_block_options options = {.threads = 3, .complain = complain, .complain_arg = w};
    *w = (struct world){.data = xcalloc(1, ROUNDED)};
    memory_store_init(&w->store);
    assert_int_equal(repo_init(&w->store.store, false, CHUNK, NULL, NULL), 0);
    assert_int_equal(repo_open(&w->store.store, NULL, &w->repo, NULL), 0);
    for (size_t at = 0; at < SIZE; at++) /* chunks 10 to 19 are zeroes */
        w->data[at] = at / CHUNK >= 10 && at / CHUNK < 20 ? 0 : (uint8_t)rand_r(seed);
    memory_source_init(&s, w->data, SIZE, NULL);
    assert_int_equal(backup_writer_create(&w->repo, &o, &writer, NULL), 0);
    assert_int_equal(backup_writer_disk(writer, "root", &s.source, NULL), 0);
    assert_int_equal(backup_writer_commit(writer, &m, NULL), 0);
    backup_writer_destroy(writer);
    /* a cache of one frame, so that most reads ask the store */
    assert_int_equal(backup_reader_open(&w->repo, m.head.id, 1, &w->reader, NULL), 0);
    manifest_finish(&m);
    assert_int_equal(backup_block_open(w->reader, 0, &options, &w->block, NULL), 0);
}

static void world_close(struct world *w)
{
    block_close(w->block);
    backup_reader_close(w->reader);
    repo_close(&w->repo);
    memory_store_finish(&w->store);
    free(w->data);
}

struct request {
    struct block_request request;
    struct iovec iovecs[2];
    uint8_t *data;
    unsigned ended;
};

static void request_done(struct block_request *request, int result)
{
    struct request *r = CONTAINER_OF(request, struct request, request);
    r->ended++;
    assert_int_equal(result, 0);
}

static void test_reads(void **state UNUSED)
{
    unsigned seed = (unsigned)unit_seed();
    struct world w;
    struct request *requests = xcalloc(REQUESTS, sizeof *requests);
    world_open(&w, &seed);
    assert_int_equal(w.block->size_bytes, ROUNDED);
    assert_true(w.block->read_only);
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < REQUESTS; i++) {
            struct request *r = &requests[i];
            uint64_t sectors = ROUNDED / 512, first = (uint64_t)rand_r(&seed) % sectors;
            uint64_t size = (1 + (uint64_t)rand_r(&seed) % MIN(sectors - first, (uint64_t)400)) * 512;
            r->data = malloc(size);
            r->ended = 0;
            r->iovecs[0] = (struct iovec){r->data, size - 100};
            r->iovecs[1] = (struct iovec){r->data + size - 100, 100};
            r->request = (struct block_request){.op = BLOCK_READ,
                                                .offset = first * 512,
                                                .size = size,
                                                .iovecs = r->iovecs,
                                                .iovec_count = 2,
                                                .done = request_done};
            assert_int_equal(block_submit(w.block, &r->request), 0);
        }
        block_drain(w.block);
        for (unsigned i = 0; i < REQUESTS; i++) {
            assert_int_equal(requests[i].ended, 1);
            assert_memory_equal(requests[i].data, w.data + requests[i].request.offset, requests[i].request.size);
            free(requests[i].data);
        }
    }
    assert_int_equal(block_now(w.block, BLOCK_WRITE, 0, w.data, 512), -EROFS);
    assert_int_equal(block_now(w.block, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(w.complaints, 0);
    free(requests);
    world_close(&w);
}

static void test_holes(void **state UNUSED)
{
    struct world w;
    uint64_t start, end;
    unsigned seed = 1;
    world_open(&w, &seed);
    assert_int_equal(block_next_data(w.block, 0, &start, &end), 1);
    assert_int_equal(start, 0);
    assert_int_equal(end, 10 * CHUNK);
    assert_int_equal(block_next_data(w.block, 10 * CHUNK + 512, &start, &end), 1);
    assert_int_equal(start, 20 * CHUNK);
    assert_int_equal(end, ROUNDED);
    assert_int_equal(block_next_data(w.block, ROUNDED - 512, &start, &end), 1);
    assert_int_equal(block_next_data(w.block, ROUNDED, &start, &end), 0);
    world_close(&w);
}

static void test_store_fails(void **state UNUSED)
{
    struct world w;
    unsigned seed = 2;
    uint8_t *out = xcalloc(1, CHUNK);
    world_open(&w, &seed);
    assert_int_equal(block_now(w.block, BLOCK_READ, 0, out, CHUNK), 0); /* the lists are in memory from here on */
    w.store.dies_at = w.store.calls + 1;
    assert_int_equal(block_now(w.block, BLOCK_READ, 25 * CHUNK, out, CHUNK), -EIO);
    assert_int_equal(w.complaints, 1);
    assert_non_null(strstr(w.said, "disk root"));
    assert_non_null(strstr(w.said, "the store is dead"));
    assert_int_equal(block_now(w.block, BLOCK_READ, 12 * CHUNK, out, CHUNK), 0); /* zeroes need no store */
    w.store.dies_at = 0;
    assert_int_equal(block_now(w.block, BLOCK_READ, 25 * CHUNK, out, CHUNK), 0);
    assert_memory_equal(out, w.data + 25 * CHUNK, CHUNK);
    assert_int_equal(w.complaints, 1);
    free(out);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_holes),
                                       cmocka_unit_test(test_store_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
