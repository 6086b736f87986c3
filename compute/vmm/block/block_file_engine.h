/* What block_file.c and the two engines behind it share: the file, and how requests come to it and leave it.
 *
 * An engine gets each request once, by submit, with room for it in `in_flight` ensured by block.h's caller; it ends
 * it by block_complete, on the I/O thread or within drain. */
#ifndef COMPUTE_VMM_BLOCK_FILE_ENGINE_H
#define COMPUTE_VMM_BLOCK_FILE_ENGINE_H

#include "compute/vmm/block/block_file.h"

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
};

#endif
