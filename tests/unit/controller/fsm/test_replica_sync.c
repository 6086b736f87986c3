/* Replicas that are in sync, in the replicated state: only a host's word of its session makes one so, only the end of that session unmakes it, what
 * hosts are told meanwhile, from which replica a VM is started by itself, and what becomes of its disks in pools. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/replica_state.h"

#define ID_A "0123456789abcdef0123456789abcdef"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_host(f, "n2", 8192);
    fixture_host(f, "n3", 8192);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct vm *vm(struct fixture *f)
{
    return fixture_vm(f, "a");
}

static const struct record *under_way(struct fixture *f)
{
    return replica_under_way(fixture_get(f, object_kind_VM, "a"));
}

static unsigned tick_after(struct fixture *f, unsigned seconds)
{
    f->now_ms += seconds * UINT64_C(1000);
    return fixture_reconcile(f, NULL);
}

/* What a host says of the task under way, once. */
static void host_says(struct fixture *f, const char *host, enum task_role role, enum operation_state state, bool ready, uint64_t number,
                      const char *failure)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, under_way(f)->common->id);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_SET(task_seen, seen, ready, ready);
    if (failure != NULL)
        OBJECT_TEXT(task_seen, seen, error_text, failure);
    if (role == task_role_PEER) {
        OBJECT_TEXT(task_seen, seen, endpoint, "n2:1");
        OBJECT_TEXT(replica_base, &seen->base, id, ID_A);
        OBJECT_SET(replica_base, &seen->base, number, number);
        object_mark(&task_seen_desc, seen, "base");
    } else if (state == operation_state_SUCCEEDED) {
        OBJECT_TEXT(replica_result, &seen->replica, id, ID_A);
        OBJECT_SET(replica_result, &seen->replica, number, number);
        object_mark(&task_seen_desc, seen, "replica");
    }
    (void)fixture_send(f, &report);
}

static void fails(struct fixture *f, const char *why)
{
    host_says(f, vm(f)->host_name, task_role_MAIN, operation_state_FAILED, false, 0, why);
    assert_null(under_way(f));
}

/* The first point has been sent. */
static void begin(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}");
    assert_int_equal(tick_after(f, 60), 1);
    assert_false(OBJECT_HAS(task, &under_way(f)->operation->task, session));
    host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, false, 1, NULL);
}

static uint64_t session_begins(struct fixture *f)
{
    assert_int_equal(tick_after(f, 20), 1);
    const struct task *task = &under_way(f)->operation->task;
    assert_true(OBJECT_HAS(task, task, session));
    assert_int_equal(task->session, vm(f)->replica.sessions);
    assert_int_equal(task->patience_s, 3);
    return task->session;
}

static void level(struct fixture *f, uint64_t number)
{
    host_says(f, "n2", task_role_PEER, operation_state_RUNNING, true, number, NULL);
    assert_int_equal(under_way(f)->operation->task.base.number, number);
    host_says(f, "n1", task_role_MAIN, operation_state_RUNNING, true, 0, NULL);
}

static void in_sync(struct fixture *f, uint64_t number)
{
    (void)session_begins(f);
    level(f, number);
    assert_true(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.number, number + 1);
    assert_int_equal(vm(f)->replica.session, vm(f)->replica.sessions);
}

static void host_back(struct fixture *f, const char *name)
{
    struct command_host_clear command = {0};
    struct bytes_writer bytes = {0};
    const struct record *host = fixture_get(f, object_kind_HOST, name);
    OBJECT_TEXT(command_host_clear, &command, id, host->common->id);
    OBJECT_SET(command_host_clear, &command, generation, host->host->generation);
    OBJECT_SET(command_host_clear, &command, reported, true);
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    object_mark(&command_host_clear_desc, &command, "request");
    assert_int_equal(command_encode(COMMAND_host_clear, &command, &bytes, NULL), 0);
    assert_int_equal(fixture_apply(f, &bytes), 0);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(command_host_clear, &command);
}

/* What the VM's host is told: the session, and whether it is held. */
static void told(struct fixture *f, uint64_t session, bool held)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, vm(f)->host_name, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct vm_order *order = orders.vms.items;
    assert_int_equal(orders.vms.count, 1);
    assert_int_equal(order->replica_session, session);
    assert_int_equal(order->replica_held, held);
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
}

