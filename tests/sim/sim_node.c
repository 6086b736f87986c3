/* One simulated controller, and what it must never do. See sim_node.h for the list of checks. */
#include "tests/sim/sim_node.h"

#include "tests/sim/sim_faults.h"

#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_frame.h"

#include <errno.h>
#include <string.h>

struct command { /* of a group in flight */
    uint64_t index;  /* 0: not applied here yet */
    uint64_t hash;
    void *result;
};

struct group {
    struct list in_groups;
    struct raft_apply req;
    struct sim_node *node;
    struct raft_buffer buf;
    uint64_t sequence;
    uint64_t floor; /* everything up to here was acknowledged before this was proposed */
    sim_propose_cb done;
    void *arg;
    int rv;
    unsigned count;
    struct command commands[SIM_GROUP_COMMANDS_MAX];
};

struct barrier {
    struct list in_list; /* while it goes by questions, or waits for them */
    struct raft_barrier req;
    struct sim_node *node;
    raft_term term; /* in which it was asked for */
    uint64_t floor;
    sim_barrier_cb done;
    void *arg;
    int rv;
};

static uint64_t bytes_hash(const void *data, size_t size)
{
    uint64_t hash = 14695981039346656037ull;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211ull;
    return hash;
}

/* --- The state machine as libraft sees it ----------------------------------------------------------------------- */

static struct group *node_find_group(struct sim_node *node, uint64_t proposer, uint64_t sequence)
{
    if (proposer != node->proposer)
        return NULL;
    LIST_FOREACH (at, &node->groups) {
        struct group *group = LIST_ENTRY(at, struct group, in_groups);

        if (group->sequence == sequence)
            return group;
    }
    return NULL;
}

static void node_check_state(struct sim_node *node)
{
    struct sim_cluster *cluster = node->cluster;
    char text[200] = "";

    if (cluster->class->check != NULL && !cluster->class->check(&node->machine, text, sizeof(text)))
        sim_violation(&cluster->sim, "controller %u at index %llu: %s", node->actor.id,
                      (unsigned long long)node->index, text);
}

/* The first controller to apply an index writes history, the others must agree with it. */
static void node_check_history(struct sim_node *node, uint64_t command_hash)
{
    struct sim_cluster *cluster = node->cluster;
    struct sim_history_entry now = {command_hash, cluster->class->hash(&node->machine)}, *then;

    if (node->index == cluster->history_count + 1) {
        if (cluster->history_count == cluster->history_capacity) {
            cluster->history_capacity = MAX(4096, cluster->history_capacity * 2);
            cluster->history = xrealloc(cluster->history, cluster->history_capacity * sizeof(*cluster->history));
        }
        cluster->history[cluster->history_count++] = now;
        return;
    }
    if (node->index > cluster->history_count) {
        sim_violation(&cluster->sim, "controller %u applies index %llu, nobody has applied %llu", node->actor.id,
                      (unsigned long long)node->index, (unsigned long long)cluster->history_count + 1);
        return;
    }
    then = &cluster->history[node->index - 1];
    if (then->command_hash != now.command_hash)
        sim_violation(&cluster->sim, "controller %u applies another command at index %llu", node->actor.id,
                      (unsigned long long)node->index);
    else if (then->state_hash != now.state_hash)
        sim_violation(&cluster->sim, "controller %u has another state at index %llu", node->actor.id,
                      (unsigned long long)node->index);
}

static void node_apply_command(struct sim_node *node, struct command *mine, const void *data, size_t size)
{
    struct raft_machine *machine = &node->machine;
    void *result = NULL;

    node->index++;
    if (node->cluster->mutations.apply_depends_on_node && node->index % 500 == node->actor.id)
        return; /* mutation: this controller skips it */
    machine->apply(machine->ctx, node->index, data, size, &result);
    node_check_history(node, bytes_hash(data, size));
    node_check_state(node);
    if (mine != NULL) {
        mine->index = node->index;
        mine->result = result;
    } else if (result != NULL && machine->release != NULL) {
        machine->release(machine->ctx, result);
    }
}

