/* What an agent does, decided: orders and what the host has in, steps out. Pure: no clock, no I/O, no memory of its
 * own, so that the simulator runs the very code that the agent runs.
 *
 * Two questions, asked again after every change, so that a lost message or a crash costs nothing but time:
 *   agent_plan_orders  an answer of the controllers against the VMs of this host: which orders count
 *   agent_plan_vm      one VM: what is the next step towards what is wanted of it */
#ifndef COMPUTE_AGENT_PLAN_H
#define COMPUTE_AGENT_PLAN_H

#include "common/base.h"
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

/* ---- one VM ---- */

enum plan_end {                  /* how the last attempt to have the VM as wanted came out, under the present order */
                PLAN_END_NONE,   /* nothing has ended */
                PLAN_END_CLEAN,  /* the guest powered off by itself */
                PLAN_END_BROKEN, /* it ran, and its VMM ended badly */
                PLAN_END_NOT_STARTED, /* it could not be started; another time it may work */
                PLAN_END_IMPOSSIBLE,  /* it cannot be started with this order, however often it is tried */
};

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
    bool down;      /* its host is being shut down */
    bool leaving;   /* a migration takes it away, or has: whose it is, only the controllers know */

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
    PLAN_TAKE,     /* tell the VMM that holds it that it is this host's now */
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

#endif
