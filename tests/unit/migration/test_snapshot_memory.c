/* Files of the memory that belongs to snapshots: named last, gone with what is left of them, and gone on from once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "migration/snapshot_memory.h"

#define A "aaaaaaaa-0000-4000-8000-000000000001"
#define B "bbbbbbbb-0000-4000-8000-000000000002"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/snapshot_memory.XXXXXX");
    assert_non_null(mkdtemp(dir));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(file_remove_tree("/tmp", dir + 5, NULL), 0);
    return 0;
}

static void put(const char *leaf, const char *text)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", dir, leaf);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0600, NULL), 0);
}

static bool there(const char *leaf)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", dir, leaf);
    struct stat st;
    return lstat(path, &st) == 0;
}

static void the_file_gets_its_name_last(void **state UNUSED)
{
    struct error err;
    uint64_t bytes;
    assert_int_equal(snapshot_memory_look(dir, A, &bytes, &err), -ENOENT);
    assert_int_equal(snapshot_memory_conclude(dir, A, &err), -ENOENT);
    put(A ".memory.new", "machine");
    assert_int_equal(snapshot_memory_look(dir, A, &bytes, &err), -ENOENT);
    assert_int_equal(snapshot_memory_conclude(dir, A, &err), 0);
    assert_int_equal(snapshot_memory_look(dir, A, &bytes, &err), 0);
    assert_true(bytes >= 512);
    assert_false(there(A ".memory.new"));
    CLEANUP_FREE char *link = xasprintf("%s/" B ".memory", dir);
    assert_int_equal(symlink("/etc/passwd", link), 0);
    assert_int_equal(snapshot_memory_look(dir, B, &bytes, &err), -EINVAL);
}

static bool keeps_a(void *arg, const char *snapshot)
{
    ++*(unsigned *)arg;
    return strcmp(snapshot, A) == 0;
}

static void what_goes_goes_whole_and_alone(void **state UNUSED)
{
    static const char *const others[] = {
        "root.disk", "0123456789abcdef0123456789abcdef.map", "resume", ".memory", "x.memory2", "data.memory.new.disk", "data.memory.disk",
        "data.memory.new", "data.memory", A ".memory.new.disk", A ".memory.new.17.disk", A ".memory.new.", A ".memory.newer", A ".memory.disk"};
    unsigned asked = 0;
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        put(others[i], "other");
    put(A ".memory", "whole");
    put(A ".memory.new.17.part", "half");
    put(B ".memory.new", "whole, unnamed");
    put(B ".memory", "whole");
    assert_int_equal(snapshot_memory_remove(dir, "c", NULL), 0); /* nothing is there */
    assert_int_equal(snapshot_memory_remove(dir, A, NULL), 0);
    assert_false(there(A ".memory") || there(A ".memory.new.17.part"));
    assert_true(there(B ".memory") && there(B ".memory.new"));
    put(A ".memory", "whole");
    put(A ".memory.new", "of a host that went down");
    snapshot_memory_tidy(dir, keeps_a, &asked);
    assert_int_equal(asked, 2); /* what is not whole is not asked for */
    assert_true(there(A ".memory"));
    assert_false(there(A ".memory.new") || there(B ".memory") || there(B ".memory.new"));
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        assert_true(there(others[i]));
}

static void it_is_gone_on_from_once(void **state UNUSED)
{
    struct error err;
    char *name;
    assert_int_equal(snapshot_resume_read(dir, &name, &err), 0);
    assert_null(name);
    assert_int_equal(snapshot_resume_take(dir, A, &err), -ESTALE);
    assert_int_equal(snapshot_resume_clear(dir, &err), 0);
    assert_int_equal(snapshot_resume_set(dir, A, &err), 0);
    assert_int_equal(snapshot_resume_read(dir, &name, &err), 0);
    assert_string_equal(name, A);
    free(name);
    assert_int_equal(snapshot_resume_take(dir, B, &err), -ESTALE); /* another's word is left alone */
    assert_true(there("resume"));
    assert_int_equal(snapshot_resume_take(dir, A, &err), 0);
    assert_int_equal(snapshot_resume_take(dir, A, &err), -ESTALE);
    assert_non_null(strstr(err.text, "already"));
    assert_int_equal(snapshot_resume_set(dir, A, &err), 0);
    assert_int_equal(snapshot_resume_clear(dir, &err), 0);
    assert_int_equal(snapshot_resume_take(dir, A, &err), -ESTALE);
}

/* A VMM has written it, or may have. */
static void an_odd_word_is_none(void **state UNUSED)
{
    static const char *const odd[] = {"", "../../vms/other/disks/root.layers/x", "a/b"};
    struct error err;
    char *name;
    for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
        put("resume", odd[i]);
        assert_int_equal(snapshot_resume_read(dir, &name, &err), 0);
        assert_null(name);
    }
    put("resume", "0123456789012345678901234567890123456789012345678901234567890123");
    assert_true(snapshot_resume_read(dir, &name, &err) < 0); /* longer than a name */
    assert_int_equal(snapshot_resume_clear(dir, &err), 0);
    CLEANUP_FREE char *link = xasprintf("%s/resume", dir);
    assert_int_equal(symlink("/etc/hostname", link), 0);
    assert_true(snapshot_resume_read(dir, &name, &err) < 0);
    assert_int_equal(snapshot_resume_clear(dir, &err), 0);
    assert_false(there("resume"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_file_gets_its_name_last, setup, teardown),
        cmocka_unit_test_setup_teardown(what_goes_goes_whole_and_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(it_is_gone_on_from_once, setup, teardown),
        cmocka_unit_test_setup_teardown(an_odd_word_is_none, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
