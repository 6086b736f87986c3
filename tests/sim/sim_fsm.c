/* The machine class with the real state machine, and the controllers' side of requests and reports: what controller/api
 * does around HTTP, here around simulated messages. Like there, every answer waits for a barrier first: a controller that
 * was deposed and does not know it yet must neither refuse nor give orders. */
#include "tests/sim/sim_world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/check.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/snapshot.h"
#include "controller/fsm/state_edit.h"
#include "controller/fsm/time_text.h"

#define IMAGE_ID "00000000-0000-4000-8000-00000000bbbb"
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define WALL_JUMP_MS_MAX INT64_C(3600000)
#define LOAD "load" /* who the engine's own load is */
#define CHECK_EVERY 4u       /* commands between two checks of the invariants, which cost more than all else */
#define HASH_WHOLE_EVERY 16u /* commands between two hashes of objects that have not changed */
#define CHECK_WHOLE_EVERY 64u /* and between two that look at unchanged objects too */

struct process { /* a controller process */
    struct sim_node *node;
    struct state *state;
    uint64_t checked_index; /* the state was whole then */
    uint64_t heard_ms[WORLD_AGENTS]; /* local clock */
    uint64_t lead_term, leader_since_ms, next_tick_ms;
    char resume_after[RECONCILE_NAME_SIZE]; /* of the reconcile round */
    unsigned proposed; /* commands of the last tick that are not answered */
    struct sim_lease lease;
};

static struct process *process_of(struct sim_node *node)
{
    return node->machine.ctx;
}
const struct state *sim_fsm_state(struct sim_node *node)
{
    return process_of(node)->state;
}
static uint64_t local_ms(const struct sim_node *node)
{
    return sim_local_us(&node->cluster->sim, &node->actor) / 1000;
}
static void wall_clock(const struct sim_node *node, char ret_text[TIME_TEXT_BYTES])
{
    time_text_format((uint64_t)((int64_t)(WORLD_EPOCH_MS + local_ms(node)) + node->wall_jump_ms), ret_text);
}
static void uuid(void *arg, char ret_id[STATE_ID_BYTES])
{
    struct sim *sim = arg;
    uint64_t a = sim_random(sim), b = sim_random(sim);
    snprintf(ret_id, STATE_ID_BYTES, "%08llx-%04llx-4%03llx-8%03llx-%012llx", (unsigned long long)(a >> 32),
             (unsigned long long)(a >> 16 & 0xffff), (unsigned long long)(a & 0xfff), (unsigned long long)(b >> 52),
             (unsigned long long)(b & 0xffffffffffff));
}

/* ---- messages ---- */

void sim_world_message_free(void *data)
{
    struct world_message *message = data;
    free(message->text);
    free(message);
}

static struct world_message *copy_message(const struct world_message *message)
{
    struct world_message *copy = NEW(struct world_message);
    *copy = *message;
    copy->text = message->text != NULL ? xstrdup(message->text) : NULL;
    return copy;
}

struct late { /* a message that is sent once more */
    struct sim_cluster *cluster;
    struct sim_actor *from, *to;
    struct world_message *message;
    sim_deliver_fn deliver;
};

static void late_drop(void *data)
{
    struct late *late = data;
    sim_world_message_free(late->message);
    free(late);
}

static void late_send(struct sim *sim UNUSED, struct sim_event *event)
{
    struct late *late = event->data;
    sim_network_send(&late->cluster->network, late->from, late->to, late->message, late->deliver, sim_world_message_free);
    free(late);
}

void sim_world_send(struct sim_cluster *cluster, struct sim_actor *from, struct sim_actor *to,
                    const struct world_message *message, sim_deliver_fn deliver)
{
    const struct sim_world *world = cluster->world;
    sim_network_send(&cluster->network, from, to, copy_message(message), deliver, sim_world_message_free);
    if (!sim_chance(&cluster->sim, world->doubled_per_thousand))
        return;
    struct late *late = NEW(struct late);
    *late = (struct late){cluster, from, to, copy_message(message), deliver};
    sim_after(&cluster->sim, sim_between(&cluster->sim, SIM_MS, 3 * SIM_SECOND), late_send, NULL, late)->drop = late_drop;
}

struct world_vm *sim_world_vm(struct sim_world *world, const char *name)
{
    for (unsigned i = 0; i < world->vm_count; i++)
        if (strcmp(world->vms[i].name, name) == 0)
            return &world->vms[i];
    return NULL;
}

struct world_vm *sim_world_vm_by_id(struct sim_world *world, const char *id)
{
    for (unsigned i = 0; i < world->vm_count; i++)
        if (strcmp(world->vms[i].id, id) == 0)
            return &world->vms[i];
    return NULL;
}

void sim_world_tell(struct sim_cluster *cluster, const char *format, ...)
{
    const struct sim_world *world = cluster->world;
    va_list args;
    FILE *out = world == NULL ? NULL : world->story != NULL ? world->story : cluster->sim.verbose ? stdout : NULL;
    if (out == NULL)
        return;
    fprintf(out, "%8.3f ", (double)cluster->sim.now_us / 1e6);
    va_start(args, format);
    vfprintf(out, format, args);
    va_end(args);
    fputc('\n', out);
}

/* ---- the machine ---- */

