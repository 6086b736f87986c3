/* One request on a file, cut into the system calls that it takes; the engines of block_file.h carry those out, each
 * in its way, and so do the same. Before each of them the block's may_submit is asked: a request may take thousands.
 *
 *   begin --> call_next: true, a call  --> (engine performs it) --> call_returned --+
 *               ^                                                                    |
 *               +--------------------------------------------------------------------+
 *             call_next: false, `result` says how it ended --> end
 *
 * Read, write: the kernel may stop short (signals, end of space): the rest is asked for. Nothing more to be had:
 * -EIO, the file has become shorter. WRITE_ZEROES: a hole where that is allowed, a zeroed range, or else zeroes are
 * written. DISCARD: a hole; where the file system has none it succeeds without effect, as a hint may. Direct I/O on a
 * guest buffer that is not aligned goes through a buffer of our own, a piece at a time.
 *
 * Threads: whoever holds the request. */
#ifndef COMPUTE_VMM_BLOCK_FILE_IO_H
#define COMPUTE_VMM_BLOCK_FILE_IO_H

#include "block/block.h"

enum {
    BLOCK_FILE_IOVECS_MAX = 1024,         /* of one call: the kernel's UIO_MAXIOV */
    /* A piece of unaligned direct I/O, or of written zeroes. A guest may have one for each of the requests in flight on
     * each of its disks: together they must stay well below what a VMM may have (VMM_CGROUP_HEADROOM_BYTES). */
    BLOCK_FILE_BOUNCE_BYTES = 64 * 1024,
    BLOCK_FILE_TRIES_MAX = 16,            /* of a call that the kernel would not take at the moment */
};

enum block_file_call_kind { BLOCK_FILE_READV, BLOCK_FILE_WRITEV, BLOCK_FILE_SYNC, BLOCK_FILE_ALLOCATE };

struct block_file_call {
    enum block_file_call_kind kind;
    const struct iovec *iovecs; /* READV, WRITEV */
    unsigned iovec_count;
    int mode; /* ALLOCATE: of fallocate */
    uint64_t offset, size;
};

struct block_file_io {
    const struct block *block; /* whose may_submit is asked */
    struct block_request *request;
    int result;           /* once block_file_call_next has said false */
    uint64_t moved;       /* bytes done */
    uint32_t direct_mask; /* alignment of direct I/O minus 1; 0: not direct */
    uint8_t stage;        /* of WRITE_ZEROES */
    uint8_t tries;
    bool ended;
    void *bounce;
    struct iovec piece; /* where the call is not on the request's own */
};

/* @direct_align: of memory, offset and size, a power of two; 0 where the file is not open for direct I/O. @block is borrowed. */
void block_file_io_begin(struct block_file_io *io, const struct block *block, struct block_request *request, uint32_t direct_align);
/* False with `result` -EAGAIN: may_submit says no, perhaps in the middle; the request is to be made again, whole. */
bool block_file_call_next(struct block_file_io *io, struct block_file_call *ret_call);
/* @result: bytes or 0, negative errno. */
void block_file_call_returned(struct block_file_io *io, const struct block_file_call *call, ssize_t result);
/* Perform @call on @fd here and now. */
ssize_t block_file_call_perform(int fd, const struct block_file_call *call);
void block_file_io_end(struct block_file_io *io);

#endif
