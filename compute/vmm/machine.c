/* Building the machine, and the moves between its states. Requests of vCPU threads (reset, power-off, failure) are
 * noted under a lock, all vCPUs are told to hold, and the control loop is woken to act on them. */
#include "compute/vmm/machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/accel_none.h"
#include "compute/vmm/acpi.h"
#include "compute/vmm/devices/pm/pm.h"
#include "compute/vmm/devices/serial/serial.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_incoming.h"
#include "compute/vmm/machine_migrate.h"
#include "compute/vmm/machine_points.h"
#include "compute/vmm/machine_replica.h"
#include "compute/vmm/machine_snapshot.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/smbios.h"

enum machine_request {
    REQUEST_POWER_OFF = 1 << 0,
    REQUEST_RESET = 1 << 1,
    REQUEST_TRIPLE_FAULT = 1 << 2,
    REQUEST_FAILURE = 1 << 3,
    REQUEST_DEBUG_EXIT = 1 << 4,
    REQUEST_DISK = 1 << 5,
};

static const uint32_t chip_ids[3] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC};

const char *machine_state_name(enum machine_state state)
{
    static const char *const names[] = {"created", "running", "paused", "stopped", "failed"};
    return names[state];
}

/* The only writer of `state`. */
static void state_set(struct machine *m, enum machine_state to, const char *why)
{
    static const uint8_t allowed[] = {
        [MACHINE_CREATED] = 1 << MACHINE_RUNNING | 1 << MACHINE_PAUSED | 1 << MACHINE_STOPPED | 1 << MACHINE_FAILED,
        [MACHINE_RUNNING] = 1 << MACHINE_PAUSED | 1 << MACHINE_STOPPED | 1 << MACHINE_FAILED,
        [MACHINE_PAUSED] = 1 << MACHINE_RUNNING | 1 << MACHINE_STOPPED | 1 << MACHINE_FAILED,
        [MACHINE_STOPPED] = 0,
        [MACHINE_FAILED] = 0,
    };
    ASSERT(allowed[m->state] & 1 << to);
    log_info("machine-state", "vm=%s from=%s to=%s why=\"%s\"", m->config->name, machine_state_name(m->state),
             machine_state_name(to), why);
    m->state = to;
}

static void machine_end_with(struct machine *m, enum machine_end end, const char *why)
{
    /* A vCPU that waits for a page which may never come is not waited for: see main.c. */
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_EVENT, !machine_incoming_lacks_memory(m));
    m->end = end;
    state_set(m, end == MACHINE_END_FAILURE ? MACHINE_FAILED : MACHINE_STOPPED, why);
}

/* ---- requests of the guest ---- */

static void machine_boot(struct machine *m, const char *why);

static unsigned requests_take(struct machine *m)
{
    pthread_mutex_lock(&m->request_lock);
    unsigned requests = m->requests;
    m->requests = 0;
    pthread_mutex_unlock(&m->request_lock);
    return requests;
}

/* Once paused, devices let go of what they keep and start it again from the rings when resumed. */
static void disk_pause(struct machine *m)
{
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_DISK, true);
    pthread_mutex_lock(&m->request_lock);
    snprintf(m->pause_reason, sizeof(m->pause_reason), "%s", m->disk_error);
    pthread_mutex_unlock(&m->request_lock);
    if (m->state != MACHINE_RUNNING)
        return;
    pthread_mutex_lock(&m->device_lock);
    device_list_pause(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    state_set(m, MACHINE_PAUSED, m->pause_reason);
}

static void on_requests(void *arg)
{
    struct machine *m = arg;
    if (machine_has_ended(m) || m->frozen || __atomic_load_n(&m->stalled, __ATOMIC_ACQUIRE))
        return; /* machine_thaw, machine_stall come back to it */
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_EVENT, true); /* nobody can ask any more */
    unsigned requests = requests_take(m);
    if (requests & REQUEST_DISK)
        disk_pause(m);
    requests &= ~(unsigned)REQUEST_DISK;
    if (requests & REQUEST_FAILURE)
        machine_end_with(m, MACHINE_END_FAILURE, m->failure);
    else if (requests & REQUEST_DEBUG_EXIT)
        machine_end_with(m, MACHINE_END_DEBUG_EXIT, "a test program ended");
    else if (requests & REQUEST_POWER_OFF)
        machine_end_with(m, MACHINE_END_POWER_OFF, "the guest powered off");
    else if (requests && m->options.exit_on_reset)
        machine_end_with(m, requests & REQUEST_RESET ? MACHINE_END_RESET : MACHINE_END_TRIPLE_FAULT, "reset");
    else if (requests & REQUEST_RESET)
        machine_boot(m, "reset by the guest");
    else if (requests)
        machine_boot(m, "triple fault");
    else
        vcpu_set_release(&m->vcpus, VCPU_HOLD_EVENT);
}

