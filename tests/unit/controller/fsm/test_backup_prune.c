/* Which backups rules let go and which not, what a verification leaves behind, when both begin by themselves, and how a store is
 * forgotten. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/time_text.h"
#include "controller/reconcile/backup_schedule.h"

#define ID(n) "00000000-0000-4000-8000-00000000000" n
#define DAY_MS (UINT64_C(24) * 3600 * 1000)
#define VM_A "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"backup-policy\":\"p\"}}"

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
static const struct backup_store *store_of(struct fixture *f)
{
    return fixture_get(f, object_kind_BACKUP_STORE, "nas")->backup_store;
}

static const struct operation *running(struct fixture *f, enum operation_kind kind)
{
    for (size_t i = 0; i < state_count(f->state, object_kind_OPERATION); i++) {
        const struct operation *o = state_at(f->state, object_kind_OPERATION, i)->operation;
        if (o->kind == kind && o->state == operation_state_RUNNING)
            return o;
    }
    return NULL;
}

/* What n1 says of the task of operation @id. */
static struct task_seen *seen_begin(struct fixture *f, struct node_report *report, const char *id, enum operation_state state)
{
    *report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, report, tasks);
    OBJECT_TEXT(task_seen, seen, id, id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    object_mark(&task_seen_desc, seen, "backup");
    return seen;
}

static void list_add(struct backup_result *result, const char *field, struct string_list *list, const char *id)
{
    list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
    list->items[list->count++] = xstrdup(id);
    object_mark(&backup_result_desc, result, field);
}

/* Backups ID("1") ... of @vm, a day between each and the next, found in the store. */
static void backups_add(struct fixture *f, const char *vm, unsigned first, unsigned count)
{
    struct node_report report;
    fixture_must(f, ROUTE_ID_backup_store_attach, "nas", NULL);
    struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    for (unsigned i = first; i < first + count; i++) {
        char id[STATE_ID_BYTES], at[TIME_TEXT_BYTES];
        struct backup_found *found = OBJECT_ADD(backup_result, &seen->backup, found);
        snprintf(id, sizeof id, "00000000-0000-4000-8000-%012u", i);
        time_text_format(FIXTURE_EPOCH_MS - 30 * DAY_MS + i * DAY_MS, at);
        OBJECT_TEXT(backup_found, found, id, id);
        OBJECT_TEXT(backup_found, found, created_at, at);
        OBJECT_TEXT(backup_found, found, vm, vm);
        OBJECT_TEXT(backup_found, found, vm_name, "a");
    }
    assert_int_equal(fixture_send(f, &report), 1);
}

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, const char *words)
{
    assert_true(fixture_do(f, route, id, body) < 0);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("%s", f->error.text);
}

static void policy_make(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL,
                 "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":31622400,\"paused\":true,\"keep_last\":2}");
}

/* What a dry run would let go: the last digits of the ids. */
static void would_go(struct fixture *f, const char *body, const char *wanted, uint64_t kept)
{
    struct backup_prune_plan plan = {0};
    char got[32] = "";
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_backup_store_prune, "nas", body);
    f->dry_run = false;
    const struct bytes_writer *preview = &f->decision.preview;
    assert_int_equal(OBJECT_DECODE(backup_prune_plan, (const char *)preview->data, preview->size, OBJECT_STORED, &plan, &f->error), 0);
    const struct backup_going *goes = plan.goes.items;
    for (size_t i = 0; i < plan.goes.count; i++)
        strcat(got, goes[i].id + 35);
    assert_string_equal(got, wanted);
    assert_int_equal(plan.kept, kept);
    OBJECT_CLEAR(backup_prune_plan, &plan);
}

static void by_rules(void **test)
{
    struct fixture *f = *test;
    backups_add(f, fixture_vm(f, "a")->id, 1, 5);
    backups_add(f, ID("9"), 6, 2); /* of a VM that is gone: no policy's */
    would_go(f, NULL, "", 7);
    policy_make(f);
    would_go(f, NULL, "321", 4);
}

