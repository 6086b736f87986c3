/* Sessions with a replica on the agents of both hosts: what is asked of the VMM and of the child, when, and how each end is told. The VM, its
 * VMM's answers, the tunnel and the child are the test's own; the way between them is the product's (task_way.c), on a real loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "compute/agent/agent.h"
#include "compute/agent/replica_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_session.h"
#include "compute/agent/tunnel_program.h"

#define OPERATION "aaaaaaaa-0000-4000-8000-000000000001"
#define OTHER_TASK "aaaaaaaa-0000-4000-8000-000000000002"
#define VM_ID "bbbbbbbb-0000-4000-8000-000000000001"
#define OWN_HOST "cccccccc-0000-4000-8000-000000000001"
#define PEER_HOST "cccccccc-0000-4000-8000-000000000002"
#define REPLICA "0123456789abcdef0123456789abcdef"
enum { SESSION = 5, EPOCH = 3, NUMBER = 8, PATIENCE_S = 2, VMM_USER = 1234, DEADLINE_S = 60 };

struct local_vm {
    struct vm_order order;
    bool has_others; /* disks that it writes to, and its replica has not */
    enum vm_disks disks;
    bool may_begin;
};

static struct {
    char step[80], endpoint[80];
    unsigned ready, progress, stopped, ends;
    enum operation_state end;
    char why[700];
} told;

static struct {
    unsigned started, stopped;
    struct tunnel_child_callbacks callbacks;
    void *arg;
    char peer[40], listen[160], connect[160];
    bool is_source;
    uid_t owner;
    void (*closed)(void *arg); /* of a stop that has not ended yet */
    void *closed_arg;
} tunnel;

static struct {
    unsigned asked, cancelled;
    bool open;
    char method[8], body[600];
    http_client_done done;
    void *arg;
} call;

static struct {
    unsigned started, killed;
    struct task_child_options options;
    struct replicate_work work;
} child;

static int replicas_code; /* of replicate_places */

/* ---- what the kind calls ---- */

void agent_task_progress(struct agent_task *task UNUSED, const char *step, uint64_t done UNUSED, uint64_t total UNUSED)
{
    told.progress++;
    snprintf(told.step, sizeof told.step, "%s", step);
}

void agent_task_ready(struct agent_task *task, const char *endpoint)
{
    told.ready++;
    OBJECT_SET(task_seen, &task->seen, ready, true);
    snprintf(told.endpoint, sizeof told.endpoint, "%s", endpoint != NULL ? endpoint : "(none)");
}

void agent_task_end(struct agent_task *task, enum operation_state state, const struct error *err)
{
    task->ended = true;
    told.ends++;
    told.end = state;
    snprintf(told.why, sizeof told.why, "%s", err->text);
}

void agent_task_stopped(struct agent_task *task UNUSED)
{
    told.stopped++;
}

int tunnel_child_start(uv_loop_t *loop UNUSED, const struct tunnel_program_options *options, const struct tunnel_child_callbacks *callbacks,
                       void *arg, struct tunnel_child **ret_child, struct error *err UNUSED)
{
    tunnel.started++;
    tunnel.callbacks = *callbacks;
    tunnel.arg = arg;
    snprintf(tunnel.peer, sizeof tunnel.peer, "%s", options->peer);
    snprintf(tunnel.listen, sizeof tunnel.listen, "%s", options->listen);
    snprintf(tunnel.connect, sizeof tunnel.connect, "%s", options->connect);
    tunnel.is_source = options->is_source;
    tunnel.owner = options->owner;
    *ret_child = (struct tunnel_child *)&tunnel;
    return 0;
}

void tunnel_child_stop(struct tunnel_child *stopping UNUSED, void (*closed)(void *arg), void *arg)
{
    tunnel.stopped++;
    tunnel.closed = closed;
    tunnel.closed_arg = arg;
}

