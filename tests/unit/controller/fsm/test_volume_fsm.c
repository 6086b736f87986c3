/* Volumes in the state: who makes them, attach and detach by what the VM's host has reached, growth, what is refused, and what becomes
 * of them with their VM, its host or its pool. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)
#define MIB (UINT64_C(1) << 20)

/* Three hosts; a shared pool on the first two, and a directory of the first and third. */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    for (unsigned i = 1; i <= 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        fixture_host(f, name, 8192);
    }
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\",\"n3\"]}");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 16 * GIB);
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 16 * GIB);
    fixture_say_pool(f, "n1", "ssd", 64 * GIB, 2 * GIB);
    fixture_say_pool(f, "n3", "ssd", 64 * GIB, 8 * GIB);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

/* How many volumes @host is to make (or to remove). */
static unsigned ordered(struct fixture *f, const char *host, bool remove)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    unsigned count = 0;
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t i = 0; i < orders.volumes.count; i++) {
        const struct volume_order *order = (const struct volume_order *)orders.volumes.items + i;
        assert_non_null(order->pool.mark);
        count += order->remove == remove;
    }
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    return count;
}

/* @host says that it is done with it, or why not. Returns whether that was news. */
static int done(struct fixture *f, const char *host, const char *name, const char *reason)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, name)->id);
    OBJECT_SET(volume_seen, seen, made, reason == NULL && volume(f, name)->state == volume_state_CREATING);
    OBJECT_SET(volume_seen, seen, gone, reason == NULL && volume(f, name)->state == volume_state_DELETING);
    if (reason != NULL)
        OBJECT_TEXT(volume_seen, seen, reason, reason);
    return fixture_send(f, &report);
}

static void make(struct fixture *f, const char *name, const char *pool)
{
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"pool\":\"%s\",\"size_bytes\":1073741824}", name, pool);
    fixture_must(f, ROUTE_ID_volume_create, NULL, body);
    assert_int_equal(done(f, volume(f, name)->host != NULL ? volume(f, name)->host : "n1", name, NULL), 1);
    assert_int_equal(volume(f, name)->state, volume_state_AVAILABLE);
}

static void vm_on(struct fixture *f, const char *name, const char *host)
{
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"%s\"}", name, host);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_vm_is(f, name, vm_state_RUNNING);
}

static const struct vm_disk *disk_of(struct fixture *f, const char *vm, const char *name)
{
    return volume_disk_find(fixture_vm(f, vm), volume(f, name)->id);
}

static void attached(struct fixture *f, const char *name, const char *vm)
{
    char body[80];
    snprintf(body, sizeof body, "{\"vm\":\"%s\"}", vm);
    fixture_must(f, ROUTE_ID_volume_attach, name, body);
    assert_int_equal(volume(f, name)->state, volume_state_ATTACHING);
    fixture_vm_is(f, vm, (enum vm_state)fixture_vm(f, vm)->state);
    assert_int_equal(volume(f, name)->state, volume_state_ATTACHED);
}

