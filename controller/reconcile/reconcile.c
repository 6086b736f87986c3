/* The leader's tick; see the header. One pass over hosts, waiting VMs and tokens; the first RECONCILE_COMMANDS_MAX steps
 * are given, the rest comes with the next call. */
#include "controller/reconcile/reconcile.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/command/host_view.h"
#include "controller/fsm/backup_boot.h"
#include "controller/fsm/command_codec.h"
#include "controller/reconcile/drain.h"
#include "controller/fsm/time_text.h"
#include "controller/fsm/image_copies.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"
#include "controller/reconcile/backup_schedule.h"
#include "controller/reconcile/replica_schedule.h"

#define BY "controller"
#define NOTE_BYTES_MAX 701u

struct reconciling {
    const struct state *state;
    const struct reconcile_input *input;
    struct reconcile_output *out;
    struct map nodes; /* input->nodes by host id */
    bool apart;       /* a VM that is kept apart from others has been placed in this tick */
};

static bool full(struct reconciling *r)
{
    r->out->more |= r->out->count == RECONCILE_COMMANDS_MAX;
    return r->out->count == RECONCILE_COMMANDS_MAX;
}

static void emit(struct reconciling *r, enum command number, void *payload, struct command_request *request)
{
    const struct object_desc *desc = command_find(number)->payload;
    OBJECT_TEXT(command_request, request, at, r->input->now);
    OBJECT_TEXT(command_request, request, by, BY);
    object_mark(desc, payload, "request");
    if (command_encode(number, payload, &r->out->commands[r->out->count], NULL) == 0)
        r->out->count++;
    object_clear(desc, payload);
}

/* ---- hosts ---- */

static uint64_t last_heard_ms(const struct reconciling *r, const char *host_id)
{
    const struct reconcile_node *node = map_get(&r->nodes, host_id);
    return node != NULL ? MAX(node->last_report_ms, r->input->leader_since_ms) : r->input->leader_since_ms;
}

static void mark_host(struct reconciling *r, const struct host *host)
{
    struct command_host_state command = {0};
    char reason[128];
    uint64_t heard_ms = last_heard_ms(r, host->id);
    if (host->state != host_state_UP || r->input->now_ms < heard_ms + RECONCILE_SILENCE_MS)
        return;
    snprintf(reason, sizeof reason, "no report for %" PRIu64 " s", (r->input->now_ms - heard_ms) / 1000);
    OBJECT_TEXT(command_host_state, &command, id, host->id);
    OBJECT_SET(command_host_state, &command, from_revision, host->revision);
    OBJECT_SET(command_host_state, &command, state, host_state_UNREACHABLE);
    OBJECT_TEXT(command_host_state, &command, reason, reason);
    emit(r, COMMAND_host_state, &command, &command.request);
}

/* ---- VMs that wait for a host ---- */

static void say(struct reconciling *r, const struct vm *vm, const char *note, bool give_up)
{
    struct command_vm_place command = {0};
    if (!give_up && vm->placement != NULL && strcmp(vm->placement, note) == 0)
        return; /* said once; again when the reasons change */
    OBJECT_TEXT(command_vm_place, &command, id, vm->id);
    OBJECT_SET(command_vm_place, &command, from_epoch, vm->epoch);
    OBJECT_TEXT(command_vm_place, &command, note, note);
    if (give_up)
        OBJECT_SET(command_vm_place, &command, give_up, true);
    emit(r, COMMAND_vm_place, &command, &command.request);
}

/* No other host can or may have a VM that its own has given up: that tries again, under a new epoch. */
static void place_again(struct reconciling *r, const struct vm *vm, const char *why, const char *more)
{
    struct command_vm_place command = {0};
    const struct record *host = state_get(r->state, object_kind_HOST, vm->host);
    char note[NOTE_BYTES_MAX];
    if (host == NULL || host->host->state != host_state_UP || host->host->going_down)
        return;
    snprintf(note, sizeof note, "again on %s, which could not start it, %s%.500s", host->common->name, why, more);
    OBJECT_TEXT(command_vm_place, &command, id, vm->id);
    OBJECT_SET(command_vm_place, &command, from_epoch, vm->epoch);
    OBJECT_TEXT(command_vm_place, &command, note, note);
    OBJECT_TEXT(command_vm_place, &command, host, vm->host);
    emit(r, COMMAND_vm_place, &command, &command.request);
}

