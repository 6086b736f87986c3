/* The reconciler's driver. A run: look (under the read lock), propose all, wait for all answers; then again at once if
 * there was more to propose, soon if not all that waits was looked at or the state has changed, else at the next tick. */
#include "controller/driver.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "controller/environment.h"
#include "controller/fsm/apply.h"
#include "controller/membership.h"
#include "controller/service.h"

static void make_uuid(void *arg, char ret_id[STATE_ID_BYTES])
{
    (void)arg;
    environment_uuid(ret_id);
}

static void run(struct driver *driver);

static void on_answered(void *arg, int status, void *raw)
{
    struct driver *driver = arg;
    struct apply_result *result CLEANUP_FREE = raw;
    /* Where a table is full nobody else is told: who asks for a backup by hand is, its policy is not. */
    uint64_t now_ms = environment_monotonic_ms();
    bool full = status == 0 && result->code == -ENOSPC && (driver->full_told_ms == 0 || now_ms >= driver->full_told_ms + DRIVER_FULL_TOLD_MS);
    if (full) {
        log_warning("reconcile-refused", "%s", result->error.text);
        driver->full_told_ms = now_ms;
    } else if (status == 0 && result->code < 0) {
        log_debug("reconcile-refused", "%s", result->error.text);
    }
    driver->outstanding--;
    if (driver->outstanding == 0 && driver->again && !driver->service->stopping)
        run(driver);
}

static size_t list_nodes(struct driver *driver, struct reconcile_node **ret_nodes)
{
    struct reconcile_node *nodes = xcalloc(driver->nodes.count + 1, sizeof *nodes);
    const struct driver_node *node;
    size_t n = 0;
    for (size_t i = 0; (node = map_next(&driver->nodes, &i)) != NULL;)
        nodes[n++] = (struct reconcile_node){.host = node->host, .last_report_ms = node->last_report_ms};
    *ret_nodes = nodes;
    return n;
}

static void propose_all(struct driver *driver, struct reconcile_output *output)
{
    for (unsigned i = 0; i < output->count; i++) {
        size_t size = output->commands[i].size;
        void *command = TAKE_PTR(output->commands[i].data);
        if (raft_node_propose(driver->service->raft, command, size, on_answered, driver) < 0)
            free(command); /* the next round decides it again */
        else
            driver->outstanding++;
    }
    driver->service->api.metrics.reconcile_commands += output->count;
}

static void run(struct driver *driver)
{
    struct service *service = driver->service;
    struct api_metrics *metrics = &service->api.metrics;
    if (!service->ready || driver->outstanding > 0)
        return;
    struct reconcile_output *output = NEW(struct reconcile_output);
    struct reconcile_node *nodes CLEANUP_FREE = NULL;
    char now[ENVIRONMENT_TIME_SIZE];
    uint64_t begin = environment_monotonic_us();
    environment_time_text(environment_unix_ms(), now);
    struct reconcile_input input = {
        .now = now, .now_ms = environment_monotonic_ms(), .leader_since_ms = service->ready_since_ms,
        .resume_after = driver->resume_after, .uuid = make_uuid};
    input.n_nodes = list_nodes(driver, &nodes);
    input.nodes = nodes;
    driver->again = false;
    service_lock_state(service);
    reconcile_tick(service->state, &input, output);
    service_unlock_state(service);
    uint64_t took = environment_monotonic_us() - begin;
    metrics->reconcile_ticks++;
    metrics->reconcile_us += took;
    metrics->reconcile_us_max = MAX(metrics->reconcile_us_max, took);
    driver->again = output->more;
    driver->last_us = took;
    memcpy(driver->resume_after, output->resume_after, sizeof driver->resume_after);
    propose_all(driver, output);
    if (driver->resume_after[0] != '\0')
        driver_wake(driver);
    reconcile_output_finish(output);
    free(output);
}

static void on_timer(uv_timer_t *timer)
{
    struct driver *driver = timer->data;
    run(driver);
    membership_tick(driver->service);
}

void driver_start(struct driver *driver, struct service *service)
{
    *driver = (struct driver){.service = service};
    ASSERT(uv_timer_init(service->loop, &driver->timer) == 0);
    driver->timer.data = driver;
    ASSERT(uv_timer_start(&driver->timer, on_timer, DRIVER_TICK_MS, DRIVER_TICK_MS) == 0);
}

static void clear_nodes(struct driver *driver)
{
    struct driver_node *node;
    for (size_t i = 0; (node = map_next(&driver->nodes, &i)) != NULL;)
        free(node);
    map_finish(&driver->nodes);
    driver->nodes = (struct map){.count = 0};
}

void driver_reset(struct driver *driver)
{
    clear_nodes(driver);
    driver->again = false;
    driver->resume_after[0] = '\0';
}

void driver_wake(struct driver *driver)
{
    uint64_t due = uv_timer_get_due_in(&driver->timer);
    if (!driver->service->ready || driver->service->stopping)
        return;
    /* Soon, not at once: a burst of writes shares one look at the state. A timer that is due sooner stays. */
    uint64_t soon = MAX((uint64_t)DRIVER_SOON_MS, driver->last_us * DRIVER_REST / 1000);
    if (due > soon)
        uv_timer_start(&driver->timer, on_timer, soon, MAX((uint64_t)DRIVER_TICK_MS, soon));
}

void driver_seen(struct driver *driver, const char *host_id)
{
    struct driver_node *node = map_get(&driver->nodes, host_id);
    if (node == NULL) {
        node = NEW(struct driver_node);
        snprintf(node->host, sizeof node->host, "%s", host_id);
        map_put(&driver->nodes, node->host, node);
    }
    node->last_report_ms = environment_monotonic_ms();
}

void driver_stop(struct driver *driver)
{
    uv_close((uv_handle_t *)&driver->timer, NULL);
}

void driver_finish(struct driver *driver)
{
    clear_nodes(driver);
}
