/* One fetch of an image, where it is stopped while it looks through what an earlier one has left. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "compute/agent/image_fetch.h"

#define SHA_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" /* FIPS 180-4's example */
#define PART_BYTES (UINT64_C(1) << 20) /* several reads */

struct fixture {
    char dir[64], part[96], final[96];
    struct image_fetch fetch;
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/image_fetch.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->part, sizeof f->part, "%s/" SHA_ABC ".part", f->dir);
    snprintf(f->final, sizeof f->final, "%s/" SHA_ABC, f->dir);
    f->fetch.dir = f->dir;
    f->fetch.part_path = f->part;
    f->fetch.final_path = f->final;
    OBJECT_TEXT(artifact, &f->fetch.artifact, url, "http://127.0.0.1:1/image"); /* asked by nobody here */
    OBJECT_TEXT(artifact, &f->fetch.artifact, sha256, SHA_ABC);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    OBJECT_CLEAR(artifact, &f->fetch.artifact);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

/* The first @data_bytes of PART_BYTES are written, the rest is a hole. */
static void part_make(const struct fixture *f, size_t data_bytes)
{
    CLEANUP_FREE char *data = xcalloc(1, data_bytes + 1);
    CLEANUP_FD int fd = open(f->part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    memset(data, 'x', data_bytes);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, data, data_bytes, 0), (ssize_t)data_bytes);
    assert_int_equal(ftruncate(fd, (off_t)PART_BYTES), 0);
}

static void stopped_fetch_keeps_the_part(struct fixture *f, size_t data_bytes)
{
    struct stat st;
    part_make(f, data_bytes);
    atomic_store(&f->fetch.stop, true);
    image_fetch_run(&f->fetch);
    assert_int_equal(f->fetch.status, -ECANCELED);
    assert_int_equal(stat(f->part, &st), 0);
    assert_int_equal(st.st_size, PART_BYTES);
}

static void one_that_is_stopped_while_it_hashes_keeps_all(void **state)
{
    stopped_fetch_keeps_the_part(*state, (size_t)PART_BYTES);
}

static void also_in_a_hole(void **state)
{
    stopped_fetch_keeps_the_part(*state, 0);
}

/* More than the image has is of something else. */
static void but_not_what_cannot_be_of_the_image(void **state)
{
    struct fixture *f = *state;
    part_make(f, (size_t)PART_BYTES);
    OBJECT_SET(artifact, &f->fetch.artifact, size_bytes, PART_BYTES / 2);
    OBJECT_TEXT(artifact, &f->fetch.artifact, url, NULL);
    f->fetch.artifact.head.present &= ~(UINT64_C(1) << (object_field(&artifact_desc, "url") - artifact_desc.fields));
    image_fetch_run(&f->fetch);
    assert_int_equal(f->fetch.status, -ENOENT); /* nobody to ask */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_that_is_stopped_while_it_hashes_keeps_all, setup, teardown),
        cmocka_unit_test_setup_teardown(also_in_a_hole, setup, teardown),
        cmocka_unit_test_setup_teardown(but_not_what_cannot_be_of_the_image, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
