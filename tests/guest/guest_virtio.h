/* The smallest virtio driver over PCI (virtio 1.2 §4.1): it finds a device, moves its BAR below 4 GiB where this guest's
 * page tables reach, sets up queues of one page each, and is polled. No interrupts, no features but VERSION_1 and those that are asked
 * for. */
#ifndef TESTS_GUEST_GUEST_VIRTIO_H
#define TESTS_GUEST_GUEST_VIRTIO_H

#include "guest_calls.h"

enum { VIRTIO_QUEUE_SIZE = 16, VIRTIO_QUEUES_MAX = 2 };
enum { VIRTIO_NET = 1, VIRTIO_BLK = 2 };
enum { DESC_NEXT = 1, DESC_WRITE = 2 };

struct virtio_desc {
    uint64_t address;
    uint32_t size;
    uint16_t flags, next;
};
/* As §2.7 lays it out for a queue of 16; descriptors belong to who uses the queue. */
struct virtio_ring {
    struct virtio_desc desc[VIRTIO_QUEUE_SIZE];
    struct {
        uint16_t flags;
        volatile uint16_t index;
        uint16_t ring[VIRTIO_QUEUE_SIZE], event;
    } avail;
    uint32_t gap;
    struct {
        uint16_t flags;
        volatile uint16_t index;
        struct {
            uint32_t head, size;
        } ring[VIRTIO_QUEUE_SIZE];
        uint16_t event;
    } used;
};
struct virtio_queue {
    struct virtio_ring ring __attribute__((aligned(4096)));
    volatile uint16_t *bell;
    uint16_t number, seen; /* index of the next used entry */
};
struct virtio {
    uint64_t common, notify;
    uint32_t notify_step;
    uint32_t features; /* before virtio_start: of the first 32, those that are taken; the device has to offer them */
    struct virtio_queue queues[VIRTIO_QUEUES_MAX];
};

/* Where configuration space is mapped (PCIe's ECAM), below 4 GiB; 0: ports 0xcf8 and 0xcfc. For machines without those ports. */
void virtio_ecam(uint64_t address);
/* Find the first device of @id and start it with @queues queues; false where there is none. */
bool virtio_start(struct virtio *v, unsigned id, unsigned queues);
/* The same of the one after the first @others of them. */
bool virtio_start_next(struct virtio *v, unsigned id, unsigned queues, unsigned others);
/* Offer the chain at descriptor @head. */
void virtio_offer(struct virtio_queue *q, uint16_t head);
/* The next used entry: false where there is none yet. */
bool virtio_take(struct virtio_queue *q, uint32_t *ret_head, uint32_t *ret_size);

#endif
