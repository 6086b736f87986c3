/* Snapshot files with a guest made of arrays: both ways of holding memory, mapped and read, damage, cuts, cancel. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/file.h"
#include "migration/snapshot_file.h"
#include "tests/unit/migration/array_guest.h"

#define LOW_BYTES (3ul << 20)
#define HIGH_BYTES ((2ul << 20) + 12288)
#define HOLE_AT (LOW_BYTES + (1ul << 20) + 4096) /* of both: a piece without data */

static char folder[] = "/tmp/drover-snapshot-XXXXXX";
static char path[64];

static int folder_make(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/machine.snap", folder);
    return 0;
}

static int folder_remove(void **state)
{
    (void)state;
    return file_remove_tree("/tmp", folder + 5, NULL);
}

static void guest_make(struct array_guest *g, bool filled)
{
    array_guest_init(g, LOW_BYTES, HIGH_BYTES);
    if (!filled)
        return;
    strcpy(g->state, "registers");
    for (size_t at = 0; at < LOW_BYTES; at += 5 * 4096)
        memset(g->memory[0] + at, (int)(at >> 12) | 1, 4096);
    memset(g->memory[1] + HIGH_BYTES - 4096, 0x77, 4096);
    g->memory[1][0] = 1;
}

static struct snapshot_counts save(struct array_guest *g, bool compress)
{
    struct machine_description d = {0};
    struct snapshot_writer *w;
    struct error err = {0};
    unlink(path);
    OBJECT_TEXT(machine_description, &d, machine, "pc-1");
    OBJECT_SET(machine_description, &d, vcpus, 1);
    OBJECT_SET(machine_description, &d, memory_bytes, LOW_BYTES + HIGH_BYTES);
    assert_int_equal(snapshot_begin(&g->guest, &d, path, compress, &w, &err), 0);
    assert_int_equal(access(path, F_OK), -1); /* not under its name yet */
    if (snapshot_memory(w, &err) < 0 || snapshot_commit(w, &err) < 0)
        fail_msg("%s", err.text);
    struct snapshot_counts counts = snapshot_progress(w);
    snapshot_writer_destroy(w);
    OBJECT_CLEAR(machine_description, &d);
    return counts;
}

/* 0 or the error of open or load. */
static int restore(struct array_guest *g, unsigned how, struct error *err)
{
    struct snapshot_file *f;
    int code = snapshot_open(path, &f, err);
    if (code < 0)
        return code;
    assert_int_equal(snapshot_description(f)->memory_bytes, LOW_BYTES + HIGH_BYTES);
    code = snapshot_load(f, &g->guest, how, err);
    snapshot_close(f);
    return code;
}

