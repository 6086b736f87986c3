/* The agent's decisions as tables: which orders count, and the next step for one VM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/agent_plan.h"

#define A "aaaaaaaa-0000-4000-8000-000000000001"
#define B "bbbbbbbb-0000-4000-8000-000000000002"
#define C "cccccccc-0000-4000-8000-000000000003"

/* ---- a whole answer ---- */

struct order_row { /* what the host knows, and what the answer says, of VM A */
    const char *what;
    uint64_t known_epoch, known_generation, known_index;
    bool removing, gone;
    bool told; /* the answer has an order */
    uint64_t epoch, generation;
    bool other_policy; /* a field other than the numbers differs */
    bool forget;
    uint64_t index; /* of the answer */
    enum plan_change_kind expected;
};

static const struct order_row order_rows[] = {
    {"the same again", 3, 7, 10, false, false, true, 3, 7, false, false, 11, PLAN_KEEP},
    {"newer wish", 3, 7, 10, false, false, true, 3, 8, false, false, 11, PLAN_ACCEPT},
    {"new epoch", 3, 7, 10, false, false, true, 4, 8, false, false, 11, PLAN_ACCEPT},
    {"new epoch rules over generation", 3, 7, 10, false, false, true, 4, 1, false, false, 11, PLAN_ACCEPT},
    {"lower generation", 3, 7, 10, false, false, true, 3, 6, false, false, 11, PLAN_REFUSE},
    {"lower epoch", 3, 7, 10, false, false, true, 2, 9, false, false, 11, PLAN_REFUSE},
    {"lower epoch while removing", 3, 7, 10, true, false, true, 2, 9, false, false, 11, PLAN_REFUSE},
    {"another policy, same numbers", 3, 7, 10, false, false, true, 3, 7, true, false, 11, PLAN_ACCEPT},
    {"newer while removing", 3, 7, 10, true, false, true, 4, 9, false, false, 11, PLAN_LATER},
    {"same while removing", 3, 7, 10, true, false, true, 3, 7, false, false, 11, PLAN_LATER},
    {"deleted, told again", 3, 7, 10, false, true, true, 3, 7, false, false, 11, PLAN_KEEP},
    {"deleted, newer wish of the same epoch", 3, 7, 10, false, true, true, 3, 8, false, false, 11, PLAN_KEEP},
    {"deleted, given again", 3, 7, 10, false, true, true, 4, 8, false, false, 11, PLAN_ACCEPT},
    {"deleted and no longer told", 3, 7, 10, false, true, false, 0, 0, false, false, 11, PLAN_DROP},
    {"not spoken of", 3, 7, 10, false, false, false, 0, 0, false, false, 11, PLAN_ORPHAN},
    {"forgotten", 3, 7, 10, false, false, false, 0, 0, false, true, 11, PLAN_FORGET},
    {"forgotten by the answer that it came with", 3, 7, 10, false, false, false, 0, 0, false, true, 10, PLAN_FORGET},
    {"forgotten by an answer older than its order", 3, 7, 10, false, false, false, 0, 0, false, true, 9, PLAN_ORPHAN},
    {"forgotten while removing", 3, 7, 10, true, false, false, 0, 0, false, true, 11, PLAN_ORPHAN},
    {"both an order and forgotten: the order counts", 3, 7, 10, false, false, true, 3, 7, false, true, 11, PLAN_KEEP},
};

static void fill_order(struct vm_order *order, const char *id, uint64_t epoch, uint64_t generation)
{
    OBJECT_TEXT(vm_order, order, id, id);
    OBJECT_TEXT(vm_order, order, name, "web1");
    OBJECT_SET(vm_order, order, epoch, epoch);
    OBJECT_SET(vm_order, order, generation, generation);
    OBJECT_SET(vm_order, order, wanted, vm_wanted_RUNNING);
    OBJECT_SET(vm_order, order, restart, restart_policy_ON_FAILURE);
}

static void add_id(struct node_orders *orders, struct string_list *list, const char *field, const char *id)
{
    list->items = xrealloc(list->items, (list->count + 1) * sizeof(char *));
    list->items[list->count++] = xstrdup(id);
    object_mark(&node_orders_desc, orders, field);
}

static void add_forget(struct node_orders *orders, const char *id)
{
    add_id(orders, &orders->forget, "forget", id);
}

/* An order of before a session with the VM's replica would let its guest go on without, or start another VMM. After a rebuild of the cluster
 * sessions may be lost, as all else. */
