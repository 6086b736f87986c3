/* Measures a VM from inside: a static program that the stock guest runs as root, and that a lab host runs as the other
 * end of the network.
 *
 *   guest_bench exits           what it costs to leave the guest and come back
 *   guest_bench memory          random accesses to 64 MiB
 *   guest_bench disk DEVICE     4 KiB random and 256 KiB sequential, past the page cache; DEVICE IS OVERWRITTEN
 *   guest_bench layers ONE MANY the same reads of two disks, in turns: 4 KiB and 64 KiB random, 64 KiB and 1 MiB sequential
 *   guest_bench net ADDRESS     to a `guest_bench serve` there: stream in both directions, one-byte round trips
 *   guest_bench serve [SECONDS] answer on port 5201, and end after so long (600)
 *
 * Each figure is a line "bench NAME VALUE UNIT"; integers. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5201, RUN_MS = 2000, MEBIBYTE = 1048576, BLOCK = 4096, CHUNK = 262144, DEPTH = 8, DEPTH_MAX = 16 };
enum { PORT_UNCLAIMED = 0xe8 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void result(const char *name, uint64_t value, const char *unit)
{
    printf("bench %s %llu %s\n", name, (unsigned long long)value, unit);
    fflush(stdout);
}

static _Noreturn void die(const char *what)
{
    printf("bench-failed %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- leaving the guest ---- */

static volatile uint32_t *mapped; /* a register of a PCI device */

/* A port that iopl(2) allows is refused by QEMU's emulated processor, which a lab host is, once the hypervisor has
 * written the task register back as KVM has told it (busy). */
static void on_refusal(int number)
{
    static const char words[] = "bench-failed a port that iopl(2) allows was refused\n";
    ssize_t written = write(STDOUT_FILENO, words, sizeof(words) - 1);
    _exit(written > 0 && number == SIGSEGV ? 1 : 2);
}

static void leave_cpuid(void)
{
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
}
static void leave_port_read(void)
{
    inb(PORT_UNCLAIMED);
}
static void leave_port_serial(void)
{
    inb(0x3f8 + 7); /* the scratch register */
}
static void leave_memory(void)
{
    (void)*mapped;
}

/* How long one of many short runs took that the rest of the world left alone: whatever else the machine does only makes
 * runs longer, so that of all of them the tenth part that was shortest says what the work costs. Sorts @each. */
static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
static uint64_t undisturbed(uint64_t *each, size_t count)
{
    qsort(each, count, sizeof(each[0]), compare);
    return each[count / 10];
}

static void leave_measure(const char *name, void (*leave)(void))
{
    enum { RUNS = 200, TIMES = 20 };
    uint64_t each[RUNS];
    for (int run = 0; run < RUNS; run++) {
        uint64_t start = now_ns();
        for (int i = 0; i < TIMES; i++)
            leave();
        each[run] = now_ns() - start;
    }
    result(name, undisturbed(each, RUNS) / TIMES, "ns");
}

/* The largest memory BAR of a virtio device (vendor 0x1af4), through sysfs. */
static void map_device(void)
{
    char path[128], line[128];
    for (int slot = 0; slot < 32 && !mapped; slot++) {
        unsigned vendor = 0;
        snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/vendor", slot);
        FILE *f = fopen(path, "r");
        if (!f)
            continue;
        if (fscanf(f, "%x", &vendor) != 1)
            vendor = 0;
        fclose(f);
        snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource", slot);
        if (vendor != 0x1af4 || !(f = fopen(path, "r")))
            continue;
        int best = -1;
        unsigned long long best_size = 0, start, end, flags;
        for (int bar = 0; bar < 6 && fgets(line, sizeof(line), f); bar++)
            if (sscanf(line, "%llx %llx %llx", &start, &end, &flags) == 3 && (flags & 0x200) && end - start > best_size) {
                best = bar;
                best_size = end - start;
            }
        fclose(f);
        snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource%d", slot, best);
        int fd = best < 0 ? -1 : open(path, O_RDWR | O_SYNC | O_CLOEXEC);
        void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED)
            mapped = at;
    }
}

static void exits(void)
{
    leave_measure("exit_cpuid", leave_cpuid);
    map_device();
    if (!mapped)
        die("no virtio device to map");
    leave_measure("exit_mmio", leave_memory);
    signal(SIGSEGV, on_refusal);
    if (iopl(3) < 0)
        die("iopl");
    leave_measure("exit_port_unclaimed", leave_port_read);
    leave_measure("exit_port_serial", leave_port_serial);
}

