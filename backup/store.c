/* What all stores share: names, opening by location, whole objects and lists. See store.h. */
#include "backup/store.h"

#include <errno.h>
#include <string.h>

#include "backup/store_dir.h"
#include "backup/store_s3.h"

int store_open(const char *location, struct store **ret_store, struct error *err)
{
    if (strncmp(location, "s3://", 5) == 0)
        return store_s3_create(location, ret_store, err);
    if (location[0] == '/')
        return store_dir_create(location, ret_store, err);
    return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                           "a store is an absolute path or s3://BUCKET[/PREFIX], not '%.100s'", location);
}

void store_destroy(struct store *store)
{
    if (store != NULL)
        store->ops->destroy(store);
}

static bool component_char_ok(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

bool store_name_ok(const char *name)
{
    bool begins = true;
    size_t length = strlen(name);
    if (length == 0 || length >= STORE_NAME_BYTES)
        return false;
    for (const char *c = name; *c != '\0'; c++) {
        if (*c == '/' ? begins : (!component_char_ok(*c) || (begins && *c == '.')))
            return false;
        begins = *c == '/';
    }
    return !begins;
}

static int name_check(const char *name, struct error *err)
{
    if (!store_name_ok(name))
        return error_set(err, -EINVAL, ERROR_INVALID, "'%.128s' is no name for an object of a store", name);
    return 0;
}

int store_put(struct store *store, const char *name, const void *data, size_t size, struct error *err)
{
    int code = name_check(name, err);
    if (code < 0)
        return code;
    if (size > STORE_OBJECT_BYTES_MAX)
        return error_set(err, -EFBIG, ERROR_TOO_LARGE, "%s has %zu bytes; an object of a store has %d at most", name,
                         size, STORE_OBJECT_BYTES_MAX);
    return store->ops->put(store, name, data, size, err);
}

int store_get(struct store *store, const char *name, uint64_t offset, void *buffer, size_t size, size_t *ret_size,
              struct error *err)
{
    int code = name_check(name, err);
    return code < 0 ? code : store->ops->get(store, name, offset, buffer, size, ret_size, err);
}

int store_list(struct store *store, const char *prefix, store_each_cb each, void *arg, struct error *err)
{
    return store->ops->list(store, prefix, each, arg, err);
}

int store_remove(struct store *store, const char *name, struct error *err)
{
    int code = name_check(name, err);
    return code < 0 ? code : store->ops->remove(store, name, err);
}

int store_collect(struct store *store, uint64_t age_ms, struct error *err)
{
    return store->ops->collect == NULL ? 0 : store->ops->collect(store, age_ms, err);
}

int store_read(struct store *store, const char *name, size_t size_max, uint8_t **ret_data, size_t *ret_size,
               struct error *err)
{
    size_t size = 0, capacity = MIN(size_max + 1, (size_t)1 << 16);
    CLEANUP_FREE uint8_t *data = malloc(capacity);
    for (;;) {
        size_t got = 0;
        if (data == NULL)
            return error_set(err, -ENOMEM, ERROR_OVERLOAD, "no memory for %s", name);
        int code = store_get(store, name, size, data + size, capacity - size, &got, err);
        if (code < 0)
            return code;
        size += got;
        if (size > size_max)
            return error_set(err, -EFBIG, ERROR_TOO_LARGE, "%s in %s is longer than %zu bytes", name, store->location,
                             size_max);
        if (size < capacity)
            break;
        capacity = MIN(size_max + 1, capacity * 8);
        uint8_t *larger = realloc(data, capacity);
        if (larger == NULL)
            return error_set(err, -ENOMEM, ERROR_OVERLOAD, "no memory for %s", name);
        data = larger;
    }
    *ret_data = TAKE_PTR(data);
    *ret_size = size;
    return 0;
}

int store_has(struct store *store, const char *name, bool *ret_has, struct error *err)
{
    struct error local = {0};
    uint8_t byte;
    size_t got = 0;
    int code = store_get(store, name, 0, &byte, 1, &got, &local);
    if (code < 0 && code != -ENOENT) {
        if (err != NULL)
            *err = local;
        return code;
    }
    *ret_has = code == 0;
    return 0;
}

static int listing_add(void *arg, const struct store_entry *entry)
{
    struct store_listing *l = arg;
    if (!store_name_ok(entry->name))
        return 0; /* somebody else's */
    if (l->count == l->capacity) {
        l->capacity = MAX(l->capacity * 2, 64u);
        l->items = xrealloc(l->items, l->capacity * sizeof *l->items);
    }
    struct store_listed *item = &l->items[l->count++];
    memset(item->name, 0, sizeof item->name);
    memcpy(item->name, entry->name, strlen(entry->name));
    item->size_bytes = entry->size_bytes;
    item->modified_ms = entry->modified_ms;
    return 0;
}

static int listed_compare(const void *a, const void *b)
{
    return strcmp(((const struct store_listed *)a)->name, ((const struct store_listed *)b)->name);
}

int store_listing_load(struct store *store, const char *prefix, struct store_listing *ret_listing, struct error *err)
{
    struct store_listing l = {0};
    int code = store_list(store, prefix, listing_add, &l, err);
    if (code < 0) {
        store_listing_finish(&l);
        return code;
    }
    if (l.count > 0)
        qsort(l.items, l.count, sizeof *l.items, listed_compare);
    *ret_listing = l;
    return 0;
}

const struct store_listed *store_listing_find(const struct store_listing *listing, const char *name)
{
    struct store_listed key;
    if (listing->count == 0 || strlen(name) >= sizeof key.name)
        return NULL;
    strcpy(key.name, name);
    return bsearch(&key, listing->items, listing->count, sizeof key, listed_compare);
}

void store_listing_finish(struct store_listing *listing)
{
    free(listing->items);
    *listing = (struct store_listing){0};
}
