/* One point of a replica, on either host; see the header. */
#include "compute/agent/task_replicate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/backup_disks.h"
#include "compute/agent/replica_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_session.h"
#include "compute/agent/task_way.h"
#include "compute/agent/vmm_images.h"
#include "migration/replica_stream.h"

enum {
    LOOK_MS = 200,
    SOURCE_COMES_MS = 60000,  /* to the replica's host, after that has said that it is ready */
    SOCKET_LIMIT_S = 600,     /* without a byte from the other side: it merges layers, or looks for what has changed */
    IMAGES_IDLE_LIMIT_S = 10, /* the VMM gives up images of a child that was killed */
};
#define BASE_NAME "replica-" /* and the replica's id: the VMM's name for what the next point is made since */

struct replicate {
    struct task_way way; /* its path is between child and tunnel */
    struct replica_result result;
    bool has_result;
};

static struct replicate *of_way(struct task_way *w)
{
    return CONTAINER_OF(w, struct replicate, way);
}

static bool is_main(const struct replicate *p)
{
    return task_way_is_main(&p->way);
}

/* ---- the end ---- */

static void way_freed(struct task_way *w)
{
    struct replicate *p = of_way(w);
    struct task_seen *seen = &w->task->seen;
    if (p->has_result) {
        OBJECT_COPY(replica_result, &seen->replica, &p->result);
        object_mark(&task_seen_desc, seen, "replica");
    }
    OBJECT_CLEAR(replica_result, &p->result);
    free(p);
}

static void over(struct replicate *p, enum operation_state state)
{
    ASSERT(p->way.child == NULL);
    task_way_over(&p->way, state);
}

static void fail(struct replicate *p, int code, const char *text)
{
    if (p->way.child != NULL) { /* its end comes, and with its own reason */
        task_child_ask(p->way.child);
        return;
    }
    error_set(&p->way.err, code, ERROR_CONFLICT, "%s", text);
    over(p, p->way.yielding ? operation_state_CANCELLED : operation_state_FAILED);
}

/* Something else comes first: nothing has failed, and the next point is made when that is done. */
static void yield(struct replicate *p)
{
    p->way.yielding = true;
    fail(p, -EBUSY, "something else is being done with the VM's disks");
}

/* ---- which disks ---- */

void replicate_disks(const struct vm_order *order, struct string_list *to)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        if (!replica_dir_copies(order, &disks[i]))
            continue;
        to->items = xrealloc(to->items, (to->count + 1) * sizeof *to->items);
        to->items[to->count++] = xstrdup(disks[i].name);
    }
}

bool replicate_has_others(const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (!disks[i].read_only && !replica_dir_copies(order, &disks[i]))
            return true;
    return false;
}

int replicate_places(const struct agent *a, const struct task_order *order, struct replicate_work *work, struct error *err)
{
    const struct replica_place *places = order->replica_places.items;
    int code = replica_dir_check(a->replicas_dir, a->vms_dir, err);
    OBJECT_TEXT(replicate_work, work, replicas_dir, a->replicas_dir);
    for (size_t i = 0; code == 0 && i < order->replica_places.count; i++) {
        code = pool_watch_there(&a->pools, places[i].pool.id, places[i].pool.name, err);
        OBJECT_COPY(replica_place, (struct replica_place *)OBJECT_ADD(replicate_work, work, places), &places[i]);
    }
    return code;
}

/* ---- the child ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct replicate *p = arg;
    if (p->way.task->stopping)
        return;
    if (!is_main(p) && p->way.tunnel == NULL)
        task_way_open(&p->way, geteuid()); /* its first word: it listens */
    if (is_main(p))
        agent_task_progress(p->way.task, seen->step, seen->progress_done, seen->progress_total);
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct replicate *p = arg;
    p->way.child = NULL;
    if (OBJECT_HAS(task_seen, seen, replica)) {
        OBJECT_COPY(replica_result, &p->result, &seen->replica);
        p->has_result = true;
    }
    if (seen->state != operation_state_SUCCEEDED)
        error_set(&p->way.err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    over(p, p->way.yielding && seen->state == operation_state_FAILED ? operation_state_CANCELLED : seen->state);
}

