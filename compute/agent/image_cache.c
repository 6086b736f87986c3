/* Image cache: one worker for each checksum that is fetched, any number of waiters; see image_cache.h for the steps.
 *
 * A fetch is queued -> active (its worker runs) -> gone. Its struct belongs to the worker between uv_queue_work and
 * the after-callback, but for `waits` (loop thread only) and the three atomics (both). A fetch whose last waiter has
 * left is told to stop; if another waiter came before it did, it is begun anew.
 *
 * `images` has an entry for all that is here, wanted here, or known to be elsewhere. */
#include "compute/agent/image_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "common/file.h"
#include "common/list.h"
#include "common/log.h"
#include "common/map.h"

#define SHA256_TEXT_SIZE 65
#define PART_SUFFIX ".part"

struct image_cache {
    uv_loop_t *loop;
    char *dir;
    uid_t web_user;
    struct image_cache_owner owner;
    struct map images;     /* struct cached by checksum */
    struct map fetches;    /* by checksum */
    struct list queued;    /* fetches that wait for their turn */
    struct list cancelled; /* waits to be told so */
    uv_async_t tell;       /* runs through `cancelled` */
    unsigned active;
    bool learnt; /* what is to be kept is known */
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct cached {
    char sha256[SHA256_TEXT_SIZE];
    struct image_cache *cache;
    bool held, keep, ordered;   /* ordered: named by the last orders */
    uint64_t size_bytes;        /* 0: not known */
    struct object_list peers;   /* struct image_peer */
    char *url;                  /* where else it may be had, or NULL */
    struct image_wait *keeping; /* the wait for what is to be kept */
    uint64_t retry_ms;          /* loop's clock */
    char reason[401];           /* why it could not be had; "" */
};

struct fetch {
    struct image_fetch f;
    struct image_cache *cache;
    struct list link; /* in cache->queued, or unlinked */
    struct list waits;
    uv_work_t work;
    bool active, no_room;
};

struct image_wait {
    struct list link;    /* in fetch->waits or cache->cancelled */
    struct fetch *fetch; /* NULL: cancelled */
    image_cache_done done;
    void *arg;
};

static void cache_maybe_finish(struct image_cache *cache);
static void cache_next(struct image_cache *cache);

static void tell_owner(struct image_cache *cache)
{
    if (cache->owner.changed != NULL && !cache->closing)
        cache->owner.changed(cache->owner.arg);
}

/* ---- entries ---- */

static struct cached *cached_make(struct image_cache *cache, const char *sha256)
{
    struct cached *c = map_get(&cache->images, sha256);
    if (c != NULL)
        return c;
    c = NEW(struct cached);
    snprintf(c->sha256, sizeof(c->sha256), "%s", sha256);
    c->cache = cache;
    map_put(&cache->images, c->sha256, c);
    return c;
}

static void peers_clear(struct object_list *peers)
{
    for (size_t i = 0; i < peers->count; i++)
        OBJECT_CLEAR(image_peer, (struct image_peer *)peers->items + i);
    free(peers->items);
    *peers = (struct object_list){.count = 0};
}

static void peers_copy(struct object_list *to, const struct object_list *from)
{
    peers_clear(to);
    to->count = MIN(from->count, (size_t)IMAGE_FETCH_PEERS_MAX);
    to->items = xcalloc(to->count + 1, sizeof(struct image_peer));
    for (size_t i = 0; i < to->count; i++)
        OBJECT_COPY(image_peer, (struct image_peer *)to->items + i, (const struct image_peer *)from->items + i);
}

/* Nothing is to be said or remembered of it any more. */
static void cached_drop(struct cached *c)
{
    if (c->held || c->ordered || c->keeping != NULL)
        return;
    map_remove(&c->cache->images, c->sha256);
    peers_clear(&c->peers);
    free(c->url);
    free(c);
}

static void held(struct image_cache *cache, const char *sha256)
{
    struct stat st;
    char path[IMAGE_CACHE_PATH_BYTES_MAX];
    struct cached *c = cached_make(cache, sha256);
    snprintf(path, sizeof(path), "%s/%s", cache->dir, sha256);
    c->held = stat(path, &st) == 0;
    if (c->held)
        c->size_bytes = (uint64_t)st.st_size;
    c->reason[0] = '\0';
}

/* ---- room ---- */

static int path_of(const struct image_cache *cache, const char *sha256, char *buffer, size_t size)
{
    int n = snprintf(buffer, size, "%s/%s", cache->dir, sha256);
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static bool is_used(const struct image_cache *cache, const char *sha256, const struct stat *st)
{
    return st->st_nlink > 1 || (cache->owner.in_use != NULL && cache->owner.in_use(sha256, cache->owner.arg));
}

/* The image that was not used for the longest time, of those that may go; NULL. */
static struct cached *oldest(const struct image_cache *cache)
{
    struct cached *c, *found = NULL;
    struct timespec found_used = {0};
    for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL;) {
        char path[IMAGE_CACHE_PATH_BYTES_MAX];
        struct stat st;
        if (!c->held || c->keep || path_of(cache, c->sha256, path, sizeof(path)) < 0 || stat(path, &st) < 0 ||
            is_used(cache, c->sha256, &st))
            continue;
        if (found == NULL || st.st_atim.tv_sec < found_used.tv_sec ||
            (st.st_atim.tv_sec == found_used.tv_sec && st.st_atim.tv_nsec < found_used.tv_nsec)) {
            found = c;
            found_used = st.st_atim;
        }
    }
    return found;
}

static void evict(struct cached *c, const char *why)
{
    struct image_cache *cache = c->cache;
    char path[IMAGE_CACHE_PATH_BYTES_MAX];
    if (path_of(cache, c->sha256, path, sizeof(path)) < 0)
        return;
    if (unlink(path) < 0)
        log_warning("image-remove", "sha256=%s error=\"%s, ignoring\"", c->sha256, strerror(errno));
    else
        log_info("image-removed", "sha256=%s bytes=%llu why=\"%s\"", c->sha256, (unsigned long long)c->size_bytes, why);
    c->held = false;
    cached_drop(c);
    tell_owner(cache);
}

/* What a killed agent left half done: all of it, or only what is old. A part that is being written stays. */
static void remove_parts(const struct image_cache *cache, bool all)
{
    DIR *d = opendir(cache->dir);
    struct dirent *entry;
    time_t now = time(NULL);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct stat st;
        size_t length = strlen(entry->d_name), suffix = strlen(PART_SUFFIX);
        if (length <= suffix || strcmp(entry->d_name + length - suffix, PART_SUFFIX) != 0 ||
            map_get_n(&cache->fetches, entry->d_name, length - suffix) != NULL)
            continue;
        if (all || fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || now - st.st_mtime > IMAGE_CACHE_PART_S)
            unlinkat(dirfd(d), entry->d_name, 0);
    }
    if (d != NULL)
        closedir(d);
}

