/* One VM of this host, as a state machine on the loop.
 *
 *                  +--------------------- VMM ended badly, tried again -------------------+
 *                  v                                                                      |
 *   PENDING --> STARTING ----- the VMM answers -----> RUNNING <--- pause, resume ---> PAUSED
 *      |         |    ^                                 |                                |
 *      |         v    | tried again                     +--- stop, delete, new epoch ----+
 *      |       FAILED                                   v
 *      |         |                                  STOPPING --> STOPPED --> (start) --> STARTING
 *      +---------+------------- delete ---------------> |
 *                                                       +------> DELETED
 *
 * Happy path of a VM that is new here and wanted running:
 *   1. vm_create       vm.json is written: from now on a killed agent finds the order again
 *   2. PLAN_PREPARE    images one after another from the cache; then disks and taps, in the thread pool
 *   3. PLAN_START      the VM's lock, config.json, owners (vmm_user.h), cgroup (vmm_cgroup.h), fork and exec
 *                      (vmm_process.h), a pidfd watched by the loop
 *   4. PLAN_WAIT_ANSWER  GET /v1/vm on its control socket until it answers: same VM, same epoch -> RUNNING
 *   5. PLAN_REST       asked again every VM_ASK_MS; anything else comes from the pidfd or from a new order
 *
 * How it works: facts are stored by callbacks, and nothing is decided there. Every callback ends in vm_tick(), which
 * turns the facts into a struct plan_vm, asks agent_plan_vm() for the one next step and carries it out. At most one
 * thing is under way at a time (vm->busy); a tick that comes meanwhile does nothing, for the end of that thing ticks.
 *
 * Failure modes, and what the controllers see:
 *   image unreachable, no bridge, no space   FAILED with the cure, tried again with backoff (policy never: not)
 *   wrong checksum, disk too small           FAILED, not tried again before the order changes
 *   VMM ends before it answers               FAILED with the last line of its log, tried again with backoff
 *   VMM ends later                           by the restart policy: STARTING after 1 s doubling to 60 s, or STOPPED
 *                                            (the guest powered off), or FAILED
 *   VMM paused the VM for a disk             PAUSED with the reason, resumed again every VM_STUCK_MS
 *   VMM does not answer any more             left alone, with the reason; a stop then ends in SIGKILL by pidfd
 *   agent killed                             vm_load: the lock says whether a VMM lives; it goes on at step 4
 *   its VMM ends with status 7               it has been migrated away: it is not started again, whatever was wanted
 *   controllers not reachable                nothing: what runs runs on. What does not run is started only after the
 *                                            controllers have given the order to this process (`confirmed`), for the
 *                                            VM may have gone elsewhere since it was written down.
 *
 * A new VMM process of this host may take a VM over while it runs (vm_successor_start, task_upgrade.c): it is started beside the
 * one that runs it, with a lock file and sockets of its own. When that one has ended with status 7, the files of the new one take
 * their places and it is the VM's process, under the same epoch: nobody else may hear of the old one's end as if the VM had
 * left. When it ends in any other way the new one is ended as well. An agent that finds both alive watches both, for either may
 * run the guest by now: the hand-over comes to its end by itself, or was never ordered; then the task orders it when it is begun
 * again, or, where there is none any more, the new one is ended once the old one has said so (successor_ask).
 *
 * A VM that a migration brings (vm_create_arriving) is begun as any other, but its VMM waits, and nothing is asked of it until
 * the controllers' order says that the VM is this host's by that very migration: then PLAN_TAKE tells it so until it runs.
 * In a post-copy it runs from then on, and PLAN_TAKE goes on looking until all of its memory is there: as far as anybody else is concerned
 * it runs; only its devices stay as they are. Where the source is lost its VMM holds it still, and it is ended after VM_LOST_MS, or when the
 * controllers say that nothing more comes. At the source its VMM stays meanwhile (vm_lend_begin).
 * While one takes it away (vm_leave_begin) its VMM is told what to do by migrate_out.h; if it ends meanwhile, the VM is not
 * started before the controllers have said whose it is. Both are in vm.json, for an agent that is killed at any point. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/log.h"
#include "common/state_machine.h"
#include "compute/agent/agent_lease.h"
#include "compute/agent/agent_plan.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/vm.h"
#include "compute/agent/vm_adjust.h"
#include "compute/agent/vmm_cgroup.h"
#include "compute/agent/vmm_user.h"

#define ASK_SOON_MS 10 /* between questions to a VMM that has just been started, doubled up to VM_RETRY_MS */
#define REASON_SIZE 401

#define STATUS_MIGRATED PLAN_PARTING_MIGRATED /* of drover-vmm */
#define TAKE_AGAIN_MS 10
#define LEASE_FOR_START_NS UINT64_C(1000000000) /* that has to be left of the lease where a VMM is to be started under it */
#define LEASE_LOOK_AGAIN_MS 100
#define LOOK_AGAIN_MS 100 /* at its replica, while another process is at work on it... */
#define AT_WORK_MS 60000  /* ...which is a failure if it goes on for so long */
#define SERVERS_AGAIN_MS 1000 /* to have a server of its disks begun again, after that has failed */

enum vm_busy { VM_IDLE, VM_FETCHING, VM_PREPARING, VM_OWNING, VM_REMOVING, VM_ASKING, VM_TELLING, VM_ADJUSTING, VM_TAKING };

#define VM_PROGRAM_SIZE 65
#define SUCCESSOR_ORPHAN_MS 10000 /* a process that was to take over, left by an agent before us, and no task asks for it: the VM's own is asked */

/* A process that is watched; freed by the loop, which may be after the VM has another one. */
struct vm_watch {
    uv_poll_t poll;
    struct local_vm *vm; /* NULL: nobody wants to know any more */
    int pidfd;
};

/* Work in a thread (pool_work.h), with a copy of all that it needs. */
struct vm_work {
    struct pool_work work;
    struct local_vm *vm;
    struct vm_order order;
    uid_t user;
    struct vmm_turn turn;
    bool disks_made, disks_partial, arriving;
    bool unfilled; /* it arrives, and nobody was ever let in to fill what it arrives with */
    struct volume_order elsewhere;
    bool nobodys; /* a removal: all that it has in pools goes with it */
    uint64_t resume_bytes; /* found: vm_files_resume_bytes */
    int status;
    struct error err;
};

struct local_vm {
    const struct vm_context *context;
    struct agent_vm file; /* vm.json, the order in it */
    struct state_machine machine;
    bool unsaved; /* `file` has changed since it was written */
    char control_path[VM_FILES_CONTROL_PATH_SIZE];
    char name[64]; /* for the log: the order's own text may be replaced */
    char id[37];
    uid_t user; /* that its next VMM will run as; 0: the agent's own. Known once it is being prepared */

    /* facts */
    bool confirmed, forgotten, gone, prepared;
    bool files_owned; /* for the start that follows at once: its files in pools are its user's, */
    uint64_t resume_bytes; /* and so much of memory is read first */
    bool may_relocate; /* another host may have it when it cannot be started here, as of the last orders */
    bool nobodys; /* forgotten, and no other host has it either */
    uint64_t removes_since_ms; /* its files are to go since then; 0: not yet */
    unsigned holds; /* tasks that want its disks for themselves */
    bool looking; /* something holds the VM's lock and its name is not known yet */
    bool adjust_again; /* the order has changed since it began to be adjusted */
    struct vm_order dropped; /* disks that its VMM may have though no order names them any more (vm_adjust_dropped) */
    bool moves;    /* a move of a disk may wait for what the order says; of these alone it is told where it is to end */
    bool moves_only; /* so is the run under way */
    bool adjusted; /* the VMM was started with the devices of the order, or has been given them */
    uint64_t answer_index; /* of the newest answer of the controllers that had an order for it */
    uint64_t astray_since_ms; /* while vm_is_astray */
    bool owned;  /* file.arriving: it is this host's now */
    bool told;   /* and its VMM knows */
    bool lacks, lost; /* owned: part of its memory is where it was; and the way there is lost, */
    uint64_t lost_since_ms;
    char wait_no_more[REASON_SIZE]; /* why it need not be waited for; "": it is */
    bool waited_long;               /* that is by its time: it holds for as long as the way is lost */
    uint64_t came_generation; /* that its VMM was begun with for the arrival */
    char arrival[37];  /* the last one that came to an end: */
    enum vm_arrival_end arrival_end;
    char arrival_why[REASON_SIZE];
    bool left;   /* it runs elsewhere: its VMM has been told, or has said so */
    bool has_departed; /* and how that went is known */
    struct migration_result departed;
    uint64_t left_epoch;
    bool stale;  /* the VMM waits for a migration that is not how the VM came to be this host's */
    bool process_stuck; /* its VMM paused it because a disk failed */
    uint64_t stuck_until_ms;
    char stuck_reason[REASON_SIZE];
    bool process, process_child, process_answers, process_paused, process_silent;
    char program[VM_PROGRAM_SIZE]; /* version and build of the drover-vmm that it is, as that says; "": not heard yet */
    struct vmm_process_id process_id;
    uint64_t process_since_ms, start_deadline_ms; /* 0: we did not start it, there is none */
    bool shutdown_asked, stop_asked, stop_failed, kill_sent;
    uint64_t shutdown_deadline_ms;
    uint64_t stop_deadline_ms, killed_ms;
    enum plan_end end;
    char end_text[REASON_SIZE];
    struct plan_tries tries;
    char reason[REASON_SIZE];

    /* the host's lease */
    struct lease_page page;
    uint64_t lease_generation; /* of the orders that named it last; 0: none has, to this process */
    bool lease_held;           /* its VMM holds the guest for want of a lease */

    /* what is under way */
    enum vm_busy busy;
    struct image_wait *wait;
    struct http_call *call;
    struct vm_adjust *adjust;
    enum vmm_move telling;
    struct vm_work *servers; /* begins servers of its disks again, or ends them, whatever else is under way; NULL: none */
    bool servers_ended;      /* nothing of any is left since it is off */
    uint64_t servers_again_ms;
    struct vm_watch *watch;
    struct vm_watch *next; /* the process that is to take over; NULL: none */
    struct vmm_process_id next_id;
    bool next_child;
    uint64_t next_look_ms; /* an agent before us has left it, and no task has taken it up: when to look what is to become of it; 0: not */
    uv_timer_t timer;
    uint64_t hold_until_ms; /* no step before */
    uint64_t at_work_since_ms; /* another process is at work on its replica; 0: none is */
    uint64_t ask_at_ms, ask_pause_ms;

    bool closing, timer_closed;
    void (*closed)(void *arg);
    void *closed_arg;
};

#define ENDED_UNWATCHED "its VMM ended while no agent watched it"

static const char *const state_names[] = {"pending",  "starting", "running", "paused",
                                          "stopping", "stopped",  "failed",  "deleted"};
STATIC_ASSERT(ARRAY_SIZE(state_names) == vm_state_COUNT, "a name for each state");
#define TO(state) STATE_BIT(vm_state_##state)
static const uint32_t state_moves[] = {
    [vm_state_PENDING] = TO(STARTING) | TO(STOPPED) | TO(STOPPING) | TO(FAILED) | TO(DELETED),
    [vm_state_STARTING] = TO(RUNNING) | TO(PAUSED) | TO(STOPPING) | TO(STOPPED) | TO(FAILED),
    [vm_state_RUNNING] = TO(PAUSED) | TO(STARTING) | TO(STOPPING) | TO(STOPPED) | TO(FAILED),
    [vm_state_PAUSED] = TO(RUNNING) | TO(STARTING) | TO(STOPPING) | TO(STOPPED) | TO(FAILED),
    [vm_state_STOPPING] = TO(STARTING) | TO(STOPPED) | TO(FAILED) | TO(DELETED),
    [vm_state_STOPPED] = TO(STARTING) | TO(STOPPING) | TO(FAILED),
    [vm_state_FAILED] = TO(STARTING) | TO(RUNNING) | TO(PAUSED) | TO(STOPPING) | TO(STOPPED),
    [vm_state_DELETED] = 0,
};
static const struct state_machine_desc machine_desc = {"vm", state_names, state_moves, ARRAY_SIZE(state_moves)};

static void vm_tick(struct local_vm *vm);
static void vm_maybe_finish(struct local_vm *vm);

/* ---- small helpers ---- */

static uint64_t now_ms(const struct local_vm *vm)
{
    return uv_now(vm->context->loop);
}

bool vm_is_astray(const struct local_vm *vm)
{
    return !vm->gone && MAX(vm->file.cluster_epoch, UINT64_C(1)) < vm->context->cluster_epoch;
}

/* Said by whoever knows. The caller has it written down. */
static void not_astray(struct local_vm *vm)
{
    OBJECT_SET(agent_vm, &vm->file, cluster_epoch, vm->context->cluster_epoch);
    vm->unsaved = true;
}

static void vm_timer(uv_timer_t *timer)
{
    vm_tick(timer->data);
}

/* Tick again in @ms at the latest. */
static void vm_wake_in(struct local_vm *vm, uint64_t ms)
{
    uv_timer_start(&vm->timer, vm_timer, ms, 0);
}

static void vm_wake_at(struct local_vm *vm, uint64_t at_ms)
{
    vm_wake_in(vm, at_ms > now_ms(vm) ? at_ms - now_ms(vm) : 0);
}

