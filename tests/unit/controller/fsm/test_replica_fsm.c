/* Replicas in the replicated state: when points are made, which of them stands in for the disks of a VM whose host is lost, what turns the
 * direction around, and what is refused. */
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

static const char *host_id(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_HOST, name)->common->id;
}

static const struct record *under_way(struct fixture *f)
{
    return replica_under_way(fixture_get(f, object_kind_VM, "a"));
}

/* The tick, @seconds later. */
static unsigned tick_after(struct fixture *f, unsigned seconds)
{
    f->now_ms += seconds * UINT64_C(1000);
    return fixture_reconcile(f, NULL);
}

static void point_ends(struct fixture *f, uint64_t number, const char *failure)
{
    const struct record *operation = under_way(f);
    assert_non_null(operation);
    struct node_report report = fixture_report(f, vm(f)->host_name, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation->common->id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, failure != NULL ? operation_state_FAILED : operation_state_SUCCEEDED);
    if (failure != NULL) {
        OBJECT_TEXT(task_seen, seen, error_text, failure);
    } else {
        OBJECT_TEXT(replica_result, &seen->replica, id, ID_A);
        OBJECT_SET(replica_result, &seen->replica, number, number);
        object_mark(&task_seen_desc, seen, "replica");
    }
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(under_way(f));
}

static void point_made(struct fixture *f, uint64_t number)
{
    assert_int_equal(tick_after(f, 60), 1);
    point_ends(f, number, NULL);
}

static struct node_orders orders_of(struct fixture *f, const char *host)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static size_t keeps(struct fixture *f, const char *host)
{
    struct node_orders orders = orders_of(f, host);
    assert_true(OBJECT_HAS(node_orders, &orders, replicas));
    size_t count = orders.replicas.count;
    OBJECT_CLEAR(node_orders, &orders);
    return count;
}

static void points_are_made_when_they_are_due(void **test)
{
    struct fixture *f = *test;
    assert_int_equal(tick_after(f, 60), 0);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_every_s\":30}");
    assert_int_equal(keeps(f, "n2"), 1);
    assert_int_equal(keeps(f, "n3"), 0);
    uint64_t revision = vm(f)->revision;
    assert_int_equal(tick_after(f, 0), 1);
    assert_string_equal(under_way(f)->operation->task.peer, host_id(f, "n2"));
    char at[TIME_TEXT_BYTES];
    snprintf(at, sizeof at, "%s", under_way(f)->operation->created_at);
    assert_int_equal(tick_after(f, 40), 0); /* one at a time */
    point_ends(f, 1, NULL);
    assert_int_equal(vm(f)->replica.number, 1);
    assert_string_equal(vm(f)->replica.at, at); /* of its beginning: it holds no less */
    assert_int_equal(vm(f)->revision, revision);
    assert_int_equal(tick_after(f, 0), 1); /* 40 s since the last one began */
    assert_string_equal(under_way(f)->operation->task.replica.id, ID_A); /* no replica that has less is taken at its word */
    assert_int_equal(under_way(f)->operation->task.replica.number, 1);
    point_ends(f, 2, NULL);
    assert_int_equal(tick_after(f, 20), 0);
    assert_int_equal(tick_after(f, 10), 1);
    point_ends(f, 0, "the disk is full");
    assert_string_equal(vm(f)->replica.failure, "host n1: the disk is full");
    assert_int_equal(vm(f)->replica.number, 2);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    assert_int_equal(tick_after(f, 60), 0);
}

/* The leader's clock was a year ahead, and is put right: points go on, and one that cannot be made is told of. */
static void points_go_on_when_the_clock_is_put_back(void **test)
{
    struct fixture *f = *test;
    const uint64_t year_ms = UINT64_C(31536000000);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_every_s\":30,\"replica_limit_s\":100}");
    f->now_ms += year_ms;
    tick_after(f, 0);
    point_ends(f, 1, NULL);
    f->now_ms -= year_ms;
    tick_after(f, 1);
    assert_non_null(under_way(f));
    assert_true(vm(f)->replica.late); /* nobody knows how old the last one is */
    assert_int_equal(tick_after(f, 1), 0);
    point_ends(f, 2, NULL);
    assert_false(vm(f)->replica.late);
    assert_int_equal(tick_after(f, 20), 0);
    assert_int_equal(tick_after(f, 10), 1);
    point_ends(f, 3, NULL);
}

