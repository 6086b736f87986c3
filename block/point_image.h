/* What a disk held at one instant, to be read at leisure while the disk goes on being written: copy before write.
 *
 *     device --> front ----------------> disk
 *                  |  the old content     ^
 *                  v  goes first          | what has not been written since
 *     reader --> back ----> memory, spill +
 *
 * `front` takes the disk's place for whoever writes to it, `back` is the image. Before a block of 4 KiB is changed for the
 * first time, its content is read into memory; then the writer goes on at once. The content is written to the spill, a
 * local scratch file as large as the disk and sparse, after what the writer writes and a little at a time. So a writer waits
 * for one read of as much of its own disk as it overwrites - not even for that where the disk has it at hand (block.h) -, and
 * for the spill only when POINT_MEMORY_BYTES are on their way there. It never waits for the reader.
 *
 *   of each block        IN_PLACE --front writes--> READING --> HELD (in memory) --> SPILLED
 *                            |  \-- a hole --> ZERO                |                     |
 *                            +------------ back is discarded ------+------> GONE <-------+
 *
 * What lies right behind blocks that were kept before is kept up to the end of its cluster, for who writes there is likely to
 * go on there.
 *
 * Holes and what is GONE are known by clusters of 64 KiB; the blocks of which something is kept by two bytes for each cluster
 * in which something was overwritten.
 *
 * The reader says by a DISCARD of the back that it needs a range no more (whole clusters of it): those cost nothing from
 * then on, and their space in the spill is given back.
 *
 * Failure: when the spill is full or fails, or the old content cannot be read, the image is lost, and only that: front
 * goes on as if it were not there, reads of the back fail with -EIO, `failed` is told once. A DISCARD through the front
 * of blocks that the image still needs is passed over: its contents are undefined anyway.
 *
 * The order that makes it right: a write goes to the disk only when all its blocks have left IN_PLACE and READING, and
 * no read of the back is under way in the same place on the disk.
 *
 * Threads: the owner's lock, as block.h says; front and back under the same one. */
#ifndef BLOCK_POINT_IMAGE_H
#define BLOCK_POINT_IMAGE_H

#include "block/block.h"

enum {
    POINT_CLUSTER_BYTES = 65536,
    POINT_BLOCK_BYTES = 4096,
    POINT_MEMORY_BYTES = 8 << 20, /* of each disk */
};

/* Shared by the images of one VM: what their spills may hold together. */
struct point_budget {
    uint64_t bytes_max, bytes;
    uint64_t bytes_peak;
};

struct point_image_options {
    struct block *disk;  /* borrowed; nothing is in flight: this is the instant */
    struct block *spill; /* owned once this succeeds; as large as the disk, empty */
    struct point_budget *budget;
    uint64_t memory_bytes; /* at most on the way to the spill; a cluster in any case; 0: POINT_MEMORY_BYTES */
    void (*wake)(void *arg); /* have point_image_run called soon from the owner's loop; NULL: only drain runs it */
    void (*failed)(void *arg, const struct error *why); /* may be NULL */
    void *arg;                                          /* of both */
};

struct point_counters {
    uint64_t copied_bytes; /* old content that was kept */
    uint64_t read_bytes;   /* of it, what was not at hand, so that the writer waited for it */
    uint64_t waited;       /* times that the front waited because too many were in memory */
    uint64_t forgotten;    /* clusters that the reader gave back */
};

struct point_image;

/* -ENOMEM in words. */
int point_image_create(const struct point_image_options *options, struct point_image **ret_image, struct error *err);
/* Both live as long as the image. The front's size follows the disk's (point_image_grown), the back's never changes. */
struct block *point_image_front(struct point_image *image);
struct block *point_image_back(struct point_image *image);
/* The reader will not read [@offset, @offset + @size): whole clusters of it are GONE. At any time. */
void point_image_forget(struct point_image *image, uint64_t offset, uint64_t size);
/* The disk has grown. */
void point_image_grown(struct point_image *image);
/* Tell of requests that ended within submit. */
void point_image_run(struct point_image *image);
/* Whether it is lost, and why (may be NULL). */
bool point_image_is_lost(const struct point_image *image, struct error *ret_why);
/* Lose it: the disk is about to go away. Drains; the front must not be used any more. */
void point_image_lose(struct point_image *image, const char *why);
struct point_counters point_image_counters(const struct point_image *image);
/* Drains both, lets the disk go, closes the spill. NULL is allowed. */
void point_image_destroy(struct point_image *image);

#endif
