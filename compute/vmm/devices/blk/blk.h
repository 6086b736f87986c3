/* virtio-blk (virtio 1.2 §5.2) on any struct block: several request queues, FLUSH, DISCARD, WRITE_ZEROES, GET_ID,
 * read-only disks.
 *
 * A request is copied out of its chain, checked, and submitted, or where it is a read and its data in memory, carried
 * out there and then; it completes exactly once, with OK, IOERR or UNSUPP in its status byte. A request that finds the
 * lease lost (-EAGAIN, block.h) is parked and submitted again by a timer or when the machine resumes. A chain without room
 * for a status byte, or too short for a header, breaks the queue.
 *
 * An error of the disk goes to the guest, or stops the machine (options.on_error): then the request is parked too,
 * the machine is told by `stopped`, pauses, and resuming it starts the request again from the ring. So the guest
 * never learns of a write as done that is not, and never of one as failed that may yet be made good. Errors that are
 * the guest's own (a range past the end, a write to a read-only disk) always go to the guest.
 *
 * Rate limits delay the taking of requests from the rings; all queues share them. */
#ifndef COMPUTE_VMM_DEVICES_BLK_H
#define COMPUTE_VMM_DEVICES_BLK_H

#include "block/block.h"
#include "compute/vmm/io_loop.h"
#include "compute/vmm/rate_limit.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    BLK_QUEUES_MAX = 8,
    BLK_QUEUE_SIZE = 256,
    BLK_SEGMENTS_MAX = 126,            /* data segments of one request */
    BLK_SEGMENT_BYTES_MAX = 1 << 18,   /* of one segment: 126 * 256 KiB < BLOCK_REQUEST_BYTES_MAX */
    BLK_DISCARD_SECTORS_MAX = 1 << 21, /* one range of DISCARD or WRITE_ZEROES: 1 GiB */
    BLK_SERIAL_BYTES = 20,
    BLK_BATCH_REQUESTS = 256, /* per call, then the other devices have their turn */
    BLK_RETRY_MS = 100,       /* between tries while the lease is lost */
    BLK_ERRORS_LOGGED = 16,   /* of one disk; all are counted */
};

struct blk;

struct blk_options {
    struct block *block; /* owned by the device once blk_create has succeeded */
    const char *name;    /* for the log; NULL: "" */
    const char *serial;  /* what GET_ID answers, cut to 20 bytes; NULL: empty */
    unsigned queues;     /* 1 to BLK_QUEUES_MAX; 0 means 1 */
    enum disk_error_policy on_error;
    const struct vmm_limits *limits; /* NULL: none */
    /* A request failed with @result and is kept: the machine has to pause, else it is never started again. With the
     * device lock held. NULL: every error goes to the guest. */
    void (*stopped)(void *arg, const struct blk *blk, const char *operation, int result);
    void *stopped_arg;
};

struct blk_counters {
    uint64_t reads, read_bytes, writes, write_bytes, flushes, discards;
    uint64_t errors;    /* of the disk, reported or not */
    uint64_t throttled; /* times that a rate limit made it wait */
};

struct blk {
    struct virtio_device virtio;
    struct block *block;  /* owned */
    struct block *filter; /* requests go through it to `block`; NULL: straight. Borrowed (blk_set_filter) */
    void (*leaving)(void *arg, struct blk *blk);
    void *leaving_arg;
    struct io_loop *loop; /* borrowed */
    uint64_t size_bytes;  /* capacity as the guest was told */
    uint8_t serial[BLK_SERIAL_BYTES];
    char name[24];
    unsigned in_flight;    /* requests that the block has */
    struct list parked;    /* struct blk_request: the block answered -EAGAIN */
    struct io_timer retry; /* armed while something is parked and the machine runs */
    enum disk_error_policy on_error;
    void (*stopped)(void *arg, const struct blk *blk, const char *operation, int result);
    void *stopped_arg;
    struct rate_limit limit;
    struct io_timer throttle; /* armed while a limit keeps requests in the rings */
    unsigned turn; /* whose the next move is when the limit lets go */
    struct blk_counters counters;
    struct virtio_chain chain; /* the request being read */
};

int blk_create(const struct blk_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err);

/* Change what may be changed while it runs; with the device lock held. */
struct blk *blk_of_virtio(struct virtio_device *d);
void blk_set_limits(struct blk *blk, const struct vmm_limits *limits);
/* Finish what the block has, close it, and fail all requests from now on. */
void blk_detach(struct blk *blk);
/* The block has grown: tell the guest. Its capacity never shrinks. */
void blk_grown(struct blk *blk);
/* What requests are submitted to. */
static inline struct block *blk_top(const struct blk *blk)
{
    return blk->filter != NULL ? blk->filter : blk->block;
}
/* Put @filter, which stands above blk->block, between device and disk; NULL: take it away again. Nothing is in flight
 * (block_drain of blk_top). When the disk goes first (unplugged, the machine's end) @leaving takes the filter away. */
void blk_set_filter(struct blk *blk, struct block *filter, void (*leaving)(void *arg, struct blk *blk), void *arg);

/* queue.c, for device.c: requests. */
void blk_queue_notify(struct virtio_device *d, unsigned queue);
/* Requests taken from the driver and held by nobody are started (after a resume or load). */
void blk_queue_restart_taken(struct blk *blk);
/* Finish what the block has; requests that end up parked are let go, but stay taken from their queue. */
void blk_queue_quiesce(struct blk *blk);
void blk_queue_retry(void *blk);
void blk_queue_unthrottle(void *blk);

/* state.c */
void blk_state_save(const struct virtio_device *d, struct bytes_writer *out);
int blk_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
