/* Booting a backup, to see whether it comes up: what it means for the backup that the task begins and ends.
 *
 *   backup-boot: changes no state of the backup, but keeps it from being removed, and keeps room for its VM at the task's host, which
 *   boots one at a time. What the host saw is noted with the backup; where it did not come to starting the VM nothing is. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/backup_boot.h"

static bool boot_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_backup *given = &operation->task.backup;
    const struct record *host = state_get(a->state, object_kind_HOST, operation->task.host);
    const struct record *record = apply_find(a, object_kind_BACKUP, given->id, 0);
    const struct backup *backup = record != NULL ? record->backup : NULL;
    const struct operation *other = backup_boot_on(host);
    char why[APPLY_TEXT_BYTES_MAX];
    if (backup == NULL)
        return false;
    if (!OBJECT_HAS(task_backup, given, boot) || given->store == NULL || strcmp(given->store, backup->store) != 0)
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the task does not say how backup '%s' is booted", backup->name);
    else if (backup->state != backup_state_AVAILABLE && backup->state != backup_state_RESTORING)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is %s: there is nothing whole to boot", backup->name,
                     backup_state_desc.names[backup->state]);
    else if (backup->damage != NULL)
        apply_refuse(a, -EBADMSG, ERROR_CONFLICT,
                     "backup '%s' is damaged (%s): boot another one; if its store was mended, verify it first (drover backup verify %s)",
                     backup->name, backup->damage, backup->name);
    else if (other != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "host %s boots a backup already (%s); wait for that, or cancel it (operation %s)",
                     host->common->name, other->target_name, other->id);
    else if (!apply_host_fits(host, given->boot.memory_bytes, given->boot.vcpus, why, sizeof why))
        apply_refuse(a, -ENOSPC, ERROR_NO_HOST, "%s", why);
    else
        return true;
    return false;
}

static void boot_begun(struct apply *a, const struct operation *operation)
{
    struct record *record = map_get(&a->state->tables[object_kind_BACKUP].by_id, operation->task.backup.id);
    struct record *vm = map_get(&a->state->tables[object_kind_VM].by_id, record->backup->vm);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(backup, record->backup, boot_begun_at, a->request->at);
    state_edit_end(a->state, record, a->index);
    if (vm == NULL)
        return;
    state_edit_begin(a->state, vm); /* for its policy: the backup may be let go long before the next one is to be booted */
    OBJECT_TEXT(vm, vm->vm, backup_boot_at, a->request->at);
    state_edit_end(a->state, vm, a->index);
}

static void boot_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                       const struct task_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_BACKUP].by_id, operation->task.backup.id);
    const struct backup_result *result = seen != NULL && OBJECT_HAS(task_seen, seen, backup) ? &seen->backup : NULL;
    char failure[APPLY_STEP_BYTES_MAX], showed[201];
    if (record == NULL || result == NULL || !result->booted || state == operation_state_CANCELLED)
        return; /* nothing is known of it */
    bool came_up = state == operation_state_SUCCEEDED;
    apply_text(failure, sizeof failure, "%s", text != NULL ? text : "it does not say why");
    apply_text(showed, sizeof showed, "%s", result->boot_seen != NULL ? result->boot_seen : "its host says so");
    state_edit_begin(a->state, record);
    OBJECT_TEXT(backup, record->backup, booted_at, a->request->at);
    OBJECT_TEXT(backup, record->backup, boot_seen, came_up ? showed : NULL);
    OBJECT_SET(backup, record->backup, boot_ms, result->boot_ms);
    OBJECT_TEXT(backup, record->backup, boot_failure, came_up ? NULL : failure);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "backup %s of VM %s %s: %s", record->common->name, record->backup->vm_name,
                came_up ? "was booted and came up" : "was booted and did not come up", came_up ? showed : failure);
}

const struct task_kind_ops task_backup_boot = {boot_may_begin, boot_begun, boot_ended};