/* The same for reports, which node_sync would leave out before apply can. */
static void believe_all(const struct process *process, struct object_list *seen)
{
    if (!process->node->cluster->mutations.world.believe_all_reports)
        return;
    for (size_t i = 0; i < seen->count; i++) {
        struct vm_seen *vm = (struct vm_seen *)seen->items + i;
        const struct record *record = state_get(process->state, object_kind_VM, vm->id);
        vm->epoch = record != NULL ? record->vm->epoch : vm->epoch;
        vm->generation = record != NULL ? record->vm->generation : vm->generation;
    }
}

/* Take a rule out by changing the command that it is about, the same on every controller. */
static bool mutate(const struct process *process, struct command_message *message)
{
    const struct sim_world_mutations *broken = &process->node->cluster->mutations.world;
    struct command_request *request = (void *)((char *)message->payload + sizeof(struct object_head));
    if (broken->no_idempotency && request->idempotency_key != NULL) {
        OBJECT_TEXT(command_request, request, idempotency_key, NULL);
        return true;
    }
    if (broken->believe_all_reports && message->desc->number == COMMAND_seen) {
        believe_all(process, &((struct command_seen *)message->payload)->vms);
        return true;
    }
    return false;
}

static void tell_events(struct process *process, uint64_t index)
{
    struct state_event e;
    if (!state_event_after(process->state, index - 1, &e))
        return;
    do {
        struct event event;
        if (OBJECT_DECODE(event, e.json, e.json_size, OBJECT_STORED, &event, NULL) == 0) {
            if (event.by == NULL || strcmp(event.by, LOAD) != 0)
                sim_world_tell(process->node->cluster, "%s", event.message);
            OBJECT_CLEAR(event, &event);
        }
    } while (state_event_next(process->state, e.serial, &e));
}

/* An operation that starts a VM has ended well: then it did run, under the epoch that the state names. */
static void check_started(struct process *process)
{
    struct sim_world *world = process->node->cluster->world;
    for (const struct record *r = process->state->ended_newest; r != NULL && r->common->revision == state_index(process->state);
         r = r->of_operation.older) {
        const struct operation *operation = r->operation;
        const struct record *vm = state_get(process->state, object_kind_VM, operation->target_id);
        const struct world_vm *known = sim_world_vm(world, operation->target_name);
        if (operation_has_task(operation))
            continue;
        if (operation->state != operation_state_SUCCEEDED || vm == NULL || known == NULL || vm->vm->wanted != vm_wanted_RUNNING ||
            vm->vm->state != vm_state_RUNNING)
            continue;
        /* What a migration brings has been started, under the epoch before. */
        if (known->started_epoch + (vm->vm->handover != NULL) < vm->vm->epoch)
            sim_violation(&process->node->cluster->sim, "%s of %s succeeded, but epoch %llu was never started",
                          operation_kind_desc.names[operation->kind], operation->target_name,
                          (unsigned long long)vm->vm->epoch);
    }
}

/* Whose is it by this entry of the log? */
static void note_owners(struct process *process)
{
    struct sim_world *world = process->node->cluster->world;
    const struct state *state = process->state;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct record *record = state_at(state, object_kind_VM, i);
        struct world_vm *known = record->common->revision == state_index(state) ? sim_world_vm(world, record->common->name) : NULL;
        for (unsigned k = 0; known != NULL && record->vm->host != NULL && k < world->agent_count; k++)
            if (strcmp(record->vm->host, world->agents[k].id) == 0)
                known->given_epoch[k] = MAX(known->given_epoch[k], record->vm->epoch);
    }
}

static void crash_now(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_node *node = event->data;
    sim_world_tell(node->cluster, "controller %u is killed", node->actor.id);
    ((struct sim_world *)node->cluster->world)->dying = 0;
    sim_node_crash(node, "killed by the script");
}

/* Is it of the engine's own load? */
static bool is_load(const struct command_message *message)
{
    const struct command_request *request = (const void *)((const char *)message->payload + sizeof(struct object_head));
    return request->by != NULL && strcmp(request->by, LOAD) == 0;
}

static void fsm_class_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result)
{
    struct process *process = ctx;
    struct sim_cluster *cluster = process->node->cluster;
    struct sim_world *world = cluster->world;
    struct apply_result *result = NEW(struct apply_result);
    struct command_message message = {0};
    struct bytes_writer changed = {0};
    bool looked_at = world->crash_after != 0 || cluster->mutations.world.no_idempotency ||
                     cluster->mutations.world.believe_all_reports;
    if (looked_at && command_decode(entry, size, &message, NULL) == 0 && mutate(process, &message))
        command_encode(message.desc->number, message.payload, &changed, NULL);
    fsm_apply(process->state, index, changed.data != NULL ? changed.data : entry, changed.data != NULL ? changed.size : size,
              result);
    if (index == cluster->history_count + 1) {
        tell_events(process, index);
        check_started(process);
        note_owners(process);
        if (world->crash_after != 0 && message.desc != NULL && message.desc->number == world->crash_after && !is_load(&message) &&
            sim_node_leads(process->node)) {
            world->crash_after = 0;
            world->dying = process->node->actor.id;
            sim_after(&cluster->sim, 0, crash_now, NULL, process->node);
        }
    }
    command_message_finish(&message);
    bytes_writer_finish(&changed);
    *ret_result = result;
}

static void fsm_class_snapshot(void *ctx, struct bytes_writer *out)
{
    snapshot_write(((struct process *)ctx)->state, out);
}

