/* The task volume-move: a volume goes from one pool of this host to another. Or a VM's own disk does, from or to the directory of its host,
 * too: what is said of volumes here holds for it, and its VM is always there.
 *
 *   no VM has it        start --> COPYING (a child) ------------------------------------------------------> over
 *   its VM is off       start --> WAITING --the VM is held--> COPYING ------------------------------------> over
 *   its VMM has it      start --> WAITING --> MAKING (an empty copy) --> MIRRORING --level, heard, held --> over
 *
 * COPYING: the child only reads the volume; a copy that is whole is written down as such. MIRRORING: the VMM copies while the guest writes
 * and keeps both level. When the controllers say that they have heard so, a majority of them answers: then it lets the guest's requests
 * wait (machine_mirror.h, hold) until these have decided. Either way both copies hold the same when this
 * task says that it has succeeded, and until the controllers have said which of them is the volume nobody writes to it: the VM is held
 * (vm_hold) from the beginning until the order is gone, so no VMM is started, and its VMM's move is not ended by another order. Then
 * vm_adjust.h tells the VMM, by the place in the VM's order.
 *
 * The task volume-clone is COPYING of another kind: `to` is a new volume, and what is copied is what a snapshot has, whoever uses the volume.
 * The child of the task vm-clone (task_clone.c) does the same for each disk of a VM.
 *
 * Neither task nor child removes anything of a volume: what is left of one copy or the other goes by orders (agent_volumes.h). Begun
 * twice: a move that the VMM has under way is gone on with, one that it has done is done, a copy that is whole is not made again, and any
 * other is made anew. An agent that was restarted starts no VM before it has heard of the controllers, and their answer has the task too,
 * as long as nothing is decided; what an agent before it has said may still be on its way, so that the VM is let go of before the order
 * is gone only where it is sure that none can have said that it has succeeded (fresh).
 * Cancel: until it has said that it has succeeded; what the VMM has under way is ended by vm_adjust.h then. A VMM that ends while it
 * mirrors ends the task, and so does a VM that is off and is to run: the volume is where it was, and all that the guest was told is
 * written is there.
 *
 * In the child, what the last VM's VMM has written is read, and the copy written, by a process with the rights of that VMM's user,
 * which owns the layers: links and names in there lead it to nothing that this user could not open. What it says is how far it is and
 * why it has failed, and goes by a pipe of its own: it has no part in what the child tells the agent. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "block/block_fd.h"
#include "block/block_sync.h"
#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"

#define MOVE_LOOK_MS 200
#define MOVE_MIRROR_MS 50 /* while its VMM mirrors */
#define MOVE_BUSY_MAX 600u /* answers "busy", one each MOVE_LOOK_MS */

#define SNAPSHOT_LOOK_MS 200
#define SNAPSHOT_LOOKS_MAX 3000u /* ten minutes */
#define SNAPSHOT_MISSED_MAX 10u

enum { COPY_BYTES = 1 << 20, TELL_BYTES = 64 << 20, DIRECTORY_BYTES = 32, STEP_BYTES = 80 };

struct volume_task {
    struct agent_task *task;
    struct agent *agent;
    char vm[37]; /* empty: no VM has it */
    struct volume_move move; /* as it was begun: later orders of the task may be without it. Where no pool is given: pool_dir_here */
    struct task_child *child;
    uv_timer_t timer;
    struct http_call *call;
    bool begun;     /* its VMM was told to move it, or is at it */
    bool fresh;     /* and was seen before both were held, so nobody has said that it has succeeded */
    bool yields;    /* the child is ended, for its VM is to run */
    bool cancel;
    unsigned busy; /* answers in a row */
    /* MAKING: the thread pool's */
    struct pool_work work;
    bool making;
    struct vm_order order; /* of the VM, with the copy in the volume's place */
    struct vm_disk *disk;  /* that, in it */
    uint64_t size_bytes;   /* that the VMM knows */
    uid_t user;
    int pidfd;
    char *directory; /* where the VMM sees it */
    int status;
    struct error made_err;
    /* how it ended */
    bool over;
    enum operation_state state;
    struct error err;
};

static struct local_vm *find_vm(const struct volume_task *v)
{
    return v->agent->stopping ? NULL : map_get(&v->agent->vms, v->vm); /* an agent that stops has closed its VMs */
}

