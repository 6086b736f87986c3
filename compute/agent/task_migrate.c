/* Departures and arrivals; see the header. */
#include "compute/agent/task_migrate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"

struct departure {
    struct agent *agent;
    struct local_vm *vm;
    char vm_id[37], operation[37];
    struct migrate_out *out;
    bool told, closing;
};

struct arrival {
    struct agent *agent;
    struct local_vm *vm;
    char vm_id[37], operation[37];
    struct migrate_in *in;
    bool closing;
};

/* ---- tasks ---- */

/* The task of @operation that goes on, or NULL. */
static struct agent_task *task_of(struct agent *a, const char *operation, enum task_role role)
{
    struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        if (task->order.role == (uint32_t)role && strcmp(task->order.id, operation) == 0)
            return task->ended || task->stopping ? NULL : task;
    return NULL;
}

/* Is there an order for it still, whether its end was told or not? */
static bool is_ordered(const struct agent *a, const char *operation, enum task_role role)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        if (task->order.role == (uint32_t)role && strcmp(task->order.id, operation) == 0)
            return !task->stopping;
    return false;
}

/* ---- departures ---- */

static void departure_closed(void *arg)
{
    struct departure *d = arg;
    struct agent *a = d->agent;
    struct local_vm *vm = d->vm;
    map_remove(&a->migrations.departures, d->vm_id);
    free(d);
    if (!a->stopping)
        agent_vm_look(a, vm);
    agent_part_closed(a);
}

static void departure_close(struct departure *d)
{
    if (d->closing)
        return;
    d->closing = true;
    d->agent->closing++;
    migrate_out_close(d->out, departure_closed, d);
}

static void departure_progress(void *arg)
{
    struct departure *d = arg;
    struct agent_task *task = task_of(d->agent, d->operation, task_role_MAIN);
    if (task == NULL || d->out == NULL)
        return;
    const struct vmm_migration *f = migrate_out_figures(d->out);
    if (f->phase == vmm_migration_phase_DISKS) {
        agent_task_progress(task, migrate_out_step(d->out), f->disk_copied_bytes, f->disk_copied_bytes + f->disk_left_bytes);
        return;
    }
    uint64_t left = f->rounds == 0 ? f->memory_bytes - MIN(f->sent_bytes, f->memory_bytes) : f->dirty_pages * 4096;
    agent_task_progress(task, migrate_out_step(d->out), f->sent_bytes, f->sent_bytes + left);
}

static void result_put(struct task_seen *seen, uint64_t downtime_us, uint64_t total_us, uint64_t sent_bytes, uint32_t rounds)
{
    struct migration_result *r = &seen->migration;
    OBJECT_SET(migration_result, r, downtime_us, downtime_us);
    OBJECT_SET(migration_result, r, total_us, total_us);
    OBJECT_SET(migration_result, r, sent_bytes, sent_bytes);
    OBJECT_SET(migration_result, r, rounds, rounds);
    object_mark(&task_seen_desc, seen, "migration");
}

static void results_put(struct agent_migrations *m, const struct vmm_migration *f, struct task_seen *seen)
{
    result_put(seen, f->downtime_us, f->total_us, f->sent_bytes, f->rounds);
    m->out_total++;
    m->downtime_us_total += f->downtime_us;
    m->downtime_us_max = MAX(m->downtime_us_max, f->downtime_us);
    m->bytes_total += f->sent_bytes;
}

static void departure_ended(void *arg, enum operation_state state, const struct error *err)
{
    struct departure *d = arg;
    struct agent *a = d->agent;
    struct agent_task *task = task_of(a, d->operation, task_role_MAIN);
    log_info("departure-ended", "vm=%s operation=%s state=%s why=\"%s\"", vm_order_of(d->vm)->name, d->operation,
             operation_state_desc.names[state], err != NULL ? err->text : "");
    a->migrations.out_failed_total += state != operation_state_SUCCEEDED;
    if (task != NULL && state == operation_state_SUCCEEDED)
        results_put(&a->migrations, migrate_out_figures(d->out), &task->seen);
    if (task != NULL)
        agent_task_end(task, state, err);
    d->told = true;
    if (state == operation_state_SUCCEEDED || vm_is_gone(d->vm))
        departure_close(d);
}

