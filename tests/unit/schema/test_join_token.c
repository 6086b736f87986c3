/* Join tokens: round trip, and every cut or changed text is refused with words. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
/* clang-format on */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/pki.h"
#include "schema/join_token.h"

static struct join_token sample(void)
{
    struct join_token token = {.id = "0f8fad5b-d9cb-469f-a165-70867728950e", .address_count = 2};
    memset(token.secret, 'a', 64);
    memset(token.ca_sha256, '7', 64);
    strcpy(token.cluster_id, "8c9e6679-7425-40de-944b-e07fc1f90ae7");
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
    assert_string_equal(back.cluster_id, token.cluster_id);
    assert_int_equal(back.address_count, 2);
    assert_string_equal(back.addresses[1], token.addresses[1]);
    char prefix[JOIN_TOKEN_PREFIX_SIZE];
    join_token_peer_prefix(&back, prefix);
    assert_string_equal(prefix, "spiffe://drover/8c9e6679-7425-40de-944b-e07fc1f90ae7/controller/");
}

/* Tokens made before the cluster's id was in them are good for days. */
static void test_first_form(void **unused)
{
    (void)unused;
    struct join_token token = sample(), back;
    char text[JOIN_TOKEN_TEXT_MAX], prefix[JOIN_TOKEN_PREFIX_SIZE];
    snprintf(text, sizeof text, "drover1/%s/%s/%s/192.0.2.1:7443", token.id, token.secret, token.ca_sha256);
    assert_int_equal(join_token_parse(text, &back, NULL), 0);
    assert_string_equal(back.ca_sha256, token.ca_sha256);
    assert_string_equal(back.cluster_id, "");
    assert_int_equal(back.address_count, 1);
    join_token_peer_prefix(&back, prefix);
    assert_string_equal(prefix, "spiffe://drover/*/controller/");
}

/* What a controller answers must be what the token promises. */
static void test_answers(void **unused)
{
    (void)unused;
    struct join_token token = sample();
    const char *cluster = token.cluster_id, *id = token.id;
    char *ca, *ca_key, *other, *other_key, *certificate, *key, uri[160];
    struct error err;
    assert_int_equal(pki_create_ca("one", 1, &ca, &ca_key, NULL), 0);
    assert_int_equal(pki_create_ca("two", 1, &other, &other_key, NULL), 0);
    assert_int_equal(pki_fingerprint(ca, token.ca_sha256, NULL), 0);
    snprintf(uri, sizeof uri, "spiffe://drover/%s/host/%s", cluster, id);
    struct pki_subject subject = {.common_name = "x", .uri = uri, .valid_days = 1};
    assert_int_equal(pki_issue(ca, ca_key, &subject, &certificate, &key, NULL), 0);
    assert_int_equal(join_token_check(&token, ca, certificate, cluster, "host", id, &err), 0);
    assert_int_equal(join_token_check(&token, other, certificate, cluster, "host", id, &err), -EACCES);
    assert_int_equal(join_token_check(&token, ca, certificate, id, "host", id, &err), -EACCES); /* another cluster */
    assert_int_equal(join_token_check(&token, ca, certificate, cluster, "controller", id, &err), -EACCES);
    assert_int_equal(join_token_check(&token, ca, certificate, cluster, "host", cluster, &err), -EACCES);
    token.cluster_id[0] = '\0';
    assert_int_equal(join_token_check(&token, ca, certificate, token.id, "host", id, &err), -EACCES);
    free(certificate);
    pki_free_secret(key);
    assert_int_equal(pki_issue(other, other_key, &subject, &certificate, &key, NULL), 0);
    assert_int_equal(join_token_check(&token, ca, certificate, cluster, "host", id, &err), -EACCES);
    char *all[] = {ca, other, certificate};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        free(all[i]);
    pki_free_secret(ca_key);
    pki_free_secret(other_key);
    pki_free_secret(key);
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
        memset(token.addresses[i], 'h', 130);
        strcpy(token.addresses[i] + 130, ":7443");
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
        cmocka_unit_test(test_first_form),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_too_many_addresses_are_left_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
