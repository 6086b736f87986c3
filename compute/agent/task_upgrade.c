/* The task vm-upgrade: a new VMM process of this host takes a VM over while it runs, for the sake of a newer drover-vmm.
 *
 *   start --> WAITING --> STARTING --> ORDERING --> HANDING OVER --the old one ends--> done
 *                |            |            |              |
 *                '------------+-- cancel, error: the new one is ended, the VM goes on where it is
 *
 * WAITING: until the VM's VMM answers and nothing else has the VM. STARTING: the new process (vm_successor_start) until it waits
 * for its guest. ORDERING and HANDING OVER: the old one hands memory and taps over by descriptor (migration/migrate_wire.h); then it
 * ends with status 7, and vm.c puts the new one in its place. Nobody is asked whose the VM is: it is this host's, before and
 * after, under the same epoch.
 *
 * Failure modes: until the new one has said that it is about to run, which is the last thing that it says, the old one goes on
 * wherever the new one ends or is silent. Where the new one hangs and holds what the old one needs (phase unknown) it is ended from
 * here, but only when it was looked at twice: one that says that it runs the guest, or is about to, is never ended, for its word may
 * be on its way. What takes too long is cancelled, and the new one ended when the old one has said that it goes on; where the old
 * one says nothing both are left to themselves: one of them has the guest. An old one that ends in another way takes the new one
 * with it (vm.c), and the VM is started again by its restart policy. An agent that is killed finds at its start that the new one has
 * taken over, or both (vm.c): then the old one's word says whether it hands over, and is waited for, or not: it is told to if the new
 * one waits, and another one is started if that has ended. Begun twice: an operation under which it was done is done.
 *
 * Everything is looked at again each UPGRADE_LOOK_MS; a call to a VMM is never waited for in another way. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"

#define UPGRADE_LOOK_MS 25u
#define UPGRADE_START_MS 60000u /* until the VM's VMM answers, and until the new one does */
#define UPGRADE_SILENCE_MS 5000u /* of the new one while the guest stands still, before the old one takes it for gone */
#define UPGRADE_HAND_OVER_MS 60000u /* until the guest may be stopped */
#define UPGRADE_LATE_MS (2 * UPGRADE_HAND_OVER_MS) /* then it is cancelled; and after as long again left as it is */
#define UPGRADE_DOUBTS 2u /* looks at a new one that does not run the guest while the old one does not know it, until it is ended */

enum step { UPGRADE_WAITING, UPGRADE_STARTING, UPGRADE_ORDERING, UPGRADE_HANDING_OVER };

struct upgrade_task {
    struct agent_task *task;
    struct agent *agent;
    char vm[37];
    enum step step;
    uv_timer_t timer;
    uint64_t since_ms; /* of the step */
    struct http_call *call;
    bool cancel, cancel_told;
    /* facts */
    bool listens, ordered, is_unknown;
    bool found; /* the new one was begun before this task was: what the old one was told, and what it came to, is not known yet */
    unsigned doubts;
    /* how it ended */
    bool over;
    enum operation_state state;
    struct error err;
};

static void on_timer_closed(uv_handle_t *handle)
{
    struct upgrade_task *u = handle->data;
    struct agent_task *task = u->task;
    enum operation_state state = u->state;
    struct error err = u->err;
    free(u);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, state == operation_state_SUCCEEDED ? NULL : &err);
}

static struct local_vm *find_vm(const struct upgrade_task *u)
{
    return u->agent->stopping ? NULL : map_get(&u->agent->vms, u->vm); /* an agent that stops has closed its VMs */
}

static void finish(struct upgrade_task *u)
{
    if (!u->over || u->call != NULL || uv_is_closing((uv_handle_t *)&u->timer))
        return;
    uv_timer_stop(&u->timer);
    uv_close((uv_handle_t *)&u->timer, on_timer_closed);
}

/* The end, once; what is under way is let go of. */
static void over(struct upgrade_task *u, enum operation_state state)
{
    if (u->over)
        return;
    u->over = true;
    u->state = state;
    if (u->call != NULL)
        http_call_cancel(u->call);
    finish(u);
}

