/* Rounds in, decisions out; see precopy.h. */
#include "migration/precopy.h"

enum {
    PAGES_MEASURED_MIN = 64, /* fewer say nothing about the time that a page takes */
    PROGRESS_NUM = 5,        /* less than 5/6 of the best so far is progress */
    PROGRESS_DEN = 6,
    SLOW_NUM = 2,            /* more than 2/3 of what was sent was written again: all rounds together would take more than three
                              * times as long as to send what is left */
    SLOW_DEN = 3,
    LOW_DEN = 25,            /* so much above the best so far still counts as a low */
    LOW_ROUNDS = 4,          /* that it is waited for one */
};
#define THROTTLE_MOST 99u

void precopy_init(struct precopy *p, const struct precopy_settings *settings)
{
    *p = (struct precopy){.settings = *settings, .best_pages = UINT64_MAX};
    p->settings.throttle_max = MIN(p->settings.throttle_max, THROTTLE_MOST);
}

void precopy_without_postcopy(struct precopy *p)
{
    struct precopy_settings *s = &p->settings;
    if (s->postcopy == PRECOPY_POSTCOPY_NEVER)
        return;
    p->lacks_postcopy = true;
    s->postcopy = PRECOPY_POSTCOPY_NEVER;
    s->throttle_max = MIN(MAX(s->throttle_max, s->throttle_max_alone), THROTTLE_MOST);
}

