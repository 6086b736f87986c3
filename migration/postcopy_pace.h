/* How much of a post-copy is on its way at a time: pure, no clock.
 *
 * The target's guest runs and waits for pages one by one. What it asks for comes behind all that was sent before and is still in the
 * link's queues, so no more is put there than is of use.
 *
 * Pushed is a window of pages at a time, while the one before it is waited for. The way of a window, from the word behind it to the
 * answer, tells how long the queue is: what it takes longer than the shortest way so far is time spent in queues. The window grows
 * while that is short, twofold until it was too large once and by a quarter then, and shrinks by a quarter where it is long; how long
 * it may be depends on whether the guest asks for pages just now. So a link is kept busy that is fast, or long, and the queue on it is
 * about as long as the way. A window of the least size is sent in any case: on the slowest link it is the queue.
 *
 * With a page that is asked for come some behind it, for the next one asked for would have to wait for its own way there and back:
 * few where the guest touches pages here and there, and twice as many each time where it goes on behind those that have come.
 *
 * Threads: none of its own; one of each for a connection. */
#ifndef MIGRATION_POSTCOPY_PACE_H
#define MIGRATION_POSTCOPY_PACE_H

#include "common/base.h"

#define PUSH_WINDOW_PAGES_MIN 16u
#define PUSH_WINDOW_PAGES_MAX 4096u
#define PUSH_QUEUE_US_ASKED 2500u /* that a window may spend in queues while the guest asks for pages... */
#define PUSH_QUEUE_US 20000u      /* ...and while it does not */

struct push_window {
    unsigned pages;    /* to send at a time */
    bool has_shrunk;
    uint64_t least_us; /* the shortest way so far; 0: none is known */
};

void push_window_init(struct push_window *w);
/* A window took @way_us to be answered. @is_asked: the guest has asked for a page a moment ago. */
void push_window_note(struct push_window *w, uint64_t way_us, bool is_asked);

#define PAGE_AHEAD_MIN 4u
#define PAGE_AHEAD_MAX 64u
enum { PAGE_AHEAD_STRETCHES = 8 }; /* places where the guest goes on, known at a time */

/* Zero it. */
struct page_ahead {
    struct {
        uint64_t end; /* of what has come */
        unsigned pages;
    } stretches[PAGE_AHEAD_STRETCHES];
    unsigned next; /* to be forgotten */
};

/* @page is asked for, a number of all pages: how many to send from it on. */
unsigned page_ahead_pages(struct page_ahead *a, uint64_t page);

#endif
