/* Files, chips and the answers of fw_cfg. */
#include "compute/vmm/machine_firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/vmm/acpi_loader.h"
#include "compute/vmm/devices/flash/flash.h"
#include "compute/vmm/devices/fw_cfg/fw_cfg.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/smbios.h"

enum { SLOT_IMAGE = 16, SLOT_VARIABLES = 17 }; /* KVM memory slots: those before are guest memory */
enum { PORT_DEBUG = 0x402, DEBUG_PRESENT = 0xe9 };
enum { BIOS_BYTES_MAX = 0x40000, SHADOW_BYTES_OF_LARGER = 0x20000 };
enum { LOG_BYTES_MAX = 4 << 20 }; /* of one run: a guest can write to the port for ever */
#define IMAGE_END 0x100000000ull
#define E820_RESERVED 2u

/* ---- which ---- */

static int check_without(const struct vmm_config *c, bool multiboot, struct error *err)
{
    if (!c->kernel && !multiboot)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/kernel",
                               "the VM has no way to boot; give a kernel, or firmware \"bios\" or \"uefi\"");
    if (c->firmware_vars_path || c->firmware_log_path)
        return error_set_field(err, -EINVAL, ERROR_INVALID,
                               c->firmware_vars_path ? "/firmware_vars_path" : "/firmware_log_path",
                               "this is for a VM that boots by firmware; leave it out, or give firmware");
    return 0;
}

static int check_with(const struct vmm_config *c, struct error *err)
{
    bool named = strcmp(c->firmware, "bios") == 0 || strcmp(c->firmware, "uefi") == 0;
    if (!named && c->firmware[0] != '/')
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/firmware",
                               "\"%s\" is none of none, bios, uefi or a path that begins with /", c->firmware);
    if (c->kernel)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/kernel",
                               "a VM boots by a kernel or by firmware, not both; leave one of them out");
    if (c->initrd || (c->cmdline && c->cmdline[0]))
        return error_set_field(err, -EINVAL, ERROR_INVALID, c->initrd ? "/initrd" : "/cmdline",
                               "firmware takes it from the disk; leave it out, or boot by kernel");
    if (c->firmware_vars_path && strcmp(c->firmware, "bios") == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/firmware_vars_path",
                               "a BIOS keeps no variables; leave it out, or boot by uefi");
    return 0;
}

int machine_firmware_check(struct machine *m, struct error *err)
{
    const struct vmm_config *c = m->config;
    m->firmware.log_fd = -1;
    m->firmware.present = c->firmware && strcmp(c->firmware, "none") != 0;
    if (m->firmware.present && m->options.multiboot)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/firmware",
                               "--multiboot starts a program without firmware; leave one of them out");
    return m->firmware.present ? check_with(c, err) : check_without(c, m->options.multiboot != NULL, err);
}

/* ---- files ---- */

static const char *image_path(const char *name)
{
    return strcmp(name, "bios") == 0 ? FIRMWARE_BIOS_PATH : strcmp(name, "uefi") == 0 ? FIRMWARE_UEFI_PATH : name;
}

size_t machine_firmware_files(const struct vmm_config *c, const char *ret_paths[FIRMWARE_FILES_MAX])
{
    size_t n = 0;
    if (c->firmware == NULL || strcmp(c->firmware, "none") == 0)
        return 0;
    ret_paths[n++] = image_path(c->firmware);
    if (strcmp(c->firmware, "uefi") == 0 || c->firmware_vars_path != NULL)
        ret_paths[n++] = FIRMWARE_UEFI_VARS_PATH;
    return n;
}

/* All of a firmware file into memory that the caller frees. */
static int image_read(const char *path, const char *field, char **ret_data, size_t *ret_size, struct error *err)
{
    char *data;
    size_t size = 0;
    int code = file_read(path, FLASH_BYTES_MAX, &data, &size, err);
    if (code < 0) {
        error_prefix(err, "firmware (Debian packages seabios, ovmf): ");
        return code;
    }
    if (size == 0 || size % FLASH_BLOCK_BYTES) {
        free(data);
        return error_set_field(err, -EINVAL, ERROR_INVALID, field,
                               "%s has %zu bytes; a firmware image has a multiple of %u", path, size,
                               FLASH_BLOCK_BYTES);
    }
    *ret_data = data;
    *ret_size = size;
    return 0;
}

