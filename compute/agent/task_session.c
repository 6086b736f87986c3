/* Sessions with replicas, on either host; see the header. */
#include "compute/agent/task_session.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/nbd_server.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/replica_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_replicate.h"
#include "compute/agent/task_way.h"

enum { LOOK_MS = 200, VMM_SILENT_MS = 5000 /* beyond what it may wait for the replica with its lock held */ };
#define BASE_BYTES 64

struct session {
    struct task_way way; /* main: its path is where its VMM connects to; peer: where the child listens */
    uint64_t answered_ms; /* main: when its VMM answered last, by the loop's clock */
    bool listening, begun;
    bool is_part; /* main: the VM writes to disks, too, that the replica has not */
};

static struct session *of_way(struct task_way *w)
{
    return CONTAINER_OF(w, struct session, way);
}

static bool is_main(const struct session *s)
{
    return task_way_is_main(&s->way);
}

static void way_freed(struct task_way *w)
{
    free(of_way(w));
}

static void fail(struct session *s, int code, const char *text)
{
    if (s->way.over)
        return;
    error_set(&s->way.err, code, ERROR_CONFLICT, "%.600s", text);
    task_way_over(&s->way, s->way.yielding ? operation_state_CANCELLED : operation_state_FAILED);
}

/* ---- the way ---- */

static void way_listening(struct task_way *w, const char *endpoint)
{
    of_way(w)->listening = true;
    if (task_way_is_main(w))
        task_way_look_in(w, 0);
    else
        agent_task_ready(w->task, endpoint);
}

static void way_failed(struct task_way *w, int code, const char *text)
{
    fail(of_way(w), code, text);
}

/* ---- the VM's host ---- */

static int ask(struct session *s, struct local_vm *vm, const char *method, const struct bytes_writer *body, http_client_done done)
{
    const struct http_call_options options = {.method = method,
                                              .url = "http://vmm/v1/vm/replica",
                                              .unix_socket = vm_control_path(vm),
                                              .body = body != NULL ? body->data : NULL,
                                              .body_size = body != NULL ? body->size : 0,
                                              .deadline_ms = VM_CONTROL_MS,
                                              .done = done,
                                              .arg = s};
    struct error err = {.code = 0};
    int code = options.unix_socket == NULL ? -ENOTCONN : http_client_start(vm_context_of(vm)->http, &options, &s->way.call, &err);
    if (code < 0)
        fail(s, code, "its VMM does not answer");
    return code;
}

/* What the VMM says: level, under way, or over. */
static void fares(struct session *s, const struct vmm_replica *answer)
{
    switch (answer->session == s->way.task->order.task.session ? answer->phase : vmm_replica_phase_NONE) {
    case vmm_replica_phase_CONNECT:
    case vmm_replica_phase_COPY:
        agent_task_progress(s->way.task, "bringing the replica level", answer->copied_bytes, answer->copied_bytes + answer->left_bytes);
        break;
    case vmm_replica_phase_LEVEL:
        if (!s->way.task->seen.ready) {
            agent_task_progress(s->way.task, "the replica is in sync", 0, 0);
            agent_task_ready(s->way.task, NULL);
        }
        break;
    default:
        fail(s, -EIO, answer->failure != NULL ? answer->failure : "its VMM has begun anew");
    }
}

static void on_answer(const struct http_answer *http, void *arg)
{
    struct session *s = arg;
    struct vmm_replica answer = {.phase = 0};
    s->way.call = NULL;
    if (s->way.over) {
        task_way_finish(&s->way);
        return;
    }
    uint64_t waits_ms = MAX(s->way.task->order.task.patience_s, 1u) * UINT64_C(1000) + VMM_SILENT_MS;
    if (s->begun && http->error != 0 && uv_now(s->way.agent->loop) < s->answered_ms + waits_ms) { /* it is slow, or ends: the next look tells */
        task_way_look_in(&s->way, LOOK_MS);
        return;
    }
    if (http->error != 0 || http->status / 100 != 2) {
        fail(s, -EIO, http->status == 404                ? "its VMM knows nothing of sessions with replicas: upgrade it (drover vm upgrade)"
                      : s->is_part && http->problem.kind == ERROR_UNKNOWN_FIELD ? REPLICATE_VMM_IS_OLD
                      : http->problem.text[0] != '\0' ? http->problem.text
                                                       : "its VMM does not answer");
        return;
    }
    s->begun = true;
    s->answered_ms = uv_now(s->way.agent->loop);
    if (OBJECT_DECODE(vmm_replica, (const char *)http->body, http->body_size, OBJECT_LENIENT, &answer, &s->way.err) < 0)
        fail(s, -EPROTO, "its VMM answers something unknown");
    else
        fares(s, &answer);
    OBJECT_CLEAR(vmm_replica, &answer);
    task_way_look_in(&s->way, s->way.task->seen.ready ? LOOK_MS : LOOK_MS / 2);
}

static void base_name(char name[BASE_BYTES], const char *id, uint64_t number)
{
    snprintf(name, BASE_BYTES, "r-%.32s.%llu", id, (unsigned long long)number);
}

