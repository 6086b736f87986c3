/* A loss on paper; see the header. */
#include "controller/reconcile/loss_plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/fsm/apply.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/suppose.h"
#include "controller/reconcile/reconcile.h"

#define NAMES_BYTES_MAX 200u
#define ROUNDS_MAX 10000u /* each places, or says of, at least one VM, or goes on in a list of all that wait */

struct planning {
    struct state *state;
    const char *now;
    char host[STATE_ID_BYTES];
    char (*vms)[STATE_ID_BYTES]; /* of the host, before */
    const char **whys;           /* each of them stays, or NULL */
    size_t count;
};

static void apply(struct planning *p, const struct bytes_writer *command)
{
    struct apply_result result;
    fsm_apply(p->state, state_index(p->state) + 1, command->data, command->size, &result);
}

static void lose_host(struct planning *p, const struct host *host)
{
    struct command_host_lost command = {.head = {0}};
    struct bytes_writer encoded = {.data = NULL};
    suppose_host_is_suspect(p->state, host->id);
    OBJECT_TEXT(command_request, &command.request, at, p->now);
    OBJECT_TEXT(command_request, &command.request, by, "plan");
    object_mark(&command_host_lost_desc, &command, "request");
    OBJECT_TEXT(command_host_lost, &command, id, host->id);
    OBJECT_SET(command_host_lost, &command, generation, host->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, state_cluster(p->state)->lease_voters_index);
    OBJECT_SET(command_host_lost, &command, failed_too, true);
    ASSERT(command_encode(COMMAND_host_lost, &command, &encoded, NULL) == 0);
    OBJECT_CLEAR(command_host_lost, &command);
    apply(p, &encoded);
    bytes_writer_finish(&encoded);
}

/* True: there is more to do. */
static bool reconcile_once(struct planning *p, char resume_after[RECONCILE_NAME_SIZE])
{
    struct reconcile_output output = {.count = 0};
    const struct reconcile_input input = {.now = p->now, .resume_after = resume_after}; /* no uuid: nothing else is begun */
    reconcile_tick(p->state, &input, &output);
    for (unsigned i = 0; i < output.count; i++)
        apply(p, &output.commands[i]);
    for (size_t i = 0; i < p->count; i++)
        suppose_vm_runs(p->state, p->vms[i]);
    snprintf(resume_after, RECONCILE_NAME_SIZE, "%s", output.resume_after);
    bool more = output.count > 0 || output.more || resume_after[0] != '\0';
    reconcile_output_finish(&output);
    return more;
}

/* ---- the answer ---- */

static uint32_t priority_of(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, ha_priority) ? vm->ha_priority : STATE_HA_PRIORITY;
}

static void put_vm(struct planning *p, const struct vm *vm, const char *why, struct host_loss *ret)
{
    bool placed = vm->host != NULL && strcmp(vm->host, p->host) != 0;
    enum loss_outcome outcome = placed ? loss_outcome_STARTED : vm->recovering ? loss_outcome_WAITS : loss_outcome_STAYS;
    struct host_loss_vm *its = OBJECT_ADD(host_loss, ret, vms);
    OBJECT_TEXT(host_loss_vm, its, vm, vm->name);
    OBJECT_SET(host_loss_vm, its, outcome, outcome);
    OBJECT_SET(host_loss_vm, its, ha, vm->ha);
    OBJECT_SET(host_loss_vm, its, ha_priority, priority_of(vm));
    OBJECT_SET(host_loss_vm, its, memory_bytes, vm->memory_bytes);
    if (placed)
        OBJECT_TEXT(host_loss_vm, its, to, vm->host_name);
    if (outcome != loss_outcome_STAYS && vm->placement != NULL)
        OBJECT_TEXT(host_loss_vm, its, reason, vm->placement);
    else if (outcome == loss_outcome_STAYS)
        OBJECT_TEXT(host_loss_vm, its, reason, why != NULL ? why : vm->state_reason != NULL ? vm->state_reason : "the host would not be declared lost, or it has ended by itself");
    OBJECT_SET(host_loss, ret, started, ret->started + (outcome == loss_outcome_STARTED));
    OBJECT_SET(host_loss, ret, waiting, ret->waiting + (outcome == loss_outcome_WAITS));
    OBJECT_SET(host_loss, ret, staying, ret->staying + (outcome == loss_outcome_STAYS));
}