/* What becomes of the new one is not this task's any more. */
static void leave(struct upgrade_task *u, const char *format, const char *words)
{
    error_set(&u->err, -EIO, ERROR_CONFLICT, format, words);
    over(u, operation_state_FAILED);
}

static void fail(struct upgrade_task *u, const char *format, const char *words)
{
    struct local_vm *vm = find_vm(u);
    if (vm != NULL && u->step != UPGRADE_WAITING) /* one that there is is another task's, and may have the guest */
        vm_successor_end(vm);
    if (u->cancel) {
        error_set(&u->err, -ECANCELED, ERROR_CANCELLED, "cancelled: the VM goes on in the VMM that it is in");
        return over(u, operation_state_CANCELLED);
    }
    leave(u, format, words);
}

static void step_to(struct upgrade_task *u, enum step step, const char *words)
{
    u->step = step;
    u->since_ms = uv_now(u->agent->loop);
    agent_task_progress(u->task, words, 0, 0);
}

static bool has_waited(const struct upgrade_task *u, unsigned ms)
{
    return uv_now(u->agent->loop) - u->since_ms >= ms;
}

static bool is_late(const struct upgrade_task *u, unsigned times)
{
    return has_waited(u, times * (u->agent->upgrade_late_ms != 0 ? u->agent->upgrade_late_ms : UPGRADE_LATE_MS));
}

/* ---- calls ---- */

/* Back, and somebody still wants to know. */
static bool call_over(struct upgrade_task *u)
{
    u->call = NULL;
    finish(u);
    return !u->over;
}

/* None is kept for the next call: the path of a new VMM's socket is that of one before it, which has another by then. */
static const char *const call_headers[] = {"Connection: close", NULL};

static void call_start(struct upgrade_task *u, const char *socket, const char *method, const char *path,
                       const struct bytes_writer *body, http_client_done done)
{
    CLEANUP_FREE char *url = xasprintf("http://vmm%s", path);
    const struct http_call_options options = {.method = method,
                                              .url = url,
                                              .unix_socket = socket,
                                              .headers = call_headers,
                                              .body = body != NULL ? body->data : NULL,
                                              .body_size = body != NULL ? body->size : 0,
                                              .deadline_ms = VM_CONTROL_MS,
                                              .done = done,
                                              .arg = u};
    struct error err = {.code = 0};
    if (socket == NULL || http_client_start(u->agent->http, &options, &u->call, &err) < 0)
        u->call = NULL; /* asked again with the next look */
}

static bool phase_of(const struct http_answer *answer, struct vmm_migration *ret_seen)
{
    struct error err = {.code = 0};
    return answer->error == 0 && answer->status / 100 == 2 &&
           OBJECT_DECODE(vmm_migration, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, ret_seen, &err) == 0;
}

static void on_successor(const struct http_answer *answer, void *arg)
{
    struct upgrade_task *u = arg;
    struct vmm_migration seen = {.head = {0}};
    if (!call_over(u))
        return;
    if (phase_of(answer, &seen))
        u->listens = seen.phase == vmm_migration_phase_CONNECT;
    OBJECT_CLEAR(vmm_migration, &seen);
}

static void on_ordered(const struct http_answer *answer, void *arg)
{
    struct upgrade_task *u = arg;
    if (!call_over(u))
        return;
    if (answer->error == 0 && answer->status / 100 == 2)
        u->ordered = true;
    else if (answer->error == 0)
        fail(u, "its VMM does not hand it over: %.400s", answer->problem.text);
    /* No answer: it may have begun all the same. Its phase tells. */
}

