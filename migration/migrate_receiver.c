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

enum { ANSWER_PATIENCE_MS = 1000, DRAIN_BYTES_MAX = 64 << 20 };

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

    pthread_mutex_t lock; /* guards all below, and the intake until a channel is at its pages */
    pthread_cond_t changed;
    struct migrate_progress progress;
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

void migrate_receiver_destroy(struct migrate_receiver *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < MIGRATE_CHANNELS_MAX; i++)
        channel_finish(&r->channels[i]);
    intake_finish(&r->intake);
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

static int synced(struct receiver_channel *c, struct error *err)
{
    return migrate_channel_answer(&c->channel, MIGRATE_SYNCED, c->intake.step.number, "", err);
}

/* A channel other than the first, until it has sent all. */
static int channel_serve(struct receiver_channel *c, struct error *err)
{
    while (true) {
        int event = channel_event(c, err);
        int code = event < 0 ? event : 0;
        if (event == INTAKE_OPENED)
            code = migrate_channel_answer(&c->channel, MIGRATE_ACCEPTED, MIGRATE_VERSION, "", err);
        else if (event == INTAKE_SYNC)
            code = synced(c, err);
        if (code < 0 || event == INTAKE_FINAL)
            return code;
    }
}

static void *channel_main(void *arg)
{
    struct receiver_channel *c = arg;
    struct migrate_receiver *r = c->receiver;
    struct error err = {0};
    int code = channel_serve(c, &err);
    pthread_mutex_lock(&r->lock);
    if (code == 0) {
        r->finals++;
    } else if (r->failed == 0) {
        r->failed = code;
        r->failure = err;
        __atomic_store_n(&r->cancel, true, __ATOMIC_RELEASE); /* the first channel comes and looks */
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
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

static int complete(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    phase_set(r, MIGRATE_PHASE_STOP);
    int code = finals_wait(r, err);
    if (code == 0)
        code = intake_verify(&r->intake, err);
    if (code == 0)
        code = r->options.load(r->options.arg, &r->intake.states, r->intake.paused, err);
    if (code == 0)
        code = stream_states_check_taken(&r->intake.states, err);
    if (code < 0)
        return code;
    phase_set(r, MIGRATE_PHASE_READY);
    return migrate_channel_answer(&main->channel, MIGRATE_READY, 0, "", err);
}

/* From the first connection until READY has been said. */
static int receive(struct migrate_receiver *r, struct error *err)
{
    struct receiver_channel *main = &r->channels[0];
    int code = channel_accept(r, main, 0, err);
    r->began_us = migrate_now_us();
    while (code >= 0) {
        int event = code = channel_event(main, err);
        if (event == INTAKE_CHECK) {
            code = machine_judge(r, err);
            if (code == 0) {
                intake_accept(&r->intake, &main->intake);
                code = migrate_channel_answer(&main->channel, MIGRATE_ACCEPTED, MIGRATE_VERSION, "", err);
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
    return decision_follow(r, ret_epoch, err);
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
    code = r->options.run(r->options.arg, epoch, err);
    bool never = false;
    main->channel.cancel = &never;
    main->channel.patience_ms = ANSWER_PATIENCE_MS;
    if (code == 0)
        (void)migrate_channel_answer(&main->channel, MIGRATE_RUNNING, migrate_now_us() - start_us, "", NULL);
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
    if ((phase != MIGRATE_PHASE_READY && phase != MIGRATE_PHASE_UNKNOWN) || r->outcome != MIGRATE_UNDECIDED) {
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
