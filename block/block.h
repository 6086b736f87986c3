/* Disks as devices see them: one vtable, so that a file, a network or a stack of filters can stand behind it.
 *
 * A driver (the VMM's files, block_sync.h; later rbd, nbd) ends the stack; what stands above others (layer_chain.h;
 * filters such as mirror or throttle) is a struct block too, that hands requests on with its own `done`. It uses what
 * is below it like anybody: the agent and backups run the same stack over blocking calls. Asynchronous throughout:
 *
 *   block_submit() < 0  : refused, done never fires
 *   block_submit() == 0 : done fires exactly once, later, on the owner's thread (in the VMM: the I/O thread with the
 *                         device lock held) -- or inside block_drain, which is called from there as well
 *
 * Durability (the only promise): what was completed before a FLUSH was submitted is on stable storage when the FLUSH
 * completes with 0. There is no order between requests in flight.
 *
 * The fail-stop hook: `may_submit` is asked by the driver on the thread that is about to touch the disk, immediately
 * before it does: before each system call of each request. False completes the request with -EAGAIN, untouched or done
 * in part: the VM has lost the right to its disk (its lease ran out), the guest must not see an error, and so the device
 * keeps the request and submits it again, whole, after the VM goes on. A request whose system call has begun is not stopped: the lease's margin is there
 * for those (lease.h). */
#ifndef BLOCK_BLOCK_H
#define BLOCK_BLOCK_H

#include <sys/uio.h>

#include "common/base.h"
#include "common/error.h"
#include "common/list.h"

enum {
    BLOCK_SECTOR_BYTES = 512,          /* offsets and sizes are multiples of it */
    BLOCK_REQUEST_BYTES_MAX = 1 << 25, /* read or write: 32 MiB, so that no request takes long */
    BLOCK_UNTRIED_MAX = 63,            /* see block_read_likely */
};

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,        /* offset, size, iovecs unused */
    BLOCK_DISCARD,      /* contents undefined afterwards */
    BLOCK_WRITE_ZEROES, /* reads zero afterwards */
    BLOCK_OPS
};

struct block_request;
typedef void (*block_done_cb)(struct block_request *, int result); /* 0 or negative errno */

/* Embedded by the submitter; it and what it points at stay until done. */
struct block_request {
    enum block_op op;
    bool may_unmap;             /* WRITE_ZEROES: space may be given back */
    uint64_t offset, size;      /* bytes */
    const struct iovec *iovecs; /* READ, WRITE: together exactly `size` bytes */
    unsigned iovec_count;
    block_done_cb done;

    int result; /* the driver's, from here on */
    struct list link;
};

struct block;

struct block_ops {
    /* Begin @request, already checked by block_submit. 0 or negative errno as above. */
    int (*submit)(struct block *, struct block_request *);
    /* Carry @request, a READ checked by block_read_at_hand, out here and now, where its data is in memory and nothing is waited
     * for: 0, and `done` is not called. -EAGAIN: it is not, and was not touched but for its buffers. NULL: never. */
    int (*read_at_hand)(struct block *, const struct block_request *);
    /* [@offset, @offset + @size), which is within the disk, is likely to be read soon: have it brought into memory, if that is
     * to be had without a wait. Whether it comes is not told. A drain waits for it, too. NULL: no use for it. */
    void (*will_read)(struct block *, uint64_t offset, uint64_t size);
    /* Return when no request is in flight; `done` of those that were has been called from here. The I/O loop need not
     * run meanwhile. With the device lock held. */
    void (*drain)(struct block *);
    /* Submissions from plug(true) to plug(false) may be gathered into one. NULL: no use for it. */
    void (*plug)(struct block *, bool plugged);
    /* Let another process have it, with all that was written made to last; or take it back, -EBUSY in words when another
     * has it. Nothing is in flight. With the device lock held. NULL: nobody is kept out. */
    int (*own)(struct block *, bool own, struct error *err);
    /* Release the block and what it owns. Nothing is in flight. */
    void (*close)(struct block *);
    /* Make it larger, a multiple of BLOCK_SECTOR_BYTES that is no less than it has; the new part reads as zeroes. Sets
     * size_bytes. Durable after the next FLUSH. NULL: it cannot. */
    int (*grow)(struct block *, uint64_t size_bytes, struct error *err);
    /* Where data may be from @from on: 1 and the next stretch that does not surely read as zeroes; 0: none follows;
     * negative errno. Blocking. NULL: not known. */
    int (*next_data)(struct block *, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);
    /* It is only read from now on: others may read it, too. Sets read_only. NULL: nobody is kept from it. */
    void (*share)(struct block *);
};