static void node_apply_entry(struct sim_node *node, const struct raft_buffer *buf)
{
    struct raft_group reader;
    struct group *mine;
    const void *data;
    unsigned at = 0;
    size_t size;
    int rv = raft_group_open(&reader, buf->base, buf->len);

    if (rv == 0) {
        mine = node_find_group(node, reader.proposer, reader.sequence);
        while ((rv = raft_group_next(&reader, &data, &size)) > 0) {
            node_apply_command(node, mine != NULL ? &mine->commands[at] : NULL, data, size);
            at++;
        }
    }
    if (rv != 0)
        sim_violation(&node->cluster->sim, "controller %u applies an entry that is no group: %s", node->actor.id,
                      strerror(-rv));
}

static int node_fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct sim_node *node = fsm->data;

    *result = NULL;
    if (raft_deferred_busy(&node->deferred) && !node->cluster->mutations.restore_apply)
        raft_deferred_add(&node->deferred, buf->base, buf->len);
    else
        node_apply_entry(node, buf);
    return 0;
}

static int node_fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct sim_node *node = fsm->data;
    struct sim_cluster *cluster = node->cluster;
    struct bytes_writer out = {0};
    struct raft_buffer *buf;

    if (!cluster->mutations.raft.no_snapshot_guard && !raft_guard_may_snapshot(node->raft) &&
        !(cluster->mutations.raft.no_configuration_guard && raft_last_applied(node->raft) == raft_commit_index(node->raft)))
        return RAFT_BUSY;
    if (raft_deferred_busy(&node->deferred) && !cluster->mutations.restore_snapshot)
        return RAFT_BUSY;
    raft_snapshot_begin(&out);
    node->machine.snapshot(node->machine.ctx, &out);
    raft_snapshot_end(&out, node->index - (cluster->mutations.snapshot_forgets && node->index % 64 == 7));
    buf = raft_malloc(sizeof(*buf));
    *buf = (struct raft_buffer){.base = out.data, .len = out.size};
    *bufs = buf;
    *n_bufs = 1;
    cluster->stats.snapshots++;
    return 0;
}

/* Now. The buffer stays the caller's. */
static int node_restore(struct sim_node *node, const struct raft_buffer *buf)
{
    struct sim_cluster *cluster = node->cluster;
    struct error err = {0};
    const void *state;
    size_t size;
    uint64_t index;
    int rv = raft_snapshot_open(buf->base, buf->len, &index, &state, &size);

    if (rv == 0)
        rv = node->machine.restore(node->machine.ctx, state, size, &err);
    if (rv != 0) {
        sim_violation(&cluster->sim, "controller %u cannot restore a snapshot: %s %s", node->actor.id, strerror(-rv),
                      err.text);
        return RAFT_CORRUPT;
    }
    node->index = index;
    if (index > cluster->history_count ||
        (index > 0 && cluster->history[index - 1].state_hash != cluster->class->hash(&node->machine)))
        sim_violation(&cluster->sim, "controller %u restores a state that is not the one of index %llu",
                      node->actor.id, (unsigned long long)index);
    node_check_state(node);
    return 0;
}

/* What raft_restore.c's thread has done is taken over. */
static void node_restored(struct sim_node *node)
{
    node_restore(node, &node->restoring);
    raft_free(TAKE_PTR(node->restoring.base));
    raft_deferred_ready(&node->deferred);
}

