/* Volumes in the snapshots of their VM: what the records say, what is refused while a snapshot has a volume, reverting where the VM's
 * volumes are others by now, and what becomes of it all with the VM. And snapshots of a volume alone, which stay with it whoever has it. */
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

/* The last operation, as n1 is told of it; @ret is the caller's to clear. */
static void ordered(struct fixture *f, struct task_order *ret)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.tasks.count, 1);
    OBJECT_COPY(task_order, ret, (const struct task_order *)orders.tasks.items);
    assert_string_equal(ret->id, f->decision.operation_id);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

/* Refused while the last operation is under way, which stays the last one. */
static void refused_meanwhile(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *words)
{
    char operation[STATE_ID_BYTES];
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    refused(f, route, id, body, code, words);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
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

static void a_clone_comes_or_goes_whole(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    keep(f, "s");
    refused(f, ROUTE_ID_snapshot_clone, "s", "{\"name\":\"c\"}", -EINVAL, "snapshot 's' has 2 volumes");
    refused(f, ROUTE_ID_snapshot_clone, "s", "{\"name\":\"c\",\"volume\":\"late\"}", -ENOENT, "'late' is not in snapshot 's'");
    refused(f, ROUTE_ID_snapshot_clone, "s", "{\"name\":\"a\",\"volume\":\"a\"}", -EEXIST, "");
    fixture_must(f, ROUTE_ID_snapshot_clone, "s", "{\"name\":\"c\",\"volume\":\"a\",\"pool\":\"ssd\",\"labels\":{\"k\":\"v\"}}");
    assert_int_equal(volume(f, "c")->state, volume_state_CREATING);
    assert_string_equal(volume(f, "c")->snapshot, "s");
    assert_string_equal(volume(f, "c")->origin, volume(f, "a")->id);
    assert_string_equal(volume(f, "c")->host, "n1");
    assert_string_equal(string_map_get(&volume(f, "c")->labels, "k"), "v");
    ordered(f, &order);
    assert_string_equal(order.move.from.id, volume(f, "a")->id);
    assert_string_equal(order.move.to.id, volume(f, "c")->id);
    assert_string_equal(order.move.to.place, f->decision.operation_id);
    assert_string_equal(order.move.snapshot, snapshot_of(f, "s")->id);
    OBJECT_CLEAR(task_order, &order);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.volumes.count + orders.moved_volumes.count, 0); /* nobody makes it empty */
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    refused_meanwhile(f, ROUTE_ID_snapshot_delete, "s", NULL, -EBUSY, "volume 'c' is being made of a snapshot of volume 'a'");
    refused_meanwhile(f, ROUTE_ID_volume_delete, "c", NULL, -EBUSY, "is being made of snapshot 's'");
    refused_meanwhile(f, ROUTE_ID_volume_attach, "c", "{\"vm\":\"web\"}", -EBUSY, "is creating");
    ends(f, operation_state_SUCCEEDED);
    assert_int_equal(volume(f, "c")->state, volume_state_AVAILABLE);
    /* all of it in any order */
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    ends(f, operation_state_SUCCEEDED);
    attached(f, "c", "web");
    /* one that is not made after all: what there is of it is removed, where it is */
    fixture_must(f, ROUTE_ID_volume_snapshot, "late", "{\"name\":\"t\"}");
    ends(f, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_snapshot_clone, "t", "{\"name\":\"d\"}"); /* nobody has it */
    refused_meanwhile(f, ROUTE_ID_volume_attach, "late", "{\"vm\":\"web\"}", -EBUSY, "volume 'd' is being made of a snapshot");
    refused_meanwhile(f, ROUTE_ID_snapshot_delete, "t", NULL, -EBUSY, "volume 'd' is being made of a snapshot");
    ends(f, operation_state_FAILED);
    assert_int_equal(volume(f, "d")->state, volume_state_DELETING);
    report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.moved_volumes.count, 1);
    const struct volume_order *gone = orders.moved_volumes.items;
    assert_true(gone->remove);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, gone->id);
    OBJECT_TEXT(volume_seen, seen, place, gone->place);
    OBJECT_SET(volume_seen, seen, gone, true);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(state_get(f->state, object_kind_VOLUME, "d"));
    fixture_must(f, ROUTE_ID_snapshot_delete, "t", NULL);
}

