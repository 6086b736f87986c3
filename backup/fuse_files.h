/* A few files in one directory, read-only, as a file system in user space answers for them: one request of the kernel's in,
 * one answer out (linux/fuse.h, protocol 7.23 and newer). No descriptor and no mount here: that is fuse_mount.h.
 *
 * Who may use it: the kernel, which checks rights by the modes (0500, 0400) and the owner. Any thread, several at once. */
#ifndef BACKUP_FUSE_FILES_H
#define BACKUP_FUSE_FILES_H

#include "common/base.h"

enum {
    FUSE_FILES_NAME_BYTES = 128,
    FUSE_FILES_READ_BYTES_MAX = 1 << 20,                          /* of one READ */
    FUSE_FILES_ANSWER_BYTES_MAX = FUSE_FILES_READ_BYTES_MAX + 256, /* room that an answer needs */
    FUSE_FILES_REQUEST_BYTES_MAX = 64 << 10,                      /* a request that carries no data is smaller */
};

struct fuse_file {
    char name[FUSE_FILES_NAME_BYTES];
    uint64_t size_bytes;
    /* @size bytes at @offset, within the file; 0 or negative errno. */
    int (*read)(void *arg, uint64_t offset, void *buffer, size_t size);
    /* Up to where what begins at @offset surely reads as zeroes, or has data. NULL: all of it has. */
    int (*extent)(void *arg, uint64_t offset, bool *ret_zero, uint64_t *ret_end);
    void *arg;
};

struct fuse_files {
    const struct fuse_file *items;
    unsigned count;
    int64_t time_s; /* of all files and the directory */
    uint32_t user, group;
};

/* The answer to @request, to be written as it is; 0: none is wanted. @answer has FUSE_FILES_ANSWER_BYTES_MAX bytes,
 * aligned to 8. A request that makes no sense gets EINVAL, one that is not known ENOSYS, one that would write EROFS. */
size_t fuse_files_answer(const struct fuse_files *files, const void *request, size_t size, void *answer);

#endif
