/* Rounds of pages over one or more channels, then the hand-over; see migrate_sender.h. */
#include "migration/migrate_sender.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "migration/page_ledger.h"
#include "migration/postcopy_source.h"
#include "migration/stream_pages.h"

enum {
    BLOCK_PAGES = 256, /* neighbours that travel on the same channel */
    LOOK_US = 60000,   /* after so long in a round it is looked how much was written: some periods of the throttle */
    POST_PATIENCE_MS = 10000, /* a target that runs is silent for so long, and the connection counts as lost */
    RETRY_MS = 300,           /* between tries to connect again */
    PERMIT_MS = 1000,         /* that a permit to stop the guest holds */
    PERMIT_SLICE_MS = 20,     /* that one is waited for, between rounds... */
    POST_PERMIT_MS = 3000,    /* ...and where a post-copy is next */
};

enum work { WORK_ROUND, WORK_FINAL, WORK_FINAL_POSTCOPY, WORK_PUSH };

struct sender_channel {
    struct migrate_sender *sender;
    unsigned index;
    bool open;
    struct migrate_channel channel;
    struct stream_writer out;
    struct stream_pages_writer *pages;
    struct compress_choice compression;
    struct postcopy_link link;
    uint64_t written;      /* bytes, atomic */
    uint64_t looked, same; /* pages, of the round */
    /* of channels but the first: */
    pthread_t thread;
    bool thread_runs;
    int code;
    struct error err;
};

struct migrate_sender {
    struct guest *guest;
    struct machine_description header;
    struct migrate_sender_options options;
    bool cancel, abandoned; /* atomic */
    bool broken;            /* atomic: post-copy's connections are given up */
    bool can_postcopy;      /* the target says so */
    struct postcopy_source *post; /* NULL: it is none */
    uint64_t began_us, stopped_us;
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t region_count;
    uint64_t *bitmaps[GUEST_REGIONS_MAX]; /* pages to send in this round, or in the next */
    uint64_t *sent[GUEST_REGIONS_MAX];    /* pages of the round before these */
    struct page_ledger ledger;
    uint64_t round_us, dirty_per_s; /* when the round began, and what a look within it has told; 0: no look */
    struct precopy precopy;
    uint8_t id[MIGRATE_ID_BYTES];
    bool is_logging, is_stopped, has_let_go;
    bool has_asked; /* somebody may have decided whose the guest is */
    unsigned throttle;
    struct sender_channel channels[MIGRATE_CHANNELS_MAX];

    pthread_mutex_t lock; /* guards all below, and the workers' code and err */
    pthread_cond_t changed;
    struct migrate_progress progress;
    enum migrate_outcome outcome;
    uint64_t epoch;
    uint64_t permit_until_us; /* the guest may be stopped before; 0: nobody has said so */
    /* work of the channels' threads: round `work` is to be sent; `working` of them are not done */
    unsigned work, working;
    enum work kind;
    bool ending, given_up;
};

static void phase_set(struct migrate_sender *s, enum migrate_phase phase)
{
    pthread_mutex_lock(&s->lock);
    s->progress.phase = phase;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* ---- creation ---- */

static void features_set(struct machine_description *header)
{
    static const char *const names[] = {STREAM_FEATURE_MIGRATE, STREAM_FEATURE_ZSTD};
    for (size_t i = 0; i < header->features.count; i++)
        free(header->features.items[i]);
    header->features.items = xrealloc(header->features.items, sizeof(names));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        header->features.items[i] = xstrdup(names[i]);
    header->features.count = ARRAY_SIZE(names);
    object_mark(&machine_description_desc, header, "features");
}

struct migrate_sender *migrate_sender_create(struct guest *guest, const struct machine_description *header,
                                             const struct migrate_sender_options *options)
{
    struct migrate_sender *s = NEW(struct migrate_sender);
    ASSERT(options->channels >= 1 && options->channels <= MIGRATE_CHANNELS_MAX);
    ASSERT(!options->hand_over || (options->channels == 1 && !options->verify &&
                                   options->precopy.postcopy == PRECOPY_POSTCOPY_NEVER));
    s->guest = guest;
    s->options = *options;
    if (options->precopy.postcopy != PRECOPY_POSTCOPY_NEVER)
        s->options.channels = MAX(s->options.channels, 2u); /* one is for pages that are asked for */
    OBJECT_COPY(machine_description, &s->header, header);
    features_set(&s->header);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    precopy_init(&s->precopy, &options->precopy);
    s->region_count = guest->ops->regions(guest, s->regions);
    for (size_t i = 0; i < s->region_count; i++)
        s->progress.memory_bytes += s->regions[i].size;
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++) {
        s->channels[i].sender = s;
        s->channels[i].index = i;
        s->channels[i].channel.fd = -1;
    }
    return s;
}

static void channels_finish(struct migrate_sender *s)
{
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    __atomic_store_n(&s->broken, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < s->options.channels; i++) {
        struct sender_channel *c = &s->channels[i];
        if (c->thread_runs)
            pthread_join(c->thread, NULL);
        c->thread_runs = false;
        stream_pages_writer_destroy(TAKE_PTR(c->pages));
        postcopy_link_finish(&c->link);
        if (c->open)
            migrate_channel_finish(&c->channel);
        c->open = false;
    }
}