static uint64_t room(const struct image_cache *cache)
{
    struct statvfs fs;
    if (statvfs(cache->dir, &fs) < 0)
        return OBJECT_INTEGER_MAX; /* whoever writes finds out */
    uint64_t reserve = MIN(IMAGE_CACHE_RESERVE_BYTES, (uint64_t)fs.f_blocks * fs.f_frsize / 20);
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    return free_bytes - MIN(free_bytes, reserve);
}

int image_cache_make_room(struct image_cache *cache, uint64_t size, struct error *err)
{
    struct cached *c;
    if (room(cache) >= size)
        return 0;
    remove_parts(cache, true);
    while (room(cache) < size && cache->learnt && (c = oldest(cache)) != NULL)
        evict(c, "room is short and nobody uses it");
    uint64_t left = room(cache);
    if (left >= size)
        return 0;
    return error_set(err, -ENOSPC, ERROR_NO_SPACE,
                     "the image needs %llu MiB and %s has %llu MiB left, with all removed that nobody uses; free some room "
                     "there or use another host",
                     (unsigned long long)((size >> 20) + 1), cache->dir, (unsigned long long)(left >> 20));
}

/* ---- the worker: a thread of the pool ---- */

static void fetch_work(uv_work_t *work)
{
    struct fetch *f = CONTAINER_OF(work, struct fetch, work);
    if (!f->no_room)
        image_fetch_run(&f->f);
}

/* ---- fetches: the loop's thread ---- */

static void fetch_destroy(struct fetch *f)
{
    map_remove(&f->cache->fetches, f->f.artifact.sha256);
    OBJECT_CLEAR(artifact, &f->f.artifact);
    peers_clear(&f->f.peers);
    free(f->f.part_path);
    free(f->f.final_path);
    free(f);
}

static void waits_tell(struct list *waits, int status, const struct error *err, const char *path)
{
    LIST_FOREACH_SAFE(link, waits)
    {
        struct image_wait *wait = LIST_ENTRY(link, struct image_wait, link);
        list_remove(link);
        wait->done(status, err, status == 0 ? path : NULL, wait->arg);
        free(wait);
    }
}

