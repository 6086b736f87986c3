/* A backup as one object, "backups/<id>-<session>" (repo.h): what it is, the definition of its VM, and the leaves of
 * its disks' lists of chunks. It is written last: a backup is there when its manifest is, whole or not at all. It
 * names everything it needs; its parent may go.
 *
 *   0 magic "DRVBKUP1" | 8 u32 version | 12 u32 flags (1: the definition is sealed) | 16 u32 bytes of the head
 *  20 u32 bytes of the definition | 24 u32 leaves | 28 zeroes (4)
 *     head: JSON (schema: backup_manifest) | definition | leaves: id[32] each, the disks' one after another
 *     last 64: keyed BLAKE3 of all before under the store's signing key | BLAKE3 of all before
 *
 * The last hash tells damage without a key; the one before that nobody without the key has made it. The definition is
 * the caller's: a JSON text of the VM and its networks, opaque here. Integers little-endian. */
#ifndef BACKUP_MANIFEST_H
#define BACKUP_MANIFEST_H

#include "backup/chunk_hash.h"
#include "backup/repo_key.h"
#include "schema/objects.h"

enum {
    MANIFEST_VERSION = 1,
    MANIFEST_BYTES_MAX = 64 << 20, /* 2 million leaves: a PiB */
    MANIFEST_HEAD_BYTES_MAX = 1 << 20,
    MANIFEST_DEFINITION_BYTES_MAX = 4 << 20,
    MANIFEST_DISKS_MAX = 64,
    MANIFEST_NAME_BYTES = 64, /* "backups/<id>-<session>" with its terminator */
};

struct manifest {
    struct backup_manifest head;
    char *definition; /* NULL: none, or sealed and the key is not there */
    bool sealed;      /* the definition is */
    struct chunk_hash *leaves;
    uint32_t leaf_count;
};

/* Of @keys->present only. */
void manifest_encode(const struct manifest *manifest, const struct repo_keys *keys, bool seal,
                     struct bytes_writer *out);
/* @chunk_bytes of the store: the number of leaves has to fit the disks' sizes. Without keys the signature is not
 * looked at. -EBADMSG, -ENOTSUP in words. */
int manifest_decode(const void *data, size_t size, const struct repo_keys *keys, uint32_t chunk_bytes,
                    struct manifest *ret_manifest, struct error *err);
void manifest_finish(struct manifest *manifest);
const struct manifest_disk *manifest_disk_at(const struct manifest *manifest, size_t index);
/* -1: none of that name */
int manifest_disk_find(const struct manifest *manifest, const char *name);
/* Which of the leaves is the disk's first. */
uint64_t manifest_first_leaf(const struct manifest *manifest, size_t disk, uint32_t chunk_bytes);
/* Fill in what identifies the content of each disk: the hash of its leaves' names. */
void manifest_tell_content(struct manifest *manifest, uint32_t chunk_bytes);
/* Milliseconds since 1970 of a time as in created_at, and back; -EINVAL. */
int manifest_time_parse(const char *text, int64_t *ret_ms);
const char *manifest_time_text(int64_t ms, char ret_text[25]);

#endif
