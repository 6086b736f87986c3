/* A snapshot of the leader's is restored aside: what goes on meanwhile, what waits, and how it can end. THREADED. The
 * gate of the joined server's machine holds its restore for as long as a test likes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sched.h>

#include "controller/raft/raft_deferred.h"
#include "tests/unit/controller/raft/raft_bed.h"

enum { JOINED = 2, BEFORE = 100, AFTER = 100, TURNS = 40 };
enum { LITTLE_BYTES = 3072, ENTRY_BYTES = 40 }; /* an entry has 48 bytes or more */

/* --- The queue --------------------------------------------------------------------------------------------------- */

static void expect_next(struct raft_deferred *deferred, const char *text)
{
    struct raft_deferred_entry *entry = raft_deferred_next(deferred);

    if (text == NULL) {
        assert_null(entry);
        return;
    }
    assert_non_null(entry);
    assert_int_equal(entry->size, strlen(text));
    assert_memory_equal(entry->data, text, entry->size);
    free(entry);
}

static void test_queue_keeps_order(void **state UNUSED)
{
    struct raft_deferred deferred;

    raft_deferred_init(&deferred);
    assert_false(raft_deferred_busy(&deferred));
    raft_deferred_begin(&deferred);
    raft_deferred_add(&deferred, "one", 3);
    raft_deferred_add(&deferred, "two", 3);
    assert_int_equal(deferred.bytes, 6);
    raft_deferred_ready(&deferred);
    expect_next(&deferred, "one");
    raft_deferred_add(&deferred, "three", 5); /* comes while the others are applied */
    assert_true(raft_deferred_busy(&deferred));
    expect_next(&deferred, "two");
    expect_next(&deferred, "three");
    assert_true(raft_deferred_busy(&deferred)); /* the last one is in the owner's hands */
    expect_next(&deferred, NULL);
    assert_false(raft_deferred_busy(&deferred));
    assert_int_equal(deferred.bytes, 0);
    assert_int_equal(deferred.total, 3);
}

static void test_queue_forgets_what_a_newer_snapshot_holds(void **state UNUSED)
{
    struct raft_deferred deferred;

    raft_deferred_init(&deferred);
    raft_deferred_begin(&deferred);
    raft_deferred_add(&deferred, "old", 3);
    raft_deferred_begin(&deferred);
    raft_deferred_add(&deferred, "new", 3);
    raft_deferred_ready(&deferred);
    expect_next(&deferred, "new");
    raft_deferred_begin(&deferred); /* and while it drains */
    raft_deferred_ready(&deferred);
    expect_next(&deferred, NULL);
    raft_deferred_begin(&deferred);
    raft_deferred_add(&deferred, "left", 4);
    raft_deferred_finish(&deferred);
    assert_false(raft_deferred_busy(&deferred));
}

/* --- Whole servers ----------------------------------------------------------------------------------------------- */

static struct raft_node_status status_of(struct bed *bed, int i)
{
    struct raft_node_status status;

    raft_node_status(bed->servers[i].node, &status);
    return status;
}

static bool joined_restores(struct bed *bed, void *arg UNUSED)
{
    return status_of(bed, JOINED).restoring;
}

static bool joined_is_done(struct bed *bed, void *arg UNUSED)
{
    return !status_of(bed, JOINED).restoring;
}

static bool joined_defers(struct bed *bed, void *arg)
{
    return status_of(bed, JOINED).entries_deferred >= *(uint64_t *)arg;
}

static bool joined_leads(struct bed *bed, void *arg UNUSED)
{
    return status_of(bed, JOINED).leader.role == RAFT_NODE_LEADER;
}

/* Two servers with a log that has been cut, and a third one that gets their snapshot; its restore hangs at the gate. */
static void start_with_gate_shut(struct bed *bed)
{
    bed->extra.snapshot_threshold = 32;
    bed->extra.snapshot_trailing = 8;
    bed_start_cluster(bed, 2);
    for (unsigned i = 0; i < BEFORE; i++)
        propose_one(bed, i);
    history_gate(&bed->servers[JOINED].history, true, false);
    server_start(bed, JOINED);
    change_expect(bed, RAFT_NODE_ADD, JOINED + 1, bed->servers[JOINED].address); /* for Raft it is done */
    bed_wait(bed, joined_restores, NULL, "the restore");
}

static void open_gate(struct bed *bed, bool refuse)
{
    history_gate(&bed->servers[JOINED].history, false, refuse);
}

static void expect_level(struct bed *bed, uint64_t count)
{
    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++) {
        assert_int_equal(history_count(&bed->servers[i]), count);
        assert_false(bed->servers[i].history.gap);
    }
}

