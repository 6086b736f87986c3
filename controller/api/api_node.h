/* POST /v1/node/report: an agent reports and learns what is wanted; a long poll. */
#ifndef CONTROLLER_API_API_NODE_H
#define CONTROLLER_API_API_NODE_H

#include "controller/api/api_call.h"

/* A poll is answered after this time at the latest, whatever wait_ms says: each one is also the sign that the host
 * lives, and RECONCILE_SILENCE_MS must be several of them. */
#define API_NODE_POLL_MS_MAX 3000u

void api_node_report(struct api_call *call);
/* POST /v1/node/handover: the source of a migration proposes that the VM is the target's; or asks before it stops the VM
 * whether it could (check), which is answered after a barrier. */
void api_node_handover(struct api_call *call);
/* The state has changed: answer the polls whose orders did. */
void api_node_applied(struct api *api);

#endif
