/* Leases at work in a controller; see the header.
 *
 * Failure modes: a look that gets no answer counts for nothing; a command that is refused was overtaken by another one; one
 * that is lost with the leadership is decided again by the next leader from the same state. */
#include "controller/lease_driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "controller/environment.h"
#include "controller/fsm/apply.h"
#include "controller/service.h"

#define SECOND_NS UINT64_C(1000000000)

uint64_t lease_driver_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* ---- judging ---- */

static void on_answered(void *arg, int status, void *raw)
{
    struct lease_driver *driver = arg;
    struct apply_result *result CLEANUP_FREE = raw;
    if (status == 0 && result->code < 0)
        log_info("lease-refused", "%s", result->error.text);
    driver->outstanding--;
}

static void judge(struct lease_driver *driver)
{
    struct service *service = driver->service;
    struct lease_judgement *judgement;
    char now[ENVIRONMENT_TIME_SIZE];
    if (!service->ready || service->stopping || driver->outstanding > 0)
        return;
    judgement = NEW(struct lease_judgement);
    environment_time_text(environment_unix_ms(), now);
    service_lock_state(service);
    lease_judge_tick(&driver->judge, service->state, now, lease_driver_now_ns(), judgement);
    service_unlock_state(service);
    driver->suspects = judgement->suspects;
    for (unsigned i = 0; i < judgement->count; i++) {
        size_t size = judgement->commands[i].size;
        void *command = TAKE_PTR(judgement->commands[i].data);
        if (raft_node_propose(service->raft, command, size, on_answered, driver) < 0)
            free(command);
        else
            driver->outstanding++;
    }
    lease_judgement_finish(judgement);
    free(judgement);
}

void lease_driver_applied(struct lease_driver *driver)
{
    struct service *service = driver->service;
    if (driver->stopping)
        return;
    service_lock_state(service);
    lease_table_look(&driver->table, service->state, lease_driver_now_ns());
    service_unlock_state(service);
}

/* ---- looking ---- */

static void put_look(struct lease_driver *driver, struct lease_look *look)
{
    struct service *service = driver->service;
    OBJECT_SET(lease_look, look, term, service->leader.term);
    service_lock_state(service);
    OBJECT_SET(lease_look, look, index, state_index(service->state));
    OBJECT_SET(lease_look, look, cluster_epoch, state_cluster(service->state)->epoch);
    service_unlock_state(service);
}

/* This controller is one of those that count. */
static void look_at_self(struct lease_driver *driver)
{
    struct service *service = driver->service;
    struct lease_look look = {.head = {0}};
    struct lease_view view = {.head = {0}};
    uint64_t now_ns = lease_driver_now_ns();
    put_look(driver, &look);
    service_lock_state(service);
    lease_table_view(&driver->table, service->state, &look, service->dir.identity.raft_id, service->leader.term, now_ns,
                     &view);
    service_unlock_state(service);
    lease_judge_take(&driver->judge, &view, service->leader.term, now_ns);
    OBJECT_CLEAR(lease_look, &look);
    OBJECT_CLEAR(lease_view, &view);
}

static void on_view(const struct http_answer *http, void *arg)
{
    struct lease_driver_peer *peer = arg;
    struct lease_driver *driver = peer->driver;
    struct service *service = driver->service;
    struct lease_view view = {.head = {0}};
    peer->call = NULL;
    if (driver->stopping || http->error != 0 || http->status != 200 || !service->ready || peer->term != service->leader.term)
        return;
    if (OBJECT_DECODE(lease_view, (const char *)http->body, http->body_size, OBJECT_LENIENT, &view, NULL) < 0)
        return;
    if (view.raft_id == peer->raft_id)
        lease_judge_take(&driver->judge, &view, peer->term, lease_driver_now_ns());
    OBJECT_CLEAR(lease_view, &view);
    judge(driver);
}

static void look_at(struct lease_driver *driver, struct lease_driver_peer *peer)
{
    struct service *service = driver->service;
    struct lease_look look = {.head = {0}};
    struct bytes_writer body = {0};
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/controller/lease", peer->address);
    CLEANUP_FREE char *prefix = xasprintf("spiffe://drover/%s/controller/%llu", service->dir.identity.cluster_id,
                                          (unsigned long long)peer->raft_id);
    put_look(driver, &look);
    OBJECT_ENCODE(lease_look, &look, &body);
    OBJECT_CLEAR(lease_look, &look);
    const struct http_call_options options = {
        .method = "POST",
        .url = url,
        .body = body.data,
        .body_size = body.size,
        .deadline_ms = LEASE_DRIVER_LOOK_DEADLINE_MS,
        .tls = service->tls,
        .peer_prefix = prefix,
        .done = on_view,
        .arg = peer,
    };
    peer->term = service->leader.term;
    if (http_client_start(driver->http, &options, &peer->call, NULL) < 0)
        peer->call = NULL;
    bytes_writer_finish(&body);
}