/* Some of the entries that waited, as raft_restore_turn does it. */
static void node_drain(struct sim *sim, struct sim_event *event)
{
    struct sim_node *node = CONTAINER_OF(event->actor, struct sim_node, actor);
    struct raft_deferred_entry *entry;

    if (event->value != node->restores)
        return; /* a newer snapshot has come */
    if (node->deferred.state == RAFT_DEFERRED_RESTORING)
        node_restored(node);
    for (uint64_t i = sim_between(sim, 1, 8); i > 0 && (entry = raft_deferred_next(&node->deferred)) != NULL; i--) {
        const struct raft_buffer buf = {.base = entry->data, .len = entry->size};

        node_apply_entry(node, &buf);
        node->cluster->stats.deferred++;
        free(entry);
    }
    if (raft_deferred_busy(&node->deferred))
        sim_after(sim, sim_between(sim, 1, 5 * SIM_MS), node_drain, &node->actor, NULL)->value = node->restores;
}

static int node_fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct sim_node *node = fsm->data;
    struct sim *sim = &node->cluster->sim;
    bool slow = (node->cluster->scenario->faults & SIM_FAULT_SLOW_RESTORE) != 0 && sim->now_us < node->cluster->quiet_us;
    int rv;

    if (!node->starting) {
        if (node->restoring.base != NULL)
            node_restored(node);
        raft_deferred_begin(&node->deferred);
        node->restoring = *buf;
        sim_after(sim, sim_between(sim, 1, (slow ? 4000 : 20) * SIM_MS), node_drain, &node->actor, NULL)->value =
            ++node->restores;
        return 0;
    }
    rv = node_restore(node, buf);
    if (rv == 0)
        raft_free(buf->base);
    return rv;
}

/* libraft is ahead of the machine: nothing may be promised. */
static bool node_answers(const struct sim_node *node)
{
    return !raft_deferred_busy(&node->deferred) || node->cluster->mutations.restore_answer;
}

/* --- Commands --------------------------------------------------------------------------------------------------- */

static void group_check_acknowledged(struct group *group)
{
    struct sim_cluster *cluster = group->node->cluster;

    for (unsigned i = 0; i < group->count; i++) {
        const struct command *command = &group->commands[i];

        if (command->index == 0 || command->index > cluster->history_count ||
            cluster->history[command->index - 1].command_hash != command->hash)
            sim_violation(&cluster->sim, "controller %u acknowledges a command that is not in the history",
                          group->node->actor.id);
        else if (command->index <= group->floor)
            sim_violation(&cluster->sim, "a command proposed after index %llu was acknowledged gets index %llu",
                          (unsigned long long)group->floor, (unsigned long long)command->index);
        cluster->acknowledged_index = MAX(cluster->acknowledged_index, command->index);
    }
    cluster->stats.acknowledged += group->count;
}

static void group_finish(struct group *group, int status)
{
    struct sim_cluster *cluster = group->node->cluster;
    struct raft_machine *machine = &group->node->machine;
    void *result = group->commands[0].result;

    list_remove(&group->in_groups);
    if (status == 0)
        group_check_acknowledged(group);
    else
        cluster->stats.unknown += group->count;
    for (unsigned i = 0; i < group->count; i++) {
        bool taken = i == 0 && group->done != NULL;

        if (!taken && group->commands[i].result != NULL && machine->release != NULL)
            machine->release(machine->ctx, group->commands[i].result);
    }
    if (group->done != NULL)
        group->done(group->arg, status, result);
    free(group);
}

static void group_cb(struct raft_apply *req, int status, void *result UNUSED)
{
    struct group *group = req->data;
    bool applied = group->commands[group->count - 1].index != 0;
    bool believed = group->node->cluster->mutations.no_result_guard && status == 0;

    group_finish(group, applied || believed ? 0 : -EINPROGRESS); /* as raft_propose.c: guard D */
}

static void group_submit(struct sim_raft_io *io, void *arg)
{
    struct group *group = arg;

    group->rv = raft_apply(io->raft, &group->req, &group->buf, 1, group_cb);
    if (group->rv != 0)
        raft_free(group->buf.base);
}

static struct group *group_new(struct sim_node *node)
{
    struct group *group = NEW(struct group);

    group->node = node;
    group->req.data = group;
    group->sequence = ++node->sequence;
    group->floor = node->cluster->acknowledged_index;
    list_append(&node->groups, &group->in_groups);
    return group;
}

