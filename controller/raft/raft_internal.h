/* The inside of a raft_node, shared by raft_node.c (life), raft_propose.c (commands), raft_read.c (readers),
 * raft_apply.c (the state machine as libraft sees it), raft_restore.c (snapshots of the leader's) and raft_members.c. Nothing outside
 * controller/raft includes this.
 *
 * Two halves: what is marked "locked" is touched under `lock` by any thread; all else belongs to the node's thread
 * once raft_node_create has returned. The rule for libraft: none of its functions is called from its own callbacks;
 * callbacks leave notes, and node_turn (a uv_check handle, once per loop turn) acts on them. */
#ifndef CONTROLLER_RAFT_RAFT_INTERNAL_H
#define CONTROLLER_RAFT_RAFT_INTERNAL_H

#include "controller/raft/raft_confirm.h"
#include "controller/raft/raft_deferred.h"
#include "controller/raft/raft_dir.h"
#include "controller/raft/raft_guard.h"
#include "controller/raft/raft_node.h"
#include "controller/raft/raft_reply.h"
#include "controller/raft/raft_reserve.h"
#include "controller/raft/raft_transport.h"

#define RAFT_GROUP_COMMANDS_MAX 512u     /* commands in one log entry */
#define RAFT_GROUP_BYTES_MAX (1u << 20)  /* bytes of one log entry, when it has more than one command */
#define RAFT_GROUPS_INFLIGHT_MAX 8u      /* log entries of ours under way; the rest waits and is grouped */
#define RAFT_LOG_BYTES_MAX (16u << 20)   /* since the last snapshot, where not configured */
#define RAFT_DEFERRED_BYTES_MAX (32u << 20) /* entries that wait for a restore, where not configured */
#define RAFT_SEGMENT_BYTES (8u << 20)    /* of libraft's log files: below 4 MiB it refuses all writes */
#define RAFT_CUT_ROOM_BYTES (RAFT_SEGMENT_BYTES + (64u << 10)) /* a cut writes the rest of one log file anew */
#define RAFT_CONFIRM_MS 150u             /* for the answers to a round of questions; then readers go by the log */
#define RAFT_READ_BY_LOG_MS 1000u        /* for so long */
#define RAFT_NO_SPACE_GRACE_MS 1000u     /* "no space" is also what libraft says before its first segment is ready */
#define RAFT_ROOM_SNAPSHOT_MS 10000u     /* between two snapshots that are taken only to get room */
#define RAFT_DISK_RETRY_MS 200u          /* what failed for want of space is tried again after that */
#define RAFT_TICK_MS 100u

struct raft_node {
    struct raft_machine machine;
    raft_node_fatal_cb fatal_cb;
    void *arg;
    char *dir, *address, *listen_address;
    unsigned proposals_max, proposal_bytes_max;
    struct raft_mailbox *mailbox;

    uv_loop_t loop;
    uv_async_t wake;
    uv_check_t check;
    uv_timer_t tick;
    struct loop_meter meter;
    pthread_t thread;
    bool started; /* raft_start is done, the thread runs */
    bool closing; /* raft_close was called */
    bool failed;  /* raft_node_fatal was called */

    struct raft raft;
    struct raft_fsm fsm;
    struct raft_guard guard;
    struct raft_tracer tracer;
    struct raft_transport *transport;
    struct raft_reserve reserve;

    uint64_t index;          /* commands applied */
    uint64_t log_bytes_max;  /* as configured, like the next two */
    unsigned snapshot_threshold, snapshot_trailing;
    uint64_t log_bytes, log_entries; /* applied since the last snapshot */
    uint64_t turn_apply_us;          /* in the machine, in this turn of the loop */
    uint64_t snapshots_failed;       /* of guard.snapshots_failed, those that were seen here */
    uint64_t room_snapshot_ms;       /* the last snapshot that was asked for because the disk was short */
    char restore_error[512]; /* why a snapshot could not be restored at the start */
    struct raft_restore *restore;  /* raft_restore.c: under way; NULL: none */
    struct raft_deferred deferred; /* entries that wait for it */
    size_t deferred_bytes_max;
    uint64_t proposer;       /* random, of this start */
    uint64_t sequence;       /* of the last group */
    struct list groups;      /* struct group, in flight or orphans */
    unsigned group_count;    /* without orphans */
    uint64_t no_space_since_ms; /* 0: there is space */
    struct raft_confirm confirm;   /* raft_confirm.h; the round under way is for confirm_readers */
    struct list confirm_readers;   /* struct reader */
    uint64_t confirm_since_ms;     /* when it began */
    uint64_t read_by_log_until_ms; /* a round had too few answers: readers go by the log until then */
    struct list barriers;       /* struct barrier, in flight or orphans */
    bool barrier_inflight;      /* one that is no orphan */
    bool barrier_wanted;        /* by raft_members.c, whether anybody reads or not */
    raft_term ready_term;       /* of the newest barrier that was applied while this server led (guard G) */
    struct raft_node_status now; /* ours; copied to `status` at the end of each turn */
    bool told;                   /* the reply loop has been told who leads */
    struct raft_change change_req;     /* embedded for good: libraft may keep a pointer after a failure */
    struct raft_transfer transfer_req;
    struct member_change *change_active; /* the one libraft works on: raft_members.c */

