/* Drills without a cluster: who executed when, what must hold before one, the page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "cli/drill_check.h"
#include "cli/drill_page.h"
#include "cli/drill_runs.h"
#include "cli/drill_text.h"

#define VM "00000000-0000-4000-8000-000000000001"

/* What @host says of the VM, asked at @asked_ms with the answer at @came_ms. */
static void see(struct drill_runs *runs, const char *host, uint64_t epoch, uint64_t vcpu_ns, uint64_t age_ms, int64_t asked_ms, int64_t came_ms)
{
    struct vm_observation seen = {.id = (char *)(uintptr_t)VM, .epoch = epoch, .vcpu_ns = vcpu_ns, .age_ms = age_ms};
    drill_runs_add(runs, host, &seen, asked_ms * 1000, came_ms * 1000);
}

static enum drill_verdict judge(const struct drill_runs *runs)
{
    char why[300];
    return drill_runs_judge(runs, VM, why, sizeof why);
}

/* It executes on n1 up to 5.0 s, stands still, and executes on n2 from about 6.1 s on. */
static void test_a_failover(void **state)
{
    struct drill_runs runs = {0};
    (void)state;
    for (int64_t ms = 0; ms <= 9000; ms += 100) {
        see(&runs, "n1", 1, 1000 + (uint64_t)MIN(ms, (int64_t)5000), 60000 + (uint64_t)ms, ms, ms + 5);
        if (ms >= 6000)
            see(&runs, "n2", 2, ms >= 6100 ? (uint64_t)ms : 0, (uint64_t)ms - 5950, ms, ms + 5);
    }
    assert_int_equal(judge(&runs), DRILL_ONCE);
    const struct drill_run *old = drill_runs_find(&runs, VM, "n1"), *new = drill_runs_elsewhere(&runs, VM, "n1", 1);
    assert_int_equal(old->last_until_us, 5005000);
    assert_int_equal(old->last_from_us, 4900000);
    assert_string_equal(new->host, "n2");
    assert_int_equal(new->first_until_us, 6105000);
    assert_int_equal(new->begun_us, 5950000 - DRILL_TICK_US);
    assert_null(drill_runs_elsewhere(&runs, VM, "n1", 2));
    drill_runs_finish(&runs);
}

static void test_twice(void **state)
{
    struct drill_runs runs = {0};
    char why[300];
    (void)state;
    for (int64_t ms = 0; ms <= 3000; ms += 100) {
        see(&runs, "n1", 1, 1000 + (uint64_t)ms, 60000 + (uint64_t)ms, ms, ms + 5);
        if (ms >= 2000)
            see(&runs, "n2", 2, (uint64_t)ms, (uint64_t)ms - 1900, ms, ms + 5);
    }
    assert_int_equal(drill_runs_judge(&runs, VM, why, sizeof why), DRILL_TWICE);
    assert_non_null(strstr(why, "n1"));
    assert_non_null(strstr(why, "n2"));
    drill_runs_finish(&runs);
}

/* The answer that shows the old one's last execution took a second: it may have been before the new one began, or after. */
static void test_unsure(void **state)
{
    struct drill_runs runs = {0};
    (void)state;
    see(&runs, "n1", 1, 1000, 60000, 0, 5);
    see(&runs, "n1", 1, 2000, 61700, 1000, 2000); /* true at 1.7 s, as far as clocks may differ */
    see(&runs, "n2", 2, 0, 10, 1500, 1505);
    see(&runs, "n2", 2, 10, 110, 1600, 1605);
    assert_int_equal(judge(&runs), DRILL_UNSURE);
    drill_runs_finish(&runs);
}

