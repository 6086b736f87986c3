/* Bounded reading, writing, CRC-32C against its published vectors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "common/bytes.h"

static void test_short_reads_stay_inside(void **state)
{
    (void)state;
    for (size_t size = 0; size < 15; size++) {
        uint8_t *exact = xcalloc(1, size); /* the sanitizers see one byte too far */
        memset(exact, 0xff, size);
        struct bytes_reader r = bytes_reader(exact, size);
        bytes_get_u64(&r);
        bytes_get_u32(&r);
        bytes_get_u16(&r);
        bytes_get_u8(&r);
        assert_true(r.bad);
        assert_int_equal(bytes_get_u8(&r), 0);
        free(exact);
    }
}

static void test_round_trip(void **state)
{
    struct bytes_writer w = {0};
    (void)state;
    bytes_put_u8(&w, 0x12);
    bytes_put_u16(&w, 0x3456);
    bytes_put_u32(&w, 0x789abcde);
    bytes_put_u64(&w, UINT64_C(0x0123456789abcdef));
    bytes_put_format(&w, "%s-%d", "x", 7);
    bytes_put_padding(&w, 8);
    assert_int_equal(w.size, 24);
    struct bytes_reader r = bytes_reader(w.data, w.size);
    assert_int_equal(bytes_get_u8(&r), 0x12);
    assert_int_equal(bytes_get_u16(&r), 0x3456);
    assert_int_equal(bytes_get_u32(&r), 0x789abcde);
    assert_int_equal(bytes_get_u64(&r), UINT64_C(0x0123456789abcdef));
    assert_memory_equal(bytes_get(&r, 3), "x-7", 3);
    assert_false(r.bad);
    bytes_writer_finish(&w);
}

static void test_crc32c_vectors(void **state)
{
    uint8_t zeros[32] = {0};
    (void)state;
    assert_int_equal(bytes_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(bytes_crc32c(0, zeros, sizeof zeros), 0x8a9136aau); /* RFC 3720 B.4 */
    assert_int_equal(bytes_crc32c(bytes_crc32c(0, "12345", 5), "6789", 4), 0xe3069283u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_short_reads_stay_inside), cmocka_unit_test(test_round_trip),
                                       cmocka_unit_test(test_crc32c_vectors)};
    return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
