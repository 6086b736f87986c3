/* One VM of this host: brings it step by step to what is wanted of it, and keeps it there.
 *
 * A struct local_vm lives on the loop's thread, from vm_create or vm_load until vm_close has called back. It can be
 * given orders, be asked what it sees, and be closed at any time; nothing is called back from inside these calls.
 * Closing it touches neither VMM nor files: guests outlive the agent. */
#ifndef COMPUTE_AGENT_VM_H
#define COMPUTE_AGENT_VM_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/http_client.h"
#include "compute/agent/image_cache.h"
#include "compute/agent/lease_holder.h"
#include "compute/agent/lease_page.h"
#include "compute/agent/pool_watch.h"
#include "compute/agent/pool_work.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_process.h"
#include "schema/objects.h"

#define VM_START_MS 20000      /* from the start of a VMM to its first answer; longer where it reads memory first: */
#define VM_RESUME_BYTES_PER_MS 20000u /* at least */
#define VM_HOLES_BYTES_PER_MS 1000000u /* of memory that it looks for */
#define VM_STOP_MS 15000       /* from asking a VMM to end to SIGKILL */
#define VM_CONTROL_MS 3000     /* one request to a VMM */
#define VM_ASK_MS 5000         /* how often a VMM that runs is asked how it is */
#define VM_KILLED_MS 5000      /* from SIGKILL to saying that the VMM is still there */
#define VM_STUCK_MS 30000      /* between tries to resume a VM that its VMM paused because a disk failed */
#define VM_REMOVE_POOLS_MS 600000 /* that the removal of a VM which another host has waits for pools that are away */
#define VM_LACKING_LOOK_MS 200 /* between looks at a VMM that runs and lacks memory */
#define VM_LOST_MS 300000      /* that one stands still for want of its memory, before that is given up */
#define VM_RETRY_MS 1000       /* after a request to a VMM, or a removal, that failed */
#define VM_STEADY_MS 60000     /* a VM that ran so long begins at PLAN_BACKOFF_MS_MIN again */

struct local_vm;

/* What all VMs of a host share; whoever made it outlives them. */
struct vm_context {
    uv_loop_t *loop;
    struct http_client *http; /* to control sockets */
    struct image_cache *images;
    struct vm_places places;
    const char *vmm_path, *boot_id;
    const struct lease_holder *lease; /* of the host; NULL: no VM is ruled by one (tests) */
    const struct pool_watches *pools; /* of the host; NULL: all are there (tests) */
    struct pool_works *pool_works;    /* of the host; NULL: what looks into pools is libuv's, too (tests) */
    bool disarmed;                    /* VMs with ha run without it too */
    uint64_t cluster_epoch;           /* that the host follows, 1 or more */
    uint64_t settles_until_ms;        /* of the loop's clock: whether others have its VMs is being found out, see vm_new_cluster_epoch */
    bool down;                        /* the host is being shut down: guests are shut down, and none is started any more, */
    uint64_t down_until_ms;           /* of the loop's clock: and have no more time then */
    bool leaving;                     /* the lease is given up: no VM with ha runs here any more */
    unsigned orphan_ms; /* before a new VMM that an agent before us has left, and no task wants, is looked at; 0: 10 s (tests: less) */
    unsigned lost_ms; /* in place of VM_LOST_MS; 0: that (tests: less) */
    unsigned at_work_ms; /* that another process may be at work on the VM's replica before that is a failure; 0: 60 s (tests: less) */
    /* What vm_put_seen would say has changed. It may close the VM. */
    void (*changed)(struct local_vm *vm, void *arg);
    void *arg;
};

/* A VM that an order speaks of for the first time. @order is copied. For one that is to be deleted nothing is made.
 * A failure to write its vm.json is the VM's state then, and no failure of this call. */
struct local_vm *vm_create(const struct vm_context *context, const struct vm_order *order, uint64_t index);
/* One that was here, as the controllers know, and of which nothing is left: if it has disks of its own it is failed, with
 * VM_MISSING_TEXT, until it is started under a new epoch, and only that makes it anew. Any other waits for VM_SETTLE_MS. */