static void source_fill(const struct replicate *p, const struct local_vm *vm, struct replicate_work *work)
{
    const struct vm_order *order = vm_order_of(vm);
    CLEANUP_FREE char *socket_path = vm_files_path(&vm_context_of(vm)->places, p->way.vm, VM_BACKUP_SOCKET);
    OBJECT_TEXT(replicate_work, work, control_path, vm_control_path(vm));
    OBJECT_TEXT(replicate_work, work, socket_path, socket_path);
    OBJECT_SET(replicate_work, work, user, vm_user(vm));
    replicate_disks(order, &work->disks);
    if (work->disks.count > 0)
        object_mark(&replicate_work_desc, work, "disks");
    if (replicate_has_others(order))
        OBJECT_SET(replicate_work, work, others, true);
}

static int child_begin(struct replicate *p, const struct local_vm *vm)
{
    struct replicate_work work = {.vm = NULL};
    OBJECT_TEXT(replicate_work, &work, vm, p->way.vm);
    OBJECT_SET(replicate_work, &work, epoch, p->way.task->order.task.epoch);
    OBJECT_TEXT(replicate_work, &work, way, p->way.path);
    if (OBJECT_HAS(task, &p->way.task->order.task, replica)) {
        OBJECT_COPY(vm_replica_start, &work.replica, &p->way.task->order.task.replica);
        object_mark(&replicate_work_desc, &work, "replica");
    }
    if (vm != NULL)
        source_fill(p, vm, &work);
    int code = vm == NULL ? replicate_places(p->way.agent, &p->way.task->order, &work, &p->way.err) : 0;
    const struct task_child_options options = {.loop = p->way.agent->loop,
                                               .work = vm != NULL ? "replicate-send" : "replicate-receive",
                                               .desc = &replicate_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = p};
    if (code == 0)
        code = task_child_start(&options, &p->way.child, &p->way.err);
    OBJECT_CLEAR(replicate_work, &work);
    return code;
}

/* ---- the way ---- */

static void source_begin(struct replicate *p);

static void way_listening(struct task_way *w, const char *endpoint)
{
    if (task_way_is_main(w))
        source_begin(of_way(w));
    else
        agent_task_ready(w->task, endpoint);
}

static void way_failed(struct task_way *w, int code, const char *text)
{
    fail(of_way(w), code, text);
}

/* ---- the VM's host ---- */

static void source_begin(struct replicate *p)
{
    struct local_vm *vm = task_way_vm(&p->way);
    if (vm == NULL || vm_disks(vm) != VM_DISKS_IN_USE)
        fail(p, -EAGAIN, "the VM does not run");
    else if (child_begin(p, vm) < 0)
        over(p, operation_state_FAILED);
}

static void source_look(struct replicate *p)
{
    const struct task *task = &p->way.task->order.task;
    struct local_vm *vm = task_way_vm(&p->way);
    if (p->way.tunnel != NULL || p->way.over)
        return;
    if (vm == NULL || vm_order_of(vm)->epoch != task->epoch || vm_disks(vm) != VM_DISKS_IN_USE)
        fail(p, -EAGAIN, "the VM does not run here under that epoch");
    else if (task_way_others_work(&p->way))
        yield(p);
    else if (task->peer_error != NULL)
        fail(p, -EPIPE, task->peer_error);
    else if (task->peer_ready && task->peer_endpoint != NULL)
        task_way_open(&p->way, geteuid());
}

/* ---- the task ---- */

static void peer_begin(struct replicate *p)
{
    if (task_way_vm(&p->way) != NULL)
        fail(p, -EBUSY, "something of the VM itself is still on this host");
    else if (child_begin(p, NULL) < 0)
        over(p, operation_state_FAILED);
}

static void way_look(struct task_way *w)
{
    if (task_way_is_main(w))
        source_look(of_way(w));
    else
        peer_begin(of_way(w));
}

static void start(struct agent_task *task)
{
    if (OBJECT_HAS(task, &task->order.task, session)) {
        task->ops = &task_session_ops;
        task->ops->start(task);
        return;
    }
    static const struct task_way_ops ops = {.look = way_look, .listening = way_listening, .failed = way_failed, .freed = way_freed};
    struct replicate *p = NEW(struct replicate);
    task->state = p;
    task_way_init(&p->way, task, &ops);
    p->way.path = xasprintf("%s/" TASK_WAY_BEGINS "%c%.8s.sock", task->agent->run_dir, is_main(p) ? 'o' : 'i', task->order.id);
    unlink(p->way.path); /* of an agent that was killed */
}

