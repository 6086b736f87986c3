/* The files of one VM on its host, and the work on them. Blocking; prepare and remove run in the loop's thread pool.
 *
 *   <vms>/<id>/vm.json        struct agent_vm: the intent, written before anything is done
 *              config.json    struct vmm_config, written before each start of the VMM
 *              vmm.lock       held by the VMM while it lives (vmm_process.h)
 *              vmm.log        the VMM's own words
 *              exit.json      struct vmm_exit: the VMM's last ones
 *              console.log    what the guest wrote to its console; console.log.1: before that
 *              disks/<name>.raw      a disk that is only read, or was made by an older version; one whose image cannot be shared
 *              disks/<name>.layers/  <name>.disk, its layers, and the second name of the image that it begins as
 *              disks/<name>.<place>.layers/  the same, moved to there (pool_dir.h); <name>.<place>.whole: all of it is there
 *              disks/<name>.nbd, .rbd.lock, .rbd.log  the server of a disk in a pool of Ceph (pool_rbd.h)
 *              disks/restored      the operation of the last live restore (vm_files_set_restored); restore.sock: where it serves
 *              disks/<name>[.<place>].plugged/ empty; where a volume that was attached to the running VM, or the copy that a disk moves to,
 *                                    is shown to its VMM (vmm_mount.h)
 *              half           its disks are being made of another VM's (vm_files_set_half)
 *              seed.img       cloud-init's NoCloud disk, for a VM with hostname, ssh_keys or user_data
 *   <vms>/<id>.gone           being removed: never looked into again
 *   <lease>/<id>.lease        its lease page
 *   <run>/<12 digits>.sock    the VMM's control socket: a path that fits into sun_path (107 bytes, unix(7))
 *
 * Who owns what, so that a VMM reaches its own alone: vmm_user.h. */
#ifndef COMPUTE_AGENT_VM_FILES_H
#define COMPUTE_AGENT_VM_FILES_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

#define VM_FILES_JSON_BYTES_MAX (256 * 1024)
#define VM_FILES_CONTROL_PATH_SIZE 108
#define VM_FILES_GONE ".gone"

struct host_network;
struct vmm_cgroups;

/* Where the VMs of a host are. Borrowed strings; whoever holds this outlives them all. */
struct vm_places {
    const char *vms_dir, *run_dir, *images_dir; /* absolute */
    const char *replicas_dir; /* replica_dir.h; NULL: none (tests) */
    const char *rbd_path; /* drover-rbd; NULL: the one beside this program */
    const char *lease_dir; /* lease pages, on a file system in memory; NULL: in the VMs' directories (tests) */
    uint32_t user_base;                         /* vmm_user.h; 0: VMMs run as the agent does */
    bool make_bridges;                          /* a missing bridge is made */
    bool throw_away; /* of VMs that are thrown away (task_boot.h): interfaces are cut off, what is missing of disks is read on demand */
    bool shared_memory;                         /* guests' memory can be handed to another VMM (vmm_config.memory_shared) */
    const struct vmm_cgroups *cgroups;          /* NULL: none (tests) */
    struct host_network *network;               /* of the host; NULL: only plain bridges (tests) */
};

/* <vms>/<id>/<leaf>; @leaf "" = the directory itself. The caller frees. */
char *vm_files_path(const struct vm_places *places, const char *vm_id, const char *leaf);
/* -ENAMETOOLONG with the cure. */
int vm_files_control_path(const struct vm_places *places, const char *vm_id, char buffer[VM_FILES_CONTROL_PATH_SIZE],
                          struct error *err);

/* *ret_file is the caller's to clear. -ENOENT: no vm.json. */
int vm_files_load(const struct vm_places *places, const char *vm_id, struct agent_vm *ret_file, struct error *err);
/* Makes the directory where it is missing; after 0 it survives a power cut. */
int vm_files_save(const struct vm_places *places, const struct agent_vm *file, struct error *err);
/* A live restore of the VM's disks: the operation that has put them in their place, though not all of them may be here yet. Its
 * VMMs are told where the rest is (vm_files_source_path) from the next start on. Lasts when it returns 0; @operation NULL: none, and what
 * is not whole is opened by nobody. */
int vm_files_set_restored(const struct vm_places *places, const char *vm_id, const char *operation, struct error *err);
bool vm_files_was_restored(const struct vm_places *places, const char *vm_id, const char *operation);
/* Its disks are being made of another VM's, or not any more. One that is left so, for whoever ended the task knew nothing of it, is not started
 * with what is there: vm_files_prepare. Lasts when it returns 0. */
int vm_files_set_half(const struct vm_places *places, const char *vm_id, bool half, struct error *err);
/* The socket: in a directory where only root writes. The caller frees. */
char *vm_files_source_path(const struct vm_places *places, const char *vm_id);
/* The page that its VMM obeys (lease_page.h). The caller frees. */
char *vm_files_lease_path(const struct vm_places *places, const char *vm_id);
/* Is @disk this host's own, so that its content goes along in a migration? Of what is only read both hosts have the same;
 * what is in a pool stays there, but for what comes in a migration to a pool. */
bool vm_files_disk_moves(const struct vm_disk *disk);
bool vm_files_disks_move(const struct vm_order *order); /* any of them */
/* @arriving: for a VMM that a migration comes to, which fills the disks. */
int vm_files_write_config(const struct vm_places *places, const struct vm_order *order, bool arriving, struct error *err);
/* @disk of @order as its VMM is to have it, opened at @directory (NULL: where it lies); the caller clears *ret_disk. */
void vm_files_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, const char *directory,
                   struct vmm_disk *ret_disk);
