/* What a host without Ceph, or with a wrong ceph.conf, is told. Images themselves: tests/process/test_rbd.py, with a real Ceph. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include <cmocka.h>

#include "block/block_rbd.h"

static void what_is_missing_is_named(void **state UNUSED)
{
    const struct rbd_cluster_options options = {.conf = "/nowhere/ceph.conf", .user = "drover", .pool = "vms"};
    struct rbd_cluster *cluster = NULL;
    struct error err;
    bool has_ceph = dlopen("librbd.so.1", RTLD_NOW | RTLD_LOCAL) != NULL;
    int code = rbd_cluster_open(&options, &cluster, &err);
    assert_int_equal(code, has_ceph ? -ENOENT : -ENOSYS);
    assert_non_null(strstr(err.text, has_ceph ? "/nowhere/ceph.conf" : "librbd1"));
    assert_null(cluster);
    print_message("with%s librbd\n", has_ceph ? "" : "out");
    rbd_cluster_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_missing_is_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
