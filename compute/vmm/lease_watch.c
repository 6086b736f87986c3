/* Every LEASE_WATCH_MS: is the deadline less than the margin away? */
#include "compute/vmm/lease_watch.h"

#include <time.h>

#include "common/log.h"

static bool lease_is_short(const struct lease *l)
{
    struct timespec now;
    uint64_t deadline_ns = lease_deadline_ns(l);
    clock_gettime(CLOCK_BOOTTIME, &now);
    return deadline_ns != 0 &&
           (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec + LEASE_MARGIN_NS >= deadline_ns;
}

static void look(struct lease_watch *w)
{
    bool hold = lease_is_short(&w->lease);
    if (hold == w->holding)
        return;
    w->holding = hold;
    if (hold) {
        __atomic_fetch_add(&w->pauses, 1, __ATOMIC_RELAXED);
        vcpu_set_hold(w->vcpus, VCPU_HOLD_LEASE, true);
        log_warning("lease-short", "vcpus=held");
    } else {
        vcpu_set_release(w->vcpus, VCPU_HOLD_LEASE);
        log_info("lease-renewed", "vcpus=released");
    }
}

static void *lease_watch_main(void *arg)
{
    struct lease_watch *w = arg;
    sandbox_enter_or_end(w->sandbox, SANDBOX_LEASE);
    while (!__atomic_load_n(&w->ending, __ATOMIC_ACQUIRE)) {
        struct timespec pause = {.tv_nsec = LEASE_WATCH_MS * 1000000l};
        look(w);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int lease_watch_start(struct lease_watch *w, const char *path, struct vcpu_set *vcpus,
                      const struct sandbox *sandbox, struct error *err)
{
    *w = (struct lease_watch){.vcpus = vcpus, .sandbox = sandbox};
    if (!path)
        return 0;
    int code = lease_init(&w->lease, path, err);
    if (code < 0)
        return code;
    look(w);
    code = pthread_create(&w->thread, NULL, lease_watch_main, w);
    if (code) {
        lease_finish(&w->lease);
        return error_errno(err, -code, "cannot start the lease thread");
    }
    pthread_setname_np(w->thread, "lease");
    w->started = true;
    return 0;
}

void lease_watch_stop(struct lease_watch *w)
{
    if (!w->started)
        return;
    __atomic_store_n(&w->ending, true, __ATOMIC_RELEASE);
    pthread_join(w->thread, NULL);
    w->started = false;
}