/* The room that booted backups take, taken out of the view or put back. */
static void boots_move(const struct state *state, struct scheduler_view *view, bool out)
{
    for (size_t i = 0; i < view->count; i++) {
        const struct operation *operation = backup_boot_on(state_get(state, object_kind_HOST, view->ids[i]));
        if (operation == NULL)
            continue;
        uint64_t memory_bytes = operation->task.backup.boot.memory_bytes, vcpus = operation->task.backup.boot.vcpus;
        view->committed_memory_bytes[i] += out ? -memory_bytes : memory_bytes;
        view->committed_vcpus[i] += out ? -vcpus : vcpus;
    }
}

/* Nobody has room for @vm, whose host is lost. If a backup that is booted takes it, that is told to end; true: and @vm waits for it. */
static bool end_boot(struct reconciling *r, struct scheduler_view *view, struct place_result *result, const struct vm *vm,
                     const struct place_request *request)
{
    struct command_operation command = {0};
    char note[NOTE_BYTES_MAX];
    boots_move(r->state, view, true);
    place_vm(view, request, result);
    boots_move(r->state, view, false);
    if (result->chosen == PLACE_NONE)
        return false;
    const char *host = view->ids[result->chosen];
    const struct operation *operation = backup_boot_on(state_get(r->state, object_kind_HOST, host));
    if (operation == NULL)
        return false;
    view->committed_memory_bytes[result->chosen] += vm->memory_bytes; /* so that the next one does not wait for the same room */
    view->committed_vcpus[result->chosen] += vm->vcpus;
    snprintf(note, sizeof note, "on %s, as soon as the backup %s, which is booted there to see whether it comes up, has made room",
             view->names[result->chosen], operation->target_name);
    say(r, vm, note, false);
    if (operation->cancel_asked || full(r))
        return true;
    OBJECT_TEXT(command_operation, &command, id, operation->id);
    OBJECT_SET(command_operation, &command, state, operation_state_CANCELLED);
    OBJECT_TEXT(command_operation, &command, error_code, error_kind_info(ERROR_CANCELLED)->code);
    OBJECT_TEXT(command_operation, &command, error_text, "ended, as a VM with ha whose host is lost needs the room");
    emit(r, COMMAND_operation, &command, &command.request);
    return true;
}

/* @without: it was to be started after that one, which has not come in time; NULL. */
static void place(struct reconciling *r, struct scheduler_view *view, struct place_result *result, const struct vm *vm,
                  const struct vm *without)
{
    struct command_vm_place command = {0};
    struct place_request request = host_view_request(vm);
    char note[NOTE_BYTES_MAX];
    int said = 0;
    CLEANUP_FREE uint8_t *apart = host_view_apart(r->state, vm);
    CLEANUP_FREE uint8_t *pools = host_view_pools(r->state, vm);
    CLEANUP_FREE uint8_t *tried = state_vm_released(vm) ? host_view_tried(r->state, vm) : NULL;
    const struct record *standby = vm->recovering ? replica_standby(r->state, vm) : NULL;
    if (standby != NULL) /* nobody else has its disks */
        request.pin = standby->common->name;
    request.apart = apart;
    request.pools = pools;
    request.tried = tried;
    place_vm(view, &request, result);
    if (without != NULL)
        said = snprintf(note, sizeof note, "not after %s, which does not run %u s later; ", without->name, RECONCILE_AFTER_MS / 1000);
    place_summary(view, &request, result, note + said, sizeof note - (size_t)said);
    if (result->chosen == PLACE_NONE && tried != NULL) {
        place_again(r, vm, "for want of another one: ", note);
        return;
    }
    if (result->chosen == PLACE_NONE) {
        if (!vm->recovering || !end_boot(r, view, result, vm, &request))
            say(r, vm, note, false);
        return;
    }
    OBJECT_TEXT(command_vm_place, &command, id, vm->id);
    OBJECT_SET(command_vm_place, &command, from_epoch, vm->epoch);
    OBJECT_TEXT(command_vm_place, &command, note, note);
    OBJECT_TEXT(command_vm_place, &command, host, view->ids[result->chosen]);
    view->committed_memory_bytes[result->chosen] += vm->memory_bytes; /* the next one of this tick sees it */
    view->committed_vcpus[result->chosen] += vm->vcpus;
    r->apart |= apart != NULL;
    emit(r, COMMAND_vm_place, &command, &command.request);
}

