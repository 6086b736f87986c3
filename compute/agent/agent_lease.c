/* Questions to the controllers; see the header.
 *
 * Failure modes: no answer within the deadline, an answer that cannot be read, TLS refused: the support runs out by itself.
 * Connection refused: lease_holder_refused. The loop stood still (a frozen host): answers that came meanwhile are judged by
 * when their question was sent, so they are worth nothing. */
#include "compute/agent/agent_lease.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/agent/session.h"

#define SECOND_NS 1000000000ull

static void maybe_finish(struct agent_lease *lease);

uint64_t agent_lease_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void deadline_may_have_changed(struct agent_lease *lease)
{
    uint64_t deadline_ns = lease_holder_deadline(&lease->holder), now_ns = agent_lease_now_ns();
    bool held = deadline_ns > now_ns;
    if (held != lease->held && lease->holder.generation != 0) {
        lease->held = held;
        if (held)
            log_info("lease-held", "generation=%llu for_ms=%llu", (unsigned long long)lease->holder.generation,
                     (unsigned long long)((deadline_ns - now_ns) / 1000000));
        else
            log_warning("lease-over", "generation=%llu controllers=%u strangers=%u why=\"no majority of the controllers supports it\"",
                        (unsigned long long)lease->holder.generation, lease->holder.voter_count,
                        lease_holder_strangers(&lease->holder));
    }
    if (deadline_ns == lease->deadline_ns)
        return;
    lease->deadline_ns = deadline_ns;
    lease->options.changed(lease->options.arg);
}

/* ---- peers ---- */

static struct agent_lease_peer *peer_find(struct agent_lease *lease, const char *address)
{
    for (unsigned i = 0; i < lease->peer_count; i++)
        if (strcmp(lease->peers[i]->address, address) == 0)
            return lease->peers[i];
    return NULL;
}

static void peer_name(struct agent_lease *lease, const char *address)
{
    struct agent_lease_peer *peer = peer_find(lease, address);
    if (peer == NULL && lease->peer_count < ARRAY_SIZE(lease->peers)) {
        peer = NEW(struct agent_lease_peer);
        peer->lease = lease;
        snprintf(peer->address, sizeof peer->address, "%s", address);
        lease->peers[lease->peer_count++] = peer;
    }
    if (peer != NULL)
        peer->named = true;
}

/* Forget whom nobody names any more and no question is under way to. */
static void peers_sweep(struct agent_lease *lease)
{
    for (unsigned i = lease->peer_count; i > 0; i--) {
        struct agent_lease_peer *peer = lease->peers[i - 1];
        if (peer->named || peer->call != NULL)
            continue;
        free(peer);
        lease->peers[i - 1] = lease->peers[--lease->peer_count];
    }
}

void agent_lease_controllers(struct agent_lease *lease, const struct string_list *addresses)
{
    for (unsigned i = 0; i < lease->peer_count; i++)
        lease->peers[i]->named = false;
    for (size_t i = 0; i < addresses->count; i++)
        peer_name(lease, addresses->items[i]);
    for (unsigned i = 0; i < lease->holder.voter_count; i++)
        peer_name(lease, lease->holder.voters[i].address);
    peers_sweep(lease);
}

/* ---- where the session should be ---- */

static void session_follow(struct agent_lease *lease, struct agent_lease_peer *peer, const struct lease_answer *answer)
{
    uint64_t now_ms = uv_now(lease->options.loop);
    if (lease->session == NULL)
        return;
    bool behind = answer->cluster_epoch >= lease->holder.cluster_epoch &&
                  answer->orders_index > session_have_index(lease->session);
    const struct agent_lease_peer *its = peer_find(lease, session_controller(lease->session));
    bool deaf = its != NULL && its != peer && its->answered_ms + AGENT_LEASE_DEAF_MS < now_ms &&
                its->next_ms != 0 && session_waits(lease->session);
    uint64_t patience_ms = MIN((uint64_t)AGENT_LEASE_BEHIND_MS << MIN(lease->behind_moves, 8u), (uint64_t)AGENT_LEASE_BEHIND_MAX_MS);
    if (!behind) {
        lease->behind_ms = 0;
        lease->behind_moves = 0;
    } else if (lease->behind_ms == 0) {
        lease->behind_ms = now_ms;
        peer->next_ms = MIN(peer->next_ms, now_ms + AGENT_LEASE_BEHIND_MS); /* not a whole second for the next look */
    }
    if (!deaf && (lease->behind_ms == 0 || now_ms < lease->behind_ms + patience_ms))
        return;
    log_info("session-moves", "to=%s why=\"%s\"", peer->address,
             deaf ? "the other controller does not answer" : "it knows newer orders");
    lease->behind_ms = 0;
    lease->behind_moves += !deaf;
    session_move(lease->session, peer->address);
}

/* ---- questions ---- */

static void new_list(struct agent_lease *lease)
{
    for (unsigned i = 0; i < lease->holder.voter_count; i++)
        peer_name(lease, lease->holder.voters[i].address);
    for (unsigned i = 0; i < lease->peer_count; i++)
        lease->peers[i]->next_ms = 0;
}

static void take_answer(struct agent_lease_peer *peer, const struct http_answer *http, uint64_t now_ns)
{
    struct agent_lease *lease = peer->lease;
    struct lease_answer answer = {.head = {0}};
    struct error err = {.code = 0};
    if (OBJECT_DECODE(lease_answer, (const char *)http->body, http->body_size, OBJECT_LENIENT, &answer, &err) < 0) {
        log_warning("lease-answer", "controller=%s error=\"%s\"", peer->address, err.text);
        return;
    }
    peer->answered_ms = uv_now(lease->options.loop);
    bool news = lease_holder_answered(&lease->holder, &answer, peer->asked_ns);
    if (answer.supported)
        peer->next_ms = peer->answered_ms + AGENT_LEASE_ASK_MS -
                        MIN((now_ns - peer->asked_ns) / 1000000, (uint64_t)AGENT_LEASE_ASK_MS);
    if (news)
        new_list(lease);
    session_follow(lease, peer, &answer);
    OBJECT_CLEAR(lease_answer, &answer);
}

