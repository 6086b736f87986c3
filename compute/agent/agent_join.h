/* drover-agent join: become a host of a cluster. */
#ifndef COMPUTE_AGENT_JOIN_H
#define COMPUTE_AGENT_JOIN_H

#include "common/base.h"
#include "common/error.h"

#define AGENT_PORT "7445"

struct agent_join_options {
    const char *data_dir; /* absolute; made where it is missing */
    const char *address;  /* where the agent will answer: host:port, or a host alone for port AGENT_PORT */
    const char *name;
    const char *token; /* schema/join_token.h */
};

/* Ask the cluster for a certificate and write identity.json, ca.pem, cert.pem and key.pem. Blocking. A directory that
 * belongs to a cluster already is refused (-EEXIST), unless it joined so before, as the same name and address of the token's cluster:
 * then nothing is done, and *ret_repeated says so. Nothing is written before the cluster has agreed, and
 * identity.json, which makes the directory a host's, is written last. */
int agent_join(const struct agent_join_options *options, bool *ret_repeated, struct error *err);

#endif
