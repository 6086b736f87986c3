/* What a backup costs the guest's writes: 4 KiB at random places of a full disk, by the VMM's disk driver on a real file,
 * without a guest; with no backup, and while the image of the disk (block/point_image.h) is read for a store that takes
 * 5 MB/s. Rounds take turns; all writes of a kind are one sample.
 *
 *     bench_backup_latency [--directory DIR] [--seconds N] [--direct] [--kind 1|2|3] [--warm | --cold]
 *
 * What is promised: p99 with a backup <= 1.5 times p99 without. Nearly every write of the paced kinds is the first to its
 * cluster, so this is the worst that there is. What decides is whether what is overwritten is in the host's page cache, which
 * nobody may leave to chance here: a kernel that throws out what was idle for some seconds (DAMON) changes the result by half.
 * So each kind is run with all of the disk locked there (warm), and with none of it there when a round begins (cold). "read":
 * the part of the blocks kept that the device had to be asked for. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "block/point_image.h"
#include "common/file.h"
#include "compute/vmm/block/block_file.h"

enum { WRITE_BYTES = 4096, READ_BYTES = 128 << 10, ROUNDS = 3, SAMPLES_MAX = 4000000, STORE_BYTES_PER_S = 5000000 };
#define DISK_BYTES (UINT64_C(1) << 30)
#define NS UINT64_C(1000000000)

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct uring *uring;
    char folder[256];
    unsigned seconds;
    bool direct, cold;
    struct block *disk;
    int disk_fd; /* for its page cache */
    void *locked; /* while warm; else NULL */
    struct point_counters counters; /* of the rounds of a kind */
};

struct kind {
    const char *name;
    uint64_t pause_ns; /* between writes */
    bool flush;        /* after each */
};

struct writer {
    struct bench *bench;
    struct block *block;
    const struct kind *kind;
    struct block_request request;
    struct iovec one;
    struct io_timer timer;
    uint64_t random, begun_ns;
    bool stop, busy;
    uint64_t *samples;
    size_t count;
};

