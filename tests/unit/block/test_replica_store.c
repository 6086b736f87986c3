/* Replicas with the power cut at every step: points of random writes and zeroes on three disks, then a promotion, on a simulated disk
 * (power_pool.h). After each cut the last complete point is there on all disks, or the one that was being completed; the next points
 * come on top of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "block/replica_store.h"
#include "tests/unit/block/power_pool.h"
#include "tests/unit/unit_seed.h"

enum { DISKS = 3, DISK_BYTES = 6 * LAYER_CLUSTER_BYTES + 1024, POINTS = 4, WRITES = 5, WRITE_BYTES_MAX = 24 * 1024, EPOCH = 7 };
#define VM "7b0f9f6a-1111-4222-8333-444455556666"

struct trial {
    struct power_pool *pool;
    uint64_t random;
    uint8_t *model[POINTS + 2][DISKS]; /* of each point; 0: empty */
    uint64_t complete;                 /* that commit has said 0 of */
    uint64_t trying;                   /* that it was asked for */
    char id[40];
};

static uint32_t chance(struct trial *t, uint32_t below)
{
    t->random ^= t->random << 13, t->random ^= t->random >> 7, t->random ^= t->random << 17;
    return (uint32_t)((t->random >> 20) % below);
}

static int pool_of(void *arg, const char *disk UNUSED, struct layer_pool **ret_pool, struct error *err UNUSED)
{
    *ret_pool = arg;
    return 0;
}

static struct replica_places places_of(struct trial *t)
{
    return (struct replica_places){.records = &t->pool->pool, .pool = pool_of, .arg = &t->pool->pool};
}

static const char *const names[DISKS] = {"root", "data", "log"};

static void disks_fill(struct replica_record *list)
{
    for (unsigned i = 0; i < DISKS; i++) {
        struct replica_disk *disk = OBJECT_ADD(replica_record, list, disks);
        OBJECT_TEXT(replica_disk, disk, name, names[i]);
        OBJECT_SET(replica_disk, disk, size_bytes, DISK_BYTES);
    }
}

/* One point; the model of @number is what it holds. */
static int point_make(struct trial *t, struct replica_store *store, uint64_t number)
{
    struct replica_record list = {.format = 0};
    struct error err = {.code = 0};
    disks_fill(&list);
    int code = replica_store_begin(store, EPOCH, &list.disks, &err);
    OBJECT_CLEAR(replica_record, &list);
    for (unsigned d = 0; d < DISKS; d++)
        memcpy(t->model[number][d], t->model[number - 1][d], DISK_BYTES);
    for (unsigned i = 0; code == 0 && i < WRITES; i++) {
        unsigned d = chance(t, DISKS);
        uint64_t offset = chance(t, DISK_BYTES / 512) * UINT64_C(512);
        size_t wish = (1 + chance(t, WRITE_BYTES_MAX / 512)) * (size_t)512, size = MIN(wish, (size_t)(DISK_BYTES - offset));
        uint8_t *at = t->model[number][d] + offset;
        bool zero = chance(t, 3) == 0;
        memset(at, zero ? 0 : 1 + (int)chance(t, 255), size);
        code = zero ? replica_store_zero(store, d, offset, size, &err)
                    : replica_store_write(store, d, offset, at, size, chance(t, 2) == 0, &err);
    }
    if (code == 0) {
        t->trying = number;
        code = replica_store_commit(store, &err);
    }
    if (code == 0)
        t->complete = number;
    if (code < 0 && !t->pool->dead)
        fail_msg("point %llu: %s", (unsigned long long)number, err.text);
    return code;
}

static void content_check(struct trial *t, struct layer_disk *disk, unsigned d, uint64_t number)
{
    CLEANUP_FREE uint8_t *held = xcalloc(1, DISK_BYTES);
    assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, 0, held, DISK_BYTES), 0);
    if (memcmp(held, t->model[number][d], DISK_BYTES) != 0)
        fail_msg("disk %s does not hold point %llu", names[d], (unsigned long long)number);
}