static const char *place_of(const struct volume_task *v)
{
    return v->move.to.place;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct volume_task *v = handle->data;
    struct agent_task *task = v->task;
    enum operation_state state = v->state;
    struct error err = v->err;
    OBJECT_CLEAR(vm_order, &v->order);
    OBJECT_CLEAR(volume_move, &v->move);
    free(v->directory);
    close_fd(&v->pidfd);
    free(v);
    task->state = NULL;
    if (!task->agent->stopping)
        agent_volumes_tick(task->agent); /* what is to be removed may be so now */
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

static bool is_own(const struct volume_task *v)
{
    return v->move.to.own;
}

/* A new volume of what a snapshot has, and that does not change: whether a VM has the volume is no matter. */
static bool is_clone(const struct volume_task *v)
{
    return v->move.snapshot != NULL;
}

static bool has_order(const struct task_order *order)
{
    return OBJECT_HAS(task_order, order, move) || OBJECT_HAS(task_order, order, disk_move);
}

/* Until the order is gone, however it ends: see forgotten. */
static void hold(struct volume_task *v)
{
    struct local_vm *vm = find_vm(v);
    if (v->task->holds || vm == NULL)
        return;
    v->task->holds = true;
    vm_hold(vm, true);
}

static void let_go(struct agent_task *task)
{
    struct local_vm *vm = task->agent->stopping || task->order.task.vm == NULL ? NULL : map_get(&task->agent->vms, task->order.task.vm);
    if (task->holds && vm != NULL) {
        vm_hold(vm, false);
        vm_look_at_moves(vm);
    }
    task->holds = false;
}

/* Once; nothing is under way. */
static void over(struct volume_task *v, enum operation_state state)
{
    ASSERT(v->child == NULL && v->call == NULL && !v->making);
    if (v->over)
        return;
    v->over = true;
    v->state = state;
    if (state == operation_state_SUCCEEDED && is_own(v))
        OBJECT_TEXT(task_seen, &v->task->seen, copied, place_of(v));
    struct local_vm *vm = find_vm(v);
    bool is_off = vm != NULL && vm_disks(vm) != VM_DISKS_IN_USE;
    if (v->task->stopping || (state != operation_state_SUCCEEDED && v->fresh && is_off)) /* it may be started again at once */
        let_go(v->task);
    uv_timer_stop(&v->timer);
    uv_close((uv_handle_t *)&v->timer, on_timer_closed);
}

static void fail(struct volume_task *v, enum error_kind kind, const char *words)
{
    error_set(&v->err, -EIO, kind, "%s", words);
    over(v, operation_state_FAILED);
}

static void cancelled(struct volume_task *v)
{
    error_set(&v->err, -ECANCELED, ERROR_CANCELLED, is_clone(v) ? "cancelled" : "cancelled: it stays where it is");
    over(v, operation_state_CANCELLED);
}

/* ---- a child ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct volume_task *v = arg;
    if (!v->task->stopping)
        agent_task_progress(v->task, seen->step, seen->progress_done, seen->progress_total);
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct volume_task *v = arg;
    v->child = NULL;
    if (seen->state == operation_state_SUCCEEDED)
        over(v, operation_state_SUCCEEDED);
    else if (v->yields && !v->cancel && !v->task->stopping)
        fail(v, ERROR_CONFLICT, "its VM is to run, and does not run yet: ask again when it does");
    else if (seen->state == operation_state_CANCELLED)
        cancelled(v);
    else
        fail(v, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"),
             seen->error_text != NULL ? seen->error_text : "it does not say why");
}

static int pools_there(struct volume_task *v)
{
    const struct pool_order *const pools[] = {&v->move.from.pool, &v->move.to.pool};
    int r = 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(pools); i++)
        r = pool_dir_is_here(pools[i]) ? 0 : pool_watch_there(&v->agent->pools, pools[i]->id, pools[i]->name, &v->err);
    return r;
}

static void on_timer(uv_timer_t *timer);
static void look_later(struct volume_task *v);

/* A pool whose server is silent, or that is not mounted, may be back soon: hours of copying need not be begun anew. True: it is waited. */
static bool waits_for_pool(struct volume_task *v, int r)
{
    if (r != -EAGAIN || v->cancel)
        return false;
    agent_task_progress(v->task, v->err.text, 0, 0);
    v->err = (struct error){.code = 0};
    look_later(v);
    return true;
}

static void copy(struct volume_task *v)
{
    const struct task_child_options options = {.loop = v->agent->loop,
                                               .work = "volume",
                                               .desc = &volume_move_desc,
                                               .arguments = &v->move,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = v};
    int r = pools_there(v);
    if (waits_for_pool(v, r))
        return;
    if (r == 0)
        r = task_child_start(&options, &v->child, &v->err);
    if (r < 0)
        over(v, operation_state_FAILED);
    else if (v->vm[0] != '\0')
        look_later(v);
}

/* It is off, and not to stay so. One that has powered off by itself stays so. */
static bool is_to_run(const struct local_vm *vm)
{
    enum vm_wanted wanted = vm_order_of(vm)->wanted;
    return (wanted == vm_wanted_RUNNING || wanted == vm_wanted_PAUSED) && vm_state_of(vm) != vm_state_STOPPED;
}

/* ---- its VMM ---- */

static void look_later(struct volume_task *v)
{
    uv_timer_start(&v->timer, on_timer, MOVE_LOOK_MS, 0);
}

static void ask(struct volume_task *v, const char *method, const char *leaf, const struct bytes_writer *body, http_client_done done)
{
    CLEANUP_FREE char *url = xasprintf("http://vmm/v1/vm/disks/%s%s", v->move.from.disk, leaf);
    const struct http_call_options options = {.method = method,
                                              .url = url,
                                              .unix_socket = vm_control_path(find_vm(v)),
                                              .body = body != NULL ? body->data : NULL,
                                              .body_size = body != NULL ? body->size : 0,
                                              .deadline_ms = VM_CONTROL_MS,
                                              .done = done,
                                              .arg = v};
    if (options.unix_socket == NULL || http_client_start(v->agent->http, &options, &v->call, &v->err) < 0) {
        v->call = NULL;
        look_later(v);
    }
}

/* A call or the making of the copy is over. False: so is the task. */
static bool goes_on(struct volume_task *v)
{
    if (!v->task->stopping)
        return true;
    over(v, operation_state_CANCELLED);
    return false;
}

/* Did the VMM say no? True: it is asked again, or that was often enough. Without an answer it may have done it: the next look tells. */
static bool refused(struct volume_task *v, const struct http_answer *answer)
{
    bool busy = answer->error == 0 && answer->status == 409;
    if (answer->error == 0 && answer->status / 100 == 2) {
        v->busy = 0;
        return false;
    }
    if (answer->error == 0 && (!busy || v->busy++ >= MOVE_BUSY_MAX)) {
        error_set(&v->err, -EIO, answer->problem.kind, "its VMM: %.450s", answer->problem.text);
        over(v, operation_state_FAILED);
        return true;
    }
    if (busy)
        agent_task_progress(v->task, "waiting for the VM's VMM", 0, 0);
    look_later(v);
    return true;
}

static void on_told(const struct http_answer *answer, void *arg)
{
    struct volume_task *v = arg;
    v->call = NULL;
    if (!goes_on(v))
        return;
    if (answer->error != 0 || answer->status / 100 == 2)
        v->begun = v->fresh = true;
    if (v->cancel)
        cancelled(v);
    else if (!refused(v, answer))
        look_later(v);
}

static void tell(struct volume_task *v)
{
    struct vmm_disk disk = {.path = NULL};
    struct bytes_writer body = {.data = NULL};
    vm_files_disk(&vm_context_of(find_vm(v))->places, &v->order, v->disk, v->directory, &disk);
    OBJECT_SET(vmm_disk, &disk, size_bytes, v->size_bytes);
    OBJECT_SET(vmm_disk, &disk, grow, false);
    OBJECT_SET(vmm_disk, &disk, hold, true);
    OBJECT_ENCODE(vmm_disk, &disk, &body);
    OBJECT_CLEAR(vmm_disk, &disk);
    ask(v, "POST", "/move", &body, on_told);
    bytes_writer_finish(&body);
}

/* ---- an empty copy for it: the thread pool ---- */

/* Of a disk whose size the controllers do not know (that of an image that nobody has looked at): they have kept no room for it, and what its
 * layers say is a VMM's word. */
static int room_check(const char *path, uint64_t size_bytes, struct error *err)
{
    struct statvfs fs;
    if (statvfs(path, &fs) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    if ((uint64_t)fs.f_bavail * fs.f_frsize >= size_bytes)
        return 0;
    return error_set(err, -ENOSPC, ERROR_NO_SPACE, "it has %llu MiB, and %llu MiB are free where it is to go",
                     (unsigned long long)(size_bytes >> 20), (unsigned long long)((uint64_t)fs.f_bavail * fs.f_frsize >> 20));
}

static struct vm_disk disk_of(const struct volume_order *order) /* borrowed */
{
    const char *volume = order->own ? NULL : order->id;
    return (struct vm_disk){
        .name = order->disk, .size_bytes = order->size_bytes, .volume = (char *)(uintptr_t)volume, .place = order->place};
}

static int copy_make(struct volume_task *v)
{
    const struct pool_order *pool = &v->move.to.pool;
    CLEANUP_FREE char *directory = NULL;
    const struct vm_disk from = disk_of(&v->move.from);
    struct vm_disk empty = *v->disk; /* borrowed */
    empty.size_bytes = v->size_bytes;
    int r = pool_dir_find(&v->move.from.pool, v->vm, &from, &v->made_err); /* else what is at the other place may be the volume */
    if (r == 0 && v->move.to.size_bytes == 0)
        r = room_check(pool->path, v->size_bytes, &v->made_err);
    if (r == 0)
        r = pool_dir_copy_begin(pool, v->vm, v->disk, geteuid(), &directory, &v->made_err);
    if (r == 0 && rmdir(directory) < 0)
        r = error_errno(&v->made_err, -errno, "cannot make %s", directory);
    if (r == 0)
        r = pool_dir_make_disk(pool, v->vm, &empty, NULL, false, &v->made_err);
    return r < 0 ? r
                 : vm_files_show(&v->agent->vm_context.places, &v->order, v->disk, v->user, v->pidfd, &v->directory, &v->made_err);
}

static void make_do(struct pool_work *work)
{
    struct volume_task *v = CONTAINER_OF(work, struct volume_task, work);
    v->status = copy_make(v);
}

static void make_after(struct pool_work *work)
{
    struct volume_task *v = CONTAINER_OF(work, struct volume_task, work);
    struct local_vm *vm = find_vm(v);
    v->making = false;
    close_fd(&v->pidfd);
    if (!goes_on(v))
        return;
    if (v->status < 0) {
        v->err = v->made_err;
        over(v, operation_state_FAILED);
    } else if (vm == NULL || vm_disks(vm) != VM_DISKS_IN_USE || v->cancel) {
        look_later(v);
    } else {
        tell(v);
    }
}

/* The VM's order as it will be. NULL: it has no such volume. */
static struct vm_disk *order_fill(struct volume_task *v, const struct vm_order *order)
{
    const struct volume_order *to = &v->move.to;
    OBJECT_CLEAR(vm_order, &v->order);
    OBJECT_COPY(vm_order, &v->order, order);
    for (size_t i = 0; i < v->order.disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)v->order.disks.items + i;
        bool is_it = to->own ? disk->volume == NULL && strcmp(disk->name, to->disk) == 0 : text_same(disk->volume, to->id);
        if (!is_it)
            continue;
        OBJECT_TEXT(vm_disk, disk, pool, pool_dir_is_here(&to->pool) ? NULL : to->pool.name);
        OBJECT_TEXT(vm_disk, disk, place, to->place);
        if (disk->pool != NULL && pool_dir_of(&v->order, disk) == NULL)
            OBJECT_COPY(pool_order, (struct pool_order *)OBJECT_ADD(vm_order, &v->order, pools), &to->pool);
        return disk;
    }
    return NULL;
}

static void make(struct volume_task *v, struct local_vm *vm, uint64_t size_bytes)
{
    int pidfd;
    int r = pools_there(v);
    if (waits_for_pool(v, r))
        return;
    if (r < 0) {
        over(v, operation_state_FAILED);
        return;
    }
    v->disk = order_fill(v, vm_order_of(vm));
    if (v->disk == NULL) {
        fail(v, ERROR_CONFLICT, "this host's order for the VM does not have the disk");
        return;
    }
    free(v->directory);
    v->directory = NULL;
    v->size_bytes = size_bytes;
    vm_walls(vm, &v->user, &pidfd);
    v->pidfd = pidfd >= 0 ? fcntl(pidfd, F_DUPFD_CLOEXEC, 0) : -1;
    v->making = true;
    agent_task_progress(v->task, "making an empty copy", 0, 0);
    CLEANUP_FREE char *lane = xasprintf("%s %s", v->move.from.pool.id, v->move.to.pool.id);
    pool_work_begin(&v->agent->pool_works, v->agent->loop, lane, &v->work, make_do, make_after);
}

/* ---- looking ---- */

/* What it has come to the next look tells. */
static void on_held(const struct http_answer *answer, void *arg)
{
    struct volume_task *v = arg;
    v->call = NULL;
    if (goes_on(v))
        uv_timer_start(&v->timer, on_timer, answer->error == 0 && answer->status == 200 ? 0 : MOVE_MIRROR_MS, 0);
}

static void make_held(struct volume_task *v, const char *path)
{
    struct vmm_disk_move_end end = {.path = NULL};
    struct bytes_writer body = {.data = NULL};
    OBJECT_TEXT(vmm_disk_move_end, &end, path, path);
    OBJECT_SET(vmm_disk_move_end, &end, hold, true);
    OBJECT_ENCODE(vmm_disk_move_end, &end, &body);
    OBJECT_CLEAR(vmm_disk_move_end, &end);
    ask(v, "PUT", "/move", &body, on_held);
    bytes_writer_finish(&body);
}

/* A move to this very copy is under way. */
static void mirrors(struct volume_task *v, const struct vmm_disk_move *move)
{
    v->begun = true;
    v->fresh |= move->state != vmm_disk_move_state_HELD;
    agent_task_progress(v->task, move->state == vmm_disk_move_state_COPYING ? "copying while the VM runs" : "both are level",
                        move->copied_bytes, move->copied_bytes + move->left_bytes);
    if (move->state == vmm_disk_move_state_HELD) { /* and, the VM being held, no other VMM comes after this one */
        over(v, operation_state_SUCCEEDED);
        return;
    }
    if (move->state == vmm_disk_move_state_LEVEL && v->task->order.task.level) {
        make_held(v, move->path);
        return;
    }
    if (move->state == vmm_disk_move_state_LEVEL && !v->task->seen.ready)
        agent_task_ready(v->task, NULL);
    uv_timer_start(&v->timer, on_timer, MOVE_MIRROR_MS, 0);
}

static void on_disk(const struct http_answer *answer, void *arg)
{
    struct volume_task *v = arg;
    struct vmm_disk_status status = {.reads = 0};
    struct local_vm *vm = find_vm(v);
    v->call = NULL;
    if (!goes_on(v))
        return;
    if (v->cancel) {
        cancelled(v);
        return;
    }
    if (answer->error == 0 && answer->status == 404) {
        fail(v, ERROR_CONFLICT, "its VMM does not have the disk: the guest has let it go");
        return;
    }
    if (answer->error != 0 || answer->status != 200 || vm == NULL ||
        OBJECT_DECODE(vmm_disk_status, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &status, &v->err) < 0) {
        look_later(v); /* it has ended, or will answer again */
        return;
    }
    bool ours = status.move.path != NULL && strstr(status.move.path, place_of(v)) != NULL;
    if (ours) {
        mirrors(v, &status.move);
    } else if (status.disk.path != NULL && strstr(status.disk.path, place_of(v)) != NULL) {
        over(v, operation_state_SUCCEEDED); /* it has been told so, by a word of controllers that is lost */
    } else if (v->begun) {
        fail(v, ERROR_INTERNAL, status.move.failure != NULL ? status.move.failure : "its VMM has ended on the way; it stays where it is");
    } else if (status.move.path != NULL || status.unplugging || status.detached) {
        fail(v, ERROR_CONFLICT, "its VMM is moving or letting go of it otherwise");
    } else if (v->move.to.size_bytes != 0 && status.disk.size_bytes > v->move.to.size_bytes) { /* room is kept for what the record says */
        fail(v, ERROR_INTERNAL, "its VMM says that the disk is larger than its record: stop the VM and ask again");
    } else {
        make(v, vm, status.disk.size_bytes);
    }
    OBJECT_CLEAR(vmm_disk_status, &status);
}

static void look(struct volume_task *v)
{
    struct local_vm *vm = find_vm(v);
    if (v->child != NULL && vm != NULL && is_to_run(vm) && !v->yields) {
        v->yields = true;
        task_child_kill(v->child);
    } else if (v->child != NULL) {
        look_later(v);
    }
    if (v->over || v->child != NULL || v->call != NULL || v->making)
        return;
    if (v->cancel) {
        cancelled(v);
        return;
    }
    if (v->vm[0] == '\0') {
        copy(v);
        return;
    }
    switch (vm != NULL ? vm_disks(vm) : VM_DISKS_NONE) {
    case VM_DISKS_NONE:
        fail(v, ERROR_CONFLICT, "this host does not have the VM");
        return;
    case VM_DISKS_IN_USE:
        ask(v, "GET", "", NULL, on_disk);
        return;
    case VM_DISKS_CHANGING:
        agent_task_progress(v->task, "waiting for the VM to start or end", 0, 0);
        look_later(v);
        return;
    case VM_DISKS_UNMADE: /* those that are its own; the volume is there */
        if (is_own(v)) {
            fail(v, ERROR_CONFLICT, "the VM's disks are not made yet: start it once");
            return;
        }
        break;
    case VM_DISKS_FREE:
        break;
    }
    if (v->begun)
        fail(v, ERROR_CONFLICT, "its VMM has ended on the way; it stays where it is");
    else if (is_to_run(vm))
        fail(v, ERROR_CONFLICT, "its VM is to run, and does not run yet: ask again when it does");
    else
        copy(v);
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

/* ---- the task ---- */

void task_volume_fill(const struct agent *agent, struct volume_move *move)
{
    struct volume_order *const orders[] = {&move->from, &move->to};
    for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
        if (OBJECT_HAS(volume_order, orders[i], pool))
            continue;
        const struct pool_order here = pool_dir_here(agent->vms_dir);
        OBJECT_TEXT(pool_order, &orders[i]->pool, path, here.path);
        OBJECT_TEXT(pool_order, &orders[i]->pool, name, here.name);
        object_mark(&volume_order_desc, orders[i], "pool");
    }
}

static void start(struct agent_task *task)
{
    if (!has_order(&task->order)) {
        agent_task_progress(task, "it is there already", 0, 0);
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
        return;
    }
    struct volume_task *v = NEW(struct volume_task);
    v->task = task;
    v->agent = task->agent;
    v->pidfd = -1;
    OBJECT_COPY(volume_move, &v->move, OBJECT_HAS(task_order, &task->order, disk_move) ? &task->order.disk_move : &task->order.move);
    if (OBJECT_HAS(task_order, &task->order, disk_move))
        task_volume_fill(v->agent, &v->move);
    task->state = v;
    bool is_its_vms = task->order.task.vm != NULL && !is_clone(v);
    snprintf(v->vm, sizeof v->vm, "%s", is_its_vms ? task->order.task.vm : "");
    uv_timer_init(v->agent->loop, &v->timer);
    v->timer.data = v;
    if (v->vm[0] != '\0')
        hold(v);
    look(v);
}

static void cancel(struct agent_task *task);

/* The controllers have heard that both are level: the timer's next look is soon enough, but this is sooner. Or they do not know of the
 * volume any more: it was forgotten by force. */
static void changed(struct agent_task *task)
{
    struct volume_task *v = task->state;
    if (v != NULL && !v->over && !has_order(&task->order))
        cancel(task);
    else if (v != NULL && !v->over && task->order.task.level && uv_is_active((uv_handle_t *)&v->timer))
        uv_timer_start(&v->timer, on_timer, 0, 0);
}

static void cancel(struct agent_task *task)
{
    struct volume_task *v = task->state;
    v->cancel = true;
    if (v->child != NULL)
        task_child_kill(v->child);
}

static void stop(struct agent_task *task)
{
    struct volume_task *v = task->state;
    if (v->over || v->making)
        return; /* on its way */
    if (v->child != NULL)
        task_child_kill(v->child);
    else if (v->call != NULL)
        http_call_cancel(v->call);
    else
        over(v, operation_state_CANCELLED);
}

const struct agent_task_ops task_volume_ops = {.start = start, .cancel = cancel, .changed = changed, .stop = stop, .forgotten = let_go};

bool task_volume_works(const struct agent *agent, const char *id)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&agent->tasks.all, &i)) != NULL;)
        if (task->ops == &task_volume_ops && task->state != NULL && strcmp(((const struct volume_task *)task->state)->move.to.id, id) == 0)
            return true;
    return false;
}

