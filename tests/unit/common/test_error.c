/* Errors in words, quoting for logs, and the intrusive list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/list.h"
#include "common/log.h"

static void test_kinds_are_whole(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ERROR_KIND_COUNT; i++) {
        const struct error_kind_info *info = error_kind_info((enum error_kind)i);
        assert_true(info->http_status >= 400 && info->http_status < 600);
        assert_true(info->exit_status > 0 && info->exit_status < 126);
        assert_int_equal(error_kind_from_code(info->code), i); /* codes are distinct */
    }
    assert_int_equal(error_kind_from_code("never-heard-of"), ERROR_INTERNAL);
}

static void test_set_and_prefix(void **state)
{
    struct error err = {0};
    char longer[700];
    (void)state;
    assert_int_equal(error_set_field(&err, -EINVAL, ERROR_INVALID, "/a", "is %d", 3), -EINVAL);
    error_prefix(&err, "disk '%s': ", "root");
    assert_string_equal(err.text, "disk 'root': is 3");
    assert_string_equal(err.field, "/a");
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    error_set(&err, -EIO, ERROR_INTERNAL, "%s", longer);
    error_prefix(&err, "p: ");
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_string_equal(err.text + sizeof err.text - 4, "...");
    assert_int_equal(error_set(NULL, -EIO, ERROR_INTERNAL, "nobody listens"), -EIO);
}

static void test_words_for_a_person(void **state)
{
    static const struct {
        const char *field, *text, *words;
    } rows[] = {
        {"", "there is no host", "there is no host"},
        {"/name", "must be short", "name must be short"},
        {"#/disks/0/size_bytes", "is 3, it must be more", "disks/0/size_bytes is 3, it must be more"},
        {"/flavor", "there is no flavor 'x'", "flavor: there is no flavor 'x'"},
        {"?filter", "a vm has no field 'a'", "filter: a vm has no field 'a'"},
        {"/name", "", "it did not work, and no reason is known"},
    };
    char buffer[100];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error err = {0};
        error_set_field(&err, -EINVAL, ERROR_INVALID, rows[i].field, "%s", rows[i].text);
        assert_string_equal(error_words(&err, buffer, sizeof buffer), rows[i].words);
    }
}

static void test_quote_keeps_a_line_whole(void **state)
{
    char buffer[16];
    (void)state;
    assert_string_equal(log_quote("a\"b", buffer, sizeof buffer), "\"a\\\"b\"");
    assert_string_equal(log_quote("\n\x1b", buffer, sizeof buffer), "\"\\x0a\\x1b\"");
    assert_true(strlen(log_quote("0123456789012345678901234567890", buffer, sizeof buffer)) < sizeof buffer);
}

static void test_log_keeps_a_line_whole(void **state)
{
    int ends[2], saved = dup(STDERR_FILENO);
    char line[100] = "";
    (void)state;
    assert_int_equal(pipe(ends), 0);
    assert_true(saved >= 0 && dup2(ends[1], STDERR_FILENO) >= 0);
    log_error("test", "text=%s", "a\n<3>b\x1b[2J\x7f");
    dup2(saved, STDERR_FILENO);
    assert_true(read(ends[0], line, sizeof line - 1) > 0);
    assert_string_equal(line, "<3>test text=a <3>b [2J \n");
    close(saved);
    close(ends[0]);
    close(ends[1]);
}

static void test_log_limit(void **state)
{
    struct log_limit limit = {0};
    uint64_t held_back = 99;
    (void)state;
    assert_true(log_limit_pass(&limit, 5, &held_back));
    assert_int_equal(held_back, 0);
    for (uint64_t ms = 5; ms < 5 + LOG_LIMIT_MS; ms += 1000)
        assert_false(log_limit_pass(&limit, ms, &held_back));
    assert_true(log_limit_pass(&limit, 5 + LOG_LIMIT_MS, &held_back));
    assert_int_equal(held_back, LOG_LIMIT_MS / 1000);
    assert_false(log_limit_pass(&limit, 6 + LOG_LIMIT_MS, &held_back));
}

static void test_list_take_allows_additions(void **state)
{
    struct list pending, firing, links[3];
    unsigned seen = 0;
    (void)state;
    list_init(&pending);
    list_init(&firing);
    list_append(&pending, &links[0]);
    list_append(&pending, &links[1]);
    list_take(&firing, &pending);
    assert_true(list_empty(&pending));
    LIST_FOREACH_SAFE(link, &firing)
    {
        list_remove(link);
        if (seen++ == 0)
            list_append(&pending, &links[2]);
    }
    assert_int_equal(seen, 2);
    assert_true(list_empty(&firing));
    assert_ptr_equal(pending.next, &links[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds_are_whole),
        cmocka_unit_test(test_set_and_prefix),
        cmocka_unit_test(test_words_for_a_person),
        cmocka_unit_test(test_quote_keeps_a_line_whole),
        cmocka_unit_test(test_log_keeps_a_line_whole),
        cmocka_unit_test(test_log_limit),
        cmocka_unit_test(test_list_take_allows_additions),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
