/* Split virtqueue, device side (virtio 1.2 §2.7), with indirect descriptors and EVENT_IDX.
 *
 * The rings live in guest memory and the guest may change them at any moment: every descriptor is copied out,
 * checked, and then only the copy is used. A ring that breaks the rules makes the queue `broken`: it gives and takes
 * nothing more until it is reset, and its device tells the driver so (DEVICE_NEEDS_RESET). Nothing is allocated
 * here for a guest's number: a chain is bounded by the queue size, which is bounded by VIRTIO_QUEUE_SIZE_MAX.
 *
 *      reset --> configured (size, addresses) --> ready <--> (pop, push)
 *        ^                                          |
 *        +------------------------------------- broken
 *
 * Threads: all calls on one queue come under its device's lock. */
#ifndef COMPUTE_VMM_VIRTIO_QUEUE_H
#define COMPUTE_VMM_VIRTIO_QUEUE_H

#include <sys/uio.h>

#include "common/bytes.h"
#include "compute/vmm/memory.h"

enum {
    VIRTIO_QUEUE_SIZE_MAX = 1024, /* entries of one ring; also of one chain, as §2.7.5.3.1 has it */
};

/* One request of the driver: what it gives the device to read (out), then what the device may write (in). */
struct virtio_chain {
    uint16_t head;                                /* first descriptor: the request's name in the used ring */
    uint16_t out_count;                           /* the first segments[] are readable */
    uint16_t in_count;                            /* and these many after them writable */
    uint64_t out_bytes;                           /* sum over the readable ones */
    uint64_t in_bytes;                            /* sum over the writable ones; out_bytes + in_bytes < 4 GiB */
    struct iovec segments[VIRTIO_QUEUE_SIZE_MAX]; /* host addresses, checked to lie in guest RAM */
    uint64_t gpas[VIRTIO_QUEUE_SIZE_MAX];         /* their guest addresses, for memory_mark_dirty */
};

struct virtio_queue {
    /* Set by the transport while the queue is not ready. */
    uint16_t size_max;   /* what the device offers */
    uint16_t size;       /* what the driver chose: a power of two <= size_max */
    uint64_t desc_gpa;   /* descriptor table, 16 bytes each */
    uint64_t driver_gpa; /* available ring */
    uint64_t device_gpa; /* used ring */
    bool ready;

    bool broken;          /* the driver broke the rules; only a reset helps */
    const char *reason;   /* which rule, for the log; NULL while not broken */
    bool event_idx;       /* VIRTIO_F_EVENT_IDX was negotiated */
    bool indirect;        /* VIRTIO_F_INDIRECT_DESC was negotiated */
    uint16_t next_avail;  /* the next avail entry to take */
    uint16_t next_used;   /* the next used entry to write */
    uint16_t signalled;   /* next_used when the driver was last asked about an interrupt */
    bool signalled_valid; /* false just after a start or load: interrupt in any case */
    unsigned in_flight;   /* popped, not yet pushed */

    struct guest_memory *memory;              /* borrowed */
    uint8_t taken[VIRTIO_QUEUE_SIZE_MAX / 8]; /* heads in flight, a bit each */
    const uint8_t *desc;                      /* host addresses while ready */
    uint8_t *avail, *used;
};

/* @size_max is a power of two up to VIRTIO_QUEUE_SIZE_MAX. @memory must outlive the queue. Nothing to finish. */
void virtio_queue_init(struct virtio_queue *q, struct guest_memory *memory, uint16_t size_max);
/* Back to the state after init. Requests in flight must have been pushed or given up by the device. */
void virtio_queue_reset(struct virtio_queue *q);
/* The driver enables the queue. -EINVAL for a bad size, -EFAULT where a ring is misaligned or not in guest RAM:
 * the queue is broken then. */
int virtio_queue_enable(struct virtio_queue *q);

/* Take the next request. 1: @ret_chain filled; 0: none, or not ready or broken; -EBADMSG: the driver broke a rule,
 * the queue has just become broken, and the caller tells its device (virtio_device_needs_reset). */
int virtio_queue_pop(struct virtio_queue *q, struct virtio_chain *ret_chain);
/* The request whose head is @head is completed; @written_bytes were written to its writable part. Each popped head
 * is pushed or unpopped exactly once. The caller marked what it wrote as dirty. */
void virtio_queue_push(struct virtio_queue *q, uint16_t head, uint32_t written_bytes);
/* As push, but the driver does not see it before virtio_queue_publish: @ahead counts the entries held back so far
 * (0, 1, ...). For requests that complete together, such as merged receive buffers (§5.1.6.4). */
void virtio_queue_push_held(struct virtio_queue *q, uint16_t ahead, uint16_t head, uint32_t written_bytes);
void virtio_queue_publish(struct virtio_queue *q, uint16_t count);
/* Put the request popped last back, untouched: the next pop gives it again. */
void virtio_queue_unpop(struct virtio_queue *q, uint16_t head);

/* Does the driver want an interrupt for what was pushed since the last call? (§2.7.7.2, §2.7.10) */
bool virtio_queue_wants_interrupt(struct virtio_queue *q);
/* Ask the driver to notify of new requests, or not to bother. On turning it on: true when a request came meanwhile,
 * so that the caller must pop again. */
bool virtio_queue_ask_notify(struct virtio_queue *q, bool on);
/* Requests that wait, without taking one. */
bool virtio_queue_has_more(const struct virtio_queue *q);
/* How far the driver has come (the avail index): differs from an earlier answer when it has offered more. */
uint16_t virtio_queue_offered(const struct virtio_queue *q);

/* Read a request again that was taken and not completed: the first whose head is >= *@position, which then moves past
 * it. 1, 0 when there is none left, -EBADMSG as pop. For requests parked while the VM may not submit, also after
 * load. */
int virtio_queue_retake(struct virtio_queue *q, uint16_t *position, struct virtio_chain *ret_chain);

/* Everything that is needed to go on in another process, requests taken and not completed included. */
void virtio_queue_save(const struct virtio_queue *q, struct bytes_writer *out);
/* Into an initialised queue of the same size_max. -EBADMSG for values no queue of ours can have. */
int virtio_queue_load(struct virtio_queue *q, struct bytes_reader *in, bool event_idx, bool indirect);

/* Copy between the chain and a buffer; both go by the offset within the readable or the writable part and answer the
 * number of bytes moved, less than @size at the end of the part. chain_write marks what it wrote as dirty. */
size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t offset, void *ret_data, size_t size);
size_t virtio_chain_write(const struct virtio_chain *chain, struct guest_memory *memory, uint64_t offset,
                          const void *data, size_t size);

#endif
