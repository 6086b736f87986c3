/* The generic codec over every object of the schema: round trips of random objects, damaged texts, and what a
 * person reads when a field is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/routes.h"

static unsigned seed = 20261;

static unsigned rnd(unsigned n)
{
    return (unsigned)rand_r(&seed) % n;
}

static char *random_text(const struct field_desc *f)
{
    static const char *const samples[FORMAT_COUNT] = {
        [FORMAT_id] = "6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11",
        [FORMAT_time] = "2026-01-31T12:00:00.000Z",
        [FORMAT_sha256] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        [FORMAT_mac] = "52:54:00:12:34:56",
        [FORMAT_ip] = "2001:db8::7",
        [FORMAT_cidr] = "192.0.2.0/24",
        [FORMAT_url] = "file:///srv/x",
        [FORMAT_path] = "/srv/x",
        [FORMAT_address] = "[::1]:7443",
        [FORMAT_name] = "n1",
    };
    if (samples[f->ref.format] != NULL)
        return xstrdup(samples[f->ref.format]);
    size_t n = f->min + rnd((unsigned)MIN(f->max - f->min + 1, (uint64_t)20));
    char *s = xcalloc(1, n + 1);
    for (size_t i = 0; i < n; i++)
        s[i] = (char)(0x20 + rnd(0x5f));
    return s;
}

static void random_object(const struct object_desc *d, void *o)
{
    struct object_head *h = o;
    memset(o, 0, d->size);
    for (unsigned i = 0; i < d->n_fields; i++) {
        const struct field_desc *f = &d->fields[i];
        void *v = (char *)o + f->offset;
        if (!(f->flags & REQUIRED) && rnd(2))
            continue;
        h->present |= UINT64_C(1) << i;
        uint64_t number = f->max > f->min ? f->min + rnd((unsigned)MIN(f->max - f->min, (uint64_t)1000000)) : f->min;
        switch (f->kind) {
        case KIND_STR:
            *(char **)v = random_text(f);
            break;
        case KIND_BOOL:
            *(bool *)v = rnd(2);
            break;
        case KIND_U32:
            *(uint32_t *)v = (uint32_t)number;
            break;
        case KIND_U64:
            *(uint64_t *)v = rnd(4) ? number : f->max;
            break;
        case KIND_ENUM:
            *(uint32_t *)v = rnd(f->ref.enums->count);
            break;
        case KIND_OBJ:
            random_object(f->ref.object, v);
            break;
        case KIND_LIST: {
            struct object_list *l = v;
            l->count = MIN(f->min + rnd(3), f->max);
            l->items = xcalloc(l->count, f->ref.object->size);
            for (size_t k = 0; k < l->count; k++)
                random_object(f->ref.object, (char *)l->items + k * f->ref.object->size);
            break;
        }
        case KIND_STRS: {
            struct string_list *l = v;
            l->count = MIN(f->min + rnd(3), f->max);
            l->items = xcalloc(l->count, sizeof *l->items);
            for (size_t k = 0; k < l->count; k++)
                l->items[k] = random_text(&(struct field_desc){.kind = KIND_STR, .min = 1, .max = 9, .ref.format = f->ref.format});
            break;
        }
        case KIND_MAP: {
            struct string_map *m = v;
            m->count = rnd(3);
            m->pairs = xcalloc(m->count, sizeof *m->pairs);
            for (size_t k = 0; k < m->count; k++)
                m->pairs[k] = (struct string_pair){xasprintf("key%zu", k), xstrdup("\"quoted\\")};
            break;
        }
        }
    }
}

static void test_round_trip_and_damage(void **state)
{
    unsigned refused = 0, rounds = 0;
    (void)state;
    print_message("seed %u\n", seed);
    for (unsigned round = 0; round < 100; round++)
        for (unsigned i = 0; i < schema_objects_count; i++, rounds++) {
            const struct object_desc *d = schema_objects[i];
            void *a = xcalloc(1, d->size), *b = xcalloc(1, d->size), *c = xcalloc(1, d->size);
            struct bytes_writer w = {0}, again = {0};
            struct error err = {0};
            random_object(d, a);
            object_encode(d, a, &w);
            if (object_decode(d, (char *)w.data, w.size, OBJECT_STORED, b, &err) < 0)
                fail_msg("%s: %s %s\n%.*s", d->name, err.field, err.text, (int)w.size, w.data);
            assert_true(object_equal(d, a, b));
            assert_int_equal(object_validate(d, b, OBJECT_STORED, &err), 0);
            object_copy(d, c, b);
            assert_true(object_equal(d, b, c));
            object_encode(d, c, &again);
            assert_int_equal(again.size, w.size);
            assert_memory_equal(again.data, w.data, w.size);
            object_clear(d, b);
            /* a damaged text, handed over as an exact-size copy so that the sanitizers see one byte too far */
            size_t cut = rnd((unsigned)w.size + 1);
            w.data[rnd((unsigned)w.size)] = (uint8_t)rnd(256);
            char *exact = malloc(cut ? cut : 1);
            memcpy(exact, w.data, cut);
            refused += object_decode(d, exact, cut, OBJECT_STORED, b, &err) < 0;
            free(exact);
            object_clear(d, a);
            object_clear(d, b);
            object_clear(d, c);
            free(a);
            free(b);
            free(c);
            bytes_writer_finish(&w);
            bytes_writer_finish(&again);
        }
    assert_true(refused > rounds * 9 / 10);
}

