/* Changed clusters over the lives of VMMs: see machine_changes.h. */
#include "compute/vmm/machine_changes.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/log.h"

enum { HEAD_BYTES_MAX = 1 << 20, STAMP_OF_FILE = 1, STAMP_OF_LAYERS = 2 };

/* What changes whenever the file is written by whomever. */
static bool file_stamp(const char *path, struct bytes_writer *out)
{
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) /* of a block device nothing is known */
        return false;
    bytes_put_u64(out, st.st_ino);
    bytes_put_u64(out, (uint64_t)st.st_mtim.tv_sec);
    bytes_put_u32(out, (uint32_t)st.st_mtim.tv_nsec);
    return true;
}

/* The head, and the two files of the top, which alone is written. */
static bool layers_stamp(const char *path, struct bytes_writer *out)
{
    CLEANUP_FREE char *text = NULL;
    struct disk_head head = {.format = 0};
    size_t size;
    if (file_read(path, HEAD_BYTES_MAX, &text, &size, NULL) < 0 ||
        OBJECT_DECODE(disk_head, text, size, OBJECT_CREATE, &head, NULL) < 0)
        return false;
    const char *slash = strrchr(path, '/');
    int length = slash != NULL ? (int)(slash - path) + 1 : 0;
    CLEANUP_FREE char *data = xasprintf("%.*s%s.raw", length, path, head.top);
    CLEANUP_FREE char *map = xasprintf("%.*s%s.map", length, path, head.top);
    bool known = file_stamp(data, out) && file_stamp(map, out);
    bytes_put_u32(out, bytes_crc32c(0, text, size));
    bytes_put_u32(out, bytes_crc32c(0, head.top, strlen(head.top)));
    OBJECT_CLEAR(disk_head, &head);
    return known;
}

static void stamp_of(const char *path, bool has_layers, uint8_t stamp[CHANGED_STAMP_BYTES])
{
    struct bytes_writer out = {0};
    bytes_put_u8(&out, has_layers ? STAMP_OF_LAYERS : STAMP_OF_FILE);
    bool known = has_layers ? layers_stamp(path, &out) : file_stamp(path, &out);
    memset(stamp, 0, CHANGED_STAMP_BYTES);
    ASSERT(out.size <= CHANGED_STAMP_BYTES);
    if (known)
        memcpy(stamp, out.data, out.size);
    bytes_writer_finish(&out);
}

void machine_changes_stamp(const struct vmm_disk *disk, uint8_t stamp[CHANGED_STAMP_BYTES])
{
    stamp_of(disk->path, disk->format == disk_format_LAYERS, stamp);
}

static void on_change(void *arg, uint64_t offset, uint64_t size)
{
    changed_map_mark(arg, offset, size);
}

struct machine_changes *machine_changes_begin(const struct vmm_disk *disk, struct block *block)
{
    struct machine_changes *c = NEW(struct machine_changes);
    if (changed_map_init(&c->map, block->size_bytes) < 0) {
        free(c);
        return NULL;
    }
    c->has_layers = disk->format == disk_format_LAYERS;
    c->disk_path = xstrdup(disk->path);
    c->path = xasprintf("%s.changed", disk->path);
    block->changes = on_change;
    block->changes_arg = &c->map;
    return c;
}

struct machine_changes *machine_changes_load(const struct vmm_disk *disk, struct block *block,
                                             const uint8_t stamp[CHANGED_STAMP_BYTES])
{
    CLEANUP_FREE char *path = xasprintf("%s.changed", disk->path);
    struct error err = {0};
    char quoted[640];
    if (access(path, F_OK) < 0)
        return NULL;
    struct machine_changes *c = machine_changes_begin(disk, block);
    int code = c == NULL ? -ENOMEM : changed_map_load(&c->map, path, stamp, &err);
    if (code == 0 && stamp[0] == 0) /* nobody can say whether it is the same disk */
        code = error_set(&err, -ESTALE, ERROR_STALE, "what it was written for cannot be told");
    if (code == 0)
        return c;
    log_info("changes-unknown", "disk=%s why=%s", disk->path, log_quote(err.text, quoted, sizeof quoted));
    block->changes = NULL;
    machine_changes_end(c, false);
    return NULL;
}

void machine_changes_grown(struct machine_changes *c, struct block *block)
{
    if (c != NULL && changed_map_grow(&c->map, block->size_bytes) < 0)
        c->map.base_count = 0; /* no memory: all its backups are forgotten */
}

void machine_changes_end(struct machine_changes *c, bool keep)
{
    uint8_t stamp[CHANGED_STAMP_BYTES];
    struct error err = {0};
    char quoted[640];
    if (c == NULL)
        return;
    if (keep && c->map.base_count > 0) {
        stamp_of(c->disk_path, c->has_layers, stamp);
        if (stamp[0] != 0 && changed_map_save(&c->map, c->path, stamp, &err) < 0)
            log_warning("changes-not-kept", "disk=%s why=%s", c->disk_path, log_quote(err.text, quoted, sizeof quoted));
    }
    changed_map_finish(&c->map);
    free(c->path);
    free(c->disk_path);
    free(c);
}
