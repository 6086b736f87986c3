/* VMs whose backups are due: see backup_schedule.h. */
#include "controller/reconcile/backup_schedule.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/command/boot_plan.h"
#include "controller/fsm/backup_definition.h"
#include "controller/fsm/backup_rules.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

enum { NAME_OF_VM_CHARACTERS = 44, NAME_SIZE = 64 };

static bool is_whole(const struct backup *backup)
{
    return backup->damage == NULL && (backup->state == backup_state_AVAILABLE || backup->state == backup_state_RESTORING);
}

/* NULL: it has none, or there is no such policy. */
static const struct record *policy_of(const struct state *state, const struct vm *vm)
{
    const char *name = string_map_get(&vm->labels, BACKUP_POLICY_LABEL);
    return name != NULL ? state_get(state, object_kind_BACKUP_POLICY, name) : NULL;
}

/* Is it in the store that the policy of its VM boots from? */
static bool may_be_booted(const struct state *state, const struct backup *backup)
{
    const struct record *vm = state_get(state, object_kind_VM, backup->vm);
    const struct record *policy = vm != NULL ? policy_of(state, vm->vm) : NULL;
    if (policy == NULL || policy->backup_policy->boot_every_s == 0)
        return false;
    const struct record *store = state_get(state, object_kind_BACKUP_STORE, policy->backup_policy->store);
    return store != NULL && strcmp(backup->store, store->common->id) == 0;
}

void backup_schedule_init(struct backup_schedule *s, const struct state *state, const char *now)
{
    *s = (struct backup_schedule){.state = state, .now = now};
    if (state_count(state, object_kind_BACKUP_POLICY) == 0) {
        s->next = s->next_boot = state_count(state, object_kind_VM);
        return;
    }
    for (size_t i = 0; i < state_count(state, object_kind_BACKUP); i++) {
        struct backup *backup = state_at(state, object_kind_BACKUP, i)->backup;
        const struct backup *other = backup->policy != NULL ? map_get(&s->newest, backup->vm) : NULL;
        s->rules_due = s->rules_due || backup->rules_due;
        /* one of a clock that was ahead does not stand for those that were made since */
        bool counts = backup->state == backup_state_CREATING || !time_text_is_ahead(time_text_ms(now), backup->created_at);
        if (backup->policy != NULL && counts && (other == NULL || strcmp(backup->created_at, other->created_at) > 0))
            map_put(&s->newest, backup->vm, backup);
        other = map_get(&s->whole, backup->vm);
        if (is_whole(backup) && counts && (other == NULL || strcmp(backup->created_at, other->created_at) > 0) &&
            may_be_booted(state, backup))
            map_put(&s->whole, backup->vm, backup);
    }
}

void backup_schedule_finish(struct backup_schedule *s)
{
    map_finish(&s->newest);
    map_finish(&s->whole);
}

static bool is_due(const struct backup_schedule *s, const struct backup_policy *policy, const struct vm *vm)
{
    const struct backup *newest = map_get(&s->newest, vm->id);
    uint64_t wait_s = policy->every_s;
    if (newest == NULL || strcmp(newest->policy, policy->name) != 0)
        return true;
    if (newest->state == backup_state_FAILED)
        wait_s = MIN(wait_s, (uint64_t)BACKUP_SCHEDULE_RETRY_S);
    return newest->state != backup_state_CREATING && time_text_is_over(time_text_ms(s->now), newest->created_at, wait_s * 1000);
}

/* Its disks are there and stay, and nobody else is at work on them. */
static bool may_begin(const struct record *record)
{
    const struct vm *vm = record->vm;
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disks[i].leaving)
            return false;
    bool stands = vm->state == vm_state_RUNNING || vm->state == vm_state_PAUSED || vm->state == vm_state_STOPPED;
    return vm->host != NULL && stands && !vm->unstarted && vm->wanted != vm_wanted_DELETED && replica_others(record) == 0;
}

static uint64_t hash_add(uint64_t hash, const char *text)
{
    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    hash ^= hash >> 29; /* and its end */
    return hash * UINT64_C(0xbf58476d1ce4e5b9);
}