/* Words that go to controllers and logs: printable, however odd what they came from. */
static void put_reason(char *to, const char *text)
{
    snprintf(to, REASON_SIZE, "%s", text);
    for (char *at = to; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
}

/* Write vm.json if it has changed; of one whose files are gone none is made again, whatever orders come until nobody asks for it any more. */
static int vm_save(struct local_vm *vm, struct error *err)
{
    if (!vm->unsaved || vm->gone)
        return 0;
    int r = vm_files_save(&vm->context->places, &vm->file, err);
    if (r == 0)
        vm->unsaved = false;
    return r;
}

static void vm_save_or_log(struct local_vm *vm)
{
    struct error err = {.code = 0};
    if (vm_save(vm, &err) < 0)
        log_error("vm-save", "vm=%s error=\"%s, ignoring\"", vm->name, err.text);
}

/* The one place where state and reason change. */
static void vm_move(struct local_vm *vm, enum vm_state state, const char *reason)
{
    bool changed = vm->machine.state != state || strcmp(vm->reason, reason) != 0;
    put_reason(vm->reason, reason);
    state_machine_move(&vm->machine, state, "%s", vm->reason);
    if (changed && !vm->closing)
        vm->context->changed(vm, vm->context->arg);
}

/* On the way to running. What has failed is called failed until it runs, however often it is tried: a state that
 * flickers tells nobody anything. */
static void vm_progress(struct local_vm *vm, const char *step)
{
    if (vm->machine.state != vm_state_FAILED || vm->end == PLAN_END_NONE)
        vm_move(vm, vm_state_STARTING, step);
}

/* Like vm_move, for an outcome: it is written down and answers @generation. */
static void vm_settle_as(struct local_vm *vm, enum vm_state state, const char *reason, uint64_t generation)
{
    struct agent_vm *file = &vm->file;
    bool same = OBJECT_HAS(agent_vm, file, state) && file->state == (uint32_t)state && file->generation == generation &&
                vm->machine.state == (unsigned)state;
    if (same && strcmp(vm->reason, reason) == 0)
        return;
    OBJECT_SET(agent_vm, file, state, state);
    OBJECT_SET(agent_vm, file, generation, generation);
    OBJECT_SET(agent_vm, file, pid, vm->process ? (uint64_t)vm->process_id.pid : 0);
    OBJECT_SET(agent_vm, file, pid_start, vm->process ? vm->process_id.start_ticks : 0);
    OBJECT_TEXT(agent_vm, file, boot_id, vm->context->boot_id);
    put_reason(vm->reason, reason);
    OBJECT_TEXT(agent_vm, file, reason, vm->reason);
    vm->unsaved = true;
    if (!vm->gone && !vm->forgotten)
        vm_save_or_log(vm);
    state_machine_move(&vm->machine, state, "%s", vm->reason);
    if (!vm->closing)
        vm->context->changed(vm, vm->context->arg);
}

/* That of the present order. */
static void vm_settle(struct local_vm *vm, enum vm_state state, const char *reason)
{
    vm_settle_as(vm, state, reason, vm->file.order.generation);
}

static bool is_released(const struct local_vm *vm)
{
    return vm->file.released != 0 && vm->file.released >= vm->file.order.epoch;
}

/* An attempt to have the VM as wanted came to nothing: when is the next one? */
static void vm_failed(struct local_vm *vm, enum plan_end end, const char *text)
{
    const struct vm_order *order = &vm->file.order;
    agent_plan_failed(&vm->tries, order, end, now_ms(vm));
    vm->end = end;
    if (agent_plan_worn(&vm->tries, order)) {
        CLEANUP_FREE char *why = xasprintf("%u times within %llu s, and restarts_max is %u: start it when this is mended: %s", vm->tries.ends,
                                           (unsigned long long)agent_plan_window_s(order), order->restarts_max, text);
        put_reason(vm->end_text, why);
    } else {
        put_reason(vm->end_text, text);
    }
    vm->prepared = false; /* look again at all of it: that may be the cure */
}

/* ---- the process ---- */

static void watch_closed(uv_handle_t *handle)
{
    struct vm_watch *watch = CONTAINER_OF((uv_poll_t *)handle, struct vm_watch, poll);
    close(watch->pidfd);
    free(watch);
}

static void watch_end(struct vm_watch **watch)
{
    if (*watch == NULL)
        return;
    (*watch)->vm = NULL;
    uv_close((uv_handle_t *)&(*watch)->poll, watch_closed);
    *watch = NULL;
}

static void watch_close(struct local_vm *vm)
{
    watch_end(&vm->watch);
}

/* ---- a process that takes over ---- */

/* Behind the control socket's name, so that it is as unique. */
static int successor_control_path(const struct local_vm *vm, char buffer[VM_FILES_CONTROL_PATH_SIZE])
{
    return snprintf(buffer, VM_FILES_CONTROL_PATH_SIZE, "%s2", vm->control_path) < VM_FILES_CONTROL_PATH_SIZE ? 0 : -ENAMETOOLONG;
}

static void successor_unlink(struct local_vm *vm)
{
    static const char *const leaves[] = {VM_NEXT_CONFIG, VM_NEXT_LOCK, VM_NEXT_SOCKET};
    char control[VM_FILES_CONTROL_PATH_SIZE];
    for (size_t i = 0; i < ARRAY_SIZE(leaves); i++) {
        CLEANUP_FREE char *path = vm_files_path(&vm->context->places, vm->id, leaves[i]);
        unlink(path);
    }
    if (successor_control_path(vm, control) == 0)
        unlink(control);
}

static bool file_rename(const struct local_vm *vm, const char *from, const char *to)
{
    CLEANUP_FREE char *old = vm_files_path(&vm->context->places, vm->id, from);
    CLEANUP_FREE char *new = vm_files_path(&vm->context->places, vm->id, to);
    return rename(old, new) == 0;
}

/* The one that ran the VM has handed it over and is gone. False: nothing is written down; the next agent will find what this one has
 * found. The lock comes before the old one's parting word goes, by which that is found; behind it that word would be one of a VM
 * that has left this host. */
static bool successor_rename(struct local_vm *vm)
{
    CLEANUP_FREE char *exit_path = vm_files_path(&vm->context->places, vm->id, "exit.json");
    char control[VM_FILES_CONTROL_PATH_SIZE];
    bool done = successor_control_path(vm, control) == 0 && rename(control, vm->control_path) == 0;
    done = file_rename(vm, VM_NEXT_CONFIG, "config.json") && done;
    bool locked = file_rename(vm, VM_NEXT_LOCK, "vmm.lock");
    if (!done || !locked)
        log_error("vm-upgrade", "vm=%s error=\"cannot rename the files of its new VMM: %s, ignoring\"", vm->name, strerror(errno));
    if (!locked)
        return false;
    unlink(exit_path);
    OBJECT_TEXT(agent_vm, &vm->file, upgraded, vm->file.upgrading);
    OBJECT_TEXT(agent_vm, &vm->file, upgrading, NULL);
    vm->unsaved = true;
    return true;
}

static void successor_kill(struct local_vm *vm)
{
    if (vm->next != NULL)
        (void)vmm_process_signal(vm->next->pidfd, SIGKILL);
}

static void successor_ended(struct local_vm *vm)
{
    int status;
    char how[80] = "ended";
    if (vmm_process_reap(vm->next_id.pid, &status) == 0)
        vmm_process_end_text(status, how, sizeof(how));
    log_warning("vmm-successor-ended", "vm=%s pid=%d why=\"%s\"", vm->name, vm->next_id.pid, how);
    watch_end(&vm->next);
    vm->next_look_ms = 0;
    successor_unlink(vm);
}

/* The VM's process from now on; nothing has changed for its guest. */
static void successor_promote(struct local_vm *vm)
{
    watch_close(vm);
    vm->watch = TAKE_PTR(vm->next);
    vm->next_look_ms = 0;
    vm->process_id = vm->next_id;
    vm->process_child = vm->next_child;
    vm->process_answers = true; /* as one that waits for its guest */
    vm->adjusted = vm->process_silent = false; /* what was wanted meanwhile was told the one before it */
    vm->adjust_again = vm->adjust != NULL;
    vm->program[0] = '\0';
    vm->shutdown_asked = vm->stop_asked = vm->stop_failed = vm->kill_sent = false;
    vm->killed_ms = 0;
    vm->process_since_ms = now_ms(vm);
    vm->start_deadline_ms = vm->ask_at_ms = vm->hold_until_ms = 0;
    vm->ask_pause_ms = ASK_SOON_MS;
    if (successor_rename(vm)) {
        OBJECT_SET(agent_vm, &vm->file, pid, (uint64_t)vm->process_id.pid);
        OBJECT_SET(agent_vm, &vm->file, pid_start, vm->process_id.start_ticks);
        vm_save_or_log(vm);
    }
    log_info("vmm-upgraded", "vm=%s pid=%d pause_us=%llu", vm->name, vm->process_id.pid,
             vm->has_departed ? (unsigned long long)vm->departed.downtime_us : 0ull);
}

/* Its VMM is done with it: another host runs it. */
static void left_set(struct local_vm *vm)
{
    vm->left = true;
    vm->left_epoch = vm->file.order.epoch;
}

static void arrival_note(struct local_vm *vm, enum vm_arrival_end end, const char *why)
{
    snprintf(vm->arrival, sizeof(vm->arrival), "%s", vm->file.arriving);
    vm->arrival_end = end;
    put_reason(vm->arrival_why, why);
}

/* Nothing is to come any more, or it has come. What came of it is known by then (arrival_note). */
static void arrival_over(struct local_vm *vm)
{
    CLEANUP_FREE char *path = vm_files_path(&vm->context->places, vm->id, VM_ARRIVAL_SOCKET);
    CLEANUP_FREE char *disks_path = vm_files_path(&vm->context->places, vm->id, VM_ARRIVAL_DISKS_SOCKET);
    unlink(path); /* of a VMM that was killed */
    unlink(disks_path);
    OBJECT_TEXT(agent_vm, &vm->file, arriving, NULL);
    vm->owned = vm->told = vm->lacks = vm->lost = vm->waited_long = false;
    vm->wait_no_more[0] = '\0';
    vm->unsaved = true;
    vm_save_or_log(vm);
}

/* The parting word of its VMM that was process @pid: the status, or -ENOENT where it left none; and how it went if it
 * was migrated away, which nobody may have asked it before its end. */
static int parting_word(struct local_vm *vm, pid_t pid)
{
    struct vmm_exit word;
    if (vm_files_read_exit(&vm->context->places, vm->id, pid, &word) < 0)
        return -ENOENT;
    int status = (int)word.status;
    if (status == STATUS_MIGRATED && OBJECT_HAS(vmm_exit, &word, migration)) {
        vm->has_departed = true;
        vm->departed = word.migration; /* numbers alone */
    }
    OBJECT_CLEAR(vmm_exit, &word);
    return status;
}

/* How did it end? A wait status, or -1 where nobody can tell. */
static int end_status(struct local_vm *vm)
{
    int status, said = parting_word(vm, vm->process_id.pid);
    if (vm->process_child && vmm_process_reap(vm->process_id.pid, &status) == 0)
        return status;
    return said >= 0 ? W_EXITCODE(said, 0) : -1;
}

static void describe_end(struct local_vm *vm, int status, char *buffer, size_t size)
{
    char how[80], line[240];
    if (status < 0)
        snprintf(how, sizeof(how), "ended, and how is not known to an agent that did not start it");
    else
        vmm_process_end_text(status, how, sizeof(how));
    vm_files_last_error(&vm->context->places, vm->id, line, sizeof(line));
    if (status == 0)
        line[0] = '\0'; /* an error of another time */
    snprintf(buffer, size, "its VMM %s%s%s", how, line[0] != '\0' ? ": " : "", line);
}

/* Its VMM's end with status 7 is that of a hand-over on this host, and not of one to another. */
static bool was_upgraded(const struct local_vm *vm)
{
    return vm->file.upgrading != NULL && vm->file.leaving == NULL;
}

/* Of a VMM that was killed. */
static void backup_socket_remove(const struct local_vm *vm)
{
    CLEANUP_FREE char *path = vm_files_path(&vm->context->places, vm->id, VM_BACKUP_SOCKET);
    unlink(path);
}

/* Its VMM has ended while part of its memory was where it came from. */
static void lost_words(const struct local_vm *vm, char text[REASON_SIZE])
{
    CLEANUP_FREE char *how = xstrdup(vm->wait_no_more[0] != '\0' ? vm->wait_no_more : text);
    snprintf(text, REASON_SIZE, "what ran is lost, for not all of its memory had come from the host where it was before: %.280s", how);
}

static void vm_on_process_end(struct local_vm *vm)
{
    int status = end_status(vm);
    bool clean = status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    bool answered = vm->process_answers, wanted_end = vm->stop_asked || vm->shutdown_asked;
    bool migrated = status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == STATUS_MIGRATED;
    char text[REASON_SIZE];
    if (migrated && vm->next != NULL && was_upgraded(vm)) {
        successor_promote(vm);
        return;
    }
    describe_end(vm, status, text, sizeof(text));
    if (migrated && was_upgraded(vm)) { /* to one that is gone by now */
        migrated = false;
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "; the new VMM that took it over has ended");
    }
    successor_kill(vm); /* without the old one's word nobody knows that it has the guest */
    watch_close(vm);
    unlink(vm->control_path); /* the VMM could not: its directory is not in the jail's view */
    backup_socket_remove(vm);
    if (vm->context->places.cgroups != NULL)
        vmm_cgroup_remove(vm->context->places.cgroups, vm->id);
    log_info("vmm-ended", "vm=%s pid=%d why=\"%s\"", vm->name, vm->process_id.pid, text);
    if (now_ms(vm) - vm->process_since_ms >= VM_STEADY_MS)
        vm->tries.failures = 0;
    vm->process = vm->process_child = vm->process_answers = vm->process_paused = vm->process_silent = false;
    vm->lease_held = false;
    vm->program[0] = '\0';
    vm->shutdown_asked = vm->stop_asked = vm->stop_failed = vm->kill_sent = false;
    vm->killed_ms = 0;
    vm->start_deadline_ms = 0;
    vm->hold_until_ms = 0;
    vm->stale = false;
    if (migrated)
        left_set(vm);
    if (vm->owned) { /* it ended before it had what the migration brought: begun anew, as after any other failure */
        arrival_note(vm, wanted_end ? VM_ARRIVAL_END_STOPPED : VM_ARRIVAL_END_BROKEN,
                     wanted_end ? "the VM was stopped" : vm->wait_no_more[0] != '\0' ? vm->wait_no_more : text);
        if (vm->lacks && !wanted_end)
            lost_words(vm, text);
        arrival_over(vm);
    }
    if (wanted_end || migrated)
        vm->end = PLAN_END_NONE;
    else if (!answered)
        vm_failed(vm, PLAN_END_NOT_STARTED, text);
    else if (clean)
        vm_failed(vm, PLAN_END_CLEAN, "the guest powered off");
    else
        vm_failed(vm, PLAN_END_BROKEN, text);
}

static void watch_poll(uv_poll_t *poll, int uv_status, int events)
{
    struct vm_watch *watch = CONTAINER_OF(poll, struct vm_watch, poll);
    struct local_vm *vm = watch->vm;
    (void)uv_status;
    (void)events;
    if (vm == NULL)
        return;
    if (watch == vm->next) {
        successor_ended(vm);
        vm_tick(vm);
        return;
    }
    vm_on_process_end(vm);
    if (!vm->closing && vm->file.leaving != NULL) /* its migration wants to know, though nothing else may have changed */
        vm->context->changed(vm, vm->context->arg);
    vm_tick(vm);
}

static struct vm_watch *watch_make(struct local_vm *vm, int pidfd)
{
    struct vm_watch *watch = NEW(struct vm_watch);
    watch->vm = vm;
    watch->pidfd = pidfd;
    int r = uv_poll_init(vm->context->loop, &watch->poll, pidfd);
    ASSERT(r == 0);
    r = uv_poll_start(&watch->poll, UV_READABLE, watch_poll);
    ASSERT(r == 0);
    return watch;
}

/* Watch the process of @pidfd, which is the watch's from now on. */
static void vm_watch_process(struct local_vm *vm, const struct vmm_process_id *id, int pidfd, bool child)
{
    vm->watch = watch_make(vm, pidfd);
    vm->process = true;
    vm->process_child = child;
    vm->adjusted = child; /* of another agent's doing nothing is known */
    vm->process_answers = vm->process_paused = vm->process_silent = false;
    vm->process_id = *id;
    vm->has_departed = false;
    vm->process_since_ms = now_ms(vm);
    vm->start_deadline_ms = child ? now_ms(vm) + VM_START_MS : 0;
    vm->shutdown_asked = vm->stop_asked = vm->stop_failed = vm->kill_sent = false;
    vm->killed_ms = 0;
    vm->ask_at_ms = 0;
    vm->ask_pause_ms = ASK_SOON_MS;
}

/* The page that the VMM obeys, as the agent before us left it: it holds until it is confirmed or runs out. */
static void vm_lease_adopt(struct local_vm *vm)
{
    CLEANUP_FREE char *path = vm_files_lease_path(&vm->context->places, vm->id);
    struct error err = {.code = 0};
    if (lease_page_adopt(&vm->page, path, vm->process_id.pid, &err) < 0)
        log_warning("vm-lease", "vm=%s error=\"%s\"", vm->name, err.text);
}

/* By this its parting word is known (parting_word), whoever asks for it. */
static void process_note(struct local_vm *vm)
{
    if (vm->file.pid == (uint64_t)vm->process_id.pid && vm->file.pid_start == vm->process_id.start_ticks)
        return;
    OBJECT_SET(agent_vm, &vm->file, pid, (uint64_t)vm->process_id.pid);
    OBJECT_SET(agent_vm, &vm->file, pid_start, vm->process_id.start_ticks);
    vm->unsaved = true;
    vm_save_or_log(vm);
}

/* Is the process of the user that the VM's VMM runs as? Of root it is for a moment at its start; of anybody else's it is never. */
static bool is_its_users(const struct local_vm *vm, pid_t pid)
{
    uid_t user;
    return vm->file.user == 0 || (vmm_process_user(pid, &user) == 0 && user == vm->file.user);
}

/* Does a VMM live that we do not know of? 1: now we do; 0: none; -EAGAIN: something holds the lock and cannot be
 * named yet (it is just being started, or just ending): look again. */
static int vm_adopt(struct local_vm *vm, struct error *err)
{
    CLEANUP_FREE char *lock_path = vm_files_path(&vm->context->places, vm->id, "vmm.lock");
    struct vmm_process_id id;
    int pidfd, r = vmm_process_look(lock_path, &id, err);
    if (r <= 0)
        return r;
    r = vmm_process_open(&id, vm->context->boot_id, &pidfd);
    if (r == -ESRCH) /* it ends at this moment, or has not written its name over that of the one before it */
        return -EAGAIN;
    if (r < 0)
        return error_errno(err, r, "cannot watch process %d", id.pid);
    if (!is_its_users(vm, id.pid)) {
        close(pidfd);
        return -EAGAIN;
    }
    vm_watch_process(vm, &id, pidfd, false);
    process_note(vm); /* it may have taken over from the one that was known */
    vm_lease_adopt(vm);
    log_info("vmm-adopted", "vm=%s pid=%d epoch=%llu", vm->name, id.pid, (unsigned long long)id.epoch);
    return 1;
}

/* Has an agent before us left a process that was to take over? 0: none, any more; 1: *ret_next, and the one before it lives, too;
 * -EAGAIN: look again. */
