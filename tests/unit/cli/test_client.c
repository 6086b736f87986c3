/* The CLI's client: whom it talks to, and what its writes carry. THREADED: see client_fixture.h. */
#include "tests/unit/cli/client_fixture.h"

#include <errno.h>

struct bed {
    struct client_bed client;
    unsigned requests; /* the server's thread; read after it has ended */
    bool keyed;
    char first_key[64];
    bool same_key;
    int first_status; /* what the first request is answered with */
    int then_status;  /* and the others; 0: 200 */
};

static void handle(struct http_request *request, void *arg)
{
    struct bed *b = arg;
    b->requests++;
    const char *key = http_request_header(request, "Idempotency-Key");
    b->keyed = key != NULL;
    if (b->requests == 1)
        snprintf(b->first_key, sizeof b->first_key, "%s", key != NULL ? key : "");
    b->same_key = strcmp(b->first_key, key != NULL ? key : "") == 0;
    http_respond(request, b->requests == 1 && b->first_status != 0 ? b->first_status
                          : b->then_status != 0 && b->requests > 1                 ? b->then_status
                                                                                   : 200,
                 "application/json", NULL, "{}", 2);
}

static void bed_start(struct bed *b, const char *server_uri, const char *user_uri)
{
    *b = (struct bed){.requests = 0};
    client_bed_start(&b->client, handle, b, server_uri, user_uri);
}

static void bed_finish(struct bed *b)
{
    client_bed_finish(&b->client);
}

/* One request of @method as the user; what client_init or client_request said. */
static int ask(struct bed *b, const char *method, struct error *err)
{
    const struct invocation call = client_bed_call(&b->client);
    struct client client;
    struct reply reply = {0};
    int rc = client_init(&client, &call, err);
    if (rc == 0)
        rc = client_request(&client, method, "/v1/vms/a", NULL, &reply, err);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

static void test_writes_carry_a_key(void **state)
{
    static const struct {
        const char *method;
        bool keyed;
    } rows[] = {{"GET", false}, {"POST", true}, {"PATCH", true}, {"DELETE", true}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct bed b;
        struct error err = {0};
        bed_start(&b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
        int rc = ask(&b, rows[i].method, &err);
        bed_finish(&b);
        assert_int_equal(rc, 0);
        assert_int_equal(b.requests, 1);
        assert_int_equal(b.keyed, rows[i].keyed);
    }
}

/* What says that nobody knows is asked again, a write under its first key. What is the answer is not. */
static void test_no_answer_is_asked_again(void **state)
{
    static const struct {
        int status;
        unsigned requests;
    } cases[] = {{502, 2}, {503, 2}, {504, 2}, {500, 1}, {409, 1}, {404, 1}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b;
        struct error err = {.code = 0};
        bed_start(&b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
        b.first_status = cases[i].status;
        int rc = ask(&b, "POST", &err);
        bed_finish(&b);
        assert_int_equal(b.requests, cases[i].requests);
        assert_int_equal(rc == 0, cases[i].requests == 2);
        assert_true(b.same_key);
    }
}

/* What is not there was removed by an earlier attempt only where that may have been carried out. */
static void test_removed_by_an_earlier_attempt(void **state UNUSED)
{
    static const struct {
        int status;
        bool removed;
    } cases[] = {{502, false}, {503, false}, {504, true}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b;
        struct error err = {.code = 0};
        bed_start(&b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
        b.first_status = cases[i].status;
        b.then_status = 404;
        int rc = ask(&b, "DELETE", &err);
        bed_finish(&b);
        assert_int_equal(b.requests, 2);
        assert_int_equal(rc == 0, cases[i].removed);
    }
}

/* The cluster's authority signs hosts too: whoever has broken into one must not pass for a controller. */
static void test_only_controllers_of_the_cluster(void **state)
{
    static const char *const others[] = {"spiffe://drover/c1/host/h1", "spiffe://drover/c1/user/eve",
                                         "spiffe://drover/c2/controller/1", "spiffe://drover/c1/controller/"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        struct bed b;
        struct error err = {0};
        bed_start(&b, others[i], "spiffe://drover/c1/user/admin");
        int rc = ask(&b, "GET", &err);
        bed_finish(&b);
        assert_int_equal(rc, -EACCES);
        assert_int_equal(b.requests, 0);
    }
}

static void test_certificate_without_cluster(void **state)
{
    static const char *const uris[] = {"spiffe://drover/c1", "spiffe://drover//user/a", "spiffe://else/c1/user/a"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(uris); i++) {
        struct bed b;
        struct error err = {0};
        bed_start(&b, "spiffe://drover/c1/controller/1", uris[i]);
        int rc = ask(&b, "GET", &err);
        bed_finish(&b);
        assert_int_equal(rc, -EINVAL);
        assert_non_null(strstr(err.text, "Drover cluster"));
    }
}

static void test_endpoints_as_they_are_typed(void **state)
{
    static const struct {
        const char *typed, *address; /* NULL: refused */
    } cases[] = {
        {"192.0.2.1", "192.0.2.1:7443"},      {"192.0.2.1:8", "192.0.2.1:8"},      {"c1.example.org", "c1.example.org:7443"},
        {"https://c1:7443/", "c1:7443"},      {"https://c1", "c1:7443"},           {"fd00::1", "[fd00::1]:7443"},
        {"[fd00::1]", "[fd00::1]:7443"},      {"[fd00::1]:8", "[fd00::1]:8"},      {"https://[fd00::1]/", "[fd00::1]:7443"},
        {"https://c1/v1", NULL},              {"", NULL},                          {"c1:", NULL},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error err = {.code = 0};
        CLEANUP_FREE char *address = client_endpoint_parse(cases[i].typed, &err);
        if (!text_same(address, cases[i].address) || (address == NULL && strstr(err.text, "must be") == NULL))
            fail_msg("'%s': %s %s", cases[i].typed, address, err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_carry_a_key),
        cmocka_unit_test(test_no_answer_is_asked_again),
        cmocka_unit_test(test_removed_by_an_earlier_attempt),
        cmocka_unit_test(test_only_controllers_of_the_cluster),
        cmocka_unit_test(test_certificate_without_cluster),
        cmocka_unit_test(test_endpoints_as_they_are_typed),
    };
    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
