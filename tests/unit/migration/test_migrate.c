/* Sender and receiver against one another over sockets and threads (pthread), with guests made of arrays; and each of
 * them against a peer that goes away, or lies, at every step. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#include "migration/migrate_receiver.h"
#include "migration/page_faults.h"
#include "migration/migrate_sender.h"
#include "migration/stream_pages.h"
#include "tests/unit/migration/array_guest.h"

#define LOW_BYTES (3ul << 20)
#define HIGH_BYTES ((2ul << 20) + 12288)

/* ---- a guest that writes between the rounds ---- */

struct live_guest {
    struct array_guest array; /* first: its regions and states */
    struct guest_ops ops;
    uint64_t dirty[2][LOW_BYTES / 4096 / 64];
    unsigned seed, writes, fetches; /* writes: pages at each fetch while it runs */
    bool rewrites;                  /* the same content again */
    bool forgets;                   /* one write is not noted */
    bool stopped, logging;
    unsigned throttle, resumed, throttle_most;
};

static struct live_guest *live_of(struct guest *g)
{
    return CONTAINER_OF(g, struct live_guest, array.guest);
}

static void live_write(struct live_guest *g)
{
    unsigned writes = g->writes * (100 - g->throttle) / 100;
    for (unsigned i = 0; i < writes; i++) {
        g->seed = g->seed * 1664525 + 1013904223;
        unsigned region = g->seed >> 8 & 1;
        uint64_t page = (g->seed >> 9) % (g->array.sizes[region] / 4096);
        uint64_t *at = (uint64_t *)(void *)(g->array.memory[region] + page * 4096);
        at[g->seed % 512] = g->rewrites ? at[g->seed % 512] : g->seed;
        if (g->seed % 7 == 0 && !g->rewrites)
            memset(at, 0, 4096);
        if (!(g->forgets && i == 0))
            g->dirty[region][page / 64] |= 1ull << (page % 64);
    }
}

static int live_dirty_start(struct guest *guest, struct error *err UNUSED)
{
    live_of(guest)->logging = true;
    return 0;
}

static int live_dirty_fetch(struct guest *guest, size_t region, uint64_t *bitmap, struct error *err UNUSED)
{
    struct live_guest *g = live_of(guest);
    size_t words = (g->array.sizes[region] / 4096 + 63) / 64;
    assert_true(g->logging);
    if (region == 0 && !g->stopped)
        live_write(g);
    g->fetches++;
    for (size_t i = 0; i < words; i++) {
        bitmap[i] |= g->dirty[region][i];
        g->dirty[region][i] = 0;
    }
    return 0;
}

static void live_dirty_stop(struct guest *guest)
{
    live_of(guest)->logging = false;
}

static void live_throttle(struct guest *guest, unsigned percent)
{
    live_of(guest)->throttle = percent;
    live_of(guest)->throttle_most = MAX(live_of(guest)->throttle_most, percent);
}

static int live_pause(struct guest *guest, struct error *err UNUSED)
{
    live_write(live_of(guest));
    live_of(guest)->stopped = true;
    return 0;
}

static int live_resume(struct guest *guest, struct error *err UNUSED)
{
    live_of(guest)->stopped = false;
    live_of(guest)->resumed++;
    return 0;
}

static void live_init(struct live_guest *g)
{
    memset(g, 0, sizeof(*g));
    array_guest_init(&g->array, LOW_BYTES, HIGH_BYTES);
    g->ops = *g->array.guest.ops;
    g->ops.dirty_start = live_dirty_start;
    g->ops.dirty_fetch = live_dirty_fetch;
    g->ops.dirty_stop = live_dirty_stop;
    g->ops.throttle = live_throttle;
    g->ops.pause = live_pause;
    g->ops.resume = live_resume;
    g->array.guest.ops = &g->ops;
    g->seed = 12345;
    g->writes = 40;
    strcpy(g->array.state, "registers");
    for (size_t at = 0; at < LOW_BYTES; at += 2 * 4096)
        memset(g->array.memory[0] + at, (int)(at >> 13) | 1, 4096);
}

/* ---- two sides ---- */

struct side {
    pthread_t thread;
    int code;
    struct error err;
    struct migrate_sender *sender;
    struct migrate_receiver *receiver;
};

static char socket_path[64];
static struct {
    struct live_guest from;
    struct array_guest to;
    int listen_fd;
    struct side source, target;
    unsigned ran, let_go, taken_back, released;
    bool release_fails, was_released; /* what the target was told */
    uint64_t epoch;
    bool paused, unfit, load_fails, run_fails, somebody_has_it;
    int fault_fd;            /* post-copy */
    bool slowly;
    bool touches;            /* the guest reads all its memory as soon as it runs, and while its registers are loaded */
    pthread_t touching;
    unsigned wrong;          /* pages that were not what they are at the source */
    unsigned stalls, goes_on;
    int sockets[64];         /* the source's ends */
    unsigned socket_count;
} world;

static int world_connect(void *arg UNUSED, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, socket_path);
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
        unsigned n = __atomic_fetch_add(&world.socket_count, 1, __ATOMIC_ACQ_REL);
        world.sockets[n % ARRAY_SIZE(world.sockets)] = fd;
        return fd;
    }
    int code = error_errno(err, -errno, "cannot connect");
    close(fd);
    return code;
}

static int world_let_go(void *arg UNUSED, struct error *err UNUSED)
{
    world.let_go++;
    return 0;
}

static int world_release(void *arg UNUSED, struct error *err)
{
    world.released++;
    assert_int_equal(world.let_go, 0);
    return world.release_fails ? error_set(err, -EIO, ERROR_INTERNAL, "the disk cannot be written") : 1;
}

