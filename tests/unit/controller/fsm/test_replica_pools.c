/* Replicas of disks in pools of kind dir, in the replicated state: to whom they are given, what hosts are told of them, and that no agent or
 * controller which knows nothing of them has a part in one. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/replica_state.h"

#define ID_A "0123456789abcdef0123456789abcdef"
#define GIB (UINT64_C(1) << 30)

static int setup(void **test)
{
    static const char *const hosts[] = {"n1", "n2", "n3"};
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++)
        fixture_host(f, hosts[i], 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    for (unsigned i = 0; i < 2; i++) {
        fixture_say_pool(f, hosts[i], "ssd", 64 * GIB, 32 * GIB);
        fixture_say_pool(f, hosts[i], "nas", 64 * GIB, 32 * GIB);
    }
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

/* @more: what its disks are besides the first, in the pool. */
static void vm_make(struct fixture *f, const char *more)
{
    char body[400];
    snprintf(body, sizeof body,
             "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"ssd\"}%s]}",
             more);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_true(vm(f)->disks_made);
}

static const char *other(struct fixture *f)
{
    return strcmp(vm(f)->host_name, "n1") == 0 ? "n2" : "n1";
}

static void give(struct fixture *f, const char *more)
{
    char body[200];
    snprintf(body, sizeof body, "{\"replica_host\":\"%s\"%s}", other(f), more);
    fixture_must(f, ROUTE_ID_vm_update, "a", body);
}

static void refused(struct fixture *f, const char *host, const char *field, const char *words)
{
    char body[200];
    snprintf(body, sizeof body, "{\"replica_host\":\"%s\"}", host);
    assert_true(fixture_do(f, ROUTE_ID_vm_update, "a", body) < 0);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

static const struct record *begins(struct fixture *f)
{
    f->now_ms += 60000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    const struct record *operation = replica_under_way(fixture_get(f, object_kind_VM, "a"));
    assert_non_null(operation);
    return operation;
}

/* A host's word of the task @id: it @knows of such replicas, and is at work or done. */
static void host_says(struct fixture *f, const char *host, const char *id, bool knows, enum task_role role, enum operation_state state)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_SET(node_report, &report, replica_pools, knows);
    OBJECT_TEXT(task_seen, seen, id, id);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_SET(task_seen, seen, ready, true);
    OBJECT_TEXT(replica_result, &seen->replica, id, ID_A);
    OBJECT_SET(replica_result, &seen->replica, number, 1);
    object_mark(&task_seen_desc, seen, "replica");
    OBJECT_TEXT(task_seen, seen, endpoint, "192.0.2.2:1");
    (void)fixture_send(f, &report);
}

/* How many places of a replica's @host is told of; -1: it is told of no task. */
static int told(struct fixture *f, const char *host, bool knows)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    int places = -1;
    OBJECT_SET(node_report, &report, replica_pools, knows);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct task_order *order = orders.tasks.items;
    if (orders.tasks.count > 0) {
        places = (int)order->replica_places.count;
        const struct replica_place *place = order->replica_places.items;
        assert_true(order->task.in_pools);
        if (places > 0) {
            assert_string_equal(place->disk, "root");
            assert_string_equal(place->pool.path, "/srv/ssd");
            assert_string_equal(place->pool.mark, host);
            assert_false(place->pool.make);
        }
    }
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
    return places;
}

static void a_point_is_made(struct fixture *f)
{
    CLEANUP_FREE char *id = xstrdup(begins(f)->common->id);
    host_says(f, vm(f)->host_name, id, true, task_role_MAIN, operation_state_SUCCEEDED);
    assert_int_equal(vm(f)->replica.number, 1);
}

static void its_keeper_is_told_where_they_are(void **test)
{
    struct fixture *f = *test;
    vm_make(f, ",{\"name\":\"data\",\"size_bytes\":1048576}");
    refused(f, "n3", "/replica_host", "has not pool 'ssd'");
    give(f, "");
    assert_true(vm(f)->replica.in_pools);
    (void)begins(f);
    assert_int_equal(told(f, other(f), true), 1);
    assert_int_equal(told(f, vm(f)->host_name, true), 0);
    struct state *copy = state_create();
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(copy, bytes.data, bytes.size, NULL), 0);
    fixture_same_bytes(f->state, copy);
    bytes_writer_finish(&bytes);
    state_destroy(copy);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    assert_false(vm(f)->replica.in_pools);
}

