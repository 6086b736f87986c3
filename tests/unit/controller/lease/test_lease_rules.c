/* Leases as the controllers see them: what one supports and confirms, and what a leader makes of three of them, command by
 * command on the real state machine. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/lease/lease_judge.h"

#define MS LEASE_MS
#define S (1000 * MS)
#define TTL_NS lease_ttl_ns(5000)

struct bed {
    struct fixture f; /* first */
    struct lease_table tables[3];
    struct lease_judge judge;
    uint64_t now_ns;
};

static int setup(void **test)
{
    struct bed *b = NEW(struct bed);
    struct fixture *f = &b->f;
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 8192);
    b->now_ns = 100 * S;
    for (unsigned i = 0; i < 3; i++)
        lease_table_init(&b->tables[i], b->now_ns);
    *test = b;
    return 0;
}

static int teardown(void **test)
{
    struct bed *b = *test;
    for (unsigned i = 0; i < 3; i++)
        lease_table_finish(&b->tables[i]);
    lease_judge_reset(&b->judge);
    fixture_finish_all(&b->f);
    free(b);
    return 0;
}

static const struct host *host_of(struct bed *b, const char *name)
{
    return fixture_get(&b->f, object_kind_HOST, name)->host;
}

/* The host asks controller @number (from 0), and counts in the list of @voters_index. True: supported. */
static bool ask_knowing(struct bed *b, unsigned number, const char *name, uint64_t generation, uint64_t voters_index)
{
    struct lease_question question = {0};
    struct lease_answer answer = {0};
    OBJECT_TEXT(lease_question, &question, host, host_of(b, name)->id);
    OBJECT_SET(lease_question, &question, generation, generation);
    OBJECT_SET(lease_question, &question, cluster_epoch, state_cluster(b->f.state)->epoch);
    OBJECT_SET(lease_question, &question, voters_index, voters_index);
    lease_table_answer(&b->tables[number], b->f.state, &question, number + 1, b->now_ns, &answer);
    bool supported = answer.supported;
    assert_int_equal(answer.raft_id, number + 1);
    assert_int_equal(answer.voters.count, state_voters(b->f.state));
    assert_true(supported == (answer.why == NULL));
    OBJECT_CLEAR(lease_question, &question);
    OBJECT_CLEAR(lease_answer, &answer);
    return supported;
}

static uint64_t newest_list(struct bed *b)
{
    return state_cluster(b->f.state)->lease_voters_index;
}

static bool ask(struct bed *b, unsigned number, const char *name, uint64_t generation)
{
    return ask_knowing(b, number, name, generation, newest_list(b));
}

static struct lease_view look_in(struct bed *b, unsigned number, uint64_t index, uint64_t leader_term, uint64_t term)
{
    struct lease_look look = {0};
    struct lease_view view = {0};
    OBJECT_SET(lease_look, &look, term, leader_term);
    OBJECT_SET(lease_look, &look, index, index);
    OBJECT_SET(lease_look, &look, cluster_epoch, state_cluster(b->f.state)->epoch);
    lease_table_view(&b->tables[number], b->f.state, &look, number + 1, term, b->now_ns, &view);
    return view;
}

/* The leader looks at controller @number, in term 1. */
static void look(struct bed *b, unsigned number)
{
    struct lease_view view = look_in(b, number, state_index(b->f.state), 1, 1);
    lease_judge_take(&b->judge, &view, 1, b->now_ns);
    OBJECT_CLEAR(lease_view, &view);
}

static void look_at_all(struct bed *b)
{
    for (unsigned i = 0; i < 3; i++)
        look(b, i);
}

/* What the leader decides, applied: how many commands were not refused. */
static unsigned judge(struct bed *b)
{
    struct lease_judgement *judgement = NEW(struct lease_judgement);
    unsigned done = 0;
    lease_judge_tick(&b->judge, b->f.state, fixture_now(&b->f), b->now_ns, judgement);
    for (unsigned i = 0; i < judgement->count; i++)
        done += fixture_apply(&b->f, &judgement->commands[i]) == 0;
    lease_judgement_finish(judgement);
    free(judgement);
    return done;
}

/* Each host of @names (NULL-terminated) asks all controllers, once a second for @seconds; the leader looks and judges. */
static void pass(struct bed *b, unsigned seconds, const char *const *names)
{
    for (unsigned i = 0; i < seconds * 4; i++) {
        for (size_t k = 0; i % 4 == 0 && names[k] != NULL; k++)
            for (unsigned c = 0; c < 3; c++)
                ask(b, c, names[k], host_of(b, names[k])->generation);
        look_at_all(b);
        judge(b);
        b->now_ns += 250 * MS;
    }
}

static const char *const both[] = {"n1", "n2", NULL}, *const second[] = {"n2", NULL};

static void create_ha(struct fixture *f, const char *name, const char *more)
{
    char body[300];
    snprintf(body, sizeof body,
             "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912,\"ha\":true%s}", name, more);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
}

/* ---- one controller ---- */