static void fetch_after(uv_work_t *work, int uv_status)
{
    struct fetch *f = CONTAINER_OF(work, struct fetch, work);
    struct image_cache *cache = f->cache;
    struct list waits;
    (void)uv_status; /* work is never cancelled in the pool: the worker is asked to stop instead */
    cache->active--;
    f->active = false;
    if (f->f.status == -ECANCELED && !list_empty(&f->waits) && !cache->closing) {
        list_append(&cache->queued, &f->link); /* somebody came after it had been told to stop */
        cache_next(cache);
        return;
    }
    if (f->f.status == 0) {
        log_info("image-fetched", "sha256=%s bytes=%llu from=\"%s\"", f->f.artifact.sha256,
                 (unsigned long long)atomic_load(&f->f.done_bytes), f->f.place);
        held(cache, f->f.artifact.sha256);
    }
    list_init(&waits);
    list_take(&waits, &f->waits);
    int status = f->f.status;
    struct error err = f->f.err;
    CLEANUP_FREE char *path = xstrdup(f->f.final_path);
    fetch_destroy(f);
    waits_tell(&waits, status, &err, path);
    tell_owner(cache);
    cache_next(cache);
    cache_maybe_finish(cache);
}

static void fetch_prepare(struct fetch *f)
{
    const struct cached *c = map_get(&f->cache->images, f->f.artifact.sha256);
    if (c != NULL)
        peers_copy(&f->f.peers, &c->peers);
    f->no_room = f->f.artifact.size_bytes > 0 &&
                 image_cache_make_room(f->cache, f->f.artifact.size_bytes, &f->f.err) < 0;
    f->f.status = f->no_room ? -ENOSPC : 0;
    f->f.identity = f->cache->owner.identity;
    atomic_store(&f->f.stop, f->cache->closing);
}

static void cache_next(struct image_cache *cache)
{
    while (cache->active < IMAGE_CACHE_FETCHES_MAX && !list_empty(&cache->queued)) {
        struct fetch *f = LIST_ENTRY(cache->queued.next, struct fetch, link);
        list_remove(&f->link);
        f->active = true;
        cache->active++;
        fetch_prepare(f);
        int r = uv_queue_work(cache->loop, &f->work, fetch_work, fetch_after);
        ASSERT(r == 0);
    }
}

static void cache_tell(uv_async_t *async)
{
    struct image_cache *cache = CONTAINER_OF(async, struct image_cache, tell);
    struct error err = {.code = 0};
    struct list waits;
    error_set(&err, -ECANCELED, ERROR_CANCELLED, "the image is not waited for any more");
    list_init(&waits);
    list_take(&waits, &cache->cancelled);
    waits_tell(&waits, -ECANCELED, &err, NULL);
    cache_maybe_finish(cache);
}

static void cache_closed(uv_handle_t *handle)
{
    struct image_cache *cache = CONTAINER_OF((uv_async_t *)handle, struct image_cache, tell);
    void (*closed)(void *arg) = cache->closed;
    void *arg = cache->closed_arg;
    struct cached *c;
    for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL;) {
        peers_clear(&c->peers);
        free(c->url);
        free(c);
    }
    map_finish(&cache->images);
    map_finish(&cache->fetches);
    free(cache->dir);
    free(cache);
    if (closed != NULL)
        closed(arg);
}

/* Every reason to stay alive. */
static void cache_maybe_finish(struct image_cache *cache)
{
    if (cache->closing && cache->active == 0 && list_empty(&cache->queued) && list_empty(&cache->cancelled) &&
        !uv_is_closing((uv_handle_t *)&cache->tell))
        uv_close((uv_handle_t *)&cache->tell, cache_closed);
}

/* ---- start and end ---- */

static void find_held(struct image_cache *cache)
{
    DIR *d = opendir(cache->dir);
    struct dirent *entry;
    const char *rule;
    while (d != NULL && (entry = readdir(d)) != NULL)
        if (text_format_ok(FORMAT_sha256, entry->d_name, &rule) && strlen(entry->d_name) == SHA256_TEXT_SIZE - 1)
            held(cache, entry->d_name);
    if (d != NULL)
        closedir(d);
}

