/* Migrations in the replicated state: room is kept, the record changes hands once and for good or not at all, late and
 * doubled words change nothing, and every refusal names its reason. */
#include "tests/unit/controller/fsm_fixture.h"

static char operation_id[STATE_ID_BYTES]; /* of the last migration */

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_host(f, "n2", 8192);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct operation *migration(struct fixture *f)
{
    return fixture_get(f, object_kind_OPERATION, operation_id)->operation;
}

static void begin(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_vm_migrate, "a", NULL);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
}

static const char *host_id(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_HOST, name)->common->id;
}

static int propose_as(struct fixture *f, const char *host, unsigned epoch)
{
    char body[200];
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%u}", host_id(f, host), operation_id, epoch);
    return fixture_do(f, ROUTE_ID_node_handover, NULL, body);
}

static void propose(struct fixture *f)
{
    if (propose_as(f, "n1", 1) < 0)
        fail_msg("%s", f->error.text);
}

static struct node_orders orders_of(struct fixture *f, const char *host)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static int host_says(struct fixture *f, const char *host, enum task_role role, enum operation_state state, const char *text)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, state);
    if (state == operation_state_FAILED || state == operation_state_CANCELLED)
        OBJECT_TEXT(task_seen, seen, error_text, text);
    if (state == operation_state_SUCCEEDED) {
        OBJECT_SET(migration_result, &seen->migration, downtime_us, 4711);
        OBJECT_SET(migration_result, &seen->migration, rounds, 3);
        object_mark(&task_seen_desc, seen, "migration");
    }
    if (role == task_role_PEER && state == operation_state_RUNNING) {
        OBJECT_SET(task_seen, seen, ready, true);
        OBJECT_TEXT(task_seen, seen, endpoint, "192.0.2.2:4711");
    }
    return fixture_send(f, &report);
}

static uint64_t committed(struct fixture *f, const char *host)
{
    return fixture_get(f, object_kind_HOST, host)->of_host.committed_memory_bytes;
}

static void stays(struct fixture *f, enum operation_state state, const char *why)
{
    assert_int_equal(migration(f)->state, state);
    assert_non_null(strstr(migration(f)->error_text, why));
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "a")->epoch, 1);
    assert_null(fixture_vm(f, "a")->handover);
    assert_int_equal(committed(f, "n2"), 0); /* the room is free again */
    propose(f); /* one that was on its way: too late */
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
}

/* The target's VMM was begun without the lease: it would go on without, cut off, while another host starts the VM. */
static void ha_is_not_turned_on_on_the_way(void **test)
{
    struct fixture *f = *test;
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    begin(f);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "a", "{\"ha\":true}"), -EBUSY);
    assert_non_null(strstr(f->error.text, "being migrated"));
    fixture_must(f, ROUTE_ID_operation_cancel, operation_id, NULL);
    host_says(f, "n1", task_role_MAIN, operation_state_CANCELLED, "as was asked");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"ha\":true}");
}

static void a_migration_goes_its_way(void **test)
{
    struct fixture *f = *test;
    uint64_t memory_bytes = fixture_vm(f, "a")->memory_bytes;
    begin(f);
    assert_string_equal(migration(f)->task.host, host_id(f, "n1"));
    assert_string_equal(migration(f)->task.peer, host_id(f, "n2"));
    assert_non_null(strstr(migration(f)->task.migration.placement, "n2"));
    assert_int_equal(committed(f, "n2"), memory_bytes);
    assert_int_equal(committed(f, "n1"), memory_bytes);
    struct node_orders orders = orders_of(f, "n2");
    const struct incoming_order *incoming = orders.incoming.items;
    assert_int_equal(orders.vms.count, 0); /* not its own, and it is told so */
    assert_int_equal(orders.incoming.count, 1);
    assert_string_equal(incoming->operation, operation_id);
    assert_int_equal(incoming->vm.epoch, 2);
    assert_null(incoming->vm.handover);
    assert_int_equal(((struct task_order *)orders.tasks.items)->role, task_role_PEER);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_RUNNING, NULL), 1);
    orders = orders_of(f, "n1");
    assert_string_equal(((struct task_order *)orders.tasks.items)->task.peer_endpoint, "192.0.2.2:4711");
    OBJECT_CLEAR(node_orders, &orders);

    propose(f);
    const struct vm *vm = fixture_vm(f, "a");
    assert_string_equal(vm->host_name, "n2");
    assert_int_equal(vm->epoch, 2);
    assert_int_equal(vm->generation, 1);
    assert_string_equal(vm->handover, operation_id);
    assert_int_equal(migration(f)->state, operation_state_RUNNING); /* the source's last word is to come */
    assert_int_equal(migration(f)->task.migration.handed_over, 2);
    assert_int_equal(committed(f, "n1"), 0);
    assert_int_equal(committed(f, "n2"), memory_bytes);
    orders = orders_of(f, "n2");
    assert_int_equal(orders.incoming.count, 0);
    assert_string_equal(((struct vm_order *)orders.vms.items)->handover, operation_id);
    assert_int_equal(((struct vm_order *)orders.vms.items)->epoch, 2);
    OBJECT_CLEAR(node_orders, &orders);
    propose(f); /* its answer was lost */
    assert_int_equal(fixture_vm(f, "a")->epoch, 2);

    struct node_report late = fixture_report(f, "n1", 8192); /* of the source, before it knew */
    struct vm_seen *seen = fixture_seen(&late, vm, vm_state_FAILED);
    OBJECT_SET(vm_seen, seen, epoch, 1);
    assert_int_equal(fixture_send(f, &late), 0);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_RUNNING);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(migration(f)->task.migration.downtime_us, 4711);
    assert_int_equal(migration(f)->task.migration.handed_over, 2); /* still known, should it ask again */
    orders = orders_of(f, "n1");
    assert_int_equal(orders.tasks.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
}