static void test_sessions_with_replicas(void **unused)
{
    (void)unused;
    static const struct {
        uint64_t known, told, epoch;
        bool astray;
        enum plan_change_kind expected;
    } rows[] = {
        {4, 4, 3, false, PLAN_KEEP},   {4, 5, 3, false, PLAN_ACCEPT}, {4, 3, 3, false, PLAN_REFUSE},
        {4, 0, 3, false, PLAN_REFUSE}, {4, 0, 4, false, PLAN_ACCEPT}, {4, 3, 3, true, PLAN_ACCEPT},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct vm_order known = {.epoch = 0};
        struct node_orders orders = {.index = 11};
        struct plan_change changes[4];
        fill_order(&known, A, 3, 7);
        OBJECT_SET(vm_order, &known, replica_session, rows[i].known);
        struct vm_order *order = OBJECT_ADD(node_orders, &orders, vms);
        fill_order(order, A, rows[i].epoch, 7);
        if (rows[i].told > 0)
            OBJECT_SET(vm_order, order, replica_session, rows[i].told);
        const struct plan_have have = {A, &known, 10, false, false, rows[i].astray};
        assert_int_equal(agent_plan_orders(&have, 1, &orders, changes), 1);
        if (changes[0].kind != rows[i].expected)
            fail_msg("row %zu: kind %d and not %d", i, changes[0].kind, rows[i].expected);
        OBJECT_CLEAR(vm_order, &known);
        OBJECT_CLEAR(node_orders, &orders);
    }
}

static void test_one_order(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < ARRAY_SIZE(order_rows); i++) {
        const struct order_row *row = &order_rows[i];
        struct vm_order known = {.epoch = 0};
        struct node_orders orders = {.index = row->index};
        struct plan_change changes[4];
        fill_order(&known, A, row->known_epoch, row->known_generation);
        if (row->told) {
            struct vm_order *order = OBJECT_ADD(node_orders, &orders, vms);
            fill_order(order, A, row->epoch, row->generation);
            if (row->other_policy)
                order->restart = restart_policy_NEVER;
        }
        if (row->forget)
            add_forget(&orders, A);
        const struct plan_have have = {A, &known, row->known_index, row->removing, row->gone, false};
        size_t n = agent_plan_orders(&have, 1, &orders, changes);
        if (n != 1 || changes[0].kind != row->expected)
            fail_msg("%s: %zu changes, kind %d and not %d", row->what, n, changes[0].kind, row->expected);
        assert_int_equal(changes[0].have, 0);
        assert_true((changes[0].why != NULL) == (row->expected == PLAN_REFUSE));
        OBJECT_CLEAR(node_orders, &orders);
        OBJECT_CLEAR(vm_order, &known);
    }
}

static void test_new_and_doubled_orders(void **unused)
{
    (void)unused;
    struct vm_order known_a = {.epoch = 0}, known_b = {.epoch = 0};
    struct node_orders orders = {.index = 5};
    struct plan_change changes[8];
    fill_order(&known_a, A, 1, 1);
    fill_order(&known_b, B, 1, 1);
    fill_order(OBJECT_ADD(node_orders, &orders, vms), C, 1, 1);
    fill_order(OBJECT_ADD(node_orders, &orders, vms), A, 1, 2);
    fill_order(OBJECT_ADD(node_orders, &orders, vms), C, 9, 9); /* the same VM twice: the first counts */
    const struct plan_have have[] = {{A, &known_a, 1, false, false, false}, {B, &known_b, 1, false, false, false}};
    size_t n = agent_plan_orders(have, 2, &orders, changes);
    assert_int_equal(n, 3);
    assert_int_equal(changes[0].kind, PLAN_ACCEPT);
    assert_int_equal(changes[0].order->generation, 2);
    assert_int_equal(changes[1].kind, PLAN_ORPHAN);
    assert_int_equal(changes[2].kind, PLAN_ACCEPT);
    assert_true(changes[2].have == PLAN_NEW);
    assert_int_equal(changes[2].order->epoch, 1);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(vm_order, &known_a);
    OBJECT_CLEAR(vm_order, &known_b);
}

static struct plan_change plan_one(const struct plan_have *have, const struct node_orders *orders)
{
    struct plan_change changes[2];
    assert_int_equal(agent_plan_orders(have, have != NULL, orders, changes), 1);
    return changes[0];
}

/* After a recovery: what the cluster may have lost is kept until it says that it knows better, or gives an order. */
static void test_astray(void **unused)
{
    (void)unused;
    struct vm_order known = {.epoch = 0};
    struct node_orders orders = {.index = 20};
    struct plan_have have = {.id = A, .order = &known, .index = 5, .astray = true};
    fill_order(&known, A, 3, 7);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_ORPHAN);
    add_forget(&orders, A);
    add_id(&orders, &orders.gone, "gone", A);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_ORPHAN);
    add_id(&orders, &orders.halt, "halt", A);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_HALT);
    have.astray = false;
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_FORGET);
    have.astray = true;
    add_id(&orders, &orders.given, "given", A);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_FORGET);
    fill_order(OBJECT_ADD(node_orders, &orders, vms), A, 3, 7);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_KEEP);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(vm_order, &known);
}