/* ---- in the child, with the rights of the user whose layers they are ---- */

/* From the process that copies to the child. */
struct word {
    uint64_t done, total;
    int code; /* 0: it goes on; negative: it has failed */
    char text[512];
};

static void say(int words, uint64_t done, uint64_t total)
{
    const struct word word = {.done = done, .total = total};
    (void)!write(words, &word, sizeof word); /* less than PIPE_BUF: whole */
}

/* Layers that are merged just now are waited for, a while. */
static int snapshot_open(struct layer_pool *pool, const char *disk, const char *snapshot, struct layer_disk **ret_disk, struct error *err)
{
    const struct timespec pause = {.tv_nsec = SNAPSHOT_LOOK_MS * 1000000L};
    unsigned looks = 0, missed = 0;
    int r;
    while (((r = layer_disk_open_snapshot(pool, disk, snapshot, ret_disk, err)) == -EBUSY && looks++ < SNAPSHOT_LOOKS_MAX) ||
           (r == -ENOENT && err->kind != ERROR_NOT_FOUND && missed++ < SNAPSHOT_MISSED_MAX)) /* removed after the head was read */
        nanosleep(&pause, NULL);
    if (r == -EBUSY)
        error_prefix(err, "its layers are still being merged; ask again later: ");
    return r;
}

