/* The control socket of a VMM: HTTP/1.1 with JSON on a Unix socket.
 *
 *   GET  /v1/vm          {"name","vm_id","epoch","state","pid","vcpus","memory_bytes","resets","lease_held",...}
 *   PUT  /v1/vm/state    {"state": "running" | "paused" | "stopped" | "reset" | "powerbutton"}  -> the same as GET
 *   GET  /v1/vm/stats    counters
 *   GET  /v1/vm/console  101, then a raw stream both ways, beginning with the last 64 KiB of output
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

/* Listen at @path; a socket file that nobody listens at any more is replaced. */
int control_create(struct machine *m, const char *path, struct control **ret_control, struct error *err);
/* Closes all connections and removes the socket file. NULL is allowed. */
void control_destroy(struct control *c);

#endif