/* Another host's by now, but that may not have its disks yet: nothing runs here, and nothing goes. */
static void test_halt(void **unused)
{
    (void)unused;
    struct vm_order known = {.epoch = 0};
    struct node_orders orders = {.index = 20};
    struct plan_have have = {.id = A, .order = &known, .index = 5};
    fill_order(&known, A, 3, 7);
    add_id(&orders, &orders.halt, "halt", A);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_HALT);
    have.index = 21; /* the answer may simply not have heard of its order */
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_ORPHAN);
    have.index = 5;
    fill_order(OBJECT_ADD(node_orders, &orders, vms), A, 3, 7);
    assert_int_equal(plan_one(&have, &orders).kind, PLAN_KEEP);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(vm_order, &known);
}

/* What ran here and is not here any more is not made anew; also where it was deleted by an order that is lost. */
static void test_missing(void **unused)
{
    (void)unused;
    struct vm_order known = {.epoch = 0};
    struct node_orders orders = {.index = 20};
    struct plan_have gone = {.id = A, .order = &known, .index = 5, .gone = true}, here = {.id = A, .order = &known, .index = 5};
    fill_order(&known, A, 3, 7);
    fill_order(OBJECT_ADD(node_orders, &orders, vms), A, 3, 8);
    assert_false(plan_one(NULL, &orders).missing);
    add_id(&orders, &orders.missing, "missing", A);
    struct plan_change anew = plan_one(NULL, &orders), deleted = plan_one(&gone, &orders), changed = plan_one(&here, &orders);
    assert_true(anew.missing && anew.kind == PLAN_ACCEPT);
    assert_true(deleted.missing && deleted.kind == PLAN_ACCEPT);
    assert_true(!changed.missing && changed.kind == PLAN_ACCEPT); /* the report had crossed its making */
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(vm_order, &known);
}

static void test_lease_generation(void **unused)
{
    (void)unused;
    struct node_orders orders = {.generation = 4};
    assert_true(agent_plan_answer_ok(&orders, 3));
    assert_true(agent_plan_answer_ok(&orders, 4));
    assert_false(agent_plan_answer_ok(&orders, 5));
}

/* ---- one VM ---- */

#define RUN_BY(policy) .wanted = vm_wanted_RUNNING, .restart = restart_policy_##policy, .confirmed = true
#define RUN RUN_BY(ON_FAILURE)
#define ALIVE .process = true, .process_answers = true