/* The record's point is one that it may be, and is there on all disks. Returns its number. */
static uint64_t store_check(struct trial *t)
{
    struct replica_places places = places_of(t);
    struct replica_store store;
    struct error err = {.code = 0};
    char name[32];
    int code = replica_store_open(&places, VM, false, &store, &err);
    if (code == -ENOENT) {
        assert_int_equal(t->complete, 0);
        return 0;
    }
    assert_int_equal(code, 0);
    uint64_t number = store.record.number;
    if (number != t->complete && number != t->trying)
        fail_msg("point %llu, and %llu was complete", (unsigned long long)number, (unsigned long long)t->complete);
    snprintf(name, sizeof name, "p%llu", (unsigned long long)number);
    for (unsigned d = 0; number > 0 && d < DISKS; d++) {
        struct layer_disk *disk;
        if (layer_disk_open_snapshot(&t->pool->pool, names[d], name, &disk, &err) < 0)
            fail_msg("%s", err.text);
        content_check(t, disk, d, number);
        layer_disk_close(disk);
    }
    snprintf(t->id, sizeof t->id, "%s", store.record.id);
    replica_store_close(&store);
    t->complete = number;
    return number;
}

static struct trial *trial_create(uint64_t seed)
{
    struct trial *t = NEW(struct trial);
    t->pool = power_pool_create(seed);
    t->random = seed * 2654435761u + 1;
    for (unsigned p = 0; p < POINTS + 2; p++)
        for (unsigned d = 0; d < DISKS; d++)
            t->model[p][d] = xcalloc(1, DISK_BYTES);
    return t;
}

static void trial_destroy(struct trial *t)
{
    for (unsigned p = 0; p < POINTS + 2; p++)
        for (unsigned d = 0; d < DISKS; d++)
            free(t->model[p][d]);
    power_pool_destroy(t->pool);
    free(t);
}

static int points_make(struct trial *t, uint64_t last)
{
    struct replica_places places = places_of(t);
    struct replica_store store;
    int code = replica_store_open(&places, VM, true, &store, NULL);
    if (code < 0)
        return code;
    while (code == 0 && store.record.number < last)
        code = point_make(t, &store, store.record.number + 1);
    snprintf(t->id, sizeof t->id, "%s", store.record.id);
    replica_store_close(&store);
    return code;
}

static void power_back(struct trial *t)
{
    if (t->pool->dead)
        power_cut(t->pool);
    t->pool->steps_max = 0;
}

/* Points with a cut at step @cut (0: none); the steps that it took. */
static uint64_t points_run(uint64_t seed, uint64_t cut)
{
    struct trial *t = trial_create(seed);
    t->pool->steps = 0;
    t->pool->steps_max = cut;
    (void)points_make(t, POINTS);
    uint64_t steps = t->pool->steps;
    power_back(t);
    (void)store_check(t);
    assert_int_equal(points_make(t, POINTS + 1), 0);
    assert_int_equal(store_check(t), POINTS + 1);
    trial_destroy(t);
    return steps;
}

static int promote_known(struct trial *t, const struct replica_known *known, uint64_t epoch, struct error *err)
{
    struct replica_places places = places_of(t);
    struct replica_store store;
    int code = replica_store_open(&places, VM, false, &store, err);
    if (code < 0)
        return code;
    code = replica_store_promote(&store, known, epoch, err);
    replica_store_close(&store);
    return code;
}

static int promote(struct trial *t, uint64_t number, uint64_t epoch, struct error *err)
{
    const struct replica_known known = {.id = t->id, .number = number};
    return promote_known(t, &known, epoch, err);
}

