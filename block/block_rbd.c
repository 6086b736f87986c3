/* Ceph's libraries behind the vtable: see block_rbd.h. Here: loading them, a cluster, an image's lock, requests. */
#include "block/block_rbd.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum {
    LOCK_EXCLUSIVE = 0,
    FEATURE_LAYERING = 1 << 0,
    FEATURE_EXCLUSIVE_LOCK = 1 << 2,
    FEATURE_OBJECT_MAP = 1 << 3,
    FEATURE_FAST_DIFF = 1 << 4,
    FEATURE_DEEP_FLATTEN = 1 << 5,
    WRITE_ZEROES_THICK = 1 << 0,
    LOCK_OWNERS_MAX = 4,
    WATCHERS_MAX = 64,
    EPOCH_TEXT_BYTES = 24,
    BLOCKLIST_S = 30 * 86400,
};
#define EPOCH_KEY "drover_epoch"
#define ORIGIN_KEY "drover_origin"
#define CACHE_KEY "conf_rbd_cache" /* librbd's own: of an image it counts more than what is said of its pool */

typedef void *rados_t, *rados_ioctx_t, *rbd_image_t, *rbd_completion_t;
struct rbd_watcher { /* rbd_image_watcher_t */
    char *address;
    int64_t id;
    uint64_t cookie;
};

/* name, result, arguments: as in Ceph's headers */
#define RADOS_CALLS(X)                                                                                               \
    X(rados_create2, int, (rados_t *, const char *, const char *, uint64_t))                                         \
    X(rados_conf_read_file, int, (rados_t, const char *))                                                            \
    X(rados_conf_set, int, (rados_t, const char *, const char *))                                                    \
    X(rados_connect, int, (rados_t))                                                                                 \
    X(rados_cluster_fsid, int, (rados_t, char *, size_t))                                                            \
    X(rados_mon_command, int,                                                                                        \
      (rados_t, const char **, size_t, const char *, size_t, char **, size_t *, char **, size_t *))                  \
    X(rados_buffer_free, void, (char *))                                                                             \
    X(rados_ioctx_get_id, int64_t, (rados_ioctx_t))                                                                  \
    X(rados_shutdown, void, (rados_t))                                                                               \
    X(rados_ioctx_create, int, (rados_t, const char *, rados_ioctx_t *))                                             \
    X(rados_ioctx_destroy, void, (rados_ioctx_t))
#define RBD_CALLS(X)                                                                                                 \
    X(rbd_create2, int, (rados_ioctx_t, const char *, uint64_t, uint64_t, int *))                                    \
    X(rbd_remove, int, (rados_ioctx_t, const char *))                                                                \
    X(rbd_open, int, (rados_ioctx_t, const char *, rbd_image_t *, const char *))                                     \
    X(rbd_open_read_only, int, (rados_ioctx_t, const char *, rbd_image_t *, const char *))                           \
    X(rbd_close, int, (rbd_image_t))                                                                                 \
    X(rbd_get_size, int, (rbd_image_t, uint64_t *))                                                                  \
    X(rbd_resize, int, (rbd_image_t, uint64_t))                                                                      \
    X(rbd_metadata_get, int, (rbd_image_t, const char *, char *, size_t *))                                          \
    X(rbd_metadata_set, int, (rbd_image_t, const char *, const char *))                                              \
    X(rbd_lock_acquire, int, (rbd_image_t, int))                                                                     \
    X(rbd_lock_release, int, (rbd_image_t))                                                                          \
    X(rbd_lock_get_owners, int, (rbd_image_t, int *, char **, size_t *))                                             \
    X(rbd_lock_get_owners_cleanup, void, (char **, size_t))                                                          \
    X(rbd_lock_break, int, (rbd_image_t, int, const char *))                                                         \
    X(rbd_watchers_list, int, (rbd_image_t, struct rbd_watcher *, size_t *))                                         \
    X(rbd_watchers_list_cleanup, void, (struct rbd_watcher *, size_t))                                               \
    X(rbd_diff_iterate2, int,                                                                                        \
      (rbd_image_t, const char *, uint64_t, uint64_t, uint8_t, uint8_t, int (*)(uint64_t, size_t, int, void *), void *)) \
    X(rbd_flush, int, (rbd_image_t))                                                                                 \
    X(rbd_aio_create_completion, int, (void *, void (*)(rbd_completion_t, void *), rbd_completion_t *))              \
    X(rbd_aio_release, void, (rbd_completion_t))                                                                     \
    X(rbd_aio_get_return_value, ssize_t, (rbd_completion_t))                                                         \
    X(rbd_aio_readv, int, (rbd_image_t, const struct iovec *, int, uint64_t, rbd_completion_t))                      \
    X(rbd_aio_writev, int, (rbd_image_t, const struct iovec *, int, uint64_t, rbd_completion_t))                     \
    X(rbd_aio_flush, int, (rbd_image_t, rbd_completion_t))                                                           \
    X(rbd_aio_discard, int, (rbd_image_t, uint64_t, uint64_t, rbd_completion_t))                                     \
    X(rbd_aio_write_zeroes, int, (rbd_image_t, uint64_t, size_t, rbd_completion_t, int, int))

