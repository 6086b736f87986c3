/* Guest memory: the hole, the edges of regions, sums that wrap, and the log of our own writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compute/vmm/memory.h"

#define MIB 1048576ull

static void sizes_are_checked(void **state)
{
    static const uint64_t refused[] = {0, 4096, MEMORY_BYTES_MIN + 1, MEMORY_BYTES_MAX + 4096, UINT64_MAX};
    struct guest_memory m;
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        struct error err = {0};
        assert_int_equal(memory_init(&m, refused[i], &err), -EINVAL);
        assert_string_equal(err.field, "/memory_bytes");
    }
}

static void small_memory_is_one_region(void **state)
{
    struct guest_memory m;
    (void)state;
    assert_int_equal(memory_init(&m, 64 * MIB, NULL), 0);
    assert_int_equal(m.region_count, 1);
    assert_non_null(memory_at(&m, 0, 64 * MIB));
    assert_non_null(memory_at(&m, 64 * MIB - 1, 1));
    assert_null(memory_at(&m, 64 * MIB - 1, 2));
    assert_null(memory_at(&m, 64 * MIB, 1));
    assert_null(memory_at(&m, 0, 0));
    assert_null(memory_at(&m, UINT64_MAX, 2));
    assert_null(memory_at(&m, 1, UINT64_MAX));
    assert_null(memory_at(&m, MEMORY_HOLE_END, 1));
    memory_finish(&m);
}

static void hole_is_below_4_gib(void **state)
{
    struct guest_memory m;
    (void)state;
    assert_int_equal(memory_init(&m, MEMORY_HOLE_START + 8 * MIB, NULL), 0);
    assert_int_equal(m.region_count, 2);
    assert_non_null(memory_at(&m, MEMORY_HOLE_START - 1, 1));
    assert_null(memory_at(&m, MEMORY_HOLE_START - 1, 2)); /* the mapping goes on there, the guest's memory does not */
    assert_null(memory_at(&m, MEMORY_HOLE_START, 1));
    assert_null(memory_at(&m, MEMORY_HOLE_END - 1, 1));
    assert_null(memory_at(&m, MEMORY_HOLE_END - 1, 2));
    uint8_t *high = memory_at(&m, MEMORY_HOLE_END, 8 * MIB);
    assert_non_null(high);
    assert_null(memory_at(&m, MEMORY_HOLE_END, 8 * MIB + 1));
    assert_ptr_equal(high, m.host + MEMORY_HOLE_START);
    memory_finish(&m);
    /* Exactly up to the hole: nothing above it. */
    assert_int_equal(memory_init(&m, MEMORY_HOLE_START, NULL), 0);
    assert_int_equal(m.region_count, 1);
    memory_finish(&m);
}

static void copies_are_checked(void **state)
{
    struct guest_memory m;
    char text[8] = "";
    (void)state;
    assert_int_equal(memory_init(&m, 2 * MIB, NULL), 0);
    assert_true(memory_write(&m, 2 * MIB - 6, "drover", 6));
    assert_true(memory_read(&m, 2 * MIB - 6, text, 6));
    assert_string_equal(text, "drover");
    assert_false(memory_write(&m, 2 * MIB - 5, "drover", 6));
    assert_false(memory_read(&m, 2 * MIB - 5, text, 6));
    memory_finish(&m);
}

static bool bit(const uint64_t *bitmap, uint64_t page)
{
    return bitmap[page / 64] >> (page % 64) & 1;
}

