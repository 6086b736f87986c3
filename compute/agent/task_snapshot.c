/* The tasks snapshot-create, -revert and -delete.
 *
 *   start --> WAITING --VM off, its disks free--> WORKING (a child, blocking calls) --> over
 *               |  ^  '--it runs--> ASKING (its VMM, by the control socket) ------------> over
 *               |  |                  | it has ended, is busy                             ^
 *               |  '------------------+-- a VMM starts or ends: every SNAPSHOT_LOOK_MS    |
 *               '---- cancel, error ------------------------------------------------------'
 *                        a disk that somebody reads (a backup of a VM that is off): WAITING, every SNAPSHOT_BUSY_MS
 *                        error of a snapshot with memory: UNDOING, by the VMM or a child, then over
 *
 * A VMM is asked for a point in time (POST /v1/vm/points), and meanwhile how far it is where it writes its memory, too; of a
 * removal it says at once that the name is gone, and is then looked at until its merges are done. A VM that is off is held
 * meanwhile (vm_hold): no VMM starts under the child, which works with no more rights than the VM's VMM, for that has written what
 * it reads. Begun twice, each of the three comes to the same: a disk that has the snapshot already is passed over, as is one that
 * has it no more, and a revert is done again.
 *
 * A snapshot with memory (migration/snapshot_memory.h) is there when the memory's file is: it gets its name last. One whose VMM has
 * ended meanwhile is not tried again, for what was to be kept has ended with it; what it has left is removed.
 *
 * Of a volume alone it is the same with that disk alone. One that no VM has is where its order says: a child works on it at once, with the
 * rights of whose it is; no VM gets it meanwhile (controller/fsm/apply_snapshot.c).
 *
 * Cancel: WAITING: at once, but for a create with memory, which an agent before this one may have begun: that is undone, as is one
 * whose order has gone. A create that writes memory is given up by its VMM; any other, or a revert, is short, and ends by itself. A
 * delete that works has taken the name away already, so the snapshot is gone: it is ended as done, and what was not merged yet is
 * with the next one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"
#include "compute/agent/vmm_user.h"
#include "migration/snapshot_memory.h"

#define SNAPSHOT_LOOK_MS 200
#define SNAPSHOT_BUSY_MS 1000
#define CLEARED_MAX 5u
#define SNAPSHOT_ASK_MS 120000 /* for a VMM's answer: files are made and synced */
#define SNAPSHOT_FREEZE_MS 10000 /* for a guest's agent that is to freeze file systems, and is not there */
#define MEMORY_BYTES_PER_MS 20000u /* that a VMM's memory is written at, at least: it is waited for so much longer */
#define STEP_DROPPED "giving space back" /* from here on a delete cannot be undone */

struct snapshot_task {
    struct agent_task *task; /* NULL: nobody wants to know any more */
    struct agent *agent;
    char vm[37];
    uv_timer_t timer;
    struct task_child *child;
    struct http_call *call;
    struct http_call *looking; /* how far that is */
    bool holding, dropped, killed;
    bool undoing; /* it has failed, and `err` says why */
    bool cancelling;
    bool waited;   /* for a reader: what a try before that has done of some disks is not known */
    bool orphaned; /* nobody wants it any more, and its VMM is making it: that has to go before the task does */
    bool dropping; /* its VMM was asked to remove it: from there on it goes to the end */
    unsigned busy; /* answers in a row */
    uint64_t unfrozen_ms; /* since when its guest's agent is waited for; 0: it is not */
    unsigned cleared; /* how often a name that nobody knew the disks of was taken away */
    /* how it ended */
    bool over;
    enum operation_state state;
    struct error err;
    struct snapshot_result result;
    bool has_result;
};

static struct local_vm *find_vm(const struct snapshot_task *s)
{
    return s->agent->stopping ? NULL : map_get(&s->agent->vms, s->vm); /* an agent that stops has closed its VMs */
}

