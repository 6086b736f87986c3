/* The stream's framing: round trip, every byte flipped, every cut, order, versions, unknown sections, golden bytes.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/file.h"
#include "migration/stream.h"

static int collect(void *arg, const void *data, size_t size, struct error *err)
{
    (void)err;
    bytes_put(arg, data, size);
    return 0;
}

static void description_fill(struct machine_description *d)
{
    *d = (struct machine_description){0};
    OBJECT_TEXT(machine_description, d, machine, "pc-1");
    OBJECT_SET(machine_description, d, vcpus, 2);
    OBJECT_SET(machine_description, d, memory_bytes, 8192);
    OBJECT_TEXT(machine_description, d, created_at, "2026-01-31T12:00:00.000Z");
}

static void features_add(struct machine_description *d, const char *name)
{
    d->features.items = xrealloc(d->features.items, (d->features.count + 1) * sizeof(char *));
    d->features.items[d->features.count++] = xstrdup(name);
    object_mark(&machine_description_desc, d, "features");
}

/* The stream that the golden file holds. */
static void sample_write(struct bytes_writer *out)
{
    struct machine_description d;
    struct stream_writer w;
    description_fill(&d);
    features_add(&d, "zstd");
    assert_int_equal(stream_writer_begin(&w, collect, out, &d, NULL), 0);
    assert_int_equal(stream_put_state(&w, "vcpu0", 1, "registers", 9, NULL), 0);
    assert_int_equal(stream_put(&w, 77, 3, 0, "from the future", 15, NULL), 0);
    assert_int_equal(stream_put_state(&w, "serial0", 2, NULL, 0, NULL), 0);
    assert_int_equal(stream_put_end(&w, NULL), 0);
    assert_int_equal(w.bytes, out->size);
    OBJECT_CLEAR(machine_description, &d);
}

struct seen {
    char text[256]; /* tag and content of each section, in short */
    struct error err;
};

/* Read it all, fed @step bytes at a time (0: as wanted). 0, or the reader's error. */
static int read_all(const uint8_t *data, size_t size, size_t step, struct seen *seen)
{
    /* An exact-size copy: reading past it is a crash under the sanitizer. */
    uint8_t *copy = malloc(size ? size : 1);
    struct stream_reader r;
    struct stream_section s;
    size_t at = 0;
    int code = 0;
    memcpy(copy, data, size);
    memset(seen, 0, sizeof(*seen));
    stream_reader_init(&r);
    while (true) {
        code = stream_next(&r, &s, &seen->err);
        if (code < 0)
            break;
        if (code > 0) {
            size_t used = strlen(seen->text);
            snprintf(seen->text + used, sizeof(seen->text) - used, "%u.%u ", s.tag, s.version);
            continue;
        }
        if (at == size) {
            code = stream_check_ended(&r, &seen->err);
            break;
        }
        size_t n = MIN(step ? step : MAX(stream_wanted(&r), (size_t)1), size - at);
        stream_feed(&r, copy + at, n);
        at += n;
    }
    if (code < 0)
        assert_true(seen->err.text[0] != 0);
    stream_reader_finish(&r);
    free(copy);
    return code;
}

static void sections_come_back_whole(void **state)
{
    struct bytes_writer out = {0};
    struct seen seen;
    (void)state;
    sample_write(&out);
    for (size_t step = 0; step < 40; step++) {
        assert_int_equal(read_all(out.data, out.size, step, &seen), 0);
        assert_string_equal(seen.text, "1.1 2.1 2.2 5.1 "); /* 77 was optional */
    }
    assert_int_equal(read_all(out.data, out.size, out.size, &seen), 0);
    bytes_writer_finish(&out);
}

static void golden_stream_is_read_and_written(void **state)
{
    struct bytes_writer out = {0};
    struct seen seen;
    char *golden;
    size_t size;
    (void)state;
    assert_int_equal(file_read("schema/golden/stream-1.bin", 65536, &golden, &size, NULL), 0);
    assert_int_equal(read_all((const uint8_t *)golden, size, 0, &seen), 0);
    assert_string_equal(seen.text, "1.1 2.1 2.2 5.1 ");
    sample_write(&out);
    assert_int_equal(out.size, size);
    assert_memory_equal(out.data, golden, size);
    bytes_writer_finish(&out);
    free(golden);
}

