/* The users that VMMs run as: one for each VM of the host, so that a VMM that was taken over reaches neither another
 * VM's disk nor the agent's keys by the rights of its files alone, whatever else fails.
 *
 * A user is a number from a range of the host's that nobody else uses, with a group of the same number; there are no
 * names for them in /etc/passwd. Which one: SHA-256 of the VM's id, and the next free one where that is taken. So a VM
 * mostly has the same number wherever it goes, and a number is not given to another VM soon.
 *
 * What is taken is not written down in a file of its own, which could be lost or be wrong: the VM's directory says it by
 * its group, from before its first VMM starts until it has been removed, and it is removed only when no VMM lives
 * (vmm_process.h). So it survives the agent, and a number is never given out twice while a VMM lives.
 *
 *   vms/<id>           root, group of the VM, 1770: its VMM makes files there (console.log, exit.json, snapshots) but
 *                      can neither remove nor replace those of the agent, which are root's alone (vm.json, vmm.lock...)
 *   vms/<id>/disks     root, group of the VM, 0710: its VMM opens what it finds
 *   vms/<id>/disks/x   the user's, 0600; read-only ones root's, 0640
 *   vms/<id>/disks/x.layers  the user's, 0700, with what is in it but the image, which is root's and all may read
 *   <pool>/vms/<id>/x.layers, <pool>/volumes/<id>/x.layers  the same
 *   images/x           root's, 0644 in a directory that is closed to all: shown in the VMM's jail file by file
 *
 * A VM with a disk in a shared pool has the same user on every host, from a range of its own, or one host would take the files
 * from another's VMM: the number follows from its id alone. Two such VMs may have the same one (of 1,000, in 3 clusters of 100):
 * then these two are kept apart by what each sees of the host (the jail), and not by rights besides.
 *
 * Whoever reads as root what a VMM may have written goes by file_read_foreign. Short calls; the loop's thread. */
#ifndef COMPUTE_AGENT_VMM_USER_H
#define COMPUTE_AGENT_VMM_USER_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

/* Within what systemd's table of users ("Users, Groups, UIDs and GIDs on systemd Systems") calls unused: neither people,
 * services, containers nor /etc/subuid have numbers there. */
#define VMM_USER_BASE_DEFAULT 1900000000u
#define VMM_USERS 4096u /* VMs of one host, as in node_report */
#define VMM_USERS_SHARED (1u << 24) /* VMs with disks in shared pools, from this on; between are some of the agent's own */
#define VMM_USERS_SHARED_FIRST (2u * VMM_USERS)
#define VMM_USER_THROW_AWAY (VMM_USERS + 2u) /* of the one VM that is thrown away (task_boot.h) */
#define VMM_USER_WEB (VMM_USERS + 3u) /* of what fetches from the web (web_get.h) */

struct vm_places;

/* The user of VM @vm_id from @base to @base + VMM_USERS - 1, none of @taken (one bool for each); -ENOSPC. */
int vmm_user_pick(uint32_t base, const char *vm_id, const bool taken[VMM_USERS], uid_t *ret_user);
/* Find the VM's user by its directory; where it has none yet, pick one and hand over the directory and what an earlier
 * VMM, of root, made in it. The directory is there; no VMM lives. */
int vmm_user_allot(const struct vm_places *places, uint32_t base, const char *vm_id, bool shared, uid_t *ret_user,
                   struct error *err);
/* The same for a VM that comes in a migration: *ret_user is the user whose its disks in shared pools are, for the VMM that it comes from
 * has them open. That is another one than vmm_user_of_shared where they have moved there, or were attached, while it ran. -EBUSY in words:
 * another VM of this host has it. */
int vmm_user_allot_arriving(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err);
/* That of a VM with disks that other hosts reach: the same wherever it runs. */
uid_t vmm_user_of_shared(uint32_t base, const char *vm_id);
/* Of what fetches from the web (web_get.h); where VMMs have no users of their own (@base 0) the one that is called nobody. */
uid_t vmm_user_of_web(uint32_t base);
/* Before each start, with the VM's lock held: disks, seed and images of @order are the user's to use. @arriving: but for disks that other
 * hosts reach: the one that the VM comes from uses them. */
int vmm_user_own_files(const struct vm_places *places, const struct vm_order *order, bool arriving, uid_t user, struct error *err);

/* @disk of @order alone, for a VMM that runs. */
int vmm_user_own_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                      struct error *err);

#endif