struct local_vm *vm_create_missing(const struct vm_context *context, const struct vm_order *order, uint64_t index);
#define VM_MISSING_TEXT "it was on this host, and nothing of it is left here: its disks are gone; `drover vm start` makes it anew, with those of its image"
/* A VM that an agent before us had, with its VMM if one lives. -ENOENT: there is no vm.json. */
int vm_load(const struct vm_context *context, const char *id, struct local_vm **ret_vm, struct error *err);

/* Start a new VMM process of this host beside the one that runs the VM, to take it over under the same epoch: it waits at
 * vm_successor_address, and becomes the VM's process when the one before it ends with status 7. -EAGAIN in words: not now. */
int vm_successor_start(struct local_vm *vm, const char *operation, struct error *err);
/* It is there, and has not taken over. It is ended with the VM's own process, and by vm_successor_end. */
bool vm_has_successor(const struct local_vm *vm);
/* A task sees to it from now on: one that an agent before us has left is ended after a while, where it has not begun to take over. */
void vm_successor_take_up(struct local_vm *vm);
char *vm_successor_address(const struct local_vm *vm); /* the caller frees */
char *vm_successor_control(const struct local_vm *vm); /* its control socket; NULL: there is none. The caller frees */
void vm_successor_end(struct local_vm *vm);
/* The operation under which the last one has taken over; NULL: none has. How that went: vm_departed. */
const char *vm_upgraded(const struct local_vm *vm);

/* A VM that @operation, a migration, brings here: @order is as it will be. It is prepared and its VMM waits at
 * vm_arrival_address; it is not this host's before vm_give_order says so, with that operation as its handover. */
struct local_vm *vm_create_arriving(const struct vm_context *context, const struct vm_order *order, const char *operation,
                                    uint64_t index);
#define VM_ARRIVAL_SOCKET "in.sock"   /* in the VM's directory: its VMM listens there for a migration to here */
#define VM_ARRIVAL_DISKS_SOCKET "in-disks.sock" /* and there for the content of its disks */
enum vm_arrival {
    VM_ARRIVAL_NONE, /* it is no such VM, or this host's by now */
    VM_ARRIVAL_PREPARING,
    VM_ARRIVAL_LISTENING,
    VM_ARRIVAL_FAILED, /* *ret_why */
};
enum vm_arrival vm_arrival_of(const struct local_vm *vm, const char **ret_why);
char *vm_arrival_address(const struct local_vm *vm); /* unix:/PATH; the caller frees */
char *vm_arrival_disks_address(const struct local_vm *vm); /* the same for disks; NULL: it has none that move */
/* Somebody is let in now to fill what it arrives with: from here on, also for agents after us, its disks in shared pools may become those of the
 * VM wherever that is, and are not removed with the arrival. Written down before 0. */
int vm_arrival_open(struct local_vm *vm, struct error *err);
#define VM_BACKUP_SOCKET "backup.sock" /* in the VM's directory: there its VMM shows images of its disks */
/* In the VM's directory: there listens what carries @operation, or its @disks, from here. The caller frees. */
char *vm_departure_path(const struct local_vm *vm, const char *operation, bool disks);
const char *vm_arriving(const struct local_vm *vm);  /* the migration that brings it, until it is this host's; NULL: none */

/* @operation, a migration, begins to take the VM away. From here on, also for agents after us, a VMM that has ended is not
 * started again before vm_leave_end or an order with a higher epoch. Written down before 0. */
int vm_leave_begin(struct local_vm *vm, const char *operation, struct error *err);
/* The controllers have said that it stays. */
void vm_leave_end(struct local_vm *vm);
/* Its VMM knows that it is another host's: it ends by itself, or is killed after VM_STOP_MS. */
void vm_left(struct local_vm *vm);
/* The other host's lacks memory of it, or would, which its VMM here has: once it is another host's it is not ended, also by agents after us,
 * before vm_lend_end, unless it is deleted or started anew under a higher epoch. @there: its VMM is told that it is. */