static void departure_make(struct agent *a, struct local_vm *vm, const char *operation, const char *peer, uint64_t epoch,
                           const struct task_migration *settings)
{
    struct departure *d = NEW(struct departure);
    d->agent = a;
    d->vm = vm;
    snprintf(d->vm_id, sizeof(d->vm_id), "%s", vm_id(vm));
    snprintf(d->operation, sizeof(d->operation), "%s", operation);
    const struct migrate_out_options options = {.context = &a->migrations.context,
                                                .vm = vm,
                                                .operation = operation,
                                                .peer = peer,
                                                .epoch = epoch,
                                                .settings = settings,
                                                .progress = departure_progress,
                                                .ended = departure_ended,
                                                .arg = d};
    map_put(&a->migrations.departures, d->vm_id, d);
    d->out = migrate_out_start(&options);
    if (!vm_has_process(vm))
        migrate_out_process_ended(d->out);
}

static void fail_task(struct agent_task *task, const char *text)
{
    struct error err = {.code = 0};
    error_set(&err, -ENOENT, ERROR_CONFLICT, "%s", text);
    agent_task_end(task, operation_state_FAILED, &err);
}

/* It was handed over before the target had all of its memory, and this process knows nothing of it: does a VMM lend that still? Where there is
 * none, and no word of its own, the target knows whether it has all; this host has nothing more to give. */
static void lending_order(struct agent *a, struct agent_task *task, struct local_vm *vm)
{
    const struct task *order = &task->order.task;
    const struct migration_result *r = vm != NULL ? vm_departed(vm) : NULL;
    bool leaves = vm != NULL && vm_leaving(vm) != NULL && strcmp(vm_leaving(vm), task->order.id) == 0;
    if (leaves && vm_has_process(vm) && order->peer != NULL) {
        departure_make(a, vm, task->order.id, order->peer, order->epoch, &order->migration);
        struct departure *d = map_get(&a->migrations.departures, order->vm);
        migrate_out_order(d->out, order->peer_ready ? order->peer_endpoint : NULL, task->order.cancel);
    } else if (r != NULL) {
        result_put(&task->seen, r->downtime_us, r->total_us, r->sent_bytes, r->rounds);
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
    } else {
        fail_task(task, "its VMM has ended, and had what the target may lack of its memory");
    }
}

/* An order as main, new or again. */
static void departure_order(struct agent *a, struct agent_task *task)
{
    const struct task *order = &task->order.task;
    struct local_vm *vm = order->vm != NULL ? map_get(&a->vms, order->vm) : NULL;
    struct departure *d = order->vm != NULL ? map_get(&a->migrations.departures, order->vm) : NULL;
    if (d != NULL && strcmp(d->operation, task->order.id) != 0)
        return; /* of one before it; when that has gone */
    if (d != NULL && d->closing)
        return;
    if (d == NULL && order->migration.handed_over != 0 && order->migration.lacking) {
        lending_order(a, task, vm);
        return;
    }
    if (d == NULL && order->migration.handed_over != 0) { /* only its last word was lost; the VM goes by itself */
        const struct migration_result *r = vm != NULL ? vm_departed(vm) : NULL;
        if (r != NULL)
            result_put(&task->seen, r->downtime_us, r->total_us, r->sent_bytes, r->rounds);
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
        return;
    }
    if (d == NULL && (vm == NULL || vm_is_gone(vm) || vm_is_forgotten(vm) || vm_arriving(vm) != NULL ||
                      vm_order_of(vm)->epoch != order->epoch)) {
        fail_task(task, "this host does not have the VM under that epoch");
        return;
    }
    if (d == NULL && replicate_yields(a, order->vm))
        return; /* the answer to the report of its end has the order again */
    if (d == NULL && order->peer != NULL) {
        departure_make(a, vm, task->order.id, order->peer, order->epoch, &order->migration);
        d = map_get(&a->migrations.departures, order->vm);
    }
    if (d == NULL)
        return;
    if (order->peer_error != NULL && !order->peer_ready && !migrate_out_lends(d->out))
        migrate_out_peer_failed(d->out, order->peer_error);
    migrate_out_order(d->out, order->peer_ready ? order->peer_endpoint : NULL, task->order.cancel);
}

/* ---- arrivals ---- */

static void arrival_closed(void *arg)
{
    struct arrival *v = arg;
    struct agent *a = v->agent;
    struct local_vm *vm = v->vm;
    map_remove(&a->migrations.arrivals, v->vm_id);
    free(v);
    if (!a->stopping)
        agent_vm_look(a, vm);
    agent_part_closed(a);
}

static void arrival_close(struct arrival *v)
{
    if (v->closing)
        return;
    v->closing = true;
    v->agent->closing++;
    migrate_in_close(v->in, arrival_closed, v);
}

static void arrival_progress(void *arg)
{
    struct arrival *v = arg;
    struct agent_task *task = task_of(v->agent, v->operation, task_role_PEER);
    if (task == NULL || v->in == NULL)
        return;
    agent_task_progress(task, migrate_in_step(v->in), 0, 0);
    if (migrate_in_endpoint(v->in) != NULL)
        agent_task_ready(task, migrate_in_endpoint(v->in));
}

