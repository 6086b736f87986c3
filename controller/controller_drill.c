/* What a drill makes of this controller; see the header. */
#include "controller/controller_drill.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/packet_cut.h"
#include "controller/drill_restart.h"
#include "controller/service.h"

#define ROLE "controller"

static const char *mark_path(const struct service *service, char path[DATA_DIR_PATH_MAX])
{
    return data_dir_file(&service->dir, "drill-cut", path);
}

static void end_cut(struct service *service)
{
    char path[DATA_DIR_PATH_MAX];
    free(TAKE_PTR(service->drill.cut));
    packet_cut_end(ROLE, mark_path(service, path));
}

static void on_end(uv_timer_t *timer)
{
    struct service *service = timer->data;
    log_info("drill-ends", "drill=%s", service->drill.name);
    if (service->drill.cut != NULL)
        end_cut(service);
    service->drill.busy = false;
}

static void begin_cut(struct service *service)
{
    struct error err = {.code = 0};
    if (packet_cut_begin(service->drill.cut, &err) < 0) {
        log_error("drill-failed", "drill=%s why=\"%s\"", service->drill.name, err.text);
        on_end(&service->drill.timer);
        return;
    }
    uv_timer_start(&service->drill.timer, on_end, (uint64_t)service->drill.seconds * 1000, 0);
}

static void on_begin(uv_timer_t *timer)
{
    struct service *service = timer->data;
    switch (service->drill.fault) {
    case drill_fault_CRASH:
        drill_restart_now(service->drill.seconds);
    case drill_fault_RESTART:
        service->restart = true;
        service_stop(service);
        break;
    case drill_fault_CUT:
        begin_cut(service);
        break;
    default:
        break;
    }
}

/* The ports by which controllers talk to each other, and hosts to this one. */
static void find_ports(struct service *service, struct packet_cut_rules *rules)
{
    const struct node_identity *me = &service->dir.identity;
    rules->own[rules->own_count++] = packet_cut_port(me->address);
    rules->own[rules->own_count++] = packet_cut_port(me->raft_address);
    service_lock_state(service);
    for (size_t i = 0; i < state_count(service->state, object_kind_CONTROLLER); i++) {
        uint16_t port = packet_cut_port(state_at(service->state, object_kind_CONTROLLER, i)->controller->raft_address);
        bool known = port == 0;
        for (unsigned j = 0; j < rules->theirs_count; j++)
            known = known || rules->theirs[j] == port;
        if (!known && rules->theirs_count < PACKET_CUT_PORTS_MAX)
            rules->theirs[rules->theirs_count++] = port;
    }
    service_unlock_state(service);
}

static int prepare_cut(struct service *service, const struct drill_order *order, struct error *err)
{
    char path[DATA_DIR_PATH_MAX];
    struct packet_cut_rules rules = {.open_port = 0};
    find_ports(service, &rules);
    return packet_cut_prepare(ROLE, mark_path(service, path), &rules, &order->far, order->seconds, &service->drill.cut, err);
}

static int slow_down(struct service *service, const struct drill_order *order, struct error *err)
{
    if (order->delay_ms < CONTROLLER_DRILL_DELAY_MS_MIN)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/delay_ms", "it must be from %u to 2000", CONTROLLER_DRILL_DELAY_MS_MIN);
    raft_node_slow_writes(service->raft, order->delay_ms, order->seconds);
    return 0;
}

int controller_drill_order(struct service *service, const struct drill_order *order, struct error *err)
{
    struct controller_drill *drill = &service->drill;
    int r = 0;
    if (service->stopping)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "this controller ends already");
    if (drill->busy)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "drill %s is under way on this controller; wait for its end", drill->name);
    if (order->fault == drill_fault_CUT)
        r = prepare_cut(service, order, err);
    else if (order->fault == drill_fault_SLOW_DISK)
        r = slow_down(service, order, err);
    if (r < 0)
        return r;
    log_warning("drill-begins", "drill=%s fault=%s seconds=%u", order->drill, drill_fault_desc.names[order->fault], order->seconds);
    drill->busy = true;
    drill->fault = order->fault;
    drill->seconds = order->seconds;
    snprintf(drill->name, sizeof drill->name, "%s", order->drill);
    if (order->fault == drill_fault_SLOW_DISK)
        return uv_timer_start(&drill->timer, on_end, (uint64_t)order->seconds * 1000, 0);
    return uv_timer_start(&drill->timer, on_begin, CONTROLLER_DRILL_AFTER_MS, 0);
}

void controller_drill_start(struct service *service)
{
    char path[DATA_DIR_PATH_MAX];
    ASSERT(uv_timer_init(service->loop, &service->drill.timer) == 0);
    service->drill.timer.data = service;
    packet_cut_clean(ROLE, mark_path(service, path));
}

void controller_drill_stop(struct service *service)
{
    if (service->drill.cut != NULL)
        end_cut(service);
    uv_close((uv_handle_t *)&service->drill.timer, NULL);
}
