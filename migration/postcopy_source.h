/* Post-copy at the source: whose turn each page is that the target lacks still. Memory stands still; several connections
 * push what is left, in order, and one answers the pages that are asked for.
 *
 *   left --claimed by a connection--> on its way --SYNCED--> there
 *     ^                                   |
 *     +------- connection lost -----------+
 *
 * Threads: one for each link; postcopy_source_restart while none is at work. */
#ifndef MIGRATION_POSTCOPY_SOURCE_H
#define MIGRATION_POSTCOPY_SOURCE_H

#include "migration/guest.h"
#include "migration/migrate_channel.h"
#include "migration/postcopy_pace.h"
#include "migration/stream_pages.h"

struct postcopy_source;

/* What one connection is to the source. Zero it; `channel`, `out` and `pages` are the caller's. */
struct postcopy_link {
    struct migrate_channel *channel;
    struct stream_writer *out;
    struct stream_pages_writer *pages;
    uint64_t *claimed; /* migrate_wanted() of what is on its way; owned */
    size_t count, capacity;
    size_t asked;      /* of those, how many come before the SYNC that is not answered; 0: none is outstanding */
    uint64_t asked_us; /* when that was sent */
    uint32_t sync;
    struct page_ahead ahead; /* pages are migrate_wanted() */
};
void postcopy_link_finish(struct postcopy_link *link);

/* @left: a bit for each page that is lacking; borrowed, like @regions' memory. @pushers: links that will push. */
struct postcopy_source *postcopy_source_create(const struct guest_region *regions, size_t count,
                                               uint64_t *const left[GUEST_REGIONS_MAX], unsigned pushers);
void postcopy_source_destroy(struct postcopy_source *p); /* NULL is allowed */
/* Pages that the target is not known to have. */
uint64_t postcopy_source_left(const struct postcopy_source *p);
/* Push until nothing is left and all of this link's is acknowledged, little at a time (postcopy_pace.h). Once by each of the pushers. */
int postcopy_source_push(struct postcopy_source *p, struct postcopy_link *link, struct error *err);
/* Answer what is asked for until all pushers have pushed. -EBADMSG where a page is asked for that there is not. */
int postcopy_source_serve(struct postcopy_source *p, struct postcopy_link *link, struct error *err);
/* The connections are lost: what was on its way is left again. */
void postcopy_source_restart(struct postcopy_source *p, struct postcopy_link *links, unsigned count, unsigned pushers);

#endif
