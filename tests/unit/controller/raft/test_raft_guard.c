/* Guards J, K, T and U on a real raft_uv: a cut of the log that comes while a snapshot is being written; writes that wait for
 * room; a cut that fails; a snapshot of what waits.
 * THREADED (libuv's pool). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "common/file.h"
#include "controller/raft/raft_dir.h"
#include "controller/raft/raft_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <raft/uv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <uv.h>

enum { WAIT_MS = 300000, ENTRY_BYTES = 64, ENTRIES_MAX = 8 };

/* --- The gate: raft_uv gives a snapshot its name by linkat, in a thread of the pool ------------------------------ */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed, reached;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* Stands in for libc's, for the whole test program. */
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    pthread_mutex_lock(&gate.lock);
    gate.reached = true;
    while (gate.closed)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
    return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}

static void gate_set(bool closed)
{
    pthread_mutex_lock(&gate.lock);
    gate.closed = closed;
    gate.reached = false;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static bool gate_is_reached(void)
{
    bool reached;

    pthread_mutex_lock(&gate.lock);
    reached = gate.reached;
    pthread_mutex_unlock(&gate.lock);
    return reached;
}

/* --- One raft_io without a server on top ------------------------------------------------------------------------ */

struct log {
    uv_loop_t loop;
    struct raft_uv_transport transport;
    struct raft_guard guard;
    struct raft raft; /* only for its state: not a leader */
    char dir[64];
    unsigned written; /* appends answered */
    int status;       /* of the last one */
    bool taken, closed;
    bool may_break, is_broken;
};

struct write {
    struct raft_io_append req;
    struct log *log;
    struct raft_entry entries[ENTRIES_MAX];
    uint8_t data[ENTRIES_MAX][ENTRY_BYTES];
};

static int transport_init(struct raft_uv_transport *transport UNUSED, raft_id id UNUSED, const char *address UNUSED)
{
    return 0;
}

static int transport_listen(struct raft_uv_transport *transport UNUSED, raft_uv_accept_cb cb UNUSED)
{
    return 0;
}

static void transport_close(struct raft_uv_transport *transport, raft_uv_transport_close_cb cb)
{
    if (cb != NULL)
        cb(transport);
}

static void broken(struct raft_guard *guard, const char *what, int raft_code)
{
    struct log *log = CONTAINER_OF(guard, struct log, guard);

    if (!log->may_break)
        fail_msg("cannot %s: %d %s", what, raft_code, guard->io.errmsg);
    log->is_broken = true;
}

static void tick_cb(struct raft_io *io UNUSED)
{
}

static void recv_cb(struct raft_io *io UNUSED, struct raft_message *message UNUSED)
{
}

static void log_wait(struct log *log, const bool *done)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    while (!*done) {
        uv_run(&log->loop, UV_RUN_NOWAIT);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("not within %d ms", WAIT_MS);
    }
}

/* Opens the directory and reads what is there; the answer of load, entries in @ret_entries. */
static int log_open(struct log *log, raft_index *ret_start, struct raft_entry **ret_entries, size_t *ret_n)
{
    struct raft_io *io = &log->guard.io;
    struct raft_snapshot *snapshot = NULL;
    raft_term term;
    raft_id vote;
    int rv;

    log->taken = log->closed = false;
    assert_int_equal(uv_loop_init(&log->loop), 0);
    log->transport = (struct raft_uv_transport){
        .version = 1, .init = transport_init, .listen = transport_listen, .close = transport_close};
    memset(&log->guard, 0, sizeof(log->guard));
    assert_int_equal(raft_uv_init(io, &log->loop, log->dir, &log->transport), 0);
    raft_uv_set_auto_recovery(io, false);
    raft_guard_wrap(&log->guard, broken, NULL);
    io->data = &log->raft;
    io->version = 0; /* raft_uv calls into a server only above that */
    assert_int_equal(io->init(io, 1, "x"), 0);
    rv = io->load(io, &term, &vote, &snapshot, ret_start, ret_entries, ret_n);
    if (rv != 0)
        print_message("load: %s\n", io->errmsg);
    if (snapshot != NULL) {
        raft_configuration_close(&snapshot->configuration);
        raft_free(snapshot->bufs[0].base);
        raft_free(snapshot->bufs);
        raft_free(snapshot);
    }
    return rv;
}

