/* Migrations whose disks go to a pool of the target: where they are at every moment, room that is kept, and what is refused. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static char operation_id[STATE_ID_BYTES];
static bool knows_shared; /* the source's agent */

static const struct vm_disk *disk(struct fixture *f, const char *name)
{
    const struct vm_disk *found = own_disk_find(fixture_vm(f, "web"), name);
    assert_non_null(found);
    return found;
}

/* "web" runs on n1, "root" of 1 GiB in the directory of that, "data" of 2 GiB in its pool "old", "log" in the shared pool "nas". "new" is a
 * pool of n2. */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    knows_shared = true;
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"old\",\"kind\":\"dir\",\"path\":\"/srv/old\",\"hosts\":[\"n1\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"new\",\"kind\":\"dir\",\"path\":\"/srv/new\",\"hosts\":[\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_say_pool(f, "n1", "old", 16 * GIB, 8 * GIB);
    fixture_say_pool(f, "n2", "new", 16 * GIB, 8 * GIB);
    fixture_say_pool(f, "n1", "nas", 16 * GIB, 8 * GIB);
    fixture_say_pool(f, "n2", "nas", 16 * GIB, 8 * GIB);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824},"
                 "{\"name\":\"data\",\"size_bytes\":2147483648,\"pool\":\"old\"},{\"name\":\"log\",\"size_bytes\":1073741824,\"pool\":\"nas\"},"
                 "{\"name\":\"cd\",\"size_bytes\":1048576,\"read_only\":true}]}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void begin(struct fixture *f, const char *body)
{
    fixture_must(f, ROUTE_ID_vm_migrate, "web", body);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
}

/* @storage: the name of the pool that the source knows of, or NULL. */
static int handover(struct fixture *f, const char *storage)
{
    char body[300], known[60] = "";
    if (storage != NULL)
        snprintf(known, sizeof known, ",\"storage\":\"%s\"", fixture_get(f, object_kind_POOL, storage)->common->id);
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu%s%s}", fixture_get(f, object_kind_HOST, "n1")->common->id,
             operation_id, (unsigned long long)fixture_vm(f, "web")->epoch, known, knows_shared ? ",\"storage_shared\":true" : "");
    return fixture_do(f, ROUTE_ID_node_handover, NULL, body);
}

static struct node_orders orders_of(struct fixture *f, const char *host)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static bool has_pool(const struct vm_order *order, const char *name)
{
    for (size_t i = 0; i < order->pools.count; i++)
        if (strcmp(((const struct pool_order *)order->pools.items)[i].name, name) == 0)
            return true;
    return false;
}

static const char *const names[] = {"root", "data", "log"};

/* What @host is to remove of "log" now: in that pool and place. */
static void removes(struct fixture *f, const char *host, const char *pool, const char *place)
{
    struct node_orders orders = orders_of(f, host);
    const struct volume_order *order = orders.left_disks.items;
    assert_int_equal(orders.left_disks.count, pool != NULL);
    if (pool != NULL) {
        assert_true(order->own && order->remove);
        assert_string_equal(order->disk, "log");
        assert_string_equal(order->pool.name, pool);
        assert_true(place == NULL ? order->place == NULL : strcmp(order->place, place) == 0);
        assert_string_equal(order->kept_place, operation_id);
    }
    OBJECT_CLEAR(node_orders, &orders);
}

static void is_gone(struct fixture *f, const char *host, const char *place)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, fixture_vm(f, "web")->id);
    OBJECT_TEXT(volume_seen, seen, disk, "log");
    OBJECT_TEXT(volume_seen, seen, place, place);
    OBJECT_SET(volume_seen, seen, gone, true);
    assert_int_equal(fixture_send(f, &report), 1);
}

static uint64_t kept(struct fixture *f)
{
    const struct pool *pool = fixture_get(f, object_kind_POOL, "new")->pool;
    return pool_kept_bytes(f->state, pool, pool_member_find(pool, fixture_get(f, object_kind_HOST, "n2")->common->id));
}

