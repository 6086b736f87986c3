/* The shared page with a deadline; see the header. */
#include "compute/agent/lease_page.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

int lease_page_open(struct lease_page *page, const char *path, bool make, uint64_t value, struct error *err)
{
    struct stat st;
    uint64_t bytes = htole64(value);
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (make ? O_CREAT : 0), 0644);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot open lease page %s", path);
    if (st.st_size < (off_t)sizeof(bytes) && !make)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "lease page %s is empty", path);
    if (make && (pwrite(fd, &bytes, sizeof(bytes), 0) != sizeof(bytes) || fchmod(fd, 0644) < 0))
        return error_errno(err, errno != 0 ? -errno : -EIO, "cannot write lease page %s", path);
    void *word = mmap(NULL, sizeof(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (word == MAP_FAILED)
        return error_errno(err, -errno, "cannot map lease page %s", path);
    lease_page_close(page);
    page->word = word;
    return 0;
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
