/* NBD exports for programs without a loop of their own: a Unix socket, a port of 127.0.0.1 (no TLS, so nothing else), or
 * sockets that are connected already, and as many clients as are allowed, all served by the thread that calls
 * nbd_server_run.
 *
 *   poll -> new clients; bytes in -> nbd_session.h -> blocks; bytes out
 *
 * Blocks whose requests are carried out by block_drain (block_sync.h, or with threads behind it) are drained once a round;
 * others end theirs in options.run, in a round that nbd_server_wake has begun.
 * A client that breaks the protocol, hangs up or does not read loses its connection, and nothing else. */
#ifndef BLOCK_NBD_SERVER_H
#define BLOCK_NBD_SERVER_H

#include "block/nbd_session.h"

enum { NBD_SERVER_CLIENTS_MAX = 16 };
#define NBD_SERVER_BYTES_MAX (UINT64_C(64) << 20) /* of one client: see nbd_session_options */

struct nbd_server_options {
    const char *socket_path; /* Unix socket, made here with mode 0600 and removed at the end; or NULL: */
    bool has_listen_fd;      /* a Unix socket that listens already and becomes the server's, whatever the result; or not: */
    int listen_fd;
    uint16_t tcp_port;       /* of 127.0.0.1; 0: any free one */
    bool adopted_only;       /* neither: only those that nbd_server_adopt gives it, until the last of them has gone */
    const struct nbd_export *exports; /* borrowed */
    unsigned export_count;
    void (*run)(void *arg); /* once a round: have `done` called of what has ended; NULL: all blocks are drained */
    void *run_arg;
    /* One client at a time, and the disk is ours only while there is one. Asked with true before it is served - a negative answer hangs up on
     * it -, with false when it has gone and nothing of it is under way any more; only then its connection ends, so whoever sees that end
     * knows that the disk may be another's. Others wait. NULL: all that come are served, at any time. */
    int (*own)(void *arg, bool own);
    void *own_arg;
};

struct nbd_server;

/* Listens when it returns. -EADDRINUSE in words: a socket file is there; remove it if nobody serves it. */
int nbd_server_create(const struct nbd_server_options *options, struct nbd_server **ret_server, struct error *err);
uint16_t nbd_server_port(const struct nbd_server *server);
/* One more client: a connected stream socket, which becomes the server's on success. Before nbd_server_run. -EBUSY: all
 * NBD_SERVER_CLIENTS_MAX are there. */
int nbd_server_adopt(struct nbd_server *server, int fd);
/* Serve until nbd_server_stop. */
void nbd_server_run(struct nbd_server *server);
/* Any thread: something has ended, begin a round soon. */
void nbd_server_wake(struct nbd_server *server);
/* Any thread, or a signal handler: nbd_server_run returns soon. */
void nbd_server_stop(struct nbd_server *server);
/* NULL is allowed. */
void nbd_server_destroy(struct nbd_server *server);

#endif