void vm_lend_begin(struct local_vm *vm, bool there);
void vm_lend_end(struct local_vm *vm);
bool vm_lends(const struct local_vm *vm);
/* No migration has taken it away: if it is forgotten nothing is waited for, and its VMM ends at once. */
void vm_not_left(struct local_vm *vm);
const char *vm_leaving(const struct local_vm *vm); /* the migration; NULL: none */
/* How that went, as its VMM has written it down at its end; NULL: not known. */
const struct migration_result *vm_departed(const struct local_vm *vm);
/* Did the answer of @index have an order for it? Then it is this host's. */
bool vm_was_given(const struct local_vm *vm, uint64_t index);
bool vm_has_process(const struct local_vm *vm);
/* It has arrived, and its VMM is being told so, or lacks memory of it still: the migration; NULL: none. */
const char *vm_taking(const struct local_vm *vm);
bool vm_is_taking(const struct local_vm *vm);
/* It runs here while part of its memory is where it was, as of the last look at its VMM. That run of it cannot go on without. */
bool vm_lacks_memory(const struct local_vm *vm);
/* Nothing more comes of it, in words: where it stands still for want of it, now or later, that run is ended, and it is begun anew by its restart
 * policy, as after any other end of its VMM. @why NULL: it is to be waited for again. */
void vm_give_up_waiting(struct local_vm *vm, const char *why);
/* What came of @operation, a migration that made it this host's. */
enum vm_arrival_end {
    VM_ARRIVAL_END_NONE,    /* nothing yet, or it has brought nothing that is known of */
    VM_ARRIVAL_END_WHOLE,   /* all of it is here */
    VM_ARRIVAL_END_STOPPED, /* it was stopped or removed before that, as was wanted */
    VM_ARRIVAL_END_BROKEN,  /* its VMM ended before that was known */
};
enum vm_arrival_end vm_arrival_end_of(const struct local_vm *vm, const char *operation, const char **ret_why);
/* That migration; NULL: none, or the controllers know it all and it is forgotten: */
const char *vm_arrival_noted(const struct local_vm *vm);
void vm_arrival_forget(struct local_vm *vm);
/* That its VMM runs as. */
uid_t vm_user(const struct local_vm *vm);

/* An order of the controllers that agent_plan_orders() accepted or keeps. @index: of the answer it came in. */
void vm_give_order(struct local_vm *vm, const struct vm_order *order, uint64_t index);
/* The lease of the host: orders of @generation of it name this VM (vm_lease_confirm); then what the context's lease says
 * goes to its VMM, now and whenever it says something else (vm_lease). */
void vm_lease_confirm(struct local_vm *vm, uint64_t generation);
void vm_lease(struct local_vm *vm);
/* Another host may have it when it cannot be started here: orders say so of some VMs, and of no others. */
void vm_may_relocate(struct local_vm *vm, bool may);
/* The context says that the host goes down. */
void vm_go_down(struct local_vm *vm);
/* Now and then: while its VMM lives the servers of its disks do (pool_rbd.h), whatever the VMM does; once it is off they end. */
void vm_look_at_servers(struct local_vm *vm);
/* Now and then, too: work of it that hangs because a pool is away says so. */
void vm_look_at_pools(struct local_vm *vm);
/* Does a VMM of it live that may run only under the lease? */
bool vm_lease_rules(const struct local_vm *vm);
/* The controllers say that it is not ours: end it and remove what is left. @gone: it is nobody's any more, and what it has in
 * pools goes, too; else that is another host's now. */
void vm_forget(struct local_vm *vm, bool gone);
/* Who its VMM is: its user, or 0 where it sees all files (vm_files_show), and its pidfd, which stays the VM's (-1: none). */
void vm_walls(const struct local_vm *vm, uid_t *ret_user, int *ret_pidfd);
/* A task wants the disks for itself: from vm_hold(true) until as many vm_hold(false) no VMM is started, and no file is
 * removed, and no move of a disk that its VMM has under way is ended by the order. What is under way goes on: look with vm_disks. */
