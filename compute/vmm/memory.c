/* One mapping of anonymous memory or of a memfd; see memory.h for the layout and why it is of this kind. */
#include "compute/vmm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PR_SET_VMA_ANON_NAME
#define PR_SET_VMA_ANON_NAME 0
#endif

static void region_add(struct guest_memory *m, uint64_t gpa, uint64_t size, uint64_t offset)
{
    ASSERT(m->region_count < MEMORY_REGIONS_MAX);
    m->regions[m->region_count++] =
        (struct memory_region){.gpa = gpa, .size = size, .offset = offset, .host = m->host + offset};
}

int memory_init(struct guest_memory *m, uint64_t size_bytes, struct error *err)
{
    return memory_init_pages(m, size_bytes, MEMORY_PAGES_AUTO, err);
}

int memory_init_pages(struct guest_memory *m, uint64_t size_bytes, enum memory_pages pages, struct error *err)
{
    return memory_init_kind(m, size_bytes, pages, MEMORY_OWN, err);
}

static uint64_t page_bytes(enum memory_pages pages)
{
    return pages == MEMORY_PAGES_HUGE ? 1ull << 30 : pages == MEMORY_PAGES_LARGE ? 2ull << 20 : MEMORY_PAGE_BYTES;
}

static bool is_hugetlb(enum memory_pages pages)
{
    return pages == MEMORY_PAGES_HUGE || pages == MEMORY_PAGES_LARGE;
}

static int size_check(uint64_t size_bytes, enum memory_pages pages, struct error *err)
{
    if (size_bytes < MEMORY_BYTES_MIN || size_bytes > MEMORY_BYTES_MAX || size_bytes % MEMORY_PAGE_BYTES)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/memory_bytes",
                               "guest memory must be a multiple of 4096 between %llu and %llu bytes, not %" PRIu64,
                               MEMORY_BYTES_MIN, MEMORY_BYTES_MAX, size_bytes);
    if (size_bytes % page_bytes(pages))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/memory_bytes",
                               "guest memory of pages of %" PRIu64 " MiB must be a multiple of that, not %" PRIu64
                               " bytes",
                               page_bytes(pages) >> 20, size_bytes);
    return 0;
}

/* memfd_create(2): as below, the size of a huge page. What is mapped stays: nobody may make the file smaller. */
static int file_make(struct guest_memory *m, uint64_t size_bytes, struct error *err)
{
    unsigned huge = m->pages == MEMORY_PAGES_HUGE    ? MFD_HUGETLB | 30u << 26
                    : m->pages == MEMORY_PAGES_LARGE ? MFD_HUGETLB | 21u << 26
                                                     : 0;
    m->fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge);
    if (m->fd < 0)
        return is_hugetlb(m->pages) ? error_set_field(err, -errno, ERROR_NOT_SUPPORTED, "/memory_pages",
                                                      "the host gives no shared memory of these pages: %s", strerror(errno))
                                    : error_errno(err, -errno, "cannot make shared memory");
    if (ftruncate(m->fd, (off_t)size_bytes) < 0 || fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_errno(err, -errno, "cannot make %" PRIu64 " bytes of shared memory", size_bytes);
    return 0;
}

/* mmap(2): the base-2 logarithm of a huge page's size stands above bit 26; the C library has no names for it.
 * NORESERVE: pages come when the guest touches them; how much a host may promise is the scheduler's decision. Pages of
 * a pool are another matter: without them set aside the guest's touch would kill us. */
static int map_flags(enum memory_pages pages)
{
    return pages == MEMORY_PAGES_HUGE    ? MAP_HUGETLB | 30 << 26
           : pages == MEMORY_PAGES_LARGE ? MAP_HUGETLB | 21 << 26
                                         : MAP_NORESERVE;
}

static int map_refused(const struct guest_memory *m, uint64_t size_bytes, int code, struct error *err)
{
    uint64_t page = page_bytes(m->pages);
    if (!is_hugetlb(m->pages))
        return error_errno(err, code, "cannot map %" PRIu64 " bytes of guest memory", size_bytes);
    if (code != -ENOMEM)
        return error_set_field(err, code, ERROR_NOT_SUPPORTED, "/memory_pages",
                               "the host gives no guest memory of these pages: %s", strerror(-code));
    return error_set_field(err, code, ERROR_NO_SPACE, "/memory_pages",
                           "the host's pool has fewer than %" PRIu64 " free pages of %" PRIu64
                           " MiB; raise nr_hugepages in /sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB",
                           size_bytes / page, page >> 20, page >> 10);
}