static void one_host_makes_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    assert_int_equal(volume(f, "a")->state, volume_state_CREATING);
    assert_null(volume(f, "a")->host);
    assert_int_equal(ordered(f, "n1", false), 1);
    assert_int_equal(ordered(f, "n2", false), 0);
    assert_int_equal(done(f, "n2", "a", NULL), 0); /* nobody has asked it */
    assert_int_equal(done(f, "n1", "a", "it is full"), 1);
    assert_string_equal(volume(f, "a")->state_reason, "it is full");
    assert_int_equal(done(f, "n1", "a", "it is full"), 0);
    /* the pool is away there: another one does it */
    uint64_t before = state_host_orders_index(fixture_get(f, object_kind_HOST, "n2"));
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 0);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n2")) > before);
    assert_int_equal(ordered(f, "n1", false), 0);
    assert_int_equal(ordered(f, "n2", false), 1);
    assert_int_equal(done(f, "n2", "a", NULL), 1);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_null(volume(f, "a")->state_reason);
    assert_int_equal(ordered(f, "n2", false), 0);
    /* in a directory of hosts: where there is most room, or where it is wanted */
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"b\",\"pool\":\"ssd\",\"size_bytes\":1073741824}");
    assert_string_equal(volume(f, "b")->host, "n3");
    assert_int_equal(ordered(f, "n3", false), 1);
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"c\",\"pool\":\"ssd\",\"size_bytes\":1073741824,\"host\":\"n1\"}");
    assert_int_equal(ordered(f, "n1", false), 1);
    assert_int_equal(done(f, "n3", "c", NULL), 0);
    /* removed, in any state */
    fixture_must(f, ROUTE_ID_volume_delete, "c", NULL);
    fixture_must(f, ROUTE_ID_volume_delete, "a", NULL);
    fixture_must(f, ROUTE_ID_volume_delete, "a", NULL);
    assert_int_equal(ordered(f, "n1", true), 1);
    assert_int_equal(ordered(f, "n2", true), 1);
    assert_int_equal(done(f, "n2", "a", "busy"), 1);
    assert_int_equal(done(f, "n2", "a", NULL), 1);
    assert_null(state_get(f->state, object_kind_VOLUME, "a"));
    fixture_say_pool(f, "n1", "ssd", 64 * GIB, 0);
    assert_int_equal(ordered(f, "n1", true), 0);
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"schedulable\":false}");
    assert_int_equal(done(f, "n1", "c", NULL), 0); /* not heard: it does not have the pool */
    assert_int_equal(volume(f, "c")->state, volume_state_DELETING);
}

static void what_cannot_be_made(void **test)
{
    struct fixture *f = *test;
    const enum route_id create = ROUTE_ID_volume_create;
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"none\",\"size_bytes\":1073741824}", -ENOENT, "/pool", "there is no pool");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\"}", -EINVAL, "/size_bytes", "is missing");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741825}", -EINVAL, "/size_bytes", "multiple of 512");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1099511627776}", -ENOSPC, "/size_bytes", "16384 MiB free");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824,\"host\":\"n1\"}", -EINVAL, "/host", "kind dir");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"ssd\",\"size_bytes\":1073741824,\"host\":\"n9\"}", -ENOENT, "/host", "no host of pool");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"ssd\",\"size_bytes\":1073741824,\"host\":\"n2\"}", -EHOSTDOWN, "/pool", "");
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824,\"image\":\"tiny\"}", -ENOENT, "/image", "no disk");
    fixture_say_pool(f, "n1", "nas", 64 * GIB, 0);
    fixture_say_pool(f, "n2", "nas", 64 * GIB, 0);
    fixture_refused(f, create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824}", -EHOSTDOWN, "/pool", "is on no host now");
    assert_int_equal(state_count(f->state, object_kind_VOLUME), 0);
}

static void begins_as_an_image(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_image_create, NULL,
                 "{\"name\":\"disk\",\"kind\":\"disk\",\"disk\":{\"url\":\"http://x/d\",\"size_bytes\":2097153,\"sha256\":\"" FIXTURE_SHA "\"}}");
    fixture_refused(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1048576,\"image\":\"disk\"}", -EFBIG,
            "/size_bytes", "2097153 bytes of image");
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"image\":\"disk\"}");
    assert_int_equal(volume(f, "a")->size_bytes, 2097664);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_string_equal(((struct volume_order *)orders.volumes.items)->image.sha256, FIXTURE_SHA);
    assert_int_equal(orders.images.count, 1); /* where it may be had from */
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    fixture_refused(f, ROUTE_ID_image_delete, "disk", NULL, -EBUSY, "", "volume 'a' uses it");
    assert_int_equal(done(f, "n1", "a", NULL), 1);
    fixture_must(f, ROUTE_ID_image_delete, "disk", NULL);
}

