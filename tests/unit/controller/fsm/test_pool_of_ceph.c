/* Pools of Ceph in the state: what belongs to them and what does not, which cluster they are, that volumes in them are on all hosts, and
 * what is refused with the cure. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)
#define CREATE "{\"name\":\"ceph\",\"kind\":\"rbd\",\"path\":\"/etc/ceph/ceph.conf\",\"hosts\":[\"n1\",\"n2\"]}"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
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

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *field, const char *words)
{
    assert_int_equal(fixture_do(f, route, id, body), code);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

static const struct pool *pool(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_POOL, name)->pool;
}

static const struct pool_host *member(struct fixture *f, const char *host)
{
    return pool_member_find(pool(f, "ceph"), fixture_get(f, object_kind_HOST, host)->common->id);
}

static void say(struct fixture *f, const char *host, const char *mark)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, pool(f, "ceph")->id);
    OBJECT_SET(pool_seen, seen, present, true);
    OBJECT_TEXT(pool_seen, seen, mark, mark);
    OBJECT_SET(pool_seen, seen, size_bytes, 64 * GIB);
    OBJECT_SET(pool_seen, seen, free_bytes, 32 * GIB);
    fixture_send(f, &report);
}

static void what_is_of_ceph(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    struct node_orders orders = {0};
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    assert_string_equal(pool(f, "ceph")->ceph_pool, "ceph");
    assert_string_equal(pool(f, "ceph")->ceph_user, "admin");
    fixture_must(f, ROUTE_ID_pool_create, NULL,
                 "{\"name\":\"two\",\"kind\":\"rbd\",\"path\":\"/etc/ceph/b.conf\",\"hosts\":[\"n1\"],\"ceph_pool\":\"vms\",\"ceph_user\":\"dr\"}");
    assert_string_equal(pool(f, "two")->ceph_pool, "vms");
    refused(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"x\",\"kind\":\"dir\",\"path\":\"/x\",\"hosts\":[\"n1\"],\"ceph_pool\":\"vms\"}", -EINVAL,
            "/ceph_pool", "kind rbd");
    refused(f, ROUTE_ID_pool_create, NULL,
            "{\"name\":\"x\",\"kind\":\"shared-dir\",\"path\":\"/x\",\"hosts\":[\"n1\"],\"ceph_user\":\"dr\"}", -EINVAL, "/ceph_user", "kind rbd");
    /* its hosts are told, and nobody is to mark anything */
    report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.pools.count, 0); /* an older agent could read nothing of all this then */
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_SET(node_report, &report, rbd_pools, true);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.pools.count, 2);
    const struct pool_order *order = (const struct pool_order *)orders.pools.items + 1;
    assert_true(order->kind == pool_kind_RBD && !order->make && strcmp(order->path, "/etc/ceph/b.conf") == 0);
    assert_string_equal(order->ceph_pool, "vms");
    assert_string_equal(order->ceph_user, "dr");
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    /* one Ceph for all hosts */
    say(f, "n1", "fsid-a/3");
    assert_int_equal(member(f, "n1")->state, pool_host_state_PRESENT);
    say(f, "n2", "fsid-b/3");
    assert_int_equal(member(f, "n2")->state, pool_host_state_ABSENT);
    assert_non_null(strstr(member(f, "n2")->reason, "another Ceph cluster"));
    say(f, "n2", "fsid-a/3");
    assert_int_equal(member(f, "n2")->state, pool_host_state_PRESENT);
}

