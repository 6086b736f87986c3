/* See report_bound.h. */
#include "compute/agent/report_bound.h"

#include <string.h>

static size_t bytes_of(const struct object_desc *desc, const void *object)
{
    struct bytes_writer out = {0};
    object_encode(desc, object, &out);
    size_t size = out.size;
    bytes_writer_finish(&out);
    return size;
}

static void shorten(char *text)
{
    if (text == NULL || strlen(text) <= REPORT_REASON_BYTES)
        return;
    text[REPORT_REASON_BYTES] = '\0';
    text_trim(text);
}

static void reasons_shorten(struct node_report *report)
{
    for (size_t i = 0; i < report->vms.count; i++)
        shorten(((struct vm_seen *)report->vms.items)[i].reason);
    for (size_t i = 0; i < report->images.count; i++)
        shorten(((struct image_seen *)report->images.items)[i].reason);
    for (size_t i = 0; i < report->pools.count; i++)
        shorten(((struct pool_seen *)report->pools.items)[i].reason);
    for (size_t i = 0; i < report->volumes.count; i++)
        shorten(((struct volume_seen *)report->volumes.items)[i].reason);
}

/* The one with most to tell; its size. */
static size_t task_largest(const struct node_report *report, size_t *ret_at)
{
    size_t largest = 0;
    for (size_t i = 0; i < report->tasks.count; i++) {
        size_t bytes = bytes_of(&task_seen_desc, (const struct task_seen *)report->tasks.items + i);
        if (bytes > largest) {
            largest = bytes;
            *ret_at = i;
        }
    }
    return largest;
}

static void task_leave_out(struct node_report *report, size_t at)
{
    struct task_seen *tasks = report->tasks.items;
    OBJECT_CLEAR(task_seen, &tasks[at]);
    memmove(&tasks[at], &tasks[at + 1], (report->tasks.count - at - 1) * sizeof *tasks);
    report->tasks.count--;
}

bool report_bound(struct node_report *report, size_t bytes_max)
{
    size_t size = bytes_of(&node_report_desc, report), at = 0;
    if (size <= bytes_max)
        return false;
    reasons_shorten(report);
    size = bytes_of(&node_report_desc, report);
    while (size > bytes_max && report->tasks.count > 1) {
        size_t largest = task_largest(report, &at);
        size -= MIN(size, largest);
        task_leave_out(report, at);
    }
    return true;
}
