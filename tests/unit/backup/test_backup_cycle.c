/* Backups made and given back: bit for bit, whatever was changed; what need not be read or stored is not; a store
 * that dies at any call keeps every complete backup whole. THREADED: the writer has threads. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "backup/backup_reader.h"
#include "backup/backup_restore.h"
#include "backup/backup_writer.h"
#include "tests/unit/backup/memory_source.h"
#include "tests/unit/backup/memory_store.h"
#include "tests/unit/unit_seed.h"

enum { CHUNK = REPO_CHUNK_BYTES_MIN };

static uint64_t rng;
static uint64_t next(void)
{
    rng += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = rng;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* What a restore asks of the kernel beside writing; the answer says nothing. */
static atomic_uint sends;
int sync_file_range(int fd UNUSED, off_t offset UNUSED, off_t size UNUSED, unsigned flags UNUSED)
{
    atomic_fetch_add(&sends, 1);
    errno = EIO;
    return -1;
}

static void fill(uint8_t *data, size_t size)
{
    uint64_t kind = next() % 4;
    for (size_t i = 0; i < size; i++)
        data[i] = kind == 0 ? 0 : kind == 1 ? (uint8_t)(i / 512) : (uint8_t)next();
}

struct world {
    struct memory_store store;
    struct repo repo;
};

static void world_open(struct world *w, bool encrypted)
{
    uint8_t key[CHUNK_KEY_BYTES];
    memory_store_init(&w->store);
    assert_int_equal(repo_init(&w->store.store, encrypted, CHUNK, key, NULL), 0);
    assert_int_equal(repo_open(&w->store.store, encrypted ? key : NULL, &w->repo, NULL), 0);
}

static void world_close(struct world *w)
{
    repo_close(&w->repo);
    memory_store_finish(&w->store);
}

static int make(struct world *w, const char *id, const char *parent, struct memory_source *s, struct manifest *ret,
                struct error *err)
{
    struct backup_writer *writer = NULL;
    struct backup_writer_options o = {
        .id = id, .parent = parent, .vm_name = "web1", .threads = 2, .definition = "{\"name\":\"web1\"}"};
    int code = backup_writer_create(&w->repo, &o, &writer, err);
    if (code == 0)
        code = backup_writer_disk(writer, "root", &s->source, err);
    if (code == 0)
        code = backup_writer_commit(writer, ret, err);
    backup_writer_destroy(writer);
    return code;
}

static void check(struct world *w, const char *id, const uint8_t *data, size_t size)
{
    struct backup_reader *r;
    struct error err = {0};
    size_t disk;
    int code = backup_reader_open(&w->repo, id, 1 << 20, &r, &err);
    if (code < 0)
        fail_msg("%s", err.text);
    assert_int_equal(backup_reader_disk(r, "root", &disk, NULL), 0);
    assert_int_equal(manifest_disk_at(backup_reader_manifest(r), disk)->size_bytes, size);
    uint8_t *out = xcalloc(1, size);
    for (size_t at = 0, part; at < size; at += part) {
        uint64_t want = 1 + next() % (3 * CHUNK);
        part = MIN(size - at, want);
        if (backup_reader_read(r, disk, at, out + at, part, &err) < 0)
            fail_msg("%s", err.text);
    }
    assert_memory_equal(out, data, size);
    for (uint64_t at = 0, end; at < size; at = end) {
        bool zero;
        assert_int_equal(backup_reader_extent(r, disk, at, &zero, &end, NULL), 0);
        assert_true(end > at && end <= size);
        for (uint64_t i = at; zero && i < end; i++)
            assert_int_equal(data[i], 0);
    }
    free(out);
    backup_reader_close(r);
}

