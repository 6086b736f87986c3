/* What comes in on the channels of a migration, judged section by section, without sockets or threads: the part of the
 * receiver that a hostile peer talks to.
 *
 *   channel 0   HEADER, OPEN, STATE..., CHECK; (PAGES..., SYNC)...; STATE..., PAGES..., VERIFY..., FINAL; GO | CANCEL; END
 *   others      HEADER, OPEN;                  (PAGES..., SYNC)...; PAGES..., FINAL; END
 *
 * Post-copy: LACK... before FINAL (POSTCOPY); from then on PAGES and SYNC again, placed only where they are lacking
 * (`place`); on channel 0 after GO, and DONE there before END. A channel that joins with RESUME begins with those.
 *
 * Anything out of this order is -EBADMSG. Pages go into memory at once, all else is given to the caller as events.
 * Threads: one at a time for each channel; different channels at the same time once channel 0 is past CHECK. */
#ifndef MIGRATION_MIGRATE_INTAKE_H
#define MIGRATION_MIGRATE_INTAKE_H

#include "migration/guest.h"
#include "migration/migrate_wire.h"
#include "migration/stream_pages.h"

enum intake_event {
    INTAKE_NONE,   /* go on */
    INTAKE_OPENED, /* `description` is there; of other channels than 0: it has joined */
    INTAKE_CHECK,  /* channel 0: judge `description` and `states`, then intake_accept */
    INTAKE_SYNC,   /* step.number is the round */
    INTAKE_FINAL,  /* channel 0: `states`, `paused` */
    INTAKE_GO,     /* step.value is the epoch */
    INTAKE_CANCEL, /* step.text */
    INTAKE_DONE,   /* channel 0, post-copy: that was all */
    INTAKE_END,
};

enum intake_stage { INTAKE_AT_HEADER, INTAKE_AT_OPEN, INTAKE_AT_CHECK, INTAKE_AT_PAGES, INTAKE_AT_GO, INTAKE_AT_POST, INTAKE_AT_END };

struct intake_channel {
    enum intake_stage stage;
    uint32_t number; /* from OPEN on */
    struct stream_pages_reader *pages;
    struct migrate_step step; /* of the last event; crcs are not valid any more */
};

struct migrate_intake {
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t region_count;
    struct machine_description description; /* from channel 0 */
    bool has_description, is_open;
    uint8_t id[MIGRATE_ID_BYTES];
    uint32_t channels, joined; /* bits of those that are open */
    bool verify;
    struct stream_states states;
    bool paused, postcopy, released;
    uint64_t *lack[GUEST_REGIONS_MAX];        /* post-copy: pages that will come later; owned */
    uint64_t lack_next[GUEST_REGIONS_MAX];    /* the next LACK begins there at the earliest */
    stream_place_fn place;                    /* post-copy: where its pages go; NULL: none may come yet */
    void *place_arg;
    uint32_t *crcs[GUEST_REGIONS_MAX];        /* of each piece, as the source says... */
    uint64_t crc_counts[GUEST_REGIONS_MAX];   /* ...and how many it has said, in order */
};

void intake_init(struct migrate_intake *in, const struct guest_region *regions, size_t count);
void intake_finish(struct migrate_intake *in);
void intake_channel_init(struct intake_channel *c);
void intake_channel_finish(struct intake_channel *c);

/* One section of @c's stream. An event, or negative with words. @c has the event's step. */
int intake_section(struct migrate_intake *in, struct intake_channel *c, bool is_first,
                   const struct stream_section *section, struct error *err);
/* The machine fits: pages may come. Drops the states of the check. */
void intake_accept(struct migrate_intake *in, struct intake_channel *c);
/* All channels are at FINAL: is memory what the source says? 0 where it says nothing. */
int intake_verify(const struct migrate_intake *in, struct error *err);

#endif
