/* What layers cost: random and sequential I/O of the VMM's disk drivers on one file, without a guest.
 *
 *     bench_block [--directory DIR] [--seconds N] [--direct] [--submit] [--rows WORDS] [--depth N]
 *
 * Reads are made as the device makes them (compute/vmm/devices/blk): what is at hand is read there and then, the rest
 * is submitted; --submit: all are. --rows: those alone that have WORDS in their name. --depth: requests at once (16).
 *
 * Cold rows: nothing of the files is in the page cache when a slice begins (POSIX_FADV_DONTNEED, of these files alone), two
 * requests are made at once, as a guest's reading ahead does, and the median slice counts, for a device may do more for a moment than it can.
 *
 * raw: a plain file. layer: the top has all. deep: 64 layers, each with a 64th of the clusters, scattered. clone: the
 * top is new above an image, so that each first write copies a cluster. What is compared takes turns in slices of
 * a twentieth of the seconds, and the best of each counts: what else the machine does makes them only worse. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/vmm/block/block_layers.h"

enum { QUEUE_DEPTH = 16, COLD_DEPTH = 2, DEEP = 64, SLICES = 20 };
#define DISK_BYTES (UINT64_C(512) << 20)

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct uring *uring;
    char folder[256];
    double seconds;
    bool direct, submit;
    unsigned depth;
    const char *rows;
};

enum row_kind { ROW_SEQUENTIAL, ROW_RANDOM, ROW_COLD /* sequential */ };

struct flight {
    struct block *block;
    enum block_op op;
    size_t size;
    bool is_random;
    uint64_t next, ended, random;
    unsigned in_flight, idle;
    bool stop, submit;
    struct op {
        struct block_request request;
        bool is_idle; /* was done at hand: the next begins with the next round of the loop, as a guest's next notification */
        struct iovec iovec;
        struct flight *flight;
    } ops[QUEUE_DEPTH];
};

static _Noreturn void die(const char *what, int code)
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
    if (op->request.op == BLOCK_READ && !f->submit && block_read_likely(f->block, &op->request) == 0) {
        f->ended++;
        f->idle++;
        op->is_idle = true;
        return;
    }
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

static void idle_begin(struct bench *b, struct flight *f)
{
    pthread_mutex_lock(&b->lock);
    block_plug(f->block);
    f->idle = 0;
    for (unsigned i = 0; i < QUEUE_DEPTH; i++)
        if (f->ops[i].is_idle) {
            f->ops[i].is_idle = false;
            op_begin(&f->ops[i]);
        }
    block_unplug(f->block);
    pthread_mutex_unlock(&b->lock);
}

/* Requests a second, and CPU microseconds for each, in slice @number: other slices go to other places. */
static double measure(struct bench *b, struct block *block, enum block_op op, size_t size, enum row_kind kind, unsigned number,
                      double *ret_cpu_us)
{
    struct flight f = {.block = block,
                       .op = op,
                       .size = size,
                       .is_random = kind == ROW_RANDOM,
                       .submit = b->submit,
                       .next = number * DISK_BYTES / SLICES / size,
                       .random = 88172645463325252ull + number};
    for (unsigned i = 0; i < QUEUE_DEPTH; i++) {
        struct op *o = &f.ops[i];
        o->flight = &f;
        o->iovec = (struct iovec){aligned_alloc(4096, size), size};
        memset(o->iovec.iov_base, (int)i + 1, size);
        o->request = (struct block_request){.op = op, .size = size, .iovecs = &o->iovec, .iovec_count = 1, .done = op_done};
        o->is_idle = i < (kind == ROW_COLD ? MIN(b->depth, (unsigned)COLD_DEPTH) : b->depth);
    }
    double begin = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID), end = begin + b->seconds / SLICES;
    idle_begin(b, &f);
    while (seconds_of(CLOCK_MONOTONIC) < end && (kind != ROW_COLD || f.ended < DISK_BYTES / size)) {
        io_loop_run_once(b->loop, f.idle > 0 ? 0 : 100);
        idle_begin(b, &f);
    }
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

/* All of it is in the page cache, whatever else the host has done with its memory meanwhile. */
static void warm(struct bench *b, struct block *block)
{
    enum { BYTES = 1 << 20 };
    void *memory = aligned_alloc(4096, BYTES);
    pthread_mutex_lock(&b->lock);
    for (uint64_t at = 0; at < DISK_BYTES && !b->direct; at += BYTES)
        if (block_read_at_hand(block, &(struct block_request){.op = BLOCK_READ, .offset = at, .size = BYTES, .iovecs = &(struct iovec){memory, BYTES}, .iovec_count = 1}) < 0 &&
            block_now(block, BLOCK_READ, at, memory, BYTES) < 0)
            die("read", -EIO);
    pthread_mutex_unlock(&b->lock);
    free(memory);
}