static void flipped_bytes_are_refused(void **state)
{
    struct bytes_writer out = {0};
    struct seen seen;
    (void)state;
    sample_write(&out);
    for (size_t i = 0; i < out.size; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            out.data[i] ^= (uint8_t)(1u << bit);
            if (read_all(out.data, out.size, 0, &seen) >= 0)
                fail_msg("bit %u of byte %zu was flipped and nobody saw it", bit, i);
            out.data[i] ^= (uint8_t)(1u << bit);
        }
    bytes_writer_finish(&out);
}

static void cut_streams_are_refused(void **state)
{
    struct bytes_writer out = {0};
    struct seen seen;
    (void)state;
    sample_write(&out);
    for (size_t size = 0; size < out.size; size++)
        assert_int_equal(read_all(out.data, size, 0, &seen), -EBADMSG);
    assert_non_null(strstr(seen.err.text, "cut short"));
    bytes_put_u8(&out, 0);
    assert_int_equal(read_all(out.data, out.size, out.size, &seen), -EBADMSG);
    assert_non_null(strstr(seen.err.text, "after its end"));
    bytes_writer_finish(&out);
}

static void newer_streams_are_refused_in_words(void **state)
{
    struct machine_description d;
    struct stream_writer w;
    struct bytes_writer out = {0};
    struct seen seen;
    (void)state;
    /* A prologue of format 2 that needs readers of 2; one that readers of 1 may read. */
    for (uint16_t oldest = 1; oldest <= 2; oldest++) {
        out.size = 0;
        sample_write(&out);
        struct bytes_writer head = {0};
        bytes_put(&head, STREAM_MAGIC, 8);
        bytes_put_u16(&head, 2);
        bytes_put_u16(&head, oldest);
        bytes_put_u32(&head, bytes_crc32c(0, head.data, head.size));
        memcpy(out.data, head.data, head.size);
        bytes_writer_finish(&head);
        assert_int_equal(read_all(out.data, out.size, 0, &seen), oldest == 2 ? -ENOTSUP : 0);
    }
    assert_non_null(strstr(seen.err.text, "newer program"));
    description_fill(&d);
    for (unsigned which = 0; which < 2; which++) {
        out.size = 0;
        assert_int_equal(stream_writer_begin(&w, collect, &out, &d, NULL), 0);
        assert_int_equal(
            stream_put(&w, which ? STREAM_PAGES : 78, which ? 2 : 1, STREAM_MUST_UNDERSTAND, "", 0, NULL), 0);
        assert_int_equal(stream_put_end(&w, NULL), 0);
        assert_int_equal(read_all(out.data, out.size, 0, &seen), -ENOTSUP);
        assert_non_null(strstr(seen.err.text, "newer program"));
    }
    OBJECT_CLEAR(machine_description, &d);
    bytes_writer_finish(&out);
}

/* Sections of a sample whose numbers are what the writer was made to believe. */
static int read_with_number(uint32_t number, uint16_t tag)
{
    struct machine_description d;
    struct stream_writer w;
    struct bytes_writer out = {0};
    struct seen seen;
    description_fill(&d);
    assert_int_equal(stream_writer_begin(&w, collect, &out, &d, NULL), 0);
    w.sections = number;
    assert_int_equal(stream_put(&w, tag, 1, 0, "", 0, NULL), 0);
    assert_int_equal(stream_put_end(&w, NULL), 0);
    int code = read_all(out.data, out.size, 0, &seen);
    OBJECT_CLEAR(machine_description, &d);
    bytes_writer_finish(&out);
    return code;
}

static void sections_out_of_order_are_refused(void **state)
{
    (void)state;
    assert_int_equal(read_with_number(1, 99), 0);
    assert_int_equal(read_with_number(0, 99), -EBADMSG);
    assert_int_equal(read_with_number(2, 99), -EBADMSG);
    assert_int_equal(read_with_number(1, STREAM_HEADER), -EBADMSG);
}

