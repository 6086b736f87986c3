/* Hosts that are shut down in order: what becomes of their VMs by the cluster's policy, who starts them, and where they are not
 * started. */
#include "tests/unit/controller/fsm_fixture.h"

static void create(struct fixture *f, const char *name, const char *more)
{
    char body[300];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912%s}", name, more);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_vm_is(f, name, vm_state_RUNNING);
}

/* All VMs are on n1. */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 8192);
    create(f, "web", ",\"ha\":true");
    create(f, "data", ",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]");
    create(f, "plain", "");
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

static const struct host *host(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_HOST, name)->host;
}

static void goes_down(struct fixture *f, const char *name)
{
    struct node_report report = fixture_report(f, name, 8192);
    OBJECT_SET(node_report, &report, going_down, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_true(host(f, name)->going_down);
    assert_int_equal(host(f, name)->state, host_state_UP);
}

static void leaves(struct fixture *f, const char *name)
{
    struct node_report report = fixture_report(f, name, 8192);
    OBJECT_SET(node_report, &report, going_down, true);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(host(f, name)->state, host_state_LOST);
}

/* It boots: the report that clears it, and the one that says how it is. */
static void is_back(struct fixture *f, const char *name)
{
    for (unsigned i = 0; i < 2; i++) {
        struct node_report report = fixture_report(f, name, 8192);
        OBJECT_TEXT(node_report, &report, boot_id, "boot-2");
        assert_int_equal(fixture_send(f, &report), 1);
    }
    assert_int_equal(host(f, name)->state, host_state_UP);
    assert_false(host(f, name)->going_down);
}

static void policy(struct fixture *f, const char *word)
{
    char body[100];
    snprintf(body, sizeof body, "{\"shutdown_policy\":\"%s\"}", word);
    fixture_must(f, ROUTE_ID_cluster_update, NULL, body);
}

static void waits(struct fixture *f, const char *name, const char *reason)
{
    const struct vm *vm = fixture_vm(f, name);
    assert_false(vm->recovering);
    assert_int_equal(vm->state, vm_state_PENDING);
    assert_string_equal(vm->host_name, "n1");
    if (strstr(vm->state_reason, reason) == NULL)
        fail_msg("%s: %s", name, vm->state_reason);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, name)->host_name, "n1");
}

/* ---- restart ---- */

static void those_with_ha_are_started_elsewhere(void **test)
{
    struct fixture *f = *test;
    goes_down(f, "n1");
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_RUNNING);
    leaves(f, "n1");
    assert_true(fixture_vm(f, "web")->recovering);
    fixture_reconcile(f, NULL);
    assert_string_not_equal(fixture_vm(f, "web")->host_name, "n1");
    waits(f, "data", "its host n1 was shut down: it goes on there when that is back");
    waits(f, "plain", "its host n1 was shut down");
    is_back(f, "n1");
    assert_string_not_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "data")->state, vm_state_STARTING);
    assert_int_equal(fixture_vm(f, "plain")->state, vm_state_STARTING);
    fixture_vm_is(f, "plain", vm_state_RUNNING);
    assert_null(fixture_vm(f, "plain")->state_reason);
}

static void one_that_says_so_only_at_its_end(void **test)
{
    struct fixture *f = *test;
    leaves(f, "n1"); /* no report before that had arrived */
    assert_true(host(f, "n1")->going_down);
    assert_true(fixture_vm(f, "web")->recovering);
    waits(f, "plain", "its host n1 was shut down");
}

static void nothing_is_placed_on_one_that_goes_down(void **test)
{
    struct fixture *f = *test;
    goes_down(f, "n2");
    goes_down(f, "n1");
    leaves(f, "n1");
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n3");
    fixture_must(f, ROUTE_ID_host_update, "n3", "{\"schedulable\":false}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"new\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_reconcile(f, NULL);
    assert_null(fixture_vm(f, "new")->host);
    assert_non_null(strstr(fixture_vm(f, "new")->placement, "being shut down"));
    is_back(f, "n1");
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "new")->host_name, "n1");
}