    pthread_mutex_t lock;
    bool stopping;                       /* locked, like all below */
    struct list proposals;               /* struct proposal, waiting */
    unsigned proposal_count;             /* accepted and not yet answered */
    uint64_t proposal_bytes;
    uint64_t commands_refused;
    struct list readers;                 /* struct reader, waiting */
    unsigned reader_count;               /* accepted and not yet answered */
    struct member_change *change;        /* waiting or under way */
    struct raft_node_status status;
};

uint64_t raft_node_now_us(void);
/* The server can't go on: tell the owner, or end the process. */
void raft_node_fatal(struct raft_node *node, const char *format, ...) PRINTF_LIKE(2, 3);

/* raft_apply.c */
void raft_apply_init(struct raft_node *node); /* fill node->fsm */
void raft_apply_tick(struct raft_node *node); /* each RAFT_TICK_MS: on a full disk, see to room for the log */
/* Apply a committed entry to the machine, count it and tell of it. One that cannot be read is fatal. */
void raft_apply_entry(struct raft_node *node, const struct raft_buffer *buf);

/* raft_restore.c */
/* Check a snapshot and have the machine restore it, in this thread: *ret_index commands. -EPROTONOSUPPORT, -EBADMSG or the
 * machine's own error, with words. */
int raft_restore_state(struct raft_node *node, const struct raft_buffer *buf, uint64_t *ret_index, struct error *err);
void raft_restore_done(struct raft_node *node, uint64_t index, uint64_t took_us); /* count it and tell of it */
/* Restore @buf, whose memory is taken over, aside. */
void raft_restore_begin(struct raft_node *node, const struct raft_buffer *buf);
/* An entry is to be applied while node->deferred is busy: it waits. */
void raft_restore_defer(struct raft_node *node, const struct raft_buffer *buf);
void raft_restore_turn(struct raft_node *node); /* take over what is restored, apply a piece of what waits */
void raft_restore_spread(struct raft_node *node); /* before an entry is applied: has this turn had enough of them? */
void raft_restore_stop(struct raft_node *node); /* before raft_close: wait for the thread */

/* Does it lead, and still the same term? */
static inline bool raft_node_leads_in(struct raft_node *node, raft_term term)
{
    return raft_state(&node->raft) == RAFT_LEADER && raft_current_term(&node->raft) == term;
}

/* raft_read.c */
void raft_read_turn(struct raft_node *node); /* answer readers, begin what waits */
void raft_read_stop(struct raft_node *node); /* after raft_close: answer what still waits */
/* From the transport: a question or an answer of member @id. */
void raft_read_received(struct raft_node *node, raft_id id, const struct raft_confirm_message *message);

/* raft_propose.c */
struct group;
/* Why nothing can be accepted at this moment, or 0. With the lock held. */
int raft_node_refusal(const struct raft_node *node);
/* libraft has refused something for want of space, or not: true where that has lasted long enough to be told. */
bool raft_propose_no_space(struct raft_node *node, bool no_space);
void raft_propose_turn(struct raft_node *node); /* hand waiting commands to libraft */
void raft_propose_stop(struct raft_node *node); /* after raft_close: answer what still waits */
/* Where the results of a group of ours go; NULL where it is not ours or no longer waited for. */
struct group *raft_propose_find(struct raft_node *node, uint64_t proposer, uint64_t sequence);
void raft_propose_set_result(struct group *group, unsigned at, void *result);
void raft_propose_set_applied(struct group *group);

/* raft_members.c */
void raft_members_turn(struct raft_node *node);
void raft_members_stop(struct raft_node *node);

#endif