static int successor_look(struct local_vm *vm, struct vmm_process_id *ret_next, struct error *err)
{
    CLEANUP_FREE char *next_path = vm_files_path(&vm->context->places, vm->id, VM_NEXT_LOCK);
    CLEANUP_FREE char *lock_path = vm_files_path(&vm->context->places, vm->id, "vmm.lock");
    struct vmm_process_id old;
    int pidfd, r = vmm_process_look(next_path, ret_next, err);
    if (r == -EPERM) { /* no agent has made it: its VMM may make files there */
        log_warning("vm-upgrade", "vm=%s error=\"%s; it is removed\"", vm->name, err->text);
        return unlink(next_path) == 0 ? 0 : -EAGAIN;
    }
    if (r <= 0)
        return r;
    if ((r = vmm_process_look(lock_path, &old, err)) != 0)
        return r;
    if (parting_word(vm, (pid_t)vm->file.pid) == STATUS_MIGRATED) {
        if (!successor_rename(vm))
            return -EAGAIN;
        vm_save_or_log(vm);
        return 0;
    }
    r = vmm_process_open(ret_next, vm->context->boot_id, &pidfd);
    if (r == 0) {
        if (is_its_users(vm, ret_next->pid)) {
            log_warning("vmm-successor-killed", "vm=%s pid=%d why=\"the one before it has ended without a word\"", vm->name, ret_next->pid);
            (void)vmm_process_signal(pidfd, SIGKILL);
        }
        close(pidfd);
    }
    return -EAGAIN;
}

static uint64_t orphan_ms(const struct local_vm *vm)
{
    return vm->context->orphan_ms != 0 ? vm->context->orphan_ms : SUCCESSOR_ORPHAN_MS;
}

/* Both live, and both are watched, or none: so neither's end is missed, nor taken for what it is not. */
static int vm_adopt_both(struct local_vm *vm, const struct vmm_process_id *next, struct error *err)
{
    int pidfd, r = vmm_process_open(next, vm->context->boot_id, &pidfd);
    if (r == -ESRCH) /* it ends at this moment */
        return -EAGAIN;
    if (r < 0)
        return error_errno(err, r, "cannot watch process %d", next->pid);
    r = is_its_users(vm, next->pid) ? vm_adopt(vm, err) : -EAGAIN;
    if (r <= 0) {
        close(pidfd);
        return r == 0 ? -EAGAIN : r; /* by what the one before it has left it is known what is to become of this one */
    }
    vm->next = watch_make(vm, pidfd);
    vm->next_id = *next;
    vm->next_child = false;
    vm->next_look_ms = now_ms(vm) + orphan_ms(vm);
    log_info("vmm-successor-adopted", "vm=%s pid=%d", vm->name, next->pid);
    return r;
}

/* Until this has an answer nothing may be concluded from there being no VMM that we know of. */
static int vm_look(struct local_vm *vm, struct error *err)
{
    struct vmm_process_id next;
    int r = successor_look(vm, &next, err);
    if (r >= 0)
        r = r > 0 ? vm_adopt_both(vm, &next, err) : vm_adopt(vm, err);
    vm->looking = r < 0;
    if (r == 0)
        backup_socket_remove(vm);
    if (r < 0)
        vm->hold_until_ms = now_ms(vm) + (r == -EAGAIN ? ASK_SOON_MS : VM_RETRY_MS);
    return r;
}

/* ---- the control socket ---- */

static int vm_call(struct local_vm *vm, const char *method, const char *url, const struct bytes_writer *body,
                   http_client_done done)
{
    const struct http_call_options options = {
        .method = method,
        .url = url,
        .unix_socket = vm->control_path,
        .body = body != NULL ? body->data : NULL,
        .body_size = body != NULL ? body->size : 0,
        .deadline_ms = VM_CONTROL_MS,
        .done = done,
        .arg = vm,
    };
    struct error err = {.code = 0};
    int r = http_client_start(vm->context->http, &options, &vm->call, &err);
    if (r < 0)
        log_warning("vm-control", "vm=%s error=\"%s\"", vm->name, err.text);
    return r;
}

/* A call to its VMM has come back. False: it is being closed, and may be gone. */
static bool vm_call_over(struct local_vm *vm)
{
    vm->busy = VM_IDLE;
    vm->call = NULL;
    if (!vm->closing)
        return true;
    vm_maybe_finish(vm);
    return false;
}

/* The answer is of this VM's VMM, or why not. */
static int check_status(struct local_vm *vm, const struct http_answer *answer, struct vmm_status *ret_status,
                        struct error *err)
{
    struct vmm_status status = {.name = NULL};
    if (answer->error != 0)
        return error_set(err, answer->error, answer->problem.kind, "%s", answer->problem.text);
    if (answer->status != 200)
        return error_set(err, -EPROTO, ERROR_INTERNAL, "it answered %d", answer->status);
    int r = OBJECT_DECODE(vmm_status, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &status, err);
    if (r < 0)
        return r;
    if (status.vm_id == NULL || strcmp(status.vm_id, vm->id) != 0 || status.epoch != vm->process_id.epoch)
        r = error_set(err, -EPROTO, ERROR_INTERNAL, "it says that it is VM %.40s at epoch %llu",
                      status.vm_id != NULL ? status.vm_id : "?", (unsigned long long)status.epoch);
    else
        *ret_status = status;
    if (r < 0)
        OBJECT_CLEAR(vmm_status, &status);
    return r;
}

/* Why a VMM holds its guest by itself, if it does. It is resumed now and then: there may be space again. */
static void vm_look_if_stuck(struct local_vm *vm, const struct vmm_status *status)
{
    bool stuck = false;
    for (size_t i = 0; i < status->holds.count; i++)
        stuck = stuck || strcmp(status->holds.items[i], "disk") == 0;
    vm->lease_held = false;
    for (size_t i = 0; i < status->holds.count; i++)
        vm->lease_held = vm->lease_held || strcmp(status->holds.items[i], "lease") == 0;
    if (vm->lease_held && status->holds.count == 1)
        vm->process_paused = false; /* not by anybody's wish, and not to be resumed by one */
    if (stuck && !vm->process_stuck) {
        vm->stuck_until_ms = now_ms(vm) + VM_STUCK_MS;
        snprintf(vm->stuck_reason, sizeof(vm->stuck_reason), "%s", status->reason != NULL ? status->reason : "");
        log_warning("vm-stuck", "vm=%s why=\"%s\" retry_ms=%d", vm->name, vm->stuck_reason, VM_STUCK_MS);
    }
    vm->process_stuck = stuck;
}

/* Of one that is astray and that a migration brings nobody may ever say whose it is. What its VMM has been told to run (it shows no hold
 * "start" any more, also where it waits for pages) the source has let go of. One that still waits is the source's. */
static void vm_look_if_arrived(struct local_vm *vm, const struct vmm_status *status)
{
    bool has = status->state == vmm_state_RUNNING || status->state == vmm_state_PAUSED;
    if (!vm_is_astray(vm) || vm->file.arriving == NULL || vm->owned)
        return;
    for (size_t i = 0; i < status->holds.count; i++)
        has = has && strcmp(status->holds.items[i], "start") != 0;
    if (!has && now_ms(vm) < vm->astray_since_ms + VM_SETTLE_MS)
        return;
    log_warning("vm-arrival-astray", "vm=%s has_it=%d", vm->name, has);
    if (has) {
        vm->owned = vm->told = true; /* its end is waited for as where an order has said so: what is left may be on its way */
        OBJECT_SET(agent_vm, &vm->file, disks_partial, false);
        vm->unsaved = true;
    } else {
        not_astray(vm);
    }
    vm_save_or_log(vm);
    vm->context->changed(vm, vm->context->arg);
}

static void program_set(struct local_vm *vm, const char *version)
{
    if (strcmp(vm->program, version) == 0)
        return;
    snprintf(vm->program, sizeof(vm->program), "%s", version);
    vm->context->changed(vm, vm->context->arg);
}

static void vm_on_status(const struct http_answer *answer, void *arg)
{
    struct local_vm *vm = arg;
    struct vmm_status status;
    struct error err = {.code = 0};
    if (!vm_call_over(vm))
        return;
    if (vm->process && check_status(vm, answer, &status, &err) == 0) {
        vm->process_answers = true;
        vm->end = PLAN_END_NONE;
        vm->tries.unstarted = 0;
        vm->process_silent = false;
        vm->process_paused = status.state == vmm_state_PAUSED;
        vm_look_if_stuck(vm, &status);
        vm_look_if_arrived(vm, &status);
        program_set(vm, status.version != NULL ? status.version : "");
        vm->ask_at_ms = now_ms(vm) + VM_ASK_MS;
        OBJECT_CLEAR(vmm_status, &status);
    } else if (vm->process) {
        vm->ask_at_ms = now_ms(vm) + vm->ask_pause_ms;
        vm->ask_pause_ms = MIN(vm->ask_pause_ms * 2, (uint64_t)VM_RETRY_MS);
        if (!vm->process_silent && vm->start_deadline_ms == 0)
            log_warning("vmm-silent", "vm=%s pid=%d error=\"%s\"", vm->name, vm->process_id.pid, err.text);
        vm->process_silent = vm->start_deadline_ms == 0 || vm->process_answers;
    }
    vm_tick(vm);
}

/* As far as the controllers' orders have come to this agent. */
static bool successor_is_orphan(const struct local_vm *vm)
{
    return vm->next != NULL && vm->next_look_ms != 0 && vm->confirmed;
}

static void on_successor_asked(const struct http_answer *answer, void *arg)
{
    struct local_vm *vm = arg;
    struct vmm_migration seen = {.head = {0}};
    struct error err = {.code = 0};
    if (!vm_call_over(vm))
        return;
    if (answer->error == 0 && answer->status == 200 && successor_is_orphan(vm) &&
        OBJECT_DECODE(vmm_migration, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &seen, &err) == 0) {
        bool idle = seen.phase == vmm_migration_phase_IDLE || seen.phase == vmm_migration_phase_FAILED ||
                    seen.phase == vmm_migration_phase_CANCELLED || seen.direction == vmm_migration_direction_IN;
        log_info("vmm-successor-asked", "vm=%s pid=%d ended=%d", vm->name, vm->next_id.pid, idle);
        if (idle)
            successor_kill(vm);
        OBJECT_CLEAR(vmm_migration, &seen);
    }
    vm_tick(vm);
}

/* Nobody wants the new one any more: does its VMM hand the guest over to it? While it does it is left to come to its end. Nobody but a
 * task orders that, so one that does not will not. True: it is being asked. */
static bool successor_ask(struct local_vm *vm)
{
    if (!successor_is_orphan(vm) || now_ms(vm) < vm->next_look_ms)
        return false;
    vm->next_look_ms = now_ms(vm) + orphan_ms(vm);
    if (vm_call(vm, "GET", "http://vmm/v1/vm/migration", NULL, on_successor_asked) < 0)
        return false;
    vm->busy = VM_ASKING;
    return true;
}

static void vm_ask(struct local_vm *vm)
{
    if (vm_call(vm, "GET", "http://vmm/v1/vm", NULL, vm_on_status) == 0)
        vm->busy = VM_ASKING;
    else
        vm->ask_at_ms = now_ms(vm) + VM_RETRY_MS;
}

static void vm_on_told(const struct http_answer *answer, void *arg)
{
    struct local_vm *vm = arg;
    if (!vm_call_over(vm))
        return;
    bool ok = answer->error == 0 && answer->status / 100 == 2;
    if (!ok && vm->process)
        log_warning("vm-control", "vm=%s wanted=%s status=%d error=\"%s\"", vm->name,
                    vmm_move_desc.names[vm->telling], answer->status, answer->problem.text);
    if (vm->telling == vmm_move_STOPPED) {
        vm->stop_failed = !ok && !vm->left; /* one that leaves may have been told before */
    } else if (vm->telling == vmm_move_SHUTDOWN) {
        if (!ok)
            vm->shutdown_deadline_ms = 0; /* it cannot be asked: the plug */
    } else if (ok) {
        vm->process_paused = vm->telling == vmm_move_PAUSED;
    } else {
        vm->ask_at_ms = 0; /* it may know better than we what it does */
        vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
    }
    vm_tick(vm);
}

static bool vm_tell(struct local_vm *vm, enum vmm_move move)
{
    struct vmm_state_order order = {.state = 0};
    struct bytes_writer body = {.data = NULL};
    OBJECT_SET(vmm_state_order, &order, state, (uint32_t)move);
    OBJECT_ENCODE(vmm_state_order, &order, &body);
    vm->telling = move;
    vm->process_stuck = false; /* as far as is known before the next answer */
    int r = vm_call(vm, "PUT", "http://vmm/v1/vm/state", &body, vm_on_told);
    if (r == 0)
        vm->busy = VM_TELLING;
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_state_order, &order);
    return r == 0;
}

/* ---- what a migration has brought ---- */

/* How far its VMM is: the answer to the word that it is ours, or to a question. */
static void take_look(struct local_vm *vm, const struct http_answer *answer)
{
    struct vmm_migration seen = {.head = {0}};
    struct error err = {.code = 0};
    bool ok = answer->error == 0 && answer->status == 200 &&
              OBJECT_DECODE(vmm_migration, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &seen, &err) == 0;
    vm->hold_until_ms = now_ms(vm) + (ok || answer->status != 0 ? TAKE_AGAIN_MS : VM_RETRY_MS);
    if (!ok)
        return;
    bool lost = seen.phase == vmm_migration_phase_LOST;
    if (lost && !vm->lost)
        vm->lost_since_ms = now_ms(vm);
    if (lost != vm->lost)
        log_info("vm-lacks-memory", "vm=%s lost=%d pages=%llu", vm->name, lost, (unsigned long long)seen.dirty_pages);
    vm->lost = lost;
    if (!lost && vm->waited_long) {
        vm->wait_no_more[0] = '\0';
        vm->waited_long = false;
    }
    if (seen.phase == vmm_migration_phase_DONE) {
        log_info("vm-taken", "vm=%s epoch=%llu", vm->name, (unsigned long long)vm->file.order.epoch);
        vm->hold_until_ms = vm->ask_at_ms = 0;
        arrival_note(vm, VM_ARRIVAL_END_WHOLE, "");
        if (seen.postcopy)
            OBJECT_TEXT(agent_vm, &vm->file, arrived, vm->file.arriving);
        arrival_over(vm);
        vm->context->changed(vm, vm->context->arg);
    } else if (lost || seen.phase == vmm_migration_phase_POSTCOPY) {
        bool news = !vm->lacks;
        vm->hold_until_ms = now_ms(vm) + VM_LACKING_LOOK_MS;
        vm->lacks = true;
        if (news)
            vm->context->changed(vm, vm->context->arg);
    } else if (seen.phase == vmm_migration_phase_READY || seen.phase == vmm_migration_phase_UNKNOWN) {
        vm->told = false;
    }
    OBJECT_CLEAR(vmm_migration, &seen);
}

static void vm_on_taking(const struct http_answer *answer, void *arg)
{
    struct local_vm *vm = arg;
    bool asked = vm->told;
    if (!vm_call_over(vm))
        return;
    /* Refused: it runs already, for the source has said so as well. */
    vm->told = vm->told || answer->status / 100 == 2 || answer->status == 409;
    if (vm->process && vm->owned && (asked || !vm->told || answer->status / 100 == 2))
        take_look(vm, answer);
    vm_tick(vm);
}

static void on_given_up(const struct http_answer *answer, void *arg)
{
    struct local_vm *vm = arg;
    if (!vm_call_over(vm))
        return;
    vm->hold_until_ms = now_ms(vm) + VM_LACKING_LOOK_MS; /* refused: the source was back at that moment, and it goes on */
    if (answer->status / 100 != 2 && vm->process)
        log_info("vm-lacks-memory", "vm=%s given_up=0 status=%d why=\"%s\"", vm->name, answer->status, answer->problem.text);
    vm_tick(vm);
}

static int vm_decide(struct local_vm *vm, enum vmm_migration_outcome outcome, uint64_t epoch, http_client_done done)
{
    struct vmm_migration_decision decision = {.head = {0}};
    struct bytes_writer body = {.data = NULL};
    OBJECT_SET(vmm_migration_decision, &decision, outcome, (uint32_t)outcome);
    OBJECT_SET(vmm_migration_decision, &decision, epoch, epoch);
    if (outcome == vmm_migration_outcome_THERE)
        OBJECT_SET(vmm_migration_decision, &decision, give_up, true);
    OBJECT_ENCODE(vmm_migration_decision, &decision, &body);
    int r = vm_call(vm, "PUT", "http://vmm/v1/vm/migration", &body, done);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_migration_decision, &decision);
    return r;
}

