/* What block_file.c and the two engines behind it share: the file, and how requests come to it and leave it.
 *
 * An engine gets each request once, by submit, with room for it in `in_flight` ensured by block.h's caller; it begins
 * it by block_file_begin and ends it by block_file_end, on the I/O thread or within drain.
 *
 * Through the page cache there is one FLUSH at a time, and those that come meanwhile share the next one: the kernel tells of
 * a write that failed to one of them only, and the pages count as clean from then on. So the first failure is all failures
 * after it (`lost`): a second try would find nothing to write, and say that all is well. */
#ifndef COMPUTE_VMM_BLOCK_FILE_ENGINE_H
#define COMPUTE_VMM_BLOCK_FILE_ENGINE_H

#include "compute/vmm/block/block_file.h"
#include "compute/vmm/block/block_file_io.h"

struct block_file;

struct block_file_engine {
    /* Get ready to work on f->fd; sets f->engine_state. */
    int (*start)(struct block_file *f, struct error *err);
    void (*submit)(struct block_file *f, struct block_request *request);
    /* Have it brought into the page cache (block.h); NULL: it cannot without a wait. */
    void (*will_read)(struct block_file *f, uint64_t offset, uint64_t size);
    /* Return when nothing is in flight (block.h). */
    void (*drain)(struct block_file *f);
    /* Gather (true) or let go (false) what is submitted in between; NULL: no use for it. */
    void (*plug)(struct block_file *f, bool plugged);
    /* Nothing is in flight. Also after a start that failed half-way. */
    void (*stop)(struct block_file *f);
};
extern const struct block_file_engine block_file_threads, block_file_uring;

struct block_file {
    struct block block;
    int fd;
    char *name; /* for messages; owned */
    uint32_t direct_align; /* 0: through the page cache */
    struct io_loop *loop;
    struct uring *uring; /* borrowed; of block_file_uring */
    const struct block_file_engine *engine;
    void *engine_state; /* owned by the engine */
    struct block_request *flushing; /* through the page cache; NULL: none is */
    struct list riding;             /* struct block_request: end with it */
    struct list flushes;            /* struct block_request: came meanwhile */
    int lost; /* -ENOTRECOVERABLE: a FLUSH through the page cache has failed, and what it was to keep is gone; 0: none has */
};

/* For engines; any thread. A FLUSH after one that has lost something ends without a call. */
void block_file_begin(struct block_file_io *io, const struct block_file *f, struct block_request *request);
/* request->result is set. */
void block_file_end(struct block_file *f, struct block_request *request);

#endif
