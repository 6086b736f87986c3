/* The guards that change what libraft is told (raft_guard.h, L to O and V), one at a time, on a raft_io that only takes notes.
 * Whether libraft is right with them, and wrong without, is for the simulator to say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "controller/raft/raft_guard.h"

#include <stdio.h>
#include <string.h>

struct bed {
    struct raft_guard guard;
    struct raft raft;
    char story[512]; /* what libraft and the disk are told */
    struct raft_io_append *writes[4];
    unsigned write_count;
    raft_time now_ms;
    raft_io_tick_cb tick; /* as raft_uv calls them */
    raft_io_recv_cb recv;
    struct raft_configuration *loaded; /* the log's first entry */
};

static struct bed *bed_of(struct raft_io *io)
{
    return CONTAINER_OF(CONTAINER_OF(io, struct raft_guard, io), struct bed, guard);
}

static void tell(struct bed *bed, const char *format, ...) PRINTF_LIKE(2, 3);
static void tell(struct bed *bed, const char *format, ...)
{
    size_t at = strlen(bed->story);
    va_list args;

    va_start(args, format);
    vsnprintf(bed->story + at, sizeof(bed->story) - at, format, args);
    va_end(args);
}

/* --- What stands for libraft ------------------------------------------------------------------------------------ */

static void libraft_tick(struct raft_io *io)
{
    tell(bed_of(io), "tick ");
}

/* As libraft, it owns entries and their batch, and notes an uncommitted configuration. */
static void libraft_recv(struct raft_io *io, struct raft_message *message)
{
    struct raft_append_entries *append = &message->append_entries;
    struct bed *bed = bed_of(io);

    if (message->type != RAFT_APPEND_ENTRIES) {
        tell(bed, "message %d ", message->type);
        return;
    }
    tell(bed, "%llu^%llu", append->prev_log_index, append->prev_log_term);
    for (unsigned i = 0; i < append->n_entries; i++)
        tell(bed, "%c%.*s", append->entries[i].type == RAFT_CHANGE ? '!' : '+', (int)append->entries[i].buf.len,
             (char *)append->entries[i].buf.base);
    tell(bed, "(%llu) ", append->leader_commit);
    if (append->leader_commit >= bed->raft.configuration_uncommitted_index)
        bed->raft.configuration_uncommitted_index = 0;
    for (unsigned i = 0; i < append->n_entries; i++)
        if (append->entries[i].type == RAFT_CHANGE)
            bed->raft.configuration_uncommitted_index = append->prev_log_index + 1; /* libraft's fault */
    if (append->n_entries > 0) {
        raft_free(append->entries[0].batch);
        raft_free(append->entries);
    }
}

static void libraft_written(struct raft_io_append *req, int status)
{
    tell(req->data, "%s ", status == 0 ? "written" : status == RAFT_CANCELED ? "cancelled" : "failed");
}

/* --- What stands for raft_uv ------------------------------------------------------------------------------------ */

static int disk_start(struct raft_io *io, unsigned msecs UNUSED, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    bed_of(io)->tick = tick;
    bed_of(io)->recv = recv;
    return 0;
}

static int disk_load(struct raft_io *io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
                     raft_index *start_index, struct raft_entry *entries[], size_t *n)
{
    struct bed *bed = bed_of(io);

    *term = 7;
    *voted_for = 3;
    *snapshot = NULL;
    *start_index = 1;
    *n = 2;
    *entries = raft_calloc(2, sizeof(**entries));
    (*entries)[0].type = RAFT_CHANGE;
    assert_int_equal(raft_configuration_encode(bed->loaded, &(*entries)[0].buf), 0);
    (*entries)[1].type = RAFT_COMMAND;
    return 0;
}

static int disk_set_term(struct raft_io *io, raft_term term)
{
    tell(bed_of(io), "term %llu ", term);
    return 0;
}

static int disk_set_vote(struct raft_io *io, raft_id id)
{
    tell(bed_of(io), "vote %llu ", id);
    return 0;
}

static int disk_truncate(struct raft_io *io UNUSED, raft_index index UNUSED)
{
    return 0;
}

static int disk_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[] UNUSED,
                       unsigned n UNUSED, raft_io_append_cb cb)
{
    struct bed *bed = bed_of(io);

    req->cb = cb;
    bed->writes[bed->write_count++] = req;
    return 0;
}

static raft_time disk_time(struct raft_io *io)
{
    return bed_of(io)->now_ms;
}

static void broken(struct raft_guard *guard UNUSED, const char *what, int raft_code)
{
    fail_msg("cannot %s: %d", what, raft_code);
}

