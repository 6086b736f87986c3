/* Booting backups: where, with which VM, one on each host, and what is noted of how it went. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/command/boot_plan.h"
#include "controller/fsm/backup_boot.h"

#define DAY_MS (UINT64_C(24) * 3600 * 1000)
#define VM_A "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"backup-policy\":\"p\",\"boot-wait-for\":\"ready to serve\"}," \
             "\"hostname\":\"guest-a\",\"nics\":[{\"bridge\":\"lan\"}],\"disks\":[{\"name\":\"root\",\"size_bytes\":4194304}]}"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, VM_A);
    fixture_vm_is(f, "a", vm_state_RUNNING);
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct backup *backup_of(struct fixture *f, const char *id)
{
    return fixture_get(f, object_kind_BACKUP, id)->backup;
}
static const struct host *host_of(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_HOST, name)->host;
}
static uint64_t committed(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_HOST, name)->of_host.committed_memory_bytes;
}

static const struct operation *running(struct fixture *f)
{
    for (size_t i = 0; i < state_count(f->state, object_kind_OPERATION); i++) {
        const struct operation *o = state_at(f->state, object_kind_OPERATION, i)->operation;
        if (o->kind == operation_kind_BACKUP_BOOT && o->state == operation_state_RUNNING)
            return o;
    }
    return NULL;
}

static struct task_seen *seen_begin(struct fixture *f, struct node_report *report, const char *id, enum operation_state state)
{
    const struct operation *o = fixture_get(f, object_kind_OPERATION, id)->operation;
    const struct host *host = fixture_get(f, object_kind_HOST, o->task.host)->host;
    *report = fixture_report(f, host->name, host->memory_bytes >> 20);
    struct task_seen *seen = OBJECT_ADD(node_report, report, tasks);
    OBJECT_TEXT(task_seen, seen, id, id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    object_mark(&task_seen_desc, seen, "backup");
    return seen;
}

/* A backup of the VM that is whole. */
static void backed_up_in(struct fixture *f, const char *vm, const char *store, const char *name)
{
    char body[120];
    struct node_report report;
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"store\":\"%s\"}", name, store);
    fixture_must(f, ROUTE_ID_backup_create, vm, body);
    struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    struct snapshot_disk *disk = OBJECT_ADD(backup_result, &seen->backup, disks);
    OBJECT_TEXT(snapshot_disk, disk, name, "root");
    OBJECT_SET(snapshot_disk, disk, size_bytes, 8u << 20);
    assert_int_equal(fixture_send(f, &report), 1);
}

static void backed_up(struct fixture *f, const char *name)
{
    backed_up_in(f, "a", "nas", name);
}

static void let_go(struct fixture *f, const char *name)
{
    struct node_report report;
    fixture_must(f, ROUTE_ID_backup_delete, name, NULL);
    seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(state_get(f->state, object_kind_BACKUP, name));
}

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, const char *words)
{
    assert_true(fixture_do(f, route, id, body) < 0);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("%s", f->error.text);
}

static void ended(struct fixture *f, enum operation_state state, bool booted, const char *text)
{
    struct node_report report;
    struct task_seen *seen = seen_begin(f, &report, running(f)->id, state);
    OBJECT_SET(backup_result, &seen->backup, booted, booted);
    OBJECT_SET(backup_result, &seen->backup, boot_ms, 1234);
    if (state == operation_state_SUCCEEDED)
        OBJECT_TEXT(backup_result, &seen->backup, boot_seen, text);
    else
        OBJECT_TEXT(task_seen, seen, error_text, text);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(running(f));
}

