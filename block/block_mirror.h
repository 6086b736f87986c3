/* A disk that moves while it is used: copied to another block, until both hold the same and every write goes to both.
 *
 *     device --> front --> source
 *                  \-----> target        writes too, once it is synchronous
 *
 *   COPYING  what is marked is copied, cluster by cluster of 64 KiB, zeroes as zeroes (thin stays thin). A write of the
 *            device goes to the source and marks its clusters anew: they are copied again in a next round
 *   (synchronous) when little is left, or a round has not made it clearly less: a write to clusters that are not marked goes
 *            to both and ends when both have it, so nothing is marked by it any more and the rest shrinks whatever the
 *            device does. Its data is copied first: both sides get the same bytes even from a guest that changes them
 *   LEVEL    nothing is left: both hold the same but for what is under way to both
 *   (held)   what the device asks for waits: nothing is written to either side any more, so that whoever ends now leaves the
 *            same on both, until it is decided which of them goes on
 *   FAILED   the target failed. The device never hears of it: the front goes on with the source alone
 *   (guarded) from LEVEL on, for a target that another host may take for the disk at any moment: the device hears of no write before both
 *            have it, of no flush before it lasts on both, and the front never goes on with the source alone. FAILED, all but reads waits,
 *            also what the source has and the target may not: until the owner knows that nobody takes the target for the disk any
 *            more, and ends the mirror. So at every moment the target has all that the device was told is flushed
 *
 * A DISCARD goes to the source alone and marks: what it leaves there is copied, whatever that is. The target is written by
 * nobody else; it need not be empty where something is marked. Flushing both is the owner's business unless it is guarded
 * (block_mirror_settle first, when the device is quiet).
 *
 * The order that makes it right: marks are set when a write has ended, and cleared before the cluster is read; a write to
 * both waits for a copy of the same clusters, and no copy begins where a write to both or another copy is under way. Guarded, a flush
 * waits until nothing is marked (by discards, and writes that overlapped), and what would mark more waits for the flush.
 *
 * Threads: the owner's lock, as block.h says. */
#ifndef BLOCK_BLOCK_MIRROR_H
#define BLOCK_BLOCK_MIRROR_H

#include "block/block.h"

enum {
    MIRROR_CLUSTER_BYTES = 65536,
    MIRROR_COPY_CLUSTERS = 8, /* at most in one copy */
    MIRROR_COPIES_MAX = 4,    /* under way at once */
};
#define MIRROR_SYNC_BYTES_DEFAULT (UINT64_C(64) << 20)

enum mirror_state { MIRROR_COPYING, MIRROR_LEVEL, MIRROR_FAILED };

struct block_mirror_options {
    struct block *source, *target; /* borrowed; the same size; nothing is in flight */
    uint64_t sync_bytes;           /* left when it becomes synchronous; 0: MIRROR_SYNC_BYTES_DEFAULT */
    void (*changed)(void *arg);    /* it is LEVEL for the first time, or FAILED; may be NULL */
    void *arg;
};

struct mirror_progress {
    enum mirror_state state;
    bool is_sync;
    unsigned rounds;
    uint64_t left_bytes, copied_bytes, zero_bytes; /* zero_bytes: of those copied */
    int failure;                                   /* negative errno in FAILED */
};

struct block_mirror;

/* Nothing is marked yet. -EINVAL, -ENOMEM in words. */
int block_mirror_create(const struct block_mirror_options *options, struct block_mirror **ret_mirror, struct error *err);
/* In the source's place for the device; lives as long as the mirror. */
struct block *block_mirror_front(struct block_mirror *m);
/* To be copied: a stretch; or all of the source that may hold anything but zeroes (for a target that is all zeroes).
 * Blocking; negative errno. */
void block_mirror_mark(struct block_mirror *m, uint64_t offset, uint64_t size);
int block_mirror_mark_data(struct block_mirror *m);
/* From the first call on no more is copied than was allowed: so many bytes more, zeroes and what the device writes to both not
 * counted, and what is unused is not kept. block_mirror_settle, for which the device waits, knows no limit. */
void block_mirror_allow(struct block_mirror *m, uint64_t bytes);
/* The oldest request of the device's that waits for the target, or for a copy to it, by its number (1, 2, ...); 0: none does. A
 * target that is silent is the owner's to notice: whoever sees the same number for too long has it fail. */
uint64_t block_mirror_oldest(const struct block_mirror *m);
/* Begin copying, or go on where the lease had stopped it. */
void block_mirror_run(struct block_mirror *m);
struct mirror_progress block_mirror_progress(const struct block_mirror *m);
/* The device is quiet: copy what is left, here and now. 0: LEVEL; negative errno: FAILED, or -EAGAIN: no lease. */
int block_mirror_settle(struct block_mirror *m);
/* LEVEL, settled and flushed on both sides: from now on what the device asks for is kept. Drained it ends with -EAGAIN, to be asked again
 * of what stands in the front's place then. */
void block_mirror_hold(struct block_mirror *m);
/* LEVEL: guarded from now on. What the device was told before may not last yet: a FLUSH through the front makes it. -EAGAIN: not LEVEL;
 * or why it has FAILED. Drained, what waits after FAILED ends as after block_mirror_hold. */
int block_mirror_guard(struct block_mirror *m);
/* Drains the front; source and target stay the caller's. NULL is allowed. */
void block_mirror_destroy(struct block_mirror *m);

#endif