static void changed(struct agent_task *task)
{
    struct replicate *p = task->state;
    if (p != NULL && is_main(p))
        task_way_look_in(&p->way, 0);
}

static void cancel(struct agent_task *task)
{
    struct replicate *p = task->state;
    if (p == NULL || p->way.over)
        return;
    p->way.yielding = true;
    if (p->way.child != NULL) {
        task_child_ask(p->way.child);
        return;
    }
    error_set(&p->way.err, -ECANCELED, ERROR_CANCELLED, "cancelled; the last complete point stays");
    over(p, operation_state_CANCELLED);
}

static void stop(struct agent_task *task)
{
    struct replicate *p = task->state;
    if (p->way.child != NULL)
        task_child_kill(p->way.child);
    else if (!p->way.over)
        over(p, operation_state_CANCELLED);
}

const struct agent_task_ops task_replicate_ops = {.start = start, .cancel = cancel, .changed = changed, .stop = stop, .clean = task_way_clean};

bool replicate_yields(struct agent *a, const char *vm)
{
    struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;) {
        if (task_session_yield(task, vm))
            return true;
        struct replicate *p = task->ops == &task_replicate_ops ? task->state : NULL;
        if (p == NULL || !is_main(p) || strcmp(p->way.vm, vm) != 0)
            continue;
        yield(p);
        return true;
    }
    const struct local_vm *local = map_get(&a->vms, vm);
    return local != NULL && !vm_replica_is_over(local); /* its VMM has not heard of the end of a session yet */
}

/* ---- replicas that are over ---- */

static void sweep(struct pool_work *work)
{
    struct agent *a = CONTAINER_OF(work, struct agent, replicas.sweep);
    replica_dir_sweep(a->replicas_dir, &a->replicas.pools, &a->replicas.wanted);
}

static void swept(struct pool_work *work)
{
    struct agent *a = CONTAINER_OF(work, struct agent, replicas.sweep);
    struct string_list *wanted = &a->replicas.wanted;
    while (wanted->count > 0)
        free(wanted->items[--wanted->count]);
    free(wanted->items);
    *wanted = (struct string_list){.count = 0};
    struct object_list *pools = &a->replicas.pools;
    while (pools->count > 0)
        OBJECT_CLEAR(pool_order, (struct pool_order *)pools->items + --pools->count);
    free(TAKE_PTR(pools->items));
    a->replicas.sweeping = false;
    agent_part_closed(a);
}

/* May there be any replica here? */
static bool has_places(const struct agent *a, const struct object_list *pools)
{
    const struct pool_order *all = pools->items;
    bool any = access(a->replicas_dir, F_OK) == 0;
    for (size_t i = 0; !any && i < pools->count; i++)
        any = all[i].kind == pool_kind_DIR;
    return any;
}

/* Those that a sweep may look into: it waits for no file server that is gone. */
static void pools_take(struct agent *a, const struct object_list *orders)
{
    const struct pool_order *all = orders->items;
    struct object_list *pools = &a->replicas.pools;
    pools->items = xcalloc(orders->count + 1, sizeof *all);
    for (size_t i = 0; i < orders->count; i++)
        if (all[i].kind == pool_kind_DIR && pool_watch_there(&a->pools, all[i].id, all[i].name, NULL) == 0)
            OBJECT_COPY(pool_order, (struct pool_order *)pools->items + pools->count++, &all[i]);
}

/* What the newest orders name is not to go, nor what a point is under way for: that one is locked. */
void agent_replicas_obey(struct agent *a, const struct node_orders *orders)
{
    struct string_list *wanted = &a->replicas.wanted;
    bool old = orders->index < a->replicas.index;
    a->replicas.index = MAX(a->replicas.index, orders->index);
    if (old || a->replicas.sweeping || a->stopping || !OBJECT_HAS(node_orders, orders, replicas) || !has_places(a, &orders->pools))
        return;
    a->replicas.sweeping = true;
    a->closing++;
    wanted->items = xcalloc(orders->replicas.count + 1, sizeof *wanted->items);
    for (size_t i = 0; i < orders->replicas.count; i++)
        wanted->items[wanted->count++] = xstrdup(orders->replicas.items[i]);
    pools_take(a, &orders->pools);
    pool_work_begin(&a->pool_works, a->loop, "replicas", &a->replicas.sweep, sweep, swept);
}

