/* What every driver on a file descriptor needs: the lock that keeps two processes from one disk, and where data is.
 * Blocking; any thread. */
#ifndef BLOCK_BLOCK_FD_H
#define BLOCK_BLOCK_FD_H

#include "common/base.h"
#include "common/error.h"

/* Readers share an OFD lock, a writer has it alone; it goes with the last descriptor of this open(). -EBUSY in words. */
int block_fd_lock(int fd, const char *name, bool read_only, struct error *err);
int block_fd_unlock(int fd, const char *name, struct error *err);
/* The lock first, for the description may outlive this descriptor for a moment: with the kernel, which lets go of the file of an
 * io_uring request only after it has said that it is done, or with a child that is being started. The disk is free at once. */
void block_fd_close(int *fd);
/* From a writer's lock to a reader's, with no moment in between. */
void block_fd_share(int fd);
/* As block_ops.next_data, of the first @size_bytes of a file; of a device or a file system that does not tell: all. */
int block_fd_next_data(int fd, uint64_t size_bytes, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);

#endif
