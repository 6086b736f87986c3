/* Collections beside backups: one runs at every call of the other, either is killed at any call, sessions are given
 * up rightly and wrongly. Whatever happens: what is listed restores bit for bit, what was acknowledged is listed, the
 * store verifies, and in the end nothing is left that nobody needs. THREADED. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "backup/backup_reader.h"
#include "backup/backup_writer.h"
#include "backup/repo_gc.h"
#include "backup/repo_verify.h"
#include "tests/unit/backup/memory_source.h"
#include "tests/unit/backup/memory_store.h"
#include "tests/unit/unit_seed.h"

enum { CHUNK = REPO_CHUNK_BYTES_MIN, CHUNKS = 6, SIZE = CHUNKS * CHUNK, BACKUPS_MAX = 64 };

static uint64_t rng;
static uint64_t next(void)
{
    rng += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = rng;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

struct kept {
    char id[REPO_ID_TEXT_BYTES];
    uint8_t content[CHUNKS]; /* what each chunk is filled with: 0 zeroes */
    bool acknowledged, removed;
};
struct world {
    struct memory_store store;
    struct repo repo;
    struct kept backups[BACKUPS_MAX];
    unsigned count;
    /* what is done in the middle of something else */
    atomic_bool armed;
    atomic_uint calls_left;
    void (*nested)(struct world *w);
    struct kept *again; /* what again_nested makes */
};

/* Every chunk is one of a few contents, so that backups share many. */
static void data_of(const uint8_t content[CHUNKS], uint8_t *data)
{
    for (unsigned i = 0; i < CHUNKS; i++) {
        uint64_t state = content[i] * UINT64_C(0x2545f4914f6cdd1d);
        for (unsigned b = 0; b < CHUNK; b += 8) {
            state = content[i] == 0 ? 0 : state * UINT64_C(6364136223846793005) + 1442695040888963407u;
            memcpy(data + i * CHUNK + b, &state, 8);
        }
    }
}

static void before_call(void *arg, const char *what UNUSED, const char *name UNUSED)
{
    struct world *w = arg;
    if (!atomic_load(&w->armed))
        return;
    if (atomic_fetch_sub(&w->calls_left, 1) != 1)
        return;
    atomic_store(&w->armed, false);
    w->nested(w);
}

static void arm(struct world *w, unsigned call, void (*nested)(struct world *))
{
    w->nested = nested;
    atomic_store(&w->calls_left, call);
    atomic_store(&w->armed, true);
}

static void world_open(struct world *w)
{
    memset(w, 0, sizeof *w);
    memory_store_init(&w->store);
    assert_int_equal(repo_init(&w->store.store, false, CHUNK, NULL, NULL), 0);
    assert_int_equal(repo_open(&w->store.store, NULL, &w->repo, NULL), 0);
    w->store.before = before_call;
    w->store.before_arg = w;
}

static void world_close(struct world *w)
{
    repo_close(&w->repo);
    memory_store_finish(&w->store);
}

/* As @k says it is called. */
static int backup_make_as(struct world *w, struct kept *k)
{
    struct memory_source s;
    struct backup_writer *writer = NULL;
    CLEANUP_FREE uint8_t *data = malloc(SIZE);
    for (unsigned i = 0; i < CHUNKS; i++)
        k->content[i] = (uint8_t)(next() % 12);
    data_of(k->content, data);
    memory_source_init(&s, data, SIZE, NULL);
    struct backup_writer_options o = {.id = k->id, .vm_name = "web1", .threads = 1, .transfers = 1};
    int code = backup_writer_create(&w->repo, &o, &writer, NULL);
    if (code == 0)
        code = backup_writer_disk(writer, "root", &s.source, NULL);
    if (code == 0)
        code = backup_writer_commit(writer, NULL, NULL);
    backup_writer_destroy(writer);
    k->acknowledged = code == 0;
    return code;
}

static int backup_make(struct world *w)
{
    if (w->count == BACKUPS_MAX)
        return 0;
    struct kept *k = &w->backups[w->count++];
    repo_id_make(k->id);
    return backup_make_as(w, k);
}

static void backup_nested(struct world *w)
{
    backup_make(w);
}

static int collect(struct world *w, uint64_t silence_ms)
{
    struct repo_gc_options o = {.silence_ms = silence_ms, .keep_percent = 60};
    struct repo_gc_result r;
    return repo_gc(&w->repo, &o, &r, NULL);
}

static void collect_patient(struct world *w)
{
    collect(w, REPO_SILENCE_MS);
}

static void collect_ruthless(struct world *w)
{
    collect(w, 0);
}

