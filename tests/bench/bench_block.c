/* What layers cost: random and sequential I/O of the VMM's disk drivers on one file, without a guest.
 *
 *     bench_block [--directory DIR] [--seconds N] [--direct] [--submit] [--rows WORDS] [--depth N] [--threads]
 *
 * Reads are made as the device makes them (compute/vmm/devices/blk): what is at hand is read there and then, the rest
 * is submitted; --submit: all are. --rows: those alone that have WORDS in their name. --depth: requests at once (16).
 * --threads: without io_uring.
 *
 * Cold rows: nothing of the files is in the page cache when a slice begins (POSIX_FADV_DONTNEED, of these files alone), two
 * requests are made at once, as a guest's reading ahead does, and the median of COLD_SLICES slices of a third of the seconds counts, for a
 * device may do more for a moment than it can. "device": what it has to give of the 64 layers: the same clusters in the same order past
 * the page cache, with AT_ONCE_BYTES asked for at any time, as much as is read ahead at most. It is the ceiling of this machine.
 *
 * raw: a plain file. layer: the top has all. deep: 64 layers, each with a 64th of the clusters, scattered: the worst there is. typical: 64
 * layers, the lowest has all, and each above it what a guest wrote between two snapshots: TYPICAL_BYTES in writes of 4 KiB to 1 MiB
 * at random. clone: the top is new above an image, so that each first write copies a cluster. What is compared takes turns in slices of
 * a twentieth of the seconds (1), and the best of each counts: what else the machine does makes them only worse. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/vmm/block/block_layers.h"

enum { QUEUE_DEPTH = 16, COLD_DEPTH = 2, DEPTH_MAX = 64, DEEP = 64, SLICES = 20, COLD_SLICES = 7, SIDES_MAX = 3 };
enum { AT_ONCE_BYTES = 4 << 20, TYPICAL_BYTES = 25 << 20 };
#define DISK_BYTES (UINT64_C(512) << 20)
#define TYPICAL_DISK_BYTES (UINT64_C(2) << 30)

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

enum row_kind { ROW_SEQUENTIAL, ROW_RANDOM, ROW_COLD /* sequential */, ROW_COLD_RANDOM };

/* What is compared in a row. */
struct side {
    const char *name;
    struct block *block;
    const struct layer_chain *chain; /* of cold rows, whose files are to be out of the page cache */
    unsigned depth;                  /* requests at once; 0: the row's */
};

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
    } ops[DEPTH_MAX];
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
    uint64_t places = f->block->size_bytes / f->size;
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
    for (unsigned i = 0; i < DEPTH_MAX; i++)
        if (f->ops[i].is_idle) {
            f->ops[i].is_idle = false;
            op_begin(&f->ops[i]);
        }
    block_unplug(f->block);
    pthread_mutex_unlock(&b->lock);
}

static bool is_cold(enum row_kind kind)
{
    return kind == ROW_COLD || kind == ROW_COLD_RANDOM;
}

static void flight_begin(struct flight *f, unsigned depth)
{
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        struct op *o = &f->ops[i];
        o->flight = f;
        if (i >= depth)
            continue;
        o->iovec = (struct iovec){aligned_alloc(4096, f->size), f->size};
        memset(o->iovec.iov_base, (int)i + 1, f->size);
        o->request = (struct block_request){.op = f->op, .size = f->size, .iovecs = &o->iovec, .iovec_count = 1, .done = op_done};
        o->is_idle = true;
    }
}