static void attach_and_detach(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "nas");
    vm_on(f, "web", "n1");
    vm_on(f, "db", "n1");
    uint64_t generation = fixture_vm(f, "web")->generation;
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    const struct vm_disk *disk = disk_of(f, "web", "a");
    assert_non_null(disk);
    assert_string_equal(disk->name, volume(f, "a")->disk);
    assert_string_equal(disk->pool, "nas");
    assert_int_equal(disk->attachment, 1);
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1);
    assert_string_equal(volume(f, "a")->vm_name, "web");
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHING); /* its host has not said so */
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
    /* one VM at a time, and not removed meanwhile */
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"db\"}", -EBUSY, "", "attached to VM 'web'; detach it first");
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"none\"}", -ENOENT, "/vm", "there is no VM");
    fixture_refused(f, ROUTE_ID_volume_delete, "a", NULL, -EBUSY, "", "detach it first");
    fixture_refused(f, ROUTE_ID_pool_delete, "nas", NULL, -EBUSY, "", "uses it");
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"name\":\"front\"}");
    assert_string_equal(volume(f, "a")->vm_name, "front");
    /* the VMM has it until the host says that it has not */
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    assert_int_equal(volume(f, "a")->state, volume_state_DETACHING);
    assert_true(disk_of(f, "front", "a")->leaving);
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"db\"}", -EBUSY, "", "detaching from VM 'front'");
    generation = fixture_vm(f, "front")->generation;
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL); /* again: the same */
    assert_int_equal(fixture_vm(f, "front")->generation, generation);
    assert_false(disk_of(f, "front", "a")->forced);
    struct decision_context context = fixture_context(f);
    context.force = true;
    decision_finish(&f->decision);
    assert_int_equal(fixture_finish(f, decide_route(f->state, &context, ROUTE_ID_volume_detach, "a", 1, NULL, &f->decision, &f->error)), 0);
    assert_true(disk_of(f, "front", "a")->forced);
    assert_int_equal(fixture_vm(f, "front")->generation, generation + 1);
    fixture_vm_is(f, "front", vm_state_RUNNING);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_null(volume(f, "a")->vm);
    assert_int_equal(fixture_vm(f, "front")->disks.count, 0);
    fixture_refused(f, ROUTE_ID_volume_detach, "a", NULL, -EALREADY, "", "attached to no VM");
    attached(f, "a", "db");
    assert_int_equal(disk_of(f, "db", "a")->attachment, 2);
    /* and what a restore of the state comes to is the same */
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_restore(f->state, bytes.data, bytes.size, &f->error), 0);
    bytes_writer_finish(&bytes);
    fixture_check(f);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
}

static void who_cannot_have_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"a\",\"pool\":\"nas\",\"size_bytes\":1073741824}");
    vm_on(f, "one", "n1");
    vm_on(f, "three", "n3");
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"one\"}", -EBUSY, "", "is creating");
    done(f, "n1", "a", NULL);
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"three\"}", -ENOENT, "/vm", "has not pool 'nas'");
    make(f, "local", "ssd");
    fixture_refused(f, ROUTE_ID_volume_attach, "local", "{\"vm\":\"one\"}", -EXDEV, "/vm", "in the directory of host n3");
    attached(f, "local", "three");
    /* as many as a VMM has room for */
    for (unsigned i = 0; i < 16; i++) {
        char name[8];
        snprintf(name, sizeof name, "v%u", i);
        make(f, name, "nas");
        fixture_must(f, ROUTE_ID_volume_attach, name, "{\"vm\":\"one\"}");
    }
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"one\"}", -ENOSPC, "/vm", "16 is the most");
    fixture_refused(f, ROUTE_ID_vm_migrate, "three", "{}", -ENOTSUP, "/disks", "detach it, migrate the VM");
    /* pools and hosts stay while a volume is there */
    fixture_refused(f, ROUTE_ID_pool_update, "ssd", "{\"hosts\":[\"n1\"]}", -EBUSY, "/hosts", "volume 'local'");
    fixture_refused(f, ROUTE_ID_pool_update, "ssd", "{\"name\":\"other\"}", -EBUSY, "", "uses it");
    fixture_must(f, ROUTE_ID_volume_detach, "local", NULL);
    fixture_vm_is(f, "three", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_delete, "three", NULL);
    fixture_vm_is(f, "three", vm_state_DELETED);
    fixture_refused(f, ROUTE_ID_host_remove, "n3", NULL, -EBUSY, "", "volume 'local' uses it");
}

