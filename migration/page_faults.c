/* One userfaultfd for all regions, and two bits for each page; see page_faults.h. */
#include "migration/page_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define DEVICE_NEW _IO(0xaa, 0x00) /* USERFAULTFD_IOC_NEW of kernels since 6.1 */

struct page_faults {
    int fd; /* borrowed */
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t count, registered;
    uint64_t *lack[GUEST_REGIONS_MAX];   /* borrowed; atomic */
    uint64_t *wanted[GUEST_REGIONS_MAX]; /* the faults' thread alone */
    uint64_t lacking;                    /* atomic */
};

int page_faults_open(bool user_only, struct error *err)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | (user_only ? UFFD_USER_MODE_ONLY : 0));
    if (fd < 0 && errno == EPERM && !user_only) {
        CLEANUP_FD int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        fd = device < 0 ? -1 : ioctl(device, DEVICE_NEW, O_CLOEXEC | O_NONBLOCK);
    }
    if (fd < 0)
        return error_errno(err, -errno, "this host gives no userfaultfd");
    struct uffdio_api api = {.api = UFFD_API};
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        int code = error_errno(err, -errno, "this host's userfaultfd is not as it should be");
        close(fd);
        return code;
    }
    return fd;
}

static uint64_t pages_of(const struct guest_region *r)
{
    return r->size / GUEST_PAGE_BYTES;
}

static bool is_set(const uint64_t *bitmap, uint64_t page)
{
    return bitmap && __atomic_load_n(&bitmap[page / 64], __ATOMIC_ACQUIRE) >> (page % 64) & 1;
}

/* The end of the stretch of pages from @page on that are all as @page is. */
static uint64_t stretch_end(const uint64_t *bitmap, uint64_t page, uint64_t end)
{
    bool set = is_set(bitmap, page);
    uint64_t same = set ? UINT64_MAX : 0;
    while (page < end && is_set(bitmap, page) == set)
        page += page % 64 == 0 && __atomic_load_n(&bitmap[page / 64], __ATOMIC_ACQUIRE) == same ? 64 : 1;
    return MIN(page, end);
}

static int region_drop(struct page_faults *f, size_t i, struct error *err)
{
    const struct guest_region *r = &f->regions[i];
    uint64_t end = pages_of(r);
    for (uint64_t page = 0, next; f->lack[i] && page < end; page = next) {
        next = stretch_end(f->lack[i], page, end);
        if (!is_set(f->lack[i], page))
            continue;
        f->lacking += next - page;
        uint8_t *at = r->host + page * GUEST_PAGE_BYTES;
        uint64_t bytes = (next - page) * GUEST_PAGE_BYTES;
        /* The first for shared memory, whose pages are the file's; private memory refuses it. */
        if (madvise(at, bytes, MADV_REMOVE) < 0 && madvise(at, bytes, MADV_DONTNEED) < 0)
            return error_errno(err, -errno, "cannot drop pages of guest memory");
    }
    return 0;
}

static int region_watch(struct page_faults *f, size_t i, struct error *err)
{
    const struct guest_region *r = &f->regions[i];
    struct uffdio_register watch = {.range = {.start = (uintptr_t)r->host, .len = r->size},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(f->fd, UFFDIO_REGISTER, &watch) < 0)
        return error_errno(err, -errno, "cannot watch guest memory with userfaultfd");
    f->registered++;
    if (watch.ioctls & 1ull << _UFFDIO_COPY && watch.ioctls & 1ull << _UFFDIO_ZEROPAGE)
        return 0;
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "guest memory of huge pages cannot come page by page");
}

int page_faults_start(int fd, const struct guest_region *regions, size_t count, uint64_t *const lack[GUEST_REGIONS_MAX],
                      struct page_faults **ret_faults, struct error *err)
{
    struct page_faults *f = NEW(struct page_faults);
    int code = 0;
    f->fd = fd;
    f->count = count;
    memcpy(f->regions, regions, count * sizeof(*regions));
    for (size_t i = 0; code == 0 && i < count; i++) {
        f->lack[i] = lack[i];
        f->wanted[i] = lack[i] ? xcalloc((pages_of(&regions[i]) + 63) / 64, sizeof(uint64_t)) : NULL;
        code = region_drop(f, i, err);
        if (code == 0)
            code = region_watch(f, i, err);
    }
    if (code < 0)
        page_faults_finish(f);
    else
        *ret_faults = f;
    return code;
}

void page_faults_let_go(struct page_faults *f)
{
    for (size_t i = 0; i < f->registered; i++) {
        struct uffdio_range range = {.start = (uintptr_t)f->regions[i].host, .len = f->regions[i].size};
        (void)ioctl(f->fd, UFFDIO_UNREGISTER, &range); /* who waits is woken */
    }
}

void page_faults_finish(struct page_faults *f)
{
    if (!f)
        return;
    page_faults_let_go(f);
    for (size_t i = 0; i < GUEST_REGIONS_MAX; i++)
        free(f->wanted[i]);
    free(f);
}

uint64_t page_faults_lacking(const struct page_faults *f)
{
    return __atomic_load_n(&f->lacking, __ATOMIC_ACQUIRE);
}

/* ---- placing ---- */