static void what_is_booted(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    struct node_report report;
    uint64_t before = committed(f, "n1");
    backed_up(f, "one");
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    const struct operation *o = fixture_operation(f);
    assert_int_equal(o->kind, operation_kind_BACKUP_BOOT);
    assert_string_equal(o->task.backup.boot.wait_for, "ready to serve"); /* the VM's label */
    assert_int_equal(o->task.backup.boot.timeout_s, BOOT_PLAN_TIMEOUT_S);
    assert_int_equal(committed(f, "n1"), before + (256u << 20));
    report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(orders.vms.count, 1); /* it is none of the host's VMs */
    const struct task_order *order = orders.tasks.items;
    assert_true(OBJECT_HAS(task_order, order, boot) && OBJECT_HAS(task_order, order, store));
    const struct vm_order *vm = &order->boot;
    assert_string_equal(vm->id, o->id);
    assert_string_equal(vm->hostname, "guest-a");
    assert_int_equal(vm->memory_bytes, 256u << 20);
    assert_int_equal(vm->restart, restart_policy_NEVER);
    assert_false(vm->ha);
    assert_int_equal(vm->nics.count, 1);
    assert_int_equal(((struct vm_disk *)vm->disks.items)->size_bytes, 8u << 20); /* as it was when it was backed up */
    assert_string_equal(vm->kernel.sha256, FIXTURE_SHA);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    ended(f, operation_state_SUCCEEDED, true, "its console said 'ready to serve'");
    assert_int_equal(committed(f, "n1"), before);
    assert_string_equal(backup_of(f, "one")->boot_seen, "its console said 'ready to serve'");
    assert_int_equal(backup_of(f, "one")->boot_ms, 1234);
    assert_null(backup_of(f, "one")->boot_failure);
    assert_non_null(backup_of(f, "one")->booted_at);
}

static void how_it_went(void **test)
{
    struct fixture *f = *test;
    char at[TIME_TEXT_BYTES];
    backed_up(f, "one");
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true,\"wait_for\":\"x\",\"boot_timeout_s\":5}");
    assert_int_equal(running(f)->task.backup.boot.timeout_s, 5);
    assert_string_equal(running(f)->task.backup.boot.wait_for, "x");
    ended(f, operation_state_FAILED, false, "the store is not there"); /* that says nothing of the backup */
    assert_null(backup_of(f, "one")->booted_at);
    assert_non_null(backup_of(f, "one")->boot_begun_at);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    ended(f, operation_state_FAILED, true, "its console's last words: 'panic'");
    assert_non_null(strstr(backup_of(f, "one")->boot_failure, "'panic'"));
    assert_null(backup_of(f, "one")->boot_seen);
    assert_null(backup_of(f, "one")->damage); /* all that it has may be there: it is for a person to judge */
    strcpy(at, backup_of(f, "one")->booted_at);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    ended(f, operation_state_CANCELLED, true, "cancelled");
    assert_string_equal(backup_of(f, "one")->booted_at, at);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    ended(f, operation_state_SUCCEEDED, true, "its guest's agent answered");
    assert_null(backup_of(f, "one")->boot_failure);
}

static void not_what_cannot(void **test)
{
    struct fixture *f = *test;
    backed_up(f, "one");
    backed_up(f, "two");
    refused(f, ROUTE_ID_backup_verify, "one", "{\"wait_for\":\"x\"}", "--boot");
    assert_string_equal(f->error.field, "/wait_for");
    refused(f, ROUTE_ID_backup_verify, "one", "{\"boot_timeout_s\":10}", "--boot");
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    refused(f, ROUTE_ID_backup_verify, "two", "{\"boot\":true}", "boots a backup already"); /* one on each host */
    refused(f, ROUTE_ID_backup_delete, "one", NULL, "is being booted");
    fixture_must(f, ROUTE_ID_backup_store_prune, "nas", "{\"keep_last\":1}"); /* it stays, and nothing else is let go */
    assert_int_equal(fixture_operation(f)->task.backup.gone.count, 0);
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_backup_verify, "two", "{\"boot\":true}");
    assert_string_equal(fixture_operation(f)->task.host, host_of(f, "n2")->id);
    /* two requests that were decided at the same moment */
    fixture_host(f, "n3", 8192);
    fixture_host(f, "n4", 8192);
    struct decision_context context = fixture_context(f);
    struct backup_verify body = {.boot = true};
    struct bytes_writer first = {0};
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_verify, "one", 3, &body, &f->decision, &f->error), 0);
    bytes_put(&first, f->decision.command.data, f->decision.command.size);
    decision_finish(&f->decision);
    context = fixture_context(f);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_verify, "two", 3, &body, &f->decision, &f->error), 0);
    assert_int_equal(fixture_apply(f, &first), 0);
    assert_int_equal(fixture_apply(f, &f->decision.command), -EBUSY);
    bytes_writer_finish(&first);
}