static void one_that_is_too_old_is_late_once(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\",\"replica_every_s\":30,\"replica_limit_s\":100}");
    tick_after(f, 0);
    point_ends(f, 1, NULL);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(tick_after(f, 31), 1);
        point_ends(f, 0, "no");
    }
    assert_false(vm(f)->replica.late);
    assert_int_equal(tick_after(f, 31), 2); /* another try, and the word */
    assert_true(vm(f)->replica.late);
    point_ends(f, 0, "no");
    assert_int_equal(tick_after(f, 1), 0);
    assert_int_equal(tick_after(f, 30), 1);
    point_ends(f, 2, NULL);
    assert_false(vm(f)->replica.late);
    assert_null(vm(f)->replica.failure);
}

static void a_lost_vm_is_given_to_its_replica(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    fixture_lose(f, "n1");
    assert_true(vm(f)->recovering);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}"), -EBUSY);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n3"); /* n2 is as good, but for the disks */
    assert_int_equal(vm(f)->epoch, 2);
    assert_string_equal(vm(f)->replica_host, "n1"); /* the other way round from now on */
    assert_int_equal(vm(f)->replica.number, 0);
    struct node_orders orders = orders_of(f, "n3");
    const struct vm_order *order = orders.vms.items;
    assert_true(OBJECT_HAS(vm_order, order, replica));
    assert_string_equal(order->replica.id, ID_A);
    assert_int_equal(order->replica.number, 1);
    assert_int_equal(orders.replicas.count, 1); /* it is not to go before it is the VM's own */
    OBJECT_CLEAR(node_orders, &orders);
    /* lost again, without a point in the new direction: it waits for that host */
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_lose(f, "n3");
    assert_false(vm(f)->recovering);
    assert_int_equal(vm(f)->state, vm_state_FAILED);
    assert_non_null(strstr(vm(f)->state_reason, "no complete point"));
}

static struct node_orders orders_with_vm(struct fixture *f, const char *host, uint64_t epoch, enum vm_state state)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    struct vm_seen *seen = fixture_seen(&report, vm(f), state);
    OBJECT_SET(vm_seen, seen, epoch, epoch);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

/* Whether the replica is where it is looked for shows only there: the disks that the VM was on are kept until it runs from it. */
static void the_old_disks_stay_until_it_has_run_from_the_replica(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    fixture_lose(f, "n1");
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n3");
    struct node_report back = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &back), 1);
    struct node_orders orders = orders_with_vm(f, "n1", 1, vm_state_RUNNING);
    assert_int_equal(orders.forget.count, 0);
    assert_int_equal(orders.halt.count, 1); /* nor does it run */
    OBJECT_CLEAR(node_orders, &orders);
    orders = orders_with_vm(f, "n1", 1, vm_state_STOPPED);
    assert_int_equal(orders.forget.count + orders.halt.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_vm_is(f, "a", vm_state_FAILED); /* no replica there */
    orders = orders_with_vm(f, "n1", 1, vm_state_STOPPED);
    assert_int_equal(orders.forget.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    uint64_t told = state_host_orders_index(fixture_get(f, object_kind_HOST, "n1"));
    fixture_vm_is(f, "a", vm_state_RUNNING);
    orders = orders_with_vm(f, "n1", 1, vm_state_STOPPED);
    assert_int_equal(orders.forget.count, 1);
    assert_int_equal(orders.halt.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n1")) > told); /* at once */
}

static void a_point_of_another_run_stands_in_for_nothing(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    point_made(f, 1);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL); /* a backup may have been restored meanwhile */
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(vm(f)->epoch, 2);
    assert_null(replica_standby(f->state, vm(f)));
    fixture_lose(f, "n1");
    assert_false(vm(f)->recovering);
    assert_string_equal(vm(f)->host_name, "n1");
}

static void migrate_to(struct fixture *f, const char *to)
{
    char body[200], operation[STATE_ID_BYTES];
    snprintf(body, sizeof body, "{\"to\":\"%s\"}", to);
    fixture_must(f, ROUTE_ID_vm_migrate, "a", body);
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu}", vm(f)->host, operation,
             (unsigned long long)vm(f)->epoch);
    fixture_must(f, ROUTE_ID_node_handover, NULL, body);
    assert_string_equal(vm(f)->host_name, to);
}