static int source_open(int directory, const struct volume_order *order, const char *snapshot, struct block **ret_block, struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *disk;
    char path[DIRECTORY_BYTES];
    snprintf(path, sizeof path, "/proc/self/fd/%d", directory);
    int r = layer_pool_dir_create(path, NULL, NULL, &pool, err);
    if (r == 0)
        r = snapshot != NULL ? snapshot_open(pool, order->disk, snapshot, &disk, err) : layer_disk_open(pool, order->disk, true, 0, &disk, err);
    /* Nobody has it, its record says; but a file server keeps the locks of a host that is gone for minutes or for ever. */
    if (r == -EBUSY && snapshot == NULL && order->pool.kind == pool_kind_SHARED_DIR) {
        layer_pool_dir_set_unlocked(pool, true);
        r = layer_disk_open(pool, order->disk, true, 0, &disk, err);
    }
    if (r == 0)
        *ret_block = &disk->chain->block;
    return r;
}

static int raw_open(int directory, const struct volume_order *order, struct block **ret_block, struct error *err)
{
    CLEANUP_FREE char *name = xasprintf("%s.raw", order->disk);
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int r = fd < 0 ? error_errno(err, -errno, "cannot open %s", name) : block_fd_lock(fd, name, true, err);
    if (r == 0)
        r = block_sync_from_fd(fd, name, true, ret_block, err);
    return r;
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
            return error_errno(err, r, "it cannot be read at byte %llu", (unsigned long long)at);
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
        error_errno(err, *ret_code, "cannot tell where it has data");
    return total;
}