/* What raft_frame pads the state with is not part of it. */
static int fsm_class_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    ((struct process *)ctx)->checked_index = 0;
    return snapshot_restore(((struct process *)ctx)->state, data, size, err);
}

static void fsm_class_release(void *ctx UNUSED, void *result)
{
    free(result);
}

static void fsm_class_create(struct sim_node *node, struct raft_machine *ret_machine)
{
    struct process *process = NEW(struct process);
    process->node = node;
    process->state = state_create();
    sim_lease_init(node, &process->lease);
    *ret_machine = (struct raft_machine){.ctx = process,
                                         .apply = fsm_class_apply,
                                         .snapshot = fsm_class_snapshot,
                                         .restore = fsm_class_restore,
                                         .release = fsm_class_release};
}

static void fsm_class_destroy(struct raft_machine *machine)
{
    struct process *process = machine->ctx;
    state_destroy(process->state);
    sim_lease_finish(&process->lease);
    free(process);
    machine->ctx = NULL;
}

static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    for (; size > 0; size--, bytes++)
        hash = (hash ^ *bytes) * UINT64_C(1099511628211);
    return hash;
}

static uint64_t fsm_class_hash(const struct raft_machine *machine)
{
    const struct state *state = ((struct process *)machine->ctx)->state;
    uint64_t hash = mix(1, &state->index, sizeof state->index);
    bool whole = state->index % HASH_WHOLE_EVERY == 0;
    struct state_event event;
    for (unsigned kind = 0; kind < object_kind_COUNT; kind++) {
        const struct record_index *order = &state->tables[kind].order;
        hash = mix(hash, &order->count, sizeof order->count);
        for (size_t i = 0; i < order->count; i++)
            if (whole || order->items[i]->common->revision == state->index)
                hash = mix(hash, order->items[i]->json, order->items[i]->json_size);
    }
    if (state_event_after(state, state->index - 1, &event)) /* older ones were hashed at their own index */
        hash = mix(hash, event.json, event.json_size);
    hash = mix(hash, &state->events_serial, sizeof state->events_serial);
    return mix(hash, &state->answer_count, sizeof state->answer_count);
}

static bool fsm_class_check(const struct raft_machine *machine, char *text, size_t size)
{
    struct process *process = machine->ctx;
    const struct state *state = process->state;
    uint64_t since = process->checked_index;
    struct error err = {0};
    if (since != 0 && state_index(state) % CHECK_EVERY != 0)
        return true;
    if (state_index(state) % CHECK_WHOLE_EVERY == 0)
        since = 0;
    if (check_state_since(state, since, &err) == 0) {
        process->checked_index = state_index(state);
        return true;
    }
    snprintf(text, size, "%s", err.text);
    return false;
}

/* The engine's own load: a label of the image. */
static void fsm_class_generate(struct sim_node *node, struct bytes_writer *out)
{
    struct command_put command = {0};
    char now[TIME_TEXT_BYTES], body[100];
    wall_clock(node, now);
    snprintf(body, sizeof body, "{\"id\":\"" IMAGE_ID "\",\"labels\":{\"n\":\"%llu\"}}",
             (unsigned long long)sim_below(&node->cluster->sim, 1000));
    ASSERT(OBJECT_DECODE(image, body, strlen(body), OBJECT_STORED, &command.image, NULL) == 0);
    object_mark(&command_put_desc, &command, "image");
    object_mark(&command_put_desc, &command, "request");
    OBJECT_TEXT(command_request, &command.request, at, now);
    OBJECT_TEXT(command_request, &command.request, by, LOAD);
    command_encode(COMMAND_put, &command, out, NULL);
    OBJECT_CLEAR(command_put, &command);
}

/* ---- answering ---- */

struct call { /* a request or report in work */
    struct sim_node *node;
    uint64_t incarnation;
    struct sim_actor *from;
    struct world_message *message;
    struct decision decision;
};

static void call_free(struct call *call)
{
    decision_finish(&call->decision);
    sim_world_message_free(call->message);
    free(call);
}

static bool call_alive(const struct call *call)
{
    return call->node->actor.up && call->node->actor.incarnation == call->incarnation;
}

static void answer(struct call *call, const struct world_message *given)
{
    struct world_message message = *given;
    message.number = call->message->number;
    memcpy(message.key, call->message->key, sizeof message.key);
    message.kind = call->message->kind == WORLD_REQUEST    ? WORLD_ANSWER
                   : call->message->kind == WORLD_HANDOVER ? WORLD_HANDED
                                                           : WORLD_ORDERS;
    sim_deliver_fn deliver = message.kind == WORLD_ANSWER ? sim_client_deliver : sim_agent_deliver;
    const struct sim_world *world = call->node->cluster->world;
    if (call_alive(call) && world->dying != call->node->actor.id)
        sim_world_send(call->node->cluster, &call->node->actor, call->from, &message, deliver);
    call_free(call);
}

static void answer_error(struct call *call, int code, enum error_kind kind, const char *words)
{
    struct world_message message = {.code = code, .error = kind};
    snprintf(message.words, sizeof message.words, "%.199s", words);
    answer(call, &message);
}

static void answer_status(struct call *call, int status)
{
    if (status == -EINPROGRESS)
        answer_error(call, status, ERROR_UNKNOWN_OUTCOME, "it is not known whether the change was made");
    else
        answer_error(call, status, ERROR_NO_LEADER, "this controller does not lead");
}

/* ---- requests ---- */

