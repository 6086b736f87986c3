/* A machine that arrives from another VMM: migration/migrate_receiver.h around a machine that has not run.
 *
 * It listens at a Unix socket (mode 0600); what comes from other hosts comes through their agents, which know one another
 * by certificate. The first connection is the migration's, and how it ends is how this machine begins or ends:
 *
 *   CREATED --everything is here--> PAUSED, frozen --go--> RUNNING, or PAUSED where its user had paused it
 *      +------------ refused, lost, cancelled -----+-----> FAILED: the VMM ends
 *
 * In a post-copy it runs while its memory is still coming, is held still while the source is lost (machine_stall), and
 * fails when the source is given up.
 *
 * Threads: functions on the control loop's; the receiver has one of its own. */
#ifndef COMPUTE_VMM_MACHINE_INCOMING_H
#define COMPUTE_VMM_MACHINE_INCOMING_H

#include "compute/vmm/machine.h"
#include "migration/migrate_progress.h"

struct incoming_job;

/* @to: unix:/PATH. @disks_to: the same, where the content of disks comes that are this machine's own (vmm_disk.copied), by
 * NBD, until it is loaded; NULL: there are none. @m was built with options.incoming. */
int machine_incoming_start(struct machine *m, const char *to, const char *disks_to, struct error *err);
struct migrate_progress machine_incoming_progress(const struct machine *m);
/* As migrate_receiver_decide. */
int machine_incoming_decide(struct machine *m, enum migrate_outcome outcome, uint64_t epoch, struct error *err);
/* Waiting or arriving: not yet this machine's. */
bool machine_incoming_is_active(const struct machine *m);
/* The epoch that it was handed over with; 0: none. */
uint64_t machine_incoming_epoch(const struct machine *m);
/* It runs, or has, and pages of its memory are still at the source: such a machine cannot be taken apart, for whoever waits
 * for a page would go on with zeros and write them to a disk. Its process has to end as it is. */
bool machine_incoming_lacks_memory(const struct machine *m);
/* For such an end: the socket's file goes. */
void machine_incoming_unlink(const struct machine *m);
void incoming_job_destroy(struct incoming_job *job); /* for machine_finish; NULL is allowed */

#endif
