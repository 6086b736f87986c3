/* Writes and reads on the first disk without an end, several at a time, and a memory of what each block must hold.
 *
 * Block b of the 64 (4 KiB each) is full of the number of the write that was acknowledged last: word i is number * 512 + i.
 * A block has one request at a time. Told on the console, each a fault of the VMM or its disk:
 *
 *   disk: status S of block B           a request failed
 *   disk: answered twice                a request came back that is not on its way: doubled, or another's
 *   disk: lost block B                  a request has not come back for LOST_TICKS
 *   disk: wrong block B word I          it holds something else than was acknowledged: lost, doubled or torn
 *
 * "disk N writes M reads" with each tick, and "disk verified N writes M reads" when all has been read back. */
#include "guest_disk.h"
#include "guest_virtio.h"

enum { BLOCKS = 64, BLOCK_BYTES = 4096, WORDS = BLOCK_BYTES / 8, SECTORS = BLOCK_BYTES / 512, REQUESTS = 5, LOST_TICKS = 100, SHOWN_MAX = 60 };
enum { TYPE_READ = 0, TYPE_WRITE = 1, SEGMENTS = 3 };

struct request {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    volatile uint8_t status;
    bool busy, read;
    unsigned block;
    uint64_t number, since;
};

static struct virtio disk;
static struct request requests[REQUESTS];
static volatile uint64_t data[REQUESTS][WORDS] __attribute__((aligned(4096)));
static uint64_t holds[BLOCKS]; /* number of the write that was acknowledged last, 0: zeros */
static bool taken[BLOCKS];
static uint64_t next_number, writes, reads, seed;
static unsigned in_flight;
static bool is_shown; /* whatever it holds */

static uint64_t random_next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void complain(const char *what, uint64_t block)
{
    put("disk: ");
    put(what);
    put(" block ");
    put_number(block);
    put("\n");
}

static void content_check(unsigned i, unsigned block)
{
    for (unsigned word = 0; word < WORDS; word++) {
        uint64_t wanted = holds[block] ? holds[block] * WORDS + word : 0;
        if (data[i][word] == wanted)
            continue;
        complain("wrong", block);
        put("disk: word ");
        put_number(word);
        put(" is ");
        put_number(data[i][word]);
        put(" not ");
        put_number(wanted);
        put("\n");
        return;
    }
}

static void finished_take(void)
{
    uint32_t head, size;
    while (virtio_take(&disk.queues[0], &head, &size)) {
        struct request *r = &requests[head / SEGMENTS];
        if (head % SEGMENTS != 0 || head / SEGMENTS >= REQUESTS || !r->busy) {
            put("disk: answered twice\n");
            continue;
        }
        r->busy = false;
        in_flight--;
        taken[r->block] = false;
        if (r->status != 0) {
            complain("status not 0 of", r->block);
        } else if (r->read) {
            reads++;
            if (!is_shown)
                content_check(head / SEGMENTS, r->block);
        } else {
            writes++;
            holds[r->block] = r->number;
        }
    }
}

static void request_start(unsigned i, unsigned block, bool read)
{
    struct request *r = &requests[i];
    struct virtio_desc *d = &disk.queues[0].ring.desc[SEGMENTS * i];
    taken[block] = r->busy = true;
    in_flight++;
    r->block = block;
    r->read = read;
    r->since = timer_ticks;
    r->status = 0xff;
    r->number = read ? 0 : ++next_number;
    r->header.type = read ? TYPE_READ : TYPE_WRITE;
    r->header.sector = (uint64_t)block * SECTORS;
    for (unsigned word = 0; word < WORDS; word++)
        data[i][word] = read ? UINT64_MAX : r->number * WORDS + word;
    uint16_t first = (uint16_t)(SEGMENTS * i);
    d[0] = (struct virtio_desc){(uint64_t)&r->header, sizeof r->header, DESC_NEXT, (uint16_t)(first + 1)};
    d[1] = (struct virtio_desc){(uint64_t)data[i], BLOCK_BYTES, (uint16_t)(DESC_NEXT | (read ? DESC_WRITE : 0)),
                                (uint16_t)(first + 2)};
    d[2] = (struct virtio_desc){(uint64_t)&r->status, 1, DESC_WRITE, 0};
    virtio_offer(&disk.queues[0], first);
}

bool disk_start(uint64_t with_seed)
{
    seed = with_seed * 2654435761u + 1;
    if (virtio_start(&disk, VIRTIO_BLK, 1))
        return true;
    put("disk: there is none\n");
    return false;
}

void disk_step(void)
{
    finished_take();
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t random = random_next();
        unsigned block = (unsigned)(random >> 8) % BLOCKS;
        if (!requests[i].busy && !taken[block])
            request_start(i, block, random % 3 == 0);
    }
}

static void counts_put(const char *what)
{
    put(what);
    put_number(writes);
    put(" writes ");
    put_number(reads);
    put(" reads\n");
}

void disk_tick(bool quiet)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (requests[i].busy && timer_ticks - requests[i].since >= LOST_TICKS) {
            complain("lost", requests[i].block);
            requests[i].since = timer_ticks;
        }
    if (!quiet)
        counts_put("disk ");
}

/* Until nothing is in flight, or it is told to be lost. */
static void settle(void)
{
    for (uint64_t since = timer_ticks; in_flight > 0 && timer_ticks - since <= LOST_TICKS;)
        finished_take();
    if (in_flight > 0)
        disk_tick(true);
}

void disk_show(void)
{
    char text[] = "?";
    is_shown = true;
    if (!disk_start(1))
        return;
    request_start(0, 0, true);
    settle();
    put("disk says ");
    for (unsigned i = 0; i < SHOWN_MAX; i++) {
        text[0] = (char)(data[0][i / 8] >> i % 8 * 8);
        if (text[0] == '\n' || text[0] == 0)
            break;
        put(text[0] >= ' ' && text[0] <= '~' ? text : "?");
    }
    put("\n");
}

void disk_verify(void)
{
    settle();
    for (unsigned block = 0; block < BLOCKS && !requests[0].busy; block++) {
        request_start(0, block, true);
        settle();
    }
    counts_put("disk verified ");
}
