/* Slows a machine's vCPUs down, so that a guest that writes memory faster than it can be sent can be migrated after all:
 * all of them stand still for so many percent of each VCPU_THROTTLE_PERIOD_MS. Short periods, so that a guest feels a
 * slower machine and not stops: no stop is longer than one period.
 *
 * A thread of its own holds and releases (VCPU_HOLD_THROTTLE); it is there from the first percent to the finish.
 * Threads: vcpu_throttle_set and _finish from one at a time, without the device lock. */
#ifndef COMPUTE_VMM_VCPU_THROTTLE_H
#define COMPUTE_VMM_VCPU_THROTTLE_H

#include "compute/vmm/vcpu.h"

#define VCPU_THROTTLE_PERIOD_MS 20u
#define VCPU_THROTTLE_PERCENT_MAX 99u

struct vcpu_throttle {
    struct vcpu_set *vcpus;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    unsigned percent; /* 0: not at all */
    bool ending;
};

void vcpu_throttle_init(struct vcpu_throttle *t, struct vcpu_set *vcpus);
/* The vCPUs run as they like afterwards. */
void vcpu_throttle_finish(struct vcpu_throttle *t);
/* At most VCPU_THROTTLE_PERCENT_MAX. Where no thread can be started the guest stays as fast as it was. */
void vcpu_throttle_set(struct vcpu_throttle *t, unsigned percent);

#endif
