/* What the agent asks of the VMM for each way to boot: a kernel with its command line, or the firmware for a disk, with
 * a store of variables in the VM's own directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "compute/agent/vm_files.h"

#define VM_ID "0b9f2f5e-6f3c-4d6b-8f0e-3d2a5c7e9a11"
#define SHA "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

struct fixture {
    char dir[64], vms[96], run[96], images[96];
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    snprintf(f->dir, sizeof(f->dir), "/tmp/boot-config.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->vms, sizeof(f->vms), "%s/vms", f->dir);
    snprintf(f->run, sizeof(f->run), "%s/run", f->dir);
    snprintf(f->images, sizeof(f->images), "%s/images", f->dir);
    CLEANUP_FREE char *vm = xasprintf("%s/" VM_ID, f->vms);
    assert_int_equal(file_make_directories(vm, 0700, NULL), 0);
    *state = f;
    return 0;
}
static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + strlen("/tmp/"), NULL), 0);
    free(f);
    return 0;
}

static void config_of(struct fixture *f, int firmware, struct vmm_config *ret_config)
{
    struct vm_places places = {.vms_dir = f->vms, .run_dir = f->run, .images_dir = f->images};
    struct vm_order order = {.name = NULL};
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/config.json", f->vms);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    OBJECT_TEXT(vm_order, &order, id, VM_ID);
    OBJECT_TEXT(vm_order, &order, name, "one");
    OBJECT_SET(vm_order, &order, vcpus, 1);
    OBJECT_SET(vm_order, &order, memory_bytes, 1 << 28);
    OBJECT_TEXT(vm_order, &order, cmdline, "quiet");
    if (firmware < 0) {
        OBJECT_TEXT(artifact, &order.kernel, sha256, SHA);
        object_mark(&vm_order_desc, &order, "kernel");
    } else {
        OBJECT_SET(vm_order, &order, firmware, (enum firmware)firmware);
    }
    assert_int_equal(vm_files_write_config(&places, &order, false, NULL), 0);
    assert_int_equal(file_read(path, 65536, &text, &size, NULL), 0);
    assert_int_equal(OBJECT_DECODE(vmm_config, text, size, OBJECT_CREATE, ret_config, NULL), 0);
    OBJECT_CLEAR(vm_order, &order);
}

static void kernel_is_booted_directly(void **state)
{
    struct vmm_config config;
    config_of(*state, -1, &config);
    assert_non_null(strstr(config.kernel, "/images/" SHA));
    assert_string_equal(config.cmdline, "quiet");
    assert_null(config.firmware);
    OBJECT_CLEAR(vmm_config, &config);
}

static void bios_has_no_variables(void **state)
{
    struct vmm_config config;
    config_of(*state, firmware_BIOS, &config);
    assert_string_equal(config.firmware, "bios");
    assert_null(config.kernel);
    assert_null(config.cmdline); /* the VMM would refuse it */
    assert_null(config.firmware_vars_path);
    OBJECT_CLEAR(vmm_config, &config);
}

static void uefi_has_variables_of_its_own(void **state)
{
    struct vmm_config config;
    config_of(*state, firmware_UEFI, &config);
    assert_string_equal(config.firmware, "uefi");
    assert_null(config.kernel);
    assert_non_null(strstr(config.firmware_vars_path, "/vms/" VM_ID "/uefi-variables.fd"));
    OBJECT_CLEAR(vmm_config, &config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(kernel_is_booted_directly, setup, teardown),
        cmocka_unit_test_setup_teardown(bios_has_no_variables, setup, teardown),
        cmocka_unit_test_setup_teardown(uefi_has_variables_of_its_own, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