static void a_restarted_controller_supports_nothing_before_it_has_caught_up(void **test)
{
    struct bed *b = *test;
    struct lease_view view;
    assert_false(ask(b, 0, "n1", 1));
    view = look_in(b, 0, state_index(b->f.state) + 1, 1, 1); /* the leader is ahead of it */
    OBJECT_CLEAR(lease_view, &view);
    assert_false(ask(b, 0, "n1", 1));
    view = look_in(b, 0, state_index(b->f.state), 1, 2); /* a leader that was deposed */
    assert_int_equal(view.hosts.count, 0);
    OBJECT_CLEAR(lease_view, &view);
    view = look_in(b, 0, state_index(b->f.state), 2, 1); /* one whose term is not on this disk yet */
    OBJECT_CLEAR(lease_view, &view);
    assert_false(ask(b, 0, "n1", 1));
    look(b, 0);
    assert_true(ask(b, 0, "n1", 1));
    assert_false(ask(b, 0, "n1", 0)); /* it has not been told its generation */
    assert_false(ask(b, 0, "n1", 2));
}

static bool confirms(struct bed *b, unsigned number, const char *name)
{
    struct lease_view view = look_in(b, number, state_index(b->f.state), 1, 1);
    bool confirmed = false;
    for (size_t i = 0; i < view.hosts.count; i++) {
        const struct lease_host *host = (const struct lease_host *)view.hosts.items + i;
        if (strcmp(host->host, host_of(b, name)->id) == 0)
            confirmed = host->confirmed;
    }
    OBJECT_CLEAR(lease_view, &view);
    return confirmed;
}

static void a_support_has_to_run_out_before_it_is_confirmed(void **test)
{
    struct bed *b = *test;
    look_at_all(b);
    b->now_ns += 60 * S;
    assert_true(ask(b, 0, "n1", 1));
    uint64_t until_ns = b->now_ns + TTL_NS;
    assert_false(confirms(b, 0, "n1")); /* it is not suspected */
    b->now_ns += 3 * S;
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    assert_false(ask(b, 0, "n1", 1)); /* applied here: no more */
    b->now_ns = until_ns - 1;
    assert_false(confirms(b, 0, "n1"));
    assert_true(confirms(b, 1, "n1")); /* it never supported it */
    b->now_ns = until_ns;
    assert_true(confirms(b, 0, "n1"));
    lease_table_finish(&b->tables[0]);
    lease_table_init(&b->tables[0], b->now_ns); /* it starts again, and has forgotten */
    assert_false(confirms(b, 0, "n1"));
    b->now_ns += TTL_NS - 1;
    assert_false(confirms(b, 0, "n1"));
    b->now_ns += 1;
    assert_true(confirms(b, 0, "n1"));
}

/* ---- three of them, and a leader ---- */

/* Host @name reports the pool nas. */
static void pool_is_there(struct fixture *f, const char *name)
{
    struct node_report report = fixture_report(f, name, fixture_get(f, object_kind_HOST, name)->host->memory_bytes >> 20);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, fixture_get(f, object_kind_POOL, "nas")->common->id);
    OBJECT_SET(pool_seen, seen, present, true);
    OBJECT_TEXT(pool_seen, seen, mark, "aa");
    OBJECT_SET(pool_seen, seen, size_bytes, UINT64_C(1) << 40);
    OBJECT_SET(pool_seen, seen, free_bytes, UINT64_C(1) << 39);
    fixture_send(f, &report);
}

static void a_silent_host_is_lost_and_its_vm_goes_elsewhere(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "web", "");
    create_ha(f, "data", ",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"plain\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912,\"pin\":\"n1\"}");
    fixture_host(f, "n2", 8192); /* all are on n1 */
    pass(b, 10, both);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    pass(b, 4, second); /* 4.75 s after its last question */
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    assert_int_equal(host_of(b, "n2")->state, host_state_UP);
    pass(b, 2, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    assert_true(fixture_vm(f, "web")->recovering);
    assert_int_equal(fixture_vm(f, "data")->state, vm_state_FAILED);
    assert_non_null(strstr(fixture_vm(f, "data")->state_reason, "disks are on that host only"));
    assert_false(fixture_vm(f, "plain")->recovering);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    assert_int_equal(fixture_vm(f, "web")->failovers, 1);
    assert_false(fixture_vm(f, "web")->recovering);
    assert_string_equal(fixture_vm(f, "data")->host_name, "n1");
}

/* Disks that every host of a shared pool reaches do not hold a VM back; one that is on its host alone does. */
static void disks_in_shared_pools_are_taken_along(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL,
                 "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    pool_is_there(f, "n1");
    create_ha(f, "all", ",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"nas\"}]");
    create_ha(f, "half", ",\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576,\"pool\":\"nas\"},"
                         "{\"name\":\"data\",\"size_bytes\":1048576}]");
    assert_string_equal(fixture_vm(f, "all")->host_name, "n1");
    assert_string_equal(fixture_vm(f, "half")->host_name, "n1");
    pass(b, 10, both);
    pass(b, 6, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    assert_true(fixture_vm(f, "all")->recovering);
    assert_int_equal(fixture_vm(f, "half")->state, vm_state_FAILED);
    assert_non_null(strstr(fixture_vm(f, "half")->state_reason, "not all of its disks are in shared pools"));
    fixture_reconcile(f, NULL);
    assert_true(fixture_vm(f, "all")->recovering); /* n2 has not said that the pool is there */
    assert_non_null(strstr(fixture_vm(f, "all")->placement, "without a pool of its disks"));
    pool_is_there(f, "n2");
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "all")->host_name, "n2");
    assert_int_equal(fixture_vm(f, "all")->epoch, 2);
}

static void a_false_alarm_is_cleared(void **test)
{
    struct bed *b = *test;
    create_ha(&b->f, "web", "");
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 4, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    pass(b, 1, both);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    assert_int_equal(host_of(b, "n1")->generation, 2);
    assert_string_equal(fixture_vm(&b->f, "web")->host_name, "n1");
    assert_int_equal(fixture_vm(&b->f, "web")->epoch, 1);
    pass(b, 10, both);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    assert_int_equal(host_of(b, "n1")->generation, 2);
}

