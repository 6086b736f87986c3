/* The leader's tick: placing what waits, marking silent hosts, removing old tokens, and nothing twice. */
#include "controller/fsm/image_copies.h"
#include "tests/unit/controller/fsm_fixture.h"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void pending_vms_are_placed_when_there_is_room(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    assert_string_equal(fixture_vm(f, "a")->placement, "no host fits: there are no hosts");
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* said already */
    fixture_join(f, "n1");
    assert_int_equal(fixture_reconcile(f, NULL), 1); /* the reason has changed: a note */
    assert_string_equal(fixture_vm(f, "a")->placement, "no host fits: 1 not up (n1: is unreachable)");
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    struct node_report report = fixture_report(f, "n1", 400);
    fixture_send(f, &report);
    fixture_create_vm(f, "b"); /* takes the room that "a" waits for */
    assert_string_equal(fixture_vm(f, "b")->host_name, "n1");
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(fixture_vm(f, "a")->placement,
                        "no host fits: 1 with too little memory (nearest is n1: needs 256 MiB, 104 of 360 MiB are free)");
    assert_int_equal(fixture_vm(f, "a")->epoch, 0);
    fixture_must(f, ROUTE_ID_vm_delete, "b", NULL);
    fixture_vm_is(f, "b", vm_state_DELETED);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
    assert_int_equal(fixture_vm(f, "a")->epoch, 1);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

static void one_tick_does_not_overfill_a_host(void **test)
{
    struct fixture *f = *test;
    for (char name[] = "a"; name[0] <= 'd'; name[0]++)
        fixture_create_vm(f, name);
    fixture_host(f, "n1", 1000); /* 900 MiB: three of them */
    fixture_reconcile(f, NULL);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->of_host.vms.count, 3);
    assert_null(fixture_vm(f, "d")->host);
}

static void steps_are_bounded(void **test)
{
    struct fixture *f = *test;
    char body[128];
    for (unsigned i = 0; i < RECONCILE_COMMANDS_MAX + 6; i++) {
        snprintf(body, sizeof body, "{\"name\":\"vm-%u\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777216}", i);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    }
    fixture_join(f, "n1");
    struct node_report report = fixture_report(f, "n1", 8192);
    OBJECT_SET(node_report, &report, cpus, 64);
    fixture_send(f, &report);
    assert_int_equal(fixture_reconcile(f, NULL), RECONCILE_COMMANDS_MAX);
    assert_int_equal(fixture_reconcile(f, NULL), 6);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

static void create_small_vms(struct fixture *f, unsigned count)
{
    char body[128];
    f->unchecked = true; /* checked as a whole below */
    for (unsigned i = 0; i < count; i++) {
        snprintf(body, sizeof body, "{\"name\":\"vm-%03u\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777216}", i);
        fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    }
    f->unchecked = false;
    fixture_check(f);
}

/* A tick looks at so many waiting VMs; the next one goes on behind them, also where that VM has gone meanwhile. */
static void looks_are_bounded_and_go_round(void **test)
{
    struct fixture *f = *test;
    char name[RECONCILE_NAME_SIZE];
    create_small_vms(f, RECONCILE_LOOKS_MAX + 40);
    assert_int_equal(state_waiting(f->state)->count, RECONCILE_LOOKS_MAX + 40);
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* said already */
    snprintf(name, sizeof name, "vm-%03u", RECONCILE_LOOKS_MAX - 1);
    assert_string_equal(f->resume_after, name);
    fixture_must(f, ROUTE_ID_vm_delete, name, NULL);
    assert_int_equal(state_waiting(f->state)->count, RECONCILE_LOOKS_MAX + 39);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_string_equal(f->resume_after, ""); /* the round is over */
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    snprintf(name, sizeof name, "vm-%03u", RECONCILE_LOOKS_MAX); /* without the deleted one */
    assert_string_equal(f->resume_after, name);
    fixture_join(f, "n1");
    struct node_report report = fixture_report(f, "n1", UINT64_C(1) << 20);
    OBJECT_SET(node_report, &report, cpus, 1024);
    fixture_send(f, &report);
    unsigned placed = 0;
    for (unsigned ticks = 0; state_waiting(f->state)->count > 0 && ticks < 10; ticks++)
        placed += fixture_reconcile(f, NULL);
    assert_int_equal(placed, RECONCILE_LOOKS_MAX + 39); /* each once, those behind the mark first */
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->of_host.vms.count, placed);
}