static void restores(struct world *w, const char *id, const uint8_t *data, size_t size)
{
    char path[] = "/tmp/drover-test-XXXXXX";
    struct backup_reader *r;
    struct error err = {0};
    struct backup_restore_options o = {.threads = 3, .zeroed = true};
    int fd = mkstemp(path);
    unlink(path);
    assert_int_equal(backup_reader_open(&w->repo, id, 0, &r, NULL), 0);
    if (backup_restore_disk(r, 0, fd, &o, &err) < 0)
        fail_msg("%s", err.text);
    uint8_t *out = xcalloc(1, size);
    assert_int_equal(pread(fd, out, size, 0), size);
    assert_memory_equal(out, data, size);
    memset(out, 0xee, size); /* once more over what is there, and longer */
    assert_int_equal(pwrite(fd, out, size, 0), size);
    assert_int_equal(pwrite(fd, out, size, (off_t)size), size);
    o.zeroed = false;
    assert_int_equal(backup_restore_disk(r, 0, fd, &o, NULL), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), size);
    assert_int_equal(pread(fd, out, size, 0), size);
    assert_memory_equal(out, data, size);
    free(out);
    close(fd);
    backup_reader_close(r);
}

static void make_id(char id[REPO_ID_TEXT_BYTES])
{
    repo_id_make(id);
}

static void full_and_incremental(bool encrypted)
{
    struct world w;
    char first[REPO_ID_TEXT_BYTES], second[REPO_ID_TEXT_BYTES], third[REPO_ID_TEXT_BYTES];
    size_t size = 40 * CHUNK + 4096 * 3;
    uint8_t *data = xcalloc(1, size), *same = malloc(size / MEMORY_BLOCK + 1), *old = malloc(size);
    struct memory_source s;
    struct manifest m;
    world_open(&w, encrypted);
    make_id(first);
    make_id(second);
    make_id(third);
    for (size_t at = 0; at < size; at += CHUNK)
        fill(data + at, MIN(size - at, (size_t)CHUNK));
    memory_source_init(&s, data, size, NULL);
    assert_int_equal(make(&w, first, NULL, &s, &m, NULL), 0);
    manifest_finish(&m);
    check(&w, first, data, size);
    restores(&w, first, data, size);
    assert_int_equal(make(&w, first, NULL, &s, NULL, NULL), -EEXIST);

    memcpy(old, data, size);
    memset(same, 1, size / MEMORY_BLOCK + 1);
    for (unsigned i = 0; i < 3; i++) {
        size_t block = next() % (size / MEMORY_BLOCK);
        fill(data + block * MEMORY_BLOCK, MEMORY_BLOCK);
        same[block] = 0;
    }
    memory_source_init(&s, data, size, same);
    assert_int_equal(make(&w, second, first, &s, &m, NULL), 0);
    assert_in_range(s.reads, 0, 3 * CHUNK);
    assert_string_equal(m.head.parent, first);
    manifest_finish(&m);
    check(&w, second, data, size);
    restores(&w, second, data, size);
    check(&w, first, old, size);

    /* all of it again without knowing what has changed: nothing is stored twice */
    memory_source_init(&s, data, size, NULL);
    assert_int_equal(make(&w, third, second, &s, &m, NULL), 0);
    assert_int_equal(m.head.stored_bytes, 0);
    manifest_finish(&m);
    check(&w, third, data, size);
    free(data);
    free(same);
    free(old);
    world_close(&w);
}

static void test_plain(void **state UNUSED)
{
    full_and_incremental(false);
}

static void test_encrypted(void **state UNUSED)
{
    full_and_incremental(true);
}

