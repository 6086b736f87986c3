/* The console of a VM between two sides: a WebSocket of a controller (binary messages) and the raw stream of the
 * VMM's control socket (GET /v1/vm/console, answered by 101). */
#ifndef COMPUTE_AGENT_CONSOLE_BRIDGE_H
#define COMPUTE_AGENT_CONSOLE_BRIDGE_H

#include "common/base.h"
#include "common/http_server.h"
#include "common/list.h"

#define CONSOLE_BRIDGE_QUEUE_BYTES_MAX (256 * 1024) /* per direction; its source pauses beyond */
#define CONSOLE_BRIDGE_COUNT_MAX 1024u              /* consoles open at once on a host */
#define CONSOLE_BRIDGE_OPEN_MS 5000                 /* for the VMM's 101 */

/* Answer @request, in any case. @consoles: list that the bridge is in while it lives, for console_bridge_close_all.
 */
void console_bridge_start(struct http_request *request, const char *control_path, struct list *consoles);
/* Break off all; they end in their own time, on the loop. */
void console_bridge_close_all(struct list *consoles);

#endif
