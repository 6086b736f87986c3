/* What the loss of a host would do is what it does: on a copy first, then in the state itself. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/reconcile/loss_plan.h"

enum { ROUNDS = 40, VMS = 24 };

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 65536);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void create(struct fixture *f, const char *name, unsigned mib, bool ha, const char *more)
{
    char body[500];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":%llu,\"ha\":%s%s}", name,
             (unsigned long long)mib << 20, ha ? "true" : "false", more);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_vm_is(f, name, vm_state_RUNNING);
}

/* Afterwards, as they would not all be placed on one host. */
static void label(struct fixture *f, const char *name, const char *label)
{
    char body[100];
    snprintf(body, sizeof body, "{\"labels\":{\"anti-affinity\":\"%s\"}}", label);
    fixture_must(f, ROUTE_ID_vm_update, name, body);
}

static int plan(struct fixture *f, const char *host, struct host_loss *ret)
{
    struct bytes_writer bytes = fixture_snapshot(f->state);
    struct state *copy = NULL;
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &copy, &f->error), 0);
    int rc = loss_plan(copy, host, fixture_now(f), ret, &f->error);
    struct bytes_writer after = fixture_snapshot(f->state);
    assert_int_equal(after.size, bytes.size);
    assert_memory_equal(after.data, bytes.data, bytes.size);
    bytes_writer_finish(&after);
    bytes_writer_finish(&bytes);
    state_destroy(copy);
    return rc;
}

static const struct host_loss_vm *its(const struct host_loss *loss, const char *name)
{
    for (size_t i = 0; i < loss->vms.count; i++) {
        const struct host_loss_vm *vm = (const struct host_loss_vm *)loss->vms.items + i;
        if (strcmp(vm->vm, name) == 0)
            return vm;
    }
    return NULL;
}

static void lose(struct fixture *f, const char *name)
{
    const struct host *host = fixture_get(f, object_kind_HOST, name)->host;
    struct command_host_lost command = {.head = {0}};
    struct bytes_writer encoded = {.data = NULL};
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    OBJECT_TEXT(command_request, &command.request, by, "tester");
    object_mark(&command_host_lost_desc, &command, "request");
    OBJECT_TEXT(command_host_lost, &command, id, host->id);
    OBJECT_SET(command_host_lost, &command, generation, host->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, 0);
    OBJECT_SET(command_host_lost, &command, left, true);
    OBJECT_SET(command_host_lost, &command, failed_too, true);
    assert_int_equal(command_encode(COMMAND_host_lost, &command, &encoded, &f->error), 0);
    OBJECT_CLEAR(command_host_lost, &command);
    assert_int_equal(fixture_apply(f, &encoded), 0);
    bytes_writer_finish(&encoded);
}

static void each_is_told_with_its_reason(void **test)
{
    struct fixture *f = *test;
    struct host_loss loss = {.head = {0}};
    create(f, "low", 1024, true, ",\"ha_priority\":10");
    create(f, "high", 1024, true, ",\"ha_priority\":900");
    create(f, "apart1", 64, true, "");
    create(f, "apart2", 64, true, "");
    label(f, "apart1", "x");
    label(f, "apart2", "x");
    create(f, "own", 64, false, "");
    create(f, "app", 64, true, ",\"labels\":{\"ha-after\":\"high\",\"ha-delay-s\":\"60\"}");
    create(f, "local", 64, true, ",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]");
    create(f, "off", 64, true, "");
    fixture_must(f, ROUTE_ID_vm_stop, "off", NULL);
    fixture_vm_is(f, "off", vm_state_STOPPED);
    fixture_host(f, "n2", 2048); /* an eighth is kept back: one of the large ones, and small ones */
    assert_int_equal(plan(f, "n1", &loss), 0);
    assert_int_equal(loss.vms.count, 7);
    assert_int_equal(loss.started, 3);
    assert_int_equal(loss.waiting, 2);
    assert_int_equal(loss.staying, 2);
    assert_int_equal(its(&loss, "high")->outcome, loss_outcome_STARTED);
    assert_string_equal(its(&loss, "high")->to, "n2");
    assert_int_equal(its(&loss, "app")->outcome, loss_outcome_STARTED);
    assert_int_equal(its(&loss, "low")->outcome, loss_outcome_WAITS);
    assert_non_null(strstr(its(&loss, "low")->reason, "too little memory"));
    assert_int_equal(its(&loss, "apart1")->outcome, loss_outcome_STARTED);
    assert_int_equal(its(&loss, "apart2")->outcome, loss_outcome_WAITS);
    assert_non_null(strstr(its(&loss, "apart2")->reason, "kept apart"));
    assert_int_equal(its(&loss, "own")->outcome, loss_outcome_STAYS);
    assert_string_equal(its(&loss, "own")->reason, "it has no ha");
    assert_int_equal(its(&loss, "local")->outcome, loss_outcome_STAYS);
    assert_string_equal(its(&loss, "local")->reason, "its disks are on that host only");
    assert_string_equal(((const struct host_loss_vm *)loss.vms.items)->vm, "apart2"); /* what waits comes first, by priority */
    OBJECT_CLEAR(host_loss, &loss);
}

