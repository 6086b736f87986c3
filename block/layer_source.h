/* What a disk that is not whole yet is filled from: an NBD server on a Unix socket, as a struct block that is only read and
 * knows no error. Whoever reads waits until it is there.
 *
 *   submit --> WANTED --sent--> READING --answered--> READY --run--> done(0)       a cluster each; a few dozen are kept
 *                ^                 |
 *                '---- RETRY_MS ---'  an error, a lost link, no server: asked for again, for ever
 *
 * It opens without a server, connects when there is one, and again when that has gone: a guest that reads what is missing
 * waits meanwhile, which no disk's driver minds, and sees no error. A drain must not wait as long: what has not come within
 * DRAIN_MS ends with -EAGAIN, that is the device keeps the request and submits it again (block.h). What was asked for comes
 * nevertheless, and is there at the next try.
 *
 * The server is not trusted with more than the disk's content: see nbd_client.h; one whose disk is smaller is not read.
 *
 * Threads: the struct block and layer_source_run under the owner's lock. A thread of its own holds the connection; `wake` is
 * called on it, and by submit. */
#ifndef BLOCK_LAYER_SOURCE_H
#define BLOCK_LAYER_SOURCE_H

#include "block/block.h"

enum {
    LAYER_SOURCE_CLUSTERS_MAX = 64,  /* kept in memory */
    LAYER_SOURCE_IN_FLIGHT_MAX = 8,  /* on the wire at once */
    LAYER_SOURCE_RETRY_MS = 1000,
    LAYER_SOURCE_DRAIN_MS = 100,
    LAYER_SOURCE_TIMEOUT_MS = 60000, /* a server that is silent for so long is left */
};

struct layer_source_options {
    const char *socket_path;
    const char *export_name;
    uint64_t size_bytes;     /* a multiple of BLOCK_SECTOR_BYTES */
    void (*wake)(void *arg); /* have layer_source_run called soon under the owner's lock; any thread. NULL: only drain */
    void *wake_arg;
};

/* -ENAMETOOLONG in words; or no thread. Whether there is a server shows later. */
int layer_source_open(const struct layer_source_options *options, struct block **ret_block, struct error *err);
/* Call done of what has come. */
void layer_source_run(struct block *b);
/* Is something not coming? Then why, in *ret_why (may be NULL). */
bool layer_source_is_stuck(struct block *b, struct error *ret_why);

#endif
