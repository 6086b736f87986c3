/* Guards that libraft 0.22.1 needs to be safe, with public API only, and a meter of its log writes.
 *
 * A. InstallSnapshot while this server takes a snapshot itself: libraft first applies stale entries and then follows
 *    a null pointer. The guard drops the message; the leader sends it again after its install timeout. One that
 *    arrives while no snapshot is being taken is let through, and no snapshot is started then (libraft checks that).
 * B. A follower's commit index can go backwards. A snapshot taken at that moment would carry the lower index, and a
 *    restart would apply entries twice. The state machine's snapshot callback answers RAFT_BUSY then
 *    (raft_guard_may_snapshot); libraft asks again later.
 * C. When term or vote cannot be written, libraft (built without assertions) goes on with what it has in memory, and
 *    may vote twice in one term after a restart. The guard calls `broken`, which must end the server at once. The
 *    same for a log write or truncation that is refused outright.
 *
 * D. (raft_propose.c) A server elected while a majority reports full disks is a leader for whom libraft has forgotten
 *    to note it (raft_step fails after the conversion): when it steps down, its requests are not failed, and later
 *    libraft calls them successful when another leader's entries are applied at their indexes. So we believe no
 *    status: a command is acknowledged when a group with its own number is applied, a barrier only while the server
 *    still leads the term in which it was asked for, and a server that steps down answers what is in flight itself.
 *
 * E. libraft keeps references to log entries while a message with them is on its way. When the log is compacted
 *    meanwhile it miscounts them: the memory is freed while raft_uv still sends from it (what is sent is whatever lies
 *    there by then), and freed again afterwards. The guard sends a copy and gives the references back at once.
 *
 * F. When libraft loads a snapshot to send, it may get a newer one than it asked for. It then corrects the index in
 *    the message, but not the term: the follower believes that its log ends in an older term than it does. It votes
 *    for servers that lack committed entries, or meets a "conflict" below its commit index, and the error path of
 *    that frees the batch twice and aborts. The guard puts the right term into the message.
 *
 * G. (raft_members.c) A leader that changes the members before an entry of its own term is committed can make a
 *    configuration whose majorities need not overlap with those of one that another leader has begun: acknowledged
 *    commands are lost. libraft does not look; we begin no change before a barrier of this term has been applied.
 *
 * H. A server that applies two configurations in one go, as after a restart, takes snapshots in between: what is
 *    applied is newer then than what it calls the committed configuration. A restart from such a snapshot votes by
 *    that: two leaders in one term. raft_guard_may_snapshot waits until the newest is committed.
 *
 * I. A promotion that was under way when leadership was lost in the way of D stays behind. Handling it as a follower is
 *    an error in the middle of a message, whose memory is then freed twice. The guard forgets such a change before
 *    libraft sees the next event; raft_members.c answers it.
 *
 * J. raft_uv forgets to cut its log when the cut is asked for while a snapshot of this server's own is being written: the
 *    cut waits behind a barrier that only the file of the entries before it knows, and that file is closed at once. What
 *    should have gone stays on the disk beside what is written in its place: the next start drops entries, or refuses with
 *    "closed segment ... is past last snapshot". The guard holds the cut back, and all writes after it, until the first
 *    turn after the snapshot; meanwhile no InstallSnapshot is let in.
 *
 * K. On a full disk raft_uv takes all room that there is for log files, and a snapshot, the only thing that frees any, waits:
 *    for room for its own file, and then for the log file that entries handed in before it wait for. The guard hands over no
 *    entries that may not fit into what is prepared, and none while a snapshot waits on a disk that has little room left; it
 *    tells libraft then that there is none. What the snapshot needs is the reserve's to give (raft_reserve.h).
 *
 * L. A follower that gets configurations inside a batch notes for their place where the batch begins. So it never
 *    learns that one is committed, or does not take it back when it is cut from the log; of several in a batch it
 *    calls the first committed and forgets the others. And one that gets two before it applies the first goes back
 *    by two when the second is cut. Its snapshots then name the members of long ago (H does not notice), and it is
 *    elected by majorities that are none: another command at the same index. The guard hands libraft each
 *    configuration at the head of a batch of its own, and tells it first that the one before is committed: the leader
 *    that began the second knew.
 *
 * M. A write is under way; its entries are cut from the log, and a later leader brings the same ones again. libraft
 *    takes the end of the first write for that of the second, and says that they are on disk: the cut is still to
 *    come, and a crash then loses entries that were counted for a majority. The guard says of a write that was cut
 *    that it was cancelled.
 *
 * N. A follower whose log begins behind the entries it is sent takes them for new, and puts them at the end of its
 *    log (the check of what comes before them only fails where there is something before them). The guard answers
 *    that all up to its snapshot is there, which is true of every leader's log.
 *
 * O. The only voter makes itself leader of the term that it is in, at start or when it has become the only one,
 *    without beginning a new term: it may have led that term before a crash, or another one has, and members without
 *    a vote may have entries of that term that it has not. They keep theirs: other commands at the same index. The
 *    guard begins a new term first, and lets nobody hand leadership to the only voter.
 *
 * P. A server that does not know yet that it has a vote does not vote. Where it is needed, because those who had one
 *    before are gone or removed, nobody can ever be elected. The guard lets every server vote: whether that counts
 *    is the candidate's to say. And a server without a vote never forgets its last leader, for whose sake it refuses: the
 *    guard forgets one that has been silent for an election timeout.
 *
 * Q. A candidate that was told to take over, or that has been promised a majority, asks for votes in ever higher
 *    terms until somebody answers. One that was removed meanwhile is answered by nobody, and throws down each leader
 *    there is. The guard makes a candidate begin again by asking who would vote for it, and without the right to
 *    disturb.
 *
 * R. (raft_members.c) Of two voters the leader does not give up its own vote: when it dies before the other one
 *    knows, each waits for ever for the other's. It hands leadership on first.
 *
 * S. A leader sends entries while it still writes them. Where it takes the vote of the only other voter and dies, it
 *    has forgotten that, and waits for ever for the vote of one who knows that it has none. The guard keeps back
 *    what the only voter has not written itself.
 *
 * T. raft_uv cuts its log in a thread, and forgets it when that fails: for want of space, or because of a file that a crash in
 *    the middle of an earlier cut has left. What is written next then stands behind the entries that should be gone, and
 *    the next start counts it at indexes of its own. The guard waits for room before it cuts, hands over nothing until
 *    the files show that the cut is done, and calls `broken` where it is not: the next start has the log uncut and
 *    cuts it again. (raft_dir.h has the looking, and removes what crashes have left.)
 *
 * U. libraft commits and applies entries that this server has not written yet; guard K may even hold them back. A snapshot
 *    taken then is ahead of raft_uv's log, which does not know: the next file begins with entries that the snapshot has,
 *    and where no finished file is left to count from, the next start takes them for those behind it. The guard puts such
 *    a snapshot as one that is installed, after which raft_uv counts from it; the writes that wait for what it has are
 *    done then without being written.
 *
 * V. An InstallSnapshot that arrives while another is being installed is forgotten by libraft without being freed: a leader
 *    that sends again to a slow disk costs its follower the memory of a whole snapshot each time. The guard drops and
 *    frees it; the leader's heartbeats, which come meanwhile, tell the follower all else that is in it.
 *
 * All were found by the simulator (tests/sim), which breaks each on purpose and must find it: `sim --mutations`. But J, K,
 * T and U are raft_uv's own and were found on full disks (tests/process/test_disk_full.py); test_raft_guard.c shows them. V was
 * found by a leak checker. M and N were found by reading; test_raft_guard_told.c has them. Q was found (a removed candidate, seed 1807 of member-storm before P was
 * there), but no mutation shows it in few enough seeds.
 *
 * Use: prepare the embedded `io` (raft_uv_init, or the simulator's own), raft_guard_wrap, then raft_init on
 * &guard->io. The struct must outlive the raft server. Thread: the raft loop's. */
