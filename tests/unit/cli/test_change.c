/* A change of labels and of nothing else: what was read is what is changed, also where somebody else is faster. THREADED: see
 * client_fixture.h. */
#include "tests/unit/cli/client_fixture.h"

#include <errno.h>

#include "cli/change.h"

/* A VM with a label `turn`, which somebody else counts up between a reading and the change that follows, @rivals times. */
struct bed {
    struct client_bed client;
    unsigned rivals, revision, reads, writes;
    char path[64], body[400]; /* of the last write */
};

static void handle(struct http_request *request, void *arg)
{
    static const char refusal[] = "{\"code\":\"stale-revision\",\"detail\":\"read it again\"}";
    struct bed *b = arg;
    char text[200], if_match[32];
    const char *given = http_request_header(request, "If-Match");
    snprintf(if_match, sizeof if_match, "\"%u\"", b->revision);
    if (request->method == HTTP_GET) {
        b->reads++;
    } else {
        b->writes++;
        snprintf(b->path, sizeof b->path, "%s?%s", request->path, request->query);
        snprintf(b->body, sizeof b->body, "%s", (const char *)request->body);
    }
    if (request->method != HTTP_GET && b->rivals > 0) {
        b->rivals--;
        b->revision++;
        snprintf(if_match, sizeof if_match, "\"%u\"", b->revision);
    }
    if (given != NULL && strcmp(given, if_match) != 0)
        http_respond(request, 412, "application/problem+json", NULL, refusal, strlen(refusal));
    else
        http_respond(request, 200, "application/json", NULL, text,
                     (size_t)snprintf(text, sizeof text, "{\"revision\":%u,\"labels\":{\"turn\":\"%u\"}}", b->revision, b->revision));
}

static int change(struct bed *b, char *option, char *value, struct error *err)
{
    struct invocation call;
    struct client client;
    struct reply reply = {0};
    char *argv[] = {(char[]){"vm"}, (char[]){"update"}, (char[]){"w"}, option, value};
    assert_int_equal(invocation_parse(ARRAY_SIZE(argv), argv, &call, err), 0);
    const struct invocation user = client_bed_call(&b->client);
    call.endpoint = user.endpoint;
    call.ca = user.ca;
    call.cert = user.cert;
    call.key = user.key;
    int rc = client_init(&client, &call, err);
    if (rc == 0)
        rc = change_request(&call, &client, "/v1/vms/w?dry_run=true", &reply, err);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

static void test_labels(void **state)
{
    static const struct {
        unsigned rivals, reads, writes;
        const char *body; /* NULL: it is given up */
    } cases[] = {
        {0, 1, 1, "{\"labels\":{\"turn\":\"7\",\"a\":\"b\"}}"},
        {2, 3, 3, "{\"labels\":{\"turn\":\"9\",\"a\":\"b\"}}"},
        {100, 10, 10, NULL}, /* there is an end to it */
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b = {.rivals = cases[i].rivals, .revision = 7};
        struct error err = {0};
        client_bed_start(&b.client, handle, &b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
        int rc = change(&b, (char[]){"--label"}, (char[]){"a=b"}, &err);
        client_bed_finish(&b.client);
        assert_int_equal(rc == 0, cases[i].body != NULL);
        if (rc < 0)
            assert_int_equal(err.kind, ERROR_STALE);
        assert_int_equal(b.reads, cases[i].reads);
        assert_int_equal(b.writes, cases[i].writes);
        assert_string_equal(b.path, "/v1/vms/w?dry_run=true");
        if (cases[i].body != NULL)
            assert_string_equal(b.body, cases[i].body);
    }
}

/* What rests on nothing that is there is one request, whatever the revision. */
static void test_plain_fields(void **state)
{
    struct bed b = {.rivals = 1, .revision = 7};
    struct error err = {0};
    (void)state;
    client_bed_start(&b.client, handle, &b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
    int rc = change(&b, (char[]){"--restart"}, (char[]){"never"}, &err);
    client_bed_finish(&b.client);
    assert_int_equal(rc, 0);
    assert_int_equal(b.reads, 0);
    assert_int_equal(b.writes, 1);
    assert_string_equal(b.body, "{\"restart\":\"never\"}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_labels),
        cmocka_unit_test(test_plain_fields),
    };
    return cmocka_run_group_tests_name("change", tests, NULL, NULL);
}
