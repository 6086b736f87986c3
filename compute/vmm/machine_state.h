/* The state of a whole machine, taken out and put back: one section of the stream (migration/stream.h) for each part.
 *
 *   "clock"       kvmclock and when it was read
 *   "vcpu<N>"     vcpu_state.h
 *   "chips"       PICs, IOAPIC, PIT
 *   "pci"         pci_state.h
 *   device names  each device's own (device.h)
 *
 * Taken out: clock, vCPUs, chips, bus, devices; all vCPUs parked and all devices paused.
 * Put back, into a machine of the same description that has not run, after its memory:
 *   1. everything of the vCPUs is read and judged: well-formed, and their CPUID no more than this host has;
 *   2. for each vCPU: rate of the TSC, CPUID, state without the deadline timer;
 *   3. chips, bus, devices (which make GSI routes and doorbells anew);
 *   4. kvmclock; TSCs set to agree with it and with each other; deadline timers.
 * Afterwards machine_resume tells every device to look at its queues and raise its interrupts once, for eventfds
 * carry nothing over (an interrupt that was under way in an irqfd at the save is thereby raised again), and tells
 * kvmclock that the guest stood still. A state that cannot be put back is an error, whatever it is; the machine must
 * then not run.
 *
 * The guest's clocks go on where they stood: the time in between is not seen. The TSC keeps its rate where the host's
 * is within 250 ppm or the host can scale; otherwise the machine is refused.
 *
 * Threads: the control loop's, device lock not held. */
#ifndef COMPUTE_VMM_MACHINE_STATE_H
#define COMPUTE_VMM_MACHINE_STATE_H

#include "compute/vmm/machine.h"
#include "migration/stream.h"

int machine_state_save(struct machine *m, struct stream_writer *out, struct error *err);
int machine_state_load(struct machine *m, struct stream_states *states, struct error *err);
/* The judgements of step 1, one by one: -ENOTSUP in words. @here: the TSC's rate on this host. */
int machine_state_judge_cpuid(struct machine *m, unsigned vcpu, const struct kvm_cpuid2 *cpuid, struct error *err);
int machine_state_judge_msr(const struct machine *m, uint32_t index, struct error *err);
int machine_state_judge_tsc(const struct machine *m, uint32_t here, uint32_t wanted, struct error *err);
/* What the stream's header says of @m. @ret_description must be zeroed; the caller clears it. */
void machine_description_fill(const struct machine *m, struct machine_description *ret_description);
/* Is a machine made of @config one that @saved can be put into? -EINVAL naming the field. */
int machine_description_check(const struct machine_description *saved, const struct vmm_config *config,
                              struct error *err);

/* The offset of a guest's TSC on this host such that it agrees with kvmclock as it did on the other: at clock reading
 * @clock_there (ns) the guest's TSC was @guest_tsc; here @clock_here was read when the host's was @host_tsc. Linux,
 * Documentation/virt/kvm/devices/vcpu.rst §4.1. */
uint64_t machine_state_tsc_offset(uint64_t guest_tsc, uint64_t clock_there, uint64_t clock_here, uint64_t host_tsc,
                                  uint32_t khz);

#endif
