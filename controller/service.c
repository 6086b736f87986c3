/* One running controller: wiring, leadership, stopping.
 *
 * Start: state, Raft (which loads it), driver, API. Leadership: Raft names a new leader -> barrier -> (first run of a
 * new cluster: the init command) -> ready. Only a ready leader answers linearizably, reconciles and takes reports.
 *
 * Stop: 1. leadership is handed over, at most SERVICE_TRANSFER_WAIT_MS; 2. streams and waiting requests are ended;
 * 3. Raft is stopped, which answers everything proposed; 4. the server closes; the loop ends when all handles are. */
#include "controller/service.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/log.h"
#include "common/pki.h"
#include "controller/environment.h"
#include "controller/fsm/apply.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/snapshot.h"
#include "controller/supervisor.h"

/* --- the state machine, on Raft's thread --- */

static void machine_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result)
{
    struct service *service = ctx;
    struct apply_result *result = NEW(struct apply_result);
    fsm_apply(service->state, index, entry, size, result);
    if (result->fatal) {
        /* Going on would put this replica out of step for ever. */
        log_error("newer-command", "index=%llu %s; upgrade this controller", (unsigned long long)index,
                  result->error.text);
        _exit(RAFT_NODE_EXIT_STATUS);
    }
    *ret_result = result;
}

static void machine_snapshot(void *ctx, struct bytes_writer *out)
{
    struct service *service = ctx;
    snapshot_write(service->state, out);
}

/* Built aside and freed aside: the API waits for the exchange only. */
static int machine_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    struct service *service = ctx;
    struct state *state = NULL;
    int r = snapshot_read(data, size, &state, err);
    if (r < 0)
        return r;
    ASSERT(pthread_rwlock_wrlock(&service->state_lock) == 0);
    snapshot_exchange(service->state, state);
    ASSERT(pthread_rwlock_unlock(&service->state_lock) == 0);
    state_destroy(state);
    return 0;
}

static void machine_release(void *ctx, void *result)
{
    (void)ctx;
    free(result);
}

/* --- leadership --- */

bool service_leads(const struct service *service)
{
    return service->leader.role == RAFT_NODE_LEADER;
}

static void set_ready(struct service *service)
{
    service->ready = true;
    service->ready_since_ms = environment_monotonic_ms();
    log_info("leading", "term=%llu", (unsigned long long)service->leader.term);
    api_leader_changed(&service->api);
    driver_wake(&service->driver);
}

static void on_init_applied(void *arg, int status, void *raw)
{
    struct service *service = arg;
    struct apply_result *result CLEANUP_FREE = raw;
    service->init_proposed = false;
    if (status < 0 || service->stopping)
        return; /* whoever leads next proposes it */
    if (result->code < 0)
        log_error("init-refused", "%s", result->error.text);
    else
        log_info("cluster-made", "cluster=%s epoch=%llu", service->dir.identity.cluster_id,
                 (unsigned long long)data_dir_epoch(&service->dir));
    if (service_leads(service))
        set_ready(service);
}

/* The first command of a new cluster, from init.json, or of a recovered one, from recover.json. */
static int propose_first(struct service *service, bool recovers, struct error *err)
{
    const struct object_desc *desc = recovers ? &command_recover_desc : &command_init_desc;
    union {
        struct command_init init;
        struct command_recover recover;
    } command = {.init = {.head = {0}}};
    struct bytes_writer bytes = {0};
    char path[DATA_DIR_PATH_MAX], *text CLEANUP_FREE = NULL;
    int r = file_read(data_dir_file(&service->dir, recovers ? "recover.json" : "init.json", path),
                      DATA_DIR_FILE_BYTES_MAX, &text, NULL, err);
    if (r == 0)
        r = object_decode(desc, text, strlen(text), OBJECT_STORED, &command, err);
    if (r == 0 && recovers) {
        char now[ENVIRONMENT_TIME_SIZE]; /* hosts can come from now on, not since the command was written */
        environment_time_text(environment_unix_ms(), now);
        OBJECT_TEXT(command_request, &command.recover.request, at, now);
    }
    if (r == 0)
        r = command_encode(recovers ? COMMAND_recover : COMMAND_init, &command, &bytes, err);
    object_clear(desc, &command);
    if (r < 0)
        return r;
    service->init_proposed = true;
    r = raft_node_propose(service->raft, bytes.data, bytes.size, on_init_applied, service);
    if (r < 0) {
        bytes_writer_finish(&bytes);
        service->init_proposed = false;
    }
    return r;
}

