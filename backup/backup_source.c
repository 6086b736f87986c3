/* Sources of backups: by location, a raw file, and a list of changes beside any of them. See backup_source.h. */
#include "backup/backup_source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/source_layer.h"
#include "backup/source_nbd.h"
#include "block/block_fd.h"

void backup_source_close(struct backup_source *source)
{
    if (source != NULL)
        source->ops->close(source);
}

/* ---- a raw file ---- */

struct source_file {
    struct backup_source source;
    int fd;
    char *path;
};

static struct source_file *of_file(struct backup_source *source)
{
    return CONTAINER_OF(source, struct source_file, source);
}

static int file_extent(struct backup_source *source, uint64_t offset, enum backup_extent *ret_kind, uint64_t *ret_end,
                       struct error *err)
{
    struct source_file *f = of_file(source);
    uint64_t start = 0, end = 0;
    int code = block_fd_next_data(f->fd, source->size_bytes, offset, &start, &end);
    if (code < 0)
        return error_errno(err, code, "cannot tell where %s has data", f->path);
    if (code == 0 || start > offset) {
        *ret_kind = BACKUP_ZERO;
        *ret_end = code == 0 ? source->size_bytes : MIN(start, source->size_bytes);
    } else {
        *ret_kind = BACKUP_DATA;
        *ret_end = MIN(end, source->size_bytes);
    }
    return 0;
}

static int file_read_at(struct backup_source *source, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    struct source_file *f = of_file(source);
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(f->fd, (uint8_t *)buffer + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, -errno, "cannot read %s at %" PRIu64, f->path, offset);
        if (n == 0)
            return error_set(err, -EIO, ERROR_INTERNAL, "%s has become shorter while it was read", f->path);
        got += (size_t)n;
    }
    return 0;
}

static void file_close(struct backup_source *source)
{
    struct source_file *f = of_file(source);
    close(f->fd);
    free(f->path);
    free(f);
}

static int file_open(const char *path, struct backup_source **ret_source, struct error *err)
{
    static const struct backup_source_ops ops = {.extent = file_extent, .read = file_read_at, .close = file_close};
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no file and no block device", path);
    int code = block_fd_lock(fd, path, true, err);
    if (code < 0)
        return code;
    off_t size = lseek(fd, 0, SEEK_END);
    if (size < 0)
        return error_errno(err, -errno, "cannot tell the size of %s", path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    struct source_file *f = NEW(struct source_file);
    f->source.ops = &ops;
    f->source.size_bytes = (uint64_t)size;
    f->fd = fd;
    fd = -1;
    f->path = xstrdup(path);
    *ret_source = &f->source;
    return 0;
}

int backup_source_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                       struct error *err)
{
    if (strncmp(location, "pool:/", 6) == 0)
        return source_layer_open(location + 5, parent_mark, ret_source, err);
    if (strncmp(location, "nbd:", 4) == 0)
        return source_nbd_open(location + 4, parent_mark, ret_source, err);
    if (strncmp(location, "file:/", 6) == 0)
        location += 5;
    if (location[0] != '/')
        return error_set(
            err, -EINVAL, ERROR_INVALID,
            "'%.100s' is none of file:/PATH, pool:/DIRECTORY/DISK[@SNAPSHOT], nbd:unix:/SOCKET[:EXPORT[@MARK]] and "
            "nbd:fd:N[:EXPORT[@MARK]]",
            location);
    return file_open(location, ret_source, err);
}

/* ---- a list of changes ---- */

struct change {
    uint64_t start, end;
};
struct source_changes {
    struct backup_source source;
    struct backup_source *below;
    struct change *changes; /* ascending, apart */
    size_t count, at;
};

static struct source_changes *of_changes(struct backup_source *source)
{
    return CONTAINER_OF(source, struct source_changes, source);
}

static int changes_extent(struct backup_source *source, uint64_t offset, enum backup_extent *ret_kind,
                          uint64_t *ret_end, struct error *err)
{
    struct source_changes *c = of_changes(source);
    while (c->at > 0 && c->changes[c->at - 1].end > offset)
        c->at--;
    while (c->at < c->count && c->changes[c->at].end <= offset)
        c->at++;
    if (c->at == c->count || c->changes[c->at].start > offset) {
        *ret_kind = BACKUP_SAME;
        *ret_end = c->at == c->count ? source->size_bytes : c->changes[c->at].start;
        return 0;
    }
    int code = c->below->ops->extent(c->below, offset, ret_kind, ret_end, err);
    if (code == 0)
        *ret_end = MIN(*ret_end, c->changes[c->at].end);
    return code;
}

static int changes_read(struct backup_source *source, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    struct source_changes *c = of_changes(source);
    return c->below->ops->read(c->below, offset, buffer, size, err);
}

static void changes_close(struct backup_source *source)
{
    struct source_changes *c = of_changes(source);
    backup_source_close(c->below);
    free(c->changes);
    free(c);
}

static int changes_load(struct source_changes *c, FILE *f, const char *path, struct error *err)
{
    char line[128];
    for (unsigned n = 1; fgets(line, sizeof line, f) != NULL; n++) {
        uint64_t start, length, size = c->source.size_bytes;
        int used = 0;
        if (sscanf(line, "%" SCNu64 " %" SCNu64 " %n", &start, &length, &used) != 2 || line[used] != '\0' ||
            start > size || length > size - start)
            return error_set(err, -EINVAL, ERROR_INVALID,
                             "%s, line %u: \"OFFSET LENGTH\" in bytes, within the disk's %" PRIu64, path, n, size);
        if (c->count > 0 && start < c->changes[c->count - 1].end)
            return error_set(err, -EINVAL, ERROR_INVALID, "%s, line %u: begins before the one above ends", path, n);
        if (length == 0)
            continue;
        if ((c->count & (c->count - 1)) == 0)
            c->changes = xrealloc(c->changes, MAX(c->count * 2, 16u) * sizeof *c->changes);
        c->changes[c->count++] = (struct change){start, start + length};
    }
    return 0;
}

int backup_source_changes(struct backup_source *source, const char *path, struct backup_source **ret_source,
                          struct error *err)
{
    static const struct backup_source_ops ops = {
        .extent = changes_extent, .read = changes_read, .close = changes_close};
    struct source_changes *c = NEW(struct source_changes);
    c->source = (struct backup_source){.ops = &ops, .size_bytes = source->size_bytes, .knows_changes = true};
    memcpy(c->source.mark, source->mark, sizeof source->mark);
    FILE *f = fopen(path, "re");
    int code = f == NULL ? error_errno(err, -errno, "cannot open %s", path) : changes_load(c, f, path, err);
    if (f != NULL)
        fclose(f);
    if (code < 0) {
        changes_close(&c->source);
        return code;
    }
    c->below = source;
    *ret_source = &c->source;
    return 0;
}
