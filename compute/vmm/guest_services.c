/* Balloon and agent's channel of a machine: see guest_services.h. */
#include "compute/vmm/guest_services.h"

#include "compute/vmm/devices/balloon/balloon.h"
#include "compute/vmm/devices/vconsole/vconsole.h"

enum { AGENT_PORT = 0, SHUTDOWN_MS = 10000 };

static size_t agent_send(void *arg, const uint8_t *data, size_t size)
{
    struct guest_services *s = arg;
    return vconsole_input(s->channel, AGENT_PORT, data, size);
}

static void on_output(void *arg, const uint8_t *data, size_t size)
{
    struct guest_services *s = arg;
    guest_agent_input(&s->agent, data, size);
}

static void on_opened(void *arg, bool open)
{
    struct guest_services *s = arg;
    guest_agent_opened(&s->agent, open);
}

static void on_room(void *arg)
{
    struct guest_services *s = arg;
    guest_agent_flush(&s->agent);
}

int guest_balloon_create(struct guest_services *s, struct guest_memory *memory, struct error *err)
{
    return balloon_create(memory, &s->balloon, err);
}

int guest_channel_create(struct guest_services *s, struct guest_memory *memory, struct io_loop *loop,
                         struct error *err)
{
    struct vconsole_port_options port = {
        .name = GUEST_AGENT_PORT, .output = on_output, .opened = on_opened, .room = on_room, .arg = s};
    int code = vconsole_create(&port, 1, memory, &s->channel, err);
    if (code == 0)
        guest_agent_init(&s->agent, loop, agent_send, s);
    return code;
}

bool guest_services_ask_shutdown(struct guest_services *s)
{
    if (s->channel == NULL || s->agent.state == GUEST_AGENT_CLOSED)
        return false;
    json_t *arguments = json_pack("{s:s}", "mode", "powerdown");
    int code = guest_agent_call(&s->agent, "guest-shutdown", arguments, true, SHUTDOWN_MS, NULL, NULL, NULL);
    json_decref(arguments);
    return code == 0;
}

void guest_services_finish(struct guest_services *s)
{
    if (s->channel != NULL)
        guest_agent_finish(&s->agent);
    s->channel = s->balloon = NULL;
}
