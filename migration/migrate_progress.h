/* How a migration stands, for those who ask while it is under way; kept by sender and receiver under their locks. */
#ifndef MIGRATION_MIGRATE_PROGRESS_H
#define MIGRATION_MIGRATE_PROGRESS_H

#include "common/error.h"

/* The values of vmm_migration_phase in schema/objects.def.
 *
 *   source   IDLE -> CONNECT -> MEMORY -> STOP -> READY -> GO -> DONE
 *                       |         |        |       |       +--> UNKNOWN: no word whether the target runs. Paused until
 *                       +---------+--------+-------+            somebody who knows decides
 *                                 +--> FAILED, CANCELLED: the guest goes on here
 *            post-copy: GO -> POSTCOPY <-> LOST, then DONE
 *   target   CONNECT -> MEMORY -> STOP -> READY -> GO -> DONE
 *                       |         |        |       +--> UNKNOWN: the source is gone and has not said go. Paused, as above
 *                       +---------+--------+--> FAILED, CANCELLED: the guest was never here
 *            post-copy: GO -> POSTCOPY <-> LOST, then DONE; or FAILED when it is given up: the guest is lost */
enum migrate_phase {
    MIGRATE_PHASE_IDLE,
    MIGRATE_PHASE_CONNECT, /* looking for one another, and whether the machine fits */
    MIGRATE_PHASE_MEMORY,  /* memory is sent, the guest runs at the source */
    MIGRATE_PHASE_STOP,    /* the guest stands still: last pages, state */
    MIGRATE_PHASE_READY,   /* the target has everything; who owns the VM is to be decided */
    MIGRATE_PHASE_GO,      /* decided: the target runs, or is about to */
    MIGRATE_PHASE_UNKNOWN,
    MIGRATE_PHASE_DONE,
    MIGRATE_PHASE_FAILED,
    MIGRATE_PHASE_CANCELLED,
    MIGRATE_PHASE_POSTCOPY, /* the target runs, and the rest of its memory is on its way */
    MIGRATE_PHASE_LOST,     /* the same, but without a connection: the target stands still until the source is back */
    MIGRATE_PHASE_DISKS,    /* before CONNECT: disks are copied, by the sender's owner */
};

struct migrate_progress {
    enum migrate_phase phase;
    unsigned rounds, throttle;       /* percent */
    uint64_t total_us;               /* since it began, or of the whole */
    uint64_t memory_bytes;           /* of the guest */
    uint64_t sent_bytes;             /* on all connections */
    uint64_t pages_data, pages_zero; /* sent */
    uint64_t pages_same;             /* not sent: the target had them */
    uint64_t dirty_pages;            /* to send when the last round ended; post-copy: that the target lacks */
    uint64_t dirty_per_s;            /* pages that the guest writes */
    uint64_t bytes_per_s;            /* on the wire, in the last round */
    uint64_t predicted_us;           /* the pause, if it were now */
    uint64_t expect_us;              /* until the pause, from the end of the last round; UINT64_MAX: cannot be told */
    uint64_t downtime_us;            /* from the pause until the target said that it runs */
    bool postcopy;                   /* it is one, or was: known from STOP on */
    bool asks_pause;                 /* in MEMORY: it waits for a word that the guest may be stopped */
    bool decided;                    /* in READY and UNKNOWN: somebody has, and it is on its way */
    uint64_t disk_left_bytes, disk_copied_bytes; /* by the sender's owner */
    char why[96];                    /* what the last round was followed by, or "" */
    struct error failure;            /* in FAILED, CANCELLED and UNKNOWN */
};

/* What somebody who knows decides in READY and UNKNOWN. */
enum migrate_outcome { MIGRATE_UNDECIDED, MIGRATE_RUNS_HERE, MIGRATE_RUNS_THERE };

#endif
