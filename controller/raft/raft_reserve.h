/* A spare file beside the log, given up when the disk is full: so that the snapshot which would free the log can be written.
 *
 * libraft removes log files only when a snapshot is written, and on a full disk none can be: a server whose own log has filled
 * its disk would stay so for good. The spare holds room for snapshots, and for the two log files that libraft keeps prepared
 * and would take first. It is given up when a snapshot has waited for too long on a disk without room, or when a start finds
 * none, and is made again when there is plenty.
 *
 * Its name is `reserve`, in the Raft directory. Thread: the raft loop's, but raft_reserve_give_up_in. */
#ifndef CONTROLLER_RAFT_RAFT_RESERVE_H
#define CONTROLLER_RAFT_RAFT_RESERVE_H

#include "common/base.h"

#include <uv.h>

#define RAFT_SNAPSHOT_BYTES_MIN (1u << 20) /* what a snapshot is taken to need at least */
#define RAFT_RESERVE_PATIENCE_MS 1500u /* libraft tries a failed allocation again after a second */
#define RAFT_RESERVE_RETRY_MS 5000u    /* between two tries of making it */

struct raft_reserve {
    uv_loop_t *loop;
    char *path;             /* ours */
    uint64_t segment_bytes; /* of a log file */
    uint64_t bytes;         /* held now */
    uint64_t stuck_since_ms, next_try_ms; /* 0: not stuck; not before */
    uint64_t given_up; /* how often */
    bool working;      /* `work` is in the pool, which sees only the next two and path */
    uint64_t wanted_bytes, found_bytes;
    uv_work_t work;
};

/* @dir: the Raft directory, which need not hold a reserve yet. */
void raft_reserve_init(struct raft_reserve *reserve, uv_loop_t *loop, const char *dir, uint64_t segment_bytes);
/* After the loop has run empty. */
void raft_reserve_finish(struct raft_reserve *reserve);
/* Some ten times a second, until the loop is to end. @stuck: a snapshot is on its way to a disk that is short of room;
 * @snapshot_bytes: of the last one, 0 = not known. Logs when the reserve is given up. */
void raft_reserve_turn(struct raft_reserve *reserve, uint64_t now_ms, bool stuck, uint64_t snapshot_bytes);
/* For a start without room: whether there was a reserve in @dir, which is gone now. Any thread. */
bool raft_reserve_give_up_in(const char *dir);

#endif