void agent_replicas_new_cluster_epoch(struct agent *a)
{
    a->replicas.index = 0;
    replica_dir_keep_all(a->replicas_dir);
}

/* ---- the children ---- */

static int limits_set(int fd)
{
    struct timeval limit = {.tv_sec = SOCKET_LIMIT_S};
    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
                   setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0
               ? -errno
               : 0;
}

static volatile sig_atomic_t way_fd = -1;

/* Asked to end: the other side is gone, as it seems, and the images are given back. */
static void on_term(int signal_number UNUSED)
{
    int fd = way_fd;
    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
    else
        _exit(1);
}

static void term_take(int fd)
{
    struct sigaction action = {.sa_handler = on_term};
    way_fd = fd;
    sigaction(SIGTERM, &action, NULL);
}

static int way_connect(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 && limits_set(fd) == 0)
        return fd;
    int code = error_errno(err, -errno, "cannot connect to %s", path);
    close_fd(&fd);
    return code;
}

/* One connection; nothing else can be listened to meanwhile. */
static int way_accept(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    CLEANUP_FD int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t mask = umask(0177);
    bool bound = listener >= 0 && bind(listener, (const struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0;
    int code = bound ? 0 : error_errno(err, -errno, "cannot listen at %s", path);
    umask(mask);
    if (code < 0)
        return code;
    task_child_tell("waiting for the VM's host", 0, 0);
    struct pollfd wait = {.fd = listener, .events = POLLIN};
    if (poll(&wait, 1, SOURCE_COMES_MS) <= 0)
        return error_set(err, -ETIMEDOUT, ERROR_UNREACHABLE, "the VM's host did not come within %d s", SOURCE_COMES_MS / 1000);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 || limits_set(fd) < 0)
        return error_errno(err, -errno, "cannot accept the VM's host");
    return fd;
}

int task_replicate_receive_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct replicate_work work = {.vm = NULL};
    struct replica_dir dir;
    struct replica_store store;
    int code = OBJECT_DECODE(replicate_work, arguments, size, OBJECT_STORED, &work, err);
    if (code < 0)
        return code;
    code = replica_dir_check_pools(&work.places, work.vm, err);
    if (code == 0)
        code = replica_dir_open(work.replicas_dir, work.vm, true, &work.places, &dir, err);
    if (code == 0 && (code = replica_store_open(&dir.places, work.vm, true, &store, err)) < 0)
        replica_dir_close(&dir);
    CLEANUP_FD int fd = code == 0 ? way_accept(work.way, err) : -1;
    if (code == 0) {
        const struct replica_known known = {.id = work.replica.id, .number = work.replica.number, .session = work.replica.session};
        code = fd < 0 ? fd : replica_store_settle(&store, &known, err);
        if (code == 0)
            code = replica_receive(fd, &store, work.epoch, err);
        if (code == 0)
            replica_dir_known(&dir);
        replica_store_close(&store);
        replica_dir_close(&dir);
    }
    OBJECT_CLEAR(replicate_work, &work);
    return code;
}

/* ---- the source's child ---- */

struct source {
    const struct replicate_work *work;
    char name[64]; /* of the images */
    bool begun;
};

static int disk_open(const struct source *s, const char *disk, bool since, struct replica_source *to, struct error *err)
{
    int fd = backup_disks_connect(s->work->socket_path, geteuid() == 0 ? s->work->user : geteuid(), err);
    if (fd < 0)
        return fd;
    const struct nbd_client_options options = {
        .has_fd = true, .fd = fd, .export_name = disk, .changed_since = since ? s->name : NULL, .read_only = true};
    struct replica_source_disk *d = &to->disks[to->count];
    int code = nbd_client_open(&options, &d->block, err);
    if (code < 0)
        return code;
    d->name = disk;
    d->extent = NULL;
    to->count++;
    to->whole = to->whole || !nbd_client_has_changed(d->block);
    return 0;
}