static void log_start(struct log *log)
{
    struct raft_io *io = &log->guard.io;

    assert_int_equal(io->start(io, 10, tick_cb, recv_cb), 0);
}

static void closed_cb(struct raft_io *io)
{
    CONTAINER_OF(io, struct log, guard.io)->closed = true;
}

static void log_close(struct log *log)
{
    log->guard.io.close(&log->guard.io, closed_cb);
    log_wait(log, &log->closed);
    raft_uv_close(&log->guard.io);
    while (uv_run(&log->loop, UV_RUN_NOWAIT) != 0)
        ;
    assert_int_equal(uv_loop_close(&log->loop), 0);
}

static void written_cb(struct raft_io_append *req, int status)
{
    struct write *write = CONTAINER_OF(req, struct write, req);

    write->log->written++;
    write->log->status = status;
    free(write);
}

/* As libraft writes: a cut, which mostly cuts nothing, then the entries. */
static void log_write(struct log *log, raft_index index, unsigned n, raft_term term)
{
    struct raft_io *io = &log->guard.io;
    struct write *write = NEW(struct write);

    assert_true(n <= ENTRIES_MAX);
    write->log = log;
    for (unsigned i = 0; i < n; i++) {
        memset(write->data[i], (int)(index + i), ENTRY_BYTES);
        write->entries[i] = (struct raft_entry){.term = term, .type = RAFT_COMMAND, .buf = {write->data[i], ENTRY_BYTES}};
    }
    assert_int_equal(io->truncate(io, index), 0);
    assert_int_equal(io->append(io, &write->req, write->entries, n, written_cb), 0);
}

static void log_wait_written(struct log *log, unsigned wanted)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    while (log->written < wanted) {
        uv_run(&log->loop, UV_RUN_NOWAIT);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("%u of %u writes within %d ms", log->written, wanted, WAIT_MS);
    }
    assert_int_equal(log->status, 0);
}

static void taken_cb(struct raft_io_snapshot_put *req, int status)
{
    struct log *log = req->data;

    assert_int_equal(status, 0);
    log->taken = true;
}

struct take {
    struct raft_io_snapshot_put put;
    struct raft_snapshot snapshot;
    struct raft_buffer buf;
    char state[8];
};

/* Begins a snapshot at @index that stops before its file has a name. */
static void log_take(struct log *log, struct take *take, raft_index index)
{
    struct raft_io *io = &log->guard.io;
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    memset(take, 0, sizeof(*take));
    take->buf = (struct raft_buffer){take->state, sizeof(take->state)};
    take->snapshot = (struct raft_snapshot){.index = index, .term = 1, .configuration_index = 1, .bufs = &take->buf, .n_bufs = 1};
    raft_configuration_init(&take->snapshot.configuration);
    assert_int_equal(raft_configuration_add(&take->snapshot.configuration, 1, "x", RAFT_VOTER), 0);
    take->put.data = log;
    gate_set(true);
    assert_int_equal(io->snapshot_put(io, 2, &take->put, &take->snapshot, taken_cb), 0);
    while (!gate_is_reached()) {
        uv_run(&log->loop, UV_RUN_NOWAIT);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("no snapshot within %d ms", WAIT_MS);
    }
}

static void log_take_end(struct log *log, struct take *take)
{
    gate_set(false);
    log_wait(log, &log->taken);
    raft_configuration_close(&take->snapshot.configuration);
}

static void entries_free(struct raft_entry *entries, size_t n)
{
    void *batch = NULL;

    for (size_t i = 0; i < n; i++) {
        if (entries[i].batch != batch)
            raft_free(entries[i].batch);
        batch = entries[i].batch;
    }
    raft_free(entries);
}