void migrate_sender_destroy(struct migrate_sender *s)
{
    if (!s)
        return;
    channels_finish(s);
    for (size_t i = 0; i < GUEST_REGIONS_MAX; i++)
        free(s->bitmaps[i]), free(s->sent[i]);
    postcopy_source_destroy(s->post);
    page_ledger_finish(&s->ledger);
    OBJECT_CLEAR(machine_description, &s->header);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- sending pages ---- */

static bool bit_is_set(const uint64_t *bitmap, uint64_t page)
{
    return bitmap[page / 64] >> (page % 64) & 1;
}

/* Copied first, so that what is hashed is what is sent, whatever the guest writes meanwhile. */
static int page_send(struct sender_channel *c, size_t region, uint64_t page, struct error *err)
{
    struct migrate_sender *s = c->sender;
    uint8_t copy[GUEST_PAGE_BYTES];
    memcpy(copy, s->regions[region].host + page * GUEST_PAGE_BYTES, sizeof(copy));
    c->looked++;
    switch (page_ledger_note(&s->ledger, region, page, copy)) {
    case PAGE_SAME:
        c->same++;
        return 0;
    case PAGE_ZERO:
        return stream_pages_put_zero(c->pages, (uint16_t)region, page, 1, err);
    case PAGE_DATA:
    default:
        return stream_pages_put(c->pages, (uint16_t)region, page, copy, err);
    }
}

/* The first channel's thread, once in a round that takes a while. */
static void dirty_look(struct migrate_sender *s)
{
    uint64_t since_us = migrate_now_us() - s->round_us;
    if (s->dirty_per_s || since_us < LOOK_US || !s->guest->ops->dirty_count)
        return;
    s->dirty_per_s = s->guest->ops->dirty_count(s->guest) * 1000000 / since_us;
}

static int block_send(struct sender_channel *c, size_t region, uint64_t first, uint64_t end, struct error *err)
{
    const uint64_t *bitmap = c->sender->bitmaps[region];
    int code = 0;
    for (uint64_t page = first; code == 0 && page < end;) {
        if (page % 64 == 0 && bitmap[page / 64] == 0) {
            page += 64;
            continue;
        }
        if (bit_is_set(bitmap, page))
            code = page_send(c, region, page, err);
        page++;
    }
    return code;
}

/* This channel's share of the bitmaps, and the word that it is all. The guest runs: wait until the target has it, so
 * that what is measured is the way there and not this host's buffers. */
static int channel_round(struct sender_channel *c, enum work kind, struct error *err)
{
    struct migrate_sender *s = c->sender;
    bool final = kind == WORK_FINAL;
    int code = 0;
    c->looked = c->same = 0;
    for (size_t i = 0; i < s->region_count; i++) {
        uint64_t pages = s->regions[i].size / GUEST_PAGE_BYTES;
        for (uint64_t first = 0; code == 0 && first < pages; first += BLOCK_PAGES) {
            if (first / BLOCK_PAGES % s->options.channels != c->index)
                continue;
            code = block_send(c, i, first, MIN(first + BLOCK_PAGES, pages), err);
            if (c->index == 0 && !final)
                dirty_look(s);
        }
    }
    if (code == 0)
        code = stream_pages_flush(c->pages, err);
    if (code < 0)
        return code;
    if (final) {
        struct migrate_step step = {.kind = MIGRATE_FINAL};
        return c->index == 0 ? 0 : migrate_step_put(&c->out, &step, err); /* channel 0 has more to say first */
    }
    struct migrate_reply reply;
    struct migrate_step step = {.kind = MIGRATE_SYNC, .number = s->work};
    code = migrate_step_put(&c->out, &step, err);
    if (code == 0)
        code = migrate_channel_expect(&c->channel, MIGRATE_SYNCED, &reply, err);
    if (code == 0 && reply.value != step.number)
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "the target has acknowledged another round");
    return code;
}

/* ---- the channels' threads ---- */

/* The last channel's part in a post-copy is what is asked for, the others push. */
static int channel_push(struct sender_channel *c, struct error *err)
{
    struct migrate_sender *s = c->sender;
    bool is_urgent = c->index == s->options.channels - 1;
    c->link.channel = &c->channel;
    c->link.out = &c->out;
    c->link.pages = c->pages;
    int code = is_urgent ? postcopy_source_serve(s->post, &c->link, err) : postcopy_source_push(s->post, &c->link, err);
    if (code == 0 && c->index > 0)
        (void)stream_put_end(&c->out, NULL);
    if (code < 0)
        __atomic_store_n(&s->broken, true, __ATOMIC_RELEASE);
    return code;
}

static int channel_work(struct sender_channel *c, enum work kind, struct error *err)
{
    struct migrate_step final = {.kind = MIGRATE_FINAL, .number = MIGRATE_FINAL_POSTCOPY};
    if (kind == WORK_PUSH)
        return channel_push(c, err);
    if (kind == WORK_FINAL_POSTCOPY)
        return migrate_step_put(&c->out, &final, err);
    return channel_round(c, kind, err);
}

