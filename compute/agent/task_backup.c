/* The tasks backup-create and backup-restore; and backup-delete, -attach, -verify and -prune, which need no VM and begin at once.
 *
 *   start --> WAITING --its disks stand, or its VMM answers--> WORKING (a child, blocking calls) --> over
 *               |  ^                                                                           ^
 *               |  |-- a VMM starts or ends: looked at again every BACKUP_LOOK_MS              |
 *               |  '-- create, it is off, and a snapshot has its disks: every BACKUP_AGAIN_MS  |
 *               '---- cancel, error -----------------------------------------------------------'
 *
 * The child has drover-backup do the work, beside the agent's own program and with hardly any rights (backup_program.h,
 * backup_disks.h). Of a VM that runs it first has the VMM open
 * images of all disks at one instant (the VMM's POST /v1/vm/backup) and closes them at the end; of one that is off it reads
 * the disks themselves, and the VM is held meanwhile (vm_hold), as it is for a restore.
 *
 * Begun twice: drover-backup finds a backup of that id that is whole, and is done; images that a child left which was
 * killed are closed first. A restore is done again. Cancel: the child is killed, and with it drover-backup; of a backup
 * nothing is left but chunks that the store's next prune takes. A restore writes beside the disks and puts them in their
 * place at the end: cancelled before, they are as they were, and from there on it is not cancelled any more.
 *
 * A live restore (backup_live.h) puts empty disks in their place at the beginning; that they are is written down with the VM before it is let
 * go and the controllers are told, who start it. From then on the child follows its VMM, and is started again
 * whenever it ends: the task ends when all is there. Cancelled it is only while the VM is off; then its disks are good for nothing but to be
 * restored again, and no VMM opens them. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/backup_disks.h"
#include "compute/agent/backup_live.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/task_child.h"
#include "compute/agent/vm.h"
#include "compute/agent/vmm_images.h"
#include "compute/agent/vmm_user.h"

enum {
    BACKUP_LOOK_MS = 200,
    BACKUP_AGAIN_MS = 1000, /* a live restore's child; one that found the disks in use */
    BACKUP_BUSY_MAX = 3600, /* times in a row that they were */
    FOUND_PAGE_BYTES = 128 * 1024, /* of one attach: much less than a command of the controllers may have */
};

#define STEP_PLACING "putting the disks in their place" /* of a restore: from here on some are what they were, and others are not */

struct backup_task {
    struct agent_task *task;
    struct agent *agent;
    char vm[37];
    uid_t user; /* of a VM that was never started, from now on; 0: as the VM says */
    uv_timer_t timer;
    struct task_child *child;
    bool holding, over;
    bool placing;      /* its child puts the disks in their place */
    size_t disks;      /* that its child was given */
    bool placed;       /* live: the disks are in their place */
    struct backup_store store; /* live: as the child was given it */
    bool cancel_asked; /* live, placed: when the VM is off */
    bool off;          /* the child was given the disks of a VM that is off */
    unsigned busy;     /* times that these were in use */
    enum operation_state state;
    struct error err;
    struct backup_result result;
    bool has_result;
};

static struct local_vm *find_vm(const struct backup_task *b)
{
    return map_get(&b->agent->vms, b->vm);
}

static bool is_live(const struct backup_task *b)
{
    return b->task->order.task.kind == task_kind_BACKUP_RESTORE && b->task->order.task.backup.live;
}

