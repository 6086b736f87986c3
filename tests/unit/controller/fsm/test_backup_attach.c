/* A cluster learns of the backups in a store, page by page, and makes a VM of one as it was in another cluster. */
#include "tests/unit/controller/fsm_fixture.h"

#define ID(n) "00000000-0000-4000-8000-00000000000" n
#define LAN "{\"name\":\"lan\",\"ipv4_subnet\":\"192.0.2.0/24\"}"

static struct fixture *cluster_make(void)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    return f;
}

static int setup(void **test)
{
    *test = cluster_make();
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct backup *backup_of(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_BACKUP, name)->backup;
}

static void found_add(struct task_seen *seen, const char *id, const char *vm, const char *vm_name, const char *definition)
{
    struct backup_found *found = OBJECT_ADD(backup_result, &seen->backup, found);
    OBJECT_TEXT(backup_found, found, id, id);
    OBJECT_TEXT(backup_found, found, created_at, "2026-01-31T12:34:56.000Z");
    OBJECT_TEXT(backup_found, found, vm_name, vm_name);
    OBJECT_SET(backup_found, found, consistency, snapshot_consistency_FILESYSTEM);
    if (vm != NULL)
        OBJECT_TEXT(backup_found, found, vm, vm);
    if (definition != NULL)
        OBJECT_TEXT(backup_found, found, definition, definition);
    struct snapshot_disk *disk = OBJECT_ADD(backup_found, found, disks);
    OBJECT_TEXT(snapshot_disk, disk, name, "root");
    OBJECT_SET(snapshot_disk, disk, size_bytes, 3 << 20);
}

static struct task_seen *seen_begin(struct fixture *f, struct node_report *report)
{
    *report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, report, tasks);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    object_mark(&task_seen_desc, seen, "backup");
    return seen;
}

static void attach_asked(struct fixture *f, const char *after)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_backup_store_attach, "nas", NULL);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.tasks.count, 1);
    const struct task_order *order = orders.tasks.items;
    assert_int_equal(order->task.kind, task_kind_BACKUP_ATTACH);
    assert_string_equal(order->store.location, "/srv/backups");
    assert_string_equal(order->task.backup.after != NULL ? order->task.backup.after : "", after);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

static void page_by_page(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    attach_asked(f, "");
    assert_int_equal(fixture_do(f, ROUTE_ID_backup_store_attach, "nas", NULL), -EBUSY);
    assert_non_null(strstr(f->error.text, "being attached already"));
    strcpy(f->decision.operation_id, state_at(f->state, object_kind_OPERATION, state_count(f->state, object_kind_OPERATION) - 1)->common->id);
    struct task_seen *seen = seen_begin(f, &report);
    found_add(seen, ID("1"), ID("9"), "web1", "{}");
    found_add(seen, ID("2"), NULL, "web1", NULL);
    OBJECT_SET(backup_result, &seen->backup, more, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(fixture_get(f, object_kind_BACKUP_STORE, "nas")->backup_store->attach_after, ID("2"));
    assert_string_equal(backup_of(f, "web1-20260131-123456")->id, ID("1"));
    assert_string_equal(backup_of(f, "web1-20260131-123456")->vm, ID("9"));
    assert_int_equal(backup_of(f, "web1-20260131-123456")->state, backup_state_AVAILABLE);
    assert_string_equal(backup_of(f, "web1-20260131-123456-2")->id, ID("2"));
    assert_string_equal(backup_of(f, "web1-20260131-123456-2")->vm, ID("2"));

    attach_asked(f, ID("2"));
    seen = seen_begin(f, &report);
    found_add(seen, ID("2"), ID("8"), "other", NULL); /* known: as it is */
    found_add(seen, ID("3"), NULL, "x", NULL);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(fixture_get(f, object_kind_BACKUP_STORE, "nas")->backup_store->attach_after);
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 3);
    assert_string_equal(backup_of(f, ID("2"))->vm_name, "web1");

    attach_asked(f, "");
    report = fixture_report(f, "n1", 8192);
    seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "the store is on fire");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_non_null(strstr(fixture_operation(f)->error_text, "on fire"));
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 3);
}

