/* What a store's list says is taken with care: it may be anything. And texts that are cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/backup_found.h"
#include "compute/agent/task_child.h"

#define ID(n) "00000000-0000-4000-8000-00000000000" n

static void take(struct backup_result *result, const char *line)
{
    json_t *said = json_loads(line, 0, NULL);
    assert_non_null(said);
    backup_found_add(said, result);
    json_decref(said);
}

/* Without what a backup needs it is listed as damaged; the report that carries it is one that a controller takes. */
static void without_what_it_needs(void **test)
{
    struct backup_result result = {0}, back = {0};
    struct bytes_writer out = {0};
    struct error err = {0};
    (void)test;
    take(&result, "{\"id\":\"" ID("1") "\",\"created_at\":\"2026-01-31T12:34:56.000Z\",\"vm_name\":\"a\"}");
    take(&result, "{\"id\":\"" ID("2") "\",\"vm_name\":\"a\"}");
    take(&result, "{\"id\":\"" ID("3") "\",\"created_at\":\"2026-01-31T12:34:56.000Z\",\"vm_name\":\"No Name\"}");
    take(&result, "{\"id\":\"" ID("4") "\",\"damage\":\"backup 4: it is damaged\"}");
    take(&result, "{\"id\":\"../5\",\"damage\":\"x\"}");
    take(&result, "{\"vm_name\":\"a\"}");
    take(&result, "{\"more\":true,\"damaged\":1,\"after\":\"" ID("5") "\"}");
    const struct backup_found *found = result.found.items;
    assert_int_equal(result.found.count, 4);
    assert_null(found[0].damage);
    assert_non_null(strstr(found[1].damage, "when it was made"));
    assert_non_null(strstr(found[2].damage, "vm_name"));
    assert_string_equal(found[3].damage, "backup 4: it is damaged");
    assert_string_equal(result.after, ID("5"));
    OBJECT_ENCODE(backup_result, &result, &out);
    if (OBJECT_DECODE(backup_result, (const char *)out.data, out.size, OBJECT_CREATE, &back, &err) < 0)
        fail_msg("%s %s", err.field, err.text);
    assert_int_equal(back.found.count, 4);
    OBJECT_CLEAR(backup_result, &result);
    OBJECT_CLEAR(backup_result, &back);
    bytes_writer_finish(&out);
}

/* No character is cut in two: the whole report would be refused. */
static void long_words(void **test)
{
    char line[2000] = "{\"backup\":\"" ID("1") "\",\"damage\":\"x", text[7];
    struct backup_result result = {0};
    (void)test;
    for (unsigned i = 0; i < 300; i++)
        strcat(line, "\xc3\xbc"); /* ü */
    strcat(line, "\"}");
    take(&result, line);
    assert_int_equal(strlen(((const struct backup_hurt *)result.hurt.items)->text), 399);
    OBJECT_CLEAR(backup_result, &result);
    text_copy(text, sizeof text, "abcd\xe2\x82\xac" "e"); /* € */
    assert_string_equal(text, "abcd");
    text_copy(text, sizeof text, "abc\xe2\x82\xac");
    assert_string_equal(text, "abc\xe2\x82\xac");
}

/* More than a report may hold: what is not told is not known, and that is said. */
static void too_much_to_tell(void **test)
{
    struct backup_result result = {0};
    struct bytes_writer out = {0};
    char line[600], damage[401];
    (void)test;
    memset(damage, 'x', 400);
    damage[400] = '\0';
    for (unsigned i = 0; i < 2000; i++) {
        snprintf(line, sizeof line, "{\"backup\":\"00000000-0000-4000-8000-%012u\",\"damage\":\"%s\"}", i, damage);
        take(&result, line);
        assert_int_equal(result.cut, result.hurt.count <= i);
    }
    OBJECT_ENCODE(backup_result, &result, &out);
    assert_true(result.cut && result.hurt.count > 500 && out.size < TASK_CHILD_LINE_BYTES_MAX);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(backup_result, &result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_what_it_needs),
        cmocka_unit_test(long_words),
        cmocka_unit_test(too_much_to_tell),
    };
    return cmocka_run_group_tests_name("backup_found", tests, NULL, NULL);
}