/* A source that dies in the middle of a point, then a promotion that is cut. */
static uint64_t promotion_run(uint64_t seed, uint64_t cut)
{
    struct trial *t = trial_create(seed);
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    uint8_t garbage[4096];
    assert_int_equal(points_make(t, 2), 0);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    disks_fill(&list);
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), 0);
    memset(garbage, 0xee, sizeof garbage);
    assert_int_equal(replica_store_write(&store, 1, 8192, garbage, sizeof garbage, false, NULL), 0);
    replica_store_close(&store);
    t->pool->steps = 0;
    t->pool->steps_max = cut;
    (void)promote(t, 2, EPOCH + 1, NULL);
    uint64_t steps = t->pool->steps;
    power_back(t);
    assert_int_equal(promote(t, 2, EPOCH + 1, NULL), 0);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH + 2, &list.disks, NULL), -EBUSY); /* it is no replica any more */
    replica_store_close(&store);
    OBJECT_CLEAR(replica_record, &list);
    for (unsigned d = 0; d < DISKS; d++) {
        struct layer_disk *disk;
        assert_int_equal(layer_disk_open(&t->pool->pool, names[d], false, EPOCH + 1, &disk, NULL), 0);
        assert_int_equal(disk->head.snapshots.count, 0);
        content_check(t, disk, d, 2);
        layer_disk_close(disk);
    }
    trial_destroy(t);
    return steps;
}

static void a_cut_leaves_a_complete_point(void **state UNUSED)
{
    uint64_t seed = unit_seed(), steps = points_run(seed, 0);
    unsigned runs = 0;
    for (uint64_t cut = 1; cut <= steps; cut++, runs++)
        points_run(seed, cut);
    print_message("%u cuts\n", runs);
    assert_true(runs > 100);
}

static void a_cut_promotion_is_done_again(void **state UNUSED)
{
    uint64_t seed = unit_seed(), steps = promotion_run(seed, 0);
    for (uint64_t cut = 1; cut <= steps; cut++)
        promotion_run(seed, cut);
    assert_true(steps > 5);
}

static void owners_of_the_past_are_refused(void **state UNUSED)
{
    struct trial *t = trial_create(1);
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    struct error err = {.code = 0};
    assert_int_equal(points_make(t, 1), 0);
    disks_fill(&list);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH - 1, &list.disks, &err), -ESTALE);
    list.disks.count--; /* another list than the replica's */
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, &err), -EINVAL);
    list.disks.count++;
    assert_int_equal(replica_store_begin(&store, EPOCH + 1, &list.disks, NULL), 0);
    uint8_t sector[512] = {1};
    assert_int_equal(replica_store_write(&store, DISKS, 0, sector, 512, false, &err), -ERANGE);
    assert_int_equal(replica_store_write(&store, 0, DISK_BYTES, sector, 512, false, &err), -ERANGE);
    assert_int_equal(replica_store_write(&store, 0, 100, sector, 512, false, &err), -ERANGE);
    assert_int_equal(replica_store_zero(&store, 0, UINT64_MAX - 511, 1024, &err), -ERANGE);
    replica_store_close(&store);
    assert_int_equal(promote(t, 2, EPOCH, &err), -ESTALE);     /* a point that it does not have */
    assert_int_equal(promote(t, 1, EPOCH - 1, &err), -ESTALE); /* for an owner of the past */
    t->id[0] = 'x';
    assert_int_equal(promote(t, 1, EPOCH, &err), -ENOENT); /* another replica */
    assert_int_equal(replica_store_open(&places, "7b0f9f6a-1111-4222-8333-444455556667", true, &store, &err), -EBADMSG);
    OBJECT_CLEAR(replica_record, &list);
    trial_destroy(t);
}