/* Where the host has large pages, guest and host addresses must agree within one of them. */
static int host_map(struct guest_memory *m, uint64_t size_bytes, enum memory_kind kind, struct error *err)
{
    int flags = kind == MEMORY_SHARED    ? MAP_SHARED | (is_hugetlb(m->pages) ? 0 : MAP_NORESERVE)
                : kind == MEMORY_AWAITED ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
                                         : MAP_PRIVATE | MAP_ANONYMOUS | map_flags(m->pages);
    uint64_t align = MAX(page_bytes(m->pages), 2ull << 20);
    uint8_t *space = mmap(NULL, size_bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED)
        return error_errno(err, -errno, "no room for %" PRIu64 " bytes of guest memory", size_bytes);
    uint64_t head = (align - (uintptr_t)space % align) % align;
    void *host = mmap(space + head, size_bytes, PROT_READ | PROT_WRITE, MAP_FIXED | flags, m->fd, 0);
    int code = -errno;
    if (head)
        munmap(space, head);
    if (align > head)
        munmap(space + head + size_bytes, align - head);
    if (host == MAP_FAILED) {
        munmap(space + head, size_bytes);
        return map_refused(m, size_bytes, code, err);
    }
    m->host = host;
    return 0;
}

/* Advice and a name in /proc/PID/smaps: works without. */
static void host_advise(struct guest_memory *m)
{
    if (m->pages == MEMORY_PAGES_AUTO)
        (void)madvise(m->host, m->size_bytes, MADV_HUGEPAGE);
    else if (m->pages == MEMORY_PAGES_SMALL)
        (void)madvise(m->host, m->size_bytes, MADV_NOHUGEPAGE);
    (void)madvise(m->host, m->size_bytes, MADV_DONTDUMP); /* a core file must not carry a guest's secrets */
    (void)prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, m->host, m->size_bytes, "guest-memory");
}

int memory_init_kind(struct guest_memory *m, uint64_t size_bytes, enum memory_pages pages, enum memory_kind kind,
                     struct error *err)
{
    memset(m, 0, sizeof(*m));
    m->fd = m->pagemap_fd = -1;
    m->pages = pages;
    int code = size_check(size_bytes, pages, err);
    if (code == 0 && kind == MEMORY_SHARED)
        code = file_make(m, size_bytes, err);
    if (code == 0)
        code = host_map(m, size_bytes, kind, err);
    if (code < 0) {
        memory_finish(m);
        return code;
    }
    m->size_bytes = size_bytes;
    /* Now, for later there may be no /proc to see. */
    m->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    host_advise(m);
    region_add(m, 0, MIN(size_bytes, MEMORY_HOLE_START), 0);
    if (size_bytes > MEMORY_HOLE_START)
        region_add(m, MEMORY_HOLE_END, size_bytes - MEMORY_HOLE_START, MEMORY_HOLE_START);
    return 0;
}

void memory_finish(struct guest_memory *m)
{
    if (m->host)
        munmap(m->host, m->size_bytes);
    close_fd(&m->pagemap_fd);
    close_fd(&m->fd);
    free(m->dirty);
    memset(m, 0, sizeof(*m));
    m->fd = m->pagemap_fd = -1;
}

int memory_share(const struct guest_memory *m, struct error *err)
{
    if (m->fd >= 0 && !m->detached)
        return m->fd;
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "the VM's memory is %s and cannot be handed to another VMM; memory_shared must be set where it is started",
                     m->detached ? "the copy of a snapshot" : "its VMM's own");
}

static int file_check(const struct guest_memory *m, int fd, struct error *err)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at the memory that was handed over");
    if ((uint64_t)st.st_size != m->size_bytes)
        return error_set(err, -EINVAL, ERROR_INVALID, "the memory that was handed over has %lld bytes, the VM here %" PRIu64,
                         (long long)st.st_size, m->size_bytes);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return error_set(err, -EINVAL, ERROR_INVALID, "what was handed over is no sealed memory");
    return 0;
}

int memory_adopt(struct guest_memory *m, int fd, struct error *err)
{
    CLEANUP_FD int file = fd;
    int code = file_check(m, file, err);
    if (code < 0)
        return code;
    if (mmap(m->host, m->size_bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED | (is_hugetlb(m->pages) ? 0 : MAP_NORESERVE),
             file, 0) == MAP_FAILED)
        return error_errno(err, -errno, "cannot map the memory that was handed over");
    close_fd(&m->fd);
    m->fd = file;
    file = -1;
    host_advise(m);
    return 0;
}

