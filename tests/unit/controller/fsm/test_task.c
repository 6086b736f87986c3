/* Operations that hosts carry out: orders out, reports in, cancelling, what ends them; snapshots as their objects. */
#include "tests/unit/controller/fsm_fixture.h"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    f->twin = NULL;
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static struct node_orders orders_of(struct fixture *f, const char *host)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static struct task_seen *seen_in(struct node_report *report, const char *operation, enum task_role role,
                                 enum operation_state state)
{
    struct task_seen *seen = OBJECT_ADD(node_report, report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, state);
    return seen;
}

/* The host says of the last operation that it stands so. 1: that was news. */
static int host_says(struct fixture *f, const char *host, enum operation_state state, const char *error)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = seen_in(&report, f->decision.operation_id, task_role_MAIN, state);
    if (error != NULL)
        OBJECT_TEXT(task_seen, seen, error_text, error);
    if (state == operation_state_SUCCEEDED) {
        struct snapshot_disk *disk = OBJECT_ADD(snapshot_result, &seen->snapshot, disks);
        OBJECT_TEXT(snapshot_disk, disk, name, "root");
        OBJECT_SET(snapshot_disk, disk, size_bytes, 1048576);
        OBJECT_SET(snapshot_result, &seen->snapshot, consistency, snapshot_consistency_FILESYSTEM);
        OBJECT_SET(snapshot_result, &seen->snapshot, pause_us, 1234);
        object_mark(&task_seen_desc, seen, "snapshot");
    }
    return fixture_send(f, &report);
}

static const struct snapshot *snapshot_of(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_SNAPSHOT, name)->snapshot;
}

static void make(struct fixture *f, const char *name)
{
    char body[100];
    snprintf(body, sizeof body, "{\"name\":\"%s\"}", name);
    fixture_must(f, ROUTE_ID_snapshot_create, "a", body);
    assert_int_equal(host_says(f, "n1", operation_state_SUCCEEDED, NULL), 1);
}

static void a_task_goes_its_way(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\",\"labels\":{\"k\":\"v\"},\"freeze\":false}");
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_CREATING);
    assert_string_equal(string_map_get(&snapshot_of(f, "s")->labels, "k"), "v");
    assert_string_equal(fixture_operation(f)->step, "waiting for host n1");
    struct node_orders orders = orders_of(f, "n1");
    assert_int_equal(orders.tasks.count, 1);
    const struct task_order *order = orders.tasks.items;
    assert_string_equal(order->id, f->decision.operation_id);
    assert_int_equal(order->role, task_role_MAIN);
    assert_int_equal(order->task.kind, task_kind_SNAPSHOT_CREATE);
    assert_true(OBJECT_HAS(task_snapshot, &order->task.snapshot, freeze) && !order->task.snapshot.freeze);
    OBJECT_CLEAR(node_orders, &orders);

    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = seen_in(&report, f->decision.operation_id, task_role_MAIN, operation_state_RUNNING);
    OBJECT_TEXT(task_seen, seen, step, "copying");
    OBJECT_SET(task_seen, seen, progress_done, 5);
    OBJECT_SET(task_seen, seen, progress_total, 1000);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(fixture_operation(f)->step, "copying");
    report = fixture_report(f, "n1", 8192);
    seen = seen_in(&report, f->decision.operation_id, task_role_MAIN, operation_state_RUNNING);
    OBJECT_TEXT(task_seen, seen, step, "copying");
    OBJECT_SET(task_seen, seen, progress_done, 7); /* the same tenth: not worth a command */
    OBJECT_SET(task_seen, seen, progress_total, 1000);
    assert_int_equal(fixture_send(f, &report), 0);

    assert_int_equal(host_says(f, "n1", operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_false(OBJECT_HAS(task, &fixture_operation(f)->task, snapshot)); /* the arguments are not kept */
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_AVAILABLE);
    assert_int_equal(snapshot_of(f, "s")->pause_us, 1234);
    assert_int_equal(snapshot_of(f, "s")->disks.count, 1);
    assert_int_equal(host_says(f, "n1", operation_state_SUCCEEDED, NULL), 0); /* said twice */
    orders = orders_of(f, "n1");
    assert_int_equal(orders.tasks.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
}

/* The long poll wakes when a task begins, when it is to end, and when it has ended. */
static void orders_change_with_tasks(void **test)
{
    struct fixture *f = *test;
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, have_index, state_index(f->state));
    assert_true(node_sync_may_wait(f->state, &report));
    fixture_must(f, ROUTE_ID_snapshot_create, "a", NULL);
    char first[STATE_ID_BYTES];
    snprintf(first, sizeof first, "%s", f->decision.operation_id);
    assert_false(node_sync_may_wait(f->state, &report));
    OBJECT_SET(node_report, &report, have_index, state_index(f->state));
    assert_true(node_sync_may_wait(f->state, &report));
    fixture_must(f, ROUTE_ID_operation_cancel, first, NULL);
    assert_false(node_sync_may_wait(f->state, &report));
    OBJECT_SET(node_report, &report, have_index, state_index(f->state));
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", first);
    host_says(f, "n1", operation_state_CANCELLED, "cancelled");
    assert_false(node_sync_may_wait(f->state, &report));
    OBJECT_CLEAR(node_report, &report);
}