static int all_copy(struct block *from, struct block *to, int words, struct error *err)
{
    int r;
    uint64_t total = data_bytes(from, err, &r), done = 0, start_at, end_at, at = 0;
    if (r < 0)
        return r;
    CLEANUP_FREE uint8_t *buffer = xcalloc(1, COPY_BYTES);
    say(words, 0, total);
    while ((r = block_next_data(from, at, &start_at, &end_at)) > 0) {
        for (at = start_at; at < end_at;) {
            uint64_t size = MIN((uint64_t)TELL_BYTES, end_at - at);
            r = stretch_copy(from, to, at, at + size, buffer, err);
            if (r < 0)
                return r;
            at += size;
            done += size;
            say(words, done, total);
        }
    }
    if (r < 0)
        return error_errno(err, r, "cannot tell where it has data");
    r = block_now(to, BLOCK_FLUSH, 0, NULL, 0);
    return r < 0 ? error_errno(err, r, "the copy cannot be synced") : 0;
}

/* What its layers say of their size is a VMM's word, and no copy is made larger than the volume for it. */
static int copy_between(int from, bool is_raw, int to, const struct volume_move *work, int words, struct error *err)
{
    const struct volume_order *order = &work->from;
    struct layer_pool *pool;
    struct layer_disk *copy;
    struct block *source = NULL;
    char path[DIRECTORY_BYTES];
    snprintf(path, sizeof path, "/proc/self/fd/%d", to);
    int r = is_raw ? raw_open(from, order, &source, err) : source_open(from, order, work->snapshot, &source, err);
    if (r == 0 && order->size_bytes != 0 && source->size_bytes > order->size_bytes)
        r = error_set(err, -EFBIG, ERROR_INTERNAL, "its layers say that the disk has %llu bytes, and its record %llu: a backup of it, if "
                      "there is one, can be restored", (unsigned long long)source->size_bytes, (unsigned long long)order->size_bytes);
    if (r == 0 && order->size_bytes == 0)
        r = room_check(path, source->size_bytes, err);
    if (r == 0)
        r = layer_pool_dir_create(path, NULL, NULL, &pool, err);
    if (r == 0)
        r = layer_disk_create(pool, work->to.disk, source->size_bytes, NULL, err);
    if (r == 0)
        r = layer_disk_open(pool, work->to.disk, false, 0, &copy, err);
    if (r == 0)
        r = all_copy(source, &copy->chain->block, words, err);
    if (r == 0) {
        layer_disk_close(copy); /* in order: its map says so */
        if (fsync(to) < 0)
            r = error_errno(err, -errno, "the copy cannot be synced");
    }
    return r; /* all else goes with the process */
}