static void it_is_in_sync_by_its_hosts_word_alone(void **test)
{
    struct fixture *f = *test;
    begin(f);
    told(f, 0, false);
    uint64_t session = session_begins(f);
    told(f, session, true); /* from its beginning: its VMM may be level before anybody says so */
    host_says(f, "n1", task_role_MAIN, operation_state_RUNNING, true, 0, NULL); /* what the replica holds nobody has said yet */
    assert_false(vm(f)->replica.in_sync);
    level(f, 1);
    assert_true(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.number, 2);
    assert_int_equal(vm(f)->replica.session, session);
    told(f, session, true);
    assert_int_equal(tick_after(f, 100000), 0); /* neither late nor due */
    char at[TIME_TEXT_BYTES];
    fails(f, "the replica is silent");
    snprintf(at, sizeof at, "%s", fixture_now(f));
    assert_false(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.number, 2); /* a point, of this very moment */
    assert_true(strcmp(vm(f)->replica.at, at) <= 0);
    assert_non_null(strstr(vm(f)->replica.failure, "silent"));
    told(f, session, false); /* the guest goes on */
    in_sync(f, 2);
    assert_int_equal(vm(f)->replica.session, session + 1);
    assert_null(vm(f)->replica.failure);
}

static void a_session_that_never_came_level_changes_no_point(void **test)
{
    struct fixture *f = *test;
    begin(f);
    uint64_t session = session_begins(f);
    host_says(f, "n2", task_role_PEER, operation_state_RUNNING, true, 1, NULL);
    fails(f, "the disk is full");
    told(f, session, false);
    assert_false(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.number, 1);
    assert_int_equal(vm(f)->replica.session, 0); /* it was sent */
}

/* An agent that knows no sessions sends a point, and says that it is done. */
static void an_agent_that_takes_it_for_a_point_is_told_of(void **test)
{
    struct fixture *f = *test;
    begin(f);
    uint64_t session = session_begins(f);
    host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, false, 2, NULL);
    assert_null(under_way(f));
    assert_false(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.number, 1);
    assert_non_null(strstr(vm(f)->replica.failure, "upgrade"));
    told(f, session, false);
}

/* Points alone write nothing that older controllers do not know. */
static void points_know_of_no_sessions(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    for (unsigned i = 1; i <= 2; i++) {
        assert_int_equal(tick_after(f, 60), 1);
        assert_false(OBJECT_HAS(vm_replica_start, &under_way(f)->operation->task.replica, session));
        host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, false, i, NULL);
    }
    assert_false(OBJECT_HAS(vm_replica, &vm(f)->replica, session) || OBJECT_HAS(vm_replica, &vm(f)->replica, sessions) ||
                 OBJECT_HAS(vm_replica, &vm(f)->replica, in_sync));
}

static void started_is_from_one_in_sync(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    uint64_t session = vm(f)->replica.session;
    fixture_lose(f, "n1");
    assert_null(under_way(f));
    assert_true(vm(f)->replica.in_sync); /* its guest waits, or is dead */
    assert_true(vm(f)->recovering);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n2");
    assert_int_equal(vm(f)->replica_start.number, 2);
    assert_int_equal(vm(f)->replica_start.session, session);
    assert_false(vm(f)->replica.in_sync);
    assert_int_equal(vm(f)->replica.sessions, session); /* a number is never given twice */
    told(f, session, false);
}

static void and_from_no_other_by_itself(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    fails(f, "the replica is silent");
    fixture_lose(f, "n1");
    assert_false(vm(f)->recovering);
    assert_int_equal(vm(f)->state, vm_state_FAILED);
    assert_non_null(strstr(vm(f)->state_reason, "not in sync"));
    /* by somebody who takes what it has */
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":0}");
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    assert_true(vm(f)->recovering);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n2");
    assert_int_equal(vm(f)->replica_start.number, 2);
}

static void a_lost_keeper_is_out_of_sync(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    uint64_t session = vm(f)->replica.session;
    fixture_lose(f, "n2");
    assert_false(vm(f)->replica.in_sync);
    told(f, session, false);
}