static int setup(void **state)
{
    struct log *log = NEW(struct log);
    struct raft_entry *entries = NULL;
    raft_index start;
    size_t n = 0;

    snprintf(log->dir, sizeof(log->dir), "build/test_raft_guard.XXXXXX");
    if (mkdtemp(log->dir) == NULL)
        return -1;
    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(n, 0);
    log_start(log);
    *state = log;
    return 0;
}

static int teardown(void **state)
{
    struct log *log = *state;
    char *command = xasprintf("rm -rf %s", log->dir);
    int rv = system(command);

    gate_set(false); /* a test that failed may have left it closed, and exit waits for the pool */

    free(command);
    free(log);
    return rv;
}

/* Entries 1 to 6 in one file, 7 and 8 in the next; a snapshot is being written; 7 and 8 are replaced by others. */
static void test_a_cut_during_a_snapshot_is_not_forgotten(void **state)
{
    struct log *log = *state;
    struct raft_entry *entries = NULL;
    struct take take;
    raft_index start;
    size_t n = 0;

    log_write(log, 1, 6, 1);
    log_wait_written(log, 1);
    log_take(log, &take, 5);
    log_write(log, 7, 2, 1);
    log_wait_written(log, 2);
    log_write(log, 7, 1, 2);
    log_write(log, 8, 3, 2);
    assert_int_equal(log->guard.cuts_held, 1);
    log_take_end(log, &take);
    log_wait_written(log, 4);
    log_write(log, 11, 1, 2);
    log_wait_written(log, 5);
    log_close(log);

    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(start + n, 12);
    for (size_t i = 0; i < n; i++) {
        raft_index index = start + i;

        assert_int_equal(entries[i].term, index < 7 ? 1 : 2);
        assert_int_equal(*(uint8_t *)entries[i].buf.base, index);
    }
    entries_free(entries, n);
    log_close(log);
}

/* What is held back when the server ends is answered, and is not on the disk. */
static void test_what_is_held_is_answered_at_the_end(void **state)
{
    struct log *log = *state;
    struct raft_entry *entries = NULL;
    struct take take;
    raft_index start;
    size_t n = 0;

    log_write(log, 1, 6, 1);
    log_wait_written(log, 1);
    log_take(log, &take, 5);
    log_write(log, 6, 2, 2);
    log->guard.io.close(&log->guard.io, closed_cb);
    assert_int_equal(log->written, 2);
    assert_int_equal(log->status, RAFT_CANCELED);
    gate_set(false);
    log_wait(log, &log->closed);
    raft_configuration_close(&take.snapshot.configuration);
    raft_uv_close(&log->guard.io);
    while (uv_run(&log->loop, UV_RUN_NOWAIT) != 0)
        ;
    assert_int_equal(uv_loop_close(&log->loop), 0);

    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(start + n, 7);
    entries_free(entries, n);
    log_close(log);
}

/* --- Guard K ---------------------------------------------------------------------------------------------------- */

/* libraft hears of no room, and nothing is handed over, while a snapshot waits on a disk that is short of it. */
static void test_writes_wait_for_a_snapshot_on_a_short_disk(void **state)
{
    struct log *log = *state;
    struct take take;

    log->guard.room_guarded = true;
    log_write(log, 1, 6, 1);
    log_wait_written(log, 1);
    log->guard.disk_short = true;
    log_write(log, 7, 1, 1); /* no snapshot waits: the log goes on in what is prepared */
    log_wait_written(log, 2);
    log_take(log, &take, 5);
    log_write(log, 8, 1, 1);
    assert_int_equal(log->guard.writes_held, 1);
    for (int i = 0; i < 20; i++) {
        uv_run(&log->loop, UV_RUN_NOWAIT);
        raft_guard_turn(&log->guard);
        assert_int_equal(log->guard.io.capacity, RAFT_CAPACITY_KIB_NONE);
    }
    assert_int_equal(log->written, 2);
    log_take_end(log, &take);
    log_wait_written(log, 3);
    uv_run(&log->loop, UV_RUN_NOWAIT);
    raft_guard_turn(&log->guard);
    assert_true(log->guard.io.capacity >= RAFT_CAPACITY_KIB_MIN);
    log_close(log);
}

