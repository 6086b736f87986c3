/* raft_node: whole servers, up to three in this process, on loopback ports with directories under build/. THREADED:
 * each server has its thread, commands come from several more, answers come to the loop of this one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/controller/raft/raft_bed.h"

/* --- Tests ------------------------------------------------------------------------------------------------------ */

static void test_threads_propose_and_all_agree(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct load_thread threads[LOAD_THREADS];
    pthread_t ids[LOAD_THREADS];
    struct barrier_wait barrier = {.want = 50};
    struct raft_node_status status;
    uint64_t raft_last;

    bed_start_cluster(bed, 3);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[bed_leader(bed)].node;
    load->want = LOAD_THREADS * LOAD_EACH;
    for (unsigned i = 0; i < LOAD_THREADS; i++) {
        threads[i] = (struct load_thread){load, i * LOAD_EACH};
        assert_int_equal(pthread_create(&ids[i], NULL, load_thread, &threads[i]), 0);
    }
    bed_wait(bed, load_done, load, "all answers");
    for (unsigned i = 0; i < LOAD_THREADS; i++)
        pthread_join(ids[i], NULL);
    assert_int_equal(load->ok, load->want);
    for (unsigned i = 0; i < load->want; i++)
        assert_int_equal(load->calls[i], 1);

    /* Many commands share an entry, and many readers share a barrier. */
    raft_node_status(load->node, &status);
    assert_true(status.groups < load->want);
    assert_int_equal(status.index, load->want);
    raft_last = status.raft_last;
    for (unsigned i = 0; i < barrier.want; i++)
        assert_int_equal(raft_node_barrier(load->node, barrier_cb, &barrier), 0);
    bed_wait(bed, barrier_done, &barrier, "the barriers");
    assert_int_equal(barrier.ok, barrier.want);
    assert_int_equal(barrier.index, load->want);
    raft_node_status(load->node, &status);
    assert_true(status.raft_last - raft_last < 10);
    assert_true(status.disk_writes > 0);

    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++) {
        assert_int_equal(history_count(&bed->servers[i]), load->want);
        assert_false(bed->servers[i].history.gap);
    }
    free(load);
}

static void test_follower_refuses(void **state)
{
    struct bed *bed = *state;
    struct load load = {0};
    struct barrier_wait barrier = {0};
    struct error err = {0};

    bed_start_cluster(bed, 2);
    load.node = bed->servers[1].node;
    assert_int_equal(load_propose(&load, 1), -ENOTCONN);
    assert_int_equal(raft_node_barrier(load.node, barrier_cb, &barrier), -ENOTCONN);
    assert_int_equal(raft_node_change(load.node, RAFT_NODE_REMOVE, 1, NULL, change_cb, NULL, &err), -ENOTCONN);
    assert_int_equal(err.kind, ERROR_NO_LEADER);
    assert_int_equal(load_propose(&load, 1), -ENOTCONN);
    assert_int_equal(raft_node_propose(load.node, &load, RAFT_NODE_COMMAND_BYTES_MAX + 1, load_cb, NULL), -E2BIG);
}

static void read_one(struct bed *bed, int leader, bool ok)
{
    struct barrier_wait wait = {.want = 1};

    assert_int_equal(raft_node_barrier(bed->servers[leader].node, barrier_cb, &wait), 0);
    bed_wait(bed, barrier_done, &wait, "a reader to be answered");
    assert_int_equal(wait.ok, ok);
}

static void test_readers_write_nothing(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status before, after;
    int leader;

    bed_start_cluster(bed, 3);
    leader = bed_leader(bed);
    propose_one(bed, 1);
    read_one(bed, leader, true); /* the first of a leader's go by the log */
    raft_node_status(bed->servers[leader].node, &before);
    for (unsigned i = 0; i < 50; i++)
        read_one(bed, leader, true);
    raft_node_status(bed->servers[leader].node, &after);
    assert_int_equal(after.raft_last, before.raft_last);
    assert_true(after.reads_asked >= before.reads_asked + 50);
    assert_int_equal(after.reads_logged, before.reads_logged);

    server_stop(&bed->servers[(leader + 1) % SERVERS]); /* one of two suffices */
    for (unsigned i = 0; i < 5; i++)
        read_one(bed, leader, true);
    server_stop(&bed->servers[(leader + 2) % SERVERS]); /* none does not: whoever asks is told so when that is known */
    read_one(bed, leader, false);
}

