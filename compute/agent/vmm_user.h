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
 * A VM with a disk in a shared pool has users of its own there, from a range of their own, which follow from its id alone: VMM_USER_TURNS
 * of them, its turns. Two such VMs may have the same ones (of 1,000, in 3 clusters of 100): then these two are kept apart by what each
 * sees of the host (the jail), and not by rights besides.
 *
 * The turns are the fence of shared pools. A host that was cut off may hold writes in its kernel that go out when its link is back, long
 * after the VM was started elsewhere. A file server (NFS) looks at each of them for the user that had the file opened, as if it was
 * just opened. So a VMM that begins where another one was last, on another host or in another life, begins as the next turn, and all its
 * files in shared pools are given to that user before: whoever still has them open as another one gets EACCES. Which turn is the last
 * one is said by the owner of the files, and by nothing else that hosts share; a host writes down what it has taken (struct vmm_turn)
 * before it gives the first file away, so that it takes one for each life, however often it begins. No turn is taken by a migration, of which
 * both VMMs have the files open, nor by a process that takes over from another one of its host; and what is attached to a VMM that
 * runs, or moved by it, is given to its user as it is. Nothing is fenced off from whoever was VMM_USER_TURNS turns before, and
 * nothing where files cannot be given away (no_root_squash), which are no pools.
 *
 * Whoever reads as root what a VMM may have written goes by file_read_foreign. Short calls; the loop's thread, but for what is said below. */
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
#define VMM_USERS_SHARED (1u << 24) /* VMs with disks in shared pools, from this on, in each turn; between are some of the agent's own */
#define VMM_USERS_SHARED_FIRST (2u * VMM_USERS)
#define VMM_USER_TURNS 8u /* as many ranges of VMM_USERS_SHARED as there is room for from the default base on */
#define VMM_USER_THROW_AWAY (VMM_USERS + 2u) /* of the one VM that is thrown away (task_boot.h) */
#define VMM_USER_WEB (VMM_USERS + 3u) /* of what fetches from the web (web_get.h) */

struct vm_places;

/* What a host has taken for the life of a VM; zeroed: nothing. */
struct vmm_turn {
    uint64_t epoch;  /* that life; */
    uid_t user;      /* the user that it runs as; */
    uint32_t before; /* one bit for each turn whose files may still be: they are being given away. 0: all have been */
};

/* The user of VM @vm_id from @base to @base + VMM_USERS - 1, none of @taken (one bool for each); -ENOSPC. */
int vmm_user_pick(uint32_t base, const char *vm_id, const bool taken[VMM_USERS], uid_t *ret_user);
/* Find the VM's user by its directory; where it has none yet, pick one and hand over the directory and what an earlier
 * VMM, of root, made in it. The directory is there; no VMM lives. */
int vmm_user_allot(const struct vm_places *places, uint32_t base, const char *vm_id, bool shared, uid_t *ret_user,
                   struct error *err);
/* The same for a VM that comes in a migration: *ret_user is the user whose its disks in shared pools are, for the VMM that it comes from
 * has them open. That is one of its turns, or none of them where they have moved there, or were attached, while it ran. -EBUSY in words:
 * another VM of this host has it. */
int vmm_user_allot_arriving(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err);
/* The same where no VMM has them open, and they are, or were, filled before its first one here is started: the turn whose they are, or the first,
 * and then 1: nobody has had them before. */
int vmm_user_allot_filled(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err);
/* That of a VM with disks that other hosts reach, in its turn @turn (below VMM_USER_TURNS): the same on all hosts. */
uid_t vmm_user_of_shared(uint32_t base, const char *vm_id, unsigned turn);
/* For a VM with disks that other hosts reach, and that no migration brings: which turn it is for the life that @order says, by *turn, as
 * this function has left it last on this host, and by its files. Nothing is given to that user before vmm_user_own_files, but its directory where
 * it has disks in pools of Ceph as well. Looks into pools: not for the loop's thread. The caller writes *turn down, lastingly, before vmm_user_own_files. */
int vmm_user_take_turn(const struct vm_places *places, uint32_t base, const struct vm_order *order, struct vmm_turn *turn, struct error *err);
/* Of what fetches from the web (web_get.h); where VMMs have no users of their own (@base 0) the one that is called nobody. */
uid_t vmm_user_of_web(uint32_t base);
/* Before each start, with the VM's lock held: disks, seed and images of @order are the user's to use. @arriving: but for disks that other
 * hosts reach: the one that the VM comes from uses them. @turn (may be NULL): what was taken; -ESTALE in words: one of the VM's own disks is
 * of another turn by now, so another host has it, and nothing was changed. */
int vmm_user_own_files(const struct vm_places *places, const struct vm_order *order, bool arriving, uid_t user, const struct vmm_turn *turn,
                       struct error *err);

/* @disk of @order alone, for a VMM that runs. */
int vmm_user_own_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                      struct error *err);

#endif
