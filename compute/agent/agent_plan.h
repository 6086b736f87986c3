/* What an agent does, decided: orders and what the host has in, steps out. Pure: no clock, no I/O, no memory of its
 * own, so that the simulator runs the very code that the agent runs.
 *
 * Three questions, asked again after every change, so that a lost message or a crash costs nothing but time:
 *   agent_plan_orders  an answer of the controllers against the VMs of this host: which orders count
 *   agent_plan_vm      one VM: what is the next step towards what is wanted of it
 *   agent_plan_page    one VM: what its VMM may rely on of the host's lease
 * And two that have an answer once: how an attempt came out (agent_plan_failed), and what an agent finds that is started
 * anew (agent_plan_recall). */
#ifndef COMPUTE_AGENT_PLAN_H
#define COMPUTE_AGENT_PLAN_H

#include "common/base.h"
#include "compute/agent/lease_holder.h"
#include "schema/objects.h"

/* ---- a whole answer ---- */

/* A VM that this host has anything of. All borrowed. */
struct plan_have {
    const char *id;
    const struct vm_order *order; /* the last one obeyed */
    uint64_t index;               /* of the answer that it came with */
    bool removing;                /* its files are going away; nothing else can be done with it until they are gone */
    bool gone;                    /* only the memory that it was deleted is left, to be told to the controllers */
    bool astray;                  /* its order may be of those that the cluster has lost, see vm_new_cluster_epoch */
};

enum plan_change_kind {
    PLAN_ACCEPT, /* the order is new: obey it */
    PLAN_KEEP,   /* it is the one we have: it holds still */
    PLAN_REFUSE, /* it is older than the one we have */
    PLAN_LATER,  /* it is new, but the VM's files are just going away: ask for it again afterwards */
    PLAN_FORGET, /* the VM is no longer ours: end it and remove what is left */
    PLAN_DROP,   /* the controllers know that it is deleted: drop the memory of it */
    PLAN_HALT,   /* astray, and another host runs it by now: stop it, and keep all of it */
    PLAN_ORPHAN, /* not spoken of, or astray and not given away: left exactly as it is */
};

struct plan_change {
    enum plan_change_kind kind;
    size_t have;                  /* index into the VMs the host has, or PLAN_NEW */
    const struct vm_order *order; /* ACCEPT, KEEP, REFUSE and LATER: inside @orders */
    const char *why;              /* REFUSE: in words */
    bool missing;                 /* ACCEPT: of one that was here, and of which nothing is left */
    bool nobodys;                 /* FORGET: no other host has it either, or ever will */
};
#define PLAN_NEW SIZE_MAX

/* Is this answer to be obeyed at all? Not if it is for a lower lease generation of this host than it has been told:
 * it then comes from a controller that does not know yet that the host was declared lost. */
bool agent_plan_answer_ok(const struct node_orders *orders, uint64_t known_generation);
/* One change for each VM of @have and @orders together, in the order of @have, then of @orders. @ret_changes has room
 * for have_count + orders->vms.count. Returns how many there are. */
size_t agent_plan_orders(const struct plan_have *have, size_t have_count, const struct node_orders *orders,
                         struct plan_change *ret_changes);
/* Is @order, which is accepted or kept, a new wish: does what has ended under the one @known not stand in its way? */
bool agent_plan_is_new_wish(const struct vm_order *known, const struct vm_order *order);

/* ---- one VM ---- */

enum plan_end {                  /* how the last attempt to have the VM as wanted came out, under the present order */
                PLAN_END_NONE,   /* nothing has ended */
                PLAN_END_CLEAN,  /* the guest powered off by itself */
                PLAN_END_BROKEN, /* it ran, and its VMM ended badly */
                PLAN_END_NOT_STARTED, /* it could not be started; another time it may work */
                PLAN_END_IMPOSSIBLE,  /* it cannot be started with this order, however often it is tried */
};

/* Attempts under one order. Zeroed at first; zeroed again by a new wish. Times are milliseconds of any clock. */
struct plan_tries {
    unsigned failures; /* in a row, for the backoff */
    unsigned unstarted; /* those of them since its VMM last answered that were no start at all */
    uint32_t ends;     /* since ends_since_ms: for restarts_max. An agent that is started anew counts anew */
    uint64_t ends_since_ms;
    uint64_t backoff_until_ms;
};
#define PLAN_BACKOFF_MS_MIN 1000 /* before a VM that ended badly is started again; doubled each time */
#define PLAN_BACKOFF_MS_MAX 60000
#define PLAN_RESTART_WINDOW_S 3600u /* that restarts_max counts in, where the order does not say */

#define PLAN_RELOCATE_STARTS 3u

/* One more came to nothing: to @end. */
void agent_plan_failed(struct plan_tries *tries, const struct vm_order *order, enum plan_end end, uint64_t now_ms);
/* More than the order's restarts_max within its window? */
bool agent_plan_worn(const struct plan_tries *tries, const struct vm_order *order);
/* Are the starts of one that came to @end used up on this host, where another one may have it? PLAN_RELOCATE_STARTS that failed in a
 * row, or the last that restarts_max allows; one that cannot work at once. What ran and ended is not among those in a row. */
bool agent_plan_used_up(const struct plan_tries *tries, const struct vm_order *order, enum plan_end end);
uint64_t agent_plan_window_s(const struct vm_order *order);

