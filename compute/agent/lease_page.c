/* The shared page with a deadline; see the header. */
#include "compute/agent/lease_page.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int page_map(struct lease_page *page, const char *path, int fd, struct error *err)
{
    void *word = mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (word == MAP_FAILED)
        return error_errno(err, -errno, "cannot map lease page %s", path);
    lease_page_close(page);
    page->word = word;
    return 0;
}

int lease_page_open(struct lease_page *page, const char *path, uint64_t value, struct error *err)
{
    uint64_t bytes = htole64(value);
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT, 0644);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open lease page %s", path);
    if (pwrite(fd, &bytes, sizeof(bytes), 0) != sizeof(bytes) || fchmod(fd, 0644) < 0)
        return error_errno(err, errno != 0 ? -errno : -EIO, "cannot write lease page %s", path);
    return page_map(page, path, fd, err);
}

/* The stretch of addresses, as /proc/PID/map_files names it, where a process has a file of that name; false: this line is of
 * another one. The directories are those that the process sees, and are left out. */
static bool is_mapped_here(const char *line, const char *name, char range[64])
{
    static const char gone[] = " (deleted)";
    const char *path = strchr(line, '/');
    if (path == NULL || sscanf(line, "%63s", range) != 1)
        return false;
    size_t length = strcspn(path, "\n"), want = strlen(name);
    if (length > sizeof gone - 1 && strncmp(path + length - (sizeof gone - 1), gone, sizeof gone - 1) == 0)
        length -= sizeof gone - 1;
    return length > want && path[length - want - 1] == '/' && strncmp(path + length - want, name, want) == 0;
}

/* A VMM sees its page on a mount that can only be read, and what is opened by way of its mapping has that mount: then by name, if that
 * is the same file. Negative errno. */
static int writable(const char *mapped, const char *path)
{
    struct stat there, here;
    int fd = open(mapped, O_RDWR | O_CLOEXEC);
    if (fd >= 0 || errno != EROFS)
        return fd >= 0 ? fd : -errno;
    fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && stat(mapped, &there) == 0 && fstat(fd, &here) == 0 && there.st_dev == here.st_dev && there.st_ino == here.st_ino)
        return fd;
    close_fd(&fd);
    return -EROFS;
}

int lease_page_adopt(struct lease_page *page, const char *path, pid_t pid, struct error *err)
{
    CLEANUP_FREE char *maps_path = xasprintf("/proc/%d/maps", pid);
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    char line[4352], range[64];
    bool found = false;
    FILE *maps = fopen(maps_path, "re");
    if (maps == NULL)
        return error_errno(err, -errno, "cannot read %s", maps_path);
    while (!found && fgets(line, sizeof line, maps) != NULL)
        found = is_mapped_here(line, name, range);
    fclose(maps);
    CLEANUP_FREE char *at = found ? xasprintf("/proc/%d/map_files/%s", pid, range) : xstrdup(path);
    struct stat st;
    CLEANUP_FD int fd = found ? writable(at, path) : open(at, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, found && fd < 0 ? fd : -errno, "cannot open lease page %s of process %d", path, pid);
    /* An agent made it: what the process itself can make is none. */
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_size < (off_t)sizeof(uint64_t))
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "what process %d has as its lease page is none", pid);
    return page_map(page, path, fd, err);
}

void lease_page_put(struct lease_page *page, uint64_t value)
{
    if (page->word != NULL)
        __atomic_store_n(page->word, htole64(value), __ATOMIC_RELEASE);
}

uint64_t lease_page_get(const struct lease_page *page)
{
    return page->word != NULL ? le64toh(__atomic_load_n(page->word, __ATOMIC_ACQUIRE)) : 0;
}

void lease_page_close(struct lease_page *page)
{
    if (page->word != NULL)
        munmap(page->word, sizeof(uint64_t));
    page->word = NULL;
}