int http_client_start(struct http_client *client UNUSED, const struct http_call_options *options, struct http_call **ret_call,
                      struct error *err UNUSED)
{
    assert_false(call.open); /* one at a time */
    assert_string_equal(options->unix_socket, "/run/vmm.sock");
    assert_string_equal(options->url, "http://vmm/v1/vm/replica");
    call.asked++;
    call.open = true;
    snprintf(call.method, sizeof call.method, "%s", options->method);
    snprintf(call.body, sizeof call.body, "%.*s", (int)options->body_size, options->body != NULL ? (const char *)options->body : "");
    call.done = options->done;
    call.arg = options->arg;
    *ret_call = (struct http_call *)&call;
    return 0;
}

void http_call_cancel(struct http_call *one UNUSED)
{
    call.cancelled++;
}

int task_child_start(const struct task_child_options *options, struct task_child **ret_child, struct error *err UNUSED)
{
    child.started++;
    child.options = *options;
    object_copy(&replicate_work_desc, &child.work, options->arguments);
    *ret_child = (struct task_child *)&child;
    return 0;
}

void task_child_kill(struct task_child *one UNUSED)
{
    child.killed++;
}

void task_child_tell_seen(const struct task_seen *seen UNUSED)
{
}

int replicate_places(const struct agent *a, const struct task_order *order UNUSED, struct replicate_work *work, struct error *err)
{
    OBJECT_TEXT(replicate_work, work, replicas_dir, a->replicas_dir);
    return replicas_code < 0 ? error_set(err, replicas_code, ERROR_CONFLICT, "%s is on another file system", a->replicas_dir) : 0;
}

int replica_dir_check_pools(const struct object_list *in_pools UNUSED, const char *vm UNUSED, struct error *err UNUSED)
{
    return 0;
}

int replica_dir_open(const char *replicas_dir UNUSED, const char *vm UNUSED, bool make, const struct object_list *in_pools UNUSED,
                     struct replica_dir *ret_dir UNUSED, struct error *err)
{
    assert_true(make);
    return error_set(err, replicas_code, ERROR_CONFLICT, "the directory's own words");
}

void replicate_disks(const struct vm_order *order UNUSED, struct string_list *to)
{
    to->items = xcalloc(1, sizeof *to->items);
    to->items[to->count++] = xstrdup("root");
}

bool replicate_has_others(const struct vm_order *order)
{
    const char *vm = (const char *)order - offsetof(struct local_vm, order);
    return ((const struct local_vm *)(const void *)vm)->has_others;
}

void replica_dir_close(struct replica_dir *dir UNUSED)
{
}

void replica_dir_known(const struct replica_dir *dir UNUSED)
{
}

const struct vm_order *vm_order_of(const struct local_vm *vm)
{
    return &vm->order;
}

enum vm_disks vm_disks(const struct local_vm *vm)
{
    return vm->disks;
}

const struct vm_context *vm_context_of(const struct local_vm *vm UNUSED)
{
    static const struct vm_context context;
    return &context;
}

const char *vm_control_path(const struct local_vm *vm UNUSED)
{
    return "/run/vmm.sock";
}

bool vm_replica_may_begin(const struct local_vm *vm, uint64_t session)
{
    assert_int_equal(session, SESSION);
    return vm->may_begin;
}

char *vm_departure_path(const struct local_vm *vm UNUSED, const char *operation UNUSED, bool disks UNUSED)
{
    return xstrdup("/tmp/drover-task-session.none");
}

uid_t vm_user(const struct local_vm *vm UNUSED)
{
    return VMM_USER;
}

/* ---- the host ---- */

