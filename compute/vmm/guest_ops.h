/* A machine behind the vtable that migration/ knows (migration/guest.h). */
#ifndef COMPUTE_VMM_GUEST_OPS_H
#define COMPUTE_VMM_GUEST_OPS_H

#include "compute/vmm/control_gate.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/vcpu_throttle.h"
#include "migration/guest.h"

struct machine_guest {
    struct guest guest; /* hand this to migration/ */
    struct machine *machine;
    struct control_gate *gate; /* to the control loop, from another thread; NULL: we are there. Borrowed */
    struct vcpu_throttle throttle;
    bool tracking;
    bool was_paused; /* by its user, when it was stopped last */
};

/* Lives no longer than @m. Its functions are called on the control loop's thread or, with @gate, on one other. */
void machine_guest_init(struct machine_guest *g, struct machine *m, struct control_gate *gate);
void machine_guest_finish(struct machine_guest *g);

#endif
