/* Sockets and threads around migrate_intake.h; see migrate_receiver.h. */
#include "migration/migrate_receiver.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "migration/migrate_channel.h"
#include "migration/migrate_intake.h"
#include "migration/page_faults.h"

enum { ANSWER_PATIENCE_MS = 1000, DRAIN_BYTES_MAX = 64 << 20, POST_PATIENCE_MS = 10000 };

/* Is it a post-copy? Known when channel 0 is at FINAL; the other channels' threads wait for that. */
enum post { POST_UNDECIDED, POST_NO, POST_YES };

struct receiver_channel {
    struct migrate_receiver *receiver;
    bool open, thread_runs;
    struct migrate_channel channel;
    struct stream_reader reader;
    struct intake_channel intake;
    pthread_t thread;
};

struct migrate_receiver {
    struct guest *guest;
    struct migrate_receiver_options options;
    struct migrate_intake intake;
    struct receiver_channel channels[MIGRATE_CHANNELS_MAX]; /* [0] is the first; the others in order of arrival */
    uint64_t began_us;
    bool cancel, decided; /* atomic */
    /* post-copy */
    struct page_faults *faults;
    pthread_t faults_thread;
    bool faults_thread_runs;
    bool faults_end, faults_again; /* atomic: to the faults' thread: end; ask for everything again */
    bool broken;                   /* atomic: the connections are given up */
    bool has_run;                  /* atomic: the guest runs here, or has */
    pthread_mutex_t urgent_lock;   /* guards `urgent` and what is written to it */
    struct receiver_channel *urgent; /* where pages are asked for; NULL: nowhere */

    pthread_mutex_t lock; /* guards all below, and the intake until a channel is at its pages */
    pthread_cond_t changed;
    struct migrate_progress progress;
    enum post post;
    unsigned finals; /* channels that have sent all their pages */
    int failed;      /* of a channel's thread */
    struct error failure;
    enum migrate_outcome outcome;
    uint64_t epoch;
};

static void phase_set(struct migrate_receiver *r, enum migrate_phase phase)
{
    pthread_mutex_lock(&r->lock);
    r->progress.phase = phase;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

struct migrate_receiver *migrate_receiver_create(struct guest *guest, const struct migrate_receiver_options *options)
{
    struct migrate_receiver *r = NEW(struct migrate_receiver);
    struct guest_region regions[GUEST_REGIONS_MAX];
    r->guest = guest;
    r->options = *options;
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->urgent_lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    size_t count = guest->ops->regions(guest, regions);
    intake_init(&r->intake, regions, count);
    for (size_t i = 0; i < count; i++)
        r->progress.memory_bytes += regions[i].size;
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++)
        r->channels[i].receiver = r;
    r->progress.phase = MIGRATE_PHASE_CONNECT;
    return r;
}

static void channel_finish(struct receiver_channel *c)
{
    if (c->thread_runs)
        pthread_join(c->thread, NULL);
    c->thread_runs = false;
    if (!c->open)
        return;
    migrate_channel_finish(&c->channel);
    stream_reader_finish(&c->reader);
    intake_channel_finish(&c->intake);
    c->open = false;
}

static void faults_thread_end(struct migrate_receiver *r)
{
    __atomic_store_n(&r->faults_end, true, __ATOMIC_RELEASE);
    if (r->faults_thread_runs)
        pthread_join(r->faults_thread, NULL);
    r->faults_thread_runs = false;
}

void migrate_receiver_destroy(struct migrate_receiver *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++)
        channel_finish(&r->channels[i]);
    faults_thread_end(r);
    page_faults_finish(r->faults);
    intake_finish(&r->intake);
    pthread_mutex_destroy(&r->urgent_lock);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- channels ---- */

static int accept_wait(struct migrate_receiver *r, unsigned patience_ms, struct error *err)
{
    uint64_t since_us = migrate_now_us();
    struct pollfd p = {.fd = r->options.listen_fd, .events = POLLIN};
    while (true) {
        if (__atomic_load_n(&r->cancel, __ATOMIC_ACQUIRE))
            return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
        if (poll(&p, 1, CHANNEL_SLICE_MS) > 0) {
            int fd = accept4(r->options.listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0)
                return fd;
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                return error_errno(err, -errno, "cannot accept the source's connection");
        }
        if (patience_ms && migrate_now_us() - since_us >= (uint64_t)patience_ms * 1000)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "the source has not connected within %u ms", patience_ms);
    }
}

