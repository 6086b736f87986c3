/* Files for the kernel's file systems in user space: see fuse_files.h. Node 1 is the directory, node 2 + i file i; there
 * are no handles, since nothing is remembered of who has what open. */
#include "backup/fuse_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FILE_NODE_FIRST = FUSE_ROOT_ID + 1,
    MINOR_MIN = 23,        /* since then the answer to INIT has the size that it has now */
    VALID_S = 24 * 60 * 60, /* nothing ever changes: the kernel need not ask again soon */
    PAGE = 4096,
};

struct call {
    const struct fuse_files *files;
    struct fuse_in_header head;
    const uint8_t *data; /* behind the header */
    size_t size;
    uint8_t *answer; /* room behind the answer's header */
};

/* The arguments of a request, as far as they are there; false: it is too short. */
static bool take(const struct call *c, void *ret, size_t size)
{
    if (c->size < size)
        return false;
    memcpy(ret, c->data, size);
    return true;
}

static int put(struct call *c, const void *data, size_t size)
{
    memcpy(c->answer, data, size);
    return (int)size;
}

static const struct fuse_file *file_of(const struct call *c)
{
    uint64_t node = c->head.nodeid;
    return node >= FILE_NODE_FIRST && node - FILE_NODE_FIRST < c->files->count ? &c->files->items[node - FILE_NODE_FIRST]
                                                                               : NULL;
}

/* Of node @node, which is there. */
static void attr_fill(const struct call *c, uint64_t node, struct fuse_attr *ret)
{
    bool is_root = node == FUSE_ROOT_ID;
    uint64_t size = is_root ? 0 : c->files->items[node - FILE_NODE_FIRST].size_bytes;
    *ret = (struct fuse_attr){.ino = node,
                              .size = size,
                              .blocks = (size + 511) / 512,
                              .atime = (uint64_t)c->files->time_s,
                              .mtime = (uint64_t)c->files->time_s,
                              .ctime = (uint64_t)c->files->time_s,
                              .mode = is_root ? S_IFDIR | 0500 : S_IFREG | 0400,
                              .nlink = is_root ? 2 : 1,
                              .uid = c->files->user,
                              .gid = c->files->group,
                              .blksize = PAGE};
}

static int on_init(struct call *c)
{
    struct {
        uint32_t major, minor, max_readahead, flags;
    } in;
    if (!take(c, &in, sizeof in))
        return -EINVAL;
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
    if (in.major > FUSE_KERNEL_VERSION) /* it asks again with ours */
        return put(c, &out, sizeof out);
    if (in.major < FUSE_KERNEL_VERSION || in.minor < MINOR_MIN)
        return -EPROTO;
    out.minor = MIN(in.minor, (uint32_t)FUSE_KERNEL_MINOR_VERSION);
    out.max_readahead = MIN(in.max_readahead, (uint32_t)FUSE_FILES_READ_BYTES_MAX);
    out.flags = in.flags & (FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS);
    out.max_background = 16;
    out.congestion_threshold = 12;
    out.max_write = PAGE;
    out.time_gran = 1000000000;
    out.max_pages = FUSE_FILES_READ_BYTES_MAX / PAGE;
    return put(c, &out, sizeof out);
}

static int on_lookup(struct call *c)
{
    const char *name = (const char *)c->data;
    if (c->head.nodeid != FUSE_ROOT_ID)
        return -ENOTDIR;
    if (c->size == 0 || name[c->size - 1] != '\0')
        return -EINVAL;
    for (unsigned i = 0; i < c->files->count; i++) {
        if (strcmp(c->files->items[i].name, name) != 0)
            continue;
        struct fuse_entry_out out = {.nodeid = FILE_NODE_FIRST + i, .entry_valid = VALID_S, .attr_valid = VALID_S};
        attr_fill(c, out.nodeid, &out.attr);
        return put(c, &out, sizeof out);
    }
    return -ENOENT;
}

static int on_getattr(struct call *c)
{
    struct fuse_attr_out out = {.attr_valid = VALID_S};
    if (c->head.nodeid != FUSE_ROOT_ID && file_of(c) == NULL)
        return -ENOENT;
    attr_fill(c, c->head.nodeid, &out.attr);
    return put(c, &out, sizeof out);
}

static int on_open(struct call *c)
{
    struct fuse_open_in in;
    struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
    bool is_directory = c->head.opcode == FUSE_OPENDIR;
    if (!take(c, &in, sizeof in))
        return -EINVAL;
    if (is_directory ? c->head.nodeid != FUSE_ROOT_ID : file_of(c) == NULL)
        return -ENOENT;
    if ((in.flags & O_ACCMODE) != O_RDONLY)
        return -EROFS;
    return put(c, &out, sizeof out);
}

