/* A disk in memory for tests, as a backup's source: 4 KiB blocks, each of which is told as data, zero or the same as
 * before by the tests' own lists. */
#ifndef TESTS_MEMORY_SOURCE_H
#define TESTS_MEMORY_SOURCE_H

#include <string.h>

#include "backup/backup_source.h"

enum { MEMORY_BLOCK = 4096 };

struct memory_source {
    struct backup_source source;
    const uint8_t *data;
    const uint8_t *same; /* of each block: not changed since the parent; NULL: not known */
    uint64_t reads;      /* bytes */
};

static inline int memory_source_extent(struct backup_source *source, uint64_t offset, enum backup_extent *ret_kind,
                                       uint64_t *ret_end, struct error *err UNUSED)
{
    static const uint8_t zero[MEMORY_BLOCK];
    struct memory_source *s = CONTAINER_OF(source, struct memory_source, source);
    uint64_t block = offset / MEMORY_BLOCK,
             size = MIN(source->size_bytes - block * MEMORY_BLOCK, (uint64_t)MEMORY_BLOCK);
    *ret_kind = s->same != NULL && s->same[block]                         ? BACKUP_SAME
                : memcmp(s->data + block * MEMORY_BLOCK, zero, size) == 0 ? BACKUP_ZERO
                                                                          : BACKUP_DATA;
    *ret_end = block * MEMORY_BLOCK + size;
    return 0;
}

static inline int memory_source_read(struct backup_source *source, uint64_t offset, void *buffer, size_t size,
                                     struct error *err UNUSED)
{
    struct memory_source *s = CONTAINER_OF(source, struct memory_source, source);
    memcpy(buffer, s->data + offset, size);
    s->reads += size;
    return 0;
}

static inline void memory_source_close(struct backup_source *source UNUSED)
{
}

static inline void memory_source_init(struct memory_source *s, const void *data, uint64_t size, const uint8_t *same)
{
    static const struct backup_source_ops ops = {memory_source_extent, memory_source_read, memory_source_close};
    *s = (struct memory_source){
        .source = {.ops = &ops, .size_bytes = size, .knows_changes = same != NULL}, .data = data, .same = same};
}

#endif
