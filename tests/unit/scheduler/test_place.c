/* Placement: each filter with its words, the score's shape, ties, the whole explanation, and equality with a plain
 * re-computation on random clusters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/place.h"

#define MIB (UINT64_C(1) << 20)

static void add_host(struct scheduler_view *view, struct host *host, uint64_t mib, uint32_t cpus, uint64_t used_mib,
                     uint64_t used_vcpus)
{
    OBJECT_SET(host, host, memory_bytes, mib * MIB);
    OBJECT_SET(host, host, memory_reserve_bytes, 0);
    OBJECT_SET(host, host, cpus, cpus);
    OBJECT_SET(host, host, cpu_ratio_percent, 100);
    host->kvm = host->kvm ? host->kvm : (char *)"svm";
    host->id = host->id ? host->id : host->name;
    view_add(view, host, used_mib * MIB, used_vcpus);
}

static void each_filter_says_why(void **test UNUSED)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = {.memory_bytes = 2048 * MIB, .vcpus = 2};
    struct host hosts[] = {
        {.name = (char *)"a"}, {.name = (char *)"b", .state = host_state_UNREACHABLE}, {.name = (char *)"c"},
        {.name = (char *)"d", .kvm = (char *)"none"}, {.name = (char *)"e"}, {.name = (char *)"f"},
    };
    static const struct {
        enum filter filter;
        const char *reason;
    } want[] = {
        {FILTER_MEMORY, "needs 2048 MiB, 1024 of 8192 MiB are free"}, {FILTER_STATE, "is unreachable"},
        {FILTER_SCHEDULABLE, "takes no new VMs: schedulable is false"}, {FILTER_KVM, "has no usable /dev/kvm"},
        {FILTER_VCPUS, "needs 2 vCPUs, 1 of 8 are free"}, {FILTER_PASSED, "can hold it"},
    };
    OBJECT_SET(host, &hosts[2], schedulable, false);
    add_host(&view, &hosts[0], 8192, 8, 7168, 0);
    for (unsigned i = 1; i < 4; i++)
        add_host(&view, &hosts[i], 8192, 8, 0, 0);
    add_host(&view, &hosts[4], 8192, 8, 0, 7);
    add_host(&view, &hosts[5], 8192, 8, 0, 0);
    place_vm(&view, &request, &result);
    char text[300];
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
        assert_int_equal(result.verdicts[i], want[i].filter);
        filter_reason(&view, i, &request, want[i].filter, text, sizeof text);
        assert_string_equal(text, want[i].reason);
    }
    assert_int_equal(result.chosen, 5);
    place_summary(&view, &request, &result, text, sizeof text);
    assert_string_equal(text, "f, the only one of 6 hosts that fits: 25 % full with it");
    static const uint8_t pools[] = {PLACE_POOLS_MISSING, 0, 0, 0, PLACE_POOLS_FULL, PLACE_POOLS_THERE}; /* before memory */
    request.pools = pools;
    place_vm(&view, &request, &result);
    assert_int_equal(result.verdicts[0], FILTER_POOL);
    assert_int_equal(result.verdicts[4], FILTER_POOL_ROOM);
    assert_int_equal(result.chosen, 5);
    filter_reason(&view, 4, &request, FILTER_POOL_ROOM, text, sizeof text);
    assert_string_equal(text, "has less room in a pool than its disks there may take");
    request.pools = NULL;
    view.disk_free_bytes[5] = 10 * MIB;
    assert_true(view.disk_free_bytes[0] == UINT64_MAX); /* a host that does not say has room */
    request.disk_bytes = 11 * MIB;
    place_vm(&view, &request, &result);
    assert_int_equal(result.verdicts[0], FILTER_MEMORY);
    assert_int_equal(result.verdicts[5], FILTER_DISK_ROOM);
    assert_int_equal(result.chosen, PLACE_NONE);
    filter_reason(&view, 5, &request, FILTER_DISK_ROOM, text, sizeof text);
    assert_string_equal(text, "its disks may take 11 MiB, about 10 MiB are free");
    request.disk_bytes = 10 * MIB;
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, 5);
    request.disk_bytes = 0;
    request.pin = "a";
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, PLACE_NONE);
    assert_int_equal(result.rejected_by[FILTER_PIN], 5);
    place_summary(&view, &request, &result, text, sizeof text);
    assert_string_equal(text, "no host fits: 5 excluded by its pin (b: the VM is pinned to a), "
                              "1 with too little memory (nearest is a: needs 2048 MiB, 1024 of 8192 MiB are free)");
    place_result_finish(&result);
    view_finish(&view);
}

