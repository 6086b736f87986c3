/* A backup's manifest: see manifest.h for the format. */
#include "backup/manifest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/chunk_tree.h"

#define MAGIC "DRVBKUP1"
#define FLAG_SEALED 1u
#define ABOUT "definition of a backup"

const struct manifest_disk *manifest_disk_at(const struct manifest *manifest, size_t index)
{
    return &((const struct manifest_disk *)manifest->head.disks.items)[index];
}

int manifest_disk_find(const struct manifest *manifest, const char *name)
{
    for (size_t i = 0; i < manifest->head.disks.count; i++)
        if (strcmp(manifest_disk_at(manifest, i)->name, name) == 0)
            return (int)i;
    return -1;
}

uint64_t manifest_first_leaf(const struct manifest *manifest, size_t disk, uint32_t chunk_bytes)
{
    uint64_t leaves = 0;
    for (size_t i = 0; i < disk; i++)
        leaves += chunk_tree_leaves(manifest_disk_at(manifest, i)->size_bytes, chunk_bytes);
    return leaves;
}

void manifest_tell_content(struct manifest *manifest, uint32_t chunk_bytes)
{
    char text[CHUNK_HASH_TEXT_BYTES];
    struct chunk_hash hash;
    for (size_t i = 0; i < manifest->head.disks.count; i++) {
        struct manifest_disk *disk = &((struct manifest_disk *)manifest->head.disks.items)[i];
        uint64_t leaves = chunk_tree_leaves(disk->size_bytes, chunk_bytes);
        chunk_hash_plain(manifest->leaves + manifest_first_leaf(manifest, i, chunk_bytes), leaves * CHUNK_HASH_BYTES, &hash);
        OBJECT_TEXT(manifest_disk, disk, content, chunk_hash_text(&hash, text));
    }
}

void manifest_encode(const struct manifest *manifest, const struct repo_keys *keys, bool seal,
                     struct bytes_writer *out)
{
    struct bytes_writer head = {0};
    struct chunk_hash hash;
    size_t from = out->size, definition = manifest->definition != NULL ? strlen(manifest->definition) : 0;
    seal = seal && definition > 0;
    OBJECT_ENCODE(backup_manifest, &manifest->head, &head);
    bytes_put(out, MAGIC, 8);
    bytes_put_u32(out, MANIFEST_VERSION);
    bytes_put_u32(out, seal ? FLAG_SEALED : 0);
    bytes_put_u32(out, (uint32_t)head.size);
    bytes_put_u32(out, (uint32_t)(definition + (seal ? REPO_SEAL_BYTES : 0)));
    bytes_put_u32(out, manifest->leaf_count);
    bytes_put_u32(out, 0);
    bytes_put(out, head.data, head.size);
    bytes_writer_finish(&head);
    if (seal) {
        CLEANUP_FREE uint8_t *sealed = xcalloc(1, definition + REPO_SEAL_BYTES);
        repo_seal(keys->seal, ABOUT, strlen(ABOUT), manifest->definition, definition, sealed);
        bytes_put(out, sealed, definition + REPO_SEAL_BYTES);
    } else {
        bytes_put(out, manifest->definition, definition);
    }
    bytes_put(out, manifest->leaves, (size_t)manifest->leaf_count * CHUNK_HASH_BYTES);
    chunk_hash_keyed(keys->sign, out->data + from, out->size - from, &hash);
    bytes_put(out, hash.bytes, CHUNK_HASH_BYTES);
    chunk_hash_plain(out->data + from, out->size - from, &hash);
    bytes_put(out, hash.bytes, CHUNK_HASH_BYTES);
}

static int damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the manifest is damaged: %s", what);
}

static int definition_take(const uint8_t *data, uint32_t size, const struct repo_keys *keys, struct manifest *m,
                           struct error *err)
{
    uint32_t plain = m->sealed ? size - REPO_SEAL_BYTES : size;
    if (size == 0 || (m->sealed && !keys->present))
        return 0;
    if (m->sealed && size < REPO_SEAL_BYTES)
        return damaged(err, "the definition is cut off");
    m->definition = malloc((size_t)plain + 1);
    if (m->definition == NULL)
        return error_set(err, -ENOMEM, ERROR_OVERLOAD, "no memory for a manifest");
    m->definition[plain] = '\0';
    if (!m->sealed)
        memcpy(m->definition, data, size);
    else if (repo_unseal(keys->seal, ABOUT, strlen(ABOUT), data, size, m->definition) < 0)
        return damaged(err, "the definition's seal is broken");
    return 0;
}

