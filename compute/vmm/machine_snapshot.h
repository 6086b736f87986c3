/* Snapshots of a machine to a file and back: machine_state.h and migration/snapshot_file.h put together.
 *
 *            begin: freeze, state                  memory written: thaw           fsync, rename
 *   IDLE ----------------------------> MEMORY ----------------------------> COMMIT -------------> IDLE
 *                                        | cancel, failure: thaw, file removed                     ^
 *                                        +---------------------------------------------------------+
 *
 *   live:    IDLE -> COPY (the guest runs) -> frozen by the caller -> MEMORY -> COMMIT -> IDLE
 *
 * Memory is written by a thread of its own, so that the control socket answers meanwhile. The guest stands still
 * until its memory is in the file (in the page cache), not until the disk has it; live, only for what it wrote last.
 * Threads: functions on the control loop's thread, where `done` is called too. */
#ifndef COMPUTE_VMM_MACHINE_SNAPSHOT_H
#define COMPUTE_VMM_MACHINE_SNAPSHOT_H

#include "compute/vmm/machine.h"
#include "migration/snapshot_file.h"

struct snapshot_job; /* of one machine, made by its first snapshot */

enum snapshot_phase { SNAPSHOT_IDLE, SNAPSHOT_MEMORY, SNAPSHOT_COMMIT, SNAPSHOT_LIVE };

struct snapshot_report {
    enum snapshot_phase phase;
    struct snapshot_counts counts; /* of the last or current one */
    uint64_t memory_bytes;         /* to look at */
    uint64_t pause_us, total_us;   /* of the last one that was finished */
    struct error failure;          /* of the last one; code 0: none */
};

/* @code 0: the file is there and lasts. @arg as `stand` has. Called once for each snapshot that began, unless the machine ends first. */
typedef void (*snapshot_done_fn)(void *arg, int code, const struct error *err);

struct snapshot_options {
    const char *path;
    bool compress;
    bool stay; /* do not thaw after success: the caller ends the machine in `done` */
    /* Live: memory is copied while the guest runs, and then this freezes the machine (machine_freeze) and does what is to be done at
     * that moment. Negative errno: it is not frozen, and `done` is told. NULL: frozen at once, by machine_snapshot_begin. */
    int (*stand)(void *arg, struct error *err);
};

/* -EBUSY while one is under way. The guest goes on afterwards as it was before. */
int machine_snapshot_begin(struct machine *m, const struct snapshot_options *options, snapshot_done_fn done,
                           void *arg, struct error *err);
/* -EINVAL when none is under way. `done` is told. */
int machine_snapshot_cancel(struct machine *m, struct error *err);
struct snapshot_report machine_snapshot_report(const struct machine *m);
/* For machine_finish: ends one that is under way, without `done`. NULL is allowed. */
void snapshot_job_destroy(struct snapshot_job *job);

/* For machine_start_restored: @arg is an opened struct machine_restore. */
struct machine_restore {
    struct snapshot_file *file;
    unsigned how;       /* of snapshot_load */
    const char *resume; /* the point that its disks must be at, and whose word is taken away before it runs (snapshot_memory.h), or
                           it does not run; NULL: none. Borrowed, as is: */
    const char *directory; /* where that word is */
};
int machine_restore_load(void *arg, struct machine *m, struct error *err);
/* Once it runs: tell the networks where its MAC addresses live now. What cannot be told is learnt with the guest's
 * first frame. */
void machine_restore_announce(struct machine *m);

#endif