static void what_is_given_up_takes_no_room(void **state UNUSED)
{
    struct trial *t = trial_create(1);
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    uint8_t *data = xcalloc(1, LAYER_CLUSTER_BYTES);
    assert_int_equal(points_make(t, 1), 0);
    disks_fill(&list);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), 0);
    memset(data, 0xaa, LAYER_CLUSTER_BYTES);
    assert_int_equal(replica_store_write(&store, 0, LAYER_CLUSTER_BYTES, data, LAYER_CLUSTER_BYTES, false, NULL), 0);
    replica_store_give_up(&store);
    unsigned maps = 0;
    for (unsigned i = 0; i < POWER_FILES_MAX; i++)
        maps += t->pool->files[i].named && strstr(t->pool->files[i].name, ".map") != NULL;
    assert_int_equal(maps, 2 * DISKS); /* the point, and an empty top */
    replica_store_close(&store);
    assert_int_equal(store_check(t), 1);
    OBJECT_CLEAR(replica_record, &list);
    free(data);
    trial_destroy(t);
}

/* The record has its name, and only the directory could not be synced. */
static int replace_unsynced(struct layer_pool *pool, const char *name, const void *data, size_t size, struct error *err)
{
    int code = power_replace(pool, name, data, size, err);
    return code == 0 && strcmp(name, REPLICA_RECORD_FILE) == 0 ? error_errno(err, -EIO, "cannot sync the directory") : code;
}

static void a_record_that_may_be_the_next_ones_is_read_again(void **state UNUSED)
{
    struct trial *t = trial_create(1);
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    const struct layer_pool_ops *ops = t->pool->pool.ops;
    struct layer_pool_ops unsynced = *ops;
    unsynced.replace = replace_unsynced;
    assert_int_equal(points_make(t, 1), 0);
    for (unsigned d = 0; d < DISKS; d++)
        memcpy(t->model[2][d], t->model[1][d], DISK_BYTES);
    memset(t->model[2][0] + 8192, 0x77, 4096);
    disks_fill(&list);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), 0);
    assert_int_equal(replica_store_write(&store, 0, 8192, t->model[2][0] + 8192, 4096, false, NULL), 0);
    t->pool->pool.ops = &unsynced;
    t->trying = 2;
    assert_int_equal(replica_store_commit(&store, NULL), -EIO);
    t->pool->pool.ops = ops;
    replica_store_give_up(&store);
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), -EIO);
    replica_store_close(&store);
    assert_int_equal(store_check(t), 2); /* as it says itself */
    assert_int_equal(points_make(t, 3), 0);
    assert_int_equal(store_check(t), 3);
    OBJECT_CLEAR(replica_record, &list);
    trial_destroy(t);
}

/* ---- sessions ---- */

/* One that writes straight to the disks, and flushes all of them in the end; the model of @number is what it has written by then. */
static int session_run(struct trial *t, uint64_t session, uint64_t number, const struct replica_known *known)
{
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    struct error err = {.code = 0};
    int code = replica_store_open(&places, VM, true, &store, &err);
    if (code < 0)
        return code;
    snprintf(t->id, sizeof t->id, "%s", store.record.id);
    disks_fill(&list);
    code = replica_store_settle(&store, known, &err);
    if (code == 0)
        code = replica_store_follow(&store, EPOCH, session, &list.disks, &err);
    OBJECT_CLEAR(replica_record, &list);
    for (unsigned d = 0; d < DISKS; d++)
        memcpy(t->model[number][d], t->model[number - 1][d], DISK_BYTES);
    for (unsigned i = 0; code == 0 && i < 3 * WRITES; i++) {
        unsigned d = chance(t, DISKS);
        struct block *b = &store.disks[d]->chain->block;
        uint64_t offset = chance(t, DISK_BYTES / 512) * UINT64_C(512);
        uint8_t *at = t->model[number][d] + offset;
        memset(at, 1 + (int)chance(t, 255), 512);
        code = block_now(b, BLOCK_WRITE, offset, at, 512);
        for (unsigned k = 0; code == 0 && i % WRITES == WRITES - 1 && k < DISKS; k++)
            code = block_now(&store.disks[k]->chain->block, BLOCK_FLUSH, 0, NULL, 0);
    }
    replica_store_close(&store);
    if (code < 0 && !t->pool->dead)
        fail_msg("session %llu: %s", (unsigned long long)session, err.text);
    return code;
}