static void own_writes_are_logged(void **state)
{
    struct guest_memory m;
    uint64_t low[8] = {0}, pages = 2 * MIB / MEMORY_PAGE_BYTES, count = 0;
    (void)state;
    assert_int_equal(memory_init(&m, 2 * MIB, NULL), 0);
    memory_mark_dirty(&m, 0, 1); /* before the log: no effect */
    assert_int_equal(memory_tracking_start(&m, NULL), 0);
    memory_mark_dirty(&m, 0x3fff, 2); /* the last byte of page 3 and the first of page 4 */
    memory_mark_dirty(&m, 2 * MIB - 1, 1);
    memory_mark_dirty(&m, 2 * MIB, 1); /* outside: no effect */
    memory_tracking_fetch(&m, 0, low);
    for (uint64_t i = 0; i < pages; i++)
        count += bit(low, i);
    assert_int_equal(count, 3);
    assert_true(bit(low, 3) && bit(low, 4) && bit(low, pages - 1));
    memset(low, 0, sizeof(low));
    memory_tracking_fetch(&m, 0, low);
    for (size_t i = 0; i < ARRAY_SIZE(low); i++)
        assert_int_equal(low[i], 0); /* fetched once */
    memory_tracking_stop(&m);
    memory_mark_dirty(&m, 0, 1);
    memory_tracking_fetch(&m, 0, low);
    assert_int_equal(low[0], 0);
    memory_finish(&m);
}

static void stretches_are_logged_exactly(void **state)
{
    enum { PAGES = 4 * MIB / MEMORY_PAGE_BYTES };
    static const uint64_t edges[] = {0, 1, 62, 63, 64, 65, 127, 128, 129, 500, PAGES - 65, PAGES - 64, PAGES - 1, PAGES};
    struct guest_memory m;
    (void)state;
    assert_int_equal(memory_init(&m, 4 * MIB, NULL), 0);
    assert_int_equal(memory_tracking_start(&m, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(edges); i++)
        for (size_t k = i + 1; k < ARRAY_SIZE(edges); k++) {
            uint64_t bitmap[PAGES / 64] = {0}, from = edges[i] * MEMORY_PAGE_BYTES, to = edges[k] * MEMORY_PAGE_BYTES;
            memory_mark_dirty(&m, from + 4095, to - from - 4095); /* the last byte of the first page is enough */
            memory_tracking_fetch(&m, 0, bitmap);
            for (uint64_t page = 0; page < PAGES; page++)
                assert_int_equal(bit(bitmap, page), page >= edges[i] && page < edges[k]);
        }
    memory_finish(&m);
}

static void regions_have_logs_of_their_own(void **state)
{
    struct guest_memory m;
    (void)state;
    assert_int_equal(memory_init(&m, MEMORY_HOLE_START + 8 * MIB, NULL), 0);
    assert_int_equal(memory_tracking_start(&m, NULL), 0);
    uint64_t *low = xcalloc(MEMORY_HOLE_START / MEMORY_PAGE_BYTES / 64, 8), high[32] = {0};
    memory_mark_dirty(&m, MEMORY_HOLE_END + MEMORY_PAGE_BYTES, 1);
    memory_mark_dirty(&m, MEMORY_HOLE_START - 1, 1);
    memory_tracking_fetch(&m, 1, high);
    memory_tracking_fetch(&m, 0, low);
    assert_int_equal(high[0], 2);
    assert_true(bit(low, MEMORY_HOLE_START / MEMORY_PAGE_BYTES - 1));
    free(low);
    memory_finish(&m);
}

static void largest_memory_has_its_hole_in_the_right_place(void **state)
{
    struct guest_memory m;
    struct error err = {0};
    uint64_t high = MEMORY_BYTES_MAX - MEMORY_HOLE_START, page = 0, pages;
    (void)state;
    if (memory_init(&m, MEMORY_BYTES_MAX, &err) == -ENOMEM) {
        print_message("SKIPPED: this machine has no address space for 1 TiB: %s\n", err.text);
        skip();
    }
    assert_int_equal(m.region_count, 2);
    assert_true(m.regions[0].size == MEMORY_HOLE_START && m.regions[1].size == high);
    assert_true(m.regions[1].gpa == MEMORY_HOLE_END && m.regions[1].offset == MEMORY_HOLE_START);
    assert_non_null(memory_at(&m, MEMORY_HOLE_START - 1, 1));
    assert_null(memory_at(&m, MEMORY_HOLE_START - 1, 2));
    assert_null(memory_at(&m, MEMORY_HOLE_START, 1));
    assert_null(memory_at(&m, MEMORY_HOLE_END - 1, 1));
    assert_non_null(memory_at(&m, MEMORY_HOLE_END, high));
    assert_null(memory_at(&m, MEMORY_HOLE_END, high + 1));
    assert_null(memory_at(&m, MEMORY_HOLE_END + high, 1));
    /* The first page above the hole and the last of all are pages of their own. */
    assert_true(memory_write(&m, MEMORY_HOLE_END, "above", 5));
    assert_true(memory_write(&m, MEMORY_HOLE_END + high - 5, "last!", 5));
    assert_memory_equal(memory_at(&m, MEMORY_HOLE_END, 5), "above", 5);
    assert_int_equal(*(uint8_t *)memory_at(&m, MEMORY_HOLE_START - 1, 1), 0);
    /* And who looks for data finds them without touching the rest. */
    memory_next_data(&m, 1, &page, &pages);
    assert_true(page == 0 && pages >= 1 && pages <= 512);
    page += pages;
    memory_next_data(&m, 1, &page, &pages);
    assert_true(page + pages == high / MEMORY_PAGE_BYTES && pages >= 1 && pages <= 512);
    page += pages;
    memory_next_data(&m, 1, &page, &pages);
    assert_int_equal(pages, 0);
    memory_finish(&m);
}

static void memory_may_be_a_file_copied_when_written(void **state)
{
    struct guest_memory m;
    uint64_t page = 3, pages;
    char path[] = "/tmp/drover-memory-XXXXXX", byte;
    int fd = mkstemp(path);
    (void)state;
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, 8192 + 4 * MIB), 0);
    assert_int_equal(pwrite(fd, "A", 1, 8192 + 4096), 1);
    assert_int_equal(memory_init(&m, 4 * MIB, NULL), 0);
    uint8_t *before = memory_at(&m, 0, 4 * MIB);
    assert_int_equal(memory_map_file(&m, 0, fd, 8192, NULL), 0);
    assert_ptr_equal(memory_at(&m, 0, 4 * MIB), before);
    assert_int_equal(before[4096], 'A');
    assert_true(memory_write(&m, 4096, "B", 1));
    assert_int_equal(pread(fd, &byte, 1, 8192 + 4096), 1);
    assert_int_equal(byte, 'A'); /* the file stays as it is */
    memory_next_data(&m, 0, &page, &pages);
    assert_true(page == 3 && pages == 4 * MIB / 4096 - 3); /* who knows: all of it */
    memory_clear(&m);
    assert_int_equal(before[4096], 0);
    memory_finish(&m);
    close(fd);
}