static void *channel_main(void *arg)
{
    struct sender_channel *c = arg;
    struct migrate_sender *s = c->sender;
    unsigned done = 0;
    pthread_mutex_lock(&s->lock);
    while (true) {
        while (s->work == done && !s->ending)
            pthread_cond_wait(&s->changed, &s->lock);
        if (s->ending)
            break;
        done = s->work;
        enum work kind = s->kind;
        struct error err = {0};
        pthread_mutex_unlock(&s->lock);
        int code = channel_work(c, kind, &err);
        pthread_mutex_lock(&s->lock);
        c->code = code;
        c->err = err;
        s->working--;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* The channels but the first begin. */
static void work_start(struct migrate_sender *s, enum work kind)
{
    pthread_mutex_lock(&s->lock);
    s->work++;
    s->kind = kind;
    s->working = s->options.channels - 1;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Until they are done; @code is what became of the first's part. The first failure is told. */
static int work_wait(struct migrate_sender *s, int code, struct error *err)
{
    pthread_mutex_lock(&s->lock);
    while (s->working)
        pthread_cond_wait(&s->changed, &s->lock);
    for (unsigned i = 1; i < s->options.channels; i++) {
        const struct sender_channel *c = &s->channels[i];
        if (c->code == 0 || (code < 0 && (code != -ECANCELED || c->code == -ECANCELED)))
            continue; /* one that was cancelled has ended for another's sake */
        code = c->code;
        if (err)
            *err = c->err;
    }
    pthread_mutex_unlock(&s->lock);
    return code;
}

/* One round on all channels, this thread doing the first's share. */
static int round_send(struct migrate_sender *s, enum work kind, struct error *err)
{
    work_start(s, kind);
    int code = channel_round(&s->channels[0], kind, err);
    if (code < 0)
        __atomic_store_n(&s->cancel, true, __ATOMIC_RELEASE); /* the others need not wait for their patience to end */
    return work_wait(s, code, err);
}

/* ---- connecting ---- */

/* What is asked for in a post-copy somebody waits for. */
static void limit_set(struct sender_channel *c)
{
    const struct migrate_sender *s = c->sender;
    bool is_urgent = s->post && c->index == s->options.channels - 1;
    c->channel.bytes_per_s_max = is_urgent || !s->options.bytes_per_s_max
                                     ? 0
                                     : MAX(s->options.bytes_per_s_max / s->options.channels, 1);
}

static int handles_put(struct sender_channel *c, struct error *err)
{
    struct guest *guest = c->sender->guest;
    int fds[GUEST_HANDLES_MAX];
    if (!guest->ops->handles_share)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "this guest cannot be handed to another process");
    int count = guest->ops->handles_share(guest, fds, err);
    return count < 0 ? count : migrate_channel_put_handles(&c->channel, fds, (size_t)count, err);
}

static int channel_connect(struct sender_channel *c, const bool *cancel, uint32_t flags, struct error *err)
{
    struct migrate_sender *s = c->sender;
    struct migrate_step open = {
        .kind = MIGRATE_OPEN, .number = c->index, .channels = s->options.channels, .flags = flags};
    memcpy(open.id, s->id, sizeof(open.id));
    int fd = s->options.connect(s->options.arg, err);
    if (fd < 0)
        return fd;
    migrate_channel_init(&c->channel, fd, cancel, s->options.patience_ms);
    c->channel.written = &c->written;
    c->open = true;
    limit_set(c);
    int code = s->options.hand_over ? handles_put(c, err) : 0;
    if (code < 0) { /* no stream has begun: nothing can be said on it */
        migrate_channel_finish(&c->channel);
        c->open = false;
        return code;
    }
    code = stream_writer_begin(&c->out, migrate_channel_write, &c->channel, &s->header, err);
    return code < 0 ? code : migrate_step_put(&c->out, &open, err);
}

static void pages_make(struct sender_channel *c)
{
    stream_pages_writer_destroy(c->pages);
    c->pages = c->sender->options.plain ? stream_pages_writer_create(&c->out, false)
                                        : stream_pages_writer_create_choosing(&c->out, &c->compression);
}

static int channel_open(struct sender_channel *c, struct error *err)
{
    struct migrate_sender *s = c->sender;
    struct migrate_reply reply;
    struct migrate_step check = {.kind = MIGRATE_CHECK};
    int code = channel_connect(c, &s->cancel, s->options.verify ? MIGRATE_OPEN_VERIFY : 0, err);
    if (code == 0 && c->index == 0 && s->guest->ops->check_save)
        code = s->guest->ops->check_save(s->guest, &c->out, err);
    if (code == 0 && c->index == 0)
        code = migrate_step_put(&c->out, &check, err);
    if (code == 0)
        code = migrate_channel_expect(&c->channel, MIGRATE_ACCEPTED, &reply, err);
    if (code < 0)
        return code;
    compress_choice_init(&c->compression);
    pages_make(c);
    if (c->index == 0) {
        s->can_postcopy = reply.value & MIGRATE_CAN_POSTCOPY;
        if (!s->can_postcopy)
            precopy_without_postcopy(&s->precopy);
        return 0;
    }
    code = -pthread_create(&c->thread, NULL, channel_main, c);
    c->thread_runs = code == 0;
    return code < 0 ? error_errno(err, code, "cannot start a thread") : 0;
}

static int connect_all(struct migrate_sender *s, struct error *err)
{
    phase_set(s, MIGRATE_PHASE_CONNECT);
    if (getrandom(s->id, sizeof(s->id), 0) != (ssize_t)sizeof(s->id))
        return error_errno(err, -errno, "no random numbers");
    int code = s->options.hand_over ? 0 : page_ledger_init(&s->ledger, s->regions, s->region_count, err);
    for (size_t i = 0; code == 0 && !s->options.hand_over && i < s->region_count; i++) {
        size_t words = (s->regions[i].size / GUEST_PAGE_BYTES + 63) / 64;
        s->bitmaps[i] = calloc(words, sizeof(uint64_t));
        s->sent[i] = calloc(words, sizeof(uint64_t));
        if (!s->bitmaps[i] || !s->sent[i])
            code = error_set(err, -ENOMEM, ERROR_INTERNAL, "no memory for two bitmaps of %zu bytes", words * 8);
    }
    for (unsigned i = 0; code == 0 && i < s->options.channels; i++)
        code = channel_open(&s->channels[i], err);
    return code;
}

/* ---- rounds ---- */

/* The pages written since the last fetch join those of the next round; *ret_pages: how many these are, *ret_again: those of them
 * that the round before had, too. */
static int dirty_fetch(struct migrate_sender *s, uint64_t *ret_pages, uint64_t *ret_again, struct error *err)
{
    uint64_t count = 0, again = 0;
    for (size_t i = 0; i < s->region_count; i++) {
        size_t words = (s->regions[i].size / GUEST_PAGE_BYTES + 63) / 64;
        int code = s->guest->ops->dirty_fetch(s->guest, i, s->bitmaps[i], err);
        if (code < 0)
            return code;
        for (size_t w = 0; w < words; w++) {
            count += (unsigned)__builtin_popcountll(s->bitmaps[i][w]);
            again += (unsigned)__builtin_popcountll(s->bitmaps[i][w] & s->sent[i][w]);
        }
    }
    *ret_pages = count;
    *ret_again = again;
    return 0;
}

static void bitmaps_clear(struct migrate_sender *s)
{
    for (size_t i = 0; i < s->region_count; i++)
        memset(s->bitmaps[i], 0, (s->regions[i].size / GUEST_PAGE_BYTES + 63) / 64 * sizeof(uint64_t));
}

/* A round is over: the next one has no page yet. */
static void bitmaps_turn(struct migrate_sender *s)
{
    for (size_t i = 0; i < s->region_count; i++) {
        uint64_t *sent = s->bitmaps[i];
        s->bitmaps[i] = s->sent[i];
        s->sent[i] = sent;
    }
    bitmaps_clear(s);
}

static void range_set(uint64_t *bitmap, uint64_t page, uint64_t pages)
{
    for (uint64_t end = page + pages; page < end;) {
        uint64_t bits = MIN(64 - page % 64, end - page);
        bitmap[page / 64] |= (bits == 64 ? ~0ull : (1ull << bits) - 1) << (page % 64);
        page += bits;
    }
}

/* The first round is all that may hold something; the first fetch, which may name every page, only begins the log. */
static int bulk_prepare(struct migrate_sender *s, struct error *err)
{
    uint64_t pages, again;
    int code = s->guest->ops->dirty_start(s->guest, err);
    s->is_logging = code == 0;
    if (code == 0)
        code = dirty_fetch(s, &pages, &again, err);
    bitmaps_clear(s);
    for (size_t i = 0; code == 0 && i < s->region_count; i++) {
        uint64_t end = s->regions[i].size / GUEST_PAGE_BYTES, page = 0;
        while (page < end) {
            pages = end - page;
            if (s->guest->ops->next_data)
                s->guest->ops->next_data(s->guest, i, &page, &pages);
            if (pages == 0)
                break;
            range_set(s->bitmaps[i], page, pages);
            page += pages;
        }
    }
    return code;
}

static uint64_t sent_bytes(const struct migrate_sender *s)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < s->options.channels; i++)
        sum += __atomic_load_n(&s->channels[i].written, __ATOMIC_RELAXED);
    return sum;
}