static size_t looks_max(const struct state *state)
{
    size_t hosts = MAX(state_count(state, object_kind_HOST), (size_t)1);
    return MIN(MAX(RECONCILE_PAIRS_MAX / hosts, (size_t)RECONCILE_LOOKS_MIN), (size_t)RECONCILE_LOOKS_MAX);
}

/* ---- VMs of lost hosts: before all others, by their priority, each after those that it names ---- */

/* Has the VM been started elsewhere as often as it may within its window? */
static bool worn_out(const struct reconciling *r, const struct vm *vm, char note[NOTE_BYTES_MAX])
{
    uint32_t most = OBJECT_HAS(vm, vm, ha_restarts_max) ? vm->ha_restarts_max : STATE_HA_RESTARTS_MAX;
    uint32_t window_s = OBJECT_HAS(vm, vm, ha_window_s) ? vm->ha_window_s : STATE_HA_WINDOW_S;
    bool within = !time_text_is_over(time_text_ms(r->input->now), vm->ha_window_at, window_s * UINT64_C(1000));
    uint32_t done = within ? vm->ha_window_restarts : 0;
    if (done < most)
        return false;
    snprintf(note, NOTE_BYTES_MAX, "it has been started elsewhere %u times within %u s, the most that ha_restarts_max allows", done, window_s);
    return true;
}

/* Is the VM about to run? One that waits for a host without having had one may wait for ever; a host that is lost starts nothing. */
static bool is_coming(const struct reconciling *r, const struct vm *vm)
{
    const struct record *host = vm->host != NULL ? state_get(r->state, object_kind_HOST, vm->host) : NULL;
    bool there = host != NULL && (host->host->state == host_state_UP || host->host->state == host_state_SUSPECT);
    return vm->recovering || (vm->state == vm_state_STARTING && there);
}

/* The VM that @vm has to wait for by its label, if that is not there yet. One whose start depends on @vm itself is not
 * waited for, nor one that nobody is about to start. */
static const struct vm *waits_for(const struct reconciling *r, const struct vm *vm)
{
    const char *name = state_vm_label(vm, RECONCILE_AFTER_LABEL), *delay = state_vm_label(vm, RECONCILE_DELAY_LABEL);
    const struct record *record = state_get(r->state, object_kind_VM, name);
    const struct vm *first = record != NULL ? record->vm : NULL, *next = first;
    uint64_t delay_ms = delay != NULL ? strtoull(delay, NULL, 10) * 1000 : 0;
    if (first == NULL || first == vm || first->wanted != vm_wanted_RUNNING)
        return NULL;
    for (unsigned i = 0; i < RECONCILE_CHAIN_MAX && next != NULL && next->recovering; i++) {
        const struct record *after = state_get(r->state, object_kind_VM, state_vm_label(next, RECONCILE_AFTER_LABEL));
        next = after != NULL ? after->vm : NULL;
        if (next == vm)
            return NULL;
    }
    if (is_coming(r, first))
        return first;
    bool soon = first->state == vm_state_RUNNING && !time_text_is_over(time_text_ms(r->input->now), first->running_at, delay_ms);
    return soon ? first : NULL;
}

/* Has @vm, whose host is lost, waited for another one to run for as long as it may? Since the host was heard, on this
 * leader's clock: a new one begins again. */
static bool waited_enough(const struct reconciling *r, const struct vm *vm, const struct vm *first)
{
    return first->state != vm_state_RUNNING && r->input->now_ms >= last_heard_ms(r, vm->host) + RECONCILE_AFTER_MS;
}

static uint32_t priority_of(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, ha_priority) ? vm->ha_priority : STATE_HA_PRIORITY;
}

static int by_priority(const void *a, const void *b)
{
    const struct vm *first = *(const struct vm *const *)a, *second = *(const struct vm *const *)b;
    if (priority_of(first) != priority_of(second))
        return priority_of(first) > priority_of(second) ? -1 : 1;
    return strcmp(first->name, second->name);
}

