/* The task volume-move: a child copies a volume that no VM has from one pool of this host to another.
 *
 *   start --> WORKING (a child) --> over
 *
 * The child makes the copy aside, synced, and gives it its name at the end; the volume itself is only read. Neither it nor the agent
 * removes anything of a volume: what is left of one copy or the other is removed by orders (agent_volumes.h) when the controllers have
 * heard how it ended. Begun twice: a copy that has its name is whole, and one that has not is made anew. Cancel, or the end of the
 * child: the volume is where it was.
 *
 * In the child, what the last VM's VMM has written is read, and the copy written, by a process with the rights of that VMM's user,
 * which owns the layers: links and names in there lead it to nothing that this user could not open. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"

enum { COPY_BYTES = 1 << 20, TELL_BYTES = 64 << 20, DIRECTORY_BYTES = 32 };

struct volume_task {
    struct agent_task *task;
    struct task_child *child;
    char id[37]; /* of the volume: later orders of the task may be without it */
};

static void finish(struct volume_task *v, enum operation_state state, const struct error *err)
{
    struct agent_task *task = v->task;
    free(v);
    task->state = NULL;
    if (!task->agent->stopping)
        agent_volumes_tick(task->agent); /* what is to be removed may be so now */
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, err);
}

static void child_told(const struct task_seen *seen, void *arg)
{
    struct volume_task *v = arg;
    if (!v->task->stopping)
        agent_task_progress(v->task, seen->step, seen->progress_done, seen->progress_total);
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct volume_task *v = arg;
    struct error err = {.code = 0};
    v->child = NULL;
    if (seen->state == operation_state_CANCELLED)
        error_set(&err, -ECANCELED, ERROR_CANCELLED, "cancelled: the volume stays where it is");
    else if (seen->state != operation_state_SUCCEEDED)
        error_set(&err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    finish(v, (enum operation_state)seen->state, &err);
}

static void start(struct agent_task *task)
{
    struct error err = {.code = 0};
    const struct volume_move *move = &task->order.move;
    if (!OBJECT_HAS(task_order, &task->order, move)) {
        agent_task_progress(task, "it is there already", 0, 0);
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
        return;
    }
    struct volume_task *v = NEW(struct volume_task);
    v->task = task;
    snprintf(v->id, sizeof v->id, "%s", move->from.id);
    task->state = v;
    const struct task_child_options options = {.loop = task->agent->loop,
                                               .work = "volume",
                                               .desc = &volume_move_desc,
                                               .arguments = move,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = v};
    int r = pool_watch_there(&task->agent->pools, move->from.pool.id, move->from.pool.name, &err);
    if (r == 0)
        r = pool_watch_there(&task->agent->pools, move->to.pool.id, move->to.pool.name, &err);
    if (r == 0)
        r = task_child_start(&options, &v->child, &err);
    if (r < 0)
        finish(v, operation_state_FAILED, &err);
}

static void end(struct agent_task *task)
{
    struct volume_task *v = task->state;
    task_child_kill(v->child);
}

const struct agent_task_ops task_volume_ops = {.start = start, .cancel = end, .stop = end};

bool task_volume_works(const struct agent *agent, const char *id)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&agent->tasks.all, &i)) != NULL;)
        if (task->ops == &task_volume_ops && task->state != NULL && strcmp(((const struct volume_task *)task->state)->id, id) == 0)
            return true;
    return false;
}

/* ---- in the child, with the rights of the user whose layers they are ---- */

static int disk_at(int directory, const char *name, bool read_only, struct layer_pool **ret_pool, struct layer_disk **ret_disk,
                   struct error *err)
{
    char path[DIRECTORY_BYTES];
    snprintf(path, sizeof path, "/proc/self/fd/%d", directory);
    int r = layer_pool_dir_create(path, NULL, NULL, ret_pool, err);
    return r < 0 ? r : layer_disk_open(*ret_pool, name, read_only, 0, ret_disk, err);
}

static bool is_zero(const uint8_t *at, size_t size)
{
    return at[0] == 0 && memcmp(at, at + 1, size - 1) == 0;
}

/* What may be data between @from and @to; zeroes stay holes. */
static int stretch_copy(struct block *from, struct block *to, uint64_t at, uint64_t end, uint8_t *buffer, struct error *err)
{
    for (uint64_t size; at < end; at += size) {
        size = MIN((uint64_t)COPY_BYTES, end - at);
        int r = block_now(from, BLOCK_READ, at, buffer, size);
        if (r < 0)
            return error_errno(err, r, "the volume cannot be read at byte %llu", (unsigned long long)at);
        for (uint64_t done = 0, part; done < size; done += part) {
            part = MIN((uint64_t)LAYER_CLUSTER_BYTES, size - done);
            r = is_zero(buffer + done, part) ? 0 : block_now(to, BLOCK_WRITE, at + done, buffer + done, part);
            if (r < 0)
                return error_errno(err, r, "the copy cannot be written at byte %llu", (unsigned long long)(at + done));
        }
    }
    return 0;
}

static uint64_t data_bytes(struct block *b, struct error *err, int *ret_code)
{
    uint64_t total = 0, start_at, end_at, from = 0;
    while ((*ret_code = block_next_data(b, from, &start_at, &end_at)) > 0) {
        total += end_at - start_at;
        from = end_at;
    }
    if (*ret_code < 0)
        error_errno(err, *ret_code, "cannot tell where the volume has data");
    return total;
}