/* Its guest would wait for good: nobody serves the old session any more. */
static void a_host_that_is_back_first_is_let_go_on(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    uint64_t session = vm(f)->replica.session;
    fixture_lose(f, "n1");
    assert_true(vm(f)->recovering && vm(f)->replica.in_sync);
    host_back(f, "n1");
    assert_false(vm(f)->recovering);
    assert_false(vm(f)->replica.in_sync);
    told(f, session, false);
}

static void a_session_that_is_not_wanted_is_ended(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    uint64_t session = vm(f)->replica.session;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":0}");
    assert_true(under_way(f)->operation->cancel_asked);
    assert_true(vm(f)->replica.in_sync); /* until its guest goes on without */
    host_says(f, "n1", task_role_MAIN, operation_state_CANCELLED, false, 0, "cancelled");
    assert_false(vm(f)->replica.in_sync);
    told(f, session, false);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":3}");
    in_sync(f, 2);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    assert_true(under_way(f)->operation->cancel_asked);
    assert_false(vm(f)->replica.in_sync);
    told(f, session + 1, true); /* not before its host has ended it */
    host_says(f, "n1", task_role_MAIN, operation_state_RUNNING, true, 0, NULL);
    assert_false(vm(f)->replica.in_sync);
    host_says(f, "n1", task_role_MAIN, operation_state_CANCELLED, false, 0, "cancelled");
    told(f, session + 1, false);
}

/* A new start has a new epoch: what came of the old one stands in for nothing, and holds nobody up. */
static void another_start_is_not_held(void **test)
{
    struct fixture *f = *test;
    begin(f);
    in_sync(f, 1);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fails(f, "the VM does not run here");
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    told(f, 1, false);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_null(replica_standby(f->state, vm(f)));
    in_sync(f, 2);
    assert_non_null(replica_standby(f->state, vm(f)));
}

/* ---- disks in pools ---- */

#define GIB (UINT64_C(1) << 30)

/* A shared pool of the first two hosts, another of n1 alone, and one in their own directories. */
static void pools_make(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"own\",\"kind\":\"shared-dir\",\"path\":\"/srv/own\",\"hosts\":[\"n1\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\",\"n2\"]}");
    static const char *const members[][2] = {{"n1", "nas"}, {"n2", "nas"}, {"n1", "own"}, {"n1", "ssd"}, {"n2", "ssd"}};
    for (unsigned i = 0; i < ARRAY_SIZE(members); i++)
        fixture_say_pool(f, members[i][0], members[i][1], 64 * GIB, 32 * GIB);
}

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

static void volume_make(struct fixture *f, const char *name, const char *pool)
{
    char body[200];
    bool is_dir = strcmp(pool, "ssd") == 0;
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"pool\":\"%s\",\"size_bytes\":1073741824%s}", name, pool, is_dir ? ",\"host\":\"n1\"" : "");
    fixture_must(f, ROUTE_ID_volume_create, NULL, body);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, name)->id);
    OBJECT_SET(volume_seen, seen, made, true);
    assert_int_equal(fixture_send(f, &report), 1);
}

static void attached(struct fixture *f, const char *name)
{
    fixture_must(f, ROUTE_ID_volume_attach, name, "{\"vm\":\"a\"}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(volume(f, name)->state, volume_state_ATTACHED);
}

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, const char *field, const char *words)
{
    assert_true(fixture_do(f, route, id, body) < 0);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

/* What @name's host is to start it from. */
static void started_with(struct fixture *f, const char *host, uint64_t number, size_t disks, size_t pools)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct vm_order *order = orders.vms.items;
    assert_int_equal(orders.vms.count, 1);
    assert_int_equal(order->replica.number, number);
    assert_int_equal(order->disks.count, disks);
    assert_int_equal(order->pools.count, pools);
    assert_true(order->disks_made || pools == 0); /* what is shared is opened, and not made */
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
}