/* Pages that are named as such that may hold data, each stretch checked against the contract of memory_next_data. */
static uint64_t pages_with_data(const struct guest_memory *m, uint64_t wanted, bool *ret_found)
{
    uint64_t end = m->regions[0].size / MEMORY_PAGE_BYTES, page = 0, pages, sum = 0;
    *ret_found = false;
    while (memory_next_data(m, 0, &page, &pages), pages > 0) {
        assert_true(page < end && pages <= end - page);
        *ret_found |= wanted >= page && wanted < page + pages;
        sum += pages;
        page += pages;
    }
    return sum;
}

static void only_what_was_touched_may_hold_data(void **state)
{
    static const uint64_t touched[] = {3, 700, 5000, 64 * MIB / MEMORY_PAGE_BYTES - 1};
    struct guest_memory m;
    bool found;
    (void)state;
    assert_int_equal(memory_init_pages(&m, 64 * MIB, MEMORY_PAGES_SMALL, NULL), 0);
    if (m.pagemap_fd < 0) {
        print_message("SKIPPED: there is no /proc/self/pagemap here\n");
        memory_finish(&m);
        skip();
    }
    assert_int_equal(pages_with_data(&m, 0, &found), 0);
    for (size_t i = 0; i < ARRAY_SIZE(touched); i++)
        assert_true(memory_write(&m, touched[i] * MEMORY_PAGE_BYTES, "data", 4));
    for (size_t i = 0; i < ARRAY_SIZE(touched); i++) {
        assert_true(pages_with_data(&m, touched[i], &found) <= ARRAY_SIZE(touched) * 512);
        assert_true(found);
    }
    assert_int_equal(pages_with_data(&m, 2000, &found), 512 - 3 + 1024 - 700 + 5120 - 5000 + 1);
    assert_false(found);
    /* What is given back holds none any more. */
    assert_true(memory_discard(&m, 5000 * MEMORY_PAGE_BYTES, MEMORY_PAGE_BYTES));
    pages_with_data(&m, 5000, &found);
    assert_false(found);
    memory_clear(&m);
    assert_int_equal(pages_with_data(&m, 3, &found), 0);
    assert_int_equal(*(uint8_t *)memory_at(&m, 3 * MEMORY_PAGE_BYTES, 1), 0);
    /* Where nobody tells, everything may. */
    close_fd(&m.pagemap_fd);
    m.pagemap_fd = -1;
    assert_int_equal(pages_with_data(&m, 5000, &found), 64 * MIB / MEMORY_PAGE_BYTES);
    assert_true(found);
    memory_finish(&m);
}

