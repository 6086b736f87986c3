/* One port. */
#include "common/log.h"
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/pc1_layout.h"

enum { PANICKED = 1, CRASH_LOADED = 2 }; /* the guest's kernel is at its end; a crash kernel takes over */

static uint64_t port_read(void *arg UNUSED, uint64_t offset UNUSED, unsigned size UNUSED)
{
    return PANICKED | CRASH_LOADED;
}

static void port_write(void *arg, uint64_t offset UNUSED, unsigned size, uint64_t value)
{
    struct pvpanic *p = arg;
    if (size != 1 || !(value & (PANICKED | CRASH_LOADED)))
        return;
    __atomic_fetch_add(&p->panics, 1, __ATOMIC_RELAXED);
    if (p->logged < PVPANIC_LOGGED_MAX) {
        p->logged++;
        log_warning("guest-panicked", "crash_kernel=%s", value & CRASH_LOADED ? "yes" : "no");
    }
}

static void pvpanic_reset(struct device *d)
{
    CONTAINER_OF(d, struct pvpanic, device)->logged = 0;
}

static void pvpanic_destroy(struct device *d)
{
    struct pvpanic *p = CONTAINER_OF(d, struct pvpanic, device);
    bus_remove(p->ports, PC1_PORT_PVPANIC);
    free(p);
}

static const struct device_ops pvpanic_ops = {
    .reset = pvpanic_reset, .save = pvpanic_save, .load = pvpanic_load, .destroy = pvpanic_destroy};

int pvpanic_create(struct bus *ports, struct pvpanic **ret_pvpanic, struct error *err)
{
    struct pvpanic *p = NEW(struct pvpanic);
    p->ports = ports;
    device_init(&p->device, &pvpanic_ops, "pvpanic");
    struct bus_range range = {
        .start = PC1_PORT_PVPANIC, .size = 1, .read = port_read, .write = port_write, .arg = p};
    int code = bus_add(ports, &range, err);
    if (code < 0) {
        free(p);
        return code;
    }
    *ret_pvpanic = p;
    return 0;
}

struct device *pvpanic_device(struct pvpanic *p)
{
    return &p->device;
}

uint64_t pvpanic_count(struct pvpanic *p)
{
    return __atomic_load_n(&p->panics, __ATOMIC_RELAXED);
}