static void by_rules_given(void **test)
{
    struct fixture *f = *test;
    backups_add(f, fixture_vm(f, "a")->id, 1, 5);
    backups_add(f, ID("9"), 6, 2);
    would_go(f, "{\"keep_last\":4}", "1", 6);
    would_go(f, "{\"keep_last\":4,\"vm\":\"a\"}", "1", 4);
    would_go(f, "{\"keep_last\":1,\"vm\":\"" ID("9") "\"}", "6", 1);
    would_go(f, "{\"keep_last\":1,\"vm\":\"a\",\"backups\":[\"" ID("2") "\",\"" ID("5") "\"]}", "2", 4);
    would_go(f, "{\"keep_last\":1,\"vm\":\"a\",\"collect_only\":true}", "", 5);
    refused(f, ROUTE_ID_backup_store_prune, "nas", "{\"vm\":\"none\"}", "there is no VM 'none'");
    refused(f, ROUTE_ID_backup_store_prune, "none", NULL, "none");
}

static void pruned(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    char operation[STATE_ID_BYTES];
    backups_add(f, fixture_vm(f, "a")->id, 1, 4);
    policy_make(f);
    fixture_must(f, ROUTE_ID_backup_store_prune, "nas", NULL);
    strcpy(operation, f->decision.operation_id);
    const struct operation *running = fixture_operation(f);
    assert_int_equal(running->task.backup.gone.count, 2);
    assert_string_equal(running->task.backup.gone.items[0], ID("2"));
    assert_int_equal(backup_of(f, ID("1"))->state, backup_state_DELETING);
    assert_int_equal(backup_of(f, ID("3"))->state, backup_state_AVAILABLE);
    refused(f, ROUTE_ID_backup_store_prune, "nas", NULL, "is being pruned already");
    refused(f, ROUTE_ID_backup_store_verify, "nas", NULL, "is being pruned");
    refused(f, ROUTE_ID_backup_verify, ID("1"), NULL, "is deleting");
    refused(f, ROUTE_ID_backup_delete, ID("1"), NULL, "is deleting");
    fixture_must(f, ROUTE_ID_backup_verify, ID("3"), NULL); /* one that stays can be */
    struct task_seen *seen = seen_begin(f, &report, operation, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "the store is on fire");
    list_add(&seen->backup, "removed", &seen->backup.removed, ID("1"));
    list_add(&seen->backup, "removed", &seen->backup.removed, ID("4")); /* nobody said that it may go */
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(state_get(f->state, object_kind_BACKUP, ID("1")));
    assert_int_equal(backup_of(f, ID("2"))->state, backup_state_AVAILABLE);
    assert_non_null(strstr(backup_of(f, ID("2"))->state_reason, "on fire"));
    assert_int_equal(backup_of(f, ID("4"))->state, backup_state_AVAILABLE);
}

/* Nothing goes that is at work, and it counts for the rules all the same. */
static void not_what_is_at_work(void **test)
{
    struct fixture *f = *test;
    backups_add(f, fixture_vm(f, "a")->id, 1, 4);
    policy_make(f);
    fixture_must(f, ROUTE_ID_backup_verify, ID("1"), NULL);
    would_go(f, NULL, "2", 3);
    refused(f, ROUTE_ID_backup_delete, ID("1"), NULL, "is being verified");
    refused(f, ROUTE_ID_backup_verify, ID("1"), NULL, "is being verified already");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false}");
    fixture_vm_is(f, "b", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_backup_restore, ID("2"), "{\"vm\":\"b\"}");
    would_go(f, NULL, "", 4);
    fixture_must(f, ROUTE_ID_backup_store_verify, "nas", NULL);
    refused(f, ROUTE_ID_backup_store_verify, "nas", NULL, "is being verified already");
    refused(f, ROUTE_ID_backup_store_prune, "nas", "{\"keep_last\":1}", "is being verified");
    refused(f, ROUTE_ID_backup_delete, ID("4"), NULL, "is being verified");
}