/* Nothing of @chain's files is in the page cache. */
static void cool(struct bench *b, const struct layer_chain *chain)
{
    for (unsigned i = 0; i < chain->count; i++) {
        CLEANUP_FREE char *path = xasprintf("%s/%s.raw", b->folder, chain->layers[i]->name);
        CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || fdatasync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            die(path, -errno);
    }
}

struct slice {
    double rate, cpu_us;
};

static int slower_first(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    return (x->rate > y->rate) - (x->rate < y->rate);
}

/* @chains: of cold rows, of which @blocks are. */
static void report(struct bench *b, const char *what, const char *names[2], struct block *blocks[2], enum block_op op,
                   size_t size, enum row_kind kind, const struct layer_chain *const chains[2])
{
    struct slice slices[2][SLICES];
    double rate[2], cpu[2];
    if (b->rows != NULL && strstr(what, b->rows) == NULL)
        return;
    for (unsigned try = 0; try < SLICES; try++)
        for (unsigned i = 0; i < 2; i++) {
            if (kind == ROW_COLD)
                cool(b, chains[i]);
            else if (op == BLOCK_READ && try % (SLICES / 4) == 0)
                warm(b, blocks[i]);
            slices[i][try].rate = measure(b, blocks[i], op, size, kind, try, &slices[i][try].cpu_us);
        }
    for (unsigned i = 0; i < 2; i++) {
        qsort(slices[i], SLICES, sizeof *slices[i], slower_first);
        const struct slice *s = &slices[i][kind == ROW_COLD ? SLICES / 2 : SLICES - 1];
        rate[i] = s->rate;
        cpu[i] = s->cpu_us;
    }
    printf("%-24s %-9s %9.0f/s %6.2f us CPU   %-9s %9.0f/s %6.2f us CPU   %5.1f %%, by CPU %5.1f %%\n", what, names[0], rate[0], cpu[0],
           names[1], rate[1], cpu[1], rate[1] * 100 / rate[0], cpu[0] * 100 / cpu[1]);
}

/* The files of a disk's layers by bare preadv, one for each cluster: what of its cost is the kernel's. Cluster i is in file
 * i % count, as run() has filled them. At hand only. */
struct bare {
    struct block block;
    int fds[DEEP];
    unsigned count;
};

static int bare_read(struct block *block, const struct block_request *r)
{
    const struct bare *bare = CONTAINER_OF(block, struct bare, block);
    uint64_t end = r->offset + r->size, stop;
    for (uint64_t at = r->offset; at < end; at = stop) {
        uint64_t cluster = at / LAYER_CLUSTER_BYTES;
        stop = bare->count == 1 ? end : MIN(end, (cluster + 1) * LAYER_CLUSTER_BYTES);
        struct iovec iovec = {(uint8_t *)r->iovecs[0].iov_base + (at - r->offset), stop - at};
        if (preadv(bare->fds[cluster % bare->count], &iovec, 1, (off_t)at) != (ssize_t)iovec.iov_len)
            return -EIO;
    }
    return 0;
}

static int bare_submit(struct block *block UNUSED, struct block_request *r UNUSED)
{
    return -EOPNOTSUPP;
}

static void bare_drain(struct block *block UNUSED)
{
}

static void bare_close(struct block *block)
{
    struct bare *bare = CONTAINER_OF(block, struct bare, block);
    for (unsigned i = 0; i < bare->count; i++)
        close_fd(&bare->fds[i]);
    free(bare);
}

static struct block *bare_open(struct bench *b, struct block *layers)
{
    static const struct block_ops ops = {.submit = bare_submit, .read_at_hand = bare_read, .drain = bare_drain, .close = bare_close};
    const struct layer_chain *chain = block_layers_disk(layers)->chain;
    struct bare *bare = NEW(struct bare);
    bare->block = (struct block){.ops = &ops, .size_bytes = DISK_BYTES, .block_bytes = 4096};
    for (; bare->count < chain->count; bare->count++) {
        CLEANUP_FREE char *path = xasprintf("%s/%s.raw", b->folder, chain->layers[bare->count]->name);
        bare->fds[bare->count] = open(path, O_RDONLY | O_CLOEXEC);
        if (bare->fds[bare->count] < 0)
            die(path, -errno);
    }
    return &bare->block;
}

static void cold_rows(struct bench *b, const char *const words[3], const char *names[2], struct block *blocks[2],
                      const struct layer_chain *const chains[2])
{
    static const size_t sizes[] = {1 << 16, 1 << 17, 1 << 20};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++)
        report(b, words[i], names, blocks, BLOCK_READ, sizes[i], ROW_COLD, chains);
}

