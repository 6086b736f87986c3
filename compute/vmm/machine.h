/* A virtual machine of type pc-1, built from its configuration, and its life:
 *
 *            start            pause
 *   CREATED -------> RUNNING --------> PAUSED        reset by guest, user or triple fault: boots anew and stays in
 *      |             |  ^  |   resume    |           its state, unless options.exit_on_reset
 *      |             |  +--|-------------+
 *      |             |     |             |
 *      +-------------+-----+-------------+--- stop, power-off by the guest ---> STOPPED  (final)
 *                    |                   +--- failure of KVM or of a reset ---> FAILED   (final)
 *
 * Threads: the machine belongs to the thread of the control loop; vCPU threads, the I/O thread and the lease thread
 * live below it. Functions here are called on the control loop with the device lock NOT held. */
#ifndef COMPUTE_VMM_MACHINE_H
#define COMPUTE_VMM_MACHINE_H

#include "common/log.h"
#include "compute/vmm/boot.h"
#include "compute/vmm/bus.h"
#include "compute/vmm/console.h"
#include "compute/vmm/device.h"
#include "compute/vmm/guest_services.h"
#include "compute/vmm/io_loop.h"
#include "compute/vmm/kvm.h"
#include "compute/vmm/lease_watch.h"
#include "compute/vmm/machine_firmware.h"
#include "compute/vmm/machine_slots.h"
#include "compute/vmm/memory.h"
#include "compute/vmm/pci.h"
#include "compute/vmm/power.h"
#include "compute/vmm/sandbox.h"
#include "compute/vmm/uring.h"
#include "compute/vmm/vcpu.h"
#include "schema/objects.h"

enum machine_state { MACHINE_CREATED, MACHINE_RUNNING, MACHINE_PAUSED, MACHINE_STOPPED, MACHINE_FAILED };
const char *machine_state_name(enum machine_state state);

/* Why it came to an end (state STOPPED or FAILED). */
enum machine_end {
    MACHINE_END_NONE,
    MACHINE_END_POWER_OFF,    /* the guest powered off */
    MACHINE_END_REQUEST,      /* stopped from outside */
    MACHINE_END_RESET,        /* the guest reset, and exit_on_reset is set */
    MACHINE_END_TRIPLE_FAULT, /* the same by a triple fault */
    MACHINE_END_DEBUG_EXIT,   /* a test program ended with machine.debug_status */
    MACHINE_END_FAILURE,      /* KVM or we could not go on; machine.failure says why */
    MACHINE_END_MIGRATED,     /* it runs in another VMM */
};

struct pm;
struct pvpanic;
struct serial;

/* What the command line says beyond the configuration. */
struct machine_options {
    bool exit_on_reset;    /* a reset ends the machine */
    bool debug_exit;       /* the test programs' device is there (devices/testdev) */
    bool hide_x2apic;      /* the guest's APICs are in memory only */
    bool incoming;         /* it will be migrated here: disks are another's until then */
    bool handed_over;      /* incoming, from a VMM of this host that hands memory and taps over by descriptor */
    int fault_fd;          /* incoming: of page_faults_open, borrowed; 0 or less: no post-copy */
    bool without_kvm;      /* the guest's part is played by a program in C (accel_none.h) */
    const char *multiboot; /* a program to boot instead of the kernel, or NULL; borrowed */
    const struct sandbox *sandbox; /* of the threads; NULL: none; borrowed */
};

struct machine {
    const struct vmm_config *config; /* borrowed */
    struct machine_options options;
    enum machine_state state;
    enum machine_end end;
    char failure[512];     /* in state FAILED */
    unsigned debug_status; /* guarded by request_lock until the end is MACHINE_END_DEBUG_EXIT */

    struct guest_memory memory;
    struct kvm kvm;
    pthread_mutex_t device_lock;
    struct bus ports, mmio;
    struct pci_bus pci;
    struct io_loop *io;      /* the I/O thread's loop */
    struct uring *uring;     /* on it; NULL where the host does not permit io_uring */
    struct io_loop *control; /* borrowed: where requests of vCPU threads are dealt with */
    struct console *console; /* borrowed */
    struct list devices;
    struct machine_slots slots;
    struct pm *pm;
    struct serial *serial;
    struct guest_services guest; /* balloon and agent */
    struct pvpanic *pvpanic;
    struct machine_firmware firmware;
    struct vcpu_set vcpus;
    struct lease_watch lease;

