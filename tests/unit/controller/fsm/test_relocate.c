/* VMs with ha whose host cannot start them: which of them another host gets, how often, and when not. */
#include "tests/unit/controller/fsm_fixture.h"

static void create(struct fixture *f, const char *name, const char *more)
{
    char body[300];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912%s}", name, more);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
}

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 8192);
    create(f, "web", ",\"ha\":true");
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

/* Its host says that it cannot be started; @released: and that it has given it up. 1: that has changed something. */
static int fails(struct fixture *f, const char *name, bool released)
{
    const struct vm *vm = fixture_vm(f, name);
    struct node_report report = fixture_report(f, vm->host_name, 8192);
    struct vm_seen *seen = fixture_seen(&report, vm, vm_state_FAILED);
    OBJECT_TEXT(vm_seen, seen, reason, "no bridge");
    if (released)
        OBJECT_SET(vm_seen, seen, released, true);
    return fixture_send(f, &report);
}

/* Do its host's orders say that another one may have it? */
static bool is_offered(struct fixture *f, const char *name)
{
    const struct vm *vm = fixture_vm(f, name);
    struct node_report report = fixture_report(f, vm->host_name, 8192);
    struct node_orders orders = {0};
    bool found = false;
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t i = 0; i < orders.relocate.count; i++)
        found |= strcmp(orders.relocate.items[i], vm->id) == 0;
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
    return found;
}

static void another_host_gets_it_once(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_host(f, "n3", 8192);
    assert_true(is_offered(f, "web"));
    fails(f, "web", false);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1"); /* it tries again */
    assert_int_equal(fails(f, "web", true), 1);
    assert_int_equal(fails(f, "web", true), 0);
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_FAILED);
    fixture_reconcile(f, NULL);
    const struct vm *vm = fixture_vm(f, "web");
    assert_string_not_equal(vm->host_name, "n1");
    assert_int_equal(vm->epoch, 2);
    assert_int_equal(vm->relocates, 1);
    assert_int_equal(vm->failovers, 1);
    assert_int_equal(vm->tried.count, 1);
    assert_false(is_offered(f, "web")); /* relocates_max is 1 where not given */
    fails(f, "web", false);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_FAILED);
    assert_string_equal(fixture_vm(f, "web")->state_reason, "no bridge");
}

static void it_goes_to_none_that_has_tried(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_host(f, "n3", 8192);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"relocates_max\":2}");
    char second[64];
    fails(f, "web", false); /* which ends the operation that made it */
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    snprintf(second, sizeof second, "%s", fixture_vm(f, "web")->host_name);
    assert_string_not_equal(second, "n1");
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    assert_string_not_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_string_not_equal(fixture_vm(f, "web")->host_name, second);
    assert_int_equal(fixture_vm(f, "web")->tried.count, 2);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(fixture_vm(f, "web")->relocates, 0); /* it has run: each may try again */
    assert_int_equal(fixture_vm(f, "web")->tried.count, 0);
}

static void without_another_one_its_host_goes_on(void **test)
{
    struct fixture *f = *test;
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    const struct vm *vm = fixture_vm(f, "web");
    assert_string_equal(vm->host_name, "n1");
    assert_int_equal(vm->epoch, 2);
    assert_int_equal(vm->failovers, 0);
    assert_non_null(strstr(vm->placement, "for want of another one"));
    assert_false(is_offered(f, "web"));
}

static void not_while_an_operation_is_under_way(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fails(f, "web", false);
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_int_equal(fixture_get(f, object_kind_VM, "web")->of_vm.operations.count, 1);
    const struct vm *vm = fixture_vm(f, "web");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct vm_seen *seen = fixture_seen(&report, vm, vm_state_FAILED);
    OBJECT_SET(vm_seen, seen, generation, vm->generation - 1);
    OBJECT_SET(vm_seen, seen, released, true);
    fixture_send(f, &report);
    assert_int_equal(fixture_vm(f, "web")->released, 0);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    fails(f, "web", true); /* which ends the operation */
    assert_int_equal(fails(f, "web", true), 1); /* and is said again */
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
}

/* Its host has it again, under the epoch after that which it has given up. */
static void is_again_on_its_host(struct fixture *f, const char *name, uint64_t epoch, const char *why)
{
    const struct vm *vm = fixture_vm(f, name);
    assert_string_equal(vm->host_name, "n1");
    assert_int_equal(vm->epoch, epoch);
    assert_int_equal(vm->state, vm_state_STARTING);
    assert_non_null(strstr(vm->placement, why));
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_vm(f, name)->epoch, epoch);
}