static struct lease_driver_peer *peer_of(struct lease_driver *driver, uint64_t raft_id)
{
    struct lease_driver_peer *empty = NULL;
    for (unsigned i = 0; i < LEASE_VOTERS_MAX; i++) {
        if (driver->peers[i].driver != NULL && driver->peers[i].raft_id == raft_id)
            return &driver->peers[i];
        if (driver->peers[i].driver == NULL && empty == NULL)
            empty = &driver->peers[i];
    }
    if (empty != NULL)
        *empty = (struct lease_driver_peer){.driver = driver, .raft_id = raft_id};
    return empty;
}

/* Locked. */
static void name_some(struct lease_driver *driver, bool voters)
{
    struct service *service = driver->service;
    for (size_t i = 0; i < state_count(service->state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(service->state, object_kind_CONTROLLER, i)->controller;
        if ((controller->role == controller_role_VOTER) != voters || controller->raft_id == service->dir.identity.raft_id ||
            controller->address == NULL)
            continue;
        struct lease_driver_peer *peer = peer_of(driver, controller->raft_id);
        if (peer == NULL)
            continue;
        peer->named = true;
        if (peer->call == NULL)
            snprintf(peer->address, sizeof peer->address, "%s", controller->address);
    }
}

/* The voters of the state but this one; and who is to be one, as far as there is room: it supports before it counts. */
static void name_peers(struct lease_driver *driver)
{
    struct service *service = driver->service;
    for (unsigned i = 0; i < LEASE_VOTERS_MAX; i++)
        driver->peers[i].named = false;
    service_lock_state(service);
    name_some(driver, true);
    name_some(driver, false);
    service_unlock_state(service);
    for (unsigned i = 0; i < LEASE_VOTERS_MAX; i++)
        if (!driver->peers[i].named && driver->peers[i].call == NULL)
            driver->peers[i].driver = NULL;
}

static void on_timer(uv_timer_t *timer)
{
    struct lease_driver *driver = timer->data;
    struct service *service = driver->service;
    uint64_t now_ms = environment_monotonic_ms(), pause_ms = driver->suspects ? LEASE_LOOK_SOON_MS : LEASE_LOOK_MS;
    if (!service->ready || service->stopping)
        return;
    if (driver->own_next_ms <= now_ms || driver->suspects) {
        driver->own_next_ms = now_ms + pause_ms;
        name_peers(driver);
        look_at_self(driver);
        judge(driver);
    }
    for (unsigned i = 0; i < LEASE_VOTERS_MAX; i++) {
        struct lease_driver_peer *peer = &driver->peers[i];
        if (peer->driver == NULL || !peer->named || peer->call != NULL ||
            (peer->next_ms > now_ms && !(driver->suspects && peer->next_ms > now_ms + LEASE_LOOK_SOON_MS)))
            continue;
        peer->next_ms = now_ms + pause_ms;
        look_at(driver, peer);
    }
}

/* ---- life ---- */

int lease_driver_start(struct lease_driver *driver, struct service *service, struct error *err)
{
    *driver = (struct lease_driver){.service = service};
    lease_table_init(&driver->table, lease_driver_now_ns());
    int r = http_client_create(service->loop, &driver->http, err);
    if (r < 0)
        return r;
    ASSERT(uv_timer_init(service->loop, &driver->timer) == 0);
    driver->timer.data = driver;
    ASSERT(uv_timer_start(&driver->timer, on_timer, LEASE_DRIVER_TICK_MS, LEASE_DRIVER_TICK_MS) == 0);
    return 0;
}

void lease_driver_reset(struct lease_driver *driver)
{
    lease_judge_reset(&driver->judge);
    driver->suspects = false;
    driver->own_next_ms = 0;
    for (unsigned i = 0; i < LEASE_VOTERS_MAX; i++)
        driver->peers[i].next_ms = 0;
}

void lease_driver_stop(struct lease_driver *driver)
{
    if (driver->http == NULL || driver->stopping)
        return;
    driver->stopping = true;
    uv_close((uv_handle_t *)&driver->timer, NULL);
    http_client_close(driver->http, NULL, NULL);
}

void lease_driver_finish(struct lease_driver *driver)
{
    lease_judge_reset(&driver->judge);
    lease_table_finish(&driver->table);
}