/* Raft goes on, as voter and even as leader; nobody sees or is told more than the machine has. */
static void test_raft_goes_on_while_restoring(void **state)
{
    struct bed *bed = *state;
    struct server *joined = &bed->servers[JOINED];
    struct barrier_wait barrier = {.want = 1};
    struct load load = {.node = NULL};
    struct raft_node_status status;
    uint64_t most = 40;

    start_with_gate_shut(bed);
    for (unsigned i = 0; i < 60; i++) /* enough for a snapshot of its own, were it not postponed */
        propose_one(bed, BEFORE + i);
    bed_wait(bed, joined_defers, &most, "entries that wait");
    change_expect(bed, RAFT_NODE_TRANSFER, JOINED + 1, NULL);
    bed_wait(bed, joined_leads, NULL, "it to lead");
    load.node = joined->node;
    assert_int_equal(load_propose(&load, 1000), 0);
    assert_int_equal(raft_node_barrier(joined->node, barrier_cb, &barrier), 0);
    for (int i = 0; i < TURNS; i++)
        uv_run(&bed->loop, UV_RUN_ONCE);
    status = status_of(bed, JOINED);
    assert_true(status.restoring && status.raft_applied > BEFORE);
    assert_int_equal(status.index, 0);
    assert_int_equal(status.snapshots_taken, 0);
    assert_int_equal(joined->told_index, 0);
    assert_int_equal(history_count(joined), 0);
    assert_int_equal(load.answered, 0);
    assert_int_equal(barrier.answered, 0);

    open_gate(bed, false);
    load.want = 1;
    bed_wait(bed, load_done, &load, "the command");
    bed_wait(bed, barrier_done, &barrier, "the barrier");
    assert_int_equal(load.ok, 1);
    assert_int_equal(barrier.ok, 1);
    assert_true(barrier.index >= BEFORE + 60);
    expect_level(bed, BEFORE + 61);
    status = status_of(bed, JOINED);
    assert_false(status.restoring);
    assert_int_equal(status.snapshots_restored, 1);
}

/* Little may wait: the server stands still until the snapshot is restored, and misses nothing. */
static void test_too_much_waits(void **state)
{
    struct bed *bed = *state;
    uint64_t some = 1;

    bed->extra.deferred_bytes_max = LITTLE_BYTES;
    start_with_gate_shut(bed);
    bed_wait(bed, joined_defers, &some, "entries that wait");
    for (unsigned i = 0; i < AFTER; i++)
        propose_one(bed, BEFORE + i);
    assert_true(status_of(bed, JOINED).entries_deferred <= LITTLE_BYTES / ENTRY_BYTES);
    assert_int_equal(history_count(&bed->servers[JOINED]), 0);
    open_gate(bed, false);
    expect_level(bed, BEFORE + AFTER);
}

struct fatal_text {
    char text[200];
    bool told; /* atomic */
};

static struct fatal_text fatal;

static void on_fatal(void *arg UNUSED, const char *text)
{
    snprintf(fatal.text, sizeof(fatal.text), "%s", text);
    __atomic_store_n(&fatal.told, true, __ATOMIC_RELEASE);
}

static bool is_fatal(struct bed *bed UNUSED, void *arg UNUSED)
{
    return __atomic_load_n(&fatal.told, __ATOMIC_ACQUIRE);
}

static void test_snapshot_that_cannot_be_read(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};

    bed->extra.fatal = on_fatal;
    start_with_gate_shut(bed);
    open_gate(bed, true);
    bed_wait(bed, is_fatal, NULL, "the end");
    assert_string_equal(fatal.text, "the leader's snapshot cannot be restored: too short");
    assert_int_equal(history_count(&bed->servers[JOINED]), 0);
    server_stop(&bed->servers[JOINED]);
    assert_int_equal(server_try_start_as(bed, JOINED, "c1", JOINED + 1, &err), -EUCLEAN); /* it is on the disk */
    assert_non_null(strstr(err.text, "too short"));
    propose_one(bed, BEFORE);
}

static void *gate_thread(void *arg)
{
    struct bed *bed = arg;
    struct barrier_wait barrier;

    while (raft_node_barrier(bed->servers[JOINED].node, barrier_cb, &barrier) != -ECANCELED)
        sched_yield(); /* until it is being stopped; it does not lead */
    open_gate(bed, false);
    return NULL;
}

/* The snapshot and all behind it are on the disk. */
static void test_stop_while_restoring(void **state)
{
    struct bed *bed = *state;
    uint64_t some = 5;
    struct raft_node *node;
    pthread_t id;

    start_with_gate_shut(bed);
    for (unsigned i = 0; i < 10; i++)
        propose_one(bed, BEFORE + i);
    bed_wait(bed, joined_defers, &some, "entries that wait");
    node = bed->servers[JOINED].node;
    assert_int_equal(pthread_create(&id, NULL, gate_thread, bed), 0);
    raft_node_destroy(node); /* server_stop would take the pointer away from the thread */
    pthread_join(id, NULL);
    bed->servers[JOINED].node = NULL;
    server_start(bed, JOINED);
    propose_one(bed, 1000);
    expect_level(bed, BEFORE + 11);
}

/* A log that takes long to apply, all of it committed when the server hears of it: spread over several turns. */
static void test_long_log_after_a_start(void **state)
{
    struct bed *bed = *state;
    struct server *joined = &bed->servers[JOINED];

    bed_start_cluster(bed, SERVERS);
    if (status_of(bed, JOINED).leader.role == RAFT_NODE_LEADER) {
        change_expect(bed, RAFT_NODE_TRANSFER, 1, NULL);
        bed_wait(bed, all_level, NULL, "equal state");
    }
    for (unsigned i = 0; i < BEFORE; i++)
        propose_one(bed, i);
    server_stop(joined);
    joined->history.apply_us = 2000;
    server_start(bed, JOINED);
    propose_one(bed, BEFORE);
    expect_level(bed, BEFORE + 1);
    assert_true(status_of(bed, JOINED).entries_deferred >= BEFORE / 2);
    bed_wait(bed, joined_is_done, NULL, "the end of it");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_keeps_order),
        cmocka_unit_test(test_queue_forgets_what_a_newer_snapshot_holds),
        cmocka_unit_test_setup_teardown(test_raft_goes_on_while_restoring, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_much_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_snapshot_that_cannot_be_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_while_restoring, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_log_after_a_start, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