static int channel_accept(struct migrate_receiver *r, struct receiver_channel *c, unsigned patience_ms,
                          struct error *err)
{
    int fd = accept_wait(r, patience_ms, err);
    if (fd < 0)
        return fd;
    migrate_channel_init(&c->channel, fd, &r->cancel, r->options.patience_ms);
    stream_reader_init(&c->reader);
    intake_channel_init(&c->intake);
    c->open = true;
    return 0;
}

/* The next event of the channel: INTAKE_... or negative. Until it is at its pages, others may be joining as well. */
static int channel_event(struct receiver_channel *c, struct error *err)
{
    struct migrate_receiver *r = c->receiver;
    struct stream_section section;
    int code = INTAKE_NONE;
    while (code == INTAKE_NONE) {
        code = migrate_channel_section(&c->channel, &c->reader, &section, err);
        if (code < 0)
            return code;
        bool locked = c->intake.stage < INTAKE_AT_PAGES;
        if (locked)
            pthread_mutex_lock(&r->lock);
        code = intake_section(&r->intake, &c->intake, c == &r->channels[0], &section, err);
        if (locked)
            pthread_mutex_unlock(&r->lock);
    }
    return code;
}

/* Pages are asked for on one of the channels by another thread. */
static int synced(struct receiver_channel *c, struct error *err)
{
    struct migrate_receiver *r = c->receiver;
    pthread_mutex_lock(&r->urgent_lock);
    bool is_urgent = r->urgent == c;
    if (!is_urgent)
        pthread_mutex_unlock(&r->urgent_lock);
    int code = migrate_channel_answer(&c->channel, MIGRATE_SYNCED, c->intake.step.number, "", err);
    if (is_urgent)
        pthread_mutex_unlock(&r->urgent_lock);
    return code;
}

static uint64_t accepted_value(const struct migrate_receiver *r)
{
    return MIGRATE_VERSION | (r->options.fault_fd > 0 ? MIGRATE_CAN_POSTCOPY : 0);
}

/* A channel other than the first, until it has sent all. */
static int channel_serve(struct receiver_channel *c, struct error *err)
{
    struct migrate_receiver *r = c->receiver;
    while (true) {
        int event = channel_event(c, err);
        int code = event < 0 ? event : 0;
        if (event == INTAKE_OPENED)
            code = migrate_channel_answer(&c->channel, MIGRATE_ACCEPTED, accepted_value(r), "", err);
        else if (event == INTAKE_SYNC)
            code = synced(c, err);
        if (code < 0 || event == INTAKE_FINAL)
            return code;
    }
}

/* The same from there on, until all that was lacking has come. Nothing to say is no fault: channel 0 knows that. */
static int channel_post(struct receiver_channel *c, struct error *err)
{
    struct migrate_receiver *r = c->receiver;
    c->channel.cancel = &r->broken;
    while (true) {
        int event = channel_event(c, err);
        int code = event < 0 ? event : 0;
        if (event == INTAKE_OPENED)
            code = migrate_channel_answer(&c->channel, MIGRATE_ACCEPTED, accepted_value(r), "", err);
        else if (event == INTAKE_SYNC)
            code = synced(c, err);
        pthread_mutex_lock(&r->lock);
        bool is_patient = r->progress.phase != MIGRATE_PHASE_STOP;
        pthread_mutex_unlock(&r->lock);
        if (event == INTAKE_END || (code < 0 && !(code == -ETIMEDOUT && is_patient)))
            return code;
    }
}

