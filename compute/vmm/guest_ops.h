/* A machine behind the vtable that migration/ knows (migration/guest.h). */
#ifndef COMPUTE_VMM_GUEST_OPS_H
#define COMPUTE_VMM_GUEST_OPS_H

#include "compute/vmm/machine.h"
#include "migration/guest.h"

struct machine_guest {
    struct guest guest; /* hand this to migration/ */
    struct machine *machine;
    bool tracking;
};

/* Lives no longer than @m. Its functions are called on the control loop's thread. */
void machine_guest_init(struct machine_guest *g, struct machine *m);

#endif