static void test_refusals_say_what_to_do(void **state)
{
    static const struct {
        const char *text, *field, *words;
        enum object_mode mode;
        enum error_kind kind;
    } cases[] = {
        {"{\"name\":\"a\",\"image\":\"i\",\"vcpus\":65}", "/vcpus", "from 1 to 64", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"vcpus\":\"2\"}", "/vcpus", "is a string, it must be an integer", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"vcpus\":2.0}", "/vcpus", "with a fraction", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"vcpus\":-1}", "/vcpus", "negative", OBJECT_CREATE, ERROR_INVALID},
        {"{\"image\":\"i\"}", "/name", "is missing", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"cpu\":2}", "/cpu", "not a field of vm; its fields are: name, labels", OBJECT_CREATE, ERROR_UNKNOWN_FIELD},
        {"{\"name\":\"a\",\"image\":\"i\",\"id\":\"x\"}", "/id", "set by the cluster", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"A b\",\"image\":\"i\"}", "/name", "lower-case letters", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"disks\":[{\"name\":\"d\",\"size_bytes\":1}]}", "/disks/0/size_bytes", "from 1048576", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"disks\":[{\"size_bytes\":1048576}]}", "/disks/0/name", "is missing", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"image\":\"i\",\"labels\":{\"k\":1}}", "/labels/k", "must be a string", OBJECT_CREATE, ERROR_INVALID},
        {"{\"name\":\"a\",\"name\":\"b\",\"image\":\"i\"}", "", "duplicate", OBJECT_CREATE, ERROR_MALFORMED},
        {"{\"name\":\"\xff\",\"image\":\"i\"}", "", "unable to decode byte", OBJECT_CREATE, ERROR_MALFORMED},
        {"[1]", "", "must be an object", OBJECT_CREATE, ERROR_INVALID},
        {"{\"vcpus\":2}", "/vcpus", "cannot be changed after create", OBJECT_PATCH, ERROR_INVALID},
        {"{\"name\":null}", "/name", "cannot be taken away", OBJECT_PATCH, ERROR_INVALID},
        {"{\"restart\":\"maybe\"}", "/restart", "one of: always, on-failure, never", OBJECT_PATCH, ERROR_INVALID},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct vm vm;
        struct error err = {0};
        int rc = OBJECT_DECODE(vm, cases[i].text, strlen(cases[i].text), cases[i].mode, &vm, &err);
        if (rc >= 0 || strcmp(err.field, cases[i].field) != 0 || strstr(err.text, cases[i].words) == NULL ||
            err.kind != cases[i].kind)
            fail_msg("%s -> %d kind %d field '%s' text '%s'", cases[i].text, rc, (int)err.kind, err.field, err.text);
    }
}

