/* Reports against the state: what differs, what is ordered, what is to be forgotten. */
#include "tests/unit/controller/fsm_fixture.h"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void only_changes_make_a_command(void **test)
{
    struct fixture *f = *test;
    struct node_report report = fixture_report(f, "n1", 8192);
    assert_int_equal(fixture_send(f, &report), 0);
    report = fixture_report(f, "n1", 8192);
    OBJECT_TEXT(node_report, &report, boot_id, "boot-2");
    assert_int_equal(fixture_send(f, &report), 1);
    fixture_create_vm(f, "a");
    assert_int_equal(fixture_vm_is(f, "a", vm_state_STARTING), 1); /* its generation is reached */
    assert_int_equal(fixture_vm_is(f, "a", vm_state_STARTING), 0);
    assert_int_equal(fixture_vm_is(f, "a", vm_state_RUNNING), 1);
    assert_int_equal(fixture_vm_is(f, "a", vm_state_RUNNING), 0);
}

static struct node_report report_of(struct fixture *f, const char *session, uint64_t sequence, enum vm_state state)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_TEXT(node_report, &report, session, session);
    OBJECT_SET(node_report, &report, sequence, sequence);
    fixture_seen(&report, fixture_vm(f, "a"), state);
    return report;
}

/* Within one generation only the order of the reports tells which state is the newer one. */
static void a_late_report_changes_nothing(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer command = {0};
    fixture_create_vm(f, "a");
    struct node_report early = report_of(f, "s1", 1, vm_state_STARTING), again = report_of(f, "s1", 1, vm_state_STARTING);
    struct node_report slow = report_of(f, "s1", 2, vm_state_STARTING), running = report_of(f, "s1", 3, vm_state_RUNNING);
    OBJECT_TEXT(vm_seen, (struct vm_seen *)slow.vms.items, reason, "slow"); /* differs from what is held */
    assert_int_equal(fixture_send(f, &early), 1);
    assert_int_equal(fixture_send(f, &again), 0);
    /* decided on before the next one came, applied after it: apply has to know by itself */
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &slow, &command, NULL), 0);
    assert_true(command.size > 0);
    assert_int_equal(fixture_send(f, &running), 1);
    uint64_t revision = fixture_get(f, object_kind_HOST, "n1")->common->revision;
    assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_RUNNING);
    assert_int_equal(fixture_send(f, &slow), 0); /* and not even sent where it is known */
    struct node_report stopped = report_of(f, "s1", 4, vm_state_STOPPED);
    assert_int_equal(fixture_send(f, &stopped), 1);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_STOPPED);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->common->revision, revision); /* no user's business */
    struct node_report next = report_of(f, "s2", 1, vm_state_RUNNING); /* the agent was restarted: it counts anew */
    assert_int_equal(fixture_send(f, &next), 1);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_RUNNING);
    struct node_report old = fixture_report(f, "n1", 8192); /* an agent that does not count */
    fixture_seen(&old, fixture_vm(f, "a"), vm_state_STOPPED);
    assert_int_equal(fixture_send(f, &old), 1);
    struct bytes_writer json = {0};
    state_put_json(f->state, fixture_get(f, object_kind_HOST, "n1"), &json);
    assert_null(memmem(json.data, json.size, "session", 7));
    bytes_writer_finish(&json);
}

/* A snapshot holds what late reports are known by: a controller that was restored decides as the others do. */
static void lateness_survives_a_restore(void **test)
{
    struct fixture *f = *test;
    struct state *restored;
    struct bytes_writer late_command = {0};
    fixture_create_vm(f, "a");
    struct node_report late = report_of(f, "s1", 1, vm_state_STARTING), running = report_of(f, "s1", 2, vm_state_RUNNING);
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &late, &late_command, NULL), 0);
    assert_int_equal(fixture_send(f, &running), 1);
    struct bytes_writer snapshot = fixture_snapshot(f->state);
    assert_int_equal(snapshot_read(snapshot.data, snapshot.size, &restored, NULL), 0);
    f->twin = restored;
    fixture_apply(f, &late_command);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_RUNNING);
    fixture_same_bytes(f->state, f->twin);
    OBJECT_CLEAR(node_report, &late);
    bytes_writer_finish(&late_command);
    bytes_writer_finish(&snapshot);
}

static int send_progress(struct fixture *f, uint64_t done, uint64_t total, const char *step)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct vm_seen *seen = fixture_seen(&report, fixture_vm(f, "a"), vm_state_STARTING);
    OBJECT_SET(vm_seen, seen, progress_done, done);
    OBJECT_SET(vm_seen, seen, progress_total, total);
    OBJECT_TEXT(vm_seen, seen, step, step);
    return fixture_send(f, &report);
}

