/* The source of a live migration: everything from the first connection to the word that the target runs.
 *
 * Happy path (migrate_sender_run, on a thread of its own; it blocks):
 *   1. CONNECT  channel 0, the machine's description, what the target must be able to do; ACCEPTED; other channels
 *   2. MEMORY   dirty log on; rounds as precopy.h decides, the guest throttled as it says; where ask_pause is set, more of
 *               them until migrate_sender_permit: those who are to decide in 4 answer
 *   3. STOP     guest paused; state, last pages, checksums where asked; what others may take without a word of ours is let
 *               go (release); READY
 *   4. READY    where ask_owner is set: migrate_sender_decide() says whose the guest is
 *   5. GO       the point of no return; RUNNING
 * Failure modes: before GO whatever happens - the network, the target, cancel, a decision - the guest goes on here,
 * unthrottled and without log, and the error says why; where something had been let go, once it has been taken back. After GO the guest never goes on by itself: without RUNNING the
 * phase is UNKNOWN until migrate_sender_decide(). `RUNS_THERE` ends as done, `RUNS_HERE` as failed with the guest going
 * on; who decides that must know that the target does not run it. Where it is handed over on one host, silence after GO is no
 * riddle: the target gives its word before it runs, and cannot give it any more once this side has stopped listening. Then the
 * guest goes on here, in UNKNOWN for as long as the target holds what was let go of.
 *
 * Threads: run on one, which calls the guest's functions and those of the options; with more than one channel a thread for each of
 * the others reads guest memory. Progress, cancel and decide from any. */
#ifndef MIGRATION_MIGRATE_SENDER_H
#define MIGRATION_MIGRATE_SENDER_H

#include "migration/guest.h"
#include "migration/migrate_channel.h"
#include "migration/migrate_progress.h"
#include "migration/precopy.h"

struct migrate_sender;

struct migrate_sender_options {
    struct precopy_settings precopy;
    unsigned channels;        /* 1 to MIGRATE_CHANNELS_MAX */
    uint64_t bytes_per_s_max; /* of all channels together, while the guest runs; 0: none */
    bool plain;               /* never compress */
    bool verify;              /* compare all memory in the pause: for tests, it takes long */
    bool ask_pause; /* do not stop the guest without migrate_sender_permit */
    bool ask_owner; /* wait in READY for migrate_sender_decide: somebody else says whose the guest is */
    bool hand_over; /* the target is on this host and gets the guest's handles (guest.h): nothing is copied. One channel, no
                     * post-copy, nothing to verify */
    uint64_t began_us; /* of migrate_now_us(): what precopy.total_us_max and the total count from; 0: from the run on */
    unsigned patience_ms;     /* how long the target may be silent while the guest runs... */
    unsigned stop_patience_ms; /* ...and while it stands still; so long, and what the pause may take, it stands still at
                                * all before the target is ready */
    /* A connected stream socket, which becomes the sender's; negative errno with words. */
    int (*connect)(void *arg, struct error *err);
    /* Stopped for the last pages: is it paused by its user, and to stay so at the target? NULL: no. */
    bool (*is_paused)(void *arg);
    /* It stands still: what is not memory and has to be at the target before its READY (disks). NULL: nothing. */
    int (*settle)(void *arg, struct error *err);
    /* Its state has been saved: let go of what the target may take as soon as the guest is its own, for it can learn that from
     * others and this side may be gone by then (disks that both hosts reach). Before READY, for nobody makes it the target's
     * before that. 1: the target is told so, for locks that it finds there are nobody's; 0: there is nothing of that kind. NULL,
     * and where hand_over is set: the same. */
    int (*release)(void *arg, struct error *err);
    /* Right before GO: nothing here may touch what both sides share (disks) from now on. And back, before the guest
     * goes on here after all, also what was released; negative: it cannot, for somebody else has it, and it is to be decided
     * anew, or tried again where nobody was asked yet. NULL: nothing is shared. */
    int (*let_go)(void *arg, struct error *err);
    int (*take_back)(void *arg, struct error *err);
    /* READY (where the owner is asked) or UNKNOWN has begun: somebody is to decide; or progress.asks_pause is set. NULL:
     * nobody needs to be told. */
    void (*asks)(void *arg);
    void *arg;
};

#define MIGRATE_PATIENCE_MS_DEFAULT 30000u
#define MIGRATE_STOP_PATIENCE_MS_DEFAULT 10000u

/* @guest and what @header borrows stay until destroy; @header is copied. */
struct migrate_sender *migrate_sender_create(struct guest *guest, const struct machine_description *header,
                                             const struct migrate_sender_options *options);
void migrate_sender_destroy(struct migrate_sender *s); /* not while it runs; NULL is allowed */
/* 0: the guest runs at the target and never again here. Negative: it goes on here. -EOWNERDEAD: UNKNOWN and given up by
 * migrate_sender_abandon: it is paused. */
int migrate_sender_run(struct migrate_sender *s, struct error *err);
struct migrate_progress migrate_sender_progress(struct migrate_sender *s);
/* -EINVAL from GO on, and in READY where the owner is asked: too late. */
int migrate_sender_cancel(struct migrate_sender *s, struct error *err);
/* Whoever decides must know: the VM's owner, or a person who has looked at both sides. @epoch: what the target owns it
 * with, 0 without a cluster. -EINVAL but in READY where the owner is asked, and in UNKNOWN. */
int migrate_sender_decide(struct migrate_sender *s, enum migrate_outcome outcome, uint64_t epoch, struct error *err);
/* The guest may be stopped within the next second; after that it is asked again. -EINVAL but in MEMORY. */
int migrate_sender_permit(struct migrate_sender *s, struct error *err);
/* This process ends: come back at once, in whatever phase. */
void migrate_sender_abandon(struct migrate_sender *s);

#endif