static void arrival_failed(void *arg, const struct error *err)
{
    struct arrival *v = arg;
    struct agent_task *task = task_of(v->agent, v->operation, task_role_PEER);
    if (task != NULL)
        agent_task_end(task, operation_state_FAILED, err);
}

static const struct incoming_order *incoming_of(const struct node_orders *orders, const char *operation)
{
    const struct incoming_order *all = orders->incoming.items;
    for (size_t i = 0; i < orders->incoming.count; i++)
        if (strcmp(all[i].operation, operation) == 0)
            return &all[i];
    return NULL;
}

static struct arrival *arrival_make(struct agent *a, struct local_vm *vm, const struct agent_task *task, bool again)
{
    struct arrival *v = NEW(struct arrival);
    v->agent = a;
    v->vm = vm;
    snprintf(v->vm_id, sizeof(v->vm_id), "%s", vm_id(vm));
    snprintf(v->operation, sizeof(v->operation), "%s", task->order.id);
    const struct migrate_in_options options = {.context = &a->migrations.context,
                                               .vm = vm,
                                               .operation = v->operation,
                                               .source = task->order.task.host,
                                               .again = again,
                                               .progress = arrival_progress,
                                               .failed = arrival_failed,
                                               .arg = v};
    map_put(&a->migrations.arrivals, v->vm_id, v);
    a->migrations.in_total += !again;
    v->in = migrate_in_start(&options);
    return v;
}

/* The VM runs here and lacks memory, as the controllers know: is there a way for that, and how has it come out? */
static void lacking_look(struct agent *a, struct agent_task *task, uint64_t index)
{
    const struct task *order = &task->order.task;
    struct local_vm *vm = order->vm != NULL ? map_get(&a->vms, order->vm) : NULL;
    const struct arrival *v = order->vm != NULL ? map_get(&a->migrations.arrivals, order->vm) : NULL;
    const char *taking = vm != NULL ? vm_taking(vm) : NULL, *why = "";
    struct error err = {.code = 0};
    if (taking != NULL && strcmp(taking, task->order.id) == 0) {
        if (v == NULL && order->host != NULL && vm_lacks_memory(vm)) /* an agent before us had one */
            (void)arrival_make(a, vm, task, true);
        return;
    }
    enum vm_arrival_end end = vm != NULL ? vm_arrival_end_of(vm, task->order.id, &why) : VM_ARRIVAL_END_NONE;
    bool gone = vm == NULL || vm_is_gone(vm) || vm_is_forgotten(vm);
    if (end == VM_ARRIVAL_END_NONE && !gone && (vm_is_astray(vm) || !vm_was_given(vm, index) || vm_arriving(vm) != NULL))
        return; /* it is not known to be this host's by that yet */
    a->migrations.in_lacking_total++;
    a->migrations.in_lost_total += end != VM_ARRIVAL_END_WHOLE && end != VM_ARRIVAL_END_STOPPED;
    if (end == VM_ARRIVAL_END_WHOLE) {
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
    } else if (end == VM_ARRIVAL_END_STOPPED) {
        error_set(&err, -ECANCELED, ERROR_CANCELLED, "it ended before all of its memory was there: %.300s", why);
        agent_task_end(task, operation_state_CANCELLED, &err);
    } else {
        error_set(&err, -EIO, ERROR_CONFLICT, "not all of its memory was there: %.400s",
                  end == VM_ARRIVAL_END_BROKEN ? why : gone ? "it is not this host's any more" : "its VMM has ended, or the VM was started anew");
        agent_task_end(task, operation_state_FAILED, &err);
    }
}

/* What runs here and lacks memory can go on for as long as the operation does and the source has something to give. */
static void waiting_look(struct agent *a, struct local_vm *vm)
{
    const struct agent_task *task = vm_taking(vm) != NULL ? task_of(a, vm_taking(vm), task_role_PEER) : NULL;
    if (!vm_lacks_memory(vm) || vm_is_astray(vm))
        return;
    if (task == NULL && !is_ordered(a, vm_taking(vm), task_role_PEER)) /* it may have come to its end well, and all be here */
        vm_give_up_waiting(vm, "the migration is over");
    else if (task != NULL)
        vm_give_up_waiting(vm, task->order.task.migration.source_error); /* NULL: it was declared lost, and is back */
}