static int world_take_back(void *arg UNUSED, struct error *err)
{
    __atomic_fetch_add(&world.taken_back, 1, __ATOMIC_ACQ_REL);
    if (!__atomic_load_n(&world.somebody_has_it, __ATOMIC_ACQUIRE))
        return 0;
    return error_set(err, -EBUSY, ERROR_IN_USE, "somebody has the disk");
}

static int world_fits(void *arg UNUSED, const struct machine_description *d, struct error *err)
{
    assert_string_equal(d->machine, "pc-1");
    return world.unfit ? error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "its processor lacks pink") : 0;
}

/* Each page once, in an order that is not the one they come in. */
static void *touching_main(void *arg UNUSED)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t pages = world.to.sizes[i] / 4096;
        for (uint64_t n = 0; n < pages; n++) {
            uint64_t at = (n * 331 + 7) % pages * 4096;
            if (world.slowly)
                usleep(1000);
            world.wrong += memcmp(world.to.memory[i] + at, world.from.array.memory[i] + at, 4096) != 0;
        }
    }
    return NULL;
}

static void world_stall(void *arg UNUSED, bool stalled)
{
    __atomic_fetch_add(stalled ? &world.stalls : &world.goes_on, 1, __ATOMIC_ACQ_REL);
}

static int world_load(void *arg UNUSED, struct stream_states *states, bool paused, struct error *err)
{
    world.paused = paused;
    if (world.touches) /* as a device does with its ring */
        world.wrong += memcmp(world.to.memory[0] + 8192, world.from.array.memory[0] + 8192, 64) != 0;
    if (world.load_fails)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "its registers are blunt");
    return world.to.guest.ops->state_load(&world.to.guest, states, err);
}

static int world_run(void *arg UNUSED, uint64_t epoch, struct error *err)
{
    if (world.run_fails)
        return error_set(err, -EBUSY, ERROR_IN_USE, "the disk is another's");
    world.ran++;
    world.was_released = migrate_receiver_released(world.target.receiver);
    world.epoch = epoch;
    if (world.touches)
        assert_int_equal(pthread_create(&world.touching, NULL, touching_main, NULL), 0);
    return 0;
}

static int world_setup(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)state;
    memset(&world, 0, sizeof(world));
    live_init(&world.from);
    array_guest_init(&world.to, LOW_BYTES, HIGH_BYTES);
    snprintf(socket_path, sizeof(socket_path), "/tmp/drover-migrate-%d", (int)getpid());
    unlink(socket_path);
    strcpy(address.sun_path, socket_path);
    world.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return bind(world.listen_fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
           listen(world.listen_fd, 20) < 0;
}

static int world_teardown(void **state)
{
    (void)state;
    migrate_sender_destroy(world.source.sender);
    migrate_receiver_destroy(world.target.receiver);
    if (world.fault_fd > 0)
        close(world.fault_fd);
    array_guest_finish(&world.from.array);
    array_guest_finish(&world.to);
    close(world.listen_fd);
    unlink(socket_path);
    return 0;
}

static struct migrate_sender_options sender_defaults(void)
{
    return (struct migrate_sender_options){.precopy = {.downtime_us = PRECOPY_DOWNTIME_US_DEFAULT,
                                                       .fixed_us = PRECOPY_FIXED_US_DEFAULT,
                                                       .throttle_max = PRECOPY_THROTTLE_MAX_DEFAULT,
                                                       .patience = PRECOPY_PATIENCE_DEFAULT},
                                           .channels = 1,
                                           .verify = true,
                                           .patience_ms = 20000,
                                           .stop_patience_ms = 20000,
                                           .connect = world_connect,
                                           .let_go = world_let_go,
                                           .take_back = world_take_back};
}

static void description_fill(struct machine_description *d)
{
    OBJECT_TEXT(machine_description, d, machine, "pc-1");
    OBJECT_SET(machine_description, d, vcpus, 1);
    OBJECT_SET(machine_description, d, memory_bytes, LOW_BYTES + HIGH_BYTES);
}

static void *source_main(void *arg)
{
    struct side *side = arg;
    side->code = migrate_sender_run(side->sender, &side->err);
    return NULL;
}

static void *target_main(void *arg)
{
    struct side *side = arg;
    side->code = migrate_receiver_run(side->receiver, &side->err);
    return NULL;
}

static void source_start(const struct migrate_sender_options *options)
{
    struct machine_description d = {0};
    description_fill(&d);
    world.source.sender = migrate_sender_create(&world.from.array.guest, &d, options);
    OBJECT_CLEAR(machine_description, &d);
    assert_int_equal(pthread_create(&world.source.thread, NULL, source_main, &world.source), 0);
}

static void target_start(void)
{
    struct migrate_receiver_options options = {.listen_fd = world.listen_fd,
                                               .patience_ms = 20000,
                                               .fits = world_fits,
                                               .load = world_load,
                                               .run = world_run,
                                               .stall = world_stall,
                                               .fault_fd = world.fault_fd};
    world.target.receiver = migrate_receiver_create(&world.to.guest, &options);
    assert_int_equal(pthread_create(&world.target.thread, NULL, target_main, &world.target), 0);
}

static void both_join(void)
{
    pthread_join(world.source.thread, NULL);
    pthread_join(world.target.thread, NULL);
}

static void source_phase_wait(enum migrate_phase phase)
{
    for (unsigned i = 0; i < 20000 && migrate_sender_progress(world.source.sender).phase != phase; i++)
        usleep(1000);
    assert_int_equal(migrate_sender_progress(world.source.sender).phase, phase);
}