/* A page with nothing on it that a cluster can take is not the end; what cannot be read is listed with its damage. */
static void what_cannot_be_taken(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    attach_asked(f, "");
    struct task_seen *seen = seen_begin(f, &report);
    OBJECT_SET(backup_result, &seen->backup, more, true);
    OBJECT_TEXT(backup_result, &seen->backup, after, ID("1"));
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 0);
    attach_asked(f, ID("1"));
    seen = seen_begin(f, &report);
    struct backup_found *found = OBJECT_ADD(backup_result, &seen->backup, found);
    OBJECT_TEXT(backup_found, found, id, ID("2"));
    OBJECT_TEXT(backup_found, found, damage, "backup 2: the manifest is damaged");
    OBJECT_ADD(backup_result, &seen->backup, found); /* of bytes from outside: nothing of it is known */
    OBJECT_SET(backup_result, &seen->backup, more, true);
    OBJECT_TEXT(backup_result, &seen->backup, after, ID("1")); /* it does not go on: there is no end to wait for */
    found = (struct backup_found *)seen->backup.found.items + 1;
    OBJECT_TEXT(backup_found, found, id, ID("3")); /* neither damaged nor of any VM */
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(fixture_get(f, object_kind_BACKUP_STORE, "nas")->backup_store->attach_after);
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 1);
    const struct backup *damaged = backup_of(f, ID("2"));
    assert_string_equal(damaged->name, "damaged-00000000");
    assert_string_equal(damaged->damage, "backup 2: the manifest is damaged");
    assert_int_equal(damaged->state, backup_state_AVAILABLE);
}

/* What the backup of @vm carries in this cluster. */
static char *definition_of(struct fixture *f, const char *vm)
{
    fixture_must(f, ROUTE_ID_backup_create, vm, "{\"name\":\"made\"}");
    const char *text = backup_of(f, "made")->definition;
    assert_non_null(text);
    return xstrdup(text);
}

static void attach_one(struct fixture *f, const char *definition)
{
    struct node_report report;
    fixture_must(f, ROUTE_ID_backup_store_attach, "nas", NULL);
    struct task_seen *seen = seen_begin(f, &report);
    found_add(seen, ID("1"), ID("9"), "a", definition);
    assert_int_equal(fixture_send(f, &report), 1);
}

static void refused(struct fixture *f, const char *body, const char *field, const char *words)
{
    assert_true(fixture_do(f, ROUTE_ID_vm_create, NULL, body) < 0);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("%s", f->error.text);
}

