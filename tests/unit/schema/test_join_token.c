/* Join tokens: round trip, and every cut or changed text is refused with words. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include <string.h>

#include "schema/join_token.h"

static struct join_token sample(void)
{
    struct join_token token = {.id = "0f8fad5b-d9cb-469f-a165-70867728950e", .address_count = 2};
    memset(token.secret, 'a', 64);
    memset(token.ca_sha256, '7', 64);
    strcpy(token.addresses[0], "192.0.2.1:7443");
    strcpy(token.addresses[1], "[2001:db8::1]:7443");
    return token;
}

static void test_round_trip(void **unused)
{
    (void)unused;
    struct join_token token = sample(), back;
    struct error err;
    char text[JOIN_TOKEN_TEXT_MAX];
    join_token_format(&token, text);
    assert_int_equal(join_token_parse(text, &back, &err), 0);
    assert_string_equal(back.id, token.id);
    assert_string_equal(back.secret, token.secret);
    assert_string_equal(back.ca_sha256, token.ca_sha256);
    assert_int_equal(back.address_count, 2);
    assert_string_equal(back.addresses[1], token.addresses[1]);
}

static void test_damage(void **unused)
{
    (void)unused;
    struct join_token token = sample(), back;
    char text[JOIN_TOKEN_TEXT_MAX];
    join_token_format(&token, text);
    size_t whole = strlen(text), head = whole - strlen("192.0.2.1:7443,[2001:db8::1]:7443");
    for (size_t cut = 0; cut <= head; cut++) {
        char part[JOIN_TOKEN_TEXT_MAX];
        memcpy(part, text, cut);
        part[cut] = '\0';
        struct error err = {.text = ""};
        assert_true(join_token_parse(part, &back, &err) < 0);
        assert_true(strlen(err.text) > 0);
        assert_string_equal(err.field, "/token");
    }
    for (size_t i = 0; i < head; i++) {
        char changed[JOIN_TOKEN_TEXT_MAX];
        strcpy(changed, text);
        changed[i] = 'Z';
        assert_true(join_token_parse(changed, &back, NULL) < 0);
    }
}

static void test_too_many_addresses_are_left_out(void **unused)
{
    (void)unused;
    struct join_token token = sample(), back;
    token.address_count = JOIN_TOKEN_ADDRESSES_MAX;
    for (size_t i = 0; i < JOIN_TOKEN_ADDRESSES_MAX; i++) {
        memset(token.addresses[i], 'h', 150);
        strcpy(token.addresses[i] + 150, ":7443");
    }
    char text[JOIN_TOKEN_TEXT_MAX];
    join_token_format(&token, text);
    assert_int_equal(join_token_parse(text, &back, NULL), 0);
    assert_int_equal(back.address_count, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_too_many_addresses_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
