/* Controllers of the cluster: promote, transfer leadership, remove. Raft's configuration follows the table of
 * controllers by itself (controller/membership.h); these handlers ask for a change and answer when it is there. */
#ifndef CONTROLLER_API_API_MEMBER_H
#define CONTROLLER_API_API_MEMBER_H

#include "controller/api/api_call.h"

void api_member_promote(struct api_call *call);
void api_member_transfer(struct api_call *call);
void api_member_remove(struct api_call *call);

#endif