/* The region that wholly contains the range. Written so that no sum can wrap. */
static const struct memory_region *region_of(const struct guest_memory *m, uint64_t gpa, uint64_t size)
{
    if (size == 0)
        return NULL;
    for (size_t i = 0; i < m->region_count; i++) {
        const struct memory_region *r = &m->regions[i];
        if (gpa >= r->gpa && gpa - r->gpa < r->size && size <= r->size - (gpa - r->gpa))
            return r;
    }
    return NULL;
}

void *memory_at(const struct guest_memory *m, uint64_t gpa, uint64_t size)
{
    const struct memory_region *r = region_of(m, gpa, size);
    return r ? r->host + (gpa - r->gpa) : NULL;
}

bool memory_read(const struct guest_memory *m, uint64_t gpa, void *to, uint64_t size)
{
    const void *from = memory_at(m, gpa, size);
    if (!from)
        return size == 0;
    memcpy(to, from, size);
    return true;
}

bool memory_write(struct guest_memory *m, uint64_t gpa, const void *from, uint64_t size)
{
    void *to = memory_at(m, gpa, size);
    if (!to)
        return size == 0;
    memcpy(to, from, size);
    memory_mark_dirty(m, gpa, size);
    return true;
}

/* Both can fail: then they are still there. */
static int pages_give_back(const struct guest_memory *m, uint64_t offset, uint64_t size)
{
    if (m->fd >= 0 && !m->detached)
        return fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
    return madvise(m->host + offset, size, MADV_DONTNEED);
}

void memory_clear(struct guest_memory *m)
{
    /* Forgetting gives the pages back; a later read finds zeros. Of a file it would find the file's bytes. */
    if (m->detached || pages_give_back(m, 0, m->size_bytes) < 0)
        memset(m->host, 0, m->size_bytes);
    for (size_t i = 0; i < m->region_count; i++)
        memory_mark_dirty(m, m->regions[i].gpa, m->regions[i].size);
}

bool memory_discard(struct guest_memory *m, uint64_t gpa, uint64_t size)
{
    void *at = memory_at(m, gpa, size);
    if (!at || gpa % MEMORY_PAGE_BYTES || size % MEMORY_PAGE_BYTES)
        return false;
    (void)pages_give_back(m, (uint64_t)((uint8_t *)at - m->host), size);
    memory_mark_dirty(m, gpa, size);
    return true;
}

