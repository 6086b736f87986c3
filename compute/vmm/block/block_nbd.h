/* A disk in the VMM that another process of this host serves by NBD at a Unix socket, and that is the VM's only while the connection lasts:
 * drover-rbd (compute/rbd/main.c, --while-connected) with an image of a Ceph cluster.
 *
 *   block_own(false)   all is written, the connection is ended, and so has the server done: the disk may be another host's
 *   block_own(true)    connected again; -EBUSY, whyever it cannot be
 *   block_grow         the disk is as large already, which the server is asked for
 *
 * A server that has gone is waited for, as long as it takes, as for a file server: the guest's requests wait, and are sent again to the one
 * that comes next. That is right because
 *   - a request is told of to the guest once its answer has come, and a server answers a write when Ceph has it (block_rbd.h); so
 *     none that the guest knows of is lost with a server, and those it does not know of are all sent again
 *   - what is on its way from an old connection is over before a new one is served: a server finishes with one client before it takes
 *     the next; one that died is kept out by the next one's taking of the image's lock, at Ceph's own doors, before it greets us. So
 *     no write of an old connection lands after a newer one of the same place, of which a guest may have been told.
 *
 * The fail-stop hook of the struct block is asked when a request is handed to the connection. One that waits there for its server is not
 * asked again: who has the image by then keeps this host's server out.
 * Threads: as nbd_client.h; what has ended is told of on the I/O loop. */
#ifndef COMPUTE_VMM_BLOCK_NBD_H
#define COMPUTE_VMM_BLOCK_NBD_H

#include "block/block.h"
#include "compute/vmm/io_loop.h"

struct block_nbd_options {
    bool read_only;
    bool unowned;        /* another process has the disk still: nothing is connected to before block_own(true) */
    uint64_t size_bytes; /* unowned: what it is taken to have until then; it has at least that, or is not taken */
};

/* @path: of the socket. */
int block_nbd_open(const char *path, const struct block_nbd_options *options, struct io_loop *loop, struct block **ret_block,
                   struct error *err);
/* What waits for the server fails with -EIO, and all that comes: the disk is taken away from its guest. */
void block_nbd_give_up(struct block *b);

#endif