/* A channel's thread has failed. While the machine is being loaded that may be waiting for a page that will not come. */
static void channel_failed(struct receiver_channel *c, int code, const struct error *err)
{
    struct migrate_receiver *r = c->receiver;
    pthread_mutex_lock(&r->lock);
    bool before_ready = r->progress.phase <= MIGRATE_PHASE_STOP;
    if (before_ready && r->failed == 0) {
        r->failed = code;
        r->failure = *err;
        __atomic_store_n(&r->cancel, true, __ATOMIC_RELEASE); /* the first channel comes and looks */
        if (r->faults)
            page_faults_let_go(r->faults);
    }
    __atomic_store_n(&r->broken, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static enum post post_wait(struct migrate_receiver *r)
{
    pthread_mutex_lock(&r->lock);
    r->finals++;
    pthread_cond_broadcast(&r->changed);
    while (r->post == POST_UNDECIDED && !__atomic_load_n(&r->broken, __ATOMIC_ACQUIRE))
        pthread_cond_wait(&r->changed, &r->lock);
    enum post post = r->post;
    pthread_mutex_unlock(&r->lock);
    return post;
}

static void *channel_main(void *arg)
{
    struct receiver_channel *c = arg;
    struct error err = {0};
    int code = channel_serve(c, &err);
    if (code >= 0 && post_wait(c->receiver) == POST_YES)
        code = channel_post(c, &err);
    if (code < 0)
        channel_failed(c, code, &err);
    return NULL;
}

static int others_accept(struct migrate_receiver *r, struct error *err)
{
    for (unsigned i = 1; i < r->intake.channels; i++) {
        struct receiver_channel *c = &r->channels[i];
        int code = channel_accept(r, c, r->options.patience_ms, err);
        if (code < 0)
            return code;
        code = -pthread_create(&c->thread, NULL, channel_main, c);
        if (code < 0)
            return error_errno(err, code, "cannot start a thread");
        c->thread_runs = true;
    }
    return 0;
}

/* ---- the first channel ---- */

static int machine_judge(struct migrate_receiver *r, struct error *err)
{
    const struct machine_description *d = &r->intake.description;
    int code = 0;
    if (d->memory_bytes != r->progress.memory_bytes)
        code = error_set(err, -EINVAL, ERROR_INVALID, "the source's guest has %llu bytes of memory, this one %llu",
                         (unsigned long long)d->memory_bytes, (unsigned long long)r->progress.memory_bytes);
    if (code == 0 && r->options.fits)
        code = r->options.fits(r->options.arg, d, err);
    if (code == 0 && r->guest->ops->check_load)
        code = r->guest->ops->check_load(r->guest, &r->intake.states, err);
    return code;
}

/* A channel's thread that failed has the better words. */
static int failure_of(struct migrate_receiver *r, int code, struct error *err)
{
    pthread_mutex_lock(&r->lock);
    if (r->failed) {
        code = r->failed;
        *err = r->failure;
    }
    pthread_mutex_unlock(&r->lock);
    return code;
}

static int finals_wait(struct migrate_receiver *r, struct error *err)
{
    pthread_mutex_lock(&r->lock);
    while (r->finals + 1 < r->intake.channels && r->failed == 0)
        pthread_cond_wait(&r->changed, &r->lock); /* their patience ends it */
    int code = r->failed;
    if (code && err)
        *err = r->failure;
    pthread_mutex_unlock(&r->lock);
    return code;
}

/* ---- post-copy: before it runs ---- */

static int post_place(void *arg, size_t region, uint64_t page, uint64_t pages, const uint8_t *data, struct error *err)
{
    struct migrate_receiver *r = arg;
    return page_faults_place(r->faults, region, page, pages, data, err);
}

/* On the faults' thread. Where there is no connection it is asked again later. */
static int page_want(void *arg, size_t region, uint64_t page)
{
    struct migrate_receiver *r = arg;
    pthread_mutex_lock(&r->urgent_lock);
    if (r->urgent)
        (void)migrate_channel_answer(&r->urgent->channel, MIGRATE_WANTED, migrate_wanted(region, page), "", NULL);
    pthread_mutex_unlock(&r->urgent_lock);
    return 0;
}

static void *faults_main(void *arg)
{
    struct migrate_receiver *r = arg;
    struct error err;
    size_t region;
    uint64_t page;
    int code = 0;
    while (code >= 0 && !__atomic_load_n(&r->faults_end, __ATOMIC_ACQUIRE)) {
        if (__atomic_exchange_n(&r->faults_again, false, __ATOMIC_ACQ_REL))
            (void)page_faults_wanted_again(r->faults, page_want, r);
        code = page_faults_next(r->faults, CHANNEL_SLICE_MS, &region, &page, &err);
        if (code > 0)
            (void)page_want(r, region, page);
    }
    return NULL;
}

static void urgent_set(struct migrate_receiver *r, bool there)
{
    pthread_mutex_lock(&r->urgent_lock);
    r->urgent = NULL;
    for (unsigned i = 1; there && i < r->intake.channels; i++)
        if (r->channels[i].intake.number == r->intake.channels - 1)
            r->urgent = &r->channels[i];
    pthread_mutex_unlock(&r->urgent_lock);
}

static void post_decide(struct migrate_receiver *r, enum post post)
{
    pthread_mutex_lock(&r->lock);
    r->post = post;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static int post_begin(struct migrate_receiver *r, struct error *err)
{
    struct page_faults *faults;
    if (r->options.fault_fd <= 0 || r->intake.channels < 2)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "post-copy is not possible here");
    int code = page_faults_start(r->options.fault_fd, r->intake.regions, r->intake.region_count, r->intake.lack, &faults,
                                 err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&r->lock);
    r->faults = faults;
    pthread_mutex_unlock(&r->lock);
    r->intake.place_arg = r;
    r->intake.place = post_place;
    urgent_set(r, true);
    code = -pthread_create(&r->faults_thread, NULL, faults_main, r);
    r->faults_thread_runs = code == 0;
    if (code < 0)
        return error_errno(err, code, "cannot start a thread");
    pthread_mutex_lock(&r->lock);
    r->progress.postcopy = true;
    pthread_mutex_unlock(&r->lock);
    post_decide(r, POST_YES);
    return 0;
}

static int complete(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    phase_set(r, MIGRATE_PHASE_STOP);
    int code = finals_wait(r, err);
    if (code == 0 && r->intake.postcopy)
        code = post_begin(r, err);
    else
        post_decide(r, POST_NO);
    if (code == 0)
        code = intake_verify(&r->intake, err);
    if (code == 0)
        code = r->options.load(r->options.arg, &r->intake.states, r->intake.paused, err);
    if (code == 0)
        code = stream_states_check_taken(&r->intake.states, err);
    if (code == 0 && r->intake.postcopy)
        code = failure_of(r, 0, err); /* of a channel, while it was being loaded */
    if (code < 0)
        return code;
    phase_set(r, MIGRATE_PHASE_READY);
    return migrate_channel_answer(&main->channel, MIGRATE_READY, 0, "", err);
}

static int handles_take(struct migrate_receiver *r, struct error *err)
{
    int fds[GUEST_HANDLES_MAX];
    size_t count;
    int code = migrate_channel_take_handles(&r->channels[0].channel, fds, &count, err);
    if (code == 0 && !r->guest->ops->handles_adopt) {
        for (size_t i = 0; i < count; i++)
            close(fds[i]);
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "this guest cannot be handed over");
    }
    return code < 0 ? code : r->guest->ops->handles_adopt(r->guest, fds, count, err);
}

/* From the first connection until READY has been said. */
static int receive(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    int code = channel_accept(r, main, 0, err);
    r->began_us = migrate_now_us();
    if (code >= 0 && r->options.handed_over)
        code = handles_take(r, err);
    while (code >= 0) {
        int event = code = channel_event(main, err);
        if (event == INTAKE_CHECK) {
            code = machine_judge(r, err);
            if (code == 0) {
                intake_accept(&r->intake, &main->intake);
                code = migrate_channel_answer(&main->channel, MIGRATE_ACCEPTED, accepted_value(r), "", err);
            }
            if (code == 0)
                code = others_accept(r, err);
            phase_set(r, MIGRATE_PHASE_MEMORY);
        } else if (event == INTAKE_SYNC) {
            pthread_mutex_lock(&r->lock);
            r->progress.rounds = main->intake.step.number;
            pthread_mutex_unlock(&r->lock);
            code = synced(main, err);
        } else if (event == INTAKE_FINAL) {
            return complete(r, err);
        } else if (event == INTAKE_CANCEL) {
            return error_set(err, -ECANCELED, ERROR_CANCELLED, "the source has given the migration up: %.400s",
                             main->intake.step.text);
        }
    }
    return failure_of(r, code, err);
}

/* ---- the hand-over ---- */

/* 0: it is ours, *ret_epoch says with what. */
static int decision_follow(struct migrate_receiver *r, uint64_t *ret_epoch, struct error *err)
{
    pthread_mutex_lock(&r->lock);
    while (r->outcome == MIGRATE_UNDECIDED && !__atomic_load_n(&r->cancel, __ATOMIC_ACQUIRE)) {
        r->progress.phase = MIGRATE_PHASE_UNKNOWN;
        r->progress.failure = *err;
        pthread_cond_wait(&r->changed, &r->lock);
    }
    enum migrate_outcome outcome = r->outcome;
    *ret_epoch = r->epoch;
    pthread_mutex_unlock(&r->lock);
    if (outcome == MIGRATE_RUNS_HERE)
        return 0;
    if (outcome == MIGRATE_RUNS_THERE)
        return error_set(err, -ECONNABORTED, ERROR_CONFLICT, "it was decided that the VM does not run here");
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
}

static int go_wait(struct migrate_receiver *r, uint64_t *ret_epoch, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    main->channel.patience_ms = 0;
    main->channel.cancel = &r->decided;
    int event = channel_event(main, err);
    if (event == INTAKE_GO) {
        *ret_epoch = main->intake.step.value;
        return 0;
    }
    if (event == INTAKE_CANCEL)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the source has given the migration up: %.400s",
                         main->intake.step.text);
    if (event >= 0)
        error_set(err, -EBADMSG, ERROR_CHECKSUM, "the source says something else than go");
    if (r->options.handed_over) /* without a word from here the guest goes on there: nothing is left to wait for */
        return event < 0 ? event : -EBADMSG;
    return decision_follow(r, ret_epoch, err);
}