/* Part of its memory is where it was, and the way there is lost: is that given up? */
static bool waits_no_more(struct local_vm *vm)
{
    unsigned most_ms = vm->context->lost_ms != 0 ? vm->context->lost_ms : VM_LOST_MS;
    if (vm->lost && vm->wait_no_more[0] == '\0' && now_ms(vm) >= vm->lost_since_ms + most_ms) {
        snprintf(vm->wait_no_more, sizeof(vm->wait_no_more), "its VMM there could not be reached for %u s", most_ms / 1000);
        vm->waited_long = true;
        log_warning("vm-lacks-memory", "vm=%s given_up=1 why=\"%s\"", vm->name, vm->wait_no_more);
    }
    return vm->lost && vm->wait_no_more[0] != '\0';
}

/* It runs, as far as others are concerned. True: its VMM is being asked, or told. */
static bool vm_take_rest(struct local_vm *vm)
{
    bool as_wanted = vm->adjusted && (vm->file.order.wanted == vm_wanted_PAUSED) == vm->process_paused;
    uint64_t reached = as_wanted ? vm->file.order.generation : MAX(vm->file.generation, vm->came_generation);
    vm_settle_as(vm, vm->process_paused ? vm_state_PAUSED : vm_state_RUNNING,
                 vm->process_silent ? "its VMM does not answer"
                 : vm->lost ? "stands still: the host that it was on before cannot be reached, and has a part of its memory that is nowhere else"
                            : "part of its memory is still on its way from the host that it was on before",
                 MIN(reached, vm->file.order.generation));
    if (vm->closing)
        return true;
    if (vm->ask_at_ms <= now_ms(vm)) {
        vm_ask(vm);
        return vm->busy != VM_IDLE;
    }
    if (!waits_no_more(vm) || vm_decide(vm, vmm_migration_outcome_THERE, 0, on_given_up) < 0)
        return false;
    vm->busy = VM_TAKING;
    return true;
}

static void vm_take(struct local_vm *vm)
{
    vm->start_deadline_ms = 0;
    if (vm->lacks && vm_take_rest(vm))
        return;
    if (!vm->lacks)
        vm_progress(vm, "taking it over from the host that it comes from");
    int r = vm->told ? vm_call(vm, "GET", "http://vmm/v1/vm/migration", NULL, vm_on_taking)
                     : vm_decide(vm, vmm_migration_outcome_HERE, vm->file.order.epoch, vm_on_taking);
    if (r == 0)
        vm->busy = VM_TAKING;
    else
        vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
}

/* ---- devices of a running VMM ---- */

static void vm_on_adjusted(void *arg, int status, const struct error *err)
{
    struct local_vm *vm = arg;
    char text[REASON_SIZE];
    vm->busy = VM_IDLE;
    vm->adjust = NULL;
    if (vm->closing) {
        vm_maybe_finish(vm);
        return;
    }
    if (status == 0 && !vm->adjust_again)
        vm->moves = false;
    if (status == 0 && vm->moves_only) {
        vm_tick(vm);
        return;
    }
    if (status == 0) {
        vm->adjusted = !vm->adjust_again;
        if (vm->adjusted)
            OBJECT_CLEAR(vm_order, &vm->dropped);
    } else if (status != -ECANCELED && vm->process) {
        vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
        snprintf(text, sizeof(text), "its devices are not as wanted yet: %.360s", err->text);
        text_trim(text);
        if (strcmp(vm->reason, text) != 0) /* said once; it is tried again and again */
            log_warning("vm-adjust", "vm=%s error=\"%s\"", vm->name, err->text);
        vm_move(vm, vm->machine.state, text);
    }
    vm_tick(vm);
}

/* Has it disks that may be elsewhere than where they were made? */
static bool vm_has_moves(const struct local_vm *vm)
{
    const struct vm_disk *disks = vm->file.order.disks.items;
    for (size_t i = 0; i < vm->file.order.disks.count; i++)
        if (disks[i].volume != NULL || disks[i].place != NULL || disks[i].moving)
            return true;
    return false;
}

/* Does the order say where its disks are? Not while a task has told of a move of one, and nobody has said what was made of that. */
static bool vm_is_decided(void *arg)
{
    const struct local_vm *vm = arg;
    return vm->confirmed && vm->holds == 0;
}

/* What was left alone for want of that is looked at again. */
static void vm_adjust_moves(struct local_vm *vm)
{
    vm->adjusted = false;
    vm->adjust_again = vm->moves = true;
}

static bool vm_is_to_end(const struct local_vm *vm)
{
    enum vm_wanted wanted = vm->file.order.wanted;
    return vm->forgotten || wanted == vm_wanted_DELETED || wanted == vm_wanted_STOPPED || vm->context->down || vm->shutdown_asked ||
           vm->file.order.boot > vm->file.boot;
}

static void vm_adjust(struct local_vm *vm)
{
    vm->moves_only = vm_is_to_end(vm);
    const struct vm_adjust_options options = {.context = vm->context,
                                              .decided = vm_is_decided,
                                              .moves_only = vm->moves_only,
                                              .order = &vm->file.order,
                                              .dropped = &vm->dropped,
                                              .control_path = vm->control_path,
                                              .user = vm->file.user != 0 ? vm->file.user : geteuid(),
                                              .jailed = vm->file.user != 0,
                                              .pidfd = vm->watch != NULL ? vm->watch->pidfd : -1,
                                              .done = vm_on_adjusted,
                                              .arg = vm};
    if (vm->ask_at_ms <= now_ms(vm)) { /* a guest may keep a disk for as long as it likes: its VMM is asked how it is meanwhile */
        vm_ask(vm);
        if (vm->busy != VM_IDLE)
            return;
    }
    if (!vm->moves_only && vm->machine.state != vm_state_RUNNING && vm->machine.state != vm_state_PAUSED) /* its guest runs already */
        vm_move(vm, vm->process_paused ? vm_state_PAUSED : vm_state_RUNNING, "");
    vm->start_deadline_ms = 0;
    vm->busy = VM_ADJUSTING;
    vm->adjust_again = false;
    vm->adjust = vm_adjust_start(&options);
}

/* ---- prepare, own and remove: threads ---- */

/* A VM of shared pools that begins here. */
static int work_take_turn(struct vm_work *work)
{
    const struct vm_places *places = &work->vm->context->places;
    if (places->user_base == 0 || work->arriving || !pool_dir_shared(&work->order))
        return 0;
    int r = vmm_user_take_turn(places, places->user_base, &work->order, &work->turn, &work->err);
    work->user = work->turn.user;
    return r;
}

static void work_prepare(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    const struct vm_places *places = &work->vm->context->places;
    bool stale = work->disks_partial && !work->arriving; /* the migration that filled them came to nothing */
    bool strayed = work->elsewhere.disk != NULL && !work->arriving;
    work->status = strayed ? vm_files_elsewhere(places, &work->order, &work->elsewhere, &work->err) : 0;
    if (work->status == 0 && stale)
        work->status = vm_files_remove_disks(places, work->order.id, &work->err);
    if (work->status == 0)
        work->status = work_take_turn(work);
    uid_t user = work->user != 0 ? work->user : geteuid();
    if (work->status == 0)
        work->status = vm_files_prepare(places, &work->order, user, work->disks_made && !stale, work->arriving, &work->err);
}

/* What a start needs of pools, where a call may take as long as a file server is away. */
static void work_own(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    const struct vm_places *places = &work->vm->context->places;
    CLEANUP_FREE char *lock_path = vm_files_path(places, work->order.id, "vmm.lock");
    CLEANUP_FD int lock_fd = -1;
    work->status = vmm_process_lock(lock_path, &lock_fd, &work->err);
    if (work->status == 0 && work->user != 0)
        work->status = vmm_user_own_files(places, &work->order, work->arriving, work->user, &work->turn, &work->err);
    work->resume_bytes = work->status == 0 && !work->arriving ? vm_files_resume_bytes(places, &work->order) : 0;
}

static void work_remove(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    work->status = work->unfilled ? vm_files_remove_unfilled(&work->order, &work->err) : 0;
    if (work->status == 0)
        work->status = vm_files_remove(&work->vm->context->places, work->order.id, &work->order, work->nobodys, &work->err);
}

/* ---- disks that the cluster has forgotten of where they were ---- */

static void elsewhere_forget(struct local_vm *vm)
{
    OBJECT_CLEAR(volume_order, &vm->file.elsewhere);
    vm->file.head.present &= ~(UINT64_C(1) << (object_field(&agent_vm_desc, "elsewhere") - agent_vm_desc.fields));
    vm->unsaved = true;
}

/* The first order of a cluster that was rebuilt from a survivor: a move that this one knows nothing of any more has left its disk where the
 * order before said. Opened where it was earlier the guest would go back in time, and nobody would be told. */
static void elsewhere_note(struct local_vm *vm, const struct vm_order *order)
{
    const struct vm_order *known = &vm->file.order;
    const struct vm_disk *disks = order->disks.items, *before = known->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct vm_disk *was = NULL;
        for (size_t k = 0; k < known->disks.count; k++)
            if (before[k].volume == NULL && strcmp(before[k].name, disks[i].name) == 0)
                was = &before[k];
        bool same = was == NULL || (text_same(was->pool, disks[i].pool) && text_same(was->place, disks[i].place));
        if (same || disks[i].volume != NULL || disks[i].read_only || vm->file.arriving != NULL || vm->file.missing)
            continue;
        struct volume_order *to = &vm->file.elsewhere;
        const struct pool_order *pool = pool_dir_of(known, was);
        elsewhere_forget(vm);
        OBJECT_TEXT(volume_order, to, id, known->id);
        OBJECT_TEXT(volume_order, to, disk, was->name);
        OBJECT_SET(volume_order, to, size_bytes, MAX(was->size_bytes, object_field(&volume_order_desc, "size_bytes")->min));
        OBJECT_SET(volume_order, to, own, true);
        OBJECT_TEXT(volume_order, to, place, was->place);
        if (pool != NULL) {
            OBJECT_COPY(pool_order, &to->pool, pool);
            object_mark(&volume_order_desc, to, "pool");
        }
        object_mark(&agent_vm_desc, &vm->file, "elsewhere");
        log_warning("disk-elsewhere", "vm=%s disk=%s was=%s/%s is=%s/%s", vm->name, was->name, was->pool != NULL ? was->pool : "-",
                    was->place != NULL ? was->place : "-", disks[i].pool != NULL ? disks[i].pool : "-", disks[i].place != NULL ? disks[i].place : "-");
        return; /* one is enough to keep it from being started */
    }
}

/* Nothing has failed: whoever is at work on its replica is about to end. False: not so, or for too long. */
static bool vm_waits_for_replica(struct local_vm *vm, const struct vm_work *work)
{
    uint64_t limit_ms = vm->context->at_work_ms != 0 ? vm->context->at_work_ms : AT_WORK_MS;
    if (work->status == -EINPROGRESS && vm->at_work_since_ms == 0)
        vm->at_work_since_ms = now_ms(vm);
    if (work->status != -EINPROGRESS || now_ms(vm) - vm->at_work_since_ms >= limit_ms) {
        vm->at_work_since_ms = 0;
        return false;
    }
    vm_progress(vm, work->err.text);
    vm->hold_until_ms = now_ms(vm) + LOOK_AGAIN_MS;
    return true;
}

static struct vmm_turn turn_of_file(const struct agent_vm *file)
{
    return (struct vmm_turn){.epoch = file->turn_epoch, .user = file->turn_user, .before = file->turn_before};
}

static void turn_note(struct local_vm *vm, const struct vmm_turn *turn)
{
    const struct vmm_turn known = turn_of_file(&vm->file);
    if (known.epoch == turn->epoch && known.user == turn->user && known.before == turn->before)
        return;
    OBJECT_SET(agent_vm, &vm->file, turn_epoch, turn->epoch);
    OBJECT_SET(agent_vm, &vm->file, turn_user, turn->user);
    OBJECT_SET(agent_vm, &vm->file, turn_before, turn->before);
    vm->unsaved = true;
}

static void vm_on_prepared(struct local_vm *vm, const struct vm_work *work)
{
    if (vm_waits_for_replica(vm, work))
        return;
    if (work->status == 0) {
        vm->user = work->user;
        turn_note(vm, &work->turn);
        vm->prepared = object_equal(&vm_order_desc, &work->order, &vm->file.order);
        if (work->elsewhere.disk != NULL && vm->prepared)
            elsewhere_forget(vm);
        if (!vm->file.disks_made && work->order.disks.count > 0) { /* also of those in pools: nobody else makes them now */
            OBJECT_SET(agent_vm, &vm->file, disks_made, true);
            vm->unsaved = true;
        }
        if (vm->file.disks_partial && !work->arriving) {
            OBJECT_SET(agent_vm, &vm->file, disks_partial, false);
            vm->unsaved = true;
        }
        return;
    }
    bool hopeless = work->status == -EFBIG;
    vm_failed(vm, hopeless ? PLAN_END_IMPOSSIBLE : PLAN_END_NOT_STARTED, work->err.text);
}

static void vm_on_owned(struct local_vm *vm, const struct vm_work *work)
{
    vm->files_owned = work->status == 0;
    vm->resume_bytes = work->resume_bytes;
    if (work->status == 0 && !work->arriving && work->turn.user == work->user && work->turn.epoch == vm->file.turn_epoch)
        turn_note(vm, &(struct vmm_turn){.epoch = work->turn.epoch, .user = work->turn.user}); /* saved with what the start writes down */
    if (work->status == -EAGAIN)
        vm->looking = true; /* a VMM lives that we do not know of: it is the one */
    else if (work->status < 0)
        vm_failed(vm, PLAN_END_NOT_STARTED, work->err.text);
}

static void vm_on_removed(struct local_vm *vm, const struct vm_work *work)
{
    if (work->status == 0) {
        CLEANUP_FREE char *lease = vm_files_lease_path(&vm->context->places, vm->id);
        lease_page_close(&vm->page);
        unlink(lease);
        vm->gone = true;
        return;
    }
    vm->looking = work->status == -EAGAIN;
    vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
    vm_move(vm, vm_state_STOPPING, work->err.text);
}

static void vm_work_free(struct vm_work *work)
{
    OBJECT_CLEAR(vm_order, &work->order);
    OBJECT_CLEAR(volume_order, &work->elsewhere);
    free(work);
}

static void work_after(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    struct local_vm *vm = work->vm;
    enum vm_busy busy = vm->busy;
    vm->busy = VM_IDLE;
    if (!vm->closing && busy == VM_REMOVING)
        vm_on_removed(vm, work);
    else if (!vm->closing && busy == VM_OWNING)
        vm_on_owned(vm, work);
    else if (!vm->closing)
        vm_on_prepared(vm, work);
    vm_work_free(work);
    if (vm->closing)
        vm_maybe_finish(vm);
    else
        vm_tick(vm);
}

static struct vm_work *vm_work_make(struct local_vm *vm)
{
    struct vm_work *work = NEW(struct vm_work);
    work->vm = vm;
    work->user = vm->user;
    work->turn = turn_of_file(&vm->file);
    work->disks_made = vm->file.disks_made;
    work->disks_partial = vm->file.disks_partial;
    work->arriving = vm->file.arriving != NULL && !vm->owned;
    work->unfilled = work->arriving && (vm->file.arrival_fresh || vm->file.arrival_shut);
    OBJECT_COPY(volume_order, &work->elsewhere, &vm->file.elsewhere);
    OBJECT_COPY(vm_order, &work->order, &vm->file.order);
    return work;
}

static void vm_work_start(struct local_vm *vm, struct vm_work *work, enum vm_busy busy, void (*run)(struct pool_work *))
{
    CLEANUP_FREE char *lane = pool_work_lane(&work->order.pools);
    vm->busy = busy;
    pool_work_begin(vm->context->pool_works, vm->context->loop, lane, &work->work, run, work_after);
}

/* What for: to start it, to remove it, or to remove it without waiting for those that are away. */
enum pools_use { POOLS_ALL, POOLS_REMOVE, POOLS_REMOVE_THERE };

