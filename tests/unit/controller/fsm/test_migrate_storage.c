/* Migrations whose disks go to a pool of the target: where they are at every moment, room that is kept, and what is refused. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static char operation_id[STATE_ID_BYTES];

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

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *field, const char *words)
{
    assert_int_equal(fixture_do(f, route, id, body), code);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
    assert_string_equal(f->error.field, field);
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
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu%s}", fixture_get(f, object_kind_HOST, "n1")->common->id,
             operation_id, (unsigned long long)fixture_vm(f, "web")->epoch, known);
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

static uint64_t kept(struct fixture *f)
{
    const struct pool *pool = fixture_get(f, object_kind_POOL, "new")->pool;
    return pool_kept_bytes(f->state, pool, pool_member_find(pool, fixture_get(f, object_kind_HOST, "n2")->common->id));
}

static void they_are_where_the_record_says(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"to\":\"n2\",\"storage\":\"new\"}");
    assert_int_equal(kept(f), 3 * GIB);
    refused(f, ROUTE_ID_pool_delete, "new", NULL, -EBUSY, "", "VM 'web' uses it");
    refused(f, ROUTE_ID_pool_update, "new", "{\"hosts\":[\"n1\"]}", -EBUSY, "/hosts", "leaves out host 'n2'");
    /* the target is told where they will be; the record is as it was */
    struct node_orders orders = orders_of(f, "n2");
    assert_int_equal(orders.incoming.count, 1);
    const struct vm_order *vm = &((const struct incoming_order *)orders.incoming.items)->vm;
    const struct vm_disk *disks = vm->disks.items;
    for (unsigned i = 0; i < 2; i++) {
        assert_string_equal(disks[i].pool, "new");
        assert_string_equal(disks[i].place, operation_id);
        assert_true(disks[i].arriving);
    }
    assert_string_equal(disks[2].pool, "nas");
    assert_true(!disks[2].arriving && disks[2].place == NULL && !disks[3].arriving);
    assert_true(has_pool(vm, "new") && has_pool(vm, "nas") && !has_pool(vm, "old"));
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
    assert_string_equal(disk(f, "log")->pool, "nas");
    assert_null(disk(f, "log")->place);
    assert_true(fixture_vm(f, "web")->disks_made);
    assert_int_equal(kept(f), 0);
    orders = orders_of(f, "n2");
    vm = orders.vms.items;
    assert_string_equal(((const struct vm_disk *)vm->disks.items)->place, operation_id);
    assert_false(((const struct vm_disk *)vm->disks.items)->arriving);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_must(f, ROUTE_ID_pool_delete, "old", NULL); /* nothing of the state needs it any more */
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
    refused(f, go, "web", "{\"to\":\"n2\"}", -ENOTSUP, "/disks", "name the pool there that it is to go to (storage)");
    refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"none\"}", -ENOENT, "/storage", "there is no pool 'none'");
    refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"nas\"}", -EINVAL, "/storage", "is a shared pool");
    refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"old\"}", -EXDEV, "/storage", "'old' is not on host n2");
    fixture_say_pool(f, "n2", "new", 16 * GIB, 2 * GIB);
    refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOSPC, "/storage", "the disks of VM 'web' that go along have 3072 MiB");
    refused(f, go, "web", "{\"storage\":\"new\"}", -ENOSPC, "", "");
    fixture_say_pool(f, "n2", "new", 16 * GIB, 0);
    refused(f, go, "web", "{\"to\":\"n2\",\"storage\":\"new\"}", -EHOSTDOWN, "/storage", "host n2 cannot use 'new' now");
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
    assert_non_null(strstr(f->error.text, "has not 3072 MiB free on host n2 by now"));
    decision_finish(&decided);
    /* what is only read is told apart */
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"cd\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"cd\",\"size_bytes\":1048576,\"pool\":\"old\","
                 "\"read_only\":true}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "cd", vm_state_RUNNING);
    refused(f, go, "cd", "{\"to\":\"n2\",\"storage\":\"new\"}", -ENOTSUP, "/disks", "is only read");
    /* nothing goes along */
    fixture_must(f, ROUTE_ID_host_drain, "n2", NULL);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"far\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824,\"pool\":\"nas\"}]}");
    fixture_must(f, ROUTE_ID_host_undrain, "n2", NULL);
    fixture_vm_is(f, "far", vm_state_RUNNING);
    refused(f, go, "far", "{\"to\":\"n2\",\"storage\":\"new\"}", -EINVAL, "/storage", "so none goes along");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(they_are_where_the_record_says, setup, teardown),
        cmocka_unit_test_setup_teardown(a_migration_that_fails_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(the_source_has_to_know_of_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