static void round_trip(bool compress, bool map, bool copy)
{
    struct array_guest from, to;
    struct error err = {0};
    struct stat st;
    guest_make(&from, true);
    guest_make(&to, false);
    to.can_map = map;
    struct snapshot_counts counts = save(&from, compress);
    assert_true(counts.data_bytes >= LOW_BYTES / 5 && counts.data_bytes < LOW_BYTES / 4);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (compress)
        assert_true(st.st_size < 20000);
    else
        assert_true((uint64_t)st.st_blocks * 512 < counts.data_bytes + (1 << 20)); /* zeros take no room */
    if (restore(&to, copy ? SNAPSHOT_VERIFY | SNAPSHOT_COPY : SNAPSHOT_VERIFY, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(to.mapped, map && !compress && !copy);
    unlink(path);
    assert_true(array_guest_equal(&from, &to));
    to.memory[0][0] ^= 1; /* what is mapped can be written */
    array_guest_finish(&from);
    array_guest_finish(&to);
}

static void image_is_read(void **state)
{
    (void)state;
    round_trip(false, false, false);
}

static void image_is_mapped(void **state)
{
    (void)state;
    round_trip(false, true, false);
    round_trip(false, true, true); /* could be, and is not to be */
}

static void compressed_pages_are_read(void **state)
{
    (void)state;
    round_trip(true, true, false);
}

/* A guest that runs while it is saved: between any two fetches it writes pages here and there, zeros too, and what it was told to be. */
struct live_guest {
    struct array_guest array;
    struct guest_ops ops;
    uint64_t random, *written[2];
    unsigned fetches, fetches_max; /* of all regions; then it writes everything again, all the time */
    bool tracking, paused, cut_off;
};

static uint32_t live_chance(struct live_guest *g, uint32_t below)
{
    g->random ^= g->random << 13, g->random ^= g->random >> 7, g->random ^= g->random << 17;
    return (uint32_t)((g->random >> 20) % below);
}

static size_t live_words(const struct live_guest *g, size_t region)
{
    return (g->array.sizes[region] / GUEST_PAGE_BYTES + 63) / 64;
}

static void live_write(struct live_guest *g, unsigned pages)
{
    for (unsigned i = 0; i < pages && !g->paused; i++) {
        unsigned region = live_chance(g, 2);
        uint64_t page = live_chance(g, (uint32_t)(g->array.sizes[region] / GUEST_PAGE_BYTES));
        memset(g->array.memory[region] + page * GUEST_PAGE_BYTES, live_chance(g, 3) == 0 ? 0 : (int)live_chance(g, 256), GUEST_PAGE_BYTES);
        if (g->tracking)
            g->written[region][page / 64] |= UINT64_C(1) << page % 64;
    }
}

static struct live_guest *live_of(struct guest *guest)
{
    return CONTAINER_OF(CONTAINER_OF(guest, struct array_guest, guest), struct live_guest, array);
}

static int live_dirty_start(struct guest *guest, struct error *err UNUSED)
{
    struct live_guest *g = live_of(guest);
    g->tracking = true;
    for (unsigned r = 0; r < 2; r++) /* the first fetch may give every page */
        memset(g->written[r], 0xff, live_words(g, r) * sizeof(uint64_t));
    return 0;
}

static int live_dirty_fetch(struct guest *guest, size_t region, uint64_t *bitmap, struct error *err)
{
    struct live_guest *g = live_of(guest);
    assert_true(g->tracking);
    if (g->cut_off && g->fetches > 2)
        return error_set(err, -EIO, ERROR_INTERNAL, "cut off");
    for (size_t word = 0; word < live_words(g, region); word++) {
        bitmap[word] |= g->written[region][word];
        g->written[region][word] = 0;
    }
    live_write(g, g->fetches++ < g->fetches_max ? 40 : 4000);
    return 0;
}

static void live_dirty_stop(struct guest *guest)
{
    live_of(guest)->tracking = false;
}

static void live_make(struct live_guest *g, uint64_t seed, unsigned fetches_max)
{
    memset(g, 0, sizeof(*g));
    guest_make(&g->array, true);
    g->ops = *g->array.guest.ops;
    g->ops.dirty_start = live_dirty_start;
    g->ops.dirty_fetch = live_dirty_fetch;
    g->ops.dirty_stop = live_dirty_stop;
    g->array.guest.ops = &g->ops;
    g->random = seed * 2 + 1;
    g->fetches_max = fetches_max;
    for (unsigned r = 0; r < 2; r++)
        g->written[r] = xcalloc(live_words(g, r), sizeof(uint64_t));
}

static void live_finish(struct live_guest *g)
{
    assert_false(g->tracking);
    free(g->written[0]);
    free(g->written[1]);
    array_guest_finish(&g->array);
}

static int live_save(struct live_guest *g, struct error *err)
{
    struct machine_description d = {0};
    struct snapshot_writer *w = NULL;
    OBJECT_TEXT(machine_description, &d, machine, "pc-1");
    OBJECT_SET(machine_description, &d, vcpus, 1);
    OBJECT_SET(machine_description, &d, memory_bytes, LOW_BYTES + HIGH_BYTES);
    int code = snapshot_begin_live(&g->array.guest, path, &w, err);
    if (code == 0)
        code = snapshot_copy(w, err);
    live_write(g, 100); /* until it stands still */
    g->paused = true;
    if (code == 0)
        code = snapshot_stand(w, &d, err);
    if (code == 0)
        code = snapshot_memory(w, err);
    if (code == 0)
        code = snapshot_commit(w, err);
    snapshot_writer_destroy(w);
    OBJECT_CLEAR(machine_description, &d);
    return code;
}

static void a_guest_that_runs_is_saved_at_one_moment(void **state)
{
    static const unsigned fetches[] = {100, 6, 0}; /* it writes little; much from then on; much all the time */
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct live_guest from;
        struct array_guest to;
        struct error err = {0};
        live_make(&from, seed, fetches[seed % 3]);
        guest_make(&to, false);
        if (live_save(&from, &err) < 0 || restore(&to, SNAPSHOT_VERIFY, &err) < 0)
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
        assert_true(array_guest_equal(&from.array, &to));
        unlink(path);
        live_finish(&from);
        array_guest_finish(&to);
    }
}

static void a_guest_that_runs_and_fails_leaves_nothing(void **state)
{
    struct live_guest from;
    struct error err = {0};
    (void)state;
    live_make(&from, 1, 100);
    from.cut_off = true;
    assert_int_equal(live_save(&from, &err), -EIO);
    assert_int_equal(access(path, F_OK), -1);
    live_finish(&from); /* and is not tracked any more */
}

/* What is at the end of memory, byte by byte of the rest: everything that says what the machine is. */
static void damage_is_refused(void **state)
{
    struct error err = {0};
    (void)state;
    for (unsigned compress = 0; compress < 2; compress++) {
        struct array_guest from, to;
        char *data;
        size_t size;
        guest_make(&from, true);
        save(&from, compress);
        assert_int_equal(file_read(path, 64 << 20, &data, &size, &err), 0);
        size_t head = compress ? size : 800; /* of an image: header, states, checksums, end are below this */
        for (size_t i = 0; i < head; i += i < 300 ? 1 : 7) {
            int fd = open(path, O_WRONLY);
            uint8_t bad = (uint8_t)data[i] ^ 0x10;
            assert_int_equal(pwrite(fd, &bad, 1, (off_t)i), 1);
            guest_make(&to, false);
            int code = restore(&to, 0, &err);
            if (code >= 0 && (compress || bad != 0x10)) /* an image's padding is zeros that nobody reads */
                fail_msg("byte %zu was changed and nobody saw it", i);
            array_guest_finish(&to);
            assert_int_equal(pwrite(fd, data + i, 1, (off_t)i), 1);
            close(fd);
        }
        array_guest_finish(&from);
        free(data);
    }
}

static void damaged_memory_is_found_when_asked(void **state)
{
    static const unsigned ways[] = {SNAPSHOT_VERIFY, SNAPSHOT_VERIFY | SNAPSHOT_COPY};
    static const size_t places[] = {100, HOLE_AT}; /* where there was data, and where there was none */
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(ways) * ARRAY_SIZE(places); i++) {
        struct array_guest from, to;
        struct error err = {0};
        guest_make(&from, true);
        guest_make(&to, false);
        save(&from, false);
        int fd = open(path, O_WRONLY);
        assert_int_equal(pwrite(fd, "x", 1, (off_t)(SNAPSHOT_ALIGN_BYTES + places[i / 2])), 1);
        close(fd);
        assert_int_equal(restore(&to, ways[i % 2], &err), -EBADMSG);
        assert_non_null(strstr(err.text, "damaged"));
        array_guest_finish(&from);
        array_guest_finish(&to);
    }
}

