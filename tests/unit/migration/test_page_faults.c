/* Lacking pages, touched by threads (pthread) that must see what is put into place, and nothing else. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "migration/page_faults.h"

enum { PAGES = 200, SECOND_PAGES = 70 };

static struct {
    int fd;
    struct guest_region regions[2];
    uint64_t *lack[GUEST_REGIONS_MAX];
    struct page_faults *faults;
} world;

static uint64_t migrate_sum(size_t region, uint64_t page)
{
    return region * 1000000 + page;
}

static int world_setup(void **state)
{
    (void)state;
    memset(&world, 0, sizeof(world));
    world.fd = page_faults_open(true, NULL);
    if (world.fd < 0) {
        printf("no userfaultfd here: nothing is tested\n");
        return 0;
    }
    static const uint64_t pages[2] = {PAGES, SECOND_PAGES};
    for (unsigned i = 0; i < 2; i++) {
        size_t size = pages[i] * GUEST_PAGE_BYTES;
        world.regions[i] = (struct guest_region){
            .gpa = i ? 1ull << 32 : 0,
            .size = size,
            .host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)};
        memset(world.regions[i].host, 0x11, size);
    }
    return 0;
}

static int world_teardown(void **state)
{
    (void)state;
    page_faults_finish(world.faults);
    for (unsigned i = 0; i < 2; i++) {
        if (world.regions[i].host)
            munmap(world.regions[i].host, world.regions[i].size);
        free(world.lack[i]);
    }
    if (world.fd >= 0)
        close(world.fd);
    return 0;
}

static void lack(size_t region, uint64_t page)
{
    if (!world.lack[region])
        world.lack[region] = xcalloc(4, sizeof(uint64_t));
    world.lack[region][page / 64] |= 1ull << (page % 64);
}

static void start(void)
{
    struct error err = {0};
    int code = page_faults_start(world.fd, world.regions, 2, world.lack, &world.faults, &err);
    if (code < 0)
        fail_msg("%s", err.text);
}

static void *touch_main(void *arg)
{
    volatile uint8_t *at = arg;
    return (void *)(uintptr_t)*at;
}

static pthread_t touch(size_t region, uint64_t page)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, touch_main, world.regions[region].host + page * GUEST_PAGE_BYTES + 7), 0);
    return thread;
}

static uint8_t seen_by(pthread_t thread)
{
    void *value;
    pthread_join(thread, &value);
    return (uint8_t)(uintptr_t)value;
}

static int wait_touch(size_t *ret_region, uint64_t *ret_page)
{
    int code = 0;
    for (unsigned i = 0; i < 200 && code == 0; i++)
        code = page_faults_next(world.faults, 50, ret_region, ret_page, NULL);
    return code;
}

static void who_touches_waits_for_the_page(void **state)
{
    static uint8_t page[GUEST_PAGE_BYTES];
    size_t region;
    uint64_t number;
    (void)state;
    if (world.fd < 0)
        return;
    lack(0, 3);
    lack(1, 69);
    start();
    assert_int_equal(page_faults_lacking(world.faults), 2);
    pthread_t first = touch(0, 3), second = touch(1, 69);
    uint64_t sum = 0;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(wait_touch(&region, &number), 1);
        sum += migrate_sum(region, number);
    }
    assert_int_equal(sum, migrate_sum(0, 3) + migrate_sum(1, 69));
    memset(page, 0x5a, sizeof(page));
    assert_int_equal(page_faults_place(world.faults, 0, 3, 1, page, NULL), 0);
    assert_int_equal(page_faults_place(world.faults, 1, 69, 1, NULL, NULL), 0);
    assert_int_equal(seen_by(first), 0x5a);
    assert_int_equal(seen_by(second), 0);
    assert_int_equal(page_faults_lacking(world.faults), 0);
    assert_int_equal(world.regions[0].host[2 * GUEST_PAGE_BYTES], 0x11); /* its neighbours are as they were */
    assert_int_equal(world.regions[0].host[4 * GUEST_PAGE_BYTES], 0x11);
}