static int leaves_check(const struct manifest *m, uint32_t chunk_bytes, struct error *err)
{
    uint64_t leaves = 0;
    for (size_t i = 0; i < m->head.disks.count; i++) {
        const struct manifest_disk *d = manifest_disk_at(m, i);
        if (manifest_disk_find(m, d->name) != (int)i)
            return damaged(err, "two disks have one name");
        leaves += chunk_tree_leaves(d->size_bytes, chunk_bytes);
    }
    return leaves == m->leaf_count ? 0 : damaged(err, "the lists of chunks do not fit the disks' sizes");
}

static int take(const uint8_t *data, size_t size, const struct repo_keys *keys, uint32_t chunk_bytes,
                struct manifest *m, struct error *err)
{
    struct bytes_reader r = bytes_reader(data, size - 2 * CHUNK_HASH_BYTES);
    struct chunk_hash hash;
    if (memcmp(bytes_get(&r, 8), MAGIC, 8) != 0)
        return damaged(err, "it does not begin as one");
    uint32_t version = bytes_get_u32(&r), flags = bytes_get_u32(&r), head = bytes_get_u32(&r);
    uint32_t definition = bytes_get_u32(&r);
    m->leaf_count = bytes_get_u32(&r);
    bytes_get_u32(&r);
    if (version != MANIFEST_VERSION || (flags & ~FLAG_SEALED) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the manifest has format %u (%x); this program knows format %d", version, flags,
                         MANIFEST_VERSION);
    chunk_hash_plain(data, size - CHUNK_HASH_BYTES, &hash);
    if (memcmp(hash.bytes, data + size - CHUNK_HASH_BYTES, CHUNK_HASH_BYTES) != 0)
        return damaged(err, "it does not match its checksum");
    chunk_hash_keyed(keys->sign, data, size - 2 * CHUNK_HASH_BYTES, &hash);
    if (keys->present && memcmp(hash.bytes, data + size - 2 * CHUNK_HASH_BYTES, CHUNK_HASH_BYTES) != 0)
        return damaged(err, "it was not signed with this store's key");
    m->sealed = flags & FLAG_SEALED;
    if (head > MANIFEST_HEAD_BYTES_MAX || definition > MANIFEST_DEFINITION_BYTES_MAX + REPO_SEAL_BYTES ||
        bytes_left(&r) != (uint64_t)head + definition + (uint64_t)m->leaf_count * CHUNK_HASH_BYTES)
        return damaged(err, "its length is wrong");
    /* as from a user: all that is needed must be there */
    int code = OBJECT_DECODE(backup_manifest, bytes_get(&r, head), head, OBJECT_CREATE, &m->head, err);
    if (code < 0)
        return damaged(err, "its head is not what a manifest begins with");
    code = definition_take(bytes_get(&r, definition), definition, keys, m, err);
    if (code < 0)
        return code;
    m->leaves = malloc(MAX((size_t)m->leaf_count, 1u) * CHUNK_HASH_BYTES);
    if (m->leaves == NULL)
        return error_set(err, -ENOMEM, ERROR_OVERLOAD, "no memory for a manifest");
    memcpy(m->leaves, bytes_get(&r, (size_t)m->leaf_count * CHUNK_HASH_BYTES),
           (size_t)m->leaf_count * CHUNK_HASH_BYTES);
    return leaves_check(m, chunk_bytes, err);
}

int manifest_decode(const void *data, size_t size, const struct repo_keys *keys, uint32_t chunk_bytes,
                    struct manifest *ret_manifest, struct error *err)
{
    struct manifest m = {0};
    if (size < 32 + 2 * CHUNK_HASH_BYTES || size > MANIFEST_BYTES_MAX)
        return damaged(err, "its length is out of bounds");
    int code = take(data, size, keys, chunk_bytes, &m, err);
    if (code < 0) {
        manifest_finish(&m);
        return code;
    }
    *ret_manifest = m;
    return 0;
}

void manifest_finish(struct manifest *manifest)
{
    OBJECT_CLEAR(backup_manifest, &manifest->head);
    free(manifest->definition);
    free(manifest->leaves);
    *manifest = (struct manifest){0};
}

int manifest_time_parse(const char *text, int64_t *ret_ms)
{
    struct tm tm = {0};
    char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    int ms = 0, n = 0;
    if (end == NULL || sscanf(end, ".%3dZ%n", &ms, &n) != 1 || n != 5 || end[n] != '\0' || ms < 0)
        return -EINVAL;
    *ret_ms = (int64_t)timegm(&tm) * 1000 + ms;
    return 0;
}

const char *manifest_time_text(int64_t ms, char ret_text[25])
{
    struct tm tm;
    time_t s = (time_t)(ms / 1000);
    char all[64];
    gmtime_r(&s, &tm);
    snprintf(all, sizeof all, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
             tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(ms % 1000));
    memcpy(ret_text, all, 24);
    ret_text[24] = '\0';
    return ret_text;
}
