/* The life of a raft server: loading, the thread, each turn of its loop, the end.
 *
 *   raft_node_create: check the directory -> loop, TLS transport, raft_uv, guards -> raft_init, raft_start (restores
 *   the machine and reads the log) -> thread
 *   each turn (node_turn): what was restored aside, member changes, commands, readers, then the status is published
 *   raft_node_destroy: `stopping` -> the next turn calls raft_close -> its callback closes our handles -> the loop
 *   ends
 *   -> the thread is joined, what is left is answered
 *
 * Failure modes: anything wrong before the thread starts is an error of raft_node_create, in words with the cure.
 * Afterwards only raft_node_fatal. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_internal.h"

#include "common/log.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define CURE "; if the other controllers still have a majority, wipe the directory and join again under a new id"

uint64_t raft_node_now_us(void)
{
    return uv_hrtime() / 1000;
}

void raft_node_fatal(struct raft_node *node, const char *format, ...)
{
    char text[512];
    va_list args;

    if (node->failed)
        return;
    node->failed = true;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    log_error("raft-failed", "why=\"%s\"", text);
    if (node->fatal_cb == NULL)
        _exit(RAFT_NODE_EXIT_STATUS);
    node->fatal_cb(node->arg, text);
}

/* Guard C. */
static void node_broken(struct raft_guard *guard, const char *what, int raft_code)
{
    struct raft_node *node = CONTAINER_OF(guard, struct raft_node, guard);
    struct error err = {0};

    raft_errors_set(&err, raft_code, guard->io.errmsg, "cannot %s", what);
    raft_node_fatal(node, "%s", err.text);
}

static void node_trace(struct raft_tracer *tracer UNUSED, int type, const void *data)
{
    const struct raft_tracer_info *info = data;

    if (type != RAFT_TRACER_DIAGNOSTIC)
        return;
    log_debug("raft", "message=\"%s\"", info->diagnostic.message);
}

/* --- Each turn -------------------------------------------------------------------------------------------------- */

static enum raft_node_role node_role(struct raft *raft)
{
    switch (raft_state(raft)) {
    case RAFT_LEADER:
        return RAFT_NODE_LEADER;
    case RAFT_CANDIDATE:
        return RAFT_NODE_CANDIDATE;
    case RAFT_FOLLOWER:
        return RAFT_NODE_FOLLOWER;
    default:
        return RAFT_NODE_UNAVAILABLE;
    }
}

static void status_fill_members(struct raft_node_status *now, struct raft *raft)
{
    const struct raft_configuration *configuration = &raft->configuration;

    now->configuration_index = raft->configuration_committed_index;
    now->configuration_pending = raft->configuration_uncommitted_index != 0;
    now->member_count = MIN(configuration->n, RAFT_NODE_MEMBERS_MAX);
    for (unsigned i = 0; i < now->member_count; i++) {
        const struct raft_server *server = &configuration->servers[i];
        struct raft_node_member *member = &now->members[i];
        raft_index match = 0;

        member->id = server->id;
        snprintf(member->address, sizeof(member->address), "%s", server->address);
        member->vote = server->role == RAFT_VOTER     ? RAFT_NODE_VOTER
                       : server->role == RAFT_STANDBY ? RAFT_NODE_STANDBY
                                                      : RAFT_NODE_SPARE;
        if (now->leader.role == RAFT_NODE_LEADER)
            raft_match_index(raft, server->id, &match);
        member->match_index = match;
    }
}

/* True where role, term or leader differ from those told last. */
static bool status_fill_leader(struct raft_node_leader *leader, struct raft *raft)
{
    struct raft_node_leader before = *leader;
    const char *address = NULL;
    raft_id id = 0;

    raft_leader(raft, &id, &address);
    leader->role = node_role(raft);
    leader->term = raft_current_term(raft);
    leader->leader_id = id;
    snprintf(leader->leader_address, sizeof(leader->leader_address), "%s", address != NULL ? address : "");
    return leader->role != before.role || leader->term != before.term || leader->leader_id != before.leader_id ||
           strcmp(leader->leader_address, before.leader_address) != 0;
}

