/* Images of this host: files named by the SHA-256 of their content, fetched once however many VMs wait for them.
 *
 *   <dir>/<sha256>       whole and checked; never changed again. Its access time says when it was last used
 *   <dir>/<sha256>.part  being fetched, or given up for the moment; gone on with, or removed after IMAGE_CACHE_PART_S
 *
 *   1. image_cache_get: there already -> done with its path         else one fetch for each checksum, waiters queue
 *   2. room for it, by removing what nobody uses (below)            none: done(-ENOSPC)
 *   3. worker: image_fetch.h, from other agents that hold it or from its URL, hashing while writing
 *        failures: unreachable, HTTP status, no space -> done(<0), the next get tries again
 *        wrong checksum or size                       -> done(-EBADMSG), ERROR_CHECKSUM
 *   4. fsync, rename, fsync of the directory -> done(0) to every waiter
 *
 * A file under its final name was checked when it was written and is not hashed again.
 *
 * What the controllers want kept here (image_cache_learn) is fetched without a VM that waits, tried again after
 * IMAGE_CACHE_RETRY_MS, and stays. All else goes when room is short, the one first that was not used for the longest
 * time, but never one that a VM uses: by the owner's word (in_use), or because a disk is a second name of it.
 * All but the worker runs on the loop's thread. */
#ifndef COMPUTE_AGENT_IMAGE_CACHE_H
#define COMPUTE_AGENT_IMAGE_CACHE_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "compute/agent/image_fetch.h"
#include "schema/objects.h"

#define IMAGE_CACHE_FETCHES_MAX 2 /* at once: each holds a thread of the loop's pool; the others wait their turn */
#define IMAGE_CACHE_PATH_BYTES_MAX 4096
#define IMAGE_CACHE_PART_S 86400              /* unfinished ones that nobody has gone on with */
#define IMAGE_CACHE_RETRY_MS 5000u            /* what is to be kept and could not be had */
#define IMAGE_CACHE_RESERVE_BYTES (UINT64_C(1) << 30) /* of the file system, not for images: this or a 20th, the smaller */

struct image_cache;
struct image_wait; /* one caller's wait for one image */

/* @path is borrowed until it returns; NULL where @status < 0. The wait is gone when it returns. */
typedef void (*image_cache_done)(int status, const struct error *err, const char *path, void *arg);

/* Makes @dir where it is missing. @web_user: image_fetch.web_user. */
int image_cache_create(uv_loop_t *loop, const char *dir, uid_t web_user, struct image_cache **ret_cache, struct error *err);
/* Waits in progress end with -ECANCELED; then @closed (may be NULL) and the memory is gone. */
void image_cache_close(struct image_cache *cache, void (*closed)(void *arg), void *arg);

/* Who it is among the cluster's hosts, so that it may ask other agents; which images VMs use; whom to tell when what
 * image_cache_put_seen would say has changed. Each may be NULL. @identity is borrowed. */
struct image_cache_owner {
    const struct image_fetch_identity *identity;
    bool (*in_use)(const char *sha256, void *arg);
    void (*changed)(void *arg);
    void *arg;
};
void image_cache_set_owner(struct image_cache *cache, const struct image_cache_owner *owner);

/* Path of the image if it is there already, which counts as its use; -ENOENT. */
int image_cache_find(struct image_cache *cache, const struct artifact *artifact, char *buffer, size_t size);
/* <0: @done never comes. 0: it comes exactly once, later. @artifact is copied; its url may be NULL where other hosts hold
 * it. */
int image_cache_get(struct image_cache *cache, const struct artifact *artifact, image_cache_done done, void *arg,
                    struct image_wait **ret_wait, struct error *err);
/* done follows with -ECANCELED; the fetch goes on only if others wait for it. */
void image_cache_cancel(struct image_wait *wait);
/* Bytes so far and in all (0: not known yet). */
void image_cache_progress(const struct image_wait *wait, uint64_t *ret_done, uint64_t *ret_total);

/* ---- what the cluster says and hears ---- */

/* @orders: struct image_order, all that concern this host: what it is to keep, and who else holds what it may need.
 * Nothing is removed for want of room before this was called once. */
void image_cache_learn(struct image_cache *cache, const struct object_list *orders);
/* Now and then: what is to be kept and is not here yet. */
void image_cache_tick(struct image_cache *cache);
/* Every image that is here, on its way, or could not be had: those that are to be kept first, as many as a report takes. */
void image_cache_put_seen(const struct image_cache *cache, struct node_report *report);
/* Is a fetch under way whose progress is worth telling? */
bool image_cache_is_busy(const struct image_cache *cache);

/* ---- images that come by other ways (imports) ---- */

/* Free room for @size more bytes beside the reserve, by removing what nobody uses. -ENOSPC with words. */
int image_cache_make_room(struct image_cache *cache, uint64_t size, struct error *err);
/* <dir>/<sha256> has been put there, whole and synced. */
void image_cache_adopt(struct image_cache *cache, const char *sha256);
/* No image of the cluster has this content any more: remove it unless a VM uses it (then when room is needed). */
void image_cache_forget(struct image_cache *cache, const char *sha256);
const char *image_cache_dir(const struct image_cache *cache);

#endif
