/* A hash for each page: four lanes of multiply-and-fold, 64 bytes a turn; see page_ledger.h. */
#include "migration/page_ledger.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

/* The high and the low half of a 64 by 64 bit product depend on all bits of both. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Each word meets a key or a lane of its own before it is multiplied: a page of zeros must not make any factor zero,
 * which would swallow the other. */
uint64_t page_ledger_hash(const struct page_ledger *ledger, const void *content)
{
    const uint64_t *key = ledger->key;
    uint64_t lanes[4] = {key[0], key[1], key[2], key[3]}, words[8];
    const uint8_t *at = content;
    for (unsigned i = 0; i < GUEST_PAGE_BYTES; i += sizeof(words), at += sizeof(words)) {
        memcpy(words, at, sizeof(words));
        for (unsigned n = 0; n < 4; n++)
            lanes[n] = fold(words[2 * n] ^ key[4 + n], words[2 * n + 1] ^ lanes[n]) + key[n];
    }
    return fold(lanes[0] ^ key[5], lanes[1] ^ key[6]) + fold(lanes[2] ^ key[7], lanes[3] ^ key[4]);
}

int page_ledger_init(struct page_ledger *ledger, const struct guest_region *regions, size_t count, struct error *err)
{
    uint8_t zeros[GUEST_PAGE_BYTES] = {0};
    *ledger = (struct page_ledger){.region_count = count};
    if (getrandom(ledger->key, sizeof(ledger->key), 0) != (ssize_t)sizeof(ledger->key))
        return error_errno(err, -errno, "no random numbers");
    ledger->zero = page_ledger_hash(ledger, zeros);
    for (size_t i = 0; i < count; i++) {
        uint64_t pages = regions[i].size / GUEST_PAGE_BYTES;
        ledger->hashes[i] = calloc(pages, sizeof(uint64_t));
        if (!ledger->hashes[i]) {
            page_ledger_finish(ledger);
            return error_set(err, -ENOMEM, ERROR_INTERNAL, "no memory for notes on %llu pages",
                             (unsigned long long)pages);
        }
    }
    return 0;
}

void page_ledger_finish(struct page_ledger *ledger)
{
    for (size_t i = 0; i < GUEST_REGIONS_MAX; i++)
        free(ledger->hashes[i]);
    *ledger = (struct page_ledger){0};
}

enum page_news page_ledger_note(struct page_ledger *ledger, size_t region, uint64_t page, const void *content)
{
    uint64_t hash = page_ledger_hash(ledger, content) ^ ledger->zero, *held = &ledger->hashes[region][page];
    if (hash == *held)
        return PAGE_SAME;
    *held = hash;
    return hash == 0 ? PAGE_ZERO : PAGE_DATA;
}

void page_ledger_forget(struct page_ledger *ledger, size_t region, uint64_t page)
{
    ledger->hashes[region][page] = 1; /* a hash as rare as any other, and not that of zeros */
}