/* As api_node.c: what has been committed. */
static void handover_words(struct call *call, const char *id, struct world_message *message)
{
    const struct record *record =
        call_alive(call) ? state_get(process_of(call->node)->state, object_kind_OPERATION, id) : NULL;
    bool there = record != NULL && record->operation->task.migration.handed_over != 0;
    bool here = record != NULL && !there && record->operation->state != operation_state_RUNNING;
    message->code = there || here ? 0 : -EAGAIN;
    snprintf(message->words, sizeof message->words, "%s", there ? "there" : "here");
}

static void request_done(void *arg, int status, void *data)
{
    struct call *call = arg;
    CLEANUP_FREE struct apply_result *result = data;
    struct world_message message = {0};
    if (status != 0) {
        answer_status(call, status);
        return;
    }
    message.code = result->code;
    message.error = result->error.kind;
    snprintf(message.words, sizeof message.words, "%.199s", result->error.text);
    memcpy(message.object_id, result->object_id, sizeof message.object_id);
    memcpy(message.operation_id, result->operation_id, sizeof message.operation_id);
    if (call->message->kind == WORLD_HANDOVER && result->code == 0)
        handover_words(call, result->object_id, &message);
    answer(call, &message);
}

static void request_ready(void *arg, int status)
{
    struct call *call = arg;
    struct sim *sim = &call->node->cluster->sim;
    const struct world_message *m = call->message;
    char now[TIME_TEXT_BYTES], print[WORLD_NAME_BYTES];
    struct error err = {0};
    const struct object_desc *body = schema_routes[m->route].body;
    CLEANUP_FREE void *object = m->text != NULL ? xcalloc(1, body->size) : NULL;
    if (status != 0 || !call_alive(call)) {
        answer_status(call, -ENOTCONN);
        return;
    }
    wall_clock(call->node, now);
    snprintf(print, sizeof print, "%016llx", (unsigned long long)mix(m->route, m->text ? m->text : m->target,
                                                                    strlen(m->text ? m->text : m->target)));
    struct decision_context context = {.now = now, .uuid = uuid, .uuid_arg = sim, .by = "client",
                                       .idempotency_key = m->key[0] != '\0' ? m->key : NULL, .fingerprint = print};
    enum object_mode mode = schema_routes[m->route].method == ROUTE_PATCH ? OBJECT_PATCH : OBJECT_CREATE;
    if (m->text != NULL)
        ASSERT(object_decode(body, m->text, strlen(m->text), mode, object, NULL) == 0);
    int rc = decide_route(process_of(call->node)->state, &context, m->route, m->target, strlen(m->target), object,
                          &call->decision, &err);
    if (object != NULL)
        object_clear(body, object);
    if (rc < 0) {
        answer_error(call, rc, err.kind, err.text);
    } else if (call->decision.repeated) {
        struct world_message message = {0};
        memcpy(message.object_id, call->decision.object_id, sizeof message.object_id);
        memcpy(message.operation_id, call->decision.operation_id, sizeof message.operation_id);
        answer(call, &message);
    } else {
        rc = sim_node_propose(call->node, call->decision.command.data, call->decision.command.size, request_done, call);
        if (rc != 0 && rc != -ECANCELED)
            answer_status(call, rc);
    }
}

/* ---- reports ---- */

static void report_orders(struct call *call)
{
    struct node_report report;
    struct node_orders orders = {0};
    struct world_message message = {0};
    struct bytes_writer json = {0};
    struct error err = {0};
    ASSERT(OBJECT_DECODE(node_report, call->message->text, strlen(call->message->text), OBJECT_CREATE, &report, NULL) == 0);
    int rc = node_sync_orders(process_of(call->node)->state, &report, &orders, &err);
    OBJECT_CLEAR(node_report, &report);
    if (rc < 0) {
        answer_error(call, rc, err.kind, err.text);
        return;
    }
    OBJECT_ENCODE(node_orders, &orders, &json);
    bytes_put_u8(&json, 0);
    message.text = (char *)json.data;
    OBJECT_CLEAR(node_orders, &orders);
    answer(call, &message);
    bytes_writer_finish(&json);
}

static void report_done(void *arg, int status, void *result)
{
    struct call *call = arg;
    free(result);
    if (status != 0 || !call_alive(call))
        answer_status(call, status != 0 ? status : -ENOTCONN);
    else
        report_orders(call);
}

static void report_ready(void *arg, int status)
{
    struct call *call = arg;
    struct bytes_writer command = {0};
    struct node_report report;
    struct error err = {0};
    char now[TIME_TEXT_BYTES];
    if (status != 0 || !call_alive(call)) {
        answer_status(call, -ENOTCONN);
        return;
    }
    struct process *process = process_of(call->node);
    process->heard_ms[call->from->id - WORLD_AGENT_ID] = local_ms(call->node);
    wall_clock(call->node, now);
    ASSERT(OBJECT_DECODE(node_report, call->message->text, strlen(call->message->text), OBJECT_CREATE, &report, NULL) == 0);
    believe_all(process, &report.vms);
    const struct record *host = state_get(process->state, object_kind_HOST, report.host);
    if (host != NULL && host->host->state == host_state_LOST && /* as api_node.c */
        !lease_judge_hears(&process->lease.judge, process->state, report.host, local_ms(call->node) * LEASE_MS)) {
        OBJECT_CLEAR(node_report, &report);
        answer_error(call, -EAGAIN, ERROR_OVERLOAD, "the host was declared lost");
        return;
    }
    int rc = node_sync_changes(process->state, now, &report, &command, &err);
    OBJECT_CLEAR(node_report, &report);
    if (rc < 0) {
        answer_error(call, rc, err.kind, err.text);
    } else if (command.size == 0) {
        report_orders(call);
    } else {
        rc = sim_node_propose(call->node, command.data, command.size, report_done, call);
        if (rc != 0 && rc != -ECANCELED)
            answer_status(call, rc);
    }
    bytes_writer_finish(&command);
}

