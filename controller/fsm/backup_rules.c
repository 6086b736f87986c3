/* What rules let go: see backup_rules.h. */
#include "controller/fsm/backup_rules.h"

#include <string.h>

#include "controller/fsm/time_text.h"


struct retention_rules backup_rules_of(const struct backup_policy *p)
{
    return (struct retention_rules){p->keep_last,   p->keep_hourly,  p->keep_daily,
                                    p->keep_weekly, p->keep_monthly, p->keep_yearly};
}

const struct operation *backup_rules_busy(const struct state *state, enum operation_kind kind, const char *store_id,
                                          const char *backup)
{
    for (size_t i = 0; i < state_count(state, object_kind_OPERATION); i++) {
        const struct operation *o = state_at(state, object_kind_OPERATION, i)->operation;
        if (o->kind != kind || o->state != operation_state_RUNNING || o->task.backup.store == NULL ||
            strcmp(o->task.backup.store, store_id) != 0)
            continue;
        if (backup == NULL || o->task.backup.id == NULL || strcmp(o->task.backup.id, backup) == 0)
            return o; /* with an empty one: the whole store's */
    }
    return NULL;
}

const char *backup_rules_host(const struct state *state)
{
    const struct record *found = NULL;
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        if (host->host->state == host_state_UP &&
            (found == NULL || host->of_host.tasks.count < found->of_host.tasks.count))
            found = host;
    }
    return found != NULL ? found->common->id : NULL;
}

void backup_rules_add_id(struct task_backup *arguments, const char *id)
{
    struct string_list *list = &arguments->gone;
    list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
    list->items[list->count++] = xstrdup(id);
    object_mark(&task_backup_desc, arguments, "gone");
}

void backup_choice_finish(struct backup_choice *choice)
{
    free(choice->goes);
    *choice = (struct backup_choice){0};
}

/* ---- choosing ---- */

/* By VM, the newest first. */
static int compare(const void *a, const void *b)
{
    const struct backup *x = *(const struct backup *const *)a, *y = *(const struct backup *const *)b;
    int order = strcmp(x->vm, y->vm);
    if (order == 0)
        order = strcmp(y->created_at, x->created_at);
    return order != 0 ? order : strcmp(x->id, y->id);
}

static bool counts(const struct backup *backup, const struct record *store, const char *vm)
{
    bool whole = backup->state == backup_state_AVAILABLE || backup->state == backup_state_RESTORING;
    return whole && backup->damage == NULL && strcmp(backup->store, store->common->id) == 0 &&
           (vm == NULL || strcmp(backup->vm, vm) == 0);
}

/* Of the VM whose backups these are. False: there are none. */
static bool rules_find(const struct state *state, const struct record *store, const struct backup *const *backups, size_t count,
                       struct retention_rules *ret_rules)
{
    const struct record *vm = state_get(state, object_kind_VM, backups[0]->vm);
    const char *name = vm != NULL ? string_map_get(&vm->vm->labels, BACKUP_POLICY_LABEL) : NULL;
    for (size_t i = 0; vm == NULL && name == NULL && i < count; i++)
        name = backups[i]->policy;
    const struct record *policy = name != NULL ? state_get(state, object_kind_BACKUP_POLICY, name) : NULL;
    if (policy == NULL || state_get(state, object_kind_BACKUP_STORE, policy->backup_policy->store) != store)
        return false;
    *ret_rules = backup_rules_of(policy->backup_policy);
    return retention_has_rules(ret_rules);
}

/* Running verifications of the store, and boots of backups in it, as a set of backups. */
struct verified {
    bool all;
    struct map ids;
};

static void verified_init(const struct state *state, const struct record *store, struct verified *ret)
{
    *ret = (struct verified){.all = false};
    for (size_t i = 0; i < state_count(state, object_kind_OPERATION); i++) {
        struct operation *o = state_at(state, object_kind_OPERATION, i)->operation;
        if ((o->kind != operation_kind_BACKUP_VERIFY && o->kind != operation_kind_BACKUP_BOOT) || o->state != operation_state_RUNNING || o->task.backup.store == NULL ||
            strcmp(o->task.backup.store, store->common->id) != 0)
            continue;
        if (o->task.backup.id == NULL)
            ret->all = true;
        else
            map_put(&ret->ids, o->task.backup.id, o);
    }
}

static void of_vm_choose(const struct state *state, const struct record *store, const struct backup *const *backups, size_t count,
                         const struct retention_rules *given, const struct verified *verified, struct backup_choice *choice)
{
    struct retention_rules rules;
    CLEANUP_FREE int64_t *times = xcalloc(count, sizeof *times);
    CLEANUP_FREE unsigned *reasons = xcalloc(count, sizeof *reasons);
    if (given != NULL)
        rules = *given;
    else if (!rules_find(state, store, backups, count, &rules))
        return;
    for (size_t i = 0; i < count; i++)
        times[i] = (int64_t)time_text_ms(backups[i]->created_at);
    retention_choose(&rules, times, count, reasons);
    for (size_t i = 0; i < count; i++)
        if (reasons[i] == 0 && backups[i]->state == backup_state_AVAILABLE && map_get(&verified->ids, backups[i]->id) == NULL)
            choice->goes[choice->count++] = backups[i];
}

void backup_rules_choose(const struct state *state, const char *now, const struct record *store, const char *vm,
                         const struct retention_rules *rules, struct backup_choice *ret)
{
    size_t all = state_count(state, object_kind_BACKUP), count = 0, same;
    CLEANUP_FREE const struct backup **backups = xcalloc(all + 1, sizeof *backups);
    struct verified verified;
    *ret = (struct backup_choice){.goes = xcalloc(all + 1, sizeof *ret->goes)};
    for (size_t i = 0; i < all; i++) {
        const struct backup *backup = state_at(state, object_kind_BACKUP, i)->backup;
        if (!counts(backup, store, vm))
            continue;
        ret->looked_at++;
        if (!time_text_is_ahead(time_text_ms(now), backup->created_at))
            backups[count++] = backup;
    }
    qsort(backups, count, sizeof *backups, compare);
    verified_init(state, store, &verified);
    for (size_t i = 0; i < count && !verified.all; i += same) {
        for (same = 1; i + same < count && strcmp(backups[i]->vm, backups[i + same]->vm) == 0;)
            same++;
        of_vm_choose(state, store, backups + i, same, rules, &verified, ret);
    }
    map_finish(&verified.ids);
}