/* It took a second as well, but by its age the VMM was asked early in it: by an earlier quick answer, or by a later one. */
static void test_a_late_answer_that_says_when(void **state)
{
    struct drill_runs runs = {0};
    (void)state;
    see(&runs, "n1", 1, 1000, 60000, 0, 5);
    see(&runs, "n1", 1, 2000, 61050, 1000, 2000);
    see(&runs, "n2", 2, 0, 10, 1500, 1505);
    see(&runs, "n2", 2, 10, 110, 1600, 1605);
    assert_int_equal(judge(&runs), DRILL_ONCE);
    assert_int_equal(runs.items[0].last_until_us, 5000 + 1050000 * 102 / 100 + DRILL_AGE_US);
    drill_runs_finish(&runs);

    see(&runs, "n1", 1, 1000, 60000, 0, 900);
    see(&runs, "n1", 1, 2000, 61050, 1000, 2000);
    see(&runs, "n2", 2, 10, 10, 1500, 1505);
    assert_int_equal(judge(&runs), DRILL_UNSURE);
    see(&runs, "n1", 1, 2000, 62050, 2000, 2060);
    assert_int_equal(judge(&runs), DRILL_ONCE);
    drill_runs_finish(&runs);

    /* Of another process under the same epoch its age says nothing. */
    see(&runs, "n1", 1, 1000, 60000, 0, 5);
    see(&runs, "n1", 1, 900, 61050, 1000, 2000);
    see(&runs, "n2", 2, 10, 10, 1500, 1505);
    assert_int_equal(judge(&runs), DRILL_UNSURE);
    drill_runs_finish(&runs);
}

/* One host's VMM, started again by its agent under the same epoch, is no other host's. */
static void test_a_restart_in_place(void **state)
{
    struct drill_runs runs = {0};
    (void)state;
    for (int64_t ms = 0; ms <= 1000; ms += 100)
        see(&runs, "n1", 1, (uint64_t)(ms < 500 ? 5000 + ms : ms), 100, ms, ms + 5);
    assert_int_equal(runs.count, 1);
    assert_int_equal(judge(&runs), DRILL_ONCE);
    drill_runs_finish(&runs);
}

static void test_a_stall(void **state)
{
    struct drill_runs runs = {0};
    (void)state;
    for (int64_t ms = 0; ms <= 3000; ms += 100)
        see(&runs, "n1", 1, 1000 + (uint64_t)(ms <= 1000 ? ms : ms < 2000 ? 1000 : ms), 60000, ms, ms + 5);
    assert_in_range(runs.items[0].stall_us, 850000, 1000000);
    drill_runs_finish(&runs);
}

static json_t *host(const char *name)
{
    return json_pack("{s:s, s:s}", "name", name, "state", "up");
}

static json_t *vm(const char *name, const char *on)
{
    return json_pack("{s:s, s:s, s:s, s:b}", "name", name, "host_name", on, "state", "running", "ha", 1);
}

static json_t *loss(const char *name, const char *outcome, int ha)
{
    return json_pack("{s:s, s:[{s:s, s:s, s:b, s:s}]}", "summary", "all go on", "vms", "vm", name, "outcome", outcome, "ha", ha, "reason", "no room");
}

/* What the controllers say counts, of VMs with ha alone; and that they say it. */
static void test_room(void **state)
{
    static const struct {
        const char *outcome;
        int ha;
        bool ok;
        const char *words;
    } rows[] = {{"started", 1, true, "all go on"}, {"waits", 1, false, "VM web would not be started elsewhere: no room"},
                {"stays", 1, false, "VM web"}, {"stays", 0, true, "all go on"}, {NULL, 0, false, "do not say"}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        bool ok, found = false;
        json_t *cluster = json_object(), *none = json_array(), *hosts = json_pack("[o]", host("n1")), *vms = json_pack("[o]", vm("web", "n1"));
        json_t *would = rows[i].outcome != NULL ? loss("web", rows[i].outcome, rows[i].ha) : NULL;
        const struct drill_check_input in = {cluster, none, hosts, vms, none, "n1", would, true, true};
        json_t *checks = drill_check(&in, &ok);
        const json_t *check;
        size_t j;
        json_array_foreach(checks, j, check)
            found = found || (strcmp(json_text(check, "check"), "room for one host less") == 0 && strstr(json_text(check, "detail"), rows[i].words) != NULL);
        assert_int_equal(ok, rows[i].ok);
        assert_true(found);
        json_t *all[] = {cluster, none, hosts, vms, would, checks};
        for (j = 0; j < ARRAY_SIZE(all); j++)
            json_decref(all[j]);
    }
}

