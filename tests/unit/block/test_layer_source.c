/* What fills a disk that is not whole, over a real socket: there from the beginning, later, gone and back, with blocks that
 * cannot be read for a while; what is drained meanwhile is asked for again; a disk is filled through it. THREADED. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/block_sync.h"
#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "block/layer_source.h"
#include "block/nbd_server.h"

enum { CLUSTERS = LAYER_SOURCE_CLUSTERS_MAX + 16, SOURCE_BYTES = CLUSTERS * LAYER_CLUSTER_BYTES + 4096, BIG = 12 * LAYER_CLUSTER_BYTES };

/* A disk whose reads fail while `broken`, and those below `bad_bytes` always. */
struct faulty {
    struct block block;
    struct block *below;
    atomic_bool broken;
    atomic_uint bad_bytes;
    atomic_uint asked, asked_first; /* reads of it, and of its first cluster */
};

static int faulty_submit(struct block *b, struct block_request *r)
{
    struct faulty *f = CONTAINER_OF(b, struct faulty, block);
    atomic_fetch_add(&f->asked, 1);
    atomic_fetch_add(&f->asked_first, r->offset == 0);
    bool bad = atomic_load(&f->broken) || r->offset < atomic_load(&f->bad_bytes);
    int code = bad ? -EIO : block_now(f->below, r->op, r->offset, r->iovecs[0].iov_base, r->size);
    if (code == 0)
        block_complete(b, r);
    return code;
}

static void faulty_nothing(struct block *b UNUSED)
{
}

struct bed {
    char directory[32];
    char *path;
    struct faulty faulty;
    struct nbd_export export;
    struct nbd_server *server;
    pthread_t thread;
    uint8_t *content;
    struct block *source;
};

static void *serve(void *server)
{
    nbd_server_run(server);
    return NULL;
}