static void not_without_room(void **test)
{
    struct fixture *f = *test;
    backed_up(f, "one");
    struct node_report report = fixture_report(f, "n1", 800); /* less a tenth, and a VM */
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    ended(f, operation_state_SUCCEEDED, true, "x");
    report = fixture_report(f, "n1", 500);
    fixture_send(f, &report);
    refused(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}", "too little memory");
    assert_int_equal(f->error.kind, ERROR_NO_HOST);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}"); /* also of a VM that is gone */
    assert_string_equal(running(f)->task.backup.boot.wait_for, "ready to serve");
    ended(f, operation_state_FAILED, true, "x");
    fixture_must(f, ROUTE_ID_image_delete, "tiny", NULL);
    refused(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}", "there is no image 'tiny'");
}

static void host_lost(struct fixture *f, const char *name)
{
    struct command_host_lost command = {0};
    struct bytes_writer bytes = {0};
    OBJECT_TEXT(command_host_lost, &command, id, host_of(f, name)->id);
    OBJECT_SET(command_host_lost, &command, generation, host_of(f, name)->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, state_cluster(f->state)->lease_voters_index);
    OBJECT_SET(command_host_lost, &command, left, true);
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    object_mark(&command_host_lost_desc, &command, "request");
    assert_int_equal(command_encode(COMMAND_host_lost, &command, &bytes, NULL), 0);
    assert_int_equal(fixture_apply(f, &bytes), 0);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(command_host_lost, &command);
}

/* It is there while the boot runs, and no longer, however that ends: the sums are checked after each command. */
static void room_is_kept(void **test)
{
    struct fixture *f = *test;
    const uint64_t one = UINT64_C(256) << 20; /* each is of that size */
    backed_up(f, "one");
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    assert_int_equal(committed(f, "n1"), 2 * one);
    /* read from a snapshot, and still to be given back then */
    struct bytes_writer snapshot = fixture_snapshot(f->state);
    struct state *again = NULL;
    assert_int_equal(snapshot_read(snapshot.data, snapshot.size, &again, &f->error), 0);
    bytes_writer_finish(&snapshot);
    state_destroy(f->state);
    f->state = again;
    fixture_check(f);
    assert_int_equal(committed(f, "n1"), 2 * one);
    ended(f, operation_state_SUCCEEDED, true, "x");
    assert_int_equal(committed(f, "n1"), one);
    /* its host is lost; what the VM itself holds there stays */
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    assert_int_equal(committed(f, "n1"), 2 * one);
    host_lost(f, "n1");
    assert_null(running(f));
    assert_int_equal(committed(f, "n1"), one);
    /* its host is removed */
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    assert_string_equal(running(f)->task.host, host_of(f, "n2")->id);
    assert_int_equal(committed(f, "n2"), one);
    fixture_must(f, ROUTE_ID_host_remove, "n2", NULL);
    assert_null(running(f));
    assert_null(state_get(f->state, object_kind_HOST, "n2"));
    assert_int_equal(committed(f, "n1"), one);
}

/* Definitions come from stores, and may say anything. */
static void what_definitions_say(void **test)
{
    static const char *const texts[] = {
        NULL,
        "{",
        "{\"name\":\"a\"}",
        "{\"image\":\"tiny\",\"vcpus\":100000,\"memory_bytes\":268435456}",
        "{\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":268435456,\"disks\":[{\"size_bytes\":4194304}]}",
        "{\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":268435456,\"disks\":[{\"name\":\"other\",\"size_bytes\":4194304}]}",
        "{\"image\":\"none\",\"vcpus\":1,\"memory_bytes\":268435456}",
    };
    struct fixture *f = *test;
    backed_up(f, "one");
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        struct backup backup = *backup_of(f, "one");
        struct vm vm = {0};
        backup.definition = (char *)(uintptr_t)texts[i];
        if (backup_boot_vm(f->state, &backup, backup.id, &vm, &f->error) == 0)
            fail_msg("%s", texts[i]);
        assert_true(strlen(f->error.text) > 20);
        OBJECT_CLEAR(vm, &vm);
    }
}

