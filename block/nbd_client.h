/* An NBD server as a struct block: a thread of its own holds the connection, so that it serves owners with a loop (wake)
 * and owners without (block_drain) alike.
 *
 *               connected, same size              link lost, or a request unanswered for timeout_ms
 *   CONNECTING --------------------> UP ------------------------------------------------+
 *       ^  |                                                                            |
 *       |  +-- reconnect_ms over --> DOWN: all requests fail with -EIO at once;         |
 *       |                            it goes on trying, once a second, and comes back   |
 *       +-------------------------------------------------------------------------------+
 *
 * While it is CONNECTING again requests wait, and those that were under way are sent once more: a read twice is a read, and
 * a write that was not acknowledged may be done twice - but not the first time after a newer one that was acknowledged, for
 * what was sent over the old connection may still be on its way to the disk. So the server is told which connection of whose this
 * is, and has ended the earlier ones when it takes this one (NBD_OPT_WRITER in nbd_wire.h). A link to a server that cannot
 * do that stays lost where writes were on the wire, and says so. What must not be passed over in silence: writes that a server had
 * acknowledged and that no FLUSH had made to last may be lost with it. After such a link loss the next FLUSH fails with
 * -EIO, once, so that whoever wrote knows; a server that comes back with another size stays away for good.
 *
 * The server is not trusted: lengths, cookies, chunks and extents are checked against what was asked; whatever is not the
 * protocol breaks the link.
 *
 * Threads: the struct block under its owner's lock; nbd_client_run as well. `wake` is called on the client's thread. */
#ifndef BLOCK_NBD_CLIENT_H
#define BLOCK_NBD_CLIENT_H

#include "block/block.h"

enum {
    NBD_CLIENT_TIMEOUT_MS = 30000,
    NBD_CLIENT_RECONNECT_MS = 10000,
    NBD_CLIENT_IN_FLIGHT_MAX = 16, /* on the wire at once; more wait */
    NBD_CLIENT_TRIES_MAX = 5,      /* a request that was on the wire at so many losses of the link fails: it may be the reason */
};

struct nbd_client_options {
    const char *socket_path; /* a Unix socket; or NULL: */
    uint16_t tcp_port;       /* of 127.0.0.1 */
    bool has_fd;             /* neither: a connected stream socket, which becomes the client's whatever the result. There
                                is no way back to its server: a lost link stays lost */
    int fd;
    const char *export_name; /* NULL: "", the server's first */
    const char *changed_since; /* ask what has changed since the state of that name (nbd_wire.h); NULL: do not */
    bool read_only;          /* do not write, whatever the server allows */
    bool patient;            /* of a server that has done with one client before it greets the next (nbd_server_options.own), and whose
                                successor has, too, with what the server before it has left: requests wait for it as long as it takes,
                                however often the link is lost, and none is given up that is unanswered; timeout_ms is for greetings
                                alone. It may come back with a larger disk, which block_grow looks for: it greets the server anew, and
                                -EAGAIN says that the disk is not so large yet, or nobody answers in time */
    bool durable;            /* what the server has acknowledged outlives its process: nothing is lost with a link, and no FLUSH fails for it */
    bool trims_only;         /* the owner writes nothing, but says what it does not need any more, which may be done late and twice */
    unsigned timeout_ms, reconnect_ms; /* 0: as above */
    void (*wake)(void *arg); /* have nbd_client_run called soon under the owner's lock; any thread. NULL: only drain */
    void *wake_arg;
};

enum nbd_client_state { NBD_CLIENT_CONNECTING, NBD_CLIENT_UP, NBD_CLIENT_DOWN, NBD_CLIENT_REFUSED };

/* Connect; -ENOENT, -ECONNREFUSED, -ETIMEDOUT, -EPROTO, ... in words. Blocks for at most timeout_ms. */
int nbd_client_open(const struct nbd_client_options *options, struct block **ret_block, struct error *err);
/* Of a block that nbd_client_open gave: call done of what has ended. */
void nbd_client_run(struct block *b);
/* Close @b, and wait for up to @wait_ms until the server has ended the connection as well (nbd_server_options.own). 0, also where there is
 * no link; -ETIMEDOUT in words: it has not. @b is gone in any case. */
int nbd_client_leave(struct block *b, unsigned wait_ms, struct error *err);
/* Give the link up for good, also one that is silent: what is under way and all that comes fails with -EIO, soon. */
void nbd_client_break(struct block *b);
/* How the link fares, and why it is not up (@ret_why may be NULL). */
enum nbd_client_state nbd_client_state(struct block *b, struct error *ret_why);

/* One stretch of what the server says of its export. */
struct nbd_extent {
    uint64_t end;      /* the answer holds from where was asked up to here */
    bool zero;         /* base:allocation: reads as zeroes */
    bool changed;      /* drover:changed; true where the server does not tell */
};
/* About @from, within [@from, @end): blocking, the owner's thread. Negative errno. */
int nbd_client_extent(struct block *b, uint64_t from, uint64_t end, struct nbd_extent *ret_extent, struct error *err);
/* Does the server say what has changed since then? */
bool nbd_client_has_changed(const struct block *b);

#endif
