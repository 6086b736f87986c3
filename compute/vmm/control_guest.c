/* Control of what the guest does for us: the balloon, and its agent. Answers of the agent come from the I/O thread and
 * are settled on the control loop. */
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/devices/balloon/balloon.h"

enum { AGENT_TIMEOUT_MS = 10000, FREEZE_LIMIT_MS = 10000, INTERFACES_MAX = 64, ADDRESSES_MAX = 32 };

static int no_service(const char *what, const char *field, struct error *err)
{
    return error_set(err, -ENODEV, ERROR_CONFLICT, "this VM has no %s; give \"%s\": true in its configuration", what, field);
}

/* ---- balloon ---- */

static void told(struct vmm_balloon *b, const struct balloon_stats *stats)
{
    const uint64_t unknown = UINT64_MAX, *v = stats->values;
    if (v[VIRTIO_BALLOON_S_MEMFREE] != unknown)
        OBJECT_SET(vmm_balloon, b, guest_free_bytes, v[VIRTIO_BALLOON_S_MEMFREE]);
    if (v[VIRTIO_BALLOON_S_AVAIL] != unknown)
        OBJECT_SET(vmm_balloon, b, guest_available_bytes, v[VIRTIO_BALLOON_S_AVAIL]);
    if (v[VIRTIO_BALLOON_S_MEMTOT] != unknown)
        OBJECT_SET(vmm_balloon, b, guest_total_bytes, v[VIRTIO_BALLOON_S_MEMTOT]);
    OBJECT_SET(vmm_balloon, b, guest_reports, stats->reports);
}

int control_balloon_show(struct control_call *call, struct error *err)
{
    struct machine *m = call->machine;
    struct vmm_balloon answer = {.target_bytes = 0};
    if (m->guest.balloon == NULL)
        return no_service("balloon", "balloon", err);
    pthread_mutex_lock(&m->device_lock);
    const struct balloon *b = CONTAINER_OF(m->guest.balloon, struct balloon, virtio);
    OBJECT_SET(vmm_balloon, &answer, target_bytes, balloon_target_bytes(m->guest.balloon));
    OBJECT_SET(vmm_balloon, &answer, actual_bytes, balloon_actual_bytes(m->guest.balloon));
    OBJECT_SET(vmm_balloon, &answer, discarded_bytes, b->discarded_bytes);
    OBJECT_SET(vmm_balloon, &answer, reported_bytes, b->reported_bytes);
    told(&answer, balloon_stats_poll(m->guest.balloon));
    pthread_mutex_unlock(&m->device_lock);
    OBJECT_ENCODE(vmm_balloon, &answer, &call->answer);
    OBJECT_CLEAR(vmm_balloon, &answer);
    return 0;
}

int control_balloon_set(struct control_call *call, struct error *err)
{
    struct machine *m = call->machine;
    const struct vmm_balloon_order *order = call->body;
    if (m->guest.balloon == NULL)
        return no_service("balloon", "balloon", err);
    pthread_mutex_lock(&m->device_lock);
    int code = balloon_set_target(m->guest.balloon, order->target_bytes, err);
    pthread_mutex_unlock(&m->device_lock);
    return code < 0 ? code : control_balloon_show(call, err);
}

/* ---- agent ---- */

struct agent_request {
    struct control_call *call;
    enum vmm_agent_command command;
    int code;
    struct error err;
    json_t *answer; /* owned */
};

static void status_fill(struct machine *m, struct vmm_agent_status *status)
{
    pthread_mutex_lock(&m->device_lock);
    OBJECT_SET(vmm_agent_status, status, connected, m->guest.agent.state != GUEST_AGENT_CLOSED);
    OBJECT_SET(vmm_agent_status, status, frozen, m->guest.agent.frozen);
    pthread_mutex_unlock(&m->device_lock);
}

/* Words of the guest that go into our answers: cut, and printable. */
static char *guest_text(const json_t *value, size_t size_max)
{
    const char *text = json_string_value(value);
    char *copy = xcalloc(1, size_max + 1);
    for (size_t i = 0; text != NULL && text[i] != '\0' && i < size_max; i++)
        copy[i] = text[i] >= ' ' && text[i] < 0x7f ? text[i] : '?';
    return copy;
}

static void addresses_fill(struct vmm_guest_interface *to, const json_t *from)
{
    size_t count = MIN(json_array_size(from), (size_t)ADDRESSES_MAX);
    if (count == 0)
        return;
    to->addresses.items = xcalloc(count, sizeof(*to->addresses.items));
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(from, i);
        CLEANUP_FREE char *address = guest_text(json_object_get(entry, "ip-address"), 45);
        char text[64];
        snprintf(text, sizeof text, "%s/%u", address, (unsigned)(json_integer_value(json_object_get(entry, "prefix")) & 0xff));
        to->addresses.items[to->addresses.count++] = xstrdup(text);
    }
    object_mark(&vmm_guest_interface_desc, to, "addresses");
}

