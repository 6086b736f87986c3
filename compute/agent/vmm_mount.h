/* Shows a directory to a VMM that runs in its jail (compute/vmm/jail.h), which sees only what it was started with.
 *
 * A mount of the directory, picked up in the host's namespace, is attached in the VMM's (open_tree(2), setns(2), move_mount(2)).
 * Only a thread that shares its root with no other may enter another mount namespace: so each call has one of its own, which
 * ends there. Needs root. Blocking, and on network file systems for as long as those please: not for the loop's thread. */
#ifndef COMPUTE_AGENT_VMM_MOUNT_H
#define COMPUTE_AGENT_VMM_MOUNT_H

#include "common/base.h"
#include "common/error.h"

/* @source of the host at @target, a directory that is there on the host and in the VMM's view, and in which no one but root can
 * change names. What was shown there before is not any more. @pidfd: the VMM. */
int vmm_mount_show(int pidfd, const char *source, const char *target, struct error *err);
/* @targets are not shown any more. Those that were not: fine; and so is a VMM that has ended. */
int vmm_mount_hide(int pidfd, const char *const *targets, size_t count, struct error *err);

#endif