static void propose_own(struct sim_node *node, const struct bytes_writer *command);

static void viewed(struct sim_node *node)
{
    struct process *process = process_of(node);
    char now[TIME_TEXT_BYTES];
    if (!process->lease.suspects || process->proposed > 0 || !sim_node_leads(node) ||
        process->lead_term != node->ready_term || node->ready_term != raft_current_term(node->raft))
        return;
    wall_clock(node, now);
    sim_lease_judge(node, &process->lease, process->state, now, propose_own);
}

void sim_fsm_deliver(struct sim_actor *to, struct sim_actor *from, void *data)
{
    struct sim_node *node = CONTAINER_OF(to, struct sim_node, actor);
    const struct world_message *message = data;
    if (message->kind >= WORLD_LEASE) {
        bool view = message->kind == WORLD_VIEW;
        sim_lease_deliver(node, &process_of(node)->lease, process_of(node)->state, from, data);
        if (view)
            viewed(node);
        return;
    }
    struct call *call = NEW(struct call);
    *call = (struct call){.node = node, .incarnation = to->incarnation, .from = from, .message = data};
    bool report = call->message->kind == WORLD_REPORT;
    int rc = sim_node_barrier(node, report ? report_ready : request_ready, call);
    if (rc != 0 && rc != -ECANCELED)
        answer_status(call, -ENOTCONN);
}

/* ---- leading ---- */

static void tick_done(void *arg, int status UNUSED, void *result)
{
    struct sim_node *node = arg;
    free(result);
    if (node->actor.up && node->machine.ctx != NULL && process_of(node)->proposed > 0)
        process_of(node)->proposed--;
}

static void propose_own(struct sim_node *node, const struct bytes_writer *command)
{
    uint64_t incarnation = node->actor.incarnation;
    process_of(node)->proposed++;
    if (sim_node_propose(node, command->data, command->size, tick_done, node) != 0 && node->actor.incarnation == incarnation)
        process_of(node)->proposed--;
}

/* What a person would have done with CLI and tokens: cluster, image, hosts. */
static void furnish(struct sim_node *node, enum command number, const char *json)
{
    const struct command_desc *desc = command_find(number);
    struct bytes_writer command = {0};
    struct error err = {0};
    char now[TIME_TEXT_BYTES];
    CLEANUP_FREE void *payload = xcalloc(1, desc->payload->size);
    wall_clock(node, now);
    CLEANUP_FREE char *text = xasprintf("{\"request\":{\"at\":\"%s\"},%s}", now, json);
    if (object_decode(desc->payload, text, strlen(text), OBJECT_STORED, payload, &err) < 0)
        assert_failed(err.text, __FILE__, __LINE__, __func__);
    command_encode(number, payload, &command, NULL);
    object_clear(desc->payload, payload);
    propose_own(node, &command);
    bytes_writer_finish(&command);
}

static bool furnished(struct sim_node *node)
{
    const struct sim_world *world = node->cluster->world;
    const struct state *state = process_of(node)->state;
    if (!state_initialized(state)) {
        furnish(node, COMMAND_init,
                "\"cluster\":{\"id\":\"00000000-0000-4000-8000-00000000cccc\",\"name\":\"sim\",\"next_raft_id\":9,\"epoch\":1,\"lease_ttl_ms\":5000},"
                "\"controller\":{\"id\":\"00000000-0000-4000-8000-00000000dddd\",\"name\":\"c1\",\"raft_id\":1,\"address\":\"c1:7443\"}");
        return false;
    }
    for (unsigned id = 2; world->leases && id <= node->cluster->node_count; id++) {
        char name[16];
        snprintf(name, sizeof name, "c%u", id);
        if (state_get(state, object_kind_CONTROLLER, name) != NULL)
            continue;
        CLEANUP_FREE char *json = xasprintf("\"create\":true,\"controller\":{\"id\":\"00000000-0000-4000-8000-0000000000%02u\","
                                            "\"name\":\"c%u\",\"raft_id\":%u,\"address\":\"c%u:7443\",\"role\":\"voter\"}",
                                            id, id, id, id);
        furnish(node, COMMAND_put, json);
        return false;
    }
    if (state_get(state, object_kind_IMAGE, "tiny") == NULL) {
        furnish(node, COMMAND_put, "\"create\":true,\"image\":{\"id\":\"" IMAGE_ID "\",\"name\":\"tiny\",\"kind\":\"kernel\","
                "\"kernel\":{\"url\":\"file:///k\",\"sha256\":\"" SHA "\"}}");
        return false;
    }
    for (unsigned i = 0; i < world->agent_count; i++) {
        const struct sim_agent *agent = &world->agents[i];
        if (state_get(state, object_kind_HOST, agent->id) != NULL)
            continue;
        CLEANUP_FREE char *json = xasprintf("\"create\":true,\"host\":{\"id\":\"%s\",\"name\":\"%s\",\"state\":\"unreachable\","
                                            "\"memory_reserve_bytes\":0,\"generation\":1}", agent->id, agent->name);
        furnish(node, COMMAND_put, json);
        return false;
    }
    return true;
}