struct large_write {
    struct raft_io_append req;
    struct log *log;
    struct raft_entry entry;
};

enum { LARGE_BYTES = 1 << 20, LARGE_WRITES = 40 };

static void large_written_cb(struct raft_io_append *req, int status)
{
    struct large_write *write = CONTAINER_OF(req, struct large_write, req);

    assert_int_equal(status, 0);
    write->log->written++;
}

/* More than is prepared, at once: the rest is handed over as files get ready, in order, and all of it is there in the end. */
static void test_writes_beyond_what_is_prepared_are_held(void **state)
{
    struct log *log = *state;
    struct raft_io *io = &log->guard.io;
    struct large_write *writes = xcalloc(LARGE_WRITES, sizeof(*writes));
    struct raft_entry *entries = NULL;
    uint8_t *data = xcalloc(LARGE_WRITES, LARGE_BYTES);
    raft_index start;
    size_t n = 0;

    log->guard.room_guarded = true;
    uv_run(&log->loop, UV_RUN_NOWAIT); /* raft_uv tells its capacity */
    for (unsigned i = 0; i < LARGE_WRITES; i++) {
        data[(size_t)i * LARGE_BYTES] = (uint8_t)(i + 1);
        writes[i].log = log;
        writes[i].entry = (struct raft_entry){
            .term = 1, .type = RAFT_COMMAND, .buf = {data + (size_t)i * LARGE_BYTES, LARGE_BYTES}};
        assert_int_equal(io->truncate(io, i + 1), 0);
        assert_int_equal(io->append(io, &writes[i].req, &writes[i].entry, 1, large_written_cb), 0);
    }
    assert_true(log->guard.writes_held >= LARGE_WRITES - 16);
    assert_true(log->guard.writes_held < LARGE_WRITES);
    log_wait_written(log, LARGE_WRITES);
    log_close(log);
    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(start, 1);
    assert_int_equal(n, LARGE_WRITES);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(*(uint8_t *)entries[i].buf.base, i + 1);
    entries_free(entries, n);
    log_close(log);
    free(writes);
    free(data);
}

/* --- Guard T ---------------------------------------------------------------------------------------------------- */

static void log_expect(struct log *log, raft_index last, raft_index cut)
{
    struct raft_entry *entries = NULL;
    raft_index start;
    size_t n = 0;

    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(start, 1);
    assert_int_equal(n, last);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(entries[i].term, i + 1 < cut ? 1 : 2);
        assert_int_equal(*(uint8_t *)entries[i].buf.base, i + 1);
    }
    entries_free(entries, n);
}

/* A crash in the middle of a cut at 4 has left a file, and the log is to be cut there again. */
static void test_a_cut_that_fails_is_noticed(void **state)
{
    struct log *log = *state;
    char *left = xasprintf("%s/0000000000000001-0000000000000003", log->dir);

    log_write(log, 1, 6, 1);
    log_wait_written(log, 1);
    assert_int_equal(file_write_atomic(left, "left", 4, 0600, NULL), 0);
    log->guard.dir = log->dir;
    log->guard.cut_ms_max = 100;
    log->may_break = true;
    log_write(log, 4, 2, 2);
    log_wait(log, &log->is_broken);
    assert_int_equal(log->written, 1);
    assert_int_equal(log->guard.writes_held, 1);
    log_close(log);
    assert_int_equal(log->status, RAFT_CANCELED);

    assert_int_equal(raft_dir_clean(log->dir, NULL), 0);
    assert_int_equal(access(left, F_OK), -1);
    log_expect(log, 6, 7); /* as if nobody had asked for it */
    log_start(log);
    log->guard.dir = log->dir;
    log->may_break = false;
    log_write(log, 4, 2, 2);
    log_wait_written(log, 3);
    log_close(log);
    log_expect(log, 5, 4);
    log_close(log);
    free(left);
}