static _Noreturn void copier(int from, bool is_raw, int to, const struct volume_move *work, uid_t user, int words, pid_t parent)
{
    struct error err = {.code = 0};
    const struct task_walls walls = {.user = user, .group = user};
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int r = nowhere < 0 || dup2(nowhere, STDOUT_FILENO) < 0 ? error_errno(&err, -errno, "cannot close the standard output") : 0;
    if (r == 0)
        r = task_walls_raise(&walls, &err);
    if (getppid() != parent) /* it ended before it was said that this one ends with it */
        _exit(1);
    if (r == 0)
        r = copy_between(from, is_raw, to, work, words, &err);
    if (r < 0) {
        struct word word = {.code = r};
        text_copy(word.text, sizeof word.text, err.text);
        (void)!write(words, &word, sizeof word);
    }
    _exit(r < 0 ? 1 : 0);
}

/* ---- in the child ---- */

/* Until it ends. Its words are not trusted: they are no more than words. */
static void words_take(int fd, const char *step, struct word *ret_failure)
{
    struct word word;
    for (ssize_t n; (n = read(fd, &word, sizeof word)) != 0;) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n != (ssize_t)sizeof word)
            return;
        word.text[sizeof word.text - 1] = '\0';
        if (word.code == 0)
            task_child_tell(step, MIN(word.done, (uint64_t)INT64_MAX), MIN(word.total, (uint64_t)INT64_MAX));
        else
            *ret_failure = word;
    }
}

