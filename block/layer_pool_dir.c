/* A pool that is a directory: see layer_pool_dir.h. */
#include "block/layer_pool_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "block/block_fd.h"
#include "block/block_sync.h"
#include "common/file.h"

struct pool_dir {
    struct layer_pool pool;
    int fd;
    char *path;
    bool unlocked;
    bool (*may_change)(void *arg);
    void *may_change_arg;
    layer_pool_dir_opener opener;
    void *arg;
};

static struct pool_dir *of_pool(struct layer_pool *pool)
{
    return CONTAINER_OF(pool, struct pool_dir, pool);
}

static int open_sync(void *arg UNUSED, int fd, const char *name, bool read_only, struct block **ret_block,
                     struct error *err)
{
    return block_sync_from_fd(fd, name, read_only, ret_block, err);
}

/* Names come out of files that a VMM has written: one component, and no way out of the directory. */
static int name_check(const struct pool_dir *d, const char *name, struct error *err)
{
    if (name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL)
        return 0;
    return error_set(err, -EINVAL, ERROR_INVALID, "'%.100s' is not the name of a file in %s", name, d->path);
}

static int fd_open(struct pool_dir *d, int fd, const char *name, bool read_only, struct block **ret_block,
                   struct error *err)
{
    int code = d->unlocked ? 0 : block_fd_lock(fd, name, read_only, err);
    if (code == 0)
        code = d->opener(d->arg, fd, name, read_only, ret_block, err);
    if (code < 0)
        close(fd);
    return code;
}

static int dir_open(struct layer_pool *pool, const char *name, bool read_only, struct block **ret_block,
                    struct error *err)
{
    struct pool_dir *d = of_pool(pool);
    struct stat st;
    int code = name_check(d, name, err);
    if (code < 0)
        return code;
    int fd = openat(d->fd, name, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s in %s", name, d->path);
    if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(err, -EINVAL, ERROR_INVALID, "%s in %s is no plain file", name, d->path);
    }
    return fd_open(d, fd, name, read_only, ret_block, err);
}

/* Names are changed past the drivers of the files. */
static int change_check(const struct pool_dir *d, struct error *err)
{
    return d->may_change == NULL || d->may_change(d->may_change_arg)
               ? 0
               : error_set(err, -EAGAIN, ERROR_CONFLICT, "nothing may be changed in %s now: its owner's lease has run out", d->path);
}

static int may_change_name(const struct pool_dir *d, const char *name, struct error *err)
{
    int code = name_check(d, name, err);
    return code < 0 ? code : change_check(d, err);
}

static int dir_create(struct layer_pool *pool, const char *name, uint64_t size_bytes, struct block **ret_block,
                      struct error *err)
{
    struct pool_dir *d = of_pool(pool);
    int code = may_change_name(d, name, err);
    if (code < 0)
        return code;
    int fd = openat(d->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make %s in %s", name, d->path);
    if (ftruncate(fd, (off_t)size_bytes) < 0) {
        code = error_errno(err, -errno, "cannot make %s in %s", name, d->path);
        close(fd);
        return code;
    }
    return fd_open(d, fd, name, false, ret_block, err);
}

static int dir_remove(struct layer_pool *pool, const char *name, struct error *err)
{
    int code = may_change_name(of_pool(pool), name, err);
    if (code < 0)
        return code;
    if (unlinkat(of_pool(pool)->fd, name, 0) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s in %s", name, of_pool(pool)->path);
    return 0;
}

static int dir_read(struct layer_pool *pool, const char *name, char **ret_data, size_t *ret_size, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", of_pool(pool)->path, name);
    int code = name_check(of_pool(pool), name, err);
    return code < 0 ? code : file_read_foreign(path, LAYER_HEAD_BYTES_MAX, ret_data, ret_size, err);
}

static int dir_replace(struct layer_pool *pool, const char *name, const void *data, size_t size, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", of_pool(pool)->path, name);
    int code = may_change_name(of_pool(pool), name, err);
    return code < 0 ? code : file_write_atomic(path, data, size, 0600, err);
}

static int dir_sync(struct layer_pool *pool, struct error *err)
{
    if (fsync(of_pool(pool)->fd) < 0)
        return error_errno(err, -errno, "cannot sync %s", of_pool(pool)->path);
    return 0;
}

static int dir_list(struct layer_pool *pool, int (*each)(void *arg, const char *name), void *arg, struct error *err)
{
    int code = 0;
    DIR *dir = opendir(of_pool(pool)->path);
    if (dir == NULL)
        return error_errno(err, -errno, "cannot list %s", of_pool(pool)->path);
    for (struct dirent *e; code >= 0 && (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.')
            code = each(arg, e->d_name);
    closedir(dir);
    return MIN(code, 0);
}

static int dir_lock(struct layer_pool *pool, bool locked, struct error *err)
{
    int code;
    while ((code = flock(of_pool(pool)->fd, locked ? LOCK_EX : LOCK_UN)) < 0 && errno == EINTR)
        ;
    return code < 0 ? error_errno(err, -errno, "cannot lock %s", of_pool(pool)->path) : 0;
}

int layer_pool_dir_create(const char *path, layer_pool_dir_opener opener, void *arg, struct layer_pool **ret_pool,
                          struct error *err)
{
    static const struct layer_pool_ops ops = {.open = dir_open,
                                              .create = dir_create,
                                              .remove = dir_remove,
                                              .read = dir_read,
                                              .replace = dir_replace,
                                              .sync = dir_sync,
                                              .list = dir_list,
                                              .lock = dir_lock};
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open the pool %s", path);
    struct pool_dir *d = NEW(struct pool_dir);
    *d = (struct pool_dir){.pool.ops = &ops,
                           .fd = fd,
                           .path = xstrdup(path),
                           .opener = opener != NULL ? opener : open_sync,
                           .arg = arg};
    *ret_pool = &d->pool;
    return 0;
}

void layer_pool_dir_set_unlocked(struct layer_pool *pool, bool unlocked)
{
    of_pool(pool)->unlocked = unlocked;
}

void layer_pool_dir_set_guard(struct layer_pool *pool, bool (*may_change)(void *arg), void *arg)
{
    of_pool(pool)->may_change = may_change;
    of_pool(pool)->may_change_arg = arg;
}

void layer_pool_dir_destroy(struct layer_pool *pool)
{
    if (pool == NULL)
        return;
    close(of_pool(pool)->fd);
    free(of_pool(pool)->path);
    free(of_pool(pool));
}