static void target_phase_wait(enum migrate_phase phase)
{
    for (unsigned i = 0; i < 20000 && migrate_receiver_progress(world.target.receiver).phase != phase; i++)
        usleep(1000);
    assert_int_equal(migrate_receiver_progress(world.target.receiver).phase, phase);
}

static void assert_moved(void)
{
    if (world.source.code < 0 || world.target.code < 0)
        fail_msg("source: %s; target: %s", world.source.err.text, world.target.err.text);
    assert_true(array_guest_equal(&world.from.array, &world.to));
    assert_int_equal(world.ran, 1);
    assert_int_equal(world.from.resumed, 0);
    assert_true(world.from.stopped);
    assert_int_equal(migrate_sender_progress(world.source.sender).phase, MIGRATE_PHASE_DONE);
}

static void assert_stayed(void)
{
    assert_true(world.source.code < 0);
    assert_int_equal(world.ran, 0);
    assert_false(world.from.stopped);
    assert_false(world.from.logging);
    assert_int_equal(world.from.throttle, 0);
    assert_int_equal(world.taken_back, world.let_go);
}

/* ---- both ---- */

static void memory_and_state_arrive(void **state)
{
    static const unsigned channels[] = {1, 2, 3, MIGRATE_CHANNELS_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(channels); i++) {
        struct migrate_sender_options options = sender_defaults();
        options.channels = channels[i];
        options.precopy.downtime_us = options.precopy.fixed_us + 1; /* some rounds */
        options.precopy.downtime_max_us = 10000000;
        options.precopy.throttle_max = 0;
        if (i)
            world_setup(state);
        target_start();
        source_start(&options);
        both_join();
        assert_moved();
        struct migrate_progress p = migrate_sender_progress(world.source.sender);
        assert_true(p.rounds >= 2 && p.pages_data >= LOW_BYTES / 8192);
        assert_int_equal(world.let_go, 1);
        assert_int_equal(world.taken_back, 0);
        if (i + 1 < ARRAY_SIZE(channels))
            world_teardown(state);
    }
}

static void what_the_target_has_is_not_sent_again(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    world.from.rewrites = true;
    world.from.writes = 300;
    options.precopy.downtime_us = options.precopy.fixed_us + 1;
    options.precopy.downtime_max_us = 10000000;
    target_start();
    source_start(&options);
    both_join();
    assert_moved();
    struct migrate_progress p = migrate_sender_progress(world.source.sender);
    assert_int_equal(p.pages_data, LOW_BYTES / 8192); /* each once */
    assert_int_equal(p.pages_zero, 0);                /* the target begins with zeros */
    assert_true(p.pages_same > 200);
    assert_true(p.sent_bytes < LOW_BYTES / 2 + 65536);
}

static void a_write_that_nobody_noted_is_found(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    world.from.forgets = true;
    world.from.writes = 3;
    options.precopy.downtime_us = options.precopy.fixed_us + 1;
    options.precopy.downtime_max_us = 10000000;
    target_start();
    source_start(&options);
    both_join();
    assert_stayed();
    assert_non_null(strstr(world.source.err.text, "is not what it is at the source"));
    assert_true(world.target.code < 0);
}

static void a_machine_that_does_not_fit_is_refused_before_memory(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    world.unfit = true;
    target_start();
    source_start(&options);
    both_join();
    assert_stayed();
    assert_string_equal(world.source.err.text, "the target refuses: its processor lacks pink");
    assert_true(migrate_sender_progress(world.source.sender).sent_bytes < 4096);
    assert_int_equal(world.from.fetches, 0);
}

static void a_state_that_cannot_be_loaded_leaves_it_at_the_source(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    world.load_fails = true;
    options.channels = 2;
    target_start();
    source_start(&options);
    both_join();
    assert_stayed();
    assert_int_equal(world.from.resumed, 1);
    assert_string_equal(world.source.err.text, "the target refuses: its registers are blunt");
}

static void cancelled_while_memory_is_sent(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct error err;
    (void)state;
    options.plain = true;
    options.bytes_per_s_max = 20000; /* it would take more than a minute */
    options.channels = 2;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_MEMORY);
    assert_int_equal(migrate_sender_cancel(world.source.sender, &err), 0);
    both_join();
    assert_stayed();
    assert_int_equal(world.source.code, -ECANCELED);
    assert_int_equal(world.from.resumed, 0); /* it never stood still */
    assert_int_equal(migrate_sender_progress(world.source.sender).phase, MIGRATE_PHASE_CANCELLED);
    assert_true(world.target.code < 0);
    assert_int_equal(migrate_sender_cancel(world.source.sender, &err), -EINVAL);
}

static void a_guest_that_writes_too_fast_is_slowed_down(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    world.from.writes = 700;
    options.bytes_per_s_max = 20000000;
    options.precopy.downtime_us = options.precopy.fixed_us + 1; /* out of reach, however fast this host is */
    options.precopy.downtime_max_us = 60000000;
    options.precopy.throttle_max = 60;
    target_start();
    source_start(&options);
    both_join();
    assert_moved();
    assert_true(world.from.throttle_most > 0);
}

/* One batch of 1 MiB at a time and a limit: the fourth is tried compressed, and all after it are. */
static void under_a_limit_memory_is_compressed(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    for (size_t at = 0; at < LOW_BYTES; at += 4096)
        memset(world.from.array.memory[0] + at, (int)(at >> 12) | 1, 4096);
    world.from.writes = 1500;
    options.bytes_per_s_max = 2 << 20; /* half a second for a batch: compressing it takes less on the slowest machine */
    options.precopy.downtime_us = options.precopy.fixed_us + 1;
    options.precopy.downtime_max_us = 60000000;
    options.precopy.throttle_max = 0;
    target_start();
    source_start(&options);
    both_join();
    assert_moved();
    struct migrate_progress p = migrate_sender_progress(world.source.sender);
    assert_true(p.sent_bytes < p.pages_data * 4096 * 9 / 10);
}