static void fewer_looks_where_there_are_many_hosts(void **test)
{
    struct fixture *f = *test;
    char name[16];
    create_small_vms(f, 70);
    f->unchecked = true;
    for (unsigned i = 0; i < RECONCILE_PAIRS_MAX / 50; i++) { /* 50 looks; none of them is up */
        snprintf(name, sizeof name, "n%u", i);
        fixture_join(f, name);
    }
    assert_int_equal(fixture_reconcile(f, NULL), 50);
    assert_string_equal(f->resume_after, "vm-049");
    assert_int_equal(fixture_reconcile(f, NULL), 20);
    assert_string_equal(f->resume_after, "");
}

static void silent_hosts_are_marked_once(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n1", 1024);
    fixture_host(f, "n2", 1024);
    const char *id = fixture_get(f, object_kind_HOST, "n1")->common->id;
    struct reconcile_node node = {.host = id, .last_report_ms = 50000};
    struct reconcile_input input = {.leader_since_ms = 50000, .nodes = &node, .n_nodes = 1};
    input.now_ms = 50000 + RECONCILE_SILENCE_MS - 1;
    assert_int_equal(fixture_reconcile(f, &input), 0); /* a new leader gives everybody time */
    node.last_report_ms = 55000;
    input.now_ms = 50000 + RECONCILE_SILENCE_MS;
    assert_int_equal(fixture_reconcile(f, &input), 1); /* n2 has never reported to this leader */
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->state, host_state_UNREACHABLE);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->host->state, host_state_UP);
    assert_int_equal(fixture_reconcile(f, &input), 0);
    struct node_report report = fixture_report(f, "n2", 1024);
    assert_int_equal(fixture_send(f, &report), 1); /* back, though nothing else has changed */
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->state, host_state_UP);
}

static void a_mark_that_was_overtaken_by_a_report(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n1", 1024);
    struct reconcile_output *output = NEW(struct reconcile_output);
    struct reconcile_input input = {.now = fixture_now(f), .now_ms = 99999};
    reconcile_tick(f->state, &input, output);
    assert_int_equal(output->count, 1);
    struct node_report report = fixture_report(f, "n1", 2048);
    fixture_send(f, &report);
    assert_int_equal(fixture_apply(f, &output->commands[0]), -ESTALE);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->host->state, host_state_UP);
    reconcile_output_finish(output);
    free(output);
}

static void old_tokens_go(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_token_create, NULL, "{\"name\":\"t\",\"role\":\"host\",\"ttl_s\":60}");
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    f->now_ms += 61000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_null(state_get(f->state, object_kind_TOKEN, "t"));
}

static void stopped_vms_without_a_host_are_left_alone(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "a");
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_host(f, "n1", 1024);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_string_equal(fixture_vm(f, "a")->host_name, "n1");
}

static unsigned keepers(struct fixture *f, const char *name)
{
    const struct image *image = fixture_get(f, object_kind_IMAGE, name)->image;
    unsigned count = 0;
    for (size_t i = 0; i < image->copies.count; i++)
        count += ((const struct image_copy *)image->copies.items)[i].keep;
    return count;
}

static void host_with_room(struct fixture *f, const char *name)
{
    fixture_join(f, name);
    struct node_report report = fixture_report(f, name, 1024);
    OBJECT_SET(node_report, &report, disk_free_bytes, UINT64_C(1) << (strcmp(name, "n4") == 0 ? 41 : 40));
    fixture_send(f, &report);
}

static bool keeps(struct fixture *f, const char *host)
{
    const struct image_copy *copy = image_copy_find(fixture_get(f, object_kind_IMAGE, "d")->image, fixture_get(f, object_kind_HOST, host)->common->id);
    return copy != NULL && copy->keep;
}

/* n1 and n2 keep "d", and n3 has joined afterwards. */
static void two_keepers_of_three(struct fixture *f)
{
    host_with_room(f, "n1");
    host_with_room(f, "n2");
    fixture_must(f, ROUTE_ID_image_create, NULL,
                 "{\"name\":\"d\",\"kind\":\"disk\",\"disk\":{\"url\":\"https://example.org/d\",\"sha256\":\"" FIXTURE_SHA "\"},\"replicas\":2}");
    fixture_reconcile(f, NULL);
    fixture_reconcile(f, NULL);
    host_with_room(f, "n3");
    assert_true(keeps(f, "n1") && keeps(f, "n2") && !keeps(f, "n3"));
}

/* It has the image still, and a third one that keeps it would do so for good: only a host that is lost is replaced. */
static void a_keeper_that_is_silent_is_not_replaced(void **test)
{
    struct fixture *f = *test;
    two_keepers_of_three(f);
    const char *n1 = fixture_get(f, object_kind_HOST, "n1")->common->id, *n3 = fixture_get(f, object_kind_HOST, "n3")->common->id;
    struct reconcile_node nodes[] = {{.host = n1, .last_report_ms = 55000}, {.host = n3, .last_report_ms = 55000}};
    struct reconcile_input input = {.leader_since_ms = 50000, .now_ms = 50000 + RECONCILE_SILENCE_MS, .nodes = nodes, .n_nodes = 2};
    fixture_reconcile(f, &input);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->state, host_state_UNREACHABLE);
    fixture_reconcile(f, &input);
    assert_int_equal(keepers(f, "d"), 2);
}

