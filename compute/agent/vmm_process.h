/* VMM processes: start one that outlives us, find it again, never have two for one VM.
 *
 * The proof that there are never two, and that none is lost, whenever the agent is killed:
 *
 *   L is the OFD write lock on vms/<id>/vmm.lock. The kernel gives it to one open file description at a time, and
 *   takes it back when the last descriptor of that description is closed.
 *
 *   1. the order (epoch) is on disk in vm.json                        died here: no process; the order is read again
 *   2. take L; -EAGAIN: a VMM lives, do not start another             died here: L is free again, no process
 *   3. fork; parent and child hold L now                              died here: the child goes on alone
 *   4. the child writes "pid start-time boot-id epoch" into vmm.lock,
 *   5.   and becomes drover-vmm, descriptor of L included
 *   6. the parent closes its own descriptor; L stays the child's
 *
 *   One at most: a VMM exists only from step 3 on, and then holds L until it has ended, by whatever cause; step 2
 *   cannot succeed before. None lost: at start the agent looks at L of every VM directory. Free: no VMM, whatever
 *   any file says. Held: one lives, or is between 3 and 5, and the file names it (between 3 and 4 not yet: look
 *   again). The pid alone is never believed: its start time and the boot id have to match; nor is the file alone, which
 *   the VMM holds open and could write to: the process has to be of the user that the VM's VMM was started as
 *   (vmm_process_user), or a VMM could have us kill others.
 *
 * vmm.lock is removed only with L held, together with the VM's directory. The VMM must keep descriptor 3 open.
 *
 * All functions are short and may be called from the loop's thread. */
#ifndef COMPUTE_AGENT_VMM_PROCESS_H
#define COMPUTE_AGENT_VMM_PROCESS_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

#define VMM_PROCESS_LOCK_FD 3                   /* in the VMM: holds L, not to be closed */
#define VMM_PROCESS_LOG_BYTES_MAX (1024 * 1024) /* of vmm.log at a start; beyond, it begins anew */
#define VMM_PROCESS_EXEC_FAILED 127
#define VMM_PROCESS_VCPU_THREAD "vcpu" /* how the names of the VMM's threads begin that are vCPUs (compute/vmm/vcpu.c) */

struct vmm_process_id {
    pid_t pid;
    uint64_t start_ticks; /* field 22 of /proc/<pid>/stat, proc(5) */
    char boot_id[40];     /* /proc/sys/kernel/random/boot_id */
    uint64_t epoch;       /* of the order that it was started for */
};

/* Paths are absolute; all borrowed for the call. */
struct vmm_process_spawn {
    const char *program; /* drover-vmm */
    const char *const *argv; /* of another program that is held by such a lock (pool_rbd.h), which all that follows of a VMM is nothing to;
                                NULL: it is a VMM */
    const char *config_path;
    const char *log_path; /* its standard output and error are appended here */
    const char *boot_id;
    uint64_t epoch;
    uid_t user;          /* that it is to leave root for (jail.h of the VMM); 0: it goes on as we are */
    const char *incoming; /* it waits there for a migration: unix:/PATH; NULL: it boots */
    const char *incoming_disks; /* and there for the content of its disks; NULL: none comes */
    bool handed_over;    /* that migration is of another VMM of this host, which hands memory and taps over */
    const char *control; /* its control socket, instead of the one that its configuration names; NULL: that one */
    const char *cgroup;  /* cgroup.procs of the group that it begins in; NULL: ours */
};

/* Take L. @ret_fd: close-on-exec; closing it gives L back. -EAGAIN: held by a VMM. */
int vmm_process_lock(const char *lock_path, int *ret_fd, struct error *err);
/* Who holds L? 1: *ret_id names the process; 0: nobody (a missing file included); -EAGAIN: somebody whose name is not
 * written yet, look again in some milliseconds; other negative errno. */
int vmm_process_look(const char *lock_path, struct vmm_process_id *ret_id, struct error *err);
/* Whom the file names, be it alive or not. */
bool vmm_process_named(const char *lock_path, struct vmm_process_id *ret_id);
/* Steps 3 to 5. @lock_fd stays the caller's, to be closed. @ret_pidfd is the caller's. */
int vmm_process_start(const struct vmm_process_spawn *spawn, int lock_fd, struct vmm_process_id *ret_id,
                      int *ret_pidfd, struct error *err);
/* A pidfd of the process that @id names and no other: -ESRCH where it has gone, or its number is another's now. */
int vmm_process_open(const struct vmm_process_id *id, const char *boot_id, int *ret_pidfd);
/* Whose process it is: the real user. -ESRCH: it has ended. */
int vmm_process_user(pid_t pid, uid_t *ret_user);
/* -ESRCH: it has ended. */
int vmm_process_signal(int pidfd, int signal_number);
/* Wait status (waitpid(2)) of a child that has ended, and its slot in the process table freed. -ECHILD: not our
 * child (adopted); -EAGAIN: it lives. */
int vmm_process_reap(pid_t pid, int *ret_wait_status);
/* "ended with status 1", "was ended by signal 9 (Killed)"; returns @buffer. */
const char *vmm_process_end_text(int wait_status, char *buffer, size_t size);

struct vmm_process_usage {
    uint64_t cpu_ms;    /* user and system time of all its threads */
    uint64_t rss_bytes; /* resident memory, guest memory included */
};
int vmm_process_usage(pid_t pid, struct vmm_process_usage *ret_usage);

struct vmm_process_vcpus {
    uint64_t executed_ns; /* by the threads of its vCPUs, the guest's time included; as the kernel's scheduler counts */
    uint64_t age_ms;      /* of the process */
};
/* -ESRCH: it has ended; -ENOTSUP: it has no vCPUs yet, or this kernel does not count (no /proc/<pid>/schedstat). */
int vmm_process_vcpus(pid_t pid, struct vmm_process_vcpus *ret_vcpus);

#endif