/* The VM that @task brings, made or found; NULL: not yet, or never. */
static struct local_vm *arrival_vm(struct agent *a, struct agent_task *task, const struct node_orders *orders)
{
    const struct incoming_order *order = incoming_of(orders, task->order.id);
    struct local_vm *vm = task->order.task.vm != NULL ? map_get(&a->vms, task->order.task.vm) : NULL;
    if (vm == NULL && order == NULL)
        return NULL; /* it is this host's by now, or the next answer has it */
    if (vm == NULL) {
        vm = vm_create_arriving(&a->vm_context, &order->vm, task->order.id, orders->index);
        map_put(&a->vms, vm_id(vm), vm);
        return vm;
    }
    if (vm_arriving(vm) != NULL && strcmp(vm_arriving(vm), task->order.id) == 0 && !vm_is_forgotten(vm))
        return vm;
    if (vm_arriving(vm) != NULL && !vm_is_astray(vm)) /* of one before it */
        vm_forget(vm, false);
    if (vm_is_forgotten(vm) || vm_is_gone(vm))
        a->ask_again = true; /* when what is left of it has gone */
    else if (!vm_was_given(vm, orders->index))
        fail_task(task, "this host has something of the VM and cannot take it; look at its agent's log");
    return NULL;
}

static void arrival_order(struct agent *a, struct agent_task *task, const struct node_orders *orders)
{
    struct arrival *v = task->order.task.vm != NULL ? map_get(&a->migrations.arrivals, task->order.task.vm) : NULL;
    if (task->order.task.migration.lacking) {
        lacking_look(a, task, orders->index);
        return;
    }
    if (v != NULL || task->order.task.host == NULL)
        return;
    struct local_vm *vm = arrival_vm(a, task, orders);
    if (vm != NULL)
        (void)arrival_make(a, vm, task, false);
}

/* ---- with every answer ---- */

/* Without an order: is it known what became of it? */
static void departure_look(struct departure *d, const struct node_orders *orders)
{
    if (d->closing || is_ordered(d->agent, d->operation, task_role_MAIN))
        return;
    if (vm_is_forgotten(d->vm))
        migrate_out_over(d->out, true);
    else if (vm_was_given(d->vm, orders->index))
        migrate_out_over(d->out, false);
    if (migrate_out_is_done(d->out))
        departure_close(d);
}

static void vm_look(struct agent *a, struct local_vm *vm, const struct node_orders *orders)
{
    static const struct task_migration none = {.head = {0}};
    const char *leaving = vm_leaving(vm), *arriving = vm_arriving(vm);
    struct departure *d = map_get(&a->migrations.departures, vm_id(vm));
    struct arrival *v = map_get(&a->migrations.arrivals, vm_id(vm));
    bool goes = vm_is_forgotten(vm) && vm_has_process(vm); /* and whether to the target, the controllers say */
    if (leaving != NULL && d == NULL && !is_ordered(a, leaving, task_role_MAIN) && (goes || vm_was_given(vm, orders->index))) {
        departure_make(a, vm, leaving, "", vm_order_of(vm)->epoch, &none); /* begun by an agent before us, and over */
        d = map_get(&a->migrations.departures, vm_id(vm));
    }
    if (d != NULL)
        departure_look(d, orders);
    waiting_look(a, vm);
    if (vm_arrival_noted(vm) != NULL && !is_ordered(a, vm_arrival_noted(vm), task_role_PEER))
        vm_arrival_forget(vm);
    if (arriving != NULL && !is_ordered(a, arriving, task_role_PEER) && orders->index >= vm_order_index(vm) && !vm_is_astray(vm))
        vm_forget(vm, false);
    if (v != NULL && !v->closing && (vm_arrival_of(vm, &(const char *){NULL}) == VM_ARRIVAL_NONE) && !vm_is_taking(vm))
        arrival_close(v);
}

void agent_migrations_obey(struct agent *a, const struct node_orders *orders)
{
    struct agent_task *task;
    struct local_vm *vm;
    size_t count = 0, all = a->tasks.all.count;
    CLEANUP_FREE struct agent_task **tasks = xcalloc(all + 1, sizeof *tasks);
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;)
        if (task->order.task.kind == task_kind_VM_MIGRATE && !task->ended && !task->stopping)
            tasks[count++] = task;
    for (size_t i = 0; i < count; i++) {
        if (tasks[i]->order.role == task_role_MAIN)
            departure_order(a, tasks[i]);
        else
            arrival_order(a, tasks[i], orders);
    }
    size_t vm_count = 0;
    CLEANUP_FREE struct local_vm **vms = xcalloc(a->vms.count + 1, sizeof(struct local_vm *));
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        if (vm_leaving(vm) != NULL || vm_arriving(vm) != NULL || vm_taking(vm) != NULL || vm_arrival_noted(vm) != NULL ||
            map_get(&a->migrations.departures, vm_id(vm)) != NULL || map_get(&a->migrations.arrivals, vm_id(vm)) != NULL)
            vms[vm_count++] = vm;
    for (size_t i = 0; i < vm_count; i++)
        vm_look(a, vms[i], orders);
}