void vm_hold(struct local_vm *vm, bool held);
/* A task has made all disks of a VM that is off and held: they are its user's from now on, and no start makes one. */
int vm_disks_are_made(struct local_vm *vm, struct error *err);
/* Its disks in shared pools are being filled as @user (0: as the one that its VMM was here last), which its next start is to be then (vmm_user.h):
 * what serves the rest of them to its VMM knows nobody else. Only where nobody has had them before, or this host had them last. */
void vm_keep_user(struct local_vm *vm, uid_t user);
/* A move of one of its disks is over: a VMM that has it under way is told what the order says, though that may be as before. */
void vm_look_at_moves(struct local_vm *vm);
enum vm_disks {
    VM_DISKS_NONE,     /* it has none here */
    VM_DISKS_UNMADE,   /* it has none yet, and while the VM is held none are made: whoever makes them first has them */
    VM_DISKS_FREE,     /* no VMM has them, and while the VM is held none will */
    VM_DISKS_IN_USE,   /* its VMM has them, and answers at vm_control_path */
    VM_DISKS_CHANGING, /* a VMM starts or ends, or they are being made: look again */
};
enum vm_disks vm_disks(const struct local_vm *vm);
/* May its VMM begin @session? The order says that it is held, lastingly, and the VMM has heard of the end of those before. */
bool vm_replica_may_begin(const struct local_vm *vm, uint64_t session);
/* Has its VMM, where one runs, been told that the last session with a replica of its disks is over? */
bool vm_replica_is_over(const struct local_vm *vm);
const struct vm_context *vm_context_of(const struct local_vm *vm);

/* Nothing is called back after @closed, and the memory is gone. */
void vm_close(struct local_vm *vm, void (*closed)(void *arg), void *arg);

/* Fill *seen (zeroed before), to be cleared by the caller. */
void vm_put_seen(const struct local_vm *vm, struct vm_seen *seen);
const char *vm_id(const struct local_vm *vm);
const struct vm_order *vm_order_of(const struct local_vm *vm);
uint64_t vm_order_index(const struct local_vm *vm);
uint64_t vm_answer_index(const struct local_vm *vm); /* of the newest answer that had an order for it */
/* The cluster was rebuilt from a survivor: the index of orders counts anew. The order may be of those that are lost with the end of
 * the log: the VM is astray, has no part in the host's lease and is kept until one is given again. One that a migration brings is so
 * until its VMM is seen to run it (then it is this host's) or has waited for VM_SETTLE_MS. So long, too, no VM with ha is let run that was
 * held or off: another host may say that it has it. The context's cluster_epoch and settles_until_ms are set before. */
void vm_new_cluster_epoch(struct local_vm *vm);
bool vm_is_astray(const struct local_vm *vm);
#define VM_SETTLE_MS 10000
#define VM_TOLD_AGAIN_MS 4000 /* over which VMs are spread that a recovery tells again what they have reached: each is written down */
/* It is astray and another host runs it: its VMM ends, and its files stay. */
void vm_halt(struct local_vm *vm);
bool vm_is_removing(const struct local_vm *vm); /* its files are going away */
bool vm_is_gone(const struct local_vm *vm);     /* nothing of it is left */
bool vm_is_forgotten(const struct local_vm *vm);
bool vm_is_fetching(const struct local_vm *vm); /* its progress changes without `changed` */
enum vm_state vm_state_of(const struct local_vm *vm);
uint64_t vm_restarts(const struct local_vm *vm);
/* Its VMM's control socket; NULL while no VMM answers. */
const char *vm_control_path(const struct local_vm *vm);
/* What its VMM's vCPUs have executed, and the epoch that it was started under. Errors of vmm_process_vcpus. */
int vm_observe(const struct local_vm *vm, struct vmm_process_vcpus *ret_vcpus, uint64_t *ret_epoch);
/* -ESRCH: no VMM. */
int vm_usage(const struct local_vm *vm, struct vmm_process_usage *ret_usage);

#endif