static bool is_restore(const struct backup_task *b)
{
    return b->task->order.task.kind == task_kind_BACKUP_RESTORE;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct backup_task *b = handle->data;
    struct agent_task *task = b->task;
    enum operation_state state = b->state;
    struct error err = b->err;
    if (b->has_result) {
        OBJECT_COPY(backup_result, &task->seen.backup, &b->result);
        object_mark(&task_seen_desc, &task->seen, "backup");
    }
    OBJECT_CLEAR(backup_result, &b->result);
    OBJECT_CLEAR(backup_store, &b->store);
    free(b);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

static void hold(struct backup_task *b, bool held)
{
    if (held != b->holding && find_vm(b) != NULL && !b->agent->stopping) /* an agent that stops has closed its VMs */
        vm_hold(find_vm(b), held);
    b->holding = held;
}

static void over(struct backup_task *b, enum operation_state state)
{
    ASSERT(b->child == NULL);
    if (b->over)
        return;
    b->over = true;
    b->state = state;
    hold(b, false);
    uv_timer_stop(&b->timer);
    uv_close((uv_handle_t *)&b->timer, on_timer_closed);
}

/* ---- the child, from here ---- */

static const char torn[] = "some of the disks may be restored and others not, restore them again: ";

static void on_timer(uv_timer_t *timer);

/* The disks can be read: from here on the VM may run. */
static void live_placed(struct backup_task *b)
{
    if (!b->placed && vm_files_set_restored(&b->agent->vm_context.places, b->vm, b->task->order.id, &b->err) < 0) {
        task_child_kill(b->child); /* nobody has them yet: it is failed, with that reason */
        return;
    }
    b->placed = true;
    hold(b, false);
    agent_task_ready(b->task, NULL);
}

static bool same(const char *a, const char *b)
{
    return strcmp(a != NULL ? a : "", b != NULL ? b : "") == 0;
}

/* It takes long, and the store is used otherwise by now: another limit, other credentials. The child begins anew with that. */
static bool is_outdated(const struct backup_task *b)
{
    const struct backup_store *now = &b->task->order.store, *then = &b->store;
    return b->placed && OBJECT_HAS(task_order, &b->task->order, store) &&
           (now->bytes_per_second != then->bytes_per_second || !same(now->location, then->location) || !same(now->key, then->key) ||
            !same(now->access_key, then->access_key) || !same(now->secret_key, then->secret_key));
}

static const char not_while_it_runs[] = "not cancelled: the VM has no other disks. Stop it, and this ends with what has come given up";

static void child_told(const struct task_seen *seen, void *arg)
{
    struct backup_task *b = arg;
    b->placing = b->placing || (is_restore(b) && !is_live(b) && seen->step != NULL && strcmp(seen->step, STEP_PLACING) == 0);
    if (is_live(b) && is_outdated(b) && !b->task->stopping)
        task_child_kill(b->child);
    else if (seen->ready && is_live(b) && !b->task->stopping && b->err.code == 0)
        live_placed(b);
    else if (b->cancel_asked && !b->task->stopping)
        agent_task_progress(b->task, not_while_it_runs, seen->progress_done, seen->progress_total);
    else if (!b->task->stopping)
        agent_task_progress(b->task, seen->step, seen->progress_done, seen->progress_total);
}

/* The VM is off, and somebody changes what its disks are made of: a snapshot. It reads them when that is done. */
static bool wait_for_disks(struct backup_task *b, const struct task_seen *seen)
{
    bool in_use = seen->error_code != NULL && strcmp(seen->error_code, error_kind_info(ERROR_IN_USE)->code) == 0;
    if (b->task->order.task.kind != task_kind_BACKUP_CREATE || !b->off || !in_use || seen->state != operation_state_FAILED ||
        b->task->stopping || b->task->order.cancel || b->busy++ >= BACKUP_BUSY_MAX)
        return false;
    agent_task_progress(b->task, "waiting for who has the VM's disks, a snapshot that is made or removed for instance", 0, 0);
    hold(b, false); /* the VM may be started meanwhile */
    uv_timer_start(&b->timer, on_timer, BACKUP_AGAIN_MS, 0);
    return true;
}

/* It ended without a word of its own in the midst of that: killed, by us or somebody else. */
static bool is_torn(const struct backup_task *b, const struct task_seen *seen)
{
    return is_restore(b) && !is_live(b) && b->disks > 1 && seen->state != operation_state_SUCCEEDED && seen->step != NULL &&
           strcmp(seen->step, STEP_PLACING) == 0;
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct backup_task *b = arg;
    b->child = NULL;
    if (wait_for_disks(b, seen))
        return;
    if (b->placed && seen->state != operation_state_SUCCEEDED && !b->task->stopping && b->err.code == 0) {
        uv_timer_start(&b->timer, on_timer, BACKUP_AGAIN_MS, 0); /* the guest has nothing else to read from */
        return;
    }
    if (OBJECT_HAS(task_seen, seen, backup)) { /* also of one that failed: what was found, what is gone */
        OBJECT_COPY(backup_result, &b->result, &seen->backup);
        b->has_result = true;
    }
    if (seen->step != NULL && !b->task->stopping)
        agent_task_progress(b->task, seen->step, b->task->seen.progress_total, b->task->seen.progress_total);
    if (seen->state != operation_state_SUCCEEDED && b->err.code == 0)
        error_set(&b->err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    if (is_torn(b, seen))
        error_prefix(&b->err, "%s", torn);
    over(b, b->err.code != 0 && seen->state == operation_state_CANCELLED && is_live(b) && !b->task->order.cancel
                ? operation_state_FAILED : seen->state);
}

static bool is_wanted(const struct task_backup *task, const char *disk)
{
    for (size_t i = 0; i < task->disks.count; i++)
        if (strcmp(task->disks.items[i], disk) == 0)
            return true;
    return task->disks.count == 0;
}

static int fill_work(const struct backup_task *b, const struct local_vm *vm, bool runs, struct backup_work *work,
                     struct error *err)
{
    OBJECT_SET(backup_work, work, kind, b->task->order.task.kind);
    OBJECT_COPY(task_backup, &work->task, &b->task->order.task.backup);
    object_mark(&backup_work_desc, work, "task");
    OBJECT_COPY(backup_store, &work->store, &b->task->order.store);
    object_mark(&backup_work_desc, work, "store");
    OBJECT_TEXT(backup_work, work, vm, b->vm);
    OBJECT_TEXT(backup_work, work, host, b->agent->identity.name);
    if (b->agent->vm_context.places.user_base != 0) /* nobody else's: after those of VMs and of conversions of images */
        OBJECT_SET(backup_work, work, program_user, b->agent->vm_context.places.user_base + VMM_USERS + 1);
    if (vm == NULL)
        return 0;
    const struct vm_order *order = vm_order_of(vm);
    const struct vm_places *places = &vm_context_of(vm)->places;
    const struct vm_disk *disks = order->disks.items;
    OBJECT_SET(backup_work, work, user, b->user != 0 ? b->user : vm_user(vm));
    if (is_live(b)) {
        char control[VM_FILES_CONTROL_PATH_SIZE];
        CLEANUP_FREE char *source_path = vm_files_source_path(places, b->vm);
        int r = vm_files_control_path(places, b->vm, control, err);
        if (r < 0)
            return r;
        if (strlen(source_path) > object_field(&backup_work_desc, "source_path")->max)
            return error_set(err, -ENAMETOOLONG, ERROR_NOT_SUPPORTED,
                             "the path of the agent's directory is too long for a socket in it: %s", source_path);
        OBJECT_TEXT(backup_work, work, live, b->task->order.id);
        OBJECT_SET(backup_work, work, placed, b->placed);
        OBJECT_TEXT(backup_work, work, control_path, control);
        OBJECT_TEXT(backup_work, work, source_path, source_path);
    } else if (runs) {
        CLEANUP_FREE char *socket_path = vm_files_path(places, b->vm, VM_BACKUP_SOCKET);
        OBJECT_TEXT(backup_work, work, control_path, vm_control_path(vm));
        if (strlen(socket_path) > object_field(&backup_work_desc, "socket_path")->max)
            return error_set(err, -ENAMETOOLONG, ERROR_NOT_SUPPORTED,
                             "the path of the agent's directory is too long for a socket in it: %s", socket_path);
        OBJECT_TEXT(backup_work, work, socket_path, socket_path);
    }
    for (size_t i = 0; i < order->disks.count; i++) {
        if (disks[i].read_only || !is_wanted(&b->task->order.task.backup, disks[i].name))
            continue; /* read-only: it is as its image has it */
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        if (is_restore(b) && !b->placed && order->ha && pool != NULL && pool->kind == pool_kind_SHARED_DIR)
            return error_set(err, -EBUSY, ERROR_CONFLICT,
                             "the VM may be started on another host at any moment, for it has ha and disk %s is in a shared "
                             "pool: turn ha off meanwhile", disks[i].name);
        if (pool_rbd_is(pool) && (is_restore(b) || !runs))
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             is_restore(b) ? "disk %s is in pool %s of kind rbd, and nothing is restored into such: name the other disks, or "
                                             "restore to a new VM and copy in the guest"
                                           : "disk %s is in pool %s of kind rbd, and such are backed up while their VM runs: start it",
                             disks[i].name, pool->name);
        int r = pool != NULL ? pool_watch_there(&b->agent->pools, pool->id, pool->name, err) : 0;
        if (r < 0)
            return r; /* what follows looks into it, on the loop */
        /* A volume may have been another VM's, or nobody's, until now: no VMM of this one has been started with it yet. */
        if (!runs && !b->placed && disks[i].volume != NULL && work->user != geteuid())
            r = vmm_user_own_disk(places, order, &disks[i], work->user, err);
        if (r < 0)
            return r;
        CLEANUP_FREE char *layers = vm_files_layers_path(places, order, &disks[i]);
        CLEANUP_FREE char *leaf = xasprintf("disks/%s.raw", disks[i].name);
        CLEANUP_FREE char *raw = vm_files_path(places, b->vm, leaf);
        struct backup_work_disk *disk = OBJECT_ADD(backup_work, work, disks);
        OBJECT_TEXT(backup_work_disk, disk, name, disks[i].name);
        OBJECT_TEXT(backup_work_disk, disk, raw, raw);
        if (layers != NULL)
            OBJECT_TEXT(backup_work_disk, disk, layers, layers);
        if (pool != NULL && !pool_rbd_is(pool)) { /* whose disk its VMM has */
            OBJECT_COPY(pool_order, &disk->pool, pool);
            object_mark(&backup_work_disk_desc, disk, "pool");
        }
    }
    if (work->disks.count == 0)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "the VM has no disk that it writes to");
    return 0;
}

