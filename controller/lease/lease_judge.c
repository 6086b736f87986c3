/* The leader's judgement; see the header. */
#include "controller/lease/lease_judge.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/command_codec.h"

#define BY "controller"
#define WORDS_NAMES_MAX 3u

struct lease_judged_host {
    char id[STATE_ID_BYTES];
    uint64_t generation, heard_ms;
    bool supported, untold;
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
    if (given->voters_told)
        view->told_index = given->voters_index;
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
        host->untold = seen->untold;
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

/* What hosts were told once they know, however old the view is. */
static bool has_told(const struct lease_judged_view *view, const struct state *state)
{
    return view->told_index == state_cluster(state)->lease_voters_index;
}

static unsigned count_told(const struct lease_judge *judge, const struct state *state)
{
    unsigned count = 0;
    for (unsigned i = 0; i < judge->count; i++)
        count += is_voter(state, judge->views[i].raft_id) && has_told(&judge->views[i], state);
    return count;
}

bool lease_judge_settled(const struct lease_judge *judge, const struct state *state)
{
    return count_told(judge, state) >= majority(state);
}

/* ---- for whom the next change waits ---- */

/* ", host n1", and no more than WORDS_NAMES_MAX of a kind. */
static void name_one(struct lease_judge_words *ret, unsigned number, const char *kind, const char *name, const char *why)
{
    size_t have = strlen(ret->text);
    if (number < WORDS_NAMES_MAX)
        snprintf(ret->text + have, sizeof ret->text - have, "%s %s %s%s", number > 0 ? "," : "", kind, name, why);
}

static void name_rest(struct lease_judge_words *ret, unsigned count, const char *more)
{
    size_t have = strlen(ret->text);
    if (count > WORDS_NAMES_MAX)
        snprintf(ret->text + have, sizeof ret->text - have, " and %u more", count - WORDS_NAMES_MAX);
    have += strlen(ret->text + have);
    if (count > 0)
        snprintf(ret->text + have, sizeof ret->text - have, "%s", more);
}

/* Is there a voter that answers and has not told the host yet? */
static bool is_untold(const struct lease_judge *judge, const struct state *state, const char *id, uint64_t now_ns)
{
    for (unsigned i = 0; i < judge->count; i++) {
        const struct lease_judged_view *view = &judge->views[i];
        const struct lease_judged_host *host = map_get(&view->hosts, id);
        if (is_voter(state, view->raft_id) && is_fresh(view, now_ns) && !has_told(view, state) && host != NULL && host->untold)
            return true;
    }
    return false;
}

/* What keeps a voter from telling but its hosts; NULL: nothing. */
static const char *why_silent(const struct lease_judge *judge, const struct state *state, uint64_t raft_id, uint64_t now_ns)
{
    for (unsigned i = 0; i < judge->count; i++) {
        const struct lease_judged_view *view = &judge->views[i];
        if (view->raft_id != raft_id)
            continue;
        if (has_told(view, state))
            return NULL;
        if (!is_fresh(view, now_ns))
            break;
        if (view->voters_index != state_cluster(state)->lease_voters_index)
            return " (it has not applied the change yet)";
        for (size_t k = 0; k < state_count(state, object_kind_HOST); k++) {
            const struct lease_judged_host *host = map_get(&view->hosts, state_at(state, object_kind_HOST, k)->common->id);
            if (host != NULL && host->untold)
                return NULL;
        }
        return " (its version does not say what its hosts know: upgrade it)";
    }
    return " (it does not answer)";
}

void lease_judge_waits_for(const struct lease_judge *judge, const struct state *state, uint64_t now_ns, struct lease_judge_words *ret)
{
    unsigned hosts = 0, controllers = 0;
    snprintf(ret->text, sizeof ret->text, "of the last change among the controllers the hosts of %u of %u know, and %u are needed; it waits for",
             count_told(judge, state), state_voters(state), majority(state));
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        if (is_untold(judge, state, host->common->id, now_ns))
            name_one(ret, hosts++, "host", host->common->name, "");
    }
    name_rest(ret, hosts, " (an agent says that it knows within seconds; one of an older version never does: upgrade it)");
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct record *controller = state_at(state, object_kind_CONTROLLER, i);
        bool votes = controller->controller->role == controller_role_VOTER;
        const char *why = votes ? why_silent(judge, state, controller->controller->raft_id, now_ns) : NULL;
        if (why == NULL)
            continue;
        bool first_after = controllers == 0 && hosts > 0;
        name_one(ret, controllers++, first_after ? "and for controller" : "controller", controller->common->name, why);
    }
    name_rest(ret, controllers, "");
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
    OBJECT_SET(command_host_lost, &command, failed_too, true);
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