/* The name that the VMM has for what the replica holds. A point that was sent is known by the replica alone (task_replicate.c); what was
 * written since the last one that the VMM has heard of is more than what the replica lacks. */
static void base_of(const struct task *task, char name[BASE_BYTES])
{
    bool sent = OBJECT_HAS(task, task, replica) && task->replica.session == 0 && strcmp(task->replica.id, task->base.id) == 0 &&
                task->replica.number == task->base.number;
    if (sent)
        snprintf(name, BASE_BYTES, "replica-%.32s", task->base.id);
    else
        base_name(name, task->base.id, task->base.number);
}

static void vmm_begin(struct session *s, struct local_vm *vm)
{
    const struct task *task = &s->way.task->order.task;
    struct vmm_replica_order order = {.session = 0};
    struct bytes_writer body = {.data = NULL};
    char base[BASE_BYTES], keep[BASE_BYTES];
    base_of(task, base);
    base_name(keep, task->base.id, task->base.number + 1);
    OBJECT_SET(vmm_replica_order, &order, session, task->session);
    OBJECT_TEXT(vmm_replica_order, &order, path, s->way.path);
    OBJECT_TEXT(vmm_replica_order, &order, base, base);
    OBJECT_TEXT(vmm_replica_order, &order, keep, keep);
    OBJECT_SET(vmm_replica_order, &order, patience_ms, MAX(task->patience_s, 1u) * 1000);
    s->is_part = replicate_has_others(vm_order_of(vm));
    if (s->is_part) { /* else a VMM of an older version can do it, too */
        replicate_disks(vm_order_of(vm), &order.disks);
        object_mark(&vmm_replica_order_desc, &order, "disks");
    }
    OBJECT_ENCODE(vmm_replica_order, &order, &body);
    OBJECT_CLEAR(vmm_replica_order, &order);
    (void)ask(s, vm, "POST", &body, on_answer);
    bytes_writer_finish(&body);
}

static void yield(struct session *s)
{
    s->way.yielding = true;
    fail(s, -EBUSY, "something else is being done with the VM's disks");
}

static void main_look(struct session *s)
{
    const struct task *task = &s->way.task->order.task;
    struct local_vm *vm = task_way_vm(&s->way);
    if (s->way.over || s->way.call != NULL)
        return;
    if (vm == NULL || vm_order_of(vm)->epoch != task->epoch || vm_disks(vm) != VM_DISKS_IN_USE)
        fail(s, -EAGAIN, "the VM does not run here under that epoch");
    else if (task_way_others_work(&s->way))
        yield(s);
    else if (task->peer_error != NULL)
        fail(s, -EPIPE, task->peer_error);
    else if (vm_order_of(vm)->replica_session > task->session)
        fail(s, -ESTALE, "another session has begun");
    else if (s->begun)
        (void)ask(s, vm, "GET", NULL, on_answer);
    else if (s->listening && !vm_replica_may_begin(vm, task->session))
        fail(s, -ESTALE, "the session is over before it has begun");
    else if (s->listening)
        vmm_begin(s, vm);
    else if (s->way.tunnel == NULL && task->peer_ready && !OBJECT_HAS(task, task, base))
        fail(s, -ENOTSUP, "the agent of the replica's host knows nothing of sessions: upgrade it");
    else if (s->way.tunnel == NULL && task->peer_ready && task->peer_endpoint != NULL && OBJECT_HAS(task, task, base) &&
             vm_replica_may_begin(vm, task->session)) { /* from here on no other VMM is started beside it */
        s->way.path = vm_departure_path(vm, s->way.task->order.id, false);
        unlink(s->way.path);
        task_way_open(&s->way, vm_user(vm));
    } else if (s->way.tunnel == NULL)
        task_way_look_in(&s->way, LOOK_MS);
}

/* ---- the replica's host ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct session *s = arg;
    struct task_seen *to = &s->way.task->seen;
    if (s->way.over || s->way.task->stopping || !OBJECT_HAS(task_seen, seen, base) || s->way.tunnel != NULL)
        return;
    OBJECT_CLEAR(replica_base, &to->base);
    OBJECT_COPY(replica_base, &to->base, &seen->base);
    object_mark(&task_seen_desc, to, "base");
    task_way_open(&s->way, geteuid());
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct session *s = arg;
    s->way.child = NULL;
    if (s->way.over)
        task_way_finish(&s->way);
    else
        fail(s, -EIO, seen->error_text != NULL ? seen->error_text : "the replica is not served any more");
}

static void peer_begin(struct session *s)
{
    const struct task *task = &s->way.task->order.task;
    struct replicate_work work = {.vm = NULL};
    if (task_way_vm(&s->way) != NULL) {
        fail(s, -EBUSY, "something of the VM itself is still on this host");
        return;
    }
    s->way.path = xasprintf("%s/" TASK_WAY_BEGINS "s%.8s.sock", s->way.agent->run_dir, s->way.task->order.id);
    unlink(s->way.path);
    OBJECT_TEXT(replicate_work, &work, vm, s->way.vm);
    OBJECT_SET(replicate_work, &work, epoch, task->epoch);
    OBJECT_SET(replicate_work, &work, session, task->session);
    OBJECT_TEXT(replicate_work, &work, way, s->way.path);
    if (OBJECT_HAS(task, task, replica)) {
        OBJECT_COPY(vm_replica_start, &work.replica, &task->replica);
        object_mark(&replicate_work_desc, &work, "replica");
    }
    const struct task_child_options options = {.loop = s->way.agent->loop,
                                               .work = "replicate-serve",
                                               .desc = &replicate_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = s};
    struct error err = {.code = 0};
    int code = replicate_places(s->way.agent, &s->way.task->order, &work, &err);
    if (code == 0)
        code = task_child_start(&options, &s->way.child, &err);
    OBJECT_CLEAR(replicate_work, &work);
    if (code < 0)
        fail(s, code, err.text);
}

/* ---- the task ---- */