#define DECLARE(name, result, arguments) result (*name) arguments;
static struct {
    RADOS_CALLS(DECLARE)
    RBD_CALLS(DECLARE)
} ceph;

struct rbd_cluster {
    rados_t rados;
    rados_ioctx_t io;
    char *pool;
};

struct block_rbd {
    struct block block;
    struct rbd_cluster *cluster; /* borrowed */
    rbd_image_t image;
    char *name;
    struct block_rbd_options options;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t came;
    struct list ended; /* struct rbd_request */
};

struct rbd_request {
    struct list link;
    struct block_rbd *of;
    struct block_request *request;
    rbd_completion_t completion;
};

/* ---- Ceph's libraries ---- */

static int symbol_find(void *library, const char *name, void *ret_at, struct error *err)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        return error_set(err, -ENOSYS, ERROR_NOT_SUPPORTED, "this host's Ceph libraries have no %s: Ceph 16 or newer is needed", name);
    memcpy(ret_at, &found, sizeof found); /* a function's address, by the way that ISO C leaves open */
    return 0;
}

static int library_load(const char *name, void **ret_library, struct error *err)
{
    *ret_library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return *ret_library != NULL ? 0
                                : error_set(err, -ENOSYS, ERROR_NOT_SUPPORTED,
                                            "pools of Ceph need librbd on this host (Debian's package librbd1): %s", dlerror());
}

