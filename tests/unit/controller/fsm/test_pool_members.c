/* Pools in the state: which hosts have them by their marks, what follows for placement, orders and leases, and what may not
 * be taken away. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/pool_members.h"

#define GIB (UINT64_C(1) << 30)
#define CREATE_SHARED "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    for (unsigned i = 1; i <= 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        fixture_host(f, name, 8192);
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

/* Host @name reports the pool: @mark NULL: it is not there. Returns whether that was news. */
static int say(struct fixture *f, const char *name, const char *pool, const char *mark, uint64_t free_bytes)
{
    struct node_report report = fixture_report(f, name, 8192);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, fixture_get(f, object_kind_POOL, pool)->common->id);
    OBJECT_SET(pool_seen, seen, present, mark != NULL);
    if (mark != NULL)
        OBJECT_TEXT(pool_seen, seen, mark, mark);
    else
        OBJECT_TEXT(pool_seen, seen, reason, "it is not mounted");
    OBJECT_SET(pool_seen, seen, size_bytes, 64 * GIB);
    OBJECT_SET(pool_seen, seen, free_bytes, free_bytes);
    return fixture_send(f, &report);
}

static const struct pool_host *member(struct fixture *f, const char *pool, const char *host)
{
    const struct pool_host *found =
        pool_member_find(fixture_get(f, object_kind_POOL, pool)->pool, fixture_get(f, object_kind_HOST, host)->common->id);
    assert_non_null(found);
    return found;
}

/* The order for @pool that @host gets; the caller clears. */
static struct pool_order order_of(struct fixture *f, const char *host, const char *pool)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    struct pool_order order = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t i = 0; i < orders.pools.count; i++)
        if (strcmp(((struct pool_order *)orders.pools.items + i)->name, pool) == 0)
            OBJECT_COPY(pool_order, &order, (struct pool_order *)orders.pools.items + i);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    return order;
}

static void ordered(struct fixture *f, const char *host, const char *pool, const char *mark, bool make)
{
    struct pool_order order = order_of(f, host, pool);
    assert_string_equal(order.name != NULL ? order.name : "", pool);
    assert_string_equal(order.mark != NULL ? order.mark : "", mark);
    assert_int_equal(order.make, make);
    OBJECT_CLEAR(pool_order, &order);
}

static void one_directory_for_all_hosts(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE_SHARED);
    assert_int_equal(member(f, "nas", "n1")->state, pool_host_state_WANTED);
    ordered(f, "n1", "nas", "", true); /* one alone marks it */
    ordered(f, "n2", "nas", "", false);
    struct pool_order none = order_of(f, "n3", "nas");
    assert_null(none.id);
    assert_int_equal(say(f, "n2", "nas", NULL, 0), 1);
    assert_int_equal(member(f, "nas", "n2")->state, pool_host_state_ABSENT);
    assert_string_equal(member(f, "nas", "n2")->reason, "it is not mounted");
    uint64_t before = state_host_orders_index(fixture_get(f, object_kind_HOST, "n2"));
    assert_int_equal(say(f, "n1", "nas", "aa", 32 * GIB), 1);
    assert_int_equal(member(f, "nas", "n1")->state, pool_host_state_PRESENT);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n2")) > before); /* it is to know the mark */
    ordered(f, "n1", "nas", "aa", false);
    ordered(f, "n2", "nas", "aa", false);
    /* what nothing is mounted on, marked by whatever mistake, is another directory */
    assert_int_equal(say(f, "n2", "nas", "bb", 32 * GIB), 1);
    assert_int_equal(member(f, "nas", "n2")->state, pool_host_state_ABSENT);
    assert_non_null(strstr(member(f, "nas", "n2")->reason, "is it mounted there?"));
    assert_int_equal(say(f, "n2", "nas", "aa", 32 * GIB), 1);
    assert_int_equal(member(f, "nas", "n2")->state, pool_host_state_PRESENT);
    /* free room is news by the 32nd of all */
    assert_int_equal(say(f, "n2", "nas", "aa", 31 * GIB), 0);
    assert_int_equal(say(f, "n2", "nas", "aa", 20 * GIB), 1);
    assert_int_equal(member(f, "nas", "n2")->free_bytes, 20 * GIB);
    assert_int_equal(say(f, "n3", "nas", "aa", 20 * GIB), 0); /* none of its business */
}

static void each_host_its_own_directory(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\",\"n2\"]}");
    ordered(f, "n1", "ssd", "", true);
    ordered(f, "n2", "ssd", "", true);
    say(f, "n1", "ssd", "aa", GIB);
    say(f, "n2", "ssd", "bb", GIB);
    assert_int_equal(member(f, "ssd", "n1")->state, pool_host_state_PRESENT);
    assert_int_equal(member(f, "ssd", "n2")->state, pool_host_state_PRESENT);
    ordered(f, "n1", "ssd", "aa", false); /* never marked again */
    ordered(f, "n2", "ssd", "bb", false);
    say(f, "n1", "ssd", "cc", GIB);
    assert_int_equal(member(f, "ssd", "n1")->state, pool_host_state_ABSENT);
}

