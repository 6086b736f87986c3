/* The leader's judgement; see the header. */
#include "controller/lease/lease_judge.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/command_codec.h"

#define BY "controller"

struct lease_judged_host {
    char id[STATE_ID_BYTES];
    uint64_t generation, heard_ms;
    bool supported;
    uint64_t supported_ms; /* where it is */
    uint64_t confirmed; /* newest generation that this controller has confirmed, and never takes back */
};

/* ---- views ---- */

static void clear_view(struct lease_judged_view *view)
{
    struct lease_judged_host *host;
    for (size_t i = 0; (host = map_next(&view->hosts, &i)) != NULL;)
        free(host);
    map_finish(&view->hosts);
    *view = (struct lease_judged_view){.raft_id = 0};
}

void lease_judge_reset(struct lease_judge *judge)
{
    for (unsigned i = 0; i < judge->count; i++)
        clear_view(&judge->views[i]);
    judge->count = 0;
}

static struct lease_judged_view *view_of(struct lease_judge *judge, uint64_t raft_id)
{
    for (unsigned i = 0; i < judge->count; i++)
        if (judge->views[i].raft_id == raft_id)
            return &judge->views[i];
    if (judge->count == LEASE_VOTERS_MAX) /* members of long ago */
        lease_judge_reset(judge);
    judge->views[judge->count] = (struct lease_judged_view){.raft_id = raft_id};
    return &judge->views[judge->count++];
}

void lease_judge_take(struct lease_judge *judge, const struct lease_view *given, uint64_t term, uint64_t at_ns)
{
    if (given->term != term)
        return;
    if (judge->count == 0)
        judge->since_ns = at_ns;
    struct lease_judged_view *view = view_of(judge, given->raft_id);
    view->at_ns = at_ns;
    view->voters_index = given->voters_index;
    view->voters_ms = given->voters_ms;
    for (size_t i = 0; i < given->hosts.count; i++) {
        const struct lease_host *seen = (const struct lease_host *)given->hosts.items + i;
        struct lease_judged_host *host = map_get(&view->hosts, seen->host);
        if (host == NULL) {
            host = NEW(struct lease_judged_host);
            snprintf(host->id, sizeof host->id, "%s", seen->host);
            map_put(&view->hosts, host->id, host);
        }
        host->generation = seen->generation;
        host->heard_ms = seen->heard_ms;
        host->supported = OBJECT_HAS(lease_host, seen, supported_ms);
        host->supported_ms = seen->supported_ms;
        if (seen->confirmed)
            host->confirmed = MAX(host->confirmed, seen->generation);
    }
}

/* ---- counting ---- */

static bool is_voter(const struct state *state, uint64_t raft_id)
{
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(state, object_kind_CONTROLLER, i)->controller;
        if (controller->raft_id == raft_id)
            return controller->role == controller_role_VOTER;
    }
    return false;
}

static unsigned majority(const struct state *state)
{
    return state_voters(state) / 2 + 1;
}

static bool is_fresh(const struct lease_judged_view *view, uint64_t now_ns)
{
    return now_ns < view->at_ns + LEASE_FRESH_MS * LEASE_MS;
}

struct count {
    unsigned fresh, heard, confirmed;
};

/* What the voters say of the host at this time. */
static struct count count_voters(const struct lease_judge *judge, const struct state *state, const char *id,
                                 uint64_t generation, uint64_t heard_within_ms, uint64_t now_ns)
{
    struct count count = {0};
    for (unsigned i = 0; i < judge->count; i++) {
        const struct lease_judged_view *view = &judge->views[i];
        const struct lease_judged_host *host = map_get(&view->hosts, id);
        if (host == NULL || !is_voter(state, view->raft_id))
            continue;
        uint64_t age_ms = (now_ns - MIN(view->at_ns, now_ns)) / LEASE_MS;
        count.fresh += is_fresh(view, now_ns);
        count.heard += is_fresh(view, now_ns) && host->heard_ms + age_ms < heard_within_ms;
        count.confirmed += generation != 0 && host->confirmed == generation;
    }
    return count;
}

/* Voters that have applied the present list of voters, for @least_ms or longer. */
static unsigned count_settled(const struct lease_judge *judge, const struct state *state, uint64_t least_ms)
{
    unsigned count = 0;
    for (unsigned i = 0; i < judge->count; i++)
        count += is_voter(state, judge->views[i].raft_id) &&
                 judge->views[i].voters_index == state_cluster(state)->lease_voters_index &&
                 judge->views[i].voters_ms >= least_ms;
    return count;
}

bool lease_judge_settled(const struct lease_judge *judge, const struct state *state, uint64_t now_ns)
{
    (void)now_ns; /* what was applied once stays applied, however old the view is */
    return count_settled(judge, state, 0) >= majority(state);
}

/* How many voters support the host's lease; @joins does, for long enough, too. */
static unsigned count_supports(const struct lease_judge *judge, const struct state *state, const char *id, uint64_t joins,
                               uint64_t now_ns, bool *ret_joins)
{
    unsigned count = 0;
    *ret_joins = false;
    for (unsigned i = 0; i < judge->count; i++) {
        const struct lease_judged_view *view = &judge->views[i];
        const struct lease_judged_host *host = map_get(&view->hosts, id);
        if (host == NULL || !host->supported || !is_fresh(view, now_ns))
            continue;
        if (view->raft_id == joins)
            *ret_joins = host->supported_ms >= LEASE_WELCOME_MS;
        else
            count += is_voter(state, view->raft_id);
    }
    return count;
}

