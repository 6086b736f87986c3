/* A store in memory for tests, which can die at any call: from call number `dies_at` on every call fails, as for a
 * process that was killed there; the put or remove at which it dies is carried out or not, as `dies_after` says.
 * Objects can be damaged. THREADED: several threads may use it. */
#ifndef TESTS_MEMORY_STORE_H
#define TESTS_MEMORY_STORE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "backup/store.h"

struct memory_object {
    char name[STORE_NAME_BYTES];
    uint8_t *data;
    size_t size;
    int64_t modified_ms;
};
struct memory_store {
    struct store store;
    pthread_mutex_t lock;
    struct memory_object *objects;
    size_t count, capacity;
    uint64_t calls, dies_at; /* 0: never */
    bool dies_after;
    int64_t now_ms; /* its clock */
    uint64_t puts, gets;
    void (*before)(void *arg, const char *what,
                   const char *name); /* of every call; may use the store of another thread */
    void *before_arg;
};

static inline struct memory_store *memory_of(struct store *store)
{
    return CONTAINER_OF(store, struct memory_store, store);
}

static inline struct memory_object *memory_find(struct memory_store *m, const char *name)
{
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->objects[i].name, name) == 0)
            return &m->objects[i];
    return NULL;
}

static inline void memory_set(struct memory_store *m, const char *name, const void *data, size_t size)
{
    struct memory_object *o = memory_find(m, name);
    if (o == NULL) {
        if (m->count == m->capacity) {
            m->capacity = MAX(m->capacity * 2, 64u);
            m->objects = xrealloc(m->objects, m->capacity * sizeof *m->objects);
        }
        o = &m->objects[m->count++];
        memset(o, 0, sizeof *o);
        strcpy(o->name, name);
    }
    free(o->data);
    o->data = xcalloc(1, MAX(size, 1u));
    memcpy(o->data, data, size);
    o->size = size;
    o->modified_ms = m->now_ms;
}

static inline void memory_drop(struct memory_store *m, const char *name)
{
    struct memory_object *o = memory_find(m, name);
    if (o == NULL)
        return;
    free(o->data);
    *o = m->objects[--m->count];
}

/* 0: go on; 1: do it, and fail; negative: fail. With the lock held. */
static inline int memory_call(struct memory_store *m, struct error *err)
{
    m->calls++;
    if (m->dies_at == 0 || m->calls < m->dies_at)
        return 0;
    error_set(err, -EIO, ERROR_INTERNAL, "the store is dead");
    return m->calls == m->dies_at && m->dies_after ? 1 : -EIO;
}

static inline void memory_before(struct memory_store *m, const char *what, const char *name)
{
    if (m->before != NULL)
        m->before(m->before_arg, what, name);
}

static inline int memory_put(struct store *store, const char *name, const void *data, size_t size, struct error *err)
{
    struct memory_store *m = memory_of(store);
    memory_before(m, "put", name);
    pthread_mutex_lock(&m->lock);
    int code = memory_call(m, err);
    if (code >= 0) {
        memory_set(m, name, data, size);
        m->puts++;
    }
    pthread_mutex_unlock(&m->lock);
    return code > 0 ? -EIO : code;
}

static inline int memory_get(struct store *store, const char *name, uint64_t offset, void *buffer, size_t size,
                             size_t *ret_size, struct error *err)
{
    struct memory_store *m = memory_of(store);
    memory_before(m, "get", name);
    pthread_mutex_lock(&m->lock);
    int code = memory_call(m, err) != 0 ? -EIO : 0;
    struct memory_object *o = memory_find(m, name);
    if (code == 0 && o == NULL)
        code = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no %s", name);
    if (code == 0) {
        *ret_size = offset >= o->size ? 0 : MIN(size, o->size - (size_t)offset);
        if (*ret_size > 0)
            memcpy(buffer, o->data + offset, *ret_size);
        m->gets++;
    }
    pthread_mutex_unlock(&m->lock);
    return code;
}

static inline int memory_list(struct store *store, const char *prefix, store_each_cb each, void *arg,
                              struct error *err)
{
    struct memory_store *m = memory_of(store);
    memory_before(m, "list", prefix);
    pthread_mutex_lock(&m->lock);
    int code = memory_call(m, err) != 0 ? -EIO : 0;
    for (size_t i = 0; code >= 0 && i < m->count; i++) {
        struct store_entry e = {m->objects[i].name, m->objects[i].size, m->objects[i].modified_ms};
        if (strncmp(e.name, prefix, strlen(prefix)) == 0)
            code = each(arg, &e);
    }
    pthread_mutex_unlock(&m->lock);
    return code;
}

static inline int memory_remove(struct store *store, const char *name, struct error *err)
{
    struct memory_store *m = memory_of(store);
    memory_before(m, "remove", name);
    pthread_mutex_lock(&m->lock);
    int code = memory_call(m, err);
    if (code >= 0)
        memory_drop(m, name);
    pthread_mutex_unlock(&m->lock);
    return code > 0 ? -EIO : code;
}

static inline void memory_nothing(struct store *store UNUSED)
{
}

static inline void memory_store_init(struct memory_store *m)
{
    static const struct store_ops ops = {.put = memory_put,
                                         .get = memory_get,
                                         .list = memory_list,
                                         .remove = memory_remove,
                                         .destroy = memory_nothing};
    *m = (struct memory_store){.store.ops = &ops, .store.transfers = 2, .now_ms = 1000000};
    strcpy(m->store.location, "memory");
    pthread_mutex_init(&m->lock, NULL);
}

static inline void memory_store_finish(struct memory_store *m)
{
    for (size_t i = 0; i < m->count; i++)
        free(m->objects[i].data);
    free(m->objects);
    pthread_mutex_destroy(&m->lock);
}

#endif
