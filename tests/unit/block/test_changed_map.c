/* Which clusters have changed since when: against a model with a set for each backup, over many more periods than a byte
 * holds; and the file: what it gives back, and what it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/changed_map.h"
#include "common/file.h"

enum { CLUSTERS = 40, BACKUPS = 700, NAMES = 12 };

static uint64_t random_state = 42;

static uint32_t chance(uint32_t below)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 20) % below);
}

static void periods_model(void **state UNUSED)
{
    struct changed_map map;
    bool changed[NAMES][CLUSTERS] = {{false}}, known[NAMES] = {false};
    assert_int_equal(changed_map_init(&map, (uint64_t)CLUSTERS * CHANGED_CLUSTER_BYTES - 512), 0);
    for (unsigned i = 0; i < BACKUPS; i++) {
        for (unsigned n = chance(5); n > 0; n--) {
            uint64_t first = chance(CLUSTERS), count = 1 + chance(3);
            changed_map_mark(&map, first * CHANGED_CLUSTER_BYTES + chance(1000), (count - 1) * CHANGED_CLUSTER_BYTES + 512);
            for (unsigned b = 0; b < NAMES; b++)
                for (uint64_t c = first; c < MIN(first + count, (uint64_t)CLUSTERS); c++)
                    changed[b][c] = true;
        }
        uint8_t cut = changed_map_cut(&map);
        if (chance(3) > 0) { /* it became a backup */
            unsigned b = chance(NAMES);
            char name[8];
            snprintf(name, sizeof name, "b%u", b);
            changed_map_keep(&map, name, cut);
            memset(changed[b], 0, sizeof changed[b]);
            known[b] = true;
        }
        for (unsigned b = 0; b < NAMES; b++) {
            char name[8];
            snprintf(name, sizeof name, "b%u", b);
            int since = changed_map_find(&map, name);
            assert_true(since < 0 || known[b]);
            for (uint64_t c = 0; since >= 0 && c < CLUSTERS; c++) {
                uint64_t end;
                assert_int_equal(changed_map_since(&map, (uint8_t)since, c * CHANGED_CLUSTER_BYTES, &end), changed[b][c]);
                assert_true(end > c * CHANGED_CLUSTER_BYTES && end <= map.size_bytes);
            }
        }
        assert_true(map.base_count <= CHANGED_BASES_MAX);
    }
    assert_int_equal(map.base_count, CHANGED_BASES_MAX); /* the oldest are forgotten */
    changed_map_finish(&map);
}

/* A bad link makes a session every few seconds: the backups stay known, and the last two. */
static void sessions_leave_backups_alone(void **state UNUSED)
{
    struct changed_map map;
    char name[CHANGED_NAME_BYTES_MAX + 1];
    assert_int_equal(changed_map_init(&map, 5 * CHANGED_CLUSTER_BYTES), 0);
    for (unsigned i = 1; i <= 5; i++) {
        snprintf(name, sizeof name, "r-7.%u-20260131-120000", i); /* of VMs named so */
        changed_map_keep(&map, name, changed_map_cut(&map));
    }
    for (unsigned i = 1; i <= 100; i++) {
        snprintf(name, sizeof name, "r-7b0f9f6a11114222833344445555666e.%u", i);
        changed_map_mark(&map, 0, 512);
        changed_map_keep(&map, name, changed_map_cut(&map));
        changed_map_keep(&map, name, changed_map_cut(&map)); /* it goes on */
    }
    assert_int_equal(map.base_count, 5 + CHANGED_SESSIONS_MAX);
    assert_true(changed_map_find(&map, "r-7.1-20260131-120000") >= 0);
    assert_true(changed_map_find(&map, "r-7b0f9f6a11114222833344445555666e.98") < 0);
    assert_true(changed_map_find(&map, "r-7b0f9f6a11114222833344445555666e.99") >= 0);
    assert_int_equal(changed_map_bytes_since(&map, (uint8_t)changed_map_find(&map, name)), 0);
    assert_int_equal(changed_map_bytes_since(&map, (uint8_t)changed_map_find(&map, "r-7.5-20260131-120000")), CHANGED_CLUSTER_BYTES);
    changed_map_finish(&map);
}

static void growth(void **state UNUSED)
{
    struct changed_map map;
    uint64_t end;
    assert_int_equal(changed_map_init(&map, 3 * CHANGED_CLUSTER_BYTES - 1024), 0);
    changed_map_keep(&map, "a", changed_map_cut(&map));
    assert_int_equal(changed_map_bytes_since(&map, (uint8_t)changed_map_find(&map, "a")), 0);
    assert_int_equal(changed_map_grow(&map, 5 * CHANGED_CLUSTER_BYTES), 0);
    assert_false(changed_map_since(&map, (uint8_t)changed_map_find(&map, "a"), 0, &end));
    assert_int_equal(end, 2 * CHANGED_CLUSTER_BYTES); /* the cluster that was not whole counts */
    assert_int_equal(changed_map_bytes_since(&map, (uint8_t)changed_map_find(&map, "a")), 3 * CHANGED_CLUSTER_BYTES);
    changed_map_finish(&map);
}

static void kept_on_disk(void **state UNUSED)
{
    char directory[] = "/tmp/drover-changed-XXXXXX";
    uint8_t stamp[CHANGED_STAMP_BYTES] = "a state of the disk", other[CHANGED_STAMP_BYTES] = "another";
    struct changed_map map, again;
    struct error err;
    assert_non_null(mkdtemp(directory));
    CLEANUP_FREE char *path = xasprintf("%s/map", directory);
    assert_int_equal(changed_map_init(&map, 100 * CHANGED_CLUSTER_BYTES), 0);
    changed_map_mark(&map, 0, 5 * CHANGED_CLUSTER_BYTES);
    changed_map_keep(&map, "first", changed_map_cut(&map));
    changed_map_mark(&map, 70 * CHANGED_CLUSTER_BYTES, 512);
    for (unsigned round = 0; round < 4; round++) {
        const uint8_t *of = round == 1 ? other : stamp;
        int expected = round == 1 ? -ESTALE : round == 2 ? -EBADMSG : round == 3 ? -ENOENT : 0;
        assert_int_equal(changed_map_save(&map, path, stamp, &err), 0);
        if (round == 2)
            assert_int_equal(truncate(path, 100), 0);
        if (round == 3)
            assert_int_equal(unlink(path), 0);
        assert_int_equal(changed_map_init(&again, 100 * CHANGED_CLUSTER_BYTES), 0);
        assert_int_equal(changed_map_load(&again, path, of, &err), expected);
        assert_int_equal(access(path, F_OK), -1); /* whatever it held */
        assert_int_equal(changed_map_find(&again, "first") >= 0, expected == 0);
        if (expected == 0) {
            uint8_t since = (uint8_t)changed_map_find(&again, "first");
            assert_int_equal(changed_map_bytes_since(&again, since), CHANGED_CLUSTER_BYTES);
            changed_map_mark(&again, 0, 512);
            assert_int_equal(changed_map_bytes_since(&again, since), 2 * CHANGED_CLUSTER_BYTES);
        }
        changed_map_finish(&again);
    }
    changed_map_finish(&map);
    assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(periods_model), cmocka_unit_test(sessions_leave_backups_alone), cmocka_unit_test(growth),
                                       cmocka_unit_test(kept_on_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