static void test_sealed_and_keyless(void **state UNUSED)
{
    struct world w;
    struct repo blind;
    struct backup_reader *r;
    struct manifest m;
    struct memory_source s;
    struct error err = {0};
    uint8_t *data = xcalloc(1, CHUNK);
    memset(data, 'A', CHUNK);
    world_open(&w, true);
    memory_source_init(&s, data, CHUNK, NULL);
    assert_int_equal(make(&w, NULL, NULL, &s, &m, NULL), 0);
    for (size_t i = 0; i < w.store.count; i++) {
        assert_null(memmem(w.store.objects[i].data, w.store.objects[i].size, "AAAAAAAA", 8));
        assert_null(memmem(w.store.objects[i].data, w.store.objects[i].size, "{\"name\":\"web1\"}", 15));
    }
    assert_int_equal(repo_open(&w.store.store, NULL, &blind, NULL), 0);
    struct manifest seen;
    assert_int_equal(repo_manifest_load(&blind, m.head.id, &seen, NULL), 0);
    assert_true(seen.sealed && seen.definition == NULL);
    manifest_finish(&seen);
    assert_int_equal(backup_reader_open(&blind, m.head.id, 0, &r, &err), -EACCES);
    assert_int_equal(err.kind, ERROR_FORBIDDEN);
    uint8_t wrong[CHUNK_KEY_BYTES] = {1};
    assert_int_equal(repo_open(&w.store.store, wrong, &blind, &err), -EACCES);
    manifest_finish(&m);
    free(data);
    world_close(&w);
}

/* A disk that grows and shrinks between backups: its last chunk is another one each time. */
static void test_sizes(void **state UNUSED)
{
    static const size_t sizes[] = {5 * CHUNK, 5 * CHUNK + 512, 9 * CHUNK + 4096, 3 * CHUNK + 1024, 0, 512};
    struct world w;
    uint8_t *data = xcalloc(1, 10 * CHUNK), *same = malloc(10 * CHUNK / MEMORY_BLOCK);
    char parent[REPO_ID_TEXT_BYTES] = "", id[REPO_ID_TEXT_BYTES];
    world_open(&w, false);
    for (size_t at = 0; at < 10 * CHUNK; at++)
        data[at] = (uint8_t)next();
    memset(same, 1, 10 * CHUNK / MEMORY_BLOCK);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct memory_source s;
        make_id(id);
        memory_source_init(&s, data, sizes[i], same);
        assert_int_equal(make(&w, id, parent[0] != '\0' ? parent : NULL, &s, NULL, NULL), 0);
        check(&w, id, data, sizes[i]);
        memcpy(parent, id, sizeof id);
    }
    free(data);
    free(same);
    world_close(&w);
}

/* More than one pack: the memory of one that was sent is the next one's. A restore has it brought out all the while. */
static void test_several_packs(void **state UNUSED)
{
    struct world w;
    struct memory_source s;
    struct store_listing packs;
    char id[REPO_ID_TEXT_BYTES];
    size_t size = 3 * (size_t)PACK_BYTES + 5 * CHUNK;
    uint64_t *data = malloc(size);
    for (size_t i = 0; i < size / sizeof *data; i++)
        data[i] = next();
    world_open(&w, false);
    make_id(id);
    memory_source_init(&s, (uint8_t *)data, size, NULL);
    assert_int_equal(make(&w, id, NULL, &s, NULL, NULL), 0);
    assert_int_equal(store_listing_load(&w.store.store, "packs/", &packs, NULL), 0);
    assert_int_equal(packs.count, 4);
    atomic_store(&sends, 0);
    restores(&w, id, (uint8_t *)data, size); /* twice */
    assert_in_range(atomic_load(&sends), 2 * 2, 2 * 3); /* of each 32 MiB or a frame more */
    store_listing_finish(&packs);
    free(data);
    world_close(&w);
}