static void work_begin(struct backup_task *b, const struct local_vm *vm, bool runs)
{
    struct backup_work work = {0};
    b->off = vm != NULL && !runs;
    OBJECT_CLEAR(backup_store, &b->store);
    OBJECT_COPY(backup_store, &b->store, &b->task->order.store);
    int r = fill_work(b, vm, runs, &work, &b->err);
    b->disks = work.disks.count;
    const struct task_child_options options = {.loop = b->agent->loop,
                                               .work = "backup",
                                               .desc = &backup_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = b};
    if (r == 0)
        r = task_child_start(&options, &b->child, &b->err);
    OBJECT_CLEAR(backup_work, &work);
    if (r < 0 && b->placed) { /* as when the child ends */
        log_warning("live-restore", "operation=%s error=\"%s\"", b->task->order.id, b->err.text);
        b->err = (struct error){.code = 0};
        uv_timer_start(&b->timer, on_timer, BACKUP_AGAIN_MS, 0);
    } else if (r < 0) {
        over(b, operation_state_FAILED);
    }
}

/* ---- the task ---- */

/* A VM that was never started has neither a user yet nor the directory of its disks. */
static int unmade_prepare(struct backup_task *b, struct local_vm *vm)
{
    const struct vm_places *places = &vm_context_of(vm)->places;
    CLEANUP_FREE char *directory = vm_files_path(places, b->vm, "disks");
    int r = file_make_directories(directory, 0700, &b->err);
    if (r == 0 && places->user_base != 0)
        r = vmm_user_allot_filled(places, places->user_base, vm_order_of(vm), &b->user, &b->err);
    if (r == 1)
        vm_keep_user(vm, b->user);
    return MIN(r, 0);
}

