/* Replicas of VMs with volumes in pools of kind dir, in the replicated state: the volumes change their host with the VM, in one entry; what is left of
 * them goes when the VM was seen to run and not before; they stay as they are meanwhile; and no agent or controller which knows nothing of that
 * has a part in it. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

#define ID_A "0123456789abcdef0123456789abcdef"
#define PLACE_A "01234567-89ab-cdef-0123-456789abcdef"
#define GIB (UINT64_C(1) << 30)

/* VM a with a disk of its own and volume data, on one of n1 and n2, which have a pool; n3 has it too. */
static int setup(void **test)
{
    static const char *const hosts[] = {"n1", "n2", "n3"};
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++)
        fixture_host(f, hosts[i], 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\",\"n2\",\"n3\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"hdd\",\"kind\":\"dir\",\"path\":\"/srv/hdd\",\"hosts\":[\"n1\",\"n2\",\"n3\"]}");
    for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
        fixture_say_pool(f, hosts[i], "ssd", 64 * GIB, 32 * GIB);
        fixture_say_pool(f, hosts[i], "hdd", 64 * GIB, 32 * GIB);
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

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

static void volume_make(struct fixture *f, const char *name, const char *host)
{
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"pool\":\"ssd\",\"host\":\"%s\",\"size_bytes\":1048576}", name, host);
    fixture_must(f, ROUTE_ID_volume_create, NULL, body);
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, name)->id);
    OBJECT_SET(volume_seen, seen, made, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(volume(f, name)->state, volume_state_AVAILABLE);
}

static void vm_make(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    volume_make(f, "data", vm(f)->host_name);
    fixture_must(f, ROUTE_ID_volume_attach, "data", "{\"vm\":\"a\"}");
}

static const char *other(struct fixture *f)
{
    return strcmp(vm(f)->host_name, "n1") == 0 ? "n2" : "n1";
}

static void given(struct fixture *f, const char *more, int code, const char *field, const char *words)
{
    char body[200];
    snprintf(body, sizeof body, "{\"replica_host\":\"%s\"%s}", other(f), more);
    if (code == 0)
        fixture_must(f, ROUTE_ID_vm_update, "a", body);
    else
        fixture_refused(f, ROUTE_ID_vm_update, "a", body, code, field, words);
}

/* The VM has a replica on the other host. */
static void replicated(struct fixture *f)
{
    vm_make(f);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    given(f, "", 0, NULL, NULL);
}

static const struct record *begins(struct fixture *f)
{
    f->now_ms += 60000;
    fixture_reconcile(f, NULL);
    return replica_under_way(fixture_get(f, object_kind_VM, "a"));
}

static void point_made(struct fixture *f)
{
    const struct record *operation = begins(f);
    assert_non_null(operation);
    assert_true(operation->operation->task.volumes);
    struct node_report report = fixture_report(f, vm(f)->host_name, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation->common->id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    OBJECT_TEXT(replica_result, &seen->replica, id, ID_A);
    OBJECT_SET(replica_result, &seen->replica, number, 1);
    object_mark(&task_seen_desc, seen, "replica");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(vm(f)->replica.number, 1);
}

/* The VM's host is lost, and it is given to the other one. Returns the name of the lost one; the caller frees. */
static char *failed_over(struct fixture *f)
{
    char *old = xstrdup(vm(f)->host_name);
    CLEANUP_FREE char *keeper = xstrdup(other(f));
    fixture_lose(f, old);
    assert_true(vm(f)->recovering);
    assert_string_equal(volume(f, "data")->host, old);
    f->now_ms += 1000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(vm(f)->host_name, keeper);
    return old;
}

static void comes_back(struct fixture *f, const char *host)
{
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_get(f, object_kind_HOST, host)->host->state, host_state_UP);
}

/* Is @host told to remove what it has of the volume, in @place? */
static bool told_to_remove(struct fixture *f, const char *host, bool knows, const char *place)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    OBJECT_SET(node_report, &report, replica_volumes, knows);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct object_list *list = place == NULL ? &orders.volumes : &orders.moved_volumes;
    bool told = false;
    for (size_t i = 0; i < list->count; i++) {
        const struct volume_order *order = (const struct volume_order *)list->items + i;
        assert_true(order->remove);
        assert_true(order->lost);
        assert_false(OBJECT_HAS(volume_order, order, kept_pool)); /* it is not there to be seen */
        assert_string_equal(order->pool.mark, host);
        told = told || (text_same(order->id, volume(f, "data")->id) && text_same(order->place, place));
    }
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
    return told;
}