/* What was never touched before is not touched by going on: it is of no use to the guest, and costs the host memory. */
static void a_copy_touches_what_has_data_alone(void **state)
{
    struct array_guest from, to;
    struct error err = {0};
    unsigned char there[LOW_BYTES / 4096];
    unsigned touched = 0;
    (void)state;
    guest_make(&from, true);
    guest_make(&to, false);
    save(&from, false);
    (void)madvise(to.memory[0], LOW_BYTES, MADV_NOHUGEPAGE);
    if (restore(&to, SNAPSHOT_VERIFY | SNAPSHOT_COPY, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(mincore(to.memory[0], LOW_BYTES, there), 0);
    for (size_t i = 0; i < sizeof(there); i++)
        touched += there[i] & 1;
    assert_int_equal(touched, (LOW_BYTES / 4096 + 4) / 5); /* as guest_make writes */
    assert_true(array_guest_equal(&from, &to));
    unlink(path);
    array_guest_finish(&from);
    array_guest_finish(&to);
}

static void cut_files_are_refused(void **state)
{
    struct error err = {0};
    (void)state;
    for (unsigned compress = 0; compress < 2; compress++) {
        struct array_guest from, to;
        struct stat st;
        guest_make(&from, true);
        save(&from, compress);
        assert_int_equal(stat(path, &st), 0);
        for (off_t size = st.st_size - 1; size >= 0; size -= size < 1500 ? 1 : st.st_size / 50) {
            assert_int_equal(truncate(path, size), 0);
            guest_make(&to, false);
            assert_int_equal(restore(&to, 0, &err), -EBADMSG);
            array_guest_finish(&to);
        }
        array_guest_finish(&from);
    }
    assert_non_null(strstr(err.text, path));
}

static void cancelled_and_failed_saves_leave_nothing(void **state)
{
    struct array_guest from;
    struct machine_description d = {0};
    struct snapshot_writer *w;
    struct error err = {0};
    (void)state;
    unlink(path);
    guest_make(&from, true);
    OBJECT_TEXT(machine_description, &d, machine, "pc-1");
    OBJECT_SET(machine_description, &d, vcpus, 1);
    OBJECT_SET(machine_description, &d, memory_bytes, LOW_BYTES + HIGH_BYTES);
    for (unsigned compress = 0; compress < 2; compress++) {
        assert_int_equal(snapshot_begin(&from.guest, &d, path, compress, &w, &err), 0);
        snapshot_cancel(w);
        assert_int_equal(snapshot_memory(w, &err), -ECANCELED);
        snapshot_writer_destroy(w);
    }
    assert_int_equal(snapshot_begin(&from.guest, &d, "/nowhere/x", false, &w, &err), -ENOENT);
    assert_int_equal(rmdir(folder), 0); /* empty */
    assert_int_equal(mkdir(folder, 0700), 0);
    OBJECT_CLEAR(machine_description, &d);
    array_guest_finish(&from);
}

static void machine_of_other_size_is_refused(void **state)
{
    struct array_guest from, to;
    struct snapshot_file *f;
    struct error err = {0};
    (void)state;
    guest_make(&from, true);
    save(&from, true);
    array_guest_init(&to, LOW_BYTES, HIGH_BYTES + 4096);
    assert_int_equal(snapshot_open(path, &f, &err), 0);
    assert_int_equal(snapshot_load(f, &to.guest, 0, &err), -EINVAL);
    snapshot_close(f);
    assert_int_equal(snapshot_open("/etc/passwd", &f, &err), -EBADMSG);
    assert_int_equal(snapshot_open("/etc", &f, &err), -EBADMSG);
    assert_int_equal(snapshot_open("/nowhere", &f, &err), -ENOENT);
    array_guest_finish(&from);
    array_guest_finish(&to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(image_is_read),
        cmocka_unit_test(image_is_mapped),
        cmocka_unit_test(compressed_pages_are_read),
        cmocka_unit_test(a_guest_that_runs_is_saved_at_one_moment),
        cmocka_unit_test(a_guest_that_runs_and_fails_leaves_nothing),
        cmocka_unit_test(damage_is_refused),
        cmocka_unit_test(damaged_memory_is_found_when_asked),
        cmocka_unit_test(a_copy_touches_what_has_data_alone),
        cmocka_unit_test(cut_files_are_refused),
        cmocka_unit_test(cancelled_and_failed_saves_leave_nothing),
        cmocka_unit_test(machine_of_other_size_is_refused),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
