/* A file by blocking calls, for owners without a loop (agent, backup, tools): requests wait in a list and are carried
 * out, in order, by block_drain. The calling thread does all. Failures: of the system call; -EIO where the file has
 * become shorter. A FLUSH that has failed fails again until the file is opened anew: the kernel has let go of what it could
 * not write. */
#ifndef BLOCK_BLOCK_SYNC_H
#define BLOCK_BLOCK_SYNC_H

#include "block/block.h"

/* On an open descriptor of a regular file, which becomes the block's on success. A size that is no multiple of 512 is
 * rounded up where it is only read; the rest reads as zeroes. */
int block_sync_from_fd(int fd, const char *name, bool read_only, struct block **ret_block, struct error *err);

#endif