static void the_owner_decides(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct error err;
    options.ask_owner = true;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_READY);
    assert_int_equal(migrate_sender_cancel(world.source.sender, &err), -EINVAL);
    assert_int_equal(world.ran, 0);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_THERE, 7, &err), 0);
    both_join();
    assert_moved();
    assert_int_equal(world.epoch, 7);
    world_teardown(state);
    world_setup(state);
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_READY);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), 0);
    both_join();
    assert_stayed();
    assert_int_equal(world.from.resumed, 1);
    assert_true(world.target.code < 0);
}

/* The owner says that it stays, and what was let go of cannot be had just then: he is asked again, and says the same. */
static void what_cannot_be_taken_back_at_once_is_decided_again(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct migrate_progress p;
    struct error err;
    (void)state;
    options.ask_owner = true;
    options.release = world_release;
    world.somebody_has_it = true;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_READY);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), 0);
    source_phase_wait(MIGRATE_PHASE_UNKNOWN);
    p = migrate_sender_progress(world.source.sender);
    assert_true(world.from.stopped && !p.decided && __atomic_load_n(&world.taken_back, __ATOMIC_ACQUIRE) == 1);
    assert_non_null(strstr(p.failure.text, "somebody has the disk"));
    __atomic_store_n(&world.somebody_has_it, false, __ATOMIC_RELEASE);
    usleep(50000); /* without a word it is not tried again: whose it is may have changed */
    assert_int_equal(__atomic_load_n(&world.taken_back, __ATOMIC_ACQUIRE), 1);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), 0);
    both_join();
    assert_int_equal(world.taken_back, 2);
    assert_int_equal(world.from.resumed, 1);
    assert_int_equal(world.ran, 0);
    assert_non_null(strstr(world.source.err.text, "decided that the VM stays here")); /* what it was refused for */
    world_teardown(state);

    world_setup(state); /* meanwhile it has become the target's: who decides knows */
    world.somebody_has_it = true;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_READY);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), 0);
    source_phase_wait(MIGRATE_PHASE_UNKNOWN);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_THERE, 7, &err), 0);
    both_join();
    assert_int_equal(world.source.code, 0);
    assert_int_equal(world.from.resumed, 0);
}

/* Those who will decide are asked first whether they are there; until then it runs on, round after round. */
static void it_is_not_stopped_before_somebody_permits_it(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct migrate_progress p;
    struct error err;
    options.ask_pause = true;
    target_start();
    source_start(&options);
    do {
        p = migrate_sender_progress(world.source.sender);
        assert_true(p.phase <= MIGRATE_PHASE_MEMORY);
        usleep(1000);
    } while (!p.asks_pause || p.rounds < 8);
    assert_non_null(strstr(p.why, "majority"));
    assert_int_equal(migrate_sender_permit(world.source.sender, &err), 0);
    both_join();
    assert_moved();
    assert_int_equal(migrate_sender_permit(world.source.sender, &err), -EINVAL);
    assert_false(migrate_sender_progress(world.source.sender).asks_pause);
    world_teardown(state);
    world_setup(state);
    options.precopy.total_us_max = 100000;   /* nobody answers */
    options.precopy.downtime_us = 60000000; /* however slow this machine is, it could be stopped */
    target_start();
    source_start(&options);
    both_join();
    assert_stayed();
    assert_int_equal(world.from.resumed, 0); /* it never stood still */
    assert_non_null(strstr(world.source.err.text, "majority"));
}

/* The controllers' word reaches the target first: it runs without the source's. */
static void the_target_hears_it_from_somebody_else(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct error err;
    (void)state;
    options.ask_owner = true;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_READY);
    assert_int_equal(migrate_receiver_decide(world.target.receiver, MIGRATE_RUNS_HERE, 9, &err), 0);
    pthread_join(world.target.thread, NULL);
    assert_int_equal(world.epoch, 9);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_THERE, 9, &err), 0);
    pthread_join(world.source.thread, NULL);
    assert_moved();
}

static void a_target_that_cannot_run_it_says_so_and_somebody_decides(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    struct error err;
    (void)state;
    world.run_fails = true;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_UNKNOWN);
    pthread_join(world.target.thread, NULL);
    assert_true(world.from.stopped);
    assert_non_null(strstr(migrate_sender_progress(world.source.sender).failure.text, "the disk is another's"));
    world.somebody_has_it = true;
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), 0);
    for (unsigned i = 0; i < 20000 && __atomic_load_n(&world.taken_back, __ATOMIC_ACQUIRE) == 0; i++)
        usleep(1000);
    source_phase_wait(MIGRATE_PHASE_UNKNOWN);
    assert_true(world.from.stopped); /* whoever decided was wrong */
    __atomic_store_n(&world.somebody_has_it, false, __ATOMIC_RELEASE);
    while (migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err) < 0)
        usleep(1000);
    pthread_join(world.source.thread, NULL);
    assert_true(world.source.code < 0);
    assert_int_equal(world.from.resumed, 1);
}

/* ---- a target that goes away ---- */

enum fake_end { DRIPS = -1, AT_ONCE, AFTER_OPEN, AFTER_ACCEPTED, IN_MEMORY, AFTER_SYNCED, AT_FINAL, AFTER_READY, AFTER_GO, AFTER_LIE };

static struct {
    pthread_t thread;
    enum fake_end end;
} fake;

