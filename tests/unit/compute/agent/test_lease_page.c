/* The page that a VMM obeys, as an agent that was started anew finds it: what a living process has mapped counts, not what has its
 * name by then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compute/agent/lease_page.h"

enum { FIRST = 41, SECOND = 42 };

struct bed {
    char directory[32], path[64];
    struct lease_page page;
};

static int setup(void **test)
{
    struct bed *bed = NEW(struct bed);
    snprintf(bed->directory, sizeof bed->directory, "build/test-page-XXXXXX");
    assert_non_null(mkdtemp(bed->directory));
    snprintf(bed->path, sizeof bed->path, "%s/some-vm.lease", bed->directory);
    assert_int_equal(lease_page_open(&bed->page, bed->path, FIRST, NULL), 0);
    *test = bed;
    return 0;
}

static int teardown(void **test)
{
    struct bed *bed = *test;
    lease_page_close(&bed->page);
    unlink(bed->path);
    rmdir(bed->directory);
    free(bed);
    return 0;
}

/* A process with the page, which ends with what it reads there when a byte comes. */
static pid_t vmm_start(const char *path, int *ret_ask)
{
    int ask[2], ready[2];
    char byte;
    assert_int_equal(pipe(ask), 0);
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        volatile uint64_t *word = fd >= 0 ? mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0) : NULL;
        if (write(ready[1], "", 1) != 1 || read(ask[0], &byte, 1) != 1)
            _exit(255);
        _exit(word != NULL ? (int)le64toh(*word) : 0);
    }
    close(ask[0]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    *ret_ask = ask[1];
    return pid;
}

static int vmm_reads(pid_t pid, int ask)
{
    int status;
    assert_int_equal(write(ask, "", 1), 1);
    close(ask);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void needs_root(void)
{
    if (geteuid() != 0) {
        print_message("skipped: /proc/PID/map_files needs root\n");
        skip();
    }
}

/* Its name is gone, and a file that nobody obeys has it. */
static void what_the_process_has_counts(void **test)
{
    struct bed *bed = *test;
    int ask;
    needs_root();
    lease_page_close(&bed->page); /* a child inherits what is mapped */
    pid_t pid = vmm_start(bed->path, &ask);
    assert_int_equal(unlink(bed->path), 0);
    assert_int_equal(lease_page_open(&bed->page, bed->path, 7, NULL), 0);
    assert_int_equal(lease_page_adopt(&bed->page, bed->path, pid, NULL), 0);
    assert_int_equal(lease_page_get(&bed->page), FIRST);
    lease_page_put(&bed->page, SECOND);
    assert_int_equal(vmm_reads(pid, ask), SECOND);
}

static void one_that_is_just_starting(void **test)
{
    struct bed *bed = *test;
    int ask;
    lease_page_close(&bed->page);
    pid_t pid = vmm_start(NULL, &ask);
    assert_int_equal(lease_page_adopt(&bed->page, bed->path, pid, NULL), 0);
    assert_int_equal(lease_page_get(&bed->page), FIRST);
    lease_page_close(&bed->page);
    assert_int_equal(unlink(bed->path), 0);
    assert_int_equal(lease_page_adopt(&bed->page, bed->path, pid, NULL), -ENOENT);
    assert_null(bed->page.word);
    assert_int_equal(vmm_reads(pid, ask), 0);
}

/* What is not the agent's cannot be its page, whatever its name. */
static void a_page_of_somebody_else(void **test)
{
    struct bed *bed = *test;
    int ask;
    needs_root();
    assert_int_equal(chown(bed->path, 4242, 4242), 0);
    lease_page_close(&bed->page); /* a child inherits what is mapped */
    pid_t pid = vmm_start(bed->path, &ask);
    assert_int_equal(lease_page_adopt(&bed->page, bed->path, pid, NULL), -ENOENT);
    assert_int_equal(vmm_reads(pid, ask), FIRST);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(what_the_process_has_counts),
        TEST(one_that_is_just_starting),
        TEST(a_page_of_somebody_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