/* Are the pools of its disks there? 0, or why not, and which is not (@ret_away, may be NULL). In a removal, one that is none of this host's any more is passed over,
 * and taken out of @order. */
static int pools_check(const struct local_vm *vm, struct vm_order *order, enum pools_use use, const char **ret_away, struct error *err)
{
    struct pool_order *pools = order->pools.items;
    for (size_t i = 0; vm->context->pools != NULL && i < order->pools.count; i++) {
        int r = pool_watch_there(vm->context->pools, pools[i].id, pools[i].name, err);
        if (r < 0 && use != POOLS_ALL && (r == -ENOENT || use == POOLS_REMOVE_THERE)) {
            log_warning("vm-pool", "vm=%s pool=%s error=\"%s; what the VM has there stays\"", vm->name, pools[i].name, err->text);
            OBJECT_CLEAR(pool_order, &pools[i]);
            memmove(&pools[i], &pools[i + 1], (order->pools.count - i - 1) * sizeof *pools);
            order->pools.count--;
            i--;
        } else if (r < 0) {
            if (ret_away != NULL)
                *ret_away = pools[i].name;
            return r;
        }
    }
    return 0;
}

/* Why it is not removed yet, and what can be done. Where only leftovers of moves are in the pool the controllers let go of them. */
static void vm_waits_for_pool(const struct vm_order *order, const char *pool, const struct error *err, char *text, size_t size)
{
    const struct vm_disk *disks = order->disks.items;
    bool has_disk = false;
    for (size_t i = 0; i < order->disks.count; i++)
        has_disk |= text_same(disks[i].pool, pool);
    if (has_disk)
        snprintf(text, size, "its disks there are to be removed, and it waits for that: %.250s", err->text);
    else
        snprintf(text, size, "what moves have left of its disks there is to be removed; where that cannot be, forget it (drover vm forget-left "
                             "%.63s --disk NAME), and it stays there: %.180s", order->name, err->text);
}

/* What it has in pools that others reach may be another host's by now: those have nothing to do with this, nor have those of volumes. But what a
 * migration was to fill there (@unfilled) is nobody's. */
static void keep_local_pools(struct vm_order *order, bool unfilled)
{
    struct pool_order *pools = order->pools.items;
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = order->pools.count; i > 0; i--) {
        bool is_used = false;
        for (size_t k = 0; k < order->disks.count; k++)
            is_used |= disks[k].volume == NULL && text_same(disks[k].pool, pools[i - 1].name) &&
                       (pools[i - 1].kind == pool_kind_DIR || (unfilled && disks[k].arriving));
        if (is_used)
            continue;
        OBJECT_CLEAR(pool_order, &pools[i - 1]);
        memmove(&pools[i - 1], &pools[i], (order->pools.count - i) * sizeof *pools);
        order->pools.count--;
    }
}

/* With all that it has in pools, if that is nobody's. */
static void vm_remove(struct local_vm *vm)
{
    struct vm_work *work;
    struct error err = {.code = 0};
    if (vm->next != NULL) { /* it is being ended */
        vm->hold_until_ms = now_ms(vm) + LEASE_LOOK_AGAIN_MS;
        return;
    }
    bool nobodys = vm->nobodys || (!vm->forgotten && vm->file.order.wanted == vm_wanted_DELETED);
    if (vm->machine.state != vm_state_STOPPING)
        vm_move(vm, vm_state_STOPPING, "removing its files");
    work = vm_work_make(vm);
    work->nobodys = nobodys;
    if (!nobodys)
        keep_local_pools(&work->order, work->unfilled);
    if (vm->removes_since_ms == 0)
        vm->removes_since_ms = now_ms(vm);
    /* One that lives on another host: that is not to wait for what this one has fled from. */
    bool gives_up = !nobodys && now_ms(vm) >= vm->removes_since_ms + VM_REMOVE_POOLS_MS;
    const char *away = NULL;
    if (pools_check(vm, &work->order, gives_up ? POOLS_REMOVE_THERE : POOLS_REMOVE, &away, &err) < 0) {
        char text[400];
        vm_waits_for_pool(&work->order, away, &err, text, sizeof text);
        vm_work_free(work);
        vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
        vm_move(vm, vm_state_STOPPING, text);
        return;
    }
    vm_work_start(vm, work, VM_REMOVING, work_remove);
}

static void vm_on_image(int status, const struct error *err, const char *path, void *arg)
{
    struct local_vm *vm = arg;
    (void)path;
    vm->busy = VM_IDLE;
    vm->wait = NULL;
    if (vm->closing) {
        vm_maybe_finish(vm);
        return;
    }
    if (status < 0 && status != -ECANCELED)
        vm_failed(vm, status == -EBADMSG ? PLAN_END_IMPOSSIBLE : PLAN_END_NOT_STARTED, err->text);
    vm_tick(vm);
}

/* ---- steps ---- */

static bool wants_to_run_here(const struct local_vm *vm)
{
    uint32_t wanted = vm->file.order.wanted;
    return !vm->forgotten && (wanted == vm_wanted_RUNNING || wanted == vm_wanted_PAUSED);
}

static bool wants_to_run(const struct local_vm *vm)
{
    return wants_to_run_here(vm) && !vm->context->down;
}

/* Is a disk to be made of the image's? Else all are volumes, begin empty, or have been made: then the image only says how it boots, and a
 * VM whose host was lost does not wait for a copy that nobody may have any more. */
static bool needs_image_disk(const struct local_vm *vm)
{
    const struct vm_order *order = &vm->file.order;
    const struct vm_disk *disks = order->disks.items;
    bool arrives = vm->file.arriving != NULL && !vm->owned, own = vm->file.disks_made && !vm->file.disks_partial;
    for (size_t i = 0; i < order->disks.count; i++) {
        bool made = own || (disks[i].pool != NULL ? order->disks_made : OBJECT_HAS(vm_order, order, replica) && vm_files_disk_moves(&disks[i]));
        if (disks[i].image && (arrives || !made))
            return true;
    }
    return false;
}

/* The next image that is not there yet; then disks and taps. */
static void vm_prepare(struct local_vm *vm)
{
    const struct vm_order *order = &vm->file.order;
    const struct artifact *images[] = {&order->kernel, &order->initrd, &order->disk};
    static const char *const steps[] = {"fetching the kernel", "fetching the initial RAM disk",
                                        "fetching the disk image"};
    for (size_t i = 0; i < ARRAY_SIZE(images); i++) {
        char path[IMAGE_CACHE_PATH_BYTES_MAX];
        struct error err = {.code = 0};
        if (images[i]->sha256 == NULL || (images[i] == &order->disk && !needs_image_disk(vm)) ||
            image_cache_find(vm->context->images, images[i], path, sizeof(path)) == 0)
            continue;
        vm_progress(vm, steps[i]);
        if (image_cache_get(vm->context->images, images[i], vm_on_image, vm, &vm->wait, &err) == 0)
            vm->busy = VM_FETCHING;
        else
            vm_failed(vm, PLAN_END_NOT_STARTED, err.text);
        return;
    }
    if (vm->servers != NULL) { /* they are being ended */
        vm->hold_until_ms = now_ms(vm) + LOOK_AGAIN_MS;
        return;
    }
    vm->servers_ended = false;
    vm_progress(vm, "making disks and network interfaces");
    const struct vm_places *places = &vm->context->places;
    struct error err = {.code = 0};
    int r = vm_save(vm, &err); /* its directory is there then */
    bool arrives = vm->file.arriving != NULL && !vm->owned;
    vm->user = 0;
    if (r == 0)
        r = pools_check(vm, &vm->file.order, POOLS_ALL, NULL, &err);
    if (r == 0 && places->user_base != 0)
        r = arrives                  ? vmm_user_allot_arriving(places, places->user_base, order, &vm->user, &err)
            : pool_dir_shared(order) ? 0 /* work_take_turn */
                                     : vmm_user_allot(places, places->user_base, vm->id, false, &vm->user, &err);
    if (r == 0)
        vm_work_start(vm, vm_work_make(vm), VM_PREPARING, work_prepare);
    else
        vm_failed(vm, PLAN_END_NOT_STARTED, err.text);
}

/* What a VMM of @epoch may rely on; @starts: one that has no page yet. */
static uint64_t vm_page_value(const struct local_vm *vm, uint64_t epoch, bool starts)
{
    const struct vm_context *context = vm->context;
    const struct plan_page facts = {
        .ha = vm->file.order.ha,
        .disarmed = context->disarmed,
        .forgotten = vm->forgotten,
        .astray = vm_is_astray(vm),
        .gone = vm->gone,
        .leaving = context->leaving,
        .settling = now_ms(vm) < context->settles_until_ms,
        .named = vm->lease_generation,
        .epoch = epoch,
        .order_epoch = vm->file.order.epoch,
        .starts = starts,
        .present = starts ? 1 : lease_page_get(&vm->page),
    };
    return context->lease != NULL ? agent_plan_page(context->lease, &facts, agent_lease_now_ns()) : 0;
}

/* Steps 2 to 6 of vmm_process.h, step 1 made sure of. */
static int vm_start_locked(struct local_vm *vm, struct error *err)
{
    const struct vm_places *places = &vm->context->places;
    CLEANUP_FREE char *config_path = vm_files_path(places, vm->id, "config.json");
    CLEANUP_FREE char *log_path = vm_files_path(places, vm->id, "vmm.log");
    CLEANUP_FREE char *exit_path = vm_files_path(places, vm->id, "exit.json");
    CLEANUP_FREE char *lock_path = vm_files_path(places, vm->id, "vmm.lock");
    CLEANUP_FREE char *lease_path = vm_files_lease_path(places, vm->id);
    CLEANUP_FREE char *cgroup = NULL;
    CLEANUP_FREE char *incoming = vm->file.arriving != NULL ? vm_arrival_address(vm) : NULL; /* not this host's yet */
    CLEANUP_FREE char *incoming_disks = incoming != NULL ? vm_arrival_disks_address(vm) : NULL;
    CLEANUP_FD int lock_fd = -1;
    const struct vm_order *order = &vm->file.order;
    struct vmm_process_id id;
    if (incoming != NULL && vm->file.arrival_fresh) { /* an agent of an older version lets somebody in without a word of it */
        OBJECT_SET(agent_vm, &vm->file, arrival_fresh, false);
        OBJECT_SET(agent_vm, &vm->file, arrival_shut, true);
        vm->unsaved = true;
    }
    int pidfd, r = vm_save(vm, err);
    if (r == 0)
        r = vmm_process_lock(lock_path, &lock_fd, err);
    if (r == 0)
        r = vm_files_write_config(places, order, incoming != NULL, err);
    if (r == 0)
        r = lease_page_open(&vm->page, lease_path, vm_page_value(vm, order->epoch, true), err);
    if (r == 0 && vm->user != 0 && !vm->files_owned)
        r = vmm_user_own_files(places, order, vm->file.arriving != NULL && !vm->owned, vm->user, NULL, err);
    if (r == 0 && places->cgroups != NULL)
        r = vmm_cgroup_make(places->cgroups, vm->id, order->vcpus, order->memory_bytes, &cgroup, err);
    if (r < 0)
        return r;
    unlink(vm->control_path);
    unlink(exit_path);
    uint64_t resume_bytes = vm->files_owned ? vm->resume_bytes : incoming == NULL ? vm_files_resume_bytes(places, order) : 0; /* it reads that before it answers */
    const struct vmm_process_spawn spawn = {
        .program = vm->context->vmm_path,
        .config_path = config_path,
        .log_path = log_path,
        .boot_id = vm->context->boot_id,
        .epoch = order->epoch,
        .user = vm->user,
        .incoming = incoming,
        .incoming_disks = incoming_disks,
        .cgroup = cgroup,
    };
    r = vmm_process_start(&spawn, lock_fd, &id, &pidfd, err);
    if (r == 0) {
        vm_watch_process(vm, &id, pidfd, true);
        vm->start_deadline_ms += resume_bytes / VM_RESUME_BYTES_PER_MS + (resume_bytes > 0 ? order->memory_bytes / VM_HOLES_BYTES_PER_MS : 0);
        log_info("vmm-started", "vm=%s pid=%d epoch=%llu resume_bytes=%llu", vm->name, id.pid, (unsigned long long)id.epoch,
                 (unsigned long long)resume_bytes);
    }
    return r;
}

/* A VMM opens disks that other hosts reach only under the lease: without it the start would be for nothing. */
static bool vm_lease_allows_start(const struct local_vm *vm)
{
    if (!pool_dir_reached(&vm->file.order) || vm->file.arriving != NULL)
        return true;
    uint64_t value = vm_page_value(vm, vm->file.order.epoch, true);
    return value == 0 || value > agent_lease_now_ns() + LEASE_FOR_START_NS;
}

static void vm_start(struct local_vm *vm)
{
    struct error err = {.code = 0};
    if (vm->next != NULL) {
        vm_progress(vm, "waiting for the end of a process that was to take it over");
        vm->hold_until_ms = now_ms(vm) + LEASE_LOOK_AGAIN_MS;
        return;
    }
    if (!vm_lease_allows_start(vm)) {
        vm_progress(vm, "waiting for the host's lease: its disks are where other hosts reach them");
        vm->hold_until_ms = now_ms(vm) + LEASE_LOOK_AGAIN_MS;
        return;
    }
    if (!pool_rbd_is_served(&vm->context->places, &vm->file.order)) { /* one has died since it was prepared */
        vm->prepared = false;
        return;
    }
    if (vm->file.order.pools.count > 0 && !vm->files_owned) {
        if (vm_save(vm, &err) < 0) { /* the turn that was taken, before the first file is given away */
            vm_failed(vm, PLAN_END_NOT_STARTED, err.text);
            return;
        }
        vm_progress(vm, "giving its disks to its VMM's user");
        vm_work_start(vm, vm_work_make(vm), VM_OWNING, work_own);
        return;
    }
    if (vm->owned) {
        arrival_note(vm, VM_ARRIVAL_END_BROKEN, ENDED_UNWATCHED);
        arrival_over(vm); /* what held it is not there any more */
    }
    if (vm->end == PLAN_END_BROKEN || vm->end == PLAN_END_CLEAN)
        OBJECT_SET(agent_vm, &vm->file, restarts, vm->file.restarts + 1);
    OBJECT_SET(agent_vm, &vm->file, boot, vm->file.order.boot);
    OBJECT_SET(agent_vm, &vm->file, user, vm->user);
    vm->unsaved = true;
    vm_progress(vm, "starting its VMM");
    int r = vm_start_locked(vm, &err);
    vm->files_owned = false;
    if (r == -EAGAIN)
        vm->looking = true; /* a VMM lives that we do not know of: it is the one */
    else if (r < 0)
        vm_failed(vm, PLAN_END_NOT_STARTED, err.text);
}

static void vm_wait_answer(struct local_vm *vm)
{
    if (vm->machine.state != vm_state_RUNNING && vm->machine.state != vm_state_PAUSED)
        vm_progress(vm, "waiting for its VMM");
    else if (vm->process_silent)
        vm_move(vm, vm->machine.state, "its VMM does not answer");
    if (vm->ask_at_ms <= now_ms(vm))
        vm_ask(vm);
    vm_wake_at(vm, vm->ask_at_ms);
}

/* Which pool of its disks is away, and why, in words; "": none is. What its guest has of such a disk waits, or fails. */
static bool pool_away(const struct local_vm *vm, char text[REASON_SIZE])
{
    const struct pool_watches *pools = vm->context->pools;
    const struct vm_order *order = &vm->file.order;
    const struct vm_disk *disks = order->disks.items;
    struct error err = {.code = 0};
    text[0] = '\0';
    for (size_t i = 0; pools != NULL && pools->learned && i < order->disks.count && text[0] == '\0'; i++) {
        const struct pool_order *pool = disks[i].pool != NULL && !disks[i].leaving ? pool_dir_of(order, &disks[i]) : NULL;
        if (pool != NULL && pool_watch_there(pools, pool->id, pool->name, &err) == -EAGAIN)
            snprintf(text, REASON_SIZE, "a pool of its disks is away: %.360s", err.text);
    }
    return text[0] != '\0';
}

void vm_look_at_pools(struct local_vm *vm)
{
    char away[REASON_SIZE];
    bool works = vm->busy == VM_PREPARING || vm->busy == VM_OWNING || vm->busy == VM_REMOVING;
    if (!vm->closing && works && pool_away(vm, away))
        vm_move(vm, vm->machine.state, away);
}

