/* The tasks snapshot-create, -revert and -delete.
 *
 *   start --> WAITING --VM off, its disks free--> WORKING (a child, blocking calls) --> over
 *               |  ^                                                                      ^
 *               |  '-- a VMM starts or ends: looked at again every SNAPSHOT_LOOK_MS       |
 *               '---- cancel, error ------------------------------------------------------'
 *
 * The VM is held meanwhile (vm_hold): no VMM starts under the child. Begun twice, each of the three comes to the same: a
 * disk that has the snapshot already is passed over, as is one that has it no more, and a revert is done again.
 *
 * Cancel: WAITING: at once. A create or revert that works is short, and ends by itself. A delete that works has taken the
 * name away already, so the snapshot is gone: it is ended as done, and what was not merged yet is with the next one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/task_child.h"

#define SNAPSHOT_LOOK_MS 200
#define STEP_DROPPED "giving space back" /* from here on a delete cannot be undone */

struct snapshot_task {
    struct agent_task *task; /* NULL: nobody wants to know any more */
    struct agent *agent;
    char vm[37];
    uv_timer_t timer;
    struct task_child *child;
    bool holding, dropped, killed;
    /* how it ended */
    bool over;
    enum operation_state state;
    struct error err;
    struct snapshot_result result;
    bool has_result;
};

static struct local_vm *find_vm(const struct snapshot_task *s)
{
    return map_get(&s->agent->vms, s->vm);
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

/* The end, whatever the reason: the VM is let go of, and the kind's memory goes. Once. */
static void over(struct snapshot_task *s, enum operation_state state)
{
    ASSERT(s->child == NULL);
    if (s->over)
        return;
    s->over = true;
    s->state = state;
    if (s->holding && !s->agent->stopping && find_vm(s) != NULL) /* an agent that stops has closed its VMs */
        vm_hold(find_vm(s), false);
    s->holding = false;
    uv_timer_stop(&s->timer);
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}

/* ---- the child ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct snapshot_task *s = arg;
    s->dropped = s->dropped || (seen->step != NULL && strcmp(seen->step, STEP_DROPPED) == 0);
    if (!s->task->stopping)
        agent_task_progress(s->task, seen->step, seen->progress_done, seen->progress_total);
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct snapshot_task *s = arg;
    s->child = NULL;
    if (seen->state == operation_state_SUCCEEDED && OBJECT_HAS(task_seen, seen, snapshot)) {
        OBJECT_COPY(snapshot_result, &s->result, &seen->snapshot);
        s->has_result = true;
    }
    if (seen->state != operation_state_SUCCEEDED)
        error_set(&s->err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    over(s, s->killed && s->dropped ? operation_state_SUCCEEDED : (enum operation_state)seen->state);
}

static int fill_work(const struct snapshot_task *s, const struct local_vm *vm, struct snapshot_work *work,
                     struct error *err)
{
    const struct vm_order *order = vm_order_of(vm);
    const struct vm_disk *disks = order->disks.items;
    OBJECT_SET(snapshot_work, work, kind, kind_of(s));
    OBJECT_TEXT(snapshot_work, work, snapshot, s->task->order.task.snapshot.id);
    OBJECT_SET(snapshot_work, work, epoch, order->epoch);
    for (size_t i = 0; i < order->disks.count; i++) {
        CLEANUP_FREE char *directory = vm_files_layers_path(&vm_context_of(vm)->places, order, &disks[i]);
        if (disks[i].read_only)
            continue; /* does not change */
        if (directory == NULL)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "disk %s is one raw file, as older versions made them; it can have no snapshots", disks[i].name);
        struct snapshot_work_disk *disk = OBJECT_ADD(snapshot_work, work, disks);
        OBJECT_TEXT(snapshot_work_disk, disk, name, disks[i].name);
        OBJECT_TEXT(snapshot_work_disk, disk, directory, directory);
    }
    if (work->disks.count == 0)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "it has no disk that is written to");
    return 0;
}

