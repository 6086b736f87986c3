/* Moves of VMs' own disks in the state: which copy is the disk at every moment, what is left and who removes it, and what is refused. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static const struct vm_disk *disk(struct fixture *f, const char *name)
{
    const struct vm_disk *found = own_disk_find(fixture_vm(f, "web"), name);
    assert_non_null(found);
    return found;
}

/* Two hosts with a shared pool and one of directories, and one of a directory of the second alone. "web" runs on n1 with "root" and "data",
 * each of 1 GiB, in the directory of its host. */
static int setup(void **test)
{
    static const char *const pools[][2] = {{"nas", "shared-dir"}, {"ssd", "dir"}};
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_host(f, "n2", 8192);
    for (size_t i = 0; i < ARRAY_SIZE(pools); i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"kind\":\"%s\",\"path\":\"/srv/%s\",\"hosts\":[\"n1\",\"n2\"]}", pools[i][0], pools[i][1],
                 pools[i][0]);
        fixture_must(f, ROUTE_ID_pool_create, NULL, body);
        fixture_say_pool(f, "n1", pools[i][0], 16 * GIB, 4 * GIB);
        fixture_say_pool(f, "n2", pools[i][0], 16 * GIB, 8 * GIB);
    }
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"one\",\"kind\":\"dir\",\"path\":\"/srv/one\",\"hosts\":[\"n2\"]}");
    fixture_say_pool(f, "n2", "one", 16 * GIB, 8 * GIB);
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824},"
                 "{\"name\":\"data\",\"size_bytes\":1073741824},{\"name\":\"cd\",\"size_bytes\":1048576,\"read_only\":true}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
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

/* n1 says how @operation goes; @copied: what it has moved. */
static void task_says(struct fixture *f, const char *operation, enum operation_state state, const char *copied)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_TEXT(task_seen, seen, copied, copied);
    fixture_send(f, &report);
}

static int left_says(struct fixture *f, const char *host, const char *name, const char *place, bool gone, const char *reason)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, fixture_vm(f, "web")->id);
    OBJECT_TEXT(volume_seen, seen, disk, name);
    OBJECT_TEXT(volume_seen, seen, place, place);
    OBJECT_SET(volume_seen, seen, gone, gone);
    OBJECT_TEXT(volume_seen, seen, reason, reason);
    return fixture_send(f, &report);
}

static void orders_of(struct fixture *f, const char *host, struct node_orders *ret)
{
    struct node_report report = fixture_report(f, host, 8192);
    *ret = (struct node_orders){0};
    assert_int_equal(node_sync_orders(f->state, &report, ret, &f->error), 0);
    OBJECT_CLEAR(node_report, &report);
}

/* What @host is to remove of a disk, and where it has to see the disk before: pools by name, "" the directory of the host; NULL: nothing. */
static void removes(struct fixture *f, const char *host, const char *pool, const char *place, const char *kept_pool, const char *kept_place)
{
    struct node_orders orders;
    orders_of(f, host, &orders);
    const struct volume_order *order = orders.left_disks.items;
    assert_int_equal(orders.volumes.count + orders.moved_volumes.count, 0); /* where older agents look */
    assert_int_equal(orders.left_disks.count, pool != NULL);
    if (pool != NULL) {
        assert_true(order->remove && order->own);
        assert_string_equal(order->id, fixture_vm(f, "web")->id);
        assert_string_equal(OBJECT_HAS(volume_order, order, pool) ? order->pool.name : "", pool);
        assert_string_equal(OBJECT_HAS(volume_order, order, kept_pool) ? order->kept_pool.name : "", kept_pool);
        assert_true(text_same(order->place, place) && text_same(order->kept_place, kept_place));
    }
    OBJECT_CLEAR(node_orders, &orders);
}

static void move(struct fixture *f, const char *body, char ret_operation[37])
{
    fixture_must(f, ROUTE_ID_vm_move_disk, "web", body);
    snprintf(ret_operation, 37, "%s", f->decision.operation_id);
}

