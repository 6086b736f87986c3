/* Numbers that go to one disk after the other: n to the first, when that was answered to the second, and when that was, n + 1. So a state of
 * both that was ever the guest's has on the second what the first has, or one less. Told on the console:
 *
 *   pair begins A B   what they hold at the start; the next one is more than both
 *   pair N            with each tick: so far both were answered
 *   pair: failed      a request was
 *   pair: torn        a disk begins with a sector that nobody wrote so */
#include "guest_pair.h"

#include "guest_virtio.h"

enum { SECTOR_WORDS = 64, SECTOR_BYTES = 512, TYPE_READ = 0, TYPE_WRITE = 1 };

static struct end {
    struct virtio disk;
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    volatile uint64_t data[SECTOR_WORDS] __attribute__((aligned(512)));
    volatile uint8_t status;
} ends[2];
static unsigned at; /* whose answer is due */
static uint64_t number;

static void request_start(struct end *e, bool read)
{
    struct virtio_desc *d = e->disk.queues[0].ring.desc;
    e->status = 0xff;
    e->header.type = read ? TYPE_READ : TYPE_WRITE;
    for (unsigned word = 0; word < SECTOR_WORDS; word++)
        e->data[word] = read ? UINT64_MAX : number;
    d[0] = (struct virtio_desc){(uint64_t)&e->header, sizeof e->header, DESC_NEXT, 1};
    d[1] = (struct virtio_desc){(uint64_t)e->data, SECTOR_BYTES, (uint16_t)(DESC_NEXT | (read ? DESC_WRITE : 0)), 2};
    d[2] = (struct virtio_desc){(uint64_t)&e->status, 1, DESC_WRITE, 0};
    virtio_offer(&e->disk.queues[0], 0);
}

static bool is_answered(struct end *e)
{
    uint32_t head, size;
    if (!virtio_take(&e->disk.queues[0], &head, &size))
        return false;
    if (e->status != 0)
        put("pair: failed\n");
    return true;
}

bool pair_start(void)
{
    for (unsigned i = 0; i < 2; i++)
        if (!virtio_start_next(&ends[i].disk, VIRTIO_BLK, 1, i)) {
            put("pair: there are no two disks\n");
            return false;
        }
    for (unsigned i = 0; i < 2; i++) {
        request_start(&ends[i], true);
        while (!is_answered(&ends[i]))
            ;
        for (unsigned word = 1; word < SECTOR_WORDS; word++)
            if (ends[i].data[word] != ends[i].data[0]) {
                put("pair: torn\n");
                break;
            }
    }
    put("pair begins ");
    put_number(ends[0].data[0]);
    put(" ");
    put_number(ends[1].data[0]);
    put("\n");
    number = (ends[0].data[0] > ends[1].data[0] ? ends[0].data[0] : ends[1].data[0]) + 1;
    request_start(&ends[0], false);
    return true;
}

void pair_step(void)
{
    if (!is_answered(&ends[at]))
        return;
    at ^= 1;
    number += at == 0;
    request_start(&ends[at], false);
}

void pair_tick(void)
{
    put("pair ");
    put_number(number - 1);
    put("\n");
}