/* Between the choice and its beginning a restore began: the whole prune is refused. */
static void chosen_and_then_at_work(void **test)
{
    struct fixture *f = *test;
    backups_add(f, fixture_vm(f, "a")->id, 1, 4);
    policy_make(f);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false}");
    fixture_vm_is(f, "b", vm_state_STOPPED);
    struct decision_context context = fixture_context(f);
    struct decision prune = {0};
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_store_prune, "nas", 3, NULL, &prune, &f->error), 0);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"vm\":\"b\"}");
    assert_int_equal(fixture_apply(f, &prune.command), -EBUSY);
    assert_non_null(strstr(f->error.text, "is restoring meanwhile"));
    assert_int_equal(backup_of(f, ID("2"))->state, backup_state_AVAILABLE);
    decision_finish(&prune);
    /* the same with a verification */
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_store_prune, "nas", 3, NULL, &prune, &f->error), 0);
    fixture_must(f, ROUTE_ID_backup_verify, ID("2"), NULL);
    assert_int_equal(fixture_apply(f, &prune.command), -EBUSY);
    assert_non_null(strstr(f->error.text, "is being verified"));
    decision_finish(&prune);
}

static void verified(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 3);
    fixture_must(f, ROUTE_ID_backup_store_verify, "nas", NULL);
    backups_add(f, fixture_vm(f, "a")->id, 4, 1); /* not there when it began: nothing is said of it */
    struct task_seen *seen = seen_begin(f, &report, running(f, operation_kind_BACKUP_VERIFY)->id, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "1 of 2 backups are hurt");
    OBJECT_SET(backup_result, &seen->backup, complete, true);
    list_add(&seen->backup, "verified", &seen->backup.verified, ID("1"));
    struct backup_hurt *hurt = OBJECT_ADD(backup_result, &seen->backup, hurt);
    OBJECT_TEXT(backup_hurt, hurt, id, ID("2"));
    OBJECT_TEXT(backup_hurt, hurt, text, "disk root: 3 chunks are lost");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_non_null(backup_of(f, ID("1"))->verified_at);
    assert_null(backup_of(f, ID("1"))->damage);
    assert_string_equal(backup_of(f, ID("2"))->damage, "disk root: 3 chunks are lost");
    assert_non_null(strstr(backup_of(f, ID("3"))->damage, "not in the store"));
    assert_null(backup_of(f, ID("4"))->verified_at);
    assert_non_null(strstr(store_of(f)->damage, "1 of 2 backups are hurt"));
    assert_string_equal(store_of(f)->verified_at, f->now);
    /* what is damaged counts for no rule, goes by none, and is no parent */
    would_go(f, "{\"keep_last\":1}", "1", 1);
    fixture_must(f, ROUTE_ID_backup_create, "a", "{\"name\":\"new\"}");
    assert_string_equal(fixture_operation(f)->task.backup.parent, ID("4"));
    /* one alone: it has been mended */
    fixture_must(f, ROUTE_ID_backup_verify, ID("2"), NULL);
    assert_string_equal(fixture_operation(f)->task.backup.id, ID("2"));
    seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    OBJECT_SET(backup_result, &seen->backup, complete, true);
    list_add(&seen->backup, "verified", &seen->backup.verified, ID("2"));
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(backup_of(f, ID("2"))->damage);
    assert_non_null(backup_of(f, ID("3"))->damage);
    assert_non_null(store_of(f)->damage); /* of all it is not known */
    /* could not be done: nothing is known by it */
    fixture_must(f, ROUTE_ID_backup_store_verify, "nas", NULL);
    seen = seen_begin(f, &report, f->decision.operation_id, operation_state_FAILED);
    OBJECT_TEXT(task_seen, seen, error_text, "the store cannot be reached");
    char before[TIME_TEXT_BYTES];
    strcpy(before, store_of(f)->verified_at);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(store_of(f)->verified_at, before);
    assert_null(backup_of(f, ID("2"))->damage);
}

static unsigned tick(struct fixture *f)
{
    struct reconcile_node node = {.host = fixture_get(f, object_kind_HOST, "n1")->common->id, .last_report_ms = f->now_ms};
    struct reconcile_input input = {.now_ms = f->now_ms, .leader_since_ms = 1, .nodes = &node, .n_nodes = 1};
    return fixture_reconcile(f, &input);
}

