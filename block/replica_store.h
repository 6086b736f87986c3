/* A copy of a VM's disks on another host, which goes from point to point: each complete on all disks, or not there at all.
 *
 *   replica.json          which point is the last complete one (struct replica_record)
 *   disks                 layered disks (layer_disk.h): snapshot p<number> is that point, their tops take what comes next
 *
 *            begin               write, zero                   commit: p<n+1> on each disk, then replica.json
 *   AT REST ------> RECEIVING --------------> RECEIVING ----------------------------------------------> AT REST at n+1
 *      ^                |                                                     |
 *      '--------- close, a crash: what came is thrown away at the next begin -'
 *
 * replica.json decides: it is replaced when every disk has its snapshot, lastingly, and only then the older snapshots go and their
 * layers are merged. Whatever begins next puts each disk back to the point that it names. So a power cut at any moment leaves the
 * last complete point or the next one, on all disks the same.
 *
 * A session (follow) is the other way to bring a replica forward: the owner writes straight to the disks, until both sides are level and then
 * all the time (block_mirror.h, guarded). Only the owner knows when they are level, and only the cluster's record says it for all
 * (controller/fsm/replica_state.h): nothing is written here at that moment. So whoever comes next is told by the record what the session has
 * come to, and puts the disks back to point n, or has what they show as point n+1:
 *
 *            follow, session s                  settle or promote: point n+1, session s
 *   AT REST ------------------> FOLLOWING s -----------------------------------------------> AT REST at n+1
 *   at n                             |
 *      ^                             | begin, follow or promote: point n
 *      '-----------------------------'
 *
 * What a flush of the disks had made to last is there in the first case, after any power cut; n stays whole until then.
 *
 * To become the VM's own disks (promote) they are put back to the point, replica.json says so for good, and the snapshots' names
 * go; moving them is the caller's, and done again it comes to the same.
 *
 * An owner of a lower epoch than the last point's is refused: it is one that has lost the VM. Blocking; one thread, and one
 * process at a time (the caller holds a lock). */
#ifndef BLOCK_REPLICA_STORE_H
#define BLOCK_REPLICA_STORE_H

#include "block/layer_disk.h"

enum { REPLICA_DISKS_MAX = 16 };
#define REPLICA_RECORD_FILE "replica.json"

struct replica_places {
    struct layer_pool *records; /* where replica.json is; borrowed */
    /* The pool that @disk is in, made where it is missing; -ENOENT: it is not, and nothing is to be made (promote). It stays the callee's
     * until the store is closed. */
    int (*pool)(void *arg, const char *disk, struct layer_pool **ret_pool, struct error *err);
    /* Which of its host's pools that is in: an id, the callee's; NULL: the directory of the host. It is written into the record, and a replica
     * that has a disk elsewhere is not gone on with. May be NULL: none is in a pool. */
    const char *(*place)(void *arg, const char *disk);
    bool (*is_volume)(void *arg, const char *disk); /* written into the record, too; NULL: none is */
    void *arg;
};

struct replica_store {
    struct replica_places places;
    struct replica_record record;
    struct layer_disk *disks[REPLICA_DISKS_MAX]; /* open between begin and close, in the record's order */
    struct layer_pool *pools[REPLICA_DISKS_MAX];
    unsigned count; /* of those */
    uint64_t epoch; /* of the point under way */
    bool unsure;    /* replica.json may be of the next point already: nothing is put back before it has been read again */
};

/* What there is of @vm; where there is nothing a new one begins, without a point, unless @make is false (-ENOENT). -EBADMSG in
 * words: damaged. replica_store_close follows 0. */
int replica_store_open(const struct replica_places *places, const char *vm, bool make, struct replica_store *ret_store,
                       struct error *err);
/* A point by the record: of replica `id`, and the session that brought it forth; 0: none, it was sent (begin to commit). */
struct replica_known {
    const char *id; /* NULL: no point is known */
    uint64_t number, session;
};

/* What a session has left becomes point number + 1 where @known is that one; where it is not it stays for replica_store_begin and
 * _follow to throw away. They come after this: a point that the record promises is lost by them otherwise. */
int replica_store_settle(struct replica_store *store, const struct replica_known *known, struct error *err);
/* The next point comes, of the owner of @epoch, with these disks (struct replica_disk). -ESTALE: a lower epoch than the last point's;
 * -EINVAL: other disks than those of the last point, or one in another pool; -EBUSY: it becomes the VM's own. */
int replica_store_begin(struct replica_store *store, uint64_t epoch, const struct object_list *disks, struct error *err);
/* Of disk @disk by its place; in sectors, within the disk (-ERANGE). @compare: what is the same already is not written, for a point
 * that comes whole. -ENOSPC. */
int replica_store_write(struct replica_store *store, unsigned disk, uint64_t offset, void *data, size_t size, bool compare,
                        struct error *err);
int replica_store_zero(struct replica_store *store, unsigned disk, uint64_t offset, uint64_t size, struct error *err);
/* All of the point is here. After 0 it lasts, and record.number is its number. After an error it may be complete nevertheless: who
 * opens the replica anew sees it. */
int replica_store_commit(struct replica_store *store, struct error *err);
/* What came since the last point is thrown away now, to give its room back. Errors: the next begin tries again. */
void replica_store_give_up(struct replica_store *store);
/* Session @session begins, of the owner of @epoch, with these disks: they are open for it (store->disks) until the store is closed, above
 * point record.number. Errors as begin; each session has a higher number than one before it that was not settled (-ESTALE). */
int replica_store_follow(struct replica_store *store, uint64_t epoch, uint64_t session, const struct object_list *disks, struct error *err);
/* To be the disks of the VM's next owner: @known is what it was told of, which may be older than the last point.
 * -ENOENT, -ESTALE in words. */
int replica_store_promote(struct replica_store *store, const struct replica_known *known, uint64_t epoch, struct error *err);
void replica_store_close(struct replica_store *store);

#endif
