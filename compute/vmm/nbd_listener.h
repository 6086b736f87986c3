/* NBD exports of this VMM at a Unix socket (mode 0600), on the I/O loop: the sessions of block/nbd_session.h with their
 * sockets.
 *
 *   client -> session -> block requests, between those of the guest -> answers, as the socket takes them
 *
 * What one client may have under way is small (NBD_LISTENER_BYTES_MAX), and each turn of the loop moves a bounded piece, so
 * that a reader does not keep the guest's devices waiting. A client that breaks the protocol, hangs up or does not read
 * loses its connection.
 *
 * Threads: create and destroy on the control loop's, with the device lock held; the rest happens on the I/O loop. */
#ifndef COMPUTE_VMM_NBD_LISTENER_H
#define COMPUTE_VMM_NBD_LISTENER_H

#include "block/nbd_session.h"
#include "compute/vmm/io_loop.h"

/* A migration brings each disk on a connection of its own, a backup has one for each from its beginning; and who looks. */
enum { NBD_LISTENER_CLIENTS_MAX = 20 };
#define NBD_LISTENER_BYTES_MAX (UINT64_C(4) << 20)
#define NBD_LISTENER_TURN_BYTES_MAX (UINT64_C(1) << 20) /* sent to one client in one turn */

struct nbd_listener;

/* @exports, borrowed, may lose their blocks (NULL) while nothing is in flight. @clients_changed: one has come or gone;
 * may be NULL. -EADDRINUSE, -ENAMETOOLONG... in words. */
int nbd_listener_create(const char *path, const struct nbd_export *exports, unsigned export_count, struct io_loop *loop,
                        void (*clients_changed)(void *arg, unsigned count), void *arg,
                        struct nbd_listener **ret_listener, struct error *err);
unsigned nbd_listener_clients(const struct nbd_listener *l);
/* Cuts all clients off, after draining what they have under way. NULL is allowed. */
void nbd_listener_destroy(struct nbd_listener *l);

#endif
