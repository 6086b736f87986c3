/* KVM's part of a machine, played without KVM: for tests, where there is no /dev/kvm. Never in a cluster: no configuration
 * asks for it, only drover-vmm --accel none.
 *
 * The seam is the one that KVM has itself: its ioctls. kvm.c puts every one of them here instead, and nothing above or
 * beside it differs: vCPU threads, exits, buses, devices, routes, doorbells, irqfds, dirty log, snapshots, reset. What
 * differs is who the guest is: a program in C (script_guest.h) on a thread of its own, in place of vCPU 0's processor.
 *
 *   vCPU 0's thread: KVM_RUN                           the guest's thread
 *       IDLE   nothing to do: sleeps on irqfds    <--- its step is done
 *        |     interrupt or tick ----------------->    next step
 *       STEP   waits                                   runs; touches memory by itself
 *       EXIT   returns from KVM_RUN, the access   <--- port or address that is no memory: waits
 *        |     is carried out, KVM_RUN again ----->    goes on with what was read
 *
 * As with KVM, a vCPU that was kicked comes to rest with no access pending; here between two steps, of some milliseconds
 * at most, and not between two instructions. Between steps the guest has nothing outside its memory and its registers,
 * so it is saved and restored with them.
 * State that KVM keeps (registers, chips, PIT, MSRs, local APICs) is kept as given and means nothing, but for rip (where
 * the guest is: not begun, or at work), rbx (its start information) and what is runnable. Other vCPUs than 0 stay idle.
 *
 * Threads: as kvm.h. */
#ifndef COMPUTE_VMM_ACCEL_NONE_H
#define COMPUTE_VMM_ACCEL_NONE_H

#include "common/base.h"
#include "common/error.h"

struct accel_none;
struct kvm_vcpu;

struct accel_none *accel_none_create(void);
/* NULL is allowed. Its vCPUs are finished. */
void accel_none_destroy(struct accel_none *a);
/* As ioctl(2) on /dev/kvm, on the VM, or on @vcpu: -1 with errno. */
int accel_none_ask(struct accel_none *a, const struct kvm_vcpu *vcpu, unsigned long request, void *argument);
/* Ends the guest's thread. KVM_RUN is not under way. */
void accel_none_vcpu_finish(struct accel_none *a, const struct kvm_vcpu *vcpu);

#endif
