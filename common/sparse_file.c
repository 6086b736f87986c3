/* Holes of files; see sparse_file.h. */
#include "common/sparse_file.h"

#include <errno.h>
#include <string.h>

bool sparse_file_is_zero(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    return size == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0);
}

static int write_all(int fd, const char *data, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int sparse_file_write(int fd, const void *data, size_t size, uint64_t offset)
{
    const char *bytes = data;
    size_t begin = 0, at = 0; /* [begin, at): to be written and not written yet */
    while (at < size) {
        size_t step = SPARSE_FILE_BLOCK_BYTES - (size_t)((offset + at) % SPARSE_FILE_BLOCK_BYTES);
        step = MIN(step, size - at);
        if (!sparse_file_is_zero(bytes + at, step)) {
            at += step;
            continue;
        }
        int r = write_all(fd, bytes + begin, at - begin, offset + begin);
        if (r < 0)
            return r;
        at += step;
        begin = at;
    }
    return write_all(fd, bytes + begin, size - begin, offset + begin);
}

int sparse_file_next(int fd, uint64_t at, uint64_t end, uint64_t *ret_begin, uint64_t *ret_end)
{
    *ret_begin = *ret_end = end;
    if (at >= end)
        return 0;
    off_t data = lseek(fd, (off_t)at, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0; /* only a hole is left */
    if (data < 0 && errno != EINVAL && errno != EOPNOTSUPP)
        return -errno;
    off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
    uint64_t first = data < 0 ? at : (uint64_t)data;
    if (first >= end)
        return 0;
    *ret_begin = first;
    *ret_end = hole < 0 ? end : MIN((uint64_t)hole, end);
    return 0;
}