/* A process of its own copies; it is told as @step. */
static int copy_run(int from, bool is_raw, int to, const struct volume_move *work, uid_t user, const char *step, struct error *err)
{
    int fds[2], status = 0;
    struct word failure = {.code = 0};
    struct stat st;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot start a process");
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        copier(from, is_raw, to, work, user, fds[1], parent);
    close(fds[1]);
    if (pid > 0)
        words_take(fds[0], step, &failure);
    close(fds[0]);
    if (pid < 0)
        return error_errno(err, -errno, "cannot start a process");
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    CLEANUP_FREE char *head = xasprintf("%s.disk", work->to.disk);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return fstatat(to, head, &st, AT_SYMLINK_NOFOLLOW) < 0 ? error_errno(err, -errno, "the copy is not there") : 0;
    bool no_space = failure.code == -ENOSPC;
    return error_set(err, no_space ? -ENOSPC : -EIO, no_space ? ERROR_NO_SPACE : ERROR_INTERNAL, "%s",
                     failure.text[0] != '\0' ? failure.text : "the process that copies has ended without a word");
}

/* Its layers' directory, or that of the one file that it is. *ret_raw: that it is; *ret_user: whose it is. */
static int source_find(const struct volume_order *order, const struct vm_disk *disk, int *ret_fd, bool *ret_raw, uid_t *ret_user,
                       struct error *err)
{
    CLEANUP_FREE char *layers = pool_dir_disk(&order->pool, order->id, disk);
    CLEANUP_FREE char *owner = xstrdup(layers);
    CLEANUP_FREE char *raw = xasprintf("%s.raw", disk->name);
    CLEANUP_FD int fd = open(layers, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    *ret_raw = fd < 0 && errno == ENOENT && pool_dir_is_here(&order->pool) && disk->place == NULL;
    *strrchr(owner, '/') = '\0';
    if (*ret_raw)
        fd = open(owner, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || (*ret_raw ? fstatat(fd, raw, &st, AT_SYMLINK_NOFOLLOW) : fstat(fd, &st)) < 0)
        return error_errno(err, -errno, "cannot open %s", layers);
    *ret_user = st.st_uid;
    *ret_fd = fd;
    fd = -1;
    return 0;
}

static int move(const struct volume_move *work, const char *step, struct error *err)
{
    const struct vm_disk from = disk_of(&work->from), to = disk_of(&work->to);
    const char *vm_id = work->to.id; /* where it is a VM's own */
    CLEANUP_FREE char *target = NULL;
    CLEANUP_FD int from_fd = -1;
    bool is_raw = false;
    uid_t user = 0;
    int r = pool_dir_check(&work->from.pool, err);
    if (r == 0)
        r = pool_dir_check(&work->to.pool, err);
    if (r == 0)
        r = pool_dir_copy_is_whole(&work->to.pool, vm_id, &to, err);
    if (r != 0)
        return MIN(r, 0); /* done before, and only the last word was lost */
    r = source_find(&work->from, &from, &from_fd, &is_raw, &user, err);
    if (r == 0)
        r = pool_dir_copy_begin(&work->to.pool, vm_id, &to, user, &target, err);
    if (r < 0)
        return r;
    CLEANUP_FD int to_fd = open(target, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (to_fd < 0)
        return error_errno(err, -errno, "cannot open %s", target);
    r = copy_run(from_fd, is_raw, to_fd, work, user, step, err);
    return r < 0 ? r : pool_dir_copy_end(&work->to.pool, vm_id, &to, err);
}

int task_volume_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct volume_move work = {.head = {0}};
    int r = OBJECT_DECODE(volume_move, arguments, size, OBJECT_STORED, &work, err);
    if (r == 0)
        r = move(&work, "copying", err);
    OBJECT_CLEAR(volume_move, &work);
    return r;
}

/* One after another: each that is whole stays so. */
int task_clone_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct vm_copy work = {.head = {0}};
    char step[STEP_BYTES];
    int r = OBJECT_DECODE(vm_copy, arguments, size, OBJECT_STORED, &work, err);
    for (size_t i = 0; r == 0 && i < work.disks.count; i++) {
        const struct volume_move *disk = (const struct volume_move *)work.disks.items + i;
        snprintf(step, sizeof step, "copying disk %s (%zu of %zu)", disk->from.disk, i + 1, work.disks.count);
        r = move(disk, step, err);
        if (r < 0)
            error_prefix(err, "disk %s: ", disk->from.disk);
    }
    OBJECT_CLEAR(vm_copy, &work);
    return r;
}
