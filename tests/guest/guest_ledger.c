/* Numbered writes on the first disk, or over the first few, in an order that whoever looks at the disks from outside can work out: from the
 * blocks alone follows whether they are of one moment, on all disks, and of which, in this life of the guest or an earlier one
 * (tests/process/ledger.py reads it).
 *
 * Write n fills 4 KiB, block ledger_block(n), with 64-bit words: word i is n * 512 + i. Block b lies at 16 KiB * b of disk b % disks; what
 * is between is never written. Write n begins when all up to n - window have ended. In every second life, as the disks' content has it,
 * the guest takes FLUSH and asks all disks for one now and then; in the others each write is flushed before it ends. Told on the console:
 *
 *   ledger begins F through: N N ...        or "flush": what each block held when this life began, whose writes begin with number F
 *   ledger A K                              all up to write A have ended; all up to K are flushed
 *   ledger: torn block B                    it holds no one write
 *   ledger: status S of block B             a request failed
 *   ledger: lost block B                    a request has not come back for LOST_TICKS
 *
 * A life's numbers begin with the seconds of the clock times 1024, and it writes less than that in a second: no two lives share one. */
#include "guest_ledger.h"
#include "guest_virtio.h"

enum { BLOCKS = 256, BLOCK_BYTES = 4096, WORDS = BLOCK_BYTES / 8, BLOCK_SECTORS = 32, REQUESTS = 5, LOST_TICKS = 3000 };
enum { ZONES = 8, ZONE_BLOCKS = BLOCKS / ZONES, ZONE_WRITES = 1024, TICK_WRITES = 8, FLUSH_EVERY_MAX = 24 };
enum { TYPE_READ = 0, TYPE_WRITE = 1, TYPE_FLUSH = 4, FEATURE_FLUSH = 1 << 9, SEGMENTS = 3 };
enum { RTC_INDEX = 0x70, RTC_DATA = 0x71 };

struct request {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    volatile uint8_t status;
    bool busy;
    unsigned block;
    uint64_t number, since;
};

static struct virtio at_first[LEDGER_DISKS_MAX], at_work[LEDGER_DISKS_MAX]; /* one after the other: features are for good */
static struct virtio *disks;
static unsigned disk_count;
static struct request requests[REQUESTS];
static volatile uint64_t data[REQUESTS][WORDS] __attribute__((aligned(4096)));
static uint64_t found[BLOCKS];
static bool done[LEDGER_WINDOW_MAX]; /* those of the writes behind @acked */
static uint64_t seed, window, next, acked, kept, asked, rest;
static bool flushes;
static unsigned to_flush, flushing; /* disks that are still to be asked, and those that have not answered, for all up to @asked */
static bool calm;