static void what_is_shared_is_opened_where_the_copy_is(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    volume_make(f, "data", "nas");
    begin(f);
    attached(f, "data");
    fixture_lose(f, "n1"); /* out of sync: it waits */
    assert_false(vm(f)->recovering);
    assert_non_null(strstr(vm(f)->state_reason, "not in sync"));
    host_back(f, "n1");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    in_sync(f, 1);
    fixture_lose(f, "n1");
    assert_true(vm(f)->recovering);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n2");
    assert_string_equal(vm(f)->replica_host, "n1");
    started_with(f, "n2", 2, 2, 1);
    assert_string_equal(volume(f, "data")->vm_name, "a");
    host_back(f, "n1");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    refused(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n2\"]}", "/hosts", "which has the replica of VM 'a'");
    /* and back again */
    assert_int_equal(tick_after(f, 60), 1);
    host_says(f, "n2", task_role_MAIN, operation_state_SUCCEEDED, false, 1, NULL);
    (void)session_begins(f);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, under_way(f)->common->id);
    OBJECT_SET(task_seen, seen, role, task_role_PEER);
    OBJECT_SET(task_seen, seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, seen, ready, true);
    OBJECT_TEXT(replica_base, &seen->base, id, ID_A);
    OBJECT_SET(replica_base, &seen->base, number, 1);
    object_mark(&task_seen_desc, seen, "base");
    (void)fixture_send(f, &report);
    host_says(f, "n2", task_role_MAIN, operation_state_RUNNING, true, 0, NULL);
    assert_true(vm(f)->replica.in_sync);
    fixture_lose(f, "n2");
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n1");
    started_with(f, "n1", 2, 2, 1);
}

/* The VM's own disk may be the shared one. */
static void the_vms_own_disk_may_be_shared(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"nas\"}]}");
    fixture_vm_is(f, "b", vm_state_RUNNING);
    const char *other = strcmp(fixture_vm(f, "b")->host_name, "n1") == 0 ? "n2" : "n1";
    char body[100];
    snprintf(body, sizeof body, "{\"replica_host\":\"%s\",\"replica_sync_s\":3}", other);
    refused(f, ROUTE_ID_vm_update, "b", body, "/replica_host", "nothing to copy");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"nas\"},"
                 "{\"name\":\"data\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    other = strcmp(vm(f)->host_name, "n1") == 0 ? "n2" : "n1";
    snprintf(body, sizeof body, "{\"replica_host\":\"%s\",\"replica_sync_s\":3}", other);
    fixture_must(f, ROUTE_ID_vm_update, "a", body);
    assert_int_equal(vm(f)->disks_made, true);
}

static void points_have_no_part_in_what_is_shared(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    volume_make(f, "data", "nas");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    refused(f, ROUTE_ID_volume_attach, "data", "{\"vm\":\"a\"}", "/vm", "in points of a moment ago");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    attached(f, "data");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}", "/replica_sync_s", "disk 'vol-");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":0}", "/replica_sync_s", "is needed");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":0}", "/replica_sync_s", "is needed");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":null}", "/replica_sync_s", "is needed");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":null}", "/replica_sync_s", "is needed");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":5,\"labels\":{\"x\":\"y\"}}");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null,\"replica_sync_s\":0}");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}");
    /* without the volume it is as any other */
    fixture_must(f, ROUTE_ID_volume_detach, "data", NULL);
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":0}", "/replica_sync_s", "is needed");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_sync_s\":0}");
}

static void what_the_other_host_cannot_reach_is_refused(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    volume_make(f, "data", "nas");
    volume_make(f, "near", "own");
    volume_make(f, "fast", "ssd");
    attached(f, "near");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}", "/replica_host", "host n2 has not pool 'own'");
    fixture_must(f, ROUTE_ID_volume_detach, "near", NULL);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}");
    refused(f, ROUTE_ID_volume_attach, "near", "{\"vm\":\"a\"}", "/vm", "which has not pool 'own'");
    refused(f, ROUTE_ID_volume_attach, "fast", "{\"vm\":\"a\"}", "/vm", "directories of single hosts");
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 0);
    refused(f, ROUTE_ID_volume_attach, "data", "{\"vm\":\"a\"}", "/vm", "which has not pool 'nas' (now)");
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 32 * GIB);
    attached(f, "data");
    refused(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}", "/replica_host", "host n3 has not pool 'nas'");
    refused(f, ROUTE_ID_volume_move, "data", "{\"pool\":\"own\"}", "", "take the replica away");
    refused(f, ROUTE_ID_volume_snapshot, "data", "{\"name\":\"s\"}", "", "take the replica away");
    refused(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n1\"]}", "/hosts", "which has the replica of VM 'a'");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    fixture_must(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n1\"]}");
}