static void group_add(struct group *group, struct bytes_writer *frame, const void *command, size_t size)
{
    group->commands[group->count++].hash = bytes_hash(command, size);
    raft_group_add(frame, command, size);
}

static int group_send(struct group *group, struct bytes_writer *frame)
{
    struct sim_node *node = group->node;
    uint64_t incarnation = node->actor.incarnation;
    int rv;

    raft_group_end(frame, group->count);
    group->buf = (struct raft_buffer){.base = frame->data, .len = frame->size};
    if (node->cluster->mutations.acknowledge_before_commit && sim_chance(&node->cluster->sim, 100))
        node->cluster->acknowledged_index = MAX(node->cluster->acknowledged_index, node->index + group->count);
    sim_raft_io_call(&node->io, group_submit, group);
    if (!node->actor.up || node->actor.incarnation != incarnation)
        return -ECANCELED; /* it died of it */
    rv = raft_errors_errno(group->rv);
    if (rv != 0) {
        node->cluster->stats.refused += group->count;
        list_remove(&group->in_groups);
        free(group);
    }
    return rv;
}

int sim_node_propose(struct sim_node *node, const void *command, size_t size, sim_propose_cb done, void *arg)
{
    struct bytes_writer frame = {0};
    struct group *group;

    if (!sim_node_leads(node) || !node_answers(node))
        return -ENOTCONN;
    group = group_new(node);
    group->done = done;
    group->arg = arg;
    raft_group_begin(&frame, node->proposer, group->sequence);
    group_add(group, &frame, command, size);
    return group_send(group, &frame);
}

void sim_node_load(struct sim_node *node, unsigned commands)
{
    struct bytes_writer frame = {0};
    struct group *group;

    ASSERT(commands > 0 && commands <= SIM_GROUP_COMMANDS_MAX);
    if (!node_answers(node))
        return;
    group = group_new(node);
    raft_group_begin(&frame, node->proposer, group->sequence);
    for (unsigned i = 0; i < commands; i++) {
        struct bytes_writer command = {0};

        node->cluster->class->generate(node, &command);
        group_add(group, &frame, command.data, command.size);
        bytes_writer_finish(&command);
    }
    group_send(group, &frame);
}

/* --- Reads ------------------------------------------------------------------------------------------------------ */

static void barrier_finish(struct barrier *barrier, int status)
{
    struct sim_node *node = barrier->node;

    if (!node->cluster->mutations.no_result_guard && !node->cluster->mutations.read_without_barrier &&
        (raft_state(node->raft) != RAFT_LEADER || raft_current_term(node->raft) != barrier->term))
        status = RAFT_LEADERSHIPLOST; /* as raft_read.c: guard D */
    if (!node_answers(node))
        status = RAFT_LEADERSHIPLOST;
    if (status == 0) {
        node->cluster->stats.reads++;
        if (node->index < barrier->floor)
            sim_violation(&node->cluster->sim, "a read behind a barrier sees index %llu, %llu was told before",
                          (unsigned long long)node->index, (unsigned long long)barrier->floor);
    }
    if (barrier->done != NULL)
        barrier->done(barrier->arg, status == 0 ? 0 : -ENOTCONN);
    free(barrier);
}

static void barrier_cb(struct raft_barrier *req, int status)
{
    struct barrier *barrier = req->data;
    struct sim_node *node = barrier->node;

    if (status == 0 && raft_state(node->raft) == RAFT_LEADER && raft_current_term(node->raft) == barrier->term)
        node->confirmed_term = barrier->term;
    barrier_finish(barrier, status);
}

static void barrier_submit(struct sim_raft_io *io, void *arg)
{
    struct barrier *barrier = arg;

    barrier->rv = raft_barrier(io->raft, &barrier->req, barrier_cb);
}