    struct boot_source boot;
    struct kvm_irqchip chips[3]; /* at power-on, for reset */
    struct kvm_pit_state2 pit;

    pthread_mutex_t request_lock;  /* guards requests and failure until the control loop takes them */
    unsigned requests;             /* bits of enum machine_request in machine.c */
    char disk_error[160];          /* of the disk that asked for a pause */
    char pause_reason[160];        /* why it is PAUSED, where not by request; "" otherwise */
    uint64_t resets;               /* since start */
    struct log_limit reset_log;
    bool frozen;                   /* machine_freeze */
    bool stalled;                  /* machine_stall; atomic */
    bool filled;                   /* it is migrated here, and its disks have all that they are to have: nobody fills them any more; atomic */
    struct snapshot_job *snapshot; /* machine_snapshot.h; NULL until the first */
    struct backup_job *backup;     /* machine_backup.h; NULL until the first */
    struct point_job *points;      /* machine_points.h; NULL until the first */
    struct replica_job *replica;   /* machine_replica.h; NULL until the first */
    struct migrate_job *migrate;   /* machine_migrate.h; NULL until the first */
    struct incoming_job *incoming; /* machine_incoming.h; NULL where it was not migrated here */
};

/* Build everything; nothing runs yet. On failure nothing is left behind. */
int machine_init(struct machine *m, const struct vmm_config *config, const struct machine_options *options,
                 struct io_loop *control, struct console *console, struct error *err);
void machine_finish(struct machine *m);

/* Load the kernel and run, or begin PAUSED. */
int machine_start(struct machine *m, bool paused, struct error *err);
/* Instead: let @load fill memory and state, then run or stay PAUSED. After a failure only machine_finish is left. */
typedef int (*machine_load_fn)(void *arg, struct machine *m, struct error *err);
int machine_start_restored(struct machine *m, machine_load_fn load, void *arg, bool paused, struct error *err);
/* Stand still for a snapshot or migration, whatever the state, and refuse every move but a stop: neither memory nor
 * state change until the thaw. */
int machine_freeze(struct machine *m, struct error *err);
int machine_thaw(struct machine *m, struct error *err);
/* Part of its memory is not there and cannot be fetched now: hold the vCPUs, which may be waiting for it, without waiting
 * for them; or let them go on. Any thread. */
void machine_stall(struct machine *m, bool stalled);
/* The guest runs in another VMM: this one ends. Frozen. */
void machine_leave(struct machine *m);
/* -EBUSY in words while a migration is under way, or the machine is frozen for a snapshot, which would not have the change:
 * neither devices nor their settings may change. */
int machine_changeable(const struct machine *m, struct error *err);
/* A machine that was to be migrated here cannot go on. */
void machine_fail(struct machine *m, const char *why);
/* -EINVAL where the state does not allow it; pausing what is paused is no error, nor is resuming what runs. */
int machine_pause(struct machine *m, struct error *err);
int machine_resume(struct machine *m, struct error *err);
int machine_reset(struct machine *m, struct error *err);
int machine_stop(struct machine *m, struct error *err);
/* Ask the guest to power off: through its agent where one listens, else by the power button. Whether it does is its own
 * affair. */
int machine_ask_shutdown(struct machine *m, struct error *err);
int machine_press_power_button(struct machine *m, struct error *err);
static inline bool machine_has_ended(const struct machine *m)
{
    return m->state == MACHINE_STOPPED || m->state == MACHINE_FAILED;
}

/* A disk failed and its request is kept: hold the vCPUs, and pause; machine_resume starts it again. From the I/O
 * thread, with the device lock held. */
void machine_disk_stopped(struct machine *m, const char *why);

/* machine_devices.c: put every device of the configuration on its bus, in a fixed order. */
int machine_devices_add(struct machine *m, power_fn power, void *power_arg, struct error *err);
/* machine.c: the SMBIOS tables of this machine, appended to @out (smbios.h). */
void machine_smbios_build(const struct machine *m, struct bytes_writer *out);
/* machine.c: a test program asks for the end; a testdev_exit_fn (devices/testdev). */
void machine_debug_exit(void *arg, unsigned status);

#endif