static void a_vm_that_is_off_or_nowhere(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "ssd");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"off\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n3\",\"started\":false}");
    fixture_vm_is(f, "off", vm_state_STOPPED);
    attached(f, "a", "off");
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    fixture_vm_is(f, "off", vm_state_STOPPED);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    /* no host has room for it: it goes where the volume is, when there is */
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"big\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":17179869184}");
    assert_null(fixture_vm(f, "big")->host);
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"big\"}");
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHING);
    for (unsigned i = 1; i <= 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        struct node_report report = fixture_report(f, name, 65536);
        fixture_send(f, &report);
    }
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "big")->host_name, "n3");
    fixture_vm_is(f, "big", vm_state_RUNNING);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
}

/* It may be another VM's before the task ends: neither copied nor written over while it leaves. */
static void not_copied_while_it_leaves(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    make(f, "a", "nas");
    vm_on(f, "web", "n1");
    attached(f, "a", "web");
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    fixture_must(f, ROUTE_ID_backup_create, "web", "{\"name\":\"whole\"}");
    report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    object_mark(&task_seen_desc, seen, "backup");
    assert_int_equal(fixture_send(f, &report), 1);
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    assert_true(disk_of(f, "web", "a")->leaving);
    fixture_refused(f, ROUTE_ID_backup_create, "web", "{\"name\":\"half\"}", -EBUSY, "", "is being detached");
    fixture_refused(f, ROUTE_ID_backup_restore, "whole", NULL, -EBUSY, "", "is being detached");
}

static void growth(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "nas");
    fixture_refused(f, ROUTE_ID_volume_update, "a", "{\"size_bytes\":1048576}", -EINVAL, "/size_bytes", "only grows");
    fixture_refused(f, ROUTE_ID_volume_update, "a", "{\"size_bytes\":1073741825}", -EINVAL, "/size_bytes", "multiple of 512");
    fixture_refused(f, ROUTE_ID_volume_update, "a", "{\"size_bytes\":null}", -EINVAL, "/size_bytes", "");
    fixture_refused(f, ROUTE_ID_volume_update, "a", "{\"pool\":\"ssd\"}", -EINVAL, "/pool", "");
    fixture_must(f, ROUTE_ID_volume_update, "a", "{\"size_bytes\":2147483648}");
    vm_on(f, "web", "n1");
    attached(f, "a", "web");
    assert_int_equal(disk_of(f, "web", "a")->size_bytes, 2 * GIB);
    uint64_t generation = fixture_vm(f, "web")->generation;
    fixture_must(f, ROUTE_ID_volume_update, "a", "{\"size_bytes\":3221225472,\"labels\":{\"x\":\"y\"}}");
    assert_int_equal(disk_of(f, "web", "a")->size_bytes, 3 * GIB);
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1);
    fixture_must(f, ROUTE_ID_volume_update, "a", "{\"name\":\"b\"}");
    assert_int_equal(fixture_vm(f, "web")->generation, generation + 1); /* of that its host need not know */
    fixture_must(f, ROUTE_ID_volume_detach, "b", NULL);
    fixture_refused(f, ROUTE_ID_volume_update, "b", "{\"size_bytes\":4294967296}", -EBUSY, "", "detaching");
    /* limits of the disk are the VM's to change, and leave the volume what it is */
    fixture_vm_is(f, "web", vm_state_RUNNING);
    attached(f, "b", "web");
    char body[120];
    snprintf(body, sizeof body, "{\"disks\":[{\"name\":\"%s\",\"limits\":{\"bytes_per_second\":1048576}}]}", volume(f, "b")->disk);
    fixture_must(f, ROUTE_ID_vm_update, "web", body);
    assert_int_equal(disk_of(f, "web", "b")->limits.bytes_per_second, MIB);
    fixture_refused(f, ROUTE_ID_vm_update, "web", "{\"disks\":[]}", -EINVAL, "/disks", "");
}