static void progress_goes_in_steps(void **test)
{
    struct fixture *f = *test;
    unsigned commands = 0;
    fixture_create_vm(f, "a");
    assert_int_equal(send_progress(f, 0, 1000, "fetching"), 1);
    for (unsigned done = 0; done <= 1000; done++)
        commands += (unsigned)send_progress(f, done, 1000, "fetching");
    assert_int_equal(commands, NODE_SYNC_PROGRESS_STEPS);
    assert_int_equal(fixture_operation(f)->progress_done, 1000);
    assert_string_equal(fixture_operation(f)->step, "fetching");
    assert_int_equal(send_progress(f, 1000, 1000, "booting"), 1);
}

static void orders_hold_the_whole_vm(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"size_bytes\":1048576}],"
                 "\"nics\":[{\"bridge\":\"br0\"}]}");
    struct node_report report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.index, state_index(f->state));
    assert_int_equal(orders.generation, 1);
    assert_int_equal(orders.vms.count, 1);
    const struct vm_order *order = orders.vms.items;
    assert_string_equal(order->id, fixture_vm(f, "a")->id);
    assert_int_equal(order->epoch, 1);
    assert_int_equal(order->vcpus, 1);
    assert_string_equal(order->kernel.url, "file:///boot/k");
    assert_string_equal(order->cmdline, "console=ttyS0");
    assert_int_equal(order->disks.count, 1);
    assert_int_equal(order->nics.count, 1);
    assert_int_equal(object_validate(&node_orders_desc, &orders, OBJECT_CREATE, &f->error), 0);
    assert_string_equal(orders.controllers.items[0], "192.0.2.1:7443");
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

static void what_is_not_its_own_is_forgotten(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    fixture_create_vm(f, "a");
    fixture_host(f, "n2", 65536);
    fixture_create_vm(f, "b"); /* n2 is the emptier one */
    assert_string_equal(fixture_vm(f, "b")->host_name, "n2");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct vm unknown = {.id = (char *)"99999999-9999-4999-8999-999999999999", .epoch = 3};
    fixture_seen(&report, fixture_vm(f, "a"), vm_state_RUNNING)->epoch = 0; /* an older run of its own: kept */
    fixture_seen(&report, fixture_vm(f, "b"), vm_state_RUNNING);
    fixture_seen(&report, &unknown, vm_state_RUNNING);
    assert_false(node_sync_may_wait(f->state, &report));
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget.count, 2);
    assert_string_equal(orders.forget.items[0], fixture_vm(f, "b")->id);
    assert_string_equal(orders.forget.items[1], unknown.id);
    assert_int_equal(orders.vms.count, 1);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

static void a_deleted_vm_is_ordered_until_it_is_gone(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    fixture_create_vm(f, "a");
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    struct node_report report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.vms.count, 1);
    assert_int_equal(((struct vm_order *)orders.vms.items)->wanted, vm_wanted_DELETED);
    OBJECT_CLEAR(node_orders, &orders);
    /* It held nothing of it, and so knows no generation. */
    fixture_seen(&report, fixture_vm(f, "a"), vm_state_DELETED)->generation = 0;
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(state_get(f->state, object_kind_VM, "a"));
}

static void waiting(void **test)
{
    struct fixture *f = *test;
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, have_index, 1);
    assert_false(node_sync_may_wait(f->state, &report) && state_host_orders_index(fixture_get(f, object_kind_HOST, "n1")) > 1);
    fixture_create_vm(f, "a");
    assert_false(node_sync_may_wait(f->state, &report));
    report.have_index = state_index(f->state);
    assert_true(node_sync_may_wait(f->state, &report));
    fixture_must(f, ROUTE_ID_image_update, "tiny", "{\"labels\":{\"a\":\"b\"}}");
    assert_true(node_sync_may_wait(f->state, &report)); /* nothing new for this host */
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    assert_false(node_sync_may_wait(f->state, &report));
    report.have_index = state_index(f->state) + 1;
    struct node_orders orders = {0};
    assert_false(node_sync_may_wait(f->state, &report));
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), -EAGAIN); /* this controller is behind */
    OBJECT_SET(node_report, &report, cluster_epoch, 9); /* or the index is of another epoch of the cluster */
    assert_false(node_sync_may_wait(f->state, &report));
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.cluster_epoch, 1);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

static void strangers(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer command = {0};
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_TEXT(node_report, &report, name, "n9");
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), -EINVAL);
    OBJECT_TEXT(node_report, &report, host, "n1"); /* a name is no identity */
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), -ENOENT);
    OBJECT_TEXT(node_report, &report, host, "99999999-9999-4999-8999-999999999999");
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), -ENOENT);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), -ENOENT);
    OBJECT_CLEAR(node_report, &report);
}

/* ---- after a recovery from a survivor that lacked the end of the log ---- */

