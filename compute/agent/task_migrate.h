/* Migrations of this host's agent: tasks (agent_task.h) of kind vm-migrate, in either role, and what goes on after their
 * orders are gone or before they come.
 *
 *   order as main --> departure (migrate_out.h) --ended--> told; the VM waits --order gone--> here or there is known --> gone
 *   order as peer --> arrival (migrate_in.h), its VM --order gone--> this host's: kept until it runs; else: forgotten --> gone
 *
 * In a post-copy (task_migration.lacking) both go on after the hand-over, until the memory of the VM is all there: the arrival makes the way
 * anew where this agent or its tunnel has ended, and its task is told how it came out. The VM is begun anew once nothing more comes.
 *
 * A departure or an arrival outlives its task, and a restarted agent has VMs that leave or arrive without either: what has
 * become of them is looked at with every answer of the controllers. One thread, the loop's. */
#ifndef COMPUTE_AGENT_TASK_MIGRATE_H
#define COMPUTE_AGENT_TASK_MIGRATE_H

#include "common/map.h"
#include "compute/agent/migrate_in.h"
#include "compute/agent/migrate_out.h"

struct agent;

/* Embedded in the agent. */
struct agent_migrations {
    struct migrate_context context;
    char *listen, *controllers_prefix;
    struct map departures, arrivals; /* by VM */
    uint64_t out_total, out_failed_total, in_total;
    uint64_t in_lacking_total, in_lost_total; /* by post-copy; and of those VMs whose run was lost with it */
    uint64_t downtime_us_total, downtime_us_max, bytes_total;
};

void agent_migrations_start(struct agent *agent);
/* After the orders for VMs and tasks of this answer were carried out. */
void agent_migrations_obey(struct agent *agent, const struct node_orders *orders);
/* Something of @vm has changed. */
void agent_migrations_vm_changed(struct agent *agent, struct local_vm *vm);
/* @vm is needed here still: it is not to be closed before agent_vm_look was called. */
bool agent_migrations_hold(const struct agent *agent, const struct local_vm *vm);
/* The agent ends; each counts in agent->closing. */
void agent_migrations_stop(struct agent *agent);
void agent_migrations_free(struct agent *agent);

#endif
