/* Looks at a Raft directory. Before libraft loads it, for the two kinds of damage that libraft 0.22.1 does not
 * survive: an open segment cut short (it crashes at every start), and both metadata files gone while there is a log
 * (it starts, having forgotten its vote); everything else it detects itself. And while it is in use, whether the log has
 * been cut (guard T). */
#include "controller/raft/raft_dir.h"

#include "controller/raft/raft_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { ZERO_STEP_BYTES = 64 << 10 };

static bool dir_is_segment_or_snapshot(const char *name)
{
    return strncmp(name, "snapshot-", 9) == 0 || (name[0] >= '0' && name[0] <= '9' && strchr(name, '-') != NULL);
}

/* Does the segment of @size bytes end exactly behind a batch? A batch is two checksums (4 bytes each), the number of
 * entries (8), for each entry term (8), type and padding (4) and size (4), then the entries' data. */
static bool dir_segment_ends_with_a_batch(int fd, uint64_t size)
{
    uint64_t offset = sizeof(uint64_t); /* behind the format */

    while (offset < size) {
        uint8_t preamble[16], entry[16];
        struct bytes_reader r = bytes_reader(preamble, sizeof(preamble));
        uint64_t count, data_bytes = 0;

        if (pread(fd, preamble, sizeof(preamble), (off_t)offset) != (ssize_t)sizeof(preamble))
            return false;
        bytes_get_u64(&r);
        count = bytes_get_u64(&r);
        offset += sizeof(preamble);
        if (count == 0 || count > (size - offset) / sizeof(entry))
            return false;
        for (uint64_t i = 0; i < count; i++, offset += sizeof(entry)) {
            if (pread(fd, entry, sizeof(entry), (off_t)offset) != (ssize_t)sizeof(entry))
                return false;
            r = bytes_reader(entry + 12, 4);
            data_bytes += bytes_get_u32(&r);
        }
        if (data_bytes > size - offset)
            return false;
        offset += data_bytes;
    }
    return true;
}

/* An open segment is written at its full size before the first entry goes in. When it is full or its server starts
 * anew, libraft cuts it behind its last batch and then renames it: a process that was killed between the two leaves a
 * short one that is whole. Any other short one is damaged. */
static bool dir_open_segment_is_cut(int dir_fd, const char *name)
{
    CLEANUP_FD int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    uint64_t format;

    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size >= RAFT_SEGMENT_BYTES)
        return false;
    return pread(fd, &format, sizeof(format), 0) == sizeof(format) && format != 0 &&
           !dir_segment_ends_with_a_batch(fd, (uint64_t)st.st_size);
}

int raft_dir_check(const char *dir, struct error *err)
{
    CLEANUP_FD int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool has_metadata = false, has_log = false, is_cut = false;
    struct dirent **entries = NULL;
    char cut_name[256] = "";
    int count = dir_fd < 0 ? -1 : scandir(dir, &entries, NULL, alphasort);

    if (count < 0)
        return error_errno(err, -errno, "cannot open the Raft directory %s", dir);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;

        has_metadata = has_metadata || strncmp(name, "metadata", 8) == 0;
        has_log = has_log || dir_is_segment_or_snapshot(name);
        if (!is_cut && strncmp(name, "open-", 5) == 0 && dir_open_segment_is_cut(dir_fd, name)) {
            is_cut = true;
            snprintf(cut_name, sizeof(cut_name), "%s", name);
        }
        free(entries[i]);
    }
    free(entries);
    if (is_cut)
        return error_set(err, -EUCLEAN, ERROR_CHECKSUM, "the log file %s is cut short", cut_name);
    if (has_log && !has_metadata)
        return error_set(err, -EUCLEAN, ERROR_CHECKSUM, "there is a log, but the files with term and vote are gone");
    return 0;
}

/* Is @name a finished log file? */
static bool dir_is_finished(const char *name, uint64_t *ret_first, uint64_t *ret_last)
{
    unsigned long long first, last;
    int end = 0;

    if (sscanf(name, "%16llu-%16llu%n", &first, &last, &end) != 2 || end != 33 || name[end] != '\0')
        return false;
    *ret_first = first;
    *ret_last = last;
    return true;
}

static bool dir_has_longer(struct dirent **entries, int count, const char *name)
{
    uint64_t first, last, other_first, other_last;

    if (!dir_is_finished(name, &first, &last))
        return false;
    for (int i = 0; i < count; i++) {
        if (dir_is_finished(entries[i]->d_name, &other_first, &other_last) && other_first == first && other_last > last)
            return true;
    }
    return false;
}

static bool dir_is_all_zero(int dir_fd, const char *name)
{
    CLEANUP_FD int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    CLEANUP_FREE uint8_t *data = xcalloc(1, ZERO_STEP_BYTES);
    ssize_t n = -1;

    while (fd >= 0 && (n = read(fd, data, ZERO_STEP_BYTES)) > 0) {
        if (data[0] != 0 || memcmp(data, data + 1, (size_t)n - 1) != 0)
            return false;
    }
    return n == 0;
}

static int dir_clean(int dir_fd, struct dirent **entries, int count, struct error *err)
{
    unsigned removed = 0;

    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;

        if (!dir_has_longer(entries, count, name) &&
            (strncmp(name, "open-", 5) != 0 || !dir_is_all_zero(dir_fd, name)))
            continue;
        if (unlinkat(dir_fd, name, 0) != 0)
            return error_errno(err, -errno, "cannot remove %s from the Raft directory", name);
        removed++;
    }
    return removed > 0 && fsync(dir_fd) != 0 ? error_errno(err, -errno, "cannot write the Raft directory") : 0;
}

int raft_dir_clean(const char *dir, struct error *err)
{
    CLEANUP_FD int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct dirent **entries = NULL;
    int count = dir_fd < 0 ? -1 : scandir(dir, &entries, NULL, alphasort);
    int rv;

    if (count < 0)
        return error_errno(err, -errno, "cannot open the Raft directory %s", dir);
    rv = dir_clean(dir_fd, entries, count, err);
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
    return rv;
}

static bool dir_is_written(int dir_fd, const char *name)
{
    CLEANUP_FD int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    uint64_t format = 0;

    return fd >= 0 && pread(fd, &format, sizeof(format), 0) == sizeof(format) && format != 0;
}

bool raft_dir_is_cut(const char *dir, uint64_t index)
{
    uint64_t first, last;
    struct dirent *entry;
    bool is_cut = true;
    DIR *files = opendir(dir);

    if (files == NULL)
        return false;
    while (is_cut && (entry = readdir(files)) != NULL) {
        if (dir_is_finished(entry->d_name, &first, &last))
            is_cut = last < index;
        else if (strncmp(entry->d_name, "open-", 5) == 0)
            is_cut = !dir_is_written(dirfd(files), entry->d_name);
    }
    closedir(files);
    return is_cut;
}

uint64_t raft_dir_free_bytes(const char *dir)
{
    struct statvfs fs;

    return statvfs(dir, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : UINT64_MAX;
}
