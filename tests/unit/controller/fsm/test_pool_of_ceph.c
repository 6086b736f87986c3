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
    fixture_refused(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"x\",\"kind\":\"dir\",\"path\":\"/x\",\"hosts\":[\"n1\"],\"ceph_pool\":\"vms\"}", -EINVAL,
            "/ceph_pool", "kind rbd");
    fixture_refused(f, ROUTE_ID_pool_create, NULL,
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
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1073741824,\"host\":\"n1\"}", -EINVAL, "/host",
            "all of its hosts");
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

#define IMAGE "{\"name\":\"disk\",\"kind\":\"disk\",\"disk\":{\"url\":\"http://x/d\",\"size_bytes\":2097153,\"sha256\":\"" FIXTURE_SHA "\"}}"
#define FILLED "{\"name\":\"root\",\"pool\":\"ceph\",\"image\":\"disk\"}"

static void reports(struct fixture *f, bool knows, const char *reason, bool made)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, rbd_pools, true);
    if (knows)
        OBJECT_SET(node_report, &report, rbd_images, true);
    if (made || reason != NULL) {
        struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
        OBJECT_TEXT(volume_seen, seen, id, fixture_get(f, object_kind_VOLUME, "root")->common->id);
        OBJECT_TEXT(volume_seen, seen, reason, reason);
        OBJECT_SET(volume_seen, seen, made, made);
    }
    fixture_send(f, &report);
}

static size_t ordered(struct fixture *f, bool knows, struct node_orders *ret)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, rbd_pools, true);
    OBJECT_SET(node_report, &report, rbd_images, knows);
    assert_int_equal(node_sync_orders(f->state, &report, ret, &f->error), 0);
    OBJECT_CLEAR(node_report, &report);
    return ret->volumes.count;
}

static void a_volume_begins_as_an_image(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    fixture_must(f, ROUTE_ID_image_create, NULL, IMAGE);
    say(f, "n1", "fsid/3");
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"image\":\"none\"}", -EINVAL, "/size_bytes", "missing");
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"ceph\",\"size_bytes\":1048576,\"image\":\"disk\"}", -EFBIG, "/size_bytes",
            "less than the 2097153 bytes of image");
    fixture_must(f, ROUTE_ID_volume_create, NULL, FILLED);
    const struct volume *root = fixture_get(f, object_kind_VOLUME, "root")->volume;
    assert_int_equal(root->size_bytes, 2097664);
    assert_string_equal(root->image, "disk");
    /* a host that would make it empty is told nothing, and it is said why nothing goes on */
    assert_int_equal(ordered(f, false, &orders), 0);
    OBJECT_CLEAR(node_orders, &orders);
    reports(f, false, NULL, false);
    assert_string_equal(root->state_reason, "host n1 would make it, and its agent is of an older version: bring that up to date");
    assert_int_equal(root->state, volume_state_CREATING);
    /* one that knows */
    assert_int_equal(ordered(f, true, &orders), 1);
    const struct volume_order *order = orders.volumes.items;
    assert_string_equal(order->image.sha256, FIXTURE_SHA);
    assert_true(order->pool.kind == pool_kind_RBD && orders.images.count == 1);
    OBJECT_CLEAR(node_orders, &orders);
    reports(f, true, "30 % of its image is there", false);
    assert_string_equal(root->state_reason, "30 % of its image is there");
    fixture_refused(f, ROUTE_ID_volume_attach, "root", "{\"vm\":\"root\"}", -ENOENT, "/vm", "no VM");
    reports(f, true, NULL, true);
    assert_int_equal(root->state, volume_state_AVAILABLE);
    assert_null(root->state_reason);
    /* empty ones are made by all */
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"ceph\",\"size_bytes\":1073741824}");
    assert_int_equal(ordered(f, false, &orders), 1);
    OBJECT_CLEAR(node_orders, &orders);
    reports(f, false, NULL, false);
    assert_null(fixture_get(f, object_kind_VOLUME, "b")->volume->state_reason);
}

static void decided(struct fixture *f, struct command_message *ret)
{
    assert_int_equal(command_decode(f->decision.command.data, f->decision.command.size, ret, &f->error), 0);
}

/* Controllers that know nothing of it refuse to make such a volume: so do all, unless the command says that it is meant. */
static void older_controllers_are_told_that_it_is_meant(void **test)
{
    struct fixture *f = *test;
    struct command_message message = {0};
    struct volume body = {.name = NULL};
    struct bytes_writer bytes = {0};
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_image_create, NULL, IMAGE);
    say(f, "n1", "fsid/3");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    assert_int_equal(OBJECT_DECODE(volume, FILLED, strlen(FILLED), OBJECT_CREATE, &body, &f->error), 0);
    struct decision_context context = fixture_context(f);
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_volume_create, NULL, 0, &body, &f->decision, &f->error), 0);
    decided(f, &message);
    struct command_put *command = message.payload;
    assert_true(command->volume_filled);
    command->head.present &= ~(UINT64_C(1) << (object_field(&command_put_desc, "volume_filled") - command_put_desc.fields));
    command->volume_filled = false;
    assert_int_equal(command_encode(COMMAND_put, command, &bytes, &f->error), 0);
    assert_int_equal(fixture_apply(f, &bytes), -ENOTSUP);
    assert_non_null(strstr(f->error.text, "begin empty"));
    command_message_finish(&message);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(volume, &body);
    /* and of what they know nothing more is said */
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"nas\",\"image\":\"disk\"}");
    decided(f, &message);
    assert_false(OBJECT_HAS(command_put, (struct command_put *)message.payload, volume_filled));
    command_message_finish(&message);
}

static void what_they_do_not_hold(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, CREATE);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    say(f, "n1", "fsid/3");
    fixture_refused(f, ROUTE_ID_vm_create, NULL,
            "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"pool\":\"ceph\","
            "\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824}]}", -ENOTSUP, "/disks", "holds volumes alone");
    fixture_refused(f, ROUTE_ID_vm_create, NULL,
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
    fixture_refused(f, ROUTE_ID_volume_move, "a", "{\"pool\":\"nas\"}", -ENOTSUP, "/pool", "from pool 'ceph'");
    fixture_refused(f, ROUTE_ID_volume_move, "b", "{\"pool\":\"ceph\"}", -ENOTSUP, "/pool", "copy in the guest");
    /* nor are they cloned with a VM */
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}", -ENOTSUP, "/without_volumes", "kind rbd, and only what is in directories is cloned with a VM. Stop");
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}", -ENOTSUP, "/without_volumes", "Give it (--without-volumes)");
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"without_volumes\":true}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_of_ceph, setup, teardown),
        cmocka_unit_test_setup_teardown(volumes_are_on_all_hosts, setup, teardown),
        cmocka_unit_test_setup_teardown(an_agent_that_went_back_reads_its_orders, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_begins_as_an_image, setup, teardown),
        cmocka_unit_test_setup_teardown(older_controllers_are_told_that_it_is_meant, setup, teardown),
        cmocka_unit_test_setup_teardown(what_they_do_not_hold, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