static void volumes_are_on_all_hosts(void **test)
{
    struct fixture *f = *test;
    const char *fixed = NULL;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    say(f, "n1", "fsid/3");
    say(f, "n2", "fsid/3");
    refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1073741824,\"host\":\"n1\"}", -EINVAL, "/host",
            "all of its hosts");
    refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1073741824,\"image\":\"tiny\"}", -ENOTSUP, "/image",
            "begin empty");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1073741824}");
    assert_null(fixture_get(f, object_kind_VOLUME, "a")->volume->host);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, fixture_get(f, object_kind_VOLUME, "a")->common->id);
    OBJECT_SET(volume_seen, seen, made, true);
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(fixture_get(f, object_kind_VOLUME, "a")->volume->state, volume_state_ATTACHED);
    const struct vm *vm = fixture_vm(f, "web");
    assert_true(vm_disks_are_shared(f->state, vm, &fixed) || strncmp(fixed, "vol-", 4) != 0);
    assert_null(migration_fixed_disk(f->state, &(struct task_migration){.storage = NULL}, vm));
}

static struct node_orders orders_of(struct fixture *f, const char *host, bool knows)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    OBJECT_SET(node_report, &report, rbd_pools, knows);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static bool has_rbd(const struct object_list *pools)
{
    for (size_t i = 0; i < pools->count; i++)
        if (((const struct pool_order *)pools->items)[i].kind == pool_kind_RBD)
            return true;
    return false;
}

/* A host whose agent went back to an older version goes on with all but what is of Ceph, whatever it has of that. */
static void an_agent_that_went_back_reads_its_orders(void **test)
{
    struct fixture *f = *test;
    volumes_are_on_all_hosts(test); /* "web" runs on n1, with "a" attached */
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"ceph\",\"size_bytes\":1073741824}");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"c\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    fixture_must(f, ROUTE_ID_vm_migrate, "web", "{\"to\":\"n2\"}");
    for (unsigned knows = 0; knows < 2; knows++) {
        struct node_orders orders = orders_of(f, "n1", knows == 1);
        const struct vm_order *vm = orders.vms.items;
        assert_true(orders.vms.count == 1 && vm->disks.count == 1);
        assert_string_equal(((const struct vm_disk *)vm->disks.items)->pool, "ceph");
        assert_int_equal(has_rbd(&vm->pools), knows);
        assert_int_equal(has_rbd(&orders.pools), knows);
        assert_int_equal(orders.pools.count, 1 + knows);
        const struct volume_order *volume = orders.volumes.items;
        assert_int_equal(orders.volumes.count, 1 + knows);
        assert_string_equal(volume[knows].id, fixture_get(f, object_kind_VOLUME, "c")->common->id);
        OBJECT_CLEAR(node_orders, &orders);
        orders = orders_of(f, "n2", knows == 1);
        assert_int_equal(orders.incoming.count, 1);
        assert_int_equal(has_rbd(&((const struct incoming_order *)orders.incoming.items)->vm.pools), knows);
        OBJECT_CLEAR(node_orders, &orders);
    }
}

static void what_they_do_not_hold(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    say(f, "n1", "fsid/3");
    refused(f, ROUTE_ID_vm_create, NULL,
            "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"pool\":\"ceph\","
            "\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824}]}", -ENOTSUP, "/disks", "holds volumes alone");
    refused(f, ROUTE_ID_vm_create, NULL,
            "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\","
            "\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824,\"pool\":\"ceph\"}]}", -ENOTSUP, "/disks", "drover volume attach");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1073741824}");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    for (unsigned i = 0; i < 2; i++) {
        struct node_report report = fixture_report(f, "n1", 8192);
        struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
        OBJECT_TEXT(volume_seen, seen, id, fixture_get(f, object_kind_VOLUME, i == 0 ? "a" : "b")->common->id);
        OBJECT_SET(volume_seen, seen, made, true);
        fixture_send(f, &report);
    }
    refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"nas\"}", -ENOTSUP, "/pool", "from pool 'ceph'");
    refused(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"ceph\"}", -ENOTSUP, "/pool", "copy in the guest");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_of_ceph, setup, teardown),
        cmocka_unit_test_setup_teardown(volumes_are_on_all_hosts, setup, teardown),
        cmocka_unit_test_setup_teardown(an_agent_that_went_back_reads_its_orders, setup, teardown),
        cmocka_unit_test_setup_teardown(what_they_do_not_hold, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