static const struct {
    const char *what;
    struct plan_vm vm;
    enum plan_step expected;
} step_rows[] = {
    {"new", {RUN}, PLAN_PREPARE},
    {"given up here", {RUN, .released = true, .prepared = true, .backoff_over = true}, PLAN_REST_FAILED},
    {"given up here, and to be removed", {RUN, .released = true, .forgotten = true}, PLAN_REMOVE},
    {"its host goes down", {RUN, ALIVE, .down = true}, PLAN_STOP},
    {"its host goes down, and its guest can be asked", {RUN, ALIVE, .down = true, .gentle = true}, PLAN_SHUTDOWN},
    {"its guest has had its time", {RUN, ALIVE, .down = true, .gentle = true, .shutdown_asked = true, .shutdown_over = true}, PLAN_STOP},
    {"it has not ended", {RUN, ALIVE, .down = true, .stop_asked = true, .stop_overdue = true}, PLAN_KILL},
    {"off, as its host goes down", {RUN, .down = true, .prepared = true}, PLAN_REST_DOWN},
    {"it broke, and its host goes down", {RUN, .down = true, .end = PLAN_END_BROKEN, .backoff_over = true}, PLAN_REST_DOWN},
    {"powered off before its host goes down", {RUN, .down = true, .end = PLAN_END_CLEAN}, PLAN_REST_OFF},
    {"deleted while its host goes down", {.wanted = vm_wanted_DELETED, .down = true}, PLAN_REMOVE},
    {"it is being migrated away from a host that goes down", {RUN, ALIVE, .down = true, .leaving = true}, PLAN_REST},
    {"it is being migrated to a host that goes down", {RUN, ALIVE, .down = true, .arriving = true}, PLAN_REST_ARRIVING},
    {"prepared", {RUN, .prepared = true}, PLAN_START},
    {"started", {RUN, .process = true}, PLAN_WAIT_ANSWER},
    {"started and does not answer", {RUN, .process = true, .start_overdue = true}, PLAN_KILL},
    {"and was killed", {RUN, .process = true, .start_overdue = true, .kill_sent = true}, PLAN_WAIT_END},
    {"runs", {RUN, ALIVE}, PLAN_REST},
    {"runs, late answer", {RUN, ALIVE, .start_overdue = true}, PLAN_REST},
    {"runs, wanted paused", {.wanted = vm_wanted_PAUSED, ALIVE}, PLAN_PAUSE},
    {"is paused as wanted", {.wanted = vm_wanted_PAUSED, ALIVE, .process_paused = true}, PLAN_REST},
    {"is paused, wanted running", {RUN, ALIVE, .process_paused = true}, PLAN_RESUME},
    {"paused itself for its disk", {RUN, ALIVE, .process_paused = true, .process_stuck = true}, PLAN_REST},
    {"its devices are to change", {RUN, ALIVE, .differs = true}, PLAN_ADJUST},
    {"paused as wanted, its devices are to change", {.wanted = vm_wanted_PAUSED, ALIVE, .process_paused = true, .differs = true}, PLAN_ADJUST},
    {"first paused, then changed", {.wanted = vm_wanted_PAUSED, ALIVE, .differs = true}, PLAN_PAUSE},
    {"what is to stop is not changed", {.wanted = vm_wanted_STOPPED, ALIVE, .differs = true}, PLAN_STOP},
    {"a disk of what is to stop is held", {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true, .moves = true}, PLAN_ADJUST},
    {"also while its guest shuts down", {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true, .moves = true, .shutdown_asked = true}, PLAN_ADJUST},
    {"but not for longer than that may take",
     {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true, .moves = true, .shutdown_asked = true, .shutdown_over = true}, PLAN_STOP},
    {"nor where the plug is pulled", {.wanted = vm_wanted_STOPPED, ALIVE, .moves = true}, PLAN_STOP},
    {"what does not answer cannot be changed", {RUN, .process = true, .differs = true}, PLAN_WAIT_ANSWER},
    {"wanted paused and off", {.wanted = vm_wanted_PAUSED, .confirmed = true, .prepared = true}, PLAN_START},

    {"runs, wanted stopped", {.wanted = vm_wanted_STOPPED, ALIVE}, PLAN_STOP},
    {"asked to stop", {.wanted = vm_wanted_STOPPED, ALIVE, .stop_asked = true}, PLAN_WAIT_END},
    {"did not stop", {.wanted = vm_wanted_STOPPED, ALIVE, .stop_asked = true, .stop_overdue = true}, PLAN_KILL},
    {"killed",
     {.wanted = vm_wanted_STOPPED, ALIVE, .stop_asked = true, .stop_overdue = true, .kill_sent = true},
     PLAN_WAIT_END},
    {"off as wanted", {.wanted = vm_wanted_STOPPED}, PLAN_REST},
    {"asked to stop, then wanted again: it still ends first", {RUN, ALIVE, .stop_asked = true}, PLAN_WAIT_END},
    {"does not answer, wanted stopped", {.wanted = vm_wanted_STOPPED, .process = true}, PLAN_STOP},

    {"runs, wanted stopped in order", {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true}, PLAN_SHUTDOWN},
    {"its guest was asked", {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true, .shutdown_asked = true}, PLAN_WAIT_END},
    {"its guest takes too long",
     {.wanted = vm_wanted_STOPPED, ALIVE, .gentle = true, .shutdown_asked = true, .shutdown_over = true},
     PLAN_STOP},
    {"its guest was asked, and now there is no time", {.wanted = vm_wanted_STOPPED, ALIVE, .shutdown_asked = true}, PLAN_STOP},
    {"then the plug",
     {.wanted = vm_wanted_STOPPED, ALIVE, .shutdown_asked = true, .shutdown_over = true, .stop_asked = true},
     PLAN_WAIT_END},
    {"its guest was asked, then wanted again: it ends first", {RUN, ALIVE, .gentle = true, .shutdown_asked = true}, PLAN_WAIT_END},
    {"runs, reboot in order", {RUN, ALIVE, .gentle = true, .reboot = true}, PLAN_SHUTDOWN},
    {"runs, wanted deleted: no time is lost", {.wanted = vm_wanted_DELETED, ALIVE, .gentle = true}, PLAN_STOP},
    {"runs, forgotten: no time is lost", {RUN, ALIVE, .gentle = true, .forgotten = true}, PLAN_STOP},

    {"runs, reboot", {RUN, ALIVE, .reboot = true}, PLAN_STOP},
    {"off, reboot", {RUN, .reboot = true, .prepared = true}, PLAN_START},
    {"runs under an old epoch", {RUN, ALIVE, .process_old = true}, PLAN_STOP},
    {"old epoch, silent", {RUN, .process = true, .process_old = true}, PLAN_STOP},

    {"runs, wanted deleted", {.wanted = vm_wanted_DELETED, ALIVE}, PLAN_STOP},
    {"off, wanted deleted", {.wanted = vm_wanted_DELETED}, PLAN_REMOVE},
    {"runs, forgotten", {RUN, ALIVE, .forgotten = true}, PLAN_STOP},
    {"off, forgotten", {RUN, .forgotten = true}, PLAN_REMOVE},
    {"nothing left", {.wanted = vm_wanted_DELETED, .gone = true}, PLAN_REST_GONE},
    {"nothing was left, and it is off", {.wanted = vm_wanted_STOPPED, .missing = true, .confirmed = true}, PLAN_REST_FAILED},
    {"nothing was left, and it should run", {RUN, .missing = true}, PLAN_REST_FAILED},
    {"nothing was left, and it is to go", {.wanted = vm_wanted_DELETED, .missing = true}, PLAN_REMOVE},

    {"powered off", {RUN, .end = PLAN_END_CLEAN, .backoff_over = true}, PLAN_REST_OFF},
    {"powered off, always", {RUN_BY(ALWAYS), .end = PLAN_END_CLEAN}, PLAN_WAIT_BACKOFF},
    {"powered off, always, later",
     {RUN_BY(ALWAYS), .end = PLAN_END_CLEAN, .backoff_over = true, .prepared = true},
     PLAN_START},
    {"broken", {RUN, .end = PLAN_END_BROKEN}, PLAN_WAIT_BACKOFF},
    {"broken, later", {RUN, .end = PLAN_END_BROKEN, .backoff_over = true}, PLAN_PREPARE},
    {"broken, never", {RUN_BY(NEVER), .end = PLAN_END_BROKEN, .backoff_over = true}, PLAN_REST_FAILED},
    {"broken too often", {RUN, .end = PLAN_END_BROKEN, .backoff_over = true, .worn = true}, PLAN_REST_FAILED},
    {"not started too often", {RUN, .end = PLAN_END_NOT_STARTED, .worn = true}, PLAN_REST_FAILED},
    {"powered off too often, always", {RUN_BY(ALWAYS), .end = PLAN_END_CLEAN, .backoff_over = true, .worn = true}, PLAN_REST_FAILED},
    {"powered off, too often or not", {RUN, .end = PLAN_END_CLEAN, .worn = true}, PLAN_REST_OFF},
    {"too often before, and begun anew", {RUN, .worn = true, .prepared = true}, PLAN_START},
    {"not started", {RUN, .end = PLAN_END_NOT_STARTED}, PLAN_WAIT_BACKOFF},
    {"not started, never", {RUN_BY(NEVER), .end = PLAN_END_NOT_STARTED}, PLAN_REST_FAILED},
    {"impossible", {RUN_BY(ALWAYS), .end = PLAN_END_IMPOSSIBLE, .backoff_over = true}, PLAN_REST_FAILED},
    {"broken, wanted stopped", {.wanted = vm_wanted_STOPPED, .end = PLAN_END_BROKEN}, PLAN_REST},

    {"known from a file only", {.wanted = vm_wanted_RUNNING, .prepared = true}, PLAN_REST_UNCONFIRMED},
    {"known from a file, broken, later",
     {.wanted = vm_wanted_RUNNING, .restart = restart_policy_ALWAYS, .end = PLAN_END_BROKEN, .backoff_over = true},
     PLAN_REST_UNCONFIRMED},
    {"known from a file, runs", {.wanted = vm_wanted_RUNNING, ALIVE}, PLAN_REST},
    {"known from a file, deleted", {.wanted = vm_wanted_DELETED}, PLAN_REMOVE},
};

