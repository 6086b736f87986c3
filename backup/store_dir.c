/* A store that is a directory: see store_dir.h. */
#include "backup/store_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "backup/store_pace.h"
#include "common/file.h"

#define TEMPORARY ".tmp-"
#define DEPTH_MAX 4

struct store_dir {
    struct store store;
    char path[PATH_MAX];
    atomic_bool seen; /* its sign was: without one the directory is not the store */
};

static struct store_dir *of_store(struct store *store)
{
    return CONTAINER_OF(store, struct store_dir, store);
}

static int failed(struct store *store, int code, const char *what, const char *name, struct error *err)
{
    if (code == -ENOSPC || code == -EDQUOT)
        return error_set(err, -ENOSPC, ERROR_NO_SPACE, "cannot %s %s: the store %s is full", what, name,
                         store->location);
    if (code == -ENOENT)
        return error_set(err, code, ERROR_NOT_FOUND, "there is no %s in %s", name, store->location);
    if (code == -EACCES || code == -EPERM || code == -EROFS)
        return error_set(err, code, ERROR_FORBIDDEN, "cannot %s %s in %s: %s", what, name, store->location,
                         strerror(-code));
    return error_errno(err, code, "cannot %s %s in %s", what, name, store->location);
}

static int write_paced(struct store *store, int fd, const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t part = store->pace != NULL ? MIN(size, (size_t)STORE_PACE_SLICE_BYTES) : size;
        store_pace_take(store->pace, part);
        ssize_t n = write(fd, data, part);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

/* The store's own directory; what is done below it is done in this one, whatever is mounted there meanwhile. -ENOENT: none yet. */
static int root_open(struct store *store, int *ret_root, struct error *err)
{
    struct store_dir *d = of_store(store);
    struct stat st;
    CLEANUP_FD int root = open(d->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int code = root < 0 ? -errno : 0;
    int sign = code < 0 ? code : fstatat(root, STORE_SIGN, &st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
    if (sign == 0)
        atomic_store(&d->seen, true);
    else if (atomic_load(&d->seen) && sign == -ENOENT)
        return error_set(err, -EHOSTUNREACH, ERROR_UNREACHABLE,
                         "the store %s has gone: there is no %s in it any more. Is the share still mounted?", store->location, STORE_SIGN);
    else if (atomic_load(&d->seen))
        code = sign;
    if (code < 0)
        return failed(store, code, "open", "the directory", err);
    *ret_root = root;
    root = -1;
    return 0;
}

static int folder_sync(int root, const char *folder)
{
    CLEANUP_FD int fd = openat(root, *folder != '\0' ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/* "packs/ab" of "packs/ab/...", "" where there is none; returns the rest. */
static const char *folder_of(const char *name, char ret_folder[STORE_NAME_BYTES])
{
    const char *slash = strrchr(name, '/');
    size_t length = slash != NULL ? (size_t)(slash - name) : 0;
    memcpy(ret_folder, name, length);
    ret_folder[length] = '\0';
    return slash != NULL ? slash + 1 : name;
}

/* With what is above it; the names of new folders last, up to the store's own. */
static int folder_make(int root, const char *folder)
{
    char part[STORE_NAME_BYTES], above[STORE_NAME_BYTES];
    int code = 0;
    for (size_t length = 1; code == 0 && length <= strlen(folder); length++) {
        if (folder[length] != '/' && folder[length] != '\0')
            continue;
        memcpy(part, folder, length);
        part[length] = '\0';
        folder_of(part, above);
        if (mkdirat(root, part, 0700) < 0 && errno != EEXIST)
            code = -errno;
        if (code == 0)
            code = folder_sync(root, above);
    }
    return code;
}

/* The folder @folder of the store, opened; made where it is not there, as is the store's own directory where none was seen. */
static int folder_open(struct store *store, const char *folder, int *ret_fd, struct error *err)
{
    CLEANUP_FD int root = -1;
    const char *name = *folder != '\0' ? folder : ".";
    int code = root_open(store, &root, err);
    if (code == -ENOENT && (code = file_make_directories(of_store(store)->path, 0700, err)) == 0)
        code = root_open(store, &root, err);
    if (code < 0)
        return code;
    int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        code = folder_make(root, folder);
        if (code < 0)
            return failed(store, code, "make", name, err);
        fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (fd < 0)
        return failed(store, -errno, "open", name, err);
    *ret_fd = fd;
    return 0;
}

static int temporary_write(struct store *store, int folder, const char *temporary, const void *data, size_t size)
{
    CLEANUP_FD int fd = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int code = write_paced(store, fd, data, size);
    if (code == 0 && fsync(fd) < 0)
        code = -errno;
    /* NFS and quotas tell of a full disk only here */
    if (close(fd) < 0 && code == 0)
        code = -errno;
    fd = -1;
    return code;
}

static int dir_put(struct store *store, const char *name, const void *data, size_t size, struct error *err)
{
    char below[STORE_NAME_BYTES], temporary[40];
    uint64_t random[2];
    CLEANUP_FD int folder = -1;
    const char *leaf = folder_of(name, below);
    int code = folder_open(store, below, &folder, err);
    if (code < 0)
        return code;
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return failed(store, -EIO, "write", name, err);
    snprintf(temporary, sizeof temporary, TEMPORARY "%016llx%08x", (unsigned long long)random[0],
             (unsigned)random[1]);
    code = temporary_write(store, folder, temporary, data, size);
    if (code == 0 && renameat(folder, temporary, folder, leaf) < 0)
        code = -errno;
    if (code < 0) {
        unlinkat(folder, temporary, 0);
        return failed(store, code, "write", name, err);
    }
    if (fsync(folder) < 0)
        return failed(store, -errno, "write", name, err);
    return 0;
}

static int dir_get(struct store *store, const char *name, uint64_t offset, void *buffer, size_t size,
                   size_t *ret_size, struct error *err)
{
    char path[PATH_MAX];
    size_t got = 0;
    if (snprintf(path, sizeof path, "%s/%s", of_store(store)->path, name) >= (int)sizeof path)
        return failed(store, -ENAMETOOLONG, "read", name, err);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && atomic_load(&of_store(store)->seen)) { /* it is missing only if the store is there */
        CLEANUP_FD int root = -1;
        int code = root_open(store, &root, err);
        if (code < 0)
            return code;
        fd = openat(root, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    }
    if (fd < 0)
        return failed(store, -errno, "read", name, err);
    if (strcmp(name, STORE_SIGN) == 0)
        atomic_store(&of_store(store)->seen, true);
    while (got < size) {
        size_t part = store->pace != NULL ? MIN(size - got, (size_t)STORE_PACE_SLICE_BYTES) : size - got;
        store_pace_take(store->pace, part);
        ssize_t n = pread(fd, (uint8_t *)buffer + got, part, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return failed(store, -errno, "read", name, err);
        if (n == 0)
            break;
        got += (size_t)n;
    }
    *ret_size = got;
    return 0;
}

struct walk {
    const char *prefix;
    store_each_cb each;
    void *arg;
    bool temporaries;
};

static int64_t modified_ms(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000 + st->st_mtim.tv_nsec / 1000000;
}

static int walk_entry(struct store *store, int folder, const char *name, const char *file, struct walk *w, int depth,
                      struct error *err);

static int walk_folder(struct store *store, int fd, const char *name, struct walk *w, int depth, struct error *err)
{
    int code = 0;
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        close(fd);
        return failed(store, -errno, "list", name, err);
    }
    errno = 0;
    for (struct dirent *e; code >= 0 && (errno = 0, e = readdir(dir)) != NULL;) {
        char below[PATH_MAX];
        if (e->d_name[0] == '.' && !(w->temporaries && strncmp(e->d_name, TEMPORARY, strlen(TEMPORARY)) == 0))
            continue;
        if (snprintf(below, sizeof below, "%s%s%s", name, *name == '\0' ? "" : "/", e->d_name) < (int)sizeof below)
            code = walk_entry(store, dirfd(dir), below, e->d_name, w, depth, err);
    }
    if (code >= 0 && errno != 0)
        code = failed(store, -errno, "list", name, err);
    closedir(dir);
    return code;
}

static int walk_entry(struct store *store, int folder, const char *name, const char *file, struct walk *w, int depth,
                      struct error *err)
{
    struct stat st;
    if (fstatat(folder, file, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : failed(store, -errno, "list", name, err); /* removed meanwhile */
    if (S_ISDIR(st.st_mode)) {
        size_t n = MIN(strlen(name), strlen(w->prefix));
        if (depth >= DEPTH_MAX || strncmp(name, w->prefix, n) != 0)
            return 0;
        int fd = openat(folder, file, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            return errno == ENOENT ? 0 : failed(store, -errno, "list", name, err);
        return walk_folder(store, fd, name, w, depth + 1, err);
    }
    if (!S_ISREG(st.st_mode) || strncmp(name, w->prefix, strlen(w->prefix)) != 0)
        return 0;
    struct store_entry entry = {.name = name, .size_bytes = (uint64_t)st.st_size, .modified_ms = modified_ms(&st)};
    return w->each(w->arg, &entry);
}

static int walk(struct store *store, int root, struct walk *w, struct error *err)
{
    char name[STORE_NAME_BYTES] = "";
    size_t length = strlen(w->prefix);
    /* begin in the prefix's own folder: the others need not be read */
    while (length > 0 && w->prefix[length - 1] != '/')
        length--;
    if (length > 0 && length <= sizeof name)
        memcpy(name, w->prefix, length - 1);
    int fd = openat(root, *name != '\0' ? name : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : failed(store, -errno, "list", name, err);
    return walk_folder(store, fd, name, w, 0, err);
}

static int dir_list(struct store *store, const char *prefix, store_each_cb each, void *arg, struct error *err)
{
    struct walk w = {.prefix = prefix, .each = each, .arg = arg};
    CLEANUP_FD int root = -1;
    int code = root_open(store, &root, err);
    return code == -ENOENT ? 0 : code < 0 ? code : walk(store, root, &w, err);
}

static int dir_remove(struct store *store, const char *name, struct error *err)
{
    char below[STORE_NAME_BYTES];
    CLEANUP_FD int root = -1;
    int code = root_open(store, &root, err);
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    if (unlinkat(root, name, 0) < 0)
        return errno == ENOENT ? 0 : failed(store, -errno, "remove", name, err);
    folder_of(name, below);
    code = folder_sync(root, below);
    return code < 0 ? failed(store, code, "remove", name, err) : 0;
}

struct collecting {
    int root;
    int64_t before_ms;
};

static int collect_one(void *arg, const struct store_entry *entry)
{
    const struct collecting *c = arg;
    if (strstr(entry->name, TEMPORARY) != NULL && entry->modified_ms < c->before_ms)
        unlinkat(c->root, entry->name, 0);
    return 0;
}

static int dir_collect(struct store *store, uint64_t age_ms, struct error *err)
{
    struct timespec now;
    CLEANUP_FD int root = -1;
    int code = root_open(store, &root, err);
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    clock_gettime(CLOCK_REALTIME, &now);
    struct collecting c = {.root = root, .before_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - (int64_t)age_ms};
    struct walk w = {.prefix = "", .each = collect_one, .arg = &c, .temporaries = true};
    return walk(store, root, &w, err);
}

static void dir_destroy(struct store *store)
{
    free(of_store(store));
}

int store_dir_create(const char *path, struct store **ret_store, struct error *err)
{
    static const struct store_ops ops = {.put = dir_put,
                                         .get = dir_get,
                                         .list = dir_list,
                                         .remove = dir_remove,
                                         .collect = dir_collect,
                                         .destroy = dir_destroy};
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (path[0] != '/' || length > PATH_MAX - STORE_NAME_BYTES - 2 || length >= STORE_LOCATION_BYTES)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                               "the path of a store is absolute and shorter than "
                               "%d bytes",
                               STORE_LOCATION_BYTES);
    struct store_dir *d = NEW(struct store_dir);
    d->store.ops = &ops;
    d->store.transfers = 2;
    memcpy(d->path, path, length);
    memcpy(d->store.location, path, length);
    *ret_store = &d->store;
    return 0;
}