/* It has removed that. */
static int gone(struct fixture *f, const char *host, const char *place)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, "data")->id);
    OBJECT_TEXT(volume_seen, seen, place, place);
    OBJECT_SET(volume_seen, seen, gone, true);
    return fixture_send(f, &report);
}

/* ---- tests ---- */

static void they_go_where_the_vm_goes(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    assert_true(vm(f)->replica.in_pools && vm(f)->replica.volumes);
    point_made(f);
    uint64_t attachments = volume(f, "data")->attachments;
    CLEANUP_FREE char *old = failed_over(f), *keeper = xstrdup(vm(f)->host_name);
    const struct volume *data = volume(f, "data");
    assert_string_equal(data->host, keeper);
    assert_string_equal(data->place, PLACE_A);
    assert_string_equal(data->pool, "ssd");
    assert_string_equal(data->other_host, old);
    assert_null(data->other_place);
    assert_true(data->untaken);
    assert_int_equal(data->state, volume_state_ATTACHED);
    assert_int_equal(data->attachments, attachments);
    assert_string_equal(vm(f)->replica_host, old);
    struct node_report report = fixture_report(f, keeper, 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct vm_disk *disks = ((const struct vm_order *)orders.vms.items)->disks.items;
    assert_string_equal(disks[1].volume, data->id);
    assert_string_equal(disks[1].place, PLACE_A);
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
    struct state *copy = state_create();
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(copy, bytes.data, bytes.size, NULL), 0);
    fixture_same_bytes(f->state, copy);
    bytes_writer_finish(&bytes);
    state_destroy(copy);
}

static void what_is_left_goes_when_the_vm_has_run(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    point_made(f);
    CLEANUP_FREE char *old = failed_over(f), *keeper = xstrdup(vm(f)->host_name);
    comes_back(f, old);
    fixture_vm_is(f, "a", vm_state_FAILED);
    assert_false(told_to_remove(f, old, true, NULL));
    assert_int_equal(gone(f, old, NULL), 0); /* nor would it be believed */
    assert_false(told_to_remove(f, keeper, true, NULL));
    assert_null(begins(f));
    uint64_t told = state_host_orders_index(fixture_get(f, object_kind_HOST, old));
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_false(volume(f, "data")->untaken);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, old)) > told);
    f->now_ms += 60000;
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* no point before it is gone: of the next loss there would be more left than anybody knows */
    assert_non_null(strstr(vm(f)->replica.failure, "goes first"));
    assert_false(told_to_remove(f, old, false, NULL)); /* an agent of an older version does not wait for the VM to be gone there */
    assert_true(told_to_remove(f, old, true, NULL));
    assert_false(told_to_remove(f, keeper, true, NULL));
    fixture_vm_is(f, "a", vm_state_STOPPED); /* off again: what was decided stays so */
    assert_true(told_to_remove(f, old, true, NULL));
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(gone(f, keeper, NULL), 0); /* somebody else */
    assert_int_equal(gone(f, old, NULL), 1);
    assert_null(volume(f, "data")->other_pool);
    assert_null(volume(f, "data")->other_host);
    point_made(f);
    assert_null(vm(f)->replica.failure);
    assert_true(replica_is_good(f->state, vm(f)));
    /* and back, from a replica with an id of its own: here that of the first, to see what is left in the place */
    CLEANUP_FREE char *second = failed_over(f);
    assert_string_equal(second, keeper);
    assert_string_equal(volume(f, "data")->host, old);
    assert_string_equal(volume(f, "data")->other_place, PLACE_A);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    comes_back(f, keeper);
    assert_true(told_to_remove(f, keeper, true, PLACE_A));
}

/* A volume of which something is left elsewhere is in no replica that may stand in. */
static void nobody_stands_in_while_something_is_left(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    point_made(f);
    assert_non_null(replica_standby(f->state, vm(f)));
    struct record *record = map_get(&f->state->tables[object_kind_VOLUME].by_id, volume(f, "data")->id);
    OBJECT_TEXT(volume, record->volume, other_pool, "ssd");
    assert_null(replica_standby(f->state, vm(f)));
    OBJECT_TEXT(volume, record->volume, other_pool, NULL);
}