static void test_steps(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < ARRAY_SIZE(step_rows); i++) {
        enum plan_step step = agent_plan_vm(&step_rows[i].vm);
        if (step != step_rows[i].expected)
            fail_msg("%s: %s and not %s", step_rows[i].what, agent_plan_step_name(step),
                     agent_plan_step_name(step_rows[i].expected));
    }
}

/* Whatever the facts: never start beside a living VMM, never without the controllers' word, never what is not wanted;
 * never remove beside a living VMM; no VMM is touched for lack of a word. */
static void test_every_combination(void **unused)
{
    (void)unused;
    for (unsigned bits = 0; bits < 1u << 17; bits++)
        for (unsigned wanted = 0; wanted < vm_wanted_COUNT; wanted++)
            for (unsigned end = 0; end <= PLAN_END_IMPOSSIBLE; end++) {
                struct plan_vm vm = {
                    .wanted = wanted,
                    .end = end,
                    .restart = bits % restart_policy_COUNT,
                    .forgotten = bits & 1,
                    .confirmed = bits & 2,
                    .released = bits % 7 == 0,
                    .reboot = bits & 4,
                    .process = bits & 8,
                    .process_old = bits & 16,
                    .process_answers = bits & 32,
                    .process_paused = bits & 64,
                    .start_overdue = bits & 128,
                    .stop_asked = bits & 256,
                    .stop_overdue = bits & 512,
                    .kill_sent = bits & 1024,
                    .prepared = bits & 2048,
                    .backoff_over = bits & 4096,
                    .gentle = bits & 8192,
                    .shutdown_asked = bits & 16384,
                    .shutdown_over = bits & 32768,
                    .down = bits & 65536,
                };
                enum plan_step step = agent_plan_vm(&vm);
                bool wants = !vm.down && !vm.forgotten && (wanted == vm_wanted_RUNNING || wanted == vm_wanted_PAUSED);
                if (step == PLAN_START || step == PLAN_PREPARE)
                    assert_true(!vm.process && vm.confirmed && wants && !vm.released);
                if (step == PLAN_REMOVE)
                    assert_true(!vm.process && (vm.forgotten || wanted == vm_wanted_DELETED));
                if (step == PLAN_STOP)
                    assert_true(vm.process && (!wants || vm.process_old || vm.reboot || vm.shutdown_asked));
                if (step == PLAN_SHUTDOWN)
                    assert_true(vm.process && vm.gentle && (!wants || vm.process_old || vm.reboot));
                if (step == PLAN_KILL)
                    assert_true(vm.process && !vm.kill_sent && (vm.stop_overdue || vm.start_overdue));
            }
}

