/* The raw file driver: a file or block device, byte for byte the guest's disk. Requests become system calls in
 * block_file_io.c, which one of two engines carries out: io_uring, or a few threads where the host does not permit
 * it.
 *
 * Happy path:  submit -> (no more than BLOCK_FILE_IN_FLIGHT_MAX at once, the others wait in order) -> may_submit is
 *              asked, right before the system call is made or handed to the kernel -> done, on the I/O loop.
 * Failures:    a system call's error is the request's result, -EIO where a file has become shorter (block_file_io.h);
 *              what the kernel cancels because a thread of ours ended is started again. A FLUSH through the page cache that
 *              fails is -ENOTRECOVERABLE, and so is each after it, until the file is opened anew: what the kernel could not write is
 *              not dirty any more, and a flush that is tried again finds nothing amiss (block_file_engine.h).
 *
 * Durability: writes go to the page cache, or past it with `direct`, and on NFS in any case, and are durable by FLUSH (fdatasync) alone: also
 * direct writes need it, for the disk's own cache and for what the file system knows of the file. virtio-blk has no
 * FUA: a guest's driver makes a flush of it. */
#ifndef COMPUTE_VMM_BLOCK_FILE_H
#define COMPUTE_VMM_BLOCK_FILE_H

#include "block/block.h"
#include "compute/vmm/uring.h"

enum {
    BLOCK_FILE_THREADS = 4,         /* system calls at once on one disk, without io_uring */
    BLOCK_FILE_IN_FLIGHT_MAX = 128, /* the kernel's at once on one disk, with it */
    BLOCK_FILE_HINTS_MAX = 32,      /* of them what is read ahead, besides */
    BLOCK_FILE_HINT_BYTES = 131072, /* in one call, of which a kernel takes no more than a disk's read_ahead_kb: that is the default */
};

struct block_file_options {
    const char *name; /* for messages */
    bool read_only;
    bool direct;         /* O_DIRECT: refused where the file cannot */
    bool unlocked;       /* another process has it still: block_own takes it */
    struct uring *uring; /* to use; NULL: threads */
    uint64_t epoch;      /* of the owner, for what keeps one (block_layers.h); 0: none */
    /* Of a disk that other hosts reach: asked before anything is written while it is opened, and before names change
     * (block_layers.h); NULL: always allowed. */
    bool (*may_open)(void *arg);
    void *may_open_arg;
    /* Where a disk that is not whole finds the rest (block_layers.h): a socket, and its name there. NULL: nowhere. */
    const char *source_path, *source_name;
    bool on_demand; /* and is not filled from there */
};

/* Open the file at @path; refused in words: not a file or block device, empty, size not a multiple of 512, locked by
 * another process. @loop must outlive the block. options->name NULL: the path. */
int block_file_open(const char *path, const struct block_file_options *options, struct io_loop *loop,
                    struct block **ret_block, struct error *err);
/* The same on an open descriptor, which becomes the block's on success. */
int block_file_from_fd(int fd, const struct block_file_options *options, struct io_loop *loop,
                       struct block **ret_block, struct error *err);
#endif
