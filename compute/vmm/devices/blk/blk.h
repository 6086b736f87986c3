/* virtio-blk (virtio 1.2 §5.2) on any struct block: several request queues, FLUSH, DISCARD, WRITE_ZEROES, GET_ID,
 * read-only disks.
 *
 * A request is copied out of its chain, checked, and submitted; it completes exactly once, with OK, IOERR or UNSUPP in
 * its status byte. A request that finds the lease lost (-EAGAIN, block.h) is parked and submitted again by a timer or
 * when the machine resumes. A chain without room for a status byte, or too short for a header, breaks the queue. */
#ifndef COMPUTE_VMM_DEVICES_BLK_H
#define COMPUTE_VMM_DEVICES_BLK_H

#include "compute/vmm/block/block.h"
#include "compute/vmm/io_loop.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    BLK_QUEUES_MAX = 8,
    BLK_QUEUE_SIZE = 256,
    BLK_SEGMENTS_MAX = 126,             /* data segments of one request */
    BLK_SEGMENT_BYTES_MAX = 1 << 18,    /* of one segment: 126 * 256 KiB < BLOCK_REQUEST_BYTES_MAX */
    BLK_DISCARD_SECTORS_MAX = 1 << 21,  /* one range of DISCARD or WRITE_ZEROES: 1 GiB */
    BLK_SERIAL_BYTES = 20,
};

struct blk_options {
    struct block *block;     /* owned by the device once blk_create has succeeded */
    const char *serial;      /* what GET_ID answers, cut to 20 bytes; NULL: empty */
    unsigned queues;         /* 1 to BLK_QUEUES_MAX; 0 means 1 */
};

int blk_create(const struct blk_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err);

#endif
