/* Volumes in the snapshots of their VM: what the records say, what is refused while a snapshot has a volume, reverting where the VM's
 * volumes are others by now, and what becomes of it all with the VM. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

static const struct snapshot *snapshot_of(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_SNAPSHOT, name)->snapshot;
}

static void make(struct fixture *f, const char *name, const char *pool)
{
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"pool\":\"%s\",\"size_bytes\":1073741824}", name, pool);
    fixture_must(f, ROUTE_ID_volume_create, NULL, body);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, name)->id);
    OBJECT_SET(volume_seen, seen, made, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(volume(f, name)->state, volume_state_AVAILABLE);
}

static void attach(struct fixture *f, const char *name, const char *vm)
{
    char body[80];
    snprintf(body, sizeof body, "{\"vm\":\"%s\"}", vm);
    fixture_must(f, ROUTE_ID_volume_attach, name, body);
}

static void attached(struct fixture *f, const char *name, const char *vm)
{
    attach(f, name, vm);
    fixture_vm_is(f, vm, (enum vm_state)fixture_vm(f, vm)->state);
    assert_int_equal(volume(f, name)->state, volume_state_ATTACHED);
}

/* A shared pool on two hosts, a directory of the first; VM `web` there, which has a disk of its own and volumes `a` and `b`. */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\"]}");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 16 * GIB);
    fixture_say_pool(f, "n1", "ssd", 64 * GIB, 16 * GIB);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    make(f, "a", "nas");
    make(f, "b", "ssd");
    make(f, "late", "ssd");
    attached(f, "a", "web");
    attached(f, "b", "web");
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *words)
{
    assert_int_equal(fixture_do(f, route, id, body), code);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

/* The host says how the last operation has ended; of a snapshot which disks it has. */
static void ends(struct fixture *f, enum operation_state state)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    const struct vm *vm = fixture_vm(f, "web");
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_SET(snapshot_result, &seen->snapshot, consistency, snapshot_consistency_MEMORY);
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->disks.items + i;
        struct snapshot_disk *has = OBJECT_ADD(snapshot_result, &seen->snapshot, disks);
        OBJECT_TEXT(snapshot_disk, has, name, disk->name);
        OBJECT_SET(snapshot_disk, has, size_bytes, disk->size_bytes);
    }
    object_mark(&task_seen_desc, seen, "snapshot");
    assert_int_equal(fixture_send(f, &report), 1);
}

static void keep(struct fixture *f, const char *name)
{
    char body[100];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"ram\":true}", name);
    fixture_must(f, ROUTE_ID_snapshot_create, "web", body);
    ends(f, operation_state_SUCCEEDED);
    assert_int_equal(snapshot_of(f, name)->state, snapshot_state_AVAILABLE);
}

static void the_records_say_so(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"s\"}");
    assert_int_equal(snapshot_of(f, "s")->volumes.count, 2); /* from the beginning: they cannot go meanwhile */
    const struct snapshot_volume *item = snapshot_of(f, "s")->volumes.items;
    assert_string_equal(item->id, volume(f, "a")->id);
    assert_string_equal(item->disk, volume(f, "a")->disk);
    assert_int_equal(volume(f, "a")->snapshots, 1);
    char create[STATE_ID_BYTES];
    snprintf(create, sizeof create, "%s", f->decision.operation_id);
    refused(f, ROUTE_ID_volume_detach, "a", NULL, -EBUSY, "is under way");
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", create);
    ends(f, operation_state_SUCCEEDED);
    keep(f, "t");
    assert_int_equal(volume(f, "b")->snapshots, 2);
    assert_int_equal(volume(f, "late")->snapshots, 0);
    /* in any order; one that is not made after all is in none */
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    assert_int_equal(volume(f, "b")->snapshots, 2); /* until its host has done it */
    ends(f, operation_state_SUCCEEDED);
    assert_int_equal(volume(f, "b")->snapshots, 1);
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"u\"}");
    ends(f, operation_state_FAILED);
    assert_int_equal(volume(f, "b")->snapshots, 1);
    /* the log's snapshot has all of it, too */
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(f->state, bytes.data, bytes.size, &f->error), 0);
    bytes_writer_finish(&bytes);
    fixture_check(f);
}

