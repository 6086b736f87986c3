/* Brings the devices of a running VMM to what the order says, one request to its control socket after another:
 *
 *   0. which sessions with its replica are over (machine_replica.h): a guest that waits goes on
 *      Then each disk that is held at the end of a move: which of the two copies it is follows from the place in the order, where that is
 *      decided. Whatever comes after it
 *   1. each interface that the VMM has and the order has not (or has with another MAC): unplug; after VM_UNPLUG_MS by
 *      force. Limits of those that stay, where they differ
 *   2. bridges, taps and packet rules (vm_files_network, in the thread pool): what has gone goes, what is to come is there
 *   3. each interface that the VMM lacks: plug
 *   4. each disk: limits, on_disk_error and size, where they differ. A volume that the VMM lacks is shown to it and plugged in
 *   5. each volume that is being detached is unplugged: the guest is asked, and where it does not let go within VM_UNPLUG_MS this
 *      run fails, to be tried again; by force only where that was asked for
 *
 * What cannot be done with one disk keeps no other one waiting: the run goes on, and fails at its end with the first reason.
 *
 * Interfaces are known to the VMM as nic<number>, disks by their names. Nothing is remembered between runs: what the VMM
 * says it has is what counts, so that it can be run again after any failure, and after an agent's end in the midst of it. */
#ifndef COMPUTE_AGENT_VM_ADJUST_H
#define COMPUTE_AGENT_VM_ADJUST_H

#include "compute/agent/vm.h"

#define VM_UNPLUG_MS 5000     /* for a guest to let an interface go */
#define VM_UNPLUG_ASK_MS 100  /* between looks whether it has */

struct vm_adjust;

struct vm_adjust_options {
    const struct vm_context *context; /* outlives it */
    const struct vm_order *order;     /* copied */
    const struct vm_order *dropped;   /* its disks leave too (vm_adjust_dropped). Copied */
    const char *control_path;         /* copied */
    bool (*decided)(void *arg);       /* may a move of a disk be ended by the order now? NULL: yes */
    bool moves_only;                  /* it is to end: only 0 */
    uid_t user;                       /* that the VMM runs as: its taps are this user's */
    bool jailed;                      /* and it sees only what it is shown */
    int pidfd;                        /* of the VMM; -1 where it is not jailed. Doubled */
    /* Exactly once, from the loop, and the memory is gone: 0, -ECANCELED, or what went wrong. */
    void (*done)(void *arg, int status, const struct error *err);
    void *arg;
};

struct vm_adjust *vm_adjust_start(const struct vm_adjust_options *options);
void vm_adjust_cancel(struct vm_adjust *adjust); /* done follows */

/* An order comes after @before that does not name a volume's disk any more, and never has as one that leaves: what was decided of it was
 * lost with the end of the controllers' log. For them it is nobody's, so the VMM must not keep it. Adds such disks to *dropped, with their
 * pools, as ones that leave: by force where the guest keeps them. The caller clears it. */
void vm_adjust_dropped(const struct vm_order *before, const struct vm_order *after, struct vm_order *dropped);
/* Would a running VM have to be adjusted? */
bool vm_adjust_needed(const struct vm_order *before, const struct vm_order *after);
/* The same limits? Absent is no limit, as 0 is. */
bool vm_adjust_limits_same(const struct vmm_limits *a, const struct vmm_limits *b);

#endif
