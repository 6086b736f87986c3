/* Reads the note where the loader has mapped it; see program_build.h. */
#include "common/program_build.h"

#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

enum { BUILD_BYTES_SHOWN = 8 };

struct search {
    const uint8_t *id;
    size_t bytes;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 3) & ~(size_t)3;
}

static void notes_look(const uint8_t *at, size_t size, struct search *search)
{
    while (size >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) note;
        memcpy(&note, at, sizeof(note));
        size_t name = sizeof(note), id = name + aligned(note.n_namesz), end = id + aligned(note.n_descsz);
        if (end > size)
            return;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof("GNU") && memcmp(at + name, "GNU", sizeof("GNU")) == 0) {
            search->id = at + id;
            search->bytes = note.n_descsz;
            return;
        }
        at += end;
        size -= end;
    }
}

/* dl_iterate_phdr(3): the first object is the program itself. */
static int on_object(struct dl_phdr_info *info, size_t size UNUSED, void *arg)
{
    struct search *search = arg;
    for (size_t i = 0; i < info->dlpi_phnum && !search->id; i++)
        if (info->dlpi_phdr[i].p_type == PT_NOTE && info->dlpi_phdr[i].p_align <= 4)
            notes_look((const uint8_t *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr), info->dlpi_phdr[i].p_memsz, search);
    return 1;
}

const char *program_build(const char *version, char buffer[PROGRAM_BUILD_SIZE])
{
    struct search search = {.id = NULL};
    dl_iterate_phdr(on_object, &search);
    int length = snprintf(buffer, PROGRAM_BUILD_SIZE, "%.32s%s", version, search.bytes ? " build " : "");
    for (size_t i = 0; i < search.bytes && i < BUILD_BYTES_SHOWN; i++)
        length += snprintf(buffer + length, PROGRAM_BUILD_SIZE - (size_t)length, "%02x", search.id[i]);
    return buffer;
}
