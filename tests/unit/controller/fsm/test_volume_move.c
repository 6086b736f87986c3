/* Moves of volumes in the state: which copy is the volume at every moment, what is left and who removes it, the room that is kept, and
 * what is refused. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

/* @host says that it has done what it was ordered about the place. Returns whether that was news. */
static int place_says(struct fixture *f, const char *host, const char *id, const char *place, bool made, bool gone)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, id);
    OBJECT_TEXT(volume_seen, seen, place, place);
    OBJECT_SET(volume_seen, seen, made, made);
    OBJECT_SET(volume_seen, seen, gone, gone);
    return fixture_send(f, &report);
}

/* Two hosts; a shared pool and two of directories on both, and one of a directory of the first alone. "a" of 1 GiB is in nas, "b" in
 * the directory of n1 in ssd. */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_host(f, "n2", 8192);
    static const char *const pools[][2] = {{"nas", "shared-dir"}, {"ssd", "dir"}, {"hdd", "dir"}};
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
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"ssd\",\"size_bytes\":1073741824,\"host\":\"n1\"}");
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, NULL, true, false), 1);
    assert_int_equal(place_says(f, "n1", volume(f, "b")->id, NULL, true, false), 1);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

/* The task's host says how @operation goes. */
static void task_says(struct fixture *f, const char *host, const char *operation, enum operation_state state)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    fixture_send(f, &report);
}

static void orders_of(struct fixture *f, const char *host, struct node_orders *ret)
{
    struct node_report report = fixture_report(f, host, 8192);
    *ret = (struct node_orders){0};
    assert_int_equal(node_sync_orders(f->state, &report, ret, &f->error), 0);
    OBJECT_CLEAR(node_report, &report);
}

/* The only order about a place that @host is to remove, "-" where it has none; in the list where agents look for such a place. */
static void removes(struct fixture *f, const char *host, const char *pool, const char *place)
{
    struct node_orders orders;
    orders_of(f, host, &orders);
    const struct object_list *list = place != NULL ? &orders.moved_volumes : &orders.volumes;
    const struct volume_order *order = list->items;
    if (pool == NULL) {
        assert_int_equal(orders.volumes.count + orders.moved_volumes.count, 0);
    } else {
        assert_int_equal(orders.volumes.count + orders.moved_volumes.count, 1);
        assert_int_equal(list->count, 1);
        assert_true(order->remove);
        assert_string_equal(order->pool.name, pool);
        assert_string_equal(order->place != NULL ? order->place : "", place != NULL ? place : "");
    }
    OBJECT_CLEAR(node_orders, &orders);
}

static void move(struct fixture *f, const char *name, const char *body, char ret_operation[37])
{
    fixture_must(f, ROUTE_ID_volume_move, name, body);
    snprintf(ret_operation, 37, "%s", f->decision.operation_id);
}

static void a_vm_is_told_where_it_is(struct fixture *f, const char *place)
{
    struct node_orders orders;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n2\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    orders_of(f, "n2", &orders);
    const struct vm_order *vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->place, place);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    fixture_vm_is(f, "web", vm_state_RUNNING);
}

/* With what a move has left in "hdd" at @left, and itself in "nas" at @place: what is left goes first. */
static void removed_while_something_is_left(struct fixture *f, const char *left, const char *place)
{
    fixture_must(f, ROUTE_ID_volume_delete, "a", NULL);
    removes(f, "n2", "hdd", left);
    removes(f, "n1", NULL, NULL);
    assert_int_equal(place_says(f, "n2", volume(f, "a")->id, left, false, true), 1);
    removes(f, "n1", "nas", place);
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, NULL, false, true), 0);
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, place, false, true), 1);
    assert_null(state_get(f->state, object_kind_VOLUME, "a"));
}

