/* Addresses and prefixes: what is read, what is refused, and the arithmetic at the edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "common/ip_address.h"
#include "common/object.h"

static void addresses(void **test UNUSED)
{
    static const char *const good[] = {"0.0.0.0", "192.0.2.7", "255.255.255.255", "::", "2001:db8::7", "fe80::1"};
    static const char *const bad[] = {"", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", " 1.2.3.4", "1.2.3.4/8", ":::", "g::", "1::2::3"};
    char text[IP_TEXT_BYTES];
    struct ip_address ip;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_true(ip_parse(good[i], &ip));
        assert_string_equal(ip_format(&ip, text), good[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(ip_parse(bad[i], &ip));
    assert_true(ip_parse("2001:0DB8:0:0::7", &ip));
    assert_string_equal(ip_format(&ip, text), "2001:db8::7");
}

static void prefixes(void **test UNUSED)
{
    static const char *const bad[] = {"192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/a", "192.0.2.0/024", "/24", "2001:db8::1/64", "::/129", "10.0.0.0/8/8", "192.0.2.0/4294967320"};
    struct ip_prefix p;
    struct ip_address ip, last;
    char text[CIDR_TEXT_BYTES];
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (ip_prefix_parse(bad[i], &p))
            fail_msg("%s was taken", bad[i]);
    assert_true(ip_prefix_parse("192.0.2.64/26", &p));
    assert_string_equal(ip_prefix_format(&p, text), "192.0.2.64/26");
    last = ip_prefix_last(&p);
    assert_string_equal(ip_format(&last, text), "192.0.2.127");
    assert_true(ip_parse("192.0.2.127", &ip) && ip_prefix_has(&p, &ip));
    assert_true(ip_parse("192.0.2.128", &ip) && !ip_prefix_has(&p, &ip));
    assert_true(ip_parse("192.0.2.63", &ip) && !ip_prefix_has(&p, &ip));
    assert_true(ip_parse("::c000:27f", &ip) && !ip_prefix_has(&p, &ip));
    assert_true(ip_prefix_parse("0.0.0.0/0", &p));
    assert_true(ip_parse("255.1.2.3", &ip) && ip_prefix_has(&p, &ip));
    assert_true(ip_prefix_parse("2001:db8::/33", &p));
    last = ip_prefix_last(&p);
    assert_string_equal(ip_format(&last, text), "2001:db8:7fff:ffff:ffff:ffff:ffff:ffff");
    assert_true(ip_prefix_parse("192.0.2.7", &p) && p.bits == 32);
}

static void counting(void **test UNUSED)
{
    struct ip_address ip;
    char text[IP_TEXT_BYTES];
    assert_true(ip_parse("10.0.255.255", &ip) && ip_next(&ip));
    assert_string_equal(ip_format(&ip, text), "10.1.0.0");
    assert_true(ip_parse("255.255.255.255", &ip));
    assert_false(ip_next(&ip));
    assert_string_equal(ip_format(&ip, text), "255.255.255.255");
    assert_true(ip_parse("2001:db8::ffff:ffff:ffff:ffff", &ip) && ip_next(&ip));
    assert_string_equal(ip_format(&ip, text), "2001:db8:0:1::");
}

static void as_text_formats(void **test UNUSED)
{
    const char *rule;
    assert_true(text_format_ok(FORMAT_ip, "192.0.2.1", &rule));
    assert_false(text_format_ok(FORMAT_ip, "192.0.2.0/24", &rule));
    assert_true(text_format_ok(FORMAT_cidr, "192.0.2.0/24", &rule));
    assert_false(text_format_ok(FORMAT_cidr, "192.0.2.1", &rule));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(addresses), cmocka_unit_test(prefixes), cmocka_unit_test(counting),
                                       cmocka_unit_test(as_text_formats)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