/* Killed, and still there: its last calls of the kernel have to return first. */
static void vm_wait_killed(struct local_vm *vm)
{
    char away[REASON_SIZE], text[REASON_SIZE];
    if (vm->killed_ms == 0)
        vm->killed_ms = now_ms(vm);
    if (now_ms(vm) >= vm->killed_ms + VM_KILLED_MS) {
        pool_away(vm, away);
        snprintf(text, sizeof text, "its VMM was killed, and process %d is still in a call of the kernel%s%.300s", vm->process_id.pid,
                 away[0] != '\0' ? "; " : "", away);
        vm_move(vm, vm->machine.state, text);
    }
    vm_wake_in(vm, VM_KILLED_MS);
}

static void vm_wait_end(struct local_vm *vm)
{
    if (vm->kill_sent)
        vm_wait_killed(vm);
    else
        vm_wake_at(vm, vm->stop_asked ? vm->stop_deadline_ms : vm->shutdown_deadline_ms);
}

/* As wanted. A VMM that runs is asked now and then. */
static void vm_rest(struct local_vm *vm)
{
    if (!vm->process && vm->next != NULL) { /* it is being ended, and its disks are not free before that */
        vm->hold_until_ms = now_ms(vm) + LEASE_LOOK_AGAIN_MS;
        return;
    }
    if (!vm->process) {
        vm_settle(vm, vm_state_STOPPED, "");
        return;
    }
    vm->start_deadline_ms = 0;
    if (now_ms(vm) - vm->process_since_ms >= VM_STEADY_MS)
        vm->tries.failures = 0;
    char away[REASON_SIZE];
    pool_away(vm, away);
    vm_settle(vm, vm->process_paused ? vm_state_PAUSED : vm_state_RUNNING,
              vm->process_silent                       ? "its VMM does not answer"
              : vm->lease_held                         ? "held: no majority of the controllers supports the lease of its host"
              : vm->process_paused && vm->process_stuck ? vm->stuck_reason
                                                        : away);
    if (vm->closing || successor_ask(vm))
        return;
    if (vm->ask_at_ms <= now_ms(vm))
        vm_ask(vm);
    vm_wake_at(vm, successor_is_orphan(vm) ? MIN(vm->ask_at_ms, vm->next_look_ms) : vm->ask_at_ms);
}

static void vm_wait_backoff(struct local_vm *vm)
{
    if (vm->end == PLAN_END_NOT_STARTED)
        vm_settle(vm, vm_state_FAILED, vm->file.missing ? VM_MISSING_TEXT : vm->end_text);
    else
        vm_move(vm, vm_state_STARTING, vm->end_text);
    vm_wake_at(vm, vm->tries.backoff_until_ms);
}

/* It is ended because its host goes down. Written down before: an agent after us begins it anew then, and does not take it for
 * what its guest wanted. */
static void vm_end_with_host(struct local_vm *vm)
{
    struct agent_vm *file = &vm->file;
    if (!vm->context->down || !wants_to_run_here(vm) || (OBJECT_HAS(agent_vm, file, state) && file->state == vm_state_STOPPING))
        return;
    OBJECT_SET(agent_vm, file, state, vm_state_STOPPING);
    OBJECT_TEXT(agent_vm, file, reason, "its host went down");
    vm->unsaved = true;
    vm_save_or_log(vm);
}

static void vm_shutdown(struct local_vm *vm)
{
    char text[64];
    uint64_t grace_ms = vm->file.order.stop_grace_s * UINT64_C(1000), down_ms = vm->context->down_until_ms;
    if (vm->context->down)
        grace_ms = MIN(grace_ms, down_ms > now_ms(vm) ? down_ms - now_ms(vm) : 0);
    unsigned grace_s = (unsigned)((grace_ms + 999) / 1000);
    vm_end_with_host(vm);
    snprintf(text, sizeof(text), "its guest has %u s to shut down", grace_s);
    vm_move(vm, vm_state_STOPPING, text);
    vm->shutdown_asked = true;
    vm->shutdown_deadline_ms = now_ms(vm) + grace_ms;
    if (!vm_tell(vm, vmm_move_SHUTDOWN))
        vm->shutdown_deadline_ms = 0;
}

static void vm_stop(struct local_vm *vm)
{
    const char *why = vm->forgotten                                ? "it is not this host's any more"
                      : vm->file.order.wanted == vm_wanted_DELETED ? "it is wanted deleted"
                      : vm->shutdown_asked                         ? "its guest did not shut down in time"
                      : vm->file.order.wanted == vm_wanted_STOPPED ? "it is wanted stopped"
                      : vm->context->down                          ? "its host goes down"
                                                                   : "it is to be started anew";
    vm_end_with_host(vm);
    vm_move(vm, vm_state_STOPPING, why);
    vm->stop_asked = true;
    vm->stop_deadline_ms = now_ms(vm) + VM_STOP_MS;
    /* Another host may have it by a migration that its VMM is still in the midst of. Whether that is so the controllers are asked beside
     * this (migrate_out.h), and nobody else tells the target to run. */
    if (vm->forgotten && vm->file.leaving != NULL && !vm->nobodys)
        left_set(vm);
    else
        vm->stop_failed = !vm_tell(vm, vmm_move_STOPPED);
    vm_wake_at(vm, vm->stop_deadline_ms);
}

static void vm_kill(struct local_vm *vm)
{
    int r = vmm_process_signal(vm->watch->pidfd, SIGKILL);
    log_warning("vmm-killed", "vm=%s pid=%d why=\"%s\" result=%d", vm->name, vm->process_id.pid,
                vm->stop_asked ? "it did not end when asked" : "it did not answer in time", r);
    vm->kill_sent = true; /* the pidfd tells when it is gone */
}

static void vm_rest_arriving(struct local_vm *vm)
{
    vm->start_deadline_ms = 0;
    vm_progress(vm, "waiting for what the migration brings");
    if (vm->ask_at_ms <= now_ms(vm))
        vm_ask(vm);
    vm_wake_at(vm, vm->ask_at_ms);
}

/* Carry out one step. True: look at once for the next one; false: something will tick. */
static bool vm_do(struct local_vm *vm, enum plan_step step)
{
    switch (step) {
    case PLAN_REST:
        vm_rest(vm);
        return false;
    case PLAN_REST_OFF:
        vm_settle(vm, vm_state_STOPPED, "the guest powered off");
        return false;
    case PLAN_REST_FAILED:
        vm_settle(vm, vm_state_FAILED, vm->file.missing ? VM_MISSING_TEXT
                                       : vm->end_text[0] == '\0' && is_released(vm) ? "it could not be started here" : vm->end_text);
        return false;
    case PLAN_REST_GONE:
        vm_settle(vm, vm_state_DELETED, "");
        return false;
    case PLAN_REST_LENDS:
        vm_move(vm, vm_state_STOPPING, "it runs on another host, and part of its memory is still here");
        return false;
    case PLAN_REST_ARRIVING:
        vm_rest_arriving(vm);
        return false;
    case PLAN_REST_LEFT:
        vm_move(vm, vm_state_STOPPING, vm->left ? "it runs on another host now"
                                                : "its VMM ended while a migration took it away; whose it is, the controllers say");
        return false;
    case PLAN_REST_DOWN:
        vm_end_with_host(vm);
        vm_move(vm, vm_state_STOPPING, "its host goes down");
        return false;
    case PLAN_REST_UNCONFIRMED:
        vm_move(vm, vm_state_STARTING, "waiting for the controllers to say that it is still this host's");
        return false;
    case PLAN_WAIT_TASK:
        if (wants_to_run(vm))
            vm_progress(vm, "waiting for a task on its disks");
        return false;
    case PLAN_WAIT_BACKOFF:
        vm_wait_backoff(vm);
        return false;
    case PLAN_WAIT_END:
        vm_wait_end(vm);
        return false;
    case PLAN_WAIT_ANSWER:
        vm_wait_answer(vm);
        return false;
    case PLAN_PREPARE:
        vm_prepare(vm);
        break;
    case PLAN_START:
        vm_start(vm);
        break;
    case PLAN_TAKE:
        vm_take(vm);
        break;
    case PLAN_PAUSE:
    case PLAN_RESUME:
        if (!vm_tell(vm, step == PLAN_PAUSE ? vmm_move_PAUSED : vmm_move_RUNNING))
            vm->hold_until_ms = now_ms(vm) + VM_RETRY_MS;
        break;
    case PLAN_ADJUST:
        vm_adjust(vm);
        break;
    case PLAN_SHUTDOWN:
        vm_shutdown(vm);
        break;
    case PLAN_STOP:
        vm_stop(vm);
        break;
    case PLAN_KILL:
        vm_kill(vm);
        break;
    case PLAN_REMOVE:
        vm_remove(vm);
        break;
    case PLAN_STEP_COUNT:
        break;
    }
    return true;
}

static struct plan_vm vm_facts(const struct local_vm *vm)
{
    const struct vm_order *order = &vm->file.order;
    uint64_t now = now_ms(vm);
    char away[REASON_SIZE];
    return (struct plan_vm){
        .wanted = order->wanted,
        .forgotten = vm->forgotten,
        .restart = OBJECT_HAS(vm_order, order, restart) ? order->restart : restart_policy_ON_FAILURE,
        .confirmed = vm->confirmed,
        .reboot = order->boot > vm->file.boot,
        .gone = vm->gone,
        .arriving = vm->file.arriving != NULL && !vm->owned,
        .taking = vm->file.arriving != NULL && vm->owned,
        .missing = vm->file.missing,
        .released = is_released(vm),
        .down = vm->context->down,
        .leaving = vm->file.leaving != NULL || vm->left,
        .lends = vm->file.lends && (vm->forgotten || vm->left) && !vm->nobodys,
        .lacks = vm->lacks,
        .process = vm->process,
        .process_old = vm->process && (vm->process_id.epoch < order->epoch || vm->stale),
        .process_answers = vm->process_answers,
        .process_paused = vm->process_paused,
        .process_stuck = vm->process_stuck && (now_ms(vm) < vm->stuck_until_ms || pool_away(vm, away)), /* it would fail at once */
        .start_overdue = vm->start_deadline_ms != 0 && now >= vm->start_deadline_ms,
        .gentle = order->stop_grace_s > 0 && vm->process_answers && !vm->process_paused && !vm->process_silent && !vm->lost,
        .shutdown_asked = vm->shutdown_asked,
        .shutdown_over = vm->shutdown_asked && now >= vm->shutdown_deadline_ms,
        .stop_asked = vm->stop_asked,
        .stop_overdue = vm->stop_asked && (vm->stop_failed || now >= vm->stop_deadline_ms),
        .kill_sent = vm->kill_sent,
        .held = vm->holds > 0 || (vm->file.order.replica_held && !vm->process && !vm->forgotten &&
                                  vm->file.order.wanted != vm_wanted_DELETED), /* a new VMM would not wait for its replica */
        .moves = vm->moves && vm->confirmed && vm->holds == 0,
        .differs = !vm->adjusted,
        .prepared = vm->prepared,
        .end = vm->end,
        .backoff_over = now >= vm->tries.backoff_until_ms,
        .worn = agent_plan_worn(&vm->tries, order),
    };
}

/* It could not be started here for as often as it may, and another host may have it. That is written down before it is said: no agent
 * after us starts this epoch either, whatever order it is given. */
static void vm_release(struct local_vm *vm)
{
    struct error err = {.code = 0};
    bool used_up = agent_plan_used_up(&vm->tries, &vm->file.order, vm->end);
    bool off = !vm->process && !vm->looking && vm->next == NULL && vm->file.arriving == NULL && vm->file.leaving == NULL && !vm->left;
    if (!vm->may_relocate || !used_up || !off || is_released(vm) || !wants_to_run(vm) || !vm->confirmed || vm->holds > 0 ||
        vm->file.missing || vm_is_astray(vm) || OBJECT_HAS(agent_vm, &vm->file, elsewhere))
        return;
    OBJECT_SET(agent_vm, &vm->file, released, vm->file.order.epoch);
    vm->unsaved = true;
    if (vm_save(vm, &err) < 0) {
        log_error("vm-save", "vm=%s error=\"%s, not given up\"", vm->name, err.text);
        OBJECT_SET(agent_vm, &vm->file, released, 0);
        return;
    }
    log_info("vm-released", "vm=%s epoch=%llu why=\"%s\"", vm->name, (unsigned long long)vm->file.order.epoch, vm->end_text);
    vm_settle(vm, vm_state_FAILED, vm->end_text);
    if (!vm->closing)
        vm->context->changed(vm, vm->context->arg);
}

/* All decisions. Ends when something is under way, or all that is left is to wait. */
static void vm_tick(struct local_vm *vm)
{
    while (!vm->closing) {
        if (vm->busy == VM_FETCHING && !wants_to_run(vm))
            image_cache_cancel(vm->wait); /* its end comes as -ECANCELED */
        if (vm->busy != VM_IDLE)
            return;
        if (now_ms(vm) < vm->hold_until_ms) {
            vm_wake_at(vm, vm->hold_until_ms);
            return;
        }
        if (vm->looking && !vm->process) {
            struct error err = {.code = 0};
            int r = vm_look(vm, &err);
            if (r < 0 && r != -EAGAIN)
                vm_move(vm, vm->machine.state, err.text);
            continue;
        }
        vm_release(vm);
        if (vm->closing)
            return;
        struct plan_vm facts = vm_facts(vm);
        enum plan_step step = agent_plan_vm(&facts);
        vm->files_owned = vm->files_owned && step == PLAN_START;
        if (!vm_do(vm, step))
            return;
    }
}

/* ---- servers of its disks ---- */

static void servers_work(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    const struct vm_places *places = &work->vm->context->places;
    uid_t user = work->user != 0 ? work->user : geteuid();
    work->status = work->nobodys ? pool_rbd_end(places, work->order.id, NULL, &work->err) : pool_rbd_revive(places, &work->order, user, &work->err);
}

static void servers_after(struct pool_work *pool_work)
{
    struct vm_work *work = CONTAINER_OF(pool_work, struct vm_work, work);
    struct local_vm *vm = work->vm;
    if (work->status < 0)
        log_warning("rbd-server", "vm=%s error=\"%s\"", vm->name, work->err.text);
    vm->servers_ended = work->nobodys && work->status == 0;
    vm_work_free(work);
    vm->servers = NULL;
    vm->servers_again_ms = now_ms(vm) + SERVERS_AGAIN_MS;
    if (vm->closing)
        vm_maybe_finish(vm);
}

/* @ends: the VM is off, and none is needed. */
static void servers_begin(struct local_vm *vm, bool ends)
{
    vm->servers = vm_work_make(vm);
    vm->servers->user = vm->file.user;
    vm->servers->nobodys = ends;
    CLEANUP_FREE char *lane = pool_work_lane(&vm->servers->order.pools);
    pool_work_begin(vm->context->pool_works, vm->context->loop, lane, &vm->servers->work, servers_work, servers_after);
}

void vm_look_at_servers(struct local_vm *vm)
{
    struct error err;
    bool rests = vm->machine.state == vm_state_STOPPED || vm->machine.state == vm_state_FAILED;
    bool off = !vm->process && !vm->looking && vm->next == NULL && vm->busy == VM_IDLE && rests;
    if (vm->closing || vm->gone || vm->servers != NULL || now_ms(vm) < vm->servers_again_ms)
        return;
    if (off && !vm->servers_ended) { /* whatever the order says: volumes may have been detached since */
        servers_begin(vm, true);
        return;
    }
    if (!vm->process || vm->kill_sent || vm->left || !pool_rbd_have_died(&vm->context->places, &vm->file.order))
        return;
    bool known = vm->context->pools == NULL || vm->context->pools->learned; /* where no controller has spoken yet it was there before */
    if (known && pools_check(vm, &vm->file.order, POOLS_ALL, NULL, &err) < 0)
        return; /* Ceph is away: threads would wait for it that others need */
    log_warning("rbd-server", "vm=%s why=\"one has ended while its VMM runs\"", vm->name);
    servers_begin(vm, false);
}

/* ---- from outside ---- */

static struct local_vm *vm_alloc(const struct vm_context *context, const struct agent_vm *file)
{
    struct local_vm *vm = NEW(struct local_vm);
    vm->context = context;
    vm->file = *file;
    snprintf(vm->id, sizeof(vm->id), "%s", file->order.id);
    snprintf(vm->name, sizeof(vm->name), "%s", file->order.name);
    uv_timer_init(context->loop, &vm->timer);
    vm->timer.data = vm;
    return vm;
}

