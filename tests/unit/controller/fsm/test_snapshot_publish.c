/* Images made of snapshots: what may be asked for, what they take from the snapshot's VM, what waits for them, and how they end. */
#include "tests/unit/controller/fsm_fixture.h"

#define SHA_ROOT "1111111111111111111111111111111111111111111111111111111111111111"

static struct node_orders orders_of(struct fixture *f, const char *host)
{
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    OBJECT_CLEAR(node_report, &report);
    return orders;
}

static void says(struct fixture *f, const char *host, const char *operation, enum operation_state state, const char *error)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    if (error != NULL)
        OBJECT_TEXT(task_seen, seen, error_text, error);
    if (state == operation_state_SUCCEEDED) {
        OBJECT_TEXT(image_result, &seen->image, sha256, SHA_ROOT);
        OBJECT_SET(image_result, &seen->image, size_bytes, 1048576);
        object_mark(&task_seen_desc, seen, "image");
    }
    assert_int_equal(fixture_send(f, &report), 1);
}

/* A snapshot of VM @vm with @disks, as its host says they were; NULL: it does not say. */
static void snapshot(struct fixture *f, const char *vm, const char *name, const char *const *disks)
{
    char body[100];
    snprintf(body, sizeof body, "{\"name\":\"%s\"}", name);
    fixture_must(f, ROUTE_ID_snapshot_create, vm, body);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    OBJECT_SET(snapshot_result, &seen->snapshot, consistency, snapshot_consistency_CRASH);
    for (; disks != NULL && *disks != NULL; disks++) {
        struct snapshot_disk *disk = OBJECT_ADD(snapshot_result, &seen->snapshot, disks);
        OBJECT_TEXT(snapshot_disk, disk, name, *disks);
        OBJECT_SET(snapshot_disk, disk, size_bytes, 1048576);
    }
    object_mark(&task_seen_desc, seen, "snapshot");
    assert_int_equal(fixture_send(f, &report), 1);
}

/* VM a boots image "cloud" by UEFI and has two disks; VM k boots the kernel of "tiny" and has one. */
static int setup(void **test)
{
    static const char *const two[] = {"root", "data", NULL}, *const one[] = {"root", NULL};
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_image_create, NULL,
                 "{\"name\":\"cloud\",\"kind\":\"disk\",\"firmware\":\"uefi\",\"disk\":{\"url\":\"https://example.org/d\",\"sha256\":\"" FIXTURE_SHA
                 "\",\"size_bytes\":1048576}}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"cloud\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"image\":true},"
                 "{\"name\":\"data\",\"size_bytes\":1048576}]}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"k\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_vm_is(f, "k", vm_state_RUNNING);
    snapshot(f, "a", "s", two);
    snapshot(f, "a", "t", two);
    snapshot(f, "k", "ks", one);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void make(struct fixture *f, const char *body, char ret_operation[STATE_ID_BYTES])
{
    fixture_must(f, ROUTE_ID_image_create, NULL, body);
    snprintf(ret_operation, STATE_ID_BYTES, "%s", f->decision.operation_id);
}

static const struct image *image_of(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_IMAGE, name)->image;
}

#define BODY "{\"name\":\"i\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"s\",\"disk\":\"root\"}}"

static void it_goes_its_way(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES];
    make(f, BODY, id);
    const struct image *image = image_of(f, "i");
    assert_int_equal(image->state, image_state_IMPORTING);
    assert_string_equal(image->source.snapshot, "s");
    assert_string_equal(image->source.disk, "root");
    assert_int_equal(image->firmware, firmware_UEFI); /* as the VM boots */
    assert_int_equal(image->replicas, 2);
    struct node_orders orders = orders_of(f, "n1");
    assert_int_equal(orders.tasks.count, 1);
    const struct task *task = &((const struct task_order *)orders.tasks.items)->task;
    assert_int_equal(task->kind, task_kind_IMAGE_IMPORT);
    assert_string_equal(task->vm, fixture_vm(f, "a")->id);
    assert_string_equal(task->image.snapshot, fixture_get(f, object_kind_SNAPSHOT, "s")->common->id);
    assert_string_equal(task->image.image.source.disk, "root");
    OBJECT_CLEAR(node_orders, &orders);

    /* the VM does as it likes */
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, id)->operation->state, operation_state_RUNNING);

    says(f, "n1", id, operation_state_SUCCEEDED, NULL);
    assert_int_equal(image->state, image_state_READY);
    assert_string_equal(image->disk.sha256, SHA_ROOT);
    assert_int_equal(image->disk.size_bytes, 1048576);
    assert_int_equal(image->copies.count, 1);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"clone\",\"image\":\"i\",\"flavor\":\"small\"}");
    assert_int_equal(fixture_vm(f, "clone")->disks.count, 1);
}