static void node_publish(struct raft_node *node)
{
    struct raft *raft = &node->raft;
    struct raft_node_status *now = &node->now;
    bool changed = status_fill_leader(&now->leader, raft);

    now->index = node->index;
    now->raft_applied = raft_last_applied(raft);
    now->raft_commit = raft_commit_index(raft);
    now->raft_last = raft_last_index(raft);
    now->disk_writes = node->guard.writes;
    now->disk_write_us = node->guard.write_us;
    now->disk_write_us_max = node->guard.write_us_max;
    now->turns = loop_meter_counts(&node->meter, raft_node_now_us());
    now->installs_dropped = node->guard.installs_dropped;
    now->cuts_held = node->guard.cuts_held;
    now->writes_held = node->guard.writes_held;
    now->reserve_bytes = node->reserve.bytes;
    now->reserves_given_up = node->reserve.given_up;
    now->restoring = raft_deferred_busy(&node->deferred);
    now->entries_deferred = node->deferred.total;
    status_fill_members(now, raft);
    pthread_mutex_lock(&node->lock);
    node->status = *now;
    pthread_mutex_unlock(&node->lock);
    if (!changed && node->told)
        return;
    node->told = true;
    log_info("raft-role", "role=%s term=%llu leader=%llu", raft_node_role_name(now->leader.role),
             (unsigned long long)now->leader.term, (unsigned long long)now->leader.leader_id);
    raft_mailbox_post_leader(node->mailbox, &now->leader);
}

static void node_close_handles(struct raft_node *node)
{
    uv_close((uv_handle_t *)&node->wake, NULL);
    uv_close((uv_handle_t *)&node->check, NULL);
    uv_close((uv_handle_t *)&node->tick, NULL);
    loop_meter_stop(&node->meter);
}

static void node_raft_closed(struct raft *raft)
{
    node_close_handles(raft->data);
}

static void node_turn(uv_check_t *check)
{
    struct raft_node *node = check->data;
    bool stopping;

    if (node->closing)
        return;
    pthread_mutex_lock(&node->lock);
    stopping = node->stopping;
    pthread_mutex_unlock(&node->lock);
    if (stopping) {
        node->closing = true;
        raft_restore_stop(node);
        raft_close(&node->raft, node_raft_closed);
        return;
    }
    if (node->failed)
        return;
    if (raft_state(&node->raft) == RAFT_UNAVAILABLE) {
        raft_node_fatal(node, "libraft gave up: %s", raft_errmsg(&node->raft));
        return;
    }
    raft_guard_turn(&node->guard);
    node->turn_apply_us = 0;
    raft_restore_turn(node);
    raft_members_turn(node);
    raft_propose_turn(node);
    raft_read_turn(node);
    node_publish(node);
}

static void node_wake(uv_async_t *async UNUSED)
{
    /* it only makes the loop turn */
}

static void node_tick(uv_timer_t *timer)
{
    struct raft_node *node = timer->data;

    if (!node->closing && !node->failed)
        raft_apply_tick(node);
}