static void by_policy(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":86400,\"boot_timeout_s\":60}");
    fixture_reconcile(f, NULL);
    assert_null(running(f)); /* there is none yet */
    backed_up(f, "one");
    backed_up(f, "two");
    fixture_reconcile(f, NULL);
    assert_string_equal(running(f)->target_name, "two"); /* the newest */
    assert_int_equal(running(f)->task.backup.boot.timeout_s, 60);
    f->now_ms += 2 * DAY_MS;
    fixture_reconcile(f, NULL); /* it takes long: there is no second one */
    ended(f, operation_state_FAILED, true, "x");
    fixture_reconcile(f, NULL);
    assert_string_equal(running(f)->target_name, "two");
    ended(f, operation_state_SUCCEEDED, true, "x");
    fixture_reconcile(f, NULL);
    assert_null(running(f));
    f->now_ms += DAY_MS / 2;
    backed_up(f, "three");
    fixture_reconcile(f, NULL);
    assert_null(running(f));
    f->now_ms += DAY_MS / 2;
    fixture_reconcile(f, NULL);
    assert_string_equal(running(f)->target_name, "three");
    ended(f, operation_state_SUCCEEDED, true, "x");
    /* while there is no room it waits */
    f->now_ms += 2 * DAY_MS;
    struct node_report report = fixture_report(f, "n1", 300);
    fixture_send(f, &report);
    fixture_reconcile(f, NULL);
    assert_null(running(f));
    report = fixture_report(f, "n1", 8192);
    fixture_send(f, &report);
    fixture_reconcile(f, NULL);
    assert_non_null(running(f));
}

/* Rules let go of backups far more often than one is booted. */
static void when_it_was_last_is_kept(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":604800}");
    assert_null(fixture_vm(f, "a")->backup_boot_at);
    backed_up(f, "one");
    fixture_reconcile(f, NULL);
    assert_string_equal(running(f)->target_name, "one");
    assert_string_equal(fixture_vm(f, "a")->backup_boot_at, backup_of(f, "one")->boot_begun_at);
    ended(f, operation_state_SUCCEEDED, true, "x");
    for (unsigned day = 1; day < 7; day++) {
        f->now_ms += DAY_MS;
        backed_up(f, day % 2 != 0 ? "odd" : "even");
        let_go(f, day == 1 ? "one" : day % 2 != 0 ? "even" : "odd");
        fixture_reconcile(f, NULL);
        assert_null(running(f));
    }
    f->now_ms += DAY_MS;
    fixture_reconcile(f, NULL);
    assert_string_equal(running(f)->target_name, "even");
}

/* A newer one elsewhere, which somebody made by hand, does not keep the policy from booting its own. */
static void the_newest_in_the_policys_store(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"other\",\"location\":\"/srv/other\"}");
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":86400}");
    backed_up_in(f, "a", "other", "first");
    fixture_reconcile(f, NULL);
    assert_null(running(f));
    backed_up(f, "one");
    backed_up(f, "two");
    backed_up_in(f, "a", "other", "three");
    fixture_reconcile(f, NULL);
    assert_non_null(running(f));
    assert_string_equal(running(f)->target_name, "two");
}

static void another_vm(struct fixture *f, const char *name, unsigned mib)
{
    char body[300];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":%llu,\"labels\":{\"backup-policy\":\"p\"},"
             "\"disks\":[{\"name\":\"root\",\"size_bytes\":4194304}]}", name, (unsigned long long)mib << 20);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_vm_is(f, name, vm_state_RUNNING);
}