/* Once; they stay loaded, for they have threads. */
static int ceph_load(struct error *err)
{
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    static bool loaded;
    void *rados, *rbd;
    pthread_mutex_lock(&once);
    int code = loaded ? 0 : library_load("librados.so.2", &rados, err);
    if (code == 0 && !loaded)
        code = library_load("librbd.so.1", &rbd, err);
#define FIND_RADOS(name, result, arguments) \
    if (code == 0 && !loaded)               \
        code = symbol_find(rados, #name, &ceph.name, err);
#define FIND_RBD(name, result, arguments) \
    if (code == 0 && !loaded)             \
        code = symbol_find(rbd, #name, &ceph.name, err);
    RADOS_CALLS(FIND_RADOS)
    RBD_CALLS(FIND_RBD)
    loaded = code == 0;
    pthread_mutex_unlock(&once);
    return code;
}

/* ---- the cluster ---- */

static int connect_to(struct rbd_cluster *c, const struct rbd_cluster_options *o, struct error *err)
{
    char seconds[16];
    CLEANUP_FREE char *name = xasprintf("client.%s", o->user);
    int code = ceph.rados_create2(&c->rados, "ceph", name, 0);
    if (code < 0) {
        c->rados = NULL;
        return error_errno(err, code, "cannot use Ceph as %s", name);
    }
    code = ceph.rados_conf_read_file(c->rados, o->conf);
    if (code < 0)
        return error_errno(err, code, "cannot read Ceph's %s", o->conf);
    snprintf(seconds, sizeof seconds, "%d", RBD_CONNECT_S);
    ceph.rados_conf_set(c->rados, "client_mount_timeout", seconds);
    ceph.rados_conf_set(c->rados, "rbd_cache", "false");
    if (o->key != NULL && (code = ceph.rados_conf_set(c->rados, "key", o->key)) < 0)
        return error_errno(err, code, "the key of %s is none", name);
    code = ceph.rados_connect(c->rados);
    if (code == -ENOENT)
        return error_set(err, code, ERROR_NOT_FOUND, "no key for %s is found: neither given nor in the keyring that %s tells of", name,
                         o->conf);
    if (code < 0)
        return error_errno(err, code, "cannot connect to the Ceph cluster of %s as %s", o->conf, name);
    code = ceph.rados_ioctx_create(c->rados, o->pool, &c->io);
    if (code < 0) {
        c->io = NULL;
        return code == -ENOENT ? error_set(err, code, ERROR_NOT_FOUND, "the Ceph cluster has no pool '%s'", o->pool)
                               : error_errno(err, code, "cannot use pool '%s' of Ceph", o->pool);
    }
    return 0;
}

int rbd_cluster_open(const struct rbd_cluster_options *options, struct rbd_cluster **ret_cluster, struct error *err)
{
    int code = ceph_load(err);
    if (code < 0)
        return code;
    struct rbd_cluster *c = NEW(struct rbd_cluster);
    c->pool = xstrdup(options->pool);
    code = connect_to(c, options, err);
    if (code < 0) {
        rbd_cluster_close(c);
        return code;
    }
    *ret_cluster = c;
    return 0;
}

void rbd_cluster_close(struct rbd_cluster *cluster)
{
    if (cluster == NULL)
        return;
    if (cluster->io != NULL)
        ceph.rados_ioctx_destroy(cluster->io);
    if (cluster->rados != NULL)
        ceph.rados_shutdown(cluster->rados);
    free(cluster->pool);
    free(cluster);
}

/* What `ceph df` says of our pool. */
static int room_parse(const struct rbd_cluster *c, const char *text, size_t size, struct rbd_status *ret, struct error *err)
{
    json_error_t why;
    json_t *root = json_loadb(text, size, 0, &why), *pools = json_object_get(root, "pools"), *pool;
    size_t i;
    bool found = false;
    json_array_foreach(pools, i, pool) {
        const char *name = json_string_value(json_object_get(pool, "name"));
        json_t *stats = json_object_get(pool, "stats");
        json_int_t stored = json_integer_value(json_object_get(stats, "stored"));
        json_int_t available = json_integer_value(json_object_get(stats, "max_avail"));
        if (name == NULL || strcmp(name, c->pool) != 0 || stored < 0 || available < 0)
            continue;
        ret->free_bytes = (uint64_t)available;
        ret->size_bytes = (uint64_t)available + (uint64_t)stored;
        found = true;
    }
    json_decref(root);
    return found ? 0
                 : error_set(err, -EPROTO, ERROR_UNREACHABLE,
                             "the Ceph cluster does not say how much room pool '%s' has: has it a manager (ceph-mgr) that runs?", c->pool);
}

int rbd_cluster_status(struct rbd_cluster *c, struct rbd_status *ret_status, struct error *err)
{
    const char *command = "{\"prefix\":\"df\",\"format\":\"json\"}";
    char fsid[40], *text = NULL, *words = NULL;
    size_t size = 0, words_size = 0;
    int code = ceph.rados_cluster_fsid(c->rados, fsid, sizeof fsid);
    if (code >= 0)
        code = ceph.rados_mon_command(c->rados, &command, 1, "", 0, &text, &size, &words, &words_size);
    if (code < 0)
        error_errno(err, code, "the Ceph cluster does not say how much room it has");
    else
        code = room_parse(c, text, size, ret_status, err);
    if (code == 0)
        snprintf(ret_status->mark, sizeof ret_status->mark, "%s/%" PRId64, fsid, ceph.rados_ioctx_get_id(c->io));
    if (text != NULL)
        ceph.rados_buffer_free(text);
    if (words != NULL)
        ceph.rados_buffer_free(words);
    return code;
}

/* ---- images ---- */

static int image_error(const struct rbd_cluster *c, const char *name, int code, const char *what, struct error *err)
{
    return code == -ENOENT ? error_set(err, code, ERROR_NOT_FOUND, "pool '%s' of Ceph has no image '%s'", c->pool, name)
                           : error_errno(err, code, "cannot %s image '%s' of Ceph's pool '%s'", what, name, c->pool);
}

int rbd_image_size(struct rbd_cluster *cluster, const char *name, uint64_t *ret_size_bytes, struct error *err)
{
    rbd_image_t image;
    int code = ceph.rbd_open_read_only(cluster->io, name, &image, NULL);
    if (code < 0)
        return image_error(cluster, name, code, "open", err);
    code = ceph.rbd_get_size(image, ret_size_bytes);
    ceph.rbd_close(image);
    return code < 0 ? image_error(cluster, name, code, "look at", err) : 0;
}

/* Whatever was said of the pool. */
static int cache_forbid(struct rbd_cluster *cluster, const char *name, struct error *err)
{
    rbd_image_t image;
    int code = ceph.rbd_open(cluster->io, name, &image, NULL);
    if (code < 0)
        return image_error(cluster, name, code, "open", err);
    code = ceph.rbd_metadata_set(image, CACHE_KEY, "false");
    ceph.rbd_close(image);
    return code < 0 ? image_error(cluster, name, code, "write to", err) : 0;
}

int rbd_image_grow(struct rbd_cluster *cluster, const char *name, uint64_t size_bytes, struct error *err)
{
    rbd_image_t image;
    uint64_t there;
    int code = ceph.rbd_open(cluster->io, name, &image, NULL);
    if (code < 0)
        return image_error(cluster, name, code, "open", err);
    code = ceph.rbd_get_size(image, &there);
    if (code >= 0 && there < size_bytes)
        code = ceph.rbd_resize(image, size_bytes);
    ceph.rbd_close(image);
    return code < 0 ? image_error(cluster, name, code, "enlarge", err) : 0;
}

int rbd_image_create(struct rbd_cluster *cluster, const char *name, uint64_t size_bytes, struct error *err)
{
    const uint64_t features = FEATURE_LAYERING | FEATURE_EXCLUSIVE_LOCK | FEATURE_OBJECT_MAP | FEATURE_FAST_DIFF | FEATURE_DEEP_FLATTEN;
    uint64_t there;
    int order = 0; /* Ceph's choice: objects of 4 MiB */
    int code = ceph.rbd_create2(cluster->io, name, size_bytes, features, &order);
    if (code < 0 && code != -EEXIST)
        return image_error(cluster, name, code, "create", err);
    code = rbd_image_size(cluster, name, &there, err);
    if (code == 0 && there == size_bytes)
        code = cache_forbid(cluster, name, err);
    else if (code == 0)
        code = error_set(err, -EEXIST, ERROR_EXISTS, "pool '%s' of Ceph has an image '%s' already, of %" PRIu64 " bytes, not %" PRIu64,
                         cluster->pool, name, there, size_bytes);
    return code;
}

int rbd_image_remove(struct rbd_cluster *cluster, const char *name, struct error *err)
{
    int code = ceph.rbd_remove(cluster->io, name);
    if (code == -EBUSY)
        return error_set(err, code, ERROR_CONFLICT,
                         "image '%s' of Ceph's pool '%s' is in use, or was until half a minute ago by a client that died", name,
                         cluster->pool);
    return code < 0 && code != -ENOENT ? image_error(cluster, name, code, "remove", err) : 0;
}

/* ---- the lock ---- */

static int epoch_read(struct block_rbd *b, uint64_t *ret_epoch, struct error *err)
{
    char text[EPOCH_TEXT_BYTES], *end;
    size_t size = sizeof text;
    int code = ceph.rbd_metadata_get(b->image, EPOCH_KEY, text, &size);
    *ret_epoch = 0;
    if (code == -ENOENT)
        return 0;
    if (code < 0)
        return error_errno(err, code, "cannot read the metadata of image '%s'", b->name);
    text[MIN(size, sizeof text - 1)] = '\0';
    errno = 0;
    *ret_epoch = strtoull(text, &end, 10);
    return end != text && *end == '\0' && errno == 0
               ? 0
               : error_set(err, -EBADMSG, ERROR_INTERNAL, "the metadata %s of image '%s' is no number: remove it if nobody uses the image",
                           EPOCH_KEY, b->name);
}

static int epoch_check(struct block_rbd *b, uint64_t *ret_there, struct error *err)
{
    int code = epoch_read(b, ret_there, err);
    if (code == 0 && *ret_there > b->options.epoch)
        code = error_set(err, -EPERM, ERROR_CONFLICT,
                         "image '%s' has an owner of epoch %" PRIu64 ": this one, of %" PRIu64 ", may not write to it any more", b->name,
                         *ret_there, b->options.epoch);
    return code;
}

/* Before its lock is broken, which keeps its owner out as well, but for as long as the monitors choose, an hour by default: one that stood
 * still for longer would write what it had under way then. The first word about a client is the one that counts, and librbd's own setting
 * for this is one that Ceph 16's monitors refuse. */
static int keep_out(const struct rbd_cluster *c, const char *owner, struct error *err)
{
    json_t *words = json_pack("{s:s, s:s, s:s, s:f}", "prefix", "osd blocklist", "blocklistop", "add", "addr", owner, "expire",
                              (double)BLOCKLIST_S);
    char *command = words != NULL ? json_dumps(words, 0) : NULL, *text = NULL, *why = NULL;
    const char *commands[] = {command};
    size_t size = 0, why_size = 0;
    int code = command == NULL ? -ENOMEM : ceph.rados_mon_command(c->rados, commands, 1, "", 0, &text, &size, &why, &why_size);
    if (code < 0)
        error_errno(err, code, "cannot have %s kept out of Ceph for long", owner);
    if (text != NULL)
        ceph.rados_buffer_free(text);
    if (why != NULL)
        ceph.rados_buffer_free(why);
    free(command);
    json_decref(words);
    return code;
}

/* Whoever has an image open watches it; Ceph forgets one that has died after half a minute. As librbd does, by the address. */
static bool is_alive(struct block_rbd *b, const char *owner)
{
    struct rbd_watcher watchers[WATCHERS_MAX];
    size_t count = ARRAY_SIZE(watchers);
    bool found = false;
    if (ceph.rbd_watchers_list(b->image, watchers, &count) < 0)
        return true;
    for (size_t i = 0; i < count; i++)
        found = found || strcmp(watchers[i].address, owner) == 0;
    ceph.rbd_watchers_list_cleanup(watchers, count);
    return found;
}

/* Whoever has it goes, and is kept out, if it is of a lower epoch. */
static int owners_break(struct block_rbd *b, uint64_t epoch_there, struct error *err)
{
    char *owners[LOCK_OWNERS_MAX];
    size_t count = ARRAY_SIZE(owners);
    int mode, code = ceph.rbd_lock_get_owners(b->image, &mode, owners, &count);
    if (code == -ENOENT)
        return 0;
    if (code < 0)
        return error_errno(err, code, "cannot ask who has the lock of image '%s'", b->name);
    if (count > 0 && epoch_there >= b->options.epoch && !b->options.replaces && !(b->options.replaces_dead && !is_alive(b, owners[0])))
        code = error_set(err, -EBUSY, ERROR_CONFLICT, "image '%s' is used by %s, which has its lock", b->name, owners[0]);
    if (code == 0 && count > 0) /* another may have come since that was looked at */
        code = epoch_check(b, &epoch_there, err);
    for (size_t i = 0; i < count && code == 0; i++) {
        code = keep_out(b->cluster, owners[i], err);
        if (code < 0)
            break;
        code = ceph.rbd_lock_break(b->image, mode, owners[i]);
        if (code == -ENOENT) /* it let go by itself */
            code = 0;
        if (code < 0)
            error_errno(err, code, "cannot take the lock of image '%s' from %s", b->name, owners[i]);
    }
    ceph.rbd_lock_get_owners_cleanup(owners, count);
    return code;
}

int block_rbd_origin(struct block *block, char ret_origin[RBD_ORIGIN_BYTES], struct error *err)
{
    struct block_rbd *b = CONTAINER_OF(block, struct block_rbd, block);
    size_t size = RBD_ORIGIN_BYTES;
    memset(ret_origin, 0, RBD_ORIGIN_BYTES);
    int code = ceph.rbd_metadata_get(b->image, ORIGIN_KEY, ret_origin, &size);
    if (code == -ENOENT) {
        ret_origin[0] = '\0';
        return 0;
    }
    ret_origin[RBD_ORIGIN_BYTES - 1] = '\0';
    return code < 0 ? error_errno(err, code, "cannot read the metadata of image '%s'", b->name) : 0;
}

int block_rbd_set_origin(struct block *block, const char *origin, struct error *err)
{
    struct block_rbd *b = CONTAINER_OF(block, struct block_rbd, block);
    ASSERT(strlen(origin) < RBD_ORIGIN_BYTES);
    int code = ceph.rbd_metadata_set(b->image, ORIGIN_KEY, origin);
    return code < 0 ? error_errno(err, code, "cannot write the metadata of image '%s'", b->name) : 0;
}

static int lock_take(struct block_rbd *b, struct error *err)
{
    char text[EPOCH_TEXT_BYTES];
    uint64_t there;
    int code = epoch_check(b, &there, err);
    if (code == 0)
        code = owners_break(b, there, err);
    if (code < 0)
        return code;
    code = ceph.rbd_lock_acquire(b->image, LOCK_EXCLUSIVE);
    if (code == -EBUSY || code == -EROFS || code == -EAGAIN)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "another client was quicker to lock image '%s'", b->name);
    if (code < 0)
        return error_errno(err, code, "cannot lock image '%s'", b->name);
    code = epoch_check(b, &there, err); /* another may have come and gone between the look and the lock */
    snprintf(text, sizeof text, "%" PRIu64, b->options.epoch);
    if (code == 0 && there < b->options.epoch && (code = ceph.rbd_metadata_set(b->image, EPOCH_KEY, text)) < 0)
        error_errno(err, code, "cannot write the metadata of image '%s'", b->name);
    if (code < 0)
        ceph.rbd_lock_release(b->image);
    return code;
}

static int size_read(struct block_rbd *b, struct error *err)
{
    int code = ceph.rbd_get_size(b->image, &b->block.size_bytes);
    if (code < 0)
        return error_errno(err, code, "cannot look at image '%s'", b->name);
    if (b->block.size_bytes % BLOCK_SECTOR_BYTES != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "image '%s' has %" PRIu64 " bytes, which is no multiple of %d", b->name,
                         b->block.size_bytes, BLOCK_SECTOR_BYTES);
    return 0;
}

/* ---- requests ---- */

static struct block_rbd *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct block_rbd, block);
}

