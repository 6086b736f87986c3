/* Networks' addresses: which are whose, which is the next free one, and whether a network or security group makes sense.
 *
 * Who has an address follows from the VMs: state.addresses, an index by "<network>|<address>" (MAC addresses too), is
 * kept beside them. An address is chosen where a VM is decided on, and chosen anew where the command is applied if
 * another VM took it meanwhile: the lowest free one, so that every replica chooses the same. Pure. */
#ifndef CONTROLLER_FSM_ADDRESS_POOL_H
#define CONTROLLER_FSM_ADDRESS_POOL_H

#include "common/ip_address.h"
#include "controller/fsm/state.h"

#define ADDRESS_SCAN_MAX 65536u /* addresses of a pool that are looked at for a free one */

/* Bridges, subnets, gateways and pools against one another. -EINVAL with the field. */
int network_check(const struct state *state, const struct network *network, struct error *err);
/* Ports and the other side of each rule of @group, which may be a patch; remote groups become names. @own_id, @own_name:
 * the group itself, which its rules may name. */
int security_group_check(const struct state *state, const char *own_id, const char *own_name, struct security_group *group,
                         struct error *err);
/* Networks, groups and addresses of a VM that is being made or changed (by its id: what it has already stays its own): names are resolved, addresses checked or given.
 * -EINVAL, -ENOENT, -EEXIST, -ENOSPC with the field. */
int vm_nics_resolve(const struct state *state, struct vm *vm, struct error *err);

/* Does @vm have a NIC in the security group @name? */
bool vm_in_group(const struct vm *vm, const char *name);
bool vm_on_network(const struct vm *vm, const char *name);

/* The index: for state.c. add: false where another VM has an address already (nothing is added then). */
bool address_index_add(struct map *index, struct record *vm);
void address_index_remove(struct map *index, const struct record *vm);
size_t address_index_count(const struct vm *vm);
void address_index_finish(struct map *index);
/* The VM that has @address (IP or MAC) on @network, or NULL. */
const struct record *address_owner_of(const struct state *state, const char *network, const char *address);

#endif