static int barrier_by_log(struct sim_node *node, struct barrier *barrier)
{
    uint64_t incarnation = node->actor.incarnation;
    int rv;

    sim_raft_io_call(&node->io, barrier_submit, barrier);
    if (!node->actor.up || node->actor.incarnation != incarnation)
        return -ECANCELED;
    rv = raft_errors_errno(barrier->rv);
    if (rv != 0)
        free(barrier);
    return rv;
}

static void confirm_message_arrives(struct sim_actor *to, struct sim_actor *from, void *data);

static bool confirm_send(void *arg, raft_id id, const struct raft_confirm_message *message)
{
    struct sim_node *node = arg;
    struct sim_raft_io *peer = node->io.peer(&node->io, id);
    struct raft_confirm_message *copy;

    if (peer == NULL)
        return false;
    copy = NEW(struct raft_confirm_message);
    *copy = *message;
    return sim_network_send(&node->cluster->network, &node->actor, peer->actor, copy, confirm_message_arrives, free);
}

static void confirm_begin(struct sim_node *node)
{
    const struct sim_mutations *mutations = &node->cluster->mutations;
    uint64_t ready_term = mutations->confirm_without_term ? raft_current_term(node->raft) : node->confirmed_term;

    if (node->confirm.term != 0 || list_empty(&node->waiting) ||
        node->cluster->sim.now_us < node->read_by_log_until_us ||
        raft_confirm_begin(&node->confirm, node->raft, ready_term, confirm_send, node) != 0)
        return;
    node->confirm_since_us = node->cluster->sim.now_us;
    list_take(&node->asking, &node->waiting);
}

/* As raft_read_turn: at each message, and at each tick of the leader. */
static void confirm_turn(struct sim_node *node)
{
    uint64_t incarnation = node->actor.incarnation;
    struct list answered;
    int rv, status = 0;

    list_init(&answered);
    rv = node->confirm.term != 0 ? raft_confirm_check(&node->confirm, node->raft) : 0;
    if (rv > 0 && !raft_deferred_busy(&node->deferred)) {
        list_take(&answered, &node->asking);
        node->cluster->stats.asked++;
        raft_confirm_end(&node->confirm);
    } else if (rv < 0) {
        list_take(&answered, &node->asking);
        status = RAFT_LEADERSHIPLOST;
        raft_confirm_end(&node->confirm);
    } else if (node->confirm.term != 0 && node->cluster->sim.now_us - node->confirm_since_us >= 150 * SIM_MS) {
        list_take(&node->asking, &node->waiting);
        list_take(&node->waiting, &node->asking);
        node->read_by_log_until_us = node->cluster->sim.now_us + SIM_SECOND;
        raft_confirm_end(&node->confirm);
    }
    while (node->actor.up && node->actor.incarnation == incarnation && !list_empty(&answered)) {
        struct barrier *barrier = LIST_ENTRY(answered.next, struct barrier, in_list);

        list_remove(&barrier->in_list);
        barrier_finish(barrier, status);
    }
    confirm_begin(node);
    if (node->confirm.term != 0)
        return;
    while (node->actor.up && node->actor.incarnation == incarnation && !list_empty(&node->waiting)) {
        struct barrier *barrier = LIST_ENTRY(node->waiting.next, struct barrier, in_list);
        sim_barrier_cb done = barrier->done;
        void *arg = barrier->arg;

        list_remove(&barrier->in_list);
        if (barrier_by_log(node, barrier) != 0 && done != NULL)
            done(arg, -ENOTCONN);
    }
}
static void confirm_message_arrives(struct sim_actor *to, struct sim_actor *from, void *data)
{
    struct sim_node *node = CONTAINER_OF(to, struct sim_node, actor);
    struct raft_confirm_message *message = data, answer;

    if (message->kind == RAFT_CONFIRM_ANSWER) {
        raft_confirm_answer(&node->confirm, from->id, message);
        confirm_turn(node);
    } else if (raft_confirm_question(node->raft, message, &answer)) {
        confirm_send(node, from->id, &answer);
    }
    free(message);
}