/* On a thread of librbd's. */
static void request_ended(rbd_completion_t completion UNUSED, void *arg)
{
    struct rbd_request *r = arg;
    struct block_rbd *b = r->of;
    pthread_mutex_lock(&b->lock);
    list_append(&b->ended, &r->link);
    pthread_cond_signal(&b->came);
    if (b->options.wake != NULL)
        b->options.wake(b->options.wake_arg);
    pthread_mutex_unlock(&b->lock);
}

static int request_begin(struct block_rbd *b, struct rbd_request *r)
{
    const struct block_request *q = r->request;
    switch (q->op) {
    case BLOCK_READ:
        return ceph.rbd_aio_readv(b->image, q->iovecs, (int)q->iovec_count, q->offset, r->completion);
    case BLOCK_WRITE:
        return ceph.rbd_aio_writev(b->image, q->iovecs, (int)q->iovec_count, q->offset, r->completion);
    case BLOCK_FLUSH:
        return ceph.rbd_aio_flush(b->image, r->completion);
    case BLOCK_DISCARD:
        return ceph.rbd_aio_discard(b->image, q->offset, q->size, r->completion);
    case BLOCK_WRITE_ZEROES:
        return ceph.rbd_aio_write_zeroes(b->image, q->offset, q->size, r->completion, q->may_unmap ? 0 : WRITE_ZEROES_THICK, 0);
    case BLOCK_OPS:
        break;
    }
    return -EOPNOTSUPP;
}

