/* Cgroups of VMMs: what is written where, on a directory that looks like a cgroup file system; and on the real one, as far
 * as this machine has it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/file.h"
#include "compute/agent/vmm_cgroup.h"

/* A plain file shows what was written to it; controllers that are asked for go over these. */
#define OVERWRITTEN "######## "
#define VM_ID "aaaaaaaa-0000-4000-8000-000000000001"

struct fixture {
    char dir[64];
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/vmm_cgroup.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *leaf, const char *text)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", f->dir, leaf);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, NULL), 0);
}

static void assert_text(struct fixture *f, const char *leaf, const char *expected)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", f->dir, leaf);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    assert_int_equal(file_read(path, 4096, &text, &size, NULL), 0);
    assert_string_equal(text, expected);
}

static void make_directory(struct fixture *f, const char *leaf)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", f->dir, leaf);
    assert_int_equal(file_make_directories(path, 0755, NULL), 0);
}

static void test_limits(void **state)
{
    struct fixture *f = *state;
    struct vmm_cgroups groups;
    struct error err;
    char *procs = NULL;
    make_directory(f, "drover/vm-" VM_ID);
    put(f, "drover/cgroup.subtree_control", OVERWRITTEN "cpu memory pids\n");
    put(f, "drover/vm-" VM_ID "/cpu.weight", "");
    put(f, "drover/vm-" VM_ID "/memory.max", "");
    put(f, "drover/vm-" VM_ID "/pids.max", "");
    vmm_cgroups_open(f->dir, "drover", &groups);
    assert_non_null(groups.directory);
    assert_true(groups.complete);
    assert_string_equal(groups.state, "cgroup (cpu memory pids)");
    assert_int_equal(vmm_cgroup_make(&groups, VM_ID, 4, 1ull << 30, &procs, &err), 0);
    assert_text(f, "drover/vm-" VM_ID "/cpu.weight", "400");
    assert_text(f, "drover/vm-" VM_ID "/memory.max", "1744830464"); /* 1 GiB, an eighth of it, 512 MiB */
    assert_text(f, "drover/vm-" VM_ID "/pids.max", "1024");
    CLEANUP_FREE char *expected = xasprintf("%s/drover/vm-" VM_ID "/cgroup.procs", f->dir);
    assert_string_equal(procs, expected);
    free(procs);
    put(f, "drover/vm-" VM_ID "/cpu.weight", "");
    assert_int_equal(vmm_cgroup_make(&groups, VM_ID, 1000, 1ull << 30, &procs, &err), 0);
    assert_text(f, "drover/vm-" VM_ID "/cpu.weight", "10000");
    free(procs);
    put(f, "drover/vm-" VM_ID "/cpu.weight", "");
    groups.last = true;
    assert_int_equal(vmm_cgroup_make(&groups, VM_ID, 1000, 1ull << 30, &procs, &err), 0);
    assert_text(f, "drover/vm-" VM_ID "/cpu.weight", "1");
    free(procs);
    vmm_cgroups_close(&groups);
}

static void test_states(void **state)
{
    struct fixture *f = *state;
    struct vmm_cgroups groups;
    char *procs = (char *)"untouched";
    /* controllers, some or all, as they were granted */
    make_directory(f, "drover");
    vmm_cgroups_open(f->dir, "drover", &groups);
    assert_false(groups.complete);
    assert_non_null(strstr(groups.state, "cgroup (no limits) without cpu memory pids: not offered by "));
    vmm_cgroups_close(&groups);
    put(f, "drover/cgroup.subtree_control", OVERWRITTEN "cpuset pids\n"); /* "cpuset" is not "cpu" */
    vmm_cgroups_open(f->dir, "drover", &groups);
    assert_false(groups.complete);
    assert_non_null(strstr(groups.state, "cgroup (pids) without cpu memory:"));
    vmm_cgroups_close(&groups);
    /* no right to make one: /proc takes no directories, whoever asks */
    vmm_cgroups_open("/proc", "drover", &groups);
    assert_null(groups.directory);
    assert_false(groups.complete);
    assert_non_null(strstr(groups.state, "no cgroup: cannot make /proc/drover: "));
    assert_int_equal(vmm_cgroup_make(&groups, VM_ID, 4, 1ull << 30, &procs, NULL), 0);
    assert_null(procs);
    vmm_cgroup_remove(&groups, VM_ID);
    vmm_cgroups_close(&groups);
}

static void test_the_real_one(void **state)
{
    struct vmm_cgroups groups;
    struct error err;
    char *procs, name[40], line[512] = "";
    (void)state;
    snprintf(name, sizeof(name), "drover-unit-%d", getpid());
    vmm_cgroups_open(NULL, name, &groups);
    print_message("this machine: %s\n", groups.state);
    if (groups.directory == NULL)
        return;
    assert_int_equal(vmm_cgroup_make(&groups, VM_ID, 2, 64 << 20, &procs, &err), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(procs, O_WRONLY | O_CLOEXEC);
        _exit(fd < 0 || write(fd, "0", 1) != 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    CLEANUP_FREE char *weight = xasprintf("%s/vm-" VM_ID "/cpu.weight", groups.directory);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    if (groups.complete) {
        assert_int_equal(file_read(weight, 64, &text, &size, NULL), 0);
        assert_string_equal(text, "200\n");
    }
    vmm_cgroup_remove(&groups, VM_ID);
    vmm_cgroup_remove(&groups, VM_ID); /* once is enough */
    snprintf(line, sizeof(line), "%s/vm-" VM_ID, groups.directory);
    assert_int_equal(access(line, F_OK), -1);
    assert_int_equal(rmdir(groups.directory), 0);
    free(procs);
    vmm_cgroups_close(&groups);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_limits),
        T(test_states),
        T(test_the_real_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