static void a_named_cpu_model_needs_processors_that_can_be_it(void **test UNUSED)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = {.memory_bytes = MIB, .vcpus = 1, .cpu_model = cpu_kind_X86_64_V3};
    struct host hosts[] = {{.name = (char *)"a", .cpu_baseline = cpu_kind_X86_64_V2},
                           {.name = (char *)"b", .cpu_baseline = cpu_kind_X86_64_V4},
                           {.name = (char *)"c"}};
    char text[300];
    for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++)
        add_host(&view, &hosts[i], 8192, 8, i == 1 ? 4000 : 0, 0);
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, 1);
    assert_int_equal(result.rejected_by[FILTER_CPU_MODEL], 2);
    filter_reason(&view, 0, &request, FILTER_CPU_MODEL, text, sizeof text);
    assert_string_equal(text, "needs x86-64-v3, its processors can be x86-64-v2 at most");
    filter_reason(&view, 2, &request, FILTER_CPU_MODEL, text, sizeof text);
    assert_string_equal(text, "needs x86-64-v3, which it does not say its processors can be");
    request.cpu_model = cpu_kind_X86_64_V2;
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, 0);
    request.cpu_model = cpu_kind_HOST; /* every host can be itself */
    place_vm(&view, &request, &result);
    assert_int_equal(result.rejected_by[FILTER_PASSED], 3);
    place_result_finish(&result);
    view_finish(&view);
}

static void spread_below_half_pack_above(void **test UNUSED)
{
    static const struct {
        unsigned used_mib[3];
        char chosen;
    } cases[] = {
        {{0, 0, 0}, 'a'},          /* a tie ends at the name */
        {{1000, 0, 0}, 'b'},       /* spread */
        {{1000, 2000, 500}, 'c'},  /* the emptiest */
        {{5000, 6000, 8000}, 'c'}, /* all above half: the fullest that fits */
        {{5000, 6000, 9500}, 'b'}, /* c does not fit */
        {{9000, 4200, 8000}, 'b'}, /* still below half with it */
        {{3, 2, 1}, 'a'},          /* less than 1 % apart: the name */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct scheduler_view view = {0};
        struct place_result result = {0};
        struct place_request request = {.memory_bytes = 700 * MIB, .vcpus = 1};
        struct host hosts[] = {{.name = (char *)"a"}, {.name = (char *)"b"}, {.name = (char *)"c"}};
        for (unsigned h = 0; h < 3; h++)
            add_host(&view, &hosts[h], 10000, 1000, cases[i].used_mib[h], 0);
        place_vm(&view, &request, &result);
        if (result.chosen == PLACE_NONE || view.names[result.chosen][0] != cases[i].chosen)
            fail_msg("case %u: %zu", i, result.chosen);
        place_result_finish(&result);
        view_finish(&view);
    }
}

static void reserve_and_ratio(void **test UNUSED)
{
    struct host host = {.name = (char *)"a", .cpus = 8, .memory_bytes = 2048 * MIB};
    assert_int_equal(view_host_memory_bytes(&host), 2048 * MIB - 2048 * MIB / 10);
    assert_int_equal(view_host_vcpus(&host), 32);
    host.memory_bytes = 65536 * MIB;
    assert_int_equal(view_host_memory_bytes(&host), (65536 - 512) * MIB);
    OBJECT_SET(host, &host, memory_reserve_bytes, 70000 * MIB);
    assert_int_equal(view_host_memory_bytes(&host), 0);
    OBJECT_SET(host, &host, cpu_ratio_percent, 150);
    assert_int_equal(view_host_vcpus(&host), 12);
}