static void way_look(struct task_way *w)
{
    if (task_way_is_main(w))
        main_look(of_way(w));
    else
        peer_begin(of_way(w));
}

static void start(struct agent_task *task)
{
    static const struct task_way_ops ops = {.look = way_look, .listening = way_listening, .failed = way_failed, .freed = way_freed};
    struct session *s = NEW(struct session);
    task->state = s;
    task_way_init(&s->way, task, &ops);
}

static void changed(struct agent_task *task)
{
    struct session *s = task->state;
    if (s != NULL && is_main(s) && s->way.call == NULL)
        task_way_look_in(&s->way, 0);
}

static void cancel(struct agent_task *task)
{
    struct session *s = task->state;
    if (s == NULL)
        return;
    s->way.yielding = true;
    fail(s, -ECANCELED, "cancelled");
}

static void stop(struct agent_task *task)
{
    struct session *s = task->state;
    task_way_over(&s->way, operation_state_CANCELLED);
}

const struct agent_task_ops task_session_ops = {.start = start, .cancel = cancel, .changed = changed, .stop = stop};

bool task_session_yield(struct agent_task *task, const char *vm)
{
    struct session *s = task->ops == &task_session_ops ? task->state : NULL;
    if (s == NULL || !is_main(s) || strcmp(s->way.vm, vm) != 0)
        return false;
    yield(s);
    return true;
}

/* ---- the child ---- */

static struct nbd_server *served;

static void on_term(int signal_number UNUSED)
{
    nbd_server_stop(served);
}

static int serve(struct replica_store *store, const char *way, struct error *err)
{
    struct nbd_export exports[REPLICA_DISKS_MAX];
    struct sigaction action = {.sa_handler = on_term};
    struct task_seen seen = {0};
    for (unsigned i = 0; i < store->count; i++)
        exports[i] =
            (struct nbd_export){.name = store->disks[i]->name, .block = &store->disks[i]->chain->block, .access = NBD_ACCESS_WRITE};
    const struct nbd_server_options options = {.socket_path = way, .exports = exports, .export_count = store->count};
    int code = nbd_server_create(&options, &served, err);
    if (code < 0)
        return code;
    sigaction(SIGTERM, &action, NULL);
    OBJECT_SET(task_seen, &seen, state, operation_state_RUNNING);
    OBJECT_TEXT(task_seen, &seen, step, "serving the replica's disks");
    OBJECT_TEXT(replica_base, &seen.base, id, store->record.id);
    OBJECT_SET(replica_base, &seen.base, number, store->record.number);
    object_mark(&task_seen_desc, &seen, "base");
    task_child_tell_seen(&seen);
    OBJECT_CLEAR(task_seen, &seen);
    nbd_server_run(served);
    nbd_server_destroy(served);
    return 0;
}

int task_session_serve_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct replicate_work work = {.vm = NULL};
    struct replica_dir dir;
    struct replica_store store;
    int code = OBJECT_DECODE(replicate_work, arguments, size, OBJECT_STORED, &work, err);
    if (code < 0)
        return code;
    const struct replica_known known = {.id = work.replica.id, .number = work.replica.number, .session = work.replica.session};
    code = replica_dir_check_pools(&work.places, work.vm, err);
    if (code == 0)
        code = replica_dir_open(work.replicas_dir, work.vm, true, &work.places, &dir, err);
    if (code == 0 && (code = replica_store_open(&dir.places, work.vm, false, &store, err)) < 0)
        replica_dir_close(&dir);
    if (code == -ENOENT)
        error_set(err, code, ERROR_NOT_FOUND, "the replica is not here any more: take it away (--replica-host '') and give it to the VM again");
    if (code == 0) {
        code = replica_store_settle(&store, &known, err);
        if (code == 0)
            code = replica_store_follow(&store, work.epoch, work.session, &store.record.disks, err);
        if (code == 0) {
            replica_dir_known(&dir);
            code = serve(&store, work.way, err);
        }
        replica_store_close(&store);
        replica_dir_close(&dir);
    }
    OBJECT_CLEAR(replicate_work, &work);
    return code;
}