static void round_count(struct migrate_sender *s, struct precopy_round *ret)
{
    struct stream_pages_counters sum = {0};
    for (unsigned i = 0; i < s->options.channels; i++) {
        struct stream_pages_counters c = stream_pages_counters(s->channels[i].pages);
        ret->pages += s->channels[i].looked;
        ret->same_pages += s->channels[i].same;
        sum.pages_data += c.pages_data;
        sum.pages_zero += c.pages_zero;
    }
    s->progress.pages_same += ret->same_pages;
    s->progress.pages_data = sum.pages_data;
    s->progress.pages_zero = sum.pages_zero;
}

static void throttle(struct migrate_sender *s, unsigned percent)
{
    if (percent == s->throttle || !s->guest->ops->throttle)
        return;
    s->throttle = percent;
    s->guest->ops->throttle(s->guest, percent);
}

static void round_note(struct migrate_sender *s, const struct precopy_round *r, const struct precopy_decision *d,
                       uint64_t bytes)
{
    struct migrate_progress *p = &s->progress;
    pthread_mutex_lock(&s->lock);
    p->rounds++;
    p->throttle = d->throttle;
    p->dirty_pages = r->dirty_pages;
    p->dirty_per_s = s->precopy.dirty_per_s;
    p->bytes_per_s = bytes * 1000000 / MAX(r->took_us, 1);
    p->predicted_us = d->predicted_us;
    p->expect_us = precopy_expect_us(&s->precopy, r->dirty_pages);
    snprintf(p->why, sizeof(p->why), "%s", d->why);
    pthread_mutex_unlock(&s->lock);
}

static void wait_until_ms(struct migrate_sender *s, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    (void)pthread_cond_timedwait(&s->changed, &s->lock, &until);
}

/* May the guest be stopped? Where nobody has said so yet: they are asked, and given some time; what was written in it is
 * for another round. */
static bool pause_is_permitted(struct migrate_sender *s)
{
    pthread_mutex_lock(&s->lock);
    bool permitted = !s->options.ask_pause || migrate_now_us() < s->permit_until_us;
    bool is_new = !permitted && !s->progress.asks_pause;
    s->progress.asks_pause = !permitted;
    if (!permitted)
        snprintf(s->progress.why, sizeof(s->progress.why), "it could be stopped: waiting for a majority of the controllers");
    pthread_mutex_unlock(&s->lock);
    if (is_new && s->options.asks)
        s->options.asks(s->options.arg);
    pthread_mutex_lock(&s->lock);
    if (!permitted && s->progress.asks_pause)
        wait_until_ms(s, PERMIT_SLICE_MS);
    pthread_mutex_unlock(&s->lock);
    return permitted;
}

/* A round may take long, and what is written meanwhile does not make a post-copy's pause longer: it need not be sent before. */
static bool postcopy_is_permitted(struct migrate_sender *s)
{
    uint64_t until_us = migrate_now_us() + POST_PERMIT_MS * 1000;
    bool permitted;
    do {
        permitted = pause_is_permitted(s);
    } while (!permitted && !__atomic_load_n(&s->cancel, __ATOMIC_ACQUIRE) && migrate_now_us() < until_us);
    return permitted;
}

/* There is nothing to send. */
static int permit_wait(struct migrate_sender *s, struct error *err)
{
    uint64_t most_us = s->options.precopy.total_us_max;
    while (!pause_is_permitted(s)) {
        if (__atomic_load_n(&s->cancel, __ATOMIC_ACQUIRE))
            return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
        if (most_us && migrate_now_us() - s->began_us >= most_us)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "nobody has said in time that it may be stopped");
    }
    return 0;
}

/* Send, look what was written meanwhile, decide; until the guest may be stopped. */
static int rounds_run(struct migrate_sender *s, bool *ret_postcopy, struct error *err)
{
    struct precopy_decision d = {.action = PRECOPY_ROUND};
    phase_set(s, MIGRATE_PHASE_MEMORY);
    if (s->options.hand_over)
        return permit_wait(s, err);
    int code = bulk_prepare(s, err);
    while (code == 0 && d.action == PRECOPY_ROUND) {
        uint64_t bytes = sent_bytes(s);
        s->round_us = migrate_now_us();
        s->dirty_per_s = 0;
        code = round_send(s, WORK_ROUND, err);
        bitmaps_turn(s);
        struct precopy_round r = {.took_us = migrate_now_us() - s->round_us, .dirty_per_s = s->dirty_per_s};
        if (code == 0)
            code = dirty_fetch(s, &r.dirty_pages, &r.again_pages, err);
        if (code < 0)
            return code;
        r.elapsed_us = migrate_now_us() - s->began_us;
        pthread_mutex_lock(&s->lock);
        round_count(s, &r);
        pthread_mutex_unlock(&s->lock);
        d = precopy_decide(&s->precopy, &r);
        round_note(s, &r, &d, sent_bytes(s) - bytes);
        throttle(s, d.throttle);
        if (d.action != PRECOPY_PAUSE && d.action != PRECOPY_POSTCOPY)
            continue;
        if (d.action == PRECOPY_POSTCOPY ? postcopy_is_permitted(s) : pause_is_permitted(s))
            break;
        d.action = PRECOPY_ROUND;
        if (s->options.precopy.total_us_max && r.elapsed_us >= s->options.precopy.total_us_max)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                             "nobody has said that it may be stopped: no majority of the controllers has answered in time");
    }
    *ret_postcopy = d.action == PRECOPY_POSTCOPY;
    if (code == 0 && d.action == PRECOPY_GIVE_UP)
        code = error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                         "the guest writes memory faster than it can be sent: %s; the pause would be %llu ms, and %llu "
                         "are allowed; allow a longer one, more time, more bandwidth or post-copy%s",
                         d.why, (unsigned long long)(d.predicted_us / 1000),
                         (unsigned long long)(s->options.precopy.downtime_us / 1000),
                         s->can_postcopy || s->options.precopy.postcopy == PRECOPY_POSTCOPY_NEVER
                             ? ""
                             : " (which the target cannot do)");
    return code;
}