/* True: the hosts were looked at for it. */
static bool recover(struct reconciling *r, struct scheduler_view *view, struct place_result *result, const struct vm *vm)
{
    char note[NOTE_BYTES_MAX], why[NOTE_BYTES_MAX];
    const struct vm *first = waits_for(r, vm);
    if (worn_out(r, vm, why)) {
        snprintf(note, sizeof note, "its host was lost, and %.500s; start it when the cause is found", why);
        say(r, vm, note, true);
    } else if (first != NULL && !waited_enough(r, vm, first)) {
        snprintf(note, sizeof note, "it is started after %s, as its label " RECONCILE_AFTER_LABEL " says", first->name);
        say(r, vm, note, false);
    } else {
        place(r, view, result, vm, first);
        return true;
    }
    return false;
}

/* One that its host has given up. What is under way with it comes to its end before. Where it may go nowhere else, which may have become so
 * since it was offered, its host is told to go on: its promise is for the epoch that it was made under, and somebody has to try. */
static void relocate(struct reconciling *r, struct scheduler_view *view, struct place_result *result, const struct record *record)
{
    char note[NOTE_BYTES_MAX];
    if (record->of_vm.operations.count > 0)
        return;
    if (!state_vm_may_relocate(r->state, record->vm))
        place_again(r, record->vm, "as it may not be given to another one", "");
    else if (worn_out(r, record->vm, note))
        place_again(r, record->vm, "as ", note);
    else
        place(r, view, result, record->vm, NULL);
}

/* The highest first. Returns the last of those that were looked at; NULL: there are none. All behind it come in their turn with
 * the others that wait: those that nobody has room for do not stand in their way for ever. */
static const struct vm *place_recovering(struct reconciling *r, struct scheduler_view *view, struct place_result *result)
{
    const struct record_index *waiting = state_waiting(r->state);
    CLEANUP_FREE const struct vm **vms = xcalloc(waiting->count + 1, sizeof(const struct vm *));
    size_t count = 0, looks = 0, i = 0;
    for (size_t k = 0; k < waiting->count; k++)
        if (waiting->items[k]->vm->recovering)
            vms[count++] = waiting->items[k]->vm;
    qsort(vms, count, sizeof(const struct vm *), by_priority);
    for (; i < count && looks < looks_max(r->state) && !full(r); i++)
        looks += recover(r, view, result, vms[i]);
    return i > 0 ? vms[i - 1] : NULL;
}

/* Right after the cluster was rebuilt from a survivor: what waits here may have been placed by an order that is lost. */
static bool is_settling(const struct reconciling *r)
{
    const char *since = state_cluster(r->state)->recovered_at;
    uint64_t since_ms = time_text_ms(since), now_ms = time_text_ms(r->input->now); /* clocks may differ */
    return since != NULL && now_ms >= since_ms && now_ms < since_ms + STATE_RECOVER_SETTLE_MS;
}

static void place_waiting(struct reconciling *r)
{
    if (is_settling(r))
        return;
    const struct record_index *waiting = state_waiting(r->state);
    const char *after = r->input->resume_after != NULL ? r->input->resume_after : "";
    size_t begin = record_index_after(waiting, after), end = MIN(waiting->count, begin + looks_max(r->state)), i = begin;
    struct scheduler_view view = {0};
    struct place_result result = {0};
    const struct vm *last = NULL, *vm;
    if (waiting->count > 0)
        host_view_fill(r->state, NULL, &view);
    if (waiting->count > 0)
        last = place_recovering(r, &view, &result);
    for (; i < end && !full(r); i++) {
        vm = waiting->items[i]->vm;
        if (state_vm_released(vm))
            relocate(r, &view, &result, waiting->items[i]);
        else if (!vm->recovering)
            place(r, &view, &result, vm, NULL);
        else if (by_priority(&vm, &last) > 0)
            recover(r, &view, &result, vm);
    }
    if (i < waiting->count) /* nothing looked at, as there was no room: the same again */
        snprintf(r->out->resume_after, sizeof r->out->resume_after, "%s",
                 i > begin ? waiting->items[i - 1]->common->name : after);
    place_result_finish(&result);
    view_finish(&view);
}

/* ---- tokens ---- */

