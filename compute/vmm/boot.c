/* What the ways of direct boot share. */
#include "compute/vmm/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "compute/vmm/pc1_layout.h"

int boot_image_open(const char *path, struct boot_image *ret_image, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
        close(fd);
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is not a file with content", path);
    }
    *ret_image = (struct boot_image){.fd = fd, .size = (uint64_t)st.st_size};
    return 0;
}

bool boot_image_read(const struct boot_image *image, uint64_t offset, void *to, uint64_t size)
{
    if (offset > image->size || size > image->size - offset)
        return false;
    if (image->fd < 0) {
        if (size)
            memcpy(to, image->data + offset, size);
        return true;
    }
    for (uint64_t done = 0; done < size;) {
        ssize_t n = pread(image->fd, (uint8_t *)to + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (uint64_t)n;
    }
    return true;
}

int boot_copy(struct guest_memory *m, uint64_t gpa, const struct boot_image *image, uint64_t offset, uint64_t size,
              uint64_t memory_size, struct error *err)
{
    if (memory_size == 0)
        return 0;
    uint8_t *to = memory_at(m, gpa, memory_size);
    if (!to || gpa < PC1_HIGH_START || gpa >= MEMORY_HOLE_START)
        return error_set(err, -ENOMEM, ERROR_INVALID,
                         "the image wants %" PRIu64 " bytes at %#" PRIx64
                         ", where the VM has no free memory; give it more",
                         memory_size, gpa);
    if (size > memory_size || !boot_image_read(image, offset, to, size))
        return error_set(err, -EINVAL, ERROR_INVALID, "the image is cut short: %" PRIu64 " bytes at offset %" PRIu64,
                         size, offset);
    memset(to + size, 0, memory_size - size);
    memory_mark_dirty(m, gpa, memory_size);
    return 0;
}

size_t boot_memory_map(const struct guest_memory *m, struct boot_map_entry entries[BOOT_MAP_ENTRIES_MAX])
{
    size_t n = 0;
    entries[n++] = (struct boot_map_entry){0, PC1_LOW_END, 1};
    entries[n++] = (struct boot_map_entry){PC1_LOW_END, 0xa0000 - PC1_LOW_END, 2};
    entries[n++] = (struct boot_map_entry){PC1_ACPI, PC1_SMBIOS_END - PC1_ACPI, 2};
    for (size_t i = 0; i < m->region_count && n < BOOT_MAP_ENTRIES_MAX; i++) {
        uint64_t start = MAX(m->regions[i].gpa, PC1_HIGH_START);
        entries[n++] = (struct boot_map_entry){start, m->regions[i].gpa + m->regions[i].size - start, 1};
    }
    return n;
}

int boot_initrd_load(struct guest_memory *m, const struct boot_image *initrd, uint64_t lowest, uint64_t highest,
                     uint64_t *ret_address, struct error *err)
{
    *ret_address = 0;
    if (initrd->size == 0)
        return 0;
    uint64_t end = MIN(m->regions[0].size, highest + 1);
    uint64_t start = initrd->size < end ? (end - initrd->size) & ~(uint64_t)(MEMORY_PAGE_BYTES - 1) : 0;
    if (start < lowest)
        return error_set_field(
            err, -ENOMEM, ERROR_INVALID, "/memory_bytes",
            "the initrd of %" PRIu64 " bytes does not fit above the kernel; give the VM more memory", initrd->size);
    int code = boot_copy(m, start, initrd, 0, initrd->size, initrd->size, err);
    if (code == 0)
        *ret_address = start;
    return code;
}

int boot_cmdline_write(struct guest_memory *m, const char *cmdline, uint64_t max, struct error *err)
{
    uint64_t size = strlen(cmdline);
    max = MIN(max, BOOT_CMDLINE_MAX);
    if (size > max)
        return error_set_field(err, -E2BIG, ERROR_INVALID, "/cmdline",
                               "the kernel command line has %" PRIu64 " bytes; this kernel takes %" PRIu64, size,
                               max);
    ASSERT(memory_write(m, PC1_CMDLINE, cmdline, size + 1));
    return 0;
}

int boot_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
              struct error *err)
{
    uint8_t magic[4];
    if (source->multiboot)
        return boot_multiboot_load(m, source, ret_entry, err);
    if (!boot_image_read(&source->kernel, 0, magic, sizeof(magic)))
        return error_set(err, -EINVAL, ERROR_INVALID, "the kernel is not an image: it has less than 4 bytes");
    if (memcmp(magic, "\177ELF", 4) == 0)
        return boot_pvh_load(m, source, ret_entry, err);
    return boot_bzimage_load(m, source, ret_entry, err);
}
