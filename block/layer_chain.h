/* A disk made of layers, as a struct block: the lowest layer first, the last one is the top and the only one written.
 *
 * An index in memory, a byte for each cluster, says which layer shows through (0: none, reads as zeroes), so that a
 * read costs the same however many layers there are. Requests and what becomes of them:
 *
 *   READ                               pieces, one for each stretch of one layer; one piece: the caller's own buffers
 *                                      and what will be read next is asked for, where that is in other layers (read_ahead.h)
 *   WRITE where the top has data,      straight to the top's data file; at its end the clusters are the top's
 *         or nobody has (a hole)
 *   WRITE of part of a cluster that    copy on write: the cluster is read from below, changed in memory and written
 *         is a lower layer's           whole; other writes to it wait meanwhile
 *   WRITE_ZEROES, DISCARD              the top's data: a hole in it; whole clusters of a lower layer: state zero;
 *                                      parts of such: copy on write, or nothing for DISCARD
 *   FLUSH                              the data file's, or layer_flush where states have changed; and layer_flush of the
 *                                      layer `behind` the top, while a switch to a new top has not flushed that
 *
 * What is done to clusters of the top (state data stays data; a hole in it reads as zeroes) needs no order among
 * requests in flight. The first change of a lower layer's cluster does: it is `slow`, and every write that touches its
 * range waits until it is done.
 *
 * A point in time needs no request in flight that changes something, but may not wait for flushes, which take as long as
 * the host's disk likes: while the chain is held, changes wait and reads and flushes go on (layer_chain_hold).
 *
 * Failures: a piece's error is the request's; -EAGAIN (the lease, block.h) of any piece makes the whole request to be
 * submitted again, which is harmless. A cluster counts as the top's only when its write has succeeded.
 *
 * `wake` is asked to have layer_chain_run called soon from the owner's loop: for requests that ended within submit.
 * Everything with the owner's lock held, as block.h says. */
#ifndef BLOCK_LAYER_CHAIN_H
#define BLOCK_LAYER_CHAIN_H

#include "block/layer.h"
#include "block/read_ahead.h"

enum { LAYER_CHAIN_MAX = 128, LAYER_CHAIN_HOT_MAX = 64 };

struct layer_merge;

struct layer_chain {
    struct block block;
    struct layer *layers[LAYER_CHAIN_MAX]; /* owned */
    unsigned count;
    uint8_t *owner; /* of each cluster: 0, or 1 + the layer that shows through */
    uint64_t clusters;
    void (*wake)(void *arg); /* NULL: only drain runs it */
    void *wake_arg;
    struct list active;        /* struct chain_op: slow ones under way */
    struct list waiting;       /* struct chain_op: touch one of these */
    struct list ended;         /* struct chain_op: within submit */
    struct layer_merge *merge; /* the one under way; NULL: none */
    struct read_ahead ahead;
    bool draining;             /* no new pieces of a merge */
    unsigned misses;           /* pieces that wait for the source of a disk that is not whole */
    unsigned hot_count;
    uint64_t hot[LAYER_CHAIN_HOT_MAX]; /* clusters that were read there: filled next, the newest first */
    struct layer *behind;      /* right below the top, with writes that are not flushed yet: a FLUSH is one of both */
    void (*merge_ready)(void *arg); /* see layer_merge_conclude; NULL: a merge ends where its last I/O does */
    void *merge_ready_arg;
    bool held;
    unsigned changing;          /* WRITE, WRITE_ZEROES, DISCARD that have begun and not ended */
    void (*hold_news)(void *arg); /* see layer_chain_hold */
    void *hold_arg;
    /* The right to it goes to another process or comes back (block_own): layer_disk_own. NULL: nobody is kept out. */
    int (*own)(void *arg, bool own, struct error *err);
    void (*released)(void *arg); /* last call of block_close, when the layers are closed; may be NULL */
    void *released_arg;          /* of both */
};

/* Of @layers, lowest first, which become the chain's on success; the top open for writing unless @read_only.
 * -EINVAL in words where they do not follow each other. */
int layer_chain_create(struct layer **layers, unsigned count, bool read_only, struct layer_chain **ret_chain,
                       struct error *err);
/* Give up all layers, with all that was written made to last, for others to use; the chain keeps its size and takes no
 * requests. Nothing is in flight. Negative errno, and all is as before. */
int layer_chain_empty(struct layer_chain *chain);
/* The layers of an empty chain, as for layer_chain_create. */
int layer_chain_fill(struct layer_chain *chain, struct layer **layers, unsigned count, struct error *err);
/* Tell of requests that ended within submit, and let a merge go on. */
void layer_chain_run(struct layer_chain *chain);
/* Finish what is in flight now, and let a merge go on meanwhile: for owners without a loop. */
void layer_chain_progress(struct layer_chain *chain);
static inline struct layer *layer_chain_top(const struct layer_chain *chain)
{
    return chain->layers[chain->count - 1];
}
/* -1: not part of it */
int layer_chain_find(const struct layer_chain *chain, const struct layer_id *id);

/* From here to layer_chain_release changes wait that have not begun; reads and flushes go on. @news is called, from
 * layer_chain_run, while layer_chain_is_quiet is true, and from a drain that has broken the hold: it waits for all, so the
 * hold is over (`held`). Not held before. */
void layer_chain_hold(struct layer_chain *chain, void (*news)(void *arg), void *arg);
/* Held, and no change is under way. */
static inline bool layer_chain_is_quiet(const struct layer_chain *chain)
{
    return chain->held && chain->changing == 0;
}
/* What has waited begins. Does nothing where it is not held. */
void layer_chain_release(struct layer_chain *chain);
/* @top, empty and open for writing, becomes the top; what was is only read from now on. Drained. -E2BIG in words. */
int layer_chain_push(struct layer_chain *chain, struct layer *top, struct error *err);
/* The same, but what was has writes that are not flushed yet: it becomes `behind`, and is so until a flush of it has
 * succeeded. Drained, or quiet: a flush that is in flight ends where it began. Cannot fail: -E2BIG and `behind` have been
 * looked at. */
void layer_chain_switch(struct layer_chain *chain, struct layer *top);
/* Take layer @index out, after its clusters have been copied into its neighbour @to, above it or below, and flushed
 * there. The caller has it then. Its requests are drained; where it was `behind`, nothing is any more. */
struct layer *layer_chain_take(struct layer_chain *chain, unsigned index, unsigned to);
/* For merges: keep other writes off [first, last] until unlocked. False: one is under way there. */
struct chain_op;
struct chain_op *layer_chain_lock(struct layer_chain *chain, uint64_t first, uint64_t last);
void layer_chain_unlock(struct layer_chain *chain, struct chain_op *op);

/* What has changed above layer @since (-1: all that is not zeroes): the next stretch of clusters from @from on that
 * have the same answer. False: none follows. */
bool layer_chain_changed(const struct layer_chain *chain, int since, uint64_t from, uint64_t *ret_first,
                         uint64_t *ret_count, enum layer_state *ret_state);

#endif
