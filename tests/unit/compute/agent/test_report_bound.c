/* A report is never larger than the controllers take, and what is left out of it is told by a later one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/report_bound.h"

#define ID "00000000-0000-4000-8000-%012u"
enum { TASKS = 4, HURT = 800, VMS = 1500 };

static void report_fill(struct node_report *report)
{
    char id[37], text[401] = "";
    for (unsigned i = 0; i < 200; i++)
        strcat(text, "\xc3\xbc");
    for (unsigned i = 0; i < VMS; i++) {
        struct vm_seen *vm = OBJECT_ADD(node_report, report, vms);
        snprintf(id, sizeof id, ID, i);
        OBJECT_TEXT(vm_seen, vm, id, id);
        OBJECT_TEXT(vm_seen, vm, reason, text);
        OBJECT_SET(vm_seen, vm, epoch, 1);
        OBJECT_SET(vm_seen, vm, state, vm_state_RUNNING);
    }
    for (unsigned i = 0; i < TASKS; i++) {
        struct task_seen *task = OBJECT_ADD(node_report, report, tasks);
        snprintf(id, sizeof id, ID, i);
        OBJECT_TEXT(task_seen, task, id, id);
        OBJECT_SET(task_seen, task, state, i == 0 ? operation_state_RUNNING : operation_state_SUCCEEDED);
        object_mark(&task_seen_desc, task, "backup");
        for (unsigned k = 0; i > 0 && k < HURT; k++) {
            struct backup_hurt *hurt = OBJECT_ADD(backup_result, &task->backup, hurt);
            OBJECT_TEXT(backup_hurt, hurt, id, id);
            OBJECT_TEXT(backup_hurt, hurt, text, text);
        }
    }
}

static size_t bytes_of(const struct node_report *report)
{
    struct bytes_writer out = {0};
    OBJECT_ENCODE(node_report, report, &out);
    size_t size = out.size;
    bytes_writer_finish(&out);
    return size;
}

static void fits_and_goes_on(void **test)
{
    struct node_report report = {0};
    (void)test;
    report_fill(&report);
    assert_true(bytes_of(&report) > REPORT_BYTES_MAX);
    assert_true(report_bound(&report, REPORT_BYTES_MAX));
    assert_true(bytes_of(&report) <= REPORT_BYTES_MAX);
    assert_int_equal(report.vms.count, VMS); /* what the host has is all there */
    assert_int_equal(strlen(((const struct vm_seen *)report.vms.items)->reason), REPORT_REASON_BYTES);
    assert_true(report.tasks.count >= 2 && report.tasks.count < TASKS); /* and one that tells of its result, for the next ones to follow */
    assert_int_equal(((const struct task_seen *)report.tasks.items)[0].state, operation_state_RUNNING);
    assert_false(report_bound(&report, REPORT_BYTES_MAX));
    OBJECT_CLEAR(node_report, &report);
}

/* Of a reason that another host has given, say: the controllers take the report all the same. */
static void odd_words_are_made_plain(void **test)
{
    static const char *const odd[] = {"from n2: \x01\x1b[2J", "cut: \xc3", "cut in the \xe2\x82 middle", "\x7f", "\xff\xfe", "as it is: \xc3\xbc \xe2\x82\xac"};
    struct node_report report = {0};
    const char *rule;
    (void)test;
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        OBJECT_TEXT(vm_seen, (struct vm_seen *)OBJECT_ADD(node_report, &report, vms), reason, odd[i]);
        OBJECT_TEXT(image_seen, (struct image_seen *)OBJECT_ADD(node_report, &report, images), reason, odd[i]);
        OBJECT_TEXT(pool_seen, (struct pool_seen *)OBJECT_ADD(node_report, &report, pools), reason, odd[i]);
        OBJECT_TEXT(volume_seen, (struct volume_seen *)OBJECT_ADD(node_report, &report, volumes), reason, odd[i]);
    }
    assert_false(report_bound(&report, REPORT_BYTES_MAX));
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        assert_true(text_format_ok(FORMAT_any, ((struct vm_seen *)report.vms.items)[i].reason, &rule));
        assert_true(text_format_ok(FORMAT_any, ((struct image_seen *)report.images.items)[i].reason, &rule));
        assert_true(text_format_ok(FORMAT_any, ((struct pool_seen *)report.pools.items)[i].reason, &rule));
        assert_true(text_format_ok(FORMAT_any, ((struct volume_seen *)report.volumes.items)[i].reason, &rule));
    }
    assert_string_equal(((struct image_seen *)report.images.items)[0].reason, "from n2: ??[2J");
    assert_string_equal(((struct image_seen *)report.images.items)[5].reason, odd[5]);
    OBJECT_CLEAR(node_report, &report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fits_and_goes_on), cmocka_unit_test(odd_words_are_made_plain)};
    return cmocka_run_group_tests_name("report_bound", tests, NULL, NULL);
}
