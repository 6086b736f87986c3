/* One Raft server: the replicated log of the controllers, on a loop and a thread of its own.
 *
 * The rest of the controller never sees libraft. It gives a state machine (struct raft_machine), proposes commands
 * and is called back; all waiting for disks and peers happens on the node's thread.
 *
 *   any thread --raft_node_propose()--> queue --+
 *                                               |   node's thread: group, raft_apply, apply to the machine
 *   reply loop <--callback(status, result)------+
 *
 * Threads: raft_node_create, raft_node_destroy and all callbacks belong to the thread of `reply_loop`; every other
 * function here may be called from any thread between them. No callback runs from inside the call that asked for it,
 * raft_node_destroy excepted: it answers everything outstanding before it returns.
 *
 * Index: libraft tells a state machine no log index. The node counts commands itself: the first command ever
 * committed has index 1, the next 2, with no gaps, the same on each controller; the count is kept in the header of
 * each snapshot (raft_frame.h) and goes on from there after a restart. It is this index that users see
 * (X-Drover-Index).
 *
 * Failure: when libraft gives up (its state becomes "unavailable") nothing can be saved by going on: `fatal` is
 * called, or the process ends with RAFT_NODE_EXIT_STATUS, for its supervisor to start it again. */
#ifndef CONTROLLER_RAFT_RAFT_NODE_H
#define CONTROLLER_RAFT_RAFT_NODE_H

#include "common/bytes.h"
#include "common/error.h"
#include "common/loop_meter.h"

#include <pthread.h>
#include <uv.h>

#define RAFT_NODE_COMMAND_BYTES_MAX (1u << 20)         /* one command */
#define RAFT_NODE_PROPOSALS_MAX 4096u                  /* accepted and not yet answered */
#define RAFT_NODE_PROPOSAL_BYTES_MAX (16u << 20)       /* the same, in bytes */
#define RAFT_NODE_BARRIERS_MAX 8192u                   /* readers waiting for a barrier */
#define RAFT_NODE_MEMBERS_MAX 16u                      /* servers in the configuration */
#define RAFT_NODE_ADDRESS_MAX 256u                     /* bytes of "host:port", NUL included */
#define RAFT_NODE_EXIT_STATUS 70                       /* of a process whose raft server gave up (EX_SOFTWARE) */

struct raft_node;

/* The replicated state machine. apply, snapshot and release run on the node's thread; restore inside raft_node_create, on
 * the caller's, and later on threads of its own; there is no apply and no snapshot meanwhile. The node takes `lock` for
 * writing around apply and for reading around snapshot; restore, which may take long, takes it by itself for the moment in which it puts
 * the new state in the old one's place. Other threads read the state under the read lock: while a snapshot of the leader's
 * is restored they see the old one (raft_restore.c). */
struct raft_machine {
    void *ctx;
    pthread_rwlock_t *lock;
    /* Apply a committed command: deterministic, no clock, no random, no I/O, and it cannot fail: a command that no
     * longer fits changes nothing and says so in its result. @entry (8-byte aligned) is borrowed until return.
     * *ret_result (NULL before the call) goes to the callback of whoever proposed the command on this server, or to
     * release where nobody waits. */
    void (*apply)(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result);
    /* Append the whole state to @out. */
    void (*snapshot)(void *ctx, struct bytes_writer *out);
    /* Replace the whole state, taking the lock for the exchange. @data has passed its checksum and is borrowed. An error
     * (a newer format) is fatal: the server does not start, or ends. The state is whole at every moment. */
    int (*restore)(void *ctx, const void *data, size_t size, struct error *err);
    /* Free a result nobody waits for; may be NULL where results are always NULL. Any thread. */
    void (*release)(void *ctx, void *result);
};

enum raft_node_role { /* of this server at this moment */
    RAFT_NODE_FOLLOWER,
    RAFT_NODE_CANDIDATE,
    RAFT_NODE_LEADER, /* a hint: only a barrier or a committed command proves it */
    RAFT_NODE_UNAVAILABLE,
};

enum raft_node_vote { /* of a member */
    RAFT_NODE_SPARE,   /* known, but gets no log */
    RAFT_NODE_STANDBY, /* gets the log, has no vote */
    RAFT_NODE_VOTER,
};

/* Who leads; to the reply loop, whenever role, term or leader changes, and once after the start.
 * A new leader has applied all that was acknowledged before only after a raft_node_barrier of its own succeeds. */
struct raft_node_leader {
    enum raft_node_role role;
    uint64_t term;
    uint64_t leader_id; /* 0 where none is known */
    char leader_address[RAFT_NODE_ADDRESS_MAX];
};
typedef void (*raft_node_leader_cb)(void *arg, const struct raft_node_leader *leader);
/* Commands up to @index are applied here (coalesced: the newest index only). On followers too. */
typedef void (*raft_node_applied_cb)(void *arg, uint64_t index);
/* libraft gave up, on the node's thread; must not return to normal work. */
typedef void (*raft_node_fatal_cb)(void *arg, const char *text);
/* A member of the same cluster has a higher epoch: this server belongs to a majority that was given up. On the node's
 * thread. It must not be started again; where this returns, the server goes on as one that nobody talks to. */
