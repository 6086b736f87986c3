/* An image of a Ceph cluster (RBD) as a struct block, through librados and librbd. Both are loaded when the first
 * cluster is opened, so that a host without Ceph needs neither: -ENOSYS in words where they are missing.
 *
 * Ownership: an image that is opened for writing has Ceph's exclusive lock, taken explicitly, so that no other client gets
 * it by asking, and keeps the owner's epoch in its metadata. Who comes with a higher epoch than that breaks the lock, by
 * which Ceph blocklists the old client: what that has under way or sends later fails at Ceph's own doors (-ESHUTDOWN), for
 * 30 days: a host may stand still for longer than the hour that is Ceph's own choice.
 * Who comes with a lower one is refused (-EPERM); one of the same epoch is told -EBUSY, unless whoever asks knows the
 * other to be dead (`replaces`). One that is looked at, found to be of a lower epoch and followed by a later one in just that moment loses the
 * lock to us, and we refuse ourselves then: the later one has to be opened anew.
 *
 * Durability: what has been written is with Ceph's OSDs when the request ends, for librbd's cache is off: nothing of it is lost with
 * this process. A FLUSH is as block.h says.
 * Failures: a Ceph cluster that does not answer is waited for, as long as it takes: requests do not fail because monitors or
 * OSDs are away. Opening a cluster fails after RBD_CONNECT_S.
 *
 * Threads: the struct block under its owner's lock; librbd calls `wake` on threads of its own. Programs that forked
 * since the cluster was opened must not use it.
 * Sources: rados/librados.h and rbd/librbd.h of Ceph 16.2, whose functions and numbers are declared in the .c file. */
#ifndef BLOCK_BLOCK_RBD_H
#define BLOCK_BLOCK_RBD_H

#include "block/block.h"

enum { RBD_CONNECT_S = 15 };

struct rbd_cluster; /* a connection, for one pool */

struct rbd_cluster_options {
    const char *conf; /* its ceph.conf, absolute */
    const char *user; /* without "client." */
    const char *key;  /* of the user; NULL: from the keyring that conf tells of */
    const char *pool;
};

enum { RBD_MARK_BYTES = 64 };

struct rbd_status {
    char mark[RBD_MARK_BYTES]; /* which pool of which Ceph cluster it is: no other has the same, nor one that is made anew */
    uint64_t size_bytes, free_bytes; /* of data, as replication has it now */
};

/* -ENOSYS: no librbd; -ENOENT: no such pool, file or user; -EACCES: the key is wrong; -ETIMEDOUT. All in words. */
int rbd_cluster_open(const struct rbd_cluster_options *options, struct rbd_cluster **ret_cluster, struct error *err);
int rbd_cluster_status(struct rbd_cluster *cluster, struct rbd_status *ret_status, struct error *err);
/* No image of it is open. NULL is allowed. */
void rbd_cluster_close(struct rbd_cluster *cluster);

/* An image of zeroes, which takes no room yet. One of that name and size that is there already is fine; -EEXIST: it has
 * another size. */
int rbd_image_create(struct rbd_cluster *cluster, const char *name, uint64_t size_bytes, struct error *err);
/* At least so large; larger is fine. Who has it open for writing does it, where somebody has. -ENOENT. */
int rbd_image_grow(struct rbd_cluster *cluster, const char *name, uint64_t size_bytes, struct error *err);
/* None of that name is fine. -EBUSY in words: somebody has it open. */
int rbd_image_remove(struct rbd_cluster *cluster, const char *name, struct error *err);
/* Its size; -ENOENT. */
int rbd_image_size(struct rbd_cluster *cluster, const char *name, uint64_t *ret_size_bytes, struct error *err);

struct block_rbd_options {
    const char *image;
    bool read_only;          /* takes no lock */
    uint64_t epoch;          /* of the owner, to write */
    bool replaces;           /* whoever has it with the same epoch */
    bool replaces_dead;      /* the same, but only where Ceph has found that it is dead: that takes half a minute, with -EBUSY until then */
    bool unowned;            /* the lock is not taken yet: block_own does that, and is needed before anything is written */
    void (*lost)(void);      /* a request has found that Ceph keeps us out for good, and is not told of: does not return, for another
                                process may have it by now, or begin anew. NULL: it ends with -ESHUTDOWN */
    void (*wake)(void *arg); /* have block_rbd_run called soon under the owner's lock; any thread. NULL: only drain */
    void *wake_arg;
};

/* -ENOENT, -EPERM, -EBUSY (see above), -EINVAL: a size that is no multiple of 512. @cluster outlives the block. */
int block_rbd_open(struct rbd_cluster *cluster, const struct block_rbd_options *options, struct block **ret_block,
                   struct error *err);
/* Call done of what has ended. */
void block_rbd_run(struct block *b);

enum { RBD_ORIGIN_BYTES = 65 };

/* What all of the image began as, as whoever filled it has written down at the end: a word of the caller's. "": nothing was written down. It goes
 * with the image. The second is for who owns it, with what was written before flushed: -ESHUTDOWN for one that is kept out. */
int block_rbd_origin(struct block *b, char ret_origin[RBD_ORIGIN_BYTES], struct error *err);
int block_rbd_set_origin(struct block *b, const char *origin, struct error *err);

#endif