int image_cache_create(uv_loop_t *loop, const char *dir, uid_t web_user, struct image_cache **ret_cache, struct error *err)
{
    int r = file_make_directories(dir, 0755, err);
    if (r < 0)
        return r;
    struct image_cache *cache = NEW(struct image_cache);
    cache->loop = loop;
    r = uv_async_init(loop, &cache->tell, cache_tell);
    if (r < 0) {
        free(cache);
        return error_errno(err, r, "cannot make the image cache");
    }
    cache->dir = xstrdup(dir);
    cache->web_user = web_user;
    list_init(&cache->queued);
    list_init(&cache->cancelled);
    remove_parts(cache, false);
    find_held(cache);
    *ret_cache = cache;
    return 0;
}

void image_cache_set_owner(struct image_cache *cache, const struct image_cache_owner *owner)
{
    cache->owner = *owner;
}

const char *image_cache_dir(const struct image_cache *cache)
{
    return cache->dir;
}

void image_cache_close(struct image_cache *cache, void (*closed)(void *arg), void *arg)
{
    struct fetch *f;
    cache->closing = true;
    cache->closed = closed;
    cache->closed_arg = arg;
    for (size_t i = 0; (f = map_next(&cache->fetches, &i)) != NULL;)
        atomic_store(&f->f.stop, true);
    cache_next(cache); /* those in the queue run into `stop` and end the same way */
    cache_maybe_finish(cache);
}

/* ---- VMs ---- */

int image_cache_find(struct image_cache *cache, const struct artifact *artifact, char *buffer, size_t size)
{
    const struct timespec used_now[] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
    struct cached *c = map_get(&cache->images, artifact->sha256);
    int r = path_of(cache, artifact->sha256, buffer, size);
    if (r == 0 && access(buffer, R_OK) < 0)
        r = -errno;
    if (r == 0)
        utimensat(AT_FDCWD, buffer, used_now, AT_SYMLINK_NOFOLLOW); /* where it fails it goes a little too early */
    else if (c != NULL)
        c->held = false; /* somebody has removed it by hand */
    return r;
}

static struct fetch *fetch_create(struct image_cache *cache, const struct artifact *artifact)
{
    struct fetch *f = NEW(struct fetch);
    const struct cached *c = map_get(&cache->images, artifact->sha256);
    f->cache = cache;
    list_init(&f->link);
    list_init(&f->waits);
    OBJECT_COPY(artifact, &f->f.artifact, artifact);
    if (artifact->size_bytes == 0 && c != NULL && c->size_bytes > 0)
        OBJECT_SET(artifact, &f->f.artifact, size_bytes, c->size_bytes);
    atomic_init(&f->f.total_bytes, f->f.artifact.size_bytes);
    f->f.dir = cache->dir;
    f->f.web_user = cache->web_user;
    f->f.final_path = xasprintf("%s/%s", cache->dir, artifact->sha256);
    f->f.part_path = xasprintf("%s" PART_SUFFIX, f->f.final_path);
    map_put(&cache->fetches, f->f.artifact.sha256, f);
    list_append(&cache->queued, &f->link);
    return f;
}

int image_cache_get(struct image_cache *cache, const struct artifact *artifact, image_cache_done done, void *arg,
                    struct image_wait **ret_wait, struct error *err)
{
    if (cache->closing)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the agent is ending");
    struct fetch *f = map_get(&cache->fetches, artifact->sha256);
    if (f == NULL)
        f = fetch_create(cache, artifact);
    struct image_wait *wait = NEW(struct image_wait);
    *wait = (struct image_wait){.fetch = f, .done = done, .arg = arg};
    list_append(&f->waits, &wait->link);
    cache_next(cache);
    *ret_wait = wait;
    return 0;
}

void image_cache_cancel(struct image_wait *wait)
{
    struct fetch *f = wait->fetch;
    if (f == NULL)
        return;
    struct image_cache *cache = f->cache;
    list_remove(&wait->link);
    wait->fetch = NULL;
    list_append(&cache->cancelled, &wait->link);
    uv_async_send(&cache->tell);
    if (!list_empty(&f->waits))
        return;
    if (f->active) {
        atomic_store(&f->f.stop, true);
        return;
    }
    list_remove(&f->link);
    fetch_destroy(f);
}

void image_cache_progress(const struct image_wait *wait, uint64_t *ret_done, uint64_t *ret_total)
{
    const struct fetch *f = wait->fetch;
    *ret_done = f == NULL ? 0 : atomic_load(&f->f.done_bytes);
    *ret_total = f == NULL ? 0 : atomic_load(&f->f.total_bytes);
}

/* ---- what the cluster says and hears ---- */

