/* One client of an NBD server, as a machine without a socket: bytes in, bytes out, requests to struct blocks. Whoever
 * has the socket and the loop moves the bytes (compute/vmm/nbd_listener.h; nbd_serve.h with blocking calls).
 *
 *   FLAGS --> OPTION <--> OPTION DATA         EXPORT_NAME, GO         REQUEST <--> PAYLOAD
 *   (4 bytes)    |                      ------------------------->       |
 *                +-- ABORT, nonsense --> OVER <-- DISCONNECT, nonsense --+     (a refused write's payload: SKIP)
 *
 * Offered: fixed newstyle, LIST, INFO, GO, EXPORT_NAME, structured replies, the contexts of nbd_wire.h; no TLS. Requests
 * must be multiples of 512 bytes, which INFO and GO say. Several are carried out at once and answered as they end.
 * The client is not trusted: everything is read through lengths that were checked, what it may have under way or lets
 * pile up is limited (options.bytes_max, NBD_REQUESTS_MAX), and whatever is not the protocol ends the session.
 *
 * A client that comes again over a new connection may have writes under way on the old one, even bytes that nobody has read
 * yet; they would be carried out after newer ones. NBD_OPT_WRITER ends its earlier sessions first (options.peers).
 *
 * Errors of the disk are the client's: EIO, ENOSPC, EINVAL, EPERM; -EAGAIN (the lease) is EIO to it.
 * Threads: the owner's of the blocks, with the owner's lock held, as block.h says. */
#ifndef BLOCK_NBD_SESSION_H
#define BLOCK_NBD_SESSION_H

#include "block/block.h"

enum nbd_access {
    NBD_ACCESS_READ,      /* nothing else */
    NBD_ACCESS_READ_TRIM, /* TRIM as well: "I do not need this any more" (point_image.h) */
    NBD_ACCESS_WRITE,     /* all that the block can do */
};

/* What can be had under a name. */
struct nbd_export {
    const char *name;    /* 1 to NBD_NAME_BYTES_MAX bytes; the first export answers to "" as well */
    struct block *block; /* NULL: refused as unknown */
    enum nbd_access access;
    /* The name of the state for drover:changed; NULL: no such context. Then also: has @from changed since, and up to where
     * (more than @from) is the same true. */
    const char *changed_since;
    bool (*changed)(void *arg, uint64_t from, uint64_t *ret_end);
    void *changed_arg;
};

struct nbd_session_options {
    const struct nbd_export *exports; /* borrowed for as long as the session lives */
    unsigned export_count;
    struct list *peers;      /* the sessions of this server, borrowed, initialised; NULL: a client's earlier sessions are not ended */
    uint64_t bytes_max;      /* of requests under way and answers not sent; one request may go past it */
    void (*wake)(void *arg); /* there is something to send, or room to receive again */
    void *wake_arg;
};

struct nbd_session;

struct nbd_session *nbd_session_create(const struct nbd_session_options *options);
/* Drains the block that is in use. NULL is allowed. */
void nbd_session_destroy(struct nbd_session *s);

/* Where the next bytes from the client go, and how many at most; NULL: none are wanted now. */
void *nbd_session_room(struct nbd_session *s, size_t *ret_size);
/* @size bytes are there. */
void nbd_session_received(struct nbd_session *s, size_t size);
/* What is to be sent next: fills up to @max entries, returns how many. */
unsigned nbd_session_output(const struct nbd_session *s, struct iovec *ret_iovecs, unsigned max);
/* @size bytes of it are gone. */
void nbd_session_sent(struct nbd_session *s, size_t size);
/* Nothing more will come of it: close the connection once nbd_session_output has nothing any more. */
bool nbd_session_is_over(const struct nbd_session *s);
/* Why it ended where the client broke the protocol; "" otherwise. */
const char *nbd_session_reason(const struct nbd_session *s);
/* Has the client chosen an export? -1: not yet; else its number. */
int nbd_session_export(const struct nbd_session *s);

#endif
