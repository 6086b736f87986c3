/* Drills on this host: for a while it falls silent, or is cut off, as if it were lost, and tells whoever watches what its VMs
 * execute.
 *
 *   POST /v1/drill {drill, fault: silence | cut, seconds, far}
 *        |  refused: a drill is under way or was under this name; the lease is not held; ha is disarmed; the host leaves or
 *        v           works on tasks
 *     SILENT: no question for the lease, no report, no order obeyed  --timer-->  as before
 *     CUT: the kernel drops packets to and from the machines @far    --timeouts of the kernel's own-->  as before
 *
 * A cut shows more: connections that hang and questions that nobody answers. It is as bounded as a silence, since the kernel
 * itself takes the addresses out of its rules again (common/packet_cut.h), and an agent that starts removes what is left of them.
 *
 * Why silence, and nothing harder. A drill is made on a cluster that people use, so what it does must end by itself, and
 * must be harmless where the failover that it asks for does not come. A host that is switched off takes along VMs without ha and may
 * not come back. Silence takes nothing away: VMs go
 * on until the lease that nobody renews holds those with ha (which is what a drill is to show), the others run on, and if no
 * other host takes a VM it goes on where it was. The end does not depend on anybody: it is a timer of the process that is
 * silent, nothing of it is written down, and an agent that ends, however, is not silent when it starts. The order comes from a
 * controller to this process by a request that is not repeated, and not by the orders of the host: what is given again and
 * again would begin a fault again.
 *
 * GET /v1/observation goes on meanwhile: it is no part of what the lease or the controllers' decisions rest on, and a watcher
 * who cannot see the lost host could not tell that nothing executes there. One thread, the loop's. */
#ifndef COMPUTE_AGENT_AGENT_DRILL_H
#define COMPUTE_AGENT_AGENT_DRILL_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#define AGENT_DRILL_SECONDS_MIN 10u /* less is over before the host is lost */
#define AGENT_DRILL_SECONDS_MAX 60u
#define AGENT_DRILL_CUT_AFTER_MS 100u /* from the answer to the cut: the answer is out by then */
#define AGENT_DRILL_PATH_MAX 4096

struct agent;
struct http_request;

struct agent_drill {
    char name[64];   /* of the last one; "" = none */
    unsigned seconds;
    bool silent;     /* or cut off */
    char *cut;       /* its addresses, from prepare to end; else NULL */
    uv_timer_t timer; /* its end */
};

void agent_drill_init(struct agent *agent);
/* Counts in agent->closing. */
void agent_drill_stop(struct agent *agent);
/* A request of a controller's: is it about this? Then it is answered. */
bool agent_drill_handle(struct agent *agent, struct http_request *request);

#endif