static void host_says_image_is(struct fixture *f, const char *name, enum image_copy_state state)
{
    struct node_report report = fixture_report(f, name, 1024);
    OBJECT_SET(node_report, &report, disk_free_bytes, UINT64_C(1) << 40);
    struct image_seen *seen = OBJECT_ADD(node_report, &report, images);
    OBJECT_TEXT(image_seen, seen, sha256, FIXTURE_SHA);
    OBJECT_SET(image_seen, seen, state, (uint32_t)state);
    fixture_send(f, &report);
}

/* Host @name has all of image "d", or (not @held) is getting it. */
static void host_says_image(struct fixture *f, const char *name, bool held)
{
    host_says_image_is(f, name, held ? image_copy_state_HELD : image_copy_state_FETCHING);
}

/* It is not one more for good when it comes back. */
static void a_keeper_that_is_lost_is_replaced(void **test)
{
    struct fixture *f = *test;
    two_keepers_of_three(f);
    host_says_image(f, "n1", true);
    host_says_image(f, "n2", true);
    fixture_lose(f, "n2");
    fixture_reconcile(f, NULL);
    assert_true(keeps(f, "n1") && !keeps(f, "n2") && keeps(f, "n3"));
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    host_says_image(f, "n3", true);
    host_says_image(f, "n2", true); /* it is back, and has its file */
    assert_int_equal(fixture_get(f, object_kind_HOST, "n2")->host->state, host_state_UP);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_int_equal(keepers(f, "d"), 2);
    /* and keeps it again where the next one is lost, however much room others have */
    host_with_room(f, "n4");
    fixture_lose(f, "n3");
    fixture_reconcile(f, NULL);
    assert_true(keeps(f, "n1") && keeps(f, "n2") && !keeps(f, "n3") && !keeps(f, "n4"));
}

/* Nobody but the lost one has it: it has to be there still when that comes back. */
static void but_not_where_nobody_else_has_it(void **test)
{
    struct fixture *f = *test;
    two_keepers_of_three(f);
    host_says_image(f, "n1", false);
    host_says_image(f, "n2", true);
    fixture_lose(f, "n2");
    fixture_reconcile(f, NULL);
    assert_true(keeps(f, "n1") && keeps(f, "n2") && keeps(f, "n3"));
}

/* What a person has more hosts keep than are wanted nobody takes back. */
static void hosts_beyond_those_that_are_wanted_stay(void **test)
{
    struct fixture *f = *test;
    two_keepers_of_three(f);
    fixture_must(f, ROUTE_ID_image_distribute, "d", "{\"hosts\":[\"n3\"]}");
    host_says_image(f, "n1", true);
    fixture_lose(f, "n2");
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_true(keeps(f, "n1") && keeps(f, "n2") && keeps(f, "n3"));
}

/* A server that is away is so for all of them: each would keep the image for good when it is back. */
static void not_all_hosts_keep_what_none_can_get(void **test)
{
    struct fixture *f = *test;
    char name[8];
    two_keepers_of_three(f);
    for (unsigned i = 4; i <= 9; i++) {
        snprintf(name, sizeof name, "n%u", i);
        host_with_room(f, name);
    }
    for (unsigned round = 0; round < 12; round++) {
        for (unsigned i = 1; i <= 9; i++) {
            snprintf(name, sizeof name, "n%u", i);
            if (keeps(f, name))
                host_says_image_is(f, name, image_copy_state_FAILED);
        }
        fixture_reconcile(f, NULL);
    }
    assert_int_equal(keepers(f, "d"), RECONCILE_KEEPERS_FAILED_MAX + 1);
    host_says_image(f, "n1", true); /* back: what is missing is made up for again, by those that keep it */
    host_says_image(f, "n2", true);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(pending_vms_are_placed_when_there_is_room),
        TEST(one_tick_does_not_overfill_a_host),
        TEST(steps_are_bounded),
        TEST(looks_are_bounded_and_go_round),
        TEST(fewer_looks_where_there_are_many_hosts),
        TEST(silent_hosts_are_marked_once),
        TEST(a_mark_that_was_overtaken_by_a_report),
        TEST(a_keeper_that_is_silent_is_not_replaced),
        TEST(a_keeper_that_is_lost_is_replaced),
        TEST(but_not_where_nobody_else_has_it),
        TEST(hosts_beyond_those_that_are_wanted_stay),
        TEST(not_all_hosts_keep_what_none_can_get),
        TEST(old_tokens_go),
        TEST(stopped_vms_without_a_host_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