/* Two of three controllers are gone for good while a host is suspected: the survivor alone hears it, and that is a majority. */
static void a_false_alarm_is_cleared_by_the_survivor_of_a_recovery(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "web", "");
    fixture_host(f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 4, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    assert_int_equal(fixture_recover(f, 2, fixture_get(f, object_kind_CONTROLLER, "c1")->common->id), 0);
    assert_int_equal(state_voters(f->state), 1);
    lease_judge_reset(&b->judge); /* it starts for that */
    lease_table_finish(&b->tables[0]);
    lease_table_init(&b->tables[0], b->now_ns);
    look(b, 0);
    assert_false(ask(b, 0, "n1", 1)); /* as long as it is suspected */
    look(b, 0);
    assert_int_equal(judge(b), 1);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    assert_int_equal(host_of(b, "n1")->generation, 2);
    assert_true(ask(b, 0, "n1", 2));
    b->now_ns += 60 * S; /* nobody is suspected by so few, nor lost */
    look(b, 0);
    assert_int_equal(judge(b), 0);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
}

/* One that is dead stays suspected until there are enough controllers again to declare it lost. */
static void a_suspected_host_is_not_lost_by_the_survivor_of_a_recovery(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_host(f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 4, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    assert_int_equal(fixture_recover(f, 2, fixture_get(f, object_kind_CONTROLLER, "c1")->common->id), 0);
    b->now_ns += 60 * S;
    look(b, 0);
    struct lease_judgement *judgement = NEW(struct lease_judgement);
    lease_judge_tick(&b->judge, f->state, fixture_now(f), b->now_ns, judgement);
    assert_int_equal(judgement->count, 0); /* proposed to nobody, again and again */
    lease_judgement_finish(judgement);
    free(judgement);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
}

/* All controllers start again while a host is suspected: that none of them has been asked yet is no sign of life. */
static void controllers_that_start_have_not_heard_of_a_suspect(void **test)
{
    struct bed *b = *test;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 4, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    lease_judge_reset(&b->judge);
    for (unsigned i = 0; i < 3; i++) {
        lease_table_finish(&b->tables[i]);
        lease_table_init(&b->tables[i], b->now_ns);
    }
    look_at_all(b);
    assert_int_equal(judge(b), 0);
    assert_false(lease_judge_hears(&b->judge, b->f.state, host_of(b, "n1")->id, b->now_ns));
    assert_true(lease_judge_hears(&b->judge, b->f.state, host_of(b, "n2")->id, b->now_ns)); /* it is given the time to ask */
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    pass(b, 6, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    assert_int_equal(host_of(b, "n2")->state, host_state_UP);
    assert_int_equal(host_of(b, "n2")->generation, 1);
    lease_judge_reset(&b->judge); /* once more: nor is a lost one heard, that is to come back */
    for (unsigned i = 0; i < 3; i++) {
        lease_table_finish(&b->tables[i]);
        lease_table_init(&b->tables[i], b->now_ns);
    }
    look_at_all(b);
    assert_false(lease_judge_hears(&b->judge, b->f.state, host_of(b, "n1")->id, b->now_ns));
    ask(b, 0, "n1", 1);
    ask(b, 1, "n1", 1);
    look_at_all(b);
    assert_true(lease_judge_hears(&b->judge, b->f.state, host_of(b, "n1")->id, b->now_ns));
}

static void a_lost_host_comes_back_by_its_report(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "web", "");
    create_ha(f, "big", ""); /* both on n1; nobody has placed the second one when the host is back */
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 7, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    struct bytes_writer command = {0};
    struct command_vm_place place = {0};
    OBJECT_TEXT(command_vm_place, &place, id, fixture_vm(f, "web")->id);
    OBJECT_SET(command_vm_place, &place, from_epoch, 1);
    OBJECT_TEXT(command_vm_place, &place, host, host_of(b, "n2")->id);
    OBJECT_TEXT(command_request, &place.request, at, fixture_now(f));
    object_mark(&command_vm_place_desc, &place, "request");
    assert_int_equal(command_encode(COMMAND_vm_place, &place, &command, NULL), 0);
    assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    OBJECT_CLEAR(command_vm_place, &place);
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, generation, 1);
    struct vm_seen *seen = fixture_seen(&report, fixture_vm(f, "web"), vm_state_RUNNING);
    OBJECT_SET(vm_seen, seen, epoch, 1);
    fixture_seen(&report, fixture_vm(f, "big"), vm_state_RUNNING);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), -EAGAIN); /* not before it is cleared */
    struct node_report again = {0};
    OBJECT_COPY(node_report, &again, &report);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    assert_int_equal(host_of(b, "n1")->generation, 2);
    assert_false(fixture_vm(f, "big")->recovering);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
    assert_int_equal(node_sync_orders(f->state, &again, &orders, NULL), 0);
    assert_int_equal(orders.generation, 2);
    assert_int_equal(orders.vms.count, 1);
    assert_int_equal(orders.forget.count, 1);
    assert_string_equal(orders.forget.items[0], fixture_vm(f, "web")->id);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &again);
}

static void one_confirmation_is_not_enough(void **test)
{
    struct bed *b = *test;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    b->now_ns += 3 * S;
    look_at_all(b);
    assert_int_equal(judge(b), 2); /* both suspected */
    b->now_ns += TTL_NS;
    look(b, 0);
    assert_int_equal(judge(b), 0);
    look(b, 2);
    assert_int_equal(judge(b), 2);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
}

