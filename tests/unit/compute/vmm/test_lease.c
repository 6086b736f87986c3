/* The lease page: what allows I/O and what does not, and files that cannot be one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#include "compute/vmm/lease.h"

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void deadline_is_obeyed(void **state)
{
    char path[] = "/tmp/test_lease.XXXXXX";
    struct lease lease;
    uint64_t deadline = 0;
    int fd = mkstemp(path);
    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(lease_init(&lease, path, NULL), -EINVAL); /* too short for a deadline */
    assert_int_equal(pwrite(fd, &deadline, 8, 0), 8);
    assert_int_equal(lease_init(&lease, path, NULL), 0);
    assert_true(lease_allows_io(&lease)); /* 0: no lease rules it */
    deadline = now_ns() + 3600000000000ull;
    assert_int_equal(pwrite(fd, &deadline, 8, 0), 8);
    assert_true(lease_deadline_ns(&lease) == deadline);
    assert_true(lease_allows_io(&lease));
    deadline = now_ns();
    assert_int_equal(pwrite(fd, &deadline, 8, 0), 8);
    assert_false(lease_allows_io(&lease));
    lease_finish(&lease);
    assert_true(lease_allows_io(&lease));
    assert_true(lease_allows_io(NULL));
    close(fd);
    unlink(path);
    assert_int_equal(lease_init(&lease, path, NULL), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(deadline_is_obeyed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
