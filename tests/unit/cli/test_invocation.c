/* What is typed: taken apart rightly, refused with the cure, and turned into the body that the API takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/body.h"

#define WORDS_MAX 32

/* Split a command line at blanks; the words live in @line. */
static int parse(char *line, struct invocation *call, struct error *err)
{
    char *argv[WORDS_MAX], *rest = NULL;
    int argc = 0;
    for (char *w = strtok_r(line, " ", &rest); w != NULL && argc < WORDS_MAX; w = strtok_r(NULL, " ", &rest))
        argv[argc++] = w;
    static char *kept[WORDS_MAX]; /* options point into argv's strings, not into argv itself */
    memcpy(kept, argv, sizeof kept);
    return invocation_parse(argc, kept, call, err);
}

/* The body of the verb's route; a change is one of @held. */
static int build(const struct invocation *call, const char *held, json_t **ret, struct error *err)
{
    const struct route_desc *route = &schema_routes[call->verb->route];
    if (route->method != ROUTE_PATCH)
        return body_build(call, route->body, ret, err);
    json_t *object = json_loads(held, 0, NULL);
    assert_non_null(object);
    int rc = body_build_change(call, route->body, object, ret, err);
    json_decref(object);
    return rc;
}

static void check_body(const char *typed, const char *held, const char *wanted)
{
    struct invocation call;
    struct error err = {0};
    json_t *body = NULL, *want = json_loads(wanted, 0, NULL);
    CLEANUP_FREE char *line = xstrdup(typed);
    assert_non_null(want);
    if (parse(line, &call, &err) < 0 || build(&call, held, &body, &err) < 0)
        fail_msg("%s: %s", typed, err.text);
    if (!json_equal(body, want)) {
        char *got = json_dumps(body, JSON_COMPACT);
        fail_msg("%s: %s", typed, got);
    }
    json_decref(want);
    json_decref(body);
}

