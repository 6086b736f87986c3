/* The VM that shows whether a backup boots: as the backup's definition has it, but with disks of its own that are read from the backup, no
 * network, no lease and no name in the cluster; its id is the operation's. Pure; reads the state. */
#ifndef CONTROLLER_FSM_BACKUP_BOOT_H
#define CONTROLLER_FSM_BACKUP_BOOT_H

#include "controller/fsm/state.h"

#define BACKUP_BOOT_LABEL "boot-wait-for" /* of VMs: what shows that they have come up */

/* *ret_vm (zeroed; the caller clears it after either result) as a host is to start it under @id. -EINVAL, -ENOENT in words with the
 * cure: the definition comes from a store, and what it needs may not be here. */
int backup_boot_vm(const struct state *state, const struct backup *backup, const char *id, struct vm *ret_vm, struct error *err);
/* The operation that boots a backup on @host; NULL: none does. */
const struct operation *backup_boot_on(const struct record *host);

#endif