/* [@start, @start + @size) of this process; *ret_done bytes of it are there. */
static int kernel_place(const struct page_faults *f, uint8_t *start, uint64_t size, const uint8_t *data,
                        uint64_t *ret_done)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)start, .src = (uintptr_t)data, .len = size};
    struct uffdio_zeropage zero = {.range = {.start = (uintptr_t)start, .len = size}};
    int code = (data ? ioctl(f->fd, UFFDIO_COPY, &copy) : ioctl(f->fd, UFFDIO_ZEROPAGE, &zero)) < 0 ? -errno : 0;
    int64_t done = data ? copy.copy : zero.zeropage;
    *ret_done = code == 0 ? size : done > 0 ? (uint64_t)done : 0;
    return code;
}

static void wake(const struct page_faults *f, uint8_t *start)
{
    struct uffdio_range range = {.start = (uintptr_t)start, .len = GUEST_PAGE_BYTES};
    (void)ioctl(f->fd, UFFDIO_WAKE, &range);
}

/* A stretch of lacking pages. Another thread may be placing some of them as well: who comes second changes nothing. */
static int stretch_place(struct page_faults *f, size_t region, uint64_t page, uint64_t end, const uint8_t *data,
                         struct error *err)
{
    while (page < end) {
        uint8_t *at = f->regions[region].host + page * GUEST_PAGE_BYTES;
        uint64_t done, next;
        int code = kernel_place(f, at, (end - page) * GUEST_PAGE_BYTES, data, &done);
        next = page + done / GUEST_PAGE_BYTES;
        if (code == -EEXIST && done == 0) {
            wake(f, at);
            next = page + 1;
        } else if (code < 0 && code != -EAGAIN && code != -EEXIST) {
            return error_errno(err, code, "cannot put a page of guest memory into place");
        }
        data += data ? (next - page) * GUEST_PAGE_BYTES : 0;
        for (; page < next; page++) {
            uint64_t bit = 1ull << (page % 64);
            if (__atomic_fetch_and(&f->lack[region][page / 64], ~bit, __ATOMIC_ACQ_REL) & bit)
                __atomic_fetch_sub(&f->lacking, 1, __ATOMIC_ACQ_REL);
        }
    }
    return 0;
}

int page_faults_place(struct page_faults *f, size_t region, uint64_t page, uint64_t pages, const void *data,
                      struct error *err)
{
    uint64_t end = page + pages;
    const uint8_t *from = data;
    int code = 0;
    ASSERT(region < f->count && end <= pages_of(&f->regions[region]));
    if (!f->lack[region])
        return 0;
    for (uint64_t next; code == 0 && page < end; page = next) {
        next = stretch_end(f->lack[region], page, end);
        if (is_set(f->lack[region], page))
            code = stretch_place(f, region, page, next, from, err);
        from += from ? (next - page) * GUEST_PAGE_BYTES : 0;
    }
    return code;
}

/* ---- touching ---- */

static bool page_find(const struct page_faults *f, uint64_t address, size_t *ret_region, uint64_t *ret_page)
{
    for (size_t i = 0; i < f->count; i++) {
        uint64_t start = (uintptr_t)f->regions[i].host;
        if (address < start || address - start >= f->regions[i].size)
            continue;
        *ret_region = i;
        *ret_page = (address - start) / GUEST_PAGE_BYTES;
        return true;
    }
    return false;
}

/* Is this touch news? A page that is not lacking is zeros, or was placed a moment ago. */
static int touch_judge(struct page_faults *f, uint64_t address, size_t *ret_region, uint64_t *ret_page,
                       struct error *err)
{
    uint64_t done;
    if (!page_find(f, address, ret_region, ret_page))
        return 0;
    uint64_t bit = 1ull << (*ret_page % 64), *word;
    if (is_set(f->lack[*ret_region], *ret_page)) {
        word = &f->wanted[*ret_region][*ret_page / 64];
        bool is_news = !(*word & bit);
        *word |= bit;
        return is_news;
    }
    uint8_t *at = f->regions[*ret_region].host + *ret_page * GUEST_PAGE_BYTES;
    int code = kernel_place(f, at, GUEST_PAGE_BYTES, NULL, &done);
    if (code == -EEXIST || code == -EAGAIN)
        wake(f, at); /* touched again where that was too soon */
    else if (code < 0)
        return error_errno(err, code, "cannot give a guest a page of zeros");
    return 0;
}

int page_faults_next(struct page_faults *f, int timeout_ms, size_t *ret_region, uint64_t *ret_page, struct error *err)
{
    struct pollfd p = {.fd = f->fd, .events = POLLIN};
    struct uffd_msg message;
    while (poll(&p, 1, timeout_ms) > 0) {
        if (read(f->fd, &message, sizeof(message)) != (ssize_t)sizeof(message)) {
            if (errno == EAGAIN || errno == EINTR)
                return 0;
            return error_errno(err, -errno, "cannot read from userfaultfd");
        }
        int code = message.event == UFFD_EVENT_PAGEFAULT
                       ? touch_judge(f, message.arg.pagefault.address, ret_region, ret_page, err)
                       : 0;
        if (code != 0)
            return code;
    }
    return 0;
}

int page_faults_wanted_again(struct page_faults *f, int (*each)(void *arg, size_t region, uint64_t page), void *arg)
{
    int code = 0;
    for (size_t i = 0; i < f->count; i++) {
        uint64_t words = f->wanted[i] ? (pages_of(&f->regions[i]) + 63) / 64 : 0;
        for (uint64_t w = 0; w < words; w++) {
            uint64_t bits = f->wanted[i][w] & __atomic_load_n(&f->lack[i][w], __ATOMIC_ACQUIRE);
            for (; code >= 0 && bits; bits &= bits - 1)
                code = each(arg, i, w * 64 + (unsigned)__builtin_ctzll(bits));
        }
    }
    return MIN(code, 0);
}
