/* Joining a cluster as a further controller: blocking, by HTTP to one of the addresses in the token. */
#ifndef CONTROLLER_CLUSTER_JOIN_H
#define CONTROLLER_CLUSTER_JOIN_H

#include "controller/cluster_init.h"

#define CLUSTER_JOIN_DEADLINE_MS 20000u /* for each address */

struct cluster_join_options {
    const char *name, *address, *raft_address; /* as of cluster_init_options */
    const char *token;                         /* schema/join_token.h */
};

/* Fill the open directory @dir with an identity, certificates and an empty Raft directory; the leader adds it to the
 * configuration once `run` answers. Nothing is written before the cluster has answered; asking again is harmless. */
int cluster_join(struct data_dir *dir, const struct cluster_join_options *options, struct error *err);

#endif