static void done_it_is_the_other_copy(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders;
    char first[37], second[37];
    move(f, "a", "{\"pool\":\"hdd\"}", first); /* n2 has the most room */
    assert_int_equal(volume(f, "a")->state, volume_state_MOVING);
    assert_string_equal(volume(f, "a")->pool, "nas");
    assert_null(volume(f, "a")->place);
    assert_string_equal(volume(f, "a")->other_pool, "hdd");
    assert_string_equal(volume(f, "a")->other_host, "n2");
    assert_string_equal(volume(f, "a")->other_place, first);
    orders_of(f, "n2", &orders);
    assert_int_equal(orders.tasks.count, 1);
    const struct task_order *order = orders.tasks.items;
    assert_true(OBJECT_HAS(task_order, order, move));
    assert_string_equal(order->move.from.pool.path, "/srv/nas");
    assert_string_equal(order->move.to.pool.path, "/srv/hdd");
    assert_null(order->move.from.place);
    assert_string_equal(order->move.to.place, first);
    OBJECT_CLEAR(node_orders, &orders);
    removes(f, "n1", NULL, NULL);
    removes(f, "n2", NULL, NULL);
    task_says(f, "n1", first, operation_state_SUCCEEDED); /* it is not asked */
    assert_int_equal(volume(f, "a")->state, volume_state_MOVING);
    task_says(f, "n2", first, operation_state_RUNNING);
    assert_string_equal(volume(f, "a")->pool, "nas");
    task_says(f, "n2", first, operation_state_SUCCEEDED);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_string_equal(volume(f, "a")->pool, "hdd");
    assert_string_equal(volume(f, "a")->host, "n2");
    assert_string_equal(volume(f, "a")->place, first);
    assert_string_equal(volume(f, "a")->other_pool, "nas");
    assert_null(volume(f, "a")->other_host);
    assert_null(volume(f, "a")->other_place);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, first)->operation->state, operation_state_SUCCEEDED);
    /* said again, by an agent that was restarted: nothing changes back */
    task_says(f, "n2", first, operation_state_SUCCEEDED);
    assert_string_equal(volume(f, "a")->pool, "hdd");
    /* what was goes, in the list that every agent reads, by who sees the volume; a word about the other copy is not taken for it */
    removes(f, "n2", "nas", NULL);
    removes(f, "n1", NULL, NULL);
    orders_of(f, "n2", &orders);
    assert_string_equal(((const struct volume_order *)orders.volumes.items)->kept_pool.path, "/srv/hdd");
    assert_string_equal(((const struct volume_order *)orders.volumes.items)->kept_place, first);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(place_says(f, "n2", volume(f, "a")->id, first, false, true), 0);
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"nas\"}", -EBUSY, "", "still being removed");
    struct node_report report = fixture_report(f, "n2", 8192); /* and why it is not */
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, "a")->id);
    OBJECT_TEXT(volume_seen, seen, reason, "it is read-only");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(volume(f, "a")->state_reason, "it is read-only");
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"nas\"}", -EBUSY, "", "forget-left): it is read-only");
    fixture_refused(f, ROUTE_ID_pool_delete, "nas", NULL, -EBUSY, "", "still to be removed");
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, NULL, false, true), 0);
    assert_int_equal(place_says(f, "n2", volume(f, "a")->id, NULL, false, true), 1);
    assert_null(volume(f, "a")->other_pool);
    assert_null(volume(f, "a")->state_reason);
    removes(f, "n2", NULL, NULL);
    a_vm_is_told_where_it_is(f, first);
    /* and back: a place of its own again, and old agents do not hear of the one that goes */
    move(f, "a", "{\"pool\":\"nas\"}", second);
    task_says(f, "n2", second, operation_state_SUCCEEDED);
    assert_string_equal(volume(f, "a")->pool, "nas");
    assert_string_equal(volume(f, "a")->place, second);
    assert_null(volume(f, "a")->host);
    removes(f, "n2", "hdd", first);
    /* the state is the same after a restore */
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(f->state, bytes.data, bytes.size, &f->error), 0);
    bytes_writer_finish(&bytes);
    fixture_check(f);
    removes(f, "n2", "hdd", first);
    removed_while_something_is_left(f, first, second);
}

