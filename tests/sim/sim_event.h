/* The engine of the simulator: virtual time, an event heap, seeded random numbers, and actors that can crash, pause
 * and have clocks of their own. One seed = one history, on every machine: nothing here or above it reads a real
 * clock, real random numbers or the address of anything.
 *
 * Times are microseconds of true virtual time unless they say "local". */
#ifndef TESTS_SIM_SIM_EVENT_H
#define TESTS_SIM_SIM_EVENT_H

#include "common/base.h"

#define SIM_MS 1000ull
#define SIM_SECOND 1000000ull

struct sim;
struct sim_event;

/* Something that runs: a controller, an agent. Embedded. An event of an actor is dropped when the actor has crashed
 * since it was made, and put off while the actor is paused. */
struct sim_actor {
    unsigned id;           /* 1.. , unique: also its address in the network */
    const char *kind;      /* "controller", "agent" */
    bool up;
    uint64_t incarnation;  /* counts crashes */
    uint64_t paused_until_us;
    uint64_t clock_offset_us;
    int64_t clock_drift_ppm;
    void *owner;           /* of whoever embeds it */
};

typedef void (*sim_event_fn)(struct sim *sim, struct sim_event *event);
struct sim_event {
    uint64_t at_us, sequence;
    sim_event_fn fn;
    struct sim_actor *actor; /* NULL: the world's own */
    uint64_t incarnation;
    void *data;
    void (*drop)(void *data); /* frees data where the event never runs; may be NULL */
    uint64_t value;
};

struct sim {
    uint64_t now_us;
    uint64_t random;   /* state of the generator */
    uint64_t sequence; /* of the last event made */
    uint64_t events;   /* that ran */
    const struct sim_actor *ran; /* whose the last one was; NULL: the world's own */
    struct sim_event **heap;
    size_t heap_size, heap_capacity;
    bool verbose;
    bool trace; /* verbose, and what libraft says of itself */
    char violation[400]; /* the first one; empty: none */
};

void sim_init(struct sim *sim, uint64_t seed, bool verbose);
void sim_finish(struct sim *sim);

/* Make an event @delay_us from now; the caller may still set value and drop. */
struct sim_event *sim_after(struct sim *sim, uint64_t delay_us, sim_event_fn fn, struct sim_actor *actor, void *data);
/* Run the next event; false when there is none before @end_us, or after a violation. */
bool sim_step(struct sim *sim, uint64_t end_us);

uint64_t sim_random(struct sim *sim);
uint64_t sim_below(struct sim *sim, uint64_t bound); /* 0 .. bound - 1; 0 for 0 */
uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high);
bool sim_chance(struct sim *sim, unsigned per_thousand);

/* The actor's own clock (CLOCK_BOOTTIME of its host): never set back, but too fast or slow by its drift. */
uint64_t sim_local_us(const struct sim *sim, const struct sim_actor *actor);
/* How long @local_us of the actor's clock take. */
uint64_t sim_true_us(const struct sim_actor *actor, uint64_t local_us);

/* With --verbose: a line with the time. */
void sim_log(const struct sim *sim, const char *format, ...) PRINTF_LIKE(2, 3);
/* A promise was broken: remembered and, verbose or not, the run ends. */
void sim_violation(struct sim *sim, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