/* A VM that a migration brings or takes away: whatever else is true, it does not run where it may be another host's. */
static void test_every_migrating_combination(void **unused)
{
    (void)unused;
    for (unsigned bits = 0; bits < 1u << 18; bits++)
        for (unsigned wanted = 0; wanted < vm_wanted_COUNT; wanted++)
            for (unsigned end = 0; end <= PLAN_END_IMPOSSIBLE; end++) {
                struct plan_vm vm = {
                    .wanted = wanted,
                    .end = end,
                    .lends = bits & 32768,
                    .lacks = bits & 65536,
                    .process_old = bits & 131072,
                    .arriving = bits & 1,
                    .taking = bits & 2,
                    .leaving = bits & 4,
                    .forgotten = bits & 8,
                    .process = bits & 16,
                    .process_answers = bits & 32,
                    .process_paused = bits & 64,
                    .start_overdue = bits & 128,
                    .stop_asked = bits & 256,
                    .stop_overdue = bits & 512,
                    .kill_sent = bits & 1024,
                    .prepared = bits & 2048,
                    .differs = bits & 4096,
                    .gentle = bits & 8192,
                    .confirmed = bits & 16384,
                    .backoff_over = true,
                };
                if (vm.arriving && vm.taking)
                    continue; /* never both */
                if ((vm.lends && (vm.arriving || vm.taking || !vm.leaving)) || (vm.lacks && !vm.taking))
                    continue; /* it runs elsewhere; it has arrived */
                enum plan_step step = agent_plan_vm(&vm);
                bool begins = step == PLAN_START || step == PLAN_PREPARE;
                if (vm.arriving) {
                    assert_true(step != PLAN_RESUME && step != PLAN_PAUSE && step != PLAN_ADJUST && step != PLAN_TAKE &&
                                step != PLAN_REST);
                    assert_true(!begins || (end == PLAN_END_NONE && !vm.process && !vm.forgotten)); /* once */
                    assert_true(step != PLAN_STOP || vm.forgotten || vm.process_old); /* not for what is wanted of it elsewhere */
                    assert_true(step != PLAN_REMOVE || vm.forgotten);
                }
                if (vm.leaving && !vm.arriving)
                    assert_true(!begins);
                if (step == PLAN_TAKE)
                    assert_true(vm.taking && vm.process && vm.process_answers && !vm.forgotten && !vm.stop_asked);
                if (vm.taking && vm.process)
                    assert_true(step != PLAN_RESUME && step != PLAN_ADJUST && step != PLAN_REST);
                if (vm.lends && vm.process && !vm.process_old && !vm.stop_asked && !vm.kill_sent) /* nobody else has that memory */
                    assert_true(step == (vm.process_answers ? PLAN_REST_LENDS : PLAN_WAIT_ANSWER));
                assert_true(step != PLAN_REST_LENDS || (vm.lends && vm.process && vm.process_answers));
                if (vm.leaving && !vm.process && step == PLAN_REMOVE)
                    assert_true(vm.forgotten || wanted == vm_wanted_DELETED);
            }
}

