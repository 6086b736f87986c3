/* PM1 registers and the timer. */
#include "compute/vmm/devices/pm/pm.h"

#include <errno.h>
#include <time.h>

#include "compute/vmm/pc1_layout.h"

enum { STATUS = 0, ENABLE = 2 };
enum { STS_TIMER = 1, STS_GLOBAL = 0x20, STS_POWER_BUTTON = 0x100, STS_WAKE = 0x8000 };
enum { CONTROL_SCI = 1, CONTROL_SLEEP_TYPE_SHIFT = 10, CONTROL_SLEEP = 0x2000 };
enum { PCI_PM_BASE = 0x40, PCI_PM_APMC = 0x5b, PCI_PM_APMC_ENABLED = 2, PCI_PM_MISC = 0x80, STATE_VERSION = 2 };
#define TIMER_HZ 3579545ull

struct pm {
    struct device device;
    struct pci_device function;
    struct bus *ports;
    struct irq_chip *chip;
    power_fn power;
    void *power_arg;
    uint16_t status, enable, control;
    uint16_t gpe_status, gpe_enable;
    bool line_high;
    uint64_t timer_base_ns; /* CLOCK_MONOTONIC when the timer was 0; changes only while no vCPU runs (atomic) */
    uint64_t paused_ns;     /* elapsed when paused */
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t elapsed_ns(struct pm *p)
{
    return now_ns() - __atomic_load_n(&p->timer_base_ns, __ATOMIC_RELAXED);
}

static uint32_t timer_value(struct pm *p)
{
    return (uint32_t)((unsigned __int128)elapsed_ns(p) * TIMER_HZ / 1000000000u);
}

static bool line_wanted(const struct pm *p)
{
    return (p->status & p->enable) != 0 || (p->gpe_status & p->gpe_enable) != 0;
}

static void line_tell(struct pm *p)
{
    p->line_high = line_wanted(p);
    irq_line_set(p->chip, PC1_IRQ_SCI, p->line_high);
}

static void line_update(struct pm *p)
{
    if (p->line_high != line_wanted(p))
        line_tell(p);
}

static uint64_t timer_read(void *arg, uint64_t offset, unsigned size)
{
    struct pm *p = arg;
    (void)size;
    return (uint64_t)timer_value(p) >> (8 * offset);
}

static uint64_t pm_read(void *arg, uint64_t offset, unsigned size)
{
    struct pm *p = arg;
    uint64_t registers = p->status | (uint64_t)p->enable << 16 | (uint64_t)p->control << 32;
    (void)size;
    return registers >> (8 * offset);
}

static void control_write(struct pm *p, uint16_t value)
{
    p->control = (uint16_t)((value & 0x1c06) | CONTROL_SCI);
    /* Type 0 is the same for firmware that does not read \_S5: SeaBIOS and OVMF know QEMU's value. */
    unsigned type = value >> CONTROL_SLEEP_TYPE_SHIFT & 7;
    if ((value & CONTROL_SLEEP) && (type == PC1_SLEEP_TYPE_S5 || type == 0))
        p->power(p->power_arg, POWER_OFF);
}

/* Bytes of the three registers that the write covers are put together with those it does not. */
static void pm_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct pm *p = arg;
    for (unsigned reg = 0; reg < 6; reg += 2) {
        uint16_t bits = 0, mask = 0;
        for (unsigned i = 0; i < size; i++) {
            if (offset + i != reg && offset + i != reg + 1u)
                continue;
            unsigned shift = 8 * (unsigned)(offset + i - reg);
            bits = (uint16_t)(bits | (value >> (8 * i) & 0xff) << shift);
            mask = (uint16_t)(mask | 0xff << shift);
        }
        if (!mask)
            continue;
        if (reg == STATUS)
            p->status = (uint16_t)(p->status & ~bits); /* written ones clear */
        else if (reg == ENABLE)
            p->enable = (uint16_t)((p->enable & ~mask) | bits);
        else
            control_write(p, (uint16_t)((p->control & ~mask) | bits));
    }
    line_update(p);
}

static uint64_t gpe_read(void *arg, uint64_t offset, unsigned size)
{
    struct pm *p = arg;
    (void)size;
    return (p->gpe_status | (uint64_t)p->gpe_enable << 16) >> (8 * offset);
}

static void gpe_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct pm *p = arg;
    for (unsigned i = 0; i < size; i++) {
        unsigned at = (unsigned)offset + i, shift = 8 * (at & 1);
        uint16_t bits = (uint16_t)((value >> (8 * i) & 0xff) << shift);
        if (at < 2)
            p->gpe_status = (uint16_t)(p->gpe_status & ~bits); /* written ones clear */
        else
            p->gpe_enable = (uint16_t)((p->gpe_enable & ~(0xffu << shift)) | bits);
    }
    line_update(p);
}