static void expire_token(struct reconciling *r, const struct token *token)
{
    struct command_remove command = {0};
    if (token->expires_at == NULL || strcmp(token->expires_at, r->input->now) > 0) /* one form and one length: the order of time */
        return;
    OBJECT_SET(command_remove, &command, kind, object_kind_TOKEN);
    OBJECT_TEXT(command_remove, &command, id, token->id);
    OBJECT_SET(command_remove, &command, if_revision, token->revision);
    emit(r, COMMAND_remove, &command, &command.request);
}

/* ---- drills ---- */

/* One that was begun while the clock was ahead would keep all others off until that time. */
static void end_drill(struct reconciling *r)
{
    const struct cluster *cluster = state_cluster(r->state);
    const uint64_t longest_ms = object_field(&drill_reservation_desc, "seconds")->max * 1000;
    struct command_drill command = {0};
    if (cluster->drill == NULL || full(r) || !time_text_is_ahead(time_text_ms(r->input->now) + longest_ms, cluster->drill_until))
        return;
    OBJECT_TEXT(command_drill, &command, drill, cluster->drill);
    emit(r, COMMAND_drill, &command, &command.request);
}

/* ---- images ---- */

/* Of the hosts that are up and do not keep it: one that has it, as it kept it before or a VM needed it; else the one with the most room; NULL. */
static const struct host *room_for(const struct state *state, const struct image *image)
{
    const struct host *best = NULL;
    bool best_has = false;
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct host *host = state_at(state, object_kind_HOST, i)->host;
        const struct image_copy *copy = image_copy_find(image, host->id);
        bool has = copy != NULL && copy->state == image_copy_state_HELD;
        if (host->state != host_state_UP || !host->schedulable || (copy != NULL && copy->keep) ||
            (!has && host->disk_free_bytes <= image->disk.size_bytes))
            continue;
        if (best == NULL || has > best_has || (has == best_has && host->disk_free_bytes > best->disk_free_bytes)) {
            best = host;
            best_has = has;
        }
    }
    return best;
}

static void list_add(struct command_image_copies *command, struct string_list *list, const char *field, const char *host_id)
{
    list->items = xcalloc(1, sizeof(char *));
    list->items[list->count++] = xstrdup(host_id);
    object_mark(&command_image_copies_desc, command, field);
}

/* One more host is to keep it, where too few do. In the place of one that is lost, if there is one: that may come back, with its file, and
 * need not keep it then as well. But it is what others get it from where nobody else has it. Hosts that cannot get it are made up for by others
 * only while they are few: where it is the source that fails, all others would fail as well, and keep it for good when it is back. */
static void copy_image(struct reconciling *r, const struct image *image)
{
    struct command_image_copies command = {0};
    const char *lost = NULL;
    unsigned kept = 0, held = 0, failed = 0;
    if (image->replicas == 0 || !image_has_copies(image) || image->state != image_state_READY)
        return;
    for (size_t i = 0; i < image->copies.count; i++) {
        const struct image_copy *copy = (const struct image_copy *)image->copies.items + i;
        const struct record *host = state_get(r->state, object_kind_HOST, copy->host);
        bool is_lost = host == NULL || host->host->state == host_state_LOST; /* one that is only silent has it still */
        kept += copy->keep && copy->state != image_copy_state_FAILED && !is_lost;
        held += copy->keep && copy->state == image_copy_state_HELD && !is_lost;
        failed += copy->keep && copy->state == image_copy_state_FAILED && !is_lost;
        if (copy->keep && is_lost)
            lost = copy->host;
    }
    bool few_failed = failed <= MAX(RECONCILE_KEEPERS_FAILED_MAX, held);
    const struct host *host = kept < image->replicas && few_failed ? room_for(r->state, image) : NULL;
    if (host == NULL)
        return;
    OBJECT_TEXT(command_image_copies, &command, id, image->id);
    OBJECT_SET(command_image_copies, &command, if_revision, image->revision);
    list_add(&command, &command.add, "add", host->id);
    if (lost != NULL && held > 0)
        list_add(&command, &command.drop, "drop", lost);
    emit(r, COMMAND_image_copies, &command, &command.request);
}

/* ---- hosts that drain ---- */