/* If-Match, repeats under a key, and no change in a dry run: as of all objects. */
static void as_other_objects(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "nas");
    vm_on(f, "web", "n1");
    f->if_revision = volume(f, "a")->revision + 1;
    assert_true(fixture_do(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}") < 0 && f->error.kind == ERROR_STALE);
    assert_true(fixture_do(f, ROUTE_ID_volume_delete, "a", NULL) < 0 && f->error.kind == ERROR_STALE);
    f->if_revision = 0;
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    f->dry_run = false;
    f->key = "k";
    f->fingerprint = "x";
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    uint64_t revision = volume(f, "a")->revision;
    fixture_must(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}");
    assert_true(f->decision.repeated);
    assert_int_equal(volume(f, "a")->revision, revision);
    f->key = f->fingerprint = NULL;
}

/* The VM goes, its volumes stay. */
static void the_vm_is_deleted(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "nas");
    make(f, "b", "nas");
    vm_on(f, "web", "n1");
    attached(f, "a", "web");
    attached(f, "b", "web");
    fixture_must(f, ROUTE_ID_volume_detach, "b", NULL);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED); /* until its VMM has ended */
    fixture_refused(f, ROUTE_ID_volume_attach, "a", "{\"vm\":\"web\"}", -EBUSY, "", "attached to VM 'web'");
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
}

static void delete_vm(struct fixture *f, const char *name, bool force)
{
    struct decision_context context = fixture_context(f);
    context.force = force;
    decision_finish(&f->decision);
    int rc = decide_route(f->state, &context, ROUTE_ID_vm_delete, name, strlen(name), NULL, &f->decision, &f->error);
    assert_int_equal(fixture_finish(f, rc), 0);
}

/* A lost host may still run a VM that is not under the lease; its volumes are nobody else's before that is certain. */
static void the_host_is_lost(void **test)
{
    struct fixture *f = *test;
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    for (unsigned i = 0; i < 4; i++)
        make(f, (const char *const[]){"a", "b", "c", "d"}[i], "nas");
    fixture_must(f, ROUTE_ID_host_update, "n3", "{\"schedulable\":false}");
    vm_on(f, "asked", "n1");
    vm_on(f, "plain", "n1");
    vm_on(f, "sure", "n1");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true}");
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2"); /* the emptiest */
    fixture_vm_is(f, "web", vm_state_RUNNING);
    attached(f, "a", "asked");
    attached(f, "b", "plain");
    attached(f, "c", "sure");
    fixture_must(f, ROUTE_ID_vm_delete, "asked", NULL);
    fixture_lose(f, "n1");
    assert_int_equal(fixture_vm(f, "asked")->wanted, vm_wanted_DELETED); /* still there */
    delete_vm(f, "plain", false);
    assert_int_equal(volume(f, "b")->state, volume_state_ATTACHED);
    fixture_refused(f, ROUTE_ID_volume_attach, "b", "{\"vm\":\"web\"}", -EBUSY, "", "attached to VM 'plain'");
    fixture_must(f, ROUTE_ID_volume_detach, "c", NULL);
    assert_int_equal(volume(f, "c")->state, volume_state_DETACHING);
    delete_vm(f, "sure", true);
    assert_int_equal(volume(f, "c")->state, volume_state_AVAILABLE);
    delete_vm(f, "plain", true);
    assert_int_equal(volume(f, "b")->state, volume_state_AVAILABLE);
    delete_vm(f, "asked", true);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    /* under the lease nothing runs there any more: it goes on elsewhere, and what is detached is free at once */
    attached(f, "d", "web");
    attached(f, "a", "web");
    fixture_lose(f, "n2");
    assert_true(fixture_vm(f, "web")->recovering);
    uint64_t epoch = fixture_vm(f, "web")->epoch;
    fixture_must(f, ROUTE_ID_volume_detach, "d", NULL);
    assert_int_equal(volume(f, "d")->state, volume_state_AVAILABLE);
    assert_true(fixture_vm(f, "web")->epoch > epoch); /* the VMM that has it open is never let go on */
    fixture_refused(f, ROUTE_ID_volume_attach, "d", "{\"vm\":\"web\"}", -EBUSY, "/vm", "started on another host");
    assert_int_equal(volume(f, "a")->state, volume_state_ATTACHED);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
}

