/* A migration by post-copy in the replicated state: from the hand-over on both hosts have work to do still, the target alone says how it comes
 * out, and what ran is never said to be well where it may be lost. */
#include "tests/unit/controller/fsm_fixture.h"

static char operation_id[STATE_ID_BYTES];

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
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

static const struct operation *migration(struct fixture *f)
{
    return fixture_get(f, object_kind_OPERATION, operation_id)->operation;
}

static const struct task_migration *task_of(struct fixture *f)
{
    return &migration(f)->task.migration;
}

static void begin(struct fixture *f, const char *wish)
{
    fixture_must(f, ROUTE_ID_vm_migrate, "a", wish);
    snprintf(operation_id, sizeof operation_id, "%s", f->decision.operation_id);
}

static int propose(struct fixture *f, bool lacking)
{
    char body[240];
    snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":1%s}", fixture_get(f, object_kind_HOST, "n1")->common->id,
             operation_id, lacking ? ",\"lacking\":true" : "");
    return fixture_do(f, ROUTE_ID_node_handover, NULL, body);
}

/* It runs at n2, and lacks memory. */
static void hand_over(struct fixture *f)
{
    begin(f, "{\"postcopy\":\"at-once\"}");
    assert_int_equal(task_of(f)->postcopy, vmm_postcopy_AT_ONCE);
    assert_int_equal(propose(f, true), 0);
    assert_true(task_of(f)->lacking);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2");
}

static int host_says(struct fixture *f, const char *host, enum task_role role, enum operation_state state, const char *text)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, operation_id);
    OBJECT_SET(task_seen, seen, role, role);
    OBJECT_SET(task_seen, seen, state, state);
    OBJECT_TEXT(task_seen, seen, error_text, text);
    if (role == task_role_MAIN && state == operation_state_SUCCEEDED) {
        OBJECT_SET(migration_result, &seen->migration, downtime_us, 4711);
        object_mark(&task_seen_desc, seen, "migration");
    }
    return fixture_send(f, &report);
}

/* What the order of @host for it says, or "" where there is none. */
static const char *order_says(struct fixture *f, const char *host, bool *ret_lacking)
{
    static char said[300];
    struct node_orders orders = {0};
    struct node_report report = fixture_report(f, host, 8192);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    const struct task_order *order = orders.tasks.items;
    *ret_lacking = orders.tasks.count == 1 && order->task.migration.lacking;
    const char *why = orders.tasks.count == 1 ? order->task.migration.source_error : NULL;
    snprintf(said, sizeof said, "%s", orders.tasks.count != 1 ? "" : why != NULL ? why : "goes on");
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    return said;
}

static bool event_says(const struct fixture *f, const char *words)
{
    struct state_event event;
    for (uint64_t at = 0; state_event_next(f->state, at, &event); at = event.serial)
        if (memmem(event.json, event.json_size, words, strlen(words)) != NULL)
            return true;
    return false;
}

static void silent(struct fixture *f, const char *others)
{
    struct reconcile_node nodes[] = {{.host = fixture_get(f, object_kind_HOST, others)->common->id, .last_report_ms = 100000}};
    struct reconcile_input input = {.now_ms = 100001, .leader_since_ms = 1, .nodes = nodes, .n_nodes = 1};
    assert_true(fixture_reconcile(f, &input) > 0);
}

static void memory_is_compared_before_or_it_comes_after(void **test)
{
    struct fixture *f = *test;
    fixture_refused(f, ROUTE_ID_vm_migrate, "a", "{\"postcopy\":\"fallback\",\"verify\":true}", -EINVAL, "/verify", "one of the two");
    fixture_refused(f, ROUTE_ID_vm_migrate, "a", "{\"postcopy\":\"at-once\",\"verify\":true}", -EINVAL, "/verify", "one of the two");
    begin(f, "{\"postcopy\":\"never\",\"verify\":true}");
    assert_true(task_of(f)->verify);
}