/* Another process' view of it, as the one that it is handed to has. */
static void shared_memory_is_handed_over(void **state)
{
    struct guest_memory m, other;
    struct error err = {0};
    bool found;
    (void)state;
    assert_int_equal(memory_init_kind(&m, 64 * MIB, MEMORY_PAGES_SMALL, MEMORY_SHARED, NULL), 0);
    assert_int_equal(memory_init_kind(&other, 64 * MIB, MEMORY_PAGES_SMALL, MEMORY_AWAITED, NULL), 0);
    assert_int_equal(memory_share(&other, &err), -ENOTSUP);
    assert_true(memory_write(&m, 3 * MIB, "here", 4));
    uint8_t *at = memory_at(&other, 3 * MIB, 4);
    assert_int_equal(memory_adopt(&other, dup(memory_share(&m, NULL)), NULL), 0);
    assert_ptr_equal(memory_at(&other, 3 * MIB, 4), at); /* where KVM was told that it is */
    assert_memory_equal(at, "here", 4);
    assert_true(memory_write(&other, 5 * MIB, "back", 4));
    assert_memory_equal(memory_at(&m, 5 * MIB, 4), "back", 4);
    /* What holds data is told also of pages that only the other has touched, and not of those that were given back. */
    assert_true(pages_with_data(&m, 5 * MIB / MEMORY_PAGE_BYTES, &found) <= 4);
    assert_true(found);
    assert_true(memory_discard(&m, 5 * MIB, MEMORY_PAGE_BYTES));
    pages_with_data(&other, 5 * MIB / MEMORY_PAGE_BYTES, &found);
    assert_false(found);
    assert_int_equal(*(uint8_t *)memory_at(&other, 5 * MIB, 1), 0);
    memory_clear(&other);
    assert_int_equal(*(uint8_t *)memory_at(&m, 3 * MIB, 1), 0);
    assert_true(memory_write(&other, 3 * MIB, "left", 4));
    memory_finish(&m);
    assert_memory_equal(at, "left", 4);
    assert_true(memory_share(&other, NULL) >= 0); /* and on to a third */
    memory_finish(&other);
}