typedef void (*raft_node_superseded_cb)(void *arg, uint64_t epoch);

struct raft_node_config {
    const char *dir;            /* data directory; must exist */
    uint64_t id;                /* > 0, never used again after its directory is lost: it may have voted */
    const char *address;        /* "host:port", "[::1]:port", as the other members reach this one */
    const char *listen_address; /* where to bind; NULL = address */
    /* Mutual TLS 1.3 (raft_transport.h): PEM text, copied. */
    const char *cluster_id;
    uint64_t epoch; /* of the cluster: members of another one are refused (raft_transport.h) */
    const char *certificate_pem, *key_pem, *ca_pem;

    struct raft_machine machine;
    uv_loop_t *reply_loop;
    raft_node_leader_cb leader; /* may be NULL */
    raft_node_applied_cb applied; /* may be NULL */
    raft_node_fatal_cb fatal; /* NULL: log and end the process */
    raft_node_superseded_cb superseded; /* may be NULL */
    void *arg;                /* of the four above */

    /* 0 = the default in brackets, measured: DESIGN "Raft". */
    unsigned election_timeout_ms;   /* [500] */
    unsigned heartbeat_ms;          /* [50] */
    unsigned connect_retry_ms;      /* [200] */
    unsigned install_timeout_ms;    /* [3000] a snapshot sent again after */
    unsigned snapshot_threshold;    /* [8192] entries after which a snapshot is taken; up to 3/8 less, by id */
    unsigned snapshot_trailing;     /* [4096] entries kept behind it for slow followers, at most... */
    uint64_t log_bytes_max;         /* [16 MiB] or twice the last snapshot: after so many bytes there is a snapshot
                                       too, and half of them are kept behind it: a log never fills a disk */
    size_t deferred_bytes_max;      /* [32 MiB] entries that wait while a snapshot is restored; beyond, the node waits */
    unsigned proposals_max;         /* [RAFT_NODE_PROPOSALS_MAX] */
    unsigned proposal_bytes_max;    /* [RAFT_NODE_PROPOSAL_BYTES_MAX] */
};

struct raft_node_member {
    uint64_t id;
    char address[RAFT_NODE_ADDRESS_MAX];
    enum raft_node_vote vote;
    uint64_t match_index; /* leader only: log entries known to be on its disk; else 0 */
};

/* Everything worth showing; raft indexes count log entries, `index` counts commands. */
struct raft_node_status {
    uint64_t id;
    struct raft_node_leader leader;
    uint64_t index;         /* commands applied */
    uint64_t raft_applied;  /* log entries: applied, */
    uint64_t raft_commit;   /* known to be committed, */
    uint64_t raft_last;     /* in the log */
    uint64_t configuration_index; /* of the newest committed configuration */
    bool configuration_pending;   /* the members below are of one that is not committed yet */
    unsigned member_count;
    struct raft_node_member members[RAFT_NODE_MEMBERS_MAX];
    unsigned proposals;       /* waiting or in flight */
    uint64_t proposal_bytes;
    uint64_t commands_refused; /* -EAGAIN */
    uint64_t groups;           /* log entries proposed here */
    uint64_t reads_asked;      /* rounds of questions to the voters that readers were answered by */
    uint64_t reads_logged;     /* barrier entries in the log for them */
    bool no_space;             /* proposals are refused until the disk has room */
    uint64_t disk_writes, disk_write_us, disk_write_us_max; /* log writes, their time in all, the slowest */
    uint64_t applies, apply_us, apply_us_max;               /* groups applied, time in the machine */
    uint64_t snapshots_taken, snapshots_restored, snapshots_postponed; /* postponed: raft_guard.h */
    uint64_t snapshot_bytes, snapshot_us;                   /* of the last one taken */
    uint64_t restore_us;                                    /* of the last one restored */
    bool restoring;            /* a snapshot of the leader's: the machine is behind `raft_applied` */
    uint64_t entries_deferred; /* that had to wait for that, ever */
    struct loop_meter_counts turns;                         /* of the node's loop */
    uint64_t installs_dropped, cuts_held, writes_held;      /* raft_guard.h */
    uint64_t reserve_bytes, reserves_given_up;              /* raft_reserve.h */
};

/* --- Offline: the directory's server is not running ------------------------------------------------------------- */

/* Make @dir (which must exist and hold no raft data) the first and only voter of a new cluster.
 * -EEXIST where it holds data already. Called once per cluster; a joining server starts on an empty directory. */
int raft_node_bootstrap(const char *dir, uint64_t id, const char *address, struct error *err);