static struct local_vm *vm_make(const struct vm_context *context, const struct vm_order *order, uint64_t index,
                                const char *arriving)
{
    struct agent_vm file = {.format = 0};
    struct error err = {.code = 0};
    OBJECT_SET(agent_vm, &file, format, 1);
    OBJECT_COPY(vm_order, &file.order, order);
    object_mark(&agent_vm_desc, &file, "order");
    OBJECT_SET(agent_vm, &file, boot, order->boot);
    OBJECT_SET(agent_vm, &file, index, index);
    OBJECT_SET(agent_vm, &file, cluster_epoch, MAX(context->cluster_epoch, UINT64_C(1)));
    if (arriving != NULL) {
        OBJECT_TEXT(agent_vm, &file, arriving, arriving);
        OBJECT_SET(agent_vm, &file, arrival_fresh, true);
        OBJECT_SET(agent_vm, &file, disks_partial, vm_files_disks_move(order));
    }
    struct local_vm *vm = vm_alloc(context, &file);
    vm->confirmed = true;
    vm->unsaved = true;
    state_machine_init(&vm->machine, &machine_desc, vm->name, vm_state_PENDING);
    CLEANUP_FREE char *dir = vm_files_path(&context->places, vm->id, "");
    if (order->wanted == vm_wanted_DELETED && access(dir, F_OK) < 0 && order->pools.count == 0) {
        vm->gone = true;
    } else if (vm_files_control_path(&context->places, vm->id, vm->control_path, &err) < 0) {
        vm_failed(vm, PLAN_END_IMPOSSIBLE, err.text);
    } else {
        vm_save_or_log(vm); /* a start tries again, and does not happen without */
        vm->looking = true;
    }
    vm_wake_in(vm, 0);
    return vm;
}

struct local_vm *vm_create(const struct vm_context *context, const struct vm_order *order, uint64_t index)
{
    return vm_make(context, order, index, NULL);
}

struct local_vm *vm_create_missing(const struct vm_context *context, const struct vm_order *order, uint64_t index)
{
    struct local_vm *vm = vm_make(context, order, index, NULL);
    CLEANUP_FREE char *disks = vm_files_path(&context->places, vm->id, "disks");
    if (access(disks, F_OK) == 0 || vm->gone)
        return vm; /* but its vm.json was: what there is is used */
    if (!vm_files_disks_move(order)) {
        vm->hold_until_ms = now_ms(vm) + VM_SETTLE_MS; /* nothing is lost with it; but another host may say that it has it */
        return vm;
    }
    OBJECT_SET(agent_vm, &vm->file, missing, true);
    vm->unsaved = true;
    vm_save_or_log(vm);
    return vm;
}

struct local_vm *vm_create_arriving(const struct vm_context *context, const struct vm_order *order, const char *operation,
                                    uint64_t index)
{
    return vm_make(context, order, index, operation);
}

/* Where an agent before us had come to, and the parting word of a VMM that ran then and does not now, if it could leave one. */
static void vm_recall(struct local_vm *vm)
{
    const struct agent_vm *file = &vm->file;
    struct plan_recall found = {
        .wanted = file->order.wanted,
        .state = OBJECT_HAS(agent_vm, file, state) ? file->state : vm_state_PENDING,
        .settled = file->generation == file->order.generation,
        .arriving = file->arriving != NULL,
        .process = vm->process,
        .looking = vm->looking,
        .started = file->pid != 0,
        .same_boot = file->boot_id != NULL && strcmp(file->boot_id, vm->context->boot_id) == 0,
        .parting = -1,
    };
    bool ended = !vm->process && (found.state == vm_state_RUNNING || found.state == vm_state_PAUSED), left;
    enum vm_state state;
    if (ended && found.started && wants_to_run(vm))
        found.parting = parting_word(vm, (pid_t)file->pid);
    if (found.parting == STATUS_MIGRATED && was_upgraded(vm))
        found.parting = -1;
    agent_plan_recall(&found, &state, &vm->end, &left);
    put_reason(vm->reason, vm->process ? "" : ended ? ENDED_UNWATCHED : file->reason != NULL ? file->reason : "");
    state_machine_init(&vm->machine, &machine_desc, vm->name, state);
    if (vm->end == PLAN_END_CLEAN && ended)
        put_reason(vm->end_text, "the guest powered off");
    else if (vm->end == PLAN_END_NOT_STARTED && !found.arriving)
        put_reason(vm->end_text, vm->reason);
    else if (vm->end != PLAN_END_NONE && vm->end != PLAN_END_CLEAN)
        put_reason(vm->end_text, ENDED_UNWATCHED);
    if (left)
        left_set(vm);
}

int vm_load(const struct vm_context *context, const char *id, struct local_vm **ret_vm, struct error *err)
{
    struct agent_vm file = {.format = 0};
    int r = vm_files_load(&context->places, id, &file, err);
    if (r < 0)
        return r;
    struct local_vm *vm = vm_alloc(context, &file);
    if (vm_files_control_path(&context->places, vm->id, vm->control_path, err) < 0)
        vm->control_path[0] = '\0'; /* it had fitted once; nobody will answer there, and its reason says so */
    struct error look = {.code = 0};
    r = vm_look(vm, &look);
    if (r < 0 && r != -EAGAIN)
        log_warning("vm-look", "vm=%s error=\"%s\"", vm->name, look.text);
    vm->astray_since_ms = now_ms(vm);
    if (vm->file.arrived != NULL) {
        snprintf(vm->arrival, sizeof(vm->arrival), "%s", vm->file.arrived);
        vm->arrival_end = VM_ARRIVAL_END_WHOLE;
    }
    vm_recall(vm);
    log_info("vm-loaded", "vm=%s id=%s state=%s epoch=%llu generation=%llu", vm->name, vm->id,
             state_machine_name(&vm->machine), (unsigned long long)vm->file.order.epoch,
             (unsigned long long)vm->file.order.generation);
    vm_wake_in(vm, 0);
    *ret_vm = vm;
    return 0;
}

/* The VM that a migration was to bring is this host's: by that one, or in another way while its VMM waited here. */
static void vm_arrived(struct local_vm *vm, const struct vm_order *order)
{
    bool handed = order->handover != NULL && strcmp(order->handover, vm->file.arriving) == 0 &&
                  order->epoch == vm->file.order.epoch;
    log_info("vm-arrived", "vm=%s epoch=%llu by=%s vmm=%d", vm->name, (unsigned long long)order->epoch,
             handed ? "migration" : "other", vm->process);
    vm->end = PLAN_END_NONE;
    vm->tries.failures = 0;
    vm->hold_until_ms = 0;
    vm->came_generation = handed ? vm->file.order.generation : 0;
    vm->stale = !handed && (vm->process || vm->looking);
    vm->owned = handed && (vm->process || vm->looking);
    /* The source has let go when all of it lasted here, and not before. Only a hand-over brings a VM with disks of its own to
     * another host: where its epoch has moved on since (an operator stopped and started it while no agent was here to
     * see), it has been handed over, though the order does not say so any more. These are its only disks then. */
    if ((handed || order->epoch > vm->file.order.epoch) && vm->file.disks_partial) {
        OBJECT_SET(agent_vm, &vm->file, disks_partial, false);
        vm->unsaved = true;
        vm_save_or_log(vm);
    }
    if (pool_dir_reached(order)) /* it looked at their sizes before it had them: a volume may have to grow still */
        vm->adjusted = false;
    if (handed && !vm->owned)
        arrival_note(vm, VM_ARRIVAL_END_BROKEN, ENDED_UNWATCHED);
    if (!vm->owned)
        arrival_over(vm);
    vm_wake_in(vm, 0);
}

/* Of a VM that runs nothing is other than the number: a recovery does so with all of them at once, and to write each down at once would
 * keep the loop from the host's lease for seconds. It is written down when the number is reached. */
static bool is_told_again(struct local_vm *vm, const struct vm_order *order)
{
    struct vm_order *known = &vm->file.order;
    uint64_t had = known->generation;
    OBJECT_SET(vm_order, known, generation, order->generation);
    bool same = object_equal(&vm_order_desc, known, order);
    OBJECT_SET(vm_order, known, generation, had);
    return same && vm->process && now_ms(vm) < vm->context->settles_until_ms;
}

static uint64_t spread_ms(const struct local_vm *vm)
{
    uint64_t hash = 5381;
    for (const char *at = vm->id; *at != '\0'; at++)
        hash = hash * 33 + (unsigned char)*at;
    return hash % VM_TOLD_AGAIN_MS;
}

/* A field that is there says so to agents that do not know it, too: they leave the VM alone. */
static void lends_clear(struct local_vm *vm)
{
    vm->file.lends = false;
    vm->file.head.present &= ~(UINT64_C(1) << (object_field(&agent_vm_desc, "lends") - agent_vm_desc.fields));
    vm->unsaved = true;
}

void vm_give_order(struct local_vm *vm, const struct vm_order *order, uint64_t index)
{
    struct vm_order *known = &vm->file.order;
    bool same = object_equal(&vm_order_desc, known, order), told_again = !same && is_told_again(vm, order);
    vm->answer_index = index;
    bool newer = agent_plan_is_new_wish(known, order);
    if (vm->file.arriving != NULL && !vm->owned)
        vm_arrived(vm, order);
    if (vm_is_astray(vm)) {
        elsewhere_note(vm, order);
        not_astray(vm);
        if (same)
            vm_save_or_log(vm);
    }
    if (same && vm->confirmed)
        return;
    if (!vm->confirmed && (vm_has_moves(vm) || vm->process)) /* a move that an agent before gave up has left no trace in the order */
        vm_adjust_moves(vm);
    vm->confirmed = true;
    if (!same) {
        if (vm_adjust_needed(known, order))
            vm->adjusted = false;
        vm->moves = vm->moves || order->replica_session > 0; /* a guest that is to end may wait for its replica */
        if (vm->process)
            vm_adjust_dropped(known, order, &vm->dropped);
        else
            OBJECT_CLEAR(vm_order, &vm->dropped);
        if (order->epoch > known->epoch) {
            OBJECT_TEXT(agent_vm, &vm->file, leaving, NULL);
            if (vm->file.lends)
                lends_clear(vm);
            if (vm->file.missing)
                OBJECT_SET(agent_vm, &vm->file, missing, false);
        }
        if (vm->adjust != NULL) { /* for an order that counts no more */
            vm->adjust_again = true;
            vm_adjust_cancel(vm->adjust);
        }
        OBJECT_CLEAR(vm_order, known);
        OBJECT_COPY(vm_order, known, order);
        OBJECT_SET(agent_vm, &vm->file, index, index);
        vm->prepared = false;
        vm->unsaved = true;
        if (!told_again)
            vm_save_or_log(vm);
        log_info("vm-order", "vm=%s wanted=%s epoch=%llu generation=%llu boot=%llu", vm->name,
                 vm_wanted_desc.names[order->wanted], (unsigned long long)order->epoch,
                 (unsigned long long)order->generation, (unsigned long long)order->boot);
    }
    if (order->epoch > vm->left_epoch)
        vm->left = false;
    if (newer) {
        vm->end = PLAN_END_NONE;
        vm->tries = (struct plan_tries){.failures = 0};
        vm->hold_until_ms = vm->at_work_since_ms = 0;
    }
    vm_wake_in(vm, told_again ? spread_ms(vm) : 0);
}

void vm_lease_confirm(struct local_vm *vm, uint64_t generation)
{
    vm->lease_generation = generation;
}

bool vm_lease_rules(const struct local_vm *vm)
{
    return vm->process && vm->file.order.ha;
}

void vm_lease(struct local_vm *vm)
{
    if (vm->process && vm->file.order.ha && vm->context->lease != NULL && vm->page.word == NULL && !vm->kill_sent) {
        log_warning("vmm-killed", "vm=%s pid=%d why=\"the page of its lease is lost: it would not learn that the lease has ended\" result=%d",
                    vm->name, vm->process_id.pid, vmm_process_signal(vm->watch->pidfd, SIGKILL));
        vm->kill_sent = true; /* the pidfd tells when it is gone; it is begun anew, by its restart policy */
    }
    lease_page_put(&vm->page, vm_page_value(vm, vm->process ? vm->process_id.epoch : vm->file.order.epoch, false));
}

void vm_may_relocate(struct local_vm *vm, bool may)
{
    if (may && !vm->may_relocate && !vm->process)
        vm_wake_in(vm, 0);
    vm->may_relocate = may;
}

void vm_go_down(struct local_vm *vm)
{
    vm->shutdown_deadline_ms = MIN(vm->shutdown_deadline_ms, vm->context->down_until_ms); /* of a guest that was asked before */
    vm->hold_until_ms = 0;
    vm_wake_in(vm, 0);
}

void vm_forget(struct local_vm *vm, bool gone)
{
    if (vm->forgotten)
        return;
    vm->nobodys = gone;
    log_info("vm-forgotten", "vm=%s id=%s", vm->name, vm->id);
    vm->forgotten = true;
    vm->hold_until_ms = 0;
    vm_wake_in(vm, 0);
}

/* ---- a new VMM for it ---- */

static int successor_refusal(const struct local_vm *vm, struct error *err)
{
    if (!vm->process || !vm->process_answers || vm->stop_asked || vm->shutdown_asked || vm->kill_sent)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "its VMM does not run, or does not answer");
    if (vm->process_id.epoch != vm->file.order.epoch || vm->stale || vm->file.arriving != NULL || vm->file.leaving != NULL ||
        vm->left || vm->forgotten)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "it comes to this host, or leaves it");
    if (!vm->adjusted)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "its devices are not as wanted yet");
    return 0;
}

int vm_successor_start(struct local_vm *vm, const char *operation, struct error *err)
{
    const struct vm_places *places = &vm->context->places;
    CLEANUP_FREE char *config_path = vm_files_path(places, vm->id, VM_NEXT_CONFIG);
    CLEANUP_FREE char *lock_path = vm_files_path(places, vm->id, VM_NEXT_LOCK);
    CLEANUP_FREE char *log_path = vm_files_path(places, vm->id, "vmm.log");
    CLEANUP_FREE char *incoming = vm_successor_address(vm);
    CLEANUP_FREE char *cgroup = NULL;
    CLEANUP_FD int lock_fd = -1;
    const struct vm_order *order = &vm->file.order;
    char control[VM_FILES_CONTROL_PATH_SIZE];
    int pidfd, r = successor_refusal(vm, err);
    if (r == 0 && vm->next != NULL)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a new VMM is taking it over already");
    if (r == 0 && successor_control_path(vm, control) < 0)
        r = error_set(err, -ENAMETOOLONG, ERROR_INVALID, "the path of its control socket leaves no room for a second one");
    if (r < 0)
        return r;
    OBJECT_TEXT(agent_vm, &vm->file, upgrading, operation);
    vm->unsaved = true;
    successor_unlink(vm); /* whoever may have made them: these are to be the agent's */
    if ((r = vm_save(vm, err)) < 0 || (r = vmm_process_lock(lock_path, &lock_fd, err)) < 0 ||
        (r = vm_files_write_next_config(places, order, err)) < 0)
        return r;
    if (places->cgroups != NULL && (r = vmm_cgroup_make(places->cgroups, vm->id, order->vcpus, order->memory_bytes, &cgroup, err)) < 0)
        return r;
    const struct vmm_process_spawn spawn = {.program = vm->context->vmm_path,
                                            .config_path = config_path,
                                            .log_path = log_path,
                                            .boot_id = vm->context->boot_id,
                                            .epoch = order->epoch,
                                            .user = vm->file.user,
                                            .incoming = incoming,
                                            .handed_over = true,
                                            .control = control,
                                            .cgroup = cgroup};
    r = vmm_process_start(&spawn, lock_fd, &vm->next_id, &pidfd, err);
    if (r < 0)
        return r;
    vm->next = watch_make(vm, pidfd);
    vm->next_child = true;
    log_info("vmm-successor", "vm=%s pid=%d epoch=%llu operation=%s", vm->name, vm->next_id.pid,
             (unsigned long long)vm->next_id.epoch, operation);
    return 0;
}

char *vm_successor_address(const struct local_vm *vm)
{
    return xasprintf("unix:%s/%s/%s", vm->context->places.vms_dir, vm->id, VM_NEXT_SOCKET);
}

bool vm_has_successor(const struct local_vm *vm)
{
    return vm->next != NULL;
}