static void what_was_off_stays_off(void **test)
{
    struct fixture *f = *test;
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_vm_is(f, "plain", vm_state_FAILED);
    goes_down(f, "n1");
    leaves(f, "n1");
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_STOPPED);
    assert_false(fixture_vm(f, "web")->recovering);
    assert_int_equal(fixture_vm(f, "plain")->state, vm_state_FAILED);
}

/* ---- stay ---- */

static void by_stay_all_wait_for_their_host(void **test)
{
    struct fixture *f = *test;
    policy(f, "stay");
    goes_down(f, "n1");
    leaves(f, "n1");
    waits(f, "web", "`drover vm start` starts it on another one");
    waits(f, "data", "it goes on there when that is back");
    waits(f, "plain", "it goes on there when that is back");
    uint64_t epoch = fixture_vm(f, "web")->epoch;
    is_back(f, "n1");
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_STARTING);
    assert_int_equal(fixture_vm(f, "web")->epoch, epoch);
    assert_int_equal(fixture_vm(f, "web")->failovers, 0);
}

static void a_person_starts_one_that_waits(void **test)
{
    struct fixture *f = *test;
    policy(f, "stay");
    goes_down(f, "n1");
    leaves(f, "n1");
    uint64_t epoch = fixture_vm(f, "web")->epoch;
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_true(fixture_vm(f, "web")->recovering);
    fixture_must(f, ROUTE_ID_vm_start, "plain", NULL); /* which changes nothing: it is nowhere else */
    fixture_must(f, ROUTE_ID_vm_start, "data", NULL);
    fixture_reconcile(f, NULL);
    assert_string_not_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_true(fixture_vm(f, "web")->epoch > epoch);
    assert_string_equal(fixture_vm(f, "plain")->host_name, "n1");
    assert_string_equal(fixture_vm(f, "data")->host_name, "n1");
    is_back(f, "n1");
    assert_string_not_equal(fixture_vm(f, "web")->host_name, "n1");
}

/* It is off, and is not started by the return of its host. */
static void a_person_stops_one_that_waits(void **test)
{
    static const char *const names[] = {"web", "data", "plain"};
    struct fixture *f = *test;
    policy(f, "stay");
    goes_down(f, "n1");
    leaves(f, "n1");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        fixture_must(f, ROUTE_ID_vm_stop, names[i], NULL);
        assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
        assert_int_equal(fixture_vm(f, names[i])->state, vm_state_STOPPED);
        assert_null(fixture_vm(f, names[i])->state_reason);
    }
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL); /* which may go elsewhere, as before */
    assert_true(fixture_vm(f, "web")->recovering);
    is_back(f, "n1");
    assert_int_equal(fixture_vm(f, "data")->state, vm_state_STOPPED);
    assert_int_equal(fixture_vm(f, "plain")->state, vm_state_STOPPED);
}

/* The agent of an older version does not say that it goes down, and has held its VMs only. */
static void an_older_agent_leaves_by_restart(void **test)
{
    struct fixture *f = *test;
    policy(f, "stay");
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(host(f, "n1")->state, host_state_LOST);
    assert_true(fixture_vm(f, "web")->recovering);
    assert_int_equal(fixture_vm(f, "plain")->state, vm_state_RUNNING); /* it is not known to be off */
}

/* ---- losses, and all at once ---- */