static void test_leader_dies_and_returns(void **state)
{
    struct bed *bed = *state;
    uint64_t hash;
    int dead;

    bed->extra.election_timeout_ms = QUICK_ELECTION_MS;
    bed_start_cluster(bed, 3);
    for (unsigned i = 0; i < 20; i++)
        propose_one(bed, i);
    dead = bed_leader(bed);
    server_stop(&bed->servers[dead]);
    propose_one(bed, 100);
    server_start(bed, dead);
    bed_wait(bed, all_level, NULL, "equal state after the return");
    hash = history_hash(&bed->servers[0]);
    assert_true(history_count(&bed->servers[dead]) >= 21);

    for (int i = 0; i < SERVERS; i++) /* all together: nothing but the disks remains */
        server_stop(&bed->servers[i]);
    for (int i = 0; i < SERVERS; i++)
        server_start(bed, i);
    propose_one(bed, 200);
    bed_wait(bed, all_level, NULL, "equal state after all restarted");
    assert_true(history_hash(&bed->servers[0]) != hash);
    for (int i = 0; i < SERVERS; i++)
        assert_false(bed->servers[i].history.gap);
}

static bool is_restored(struct bed *bed, void *arg)
{
    struct raft_node_status status;

    raft_node_status(bed->servers[*(int *)arg].node, &status);
    return status.snapshots_restored > 0;
}

static void test_snapshot_is_installed_in_a_joined_server(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status status;
    int joined = 2;

    bed->extra.snapshot_threshold = 32;
    bed->extra.snapshot_trailing = 8;
    bed_start_cluster(bed, 2);
    for (unsigned i = 0; i < 200; i++)
        propose_one(bed, i);
    server_start(bed, joined);
    change_expect(bed, RAFT_NODE_ADD, 3, bed->servers[joined].address);
    bed_wait(bed, is_restored, &joined, "the snapshot");
    bed_wait(bed, all_level, NULL, "equal state");
    raft_node_status(bed->servers[bed_leader(bed)].node, &status);
    assert_true(status.snapshots_taken > 0);
    assert_int_equal(status.member_count, 3);
    assert_int_equal(history_count(&bed->servers[joined]), status.index);

    server_stop(&bed->servers[joined]); /* and it starts from that snapshot */
    server_start(bed, joined);
    assert_true(history_count(&bed->servers[joined]) > 0);
    propose_one(bed, 1000);
    bed_wait(bed, all_level, NULL, "equal state after the restart");
    assert_false(bed->servers[joined].history.gap);
}

/* Few entries, but many bytes: a snapshot all the same, and the files of what is behind it go. */
static void test_log_is_bounded_in_bytes(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status status;

    bed->extra.log_bytes_max = 2048;
    bed_start_cluster(bed, 1);
    for (unsigned i = 0; i < 300; i++)
        propose_one(bed, i);
    raft_node_status(bed->servers[0].node, &status);
    assert_true(status.snapshots_taken > 1);
    assert_true(status.snapshots_taken < 60); /* twice the last snapshot at least lies between two */
    server_stop(&bed->servers[0]);
    server_start(bed, 0);
    bed_wait(bed, has_leader, NULL, "a leader");
    propose_one(bed, 1000);
    assert_int_equal(history_count(&bed->servers[0]), 301);
    assert_false(bed->servers[0].history.gap);
}

static void test_overload_is_refused(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct raft_node_status status;
    unsigned refused = 0;

    bed->extra.proposals_max = 16;
    bed_start_cluster(bed, 1);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[0].node;
    for (unsigned i = 0; i < 1000; i++) { /* the reply loop stands still: nothing is answered */
        int rv = load_propose(load, i);

        assert_true(rv == 0 || rv == -EAGAIN);
        refused += rv == -EAGAIN;
    }
    assert_int_equal(load->accepted, 16);
    assert_int_equal(refused, 1000 - 16);
    raft_node_status(load->node, &status);
    assert_int_equal(status.proposals, 16);
    assert_int_equal(status.commands_refused, refused);
    load->want = 16;
    bed_wait(bed, load_done, load, "the accepted ones");
    assert_int_equal(load->ok, 16);
    assert_int_equal(load_propose(load, 0), 0); /* and there is room again */
    load->want = 17;
    bed_wait(bed, load_done, load, "one more");
    raft_node_status(load->node, &status);
    assert_int_equal(status.proposals, 0);
    assert_int_equal(status.proposal_bytes, 0);
    free(load);
}