/* It was not offered: a word that it was given up all the same is a fact, and its host is told to try again. */
static void it_stays_on_its_host(struct fixture *f, const char *name)
{
    assert_false(is_offered(f, name));
    fails(f, name, false);
    fails(f, name, true);
    fixture_reconcile(f, NULL);
    is_again_on_its_host(f, name, 2, "may not be given to another one");
}

static void not_all_may_go(void **test)
{
    struct fixture *f = *test;
    create(f, "plain", "");
    create(f, "data", ",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]");
    create(f, "pinned", ",\"ha\":true,\"pin\":\"n1\"");
    create(f, "never", ",\"ha\":true,\"restart\":\"never\"");
    create(f, "zero", ",\"ha\":true,\"relocates_max\":0");
    fixture_host(f, "n2", 8192);
    it_stays_on_its_host(f, "plain");
    it_stays_on_its_host(f, "data");
    assert_false(OBJECT_HAS(vm, fixture_vm(f, "data"), replica_start)); /* no replica of it has been taken */
    it_stays_on_its_host(f, "pinned");
    it_stays_on_its_host(f, "zero");
    assert_false(is_offered(f, "never"));
    fails(f, "never", true);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_vm(f, "never")->epoch, 1);
    assert_int_equal(fixture_vm(f, "never")->state, vm_state_FAILED);
}

/* Words of another run, of another host, or of a VM that runs. */
static void only_its_host_may_give_it_up(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fails(f, "web", false);
    const struct vm *vm = fixture_vm(f, "web");
    struct node_report report = fixture_report(f, "n2", 8192);
    OBJECT_SET(vm_seen, fixture_seen(&report, vm, vm_state_FAILED), released, true);
    fixture_send(f, &report);
    assert_int_equal(fixture_vm(f, "web")->released, 0);
    report = fixture_report(f, "n1", 8192);
    struct vm_seen *seen = fixture_seen(&report, vm, vm_state_FAILED);
    OBJECT_SET(vm_seen, seen, released, true);
    OBJECT_SET(vm_seen, seen, epoch, vm->epoch - 1);
    fixture_send(f, &report);
    assert_int_equal(fixture_vm(f, "web")->released, 0);
    report = fixture_report(f, "n1", 8192);
    OBJECT_SET(vm_seen, fixture_seen(&report, vm, vm_state_RUNNING), released, true);
    fixture_send(f, &report);
    assert_int_equal(fixture_vm(f, "web")->released, 0);
}

static void a_person_or_a_loss_between(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL); /* a new epoch: n1 may start that */
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_true(fixture_vm(f, "web")->recovering);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
}

static void a_worn_out_one_is_tried_on_by_its_host(void **test)
{
    struct fixture *f = *test;
    char second[64];
    fixture_host(f, "n2", 8192);
    fixture_host(f, "n3", 8192);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"relocates_max\":2,\"ha_restarts_max\":1}");
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    snprintf(second, sizeof second, "%s", fixture_vm(f, "web")->host_name);
    assert_string_not_equal(second, "n1");
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    const struct vm *vm = fixture_vm(f, "web");
    assert_string_equal(vm->host_name, second);
    assert_int_equal(vm->epoch, 3);
    assert_int_equal(vm->state, vm_state_STARTING);
    assert_int_equal(vm->failovers, 1);
    assert_non_null(strstr(vm->placement, "1 times within 3600 s, the most that ha_restarts_max allows"));
    assert_false(is_offered(f, "web")); /* that has been counted: it does not go round */
}

static void never_elsewhere_is_tried_on_by_its_host(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"ha_restarts_max\":0}");
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    is_again_on_its_host(f, "web", 2, "ha_restarts_max");
    assert_int_equal(fails(f, "web", false), 1);
    assert_int_equal(fails(f, "web", false), 0);
    assert_false(is_offered(f, "web"));
}

/* @change: takes the permission back, before the word of its host comes or after it. */
static void is_forbidden(struct fixture *f, const char *name, const char *change, bool before)
{
    create(f, name, ",\"ha\":true");
    assert_true(is_offered(f, name));
    fails(f, name, false);
    if (before)
        fixture_must(f, ROUTE_ID_vm_update, name, change);
    assert_int_equal(fails(f, name, true), 1);
    if (!before)
        fixture_must(f, ROUTE_ID_vm_update, name, change);
    for (uint64_t round = 0; round < 3; round++) /* an update is an operation, which its host brings to its end */
        if (fixture_vm(f, name)->epoch == 1) {
            fails(f, name, true);
            fixture_reconcile(f, NULL);
        }
    is_again_on_its_host(f, name, 2, "may not be given to another one");
    assert_false(is_offered(f, name));
}