static void a_volume_stays_as_long_as_a_snapshot_has_it(void **test)
{
    struct fixture *f = *test;
    keep(f, "s");
    refused(f, ROUTE_ID_volume_detach, "a", NULL, -EBUSY, "volume 'a' cannot be detached: it is part of snapshot 's' of VM 'web'; delete that");
    refused(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"nas\"}", -EBUSY, "volume 'b' cannot be moved: it is part of snapshot 's'");
    refused(f, ROUTE_ID_volume_delete, "a", NULL, -EBUSY, "detach it first");
    refused(f, ROUTE_ID_vm_delete, "web", NULL, -EBUSY, "snapshot 's' of VM 'web' has volumes in it");
    assert_int_equal(fixture_vm(f, "web")->wanted, vm_wanted_RUNNING);
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    ends(f, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    refused(f, ROUTE_ID_snapshot_create, "web", "{}", -EBUSY, "volume 'a' of VM 'web' is detaching; wait for that");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    attach(f, "a", "web");
    refused(f, ROUTE_ID_snapshot_create, "web", "{}", -EBUSY, "volume 'a' of VM 'web' is attaching; wait for that");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"nas\"}");
    refused(f, ROUTE_ID_snapshot_create, "web", "{}", -EBUSY, "is being moved");
}

static void one_that_came_later_is_detached_before_a_revert(void **test)
{
    struct fixture *f = *test;
    keep(f, "s");
    attached(f, "late", "web");
    keep(f, "t");
    assert_int_equal(volume(f, "late")->snapshots, 1);
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    refused(f, ROUTE_ID_snapshot_revert, "s", NULL, -EBUSY, "volume 'late', which was attached after snapshot 's' was made: detach it first");
    refused(f, ROUTE_ID_snapshot_revert, "s", "{\"disks_only\":true}", -EBUSY, "volume 'late'");
    fixture_must(f, ROUTE_ID_snapshot_revert, "t", NULL);
    ends(f, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_snapshot_delete, "t", NULL);
    ends(f, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_volume_detach, "late", NULL);
    refused(f, ROUTE_ID_snapshot_revert, "s", NULL, -EBUSY, "volume 'late'"); /* its host has it still */
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_snapshot_revert, "s", NULL);
    ends(f, operation_state_SUCCEEDED);
    /* one that has grown: its content can come back, the guest with the size of then cannot */
    fixture_must(f, ROUTE_ID_volume_update, "b", "{\"size_bytes\":2147483648}");
    fixture_vm_is(f, "web", vm_state_STOPPED);
    refused(f, ROUTE_ID_snapshot_revert, "s", NULL, -EINVAL, "volume 'b' has grown since snapshot 's'");
    assert_string_equal(f->error.field, "/disks_only");
    fixture_must(f, ROUTE_ID_snapshot_revert, "s", "{\"disks_only\":true}");
    ends(f, operation_state_SUCCEEDED);
}

static void memory_lies_beside_a_disk_of_the_vms_own(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"bare\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\"}");
    fixture_vm_is(f, "bare", vm_state_RUNNING);
    attached(f, "late", "bare");
    refused(f, ROUTE_ID_snapshot_create, "bare", "{\"ram\":true}", -ENOTSUP, "'bare' has volumes alone");
    assert_string_equal(f->error.field, "/ram");
    fixture_must(f, ROUTE_ID_snapshot_create, "bare", "{\"name\":\"s\"}");
    assert_int_equal(snapshot_of(f, "s")->volumes.count, 1);
}

static void by_force_the_vm_goes_and_its_snapshots(void **test)
{
    struct fixture *f = *test;
    struct state_event event;
    static const char words[] = "volume a keeps the space of snapshot s of VM web";
    bool told = false;
    keep(f, "s");
    struct decision_context context = fixture_context(f);
    context.force = true;
    decision_finish(&f->decision);
    assert_int_equal(fixture_finish(f, decide_route(f->state, &context, ROUTE_ID_vm_delete, "web", 3, NULL, &f->decision, &f->error)), 0);
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_null(state_get(f->state, object_kind_SNAPSHOT, "s"));
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_int_equal(volume(f, "a")->snapshots, 0);
    for (uint64_t serial = 0; state_event_next(f->state, serial, &event); serial = event.serial)
        told = told || memmem(event.json, event.json_size, words, sizeof words - 1) != NULL;
    assert_true(told);
    fixture_must(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"nas\"}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_records_say_so, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_stays_as_long_as_a_snapshot_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_came_later_is_detached_before_a_revert, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_lies_beside_a_disk_of_the_vms_own, setup, teardown),
        cmocka_unit_test_setup_teardown(by_force_the_vm_goes_and_its_snapshots, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
