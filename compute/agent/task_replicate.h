/* The task vm-replicate: one point of a VM's disks, from its host (main) to the one that keeps its replica (peer).
 *
 *   peer   a child that listens on a Unix socket of the agent's --> a tunnel that lets in the VM's host alone --> ready
 *   main   peer ready --> a tunnel there --> a child: images of all disks from the VMM, as changed since the replica's last point,
 *          through the tunnel (migration/replica_stream.h) --> the replica says that the point is complete --> over
 *
 * A point is made of a VM that runs, and one of each VM at a time. Other work on the VM that needs its VMM's images, or hands the VM
 * over, does not wait for it: the point is given up (replicate_yields), and the next one is made since the last that was complete.
 * What is killed at any moment leaves that one; begun twice, the second is one more point.
 *
 * Threads: the loop's, but for the children and what is removed. */
#ifndef COMPUTE_AGENT_TASK_REPLICATE_H
#define COMPUTE_AGENT_TASK_REPLICATE_H

#include "compute/agent/pool_work.h"
#include "schema/objects.h"

struct agent;

/* Embedded in the agent. */
struct agent_replicas {
    struct pool_work sweep;
    struct string_list wanted; /* of the sweep under way */
    struct object_list pools;  /* of that: struct pool_order, those of kind dir that are there */
    uint64_t index;            /* of the newest orders: older ones may not have heard of a replica */
    bool sweeping;
};

#define REPLICATE_VMM_IS_OLD "its VMM knows nothing of replicas of a part of its disks: upgrade it (drover vm upgrade)"

/* The names of @order's disks that its replica has (replica_dir_copies) are added to @to, whose owner frees them. */
void replicate_disks(const struct vm_order *order, struct string_list *to);
/* Can a replica be kept here by @order, which is given to the peer: are its directories on one file system with those of the VMs, and are the
 * pools there that it has disks in? *work is told of these; its child looks into them (replica_dir_check_pools). Negative errno in words. */
int replicate_places(const struct agent *agent, const struct task_order *order, struct replicate_work *work, struct error *err);
/* Does the VM write to disks, too, that it has not: in pools that its keeper reaches as well (controller/fsm/replica_state.h)? */
bool replicate_has_others(const struct vm_order *order);

/* True: a point of @vm was being made, and is given up now; look again soon, or when its task has ended. */
bool replicate_yields(struct agent *agent, const char *vm);
/* With every answer: replicas that are not wanted any more go, in the thread pool. One that is older than another before it changes
 * nothing. */
void agent_replicas_obey(struct agent *agent, const struct node_orders *orders);
/* The cluster was rebuilt: indexes count anew, and what is here stays until a point comes for it again. */
void agent_replicas_new_cluster_epoch(struct agent *agent);

#endif
