/* More, or less; see postcopy_pace.h. */
#include "migration/postcopy_pace.h"

void push_window_init(struct push_window *w)
{
    *w = (struct push_window){.pages = PUSH_WINDOW_PAGES_MIN};
}

void push_window_note(struct push_window *w, uint64_t way_us, bool is_asked)
{
    uint64_t most_us = is_asked ? PUSH_QUEUE_US_ASKED : PUSH_QUEUE_US, now_us = MAX(way_us, UINT64_C(1));
    w->least_us = w->least_us == 0 ? now_us : MIN(w->least_us, now_us);
    uint64_t queued_us = now_us - w->least_us;
    if (queued_us > most_us) {
        w->pages = MAX(w->pages - w->pages / 4, PUSH_WINDOW_PAGES_MIN);
        w->has_shrunk = true;
    } else if (queued_us <= most_us / 2) {
        w->pages = MIN(w->pages + (w->has_shrunk ? w->pages / 4 : w->pages), PUSH_WINDOW_PAGES_MAX);
    }
}

unsigned page_ahead_pages(struct page_ahead *a, uint64_t page)
{
    for (unsigned i = 0; i < PAGE_AHEAD_STRETCHES; i++) {
        if (a->stretches[i].pages == 0 || page < a->stretches[i].end || page - a->stretches[i].end > a->stretches[i].pages)
            continue;
        a->stretches[i].pages = MIN(a->stretches[i].pages * 2, PAGE_AHEAD_MAX);
        a->stretches[i].end = page + a->stretches[i].pages;
        return a->stretches[i].pages;
    }
    unsigned i = a->next++ % PAGE_AHEAD_STRETCHES;
    a->stretches[i].pages = PAGE_AHEAD_MIN;
    a->stretches[i].end = page + PAGE_AHEAD_MIN;
    return PAGE_AHEAD_MIN;
}
