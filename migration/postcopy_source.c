/* Claims by atomic bits, pushed block by block; see postcopy_source.h. */
#include "migration/postcopy_source.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

enum {
    BLOCK_PAGES = 256, /* that one pusher takes at a time */
    SYNC_PAGES = 4096, /* asked for, on their way before it is asked whether they have come */
    SERVE_SLICE_MS = 5,
    WAY_US = 2000,     /* after a page was asked for another one may be, which is not to stand behind what is pushed */
    WAY_SLICE_US = 200,
    WAY_US_MAX = 20000, /* that pushers give way at a time: at first, and when they have pushed for as long */
    ASKED_US = 100000,  /* after a page was asked for the guest counts as one that asks for pages */
};

struct postcopy_source {
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t count;
    uint64_t *left[GUEST_REGIONS_MAX]; /* borrowed; atomic */
    uint64_t blocks[GUEST_REGIONS_MAX + 1]; /* of all regions before */
    uint64_t next_block;               /* atomic */
    uint64_t pages_left;               /* atomic: not acknowledged */
    unsigned pushers;                  /* atomic: at work still */
    uint64_t asked_us;                 /* atomic: when a page was asked for last, or pushing began */
};

static uint64_t pages_of(const struct guest_region *r)
{
    return r->size / GUEST_PAGE_BYTES;
}

struct postcopy_source *postcopy_source_create(const struct guest_region *regions, size_t count,
                                               uint64_t *const left[GUEST_REGIONS_MAX], unsigned pushers)
{
    struct postcopy_source *p = NEW(struct postcopy_source);
    p->count = count;
    p->pushers = pushers;
    for (size_t i = 0; i < count; i++) {
        p->regions[i] = regions[i];
        p->left[i] = left[i];
        p->blocks[i + 1] = p->blocks[i] + (pages_of(&regions[i]) + BLOCK_PAGES - 1) / BLOCK_PAGES;
        for (size_t w = 0; w < (pages_of(&regions[i]) + 63) / 64; w++)
            p->pages_left += (unsigned)__builtin_popcountll(left[i][w]);
    }
    return p;
}

void postcopy_source_destroy(struct postcopy_source *p)
{
    free(p);
}

void postcopy_link_finish(struct postcopy_link *link)
{
    free(link->claimed);
    *link = (struct postcopy_link){0};
}

uint64_t postcopy_source_left(const struct postcopy_source *p)
{
    return __atomic_load_n(&p->pages_left, __ATOMIC_ACQUIRE);
}

static bool page_claim(struct postcopy_source *p, struct postcopy_link *link, size_t region, uint64_t page)
{
    uint64_t bit = 1ull << (page % 64);
    if (!(__atomic_fetch_and(&p->left[region][page / 64], ~bit, __ATOMIC_ACQ_REL) & bit))
        return false;
    if (link->count == link->capacity) {
        link->capacity = MAX(2 * link->capacity, (size_t)SYNC_PAGES + BLOCK_PAGES);
        link->claimed = xrealloc(link->claimed, link->capacity * sizeof(*link->claimed));
    }
    link->claimed[link->count++] = migrate_wanted(region, page);
    return true;
}

/* [@page, @end) as far as it is left. */
static int pages_send(struct postcopy_source *p, struct postcopy_link *link, size_t region, uint64_t page, uint64_t end,
                      struct error *err)
{
    int code = 0;
    for (; code == 0 && page < end; page++) {
        if (page % 64 == 0 && __atomic_load_n(&p->left[region][page / 64], __ATOMIC_ACQUIRE) == 0) {
            page += 63;
            continue;
        }
        if (!page_claim(p, link, region, page))
            continue;
        const uint8_t *at = p->regions[region].host + page * GUEST_PAGE_BYTES;
        code = stream_page_is_zero(at) ? stream_pages_put_zero(link->pages, (uint16_t)region, page, 1, err)
                                       : stream_pages_put(link->pages, (uint16_t)region, page, at, err);
    }
    return code;
}

static int sync_ask(struct postcopy_link *link, struct error *err)
{
    struct migrate_step step = {.kind = MIGRATE_SYNC, .number = ++link->sync};
    int code = stream_pages_flush(link->pages, err);
    link->asked = link->count;
    link->asked_us = migrate_now_us();
    return code < 0 ? code : migrate_step_put(link->out, &step, err);
}

