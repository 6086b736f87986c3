/* What the other side holds of each page of guest memory, as 64 bits: a page whose content it has already need not be
 * sent again. At first it holds zeros everywhere.
 *
 * Content is known by a keyed 64-bit hash. The key is drawn for each ledger, so that no guest can prepare two pages of
 * one hash; by chance it happens once in 2^64 comparisons, which is rarer than memory that flips a bit.
 *
 * Threads: different pages by different threads; one page by one at a time. */
#ifndef MIGRATION_PAGE_LEDGER_H
#define MIGRATION_PAGE_LEDGER_H

#include "common/error.h"
#include "migration/guest.h"

struct page_ledger {
    uint64_t key[8];
    uint64_t zero; /* hash of a page of zeros */
    size_t region_count;
    uint64_t *hashes[GUEST_REGIONS_MAX]; /* less that of zeros: memory nobody touched costs none here either */
};

/* 8 bytes for each page of memory. -ENOMEM in words. */
int page_ledger_init(struct page_ledger *ledger, const struct guest_region *regions, size_t count, struct error *err);
void page_ledger_finish(struct page_ledger *ledger);

enum page_news { PAGE_SAME, PAGE_ZERO, PAGE_DATA };
/* @content (GUEST_PAGE_BYTES, nobody writes to it meanwhile) is what page @page has now: what is news to the other side?
 * It is held to know it from then on. */
enum page_news page_ledger_note(struct page_ledger *ledger, size_t region, uint64_t page, const void *content);
/* The other side may hold anything of it. */
void page_ledger_forget(struct page_ledger *ledger, size_t region, uint64_t page);

/* Exposed for tests: the hash of a page. */
uint64_t page_ledger_hash(const struct page_ledger *ledger, const void *content);

#endif