static void test_a_cut_waits_for_room(void **state)
{
    struct log *log = *state;

    log_write(log, 1, 6, 1);
    log_wait_written(log, 1);
    log->guard.dir = log->dir;
    log->guard.cut_room_bytes = UINT64_MAX;
    log_write(log, 4, 2, 2);
    log_write(log, 5, 3, 2);
    for (int i = 0; i < 20; i++) {
        assert_true(raft_guard_waits_for_room(&log->guard));
        assert_int_equal(log->guard.cutting, 0);
        uv_run(&log->loop, UV_RUN_NOWAIT);
        raft_guard_turn(&log->guard);
    }
    assert_int_equal(log->written, 1);
    log->guard.cut_room_bytes = 0;
    raft_guard_turn(&log->guard);
    assert_int_equal(log->guard.cutting, 4);
    assert_false(raft_guard_waits_for_room(&log->guard));
    log_wait_written(log, 3);
    log_close(log);
    log_expect(log, 7, 4);
    log_close(log);
}

/* --- Guard U ---------------------------------------------------------------------------------------------------- */

/* What a crash now would leave, opened; the copy is removed with the directory. */
static void log_open_copy(const struct log *log, struct log *copy, raft_index *ret_start, struct raft_entry **ret_entries,
                          size_t *ret_n)
{
    char *command;

    memset(copy, 0, sizeof(*copy));
    snprintf(copy->dir, sizeof(copy->dir), "%.40s.crash", log->dir);
    command = xasprintf("cp -a %s %s", log->dir, copy->dir);
    assert_int_equal(system(command), 0);
    free(command);
    assert_int_equal(log_open(copy, ret_start, ret_entries, ret_n), 0);
}

static void log_close_copy(struct log *copy)
{
    char *command = xasprintf("rm -rf %s", copy->dir);

    log_close(copy);
    assert_int_equal(system(command), 0);
    free(command);
}

/* Entries 1 to 3 are written, 4 to 6 and 7 to 9 wait for room; all are committed by others, and a snapshot at @index is
 * taken. Then there is room. */
static void take_ahead(struct log *log, raft_index index, unsigned done)
{
    struct raft_entry *entries = NULL;
    struct log copy;
    struct take take;
    raft_index start;
    size_t n = 0;

    log_write(log, 1, 3, 1);
    log_wait_written(log, 1);
    log->guard.room_guarded = true;
    log->guard.io.capacity = RAFT_CAPACITY_KIB_NONE;
    log->guard.uv_capacity = 0;
    log_write(log, 4, 3, 1);
    log_write(log, 7, 3, 1);
    assert_int_equal(log->guard.writes_held, 2);
    log_take(log, &take, index);
    log_write(log, 10, 1, 1);
    raft_guard_turn(&log->guard);
    assert_int_equal(log->written, 1); /* however much room there is now */
    log_take_end(log, &take);
    assert_true(log->written >= 1 + done);
    log_wait_written(log, 4);
    log_open_copy(log, &copy, &start, &entries, &n);
    assert_int_equal(start, index + 1);
    assert_int_equal(start + n, 11);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(*(uint8_t *)entries[i].buf.base, start + i);
    entries_free(entries, n);
    log_close_copy(&copy);
    log_close(log);
}

static void test_a_snapshot_ahead_of_the_log(void **state)
{
    take_ahead(*state, 9, 2);
}

static void test_a_snapshot_in_the_middle_of_a_write(void **state)
{
    take_ahead(*state, 5, 0);
}

static void test_a_snapshot_between_writes(void **state)
{
    take_ahead(*state, 6, 1);
}

