/* Raft's configuration follows the table of controllers, one change at a time, on a ready leader:
 *
 *   in the table, not a member or without a vote -> add (as standby, promoted when it has caught up)
 *   a member's vote differs from the table's role -> record the role; that of a voter, from when it counts for the leases of
 *                                                   hosts, once they have its support (or MEMBERSHIP_WELCOME_MS later)
 *   a member that the table does not have         -> remove
 * Level-triggered: what fails is tried again at a later tick. A removed controller keeps its raft id for ever. */
#ifndef CONTROLLER_MEMBERSHIP_H
#define CONTROLLER_MEMBERSHIP_H

#include "common/base.h"

#define MEMBERSHIP_RETRY_MS 2000u /* after a change that failed */
#define MEMBERSHIP_SAY_MS 6000u   /* a change of who counts waits for the last one: said in the log, for whom; hosts that are gone take 5.1 s */
#define MEMBERSHIP_SAY_AGAIN_MS 60000u
#define MEMBERSHIP_WELCOME_MS 30000u /* a host that does not reach it is no reason to have one voter less for ever */

struct service;

/* Look, and begin at most one change. Cheap when nothing is to be done. */
void membership_tick(struct service *service);

/* Would no host lose its lease if this controller counted? Takes the state's lock. */
bool membership_welcomes(struct service *service, uint64_t raft_id);

#endif