static void run_bare(struct bench *b, struct block *layer, struct block *deep)
{
    const struct layer_chain *chains[] = {block_layers_disk(layer)->chain, block_layers_disk(deep)->chain};
    static const char *const cold[] = {"bare cold 64 KiB", "bare cold 128 KiB", "bare cold 1 MiB"};
    struct block *files[] = {bare_open(b, layer), bare_open(b, deep)};
    const char *names[] = {"1 file", "64 files"};
    report(b, "bare random read 4 KiB", names, files, BLOCK_READ, 4096, ROW_RANDOM, NULL);
    report(b, "bare random read 64 KiB", names, files, BLOCK_READ, 1 << 16, ROW_RANDOM, NULL);
    report(b, "bare sequential 64 KiB", names, files, BLOCK_READ, 1 << 16, ROW_SEQUENTIAL, NULL);
    report(b, "bare sequential 1 MiB", names, files, BLOCK_READ, 1 << 20, ROW_SEQUENTIAL, NULL);
    cold_rows(b, cold, names, files, chains);
    block_close(files[0]);
    block_close(files[1]);
}

static void run(struct bench *b)
{
    struct block *raw = raw_open(b), *layer = layers_open(b, "layer", NULL), *deep = layers_open(b, "deep", NULL);
    char name[16];
    for (unsigned i = 0; i < DEEP; i++)
        fill(layer, i, DEEP);
    for (unsigned i = 0; i < DEEP; i++) {
        fill(deep, i, DEEP);
        snprintf(name, sizeof name, "s%u", i);
        if (i + 1 < DEEP && layer_disk_snapshot(block_layers_disk(deep), name, NULL) < 0)
            die("snapshot", -1);
    }
    struct block *one[] = {raw, layer}, *many[] = {layer, deep};
    const char *one_names[] = {"raw", "1 layer"}, *many_names[] = {"1 layer", "64 layers"};
    report(b, "random read 4 KiB", one_names, one, BLOCK_READ, 4096, ROW_RANDOM, NULL);
    report(b, "random write 4 KiB", one_names, one, BLOCK_WRITE, 4096, ROW_RANDOM, NULL);
    report(b, "sequential read 1 MiB", one_names, one, BLOCK_READ, 1 << 20, ROW_SEQUENTIAL, NULL);
    report(b, "sequential write 1 MiB", one_names, one, BLOCK_WRITE, 1 << 20, ROW_SEQUENTIAL, NULL);
    report(b, "random read 4 KiB", many_names, many, BLOCK_READ, 4096, ROW_RANDOM, NULL);
    report(b, "random read 64 KiB", many_names, many, BLOCK_READ, 1 << 16, ROW_RANDOM, NULL);
    report(b, "sequential read 64 KiB", many_names, many, BLOCK_READ, 1 << 16, ROW_SEQUENTIAL, NULL);
    report(b, "sequential read 1 MiB", many_names, many, BLOCK_READ, 1 << 20, ROW_SEQUENTIAL, NULL);
    if (!b->direct) {
        const struct layer_chain *chains[] = {block_layers_disk(layer)->chain, block_layers_disk(deep)->chain};
        static const char *const cold[] = {"cold sequential 64 KiB", "cold sequential 128 KiB", "cold sequential 1 MiB"};
        cold_rows(b, cold, many_names, many, chains);
    }
    if (!b->direct && !b->submit)
        run_bare(b, layer, deep);
    block_close(deep);
    block_close(raw); /* its lock */
    double begin = seconds_of(CLOCK_MONOTONIC);
    struct block *clone = layers_open(b, "clone", "plain.img");
    printf("clone of an image and opening it: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    double cpu_us, rate = measure(b, clone, BLOCK_WRITE, 4096, ROW_RANDOM, 0, &cpu_us);
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
    struct bench b = {.seconds = 1, .depth = QUEUE_DEPTH};
    struct error err;
    const char *directory = "build";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--directory") == 0 && i + 1 < argc)
            directory = argv[++i];
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            b.seconds = atof(argv[++i]);
        else if (strcmp(argv[i], "--direct") == 0)
            b.direct = true;
        else if (strcmp(argv[i], "--submit") == 0)
            b.submit = true;
        else if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc)
            b.rows = argv[++i];
        else if (strcmp(argv[i], "--depth") == 0 && i + 1 < argc)
            b.depth = (unsigned)strtoul(argv[++i], NULL, 10);
    }
    b.depth = MIN(MAX(b.depth, 1u), (unsigned)QUEUE_DEPTH);
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