static int rbd_submit(struct block *block, struct block_request *request)
{
    struct block_rbd *b = of_block(block);
    if (!block_may_submit(block))
        return -EAGAIN;
    struct rbd_request *r = NEW(struct rbd_request);
    r->of = b;
    r->request = request;
    int code = ceph.rbd_aio_create_completion(r, request_ended, &r->completion);
    if (code == 0 && (code = request_begin(b, r)) < 0)
        ceph.rbd_aio_release(r->completion);
    if (code < 0)
        free(r);
    return code;
}

void block_rbd_run(struct block *block)
{
    struct block_rbd *b = of_block(block);
    struct list ended;
    list_init(&ended);
    pthread_mutex_lock(&b->lock);
    list_take(&ended, &b->ended);
    pthread_mutex_unlock(&b->lock);
    while (!list_empty(&ended)) {
        struct rbd_request *r = LIST_ENTRY(ended.next, struct rbd_request, link);
        struct block_request *request = r->request;
        ssize_t result = ceph.rbd_aio_get_return_value(r->completion);
        if (result == -ESHUTDOWN && b->options.lost != NULL)
            b->options.lost();
        list_remove(&r->link);
        ceph.rbd_aio_release(r->completion);
        free(r);
        request->result = result < 0 ? (int)result : request->op == BLOCK_READ && (uint64_t)result != request->size ? -EIO : 0;
        block_complete(block, request);
    }
}