int sim_node_barrier(struct sim_node *node, sim_barrier_cb done, void *arg)
{
    uint64_t incarnation = node->actor.incarnation;
    struct barrier *barrier;

    if (!sim_node_leads(node) || !node_answers(node))
        return -ENOTCONN;
    barrier = NEW(struct barrier);
    *barrier = (struct barrier){.node = node,
                                .term = raft_current_term(node->raft),
                                .floor = node->cluster->acknowledged_index,
                                .done = done,
                                .arg = arg,
                                .req.data = barrier};
    if (node->cluster->mutations.read_without_barrier) {
        barrier_finish(barrier, 0);
        return 0;
    }
    list_append(&node->waiting, &barrier->in_list);
    confirm_turn(node);
    return node->actor.up && node->actor.incarnation == incarnation ? 0 : -ECANCELED;
}

static void barriers_drop(struct list *barriers)
{
    while (!list_empty(barriers)) {
        struct barrier *barrier = LIST_ENTRY(barriers->next, struct barrier, in_list);

        list_remove(&barrier->in_list);
        free(barrier);
    }
}

/* --- Leading ---------------------------------------------------------------------------------------------------- */

static void lead_ready(void *arg, int status)
{
    struct sim_node *node = arg;

    if (status == 0)
        node->ready_term = node->barrier_term;
    else
        node->barrier_term = 0;
}

static void node_lead(struct sim *sim, struct sim_event *event)
{
    struct sim_node *node = CONTAINER_OF(event->actor, struct sim_node, actor);
    const struct sim_machine_class *class = node->cluster->class;
    uint64_t term;

    sim_after(sim, sim_true_us(&node->actor, 100 * SIM_MS), node_lead, &node->actor, NULL);
    confirm_turn(node);
    if (!node->actor.up)
        return;
    if (class->lead == NULL || !sim_node_leads(node))
        return;
    term = raft_current_term(node->raft);
    if (node->ready_term == term) {
        class->lead(node);
    } else if (node->barrier_term != term) {
        node->barrier_term = term;
        if (sim_node_barrier(node, lead_ready, node) != 0)
            node->barrier_term = 0;
    }
}

bool sim_node_leads(const struct sim_node *node)
{
    return node->actor.up && node->actor.paused_until_us <= node->cluster->sim.now_us &&
           raft_state(node->raft) == RAFT_LEADER;
}

/* --- Members ---------------------------------------------------------------------------------------------------- */

static void change_cb(struct raft_change *req, int status)
{
    struct sim_node *node = req->data;

    node->change_term = 0;
    node->cluster->stats.changes += status == 0;
}

struct change_call {
    enum sim_change change;
    unsigned id;
    int rv;
};

static void change_submit(struct sim_raft_io *io, void *arg)
{
    struct change_call *call = arg;
    struct sim_node *node = CONTAINER_OF(io, struct sim_node, io);
    char address[16];

    snprintf(address, sizeof(address), "c%u:7444", call->id);
    node->change.data = node;
    switch (call->change) {
    case SIM_CHANGE_ADD: call->rv = raft_add(io->raft, &node->change, call->id, address, change_cb); break;
    case SIM_CHANGE_PROMOTE: call->rv = raft_assign(io->raft, &node->change, call->id, RAFT_VOTER, change_cb); break;
    case SIM_CHANGE_DEMOTE: call->rv = raft_assign(io->raft, &node->change, call->id, RAFT_STANDBY, change_cb); break;
    case SIM_CHANGE_REMOVE: call->rv = raft_remove(io->raft, &node->change, call->id, change_cb); break;
    }
}

int sim_node_change(struct sim_node *leader, enum sim_change change, unsigned id)
{
    struct change_call call = {.change = change, .id = id, .rv = RAFT_SHUTDOWN};
    uint64_t incarnation = leader->actor.incarnation, term = raft_current_term(leader->raft);

    if (leader->change_term == term)
        return RAFT_CANTCHANGE; /* as raft_members.c: one at a time, forgotten with the term */
    leader->change_term = term;
    sim_raft_io_call(&leader->io, change_submit, &call);
    if (call.rv != 0 && leader->actor.up && leader->actor.incarnation == incarnation)
        leader->change_term = 0;
    return call.rv;
}

