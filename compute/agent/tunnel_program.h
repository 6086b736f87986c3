/* `drover-agent tunnel`: migrate_tunnel.h in a process of its own, from both sides.
 *
 *   agent  --spawn--> child --{"endpoint": ...}--> agent            it listens
 *                          --{"failure": ...}----> agent            a connection could not be made; it goes on
 *          --standard input closes--> child ends                    asked to, or the agent has died
 *
 * A child that ends by itself, before or after it has said where it listens, is told once as `ended`, with its last words.
 *
 * Threads: tunnel_child_* on the agent's loop; tunnel_program_run is the child's whole life. */
#ifndef COMPUTE_AGENT_TUNNEL_PROGRAM_H
#define COMPUTE_AGENT_TUNNEL_PROGRAM_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <sys/types.h>
#include <uv.h>

#include "common/error.h"

struct tunnel_program_options {
    const char *data_dir; /* of the agent: identity and certificates; absolute */
    const char *peer;     /* id of the other host */
    const char *listen, *connect; /* as in migrate_tunnel_options */
    bool is_source;
    uid_t owner;
};

/* The child: 0 when it was told to end; 1 when it could not begin. */
int tunnel_program_run(const struct tunnel_program_options *options);

/* ---- in the agent ---- */

struct tunnel_child;

struct tunnel_child_callbacks {
    void (*listening)(void *arg, const char *endpoint);
    void (*ended)(void *arg, const char *why); /* by itself; tunnel_child_stop is still to be called */
};

/* Options are borrowed for the call. Callbacks never come from inside it. */
int tunnel_child_start(uv_loop_t *loop, const struct tunnel_program_options *options,
                       const struct tunnel_child_callbacks *callbacks, void *arg, struct tunnel_child **ret_child,
                       struct error *err);
/* Why it could last not make a connection; "" where there is nothing to say. */
const char *tunnel_child_failure(const struct tunnel_child *child);
/* No callback any more; the process is ended, and killed where it does not. */
void tunnel_child_stop(struct tunnel_child *child, void (*closed)(void *arg), void *arg);

#endif