struct fixture {
    uv_loop_t loop;
    struct agent agent;
    struct local_vm vm;
    struct agent_task task, other;
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    struct agent *a = &f->agent;
    alarm(DEADLINE_S);
    memset(&told, 0, sizeof told);
    memset(&tunnel, 0, sizeof tunnel);
    memset(&call, 0, sizeof call);
    memset(&child, 0, sizeof child);
    replicas_code = 0;
    uv_loop_init(&f->loop);
    a->loop = &f->loop;
    a->run_dir = a->data_dir = (char *)(uintptr_t)"/tmp/drover-task-session.none";
    a->replicas_dir = (char *)(uintptr_t)"/x/replicas";
    a->vms_dir = (char *)(uintptr_t)"/x/vms";
    a->migrations.listen = (char *)(uintptr_t)"0.0.0.0";
    OBJECT_SET(vm_order, &f->vm.order, epoch, EPOCH);
    OBJECT_SET(vm_order, &f->vm.order, replica_session, SESSION);
    f->vm.disks = VM_DISKS_IN_USE;
    f->vm.may_begin = true;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_null(f->task.state); /* each test brings it to its end */
    assert_int_equal(uv_loop_close(&f->loop), 0);
    OBJECT_CLEAR(task_order, &f->task.order);
    OBJECT_CLEAR(task_seen, &f->task.seen);
    OBJECT_CLEAR(task_order, &f->other.order);
    OBJECT_CLEAR(replicate_work, &child.work);
    map_finish(&f->agent.vms);
    map_finish(&f->agent.tasks.all);
    free(f);
    alarm(0);
    return 0;
}

static void task_make(struct fixture *f, enum task_role role)
{
    struct task *task = &f->task.order.task;
    f->task.agent = &f->agent;
    f->task.ops = &task_session_ops;
    OBJECT_TEXT(task_order, &f->task.order, id, OPERATION);
    OBJECT_SET(task_order, &f->task.order, role, role);
    OBJECT_TEXT(task, task, host, OWN_HOST);
    OBJECT_TEXT(task, task, peer, PEER_HOST);
    OBJECT_TEXT(task, task, vm, VM_ID);
    OBJECT_SET(task, task, epoch, EPOCH);
    OBJECT_SET(task, task, session, SESSION);
    OBJECT_SET(task, task, patience_s, PATIENCE_S);
    map_put(&f->agent.tasks.all, OPERATION, &f->task);
}

/* The replica's host listens, and says what it holds. */
static void peer_is_ready(struct fixture *f)
{
    struct task *task = &f->task.order.task;
    OBJECT_SET(task, task, peer_ready, true);
    OBJECT_TEXT(task, task, peer_endpoint, "192.0.2.2:7");
    OBJECT_TEXT(replica_base, &task->base, id, REPLICA);
    OBJECT_SET(replica_base, &task->base, number, NUMBER);
    object_mark(&task_desc, task, "base");
}

/* As the VM's host; the order is as it came first. */
static void main_begin(struct fixture *f)
{
    task_make(f, task_role_MAIN);
    map_put(&f->agent.vms, VM_ID, &f->vm);
    task_session_ops.start(&f->task);
}

