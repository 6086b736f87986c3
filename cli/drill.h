/* A drill: something is made to fail in a living cluster, what happens is watched and measured, and all is put back.
 *
 *   look at the cluster -> check what must hold (drill_check) -> ask the person -> watch (drill_watch) -> make it fail
 *        -> wait for what is to happen -> wait for the end of the fault -> put back what moved -> report (drill_report)
 *
 * Every fault ends by itself (compute/agent/agent_drill.h, controller/controller_drill.h): where this program dies half way, the
 * cluster is left as after a failure that is over, with VMs on other hosts than before and a flavor named as the drill, and no
 * other drill begins for some minutes. */
#ifndef CLI_DRILL_H
#define CLI_DRILL_H

#include "cli/drill_watch.h"

#define DRILL_SILENT_S 20        /* a host, where nothing else is asked for; lost after 5 to 6, back after the rest */
#define DRILL_CRASH_S 10         /* a controller */
#define DRILL_LOST_S 60          /* controllers that are lost for good: until they are stopped, in any case */
#define DRILL_SECONDS_MAX 60
#define DRILL_LIMIT_FAILOVER_US 8000000 /* from the loss of a host to its VMs executing elsewhere */
#define DRILL_LIMIT_WRITES_US 2000000   /* from the loss of a leader to writes */
#define DRILL_LIMIT_CUT_US 8000000      /* the same where it is cut off, and a client that asks it waits in vain before it asks another one */

struct drill;

struct drill_kind {
    const char *name, *help;
    bool host, controller; /* what fails: a host; the leader, or the controllers */
    int (*run)(struct drill *drill, struct error *err);
    const char *warning; /* what it does to people's work, for the question */
    bool (*check)(struct drill *drill); /* conditions of its own (drill_steps.h), or NULL */
    bool one_controller;    /* --controller says which; the leader where it is not given */
    int64_t limit_writes_us; /* the longest time without an answered write that is as promised; 0: not judged */
    unsigned seconds;       /* how long it lasts where nothing else is asked for; 0: DRILL_SILENT_S, DRILL_CRASH_S */
};

/* The row of that name, or NULL; and the @at-th, NULL behind the last (drill_run.c). */
const struct drill_kind *drill_kind_find(const char *name);
const struct drill_kind *drill_kind_at(size_t at);

struct drill {
    const struct drill_kind *kind;
    const struct invocation *call;
    char id[64], host[64], leader[64]; /* leader: before the drill */
    char controller[64];               /* that fails alone, where the kind has one */
    char store[64];                    /* backup-restore: where to */
    struct client client;              /* knows every controller, in the order of @controllers */
    json_t *cluster, *controllers, *hosts, *all_vms, *operations; /* as they were before; owned */
    json_t *vms;                       /* with ha, that are watched: on the host, or all; owned */
    json_t *loss;                      /* what the controllers would do without the host; owned, NULL: they do not say */
    json_t *checks, *put_back, *failures, *steps; /* for the report; owned */
    bool ready;                        /* every check holds */
    unsigned silent_s, crash_s;        /* how long faults last */
    struct drill_watch watch;
    char begun_at[32]; /* wall clock, for people */
    int64_t begin_us, fault_us, end_us; /* fault_us: when it was known to have begun; -1: not */
};

/* Looks at the cluster; @host, @controller NULL: one is chosen where the kind needs one. On failure drill_finish all the same. */
int drill_init(struct drill *drill, const struct drill_kind *kind, const char *host, const char *controller, const struct invocation *call,
               struct error *err);
void drill_finish(struct drill *drill);
/* Fault, waits, putting back. What goes wrong there is in drill->failures; <0: it could not be made at all. */
int drill_run(struct drill *drill, bool put_back, struct error *err);

#endif