static void recover(struct fixture *f)
{
    const char *survivor = state_at(f->state, object_kind_CONTROLLER, 0)->common->id;
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, survivor), 0);
}

/* A host has reached a number that is given again for something else. */
static void generations_are_not_given_twice(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    fixture_create_vm(f, "off");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_vm_is(f, "off", vm_state_STOPPED); /* its guest did that */
    uint64_t before = fixture_vm(f, "a")->generation, off = fixture_vm(f, "off")->generation;
    fixture_must(f, ROUTE_ID_vm_pause, "a", NULL); /* known here; its host has carried out this and two more that are not */
    recover(f);
    assert_true(fixture_vm(f, "a")->generation > before + STATE_GENERATIONS_LOST_MAX);
    assert_int_equal(fixture_vm(f, "off")->generation, off); /* nor is it started by it */
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    struct node_report report = fixture_report(f, "n1", 8192);
    fixture_seen(&report, fixture_vm(f, "a"), vm_state_RUNNING)->generation = before + 3;
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING); /* what was reached is something else */
    assert_int_equal(fixture_vm_is(f, "a", vm_state_PAUSED), 1);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
}

static int send_ahead(struct fixture *f, const char *host, const char *vm, uint64_t epoch)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct vm_seen *seen = fixture_seen(&report, fixture_vm(f, vm), vm_state_RUNNING);
    seen->epoch = epoch;
    OBJECT_SET(vm_seen, seen, astray, true);
    return fixture_send(f, &report);
}

/* Started, or given to another host, by an order that is lost. */
static void a_vm_is_where_its_host_says(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    fixture_host(f, "n2", 8192);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    uint64_t epoch = fixture_vm(f, "a")->epoch, generation = fixture_vm(f, "a")->generation;
    assert_int_equal(send_ahead(f, "n2", "a", epoch + 1), 1); /* but a change of the host; nothing was ever lost */
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    assert_int_equal(send_ahead(f, "n1", "a", epoch + 1), 1);
    assert_int_equal(fixture_vm(f, "a")->epoch, epoch);
    recover(f);
    assert_int_equal(send_ahead(f, "n2", "a", epoch), 0); /* not ahead */
    struct node_report wild = fixture_report(f, "n2", 8192); /* a number that nothing can come behind */
    struct vm_seen *far = fixture_seen(&wild, fixture_vm(f, "a"), vm_state_RUNNING);
    far->epoch = epoch + 1;
    far->generation = OBJECT_INTEGER_MAX;
    OBJECT_SET(vm_seen, far, astray, true);
    fixture_send(f, &wild);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "a")->epoch, epoch);
    assert_int_equal(send_ahead(f, "n1", "a", epoch + 1), 1);
    assert_int_equal(fixture_vm(f, "a")->epoch, epoch + 1);
    assert_int_equal(send_ahead(f, "n2", "a", epoch + 2), 1);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2");
    assert_int_equal(fixture_vm(f, "a")->epoch, epoch + 2);
    assert_true(fixture_vm(f, "a")->generation > generation);
    f->now_ms += STATE_STRAYS_RETURN_MS;
    send_ahead(f, "n1", "a", epoch + 3); /* any more nobody takes a VM away by saying so */
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2");
    struct node_orders orders = {0};
    struct node_report late = fixture_report(f, "n1", 8192);
    struct vm_seen *seen = fixture_seen(&late, fixture_vm(f, "a"), vm_state_RUNNING);
    OBJECT_SET(vm_seen, seen, astray, true);
    seen->epoch += 5;
    assert_int_equal(node_sync_orders(f->state, &late, &orders, NULL), 0);
    assert_int_equal(orders.halt.count, 1); /* but it may not run it any more */
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &late);
    assert_int_equal(send_ahead(f, "n2", "a", epoch + 3), 1); /* its own it may know better */
}

/* What is under way is over, and well if it is what has brought the VM. */
static void a_migration_that_has_ended_unheard(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    fixture_host(f, "n2", 8192);
    fixture_host(f, "n3", 8192);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_migrate, "a", "{\"to\":\"n2\"}");
    recover(f);
    assert_int_equal(send_ahead(f, "n2", "a", fixture_vm(f, "a")->epoch + 1), 1);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2");
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_migrate, "a", "{\"to\":\"n1\"}");
    assert_int_equal(send_ahead(f, "n3", "a", fixture_vm(f, "a")->epoch + 1), 1);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n3");
    assert_int_equal(fixture_operation(f)->state, operation_state_FAILED); /* of an epoch that is over */
}

/* Acknowledged, and lost: it was to be off here. */
static void a_start_that_was_lost(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    recover(f);
    assert_int_equal(send_ahead(f, "n1", "a", fixture_vm(f, "a")->epoch + 1), 1);
    assert_int_equal(fixture_vm(f, "a")->wanted, vm_wanted_RUNNING);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_RUNNING);
}