/* A chunk that is damaged or a pack that is lost: named; the rest can be read; the next backup heals it. */
static void test_lost_pack_heals(void **state UNUSED)
{
    struct world w;
    size_t size = 20 * CHUNK;
    char first[REPO_ID_TEXT_BYTES], second[REPO_ID_TEXT_BYTES];
    uint8_t *data = xcalloc(1, size), *same = malloc(size / MEMORY_BLOCK), *out = malloc(size);
    struct memory_source s;
    struct backup_reader *r;
    struct error err = {0};
    struct store_listing packs;
    for (size_t at = 0; at < size; at++)
        data[at] = (uint8_t)next();
    memset(same, 1, size / MEMORY_BLOCK);
    world_open(&w, false);
    make_id(first);
    make_id(second);
    memory_source_init(&s, data, size, NULL);
    assert_int_equal(make(&w, first, NULL, &s, NULL, NULL), 0);
    assert_int_equal(store_listing_load(&w.store.store, "packs/", &packs, NULL), 0);
    assert_int_equal(packs.count, 1);
    struct memory_object *pack = memory_find(&w.store, packs.items[0].name);
    pack->data[100] ^= 1;
    unsigned bad = 0;
    assert_int_equal(backup_reader_open(&w.repo, first, 0, &r, NULL), 0);
    for (unsigned i = 0; i < 20; i++) {
        int code = backup_reader_read(r, 0, i * CHUNK, out, CHUNK, &err);
        assert_true(code == 0 || code == -EBADMSG);
        if (code == 0)
            assert_memory_equal(out, data + i * CHUNK, CHUNK);
        else
            assert_true(strstr(err.text, packs.items[0].name) != NULL && strstr(err.text, "root") != NULL);
        bad += code < 0;
    }
    assert_true(bad == 4 || bad == 16); /* one of the two frames */
    backup_reader_close(r);
    memory_drop(&w.store, packs.items[0].name);
    memory_source_init(&s, data, size, same); /* nothing has changed, but all has to be read */
    assert_int_equal(make(&w, second, first, &s, NULL, NULL), 0);
    assert_int_equal(s.reads, size);
    check(&w, second, data, size);
    check(&w, first, data, size);
    store_listing_finish(&packs);
    free(data);
    free(same);
    free(out);
    world_close(&w);
}

/* One backup on top of another, killed at call @n of the store. False: it got to its end. */
static bool killed_at(uint64_t n)
{
    struct world w;
    struct memory_source s;
    struct repo_backups listed;
    struct manifest m;
    size_t size = 6 * CHUNK;
    uint8_t *data = xcalloc(1, size), *before = malloc(size);
    char base[REPO_ID_TEXT_BYTES], id[REPO_ID_TEXT_BYTES];
    bool there = false;
    world_open(&w, false);
    make_id(base);
    make_id(id);
    for (size_t at = 0; at < size; at++)
        data[at] = (uint8_t)next();
    memory_source_init(&s, data, size, NULL);
    assert_int_equal(make(&w, base, NULL, &s, NULL, NULL), 0);
    memcpy(before, data, size);
    for (size_t at = CHUNK; at < 2 * CHUNK; at++)
        data[at] = (uint8_t)next();
    w.store.dies_at = w.store.calls + n;
    w.store.dies_after = next() % 2;
    memory_source_init(&s, data, size, NULL);
    int code = make(&w, id, base, &s, NULL, NULL);
    w.store.dies_at = 0;
    assert_int_equal(repo_backups_load(&w.repo, &listed, NULL), 0);
    for (size_t i = 0; i < listed.count; i++)
        there = there || strcmp(listed.items[i].id, id) == 0;
    repo_backups_finish(&listed);
    assert_true(there || code < 0);
    if (there) {
        check(&w, id, data, size);
    } else {
        struct store_listing packs;
        assert_int_equal(store_listing_load(&w.store.store, "packs/", &packs, NULL), 0);
        memory_source_init(&s, data, size, NULL);
        assert_int_equal(make(&w, id, base, &s, &m, NULL), 0);
        assert_true(packs.count == 1 || m.head.stored_bytes == 0); /* what was there was not sent again */
        check(&w, id, data, size);
        manifest_finish(&m);
        store_listing_finish(&packs);
    }
    check(&w, base, before, size);
    free(data);
    free(before);
    world_close(&w);
    return code < 0;
}

/* Killed at every call of a backup: what is listed is whole, and the next attempt sends no pack again. */
static void test_killed_anywhere(void **state UNUSED)
{
    for (unsigned round = 0; round < 3; round++) {
        uint64_t n = 1;
        while (killed_at(n))
            n++;
        assert_in_range(n, 10, 100);
    }
}

int main(void)
{
    rng = unit_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_encrypted),
        cmocka_unit_test(test_sealed_and_keyless),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_several_packs),
        cmocka_unit_test(test_lost_pack_heals),
        cmocka_unit_test(test_killed_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