/* The epoch that @disk of @order is opened under. */
uint64_t vm_files_disk_epoch(const struct vm_order *order, const struct vm_disk *disk);
/* A volume, or another place of a disk, that the running VMM is to have now: it is made sure that it is there, and that it is @user's (0:
 * the agent's own, then the VMM sees all files). *ret_directory: where it sees it; the caller frees. @pidfd: the VMM. vm_files_hide: it has it no more. */
int vm_files_show(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, int pidfd,
                  char **ret_directory, struct error *err);
int vm_files_hide(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, int pidfd,
                  struct error *err);
/* Copies that moves have left in its view, but for the one that @disk is, and the one with the file @used (may be NULL), which it has. */
int vm_files_hide_others(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, const char *used,
                         uid_t user, int pidfd, struct error *err);
/* The VMM has let go of the disk's file @path, of which it had been shown the directory when it was started: it keeps the file system of
 * that no longer. What is the VM's own directory stays. */
int vm_files_hide_old(const struct vm_places *places, const struct vm_order *order, const char *path, uid_t user, int pidfd,
                      struct error *err);
/* Which place of @disk is the file @path of a VMM's in? An id, or NULL: the one where it was made. In @buffer. */
const char *vm_files_place_of(const struct vm_disk *disk, const char *path, char buffer[37]);
/* The same as VM_NEXT_CONFIG, for a VMM of this host that takes the VM over from the one that runs it. */
int vm_files_write_next_config(const struct vm_places *places, const struct vm_order *order, struct error *err);
/* In the VM's directory, while one VMM takes it over from another: what becomes config.json and vmm.lock, and where it
 * listens. */
#define VM_NEXT_CONFIG "config-next.json"
#define VM_NEXT_LOCK "vmm-next.lock"
#define VM_NEXT_SOCKET "next.sock"
/* The directory of a disk with layers; NULL: it is a raw file, or no file at all. The caller frees. */
char *vm_files_layers_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk);
/* Where the memory of its snapshots is (migration/snapshot_memory.h): with the first disk that is written to. The caller frees; NULL: it has
 * none with layers. */
char *vm_files_memory_directory(const struct vm_places *places, const struct vm_order *order);
/* Of memory that its next start goes on from; 0: it boots. */
uint64_t vm_files_resume_bytes(const struct vm_places *places, const struct vm_order *order);
/* The raw file, the head of a disk with layers, or the socket of one that is in a pool of Ceph. The caller frees. */
char *vm_files_disk_path(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk);
/* Interface @i of @order as its VMM is to have it; the caller clears *ret_nic. */
void vm_files_nic(const struct vm_places *places, const struct vm_order *order, size_t i, struct vmm_nic *ret_nic);
/* Bridges, taps of @user and packet rules of @order; taps that it has no more go, and must not be open. */
int vm_files_network(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err);
/* Number of @nic, which is at @place in its list: its tap, its name in the VMM and its default MAC follow from it. */
unsigned nic_number(const struct vm_nic *nic, size_t place);
/* The VMM's parting word: 0 if process @pid left one, *ret_word is the caller's to clear; -ENOENT. */
int vm_files_read_exit(const struct vm_places *places, const char *vm_id, pid_t pid, struct vmm_exit *ret_word);
/* The last error that vmm.log tells near its end (a line "<3>..." of common/log.h), made printable; "" where there is
 * none. Returns @buffer. */
const char *vm_files_last_error(const struct vm_places *places, const char *vm_id, char *buffer, size_t size);

/* Disks and taps of @order; images are there already. @user: of the taps. @disks_made: they were made once, so a missing
 * one is an error. @arriving: disks that move are made empty, but for the image below their layers. -EBADMSG, -EFBIG: cannot
 * succeed with this order. -EINPROGRESS in words: nothing has failed, another process is at work on the replica that they are to be; again
 * soon. */
int vm_files_prepare(const struct vm_places *places, const struct vm_order *order, uid_t user, bool disks_made, bool arriving,
                     struct error *err);
/* Is @was, where a disk of @order was by orders that nobody knows any more, none that could be used instead? 0; -EFBIG in words: it is
 * there; or it cannot be seen, for its pool is away. */
int vm_files_elsewhere(const struct vm_places *places, const struct vm_order *order, const struct volume_order *was, struct error *err);
/* All disks, which are what a migration had brought so far: they are to be made anew. */
int vm_files_remove_disks(const struct vm_places *places, const char *vm_id, struct error *err);
/* Taps, control socket, cgroup, directory; @pools_of (may be NULL): and what that order has in pools. @nobodys: all of the VM there; else
 * the disks that it names in pools of this host alone, for those in others may be another host's by now. -EAGAIN: a VMM holds the VM. */
int vm_files_remove(const struct vm_places *places, const char *vm_id, const struct vm_order *pools_of, bool nobodys, struct error *err);
/* The disks that a migration was to fill in pools that other hosts reach, where that has not even begun; afterwards it is the controllers
 * that know whose they are. */
int vm_files_remove_unfilled(const struct vm_order *order, struct error *err);
/* Finish what removals of a killed agent left, for all of <vms>. Errors are logged, ignoring. */
void vm_files_remove_leftovers(const struct vm_places *places);

#endif