static void test_bodies(void **state)
{
    static const struct {
        const char *line, *body;
    } cases[] = {
        {"vm create web1 --image debian --flavor small", "{\"name\":\"web1\",\"image\":\"debian\",\"flavor\":\"small\"}"},
        {"vm create w --image i --vcpus 2 --memory 512MiB --ha --started=false",
         "{\"name\":\"w\",\"image\":\"i\",\"vcpus\":2,\"memory_bytes\":536870912,\"ha\":true,\"started\":false}"},
        {"vm create w --image=i --disk name=data,size=10GiB --disk name=b,size=1M,read-only --nic bridge=br0",
         "{\"name\":\"w\",\"image\":\"i\",\"disks\":[{\"name\":\"data\",\"size_bytes\":10737418240},"
         "{\"name\":\"b\",\"size_bytes\":1048576,\"read_only\":true}],\"nics\":[{\"bridge\":\"br0\"}]}"},
        {"vm create w --image i --disk none --started=false", "{\"name\":\"w\",\"image\":\"i\",\"disks\":[],\"started\":false}"},
        {"vm create w --label a=b --image i --label c=d=e", "{\"name\":\"w\",\"labels\":{\"a\":\"b\",\"c\":\"d=e\"},\"image\":\"i\"}"},
        {"image create d --kind kernel --kernel url=https://h/k,sha256=ab",
         "{\"name\":\"d\",\"kind\":\"kernel\",\"kernel\":{\"url\":\"https://h/k\",\"sha256\":\"ab\"}}"},
        {"host update n1 --schedulable=false -o json", "{\"schedulable\":false}"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        check_body(cases[i].line, "{}", cases[i].body);
}

/* The API takes labels as a whole; who types one more means no other one to go. */
static void test_labels_are_laid_over(void **state)
{
    static const char held[] = "{\"labels\":{\"backup-policy\":\"nightly\",\"tier\":\"web\"},\"restart\":\"always\"}";
    static const struct {
        const char *line, *body;
    } cases[] = {
        {"vm update w --label a=b", "{\"labels\":{\"backup-policy\":\"nightly\",\"tier\":\"web\",\"a\":\"b\"}}"},
        {"vm update w --label tier=db --restart never", "{\"labels\":{\"backup-policy\":\"nightly\",\"tier\":\"db\"},\"restart\":\"never\"}"},
        {"vm update w --label tier=", "{\"labels\":{\"backup-policy\":\"nightly\"}}"},
        {"vm update w --label tier= --label a=b=c --label not-there=", "{\"labels\":{\"backup-policy\":\"nightly\",\"a\":\"b=c\"}}"},
        {"vm update w --label none", "{\"labels\":{}}"},
        {"vm update w --label none --label a=b", "{\"labels\":{\"a\":\"b\"}}"},
        {"vm update w --restart never", "{\"restart\":\"never\"}"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        check_body(cases[i].line, held, cases[i].body);
    check_body("vm create w --image i --label a=", held, "{\"name\":\"w\",\"image\":\"i\",\"labels\":{\"a\":\"\"}}");
}

static void test_refusals(void **state)
{
    static const struct {
        const char *line, *words;
    } cases[] = {
        {"vms list", "no noun 'vms'; `drover --help` lists them; is vm meant?"},
        {"volmue list", "lists them; is volume meant?"},
        {"vm craete x", "`drover vm --help` lists them; is create meant?"},
        {"vm create a --vcpu 1", "`drover vm create --help` lists them; is --vcpus meant?"},
        {"vm delete a --dryrun", "; is --dry-run meant?"},
        {"vm console a --sceonds 1", "; is --seconds meant?"},
        {"backup-policy create n --every 1", "; is --every-s meant?"},
        {"vm list --filter --output json", "--filter needs a value; one that begins with -- is given as --filter=VALUE"},
        {"vm list --timeout --yes", "--timeout needs a value"},
        {"vm creat x", "vm has no verb 'creat'; `drover vm --help`"},
        {"vm stop", "which vm? Type it after the verb, such as: drover vm stop web1"},
        {"vm list extra", "one word too many"},
        {"vm list --bogus", "no option --bogus here; `drover vm list --help`"},
        {"vm list -o xml", "table, json, yaml or name"},
        {"vm list --timeout 0", "from 1 to"},
        {"vm list --filter", "--filter needs a value"},
        {"vm create a --image", "--image needs a value"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct invocation call;
        struct error err = {0};
        CLEANUP_FREE char *line = xstrdup(cases[i].line);
        if (parse(line, &call, &err) != -EINVAL || strstr(err.text, cases[i].words) == NULL)
            fail_msg("%s: '%s'", cases[i].line, err.text);
    }
}

/* What a script has in a variable: --force=$FORCE. */
static void test_flags(void **state)
{
    static const struct {
        const char *line;
        bool force, dry, yes, wait;
    } cases[] = {
        {"vm delete w", false, false, false, false},
        {"vm delete w --force --dry-run --yes --wait", true, true, true, true},
        {"vm delete w --force=true --dry-run=true --yes=true --wait=true", true, true, true, true},
        {"vm delete w --force=false --dry-run=false --yes=false --wait=false", false, false, false, false},
        {"vm delete w --force --force=false --yes -y=false --wait --wait=false", false, false, false, false},
        {"vm delete w --force=false --force --yes=false -y --wait=false --wait", true, false, true, true},
    };
    static const char *const refused[] = {"vm delete w --force=", "vm delete w --force=no", "vm delete w --dry-run=1", "vm delete w --yes=",
                                          "vm delete w --yes=no", "vm delete w --wait=never", "vm delete w -yq", "vm create w --image i --ha=",
                                          "vm create w --image i --ha=maybe", "drill run host-loss --check=maybe"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct invocation call;
        struct error err = {0};
        CLEANUP_FREE char *line = xstrdup(cases[i].line);
        if (parse(line, &call, &err) < 0)
            fail_msg("%s: %s", cases[i].line, err.text);
        if ((invocation_option(&call, "force") != NULL) != cases[i].force || (invocation_option(&call, "dry-run") != NULL) != cases[i].dry ||
            call.yes != cases[i].yes || call.wait != cases[i].wait)
            fail_msg("%s", cases[i].line);
    }
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        struct invocation call;
        struct error err = {0};
        CLEANUP_FREE char *line = xstrdup(refused[i]);
        if (parse(line, &call, &err) != -EINVAL || strstr(err.text, "takes true or false") == NULL)
            fail_msg("%s: '%s'", refused[i], err.text);
    }
}

static void test_bad_values(void **state)
{
    static const struct {
        const char *line, *words;
    } cases[] = {
        {"vm create a --image i --memory lots", "--memory takes a number such as 512MiB"},
        {"vm create a --image i --memory 1GB", "K, M, G, T stand for KiB"},
        {"vm create a --image i --vcpus 1.5", "--vcpus takes a number such as 2, not '1.5'"},
        {"backup-policy create a --every-s 1d", "--every-s takes seconds such as 3600, not '1d'"},
        {"vm create a --image i --disk colour=red", "with commas between them, not 'colour=red'"},
        {"vm create a --image i --nic br0", "--nic takes "},
        {"vm create a --image i --disk none --disk name=b", "do not go together"},
        {"vm create a --image i --disk name=b --disk none", "do not go together"},
        {"image create a --kind kernel --kernel http://h/k", "a local path, or url=, sha256="},
        {"vm update a", "nothing to change"},
        {"vm create a --image i --label nothing", "key=value"},
        {"vm create a --image i --label none", "key=value"},
        {"vm update a --label nothing", "key=value"},
        {"image create a --kind kernel --kernel /does/not/exist", "cannot find /does/not/exist"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct invocation call;
        struct error err = {0};
        json_t *body = NULL;
        CLEANUP_FREE char *line = xstrdup(cases[i].line);
        assert_int_equal(parse(line, &call, &err), 0);
        if (build(&call, "{}", &body, &err) >= 0 || strstr(err.text, cases[i].words) == NULL)
            fail_msg("%s: '%s'", cases[i].line, err.text);
    }
}

/* @path: a template of mkstemp(3), which becomes the file's name. */
static void file_make(char *path, const char *text)
{
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/* --key stays the client's own; the store's has another name, and may lie in a file. */
static void test_key_of_a_store(void **state)
{
    char path[] = "build/test-key-XXXXXX", line[200];
    struct invocation call;
    struct error err = {0};
    json_t *body = NULL;
    (void)state;
    file_make(path, "drbk1-abcdefghijkl\n");
    snprintf(line, sizeof line, "backup-store create nas --location /srv/b --key own.pem --store-key @%s", path);
    assert_int_equal(parse(line, &call, &err), 0);
    assert_string_equal(call.key, "own.pem");
    if (body_build(&call, &backup_store_desc, &body, &err) < 0)
        fail_msg("%s", err.text);
    unlink(path);
    assert_string_equal(json_string_value(json_object_get(body, "key")), "drbk1-abcdefghijkl");
    json_decref(body);
}

static void test_local_file_becomes_artifact(void **state)
{
    char path[] = "build/test-artifact-XXXXXX", line[200];
    struct invocation call;
    struct error err = {0};
    json_t *body = NULL;
    (void)state;
    file_make(path, "abc");
    snprintf(line, sizeof line, "image create d --kind kernel --kernel %s", path);
    assert_int_equal(parse(line, &call, &err), 0);
    assert_int_equal(body_build(&call, &image_desc, &body, &err), 0);
    unlink(path);
    const json_t *kernel = json_object_get(body, "kernel");
    assert_string_equal(json_string_value(json_object_get(kernel, "sha256")),
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180-2 B.1 */
    assert_int_equal(json_integer_value(json_object_get(kernel, "size_bytes")), 3);
    assert_memory_equal(json_string_value(json_object_get(kernel, "url")), "file:///", 8);
    json_decref(body);
}

/* Where nothing is near, nothing is offered. */
static void test_nothing_is_near(void **state)
{
    static const char *const lines[] = {"xyz list", "vm frobnicate", "vm list --frobnicate=1", "vm list -x", "--frobnicate", "vm list --"};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        struct invocation call;
        struct error err = {0};
        CLEANUP_FREE char *line = xstrdup(lines[i]);
        if (parse(line, &call, &err) != -EINVAL || strstr(err.text, "meant") != NULL)
            fail_msg("%s: '%s'", lines[i], err.text);
    }
}

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        int rc;
        uint64_t bytes;
    } cases[] = {{"0", 0, 0},          {"1K", 0, 1024},        {"2MiB", 0, 2 << 20},         {"3G", 0, UINT64_C(3) << 30},
                 {"1TiB", 0, UINT64_C(1) << 40}, {"", -EINVAL, 0}, {"-1", -EINVAL, 0},       {"1MB", -EINVAL, 0},
                 {"9999999T", -ERANGE, 0},       {"99999999999999999999", -ERANGE, 0}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t got = 0;
        int rc = size_parse(cases[i].text, &got);
        if (rc != cases[i].rc || got != cases[i].bytes)
            fail_msg("'%s' -> %d %llu", cases[i].text, rc, (unsigned long long)got);
    }
}

static void test_every_verb_has_an_example_that_parses(void **state)
{
    (void)state;
    for (size_t i = 0; i < verbs_count; i++) {
        struct invocation call;
        struct error err = {0};
        CLEANUP_FREE char *line = xstrdup(verbs[i].example);
        char *redirect = strchr(line, '>');
        if (redirect != NULL)
            *redirect = '\0';
        assert_memory_equal(line, "drover ", 7);
        if (parse(line + 7, &call, &err) < 0)
            fail_msg("%s: %s", verbs[i].example, err.text);
        assert_ptr_equal(call.verb, &verbs[i]);
        assert_true(verbs[i].run != NULL || verbs[i].route != ROUTE_COUNT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bodies), cmocka_unit_test(test_labels_are_laid_over), cmocka_unit_test(test_flags),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_key_of_a_store),
        cmocka_unit_test(test_local_file_becomes_artifact), cmocka_unit_test(test_sizes), cmocka_unit_test(test_nothing_is_near),
        cmocka_unit_test(test_every_verb_has_an_example_that_parses),
    };
    return cmocka_run_group_tests_name("invocation", tests, NULL, NULL);
}