static void what_is_no_sealed_memory_of_that_size_is_refused(void **state)
{
    struct guest_memory m, other;
    struct error err = {0};
    int fd = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    (void)state;
    assert_int_equal(memory_init_kind(&m, 8 * MIB, MEMORY_PAGES_SMALL, MEMORY_SHARED, NULL), 0);
    assert_int_equal(memory_init_kind(&other, 4 * MIB, MEMORY_PAGES_SMALL, MEMORY_AWAITED, NULL), 0);
    assert_int_equal(memory_adopt(&other, dup(memory_share(&m, NULL)), &err), -EINVAL);
    assert_non_null(strstr(err.text, "8388608 bytes"));
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    assert_int_equal(memory_adopt(&other, fd, &err), -EINVAL);
    assert_non_null(strstr(err.text, "sealed"));
    assert_int_equal(ftruncate(memory_share(&m, NULL), 0), -1); /* nobody can */
    memory_finish(&m);
    memory_finish(&other);
    assert_int_equal(memory_init(&m, 4 * MIB, NULL), 0);
    assert_int_equal(memory_share(&m, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "memory_shared"));
    memory_finish(&m);
}

static bool touch_gives_huge_page(uint8_t *aligned, int pagemap)
{
    uint64_t word = 0;
    off_t last = (off_t)(((uintptr_t)aligned + 2 * MIB - 1) / MEMORY_PAGE_BYTES * sizeof(word));
    *aligned = 1;
    return pread(pagemap, &word, sizeof(word), last) == (ssize_t)sizeof(word) && word >> 62;
}

/* The kernel has to give guests what it gives any program that asks. */
static void memory_is_of_huge_pages_where_the_host_has_them(void **state)
{
    struct guest_memory m;
    (void)state;
    assert_int_equal(memory_init(&m, 8 * MIB, NULL), 0);
    uint8_t *space = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(space != MAP_FAILED);
    uint8_t *aligned = space + (2 * MIB - (uintptr_t)space % (2 * MIB)) % (2 * MIB);
    bool asked = madvise(aligned, 2 * MIB, MADV_HUGEPAGE) == 0 && m.pagemap_fd >= 0;
    bool any = asked && touch_gives_huge_page(aligned, m.pagemap_fd);
    bool ours = touch_gives_huge_page(memory_at(&m, 2 * MIB, 2 * MIB), m.pagemap_fd);
    munmap(space, 4 * MIB);
    memory_finish(&m);
    if (!any) {
        print_message("SKIPPED: this machine gives no transparent huge pages\n");
        skip();
    }
    assert_true(ours);
}

static void pools_of_huge_pages_are_refused_in_words(void **state)
{
    struct guest_memory m;
    struct error err = {0};
    (void)state;
    assert_int_equal(memory_init_pages(&m, 3 * MIB, MEMORY_PAGES_LARGE, &err), -EINVAL);
    assert_string_equal(err.field, "/memory_bytes");
    assert_int_equal(memory_init_pages(&m, 1536 * MIB, MEMORY_PAGES_HUGE, &err), -EINVAL);
    /* No machine has a pool for 1 TiB. */
    assert_true(memory_init_pages(&m, MEMORY_BYTES_MAX, MEMORY_PAGES_LARGE, &err) < 0);
    assert_string_equal(err.field, "/memory_pages");
    assert_true(err.text[0] != 0);
    assert_int_equal(memory_init_pages(&m, 4 * MIB, MEMORY_PAGES_SMALL, NULL), 0);
    assert_int_equal((uintptr_t)memory_at(&m, 0, 1) % (2 * MIB), 0); /* guest and host pages may match */
    memory_finish(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(small_memory_is_one_region),
        cmocka_unit_test(hole_is_below_4_gib),
        cmocka_unit_test(copies_are_checked),
        cmocka_unit_test(own_writes_are_logged),
        cmocka_unit_test(stretches_are_logged_exactly),
        cmocka_unit_test(regions_have_logs_of_their_own),
        cmocka_unit_test(largest_memory_has_its_hole_in_the_right_place),
        cmocka_unit_test(memory_may_be_a_file_copied_when_written),
        cmocka_unit_test(only_what_was_touched_may_hold_data),
        cmocka_unit_test(shared_memory_is_handed_over),
        cmocka_unit_test(what_is_no_sealed_memory_of_that_size_is_refused),
        cmocka_unit_test(memory_is_of_huge_pages_where_the_host_has_them),
        cmocka_unit_test(pools_of_huge_pages_are_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