/* The host of @name reports it as running, at @generation. Returns whether that was news. */
static int reached(struct fixture *f, const char *name, uint64_t generation)
{
    const struct vm *vm = fixture_vm(f, name);
    struct node_report report = fixture_report(f, vm->host_name, 8192);
    fixture_seen(&report, vm, vm_state_RUNNING)->generation = generation;
    return fixture_send(f, &report);
}

/* The end of the log was lost and the cluster recovered without: the host has carried out more than the state knows of. */
static void a_host_that_is_ahead_has_let_go_of_nothing(void **test)
{
    struct fixture *f = *test;
    make(f, "a", "nas");
    make(f, "b", "nas");
    vm_on(f, "web", "n1");
    attached(f, "a", "web");
    fixture_must(f, ROUTE_ID_volume_attach, "b", "{\"vm\":\"web\"}");
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    uint64_t before = fixture_vm(f, "web")->generation, told = state_host_orders_index(fixture_get(f, object_kind_HOST, "n1"));
    assert_int_equal(reached(f, "web", before + 4), 1);
    assert_int_equal(fixture_vm(f, "web")->generation, before + 5);
    assert_int_equal(volume(f, "a")->state, volume_state_DETACHING); /* of this order it knows nothing yet */
    assert_true(disk_of(f, "web", "a")->leaving);
    assert_int_equal(volume(f, "b")->state, volume_state_ATTACHING);
    assert_true(state_host_orders_index(fixture_get(f, object_kind_HOST, "n1")) > told);
    assert_int_equal(reached(f, "web", before + 4), 0);
    assert_int_equal(reached(f, "web", before + 5), 1);
    assert_int_equal(volume(f, "a")->state, volume_state_AVAILABLE);
    assert_int_equal(volume(f, "b")->state, volume_state_ATTACHED);
    /* Operations wait for the same. */
    fixture_must(f, ROUTE_ID_vm_pause, "web", NULL);
    const struct record *web = fixture_get(f, object_kind_VM, "web");
    assert_int_equal(web->of_vm.operations.count, 1);
    before = fixture_vm(f, "web")->generation;
    reached(f, "web", before + 2);
    assert_int_equal(fixture_vm(f, "web")->generation, before + 3);
    assert_int_equal(web->of_vm.operations.count, 1);
    assert_int_equal(web->of_vm.operations.items[0]->operation->generation, before + 3);
    fixture_vm_is(f, "web", vm_state_PAUSED);
    assert_int_equal(web->of_vm.operations.count, 0);
    /* What nobody can have lost is not believed. */
    before = fixture_vm(f, "web")->generation;
    reached(f, "web", before + STATE_GENERATIONS_LOST_MAX + 1);
    assert_int_equal(fixture_vm(f, "web")->generation, before);
    fixture_check(f);
}