static void a_migration_changes_nothing_on_the_disks(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    point_made(f, 1);
    migrate_to(f, "n3");
    assert_int_equal(vm(f)->replica.number, 1);
    assert_non_null(replica_standby(f->state, vm(f))); /* of the new epoch by now */
}

static void a_migration_to_the_replica_turns_it_around(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    point_made(f, 1);
    migrate_to(f, "n2");
    assert_string_equal(vm(f)->replica_host, "n1");
    assert_int_equal(vm(f)->replica.number, 0);
    assert_null(replica_standby(f->state, vm(f)));
    assert_int_equal(keeps(f, "n2"), 0);
    assert_int_equal(keeps(f, "n1"), 1);
}

static void hosts_have_a_few_at_a_time(void **test)
{
    struct fixture *f = *test;
    char name[8], body[200];
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    for (unsigned i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "v%u", i);
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n2\",\"disks\":"
                 "[{\"name\":\"root\",\"size_bytes\":1048576}]}", name);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
        fixture_vm_is(f, name, vm_state_RUNNING);
        assert_true(fixture_do(f, ROUTE_ID_vm_update, name, "{\"replica_host\":\"n3\"}") < 0);
        assert_non_null(strstr(f->error.text, "is pinned"));
    }
    for (unsigned i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "w%u", i);
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":"
                 "[{\"name\":\"root\",\"size_bytes\":1048576}]}", name);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
        fixture_vm_is(f, name, vm_state_RUNNING);
        snprintf(body, sizeof body, "{\"replica_host\":\"%s\"}", strcmp(fixture_vm(f, name)->host_name, "n3") == 0 ? "n1" : "n3");
        fixture_must(f, ROUTE_ID_vm_update, name, body);
    }
    assert_int_equal(tick_after(f, 1), 4); /* n3 has a part in all of them */
    assert_int_equal(tick_after(f, 1), 0);
    point_ends(f, 1, NULL);
    assert_int_equal(tick_after(f, 1), 1);
    assert_null(under_way(f)); /* one that has waited longer */
}

static void late_words_of_a_point_change_nothing(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    tick_after(f, 0);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_ends(f, 1, NULL); /* made for n2, which is to keep none any more */
    assert_int_equal(vm(f)->replica.number, 0);
    assert_int_equal(keeps(f, "n2"), 0);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    assert_false(OBJECT_HAS(vm, vm(f), replica));
    assert_int_equal(tick_after(f, 60), 0);
}

/* The failover was in the log of those that are lost; the host that has carried it out says so. */
static void a_failover_that_a_recovery_lost_is_followed(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    assert_int_equal(fixture_recover(f, 2, fixture_get(f, object_kind_CONTROLLER, "c1")->common->id), 0);
    struct node_report report = fixture_report(f, "n3", 8192);
    OBJECT_SET(node_report, &report, cluster_epoch, 2);
    struct vm_seen *seen = fixture_seen(&report, vm(f), vm_state_STARTING);
    OBJECT_SET(vm_seen, seen, epoch, vm(f)->epoch + 1);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(vm(f)->host_name, "n3");
    assert_string_equal(vm(f)->replica_host, "n1");
    assert_int_equal(vm(f)->replica_start.number, 1); /* it may not have taken the disks yet */
    assert_int_equal(vm(f)->replica.number, 0);
}

/* `drover vm start` has been asked for, and its host n1 is lost. */
static void starts_from_its_replica(struct fixture *f)
{
    assert_true(vm(f)->recovering);
    assert_int_equal(vm(f)->state, vm_state_PENDING);
    assert_int_equal(tick_after(f, 1), 1);
    assert_string_equal(vm(f)->host_name, "n3");
    assert_int_equal(vm(f)->epoch, 2);
    assert_string_equal(vm(f)->replica_start.id, ID_A);
    assert_int_equal(vm(f)->replica_start.number, 1);
    assert_string_equal(vm(f)->replica_host, "n1");
}