/* What becomes of its memory is told at once, and not with the next answer. */
static void lacking_changed(struct agent *a, struct local_vm *vm)
{
    struct agent_task *task;
    for (size_t i = 0; (task = map_next(&a->tasks.all, &i)) != NULL;) {
        const struct task *order = &task->order.task;
        if (order->kind != task_kind_VM_MIGRATE || task->ended || task->stopping || task->order.role != task_role_PEER || !order->migration.lacking ||
            order->vm == NULL || strcmp(order->vm, vm_id(vm)) != 0)
            continue;
        lacking_look(a, task, vm_answer_index(vm));
        return;
    }
}

void agent_migrations_vm_changed(struct agent *a, struct local_vm *vm)
{
    struct departure *d = map_get(&a->migrations.departures, vm_id(vm));
    struct arrival *v = map_get(&a->migrations.arrivals, vm_id(vm));
    if (d != NULL && !d->closing && d->out != NULL && !vm_has_process(vm))
        migrate_out_process_ended(d->out);
    if (d != NULL && d->told && vm_is_gone(vm))
        departure_close(d);
    lacking_changed(a, vm);
    waiting_look(a, vm); /* what the orders say of it may be older than the first look at its VMM */
    if (v == NULL || v->closing || v->in == NULL)
        return;
    migrate_in_vm_changed(v->in);
    if (vm_arrival_of(vm, &(const char *){NULL}) == VM_ARRIVAL_NONE && !vm_is_taking(vm))
        arrival_close(v);
}

bool agent_migrations_hold(const struct agent *a, const struct local_vm *vm)
{
    return map_get(&a->migrations.departures, vm_id(vm)) != NULL || map_get(&a->migrations.arrivals, vm_id(vm)) != NULL;
}

/* ---- start and end ---- */

static const char *controller_at(void *arg, unsigned attempt)
{
    const struct agent *a = arg;
    const struct string_list *all = &a->identity.controllers;
    const char *current = attempt == 0 && a->session != NULL ? session_controller(a->session) : NULL;
    return current != NULL ? current : all->items[attempt % all->count];
}

void agent_migrations_start(struct agent *a)
{
    struct agent_migrations *m = &a->migrations;
    /* Targets listen at the address that the controllers know, at a port that the kernel chooses. */
    const char *address = a->identity.address, *colon = strrchr(address, ':');
    m->listen = xasprintf("%.*s:0", colon != NULL ? (int)(colon - address) : (int)strlen(address), address);
    m->controllers_prefix = xasprintf("spiffe://drover/%s/controller/", a->identity.cluster_id);
    m->context = (struct migrate_context){.loop = a->loop,
                                          .http = a->http,
                                          .tls = a->tls,
                                          .data_dir = a->data_dir,
                                          .host_id = a->identity.id,
                                          .listen = m->listen,
                                          .controllers_prefix = m->controllers_prefix,
                                          .controller = controller_at,
                                          .arg = a};
}

void agent_migrations_stop(struct agent *a)
{
    struct departure *d;
    struct arrival *v;
    for (size_t i = 0; (d = map_next(&a->migrations.departures, &i)) != NULL;)
        departure_close(d);
    for (size_t i = 0; (v = map_next(&a->migrations.arrivals, &i)) != NULL;)
        arrival_close(v);
}

void agent_migrations_free(struct agent *a)
{
    map_finish(&a->migrations.departures);
    map_finish(&a->migrations.arrivals);
    free(a->migrations.listen);
    free(a->migrations.controllers_prefix);
}

/* ---- the kind ---- */

static void begin(struct agent_task *task)
{
    (void)task; /* agent_migrations_obey comes right after, with all that it needs */
}

static void cancel(struct agent_task *task)
{
    struct departure *d = task->order.task.vm != NULL ? map_get(&task->agent->migrations.departures, task->order.task.vm) : NULL;
    if (task->order.role == task_role_MAIN && d != NULL && !d->closing && strcmp(d->operation, task->order.id) == 0)
        migrate_out_order(d->out, NULL, true);
}

static void changed(struct agent_task *task)
{
    (void)task; /* as begin */
}

const struct agent_task_ops task_migrate_ops = {.start = begin, .cancel = cancel, .changed = changed, .stop = agent_task_stopped};