static void cancelled_before_the_hand_over_it_stays(void **test)
{
    struct fixture *f = *test;
    begin(f);
    fixture_must(f, ROUTE_ID_operation_cancel, operation_id, NULL);
    assert_true(migration(f)->cancel_asked);
    propose(f); /* the source had not heard of it */
    stays(f, operation_state_CANCELLED, "asked for before");
}

static void what_hinders_ends_it_for_good(void **test)
{
    struct fixture *f = *test;
    begin(f);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_FAILED, "no bridge br7"), 1);
    propose(f);
    stays(f, operation_state_FAILED, "no bridge br7");

    begin(f);
    if (propose_as(f, "n1", 7) < 0)
        fail_msg("%s", f->error.text);
    stays(f, operation_state_FAILED, "started anew");

    begin(f);
    assert_int_equal(propose_as(f, "n2", 1), -EPERM); /* not the target's to say */
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL); /* its user wants it off: asked to end */
    propose(f);
    stays(f, operation_state_CANCELLED, "asked for before");
}

static void a_target_that_is_silent_gets_nothing(void **test)
{
    struct fixture *f = *test;
    begin(f);
    struct reconcile_node nodes[] = {{.host = host_id(f, "n1"), .last_report_ms = 100000}};
    struct reconcile_input input = {.now_ms = 100001, .leader_since_ms = 1, .nodes = nodes, .n_nodes = 1};
    assert_true(fixture_reconcile(f, &input) > 0);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->state, host_state_UNREACHABLE);
    propose(f);
    stays(f, operation_state_FAILED, "unreachable");
}

static void after_the_hand_over_it_can_only_end_well(void **test)
{
    struct fixture *f = *test;
    begin(f);
    propose(f);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "its VMM was killed"), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
    assert_null(migration(f)->error_text);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2");
}

static void a_source_that_falls_silent_after_it_does_not_keep_it_open(void **test)
{
    struct fixture *f = *test;
    begin(f);
    propose(f);
    struct reconcile_node nodes[] = {{.host = host_id(f, "n2"), .last_report_ms = 100000}};
    struct reconcile_input input = {.now_ms = 100001, .leader_since_ms = 1, .nodes = nodes, .n_nodes = 1};
    assert_true(fixture_reconcile(f, &input) > 0);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
}

/* Nobody but the hand-over says that a VM was moved. */
static void a_source_that_takes_it_for_done_is_not_believed(void **test)
{
    struct fixture *f = *test;
    begin(f);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL), 1);
    stays(f, operation_state_FAILED, "not handed over");
}

static void refused(struct fixture *f, const char *body, const char *field, const char *why)
{
    assert_true(fixture_do(f, ROUTE_ID_vm_migrate, "a", body) < 0);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, why) == NULL)
        fail_msg("'%s' does not say: %s", f->error.text, why);
}