static void on_looked(const struct http_answer *answer, void *arg)
{
    struct upgrade_task *u = arg;
    struct vmm_migration seen = {.head = {0}};
    if (!call_over(u))
        return;
    if (!phase_of(answer, &seen))
        return;
    bool failed = seen.phase == vmm_migration_phase_FAILED || seen.phase == vmm_migration_phase_CANCELLED;
    bool idle = failed || seen.phase == vmm_migration_phase_IDLE || seen.direction == vmm_migration_direction_IN;
    if (u->found && idle) { /* never told, or it has come to nothing, and the new one is about to end */
        u->cancel_told = false;
        step_to(u, UPGRADE_STARTING, "waiting for the new VMM that was begun before");
    } else if (u->step == UPGRADE_HANDING_OVER && seen.direction == vmm_migration_direction_OUT && failed)
        fail(u, "the VM goes on in the VMM that it is in: %.400s", seen.failure != NULL ? seen.failure : "it does not say why");
    else if (u->step == UPGRADE_HANDING_OVER && is_late(u, 1) &&
             (seen.phase == vmm_migration_phase_IDLE || seen.direction == vmm_migration_direction_IN))
        fail(u, "%s", "the VM goes on in the VMM that it is in, which was never told to hand it over");
    u->is_unknown = seen.phase == vmm_migration_phase_UNKNOWN;
    OBJECT_CLEAR(vmm_migration, &seen);
}

/* The old one is not told that the new one runs. It does not, unless it says so, for it would have to give its word first, which the
 * old one has stopped to take (migrate_sender.h; one of before that still takes it). */
static void on_doubted(const struct http_answer *answer, void *arg)
{
    struct upgrade_task *u = arg;
    struct vmm_migration seen = {.head = {0}};
    if (!call_over(u))
        return;
    bool runs = phase_of(answer, &seen) && (seen.phase == vmm_migration_phase_GO || seen.phase == vmm_migration_phase_DONE);
    OBJECT_CLEAR(vmm_migration, &seen);
    u->doubts = runs ? 0 : u->doubts + 1;
    u->is_unknown = false; /* until the old one says it again */
    struct local_vm *vm = find_vm(u);
    if (vm != NULL && u->doubts == UPGRADE_DOUBTS)
        vm_successor_end(vm);
}

static void on_cancelled(const struct http_answer *answer, void *arg)
{
    (void)answer; /* how it ended is its phase's to say */
    (void)call_over(arg);
}

static void order(struct upgrade_task *u, const struct local_vm *vm)
{
    struct vmm_migration_order body = {.head = {0}};
    struct bytes_writer out = {.data = NULL};
    CLEANUP_FREE char *to = vm_successor_address(vm);
    OBJECT_TEXT(vmm_migration_order, &body, to, to);
    OBJECT_SET(vmm_migration_order, &body, hand_over, true);
    OBJECT_SET(vmm_migration_order, &body, timeout_ms, UPGRADE_HAND_OVER_MS);
    OBJECT_SET(vmm_migration_order, &body, silence_ms, UPGRADE_SILENCE_MS);
    OBJECT_SET(vmm_migration_order, &body, stop_silence_ms, UPGRADE_SILENCE_MS);
    OBJECT_ENCODE(vmm_migration_order, &body, &out);
    call_start(u, vm_control_path(vm), "POST", "/v1/vm/migration", &out, on_ordered);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(vmm_migration_order, &body);
}

/* ---- steps ---- */

static void done(struct upgrade_task *u, const struct local_vm *vm)
{
    const struct migration_result *r = vm_departed(vm);
    char words[100] = "done";
    if (r != NULL)
        snprintf(words, sizeof(words), "it stood still for %llu us", (unsigned long long)r->downtime_us);
    agent_task_progress(u->task, words, 0, 0);
    over(u, operation_state_SUCCEEDED);
}

static void wait(struct upgrade_task *u, struct local_vm *vm)
{
    struct error err = {.code = 0};
    if (u->cancel)
        return fail(u, "%s", "cancelled");
    if (vm_has_successor(vm)) { /* of a task that was given up, or an agent before us: what the VMM that it comes from says decides */
        u->found = true;
        vm_successor_take_up(vm);
        return step_to(u, UPGRADE_HANDING_OVER, "a new VMM that was begun before is looked at");
    }
    int r = vm_successor_start(vm, u->task->order.id, &err);
    if (r == 0)
        step_to(u, UPGRADE_STARTING, "starting a new VMM for it");
    else if (r != -EAGAIN || has_waited(u, UPGRADE_START_MS))
        fail(u, "%.500s", err.text);
}

