/* Tasks: what the controllers have this host do for an operation, besides keeping its VMs as they are wanted.
 *
 *   order --> begin --> running --the kind: agent_task_end--> ended, told in every report --order gone--> forgotten
 *                         |  ^
 *                         |  '-- cancel asked, peer ready: told to the kind
 *                         '--order gone, agent ends--> stopping --the kind: agent_task_stopped--> forgotten
 *
 * Level-triggered: the order comes again with every answer until the operation has ended, and after a restart of the agent
 * it begins the task again; nothing of a task is kept on disk here. So a kind must be one that can be begun twice, also
 * when it was done already and only its last word was lost.
 *
 * Each kind is a file task_<kind>.c with a struct agent_task_ops in the table of agent_task.c. What is heavy on the
 * processor, or reads what strangers wrote, is done in a child (task_child.h). One thread, the loop's. */
#ifndef COMPUTE_AGENT_AGENT_TASK_H
#define COMPUTE_AGENT_AGENT_TASK_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/map.h"
#include "schema/objects.h"

#define AGENT_TASKS_MAX 1024u /* of one host: bound of node_report.tasks */
#define AGENT_TASK_KEY_SIZE 48 /* "<operation> <role>" */

struct agent;
struct agent_task;

struct agent_task_ops {
    /* Begin. Exactly one agent_task_end follows, perhaps from inside, unless stop comes before it. */
    void (*start)(struct agent_task *task);
    /* Its end was asked for: come to it soon, as cancelled if something was left undone, as succeeded if not. NULL: it
     * goes on to its end. */
    void (*cancel)(struct agent_task *task);
    /* task->order has changed: the peer is ready, or has given up. NULL: a peer that gave up fails the task. */
    void (*changed)(struct agent_task *task);
    /* Let go of everything that is under way, tell nobody, undo nothing; then agent_task_stopped, perhaps from inside. */
    void (*stop)(struct agent_task *task);
    /* It has ended, and its order is gone: what the kind has kept until then may be let go of. NULL: nothing is. */
    void (*forgotten)(struct agent_task *task);
    /* At the agent's start, before any order: remove what a killed agent left. NULL: nothing is left. */
    void (*clean)(struct agent *agent);
};

struct agent_task {
    struct agent *agent;
    struct task_order order; /* the last one; read-only for the kind */
    struct task_seen seen;   /* what is reported; a kind may set its result object before agent_task_end */
    const struct agent_task_ops *ops;
    void *state; /* the kind's own, to be freed before agent_task_end and agent_task_stopped */
    bool holds;  /* the kind's: it holds the VM until forgotten */

    char key[AGENT_TASK_KEY_SIZE]; /* in the map, which borrows it */
    uint64_t index;                /* of the newest answer that had it */
    bool ended, cancel_told, stopping;
};

/* Embedded in the agent. */
struct agent_tasks {
    struct map all; /* struct agent_task by "<operation> <role>" */
    const struct agent_task_ops *const *kinds; /* task_kind_COUNT of them, NULL where there is none; NULL: those of agent_task.c */
};

/* ---- for the kinds ---- */

/* How far it is; NULL: the step stays. Cheap: may be called often. */
void agent_task_progress(struct agent_task *task, const char *step, uint64_t done, uint64_t total);
/* A peer: the other host may begin, at @endpoint (NULL: nowhere in particular). A live restore: the VM may be started. A move of a volume:
 * both copies are level. A session with a replica: it is in sync. */
void agent_task_ready(struct agent_task *task, const char *endpoint);
/* The last word. @err: why, in words, where @state is failed or cancelled; else NULL. */
void agent_task_end(struct agent_task *task, enum operation_state state, const struct error *err);
/* The answer to stop. The task is gone with it. */
void agent_task_stopped(struct agent_task *task);

/* ---- for the agent ---- */

void agent_tasks_clean(struct agent *agent);
void agent_tasks_obey(struct agent *agent, const struct node_orders *orders);
void agent_tasks_put(const struct agent *agent, struct node_report *report);
/* The index of orders counts anew. */
void agent_tasks_new_cluster_epoch(struct agent *agent);
/* The agent ends: each counts in agent->closing until it has stopped. */
void agent_tasks_stop(struct agent *agent);
/* Does progress of one change without agent_task_progress having poked the session? Then a report is worth it. */
bool agent_tasks_running(const struct agent *agent);

/* task_migrate.c */
extern const struct agent_task_ops task_migrate_ops;
/* task_upgrade.c */
extern const struct agent_task_ops task_upgrade_ops;
/* task_snapshot.c */
extern const struct agent_task_ops task_snapshot_ops;
/* task_backup.c */
extern const struct agent_task_ops task_backup_ops;
/* task_boot.c */
extern const struct agent_task_ops task_boot_ops;
/* task_replicate.c */
extern const struct agent_task_ops task_replicate_ops;
/* task_volume.c */
extern const struct agent_task_ops task_volume_ops;
/* task_clone.c */
extern const struct agent_task_ops task_clone_ops;
/* The same as task_volume_works(), for volumes that are made with a VM. */
bool task_clone_works(const struct agent *agent, const char *id);
/* Of VMs' own disks: what is in no pool is in the directory of this host, which the child does not know otherwise. */
void task_volume_fill(const struct agent *agent, struct volume_move *move);
/* Is a child at work on volume @id, perhaps one that is ending? */
bool task_volume_works(const struct agent *agent, const char *id);
/* task_image.c */
extern const struct agent_task_ops task_image_ops;

#endif