static void request_note(struct machine *m, unsigned request, const char *why)
{
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_EVENT, false);
    pthread_mutex_lock(&m->request_lock);
    m->requests |= request;
    if (request == REQUEST_FAILURE)
        snprintf(m->failure, sizeof(m->failure), "%s", why);
    if (request == REQUEST_DISK)
        snprintf(m->disk_error, sizeof(m->disk_error), "%s", why);
    pthread_mutex_unlock(&m->request_lock);
    io_loop_post(m->control, on_requests, m);
}

void machine_disk_stopped(struct machine *m, const char *why)
{
    request_note(m, REQUEST_DISK, why);
}

static void on_power(void *arg, enum power_request request)
{
    request_note(arg, request == POWER_OFF ? REQUEST_POWER_OFF : REQUEST_RESET, "");
}

static void on_vcpu_event(void *arg, enum vcpu_event event, const char *why)
{
    request_note(arg, event == VCPU_EVENT_TRIPLE_FAULT ? REQUEST_TRIPLE_FAULT : REQUEST_FAILURE, why);
}

void machine_debug_exit(void *arg, unsigned status)
{
    struct machine *m = arg;
    pthread_mutex_lock(&m->request_lock);
    if (!(m->requests & REQUEST_DEBUG_EXIT)) /* the first word counts */
        m->debug_status = status;
    pthread_mutex_unlock(&m->request_lock);
    request_note(m, REQUEST_DEBUG_EXIT, "");
}

static size_t on_console_input(void *arg, const uint8_t *data, size_t size)
{
    struct machine *m = arg;
    pthread_mutex_lock(&m->device_lock);
    size_t taken = serial_receive(m->serial, data, size);
    pthread_mutex_unlock(&m->device_lock);
    return taken;
}

/* ---- building ---- */

static int boot_open(struct machine *m, struct error *err)
{
    const struct vmm_config *c = m->config;
    m->boot.cmdline = c->cmdline ? c->cmdline : "";
    m->boot.rsdp = PC1_ACPI;
    m->boot.multiboot = m->options.multiboot != NULL;
    m->boot.has_test_device = m->options.debug_exit;
    m->boot.vcpus = c->vcpus;
    int code = machine_firmware_check(m, err);
    if (code < 0 || m->firmware.present)
        return code;
    code = boot_image_open(m->boot.multiboot ? m->options.multiboot : c->kernel, &m->boot.kernel, err);
    if (code == 0 && c->initrd)
        code = boot_image_open(c->initrd, &m->boot.initrd, err);
    return code;
}

static int memory_attach(struct machine *m, struct error *err)
{
    int code = 0;
    for (uint32_t i = 0; code == 0 && i < m->memory.region_count; i++) {
        struct memory_region *r = &m->memory.regions[i];
        code = kvm_memory_set(&m->kvm, i, r->gpa, r->size, r->host, 0, err);
    }
    return code;
}

static int chips_get(struct machine *m, struct error *err)
{
    int code = kvm_get_pit(&m->kvm, &m->pit, err);
    for (unsigned i = 0; code == 0 && i < ARRAY_SIZE(chip_ids); i++)
        code = kvm_get_irqchip(&m->kvm, chip_ids[i], &m->chips[i], err);
    return code;
}

/* Multiboot programs come after a firmware on every other machine: the interrupt controllers are set up as a PC's
 * firmware leaves them, vectors from 0x08 and 0x70 on. Only line 11 is open, which no device of pc-1 has. */
static void chips_as_after_firmware(struct machine *m)
{
    struct kvm_pic_state *master = &m->chips[0].chip.pic, *slave = &m->chips[1].chip.pic;
    master->irq_base = 0x08;
    master->imr = 0xfb;
    slave->irq_base = 0x70;
    slave->imr = 0xf7;
    master->init4 = slave->init4 = 1;
}

static int chips_set(struct machine *m, struct error *err)
{
    int code = kvm_set_pit(&m->kvm, &m->pit, err);
    for (unsigned i = 0; code == 0 && i < ARRAY_SIZE(chip_ids); i++)
        code = kvm_set_irqchip(&m->kvm, &m->chips[i], err);
    return code;
}