static void a_leader_that_sees_no_majority_suspects_nobody(void **test)
{
    struct bed *b = *test;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    for (unsigned i = 0; i < 40; i++) {
        b->now_ns += 250 * MS;
        look(b, 0);
        assert_int_equal(judge(b), 0);
    }
}

/* Who is to count supports first, and does so without being counted. */
static void a_new_controller_counts_once_hosts_have_its_support(void **test)
{
    struct bed *b = *test;
    struct lease_table joins;
    struct lease_view view = {0};
    struct lease_look own = {0};
    bool welcome[2];
    lease_table_init(&joins, b->now_ns);
    fixture_host(&b->f, "n2", 8192);
    look_at_all(b);
    for (unsigned k = 0; k < 5; k++) {
        /* n1 is supported by two of three: enough as it is, not of four. n2 by all; its lease is nobody's concern from 3 on. */
        ask(b, 0, "n1", 1);
        ask(b, 1, "n1", 1);
        for (unsigned c = 0; c < 3; c++)
            ask(b, c, "n2", 1);
        if (k >= 1) { /* the fourth one is asked as well, and supports when it has heard of the leader */
            struct lease_question question = {0};
            struct lease_answer answer = {0};
            OBJECT_TEXT(lease_question, &question, host, host_of(b, "n1")->id);
            OBJECT_SET(lease_question, &question, generation, 1);
            OBJECT_SET(lease_question, &question, cluster_epoch, 1);
            lease_table_answer(&joins, b->f.state, &question, 4, b->now_ns, &answer);
            assert_true(answer.supported == (k >= 2));
            OBJECT_CLEAR(lease_question, &question);
            OBJECT_CLEAR(lease_answer, &answer);
        }
        look_at_all(b);
        if (k >= 1) {
            own = (struct lease_look){0};
            OBJECT_SET(lease_look, &own, term, 1);
            OBJECT_SET(lease_look, &own, index, state_index(b->f.state));
            OBJECT_SET(lease_look, &own, cluster_epoch, 1);
            lease_table_view(&joins, b->f.state, &own, 4, 1, b->now_ns, &view);
            lease_judge_take(&b->judge, &view, 1, b->now_ns);
            OBJECT_CLEAR(lease_view, &view);
        }
        welcome[0] = lease_judge_welcomes(&b->judge, b->f.state, 4, b->now_ns);
        assert_true(welcome[0] == (k == 4)); /* for two seconds by now: n1 has asked again since */
        assert_true(lease_judge_welcomes(&b->judge, b->f.state, 2, b->now_ns)); /* that counts already */
        b->now_ns += S;
    }
    /* A host that no majority supports has nothing to lose. */
    lease_judge_reset(&b->judge);
    b->now_ns += 60 * S;
    look(b, 0);
    assert_false(lease_judge_welcomes(&b->judge, b->f.state, 4, b->now_ns)); /* but who knows before a majority was looked at? */
    assert_true(lease_judge_welcomes(&b->judge, b->f.state, 2, b->now_ns));
    look_at_all(b);
    b->now_ns += LEASE_FRESH_MS * MS;
    assert_false(lease_judge_welcomes(&b->judge, b->f.state, 4, b->now_ns));
    look_at_all(b);
    assert_false(lease_judge_welcomes(&b->judge, b->f.state, 4, b->now_ns)); /* nor before it would have asked again */
    b->now_ns += TTL_NS;
    look_at_all(b);
    welcome[1] = lease_judge_welcomes(&b->judge, b->f.state, 4, b->now_ns);
    assert_true(welcome[1]);
    lease_table_finish(&joins);
}

static void after_a_change_of_the_controllers_nobody_is_lost_for_a_ttl(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 4, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    assert_true(lease_judge_settled(&b->judge, f->state));
    fixture_must(f, ROUTE_ID_controller_remove, "c3", NULL);
    assert_int_equal(state_voters(f->state), 2);
    assert_false(lease_judge_settled(&b->judge, f->state));
    b->now_ns += 10 * S;
    look_at_all(b);
    assert_true(lease_judge_settled(&b->judge, f->state));
    assert_int_equal(judge(b), 0); /* two votes: nobody is declared lost at all */
    fixture_voter(f, "c4", 3);
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    b->now_ns += TTL_NS - S;
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    b->now_ns += 2 * S;
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
}

static bool settled(struct bed *b)
{
    look_at_all(b);
    return lease_judge_settled(&b->judge, b->f.state);
}

/* A refused connection names no list and prolongs what is supported: until the host has said that it knows who counts, or has nothing
 * that could be prolonged, there is no other change. */
static void the_next_change_waits_until_hosts_know_of_the_last_one(void **test)
{
    struct bed *b = *test;
    look_at_all(b);
    b->now_ns += 10 * S;
    uint64_t old = newest_list(b);
    for (unsigned c = 0; c < 3; c++)
        ask(b, c, "n1", 1);
    assert_true(settled(b));
    fixture_voter(&b->f, "c4", 4);
    assert_false(settled(b)); /* three of four have applied it, and it knows of none */
    for (unsigned c = 0; c < 3; c++)
        ask_knowing(b, c, "n1", 1, old);
    assert_false(settled(b));
    ask(b, 0, "n1", 1);
    ask(b, 1, "n1", 1);
    assert_false(settled(b)); /* two of four */
    b->now_ns += TTL_NS - 1;
    assert_false(settled(b));
    b->now_ns += 1;
    assert_true(settled(b)); /* the third one's support has run out */
    for (unsigned c = 0; c < 3; c++)
        ask_knowing(b, c, "n1", 1, 0); /* an agent that has just begun */
    assert_true(settled(b)); /* said is said: it gets no support but with the list */
    ask(b, 2, "n1", 1);
    ask_knowing(b, 2, "n1", 1, 0);
    lease_judge_reset(&b->judge);
    look(b, 0);
    look(b, 1);
    assert_false(lease_judge_settled(&b->judge, b->f.state));
    assert_true(settled(b)); /* nor has the next leader to wait for it again */
}

