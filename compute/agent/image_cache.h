/* Images of this host: files named by their SHA-256, fetched once however many VMs wait for them.
 *
 *   <dir>/<sha256>       whole and checked; never changed again
 *   <dir>/<sha256>.part  being fetched; removed at start
 *
 *   1. image_cache_get: there already -> done with its path         else one fetch for each checksum, waiters queue
 *   2. worker: http(s) download (redirects followed), or copy of file:///..., hashing while writing
 *        failures: unreachable, HTTP status, no space -> done(<0), the partial file removed, the next get tries again
 *        wrong checksum or size                       -> done(-EBADMSG), ERROR_CHECKSUM
 *   3. fsync, rename, fsync of the directory -> done(0) to every waiter
 *
 * A file under its final name was checked when it was written and is not hashed again. Nothing is ever removed from
 * the cache here. All but the worker runs on the loop's thread. */
#ifndef COMPUTE_AGENT_IMAGE_CACHE_H
#define COMPUTE_AGENT_IMAGE_CACHE_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "schema/objects.h"

#define IMAGE_CACHE_FETCHES_MAX 2 /* at once: each holds a thread of the loop's pool; the others wait their turn */
#define IMAGE_CACHE_IDLE_MS 30000 /* silence of a server after which a download fails */
#define IMAGE_CACHE_PATH_BYTES_MAX 4096

struct image_cache;
struct image_wait; /* one caller's wait for one image */

/* @path is borrowed until it returns; NULL where @status < 0. The wait is gone when it returns. */
typedef void (*image_cache_done)(int status, const struct error *err, const char *path, void *arg);

/* Makes @dir where it is missing. */
int image_cache_create(uv_loop_t *loop, const char *dir, struct image_cache **ret_cache, struct error *err);
/* Waits in progress end with -ECANCELED; then @closed (may be NULL) and the memory is gone. */
void image_cache_close(struct image_cache *cache, void (*closed)(void *arg), void *arg);

/* Path of the image if it is there already; -ENOENT. */
int image_cache_find(const struct image_cache *cache, const struct artifact *artifact, char *buffer, size_t size);
/* <0: @done never comes. 0: it comes exactly once, later. @artifact is copied. */
int image_cache_get(struct image_cache *cache, const struct artifact *artifact, image_cache_done done, void *arg,
                    struct image_wait **ret_wait, struct error *err);
/* done follows with -ECANCELED; the fetch goes on only if others wait for it. */
void image_cache_cancel(struct image_wait *wait);
/* Bytes so far and in all (0: not known yet). */
void image_cache_progress(const struct image_wait *wait, uint64_t *ret_done, uint64_t *ret_total);

#endif