static void memory(void)
{
    enum { BYTES = 64 * MEBIBYTE, PIECES = 64, PAGES = BYTES / BLOCK / PIECES, RUNS = 200, TIMES = 2000 };
    uint64_t each[RUNS], x = 88172645463325252ull;
    volatile uint64_t *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    /* Pages of 4 KiB in the guest: its own huge pages would hide what the host's are. */
    (void)madvise((void *)at, BYTES, MADV_NOHUGEPAGE);
    uint64_t begin = now_ns();
    for (int piece = 0; piece < PIECES; piece++) {
        uint64_t start = now_ns();
        for (int i = 0; i < PAGES; i++)
            at[(size_t)(piece * PAGES + i) * (BLOCK / sizeof(*at))] = 1;
        each[piece] = now_ns() - start;
    }
    result("memory_first_touch_all", (now_ns() - begin) / (PAGES * PIECES), "ns"); /* mean: the host's faults are rare */
    result("memory_first_touch", undisturbed(each, PIECES) / PAGES, "ns");
    for (int run = 0; run < RUNS; run++) {
        uint64_t start = now_ns();
        for (int i = 0; i < TIMES; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            at[x % (BYTES / sizeof(*at))]++;
        }
        each[run] = now_ns() - start;
    }
    result("memory_random", undisturbed(each, RUNS) / TIMES, "ns");
}

/* ---- disk ---- */

enum { WINDOW_MS = 50, WINDOWS = RUN_MS / WINDOW_MS };

/* What was done in each window of time; the rate of the tenth part that was fastest. Where so little comes through that
 * even most of those windows are empty (a stream that waits for retransmissions), the rate of the whole run. */
struct windows {
    uint64_t start_ns;
    _Atomic uint64_t done[WINDOWS];
};
static bool window_count(struct windows *w, uint64_t amount)
{
    uint64_t at = (now_ns() - w->start_ns) / (WINDOW_MS * 1000000ull);
    if (at >= WINDOWS)
        return false;
    w->done[at] += amount;
    return true;
}
static uint64_t window_rate(const struct windows *w)
{
    uint64_t each[WINDOWS], all = 0;
    for (int i = 0; i < WINDOWS; i++)
        all += each[i] = w->done[i];
    qsort(each, WINDOWS, sizeof(each[0]), compare);
    uint64_t best = each[WINDOWS - 1 - WINDOWS / 10] * (1000 / WINDOW_MS), mean = all * 1000 / RUN_MS;
    return best > mean ? best : mean;
}
static void rate_result(const char *name, uint64_t rate, uint64_t unit_bytes, const char *unit)
{
    if (rate < unit_bytes)
        printf("bench-failed %s: next to nothing came through in %d ms\n", name, RUN_MS);
    else
        result(name, rate / unit_bytes, unit);
}

struct disk_job {
    int fd;
    uint64_t bytes, block, seed;
    bool write, random;
    struct windows *windows;
    _Atomic int *failed;
};

static void *disk_worker(void *arg)
{
    struct disk_job *j = arg;
    char *buffer;
    if (posix_memalign((void **)&buffer, BLOCK, j->block))
        die("memory");
    memset(buffer, 0x5a, j->block);
    uint64_t blocks = j->bytes / j->block, at = j->seed % blocks;
    ssize_t n;
    do {
        if (j->random) {
            j->seed = j->seed * 6364136223846793005ull + 1442695040888963407ull;
            at = (j->seed >> 20) % blocks;
        } else {
            at = (at + 1) % blocks;
        }
        off_t offset = (off_t)(at * j->block);
        n = j->write ? pwrite(j->fd, buffer, j->block, offset) : pread(j->fd, buffer, j->block, offset);
        if (n != (ssize_t)j->block)
            *j->failed = errno ? errno : EIO;
    } while (n == (ssize_t)j->block && window_count(j->windows, j->block));
    free(buffer);
    return NULL;
}

/* Requests of @block bytes, @depth at once: bytes a second. */
static uint64_t disk_rate(const char *name, int fd, uint64_t bytes, uint64_t block, bool write, bool random, int depth)
{
    struct disk_job jobs[DEPTH_MAX];
    pthread_t threads[DEPTH_MAX];
    struct windows windows = {.start_ns = now_ns()};
    _Atomic int failed = 0;
    for (int i = 0; i < depth; i++) {
        jobs[i] = (struct disk_job){.fd = fd,
                                    .bytes = bytes,
                                    .block = block,
                                    .seed = 7919u * (uint64_t)(i + 1),
                                    .windows = &windows,
                                    .write = write,
                                    .random = random,
                                    .failed = &failed};
        pthread_create(&threads[i], NULL, disk_worker, &jobs[i]);
    }
    for (int i = 0; i < depth; i++)
        pthread_join(threads[i], NULL);
    if (failed) {
        errno = failed;
        die(name);
    }
    return window_rate(&windows);
}

static void disk_run(const char *name, int fd, uint64_t bytes, bool write, bool random, int depth)
{
    uint64_t rate = disk_rate(name, fd, bytes, random ? BLOCK : CHUNK, write, random, depth);
    rate_result(name, rate, random ? BLOCK : 1024, random ? "/s" : "KiB/s");
}

static int device_open(const char *device, uint64_t *ret_bytes)
{
    int fd = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, ret_bytes) < 0 || *ret_bytes < MEBIBYTE)
        die(device);
    return fd;
}

