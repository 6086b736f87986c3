/* Durations, filters, metrics text: the pure parts of the API. Whole requests: tests/process/test_api.py. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_metrics.h"
#include "controller/api/api_query.h"
#include "controller/api/api_record.h"

static void test_durations(void **unused)
{
    (void)unused;
    static const struct {
        const char *text;
        int ms; /* -1: refused */
    } cases[] = {{"30s", 30000},   {"500ms", 500}, {"2m", 120000}, {"7", 7000}, {"0", 0},
                 {"300s", 300000}, {"301s", -1},   {"6m", -1},     {"", -1},    {"s", -1},
                 {"-1", -1},       {"1.5s", -1},   {"1 s", -1},    {"1h", -1},  {"99999999999999999999s", -1},
                 {"30sx", -1},     {"+3", -1}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint32_t ms = 12345;
        int r = api_query_duration(cases[i].text, API_QUERY_WAIT_MS_MAX, &ms);
        if (r != (cases[i].ms < 0 ? -EINVAL : 0) || ms != (cases[i].ms < 0 ? 12345u : (uint32_t)cases[i].ms))
            fail_msg("'%s': %d %u", cases[i].text, r, ms);
    }
}

static int parse(const char *filter, const char *fields, struct api_record_filter *ret, struct error *err)
{
    struct api_query query = {.limit = 0};
    snprintf(query.filter, sizeof query.filter, "%s", filter);
    snprintf(query.fields, sizeof query.fields, "%s", fields);
    return api_record_filter_parse(&vm_desc, &query, ret, err);
}

static void test_filters(void **unused)
{
    (void)unused;
    struct api_record_filter filter;
    struct error err;
    assert_int_equal(parse("state=running and host_name!=n1 and labels.tier=a=b", "name,state", &filter, &err), 0);
    assert_int_equal(filter.count, 3);
    assert_string_equal(filter.conditions[0].field->name, "state");
    assert_false(filter.conditions[0].unequal);
    assert_true(filter.conditions[1].unequal);
    assert_string_equal(filter.conditions[2].label, "tier");
    assert_string_equal(filter.conditions[2].value, "a=b");
    assert_int_equal(__builtin_popcountll(filter.mask), 2);
    static const char *const bad[] = {
        "state",   "=x",      "state=failed and ",             "stat=x",         "labels=x",
        "disks=1", "state=x", "state=failed and  and name=y", "wanted!=runing", "name=x andname"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        bool fine = i == ARRAY_SIZE(bad) - 1 || strcmp(bad[i], "state=failed and ") == 0;
        if ((parse(bad[i], "", &filter, &err) == 0) != fine)
            fail_msg("'%s'", bad[i]);
        if (!fine)
            assert_string_equal(err.field, "?filter");
    }
    assert_int_equal(parse("", "name,,state", &filter, &err), -EINVAL);
    assert_int_equal(parse("", "nope", &filter, &err), -EINVAL);
    assert_string_equal(err.field, "?fields");
    char many[API_QUERY_TEXT_MAX] = "name=a";
    for (unsigned i = 0; i < API_RECORD_CONDITIONS_MAX; i++)
        strcat(many, " and name=a");
    assert_int_equal(parse(many, "", &filter, &err), -EINVAL);
}

static void test_histogram(void **unused)
{
    (void)unused;
    struct api_metrics metrics = {.retries = 7};
    struct bytes_writer out = {0};
    const struct route_desc *create = &schema_routes[ROUTE_ID_flavor_create];
    api_metrics_count(&metrics, create, 201);
    api_metrics_count(&metrics, NULL, 404);
    api_metrics_count(&metrics, create, 0);
    api_metrics_time(&metrics, create, 250);
    api_metrics_time(&metrics, create, 251);
    api_metrics_time(&metrics, create, 99000000);
    api_metrics_text(&metrics, &out);
    bytes_put_u8(&out, 0);
    static const char *const lines[] = {
        "drover_api_requests_total{route=\"flavor_create\",status=\"2xx\"} 1\n",
        "drover_api_requests_total{route=\"none\",status=\"4xx\"} 1\n",
        "drover_api_request_seconds_bucket{class=\"write\",le=\"0.000250\"} 1\n",
        "drover_api_request_seconds_bucket{class=\"write\",le=\"0.000500\"} 2\n",
        "drover_api_request_seconds_bucket{class=\"write\",le=\"5.000000\"} 2\n",
        "drover_api_request_seconds_bucket{class=\"write\",le=\"+Inf\"} 3\n",
        "drover_api_request_seconds_sum{class=\"write\"} 99.000501\n",
        "drover_api_retries_total 7\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
        if (strstr((const char *)out.data, lines[i]) == NULL)
            fail_msg("no line %s", lines[i]);
    bytes_writer_finish(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_histogram),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