static void bed_init(struct bed *bed)
{
    memset(bed, 0, sizeof(*bed));
    bed->raft.id = 1;
    bed->raft.state = RAFT_FOLLOWER;
    bed->raft.current_term = 7;
    bed->guard.io = (struct raft_io){.data = &bed->raft,
                                     .load = disk_load,
                                     .start = disk_start,
                                     .set_term = disk_set_term,
                                     .set_vote = disk_set_vote,
                                     .truncate = disk_truncate,
                                     .append = disk_append,
                                     .time = disk_time};
    raft_guard_wrap(&bed->guard, broken, NULL);
    assert_int_equal(bed->guard.io.start(&bed->guard.io, 50, libraft_tick, libraft_recv), 0);
}

/* --- L ---------------------------------------------------------------------------------------------------------- */

/* Entries after 10^4, one for each letter; an upper-case one is a configuration. */
static void receive(struct bed *bed, raft_index index, const char *letters)
{
    struct raft_message message = {.type = RAFT_APPEND_ENTRIES, .server_id = 2, .server_address = "b:1"};
    struct raft_append_entries *append = &message.append_entries;
    char *batch = raft_malloc(strlen(letters));

    *append = (struct raft_append_entries){
        .term = 7, .prev_log_index = index, .prev_log_term = 4, .leader_commit = 2, .n_entries = (unsigned)strlen(letters)};
    append->entries = raft_calloc(append->n_entries, sizeof(*append->entries));
    for (unsigned i = 0; i < append->n_entries; i++) {
        batch[i] = letters[i];
        append->entries[i] = (struct raft_entry){
            5 + i, letters[i] < 'a' ? RAFT_CHANGE : RAFT_COMMAND, {&batch[i], 1}, batch};
    }
    bed->recv(&bed->guard.io, &message);
}

static void test_configuration_heads_its_batch(void **state UNUSED)
{
    struct bed bed;

    bed_init(&bed);
    receive(&bed, 10, "abc");
    receive(&bed, 10, "Abc");
    assert_string_equal(bed.story, "10^4+a+b+c(2) 10^4!A+b+c(2) ");
    assert_true(bed.raft.configuration_uncommitted_index == 11);

    bed_init(&bed);
    receive(&bed, 10, "abCde");
    assert_string_equal(bed.story, "10^4+a+b(2) 12^6!C+d+e(2) ");
    assert_true(bed.raft.configuration_uncommitted_index == 13);
}

static void test_older_configuration_is_committed_first(void **state UNUSED)
{
    struct bed bed;

    bed_init(&bed);
    receive(&bed, 10, "AbCd");
    assert_string_equal(bed.story, "10^4!A+b(2) 12^6(11) 12^6!C+d(2) ");
    assert_true(bed.raft.configuration_uncommitted_index == 13);

    /* One that is at its place or behind it is about to be cut, or the same: it says nothing. */
    bed.story[0] = '\0';
    receive(&bed, 12, "C");
    receive(&bed, 11, "B");
    assert_string_equal(bed.story, "12^4!C(2) 11^4!B(2) ");
}

/* --- M ---------------------------------------------------------------------------------------------------------- */

static void append(struct bed *bed, struct raft_io_append *req, raft_index index, unsigned n)
{
    struct raft_entry entries[8] = {0};

    req->data = bed;
    assert_int_equal(bed->guard.io.truncate(&bed->guard.io, index), 0);
    assert_int_equal(bed->guard.io.append(&bed->guard.io, req, entries, n, libraft_written), 0);
}

static void write_ends(struct bed *bed, unsigned at, int status)
{
    bed->writes[at]->cb(bed->writes[at], status);
}

static void test_cut_write_is_cancelled(void **state UNUSED)
{
    struct raft_io_append reqs[4];
    struct bed bed;

    bed_init(&bed);
    bed.guard.next_index = 10;
    append(&bed, &reqs[0], 10, 2); /* 10 11 */
    append(&bed, &reqs[1], 12, 3); /* 12 13 14 */
    append(&bed, &reqs[2], 14, 1);
    append(&bed, &reqs[3], 15, 1);
    write_ends(&bed, 0, 0);
    write_ends(&bed, 1, 0);
    write_ends(&bed, 2, 0);
    write_ends(&bed, 3, RAFT_IOERR);
    assert_string_equal(bed.story, "written cancelled written failed ");
    assert_true(list_empty(&bed.guard.appends));
}

/* --- N ---------------------------------------------------------------------------------------------------------- */

static void test_compacted_entries_are_not_new(void **state UNUSED)
{
    struct bed bed;

    bed_init(&bed);
    bed.raft.trail.offset = 20;
    bed.raft.trail.snapshot.index = 24;
    bed.raft.trail.snapshot.term = 6;
    receive(&bed, 0, "abc");
    receive(&bed, 19, "abc");
    receive(&bed, 20, "abc");
    assert_string_equal(bed.story, "24^6(2) 24^6(2) 20^4+a+b+c(2) ");
}

