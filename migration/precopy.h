/* When to stop a guest that is being copied while it runs: pure decisions, without clock, socket or guest.
 *
 * Memory is sent in rounds: the first sends what there is, each later one what was written during the one before.
 * After each round the caller says how it went, and is told what to do next:
 *
 *           predicted pause > limit                    no progress: less time for the guest
 *   BULK ------------------------> ROUNDS --------------------------------------> ROUNDS, throttled
 *     |                              |                                                  |
 *     |     predicted <= limit       |                                                  | at full throttle, no progress:
 *     +------------------------------+--------------------------------------------------+   predicted <= the most that
 *     v                                                                                 v   is allowed: PAUSE
 *   PAUSE                                                                             POSTCOPY, where it may; else more
 *                                                                                     rounds until the time is over, or
 *                                                                                     nothing came of many: GIVE_UP
 *
 * Prediction: pages left times the time that a page took so far (everything included: copying, eliding, compression,
 * the wire, a limit of bandwidth), and a fixed part for the state. Where pages were elided it is the longer of that and of the
 * time that a page took which was sent, times those that are likely to be. A page is mostly elided because it was written before its
 * turn came in the round before, so that only those can be which that round looked at, too: as many of these as of the same kind in
 * the last round. Of the others only as many as that cannot explain, for a guest that writes what is there already. Progress: a sixth fewer pages left than at best, after the
 * first round than it has sent. A guest whose rate of writing, as a look within the round has told it, leaves no room for progress
 * is given no patience. Post-copy, where it is the way out, is taken as soon as the rounds to come would take more than three
 * times as long as to send what is left, and the guest is not to be slowed down more.
 * A pause longer than the one that is aimed at begins at a low: when no more is left than at best so far, or nearly, or
 * after some rounds without such a moment.
 * Where no limit of time was given, rounds without progress come to an end all the same if the guest is slowed down as much as it
 * may be, or post-copy was to be the end: after PRECOPY_STUCK_ROUNDS and PRECOPY_STUCK_US of them. A guest that nobody slows down
 * and that was given all the time there is loses nothing by waiting, and is waited for.
 * A target that cannot do post-copy is told by precopy_without_postcopy: then the guest may be slowed down further.
 * Throttle: percent of the time that the guest's processors stand still. Where a look within the round has told the rate
 * of writing, a step aims at half the rate at which pages can be sent, and need not wait long; otherwise it halves the
 * time that is left.
 *
 * Threads: none of its own. */
#ifndef MIGRATION_PRECOPY_H
#define MIGRATION_PRECOPY_H

#include "common/base.h"

enum precopy_postcopy { PRECOPY_POSTCOPY_NEVER, PRECOPY_POSTCOPY_FALLBACK, PRECOPY_POSTCOPY_AT_ONCE };

struct precopy_settings {
    uint64_t downtime_us;     /* the pause that is aimed at */
    uint64_t downtime_max_us; /* a pause that is accepted when nothing else helps; below downtime_us: none */
    uint64_t fixed_us;        /* of the pause: what is not memory */
    uint64_t total_us_max;    /* then it is given up; 0: never */
    unsigned throttle_max;    /* percent; 0: the guest is never slowed */
    unsigned throttle_max_alone; /* instead, where post-copy was chosen and the target cannot do it; below throttle_max: the same */
    unsigned patience;        /* rounds without progress before the first throttle */
    enum precopy_postcopy postcopy;
};
#define PRECOPY_DOWNTIME_US_DEFAULT 100000u
#define PRECOPY_FIXED_US_DEFAULT 10000u
#define PRECOPY_THROTTLE_MAX_DEFAULT 99u
#define PRECOPY_THROTTLE_MAX_POSTCOPY 60u /* where there is post-copy: it is the lesser evil from there on */
#define PRECOPY_PATIENCE_DEFAULT 2u
#define PRECOPY_STUCK_ROUNDS 30u
#define PRECOPY_STUCK_US 60000000u

/* How a round went. */
struct precopy_round {
    uint64_t elapsed_us;  /* since the migration began */
    uint64_t took_us;     /* from its first page until the target had its last */
    uint64_t pages;       /* that were looked at */
    uint64_t same_pages;  /* of these, what the target had already */
    uint64_t dirty_pages; /* written meanwhile: what the next one would send */
    uint64_t again_pages; /* of these, the ones that this round has looked at, too */
    uint64_t dirty_per_s; /* rate of writing where the caller has measured it within the round; 0: unknown */
};

enum precopy_action { PRECOPY_ROUND, PRECOPY_PAUSE, PRECOPY_POSTCOPY, PRECOPY_GIVE_UP };

struct precopy_decision {
    enum precopy_action action;
    unsigned throttle;     /* percent, from now on */
    uint64_t predicted_us; /* the pause, if it were now */
    const char *why;       /* for log and status */
};

struct precopy {
    struct precopy_settings settings;
    unsigned rounds, stalled, throttle;
    uint64_t ns_per_page; /* smoothed; 0: not known */
    uint64_t ns_per_sent; /* the same of those that were not elided */
    uint64_t again_pages; /* as the last round had it */
    double again_same, other_same; /* share of those that was elided in the last round, and of the rest */
    uint64_t best_pages;  /* fewest left so far */
    uint64_t dirty_per_s; /* of the last round, as far as it can be told */
    bool lacks_postcopy;  /* it was chosen, and the target cannot do it */
    /* Since it was last a sixth less, at full throttle: */
    unsigned stuck_rounds;
    uint64_t stuck_pages, stuck_since_us;
};

void precopy_init(struct precopy *p, const struct precopy_settings *settings);
/* The target cannot do it, as it has said before the first round. Without effect where nobody chose it. */
void precopy_without_postcopy(struct precopy *p);
struct precopy_decision precopy_decide(struct precopy *p, const struct precopy_round *round);
/* The pause that @dirty_pages would cost now, @again_pages of which the last round has looked at. */
uint64_t precopy_predict_us(const struct precopy *p, uint64_t dirty_pages, uint64_t again_pages);
/* Microseconds until the pause is likely to begin, for a person who waits; UINT64_MAX: it cannot be told. */
uint64_t precopy_expect_us(const struct precopy *p, uint64_t dirty_pages);

#endif
