/* The durable formats of a backup store: what was once written is read for ever (schema/golden/backup-1.bin), what is
 * newer or damaged is refused in words; keys as text; signatures of S3 as published; retention. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backup/chunk_index.h"
#include "backup/chunk_tree.h"
#include "backup/manifest.h"
#include "backup/repo_notes.h"
#include "common/retention.h"
#include "backup/s3_sign.h"
#include "backup/store_pace.h"
#include "common/file.h"

#define GOLDEN "schema/golden/backup-1.bin"
enum { GOLDEN_PARTS = 6 };

/* The parts one after another, each with its length before it: header, pack, index, leaf, manifest, notes. */
static void golden_make(struct bytes_writer *out)
{
    struct bytes_writer parts[GOLDEN_PARTS] = {{0}};
    struct repo_header header;
    struct repo_keys keys;
    struct pack_builder b;
    struct pack_frame frame;
    struct pack_chunk chunk = {.size_bytes = 5};
    struct chunk_hash name;
    struct chunk_index x;
    struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    struct manifest m = {.definition = xstrdup("{\"name\":\"web1\"}")};
    struct repo_notes notes = {0};
    uint64_t offset;
    uint32_t bytes;
    struct pack_coder *coder = pack_coder_create(3);
    repo_header_make(false, REPO_CHUNK_BYTES_DEFAULT, &header, NULL, NULL);
    repo_header_encode(&header, &parts[0]);
    repo_header_open(&header, NULL, &keys, NULL);
    chunk_hash_keyed(keys.names, "hello", 5, &chunk.id);
    pack_builder_init(&b);
    const uint8_t *stored = pack_frame_encode(coder, NULL, &chunk, 1, "hello", 5, &frame);
    pack_builder_add(&b, &frame, stored, &chunk);
    pack_builder_close(&b, &name, &offset, &bytes);
    bytes_put(&parts[1], b.out.data, b.out.size);
    chunk_index_init(&x);
    chunk_index_add(&x, &name, b.out.data + offset, bytes, NULL, NULL);
    x.packs[0].present = true;
    chunk_index_encode(&x, NULL, &parts[2]);
    leaf->slots = 3;
    leaf->ids[1] = chunk.id;
    chunk_leaf_encode(leaf, &parts[3]);
    OBJECT_TEXT(backup_manifest, &m.head, id, "0a0b0c0d-0000-4000-8000-000000000001");
    OBJECT_TEXT(backup_manifest, &m.head, created_at, "2026-11-21T12:00:00.000Z");
    OBJECT_TEXT(backup_manifest, &m.head, vm_name, "web1");
    struct manifest_disk *d = OBJECT_ADD(backup_manifest, &m.head, disks);
    OBJECT_TEXT(manifest_disk, d, name, "root");
    OBJECT_SET(manifest_disk, d, size_bytes, 3 * REPO_CHUNK_BYTES_DEFAULT);
    m.leaves = &chunk.id;
    m.leaf_count = 1;
    manifest_encode(&m, &keys, false, &parts[4]);
    m.leaves = NULL;
    repo_notes_add(&notes, &name, 0);
    repo_notes_encode(&notes, REPO_DAMAGED, &parts[5]);
    for (unsigned i = 0; i < GOLDEN_PARTS; i++) {
        bytes_put_u32(out, (uint32_t)parts[i].size);
        bytes_put(out, parts[i].data, parts[i].size);
        bytes_writer_finish(&parts[i]);
    }
    repo_notes_finish(&notes);
    manifest_finish(&m);
    chunk_index_finish(&x);
    pack_builder_finish(&b);
    pack_coder_destroy(coder);
    free(leaf);
}

struct parts {
    char *data;
    struct {
        uint8_t *at;
        uint32_t size;
    } part[GOLDEN_PARTS];
};

static void golden_load(struct parts *p)
{
    size_t size;
    struct error err = {0};
    if (file_read(GOLDEN, 1 << 20, &p->data, &size, &err) < 0)
        fail_msg("%s", err.text);
    struct bytes_reader r = bytes_reader(p->data, size);
    for (unsigned i = 0; i < GOLDEN_PARTS; i++) {
        p->part[i].size = bytes_get_u32(&r);
        p->part[i].at = (uint8_t *)(uintptr_t)bytes_get(&r, p->part[i].size);
        assert_non_null(p->part[i].at);
    }
}