static uint64_t multiply_saturated(uint64_t a, uint64_t b)
{
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* Of @dirty_pages, of which @again_pages were looked at in this round, too, those that will be elided. */
static uint64_t same_expect(const struct precopy *p, uint64_t dirty_pages, uint64_t again_pages)
{
    uint64_t again = MIN(again_pages, dirty_pages);
    return (uint64_t)((double)again * p->again_same + (double)(dirty_pages - again) * p->other_same);
}

uint64_t precopy_predict_us(const struct precopy *p, uint64_t dirty_pages, uint64_t again_pages)
{
    uint64_t same = MIN(same_expect(p, dirty_pages, again_pages), dirty_pages);
    uint64_t looked_ns = multiply_saturated(dirty_pages, p->ns_per_page);
    uint64_t sent_ns = multiply_saturated(dirty_pages - same, p->ns_per_sent);
    uint64_t pages_us = MAX(looked_ns, sent_ns) / 1000;
    return pages_us > UINT64_MAX - p->settings.fixed_us ? UINT64_MAX : pages_us + p->settings.fixed_us;
}

/* Half of the old and half of the new, but a sudden slowing down counts in full: a pause that is predicted too short is
 * worse than one that is predicted too long. */
static void time_learn(uint64_t *ns, uint64_t pages, uint64_t took_us)
{
    if (pages == 0 || (pages < PAGES_MEASURED_MIN && *ns != 0))
        return;
    uint64_t now = MAX(multiply_saturated(took_us, 1000) / pages, 1);
    *ns = *ns == 0 ? now : MAX(now, *ns / 2 + now / 2);
}

/* What the first round elides, mostly zeros, says nothing about later ones. */
static void speed_learn(struct precopy *p, const struct precopy_round *r)
{
    uint64_t same = MIN(r->same_pages, r->pages), again = MIN(p->again_pages, r->pages), again_same = MIN(same, again);
    time_learn(&p->ns_per_page, r->pages, r->took_us);
    time_learn(&p->ns_per_sent, r->pages - same, r->took_us);
    p->again_same = p->rounds > 1 && again > 0 ? (double)again_same / (double)again : 0;
    p->other_same = p->rounds > 1 && r->pages > again ? (double)(same - again_same) / (double)(r->pages - again) : 0;
    p->again_pages = r->again_pages;
}

/* A round in which everything was written again tells only the least that the rate can be. */
static void rate_learn(struct precopy *p, const struct precopy_round *r)
{
    uint64_t seen = multiply_saturated(r->dirty_pages, 1000000) / MAX(r->took_us, 1);
    p->dirty_per_s = MAX(seen, r->dirty_per_s);
}

/* The first round is measured by what it has sent: who has written nearly all of that again will do so in the next. */
static bool has_progress(struct precopy *p, const struct precopy_round *r)
{
    uint64_t before = p->best_pages == UINT64_MAX ? r->pages : p->best_pages;
    p->best_pages = MIN(p->best_pages, r->dirty_pages);
    return r->dirty_pages < before / PROGRESS_DEN * PROGRESS_NUM;
}

/* A guest that is seen to write nearly as fast as can be sent, or faster, will not become better by waiting. */
static bool is_hopeless(const struct precopy *p, const struct precopy_round *r)
{
    return p->ns_per_page && r->dirty_per_s > 1000000000ull / p->ns_per_page / PROGRESS_DEN * PROGRESS_NUM;
}

static void throttle_raise(struct precopy *p, const struct precopy_round *r)
{
    unsigned runs = 100 - p->throttle, wanted = runs / 2;
    uint64_t sends_per_s = p->ns_per_page ? 1000000000ull / p->ns_per_page : 0;
    /* dirty_per_s is what it writes in the time it has; half of what can be sent is wanted. */
    if (r->dirty_per_s && p->dirty_per_s > sends_per_s / 2)
        wanted = (unsigned)MIN((uint64_t)wanted, multiply_saturated(runs, sends_per_s) / 2 / p->dirty_per_s);
    p->throttle = MIN(100 - MAX(wanted, 1u), p->settings.throttle_max);
    p->stalled = 0;
    p->best_pages = r->dirty_pages;
}

/* At full throttle, and it would go on so for ever? What gets less slowly is not stuck, so that this ends, too: each sixth. */
static bool is_stuck(struct precopy *p, const struct precopy_round *r)
{
    const struct precopy_settings *s = &p->settings;
    if (s->total_us_max || (s->throttle_max == 0 && !p->lacks_postcopy))
        return false;
    if (p->stuck_rounds == 0 || p->throttle < s->throttle_max || r->dirty_pages < p->stuck_pages / PROGRESS_DEN * PROGRESS_NUM) {
        p->stuck_rounds = 1;
        p->stuck_pages = r->dirty_pages;
        p->stuck_since_us = r->elapsed_us;
        return false;
    }
    return ++p->stuck_rounds > PRECOPY_STUCK_ROUNDS && r->elapsed_us - p->stuck_since_us >= PRECOPY_STUCK_US;
}

static struct precopy_decision decide(const struct precopy *p, enum precopy_action action, uint64_t predicted_us,
                                      const char *why)
{
    return (struct precopy_decision){action, p->throttle, predicted_us, why};
}

struct precopy_decision precopy_decide(struct precopy *p, const struct precopy_round *r)
{
    const struct precopy_settings *s = &p->settings;
    p->rounds++;
    speed_learn(p, r);
    rate_learn(p, r);
    uint64_t predicted_us = precopy_predict_us(p, r->dirty_pages, r->again_pages);
    p->stalled = has_progress(p, r) ? 0 : p->stalled + 1;
    if (s->postcopy == PRECOPY_POSTCOPY_AT_ONCE)
        return decide(p, PRECOPY_POSTCOPY, predicted_us, "post-copy was asked for");
    if (predicted_us <= s->downtime_us)
        return decide(p, PRECOPY_PAUSE, predicted_us, "the predicted pause is within the limit");
    if (s->total_us_max && r->elapsed_us >= s->total_us_max)
        return decide(p, PRECOPY_GIVE_UP, predicted_us, "the time for it is over");
    if (is_stuck(p, r) && predicted_us > s->downtime_max_us && s->postcopy == PRECOPY_POSTCOPY_NEVER)
        return decide(p, PRECOPY_GIVE_UP, predicted_us, "it does not get less, though the guest is slowed down as far as it may be");
    bool is_slow = r->pages && r->dirty_pages > multiply_saturated(r->pages, SLOW_NUM) / SLOW_DEN;
    if (s->postcopy == PRECOPY_POSTCOPY_FALLBACK && is_slow && p->throttle >= s->throttle_max && predicted_us > s->downtime_max_us)
        return decide(p, PRECOPY_POSTCOPY, predicted_us, "more rounds would take long");
    if (p->stalled < (p->throttle || is_hopeless(p, r) ? 1 : MAX(s->patience, 1u)))
        return decide(p, PRECOPY_ROUND, predicted_us, p->throttle ? "the guest is slowed down" : "");
    if (p->throttle < s->throttle_max) {
        throttle_raise(p, r);
        return decide(p, PRECOPY_ROUND, predicted_us, "the guest writes faster than can be sent; it is slowed down");
    }
    bool is_low = r->dirty_pages <= p->best_pages + p->best_pages / LOW_DEN;
    if (predicted_us <= s->downtime_max_us && !is_low && p->stalled < MAX(s->patience, 1u) + LOW_ROUNDS)
        return decide(p, PRECOPY_ROUND, predicted_us, "it does not get less; waiting for a moment when little is left");
    if (predicted_us <= s->downtime_max_us)
        return decide(p, PRECOPY_PAUSE, predicted_us, "it does not get less, and the longest pause allows it");
    if (s->postcopy == PRECOPY_POSTCOPY_FALLBACK)
        return decide(p, PRECOPY_POSTCOPY, predicted_us, "it does not get less");
    return decide(p, PRECOPY_ROUND, predicted_us, "the guest writes faster than can be sent");
}

uint64_t precopy_expect_us(const struct precopy *p, uint64_t dirty_pages)
{
    uint64_t round_us = multiply_saturated(dirty_pages, p->ns_per_page) / 1000, sum = 0;
    uint64_t sends_per_s = p->ns_per_page ? 1000000000ull / p->ns_per_page : 0;
    if (sends_per_s == 0 || p->dirty_per_s >= sends_per_s)
        return UINT64_MAX;
    /* Each round shrinks by the ratio of both rates. */
    for (unsigned i = 0; i < 64 && round_us + p->settings.fixed_us > p->settings.downtime_us; i++) {
        sum += round_us;
        round_us = multiply_saturated(round_us, p->dirty_per_s) / sends_per_s;
    }
    return sum;
}
