/* Open addressing, linear probing, backward-shift deletion; FNV-1a with a final mix. */
#include "common/map.h"

#include <string.h>

static uint64_t hash_text(const char *key, size_t n)
{
    uint64_t h = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)key[i]) * UINT64_C(1099511628211);
    return h ^ (h >> 29);
}

void map_finish(struct map *m)
{
    free(m->slots);
    *m = (struct map){0};
}

static struct map_slot *find(const struct map *m, const char *key, size_t n, uint64_t hash)
{
    size_t i = hash & (m->capacity - 1);
    while (m->slots[i].key != NULL) {
        struct map_slot *s = &m->slots[i];
        if (s->hash == hash && strncmp(s->key, key, n) == 0 && s->key[n] == '\0')
            return s;
        i = (i + 1) & (m->capacity - 1);
    }
    return &m->slots[i];
}

void *map_get_n(const struct map *m, const char *key, size_t n)
{
    if (m->capacity == 0)
        return NULL;
    return find(m, key, n, hash_text(key, n))->value;
}

void *map_get(const struct map *m, const char *key)
{
    return map_get_n(m, key, strlen(key));
}

static void grow(struct map *m)
{
    struct map old = *m;
    m->capacity = MAX(old.capacity * 2, (size_t)16);
    m->slots = xcalloc(m->capacity, sizeof *m->slots);
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slots[i].key != NULL)
            *find(m, old.slots[i].key, strlen(old.slots[i].key), old.slots[i].hash) = old.slots[i];
    free(old.slots);
}

void *map_put(struct map *m, const char *key, void *value)
{
    ASSERT(value != NULL);
    if ((m->count + 1) * 4 > m->capacity * 3)
        grow(m);
    size_t n = strlen(key);
    uint64_t hash = hash_text(key, n);
    struct map_slot *s = find(m, key, n, hash);
    void *old = s->value;
    if (s->key == NULL)
        m->count++;
    *s = (struct map_slot){key, value, hash};
    return old;
}

void *map_remove(struct map *m, const char *key)
{
    if (m->capacity == 0)
        return NULL;
    size_t n = strlen(key), mask = m->capacity - 1;
    struct map_slot *s = find(m, key, n, hash_text(key, n));
    void *old = s->value;
    if (s->key == NULL)
        return NULL;
    m->count--;
    size_t hole = (size_t)(s - m->slots);
    for (size_t i = (hole + 1) & mask; m->slots[i].key != NULL; i = (i + 1) & mask) {
        size_t home = m->slots[i].hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            m->slots[hole] = m->slots[i];
            hole = i;
        }
    }
    m->slots[hole] = (struct map_slot){0};
    return old;
}

void *map_next(const struct map *m, size_t *position)
{
    while (*position < m->capacity) {
        struct map_slot *s = &m->slots[(*position)++];
        if (s->key != NULL)
            return s->value;
    }
    return NULL;
}