/* ---- post-copy: it runs ---- */

static void stall(struct migrate_receiver *r, bool stalled)
{
    if (r->options.stall)
        r->options.stall(r->options.arg, stalled);
}

static void lost_set(struct migrate_receiver *r, const struct error *err)
{
    pthread_mutex_lock(&r->lock);
    r->progress.phase = MIGRATE_PHASE_LOST;
    r->progress.failure = (struct error){0};
    error_set(&r->progress.failure, -ECONNRESET, ERROR_UNREACHABLE,
              "the source is lost, which has %llu pages of the VM's memory that are not here; the VM stands still until it is "
              "back, and has to be started anew if it never is: %.250s",
              (unsigned long long)page_faults_lacking(r->faults), err->text);
    pthread_mutex_unlock(&r->lock);
}

/* Give all connections up. */
static void post_break(struct migrate_receiver *r)
{
    urgent_set(r, false);
    __atomic_store_n(&r->broken, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++)
        channel_finish(&r->channels[i]);
    __atomic_store_n(&r->broken, false, __ATOMIC_RELEASE);
}

static void *resumed_main(void *arg)
{
    struct receiver_channel *c = arg;
    struct error err = {0};
    int code = channel_post(c, &err);
    if (code < 0)
        channel_failed(c, code, &err);
    return NULL;
}

