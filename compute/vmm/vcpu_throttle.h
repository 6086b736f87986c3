/* Slows a machine's vCPUs down, so that a guest that writes memory faster than it can be sent can be migrated after all:
 * those that write stand still for so many percent of each VCPU_THROTTLE_PERIOD_MS. Short periods, so that a guest feels a
 * slower machine and not stops: no stop is longer than one period.
 *
 * Who writes is told by KVM's counters (kvm_vcpu_faults), looked at each VCPU_THROTTLE_LOOK_PERIODS: with the dirty log on
 * who writes much has many faults. Those who do not write keep their speed. All are slowed where nothing is told, and from
 * VCPU_THROTTLE_ALL_PERCENT on: then the choice has not helped, and might be wrong.
 *
 * A thread of its own holds and releases (vcpu_set_slow); it is there from the first percent to the finish.
 * Threads: vcpu_throttle_set and _finish from one at a time, without the device lock. */
#ifndef COMPUTE_VMM_VCPU_THROTTLE_H
#define COMPUTE_VMM_VCPU_THROTTLE_H

#include "compute/vmm/vcpu.h"

#define VCPU_THROTTLE_PERIOD_MS 20u
#define VCPU_THROTTLE_PERCENT_MAX 99u
#define VCPU_THROTTLE_ALL_PERCENT 95u
#define VCPU_THROTTLE_LOOK_PERIODS 5u
#define VCPU_THROTTLE_FAULTS_MIN 64u /* of all together, between two looks: fewer tell nothing */

struct vcpu_throttle {
    struct vcpu_set *vcpus;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    unsigned percent; /* 0: not at all */
    bool ending;
    /* the thread's: */
    unsigned periods;
    uint64_t faults[KVM_VCPUS_MAX]; /* at the last look */
    uint64_t writers;               /* bits */
};

void vcpu_throttle_init(struct vcpu_throttle *t, struct vcpu_set *vcpus);
/* The vCPUs run as they like afterwards. */
void vcpu_throttle_finish(struct vcpu_throttle *t);
/* At most VCPU_THROTTLE_PERCENT_MAX. Where no thread can be started the guest stays as fast as it was. */
void vcpu_throttle_set(struct vcpu_throttle *t, unsigned percent);
/* Exposed for tests: who writes, of @count vCPUs with so many faults since the last look; @before where that tells nothing. */
uint64_t vcpu_throttle_choose(const uint64_t *faults, unsigned count, uint64_t before);

#endif