/* Labels may be longer than what is waited for. */
static void a_label_that_is_too_long(void **test)
{
    struct fixture *f = *test;
    char body[300], text[256] = "";
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":86400}");
    another_vm(f, "b", 256);
    backed_up(f, "one");
    backed_up_in(f, "b", "nas", "two");
    memset(text, 'x', 201);
    snprintf(body, sizeof body, "{\"labels\":{\"backup-policy\":\"p\",\"boot-wait-for\":\"%s\"}}", text);
    fixture_must(f, ROUTE_ID_vm_update, "a", body);
    refused(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}", "label boot-wait-for of its VM has 201 bytes, and 200 are the most");
    assert_int_equal(f->error.kind, ERROR_INVALID);
    fixture_reconcile(f, NULL);
    assert_int_equal(f->result.code, 0);
    assert_non_null(running(f));
    assert_string_equal(running(f)->target_name, "two"); /* the others are booted all the same */
    ended(f, operation_state_SUCCEEDED, true, "x");
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* nothing is tried that would be refused */
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true,\"wait_for\":\"y\"}"); /* it does not count then */
    ended(f, operation_state_SUCCEEDED, true, "x");
    text[200] = '\0';
    snprintf(body, sizeof body, "{\"labels\":{\"backup-policy\":\"p\",\"boot-wait-for\":\"%s\"}}", text);
    fixture_must(f, ROUTE_ID_vm_update, "a", body);
    fixture_must(f, ROUTE_ID_backup_verify, "one", "{\"boot\":true}");
    assert_string_equal(running(f)->task.backup.boot.wait_for, text);
}

/* One that no host has room for does not stand in the way of those behind it. */
static void no_room_for_one(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":86400}");
    another_vm(f, "b", 4096); /* once, but not twice */
    another_vm(f, "c", 256);
    backed_up_in(f, "b", "nas", "big");
    backed_up_in(f, "c", "nas", "small");
    for (unsigned i = 0; i < 64 && running(f) == NULL; i++)
        fixture_reconcile(f, NULL);
    assert_non_null(running(f));
    assert_string_equal(running(f)->target_name, "small");
}

/* A VM with ha on n1, and a boot on n2 that a policy has begun. */
static void of_a_lost_host(struct fixture *f, unsigned mib)
{
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"h\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":4294967296,\"ha\":true}");
    fixture_vm_is(f, "h", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"boot_every_s\":86400}");
    backed_up(f, "one");
    fixture_host(f, "n2", mib);
    fixture_reconcile(f, NULL);
    assert_non_null(running(f));
    assert_string_equal(running(f)->task.host, host_of(f, "n2")->id);
    host_lost(f, "n1");
    assert_true(fixture_vm(f, "h")->recovering);
}

static void lost_vms_come_first(void **test)
{
    struct fixture *f = *test;
    of_a_lost_host(f, 4700); /* for either, but not for both */
    fixture_reconcile(f, NULL);
    assert_true(running(f)->cancel_asked);
    assert_non_null(strstr(fixture_vm(f, "h")->placement, "on n2, as soon as the backup one,"));
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* asked and said once */
    ended(f, operation_state_CANCELLED, true, "cancelled");
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(fixture_vm(f, "h")->host_name, "n2");
    assert_false(fixture_vm(f, "h")->recovering);
}

static void nothing_is_ended_in_vain(void **test)
{
    struct fixture *f = *test;
    of_a_lost_host(f, 2000);
    fixture_reconcile(f, NULL);
    assert_false(running(f)->cancel_asked); /* that room would not do */
    ended(f, operation_state_SUCCEEDED, true, "x");
    f->now_ms += 2 * DAY_MS;
    fixture_reconcile(f, NULL);
    assert_null(running(f)); /* while one waits none is begun */
    struct node_report report = fixture_report(f, "n2", 8192);
    fixture_send(f, &report);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "h")->host_name, "n2");
    fixture_reconcile(f, NULL);
    assert_non_null(running(f));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_booted, setup, teardown),
        cmocka_unit_test_setup_teardown(how_it_went, setup, teardown),
        cmocka_unit_test_setup_teardown(not_what_cannot, setup, teardown),
        cmocka_unit_test_setup_teardown(not_without_room, setup, teardown),
        cmocka_unit_test_setup_teardown(room_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(what_definitions_say, setup, teardown),
        cmocka_unit_test_setup_teardown(by_policy, setup, teardown),
        cmocka_unit_test_setup_teardown(when_it_was_last_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(the_newest_in_the_policys_store, setup, teardown),
        cmocka_unit_test_setup_teardown(a_label_that_is_too_long, setup, teardown),
        cmocka_unit_test_setup_teardown(no_room_for_one, setup, teardown),
        cmocka_unit_test_setup_teardown(lost_vms_come_first, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_ended_in_vain, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