static void the_explanation_holds_every_host(void **test UNUSED)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = {.memory_bytes = 1000 * MIB, .vcpus = 1};
    struct placement placement = {0};
    struct host hosts[] = {{.name = (char *)"a"}, {.name = (char *)"b"}, {.name = (char *)"c"}};
    add_host(&view, &hosts[0], 10000, 100, 9500, 0);
    add_host(&view, &hosts[1], 10000, 100, 4000, 0);
    add_host(&view, &hosts[2], 10000, 100, 1000, 0);
    place_vm(&view, &request, &result);
    place_explain(&view, &request, &result, &placement);
    const struct placement_host *h = placement.hosts.items;
    assert_string_equal(placement.host, "c");
    assert_string_equal(placement.summary, "c, the best of 2 hosts that fit: 20 % full with it");
    assert_string_equal(h[0].host, "c");
    assert_true(h[0].chosen);
    assert_string_equal(h[1].host, "b");
    assert_true(h[0].score > h[1].score);
    assert_string_equal(h[1].reason, "would be 50 % full with it: up to half full, the emptiest host is preferred");
    assert_string_equal(h[2].rejected, "memory");
    struct error err;
    assert_int_equal(object_validate(&placement_desc, &placement, OBJECT_STORED, &err), 0);
    OBJECT_CLEAR(placement, &placement);
    place_result_finish(&result);
    view_finish(&view);
}

static void no_hosts_and_huge_numbers(void **test UNUSED)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = {.memory_bytes = OBJECT_INTEGER_MAX, .vcpus = UINT32_MAX};
    char text[700];
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, PLACE_NONE);
    place_summary(&view, &request, &result, text, sizeof text);
    assert_string_equal(text, "no host fits: there are no hosts");
    struct host host = {.name = (char *)"a", .kvm = (char *)"svm", .id = (char *)"a", .cpus = 65536, .memory_bytes = OBJECT_INTEGER_MAX};
    OBJECT_SET(host, &host, memory_reserve_bytes, 0);
    OBJECT_SET(host, &host, cpu_ratio_percent, 6400);
    view_add(&view, &host, 0, 0);
    request.vcpus = 1;
    place_vm(&view, &request, &result);
    assert_int_equal(result.chosen, 0);
    assert_int_equal(score_fill(&view, 0, &request), 1000);
    place_result_finish(&result);
    view_finish(&view);
}

/* Random clusters against the rule written down once more, in the plainest way. */
static void random_clusters(void **test UNUSED)
{
    uint64_t random = 42;
    for (unsigned round = 0; round < 2000; round++) {
        struct scheduler_view view = {0};
        struct place_result result = {0};
        struct host hosts[20] = {0};
        char names[20][4];
        unsigned count = (unsigned)(random >> 40) % 20;
        for (unsigned i = 0; i < count; i++) {
            random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
            snprintf(names[i], sizeof names[i], "h%02u", i);
            hosts[i].name = names[i];
            hosts[i].state = (random >> 60) == 0 ? host_state_UNREACHABLE : host_state_UP;
            add_host(&view, &hosts[i], 4096, 16, (random >> 33) % 4200, (random >> 50) % 17);
        }
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407;
        struct place_request request = {.memory_bytes = (1 + (random >> 33) % 2048) * MIB, .vcpus = 1 + (random >> 50) % 4};
        place_vm(&view, &request, &result);
        size_t best = PLACE_NONE;
        long best_rank = -1;
        for (unsigned i = 0; i < count; i++) {
            uint64_t memory = view.committed_memory_bytes[i] + request.memory_bytes, vcpus = view.committed_vcpus[i] + request.vcpus;
            if (view.states[i] != host_state_UP || memory > 4096 * MIB || vcpus > 16)
                continue;
            long percent = (long)MAX(memory * 1000 / (4096 * MIB), vcpus * 1000 / 16) / 10;
            long rank = percent <= 50 ? 1000 - percent : percent;
            if (rank > best_rank) {
                best_rank = rank;
                best = i;
            }
        }
        if (best != result.chosen)
            fail_msg("round %u (seed 42): %zu, not %zu", round, result.chosen, best);
        place_result_finish(&result);
        view_finish(&view);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_filter_says_why),
        cmocka_unit_test(a_named_cpu_model_needs_processors_that_can_be_it),
        cmocka_unit_test(spread_below_half_pack_above),
        cmocka_unit_test(reserve_and_ratio),
        cmocka_unit_test(the_explanation_holds_every_host),
        cmocka_unit_test(no_hosts_and_huge_numbers),
        cmocka_unit_test(random_clusters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