/* Plays the target up to the step that it does not survive. */
static void *fake_target_main(void *arg UNUSED)
{
    struct migrate_channel c;
    struct stream_reader reader;
    struct stream_section section;
    struct migrate_step step;
    bool never = false, alive = fake.end != AT_ONCE;
    int fd;
    while ((fd = accept(world.listen_fd, NULL, NULL)) < 0)
        usleep(1000);
    migrate_channel_init(&c, fd, &never, 20000);
    stream_reader_init(&reader);
    while (alive && migrate_channel_section(&c, &reader, &section, NULL) == 0) {
        if (section.tag == STREAM_PAGES && fake.end == IN_MEMORY)
            break;
        if (section.tag != STREAM_MIGRATE || migrate_step_decode(&section, &step, NULL) < 0)
            continue;
        if (step.kind == MIGRATE_OPEN)
            alive = fake.end != AFTER_OPEN;
        if (step.kind == MIGRATE_CHECK) {
            migrate_channel_answer(&c, fake.end == AFTER_LIE ? MIGRATE_RUNNING : MIGRATE_ACCEPTED, 1, "", NULL);
            alive = fake.end != AFTER_ACCEPTED;
        }
        if (step.kind == MIGRATE_SYNC) {
            migrate_channel_answer(&c, MIGRATE_SYNCED, step.number, "", NULL);
            alive = fake.end != AFTER_SYNCED;
        }
        if (step.kind == MIGRATE_FINAL && fake.end == AT_FINAL)
            break;
        if (step.kind == MIGRATE_FINAL && fake.end == DRIPS) { /* never silent for long, and never done */
            struct migrate_reply reply = {.kind = MIGRATE_READY};
            struct bytes_writer bytes = {0};
            migrate_reply_encode(&reply, &bytes);
            for (size_t i = 0; i < bytes.size && send(fd, bytes.data + i, 1, MSG_NOSIGNAL) == 1; i++)
                usleep(500000);
            bytes_writer_finish(&bytes);
            break;
        }
        if (step.kind == MIGRATE_FINAL) {
            if (fake.end == AFTER_READY)
                shutdown(fd, SHUT_RD); /* GO finds nobody: closed before it can be sent */
            migrate_channel_answer(&c, MIGRATE_READY, 0, "", NULL);
            alive = fake.end != AFTER_READY;
        }
        if (step.kind == MIGRATE_GO)
            alive = false;
    }
    migrate_channel_finish(&c);
    stream_reader_finish(&reader);
    return NULL;
}

static void the_target_dies_before_go_and_it_stays(void **state)
{
    for (enum fake_end end = AT_ONCE; end <= AT_FINAL; end++) {
        struct migrate_sender_options options = sender_defaults();
        options.verify = false;
        if (end != AT_ONCE)
            world_setup(state);
        fake.end = end;
        pthread_create(&fake.thread, NULL, fake_target_main, NULL);
        source_start(&options);
        pthread_join(world.source.thread, NULL);
        pthread_join(fake.thread, NULL);
        assert_stayed();
        assert_int_equal(world.let_go, 0);
        assert_int_equal(world.from.resumed, end >= AFTER_SYNCED ? 1 : 0); /* it stood still by then */
        assert_int_equal(migrate_sender_progress(world.source.sender).phase, MIGRATE_PHASE_FAILED);
        if (end != AT_FINAL)
            world_teardown(state);
    }
}

static void taken_back_wait(unsigned times)
{
    for (unsigned i = 0; i < 20000 && __atomic_load_n(&world.taken_back, __ATOMIC_ACQUIRE) < times; i++)
        usleep(1000);
    assert_true(__atomic_load_n(&world.taken_back, __ATOMIC_ACQUIRE) >= times);
}

/* What others reach is let go of before READY; a guest that stays has it back first, and nobody is asked whose it is. */
static void what_others_reach_is_released_first(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    options.release = world_release;
    target_start();
    source_start(&options);
    both_join();
    assert_moved();
    assert_int_equal(world.released, 1);
    assert_true(world.was_released);
    assert_int_equal(world.taken_back, 0);
    world_teardown(state);

    world_setup(state); /* the target refuses, when all has been sent */
    world.load_fails = world.somebody_has_it = true;
    target_start();
    source_start(&options);
    taken_back_wait(2);
    assert_true(world.from.stopped);
    struct migrate_progress p = migrate_sender_progress(world.source.sender);
    assert_true(p.phase == MIGRATE_PHASE_STOP && !p.decided);
    __atomic_store_n(&world.somebody_has_it, false, __ATOMIC_RELEASE);
    both_join();
    assert_true(world.source.code < 0 && world.released == 1 && world.let_go == 0);
    assert_int_equal(world.from.resumed, 1);
    assert_non_null(strstr(world.source.err.text, "registers are blunt"));
    world_teardown(state);

    world_setup(state); /* it cannot be let go of: perhaps some of it was */
    world.release_fails = true;
    target_start();
    source_start(&options);
    both_join();
    assert_true(world.source.code == -EIO && world.released == 1 && world.taken_back == 1);
    assert_int_equal(world.from.resumed, 1);
    assert_int_equal(world.ran, 0);
    world_teardown(state);

    world_setup(state); /* this process ends meanwhile: it stays paused */
    world.load_fails = world.somebody_has_it = true;
    target_start();
    source_start(&options);
    taken_back_wait(1);
    migrate_sender_abandon(world.source.sender);
    both_join();
    assert_int_equal(world.source.code, -EOWNERDEAD);
    assert_int_equal(world.from.resumed, 0);
}

