/* Periods of clusters: see changed_map.h. */
#include "block/changed_map.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"

#define MAGIC "DRVCHNGD"
enum { MAGIC_BYTES = 8, VERSION = 1, CRC_BYTES = 4 };

static uint64_t clusters_of(uint64_t size_bytes)
{
    return (size_bytes + CHANGED_CLUSTER_BYTES - 1) / CHANGED_CLUSTER_BYTES;
}

int changed_map_init(struct changed_map *map, uint64_t size_bytes)
{
    *map = (struct changed_map){.size_bytes = size_bytes, .clusters = clusters_of(size_bytes), .current = 1};
    map->period = calloc(MAX(map->clusters, UINT64_C(1)), 1);
    return map->period == NULL ? -ENOMEM : 0;
}

void changed_map_finish(struct changed_map *map)
{
    free(map->period);
    *map = (struct changed_map){.period = NULL};
}

int changed_map_grow(struct changed_map *map, uint64_t size_bytes)
{
    uint64_t clusters = clusters_of(size_bytes);
    ASSERT(size_bytes >= map->size_bytes);
    uint8_t *period = realloc(map->period, MAX(clusters, UINT64_C(1)));
    if (period == NULL)
        return -ENOMEM;
    uint64_t old = map->size_bytes;
    map->period = period;
    memset(period + map->clusters, map->current, clusters - map->clusters);
    map->clusters = clusters;
    map->size_bytes = size_bytes;
    if (size_bytes > old)
        changed_map_mark(map, old, size_bytes - old); /* the cluster that was the last, too */
    return 0;
}

void changed_map_mark(struct changed_map *map, uint64_t offset, uint64_t size)
{
    uint64_t first = offset / CHANGED_CLUSTER_BYTES, end = clusters_of(offset + size);
    if (first < map->clusters)
        memset(map->period + first, map->current, MIN(end, map->clusters) - first);
}

/* All periods that no backup tells apart become one: they run from 0 to base_count then. */
static void periods_renumber(struct changed_map *map)
{
    uint8_t to[CHANGED_PERIOD_MAX + 1];
    for (unsigned p = 0; p <= CHANGED_PERIOD_MAX; p++) {
        to[p] = 0;
        for (unsigned i = 0; i < map->base_count; i++)
            to[p] = (uint8_t)(to[p] + (map->bases[i].period < p));
    }
    for (uint64_t c = 0; c < map->clusters; c++)
        map->period[c] = to[map->period[c]];
    for (unsigned i = 0; i < map->base_count; i++)
        map->bases[i].period = to[map->bases[i].period];
    map->current = (uint8_t)(map->base_count + 1);
}

uint8_t changed_map_cut(struct changed_map *map)
{
    if (map->current == CHANGED_PERIOD_MAX)
        periods_renumber(map);
    return map->current++;
}

static void base_forget(struct changed_map *map, unsigned index)
{
    map->base_count--;
    memmove(map->bases + index, map->bases + index + 1, (map->base_count - index) * sizeof *map->bases);
}