static void on_kept(int status, const struct error *err, const char *path, void *arg)
{
    struct cached *c = arg;
    struct image_cache *cache = c->cache;
    (void)path;
    c->keeping = NULL;
    c->retry_ms = uv_now(cache->loop) + IMAGE_CACHE_RETRY_MS;
    if (status < 0 && status != -ECANCELED) {
        text_copy(c->reason, sizeof(c->reason), err->text);
        log_warning("image-keep", "sha256=%s error=\"%s\"", c->sha256, err->text);
    }
    if (!cache->closing)
        cached_drop(c);
}

void image_cache_learn(struct image_cache *cache, const struct object_list *orders)
{
    size_t n = 0;
    struct cached *c, **all;
    cache->learnt = true;
    for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL;)
        c->ordered = c->keep = false;
    for (size_t i = 0; i < orders->count; i++) {
        const struct image_order *order = (const struct image_order *)orders->items + i;
        c = cached_make(cache, order->sha256);
        c->ordered = true;
        c->keep = order->keep;
        if (!c->held)
            c->size_bytes = order->size_bytes;
        peers_copy(&c->peers, &order->peers);
        free(c->url);
        c->url = order->url != NULL ? xstrdup(order->url) : NULL;
    }
    all = xcalloc(cache->images.count + 1, sizeof(struct cached *));
    for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL;)
        all[n++] = c;
    for (size_t i = 0; i < n; i++) {
        if (!all[i]->keep && all[i]->keeping != NULL)
            image_cache_cancel(all[i]->keeping); /* on_kept follows */
        else if (!all[i]->ordered)
            cached_drop(all[i]);
    }
    free(all);
    image_cache_tick(cache);
}

void image_cache_tick(struct image_cache *cache)
{
    CLEANUP_FREE struct cached **due = xcalloc(cache->images.count + 1, sizeof(struct cached *));
    struct cached *c;
    size_t n = 0;
    for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL;)
        if (c->keep && !c->held && c->keeping == NULL && (c->peers.count > 0 || c->url != NULL) && !cache->closing &&
            (c->retry_ms == 0 || uv_now(cache->loop) >= c->retry_ms))
            due[n++] = c;
    for (size_t i = 0; i < n; i++) { /* making room for one removes others, but none that is to be kept */
        struct artifact artifact = {.url = due[i]->url, .sha256 = due[i]->sha256, .size_bytes = due[i]->size_bytes};
        object_mark(&artifact_desc, &artifact, "sha256");
        if (artifact.url != NULL)
            object_mark(&artifact_desc, &artifact, "url");
        if (artifact.size_bytes > 0)
            object_mark(&artifact_desc, &artifact, "size_bytes");
        if (image_cache_get(cache, &artifact, on_kept, due[i], &due[i]->keeping, NULL) < 0)
            due[i]->keeping = NULL;
    }
}

static void put_seen(const struct image_cache *cache, const struct cached *c, struct node_report *report)
{
    bool under_way = map_get(&cache->fetches, c->sha256) != NULL;
    if (!c->held && !under_way && c->reason[0] == '\0')
        return;
    struct image_seen *seen = OBJECT_ADD(node_report, report, images);
    OBJECT_TEXT(image_seen, seen, sha256, c->sha256);
    OBJECT_SET(image_seen, seen, state, c->held ? image_copy_state_HELD : under_way ? image_copy_state_FETCHING : image_copy_state_FAILED);
    if (!c->held && !under_way)
        OBJECT_TEXT(image_seen, seen, reason, c->reason);
}

void image_cache_put_seen(const struct image_cache *cache, struct node_report *report)
{
    const uint64_t most = object_field(&node_report_desc, "images")->max;
    const struct cached *c;
    object_mark(&node_report_desc, report, "images");
    for (int kept = 1; kept >= 0; kept--)
        for (size_t i = 0; (c = map_next(&cache->images, &i)) != NULL && report->images.count < most;)
            if (c->keep == (kept == 1))
                put_seen(cache, c, report);
}

bool image_cache_is_busy(const struct image_cache *cache)
{
    return cache->active > 0;
}

void image_cache_adopt(struct image_cache *cache, const char *sha256)
{
    held(cache, sha256);
    tell_owner(cache);
}

void image_cache_forget(struct image_cache *cache, const char *sha256)
{
    char path[IMAGE_CACHE_PATH_BYTES_MAX];
    struct stat st;
    struct cached *c = map_get(&cache->images, sha256);
    if (c == NULL || !c->held || c->keep || path_of(cache, sha256, path, sizeof(path)) < 0 || stat(path, &st) < 0 ||
        is_used(cache, sha256, &st))
        return;
    evict(c, "no image of the cluster has this content any more");
}
