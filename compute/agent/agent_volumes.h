/* Volumes that this host is to make or to remove. Of those that are there and attached to a VM its order speaks (vm_order.disks);
 * of those that are there and attached to none nobody has to do anything.
 *
 *   order --> IDLE --its image is here--> WORKING (pool_work.h), or FILLING --> done, told in every report --order gone--> forgotten
 *               |  ^                        |
 *               |  '------ failed: reason told, again after AGENT_VOLUME_RETRY_MS
 *               '--> FETCHING its image --'
 *
 * FILLING: in a pool of Ceph it takes as long as the network needs for all of the image, so it is a child's work (pool_rbd.h). It is not done
 * before all is there, and ended where the order is another one by now: begun again it goes over what is there. Tried again only when the
 * controllers have asked for it again: a host that they do not reach any more makes nothing that they have had removed elsewhere.
 *
 * Level-triggered: the order comes with every answer until the controllers have heard that it is done; making what is there and
 * removing what is not come to the same (pool_dir.h), so nothing is remembered on disk. The loop's thread. */
#ifndef COMPUTE_AGENT_AGENT_VOLUMES_H
#define COMPUTE_AGENT_AGENT_VOLUMES_H

#include "common/map.h"
#include "schema/objects.h"

#define AGENT_VOLUME_RETRY_MS 2000u
#define AGENT_VOLUMES_FILLING_MAX 2u

struct agent;

/* Embedded in the agent. */
struct agent_volumes {
    struct map all;   /* struct agent_volume by "<id> <place>" */
    unsigned filling; /* children; at most AGENT_VOLUMES_FILLING_MAX, the others wait for one to end */
};

void agent_volumes_obey(struct agent *agent, const struct node_orders *orders);
void agent_volumes_put(const struct agent *agent, struct node_report *report);
/* Does one begin as that image? It has to stay in the cache. */
bool agent_volumes_use(const struct agent *agent, const char *sha256);
/* Now and then: what failed is tried again. */
void agent_volumes_tick(struct agent *agent);
/* The agent ends: each that is at work counts in agent->closing until it has stopped. */
void agent_volumes_stop(struct agent *agent);

#endif