static void not_done_it_stays(void **test)
{
    static const enum operation_state ends[] = {operation_state_FAILED, operation_state_CANCELLED};
    struct fixture *f = *test;
    char operation[37];
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        move(f, "b", "{\"pool\":\"hdd\"}", operation);
        assert_string_equal(volume(f, "b")->other_host, "n1"); /* in whose directory it is, whatever room others have */
        task_says(f, "n1", operation, ends[i]);
        assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
        assert_string_equal(volume(f, "b")->pool, "ssd");
        assert_null(volume(f, "b")->place);
        removes(f, "n1", "hdd", operation);
        task_says(f, "n1", operation, operation_state_SUCCEEDED); /* too late */
        assert_string_equal(volume(f, "b")->pool, "ssd");
        assert_int_equal(place_says(f, "n1", volume(f, "b")->id, operation, false, true), 1);
        removes(f, "n1", NULL, NULL);
    }
    /* nobody removes what is left, for good: it is forgotten, and nothing else of the volume is */
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    fixture_refused(f, ROUTE_ID_volume_forget_left, "b", NULL, -EBUSY, "", "is being moved to pool 'hdd'");
    task_says(f, "n1", operation, operation_state_FAILED);
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_volume_forget_left, "b", NULL);
    f->dry_run = false;
    assert_string_equal(volume(f, "b")->other_pool, "hdd");
    fixture_must(f, ROUTE_ID_volume_forget_left, "b", NULL);
    fixture_must(f, ROUTE_ID_volume_forget_left, "b", NULL); /* again: the same */
    assert_null(volume(f, "b")->other_pool);
    assert_null(volume(f, "b")->other_place);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    removes(f, "n1", NULL, NULL);
    /* its host is lost: what it may still have of the copy goes when it is back, or with it */
    move(f, "a", "{\"pool\":\"hdd\",\"host\":\"n1\"}", operation);
    fixture_must(f, ROUTE_ID_volume_delete, "b", NULL);
    removes(f, "n1", "ssd", NULL);
    assert_int_equal(place_says(f, "n1", volume(f, "b")->id, NULL, false, true), 1);
    fixture_must(f, ROUTE_ID_host_remove, "n1", NULL);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_string_equal(volume(f, "a")->pool, "nas");
    assert_null(volume(f, "a")->other_pool);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, operation)->operation->state, operation_state_FAILED);
}

/* The end of the log is lost, perhaps with the swap in it, and then a cancel or a lost host ends the move as not done: the copy may be
 * all that is left of the volume, and nobody is told to remove it. */
static void after_a_recovery_no_copy_goes(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, state_at(f->state, object_kind_CONTROLLER, 0)->common->id), 0);
    task_says(f, "n1", operation, operation_state_CANCELLED);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    assert_string_equal(volume(f, "b")->pool, "ssd");
    assert_null(volume(f, "b")->other_pool);
    removes(f, "n1", NULL, NULL);
    /* one that is begun afterwards ends as ever */
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    task_says(f, "n1", operation, operation_state_CANCELLED);
    removes(f, "n1", "hdd", operation);
}

static void meanwhile(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    fixture_refused(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"nas\"}", -EBUSY, "", "is being moved to pool 'hdd'");
    fixture_refused(f, ROUTE_ID_volume_delete, "b", NULL, -EBUSY, "", "is being moved to pool 'hdd'");
    fixture_refused(f, ROUTE_ID_volume_update, "b", "{\"size_bytes\":2147483648}", -EBUSY, "", "is moving; wait for that");
    fixture_refused(f, ROUTE_ID_pool_delete, "hdd", NULL, -EBUSY, "", "is being moved to it");
    fixture_refused(f, ROUTE_ID_pool_update, "hdd", "{\"hosts\":[\"n2\"]}", -EBUSY, "/hosts", "leaves out host 'n1'");
    fixture_refused(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n2\"]}", -EBUSY, "/hosts", "leaves out host 'n1'");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_volume_attach, "b", "{\"vm\":\"web\"}", -EBUSY, "", "is being moved to pool 'hdd'");
    /* asked to end, it is its host that ends it */
    fixture_must(f, ROUTE_ID_operation_cancel, operation, NULL);
    assert_int_equal(volume(f, "b")->state, volume_state_MOVING);
    task_says(f, "n1", operation, operation_state_CANCELLED);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    /* forgotten by force: nobody minds how it ended */
    assert_int_equal(place_says(f, "n1", volume(f, "b")->id, operation, false, true), 1);
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    struct decision_context context = fixture_context(f);
    context.force = true;
    decision_finish(&f->decision);
    assert_int_equal(fixture_finish(f, decide_route(f->state, &context, ROUTE_ID_volume_delete, "b", 1, NULL, &f->decision, &f->error)), 0);
    assert_null(state_get(f->state, object_kind_VOLUME, "b"));
    task_says(f, "n1", operation, operation_state_SUCCEEDED);
}