static int sync_take(struct postcopy_source *p, struct postcopy_link *link, const struct migrate_reply *reply,
                     struct error *err)
{
    if (reply->kind != MIGRATE_SYNCED || reply->value != link->sync || link->asked == 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the target answers out of order (%d)", (int)reply->kind);
    __atomic_fetch_sub(&p->pages_left, link->asked, __ATOMIC_ACQ_REL);
    link->count -= link->asked;
    memmove(link->claimed, link->claimed + link->asked, link->count * sizeof(*link->claimed));
    link->asked = 0;
    return 0;
}

/* ---- pushing ---- */

/* What was pushed before has come, or is waited for; then the same is asked of what has been pushed since. */
static int push_turn(struct postcopy_source *p, struct postcopy_link *link, struct push_window *window, struct error *err)
{
    struct migrate_reply reply;
    int code = stream_pages_flush(link->pages, err);
    if (code == 0 && link->asked) {
        code = migrate_channel_reply(link->channel, &reply, err);
        if (code == 0)
            code = sync_take(p, link, &reply, err);
        uint64_t now_us = migrate_now_us();
        push_window_note(window, now_us - link->asked_us, now_us < __atomic_load_n(&p->asked_us, __ATOMIC_RELAXED) + ASKED_US);
    }
    return code == 0 && link->count ? sync_ask(link, err) : code;
}

static bool block_next(struct postcopy_source *p, size_t *ret_region, uint64_t *ret_page, uint64_t *ret_end)
{
    uint64_t block = __atomic_fetch_add(&p->next_block, 1, __ATOMIC_ACQ_REL);
    size_t region = 0;
    while (region < p->count && block >= p->blocks[region + 1])
        region++;
    if (region == p->count)
        return false;
    *ret_region = region;
    *ret_page = (block - p->blocks[region]) * BLOCK_PAGES;
    *ret_end = MIN(*ret_page + BLOCK_PAGES, pages_of(&p->regions[region]));
    return true;
}

/* Of a link with queues all that is pushed comes before a page that is asked for now, and the guest waits for that one. So the
 * pages that it needs to begin with come alone, and later ones have at least half of the time. */
static void way_give(struct postcopy_source *p, const struct postcopy_link *link, uint64_t *left_us)
{
    const struct timespec slice = {.tv_nsec = WAY_SLICE_US * 1000l};
    uint64_t begin_us = migrate_now_us(), now_us = begin_us;
    while (now_us - begin_us < *left_us && now_us < __atomic_load_n(&p->asked_us, __ATOMIC_RELAXED) + WAY_US &&
           !__atomic_load_n(link->channel->cancel, __ATOMIC_ACQUIRE)) {
        nanosleep(&slice, NULL);
        now_us = migrate_now_us();
    }
    *left_us -= MIN(now_us - begin_us, *left_us);
}

/* The first page from @page on that may be left. */
static uint64_t left_next(const struct postcopy_source *p, size_t region, uint64_t page, uint64_t end)
{
    while (page < end && __atomic_load_n(&p->left[region][page / 64], __ATOMIC_ACQUIRE) >> (page % 64) == 0)
        page = (page / 64 + 1) * 64;
    return page;
}

static int block_push(struct postcopy_source *p, struct postcopy_link *link, struct push_window *window, uint64_t *way_us,
                      size_t region, uint64_t page, uint64_t end, struct error *err)
{
    int code = 0;
    for (uint64_t next; code == 0 && (page = left_next(p, region, page, end)) < end; page = next) {
        next = MIN(page + window->pages, end);
        way_give(p, link, way_us);
        uint64_t begin_us = migrate_now_us();
        code = pages_send(p, link, region, page, next, err);
        if (code == 0 && link->count - link->asked >= window->pages)
            code = push_turn(p, link, window, err);
        *way_us = MIN(*way_us + migrate_now_us() - begin_us, (uint64_t)WAY_US_MAX);
    }
    return code;
}

int postcopy_source_push(struct postcopy_source *p, struct postcopy_link *link, struct error *err)
{
    struct push_window window;
    size_t region;
    uint64_t page, end, way_us = WAY_US_MAX;
    int code = 0;
    push_window_init(&window);
    __atomic_store_n(&p->asked_us, migrate_now_us(), __ATOMIC_RELAXED); /* the guest has begun there, or is about to */
    while (code == 0 && block_next(p, &region, &page, &end))
        code = block_push(p, link, &window, &way_us, region, page, end, err);
    while (code == 0 && link->count)
        code = push_turn(p, link, &window, err);
    if (code == 0)
        __atomic_fetch_sub(&p->pushers, 1, __ATOMIC_ACQ_REL);
    return code;
}

/* ---- serving ---- */

static int wanted_send(struct postcopy_source *p, struct postcopy_link *link, uint64_t value, struct error *err)
{
    size_t region = (size_t)(value >> 56);
    uint64_t page = value & ((1ull << 56) - 1);
    if (region >= p->count || page >= pages_of(&p->regions[region]))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the target asks for memory that there is not");
    __atomic_store_n(&p->asked_us, migrate_now_us(), __ATOMIC_RELAXED);
    uint64_t end = MIN(page + page_ahead_pages(&link->ahead, value), pages_of(&p->regions[region]));
    int code = pages_send(p, link, region, page, end, err);
    return code < 0 ? code : stream_pages_flush(link->pages, err);
}

static int serve_reply(struct postcopy_source *p, struct postcopy_link *link, struct error *err)
{
    struct migrate_reply reply;
    int code = migrate_channel_reply(link->channel, &reply, err);
    if (code < 0)
        return code;
    return reply.kind == MIGRATE_WANTED ? wanted_send(p, link, reply.value, err) : sync_take(p, link, &reply, err);
}

int postcopy_source_serve(struct postcopy_source *p, struct postcopy_link *link, struct error *err)
{
    struct pollfd readable = {.fd = link->channel->fd, .events = POLLIN};
    while (true) {
        bool pushed = __atomic_load_n(&p->pushers, __ATOMIC_ACQUIRE) == 0;
        if (pushed && link->count == 0)
            return 0;
        int code = !link->asked && link->count && (pushed || link->count >= SYNC_PAGES) ? sync_ask(link, err) : 0;
        if (code == 0 && __atomic_load_n(link->channel->cancel, __ATOMIC_ACQUIRE))
            code = error_set(err, -ECANCELED, ERROR_CANCELLED, "another connection was lost");
        if (code == 0 && poll(&readable, 1, SERVE_SLICE_MS) > 0)
            code = serve_reply(p, link, err);
        if (code < 0)
            return code;
    }
}

void postcopy_source_restart(struct postcopy_source *p, struct postcopy_link *links, unsigned count, unsigned pushers)
{
    for (unsigned i = 0; i < count; i++) {
        for (size_t n = 0; n < links[i].count; n++) {
            uint64_t page = links[i].claimed[n] & ((1ull << 56) - 1);
            p->left[links[i].claimed[n] >> 56][page / 64] |= 1ull << (page % 64);
        }
        links[i].count = links[i].asked = 0;
    }
    p->next_block = 0;
    p->pushers = pushers;
}