/* The best of some turns each, for whatever else the machine does only makes them worse. */
static void layers(const char *one, const char *many)
{
    enum { TURNS = 3 };
    static const struct {
        const char *name;
        uint64_t block;
        bool random;
        int depth;
    } rows[] = {{"random_4k_16", BLOCK, true, 16},
                {"random_4k_1", BLOCK, true, 1},
                {"random_64k_16", 65536, true, 16},
                {"sequential_64k", 65536, false, 1},
                {"sequential_1m", MEBIBYTE, false, 1}};
    const char *const devices[] = {one, many}, *const words[] = {"one", "many"};
    uint64_t bytes[2];
    int fds[] = {device_open(one, &bytes[0]), device_open(many, &bytes[1])};
    for (size_t row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
        uint64_t best[2] = {0};
        for (int turn = 0; turn < 2 * TURNS; turn++) {
            int i = turn % 2;
            uint64_t rate = disk_rate(devices[i], fds[i], bytes[i], rows[row].block, false, rows[row].random, rows[row].depth);
            best[i] = rate > best[i] ? rate : best[i];
        }
        for (int i = 0; i < 2; i++) {
            char name[64];
            snprintf(name, sizeof(name), "layers_%s_%s", words[i], rows[row].name);
            rate_result(name, best[i], 1024, "KiB/s");
        }
    }
    close(fds[0]);
    close(fds[1]);
}

static void disk(const char *device)
{
    uint64_t bytes = 0;
    int fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) < 0 || bytes < CHUNK)
        die(device);
    disk_run("disk_write_sequential", fd, bytes, true, false, 1); /* first: makes what the others read */
    disk_run("disk_read_sequential", fd, bytes, false, false, 1);
    disk_run("disk_read_random_4k", fd, bytes, false, true, 1);
    disk_run("disk_read_random_4k_8", fd, bytes, false, true, DEPTH);
    disk_run("disk_write_random_4k", fd, bytes, true, true, 1);
    disk_run("disk_write_random_4k_8", fd, bytes, true, true, DEPTH);
    close(fd);
}

/* ---- network: the client's first byte says what it wants: S it sends, R it receives, P round trips ---- */

static void serve_one(int fd)
{
    static char buffer[CHUNK];
    char what;
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (read(fd, &what, 1) != 1)
        return;
    ssize_t n = 1;
    while (n > 0) {
        if (what == 'R') {
            n = write(fd, buffer, sizeof(buffer));
        } else {
            n = read(fd, buffer, what == 'P' ? 1 : sizeof(buffer));
            if (n > 0 && what == 'P')
                n = write(fd, buffer, 1);
        }
    }
}

static void serve(unsigned seconds)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int one = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listening, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(listening, 8) < 0)
        die("listen");
    alarm(seconds);
    signal(SIGPIPE, SIG_IGN);
    while (true) {
        int fd = accept(listening, NULL, NULL);
        if (fd < 0)
            continue;
        serve_one(fd);
        close(fd);
    }
}

static int net_connect(const char *address, char what)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (write(fd, &what, 1) != 1)
        die("network");
    return fd;
}

static uint64_t net_rate(const char *address, char what)
{
    static char buffer[CHUNK];
    int fd = net_connect(address, what);
    struct windows windows = {.start_ns = now_ns()};
    ssize_t n;
    do {
        n = what == 'P' ? write(fd, buffer, 1) : 1;
        if (n > 0)
            n = what == 'S' ? write(fd, buffer, BLOCK * 4) : read(fd, buffer, what == 'P' ? 1 : sizeof(buffer));
        if (n <= 0)
            die("network");
    } while (window_count(&windows, (uint64_t)n));
    close(fd);
    return window_rate(&windows);
}

/* How fast a stream is depends on how its connection began (TCP takes the size of its segments from the shortest round
 * trip that it has seen), and one runs three times as fast as the next: the best of several. */
static void net_run(const char *name, const char *address, char what)
{
    enum { CONNECTIONS = 4 };
    uint64_t best = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        uint64_t rate = net_rate(address, what);
        best = rate > best ? rate : best;
    }
    rate_result(name, best, what == 'P' ? 1 : 1024, what == 'P' ? "/s" : "KiB/s");
}

static void net(const char *address)
{
    net_run("net_send", address, 'S');
    net_run("net_receive", address, 'R');
    net_run("net_round_trips", address, 'P');
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "exits") == 0)
        exits();
    else if (strcmp(what, "memory") == 0)
        memory();
    else if (strcmp(what, "disk") == 0 && argc == 3)
        disk(argv[2]);
    else if (strcmp(what, "layers") == 0 && argc == 4)
        layers(argv[2], argv[3]);
    else if (strcmp(what, "net") == 0 && argc == 3)
        net(argv[2]);
    else if (strcmp(what, "serve") == 0)
        serve(argc > 2 ? (unsigned)atoi(argv[2]) : 600);
    else
        return fputs("usage: guest_bench exits | memory | disk DEVICE | layers ONE MANY | net ADDRESS | serve [SECONDS]\n", stderr), 2;
    return 0;
}
