/* The control socket of a VMM: HTTP/1.1 with JSON on a Unix socket.
 *
 * The routes are rows of schema/vmm_routes.def (GET /v1/openapi.json shows them all); control_call.h has the
 * functions behind them.
 *
 * One request at a time on a connection, kept open between them. Errors are RFC 9457 problems with a stable code.
 * A client that does not read its answers is cut off. Who may use it is the socket file's mode (0600).
 *
 * Threads: everything on the control loop. */
#ifndef COMPUTE_VMM_CONTROL_H
#define COMPUTE_VMM_CONTROL_H

#include "compute/vmm/machine.h"

#define CONTROL_CONNECTIONS_MAX 32u
#define CONTROL_REQUEST_BYTES_MAX 16384u   /* head and body together */
#define CONTROL_DISCARD_BYTES_MAX 1048576u /* read after a refusal, before the connection is cut all the same */

struct control;

/* Take @path; a socket file that nobody listens at any more is replaced. Before the jail (jail.h): the directory of the
 * socket is not seen from within. Who connects is refused until control_create: who is let in finds a machine. */
int control_bind(const char *path, int *ret_fd, struct error *err);
/* Serve what comes to @fd, which is the control's from now on, also after a failure; @path: the socket's file. */
int control_create(struct machine *m, const char *path, int fd, struct control **ret_control, struct error *err);
/* Closes all connections and removes the socket file, where it is in view. NULL is allowed. */
void control_destroy(struct control *c);

#endif