void vm_successor_take_up(struct local_vm *vm)
{
    vm->next_look_ms = 0;
}

char *vm_successor_control(const struct local_vm *vm)
{
    char control[VM_FILES_CONTROL_PATH_SIZE];
    return vm->next != NULL && successor_control_path(vm, control) == 0 ? xstrdup(control) : NULL;
}

void vm_successor_end(struct local_vm *vm)
{
    successor_kill(vm);
}

const char *vm_upgraded(const struct local_vm *vm)
{
    return vm->file.upgraded;
}

/* ---- migrations ---- */

char *vm_arrival_address(const struct local_vm *vm)
{
    return xasprintf("unix:%s/%s/%s", vm->context->places.vms_dir, vm->id, VM_ARRIVAL_SOCKET);
}

char *vm_arrival_disks_address(const struct local_vm *vm)
{
    if (!vm_files_disks_move(&vm->file.order))
        return NULL;
    return xasprintf("unix:%s/%s/%s", vm->context->places.vms_dir, vm->id, VM_ARRIVAL_DISKS_SOCKET);
}

int vm_arrival_open(struct local_vm *vm, struct error *err)
{
    if (vm->file.arrival_shut) {
        vm->file.arrival_shut = false;
        vm->file.head.present &= ~(UINT64_C(1) << (object_field(&agent_vm_desc, "arrival_shut") - agent_vm_desc.fields));
        vm->unsaved = true;
    }
    return vm_save(vm, err);
}

bool vm_replica_may_begin(const struct local_vm *vm, uint64_t session)
{
    const struct vm_order *order = &vm->file.order;
    return vm->confirmed && !vm->unsaved && vm->adjusted && order->replica_session == session && order->replica_held;
}

bool vm_replica_is_over(const struct local_vm *vm)
{
    const struct vm_order *order = &vm->file.order;
    return order->replica_session == 0 || (!order->replica_held && (vm->adjusted || !vm->process));
}

char *vm_departure_path(const struct local_vm *vm, const char *operation, bool disks)
{
    return xasprintf("%s/%s/out%s-%.8s.sock", vm->context->places.vms_dir, vm->id, disks ? "-disks" : "", operation);
}

enum vm_arrival vm_arrival_of(const struct local_vm *vm, const char **ret_why)
{
    *ret_why = vm->end_text;
    if (vm->file.arriving == NULL || vm->owned || vm->forgotten)
        return VM_ARRIVAL_NONE;
    if (vm->process)
        return vm->process_answers ? VM_ARRIVAL_LISTENING : VM_ARRIVAL_PREPARING;
    return vm->end != PLAN_END_NONE ? VM_ARRIVAL_FAILED : VM_ARRIVAL_PREPARING;
}

const char *vm_arriving(const struct local_vm *vm)
{
    return vm->owned ? NULL : vm->file.arriving;
}

bool vm_was_given(const struct local_vm *vm, uint64_t index)
{
    return !vm->forgotten && vm->confirmed && vm->answer_index == index;
}

const char *vm_leaving(const struct local_vm *vm)
{
    return vm->file.leaving;
}

int vm_leave_begin(struct local_vm *vm, const char *operation, struct error *err)
{
    if (vm->next != NULL)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a new VMM of its host is taking it over; try again when that is done");
    OBJECT_TEXT(agent_vm, &vm->file, leaving, operation);
    OBJECT_TEXT(agent_vm, &vm->file, upgrading, NULL); /* what ends with status 7 now has gone to another host */
    vm->unsaved = true;
    vm->has_departed = false;
    return vm_save(vm, err);
}

void vm_leave_end(struct local_vm *vm)
{
    if (vm->file.leaving == NULL)
        return;
    OBJECT_TEXT(agent_vm, &vm->file, leaving, NULL);
    vm->unsaved = true;
    if (!vm->gone && !vm->forgotten)
        vm_save_or_log(vm);
    vm_wake_in(vm, 0);
}

void vm_left(struct local_vm *vm)
{
    left_set(vm);
    if (!vm->process || vm->stop_asked)
        return;
    vm_move(vm, vm_state_STOPPING, "it runs on another host now");
    vm->stop_asked = true;
    vm->stop_deadline_ms = now_ms(vm) + VM_STOP_MS;
    vm_wake_at(vm, vm->stop_deadline_ms);
}

void vm_not_left(struct local_vm *vm)
{
    if (!vm->forgotten || vm->file.leaving == NULL)
        return;
    OBJECT_TEXT(agent_vm, &vm->file, leaving, NULL);
    if (vm->process && vm->stop_asked)
        vm->stop_deadline_ms = now_ms(vm);
    vm_wake_in(vm, 0);
}

const struct migration_result *vm_departed(const struct local_vm *vm)
{
    return vm->has_departed ? &vm->departed : NULL;
}

const char *vm_taking(const struct local_vm *vm)
{
    return vm->owned ? vm->file.arriving : NULL;
}

bool vm_is_taking(const struct local_vm *vm)
{
    return vm->owned;
}

bool vm_lacks_memory(const struct local_vm *vm)
{
    return vm->owned && vm->lacks;
}

void vm_give_up_waiting(struct local_vm *vm, const char *why)
{
    if (why == NULL && !vm->waited_long)
        vm->wait_no_more[0] = '\0';
    if (why == NULL || !vm_lacks_memory(vm) || vm->wait_no_more[0] != '\0')
        return;
    put_reason(vm->wait_no_more, why);
    vm->waited_long = false;
    log_warning("vm-lacks-memory", "vm=%s given_up=%d why=\"%s\"", vm->name, vm->lost, vm->wait_no_more);
    vm_wake_in(vm, 0);
}

enum vm_arrival_end vm_arrival_end_of(const struct local_vm *vm, const char *operation, const char **ret_why)
{
    *ret_why = vm->arrival_why;
    return strcmp(vm->arrival, operation) == 0 ? vm->arrival_end : VM_ARRIVAL_END_NONE;
}

const char *vm_arrival_noted(const struct local_vm *vm)
{
    return vm->arrival_end != VM_ARRIVAL_END_NONE ? vm->arrival : NULL;
}

void vm_arrival_forget(struct local_vm *vm)
{
    vm->arrival[0] = '\0';
    vm->arrival_end = VM_ARRIVAL_END_NONE;
    if (vm->file.arrived == NULL)
        return;
    OBJECT_TEXT(agent_vm, &vm->file, arrived, NULL);
    vm->unsaved = true;
    if (!vm->gone && !vm->forgotten)
        vm_save_or_log(vm);
}

void vm_lend_begin(struct local_vm *vm, bool there)
{
    if (there)
        left_set(vm);
    if (vm->file.lends)
        return;
    log_info("vm-lends", "vm=%s epoch=%llu", vm->name, (unsigned long long)vm->file.order.epoch);
    OBJECT_SET(agent_vm, &vm->file, lends, true);
    vm->unsaved = true;
    vm_save_or_log(vm); /* where it is not kept an agent after us finds out from the VMM, in VM_STOP_MS */
    vm->stop_asked = vm->stop_asked && vm->nobodys; /* else it was only given time to end by itself */
    vm_wake_in(vm, 0);
}

void vm_lend_end(struct local_vm *vm)
{
    if (!vm->file.lends)
        return;
    lends_clear(vm);
    if (vm->process) /* else its files may be going away */
        vm_save_or_log(vm);
    vm_wake_in(vm, 0);
}

bool vm_lends(const struct local_vm *vm)
{
    return vm->file.lends;
}

bool vm_has_process(const struct local_vm *vm)
{
    return vm->process || vm->looking;
}

uid_t vm_user(const struct local_vm *vm)
{
    return vm->file.user != 0 ? vm->file.user : geteuid();
}

void vm_walls(const struct local_vm *vm, uid_t *ret_user, int *ret_pidfd)
{
    *ret_user = vm->file.user;
    *ret_pidfd = vm->watch != NULL ? vm->watch->pidfd : -1;
}

void vm_hold(struct local_vm *vm, bool held)
{
    ASSERT(held || vm->holds > 0);
    vm->holds += held ? 1u : -1u;
    if (vm->holds != 0 || vm->closing)
        return;
    if (vm_has_moves(vm))
        vm_adjust_moves(vm);
    vm_wake_in(vm, 0);
}

void vm_keep_user(struct local_vm *vm, uid_t user)
{
    bool is_known = user == 0 && vm->file.turn_user != 0; /* or it was begun by an agent of an earlier version */
    uid_t kept = user != 0 ? user : vm->file.user;
    if (vm->context->places.user_base == 0 || kept == 0 || is_known || !pool_dir_shared(&vm->file.order))
        return;
    turn_note(vm, &(struct vmm_turn){.epoch = vm->file.order.epoch, .user = kept});
    vm_save_or_log(vm);
}

int vm_disks_are_made(struct local_vm *vm, struct error *err)
{
    const struct vm_places *places = &vm->context->places;
    const struct vm_order *order = &vm->file.order;
    const struct vm_disk *disks = order->disks.items;
    uid_t user = 0;
    int r = 0;
    if (vm->file.disks_made)
        return 0;
    if (places->user_base != 0)
        r = vmm_user_allot_filled(places, places->user_base, order, &user, err);
    bool fresh = r == 1;
    r = MIN(r, 0);
    for (size_t i = 0; r == 0 && user != 0 && i < order->disks.count; i++)
        r = vmm_user_own_disk(places, order, &disks[i], user, err);
    if (r < 0)
        return r;
    if (user != 0)
        OBJECT_SET(agent_vm, &vm->file, user, user);
    if (fresh)
        vm_keep_user(vm, user);
    OBJECT_SET(agent_vm, &vm->file, disks_made, true);
    vm->unsaved = true;
    vm_save_or_log(vm);
    vm_wake_in(vm, 0);
    return 0;
}

void vm_look_at_moves(struct local_vm *vm)
{
    if (vm->closing)
        return;
    vm_adjust_moves(vm);
    vm_wake_in(vm, 0);
}

enum vm_disks vm_disks(const struct local_vm *vm)
{
    bool starts = vm->busy == VM_PREPARING || vm->busy == VM_OWNING;
    if (vm->gone || vm->forgotten || vm->busy == VM_REMOVING || vm->file.disks_partial)
        return VM_DISKS_NONE;
    if (!vm->file.disks_made)
        return vm->process || vm->looking || starts ? VM_DISKS_CHANGING : VM_DISKS_UNMADE;
    if (vm->process && vm->process_answers && !vm->stop_asked && !vm->shutdown_asked && !vm->kill_sent)
        return VM_DISKS_IN_USE;
    return vm->process || vm->next != NULL || vm->looking || starts ? VM_DISKS_CHANGING : VM_DISKS_FREE;
}

const struct vm_context *vm_context_of(const struct local_vm *vm)
{
    return vm->context;
}

static void vm_timer_closed(uv_handle_t *handle)
{
    struct local_vm *vm = handle->data;
    vm->timer_closed = true;
    vm_maybe_finish(vm);
}

/* Every reason to stay alive. The watch is not one: it knows that nobody wants to hear of it. */
static void vm_maybe_finish(struct local_vm *vm)
{
    if (!vm->closing || !vm->timer_closed || vm->busy != VM_IDLE || vm->servers != NULL)
        return;
    void (*closed)(void *arg) = vm->closed;
    void *arg = vm->closed_arg;
    lease_page_close(&vm->page);
    OBJECT_CLEAR(agent_vm, &vm->file);
    OBJECT_CLEAR(vm_order, &vm->dropped);
    free(vm);
    if (closed != NULL)
        closed(arg);
}

void vm_close(struct local_vm *vm, void (*closed)(void *arg), void *arg)
{
    ASSERT(!vm->closing);
    vm->closing = true;
    vm->closed = closed;
    vm->closed_arg = arg;
    if (vm->wait != NULL)
        image_cache_cancel(vm->wait);
    if (vm->call != NULL)
        http_call_cancel(vm->call);
    if (vm->adjust != NULL)
        vm_adjust_cancel(vm->adjust);
    watch_close(vm);
    watch_end(&vm->next);
    uv_close((uv_handle_t *)&vm->timer, vm_timer_closed);
}

/* What other hosts had of these before it is found by nobody who has lost the end of the log. */
static void put_places(const struct vm_order *order, struct vm_seen *seen)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct pool_order *pool = disks[i].volume != NULL && disks[i].place != NULL ? pool_dir_of(order, &disks[i]) : NULL;
        if (pool == NULL || pool->kind != pool_kind_DIR)
            continue;
        struct volume_place *place = OBJECT_ADD(vm_seen, seen, volumes);
        OBJECT_TEXT(volume_place, place, id, disks[i].volume);
        OBJECT_TEXT(volume_place, place, place, disks[i].place);
    }
}

void vm_put_seen(const struct local_vm *vm, struct vm_seen *seen)
{
    put_places(&vm->file.order, seen);
    OBJECT_TEXT(vm_seen, seen, id, vm->id);
    OBJECT_SET(vm_seen, seen, epoch, vm->file.order.epoch);
    OBJECT_SET(vm_seen, seen, generation, vm->file.generation);
    OBJECT_SET(vm_seen, seen, state, vm->machine.state);
    OBJECT_SET(vm_seen, seen, restarts, vm->file.restarts);
    if (vm->machine.state == vm_state_STARTING || vm->machine.state == vm_state_STOPPING) {
        char step[200];
        snprintf(step, sizeof(step), "%.199s", vm->reason);
        OBJECT_TEXT(vm_seen, seen, step, step);
    }
    OBJECT_TEXT(vm_seen, seen, reason, vm->reason);
    if (vm->program[0] != '\0')
        OBJECT_TEXT(vm_seen, seen, program, vm->program);
    if (is_released(vm))
        OBJECT_SET(vm_seen, seen, released, true);
    if (vm_is_astray(vm))
        OBJECT_SET(vm_seen, seen, astray, true);
    if (vm->wait != NULL) {
        uint64_t done, total;
        image_cache_progress(vm->wait, &done, &total);
        OBJECT_SET(vm_seen, seen, progress_done, done);
        OBJECT_SET(vm_seen, seen, progress_total, total);
    }
}

const char *vm_id(const struct local_vm *vm)
{
    return vm->id;
}

const struct vm_order *vm_order_of(const struct local_vm *vm)
{
    return &vm->file.order;
}

void vm_new_cluster_epoch(struct local_vm *vm)
{
    OBJECT_SET(agent_vm, &vm->file, index, 0);
    vm->astray_since_ms = now_ms(vm);
}

void vm_halt(struct local_vm *vm)
{
    if (vm->file.order.wanted == vm_wanted_STOPPED)
        return;
    log_warning("vm-halt", "vm=%s id=%s why=\"another host has it by now; all of it is kept here\"", vm->name, vm->id);
    OBJECT_SET(vm_order, &vm->file.order, wanted, vm_wanted_STOPPED);
    vm->unsaved = true;
    vm_save_or_log(vm);
    vm_wake_in(vm, 0);
}

uint64_t vm_answer_index(const struct local_vm *vm)
{
    return vm->answer_index;
}

uint64_t vm_order_index(const struct local_vm *vm)
{
    return vm->file.index;
}

bool vm_is_removing(const struct local_vm *vm)
{
    return vm->busy == VM_REMOVING || (vm->forgotten && !vm->gone);
}

bool vm_is_gone(const struct local_vm *vm)
{
    return vm->gone;
}

bool vm_is_forgotten(const struct local_vm *vm)
{
    return vm->forgotten;
}

bool vm_is_fetching(const struct local_vm *vm)
{
    return vm->busy == VM_FETCHING;
}

enum vm_state vm_state_of(const struct local_vm *vm)
{
    return (enum vm_state)vm->machine.state;
}

uint64_t vm_restarts(const struct local_vm *vm)
{
    return vm->file.restarts;
}

const char *vm_control_path(const struct local_vm *vm)
{
    return vm->process && vm->process_answers ? vm->control_path : NULL;
}

int vm_usage(const struct local_vm *vm, struct vmm_process_usage *ret_usage)
{
    return vm->process ? vmm_process_usage(vm->process_id.pid, ret_usage) : -ESRCH;
}

int vm_observe(const struct local_vm *vm, struct vmm_process_vcpus *ret_vcpus, uint64_t *ret_epoch)
{
    *ret_epoch = vm->process_id.epoch;
    return vm->process ? vmm_process_vcpus(vm->process_id.pid, ret_vcpus) : -ESRCH;
}
