/* The table of kinds, and orders against what is under way; see the header. */
#include "compute/agent/agent_task.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/report_bound.h"

static const struct agent_task_ops *const kinds[task_kind_COUNT] = {
    [task_kind_SNAPSHOT_CREATE] = &task_snapshot_ops,
    [task_kind_SNAPSHOT_REVERT] = &task_snapshot_ops,
    [task_kind_SNAPSHOT_DELETE] = &task_snapshot_ops,
    [task_kind_VM_MIGRATE] = &task_migrate_ops,
    [task_kind_VM_UPGRADE] = &task_upgrade_ops,
    [task_kind_BACKUP_CREATE] = &task_backup_ops,
    [task_kind_BACKUP_RESTORE] = &task_backup_ops,
    [task_kind_BACKUP_DELETE] = &task_backup_ops,
    [task_kind_BACKUP_ATTACH] = &task_backup_ops,
    [task_kind_BACKUP_VERIFY] = &task_backup_ops,
    [task_kind_BACKUP_PRUNE] = &task_backup_ops,
    [task_kind_BACKUP_BOOT] = &task_boot_ops,
    [task_kind_IMAGE_IMPORT] = &task_image_ops,
    [task_kind_VM_REPLICATE] = &task_replicate_ops,
    [task_kind_VOLUME_MOVE] = &task_volume_ops,
    [task_kind_VOLUME_CLONE] = &task_volume_ops,
    [task_kind_VM_CLONE] = &task_clone_ops,
};

static const struct agent_task_ops *ops_of(const struct agent *a, uint32_t kind)
{
    const struct agent_task_ops *const *table = a->tasks.kinds != NULL ? a->tasks.kinds : kinds;
    return kind < task_kind_COUNT ? table[kind] : NULL;
}

static const char *make_key(const char *id, uint32_t role, char key[AGENT_TASK_KEY_SIZE])
{
    snprintf(key, AGENT_TASK_KEY_SIZE, "%.36s %u", id, role);
    return key;
}

static void poke(struct agent_task *task)
{
    if (task->agent->session != NULL)
        session_poke(task->agent->session);
}

static void task_free(struct agent_task *task)
{
    map_remove(&task->agent->tasks.all, task->key);
    OBJECT_CLEAR(task_order, &task->order);
    OBJECT_CLEAR(task_seen, &task->seen);
    free(task);
}

/* @text as field @field of a report can have it. One that is no UTF-8, holds what the field may not, or is too long makes all of the
 * report one that the controllers do not take: then nothing more is heard of the host. The caller frees. */
static char *words_for(const char *field, const char *text)
{
    const size_t max = (size_t)object_field(&task_seen_desc, field)->max;
    char *words = xcalloc(1, max + 1);
    text_copy(words, max + 1, text);
    report_words(words);
    return words;
}

/* ---- for the kinds ---- */

void agent_task_progress(struct agent_task *task, const char *step, uint64_t done, uint64_t total)
{
    struct task_seen *seen = &task->seen;
    CLEANUP_FREE char *words = step != NULL ? words_for("step", step) : NULL;
    bool news = words != NULL && (seen->step == NULL || strcmp(words, seen->step) != 0);
    ASSERT(!task->ended);
    if (news)
        OBJECT_TEXT(task_seen, seen, step, words);
    OBJECT_SET(task_seen, seen, progress_done, done);
    OBJECT_SET(task_seen, seen, progress_total, total);
    if (news)
        poke(task); /* bytes are told when the agent's tick comes by */
}

void agent_task_ready(struct agent_task *task, const char *endpoint)
{
    ASSERT(!task->ended && (task->order.role == task_role_PEER || task->order.task.backup.live ||
                             task->order.task.kind == task_kind_VOLUME_MOVE ||
                             OBJECT_HAS(task, &task->order.task, session)));
    OBJECT_SET(task_seen, &task->seen, ready, true);
    OBJECT_TEXT(task_seen, &task->seen, endpoint, endpoint);
    poke(task);
}

void agent_task_end(struct agent_task *task, enum operation_state state, const struct error *err)
{
    struct task_seen *seen = &task->seen;
    ASSERT(!task->ended && state != operation_state_RUNNING && task->state == NULL);
    ASSERT(state == operation_state_SUCCEEDED || err != NULL);
    task->ended = true;
    OBJECT_SET(task_seen, seen, state, state);
    if (state != operation_state_SUCCEEDED) {
        CLEANUP_FREE char *words = words_for("error_text", err->text);
        OBJECT_TEXT(task_seen, seen, error_code, error_kind_info(err->kind)->code);
        OBJECT_TEXT(task_seen, seen, error_text, words);
    }
    log_info("task-ended", "operation=%s kind=%s role=%s state=%s why=\"%s\"", task->order.id,
             enum_name(&task_kind_desc, task->order.task.kind), task_role_desc.names[task->order.role],
             operation_state_desc.names[state], state != operation_state_SUCCEEDED ? err->text : "");
    poke(task);
}

void agent_task_stopped(struct agent_task *task)
{
    struct agent *a = task->agent;
    bool closing = a->stopping;
    ASSERT(task->stopping && task->state == NULL);
    task_free(task);
    if (closing)
        agent_part_closed(a);
}