static uint64_t mixed(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

/* Mostly within an eighth of the disk that changes every ZONE_WRITES, so that there is always much that has not changed lately. */
static unsigned ledger_block(uint64_t n)
{
    uint64_t x = mixed(n + seed);
    unsigned any = (unsigned)(x >> 8) % BLOCKS, zone = (unsigned)(n / ZONE_WRITES) % ZONES;
    return x % 128 == 0 ? any : zone * ZONE_BLOCKS + any % ZONE_BLOCKS;
}

static void tell(const char *what, uint64_t block)
{
    put("ledger: ");
    put(what);
    put(" block ");
    put_number(block);
    put("\n");
}

/* Of a flush @block says which disk is meant. */
static void request_start(unsigned i, uint32_t type, unsigned block, uint64_t number)
{
    struct request *r = &requests[i];
    struct virtio_queue *queue = &disks[block % disk_count].queues[0];
    struct virtio_desc *d = &queue->ring.desc[SEGMENTS * i];
    uint16_t first = (uint16_t)(SEGMENTS * i), last = (uint16_t)(first + 2);
    r->busy = true;
    r->block = block;
    r->number = number;
    r->since = timer_ticks;
    r->status = 0xff;
    r->header.type = type;
    r->header.sector = type == TYPE_FLUSH ? 0 : (uint64_t)block * BLOCK_SECTORS;
    for (unsigned word = 0; type == TYPE_WRITE && word < WORDS; word++)
        data[i][word] = number * WORDS + word;
    d[0] = (struct virtio_desc){(uint64_t)&r->header, sizeof r->header, DESC_NEXT, type == TYPE_FLUSH ? last : (uint16_t)(first + 1)};
    d[1] = (struct virtio_desc){(uint64_t)data[i], BLOCK_BYTES, (uint16_t)(DESC_NEXT | (type == TYPE_READ ? DESC_WRITE : 0)), last};
    d[2] = (struct virtio_desc){(uint64_t)&r->status, 1, DESC_WRITE, 0};
    virtio_offer(queue, first);
}

static void answer_take(struct request *r)
{
    r->busy = false;
    if (r->status != 0)
        tell("status not 0 of", r->block); /* and a write has not ended: nothing goes on behind it */
    else if (r->header.type == TYPE_WRITE)
        done[r->number % window] = true;
    if (r->header.type == TYPE_FLUSH && r->status == 0 && --flushing == 0)
        kept = asked;
}

static void finished_take(void)
{
    uint32_t head, size;
    for (unsigned i = 0; i < disk_count; i++)
        while (virtio_take(&disks[i].queues[0], &head, &size))
            answer_take(&requests[head / SEGMENTS % REQUESTS]);
    for (; acked + 1 < next && done[(acked + 1) % window]; acked++)
        done[(acked + 1) % window] = false;
    if (!flushes)
        kept = acked;
}

/* ---- the beginning ---- */

static uint64_t rtc(uint8_t index)
{
    call(CALL_OUT8, RTC_INDEX, index);
    uint64_t value = call(CALL_IN8, RTC_DATA, 0) & 0xff;
    return (value >> 4) * 10 + (value & 15);
}

/* Seconds, with months of 31 days: what is later is more. */
static uint64_t clock_read(void)
{
    uint64_t second, now;
    do {
        second = rtc(0);
        now = ((((rtc(9) * 12 + rtc(8)) * 31 + rtc(7)) * 24 + rtc(4)) * 60 + rtc(2)) * 60 + second;
    } while (rtc(0) != second);
    return now;
}

static uint64_t block_read(unsigned block)
{
    request_start(0, TYPE_READ, block, 0);
    for (uint64_t since = timer_ticks; requests[0].busy && timer_ticks - since <= LOST_TICKS;)
        finished_take();
    if (requests[0].busy)
        tell("lost", block);
    uint64_t first = data[0][0];
    bool is_whole = first % WORDS == 0;
    for (unsigned word = 0; word < WORDS; word++)
        is_whole &= data[0][word] == (first ? first + word : 0);
    if (!is_whole)
        tell("torn", block);
    return first / WORDS;
}

/* @with: at_first or at_work, with @features. */
static bool disks_start(struct virtio *with, uint32_t features)
{
    disks = with;
    for (unsigned i = 0; i < disk_count; i++) {
        disks[i].features = features;
        if (!virtio_start_next(&disks[i], VIRTIO_BLK, 1, i))
            return false;
    }
    return true;
}

void ledger_calm(void)
{
    calm = true;
}

bool ledger_start(uint64_t with_seed, uint64_t with_disks, uint64_t with_window)
{
    seed = with_seed;
    disk_count = with_disks < LEDGER_DISKS_MAX ? (unsigned)with_disks : LEDGER_DISKS_MAX;
    window = with_window < LEDGER_WINDOW_MAX ? with_window : LEDGER_WINDOW_MAX;
    if (!disks_start(at_first, 0)) {
        put("ledger: there is no such disk\n");
        return false;
    }
    uint64_t most = 0, sum = 0;
    for (unsigned block = 0; block < BLOCKS; block++) {
        found[block] = block_read(block);
        most = found[block] > most ? found[block] : most;
        sum += found[block];
    }
    flushes = mixed(sum) & 1;
    disks_start(at_work, flushes ? FEATURE_FLUSH : 0);
    next = clock_read() << 10;
    next = next > most ? next : most + 1;
    acked = kept = asked = next - 1;
    put("ledger begins ");
    put_number(next);
    put(flushes ? " flush:" : " through:");
    for (unsigned block = 0; block < BLOCKS; block++) {
        put(" ");
        put_number(found[block]);
    }
    put("\n");
    return true;
}

/* ---- work ---- */

static int free_request(unsigned block)
{
    int at = -1;
    for (unsigned i = 0; i < REQUESTS; i++) {
        if (!requests[i].busy)
            at = (int)i;
        else if (requests[i].header.type == TYPE_WRITE && requests[i].block == block)
            return -1; /* one after the other: what is there in the end would not be known */
    }
    return at;
}

bool ledger_step(void)
{
    finished_take();
    if (flushes && flushing == 0 && acked > asked + mixed(asked) % FLUSH_EVERY_MAX) {
        asked = acked;
        to_flush = flushing = disk_count;
    }
    for (int i; to_flush > 0 && (i = free_request(BLOCKS)) >= 0;)
        request_start((unsigned)i, TYPE_FLUSH, --to_flush, 0);
    while (rest > 0 && next <= acked + window) {
        unsigned block = ledger_block(next);
        int i = free_request(block);
        if (i < 0)
            break;
        request_start((unsigned)i, TYPE_WRITE, block, next++);
        rest--;
    }
    for (unsigned i = 0; i < REQUESTS; i++)
        if (requests[i].busy)
            return !calm;
    return rest > 0;
}

void ledger_tick(void)
{
    static uint64_t told;
    rest = calm ? 1 : TICK_WRITES;
    for (unsigned i = 0; i < REQUESTS; i++)
        if (requests[i].busy && timer_ticks - requests[i].since >= LOST_TICKS) {
            tell("lost", requests[i].block);
            requests[i].since = timer_ticks;
        }
    if (acked + kept == told)
        return;
    told = acked + kept;
    put("ledger ");
    put_number(acked);
    put(" ");
    put_number(kept);
    put("\n");
}