/* From "nas", where it is at @place, to a pool of directories, and back to the directory of its host: a place of its own each time. */
static void moves_on_to_directories(struct fixture *f, const char *place)
{
    char first[37], second[37];
    move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", second);
    assert_string_equal(disk(f, "root")->other_host, "n1");
    task_says(f, second, operation_state_SUCCEEDED, second);
    assert_string_equal(disk(f, "root")->pool, "ssd");
    removes(f, "n1", "nas", place, "ssd", second);
    removes(f, "n2", NULL, NULL, NULL, NULL); /* it does not see the disk */
    assert_int_equal(left_says(f, "n1", "root", place, true, NULL), 1);
    move(f, "{\"disk\":\"root\"}", first);
    assert_null(disk(f, "root")->other_pool);
    assert_string_equal(disk(f, "root")->other_host, "n1");
    task_says(f, first, operation_state_SUCCEEDED, first);
    assert_null(disk(f, "root")->pool);
    assert_string_equal(disk(f, "root")->place, first);
    removes(f, "n1", "ssd", second, "", first);
    fixture_refused(f, ROUTE_ID_pool_delete, "ssd", NULL, -EBUSY, "", "VM 'web' uses it");
    fixture_refused(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n2\"]}", -EBUSY, "/hosts", "leaves out host 'n1'");
    assert_int_equal(left_says(f, "n1", "root", second, true, NULL), 1);
    fixture_must(f, ROUTE_ID_pool_delete, "ssd", NULL);
}

static void done_it_is_the_other_copy(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders;
    char first[37];
    uint64_t generation = fixture_vm(f, "web")->generation;
    move(f, "{\"disk\":\"root\",\"pool\":\"nas\"}", first);
    assert_true(disk(f, "root")->moving);
    assert_null(disk(f, "root")->pool);
    assert_string_equal(disk(f, "root")->other_pool, "nas");
    assert_null(disk(f, "root")->other_host);
    assert_string_equal(disk(f, "root")->other_place, first);
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1);
    orders_of(f, "n1", &orders);
    const struct task_order *order = orders.tasks.items;
    assert_false(OBJECT_HAS(task_order, order, move)); /* which older agents know */
    assert_true(OBJECT_HAS(task_order, order, disk_move));
    assert_false(OBJECT_HAS(volume_order, &order->disk_move.from, pool));
    assert_string_equal(order->disk_move.to.pool.path, "/srv/nas");
    assert_string_equal(order->disk_move.to.place, first);
    assert_string_equal(order->disk_move.to.disk, "root");
    const struct vm_order *vm = orders.vms.items;
    assert_true(((const struct vm_disk *)vm->disks.items)->moving);
    assert_null(((const struct vm_disk *)vm->disks.items)->other_place);
    assert_int_equal(vm->pools.count, 0); /* a VM that is started meanwhile does not wait for it */
    OBJECT_CLEAR(node_orders, &orders);
    removes(f, "n1", NULL, NULL, NULL, NULL);
    /* the record changes where a host says so, with what it has moved; level before is heard */
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, first);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, seen, ready, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_true(fixture_get(f, object_kind_OPERATION, first)->operation->task.level);
    task_says(f, first, operation_state_SUCCEEDED, first);
    assert_false(disk(f, "root")->moving);
    assert_string_equal(disk(f, "root")->pool, "nas");
    assert_string_equal(disk(f, "root")->place, first);
    assert_null(disk(f, "root")->other_pool);
    assert_string_equal(disk(f, "root")->other_host, "n1");
    assert_null(disk(f, "root")->other_place);
    assert_true(fixture_vm(f, "web")->disks_made);
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 2);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, first)->operation->state, operation_state_SUCCEEDED);
    orders_of(f, "n1", &orders);
    vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->pool, "nas");
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->place, first);
    assert_null(((const struct vm_disk *)vm->disks.items)->other_host);
    OBJECT_CLEAR(node_orders, &orders);
    /* what was goes, by the host that has it; and a word about another place, or another host's, is not taken for it */
    removes(f, "n1", "", NULL, "nas", first);
    removes(f, "n2", NULL, NULL, NULL, NULL);
    assert_int_equal(left_says(f, "n1", "root", first, true, NULL), 0);
    assert_int_equal(left_says(f, "n1", "data", NULL, true, NULL), 0);
    assert_int_equal(left_says(f, "n2", "root", NULL, true, NULL), 0);
    assert_int_equal(left_says(f, "n1", "root", NULL, false, "it is read-only"), 1);
    assert_int_equal(left_says(f, "n1", "root", NULL, false, "it is read-only"), 0);
    fixture_refused(f, ROUTE_ID_vm_move_disk, "web", "{\"disk\":\"root\",\"pool\":\"ssd\"}", -EBUSY, "", "still being removed: it is read-only");
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{}", -EBUSY, "/disks", "is still being removed: it is read-only");
    /* the state is the same after a restore */
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(f->state, bytes.data, bytes.size, &f->error), 0);
    bytes_writer_finish(&bytes);
    removes(f, "n1", "", NULL, "nas", first);
    assert_int_equal(left_says(f, "n1", "root", NULL, true, NULL), 1);
    assert_null(disk(f, "root")->other_host);
    assert_null(disk(f, "root")->left_reason);
    removes(f, "n1", NULL, NULL, NULL, NULL);
    moves_on_to_directories(f, first);
}