/* What both hosts reach is handed over with a VM that runs; what they do not, or is on its way out, keeps it where it is. */
static void with_what_both_hosts_reach_a_vm_migrates(void **test)
{
    struct fixture *f = *test;
    char body[200];
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"x\",\"image\":\"tiny\",\"flavor\":\"small\","
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"nas\"}]}");
    fixture_vm_is(f, "x", vm_state_RUNNING);
    bool on_first = strcmp(fixture_vm(f, "x")->host_name, "n1") == 0;
    const char *from = on_first ? "n1" : "n2", *to = on_first ? "n2" : "n1";
    make(f, "a", "nas");
    attached(f, "a", "x");
    fixture_refused(f, ROUTE_ID_vm_migrate, "x", "{\"to\":\"n3\"}", -ENOSPC, "/to", "pool");
    fixture_say_pool(f, to, "nas", 64 * GIB, 0);
    fixture_refused(f, ROUTE_ID_vm_migrate, "x", NULL, -ENOSPC, "", "pool");
    fixture_say_pool(f, to, "nas", 64 * GIB, 16 * GIB);
    fixture_say_pool(f, from, "nas", 64 * GIB, 0);
    fixture_refused(f, ROUTE_ID_vm_migrate, "x", NULL, -EHOSTDOWN, "/disks", "is not there on the host that has VM 'x'");
    fixture_say_pool(f, from, "nas", 64 * GIB, 16 * GIB);
    fixture_must(f, ROUTE_ID_volume_detach, "a", NULL);
    fixture_refused(f, ROUTE_ID_vm_migrate, "x", NULL, -EBUSY, "/disks", "is being detached");
    fixture_vm_is(f, "x", vm_state_RUNNING);
    attached(f, "a", "x");
    fixture_must(f, ROUTE_ID_vm_migrate, "x", NULL);
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, f->decision.operation_id)->operation;
    assert_true(operation->task.migration.shared_disks);
    assert_string_equal(operation->task.migration.to_name, to);
    assert_int_equal(fixture_do(f, ROUTE_ID_volume_detach, "a", NULL), -EBUSY);
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":1}",
             fixture_get(f, object_kind_HOST, from)->common->id, operation->id);
    fixture_must(f, ROUTE_ID_node_handover, NULL, body);
    assert_string_equal(fixture_vm(f, "x")->host_name, to);
    assert_int_equal(disk_of(f, "x", "a")->attachment, 2);
    assert_string_equal(volume(f, "a")->vm_name, "x");
    fixture_check(f);
}

static void with_what_only_its_host_has_it_does_not(void **test)
{
    struct fixture *f = *test;
    make(f, "b", "ssd");
    vm_on(f, "y", volume(f, "b")->host);
    attached(f, "b", "y");
    fixture_refused(f, ROUTE_ID_vm_migrate, "y", NULL, -ENOTSUP, "/disks", "which only its host has");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"w\",\"image\":\"tiny\",\"flavor\":\"small\","
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"ssd\"}]}");
    fixture_vm_is(f, "w", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_vm_migrate, "w", NULL, -ENOTSUP, "/disks", "which is not shared");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_host_makes_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_made, setup, teardown),
        cmocka_unit_test_setup_teardown(begins_as_an_image, setup, teardown),
        cmocka_unit_test_setup_teardown(attach_and_detach, setup, teardown),
        cmocka_unit_test_setup_teardown(a_host_that_is_ahead_has_let_go_of_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(who_cannot_have_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_vm_that_is_off_or_nowhere, setup, teardown),
        cmocka_unit_test_setup_teardown(not_copied_while_it_leaves, setup, teardown),
        cmocka_unit_test_setup_teardown(growth, setup, teardown),
        cmocka_unit_test_setup_teardown(as_other_objects, setup, teardown),
        cmocka_unit_test_setup_teardown(the_vm_is_deleted, setup, teardown),
        cmocka_unit_test_setup_teardown(the_host_is_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(with_what_both_hosts_reach_a_vm_migrates, setup, teardown),
        cmocka_unit_test_setup_teardown(with_what_only_its_host_has_it_does_not, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
