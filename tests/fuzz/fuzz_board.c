/* Fuzz target: the whole board under a guest that reads and writes at random -- bridges, clock, power management, general
 * purpose events, serial port, panic port, hot-plug registers with two cards that come and go, fw_cfg, flash, the test
 * device -- through ports, configuration space, memory and DMA, with resets, a user who presses buttons, and snapshots
 * whose bytes somebody has changed. Whatever happens: no assertion, no memory that grows, and what is saved loads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/vmm/devices/board/board.h"
#include "compute/vmm/devices/cmos/cmos.h"
#include "compute/vmm/devices/flash/flash.h"
#include "compute/vmm/devices/fw_cfg/fw_cfg.h"
#include "compute/vmm/devices/pcihp/pcihp.h"
#include "compute/vmm/devices/pm/pm.h"
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/devices/rng/rng.h"
#include "compute/vmm/devices/serial/serial.h"
#include "compute/vmm/devices/testdev/testdev.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/pci_state.h"
#include "tests/fuzz/virtio_fuzz.h"

enum { STEPS_MAX = 512, STEP_BYTES = 12, TRAVELS_MAX = 4, CHANGES_MAX = 16, CARDS = 2, CARD_SLOT = 4 };
enum { CHIP_BYTES = 2 * FLASH_BLOCK_BYTES, GROWTH_BYTES_MAX = 4 << 20 };
#define CHIP 0xffc00000ull
#define CARD_BAR(i) (FAKE_WINDOW + 0x100000ull * (i))

/* Of the sanitizer, where there is one. */
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

struct card {
    struct device *device; /* NULL: the slot is empty */
};
struct rig {
    struct machine m;
    struct list devices;
    struct pm *pm;
    struct serial *serial;
    struct pvpanic *pvpanic;
    struct pcihp *hotplug;
    struct fw_cfg *fw_cfg;
    struct flash *flash;
    struct card cards[CARDS];
    unsigned requests, exits;
    uint8_t output;
    bool shown;
    unsigned travels, changes;
};

static void on_power(void *arg, enum power_request request UNUSED)
{
    ((struct rig *)arg)->requests++;
}
static void on_exit_port(void *arg, unsigned status)
{
    ASSERT((status & 1) != 0 && status <= 0xff);
    ((struct rig *)arg)->exits++;
}
static void on_output(void *arg, const void *data, size_t size)
{
    struct rig *r = arg;
    ASSERT(size == 1);
    r->output = (uint8_t)(r->output + *(const uint8_t *)data);
}
static int on_show(void *arg, const struct flash *f UNUSED, bool shown, struct error *err UNUSED)
{
    struct rig *r = arg;
    ASSERT(r->shown != shown);
    r->shown = shown;
    return 0;
}
static void on_raise(void *arg, unsigned gpe)
{
    pm_raise_gpe(((struct rig *)arg)->pm, gpe);
}
/* As the machine does it: only what can be plugged, and only while it is there. */
static void on_eject(void *arg, unsigned slot)
{
    struct rig *r = arg;
    ASSERT(slot < PCI_SLOTS);
    if (slot >= CARD_SLOT && slot < CARD_SLOT + CARDS && r->m.pci.functions[slot * PCI_FUNCTIONS] != NULL)
        pci_bus_remove(&r->m.pci, slot);
}

/* ---- the machine's moves ---- */