static void vms_go_where_their_pools_are(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE_SHARED);
    say(f, "n1", "nas", "aa", 4 * GIB);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"pool\":\"nas\","
                 "\"disks\":[{\"name\":\"data\",\"size_bytes\":1073741824}]}");
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    assert_string_equal(((struct vm_disk *)fixture_vm(f, "a")->disks.items)->pool, "nas");
    /* too large: nobody has the room, and who has not the pool is told apart */
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\","
                 "\"disks\":[{\"name\":\"data\",\"size_bytes\":8589934592,\"pool\":\"nas\"}]}");
    assert_null(fixture_vm(f, "b")->host);
    assert_non_null(strstr(fixture_vm(f, "b")->placement, "2 without a pool of its disks"));
    assert_non_null(strstr(fixture_vm(f, "b")->placement, "1 with too little room in a pool"));
    say(f, "n2", "nas", "aa", 32 * GIB);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "b")->host_name, "n2");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL,
                                "{\"name\":\"c\",\"image\":\"tiny\",\"flavor\":\"small\",\"pool\":\"none\",\"disks\":"
                                "[{\"name\":\"data\",\"size_bytes\":1073741824}]}"),
                     -ENOENT);
    assert_string_equal(f->error.field, "/pool");
    /* that it has run is remembered, for whoever starts it next */
    assert_false(fixture_vm(f, "a")->disks_made);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_true(fixture_vm(f, "a")->disks_made);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    const struct vm_order *order = orders.vms.items;
    assert_true(order->disks_made);
    assert_int_equal(order->pools.count, 1);
    assert_string_equal(((struct pool_order *)order->pools.items)->mark, "aa");
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

static void what_is_used_stays(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE_SHARED);
    say(f, "n1", "nas", "aa", 4 * GIB);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"data\",\"size_bytes\":1048576,"
                 "\"pool\":\"nas\"}]}");
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_delete, "nas", NULL), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"name\":\"other\"}"), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n2\"]}"), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[]}"), -EINVAL);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n1\",\"n1\"]}"), -EINVAL);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n1\",\"nobody\"]}"), -ENOENT);
    assert_int_equal(fixture_do(f, ROUTE_ID_pool_update, "nas", "{\"path\":\"/x\"}"), -EINVAL);
    fixture_must(f, ROUTE_ID_pool_update, "nas", "{\"hosts\":[\"n1\",\"n3\"]}");
    assert_int_equal(member(f, "nas", "n1")->state, pool_host_state_PRESENT); /* as it was */
    assert_int_equal(member(f, "nas", "n3")->state, pool_host_state_WANTED);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "a", "{\"disks\":[{\"name\":\"data\",\"pool\":\"other\"}]}"), -EINVAL);
    fixture_must(f, ROUTE_ID_host_remove, "n3", NULL);
    assert_int_equal(fixture_get(f, object_kind_POOL, "nas")->pool->members.count, 1);
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(f->state, bytes.data, bytes.size, &f->error), 0);
    bytes_writer_finish(&bytes);
    fixture_check(f);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_pool_delete, "nas", NULL);
    struct pool_order none = order_of(f, "n1", "nas");
    assert_null(none.id);
}

/* A host that still has a VM is told whether another host has it now, or nobody. */
static void what_is_nobodys_goes_from_pools_too(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    struct node_report report = fixture_report(f, strcmp(fixture_vm(f, "a")->host_name, "n1") == 0 ? "n2" : "n1", 8192);
    struct node_orders orders = {0};
    fixture_seen(&report, fixture_vm(f, "a"), vm_state_STOPPED); /* another's */
    struct vm_seen *seen = OBJECT_ADD(node_report, &report, vms);
    OBJECT_TEXT(vm_seen, seen, id, "aaaaaaaa-0000-4000-8000-00000000dead");
    OBJECT_SET(vm_seen, seen, epoch, 1);
    OBJECT_SET(vm_seen, seen, state, vm_state_STOPPED);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.forget.count, 2);
    assert_int_equal(orders.gone.count, 1);
    assert_string_equal(orders.gone.items[0], "aaaaaaaa-0000-4000-8000-00000000dead");
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_directory_for_all_hosts, setup, teardown),
        cmocka_unit_test_setup_teardown(each_host_its_own_directory, setup, teardown),
        cmocka_unit_test_setup_teardown(vms_go_where_their_pools_are, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_used_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_nobodys_goes_from_pools_too, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