/* The VM's own store: what is there, or a fresh copy of the template. */
static int variables_read(const struct vmm_config *c, char **ret_data, size_t *ret_size, int *ret_fd,
                          struct error *err)
{
    const char *path = c->firmware_vars_path, *field = "/firmware_vars_path";
    CLEANUP_FREE char *data = NULL;
    size_t size = 0;
    int code = 0;
    if (!path || access(path, F_OK) < 0) {
        code = image_read(FIRMWARE_UEFI_VARS_PATH, field, &data, &size, err);
        if (code == 0 && path)
            code = file_write_atomic(path, data, size, 0600, err);
    } else {
        code = image_read(path, field, &data, &size, err);
    }
    if (code < 0)
        return code;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (path && fd < 0)
        return error_errno(err, -errno, "cannot open %s for writing", path);
    *ret_data = TAKE_PTR(data);
    *ret_size = size;
    *ret_fd = fd;
    return 0;
}

/* ---- devices ---- */

static int chip_show(void *arg, const struct flash *f, bool shown, struct error *err)
{
    struct machine *m = arg;
    uint32_t slot = f->read_only ? SLOT_IMAGE : SLOT_VARIABLES;
    return kvm_memory_set(&m->kvm, slot, f->address, shown ? f->size : 0, f->content, shown ? KVM_MEM_READONLY : 0,
                          err);
}

static int image_add(struct machine *m, struct error *err)
{
    const char *path = image_path(m->config->firmware);
    CLEANUP_FREE char *data = NULL;
    size_t size = 0;
    int code = image_read(path, "/firmware", &data, &size, err);
    if (code < 0)
        return code;
    struct flash_options options = {.name = "firmware",
                                    .address = IMAGE_END - size,
                                    .content = data,
                                    .size = size,
                                    .read_only = true,
                                    .fd = -1,
                                    .show = chip_show,
                                    .show_arg = m};
    code = flash_create(&m->mmio, &options, &m->firmware.image, err);
    if (code == 0)
        list_append(&m->devices, &flash_device(m->firmware.image)->link);
    return code;
}

static int variables_add(struct machine *m, struct error *err)
{
    const struct vmm_config *c = m->config;
    CLEANUP_FREE char *data = NULL;
    size_t size = 0;
    int fd = -1;
    if (strcmp(c->firmware, "uefi") != 0 && !c->firmware_vars_path)
        return 0;
    int code = variables_read(c, &data, &size, &fd, err);
    if (code < 0)
        return code;
    struct flash_options options = {.name = "firmware-variables",
                                    .address = m->firmware.image->address - size,
                                    .content = data,
                                    .size = size,
                                    .fd = fd,
                                    .show = chip_show,
                                    .show_arg = m};
    code = flash_create(&m->mmio, &options, &m->firmware.variables, err);
    if (code < 0) {
        close_fd(&fd);
        return code;
    }
    list_append(&m->devices, &flash_device(m->firmware.variables)->link);
    return 0;
}

static uint64_t debug_read(void *arg UNUSED, uint64_t offset UNUSED, unsigned size UNUSED)
{
    return DEBUG_PRESENT;
}

/* Best effort: a log that cannot be written is not the guest's trouble. */
static void debug_write(void *arg, uint64_t offset UNUSED, unsigned size, uint64_t value)
{
    struct machine *m = arg;
    uint8_t byte = (uint8_t)value;
    if (size != 1 || m->firmware.log_bytes == LOG_BYTES_MAX)
        return;
    m->firmware.log_bytes++;
    ssize_t n UNUSED = write(m->firmware.log_fd, &byte, 1);
}

static int debug_add(struct machine *m, struct error *err)
{
    const char *path = m->config->firmware_log_path;
    struct bus_range range = {.start = PORT_DEBUG, .size = 1, .read = debug_read, .write = debug_write, .arg = m};
    if (!path)
        return 0;
    m->firmware.log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (m->firmware.log_fd < 0)
        return error_errno(err, -errno, "cannot open the firmware's log %s", path);
    return bus_add(&m->ports, &range, err);
}

int machine_firmware_add(struct machine *m, struct error *err)
{
    int code;
    if (!m->firmware.present)
        return 0;
    if ((code = image_add(m, err)) < 0 || (code = variables_add(m, err)) < 0 || (code = debug_add(m, err)) < 0 ||
        (code = fw_cfg_create(&m->ports, &m->memory, &m->firmware.fw_cfg, err)) < 0)
        return code;
    list_append(&m->devices, &fw_cfg_device(m->firmware.fw_cfg)->link);
    return 0;
}

void machine_firmware_finish(struct machine *m)
{
    if (m->firmware.present)
        close_fd(&m->firmware.log_fd);
}

/* ---- power-on ---- */

static void e820_put(struct bytes_writer *out, uint64_t address, uint64_t size, uint32_t type)
{
    bytes_put_u64(out, address);
    bytes_put_u64(out, size);
    bytes_put_u32(out, type);
}