bool lease_judge_welcomes(const struct lease_judge *judge, const struct state *state, uint64_t raft_id, uint64_t now_ns)
{
    if (is_voter(state, raft_id))
        return true;
    unsigned most = majority(state), most_then = (state_voters(state) + 1) / 2 + 1, fresh = 0;
    for (unsigned i = 0; i < judge->count; i++)
        fresh += is_voter(state, judge->views[i].raft_id) && is_fresh(&judge->views[i], now_ns);
    if (fresh < most)
        return false; /* a new leader that has not looked yet */
    /* One that has no majority here may have it still by its own clock: it has not asked since this one leads, or is of another epoch. */
    bool young = now_ns < judge->since_ns + lease_ttl_ns(state_cluster(state)->lease_ttl_ms);
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        bool too;
        unsigned count = count_supports(judge, state, state_at(state, object_kind_HOST, i)->common->id, raft_id, now_ns, &too);
        if (count + too < most_then && (count >= most || young))
            return false;
    }
    return true;
}

bool lease_judge_hears(const struct lease_judge *judge, const struct state *state, const char *host, uint64_t now_ns)
{
    return count_voters(judge, state, host, 0, LEASE_HEARD_MS, now_ns).heard >= majority(state);
}

/* ---- commands ---- */

static void emit(struct lease_judgement *ret, enum command number, void *payload, struct command_request *request,
                 const char *now)
{
    const struct object_desc *desc = command_find(number)->payload;
    OBJECT_TEXT(command_request, request, at, now);
    OBJECT_TEXT(command_request, request, by, BY);
    object_mark(desc, payload, "request");
    if (command_encode(number, payload, &ret->commands[ret->count], NULL) == 0)
        ret->count++;
    object_clear(desc, payload);
}

static void suspect(const struct host *host, const struct count *count, unsigned voters, const char *now,
                    struct lease_judgement *ret)
{
    struct command_host_suspect command = {0};
    char reason[160];
    snprintf(reason, sizeof reason, "%u of %u controllers have heard it within %u ms", count->heard, voters, LEASE_SILENCE_MS);
    OBJECT_TEXT(command_host_suspect, &command, id, host->id);
    OBJECT_SET(command_host_suspect, &command, generation, host->generation);
    OBJECT_TEXT(command_host_suspect, &command, reason, reason);
    emit(ret, COMMAND_host_suspect, &command, &command.request, now);
}

static void lose(const struct state *state, const struct host *host, const struct count *count, unsigned voters,
                 const char *now, struct lease_judgement *ret)
{
    struct command_host_lost command = {0};
    char reason[160];
    snprintf(reason, sizeof reason, "%u of %u controllers have confirmed that its lease has run out", count->confirmed, voters);
    OBJECT_TEXT(command_host_lost, &command, id, host->id);
    OBJECT_SET(command_host_lost, &command, generation, host->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, state_cluster(state)->lease_voters_index);
    OBJECT_TEXT(command_host_lost, &command, reason, reason);
    emit(ret, COMMAND_host_lost, &command, &command.request, now);
}

static void clear(const struct host *host, const char *now, struct lease_judgement *ret)
{
    struct command_host_clear command = {0};
    OBJECT_TEXT(command_host_clear, &command, id, host->id);
    OBJECT_SET(command_host_clear, &command, generation, host->generation);
    emit(ret, COMMAND_host_clear, &command, &command.request, now);
}

/* Confirmed by enough, among voters that hosts count by too? */
static bool may_lose(const struct lease_judge *judge, const struct state *state, const struct count *count)
{
    uint64_t ttl_ms = lease_ttl_ns(state_cluster(state)->lease_ttl_ms) / LEASE_MS + 1;
    unsigned enough = judge->mutations.loses_at_once ? 0 : judge->mutations.one_confirmation ? 1 : majority(state);
    return count->confirmed >= enough && count_settled(judge, state, ttl_ms) >= majority(state);
}

static void judge_host(const struct lease_judge *judge, const struct state *state, const struct host *host, const char *now,
                       uint64_t now_ns, struct lease_judgement *ret)
{
    bool suspected = host->state == host_state_SUSPECT;
    bool disarmed = state_cluster(state)->ha_disarmed || host->ha_disarmed || host->armed != host->arming;
    unsigned voters = state_voters(state), most = majority(state);
    struct count count = count_voters(judge, state, host->id, host->generation,
                                      suspected ? LEASE_HEARD_MS : LEASE_SILENCE_MS, now_ns);
    if (host->boot_id == NULL || host->state == host_state_LOST)
        return; /* never seen, or for its own report to clear */
    if (suspected && count.heard >= most)
        clear(host, now, ret); /* by however few: until three have a vote again it would have no lease */
    else if (disarmed || voters < STATE_HA_VOTERS_MIN)
        return;
    else if (suspected && may_lose(judge, state, &count))
        lose(state, host, &count, voters, now, ret);
    else if (!suspected && count.fresh >= most && count.heard < most)
        suspect(host, &count, voters, now, ret);
    ret->suspects |= suspected;
}

void lease_judge_tick(const struct lease_judge *judge, const struct state *state, const char *now, uint64_t now_ns,
                      struct lease_judgement *ret)
{
    if (!state_initialized(state))
        return;
    for (size_t i = 0; i < state_count(state, object_kind_HOST) && ret->count < LEASE_COMMANDS_MAX; i++)
        judge_host(judge, state, state_at(state, object_kind_HOST, i)->host, now, now_ns, ret);
}

void lease_judgement_finish(struct lease_judgement *judgement)
{
    for (unsigned i = 0; i < judgement->count; i++)
        bytes_writer_finish(&judgement->commands[i]);
    *judgement = (struct lease_judgement){.count = 0};
}
