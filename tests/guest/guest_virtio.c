/* See guest_virtio.h. */
#include "guest_virtio.h"

enum { CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc, SLOTS = 32, VENDOR = 0x1af4, DEVICE_FIRST = 0x1040, BAR = 4 };
enum { COMMAND = 4, COMMAND_MEMORY = 2, COMMAND_MASTER = 4, CAPABILITIES = 0x34, CAP_VENDOR = 9, CAP_COMMON = 1, CAP_NOTIFY = 2 };
enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8 };
enum { /* offsets in the common configuration, §4.1.4.3 */
    GUEST_FEATURE_SELECT = 8,
    GUEST_FEATURE = 12,
    STATUS = 20,
    QUEUE_SELECT = 22,
    QUEUE_SIZE = 24,
    QUEUE_ENABLE = 28,
    QUEUE_NOTIFY_OFF = 30,
    QUEUE_DESC = 32,
    QUEUE_DRIVER = 40,
    QUEUE_DEVICE = 48,
};
#define BAR_AT(slot) (0xd0000000u + ((slot) << 20))

static uint64_t ecam;

void virtio_ecam(uint64_t address)
{
    ecam = address;
}

static uint32_t config_read(unsigned slot, unsigned offset)
{
    if (ecam)
        return *(volatile uint32_t *)(ecam + (slot << 15) + (offset & 0xfc)) >> 8 * (offset & 3);
    call(CALL_OUT32, CONFIG_ADDRESS, 0x80000000u | slot << 11 | (offset & 0xfc));
    return (uint32_t)call(CALL_IN32, CONFIG_DATA, 0) >> 8 * (offset & 3);
}

static void config_write(unsigned slot, unsigned offset, uint32_t value)
{
    if (ecam) {
        *(volatile uint32_t *)(ecam + (slot << 15) + offset) = value;
        return;
    }
    call(CALL_OUT32, CONFIG_ADDRESS, 0x80000000u | slot << 11 | offset);
    call(CALL_OUT32, CONFIG_DATA, value);
}

static void put8(uint64_t at, uint8_t value)
{
    *(volatile uint8_t *)at = value;
}
static void put16(uint64_t at, uint16_t value)
{
    *(volatile uint16_t *)at = value;
}
static void put32(uint64_t at, uint32_t value)
{
    *(volatile uint32_t *)at = value;
}
static void put_address(uint64_t at, const volatile void *to)
{
    put32(at, (uint32_t)(uint64_t)to);
    put32(at + 4, 0);
}

static void capabilities_read(struct virtio *v, unsigned slot)
{
    for (unsigned at = config_read(slot, CAPABILITIES) & 0xff; at; at = config_read(slot, at + 1) & 0xff) {
        unsigned type = config_read(slot, at + 3) & 0xff;
        if ((config_read(slot, at) & 0xff) != CAP_VENDOR)
            continue;
        if (type == CAP_COMMON)
            v->common = BAR_AT(slot) + config_read(slot, at + 8);
        if (type == CAP_NOTIFY) {
            v->notify = BAR_AT(slot) + config_read(slot, at + 8);
            v->notify_step = config_read(slot, at + 16);
        }
    }
}

static void queue_start(struct virtio *v, unsigned number)
{
    struct virtio_queue *q = &v->queues[number];
    put16(v->common + QUEUE_SELECT, (uint16_t)number);
    put16(v->common + QUEUE_SIZE, VIRTIO_QUEUE_SIZE);
    put_address(v->common + QUEUE_DESC, q->ring.desc);
    put_address(v->common + QUEUE_DRIVER, &q->ring.avail);
    put_address(v->common + QUEUE_DEVICE, &q->ring.used);
    q->number = (uint16_t)number;
    q->bell = (volatile uint16_t *)(v->notify + v->notify_step *
                                                    *(volatile uint16_t *)(v->common + QUEUE_NOTIFY_OFF));
    put16(v->common + QUEUE_ENABLE, 1);
}

bool virtio_start(struct virtio *v, unsigned id, unsigned queues)
{
    return virtio_start_next(v, id, queues, 0);
}

bool virtio_start_next(struct virtio *v, unsigned id, unsigned queues, unsigned others)
{
    unsigned slot = 0;
    while (slot < SLOTS && (config_read(slot, 0) != ((DEVICE_FIRST + id) << 16 | VENDOR) || others-- > 0))
        slot++;
    if (slot == SLOTS)
        return false;
    config_write(slot, 0x10 + 4 * BAR, BAR_AT(slot));
    config_write(slot, 0x14 + 4 * BAR, 0);
    config_write(slot, COMMAND, COMMAND_MEMORY | COMMAND_MASTER);
    capabilities_read(v, slot);
    put8(v->common + STATUS, 0);
    put8(v->common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    put32(v->common + GUEST_FEATURE_SELECT, 0);
    put32(v->common + GUEST_FEATURE, v->features);
    put32(v->common + GUEST_FEATURE_SELECT, 1);
    put32(v->common + GUEST_FEATURE, 1); /* VERSION_1 */
    put8(v->common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    for (unsigned i = 0; i < queues; i++)
        queue_start(v, i);
    put8(v->common + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    return true;
}

void virtio_offer(struct virtio_queue *q, uint16_t head)
{
    q->ring.avail.ring[q->ring.avail.index % VIRTIO_QUEUE_SIZE] = head;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    q->ring.avail.index++;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    *q->bell = q->number;
}

bool virtio_take(struct virtio_queue *q, uint32_t *ret_head, uint32_t *ret_size)
{
    if (q->ring.used.index == q->seen)
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    *ret_head = q->ring.used.ring[q->seen % VIRTIO_QUEUE_SIZE].head;
    *ret_size = q->ring.used.ring[q->seen % VIRTIO_QUEUE_SIZE].size;
    q->seen++;
    return true;
}
