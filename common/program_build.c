/* Reads the notes where the loader has mapped them, or where a file has them; see program_build.h. */
#include "common/program_build.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BUILD_BYTES_SHOWN = 8, NOTES_BYTES_MAX = 4096, SEGMENTS_MAX = 64 };

struct search {
    const uint8_t *id;
    size_t bytes;
    const char *version; /* NULL: the program does not say; of @version_bytes */
    size_t version_bytes;
};

static size_t aligned(size_t bytes)
{
    return (bytes + 3) & ~(size_t)3;
}

static void note_take(const ElfW(Nhdr) * note, const uint8_t *name, const uint8_t *content, struct search *search)
{
    if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == sizeof("GNU") && memcmp(name, "GNU", sizeof("GNU")) == 0) {
        search->id = content;
        search->bytes = note->n_descsz;
    }
    if (note->n_type == PROGRAM_NOTE_TYPE && note->n_namesz == sizeof("Drover") && memcmp(name, "Drover", sizeof("Drover")) == 0) {
        search->version = (const char *)content;
        search->version_bytes = note->n_descsz;
    }
}

static void notes_look(const uint8_t *at, size_t size, struct search *search)
{
    while (size >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) note;
        memcpy(&note, at, sizeof(note));
        size_t name = sizeof(note), id = name + aligned(note.n_namesz), end = id + aligned(note.n_descsz);
        if (end > size)
            return;
        note_take(&note, at + name, at + id, search);
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

static const char *text_of(const char *version, size_t version_bytes, const struct search *search, char buffer[PROGRAM_BUILD_SIZE])
{
    int length = snprintf(buffer, PROGRAM_BUILD_SIZE, "%.*s%s", (int)MIN(version_bytes, (size_t)32), version,
                          search->bytes ? " build " : "");
    for (size_t i = 0; i < search->bytes && i < BUILD_BYTES_SHOWN; i++)
        length += snprintf(buffer + length, PROGRAM_BUILD_SIZE - (size_t)length, "%02x", search->id[i]);
    return buffer;
}

const char *program_build(const char *version, char buffer[PROGRAM_BUILD_SIZE])
{
    struct search search = {.id = NULL};
    dl_iterate_phdr(on_object, &search);
    return text_of(version, strlen(version), &search, buffer);
}

static int segments_read(int fd, ElfW(Phdr) segments[SEGMENTS_MAX], size_t *ret_count)
{
    ElfW(Ehdr) head;
    if (pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
        head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_ident[EI_DATA] != ELFDATA2LSB || head.e_phentsize != sizeof(ElfW(Phdr)) ||
        head.e_phnum > SEGMENTS_MAX || head.e_phoff > INT32_MAX)
        return -EBADMSG;
    size_t bytes = head.e_phnum * sizeof(ElfW(Phdr));
    *ret_count = head.e_phnum;
    return pread(fd, segments, bytes, (off_t)head.e_phoff) == (ssize_t)bytes ? 0 : -EBADMSG;
}

int program_build_of_file(const char *path, char buffer[PROGRAM_BUILD_SIZE], struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ElfW(Phdr) segments[SEGMENTS_MAX];
    char text[PROGRAM_BUILD_SIZE] = "";
    size_t count = 0;
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    int r = segments_read(fd, segments, &count);
    if (r < 0)
        return error_set(err, r, ERROR_INVALID, "%s is no program of this machine", path);
    uint8_t notes[NOTES_BYTES_MAX]; /* those of all segments: what was found points into them */
    struct search search = {.id = NULL};
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const ElfW(Phdr) *s = &segments[i];
        if (s->p_type != PT_NOTE || s->p_align > 4 || s->p_filesz > sizeof(notes) - used || s->p_offset > INT32_MAX ||
            pread(fd, notes + used, s->p_filesz, (off_t)s->p_offset) != (ssize_t)s->p_filesz)
            continue;
        notes_look(notes + used, s->p_filesz, &search);
        used += aligned(s->p_filesz);
        used = MIN(used, sizeof(notes));
    }
    if (search.version)
        text_of(search.version, strnlen(search.version, search.version_bytes), &search, text);
    memcpy(buffer, text, sizeof(text));
    return 0;
}