static void they_are_where_the_record_says(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"to\":\"n2\",\"storage\":\"new\"}");
    assert_int_equal(kept(f), 4 * GIB);
    fixture_refused(f, ROUTE_ID_pool_delete, "new", NULL, -EBUSY, "", "VM 'web' uses it");
    fixture_refused(f, ROUTE_ID_pool_update, "new", "{\"hosts\":[\"n1\"]}", -EBUSY, "/hosts", "leaves out host 'n2'");
    /* the target is told where they will be; the record is as it was */
    struct node_orders orders = orders_of(f, "n2");
    assert_int_equal(orders.incoming.count, 1);
    const struct vm_order *vm = &((const struct incoming_order *)orders.incoming.items)->vm;
    const struct vm_disk *disks = vm->disks.items;
    for (unsigned i = 0; i < 3; i++) {
        assert_string_equal(disks[i].pool, "new");
        assert_string_equal(disks[i].place, operation_id);
        assert_true(disks[i].arriving);
    }
    assert_false(disks[3].arriving);
    assert_true(has_pool(vm, "new") && !has_pool(vm, "nas") && !has_pool(vm, "old"));
    OBJECT_CLEAR(node_orders, &orders);
    assert_null(disk(f, "root")->pool);
    assert_string_equal(disk(f, "data")->pool, "old");
    orders = orders_of(f, "n1");
    vm = orders.vms.items;
    assert_true(((const struct vm_disk *)vm->disks.items)->pool == NULL && has_pool(vm, "old") && !has_pool(vm, "new"));
    OBJECT_CLEAR(node_orders, &orders);
    /* it is handed over: in this very entry they are there */
    assert_int_equal(handover(f, "new"), 0);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
    assert_string_equal(disk(f, "root")->pool, "new");
    assert_string_equal(disk(f, "root")->place, operation_id);
    assert_string_equal(disk(f, "data")->pool, "new");
    assert_string_equal(disk(f, "data")->place, operation_id);
    assert_string_equal(disk(f, "log")->pool, "new");
    assert_string_equal(disk(f, "log")->place, operation_id);
    assert_true(fixture_vm(f, "web")->disks_made);
    assert_int_equal(kept(f), 0);
    orders = orders_of(f, "n2");
    vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->place, operation_id);
    assert_false(((const struct vm_disk *)vm->disks.items)->arriving);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_must(f, ROUTE_ID_pool_delete, "old", NULL); /* nothing of the state needs it any more */
    /* but what it had in the shared pool is removed by who sees where it is now */
    removes(f, "n1", NULL, NULL);
    removes(f, "n2", "nas", NULL);
    fixture_refused(f, ROUTE_ID_pool_delete, "nas", NULL, -EBUSY, "", "VM 'web' uses it");
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n1\",\"storage\":\"nas\"}", -EBUSY, "/disks", "still being removed");
    is_gone(f, "n2", NULL);
    assert_false(own_disk_has_other(disk(f, "log")));
    fixture_must(f, ROUTE_ID_pool_delete, "nas", NULL);
}

/* "web" with "root" in the directory of n1 and "log" in nas2, to nas. */
static void another(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas2\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas2\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_say_pool(f, "n1", "nas2", 16 * GIB, 8 * GIB);
    fixture_say_pool(f, "n2", "nas2", 16 * GIB, 8 * GIB);
}