static void they_stay_as_they_are_in_a_replica(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    fixture_refused(f, ROUTE_ID_volume_detach, "data", NULL, -ENOTSUP, "", "take the replica away first");
    fixture_refused(f, ROUTE_ID_volume_update, "data", "{\"size_bytes\":2097152}", -ENOTSUP, "/size_bytes", "whose copy has the old size");
    fixture_must(f, ROUTE_ID_volume_update, "data", "{\"size_bytes\":1048576,\"labels\":{\"of\":\"a\"}}");
    fixture_refused(f, ROUTE_ID_volume_move, "data", "{\"pool\":\"hdd\"}", -ENOTSUP, "", "take the replica away first");
    volume_make(f, "more", vm(f)->host_name);
    fixture_refused(f, ROUTE_ID_volume_attach, "more", "{\"vm\":\"a\"}", -ENOTSUP, "/vm", "would be missing there");
    fixture_refused(f, ROUTE_ID_volume_snapshot, "data", "{\"name\":\"s\"}", -ENOTSUP, "", "replica");
    CLEANUP_FREE char *old = xstrdup(vm(f)->host_name);
    point_made(f);
    fixture_lose(f, old);
    assert_true(vm(f)->recovering);
    fixture_refused(f, ROUTE_ID_volume_detach, "data", NULL, -ENOTSUP, "", "is being started from that");
    f->now_ms += 1000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    fixture_refused(f, ROUTE_ID_volume_detach, "data", NULL, -EBUSY, "", "has not said that the VM runs");
    fixture_refused(f, ROUTE_ID_volume_forget_left, "data", NULL, -EBUSY, "", "may be the only copy");
    fixture_refused(f, ROUTE_ID_vm_delete, "a", NULL, -EBUSY, "", "has not said that it runs");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_volume_detach, "data", NULL, -ENOTSUP, "", "take the replica away first");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":null}");
    assert_false(vm(f)->replica.volumes);
    given(f, "", -EBUSY, "/replica_host", "forget-left data");
    fixture_must(f, ROUTE_ID_volume_detach, "data", NULL);
    given(f, "", -EBUSY, "/replica_host", "is detaching");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(volume(f, "data")->state, volume_state_AVAILABLE);
    given(f, "", 0, NULL, NULL); /* nothing of a volume is in it */
    assert_false(vm(f)->replica.volumes);
    fixture_must(f, ROUTE_ID_volume_delete, "data", NULL);
    assert_non_null(strstr(volume(f, "data")->state_reason, "forget-left"));
}

static void what_is_not_settled_is_in_none(void **test)
{
    struct fixture *f = *test;
    vm_make(f);
    given(f, "", -EBUSY, "/replica_host", "is attaching");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_snapshot, "data", "{\"name\":\"s\"}");
    const struct operation *operation = fixture_operation(f);
    struct node_report report = fixture_report(f, vm(f)->host_name, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation->id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    given(f, "", -ENOTSUP, "/replica_host", "volume 'data' of VM 'a' has snapshot 's'");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"nobody\"}"), -ENOENT);
}

/* The copy was never run with: the volume is what it was, where it was. */
static void a_vm_that_never_ran_gives_them_back(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    point_made(f);
    CLEANUP_FREE char *old = failed_over(f);
    fixture_vm_is(f, "a", vm_state_FAILED);
    f->force = true;
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    f->force = false;
    fixture_vm_is(f, "a", vm_state_DELETED);
    assert_null(state_get(f->state, object_kind_VM, "a"));
    const struct volume *data = volume(f, "data");
    assert_int_equal(data->state, volume_state_AVAILABLE);
    assert_string_equal(data->host, old);
    assert_null(data->place);
    assert_null(data->other_pool);
    assert_false(data->untaken);
    comes_back(f, old);
    assert_false(told_to_remove(f, old, true, NULL));
}

/* One that has run keeps them where they are; what is left elsewhere is known after the VM. */
static void a_vm_that_ran_leaves_them_there(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    point_made(f);
    CLEANUP_FREE char *old = failed_over(f), *keeper = xstrdup(vm(f)->host_name);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    assert_string_equal(volume(f, "data")->host, keeper);
    assert_int_equal(volume(f, "data")->state, volume_state_AVAILABLE);
    comes_back(f, old);
    assert_true(told_to_remove(f, old, true, NULL));
    assert_int_equal(gone(f, old, NULL), 1);
    assert_null(volume(f, "data")->other_pool);
}

/* The failover was in the log of those that are lost: the host that has carried it out says so, and where its volumes are. */
static void a_failover_that_a_recovery_lost_is_followed(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    point_made(f);
    CLEANUP_FREE char *old = xstrdup(vm(f)->host_name), *keeper = xstrdup(other(f));
    assert_int_equal(fixture_recover(f, 2, fixture_get(f, object_kind_CONTROLLER, "c1")->common->id), 0);
    struct node_report report = fixture_report(f, keeper, 8192);
    OBJECT_SET(node_report, &report, cluster_epoch, 2);
    struct vm_seen *seen = fixture_seen(&report, vm(f), vm_state_STARTING);
    OBJECT_SET(vm_seen, seen, epoch, vm(f)->epoch + 1);
    struct volume_place *place = OBJECT_ADD(vm_seen, seen, volumes); /* of a replica that came after the one that is known */
    OBJECT_TEXT(volume_place, place, id, volume(f, "data")->id);
    OBJECT_TEXT(volume_place, place, place, "bbbbbbbb-0000-4000-8000-000000000001");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(vm(f)->host_name, keeper);
    assert_string_equal(volume(f, "data")->host, keeper);
    assert_string_equal(volume(f, "data")->place, "bbbbbbbb-0000-4000-8000-000000000001");
    assert_string_equal(volume(f, "data")->other_host, old);
    assert_true(volume(f, "data")->untaken);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_false(volume(f, "data")->untaken);
}