static void cancelling_is_the_hosts_word(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}");
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_operation_cancel, id, NULL);
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, id)->operation;
    assert_int_equal(operation->state, operation_state_RUNNING);
    assert_true(operation->cancel_asked);
    struct node_orders orders = orders_of(f, "n1");
    assert_true(((const struct task_order *)orders.tasks.items)->cancel);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_must(f, ROUTE_ID_operation_cancel, id, NULL); /* once more: the same */
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", id);
    assert_int_equal(host_says(f, "n1", operation_state_CANCELLED, "cancelled before anything was done"), 1);
    operation = fixture_get(f, object_kind_OPERATION, id)->operation;
    assert_int_equal(operation->state, operation_state_CANCELLED);
    assert_null(state_get(f->state, object_kind_SNAPSHOT, "s"));
}

static void a_stop_leaves_tasks_alone(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}");
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, id)->operation->state, operation_state_RUNNING);
    assert_string_equal(fixture_get(f, object_kind_OPERATION, id)->operation->step, "waiting for host n1");
}

static void a_vm_takes_its_tasks_and_snapshots_with_it(void **test)
{
    struct fixture *f = *test;
    make(f, "s");
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"t\"}");
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    assert_true(fixture_get(f, object_kind_OPERATION, id)->operation->cancel_asked);
    assert_true(fixture_do(f, ROUTE_ID_snapshot_create, "a", NULL) < 0);
    fixture_vm_is(f, "a", vm_state_DELETED);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, id)->operation->state, operation_state_FAILED);
    assert_int_equal(state_count(f->state, object_kind_SNAPSHOT), 0);
}

/* A task of two hosts; the kinds with one take a second one as well. */
static void begin_with_peer(struct fixture *f)
{
    struct command_task command = {0};
    struct bytes_writer bytes = {0};
    struct operation *operation = &command.operation;
    const struct vm *vm = fixture_vm(f, "a");
    char id[STATE_ID_BYTES], snapshot[STATE_ID_BYTES];
    fixture_uuid(f, id);
    fixture_uuid(f, snapshot);
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    OBJECT_TEXT(operation, operation, id, id);
    OBJECT_SET(operation, operation, kind, operation_kind_SNAPSHOT_CREATE);
    OBJECT_SET(operation, operation, target_kind, object_kind_SNAPSHOT);
    OBJECT_TEXT(operation, operation, target_id, snapshot);
    OBJECT_TEXT(operation, operation, target_name, "two");
    OBJECT_SET(task, &operation->task, kind, task_kind_SNAPSHOT_CREATE);
    OBJECT_TEXT(task, &operation->task, host, vm->host);
    OBJECT_TEXT(task, &operation->task, peer, fixture_get(f, object_kind_HOST, "n2")->common->id);
    OBJECT_TEXT(task, &operation->task, vm, vm->id);
    OBJECT_SET(task, &operation->task, epoch, vm->epoch);
    OBJECT_TEXT(task_snapshot, &operation->task.snapshot, id, snapshot);
    OBJECT_TEXT(task_snapshot, &operation->task.snapshot, name, "two");
    object_mark(&task_desc, &operation->task, "snapshot");
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, &command, "request");
    object_mark(&command_task_desc, &command, "operation");
    assert_int_equal(command_encode(COMMAND_task, &command, &bytes, NULL), 0);
    OBJECT_CLEAR(command_task, &command);
    assert_int_equal(fixture_apply(f, &bytes), 0);
    bytes_writer_finish(&bytes);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", id);
}

static void peer_says(struct fixture *f, enum operation_state state, const char *endpoint, const char *error)
{
    struct node_report report = fixture_report(f, "n2", 8192);
    struct task_seen *seen = seen_in(&report, f->decision.operation_id, task_role_PEER, state);
    if (endpoint != NULL) {
        OBJECT_SET(task_seen, seen, ready, true);
        OBJECT_TEXT(task_seen, seen, endpoint, endpoint);
    }
    if (error != NULL)
        OBJECT_TEXT(task_seen, seen, error_text, error);
    fixture_send(f, &report);
}

