/* The network of the simulator: FIFO links between any two actors (like TCP), with delay, loss and cuts. Payloads are
 * opaque; controllers and agents use the same network. */
#ifndef TESTS_SIM_SIM_NETWORK_H
#define TESTS_SIM_SIM_NETWORK_H

#include "tests/sim/sim_event.h"

#define SIM_ACTORS_MAX 24u /* ids 1..23 */

struct sim_network {
    struct sim *sim;
    unsigned loss_per_thousand;                     /* a message lost although both sides are well */
    bool cut[SIM_ACTORS_MAX][SIM_ACTORS_MAX];       /* [from][to] */
    uint64_t last_us[SIM_ACTORS_MAX][SIM_ACTORS_MAX]; /* when the newest message on the link arrives */
};

/* A message: made by the sender, freed by whoever gets it or by `drop`. */
typedef void (*sim_deliver_fn)(struct sim_actor *to, struct sim_actor *from, void *message);

void sim_network_init(struct sim_network *network, struct sim *sim);
/* Send; true where the message is under way, false where the link is cut, the peer is down, or it is lost: then
 * @drop(message) was called. A cut made while it is under way loses it, too. */
bool sim_network_send(struct sim_network *network, struct sim_actor *from, struct sim_actor *to, void *message,
                      sim_deliver_fn deliver, void (*drop)(void *message));

void sim_network_heal(struct sim_network *network); /* mend all links */
/* Cut @id off from everybody: what it sends, what it is sent, or both. */
void sim_network_isolate(struct sim_network *network, unsigned id, bool outgoing, bool incoming);
/* Random sides over all ids below @count; with @one_way only one direction is lost. */
void sim_network_split(struct sim_network *network, unsigned count, bool one_way);

#endif
