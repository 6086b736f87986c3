/* Event heap, virtual time and random numbers (splitmix64). Events of one time run in the order in which they were
 * made, so the heap's shape never shows. */
#include "tests/sim/sim_event.h"

#include <stdarg.h>
#include <stdio.h>

void sim_init(struct sim *sim, uint64_t seed, bool verbose)
{
    *sim = (struct sim){.random = seed * 0x2545f4914f6cdd1dull + 1, .verbose = verbose};
    for (int i = 0; i < 4; i++)
        sim_random(sim);
}

static void event_drop(struct sim_event *event)
{
    if (event->drop != NULL)
        event->drop(event->data);
    free(event);
}

void sim_finish(struct sim *sim)
{
    for (size_t i = 0; i < sim->heap_size; i++)
        event_drop(sim->heap[i]);
    free(sim->heap);
    sim->heap = NULL;
    sim->heap_size = 0;
}

/* --- The heap --------------------------------------------------------------------------------------------------- */

static bool event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_us < b->at_us || (a->at_us == b->at_us && a->sequence < b->sequence);
}

static void heap_push(struct sim *sim, struct sim_event *event)
{
    size_t i;

    if (sim->heap_size == sim->heap_capacity) {
        sim->heap_capacity = MAX(1024, sim->heap_capacity * 2);
        sim->heap = xrealloc(sim->heap, sim->heap_capacity * sizeof(*sim->heap));
    }
    for (i = sim->heap_size++; i > 0 && event_before(event, sim->heap[(i - 1) / 2]); i = (i - 1) / 2)
        sim->heap[i] = sim->heap[(i - 1) / 2];
    sim->heap[i] = event;
}

static struct sim_event *heap_pop(struct sim *sim)
{
    struct sim_event *first = sim->heap[0], *last = sim->heap[--sim->heap_size];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < sim->heap_size) {
        if (child + 1 < sim->heap_size && event_before(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (!event_before(sim->heap[child], last))
            break;
        sim->heap[i] = sim->heap[child];
        i = child;
    }
    if (sim->heap_size > 0)
        sim->heap[i] = last;
    return first;
}

struct sim_event *sim_after(struct sim *sim, uint64_t delay_us, sim_event_fn fn, struct sim_actor *actor, void *data)
{
    struct sim_event *event = NEW(struct sim_event);

    *event = (struct sim_event){.at_us = sim->now_us + delay_us,
                                .sequence = ++sim->sequence,
                                .fn = fn,
                                .actor = actor,
                                .incarnation = actor != NULL ? actor->incarnation : 0,
                                .data = data};
    heap_push(sim, event);
    return event;
}

bool sim_step(struct sim *sim, uint64_t end_us)
{
    struct sim_event *event;
    struct sim_actor *actor;

    if (sim->heap_size == 0 || sim->heap[0]->at_us > end_us || sim->violation[0] != '\0')
        return false;
    event = heap_pop(sim);
    sim->now_us = event->at_us;
    actor = event->actor;
    if (actor != NULL && (!actor->up || actor->incarnation != event->incarnation)) {
        event_drop(event);
        return true;
    }
    if (actor != NULL && actor->paused_until_us > sim->now_us) {
        event->at_us = actor->paused_until_us; /* its sequence keeps the order among those put off */
        heap_push(sim, event);
        return true;
    }
    sim->events++;
    sim->ran = actor;
    event->fn(sim, event);
    free(event);
    return true;
}

/* --- Random numbers and clocks ---------------------------------------------------------------------------------- */

uint64_t sim_random(struct sim *sim)
{
    uint64_t z = (sim->random += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t sim_below(struct sim *sim, uint64_t bound)
{
    return bound == 0 ? 0 : sim_random(sim) % bound;
}

uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high)
{
    return low + sim_below(sim, high - low + 1);
}

bool sim_chance(struct sim *sim, unsigned per_thousand)
{
    return sim_below(sim, 1000) < per_thousand;
}

uint64_t sim_local_us(const struct sim *sim, const struct sim_actor *actor)
{
    int64_t now = (int64_t)sim->now_us;

    return actor->clock_offset_us + (uint64_t)(now + now * actor->clock_drift_ppm / 1000000);
}

uint64_t sim_true_us(const struct sim_actor *actor, uint64_t local_us)
{
    return (uint64_t)((int64_t)local_us * 1000000 / (1000000 + actor->clock_drift_ppm));
}

/* --- Words ------------------------------------------------------------------------------------------------------ */

static void sim_print(const struct sim *sim, const char *prefix, const char *format, va_list args)
{
    printf("%10.6f %s", (double)sim->now_us / 1e6, prefix);
    vprintf(format, args);
    putchar('\n');
}

void sim_log(const struct sim *sim, const char *format, ...)
{
    va_list args;

    if (!sim->verbose)
        return;
    va_start(args, format);
    sim_print(sim, "", format, args);
    va_end(args);
}

void sim_violation(struct sim *sim, const char *format, ...)
{
    va_list args;

    if (sim->violation[0] != '\0')
        return;
    va_start(args, format);
    vsnprintf(sim->violation, sizeof(sim->violation), format, args);
    va_end(args);
    sim_log(sim, "VIOLATION %s", sim->violation);
}