static void two_hosts_carry_one_out(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    begin_with_peer(f);
    struct node_orders orders = orders_of(f, "n2");
    assert_int_equal(orders.tasks.count, 1);
    assert_int_equal(((const struct task_order *)orders.tasks.items)->role, task_role_PEER);
    OBJECT_CLEAR(node_orders, &orders);
    struct node_report waiting = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &waiting, have_index, state_index(f->state));
    peer_says(f, operation_state_RUNNING, "192.0.2.2:7446", NULL);
    assert_false(node_sync_may_wait(f->state, &waiting)); /* the main host hears of it */
    OBJECT_CLEAR(node_report, &waiting);
    orders = orders_of(f, "n1");
    const struct task *task = &((const struct task_order *)orders.tasks.items)->task;
    assert_true(task->peer_ready);
    assert_string_equal(task->peer_endpoint, "192.0.2.2:7446");
    OBJECT_CLEAR(node_orders, &orders);
    peer_says(f, operation_state_FAILED, NULL, "no room");
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING); /* the main host has the last word */
    assert_string_equal(fixture_operation(f)->task.peer_error, "host n2: no room");
    assert_false(fixture_operation(f)->task.peer_ready);
    peer_says(f, operation_state_SUCCEEDED, NULL, NULL); /* a peer does not end it */
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    assert_int_equal(host_says(f, "n1", operation_state_FAILED, "the other side has no room"), 1);
    assert_int_equal(fixture_operation(f)->state, operation_state_FAILED);
    assert_string_equal(fixture_operation(f)->error_text, "host n1: the other side has no room");
    orders = orders_of(f, "n2");
    assert_int_equal(orders.tasks.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
}

static void a_removed_host_fails_its_tasks(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    begin_with_peer(f);
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_host_remove, "n2", NULL);
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, id)->operation;
    assert_int_equal(operation->state, operation_state_FAILED);
    assert_string_equal(operation->error_code, "host-lost");
    assert_null(state_get(f->state, object_kind_SNAPSHOT, "two"));
}

/* Another host's word, or of an operation without a task, changes nothing. */
static void only_its_host_is_believed(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}");
    assert_int_equal(host_says(f, "n2", operation_state_SUCCEEDED, NULL), 0);
    struct node_report report = fixture_report(f, "n1", 8192);
    seen_in(&report, f->decision.operation_id, task_role_PEER, operation_state_FAILED);
    assert_int_equal(fixture_send(f, &report), 0);
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    assert_int_equal(host_says(f, "n1", operation_state_SUCCEEDED, NULL), 0);
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
}

static void snapshots_live_and_go(void **test)
{
    struct fixture *f = *test;
    make(f, "s");
    make(f, "t");
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}"), -EEXIST);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_revert, "s", NULL), -EBUSY); /* it runs */
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_create, "a", "{\"ram\":true}"), -EINVAL); /* it is off */
    assert_string_equal(f->error.field, "/ram");
    fixture_must(f, ROUTE_ID_snapshot_revert, "s", NULL);
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_REVERTING);
    char revert[STATE_ID_BYTES];
    snprintf(revert, sizeof revert, "%s", f->decision.operation_id);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_delete, "t", NULL), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_create, "a", NULL), -EBUSY);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", revert);
    host_says(f, "n1", operation_state_FAILED, "disk full");
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_AVAILABLE);
    assert_string_equal(snapshot_of(f, "s")->state_reason, "host n1: disk full");
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_DELETING);
    host_says(f, "n1", operation_state_FAILED, "disk full");
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_FAILED);
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL); /* again */
    host_says(f, "n1", operation_state_SUCCEEDED, NULL);
    assert_null(state_get(f->state, object_kind_SNAPSHOT, "s"));
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"name\":\"b\"}");
    assert_string_equal(snapshot_of(f, "t")->vm_name, "b");
    fixture_must(f, ROUTE_ID_snapshot_update, "t", "{\"name\":\"u\"}");
    assert_string_equal(snapshot_of(f, "u")->vm_name, "b");
}

/* What the host said, with memory or without; the task that it was given, in @ret. */
static void host_ends(struct fixture *f, enum snapshot_consistency consistency, bool resumes, struct task_snapshot *ret)
{
    struct node_orders orders = orders_of(f, "n1");
    assert_int_equal(orders.tasks.count, 1);
    OBJECT_COPY(task_snapshot, ret, &((const struct task_order *)orders.tasks.items)->task.snapshot);
    OBJECT_CLEAR(node_orders, &orders);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = seen_in(&report, f->decision.operation_id, task_role_MAIN, operation_state_SUCCEEDED);
    OBJECT_SET(snapshot_result, &seen->snapshot, consistency, consistency);
    if (consistency == snapshot_consistency_MEMORY)
        OBJECT_SET(snapshot_result, &seen->snapshot, ram_bytes, 4096);
    if (resumes)
        OBJECT_SET(snapshot_result, &seen->snapshot, resumes, true);
    object_mark(&task_seen_desc, seen, "snapshot");
    assert_int_equal(fixture_send(f, &report), 1);
}

