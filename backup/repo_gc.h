/* The collection of what no backup needs any more, while backups are being made, with no lock that anybody has to
 * hold.
 *
 *   1 mark       read all complete backups: which chunks are needed
 *   2 repack     packs of which little is needed: their needed frames are copied, as they are, into new packs
 *   3 condemn    W: write which packs are to go ("condemned/")
 *                A: list the sessions at work ("active/") and write their names beside
 *   4 wait       until each session of A has ended, or has been silent for so long that it is given up: then
 *                F: write its fence, and only then take its name out of "active/". (Not ended: the next run goes on
 * here.) 5 mark again L: list the backups once more; what is needed after all is taken from the list of what is to go
 *   6 sweep      a new index without the packs that go; remove the old indexes, then those packs, then the list
 *
 * That no listed backup ever needs what was removed. Let a backup B need pack P of a list W that was swept. B's
 * session did R: write its name, before V: read the condemned lists, before it used any chunk; and at its end wrote
 * its manifest M.
 *
 *   - R after A: then V is after W, so B knew that P was condemned and did not use it (chunk_index_has); if it needed
 * a chunk of it, it stored that anew, in a pack of another name (the salt, pack.h).
 *   - R before A: then B was in A, or had ended before. Ended before: M is before L, so L's mark found P needed. In A
 * and ended by itself: the same. In A and given up: fence F is before L. M before L: the mark saw it (and takes the
 * fence away again, for B is complete). M after L: F is before M. Whoever lists B reads manifests first and fences
 * after: it saw M, so it sees F, and does not count B. B's maker looks for its fence after M and says that the backup
 * failed.
 *
 * So nothing depends on how long anybody sleeps, on clocks, or on a judgement who is dead being right: a session that
 * was given up wrongly loses its backup, never another's. It does depend on what store.h promises: what was written
 * is seen by every list that begins later. Where that is late (a directory on NFS with cached attributes), the grace
 * is for it: packs younger than that are not condemned. The grace also keeps what an interrupted backup has stored
 * for its next attempt.
 *
 * Two collections at once: each, after W, lists the condemned lists; who sees one that it did not know when it marked
 * takes its own back and says that another is at work. At least the later W sees the earlier. So lists that stay were
 * made one knowing the other, and a chunk never counts as kept by a pack that another list removes. Sweeping one list
 * twice does no harm: after L nobody can come to need what is on it.
 *
 * Fences are never removed, nor the manifests that they keep from being listed; they are small, and there is one for each backup whose maker
 * was killed, or silent for so long. A fence would mean nothing any more once its session can write no manifest any more, and that nobody can
 * know: the maker may stand still for weeks between its last look at the store and its put (a suspended machine, a hung file server), and a put
 * that was sent before the maker died may still be on its way in a server. Age is no proof, nor is a manifest that is there already: a put is
 * repeated where its answer was lost. And a fence that was removed too early would list a backup that is not whole.
 *
 * What is not promised: a session that was silent for REPO_SILENCE_MS and wakes up at the very moment at which a
 * collection gives it up, which is itself killed before it has looked again, may say that its backup is complete and
 * have it not listed. The other way round, listed and not whole, cannot be.
 *
 * A backup that cannot be read (damaged manifest or list) stops the collection before it removes anything: what that
 * needs cannot be told. It is named; verify and the next backup may heal it, or it has to be removed. */
#ifndef BACKUP_REPO_GC_H
#define BACKUP_REPO_GC_H

#include "backup/backup_writer.h"

enum {
    REPO_GC_GRACE_MS = 24 * 3600 * 1000,
    REPO_GC_KEEP_PERCENT = 60, /* packs with less that is needed are repacked */
    REPO_GC_INDEXES_MAX = 32,  /* of these, and of the objects that the packs need, more are made few */
};

struct repo_gc_options {
    uint64_t grace_ms;     /* packs younger than that stay */
    uint64_t silence_ms;   /* sessions silent for so long are given up */
    unsigned keep_percent; /* 0: nothing is repacked */
    bool dry_run;
    backup_progress_cb progress;
    void *progress_arg;
    const atomic_bool *cancel;
};
struct repo_gc_result {
    uint64_t packs, removed_packs, removed_bytes; /* there were; removed (dry run: would be condemned) */
    uint64_t repacked_packs, written_bytes;
    uint64_t waiting_packs; /* condemned; sessions are at work that may have seen them */
    uint64_t waiting_sessions, given_up_sessions;
};

/* -EBADMSG in words: a backup cannot be read; -EBUSY: another collection is at work. */
int repo_gc(struct repo *repo, const struct repo_gc_options *options, struct repo_gc_result *ret_result,
            struct error *err);

#endif