/* An agent that does not know of such moves finds no order for it, and says that all is done. */
static void an_older_agent_moves_nothing(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    move(f, "{\"disk\":\"root\",\"pool\":\"nas\"}", operation);
    task_says(f, operation, operation_state_SUCCEEDED, NULL);
    const struct operation *ended = fixture_get(f, object_kind_OPERATION, operation)->operation;
    assert_int_equal(ended->state, operation_state_FAILED);
    assert_non_null(strstr(ended->error_text, "upgrade it"));
    assert_false(disk(f, "root")->moving);
    assert_null(disk(f, "root")->pool);
}

static void not_done_it_stays(void **test)
{
    static const enum operation_state ends[] = {operation_state_FAILED, operation_state_CANCELLED};
    struct fixture *f = *test;
    char operation[37];
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        uint64_t generation = fixture_vm(f, "web")->generation;
        move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", operation);
        task_says(f, operation, ends[i], NULL);
        assert_false(disk(f, "root")->moving);
        assert_null(disk(f, "root")->pool);
        assert_null(disk(f, "root")->place);
        assert_int_equal(fixture_vm(f, "web")->generation, generation + 2);
        removes(f, "n1", "ssd", operation, "", NULL);
        task_says(f, operation, operation_state_SUCCEEDED, operation); /* too late */
        assert_null(disk(f, "root")->pool);
        assert_int_equal(left_says(f, "n1", "root", operation, true, NULL), 1);
        removes(f, "n1", NULL, NULL, NULL, NULL);
    }
    /* nobody removes what is left, for good: it is forgotten, and nothing else of the disk is */
    move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", operation);
    fixture_refused(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"root\"}", -EBUSY, "", "is being moved");
    task_says(f, operation, operation_state_FAILED, NULL);
    fixture_refused(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"none\"}", -ENOENT, "/disk", "no disk 'none'");
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"root\"}");
    f->dry_run = false;
    assert_string_equal(disk(f, "root")->other_pool, "ssd");
    fixture_must(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"root\"}");
    fixture_must(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"root\"}"); /* again: the same */
    assert_null(disk(f, "root")->other_pool);
    removes(f, "n1", NULL, NULL, NULL, NULL);
    fixture_must(f, ROUTE_ID_pool_delete, "ssd", NULL);
    /* the end of the log is lost, perhaps with the word that it was done: the copy may be the only one */
    move(f, "{\"disk\":\"root\",\"pool\":\"nas\"}", operation);
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, state_at(f->state, object_kind_CONTROLLER, 0)->common->id), 0);
    task_says(f, operation, operation_state_CANCELLED, NULL);
    assert_null(disk(f, "root")->other_pool);
    removes(f, "n1", NULL, NULL, NULL, NULL);
}