/* The source's connection @i, again. */
static int resume_one(struct migrate_receiver *r, unsigned i, struct error *err)
{
    struct receiver_channel *c = &r->channels[i];
    int code = channel_accept(r, c, i == 0 ? 0 : r->options.patience_ms, err);
    if (code < 0)
        return code;
    int event = channel_event(c, err);
    if (event != INTAKE_OPENED)
        return event < 0 ? event : error_set(err, -EBADMSG, ERROR_CHECKSUM, "the source does not resume");
    code = migrate_channel_answer(&c->channel, MIGRATE_ACCEPTED, accepted_value(r), "", err);
    if (code < 0 || i == 0)
        return code;
    code = -pthread_create(&c->thread, NULL, resumed_main, c);
    c->thread_runs = code == 0;
    return code < 0 ? error_errno(err, code, "cannot start a thread") : 0;
}

/* Until the source is back, or it was given up. Others who connect are sent away. */
static int post_resume(struct migrate_receiver *r, struct error *err)
{
    stall(r, true);
    lost_set(r, err);
    while (true) {
        int code = 0;
        for (unsigned i = 0; code >= 0 && i < r->intake.channels; i++)
            code = resume_one(r, i, err);
        if (code >= 0)
            break;
        post_break(r);
        if (__atomic_load_n(&r->cancel, __ATOMIC_ACQUIRE))
            return error_set(err, -ECANCELED, ERROR_CANCELLED,
                             "the VM was given up: %llu pages of its memory were still at the source, which was lost",
                             (unsigned long long)page_faults_lacking(r->faults));
    }
    urgent_set(r, true);
    __atomic_store_n(&r->faults_again, true, __ATOMIC_RELEASE);
    phase_set(r, MIGRATE_PHASE_POSTCOPY);
    stall(r, false);
    return 0;
}