static void drain_hosts(struct reconciling *r)
{
    struct drain drain;
    struct command_task command = {0};
    char id[STATE_ID_BYTES];
    if (r->input->uuid == NULL)
        return;
    drain_begin(&drain, r->state, r->input->now);
    drain.apart = r->apart;
    while (!full(r) && drain_next(&drain, &command.operation)) {
        r->input->uuid(r->input->uuid_arg, id);
        OBJECT_TEXT(operation, &command.operation, id, id);
        object_mark(&command_task_desc, &command, "operation");
        emit(r, COMMAND_task, &command, &command.request);
        command = (struct command_task){0};
    }
}

/* ---- snapshots that were made for a clone ---- */

/* A host of @vm's, up, and nobody else at work on its disks: else the task would be refused, each tick anew. */
static bool stands(const struct state *state, const struct record *vm)
{
    const struct record *host = vm != NULL ? state_get(state, object_kind_HOST, vm->vm->host) : NULL;
    const struct vm_disk *disks = vm != NULL ? vm->vm->disks.items : NULL;
    if (host == NULL || host->host->state != host_state_UP || vm->vm->wanted == vm_wanted_DELETED || vm->vm->recovering)
        return false;
    for (size_t i = 0; i < vm->of_vm.operations.count; i++)
        if (operation_has_task(vm->of_vm.operations.items[i]->operation))
            return false;
    for (size_t i = 0; i < host->of_host.tasks.count; i++) { /* with a volume, or the disks, of whatever VM: these are rare */
        enum operation_kind kind = host->of_host.tasks.items[i]->operation->kind;
        if (kind == operation_kind_VM_CLONE || kind == operation_kind_VOLUME_CLONE)
            return false;
    }
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        const struct record *volume = disks[i].volume != NULL ? state_get(state, object_kind_VOLUME, disks[i].volume) : NULL;
        if (volume != NULL && (volume->volume->state != volume_state_ATTACHED || volume_snapshot_at_work(state, volume->volume) != NULL))
            return false;
    }
    return true;
}

/* Its clone is made, or will not be; where that could not be done it is tried again, not at once. */
static bool is_left(const struct reconciling *r, const struct snapshot *snapshot)
{
    if (snapshot->clone == NULL || (snapshot->state != snapshot_state_AVAILABLE && snapshot->state != snapshot_state_FAILED) ||
        (snapshot->kept_at != NULL && !time_text_is_over(time_text_ms(r->input->now), snapshot->kept_at, RECONCILE_SNAPSHOT_AGAIN_MS)))
        return false;
    const struct record *made = state_get(r->state, object_kind_VM, snapshot->clone);
    return (made == NULL || state_vm_made_by(made) == NULL) && stands(r->state, state_get(r->state, object_kind_VM, snapshot->vm));
}

static void remove_snapshot(struct reconciling *r, const struct snapshot *snapshot)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    const struct vm *vm = state_get(r->state, object_kind_VM, snapshot->vm)->vm;
    char id[STATE_ID_BYTES];
    r->input->uuid(r->input->uuid_arg, id);
    OBJECT_TEXT(operation, operation, id, id);
    OBJECT_SET(operation, operation, kind, operation_kind_SNAPSHOT_DELETE);
    OBJECT_SET(operation, operation, target_kind, object_kind_SNAPSHOT);
    OBJECT_TEXT(operation, operation, target_id, snapshot->id);
    OBJECT_TEXT(operation, operation, target_name, snapshot->name);
    OBJECT_SET(task, &operation->task, kind, task_kind_SNAPSHOT_DELETE);
    OBJECT_TEXT(task, &operation->task, host, vm->host);
    OBJECT_TEXT(task, &operation->task, vm, vm->id);
    OBJECT_SET(task, &operation->task, epoch, vm->epoch);
    OBJECT_TEXT(task_snapshot, &operation->task.snapshot, id, snapshot->id);
    object_mark(&task_desc, &operation->task, "snapshot");
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, &command, "operation");
    emit(r, COMMAND_task, &command, &command.request);
}

/* Two of one VM go one after the other. A few in one tick, which each begins with another one: those that are refused all the same keep neither
 * others of them from their turn nor what comes after. */