static void both_go_on_until_the_memory_is_there(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    assert_true(event_says(f, "part of its memory is to follow"));
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
    assert_string_equal(order_says(f, "n1", &lacking), "goes on");
    assert_true(lacking);
    assert_string_equal(order_says(f, "n2", &lacking), "goes on");
    assert_true(lacking);
    assert_int_equal(propose(f, true), 0); /* its answer was lost */
    assert_int_equal(fixture_vm(f, "a")->epoch, 2);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_SUCCEEDED, NULL), 1);
    assert_false(task_of(f)->lacking);
    assert_int_equal(migration(f)->state, operation_state_RUNNING); /* the source's figures are to come */
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_SUCCEEDED, NULL), 0);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(task_of(f)->downtime_us, 4711);
}

static void the_source_may_be_the_first_to_know(void **test)
{
    struct fixture *f = *test;
    hand_over(f);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
    assert_false(task_of(f)->lacking);
    assert_false(event_says(f, "what ran is lost"));
}

/* It may have sent all before it ended: the target knows. */
static void a_source_that_has_nothing_more_ends_nothing_by_itself(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "its VMM was killed"), 1);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "its VMM was killed"), 0); /* told once */
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
    assert_non_null(strstr(migration(f)->step, "nothing more of its memory comes: host n1: its VMM was killed"));
    assert_string_equal(order_says(f, "n2", &lacking), "host n1: its VMM was killed");
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED); /* nobody is waited for */
}

/* It was declared lost and was not: a way that breaks later is waited for as before. */
static void a_source_that_is_back_is_waited_for_again(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    fixture_lose(f, "n1");
    assert_non_null(task_of(f)->source_error);
    struct node_report report = fixture_report(f, "n1", 8192); /* it is let in again */
    fixture_send(f, &report);
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_RUNNING, NULL), 1);
    assert_null(task_of(f)->source_error);
    assert_string_equal(order_says(f, "n2", &lacking), "goes on");
    assert_int_equal(host_says(f, "n1", task_role_MAIN, operation_state_RUNNING, NULL), 0);
}

static void what_ran_is_lost_and_that_is_said(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_FAILED, "its VMM was killed"), 1);
    assert_int_equal(migration(f)->state, operation_state_FAILED);
    assert_string_equal(migration(f)->error_text, "host n2: its VMM was killed");
    assert_true(event_says(f, "VM a: what ran is lost, for host n2 had not got all of its memory from host n1: host n2: its VMM was killed"));
    assert_false(event_says(f, "it stood still for"));
    assert_string_equal(order_says(f, "n1", &lacking), "");
    assert_string_equal(fixture_vm(f, "a")->host_name, "n2"); /* whose it is to begin anew */
}

static void a_user_who_stops_it_has_it_cancelled(void **test)
{
    struct fixture *f = *test;
    hand_over(f);
    assert_int_equal(fixture_do(f, ROUTE_ID_operation_cancel, operation_id, NULL), -EINVAL);
    assert_non_null(strstr(f->error.text, "too late"));
    assert_non_null(strstr(f->error.text, "host n2"));
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_CANCELLED, "the VM was stopped"), 1);
    assert_int_equal(migration(f)->state, operation_state_CANCELLED);
}

/* Not by its silence: it may be back. By its loss nothing more comes, and the target says what that means. */
static void a_source_that_is_silent_is_waited_for(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    silent(f, "n2");
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->host->state, host_state_UNREACHABLE);
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
    assert_non_null(strstr(migration(f)->step, "host n1 does not answer"));
    fixture_lose(f, "n1");
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
    assert_non_null(strstr(order_says(f, "n2", &lacking), "lost"));
    assert_true(lacking);
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_FAILED, "given up"), 1);
    assert_int_equal(migration(f)->state, operation_state_FAILED);
}

static void a_source_that_is_silent_when_all_is_there_is_not(void **test)
{
    struct fixture *f = *test;
    hand_over(f);
    silent(f, "n2");
    assert_int_equal(host_says(f, "n2", task_role_PEER, operation_state_SUCCEEDED, NULL), 1);
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
}

static void a_target_that_is_lost_takes_what_ran_along(void **test)
{
    struct fixture *f = *test;
    bool lacking;
    hand_over(f);
    fixture_lose(f, "n2");
    assert_int_equal(migration(f)->state, operation_state_FAILED);
    assert_true(event_says(f, "what ran is lost"));
    assert_string_equal(order_says(f, "n1", &lacking), ""); /* by which it learns that nobody waits */
}

