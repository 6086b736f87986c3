/* Small files, whole: read with a limit, replace atomically, make and remove directories. All block; any thread. */
#ifndef COMMON_FILE_H
#define COMMON_FILE_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

/* The whole file as text with a terminator after it; the caller frees. -EFBIG where it is longer than @size_max. */
int file_read(const char *path, size_t size_max, char **ret_data, size_t *ret_size, struct error *err);
/* The same for a file that a process we do not trust may have put there: -ELOOP for a symbolic link, -EINVAL for what is
 * no plain file. Never waits for a pipe. */
int file_read_foreign(const char *path, size_t size_max, char **ret_data, size_t *ret_size, struct error *err);
/* Replace @path: temporary file beside it, fsync, rename, fsync of the directory. After 0 it survives a power cut;
 * after failure the old content is untouched. @mode holds exactly (no umask). */
int file_write_atomic(const char *path, const void *data, size_t size, mode_t mode, struct error *err);
/* mkdir -p; @mode for those that are made. */
int file_make_directories(const char *path, mode_t mode, struct error *err);
/* Remove @name (one component: no '/', not "." or "..") under @directory, with all below it. Symbolic links are
 * removed, never followed; other file systems are not entered (-EXDEV). A missing @name is fine. */
int file_remove_tree(const char *directory, const char *name, struct error *err);
/* fsync of a directory, so that names made or removed in it last. */
int file_sync_directory(const char *path, struct error *err);

#endif