static void *node_thread(void *arg)
{
    struct raft_node *node = arg;

    uv_run(&node->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* --- Start ------------------------------------------------------------------------------------------------------ */

static unsigned or_default(unsigned value, unsigned otherwise)
{
    return value != 0 ? value : otherwise;
}

static struct raft_node *node_new(const struct raft_node_config *config)
{
    struct raft_node *node = NEW(struct raft_node);

    node->machine = config->machine;
    node->fatal_cb = config->fatal;
    node->arg = config->arg;
    node->dir = xstrdup(config->dir);
    node->address = xstrdup(config->address);
    node->listen_address = config->listen_address != NULL ? xstrdup(config->listen_address) : NULL;
    node->proposals_max = or_default(config->proposals_max, RAFT_NODE_PROPOSALS_MAX);
    node->proposal_bytes_max = or_default(config->proposal_bytes_max, RAFT_NODE_PROPOSAL_BYTES_MAX);
    node->now.id = config->id;
    ASSERT(getrandom(&node->proposer, sizeof(node->proposer), 0) == sizeof(node->proposer));
    raft_confirm_init(&node->confirm, node->proposer);
    raft_deferred_init(&node->deferred);
    node->deferred_bytes_max = config->deferred_bytes_max != 0 ? config->deferred_bytes_max : RAFT_DEFERRED_BYTES_MAX;
    list_init(&node->groups);
    list_init(&node->barriers);
    list_init(&node->confirm_readers);
    list_init(&node->proposals);
    list_init(&node->readers);
    ASSERT(pthread_mutex_init(&node->lock, NULL) == 0);
    node->mailbox = raft_mailbox_create(config->reply_loop, config->leader, config->applied, config->arg);
    ASSERT(uv_loop_init(&node->loop) == 0);
    ASSERT(loop_meter_start(&node->meter, &node->loop) == 0);
    ASSERT(uv_async_init(&node->loop, &node->wake, node_wake) == 0);
    ASSERT(uv_check_init(&node->loop, &node->check) == 0);
    ASSERT(uv_timer_init(&node->loop, &node->tick) == 0);
    node->check.data = node->tick.data = node;
    raft_reserve_init(&node->reserve, &node->loop, node->dir, RAFT_SEGMENT_BYTES);
    raft_apply_init(node);
    return node;
}

/* After the loop's handles are closed and it has run empty. */
static void node_free(struct raft_node *node)
{
    raft_mailbox_deliver_all(node->mailbox);
    raft_mailbox_destroy(node->mailbox);
    ASSERT(uv_loop_close(&node->loop) == 0);
    raft_transport_destroy(node->transport);
    raft_reserve_finish(&node->reserve);
    raft_deferred_finish(&node->deferred);
    pthread_mutex_destroy(&node->lock);
    free(node->dir);
    free(node->address);
    free(node->listen_address);
    free(node);
}

/* Servers that count the same entries would all take their snapshots at the same moment, and the cluster would wait for
 * three of them instead of for none: each has a limit of its own, up to three eighths lower. */
static uint64_t node_limit(const struct raft_node_config *config, uint64_t limit)
{
    return limit - limit / 8 * (config->id % 4);
}

static void node_configure(struct raft_node *node, const struct raft_node_config *config)
{
    struct raft *raft = &node->raft;

    node->tracer = (struct raft_tracer){.version = 2, .emit = node_trace};
    raft->data = node;
    raft->tracer = log_enabled(LOG_LEVEL_DEBUG) ? &node->tracer : NULL; /* costs a printf for each message */
    raft_uv_set_tracer(&node->guard.io, raft->tracer);
    raft_set_election_timeout(raft, or_default(config->election_timeout_ms, 500));
    raft_set_heartbeat_timeout(raft, or_default(config->heartbeat_ms, 50));
    raft_set_install_snapshot_timeout(raft, or_default(config->install_timeout_ms, 3000));
    node->snapshot_threshold = (unsigned)node_limit(config, or_default(config->snapshot_threshold, 8192));
    node->snapshot_trailing = or_default(config->snapshot_trailing, 4096);
    node->log_bytes_max = node_limit(config, config->log_bytes_max != 0 ? config->log_bytes_max : RAFT_LOG_BYTES_MAX);
    raft_set_snapshot_threshold(raft, node->snapshot_threshold);
    raft_set_snapshot_trailing(raft, node->snapshot_trailing);
    raft_set_pre_vote(raft, true);
}

static void node_received(void *receiver, uint64_t id, const struct raft_confirm_message *message)
{
    raft_read_received(receiver, id, message);
}

/* The io below libraft: files, TLS, guards. */
static int node_open_io(struct raft_node *node, const struct raft_node_config *config, struct error *err)
{
    struct raft_transport_config transport = {
        .id = config->id,
        .cluster_id = config->cluster_id,
        .epoch = config->epoch,
        .superseded = config->superseded,
        .arg = config->arg,
        .received = node_received,
        .receiver = node,
        .listen_address = node->listen_address,
        .certificate_pem = config->certificate_pem,
        .key_pem = config->key_pem,
        .ca_pem = config->ca_pem,
    };
    int rv = raft_transport_create(&transport, &node->loop, &node->transport, err);

    if (rv != 0)
        return rv;
    rv = raft_uv_init(&node->guard.io, &node->loop, node->dir, raft_transport_uv(node->transport));
    if (rv != 0)
        return raft_errors_set(err, rv, node->guard.io.errmsg, "cannot use the Raft directory %s", node->dir);
    raft_uv_set_connect_retry_delay(&node->guard.io, or_default(config->connect_retry_ms, 200));
    raft_uv_set_segment_size(&node->guard.io, RAFT_SEGMENT_BYTES);
    raft_uv_set_disk_retry(&node->guard.io, RAFT_DISK_RETRY_MS);
    raft_uv_set_auto_recovery(&node->guard.io, false);
    raft_guard_wrap(&node->guard, node_broken, raft_node_now_us);
    node->guard.room_guarded = true;
    node->guard.dir = node->dir;
    node->guard.cut_room_bytes = RAFT_CUT_ROOM_BYTES;
    return 0;
}

/* A full disk is no damage: nobody must wipe anything. */
static int node_no_room(const struct raft_node *node, struct error *err)
{
    return error_set(err, -ENOSPC, ERROR_NO_SPACE,
                     "there is no room for the log in %s: %u MiB are needed; nothing is lost: free some, or make the "
                     "disk larger, and start again", node->dir, 2 * (RAFT_SEGMENT_BYTES >> 20));
}

static int node_start_error(struct raft_node *node, int raft_code, struct error *err)
{
    const char *deaf = raft_transport_uv(node->transport)->errmsg; /* libraft does not pass it on */

    if (raft_code == RAFT_NOSPACE)
        return node_no_room(node, err);
    if (deaf[0] != '\0')
        return error_set(err, raft_errors_errno(raft_code), ERROR_INVALID,
                         "%s: end the program that has it, or give an address of this machine that is free", deaf);
    if (node->restore_error[0] != '\0')
        return error_set(err, -EUCLEAN, ERROR_CHECKSUM, "cannot load the snapshot in %s: %s%s", node->dir,
                         node->restore_error, strstr(node->restore_error, "newer") != NULL ? "" : CURE);
    raft_errors_set(err, raft_code, raft_errmsg(&node->raft), "cannot load the Raft directory %s", node->dir);
    if (err != NULL && raft_code != RAFT_INVALID)
        snprintf(err->text + strlen(err->text), sizeof(err->text) - strlen(err->text), CURE);
    return raft_errors_errno(raft_code);
}

static int node_open(struct raft_node *node, const struct raft_node_config *config, struct error *err)
{
    int rv = node_open_io(node, config, err);

    if (rv != 0)
        goto out_close_handles;
    rv = raft_init(&node->raft, &node->guard.io, &node->fsm, config->id, config->address);
    if (rv != 0) {
        rv = node_start_error(node, rv, err);
        raft_uv_close(&node->guard.io);
        goto out_close_handles;
    }
    node_configure(node, config);
    rv = raft_start(&node->raft);
    /* libraft prepares its log files when it starts. Where it could not, it never tries again, and refuses commands for
     * want of space for ever, whatever is freed later. */
    if (rv == 0 && node->guard.io.capacity < RAFT_SEGMENT_BYTES / 1024)
        rv = RAFT_NOSPACE;
    if (rv != 0) {
        rv = node_start_error(node, rv, err);
        node->closing = true;
        raft_close(&node->raft, node_raft_closed); /* closes the handles too */
        uv_run(&node->loop, UV_RUN_DEFAULT);
        raft_uv_close(&node->guard.io);
        return rv;
    }
    node->started = true;
    return 0;

out_close_handles:
    node_close_handles(node);
    uv_run(&node->loop, UV_RUN_DEFAULT);
    return rv;
}

static int node_check_config(const struct raft_node_config *config, struct error *err)
{
    char host[RAFT_TRANSPORT_ADDRESS_MAX], port[8];
    int rv = raft_transport_parse_address(config->address, host, port, err);

    if (rv == 0 && config->listen_address != NULL)
        rv = raft_transport_parse_address(config->listen_address, host, port, err);
    if (rv != 0)
        return rv;
    if (config->id == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "a controller's raft id is greater than 0");
    rv = raft_dir_check(config->dir, err);
    if (rv == -EUCLEAN && err != NULL) {
        error_prefix(err, "the Raft directory %s is damaged: ", config->dir);
        snprintf(err->text + strlen(err->text), sizeof(err->text) - strlen(err->text), CURE);
    }
    return rv != 0 ? rv : raft_dir_clean(config->dir, err);
}

int raft_node_create(const struct raft_node_config *config, struct raft_node **ret_node, struct error *err)
{
    struct raft_node *node;
    sigset_t all, before;
    int rv = node_check_config(config, err);

    if (rv != 0)
        return rv;
    node = node_new(config);
    rv = node_open(node, config, err);
    if (rv == -ENOSPC && raft_reserve_give_up_in(config->dir)) {
        log_warning("raft-reserve", "the reserve is given up, for there is no room to start");
        if (err != NULL)
            *err = (struct error){0};
        node_free(node);
        node = node_new(config);
        rv = node_open(node, config, err);
    }
    if (rv != 0) {
        node_free(node);
        return rv;
    }
    uv_check_start(&node->check, node_turn);
    uv_timer_start(&node->tick, node_tick, RAFT_TICK_MS, RAFT_TICK_MS);
    node_publish(node);
    sigfillset(&all); /* signals are for the main thread; SIGPIPE for nobody */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rv = pthread_create(&node->thread, NULL, node_thread, node);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ASSERT(rv == 0);
    *ret_node = node;
    return 0;
}

void raft_node_destroy(struct raft_node *node)
{
    if (node == NULL)
        return;
    pthread_mutex_lock(&node->lock);
    node->stopping = true;
    pthread_mutex_unlock(&node->lock);
    uv_async_send(&node->wake);
    ASSERT(pthread_join(node->thread, NULL) == 0);
    raft_members_stop(node);
    raft_propose_stop(node);
    raft_read_stop(node);
    raft_uv_close(&node->guard.io);
    node_free(node);
}

void raft_node_status(struct raft_node *node, struct raft_node_status *ret_status)
{
    pthread_mutex_lock(&node->lock);
    *ret_status = node->status;
    ret_status->proposals = node->proposal_count;
    ret_status->proposal_bytes = node->proposal_bytes;
    ret_status->commands_refused = node->commands_refused;
    pthread_mutex_unlock(&node->lock);
}

void raft_node_slow_writes(struct raft_node *node, unsigned delay_ms, unsigned seconds)
{
    raft_guard_slow(&node->guard, delay_ms, seconds);
}

const char *raft_node_role_name(enum raft_node_role role)
{
    static const char *const names[] = {"follower", "candidate", "leader", "unavailable"};

    return names[role];
}

const char *raft_node_vote_name(enum raft_node_vote vote)
{
    static const char *const names[] = {"spare", "standby", "voter"};

    return names[vote];
}