static void a_target_that_is_slow_and_never_silent_does_not_hold_the_guest(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    options.verify = false;
    options.stop_patience_ms = 300;
    fake.end = DRIPS;
    pthread_create(&fake.thread, NULL, fake_target_main, NULL);
    source_start(&options);
    pthread_join(world.source.thread, NULL);
    pthread_join(fake.thread, NULL);
    assert_stayed();
    assert_int_equal(world.source.code, -ETIMEDOUT);
    assert_int_equal(world.from.resumed, 1);
    assert_true(migrate_sender_progress(world.source.sender).downtime_us < 8000000); /* READY would take longer */
}

static void the_target_dies_after_go_and_nobody_knows(void **state)
{
    static const enum migrate_outcome outcomes[] = {MIGRATE_RUNS_HERE, MIGRATE_RUNS_THERE};
    for (unsigned i = 0; i < ARRAY_SIZE(outcomes); i++) {
        struct migrate_sender_options options = sender_defaults();
        struct error err;
        options.verify = false;
        if (i)
            world_setup(state);
        fake.end = AFTER_GO;
        pthread_create(&fake.thread, NULL, fake_target_main, NULL);
        source_start(&options);
        source_phase_wait(MIGRATE_PHASE_UNKNOWN);
        pthread_join(fake.thread, NULL);
        assert_true(world.from.stopped);
        assert_int_equal(world.from.resumed, 0);
        assert_int_equal(world.let_go, 1);
        assert_int_equal(migrate_sender_cancel(world.source.sender, &err), -EINVAL);
        assert_int_equal(migrate_sender_decide(world.source.sender, outcomes[i], 0, &err), 0);
        pthread_join(world.source.thread, NULL);
        assert_int_equal(world.from.resumed, outcomes[i] == MIGRATE_RUNS_HERE);
        assert_int_equal(world.source.code == 0, outcomes[i] == MIGRATE_RUNS_THERE);
        if (i == 0)
            world_teardown(state);
    }
}

static void a_target_that_lies_is_left(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    fake.end = AFTER_LIE;
    pthread_create(&fake.thread, NULL, fake_target_main, NULL);
    source_start(&options);
    pthread_join(world.source.thread, NULL);
    pthread_join(fake.thread, NULL);
    assert_stayed();
    assert_non_null(strstr(world.source.err.text, "out of order"));
}

static void abandoned_in_unknown_it_comes_back_paused(void **state)
{
    struct migrate_sender_options options = sender_defaults();
    (void)state;
    options.verify = false;
    fake.end = AFTER_GO;
    pthread_create(&fake.thread, NULL, fake_target_main, NULL);
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_UNKNOWN);
    migrate_sender_abandon(world.source.sender);
    pthread_join(world.source.thread, NULL);
    pthread_join(fake.thread, NULL);
    assert_int_equal(world.source.code, -EOWNERDEAD);
    assert_int_equal(world.from.resumed, 0);
}

/* ---- a source that goes away ---- */

/* Everything up to FINAL by hand, so that the end can be chosen. Returns the connection after READY. */
static struct migrate_channel fake_source_until_ready(struct stream_writer *out)
{
    static const bool never = false;
    static struct migrate_channel c;
    struct machine_description d = {0};
    struct migrate_reply reply;
    struct migrate_step step = {.kind = MIGRATE_OPEN, .channels = 1};
    description_fill(&d);
    migrate_channel_init(&c, world_connect(NULL, NULL), &never, 20000);
    assert_int_equal(stream_writer_begin(out, migrate_channel_write, &c, &d, NULL), 0);
    OBJECT_CLEAR(machine_description, &d);
    assert_int_equal(migrate_step_put(out, &step, NULL), 0);
    step = (struct migrate_step){.kind = MIGRATE_CHECK};
    assert_int_equal(migrate_step_put(out, &step, NULL), 0);
    assert_int_equal(migrate_channel_expect(&c, MIGRATE_ACCEPTED, &reply, NULL), 0);
    assert_int_equal(array_state_save(&world.from.array.guest, out, NULL), 0);
    step = (struct migrate_step){.kind = MIGRATE_FINAL, .number = MIGRATE_FINAL_PAUSED};
    assert_int_equal(migrate_step_put(out, &step, NULL), 0);
    assert_int_equal(migrate_channel_expect(&c, MIGRATE_READY, &reply, NULL), 0);
    return c;
}

static void the_source_dies_without_go_and_nobody_knows(void **state)
{
    static const enum migrate_outcome outcomes[] = {MIGRATE_RUNS_HERE, MIGRATE_RUNS_THERE};
    for (unsigned i = 0; i < ARRAY_SIZE(outcomes); i++) {
        struct stream_writer out;
        struct error err;
        if (i)
            world_setup(state);
        target_start();
        struct migrate_channel c = fake_source_until_ready(&out);
        assert_true(world.paused);
        migrate_channel_finish(&c);
        target_phase_wait(MIGRATE_PHASE_UNKNOWN);
        assert_int_equal(world.ran, 0);
        assert_int_equal(migrate_receiver_decide(world.target.receiver, outcomes[i], 3, &err), 0);
        pthread_join(world.target.thread, NULL);
        assert_int_equal(world.ran, outcomes[i] == MIGRATE_RUNS_HERE);
        assert_int_equal(world.target.code == 0, outcomes[i] == MIGRATE_RUNS_HERE);
        if (i == 0)
            world_teardown(state);
    }
}

