/* Address spaces: who answers, overlaps, the edges of ranges, and what nobody claims. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>

#include "compute/vmm/bus.h"

struct probe {
    uint64_t offset, value;
    unsigned size, reads, writes;
};
static uint64_t probe_read(void *arg, uint64_t offset, unsigned size)
{
    struct probe *p = arg;
    p->offset = offset;
    p->size = size;
    p->reads++;
    return 0x1122334455667788ull;
}
static void probe_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct probe *p = arg;
    p->offset = offset;
    p->size = size;
    p->value = value;
    p->writes++;
}
static int add(struct bus *b, uint64_t start, uint64_t size, struct probe *p)
{
    struct bus_range range = {.start = start, .size = size, .read = probe_read, .write = probe_write, .arg = p};
    return bus_add(b, &range, NULL);
}

static void access_reaches_its_range(void **state)
{
    struct bus b;
    struct probe low = {0}, high = {0};
    (void)state;
    bus_init(&b, NULL);
    assert_int_equal(add(&b, 0x2000, 0x10, &high), 0);
    assert_int_equal(add(&b, 0x1000, 0x10, &low), 0);
    assert_int_equal(bus_read(&b, 0x1004, 4), 0x55667788);
    assert_int_equal(low.offset, 4);
    assert_int_equal(low.size, 4);
    bus_write(&b, 0x200f, 1, 0xab);
    assert_int_equal(high.offset, 0xf);
    assert_int_equal(high.value, 0xab);
    assert_int_equal(low.writes, 0);
    bus_finish(&b);
}

static void unclaimed_reads_ones(void **state)
{
    struct bus b;
    struct probe p = {0};
    (void)state;
    bus_init(&b, NULL);
    assert_int_equal(add(&b, 0x1000, 0x10, &p), 0);
    assert_int_equal(bus_read(&b, 0xfff, 1), 0xff);
    assert_int_equal(bus_read(&b, 0x1010, 2), 0xffff);
    assert_true(bus_read(&b, 0, 8) == UINT64_MAX);
    assert_int_equal(bus_read(&b, 0x100e, 4), 0xffffffff); /* reaches past the end */
    bus_write(&b, 0x100e, 4, 0);
    assert_int_equal(p.reads + p.writes, 0);
    assert_int_equal(b.unclaimed, 5);
    bus_remove(&b, 0x1000);
    assert_int_equal(bus_read(&b, 0x1000, 1), 0xff);
    assert_int_equal(p.reads, 0);
    bus_finish(&b);
}

static void overlaps_are_refused(void **state)
{
    static const struct {
        uint64_t start, size;
        int code;
    } cases[] = {
        {0x1000, 0x10, -EEXIST}, {0x0ff1, 0x10, -EEXIST}, {0x100f, 1, -EEXIST},   {0x0, 0x2000, -EEXIST},
        {0x0ff0, 0x10, 0},       {0x1010, 0x10, 0},       {0x5000, 0, -EINVAL},   {UINT64_MAX, 2, -EINVAL},
        {UINT64_MAX, 1, 0},      {0, 0xff0, 0},           {0x1004, 0x4, -EEXIST},
    };
    struct bus b;
    struct probe p = {0};
    (void)state;
    bus_init(&b, NULL);
    assert_int_equal(add(&b, 0x1000, 0x10, &p), 0);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(add(&b, cases[i].start, cases[i].size, &p), cases[i].code);
    bus_finish(&b);
}

static void table_has_a_limit(void **state)
{
    struct bus b;
    struct probe p = {0};
    (void)state;
    bus_init(&b, NULL);
    for (unsigned i = 0; i < BUS_RANGES_MAX; i++)
        assert_int_equal(add(&b, 0x100ull * (BUS_RANGES_MAX - i), 0x100, &p), 0);
    assert_int_equal(add(&b, 0x1000000, 1, &p), -ENOSPC);
    bus_read(&b, 0x100, 1);
    assert_int_equal(p.reads, 1);
    bus_finish(&b);
}

/* The handler runs with the device lock held unless its range says otherwise. */
static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t lock_state_read(void *arg, uint64_t offset, unsigned size)
{
    (void)arg;
    (void)offset;
    (void)size;
    if (pthread_mutex_trylock(&device_lock) != 0)
        return 1;
    pthread_mutex_unlock(&device_lock);
    return 0;
}
static void device_lock_is_held(void **state)
{
    struct bus b;
    (void)state;
    bus_init(&b, &device_lock);
    struct bus_range range = {.start = 0, .size = 1, .read = lock_state_read};
    assert_int_equal(bus_add(&b, &range, NULL), 0);
    range.start = 1;
    range.flags = BUS_LOCKLESS;
    assert_int_equal(bus_add(&b, &range, NULL), 0);
    assert_int_equal(bus_read(&b, 0, 1), 1);
    assert_int_equal(bus_read(&b, 1, 1), 0);
    assert_int_equal(pthread_mutex_trylock(&device_lock), 0); /* and released afterwards */
    pthread_mutex_unlock(&device_lock);
    bus_finish(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(access_reaches_its_range), cmocka_unit_test(unclaimed_reads_ones),
        cmocka_unit_test(overlaps_are_refused),     cmocka_unit_test(table_has_a_limit),
        cmocka_unit_test(device_lock_is_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