/* The images are of one instant, whatever the disks are asked for afterwards. */
static int source_open(void *arg, struct replica_source *to, const char *id, uint64_t number, struct error *err)
{
    struct source *s = arg;
    struct vmm_backup_order order = {.name = NULL};
    struct vmm_backup images = {.phase = 0};
    const struct vmm_backup_disk *disks;
    snprintf(s->name, sizeof s->name, BASE_NAME "%s", id);
    OBJECT_TEXT(vmm_backup_order, &order, name, s->name);
    OBJECT_TEXT(vmm_backup_order, &order, path, s->work->socket_path);
    OBJECT_SET(vmm_backup_order, &order, freeze, vmm_backup_freeze_NEVER); /* every few seconds the guest would feel it */
    OBJECT_SET(vmm_backup_order, &order, idle_limit_s, IMAGES_IDLE_LIMIT_S);
    if (number > 0)
        OBJECT_TEXT(vmm_backup_order, &order, since, s->name);
    if (s->work->others) { /* nobody would read images of those, and what is written there would fill the spill */
        struct vmm_backup_order some = {.disks = s->work->disks}; /* borrowed: merge copies */
        object_mark(&vmm_backup_order_desc, &some, "disks");
        object_merge(&vmm_backup_order_desc, &order, &some);
    }
    task_child_tell("taking images of the disks", 0, 0);
    int code = vmm_images_begin(s->work->control_path, &order, &images, err);
    OBJECT_CLEAR(vmm_backup_order, &order);
    if (code < 0 && s->work->others && err->kind == ERROR_UNKNOWN_FIELD)
        return error_set(err, code, ERROR_NOT_SUPPORTED, "%s", REPLICATE_VMM_IS_OLD);
    if (code < 0)
        return code;
    s->begun = true;
    to->whole = number == 0;
    disks = images.disks.items;
    for (size_t i = 0; code == 0 && i < s->work->disks.count; i++) {
        bool known = false;
        for (size_t k = 0; k < images.disks.count; k++)
            known = known || (strcmp(disks[k].id, s->work->disks.items[i]) == 0 && disks[k].changed_known);
        code = disk_open(s, s->work->disks.items[i], number > 0 && known, to, err);
    }
    OBJECT_CLEAR(vmm_backup, &images);
    return code;
}

static void source_sent(void *arg UNUSED, uint64_t done, uint64_t total)
{
    task_child_tell("sending", done, total);
}

static int point_send(const struct replicate_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct source s = {.work = work};
    struct replica_source source = {.epoch = work->epoch,
                                    .known_id = work->replica.id,
                                    .known_number = work->replica.number,
                                    .open = source_open,
                                    .sent = source_sent,
                                    .arg = &s};
    struct replica_sent sent;
    CLEANUP_FD int fd = way_connect(work->way, err);
    if (fd < 0)
        return fd;
    term_take(fd);
    int code = replica_send(fd, &source, &sent, err);
    for (unsigned i = 0; i < source.count; i++)
        block_close(source.disks[i].block);
    /* Where the VMM does not hear that the point is complete, the next one is made since one before it: more than needed. */
    if (s.begun)
        (void)vmm_images_end(work->control_path, s.name, code == 0, NULL);
    if (code < 0)
        return code;
    OBJECT_TEXT(replica_result, &ret_seen->replica, id, sent.id);
    OBJECT_SET(replica_result, &ret_seen->replica, number, sent.number);
    OBJECT_SET(replica_result, &ret_seen->replica, sent_bytes, sent.bytes);
    object_mark(&task_seen_desc, ret_seen, "replica");
    return 0;
}

int task_replicate_send_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err)
{
    struct replicate_work work = {.vm = NULL};
    int code = OBJECT_DECODE(replicate_work, arguments, size, OBJECT_STORED, &work, err);
    if (code == 0 && (work.disks.count == 0 || work.disks.count > REPLICA_DISKS_MAX || work.control_path == NULL || work.socket_path == NULL))
        code = error_set(err, -EINVAL, ERROR_INVALID, "a replica has 1 to %d disks of a VM that runs", REPLICA_DISKS_MAX);
    if (code == 0)
        code = point_send(&work, ret_seen, err);
    OBJECT_CLEAR(replicate_work, &work);
    return code;
}