/* ---- the pause ---- */

static int verify_send(struct migrate_sender *s, struct error *err)
{
    struct bytes_writer crcs = {0};
    int code = 0;
    for (size_t i = 0; code == 0 && i < s->region_count; i++) {
        const struct guest_region *r = &s->regions[i];
        for (uint64_t at = 0; code == 0 && at < r->size;) {
            struct migrate_step step = {
                .kind = MIGRATE_VERIFY, .number = (uint32_t)i, .value = at / MIGRATE_PIECE_BYTES};
            crcs.size = 0;
            for (; at < r->size && step.crc_count < MIGRATE_PIECES_MAX; at += MIGRATE_PIECE_BYTES, step.crc_count++)
                bytes_put_u32(&crcs,
                              bytes_crc32c(0, r->host + at, MIN((uint64_t)MIGRATE_PIECE_BYTES, r->size - at)));
            step.crcs = crcs.data;
            code = migrate_step_put(&s->channels[0].out, &step, err);
        }
    }
    bytes_writer_finish(&crcs);
    return code;
}

/* The limits of the time when the guest ran hold no more. A target that is slow, but never silent, must not hold the guest
 * for ever. */
static void channels_hurry(struct migrate_sender *s)
{
    const struct precopy_settings *p = &s->options.precopy;
    uint64_t pause_us = s->options.stop_patience_ms * 1000ull + MAX(p->downtime_us, p->downtime_max_us);
    for (unsigned i = 0; i < s->options.channels; i++) {
        s->channels[i].channel.bytes_per_s_max = 0;
        s->channels[i].channel.patience_ms = s->options.stop_patience_ms;
        s->channels[i].channel.deadline_us = s->options.verify ? 0 : migrate_now_us() + pause_us; /* that takes long */
        s->channels[i].compression.on &= s->options.bytes_per_s_max == 0; /* it was for the limit's sake */
        s->channels[i].compression.fixed = true;
    }
}

/* Which pages will come later; all that is 0 in a section is left out. */
static int lack_send(struct migrate_sender *s, struct error *err)
{
    const uint64_t section_words = MIGRATE_LACK_BYTES_MAX / 8;
    struct bytes_writer bits = {0};
    int code = 0;
    for (size_t i = 0; i < s->region_count; i++) {
        uint64_t words = (s->regions[i].size / GUEST_PAGE_BYTES + 63) / 64;
        for (uint64_t at = 0; code == 0 && at < words; at += section_words) {
            uint64_t any = 0;
            bits.size = 0;
            for (uint64_t w = at; w < MIN(at + section_words, words); w++) {
                any |= s->bitmaps[i][w];
                bytes_put_u64(&bits, s->bitmaps[i][w]);
            }
            struct migrate_step step = {.kind = MIGRATE_LACK,
                                        .number = (uint32_t)i,
                                        .value = at * 64,
                                        .bits = bits.data,
                                        .bits_bytes = (uint32_t)bits.size};
            code = any ? migrate_step_put(&s->channels[0].out, &step, err) : 0;
        }
    }
    bytes_writer_finish(&bits);
    return code;
}

/* The same with the pages left out: they follow on the other channels at once, on the first after GO. */
static int postcopy_stop(struct migrate_sender *s, uint32_t flags, struct error *err)
{
    struct sender_channel *main = &s->channels[0];
    struct migrate_step final = {.kind = MIGRATE_FINAL, .number = flags | MIGRATE_FINAL_POSTCOPY};
    struct migrate_reply reply;
    pthread_mutex_lock(&s->lock);
    s->post = postcopy_source_create(s->regions, s->region_count, s->bitmaps, s->options.channels - 1);
    pthread_mutex_unlock(&s->lock);
    int code = lack_send(s, err);
    if (code < 0)
        return code;
    work_start(s, WORK_FINAL_POSTCOPY);
    if ((code = work_wait(s, 0, err)) < 0 || (code = migrate_step_put(&main->out, &final, err)) < 0)
        return code;
    for (unsigned i = 0; i < s->options.channels; i++) {
        limit_set(&s->channels[i]);
        if (i > 0)
            s->channels[i].channel.cancel = &s->broken;
    }
    work_start(s, WORK_PUSH);
    return migrate_channel_expect(&main->channel, MIGRATE_READY, &reply, err);
}

static int final_send(struct migrate_sender *s, const struct migrate_step *final, struct error *err)
{
    struct migrate_reply reply;
    int code = migrate_step_put(&s->channels[0].out, final, err);
    return code < 0 ? code : migrate_channel_expect(&s->channels[0].channel, MIGRATE_READY, &reply, err);
}

