/* Getting one image into this host's store: from a file, from the web, or from other agents. The blocking half of
 * image_cache.h: image_fetch_run is a worker's.
 *
 *   1. <sha256>.part of an earlier attempt: hashed again, and gone on with
 *   2. places in turn: file:///... here; agents that hold it (image_stream.h, holes are not sent); http(s)
 *        a place that fails, is busy or is cut off   the next one goes on at the byte that was reached
 *        stop asked                                  -ECANCELED, the part stays
 *        no space                                    -ENOSPC, the part goes
 *   3. SHA-256 and size of the whole
 *        differs    the part goes; then each place alone from the beginning, but one that gave all of what was wrong
 *   4. fsync, rename to <sha256>, fsync of the directory
 *   No place left: the last place's error. A part that may be gone on with stays. */
#ifndef COMPUTE_AGENT_IMAGE_FETCH_H
#define COMPUTE_AGENT_IMAGE_FETCH_H

#include <stdatomic.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/tls.h"
#include "schema/objects.h"

#define IMAGE_FETCH_IDLE_MS 30000 /* silence of a place after which it is left */
#define IMAGE_FETCH_PEERS_MAX 8u

/* What the host is towards other agents; both NULL: it asks none. Borrowed, longer than any fetch. */
struct image_fetch_identity {
    struct tls_context *tls;
    const char *host_prefix; /* "spiffe://drover/<cluster>/host/": whom it takes for an agent */
};

struct image_fetch {
    /* the caller's, not changed while it runs */
    struct artifact artifact; /* url may be NULL: peers only */
    struct object_list peers; /* struct image_peer */
    const struct image_fetch_identity *identity;
    uid_t web_user; /* who fetches from the web (web_get.h) */
    const char *dir;
    char *part_path, *final_path; /* in dir */
    /* both sides' */
    atomic_uint_least64_t done_bytes, total_bytes; /* 0: not known */
    atomic_bool stop;
    /* results */
    int status;
    struct error err;
    char place[320]; /* the last one asked, for the log */
};

void image_fetch_run(struct image_fetch *fetch);

#endif
