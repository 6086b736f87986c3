/* The guest as migration/ sees it: memory to copy, a log of what was written, and a state to carry over. Behind the
 * vtable stands a VM (compute/vmm/guest_ops.c) or, in tests, an array.
 *
 * Threads: all calls from one thread, that of the migration. Errors are negative errno with words in @err. */
#ifndef MIGRATION_GUEST_H
#define MIGRATION_GUEST_H

#include "common/base.h"
#include "common/error.h"

#define GUEST_PAGE_BYTES 4096u
#define GUEST_REGIONS_MAX 4u
#define GUEST_HANDLES_MAX 128u /* the kernel takes 253 at once */

struct guest_region {
    uint64_t gpa, size; /* bytes, multiples of GUEST_PAGE_BYTES */
    uint8_t *host;      /* readable and writable by this process */
};

struct guest;
struct stream_writer;
struct stream_states;

struct guest_ops {
    /* Fill @regions, ascending by gpa; returns how many. They never change. */
    size_t (*regions)(struct guest *, struct guest_region regions[GUEST_REGIONS_MAX]);
    /* The first stretch of memory at or after page *page of region @region that may hold something other than zeros:
     * *page and *pages are set, *pages to 0 when there is none any more. Looking at the pages in between might make
     * the host provide memory for them. NULL: look at every page. */
    void (*next_data)(struct guest *, size_t region, uint64_t *page, uint64_t *pages);
    /* Let region @region be what @fd holds from @offset on (a multiple of the page size), read when touched and
     * copied when written. -ENOTSUP, without words: read it instead. NULL: the same. */
    int (*memory_map)(struct guest *, size_t region, int fd, uint64_t offset, struct error *err);
    /* What another process of this host is handed to run this guest in the first's stead, while that still holds it: memory
     * and whatever else there is, as borrowed descriptors in @fds. Returns how many. NULL: cannot. */
    int (*handles_share)(struct guest *, int fds[GUEST_HANDLES_MAX], struct error *err);
    /* The other side: @count descriptors, this side's from now on, also on failure. NULL: cannot. */
    int (*handles_adopt)(struct guest *, const int *fds, size_t count, struct error *err);
    /* From now on keep note of written pages, by the guest or its devices. What the first fetch gives may be every
     * page. */
    int (*dirty_start)(struct guest *, struct error *err);
    /* OR into @bitmap one bit per page of region @region (rounded up to whole uint64_t) that was written since the
     * last fetch, and begin anew. A page copied after the fetch that named it is as it was at that time or later. */
    int (*dirty_fetch)(struct guest *, size_t region, uint64_t *bitmap, struct error *err);
    /* How many pages were written since the last fetch, which stay what the next one gives; 0 where it cannot be told
     * without taking them. NULL: it cannot. */
    uint64_t (*dirty_count)(struct guest *);
    void (*dirty_stop)(struct guest *);
    /* Let the vCPUs run only 100 - @percent of the time; 0: as they like. NULL: cannot. */
    void (*throttle)(struct guest *, unsigned percent);
    /* Sections of STATE that say what another machine must be able to do before memory is sent to it, while the guest
     * runs; and the other machine's judgement. Either NULL: nothing to say. */
    int (*check_save)(struct guest *, struct stream_writer *out, struct error *err);
    int (*check_load)(struct guest *, struct stream_states *states, struct error *err);
    /* vCPUs stand still, I/O in flight is finished: neither memory nor state changes until resume. */
    int (*pause)(struct guest *, struct error *err);
    int (*resume)(struct guest *, struct error *err);
    /* While paused: one STATE section for each vCPU, chip and device. Save may write guest memory (fetch the dirty
     * log once more afterwards). Load into a machine of the same description that has not run, after its memory;
     * every state must be taken. What cannot be loaded is said before anything is changed, as far as that can be
     * known. */
    int (*state_save)(struct guest *, struct stream_writer *out, struct error *err);
    int (*state_load)(struct guest *, struct stream_states *states, struct error *err);
};

struct guest {
    const struct guest_ops *ops;
};

#endif