static void id_make(const char *what, const char *vm, const char *policy, const char *now, char id[STATE_ID_BYTES])
{
    const char *texts[] = {what, vm, policy, now};
    uint64_t a = UINT64_C(0xcbf29ce484222325), b = UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        a = hash_add(a, texts[i]);
        b = hash_add(b ^ a, texts[i]);
    }
    snprintf(id, STATE_ID_BYTES, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32), (unsigned)(a >> 16 & 0xffff),
             (unsigned)(a & 0xfff), (unsigned)(0x8000 | (b >> 48 & 0x3fff)), (unsigned long long)(b & 0xffffffffffff));
}

/* The newest backup of the VM in the store that is whole, whoever wanted it. */
static const char *parent_of(const struct state *state, const char *now, const char *vm, const char *store)
{
    const struct backup *found = NULL;
    for (size_t i = 0; i < state_count(state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(state, object_kind_BACKUP, i)->backup;
        if (is_whole(backup) && !time_text_is_ahead(time_text_ms(now), backup->created_at) && strcmp(backup->vm, vm) == 0 &&
            strcmp(backup->store, store) == 0 &&
            (found == NULL || strcmp(backup->created_at, found->created_at) > 0))
            found = backup;
    }
    return found != NULL ? found->id : NULL;
}

static void arguments_fill(const struct backup_schedule *s, const struct backup_policy *policy, const struct record *vm,
                           const struct record *store, struct task_backup *arguments)
{
    struct bytes_writer definition = {0};
    const char *parent = parent_of(s->state, s->now, vm->common->id, store->common->id);
    if (parent != NULL)
        OBJECT_TEXT(task_backup, arguments, parent, parent);
    OBJECT_TEXT(task_backup, arguments, policy, policy->name);
    OBJECT_TEXT(task_backup, arguments, vm_name, vm->common->name);
    OBJECT_TEXT(task_backup, arguments, store, store->common->id);
    if (OBJECT_HAS(backup_policy, policy, freeze))
        OBJECT_SET(task_backup, arguments, freeze, policy->freeze);
    backup_definition_put(s->state, vm, &definition);
    bytes_put_u8(&definition, 0);
    if (definition.size <= object_field(&task_backup_desc, "definition")->max)
        OBJECT_TEXT(task_backup, arguments, definition, (const char *)definition.data);
    bytes_writer_finish(&definition);
}

static void command_fill(const struct backup_schedule *s, const struct backup_policy *policy, const struct record *vm,
                         const struct record *store, struct command_task *command)
{
    struct operation *operation = &command->operation;
    const char *t = s->now; /* 2026-01-31T12:00:00.000Z */
    char id[STATE_ID_BYTES], name[NAME_SIZE];
    snprintf(name, sizeof name, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s", NAME_OF_VM_CHARACTERS, vm->common->name, t, t + 5, t + 8,
             t + 11, t + 14, t + 17);
    id_make("operation", vm->common->id, policy->id, t, id);
    OBJECT_TEXT(operation, operation, id, id);
    OBJECT_SET(operation, operation, kind, operation_kind_BACKUP_CREATE);
    OBJECT_SET(operation, operation, target_kind, object_kind_BACKUP);
    id_make("backup", vm->common->id, policy->id, t, id);
    OBJECT_TEXT(operation, operation, target_id, id);
    OBJECT_TEXT(operation, operation, target_name, name);
    OBJECT_SET(task, &operation->task, kind, task_kind_BACKUP_CREATE);
    OBJECT_TEXT(task, &operation->task, host, vm->vm->host);
    OBJECT_TEXT(task, &operation->task, vm, vm->common->id);
    OBJECT_SET(task, &operation->task, epoch, vm->vm->epoch);
    OBJECT_TEXT(task_backup, &operation->task.backup, id, id);
    OBJECT_TEXT(task_backup, &operation->task.backup, name, name);
    arguments_fill(s, policy, vm, store, &operation->task.backup);
    object_mark(&task_desc, &operation->task, "backup");
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, command, "operation");
}