static int count_packs(void *arg, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes)
{
    return chunk_index_add(arg, name, raw, raw_bytes, NULL, NULL);
}

static void test_golden(void **state UNUSED)
{
    struct parts p;
    struct repo_header header;
    struct repo_keys keys;
    struct pack_index x;
    struct chunk_index all;
    struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    struct manifest m;
    struct repo_notes notes = {0};
    uint64_t offset;
    uint32_t bytes;
    char hello[5];
    golden_load(&p);
    assert_int_equal(repo_header_decode(p.part[0].at, p.part[0].size, &header, NULL), 0);
    assert_int_equal(repo_header_open(&header, NULL, &keys, NULL), 0);
    assert_int_equal(pack_head_decode(p.part[1].at, NULL), 0);
    assert_int_equal(
        pack_end_decode(p.part[1].at + p.part[1].size - PACK_END_BYTES, p.part[1].size, &offset, &bytes, NULL), 0);
    assert_int_equal(pack_index_decode(p.part[1].at + offset, bytes, &x, NULL), 0);
    struct pack_coder *coder = pack_coder_create(1);
    assert_int_equal(
        pack_frame_decode(coder, &keys, &x, &x.frames[0], p.part[1].at + x.frames[0].offset, hello, NULL), 0);
    assert_memory_equal(hello, "hello", 5);
    struct chunk_hash id;
    chunk_hash_keyed(keys.names, "hello", 5, &id);
    assert_true(chunk_hash_equal(&id, &x.chunks[0].id));
    chunk_index_init(&all);
    assert_int_equal(chunk_index_decode(p.part[2].at, p.part[2].size, count_packs, &all, NULL), 0);
    assert_int_equal(all.pack_count, 1);
    assert_int_equal(chunk_leaf_decode(p.part[3].at, p.part[3].size, 3, leaf, NULL), 0);
    assert_true(chunk_hash_equal(&leaf->ids[1], &id) && chunk_hash_is_zero(&leaf->ids[2]));
    assert_int_equal(manifest_decode(p.part[4].at, p.part[4].size, &keys, header.chunk_bytes, &m, NULL), 0);
    assert_string_equal(m.definition, "{\"name\":\"web1\"}");
    assert_string_equal(manifest_disk_at(&m, 0)->name, "root");
    assert_int_equal(repo_notes_decode(p.part[5].at, p.part[5].size, REPO_DAMAGED, &notes, NULL), 0);
    assert_int_equal(notes.note_count, 1);
    repo_notes_finish(&notes);
    manifest_finish(&m);
    chunk_index_finish(&all);
    pack_index_finish(&x);
    pack_coder_destroy(coder);
    free(leaf);
    free(p.data);
}

static int decode(unsigned part, const uint8_t *data, size_t size, struct error *err)
{
    struct repo_keys keys = {.present = false};
    struct repo_header header;
    struct pack_index x;
    struct chunk_index all;
    struct chunk_hash base;
    struct manifest m;
    struct repo_notes notes = {0};
    uint64_t offset;
    uint32_t bytes;
    int code;
    switch (part) {
    case 0:
        return repo_header_decode(data, size, &header, err);
    case 1:
        if (size < PACK_HEAD_BYTES + PACK_END_BYTES || (code = pack_head_decode(data, err)) < 0)
            return size < PACK_HEAD_BYTES + PACK_END_BYTES ? -EBADMSG : code;
        code = pack_end_decode(data + size - PACK_END_BYTES, size, &offset, &bytes, err);
        if (code == 0 && (code = pack_index_decode(data + offset, bytes, &x, err)) == 0)
            pack_index_finish(&x);
        return code;
    case 2:
        chunk_index_init(&all);
        code = chunk_index_decode(data, size, count_packs, &all, err);
        chunk_index_finish(&all);
        return code;
    case 3: {
        struct chunk_leaf *leaf = NEW(struct chunk_leaf);
        code = chunk_leaf_base(data, size, &base, err);
        code = code < 0 ? code : chunk_leaf_decode(data, size, 3, leaf, err);
        free(leaf);
        return code;
    }
    case 4:
        code = manifest_decode(data, size, &keys, REPO_CHUNK_BYTES_DEFAULT, &m, err);
        if (code == 0)
            manifest_finish(&m);
        return code;
    default:
        code = repo_notes_decode(data, size, REPO_DAMAGED, &notes, err);
        repo_notes_finish(&notes);
        return code;
    }
}