static void each_refusal_names_its_reason(void **test)
{
    struct fixture *f = *test;
    refused(f, "{\"to\":\"n1\"}", "/to", "has it already");
    refused(f, "{\"to\":\"n9\"}", "/to", "no host 'n9'");
    fixture_host(f, "n3", 256);
    refused(f, "{\"to\":\"n3\"}", "/to", "MiB are free");
    fixture_must(f, ROUTE_ID_host_update, "n2", "{\"schedulable\":false}");
    refused(f, "{\"to\":\"n2\"}", "/to", "schedulable is false");
    refused(f, NULL, "", "no host fits");
    fixture_must(f, ROUTE_ID_host_update, "n2", "{\"schedulable\":true}");
    begin(f);
    refused(f, NULL, "", "being migrated already");
    assert_true(fixture_do(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}") < 0);
    assert_non_null(strstr(f->error.text, "being migrated"));
    host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "x");
    assert_non_null(fixture_vm(f, "a")->migration_failed_at);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    refused(f, NULL, "", "is stopped");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"d\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "d", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_snapshot_create, "d", "{\"name\":\"s\"}");
    assert_true(fixture_do(f, ROUTE_ID_vm_migrate, "d", NULL) < 0);
    assert_non_null(strstr(f->error.text, "has snapshot 's'"));
}

/* Not even by a migration does a VM come to a host that has one of its group, or is about to. */
static void what_is_kept_apart_stays_so(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n3", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"c\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_vm_is(f, "c", vm_state_RUNNING);
    fixture_vm_is(f, "d", vm_state_RUNNING);
    CLEANUP_FREE char *to_d = xasprintf("{\"to\":\"%s\"}", fixture_vm(f, "d")->host_name);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_migrate, "c", to_d), -ENOSPC);
    assert_non_null(strstr(f->error.text, "anti-affinity"));
    fixture_must(f, ROUTE_ID_vm_migrate, "c", NULL); /* to the third one */
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_migrate, "d", NULL), -ENOSPC);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"e\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    assert_null(fixture_vm(f, "e")->host);
}

/* A command that is decided, and not applied yet. The caller finishes it. */
static struct bytes_writer decided(struct fixture *f, enum route_id route, const char *id, const char *body)
{
    const struct object_desc *desc = schema_routes[route].body;
    struct decision_context context = fixture_context(f);
    struct vm vm = {0};
    if (body != NULL)
        assert_int_equal(object_decode(desc, body, strlen(body), OBJECT_CREATE, &vm, &f->error), 0);
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, route, id, id != NULL ? strlen(id) : 0, body != NULL ? &vm : NULL, &f->decision, &f->error), 0);
    OBJECT_CLEAR(vm, &vm);
    struct bytes_writer command = f->decision.command;
    f->decision.command = (struct bytes_writer){0};
    return command;
}

/* Replicas of all versions judge a command alike: whoever decided it has seen to what is kept apart. */
static void what_was_decided_is_not_judged_by_that_again(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n3", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"c\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_vm_is(f, "c", vm_state_RUNNING);
    fixture_vm_is(f, "d", vm_state_RUNNING);
    struct bytes_writer migrate = decided(f, ROUTE_ID_vm_migrate, "c", NULL);
    struct bytes_writer create = decided(f, ROUTE_ID_vm_create, NULL,
                                         "{\"name\":\"e\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"anti-affinity\":\"x\"}}");
    fixture_must(f, ROUTE_ID_vm_migrate, "d", NULL); /* to the third host, as those two */
    assert_int_equal(fixture_apply(f, &create), 0);
    assert_non_null(fixture_vm(f, "e")->host);
    assert_int_equal(fixture_apply(f, &migrate), 0);
    bytes_writer_finish(&create);
    bytes_writer_finish(&migrate);
}

static void disks_go_along(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"d\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "d", vm_state_RUNNING);
    const char *from = fixture_vm(f, "d")->host_name, *to = strcmp(from, "n1") == 0 ? "n2" : "n1";
    fixture_must(f, ROUTE_ID_vm_migrate, "d", NULL);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    struct node_orders orders = orders_of(f, to);
    const struct incoming_order *incoming = orders.incoming.items;
    assert_int_equal(orders.incoming.count, 1);
    assert_int_equal(incoming->vm.disks.count, 1); /* the target makes one of its own */
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(propose_as(f, from, 1), 0);
    assert_string_equal(fixture_vm(f, "d")->host_name, to);
}

static void has_free(struct fixture *f, const char *host, uint64_t mib)
{
    struct node_report report = fixture_report(f, host, 8192);
    OBJECT_SET(node_report, &report, disk_bytes, UINT64_C(32) << 20);
    OBJECT_SET(node_report, &report, disk_free_bytes, mib << 20);
    assert_int_equal(fixture_send(f, &report), 1);
}

