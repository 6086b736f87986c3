/* Copies of disks as snapshots have them; see image_snapshot.h. */
#include "compute/agent/image_snapshot.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/sparse_file.h"
#include "schema/objects.h"

#define PIECE_BYTES (1u << 20)
#define TOLD_BYTES (16u << 20) /* so often it says how far it is */

struct copy {
    struct layer_disk *disk;
    int fd;
    const struct image_import_listener *listener;
    struct error *err;
    char *piece;
    uint64_t done, total;
};

static void tell(const struct image_import_listener *listener, const char *step, uint64_t done, uint64_t total)
{
    if (listener != NULL)
        listener->progress(step, done, total, listener->arg);
}

/* ---- opening ---- */

/* Worth another look: a merge has a layer open for writing, or has just removed one that the head named when we read it. */
static bool may_come(int code, const struct error *err, unsigned looks)
{
    if (code == -EBUSY)
        return looks < IMAGE_SNAPSHOT_LOOKS_MAX;
    return code == -ENOENT && err->kind != ERROR_NOT_FOUND && looks < IMAGE_SNAPSHOT_MISSED_MAX;
}

static int open_snapshot(struct layer_pool *pool, const char *disk, const char *snapshot,
                         const struct image_import_listener *listener, struct layer_disk **ret, struct error *err)
{
    const struct timespec pause = {.tv_nsec = IMAGE_SNAPSHOT_LOOK_MS * 1000000L};
    struct error why = {.code = 0};
    int code;
    for (unsigned looks = 0; (code = layer_disk_open_snapshot(pool, disk, snapshot, ret, &why)) < 0 && may_come(code, &why, looks); looks++) {
        tell(listener, "waiting until layers of the VM's disk are merged", 0, 0);
        nanosleep(&pause, NULL);
    }
    if (code < 0)
        *err = why;
    return code;
}

/* ---- copying ---- */

/* The next stretch of data from cluster *@at on, in bytes; false: none follows. */
static bool next_data(const struct copy *c, uint64_t *at, uint64_t *ret_begin, uint64_t *ret_end)
{
    enum layer_state state = LAYER_ABSENT;
    uint64_t first, count;
    while (state != LAYER_DATA) {
        if (!layer_chain_changed(c->disk->chain, -1, *at, &first, &count, &state))
            return false;
        *at = first + count;
    }
    *ret_begin = first * LAYER_CLUSTER_BYTES;
    *ret_end = MIN((first + count) * LAYER_CLUSTER_BYTES, c->disk->chain->block.size_bytes);
    return true;
}

static uint64_t count_data(const struct copy *c)
{
    uint64_t at = 0, begin, end, sum = 0;
    while (next_data(c, &at, &begin, &end))
        sum += end - begin;
    return sum;
}

static int write_error(const struct copy *c, int code)
{
    if (code != -ENOSPC && code != -EDQUOT)
        return error_errno(c->err, code, "cannot write the copy of disk %s", c->disk->name);
    return error_set(c->err, -ENOSPC, ERROR_NO_SPACE,
                     "there was no room left for the copy of disk %s, which has %llu MiB of data in the snapshot: free some where this host "
                     "keeps its images", c->disk->name, (unsigned long long)((c->total >> 20) + 1));
}

static int copy_stretch(struct copy *c, uint64_t at, uint64_t end)
{
    for (size_t n; at < end; at += n) {
        n = (size_t)MIN(end - at, (uint64_t)PIECE_BYTES);
        int code = block_now(&c->disk->chain->block, BLOCK_READ, at, c->piece, n);
        if (code < 0)
            return error_errno(c->err, code, "cannot read disk %s", c->disk->name);
        code = sparse_file_write(c->fd, c->piece, n, at);
        if (code < 0)
            return write_error(c, code);
        c->done += n;
        if (c->done / TOLD_BYTES != (c->done - n) / TOLD_BYTES)
            tell(c->listener, IMAGE_SNAPSHOT_COPYING, c->done, c->total);
    }
    return 0;
}

static int copy_all(struct copy *c)
{
    const uint64_t size = c->disk->chain->block.size_bytes;
    const uint64_t most = (uint64_t)object_field(&artifact_desc, "size_bytes")->max;
    uint64_t at = 0, begin, end;
    int code = 0;
    if (size > most)
        return error_set(c->err, -EFBIG, ERROR_NOT_SUPPORTED, "disk %s has %llu bytes, and an image at most %llu; make a backup of the VM",
                         c->disk->name, (unsigned long long)size, (unsigned long long)most);
    c->total = count_data(c);
    tell(c->listener, IMAGE_SNAPSHOT_COPYING, 0, c->total);
    while (code == 0 && next_data(c, &at, &begin, &end))
        code = copy_stretch(c, begin, end);
    if (code == 0 && ftruncate(c->fd, (off_t)size) < 0)
        code = write_error(c, -errno);
    return code;
}

int image_snapshot_copy(const char *directory, const char *disk, const char *snapshot, int fd,
                        const struct image_import_listener *listener, struct error *err)
{
    struct error own = {.code = 0};
    struct copy c = {.fd = fd, .listener = listener, .err = &own};
    struct layer_pool *pool;
    int code = layer_pool_dir_create(directory, NULL, NULL, &pool, err);
    if (code < 0)
        return code;
    code = open_snapshot(pool, disk, snapshot, listener, &c.disk, &own);
    if (code == 0) {
        c.piece = xcalloc(1, PIECE_BYTES);
        code = copy_all(&c);
        free(c.piece);
        layer_disk_close(c.disk);
    }
    layer_pool_dir_destroy(pool);
    if (code < 0 && err != NULL)
        *err = own;
    return code;
}