static int stop_and_send(struct migrate_sender *s, bool postcopy, struct error *err)
{
    struct sender_channel *main = &s->channels[0];
    struct migrate_step final = {.kind = MIGRATE_FINAL};
    uint64_t pages, again;
    phase_set(s, MIGRATE_PHASE_STOP);
    channels_hurry(s);
    int code = s->guest->ops->pause(s->guest, err);
    if (code < 0)
        return code;
    s->is_stopped = true;
    throttle(s, 0);
    if (s->options.is_paused && s->options.is_paused(s->options.arg))
        final.number = MIGRATE_FINAL_PAUSED;
    if (s->options.settle && (code = s->options.settle(s->options.arg, err)) < 0)
        return code;
    if ((code = s->guest->ops->state_save(s->guest, &main->out, err)) < 0)
        return code;
    if (s->options.hand_over) /* what the devices have written on that occasion is there as well */
        return final_send(s, &final, err);
    s->has_let_go = s->options.release != NULL; /* also of a part of it */
    if (s->has_let_go && (code = s->options.release(s->options.arg, err)) < 0)
        return code;
    if (code > 0)
        final.number |= MIGRATE_FINAL_RELEASED;
    if ((code = dirty_fetch(s, &pages, &again, err)) < 0)
        return code;
    if (postcopy)
        return postcopy_stop(s, final.number, err);
    if ((code = round_send(s, WORK_FINAL, err)) < 0)
        return code;
    struct precopy_round last = {0};
    pthread_mutex_lock(&s->lock);
    round_count(s, &last);
    s->progress.dirty_pages = 0;
    pthread_mutex_unlock(&s->lock);
    if (s->options.verify && (code = verify_send(s, err)) < 0)
        return code;
    return final_send(s, &final, err);
}

/* ---- the hand-over ---- */

static enum migrate_outcome decision_wait(struct migrate_sender *s, uint64_t *ret_epoch)
{
    s->has_asked = true;
    if (s->options.asks)
        s->options.asks(s->options.arg);
    pthread_mutex_lock(&s->lock);
    while (s->outcome == MIGRATE_UNDECIDED && !__atomic_load_n(&s->abandoned, __ATOMIC_ACQUIRE))
        pthread_cond_wait(&s->changed, &s->lock);
    enum migrate_outcome outcome = s->outcome;
    *ret_epoch = s->epoch;
    pthread_mutex_unlock(&s->lock);
    return outcome;
}

static int owner_ask(struct migrate_sender *s, uint64_t *ret_epoch, struct error *err)
{
    *ret_epoch = 0;
    pthread_mutex_lock(&s->lock);
    bool too_late = __atomic_load_n(&s->cancel, __ATOMIC_ACQUIRE);
    s->progress.phase = s->options.ask_owner ? MIGRATE_PHASE_READY : MIGRATE_PHASE_GO; /* no cancel from here on */
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (too_late)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
    if (!s->options.ask_owner)
        return 0;
    switch (decision_wait(s, ret_epoch)) {
    case MIGRATE_RUNS_THERE:
        return 0;
    case MIGRATE_RUNS_HERE:
        return error_set(err, -ECONNABORTED, ERROR_CONFLICT, "it was decided that the VM stays here");
    case MIGRATE_UNDECIDED:
    default:
        return error_set(err, -EOWNERDEAD, ERROR_UNKNOWN_OUTCOME, "it was not decided whose the VM is");
    }
}

static bool is_decided(struct migrate_sender *s)
{
    pthread_mutex_lock(&s->lock);
    bool decided = s->outcome != MIGRATE_UNDECIDED || __atomic_load_n(&s->abandoned, __ATOMIC_ACQUIRE);
    pthread_mutex_unlock(&s->lock);
    return decided;
}

/* On one host the target's word comes before it runs, through a Unix socket that leads from one process to the other: once this
 * end takes nothing more (unix(7), shutdown(2)) the word is here already, or the target fails to give it and does not run. */
static int word_last(struct migrate_sender *s, int code)
{
    static const bool never = false;
    struct migrate_channel *channel = &s->channels[0].channel;
    struct migrate_reply reply;
    channel->cancel = &never;
    shutdown(channel->fd, SHUT_RD);
    return migrate_channel_expect(channel, MIGRATE_RUNNING, &reply, NULL) == 0 ? 0 : code;
}

/* GO is on its way, or may be, and no word has come: @code and @err say why. Somebody else has to know, unless the
 * target is only slow. */
static int outcome_learn(struct migrate_sender *s, int code, struct error *err)
{
    struct migrate_channel *channel = &s->channels[0].channel;
    struct migrate_reply reply;
    uint64_t epoch;
    int slow = code;
    if (s->outcome == MIGRATE_RUNS_THERE)
        return 0; /* it was decided before GO: what became of the word does not matter */
    if (s->options.hand_over)
        return word_last(s, code);
    pthread_mutex_lock(&s->lock);
    s->progress.phase = MIGRATE_PHASE_UNKNOWN;
    s->progress.failure = *err;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (s->options.asks)
        s->options.asks(s->options.arg);
    channel->patience_ms = 2 * CHANNEL_SLICE_MS;
    while (slow == -ETIMEDOUT && !is_decided(s))
        slow = migrate_channel_expect(channel, MIGRATE_RUNNING, &reply, NULL);
    if (slow == 0)
        return 0;
    switch (decision_wait(s, &epoch)) {
    case MIGRATE_RUNS_THERE:
        return 0;
    case MIGRATE_RUNS_HERE:
        return code;
    case MIGRATE_UNDECIDED:
    default:
        return error_set(err, -EOWNERDEAD, ERROR_UNKNOWN_OUTCOME, "it is not known whether the target runs the VM");
    }
}

static int hand_over(struct migrate_sender *s, struct error *err)
{
    struct sender_channel *main = &s->channels[0];
    struct migrate_reply reply;
    struct migrate_step go = {.kind = MIGRATE_GO};
    int code = owner_ask(s, &go.value, err);
    bool is_theirs = code == 0 && s->outcome == MIGRATE_RUNS_THERE;
    if (code == 0 && !is_theirs && !migrate_channel_is_open(&main->channel))
        code = error_set(err, -ECONNRESET, ERROR_UNREACHABLE, "the target has gone before it was told to run");
    s->has_let_go |= code == 0;
    if (code == 0 && s->options.let_go)
        code = s->options.let_go(s->options.arg, err);
    if (code < 0 && !is_theirs)
        return code;
    phase_set(s, MIGRATE_PHASE_GO);
    main->channel.deadline_us = 0;
    main->channel.patience_ms = s->options.stop_patience_ms;
    main->channel.cancel = &s->abandoned;
    code = migrate_step_put(&main->out, &go, err);
    if (code == 0) {
        if (!s->post)
            (void)stream_put_end(&main->out, NULL); /* a target that runs already may have gone: its word counts */
        code = migrate_channel_expect(&main->channel, MIGRATE_RUNNING, &reply, err);
    }
    return code < 0 ? outcome_learn(s, code, err) : 0;
}