/* Disks do without it where they must. */
static void uring_make(struct machine *m)
{
    struct error err;
    if (uring_create(m->io, &m->uring, &err) < 0)
        log_info("no-io-uring", "vm=%s why=\"%s\" disks=threads", m->config->name, err.text);
}

STATIC_ASSERT((int)MEMORY_PAGES_SMALL == (int)vmm_pages_SMALL && (int)MEMORY_PAGES_LARGE == (int)vmm_pages_LARGE &&
                  (int)MEMORY_PAGES_HUGE == (int)vmm_pages_HUGE,
              "memory.h and the schema agree");

/* The I/O thread's first work. */
static void on_io_start(void *arg)
{
    struct machine *m = arg;
    sandbox_enter_or_end(m->options.sandbox, SANDBOX_IO);
}

static enum memory_kind memory_kind_of(const struct machine *m)
{
    return m->options.handed_over ? MEMORY_AWAITED : m->config->memory_shared ? MEMORY_SHARED : MEMORY_OWN;
}

static int machine_build(struct machine *m, struct error *err)
{
    const struct cpu_model *model;
    int code;
    if ((code = cpu_model_find(m->config->cpu_model, &model, err)) < 0 || (code = boot_open(m, err)) < 0 ||
        (code = memory_init_kind(&m->memory, m->config->memory_bytes, (enum memory_pages)m->config->memory_pages,
                                 memory_kind_of(m), err)) < 0 ||
        (code = kvm_init(&m->kvm, m->options.without_kvm ? accel_none_create() : NULL, err)) < 0)
        return code;
    if ((code = memory_attach(m, err)) < 0 || (code = io_loop_create(&m->device_lock, &m->io, err)) < 0 ||
        (code = pci_bus_init(&m->pci, &m->mmio, &m->ports, err)) < 0 ||
        (code = vcpu_set_init(&m->vcpus, &m->kvm, m->config->vcpus, model, m->options.hide_x2apic, &m->ports,
                              &m->mmio, on_vcpu_event, m, err)) < 0)
        return code;
    uring_make(m);
    m->vcpus.sandbox = m->options.sandbox;
    io_loop_post(m->io, on_io_start, m);
    /* After the vCPUs: their APICs are part of what the chips see. */
    if ((code = chips_get(m, err)) < 0)
        return code;
    if (m->options.multiboot)
        chips_as_after_firmware(m);
    if ((code = lease_watch_start(&m->lease, m->config->lease_path, &m->vcpus, m->options.sandbox, err)) < 0 ||
        (code = machine_devices_add(m, on_power, m, err)) < 0 || (code = io_loop_start(m->io, err)) < 0 ||
        (code = vcpu_set_start(&m->vcpus, err)) < 0)
        return code;
    return 0;
}

int machine_init(struct machine *m, const struct vmm_config *config, const struct machine_options *options,
                 struct io_loop *control, struct console *console, struct error *err)
{
    memset(m, 0, sizeof(*m));
    m->config = config;
    m->options = *options;
    m->control = control;
    m->console = console;
    m->memory.fd = m->memory.pagemap_fd = m->kvm.device_fd = m->kvm.vm_fd = m->boot.kernel.fd = m->boot.initrd.fd = -1;
    list_init(&m->devices);
    pthread_mutex_init(&m->device_lock, NULL);
    pthread_mutex_init(&m->request_lock, NULL);
    bus_init(&m->ports, &m->device_lock);
    bus_init(&m->mmio, &m->device_lock);
    if (config->machine && strcmp(config->machine, "pc-1") != 0) {
        int code = error_set_field(err, -EINVAL, ERROR_NOT_SUPPORTED, "/machine",
                                   "machine type \"%s\" is not known here; pc-1 is", config->machine);
        machine_finish(m);
        return code;
    }
    int code = machine_build(m, err);
    if (code < 0) {
        machine_finish(m);
        return code;
    }
    console_set_input(console, on_console_input, m);
    return 0;
}

