/* A live restore, in the task's child: the VM's disks are made empty, with the mark that all of them is missing, drover-backup serves the
 * backup at a socket that the VM's user may connect to, and the VMM, once it is started, reads there what the guest wants and
 * fills in the rest (block/layer_source.h).
 *
 *   listen --> serve (a thread; again and again) --serving--> disks placed --> "ready" --> follow the VMM --all is there--> done
 *                  |                                             |
 *                  '-- cannot: failed, nothing was changed       '-- from here on nothing fails: it is tried again, for the guest
 *                                                                    has nothing else to read from
 *
 * Begun again with the disks placed (work->placed) it goes on with "ready". A VM that is off is waited for: what is missing comes
 * when it runs. The socket lies in a directory where only root writes. All calls block. */
#ifndef COMPUTE_AGENT_BACKUP_LIVE_H
#define COMPUTE_AGENT_BACKUP_LIVE_H

#include "schema/objects.h"

/* -ENOTSUP, -ENOENT, ... in words, before anything is placed; else it returns when all is there. The process is to end then:
 * drover-backup ends with it. */
int backup_live_restore(struct backup_work *work, struct task_seen *ret_seen, struct error *err);

#endif
