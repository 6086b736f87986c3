/* Hosts that drain: a few VMs at a time, none that cannot go, not at once again what has failed, and the same from any leader. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/reconcile/drain.h"

enum { VMS = 5 };

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    for (unsigned i = 0; i < VMS; i++) {
        char body[160], name[8];
        snprintf(name, sizeof name, "vm%u", i);
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"flavor\":\"small\"}", name);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
        fixture_vm_is(f, name, vm_state_RUNNING);
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

static unsigned migrations(struct fixture *f)
{
    unsigned count = 0;
    for (size_t i = 0; i < state_count(f->state, object_kind_OPERATION); i++) {
        const struct operation *o = state_at(f->state, object_kind_OPERATION, i)->operation;
        count += o->kind == operation_kind_VM_MIGRATE && o->state == operation_state_RUNNING;
    }
    return count;
}

static size_t on(struct fixture *f, const char *host)
{
    return fixture_get(f, object_kind_HOST, host)->of_host.vms.count;
}

/* Every migration that runs is handed over, or fails. */
static void carry_out(struct fixture *f, bool well)
{
    char ids[VMS][STATE_ID_BYTES], body[300];
    unsigned count = 0;
    for (size_t i = 0; i < state_count(f->state, object_kind_OPERATION); i++) {
        const struct operation *o = state_at(f->state, object_kind_OPERATION, i)->operation;
        if (o->kind == operation_kind_VM_MIGRATE && o->state == operation_state_RUNNING)
            snprintf(ids[count++], STATE_ID_BYTES, "%s", o->id);
    }
    for (unsigned i = 0; i < count; i++) {
        const struct operation *o = fixture_get(f, object_kind_OPERATION, ids[i])->operation;
        struct node_report report = fixture_report(f, "n1", 8192);
        struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
        OBJECT_TEXT(task_seen, seen, id, ids[i]);
        OBJECT_SET(task_seen, seen, role, task_role_MAIN);
        OBJECT_SET(task_seen, seen, state, well ? operation_state_SUCCEEDED : operation_state_FAILED);
        snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":1}", o->task.host, ids[i]);
        if (well)
            fixture_must(f, ROUTE_ID_node_handover, NULL, body);
        fixture_send(f, &report);
    }
}

static void a_few_at_a_time_until_it_is_empty(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 8192);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    fixture_must(f, ROUTE_ID_host_drain, "n1", NULL);
    fixture_must(f, ROUTE_ID_host_drain, "n1", NULL); /* asked again: the same */
    const struct host *host = fixture_get(f, object_kind_HOST, "n1")->host;
    assert_true(host->draining && !host->schedulable);
    for (unsigned left = VMS; left > 0;) {
        fixture_reconcile(f, NULL);
        assert_int_equal(migrations(f), MIN(left, DRAIN_HOST_MAX));
        fixture_reconcile(f, NULL); /* another leader, or the same: no more of them */
        assert_int_equal(migrations(f), MIN(left, DRAIN_HOST_MAX));
        carry_out(f, true);
        left -= MIN(left, DRAIN_HOST_MAX);
        assert_int_equal(on(f, "n1"), left);
    }
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_int_equal(on(f, "n2"), VMS);
    fixture_must(f, ROUTE_ID_host_undrain, "n1", NULL);
    host = fixture_get(f, object_kind_HOST, "n1")->host;
    assert_true(!host->draining && host->schedulable);
}

static void what_cannot_go_stays_and_is_tried_again(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_host_drain, "n1", NULL);
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* there is no other host */
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_vm_stop, "vm0", NULL);
    fixture_vm_is(f, "vm0", vm_state_STOPPED);
    fixture_reconcile(f, NULL);
    assert_int_equal(migrations(f), DRAIN_HOST_MAX);
    carry_out(f, false);
    fixture_reconcile(f, NULL);
    assert_int_equal(migrations(f), DRAIN_HOST_MAX); /* others, not the same at once */
    carry_out(f, false);
    fixture_reconcile(f, NULL);
    assert_int_equal(migrations(f), 0);
    f->now_ms += DRAIN_RETRY_MS;
    fixture_reconcile(f, NULL);
    assert_int_equal(migrations(f), DRAIN_HOST_MAX);
    carry_out(f, true);
    fixture_must(f, ROUTE_ID_host_undrain, "n1", NULL);
    fixture_reconcile(f, NULL);
    assert_int_equal(migrations(f), 0);
    assert_int_equal(on(f, "n1"), VMS - DRAIN_HOST_MAX);
}

/* More of them than one walk looks at stand before one that can go. */
static void those_that_cannot_go_do_not_hide_the_others(void **test)
{
    enum { LARGE = 3 * DRAIN_LOOKS_MAX };
    struct fixture *f = *test;
    char body[160], name[16];
    fixture_join(f, "big");
    struct node_report report = fixture_report(f, "big", LARGE * 20000);
    OBJECT_SET(node_report, &report, cpus, 1024);
    assert_int_equal(fixture_send(f, &report), 1);
    for (unsigned i = 0; i < LARGE; i++) {
        snprintf(name, sizeof name, "large%u", i);
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":17179869184}", name);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
        fixture_vm_is(f, name, vm_state_RUNNING);
    }
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"schedulable\":false}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"one\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"schedulable\":true}");
    fixture_vm_is(f, "one", vm_state_RUNNING);
    assert_int_equal(on(f, "big"), LARGE + 1);
    assert_string_equal(fixture_get(f, object_kind_HOST, "big")->of_host.vms.items[LARGE]->common->name, "one");
    fixture_must(f, ROUTE_ID_host_drain, "big", NULL);
    for (unsigned i = 0; i < 2 * (LARGE / DRAIN_LOOKS_MAX + 1) && migrations(f) == 0; i++) {
        fixture_reconcile(f, NULL);
        f->now_ms += 1000;
    }
    assert_int_equal(migrations(f), 1);
    assert_int_equal(fixture_get(f, object_kind_VM, "one")->of_vm.operations.count, 1);
}

/* Both would go to n3: the first one is not on its way there before its command has been applied. */
static void those_that_are_kept_apart_go_one_at_a_time(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_update, "vm0", "{\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"other\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_vm_is(f, "other", vm_state_RUNNING);
    assert_int_equal(on(f, "n2"), 1);
    fixture_host(f, "n3", 8192);
    fixture_must(f, ROUTE_ID_host_drain, "n1", NULL);
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_get(f, object_kind_VM, "vm0")->of_vm.operations.count, 1);
    assert_int_equal(fixture_get(f, object_kind_VM, "other")->of_vm.operations.count, 0);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_get(f, object_kind_VM, "other")->of_vm.operations.count, 0); /* no host is left for it */
    fixture_host(f, "n4", 8192);
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_get(f, object_kind_VM, "other")->of_vm.operations.count, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(a_few_at_a_time_until_it_is_empty), TEST(what_cannot_go_stays_and_is_tried_again),
                                       TEST(those_that_cannot_go_do_not_hide_the_others), TEST(those_that_are_kept_apart_go_one_at_a_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