/* ---- attempts ---- */

static void test_backoff_and_restarts_max(void **unused)
{
    (void)unused;
    static const uint64_t pauses_ms[] = {1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000};
    struct plan_tries tries = {.failures = 0};
    struct vm_order order = {.epoch = 0};
    for (size_t i = 0; i < ARRAY_SIZE(pauses_ms); i++) {
        agent_plan_failed(&tries, &order, PLAN_END_BROKEN, 500);
        assert_int_equal(tries.backoff_until_ms, 500 + pauses_ms[i]);
        assert_false(agent_plan_worn(&tries, &order)); /* no limit was given */
    }
    tries = (struct plan_tries){.failures = 0};
    OBJECT_SET(vm_order, &order, restarts_max, 2);
    OBJECT_SET(vm_order, &order, restart_window_s, 10);
    for (unsigned i = 1; i <= 3; i++) {
        agent_plan_failed(&tries, &order, PLAN_END_BROKEN, 1000 * i);
        assert_int_equal(agent_plan_worn(&tries, &order), i > 2);
    }
    agent_plan_failed(&tries, &order, PLAN_END_BROKEN, 11000); /* the window that began at the first has ended */
    assert_false(agent_plan_worn(&tries, &order));
    assert_int_equal(tries.ends, 1);
}

/* What cannot be started is given up; what ran and crashed is not, and not for one start that fails after that. */
static void test_used_up(void **unused)
{
    (void)unused;
    struct plan_tries tries = {.failures = 0};
    struct vm_order order = {.epoch = 0};
    assert_true(agent_plan_used_up(&tries, &order, PLAN_END_IMPOSSIBLE));
    for (unsigned i = 1; i <= PLAN_RELOCATE_STARTS; i++) {
        agent_plan_failed(&tries, &order, PLAN_END_NOT_STARTED, 1000);
        assert_int_equal(agent_plan_used_up(&tries, &order, PLAN_END_NOT_STARTED), i == PLAN_RELOCATE_STARTS);
    }
    tries = (struct plan_tries){.failures = 0};
    for (unsigned i = 0; i < 2 * PLAN_RELOCATE_STARTS; i++) {
        enum plan_end end = i % 3 == 2 ? PLAN_END_NOT_STARTED : i % 2 ? PLAN_END_CLEAN : PLAN_END_BROKEN;
        agent_plan_failed(&tries, &order, end, 1000);
        assert_false(agent_plan_used_up(&tries, &order, end));
    }
    OBJECT_SET(vm_order, &order, restarts_max, 1);
    tries = (struct plan_tries){.failures = 0};
    agent_plan_failed(&tries, &order, PLAN_END_BROKEN, 1000);
    assert_false(agent_plan_used_up(&tries, &order, PLAN_END_BROKEN));
    agent_plan_failed(&tries, &order, PLAN_END_NOT_STARTED, 1000); /* nobody tries another time here */
    assert_true(agent_plan_used_up(&tries, &order, PLAN_END_NOT_STARTED));
}

static void test_new_wish(void **unused)
{
    (void)unused;
    const struct vm_order known = {.epoch = 3, .generation = 7, .boot = 1};
    assert_false(agent_plan_is_new_wish(&known, &known));
    assert_false(agent_plan_is_new_wish(&known, &(struct vm_order){.epoch = 3, .generation = 7, .boot = 1, .ha = true}));
    assert_true(agent_plan_is_new_wish(&known, &(struct vm_order){.epoch = 4, .generation = 1}));
    assert_true(agent_plan_is_new_wish(&known, &(struct vm_order){.epoch = 3, .generation = 8, .boot = 1}));
    assert_true(agent_plan_is_new_wish(&known, &(struct vm_order){.epoch = 3, .generation = 7, .boot = 2}));
}

/* ---- an agent that is started anew ---- */

#define FOUND_ENDED(value, status) \
    .wanted = vm_wanted_RUNNING, .state = vm_state_##value, .settled = true, .started = true, .parting = status