static void a_source_that_gives_up_after_ready_ends_it(void **state)
{
    struct stream_writer out;
    struct migrate_step step = {.kind = MIGRATE_CANCEL, .text = "no more"};
    (void)state;
    target_start();
    struct migrate_channel c = fake_source_until_ready(&out);
    assert_int_equal(migrate_step_put(&out, &step, NULL), 0);
    pthread_join(world.target.thread, NULL);
    migrate_channel_finish(&c);
    assert_int_equal(world.ran, 0);
    assert_int_equal(world.target.code, -ECANCELED);
    assert_non_null(strstr(world.target.err.text, "no more"));
}

static void noise_instead_of_go_is_no_go(void **state)
{
    struct stream_writer out;
    struct error err;
    (void)state;
    target_start();
    struct migrate_channel c = fake_source_until_ready(&out);
    assert_int_equal(migrate_channel_write(&c, "gogogogogogogogogogogogogogogogo", 32, NULL), 0);
    target_phase_wait(MIGRATE_PHASE_UNKNOWN);
    assert_int_equal(world.ran, 0);
    assert_int_equal(migrate_receiver_decide(world.target.receiver, MIGRATE_RUNS_THERE, 0, &err), 0);
    pthread_join(world.target.thread, NULL);
    migrate_channel_finish(&c);
    assert_int_equal(world.ran, 0);
}

static void a_target_is_cancelled_while_it_waits(void **state)
{
    (void)state;
    target_start();
    migrate_receiver_cancel(world.target.receiver);
    pthread_join(world.target.thread, NULL);
    assert_int_equal(world.target.code, -ECANCELED);
}

/* ---- post-copy ---- */

static struct migrate_sender_options postcopy_options(void)
{
    struct migrate_sender_options options = sender_defaults();
    options.verify = false;
    options.plain = true;
    options.precopy.postcopy = PRECOPY_POSTCOPY_AT_ONCE;
    world.from.writes = 1000;
    world.fault_fd = page_faults_open(true, NULL);
    if (world.fault_fd < 0)
        printf("no userfaultfd here: post-copy is not tested\n");
    return options;
}

static void connections_cut(void)
{
    unsigned count = __atomic_load_n(&world.socket_count, __ATOMIC_ACQUIRE);
    for (unsigned i = count - MIN(count, 4); i < count; i++)
        shutdown(world.sockets[i], SHUT_RDWR);
}

static void it_runs_before_its_memory_is_there(void **state)
{
    static const unsigned channels[] = {1, 2, 4};
    for (unsigned i = 0; i < ARRAY_SIZE(channels); i++) {
        if (i)
            world_setup(state);
        struct migrate_sender_options options = postcopy_options();
        if (world.fault_fd < 0)
            return;
        options.channels = channels[i];
        world.touches = true;
        target_start();
        source_start(&options);
        both_join();
        assert_int_equal(world.ran, 1);
        pthread_join(world.touching, NULL);
        assert_int_equal(world.wrong, 0);
        assert_moved();
        assert_int_equal(migrate_receiver_lacking(world.target.receiver), 0);
        assert_int_equal(migrate_receiver_progress(world.target.receiver).phase, MIGRATE_PHASE_DONE);
        assert_int_equal(world.stalls, 0);
        if (i + 1 < ARRAY_SIZE(channels))
            world_teardown(state);
    }
}

static void a_target_that_cannot_do_post_copy_gets_all_before(void **state)
{
    struct migrate_sender_options options = postcopy_options();
    (void)state;
    if (world.fault_fd > 0)
        close(world.fault_fd);
    world.fault_fd = 0;
    options.precopy.downtime_max_us = 60000000;
    options.precopy.throttle_max = 0;
    options.verify = true;
    target_start();
    source_start(&options);
    both_join();
    assert_moved();
}

/* All connections are cut, again and again: the guest stands still meanwhile, and nothing is lost or comes twice. */
static void a_lost_connection_is_made_again(void **state)
{
    struct migrate_sender_options options = postcopy_options();
    (void)state;
    if (world.fault_fd < 0)
        return;
    options.bytes_per_s_max = 2 << 20;
    options.channels = 3;
    world.touches = world.slowly = true;
    target_start();
    source_start(&options);
    for (unsigned i = 0; i < 2; i++) {
        source_phase_wait(MIGRATE_PHASE_POSTCOPY);
        usleep(20000);
        connections_cut();
        target_phase_wait(MIGRATE_PHASE_LOST);
        assert_non_null(strstr(migrate_receiver_progress(world.target.receiver).failure.text, "the source is lost"));
        /* noise is sent away */
        int fd = world_connect(NULL, NULL);
        (void)!write(fd, "go on without it", 16);
        close(fd);
        target_phase_wait(MIGRATE_PHASE_POSTCOPY);
    }
    both_join();
    pthread_join(world.touching, NULL);
    assert_int_equal(world.wrong, 0);
    assert_int_equal(world.stalls, world.goes_on);
    assert_true(world.stalls >= 2);
    assert_moved();
}

static void a_source_that_is_gone_after_the_hand_over_is_told(void **state)
{
    struct migrate_sender_options options = postcopy_options();
    struct error err;
    (void)state;
    if (world.fault_fd < 0)
        return;
    options.bytes_per_s_max = 1 << 20;
    target_start();
    source_start(&options);
    source_phase_wait(MIGRATE_PHASE_POSTCOPY);
    assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_HERE, 0, &err), -EINVAL);
    migrate_sender_abandon(world.source.sender);
    pthread_join(world.source.thread, NULL);
    assert_int_equal(world.source.code, -EOWNERDEAD);
    assert_int_equal(world.from.resumed, 0);
    target_phase_wait(MIGRATE_PHASE_LOST);
    assert_true(migrate_receiver_lacking(world.target.receiver) > 0);
    assert_int_equal(migrate_receiver_decide(world.target.receiver, MIGRATE_RUNS_HERE, 0, &err), -EINVAL);
    assert_int_equal(migrate_receiver_decide(world.target.receiver, MIGRATE_RUNS_THERE, 0, &err), 0);
    pthread_join(world.target.thread, NULL);
    assert_int_equal(world.target.code, -ECANCELED);
    assert_non_null(strstr(world.target.err.text, "given up"));
    assert_true(migrate_receiver_lacking(world.target.receiver) > 0);
}