/* Of a VM's: it is told by its VM's order, under a generation of its own, which is raised when the move begins, too. */
static void attached(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders;
    char first[37], second[37];
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"hdd\"}", -EBUSY, "", "is attaching");
    fixture_must(f, ROUTE_ID_volume_attach, "b", "{\"vm\":\"web\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"hdd\",\"host\":\"n2\"}", -EXDEV, "/host", "where VM 'web' is");
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"one\"}", -EXDEV, "/pool", "is not on host n1");
    uint64_t generation = fixture_vm(f, "web")->generation;
    move(f, "a", "{\"pool\":\"hdd\"}", first); /* n2 has more room, and not the VM */
    assert_string_equal(volume(f, "a")->other_host, "n1");
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1);
    orders_of(f, "n1", &orders);
    assert_string_equal(((const struct task_order *)orders.tasks.items)->task.vm, fixture_vm(f, "web")->id);
    const struct vm_order *vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->pool, "nas");
    assert_null(((const struct vm_disk *)vm->disks.items)->place);
    OBJECT_CLEAR(node_orders, &orders);
    /* nothing else is done with its disks meanwhile */
    fixture_refused(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"hdd\"}", -EBUSY, "", "volume 'a' of VM 'web' is being moved");
    fixture_refused(f, ROUTE_ID_volume_detach, "a", NULL, -EBUSY, "", "volume-move of volume 'a' is under way");
    fixture_refused(f, ROUTE_ID_volume_detach, "b", NULL, -EBUSY, "", "volume-move of volume 'a' is under way");
    fixture_refused(f, ROUTE_ID_volume_delete, "a", NULL, -EBUSY, "", "is being moved to pool 'hdd'");
    fixture_refused(f, ROUTE_ID_vm_upgrade, "web", NULL, -EBUSY, "", "volume 'a' of VM 'web' is being moved");
    fixture_refused(f, ROUTE_ID_pool_update, "hdd", "{\"hosts\":[\"n2\"]}", -EBUSY, "/hosts", "leaves out host 'n1'");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(volume(f, "a")->state, volume_state_MOVING);
    /* level: that is heard, and said once */
    uint64_t before = state_host_orders_index(fixture_get(f, object_kind_HOST, "n1"));
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, first);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_RUNNING);
    OBJECT_SET(task_seen, seen, ready, true);
    assert_int_equal(fixture_send(f, &report), 1);
    orders_of(f, "n1", &orders);
    assert_true(((const struct task_order *)orders.tasks.items)->task.level);
    OBJECT_CLEAR(node_orders, &orders);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n1")) > before);
    task_says(f, "n1", first, operation_state_SUCCEEDED);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
    assert_string_equal(volume(f, "a")->pool, "hdd");
    assert_string_equal(volume_disk_find(fixture_vm(f, "web"), volume(f, "a")->id)->pool, "hdd");
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 2);
    orders_of(f, "n1", &orders);
    vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->pool, "hdd");
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->place, first);
    assert_int_equal(orders.tasks.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    removes(f, "n1", "nas", NULL);
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, NULL, false, true), 1);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    /* it fails: as it was */
    generation = fixture_vm(f, "web")->generation;
    move(f, "a", "{\"pool\":\"nas\"}", second);
    task_says(f, "n1", second, operation_state_FAILED);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
    assert_string_equal(volume(f, "a")->place, first);
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1);
    removes(f, "n1", "nas", second);
    assert_int_equal(place_says(f, "n1", volume(f, "a")->id, second, false, true), 1);
    /* the VM goes on the way: the volume stays where it was */
    move(f, "a", "{\"pool\":\"nas\"}", second);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    orders_of(f, "n1", &orders);
    assert_true(((const struct task_order *)orders.tasks.items)->cancel);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_string_equal(volume(f, "a")->pool, "hdd");
    assert_int_equal(fixture_get(f, object_kind_OPERATION, second)->operation->state, operation_state_FAILED);
    removes(f, "n1", "nas", second);
}