void machine_finish(struct machine *m)
{
    migrate_job_destroy(m->migrate);
    incoming_job_destroy(m->incoming);
    snapshot_job_destroy(m->snapshot);
    backup_job_close(m->backup);
    replica_job_destroy(m->replica);
    point_job_destroy(m->points);
    console_set_input(m->console, NULL, NULL);
    lease_watch_stop(&m->lease);
    if (m->vcpus.count)
        vcpu_set_finish(&m->vcpus);
    if (m->io)
        io_loop_stop(m->io);
    pthread_mutex_lock(&m->device_lock);
    guest_services_finish(&m->guest);
    backup_job_destroy(m->backup); /* the agent may have had a word for it */
    device_list_pause(&m->devices); /* what the guest was told is written must be written */
    device_list_destroy(&m->devices);
    uring_destroy(m->uring);
    pthread_mutex_unlock(&m->device_lock);
    io_loop_destroy(m->io);
    if (m->kvm.device_fd >= 0 || m->kvm.none)
        kvm_finish(&m->kvm);
    if (m->memory.host)
        memory_finish(&m->memory);
    machine_firmware_finish(m);
    close_fd(&m->boot.kernel.fd);
    close_fd(&m->boot.initrd.fd);
    machine_slots_finish(m);
    lease_finish(&m->lease.lease); /* only now: a disk that is being closed may write, if it still may */
    bus_finish(&m->ports);
    bus_finish(&m->mmio);
    pthread_mutex_destroy(&m->device_lock);
    pthread_mutex_destroy(&m->request_lock);
}

/* ---- booting ---- */

/* CPUID leaf 1 of the first vCPU: EAX, and EDX above it. */
static uint64_t processor_id(const struct vcpu_set *set)
{
    const struct kvm_cpuid2 *cpuid = set->vcpus[0].cpuid;
    for (uint32_t i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function == 1)
            return cpuid->entries[i].eax | (uint64_t)cpuid->entries[i].edx << 32;
    return 0;
}

void machine_smbios_build(const struct machine *m, struct bytes_writer *out)
{
    struct smbios_options options = {.vm_id = m->config->vm_id,
                                     .has_firmware = m->firmware.present,
                                     .vcpus = m->config->vcpus,
                                     .processor = processor_id(&m->vcpus),
                                     .memory = &m->memory};
    smbios_build(&options, out);
}

static void smbios_write(struct machine *m)
{
    const uint64_t at = PC1_SMBIOS + 2 * 16; /* behind the entry point */
    uint8_t anchor[SMBIOS_ANCHOR_BYTES];
    struct bytes_writer tables = {0};
    machine_smbios_build(m, &tables);
    ASSERT(at + tables.size <= PC1_SMBIOS_END);
    smbios_anchor(at, tables.size, anchor);
    ASSERT(memory_write(&m->memory, PC1_SMBIOS, anchor, sizeof(anchor)) &&
           memory_write(&m->memory, at, tables.data, tables.size));
    bytes_writer_finish(&tables);
}

static int tables_write(struct machine *m, uint64_t window64, struct error *err)
{
    struct bytes_writer tables = {0};
    struct acpi_options options = {.address = PC1_ACPI,
                                   .size_max = PC1_ACPI_END - PC1_ACPI,
                                   .vcpus = m->config->vcpus,
                                   .window32 = PC1_WINDOW32,
                                   .window64 = window64,
                                   .window64_bytes = PC1_WINDOW64_BYTES};
    int code = acpi_build(&options, &tables, err);
    if (code == 0)
        ASSERT(memory_write(&m->memory, PC1_ACPI, tables.data, tables.size));
    bytes_writer_finish(&tables);
    smbios_write(m);
    return code;
}

/* Kernel, tables and BARs: without firmware this is the VMM's work. */
static int direct_load(struct machine *m, uint64_t window64, struct boot_entry *ret_entry, struct error *err)
{
    int code = tables_write(m, window64, err);
    if (code == 0)
        code = pci_bus_assign(&m->pci, PC1_WINDOW32, PC1_WINDOW32_END, window64, window64 + PC1_WINDOW64_BYTES,
                              PC1_PORTS_BARS, err);
    return code < 0 ? code : boot_load(&m->memory, &m->boot, ret_entry, err);
}

/* All vCPUs parked: every part back to power-on, kernel and tables into memory. With the device lock held. */
static int power_on(struct machine *m, struct error *err)
{
    const struct memory_region *last = &m->memory.regions[m->memory.region_count - 1];
    uint64_t window64 = pc1_window64(last->gpa + last->size);
    struct boot_entry entry;
    int code;
    device_list_reset(&m->devices);
    pci_bus_reset(&m->pci);
    if ((code = chips_set(m, err)) < 0)
        return code;
    code = m->firmware.present ? machine_firmware_load(m, window64, &entry, err)
                               : direct_load(m, window64, &entry, err);
    if (code < 0)
        return code;
    return vcpu_set_reset(&m->vcpus, &entry, err);
}

