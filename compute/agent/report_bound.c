/* See report_bound.h. */
#include "compute/agent/report_bound.h"

#include <string.h>

#include "common/websocket_frame.h"

static size_t bytes_of(const struct object_desc *desc, const void *object)
{
    struct bytes_writer out = {0};
    object_encode(desc, object, &out);
    size_t size = out.size;
    bytes_writer_finish(&out);
    return size;
}

void report_words(char *text)
{
    for (char *at = text; *at != '\0';) {
        size_t size = 1;
        while (size < 4 && ((unsigned char)at[size] & 0xc0) == 0x80 && !websocket_valid_utf8((const uint8_t *)at, size))
            size++;
        if ((unsigned char)*at >= ' ' && *at != 0x7f && websocket_valid_utf8((const uint8_t *)at, size))
            at += size;
        else
            *at++ = '?';
    }
}

static void shorten(char *text)
{
    if (strlen(text) <= REPORT_REASON_BYTES)
        return;
    text[REPORT_REASON_BYTES] = '\0';
    text_trim(text);
}

static void reasons_each(struct node_report *report, void (*change)(char *reason))
{
    const struct {
        struct object_list *list;
        size_t size, reason;
    } kinds[] = {{&report->vms, sizeof(struct vm_seen), offsetof(struct vm_seen, reason)},
                 {&report->images, sizeof(struct image_seen), offsetof(struct image_seen, reason)},
                 {&report->pools, sizeof(struct pool_seen), offsetof(struct pool_seen, reason)},
                 {&report->volumes, sizeof(struct volume_seen), offsetof(struct volume_seen, reason)}};
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
        for (size_t i = 0; i < kinds[k].list->count; i++) {
            char *reason = *(char **)((char *)kinds[k].list->items + i * kinds[k].size + kinds[k].reason);
            if (reason != NULL)
                change(reason);
        }
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
    reasons_each(report, report_words);
    size_t size = bytes_of(&node_report_desc, report), at = 0;
    if (size <= bytes_max)
        return false;
    reasons_each(report, shorten);
    size = bytes_of(&node_report_desc, report);
    while (size > bytes_max && report->tasks.count > 1) {
        size_t largest = task_largest(report, &at);
        size -= MIN(size, largest);
        task_leave_out(report, at);
    }
    return true;
}