static enum task_kind kind_of(const struct snapshot_task *s)
{
    return s->task->order.task.kind;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct snapshot_task *s = handle->data;
    struct agent_task *task = s->task;
    enum operation_state state = s->state;
    struct error err = s->err;
    if (s->has_result) {
        OBJECT_COPY(snapshot_result, &task->seen.snapshot, &s->result);
        object_mark(&task_seen_desc, &task->seen, "snapshot");
    }
    OBJECT_CLEAR(snapshot_result, &s->result);
    free(s);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

static void hold(struct snapshot_task *s, bool held)
{
    struct local_vm *vm = find_vm(s);
    if (s->holding == held || vm == NULL || s->agent->stopping) /* an agent that stops has closed its VMs */
        return;
    s->holding = held;
    vm_hold(vm, held);
}

/* The end, whatever the reason: the VM is let go of, and the kind's memory goes. Once. */
static void over(struct snapshot_task *s, enum operation_state state)
{
    ASSERT(s->child == NULL && s->call == NULL);
    if (s->over)
        return;
    s->over = true;
    s->state = state;
    hold(s, false);
    uv_timer_stop(&s->timer);
    if (s->looking != NULL)
        http_call_cancel(s->looking); /* its end closes the timer */
    else
        uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}

static enum operation_state failed_state(const struct snapshot_task *s)
{
    return s->cancelling ? operation_state_CANCELLED : operation_state_FAILED;
}

/* A snapshot with the VM's memory is to be made. */
static bool keeps_memory(const struct snapshot_task *s)
{
    return kind_of(s) == task_kind_SNAPSHOT_CREATE && s->task->order.task.snapshot.ram;
}

static uint64_t patience_ms(const struct snapshot_task *s)
{
    const struct local_vm *vm = find_vm(s);
    return SNAPSHOT_ASK_MS + (keeps_memory(s) && vm != NULL ? vm_order_of(vm)->memory_bytes / MEMORY_BYTES_PER_MS : 0);
}

/* ---- the child ---- */

static void on_timer(uv_timer_t *timer);

static void child_told(const struct task_seen *seen, void *arg)
{
    struct snapshot_task *s = arg;
    s->dropped = s->dropped || (seen->step != NULL && strcmp(seen->step, STEP_DROPPED) == 0);
    if (!s->task->stopping)
        agent_task_progress(s->task, seen->step, seen->progress_done, seen->progress_total);
}

/* The VM is off, and somebody reads its disks: a backup. Each of the three can be begun again. */
static bool wait_for_reader(struct snapshot_task *s, const struct task_seen *seen)
{
    bool in_use = seen->error_code != NULL && strcmp(seen->error_code, error_kind_info(ERROR_IN_USE)->code) == 0;
    if (seen->state != operation_state_FAILED || !in_use || s->undoing || s->killed || s->task->stopping || s->agent->stopping)
        return false;
    s->waited = true;
    agent_task_progress(s->task, "waiting for who reads the VM's disks, a backup for instance", 0, 0);
    uv_timer_start(&s->timer, on_timer, SNAPSHOT_BUSY_MS, 0);
    return true;
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct snapshot_task *s = arg;
    s->child = NULL;
    if (wait_for_reader(s, seen))
        return;
    if (seen->state == operation_state_SUCCEEDED && OBJECT_HAS(task_seen, seen, snapshot) && !s->undoing) {
        OBJECT_COPY(snapshot_result, &s->result, &seen->snapshot);
        s->has_result = true;
    }
    if (seen->state != operation_state_SUCCEEDED && !s->undoing)
        error_set(&s->err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    over(s, s->undoing ? failed_state(s)
            : s->killed && s->dropped ? operation_state_SUCCEEDED : (enum operation_state)seen->state);
}

/* Its pool is looked into from here on, on the loop; and it may have been another VM's, or nobody's, until now: no VMM of this one has been
 * started with it yet. */
static int volume_take(const struct snapshot_task *s, const struct local_vm *vm, const struct vm_disk *disk, struct error *err)
{
    const struct vm_order *order = vm_order_of(vm);
    const struct pool_order *pool = pool_dir_of(order, disk);
    int r = pool != NULL ? pool_watch_there(&s->agent->pools, pool->id, pool->name, err) : 0;
    return r == 0 && vm_user(vm) != geteuid() ? vmm_user_own_disk(&vm_context_of(vm)->places, order, disk, vm_user(vm), err) : r;
}

/* Of a volume alone: is @disk another one? */
static bool is_other(const struct snapshot_task *s, const struct vm_disk *disk)
{
    const char *volume = s->task->order.task.snapshot.volume;
    return volume != NULL && !text_same(disk->volume, volume);
}

static void fill_order(const struct snapshot_task *s, struct snapshot_work *work)
{
    OBJECT_SET(snapshot_work, work, kind, s->undoing ? task_kind_SNAPSHOT_DELETE : kind_of(s));
    if (kind_of(s) == task_kind_SNAPSHOT_REVERT && s->task->order.task.snapshot.memory)
        OBJECT_SET(snapshot_work, work, ram, true);
    OBJECT_TEXT(snapshot_work, work, snapshot, s->task->order.task.snapshot.id);
}

/* A volume that no VM has: whoever has had it last is whose it is. */
static int fill_volume_work(const struct snapshot_task *s, struct snapshot_work *work, struct error *err)
{
    const struct volume_order *order = &s->task->order.volume;
    const struct vm_disk disk = {.name = order->disk, .volume = order->id, .place = order->place}; /* borrowed */
    struct stat st;
    if (!OBJECT_HAS(task_order, &s->task->order, volume) || !OBJECT_HAS(volume_order, order, pool))
        return error_set(err, -ENOENT, ERROR_CONFLICT, "it is not said where the volume is: a VM has it by now; ask again");
    int r = pool_watch_there(&s->agent->pools, order->pool.id, order->pool.name, err);
    if (r < 0)
        return r; /* what follows looks into it, on the loop */
    CLEANUP_FREE char *directory = pool_dir_disk(&order->pool, order->id, &disk);
    if (lstat(directory, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", directory);
    fill_order(s, work);
    if (st.st_uid != geteuid())
        OBJECT_SET(snapshot_work, work, user, st.st_uid);
    struct snapshot_work_disk *item = OBJECT_ADD(snapshot_work, work, disks);
    OBJECT_TEXT(snapshot_work_disk, item, name, order->disk);
    OBJECT_TEXT(snapshot_work_disk, item, directory, directory);
    return 0;
}

static int fill_work(const struct snapshot_task *s, const struct local_vm *vm, struct snapshot_work *work,
                     struct error *err)
{
    const struct vm_order *order = vm_order_of(vm);
    const struct vm_disk *disks = order->disks.items;
    fill_order(s, work);
    OBJECT_SET(snapshot_work, work, epoch, order->epoch);
    if (vm_user(vm) != geteuid())
        OBJECT_SET(snapshot_work, work, user, vm_user(vm));
    for (size_t i = 0; i < order->disks.count; i++) {
        CLEANUP_FREE char *directory = vm_files_layers_path(&vm_context_of(vm)->places, order, &disks[i]);
        if (disks[i].read_only || disks[i].leaving || is_other(s, &disks[i]) || pool_rbd_is(pool_dir_of(order, &disks[i])))
            continue; /* does not change; is in none; nor are those in pools of Ceph, as the controllers know */
        if (order->ha && pool_dir_of(order, &disks[i]) != NULL && pool_dir_of(order, &disks[i])->kind == pool_kind_SHARED_DIR)
            return error_set(err, -EBUSY, ERROR_CONFLICT,
                             "the VM is off and may be started on another host at any moment, for it has ha and disk %s is in a "
                             "shared pool: start it, or turn ha off meanwhile", disks[i].name);
        if (directory == NULL)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "disk %s is one raw file, as older versions made them; it can have no snapshots", disks[i].name);
        int r = disks[i].volume != NULL ? volume_take(s, vm, &disks[i], err) : 0;
        if (r < 0)
            return r;
        struct snapshot_work_disk *disk = OBJECT_ADD(snapshot_work, work, disks);
        OBJECT_TEXT(snapshot_work_disk, disk, name, disks[i].name);
        OBJECT_TEXT(snapshot_work_disk, disk, directory, directory);
        if (disks[i].volume != NULL)
            OBJECT_SET(snapshot_work_disk, disk, epoch, vm_files_disk_epoch(order, &disks[i]));
    }
    if (work->disks.count == 0)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "it has no disk that is written to");
    return 0;
}

/* @vm NULL: on a volume that no VM has. */
static void work_begin(struct snapshot_task *s, const struct local_vm *vm)
{
    struct snapshot_work work = {0};
    struct error err;
    int r = vm != NULL ? fill_work(s, vm, &work, &err) : fill_volume_work(s, &work, &err);
    if (r < 0 && !s->undoing)
        s->err = err;
    const struct task_child_options options = {.loop = s->agent->loop,
                                               .work = "snapshot",
                                               .desc = &snapshot_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = s};
    if (r == 0)
        r = task_child_start(&options, &s->child, &s->err);
    OBJECT_CLEAR(snapshot_work, &work);
    if (r < 0)
        over(s, operation_state_FAILED);
}

/* ---- the VMM ---- */

static void look_later(struct snapshot_task *s)
{
    uv_timer_start(&s->timer, on_timer, SNAPSHOT_LOOK_MS, 0);
}

static int ask_at(struct snapshot_task *s, const char *method, const char *what, const char *leaf, const struct bytes_writer *body,
                  http_client_done done)
{
    struct local_vm *vm = find_vm(s);
    CLEANUP_FREE char *url = xasprintf("http://vmm/v1/vm/%s%s%s", what, leaf[0] != '\0' ? "/" : "", leaf);
    const struct http_call_options options = {.method = method,
                                              .url = url,
                                              .unix_socket = vm_control_path(vm),
                                              .body = body != NULL ? body->data : NULL,
                                              .body_size = body != NULL ? body->size : 0,
                                              .deadline_ms = (unsigned)MIN(patience_ms(s), (uint64_t)INT32_MAX),
                                              .done = done,
                                              .arg = s};
    return http_client_start(s->agent->http, &options, &s->call, &s->err);
}

static int ask(struct snapshot_task *s, const char *method, const char *leaf, const struct bytes_writer *body, http_client_done done)
{
    return ask_at(s, method, "points", leaf, body, done);
}

/* A call has ended. True: the task goes on. */
static bool answered(struct snapshot_task *s)
{
    s->call = NULL;
    if (!s->agent->stopping && (!s->task->stopping || s->orphaned))
        return true;
    over(s, operation_state_CANCELLED);
    return false;
}

/* Is it the guest that the snapshot waits for, whose agent may be just starting? VMMs that do not name the field say it so. */
static bool is_unfrozen(const struct error *problem)
{
    static const char old[] = "no agent answers in the guest";
    return strcmp(problem->field, "/freeze") == 0 || strncmp(problem->text, old, sizeof old - 1) == 0;
}

static bool was_often_enough(struct snapshot_task *s, const struct http_answer *answer)
{
    uint64_t now_ms = uv_now(s->agent->loop);
    if (answer->error != 0 || !is_unfrozen(&answer->problem))
        return s->busy++ >= patience_ms(s) / SNAPSHOT_LOOK_MS;
    s->unfrozen_ms = s->unfrozen_ms == 0 ? now_ms : s->unfrozen_ms;
    return now_ms - s->unfrozen_ms >= SNAPSHOT_FREEZE_MS;
}

/* Its VMM has ended, or is at something else: look again. False: that was often enough. */
static bool try_again(struct snapshot_task *s, const struct http_answer *answer)
{
    bool busy = answer->error == 0 && answer->status == 409 && answer->problem.kind == ERROR_CONFLICT;
    if ((!busy && answer->error == 0) || was_often_enough(s, answer))
        return false;
    CLEANUP_FREE char *step = busy ? xasprintf("waiting for the VM's VMM: %.160s", answer->problem.text) : NULL;
    agent_task_progress(s->task, step, 0, 0);
    look_later(s);
    return true;
}

static void fail_by(struct snapshot_task *s, const struct http_answer *answer)
{
    error_set(&s->err, -EIO, answer->problem.kind, "its VMM: %s", answer->problem.text);
    over(s, operation_state_FAILED);
}

/* What a point that failed has left of some disks goes; however that ends, the task has failed. */
static void on_undone(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    if (answered(s) && (!s->undoing || !try_again(s, answer)))
        over(s, failed_state(s));
}

/* The memory is not written any more, if it was: now for the names. */
static void on_given_up(const struct http_answer *answer UNUSED, void *arg)
{
    struct snapshot_task *s = arg;
    if (!answered(s))
        return;
    if (find_vm(s) == NULL || vm_control_path(find_vm(s)) == NULL)
        look_later(s);
    else if (ask(s, "DELETE", s->task->order.task.snapshot.id, NULL, on_undone) < 0)
        over(s, failed_state(s));
}

/* It has failed, in whatever state its VMM and its files are: as `err` says. */
static void undo(struct snapshot_task *s)
{
    s->undoing = true;
    s->busy = 0;
    look_later(s);
}

/* With memory. The VMM says that a disk has the snapshot: was it made whole before the agent was restarted? */
static void on_found(struct snapshot_task *s)
{
    const struct local_vm *vm = find_vm(s);
    CLEANUP_FREE char *directory = vm != NULL ? vm_files_memory_directory(&vm_context_of(vm)->places, vm_order_of(vm)) : NULL;
    uint64_t bytes = 0;
    if ((directory == NULL || snapshot_memory_look(directory, s->task->order.task.snapshot.id, &bytes, NULL) < 0)) {
        error_set(&s->err, -EIO, ERROR_INTERNAL, "it was interrupted before the VM's memory was kept; make it again");
        undo(s);
        return;
    }
    (void)file_sync_directory(directory, NULL); /* the VMM that named it may have ended just then */
    OBJECT_SET(snapshot_result, &s->result, consistency, snapshot_consistency_MEMORY);
    if (bytes > 0)
        OBJECT_SET(snapshot_result, &s->result, ram_bytes, bytes);
    s->has_result = true;
    over(s, operation_state_SUCCEEDED);
}

/* A disk that is to be in it, and that the VMM has not: a guest may have let go of it by itself. NULL: all are there. */
static const char *disk_that_lacks(const struct snapshot_task *s, const struct vmm_point *point)
{
    const struct local_vm *vm = find_vm(s);
    const struct snapshot_disk *has = point->disks.items;
    const struct vm_disk *disks = vm != NULL ? vm_order_of(vm)->disks.items : NULL;
    for (size_t i = 0; vm != NULL && i < vm_order_of(vm)->disks.count; i++) {
        bool found = disks[i].read_only || disks[i].leaving || is_other(s, &disks[i]);
        for (size_t k = 0; k < point->disks.count && !found; k++)
            found = strcmp(has[k].name, disks[i].name) == 0;
        if (!found)
            return disks[i].name;
    }
    return NULL;
}

/* Some disks have had it, or all, and nobody knows which: a VMM or an agent has ended in the middle. It goes, and is made anew. */
static void on_cleared(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    if (!answered(s))
        return;
    bool is_gone = answer->error == 0 && answer->status == 200;
    if (is_gone && s->cleared++ < CLEARED_MAX) {
        look_later(s);
    } else if (is_gone) {
        error_set(&s->err, -EIO, ERROR_INTERNAL, "its VMM says again and again that it has the snapshot already");
        over(s, operation_state_FAILED);
    } else if (!try_again(s, answer)) {
        fail_by(s, answer);
    }
}

static void on_taken(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    struct vmm_point point = {.name = NULL};
    struct error err;
    if (!answered(s))
        return;
    uv_timer_stop(&s->timer);
    if (s->orphaned && answer->status != 200) { /* failed; or it was there, which an agent before this one may have told */
        over(s, operation_state_CANCELLED);
    } else if (s->orphaned) {
        undo(s);
    } else if (answer->error == 0 && answer->status == 200 &&
               OBJECT_DECODE(vmm_point, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &point, &err) == 0) {
        const char *lacks = disk_that_lacks(s, &point);
        if (lacks != NULL) {
            error_set(&s->err, -ENODEV, ERROR_CONFLICT, "the guest has let go of disk %s; it comes back with the VM's next start, or detach it", lacks);
            OBJECT_CLEAR(vmm_point, &point);
            undo(s);
            return;
        }
        OBJECT_SET(snapshot_result, &s->result, consistency, point.consistency);
        OBJECT_SET(snapshot_result, &s->result, pause_us, point.pause_us);
        if (point.memory_bytes > 0)
            OBJECT_SET(snapshot_result, &s->result, ram_bytes, point.memory_bytes);
        for (size_t i = 0; i < point.disks.count; i++)
            OBJECT_COPY(snapshot_disk, (struct snapshot_disk *)OBJECT_ADD(snapshot_result, &s->result, disks),
                        (const struct snapshot_disk *)point.disks.items + i);
        OBJECT_CLEAR(vmm_point, &point);
        s->has_result = true;
        over(s, operation_state_SUCCEEDED);
    } else if (answer->error == 0 && answer->problem.kind == ERROR_EXISTS && keeps_memory(s)) {
        on_found(s);
    } else if (answer->error == 0 && answer->problem.kind == ERROR_EXISTS) {
        if (find_vm(s) == NULL || vm_disks(find_vm(s)) != VM_DISKS_IN_USE ||
            ask(s, "DELETE", s->task->order.task.snapshot.id, NULL, on_cleared) < 0)
            look_later(s);
    } else if (answer->error != 0 && keeps_memory(s)) {
        error_set(&s->err, -EIO, answer->problem.kind, "its VMM ended, or did not answer, while its memory was kept: %s", answer->problem.text);
        undo(s);
    } else if (!try_again(s, answer)) {
        bool old = keeps_memory(s) && answer->problem.kind == ERROR_UNKNOWN_FIELD;
        error_set(&s->err, -EIO, answer->problem.kind, "its VMM%s: %s", old ? " is of a version that keeps no memory (drover vm upgrade)" : "",
                  answer->problem.text);
        if (keeps_memory(s))
            undo(s);
        else if (find_vm(s) == NULL || vm_disks(find_vm(s)) != VM_DISKS_IN_USE ||
            ask(s, "DELETE", s->task->order.task.snapshot.id, NULL, on_undone) < 0)
            over(s, failed_state(s));
    }
}

static void on_merging(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    struct vmm_points points = {.busy = false};
    struct error err;
    if (!answered(s))
        return;
    if (answer->error != 0 || answer->status != 200 ||
        OBJECT_DECODE(vmm_points, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &points, &err) < 0) {
        look_later(s); /* it has ended, or will answer again; off, the rest is done by a child */
        return;
    }
    agent_task_progress(s->task, STEP_DROPPED, points.done_bytes, points.total_bytes);
    bool more = (points.busy || points.merging) && !s->task->order.cancel;
    OBJECT_CLEAR(vmm_points, &points);
    if (more)
        look_later(s);
    else
        over(s, operation_state_SUCCEEDED);
}

static void on_dropped(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    if (!answered(s))
        return;
    if (answer->error == 0 && answer->status == 200) {
        s->dropped = true;
        look_later(s);
    } else if (!try_again(s, answer)) {
        fail_by(s, answer);
    }
}

/* ---- how far a snapshot with memory is ---- */

static void on_looked(const struct http_answer *answer, void *arg)
{
    struct snapshot_task *s = arg;
    struct vmm_points points = {.busy = false};
    struct error err;
    s->looking = NULL;
    if (s->over) {
        uv_close((uv_handle_t *)&s->timer, on_timer_closed);
        return;
    }
    if (s->call == NULL || (s->task->stopping && !s->orphaned))
        return;
    if (answer->error == 0 && answer->status == 200 && !s->cancelling &&
        OBJECT_DECODE(vmm_points, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &points, &err) == 0) {
        if (points.memory_bytes > 0)
            agent_task_progress(s->task, "its memory is written while it runs", points.memory_read_bytes, points.memory_bytes);
        OBJECT_CLEAR(vmm_points, &points);
    }
    look_later(s);
}

/* Or have it given up. */
static void look_how_far(struct snapshot_task *s)
{
    const struct local_vm *vm = find_vm(s);
    struct error err;
    const struct http_call_options options = {.method = s->cancelling ? "DELETE" : "GET",
                                              .url = s->cancelling ? "http://vmm/v1/vm/snapshot" : "http://vmm/v1/vm/points",
                                              .unix_socket = vm != NULL ? vm_control_path(vm) : NULL,
                                              .deadline_ms = VM_CONTROL_MS,
                                              .done = on_looked,
                                              .arg = s};
    if (s->looking != NULL || options.unix_socket == NULL || http_client_start(s->agent->http, &options, &s->looking, &err) < 0)
        look_later(s);
}

static int ask_for_point(struct snapshot_task *s)
{
    const struct task_snapshot *wanted = &s->task->order.task.snapshot;
    struct vmm_point_order order = {.name = NULL};
    struct bytes_writer body = {0};
    OBJECT_TEXT(vmm_point_order, &order, name, wanted->id);
    if (OBJECT_HAS(task_snapshot, wanted, freeze))
        OBJECT_SET(vmm_point_order, &order, freeze, wanted->freeze ? vmm_freeze_MUST : vmm_freeze_NEVER);
    if (wanted->ram)
        OBJECT_SET(vmm_point_order, &order, memory, true);
    if (wanted->disk != NULL) {
        order.disks.items = xcalloc(1, sizeof *order.disks.items);
        order.disks.items[order.disks.count++] = xstrdup(wanted->disk);
        object_mark(&vmm_point_order_desc, &order, "disks");
    }
    OBJECT_ENCODE(vmm_point_order, &order, &body);
    OBJECT_CLEAR(vmm_point_order, &order);
    agent_task_progress(s->task, "its VMM makes a new top layer", 0, 0);
    int r = ask(s, "POST", "", &body, on_taken);
    if (r == 0 && wanted->ram)
        look_later(s);
    bytes_writer_finish(&body);
    return r;
}

static void ask_vmm(struct snapshot_task *s)
{
    int r;
    hold(s, false); /* its VMM may end and start as it likes */
    if (s->undoing)
        r = ask_at(s, "DELETE", "snapshot", "", NULL, on_given_up);
    else if (kind_of(s) == task_kind_SNAPSHOT_REVERT)
        r = error_set(&s->err, -EBUSY, ERROR_CONFLICT, "the VM runs; stop it first");
    else if (kind_of(s) == task_kind_SNAPSHOT_CREATE)
        r = ask_for_point(s);
    else if (s->dropped)
        r = ask(s, "GET", "", NULL, on_merging);
    else
        r = ask(s, "DELETE", s->task->order.task.snapshot.id, NULL, on_dropped);
    s->dropping = s->dropping || kind_of(s) == task_kind_SNAPSHOT_DELETE;
    if (r == 0 && s->undoing)
        look_later(s); /* whether the agent stops meanwhile */
    if (r < 0)
        over(s, failed_state(s));
}

/* ---- the task ---- */

/* All that it is about: these are there without the VM having been started with them. */
static bool are_volumes(const struct snapshot_task *s, const struct local_vm *vm)
{
    const struct vm_disk *disks = vm_order_of(vm)->disks.items;
    for (size_t i = 0; i < vm_order_of(vm)->disks.count; i++)
        if (!disks[i].read_only && !is_other(s, &disks[i]) && disks[i].volume == NULL)
            return false;
    return true;
}

static void look(struct snapshot_task *s)
{
    struct local_vm *vm = find_vm(s);
    if (s->vm[0] == '\0') {
        work_begin(s, NULL);
        return;
    }
    enum vm_disks disks = vm != NULL ? vm_disks(vm) : VM_DISKS_NONE;
    if (disks == VM_DISKS_UNMADE && are_volumes(s, vm))
        disks = VM_DISKS_FREE;
    switch (disks) {
    case VM_DISKS_FREE:
        hold(s, true);
        if (keeps_memory(s) && !s->undoing) { /* what is left of it by a VMM that has ended goes */
            error_set(&s->err, -EINVAL, ERROR_CONFLICT, "the VM does not run, so it has no memory to keep");
            s->undoing = true;
        }
        work_begin(s, vm);
        return;
    case VM_DISKS_CHANGING:
        agent_task_progress(s->task, "waiting for the VM to start or end", 0, 0);
        look_later(s);
        return;
    case VM_DISKS_IN_USE:
        ask_vmm(s);
        return;
    case VM_DISKS_NONE:
    case VM_DISKS_UNMADE:
        if (s->undoing)
            break;
        error_set(&s->err, -ENOENT, ERROR_NOT_FOUND, "there are no disks of the VM here yet; start it once");
        break;
    }
    over(s, operation_state_FAILED);
}

static void on_timer(uv_timer_t *timer)
{
    struct snapshot_task *s = timer->data;
    if (s->child != NULL)
        return; /* its end says how it goes on */
    if (s->agent->stopping && s->call != NULL)
        http_call_cancel(s->call); /* of an orphan: it was stopped before */
    else if (s->agent->stopping)
        over(s, operation_state_CANCELLED);
    else if (s->call != NULL && s->undoing)
        look_later(s);
    else if (s->call != NULL)
        look_how_far(s);
    else
        look(s);
}

static void start(struct agent_task *task)
{
    struct snapshot_task *s = NEW(struct snapshot_task);
    s->task = task;
    s->agent = task->agent;
    task->state = s;
    const char *vm = task->order.volume_vm != NULL ? task->order.volume_vm : task->order.task.vm;
    snprintf(s->vm, sizeof s->vm, "%s", vm != NULL ? vm : "");
    uv_timer_init(s->agent->loop, &s->timer);
    s->timer.data = s;
    hold(s, true);
    look(s);
}

static void cancel(struct agent_task *task)
{
    struct snapshot_task *s = task->state;
    if (s->over || s->undoing)
        return;
    if (kind_of(s) == task_kind_SNAPSHOT_DELETE && s->dropping && s->child == NULL) {
        return; /* on_merging sees it */
    } else if (keeps_memory(s) && s->call == NULL && s->child == NULL) { /* an agent before this one may have begun it */
        s->cancelling = true;
        error_set(&s->err, -ECANCELED, ERROR_CANCELLED, "cancelled");
        undo(s);
    } else if (s->child == NULL && s->call == NULL) {
        bool begun = s->waited && kind_of(s) != task_kind_SNAPSHOT_CREATE; /* that leaves nothing behind */
        error_set(&s->err, -ECANCELED, ERROR_CANCELLED, "%s", begun ? "cancelled when it had begun: ask for it again" : "cancelled before anything was done");
        over(s, begun ? operation_state_FAILED : operation_state_CANCELLED);
    } else if (kind_of(s) == task_kind_SNAPSHOT_DELETE && s->dropped) {
        s->killed = true;
        task_child_kill(s->child);
    } else if (keeps_memory(s) && s->call != NULL) {
        s->cancelling = true;
    }
}

static void stop(struct agent_task *task)
{
    struct snapshot_task *s = task->state;
    if (s->over)
        return; /* on its way */
    s->orphaned = keeps_memory(s) && (s->call != NULL || s->undoing) && s->child == NULL && !s->agent->stopping;
    if (s->orphaned) { /* its order is gone: of what its VMM makes nobody would know */
        s->cancelling = true; /* look_how_far says so */
    } else if (s->child != NULL) {
        s->killed = true;
        task_child_kill(s->child);
    } else if (s->call != NULL) {
        http_call_cancel(s->call);
    } else {
        over(s, operation_state_CANCELLED);
    }
}

const struct agent_task_ops task_snapshot_ops = {.start = start, .cancel = cancel, .stop = stop};

/* ---- in the child ---- */

/* From here on the child may do no more than the VM's VMM could, which has written what it reads: the pools' directories,
 * which that user cannot get to by their paths, are opened before, and named by their descriptors after. */
static int become(const struct snapshot_work *work, struct error *err)
{
    struct snapshot_work_disk *disks = work->disks.items;
    if (work->user == 0)
        return 0;
    for (size_t i = 0; i < work->disks.count; i++) {
        char path[32];
        int fd = open(disks[i].directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return error_errno(err, -errno, "cannot open %s", disks[i].directory);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        OBJECT_TEXT(snapshot_work_disk, &disks[i], directory, path);
    }
    const struct task_walls walls = {.user = work->user, .group = work->user};
    return task_walls_raise(&walls, err);
}

static int pool_open(const struct snapshot_work_disk *disk, struct layer_pool **ret_pool, struct error *err)
{
    return layer_pool_dir_create(disk->directory, NULL, NULL, ret_pool, err);
}

static uint64_t epoch_of(const struct snapshot_work *work, const struct snapshot_work_disk *disk)
{
    return OBJECT_HAS(snapshot_work_disk, disk, epoch) ? disk->epoch : work->epoch;
}

/* 1, or 0: it has it not. */
static int disk_has(const struct snapshot_work *work, const struct snapshot_work_disk *disk, struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *opened;
    int r = pool_open(disk, &pool, err);
    if (r < 0)
        return r;
    r = layer_disk_open(pool, disk->name, true, 0, &opened, err);
    if (r == 0) {
        r = layer_disk_has(opened, work->snapshot);
        layer_disk_close(opened);
    }
    layer_pool_dir_destroy(pool);
    return r;
}

/* One disk. */
static int disk_create(const struct snapshot_work *work, const struct snapshot_work_disk *disk, struct snapshot_disk *seen,
                       struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *opened;
    int r = pool_open(disk, &pool, err);
    if (r < 0)
        return r;
    r = layer_disk_open(pool, disk->name, false, epoch_of(work, disk), &opened, err);
    if (r == 0) {
        OBJECT_TEXT(snapshot_disk, seen, name, disk->name);
        OBJECT_SET(snapshot_disk, seen, size_bytes, opened->chain->block.size_bytes);
        r = layer_disk_snapshot(opened, work->snapshot, err);
        layer_disk_close(opened);
    }
    layer_pool_dir_destroy(pool);
    return r;
}

/* -ENOENT: it has no such snapshot. @tidy: merge, too. */
static int disk_delete(const struct snapshot_work *work, const struct snapshot_work_disk *disk, bool tidy,
                       struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *opened;
    int r = pool_open(disk, &pool, err);
    if (r < 0)
        return r;
    r = layer_disk_open(pool, disk->name, false, epoch_of(work, disk), &opened, err);
    if (r == 0) {
        r = tidy ? layer_disk_tidy_now(opened, err) : layer_disk_drop(opened, work->snapshot, err);
        layer_disk_close(opened);
        if (r == 0 && tidy)
            r = layer_disk_collect(pool, err);
    }
    layer_pool_dir_destroy(pool);
    return r;
}

/* Where the memory of snapshots is (vm_files_memory_directory). */
static const char *memory_directory(const struct snapshot_work *work)
{
    return ((const struct snapshot_work_disk *)work->disks.items)->directory;
}

static int disk_revert(const struct snapshot_work *work, const struct snapshot_work_disk *disk, struct error *err)
{
    struct layer_pool *pool;
    int r = pool_open(disk, &pool, err);
    if (r < 0)
        return r;
    r = layer_disk_revert(pool, disk->name, work->snapshot, err);
    if (r == 0)
        r = layer_disk_collect(pool, err);
    layer_pool_dir_destroy(pool);
    return r;
}

static int all_create(const struct snapshot_work *work, struct task_seen *ret_seen, struct error *err)
{
    const struct snapshot_work_disk *disks = work->disks.items;
    struct snapshot_result *result = &ret_seen->snapshot;
    bool found = false;
    int r = 0;
    size_t i;
    /* A VMM or a child before this one has ended in the middle: of one moment are only those that are made now. */
    for (i = 0; i < work->disks.count && r == 0; i++)
        if ((r = disk_has(work, &disks[i], err)) > 0) {
            found = true;
            r = disk_delete(work, &disks[i], false, err);
        }
    for (i = 0; i < work->disks.count && r == 0; i++)
        r = disk_create(work, &disks[i], OBJECT_ADD(snapshot_result, result, disks), err);
    if (r < 0) { /* all or none */
        for (size_t k = 0; k < i; k++)
            disk_delete(work, &disks[k], false, NULL);
        return r;
    }
    /* It is off: nothing is half way, but where it ended while this was made. */
    OBJECT_SET(snapshot_result, result, consistency, found ? snapshot_consistency_CRASH : snapshot_consistency_FILESYSTEM);
    OBJECT_SET(snapshot_result, result, pause_us, 0);
    object_mark(&task_seen_desc, ret_seen, "snapshot");
    return 0;
}

static int all_delete(const struct snapshot_work *work, struct error *err)
{
    const struct snapshot_work_disk *disks = work->disks.items;
    CLEANUP_FREE char *resumes = NULL;
    int rc = snapshot_resume_read(memory_directory(work), &resumes, err);
    if (rc == 0 && resumes != NULL && strcmp(resumes, work->snapshot) == 0)
        rc = snapshot_resume_clear(memory_directory(work), err);
    if (rc == 0)
        rc = snapshot_memory_remove(memory_directory(work), work->snapshot, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < work->disks.count; i++) {
        int r = disk_delete(work, &disks[i], false, err);
        if (r < 0 && r != -ENOENT)
            return r;
    }
    for (size_t i = 0; i < work->disks.count; i++) {
        task_child_tell(STEP_DROPPED, 0, 0);
        int r = disk_delete(work, &disks[i], true, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The word that the next start goes on from memory is taken back before anything changes, and given when all disks are there: so
 * it stands for disks that show the snapshot, whoever ends at any point. */
static int all_revert(const struct snapshot_work *work, struct task_seen *ret_seen, struct error *err)
{
    const struct snapshot_work_disk *disks = work->disks.items;
    struct snapshot_result *result = &ret_seen->snapshot;
    uint64_t bytes;
    int r = snapshot_resume_clear(memory_directory(work), err);
    if (r == 0 && work->ram && (r = snapshot_memory_look(memory_directory(work), work->snapshot, &bytes, err)) < 0)
        error_prefix(err, "the snapshot's memory is not there (its disks are: revert it with disks_only): ");
    for (size_t i = 0; i < work->disks.count && r == 0; i++) { /* all of them, before the first changes */
        r = disk_has(work, &disks[i], err);
        r = r == 0 ? error_set(err, -ENOENT, ERROR_NOT_FOUND, "disk %s has not this snapshot; no disk was changed", disks[i].name) : MIN(r, 0);
    }
    for (size_t i = 0; i < work->disks.count && r == 0; i++)
        r = disk_revert(work, &disks[i], err);
    if (r < 0 || !work->ram)
        return r;
    r = snapshot_resume_set(memory_directory(work), work->snapshot, err);
    OBJECT_SET(snapshot_result, result, consistency, snapshot_consistency_MEMORY);
    OBJECT_SET(snapshot_result, result, resumes, true);
    object_mark(&task_seen_desc, ret_seen, "snapshot");
    return r;
}

int task_snapshot_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err)
{
    struct snapshot_work work = {0};
    int r = OBJECT_DECODE(snapshot_work, arguments, size, OBJECT_STORED, &work, err);
    if (r < 0)
        return r;
    r = become(&work, err);
    if (r == 0 && work.kind == task_kind_SNAPSHOT_CREATE)
        r = all_create(&work, ret_seen, err);
    else if (r == 0 && work.kind == task_kind_SNAPSHOT_DELETE)
        r = all_delete(&work, err);
    else if (r == 0)
        r = all_revert(&work, ret_seen, err);
    OBJECT_CLEAR(snapshot_work, &work);
    return r;
}
