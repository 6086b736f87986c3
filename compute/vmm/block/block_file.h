/* The raw file driver: a file or block device, byte for byte the guest's disk, served by a few threads.
 *
 * Happy path:  submit queues the request -> a worker asks may_submit, then does pread/pwrite/fdatasync/fallocate
 *              -> the worker puts it on the finished list and rings an eventfd -> the I/O loop calls done.
 * Failures:    a system call's error is the request's result (-EIO where a file has become shorter); DISCARD on a
 * file system without hole punching succeeds without effect, as a hint may; WRITE_ZEROES there writes zeroes.
 *
 * Writes go to the page cache and are made durable by FLUSH (fdatasync). */
#ifndef COMPUTE_VMM_BLOCK_FILE_H
#define COMPUTE_VMM_BLOCK_FILE_H

#include "compute/vmm/block/block.h"
#include "compute/vmm/io_loop.h"

enum {
    BLOCK_FILE_THREADS = 4, /* system calls at once on one disk */
};

/* Open @path; refused in words: not a file or block device, empty, size not a multiple of 512, locked by another
 * process. @loop must outlive the block. */
int block_file_open(const char *path, bool read_only, struct io_loop *loop, struct block **ret_block,
                    struct error *err);
/* The same on an open descriptor, which becomes the block's on success. @name is for messages. */
int block_file_from_fd(int fd, const char *name, bool read_only, struct io_loop *loop, struct block **ret_block,
                       struct error *err);

#endif
