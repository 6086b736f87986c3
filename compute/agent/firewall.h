/* Packet rules of VMs' taps as nftables JSON (libnftables-json(5)): which packets of a VM are its own, and which its
 * security groups let pass. All of it is one table, "bridge drover", replaced as a whole in one transaction, so that
 * rules are never half there and giving them again does no harm. The text is made here (pure); firewall_apply hands it
 * to `nft -j`, for libnftables is under a licence that cannot be linked.
 *
 *   frame of a guest --> prerouting -300 "spoof": its own MAC, IP, ARP and ND addresses; no DHCP server, no router
 *                    --> conntrack -200 --> prerouting -150 "from": outbound rules of its security groups, if there are
 *   frame for a guest -> postrouting 0 "to": inbound rules of its security groups; without a group all passes
 *
 * Connection tracking of bridges (nf_conntrack_bridge, Linux 5.3) says what is an answer. A kernel without it gets
 * rules that guess: TCP that does not ask for a connection, UDP from where the VM itself has sent to within a
 * minute, ICMP answers and errors. */
#ifndef COMPUTE_AGENT_FIREWALL_H
#define COMPUTE_AGENT_FIREWALL_H

#include "common/bytes.h"
#include "common/error.h"
#include "schema/objects.h"

#define FIREWALL_DEADLINE_MS 30000 /* for one run of nft */

/* One NIC; everything is borrowed. */
struct firewall_nic {
    const char *tap;
    const struct vm_nic *nic; /* with its MAC address */
    bool anti_spoof;
    bool dhcp; /* DHCP is answered on the tap itself: no other answer passes, and no question leaves */
};
struct firewall_input {
    const struct firewall_nic *nics;
    size_t nic_count;
    const struct group_order *groups;
    size_t group_count;
    bool stateless; /* without connection tracking */
};

/* Append the transaction. Where no NIC needs a rule it only removes the table. A group that @input has not lets nothing
 * pass. */
void firewall_text(const struct firewall_input *input, struct bytes_writer *out);
/* Does any NIC need rules? */
bool firewall_needed(const struct firewall_input *input);
/* Carry it out. Blocking. -ENOENT: nft is not installed; -EIO with its first words: it refused, and nothing has changed. */
int firewall_apply(const void *text, size_t size, struct error *err);

#endif