static void whom_a_removed_controller_has_told_does_not_count(void **test)
{
    struct bed *b = *test;
    look_at_all(b);
    b->now_ns += 10 * S;
    uint64_t old = newest_list(b);
    for (unsigned c = 0; c < 3; c++)
        ask(b, c, "n1", 1);
    fixture_must(&b->f, ROUTE_ID_controller_remove, "c3", NULL);
    ask(b, 0, "n1", 1);
    ask_knowing(b, 1, "n1", 1, old);
    ask(b, 2, "n1", 1);
    assert_false(settled(b));
    ask(b, 1, "n1", 1);
    assert_true(settled(b));
}

/* It may have heard of a list from another controller first. Its next agent has not, and is supported without the list here. */
static void what_it_says_of_a_list_that_is_not_applied_is_of_no_account(void **test)
{
    struct bed *b = *test;
    look_at_all(b);
    b->now_ns += 10 * S;
    for (unsigned c = 0; c < 3; c++)
        ask_knowing(b, c, "n1", 1, newest_list(b) + 1000);
    assert_true(settled(b));
    fixture_voter(&b->f, "c4", 4);
    assert_false(settled(b));
    for (unsigned c = 0; c < 3; c++)
        ask_knowing(b, c, "n1", 1, 0);
    assert_false(settled(b));
    for (unsigned c = 0; c < 3; c++)
        ask(b, c, "n1", 1);
    assert_true(settled(b));
}

/* Positions of another epoch are of another log: what a host says of them, which has followed a lost one, is of no account. */
static void what_it_says_of_another_epoch_is_of_no_account(void **test)
{
    struct bed *b = *test;
    struct lease_question question = {0};
    look_at_all(b);
    b->now_ns += 10 * S;
    fixture_voter(&b->f, "c4", 4);
    OBJECT_TEXT(lease_question, &question, host, host_of(b, "n1")->id);
    OBJECT_SET(lease_question, &question, generation, 1);
    OBJECT_SET(lease_question, &question, cluster_epoch, state_cluster(b->f.state)->epoch + 1);
    OBJECT_SET(lease_question, &question, voters_index, newest_list(b));
    for (unsigned c = 0; c < 3; c++) {
        struct lease_answer answer = {0};
        ask_knowing(b, c, "n1", 1, 0);
        lease_table_answer(&b->tables[c], b->f.state, &question, c + 1, b->now_ns, &answer);
        OBJECT_CLEAR(lease_answer, &answer);
    }
    OBJECT_CLEAR(lease_question, &question);
    assert_false(settled(b));
}

static const char *waits_for(struct bed *b, struct lease_judge_words *words)
{
    *words = (struct lease_judge_words){.text = ""};
    lease_judge_waits_for(&b->judge, b->f.state, b->now_ns, words);
    const char *who = strstr(words->text, "it waits for ");
    assert_non_null(who);
    return who + strlen("it waits for ");
}

static void the_wait_names_whom_it_is_for(void **test)
{
    const char *says = " (an agent says that it knows within seconds; one of an older version never does: upgrade it)";
    struct bed *b = *test;
    struct lease_judge_words words;
    char expected[300];
    look_at_all(b);
    b->now_ns += 10 * S;
    fixture_voter(&b->f, "c4", 4);
    assert_string_equal(waits_for(b, &words), "controller c1 (it does not answer), controller c2 (it does not answer), controller c3 (it "
                                              "does not answer) and 1 more");
    for (unsigned c = 0; c < 3; c++)
        ask_knowing(b, c, "n1", 1, 0); /* an agent of a version that says nothing of it */
    assert_false(settled(b));
    snprintf(expected, sizeof expected, "host n1%s and for controller c4 (it does not answer)", says);
    assert_string_equal(waits_for(b, &words), expected);
    assert_non_null(strstr(words.text, "the hosts of 0 of 4 know, and 3 are needed"));
    for (unsigned c = 0; c < 2; c++)
        ask(b, c, "n1", 1);
    look_at_all(b);
    struct lease_view view = look_in(b, 2, state_index(b->f.state), 1, 1);
    ((struct lease_host *)view.hosts.items)->untold = false; /* a controller of such a version */
    lease_judge_take(&b->judge, &view, 1, b->now_ns);
    assert_string_equal(waits_for(b, &words), "controller c3 (its version does not say what its hosts know: upgrade it), controller c4 (it "
                                              "does not answer)");
    assert_non_null(strstr(words.text, "the hosts of 2 of 4 know, and 3 are needed"));
    struct lease_view again = look_in(b, 0, state_index(b->f.state), 1, 1);
    ((struct lease_host *)again.hosts.items)->untold = true; /* where it was told before, that is of no account */
    lease_judge_take(&b->judge, &again, 1, b->now_ns);
    OBJECT_CLEAR(lease_view, &again);
    assert_null(strstr(waits_for(b, &words), "n1"));
    view.voters_index--;
    lease_judge_take(&b->judge, &view, 1, b->now_ns);
    OBJECT_CLEAR(lease_view, &view);
    assert_non_null(strstr(waits_for(b, &words), "controller c3 (it has not applied the change yet), "));
    for (unsigned i = 2; i < 7; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        fixture_host(&b->f, name, 8192);
        ask_knowing(b, 2, name, 1, 1);
    }
    ask_knowing(b, 2, "n1", 1, 1);
    look_at_all(b);
    b->now_ns += LEASE_FRESH_MS * MS;
    assert_string_equal(waits_for(b, &words), "controller c3 (it does not answer), controller c4 (it does not answer)");
    look_at_all(b);
    snprintf(expected, sizeof expected, "host n1, host n2, host n3 and 3 more%s and for controller c4 (it does not answer)", says);
    assert_string_equal(waits_for(b, &words), expected);
}