static void test_patch_merges_and_takes_away(void **state)
{
    static const char base[] = "{\"name\":\"a\",\"image\":\"i\",\"labels\":{\"x\":\"1\"},\"ha\":true}";
    static const char patch[] = "{\"labels\":null,\"restart\":\"never\",\"name\":\"b\"}";
    struct vm vm, change;
    struct bytes_writer w = {0};
    (void)state;
    assert_int_equal(OBJECT_DECODE(vm, base, strlen(base), OBJECT_CREATE, &vm, NULL), 0);
    assert_int_equal(OBJECT_DECODE(vm, patch, strlen(patch), OBJECT_PATCH, &change, NULL), 0);
    object_merge(&vm_desc, &vm, &change);
    OBJECT_ENCODE(vm, &vm, &w);
    bytes_put_u8(&w, 0);
    assert_string_equal((char *)w.data, "{\"name\":\"b\",\"image\":\"i\",\"ha\":true,\"restart\":\"never\"}");
    bytes_writer_finish(&w);
    OBJECT_CLEAR(vm, &vm);
    OBJECT_CLEAR(vm, &change);
}

static void test_secret_is_not_public(void **state)
{
    struct token token = {0};
    struct bytes_writer w = {0};
    (void)state;
    OBJECT_TEXT(token, &token, name, "t");
    OBJECT_TEXT(token, &token, secret_sha256, "aa");
    object_encode_public(&token_desc, &token, &w);
    bytes_put_u8(&w, 0);
    assert_string_equal((char *)w.data, "{\"name\":\"t\"}");
    bytes_writer_finish(&w);
    OBJECT_CLEAR(token, &token);
}

static void test_formats(void **state)
{
    static const struct {
        enum text_format format;
        const char *text;
        bool ok;
    } cases[] = {
        {FORMAT_name, "web-1.a", true},       {FORMAT_name, "-web", false},          {FORMAT_name, "web-", false},
        {FORMAT_name, "Web", false},          {FORMAT_mac, "52:54:00:AB:cd:ef", true}, {FORMAT_mac, "53:54:00:ab:cd:ef", false},
        {FORMAT_mac, "52:54:00:ab:cd", false}, {FORMAT_address, "10.0.0.1:7443", true}, {FORMAT_address, "[fe80::1]:1", true},
        {FORMAT_address, "::1:7443", false},  {FORMAT_address, "h:0", false},        {FORMAT_address, "h:65536", false},
        {FORMAT_address, "h", false},         {FORMAT_path, "/a/../b", false},       {FORMAT_path, "/a/..", false},
        {FORMAT_path, "/a/..b", true},        {FORMAT_url, "file:///a/b", true},     {FORMAT_url, "file://host/a", false},
        {FORMAT_url, "ftp://a", false},       {FORMAT_url, "http://a b", false},     {FORMAT_any, "a\nb", false},
        {FORMAT_text, "a\nb", true},          {FORMAT_time, "2026-01-31T12:00:00.000Z", true}, {FORMAT_time, "2026-01-31", false},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *rule;
        if (text_format_ok(cases[i].format, cases[i].text, &rule) != cases[i].ok)
            fail_msg("%s '%s'", text_format_name(cases[i].format), cases[i].text);
    }
}

static void test_routes(void **state)
{
    const char *id = NULL;
    size_t n = 0;
    bool known = false;
    (void)state;
    for (size_t i = 0; i < ROUTE_COUNT; i++)
        assert_int_equal(schema_routes[i].id, i);
    assert_int_equal(route_find(ROUTE_POST, "/v1/vms/web1/stop", &id, &n, &known)->id, ROUTE_ID_vm_stop);
    assert_int_equal(n, 4);
    assert_memory_equal(id, "web1", 4);
    assert_null(route_find(ROUTE_DELETE, "/v1/vms", &id, &n, &known));
    assert_true(known);
    assert_null(route_find(ROUTE_GET, "/v1/vms/", &id, &n, &known));
    assert_false(known);
    assert_null(route_find(ROUTE_GET, "/v1/vms/a/b/c", &id, &n, &known));
    assert_false(known);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_and_damage),      cmocka_unit_test(test_refusals_say_what_to_do),
        cmocka_unit_test(test_patch_merges_and_takes_away), cmocka_unit_test(test_secret_is_not_public),
        cmocka_unit_test(test_formats),                    cmocka_unit_test(test_routes),
    };
    return cmocka_run_group_tests_name("objects", tests, NULL, NULL);
}