/* As firmware does. */
static void card_place(struct rig *r, unsigned i)
{
    pci_config_write(&r->m.pci, CARD_SLOT + i, 0, PCI_BAR0 + 4 * VIRTIO_PCI_BAR, 4, (uint32_t)CARD_BAR(i));
    pci_config_write(&r->m.pci, CARD_SLOT + i, 0, PCI_BAR0 + 4 * VIRTIO_PCI_BAR + 4, 4, (uint32_t)(CARD_BAR(i) >> 32));
    pci_config_write(&r->m.pci, CARD_SLOT + i, 0, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void card_plug(struct rig *r, unsigned i, bool told)
{
    struct virtio_device *vdev;
    struct virtio_pci *pci;
    char name[16];
    if (r->cards[i].device != NULL)
        return;
    snprintf(name, sizeof name, "card%u", i);
    ASSERT(rng_create(&r->m.memory, &vdev, NULL) == 0);
    ASSERT(virtio_pci_create(vdev, name, &r->m.pci, CARD_SLOT + i, &r->m.chip, r->m.loop, &pci, NULL) == 0);
    r->cards[i].device = virtio_pci_device(pci);
    list_append(&r->devices, &r->cards[i].device->link);
    card_place(r, i);
    if (told)
        pcihp_plugged(r->hotplug, CARD_SLOT + i);
}

/* Cards that the guest has ejected are released. */
static void cards_settle(struct rig *r)
{
    for (unsigned i = 0; i < CARDS; i++) {
        struct card *card = &r->cards[i];
        if (card->device == NULL || r->m.pci.functions[(CARD_SLOT + i) * PCI_FUNCTIONS] != NULL)
            continue;
        list_remove(&card->device->link);
        card->device->ops->destroy(card->device);
        card->device = NULL;
    }
}

static void power_on(struct rig *r)
{
    cards_settle(r);
    device_list_reset(&r->devices);
    pci_bus_reset(&r->m.pci);
    fw_cfg_restart(r->fw_cfg);
    fw_cfg_set_integer(r->fw_cfg, FW_CFG_NB_CPUS, 1, 2);
    fw_cfg_set_file(r->fw_cfg, "etc/e820", "map", 3);
    fw_cfg_set_file(r->fw_cfg, "bootorder", "", 0);
    for (unsigned i = 0; i < CARDS; i++)
        if (r->cards[i].device != NULL)
            card_place(r, i);
}

/* With the machine paused: every device's state goes out and in, and comes out the same. */
static void travel(struct rig *r)
{
    LIST_FOREACH(link, &r->devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        struct bytes_writer first = {0}, second = {0};
        struct error err = {0};
        d->ops->save(d, &first);
        struct bytes_reader in = bytes_reader(first.data, first.size);
        if (d->ops->load(d, &in, &err) != 0) {
            fprintf(stderr, "%s\n", err.text);
            ASSERT(!"own state is refused");
        }
        ASSERT(bytes_left(&in) == 0);
        d->ops->save(d, &second);
        ASSERT(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
        bytes_writer_finish(&first);
        bytes_writer_finish(&second);
    }
}

static void pci_travel(struct rig *r, uint16_t at, uint64_t value)
{
    struct bytes_writer saved = {0};
    struct error err = {0};
    pci_state_save(&r->m.pci, &saved);
    fuzz_change_state(&saved, at, value);
    struct bytes_reader in = bytes_reader(saved.data, saved.size);
    ASSERT(pci_state_load(&r->m.pci, &in, &err) == 0 || err.text[0] != '\0');
    bytes_writer_finish(&saved);
}

/* One device is given a state that was tampered with. */
static void load_changed(struct rig *r, unsigned which, uint16_t at, uint64_t value)
{
    unsigned i = 0;
    LIST_FOREACH(link, &r->devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        struct bytes_writer saved = {0};
        struct error err = {0};
        if (i++ != which)
            continue;
        d->ops->save(d, &saved);
        fuzz_change_state(&saved, at, value);
        struct bytes_reader in = bytes_reader(saved.data, saved.size);
        ASSERT(d->ops->load(d, &in, &err) == 0 || err.text[0] != '\0');
        bytes_writer_finish(&saved);
        return;
    }
    pci_travel(r, at, value);
}

static void machine_move(struct rig *r, unsigned width, uint16_t at, uint64_t value)
{
    uint8_t typed[16];
    memcpy(typed, &value, 8);
    memcpy(typed + 8, &value, 8);
    switch (at & 7) {
    case 0:
        pm_press_power_button(r->pm);
        break;
    case 1:
        ASSERT(serial_receive(r->serial, typed, width * 2) <= width * 2);
        break;
    case 2:
        card_plug(r, at >> 3 & 1, true);
        break;
    case 3:
        if (r->cards[at >> 3 & 1].device != NULL)
            pcihp_unplug(r->hotplug, CARD_SLOT + (at >> 3 & 1));
        break;
    case 4:
        cards_settle(r);
        break;
    case 5:
        power_on(r);
        break;
    case 6:
        device_list_pause(&r->devices);
        if (r->travels++ < TRAVELS_MAX)
            travel(r);
        device_list_resume(&r->devices);
        break;
    case 7:
        device_list_pause(&r->devices);
        if (r->changes++ < CHANGES_MAX)
            load_changed(r, at >> 3 & 15, (uint16_t)(at >> 7), value);
        device_list_resume(&r->devices);
        break;
    }
}

/* ---- the guest's ---- */

static const uint16_t ports[] = {
    PC1_PORT_I8042_DATA, PC1_PORT_I8042,  PC1_PORT_CMOS,  PC1_PORT_SERIAL0, PC1_PORT_PVPANIC, PC1_PORT_PM,
    PC1_PORT_PM_CONTROL, PC1_PORT_GPE,    PC1_PORT_PCIHP, PC1_PORT_RESET,   0x92,             0x510,
    0x514,               0xcf8,           0xcfc,          0xe0,             0xe4,             0xf4,
    0x2000,              PC1_PORT_PM_TIMER};

static uint64_t memory_address(uint16_t at, uint64_t value)
{
    switch (at & 3) {
    case 0:
        return CARD_BAR(at >> 2 & 1) + (value >> 32) % (VIRTIO_PCI_BAR_BYTES + 8);
    case 1:
        return CHIP + (value >> 32) % (CHIP_BYTES + 8);
    case 2:
        return 0xff000000ull + (value >> 32) % 0x10008;
    default:
        return value >> 16;
    }
}

static void guest_step(struct rig *r, const uint8_t *op)
{
    struct bytes_reader in = bytes_reader(op, STEP_BYTES);
    unsigned what = bytes_get_u8(&in) % 10, shift = bytes_get_u8(&in) & 3, width = 1u << shift;
    uint16_t at = bytes_get_u16(&in);
    uint64_t value = bytes_get_u64(&in), read = 0;
    uint16_t port = (uint16_t)(ports[at % ARRAY_SIZE(ports)] + (at >> 8 & 7));
    unsigned port_width = MIN(width, 4u);
    struct bus *memory = &r->m.memory_bus, *io = &r->m.port_bus;
    switch (what) {
    case 0:
    case 1:
        bus_write(io, port, port_width, value);
        break;
    case 2:
        read = bus_read(io, port, port_width);
        break;
    case 3:
        bus_write(io, at, port_width, value);
        read = bus_read(io, at, port_width);
        break;
    case 4:
        bus_write(io, 0xcf8, 4, 0x80000000u | (at & 0x7fffu) << 8 | (value >> 32 & 0xfc));
        bus_write(io, 0xcfc + (value >> 32 & 3), port_width, value);
        read = bus_read(io, 0xcfc + (value >> 40 & 3), port_width);
        break;
    case 5:
        bus_write(memory, memory_address(at, value), width, value);
        break;
    case 6:
        read = bus_read(memory, memory_address(at, value), width);
        port_width = 8;
        break;
    case 7:
        memory_write(&r->m.memory, at, &value, width);
        break;
    case 8:
        io_loop_run_once(r->m.loop, 0);
        break;
    default:
        machine_move(r, width, at, value);
        break;
    }
    if (port_width < 4) /* a bus gives what was asked for, and no more */
        ASSERT(read >> (8 * port_width) == 0);
}

static void devices_add(struct rig *r, uint8_t content[CHIP_BYTES])
{
    struct machine *m = &r->m;
    struct device *d;
    struct flash_options chip = {
        .name = "chip", .address = CHIP, .content = content, .size = CHIP_BYTES, .fd = -1, .show = on_show, .show_arg = r};
    struct testdev_options testdev = {.ports = &m->port_bus,
                                      .mmio = &m->memory_bus,
                                      .memory = &m->memory,
                                      .irq = &m->chip,
                                      .exit = on_exit_port,
                                      .exit_arg = r};
    ASSERT(board_create(&m->port_bus, &m->pci, on_power, r, &d, NULL) == 0);
    list_append(&r->devices, &d->link);
    ASSERT(cmos_create(&m->port_bus, FAKE_MEMORY_BYTES, 0, &d, NULL) == 0);
    list_append(&r->devices, &d->link);
    ASSERT(pm_create(&m->port_bus, &m->pci, &m->chip, on_power, r, &r->pm, NULL) == 0);
    list_append(&r->devices, &pm_device(r->pm)->link);
    ASSERT(serial_create("serial0", &m->port_bus, PC1_PORT_SERIAL0, &m->chip, PC1_IRQ_SERIAL0, on_output, r, &r->serial,
                         NULL) == 0);
    list_append(&r->devices, &serial_device(r->serial)->link);
    ASSERT(pvpanic_create(&m->port_bus, &r->pvpanic, NULL) == 0);
    list_append(&r->devices, &pvpanic_device(r->pvpanic)->link);
    ASSERT(flash_create(&m->memory_bus, &chip, &r->flash, NULL) == 0);
    list_append(&r->devices, &flash_device(r->flash)->link);
    ASSERT(fw_cfg_create(&m->port_bus, &m->memory, &r->fw_cfg, NULL) == 0);
    list_append(&r->devices, &fw_cfg_device(r->fw_cfg)->link);
    ASSERT(testdev_create(&testdev, &d, NULL) == 0);
    list_append(&r->devices, &d->link);
    ASSERT(pcihp_create(&m->port_bus, on_raise, r, on_eject, r, &r->hotplug, NULL) == 0);
    list_append(&r->devices, &pcihp_device(r->hotplug)->link);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rig r;
    static uint8_t content[CHIP_BYTES];
    memset(&r, 0, sizeof r);
    log_set_level(LOG_LEVEL_ERROR);
    machine_init(&r.m);
    list_init(&r.devices);
    devices_add(&r, content);
    power_on(&r);
    for (unsigned i = 0; i < CARDS; i++)
        card_plug(&r, i, false);
    size_t before = __sanitizer_get_current_allocated_bytes ? __sanitizer_get_current_allocated_bytes() : 0;
    for (size_t at = 0; at + STEP_BYTES <= size && at < (size_t)STEPS_MAX * STEP_BYTES; at += STEP_BYTES) {
        unsigned requests = r.requests;
        guest_step(&r, data + at);
        if (r.requests != requests)
            power_on(&r);
    }
    if (__sanitizer_get_current_allocated_bytes)
        ASSERT(__sanitizer_get_current_allocated_bytes() < before + GROWTH_BYTES_MAX);
    device_list_pause(&r.devices);
    device_list_destroy(&r.devices);
    ASSERT(!r.shown);
    machine_finish(&r.m);
    return 0;
}