/* A crash when a snapshot is on the disk and the log before it is not removed yet. */
static void test_a_crash_behind_an_installed_snapshot(void **state)
{
    struct log *log = *state;
    struct raft_entry *entries = NULL;
    struct raft_io_snapshot_put put = {.data = log};
    uint8_t bytes[8] = {0};
    struct raft_buffer buf = {bytes, sizeof(bytes)};
    struct raft_snapshot snapshot = {.index = 20, .term = 2, .configuration_index = 1, .bufs = &buf, .n_bufs = 1};
    CLEANUP_FREE char *keep = xasprintf("cp -a %s/0* %s.kept", log->dir, log->dir);
    CLEANUP_FREE char *back = xasprintf("mv %s.kept %s/0000000000000001-0000000000000003 && head -c 8388608 /dev/zero >%s/open-9",
                                        log->dir, log->dir, log->dir);
    raft_index start;
    size_t n = 0;

    log_write(log, 1, 3, 1);
    log_wait_written(log, 1);
    log_close(log);
    assert_int_equal(system(keep), 0);
    log_expect(log, 3, 4);
    log_start(log);
    raft_configuration_init(&snapshot.configuration);
    assert_int_equal(raft_configuration_add(&snapshot.configuration, 1, "x", RAFT_VOTER), 0);
    assert_int_equal(log->guard.io.snapshot_put(&log->guard.io, 0, &put, &snapshot, taken_cb), 0);
    log_wait(log, &log->taken);
    raft_configuration_close(&snapshot.configuration);
    log_close(log);
    assert_int_equal(system(back), 0);
    assert_int_equal(raft_dir_clean(log->dir, NULL), 0);
    assert_int_equal(log_open(log, &start, &entries, &n), 0);
    assert_int_equal(start, 21);
    assert_int_equal(n, 0);
    entries_free(entries, n);
    log_close(log);
}

/* --- A drill's slow disk ---------------------------------------------------------------------------------------- */

static uint64_t clock_us;

static uint64_t clock_now_us(void)
{
    return clock_us;
}

static void wait_late(struct log *log)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    while (list_empty(&log->guard.late)) {
        uv_run(&log->loop, UV_RUN_NOWAIT);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("no write is done within %d ms", WAIT_MS);
    }
}

/* Told so much later, one after another, until the time is over; what was cut meanwhile is told as cut. */
static void test_a_slow_disk_is_one_for_a_while(void **state)
{
    struct log *log = *state;

    clock_us = 1000000;
    log->guard.now_us = clock_now_us;
    raft_guard_slow(&log->guard, 500, 10);
    log_write(log, 1, 2, 1);
    wait_late(log);
    clock_us += 499999;
    raft_guard_turn(&log->guard);
    assert_int_equal(log->written, 0);
    log_write(log, 3, 2, 1);
    while (log->guard.in_flight > 0)
        uv_run(&log->loop, UV_RUN_NOWAIT);
    clock_us += 1;
    raft_guard_turn(&log->guard);
    assert_int_equal(log->written, 1);
    assert_int_equal(log->status, 0);
    assert_int_equal(log->guard.write_us_max, 500000);
    log_write(log, 3, 1, 2); /* other entries in the place of those that are late */
    while (log->guard.in_flight > 0)
        uv_run(&log->loop, UV_RUN_NOWAIT);
    clock_us += 499999;
    raft_guard_turn(&log->guard);
    assert_int_equal(log->written, 2);
    assert_int_equal(log->status, RAFT_CANCELED);
    clock_us += 1;
    raft_guard_turn(&log->guard);
    assert_int_equal(log->written, 3);
    assert_int_equal(log->status, 0);
    clock_us += 10000000;
    log_write(log, 4, 1, 2);
    log_wait_written(log, 4);
    assert_true(list_empty(&log->guard.late));
    log_close(log);
    log_expect(log, 4, 3);
    log_close(log);
}

/* None is lost, and none told after the end. */
static void test_what_is_late_is_told_at_the_end(void **state)
{
    struct log *log = *state;

    clock_us = 1000000;
    log->guard.now_us = clock_now_us;
    raft_guard_slow(&log->guard, 2000, 60);
    for (unsigned i = 1; i <= 3; i++) {
        log_write(log, i, 1, 1);
        while (log->guard.in_flight > 0)
            uv_run(&log->loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(log->written, 0);
    log_close(log);
    assert_int_equal(log->written, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_slow_disk_is_one_for_a_while, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_late_is_told_at_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_cut_during_a_snapshot_is_not_forgotten, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_held_is_answered_at_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writes_wait_for_a_snapshot_on_a_short_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writes_beyond_what_is_prepared_are_held, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_cut_that_fails_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_cut_waits_for_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_snapshot_ahead_of_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_snapshot_in_the_middle_of_a_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_snapshot_between_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_crash_behind_an_installed_snapshot, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
