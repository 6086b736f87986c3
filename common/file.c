/* Small files, whole. Everything goes through descriptors of directories where a name could be swapped under us. */
#include "common/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define TREE_DEPTH_MAX 64

static int read_all(int fd, size_t size_max, char **ret_data, size_t *ret_size)
{
    size_t size = 0, capacity = 4096;
    CLEANUP_FREE char *data = malloc(capacity);
    if (data == NULL)
        return -ENOMEM;
    for (;;) {
        ssize_t n = read(fd, data + size, capacity - size - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        size += (size_t)n;
        if (size > size_max)
            return -EFBIG;
        if (size + 1 == capacity) {
            char *larger = realloc(data, capacity * 2);
            if (larger == NULL)
                return -ENOMEM;
            data = larger;
            capacity *= 2;
        }
    }
    data[size] = '\0';
    *ret_data = TAKE_PTR(data);
    *ret_size = size;
    return 0;
}

static int read_opened(int fd, const char *path, size_t size_max, char **ret_data, size_t *ret_size, struct error *err)
{
    size_t size = 0;
    int rc = read_all(fd, size_max, ret_data, &size);
    if (rc == -EFBIG)
        return error_set(err, rc, ERROR_TOO_LARGE, "%s is longer than %zu bytes", path, size_max);
    if (rc < 0)
        return error_errno(err, rc, "cannot read %s", path);
    if (ret_size != NULL)
        *ret_size = size;
    return 0;
}

int file_read(const char *path, size_t size_max, char **ret_data, size_t *ret_size, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    return read_opened(fd, path, size_max, ret_data, ret_size, err);
}

int file_read_foreign(const char *path, size_t size_max, char **ret_data, size_t *ret_size, struct error *err)
{
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no plain file", path);
    return read_opened(fd, path, size_max, ret_data, ret_size, err);
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static int write_temporary(const char *path, const void *data, size_t size, mode_t mode)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int rc = write_all(fd, data, size);
    if (rc == 0 && fchmod(fd, mode) < 0)
        rc = -errno;
    if (rc == 0 && fsync(fd) < 0)
        rc = -errno;
    return rc;
}

int file_sync_directory(const char *path, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open directory %s", path);
    if (fsync(fd) < 0)
        return error_errno(err, -errno, "cannot sync directory %s", path);
    return 0;
}

int file_write_atomic(const char *path, const void *data, size_t size, mode_t mode, struct error *err)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    /* Unique enough: a name left behind by a crash of the same pid at the same nanosecond would give EEXIST. */
    CLEANUP_FREE char *temporary = xasprintf("%s.%ld.%ld.tmp", path, (long)getpid(), now.tv_nsec);
    int rc = write_temporary(temporary, data, size, mode);
    if (rc == 0 && rename(temporary, path) < 0)
        rc = -errno;
    if (rc < 0) {
        unlink(temporary);
        return error_errno(err, rc, "cannot write %s", path);
    }
    CLEANUP_FREE char *copy = xstrdup(path);
    return file_sync_directory(dirname(copy), err);
}

int file_make_directories(const char *path, mode_t mode, struct error *err)
{
    CLEANUP_FREE char *copy = xstrdup(path);
    for (char *p = copy + 1; *copy != '\0'; p++) {
        char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(copy, mode) < 0 && errno != EEXIST)
            return error_errno(err, -errno, "cannot make directory %s", copy);
        *p = c;
        if (c == '\0')
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return error_errno(err, -errno, "cannot make directory %s", path);
    if (!S_ISDIR(st.st_mode))
        return error_errno(err, -ENOTDIR, "cannot make directory %s", path);
    return 0;
}

static int remove_at(int parent, const char *name, dev_t device, unsigned depth);

/* All below the directory @fd, which this closes. */
static int remove_content(int fd, dev_t device, unsigned depth)
{
    DIR *dir = fdopendir(fd);
    int rc = 0;
    if (dir == NULL) {
        rc = -errno;
        close(fd);
        return rc;
    }
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            rc = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        rc = remove_at(dirfd(dir), entry->d_name, device, depth + 1);
        if (rc < 0)
            break;
    }
    closedir(dir);
    return rc;
}

static int remove_at(int parent, const char *name, dev_t device, unsigned depth)
{
    struct stat st;
    if (depth > TREE_DEPTH_MAX)
        return -ELOOP;
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0 || st.st_dev != device) {
        close(fd);
        return -EXDEV;
    }
    int rc = remove_content(fd, device, depth);
    if (rc == 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0)
        rc = -errno;
    return rc;
}

int file_remove_tree(const char *directory, const char *name, struct error *err)
{
    struct stat st;
    if (*name == '\0' || strchr(name, '/') != NULL || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is not the name of something in %s", name, directory);
    CLEANUP_FD int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot open directory %s", directory);
    int rc = remove_at(fd, name, st.st_dev, 0);
    if (rc < 0)
        return error_errno(err, rc, "cannot remove %s/%s", directory, name);
    return 0;
}
