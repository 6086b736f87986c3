/* One scan over the hosts; see the header. */
#include "scheduler/place.h"

#include <stdio.h>
#include <string.h>

#define SUMMARY_BYTES_MAX 700 /* bound of placement.summary */
#define REASON_BYTES_MAX 300  /* bound of placement_host.reason */

void place_vm(const struct scheduler_view *view, const struct place_request *request, struct place_result *result)
{
    if (result->capacity < view->count) {
        result->capacity = view->count;
        result->verdicts = xrealloc(result->verdicts, result->capacity * sizeof *result->verdicts);
        result->scores = xrealloc(result->scores, result->capacity * sizeof *result->scores);
    }
    memset(result->rejected_by, 0, sizeof result->rejected_by);
    result->count = view->count;
    result->chosen = PLACE_NONE;
    uint32_t best = 0;
    for (size_t i = 0; i < view->count; i++) {
        enum filter verdict = filter_host(view, i, request);
        uint32_t score = verdict == FILTER_PASSED ? score_host(view, i, request) : 0;
        result->verdicts[i] = (uint8_t)verdict;
        result->scores[i] = score;
        result->rejected_by[verdict]++;
        if (score > best) { /* not >=: of equals the first name wins */
            best = score;
            result->chosen = i;
        }
    }
}

void place_result_finish(struct place_result *result)
{
    if (result == NULL)
        return;
    free(result->verdicts);
    free(result->scores);
    *result = (struct place_result){0};
}

/* Of the hosts refused by @filter the one that comes nearest: with most memory or processors left. */
static size_t nearest(const struct scheduler_view *view, const struct place_result *result, enum filter filter)
{
    const uint64_t *all = filter == FILTER_MEMORY ? view->memory_bytes : view->vcpus;
    const uint64_t *used = filter == FILTER_MEMORY ? view->committed_memory_bytes : view->committed_vcpus;
    size_t best = PLACE_NONE;
    uint64_t best_free = 0;
    for (size_t i = 0; i < result->count; i++) {
        uint64_t left = all[i] > used[i] ? all[i] - used[i] : 0;
        if (result->verdicts[i] == filter && (best == PLACE_NONE || left > best_free)) {
            best = i;
            best_free = left;
        }
    }
    return best;
}

static void add(char *buffer, size_t size, size_t *length, const char *text)
{
    size_t n = MIN(strlen(text), size - 1 - *length);
    memcpy(buffer + *length, text, n);
    *length += n;
    buffer[*length] = '\0';
}

static void summary_none(const struct scheduler_view *view, const struct place_request *request,
                         const struct place_result *result, char *buffer, size_t size)
{
    size_t length = 0;
    add(buffer, size, &length, result->count == 0 ? "no host fits: there are no hosts" : "no host fits: ");
    const char *separator = "";
    for (unsigned filter = FILTER_PASSED + 1; filter < FILTER_COUNT; filter++) {
        char piece[128 + REASON_BYTES_MAX], reason[REASON_BYTES_MAX];
        if (result->rejected_by[filter] == 0)
            continue;
        size_t host = nearest(view, result, filter);
        filter_reason(view, host, request, filter, reason, sizeof reason);
        snprintf(piece, sizeof piece, "%s%zu %s (%s%.63s: %s)", separator, result->rejected_by[filter], filter_words(filter),
                 filter == FILTER_MEMORY || filter == FILTER_VCPUS ? "nearest is " : "", view->names[host], reason);
        add(buffer, size, &length, piece);
        separator = ", ";
    }
}

void place_summary(const struct scheduler_view *view, const struct place_request *request,
                   const struct place_result *result, char *buffer, size_t size)
{
    if (result->chosen == PLACE_NONE) {
        summary_none(view, request, result, buffer, MIN(size, (size_t)SUMMARY_BYTES_MAX));
        return;
    }
    uint32_t fill = score_fill(view, result->chosen, request);
    if (result->rejected_by[FILTER_PASSED] == 1)
        snprintf(buffer, size, "%s, the only one of %zu hosts that fits: %u %% full with it", view->names[result->chosen],
                 result->count, fill / 10);
    else
        snprintf(buffer, size, "%s, the best of %zu hosts that fit: %u %% full with it", view->names[result->chosen],
                 result->rejected_by[FILTER_PASSED], fill / 10);
}

struct ranked {
    size_t host;
    uint32_t score;
};

static int compare_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->host < y->host ? -1 : x->host > y->host;
}

static void explain_host(const struct scheduler_view *view, const struct place_request *request,
                         const struct place_result *result, size_t i, struct placement_host *ret)
{
    char reason[REASON_BYTES_MAX];
    enum filter verdict = result->verdicts[i];
    OBJECT_TEXT(placement_host, ret, host, view->names[i]);
    OBJECT_SET(placement_host, ret, chosen, i == result->chosen);
    if (verdict == FILTER_PASSED) {
        uint32_t fill = score_fill(view, i, request);
        snprintf(reason, sizeof reason, "would be %u %% full with it: %s", fill / 10,
                 fill <= SCORE_SPREAD_BELOW + SCORE_BUCKET - 1 ? "up to half full, the emptiest host is preferred"
                                                               : "above half full, the fullest host is preferred");
        OBJECT_SET(placement_host, ret, score, result->scores[i]);
    } else {
        filter_reason(view, i, request, verdict, reason, sizeof reason);
        OBJECT_TEXT(placement_host, ret, rejected, filter_name(verdict));
    }
    OBJECT_TEXT(placement_host, ret, reason, reason);
}

void place_explain(const struct scheduler_view *view, const struct place_request *request,
                   const struct place_result *result, struct placement *ret)
{
    char summary[SUMMARY_BYTES_MAX];
    CLEANUP_FREE struct ranked *ranks = xcalloc(result->count + 1, sizeof *ranks);
    for (size_t i = 0; i < result->count; i++)
        ranks[i] = (struct ranked){i, result->scores[i]};
    qsort(ranks, result->count, sizeof *ranks, compare_rank);
    if (result->chosen != PLACE_NONE)
        OBJECT_TEXT(placement, ret, host, view->names[result->chosen]);
    place_summary(view, request, result, summary, sizeof summary);
    OBJECT_TEXT(placement, ret, summary, summary);
    ret->hosts.items = xcalloc(result->count + 1, sizeof(struct placement_host)); /* one allocation, not one each */
    ret->hosts.count = result->count;
    object_mark(&placement_desc, ret, "hosts");
    for (size_t i = 0; i < result->count; i++)
        explain_host(view, request, result, ranks[i].host, (struct placement_host *)ret->hosts.items + i);
}