/* Cancelled: only while nothing runs on disks that will never be whole, and then nothing may. */
static void live_give_up(struct backup_task *b)
{
    struct local_vm *vm = find_vm(b);
    hold(b, true);
    enum vm_disks disks = vm != NULL ? vm_disks(vm) : VM_DISKS_NONE;
    enum vm_state state = vm != NULL ? vm_state_of(vm) : vm_state_DELETED;
    bool rests = state == vm_state_STOPPED || state == vm_state_FAILED; /* else it is about to be started again */
    if (disks == VM_DISKS_IN_USE || disks == VM_DISKS_CHANGING || (disks == VM_DISKS_FREE && !rests)) {
        hold(b, false);
        agent_task_progress(b->task, not_while_it_runs, b->task->seen.progress_done, b->task->seen.progress_total);
        uv_timer_start(&b->timer, on_timer, BACKUP_AGAIN_MS, 0);
        return;
    }
    if (vm != NULL)
        (void)vm_files_set_restored(&b->agent->vm_context.places, b->vm, NULL, NULL);
    error_set(&b->err, -ECANCELED, ERROR_CANCELLED, "cancelled: the VM's disks are not whole, and it does not start with them; restore it again");
    if (b->child != NULL)
        task_child_kill(b->child);
    else
        over(b, operation_state_CANCELLED);
}

