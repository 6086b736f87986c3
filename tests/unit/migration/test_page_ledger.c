/* What the other side is held to know of each page, and the hash behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "migration/page_ledger.h"

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Pages that differ in one bit of any word, or have a word at another place, all have hashes of their own. */
static void pages_that_are_almost_the_same_differ(void **state)
{
    struct page_ledger ledger;
    struct guest_region region = {.size = GUEST_PAGE_BYTES};
    static uint64_t hashes[2 * 512 * 6 + 1];
    static uint64_t page[512];
    size_t count = 0;
    (void)state;
    assert_int_equal(page_ledger_init(&ledger, &region, 1, NULL), 0);
    for (unsigned fill = 0; fill < 2; fill++) {
        memset(page, fill ? 0xa5 : 0, sizeof(page));
        for (unsigned word = 0; word < 512; word++)
            for (unsigned bit = 0; bit < 64; bit += 11) {
                page[word] ^= 1ull << bit;
                hashes[count++] = page_ledger_hash(&ledger, page);
                page[word] ^= 1ull << bit;
            }
    }
    hashes[count++] = ledger.zero;
    qsort(hashes, count, sizeof(hashes[0]), compare);
    for (size_t i = 1; i < count; i++)
        assert_int_not_equal(hashes[i - 1], hashes[i]);
    page_ledger_finish(&ledger);
}

static void news_is_what_changed(void **state)
{
    struct page_ledger ledger;
    struct guest_region regions[2] = {{.size = 4 * GUEST_PAGE_BYTES}, {.size = 8 * GUEST_PAGE_BYTES}};
    static uint8_t page[GUEST_PAGE_BYTES];
    (void)state;
    memset(page, 0, sizeof(page));
    assert_int_equal(page_ledger_init(&ledger, regions, 2, NULL), 0);
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_SAME); /* it begins with zeros */
    page[4095] = 1;
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_DATA);
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_SAME);
    assert_int_equal(page_ledger_note(&ledger, 0, 3, page), PAGE_DATA); /* each page for itself */
    page_ledger_forget(&ledger, 1, 7);
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_DATA);
    page[4095] = 0;
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_ZERO);
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_SAME);
    page_ledger_forget(&ledger, 1, 7);
    assert_int_equal(page_ledger_note(&ledger, 1, 7, page), PAGE_ZERO);
    page_ledger_finish(&ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_that_are_almost_the_same_differ),
        cmocka_unit_test(news_is_what_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