#define FOUND(value) FOUND_ENDED(value, -1)
static const struct recall_row {
    const char *what;
    struct plan_recall found;
    enum vm_state state;
    enum plan_end end;
    bool left;
} recall_rows[] = {
    {"runs on", {FOUND(RUNNING), .process = true}, vm_state_RUNNING, PLAN_END_NONE, false},
    {"was being started, and its VMM lives", {FOUND(PENDING), .process = true}, vm_state_STARTING, PLAN_END_NONE, false},
    {"powered off unwatched", {FOUND_ENDED(RUNNING, 0), .same_boot = true}, vm_state_STARTING, PLAN_END_CLEAN, false},
    {"powered off before the host went down", {FOUND_ENDED(PAUSED, 0)}, vm_state_STARTING, PLAN_END_CLEAN, false},
    {"died unwatched", {FOUND(RUNNING), .same_boot = true}, vm_state_STARTING, PLAN_END_BROKEN, false},
    {"ended badly unwatched", {FOUND_ENDED(RUNNING, 1), .same_boot = true}, vm_state_STARTING, PLAN_END_BROKEN, false},
    {"went down with its host", {FOUND(RUNNING)}, vm_state_STARTING, PLAN_END_NONE, false},
    {"has been handed over", {FOUND_ENDED(RUNNING, PLAN_PARTING_MIGRATED)}, vm_state_STARTING, PLAN_END_NONE, true},
    {"was off by its guest's wish", {FOUND(STOPPED)}, vm_state_STOPPED, PLAN_END_CLEAN, false},
    {"was off, and is wanted on by a newer wish",
     {.wanted = vm_wanted_RUNNING, .state = vm_state_STOPPED, .parting = -1}, vm_state_STOPPED, PLAN_END_NONE, false},
    {"had failed", {FOUND(FAILED)}, vm_state_FAILED, PLAN_END_NOT_STARTED, false},
    {"ran, and is wanted off",
     {.wanted = vm_wanted_STOPPED, .state = vm_state_RUNNING, .started = true, .parting = -1, .same_boot = true},
     vm_state_STARTING, PLAN_END_NONE, false},
    {"was arriving, and its VMM is gone",
     {.wanted = vm_wanted_RUNNING, .arriving = true, .parting = -1}, vm_state_PENDING, PLAN_END_NOT_STARTED, false},
    {"was arriving, and something holds its lock",
     {.wanted = vm_wanted_RUNNING, .arriving = true, .looking = true, .parting = -1}, vm_state_PENDING, PLAN_END_NONE, false},
};

static void test_recall(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < ARRAY_SIZE(recall_rows); i++) {
        const struct recall_row *row = &recall_rows[i];
        enum vm_state state;
        enum plan_end end;
        bool left;
        agent_plan_recall(&row->found, &state, &end, &left);
        if (state != row->state || end != row->end || left != row->left)
            fail_msg("%s: state %d, end %d, left %d", row->what, state, end, left);
    }
}

/* ---- the page ---- */

/* What is held stays held unless everything speaks for it. */
static void test_page(void **unused)
{
    (void)unused;
    const struct lease_holder holder = {
        .generation = 4, .ttl_ms = 5000, .voter_count = 1, .voters = {{.raft_id = 1}}, .support_count = 1, .supports = {{1, 9000}}};
    const struct plan_page own = {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 1};
    struct plan_page vm = own;
    assert_int_equal(agent_plan_page(&holder, &vm, 100), 9000);
    vm.disarmed = true;
    assert_int_equal(agent_plan_page(&holder, &vm, 100), 0);
    const struct plan_page others[] = {
        {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true, .forgotten = true},
        {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true, .astray = true},
        {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true, .gone = true},
        {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true, .leaving = true},
        {.ha = true, .named = 3, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true}, /* not by the newest orders */
        {.ha = true, .named = 4, .epoch = 1, .order_epoch = 2, .present = 9, .disarmed = true}, /* of before */
        {.ha = true, .named = 4, .epoch = 2, .order_epoch = 2, .present = 9, .disarmed = true, .settling = true}, /* held, and may be another's */
        {.ha = true, .starts = true, .epoch = 2, .order_epoch = 2, .present = 1, .disarmed = true}, /* arrives, and is not named yet */
    };
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        assert_int_equal(agent_plan_page(&holder, &others[i], 100), 1);
    vm = own;
    vm.settling = true;
    vm.present = 200; /* it executes */
    assert_int_equal(agent_plan_page(&holder, &vm, 100), 9000);
    vm = (struct plan_page){.ha = true, .epoch = 2, .order_epoch = 2, .present = 777}; /* of an agent before us */
    assert_int_equal(agent_plan_page(&holder, &vm, 100), 777);
    vm = (struct plan_page){.starts = true, .present = 1};
    assert_int_equal(agent_plan_page(&holder, &vm, 100), 0); /* without ha none rules it */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sessions_with_replicas),
        cmocka_unit_test(test_one_order),         cmocka_unit_test(test_new_and_doubled_orders),
        cmocka_unit_test(test_astray),
        cmocka_unit_test(test_halt),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_backoff_and_restarts_max),
        cmocka_unit_test(test_used_up),
        cmocka_unit_test(test_new_wish),
        cmocka_unit_test(test_recall),
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_lease_generation),  cmocka_unit_test(test_steps),
        cmocka_unit_test(test_every_combination), cmocka_unit_test(test_every_migrating_combination),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
