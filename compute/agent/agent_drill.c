/* Drills on this host; see the header for what and why. */
#include "compute/agent/agent_drill.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/http_server.h"
#include "common/log.h"
#include "common/packet_cut.h"
#include "compute/agent/agent.h"

#define ROLE "host"

static const char *mark_path(const struct agent *a, char path[AGENT_DRILL_PATH_MAX])
{
    snprintf(path, AGENT_DRILL_PATH_MAX, "%s/drill-cut", a->data_dir);
    return path;
}

static void set_silent(struct agent *a, bool silent)
{
    a->drill.silent = silent;
    agent_lease_silence(&a->lease, silent);
    session_silence(a->session, silent);
}

/* The kernel has ended the cut already, or does so now. */
static void end_cut(struct agent *a)
{
    char path[AGENT_DRILL_PATH_MAX];
    free(TAKE_PTR(a->drill.cut));
    packet_cut_end(ROLE, mark_path(a, path));
}

static void on_end(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    if (!a->drill.silent || a->stopping)
        return;
    log_info("drill-ends", "drill=%s", a->drill.name);
    if (a->drill.cut == NULL) {
        set_silent(a, false);
        return;
    }
    end_cut(a);
    a->drill.silent = false;
}

/* The answer to the order is out by now. */
static void on_cut(uv_timer_t *timer)
{
    struct agent *a = timer->data;
    struct error err = {.code = 0};
    if (a->stopping)
        return;
    if (packet_cut_begin(a->drill.cut, &err) < 0) {
        log_error("drill-failed", "drill=%s why=\"%s\"", a->drill.name, err.text);
        end_cut(a);
        a->drill.silent = false;
        return;
    }
    uv_timer_start(&a->drill.timer, on_end, (uint64_t)a->drill.seconds * 1000, 0);
}

void agent_drill_init(struct agent *a)
{
    char path[AGENT_DRILL_PATH_MAX];
    packet_cut_clean(ROLE, mark_path(a, path));
    uv_timer_init(a->loop, &a->drill.timer);
    a->drill.timer.data = a;
}

static void timer_closed(uv_handle_t *handle)
{
    agent_part_closed(handle->data);
}

void agent_drill_stop(struct agent *a)
{
    if (a->drill.cut != NULL)
        end_cut(a);
    a->closing++;
    uv_close((uv_handle_t *)&a->drill.timer, timer_closed);
}

static int check_order(const struct agent *a, const struct drill_order *order, struct error *err)
{
    if (order->fault != drill_fault_SILENCE && order->fault != drill_fault_CUT)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/fault", "a host can be silent or cut off, and nothing else");
    if (order->seconds < AGENT_DRILL_SECONDS_MIN || order->seconds > AGENT_DRILL_SECONDS_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/seconds", "it must be from %u to %u: a host is lost after 5 to 6",
                               AGENT_DRILL_SECONDS_MIN, AGENT_DRILL_SECONDS_MAX);
    if (a->drill.silent)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "drill %s is under way on this host; wait for its end", a->drill.name);
    if (strcmp(a->drill.name, order->drill) == 0)
        return error_set(err, -EEXIST, ERROR_CONFLICT, "drill %s has been carried out on this host", order->drill);
    if (a->session == NULL || !a->lease_started || a->leave_done != NULL || a->left)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "this host starts or goes down");
    if (a->vm_context.disarmed)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "ha is disarmed for this host: nothing would be started elsewhere; `drover ha arm`");
    if (lease_holder_deadline(&a->lease.holder) <= agent_lease_now_ns())
        return error_set(err, -EINVAL, ERROR_CONFLICT, "this host does not hold its lease now; there is a real failure to look at");
    if (agent_tasks_running(a))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "this host works on an operation; wait for its end");
    return 0;
}

/* All is made ready, so that what cannot be done is said in the answer. The port that the server listens at stays open: for
 * the answer, and for whoever watches. */
static int prepare_cut(struct agent *a, const struct drill_order *order, struct error *err)
{
    char path[AGENT_DRILL_PATH_MAX];
    const struct packet_cut_rules rules = {.open_port = packet_cut_port(a->identity.address)};
    return packet_cut_prepare(ROLE, mark_path(a, path), &rules, &order->far, order->seconds, &a->drill.cut, err);
}

/* The answer goes out by the server's own connection, which neither silence nor cut concerns. */
static void begin(struct agent *a, struct http_request *request, const struct drill_order *order)
{
    struct bytes_writer body = {.data = NULL};
    snprintf(a->drill.name, sizeof a->drill.name, "%s", order->drill);
    a->drill.seconds = order->seconds;
    log_warning("drill-begins", "drill=%s fault=%s seconds=%u", order->drill, drill_fault_desc.names[order->fault], order->seconds);
    if (order->fault == drill_fault_CUT) {
        a->drill.silent = true; /* as seen from outside; it asks all the same, and hears nothing */
        uv_timer_start(&a->drill.timer, on_cut, AGENT_DRILL_CUT_AFTER_MS, 0);
    } else {
        uv_timer_start(&a->drill.timer, on_end, (uint64_t)order->seconds * 1000, 0);
        set_silent(a, true);
    }
    OBJECT_ENCODE(drill_order, order, &body);
    http_respond_take(request, 200, "application/json", NULL, body.data, body.size, free);
}

static void handle_order(struct agent *a, struct http_request *request)
{
    struct drill_order order = {.head = {0}};
    struct error err = {.code = 0};
    int r = OBJECT_DECODE(drill_order, (const char *)request->body, request->body_size, OBJECT_CREATE, &order, &err);
    if (r == 0)
        r = check_order(a, &order, &err);
    if (r == 0 && order.fault == drill_fault_CUT)
        r = prepare_cut(a, &order, &err);
    if (r == 0)
        begin(a, request, &order);
    if (r < 0) {
        log_info("drill-refused", "why=\"%s\"", err.text);
        http_respond_error(request, &err);
    }
    OBJECT_CLEAR(drill_order, &order);
}

static void put_observation(struct agent *a, struct host_observation *o)
{
    struct vmm_process_vcpus vcpus;
    struct local_vm *vm;
    uint64_t epoch;
    OBJECT_TEXT(host_observation, o, host, a->identity.id);
    OBJECT_SET(host_observation, o, silent, a->drill.silent);
    object_mark(&host_observation_desc, o, "vms");
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;) {
        if (vm_observe(vm, &vcpus, &epoch) < 0)
            continue;
        struct vm_observation *seen = OBJECT_ADD(host_observation, o, vms);
        OBJECT_TEXT(vm_observation, seen, id, vm_id(vm));
        OBJECT_SET(vm_observation, seen, epoch, epoch);
        OBJECT_SET(vm_observation, seen, vcpu_ns, vcpus.executed_ns);
        OBJECT_SET(vm_observation, seen, age_ms, vcpus.age_ms);
    }
}

static void handle_observation(struct agent *a, struct http_request *request)
{
    struct host_observation o = {.head = {0}};
    struct bytes_writer body = {.data = NULL};
    put_observation(a, &o);
    OBJECT_ENCODE(host_observation, &o, &body);
    OBJECT_CLEAR(host_observation, &o);
    http_respond_take(request, 200, "application/json", "Cache-Control: no-store\r\n", body.data, body.size, free);
}

bool agent_drill_handle(struct agent *a, struct http_request *request)
{
    if (request->method == HTTP_POST && strcmp(request->path, "/v1/drill") == 0)
        handle_order(a, request);
    else if (request->method == HTTP_GET && strcmp(request->path, "/v1/observation") == 0)
        handle_observation(a, request);
    else
        return false;
    return true;
}