static void look(struct backup_task *b)
{
    struct local_vm *vm = find_vm(b);
    if (b->cancel_asked) {
        live_give_up(b);
        return;
    }
    if (b->placed && vm != NULL) { /* whatever it does: it may be its only source */
        if (b->child == NULL)
            work_begin(b, vm, false);
        return;
    }
    enum vm_disks disks = vm != NULL ? vm_disks(vm) : VM_DISKS_NONE;
    switch (disks) {
    case VM_DISKS_FREE:
        if (is_live(b))
            vm_keep_user(vm, 0);
        work_begin(b, vm, false);
        return;
    case VM_DISKS_IN_USE:
        if (is_restore(b)) {
            error_set(&b->err, -EBUSY, ERROR_CONFLICT, "the VM runs; stop it first");
            break;
        }
        hold(b, false); /* its VMM shows the disks; it may stop and start as it likes */
        if (replicate_yields(b->agent, b->vm)) {
            uv_timer_start(&b->timer, on_timer, BACKUP_LOOK_MS, 0);
            return;
        }
        work_begin(b, vm, true);
        return;
    case VM_DISKS_UNMADE:
        if (!is_restore(b)) {
            error_set(&b->err, -ENOENT, ERROR_NOT_FOUND, "the VM has no disks yet; start it once");
        } else if (unmade_prepare(b, vm) == 0) { /* what it finds at its first start it does not make */
            work_begin(b, vm, false);
            return;
        }
        break;
    case VM_DISKS_CHANGING:
        agent_task_progress(b->task, "waiting for the VM to start or end", 0, 0);
        uv_timer_start(&b->timer, on_timer, BACKUP_LOOK_MS, 0);
        return;
    case VM_DISKS_NONE:
        error_set(&b->err, -ENOENT, ERROR_NOT_FOUND, "there are no disks of the VM here yet; start it once");
        break;
    }
    over(b, operation_state_FAILED);
}

static void on_timer(uv_timer_t *timer)
{
    struct backup_task *b = timer->data;
    struct local_vm *vm = find_vm(b);
    /* Not for a look at one that runs: what a hold may have kept back is done anew after it, and for that this may be waiting. */
    if (!b->placed && (is_restore(b) || vm == NULL || vm_disks(vm) != VM_DISKS_IN_USE))
        hold(b, true);
    look(b);
}

static void start(struct agent_task *task)
{
    struct backup_task *b = NEW(struct backup_task);
    b->task = task;
    b->agent = task->agent;
    task->state = b;
    snprintf(b->vm, sizeof b->vm, "%s", task->order.task.vm != NULL ? task->order.task.vm : "");
    uv_timer_init(b->agent->loop, &b->timer);
    b->timer.data = b;
    if (!OBJECT_HAS(task_order, &task->order, store)) {
        error_set(&b->err, -ENOENT, ERROR_NOT_FOUND, "the backup store is not known any more");
        over(b, operation_state_FAILED);
        return;
    }
    if (task->order.task.kind != task_kind_BACKUP_CREATE && task->order.task.kind != task_kind_BACKUP_RESTORE) {
        work_begin(b, NULL, false);
        return;
    }
    b->placed = is_live(b) && vm_files_was_restored(&b->agent->vm_context.places, b->vm, task->order.id);
    if (!b->placed)
        hold(b, true);
    look(b);
}

static void cancel(struct agent_task *task)
{
    struct backup_task *b = task->state;
    if (b->over)
        return;
    if (b->placed) {
        b->cancel_asked = true;
        live_give_up(b);
        return;
    }
    if (b->child != NULL && b->placing) {
        agent_task_progress(b->task, "too late to be cancelled: the disks are being put in their place", 0, 0);
        return;
    }
    if (b->child != NULL) {
        task_child_kill(b->child);
        return;
    }
    error_set(&b->err, -ECANCELED, ERROR_CANCELLED, "cancelled before anything was done");
    over(b, operation_state_CANCELLED);
}

