/* Where backups are kept: a flat set of named, immutable objects behind one vtable. A directory (store_dir.h: local
 * or NFS), a bucket of S3 (store_s3.h), and in tests one that dies at every call.
 *
 * Names: components of [a-z0-9._-] with '/' between them, none beginning with '.', STORE_NAME_BYTES at most with the
 * terminator. All calls block. Any thread, several at once.
 *
 * What every store promises, and all above it builds on:
 *   - put is all or nothing: whoever reads the name gets the old object, the new one or none, never a part. When put
 *     returns 0 the object survives a power cut. After a failure either may be there.
 *   - what a put or remove that returned has done is seen by every get and list that begins later, by any machine.
 *     (A directory on NFS: with the usual attribute caches names may show up seconds late; repo_gc.h has a grace for
 * it.) Errors: -ENOENT (NOT_FOUND), -EACCES (FORBIDDEN: credentials), -ENOSPC (NO_SPACE), -EHOSTUNREACH, -ETIMEDOUT,
 * -EIO; in words that name the object and the store. */
#ifndef BACKUP_STORE_H
#define BACKUP_STORE_H

#include "common/base.h"
#include "common/error.h"

enum {
    STORE_NAME_BYTES = 128,
    STORE_OBJECT_BYTES_MAX = 256 << 20, /* of one object; packs are 32 MiB */
    STORE_LOCATION_BYTES = 512,
};

/* The one object that a store has from its first moment to its last: a directory that had it and has it no more is another one, on which
 * nothing is mounted for instance. */
#define STORE_SIGN "drover-store"

/* Younger than anything, in a store whose times cannot be read. */
#define STORE_TIME_UNKNOWN (INT64_MAX / 4)

struct store_entry {
    const char *name; /* until `each` returns */
    uint64_t size_bytes;
    int64_t modified_ms; /* by the store's own clock, since 1970; comparable with others of the same store only */
};
typedef int (*store_each_cb)(void *arg, const struct store_entry *entry);

struct store;
struct store_ops {
    int (*put)(struct store *, const char *name, const void *data, size_t size, struct error *err);
    /* Up to @size bytes from @offset on; fewer only at the object's end (0 at or behind it). */
    int (*get)(struct store *, const char *name, uint64_t offset, void *buffer, size_t size, size_t *ret_size,
               struct error *err);
    /* Every object whose name begins with @prefix ("" or a folder with its '/'), in no order; ends early when @each
     * returns < 0 and returns that. @each must not call the store. */
    int (*list)(struct store *, const char *prefix, store_each_cb each, void *arg, struct error *err);
    /* A missing one is fine. */
    int (*remove)(struct store *, const char *name, struct error *err);
    /* Remove what puts that were cut off have left and that is older than @age_ms. NULL: nothing can be left. */
    int (*collect)(struct store *, uint64_t age_ms, struct error *err);
    void (*destroy)(struct store *);
};

/* How fast it may go (store_pace.h); shared by all that one job transfers. */
struct store_pace;

/* Embedded by each kind of store. */
struct store {
    const struct store_ops *ops;
    char location[STORE_LOCATION_BYTES]; /* for people: "/srv/backup", "s3://bucket/prefix" */
    unsigned transfers;                  /* how many at once make sense: 2 for a disk, more over a network */
    struct store_pace *pace;             /* borrowed; NULL: no limit */
};

/* Opens the store at @location: an absolute path, or s3://BUCKET[/PREFIX] with the options of store_s3.h.
 * -EINVAL in words. Nothing is read or made yet. */
int store_open(const char *location, struct store **ret_store, struct error *err);
void store_destroy(struct store *store); /* NULL is allowed */

/* The vtable's calls with the names and sizes checked (-EINVAL). */
int store_put(struct store *store, const char *name, const void *data, size_t size, struct error *err);
int store_get(struct store *store, const char *name, uint64_t offset, void *buffer, size_t size, size_t *ret_size,
              struct error *err);
int store_list(struct store *store, const char *prefix, store_each_cb each, void *arg, struct error *err);
int store_remove(struct store *store, const char *name, struct error *err);
int store_collect(struct store *store, uint64_t age_ms, struct error *err);

/* A whole object of at most @size_max bytes (else -EFBIG); the caller frees. */
int store_read(struct store *store, const char *name, size_t size_max, uint8_t **ret_data, size_t *ret_size,
               struct error *err);
/* Whether an object of at least a byte is there. */
int store_has(struct store *store, const char *name, bool *ret_has, struct error *err);
bool store_name_ok(const char *name);

/* A list kept: names, sizes and times, sorted by name. */
struct store_listed {
    char name[STORE_NAME_BYTES];
    uint64_t size_bytes;
    int64_t modified_ms;
};
struct store_listing {
    struct store_listed *items;
    size_t count, capacity;
};
int store_listing_load(struct store *store, const char *prefix, struct store_listing *ret_listing, struct error *err);
/* NULL where it is not there. */
const struct store_listed *store_listing_find(const struct store_listing *listing, const char *name);
void store_listing_finish(struct store_listing *listing);

#endif
