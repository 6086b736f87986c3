/* Which program this process is: a version that people gave it, and the build that the linker did (the first half of the ELF note
 * NT_GNU_BUILD_ID). A process goes on as it was started when its file is replaced, and two builds may have one version. */
#ifndef COMMON_PROGRAM_BUILD_H
#define COMMON_PROGRAM_BUILD_H

#include "common/base.h"

#define PROGRAM_BUILD_SIZE 65u /* with the zero at the end */

/* "<version> build <hexadecimal digits>", or the version alone where the linker left no note. Returns @buffer. */
const char *program_build(const char *version, char buffer[PROGRAM_BUILD_SIZE]);

#endif