static void lengths_are_judged_before_they_are_believed(void **state)
{
    struct stream_reader r;
    struct stream_section s;
    struct bytes_writer head = {0}, out = {0};
    struct error err;
    (void)state;
    sample_write(&out);
    bytes_put_u16(&head, STREAM_HEADER);
    bytes_put_u16(&head, 1);
    bytes_put_u32(&head, STREAM_MUST_UNDERSTAND);
    bytes_put_u32(&head, 0);
    bytes_put_u32(&head, 0xfffffff0u);
    bytes_put_u32(&head, 0);
    bytes_put_u32(&head, bytes_crc32c(0, head.data, head.size));
    stream_reader_init(&r);
    stream_feed(&r, out.data, STREAM_PROLOGUE_BYTES);
    assert_int_equal(stream_next(&r, &s, &err), 0);
    stream_feed(&r, head.data, head.size);
    assert_true(stream_wanted(&r) < 100);
    assert_int_equal(stream_next(&r, &s, &err), -EBADMSG);
    assert_int_equal(stream_next(&r, &s, &err), -EBADMSG); /* and it stays refused */
    stream_reader_finish(&r);
    bytes_writer_finish(&head);
    bytes_writer_finish(&out);
}

static void unknown_features_are_named(void **state)
{
    struct machine_description d, read = {0};
    struct bytes_writer text = {0};
    struct error err;
    (void)state;
    description_fill(&d);
    OBJECT_ENCODE(machine_description, &d, &text);
    struct stream_section s = {.tag = STREAM_HEADER, .payload = text.data, .size = text.size};
    assert_int_equal(stream_header_decode(&s, &read, &err), 0);
    assert_int_equal(read.memory_bytes, 8192);
    OBJECT_CLEAR(machine_description, &read);
    features_add(&d, "time-travel");
    text.size = 0;
    OBJECT_ENCODE(machine_description, &d, &text);
    s.payload = text.data;
    s.size = text.size;
    assert_int_equal(stream_header_decode(&s, &read, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "time-travel"));
    OBJECT_CLEAR(machine_description, &d);
    bytes_writer_finish(&text);
}

static int state_add(struct stream_states *states, const char *payload, size_t size, struct error *err)
{
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, payload, size);
    struct stream_section s = {.tag = STREAM_STATE, .version = 4, .payload = copy, .size = size};
    int code = stream_states_add(states, &s, err);
    free(copy);
    return code;
}

static void states_are_taken_by_name(void **state)
{
    struct stream_states states = {0};
    struct error err;
    (void)state;
    assert_int_equal(state_add(&states, "\1aXYZ", 5, &err), 0);
    assert_int_equal(state_add(&states, "\2bb", 3, &err), 0);
    assert_int_equal(state_add(&states, "\1a", 2, &err), -EBADMSG);
    assert_int_equal(state_add(&states, "", 0, &err), -EBADMSG);
    assert_int_equal(state_add(&states, "\0", 1, &err), -EBADMSG);
    assert_int_equal(state_add(&states, "\5abcd", 5, &err), -EBADMSG);
    assert_int_equal(state_add(&states, "\3a\0b", 4, &err), -EBADMSG);
    assert_int_equal(state_add(&states,
                               "\x20"
                               "0123456789abcdef0123456789abcdef",
                               33, &err),
                     -EBADMSG);
    assert_null(stream_states_take(&states, "c", 9, &err));
    assert_non_null(strstr(err.text, "\"c\""));
    assert_null(stream_states_take(&states, "a", 3, &err));
    assert_int_equal(err.code, -ENOTSUP);
    struct stream_state *a = stream_states_take(&states, "a", 4, &err);
    assert_int_equal(a->size, 3);
    assert_memory_equal(a->data, "XYZ", 3);
    assert_int_equal(stream_states_check_taken(&states, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "\"bb\""));
    assert_non_null(stream_states_take(&states, "bb", 4, &err));
    assert_int_equal(stream_states_check_taken(&states, &err), 0);
    stream_states_finish(&states);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections_come_back_whole),
        cmocka_unit_test(golden_stream_is_read_and_written),
        cmocka_unit_test(flipped_bytes_are_refused),
        cmocka_unit_test(cut_streams_are_refused),
        cmocka_unit_test(newer_streams_are_refused_in_words),
        cmocka_unit_test(sections_out_of_order_are_refused),
        cmocka_unit_test(lengths_are_judged_before_they_are_believed),
        cmocka_unit_test(unknown_features_are_named),
        cmocka_unit_test(states_are_taken_by_name),
    };
    if (argc > 2 && strcmp(argv[1], "--write-golden") == 0) {
        struct bytes_writer out = {0};
        sample_write(&out);
        return file_write_atomic(argv[2], out.data, out.size, 0644, NULL) < 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