static void test_stop_answers_everything(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct barrier_wait barrier = {.want = 3};

    bed_start_cluster(bed, 1);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[0].node;
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(load_propose(load, i), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(raft_node_barrier(load->node, barrier_cb, &barrier), 0);
    server_stop(&bed->servers[0]);
    assert_int_equal(load->answered, 300);
    assert_int_equal(barrier.answered, 3);
    free(load);
}

static void test_members(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status status;
    char text[512];
    int leader;

    bed_start_cluster(bed, 3);
    leader = bed_leader(bed);
    assert_int_equal(change_run(bed, RAFT_NODE_ADD, 2, bed->servers[1].address, text), -EEXIST);
    assert_non_null(strstr(text, "id exists"));
    assert_int_equal(change_run(bed, RAFT_NODE_PROMOTE, 2, NULL, text), -EALREADY);
    assert_int_equal(change_run(bed, RAFT_NODE_REMOVE, 9, NULL, text), -ENOENT);
    assert_int_equal(change_run(bed, RAFT_NODE_ADD, 9, "nonsense", text), -EINVAL);

    change_expect(bed, RAFT_NODE_TRANSFER, leader == 0 ? 2 : 1, NULL);
    bed_wait(bed, has_leader, NULL, "a leader");
    assert_int_equal(bed_leader(bed), leader == 0 ? 1 : 0);
    leader = bed_leader(bed);
    propose_one(bed, 1); /* directly after a transfer a change may be refused as busy */

    change_expect(bed, RAFT_NODE_DEMOTE, 3, NULL);
    raft_node_status(bed->servers[leader].node, &status);
    assert_int_equal(status.members[2].vote, RAFT_NODE_STANDBY);
    change_expect(bed, RAFT_NODE_PROMOTE, 3, NULL);
    change_expect(bed, RAFT_NODE_REMOVE, 3, NULL);
    raft_node_status(bed->servers[leader].node, &status);
    assert_int_equal(status.member_count, 2);
}

static bool follows(struct bed *bed, void *arg)
{
    return bed->servers[*(int *)arg].leader.leader_id != 0;
}

static void test_wrong_certificate_is_refused(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    uint64_t end_ms;
    int third = 2;

    bed_start_cluster(bed, 3);
    propose_one(bed, 1);
    server_stop(&bed->servers[third]);
    /* First the certificate of another controller, then one of another cluster; both signed by our CA. */
    for (int try = 0; try < 2; try++) {
        assert_int_equal(server_try_start_as(bed, third, try == 0 ? "c1" : "c2", try == 0 ? 2 : 3, &err), 0);
        end_ms = uv_hrtime() / 1000000 + 1500;
        while (uv_hrtime() / 1000000 < end_ms) {
            uv_run(&bed->loop, UV_RUN_ONCE);
            assert_int_equal(bed->servers[third].leader.leader_id, 0);
        }
        server_stop(&bed->servers[third]);
        memset(&bed->servers[third].leader, 0, sizeof(bed->servers[third].leader));
    }
    server_start(bed, third);
    bed_wait(bed, follows, &third, "the right certificate to be accepted");
}

static void file_damage(const char *path, off_t at, bool cut)
{
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    if (cut)
        assert_int_equal(ftruncate(fd, at), 0);
    else
        assert_int_equal(pwrite(fd, "damaged!", 8, at), 8);
}

static void server_damage(struct server *server, const char *prefix, off_t at, bool cut)
{
    struct dirent **entries = NULL;
    int count = scandir(server->dir, &entries, NULL, NULL);
    unsigned hit = 0;

    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;

        if (strncmp(name, prefix, strlen(prefix)) == 0 && strstr(name, ".meta") == NULL) {
            char *path = xasprintf("%s/%s", server->dir, name);

            file_damage(path, at, cut);
            free(path);
            hit++;
        }
        free(entries[i]);
    }
    free(entries);
    assert_true(hit > 0);
}

static void test_address_in_use_is_named(void **state)
{
    struct bed *bed = *state;
    struct server *other = &bed->servers[1];
    struct error err = {0};

    bed_start_cluster(bed, 1);
    strcpy(other->address, bed->servers[0].address);
    assert_int_equal(server_try_start_as(bed, 1, "c1", 2, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, other->address));
    assert_non_null(strstr(err.text, "in use"));
    assert_null(strstr(err.text, "wipe"));
}

static void test_damaged_directory_is_refused(void **state)
{
    struct bed *bed = *state;
    struct server *server = &bed->servers[0];
    struct error err = {0};
    char *path;

    bed->extra.snapshot_threshold = 16;
    bed->extra.snapshot_trailing = 4;
    bed_start_cluster(bed, 1);
    for (unsigned i = 0; i < 50; i++)
        propose_one(bed, i);
    server_stop(server);
    assert_int_equal(raft_node_bootstrap(server->dir, 1, server->address, &err), -EEXIST);

    server_damage(server, "snapshot-", 48, false);
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "checksum"));
    assert_non_null(strstr(err.text, "join again under a new id"));

    for (int i = 1; i <= 2; i++) {
        path = xasprintf("%s/metadata%d", server->dir, i);
        unlink(path); /* a young server has only one of the two */
        free(path);
    }
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "term and vote"));

    path = xasprintf("%s/open-99", server->dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    free(path);
    server_damage(server, "open-99", 0, false);
    server_damage(server, "open-99", 5000, true);
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "cut short"));
}

