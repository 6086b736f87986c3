/* Measures a VM from inside: a static program that the stock guest runs as root, and that a lab host runs as the other
 * end of the network.
 *
 *   guest_bench exits           what it costs to leave the guest and come back
 *   guest_bench memory          random accesses to 64 MiB
 *   guest_bench disk DEVICE     4 KiB random and 256 KiB sequential, past the page cache; DEVICE IS OVERWRITTEN
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

enum { PORT = 5201, RUN_MS = 2000, MEBIBYTE = 1048576, BLOCK = 4096, CHUNK = 262144, DEPTH = 8 };
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

/* The median of several runs, each long enough for the clock. */
static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
static void leave_measure(const char *name, void (*leave)(void))
{
    enum { RUNS = 9, TIMES = 1000 };
    uint64_t each[RUNS];
    for (int run = 0; run < RUNS; run++) {
        uint64_t start = now_ns();
        for (int i = 0; i < TIMES; i++)
            leave();
        each[run] = (now_ns() - start) / TIMES;
    }
    qsort(each, RUNS, sizeof(each[0]), compare);
    result(name, each[RUNS / 2], "ns");
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
    if (iopl(3) < 0)
        die("iopl");
    leave_measure("exit_port_unclaimed", leave_port_read);
    leave_measure("exit_port_serial", leave_port_serial);
    map_device();
    if (mapped)
        leave_measure("exit_mmio", leave_memory);
}

static void memory(void)
{
    enum { BYTES = 64 * MEBIBYTE, TIMES = 2000000 };
    volatile uint64_t *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    uint64_t start = now_ns(), x = 88172645463325252ull;
    for (size_t i = 0; i < BYTES / sizeof(*at); i += BLOCK / sizeof(*at))
        at[i] = i;
    result("memory_first_touch", (now_ns() - start) / (BYTES / BLOCK), "ns");
    start = now_ns();
    for (int i = 0; i < TIMES; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        at[x % (BYTES / sizeof(*at))]++;
    }
    result("memory_random", (now_ns() - start) * 1000 / TIMES, "ps");
}

/* ---- disk ---- */

struct disk_job {
    int fd;
    uint64_t bytes, block, done, seed, end_ns;
    bool write, random;
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
    while (now_ns() < j->end_ns) {
        if (j->random) {
            j->seed = j->seed * 6364136223846793005ull + 1442695040888963407ull;
            at = (j->seed >> 20) % blocks;
        } else {
            at = (at + 1) % blocks;
        }
        off_t offset = (off_t)(at * j->block);
        ssize_t n = j->write ? pwrite(j->fd, buffer, j->block, offset) : pread(j->fd, buffer, j->block, offset);
        if (n != (ssize_t)j->block)
            *j->failed = errno ? errno : EIO;
        j->done++;
    }
    free(buffer);
    return NULL;
}

static void disk_run(const char *name, int fd, uint64_t bytes, bool write, bool random, int depth)
{
    struct disk_job jobs[DEPTH];
    pthread_t threads[DEPTH];
    _Atomic int failed = 0;
    uint64_t start = now_ns(), done = 0, block = random ? BLOCK : CHUNK;
    for (int i = 0; i < depth; i++) {
        jobs[i] = (struct disk_job){.fd = fd,
                                    .bytes = bytes,
                                    .block = block,
                                    .seed = 7919u * (uint64_t)(i + 1),
                                    .end_ns = start + RUN_MS * 1000000ull,
                                    .write = write,
                                    .random = random,
                                    .failed = &failed};
        pthread_create(&threads[i], NULL, disk_worker, &jobs[i]);
    }
    for (int i = 0; i < depth; i++) {
        pthread_join(threads[i], NULL);
        done += jobs[i].done;
    }
    uint64_t ms = (now_ns() - start) / 1000000;
    if (failed) {
        errno = failed;
        die(name);
    }
    if (random)
        result(name, done * 1000 / ms, "/s");
    else
        result(name, done * block * 1000 / ms / 1024, "KiB/s");
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

static void net(const char *address)
{
    static char buffer[CHUNK];
    for (int receive = 0; receive < 2; receive++) {
        int fd = net_connect(address, receive ? 'R' : 'S');
        uint64_t start = now_ns(), end = start + RUN_MS * 1000000ull, bytes = 0;
        while (now_ns() < end) {
            ssize_t n = receive ? read(fd, buffer, sizeof(buffer)) : write(fd, buffer, sizeof(buffer));
            if (n <= 0)
                die("network");
            bytes += (uint64_t)n;
        }
        result(receive ? "net_receive" : "net_send", bytes * 1000 / ((now_ns() - start) / 1000000) / 1024, "KiB/s");
        close(fd);
    }
    int fd = net_connect(address, 'P');
    uint64_t start = now_ns(), trips = 0;
    while (now_ns() < start + RUN_MS * 1000000ull) {
        if (write(fd, buffer, 1) != 1 || read(fd, buffer, 1) != 1)
            die("network");
        trips++;
    }
    result("net_round_trips", trips * 1000 / ((now_ns() - start) / 1000000), "/s");
    close(fd);
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
    else if (strcmp(what, "net") == 0 && argc == 3)
        net(argv[2]);
    else if (strcmp(what, "serve") == 0)
        serve(argc > 2 ? (unsigned)atoi(argv[2]) : 600);
    else
        return fputs("usage: guest_bench exits | memory | disk DEVICE | net ADDRESS | serve [SECONDS]\n", stderr), 2;
    return 0;
}