/* ---- post-copy: the target runs ---- */

static int channel_resume(struct sender_channel *c, struct error *err)
{
    struct migrate_reply reply;
    int code = channel_connect(c, &c->sender->broken, MIGRATE_OPEN_RESUME, err);
    if (code == 0)
        code = migrate_channel_expect(&c->channel, MIGRATE_ACCEPTED, &reply, err);
    if (code == 0)
        pages_make(c);
    return code;
}

static void channels_close(struct migrate_sender *s)
{
    for (unsigned i = 0; i < s->options.channels; i++) {
        if (s->channels[i].open)
            migrate_channel_finish(&s->channels[i].channel);
        s->channels[i].open = false;
    }
}

static bool is_given_up(struct migrate_sender *s)
{
    return s->given_up || __atomic_load_n(&s->abandoned, __ATOMIC_ACQUIRE);
}

/* Some time, or until it is given up. */
static bool retry_wait(struct migrate_sender *s)
{
    uint64_t until_us = migrate_now_us() + RETRY_MS * 1000;
    pthread_mutex_lock(&s->lock);
    while (!is_given_up(s) && migrate_now_us() < until_us)
        wait_until_ms(s, RETRY_MS);
    bool goes_on = !is_given_up(s);
    /* Under the lock: whoever gives it up from here on breaks the tries that follow, too. */
    __atomic_store_n(&s->broken, !goes_on, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&s->lock);
    return goes_on;
}

/* All channels are broken, and their threads at rest: connect again, for as long as it takes. */
static int postcopy_reconnect(struct migrate_sender *s, struct error *err)
{
    struct postcopy_link *links = xcalloc(s->options.channels, sizeof(*links));
    for (unsigned i = 0; i < s->options.channels; i++)
        links[i] = s->channels[i].link;
    postcopy_source_restart(s->post, links, s->options.channels, s->options.channels - 1);
    for (unsigned i = 0; i < s->options.channels; i++)
        s->channels[i].link = links[i];
    free(links);
    channels_close(s);
    pthread_mutex_lock(&s->lock);
    s->progress.phase = MIGRATE_PHASE_LOST;
    s->progress.failure = *err;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    while (retry_wait(s)) {
        int code = 0;
        for (unsigned i = 0; code == 0 && i < s->options.channels; i++)
            code = channel_resume(&s->channels[i], err);
        if (code == 0)
            return 0;
        channels_close(s);
    }
    return error_set(err, -EOWNERDEAD, ERROR_UNKNOWN_OUTCOME, "given up while the target lacked %llu pages of memory",
                     (unsigned long long)postcopy_source_left(s->post));
}

/* Push the first's share as well, until the target has it all. */
static int postcopy_finish(struct migrate_sender *s, struct error *err)
{
    struct sender_channel *main = &s->channels[0];
    struct migrate_step done = {.kind = MIGRATE_DONE};
    struct migrate_reply reply;
    main->channel.cancel = &s->broken;
    main->channel.patience_ms = POST_PATIENCE_MS;
    int code = channel_push(main, err);
    code = work_wait(s, code, err);
    if (code < 0)
        return postcopy_source_left(s->post) == 0 ? 0 : code;
    /* It has everything, whatever becomes of these words. */
    if (migrate_step_put(&main->out, &done, NULL) == 0 && stream_put_end(&main->out, NULL) == 0)
        (void)migrate_channel_expect(&main->channel, MIGRATE_COMPLETE, &reply, NULL);
    return 0;
}

static int postcopy_run(struct migrate_sender *s, struct error *err)
{
    phase_set(s, MIGRATE_PHASE_POSTCOPY);
    while (postcopy_finish(s, err) < 0) {
        int code = postcopy_reconnect(s, err);
        if (code < 0)
            return s->given_up ? 0 : code;
        work_start(s, WORK_PUSH);
        phase_set(s, MIGRATE_PHASE_POSTCOPY);
    }
    return 0;
}

/* ---- all of it ---- */

/* Best effort: a target that hears nothing finds out by itself. */
static void cancel_tell(struct migrate_sender *s, const struct error *err)
{
    struct migrate_step step = {.kind = MIGRATE_CANCEL};
    bool never = false;
    struct sender_channel *main = &s->channels[0];
    if (!main->open)
        return;
    snprintf(step.text, sizeof(step.text), "%.480s", err->text);
    main->channel.cancel = &never;
    main->channel.deadline_us = 0;
    main->channel.patience_ms = 100;
    main->channel.bytes_per_s_max = 0; /* nobody waits until what was sent before fits the limit */
    (void)migrate_step_put(&main->out, &step, NULL);
}

/* The connection broke: the target may have said why before. */
static void refusal_read(struct migrate_sender *s, struct error *err)
{
    struct migrate_channel *channel = &s->channels[0].channel;
    struct migrate_reply reply;
    struct error said;
    bool never = false;
    int code = 0;
    if (!s->channels[0].open)
        return;
    channel->cancel = &never;
    channel->deadline_us = 0;
    channel->patience_ms = 2 * CHANNEL_SLICE_MS;
    for (unsigned i = 0; code == 0 && i < MIGRATE_CHANNELS_MAX; i++)
        code = migrate_channel_reply(channel, &reply, &said);
    if (code == -ECONNABORTED)
        *err = said;
}

/* It cannot be had just now (no lease, a file server that does not answer), or its owner is another by now, who has this process
 * ended: nobody was asked whose the guest is, and nobody must be, for the target may not have all of it. */
static bool retry_soon(struct migrate_sender *s, const struct error *err)
{
    pthread_mutex_lock(&s->lock);
    s->progress.failure = *err;
    pthread_mutex_unlock(&s->lock);
    (void)poll(NULL, 0, CHANNEL_SLICE_MS);
    return !__atomic_load_n(&s->abandoned, __ATOMIC_ACQUIRE);
}