static void promoted_check(struct trial *t, uint64_t number, unsigned layers_min)
{
    for (unsigned d = 0; d < DISKS; d++) {
        struct layer_disk *disk;
        assert_int_equal(layer_disk_open(&t->pool->pool, names[d], false, EPOCH + 1, &disk, NULL), 0);
        assert_true(disk->chain->count >= layers_min);
        assert_int_equal(disk->head.snapshots.count, 0);
        content_check(t, disk, d, number);
        layer_disk_close(disk);
    }
}

/* @points were sent, then a session came level, then the power was cut (what it had flushed stays), and the record says that it is the disk: it
 * is, though the promotion is cut, too. */
static uint64_t level_run(uint64_t seed, unsigned points, uint64_t cut)
{
    struct trial *t = trial_create(seed);
    assert_int_equal(points > 0 ? points_make(t, points) : 0, 0);
    const struct replica_known before = {.id = t->id, .number = points};
    assert_int_equal(session_run(t, 5, points + 1, &before), 0);
    power_cut(t->pool);
    const struct replica_known known = {.id = t->id, .number = points + 1, .session = 5};
    t->pool->steps = 0;
    t->pool->steps_max = cut;
    (void)promote_known(t, &known, EPOCH + 1, NULL);
    uint64_t steps = t->pool->steps;
    power_back(t);
    assert_int_equal(promote_known(t, &known, EPOCH + 1, NULL), 0);
    promoted_check(t, points + 1, points > 0 ? 3 : 2); /* nothing was merged: a VM waits for it */
    trial_destroy(t);
    return steps;
}

static void a_session_that_came_level_is_the_disk(void **state UNUSED)
{
    uint64_t seed = unit_seed();
    for (unsigned points = 0; points <= 2; points++) {
        uint64_t steps = level_run(seed, points, 0);
        assert_true(steps > 5);
        for (uint64_t cut = 1; cut <= steps; cut++)
            level_run(seed, points, cut);
    }
}

/* A session is cut anywhere before the record says that it is level: the last point stays whole, for a promotion and for the next session. */
static uint64_t early_run(uint64_t seed, uint64_t cut)
{
    struct trial *t = trial_create(seed);
    assert_int_equal(points_make(t, 2), 0);
    const struct replica_known known = {.id = t->id, .number = 2};
    t->pool->steps = 0;
    t->pool->steps_max = cut;
    (void)session_run(t, 1, 3, &known);
    uint64_t steps = t->pool->steps;
    power_back(t);
    t->complete = t->trying = 2;
    assert_int_equal(store_check(t), 2);
    if (cut % 2 == 0) {
        assert_int_equal(session_run(t, 2, 3, &known), 0);
        const struct replica_known next = {.id = t->id, .number = 3, .session = 2};
        assert_int_equal(promote_known(t, &next, EPOCH + 1, NULL), 0);
        promoted_check(t, 3, 1);
    } else {
        assert_int_equal(promote_known(t, &known, EPOCH + 1, NULL), 0);
        promoted_check(t, 2, 1);
    }
    trial_destroy(t);
    return steps;
}

static void a_session_that_is_not_level_costs_no_point(void **state UNUSED)
{
    uint64_t seed = unit_seed(), steps = early_run(seed, 0);
    assert_true(steps > 20);
    for (uint64_t cut = 1; cut <= steps; cut++)
        early_run(seed, cut);
}