static void on_done(const struct http_answer *http, void *arg)
{
    struct agent_lease_peer *peer = arg;
    struct agent_lease *lease = peer->lease;
    uint64_t now_ns = agent_lease_now_ns();
    peer->call = NULL;
    if (lease->stopping) {
        maybe_finish(lease);
        return;
    }
    peer->next_ms = uv_now(lease->options.loop) + AGENT_LEASE_RETRY_MS;
    if (http->error == -ECONNREFUSED)
        lease_holder_refused(&lease->holder, peer->address, peer->asked_ns, now_ns);
    else if (http->error == 0 && http->status == 200)
        take_answer(peer, http, now_ns);
    else
        log_debug("lease-unanswered", "controller=%s status=%d error=%d", peer->address, http->status, http->error);
    deadline_may_have_changed(lease);
}

static void ask(struct agent_lease *lease, struct agent_lease_peer *peer)
{
    struct lease_question question = {.head = {0}};
    struct bytes_writer body = {.data = NULL};
    struct error err = {.code = 0};
    OBJECT_TEXT(lease_question, &question, host, lease->options.host);
    OBJECT_SET(lease_question, &question, generation, lease->holder.generation);
    OBJECT_SET(lease_question, &question, cluster_epoch, lease->options.cluster_epoch(lease->options.arg));
    OBJECT_SET(lease_question, &question, voters_index,
               lease_holder_counts_in(&lease->holder, question.cluster_epoch));
    OBJECT_ENCODE(lease_question, &question, &body);
    OBJECT_CLEAR(lease_question, &question);
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/node/lease", peer->address);
    const struct http_call_options options = {
        .method = "POST",
        .url = url,
        .body = body.data,
        .body_size = body.size,
        .deadline_ms = AGENT_LEASE_DEADLINE_MS,
        .tls = lease->options.tls,
        .peer_prefix = lease->peer_prefix,
        .done = on_done,
        .arg = peer,
    };
    peer->asked_ns = agent_lease_now_ns(); /* before it is sent: counted from here */
    if (http_client_start(lease->options.http, &options, &peer->call, &err) < 0) {
        peer->call = NULL;
        peer->next_ms = uv_now(lease->options.loop) + AGENT_LEASE_RETRY_MS;
        log_warning("lease-ask", "controller=%s error=\"%s\"", peer->address, err.text);
    }
    bytes_writer_finish(&body);
}

static void on_tick(uv_timer_t *timer)
{
    struct agent_lease *lease = timer->data;
    uint64_t now_ms = uv_now(lease->options.loop);
    for (unsigned i = 0; i < lease->peer_count; i++)
        if (!lease->silent && lease->peers[i]->call == NULL && lease->peers[i]->next_ms <= now_ms)
            ask(lease, lease->peers[i]);
    deadline_may_have_changed(lease); /* said in the log also where nothing comes any more */
}

/* ---- life ---- */

void agent_lease_start(struct agent_lease *lease, const struct agent_lease_options *options)
{
    *lease = (struct agent_lease){.options = *options, .peer_prefix = xstrdup(options->peer_prefix)};
    uv_timer_init(options->loop, &lease->timer);
    lease->timer.data = lease;
    uv_timer_start(&lease->timer, on_tick, 0, AGENT_LEASE_TICK_MS);
}

void agent_lease_generation(struct agent_lease *lease, uint64_t generation)
{
    if (lease->holder.generation == generation)
        return;
    log_info("lease-generation", "from=%llu to=%llu", (unsigned long long)lease->holder.generation,
             (unsigned long long)generation);
    lease_holder_generation(&lease->holder, generation);
    for (unsigned i = 0; i < lease->peer_count; i++)
        lease->peers[i]->next_ms = 0;
}

void agent_lease_silence(struct agent_lease *lease, bool silent)
{
    lease->silent = silent;
    for (unsigned i = 0; i < lease->peer_count && !lease->stopping; i++) {
        if (silent && lease->peers[i]->call != NULL)
            http_call_cancel(lease->peers[i]->call);
        lease->peers[i]->next_ms = 0;
    }
}

static void timer_closed(uv_handle_t *handle)
{
    struct agent_lease *lease = handle->data;
    lease->timer_closed = true;
    maybe_finish(lease);
}

static void maybe_finish(struct agent_lease *lease)
{
    if (!lease->stopping || !lease->timer_closed)
        return;
    for (unsigned i = 0; i < lease->peer_count; i++)
        if (lease->peers[i]->call != NULL)
            return;
    for (unsigned i = 0; i < lease->peer_count; i++)
        free(lease->peers[i]);
    lease->peer_count = 0;
    free(lease->peer_prefix);
    lease->peer_prefix = NULL;
    lease->stopped(lease->stopped_arg);
}

void agent_lease_stop(struct agent_lease *lease, void (*stopped)(void *arg), void *arg)
{
    lease->stopping = true;
    lease->session = NULL;
    lease->stopped = stopped;
    lease->stopped_arg = arg;
    for (unsigned i = 0; i < lease->peer_count; i++)
        if (lease->peers[i]->call != NULL)
            http_call_cancel(lease->peers[i]->call);
    uv_close((uv_handle_t *)&lease->timer, timer_closed);
}
