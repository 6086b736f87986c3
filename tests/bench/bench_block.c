/* What layers cost: random and sequential I/O of the VMM's disk drivers on one file, without a guest.
 *
 *     bench_block [--directory DIR] [--seconds N] [--direct]
 *
 * raw: a plain file. layer: the top has all. deep: 64 layers, each with a 64th of the clusters, scattered. clone: the
 * top is new above an image, so that each first write copies a cluster. Rounds take turns, the best of three counts. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/vmm/block/block_layers.h"

enum { QUEUE_DEPTH = 16, DEEP = 64, TRIES = 3 };
#define DISK_BYTES (UINT64_C(512) << 20)

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct uring *uring;
    char folder[256];
    unsigned seconds;
    bool direct;
};

struct flight {
    struct block *block;
    enum block_op op;
    size_t size;
    bool is_random;
    uint64_t next, ended, random;
    unsigned in_flight;
    bool stop;
    struct op {
        struct block_request request;
        struct iovec iovec;
        struct flight *flight;
    } ops[QUEUE_DEPTH];
};

static void die(const char *what, int code)
{
    fprintf(stderr, "bench_block: %s: %s\n", what, strerror(-code));
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void op_begin(struct op *op)
{
    struct flight *f = op->flight;
    uint64_t places = DISK_BYTES / f->size;
    f->random ^= f->random << 13, f->random ^= f->random >> 7, f->random ^= f->random << 17;
    op->request.offset = (f->is_random ? f->random % places : f->next++ % places) * f->size;
    int code = block_submit(f->block, &op->request);
    if (code < 0)
        die("submit", code);
    f->in_flight++;
}

static void op_done(struct block_request *request, int result)
{
    struct op *op = CONTAINER_OF(request, struct op, request);
    if (result < 0)
        die("request", result);
    op->flight->in_flight--;
    op->flight->ended++;
    if (!op->flight->stop)
        op_begin(op);
}

/* Requests a second, and CPU microseconds for each. */
static double measure(struct bench *b, struct block *block, enum block_op op, size_t size, bool is_random, double *ret_cpu_us)
{
    struct flight f = {.block = block, .op = op, .size = size, .is_random = is_random, .random = 88172645463325252ull};
    double begin = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    pthread_mutex_lock(&b->lock);
    block_plug(block);
    for (unsigned i = 0; i < QUEUE_DEPTH; i++) {
        struct op *o = &f.ops[i];
        o->flight = &f;
        o->iovec = (struct iovec){aligned_alloc(4096, size), size};
        memset(o->iovec.iov_base, (int)i + 1, size);
        o->request = (struct block_request){.op = op, .size = size, .iovecs = &o->iovec, .iovec_count = 1, .done = op_done};
        op_begin(o);
    }
    block_unplug(block);
    pthread_mutex_unlock(&b->lock);
    while (seconds_of(CLOCK_MONOTONIC) < begin + (double)b->seconds)
        io_loop_run_once(b->loop, 100);
    double elapsed = seconds_of(CLOCK_MONOTONIC) - begin;
    uint64_t ended = f.ended;
    *ret_cpu_us = (seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e6 / (double)MAX(ended, 1u);
    f.stop = true;
    pthread_mutex_lock(&b->lock);
    block_drain(block);
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < QUEUE_DEPTH; i++)
        free(f.ops[i].iovec.iov_base);
    return (double)ended / elapsed;
}

static void fill(struct block *block, uint64_t first, uint64_t step)
{
    void *memory = aligned_alloc(4096, LAYER_CLUSTER_BYTES);
    memset(memory, 0x33, LAYER_CLUSTER_BYTES);
    for (uint64_t at = first * LAYER_CLUSTER_BYTES; at < DISK_BYTES; at += step * LAYER_CLUSTER_BYTES) {
        int code = block_now(block, BLOCK_WRITE, at, memory, LAYER_CLUSTER_BYTES);
        if (code < 0)
            die("fill", code);
    }
    block_now(block, BLOCK_FLUSH, 0, NULL, 0);
    free(memory);
}

static struct block *layers_open(struct bench *b, const char *name, const char *base)
{
    struct block_file_options options = {.uring = b->uring, .direct = b->direct};
    struct layer_pool *pool;
    struct error err;
    struct block *block;
    CLEANUP_FREE char *path = xasprintf("%s/%s.disk", b->folder, name);
    int code = layer_pool_dir_create(b->folder, NULL, NULL, &pool, &err);
    if (code == 0)
        code = layer_disk_create(pool, name, DISK_BYTES, base, &err);
    if (code == 0)
        code = block_layers_open(path, &options, b->loop, &block, &err);
    if (code < 0)
        die(err.text, code);
    layer_pool_dir_destroy(pool);
    return block;
}

