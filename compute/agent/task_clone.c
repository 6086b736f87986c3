/* The task vm-clone: the disks of a new VM of this host, which is off, are made of those of another one that is here, too; its volumes of that one's.
 *
 *   start --> WAITING --the new VM is here and has none, pools are there; without a snapshot: the other one is off--> COPYING (a child) --> over
 *
 * The new VM is held from the beginning to the end: nothing is started with what is half there, and where it is to be deleted meanwhile its
 * files go when nobody writes to them any more. Neither task nor child removes anything: they are the VM's, and go with it (vm.h), or volumes, which
 * go by orders of their own (agent_volumes.h; not before the child has ended, task_clone_works). With a
 * snapshot the other VM does what it likes: what is below one does not change. Without, it is held as well; one that is to run
 * nevertheless comes first, and the task fails.
 *
 * Begun twice: disks that are whole say so and are not made again (task_volume.c, which copies each), others are made anew. Cancel: the child
 * is killed; what it has made goes with the VM, which the controllers have deleted then. Where these have forgotten the task instead, in a
 * recovery, and keep the VM, it stays marked as half (vm_files_set_half), and is not started. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"

#define CLONE_LOOK_MS 200

struct clone_task {
    struct agent_task *task;
    struct agent *agent;
    char vm[37], source[37]; /* source empty: a snapshot of it is read */
    struct vm_copy copy;     /* as it was begun */
    bool holds, holds_source;
    struct task_child *child;
    uv_timer_t timer;
    bool yields; /* the child is ended, for the source is to run */
    bool copied; /* all of it; whose it is from now on is still to be written down */
    bool cancel, over;
    enum operation_state state;
    struct error err;
};

static struct local_vm *find_vm(const struct clone_task *c, const char *id)
{
    return c->agent->stopping || id[0] == '\0' ? NULL : map_get(&c->agent->vms, id); /* an agent that stops has closed its VMs */
}