static void what_a_former_life_supported_has_to_be_over_too(void **test)
{
    struct bed *b = *test;
    look_at_all(b);
    for (unsigned c = 0; c < 3; c++) {
        lease_table_finish(&b->tables[c]);
        lease_table_init(&b->tables[c], b->now_ns);
    }
    lease_judge_reset(&b->judge);
    b->now_ns += TTL_NS - 1;
    assert_false(settled(b));
    ask(b, 0, "n1", 1);
    assert_false(settled(b));
    ask(b, 1, "n1", 1);
    assert_true(settled(b)); /* it knows, so it does not matter */
}

/* Those that join support before they count: with two of them, and one that has not confirmed, it could have a majority again. */
static void a_lost_host_has_to_be_without_any_support(void **test)
{
    struct bed *b = *test;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    b->now_ns += 3 * S;
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_SUSPECT);
    b->now_ns += TTL_NS;
    look_at_all(b);
    judge(b);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    fixture_voter(&b->f, "c4", 4);
    lease_judge_reset(&b->judge);
    struct lease_support *support = map_get(&b->tables[0].supports, host_of(b, "n1")->id);
    support->until_ns = b->now_ns + S; /* the first was no part of the majority that has confirmed, */
    support->voters_index = newest_list(b); /* and what it knows is of no account */
    assert_false(settled(b));
    b->now_ns = support->until_ns;
    assert_true(settled(b));
}

static void disarmed_nobody_is_lost_and_armed_only_who_has_said_so(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    fixture_must(f, ROUTE_ID_ha_disarm, NULL, NULL);
    fixture_must(f, ROUTE_ID_ha_disarm, NULL, NULL); /* once more: nothing changes */
    pass(b, 20, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP);
    fixture_must(f, ROUTE_ID_ha_arm, NULL, NULL);
    pass(b, 20, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_UP); /* its VMs may run without the lease still */
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    assert_int_equal(node_sync_orders(f->state, &report, &orders, NULL), 0);
    assert_false(orders.disarmed);
    OBJECT_SET(node_report, &report, arming, orders.arming);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(fixture_send(f, &report), 1);
    pass(b, 20, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    fixture_must(f, ROUTE_ID_host_disarm, "n2", NULL);
    pass(b, 20, (const char *const[]){NULL});
    assert_int_equal(host_of(b, "n2")->state, host_state_UP);
}

static void a_vm_that_gets_ha_is_moved_only_when_its_host_has_heard_of_it(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_vm_is(f, "b", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"ha\":true}");
    fixture_must(f, ROUTE_ID_vm_update, "b", "{\"ha\":true}");
    fixture_vm_is(f, "b", vm_state_RUNNING);
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    pass(b, 10, (const char *const[]){NULL});
    assert_false(fixture_vm(f, "a")->recovering);
    assert_non_null(strstr(fixture_vm(f, "a")->state_reason, "has not said that it runs under the lease"));
    assert_true(fixture_vm(f, "b")->recovering);
}

/* The end of the log was lost, perhaps with an "ha: false" that the host has carried out: it runs without the lease until it says. */
static void a_host_that_is_ahead_has_to_say_that_it_runs_under_the_lease(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "web", "");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_true(fixture_vm(f, "web")->seen_generation >= fixture_vm(f, "web")->lease_generation);
    struct node_report report = fixture_report(f, "n1", 8192);
    fixture_seen(&report, fixture_vm(f, "web"), vm_state_RUNNING)->generation = fixture_vm(f, "web")->generation + 2;
    assert_int_equal(fixture_send(f, &report), 1);
    assert_true(fixture_vm(f, "web")->seen_generation < fixture_vm(f, "web")->lease_generation);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_true(fixture_vm(f, "web")->seen_generation >= fixture_vm(f, "web")->lease_generation);
}

static void a_host_that_leaves_in_order_is_lost_at_once(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "web", "");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_host(&b->f, "n2", 8192);
    pass(b, 10, both);
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, generation, 1);
    OBJECT_SET(node_report, &report, leaving, true);
    assert_int_equal(fixture_send(f, &report), 1);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
}

static void votes_are_kept_while_there_is_ha(void **test)
{
    struct bed *b = *test;
    create_ha(&b->f, "web", "");
    assert_true(fixture_do(&b->f, ROUTE_ID_controller_remove, "c3", NULL) < 0);
    assert_non_null(strstr(b->f.error.text, "'web' has ha"));
    fixture_must(&b->f, ROUTE_ID_vm_update, "web", "{\"ha\":false}");
    fixture_must(&b->f, ROUTE_ID_controller_remove, "c3", NULL);
}