/* Cut off anywhere: refused; a newer version: refused as such. */
static void test_cut_and_newer(void **state UNUSED)
{
    static const unsigned version_at[GOLDEN_PARTS] = {8, 8, 8, 4, 8, 8};
    struct parts p;
    golden_load(&p);
    for (unsigned i = 0; i < GOLDEN_PARTS; i++) {
        struct error err = {0};
        assert_int_equal(decode(i, p.part[i].at, p.part[i].size, &err), 0);
        for (uint32_t size = 0; size < p.part[i].size; size++) {
            uint8_t *copy = malloc(size + (size == 0));
            memcpy(copy, p.part[i].at, size);
            assert_true(decode(i, copy, size, NULL) < 0);
            free(copy);
        }
        p.part[i].at[version_at[i]] = 2;
        assert_int_equal(decode(i, p.part[i].at, p.part[i].size, &err), -ENOTSUP);
        assert_non_null(strstr(err.text, "format 2"));
    }
    free(p.data);
}

static void test_leaf_difference(void **state UNUSED)
{
    struct chunk_leaf *base = NEW(struct chunk_leaf), *leaf = NEW(struct chunk_leaf), *got = NEW(struct chunk_leaf);
    struct bytes_writer out = {0};
    struct chunk_hash id = {{7}}, found;
    base->slots = leaf->slots = CHUNK_LEAF_SLOTS;
    for (unsigned i = 0; i < CHUNK_LEAF_SLOTS; i++)
        base->ids[i].bytes[0] = leaf->ids[i].bytes[0] = (uint8_t)(1 + i % 200);
    memset(&leaf->ids[10], 0, sizeof leaf->ids[10]);
    memset(&leaf->ids[100], 0xee, 3 * sizeof leaf->ids[0]);
    chunk_leaf_encode_difference(leaf, base, &id, &out);
    assert_true(out.size < 300);
    assert_int_equal(chunk_leaf_base(out.data, out.size, &found, NULL), 1);
    assert_true(chunk_hash_equal(&found, &id));
    *got = *base;
    assert_int_equal(chunk_leaf_decode(out.data, out.size, CHUNK_LEAF_SLOTS, got, NULL), 0);
    assert_memory_equal(got->ids, leaf->ids, sizeof leaf->ids);
    bytes_writer_finish(&out);
    free(base);
    free(leaf);
    free(got);
}

static void test_keys(void **state UNUSED)
{
    uint8_t key[CHUNK_KEY_BYTES], got[CHUNK_KEY_BYTES], other[CHUNK_KEY_BYTES];
    char text[REPO_KEY_TEXT_BYTES];
    struct repo_header h;
    struct repo_keys keys;
    assert_int_equal(repo_header_make(true, REPO_CHUNK_BYTES_DEFAULT, &h, key, NULL), 0);
    repo_key_text(key, text);
    assert_int_equal(repo_key_parse(text, got, NULL), 0);
    assert_memory_equal(key, got, sizeof key);
    for (size_t i = 6; i < strlen(text); i++) {
        char was = text[i];
        if (was == '-')
            continue;
        text[i] = was == 'a' ? 'b' : 'a';
        assert_int_equal(repo_key_parse(text, got, NULL), -EINVAL);
        text[i] = was;
    }
    repo_random(other, sizeof other);
    assert_int_equal(repo_header_open(&h, other, &keys, NULL), -EACCES);
    assert_int_equal(repo_header_add_key(&h, other, "second", other, NULL), -EACCES);
    assert_int_equal(repo_header_add_key(&h, key, "second", other, NULL), 0);
    assert_int_equal(repo_header_add_key(&h, key, "second", other, NULL), -EEXIST);
    assert_int_equal(repo_header_open(&h, other, &keys, NULL), 0);
    assert_int_equal(repo_header_remove_key(&h, "recovery", NULL), 0);
    assert_int_equal(repo_header_open(&h, key, &keys, NULL), -EACCES);
    assert_int_equal(repo_header_remove_key(&h, "second", NULL), -EBUSY);
}

