/* Which clusters of a disk were written since which of its backups, kept by whoever writes to the disk.
 *
 * Each cluster of 64 KiB carries a number: in which period it was last written. A cut ends a period and begins the next;
 * a cut that became a backup is kept under the backup's name. Changed since backup B = the number is higher than B's
 * cut. So a backup that fails costs nothing, several chains of backups share one map, and marking is one store.
 *
 *     period  1        2              3           4 (current)
 *             |--------|--------------|-----------|-------
 *                   cut 1 = "b-17"  cut 2      cut 3 = "b-18"          since "b-17": all clusters with 2, 3, 4
 *
 * Periods fit a byte: when they run out they are numbered anew by the backups that are still named. In memory a byte for
 * each cluster, 16 MiB for each TiB.
 *
 * On disk only while nobody writes to the disk (changed_map_save at the end, changed_map_load at the beginning, which
 * removes the file before it returns). A process that dies leaves no file, and the next backup reads everything. The file
 * is bound to the disk's content by `stamp`, whatever changes when others write to the disk (block_stamp.h).
 *
 * Format 1, little-endian: 0 magic "DRVCHNGD" | 8 u32 version | 12 u32 cluster bytes | 16 u64 size_bytes | 24 u8 current
 * | 25 u8 bases | 26 stamp[64] | bases: { u8 period, u8 length, name }, newest last | runs: { u8 period, u32 clusters }
 * | u32 CRC32C of all before.
 *
 * Threads: the owner's lock; save and load block. */
#ifndef BLOCK_CHANGED_MAP_H
#define BLOCK_CHANGED_MAP_H

#include "common/base.h"
#include "common/error.h"

enum {
    CHANGED_CLUSTER_BYTES = 65536,
    CHANGED_BASES_MAX = 8,      /* backups that are known by name; the oldest is forgotten for the next */
    CHANGED_SESSIONS_MAX = 2,   /* of them, sessions with a replica: this one, and the last, if this one comes to nothing */
    CHANGED_NAME_BYTES_MAX = 63,
    CHANGED_PERIOD_MAX = 255,
    CHANGED_STAMP_BYTES = 64,
    CHANGED_FILE_BYTES_MAX = 1 << 26,
};

struct changed_base {
    uint8_t period; /* the last one that the backup holds */
    char name[CHANGED_NAME_BYTES_MAX + 1];
};

struct changed_map {
    uint64_t size_bytes, clusters;
    uint8_t *period; /* of each cluster */
    uint8_t current;
    struct changed_base bases[CHANGED_BASES_MAX]; /* the oldest first */
    unsigned base_count;
};

/* Nothing known: no backup has a name. -ENOMEM. */
int changed_map_init(struct changed_map *map, uint64_t size_bytes);
void changed_map_finish(struct changed_map *map);
/* The new part counts as written now. -ENOMEM, and nothing is changed. */
int changed_map_grow(struct changed_map *map, uint64_t size_bytes);
/* [@offset, @offset + @size) is about to be written. */
void changed_map_mark(struct changed_map *map, uint64_t offset, uint64_t size);
/* A cut: what is marked from now on is after it. Returns it, for changed_map_keep. */
uint8_t changed_map_cut(struct changed_map *map);
/* Call that cut @name (1 to CHANGED_NAME_BYTES_MAX bytes). Another one of the same name is forgotten. */
void changed_map_keep(struct changed_map *map, const char *name, uint8_t cut);
/* The cut of that name, or -1. */
int changed_map_find(const struct changed_map *map, const char *name);
/* Whether @from may have been written after @cut, and up to which offset the same is true. */
bool changed_map_since(const struct changed_map *map, uint8_t cut, uint64_t from, uint64_t *ret_end);
uint64_t changed_map_bytes_since(const struct changed_map *map, uint8_t cut);

/* Replace @path, lasting. @stamp: CHANGED_STAMP_BYTES. */
int changed_map_save(const struct changed_map *map, const char *path, const uint8_t *stamp, struct error *err);
/* Take what @path holds into @map, initialised for the disk's size, and remove the file, lasting. -ENOENT: there is none;
 * -ESTALE: it is of another state of the disk; -EBADMSG: damaged. Then @map knows nothing; the file is gone as well. */
int changed_map_load(struct changed_map *map, const char *path, const uint8_t *stamp, struct error *err);
/* The same of bytes. */
int changed_map_decode(struct changed_map *map, const void *data, size_t size, const uint8_t *stamp, struct error *err);

#endif
