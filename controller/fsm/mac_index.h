/* How many NICs have which MAC address, over all VMs, whatever network or bridge they are on: so that an address that is
 * drawn is nobody's yet. A user may give the same one twice on two bridges, which is his affair; within a network it is
 * refused (address_pool.h). Follows from the VMs, kept beside them by state.c. */
#ifndef CONTROLLER_FSM_MAC_INDEX_H
#define CONTROLLER_FSM_MAC_INDEX_H

#include "controller/fsm/state.h"

void mac_index_add(struct map *index, const struct vm *vm);
void mac_index_remove(struct map *index, const struct vm *vm);
void mac_index_finish(struct map *index);
/* NICs with @mac, in capitals or not. */
unsigned mac_index_count(const struct map *index, const char *mac);
/* Has any NIC of any VM this address? */
bool state_mac_in_use(const struct state *state, const char *mac);

#endif