/* Merges of what goes would be of what is read. */
static void no_snapshot_of_its_vm_goes_meanwhile(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES], other[STATE_ID_BYTES];
    make(f, BODY, id);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_delete, "s", NULL), -EBUSY);
    assert_non_null(strstr(f->error.text, "image 'i' is being made"));
    assert_non_null(strstr(f->error.text, id)); /* what to cancel */
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_delete, "t", NULL), -EBUSY);
    fixture_must(f, ROUTE_ID_snapshot_delete, "ks", NULL); /* another VM's */
    make(f, "{\"name\":\"j\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"t\",\"disk\":\"data\"}}", other); /* two at once */
    says(f, "n1", id, operation_state_SUCCEEDED, NULL);
    assert_int_equal(fixture_do(f, ROUTE_ID_snapshot_delete, "s", NULL), -EBUSY);
    says(f, "n1", other, operation_state_FAILED, "disk full");
    assert_int_equal(image_of(f, "j")->state, image_state_FAILED);
    assert_string_equal(image_of(f, "j")->state_reason, "host n1: disk full");
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL, /* and the other way round */
                                "{\"name\":\"l\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"t\",\"disk\":\"data\"}}"), -EBUSY);
    assert_null(state_get(f->state, object_kind_IMAGE, "l"));
}

static void one_of_a_kernel(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES];
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"ks\"}}"), -EINVAL);
    assert_string_equal(f->error.field, "/kind");
    make(f, "{\"name\":\"d\",\"kind\":\"disk\",\"firmware\":\"bios\",\"source\":{\"snapshot\":\"ks\"}}", id); /* who knows better */
    assert_string_equal(image_of(f, "d")->source.disk, "root"); /* the only one */
    make(f, "{\"name\":\"i\",\"kind\":\"kernel\",\"source\":{\"snapshot\":\"ks\"}}", id);
    assert_string_equal(image_of(f, "i")->kernel.url, "file:///boot/k");
    assert_string_equal(image_of(f, "i")->cmdline, "console=ttyS0");
    says(f, "n1", id, operation_state_SUCCEEDED, NULL);
    assert_int_equal(image_of(f, "i")->copies.count, 1);
    struct node_orders orders = orders_of(f, "n1"); /* it is kept there, and others have it from there */
    const struct image_order *order = orders.images.items;
    assert_int_equal(orders.images.count, 2); /* and "cloud", which VM a uses */
    order += strcmp(order->sha256, SHA_ROOT) != 0;
    assert_string_equal(order->sha256, SHA_ROOT);
    assert_true(order->keep);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"clone\",\"image\":\"i\",\"flavor\":\"small\"}");
    assert_true(((const struct vm_disk *)fixture_vm(f, "clone")->disks.items)->image);
}

