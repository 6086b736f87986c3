/* Requests about whole stores of backups: verify and prune. Any host can do the work. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <string.h>

#include "controller/command/boot_plan.h"
#include "controller/fsm/backup_rules.h"

static int fill(struct deciding *d, const struct record *target, const char *store, enum operation_kind kind, enum task_kind task,
                struct command_task *command)
{
    struct operation *operation = &command->operation;
    const char *host = decide_backup_host(d, NULL);
    if (host == NULL)
        return error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host is up that could reach the store");
    OBJECT_SET(operation, operation, kind, kind);
    OBJECT_SET(operation, operation, target_kind, target->kind);
    OBJECT_TEXT(operation, operation, target_id, target->common->id);
    OBJECT_TEXT(operation, operation, target_name, target->common->name);
    OBJECT_SET(task, &operation->task, kind, task);
    OBJECT_TEXT(task, &operation->task, host, host);
    OBJECT_TEXT(task_backup, &operation->task.backup, store, store);
    object_mark(&task_desc, &operation->task, "backup");
    return 0;
}

static int backup_boot(struct deciding *d, const struct record *record, const struct backup_verify *body)
{
    struct command_task command = {0};
    const struct boot_wish wish = {.wait_for = body->wait_for, .timeout_s = body->boot_timeout_s};
    int rc = boot_plan(d->state, record, &wish, &command.operation, d->err);
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

int decide_backup_verify(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const struct backup_verify *body)
{
    struct command_task command = {0};
    const struct record *record = decide_target(d, kind, id, id_length);
    if (record == NULL)
        return -ENOENT;
    if (body != NULL && body->boot)
        return backup_boot(d, record, body);
    if (body != NULL && (body->wait_for != NULL || OBJECT_HAS(backup_verify, body, boot_timeout_s)))
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, body->wait_for != NULL ? "/wait_for" : "/boot_timeout_s",
                               "says how the backup is booted: ask for that as well (boot, drover backup verify --boot)");
    bool one = kind == object_kind_BACKUP;
    int rc = fill(d, record, one ? record->backup->store : record->common->id, operation_kind_BACKUP_VERIFY,
                  task_kind_BACKUP_VERIFY, &command);
    if (rc < 0)
        return rc;
    if (one)
        OBJECT_TEXT(task_backup, &command.operation.task.backup, id, record->common->id);
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

/* ---- prune ---- */

/* The VM that is named, by its id; also one that is gone, by what its backups say. NULL: there is none. */
static const char *vm_named(const struct deciding *d, const struct record *store, const char *given)
{
    const struct record *vm = state_get(d->state, object_kind_VM, given);
    if (vm != NULL)
        return vm->common->id;
    for (size_t i = 0; i < state_count(d->state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(d->state, object_kind_BACKUP, i)->backup;
        if (strcmp(backup->store, store->common->id) == 0 &&
            (strcmp(backup->vm, given) == 0 || strcmp(backup->vm_name, given) == 0))
            return backup->vm;
    }
    return NULL;
}

static bool is_named(const struct string_list *ids, const char *id)
{
    for (size_t i = 0; i < ids->count; i++)
        if (strcmp(ids->items[i], id) == 0)
            return true;
    return ids->count == 0;
}

static void going_add(const struct backup *backup, struct backup_prune_plan *plan)
{
    struct backup_going *going = OBJECT_ADD(backup_prune_plan, plan, goes);
    OBJECT_TEXT(backup_going, going, id, backup->id);
    OBJECT_TEXT(backup_going, going, name, backup->name);
    OBJECT_TEXT(backup_going, going, vm_name, backup->vm_name);
    OBJECT_TEXT(backup_going, going, created_at, backup->created_at);
}

/* Fills what is asked for, and what a dry run shows. */
static void choose(struct deciding *d, const struct record *store, const char *vm, const struct backup_prune *body,
                   struct task_backup *arguments)
{
    const struct retention_rules rules = {body->keep_last,   body->keep_hourly,  body->keep_daily,
                                          body->keep_weekly, body->keep_monthly, body->keep_yearly};
    const size_t most = object_field(&task_backup_desc, "gone")->max;
    struct backup_prune_plan plan = {0};
    struct backup_choice choice;
    backup_rules_choose(d->state, d->context->now, store, vm, retention_has_rules(&rules) ? &rules : NULL, &choice);
    for (size_t i = 0; i < choice.count && !body->collect_only; i++) {
        if (!is_named(&body->backups, choice.goes[i]->id))
            continue;
        if (plan.goes.count == most) {
            OBJECT_SET(backup_prune_plan, &plan, more, true);
            break;
        }
        going_add(choice.goes[i], &plan);
        backup_rules_add_id(arguments, choice.goes[i]->id);
    }
    OBJECT_SET(backup_prune_plan, &plan, kept, choice.looked_at - plan.goes.count);
    decide_preview(d, &backup_prune_plan_desc, &plan);
    OBJECT_CLEAR(backup_prune_plan, &plan);
    backup_choice_finish(&choice);
}

int decide_backup_prune(struct deciding *d, const char *id, size_t id_length, const struct backup_prune *body)
{
    static const struct backup_prune nothing;
    struct command_task command = {0};
    const struct record *store = decide_target(d, object_kind_BACKUP_STORE, id, id_length);
    const char *vm = NULL;
    if (store == NULL)
        return -ENOENT;
    body = body != NULL ? body : &nothing;
    if (body->vm != NULL && (vm = vm_named(d, store, body->vm)) == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/vm", "there is no VM '%.63s', and no backup of one in store '%s'",
                               body->vm, store->common->name);
    int rc = fill(d, store, store->common->id, operation_kind_BACKUP_PRUNE, task_kind_BACKUP_PRUNE, &command);
    if (rc < 0)
        return rc;
    choose(d, store, vm, body, &command.operation.task.backup);
    return decide_task(d, &command);
}
