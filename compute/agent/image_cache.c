/* Image cache: one worker for each checksum that is fetched, any number of waiters; see image_cache.h for the steps.
 *
 * A fetch is queued -> active (its worker runs) -> gone. Its struct belongs to the worker between uv_queue_work and
 * the after-callback, but for `waits` (loop thread only) and the three atomics (both). A fetch whose last waiter has
 * left is told to stop; if another waiter came before it did, it is begun anew. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_client.h"
#include "common/list.h"
#include "common/log.h"
#include "common/map.h"
#include "compute/agent/image_cache.h"

#define COPY_BYTES (256 * 1024)
#define REDIRECTS_MAX 8 /* what is known by name on the web is often served by a mirror; the checksum rules */
#define FILE_SCHEME "file://"

struct image_cache {
    uv_loop_t *loop;
    char *dir;
    struct map fetches;    /* by checksum */
    struct list queued;    /* fetches that wait for their turn */
    struct list cancelled; /* waits to be told so */
    uv_async_t tell;       /* runs through `cancelled` */
    unsigned active;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct fetch {
    struct image_cache *cache;
    struct list link; /* in cache->queued, or unlinked */
    struct list waits;
    uv_work_t work;
    bool active;
    struct artifact artifact;
    char *part_path, *final_path;
    atomic_uint_least64_t done_bytes, total_bytes;
    atomic_bool stop;
    /* the worker's */
    int fd;
    EVP_MD_CTX *hash;
    int status;
    struct error err;
};

struct image_wait {
    struct list link;    /* in fetch->waits or cache->cancelled */
    struct fetch *fetch; /* NULL: cancelled */
    image_cache_done done;
    void *arg;
};

/* ---- the worker: a thread of the pool ---- */

static int fetch_fail(struct fetch *f, int code, enum error_kind kind, const char *what)
{
    return error_set(&f->err, code, kind, "image %s: %s", f->artifact.url, what);
}

/* Hash and write one piece; also libcurl's receiver. */
static int fetch_take(const void *data, size_t size, void *arg)
{
    struct fetch *f = arg;
    const char *at = data;
    if (atomic_load(&f->stop))
        return fetch_fail(f, -ECANCELED, ERROR_CANCELLED, "no VM waits for it any more");
    uint64_t done = atomic_load(&f->done_bytes) + size;
    if (f->artifact.size_bytes != 0 && done > f->artifact.size_bytes)
        return fetch_fail(f, -EBADMSG, ERROR_CHECKSUM, "it is longer than the size given for it");
    if (EVP_DigestUpdate(f->hash, data, size) != 1)
        return fetch_fail(f, -EIO, ERROR_INTERNAL, "cannot hash it");
    while (size > 0) {
        ssize_t n = write(f->fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int r = -errno;
            error_errno(&f->err, r, "image %s: cannot write %s", f->artifact.url, f->part_path);
            if (r == -ENOSPC)
                f->err.kind = ERROR_NO_SPACE;
            return r;
        }
        at += n;
        size -= (size_t)n;
    }
    atomic_store(&f->done_bytes, done);
    return 0;
}

static int fetch_copy(struct fetch *f)
{
    const char *path = f->artifact.url + strlen(FILE_SCHEME);
    struct stat st;
    CLEANUP_FD int from = open(path, O_RDONLY | O_CLOEXEC);
    CLEANUP_FREE char *buffer = xcalloc(1, COPY_BYTES);
    if (from < 0)
        return error_errno(&f->err, -errno, "image %s: this host cannot open it", f->artifact.url);
    if (fstat(from, &st) == 0)
        atomic_store(&f->total_bytes, (uint64_t)st.st_size);
    for (;;) {
        ssize_t n = read(from, buffer, COPY_BYTES);
        if (n == 0)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(&f->err, -errno, "image %s: cannot read it", f->artifact.url);
        int r = fetch_take(buffer, (size_t)n, f);
        if (r < 0)
            return r;
    }
}

static void fetch_progress(uint64_t done, uint64_t total, void *arg)
{
    struct fetch *f = arg;
    (void)done;
    if (total != 0)
        atomic_store(&f->total_bytes, total);
}

static int fetch_download(struct fetch *f)
{
    struct error err = {.code = 0};
    int status = 0;
    const struct http_call_options options = {
        .url = f->artifact.url,
        .idle_ms = IMAGE_CACHE_IDLE_MS,
        .redirects_max = REDIRECTS_MAX,
        .on_data = fetch_take,
        .on_progress = fetch_progress,
        .arg = f,
    };
    int r = http_client_perform(&options, &status, NULL, NULL, &err);
    if (f->err.code != 0) /* our own refusal of a piece says more than the client's word for it */
        return f->err.code;
    if (r < 0)
        return error_set(&f->err, r, err.kind, "image %s: %s", f->artifact.url, err.text);
    if (status < 200 || status >= 300)
        return error_set(&f->err, -EREMOTEIO, ERROR_UNREACHABLE, "image %s: the server answered %d", f->artifact.url,
                         status);
    return 0;
}

static int fetch_check(struct fetch *f)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
    uint64_t done = atomic_load(&f->done_bytes);
    if (f->artifact.size_bytes != 0 && done != f->artifact.size_bytes)
        return error_set(&f->err, -EBADMSG, ERROR_CHECKSUM,
                         "image %s: it has %llu bytes, and not the %llu given for it", f->artifact.url,
                         (unsigned long long)done, (unsigned long long)f->artifact.size_bytes);
    if (EVP_DigestFinal_ex(f->hash, digest, &size) != 1)
        return fetch_fail(f, -EIO, ERROR_INTERNAL, "cannot hash it");
    for (unsigned i = 0; i < size; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    if (strcmp(hex, f->artifact.sha256) != 0)
        return error_set(
            &f->err, -EBADMSG, ERROR_CHECKSUM,
            "image %s: its SHA-256 is %s, and not the %s given for it; correct the image or its checksum",
            f->artifact.url, hex, f->artifact.sha256);
    return 0;
}

static int fetch_keep(struct fetch *f)
{
    if (fsync(f->fd) < 0 || rename(f->part_path, f->final_path) < 0)
        return error_errno(&f->err, -errno, "image %s: cannot keep it as %s", f->artifact.url, f->final_path);
    return file_sync_directory(f->cache->dir, &f->err);
}

static void fetch_work(uv_work_t *work)
{
    struct fetch *f = CONTAINER_OF(work, struct fetch, work);
    f->err = (struct error){.code = 0};
    atomic_store(&f->done_bytes, 0);
    f->fd = open(f->part_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (f->fd < 0) {
        f->status = error_errno(&f->err, -errno, "cannot make %s", f->part_path);
        return;
    }
    f->hash = EVP_MD_CTX_new();
    if (f->hash == NULL || EVP_DigestInit_ex(f->hash, EVP_sha256(), NULL) != 1)
        f->status = fetch_fail(f, -ENOMEM, ERROR_INTERNAL, "cannot hash it");
    else
        f->status =
            strncmp(f->artifact.url, FILE_SCHEME, strlen(FILE_SCHEME)) == 0 ? fetch_copy(f) : fetch_download(f);
    if (f->status == 0)
        f->status = fetch_check(f);
    if (f->status == 0)
        f->status = fetch_keep(f);
    if (f->status < 0)
        unlink(f->part_path);
    EVP_MD_CTX_free(f->hash);
    close(f->fd);
}

/* ---- the loop's thread ---- */

static void cache_maybe_finish(struct image_cache *cache);
static void cache_next(struct image_cache *cache);

static void fetch_destroy(struct fetch *f)
{
    map_remove(&f->cache->fetches, f->artifact.sha256);
    OBJECT_CLEAR(artifact, &f->artifact);
    free(f->part_path);
    free(f->final_path);
    free(f);
}

static void fetch_after(uv_work_t *work, int uv_status)
{
    struct fetch *f = CONTAINER_OF(work, struct fetch, work);
    struct image_cache *cache = f->cache;
    struct list waits;
    (void)uv_status; /* work is never cancelled in the pool: the worker is asked to stop instead */
    cache->active--;
    f->active = false;
    if (f->status == -ECANCELED && !list_empty(&f->waits) && !cache->closing) {
        list_append(&cache->queued, &f->link); /* somebody came after it had been told to stop */
        cache_next(cache);
        return;
    }
    if (f->status == 0)
        log_info("image-fetched", "sha256=%s bytes=%llu", f->artifact.sha256,
                 (unsigned long long)atomic_load(&f->done_bytes));
    list_init(&waits);
    list_take(&waits, &f->waits);
    int status = f->status;
    struct error err = f->err;
    CLEANUP_FREE char *path = xstrdup(f->final_path);
    fetch_destroy(f);
    LIST_FOREACH_SAFE(link, &waits)
    {
        struct image_wait *wait = LIST_ENTRY(link, struct image_wait, link);
        list_remove(link);
        wait->done(status, &err, status == 0 ? path : NULL, wait->arg);
        free(wait);
    }
    cache_next(cache);
    cache_maybe_finish(cache);
}

static void cache_next(struct image_cache *cache)
{
    while (cache->active < IMAGE_CACHE_FETCHES_MAX && !list_empty(&cache->queued)) {
        struct fetch *f = LIST_ENTRY(cache->queued.next, struct fetch, link);
        list_remove(&f->link);
        atomic_store(&f->stop, cache->closing);
        f->active = true;
        cache->active++;
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
    LIST_FOREACH_SAFE(link, &waits)
    {
        struct image_wait *wait = LIST_ENTRY(link, struct image_wait, link);
        list_remove(link);
        wait->done(-ECANCELED, &err, NULL, wait->arg);
        free(wait);
    }
    cache_maybe_finish(cache);
}

static void cache_closed(uv_handle_t *handle)
{
    struct image_cache *cache = CONTAINER_OF((uv_async_t *)handle, struct image_cache, tell);
    void (*closed)(void *arg) = cache->closed;
    void *arg = cache->closed_arg;
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

/* What a killed agent left half done. */
static void remove_parts(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (length > 5 && strcmp(entry->d_name + length - 5, ".part") == 0)
            unlinkat(dirfd(d), entry->d_name, 0);
    }
    if (d != NULL)
        closedir(d);
}

int image_cache_create(uv_loop_t *loop, const char *dir, struct image_cache **ret_cache, struct error *err)
{
    int r = file_make_directories(dir, 0755, err);
    if (r < 0)
        return r;
    remove_parts(dir);
    struct image_cache *cache = NEW(struct image_cache);
    cache->loop = loop;
    r = uv_async_init(loop, &cache->tell, cache_tell);
    if (r < 0) {
        free(cache);
        return error_errno(err, r, "cannot make the image cache");
    }
    cache->dir = xstrdup(dir);
    list_init(&cache->queued);
    list_init(&cache->cancelled);
    *ret_cache = cache;
    return 0;
}

void image_cache_close(struct image_cache *cache, void (*closed)(void *arg), void *arg)
{
    struct fetch *f;
    cache->closing = true;
    cache->closed = closed;
    cache->closed_arg = arg;
    for (size_t i = 0; (f = map_next(&cache->fetches, &i)) != NULL;)
        atomic_store(&f->stop, true);
    cache_next(cache); /* those in the queue run into `stop` and end the same way */
    cache_maybe_finish(cache);
}

int image_cache_find(const struct image_cache *cache, const struct artifact *artifact, char *buffer, size_t size)
{
    int n = snprintf(buffer, size, "%s/%s", cache->dir, artifact->sha256);
    if (n < 0 || (size_t)n >= size)
        return -ENAMETOOLONG;
    return access(buffer, R_OK) == 0 ? 0 : -errno;
}

static struct fetch *fetch_create(struct image_cache *cache, const struct artifact *artifact)
{
    struct fetch *f = NEW(struct fetch);
    f->cache = cache;
    list_init(&f->link);
    list_init(&f->waits);
    OBJECT_COPY(artifact, &f->artifact, artifact);
    atomic_init(&f->total_bytes, artifact->size_bytes);
    f->final_path = xasprintf("%s/%s", cache->dir, artifact->sha256);
    f->part_path = xasprintf("%s.part", f->final_path);
    map_put(&cache->fetches, f->artifact.sha256, f);
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
        atomic_store(&f->stop, true);
        return;
    }
    list_remove(&f->link);
    fetch_destroy(f);
}

void image_cache_progress(const struct image_wait *wait, uint64_t *ret_done, uint64_t *ret_total)
{
    const struct fetch *f = wait->fetch;
    *ret_done = f == NULL ? 0 : atomic_load(&f->done_bytes);
    *ret_total = f == NULL ? 0 : atomic_load(&f->total_bytes);
}
