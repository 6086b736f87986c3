/* Which hosts have an image: what reports and wishes make of its copies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "controller/fsm/image_copies.h"

#define N1 "00000000-0000-4000-8000-000000000001"
#define N2 "00000000-0000-4000-8000-000000000002"

static struct image_seen seen(enum image_copy_state state, const char *reason)
{
    return (struct image_seen){.state = state, .reason = (char *)(uintptr_t)reason};
}

static void test_wanted(void **state)
{
    struct image image = {.kind = image_kind_DISK};
    struct image_seen held = seen(image_copy_state_HELD, NULL), failed = seen(image_copy_state_FAILED, "no room");
    (void)state;
    assert_false(image_copy_keep(&image, N1, "n1", false));
    assert_true(image_copy_keep(&image, N1, "n1", true));
    assert_false(image_copy_keep(&image, N1, "n1", true));
    assert_int_equal(image_copy_find(&image, N1)->state, image_copy_state_WANTED);
    assert_false(image_copy_differs(&image, N1, NULL)); /* it has nothing yet, as known */
    assert_true(image_copy_see(&image, N1, "n1", &failed));
    assert_string_equal(image_copy_find(&image, N1)->reason, "no room");
    assert_false(image_copy_differs(&image, N1, &failed));
    assert_int_equal(image_copies_held(&image, NULL), 0);
    assert_true(image_copy_see(&image, N1, "n1", &held));
    assert_null(image_copy_find(&image, N1)->reason);
    assert_int_equal(image_copies_held(&image, NULL), 1);
    assert_int_equal(image_copies_held(&image, N1), 0);
    assert_true(image_copy_see(&image, N1, "n1", NULL)); /* lost: it is to get it again */
    assert_int_equal(image_copy_find(&image, N1)->state, image_copy_state_WANTED);
    assert_true(image_copy_keep(&image, N1, "n1", false)); /* and now it need not */
    assert_null(image_copy_find(&image, N1));
    OBJECT_CLEAR(image, &image);
}

/* What a host has because a VM needed it comes and goes with its reports. */
static void test_by_the_way(void **state)
{
    struct image image = {.kind = image_kind_DISK};
    struct image_seen held = seen(image_copy_state_HELD, NULL), fetching = seen(image_copy_state_FETCHING, NULL);
    (void)state;
    assert_false(image_copy_see(&image, N1, "n1", &fetching));
    assert_true(image_copy_see(&image, N1, "n1", &held));
    assert_true(image_copy_see(&image, N2, "n2", &held));
    assert_false(image_copy_find(&image, N1)->keep);
    assert_true(image_copy_keep(&image, N1, "n1", true));
    assert_true(image_copy_keep(&image, N1, "n1", false)); /* it has it still */
    assert_int_equal(image_copies_held(&image, NULL), 2);
    assert_true(image_copy_see(&image, N1, "n1", NULL));
    assert_int_equal(image.copies.count, 1);
    assert_true(image_copy_remove(&image, N2));
    assert_false(image_copy_remove(&image, N2));
    assert_int_equal(image.copies.count, 0);
    OBJECT_CLEAR(image, &image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wanted),
        cmocka_unit_test(test_by_the_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
