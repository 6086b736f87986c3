/* Locks and holes of descriptors: see block_fd.h. */
#include "block/block_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int block_fd_lock(int fd, const char *name, bool read_only, struct error *err)
{
    struct flock lock = {.l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, -EBUSY, ERROR_IN_USE, "disk %s is in use by another process", name);
    return error_errno(err, -errno, "cannot lock disk %s", name);
}

int block_fd_unlock(int fd, const char *name, struct error *err)
{
    struct flock unlock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &unlock) == 0 ? 0 : error_errno(err, -errno, "cannot unlock disk %s", name);
}

void block_fd_close(int *fd)
{
    if (*fd >= 0)
        block_fd_unlock(*fd, "", NULL);
    close_fd(fd);
}

void block_fd_share(int fd)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    int code = fcntl(fd, F_OFD_SETLK, &lock);
    ASSERT(code == 0 || errno == ENOLCK); /* then it stays locked: others are kept out for nothing */
}

int block_fd_next_data(int fd, uint64_t size_bytes, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    off_t start = lseek(fd, (off_t)from, SEEK_DATA);
    if (start < 0 && errno == ENXIO)
        return 0;
    off_t end = start < 0 ? -1 : lseek(fd, start, SEEK_HOLE);
    *ret_start = start < 0 ? from : (uint64_t)start;
    *ret_end = end < 0 ? size_bytes : MIN((uint64_t)end, size_bytes);
    return *ret_start < size_bytes;
}
