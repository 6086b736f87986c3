/* Reading the lease page; see lease.h. */
#include "compute/vmm/lease.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

int lease_init(struct lease *l, const char *path, struct error *err)
{
    struct stat st;
    l->page = NULL;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot open lease page %s", path);
    if (st.st_size < (off_t)sizeof(uint64_t))
        return error_set(err, -EINVAL, ERROR_INVALID, "lease page %s has %lld bytes; it needs 8 or more", path,
                         (long long)st.st_size);
    void *page = mmap(NULL, sizeof(uint64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return error_errno(err, -errno, "cannot map lease page %s", path);
    l->page = page;
    return 0;
}

void lease_finish(struct lease *l)
{
    if (l->page)
        munmap((void *)(uintptr_t)l->page, sizeof(uint64_t));
    l->page = NULL;
}

uint64_t lease_deadline_ns(const struct lease *l)
{
    return l && l->page ? le64toh(__atomic_load_n(l->page, __ATOMIC_ACQUIRE)) : 0;
}

bool lease_allows_io(const struct lease *l)
{
    uint64_t deadline_ns = lease_deadline_ns(l);
    if (deadline_ns == 0)
        return true;
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec < deadline_ns;
}