/* ---- where lost VMs go ---- */

/* n1 is lost with all that was made; n2 is there. */
static void lose_n1(struct bed *b)
{
    pass(b, 10, both);
    pass(b, 7, second);
    assert_int_equal(host_of(b, "n1")->state, host_state_LOST);
}

static void lose_first(struct bed *b)
{
    fixture_host(&b->f, "n2", 8192);
    lose_n1(b);
}

static void the_higher_priority_goes_first(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "a-low", ",\"ha_priority\":10");
    create_ha(f, "b-middle", "");
    create_ha(f, "c-high", ",\"ha_priority\":900");
    fixture_host(f, "n2", 512 + 600); /* room for one */
    pass(b, 10, both);
    pass(b, 7, second);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "c-high")->host_name, "n2");
    assert_true(fixture_vm(f, "a-low")->recovering);
    assert_true(fixture_vm(f, "b-middle")->recovering);
    assert_non_null(strstr(fixture_vm(f, "b-middle")->placement, "no host fits"));
    fixture_host(f, "n3", 8192);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "a-low")->host_name, "n3");
    assert_string_equal(fixture_vm(f, "b-middle")->host_name, "n3");
}

static void one_is_started_after_another(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "app", ",\"labels\":{\"ha-after\":\"db\",\"ha-delay-s\":\"5\"}");
    create_ha(f, "db", "");
    create_ha(f, "x", ",\"labels\":{\"ha-after\":\"y\"}"); /* a circle holds nobody up */
    create_ha(f, "y", ",\"labels\":{\"ha-after\":\"x\"}");
    lose_first(b);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "db")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "x")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "y")->host_name, "n2");
    assert_true(fixture_vm(f, "app")->recovering);
    assert_non_null(strstr(fixture_vm(f, "app")->placement, "started after db"));
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* said once */
    fixture_vm_is(f, "db", vm_state_RUNNING);
    fixture_reconcile(f, NULL);
    assert_true(fixture_vm(f, "app")->recovering);
    f->now_ms += 6000;
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "app")->host_name, "n2");
}

static void nobody_waits_for_one_that_nobody_starts(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"db\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912}");
    create_ha(f, "app", ",\"labels\":{\"ha-after\":\"db\"}");
    create_ha(f, "web", ",\"labels\":{\"ha-after\":\"huge\"}");
    lose_first(b);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"huge\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":1099511627776}");
    assert_int_equal(fixture_vm(f, "db")->state, vm_state_STARTING); /* where it was: it has no ha */
    assert_int_equal(fixture_vm(f, "huge")->state, vm_state_PENDING); /* for ever: it fits nowhere */
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "app")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "web")->host_name, "n2");
}

/* A reconciling tick of a leader that has led, and that n2 has reported to, for all of this time. */
static void reconcile_at(struct bed *b, uint64_t now_ms)
{
    struct reconcile_node nodes[] = {{.host = host_of(b, "n1")->id, .last_report_ms = 1000},
                                     {.host = host_of(b, "n2")->id, .last_report_ms = now_ms}};
    struct reconcile_input input = {.now_ms = now_ms, .leader_since_ms = 500, .nodes = nodes, .n_nodes = 2};
    fixture_reconcile(&b->f, &input);
}

static void the_wait_for_another_one_ends(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "db", "");
    create_ha(f, "app", ",\"labels\":{\"ha-after\":\"db\",\"ha-delay-s\":\"5\"}");
    create_ha(f, "other", "");
    create_ha(f, "slow", ",\"labels\":{\"ha-after\":\"other\"}");
    fixture_must(f, ROUTE_ID_vm_update, "db", "{\"labels\":{\"anti-affinity\":\"db\"}}");
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"db-2\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":536870912,\"labels\":{\"anti-affinity\":\"db\"}}");
    lose_n1(b);
    reconcile_at(b, 2000);
    assert_true(fixture_vm(f, "db")->recovering); /* there is no host for it */
    assert_string_equal(fixture_vm(f, "other")->host_name, "n2"); /* which starts it, and never says that it runs */
    reconcile_at(b, 1000 + RECONCILE_AFTER_MS - 1);
    assert_non_null(strstr(fixture_vm(f, "app")->placement, "started after db"));
    assert_true(fixture_vm(f, "app")->recovering);
    assert_true(fixture_vm(f, "slow")->recovering);
    reconcile_at(b, 1000 + RECONCILE_AFTER_MS);
    assert_string_equal(fixture_vm(f, "app")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "slow")->host_name, "n2");
    assert_string_equal(fixture_vm(f, "app")->placement,
                        "not after db, which does not run 600 s later; n2, the only one of 2 hosts that fits: 20 % full with it");
    assert_true(fixture_vm(f, "db")->recovering);
}

/* More of them than one tick looks at, and none of those fits: the one behind them has its turn. */
static void those_that_fit_nowhere_stand_in_nobodys_way(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    char name[32];
    struct node_report report = fixture_report(f, "n1", UINT64_C(1) << 20);
    OBJECT_SET(node_report, &report, cpus, 2000);
    fixture_send(f, &report);
    f->unchecked = true;
    for (unsigned i = 0; i < RECONCILE_LOOKS_MAX; i++) {
        snprintf(name, sizeof name, "big-%03u", i);
        create_ha(f, name, ",\"ha_priority\":900");
    }
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"small\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777216,\"ha\":true}");
    fixture_host(f, "n2", 500);
    lose_n1(b);
    assert_int_equal(state_waiting(f->state)->count, RECONCILE_LOOKS_MAX + 1);
    for (unsigned i = 0; i < 10; i++)
        fixture_reconcile(f, NULL);
    assert_int_equal(state_waiting(f->state)->count, RECONCILE_LOOKS_MAX);
    assert_string_equal(fixture_vm(f, "small")->host_name, "n2");
    fixture_check(f);
}