static void verified_by_itself(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    tick(f);
    assert_null(running(f, operation_kind_BACKUP_VERIFY));
    fixture_must(f, ROUTE_ID_backup_store_update, "nas", "{\"verify_every_s\":86400}");
    f->now_ms += DAY_MS / 2;
    tick(f);
    assert_null(running(f, operation_kind_BACKUP_VERIFY));
    for (unsigned i = 0; i < 2; i++) {
        f->now_ms += DAY_MS;
        tick(f);
        const struct operation *verify = running(f, operation_kind_BACKUP_VERIFY);
        assert_non_null(verify);
        assert_null(verify->task.backup.id);
        assert_string_equal(store_of(f)->verify_begun_at, verify->created_at);
        f->now_ms += 2 * DAY_MS; /* it takes long: there is no second one */
        tick(f);
        seen_begin(f, &report, verify->id, i == 0 ? operation_state_FAILED : operation_state_SUCCEEDED);
        fixture_send(f, &report);
        assert_null(running(f, operation_kind_BACKUP_VERIFY));
    }
}

/* A policy's backup is done: what its rules let go goes, once. */
static void rules_by_themselves(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 3);
    policy_make(f);
    fixture_must(f, ROUTE_ID_backup_policy_update, "p", "{\"paused\":false}");
    tick(f);
    const struct operation *create = running(f, operation_kind_BACKUP_CREATE);
    assert_non_null(create);
    char made[STATE_ID_BYTES];
    strcpy(made, create->target_id);
    seen_begin(f, &report, create->id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    assert_true(backup_of(f, made)->rules_due);
    fixture_must(f, ROUTE_ID_backup_verify, ID("1"), NULL); /* all is at work: it waits */
    tick(f);
    assert_null(running(f, operation_kind_BACKUP_PRUNE));
    seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    tick(f);
    const struct operation *prune = running(f, operation_kind_BACKUP_PRUNE);
    assert_non_null(prune);
    assert_int_equal(prune->task.backup.gone.count, 2);
    assert_string_equal(prune->task.backup.gone.items[1], ID("1"));
    assert_false(backup_of(f, made)->rules_due);
    struct task_seen *seen = seen_begin(f, &report, prune->id, operation_state_SUCCEEDED);
    list_add(&seen->backup, "removed", &seen->backup.removed, ID("1"));
    list_add(&seen->backup, "removed", &seen->backup.removed, ID("2"));
    fixture_send(f, &report);
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 2);
    assert_int_equal(tick(f), 0);
}