/* The next session goes on above what the last one came to, wherever settling it or going on is cut; and so do points that are sent. */
static uint64_t settle_run(uint64_t seed, uint64_t cut)
{
    struct trial *t = trial_create(seed);
    assert_int_equal(points_make(t, 1), 0);
    const struct replica_known first = {.id = t->id, .number = 1}, level = {.id = t->id, .number = 2, .session = 1};
    assert_int_equal(session_run(t, 1, 2, &first), 0);
    t->pool->steps = 0;
    t->pool->steps_max = cut;
    (void)session_run(t, 2, 3, &level);
    uint64_t steps = t->pool->steps;
    power_back(t);
    struct replica_places places = places_of(t);
    struct replica_store store;
    assert_int_equal(replica_store_open(&places, VM, false, &store, NULL), 0);
    assert_int_equal(replica_store_settle(&store, &level, NULL), 0);
    assert_int_equal(store.record.number, 2);
    replica_store_close(&store);
    t->complete = t->trying = 2;
    assert_int_equal(store_check(t), 2);
    assert_int_equal(points_make(t, 3), 0);
    assert_int_equal(store_check(t), 3);
    trial_destroy(t);
    return steps;
}

static void the_next_session_goes_on_where_the_last_one_was_level(void **state UNUSED)
{
    uint64_t seed = unit_seed(), steps = settle_run(seed, 0);
    assert_true(steps > 20);
    for (uint64_t cut = 1; cut <= steps; cut++)
        settle_run(seed, cut);
}

/* What a session has left is a point for who knows that very session, and for nobody else. */
static void sessions_are_not_mixed_up(void **state UNUSED)
{
    struct trial *t = trial_create(1);
    struct replica_places places = places_of(t);
    struct replica_record list = {.format = 0};
    struct replica_store store;
    struct error err = {.code = 0};
    assert_int_equal(points_make(t, 1), 0);
    const struct replica_known first = {.id = t->id, .number = 1};
    assert_int_equal(session_run(t, 7, 2, &first), 0);
    disks_fill(&list);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_commit(&store, &err), -EINVAL);                                 /* it is no point that was sent */
    assert_int_equal(replica_store_follow(&store, EPOCH, 7, &list.disks, &err), -ESTALE);          /* once more, the same session */
    assert_int_equal(replica_store_follow(&store, EPOCH, 6, &list.disks, &err), -ESTALE);          /* one before it */
    assert_int_equal(replica_store_follow(&store, EPOCH - 1, 8, &list.disks, &err), -ESTALE);      /* an owner of the past */
    const struct replica_known other = {.id = t->id, .number = 2, .session = 6}, sent = {.id = t->id, .number = 2};
    assert_int_equal(replica_store_settle(&store, &other, NULL), 0);
    assert_int_equal(replica_store_settle(&store, &sent, NULL), 0);
    assert_int_equal(store.record.number, 1);
    replica_store_close(&store);
    assert_int_equal(promote_known(t, &other, EPOCH + 1, &err), -ESTALE);
    assert_int_equal(promote_known(t, &sent, EPOCH + 1, &err), -ESTALE);
    /* who knows of the point before it puts the disks back, and from then on the session is nothing to anybody */
    t->complete = t->trying = 1;
    assert_int_equal(points_make(t, 1), 0);
    assert_int_equal(replica_store_open(&places, VM, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), 0);
    replica_store_close(&store);
    const struct replica_known late = {.id = t->id, .number = 2, .session = 7};
    assert_int_equal(promote_known(t, &late, EPOCH + 1, &err), -ESTALE);
    assert_int_equal(store_check(t), 1);
    OBJECT_CLEAR(replica_record, &list);
    trial_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_leaves_a_complete_point),
        cmocka_unit_test(a_cut_promotion_is_done_again),
        cmocka_unit_test(owners_of_the_past_are_refused),
        cmocka_unit_test(what_is_given_up_takes_no_room),
        cmocka_unit_test(a_record_that_may_be_the_next_ones_is_read_again),
        cmocka_unit_test(a_session_that_came_level_is_the_disk),
        cmocka_unit_test(a_session_that_is_not_level_costs_no_point),
        cmocka_unit_test(the_next_session_goes_on_where_the_last_one_was_level),
        cmocka_unit_test(sessions_are_not_mixed_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