/* From a directory, a pool of a host, and a shared pool to another shared one: who removes what, and when. */
static void to_a_pool_that_both_have(void **test)
{
    struct fixture *f = *test;
    another(f);
    begin(f, "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    assert_true(fixture_get(f, object_kind_OPERATION, operation_id)->operation->task.migration.storage_shared);
    const struct pool *nas2 = fixture_get(f, object_kind_POOL, "nas2")->pool;
    assert_int_equal(pool_kept_bytes(f->state, nas2, nas2->members.items), 4 * GIB);
    removes(f, "n1", NULL, NULL); /* nothing before it is known what came of it */
    removes(f, "n2", NULL, NULL);
    assert_int_equal(handover(f, "nas2"), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_string_equal(disk(f, names[i])->pool, "nas2");
        assert_string_equal(disk(f, names[i])->place, operation_id);
    }
    assert_true(!own_disk_has_other(disk(f, "root")) && !own_disk_has_other(disk(f, "data"))); /* n1 removes them with the VM */
    removes(f, "n1", "nas", NULL); /* both see both: the first one does it */
    removes(f, "n2", NULL, NULL);
    is_gone(f, "n1", NULL);
    /* back: what is in that pool already stays there, and then nothing goes along */
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n1\",\"storage\":\"nas2\"}", -EINVAL, "/storage", "leave storage out");
}

static void fails(struct fixture *f)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "a test");
    assert_int_equal(fixture_send(f, &report), 1);
}

/* What host n2 says of the migration that it is to take part in; @error: what the source is told then of it, NULL: nothing. */
static void target_says(struct fixture *f, bool knows, bool ready, const char *error)
{
    const struct task *task = &fixture_get(f, object_kind_OPERATION, operation_id)->operation->task;
    struct node_report report = fixture_report(f, "n2", 8192);
    struct node_orders orders = {0};
    OBJECT_SET(node_report, &report, shared_arrivals, knows);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_PEER);
    OBJECT_SET(task_seen, seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, seen, ready, ready);
    OBJECT_TEXT(task_seen, seen, endpoint, ready ? "192.0.2.2:49152" : NULL);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.incoming.count, error == NULL);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_send(f, &report);
    if ((error == NULL) != (task->peer_error == NULL) || (error != NULL && strstr(task->peer_error, error) == NULL))
        fail_msg("peer: %s", task->peer_error != NULL ? task->peer_error : "no error");
}

