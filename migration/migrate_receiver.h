/* The target of a live migration: from the first connection to the guest's running here.
 *
 * Happy path (migrate_receiver_run, on a thread of its own; it blocks):
 *   1. CONNECT  the first connection is channel 0: is its machine one for this guest? ACCEPTED; the other channels
 *   2. MEMORY   pages into the guest's memory, which nobody has written to before; SYNCED after each round
 *   3. STOP     state, last pages; compared where asked; options.load; READY
 *   4. READY    wait for GO, or for migrate_receiver_decide() by somebody who knows
 *   5. GO       options.run; RUNNING
 * Failure modes: before READY whatever is wrong - the stream, the network, silence, cancel - ends the migration, the
 * source is told why, and the guest must not run: its memory and state are of no use. In READY a source that is gone
 * without GO or CANCEL makes the phase UNKNOWN: everything is here, but the source may go on; the guest stands still
 * until somebody who knows decides. Where it is handed over on one host that is the end: nobody is asked there. Bytes of
 * the peer never do more than that: everything is judged before it is used.
 *
 * Post-copy, where the source asks for it and fault_fd is there: 5. comes before memory is complete. From 3. on touches of
 * lacking pages wait and are asked for; after 5. the phase is POSTCOPY until all has come. Is the source lost meanwhile, the
 * phase is LOST: the guest is held still (options.stall) and the source waited for, which connects again, until somebody
 * decides RUNS_THERE: that is the guest's end, for nobody has its memory.
 *
 * Threads: run on one, which calls the guest's functions and those of the options; one for each further channel writes
 * to guest memory. Progress, cancel and decide from any. */
#ifndef MIGRATION_MIGRATE_RECEIVER_H
#define MIGRATION_MIGRATE_RECEIVER_H

#include "migration/guest.h"
#include "migration/migrate_progress.h"
#include "migration/migrate_wire.h"

struct migrate_receiver;

struct migrate_receiver_options {
    int listen_fd;             /* a stream socket that listens; borrowed. The first connection is the migration's */
    unsigned patience_ms;      /* how long the source may be silent before READY */
    /* Does the source's machine fit? Before any memory is sent. NULL: yes. */
    int (*fits)(void *arg, const struct machine_description *source, struct error *err);
    /* Memory is complete: put @states into the guest, so that it could run, and do not run it. */
    int (*load)(void *arg, struct stream_states *states, bool paused, struct error *err);
    /* It is this side's now, with @epoch (0: there is no cluster): run it, unless its user had paused it. */
    int (*run)(void *arg, uint64_t epoch, struct error *err);
    /* Hold the guest still, or let it go on; it may be waiting for a page, so this does not wait. NULL: nothing. */
    void (*stall)(void *arg, bool stalled);
    bool handed_over; /* the source is on this host and hands the guest's handles over (guest.h): it goes on where this side ends
                       * without a word, so the word is given before the guest runs */
    /* handed_over: all of run that can fail, but the guest itself. NULL: nothing. */
    int (*own)(void *arg, uint64_t epoch, struct error *err);
    int fault_fd; /* of page_faults_open, borrowed; 0 or less: no post-copy */
    void *arg;
};

struct migrate_receiver *migrate_receiver_create(struct guest *guest, const struct migrate_receiver_options *options);
void migrate_receiver_destroy(struct migrate_receiver *r); /* not while it runs; NULL is allowed */
/* 0: the guest runs here. Negative: it does not and never will. */
int migrate_receiver_run(struct migrate_receiver *r, struct error *err);
struct migrate_progress migrate_receiver_progress(struct migrate_receiver *r);
/* From load on, for those that the options name: has the source let go of what others reach? Locks that are there nevertheless are not
 * its own. */
bool migrate_receiver_released(const struct migrate_receiver *r);
/* Before READY, or when this process ends. */
void migrate_receiver_cancel(struct migrate_receiver *r);
/* By options.run, as soon as it lets the guest run or stand still as its user wants: from then on it lacks what has not come. */
void migrate_receiver_runs(struct migrate_receiver *r);
/* Pages are lacking while the guest runs or stands still: 0 when there is none, or no post-copy. */
uint64_t migrate_receiver_lacking(struct migrate_receiver *r);
/* -EINVAL but in READY, UNKNOWN and LOST (there: RUNS_THERE gives the guest up, and nothing else can be decided). */
int migrate_receiver_decide(struct migrate_receiver *r, enum migrate_outcome outcome, uint64_t epoch,
                            struct error *err);

#endif