static void server_start(struct bed *bed)
{
    struct error err;
    const struct nbd_server_options options = {.socket_path = bed->path, .exports = &bed->export, .export_count = 1};
    if (nbd_server_create(&options, &bed->server, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(pthread_create(&bed->thread, NULL, serve, bed->server), 0);
}

static void server_end(struct bed *bed)
{
    nbd_server_stop(bed->server);
    pthread_join(bed->thread, NULL);
    nbd_server_destroy(TAKE_PTR(bed->server));
}

static struct bed *bed_create(bool served)
{
    static const struct block_ops ops = {.submit = faulty_submit, .drain = faulty_nothing, .close = faulty_nothing};
    struct bed *bed = NEW(struct bed);
    struct error err;
    strcpy(bed->directory, "/tmp/drover-source-XXXXXX");
    assert_non_null(mkdtemp(bed->directory));
    bed->path = xasprintf("%s/socket", bed->directory);
    bed->content = xcalloc(1, SOURCE_BYTES);
    for (size_t i = 0; i < SOURCE_BYTES; i++)
        bed->content[i] = i / LAYER_CLUSTER_BYTES == 7 ? 0 : (uint8_t)(i * 2654435761u >> 13 ^ i / 4096);
    int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && pwrite(fd, bed->content, SOURCE_BYTES, 0) == SOURCE_BYTES);
    assert_int_equal(block_sync_from_fd(fd, "disk", true, &bed->faulty.below, NULL), 0);
    bed->faulty.block = (struct block){.ops = &ops, .size_bytes = SOURCE_BYTES, .block_bytes = 4096, .read_only = true};
    bed->export = (struct nbd_export){.name = "root", .block = &bed->faulty.block, .access = NBD_ACCESS_READ};
    if (served)
        server_start(bed);
    const struct layer_source_options options = {
        .socket_path = bed->path, .export_name = "root", .size_bytes = SOURCE_BYTES};
    if (layer_source_open(&options, &bed->source, &err) < 0)
        fail_msg("%s", err.text);
    return bed;
}

static void bed_destroy(struct bed *bed)
{
    block_close(bed->source);
    if (bed->server != NULL)
        server_end(bed);
    block_close(bed->faulty.below);
    unlink(bed->path);
    assert_int_equal(rmdir(bed->directory), 0);
    free(bed->path);
    free(bed->content);
    free(bed);
}

/* Until it has come: each try waits a moment by itself. */
static void read_until_it_comes(struct bed *bed, uint64_t offset, size_t size)
{
    uint8_t *data = xcalloc(1, size);
    int code;
    do
        code = block_now(bed->source, BLOCK_READ, offset, data, size);
    while (code == -EAGAIN);
    assert_int_equal(code, 0);
    assert_memory_equal(data, bed->content + offset, size);
    free(data);
}

static void what_is_served_is_read(void **state UNUSED)
{
    struct bed *bed = bed_create(true);
    uint8_t byte[512];
    read_until_it_comes(bed, 0, 512);
    read_until_it_comes(bed, LAYER_CLUSTER_BYTES - 512, 1024);
    read_until_it_comes(bed, SOURCE_BYTES - 4096, 4096); /* less than a cluster */
    read_until_it_comes(bed, 512, SOURCE_BYTES - 512);
    for (unsigned i = 0; i < 200; i++) /* more than it keeps, there and back */
        read_until_it_comes(bed, (uint64_t)(i * 37 % (2 * CLUSTERS)) * (LAYER_CLUSTER_BYTES / 2), 4096);
    assert_int_equal(block_now(bed->source, BLOCK_WRITE, 0, byte, sizeof byte), -EROFS);
    assert_false(layer_source_is_stuck(bed->source, NULL));
    bed_destroy(bed);
}

/* Without a server nothing fails: what is drained is to be asked for again, and comes when there is one. */
static void without_a_server_reads_wait(void **state UNUSED)
{
    struct bed *bed = bed_create(false);
    struct error why;
    uint8_t data[4096];
    assert_int_equal(block_now(bed->source, BLOCK_READ, 0, data, sizeof data), -EAGAIN);
    assert_true(layer_source_is_stuck(bed->source, &why));
    assert_true(why.text[0] != '\0');
    server_start(bed);
    read_until_it_comes(bed, 0, BIG);
    server_end(bed);
    read_until_it_comes(bed, 0, 4096); /* it is still in memory */
    assert_int_equal(block_now(bed->source, BLOCK_READ, BIG * 2, data, sizeof data), -EAGAIN);
    assert_int_equal(block_now(bed->source, BLOCK_READ, BIG * 2, data, sizeof data), -EAGAIN);
    server_start(bed);
    read_until_it_comes(bed, BIG * 2, BIG);
    bed_destroy(bed);
}

static void what_cannot_be_read_is_asked_for_again(void **state UNUSED)
{
    struct bed *bed = bed_create(true);
    struct error why = {.code = 0};
    uint8_t data[4096];
    atomic_store(&bed->faulty.broken, true);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(block_now(bed->source, BLOCK_READ, 3 * LAYER_CLUSTER_BYTES, data, sizeof data), -EAGAIN);
    while (!layer_source_is_stuck(bed->source, &why) || strstr(why.text, "196608") == NULL) /* on a busy machine not in three tries */
        assert_int_equal(block_now(bed->source, BLOCK_READ, 3 * LAYER_CLUSTER_BYTES, data, sizeof data), -EAGAIN);
    atomic_store(&bed->faulty.broken, false);
    read_until_it_comes(bed, 3 * LAYER_CLUSTER_BYTES, 4096);
    assert_false(layer_source_is_stuck(bed->source, NULL));
    bed_destroy(bed);
}

/* A part of the server's store is lost, and somebody has looked all over it: what is there can be read all the same. */
static void more_that_cannot_be_read_than_it_keeps(void **state UNUSED)
{
    struct bed *bed = bed_create(true);
    uint8_t *data = xcalloc(1, 8 * LAYER_CLUSTER_BYTES);
    int code = -EAGAIN;
    atomic_store(&bed->faulty.bad_bytes, (CLUSTERS - 8) * LAYER_CLUSTER_BYTES);
    for (unsigned c = 0; c + 8 < CLUSTERS; c += 8)
        assert_int_equal(block_now(bed->source, BLOCK_READ, (uint64_t)c * LAYER_CLUSTER_BYTES, data, 8 * LAYER_CLUSTER_BYTES), -EAGAIN);
    for (unsigned i = 0; i < 200 && code == -EAGAIN; i++)
        code = block_now(bed->source, BLOCK_READ, (CLUSTERS - 2) * UINT64_C(65536), data, 4096);
    assert_int_equal(code, 0);
    assert_memory_equal(data, bed->content + (CLUSTERS - 2) * 65536, 4096);
    free(data);
    bed_destroy(bed);
}

static void drained(struct block_request *r UNUSED, int result)
{
    assert_int_equal(result, -EAGAIN);
}

/* Reads that together want more than it keeps, and nothing can be read: each is tried again when its time has come, and not whenever
 * another one has failed. */
static void what_cannot_be_read_is_not_asked_for_all_the_time(void **state UNUSED)
{
    enum { READS = CLUSTERS / 8 };
    struct bed *bed = bed_create(true);
    struct block_request requests[READS] = {{.op = BLOCK_FLUSH}};
    uint8_t *data = xcalloc(READS, 8 * LAYER_CLUSTER_BYTES);
    struct iovec iovecs[READS];
    atomic_store(&bed->faulty.broken, true);
    for (unsigned i = 0; i < READS; i++) {
        iovecs[i] = (struct iovec){data + (size_t)i * 8 * LAYER_CLUSTER_BYTES, 8 * LAYER_CLUSTER_BYTES};
        requests[i] = (struct block_request){.op = BLOCK_READ, .offset = i * UINT64_C(8) * LAYER_CLUSTER_BYTES, .size = iovecs[i].iov_len,
                                             .iovecs = &iovecs[i], .iovec_count = 1, .done = drained};
        assert_int_equal(block_submit(bed->source, &requests[i]), 0);
    }
    while (atomic_load(&bed->faulty.asked_first) < 2) {
        layer_source_run(bed->source);
        sched_yield();
    }
    assert_in_range(atomic_load(&bed->faulty.asked), 2, 3 * LAYER_SOURCE_CLUSTERS_MAX);
    block_drain(bed->source);
    free(data);
    bed_destroy(bed);
}

/* It ends at once, with and without a server, and with one that has a smaller disk. */
static void it_ends_at_any_time(void **state UNUSED)
{
    struct block *b;
    uint8_t data[4096];
    bed_destroy(bed_create(true));
    bed_destroy(bed_create(false));
    struct bed *bed = bed_create(true);
    const struct layer_source_options options = {
        .socket_path = bed->path, .export_name = "root", .size_bytes = SOURCE_BYTES + 512};
    assert_int_equal(layer_source_open(&options, &b, NULL), 0);
    assert_int_equal(block_now(b, BLOCK_READ, 0, data, sizeof data), -EAGAIN);
    block_close(b);
    char longest[200];
    struct error err;
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(layer_source_open(&(struct layer_source_options){.socket_path = longest, .export_name = "x", .size_bytes = 512}, &b,
                                       &err), -ENAMETOOLONG);
    bed_destroy(bed);
}

/* ---- a disk that is filled ---- */

static int source_open(void *arg, const char *name, uint64_t size_bytes, struct block **ret_block, struct error *err)
{
    const struct bed *bed = arg;
    assert_string_equal(name, "restore");
    const struct layer_source_options options = {.socket_path = bed->path, .export_name = "root", .size_bytes = size_bytes};
    return layer_source_open(&options, ret_block, err);
}

static void on_filled(void *arg, int result)
{
    *(int *)arg = result;
}

static void disk_now(struct layer_disk *disk, enum block_op op, uint64_t offset, void *data, size_t size)
{
    int code;
    do
        code = block_now(&disk->chain->block, op, offset, data, size);
    while (code == -EAGAIN);
    assert_int_equal(code, 0);
}

static void a_disk_is_used_and_filled_while_its_server_comes_and_goes(void **state UNUSED)
{
    struct bed *bed = bed_create(false);
    char pool_path[] = "/tmp/drover-source-pool-XXXXXX";
    struct layer_pool *pool;
    struct layer_disk *disk;
    struct error err;
    uint8_t *data = xcalloc(1, SOURCE_BYTES);
    int result = 1;
    assert_non_null(mkdtemp(pool_path));
    assert_int_equal(layer_pool_dir_create(pool_path, NULL, NULL, &pool, &err), 0);
    assert_int_equal(layer_disk_create_from(pool, "root", "restore", SOURCE_BYTES, &err), 0);
    assert_int_equal(layer_disk_open(pool, "root", false, 0, &disk, &err), -ENODATA);
    pool->source = source_open;
    pool->source_arg = bed;
    if (layer_disk_open(pool, "root", false, 0, &disk, &err) < 0)
        fail_msg("%s", err.text);
    assert_false(layer_disk_is_whole(disk));
    memset(bed->content, 0x5a, LAYER_CLUSTER_BYTES); /* whole clusters need no server */
    disk_now(disk, BLOCK_WRITE, 0, bed->content, LAYER_CLUSTER_BYTES);
    assert_int_equal(layer_disk_fill(disk, on_filled, &result, &err), 1);
    layer_chain_progress(disk->chain);
    server_start(bed);
    memset(bed->content + 3 * LAYER_CLUSTER_BYTES + 512, 0x77, 1024);
    disk_now(disk, BLOCK_WRITE, 3 * LAYER_CLUSTER_BYTES + 512, bed->content + 3 * LAYER_CLUSTER_BYTES + 512, 1024);
    disk_now(disk, BLOCK_READ, 20 * LAYER_CLUSTER_BYTES, data, LAYER_CLUSTER_BYTES);
    assert_memory_equal(data, bed->content + 20 * LAYER_CLUSTER_BYTES, LAYER_CLUSTER_BYTES);
    server_end(bed);
    layer_disk_close(disk); /* in the middle, and opened again */
    if (layer_disk_open(pool, "root", false, 0, &disk, &err) < 0)
        fail_msg("%s", err.text);
    server_start(bed);
    for (result = -EAGAIN; result == -EAGAIN;) {
        result = 1;
        assert_int_equal(layer_disk_fill(disk, on_filled, &result, &err), 1);
        while (result == 1)
            layer_chain_progress(disk->chain);
    }
    assert_int_equal(result, 0);
    assert_true(layer_disk_is_whole(disk));
    assert_int_equal(layer_disk_fill(disk, on_filled, &result, &err), 0);
    server_end(bed);
    assert_int_equal(layer_map_get(&layer_chain_top(disk->chain)->map, 7), LAYER_ZERO); /* took no place */
    layer_disk_close(disk);
    pool->source = NULL;
    assert_int_equal(layer_disk_open(pool, "root", false, 0, &disk, &err), 0);
    disk_now(disk, BLOCK_READ, 0, data, SOURCE_BYTES);
    assert_memory_equal(data, bed->content, SOURCE_BYTES);
    layer_disk_close(disk);
    assert_int_equal(layer_disk_delete(pool, "root", &err), 0);
    assert_int_equal(layer_disk_collect(pool, &err), 0);
    layer_pool_dir_destroy(pool);
    CLEANUP_FREE char *lock = xasprintf("rm -rf %s", pool_path);
    assert_int_equal(system(lock), 0);
    free(data);
    bed_destroy(bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_served_is_read),
        cmocka_unit_test(without_a_server_reads_wait),
        cmocka_unit_test(what_cannot_be_read_is_asked_for_again),
        cmocka_unit_test(more_that_cannot_be_read_than_it_keeps),
        cmocka_unit_test(what_cannot_be_read_is_not_asked_for_all_the_time),
        cmocka_unit_test(it_ends_at_any_time),
        cmocka_unit_test(a_disk_is_used_and_filled_while_its_server_comes_and_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