/* Where they fit for certain if there is such a host; else they may, for they are thin, and it is said. */
static void disks_go_where_there_is_room(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"d\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":["
                 "{\"name\":\"root\",\"size_bytes\":8388608},{\"name\":\"data\",\"size_bytes\":8388608}]}");
    fixture_vm_is(f, "d", vm_state_RUNNING);
    const char *from = strcmp(fixture_vm(f, "d")->host_name, "n1") == 0 ? "n1" : "n2", *to = from[1] == '1' ? "n2" : "n1";
    fixture_host(f, "n3", 8192);
    has_free(f, to, 15);
    has_free(f, "n3", 16);
    fixture_must(f, ROUTE_ID_vm_migrate, "d", NULL);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    assert_string_equal(migration(f)->task.peer, host_id(f, "n3"));
    assert_null(strstr(migration(f)->task.migration.placement, "disks"));
    host_says(f, from, task_role_MAIN, operation_state_FAILED, "x");
    has_free(f, "n3", 9);
    fixture_must(f, ROUTE_ID_vm_migrate, "d", NULL);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    assert_non_null(strstr(migration(f)->task.migration.placement, "its disks may take 16 MiB, and about"));
    host_says(f, from, task_role_MAIN, operation_state_FAILED, "x");
    fixture_must(f, ROUTE_ID_vm_migrate, "d", "{\"to\":\"n3\"}");
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    assert_non_null(strstr(migration(f)->task.migration.placement, "as asked for; its disks may take 16 MiB, and about 9 MiB"));
}

/* ---- a new process on the same host ---- */

static void an_upgrade_changes_nothing_of_the_record(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_upgrade, "a", NULL);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    assert_string_equal(migration(f)->task.host, host_id(f, "n1"));
    assert_null(migration(f)->task.peer);
    struct node_orders orders = orders_of(f, "n1");
    assert_int_equal(((struct task_order *)orders.tasks.items)->task.kind, task_kind_VM_UPGRADE);
    assert_int_equal(((struct task_order *)orders.tasks.items)->task.epoch, 1);
    OBJECT_CLEAR(node_orders, &orders);
    assert_true(fixture_do(f, ROUTE_ID_vm_migrate, "a", NULL) < 0);
    assert_non_null(strstr(f->error.text, "a new VMM is taking VM 'a' over"));
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
    const struct vm *vm = fixture_vm(f, "a");
    assert_string_equal(vm->host_name, "n1");
    assert_int_equal(vm->epoch, 1);
    assert_int_equal(vm->generation, 1);
    assert_int_equal(vm->state, vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    assert_true(fixture_do(f, ROUTE_ID_vm_upgrade, "a", NULL) < 0);
    assert_non_null(strstr(f->error.text, "only one that runs"));
}

/* A start gives a new epoch: what a migration of the run before brought is nothing to it. */
static void another_start_forgets_the_hand_over(void **test)
{
    struct fixture *f = *test;
    begin(f);
    propose(f);
    host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    assert_int_equal(fixture_vm(f, "a")->epoch, 3);
    assert_null(fixture_vm(f, "a")->handover);
}

/* A controller that comes from a snapshot in the midst of it goes on the same. */
static void a_snapshot_in_between_changes_nothing(void **test)
{
    struct fixture *f = *test;
    begin(f);
    struct bytes_writer bytes = fixture_snapshot(f->state);
    struct state *restored = NULL;
    struct error err = {0};
    if (snapshot_read(bytes.data, bytes.size, &restored, &err) < 0)
        fail_msg("%s", err.text);
    bytes_writer_finish(&bytes);
    assert_int_equal(check_state(restored, &err), 0);
    f->twin = restored;
    propose(f);
    host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL);
    fixture_same_bytes(f->state, f->twin);
    state_destroy(restored);
    f->twin = NULL;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ha_is_not_turned_on_on_the_way),
        TEST(a_migration_goes_its_way),
        TEST(cancelled_before_the_hand_over_it_stays),
        TEST(what_hinders_ends_it_for_good),
        TEST(a_target_that_is_silent_gets_nothing),
        TEST(after_the_hand_over_it_can_only_end_well),
        TEST(a_source_that_falls_silent_after_it_does_not_keep_it_open),
        TEST(a_source_that_takes_it_for_done_is_not_believed),
        TEST(each_refusal_names_its_reason),
        TEST(what_is_kept_apart_stays_so),
        TEST(what_was_decided_is_not_judged_by_that_again),
        TEST(disks_go_along),
        TEST(disks_go_where_there_is_room),
        TEST(an_upgrade_changes_nothing_of_the_record),
        TEST(another_start_forgets_the_hand_over),
        TEST(a_snapshot_in_between_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