static void one_remove(struct world *w)
{
    struct repo_backups listed;
    char name[MANIFEST_NAME_BYTES];
    assert_int_equal(repo_backups_load(&w->repo, &listed, NULL), 0);
    if (listed.count > 0) {
        const struct repo_backup *b = &listed.items[next() % listed.count];
        assert_int_equal(store_remove(&w->store.store, repo_manifest_name(b->id, b->session, name), NULL), 0);
        for (unsigned i = 0; i < w->count; i++)
            w->backups[i].removed = w->backups[i].removed || strcmp(w->backups[i].id, b->id) == 0;
    }
    repo_backups_finish(&listed);
}

static void restore_check(struct world *w, const struct kept *k)
{
    struct backup_reader *r;
    struct error err = {0};
    uint8_t *want = malloc(SIZE), *got = malloc(SIZE);
    data_of(k->content, want);
    if (backup_reader_open(&w->repo, k->id, 0, &r, &err) < 0 || backup_reader_read(r, 0, 0, got, SIZE, &err) < 0)
        fail_msg("backup %s: %s", k->id, err.text);
    assert_memory_equal(got, want, SIZE);
    backup_reader_close(r);
    free(want);
    free(got);
}

static void say(void *arg UNUSED, const char *text)
{
    printf("# %s\n", text);
}