static void lose(struct fixture *f, const char *name)
{
    struct command_host_suspect suspect = {0};
    struct command_host_lost lost = {0};
    struct bytes_writer command = {0};
    OBJECT_TEXT(command_host_suspect, &suspect, id, host(f, name)->id);
    OBJECT_SET(command_host_suspect, &suspect, generation, host(f, name)->generation);
    OBJECT_TEXT(command_request, &suspect.request, at, fixture_now(f));
    object_mark(&command_host_suspect_desc, &suspect, "request");
    assert_int_equal(command_encode(COMMAND_host_suspect, &suspect, &command, NULL), 0);
    assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    OBJECT_TEXT(command_host_lost, &lost, id, host(f, name)->id);
    OBJECT_SET(command_host_lost, &lost, generation, host(f, name)->generation);
    OBJECT_SET(command_host_lost, &lost, voters_index, state_cluster(f->state)->lease_voters_index);
    OBJECT_TEXT(command_request, &lost.request, at, fixture_now(f));
    object_mark(&command_host_lost_desc, &lost, "request");
    assert_int_equal(command_encode(COMMAND_host_lost, &lost, &command, NULL), 0);
    assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    OBJECT_CLEAR(command_host_suspect, &suspect);
    OBJECT_CLEAR(command_host_lost, &lost);
}

static void one_that_dies_while_it_goes_down(void **test)
{
    struct fixture *f = *test;
    goes_down(f, "n1");
    lose(f, "n1");
    assert_true(fixture_vm(f, "web")->recovering);
    assert_int_equal(fixture_vm(f, "plain")->state, vm_state_RUNNING); /* the lease says nothing of it */
    assert_int_equal(fixture_vm(f, "data")->state, vm_state_FAILED);
}

static void one_that_dies_while_it_goes_down_by_stay(void **test)
{
    struct fixture *f = *test;
    policy(f, "stay");
    goes_down(f, "n1");
    lose(f, "n1");
    waits(f, "web", "its host n1 was shut down");
}

static void by_stay_a_host_that_dies_is_lost_all_the_same(void **test)
{
    struct fixture *f = *test;
    policy(f, "stay");
    lose(f, "n1");
    assert_true(fixture_vm(f, "web")->recovering);
}

static void a_cluster_that_is_switched_off_hands_nothing_on(void **test)
{
    struct fixture *f = *test;
    goes_down(f, "n2");
    goes_down(f, "n3");
    goes_down(f, "n1");
    leaves(f, "n1");
    waits(f, "web", "its host n1 was shut down");
    leaves(f, "n2");
    leaves(f, "n3");
    is_back(f, "n3");
    waits(f, "web", "its host n1 was shut down");
    is_back(f, "n1");
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_STARTING);
}

/* An agent that was killed while its host went down, and is started anew: the host does not go down. */
static void one_that_does_not_go_down_after_all(void **test)
{
    struct fixture *f = *test;
    goes_down(f, "n1");
    struct node_report report = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_false(host(f, "n1")->going_down);
    assert_int_equal(host(f, "n1")->state, host_state_UP);
    report = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &report), 0);
}

static void bounds_are_named(void **test)
{
    struct fixture *f = *test;
    assert_true(fixture_do(f, ROUTE_ID_cluster_update, NULL, "{\"shutdown_policy\":\"freeze\"}") < 0);
    assert_non_null(strstr(f->error.text, "restart"));
    assert_true(fixture_do(f, ROUTE_ID_cluster_update, NULL, "{\"shutdown_timeout_s\":541}") < 0);
    assert_string_equal(f->error.field, "/shutdown_timeout_s");
    fixture_must(f, ROUTE_ID_cluster_update, NULL, "{\"shutdown_timeout_s\":30}");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.shutdown_timeout_s, 30);
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(those_with_ha_are_started_elsewhere, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_says_so_only_at_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_placed_on_one_that_goes_down, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_off_stays_off, setup, teardown),
        cmocka_unit_test_setup_teardown(by_stay_all_wait_for_their_host, setup, teardown),
        cmocka_unit_test_setup_teardown(a_person_starts_one_that_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(a_person_stops_one_that_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(an_older_agent_leaves_by_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_dies_while_it_goes_down, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_dies_while_it_goes_down_by_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(by_stay_a_host_that_dies_is_lost_all_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(a_cluster_that_is_switched_off_hands_nothing_on, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_does_not_go_down_after_all, setup, teardown),
        cmocka_unit_test_setup_teardown(bounds_are_named, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
