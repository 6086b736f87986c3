/* The guest's memory: one mapping, shown to the guest as regions with a hole below 4 GiB.
 *
 *   gpa 0 ...... 3 GiB |  hole: BARs, IOAPIC, LAPIC, firmware | 4 GiB ............ rest of the memory
 *   offset 0 ... 3 GiB |                                        3 GiB ............ size_bytes
 *
 * It is of one of two kinds. Its own (the default): anonymous and private, for stock kernels give huge pages to anonymous
 * memory that asks for them, and none to shared memory (/sys/kernel/mm/transparent_hugepage/shmem_enabled is "never"). A
 * guest whose second-level tables map 4 KiB pages pays for each page's first touch and at each miss of the TLB
 * (docs/vmm-judges.md has figures). A child of fork() would get a copy; the VMM has none. Shared: a file without a name
 * (memfd_create(2)), which another VMM of this host can be handed by its descriptor; pages of a hugetlb pool lose nothing by
 * that, transparent ones are given where shmem_enabled permits it ("advise" is enough).
 *
 * A VMM that is to be handed the memory of another begins with memory that is awaited: address space, which must not be
 * touched before memory_adopt.
 *
 * memory_at() is the only way from a guest-physical address to a pointer. Whoever writes through it tells
 * memory_mark_dirty(): KVM sees the guest's own writes, but not ours (reference: dirty log for migration).
 * Any thread may call memory_at, memory_mark_dirty; the rest belongs to the thread that builds the machine. */
#ifndef COMPUTE_VMM_MEMORY_H
#define COMPUTE_VMM_MEMORY_H

#include "common/base.h"
#include "common/error.h"

#define MEMORY_PAGE_BYTES 4096u
#define MEMORY_HOLE_START 0xc0000000ull   /* 3 GiB: where memory below the hole ends at the latest */
#define MEMORY_HOLE_END 0x100000000ull    /* 4 GiB: where the rest goes on */
#define MEMORY_BYTES_MIN 0x200000ull      /* 2 MiB */
#define MEMORY_BYTES_MAX 0x10000000000ull /* 1 TiB */
#define MEMORY_REGIONS_MAX 4              /* below and above the hole, and room for firmware */

struct memory_region {
    uint64_t gpa;    /* guest-physical address of the first byte */
    uint64_t size;   /* bytes */
    uint64_t offset; /* of the first byte within the mapping */
    uint8_t *host;   /* the same byte in this process */
};

/* What the host's pages are; the values of vmm_pages in schema/objects.def. */
enum memory_pages {
    MEMORY_PAGES_AUTO,  /* transparent huge pages where the host has them */
    MEMORY_PAGES_SMALL, /* 4 KiB */
    MEMORY_PAGES_LARGE, /* 2 MiB, hugetlb */
    MEMORY_PAGES_HUGE,  /* 1 GiB, hugetlb */
};

enum memory_kind { MEMORY_OWN, MEMORY_SHARED, MEMORY_AWAITED };

struct guest_memory {
    int fd;              /* shared memory's file; -1: it is this process' own, or not there yet */
    int pagemap_fd;      /* tells which pages the kernel has given us; -1: nobody tells */
    uint64_t size_bytes; /* sum of all regions */
    uint8_t *host;       /* the first byte */
    size_t region_count;
    struct memory_region regions[MEMORY_REGIONS_MAX]; /* ascending by gpa, never overlapping */
    uint64_t *dirty;                                  /* one bit per page, for writes by this process */
    bool tracking;                                    /* set while `dirty` is kept (atomic) */
    bool detached; /* some region is a private copy of a file (memory_map_file): pages not given may hold data too */
    enum memory_pages pages;
};

/* @size_bytes: a multiple of the page size within MEMORY_BYTES_MIN and _MAX. Needs no KVM. */
int memory_init(struct guest_memory *m, uint64_t size_bytes, struct error *err);
/* The same with the host's pages chosen. Those of a hugetlb pool are set aside at once: -ENOMEM in words where there
 * are too few. */
int memory_init_pages(struct guest_memory *m, uint64_t size_bytes, enum memory_pages pages, struct error *err);
/* The same of a kind. */
int memory_init_kind(struct guest_memory *m, uint64_t size_bytes, enum memory_pages pages, enum memory_kind kind,
                     struct error *err);
void memory_finish(struct guest_memory *m);
/* The descriptor that another VMM is to be handed: borrowed. -ENOTSUP in words for memory that is this process' own. */
int memory_share(const struct guest_memory *m, struct error *err);
/* Awaited memory is what @fd, another VMM's memory_share, has from now on; @fd becomes the memory's, also on failure. A file of
 * another size, or one that could be made smaller under us, is refused. Before vCPUs run. */
int memory_adopt(struct guest_memory *m, int fd, struct error *err);

/* @size bytes of guest memory at @gpa, or NULL unless they lie wholly inside one region. @size 0 gives NULL.
 * The guest may change the bytes at any moment: copy out what is to be checked, then use the copy. */
void *memory_at(const struct guest_memory *m, uint64_t gpa, uint64_t size);
/* Copies that check the range and mark what they write; false when the range is not guest memory. */
bool memory_read(const struct guest_memory *m, uint64_t gpa, void *to, uint64_t size);
bool memory_write(struct guest_memory *m, uint64_t gpa, const void *from, uint64_t size);
/* Zero everything: a machine that resets keeps its memory, one that starts anew must not see the old. */
void memory_clear(struct guest_memory *m);

/* The guest has no use for @size bytes at @gpa any more (whole pages): give them back to the host. What it reads
 * there later is not defined. False when the range is not guest memory or not of whole pages; the kernel's refusal is
 * none: then the pages just stay. */
bool memory_discard(struct guest_memory *m, uint64_t gpa, uint64_t size);

/* From now on region @index is what @fd holds from @offset on, read when touched and copied when written. Before
 * vCPUs run. -ENOTSUP, without words, for memory of huge pages. */
int memory_map_file(struct guest_memory *m, size_t index, int fd, uint64_t offset, struct error *err);
/* The first stretch of pages of region @index, from *page on, that may hold anything: *pages is 0 when there is none.
 * Not touched by looking; who reads what is told here makes the kernel map zeros at most. */
void memory_next_data(const struct guest_memory *m, size_t index, uint64_t *page, uint64_t *pages);
/* How much that is in all. */
uint64_t memory_used_bytes(const struct guest_memory *m);

/* This process has written @size bytes at @gpa. Nothing happens unless tracking is on. Call it AFTER the write:
 * a page that is fetched between write and mark is sent again, one marked before the write could be missed. */
void memory_mark_dirty(struct guest_memory *m, uint64_t gpa, uint64_t size);
/* Begin and end of keeping `dirty`; starting clears it. Negative errno when there is no room for the bitmap. */
int memory_tracking_start(struct guest_memory *m, struct error *err);
void memory_tracking_stop(struct guest_memory *m);
/* OR the bits of region @index into @bitmap (one bit per page of the region, size/4096/8 rounded up to 8 bytes)
 * and clear them here. */
void memory_tracking_fetch(struct guest_memory *m, size_t index, uint64_t *bitmap);
/* The same without clearing them. */
void memory_tracking_peek(const struct guest_memory *m, size_t index, uint64_t *bitmap);

#endif