void pm_raise_gpe(struct pm *p, unsigned gpe)
{
    ASSERT(gpe < 16);
    p->gpe_status |= (uint16_t)(1u << gpe);
    line_update(p);
}

void pm_press_power_button(struct pm *p)
{
    p->status |= STS_POWER_BUTTON;
    line_update(p);
}

static void pm_reset(struct device *d)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    p->status = p->enable = p->gpe_status = p->gpe_enable = 0;
    p->control = CONTROL_SCI;
    __atomic_store_n(&p->timer_base_ns, now_ns(), __ATOMIC_RELAXED);
    p->paused_ns = 0;
    line_update(p);
}

static void pm_pause(struct device *d)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    p->paused_ns = elapsed_ns(p);
}

static void pm_resume(struct device *d)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    __atomic_store_n(&p->timer_base_ns, now_ns() - p->paused_ns, __ATOMIC_RELAXED);
    line_tell(p); /* whatever the chip knew before */
}

static void pm_save(struct device *d, struct bytes_writer *out)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    bytes_put_u8(out, STATE_VERSION);
    bytes_put_u16(out, p->status);
    bytes_put_u16(out, p->enable);
    bytes_put_u16(out, p->control);
    bytes_put_u64(out, p->paused_ns);
    bytes_put_u16(out, p->gpe_status);
    bytes_put_u16(out, p->gpe_enable);
}

static int pm_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    uint8_t version = bytes_get_u8(in);
    uint16_t status = bytes_get_u16(in), enable = bytes_get_u16(in), control = bytes_get_u16(in);
    uint64_t paused_ns = bytes_get_u64(in);
    uint16_t gpe_status = bytes_get_u16(in), gpe_enable = bytes_get_u16(in);
    if (in->bad || version != STATE_VERSION)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    p->status = status;
    p->enable = enable;
    p->control = control;
    p->paused_ns = paused_ns;
    p->gpe_status = gpe_status;
    p->gpe_enable = gpe_enable;
    return 0;
}

static void ports_remove(struct pm *p)
{
    bus_remove(p->ports, PC1_PORT_GPE);
    bus_remove(p->ports, PC1_PORT_PM_TIMER);
    bus_remove(p->ports, PC1_PORT_PM);
}

/* The PCI function stays in its bus's table: the machine drops the bus before its devices. */
static void pm_destroy(struct device *d)
{
    struct pm *p = CONTAINER_OF(d, struct pm, device);
    ports_remove(p);
    free(p);
}

static const struct device_ops pm_ops = {.reset = pm_reset,
                                         .pause = pm_pause,
                                         .resume = pm_resume,
                                         .save = pm_save,
                                         .load = pm_load,
                                         .destroy = pm_destroy};

static int ports_add(struct pm *p, struct error *err)
{
    struct bus_range registers = {.start = PC1_PORT_PM, .size = 8, .read = pm_read, .write = pm_write, .arg = p};
    struct bus_range timer = {
        .start = PC1_PORT_PM_TIMER, .size = 4, .flags = BUS_LOCKLESS, .read = timer_read, .arg = p};
    struct bus_range gpe = {.start = PC1_PORT_GPE, .size = 4, .read = gpe_read, .write = gpe_write, .arg = p};
    int code = bus_add(p->ports, &registers, err);
    if (code == 0)
        code = bus_add(p->ports, &timer, err);
    return code < 0 ? code : bus_add(p->ports, &gpe, err);
}

int pm_create(struct bus *ports, struct pci_bus *pci, struct irq_chip *chip, power_fn power, void *power_arg,
              struct pm **ret_pm, struct error *err)
{
    struct pm *p = NEW(struct pm);
    p->ports = ports;
    p->chip = chip;
    p->power = power;
    p->power_arg = power_arg;
    device_init(&p->device, &pm_ops, "pm");
    pci_device_init(&p->function, NULL, 0x8086, 0x7113, 0x068000, 3);
    /* PIIX4: the base of the registers, and that they are decoded. Firmware may write them; they do not move. */
    pci_config_set32(&p->function, PCI_PM_BASE, PC1_PORT_PM | 1);
    pci_config_set8(&p->function, PCI_PM_MISC, 1);
    /* "Management interrupts are set up already": there is no such mode here, and SeaBIOS would wait for it. */
    pci_config_set8(&p->function, PCI_PM_APMC, PCI_PM_APMC_ENABLED);
    int code = ports_add(p, err);
    if (code == 0)
        code = pci_bus_add_function(pci, 1, 3, &p->function, err);
    if (code < 0) {
        ports_remove(p);
        free(p);
        return code;
    }
    pm_reset(&p->device);
    *ret_pm = p;
    return 0;
}

struct device *pm_device(struct pm *p)
{
    return &p->device;
}