static void stop(struct agent_task *task)
{
    struct backup_task *b = task->state;
    if (b->child != NULL)
        task_child_kill(b->child);
    else
        over(b, operation_state_CANCELLED);
}

const struct agent_task_ops task_backup_ops = {.start = start, .cancel = cancel, .stop = stop};

/* ---- in the child: the VMM ---- */

static int images_begin(const struct backup_work *work, struct vmm_backup *ret_images, struct error *err)
{
    struct vmm_backup_order order = {.name = NULL};
    OBJECT_TEXT(vmm_backup_order, &order, name, work->task.id);
    OBJECT_TEXT(vmm_backup_order, &order, path, work->socket_path);
    if (work->task.parent != NULL)
        OBJECT_TEXT(vmm_backup_order, &order, since, work->task.parent);
    if (OBJECT_HAS(task_backup, &work->task, freeze))
        OBJECT_SET(vmm_backup_order, &order, freeze,
                   work->task.freeze ? vmm_backup_freeze_ALWAYS : vmm_backup_freeze_NEVER);
    int code = vmm_images_begin(work->control_path, &order, ret_images, err);
    OBJECT_CLEAR(vmm_backup_order, &order);
    return code;
}

/* ---- in the child: create ---- */

/* Which repository it was done in; or that none was opened, so that whatever failed has changed nothing. */
static void repository_tell(const struct backup_program *p, struct task_seen *ret_seen)
{
    if (p->repository[0] != '\0')
        OBJECT_TEXT(backup_result, &ret_seen->backup, repository, p->repository);
    else if (ret_seen->backup.repository == NULL)
        OBJECT_SET(backup_result, &ret_seen->backup, untouched, true);
    object_mark(&task_seen_desc, ret_seen, "backup");
}

/* A store that is not encrypted needs nobody's key: it is made where it is missing. Not where one was known to be: what is missing
 * there is not mounted. */
static void store_make(const struct backup_work *work)
{
    struct backup_program p;
    json_t *result = NULL;
    if (work->store.key != NULL || work->store.repository != NULL)
        return;
    if (backup_program_begin(&p, "init", work, NULL) == 0)
        (void)backup_program_run(&p, &result, NULL, NULL); /* one that is there refuses; what is wrong, create will say */
    json_decref(result);
    backup_program_finish(&p);
}

static int create_arguments(struct backup_program *p, enum snapshot_consistency consistency, struct error *err)
{
    const struct backup_work *work = p->work;
    backup_program_option(p, "vm", work->task.vm_name != NULL ? work->task.vm_name : work->vm);
    backup_program_option(p, "vm-id", work->vm);
    backup_program_option(p, "id", work->task.id);
    backup_program_option(p, "parent", work->task.parent != NULL ? work->task.parent : "none");
    backup_program_option(p, "consistency", snapshot_consistency_desc.names[consistency]);
    return work->task.definition != NULL ? backup_program_text(p, "definition", work->task.definition, err) : 0;
}

/* From the manifest that drover-backup shows. */
static void result_fill(const json_t *manifest, struct backup_result *result)
{
    const json_t *disks = json_object_get(manifest, "disks");
    uint64_t read_bytes = 0;
    for (size_t i = 0; i < json_array_size(disks) && i < 16; i++) {
        const json_t *from = json_array_get(disks, i);
        const char *name = json_string_value(json_object_get(from, "name"));
        const char *content = json_string_value(json_object_get(from, "content"));
        struct snapshot_disk *to = OBJECT_ADD(backup_result, result, disks);
        OBJECT_TEXT(snapshot_disk, to, name, name != NULL ? name : "");
        OBJECT_SET(snapshot_disk, to, size_bytes, (uint64_t)json_integer_value(json_object_get(from, "size_bytes")));
        if (content != NULL && strlen(content) <= 64)
            OBJECT_TEXT(snapshot_disk, to, content, content);
        read_bytes += (uint64_t)json_integer_value(json_object_get(from, "read_bytes"));
    }
    OBJECT_SET(backup_result, result, read_bytes, read_bytes);
    OBJECT_SET(backup_result, result, stored_bytes, (uint64_t)json_integer_value(json_object_get(manifest, "stored_bytes")));
    OBJECT_SET(backup_result, result, duration_ms, (uint64_t)json_integer_value(json_object_get(manifest, "duration_ms")));
}