/* --- Trace ------------------------------------------------------------------------------------------------------ */

static void node_emit(struct raft_tracer *tracer, int type, const void *data)
{
    struct sim_node *node = CONTAINER_OF(tracer, struct sim_node, tracer);
    const struct raft_tracer_info *info = data;

    if (type == RAFT_TRACER_DIAGNOSTIC)
        sim_log(&node->cluster->sim, "  %u %s", node->actor.id, info->diagnostic.message);
}

void sim_node_trace(struct sim_node *node)
{
    const struct raft *raft = node->raft;
    const struct raft_configuration *configurations[] = {&raft->configuration, &raft->configuration_committed};
    char text[sizeof(node->members)] = "";
    size_t at = 0;

    for (unsigned which = 0; which < ARRAY_SIZE(configurations); which++) {
        const struct raft_configuration *configuration = configurations[which];

        for (unsigned i = 0; i < configuration->n && at < sizeof(text); i++)
            at += (size_t)snprintf(text + at, sizeof(text) - at, " %llu%s", configuration->servers[i].id,
                                   configuration->servers[i].role == RAFT_VOTER     ? ""
                                   : configuration->servers[i].role == RAFT_STANDBY ? "(standby)"
                                                                                    : "(spare)");
        if (at < sizeof(text))
            at += (size_t)snprintf(text + at, sizeof(text) - at, which == 0 ? " not committed %llu; committed %llu:" : "",
                                   raft->configuration_uncommitted_index, raft->configuration_committed_index);
    }
    if (strcmp(text, node->members) != 0)
        sim_log(&node->cluster->sim, "  %u members:%s", node->actor.id, text);
    memcpy(node->members, text, sizeof(text));
}

/* --- Life ------------------------------------------------------------------------------------------------------- */

static struct sim_raft_io *node_peer(struct sim_raft_io *io, raft_id id)
{
    struct sim_node *node = CONTAINER_OF(io, struct sim_node, io);

    return id >= 1 && id <= node->cluster->node_count ? &node->cluster->nodes[id].io : NULL;
}

static void node_restart(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_node *node = event->data;

    if (!node->actor.up)
        sim_node_start(node);
}

static void node_ended(struct sim_raft_io *io, const char *why)
{
    struct sim_node *node = CONTAINER_OF(io, struct sim_node, io);
    struct sim *sim = &node->cluster->sim;

    node->cluster->stats.broken++;
    sim_node_crash(node, why);
    sim_after(sim, sim_between(sim, 100 * SIM_MS, SIM_SECOND), node_restart, NULL, node);
}

static void node_bootstrap(struct sim_node *node)
{
    struct sim_cluster *cluster = node->cluster;
    struct raft_configuration configuration;

    raft_configuration_init(&configuration);
    for (unsigned id = 1; id <= cluster->node_count - cluster->newcomers; id++) {
        char address[16];

        snprintf(address, sizeof(address), "c%u:7444", id);
        ASSERT(raft_configuration_add(&configuration, id, address, RAFT_VOTER) == 0);
    }
    ASSERT(raft_bootstrap(node->raft, &configuration) == 0);
    raft_configuration_close(&configuration);
}

