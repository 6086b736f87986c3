/* The walls around a VMM process: what is left to code that has broken out of a device model and past its thread's
 * system calls (sandbox.h). The VMM puts them up itself, at its start, while it is still one thread and root, and before
 * it has looked at a byte that a guest could have written:
 *
 *   user       a user and a group of its own, no others, no capabilities, and no way back (no_new_privs)
 *   files      a mount namespace whose root is an empty, read-only tmpfs. In it, at the paths that they have on the host:
 *              the home (read and write, as far as the user may), what the configuration names besides (kernel,
 *              firmware, disks elsewhere), /dev/kvm and /dev/net/tun. No program, no library, no /proc, no /etc.
 *   limits     no core dumps (a guest's memory is nobody's business), JAIL_* below for the rest. Not the size of files:
 *              disks are as large as they are, and grow.
 *
 * Open before jail_enter whatever lies outside: the control socket (its directory is shared with other VMs), a snapshot
 * to restore, the lock that the agent passed. Everything else is opened behind the walls, with the user's rights, so that
 * what the VMM cannot open later, at a hot plug or a reset, it cannot open at the start either.
 * The network namespace stays the host's: a tap is found by its name there. Sockets of the network are out of reach by
 * sandbox.h, which is loaded next. The cgroup is the agent's affair: it puts the process there before it begins.
 *
 * Sanitizer builds see /proc, and may be traced: their leak checker wants both. */
#ifndef COMPUTE_VMM_JAIL_H
#define COMPUTE_VMM_JAIL_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

#define JAIL_FILES_MAX 32u         /* of jail_options.files */
#define JAIL_OPEN_FILES_MAX 8192   /* two eventfds for each of IRQ_GSI_MAX interrupts, and what disks and sockets take */
#define JAIL_THREADS_MAX 1024      /* of all processes of the user, which are the one */
#define JAIL_LOCKED_BYTES_MAX (64 << 20)

struct jail_file {
    const char *path; /* absolute, without ".." */
    bool writable;
    bool directory; /* with all that is in it; the rights of its files rule */
};

/* Borrowed for the call. */
struct jail_options {
    uid_t user;       /* not 0; the group is the one of the same number */
    const char *home; /* directory; absolute, without ".." */
    const struct jail_file *files; /* those that do not exist, and those in the home, are passed over */
    size_t file_count;
};

/* By the only thread of a process of root. After a failure the process is good for nothing but to end. */
int jail_enter(const struct jail_options *options, struct error *err);

#endif