/* What a directory holds, its whole log taken for committed. */
struct raft_node_content {
    uint64_t term;       /* of the newest log entry or, without one, of the snapshot */
    uint64_t last_index; /* log entries */
    uint64_t index;      /* commands */
};
/* Load @dir into the machine (restore and apply, in this thread, without its lock). The log's files are tidied as at each
 * start of a server; nothing else changes. -ENOENT where there is neither log nor snapshot. */
int raft_node_inspect(const char *dir, uint64_t id, const struct raft_machine *machine,
                      struct raft_node_content *ret_content, struct error *err);

/* Quorum lost for good: write into the log of @dir a configuration in which @id is the only voter. Run once, on the
 * survivor with the longest log; the other survivors are wiped and join anew. The server must then be started with a
 * higher epoch than the lost ones have. */
int raft_node_recover(const char *dir, uint64_t id, const char *address, struct error *err);

/* --- Life ----------------------------------------------------------------------------------------------------- */

/* Load the directory, restore the machine's state and start the server and its thread. The config's strings are
 * copied. Blocks while the log is read (1 s per 100,000 entries). -ENOSPC: no room for the log; nothing is lost. A
 * directory that cannot be trusted is an error that says how to go on. */
int raft_node_create(const struct raft_node_config *config, struct raft_node **ret_node, struct error *err);

/* Stop cleanly, answer everything outstanding (-ECANCELED: not in the log; -EINPROGRESS: unknown), join the thread,
 * free. The reply loop must run once more for its closed handle. NULL is fine. */
void raft_node_destroy(struct raft_node *node);

/* --- Commands --------------------------------------------------------------------------------------------------- */

/* @status 0: committed and applied here, @result is the machine's and now the callee's (free it as the machine's
 * release does). Otherwise result is NULL:
 *   -ENOTCONN     this server does not lead; the command is not in the log, ask the leader
 *   -EINPROGRESS  outcome unknown: leadership was lost while it was in the log. It may be applied later or never:
 *                 propose again under the same command id
 *   -ENOSPC       refused, a majority has no room for it (ERROR_NO_SPACE); works again when there is room
 *   -ECANCELED    the server stops; not in the log */
typedef void (*raft_node_propose_cb)(void *arg, int status, void *result);

/* Have @command (malloc, 1..RAFT_NODE_COMMAND_BYTES_MAX bytes) committed and applied. Commands of one thread are put
 * into the log in order, grouped with what else waits. 0: @command now belongs to the node and @cb fires exactly
 * once, later, on the reply loop. Negative: nothing taken, @cb never fires: -EAGAIN the queue is full (try later: 503
 * with Retry-After), -E2BIG, -ENOTCONN, -ENOSPC, -ECANCELED. */
int raft_node_propose(struct raft_node *node, void *command, size_t size, raft_node_propose_cb cb, void *arg);

/* Linearizable read: when @cb fires with status 0, this server led after the call and its machine holds every command
 * acknowledged, by anyone, before it. Costs one exchange with a majority, shared by all readers that wait together, and
 * mostly no log entry (raft_read.c). Return values and statuses as of raft_node_propose, but never -EINPROGRESS; @index is
 * the machine's index then. */
typedef void (*raft_node_barrier_cb)(void *arg, int status, uint64_t index);
int raft_node_barrier(struct raft_node *node, raft_node_barrier_cb cb, void *arg);

/* --- Members -------------------------------------------------------------------------------------------------- */

enum raft_node_change {
    RAFT_NODE_ADD,      /* as spare, then promoted when it has caught up; its process must be running for that */
    RAFT_NODE_ADD_SPARE,
    RAFT_NODE_PROMOTE,  /* spare or standby to voter; waits until it has caught up */
    RAFT_NODE_DEMOTE,   /* voter to standby: gets the log, has no vote */
    RAFT_NODE_REMOVE,   /* a leader may remove or demote itself; one of two voters only hands over, -ENOTCONN */
    RAFT_NODE_TRANSFER, /* leadership to @id, 0 = any voter */
};

/* @status 0 or negative errno with @err in words (-EINPROGRESS: unknown outcome, look at the members). */
typedef void (*raft_node_change_cb)(void *arg, int status, const struct error *err);

/* Leader only, one at a time (-EBUSY). @address is for the two ADD forms. 0: @cb fires exactly once. */
int raft_node_change(struct raft_node *node, enum raft_node_change change, uint64_t id, const char *address,
                     raft_node_change_cb cb, void *arg, struct error *err);

/* A drill: for @seconds from now each log write takes @delay_ms longer, as on a slow disk. Any thread. */
void raft_node_slow_writes(struct raft_node *node, unsigned delay_ms, unsigned seconds);

/* --- Looking -------------------------------------------------------------------------------------------------- */

/* A copy, as of the end of the node's last loop turn. */
void raft_node_status(struct raft_node *node, struct raft_node_status *ret_status);
const char *raft_node_role_name(enum raft_node_role role); /* "follower", "candidate", "leader", "unavailable" */
const char *raft_node_vote_name(enum raft_node_vote vote); /* "spare", "standby", "voter" */

#endif
