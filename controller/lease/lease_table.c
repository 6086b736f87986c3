/* Supports of one controller; see the header. */
#include "controller/lease/lease_table.h"

#include <stdio.h>
#include <string.h>

uint64_t lease_ttl_ns(uint64_t ttl_ms)
{
    return ttl_ms * LEASE_MS / 1000 * (1000 + LEASE_DRIFT_PER_MILLE);
}

static uint64_t patience_ns(const struct lease_table *table, const struct state *state)
{
    uint64_t ttl_ms = state_cluster(state)->lease_ttl_ms;
    return table->mutations.no_drift ? ttl_ms * LEASE_MS : lease_ttl_ns(ttl_ms);
}

void lease_table_init(struct lease_table *table, uint64_t now_ns)
{
    *table = (struct lease_table){.start_ns = now_ns, .voters_since_ns = now_ns};
}

void lease_table_finish(struct lease_table *table)
{
    struct lease_support *support;
    for (size_t i = 0; (support = map_next(&table->supports, &i)) != NULL;)
        free(support);
    map_finish(&table->supports);
    table->supports = (struct map){.count = 0};
}

void lease_table_look(struct lease_table *table, const struct state *state, uint64_t now_ns)
{
    uint64_t index = state_initialized(state) ? state_cluster(state)->lease_voters_index : 0;
    if (index == table->voters_index)
        return;
    table->voters_index = index;
    table->voters_since_ns = now_ns;
}

static struct lease_support *support_of(struct lease_table *table, const char *host)
{
    struct lease_support *support = map_get(&table->supports, host);
    if (support != NULL)
        return support;
    support = NEW(struct lease_support);
    snprintf(support->host, sizeof support->host, "%s", host);
    map_put(&table->supports, support->host, support);
    return support;
}

/* ---- a host asks ---- */

/* NULL: it may be supported. */
static const char *why_not(const struct lease_table *table, const struct state *state, const struct record *host,
                           const struct lease_question *question)
{
    if (MAX(question->cluster_epoch, UINT64_C(1)) != state_cluster(state)->epoch)
        return "it follows another epoch of the cluster";
    if (!table->caught_up)
        return "this controller has started and does not know yet what was decided meanwhile";
    if (question->generation != host->host->generation)
        return question->generation == 0 ? "it knows no generation yet" : "its lease has another generation here";
    if (table->mutations.supports_suspects)
        return NULL;
    if (host->host->state == host_state_SUSPECT)
        return "it is suspected to be lost";
    if (host->host->state == host_state_LOST)
        return "it was declared lost";
    return NULL;
}

static void put_voters(const struct state *state, struct lease_answer *answer)
{
    OBJECT_SET(lease_answer, answer, voters_index, state_cluster(state)->lease_voters_index);
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(state, object_kind_CONTROLLER, i)->controller;
        if (controller->role != controller_role_VOTER || controller->address == NULL || answer->voters.count == 16)
            continue;
        struct lease_voter *voter = OBJECT_ADD(lease_answer, answer, voters);
        OBJECT_SET(lease_voter, voter, raft_id, controller->raft_id);
        OBJECT_TEXT(lease_voter, voter, address, controller->address);
    }
}

void lease_table_answer(struct lease_table *table, const struct state *state, const struct lease_question *question,
                        uint64_t raft_id, uint64_t now_ns, struct lease_answer *ret)
{
    const struct record *host = state_initialized(state) ? state_get(state, object_kind_HOST, question->host) : NULL;
    OBJECT_SET(lease_answer, ret, raft_id, raft_id);
    if (!state_initialized(state)) {
        OBJECT_TEXT(lease_answer, ret, why, "this controller has started and holds nothing yet");
        return;
    }
    const struct cluster *cluster = state_cluster(state);
    OBJECT_SET(lease_answer, ret, cluster_epoch, cluster->epoch);
    OBJECT_SET(lease_answer, ret, ttl_ms, cluster->lease_ttl_ms);
    OBJECT_SET(lease_answer, ret, refusal_extends,
               !OBJECT_HAS(cluster, cluster, lease_refusal_extends) || cluster->lease_refusal_extends);
    put_voters(state, ret);
    lease_table_look(table, state, now_ns);
    if (host == NULL || strcmp(host->common->id, question->host) != 0) {
        OBJECT_TEXT(lease_answer, ret, why, "this controller does not know the host");
        return;
    }
    struct lease_support *support = support_of(table, question->host);
    const char *why = why_not(table, state, host, question);
    support->heard_ns = now_ns;
    if (MAX(question->cluster_epoch, UINT64_C(1)) == cluster->epoch)
        support->voters_index = MAX(support->voters_index, MIN(question->voters_index, table->voters_index));
    OBJECT_SET(lease_answer, ret, generation, host->host->generation);
    OBJECT_SET(lease_answer, ret, orders_index, state_host_orders_index(host));
    OBJECT_SET(lease_answer, ret, supported, why == NULL);
    if (why != NULL) {
        OBJECT_TEXT(lease_answer, ret, why, why);
        support->since_ns = 0;
        return;
    }
    if (support->since_ns == 0 || support->until_ns <= now_ns)
        support->since_ns = now_ns;
    support->until_ns = now_ns + patience_ns(table, state);
}