static void refusals(void **test)
{
    struct fixture *f = *test;
    struct host_loss loss = {.head = {0}};
    fixture_host(f, "n2", 2048);
    assert_int_equal(plan(f, "nobody", &loss), -ENOENT);
    assert_int_equal(plan(f, "n2", &loss), 0);
    assert_int_equal(loss.vms.count, 0);
    OBJECT_CLEAR(host_loss, &loss);
    fixture_must(f, ROUTE_ID_ha_disarm, NULL, NULL);
    assert_int_equal(plan(f, "n2", &loss), 0);
    assert_non_null(strstr(loss.summary, "once ha is armed again"));
    OBJECT_CLEAR(host_loss, &loss);
    fixture_must(f, ROUTE_ID_ha_arm, NULL, NULL);
    lose(f, "n2");
    assert_int_equal(plan(f, "n2", &loss), -EALREADY);
    assert_non_null(strstr(f->error.text, "lost already"));
}

static void what_is_disarmed_is_told_as_armed_again(void **test)
{
    struct fixture *f = *test;
    struct host_loss loss = {.head = {0}};
    create(f, "web", 64, true, "");
    fixture_host(f, "n2", 2048);
    fixture_must(f, ROUTE_ID_host_disarm, "n1", NULL);
    fixture_must(f, ROUTE_ID_ha_disarm, NULL, NULL);
    assert_int_equal(plan(f, "n1", &loss), 0);
    assert_int_equal(loss.started, 1);
    assert_non_null(strstr(loss.summary, "once ha is armed again"));
    OBJECT_CLEAR(host_loss, &loss);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"ha\":false}");
    fixture_must(f, ROUTE_ID_controller_remove, "c3", NULL);
    assert_int_equal(plan(f, "n1", &loss), 0);
    assert_int_equal(loss.staying, 1);
    assert_non_null(strstr(loss.summary, "fewer than three controllers"));
    OBJECT_CLEAR(host_loss, &loss);
}

/* ---- the plan and what comes of it ---- */

static unsigned next(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % below;
}

static void one_cluster(unsigned seed)
{
    static const char *const labels[] = {NULL, NULL, "x", "y"};
    struct fixture *f;
    struct host_loss loss = {.head = {0}};
    unsigned chance = seed, hosts = 1 + next(&chance, 4);
    char name[16], more[160];
    setup((void **)&f);
    for (unsigned i = 0; i < VMS; i++) {
        snprintf(name, sizeof name, "vm%u", i);
        snprintf(more, sizeof more, ",\"ha_priority\":%u", next(&chance, 3) * 100);
        create(f, name, 64 << next(&chance, 5), next(&chance, 5) > 0, more);
        const char *its_label = labels[next(&chance, ARRAY_SIZE(labels))];
        if (its_label != NULL)
            label(f, name, its_label);
    }
    for (unsigned i = 0; i < hosts; i++) {
        snprintf(name, sizeof name, "n%u", i + 2);
        fixture_host(f, name, 1024 << next(&chance, 3));
    }
    assert_int_equal(plan(f, "n1", &loss), 0);
    lose(f, "n1");
    for (unsigned i = 0; i < 3 * VMS; i++)
        fixture_reconcile(f, NULL);
    for (unsigned i = 0; i < VMS; i++) {
        snprintf(name, sizeof name, "vm%u", i);
        const struct vm *vm = fixture_vm(f, name);
        const struct host_loss_vm *would = its(&loss, name);
        const char *came_to = strcmp(vm->host_name, "n1") != 0 ? vm->host_name : "nobody", *was_said = would->to != NULL ? would->to : "nobody";
        if (strcmp(came_to, was_said) != 0 || (would->outcome == loss_outcome_WAITS) != vm->recovering)
            fail_msg("seed %u: %s was to go to %s, and went to %s", seed, name, was_said, came_to);
    }
    OBJECT_CLEAR(host_loss, &loss);
    teardown((void **)&f);
}

static void it_comes_as_it_was_said(void **test)
{
    (void)test;
    for (unsigned seed = 1; seed <= ROUNDS; seed++)
        one_cluster(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_is_told_with_its_reason, setup, teardown),
        cmocka_unit_test_setup_teardown(refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_disarmed_is_told_as_armed_again, setup, teardown),
        cmocka_unit_test(it_comes_as_it_was_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
