/* Who executed when, in bounds; see the header. */
#include "cli/drill_runs.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct drill_run *find(struct drill_runs *runs, const char *host, const char *vm, uint64_t epoch)
{
    for (size_t i = 0; i < runs->count; i++)
        if (runs->items[i].epoch == epoch && strcmp(runs->items[i].vm, vm) == 0 && strcmp(runs->items[i].host, host) == 0)
            return &runs->items[i];
    return NULL;
}

/* The latest time, by the answer @sight, at which the VMM was @age_us old. */
static int64_t latest(const struct drill_sight *sight, int64_t age_us)
{
    int64_t older_us = age_us - sight->age_us, drift_us = (older_us < 0 ? -older_us : older_us) * DRILL_DRIFT_PER_CENT / 100;
    return sight->came_us + older_us + drift_us + DRILL_AGE_US;
}

/* Kept among the others; a VMM that is younger than before is another one. */
static const struct drill_sight *take_sight(struct drill_run *run, const struct vm_observation *seen, int64_t came_us)
{
    struct drill_sight sight = {.age_us = (int64_t)seen->age_ms * 1000, .came_us = came_us};
    if (run->sight_count > 0 && (sight.age_us < run->sights[(run->sight_count - 1) % DRILL_SIGHTS].age_us || seen->vcpu_ns < run->vcpu_ns)) {
        run->sight_count = 0;
        run->restarted = true;
    }
    struct drill_sight *at = &run->sights[run->sight_count++ % DRILL_SIGHTS];
    *at = sight;
    return at;
}

/* It has executed by when this answer was true, and not since then as far as is known. */
static void executed_until(struct drill_run *run, const struct drill_sight *sight)
{
    run->last_until_us = sight->came_us;
    run->last_age_us = sight->age_us;
    for (unsigned i = 0; i < MIN(run->sight_count, DRILL_SIGHTS); i++)
        run->last_until_us = MIN(run->last_until_us, latest(&run->sights[i], sight->age_us));
}

static void begin(struct drill_runs *runs, const char *host, const struct vm_observation *seen, int64_t asked_us, int64_t came_us)
{
    if (runs->count == DRILL_RUNS_MAX) {
        runs->full = true;
        return;
    }
    runs->items = xrealloc(runs->items, (runs->count + 1) * sizeof *runs->items);
    struct drill_run *run = &runs->items[runs->count++];
    *run = (struct drill_run){.epoch = seen->epoch,
                              .vcpu_ns = seen->vcpu_ns,
                              .begun_us = asked_us - (int64_t)seen->age_ms * 1000 - DRILL_TICK_US,
                              .asked_us = asked_us,
                              .came_us = came_us,
                              .quiet_from_us = came_us,
                              .executed = seen->vcpu_ns > 0};
    snprintf(run->host, sizeof run->host, "%s", host);
    snprintf(run->vm, sizeof run->vm, "%s", seen->id);
    const struct drill_sight *sight = take_sight(run, seen, came_us);
    if (run->executed) {
        run->first_until_us = came_us;
        run->last_from_us = run->begun_us;
        executed_until(run, sight);
    }
}

void drill_runs_add(struct drill_runs *runs, const char *host, const struct vm_observation *seen, int64_t asked_us, int64_t came_us)
{
    if (seen->id == NULL)
        return;
    struct drill_run *run = find(runs, host, seen->id, seen->epoch);
    if (run == NULL) {
        begin(runs, host, seen, asked_us, came_us);
        return;
    }
    const struct drill_sight *sight = take_sight(run, seen, came_us);
    if (seen->vcpu_ns != run->vcpu_ns) { /* less: its VMM was started again on the same host */
        if (run->executed)
            run->stall_us = MAX(run->stall_us, run->asked_us - run->quiet_from_us);
        else
            run->first_until_us = came_us;
        run->executed = true;
        run->last_from_us = run->asked_us;
        executed_until(run, sight);
        run->quiet_from_us = came_us;
        run->vcpu_ns = seen->vcpu_ns;
    } else if (run->executed && !run->restarted) {
        run->last_until_us = MIN(run->last_until_us, latest(sight, run->last_age_us));
    }
    run->asked_us = asked_us;
    run->came_us = came_us;
}

static enum drill_verdict judge_pair(const struct drill_run *a, const struct drill_run *b)
{
    if (a->last_until_us < b->begun_us || b->last_until_us < a->begun_us)
        return DRILL_ONCE;
    if (a->first_until_us < b->last_from_us && b->first_until_us < a->last_from_us)
        return DRILL_TWICE;
    return DRILL_UNSURE;
}

enum drill_verdict drill_runs_judge(const struct drill_runs *runs, const char *vm, char *why, size_t why_size)
{
    enum drill_verdict worst = runs->full ? DRILL_UNSURE : DRILL_ONCE;
    snprintf(why, why_size, "%s", runs->full ? "there was more to watch than is kept" : "");
    for (size_t i = 0; i < runs->count; i++)
        for (size_t j = i + 1; j < runs->count; j++) {
            const struct drill_run *a = &runs->items[i], *b = &runs->items[j];
            if (!a->executed || !b->executed || strcmp(a->vm, vm) != 0 || strcmp(b->vm, vm) != 0 || strcmp(a->host, b->host) == 0)
                continue;
            enum drill_verdict verdict = judge_pair(a, b);
            if (verdict <= worst)
                continue;
            worst = verdict;
            snprintf(why, why_size,
                     verdict == DRILL_TWICE ? "it executed on %s (epoch %" PRIu64 ") and on %s (epoch %" PRIu64 ") at the same time"
                                            : "the answers of %s (epoch %" PRIu64 ") and %s (epoch %" PRIu64
                                              ") came too late to tell their times apart",
                     a->host, a->epoch, b->host, b->epoch);
        }
    return worst;
}

const struct drill_run *drill_runs_find(const struct drill_runs *runs, const char *vm, const char *host)
{
    const struct drill_run *found = NULL;
    for (size_t i = 0; i < runs->count; i++) {
        const struct drill_run *run = &runs->items[i];
        if (strcmp(run->vm, vm) == 0 && strcmp(run->host, host) == 0 && (found == NULL || run->epoch > found->epoch))
            found = run;
    }
    return found;
}

const struct drill_run *drill_runs_elsewhere(const struct drill_runs *runs, const char *vm, const char *host, uint64_t epoch)
{
    const struct drill_run *found = NULL;
    for (size_t i = 0; i < runs->count; i++) {
        const struct drill_run *run = &runs->items[i];
        if (run->executed && run->epoch > epoch && strcmp(run->vm, vm) == 0 && strcmp(run->host, host) != 0 &&
            (found == NULL || run->first_until_us < found->first_until_us))
            found = run;
    }
    return found;
}

const char *drill_verdict_name(enum drill_verdict verdict)
{
    static const char *const names[] = {"once", "unsure", "twice"};
    return names[verdict];
}

void drill_runs_finish(struct drill_runs *runs)
{
    free(runs->items);
    *runs = (struct drill_runs){0};
}
