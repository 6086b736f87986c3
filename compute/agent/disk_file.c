/* Disk files; see disk_file.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/disk_file.h"

#define SECTOR_BYTES 512
#define COPY_BYTES (1024 * 1024)

/* read and write, for file systems that copy_file_range does not join */
static int copy_by_hand(int from, int to, off_t offset, off_t end)
{
    CLEANUP_FREE char *buffer = xcalloc(1, COPY_BYTES);
    while (offset < end) {
        ssize_t n = pread(from, buffer, (size_t)MIN((off_t)COPY_BYTES, end - offset), offset);
        if (n == 0)
            return -EIO; /* it became shorter while we read it */
        if (n > 0)
            n = pwrite(to, buffer, (size_t)n, offset);
        if (n < 0 && errno != EINTR)
            return -errno;
        offset += n > 0 ? n : 0;
    }
    return 0;
}

static int copy_extent(int from, int to, off_t offset, off_t end)
{
    while (offset < end) {
        off_t in = offset, out = offset;
        ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(end - offset), 0);
        if (n == 0 || (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS)))
            return copy_by_hand(from, to, offset, end);
        if (n < 0 && errno != EINTR)
            return -errno;
        offset += n > 0 ? n : 0;
    }
    return 0;
}

/* The data of @from at the same places of the empty file @to, holes left out. */
static int copy_sparse(int from, int to, off_t size)
{
    if (ioctl(to, FICLONE, from) == 0)
        return 0;
    for (off_t at = 0; at < size;) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* only a hole is left */
        if (data < 0)
            return copy_extent(from, to, at, size); /* no such question on this file system */
        off_t hole = lseek(from, data, SEEK_HOLE);
        int r = copy_extent(from, to, data, hole < 0 ? size : hole);
        if (r < 0)
            return r;
        at = hole < 0 ? size : hole;
    }
    return 0;
}

static int fill(int fd, const char *path, uint64_t size_bytes, const char *image_path, struct error *err)
{
    int r;
    if (image_path != NULL) {
        struct stat st;
        CLEANUP_FD int from = open(image_path, O_RDONLY | O_CLOEXEC);
        if (from < 0 || fstat(from, &st) < 0)
            return error_errno(err, -errno, "cannot open image %s", image_path);
        uint64_t least = ((uint64_t)st.st_size + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
        if (size_bytes == 0)
            size_bytes = least;
        if (size_bytes < least)
            return error_set(err, -EFBIG, ERROR_INVALID,
                             "the disk has %llu bytes and its image %llu; make the disk at least as large",
                             (unsigned long long)size_bytes, (unsigned long long)least);
        r = copy_sparse(from, fd, st.st_size);
        if (r < 0)
            return error_errno(err, r, "cannot copy image %s to %s", image_path, path);
    }
    if (ftruncate(fd, (off_t)size_bytes) < 0 || fsync(fd) < 0)
        return error_errno(err, -errno, "cannot make disk %s", path);
    return 0;
}

int disk_file_make(const char *path, uint64_t size_bytes, const char *image_path, struct error *err)
{
    if (access(path, F_OK) == 0)
        return 0;
    CLEANUP_FREE char *part = xasprintf("%s.part", path);
    unlink(part); /* of an agent that was killed */
    CLEANUP_FD int fd = open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make disk %s", part);
    int r = fill(fd, path, size_bytes, image_path, err);
    if (r == 0 && rename(part, path) < 0)
        r = error_errno(err, -errno, "cannot make disk %s", path);
    if (r < 0) {
        unlink(part);
        if (r == -ENOSPC && err != NULL)
            err->kind = ERROR_NO_SPACE;
        return r;
    }
    CLEANUP_FREE char *directory = xstrdup(path);
    char *slash = strrchr(directory, '/');
    ASSERT(slash != NULL);
    *slash = '\0';
    return file_sync_directory(directory, err);
}

/* ---- layers ---- */

/* A second name of the image, in the disk's own directory: what a VMM sees of the host is its home alone (the jail). */
static int image_link(const char *directory, const char *image_path, char **ret_base, struct error *err)
{
    struct stat st;
    const char *slash = strrchr(image_path, '/');
    if (stat(image_path, &st) < 0)
        return error_errno(err, -errno, "cannot open image %s", image_path);
    if (st.st_size == 0 || st.st_size % SECTOR_BYTES != 0)
        return -EXDEV;
    CLEANUP_FREE char *base = xasprintf("%s.img", slash + 1);
    CLEANUP_FREE char *path = xasprintf("%s/%s", directory, base);
    if (link(image_path, path) < 0 && errno != EEXIST) {
        bool cannot = errno == EXDEV || errno == EPERM || errno == EMLINK || errno == EOPNOTSUPP;
        return cannot ? -EXDEV : error_errno(err, -errno, "cannot link image %s to %s", image_path, path);
    }
    *ret_base = TAKE_PTR(base);
    return 0;
}

static int clone_into(struct layer_pool *pool, const char *directory, const char *name, uint64_t size_bytes,
                      const char *image_path, struct error *err)
{
    CLEANUP_FREE char *base = NULL;
    int r = layer_disk_collect(pool, err); /* of an agent that was killed */
    if (r == 0 && image_path != NULL)
        r = image_link(directory, image_path, &base, err);
    return r < 0 ? r : layer_disk_create(pool, name, size_bytes, base, err);
}

int disk_file_clone(const char *directory, const char *name, uint64_t size_bytes, const char *image_path,
                    struct error *err)
{
    CLEANUP_FREE char *head = xasprintf("%s/%s.disk", directory, name);
    CLEANUP_FREE char *above = xstrdup(directory);
    struct layer_pool *pool;
    ASSERT(strrchr(above, '/') != NULL);
    *strrchr(above, '/') = '\0';
    if (access(head, F_OK) == 0)
        return 0;
    int r = file_make_directories(directory, 0700, err);
    if (r == 0)
        r = layer_pool_dir_create(directory, NULL, NULL, &pool, err);
    if (r < 0)
        return r;
    r = clone_into(pool, directory, name, size_bytes, image_path, err);
    layer_pool_dir_destroy(pool);
    if (r == -EXDEV)
        rmdir(directory);
    if (r == -ENOSPC && err != NULL)
        err->kind = ERROR_NO_SPACE;
    return r < 0 ? r : file_sync_directory(above, err);
}