static void the_vm_may_be_deleted(void **test)
{
    struct fixture *f = *test;
    hand_over(f);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    assert_int_equal(migration(f)->state, operation_state_FAILED);
    assert_non_null(strstr(migration(f)->error_text, "deleted"));
}

/* The target would run it without what only a post-copy brings. */
static void unasked_it_is_not_done(void **test)
{
    struct fixture *f = *test;
    begin(f, NULL);
    assert_false(OBJECT_HAS(task_migration, task_of(f), postcopy)); /* controllers that do not know it can do it, too */
    assert_int_equal(propose(f, true), 0);
    assert_int_equal(migration(f)->state, operation_state_FAILED);
    assert_non_null(strstr(migration(f)->error_text, "not asked for"));
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
}

/* Asked for, and not needed: as any other. */
static void with_all_of_its_memory_it_is_as_any_other(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"postcopy\":\"fallback\"}");
    assert_int_equal(propose(f, false), 0);
    assert_false(task_of(f)->lacking);
    fixture_must(f, ROUTE_ID_operation_cancel, operation_id, NULL); /* to no effect: older controllers would apply it, too */
    silent(f, "n2");
    assert_int_equal(migration(f)->state, operation_state_SUCCEEDED);
}

static void knows(struct fixture *f, const char *host, bool knows, bool told)
{
    struct node_report report = fixture_report(f, host, 8192);
    struct node_orders orders = {0};
    OBJECT_SET(node_report, &report, postcopy, knows);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_int_equal(orders.tasks.count, told);
    OBJECT_CLEAR(node_orders, &orders);
    fixture_send(f, &report);
}

/* An older agent would do something else: as source send all before, as target take a VM that waits for one that is dead. */
static void an_older_agent_is_told_nothing_of_it(void **test)
{
    struct fixture *f = *test;
    begin(f, "{\"postcopy\":\"at-once\"}");
    knows(f, "n2", true, true);
    knows(f, "n2", false, false);
    assert_non_null(strstr(migration(f)->task.peer_error, "knows no post-copy"));
    host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "the target cannot");
    begin(f, "{\"postcopy\":\"fallback\"}");
    knows(f, "n1", false, false);
    assert_int_equal(migration(f)->state, operation_state_FAILED);
    assert_non_null(strstr(migration(f)->error_text, "knows no post-copy"));
    begin(f, "{\"postcopy\":\"never\"}");
    knows(f, "n1", false, true);
    knows(f, "n2", false, true);
    host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "x");
    hand_over(f);
    knows(f, "n1", false, true); /* it was put back since: nobody else has what is missing */
    assert_int_equal(migration(f)->state, operation_state_RUNNING);
}

static void a_snapshot_in_between_changes_nothing(void **test)
{
    struct fixture *f = *test;
    hand_over(f);
    host_says(f, "n1", task_role_MAIN, operation_state_FAILED, "its VMM was killed");
    struct bytes_writer bytes = fixture_snapshot(f->state);
    struct state *restored = NULL;
    struct error err = {0};
    if (snapshot_read(bytes.data, bytes.size, &restored, &err) < 0)
        fail_msg("%s", err.text);
    bytes_writer_finish(&bytes);
    assert_int_equal(check_state(restored, &err), 0);
    f->twin = restored;
    host_says(f, "n2", task_role_PEER, operation_state_FAILED, "given up");
    fixture_same_bytes(f->state, f->twin);
    state_destroy(restored);
    f->twin = NULL;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(memory_is_compared_before_or_it_comes_after),
        TEST(both_go_on_until_the_memory_is_there),
        TEST(the_source_may_be_the_first_to_know),
        TEST(a_source_that_has_nothing_more_ends_nothing_by_itself),
        TEST(a_source_that_is_back_is_waited_for_again),
        TEST(what_ran_is_lost_and_that_is_said),
        TEST(a_user_who_stops_it_has_it_cancelled),
        TEST(a_source_that_is_silent_is_waited_for),
        TEST(a_source_that_is_silent_when_all_is_there_is_not),
        TEST(a_target_that_is_lost_takes_what_ran_along),
        TEST(the_vm_may_be_deleted),
        TEST(unasked_it_is_not_done),
        TEST(with_all_of_its_memory_it_is_as_any_other),
        TEST(an_older_agent_is_told_nothing_of_it),
        TEST(a_snapshot_in_between_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