/* The newest of them that is not of a time to come. */
static const struct backup *backup_of_vm_now(struct fixture *f)
{
    const struct backup *found = NULL;
    for (size_t i = 0; i < state_count(f->state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(f->state, object_kind_BACKUP, i)->backup;
        if (time_text_is_ahead(time_text_ms(fixture_now(f)), backup->created_at))
            continue;
        if (found == NULL || strcmp(backup->created_at, found->created_at) > 0)
            found = backup;
    }
    assert_non_null(found);
    return found;
}

/* The leader's clock was a year ahead, and is put right: backups and verifications go on, each once. */
static void schedules_go_on_when_the_clock_is_put_back(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    const uint64_t year_ms = 365 * (uint64_t)DAY_MS;
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"p\",\"store\":\"nas\",\"every_s\":3600}");
    fixture_must(f, ROUTE_ID_backup_store_update, "nas", "{\"verify_every_s\":86400}");
    f->now_ms += year_ms;
    for (unsigned i = 0; i < 2; i++) {
        while (running(f, operation_kind_BACKUP_CREATE) == NULL || running(f, operation_kind_BACKUP_VERIFY) == NULL)
            assert_true(tick(f) > 0);
        seen_begin(f, &report, running(f, operation_kind_BACKUP_CREATE)->id, operation_state_SUCCEEDED);
        fixture_send(f, &report);
        seen_begin(f, &report, running(f, operation_kind_BACKUP_VERIFY)->id, operation_state_SUCCEEDED);
        fixture_send(f, &report);
        tick(f);
        tick(f);
        assert_null(running(f, operation_kind_BACKUP_CREATE));
        assert_null(running(f, operation_kind_BACKUP_VERIFY));
        f->now_ms -= i == 0 ? year_ms : 0;
    }
    /* the last one is the parent of the next, and the rules let go what is of this clock alone */
    char last[STATE_ID_BYTES];
    strcpy(last, backup_of_vm_now(f)->id);
    f->now_ms += 3600000;
    tick(f);
    const struct operation *create = running(f, operation_kind_BACKUP_CREATE);
    assert_non_null(create);
    assert_string_equal(create->task.backup.parent, last);
    seen_begin(f, &report, create->id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    would_go(f, "{\"keep_last\":1}", last + 35, 2);
}

/* Some that are refused each time they are proposed keep nobody else from his turn; one with a volume that is being detached has none. */
static void each_has_its_turn(void **test)
{
    enum { VMS = 9, TICKS = 60 };
    struct fixture *f = *test;
    bool seen[VMS] = {false};
    char body[200];
    for (unsigned i = 0; i < VMS; i++) {
        char name[] = {'w', (char)('0' + i), '\0'};
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777216,\"labels\":{\"backup-policy\":\"q\"},"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}", name);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
        tick(f);
        fixture_vm_is(f, name, vm_state_RUNNING);
    }
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"q\",\"store\":\"nas\",\"every_s\":3600}");
    struct vm_disk *leaving = fixture_get(f, object_kind_VM, "w8")->vm->disks.items;
    OBJECT_SET(vm_disk, leaving, leaving, true);
    for (unsigned i = 0; i < TICKS; i++) {
        struct backup_schedule schedule;
        struct command_task command = {0};
        f->now_ms += 1000;
        backup_schedule_init(&schedule, f->state, fixture_now(f));
        for (unsigned k = 0; k < BACKUP_SCHEDULE_TICK_MAX && backup_schedule_next(&schedule, &command); k++) {
            seen[command.operation.target_name[1] - '0'] = true;
            OBJECT_CLEAR(command_task, &command);
        }
        backup_schedule_finish(&schedule);
    }
    for (unsigned i = 0; i + 1 < VMS; i++)
        if (!seen[i])
            fail_msg("w%u had none", i);
    assert_false(seen[VMS - 1]);
}

/* Policies name stores, and VMs policies, by name: what would end backups without a word is refused. */
static void names_that_backups_hang_on(void **test)
{
    struct fixture *f = *test;
    refused(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"p\",\"store\":\"nsa\",\"every_s\":3600}", "there is no backup-store 'nsa'");
    policy_make(f);
    refused(f, ROUTE_ID_backup_policy_update, "p", "{\"store\":\"nsa\"}", "there is no backup-store 'nsa'");
    refused(f, ROUTE_ID_backup_store_update, "nas", "{\"name\":\"old\"}", "policy 'p' names it");
    fixture_must(f, ROUTE_ID_backup_store_update, "nas", "{\"name\":\"nas\"}");
    refused(f, ROUTE_ID_backup_policy_update, "p", "{\"name\":\"q\"}", "VM 'a' has its name");
    char body[128];
    snprintf(body, sizeof body, "{\"store\":\"%s\"}", fixture_get(f, object_kind_BACKUP_STORE, "nas")->common->id);
    fixture_must(f, ROUTE_ID_backup_policy_update, "p", body);
    fixture_must(f, ROUTE_ID_backup_store_update, "nas", "{\"name\":\"old\"}");
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"labels\":{}}");
    fixture_must(f, ROUTE_ID_backup_policy_update, "p", "{\"name\":\"q\"}");
}