static void interfaces_fill(struct vmm_agent_status *status, const json_t *from)
{
    size_t count = MIN(json_array_size(from), (size_t)INTERFACES_MAX);
    if (count == 0)
        return;
    struct vmm_guest_interface *items = xcalloc(count, sizeof(*items));
    for (size_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(from, i);
        CLEANUP_FREE char *name = guest_text(json_object_get(entry, "name"), 63);
        CLEANUP_FREE char *mac = guest_text(json_object_get(entry, "hardware-address"), 17);
        OBJECT_TEXT(vmm_guest_interface, &items[i], name, name);
        OBJECT_TEXT(vmm_guest_interface, &items[i], mac, mac);
        addresses_fill(&items[i], json_object_get(entry, "ip-addresses"));
    }
    status->interfaces.items = items;
    status->interfaces.count = count;
    object_mark(&vmm_agent_status_desc, status, "interfaces");
}

static void on_settled(void *arg)
{
    struct agent_request *r = arg;
    struct vmm_agent_status status = {.connected = false};
    if (r->code == 0) {
        status_fill(r->call->machine, &status);
        if (json_is_integer(r->answer))
            OBJECT_SET(vmm_agent_status, &status, file_systems, (uint32_t)(json_integer_value(r->answer) & 0xffff));
        if (r->command == vmm_agent_command_ADDRESSES)
            interfaces_fill(&status, r->answer);
        OBJECT_ENCODE(vmm_agent_status, &status, &r->call->answer);
        OBJECT_CLEAR(vmm_agent_status, &status);
    }
    control_call_end(r->call, r->code, &r->err);
    json_decref(r->answer);
    free(r);
}

/* On the I/O thread, with the device lock held. */
static void on_answer(void *arg, const json_t *answer, const struct error *err)
{
    struct agent_request *r = arg;
    r->code = err->code;
    r->err = *err;
    r->answer = answer ? json_deep_copy(answer) : NULL;
    io_loop_post(r->call->machine->control, on_settled, r);
}

static int agent_ask(struct guest_agent *agent, const struct vmm_agent_order *order, struct agent_request *r,
                     struct error *err)
{
    unsigned timeout_ms = order->timeout_ms ? order->timeout_ms : AGENT_TIMEOUT_MS;
    const char *mode = order->command == vmm_agent_command_REBOOT ? "reboot" : "powerdown";
    json_t *arguments;
    int code;
    switch (order->command) {
    case vmm_agent_command_FREEZE:
        return guest_agent_freeze(agent, order->limit_ms ? order->limit_ms : FREEZE_LIMIT_MS, on_answer, r, err);
    case vmm_agent_command_THAW:
        return guest_agent_thaw(agent, on_answer, r, err);
    case vmm_agent_command_ADDRESSES:
        return guest_agent_call(agent, "guest-network-get-interfaces", NULL, false, timeout_ms, on_answer, r, err);
    case vmm_agent_command_SHUTDOWN:
    case vmm_agent_command_REBOOT:
        arguments = json_pack("{s:s}", "mode", mode);
        code = guest_agent_call(agent, "guest-shutdown", arguments, true, timeout_ms, on_answer, r, err);
        json_decref(arguments);
        return code;
    default:
        return guest_agent_call(agent, "guest-ping", NULL, false, timeout_ms, on_answer, r, err);
    }
}

int control_agent_show(struct control_call *call, struct error *err)
{
    struct vmm_agent_status status = {.connected = false};
    if (call->machine->guest.channel == NULL)
        return no_service("channel to an agent", "agent_channel", err);
    status_fill(call->machine, &status);
    OBJECT_ENCODE(vmm_agent_status, &status, &call->answer);
    OBJECT_CLEAR(vmm_agent_status, &status);
    return 0;
}

int control_agent_call(struct control_call *call, struct error *err)
{
    struct machine *m = call->machine;
    const struct vmm_agent_order *order = call->body;
    if (m->guest.channel == NULL)
        return no_service("channel to an agent", "agent_channel", err);
    struct agent_request *r = NEW(struct agent_request);
    r->call = call;
    r->command = order->command;
    pthread_mutex_lock(&m->device_lock);
    int code = agent_ask(&m->guest.agent, order, r, err);
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0)
        free(r);
    return code < 0 ? code : CONTROL_LATER;
}