static int by_care(const void *a, const void *b)
{
    static const uint8_t ranks[] = {[loss_outcome_WAITS] = 0, [loss_outcome_STARTED] = 1, [loss_outcome_STAYS] = 2};
    const struct host_loss_vm *first = a, *second = b;
    if (first->outcome != second->outcome)
        return ranks[first->outcome] < ranks[second->outcome] ? -1 : 1;
    if (first->ha_priority != second->ha_priority)
        return first->ha_priority > second->ha_priority ? -1 : 1;
    return strcmp(first->vm, second->vm);
}

static void put_summary(bool disarmed, bool voters, struct host_loss *ret)
{
    char text[400];
    const char *but = !voters     ? " (no host is ever declared lost by fewer than three controllers with a vote)"
                      : disarmed ? " once ha is armed again (`drover ha arm`, `drover host arm`)"
                                 : "";
    snprintf(text, sizeof text, "without %s: %u of its VMs would be started on other hosts%s, %u would wait for room, %u would go on when it is back",
             ret->host, ret->started, but, ret->waiting, ret->staying);
    OBJECT_TEXT(host_loss, ret, summary, text);
}

static void remember_vms(struct planning *p, const struct record *host)
{
    p->vms = xcalloc(host->of_host.vms.count + 1, sizeof *p->vms);
    p->whys = xcalloc(host->of_host.vms.count + 1, sizeof *p->whys);
    for (size_t i = 0; i < host->of_host.vms.count; i++) {
        const struct vm *vm = host->of_host.vms.items[i]->vm;
        if (vm->wanted != vm_wanted_RUNNING && vm->wanted != vm_wanted_PAUSED)
            continue;
        lease_vm_recovers(p->state, vm, &p->whys[p->count]);
        snprintf(p->vms[p->count++], STATE_ID_BYTES, "%s", vm->id);
    }
}

int loss_plan(struct state *copy, const char *host, const char *now, struct host_loss *ret, struct error *err)
{
    struct planning p = {.state = copy, .now = now};
    char resume_after[RECONCILE_NAME_SIZE] = "";
    const struct record *record = state_get(copy, object_kind_HOST, host);
    if (record == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no host '%s'", host);
    if (record->host->state == host_state_LOST)
        return error_set(err, -EALREADY, ERROR_CONFLICT, "host %s is lost already; `drover vm list --filter host_name=%s` shows what has become of its VMs",
                         record->common->name, record->common->name);
    snprintf(p.host, sizeof p.host, "%s", record->common->id);
    OBJECT_TEXT(host_loss, ret, host, record->common->name);
    bool disarmed = record->host->ha_disarmed || state_cluster(copy)->ha_disarmed, voters = state_voters(copy) >= STATE_HA_VOTERS_MIN;
    remember_vms(&p, record);
    if (voters)
        lose_host(&p, record->host);
    for (unsigned i = 0; i < ROUNDS_MAX && reconcile_once(&p, resume_after); i++)
        ;
    for (size_t i = 0; i < p.count; i++) {
        const struct record *vm = state_get(copy, object_kind_VM, p.vms[i]);
        if (vm != NULL)
            put_vm(&p, vm->vm, p.whys[i], ret);
    }
    if (ret->vms.count > 1)
        qsort(ret->vms.items, ret->vms.count, sizeof(struct host_loss_vm), by_care);
    put_summary(disarmed, voters, ret);
    free(p.vms);
    free(p.whys);
    return 0;
}
