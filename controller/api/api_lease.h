/* Leases over HTTP: a host's question (POST /v1/node/lease) and the leader's look (POST /v1/controller/lease). Both are answered
 * by the controller that is asked, from its memory and the state that it has applied. */
#ifndef CONTROLLER_API_API_LEASE_H
#define CONTROLLER_API_API_LEASE_H

#include "controller/api/api_call.h"

void api_node_lease(struct api_call *call);
void api_lease_look(struct api_call *call);

#endif
