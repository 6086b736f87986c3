/* Making and giving up the spare file. It is made in libuv's pool, for allocation may take a while; nothing waits for it, and
 * where it fails (no room, a file system that can't) it is tried again. */
#include "controller/raft/raft_reserve.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define RESERVE_NAME "reserve"
#define RESERVE_SNAPSHOTS 2u
#define RESERVE_SEGMENTS 2u      /* as many as libraft keeps prepared */
#define RESERVE_SEGMENTS_LEFT 3u /* log files that must still fit beside it: the one in use and the prepared ones */

static uint64_t reserve_wanted(const struct raft_reserve *reserve, uint64_t snapshot_bytes)
{
    return RESERVE_SEGMENTS * reserve->segment_bytes +
           RESERVE_SNAPSHOTS * MAX(snapshot_bytes, (uint64_t)RAFT_SNAPSHOT_BYTES_MIN);
}

static uint64_t reserve_size(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

void raft_reserve_init(struct raft_reserve *reserve, uv_loop_t *loop, const char *dir, uint64_t segment_bytes)
{
    *reserve = (struct raft_reserve){.loop = loop, .segment_bytes = segment_bytes};
    reserve->path = xasprintf("%s/%s", dir, RESERVE_NAME);
    reserve->bytes = reserve_size(reserve->path);
}

void raft_reserve_finish(struct raft_reserve *reserve)
{
    ASSERT(!reserve->working);
    free(TAKE_PTR(reserve->path));
}

bool raft_reserve_give_up_in(const char *dir)
{
    char *path CLEANUP_FREE = xasprintf("%s/%s", dir, RESERVE_NAME);

    return unlink(path) == 0;
}

/* --- Making it -------------------------------------------------------------------------------------------------- */

static bool reserve_has_room(int fd, uint64_t more_bytes)
{
    struct statvfs fs;

    return fstatvfs(fd, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize >= more_bytes;
}

/* In the pool. */
static void reserve_make(uv_work_t *work)
{
    struct raft_reserve *reserve = CONTAINER_OF(work, struct raft_reserve, work);
    uint64_t before = reserve_size(reserve->path), wanted = reserve->wanted_bytes;
    CLEANUP_FD int fd = open(reserve->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    reserve->found_bytes = before;
    if (fd < 0)
        return;
    if (!reserve_has_room(fd, wanted - MIN(before, wanted) + RESERVE_SEGMENTS_LEFT * reserve->segment_bytes) ||
        posix_fallocate(fd, 0, (off_t)wanted) != 0) {
        if (before == 0)
            unlink(reserve->path); /* an empty or partly allocated one is of no use */
    }
    reserve->found_bytes = reserve_size(reserve->path);
}

static void reserve_made(uv_work_t *work, int status UNUSED)
{
    struct raft_reserve *reserve = CONTAINER_OF(work, struct raft_reserve, work);

    reserve->working = false;
    reserve->bytes = reserve->found_bytes;
}

/* --- Its life --------------------------------------------------------------------------------------------------- */

static void reserve_give_up(struct raft_reserve *reserve)
{
    if (unlink(reserve->path) != 0 && errno != ENOENT)
        return;
    log_warning("raft-reserve", "%llu MiB are given up, so that a snapshot can be written on a full disk",
                (unsigned long long)(reserve->bytes >> 20));
    reserve->bytes = 0;
    reserve->given_up++;
}

void raft_reserve_turn(struct raft_reserve *reserve, uint64_t now_ms, bool stuck, uint64_t snapshot_bytes)
{
    if (!stuck)
        reserve->stuck_since_ms = 0;
    else if (reserve->stuck_since_ms == 0)
        reserve->stuck_since_ms = now_ms;
    if (reserve->working)
        return;
    if (stuck) {
        if (reserve->bytes > 0 && now_ms - reserve->stuck_since_ms >= RAFT_RESERVE_PATIENCE_MS)
            reserve_give_up(reserve);
        return;
    }
    /* snapshots grow little by little: a quarter too small will do */
    if (reserve->bytes >= reserve_wanted(reserve, snapshot_bytes) * 3 / 4 || now_ms < reserve->next_try_ms)
        return;
    reserve->next_try_ms = now_ms + RAFT_RESERVE_RETRY_MS;
    reserve->wanted_bytes = reserve_wanted(reserve, snapshot_bytes);
    reserve->working = uv_queue_work(reserve->loop, &reserve->work, reserve_make, reserve_made) == 0;
}
