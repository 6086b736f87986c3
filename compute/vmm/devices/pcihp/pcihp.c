/* The hot-plug registers: see pcihp.h. */
#include "compute/vmm/devices/pcihp/pcihp.h"

#include <errno.h>

#include "compute/vmm/pc1_layout.h"

enum { UP = 0, DOWN = 4, EJECT = 8, STATE_VERSION = 1 };

struct pcihp {
    struct device device;
    struct bus *ports;
    uint32_t up, down; /* bit: slot */
    pcihp_raise_fn raise;
    void *raise_arg;
    pcihp_eject_fn eject;
    void *eject_arg;
};

static uint64_t registers_read(void *arg, uint64_t offset, unsigned size)
{
    struct pcihp *p = arg;
    if (size != 4)
        return UINT64_MAX;
    return offset == UP ? p->up : offset == DOWN ? p->down : 0;
}

static void registers_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct pcihp *p = arg;
    if (size != 4)
        return;
    if (offset == UP)
        p->up &= ~(uint32_t)value;
    else if (offset == DOWN)
        p->down &= ~(uint32_t)value;
    for (unsigned slot = 0; offset == EJECT && slot < 32; slot++)
        if (value >> slot & 1)
            p->eject(p->eject_arg, slot);
}

void pcihp_plugged(struct pcihp *p, unsigned slot)
{
    p->up |= 1u << slot;
    p->down &= ~(1u << slot);
    p->raise(p->raise_arg, PC1_GPE_PCIHP);
}

void pcihp_unplug(struct pcihp *p, unsigned slot)
{
    p->down |= 1u << slot;
    p->raise(p->raise_arg, PC1_GPE_PCIHP);
}

static void pcihp_reset(struct device *d)
{
    struct pcihp *p = CONTAINER_OF(d, struct pcihp, device);
    p->up = p->down = 0;
}

static void pcihp_save(struct device *d, struct bytes_writer *out)
{
    struct pcihp *p = CONTAINER_OF(d, struct pcihp, device);
    bytes_put_u8(out, STATE_VERSION);
    bytes_put_u32(out, p->up);
    bytes_put_u32(out, p->down);
}

static int pcihp_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct pcihp *p = CONTAINER_OF(d, struct pcihp, device);
    uint8_t version = bytes_get_u8(in);
    uint32_t up = bytes_get_u32(in), down = bytes_get_u32(in);
    if (in->bad || version != STATE_VERSION)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    p->up = up;
    p->down = down;
    return 0;
}

static void pcihp_destroy(struct device *d)
{
    struct pcihp *p = CONTAINER_OF(d, struct pcihp, device);
    bus_remove(p->ports, PC1_PORT_PCIHP);
    free(p);
}

static const struct device_ops pcihp_ops = {
    .reset = pcihp_reset, .save = pcihp_save, .load = pcihp_load, .destroy = pcihp_destroy};

int pcihp_create(struct bus *ports, pcihp_raise_fn raise, void *raise_arg, pcihp_eject_fn eject, void *eject_arg,
                 struct pcihp **ret_pcihp, struct error *err)
{
    struct pcihp *p = NEW(struct pcihp);
    p->ports = ports;
    p->raise = raise;
    p->raise_arg = raise_arg;
    p->eject = eject;
    p->eject_arg = eject_arg;
    device_init(&p->device, &pcihp_ops, "pcihp");
    struct bus_range range = {.start = PC1_PORT_PCIHP,
                              .size = PC1_PORT_PCIHP_BYTES,
                              .read = registers_read,
                              .write = registers_write,
                              .arg = p};
    int code = bus_add(ports, &range, err);
    if (code < 0) {
        free(p);
        return code;
    }
    *ret_pcihp = p;
    return 0;
}

struct device *pcihp_device(struct pcihp *p)
{
    return &p->device;
}