static int create_run(const struct backup_work *work, enum snapshot_consistency consistency, json_t **ret_manifest,
                      struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    pid_t server = 0;
    int r = backup_program_begin(&p, "create", work, err);
    if (r == 0)
        r = create_arguments(&p, consistency, err);
    if (r == 0)
        r = backup_disks_show(&p, &server, err);
    if (r == 0)
        r = backup_program_run(&p, ret_manifest, NULL, err);
    repository_tell(&p, ret_seen);
    backup_disks_end(server);
    backup_program_finish(&p);
    return r;
}

/* ---- in the child: the store ---- */

/* A page of what the store has. */
static int backup_attach(const struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    char text[24];
    json_t *said = NULL;
    int r = backup_program_begin(&p, "list", work, err);
    snprintf(text, sizeof text, "%u", FOUND_PAGE_BYTES);
    backup_program_option(&p, "page-bytes", text);
    if (work->task.after != NULL)
        backup_program_option(&p, "after", work->task.after);
    if (r == 0)
        r = backup_program_run(&p, &said, &ret_seen->backup, err);
    repository_tell(&p, ret_seen);
    json_decref(said);
    backup_program_finish(&p);
    return r;
}

static uint64_t number_of(const json_t *said, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(said, name));
    return value > 0 ? (uint64_t)value : 0;
}

/* What was found counts also where it is damage: then it fails, in words that name it. */
static int backup_verify(const struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    json_t *said = NULL;
    char text[160];
    int r = backup_program_begin(&p, "verify", work, err);
    backup_program_flag(&p, "each");
    if (work->task.id != NULL)
        backup_program_option(&p, "backup", work->task.id);
    if (r == 0)
        r = backup_program_run(&p, &said, &ret_seen->backup, err);
    repository_tell(&p, ret_seen);
    if (r == 0) {
        snprintf(text, sizeof text, "%llu backups are whole; %llu packs, %llu MiB read",
                 (unsigned long long)number_of(said, "backups"), (unsigned long long)number_of(said, "packs"),
                 (unsigned long long)(number_of(said, "bytes") >> 20));
        OBJECT_TEXT(task_seen, ret_seen, step, text);
    }
    json_decref(said);
    backup_program_finish(&p);
    return r;
}

static int gone_add(struct backup_program *p, const struct string_list *gone, struct error *err)
{
    struct bytes_writer list = {0};
    for (size_t i = 0; i < gone->count; i++)
        bytes_put_format(&list, "%s\n", gone->items[i]);
    bytes_put_u8(&list, 0);
    int r = gone->count > 0 ? backup_program_text(p, "forget-list", (const char *)list.data, err) : 0;
    bytes_writer_finish(&list);
    return r;
}

/* What is gone is gone also where the rest fails. */
static int backup_prune(const struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    json_t *said = NULL;
    char text[160];
    int r = backup_program_begin(&p, "prune", work, err);
    backup_program_flag(&p, "missing-ok");
    if (r == 0)
        r = gone_add(&p, &work->task.gone, err);
    if (r == 0)
        r = backup_program_run(&p, &said, &ret_seen->backup, err);
    repository_tell(&p, ret_seen);
    if (r == 0) {
        snprintf(text, sizeof text, "%zu backups are gone, and %llu packs with %llu MiB", work->task.gone.count,
                 (unsigned long long)number_of(said, "removed_packs"),
                 (unsigned long long)(number_of(said, "removed_bytes") >> 20));
        OBJECT_TEXT(task_seen, ret_seen, step, text);
    }
    json_decref(said);
    backup_program_finish(&p);
    return r;
}

