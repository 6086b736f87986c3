/* What the VMM's threads may ask of the kernel. A guest that has found a hole in a device model gets a thread of this
 * process, and no more than that thread's list of system calls (seccomp(2)).
 *
 *   base     control thread and whatever it starts (snapshot writers, disk threads): files, Unix sockets, threads;
 *            no programs, no mounts, no other processes, no network
 *   vcpu     the vCPU threads, within the base: KVM, memory, eventfds, transfers on descriptors that are there, and
 *            connections to Unix sockets (vsock); no opening of files, no threads
 *   io       the I/O thread: the same, and waiting for descriptors
 *   lease    within the base: time, futexes, nothing else
 *
 * The base is entered before the first thread is started, so that none is ever without; the others narrow it in the
 * thread itself. A call that is not on the list ends the VMM with SANDBOX_STATUS and the line
 *   <3>sandbox-violation thread=io syscall=59
 * on standard error (numbers: asm/unistd_64.h), which the agent shows as the reason. no_new_privs is set as well.
 * Sanitizer builds allow what their runtimes need at the end (leak checker, symbolizer), and nothing else.
 *
 * Threads: sandbox_create and _destroy by the main thread; sandbox_enter by the thread that is to be confined. */
#ifndef COMPUTE_VMM_SANDBOX_H
#define COMPUTE_VMM_SANDBOX_H

#include "common/base.h"
#include "common/error.h"

#define SANDBOX_STATUS 6 /* exit status of a VMM that made a call that is not on its thread's list */

enum sandbox_mode {
    SANDBOX_ON,
    SANDBOX_LOG, /* nothing is refused; the kernel logs what would have been (dmesg, audit) */
    SANDBOX_OFF,
};
enum sandbox_role { SANDBOX_BASE, SANDBOX_IO, SANDBOX_VCPU, SANDBOX_LEASE, SANDBOX_ROLES };

struct sandbox;

/* Compile the filters and catch violations; nothing is confined yet. *ret_sandbox is NULL with SANDBOX_OFF: every
 * function here takes that. @faults: the base may deal with a userfaultfd that is open (a target's, for post-copy); nobody
 * may open one. */
int sandbox_create(enum sandbox_mode mode, bool faults, struct sandbox **ret_sandbox, struct error *err);
/* The filters that were entered stay. */
void sandbox_destroy(struct sandbox *s);
/* Confine the calling thread, and the threads that it starts from now on. Cannot be undone. */
int sandbox_enter(const struct sandbox *s, enum sandbox_role role, struct error *err);
/* The same for the beginning of a thread's function, where nobody takes an error: then the process ends. */
void sandbox_enter_or_end(const struct sandbox *s, enum sandbox_role role);
/* A sanitizer build, whose lists are wider; for tests. */
bool sandbox_is_widened(void);
/* "on", "log" or "off"; -EINVAL for another word. */
int sandbox_parse_mode(const char *word, enum sandbox_mode *ret_mode);

#endif