/* Requests a second, and CPU microseconds for each, in slice @number: other slices go to other places. */
static double measure(struct bench *b, const struct side *side, enum block_op op, size_t size, enum row_kind kind, unsigned number,
                      double *ret_cpu_us)
{
    uint64_t bytes = side->block->size_bytes;
    struct flight f = {.block = side->block,
                       .op = op,
                       .size = size,
                       .is_random = kind == ROW_RANDOM || kind == ROW_COLD_RANDOM,
                       .submit = b->submit,
                       .next = number * bytes / (is_cold(kind) ? COLD_SLICES : SLICES) / size,
                       .random = 88172645463325252ull + number};
    flight_begin(&f, side->depth > 0 ? side->depth : kind == ROW_COLD ? MIN(b->depth, (unsigned)COLD_DEPTH) : b->depth);
    double begin = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID), end = begin + b->seconds / (is_cold(kind) ? 3 : SLICES);
    idle_begin(b, &f);
    while (seconds_of(CLOCK_MONOTONIC) < end && (!is_cold(kind) || f.ended < bytes / size)) {
        io_loop_run_once(b->loop, f.idle > 0 ? 0 : 100);
        idle_begin(b, &f);
    }
    double elapsed = seconds_of(CLOCK_MONOTONIC) - begin;
    uint64_t ended = f.ended;
    *ret_cpu_us = (seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e6 / (double)MAX(ended, 1u);
    f.stop = true;
    pthread_mutex_lock(&b->lock);
    block_drain(side->block);
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < DEPTH_MAX; i++)
        free(f.ops[i].iovec.iov_base);
    return (double)ended / elapsed;
}

static void fill(struct block *block, uint64_t first, uint64_t step)
{
    void *memory = aligned_alloc(4096, LAYER_CLUSTER_BYTES);
    memset(memory, 0x33, LAYER_CLUSTER_BYTES);
    for (uint64_t at = first * LAYER_CLUSTER_BYTES; at < block->size_bytes; at += step * LAYER_CLUSTER_BYTES) {
        int code = block_now(block, BLOCK_WRITE, at, memory, LAYER_CLUSTER_BYTES);
        if (code < 0)
            die("fill", code);
    }
    block_now(block, BLOCK_FLUSH, 0, NULL, 0);
    free(memory);
}