/* A guest that resets without end must not fill the host's disk with it. */
static void reset_log(struct machine *m, const char *why)
{
    uint64_t held_back;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (log_limit_pass(&m->reset_log, (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000, &held_back))
        log_info("machine-reset", "vm=%s why=\"%s\" not_told=%llu", m->config->name, why, (unsigned long long)held_back);
}

/* Boot anew and go on in the state that the machine is in. */
static void machine_boot(struct machine *m, const char *why)
{
    struct error err;
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_EVENT, true);
    machine_slots_reset(m);
    requests_take(m); /* what was asked before the reset is settled by it */
    reset_log(m, why);
    pthread_mutex_lock(&m->device_lock);
    int code = power_on(m, &err);
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0) {
        snprintf(m->failure, sizeof(m->failure), "%s", err.text);
        machine_end_with(m, MACHINE_END_FAILURE, m->failure);
        return;
    }
    m->resets++;
    vcpu_set_release(&m->vcpus, VCPU_HOLD_EVENT);
}

int machine_start(struct machine *m, bool paused, struct error *err)
{
    ASSERT(m->state == MACHINE_CREATED);
    pthread_mutex_lock(&m->device_lock);
    int code = power_on(m, err);
    if (code == 0 && paused)
        device_list_pause(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0)
        return code;
    if (paused)
        vcpu_set_hold(&m->vcpus, VCPU_HOLD_USER, true);
    state_set(m, paused ? MACHINE_PAUSED : MACHINE_RUNNING, "started");
    vcpu_set_release(&m->vcpus, VCPU_HOLD_START);
    return 0;
}

int machine_start_restored(struct machine *m, machine_load_fn load, void *arg, bool paused, struct error *err)
{
    ASSERT(m->state == MACHINE_CREATED);
    pthread_mutex_lock(&m->device_lock);
    device_list_pause(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    int code = load(arg, m, err);
    if (code < 0)
        return code;
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_USER, true);
    state_set(m, MACHINE_PAUSED, "restored");
    vcpu_set_release(&m->vcpus, VCPU_HOLD_START);
    return paused ? 0 : machine_resume(m, err);
}

/* ---- moves from outside ---- */

static int refuse(const struct machine *m, const char *verb, struct error *err)
{
    return error_set(err, -EINVAL, ERROR_CONFLICT, "the VM is %s and cannot be %s", machine_state_name(m->state),
                     verb);
}

