/* Files with holes: what is zero is not written, what is a hole is not read. Blocking; any thread. */
#ifndef COMMON_SPARSE_FILE_H
#define COMMON_SPARSE_FILE_H

#include "common/base.h"

#define SPARSE_FILE_BLOCK_BYTES 4096u /* smallest hole that is kept: a block of all common file systems */

/* Write at @offset what is not zero. Blocks (aligned to the file) that are all zero are left out, which is right only where
 * the file has nothing yet. The file's size is not touched by what is left out: set it with ftruncate. Negative errno. */
int sparse_file_write(int fd, const void *data, size_t size, uint64_t offset);
/* The next run of data in [@at, @end): *ret_begin to *ret_end. No data: both are @end. On a file system that does not
 * know holes all is data. Negative errno. */
int sparse_file_next(int fd, uint64_t at, uint64_t end, uint64_t *ret_begin, uint64_t *ret_end);
bool sparse_file_is_zero(const void *data, size_t size);

#endif