/* Its agent could not fill them, and would keep the source waiting until the time is over. */
static void a_target_of_an_older_version_is_given_nothing(void **test)
{
    struct fixture *f = *test;
    another(f);
    begin(f, "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    target_says(f, false, true, "bring it up to date");
    assert_false(fixture_get(f, object_kind_OPERATION, operation_id)->operation->task.peer_ready);
    struct node_report report = fixture_report(f, "n2", 8192);
    OBJECT_SET(node_report, &report, shared_arrivals, false);
    assert_int_equal(fixture_send(f, &report), 0); /* said once */
    target_says(f, true, true, NULL); /* it was brought up to date before the source has ended it */
    target_says(f, false, true, NULL); /* and is put back when it is ready: as it comes */
    fails(f);
}

/* Where shared pools have no part in it any agent will do. */
static void but_one_takes_what_it_knows(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"plain\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "plain", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_migrate, "plain", "{\"to\":\"n2\",\"storage\":\"new\"}");
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    target_says(f, false, true, NULL);
}

/* Whatever the target has put there goes, and nothing else. */
static void what_a_target_has_left_in_a_shared_pool(void **test)
{
    struct fixture *f = *test;
    another(f);
    begin(f, "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    fails(f);
    assert_null(disk(f, "root")->pool);
    assert_string_equal(disk(f, "data")->pool, "old");
    assert_string_equal(disk(f, "log")->pool, "nas");
    for (unsigned i = 0; i < 3; i++) {
        assert_string_equal(disk(f, names[i])->other_pool, "nas2");
        assert_string_equal(disk(f, names[i])->other_place, operation_id);
        assert_false(disk(f, names[i])->moving);
    }
    struct node_orders orders = orders_of(f, "n1");
    assert_int_equal(orders.left_disks.count, 3);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(handover(f, "nas2"), 0); /* one that was on its way: too late */
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    fixture_refused(f, ROUTE_ID_pool_delete, "nas2", NULL, -EBUSY, "", "VM 'web' uses it");
    /* one that is deleted now takes it along */
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    orders = orders_of(f, "n1");
    const struct vm_order *vm = orders.vms.items;
    assert_true(vm->wanted == vm_wanted_DELETED && has_pool(vm, "nas2") && has_pool(vm, "nas") && has_pool(vm, "old"));
    OBJECT_CLEAR(node_orders, &orders);
}

/* A VM that is deleted while it is migrated: its host removes what the target has put into the shared pool. */
static void deleted_on_the_way(void **test)
{
    struct fixture *f = *test;
    another(f);
    begin(f, "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    struct node_orders orders = orders_of(f, "n1");
    const struct vm_order *vm = orders.vms.items;
    assert_true(vm->wanted == vm_wanted_DELETED && has_pool(vm, "nas2"));
    OBJECT_CLEAR(node_orders, &orders);
}

/* In a cluster that was rebuilt from a survivor it may have been handed over after all. */
static void nothing_goes_after_a_recovery(void **test)
{
    struct fixture *f = *test;
    another(f);
    begin(f, "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, state_at(f->state, object_kind_CONTROLLER, 0)->common->id), 0);
    fails(f);
    assert_true(!own_disk_has_other(disk(f, "root")) && !own_disk_has_other(disk(f, "log")));
}

/* They are layers beside those of the disks: where all of these stay, in shared pools, so do they. */
static void snapshots_stay_with_disks_that_stay(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"far\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824,\"pool\":\"nas\"},"
                 "{\"name\":\"cd\",\"size_bytes\":1048576,\"read_only\":true}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "far", vm_state_RUNNING);
    another(f);
    fixture_must(f, ROUTE_ID_snapshot_create, "far", "{\"name\":\"s\"}");
    char snapshot[STATE_ID_BYTES];
    snprintf(snapshot, sizeof snapshot, "%s", f->decision.operation_id);
    fixture_refused(f, ROUTE_ID_vm_migrate, "far", "{\"to\":\"n2\"}", -ENOTSUP, "", "once they are available");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, snapshot);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_get(f, object_kind_SNAPSHOT, "s")->snapshot->state, snapshot_state_AVAILABLE);
    fixture_refused(f, ROUTE_ID_vm_migrate, "far", "{\"to\":\"n2\",\"storage\":\"nas2\"}", -ENOTSUP, "", "do not go along with disks");
    fixture_must(f, ROUTE_ID_vm_migrate, "far", "{\"to\":\"n2\"}");
    assert_true(fixture_get(f, object_kind_OPERATION, f->decision.operation_id)->operation->task.migration.snapshots_stay);
    /* one of a VM with a disk of its host */
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}");
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOTSUP, "", "do not go along with disks");
}

/* The same entry as controllers write it that wait for the end of what is left: it means what it meant. */
static void refused_without_the_field(struct fixture *f)
{
    struct command_message message;
    struct bytes_writer bytes = {0};
    char id[STATE_ID_BYTES];
    assert_int_equal(command_decode(f->decision.command.data, f->decision.command.size, &message, &f->error), 0);
    struct operation *operation = &((struct command_task *)message.payload)->operation;
    assert_true(operation->task.migration.left_stays);
    fixture_uuid(f, id);
    OBJECT_TEXT(operation, operation, id, id);
    operation->task.migration.left_stays = false;
    assert_int_equal(command_encode(COMMAND_task, message.payload, &bytes, NULL), 0);
    assert_int_equal(fixture_apply(f, &bytes), -EBUSY);
    assert_non_null(strstr(f->error.text, "is still being removed"));
    bytes_writer_finish(&bytes);
    command_message_finish(&message);
}