static void what_is_refused(void **test)
{
    static const struct {
        const char *source;
        int code;
        const char *field, *text;
    } cases[] = {
        {"{\"snapshot\":\"none\"}", -ENOENT, "/source/snapshot", "there is no snapshot 'none'"},
        {"{\"snapshot\":\"s\"}", -EINVAL, "/source/disk", "has 2 disks, name one of root, data"},
        {"{\"snapshot\":\"s\",\"disk\":\"swap\"}", -ENOENT, "/source/disk", "has no disk of that name; it has root, data"},
        {"{\"snapshot\":\"s\",\"disk\":\"root\",\"url\":\"https://example.org/d\"}", -EINVAL, "/source/url", "leave one of the two out"},
        {"{\"snapshot\":\"s\",\"disk\":\"root\",\"sha256\":\"" FIXTURE_SHA "\"}", -EINVAL, "/source/sha256", "leave one of the two out"},
        {"{\"snapshot\":\"s\",\"disk\":\"root\",\"size_bytes\":1}", -EINVAL, "/source/size_bytes", "leave one of the two out"},
        {"{\"snapshot\":\"s\",\"disk\":\"root\",\"format\":\"qcow2\"}", -EINVAL, "/source/format", "leave it out"},
        {"{\"format\":\"raw\",\"disk\":\"root\",\"url\":\"https://example.org/d\"}", -EINVAL, "/source/disk", "made of a snapshot"},
        {"{\"url\":\"https://example.org/d\"}", -EINVAL, "/source/format", "is missing"},
    };
    struct fixture *f = *test;
    char body[300];
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        snprintf(body, sizeof body, "{\"name\":\"i\",\"kind\":\"disk\",\"source\":%s}", cases[i].source);
        if (fixture_do(f, ROUTE_ID_image_create, NULL, body) != cases[i].code)
            fail_msg("%s: %d %s", cases[i].source, f->error.code, f->error.text);
        assert_string_equal(f->error.field, cases[i].field);
        if (strstr(f->error.text, cases[i].text) == NULL)
            fail_msg("%s: %s", cases[i].source, f->error.text);
        assert_null(state_get(f->state, object_kind_IMAGE, "i"));
    }
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL, /* an upload of kind kernel is none still */
                                "{\"name\":\"i\",\"kind\":\"kernel\",\"source\":{\"format\":\"raw\",\"url\":\"https://example.org/d\"},"
                                "\"kernel\":{\"url\":\"file:///boot/k\",\"sha256\":\"" FIXTURE_SHA "\"}}"), -EINVAL);
    assert_string_equal(f->error.field, "/source");
    fixture_must(f, ROUTE_ID_snapshot_create, "a", "{\"name\":\"new\"}");
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL,
                                "{\"name\":\"i\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"new\",\"disk\":\"root\"}}"), -EBUSY);
    assert_non_null(strstr(f->error.text, "creating"));
    struct reconcile_input input = {.now_ms = 600000, .leader_since_ms = 1};
    fixture_reconcile(f, &input); /* the host has been silent since before */
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL, BODY), -EHOSTDOWN);
    assert_non_null(strstr(f->error.text, "host n1"));
}

/* Of a snapshot whose host could not say which disks it has. */
static void disks_that_were_not_told(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES];
    snapshot(f, "a", "u", NULL);
    assert_int_equal(fixture_do(f, ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"u\"}}"), -EINVAL);
    make(f, "{\"name\":\"i\",\"kind\":\"disk\",\"source\":{\"snapshot\":\"u\",\"disk\":\"data\"}}", id);
    assert_string_equal(image_of(f, "i")->source.disk, "data");
}

static void how_it_ends_early(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES];
    make(f, BODY, id);
    fixture_must(f, ROUTE_ID_operation_cancel, id, NULL);
    assert_int_equal(image_of(f, "i")->state, image_state_IMPORTING); /* its host says when */
    says(f, "n1", id, operation_state_CANCELLED, "it was cancelled");
    assert_null(state_get(f->state, object_kind_IMAGE, "i"));
    fixture_must(f, ROUTE_ID_snapshot_delete, "t", NULL);
    says(f, "n1", f->decision.operation_id, operation_state_SUCCEEDED, NULL);

    make(f, BODY, id);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    assert_true(fixture_get(f, object_kind_OPERATION, id)->operation->cancel_asked);
    fixture_vm_is(f, "a", vm_state_DELETED); /* that came first */
    assert_int_equal(fixture_get(f, object_kind_OPERATION, id)->operation->state, operation_state_FAILED);
    assert_int_equal(image_of(f, "i")->state, image_state_FAILED);
    assert_string_equal(image_of(f, "i")->state_reason, "its VM was deleted");
    fixture_must(f, ROUTE_ID_image_delete, "i", NULL);

    make(f, "{\"name\":\"i\",\"kind\":\"kernel\",\"source\":{\"snapshot\":\"ks\"}}", id);
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(fixture_get(f, object_kind_OPERATION, id)->operation->error_code, "host-lost");
    assert_int_equal(image_of(f, "i")->state, image_state_FAILED);
    assert_non_null(strstr(image_of(f, "i")->state_reason, "lost"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_goes_its_way, setup, teardown),
        cmocka_unit_test_setup_teardown(no_snapshot_of_its_vm_goes_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(one_of_a_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(disks_that_were_not_told, setup, teardown),
        cmocka_unit_test_setup_teardown(how_it_ends_early, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
