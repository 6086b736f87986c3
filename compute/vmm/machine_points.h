/* Points in time of a machine's disks while it runs: for each disk the steps of block/layer_point.h, all switched under one
 * hold of the device lock. With memory: the machine as it is at that point, too, in a file (migration/snapshot_memory.h).
 *
 *   take:  begin --prepare (thread)--> open --freeze asked, if there is an agent--> switch --flush (I/O thread)--> name (thread) --> done
 *            |                                                                 (thaw asked at once)                        |
 *            +---- failure: before the switch all is as it was; after it there is one layer more, and no name -------------+
 *   take, with memory:
 *          begin --prepare (thread)--> open --memory (thread)--> frozen, switch --+--flush (I/O thread)------------+--> name (thread), then the
 *                                                                                 '--rest, thawed, sync (thread)---'    file gets its name: done
 *          failure: the file is not there, and the rest as above
 *   drop:  begin --name (thread; the file of its memory goes first)--> done, and merges begin
 *
 *   merges, one after another, of one disk at a time: copied on the I/O thread, concluded here (files are opened and
 *   removed, which the I/O thread may not); given up for a take or drop, and begun again after it
 *
 * Without memory the guest is not paused: what it writes waits until the writes in flight on all these disks have ended (pause_us),
 * while reads and flushes go on (layer_chain_hold). Where a drain comes in between, of a device that is reset say, or they take
 * longer than POINTS_HOLD_MS, the disks are drained under the lock, one after another, as long as that takes. Its file
 * systems are frozen for a little longer; the agent's channel thaws them by itself if we should not (guest_agent.h).
 * With memory it stands still while what it has written during the copying is copied, and nothing is frozen: it goes on in the middle of
 * whatever it does, and file systems that nobody thaws would be frozen in it for good.
 *
 * Threads: functions on the control loop's thread with the device lock not held, where `done` is called too. */
#ifndef COMPUTE_VMM_MACHINE_POINTS_H
#define COMPUTE_VMM_MACHINE_POINTS_H

#include "compute/vmm/machine.h"

enum { POINTS_DISKS_MAX = 16, POINTS_FREEZE_MS = 10000, POINTS_HOLD_MS = 5000 };

struct point_job; /* of one machine, made by its first point */

struct point_result {
    const char *name;
    enum snapshot_consistency consistency;
    uint64_t pause_us;
    uint64_t memory_bytes; /* written */
    struct object_list disks; /* struct snapshot_disk; borrowed */
};

/* @code 0: it lasts. Called once for each that began, unless the machine ends first. @result of a take that went well. */
typedef void (*point_done_fn)(void *arg, int code, const struct error *err, const struct point_result *result);

/* -EBUSY while one is under way or the machine may not change; -ENOTSUP in words: a disk is one raw file. With @memory: `done`
 * with -ENOSPC before the machine stands still, where there is no room; @freeze may not be MUST. @only (where it has names; without
 * @memory): of these disks alone; -ENOENT in words where one is not there, or not written to. */
int machine_points_take(struct machine *m, const char *name, enum vmm_freeze freeze, bool memory, const struct string_list *only,
                        point_done_fn done, void *arg, struct error *err);
/* Where one with memory keeps the machine still, it goes on at once, and the point fails. */
void machine_points_give_up_memory(struct machine *m);
/* Do all disks read as they did at that point? -ESTALE in words if not: with its memory they would make no whole. Before the machine
 * has run. */
int machine_points_are_at(struct machine *m, const char *name, struct error *err);
/* Where the memory of points lies: beside the layers of the first disk that has any and is written to. The caller frees; NULL: there is
 * none. */
char *machine_points_directory(const struct vmm_config *config);
/* One that no disk has is no error. Merges begin in any case. */
int machine_points_drop(struct machine *m, const char *name, point_done_fn done, void *arg, struct error *err);

struct point_report {
    bool busy, merging;
    uint64_t done_bytes, total_bytes, merges;
    uint64_t memory_read_bytes, memory_bytes; /* of the memory being written; 0: none is */
    struct error failure; /* of the last merge; code 0: none */
};
struct point_report machine_points_report(struct machine *m);
/* One is being made or removed: disks must not change. */
bool machine_points_are_busy(const struct machine *m);
/* For machine_finish, before the devices go. NULL is allowed. */
void point_job_destroy(struct point_job *job);

#endif