static void tick(struct sim_node *node)
{
    struct process *process = process_of(node);
    const struct sim_world *world = node->cluster->world;
    struct reconcile_output *output = NEW(struct reconcile_output);
    struct reconcile_node nodes[WORLD_AGENTS];
    uint64_t incarnation = node->actor.incarnation;
    char now[TIME_TEXT_BYTES];
    wall_clock(node, now);
    for (unsigned i = 0; i < world->agent_count; i++)
        nodes[i] = (struct reconcile_node){world->agents[i].id, process->heard_ms[i]};
    struct reconcile_input input = {.now = now, .now_ms = local_ms(node), .leader_since_ms = process->leader_since_ms,
                                    .nodes = nodes, .n_nodes = world->agent_count,
                                    .resume_after = process->resume_after, .uuid = uuid, .uuid_arg = &node->cluster->sim};
    reconcile_tick(process->state, &input, output);
    sim_promise_priorities(node->cluster, process->state, output);
    memcpy(process->resume_after, output->resume_after, sizeof process->resume_after);
    for (unsigned i = 0; i < output->count && node->actor.up && node->actor.incarnation == incarnation; i++)
        propose_own(node, &output->commands[i]);
    reconcile_output_finish(output);
    free(output);
}

static void fsm_class_lead(struct sim_node *node)
{
    struct process *process = process_of(node);
    struct sim_world *world = node->cluster->world;
    if (process->lead_term != node->ready_term) {
        *process = (struct process){.node = node, .state = process->state, .checked_index = process->checked_index, .lead_term = node->ready_term,
                                    .leader_since_ms = local_ms(node), .lease = process->lease};
        if (world->story_term < node->ready_term)
            sim_world_tell(node->cluster, "controller %u leads", node->actor.id);
        world->story_term = MAX(world->story_term, node->ready_term);
    }
    if (process->proposed > 0 || !furnished(node))
        return;
    if (world->leases) {
        char now[TIME_TEXT_BYTES];
        uint64_t incarnation = node->actor.incarnation;
        wall_clock(node, now);
        sim_lease_lead(node, &process->lease, process->state, now, propose_own);
        if (!node->actor.up || node->actor.incarnation != incarnation)
            return;
    }
    if (node->cluster->mutations.world.no_reconcile || local_ms(node) < process->next_tick_ms)
        return;
    process->next_tick_ms = local_ms(node) + RECONCILE_PERIOD_MS;
    tick(node);
}

/* ---- the world ---- */

static void fsm_class_begin(struct sim_cluster *cluster)
{
    struct sim_world *world = cluster->world;
    if (world == NULL) {
        world = cluster->world = NEW(struct sim_world);
        world->agent_count = WORLD_AGENTS;
        world->host_mib = WORLD_HOST_MIB;
        world->doubled_per_thousand = cluster->scenario->faults != 0 ? 20 : 0;
        world->leases = cluster->scenario->leases;
    }
    for (unsigned i = 0; i < WORLD_AGENTS; i++)
        sim_agent_init(&world->agents[i], cluster, i);
    for (unsigned i = 0; i < WORLD_CLIENTS; i++)
        sim_client_init(&world->clients[i], cluster, i);
    for (unsigned i = 0; i < world->agent_count; i++)
        sim_agent_start(&world->agents[i]);
    if (world->scripted)
        sim_script_begin(cluster);
    if (cluster->scenario->staged)
        sim_stage_start(cluster);
    for (unsigned i = 0; i < WORLD_CLIENTS; i++)
        sim_client_start(&world->clients[i]);
}

static void agent_again(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_agent *agent = event->data;
    if (agent->down) /* nobody has answered it: it goes all the same */
        sim_agent_host_reboot(agent);
    sim_agent_start(agent);
}

static void mend_agent(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_agent *agent = event->data;
    for (unsigned id = 0; id < SIM_ACTORS_MAX; id++)
        agent->cluster->network.cut[id][agent->actor.id] = agent->cluster->network.cut[agent->actor.id][id] = false;
}

/* Somebody sets a controller's wall clock: nothing may depend on what time it is. */
static void jump_clock(struct sim_cluster *cluster)
{
    struct sim *sim = &cluster->sim;
    struct sim_node *node = &cluster->nodes[sim_between(sim, 1, cluster->node_count)];
    node->wall_jump_ms = (int64_t)sim_below(sim, 2 * WALL_JUMP_MS_MAX) - WALL_JUMP_MS_MAX;
    sim_log(sim, "controller %u: its clock is wrong by %lld s", node->actor.id, (long long)node->wall_jump_ms / 1000);
}

/* It burns: no more than one of them, and none before all have been there. */
static void burn(struct sim_cluster *cluster, struct sim_agent *agent)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->agent_count; i++)
        if (world->agents[i].burnt || cluster->sim.now_us < 10 * SIM_SECOND)
            return;
    sim_log(&cluster->sim, "host %s burns", agent->name);
    sim_agent_host_reboot(agent);
    agent->burnt = true;
}

