/* A change of what is there: labels are laid over, what a list leaves out is asked for, and what was read is what is changed, also
 * where somebody else is faster. THREADED: see client_fixture.h. */
#include "tests/unit/cli/client_fixture.h"

#include <errno.h>

#include "cli/change.h"

/* An object with a label `turn`, which somebody else counts up between a reading and the change that follows, @rivals times. */
struct bed {
    struct client_bed client;
    const char *more; /* of the object, beginning with a comma */
    unsigned rivals, revision, reads, writes;
    char path[64], body[400]; /* of the last write */
};

static void handle(struct http_request *request, void *arg)
{
    static const char refusal[] = "{\"code\":\"stale-revision\",\"detail\":\"read it again\"}";
    struct bed *b = arg;
    char text[800], if_match[32];
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
                     (size_t)snprintf(text, sizeof text, "{\"revision\":%u,\"labels\":{\"turn\":\"%u\"}%s}", b->revision, b->revision,
                                      b->more ? b->more : ""));
}

/* @typed: a command line, without what names the cluster. */
static int change(struct bed *b, const char *typed, struct error *err)
{
    struct invocation call;
    struct client client;
    struct reply reply = {0};
    CLEANUP_FREE char *line = xstrdup(typed);
    char *argv[16], *rest = NULL;
    int argc = 0;
    for (char *w = strtok_r(line, " ", &rest); w != NULL && argc < (int)ARRAY_SIZE(argv); w = strtok_r(NULL, " ", &rest))
        argv[argc++] = w;
    client_bed_start(&b->client, handle, b, "spiffe://drover/c1/controller/1", "spiffe://drover/c1/user/admin");
    if (invocation_parse(argc, argv, &call, err) < 0)
        fail_msg("%s: %s", typed, err->text);
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
    client_bed_finish(&b->client);
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
        int rc = change(&b, "vm update w --label a=b", &err);
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
    int rc = change(&b, "vm update w --restart never", &err);
    assert_int_equal(rc, 0);
    assert_int_equal(b.reads, 0);
    assert_int_equal(b.writes, 1);
    assert_string_equal(b.body, "{\"restart\":\"never\"}");
}

#define RULES                                                                                                                     \
    ",\"rules\":[{\"direction\":\"inbound\",\"protocol\":\"tcp\",\"port_first\":443},"                                              \
    "{\"direction\":\"inbound\",\"remote\":\"192.0.2.0/24\"}]"
#define R443 "--rule direction=inbound,protocol=tcp,port-first=443"
#define RNET "--rule remote=192.0.2.0/24,direction=inbound" /* the order of its parts says nothing */
#define NICS                                                                                                                      \
    ",\"nics\":[{\"mac\":\"52:54:00:00:00:0a\",\"network\":\"lan\",\"ips\":[\"192.0.2.5\"],\"allocated\":true,\"number\":0,"                  \
    "\"security_groups\":[\"web\",\"ssh\"]},{\"mac\":\"52:54:00:00:00:0b\",\"bridge\":\"br0\",\"number\":1}]"

static void test_what_a_list_leaves_out(void **state)
{
    static const struct {
        const char *typed, *more;
        const char *lost; /* in the refusal; NULL: it is done */
    } cases[] = {
        {"security-group update w " R443 " " RNET " --rule direction=inbound,protocol=icmp", RULES, NULL},
        {"security-group update w --rule direction=inbound,protocol=icmp", RULES,
         "security-group w would lose --rule direction=inbound,protocol=tcp,port-first=443 --rule direction=inbound,remote=192.0.2.0/24. "},
        {"security-group update w " R443, RULES, "would lose --rule direction=inbound,remote=192.0.2.0/24. "},
        {"security-group update w --rule none", RULES, "would lose --rule direction=inbound,protocol=tcp,port-first=443 --rule "},
        {"security-group update w --rule none --yes", RULES, NULL},
        {"security-group update w --rule none --dry-run --quiet", RULES, NULL},
        {"security-group update w --name v", RULES, NULL},
        {"pool update w --host n1 --host n2 --host n3", ",\"hosts\":[\"n1\",\"n2\"]", NULL},
        {"pool update w --host n3", ",\"hosts\":[\"n1\",\"n2\"]", "pool w would lose --host n1 --host n2. "},
        {"pool update w --host h", ",\"hosts\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]", "--host f and 2 more. "},
        {"vm update w --nic mac=52:54:00:00:00:0A --nic mac=52:54:00:00:00:0b --nic network=dmz", NICS, NULL},
        {"vm update w --nic network=dmz", NICS, "vm w would lose --nic mac=52:54:00:00:00:0a --nic mac=52:54:00:00:00:0b. "},
        {"vm update w --nic mac=52:54:00:00:00:0a,security-group=ssh --nic mac=52:54:00:00:00:0b", NICS,
         "vm w would lose --nic mac=52:54:00:00:00:0a,security-group=web. "},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b = {.revision = 7, .more = cases[i].more};
        struct error err = {0};
        int rc = change(&b, cases[i].typed, &err);
        if ((rc == 0) != (cases[i].lost == NULL) || (rc < 0 && (strstr(err.text, cases[i].lost) == NULL || strstr(err.text, "--yes") == NULL)))
            fail_msg("%s: %s", cases[i].typed, err.text);
        assert_int_equal(b.writes, rc == 0);
    }
}

/* Disks are found by their names; those that are not named stay as they are. */
static void test_one_disk_of_several(void **state)
{
    static const char disks[] = ",\"disks\":[{\"name\":\"root\",\"image\":true,\"size_bytes\":1048576},{\"name\":\"data\",\"size_bytes\":1048576}]";
    static const struct {
        const char *typed, *body;
    } cases[] = {
        {"vm update w --disk name=data,on-disk-error=report", "{\"disks\":[{\"name\":\"root\"},{\"name\":\"data\",\"on_disk_error\":\"report\"}]}"},
        {"vm update w --disk name=new,size=1M", "{\"disks\":[{\"name\":\"root\"},{\"name\":\"data\"},{\"name\":\"new\",\"size_bytes\":1048576}]}"},
        {"vm update w --disk none", "{\"disks\":[]}"}, /* refused by the cluster, in words */
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b = {.revision = 7, .more = disks};
        struct error err = {0};
        if (change(&b, cases[i].typed, &err) < 0)
            fail_msg("%s: %s", cases[i].typed, err.text);
        assert_string_equal(b.body, cases[i].body);
    }
}

int main(void)
{
    assert_non_null(freopen("/dev/null", "r", stdin)); /* nobody to ask */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_labels),
        cmocka_unit_test(test_plain_fields),
        cmocka_unit_test(test_what_a_list_leaves_out),
        cmocka_unit_test(test_one_disk_of_several),
    };
    return cmocka_run_group_tests_name("change", tests, NULL, NULL);
}