static int backup_delete(const struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    json_t *said = NULL;
    int r = backup_program_begin(&p, "prune", work, err);
    backup_program_option(&p, "forget", work->task.id);
    backup_program_flag(&p, "no-collect");
    if (r == 0)
        r = backup_program_run(&p, &said, NULL, err);
    /* it has gone already, or was never whole, like one of which not even the store was made */
    if (r < 0 && err->kind == ERROR_NOT_FOUND && (p.repository[0] != '\0' || work->store.repository == NULL))
        r = 0;
    repository_tell(&p, ret_seen);
    json_decref(said);
    backup_program_finish(&p);
    return r;
}

static int backup_create(struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct vmm_backup images = {.phase = 0};
    enum snapshot_consistency consistency = snapshot_consistency_FILESYSTEM; /* of one that is off nothing is half way */
    json_t *manifest = NULL;
    store_make(work);
    if (work->control_path != NULL) {
        task_child_tell("taking images of the disks", 0, 0);
        int r = images_begin(work, &images, err);
        if (r < 0)
            return r;
        if (images.consistency == backup_consistency_CRASH)
            consistency = snapshot_consistency_CRASH;
    }
    int r = create_run(work, consistency, &manifest, ret_seen, err);
    /* a parent that the store has no more: then all is read */
    if (r < 0 && err->kind == ERROR_NOT_FOUND && work->task.parent != NULL) {
        OBJECT_TEXT(task_backup, &work->task, parent, NULL);
        r = create_run(work, consistency, &manifest, ret_seen, err);
    }
    if (work->control_path != NULL) {
        struct error lost = {.code = 0};
        /* A task that was begun again after its backup was complete has made images of another moment than the backup's: what has
         * changed since those must not be taken for what has changed since it. A program that does not say who made it: the same. */
        bool made = r == 0 && json_is_true(json_object_get(manifest, "made"));
        int ended = vmm_images_end(work->control_path, work->task.id, made, &lost);
        if (r < 0 && ended < 0) /* the reason of the reason */
            error_prefix(err, "%.200s; ", lost.text);
    }
    if (r == 0) {
        OBJECT_SET(backup_result, &ret_seen->backup, consistency, consistency);
        OBJECT_SET(backup_result, &ret_seen->backup, pause_us, images.pause_us);
        result_fill(manifest, &ret_seen->backup);
    }
    json_decref(manifest);
    OBJECT_CLEAR(vmm_backup, &images);
    return r;
}

/* ---- in the child: restore ---- */

static int backup_restore(struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct backup_program p;
    struct backup_targets targets = {.count = 0};
    json_t *result = NULL;
    if (work->live != NULL)
        return backup_live_restore(work, ret_seen, err);
    int r = backup_program_begin(&p, "restore", work, err);
    backup_program_option(&p, "backup", work->task.id);
    if (r == 0)
        r = backup_targets_make(&p, &targets, err);
    if (r == 0)
        r = backup_program_run(&p, &result, NULL, err);
    repository_tell(&p, ret_seen);
    bool restored = r == 0; /* from here on some may be in their place */
    if (r == 0) {
        task_child_tell(STEP_PLACING, 0, 0);
        r = backup_targets_place(&targets, err);
        if (r < 0 && targets.count > 1)
            error_prefix(err, "%s", torn);
    }
    backup_targets_finish(&targets, restored);
    json_decref(result);
    backup_program_finish(&p);
    return r;
}

int task_backup_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err)
{
    struct backup_work work = {0};
    int r = OBJECT_DECODE(backup_work, arguments, size, OBJECT_STORED, &work, err);
    if (r < 0)
        return r;
    r = work.kind == task_kind_BACKUP_CREATE   ? backup_create(&work, ret_seen, err)
        : work.kind == task_kind_BACKUP_DELETE ? backup_delete(&work, ret_seen, err)
        : work.kind == task_kind_BACKUP_ATTACH ? backup_attach(&work, ret_seen, err)
        : work.kind == task_kind_BACKUP_VERIFY ? backup_verify(&work, ret_seen, err)
        : work.kind == task_kind_BACKUP_PRUNE  ? backup_prune(&work, ret_seen, err)
        : work.kind == task_kind_BACKUP_BOOT   ? backup_live_restore(&work, ret_seen, err)
                                               : backup_restore(&work, ret_seen, err);
    OBJECT_CLEAR(backup_work, &work);
    return r;
}