/* Somebody else has what was let go: then it was not for us to go on, whoever decided so. Ask again. */
static int take_back(struct migrate_sender *s, struct error *err)
{
    struct error why; /* the migration's own failure is what is told in the end */
    uint64_t epoch;
    while (s->has_let_go && s->options.take_back && s->options.take_back(s->options.arg, &why) < 0) {
        if (!s->has_asked && !s->options.hand_over) {
            if (retry_soon(s, &why))
                continue;
            *err = why;
            return -EOWNERDEAD;
        }
        pthread_mutex_lock(&s->lock);
        s->outcome = MIGRATE_UNDECIDED;
        s->progress.decided = false;
        s->progress.phase = MIGRATE_PHASE_UNKNOWN;
        s->progress.failure = why;
        pthread_mutex_unlock(&s->lock);
        if (s->options.hand_over && !__atomic_load_n(&s->abandoned, __ATOMIC_ACQUIRE)) {
            (void)poll(NULL, 0, CHANNEL_SLICE_MS); /* by one that is about to end */
            continue;
        }
        switch (decision_wait(s, &epoch)) {
        case MIGRATE_RUNS_THERE:
            return 0;
        case MIGRATE_RUNS_HERE:
            continue;
        case MIGRATE_UNDECIDED:
        default:
            *err = why;
            return -EOWNERDEAD;
        }
    }
    return 0;
}

/* The guest goes on here. */
static int go_on_here(struct migrate_sender *s, int code, struct error *err)
{
    struct error second;
    if (code == -ECONNRESET)
        refusal_read(s, err);
    cancel_tell(s, err);
    channels_finish(s);
    throttle(s, 0);
    if (s->is_logging)
        s->guest->ops->dirty_stop(s->guest);
    if (!s->is_stopped)
        return code;
    if (take_back(s, err) < 0)
        return -EOWNERDEAD;
    if (s->outcome == MIGRATE_RUNS_THERE)
        return 0;
    if (s->guest->ops->resume(s->guest, &second) < 0)
        *err = second;
    return code;
}

int migrate_sender_run(struct migrate_sender *s, struct error *err)
{
    struct error words = {0};
    bool postcopy = false;
    s->began_us = s->options.began_us ? s->options.began_us : migrate_now_us();
    int code = connect_all(s, &words);
    if (code == 0)
        code = rounds_run(s, &postcopy, &words);
    if (code == 0) {
        s->stopped_us = migrate_now_us();
        code = stop_and_send(s, postcopy, &words);
    }
    if (code == 0)
        code = hand_over(s, &words);
    uint64_t running_us = migrate_now_us();
    if (code == 0 && s->post)
        code = postcopy_run(s, &words);
    uint64_t now_us = migrate_now_us();
    bool was_cancelled = code == -ECANCELED;
    if (code == -EOWNERDEAD)
        channels_finish(s);
    else if (code < 0)
        code = go_on_here(s, code, &words);
    pthread_mutex_lock(&s->lock);
    s->progress.phase = code == 0               ? MIGRATE_PHASE_DONE
                        : code == -EOWNERDEAD   ? MIGRATE_PHASE_UNKNOWN
                        : was_cancelled         ? MIGRATE_PHASE_CANCELLED
                                                : MIGRATE_PHASE_FAILED;
    s->progress.downtime_us = s->stopped_us ? running_us - s->stopped_us : 0;
    s->progress.total_us = now_us - s->began_us;
    s->progress.throttle = 0;
    s->progress.asks_pause = false;
    s->progress.sent_bytes = sent_bytes(s);
    if (code < 0)
        s->progress.failure = words;
    pthread_mutex_unlock(&s->lock);
    if (code < 0 && err)
        *err = words;
    return code;
}

/* ---- from other threads ---- */

struct migrate_progress migrate_sender_progress(struct migrate_sender *s)
{
    pthread_mutex_lock(&s->lock);
    struct migrate_progress progress = s->progress;
    if (s->post) {
        progress.dirty_pages = postcopy_source_left(s->post);
        progress.postcopy = true;
    }
    pthread_mutex_unlock(&s->lock);
    if ((progress.phase > MIGRATE_PHASE_IDLE && progress.phase < MIGRATE_PHASE_UNKNOWN) ||
        progress.phase >= MIGRATE_PHASE_POSTCOPY) {
        progress.total_us = migrate_now_us() - s->began_us;
        progress.sent_bytes = sent_bytes(s);
    }
    return progress;
}

int migrate_sender_cancel(struct migrate_sender *s, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&s->lock);
    if (s->progress.phase >= MIGRATE_PHASE_READY)
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "it is too late to cancel the migration");
    else
        __atomic_store_n(&s->cancel, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&s->lock);
    return code;
}

int migrate_sender_decide(struct migrate_sender *s, enum migrate_outcome outcome, uint64_t epoch, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&s->lock);
    enum migrate_phase phase = s->progress.phase;
    if (phase == MIGRATE_PHASE_LOST && outcome == MIGRATE_RUNS_THERE) {
        s->given_up = true;
        __atomic_store_n(&s->broken, true, __ATOMIC_RELEASE); /* a try to connect is not waited for */
    } else if (s->options.hand_over && outcome == MIGRATE_RUNS_HERE && phase == MIGRATE_PHASE_UNKNOWN) {
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "the target holds what the VM needs: end its process, and the VM goes on here");
    } else if (phase == MIGRATE_PHASE_LOST)
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "the target has run the VM since: what is here is old");
    else if ((phase != MIGRATE_PHASE_READY && phase != MIGRATE_PHASE_UNKNOWN) || s->outcome != MIGRATE_UNDECIDED)
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "there is nothing to decide about the migration");
    else {
        s->outcome = outcome;
        s->progress.decided = true;
        s->epoch = epoch;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return code;
}

int migrate_sender_permit(struct migrate_sender *s, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&s->lock);
    if (s->progress.phase != MIGRATE_PHASE_MEMORY) {
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "the migration does not ask whether the VM may be stopped");
    } else {
        s->permit_until_us = migrate_now_us() + PERMIT_MS * 1000;
        s->progress.asks_pause = false;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return code;
}

void migrate_sender_abandon(struct migrate_sender *s)
{
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->cancel, true, __ATOMIC_RELEASE);
    __atomic_store_n(&s->abandoned, true, __ATOMIC_RELEASE);
    __atomic_store_n(&s->broken, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}