/* Snapshots and restores of a VM, and backups and reverts, keep away from each other, whichever begins first. */
static void snapshots_beside_restores(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777216,"
                                              "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]}");
    tick(f);
    fixture_vm_is(f, "d", vm_state_RUNNING);
    backups_add(f, fixture_vm(f, "d")->id, 1, 1);
    fixture_must(f, ROUTE_ID_vm_stop, "d", NULL);
    fixture_vm_is(f, "d", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{}");
    char restore[STATE_ID_BYTES];
    strcpy(restore, f->decision.operation_id);
    refused(f, ROUTE_ID_snapshot_create, "d", "{\"name\":\"s\"}", "VM 'd' is being restored");
    seen_begin(f, &report, restore, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{\"live\":true}");
    strcpy(restore, f->decision.operation_id);
    refused(f, ROUTE_ID_snapshot_create, "d", "{\"name\":\"s\"}", "are not whole yet");
    seen_begin(f, &report, restore, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_snapshot_create, "d", "{\"name\":\"s\"}");
    seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_snapshot_revert, "s", NULL);
    char revert[STATE_ID_BYTES];
    strcpy(revert, f->decision.operation_id);
    refused(f, ROUTE_ID_backup_create, "d", "{\"store\":\"nas\"}", "goes back to snapshot 's'");
    seen_begin(f, &report, revert, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    fixture_must(f, ROUTE_ID_backup_create, "d", "{\"store\":\"nas\"}");
}

/* Rules that let nothing go leave nothing to do behind. */
static void rules_without_work(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    policy_make(f);
    fixture_must(f, ROUTE_ID_backup_policy_update, "p", "{\"paused\":false}");
    tick(f);
    const struct operation *create = running(f, operation_kind_BACKUP_CREATE);
    char made[STATE_ID_BYTES];
    strcpy(made, create->target_id);
    seen_begin(f, &report, create->id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    assert_true(backup_of(f, made)->rules_due);
    assert_int_equal(tick(f), 1);
    assert_false(backup_of(f, made)->rules_due);
    assert_null(running(f, operation_kind_BACKUP_PRUNE));
    assert_int_equal(tick(f), 0);
}

/* A VM that was made of a backup has its policy's label and no disks yet: nothing is tried until somebody starts it. */
static void not_before_its_first_start(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"q\",\"store\":\"nas\",\"every_s\":3600}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"started\":false,\"labels\":{\"backup-policy\":\"q\"}}");
    fixture_vm_is(f, "b", vm_state_STOPPED);
    tick(f);
    assert_null(running(f, operation_kind_BACKUP_CREATE));
    fixture_must(f, ROUTE_ID_vm_start, "b", NULL);
    fixture_vm_is(f, "b", vm_state_RUNNING);
    assert_false(fixture_vm(f, "b")->unstarted);
    fixture_must(f, ROUTE_ID_vm_stop, "b", NULL);
    fixture_vm_is(f, "b", vm_state_STOPPED);
    tick(f);
    assert_non_null(running(f, operation_kind_BACKUP_CREATE));
}

#define REPOSITORY "0123456789abcdef0123456789abcdef"

/* The host did not get into the repository: what was to go is as it was. If it did, it counts for nothing until it is verified. */
static void what_was_not_removed(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 4);
    for (unsigned opened = 0; opened < 2; opened++) {
        fixture_must(f, ROUTE_ID_backup_store_prune, "nas", "{\"keep_last\":3}");
        struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_FAILED);
        OBJECT_TEXT(task_seen, seen, error_text, "is the share mounted?");
        OBJECT_SET(backup_result, &seen->backup, untouched, true);
        if (opened)
            OBJECT_TEXT(backup_result, &seen->backup, repository, REPOSITORY);
        assert_int_equal(fixture_send(f, &report), 1);
        assert_int_equal(backup_of(f, ID("1"))->state, backup_state_AVAILABLE);
        assert_non_null(strstr(backup_of(f, ID("1"))->state_reason, "is the share mounted?"));
        if (!opened)
            assert_null(backup_of(f, ID("1"))->damage);
    }
    assert_non_null(strstr(backup_of(f, ID("1"))->damage, "removal did not end"));
    assert_null(store_of(f)->repository); /* what it has was not shown */
    for (unsigned told = 0; told < 2; told++) {
        fixture_must(f, ROUTE_ID_backup_delete, ID("2"), NULL);
        struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_FAILED);
        OBJECT_TEXT(task_seen, seen, error_text, "is the share mounted?");
        OBJECT_SET(backup_result, &seen->backup, untouched, told == 0);
        assert_int_equal(fixture_send(f, &report), 1);
        assert_int_equal(backup_of(f, ID("2"))->state, backup_state_AVAILABLE);
        assert_int_equal(backup_of(f, ID("2"))->damage == NULL, told == 0);
    }
    assert_non_null(strstr(backup_of(f, ID("2"))->damage, "removal did not end"));
    would_go(f, "{\"keep_last\":1}", "3", 1);
}