static void with_memory(void **test)
{
    struct fixture *f = *test;
    struct task_snapshot given = {.id = NULL};
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_create, "a", "{\"ram\":true,\"freeze\":true}"), -EINVAL);
    assert_string_equal(f->error.field, "/freeze");
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"m\",\"ram\":true,\"freeze\":false}");
    host_ends(f, snapshot_consistency_MEMORY, false, &given);
    assert_true(given.ram && given.memory);
    OBJECT_CLEAR(task_snapshot, &given);
    assert_int_equal(snapshot_of(f, "m")->consistency, snapshot_consistency_MEMORY);
    assert_int_equal(snapshot_of(f, "m")->ram_bytes, 4096);
    assert_null(snapshot_of(f, "m")->state_reason);
    /* a host with an older agent keeps the disks alone: never silently */
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"d\",\"ram\":true}");
    host_ends(f, snapshot_consistency_CRASH, false, &given);
    OBJECT_CLEAR(task_snapshot, &given);
    assert_int_equal(snapshot_of(f, "d")->state, snapshot_state_AVAILABLE);
    assert_non_null(strstr(snapshot_of(f, "d")->state_reason, "without memory"));
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    static const struct {
        const char *snapshot, *body;
        bool ram;
    } reverts[] = {{"m", NULL, true}, {"m", "{}", true}, {"m", "{\"disks_only\":false}", true}, {"m", "{\"disks_only\":true}", false},
                   {"d", NULL, false}, {"d", "{\"disks_only\":true}", false}};
    for (size_t i = 0; i < ARRAY_SIZE(reverts); i++) {
        fixture_must(f, ROUTE_ID_snapshot_revert, reverts[i].snapshot, reverts[i].body);
        host_ends(f, snapshot_consistency_MEMORY, reverts[i].ram, &given);
        assert_int_equal(given.memory, reverts[i].ram);
        assert_null(snapshot_of(f, reverts[i].snapshot)->state_reason);
        OBJECT_CLEAR(task_snapshot, &given);
        assert_int_equal(snapshot_of(f, reverts[i].snapshot)->state, snapshot_state_AVAILABLE);
    }
    assert_int_equal(snapshot_of(f, "d")->consistency, snapshot_consistency_CRASH); /* a revert changes nothing of it */
    fixture_must(f, ROUTE_ID_snapshot_revert, "m", NULL); /* an older agent again */
    host_ends(f, snapshot_consistency_MEMORY, false, &given);
    OBJECT_CLEAR(task_snapshot, &given);
    assert_non_null(strstr(snapshot_of(f, "m")->state_reason, "boots from the disks"));
}

static void a_snapshot_gets_a_name(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_snapshot_create, "a", NULL);
    host_says(f, "n1", operation_state_SUCCEEDED, NULL);
    assert_string_equal(state_at(f->state, object_kind_SNAPSHOT, 0)->common->name, "a-20260131-120000");
    fixture_must(f, ROUTE_ID_snapshot_create, "a", NULL);
    host_says(f, "n1", operation_state_SUCCEEDED, NULL);
    assert_string_equal(state_at(f->state, object_kind_SNAPSHOT, 1)->common->name, "a-20260131-120000-2");
}

/* State with tasks and snapshots survives the Raft snapshot byte for byte. */
static void it_is_all_in_the_states_snapshot(void **test)
{
    struct fixture *f = *test;
    struct state *other = NULL;
    fixture_host(f, "n2", 8192);
    make(f, "s");
    begin_with_peer(f);
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &other, NULL), 0);
    bytes_writer_finish(&bytes);
    fixture_same_bytes(f->state, other);
    assert_int_equal(check_state(other, NULL), 0);
    assert_int_equal(state_get(other, object_kind_HOST, "n2")->of_host.tasks.count, 1);
    state_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_task_goes_its_way, setup, teardown),
        cmocka_unit_test_setup_teardown(orders_change_with_tasks, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelling_is_the_hosts_word, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stop_leaves_tasks_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_takes_its_tasks_and_snapshots_with_it, setup, teardown),
        cmocka_unit_test_setup_teardown(two_hosts_carry_one_out, setup, teardown),
        cmocka_unit_test_setup_teardown(a_removed_host_fails_its_tasks, setup, teardown),
        cmocka_unit_test_setup_teardown(only_its_host_is_believed, setup, teardown),
        cmocka_unit_test_setup_teardown(snapshots_live_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(with_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(a_snapshot_gets_a_name, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_all_in_the_states_snapshot, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