static void the_permission_is_taken_back(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_host_update, "n2", "{\"schedulable\":false}");
    is_forbidden(f, "zero-before", "{\"relocates_max\":0}", true);
    is_forbidden(f, "zero-after", "{\"relocates_max\":0}", false);
    is_forbidden(f, "plain-before", "{\"ha\":false}", true);
    is_forbidden(f, "plain-after", "{\"ha\":false}", false);
}

/* Nothing of it may be made anew there as if it were new to that host. */
static void its_host_has_made_it(void **test)
{
    struct fixture *f = *test;
    fails(f, "web", false);
    assert_false(fixture_vm(f, "web")->unmade);
    assert_int_equal(fails(f, "web", true), 1);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    assert_false(fixture_vm(f, "web")->unmade);
}

static void leaves(struct fixture *f, const char *name)
{
    struct node_report report = fixture_report(f, name, 8192);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_get(f, object_kind_HOST, name)->host->state, host_state_LOST);
}

/* Whose host is lost between two starts that failed. */
static void it_is_lost_while_it_is_tried(void **test)
{
    struct fixture *f = *test;
    create(f, "plain", "");
    create(f, "never", ",\"ha\":true,\"restart\":\"never\"");
    create(f, "few", ",\"ha\":true,\"restarts_max\":3");
    create(f, "off", ",\"ha\":true");
    create(f, "given-up", ",\"ha\":true,\"relocates_max\":1");
    fixture_host(f, "n2", 8192);
    static const char *const names[] = {"web", "plain", "never", "few", "given-up"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_string_equal(fixture_vm(f, names[i])->host_name, "n1");
        fails(f, names[i], false);
    }
    fixture_vm_is(f, "off", vm_state_STOPPED);
    assert_int_equal(fails(f, "given-up", true), 1);
    leaves(f, "n1");
    assert_true(fixture_vm(f, "web")->recovering);
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_PENDING);
    assert_true(fixture_vm(f, "given-up")->recovering);
    assert_false(fixture_vm(f, "plain")->recovering);
    assert_false(fixture_vm(f, "never")->recovering);
    assert_false(fixture_vm(f, "few")->recovering); /* its host may have been done with it */
    assert_false(fixture_vm(f, "off")->recovering);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "given-up")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "few")->host_name, "n1");
    assert_string_equal(fixture_vm(f, "off")->host_name, "n1");
}

/* Given up, and nowhere to go any more: the loss of its host says so, and it does not wait for ever without a word. */
static void it_is_lost_worn_out_and_given_up(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"ha_restarts_max\":0}");
    fails(f, "web", false);
    assert_int_equal(fails(f, "web", true), 1);
    leaves(f, "n1");
    fixture_reconcile(f, NULL);
    const struct vm *vm = fixture_vm(f, "web");
    assert_false(vm->recovering);
    assert_int_equal(vm->state, vm_state_FAILED);
    assert_non_null(strstr(vm->state_reason, "its host was lost, and it has been started elsewhere 0 times"));
    assert_int_equal(vm->released, 0);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(another_host_gets_it_once, setup, teardown),
        cmocka_unit_test_setup_teardown(it_goes_to_none_that_has_tried, setup, teardown),
        cmocka_unit_test_setup_teardown(without_another_one_its_host_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(not_while_an_operation_is_under_way, setup, teardown),
        cmocka_unit_test_setup_teardown(not_all_may_go, setup, teardown),
        cmocka_unit_test_setup_teardown(a_worn_out_one_is_tried_on_by_its_host, setup, teardown),
        cmocka_unit_test_setup_teardown(never_elsewhere_is_tried_on_by_its_host, setup, teardown),
        cmocka_unit_test_setup_teardown(the_permission_is_taken_back, setup, teardown),
        cmocka_unit_test_setup_teardown(its_host_has_made_it, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_lost_while_it_is_tried, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_lost_worn_out_and_given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(only_its_host_may_give_it_up, setup, teardown),
        cmocka_unit_test_setup_teardown(a_person_or_a_loss_between, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