static struct block *raw_open(struct bench *b)
{
    struct block_file_options options = {.uring = b->uring, .direct = b->direct};
    struct error err;
    struct block *block;
    CLEANUP_FREE char *path = xasprintf("%s/plain.img", b->folder);
    if (file_write_atomic(path, "", 0, 0600, &err) < 0 || truncate(path, (off_t)DISK_BYTES) < 0 ||
        block_file_open(path, &options, b->loop, &block, &err) < 0)
        die(err.text, -1);
    fill(block, 0, 1);
    return block;
}

static void report(struct bench *b, const char *what, const char *names[2], struct block *blocks[2], enum block_op op,
                   size_t size, bool is_random)
{
    double best[2] = {0}, cpu[2] = {0};
    for (unsigned try = 0; try < TRIES; try++)
        for (unsigned i = 0; i < 2; i++) {
            double cpu_us, rate = measure(b, blocks[i], op, size, is_random, &cpu_us);
            cpu[i] = rate > best[i] ? cpu_us : cpu[i];
            best[i] = MAX(best[i], rate);
        }
    printf("%-24s %-9s %9.0f/s %6.2f us CPU   %-9s %9.0f/s %6.2f us CPU   %5.1f %%\n", what, names[0], best[0], cpu[0],
           names[1], best[1], cpu[1], best[1] * 100 / best[0]);
}

static void run(struct bench *b)
{
    struct block *raw = raw_open(b), *layer = layers_open(b, "layer", NULL), *deep = layers_open(b, "deep", NULL);
    char name[16];
    fill(layer, 0, 1);
    for (unsigned i = 0; i < DEEP; i++) {
        fill(deep, i, DEEP);
        snprintf(name, sizeof name, "s%u", i);
        if (i + 1 < DEEP && layer_disk_snapshot(block_layers_disk(deep), name, NULL) < 0)
            die("snapshot", -1);
    }
    struct block *one[] = {raw, layer}, *many[] = {layer, deep};
    const char *one_names[] = {"raw", "1 layer"}, *many_names[] = {"1 layer", "64 layers"};
    report(b, "random read 4 KiB", one_names, one, BLOCK_READ, 4096, true);
    report(b, "random write 4 KiB", one_names, one, BLOCK_WRITE, 4096, true);
    report(b, "sequential read 1 MiB", one_names, one, BLOCK_READ, 1 << 20, false);
    report(b, "sequential write 1 MiB", one_names, one, BLOCK_WRITE, 1 << 20, false);
    report(b, "random read 4 KiB", many_names, many, BLOCK_READ, 4096, true);
    report(b, "random read 64 KiB", many_names, many, BLOCK_READ, 1 << 16, true);
    report(b, "sequential read 64 KiB", many_names, many, BLOCK_READ, 1 << 16, false);
    report(b, "sequential read 1 MiB", many_names, many, BLOCK_READ, 1 << 20, false);
    block_close(deep);
    block_close(raw); /* its lock */
    double begin = seconds_of(CLOCK_MONOTONIC);
    struct block *clone = layers_open(b, "clone", "plain.img");
    printf("clone of an image and opening it: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    double cpu_us, rate = measure(b, clone, BLOCK_WRITE, 4096, true, &cpu_us);
    printf("random write 4 KiB, first writes of a clone: %.0f/s %.2f us CPU\n", rate, cpu_us);
    begin = seconds_of(CLOCK_MONOTONIC);
    if (layer_disk_snapshot(block_layers_disk(clone), "now", NULL) < 0)
        die("snapshot", -1);
    printf("snapshot, with what was not flushed: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    begin = seconds_of(CLOCK_MONOTONIC);
    if (layer_disk_snapshot(block_layers_disk(clone), "again", NULL) < 0)
        die("snapshot", -1);
    printf("snapshot, all flushed before: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    block_close(clone);
    block_close(layer);
}

int main(int argc, char **argv)
{
    struct bench b = {.seconds = 1};
    struct error err;
    const char *directory = "build";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--directory") == 0 && i + 1 < argc)
            directory = argv[++i];
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            b.seconds = (unsigned)atoi(argv[++i]);
        else if (strcmp(argv[i], "--direct") == 0)
            b.direct = true;
    }
    snprintf(b.folder, sizeof b.folder, "%s/bench-block-XXXXXX", directory);
    pthread_mutex_init(&b.lock, NULL);
    if (mkdtemp(b.folder) == NULL || io_loop_create(&b.lock, &b.loop, &err) < 0)
        die("cannot begin", -1);
    if (uring_create(b.loop, &b.uring, &err) < 0)
        printf("without io_uring: %s\n", err.text);
    run(&b);
    uring_destroy(b.uring);
    io_loop_destroy(b.loop);
    return file_remove_tree(directory, strrchr(b.folder, '/') + 1, &err) < 0;
}
