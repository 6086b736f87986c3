/* DHCP on the taps of this host's VMs: a packet socket on each tap whose network wants it, watched by the loop. The answer
 * goes to the tap itself, past bridge and packet rules; nothing of it is seen by anybody else.
 *
 * Bounded: a guest gets DHCP_ANSWERS_S answers a second, the rest is dropped by the socket's own small buffer. */
#ifndef COMPUTE_AGENT_DHCP_SERVER_H
#define COMPUTE_AGENT_DHCP_SERVER_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "compute/agent/dhcp_packet.h"
#include "compute/agent/host_network.h"

#define DHCP_ANSWERS_S 20u

struct dhcp_server;

struct dhcp_server *dhcp_server_create(uv_loop_t *loop, struct host_network *network);
/* Sockets for the taps that are there now and want it; quick where nothing has changed. A tap that is not there yet is
 * tried again by the next call. Failures are logged, ignoring: the guest gets no answer. */
void dhcp_server_sync(struct dhcp_server *server);
/* NULL is fine. The loop releases the rest; @closed comes when it has. */
void dhcp_server_close(struct dhcp_server *server, void (*closed)(void *arg), void *arg);

/* The lease of a NIC with an IPv4 address; false where it has none. Pure. */
bool dhcp_server_lease(const struct vm_order *order, const struct vm_nic *nic, const struct network *network,
                       struct dhcp_lease *ret);

#endif