static void on_ready_barrier(void *arg, int status, uint64_t index)
{
    struct service *service = arg;
    struct error err = {.text = ""};
    (void)index;
    service->barrier_busy = false;
    if (!service_leads(service) || service->stopping || service->ready)
        return;
    if (status == -ENOSPC) /* the watchdog timer looks again: asking at once would spin until there is space */
        return;
    if (status < 0) { /* still the leader: a full queue at worst */
        service_become_ready(service);
        return;
    }
    service_lock_state(service);
    bool initialized = state_initialized(service->state);
    bool recovers = initialized && state_cluster(service->state)->epoch < data_dir_epoch(&service->dir);
    service_unlock_state(service);
    if (initialized && !recovers)
        set_ready(service);
    else if (!service->init_proposed && propose_first(service, recovers, &err) < 0)
        log_error("init-failed", "%s", err.text);
}

void service_become_ready(struct service *service)
{
    if (service->barrier_busy)
        return;
    service->barrier_busy = raft_node_barrier(service->raft, on_ready_barrier, service) == 0;
    /* Refused: not the leader any more (which is told of), or full; the watchdog timer looks again. */
}

static void on_leader(void *arg, const struct raft_node_leader *leader)
{
    struct service *service = arg;
    bool was = service_leads(service) && service->leader.term == leader->term;
    service->leader = *leader;
    if (service->stopping)
        return;
    if (!service_leads(service) || !was) {
        service->ready = false;
        service->welcome_since_ms = service->voters_wait_ms = 0;
        driver_reset(&service->driver);
        lease_driver_reset(&service->leases);
    }
    if (service_leads(service) && !service->ready)
        service_become_ready(service);
    api_leader_changed(&service->api);
}

static uint64_t service_epoch(struct service *service)
{
    service_lock_state(service);
    uint64_t epoch = state_initialized(service->state) ? state_cluster(service->state)->epoch : 0;
    service_unlock_state(service);
    return epoch;
}

static void on_applied(void *arg, uint64_t index)
{
    struct service *service = arg;
    char path[DATA_DIR_PATH_MAX];
    service->applied_index = index;
    if (service->stopping)
        return;
    if (!service->init_file_gone && service_epoch(service) >= data_dir_epoch(&service->dir)) {
        /* The cluster is made, or recovered: never propose it again. */
        unlink(data_dir_file(&service->dir, "init.json", path));
        unlink(data_dir_file(&service->dir, "recover.json", path));
        service->init_file_gone = true;
    }
    api_applied(&service->api);
    driver_wake(&service->driver);
    lease_driver_applied(&service->leases);
}

/* --- changes of Raft's configuration --- */

int service_change(struct service *service, enum raft_node_change change, uint64_t raft_id, const char *address,
                   raft_node_change_cb done, void *arg, struct error *err)
{
    if (service->change_busy)
        return error_set(err, -EBUSY, ERROR_OVERLOAD,
                         "another change of the controllers is under way; ask again soon");
    int r = raft_node_change(service->raft, change, raft_id, address, done, arg, err);
    service->change_busy = r == 0;
    return r;
}

void service_change_done(struct service *service)
{
    service->change_busy = false;
}

bool service_is_voter(struct service *service, uint64_t raft_id)
{
    struct raft_node_status *status CLEANUP_FREE = NEW(struct raft_node_status);
    raft_node_status(service->raft, status);
    for (unsigned i = 0; i < status->member_count; i++)
        if (status->members[i].id == raft_id)
            return status->members[i].vote == RAFT_NODE_VOTER;
    return false;
}

static bool in_table(const struct state *state, uint64_t raft_id)
{
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++)
        if (state_at(state, object_kind_CONTROLLER, i)->controller->raft_id == raft_id)
            return true;
    return false;
}

bool service_members_follow(struct service *service)
{
    struct raft_node_status *status CLEANUP_FREE = NULL;
    if (service->raft == NULL) /* stopping */
        return false;
    status = NEW(struct raft_node_status);
    raft_node_status(service->raft, status);
    bool follow = !status->configuration_pending; /* what is not agreed on may be taken back */
    service_lock_state(service);
    for (unsigned i = 0; i < status->member_count; i++)
        follow = follow && in_table(service->state, status->members[i].id);
    service_unlock_state(service);
    return follow;
}