static void begin_with(struct upgrade_task *u, struct local_vm *vm)
{
    char line[240];
    if (!vm_has_successor(vm) && u->found) {
        u->found = false;
        return step_to(u, UPGRADE_WAITING, "a new VMM that was begun before has ended");
    }
    if (!vm_has_successor(vm)) {
        vm_files_last_error(&vm_context_of(vm)->places, u->vm, line, sizeof(line));
        return fail(u, "its new VMM has ended: %s", line);
    }
    if (u->cancel || has_waited(u, UPGRADE_START_MS))
        return fail(u, "%s", "its new VMM does not answer");
    if (u->listens) {
        u->found = false;
        return step_to(u, UPGRADE_ORDERING, "handing it over");
    }
    if (u->call == NULL) {
        CLEANUP_FREE char *control = vm_successor_control(vm);
        call_start(u, control, "GET", "/v1/vm/migration", NULL, on_successor);
    }
}

static void hand_over(struct upgrade_task *u, struct local_vm *vm)
{
    if (u->call != NULL)
        return;
    if (!u->ordered && u->step == UPGRADE_ORDERING) {
        u->step = UPGRADE_HANDING_OVER;
        return order(u, vm);
    }
    if (!vm_has_process(vm))
        return fail(u, "%s", "its VMM ended before it had handed it over");
    if (is_late(u, 2))
        return leave(u, "%s", "it was not handed over in time, and its VMM does not say which of the two has it; stop the VM by force "
                              "where it does not run");
    if (u->is_unknown && vm_has_successor(vm)) {
        CLEANUP_FREE char *control = vm_successor_control(vm);
        return call_start(u, control, "GET", "/v1/vm/migration", NULL, on_doubted);
    }
    if ((u->cancel || is_late(u, 1)) && !u->cancel_told) {
        u->cancel_told = true;
        return call_start(u, vm_control_path(vm), "DELETE", "/v1/vm/migration", NULL, on_cancelled);
    }
    call_start(u, vm_control_path(vm), "GET", "/v1/vm/migration", NULL, on_looked);
}

static void look(uv_timer_t *timer)
{
    struct upgrade_task *u = timer->data;
    struct local_vm *vm = find_vm(u);
    if (u->over)
        return;
    if (vm == NULL || vm_is_gone(vm) || vm_is_forgotten(vm) || vm_order_of(vm)->epoch != u->task->order.task.epoch)
        return fail(u, "%s", "this host does not have the VM under that epoch");
    if (vm_upgraded(vm) != NULL && strcmp(vm_upgraded(vm), u->task->order.id) == 0)
        return done(u, vm);
    if (u->step == UPGRADE_WAITING && replicate_yields(u->agent, u->vm))
        return;
    if (u->step == UPGRADE_WAITING)
        wait(u, vm);
    else if (u->step == UPGRADE_STARTING)
        begin_with(u, vm);
    else
        hand_over(u, vm);
}

/* ---- the kind ---- */

static void start(struct agent_task *task)
{
    struct upgrade_task *u = NEW(struct upgrade_task);
    u->task = task;
    u->agent = task->agent;
    snprintf(u->vm, sizeof(u->vm), "%s", task->order.task.vm != NULL ? task->order.task.vm : "");
    task->state = u;
    uv_timer_init(u->agent->loop, &u->timer);
    u->timer.data = u;
    u->since_ms = uv_now(u->agent->loop);
    uv_timer_start(&u->timer, look, 0, UPGRADE_LOOK_MS);
}

static void cancel(struct agent_task *task)
{
    ((struct upgrade_task *)task->state)->cancel = true;
}

/* The hand-over comes to its end by itself; vm.c sees to the new process. */
static void stop(struct agent_task *task)
{
    struct upgrade_task *u = task->state;
    struct local_vm *vm = find_vm(u);
    if (vm != NULL && u->step < UPGRADE_HANDING_OVER)
        vm_successor_end(vm);
    error_set(&u->err, -ECANCELED, ERROR_CANCELLED, "it is not wanted any more");
    over(u, operation_state_CANCELLED);
}

const struct agent_task_ops task_upgrade_ops = {.start = start, .cancel = cancel, .stop = stop};
