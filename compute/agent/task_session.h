/* The task vm-replicate where it is a session (task.session), which lasts until something ends it: the VM's VMM keeps a replica on the
 * peer level with its disks (compute/vmm/machine_replica.h).
 *
 *   peer   a child that settles what the last session has come to, begins this one (replica_store_follow) and serves the disks by NBD at
 *          a Unix socket of the agent's --> a tunnel that lets in the VM's host alone --> ready, with what the replica holds
 *   main   peer ready --> a tunnel there --> the VMM is told to begin, and asked how it fares --> level: the task is ready
 *          --> lost, or never level: the task fails, and the guest waits until the order says that the session is over (vm_adjust.c)
 *
 * Nothing that ends here lets the guest go on: only the order does, which follows from the record. Begun twice - an agent was restarted - the
 * session fails, for the way is gone with the first one; another one follows.
 *
 * Threads: the loop's, but for the child. */
#ifndef COMPUTE_AGENT_TASK_SESSION_H
#define COMPUTE_AGENT_TASK_SESSION_H

#include "compute/agent/agent_task.h"

extern const struct agent_task_ops task_session_ops;
/* The host's part in @task is a session of @vm's as its host: it is given up now, for something else comes first. False: it is none. */
bool task_session_yield(struct agent_task *task, const char *vm);

#endif
