/* What another machine must be able to do before memory is sent to it: processor and devices, in two sections of the
 * stream (migration/migrate_wire.h) that go ahead of everything.
 *
 *   "check-cpu"      u32 kHz of the TSC, u32 entries, each struct kvm_cpuid_entry2; u32 MSRs, each u32
 *   "check-devices"  u16 devices, each u8 length and name, in the machine's order
 *
 * Threads: the control loop's. */
#ifndef COMPUTE_VMM_MACHINE_CHECK_H
#define COMPUTE_VMM_MACHINE_CHECK_H

#include "compute/vmm/machine.h"
#include "migration/stream.h"

int machine_check_save(struct machine *m, struct stream_writer *out, struct error *err);
/* Does @m do? -ENOTSUP, -EINVAL, naming what it lacks; -EBADMSG for bytes that are not as above. */
int machine_check_load(struct machine *m, struct stream_states *states, struct error *err);

#endif