static void it_is_started_where_its_copy_is(void **test)
{
    struct fixture *f = *test;
    vm_make(f, "");
    give(f, "");
    CLEANUP_FREE char *old = xstrdup(vm(f)->host_name), *keeper = xstrdup(other(f));
    a_point_is_made(f);
    assert_true(fixture_do(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n1\"]}") < 0);
    fixture_lose(f, old);
    assert_true(vm(f)->recovering);
    fixture_say_pool(f, keeper, "ssd", 64 * GIB, 0);
    assert_int_equal(fixture_reconcile(f, NULL), 1); /* it is said why it waits: its pool is away there */
    assert_true(vm(f)->recovering);
    fixture_say_pool(f, keeper, "ssd", 64 * GIB, 32 * GIB);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(vm(f)->host_name, keeper);
    assert_string_equal(vm(f)->replica_host, old);
    assert_true(vm(f)->replica.in_pools); /* the other way round, of the same disks */
    struct node_report report = fixture_report(f, keeper, 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct vm_order *order = orders.vms.items;
    const struct pool_order *pool = order->pools.items;
    assert_int_equal(order->replica.number, 1);
    assert_int_equal(order->pools.count, 1);
    assert_string_equal(pool->mark, keeper);
    assert_true(order->disks_made);
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
}

/* Either host's agent is of an older version: it is told nothing, its words do not count, and it is said whose it is. */
static void an_agent_that_does_not_know_has_no_part(void **test)
{
    struct fixture *f = *test;
    vm_make(f, "");
    give(f, "");
    CLEANUP_FREE char *first = xstrdup(begins(f)->common->id);
    assert_int_equal(told(f, other(f), false), -1);
    host_says(f, other(f), first, false, task_role_PEER, operation_state_RUNNING);
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, first)->operation;
    assert_false(operation->task.peer_ready);
    assert_non_null(strstr(operation->task.peer_error, "replica's host is of an older version"));
    assert_int_equal(told(f, vm(f)->host_name, false), -1);
    host_says(f, vm(f)->host_name, first, false, task_role_MAIN, operation_state_SUCCEEDED);
    assert_int_equal(vm(f)->replica.number, 0);
    assert_null(replica_under_way(fixture_get(f, object_kind_VM, "a")));
    assert_non_null(strstr(vm(f)->replica.failure, "VM's host is of an older version"));
    fixture_lose(f, vm(f)->host_name);
    assert_false(vm(f)->recovering);
}

/* Others have any agent. */
static void what_is_in_directories_alone_needs_no_word(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    give(f, "");
    assert_false(vm(f)->replica.in_pools);
    const struct record *operation = begins(f);
    assert_false(operation->operation->task.in_pools);
    host_says(f, vm(f)->host_name, operation->common->id, false, task_role_MAIN, operation_state_SUCCEEDED);
    assert_int_equal(vm(f)->replica.number, 1);
}

/* Points of copies beside what is shared are of two moments, wherever the copies are. */
static void beside_shared_ones_it_has_to_be_in_sync(void **test)
{
    struct fixture *f = *test;
    vm_make(f, ",{\"name\":\"data\",\"size_bytes\":1048576,\"pool\":\"nas\"}");
    refused(f, other(f), "/replica_sync_s", "disk 'data' of VM 'a' is in pool 'nas'");
    give(f, ",\"replica_sync_s\":3");
    (void)begins(f);
    assert_int_equal(told(f, other(f), true), 1);
}

/* Host n3 has @name's directory of the pool. */
static void doubled(struct fixture *f, const char *name)
{
    fixture_must(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n1\",\"n2\",\"n3\"]}");
    struct node_report report = fixture_report(f, "n3", 8192);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, fixture_get(f, object_kind_POOL, "ssd")->common->id);
    OBJECT_SET(pool_seen, seen, present, true);
    OBJECT_TEXT(pool_seen, seen, mark, name);
    OBJECT_SET(pool_seen, seen, size_bytes, 64 * GIB);
    OBJECT_SET(pool_seen, seen, free_bytes, 32 * GIB);
    (void)fixture_send(f, &report);
}

/* It would be started from what another host may remove. */
static void nor_is_it_started_from_one(void **test)
{
    struct fixture *f = *test;
    vm_make(f, "");
    give(f, "");
    a_point_is_made(f);
    assert_true(replica_is_good(f->state, vm(f)));
    doubled(f, other(f));
    assert_false(replica_is_good(f->state, vm(f)));
    fixture_lose(f, vm(f)->host_name);
    assert_false(vm(f)->recovering);
}

static void what_would_be_no_copy_is_refused(void **test)
{
    struct fixture *f = *test;
    vm_make(f, ",{\"name\":\"tools\",\"size_bytes\":1048576,\"pool\":\"ssd\",\"read_only\":true}");
    refused(f, other(f), "/replica_host", "is only read and in pool 'ssd'");
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    /* one directory on two hosts */
    doubled(f, "n1");
    vm_make(f, "");
    refused(f, strcmp(vm(f)->host_name, "n1") == 0 ? "n3" : "n1", "/replica_host", "the same directory as another host");
}

/* What older controllers would not apply alike they stop at. */
static void it_is_said_in_the_command(void **test)
{
    struct fixture *f = *test;
    vm_make(f, "");
    for (unsigned i = 0; i < 2; i++) {
        struct command_put command = {0};
        OBJECT_TEXT(vm, &command.vm, id, vm(f)->id);
        OBJECT_TEXT(vm, &command.vm, replica_host, other(f));
        object_mark(&command_put_desc, &command, "vm");
        OBJECT_SET(command_put, &command, replica_pools, true);
        if (i == 1)
            OBJECT_SET(command_put, &command, replica_dirs, true);
        assert_int_equal(fixture_apply_put(f, &command), i == 0 ? -EBUSY : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(its_keeper_is_told_where_they_are, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_started_where_its_copy_is, setup, teardown),
        cmocka_unit_test_setup_teardown(an_agent_that_does_not_know_has_no_part, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_in_directories_alone_needs_no_word, setup, teardown),
        cmocka_unit_test_setup_teardown(beside_shared_ones_it_has_to_be_in_sync, setup, teardown),
        cmocka_unit_test_setup_teardown(what_would_be_no_copy_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(nor_is_it_started_from_one, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_said_in_the_command, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
