/* Quorum lost for good: a cluster goes on from the data directory of one survivor. Offline, explicit, blocking.
 *
 *   1. cluster_recover_look    read the state as if the whole log were committed, say what there is and what would go
 *   2. cluster_recover         recover.json (the command that drops the lost controllers and raises the epoch), then the
 *                              new epoch in identity.json, then Raft's configuration with this controller alone
 *   3. drover-controller run   leads at once, proposes recover.json before it answers anybody, and removes it
 *
 * The new epoch keeps the lost majority from coming back as a rival: a member of the old epoch is refused by
 * controllers (raft_transport.h) and hosts (node_orders), is told so, and does not start again (data_dir.h).
 *
 * Failure: broken off between any two steps, the same command goes on where it stopped, under the same epoch. What the
 * lost controllers had acknowledged and this one had not yet received is gone; so the survivor with the newest log (term,
 * then entries) is the one to use, and the others are wiped and join anew. */
#ifndef CONTROLLER_CLUSTER_RECOVER_H
#define CONTROLLER_CLUSTER_RECOVER_H

#include "controller/data_dir.h"

#define CLUSTER_RECOVER_LOST_MAX 16u

struct cluster_recover_plan {
    uint64_t term, last_index; /* of the log: compare survivors by these */
    uint64_t epoch, new_epoch;
    char cluster[64], survivor[64];    /* names */
    char survivor_id[37];
    char lost[CLUSTER_RECOVER_LOST_MAX][64]; /* names of controllers that are dropped */
    unsigned lost_count;
    size_t vms, hosts;
    bool unfinished; /* an earlier recovery was broken off; this one goes on with it */
};

/* @dir is open (locked) and loaded. Changes nothing but that the log's files are tidied, as at each start. */
int cluster_recover_look(const struct data_dir *dir, struct cluster_recover_plan *ret_plan, struct error *err);
/* Do it. */
int cluster_recover(struct data_dir *dir, const struct cluster_recover_plan *plan, struct error *err);

#endif
