/* Hash map from text to a pointer. Keys are borrowed: they must live in the value and not change while it is
 * in the map. Iteration order is not defined; sort where order matters (all replicated output does). */
#ifndef COMMON_MAP_H
#define COMMON_MAP_H

#include "common/base.h"

struct map_slot {
    const char *key;
    void *value;
    uint64_t hash;
};
struct map {
    struct map_slot *slots;
    size_t capacity; /* power of two, or 0 */
    size_t count;
};

void map_finish(struct map *m); /* frees the table, not the values */
void *map_get(const struct map *m, const char *key);
void *map_get_n(const struct map *m, const char *key, size_t key_length);
/* Add or replace; returns the value that was replaced, or NULL. */
void *map_put(struct map *m, const char *key, void *value);
/* Take out; returns the value, or NULL where there was none. */
void *map_remove(struct map *m, const char *key);
/* for (size_t i = 0; (v = map_next(m, &i)) != NULL;) — not while adding or removing. */
void *map_next(const struct map *m, size_t *position);

#endif