static void meanwhile(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders;
    char operation[37];
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"v\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, fixture_get(f, object_kind_VOLUME, "v")->common->id);
    OBJECT_SET(volume_seen, seen, made, true);
    assert_int_equal(fixture_send(f, &report), 1);
    move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", operation);
    fixture_refused(f, ROUTE_ID_vm_move_disk, "web", "{\"disk\":\"data\",\"pool\":\"nas\"}", -EBUSY, "", "disk 'root' of VM 'web' is being moved");
    fixture_refused(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"s\"}", -EBUSY, "", "disk 'root' of VM 'web' is being moved");
    fixture_refused(f, ROUTE_ID_vm_migrate, "web", "{}", -EBUSY, "/disks", "is being moved");
    fixture_refused(f, ROUTE_ID_volume_attach, "v", "{\"vm\":\"web\"}", -EBUSY, "", "disk-move of VM 'web' is under way");
    fixture_refused(f, ROUTE_ID_pool_delete, "ssd", NULL, -EBUSY, "", "VM 'web' uses it");
    fixture_refused(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n2\"]}", -EBUSY, "/hosts", "leaves out host 'n1'");
    fixture_refused(f, ROUTE_ID_vm_update, "web", "{\"replica_host\":\"n2\"}", -EBUSY, "/replica_host", "is being moved");
    /* limits may be changed, and change nothing else */
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"disks\":[{\"name\":\"root\",\"limits\":{\"operations_per_second\":100}},{\"name\":\"data\"},"
                                               "{\"name\":\"cd\"}]}");
    assert_true(disk(f, "root")->moving && disk(f, "root")->limits.operations_per_second == 100);
    /* asked to end, it is its host that ends it; a VM that goes asks for that, and takes what is left with it */
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    orders_of(f, "n1", &orders);
    assert_true(((const struct task_order *)orders.tasks.items)->cancel);
    const struct vm_order *vm = orders.vms.items;
    assert_int_equal(vm->pools.count, 1);
    assert_string_equal(((const struct pool_order *)vm->pools.items)->name, "ssd");
    OBJECT_CLEAR(node_orders, &orders);
    assert_true(disk(f, "root")->moving);
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_null(state_get(f->state, object_kind_VM, "web"));
    assert_int_equal(fixture_get(f, object_kind_OPERATION, operation)->operation->state, operation_state_FAILED);
}

static void what_is_refused(void **test)
{
    const enum route_id go = ROUTE_ID_vm_move_disk;
    struct fixture *f = *test;
    char operation[37];
    fixture_refused(f, go, "none", "{\"disk\":\"root\"}", -ENOENT, "", "");
    fixture_refused(f, go, "web", "{\"disk\":\"none\",\"pool\":\"nas\"}", -ENOENT, "/disk", "no disk 'none'");
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"none\"}", -ENOENT, "/pool", "there is no pool 'none'");
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"one\"}", -EXDEV, "/pool", "'one' is not on host n1, which has VM 'web'");
    fixture_refused(f, go, "web", "{\"disk\":\"cd\",\"pool\":\"nas\"}", -ENOTSUP, "/disk", "is only read");
    fixture_say_pool(f, "n1", "ssd", 16 * GIB, 0);
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"ssd\"}", -EHOSTDOWN, "/pool", "host n1 cannot use 'ssd' now");
    /* room is kept while it moves */
    fixture_say_pool(f, "n1", "ssd", 16 * GIB, GIB / 2);
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"ssd\"}", -ENOSPC, "/pool", "disk 'root' has 1024 MiB");
    fixture_say_pool(f, "n1", "ssd", 16 * GIB, 3 * GIB / 2);
    move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", operation);
    const struct pool *ssd = fixture_get(f, object_kind_POOL, "ssd")->pool;
    assert_int_equal(pool_kept_bytes(f->state, ssd, pool_member_find(ssd, fixture_vm(f, "web")->host)), GIB);
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"c\",\"pool\":\"ssd\",\"size_bytes\":1073741824,\"host\":\"n1\"}", -ENOSPC, "/size_bytes",
            "512 MiB free where it has most");
    task_says(f, operation, operation_state_FAILED, NULL);
    assert_int_equal(left_says(f, "n1", "root", operation, true, NULL), 1);
    assert_int_equal(pool_kept_bytes(f->state, ssd, pool_member_find(ssd, fixture_vm(f, "web")->host)), 0);
    /* where it is already: an operation with nothing to do, and nothing of it has to be told */
    move(f, "{\"disk\":\"root\"}", operation);
    assert_false(disk(f, "root")->moving);
    task_says(f, operation, operation_state_SUCCEEDED, NULL);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, operation)->operation->state, operation_state_SUCCEEDED);
    assert_false(own_disk_has_other(disk(f, "root")));
    /* and a dry run changes nothing */
    f->dry_run = true;
    fixture_must(f, go, "web", "{\"disk\":\"root\",\"pool\":\"nas\"}");
    assert_false(disk(f, "root")->moving);
    f->dry_run = false;
    /* what does not go along */
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"replica_host\":\"n2\"}");
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"nas\"}", -ENOTSUP, "", "replica on host n2");
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"replica_host\":null}");
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"s\"}");
    fixture_refused(f, go, "web", "{\"disk\":\"root\",\"pool\":\"nas\"}", -ENOTSUP, "", "has snapshot 's'");
    /* there is nothing yet */
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"new\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"started\":false,\"disks\":[{\"name\":\"root\","
                 "\"size_bytes\":1073741824}]}");
    assert_true(fixture_do(f, go, "new", "{\"disk\":\"root\",\"pool\":\"nas\"}") < 0);
}