static void host_goes_down(struct fixture *f, const char *name)
{
    struct node_report report = fixture_report(f, name, 8192);
    OBJECT_SET(node_report, &report, going_down, true);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
}

/* Its disks are newer than the replica, so it waits for its host; but not if a person wants otherwise. */
static void one_that_waits_for_its_host_is_started_from_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    host_goes_down(f, "n1");
    assert_false(vm(f)->recovering);
    assert_non_null(strstr(vm(f)->state_reason, "starts it from its replica"));
    assert_int_equal(tick_after(f, 1), 0);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    starts_from_its_replica(f);
}

static void one_that_waits_and_is_not_placed_goes_on_at_its_host(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    host_goes_down(f, "n1");
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    struct node_report back = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &back), 1);
    assert_false(vm(f)->recovering);
    assert_int_equal(vm(f)->state, vm_state_STARTING);
    assert_string_equal(vm(f)->host_name, "n1");
    assert_non_null(replica_standby(f->state, vm(f)));
}

static void one_that_was_given_up_is_started_from_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\",\"ha_restarts_max\":0}");
    point_made(f, 1);
    fixture_lose(f, "n1");
    assert_int_equal(tick_after(f, 1), 1);
    assert_int_equal(vm(f)->state, vm_state_FAILED);
    assert_false(vm(f)->recovering);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"ha_restarts_max\":1}");
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    starts_from_its_replica(f);
}

static void one_that_was_stopped_is_started_from_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n3\"}");
    point_made(f, 1);
    fixture_lose(f, "n1");
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    assert_int_equal(vm(f)->state, vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    starts_from_its_replica(f);
}

static void refused(struct fixture *f, const char *body, const char *why)
{
    assert_true(fixture_do(f, ROUTE_ID_vm_update, "a", body) < 0);
    if (strstr(f->error.text, why) == NULL)
        fail_msg("%s", f->error.text);
}

static void what_cannot_be_is_refused(void **test)
{
    struct fixture *f = *test;
    refused(f, "{\"replica_host\":\"n9\"}", "there is no host");
    refused(f, "{\"replica_host\":\"n1\"}", "name another one");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"bare\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    assert_true(fixture_do(f, ROUTE_ID_vm_update, "bare", "{\"replica_host\":\"n3\"}") < 0);
    assert_non_null(strstr(f->error.text, fixture_vm(f, "bare")->host != NULL ? "nothing to copy" : "waits for a host"));
    assert_true(fixture_do(f, ROUTE_ID_vm_create, NULL,
                           "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"replica_host\":\"n2\"}") < 0);
    assert_non_null(strstr(f->error.text, "has a host already"));
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    assert_true(fixture_do(f, ROUTE_ID_host_remove, "n2", NULL) < 0);
    assert_non_null(strstr(f->error.text, "VM 'a' uses it"));
    assert_true(fixture_do(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}") < 0);
    assert_non_null(strstr(f->error.text, "replica"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(points_are_made_when_they_are_due, setup, teardown),
        cmocka_unit_test_setup_teardown(points_go_on_when_the_clock_is_put_back, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_too_old_is_late_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lost_vm_is_given_to_its_replica, setup, teardown),
        cmocka_unit_test_setup_teardown(the_old_disks_stay_until_it_has_run_from_the_replica, setup, teardown),
        cmocka_unit_test_setup_teardown(a_point_of_another_run_stands_in_for_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_migration_changes_nothing_on_the_disks, setup, teardown),
        cmocka_unit_test_setup_teardown(a_migration_to_the_replica_turns_it_around, setup, teardown),
        cmocka_unit_test_setup_teardown(hosts_have_a_few_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(late_words_of_a_point_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failover_that_a_recovery_lost_is_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_waits_for_its_host_is_started_from_it, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_waits_and_is_not_placed_goes_on_at_its_host, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_was_given_up_is_started_from_it, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_was_stopped_is_started_from_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