/* Cut off in one direction, or from one controller. */
static void cut_partly(struct sim_cluster *cluster, struct sim_agent *agent)
{
    struct sim *sim = &cluster->sim;
    if (sim_chance(sim, 500))
        sim_network_isolate(&cluster->network, agent->actor.id, sim_chance(sim, 500), false);
    else
        cluster->network.cut[agent->actor.id][sim_between(sim, 1, cluster->node_count)] = true;
    sim_after(sim, sim_between(sim, SIM_SECOND, 20 * SIM_SECOND), mend_agent, NULL, agent);
}

static void fsm_class_fault(struct sim_cluster *cluster)
{
    struct sim *sim = &cluster->sim;
    struct sim_world *world = cluster->world;
    struct sim_agent *agent = &world->agents[sim_below(sim, world->agent_count)];
    switch (sim_below(sim, world->leases ? 9 : 5)) {
    case 0:
        sim_agent_crash(agent);
        break;
    case 1:
        sim_agent_host_reboot(agent);
        break;
    case 2:
        agent->actor.paused_until_us =
            MAX(agent->frozen_until_us, sim->now_us + sim_between(sim, 100 * SIM_MS, 4 * SIM_SECOND));
        return;
    case 3:
        sim_network_isolate(&cluster->network, agent->actor.id, true, true);
        sim_after(sim, sim_between(sim, SIM_SECOND, 20 * SIM_SECOND), mend_agent, NULL, agent);
        return;
    case 4:
        jump_clock(cluster);
        return;
    case 5: /* the whole host stands still, and wakes with all that it had */
        sim_agent_freeze(agent, MIN(sim->now_us + sim_between(sim, SIM_SECOND, 20 * SIM_SECOND), cluster->quiet_us));
        sim_log(sim, "host %s freezes", agent->name);
        return;
    case 6:
        cut_partly(cluster, agent);
        return;
    case 7:
        burn(cluster, agent);
        return;
    default: /* shut down in order */
        sim_log(sim, "host %s is shut down", agent->name);
        sim_agent_host_leave(agent);
        break;
    }
    sim_after(sim, sim_between(sim, 100 * SIM_MS, 15 * SIM_SECOND), agent_again, NULL, agent);
}

static void fsm_class_heal(struct sim_cluster *cluster)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->agent_count; i++) {
        world->agents[i].actor.paused_until_us = world->agents[i].frozen_until_us = 0;
        if (world->agents[i].down)
            sim_agent_host_reboot(&world->agents[i]);
        sim_agent_start(&world->agents[i]);
    }
    world->doubled_per_thousand = 0;
}

/* ---- the end ---- */

static const struct sim_agent *burnt_host(const struct sim_world *world, const char *id)
{
    for (unsigned i = 0; id != NULL && i < world->agent_count; i++)
        if (world->agents[i].burnt && strcmp(world->agents[i].id, id) == 0)
            return &world->agents[i];
    return NULL;
}

/* Is it said to run, and does it? */
static void check_executes(struct sim_cluster *cluster, const struct vm *vm)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->agent_count; i++) {
        const struct sim_agent *agent = &world->agents[i];
        if (vm->host == NULL || strcmp(agent->id, vm->host) != 0 || agent->burnt)
            continue;
        for (unsigned k = 0; k < agent->vms_top; k++)
            if (agent->vms[k].used && strcmp(agent->vms[k].order.id, vm->id) == 0 && agent->vms[k].process &&
                !agent->vms[k].held && !sim_vm_executes(agent, &agent->vms[k]))
                sim_violation(&cluster->sim, "at rest VM %s is held for want of a lease on %s", vm->name, agent->name);
    }
}

static void check_vm_at_rest(struct sim_cluster *cluster, const struct state *state, const struct vm *vm)
{
    static const enum vm_state reached[] = {[vm_wanted_RUNNING] = vm_state_RUNNING, [vm_wanted_PAUSED] = vm_state_PAUSED,
                                            [vm_wanted_STOPPED] = vm_state_STOPPED, [vm_wanted_DELETED] = vm_state_DELETED};
    struct sim_world *world = cluster->world;
    const struct world_vm *known = sim_world_vm(world, vm->name);
    bool by_itself = vm->seen_generation == vm->generation && (vm->state == vm_state_STOPPED || vm->state == vm_state_FAILED);
    struct placement placement = {0};
    const struct sim_agent *burnt = burnt_host(world, vm->host);
    bool waits = (vm->host == NULL || vm->recovering) && decide_placement(state, vm, &placement, NULL) == 0 && placement.host == NULL;
    const struct record *host = burnt != NULL ? state_get(state, object_kind_HOST, burnt->id) : NULL;
    if (burnt != NULL && (!vm->ha || host->host->armed != host->host->arming)) /* nobody knows that it does not run there */
        waits = true;
    OBJECT_CLEAR(placement, &placement);
    bool unheard = burnt != NULL && host->host->state != host_state_LOST && waits; /* there is nobody to say that it is gone */
    if (known == NULL || (!known->exists && known->id[0] != '\0' && !(unheard && vm->wanted == vm_wanted_DELETED)))
        sim_violation(&cluster->sim, "VM %s is there, but nobody wants it", vm->name);
    else if (known->exists && !known->uncertain && vm->wanted != known->wanted)
        sim_violation(&cluster->sim, "VM %s is wanted %s, acknowledged was %s", vm->name, vm_wanted_desc.names[vm->wanted],
                      vm_wanted_desc.names[known->wanted]);
    else if (burnt != NULL && vm->ha && vm->wanted == vm_wanted_RUNNING && !by_itself && !waits)
        sim_violation(&cluster->sim, "at rest VM %s has ha and is still on %s, which has burnt", vm->name, burnt->name);
    else if (burnt == NULL && vm->state == vm_state_RUNNING && vm->wanted == vm_wanted_RUNNING)
        check_executes(cluster, vm);
    else if (burnt == NULL && vm->state != reached[vm->wanted] && !by_itself && !waits)
        sim_violation(&cluster->sim, "at rest VM %s is %s, wanted %s", vm->name, vm_state_desc.names[vm->state],
                      vm_wanted_desc.names[vm->wanted]);
}