/* Nor do those that wait for one of a lower priority: it is looked at in the same tick. */
static void those_that_wait_stand_in_nobodys_way(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    char name[32];
    struct node_report report = fixture_report(f, "n1", UINT64_C(1) << 20);
    OBJECT_SET(node_report, &report, cpus, 2000);
    fixture_send(f, &report);
    f->unchecked = true;
    for (unsigned i = 0; i < RECONCILE_LOOKS_MAX; i++) {
        snprintf(name, sizeof name, "app-%03u", i);
        create_ha(f, name, ",\"ha_priority\":900,\"labels\":{\"ha-after\":\"db\"}");
    }
    create_ha(f, "db", ",\"ha_priority\":1");
    fixture_host(f, "n2", 8192);
    lose_n1(b);
    for (unsigned i = 0; i <= RECONCILE_LOOKS_MAX / RECONCILE_COMMANDS_MAX; i++)
        fixture_reconcile(f, NULL); /* so many can be told why they wait */
    assert_string_equal(fixture_vm(f, "db")->host_name, "n2");
    fixture_check(f);
}

static void those_that_are_kept_apart_stay_so(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "one", ",\"labels\":{\"anti-affinity\":\"web\"}");
    fixture_host(f, "n2", 8192);
    create_ha(f, "two", ",\"labels\":{\"anti-affinity\":\"web\"}");
    assert_string_equal(fixture_vm(f, "two")->host_name, "n2");
    pass(b, 10, both);
    pass(b, 7, second);
    fixture_reconcile(f, NULL);
    assert_true(fixture_vm(f, "one")->recovering);
    assert_non_null(strstr(fixture_vm(f, "one")->placement, "kept apart from"));
    fixture_host(f, "n3", 1200);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "one")->host_name, "n3");
}

static void a_vm_that_takes_its_hosts_down_is_left_failed(void **test)
{
    struct bed *b = *test;
    struct fixture *f = &b->f;
    create_ha(f, "bad", ",\"ha_restarts_max\":0");
    lose_first(b);
    fixture_reconcile(f, NULL);
    assert_false(fixture_vm(f, "bad")->recovering);
    assert_int_equal(fixture_vm(f, "bad")->state, vm_state_FAILED);
    assert_non_null(strstr(fixture_vm(f, "bad")->state_reason, "ha_restarts_max"));
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    fixture_must(f, ROUTE_ID_vm_update, "bad", "{\"ha_restarts_max\":1}");
    fixture_must(f, ROUTE_ID_vm_start, "bad", NULL); /* somebody has looked at it */
    assert_true(fixture_vm(f, "bad")->recovering);
    fixture_reconcile(f, NULL);
    assert_string_equal(fixture_vm(f, "bad")->host_name, "n2");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_restarted_controller_supports_nothing_before_it_has_caught_up),
        TEST(a_support_has_to_run_out_before_it_is_confirmed),
        TEST(a_silent_host_is_lost_and_its_vm_goes_elsewhere),
        TEST(disks_in_shared_pools_are_taken_along),
        TEST(a_false_alarm_is_cleared),
        TEST(a_false_alarm_is_cleared_by_the_survivor_of_a_recovery),
        TEST(a_suspected_host_is_not_lost_by_the_survivor_of_a_recovery),
        TEST(controllers_that_start_have_not_heard_of_a_suspect),
        TEST(a_lost_host_comes_back_by_its_report),
        TEST(one_confirmation_is_not_enough),
        TEST(a_leader_that_sees_no_majority_suspects_nobody),
        TEST(a_new_controller_counts_once_hosts_have_its_support),
        TEST(after_a_change_of_the_controllers_nobody_is_lost_for_a_ttl),
        TEST(the_next_change_waits_until_hosts_know_of_the_last_one),
        TEST(what_it_says_of_a_list_that_is_not_applied_is_of_no_account),
        TEST(whom_a_removed_controller_has_told_does_not_count),
        TEST(what_it_says_of_another_epoch_is_of_no_account),
        TEST(the_wait_names_whom_it_is_for),
        TEST(what_a_former_life_supported_has_to_be_over_too),
        TEST(a_lost_host_has_to_be_without_any_support),
        TEST(disarmed_nobody_is_lost_and_armed_only_who_has_said_so),
        TEST(a_vm_that_gets_ha_is_moved_only_when_its_host_has_heard_of_it),
        TEST(a_host_that_is_ahead_has_to_say_that_it_runs_under_the_lease),
        TEST(a_host_that_leaves_in_order_is_lost_at_once),
        TEST(votes_are_kept_while_there_is_ha),
        TEST(the_higher_priority_goes_first),
        TEST(one_is_started_after_another),
        TEST(nobody_waits_for_one_that_nobody_starts),
        TEST(the_wait_for_another_one_ends),
        TEST(those_that_fit_nowhere_stand_in_nobodys_way),
        TEST(those_that_wait_stand_in_nobodys_way),
        TEST(those_that_are_kept_apart_stay_so),
        TEST(a_vm_that_takes_its_hosts_down_is_left_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