/* The connections are lost, and whoever takes new ones says nothing: a source that is given up, or ends, does not wait. */
static void a_lost_target_that_is_silent_holds_nobody(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        if (i)
            world_setup(state);
        struct migrate_sender_options options = postcopy_options();
        struct error err;
        if (world.fault_fd < 0)
            return;
        options.bytes_per_s_max = 1 << 20;
        target_start();
        source_start(&options);
        source_phase_wait(MIGRATE_PHASE_POSTCOPY);
        unsigned made = __atomic_load_n(&world.socket_count, __ATOMIC_ACQUIRE);
        migrate_receiver_cancel(world.target.receiver);
        connections_cut();
        pthread_join(world.target.thread, NULL);
        while (__atomic_load_n(&world.socket_count, __ATOMIC_ACQUIRE) == made)
            usleep(1000);
        source_phase_wait(MIGRATE_PHASE_LOST);
        uint64_t from_us = migrate_now_us();
        if (i == 0)
            assert_int_equal(migrate_sender_decide(world.source.sender, MIGRATE_RUNS_THERE, 0, &err), 0);
        else
            migrate_sender_abandon(world.source.sender);
        pthread_join(world.source.thread, NULL);
        assert_true(migrate_now_us() - from_us < 10000000); /* half of its patience */
        assert_int_equal(world.source.code, i == 0 ? 0 : -EOWNERDEAD);
        assert_int_equal(world.from.resumed, 0);
        if (i == 0)
            world_teardown(state);
    }
}

/* Until it runs everything is as in a pre-copy: here the loading fails, there the target does not say ready. */
/* A round may take longer than a permit holds: it is waited for where the last one has ended, and memory is not sent again for it. */
static void a_post_copy_waits_for_its_permit(void **state)
{
    struct migrate_sender_options options = postcopy_options();
    struct error err;
    (void)state;
    if (world.fault_fd < 0)
        return;
    options.ask_pause = true;
    target_start();
    source_start(&options);
    while (!migrate_sender_progress(world.source.sender).asks_pause)
        usleep(1000);
    usleep(200000); /* of the seconds that it waits, some rounds' time */
    assert_int_equal(migrate_sender_permit(world.source.sender, &err), 0);
    both_join();
    assert_int_equal(migrate_sender_progress(world.source.sender).rounds, 1);
    assert_true(migrate_sender_progress(world.source.sender).postcopy);
    assert_true(migrate_receiver_progress(world.target.receiver).postcopy);
    assert_moved();
}

static void before_go_a_post_copy_can_be_taken_back(void **state)
{
    struct migrate_sender_options options = postcopy_options();
    (void)state;
    if (world.fault_fd < 0)
        return;
    world.load_fails = true;
    world.touches = true;
    target_start();
    source_start(&options);
    both_join();
    assert_stayed();
    assert_int_equal(world.wrong, 0);
    assert_int_equal(world.from.resumed, 1);
    assert_string_equal(world.source.err.text, "the target refuses: its registers are blunt");
}

#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        WORLD_TEST(memory_and_state_arrive),
        WORLD_TEST(what_the_target_has_is_not_sent_again),
        WORLD_TEST(a_write_that_nobody_noted_is_found),
        WORLD_TEST(a_machine_that_does_not_fit_is_refused_before_memory),
        WORLD_TEST(a_state_that_cannot_be_loaded_leaves_it_at_the_source),
        WORLD_TEST(cancelled_while_memory_is_sent),
        WORLD_TEST(a_guest_that_writes_too_fast_is_slowed_down),
        WORLD_TEST(under_a_limit_memory_is_compressed),
        WORLD_TEST(the_owner_decides),
        WORLD_TEST(what_cannot_be_taken_back_at_once_is_decided_again),
        WORLD_TEST(it_is_not_stopped_before_somebody_permits_it),
        WORLD_TEST(the_target_hears_it_from_somebody_else),
        WORLD_TEST(a_target_that_cannot_run_it_says_so_and_somebody_decides),
        WORLD_TEST(the_target_dies_before_go_and_it_stays),
        WORLD_TEST(what_others_reach_is_released_first),
        WORLD_TEST(a_target_that_is_slow_and_never_silent_does_not_hold_the_guest),
        WORLD_TEST(the_target_dies_after_go_and_nobody_knows),
        WORLD_TEST(a_target_that_lies_is_left),
        WORLD_TEST(abandoned_in_unknown_it_comes_back_paused),
        WORLD_TEST(the_source_dies_without_go_and_nobody_knows),
        WORLD_TEST(a_source_that_gives_up_after_ready_ends_it),
        WORLD_TEST(noise_instead_of_go_is_no_go),
        WORLD_TEST(a_target_is_cancelled_while_it_waits),
        WORLD_TEST(it_runs_before_its_memory_is_there),
        WORLD_TEST(a_target_that_cannot_do_post_copy_gets_all_before),
        WORLD_TEST(a_lost_connection_is_made_again),
        WORLD_TEST(a_source_that_is_gone_after_the_hand_over_is_told),
        WORLD_TEST(a_lost_target_that_is_silent_holds_nobody),
        WORLD_TEST(before_go_a_post_copy_can_be_taken_back),
        WORLD_TEST(a_post_copy_waits_for_its_permit),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