static void rbd_drain(struct block *block)
{
    struct block_rbd *b = of_block(block);
    while (block->in_flight > 0) {
        pthread_mutex_lock(&b->lock);
        while (list_empty(&b->ended))
            pthread_cond_wait(&b->came, &b->lock);
        pthread_mutex_unlock(&b->lock);
        block_rbd_run(block);
    }
}

static int rbd_own(struct block *block, bool own, struct error *err)
{
    struct block_rbd *b = of_block(block);
    int code = own ? lock_take(b, err) : ceph.rbd_flush(b->image);
    if (own)
        return code < 0 ? code : size_read(b, err); /* it may have been enlarged meanwhile */
    if (code == 0)
        code = ceph.rbd_lock_release(b->image);
    return code < 0 ? error_errno(err, code, "cannot let go of image '%s'", b->name) : 0;
}

static int rbd_grow(struct block *block, uint64_t size_bytes, struct error *err)
{
    struct block_rbd *b = of_block(block);
    int code = ceph.rbd_resize(b->image, size_bytes);
    if (code < 0)
        return error_errno(err, code, "cannot enlarge image '%s'", b->name);
    block->size_bytes = size_bytes;
    return 0;
}

struct stretch {
    uint64_t start, end;
};

/* The first stretch of what is there; a number above 0 would be an error of ours, so that negative ones end the walk. */
static int stretch_found(uint64_t offset, size_t size, int exists, void *arg)
{
    struct stretch *s = arg;
    if (!exists)
        return 0;
    if (s->end != 0 && offset != s->end)
        return -ECANCELED;
    s->start = s->end == 0 ? offset : s->start;
    s->end = offset + size;
    return 0;
}

