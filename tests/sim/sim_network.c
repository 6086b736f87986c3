/* Links of the simulated network. A message waits on the link in an envelope; a restarted receiver never sees what
 * was sent to the process before it (the connection is gone), which the event's incarnation takes care of. */
#include "tests/sim/sim_network.h"

#include <string.h>

struct envelope {
    struct sim_network *network;
    struct sim_actor *from, *to;
    void *message;
    sim_deliver_fn deliver;
    void (*drop)(void *message);
};

void sim_network_init(struct sim_network *network, struct sim *sim)
{
    *network = (struct sim_network){.sim = sim};
}

static void envelope_drop(void *data)
{
    struct envelope *envelope = data;

    envelope->drop(envelope->message);
    free(envelope);
}

static void envelope_arrive(struct sim *sim UNUSED, struct sim_event *event)
{
    struct envelope *envelope = event->data;

    if (envelope->network->cut[envelope->from->id][envelope->to->id]) {
        envelope_drop(envelope);
        return;
    }
    envelope->deliver(envelope->to, envelope->from, envelope->message);
    free(envelope);
}

bool sim_network_send(struct sim_network *network, struct sim_actor *from, struct sim_actor *to, void *message,
                      sim_deliver_fn deliver, void (*drop)(void *message))
{
    struct sim *sim = network->sim;
    uint64_t *last_us = &network->last_us[from->id][to->id];
    struct envelope *envelope;
    struct sim_event *event;
    uint64_t arrive_us;

    if (network->cut[from->id][to->id] || !to->up || sim_chance(sim, network->loss_per_thousand)) {
        drop(message);
        return false;
    }
    arrive_us = sim->now_us + sim_between(sim, 100, 2 * SIM_MS);
    if (sim_chance(sim, 10))
        arrive_us += sim_between(sim, 5 * SIM_MS, 200 * SIM_MS);
    *last_us = MAX(*last_us, arrive_us);
    envelope = NEW(struct envelope);
    *envelope = (struct envelope){network, from, to, message, deliver, drop};
    event = sim_after(sim, *last_us - sim->now_us, envelope_arrive, to, envelope);
    event->drop = envelope_drop;
    return true;
}

void sim_network_heal(struct sim_network *network)
{
    memset(network->cut, 0, sizeof(network->cut));
}

void sim_network_isolate(struct sim_network *network, unsigned id, bool outgoing, bool incoming)
{
    for (unsigned other = 0; other < SIM_ACTORS_MAX; other++) {
        network->cut[id][other] = network->cut[id][other] || outgoing;
        network->cut[other][id] = network->cut[other][id] || incoming;
    }
}

void sim_network_split(struct sim_network *network, unsigned count, bool one_way)
{
    unsigned side[SIM_ACTORS_MAX] = {0};

    for (unsigned id = 0; id < count; id++)
        side[id] = (unsigned)sim_below(network->sim, 2);
    for (unsigned from = 0; from < count; from++)
        for (unsigned to = 0; to < count; to++)
            network->cut[from][to] = one_way ? side[from] < side[to] : side[from] != side[to];
}
