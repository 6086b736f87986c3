/* See boot_plan.h. */
#include "controller/command/boot_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "controller/command/host_view.h"
#include "controller/fsm/backup_boot.h"
#include "scheduler/place.h"

enum { NOTE_BYTES_MAX = 500 };

#define NO_ID "00000000-0000-4000-8000-000000000000" /* while it is only looked at */

/* Each host boots one at a time. The operation that some host with room is busy with is left in *ret_busy. */
static int host_choose(const struct state *state, const struct vm *vm, const char **ret_host, struct error *err)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = host_view_request(vm);
    size_t count = state_count(state, object_kind_HOST);
    CLEANUP_FREE uint8_t *busy = xcalloc(count + 1, sizeof *busy);
    char note[NOTE_BYTES_MAX];
    int rc = 0;
    for (size_t i = 0; i < count; i++)
        busy[i] = backup_boot_on(state_at(state, object_kind_HOST, i)) != NULL;
    request.pin = NULL; /* that is of the cluster that it was in */
    request.apart = busy;
    host_view_fill(state, NULL, &view);
    place_vm(&view, &request, &result);
    *ret_host = result.chosen != PLACE_NONE ? view.ids[result.chosen] : NULL;
    if (*ret_host == NULL) {
        request.apart = NULL;
        place_vm(&view, &request, &result);
        place_summary(&view, &request, &result, note, sizeof note);
        const struct operation *other =
            result.chosen != PLACE_NONE ? backup_boot_on(state_at(state, object_kind_HOST, result.chosen)) : NULL;
        if (other != NULL)
            rc = error_set_field(err, -EBUSY, ERROR_CONFLICT, "/boot",
                                 "each host that has room boots a backup already, such as %s (%s); wait for that, or cancel it (operation %s)",
                                 view.names[result.chosen], other->target_name, other->id);
        else
            rc = error_set_field(err, -ENOSPC, ERROR_NO_HOST, "/boot", "the VM in the backup finds no host: %s", note);
    }
    place_result_finish(&result);
    view_finish(&view);
    return rc;
}

/* What shows that it has come up, left in *ret; NULL: any of the usual signs. The label is the VM's of now, or that of @then, where there
 * is none now; it may be longer than what a host takes. */
static int sign_find(const struct record *now, const struct vm *then, const struct boot_wish *wish, const char **ret, struct error *err)
{
    const uint64_t most = object_field(&task_boot_desc, "wait_for")->max;
    const char *label = now != NULL ? state_vm_label(now->vm, BACKUP_BOOT_LABEL) : NULL;
    label = label != NULL ? label : state_vm_label(then, BACKUP_BOOT_LABEL);
    *ret = wish->wait_for != NULL ? wish->wait_for : label;
    if (wish->wait_for == NULL && label != NULL && strlen(label) > most)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/wait_for",
                               "the label " BACKUP_BOOT_LABEL " of its VM has %zu bytes, and %" PRIu64 " are the most: give it a shorter text, "
                               "such as a part of that line, or say here what to wait for (--wait-for)",
                               strlen(label), most);
    return 0;
}

static void boot_fill(const struct record *backup, const struct vm *vm, const struct boot_wish *wish, const char *host,
                      const char *wait_for, struct operation *operation)
{
    struct task_backup *arguments = &operation->task.backup;
    OBJECT_SET(operation, operation, kind, operation_kind_BACKUP_BOOT);
    OBJECT_SET(operation, operation, target_kind, object_kind_BACKUP);
    OBJECT_TEXT(operation, operation, target_id, backup->common->id);
    OBJECT_TEXT(operation, operation, target_name, backup->common->name);
    OBJECT_SET(task, &operation->task, kind, task_kind_BACKUP_BOOT);
    OBJECT_TEXT(task, &operation->task, host, host);
    OBJECT_TEXT(task_backup, arguments, id, backup->common->id);
    OBJECT_TEXT(task_backup, arguments, store, backup->backup->store);
    OBJECT_TEXT(task_backup, arguments, vm_name, backup->backup->vm_name);
    OBJECT_SET(task_boot, &arguments->boot, vcpus, vm->vcpus);
    OBJECT_SET(task_boot, &arguments->boot, memory_bytes, vm->memory_bytes);
    OBJECT_SET(task_boot, &arguments->boot, timeout_s, wish->timeout_s != 0 ? wish->timeout_s : BOOT_PLAN_TIMEOUT_S);
    if (wait_for != NULL && wait_for[0] != '\0')
        OBJECT_TEXT(task_boot, &arguments->boot, wait_for, wait_for);
    object_mark(&task_backup_desc, arguments, "boot");
    object_mark(&task_desc, &operation->task, "backup");
    object_mark(&operation_desc, operation, "task");
}

int boot_plan(const struct state *state, const struct record *backup, const struct boot_wish *wish, struct operation *operation,
              struct error *err)
{
    const struct record *now = state_get(state, object_kind_VM, backup->backup->vm);
    struct vm vm = {0};
    const char *host = NULL, *wait_for = NULL;
    int rc = backup_boot_vm(state, backup->backup, NO_ID, &vm, err);
    if (rc == 0)
        rc = sign_find(now, &vm, wish, &wait_for, err);
    if (rc == 0)
        rc = host_choose(state, &vm, &host, err);
    if (rc == 0)
        boot_fill(backup, &vm, wish, host, wait_for, operation);
    OBJECT_CLEAR(vm, &vm);
    return rc;
}