static void what_was_lost_is_kept(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    struct vm unknown = {.id = (char *)"99999999-9999-4999-8999-999999999999", .epoch = 3};
    fixture_create_vm(f, "a");
    fixture_host(f, "n2", 8192);
    recover(f);
    struct node_report report = fixture_report(f, "n2", 8192);
    struct vm_seen *seen = fixture_seen(&report, &unknown, vm_state_RUNNING);
    OBJECT_SET(vm_seen, seen, astray, true);
    OBJECT_SET(node_report, &report, have_index, state_index(f->state));
    OBJECT_SET(node_report, &report, cluster_epoch, state_cluster(f->state)->epoch);
    assert_true(node_sync_may_wait(f->state, &report)); /* or it would ask without end */
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    /* The same epoch may have been given to it by an order that is lost, and to n1 since: one of them runs, both are kept. */
    seen = fixture_seen(&report, fixture_vm(f, "a"), vm_state_RUNNING);
    OBJECT_SET(vm_seen, seen, astray, true);
    assert_false(node_sync_may_wait(f->state, &report));
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget.count, 0);
    assert_int_equal(orders.halt.count, 1);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_SET(vm_seen, seen, state, vm_state_STOPPED);
    assert_true(node_sync_may_wait(f->state, &report));
    /* An epoch that was over when the cluster was rebuilt is over. */
    OBJECT_SET(vm_seen, seen, state, vm_state_RUNNING);
    seen->epoch--;
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget.count, 1);
    assert_int_equal(orders.given.count, 1);
    assert_int_equal(orders.halt.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->stray_vms, 2);
    report = fixture_report(f, "n2", 8192);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->stray_vms, 0);
}

/* Hosts first say what they have: a VM that waits here may have been placed. */
static void nothing_is_placed_right_after(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"big\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":68719476736}");
    assert_null(fixture_vm(f, "big")->host);
    recover(f);
    fixture_host(f, "n2", 131072);
    fixture_reconcile(f, NULL);
    assert_null(fixture_vm(f, "big")->host);
    f->now_ms += STATE_RECOVER_SETTLE_MS;
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "big")->host_name, "n2");
}

/* A host that was lost does not know yet that its generation counts anew. */
static void a_lost_host_with_a_generation_that_is_lost(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer command = {0};
    recover(f);
    ((struct host *)fixture_get(f, object_kind_HOST, "n1")->host)->state = host_state_LOST;
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, generation, fixture_get(f, object_kind_HOST, "n1")->host->generation + 5);
    OBJECT_SET(node_report, &report, cluster_epoch, 2);
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), 0);
    assert_int_equal(command.size, 0); /* of this epoch it would be ahead */
    OBJECT_SET(node_report, &report, cluster_epoch, 1);
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &report, &command, NULL), 0);
    assert_true(command.size > 0);
    bytes_writer_finish(&command);
    OBJECT_CLEAR(node_report, &report);
}

/* A host that has nothing of a VM that ran there is not to make it anew, with empty disks. */
static void what_is_missing_is_said(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    fixture_create_vm(f, "a");
    struct node_report report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.missing.count, 0); /* it is to be made */
    OBJECT_CLEAR(node_orders, &orders);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.missing.count, 1);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_seen(&report, fixture_vm(f, "a"), vm_state_STARTING);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.missing.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

/* The image may be known to nobody but its hosts. */
static void no_file_of_an_image_is_given_up(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    char sha256[65] = {0};
    memset(sha256, 'a', 64);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct image_seen *seen = OBJECT_ADD(node_report, &report, images);
    object_mark(&node_report_desc, &report, "images");
    OBJECT_TEXT(image_seen, seen, sha256, sha256);
    OBJECT_SET(image_seen, seen, state, image_copy_state_HELD);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget_images.count, 1);
    OBJECT_CLEAR(node_orders, &orders);
    recover(f);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.forget_images.count, 0);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(only_changes_make_a_command),
        TEST(a_late_report_changes_nothing),
        TEST(lateness_survives_a_restore),
        TEST(progress_goes_in_steps),
        TEST(orders_hold_the_whole_vm),
        TEST(what_is_not_its_own_is_forgotten),
        TEST(a_deleted_vm_is_ordered_until_it_is_gone),
        TEST(waiting),
        TEST(strangers),
        TEST(generations_are_not_given_twice),
        TEST(a_vm_is_where_its_host_says),
        TEST(a_migration_that_has_ended_unheard),
        TEST(a_start_that_was_lost),
        TEST(what_was_lost_is_kept),
        TEST(nothing_is_placed_right_after),
        TEST(a_lost_host_with_a_generation_that_is_lost),
        TEST(what_is_missing_is_said),
        TEST(no_file_of_an_image_is_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