struct reader {
    struct bench *bench;
    struct block *back;
    struct block_request request;
    struct iovec one;
    struct io_timer timer;
    uint64_t at;
    bool stop, busy;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

static void die(const char *what, int code)
{
    fprintf(stderr, "bench_backup_latency: %s: %s\n", what, strerror(-code));
    exit(1);
}

/* ---- the guest ---- */

static void write_begin(void *arg)
{
    struct writer *w = arg;
    if (w->stop)
        return;
    w->random ^= w->random << 13, w->random ^= w->random >> 7, w->random ^= w->random << 17;
    w->request.op = BLOCK_WRITE;
    w->request.offset = w->random % (DISK_BYTES / WRITE_BYTES) * WRITE_BYTES;
    w->request.size = WRITE_BYTES;
    w->begun_ns = now_ns();
    w->busy = true;
    int code = block_submit(w->block, &w->request);
    if (code < 0)
        die("write", code);
}

static void write_done(struct block_request *request, int result)
{
    struct writer *w = CONTAINER_OF(request, struct writer, request);
    if (result < 0)
        die("write", result);
    if (w->kind->flush && request->op == BLOCK_WRITE) {
        request->op = BLOCK_FLUSH;
        int code = block_submit(w->block, request);
        if (code < 0)
            die("flush", code);
        return;
    }
    w->busy = false;
    if (w->count < SAMPLES_MAX && !w->stop)
        w->samples[w->count++] = now_ns() - w->begun_ns;
    if (!w->stop)
        io_timer_arm(w->bench->loop, &w->timer, w->kind->pause_ns);
}

/* ---- the backup ---- */

static void read_begin(void *arg)
{
    struct reader *r = arg;
    if (r->stop)
        return;
    r->request.op = BLOCK_READ;
    r->request.offset = r->at;
    r->request.size = READ_BYTES;
    r->busy = true;
    int code = block_submit(r->back, &r->request);
    if (code < 0)
        die("read of the image", code);
}

static void read_done(struct block_request *request, int result)
{
    struct reader *r = CONTAINER_OF(request, struct reader, request);
    if (result < 0)
        die("the image is lost", result);
    r->busy = false;
    r->at = (r->at + READ_BYTES) % DISK_BYTES;
    if (!r->stop)
        io_timer_arm(r->bench->loop, &r->timer, READ_BYTES * NS / STORE_BYTES_PER_S);
}

static void on_run(void *arg)
{
    point_image_run(arg);
}

struct waker {
    struct io_loop *loop;
    struct io_timer run;
};

static void on_wake(void *arg)
{
    struct waker *w = arg;
    io_timer_arm(w->loop, &w->run, 0);
}

/* ---- a round ---- */

static struct block *file_open(struct bench *b, const char *name, bool direct, int *ret_fd)
{
    struct block_file_options options = {.uring = b->uring, .direct = direct};
    struct error err = {0};
    struct block *block = NULL;
    CLEANUP_FREE char *path = xasprintf("%s/%s", b->folder, name);
    if (file_write_atomic(path, "", 0, 0600, &err) < 0 || truncate(path, (off_t)DISK_BYTES) < 0 ||
        block_file_open(path, &options, b->loop, &block, &err) < 0)
        die(err.text, -1);
    if (ret_fd != NULL && (*ret_fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        die(path, -errno);
    unlink(path);
    return block;
}

/* Of a disk that is flushed. */
static void page_cache_prepare(struct bench *b)
{
    if (!b->direct && !b->cold && b->locked == NULL) {
        b->locked = mmap(NULL, DISK_BYTES, PROT_READ, MAP_SHARED, b->disk_fd, 0);
        if (b->locked == MAP_FAILED || mlock(b->locked, DISK_BYTES) < 0)
            die("lock the disk in the page cache (as root, or with ulimit -l 1048576)", -errno);
    }
    if (b->cold && b->locked != NULL) {
        munmap(b->locked, DISK_BYTES);
        b->locked = NULL;
    }
    int code = b->cold ? posix_fadvise(b->disk_fd, 0, 0, POSIX_FADV_DONTNEED) : 0;
    if (code != 0)
        die("throw the disk out of the page cache", -code);
}

static void round_run(struct bench *b, const struct kind *kind, bool backup, struct writer *w)
{
    struct point_budget budget = {.bytes_max = UINT64_MAX};
    struct waker waker = {.loop = b->loop};
    struct reader r = {.bench = b};
    struct point_image *image = NULL;
    page_cache_prepare(b);
    uint64_t end = now_ns() + b->seconds * NS;
    pthread_mutex_lock(&b->lock);
    w->block = b->disk;
    w->kind = kind;
    w->stop = false;
    if (backup) {
        struct point_image_options options = {
            .disk = b->disk, .spill = file_open(b, "spill", false, NULL), .budget = &budget, .wake = on_wake, .arg = &waker};
        if (point_image_create(&options, &image, NULL) < 0)
            die("image", -1);
        io_timer_init(&waker.run, on_run, image);
        w->block = point_image_front(image);
        r.back = point_image_back(image);
        r.one = (struct iovec){aligned_alloc(4096, READ_BYTES), READ_BYTES};
        r.request = (struct block_request){.iovecs = &r.one, .iovec_count = 1, .done = read_done};
        io_timer_init(&r.timer, read_begin, &r);
        read_begin(&r);
    }
    write_begin(w);
    pthread_mutex_unlock(&b->lock);
    while (now_ns() < end)
        io_loop_run_once(b->loop, 10);
    pthread_mutex_lock(&b->lock);
    w->stop = r.stop = true;
    io_timer_cancel(&w->timer);
    block_drain(w->block);
    if (backup) {
        io_timer_cancel(&r.timer);
        block_drain(r.back);
        io_timer_cancel(&waker.run);
        b->counters.copied_bytes += point_image_counters(image).copied_bytes;
        b->counters.read_bytes += point_image_counters(image).read_bytes;
        point_image_destroy(image);
        free(r.one.iov_base);
    }
    block_now(b->disk, BLOCK_FLUSH, 0, NULL, 0);
    pthread_mutex_unlock(&b->lock);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile(struct writer *w, unsigned permille)
{
    return w->count == 0 ? 0 : (double)w->samples[(w->count - 1) * permille / 1000] / 1000;
}

static void report(struct bench *b, const struct kind *kind)
{
    struct writer writers[2];
    for (unsigned i = 0; i < 2; i++) {
        writers[i] = (struct writer){.bench = b, .random = 88172645463325252ull, .samples = xcalloc(SAMPLES_MAX, 8)};
        writers[i].one = (struct iovec){aligned_alloc(4096, WRITE_BYTES), WRITE_BYTES};
        memset(writers[i].one.iov_base, 0x5a, WRITE_BYTES);
        writers[i].request =
            (struct block_request){.iovecs = &writers[i].one, .iovec_count = 1, .done = write_done};
        io_timer_init(&writers[i].timer, write_begin, &writers[i]);
    }
    b->counters = (struct point_counters){0};
    for (unsigned round = 0; round < 2 * ROUNDS; round++)
        round_run(b, kind, round % 2 == 1, &writers[round % 2]);
    for (unsigned i = 0; i < 2; i++)
        qsort(writers[i].samples, writers[i].count, sizeof *writers[i].samples, by_size);
    printf("%-26s %-6s without p50 %5.0f p99 %6.0f us (%zu)   with p50 %5.0f p99 %6.0f us (%zu)   p99 x %.2f, read %.1f %%\n",
           kind->name, b->direct ? "direct" : b->cold ? "cold" : "warm", percentile(&writers[0], 500),
           percentile(&writers[0], 990), writers[0].count, percentile(&writers[1], 500), percentile(&writers[1], 990),
           writers[1].count, percentile(&writers[1], 990) / percentile(&writers[0], 990),
           100.0 * (double)b->counters.read_bytes / (double)MAX(b->counters.copied_bytes, 1));
    for (unsigned i = 0; i < 2; i++) {
        free(writers[i].samples);
        free(writers[i].one.iov_base);
    }
}

static void fill(struct bench *b)
{
    size_t size = 1 << 20;
    void *memory = aligned_alloc(4096, size);
    memset(memory, 0x33, size);
    for (uint64_t at = 0; at < DISK_BYTES; at += size)
        if (block_now(b->disk, BLOCK_WRITE, at, memory, size) < 0)
            die("fill", -1);
    block_now(b->disk, BLOCK_FLUSH, 0, NULL, 0);
    free(memory);
}

int main(int argc, char **argv)
{
    static const struct kind kinds[] = {
        {"500 writes/s, each flushed", NS / 500, true},
        {"500 writes/s", NS / 500, false},
        {"one after another, flushed", 0, true},
    };
    struct bench b = {.seconds = 5};
    unsigned only = 0, cold_first = 0, cold_last = 1;
    struct error err;
    const char *directory = "build";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--directory") == 0 && i + 1 < argc)
            directory = argv[++i];
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            b.seconds = (unsigned)atoi(argv[++i]);
        else if (strcmp(argv[i], "--kind") == 0 && i + 1 < argc)
            only = (unsigned)atoi(argv[++i]);
        else if (strcmp(argv[i], "--direct") == 0)
            b.direct = true;
        else if (strcmp(argv[i], "--warm") == 0)
            cold_last = 0;
        else if (strcmp(argv[i], "--cold") == 0)
            cold_first = 1;
    }
    snprintf(b.folder, sizeof b.folder, "%s/bench-backup-XXXXXX", directory);
    pthread_mutex_init(&b.lock, NULL);
    if (mkdtemp(b.folder) == NULL || io_loop_create(&b.lock, &b.loop, &err) < 0)
        die("cannot begin", -1);
    if (uring_create(b.loop, &b.uring, &err) < 0)
        printf("without io_uring: %s\n", err.text);
    b.disk = file_open(&b, "disk", b.direct, &b.disk_fd);
    fill(&b);
    for (unsigned cold = b.direct ? cold_last : cold_first; cold <= cold_last; cold++) {
        b.cold = cold == 1 && !b.direct;
        for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++)
            if (only == 0 || only == i + 1)
                report(&b, &kinds[i]);
    }
    block_close(b.disk);
    close(b.disk_fd);
    uring_destroy(b.uring);
    io_loop_destroy(b.loop);
    return file_remove_tree(directory, strrchr(b.folder, '/') + 1, &err) < 0;
}