static void all_well(struct world *w)
{
    struct repo_backups listed;
    struct repo_verify_result v;
    struct repo_verify_options o = {.threads = 1, .no_notes = true, .say = say};
    struct error err = {0};
    atomic_store(&w->armed, false);
    assert_int_equal(repo_backups_load(&w->repo, &listed, NULL), 0);
    for (unsigned i = 0; i < w->count; i++) {
        bool there = false;
        for (size_t n = 0; n < listed.count; n++)
            there = there || strcmp(listed.items[n].id, w->backups[i].id) == 0;
        if (w->backups[i].acknowledged && !w->backups[i].removed)
            assert_true(there);
        if (there)
            restore_check(w, &w->backups[i]);
    }
    repo_backups_finish(&listed);
    if (repo_verify(&w->repo, &o, &v, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(repo_verify_clean(&v));
}

static unsigned objects_under(struct world *w, const char *prefix)
{
    unsigned n = 0;
    for (size_t i = 0; i < w->store.count; i++)
        n += strncmp(w->store.objects[i].name, prefix, strlen(prefix)) == 0;
    return n;
}

/* Two collections with nobody at work: nothing is left that nobody needs. */
static void nothing_left(struct world *w)
{
    assert_int_equal(collect(w, 0), 0);
    assert_int_equal(collect(w, 0), 0);
    assert_int_equal(objects_under(w, "condemned/"), 0);
    assert_int_equal(objects_under(w, "active/"), 0);
    assert_int_equal(objects_under(w, "probes/"), 0);
    all_well(w);
    struct repo_backups listed;
    assert_int_equal(repo_backups_load(&w->repo, &listed, NULL), 0);
    char name[MANIFEST_NAME_BYTES];
    for (size_t i = 0; i < listed.count; i++)
        store_remove(&w->store.store, repo_manifest_name(listed.items[i].id, listed.items[i].session, name), NULL);
    repo_backups_finish(&listed);
    assert_int_equal(collect(w, 0), 0);
    assert_int_equal(collect(w, 0), 0);
    assert_int_equal(objects_under(w, "packs/"), 0);
}

static void test_collects(void **state UNUSED)
{
    struct world w;
    world_open(&w);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(backup_make(&w), 0);
    all_well(&w);
    one_remove(&w);
    one_remove(&w);
    one_remove(&w);
    assert_int_equal(collect(&w, REPO_SILENCE_MS), 0);
    all_well(&w);
    nothing_left(&w);
    world_close(&w);
}

static void again_nested(struct world *w)
{
    assert_int_equal(backup_make_as(w, w->again), 0);
}

/* A task was begun anew, and its first end came after all: whichever of the two is read, now or when the other is lost, restores; and
 * who removes the backup removes both. */
static void test_two_of_one_id(void **state UNUSED)
{
    struct world w;
    struct repo_backups all, listed;
    struct kept twice[2] = {{.id = ""}, {.id = ""}};
    char name[MANIFEST_NAME_BYTES];
    world_open(&w);
    repo_id_make(twice[0].id);
    memcpy(twice[1].id, twice[0].id, sizeof twice[1].id);
    w.again = &twice[1];
    arm(&w, 4, again_nested); /* the first is at work, and is not complete before it */
    assert_int_equal(backup_make_as(&w, &twice[0]), 0);
    assert_true(twice[1].acknowledged);
    assert_memory_not_equal(twice[0].content, twice[1].content, CHUNKS);
    assert_int_equal(collect(&w, 0), 0);
    assert_int_equal(collect(&w, 0), 0);
    assert_int_equal(repo_manifests_load(&w.repo, twice[0].id, &all, NULL), 0);
    assert_int_equal(repo_backups_load(&w.repo, &listed, NULL), 0);
    assert_int_equal(all.count, 2);
    assert_int_equal(listed.count, 1);
    assert_int_equal(store_remove(&w.store.store, repo_manifest_name(all.items[0].id, all.items[0].session, name), NULL), 0);
    all_well(&w); /* the other one's data is there as well */
    w.count = 0;
    assert_int_equal(repo_backup_remove(&w.repo, twice[0].id, NULL), 0);
    assert_int_equal(objects_under(&w, "backups/"), 0);
    nothing_left(&w);
    repo_backups_finish(&all);
    repo_backups_finish(&listed);
    world_close(&w);
}

/* What is young stays: an interrupted backup goes on where it was. */
static void test_grace(void **state UNUSED)
{
    struct world w;
    struct repo_gc_options o = {.silence_ms = 0, .grace_ms = 1000, .keep_percent = 60};
    struct repo_gc_result r;
    world_open(&w);
    assert_int_equal(backup_make(&w), 0);
    one_remove(&w);
    assert_int_equal(repo_gc(&w.repo, &o, &r, NULL), 0);
    assert_int_equal(r.removed_packs, 0);
    w.store.now_ms += 2000;
    assert_int_equal(repo_gc(&w.repo, &o, &r, NULL), 0);
    assert_int_equal(r.removed_packs, 1);
    w.store.now_ms = STORE_TIME_UNKNOWN; /* it says no times that can be read: what is young cannot be told */
    assert_int_equal(repo_gc(&w.repo, &o, &r, NULL), -EBADMSG);
    world_close(&w);
}

static void (*const nested_all[])(struct world *) = {collect_patient, collect_ruthless, backup_nested, one_remove};

/* @outer with @nested in the middle, at every call. */
static void at_every_call(void (*outer)(struct world *), void (*nested)(struct world *))
{
    for (unsigned call = 1; call < 400; call++) {
        struct world w;
        world_open(&w);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(backup_make(&w), 0);
        one_remove(&w);
        one_remove(&w);
        arm(&w, call, nested);
        outer(&w);
        bool reached = !atomic_load(&w.armed);
        all_well(&w);
        nothing_left(&w);
        world_close(&w);
        if (!reached)
            return;
    }
    fail_msg("400 calls were not enough");
}

static void test_backup_with_patient(void **state UNUSED)
{
    at_every_call(backup_nested, collect_patient);
}
static void test_backup_with_ruthless(void **state UNUSED)
{
    at_every_call(backup_nested, collect_ruthless);
}
static void test_collection_with_backup(void **state UNUSED)
{
    at_every_call(collect_patient, backup_nested);
    at_every_call(collect_ruthless, backup_nested);
}
static void test_collection_with_collection(void **state UNUSED)
{
    at_every_call(collect_ruthless, collect_ruthless);
}

/* Anything at any time, with deaths: ROUNDS=n for more. */
static void test_random(void **state UNUSED)
{
    const char *more = getenv("ROUNDS");
    unsigned rounds = more != NULL ? (unsigned)strtoul(more, NULL, 10) : 8;
    for (unsigned round = 0; round < rounds; round++) {
        struct world w;
        uint64_t seed = rng;
        world_open(&w);
        for (unsigned step = 0; step < 12; step++) {
            uint64_t death = next() % 3 == 0 ? 1 + next() % 40 : 0;
            if (next() % 2 == 0)
                arm(&w, 1 + (unsigned)(next() % 40), nested_all[next() % (death > 0 ? 3 : 4)]);
            w.store.dies_after = next() % 2;
            w.store.dies_at = death > 0 ? w.store.calls + death : 0;
            unsigned what = (unsigned)(next() % 4);
            if (what < 3)
                nested_all[what](&w);
            w.store.dies_at = 0;
            atomic_store(&w.armed, false);
            if (what == 3)
                one_remove(&w);
            if (step % 4 == 3)
                all_well(&w);
        }
        all_well(&w);
        nothing_left(&w);
        world_close(&w);
        (void)seed;
    }
}

int main(void)
{
    rng = unit_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collects),
        cmocka_unit_test(test_grace),
        cmocka_unit_test(test_two_of_one_id),
        cmocka_unit_test(test_backup_with_patient),
        cmocka_unit_test(test_backup_with_ruthless),
        cmocka_unit_test(test_collection_with_backup),
        cmocka_unit_test(test_collection_with_collection),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
