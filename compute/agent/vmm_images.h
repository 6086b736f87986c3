/* Images of a running VM's disks at one instant, had of its VMM (compute/vmm/machine_backup.h), for what reads them: a backup, a point
 * of its replica. A VMM has one set at a time; whoever begins one gives up what a process before it left (the agent sees to it that
 * nobody is at work on it). Of children of the agent's; all calls block. */
#ifndef COMPUTE_AGENT_VMM_IMAGES_H
#define COMPUTE_AGENT_VMM_IMAGES_H

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

/* The caller clears *ret_images. -EIO in the VMM's own words. A snapshot of the VM that is being made or removed is waited for, which the
 * child tells of (task_child.h). */
int vmm_images_begin(const char *control_path, const struct vmm_backup_order *order, struct vmm_backup *ret_images, struct error *err);
/* @kept: what was made of them lasts, and the next ones may be asked for since @name. */
int vmm_images_end(const char *control_path, const char *name, bool kept, struct error *err);

#endif
