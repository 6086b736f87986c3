/* May a backup be booted, to see whether it comes up, and where? For requests and for policies. Pure. */
#ifndef CONTROLLER_COMMAND_BOOT_PLAN_H
#define CONTROLLER_COMMAND_BOOT_PLAN_H

#include "controller/fsm/state.h"

#define BOOT_PLAN_TIMEOUT_S 300u /* where nobody says */

struct boot_wish {
    const char *wait_for; /* NULL: as the VM's label says, or any of the usual signs */
    uint32_t timeout_s;   /* 0: BOOT_PLAN_TIMEOUT_S */
};

/* Fill *operation (zeroed; the caller clears it) but for its id with the boot of @backup. Refusals name what is wrong with the backup's
 * definition or with the VM's label (ERROR_INVALID, ERROR_NOT_FOUND), which hosts have no room (ERROR_NO_HOST), or that each that has
 * boots one already (ERROR_CONFLICT). */
int boot_plan(const struct state *state, const struct record *backup, const struct boot_wish *wish, struct operation *operation,
              struct error *err);

#endif