/* ---- the leader looks ---- */

/* Is the last support over, also what this controller gave in a former life and has forgotten? */
static bool has_run_out(const struct lease_table *table, const struct state *state, const struct lease_support *support,
                        uint64_t now_ns)
{
    if (!table->mutations.no_patience && now_ns < table->start_ns + patience_ns(table, state))
        return false;
    return support == NULL || now_ns >= support->until_ns;
}

static bool confirms(const struct lease_table *table, const struct state *state, const struct record *host, uint64_t now_ns)
{
    const struct lease_support *support = map_get(&table->supports, host->common->id);
    if (host->host->state != host_state_SUSPECT)
        return false;
    if (table->mutations.confirms_at_once)
        return true;
    return has_run_out(table, state, support, now_ns);
}

/* Rule 7: that the host counts in a list older than the one that is applied here, and with this controller's support, is ruled out. A
 * refused connection prolongs the support it has and names no list. So the host has said that it knows the list, or has no support,
 * and gets the next one with the list; what it has said of a list that was not applied here yet is of no account, for its next agent
 * could have had a support with the older one since. A lost one must have none: it might have a majority of a list that is still to come. */
static bool is_told(const struct lease_table *table, const struct state *state, const struct record *host, uint64_t now_ns)
{
    const struct lease_support *support = map_get(&table->supports, host->common->id);
    if (host->host->state != host_state_LOST && support != NULL && support->voters_index >= table->voters_index)
        return true;
    return has_run_out(table, state, support, now_ns);
}

static void put_host(struct lease_table *table, const struct state *state, const struct record *host, uint64_t now_ns,
                     struct lease_host *ret)
{
    struct lease_support *support = support_of(table, host->common->id);
    uint64_t heard_ms;
    if (support->known_ns == 0)
        support->known_ns = now_ns;
    if (support->heard_ns != 0)
        heard_ms = (now_ns - support->heard_ns) / LEASE_MS;
    else if (host->host->state == host_state_SUSPECT || host->host->state == host_state_LOST)
        heard_ms = LEASE_NEVER_MS; /* or one that is gone would seem to be back whenever controllers start again */
    else /* it is given the time to ask */
        heard_ms = (now_ns - support->known_ns) / LEASE_MS;
    OBJECT_TEXT(lease_host, ret, host, host->common->id);
    OBJECT_SET(lease_host, ret, generation, host->host->generation);
    OBJECT_SET(lease_host, ret, heard_ms, heard_ms);
    if (confirms(table, state, host, now_ns))
        OBJECT_SET(lease_host, ret, confirmed, true);
    if (support->since_ns != 0 && now_ns < support->until_ns)
        OBJECT_SET(lease_host, ret, supported_ms, (now_ns - support->since_ns) / LEASE_MS);
    if (!is_told(table, state, host, now_ns))
        OBJECT_SET(lease_host, ret, untold, true);
}

void lease_table_view(struct lease_table *table, const struct state *state, const struct lease_look *look, uint64_t raft_id,
                      uint64_t term, uint64_t now_ns, struct lease_view *ret)
{
    OBJECT_SET(lease_view, ret, raft_id, raft_id);
    OBJECT_SET(lease_view, ret, term, term);
    /* A term that is not on this disk yet could be forgotten by a crash, and an older leader be believed after it. */
    if (look->term != term || !state_initialized(state) || look->cluster_epoch != state_cluster(state)->epoch)
        return;
    if (state_index(state) >= look->index)
        table->caught_up = true;
    lease_table_look(table, state, now_ns);
    OBJECT_SET(lease_view, ret, voters_index, table->voters_index);
    OBJECT_SET(lease_view, ret, voters_ms, (now_ns - table->voters_since_ns) / LEASE_MS);
    bool told = true;
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        struct lease_host *host = OBJECT_ADD(lease_view, ret, hosts);
        put_host(table, state, state_at(state, object_kind_HOST, i), now_ns, host);
        told = told && !host->untold;
    }
    if (told)
        OBJECT_SET(lease_view, ret, voters_told, true);
}