#ifndef CONTROLLER_RAFT_RAFT_GUARD_H
#define CONTROLLER_RAFT_RAFT_GUARD_H

#include "common/list.h"

#include <raft.h>
#include <stdatomic.h>

/* KiB of prepared log files: below that libraft takes no commands, and guard K hands nothing over. */
#define RAFT_CAPACITY_KIB_MIN 4096u
#define RAFT_CAPACITY_KIB_NONE 1u /* what guard K tells libraft; not 0, to know raft_uv's word from ours */
/* Guard T: for a cut that waits for nothing any more; a disk that stalls for so long ends the server. */
#define RAFT_CUT_MS_MAX 30000u

struct raft_guard {
    struct raft_io io; /* the wrapped one; its methods are replaced in place */

    bool taking;                  /* a snapshot of ours is being written */
    const char *dir;              /* guard T: set by the owner where the io is a raft_uv, and is his; else NULL */
    uint64_t cut_room_bytes;      /* with it: the free space without which no cut is begun, more than a log file */
    unsigned cut_ms_max;
    raft_index cutting;           /* guard T: what raft_uv is to have cut, and has not yet; else 0 */
    raft_time cutting_since_ms;   /* since it has waited for nothing */
    unsigned in_flight;           /* writes that are raft_uv's now */
    raft_index jumping;           /* guard U: the snapshot being written has entries up to here that wait; else 0 */
    struct list held;             /* guards J, K and T: cuts and writes, in their order; libraft bounds them as it bounds what
                                     it has in flight, and owns the entries */
    uint64_t handed_bytes, handed_before_bytes; /* to raft_uv, in this turn of the loop and in the one before */
    unsigned short uv_capacity;   /* as raft_uv last told it, while io.capacity says RAFT_CAPACITY_KIB_NONE */
    bool room_guarded;            /* guard K: set by the owner where the io is a raft_uv */
    bool disk_short;              /* guard K: set by the owner, now and then */
    raft_index next_index;        /* of the next entry to be written */
    struct list appends;          /* struct guard_append: all that libraft waits for (guard M) */
    struct list late;             /* struct guard_append: done, in order, and libraft is to hear of it later (a drill) */
    _Atomic uint64_t late_us, late_until_us; /* how much later, and until when writes are so; of any thread */
    struct raft_io_snapshot_put put; /* stands in for libraft's own request meanwhile */
    struct raft_io_snapshot_put *put_inner;
    raft_io_recv_cb recv;
    raft_io_tick_cb tick;
    raft_time heard_ms;      /* from a leader, last (guard P) */
    raft_index loaded_index; /* of the snapshot that libraft is being handed, while it is; else 0 */
    raft_term loaded_term;
    int (*inner_snapshot_get)(struct raft_io *, struct raft_io_snapshot_get *, raft_io_snapshot_get_cb);
    int (*inner_load)(struct raft_io *, raft_term *, raft_id *, struct raft_snapshot **, raft_index *,
                      struct raft_entry *[], size_t *);
    void (*inner_close)(struct raft_io *, raft_io_close_cb);
    int (*inner_start)(struct raft_io *, unsigned, raft_io_tick_cb, raft_io_recv_cb);
    int (*inner_snapshot_put)(struct raft_io *, unsigned, struct raft_io_snapshot_put *, const struct raft_snapshot *,
                              raft_io_snapshot_put_cb);
    int (*inner_append)(struct raft_io *, struct raft_io_append *, const struct raft_entry[], unsigned,
                        raft_io_append_cb);