static void a_vm_as_it_was(void **test)
{
    struct fixture *f = *test, *new = cluster_make();
    fixture_must(f, ROUTE_ID_network_create, NULL, LAN);
    fixture_must(f, ROUTE_ID_flavor_create, NULL, "{\"name\":\"odd\",\"vcpus\":3,\"memory_bytes\":67108864}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"odd\",\"labels\":{\"k\":\"v\"},\"pin\":\"n1\",\"stop_grace_s\":7,"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}],"
                 "\"nics\":[{\"network\":\"lan\"},{\"network\":\"lan\"},{\"bridge\":\"br0\",\"mac\":\"52:54:00:00:00:01\"}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    CLEANUP_FREE char *definition = definition_of(f, "a");
    const char *networks = strstr(definition, "\"networks\":[{");
    assert_non_null(networks);
    assert_null(strstr(networks + 1, "\"networks\""));
    attach_one(new, definition);
    static const char body[] = "{\"name\":\"b\",\"backup\":\"a-20260131-123456\"}";
    refused(new, "{\"name\":\"b\",\"backup\":\"none\"}", "/backup", "there is no backup 'none'");
    refused(new, "{\"name\":\"b\",\"backup\":\"a-20260131-123456\",\"started\":true}", "/started", "restored");
    refused(new, "{\"name\":\"b\",\"backup\":\"a-20260131-123456\",\"image\":\"none\"}", "/image", "import it");
    refused(new, body, "/nics/0/network", "there is no network 'lan'");
    refused(new, "{\"name\":\"b\",\"flavor\":\"small\"}", "/image", "is missing");
    fixture_must(new, ROUTE_ID_network_create, NULL, LAN);
    fixture_must(new, ROUTE_ID_vm_create, NULL, "{\"name\":\"c\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":67108864,"
                                                "\"nics\":[{\"bridge\":\"br0\",\"mac\":\"52:54:00:00:00:01\"}]}");
    fixture_must(new, ROUTE_ID_vm_create, NULL, body);
    const struct vm *b = fixture_vm(new, "b"), *a = fixture_vm(f, "a");
    assert_int_equal(b->vcpus, 3);
    assert_int_equal(b->memory_bytes, 67108864);
    assert_int_equal(b->stop_grace_s, 7);
    assert_string_equal(string_map_get(&b->labels, "k"), "v");
    assert_null(b->flavor);
    assert_null(b->pin);
    assert_null(b->backup);
    assert_string_not_equal(b->id, a->id);
    assert_int_equal(b->wanted, vm_wanted_STOPPED);
    assert_int_equal(((const struct vm_disk *)b->disks.items)->size_bytes, 3 << 20); /* what the backup has */
    const struct vm_nic *nics = b->nics.items, *had = a->nics.items;
    assert_int_equal(b->nics.count, 3);
    assert_string_equal(nics[0].mac, had[0].mac);
    assert_string_not_equal(nics[2].mac, had[2].mac); /* somebody has it here */
    assert_true(nics[0].allocated && nics[0].ips.count == 1 && nics[1].ips.count == 1);
    /* what is given is as it is given */
    fixture_must(new, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"d\",\"backup\":\"a-20260131-123456\",\"flavor\":\"small\",\"nics\":[],\"stop_grace_s\":9}");
    assert_string_equal(fixture_vm(new, "d")->flavor, "small");
    assert_int_equal(fixture_vm(new, "d")->nics.count, 0);
    assert_int_equal(fixture_vm(new, "d")->stop_grace_s, 9);
    fixture_finish_all(new);
    free(new);
}

static void a_definition_that_is_none(void **test)
{
    struct fixture *f = *test;
    attach_one(f, "{\"name\":5}");
    refused(f, "{\"name\":\"b\",\"backup\":\"a-20260131-123456\"}", "/backup", "make one by hand");
}

/* A disk that was a volume: the VM that is made of the backup gets one of its own, and not what another VM has. */
static void a_volume_is_not_taken(void **test)
{
    struct fixture *f = *test;
    attach_one(f, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":67108864,\"disks\":[{\"name\":\"root\","
                  "\"size_bytes\":1048576,\"volume\":\"" ID("7") "\",\"attachment\":3,\"leaving\":true}]}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"backup\":\"a-20260131-123456\"}");
    const struct vm_disk *disk = fixture_vm(f, "b")->disks.items;
    assert_string_equal(disk->name, "root");
    assert_null(disk->volume);
    assert_false(OBJECT_HAS(vm_disk, disk, attachment));
    assert_false(OBJECT_HAS(vm_disk, disk, leaving));
}

/* Outside bytes: it must not end the leader. */
static void a_disk_without_a_name(void **test)
{
    struct fixture *f = *test;
    attach_one(f, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":67108864,\"disks\":[{\"size_bytes\":1048576}]}");
    refused(f, "{\"name\":\"b\",\"backup\":\"a-20260131-123456\"}", "/backup", "a disk without a name");
}

static void single_disks(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false,"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576},{\"name\":\"data\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_STOPPED);
    attach_one(f, NULL);
    assert_int_equal(fixture_do(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\",\"disks\":[\"data\"]}"), -ENOENT);
    assert_string_equal(f->error.field, "/disks/0");
    assert_non_null(strstr(f->error.text, "has no disk 'data'"));
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\",\"disks\":[\"root\"]}");
    const struct task_backup *arguments = &fixture_operation(f)->task.backup;
    assert_int_equal(arguments->disks.count, 1);
    assert_string_equal(arguments->disks.items[0], "root");
}

/* The host of the live restore says how it stands. 1: that was news. */
static int live_says(struct fixture *f, const char *operation, enum operation_state state, bool ready, const char *step)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_TEXT(task_seen, seen, step, step);
    if (ready)
        OBJECT_SET(task_seen, seen, ready, true);
    return fixture_send(f, &report);
}