static void turn_until(struct fixture *f, const unsigned *count, unsigned value)
{
    while (*count < value)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void answer(int error, int status, const char *body)
{
    struct http_answer http = {.error = error, .status = status, .body = (const uint8_t *)body, .body_size = strlen(body)};
    assert_true(call.open);
    call.open = false;
    call.done(&http, call.arg);
}

static void ended(struct fixture *f, enum operation_state state, const char *words)
{
    while (told.ends == 0 && tunnel.started > 0 && tunnel.closed == NULL)
        uv_run(&f->loop, UV_RUN_ONCE);
    if (tunnel.closed != NULL) {
        assert_int_equal(told.ends, 0); /* not before all of it has gone */
        tunnel.closed(tunnel.closed_arg);
        tunnel.closed = NULL;
    }
    turn_until(f, &told.ends, 1);
    assert_int_equal(told.end, state);
    if (strstr(told.why, words) == NULL)
        fail_msg("not '%s' but '%s'", words, told.why);
    assert_int_equal(tunnel.stopped, tunnel.started);
    assert_false(call.open);
}

/* Until its VMM has been ordered to begin. */
static void ordered(struct fixture *f)
{
    main_begin(f);
    peer_is_ready(f);
    task_session_ops.changed(&f->task);
    turn_until(f, &tunnel.started, 1);
    tunnel.callbacks.listening(tunnel.arg, "here");
    turn_until(f, &call.asked, 1);
    assert_string_equal(call.method, "POST");
}

#define SAYS(phase) "{\"phase\":\"" phase "\",\"session\":5,\"left_bytes\":3,\"copied_bytes\":4}"

/* ---- the VM's host ---- */

static void begun_and_level(void **state)
{
    struct fixture *f = *state;
    main_begin(f);
    for (unsigned i = 0; i < 2; i++) /* the peer is not ready: nothing of it is begun */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(tunnel.started == 0 && call.asked == 0 && told.ends == 0);
    peer_is_ready(f);
    task_session_ops.changed(&f->task);
    turn_until(f, &tunnel.started, 1);
    assert_true(tunnel.is_source && tunnel.owner == VMM_USER);
    assert_string_equal(tunnel.peer, PEER_HOST);
    assert_string_equal(tunnel.connect, "192.0.2.2:7");
    task_session_ops.changed(&f->task); /* the way is not there yet */
    uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(tunnel.started == 1 && call.asked == 0);
    tunnel.callbacks.listening(tunnel.arg, "here");
    turn_until(f, &call.asked, 1);
    assert_string_equal(call.method, "POST");
    struct vmm_replica_order order = {.session = 0};
    assert_int_equal(OBJECT_DECODE(vmm_replica_order, call.body, strlen(call.body), OBJECT_CREATE, &order, NULL), 0);
    assert_int_equal(order.session, SESSION);
    assert_string_equal(order.path, tunnel.listen);
    assert_string_equal(order.base, "r-" REPLICA ".8");
    assert_string_equal(order.keep, "r-" REPLICA ".9");
    assert_int_equal(order.patience_ms, PATIENCE_S * 1000);
    assert_false(OBJECT_HAS(vmm_replica_order, &order, disks)); /* older VMMs know all but that */
    OBJECT_CLEAR(vmm_replica_order, &order);
    answer(0, 200, SAYS("connect"));
    turn_until(f, &call.asked, 2);
    assert_string_equal(call.method, "GET");
    assert_true(told.progress == 1 && told.ready == 0);
    answer(0, 200, SAYS("copy"));
    turn_until(f, &call.asked, 3);
    assert_true(told.progress == 2 && told.ready == 0);
    for (unsigned i = 4; i < 6; i++) { /* it is told once, and looked at from then on as well */
        answer(0, 200, SAYS("level"));
        turn_until(f, &call.asked, i);
        assert_int_equal(told.ready, 1);
        assert_string_equal(told.step, "the replica is in sync");
    }
    answer(0, 200, "{\"phase\":\"lost\",\"session\":5,\"failure\":\"the link is gone\"}");
    ended(f, operation_state_FAILED, "the link is gone");
}

/* A point that was sent is called otherwise than what a session has left. */
static void what_the_replica_holds(void **state)
{
    static const struct {
        const char *id;
        uint64_t number, session;
        const char *base;
    } cases[] = {{REPLICA, NUMBER, 0, "replica-" REPLICA}, {REPLICA, NUMBER, 4, "r-" REPLICA ".8"}, {REPLICA, NUMBER - 1, 0, "r-" REPLICA ".8"},
                 {"fedcba9876543210fedcba9876543210", NUMBER, 0, "r-" REPLICA ".8"}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fixture *f = *state;
        struct vmm_replica_order order = {.session = 0};
        struct task *task = &f->task.order.task;
        OBJECT_TEXT(vm_replica_start, &task->replica, id, cases[i].id);
        OBJECT_SET(vm_replica_start, &task->replica, number, cases[i].number);
        if (cases[i].session != 0)
            OBJECT_SET(vm_replica_start, &task->replica, session, cases[i].session);
        object_mark(&task_desc, task, "replica");
        ordered(f);
        assert_int_equal(OBJECT_DECODE(vmm_replica_order, call.body, strlen(call.body), OBJECT_CREATE, &order, NULL), 0);
        assert_string_equal(order.base, cases[i].base);
        OBJECT_CLEAR(vmm_replica_order, &order);
        answer(-ECONNREFUSED, 0, "");
        ended(f, operation_state_FAILED, "does not answer"); /* it was never begun */
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

static void of_a_part_of_the_disks(void **state)
{
    struct fixture *f = *state;
    struct vmm_replica_order order = {.session = 0};
    f->vm.has_others = true;
    ordered(f);
    assert_int_equal(OBJECT_DECODE(vmm_replica_order, call.body, strlen(call.body), OBJECT_CREATE, &order, NULL), 0);
    assert_int_equal(order.disks.count, 1);
    assert_string_equal(order.disks.items[0], "root");
    OBJECT_CLEAR(vmm_replica_order, &order);
    struct http_answer http = {.status = 400};
    error_set_field(&http.problem, -EINVAL, ERROR_UNKNOWN_FIELD, "/disks", "is not a field of vmm_replica_order");
    call.open = false;
    call.done(&http, call.arg);
    ended(f, operation_state_FAILED, "upgrade it");
}

static void a_vmm_that_is_slow_is_asked_again(void **state)
{
    struct fixture *f = *state;
    ordered(f);
    answer(0, 200, SAYS("level"));
    for (unsigned i = 2; i < 4; i++) {
        turn_until(f, &call.asked, i);
        answer(-ETIMEDOUT, 0, "");
        assert_int_equal(told.ends, 0);
    }
    turn_until(f, &call.asked, 4);
    answer(0, 404, "{}");
    ended(f, operation_state_FAILED, "upgrade it (drover vm upgrade)");
}

static void answers_that_end_it(void **state)
{
    static const struct {
        const char *body, *words;
    } cases[] = {{"{\"phase\":\"level\",\"session\":4}", "its VMM has begun anew"},
                 {"{\"phase\":\"none\",\"session\":5}", "its VMM has begun anew"},
                 {"{\"phase\":\"failed\",\"session\":5,\"failure\":\"no room\"}", "no room"},
                 {"nonsense", "something unknown"}};
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct fixture *f = *state;
        ordered(f);
        answer(0, 200, cases[i].body);
        ended(f, operation_state_FAILED, cases[i].words);
        assert_int_equal(told.ready, 0);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

/* What a look finds on this host, before anything is begun or while it lasts. */
static void looks_that_end_it(void **state)
{
    enum { OFF, EPOCH_CHANGED, GONE, OTHERS, PEER_GAVE_UP, NEWER, CASES };
    static const char *const words[CASES] = {
        [OFF] = "does not run here under that epoch", [EPOCH_CHANGED] = "does not run here under that epoch",
        [GONE] = "does not run here under that epoch", [OTHERS] = "something else is being done with the VM's disks",
        [PEER_GAVE_UP] = "no room there", [NEWER] = "another session has begun"};
    for (unsigned i = 0; i < 2 * CASES; i++) {
        struct fixture *f = *state;
        bool lasts = i % 2;
        if (lasts)
            ordered(f);
        else
            main_begin(f);
        switch (i / 2) {
        case OFF: f->vm.disks = VM_DISKS_FREE; break;
        case EPOCH_CHANGED: f->vm.order.epoch++; break;
        case GONE: map_remove(&f->agent.vms, VM_ID); break;
        case OTHERS:
            OBJECT_TEXT(task, &f->other.order.task, vm, VM_ID);
            map_put(&f->agent.tasks.all, OTHER_TASK, &f->other);
            break;
        case PEER_GAVE_UP: OBJECT_TEXT(task, &f->task.order.task, peer_error, "no room there"); break;
        case NEWER: f->vm.order.replica_session++; break;
        }
        if (lasts)
            answer(0, 200, SAYS("level"));
        ended(f, i / 2 == OTHERS ? operation_state_CANCELLED : operation_state_FAILED, words[i / 2]);
        assert_int_equal(call.asked, lasts);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

/* Another VMM may have been started beside it, or the record says already that it is over. */
static void not_begun_where_the_vm_may_not(void **state)
{
    struct fixture *f = *state;
    main_begin(f);
    peer_is_ready(f);
    f->vm.may_begin = false;
    for (unsigned i = 0; i < 2; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(tunnel.started == 0 && told.ends == 0); /* the order that permits it comes */
    f->vm.may_begin = true;
    turn_until(f, &tunnel.started, 1);
    f->vm.may_begin = false;
    tunnel.callbacks.listening(tunnel.arg, "here");
    uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(call.asked, 0);
    ended(f, operation_state_FAILED, "over before it has begun");
}

static void a_peer_that_knows_nothing_of_it(void **state)
{
    struct fixture *f = *state;
    main_begin(f);
    OBJECT_SET(task, &f->task.order.task, peer_ready, true);
    OBJECT_TEXT(task, &f->task.order.task, peer_endpoint, "192.0.2.2:7");
    task_session_ops.changed(&f->task);
    ended(f, operation_state_FAILED, "knows nothing of sessions: upgrade it");
    assert_int_equal(tunnel.started, 0);
}

static void the_way_ends(void **state)
{
    struct fixture *f = *state;
    ordered(f);
    answer(0, 200, SAYS("level"));
    tunnel.callbacks.ended(tunnel.arg, "reset by peer");
    ended(f, operation_state_FAILED, "reset by peer");
}

/* Something else comes first: it is given up, not failed, and its end waits for the answer that is under way. */
static void it_yields(void **state)
{
    struct fixture *f = *state;
    ordered(f);
    assert_false(task_session_yield(&f->task, OTHER_TASK));
    assert_false(task_session_yield(&f->other, VM_ID)); /* of another kind */
    assert_int_equal(call.cancelled, 0);
    assert_true(task_session_yield(&f->task, VM_ID));
    assert_int_equal(call.cancelled, 1);
    tunnel.closed(tunnel.closed_arg);
    tunnel.closed = NULL;
    for (unsigned i = 0; i < 3; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(told.ends, 0);
    answer(-ECANCELED, 0, "");
    ended(f, operation_state_CANCELLED, "something else is being done");
    assert_false(task_session_yield(&f->task, VM_ID));
}

static void cancelled_and_stopped(void **state)
{
    struct fixture *f = *state;
    main_begin(f);
    task_session_ops.cancel(&f->task);
    ended(f, operation_state_CANCELLED, "cancelled");
    task_session_ops.cancel(&f->task); /* it has ended */
    assert_int_equal(teardown(state), 0);
    assert_int_equal(setup(state), 0);
    f = *state;
    ordered(f);
    answer(0, 200, SAYS("level"));
    f->task.stopping = true;
    task_session_ops.stop(&f->task);
    tunnel.closed(tunnel.closed_arg);
    turn_until(f, &told.stopped, 1);
    assert_int_equal(told.ends, 0); /* nobody is told */
}

/* ---- the replica's host ---- */

static void peer_begin(struct fixture *f)
{
    struct task *task = &f->task.order.task;
    task_make(f, task_role_PEER);
    OBJECT_TEXT(vm_replica_start, &task->replica, id, REPLICA);
    OBJECT_SET(vm_replica_start, &task->replica, number, NUMBER);
    object_mark(&task_desc, task, "replica");
    task_session_ops.start(&f->task);
}

static void child_says(unsigned number)
{
    struct task_seen seen = {.state = operation_state_RUNNING};
    OBJECT_TEXT(replica_base, &seen.base, id, REPLICA);
    OBJECT_SET(replica_base, &seen.base, number, number);
    object_mark(&task_seen_desc, &seen, "base");
    child.options.told(&seen, child.options.arg);
    OBJECT_CLEAR(task_seen, &seen);
}

static void child_ends(const char *words)
{
    const struct task_seen seen = {.error_text = (char *)(uintptr_t)words};
    child.options.done(&seen, child.options.arg);
}

static void its_disks_are_served(void **state)
{
    struct fixture *f = *state;
    peer_begin(f);
    turn_until(f, &child.started, 1);
    assert_string_equal(child.options.work, "replicate-serve");
    assert_string_equal(child.work.vm, VM_ID);
    assert_string_equal(child.work.replicas_dir, "/x/replicas");
    assert_string_equal(child.work.replica.id, REPLICA);
    assert_true(child.work.epoch == EPOCH && child.work.session == SESSION && child.work.replica.number == NUMBER);
    assert_int_equal(tunnel.started, 0); /* not before it says what the replica holds */
    child.options.told(&(struct task_seen){.state = operation_state_RUNNING}, child.options.arg);
    assert_int_equal(tunnel.started, 0);
    child_says(NUMBER);
    child_says(NUMBER + 1); /* said once */
    assert_int_equal(tunnel.started, 1);
    assert_int_equal(f->task.seen.base.number, NUMBER);
    assert_true(!tunnel.is_source && strncmp(tunnel.connect, "unix:", 5) == 0);
    assert_string_equal(tunnel.connect + 5, child.work.way);
    assert_string_equal(tunnel.peer, OWN_HOST); /* the VM's host alone is let in */
    assert_int_equal(told.ready, 0);
    assert_false(task_session_yield(&f->task, VM_ID)); /* that is for the VM's host */
    tunnel.callbacks.listening(tunnel.arg, "192.0.2.9:1");
    assert_int_equal(told.ready, 1);
    assert_string_equal(told.endpoint, "192.0.2.9:1");
    child_ends("its disk is full");
    ended(f, operation_state_FAILED, "its disk is full");
}

static void a_child_is_waited_for(void **state)
{
    struct fixture *f = *state;
    peer_begin(f);
    turn_until(f, &child.started, 1);
    f->task.stopping = true;
    task_session_ops.stop(&f->task);
    assert_int_equal(child.killed, 1);
    for (unsigned i = 0; i < 3; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(told.stopped, 0); /* it has the replica's lock until it has gone */
    child_says(NUMBER); /* too late */
    assert_int_equal(tunnel.started, 0);
    child_ends(NULL);
    turn_until(f, &told.stopped, 1);
}

static void not_where_the_vm_itself_is(void **state)
{
    struct fixture *f = *state;
    map_put(&f->agent.vms, VM_ID, &f->vm);
    peer_begin(f);
    ended(f, operation_state_FAILED, "is still on this host");
    assert_int_equal(teardown(state), 0);
    assert_int_equal(setup(state), 0);
    f = *state;
    replicas_code = -EXDEV;
    peer_begin(f);
    ended(f, operation_state_FAILED, "on another file system");
    assert_int_equal(child.started, 0);
}

/* The child, which is another process. */
static void a_replica_that_is_gone(void **state UNUSED)
{
    static const char arguments[] = "{\"vm\":\"" VM_ID "\",\"epoch\":3,\"session\":5,\"way\":\"/x/w\",\"replicas_dir\":\"/x/replicas\"}";
    struct task_seen seen = {.state = 0};
    struct error err = {.code = 0};
    replicas_code = -ENOENT;
    assert_int_equal(task_session_serve_work(arguments, sizeof arguments - 1, &seen, &err), -ENOENT);
    assert_non_null(strstr(err.text, "take it away (--replica-host '') and give it to the VM again"));
    replicas_code = -EBUSY;
    assert_int_equal(task_session_serve_work(arguments, sizeof arguments - 1, &seen, &err), -EBUSY);
    assert_string_equal(err.text, "the directory's own words");
    assert_true(task_session_serve_work("{", 1, &seen, &err) < 0 && strcmp(err.text, "the directory's own words") != 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(begun_and_level),
        T(what_the_replica_holds),
        T(of_a_part_of_the_disks),
        T(a_vmm_that_is_slow_is_asked_again),
        T(answers_that_end_it),
        T(looks_that_end_it),
        T(not_begun_where_the_vm_may_not),
        T(a_peer_that_knows_nothing_of_it),
        T(the_way_ends),
        T(it_yields),
        T(cancelled_and_stopped),
        T(its_disks_are_served),
        T(a_child_is_waited_for),
        T(not_where_the_vm_itself_is),
        cmocka_unit_test(a_replica_that_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