unsigned service_voters(struct service *service)
{
    struct raft_node_status *status CLEANUP_FREE = NEW(struct raft_node_status);
    unsigned n = 0;
    raft_node_status(service->raft, status);
    for (unsigned i = 0; i < status->member_count; i++)
        n += status->members[i].vote == RAFT_NODE_VOTER;
    return n;
}

bool service_voters_settled(struct service *service)
{
    service_lock_state(service);
    bool settled = lease_judge_settled(&service->leases.judge, service->state);
    service_unlock_state(service);
    return settled && service->voters_asked == 0;
}

void service_voters_wait_for(struct service *service, struct lease_judge_words *ret)
{
    if (service->voters_asked > 0) {
        snprintf(ret->text, sizeof ret->text, "another change among the controllers is being agreed");
        return;
    }
    service_lock_state(service);
    lease_judge_waits_for(&service->leases.judge, service->state, lease_driver_now_ns(), ret);
    service_unlock_state(service);
}

/* --- start --- */

static void on_watchdog(uv_timer_t *timer)
{
    struct service *service = timer->data;
    supervisor_notify("WATCHDOG=1");
    if (service_leads(service) && !service->ready && !service->stopping && !service->init_proposed)
        service_become_ready(service);
}

static void on_signal(uv_signal_t *handle, int number)
{
    log_info("stopping", "signal=%d", number);
    service_stop(handle->data);
}

_Noreturn void service_superseded(struct service *service, uint64_t epoch)
{
    struct error err;
    data_dir_supersede(&service->dir, epoch, &err);
    log_error("superseded", "%s", err.text);
    _exit(error_kind_info(err.kind)->exit_status);
}

int service_hears_epoch(struct service *service, const char *host, uint64_t epoch, struct error *err)
{
    uint64_t own = data_dir_epoch(&service->dir);
    if (epoch <= own)
        return 0;
    if (epoch - own > SERVICE_EPOCHS_AHEAD_MAX) {
        log_warning("epoch-refused", "host=%s epoch=%llu own=%llu", host, (unsigned long long)epoch, (unsigned long long)own);
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/cluster_epoch", "is %llu, and this cluster is at %llu: no cluster is recovered "
                               "so often; look at identity.json in the agent's directory", (unsigned long long)epoch, (unsigned long long)own);
    }
    log_error("superseded-by-host", "host=%s epoch=%llu own=%llu", host, (unsigned long long)epoch, (unsigned long long)own);
    service_superseded(service, epoch);
}

static void on_superseded(void *arg, uint64_t epoch)
{
    service_superseded(arg, epoch);
}

static int start_raft(struct service *service, struct error *err)
{
    const struct node_identity *me = &service->dir.identity;
    char path[DATA_DIR_PATH_MAX];
    struct raft_node_config config = {
        .dir = data_dir_file(&service->dir, "raft", path),
        .id = me->raft_id,
        .address = me->raft_address,
        .cluster_id = me->cluster_id,
        .epoch = data_dir_epoch(&service->dir),
        .superseded = on_superseded,
        .certificate_pem = service->dir.certificate_pem,
        .key_pem = service->dir.key_pem,
        .ca_pem = service->dir.ca_pem,
        .machine = {.ctx = service,
                    .lock = &service->state_lock,
                    .apply = machine_apply,
                    .snapshot = machine_snapshot,
                    .restore = machine_restore,
                    .release = machine_release},
        .reply_loop = service->loop,
        .leader = on_leader,
        .applied = on_applied,
        .arg = service,
    };
    return raft_node_create(&config, &service->raft, err);
}

static void start_handles(struct service *service)
{
    static const int numbers[] = {SIGTERM, SIGINT};
    ASSERT(loop_meter_start(&service->meter, service->loop) == 0);
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        ASSERT(uv_signal_init(service->loop, &service->signals[i]) == 0);
        service->signals[i].data = service;
        ASSERT(uv_signal_start(&service->signals[i], on_signal, numbers[i]) == 0);
    }
    uint64_t period = supervisor_watchdog_ms();
    period = period > 0 && period < 1000 ? period : 1000;
    ASSERT(uv_timer_init(service->loop, &service->watchdog_timer) == 0);
    ASSERT(uv_timer_init(service->loop, &service->stop_timer) == 0);
    controller_drill_start(service);
    service->watchdog_timer.data = service->stop_timer.data = service;
    ASSERT(uv_timer_start(&service->watchdog_timer, on_watchdog, period, period) == 0);
}