static void remove_snapshots(struct reconciling *r)
{
    struct map begun = {0};
    const size_t count = state_count(r->state, object_kind_SNAPSHOT);
    const size_t first = count > 0 ? time_text_ms(r->input->now) / RECONCILE_PERIOD_MS % count : 0;
    unsigned left = RECONCILE_SNAPSHOTS_MAX;
    for (size_t i = 0; r->input->uuid != NULL && i < count && left > 0 && !full(r); i++) {
        const struct snapshot *snapshot = state_at(r->state, object_kind_SNAPSHOT, (first + i) % count)->snapshot;
        if (!is_left(r, snapshot) || map_get(&begun, snapshot->vm) != NULL)
            continue;
        map_put(&begun, snapshot->vm, (void *)(uintptr_t)snapshot);
        remove_snapshot(r, snapshot);
        left--;
    }
    map_finish(&begun);
}

/* ---- backups ---- */

/* The room is for those then: boots can wait. */
static bool any_recovers(const struct state *state)
{
    const struct record_index *waiting = state_waiting(state);
    for (size_t i = 0; i < waiting->count; i++)
        if (waiting->items[i]->vm->recovering)
            return true;
    return false;
}

static void begin_backups(struct reconciling *r)
{
    struct backup_schedule schedule;
    backup_schedule_init(&schedule, r->state, r->input->now);
    for (unsigned i = 0; i < BACKUP_SCHEDULE_TICK_MAX && !full(r); i++) {
        struct command_task command = {0};
        if (!backup_schedule_next(&schedule, &command))
            break;
        emit(r, COMMAND_task, &command, &command.request);
    }
    for (unsigned i = 0; i < BACKUP_SCHEDULE_TICK_MAX && !full(r); i++) {
        struct command_task command = {0};
        if (!backup_schedule_verify(&schedule, &command))
            break;
        emit(r, COMMAND_task, &command, &command.request);
    }
    struct command_task boot = {0};
    if (!any_recovers(r->state) && !full(r) && backup_schedule_boot(&schedule, &boot))
        emit(r, COMMAND_task, &boot, &boot.request);
    for (unsigned i = 0; i < BACKUP_SCHEDULE_TICK_MAX && !full(r); i++) {
        struct command_task command = {0};
        struct command_put put = {0};
        int found = backup_schedule_rules(&schedule, &command, &put);
        if (found == 1)
            emit(r, COMMAND_task, &command, &command.request);
        else if (found == 2)
            emit(r, COMMAND_put, &put, &put.request);
        else
            break;
    }
    backup_schedule_finish(&schedule);
}

/* ---- replicas ---- */

static void begin_points(struct reconciling *r)
{
    struct replica_schedule schedule;
    replica_schedule_init(&schedule, r->state, r->input->now);
    for (unsigned i = 0; i < REPLICA_SCHEDULE_TICK_MAX && !full(r); i++) {
        struct command_task task = {0};
        struct command_replica_late late = {0};
        int found = replica_schedule_next(&schedule, &task, &late);
        if (found == 1)
            emit(r, COMMAND_task, &task, &task.request);
        else if (found == 2)
            emit(r, COMMAND_replica_late, &late, &late.request);
        else
            break;
    }
    replica_schedule_finish(&schedule);
}

void reconcile_tick(const struct state *state, const struct reconcile_input *input, struct reconcile_output *ret)
{
    struct reconciling r = {.state = state, .input = input, .out = ret};
    if (!state_initialized(state))
        return;
    for (size_t i = 0; i < input->n_nodes; i++)
        map_put(&r.nodes, input->nodes[i].host, (void *)(uintptr_t)&input->nodes[i]);
    for (size_t i = 0; i < state_count(state, object_kind_HOST) && !full(&r); i++)
        mark_host(&r, state_at(state, object_kind_HOST, i)->host);
    place_waiting(&r);
    for (size_t i = 0; i < state_count(state, object_kind_TOKEN) && !full(&r); i++)
        expire_token(&r, state_at(state, object_kind_TOKEN, i)->token);
    end_drill(&r);
    for (size_t i = 0; i < state_count(state, object_kind_IMAGE) && !full(&r); i++)
        copy_image(&r, state_at(state, object_kind_IMAGE, i)->image);
    drain_hosts(&r);
    begin_backups(&r);
    begin_points(&r);
    remove_snapshots(&r);
    map_finish(&r.nodes);
}

void reconcile_output_finish(struct reconcile_output *output)
{
    if (output == NULL)
        return;
    for (unsigned i = 0; i < output->count; i++)
        bytes_writer_finish(&output->commands[i]);
    *output = (struct reconcile_output){0};
}