/* Channel 0 until DONE. */
static int post_receive(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    main->channel.cancel = &r->broken;
    main->channel.patience_ms = POST_PATIENCE_MS;
    while (true) {
        int event = channel_event(main, err), code = event < 0 ? event : 0;
        uint64_t lacking = page_faults_lacking(r->faults);
        pthread_mutex_lock(&r->lock);
        r->progress.dirty_pages = lacking;
        pthread_mutex_unlock(&r->lock);
        if (event == INTAKE_SYNC)
            code = synced(main, err);
        if (event == INTAKE_DONE && lacking == 0) {
            (void)migrate_channel_answer(&main->channel, MIGRATE_COMPLETE, migrate_now_us() - r->began_us, "", NULL);
            (void)channel_event(main, NULL); /* END */
            return 0;
        }
        if (event == INTAKE_DONE || event == INTAKE_END)
            code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "the source says that was all");
        if (code < 0)
            return lacking == 0 ? 0 : code;
    }
}

static int post_serve(struct migrate_receiver *r, struct error *err)
{
    phase_set(r, MIGRATE_PHASE_POSTCOPY);
    while (post_receive(r, err) < 0) {
        post_break(r);
        int code = post_resume(r, err);
        if (code < 0)
            return code;
    }
    urgent_set(r, false);
    faults_thread_end(r);
    pthread_mutex_lock(&r->lock);
    struct page_faults *faults = TAKE_PTR(r->faults);
    pthread_mutex_unlock(&r->lock);
    page_faults_finish(faults);
    return 0;
}

static int word_give(struct receiver_channel *main, uint64_t took_us, struct error *err)
{
    static const bool never = false;
    main->channel.cancel = &never;
    main->channel.patience_ms = ANSWER_PATIENCE_MS;
    return migrate_channel_answer(&main->channel, MIGRATE_RUNNING, took_us, "", err);
}

/* The source goes on where this side ends without the word: so who could not give it must not run. */
static int word_before_run(struct migrate_receiver *r, uint64_t epoch, struct error *err)
{
    int code = r->options.own ? r->options.own(r->options.arg, epoch, err) : 0;
    return code < 0 ? code : word_give(&r->channels[0], 0, err);
}

void migrate_receiver_runs(struct migrate_receiver *r)
{
    if (r->intake.postcopy)
        __atomic_store_n(&r->has_run, true, __ATOMIC_RELEASE);
}

static int take_over(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    uint64_t epoch = 0;
    int code = go_wait(r, &epoch, err);
    if (code < 0)
        return code;
    uint64_t start_us = migrate_now_us();
    phase_set(r, MIGRATE_PHASE_GO);
    if (r->options.handed_over && (code = word_before_run(r, epoch, err)) < 0)
        return code;
    code = r->options.run(r->options.arg, epoch, err);
    if (code == 0)
        migrate_receiver_runs(r);
    if (code == 0 && !r->options.handed_over)
        (void)word_give(main, migrate_now_us() - start_us, NULL);
    if (code == 0 && r->intake.postcopy)
        return post_serve(r, err);
    if (code == 0)
        (void)channel_event(main, NULL); /* END: closed with unread bytes, the socket would take the answer back */
    return code;
}