/* What was there once goes with every order; none of what is known found, or not most of it: nothing is written off, nor is that
 * repository noted. */
static void which_repository(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    struct node_orders orders = {0};
    backups_add(f, fixture_vm(f, "a")->id, 1, 2);
    backups_add(f, fixture_vm(f, "a")->id, 4, 2);
    for (unsigned found = 0; found <= 3; found++) {
        fixture_must(f, ROUTE_ID_backup_store_verify, "nas", NULL);
        struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
        OBJECT_SET(backup_result, &seen->backup, complete, true);
        OBJECT_TEXT(backup_result, &seen->backup, repository, REPOSITORY);
        list_add(&seen->backup, "verified", &seen->backup.verified, found ? ID("1") : ID("9"));
        if (found >= 2)
            list_add(&seen->backup, "verified", &seen->backup.verified, ID("4"));
        if (found == 3)
            list_add(&seen->backup, "verified", &seen->backup.verified, ID("5"));
        assert_int_equal(fixture_send(f, &report), 1);
        if (found < 3) {
            assert_null(backup_of(f, ID("1"))->damage);
            assert_null(backup_of(f, ID("2"))->damage);
            assert_null(store_of(f)->repository);
            assert_non_null(strstr(store_of(f)->damage, found == 0   ? "none of the 4 backups"
                                                        : found == 1 ? "only 1 of the 4 backups"
                                                                     : "only 2 of the 4 backups"));
        }
    }
    assert_null(backup_of(f, ID("1"))->damage);
    assert_non_null(strstr(backup_of(f, ID("2"))->damage, "not in the store"));
    assert_null(store_of(f)->damage);
    assert_string_equal(store_of(f)->repository, REPOSITORY);
    /* not all was told: nothing is missing */
    backups_add(f, fixture_vm(f, "a")->id, 3, 1);
    fixture_must(f, ROUTE_ID_backup_store_verify, "nas", NULL);
    struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    OBJECT_SET(backup_result, &seen->backup, complete, true);
    OBJECT_SET(backup_result, &seen->backup, cut, true);
    list_add(&seen->backup, "verified", &seen->backup.verified, ID("1"));
    assert_int_equal(fixture_send(f, &report), 1);
    assert_null(backup_of(f, ID("3"))->damage);
    /* it goes with the orders; a backup that was made in another one says so */
    fixture_must(f, ROUTE_ID_backup_create, "a", "{\"name\":\"new\"}");
    report = fixture_report(f, "n1", 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_string_equal(((const struct task_order *)orders.tasks.items)->store.repository, REPOSITORY);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    OBJECT_TEXT(backup_result, &seen->backup, repository, "f123456789abcdef0123456789abcdef");
    assert_int_equal(fixture_send(f, &report), 1);
    assert_non_null(strstr(backup_of(f, "new")->damage, "another repository"));
    assert_string_equal(store_of(f)->repository, REPOSITORY);
}

/* Of two that are known one host shows one: the other one may be in another repository. */
static void one_of_two_shows_nothing(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 2);
    for (unsigned restored = 0; restored < 2; restored++) {
        if (restored) {
            fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
            fixture_vm_is(f, "a", vm_state_STOPPED);
            fixture_must(f, ROUTE_ID_backup_restore, ID("1"), "{}");
        } else {
            fixture_must(f, ROUTE_ID_backup_verify, ID("1"), NULL);
        }
        struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
        OBJECT_TEXT(backup_result, &seen->backup, repository, REPOSITORY);
        OBJECT_SET(backup_result, &seen->backup, complete, true);
        list_add(&seen->backup, "verified", &seen->backup.verified, ID("1"));
        assert_int_equal(fixture_send(f, &report), 1);
        assert_int_equal(backup_of(f, ID("1"))->state, backup_state_AVAILABLE);
        assert_null(store_of(f)->repository);
    }
}

/* The first backup of a store shows which one it is. */
static void first_seen(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    fixture_must(f, ROUTE_ID_backup_create, "a", "{\"name\":\"new\"}");
    struct task_seen *seen = seen_begin(f, &report, f->decision.operation_id, operation_state_SUCCEEDED);
    OBJECT_TEXT(backup_result, &seen->backup, repository, REPOSITORY);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_string_equal(store_of(f)->repository, REPOSITORY);
    assert_null(backup_of(f, "new")->damage);
}