static int base_find(const struct changed_map *map, const char *name)
{
    for (unsigned i = 0; i < map->base_count; i++)
        if (strcmp(map->bases[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* As task_session.c names them: r-<id>.<number>. A backup's name ends in -<date>-<time>. */
static bool is_session(const char *name)
{
    const char *dot = strrchr(name, '.');
    return strncmp(name, "r-", 2) == 0 && dot != NULL && dot[1 + strspn(dot + 1, "0123456789")] == '\0';
}

/* Each session has a name of its own: they make room for each other, and push no backup out. */
static void sessions_forget(struct changed_map *map)
{
    unsigned sessions = 1;
    for (unsigned i = map->base_count; i-- > 0;)
        if (is_session(map->bases[i].name) && ++sessions > CHANGED_SESSIONS_MAX)
            base_forget(map, i);
}

void changed_map_keep(struct changed_map *map, const char *name, uint8_t cut)
{
    size_t length = strlen(name);
    ASSERT(length > 0 && length <= CHANGED_NAME_BYTES_MAX && cut < map->current);
    int same = base_find(map, name);
    if (same >= 0)
        base_forget(map, (unsigned)same);
    if (is_session(name))
        sessions_forget(map);
    if (map->base_count == CHANGED_BASES_MAX)
        base_forget(map, 0);
    struct changed_base *base = &map->bases[map->base_count++];
    *base = (struct changed_base){.period = cut};
    memcpy(base->name, name, length);
}

int changed_map_find(const struct changed_map *map, const char *name)
{
    int index = base_find(map, name);
    return index < 0 ? -1 : map->bases[index].period;
}

bool changed_map_since(const struct changed_map *map, uint8_t cut, uint64_t from, uint64_t *ret_end)
{
    uint64_t c = from / CHANGED_CLUSTER_BYTES;
    ASSERT(c < map->clusters);
    bool changed = map->period[c] > cut;
    while (c < map->clusters && (map->period[c] > cut) == changed)
        c++;
    *ret_end = MIN(c * CHANGED_CLUSTER_BYTES, map->size_bytes);
    return changed;
}

uint64_t changed_map_bytes_since(const struct changed_map *map, uint8_t cut)
{
    uint64_t bytes = 0, end;
    for (uint64_t at = 0; at < map->size_bytes; at = end)
        bytes += changed_map_since(map, cut, at, &end) ? end - at : 0;
    return bytes;
}

/* ---- on disk ---- */

static void map_encode(const struct changed_map *map, const uint8_t *stamp, struct bytes_writer *out)
{
    bytes_put(out, MAGIC, MAGIC_BYTES);
    bytes_put_u32(out, VERSION);
    bytes_put_u32(out, CHANGED_CLUSTER_BYTES);
    bytes_put_u64(out, map->size_bytes);
    bytes_put_u8(out, map->current);
    bytes_put_u8(out, (uint8_t)map->base_count);
    bytes_put(out, stamp, CHANGED_STAMP_BYTES);
    for (unsigned i = 0; i < map->base_count; i++) {
        size_t length = strlen(map->bases[i].name);
        bytes_put_u8(out, map->bases[i].period);
        bytes_put_u8(out, (uint8_t)length);
        bytes_put(out, map->bases[i].name, length);
    }
    for (uint64_t c = 0, end; c < map->clusters; c = end) {
        for (end = c + 1; end < map->clusters && map->period[end] == map->period[c] && end - c < UINT32_MAX;)
            end++;
        bytes_put_u8(out, map->period[c]);
        bytes_put_u32(out, (uint32_t)(end - c));
    }
    bytes_put_u32(out, bytes_crc32c(0, out->data, out->size));
}

static int damaged(struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the map of changed clusters is damaged");
}

static int bases_decode(struct changed_map *map, unsigned count, struct bytes_reader *in)
{
    for (unsigned i = 0; i < count; i++) {
        struct changed_base *base = &map->bases[i];
        *base = (struct changed_base){.period = bytes_get_u8(in)};
        size_t length = bytes_get_u8(in);
        const void *name = bytes_get(in, length);
        if (name == NULL || length == 0 || length > CHANGED_NAME_BYTES_MAX || base->period >= map->current ||
            memchr(name, 0, length) != NULL)
            return -EBADMSG;
        memcpy(base->name, name, length);
        map->base_count++;
    }
    return 0;
}

static int runs_decode(struct changed_map *map, struct bytes_reader *in)
{
    for (uint64_t c = 0; c < map->clusters;) {
        uint8_t period = bytes_get_u8(in);
        uint32_t count = bytes_get_u32(in);
        if (in->bad || count == 0 || count > map->clusters - c || period > map->current)
            return -EBADMSG;
        memset(map->period + c, period, count);
        c += count;
    }
    return bytes_left(in) == 0 ? 0 : -EBADMSG;
}

/* @map is as changed_map_init left it. */
static int body_decode(struct changed_map *map, struct bytes_reader *in, const uint8_t *stamp, struct error *err)
{
    uint32_t version = bytes_get_u32(in), cluster = bytes_get_u32(in);
    uint64_t size = bytes_get_u64(in);
    uint8_t current = bytes_get_u8(in);
    unsigned bases = bytes_get_u8(in);
    const void *of = bytes_get(in, CHANGED_STAMP_BYTES);
    if (of == NULL || version != VERSION || cluster != CHANGED_CLUSTER_BYTES || current == 0 || bases > CHANGED_BASES_MAX)
        return damaged(err);
    if (size != map->size_bytes || memcmp(of, stamp, CHANGED_STAMP_BYTES) != 0)
        return error_set(err, -ESTALE, ERROR_STALE, "the disk was changed since its map of changed clusters was written");
    map->current = current;
    return bases_decode(map, bases, in) < 0 || runs_decode(map, in) < 0 ? damaged(err) : 0;
}

int changed_map_decode(struct changed_map *map, const void *data, size_t size, const uint8_t *stamp, struct error *err)
{
    if (size < MAGIC_BYTES + CRC_BYTES || memcmp(data, MAGIC, MAGIC_BYTES) != 0)
        return damaged(err);
    struct bytes_reader crc = bytes_reader((const uint8_t *)data + size - CRC_BYTES, CRC_BYTES);
    if (bytes_get_u32(&crc) != bytes_crc32c(0, data, size - CRC_BYTES))
        return damaged(err);
    struct bytes_reader in = bytes_reader((const uint8_t *)data + MAGIC_BYTES, size - MAGIC_BYTES - CRC_BYTES);
    int code = body_decode(map, &in, stamp, err);
    if (code < 0) {
        memset(map->period, 0, map->clusters);
        map->base_count = 0;
        map->current = 1;
    }
    return code;
}

int changed_map_save(const struct changed_map *map, const char *path, const uint8_t *stamp, struct error *err)
{
    struct bytes_writer out = {0};
    map_encode(map, stamp, &out);
    int code = out.size > CHANGED_FILE_BYTES_MAX
                   ? error_set(err, -EFBIG, ERROR_TOO_LARGE, "the map of changed clusters is too large to be kept")
                   : file_write_atomic(path, out.data, out.size, 0600, err);
    bytes_writer_finish(&out);
    return code;
}

static int file_forget(const char *path, struct error *err)
{
    CLEANUP_FREE char *directory = xstrdup(path);
    char *slash = strrchr(directory, '/');
    if (unlink(path) < 0)
        return error_errno(err, -errno, "cannot remove %s", path);
    if (slash != NULL)
        *slash = '\0';
    return file_sync_directory(slash == NULL ? "." : slash == directory ? "/" : directory, err);
}

int changed_map_load(struct changed_map *map, const char *path, const uint8_t *stamp, struct error *err)
{
    CLEANUP_FREE char *data = NULL;
    size_t size;
    int code = file_read_foreign(path, CHANGED_FILE_BYTES_MAX, &data, &size, err);
    if (code == -ENOENT)
        return code;
    int gone = file_forget(path, code < 0 ? NULL : err);
    if (code == 0 && gone == 0)
        code = changed_map_decode(map, data, size, stamp, err);
    return code < 0 ? code : gone;
}