static struct block *layers_open(struct bench *b, const char *name, uint64_t bytes, const char *base)
{
    struct block_file_options options = {.uring = b->uring, .direct = b->direct};
    struct layer_pool *pool;
    struct error err;
    struct block *block;
    CLEANUP_FREE char *path = xasprintf("%s/%s.disk", b->folder, name);
    int code = layer_pool_dir_create(b->folder, NULL, NULL, &pool, &err);
    if (code == 0)
        code = layer_disk_create(pool, name, bytes, base, &err);
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
    for (uint64_t at = 0; at < block->size_bytes && !b->direct; at += BYTES)
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

/* The first side is what the others are compared with. */
static void report(struct bench *b, const char *what, const struct side *sides, unsigned count, enum block_op op, size_t size,
                   enum row_kind kind)
{
    struct slice slices[SIDES_MAX][SLICES];
    unsigned tries = is_cold(kind) ? COLD_SLICES : SLICES, counts = is_cold(kind) ? COLD_SLICES / 2 : SLICES - 1;
    if (b->rows != NULL && strstr(what, b->rows) == NULL)
        return;
    /* There and back: what comes after a side that left the device idle finds it rested. */
    for (unsigned try = 0; try < tries; try++)
        for (unsigned turn = 0; turn < count; turn++) {
            unsigned i = try % 2 == 0 ? turn : count - 1 - turn;
            if (is_cold(kind))
                cool(b, sides[i].chain);
            else if (op == BLOCK_READ && try % (SLICES / 4) == 0)
                warm(b, sides[i].block);
            slices[i][try].rate = measure(b, &sides[i], op, size, kind, try, &slices[i][try].cpu_us);
        }
    printf("%-26s", what);
    for (unsigned i = 0; i < count; i++) {
        qsort(slices[i], tries, sizeof *slices[i], slower_first);
        const struct slice *s = &slices[i][counts], *first = &slices[0][counts];
        printf(" %-9s %7.0f/s %6.2f us CPU", sides[i].name, s->rate, s->cpu_us);
        if (i > 0)
            printf(" %5.1f %%, by CPU %5.1f %%", s->rate * 100 / first->rate, first->cpu_us * 100 / s->cpu_us);
        printf(i + 1 < count ? "  " : "\n");
    }
    fflush(stdout);
}

/* What the device has to give: a disk's layers a second time, past the page cache, which changes nothing of them. */
struct device {
    struct layer_pool *pool;
    struct layer_disk *disk;
    struct io_loop *loop;
    struct uring *uring;
};

static int device_file_open(void *arg, int fd, const char *name, bool read_only, struct block **ret_block, struct error *err)
{
    const struct device *d = arg;
    const char *ending = strrchr(name, '.');
    struct block_file_options options = {.name = name, .read_only = read_only, .unlocked = true, .uring = d->uring};
    options.direct = ending == NULL || strcmp(ending, ".map") != 0;
    return block_file_from_fd(fd, &options, d->loop, ret_block, err);
}

/* False: the file system knows nothing past its page cache. */
static bool device_open(struct bench *b, const char *name, struct device *d)
{
    struct error err;
    *d = (struct device){.loop = b->loop, .uring = b->uring};
    int code = layer_pool_dir_create(b->folder, device_file_open, d, &d->pool, &err);
    if (code == 0) {
        layer_pool_dir_set_unlocked(d->pool, true);
        code = layer_disk_open(d->pool, name, true, 0, &d->disk, &err);
    }
    if (code == 0)
        return true;
    printf("device: %s\n", err.text);
    layer_pool_dir_destroy(d->pool);
    return false;
}

static void device_close(struct device *d)
{
    layer_disk_close(d->disk);
    layer_pool_dir_destroy(d->pool);
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

static const size_t cold_sizes[] = {1 << 16, 1 << 17, 1 << 20};

static void run_bare(struct bench *b, struct block *layer, struct block *deep)
{
    static const char *const cold[] = {"bare cold 64 KiB", "bare cold 128 KiB", "bare cold 1 MiB"};
    const struct side sides[] = {{"1 file", bare_open(b, layer), block_layers_disk(layer)->chain, 0},
                                 {"64 files", bare_open(b, deep), block_layers_disk(deep)->chain, 0}};
    report(b, "bare random read 4 KiB", sides, 2, BLOCK_READ, 4096, ROW_RANDOM);
    report(b, "bare random read 64 KiB", sides, 2, BLOCK_READ, 1 << 16, ROW_RANDOM);
    report(b, "bare sequential 64 KiB", sides, 2, BLOCK_READ, 1 << 16, ROW_SEQUENTIAL);
    report(b, "bare sequential 1 MiB", sides, 2, BLOCK_READ, 1 << 20, ROW_SEQUENTIAL);
    for (unsigned i = 0; i < ARRAY_SIZE(cold); i++)
        report(b, cold[i], sides, 2, BLOCK_READ, cold_sizes[i], ROW_COLD);
    block_close(sides[0].block);
    block_close(sides[1].block);
}

/* The disk @name of many layers beside @one, which has as much in one; "<which> random read 4 KiB", and so on. */
static void run_layers(struct bench *b, const char *which, struct block *one, struct block *many, const char *name)
{
    static const char *const cold[] = {"cold sequential 64 KiB", "cold sequential 128 KiB", "cold sequential 1 MiB"};
    char what[64];
    struct device device;
    struct side sides[] = {{"1 layer", one, block_layers_disk(one)->chain, 0},
                           {"64 layers", many, block_layers_disk(many)->chain, 0},
                           {NULL, NULL, NULL, 0}};
    const struct row {
        const char *what;
        size_t size;
        enum row_kind kind;
    } warm_rows[] = {{"random read 4 KiB", 4096, ROW_RANDOM},
                     {"random read 64 KiB", 1 << 16, ROW_RANDOM},
                     {"sequential read 64 KiB", 1 << 16, ROW_SEQUENTIAL},
                     {"sequential read 1 MiB", 1 << 20, ROW_SEQUENTIAL}};
    for (unsigned i = 0; i < ARRAY_SIZE(warm_rows); i++) {
        snprintf(what, sizeof what, "%s %s", which, warm_rows[i].what);
        report(b, what, sides, 2, BLOCK_READ, warm_rows[i].size, warm_rows[i].kind);
    }
    if (b->direct)
        return;
    bool with_device = device_open(b, name, &device);
    if (with_device)
        sides[2] = (struct side){"device", &device.disk->chain->block, device.disk->chain, 0};
    for (unsigned i = 0; i < ARRAY_SIZE(cold); i++) {
        snprintf(what, sizeof what, "%s %s", which, cold[i]);
        sides[2].depth = (unsigned)(AT_ONCE_BYTES / cold_sizes[i]);
        report(b, what, sides, with_device ? 3 : 2, BLOCK_READ, cold_sizes[i], ROW_COLD);
    }
    snprintf(what, sizeof what, "%s cold random 4 KiB", which);
    report(b, what, sides, 2, BLOCK_READ, 4096, ROW_COLD_RANDOM);
    snprintf(what, sizeof what, "%s cold random 64 KiB", which);
    report(b, what, sides, 2, BLOCK_READ, 1 << 16, ROW_COLD_RANDOM);
    if (with_device)
        device_close(&device);
}

/* What a request costs the device, of one layer's file: those of 64 KiB at random beside those of 1 MiB in order. */
static void run_device(struct bench *b, const char *name)
{
    static const unsigned depths[] = {1, 4, 16, 64};
    enum { IN_ORDER = ARRAY_SIZE(depths), KINDS };
    struct slice slices[KINDS][COLD_SLICES];
    struct device device;
    if ((b->rows != NULL && strstr("device", b->rows) == NULL) || !device_open(b, name, &device))
        return;
    for (unsigned try = 0; try < COLD_SLICES; try++)
        for (unsigned i = 0; i < KINDS; i++) {
            size_t size = i == IN_ORDER ? 1 << 20 : 1 << 16;
            struct side side = {.block = &device.disk->chain->block, .depth = i == IN_ORDER ? (unsigned)(AT_ONCE_BYTES / size) : depths[i]};
            struct slice *s = &slices[i][try];
            s->rate = measure(b, &side, BLOCK_READ, size, i == IN_ORDER ? ROW_COLD : ROW_COLD_RANDOM, try, &s->cpu_us) * (double)size / (1 << 20);
        }
    for (unsigned i = 0; i < KINDS; i++)
        qsort(slices[i], COLD_SLICES, sizeof *slices[i], slower_first);
    double in_order = slices[IN_ORDER][COLD_SLICES / 2].rate;
    printf("device: 1 MiB in order %.0f MiB/s; 64 KiB at random", in_order);
    for (unsigned i = 0; i < IN_ORDER; i++)
        printf("%s %u at once %.0f MiB/s (%.0f %%)", i > 0 ? "," : "", depths[i], slices[i][COLD_SLICES / 2].rate,
               slices[i][COLD_SLICES / 2].rate * 100 / in_order);
    printf("\n");
    device_close(&device);
}

static void snapshot(struct block *block, unsigned number)
{
    char name[16];
    snprintf(name, sizeof name, "s%u", number);
    if (layer_disk_snapshot(block_layers_disk(block), name, NULL) < 0)
        die("snapshot", -1);
}

/* What a guest does between two snapshots. */
static void typical_write(struct block *block, uint64_t *random)
{
    static uint8_t data[1 << 20] __attribute__((aligned(4096)));
    size_t size;
    for (size_t left = TYPICAL_BYTES; left > 0; left -= MIN(left, size)) {
        *random ^= *random << 13, *random ^= *random >> 7, *random ^= *random << 17;
        size = (size_t)4096 * (1 + (*random >> 32) % 256);
        int code = block_now(block, BLOCK_WRITE, *random % (block->size_bytes / 4096 - size / 4096) * 4096, data, size);
        if (code < 0)
            die("write", code);
    }
}

static void run_typical(struct bench *b)
{
    uint64_t random = 88172645463325252ull;
    struct block *one = layers_open(b, "one", TYPICAL_DISK_BYTES, NULL), *typical = layers_open(b, "typical", TYPICAL_DISK_BYTES, NULL);
    fill(one, 0, 1);
    fill(typical, 0, 1);
    for (unsigned i = 0; i + 1 < DEEP; i++) {
        snapshot(typical, i);
        typical_write(typical, &random);
    }
    block_now(typical, BLOCK_FLUSH, 0, NULL, 0);
    run_layers(b, "typical", one, typical, "typical");
    block_close(typical);
    block_close(one);
}

static void run(struct bench *b)
{
    struct block *raw = raw_open(b), *layer = layers_open(b, "layer", DISK_BYTES, NULL), *deep = layers_open(b, "deep", DISK_BYTES, NULL);
    for (unsigned i = 0; i < DEEP; i++)
        fill(layer, i, DEEP);
    for (unsigned i = 0; i < DEEP; i++) {
        fill(deep, i, DEEP);
        if (i + 1 < DEEP)
            snapshot(deep, i);
    }
    const struct side sides[] = {{"raw", raw, NULL, 0}, {"1 layer", layer, NULL, 0}};
    report(b, "random read 4 KiB", sides, 2, BLOCK_READ, 4096, ROW_RANDOM);
    report(b, "random write 4 KiB", sides, 2, BLOCK_WRITE, 4096, ROW_RANDOM);
    report(b, "sequential read 1 MiB", sides, 2, BLOCK_READ, 1 << 20, ROW_SEQUENTIAL);
    report(b, "sequential write 1 MiB", sides, 2, BLOCK_WRITE, 1 << 20, ROW_SEQUENTIAL);
    run_layers(b, "worst", layer, deep, "deep");
    if (!b->direct)
        run_device(b, "layer");
    if (!b->direct && !b->submit)
        run_bare(b, layer, deep);
    block_close(deep);
    block_close(raw); /* its lock */
    double begin = seconds_of(CLOCK_MONOTONIC);
    struct block *clone = layers_open(b, "clone", DISK_BYTES, "plain.img");
    printf("clone of an image and opening it: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    double cpu_us, rate = measure(b, &(struct side){.block = clone}, BLOCK_WRITE, 4096, ROW_RANDOM, 0, &cpu_us);
    printf("random write 4 KiB, first writes of a clone: %.0f/s %.2f us CPU\n", rate, cpu_us);
    begin = seconds_of(CLOCK_MONOTONIC);
    snapshot(clone, 0);
    printf("snapshot, with what was not flushed: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    begin = seconds_of(CLOCK_MONOTONIC);
    snapshot(clone, 1);
    printf("snapshot, all flushed before: %.1f ms\n", (seconds_of(CLOCK_MONOTONIC) - begin) * 1e3);
    block_close(clone);
    block_close(layer);
    run_typical(b);
}

int main(int argc, char **argv)
{
    struct bench b = {.seconds = 1, .depth = QUEUE_DEPTH};
    struct error err;
    const char *directory = "build";
    bool threads = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--directory") == 0 && i + 1 < argc)
            directory = argv[++i];
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            b.seconds = atof(argv[++i]);
        else if (strcmp(argv[i], "--direct") == 0)
            b.direct = true;
        else if (strcmp(argv[i], "--submit") == 0)
            b.submit = true;
        else if (strcmp(argv[i], "--threads") == 0)
            threads = true;
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
    if (!threads && uring_create(b.loop, &b.uring, &err) < 0)
        printf("without io_uring: %s\n", err.text);
    run(&b);
    uring_destroy(b.uring);
    io_loop_destroy(b.loop);
    return file_remove_tree(directory, strrchr(b.folder, '/') + 1, &err) < 0;
}