/* An attach would make known again what is being removed, and has been read of before. */
static void not_beside_an_attach(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 3);
    fixture_must(f, ROUTE_ID_backup_store_attach, "nas", NULL);
    char attach[STATE_ID_BYTES];
    strcpy(attach, f->decision.operation_id);
    refused(f, ROUTE_ID_backup_store_prune, "nas", "{\"keep_last\":1}", "is being attached");
    refused(f, ROUTE_ID_backup_delete, ID("1"), NULL, "is being attached");
    assert_int_equal(backup_of(f, ID("1"))->state, backup_state_AVAILABLE);
    seen_begin(f, &report, attach, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    fixture_must(f, ROUTE_ID_backup_delete, ID("1"), NULL);
    char operation[STATE_ID_BYTES];
    strcpy(operation, f->decision.operation_id);
    refused(f, ROUTE_ID_backup_store_attach, "nas", NULL, "backups are being removed");
    seen_begin(f, &report, operation, operation_state_SUCCEEDED);
    assert_int_equal(fixture_send(f, &report), 1);
    fixture_must(f, ROUTE_ID_backup_store_prune, "nas", "{\"keep_last\":1}");
    refused(f, ROUTE_ID_backup_store_attach, "nas", NULL, "backups are being removed");
}

static void forgotten(void **test)
{
    struct fixture *f = *test;
    struct node_report report;
    backups_add(f, fixture_vm(f, "a")->id, 1, 3);
    policy_make(f);
    refused(f, ROUTE_ID_backup_store_delete, "nas", NULL, "policy 'p'");
    f->force = true; /* a VM has it */
    fixture_must(f, ROUTE_ID_backup_policy_delete, "p", NULL);
    f->force = false;
    refused(f, ROUTE_ID_backup_store_delete, "nas", NULL, "--force");
    fixture_must(f, ROUTE_ID_backup_verify, ID("1"), NULL);
    struct decision_context context = fixture_context(f);
    context.force = true;
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_store_delete, "nas", 3, NULL, &f->decision, &f->error), -EBUSY);
    assert_non_null(strstr(f->error.text, "is at work (backup-verify"));
    seen_begin(f, &report, running(f, operation_kind_BACKUP_VERIFY)->id, operation_state_SUCCEEDED);
    fixture_send(f, &report);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_backup_store_delete, "nas", 3, NULL, &f->decision, &f->error), 0);
    assert_int_equal(fixture_apply(f, &f->decision.command), 0);
    assert_int_equal(state_count(f->state, object_kind_BACKUP), 0);
    assert_null(state_get(f->state, object_kind_BACKUP_STORE, "nas"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(by_rules, setup, teardown),
        cmocka_unit_test_setup_teardown(by_rules_given, setup, teardown),
        cmocka_unit_test_setup_teardown(pruned, setup, teardown),
        cmocka_unit_test_setup_teardown(not_what_is_at_work, setup, teardown),
        cmocka_unit_test_setup_teardown(chosen_and_then_at_work, setup, teardown),
        cmocka_unit_test_setup_teardown(verified, setup, teardown),
        cmocka_unit_test_setup_teardown(verified_by_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(rules_by_themselves, setup, teardown),
        cmocka_unit_test_setup_teardown(schedules_go_on_when_the_clock_is_put_back, setup, teardown),
        cmocka_unit_test_setup_teardown(names_that_backups_hang_on, setup, teardown),
        cmocka_unit_test_setup_teardown(each_has_its_turn, setup, teardown),
        cmocka_unit_test_setup_teardown(snapshots_beside_restores, setup, teardown),
        cmocka_unit_test_setup_teardown(rules_without_work, setup, teardown),
        cmocka_unit_test_setup_teardown(not_before_its_first_start, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_not_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(which_repository, setup, teardown),
        cmocka_unit_test_setup_teardown(one_of_two_shows_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(first_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(not_beside_an_attach, setup, teardown),
        cmocka_unit_test_setup_teardown(forgotten, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
