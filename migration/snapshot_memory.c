/* Names made, changed and removed, each followed by a sync of the directory: see snapshot_memory.h. */
#include "migration/snapshot_memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"

#define MEMORY_ENDING ".memory"
#define NEW_ENDING ".new"
#define PART_ENDING ".part"
#define ID_LENGTH 36u
#define RESUME_FILE "resume"
#define NAME_BYTES_MAX 64u

char *snapshot_memory_path(const char *directory, const char *snapshot)
{
    return xasprintf("%s/%s" MEMORY_ENDING, directory, snapshot);
}

char *snapshot_memory_new_path(const char *directory, const char *snapshot)
{
    return xasprintf("%s/%s" MEMORY_ENDING NEW_ENDING, directory, snapshot);
}

int snapshot_memory_look(const char *directory, const char *snapshot, uint64_t *ret_bytes, struct error *err)
{
    CLEANUP_FREE char *path = snapshot_memory_path(directory, snapshot);
    struct stat st;
    if (lstat(path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no plain file", path);
    *ret_bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

int snapshot_memory_conclude(const char *directory, const char *snapshot, struct error *err)
{
    CLEANUP_FREE char *path = snapshot_memory_path(directory, snapshot);
    CLEANUP_FREE char *new = snapshot_memory_new_path(directory, snapshot);
    if (rename(new, path) < 0)
        return error_errno(err, -errno, "cannot name %s", path);
    return file_sync_directory(directory, err);
}

/* What stands behind a snapshot's name: 0: it is none of its files; 1: the file; 2: what comes to be it, as snapshot_file.c calls it until
 * it is whole. To the letter: disks are in the same directory, and may have odd names. */
static int ending_kind(const char *ending)
{
    size_t digits;
    if (strncmp(ending, MEMORY_ENDING, strlen(MEMORY_ENDING)) != 0)
        return 0;
    ending += strlen(MEMORY_ENDING);
    if (ending[0] == '\0')
        return 1;
    if (strncmp(ending, NEW_ENDING, strlen(NEW_ENDING)) != 0)
        return 0;
    ending += strlen(NEW_ENDING);
    digits = ending[0] == '.' ? strspn(ending + 1, "0123456789") : 0;
    return ending[0] == '\0' || (digits > 0 && strcmp(ending + 1 + digits, PART_ENDING) == 0) ? 2 : 0;
}

/* Is @file one of @snapshot's, or, NULL, of any that has an id for a name, which is in @ret_name then? */
static int is_memory(const char *file, const char *snapshot, char ret_name[NAME_BYTES_MAX])
{
    size_t length = snapshot != NULL ? strlen(snapshot) : strspn(file, "0123456789abcdef-");
    if (length >= NAME_BYTES_MAX || (snapshot != NULL && strncmp(file, snapshot, length) != 0) || (snapshot == NULL && length != ID_LENGTH))
        return 0;
    snprintf(ret_name, NAME_BYTES_MAX, "%.*s", (int)length, file);
    return ending_kind(file + length);
}

/* Remove the files of @snapshot, or all that @keeps does not keep. 1: something went. */
static int files_remove(const char *directory, const char *snapshot, bool (*keeps)(void *arg, const char *snapshot), void *arg,
                        struct error *err)
{
    const struct dirent *entry;
    char name[NAME_BYTES_MAX];
    int r = 0;
    DIR *d = opendir(directory);
    if (d == NULL)
        return error_errno(err, -errno, "cannot open %s", directory);
    while (r >= 0 && (entry = readdir(d)) != NULL) {
        int kind = is_memory(entry->d_name, snapshot, name);
        if (kind == 0 || (keeps != NULL && kind == 1 && keeps(arg, name)))
            continue;
        if (unlinkat(dirfd(d), entry->d_name, 0) == 0)
            r = 1;
        else if (errno != ENOENT)
            r = error_errno(err, -errno, "cannot remove %s/%s", directory, entry->d_name);
    }
    closedir(d);
    return r;
}

int snapshot_memory_remove(const char *directory, const char *snapshot, struct error *err)
{
    int r = files_remove(directory, snapshot, NULL, NULL, err);
    return r > 0 ? file_sync_directory(directory, err) : r;
}

void snapshot_memory_tidy(const char *directory, bool (*keeps)(void *arg, const char *snapshot), void *arg)
{
    (void)files_remove(directory, NULL, keeps, arg, NULL);
}

static char *resume_path(const char *directory)
{
    return xasprintf("%s/" RESUME_FILE, directory);
}

int snapshot_resume_set(const char *directory, const char *snapshot, struct error *err)
{
    CLEANUP_FREE char *path = resume_path(directory);
    return file_write_atomic(path, snapshot, strlen(snapshot), 0600, err);
}

int snapshot_resume_read(const char *directory, char **ret_snapshot, struct error *err)
{
    CLEANUP_FREE char *path = resume_path(directory);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    *ret_snapshot = NULL;
    int r = file_read_foreign(path, NAME_BYTES_MAX - 1, &text, &size, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    if (size > 0 && strlen(text) == size && strchr(text, '/') == NULL)
        *ret_snapshot = TAKE_PTR(text);
    return 0;
}

int snapshot_resume_take(const char *directory, const char *snapshot, struct error *err)
{
    CLEANUP_FREE char *path = resume_path(directory);
    CLEANUP_FREE char *named = NULL;
    int r = snapshot_resume_read(directory, &named, err);
    if (r < 0)
        return r;
    r = named == NULL || strcmp(named, snapshot) != 0 ? -ENOENT : unlink(path) < 0 ? -errno : 0;
    if (r == -ENOENT)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the VM has gone on from it already, or its disks were not reverted to it");
    return r < 0 ? error_errno(err, r, "cannot remove %s", path) : file_sync_directory(directory, err);
}

int snapshot_resume_clear(const char *directory, struct error *err)
{
    CLEANUP_FREE char *path = resume_path(directory);
    if (access(path, F_OK) < 0 && errno == ENOENT) /* also of what cannot be written to */
        return 0;
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", path);
    return file_sync_directory(directory, err);
}