/* An example that AWS has published. */
static void test_s3_signature(void **state UNUSED)
{
    char sha[S3_SHA256_TEXT_BYTES];
    struct s3_credentials c = {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1", NULL};
    struct s3_request r = {.method = "GET",
                           .host = "examplebucket.s3.amazonaws.com",
                           .path = "/",
                           .now = 1369353600,
                           .query = {{"prefix", "J"}, {"max-keys", "2"}},
                           .query_count = 2};
    struct bytes_writer out = {0};
    r.payload_sha256 = s3_sha256("", 0, sha);
    assert_string_equal(sha, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    s3_authorization(&r, &c, &out);
    bytes_put_u8(&out, 0);
    /* published in AWS's documentation, "Signature Calculations for the Authorization Header", GET Bucket (List
     * Objects) */
    assert_non_null(
        strstr((char *)out.data, "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
    out.size = 0;
    s3_query_encode(&r, &out);
    bytes_put_u8(&out, 0);
    assert_string_equal((char *)out.data, "max-keys=2&prefix=J");
    bytes_writer_finish(&out);
}

static int64_t at(const char *text)
{
    int64_t ms;
    assert_int_equal(manifest_time_parse(text, &ms), 0);
    return ms;
}

static void test_retention(void **state UNUSED)
{
    const int64_t times[] = {
        at("2026-01-02T12:30:00.000Z"), at("2026-01-02T12:10:00.000Z"), at("2026-01-02T09:00:00.000Z"),
        at("2026-01-01T23:00:00.000Z"), at("2025-12-31T23:00:00.000Z"), at("2025-12-28T01:00:00.000Z"),
        at("2025-11-30T01:00:00.000Z"), at("2024-05-05T00:00:00.000Z"),
    };
    unsigned reasons[ARRAY_SIZE(times)];
    retention_choose(&(struct retention_rules){.last = 1, .hourly = 2}, times, ARRAY_SIZE(times), reasons);
    assert_int_equal(reasons[0], RETENTION_LAST | RETENTION_HOURLY);
    assert_int_equal(reasons[1], 0);
    assert_int_equal(reasons[2], RETENTION_HOURLY);
    retention_choose(&(struct retention_rules){.daily = 3, .weekly = 2}, times, ARRAY_SIZE(times), reasons);
    assert_int_equal(reasons[0], RETENTION_DAILY | RETENTION_WEEKLY);
    assert_int_equal(reasons[3], RETENTION_DAILY);
    assert_int_equal(reasons[4], RETENTION_DAILY); /* the same ISO week as 1 January */
    assert_int_equal(reasons[5], RETENTION_WEEKLY);
    retention_choose(&(struct retention_rules){.monthly = 3, .yearly = 5}, times, ARRAY_SIZE(times), reasons);
    assert_int_equal(reasons[0], RETENTION_MONTHLY | RETENTION_YEARLY);
    assert_int_equal(reasons[4], RETENTION_MONTHLY | RETENTION_YEARLY);
    assert_int_equal(reasons[6], RETENTION_MONTHLY);
    assert_int_equal(reasons[7], RETENTION_YEARLY);
    assert_false(retention_has_rules(&(struct retention_rules){0}));
}

static void test_pace(void **state UNUSED)
{
    struct store_pace *pace = store_pace_create(1000000);
    uint64_t now = UINT64_C(5000000000), moved = 0;
    while (now < UINT64_C(7000000000)) { /* two seconds of one who takes as fast as he may */
        now += store_pace_due(pace, 10000, now);
        moved += 10000;
    }
    assert_in_range(moved, 1900000, 2200000);
    store_pace_destroy(pace);
}

/* As a store of a TiB has them: each is found by its name, none twice, and one that is not there is not. */
static void test_many_packs_by_name(void **state UNUSED)
{
    enum { PACKS = 3000 };
    struct chunk_hash *names = calloc(PACKS + 1, sizeof *names);
    struct pack_coder *coder = pack_coder_create(1);
    struct chunk_index x;
    chunk_index_init(&x);
    for (uint32_t i = 0; i <= PACKS; i++) {
        struct pack_builder b;
        struct pack_frame frame;
        struct pack_chunk chunk = {.size_bytes = sizeof i};
        uint64_t offset;
        uint32_t bytes, at;
        chunk_hash_plain(&i, sizeof i, &chunk.id);
        pack_builder_init(&b);
        const uint8_t *stored = pack_frame_encode(coder, NULL, &chunk, 1, &i, sizeof i, &frame);
        pack_builder_add(&b, &frame, stored, &chunk);
        pack_builder_close(&b, &names[i], &offset, &bytes);
        for (unsigned twice = 0; i < PACKS && twice < 2; twice++) {
            assert_int_equal(chunk_index_add(&x, &names[i], b.out.data + offset, bytes, &at, NULL), 0);
            assert_int_equal(at, i);
        }
        pack_builder_finish(&b);
    }
    assert_int_equal(x.pack_count, PACKS);
    for (uint32_t i = 0; i < PACKS; i++)
        assert_int_equal(chunk_index_pack(&x, &names[i]), i);
    assert_int_equal(chunk_index_pack(&x, &names[PACKS]), UINT32_MAX);
    chunk_index_finish(&x);
    assert_int_equal(chunk_index_pack(&x, &names[0]), UINT32_MAX);
    pack_coder_destroy(coder);
    free(names);
}

/* Packs that are built one after another in the same memory: each has what was put into it, and no more. */
static void test_builder_again(void **state UNUSED)
{
    struct pack_coder *coder = pack_coder_create(1);
    struct pack_builder b;
    const uint8_t *memory = NULL;
    char text[100];
    pack_builder_init(&b);
    for (unsigned i = 0; i < 3; i++) {
        struct pack_frame frame;
        struct pack_chunk chunk = {.size_bytes = (uint32_t)(sizeof text - i)};
        struct pack_index x;
        struct chunk_hash name;
        uint64_t offset;
        uint32_t bytes;
        memset(text, (int)('a' + i), sizeof text);
        chunk_hash_plain(text, chunk.size_bytes, &chunk.id);
        const uint8_t *stored = pack_frame_encode(coder, NULL, &chunk, 1, text, chunk.size_bytes, &frame);
        for (unsigned frames = 3 - i; frames > 0; frames--)
            pack_builder_add(&b, &frame, stored, &chunk);
        pack_builder_close(&b, &name, &offset, &bytes);
        assert_int_equal(offset, PACK_HEAD_BYTES + (3 - i) * frame.stored_bytes);
        assert_int_equal(b.out.size, offset + bytes + PACK_END_BYTES);
        assert_int_equal(pack_head_decode(b.out.data, NULL), 0);
        assert_int_equal(pack_index_decode(b.out.data + offset, bytes, &x, NULL), 0);
        assert_int_equal(x.frame_count, 3 - i);
        assert_int_equal(x.chunk_count, 3 - i);
        assert_int_equal(x.frames_bytes, offset - PACK_HEAD_BYTES);
        assert_true(chunk_hash_equal(&x.chunks[2 - i].id, &chunk.id));
        pack_index_finish(&x);
        assert_true(memory == NULL || memory == b.out.data);
        memory = b.out.data;
        pack_builder_reset(&b);
    }
    pack_builder_finish(&b);
    pack_coder_destroy(coder);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--make-golden") == 0) { /* once for each version: never over an old one */
        struct bytes_writer out = {0};
        golden_make(&out);
        int code = access(GOLDEN, F_OK) == 0 ? -EEXIST : file_write_atomic(GOLDEN, out.data, out.size, 0644, NULL);
        bytes_writer_finish(&out);
        return code < 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_cut_and_newer), cmocka_unit_test(test_leaf_difference),
        cmocka_unit_test(test_keys),   cmocka_unit_test(test_s3_signature),  cmocka_unit_test(test_retention),
        cmocka_unit_test(test_pace),   cmocka_unit_test(test_many_packs_by_name),
        cmocka_unit_test(test_builder_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