static void room_is_kept(void **test)
{
    struct fixture *f = *test;
    char operation[37];
    fixture_say_pool(f, "n1", "hdd", 16 * GIB, 3 * GIB / 2);
    fixture_say_pool(f, "n2", "hdd", 16 * GIB, 3 * GIB / 2);
    move(f, "b", "{\"pool\":\"hdd\"}", operation);
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"hdd\",\"host\":\"n1\"}", -ENOSPC, "/pool", "of which 1024 MiB are kept for volumes");
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"c\",\"pool\":\"hdd\",\"size_bytes\":1073741824,\"host\":\"n1\"}", -ENOSPC, "/size_bytes",
            "512 MiB free where it has most");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"disks\":[{\"name\":\"d\",\"size_bytes\":1073741824,\"pool\":\"hdd\"}]}");
    assert_null(fixture_vm(f, "web")->host);
    move(f, "a", "{\"pool\":\"hdd\"}", operation); /* n2's directory is another one */
    assert_string_equal(volume(f, "a")->other_host, "n2");
}

static void what_is_refused(void **test)
{
    struct fixture *f = *test;
    const enum route_id go = ROUTE_ID_volume_move;
    char operation[37];
    fixture_refused(f, go, "none", "{\"pool\":\"hdd\"}", -ENOENT, "", "");
    fixture_refused(f, go, "a", "{\"pool\":\"none\"}", -ENOENT, "/pool", "there is no pool 'none'");
    fixture_refused(f, go, "a", "{\"pool\":\"hdd\",\"host\":\"n9\"}", -ENOENT, "/host", "there is no host 'n9'");
    fixture_refused(f, go, "b", "{\"pool\":\"nas\",\"host\":\"n1\"}", -EINVAL, "/host", "kind dir");
    fixture_refused(f, go, "b", "{\"pool\":\"hdd\",\"host\":\"n2\"}", -EXDEV, "/host", "whose directory volume 'b' is in");
    fixture_refused(f, go, "b", "{\"pool\":\"one\"}", -EXDEV, "/pool", "'one' is not on host n1, whose directory the volume is in");
    fixture_refused(f, go, "a", "{\"pool\":\"one\",\"host\":\"n1\"}", -EXDEV, "/host", "'one' is not on host n1");
    fixture_say_pool(f, "n1", "hdd", 16 * GIB, 0);
    fixture_refused(f, go, "b", "{\"pool\":\"hdd\"}", -EHOSTDOWN, "/pool", "host n1 is not up, or cannot use");
    fixture_say_pool(f, "n2", "nas", 16 * GIB, 0);
    fixture_refused(f, go, "a", "{\"pool\":\"one\"}", -EHOSTDOWN, "/pool", "no host that is up has both");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"new\",\"pool\":\"ssd\",\"size_bytes\":1073741824}");
    fixture_say_pool(f, "n1", "hdd", 16 * GIB, 4 * GIB);
    fixture_refused(f, go, "new", "{\"pool\":\"hdd\"}", -EBUSY, "", "is creating");
    /* where it is already: an operation with nothing to do */
    move(f, "b", "{\"pool\":\"ssd\"}", operation);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    struct node_orders orders;
    orders_of(f, "n1", &orders);
    assert_false(OBJECT_HAS(task_order, (const struct task_order *)orders.tasks.items, move));
    OBJECT_CLEAR(node_orders, &orders);
    task_says(f, "n1", operation, operation_state_SUCCEEDED);
    assert_string_equal(volume(f, "b")->pool, "ssd");
    assert_null(volume(f, "b")->other_pool);
    /* and a dry run changes nothing */
    f->dry_run = true;
    fixture_must(f, go, "b", "{\"pool\":\"hdd\"}");
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    f->dry_run = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(done_it_is_the_other_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(not_done_it_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(after_a_recovery_no_copy_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(attached, setup, teardown),
        cmocka_unit_test_setup_teardown(room_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