/* The pool that a VM was made for is not kept by its name alone, once all of the VM's disks have left it. */
static void the_pool_that_was_left_may_go(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    fixture_vm_is(f, "web", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"pool\":\"ssd\",\"disks\":[{\"name\":\"root\","
                 "\"size_bytes\":1073741824}]}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    move(f, "{\"disk\":\"root\",\"pool\":\"nas\"}", operation);
    task_says(f, operation, operation_state_SUCCEEDED, operation);
    assert_null(fixture_vm(f, "web")->pool);
    assert_int_equal(left_says(f, "n1", "root", NULL, true, NULL), 1);
    fixture_must(f, ROUTE_ID_pool_delete, "ssd", NULL);
}

static bool was_told(struct fixture *f, const char *words)
{
    struct state_event event;
    bool told = false;
    for (uint64_t serial = 0; state_event_next(f->state, serial, &event); serial = event.serial)
        told |= memmem(event.json, event.json_size, words, strlen(words)) != NULL;
    return told;
}

/* Who is to remove a VM hears of pools where moves have left something, as long as somebody wants that removed. */
static void deleted_with_something_left(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    move(f, "{\"disk\":\"root\",\"pool\":\"ssd\"}", operation);
    task_says(f, operation, operation_state_FAILED, NULL);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    for (unsigned i = 0; i < 2; i++) {
        struct node_orders orders;
        orders_of(f, "n1", &orders);
        assert_int_equal(orders.vms.count, 1);
        assert_int_equal(((const struct vm_order *)orders.vms.items)->pools.count, i == 0);
        OBJECT_CLEAR(node_orders, &orders);
        if (i == 0)
            fixture_must(f, ROUTE_ID_vm_forget_left, "web", "{\"disk\":\"root\"}");
    }
}

/* Nobody removes anything of a VM whose host is lost: what moves have left of it is named, wherever it is. */
static void gone_with_its_host(void **test)
{
    struct fixture *f = *test;
    char operation[37], words[200];
    move(f, "{\"disk\":\"root\",\"pool\":\"nas\"}", operation);
    task_says(f, operation, operation_state_FAILED, NULL);
    move(f, "{\"disk\":\"data\",\"pool\":\"ssd\"}", operation);
    snprintf(words, sizeof words, "vms/%s/data.%s.layers", fixture_vm(f, "web")->id, operation);
    fixture_lose(f, "n1");
    assert_false(was_told(f, words));
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    assert_true(was_told(f, words) && was_told(f, "what a move had left of it in pool nas stays there"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(done_it_is_the_other_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(an_older_agent_moves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(not_done_it_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(the_pool_that_was_left_may_go, setup, teardown),
        cmocka_unit_test_setup_teardown(deleted_with_something_left, setup, teardown),
        cmocka_unit_test_setup_teardown(gone_with_its_host, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
