/* Handing a request on to the leader, with the identity of who asked. Thread: the API loop's. */
#ifndef CONTROLLER_API_API_FORWARD_H
#define CONTROLLER_API_API_FORWARD_H

#define API_FORWARD_ANSWER_MS 10000u /* for the leader's answer, beyond what the request itself may wait */

#include "common/base.h"

struct api_call;
struct service;

/* 0: the call is gone. <0: the leader's address is not known (yet) or the proxy is stopping; the call is still there.
 */
int api_forward(struct api_call *call);
/* API address of the controller with @raft_id; false: it is not in the state. */
bool api_forward_address(struct service *service, uint64_t raft_id, char *address, size_t size);

#endif