static void work_begin(struct snapshot_task *s, const struct local_vm *vm)
{
    struct snapshot_work work = {0};
    int r = fill_work(s, vm, &work, &s->err);
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

/* ---- the task ---- */

static void on_timer(uv_timer_t *timer);

static void look(struct snapshot_task *s)
{
    struct local_vm *vm = find_vm(s);
    enum vm_disks disks = vm != NULL ? vm_disks(vm) : VM_DISKS_NONE;
    switch (disks) {
    case VM_DISKS_FREE:
        work_begin(s, vm);
        return;
    case VM_DISKS_CHANGING:
        agent_task_progress(s->task, "waiting for the VM to start or end", 0, 0);
        uv_timer_start(&s->timer, on_timer, SNAPSHOT_LOOK_MS, 0);
        return;
    case VM_DISKS_IN_USE:
        error_set(&s->err, -EBUSY, ERROR_NOT_SUPPORTED, "the VM runs; stop it first");
        break;
    case VM_DISKS_NONE:
        error_set(&s->err, -ENOENT, ERROR_NOT_FOUND, "there are no disks of the VM here yet; start it once");
        break;
    }
    over(s, operation_state_FAILED);
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

static void start(struct agent_task *task)
{
    struct snapshot_task *s = NEW(struct snapshot_task);
    s->task = task;
    s->agent = task->agent;
    task->state = s;
    snprintf(s->vm, sizeof s->vm, "%s", task->order.task.vm != NULL ? task->order.task.vm : "");
    uv_timer_init(s->agent->loop, &s->timer);
    s->timer.data = s;
    if (find_vm(s) != NULL) {
        vm_hold(find_vm(s), true);
        s->holding = true;
    }
    look(s);
}

static void cancel(struct agent_task *task)
{
    struct snapshot_task *s = task->state;
    if (s->over)
        return;
    if (s->child == NULL) {
        error_set(&s->err, -ECANCELED, ERROR_CANCELLED, "cancelled before anything was done");
        over(s, operation_state_CANCELLED);
    } else if (kind_of(s) == task_kind_SNAPSHOT_DELETE && s->dropped) {
        s->killed = true;
        task_child_kill(s->child);
    }
}

static void stop(struct agent_task *task)
{
    struct snapshot_task *s = task->state;
    if (s->child != NULL) {
        s->killed = true;
        task_child_kill(s->child);
    } else {
        over(s, operation_state_CANCELLED);
    }
}

const struct agent_task_ops task_snapshot_ops = {.start = start, .cancel = cancel, .stop = stop};

/* ---- in the child ---- */

static int pool_open(const struct snapshot_work_disk *disk, struct layer_pool **ret_pool, struct error *err)
{
    return layer_pool_dir_create(disk->directory, NULL, NULL, ret_pool, err);
}

/* One disk. -EEXIST: it has the snapshot already. */
static int disk_create(const struct snapshot_work *work, const struct snapshot_work_disk *disk, struct snapshot_disk *seen,
                       struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *opened;
    int r = pool_open(disk, &pool, err);
    if (r < 0)
        return r;
    r = layer_disk_open(pool, disk->name, false, work->epoch, &opened, err);
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
    r = layer_disk_open(pool, disk->name, false, work->epoch, &opened, err);
    if (r == 0) {
        r = tidy ? layer_disk_tidy_now(opened, err) : layer_disk_drop(opened, work->snapshot, err);
        layer_disk_close(opened);
        if (r == 0 && tidy)
            r = layer_disk_collect(pool, err);
    }
    layer_pool_dir_destroy(pool);
    return r;
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
    int r = 0;
    size_t i;
    for (i = 0; i < work->disks.count && r == 0; i++) {
        r = disk_create(work, &disks[i], OBJECT_ADD(snapshot_result, result, disks), err);
        r = r == -EEXIST ? 0 : r;
    }
    if (r < 0) { /* all or none */
        for (size_t k = 0; k < i; k++)
            disk_delete(work, &disks[k], false, NULL);
        return r;
    }
    OBJECT_SET(snapshot_result, result, consistency, snapshot_consistency_FILESYSTEM); /* it is off: nothing is half way */
    OBJECT_SET(snapshot_result, result, pause_us, 0);
    object_mark(&task_seen_desc, ret_seen, "snapshot");
    return 0;
}

static int all_delete(const struct snapshot_work *work, struct error *err)
{
    const struct snapshot_work_disk *disks = work->disks.items;
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

int task_snapshot_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err)
{
    struct snapshot_work work = {0};
    int r = OBJECT_DECODE(snapshot_work, arguments, size, OBJECT_STORED, &work, err);
    if (r < 0)
        return r;
    const struct snapshot_work_disk *disks = work.disks.items;
    switch (work.kind) {
    case task_kind_SNAPSHOT_CREATE:
        r = all_create(&work, ret_seen, err);
        break;
    case task_kind_SNAPSHOT_DELETE:
        r = all_delete(&work, err);
        break;
    default:
        for (size_t i = 0; i < work.disks.count && r == 0; i++)
            r = disk_revert(&work, &disks[i], err);
    }
    OBJECT_CLEAR(snapshot_work, &work);
    return r;
}
