/* Raft's configuration follows the table of controllers, one change at a time, on a ready leader:
 *
 *   in the table, not a member or without a vote -> add (as standby, promoted when it has caught up)
 *   a member's vote differs from the table's role -> record the role
 *   a member that the table does not have         -> remove
 * Level-triggered: what fails is tried again at a later tick. A removed controller keeps its raft id for ever. */
#ifndef CONTROLLER_MEMBERSHIP_H
#define CONTROLLER_MEMBERSHIP_H

#include "common/base.h"

#define MEMBERSHIP_RETRY_MS 2000u /* after a change that failed */

struct service;

/* Look, and begin at most one change. Cheap when nothing is to be done. */
void membership_tick(struct service *service);

#endif