int service_start(struct service *service, uv_loop_t *loop, struct data_dir *dir,
                  const struct service_options *options, struct error *err)
{
    *service = (struct service){.loop = loop, .dir = *dir};
    *dir = (struct data_dir){.lock_fd = -1};
    struct tls_identity identity = {.ca_pem = service->dir.ca_pem,
                                    .certificate_pem = service->dir.certificate_pem,
                                    .key_pem = service->dir.key_pem};
    char fingerprint[PKI_FINGERPRINT_SIZE];
    ASSERT(pthread_rwlock_init(&service->state_lock, NULL) == 0);
    service->state = state_create();
    int r = tls_context_create(&identity, &service->tls, err);
    if (r < 0 || (r = pki_fingerprint(service->dir.ca_pem, fingerprint, err)) < 0)
        return r;
    service->ca_sha256 = xstrdup(fingerprint);
    driver_start(&service->driver, service);
    start_handles(service);
    const char *listen = options->listen != NULL ? options->listen : service->dir.identity.address;
    if ((r = api_start(&service->api, service, listen, err)) < 0)
        return r;
    /* After it listens: a connection that was refused was refused before this moment, and confirmations wait for a TTL
     * after it. */
    if ((r = lease_driver_start(&service->leases, service, err)) < 0 || (r = start_raft(service, err)) < 0)
        return r;
    service->applied_index = state_index(service->state);
    supervisor_notify("READY=1");
    log_info("started", "name=%s raft_id=%llu listen=%s", service->dir.identity.name,
             (unsigned long long)service->dir.identity.raft_id, listen);
    return 0;
}

/* --- stop --- */

static void close_all(struct service *service)
{
    if (service->closing)
        return;
    service->closing = true;
    service->ready = false; /* what goes on when its turn comes is refused, not proposed */
    service->leader = (struct raft_node_leader){.role = RAFT_NODE_UNAVAILABLE};
    raft_node_destroy(service->raft); /* answers what is proposed */
    service->raft = NULL;
    api_stop(&service->api);
    driver_stop(&service->driver);
    lease_driver_stop(&service->leases);
    uv_close((uv_handle_t *)&service->stop_timer, NULL);
    uv_close((uv_handle_t *)&service->watchdog_timer, NULL);
    controller_drill_stop(service);
    loop_meter_stop(&service->meter);
    for (size_t i = 0; i < ARRAY_SIZE(service->signals); i++)
        uv_close((uv_handle_t *)&service->signals[i], NULL);
}

static void on_stop_timer(uv_timer_t *timer)
{
    close_all(timer->data);
}

static void on_handed_over(void *arg, int status, const struct error *err)
{
    struct service *service = arg;
    if (status < 0)
        log_warning("transfer-failed", "%s", err->text);
    if (service->raft != NULL && !service->closing) /* not from within raft_node_destroy */
        uv_timer_start(&service->stop_timer, on_stop_timer, 0, 0);
}

void service_stop(struct service *service)
{
    struct error err;
    if (service->stopping)
        return;
    service->stopping = true;
    supervisor_notify("STOPPING=1");
    bool alone = service_voters(service) < 2;
    uint64_t wait_ms = 0;
    if (service_leads(service) && !alone &&
        raft_node_change(service->raft, RAFT_NODE_TRANSFER, 0, NULL, on_handed_over, service, &err) == 0)
        wait_ms = SERVICE_TRANSFER_WAIT_MS;
    uv_timer_start(&service->stop_timer, on_stop_timer, wait_ms, 0);
}

void service_finish(struct service *service)
{
    api_finish(&service->api);
    driver_finish(&service->driver);
    lease_driver_finish(&service->leases);
    tls_context_unref(service->tls);
    state_destroy(service->state);
    pthread_rwlock_destroy(&service->state_lock);
    free(service->ca_sha256);
    data_dir_close(&service->dir);
}