static int all_copy(struct block *from, struct block *to, struct error *err)
{
    int r;
    uint64_t total = data_bytes(from, err, &r), done = 0, start_at, end_at, at = 0;
    if (r < 0)
        return r;
    CLEANUP_FREE uint8_t *buffer = xcalloc(1, COPY_BYTES);
    task_child_tell("copying", 0, total);
    while ((r = block_next_data(from, at, &start_at, &end_at)) > 0) {
        for (at = start_at; at < end_at;) {
            uint64_t size = MIN((uint64_t)TELL_BYTES, end_at - at);
            r = stretch_copy(from, to, at, at + size, buffer, err);
            if (r < 0)
                return r;
            at += size;
            done += size;
            task_child_tell("copying", done, total);
        }
    }
    if (r < 0)
        return error_errno(err, r, "cannot tell where the volume has data");
    task_child_tell("syncing", total, total);
    r = block_now(to, BLOCK_FLUSH, 0, NULL, 0);
    return r < 0 ? error_errno(err, r, "the copy cannot be synced") : 0;
}

/* @size_max: the volume's. What its layers say of their size is a VMM's word, and no copy is made larger for it. */
static int copy_between(int from, int to, const char *name, uint64_t size_max, struct error *err)
{
    struct layer_pool *from_pool, *to_pool;
    struct layer_disk *source, *copy;
    char path[DIRECTORY_BYTES];
    snprintf(path, sizeof path, "/proc/self/fd/%d", to);
    int r = disk_at(from, name, true, &from_pool, &source, err);
    if (r == 0 && source->chain->block.size_bytes > size_max)
        r = error_set(err, -EFBIG, ERROR_INTERNAL, "its layers say that the disk has %llu bytes, and the volume has %llu: a backup of it, if "
                      "there is one, can be restored", (unsigned long long)source->chain->block.size_bytes, (unsigned long long)size_max);
    if (r == 0)
        r = layer_pool_dir_create(path, NULL, NULL, &to_pool, err);
    if (r == 0)
        r = layer_disk_create(to_pool, name, source->chain->block.size_bytes, NULL, err);
    if (r == 0)
        r = layer_disk_open(to_pool, name, false, 0, &copy, err);
    if (r == 0)
        r = all_copy(&source->chain->block, &copy->chain->block, err);
    if (r == 0) {
        layer_disk_close(copy); /* in order: its map says so */
        if (fsync(to) < 0)
            r = error_errno(err, -errno, "the copy cannot be synced");
    }
    return r; /* all else goes with the process */
}

static _Noreturn void copier(int from, int to, const struct volume_order *order, uid_t user, int words)
{
    struct error err = {.code = 0};
    const struct task_walls walls = {.user = user, .group = user};
    int r = task_walls_raise(&walls, &err);
    if (r == 0)
        r = copy_between(from, to, order->disk, order->size_bytes, &err);
    if (r < 0)
        (void)!write(words, &err, sizeof err);
    _exit(r < 0 ? 1 : 0);
}

/* ---- in the child ---- */

/* A process of its own copies; what it says of a failure is words alone. */
static int copy_run(int from, int to, const struct volume_order *order, uid_t user, struct error *err)
{
    int fds[2], status = 0;
    struct error said = {.code = 0};
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot start a process");
    pid_t pid = fork();
    if (pid == 0)
        copier(from, to, order, user, fds[1]);
    close(fds[1]);
    bool has_said = pid > 0 && read(fds[0], &said, sizeof said) == (ssize_t)sizeof said;
    close(fds[0]);
    if (pid < 0)
        return error_errno(err, -errno, "cannot start a process");
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    said.text[sizeof said.text - 1] = '\0';
    bool no_space = has_said && said.code == -ENOSPC;
    return error_set(err, no_space ? -ENOSPC : -EIO, no_space ? ERROR_NO_SPACE : ERROR_INTERNAL, "%s",
                     has_said ? said.text : "the process that copies has ended without a word");
}

static struct vm_disk disk_of(const struct volume_order *order) /* borrowed */
{
    return (struct vm_disk){.name = order->disk, .size_bytes = order->size_bytes, .volume = order->id, .place = order->place};
}

static int move(const struct volume_move *work, struct error *err)
{
    const struct vm_disk from = disk_of(&work->from), to = disk_of(&work->to);
    CLEANUP_FREE char *source = pool_dir_disk(&work->from.pool, NULL, &from);
    CLEANUP_FREE char *final = pool_dir_disk(&work->to.pool, NULL, &to);
    CLEANUP_FREE char *part = NULL;
    struct stat st;
    int r = pool_dir_check(&work->from.pool, err);
    if (r == 0)
        r = pool_dir_check(&work->to.pool, err);
    if (r < 0)
        return r;
    if (lstat(final, &st) == 0)
        return pool_dir_copy_sync(&work->to.pool, &to, err); /* done before, and the last word was lost; with power it could go yet */
    CLEANUP_FD int from_fd = open(source, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (from_fd < 0 || fstat(from_fd, &st) < 0)
        return error_errno(err, -errno, "cannot open %s", source);
    r = pool_dir_copy_begin(&work->to.pool, &to, st.st_uid, &part, err);
    if (r < 0)
        return r;
    CLEANUP_FD int to_fd = open(part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (to_fd < 0)
        return error_errno(err, -errno, "cannot open %s", part);
    r = copy_run(from_fd, to_fd, &work->from, st.st_uid, err);
    return r < 0 ? r : pool_dir_copy_end(&work->to.pool, &to, part, err);
}

int task_volume_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct volume_move work = {.head = {0}};
    int r = OBJECT_DECODE(volume_move, arguments, size, OBJECT_STORED, &work, err);
    if (r == 0)
        r = move(&work, err);
    OBJECT_CLEAR(volume_move, &work);
    return r;
}