/* ---- all of it ---- */

/* Why not, and then what is still on its way is read and dropped for a while, for a socket that is closed with unread
 * bytes takes the answer back. */
static void refusal_send(struct migrate_receiver *r, const struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    bool never = false;
    if (!main->open)
        return;
    main->channel.cancel = &never;
    main->channel.patience_ms = ANSWER_PATIENCE_MS;
    if (migrate_channel_answer(&main->channel, MIGRATE_REFUSED, 0, err->text, NULL) < 0)
        return;
    shutdown(main->channel.fd, SHUT_WR);
    CLEANUP_FREE uint8_t *junk = xcalloc(1, 65536);
    uint64_t end_us = migrate_now_us() + ANSWER_PATIENCE_MS * 1000, dropped = 0;
    while (dropped < DRAIN_BYTES_MAX && migrate_now_us() < end_us) {
        ssize_t n = migrate_channel_read(&main->channel, junk, 65536, NULL);
        if (n < 0)
            return;
        dropped += (uint64_t)n;
    }
}

int migrate_receiver_run(struct migrate_receiver *r, struct error *err)
{
    struct error words = {0};
    int code = receive(r, &words);
    if (code >= 0)
        code = take_over(r, &words);
    if (code < 0) {
        __atomic_store_n(&r->cancel, true, __ATOMIC_RELEASE);
        refusal_send(r, &words);
    }
    pthread_mutex_lock(&r->lock);
    __atomic_store_n(&r->broken, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    urgent_set(r, false);
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++)
        channel_finish(&r->channels[i]);
    pthread_mutex_lock(&r->lock);
    r->progress.phase = code >= 0            ? MIGRATE_PHASE_DONE
                        : code == -ECANCELED ? MIGRATE_PHASE_CANCELLED
                                             : MIGRATE_PHASE_FAILED;
    r->progress.total_us = migrate_now_us() - r->began_us;
    if (code < 0)
        r->progress.failure = words;
    pthread_mutex_unlock(&r->lock);
    if (code < 0 && err)
        *err = words;
    return MIN(code, 0);
}

/* ---- from other threads ---- */

struct migrate_progress migrate_receiver_progress(struct migrate_receiver *r)
{
    pthread_mutex_lock(&r->lock);
    struct migrate_progress progress = r->progress;
    pthread_mutex_unlock(&r->lock);
    return progress;
}

bool migrate_receiver_released(const struct migrate_receiver *r)
{
    return r->intake.released;
}

void migrate_receiver_cancel(struct migrate_receiver *r)
{
    pthread_mutex_lock(&r->lock);
    __atomic_store_n(&r->cancel, true, __ATOMIC_RELEASE);
    __atomic_store_n(&r->decided, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

int migrate_receiver_decide(struct migrate_receiver *r, enum migrate_outcome outcome, uint64_t epoch,
                            struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&r->lock);
    enum migrate_phase phase = r->progress.phase;
    if (phase == MIGRATE_PHASE_LOST && outcome == MIGRATE_RUNS_THERE) {
        __atomic_store_n(&r->cancel, true, __ATOMIC_RELEASE);
    } else if (phase == MIGRATE_PHASE_LOST) {
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "part of the VM's memory is at the source alone: without it the VM can only be given up");
    } else if ((phase != MIGRATE_PHASE_READY && phase != MIGRATE_PHASE_UNKNOWN) || r->outcome != MIGRATE_UNDECIDED) {
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "there is nothing to decide about the migration");
    } else {
        r->outcome = outcome;
        r->epoch = epoch;
        __atomic_store_n(&r->decided, true, __ATOMIC_RELEASE);
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return code;
}

uint64_t migrate_receiver_lacking(struct migrate_receiver *r)
{
    if (!__atomic_load_n(&r->has_run, __ATOMIC_ACQUIRE))
        return 0;
    pthread_mutex_lock(&r->lock);
    uint64_t lacking = r->faults ? page_faults_lacking(r->faults) : 0;
    pthread_mutex_unlock(&r->lock);
    return lacking;
}