static int rbd_next_data(struct block *block, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct block_rbd *b = of_block(block);
    struct stretch s = {0, 0};
    int code = ceph.rbd_diff_iterate2(b->image, NULL, from, block->size_bytes - from, 1, 1, stretch_found, &s);
    if (code < 0 && code != -ECANCELED)
        return code;
    *ret_start = MAX(s.start, from);
    *ret_end = MIN(s.end, block->size_bytes);
    return s.end != 0;
}

static void rbd_block_close(struct block *block)
{
    struct block_rbd *b = of_block(block);
    ceph.rbd_close(b->image); /* flushes, and lets go of the lock */
    pthread_cond_destroy(&b->came);
    pthread_mutex_destroy(&b->lock);
    free(b->name);
    free(b);
}

static const struct block_ops rbd_ops = {.submit = rbd_submit,
                                         .drain = rbd_drain,
                                         .own = rbd_own,
                                         .close = rbd_block_close,
                                         .grow = rbd_grow,
                                         .next_data = rbd_next_data};

int block_rbd_open(struct rbd_cluster *cluster, const struct block_rbd_options *options, struct block **ret_block,
                   struct error *err)
{
    struct block_rbd *b = NEW(struct block_rbd);
    b->block = (struct block){.ops = &rbd_ops,
                              .block_bytes = 4096,
                              .read_only = options->read_only,
                              .can_discard = !options->read_only,
                              .can_write_zeroes = !options->read_only};
    b->cluster = cluster;
    b->options = *options;
    b->name = xstrdup(options->image);
    b->options.image = b->name;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->came, NULL);
    list_init(&b->ended);
    int code = options->read_only ? ceph.rbd_open_read_only(cluster->io, b->name, &b->image, NULL)
                                  : ceph.rbd_open(cluster->io, b->name, &b->image, NULL);
    if (code < 0) {
        image_error(cluster, b->name, code, "open", err);
        pthread_cond_destroy(&b->came);
        pthread_mutex_destroy(&b->lock);
        free(b->name);
        free(b);
        return code;
    }
    code = options->read_only || options->unowned ? 0 : lock_take(b, err);
    if (code == 0)
        code = size_read(b, err);
    if (code < 0) {
        rbd_block_close(&b->block);
        return code;
    }
    *ret_block = &b->block;
    return 0;
}
