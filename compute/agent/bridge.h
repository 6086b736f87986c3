/* Bridges of networks on this host. A bridge that is there is used as it is; one that is missing is made, with its way
 * out (an uplink, or a VLAN on it), and removed again when no VM uses it. What was made by us carries the alias
 * "drover <network id>" (ip link shows it): no list has to be kept, and nothing of the host's own is ever removed.
 *
 *      network, no VLAN                     network with VLAN 42
 *   tap  tap  uplink                      tap  tap  dl<digits> (VLAN 42)
 *     \   |   /                             \   |   /     \
 *      bridge                                bridge        uplink
 *
 * Blocking; one call at a time (host_network.c has the lock). */
#ifndef COMPUTE_AGENT_BRIDGE_H
#define COMPUTE_AGENT_BRIDGE_H

#include "common/error.h"
#include "compute/agent/netlink.h"
#include "schema/objects.h"

#define BRIDGE_MTU_DEFAULT 1500u

/* Its bridge's name on every host: the one that was given, or "db" and the first digits of its id. */
void bridge_name(const struct network *network, char buffer[NETLINK_NAME_SIZE]);
/* The bridge, up, with its way out. -ENODEV: the uplink is missing; -EBUSY: the uplink is the host's own way or another
 * bridge's; -EINVAL: an interface of that name is no bridge. Words say the cure. */
int bridge_ensure(struct netlink *nl, const struct network *network, struct error *err);
/* Remove every bridge of ours that no tap is left on, with its VLAN interface. */
int bridge_sweep(struct netlink *nl, struct error *err);

#endif
