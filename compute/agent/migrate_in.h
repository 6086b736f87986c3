/* A VM that comes to this host while it runs: the target's side of a migration, beside its VM (vm_create_arriving).
 *
 *   PREPARE --its VMM listens--> TUNNEL --it listens--> READY --the VM is this host's--> OVER
 *      +------------------------+------ failed --------------------> ENDED
 *
 * Happy path: images, disks, taps and packet rules are made by the VM itself, before the first packet can come; when its VMM
 * answers, a tunnel (tunnel_program.h) lets the source's host in, and no other, and a second one where disks come; the
 * endpoints are told to the controllers. All
 * the rest is between the two VMMs, until the orders say that the VM is this host's: then the VM tells its VMM to run
 * (vm.h), and the tunnel is kept until that is so.
 *
 * In a post-copy the VM may be this host's, and run, for a while before all of its memory is there. Where the tunnel ends meanwhile another is
 * opened, at another port, which the source learns through the controllers.
 *
 * Failure modes: whatever cannot be made, and a VMM that ends before the hand-over, ends the migration with the reason. When
 * the operation is over and the VM is not this host's, the owner of this has the VM forgotten, and all that was made goes.
 * An agent that is killed takes the tunnel along: a VMM that has everything waits for the owner's word, one that runs and lacks memory for
 * the way back to it (migrate_in_options.again), any other ends.
 *
 * Threads: the loop's. Nothing is called back from inside a call of this interface. */
#ifndef COMPUTE_AGENT_MIGRATE_IN_H
#define COMPUTE_AGENT_MIGRATE_IN_H

#include "compute/agent/migrate_out.h"

struct migrate_in_options {
    const struct migrate_context *context;
    struct local_vm *vm;
    const char *operation, *source; /* ids; copied */
    bool again; /* the VM runs here already, and lacks memory: nothing is made but the way for that */
    void (*progress)(void *arg);
    void (*failed)(void *arg, const struct error *err); /* once */
    void *arg;
};

struct migrate_in;

struct migrate_in *migrate_in_start(const struct migrate_in_options *options);
/* Something of its VM has changed. */
void migrate_in_vm_changed(struct migrate_in *m);
/* "host:port", where disks come "host:port host:port"; or NULL while the source cannot begin. */
const char *migrate_in_endpoint(const struct migrate_in *m);
const char *migrate_in_step(const struct migrate_in *m);
void migrate_in_close(struct migrate_in *m, void (*closed)(void *arg), void *arg);

#endif