/* What is decided now, to be applied later. */
static struct bytes_writer decided(struct fixture *f, enum route_id route, const char *id, const void *body)
{
    struct decision_context context = fixture_context(f);
    struct bytes_writer command = {0};
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, route, id, strlen(id), body, &f->decision, &f->error), 0);
    bytes_put(&command, f->decision.command.data, f->decision.command.size);
    return command;
}

/* Controllers that know nothing of it refuse these commands: so do all, unless the command says that it is meant. An unknown word in it ends
 * those. */
static void what_older_controllers_refuse_says_that_it_is_meant(void **test)
{
    struct fixture *f = *test;
    const struct volume_attachment web = {.vm = (char *)(uintptr_t)"web"};
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    fixture_must(f, ROUTE_ID_volume_detach, "b", NULL);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    struct bytes_writer create = decided(f, ROUTE_ID_snapshot_create, "web", NULL);
    struct bytes_writer attachment = decided(f, ROUTE_ID_volume_attach, "late", &web);
    attached(f, "a", "web");
    assert_int_equal(fixture_apply(f, &create), -EBUSY);
    assert_non_null(strstr(f->error.text, "has a volume attached by now"));
    keep(f, "s");
    assert_int_equal(fixture_apply(f, &attachment), -EBUSY);
    assert_non_null(strstr(f->error.text, "has snapshot 's' by now"));
    attached(f, "late", "web");
    bytes_writer_finish(&create);
    bytes_writer_finish(&attachment);
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

static void a_volume_alone_while_a_vm_has_it(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    refused(f, ROUTE_ID_volume_snapshot, "a", "{\"ram\":true}", -EINVAL, "is for snapshots of VMs");
    fixture_must(f, ROUTE_ID_volume_snapshot, "a", "{\"name\":\"s\",\"labels\":{\"k\":\"v\"}}");
    assert_null(snapshot_of(f, "s")->vm);
    assert_string_equal(snapshot_of(f, "s")->volume_name, "a");
    assert_int_equal(snapshot_of(f, "s")->volumes.count, 1);
    assert_int_equal(volume(f, "a")->snapshots, 1);
    ordered(f, &order);
    assert_string_equal(order.volume_vm, fixture_vm(f, "web")->id);
    assert_null(order.task.vm); /* an older agent would revert all of the VM */
    assert_string_equal(order.task.snapshot.disk, volume(f, "a")->disk);
    assert_false(OBJECT_HAS(task_order, &order, volume));
    OBJECT_CLEAR(task_order, &order);
    refused_meanwhile(f, ROUTE_ID_snapshot_create, "web", "{}", -EBUSY, "snapshot 's' of volume 'a' is creating; wait for that");
    refused_meanwhile(f, ROUTE_ID_volume_snapshot, "b", "{}", -EBUSY, "snapshot 's' of volume 'a' is creating");
    refused_meanwhile(f, ROUTE_ID_volume_detach, "b", NULL, -EBUSY, "is under way");
    ends(f, operation_state_SUCCEEDED);
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_AVAILABLE);
    refused(f, ROUTE_ID_snapshot_revert, "s", NULL, -EBUSY, "VM 'web', which has volume 'a', is running: stop it first");
    refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"ssd\"}", -EBUSY, "it is part of snapshot 's' of volume 'a'");
    /* of its VM's snapshots it is one of many, and comes back with each of them */
    keep(f, "t");
    assert_int_equal(volume(f, "a")->snapshots, 2);
    refused(f, ROUTE_ID_volume_detach, "a", NULL, -EBUSY, "part of snapshot 't' of VM 'web'");
    fixture_must(f, ROUTE_ID_snapshot_delete, "t", NULL);
    ends(f, operation_state_SUCCEEDED);
    /* off, its VM is let alone meanwhile */
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_snapshot_revert, "s", NULL);
    refused_meanwhile(f, ROUTE_ID_snapshot_create, "web", "{}", -EBUSY, "is reverting");
    ends(f, operation_state_SUCCEEDED);
    /* the VM goes, and the snapshot stays with its volume */
    fixture_must(f, ROUTE_ID_volume_update, "a", "{\"name\":\"data\"}");
    assert_string_equal(snapshot_of(f, "s")->volume_name, "data");
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_int_equal(snapshot_of(f, "s")->state, snapshot_state_AVAILABLE);
}