static int on_read(struct call *c)
{
    struct fuse_read_in in;
    const struct fuse_file *file = file_of(c);
    if (file == NULL)
        return -ENOENT;
    if (!take(c, &in, sizeof in) || in.size > FUSE_FILES_READ_BYTES_MAX)
        return -EINVAL;
    if (in.offset >= file->size_bytes)
        return 0;
    size_t size = (size_t)MIN((uint64_t)in.size, file->size_bytes - in.offset);
    int code = size > 0 ? file->read(file->arg, in.offset, c->answer, size) : 0;
    return code < 0 ? code : (int)size;
}

/* Entry @index of the directory, which has "." and ".." first. */
static const char *entry_name(const struct call *c, uint64_t index)
{
    return index == 0 ? "." : index == 1 ? ".." : c->files->items[index - 2].name;
}

static int on_readdir(struct call *c)
{
    struct fuse_read_in in;
    size_t used = 0;
    if (c->head.nodeid != FUSE_ROOT_ID)
        return -ENOTDIR;
    if (!take(c, &in, sizeof in) || in.size > FUSE_FILES_READ_BYTES_MAX)
        return -EINVAL;
    for (uint64_t i = in.offset; i < (uint64_t)c->files->count + 2; i++) {
        const char *name = entry_name(c, i);
        size_t length = strlen(name), size = FUSE_REC_ALIGN(FUSE_NAME_OFFSET + length);
        struct fuse_dirent entry = {.ino = i < 2 ? FUSE_ROOT_ID : FILE_NODE_FIRST + i - 2,
                                    .off = i + 1,
                                    .namelen = (uint32_t)length,
                                    .type = (i < 2 ? S_IFDIR : S_IFREG) >> 12};
        if (used + size > in.size)
            break;
        memset(c->answer + used, 0, size);
        memcpy(c->answer + used, &entry, FUSE_NAME_OFFSET);
        memcpy(c->answer + used + FUSE_NAME_OFFSET, name, length);
        used += size;
    }
    return (int)used;
}

static int on_statfs(struct call *c)
{
    struct fuse_statfs_out out = {.st = {.bsize = 512, .frsize = 512, .namelen = FUSE_FILES_NAME_BYTES - 1}};
    out.st.files = c->files->count;
    for (unsigned i = 0; i < c->files->count; i++)
        out.st.blocks += (c->files->items[i].size_bytes + 511) / 512;
    return put(c, &out, sizeof out);
}

/* So that whoever copies a disk skips its holes. */
static int on_lseek(struct call *c)
{
    struct fuse_lseek_in in;
    const struct fuse_file *file = file_of(c);
    if (file == NULL)
        return -ENOENT;
    if (!take(c, &in, sizeof in) || (in.whence != SEEK_DATA && in.whence != SEEK_HOLE))
        return -EINVAL;
    uint64_t at = in.offset;
    bool zero = false;
    for (uint64_t end = file->size_bytes; at < file->size_bytes; at = end) {
        int code = file->extent != NULL ? file->extent(file->arg, at, &zero, &end) : 0;
        if (code < 0)
            return code;
        if (zero == (in.whence == SEEK_HOLE))
            break;
    }
    if (in.offset >= file->size_bytes || (at >= file->size_bytes && in.whence == SEEK_DATA))
        return -ENXIO;
    struct fuse_lseek_out out = {.offset = MIN(at, file->size_bytes)};
    return put(c, &out, sizeof out);
}

static int dispatch(struct call *c)
{
    switch (c->head.opcode) {
    case FUSE_INIT:
        return on_init(c);
    case FUSE_LOOKUP:
        return on_lookup(c);
    case FUSE_GETATTR:
        return on_getattr(c);
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return on_open(c);
    case FUSE_READ:
        return on_read(c);
    case FUSE_READDIR:
        return on_readdir(c);
    case FUSE_STATFS:
        return on_statfs(c);
    case FUSE_LSEEK:
        return on_lseek(c);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
        return 0;
    case FUSE_SETATTR:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_LINK:
    case FUSE_SYMLINK:
    case FUSE_WRITE:
    case FUSE_CREATE:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
    case FUSE_FALLOCATE:
        return -EROFS;
    default:
        return -ENOSYS;
    }
}

size_t fuse_files_answer(const struct fuse_files *files, const void *request, size_t size, void *answer)
{
    struct call c = {.files = files};
    struct fuse_out_header out = {.len = sizeof out};
    if (size < sizeof c.head)
        return 0;
    memcpy(&c.head, request, sizeof c.head);
    c.data = (const uint8_t *)request + sizeof c.head;
    c.size = size - sizeof c.head;
    c.answer = (uint8_t *)answer + sizeof out;
    if (c.head.opcode == FUSE_FORGET || c.head.opcode == FUSE_BATCH_FORGET || c.head.opcode == FUSE_INTERRUPT)
        return 0; /* nothing is kept that could be forgotten, and no read takes long but by its store */
    int code = dispatch(&c);
    out.unique = c.head.unique;
    out.error = code < 0 ? code : 0;
    out.len += code > 0 ? (uint32_t)code : 0;
    memcpy(answer, &out, sizeof out);
    return out.len;
}