static void a_live_restore_starts_its_vm(void **test)
{
    struct fixture *f = *test;
    const struct vm *vm;
    char operation[37];
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false,"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_STOPPED);
    attach_one(f, NULL);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\",\"live\":true}");
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    vm = fixture_get(f, object_kind_VM, "a")->vm;
    uint64_t epoch = vm->epoch;
    assert_int_equal(live_says(f, operation, operation_state_RUNNING, false, "reads"), 1);
    assert_int_equal(vm->wanted, vm_wanted_STOPPED); /* its disks cannot be read yet */
    assert_int_equal(live_says(f, operation, operation_state_RUNNING, true, "reads"), 1); /* the same words, and news */
    assert_int_equal(vm->wanted, vm_wanted_RUNNING);
    assert_int_equal(vm->epoch, epoch + 1);
    assert_int_equal(live_says(f, operation, operation_state_RUNNING, true, "reads"), 0);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    /* what needs whole disks, or would begin it anew */
    const struct {
        enum route_id route;
        const char *id, *body;
    } others[] = {{ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}"}, {ROUTE_ID_backup_create, "a", "{}"},
                  {ROUTE_ID_vm_upgrade, "a", NULL}, {ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\"}"}};
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        assert_true(fixture_do(f, others[i].route, others[i].id, others[i].body) < 0);
        if (strstr(f->error.text, "wait") == NULL)
            fail_msg("%u: %s", i, f->error.text);
    }
    /* its host hears of another limit at once */
    uint64_t orders = state_host_orders_index(fixture_get(f, object_kind_HOST, "n1"));
    fixture_must(f, ROUTE_ID_backup_store_update, "nas", "{\"bytes_per_second\":100000}");
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n1")) > orders);
    /* it was started once: what a person wants afterwards counts */
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    assert_int_equal(live_says(f, operation, operation_state_RUNNING, true, "waits"), 1);
    assert_int_equal(vm->wanted, vm_wanted_STOPPED);
    assert_int_equal(live_says(f, operation, operation_state_SUCCEEDED, true, "all is there"), 1);
    assert_int_equal(backup_of(f, "a-20260131-123456")->state, backup_state_AVAILABLE);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"s\"}");
}

/* What the VM runs on is good for nothing without the rest, and is nowhere else. */
static void a_live_restore_outlasts_the_loss_of_its_host(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false,\"ha\":true,"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_STOPPED);
    attach_one(f, NULL);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\",\"live\":true}");
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    assert_int_equal(live_says(f, operation, operation_state_RUNNING, true, "reads"), 1);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_lose(f, "n1");
    const struct operation *restore = fixture_get(f, object_kind_OPERATION, operation)->operation;
    assert_int_equal(restore->state, operation_state_RUNNING);
    assert_non_null(strstr(restore->step, "goes on when that is back"));
    assert_int_equal(backup_of(f, "a-20260131-123456")->state, backup_state_RESTORING); /* no rule lets it go meanwhile */
    const struct vm *vm = fixture_vm(f, "a");
    assert_false(vm->recovering);
    assert_non_null(strstr(vm->state_reason, "comes from a backup, on that host"));
    struct node_report back = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &back), 1);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.tasks.count, 1);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    assert_int_equal(live_says(f, operation, operation_state_SUCCEEDED, true, "all is there"), 1);
    assert_int_equal(restore->state, operation_state_SUCCEEDED);
    /* before its disks are in their place there is nothing to go on with */
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"a\",\"live\":true}");
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    fixture_lose(f, "n1");
    assert_int_equal(fixture_get(f, object_kind_OPERATION, operation)->operation->state, operation_state_FAILED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(page_by_page, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_as_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(a_definition_that_is_none, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_is_not_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_without_a_name, setup, teardown),
        cmocka_unit_test_setup_teardown(single_disks, setup, teardown),
        cmocka_unit_test_setup_teardown(a_live_restore_starts_its_vm, setup, teardown),
        cmocka_unit_test_setup_teardown(a_live_restore_outlasts_the_loss_of_its_host, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
