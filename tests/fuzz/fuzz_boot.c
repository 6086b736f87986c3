/* Kernel images: ELF with PVH note, bzImage and multiboot program, as a user could have uploaded them. */
#include <stdlib.h>
#include <string.h>

#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest_memory memory;
    struct boot_entry entry;
    struct error err = {0};
    if (!memory.host && memory_init(&memory, 32 * 1048576ull, NULL) < 0)
        abort();
    struct boot_source source = {.kernel = {.fd = -1, .data = data, .size = size},
                                 .initrd = {.fd = -1, .data = data, .size = MIN(size, 4096)},
                                 .cmdline = "console=ttyS0",
                                 .rsdp = PC1_ACPI};
    for (int multiboot = 0; multiboot <= 1; multiboot++) {
        source.multiboot = multiboot;
        err.text[0] = 0;
        int code = boot_load(&memory, &source, &entry, &err);
        if (code > 0 || (code < 0 && !err.text[0]))
            abort(); /* a refusal has words */
    }
    return 0;
}