int memory_map_file(struct guest_memory *m, size_t index, int fd, uint64_t offset, struct error *err)
{
    ASSERT(index < m->region_count);
    struct memory_region *r = &m->regions[index];
    if (is_hugetlb(m->pages))
        return -ENOTSUP;
    void *at =
        mmap(r->host, r->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return error_errno(err, -errno, "cannot map %" PRIu64 " bytes of memory from a file", r->size);
    (void)madvise(at, r->size, MADV_DONTDUMP);
    m->detached = true;
    return 0;
}

/* Documentation/admin-guide/mm/pagemap.rst: one word for each page; it is present, or swapped out. */
#define PAGEMAP_GIVEN (3ull << 62)
enum { PAGEMAP_GROUP = 512 }; /* pages of 2 MiB: where one was touched all of them are looked at */

/* Of a file pages may hold data that this process has never touched: only the file knows. */
static void file_next_data(const struct guest_memory *m, const struct memory_region *r, uint64_t *page, uint64_t *pages)
{
    uint64_t end = r->offset + r->size;
    off_t data = lseek(m->fd, (off_t)(r->offset + *page * MEMORY_PAGE_BYTES), SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return;
    *pages = 0;
    if (data < 0 || (uint64_t)data >= end)
        return;
    off_t hole = lseek(m->fd, data, SEEK_HOLE);
    uint64_t until = hole < 0 ? end : MIN((uint64_t)hole, end);
    *page = ((uint64_t)data - r->offset) / MEMORY_PAGE_BYTES;
    *pages = (until - r->offset + MEMORY_PAGE_BYTES - 1) / MEMORY_PAGE_BYTES - *page;
}

void memory_next_data(const struct guest_memory *m, size_t index, uint64_t *page, uint64_t *pages)
{
    ASSERT(index < m->region_count);
    const struct memory_region *r = &m->regions[index];
    uint64_t end = r->size / MEMORY_PAGE_BYTES, words[PAGEMAP_GROUP];
    *pages = end - *page;
    if (m->fd >= 0 && !m->detached && !is_hugetlb(m->pages) && *page < end) {
        file_next_data(m, r, page, pages);
        return;
    }
    if (m->detached || is_hugetlb(m->pages) || m->pagemap_fd < 0)
        return; /* nobody can tell: everything */
    while (*page < end) {
        uint64_t count = MIN(PAGEMAP_GROUP - *page % PAGEMAP_GROUP, end - *page), i = 0;
        off_t at = (off_t)(((uintptr_t)r->host / MEMORY_PAGE_BYTES + *page) * sizeof(words[0]));
        *pages = end - *page;
        if (pread(m->pagemap_fd, words, count * sizeof(words[0]), at) != (ssize_t)(count * sizeof(words[0])))
            return;
        while (i < count && !(words[i] & PAGEMAP_GIVEN))
            i++;
        *page += i;
        *pages = count - i;
        if (i < count)
            return;
    }
}

uint64_t memory_used_bytes(const struct guest_memory *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->region_count; i++) {
        uint64_t page = 0, pages;
        while (memory_next_data(m, i, &page, &pages), pages > 0) {
            page += pages;
            sum += pages;
        }
    }
    return sum * MEMORY_PAGE_BYTES;
}

static size_t bitmap_words(const struct guest_memory *m)
{
    return (m->size_bytes / MEMORY_PAGE_BYTES + 63) / 64;
}

void memory_mark_dirty(struct guest_memory *m, uint64_t gpa, uint64_t size)
{
    if (!__atomic_load_n(&m->tracking, __ATOMIC_ACQUIRE))
        return;
    const struct memory_region *r = region_of(m, gpa, size);
    if (!r)
        return;
    uint64_t offset = r->offset + (gpa - r->gpa);
    uint64_t page = offset / MEMORY_PAGE_BYTES, end = (offset + size - 1) / MEMORY_PAGE_BYTES + 1;
    while (page < end) { /* a word at a time: a guest may give back or read gigabytes at once */
        uint64_t count = MIN(64 - page % 64, end - page);
        __atomic_fetch_or(&m->dirty[page / 64], (UINT64_MAX >> (64 - count)) << page % 64, __ATOMIC_RELEASE);
        page += count;
    }
}

int memory_tracking_start(struct guest_memory *m, struct error *err)
{
    /* The bitmap, once there, stays until memory_finish: a thread inside memory_mark_dirty may still hold it. */
    if (!m->dirty) {
        m->dirty = calloc(bitmap_words(m), sizeof(*m->dirty));
        if (!m->dirty)
            return error_set(err, -ENOMEM, ERROR_INTERNAL, "no memory for a dirty bitmap of %zu bytes",
                             bitmap_words(m) * sizeof(*m->dirty));
    }
    for (size_t i = 0; i < bitmap_words(m); i++)
        __atomic_store_n(&m->dirty[i], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&m->tracking, true, __ATOMIC_RELEASE);
    return 0;
}

void memory_tracking_stop(struct guest_memory *m)
{
    __atomic_store_n(&m->tracking, false, __ATOMIC_RELEASE);
}

void memory_tracking_fetch(struct guest_memory *m, size_t index, uint64_t *bitmap)
{
    ASSERT(index < m->region_count);
    if (!m->dirty)
        return;
    const struct memory_region *r = &m->regions[index];
    /* Regions begin at multiples of 64 pages within the whole, so words of theirs never straddle two regions. */
    size_t first = r->offset / MEMORY_PAGE_BYTES / 64;
    size_t words = (r->size / MEMORY_PAGE_BYTES + 63) / 64;
    for (size_t i = 0; i < words; i++)
        bitmap[i] |= __atomic_exchange_n(&m->dirty[first + i], 0, __ATOMIC_ACQ_REL);
}

void memory_tracking_peek(const struct guest_memory *m, size_t index, uint64_t *bitmap)
{
    ASSERT(index < m->region_count);
    const struct memory_region *r = &m->regions[index];
    size_t first = r->offset / MEMORY_PAGE_BYTES / 64, words = (r->size / MEMORY_PAGE_BYTES + 63) / 64;
    for (size_t i = 0; m->dirty && i < words; i++)
        bitmap[i] |= __atomic_load_n(&m->dirty[first + i], __ATOMIC_RELAXED);
}