/* --- O ---------------------------------------------------------------------------------------------------------- */

static struct raft_configuration configuration_of(int first_role, int second_role)
{
    struct raft_configuration configuration;

    raft_configuration_init(&configuration);
    assert_int_equal(raft_configuration_add(&configuration, 1, "a:1", first_role), 0);
    assert_int_equal(raft_configuration_add(&configuration, 2, "b:1", second_role), 0);
    return configuration;
}

static raft_term load(struct bed *bed, int first_role, int second_role, raft_id *ret_vote)
{
    struct raft_configuration configuration = configuration_of(first_role, second_role);
    struct raft_snapshot *snapshot;
    struct raft_entry *entries;
    raft_index start;
    raft_term term;
    size_t n;

    bed_init(bed);
    bed->loaded = &configuration;
    assert_int_equal(bed->guard.io.load(&bed->guard.io, &term, ret_vote, &snapshot, &start, &entries, &n), 0);
    raft_free(entries[0].buf.base);
    raft_free(entries);
    raft_configuration_close(&configuration);
    return term;
}

static void test_only_voter_starts_in_a_new_term(void **state UNUSED)
{
    struct bed bed;
    raft_id vote;

    assert_int_equal(load(&bed, RAFT_VOTER, RAFT_STANDBY, &vote), 8);
    assert_int_equal(vote, 1);
    assert_string_equal(bed.story, "term 8 vote 1 ");
    assert_int_equal(load(&bed, RAFT_VOTER, RAFT_VOTER, &vote), 7);
    assert_int_equal(vote, 3);
    assert_int_equal(load(&bed, RAFT_STANDBY, RAFT_VOTER, &vote), 7);
    assert_string_equal(bed.story, "");
}

static void test_last_voter_begins_a_term(void **state UNUSED)
{
    struct raft_message transfer = {.type = RAFT_TIMEOUT_NOW};
    struct bed bed;

    bed_init(&bed);
    bed.raft.configuration = configuration_of(RAFT_VOTER, RAFT_STANDBY);
    bed.raft.election_timer_start = 1000;
    bed.raft.follower_state.randomized_election_timeout = 500;
    bed.raft.follower_state.match = 9;
    bed.now_ms = 1499;
    bed.tick(&bed.guard.io);
    bed.recv(&bed.guard.io, &transfer);
    assert_string_equal(bed.story, "tick ");
    bed.now_ms = 1500;
    bed.tick(&bed.guard.io);
    assert_string_equal(bed.story, "tick term 8 vote 1 tick ");
    assert_true(bed.raft.current_term == 8 && bed.raft.voted_for == 1 && bed.raft.follower_state.match == 0);
    raft_configuration_close(&bed.raft.configuration);

    bed_init(&bed);
    bed.raft.configuration = configuration_of(RAFT_VOTER, RAFT_VOTER);
    bed.now_ms = 1500;
    bed.tick(&bed.guard.io);
    bed.recv(&bed.guard.io, &transfer);
    assert_string_equal(bed.story, "tick message 6 ");
    raft_configuration_close(&bed.raft.configuration);
}

/* --- V ---------------------------------------------------------------------------------------------------------- */

/* What is dropped is freed as well: a leak checker sees to that. */
static void test_second_snapshot_is_dropped(void **state UNUSED)
{
    struct raft_message install = {.type = RAFT_INSTALL_SNAPSHOT, .install_snapshot = {.term = 7, .last_index = 9}};
    struct bed bed;

    bed_init(&bed);
    bed.raft.snapshot.installing = true;
    install.install_snapshot.conf = configuration_of(RAFT_VOTER, RAFT_VOTER);
    install.install_snapshot.data = (struct raft_buffer){.base = raft_malloc(64), .len = 64};
    bed.recv(&bed.guard.io, &install);
    assert_string_equal(bed.story, "");
    assert_int_equal(bed.guard.installs_dropped, 1);

    bed.raft.snapshot.installing = false;
    install.install_snapshot.conf = configuration_of(RAFT_VOTER, RAFT_VOTER);
    bed.recv(&bed.guard.io, &install); /* libraft's now */
    assert_string_equal(bed.story, "message 5 ");
    raft_configuration_close(&install.install_snapshot.conf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configuration_heads_its_batch),
        cmocka_unit_test(test_older_configuration_is_committed_first),
        cmocka_unit_test(test_cut_write_is_cancelled),
        cmocka_unit_test(test_compacted_entries_are_not_new),
        cmocka_unit_test(test_only_voter_starts_in_a_new_term),
        cmocka_unit_test(test_last_voter_begins_a_term),
        cmocka_unit_test(test_second_snapshot_is_dropped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