/* A volume that goes from a VM which waits to be started elsewhere raises the VM's epoch; the replica has the other disks as they are. */
static void a_volume_that_goes_meanwhile_costs_no_replica(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    volume_make(f, "data", "nas");
    volume_make(f, "more", "nas");
    begin(f);
    attached(f, "data");
    attached(f, "more");
    in_sync(f, 1);
    uint64_t epoch = vm(f)->epoch;
    fixture_must(f, ROUTE_ID_volume_detach, "more", NULL); /* its host has not let go of it when it is lost */
    assert_int_equal(volume(f, "more")->state, volume_state_DETACHING);
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 0);
    fixture_lose(f, "n1");
    assert_int_equal(volume(f, "more")->state, volume_state_AVAILABLE);
    assert_true(vm(f)->recovering && vm(f)->epoch == epoch + 1);
    assert_true(vm(f)->replica.in_sync && replica_standby(f->state, vm(f)) != NULL);
    (void)tick_after(f, 1); /* without the pool it cannot be started */
    assert_true(vm(f)->recovering);
    fixture_must(f, ROUTE_ID_volume_detach, "data", NULL);
    assert_int_equal(volume(f, "data")->state, volume_state_AVAILABLE);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n2");
    assert_int_equal(vm(f)->epoch, epoch + 3);
    started_with(f, "n2", 2, 1, 0);
}

/* What older controllers refuse is refused unless it is said that it is meant: they end there, and go no other way. */
static void it_is_said_in_the_commands(void **test)
{
    struct fixture *f = *test;
    pools_make(f);
    volume_make(f, "data", "nas");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_sync_s\":3}");
    for (unsigned i = 0; i < 2; i++) {
        struct command_volume_attach command = {0};
        struct bytes_writer bytes = {0};
        OBJECT_TEXT(command_volume_attach, &command, id, volume(f, "data")->id);
        OBJECT_TEXT(command_volume_attach, &command, vm, vm(f)->id);
        if (i == 1)
            OBJECT_SET(command_volume_attach, &command, replica, true);
        OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
        object_mark(&command_volume_attach_desc, &command, "request");
        assert_int_equal(command_encode(COMMAND_volume_attach, &command, &bytes, NULL), 0);
        assert_int_equal(fixture_apply(f, &bytes), i == 0 ? -EBUSY : 0);
        bytes_writer_finish(&bytes);
        OBJECT_CLEAR(command_volume_attach, &command);
    }
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    for (unsigned i = 0; i < 2; i++) {
        struct command_put command = {0};
        OBJECT_TEXT(vm, &command.vm, id, vm(f)->id);
        OBJECT_TEXT(vm, &command.vm, replica_host, "n2");
        object_mark(&command_put_desc, &command, "vm");
        if (i == 1)
            OBJECT_SET(command_put, &command, replica_pools, true);
        assert_int_equal(fixture_apply_put(f, &command), i == 0 ? -EBUSY : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_in_sync_by_its_hosts_word_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(a_session_that_never_came_level_changes_no_point, setup, teardown),
        cmocka_unit_test_setup_teardown(an_agent_that_takes_it_for_a_point_is_told_of, setup, teardown),
        cmocka_unit_test_setup_teardown(points_know_of_no_sessions, setup, teardown),
        cmocka_unit_test_setup_teardown(started_is_from_one_in_sync, setup, teardown),
        cmocka_unit_test_setup_teardown(and_from_no_other_by_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lost_keeper_is_out_of_sync, setup, teardown),
        cmocka_unit_test_setup_teardown(a_host_that_is_back_first_is_let_go_on, setup, teardown),
        cmocka_unit_test_setup_teardown(a_session_that_is_not_wanted_is_ended, setup, teardown),
        cmocka_unit_test_setup_teardown(another_start_is_not_held, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_shared_is_opened_where_the_copy_is, setup, teardown),
        cmocka_unit_test_setup_teardown(the_vms_own_disk_may_be_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(points_have_no_part_in_what_is_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(what_the_other_host_cannot_reach_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_that_goes_meanwhile_costs_no_replica, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_said_in_the_commands, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