static void a_volume_alone_that_nobody_has(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    make(f, "anyones", "nas");
    refused(f, ROUTE_ID_volume_snapshot, "anyones", NULL, -ENOTSUP, "attached to no VM, so that it is no host's: attach it to a VM");
    fixture_must(f, ROUTE_ID_volume_snapshot, "late", NULL);
    ordered(f, &order);
    assert_null(order.volume_vm);
    assert_string_equal(order.volume.id, volume(f, "late")->id);
    assert_string_equal(order.volume.pool.name, "ssd");
    OBJECT_CLEAR(task_order, &order);
    refused_meanwhile(f, ROUTE_ID_volume_attach, "late", "{\"vm\":\"web\"}", -EBUSY, "of volume 'late' is creating; wait for that");
    refused_meanwhile(f, ROUTE_ID_volume_snapshot, "late", NULL, -EBUSY, "is creating");
    refused_meanwhile(f, ROUTE_ID_volume_delete, "late", NULL, -EBUSY, "cannot be removed: it is part of snapshot");
    ends(f, operation_state_SUCCEEDED);
    const struct snapshot *snapshot = state_at(f->state, object_kind_SNAPSHOT, 0)->snapshot;
    char name[64];
    snprintf(name, sizeof name, "%s", snapshot->name);
    assert_string_equal(name, "late-20260131-120000");
    /* it is attached and detached as it likes; its task is another VM's then */
    attached(f, "late", "web");
    fixture_must(f, ROUTE_ID_volume_detach, "late", NULL);
    refused(f, ROUTE_ID_volume_snapshot, "late", "{}", -EBUSY, "volume 'late' is detaching; wait for that");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_snapshot_revert, name, NULL);
    ends(f, operation_state_FAILED);
    assert_int_equal(snapshot_of(f, name)->state, snapshot_state_AVAILABLE);
    fixture_must(f, ROUTE_ID_snapshot_delete, name, NULL);
    refused_meanwhile(f, ROUTE_ID_volume_attach, "late", "{\"vm\":\"web\"}", -EBUSY, "is deleting");
    ends(f, operation_state_FAILED);
    assert_int_equal(snapshot_of(f, name)->state, snapshot_state_FAILED);
    fixture_must(f, ROUTE_ID_snapshot_delete, name, NULL);
    ends(f, operation_state_SUCCEEDED);
    assert_int_equal(volume(f, "late")->snapshots, 0);
    /* forgotten with its snapshots */
    fixture_must(f, ROUTE_ID_volume_snapshot, "late", "{\"name\":\"u\"}");
    ends(f, operation_state_SUCCEEDED);
    struct decision_context context = fixture_context(f);
    context.force = true;
    decision_finish(&f->decision);
    assert_int_equal(fixture_finish(f, decide_route(f->state, &context, ROUTE_ID_volume_delete, "late", 4, NULL, &f->decision, &f->error)), 0);
    assert_null(state_get(f->state, object_kind_SNAPSHOT, "u"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_records_say_so, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_stays_as_long_as_a_snapshot_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_came_later_is_detached_before_a_revert, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_lies_beside_a_disk_of_the_vms_own, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_alone_while_a_vm_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_alone_that_nobody_has, setup, teardown),
        cmocka_unit_test_setup_teardown(a_clone_comes_or_goes_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(what_older_controllers_refuse_says_that_it_is_meant, setup, teardown),
        cmocka_unit_test_setup_teardown(by_force_the_vm_goes_and_its_snapshots, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