/* Each tick begins with another VM: those whose backups are refused when they are to begin (a volume of theirs is at work, say) are due
 * again at once, and are not to keep all others from their turn. */
static size_t first_vm(const struct backup_schedule *s)
{
    size_t count = state_count(s->state, object_kind_VM);
    return count > 0 ? (hash_add(UINT64_C(0xcbf29ce484222325), s->now) >> 32) % count : 0;
}

bool backup_schedule_next(struct backup_schedule *s, struct command_task *ret_command)
{
    size_t count = state_count(s->state, object_kind_VM), first = first_vm(s);
    while (s->next < count) {
        const struct record *vm = state_at(s->state, object_kind_VM, (first + s->next++) % count);
        const struct record *policy = policy_of(s->state, vm->vm);
        if (policy == NULL || policy->backup_policy->paused || !may_begin(vm) || !is_due(s, policy->backup_policy, vm->vm))
            continue;
        const struct record *store = state_get(s->state, object_kind_BACKUP_STORE, policy->backup_policy->store);
        const struct record *host = state_get(s->state, object_kind_HOST, vm->vm->host);
        if (store == NULL || host == NULL || host->host->state != host_state_UP)
            continue;
        command_fill(s, policy->backup_policy, vm, store, ret_command);
        return true;
    }
    return false;
}

/* ---- stores ---- */

static void of_store_fill(const struct backup_schedule *s, const struct record *store, const char *host, enum operation_kind kind,
                          enum task_kind task, struct command_task *command)
{
    struct operation *operation = &command->operation;
    char id[STATE_ID_BYTES];
    id_make(task_kind_desc.names[task], store->common->id, "", s->now, id);
    OBJECT_TEXT(operation, operation, id, id);
    OBJECT_SET(operation, operation, kind, kind);
    OBJECT_SET(operation, operation, target_kind, object_kind_BACKUP_STORE);
    OBJECT_TEXT(operation, operation, target_id, store->common->id);
    OBJECT_TEXT(operation, operation, target_name, store->common->name);
    OBJECT_SET(task, &operation->task, kind, task);
    OBJECT_TEXT(task, &operation->task, host, host);
    OBJECT_TEXT(task_backup, &operation->task.backup, store, store->common->id);
    object_mark(&task_desc, &operation->task, "backup");
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, command, "operation");
}

/* Nobody reads, lists or removes all of it. */
static bool store_rests(const struct backup_schedule *s, const struct record *store)
{
    static const enum operation_kind works[] = {operation_kind_BACKUP_VERIFY, operation_kind_BACKUP_PRUNE, operation_kind_BACKUP_ATTACH};
    for (size_t i = 0; i < ARRAY_SIZE(works); i++)
        if (backup_rules_busy(s->state, works[i], store->common->id, NULL) != NULL)
            return false;
    return true;
}

bool backup_schedule_verify(struct backup_schedule *s, struct command_task *ret_command)
{
    while (s->next_store < state_count(s->state, object_kind_BACKUP_STORE)) {
        const struct record *record = state_at(s->state, object_kind_BACKUP_STORE, s->next_store++);
        const struct backup_store *store = record->backup_store;
        const char *since = store->verify_begun_at != NULL ? store->verify_begun_at : store->created_at;
        if (store->verify_every_s == 0 || !time_text_is_over(time_text_ms(s->now), since, store->verify_every_s * 1000) ||
            !store_rests(s, record))
            continue;
        const char *host = backup_rules_host(s->state);
        if (host == NULL)
            return false;
        of_store_fill(s, record, host, operation_kind_BACKUP_VERIFY, task_kind_BACKUP_VERIFY, ret_command);
        return true;
    }
    return false;
}

/* ---- boots ---- */

static const struct record *boot_due(const struct backup_schedule *s, const struct backup_policy *policy, const struct vm *vm)
{
    const struct backup *whole = map_get(&s->whole, vm->id);
    if (whole == NULL)
        return NULL;
    if (!time_text_is_over(time_text_ms(s->now), vm->backup_boot_at, policy->boot_every_s * 1000))
        return NULL;
    return state_get(s->state, object_kind_BACKUP, whole->id);
}