/* What a migration that failed has left in a pool that has gone keeps nobody from another one, where the disks stay as they are. */
static void what_is_left_in_a_shared_pool_waits_for_nobody(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"two\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824},"
                 "{\"name\":\"log\",\"size_bytes\":1073741824,\"pool\":\"nas\"}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "two", vm_state_RUNNING);
    another(f);
    /* not so with a copy that is being made */
    fixture_must(f, ROUTE_ID_vm_move_disk, "two", "{\"disk\":\"root\",\"pool\":\"nas2\"}");
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    fixture_refused(f, ROUTE_ID_vm_migrate, "two", "{\"to\":\"n2\"}", -EBUSY, "/disks", "disk 'root' of VM 'two' is being moved");
    fails(f);
    fixture_must(f, ROUTE_ID_vm_forget_left, "two", "{\"disk\":\"root\"}");
    fixture_must(f, ROUTE_ID_vm_migrate, "two", "{\"to\":\"n2\",\"storage\":\"nas2\"}");
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
    fails(f);
    const struct vm_disk *disks = fixture_vm(f, "two")->disks.items;
    assert_true(text_same(disks[0].other_pool, "nas2") && text_same(disks[1].other_pool, "nas2"));
    /* the record has one place for what is left of a disk */
    fixture_refused(f, ROUTE_ID_vm_migrate, "two", "{\"to\":\"n2\",\"storage\":\"new\"}", -EBUSY, "/disks",
            "in pool nas2 is still being removed; wait for that, or forget it, and it stays there: drover vm forget-left two --disk root");
    fixture_must(f, ROUTE_ID_vm_migrate, "two", "{\"to\":\"n2\"}");
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", f->decision.operation_id);
    refused_without_the_field(f);
    char body[200];
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu}", fixture_get(f, object_kind_HOST, "n1")->common->id, id,
             (unsigned long long)fixture_vm(f, "two")->epoch);
    fixture_must(f, ROUTE_ID_node_handover, NULL, body);
    assert_string_equal(fixture_vm(f, "two")->host_name, "n2");
    /* it is noted still, and removed by who sees the disk itself: one of them n2 alone */
    disks = fixture_vm(f, "two")->disks.items;
    for (unsigned i = 0; i < 2; i++) {
        assert_string_equal(disks[i].other_pool, "nas2");
        assert_string_equal(disks[i].other_place, operation_id);
    }
    assert_string_equal(own_disk_left_worker(f->state, fixture_vm(f, "two"), &disks[0]), fixture_get(f, object_kind_HOST, "n2")->common->id);
    assert_string_equal(own_disk_left_worker(f->state, fixture_vm(f, "two"), &disks[1]), fixture_get(f, object_kind_HOST, "n1")->common->id);
    fixture_must(f, ROUTE_ID_vm_forget_left, "two", "{\"disk\":\"root\"}");
    assert_false(own_disk_has_other(fixture_vm(f, "two")->disks.items));
}

/* An agent that knows of pools, and not of shared ones, has left "log" out. */
static void the_source_has_to_know_of_shared_pools(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"to\":\"n2\",\"storage\":\"new\"}");
    knows_shared = false;
    assert_int_equal(handover(f, "new"), 0);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, operation_id)->operation->state, operation_state_FAILED);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_string_equal(disk(f, "log")->pool, "nas");
}

/* Who would have to remove what is left has to reach it. */
static void hosts_that_lack_the_shared_pool(void **test)
{
    struct fixture *f = *test;
    another(f);
    fixture_must(f, ROUTE_ID_pool_update, "nas2", "{\"hosts\":[\"n2\"]}");
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n2\",\"storage\":\"nas2\"}", -EXDEV, "/storage", "is not there on host n1");
    fixture_say_pool(f, "n2", "nas", 16 * GIB, 0);
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOSPC, "/to", "pool");
}

static void a_migration_that_fails_changes_nothing(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"storage\":\"new\"}"); /* only n2 has it */
    assert_string_equal(fixture_get(f, object_kind_OPERATION, operation_id)->operation->task.migration.to_name, "n2");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "a test");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(disk(f, "root")->pool);
    assert_string_equal(disk(f, "data")->pool, "old");
    assert_int_equal(kept(f), 0);
    (void)handover(f, "new"); /* one that was on its way: too late */
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_null(disk(f, "root")->pool);
    struct node_orders orders = orders_of(f, "n2");
    assert_int_equal(orders.incoming.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_must(f, ROUTE_ID_pool_delete, "new", NULL);
}