/* Else it is nobody's business: controllers of older versions would end at it. */
static void where_they_are_is_in_no_other_command(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    struct node_report report = fixture_report(f, vm(f)->host_name, 8192);
    struct vm_seen *seen = fixture_seen(&report, vm(f), vm_state_PAUSED);
    struct volume_place *place = OBJECT_ADD(vm_seen, seen, volumes);
    OBJECT_TEXT(volume_place, place, id, volume(f, "data")->id);
    OBJECT_TEXT(volume_place, place, place, PLACE_A);
    struct bytes_writer command = {0};
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), 0);
    assert_true(command.size > 0);
    assert_null(memmem(command.data, command.size, PLACE_A, strlen(PLACE_A)));
    bytes_writer_finish(&command);
    OBJECT_CLEAR(node_report, &report);
}

static void host_says(struct fixture *f, const char *host, const char *id, enum task_role role)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_SET(node_report, &report, replica_volumes, false);
    OBJECT_TEXT(task_seen, seen, id, id);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, seen, ready, true);
    OBJECT_TEXT(task_seen, seen, endpoint, "192.0.2.2:1");
    (void)fixture_send(f, &report);
}

/* How many places of a replica's @host is told of; -1: it is told of no task. */
static int told(struct fixture *f, const char *host, bool knows)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    OBJECT_SET(node_report, &report, replica_volumes, knows);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct task_order *order = orders.tasks.items;
    int places = orders.tasks.count > 0 ? (int)order->replica_places.count : -1;
    if (places > 0)
        assert_string_equal(((const struct replica_place *)order->replica_places.items)->disk, volume(f, "data")->disk);
    OBJECT_CLEAR(node_report, &report);
    OBJECT_CLEAR(node_orders, &orders);
    return places;
}

static void an_agent_that_does_not_know_has_no_part(void **test)
{
    struct fixture *f = *test;
    replicated(f);
    CLEANUP_FREE char *id = xstrdup(begins(f)->common->id);
    assert_int_equal(told(f, other(f), true), 1);
    assert_int_equal(told(f, vm(f)->host_name, true), 0);
    assert_int_equal(told(f, other(f), false), -1);
    host_says(f, other(f), id, task_role_PEER);
    assert_false(fixture_get(f, object_kind_OPERATION, id)->operation->task.peer_ready);
    assert_non_null(strstr(fixture_get(f, object_kind_OPERATION, id)->operation->task.peer_error, "of an older version"));
    assert_int_equal(told(f, vm(f)->host_name, false), -1);
    host_says(f, vm(f)->host_name, id, task_role_MAIN);
    assert_null(replica_under_way(fixture_get(f, object_kind_VM, "a")));
    assert_non_null(strstr(vm(f)->replica.failure, "VM's host is of an older version"));
}

/* What older controllers would not apply alike they stop at. */
static void it_is_said_in_the_command(void **test)
{
    struct fixture *f = *test;
    vm_make(f);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    for (unsigned i = 0; i < 2; i++) {
        struct command_put command = {0};
        OBJECT_TEXT(vm, &command.vm, id, vm(f)->id);
        OBJECT_TEXT(vm, &command.vm, replica_host, other(f));
        object_mark(&command_put_desc, &command, "vm");
        OBJECT_SET(command_put, &command, replica_pools, true);
        OBJECT_SET(command_put, &command, replica_dirs, true);
        if (i == 1)
            OBJECT_SET(command_put, &command, replica_volumes, true);
        assert_int_equal(fixture_apply_put(f, &command), i == 0 ? -EBUSY : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(they_go_where_the_vm_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_left_goes_when_the_vm_has_run, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_stands_in_while_something_is_left, setup, teardown),
        cmocka_unit_test_setup_teardown(they_stay_as_they_are_in_a_replica, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_not_settled_is_in_none, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_that_never_ran_gives_them_back, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_that_ran_leaves_them_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failover_that_a_recovery_lost_is_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(where_they_are_is_in_no_other_command, setup, teardown),
        cmocka_unit_test_setup_teardown(an_agent_that_does_not_know_has_no_part, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_said_in_the_command, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
