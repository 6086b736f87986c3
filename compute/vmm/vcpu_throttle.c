/* Hold, wait, release, wait; see vcpu_throttle.h. */
#include "compute/vmm/vcpu_throttle.h"

#include <errno.h>
#include <time.h>

#include "common/log.h"

void vcpu_throttle_init(struct vcpu_throttle *t, struct vcpu_set *vcpus)
{
    pthread_condattr_t attributes;
    *t = (struct vcpu_throttle){.vcpus = vcpus, .writers = UINT64_MAX};
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* With the lock held: until @us have passed, or something has changed. */
static void wait_us(struct vcpu_throttle *t, uint64_t us)
{
    struct timespec until;
    unsigned percent = t->percent;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)us * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (!t->ending && t->percent == percent && pthread_cond_timedwait(&t->changed, &t->lock, &until) == 0)
        continue;
}

/* A quarter of what each would have if all wrote the same. */
uint64_t vcpu_throttle_choose(const uint64_t *faults, unsigned count, uint64_t before)
{
    uint64_t sum = 0, writers = 0;
    for (unsigned i = 0; i < count; i++)
        sum += faults[i];
    if (sum < VCPU_THROTTLE_FAULTS_MIN)
        return before;
    for (unsigned i = 0; i < count; i++)
        if (faults[i] * count * 4 >= sum)
            writers |= UINT64_C(1) << i;
    return writers;
}

static void writers_look(struct vcpu_throttle *t)
{
    uint64_t since[KVM_VCPUS_MAX];
    if (t->periods++ % VCPU_THROTTLE_LOOK_PERIODS != 0)
        return;
    for (unsigned i = 0; i < t->vcpus->count; i++) {
        uint64_t now = kvm_vcpu_faults(&t->vcpus->vcpus[i].kvm);
        since[i] = now - t->faults[i];
        t->faults[i] = now;
    }
    if (t->periods > 1) /* the first look knows only all that ever was */
        t->writers = vcpu_throttle_choose(since, t->vcpus->count, t->writers);
}

static void *throttle_main(void *arg)
{
    struct vcpu_throttle *t = arg;
    sandbox_enter_or_end(t->vcpus->sandbox, SANDBOX_VCPU); /* time, futexes, kicks, and reading KVM's counters */
    pthread_mutex_lock(&t->lock);
    while (!t->ending) {
        if (t->percent == 0) {
            t->periods = 0;
            t->writers = UINT64_MAX;
            pthread_cond_wait(&t->changed, &t->lock);
            continue;
        }
        writers_look(t);
        uint64_t hold_us = VCPU_THROTTLE_PERIOD_MS * 10ull * t->percent;
        vcpu_set_slow(t->vcpus, t->percent >= VCPU_THROTTLE_ALL_PERCENT ? UINT64_MAX : t->writers);
        wait_us(t, hold_us);
        vcpu_set_slow(t->vcpus, 0);
        wait_us(t, VCPU_THROTTLE_PERIOD_MS * 1000ull - hold_us);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void set(struct vcpu_throttle *t, unsigned percent, bool ending)
{
    pthread_mutex_lock(&t->lock);
    t->percent = MIN(percent, VCPU_THROTTLE_PERCENT_MAX);
    t->ending = ending;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

void vcpu_throttle_set(struct vcpu_throttle *t, unsigned percent)
{
    set(t, percent, false);
    if (t->started || percent == 0)
        return;
    int code = pthread_create(&t->thread, NULL, throttle_main, t);
    t->started = code == 0;
    if (t->started)
        pthread_setname_np(t->thread, "throttle");
    else
        log_warning("not-throttled", "why=\"no thread\" errno=%d", code);
}

void vcpu_throttle_finish(struct vcpu_throttle *t)
{
    set(t, 0, true);
    if (t->started)
        pthread_join(t->thread, NULL);
    t->started = false;
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
}
