/* A machine that leaves for another VMM while it runs: migration/migrate_sender.h around a machine.
 *
 * The sender has a thread of its own; it comes to the control loop for what only that may do (control_gate.h). When the
 * other side runs the guest this machine ends (MACHINE_END_MIGRATED); otherwise it goes on, and the report says why it
 * did not leave. Meanwhile devices and their settings stay as they are, and no snapshot is written.
 *
 * Disks are shared with the target: it has looked at them, this side has their locks. They are let go, written out, right
 * before the target is told to run, and taken back before the guest goes on here after all - which is refused when the
 * target has them by then. Those that other hosts reach (vmm_disk.shared) are let go before the target says that it is
 * ready: from then on the cluster may make them the target's without a word of this process, which may be frozen or gone.
 *
 * Whoever follows a migration can wait for the moment at which he is asked (machine_migrate_wait), which lies within the
 * pause: a question now and then would lengthen it.
 *
 * Threads: functions on the control loop's. */
#ifndef COMPUTE_VMM_MACHINE_MIGRATE_H
#define COMPUTE_VMM_MACHINE_MIGRATE_H

#include "compute/vmm/machine.h"
#include "migration/migrate_progress.h"

enum { MACHINE_MIGRATE_WAITERS_MAX = 16, MACHINE_MIGRATE_CONNECT_MS = 5000 };

struct migrate_job; /* of one machine, made by its first migration */

/* Begin: 0, and machine_migrate_progress tells the rest; -EBUSY, -EINVAL in words. @order is not kept. */
int machine_migrate_begin(struct machine *m, const struct vmm_migration_order *order, struct error *err);
struct migrate_progress machine_migrate_progress(const struct machine *m);
/* -EINVAL when none is under way, or it is too late. */
int machine_migrate_cancel(struct machine *m, struct error *err);
/* As migrate_sender_permit. */
int machine_migrate_permit(struct machine *m, struct error *err);
/* As migrate_sender_decide. */
int machine_migrate_decide(struct machine *m, enum migrate_outcome outcome, uint64_t epoch, struct error *err);
bool machine_migrate_is_active(const struct machine *m);
/* @done once, later: the migration asks for a decision, or whether it may stop the guest, or has ended. 1, and it never comes: that is so already. -EBUSY:
 * MACHINE_MIGRATE_WAITERS_MAX wait. */
int machine_migrate_wait(struct machine *m, void (*done)(void *arg), void *arg, struct error *err);
/* For machine_finish: gives one that is under way up. NULL is allowed. */
void migrate_job_destroy(struct migrate_job *job);

#endif