/* Each condition in turn does not hold, and is named. */
static void test_conditions(void **state)
{
    static const char *const names[] = {NULL, "controllers", "hosts", "ha armed", "operations under way", "room for one host less", "VMs with ha that run"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        json_t *cluster = json_pack("{s:b}", "ha_disarmed", i == 3), *operations = i == 4 ? json_pack("[{}]") : json_array();
        json_t *controllers = json_pack("[{s:s}, {s:s}, {s:s}]", "role", "voter", "role", "voter", "role", i == 1 ? "spare" : "voter");
        json_t *hosts = json_pack("[o, o, o]", host("n1"), host("n2"), host("n3"));
        json_t *vms = i == 6 ? json_array() : json_pack("[o]", vm("a", "n1"));
        if (i == 2)
            json_object_set_new(json_array_get(hosts, 2), "state", json_string("lost"));
        json_t *would = loss("a", i == 5 ? "waits" : "started", 1);
        const struct drill_check_input in = {cluster, controllers, hosts, vms, operations, "n1", would, false, true};
        bool ok;
        json_t *checks = drill_check(&in, &ok);
        const json_t *check;
        size_t j;
        assert_int_equal(ok, names[i] == NULL);
        json_array_foreach(checks, j, check) assert_int_equal(json_is_true(json_object_get(check, "ok")),
                                                              names[i] == NULL || strcmp(json_text(check, "check"), names[i]) != 0);
        json_t *all[] = {cluster, operations, controllers, hosts, vms, would, checks};
        for (j = 0; j < ARRAY_SIZE(all); j++)
            json_decref(all[j]);
    }
}

/* Where nothing is to fail, one controller will do. */
static void test_conditions_where_nothing_fails(void **state)
{
    bool ok;
    (void)state;
    json_t *cluster = json_pack("{s:b}", "ha_disarmed", 1), *none = json_array(), *hosts = json_pack("[o]", host("n1"));
    json_t *controllers = json_pack("[{s:s}]", "role", "voter");
    const struct drill_check_input in = {cluster, controllers, hosts, none, none, NULL, NULL, true, false};
    json_decref(drill_check(&in, &ok));
    assert_true(ok);
    json_decref(cluster);
    json_decref(none);
    json_decref(hosts);
    json_decref(controllers);
}

static void test_choice_of_host(void **state)
{
    (void)state;
    json_t *hosts = json_pack("[o, o, o]", host("n1"), host("n2"), host("n3"));
    json_t *vms = json_pack("[o, o, o]", vm("a", "n1"), vm("b", "n1"), vm("c", "n3")), *none = json_array();
    assert_string_equal(drill_check_choose_host(hosts, vms), "n3");
    assert_null(drill_check_choose_host(hosts, none));
    json_decref(hosts);
    json_decref(vms);
    json_decref(none);
}

/* Names come from a cluster, which may be a stranger's. */
static void test_page_is_escaped(void **state)
{
    struct bytes_writer out = {0};
    static const char *const evil = "<script>alert('1')</script>\"&";
    (void)state;
    json_t *report = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:[s], s:[{s:s, s:s, s:s, s:I, s:s, s:s}], s:[{s:s, s:s, s:I, s:I}], s:[{s:I, s:s}]}",
                               "drill", "host-loss", "id", evil, "cluster", evil, "host", evil, "leader", evil, "result", "failed", "failures", evil,
                               "vms", "name", evil, "from", evil, "to", evil, "executes_ms", (json_int_t)5000, "once", "twice", "why", evil, "runs",
                               "vm", evil, "host", evil, "from_ms", (json_int_t)-1000, "to_ms", (json_int_t)9000, "timeline", "at_ms", (json_int_t)1, "what", evil);
    assert_non_null(report);
    drill_page_put(report, &out);
    bytes_put_u8(&out, 0);
    assert_null(strstr((const char *)out.data, "<script"));
    assert_null(strstr((const char *)out.data, "alert('"));
    assert_non_null(strstr((const char *)out.data, "&lt;script&gt;"));
    assert_non_null(strstr((const char *)out.data, "</html>"));
    bytes_writer_finish(&out);
    json_decref(report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_failover),  cmocka_unit_test(test_twice),       cmocka_unit_test(test_unsure),
        cmocka_unit_test(test_a_late_answer_that_says_when),
        cmocka_unit_test(test_a_restart_in_place), cmocka_unit_test(test_a_stall), cmocka_unit_test(test_room),
        cmocka_unit_test(test_conditions), cmocka_unit_test(test_conditions_where_nothing_fails), cmocka_unit_test(test_choice_of_host), cmocka_unit_test(test_page_is_escaped),
    };
    return cmocka_run_group_tests_name("drill", tests, NULL, NULL);
}