static void test_recover_from_one_survivor(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    uint64_t count;

    bed_start_cluster(bed, 3);
    for (unsigned i = 0; i < 10; i++)
        propose_one(bed, i);
    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++)
        server_stop(&bed->servers[i]);
    if (raft_node_recover(bed->servers[1].dir, 2, bed->servers[1].address, &err) != 0)
        fail_msg("%s", err.text);
    server_start(bed, 1);
    propose_one(bed, 100);
    count = history_count(&bed->servers[1]);
    assert_true(count >= 11);
}

/* What recover would keep is what a stopped server had. */
static void test_inspect(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    struct raft_node_content content = {0};
    struct server *one = &bed->servers[0], *other = &bed->servers[1];
    struct raft_machine machine = {.ctx = &other->history,
                                   .apply = history_apply,
                                   .snapshot = history_snapshot,
                                   .restore = history_restore,
                                   .release = history_release};

    bed->extra.snapshot_threshold = 20; /* so that there is a snapshot too */
    bed->extra.snapshot_trailing = 4;
    bed_start_cluster(bed, 1);
    for (unsigned i = 0; i < 50; i++)
        propose_one(bed, i);
    server_stop(one);
    for (int again = 0; again < 2; again++) {
        server_reset(other);
        if (raft_node_inspect(one->dir, 1, &machine, &content, &err) != 0)
            fail_msg("%s", err.text);
        assert_int_equal(content.index, 50);
        assert_true(content.last_index >= 50 && content.term >= 1);
        assert_int_equal(history_count(other), history_count(one));
    }
    assert_int_equal(raft_node_inspect(other->dir, 2, &machine, &content, &err), -ENOENT);
    server_start(bed, 0); /* and it is none the worse for it */
    propose_one(bed, 100);
}

static void tell(void *arg, uint64_t epoch)
{
    struct server *server = arg;

    __atomic_store_n(&server->superseded_by, epoch, __ATOMIC_SEQ_CST);
}

static bool old_one_knows(struct bed *bed, int i)
{
    return __atomic_load_n(&bed->servers[i].superseded_by, __ATOMIC_SEQ_CST) == 2;
}

/* At least @arg of them. */
static bool old_ones_know(struct bed *bed, void *arg)
{
    return old_one_knows(bed, 0) + old_one_knows(bed, 1) >= *(int *)arg;
}

/* The survivor leads alone at epoch 2; the others still have a majority of the old configuration, and are told. */
static void test_old_epoch_is_refused(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    uint64_t index;
    int know = 1;

    bed->extra.election_timeout_ms = QUICK_ELECTION_MS;
    bed->extra.epoch = 1;
    bed->extra.superseded = tell;
    bed_start_cluster(bed, 3);
    propose_one(bed, 1);
    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++) {
        server_stop(&bed->servers[i]);
        memset(&bed->servers[i].leader, 0, sizeof(bed->servers[i].leader));
    }
    assert_int_equal(raft_node_recover(bed->servers[2].dir, 3, bed->servers[2].address, &err), 0);
    bed->extra.epoch = 2;
    server_start(bed, 2);
    propose_one(bed, 2);
    index = history_count(&bed->servers[2]);
    bed->extra.epoch = 1;
    server_start(bed, 0);
    server_start(bed, 1);
    /* Whoever wants to lead asks the survivor too; it ends (here: we end it), and then the other one does. */
    bed_wait(bed, old_ones_know, &know, "an old one to be told");
    server_stop(&bed->servers[old_one_knows(bed, 0) ? 0 : 1]);
    know = 2;
    bed_wait(bed, old_ones_know, &know, "the other one to be told");
    assert_int_equal(bed->servers[2].superseded_by, 0);
    assert_int_equal(history_count(&bed->servers[2]), index);
    assert_int_equal(bed->servers[2].leader.role, RAFT_NODE_LEADER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_threads_propose_and_all_agree, setup, teardown),
        cmocka_unit_test_setup_teardown(test_follower_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_readers_write_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leader_dies_and_returns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_snapshot_is_installed_in_a_joined_server, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_is_bounded_in_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overload_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_answers_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(test_members, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_certificate_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_address_in_use_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_directory_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_recover_from_one_survivor, setup, teardown),
        cmocka_unit_test_setup_teardown(test_inspect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_old_epoch_is_refused, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