/* What is known of a VM to an agent that is started, by what the one before it has written down. */
struct plan_recall {
    enum vm_wanted wanted;
    enum vm_state state; /* as written; PENDING: nothing was */
    bool settled;        /* that is the outcome of the present order */
    bool arriving;       /* a migration brings it */
    bool process;        /* a VMM of it lives */
    bool looking;        /* something holds its lock, and is not known yet */
    bool started;        /* one was started, and is known by its number */
    bool same_boot;      /* in this boot of the host */
    int parting;         /* the status that it said last; negative: it said nothing */
};
enum { PLAN_PARTING_MIGRATED = 7 }; /* of plan_recall.parting: it has handed its guest to another host's VMM */

/* What it is to be called until the first step, how the last attempt came out, and whether a migration has taken it away. */
void agent_plan_recall(const struct plan_recall *found, enum vm_state *ret_state, enum plan_end *ret_end, bool *ret_left);

struct plan_vm {
    enum vm_wanted wanted;
    bool forgotten; /* the controllers say that it is not ours: as wanted = deleted */
    enum restart_policy restart;
    bool confirmed; /* the controllers gave this order to this process, not only to one before it */
    bool reboot;    /* a reboot is asked for and not yet carried out */
    bool gone;      /* nothing of it is left */
    bool arriving;  /* a migration brings it: it is not this host's yet, and must not run here */
    bool taking;    /* it has become this host's, and its VMM, which holds it, is to be told */
    bool missing;   /* nothing of it was left when it was ordered, and it is not to be made anew yet */
    bool released;  /* another host may have it by now, and this one has promised not to start it */
    bool down;      /* its host is being shut down */
    bool leaving;   /* a migration takes it away, or has: whose it is, only the controllers know */
    bool lends;     /* it runs elsewhere, and its VMM has memory that it lacks there: nothing ends that */
    bool lacks;     /* taking: it runs, and part of its memory is still where it was */

    bool process;         /* a VMM of this VM lives */
    bool process_old;     /* it runs under a lower epoch than the order's */
    bool process_answers; /* its control socket has answered at least once */
    bool process_paused;  /* as of the last answer */
    bool process_stuck;   /* paused by its VMM because a disk failed, and not yet time to try again */
    bool start_overdue;   /* we started it and it should have answered by now */
    bool gentle;          /* its guest can be asked to shut down, and has time for it */
    bool shutdown_asked;  /* the guest was asked */
    bool shutdown_over;   /* and its time is over, or it could not be asked */
    bool stop_asked;      /* it was asked to stop */
    bool stop_overdue;    /* and did not, or could not be asked */
    bool kill_sent;

    bool held;            /* a task works on its disks */
    bool moves;           /* a disk of its VMM may be held at the end of a move, and wait to be told which copy it is */
    bool differs;         /* disks and interfaces of its VMM may be others than the order has */
    bool prepared; /* images, disks and taps are there */
    enum plan_end end;
    bool backoff_over; /* the time to wait before the next attempt has passed */
    bool worn;         /* it has come to such ends more often than its restart policy allows */
};

enum plan_step {
    PLAN_REST,             /* as wanted; nothing to do */
    PLAN_REST_OFF,         /* the same, and it is off because the guest powered off */
    PLAN_REST_FAILED,      /* not as wanted, and nothing more is tried under this order */
    PLAN_REST_GONE,        /* nothing of it is left */
    PLAN_REST_LENDS,       /* its VMM has what another host's lacks, and sends it there */
    PLAN_REST_ARRIVING,    /* its VMM waits for what the migration brings */
    PLAN_REST_LEFT,        /* it has no VMM here any more, and may be another host's */
    PLAN_REST_DOWN,        /* off, because its host is being shut down */
    PLAN_REST_UNCONFIRMED, /* it should run, but only the controllers can say whether it is ours still */
    PLAN_WAIT_TASK,        /* a task has its disks; its end ticks */
    PLAN_WAIT_BACKOFF,     /* it will be tried again when the time has come */
    PLAN_WAIT_END,         /* the VMM is on its way out */
    PLAN_WAIT_ANSWER,      /* ask the control socket until it answers */
    PLAN_PREPARE,
    PLAN_START,
    PLAN_TAKE,     /* tell the VMM that holds it that it is this host's now, and look until it has all of it */
    PLAN_PAUSE,
    PLAN_RESUME,
    PLAN_ADJUST,   /* change disks and interfaces of the running VMM */
    PLAN_SHUTDOWN, /* ask its guest to shut down */
    PLAN_STOP,     /* ask it to end: the plug */
    PLAN_KILL,
    PLAN_REMOVE, /* remove everything */
    PLAN_STEP_COUNT
};

enum plan_step agent_plan_vm(const struct plan_vm *vm);
const char *agent_plan_step_name(enum plan_step step);

/* ---- the page that a VM's VMM obeys ---- */

struct plan_page {
    bool ha;
    bool disarmed;         /* the cluster has said that VMs run without the lease here */
    bool forgotten, astray, gone;
    bool leaving;          /* the host goes down in order */
    bool settling;         /* a recovery was a moment ago, and what was lost with it may still be said */
    uint64_t named;        /* lease generation of the orders that named the VM last; 0: none has, to this process */
    uint64_t epoch, order_epoch; /* of the VMM, and of its order */
    bool starts;           /* the VMM is about to be started: it has no page yet */
    uint64_t present;      /* what its page holds; 1 for a new one */
};

/* What it has to hold (lease_holder_page). Before an order has named the VM to this process: what an agent before us gave. */
uint64_t agent_plan_page(const struct lease_holder *holder, const struct plan_page *vm, uint64_t now_ns);

#endif
