/* Which processors are slowed down, by what KVM counts of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compute/vmm/vcpu_throttle.h"

static void who_writes_is_slowed_down(void **state)
{
    const uint64_t one[4] = {3, 9000, 12, 0}, all[4] = {2000, 2500, 3000, 1900}, two[8] = {5000, 0, 0, 40, 0, 4800, 0, 0};
    (void)state;
    assert_int_equal(vcpu_throttle_choose(one, 4, UINT64_MAX), 1 << 1);
    assert_int_equal(vcpu_throttle_choose(all, 4, UINT64_MAX), 0xf);
    assert_int_equal(vcpu_throttle_choose(two, 8, UINT64_MAX), 1 << 0 | 1 << 5);
}

static void where_nothing_is_told_it_stays_as_it_was(void **state)
{
    const uint64_t none[2] = {0, 0}, few[2] = {VCPU_THROTTLE_FAULTS_MIN - 1, 0};
    (void)state;
    assert_int_equal(vcpu_throttle_choose(none, 2, UINT64_MAX), UINT64_MAX);
    assert_int_equal(vcpu_throttle_choose(few, 2, 2), 2);
}

static void a_single_processor_is_always_the_one(void **state)
{
    const uint64_t faults[1] = {100000};
    (void)state;
    assert_int_equal(vcpu_throttle_choose(faults, 1, 0), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_writes_is_slowed_down),
        cmocka_unit_test(where_nothing_is_told_it_stays_as_it_was),
        cmocka_unit_test(a_single_processor_is_always_the_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
