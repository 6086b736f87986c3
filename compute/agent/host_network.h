/* The networks of this host as a whole: which VMs have NICs here, on which networks, and the bridges, taps and packet rules that
 * follow from that. The orders say what is wanted; this makes it so, and again after a restart of the agent.
 *
 *   orders --> host_network_learn (networks, groups; networks.json) --> host_network_refresh: rules anew
 *   VM that is to start --> host_network_plug: bridge, tap, rules -- and only then the VMM
 *   VM that goes --> host_network_unplug: tap, rules, unused bridges
 *   agent starts --> host_network_create reads networks.json, host_network_adopt for each VM, host_network_apply once
 *
 * Threads: any. `facts` is held for moments; `kernel` for as long as nft runs, so that two changes do not cross. */
#ifndef COMPUTE_AGENT_HOST_NETWORK_H
#define COMPUTE_AGENT_HOST_NETWORK_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

#define HOST_NETWORK_JSON_BYTES_MAX (64u << 20)

struct host_network;

/* @data_dir: where networks.json is; -ENOENT there is fine. A file that cannot be read is an error: without it rules
 * would be too few. */
int host_network_create(const char *data_dir, struct host_network **ret, struct error *err);
void host_network_destroy(struct host_network *hn); /* NULL is fine; the kernel's state stays */

/* Networks and groups of an answer of the controllers. *ret_changed: something differs from before: rules are to be
 * applied anew. Written to networks.json before it counts. */
int host_network_learn(struct host_network *hn, const struct node_orders *orders, bool *ret_changed, struct error *err);
/* A VM that is here already: remember its NICs. */
void host_network_adopt(struct host_network *hn, const struct vm_order *order);
/* Rules for all that is known, in one transaction; skipped where nothing differs from what was applied. Blocking. */
int host_network_apply(struct host_network *hn, struct error *err);
/* Bridges and taps of the VM, and the rules for them; taps that it needs no more go. After 0 its VMM may start. @owner: of the taps. @make_bridges: a
 * plain bridge (no network) that is missing is made. Blocking. */
int host_network_plug(struct host_network *hn, const struct vm_order *order, uid_t owner, bool make_bridges, struct error *err);
/* Taps, rules and unused bridges of the VM go. -EBUSY: a VMM has a tap open. Blocking. */
int host_network_unplug(struct host_network *hn, const char *vm_id, struct error *err);

/* What DHCP has to answer: raised by each change of it. */
uint64_t host_network_serial(struct host_network *hn);
/* Call @each for every NIC whose network wants DHCP answered and that has an IPv4 address; everything is borrowed for
 * the call, which must not call back into @hn. */
void host_network_each_lease(struct host_network *hn,
                             void (*each)(void *arg, const char *tap, const struct vm_order *order, const struct vm_nic *nic,
                                          const struct network *network),
                             void *arg);
/* The network @name, or NULL: a copy that the caller clears and frees. */
struct network *host_network_find(struct host_network *hn, const char *name);

#endif