static void hold(const struct clone_task *c, const char *id, bool *held, bool wanted)
{
    struct local_vm *vm = find_vm(c, id);
    if (vm == NULL || *held == wanted)
        return;
    *held = wanted;
    vm_hold(vm, wanted);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct clone_task *c = handle->data;
    struct agent_task *task = c->task;
    enum operation_state state = c->state;
    struct error err = c->err;
    OBJECT_CLEAR(vm_copy, &c->copy);
    free(c);
    task->state = NULL;
    if (!task->agent->stopping)
        agent_volumes_tick(task->agent); /* volumes that are to be removed may be so now */
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

/* All of its disks are here, and no start makes any. Those that are only read are made by the first one. */
static int made(struct clone_task *c)
{
    struct local_vm *vm = find_vm(c, c->vm);
    int r = vm != NULL ? vm_files_set_half(&vm_context_of(vm)->places, c->vm, false, &c->err) : 0;
    return r == 0 && vm != NULL && vm_order_of(vm)->disks.count == c->copy.disks.count ? vm_disks_are_made(vm, &c->err) : r;
}

static void over(struct clone_task *c, enum operation_state state)
{
    ASSERT(c->child == NULL);
    if (c->over)
        return;
    c->over = true;
    c->state = state == operation_state_SUCCEEDED && made(c) < 0 ? operation_state_FAILED : state;
    hold(c, c->vm, &c->holds, false);
    hold(c, c->source, &c->holds_source, false);
    uv_timer_stop(&c->timer);
    uv_close((uv_handle_t *)&c->timer, on_timer_closed);
}

static void fail(struct clone_task *c, enum error_kind kind, const char *words)
{
    error_set(&c->err, -EIO, kind, "%s", words);
    over(c, operation_state_FAILED);
}

static void cancelled(struct clone_task *c)
{
    error_set(&c->err, -ECANCELED, ERROR_CANCELLED, "cancelled");
    over(c, operation_state_CANCELLED);
}

/* ---- a child ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct clone_task *c = arg;
    if (!c->task->stopping)
        agent_task_progress(c->task, seen->step, seen->progress_done, seen->progress_total);
}

static void on_timer(uv_timer_t *timer);

static void look_later(struct clone_task *c)
{
    uv_timer_start(&c->timer, on_timer, CLONE_LOOK_MS, 0);
}

/* Are all of them? False: the task is over, or looks again, for one may be back soon. */
static bool pools_there(struct clone_task *c)
{
    int r = 0;
    for (size_t i = 0; i < c->copy.disks.count; i++) {
        const struct volume_move *disk = (const struct volume_move *)c->copy.disks.items + i;
        const struct pool_order *const pools[] = {&disk->from.pool, &disk->to.pool};
        for (size_t k = 0; r == 0 && k < ARRAY_SIZE(pools); k++)
            r = pool_dir_is_here(pools[k]) ? 0 : pool_watch_there(&c->agent->pools, pools[k]->id, pools[k]->name, &c->err);
    }
    if (r == -EAGAIN) {
        agent_task_progress(c->task, c->err.text, 0, 0);
        c->err = (struct error){.code = 0};
        look_later(c);
    } else if (r < 0) {
        over(c, operation_state_FAILED);
    }
    return r == 0;
}

static void end_well(struct clone_task *c)
{
    c->copied = true;
    if (pools_there(c)) /* what is done there now is done on the loop */
        over(c, operation_state_SUCCEEDED);
}

static const char to_run[] = "the VM that it is made of is to run: ask again when it runs, or stop it and ask again";

static void child_done(const struct task_seen *seen, void *arg)
{
    struct clone_task *c = arg;
    c->child = NULL;
    if (seen->state == operation_state_SUCCEEDED && !c->task->stopping)
        end_well(c);
    else if (c->yields && !c->cancel && !c->task->stopping)
        fail(c, ERROR_CONFLICT, to_run);
    else if (seen->state == operation_state_CANCELLED)
        cancelled(c);
    else
        fail(c, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"),
             seen->error_text != NULL ? seen->error_text : "it does not say why");
}

static void copy(struct clone_task *c)
{
    const struct task_child_options options = {.loop = c->agent->loop,
                                               .work = "clone",
                                               .desc = &vm_copy_desc,
                                               .arguments = &c->copy,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = c};
    struct local_vm *vm = find_vm(c, c->vm);
    if (!pools_there(c))
        return;
    if (vm_disks(vm) == VM_DISKS_UNMADE && vm_files_set_half(&vm_context_of(vm)->places, c->vm, true, &c->err) < 0)
        over(c, operation_state_FAILED);
    else if (task_child_start(&options, &c->child, &c->err) < 0)
        over(c, operation_state_FAILED);
    else if (c->source[0] != '\0')
        look_later(c);
}

/* ---- looking ---- */

static bool is_to_run(const struct local_vm *vm)
{
    enum vm_wanted wanted = vm_order_of(vm)->wanted;
    return wanted != vm_wanted_STOPPED && (wanted == vm_wanted_DELETED || vm_state_of(vm) != vm_state_STOPPED);
}

/* May its disks be read now? False: the task is over, or looks again. */
static bool source_rests(struct clone_task *c)
{
    struct local_vm *vm = find_vm(c, c->source);
    if (c->source[0] == '\0')
        return true;
    switch (vm != NULL ? vm_disks(vm) : VM_DISKS_NONE) {
    case VM_DISKS_FREE:
        if (!is_to_run(vm))
            return true;
        fail(c, ERROR_CONFLICT, to_run);
        return false;
    case VM_DISKS_IN_USE:
        fail(c, ERROR_CONFLICT, to_run);
        return false;
    case VM_DISKS_CHANGING:
        agent_task_progress(c->task, "waiting for the VM that it is made of to start or end", 0, 0);
        look_later(c);
        return false;
    case VM_DISKS_UNMADE:
        fail(c, ERROR_CONFLICT, "the VM that it is made of has no disks yet: start it once");
        return false;
    case VM_DISKS_NONE:
        break;
    }
    fail(c, ERROR_CONFLICT, "this host does not have the VM that it is made of");
    return false;
}

static void look(struct clone_task *c)
{
    struct local_vm *vm = find_vm(c, c->vm), *source = find_vm(c, c->source);
    if (c->child != NULL) {
        if (source != NULL && is_to_run(source) && !c->yields) {
            c->yields = true;
            task_child_kill(c->child);
        }
        look_later(c);
        return;
    }
    if (c->cancel) {
        cancelled(c);
        return;
    }
    if (c->copied) {
        end_well(c);
        return;
    }
    switch (vm != NULL ? vm_disks(vm) : VM_DISKS_NONE) {
    case VM_DISKS_UNMADE:
    case VM_DISKS_FREE: /* it has been done before, and only the last word was lost */
        if (source_rests(c))
            copy(c);
        return;
    case VM_DISKS_CHANGING:
        look_later(c);
        return;
    case VM_DISKS_IN_USE: /* by a word of controllers that is lost: it was made, and started */
        over(c, operation_state_SUCCEEDED);
        return;
    case VM_DISKS_NONE:
        break;
    }
    fail(c, ERROR_INTERNAL, "this host does not have the VM that is to be made");
}

static void on_timer(uv_timer_t *timer)
{
    struct clone_task *c = timer->data;
    if (!c->over)
        look(c);
}

/* ---- the task ---- */

static void start(struct agent_task *task)
{
    const struct task *given = &task->order.task;
    struct clone_task *c = NEW(struct clone_task);
    c->task = task;
    c->agent = task->agent;
    task->state = c;
    OBJECT_COPY(vm_copy, &c->copy, &task->order.copy);
    for (size_t i = 0; i < c->copy.disks.count; i++)
        task_volume_fill(c->agent, (struct volume_move *)c->copy.disks.items + i);
    snprintf(c->vm, sizeof c->vm, "%s", given->vm != NULL ? given->vm : "");
    if (given->vm_clone.snapshot == NULL && given->vm_clone.vm != NULL)
        snprintf(c->source, sizeof c->source, "%s", given->vm_clone.vm);
    uv_timer_init(c->agent->loop, &c->timer);
    c->timer.data = c;
    hold(c, c->vm, &c->holds, true);
    hold(c, c->source, &c->holds_source, true);
    if (c->copy.disks.count == 0)
        fail(c, ERROR_CONFLICT, "there is nothing to copy any more: the VM that it is made of, or its disks, are gone");
    else
        look(c);
}

static void cancel(struct agent_task *task)
{
    struct clone_task *c = task->state;
    c->cancel = true;
    if (c->child != NULL)
        task_child_kill(c->child);
    else if (!c->over)
        uv_timer_start(&c->timer, on_timer, 0, 0);
}

static void stop(struct agent_task *task)
{
    struct clone_task *c = task->state;
    if (c->over)
        return; /* on its way */
    if (c->child != NULL)
        task_child_kill(c->child);
    else
        over(c, operation_state_CANCELLED);
}

bool task_clone_works(const struct agent *agent, const char *id)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&agent->tasks.all, &i)) != NULL;) {
        const struct clone_task *c = task->ops == &task_clone_ops ? task->state : NULL;
        for (size_t k = 0; c != NULL && k < c->copy.disks.count; k++)
            if (strcmp(((const struct volume_move *)c->copy.disks.items)[k].to.id, id) == 0)
                return true;
    }
    return false;
}

const struct agent_task_ops task_clone_ops = {.start = start, .cancel = cancel, .stop = stop};