/* An older agent of the source knows nothing of the pool, and would have left those disks out that are in pools. */
static void the_source_has_to_know_of_it(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"to\":\"n2\",\"storage\":\"new\"}");
    assert_int_equal(handover(f, NULL), 0);
    const struct operation *ended = fixture_get(f, object_kind_OPERATION, operation_id)->operation;
    assert_int_equal(ended->state, operation_state_FAILED);
    assert_non_null(strstr(ended->error_text, "upgrade it"));
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    assert_string_equal(disk(f, "data")->pool, "old");
}

static void what_is_refused(void **test)
{
    const enum route_id go = ROUTE_ID_vm_migrate;
    struct fixture *f = *test;
    fixture_refused(f, go, "web", "{\"to\":\"n2\"}", -ENOTSUP, "/disks", "name the pool there that it is to go to (storage)");
    fixture_refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"none\"}", -ENOENT, "/storage", "there is no pool 'none'");
    fixture_must(f, ROUTE_ID_pool_create, NULL,
                 "{\"name\":\"ceph\",\"kind\":\"rbd\",\"path\":\"/etc/ceph/ceph.conf\",\"ceph_pool\":\"vms\",\"ceph_user\":\"drover\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"ceph\"}", -EINVAL, "/storage", "takes volumes only");
    fixture_refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"old\"}", -EXDEV, "/storage", "'old' is not on host n2");
    fixture_say_pool(f, "n2", "new", 16 * GIB, 2 * GIB);
    fixture_refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOSPC, "/storage", "the disks of VM 'web' that go along have 4096 MiB");
    fixture_refused(f, go, "web", "{\"storage\":\"new\"}", -ENOSPC, "", "");
    fixture_say_pool(f, "n2", "new", 16 * GIB, 0);
    fixture_refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -EHOSTDOWN, "/storage", "host n2 cannot use 'new' now");
    fixture_say_pool(f, "n2", "new", 16 * GIB, 8 * GIB);
    /* what was true when it was decided is looked at again when it begins */
    struct decision_context context = fixture_context(f);
    char to[] = "n2", storage[] = "new";
    struct vm_migration wish = {.to = to, .storage = storage};
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, go, "web", 3, &wish, &f->decision, &f->error), 0);
    struct decision decided = f->decision;
    f->decision = (struct decision){0};
    fixture_say_pool(f, "n2", "new", 16 * GIB, GIB);
    assert_int_equal(fixture_apply(f, &decided.command), -ENOSPC);
    assert_non_null(strstr(f->error.text, "has not 4096 MiB free on host n2 by now"));
    decision_finish(&decided);
    /* what is only read is told apart */
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"cd\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"cd\",\"size_bytes\":1048576,\"pool\":\"old\","
                 "\"read_only\":true}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "cd", vm_state_RUNNING);
    fixture_refused(f, go, "cd", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOTSUP, "/disks", "is only read");
    /* nothing goes along */
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"far\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824,\"pool\":\"nas\"}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "far", vm_state_RUNNING);
    fixture_refused(f, go, "far", "{\"to\":\"n2\",\"storage\":\"nas\"}", -EINVAL, "/storage", "leave storage out");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(they_are_where_the_record_says, setup, teardown),
        cmocka_unit_test_setup_teardown(a_migration_that_fails_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(the_source_has_to_know_of_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(to_a_pool_that_both_have, setup, teardown),
        cmocka_unit_test_setup_teardown(a_target_of_an_older_version_is_given_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(but_one_takes_what_it_knows, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_target_has_left_in_a_shared_pool, setup, teardown),
        cmocka_unit_test_setup_teardown(deleted_on_the_way, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_goes_after_a_recovery, setup, teardown),
        cmocka_unit_test_setup_teardown(the_source_has_to_know_of_shared_pools, setup, teardown),
        cmocka_unit_test_setup_teardown(hosts_that_lack_the_shared_pool, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_left_in_a_shared_pool_waits_for_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(snapshots_stay_with_disks_that_stay, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