/* ---- orders ---- */

static void task_stop(struct agent_task *task)
{
    if (task->stopping)
        return;
    task->stopping = true;
    if (task->ended && task->ops != NULL && task->ops->forgotten != NULL)
        task->ops->forgotten(task);
    if (task->ended)
        agent_task_stopped(task);
    else
        task->ops->stop(task);
}

/* What the kind has to hear of the newest order. It may end the task. */
static void tell(struct agent_task *task, bool changed)
{
    struct error err = {.code = 0};
    if (!task->ended && task->order.cancel && !task->cancel_told) {
        task->cancel_told = true;
        log_info("task-cancel", "operation=%s", task->order.id);
        if (task->ops->cancel != NULL)
            task->ops->cancel(task);
    }
    if (task->ended || !changed)
        return;
    if (task->ops->changed != NULL) {
        task->ops->changed(task);
    } else if (task->order.task.peer_error != NULL && task->state == NULL) {
        error_set(&err, -EPIPE, ERROR_UNREACHABLE, "%s", task->order.task.peer_error);
        agent_task_end(task, operation_state_FAILED, &err);
    }
}

static void task_begin(struct agent *a, const struct task_order *order, uint64_t index)
{
    struct agent_task *task = NEW(struct agent_task);
    struct error err = {.code = 0};
    task->agent = a;
    task->index = index;
    OBJECT_COPY(task_order, &task->order, order);
    OBJECT_TEXT(task_seen, &task->seen, id, order->id);
    OBJECT_SET(task_seen, &task->seen, role, order->role);
    OBJECT_SET(task_seen, &task->seen, state, operation_state_RUNNING);
    map_put(&a->tasks.all, make_key(order->id, order->role, task->key), task);
    log_info("task-begins", "operation=%s kind=%s role=%s", order->id, enum_name(&task_kind_desc, order->task.kind),
             task_role_desc.names[order->role]);
    task->ops = ops_of(a, order->task.kind);
    if (task->ops == NULL) {
        error_set(&err, -ENOTSUP, ERROR_NOT_SUPPORTED, "this agent cannot do that; upgrade it");
        agent_task_end(task, operation_state_FAILED, &err);
        return;
    }
    task->ops->start(task);
    tell(task, false);
}

static void take(struct agent *a, const struct task_order *order, uint64_t index)
{
    char key[AGENT_TASK_KEY_SIZE];
    struct agent_task *task = map_get(&a->tasks.all, make_key(order->id, order->role, key));
    if (task == NULL) {
        if (a->tasks.all.count < AGENT_TASKS_MAX)
            task_begin(a, order, index);
        return;
    }
    if (task->stopping || index < task->index)
        return; /* it comes again */
    bool changed = !object_equal(&task_desc, &task->order.task, &order->task);
    task->index = index;
    OBJECT_CLEAR(task_order, &task->order);
    OBJECT_COPY(task_order, &task->order, order);
    tell(task, changed);
}

void agent_tasks_obey(struct agent *a, const struct node_orders *orders)
{
    CLEANUP_FREE struct agent_task **over = xcalloc(a->tasks.all.count + 1, sizeof *over);
    const size_t given_count = orders->tasks.count;
    CLEANUP_FREE char(*keys)[AGENT_TASK_KEY_SIZE] = xcalloc(given_count + 1, sizeof *keys);
    struct agent_task *task;
    struct map given = {0};
    size_t count = 0;
    for (size_t i = 0; i < given_count; i++) {
        const struct task_order *order = (const struct task_order *)orders->tasks.items + i;
        map_put(&given, make_key(order->id, order->role, keys[i]), (void *)(uintptr_t)order);
    }
    /* An answer older than the one that it was begun by may simply not have heard of it. */
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        if (map_get(&given, task->key) == NULL && orders->index >= task->index)
            over[count++] = task;
    map_finish(&given);
    for (size_t i = 0; i < count; i++)
        task_stop(over[i]);
    for (size_t i = 0; i < orders->tasks.count; i++)
        take(a, (const struct task_order *)orders->tasks.items + i, orders->index);
}

void agent_tasks_put(const struct agent *a, struct node_report *report)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        OBJECT_COPY(task_seen, (struct task_seen *)OBJECT_ADD(node_report, report, tasks), &task->seen);
}

void agent_tasks_new_cluster_epoch(struct agent *a)
{
    struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        task->index = 0;
}

bool agent_tasks_running(const struct agent *a)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        if (!task->ended)
            return true;
    return false;
}

void agent_tasks_clean(struct agent *a)
{
    for (unsigned i = 0; i < task_kind_COUNT; i++) {
        const struct agent_task_ops *ops = ops_of(a, i);
        if (ops != NULL && ops->clean != NULL && (i == 0 || ops != ops_of(a, i - 1)))
            ops->clean(a);
    }
}

void agent_tasks_stop(struct agent *a)
{
    size_t count = a->tasks.all.count, n = 0;
    CLEANUP_FREE struct agent_task **all = xcalloc(count + 1, sizeof *all);
    struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        all[n++] = task;
    a->closing += (unsigned)n; /* those that stop already included */
    for (size_t i = 0; i < n; i++)
        task_stop(all[i]);
}