bool backup_schedule_boot(struct backup_schedule *s, struct command_task *ret_command)
{
    size_t count = state_count(s->state, object_kind_VM), first = first_vm(s);
    while (s->next_boot < count) {
        const struct record *vm = state_at(s->state, object_kind_VM, (first + s->next_boot++) % count);
        const struct record *policy = policy_of(s->state, vm->vm);
        const struct record *backup = policy != NULL ? boot_due(s, policy->backup_policy, vm->vm) : NULL;
        struct error why = {.code = 0};
        char id[STATE_ID_BYTES];
        if (backup == NULL)
            continue;
        const struct boot_wish wish = {.wait_for = policy->backup_policy->boot_wait_for, .timeout_s = policy->backup_policy->boot_timeout_s};
        int rc = boot_plan(s->state, backup, &wish, &ret_command->operation, &why);
        if (rc == 0) {
            id_make("boot", vm->common->id, policy->common->id, s->now, id);
            OBJECT_TEXT(operation, &ret_command->operation, id, id);
            object_mark(&command_task_desc, ret_command, "operation");
            s->next_boot = count; /* one a tick: the next one is to see its room taken */
            return true;
        }
        OBJECT_CLEAR(operation, &ret_command->operation);
        if (rc == -EBUSY || rc == -ENOSPC) /* it costs a look at each host */
            s->next_boot = count;
    }
    return false;
}

static void rules_put(const struct backup *backup, struct command_put *put)
{
    OBJECT_TEXT(backup, &put->backup, id, backup->id);
    object_mark(&command_put_desc, put, "backup");
    put->clear.items = xcalloc(1, sizeof *put->clear.items);
    put->clear.items[put->clear.count++] = xstrdup("rules_due");
    object_mark(&command_put_desc, put, "clear");
}

/* Of the VMs of the store whose rules are due. 0, 1, 2 as in the header. */
static int rules_of_store(struct backup_schedule *s, const struct record *store, struct command_task *command,
                          struct command_put *put)
{
    const size_t most = object_field(&task_backup_desc, "gone")->max;
    struct task_backup *arguments = &command->operation.task.backup;
    struct map done = {0};
    const char *host = backup_rules_host(s->state);
    int found = 0;
    for (size_t i = 0; host != NULL && i < state_count(s->state, object_kind_BACKUP); i++) {
        struct backup *backup = state_at(s->state, object_kind_BACKUP, i)->backup;
        struct backup_choice choice;
        if (!backup->rules_due || strcmp(backup->store, store->common->id) != 0 || map_get(&done, backup->vm) != NULL)
            continue;
        map_put(&done, backup->vm, backup);
        backup_rules_choose(s->state, s->now, store, backup->vm, NULL, &choice);
        if (choice.count == 0 && found == 0) {
            rules_put(backup, put);
            backup_choice_finish(&choice);
            map_finish(&done);
            return 2;
        }
        if (choice.count > 0 && found == 0)
            of_store_fill(s, store, host, operation_kind_BACKUP_PRUNE, task_kind_BACKUP_PRUNE, command);
        for (size_t k = 0; k < choice.count && arguments->gone.count < most; k++)
            backup_rules_add_id(arguments, choice.goes[k]->id);
        found |= choice.count > 0;
        backup_choice_finish(&choice);
    }
    map_finish(&done);
    return found;
}

int backup_schedule_rules(struct backup_schedule *s, struct command_task *ret_command, struct command_put *ret_done)
{
    while (s->rules_due && s->next_rules < state_count(s->state, object_kind_BACKUP_STORE)) {
        const struct record *store = state_at(s->state, object_kind_BACKUP_STORE, s->next_rules++);
        int found = store_rests(s, store) ? rules_of_store(s, store, ret_command, ret_done) : 0;
        if (found != 0)
            return found;
    }
    return 0;
}