/* Who says it runs, where does it run? */
static void check_vmm_at_rest(struct sim_cluster *cluster, const struct state *state)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->agent_count; i++) {
        for (unsigned k = 0; k < world->agents[i].vms_top; k++) {
            const struct sim_vm *vm = &world->agents[i].vms[k];
            const struct record *held = vm->used ? state_get(state, object_kind_VM, vm->order.id) : NULL;
            if (!vm->used)
                continue;
            bool own = held != NULL && held->vm->host != NULL && strcmp(held->vm->host, world->agents[i].id) == 0;
            if (world->agents[i].burnt)
                continue;
            if (!own && vm->process)
                sim_violation(&cluster->sim, "at rest VM %s runs on %s, which does not own it", vm->order.name,
                              world->agents[i].name);
            else if (own && vm->process != (held->vm->state == vm_state_RUNNING || held->vm->state == vm_state_PAUSED))
                sim_violation(&cluster->sim, "at rest VM %s is %s, but its VMM %s", vm->order.name,
                              vm_state_desc.names[held->vm->state], vm->process ? "runs" : "does not run");
        }
    }
}

static void check_at_rest(struct sim_cluster *cluster, const struct state *state)
{
    struct sim_world *world = cluster->world;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++)
        check_vm_at_rest(cluster, state, state_at(state, object_kind_VM, i)->vm);
    for (unsigned i = 0; i < world->vm_count; i++)
        if (world->vms[i].exists && state_get(state, object_kind_VM, world->vms[i].id) == NULL)
            sim_violation(&cluster->sim, "VM %s was acknowledged and is gone", world->vms[i].name);
    for (size_t i = 0; i < state_count(state, object_kind_OPERATION); i++) {
        const struct operation *operation = state_at(state, object_kind_OPERATION, i)->operation;
        const struct record *vm = state_get(state, object_kind_VM, operation_vm_id(operation));
        if (vm != NULL && (vm->vm->recovering || burnt_host(world, vm->vm->host) != NULL || burnt_host(world, operation->task.peer) != NULL))
            continue; /* nobody is there who could end it */
        if (operation->state == operation_state_RUNNING && (vm == NULL || vm->vm->host != NULL))
            sim_violation(&cluster->sim, "at rest %s of %s still runs: %s", operation_kind_desc.names[operation->kind],
                          operation->target_name, operation->step);
    }
    for (unsigned i = 0; i < WORLD_CLIENTS; i++)
        if (world->clients[i].busy)
            sim_violation(&cluster->sim, "at rest client %u still waits for its answer", i + 1);
    check_vmm_at_rest(cluster, state);
}

static void check_same_bytes(struct sim_cluster *cluster)
{
    struct bytes_writer first = {0};
    uint64_t index = 0;
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        struct sim_node *node = &cluster->nodes[id];
        struct bytes_writer bytes = {0};
        if (!node->actor.up || (first.size > 0 && node->index != index))
            continue;
        snapshot_write(process_of(node)->state, &bytes);
        if (first.size == 0) {
            first = bytes;
            index = node->index;
            continue;
        }
        if (bytes.size != first.size || memcmp(bytes.data, first.data, first.size) != 0)
            sim_violation(&cluster->sim, "controller %u has other bytes at index %llu", id, (unsigned long long)index);
        bytes_writer_finish(&bytes);
    }
    bytes_writer_finish(&first);
}

static void fsm_class_finish(struct sim_cluster *cluster)
{
    struct sim_world *world = cluster->world;
    struct sim_node *leader = sim_cluster_leader(cluster);
    if (cluster->sim.violation[0] == '\0' && leader != NULL) {
        check_at_rest(cluster, process_of(leader)->state);
        check_same_bytes(cluster);
    }
    if (cluster->sim.violation[0] != '\0')
        sim_world_tell(cluster, "VIOLATION %s", cluster->sim.violation);
    for (unsigned i = 0; i < WORLD_AGENTS; i++)
        sim_agent_finish(&world->agents[i]);
    for (unsigned i = 0; i < WORLD_CLIENTS; i++)
        sim_client_finish(&world->clients[i]);
    free(world->answers);
    free(world);
    cluster->world = NULL;
}

const struct sim_machine_class sim_cluster_class = {
    .name = "cluster",
    .load_gap_ms = 150,
    .create = fsm_class_create,
    .destroy = fsm_class_destroy,
    .hash = fsm_class_hash,
    .check = fsm_class_check,
    .generate = fsm_class_generate,
    .begin = fsm_class_begin,
    .lead = fsm_class_lead,
    .fault = fsm_class_fault,
    .heal = fsm_class_heal,
    .check_world = sim_lease_check,
    .finish = fsm_class_finish,
};