/* Memory only, and what KVM itself uses: the firmware adds what it takes. */
static void e820_set(struct machine *m)
{
    struct bytes_writer map = {0};
    e820_put(&map, KVM_RESERVED_GPA, KVM_RESERVED_BYTES, E820_RESERVED);
    for (size_t i = 0; i < m->memory.region_count; i++)
        e820_put(&map, m->memory.regions[i].gpa, m->memory.regions[i].size, 1);
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/e820", map.data, map.size);
    bytes_writer_finish(&map);
}

/* Disks that are there now, in the order of their slots (that of the configuration, unless it names slots), as Open
 * Firmware paths (virtio-blk is of class SCSI). */
static void boot_order_set(struct machine *m)
{
    struct bytes_writer order = {0};
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == SLOT_DISK && !m->slots.slots[i].detached)
            bytes_put_format(&order, "%s/pci@i0cf8/scsi@%x/disk@0,0", order.size ? "\n" : "", i);
    bytes_put_u8(&order, 0);
    fw_cfg_set_file(m->firmware.fw_cfg, "bootorder", order.data, order.size);
    bytes_writer_finish(&order);
}

/* Firmware places BARs itself: 32-bit ones from 2 GiB or the end of memory on, 64-bit ones at the top of what the
 * processor can address. The windows take in all that it may choose. */
static int tables_set(struct machine *m, uint64_t window64, struct error *err)
{
    struct acpi_files files;
    uint64_t top = 1ull << kvm_address_bits(&m->kvm);
    struct acpi_options options = {.size_max = PC1_ACPI_END - PC1_ACPI,
                                   .vcpus = m->config->vcpus,
                                   .window32 = MAX(m->memory.regions[0].size, PC1_WINDOW32_LOWEST),
                                   .window64 = window64,
                                   .window64_bytes = MAX(PC1_WINDOW64_BYTES, top > window64 ? top - window64 : 0)};
    int code = acpi_files_build(&options, &files, err);
    if (code < 0)
        return code;
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/acpi/rsdp", files.rsdp.data, files.rsdp.size);
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/acpi/tables", files.tables.data, files.tables.size);
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/table-loader", files.script.data, files.script.size);
    acpi_files_finish(&files);
    return 0;
}

/* Address and check sum of the entry point are the firmware's to fill in. */
static void smbios_set(struct machine *m)
{
    uint8_t anchor[SMBIOS_ANCHOR_BYTES];
    struct bytes_writer tables = {0};
    machine_smbios_build(m, &tables);
    smbios_anchor(0, tables.size, anchor);
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/smbios/smbios-tables", tables.data, tables.size);
    fw_cfg_set_file(m->firmware.fw_cfg, "etc/smbios/smbios-anchor", anchor, sizeof(anchor));
    bytes_writer_finish(&tables);
}

int machine_firmware_load(struct machine *m, uint64_t window64, struct boot_entry *ret_entry, struct error *err)
{
    static const uint8_t serial_port[2] = {PC1_PORT_SERIAL0 & 0xff, PC1_PORT_SERIAL0 >> 8};
    struct fw_cfg *f = m->firmware.fw_cfg;
    const struct flash *image = m->firmware.image;
    uint64_t shadow = image->size <= BIOS_BYTES_MAX ? image->size : SHADOW_BYTES_OF_LARGER;
    fw_cfg_restart(f);
    fw_cfg_set_integer(f, FW_CFG_RAM_SIZE, m->memory.size_bytes, 8);
    fw_cfg_set_integer(f, FW_CFG_NOGRAPHIC, 1, 2);
    fw_cfg_set_integer(f, FW_CFG_NB_CPUS, m->config->vcpus, 2);
    fw_cfg_set_integer(f, FW_CFG_BOOT_MENU, 0, 2);
    fw_cfg_set_integer(f, FW_CFG_MAX_CPUS, m->config->vcpus, 2);
    fw_cfg_set_integer(f, FW_CFG_IRQ0_OVERRIDE, 1, 4);
    fw_cfg_set_file(f, "etc/sercon-port", serial_port, sizeof(serial_port)); /* the BIOS's console: there is no VGA */
    e820_set(m);
    boot_order_set(m);
    smbios_set(m);
    int code = tables_set(m, window64, err);
    if (code < 0)
        return code;
    ASSERT(memory_write(&m->memory, PC1_HIGH_START - shadow, image->content + image->size - shadow, shadow));
    *ret_entry = (struct boot_entry){.mode = BOOT_RESET_VECTOR};
    return 0;
}
