/* Drills: a host falls silent or is cut off, a controller crashes, restarts, is cut off or writes slowly, on request; and what
 * hosts execute, for whoever watches.
 *
 *   POST /v1/drill                     the drill begins: in the log, so that there is one at a time (fsm/apply_drill.c)
 *   POST /v1/hosts/{id}/drill          leader -> https://<the host>/v1/drill, once the state says that it is safe
 *   GET  /v1/hosts/{id}/observation    any controller -> https://<the host>/v1/observation; the state gives the address only
 *   POST /v1/controllers/{id}/drill    that controller itself (controller/controller_drill.h)
 *
 * No fault is in the log: it must not begin again because somebody reads it there later. Safe means: all other
 * hosts are up, ha is armed, three controllers have a vote, and a majority answers. Whether others have room for the VMs, whoever
 * asks for the drill finds out before (cli/drill_check.h): where not, VMs stay held and go on when the silence ends. */
#ifndef CONTROLLER_API_API_DRILL_H
#define CONTROLLER_API_API_DRILL_H

#include "controller/api/api_call.h"

#define API_DRILL_SECONDS_MIN 10u /* of a host's silence; less is over before it is lost */

void api_drill_host(struct api_call *call);
void api_drill_observation(struct api_call *call);
void api_drill_controller(struct api_call *call);

#endif