    int (*inner_send)(struct raft_io *, struct raft_io_send *, const struct raft_message *, raft_io_send_cb);
    int (*inner_set_term)(struct raft_io *, raft_term);
    int (*inner_set_vote)(struct raft_io *, raft_id);
    int (*inner_truncate)(struct raft_io *, raft_index);

    /* Guard C: must not return to libraft (in a process of its own: end it). */
    void (*broken)(struct raft_guard *guard, const char *what, int raft_code);
    uint64_t (*now_us)(void); /* NULL: writes are not metered */
    uint64_t installs_dropped;
    uint64_t cuts_held; /* guard J at work */
    uint64_t writes_held; /* guards J, K and T at work */
    uint64_t snapshots_failed; /* taken, and not written */
    uint64_t writes, write_us, write_us_max; /* log writes that reached the disk */
};

/* Replace the methods of guard->io, which must be ready for raft_init. */
void raft_guard_wrap(struct raft_guard *guard, void (*broken)(struct raft_guard *, const char *, int),
                     uint64_t (*now_us)(void));
/* Once in each turn of the loop, before anything is handed to libraft: what is held goes on where it may. */
void raft_guard_turn(struct raft_guard *guard);
/* A drill: for @seconds from now libraft hears of each log write @delay_ms later than it was done, as it would from a slow disk.
 * Any thread; needs now_us. */
void raft_guard_slow(struct raft_guard *guard, unsigned delay_ms, unsigned seconds);
/* A server that ends without raft_close (a simulated crash): let go of what is held. */
void raft_guard_forget(struct raft_guard *guard);
/* Guard T: whether a cut waits for room, so that there is reason to give up a reserve. */
bool raft_guard_waits_for_room(const struct raft_guard *guard);
/* Whether a snapshot taken now would carry the right index (guard B) and configuration (H), and not cover a
 * cut that is held back (J: on the disk it would stand before entries that should be gone, of an older term). */
bool raft_guard_may_snapshot(struct raft *raft);

#endif