/* While its state is being written nothing may change it. */
static int frozen_check(const struct machine *m, struct error *err)
{
    if (machine_incoming_lacks_memory(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "part of the VM's memory is still on its way from where it was");
    if (!m->frozen)
        return 0;
    return error_set(err, -EBUSY, ERROR_CONFLICT, "%s",
                     machine_migrate_is_active(m) || machine_incoming_is_active(m)
                         ? "the VM stands still for its migration; wait for its end"
                         : "a snapshot of the VM is being written; wait for it, or cancel it");
}

int machine_changeable(const struct machine *m, struct error *err)
{
    if (machine_points_are_busy(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a snapshot of the VM's disks is being made or removed; wait for it");
    if (!machine_migrate_is_active(m) && !machine_incoming_is_active(m))
        return frozen_check(m, err);
    return error_set(err, -EBUSY, ERROR_CONFLICT, "the VM is being migrated; wait for its end, or cancel it");
}

void machine_leave(struct machine *m)
{
    if (!machine_has_ended(m))
        machine_end_with(m, MACHINE_END_MIGRATED, "it runs elsewhere now");
}

void machine_fail(struct machine *m, const char *why)
{
    snprintf(m->failure, sizeof(m->failure), "%s", why);
    if (!machine_has_ended(m))
        machine_end_with(m, MACHINE_END_FAILURE, m->failure);
}

void machine_stall(struct machine *m, bool stalled)
{
    __atomic_store_n(&m->stalled, stalled, __ATOMIC_RELEASE);
    if (stalled) {
        vcpu_set_hold(&m->vcpus, VCPU_HOLD_MIGRATE, false);
        return;
    }
    vcpu_set_release(&m->vcpus, VCPU_HOLD_MIGRATE);
    io_loop_post(m->control, on_requests, m);
}

int machine_freeze(struct machine *m, struct error *err)
{
    if (frozen_check(m, err) < 0)
        return -EBUSY;
    if (m->state != MACHINE_RUNNING && m->state != MACHINE_PAUSED)
        return refuse(m, "frozen", err);
    vcpu_set_hold_at_rest(&m->vcpus, VCPU_HOLD_MIGRATE, &m->memory);
    machine_slots_settle(m); /* a device that is off the bus and still described could not be restored */
    on_requests(m); /* a reset or power-off that the guest asked for is no part of any state */
    int code = m->state == MACHINE_RUNNING || m->state == MACHINE_PAUSED ? machine_slots_check_attached(m, err)
                                                                          : refuse(m, "frozen", err);
    if (code < 0) {
        vcpu_set_release(&m->vcpus, VCPU_HOLD_MIGRATE);
        return code;
    }
    pthread_mutex_lock(&m->device_lock);
    if (m->state == MACHINE_RUNNING)
        device_list_pause(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    console_flush(m->console);
    m->frozen = true;
    return 0;
}

int machine_thaw(struct machine *m, struct error *err)
{
    ASSERT(m->frozen);
    m->frozen = false;
    if (machine_has_ended(m))
        return 0;
    int code = vcpu_set_clock_paused(&m->vcpus, err);
    pthread_mutex_lock(&m->device_lock);
    if (m->state == MACHINE_RUNNING)
        device_list_resume(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    vcpu_set_release(&m->vcpus, VCPU_HOLD_MIGRATE);
    io_loop_post(m->control, on_requests, m); /* what came while frozen */
    return code;
}

int machine_pause(struct machine *m, struct error *err)
{
    if (frozen_check(m, err) < 0)
        return -EBUSY;
    if (m->state == MACHINE_PAUSED)
        return 0;
    if (m->state != MACHINE_RUNNING)
        return refuse(m, "paused", err);
    vcpu_set_hold_at_rest(&m->vcpus, VCPU_HOLD_USER, &m->memory); /* it may be saved while it is paused */
    pthread_mutex_lock(&m->device_lock);
    device_list_pause(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    state_set(m, MACHINE_PAUSED, "request");
    return 0;
}

int machine_resume(struct machine *m, struct error *err)
{
    if (frozen_check(m, err) < 0)
        return -EBUSY;
    if (m->state == MACHINE_RUNNING)
        return 0;
    if (m->state != MACHINE_PAUSED)
        return refuse(m, "resumed", err);
    int code = vcpu_set_clock_paused(&m->vcpus, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&m->device_lock);
    device_list_resume(&m->devices);
    pthread_mutex_unlock(&m->device_lock);
    m->pause_reason[0] = '\0';
    state_set(m, MACHINE_RUNNING, "request");
    vcpu_set_release(&m->vcpus, VCPU_HOLD_USER | VCPU_HOLD_DISK);
    return 0;
}

int machine_reset(struct machine *m, struct error *err)
{
    if (frozen_check(m, err) < 0)
        return -EBUSY;
    if (m->state != MACHINE_RUNNING && m->state != MACHINE_PAUSED)
        return refuse(m, "reset", err);
    machine_boot(m, "request");
    return m->state == MACHINE_FAILED ? error_set(err, -EIO, ERROR_INTERNAL, "the reset failed: %s", m->failure) : 0;
}

int machine_stop(struct machine *m, struct error *err)
{
    (void)err;
    if (!machine_has_ended(m))
        machine_end_with(m, MACHINE_END_REQUEST, "request");
    return 0;
}

int machine_press_power_button(struct machine *m, struct error *err)
{
    if (frozen_check(m, err) < 0)
        return -EBUSY;
    if (m->state != MACHINE_RUNNING)
        return refuse(m, "asked to power off", err);
    pthread_mutex_lock(&m->device_lock);
    pm_press_power_button(m->pm);
    pthread_mutex_unlock(&m->device_lock);
    return 0;
}

int machine_ask_shutdown(struct machine *m, struct error *err)
{
    if (m->state != MACHINE_RUNNING)
        return refuse(m, "asked to shut down", err);
    machine_points_give_up_memory(m); /* the guest's time for it runs */
    pthread_mutex_lock(&m->device_lock);
    bool asked = guest_services_ask_shutdown(&m->guest);
    if (!asked)
        pm_press_power_button(m->pm);
    pthread_mutex_unlock(&m->device_lock);
    log_info("machine-shutdown", "vm=%s through=%s", m->config->name, asked ? "agent" : "power-button");
    return 0;
}