/* Embedded by each driver and filter. */
struct block {
    const struct block_ops *ops;
    uint64_t size_bytes;  /* capacity: a multiple of BLOCK_SECTOR_BYTES */
    uint32_t block_bytes; /* the size that is best written whole: a power of two >= 512 */
    bool read_only;
    bool can_discard, can_write_zeroes;
    bool lost_with_process; /* what was written and not flushed does not outlive the process, be the host as well as it may */
    bool (*may_submit)(void *arg); /* see above; any thread; NULL: always */
    void *may_submit_arg;
    /* Told of each WRITE, DISCARD and WRITE_ZEROES before it is begun (changed_map.h); NULL: nobody wants to know. */
    void (*changes)(void *arg, uint64_t offset, uint64_t size);
    void *changes_arg;
    unsigned in_flight; /* submitted, done not called yet; kept by block_submit and block_complete */
    unsigned misses, untried; /* block_read_likely's: reads to leave untried after the last that was not at hand; still to be left */
};

/* Checks the range, the alignment, read-only and the sums, then hands @request to the driver. -EINVAL, -ERANGE,
 * -EROFS, -EOPNOTSUPP or the driver's own. */
int block_submit(struct block *b, struct block_request *request);
/* READ without a wait, where that is possible: 0, and it is done (done, result and link are not used). -EAGAIN: submit it;
 * or as block_submit. */
int block_read_at_hand(struct block *b, const struct block_request *request);
/* The same, for those who ask of each read before they submit it: as long as nothing is found at hand, all but one of
 * BLOCK_UNTRIED_MAX reads are not looked for (-EAGAIN), or a disk that is not in memory would begin each of them twice. */
int block_read_likely(struct block *b, const struct block_request *request);
/* As ops->will_read; nothing where [@offset, @offset + @size) is not within the disk. */
void block_will_read(struct block *b, uint64_t offset, uint64_t size);
/* For drivers: call request->done, on the I/O thread or within drain. */
void block_complete(struct block *b, struct block_request *request);
/* The part [@skip, @skip + @size) of @count segments, into @to, which has room for as many; returns how many it took. */
unsigned block_iovecs_slice(const struct iovec *from, unsigned count, uint64_t skip, uint64_t size, struct iovec *to);
/* For drivers: ask the fail-stop hook. */
bool block_may_submit(const struct block *b);
void block_drain(struct block *b);
/* Around several submissions: nothing need begin before block_unplug. */
void block_plug(struct block *b);
void block_unplug(struct block *b);
/* Make the disk larger while it is used. -EINVAL in words for less than it has or an odd size, -EOPNOTSUPP where it
 * cannot grow, or what the driver says. */
int block_grow(struct block *b, uint64_t size_bytes, struct error *err);
/* As ops->next_data; where that is not known, all of it. */
int block_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);
/* Let others read it; no writes any more. Nothing is in flight. */
void block_share(struct block *b);
/* One request here and now: submits it and drains @b. @buffer: of READ and WRITE. 0 or negative errno. */
int block_now(struct block *b, enum block_op op, uint64_t offset, void *buffer, size_t size);
/* The right to it between processes, for a migration's hand-over. */
int block_own(struct block *b, bool own, struct error *err);
/* Drains, then releases. NULL is allowed. */
void block_close(struct block *b);

#endif
