/* Which program this process is: a version that people gave it, and the build that the linker did (the first half of the ELF note
 * NT_GNU_BUILD_ID). A process goes on as it was started when its file is replaced, and two builds may have one version. */
#ifndef COMMON_PROGRAM_BUILD_H
#define COMMON_PROGRAM_BUILD_H

#include "common/base.h"
#include "common/error.h"

#define PROGRAM_BUILD_SIZE 65u /* with the zero at the end */

#define PROGRAM_NOTE_TYPE 1u
/* At the top level of one file of a program: has the linker put the version into an ELF note, for program_build_of_file. */
#define PROGRAM_VERSION_NOTE(version)                                                                                       \
    static const struct {                                                                                                   \
        uint32_t name_bytes, bytes, type;                                                                                   \
        char name[8];                                                                                                       \
        char text[(sizeof(version) + 3) / 4 * 4];                                                                           \
    } program_version_note __attribute__((used, section(".note.drover"), aligned(4))) = {sizeof("Drover"), sizeof(version), \
                                                                                         PROGRAM_NOTE_TYPE, "Drover", version}

/* "<version> build <hexadecimal digits>", or the version alone where the linker left no note. Returns @buffer. */
const char *program_build(const char *version, char buffer[PROGRAM_BUILD_SIZE]);
/* The same of a program's file, which says the version itself (PROGRAM_VERSION_NOTE); "" where it does not. Reads its head only.
 * -ENOENT and what else open(2) says; -EBADMSG: it is no ELF file of this kind of machine. */
int program_build_of_file(const char *path, char buffer[PROGRAM_BUILD_SIZE], struct error *err);

#endif