static void node_raft_start(struct sim_raft_io *io, void *arg UNUSED)
{
    struct sim_node *node = CONTAINER_OF(io, struct sim_node, io);
    const struct sim_scenario *scenario = node->cluster->scenario;
    struct raft *raft = node->raft;
    int rv;

    ASSERT(raft_init(raft, &io->guard.io, &node->fsm, node->actor.id, io->address) == 0);
    node->tracer = (struct raft_tracer){.version = 2, .emit = node_emit};
    raft->tracer = node->cluster->sim.trace ? &node->tracer : NULL;
    if (node->disk.term == 0 && node->actor.id <= node->cluster->node_count - node->cluster->newcomers)
        node_bootstrap(node);
    raft_set_election_timeout(raft, 500);
    raft_set_heartbeat_timeout(raft, 50);
    raft_set_install_snapshot_timeout(raft, 2000);
    raft_set_pre_vote(raft, !node->cluster->mutations.no_prevote);
    raft_set_snapshot_threshold(raft, scenario->snapshot_threshold > 0 ? scenario->snapshot_threshold : 64);
    raft_set_snapshot_trailing(raft, scenario->snapshot_trailing > 0 ? scenario->snapshot_trailing : 16);
    rv = raft_start(raft);
    if (rv != 0)
        sim_violation(&node->cluster->sim, "controller %u does not start: %s", node->actor.id, raft_strerror(rv));
}

void sim_node_start(struct sim_node *node)
{
    struct sim_cluster *cluster = node->cluster;

    ASSERT(!node->actor.up);
    sim_log(&cluster->sim, "controller %u starts: log %llu..%llu, snapshot %llu", node->actor.id, node->disk.first,
            node->disk.first + node->disk.count - 1, node->disk.snapshot.index);
    node->actor.up = true;
    node->actor.paused_until_us = 0;
    node->index = 0;
    node->starting = true;
    node->restores = 0;
    raft_deferred_init(&node->deferred);
    node->proposer = sim_random(&cluster->sim);
    node->sequence = 0;
    node->change_term = 0;
    node->barrier_term = node->ready_term = node->confirmed_term = 0;
    raft_confirm_init(&node->confirm, node->proposer);
    node->read_by_log_until_us = 0;
    list_init(&node->asking);
    list_init(&node->waiting);
    list_init(&node->groups);
    memset(&node->machine, 0, sizeof(node->machine));
    cluster->class->create(node, &node->machine);
    node->machine.lock = &node->lock;
    node->fsm = (struct raft_fsm){.version = 1,
                                  .data = node,
                                  .apply = node_fsm_apply,
                                  .snapshot = node_fsm_snapshot,
                                  .restore = node_fsm_restore};
    node->raft = NEW(struct raft);
    node->io.sim = &cluster->sim;
    node->io.network = &cluster->network;
    node->io.actor = &node->actor;
    node->io.disk = &node->disk;
    node->io.raft = node->raft;
    node->io.peer = node_peer;
    node->io.ended = node_ended;
    node->io.send_held_ms = cluster->scenario->send_held_ms != 0 ? cluster->scenario->send_held_ms : 300;
    node->io.send_held_per_thousand = cluster->scenario->send_held_per_thousand;
    sim_raft_io_init(&node->io, &cluster->mutations.raft);
    sim_raft_io_call(&node->io, node_raft_start, NULL);
    node->starting = false;
    if (node->actor.up)
        sim_after(&cluster->sim, 100 * SIM_MS, node_lead, &node->actor, NULL);
}

void sim_node_crash(struct sim_node *node, const char *why)
{
    struct sim_cluster *cluster = node->cluster;

    if (!node->actor.up)
        return;
    sim_log(&cluster->sim, "controller %u is gone: %s", node->actor.id, why);
    cluster->stats.crashes++;
    node->actor.up = false;
    node->actor.incarnation++;
    sim_disk_crash(&node->disk);
    raft_guard_forget(&node->io.guard);
    while (!list_empty(&node->groups)) { /* whoever proposed will never hear of it */
        struct group *group = LIST_ENTRY(node->groups.next, struct group, in_groups);

        group_finish(group, -EINPROGRESS);
    }
    barriers_drop(&node->asking);
    barriers_drop(&node->waiting);
    raft_free(TAKE_PTR(node->restoring.base));
    raft_deferred_finish(&node->deferred);
    cluster->class->destroy(&node->machine);
}