static void a_page_that_is_there_is_not_written_again(void **state)
{
    static uint8_t pages[16 * GUEST_PAGE_BYTES];
    (void)state;
    if (world.fd < 0)
        return;
    for (uint64_t page = 10; page < 20; page += 3)
        lack(0, page);
    start();
    memset(pages, 0x22, sizeof(pages));
    assert_int_equal(page_faults_place(world.faults, 0, 8, 16, pages, NULL), 0); /* 10, 13, 16, 19 of these */
    assert_int_equal(page_faults_lacking(world.faults), 0);
    for (uint64_t page = 8; page < 24; page++)
        assert_int_equal(world.regions[0].host[page * GUEST_PAGE_BYTES], page >= 10 && page < 20 && page % 3 == 1 ? 0x22 : 0x11);
    world.regions[0].host[10 * GUEST_PAGE_BYTES] = 0x33; /* the guest goes on */
    assert_int_equal(page_faults_place(world.faults, 0, 8, 16, pages, NULL), 0);
    assert_int_equal(world.regions[0].host[10 * GUEST_PAGE_BYTES], 0x33);
}

static void what_was_never_there_is_zeros(void **state)
{
    size_t region;
    uint64_t number;
    (void)state;
    if (world.fd < 0)
        return;
    madvise(world.regions[0].host + 5 * GUEST_PAGE_BYTES, GUEST_PAGE_BYTES, MADV_DONTNEED);
    lack(0, 6);
    start();
    pthread_t thread = touch(0, 5);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(page_faults_next(world.faults, 10, &region, &number, NULL), 0);
    assert_int_equal(seen_by(thread), 0);
}

static int count_one(void *arg, size_t region, uint64_t page)
{
    *(uint64_t *)arg += migrate_sum(region, page);
    return 0;
}

static void what_was_asked_for_can_be_asked_for_again(void **state)
{
    size_t region;
    uint64_t number, sum = 0;
    (void)state;
    if (world.fd < 0)
        return;
    lack(0, 64);
    lack(0, 65);
    lack(0, 66);
    start();
    pthread_t first = touch(0, 64), second = touch(0, 66);
    assert_int_equal(wait_touch(&region, &number), 1);
    assert_int_equal(wait_touch(&region, &number), 1);
    assert_int_equal(page_faults_place(world.faults, 0, 64, 1, NULL, NULL), 0);
    assert_int_equal(page_faults_wanted_again(world.faults, count_one, &sum), 0);
    assert_int_equal(sum, migrate_sum(0, 66));
    page_faults_let_go(world.faults); /* nobody waits any more */
    assert_int_equal(seen_by(first) + seen_by(second), 0);
}

/* Two threads place all pages while others touch them in an order of their own. */
static void *place_main(void *arg)
{
    uint8_t data[8 * GUEST_PAGE_BYTES];
    (void)arg;
    memset(data, 0x77, sizeof(data));
    for (uint64_t page = 0; page < PAGES; page += 8)
        assert_int_equal(page_faults_place(world.faults, 0, page, 8, data, NULL), 0);
    return NULL;
}

static void *all_main(void *arg)
{
    uint64_t step = (uintptr_t)arg, wrong = 0;
    for (uint64_t i = 0; i < PAGES; i++)
        wrong += world.regions[0].host[i * step % PAGES * GUEST_PAGE_BYTES] != 0x77;
    return (void *)(uintptr_t)wrong;
}

static void all_at_the_same_time(void **state)
{
    pthread_t touching[3], placing[2];
    size_t region;
    uint64_t number;
    (void)state;
    if (world.fd < 0)
        return;
    for (uint64_t page = 0; page < PAGES; page++)
        lack(0, page);
    start();
    for (uintptr_t i = 0; i < 3; i++)
        pthread_create(&touching[i], NULL, all_main, (void *)(2 * i + 3));
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&placing[i], NULL, place_main, NULL);
    while (page_faults_lacking(world.faults))
        (void)page_faults_next(world.faults, 5, &region, &number, NULL);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(placing[i], NULL);
    for (unsigned i = 0; i < 3; i++) {
        void *wrong;
        pthread_join(touching[i], &wrong);
        assert_null(wrong);
    }
}

#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORLD_TEST(who_touches_waits_for_the_page),       WORLD_TEST(a_page_that_is_there_is_not_written_again),
        WORLD_TEST(what_was_never_there_is_zeros),        WORLD_TEST(what_was_asked_for_can_be_asked_for_again),
        WORLD_TEST(all_at_the_same_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
