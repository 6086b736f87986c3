/* The source's side of a migration; see migrate_out.h.
 *
 * As in vm.c: callbacks store facts and end in migrate_out_tick, which carries out what follows from them. */
#include "compute/agent/migrate_out.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/tunnel_program.h"

#define STEP_BYTES_MAX 200
#define PAGE_BYTES 4096u
#define CONNECTIONS_DEFAULT 2u
#define ENDING_MS 5u /* between two looks at a VMM that has just been told */

enum step { OUT_LOOK, OUT_WAIT, OUT_TUNNEL, OUT_BEGIN, OUT_FOLLOW, OUT_PROPOSE, OUT_DECIDE, OUT_LEND, OUT_ENDING, OUT_ENDED };
static const char *const step_names[] = {"look", "wait", "tunnel", "begin", "follow", "propose", "decide", "lend", "ending", "ended"};

enum { WAY_MEMORY, WAY_DISKS, WAYS };

struct way {
    struct migrate_out *out;
    struct tunnel_child *tunnel;
    char *socket_path;
    char endpoint[120]; /* that it leads to */
    bool listening, broken;
};

struct migrate_out {
    struct migrate_out_options options; /* its texts and settings are copies */
    struct task_migration settings;
    char operation[37], peer[37];
    enum step step;
    uv_timer_t timer;
    struct http_call *call, *wait_call;
    struct way ways[WAYS];
    unsigned way_count;
    unsigned attempt; /* of asking controllers */
    uint64_t proposed_ms;
    char words[STEP_BYTES_MAX];

    /* facts */
    char endpoint[256], peer_failure[400];
    bool cancel, cancel_sent, over, over_there, process_ended, looked, asked;
    bool unheard; /* the guest could be stopped, and no controller has answered */
    bool decided, there; /* whose the VM is */
    bool given_up;       /* there: the VMM was told to send no more */
    uint64_t new_epoch;  /* there: the target's */
    struct vmm_migration figures;
    bool figures_old; /* LEND: they were acted upon */
    enum operation_state outcome; /* from OUT_ENDING on */
    struct error failure;

    bool closing, timer_closed;
    unsigned tunnels; /* that are being closed */
    void (*closed)(void *arg);
    void *closed_arg;
};

static void migrate_out_tick(struct migrate_out *m);
static void maybe_finish(struct migrate_out *m);

static const struct migrate_context *context_of(const struct migrate_out *m)
{
    return m->options.context;
}

static void on_timer(uv_timer_t *timer)
{
    migrate_out_tick(timer->data);
}

static void wake_in(struct migrate_out *m, uint64_t ms)
{
    if (!m->closing)
        uv_timer_start(&m->timer, on_timer, ms, 0);
}

static void step_to(struct migrate_out *m, enum step step)
{
    log_info("migrate-out", "vm=%s operation=%s from=%s to=%s", vm_order_of(m->options.vm)->name, m->operation,
             step_names[m->step], step_names[step]);
    m->step = step;
    m->looked = m->asked = false;
    m->options.progress(m->options.arg);
    wake_in(m, 0);
}

/* ---- the tunnel ---- */

static void tunnel_gone(void *arg)
{
    struct migrate_out *m = arg;
    m->tunnels--;
    wake_in(m, 0); /* the next one may be begun */
    maybe_finish(m);
}

static void tunnel_drop(struct migrate_out *m)
{
    for (unsigned i = 0; i < WAYS; i++) {
        struct way *way = &m->ways[i];
        if (way->tunnel != NULL) {
            m->tunnels++;
            tunnel_child_stop(TAKE_PTR(way->tunnel), tunnel_gone, m);
        }
        unlink(way->socket_path);
    }
}

/* What the ways know of a failure; "" where nothing. */
static const char *ways_failure(const struct migrate_out *m)
{
    for (unsigned i = 0; i < WAYS; i++) {
        const char *said = m->ways[i].tunnel != NULL ? tunnel_child_failure(m->ways[i].tunnel) : "";
        if (said[0] != '\0')
            return said;
    }
    return "";
}

/* ---- its end ---- */

static void end(struct migrate_out *m, enum operation_state state)
{
    m->outcome = state;
    tunnel_drop(m);
    if (vm_lends(m->options.vm)) {
        vm_lend_end(m->options.vm);
        if (m->there)
            vm_left(m->options.vm);
    }
    step_to(m, OUT_ENDED);
}

static void fail(struct migrate_out *m, const struct error *err)
{
    m->failure = *err;
    end(m, operation_state_FAILED);
}

static void fail_words(struct migrate_out *m, int code, enum error_kind kind, const char *format, const char *words)
{
    struct error err = {.code = 0};
    error_set(&err, code, kind, format, words);
    fail(m, &err);
}

/* The VM is another's, or nobody's, and this migration has not made it so: neither the target nor this host may run it (ended). */
static void fail_not_ours(struct migrate_out *m)
{
    fail_words(m, -ESTALE, ERROR_CONFLICT, "%s", "it is another host's by now, or deleted, and not by this migration");
}

/* What the VMM says of a migration that has not come to its end, and what the tunnel knows of it. */
static void fail_as_told(struct migrate_out *m)
{
    const char *said = m->figures.failure != NULL ? m->figures.failure : "the VMM does not say why";
    const char *carried = ways_failure(m);
    struct error err = {.code = 0};
    if (m->peer_failure[0] != '\0')
        error_set(&err, -EIO, ERROR_CONFLICT, "%s", m->peer_failure);
    else if (carried[0] != '\0')
        error_set(&err, -EIO, ERROR_UNREACHABLE, "%.300s (%.200s)", said, carried);
    else
        error_set(&err, -EIO, ERROR_CONFLICT, "%.500s", said);
    m->failure = err;
    end(m, m->figures.phase == vmm_migration_phase_CANCELLED && (m->cancel || m->over) ? operation_state_CANCELLED
                                                                                       : operation_state_FAILED);
}

/* ---- calls ---- */

static int call_start(struct migrate_out *m, const char *method, const char *path, const struct bytes_writer *body,
                      unsigned deadline_ms, http_client_done done, struct http_call **ret_call)
{
    CLEANUP_FREE char *url = xasprintf("http://vmm%s", path);
    const struct http_call_options options = {
        .method = method,
        .url = url,
        .unix_socket = vm_control_path(m->options.vm),
        .body = body != NULL ? body->data : NULL,
        .body_size = body != NULL ? body->size : 0,
        .deadline_ms = deadline_ms,
        .done = done,
        .arg = m,
    };
    struct error err = {.code = 0};
    if (options.unix_socket == NULL) /* it has not answered its VM yet, or is gone */
        return -ENOTCONN;
    return http_client_start(context_of(m)->http, &options, ret_call, &err);
}

/* Its VMM has ended before it could be asked how it went: it has written that down. */
static void figures_recall(struct migrate_out *m)
{
    const struct migration_result *r = vm_departed(m->options.vm);
    if (r == NULL || m->figures.phase == vmm_migration_phase_DONE)
        return;
    OBJECT_SET(vmm_migration, &m->figures, phase, vmm_migration_phase_DONE);
    OBJECT_SET(vmm_migration, &m->figures, downtime_us, r->downtime_us);
    OBJECT_SET(vmm_migration, &m->figures, total_us, r->total_us);
    OBJECT_SET(vmm_migration, &m->figures, sent_bytes, r->sent_bytes);
    OBJECT_SET(vmm_migration, &m->figures, rounds, r->rounds);
}

/* Take the figures of an answer. */
static bool figures_take(struct migrate_out *m, const struct http_answer *answer)
{
    struct vmm_migration seen = {.head = {0}};
    struct error err = {.code = 0};
    if (answer->error != 0 || answer->status / 100 != 2 ||
        OBJECT_DECODE(vmm_migration, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &seen, &err) < 0)
        return false;
    if (seen.direction == vmm_migration_direction_IN) /* the one that brought it here: the new one only begins */
        OBJECT_SET(vmm_migration, &seen, phase, vmm_migration_phase_IDLE);
    OBJECT_CLEAR(vmm_migration, &m->figures);
    m->figures = seen;
    m->figures_old = false;
    m->options.progress(m->options.arg);
    return true;
}

/* A call has come back. False: nobody wants to know any more. */
static bool call_over(struct migrate_out *m, struct http_call **call)
{
    *call = NULL;
    if (!m->closing)
        return true;
    maybe_finish(m);
    return false;
}

static bool is_waiting_phase(uint32_t phase)
{
    return phase == vmm_migration_phase_READY || phase == vmm_migration_phase_UNKNOWN;
}

static bool is_lending_phase(uint32_t phase)
{
    return phase == vmm_migration_phase_POSTCOPY || phase == vmm_migration_phase_LOST;
}

/* Is the target to run it before it has all of its memory? In a pre-copy nothing is left by then. */
static bool would_lack(const struct migrate_out *m)
{
    bool postcopy = m->figures.postcopy || m->settings.postcopy != vmm_postcopy_NEVER;
    return postcopy && is_waiting_phase(m->figures.phase) && m->figures.dirty_pages > 0;
}

static bool is_active_phase(uint32_t phase)
{
    return phase == vmm_migration_phase_DISKS || phase == vmm_migration_phase_CONNECT ||
           phase == vmm_migration_phase_MEMORY || phase == vmm_migration_phase_STOP;
}

/* POST /v1/node/handover to one of the controllers. */
static void controller_ask(struct migrate_out *m, bool check, http_client_done done)
{
    const struct migrate_context *context = context_of(m);
    struct node_handover body = {.head = {0}};
    struct bytes_writer out = {.data = NULL};
    struct error err = {.code = 0};
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/node/handover", context->controller(context->arg, m->attempt));
    OBJECT_TEXT(node_handover, &body, host, context->host_id);
    OBJECT_TEXT(node_handover, &body, operation, m->operation);
    OBJECT_SET(node_handover, &body, epoch, m->options.epoch);
    OBJECT_TEXT(node_handover, &body, storage, m->settings.storage);
    if (m->settings.storage_shared)
        OBJECT_SET(node_handover, &body, storage_shared, true);
    if (check)
        OBJECT_SET(node_handover, &body, check, true);
    else if (would_lack(m))
        OBJECT_SET(node_handover, &body, lacking, true);
    OBJECT_ENCODE(node_handover, &body, &out);
    const struct http_call_options options = {
        .method = "POST",
        .url = url,
        .body = out.data,
        .body_size = out.size,
        .deadline_ms = check ? MIGRATE_OUT_CHECK_MS : MIGRATE_OUT_PROPOSE_MS,
        .tls = context->tls,
        .peer_prefix = context->controllers_prefix,
        .done = done,
        .arg = m,
    };
    if (http_client_start(context->http, &options, &m->call, &err) < 0) {
        m->call = NULL;
        m->attempt++;
        wake_in(m, MIGRATE_OUT_RETRY_MS);
    }
    bytes_writer_finish(&out);
    OBJECT_CLEAR(node_handover, &body);
}

/* ---- LOOK ---- */

static void on_look(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    struct error err = {.code = 0};
    bool resumed = vm_leaving(m->options.vm) != NULL && strcmp(vm_leaving(m->options.vm), m->operation) == 0;
    if (!call_over(m, &m->call))
        return;
    uint32_t phase = figures_take(m, answer) ? m->figures.phase : vmm_migration_phase_COUNT;
    if (phase == vmm_migration_phase_COUNT)
        return wake_in(m, MIGRATE_OUT_RETRY_MS);
    if (resumed && (is_waiting_phase(phase) || phase == vmm_migration_phase_GO || phase == vmm_migration_phase_DONE))
        return step_to(m, OUT_PROPOSE);
    if (resumed && is_lending_phase(phase)) { /* nothing but its being the target's leads there */
        m->decided = m->there = true;
        return step_to(m, OUT_LEND);
    }
    if (vm_is_forgotten(m->options.vm))
        return fail_not_ours(m);
    if (resumed && is_active_phase(phase))
        return step_to(m, OUT_FOLLOW);
    if (resumed && phase != vmm_migration_phase_IDLE)
        return fail_as_told(m);
    if (is_active_phase(phase) || is_waiting_phase(phase))
        return fail_words(m, -EBUSY, ERROR_CONFLICT, "%s", "another migration of it is under way");
    if (vm_leave_begin(m->options.vm, m->operation, &err) < 0)
        return fail(m, &err);
    step_to(m, OUT_WAIT);
}

/* ---- TUNNEL ---- */

static void tunnel_listening(void *arg, const char *endpoint)
{
    struct way *way = arg;
    (void)endpoint;
    way->listening = true;
    wake_in(way->out, 0);
}

static void tunnel_ended(void *arg, const char *why)
{
    struct way *way = arg;
    struct migrate_out *m = way->out;
    way->broken = true;
    if (m->step == OUT_TUNNEL)
        fail_words(m, -EIO, ERROR_INTERNAL, "the way to the target cannot be made: %.300s", why);
    else
        log_warning("tunnel-ended", "vm=%s why=\"%s\"", vm_order_of(m->options.vm)->name, why); /* the VMM will say so */
}

static bool ways_listen(const struct migrate_out *m)
{
    for (unsigned i = 0; i < m->way_count; i++)
        if (!m->ways[i].listening)
            return false;
    return true;
}

static int way_begin(struct migrate_out *m, struct way *way, const char *endpoint, struct error *err)
{
    static const struct tunnel_child_callbacks callbacks = {.listening = tunnel_listening, .ended = tunnel_ended};
    const struct tunnel_program_options options = {.data_dir = context_of(m)->data_dir,
                                                   .peer = m->peer,
                                                   .listen = way->socket_path,
                                                   .connect = endpoint,
                                                   .is_source = true,
                                                   .owner = vm_user(m->options.vm)};
    snprintf(way->endpoint, sizeof(way->endpoint), "%.119s", endpoint);
    way->listening = way->broken = false;
    unlink(way->socket_path); /* of an agent that was killed */
    return tunnel_child_start(context_of(m)->loop, &options, &callbacks, way, &way->tunnel, err);
}

/* Where there is a pool for them, those in pools that are this host's alone go along, too, and those in other shared ones. */
static bool goes_along(const struct migrate_out *m, const struct vm_disk *disk)
{
    const struct task_migration *s = &m->settings;
    const struct pool_order *pool = s->storage != NULL ? pool_dir_of(vm_order_of(m->options.vm), disk) : NULL;
    bool leaves = pool != NULL && (pool->kind == pool_kind_DIR || (s->storage_shared && strcmp(pool->id, s->storage) != 0));
    return vm_files_disk_moves(disk) || (leaves && disk->volume == NULL && !disk->read_only);
}

/* The target says where memory goes and, after a space, where disks do. */
static void tunnel_begin(struct migrate_out *m)
{
    const struct object_list *disks = &vm_order_of(m->options.vm)->disks;
    bool has_disks = false;
    for (size_t i = 0; i < disks->count; i++)
        has_disks |= goes_along(m, (const struct vm_disk *)disks->items + i);
    char *space = strchr(m->endpoint, ' ');
    struct error err = {.code = 0};
    if (space != NULL)
        *space = '\0';
    else if (has_disks)
        return fail_words(m, -ENOTSUP, ERROR_NOT_SUPPORTED, "%s", "the target does not say where disks go: update its agent");
    m->way_count = has_disks ? WAYS : WAY_DISKS;
    int r = way_begin(m, &m->ways[WAY_MEMORY], m->endpoint, &err);
    if (r == 0 && has_disks)
        r = way_begin(m, &m->ways[WAY_DISKS], space + 1, &err);
    if (r < 0)
        fail(m, &err);
    else
        step_to(m, OUT_TUNNEL);
}

/* ---- BEGIN ---- */

static void on_begun(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    if (figures_take(m, answer))
        return step_to(m, OUT_FOLLOW);
    fail_words(m, -EIO, ERROR_CONFLICT, "its VMM does not begin: %.400s",
               answer->problem.text[0] != '\0' ? answer->problem.text : "it does not answer");
}

/* Each disk that moves, and what the target may have of it already: the image, where it begins above that. */
static void disks_put(const struct migrate_out *m, struct vmm_migration_order *to)
{
    const struct vm_order *order = vm_order_of(m->options.vm);
    const struct vm_disk *disks = order->disks.items;
    CLEANUP_FREE char *path = xasprintf("unix:%s", m->ways[WAY_DISKS].socket_path);
    for (size_t i = 0; i < order->disks.count; i++) {
        if (!goes_along(m, &disks[i]))
            continue;
        struct vmm_migration_disk *disk = OBJECT_ADD(vmm_migration_order, to, disks);
        CLEANUP_FREE char *base = disks[i].image ? xasprintf("%s.img", order->disk.sha256) : NULL;
        OBJECT_TEXT(vmm_migration_disk, disk, id, disks[i].name);
        if (base != NULL)
            OBJECT_TEXT(vmm_migration_disk, disk, base, base);
        OBJECT_TEXT(vmm_migration_order, to, disks_to, path);
    }
}

static void begin(struct migrate_out *m)
{
    struct vmm_migration_order order = {.head = {0}};
    const struct task_migration *s = &m->settings;
    struct bytes_writer body = {.data = NULL};
    CLEANUP_FREE char *to = xasprintf("unix:%s", m->ways[WAY_MEMORY].socket_path);
    OBJECT_TEXT(vmm_migration_order, &order, to, to);
    disks_put(m, &order);
    OBJECT_SET(vmm_migration_order, &order, ask_owner, true);
    OBJECT_SET(vmm_migration_order, &order, ask_pause, true);
    OBJECT_SET(vmm_migration_order, &order, connections, s->connections != 0 ? s->connections : CONNECTIONS_DEFAULT);
    if (s->downtime_ms != 0)
        OBJECT_SET(vmm_migration_order, &order, downtime_ms, s->downtime_ms);
    if (s->downtime_max_ms != 0)
        OBJECT_SET(vmm_migration_order, &order, downtime_max_ms, s->downtime_max_ms);
    if (s->bytes_per_second != 0)
        OBJECT_SET(vmm_migration_order, &order, bytes_per_second, s->bytes_per_second);
    if (s->timeout_ms != 0)
        OBJECT_SET(vmm_migration_order, &order, timeout_ms, s->timeout_ms);
    if (OBJECT_HAS(task_migration, s, throttle_max))
        OBJECT_SET(vmm_migration_order, &order, throttle_max, s->throttle_max);
    if (s->verify)
        OBJECT_SET(vmm_migration_order, &order, verify, true);
    if (s->postcopy != vmm_postcopy_NEVER)
        OBJECT_SET(vmm_migration_order, &order, postcopy, s->postcopy);
    OBJECT_ENCODE(vmm_migration_order, &order, &body);
    if (call_start(m, "POST", "/v1/vm/migration", &body, VM_CONTROL_MS, on_begun, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_migration_order, &order);
}

/* ---- FOLLOW ---- */

static void on_waited(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->wait_call))
        return;
    if (!figures_take(m, answer))
        return wake_in(m, MIGRATE_OUT_RETRY_MS);
    m->asked = is_waiting_phase(m->figures.phase);
    migrate_out_tick(m); /* the guest may stand still: now, not with the next turn */
}

static void on_followed_soon(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    (void)figures_take(m, answer);
    wake_in(m, MIGRATE_OUT_RETRY_MS);
}

static void on_followed(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    (void)figures_take(m, answer);
    wake_in(m, m->figures.asks_pause && !m->unheard ? 0 : MIGRATE_OUT_LOOK_MS);
}

/* No majority has answered, or not in time: the guest runs on. What it does meanwhile is looked at before the next try. */
static void check_failed(struct migrate_out *m, const char *why)
{
    if (!m->unheard)
        log_warning("migrate-out", "vm=%s operation=%s not_stopped=\"%s\"", vm_order_of(m->options.vm)->name, m->operation, why);
    m->unheard = true;
    m->attempt++;
    m->options.progress(m->options.arg);
    if (call_start(m, "GET", "/v1/vm/migration", NULL, VM_CONTROL_MS, on_followed_soon, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
}

static void on_permitted(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    if (!figures_take(m, answer)) /* refused: it does not ask any more */
        OBJECT_SET(vmm_migration, &m->figures, asks_pause, false);
    wake_in(m, 0);
}

static void on_checked(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    struct handover_answer said = {.head = {0}};
    struct error err = {.code = 0};
    if (!call_over(m, &m->call))
        return;
    if (answer->error != 0 || answer->status != 200 ||
        OBJECT_DECODE(handover_answer, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &said, &err) < 0)
        return check_failed(m, answer->problem.text[0] != '\0' ? answer->problem.text : "no answer");
    bool may = said.epoch != 0;
    OBJECT_CLEAR(handover_answer, &said);
    if (!may) /* it has ended, or is to: the orders say so any moment */
        return check_failed(m, "the controllers have ended it");
    m->unheard = false;
    log_info("migrate-out", "vm=%s operation=%s permit", vm_order_of(m->options.vm)->name, m->operation);
    if (call_start(m, "POST", "/v1/vm/migration/permit", NULL, VM_CONTROL_MS, on_permitted, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
}

static void follow(struct migrate_out *m)
{
    uint32_t phase = m->figures.phase;
    if (vm_is_forgotten(m->options.vm)) /* nobody has proposed it yet, and a cancel would let its guest go on */
        return fail_not_ours(m);
    if (is_waiting_phase(phase))
        return step_to(m, OUT_PROPOSE);
    if (phase == vmm_migration_phase_DONE)
        return end(m, operation_state_SUCCEEDED);
    if (phase == vmm_migration_phase_FAILED || phase == vmm_migration_phase_CANCELLED) /* idle: its thread only begins */
        return fail_as_told(m);
    if (m->process_ended)
        return fail_words(m, -ESRCH, ERROR_CONFLICT, "%s", "its VMM ended while it was migrated");
    if (m->wait_call == NULL && !m->figures.asks_pause && /* else it would come back at once */
        call_start(m, "GET", "/v1/vm/migration/wait", NULL, MIGRATE_OUT_WAIT_MS, on_waited, &m->wait_call) < 0)
        m->wait_call = NULL;
    if (m->call == NULL && (m->cancel || m->over || m->peer_failure[0] != '\0') && !m->cancel_sent) {
        m->cancel_sent = call_start(m, "DELETE", "/v1/vm/migration", NULL, VM_CONTROL_MS, on_followed_soon, &m->call) == 0;
    } else if (m->call == NULL && m->figures.asks_pause && !m->cancel_sent &&
               !(m->unheard && uv_is_active((uv_handle_t *)&m->timer))) {
        controller_ask(m, true, on_checked); /* they will have to say whose it is: better to know before that they can */
    } else if (m->call == NULL && !uv_is_active((uv_handle_t *)&m->timer) &&
               call_start(m, "GET", "/v1/vm/migration", NULL, VM_CONTROL_MS, on_followed, &m->call) < 0) {
        m->call = NULL;
    }
    if (m->call == NULL && !uv_is_active((uv_handle_t *)&m->timer))
        wake_in(m, MIGRATE_OUT_RETRY_MS);
}

/* ---- PROPOSE ---- */

static void on_proposed(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    struct handover_answer said = {.head = {0}};
    struct error err = {.code = 0};
    if (!call_over(m, &m->call))
        return;
    if (answer->error == 0 && answer->status == 200 &&
        OBJECT_DECODE(handover_answer, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &said, &err) == 0) {
        m->decided = true;
        m->there = said.epoch != 0;
        m->new_epoch = said.epoch;
        if (!m->there)
            error_set(&m->failure, -ECONNABORTED, ERROR_CONFLICT, "%.400s",
                      said.reason != NULL ? said.reason : "the controllers refused the hand-over");
        OBJECT_CLEAR(handover_answer, &said);
        migrate_out_tick(m);
        return;
    }
    if (answer->error == 0 && answer->status == 404 && vm_is_forgotten(m->options.vm))
        return fail_not_ours(m);
    log_warning("handover-unknown", "vm=%s attempt=%u status=%d error=\"%s\"", vm_order_of(m->options.vm)->name, m->attempt,
                answer->status, answer->problem.text);
    m->attempt++;
    wake_in(m, MIGRATE_OUT_RETRY_MS);
}

/* That it is not this host's any more says nothing of whose it is: the controllers go on being asked, who answer for an operation that has
 * ended as well. Nor does an operation that has ended say that the VM stays: it may have been given away or deleted since, of which the
 * next orders tell. */
static void propose(struct migrate_out *m)
{
    if (m->over && !m->over_there && !m->decided) { /* the orders say it */
        m->decided = true;
        m->there = false;
        error_set(&m->failure, -ECONNABORTED, ERROR_CONFLICT, "the migration was ended before the hand-over");
    }
    if (m->decided && !m->there && !m->over)
        return;
    if (m->decided) {
        if (m->call != NULL)
            http_call_cancel(m->call);
        return step_to(m, OUT_DECIDE);
    }
    if (m->call != NULL)
        return;
    if (would_lack(m)) /* first: what is another host's is ended when its time is over, and the answer may be long in coming */
        vm_lend_begin(m->options.vm, false);
    controller_ask(m, false, on_proposed);
}

/* ---- DECIDE ---- */

static void on_decided(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    /* Refused: it knows already, or there is nothing of it any more. */
    if (answer->status / 100 != 2 && answer->status != 409 && !m->process_ended)
        return wake_in(m, MIGRATE_OUT_RETRY_MS);
    (void)figures_take(m, answer); /* what it said before it was told is no news */
    if (m->there && vm_lends(m->options.vm))
        return step_to(m, OUT_LEND);
    if (m->there)
        vm_left(m->options.vm);
    step_to(m, OUT_ENDING);
}

static void decide(struct migrate_out *m)
{
    struct vmm_migration_decision decision = {.head = {0}};
    struct bytes_writer body = {.data = NULL};
    if (m->call != NULL)
        return; /* a proposal that is being taken back */
    bool lacks = m->there && (would_lack(m) || vm_lends(m->options.vm));
    if (m->process_ended)
        return step_to(m, lacks ? OUT_LEND : OUT_ENDING);
    if (lacks)
        vm_lend_begin(m->options.vm, true);
    if (!m->there && vm_is_forgotten(m->options.vm))
        return fail_not_ours(m);
    OBJECT_SET(vmm_migration_decision, &decision, outcome,
               (uint32_t)(m->there ? vmm_migration_outcome_THERE : vmm_migration_outcome_HERE));
    OBJECT_SET(vmm_migration_decision, &decision, epoch, m->there ? m->new_epoch : 0);
    OBJECT_ENCODE(vmm_migration_decision, &decision, &body);
    if (call_start(m, "PUT", "/v1/vm/migration", &body, VM_CONTROL_MS, on_decided, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_migration_decision, &decision);
}

/* ---- LEND ---- */

/* The VMM connects again and again, to the same place. */
static void lend_way(struct migrate_out *m)
{
    struct way *way = &m->ways[WAY_MEMORY];
    struct error err = {.code = 0};
    char endpoint[sizeof(way->endpoint)];
    snprintf(endpoint, sizeof(endpoint), "%.*s", (int)MIN(strcspn(m->endpoint, " "), sizeof(endpoint) - 1), m->endpoint);
    bool as_is = way->tunnel != NULL && !way->broken && (endpoint[0] == '\0' || strcmp(endpoint, way->endpoint) == 0);
    if (as_is || m->tunnels > 0)
        return;
    if (way->tunnel != NULL) {
        tunnel_drop(m); /* the socket is its own until it has gone */
        return;
    }
    if (endpoint[0] == '\0' || m->peer[0] == '\0')
        return;
    if (way_begin(m, way, endpoint, &err) < 0)
        log_warning("migrate-out", "vm=%s operation=%s error=\"%s\"", vm_order_of(m->options.vm)->name, m->operation, err.text);
}

static void on_given_up(const struct http_answer *answer, void *arg)
{
    struct migrate_out *m = arg;
    if (!call_over(m, &m->call))
        return;
    m->given_up = answer->status / 100 == 2;
    if (!m->given_up && answer->status != 409) /* it does not know how, or does not answer */
        vm_lend_end(m->options.vm);
    m->figures_old = true;
    wake_in(m, MIGRATE_OUT_LOOK_MS);
}

/* Nobody waits for its memory any more, or nobody is there to ask for it. */
static void lend_give_up(struct migrate_out *m)
{
    struct vmm_migration_decision decision = {.head = {0}};
    struct bytes_writer body = {.data = NULL};
    log_warning("migrate-out", "vm=%s operation=%s gives_up=\"the migration is over, and the target does not ask\" pages=%" PRIu64,
                vm_order_of(m->options.vm)->name, m->operation, m->figures.dirty_pages);
    OBJECT_SET(vmm_migration_decision, &decision, outcome, vmm_migration_outcome_THERE);
    OBJECT_SET(vmm_migration_decision, &decision, give_up, true);
    OBJECT_ENCODE(vmm_migration_decision, &decision, &body);
    if (call_start(m, "PUT", "/v1/vm/migration", &body, VM_CONTROL_MS, on_given_up, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_migration_decision, &decision);
}

static void lend(struct migrate_out *m)
{
    if (m->process_ended)
        figures_recall(m);
    if (m->figures.phase == vmm_migration_phase_DONE && !m->given_up)
        return end(m, operation_state_SUCCEEDED);
    if (m->process_ended)
        return fail_words(m, -ESRCH, ERROR_CONFLICT, "%s", "its VMM has ended, which had what the target lacks of its memory");
    if (is_lending_phase(m->figures.phase) && !m->figures_old && !m->given_up)
        vm_lend_begin(m->options.vm, true);
    lend_way(m);
    if (m->call != NULL || uv_is_active((uv_handle_t *)&m->timer))
        return;
    if (m->over && m->figures.phase == vmm_migration_phase_LOST && !m->figures_old && !m->given_up)
        return lend_give_up(m);
    m->figures_old = true; /* until they have been asked for again */
    if (call_start(m, "GET", "/v1/vm/migration", NULL, VM_CONTROL_MS, on_followed, &m->call) < 0)
        wake_in(m, MIGRATE_OUT_RETRY_MS);
}

/* ---- ENDING ---- */

static void ending(struct migrate_out *m)
{
    bool is_over = m->figures.phase == vmm_migration_phase_DONE || m->figures.phase == vmm_migration_phase_FAILED ||
                   m->figures.phase == vmm_migration_phase_CANCELLED;
    if (m->process_ended && m->there)
        figures_recall(m);
    if (m->there && is_lending_phase(m->figures.phase))
        return step_to(m, OUT_LEND);
    if (is_over || (m->process_ended && m->wait_call == NULL)) /* its last answer may still be on its way */
        return end(m, m->there                 ? operation_state_SUCCEEDED
                      : m->cancel && !m->there ? operation_state_CANCELLED
                                               : operation_state_FAILED);
    if (!m->there && m->figures.phase == vmm_migration_phase_UNKNOWN && m->wait_call == NULL) {
        OBJECT_SET(vmm_migration, &m->figures, phase, vmm_migration_phase_IDLE); /* where the answer does not say, it is asked */
        step_to(m, OUT_DECIDE); /* it could not take back what it had let go of, and asks again: the answer is the same */
        return wake_in(m, MIGRATE_OUT_RETRY_MS);
    }
    if (m->wait_call == NULL && m->looked == false) {
        m->looked = true;
        if (call_start(m, "GET", "/v1/vm/migration/wait", NULL, MIGRATE_OUT_WAIT_MS, on_waited, &m->wait_call) < 0)
            m->wait_call = NULL;
    } else if (m->wait_call == NULL) {
        m->looked = false; /* it still says that it asks: it has not got so far */
    }
    if (m->wait_call == NULL)
        wake_in(m, ENDING_MS);
}

/* ---- all of it ---- */

static void ended(struct migrate_out *m)
{
    if (m->over && !m->over_there)
        vm_leave_end(m->options.vm);
    if (m->outcome != operation_state_SUCCEEDED)
        vm_not_left(m->options.vm);
    if (m->looked)
        return;
    m->looked = true; /* told once */
    m->options.ended(m->options.arg, m->outcome, m->outcome == operation_state_SUCCEEDED ? NULL : &m->failure);
}

static void give_up(struct migrate_out *m)
{
    error_set(&m->failure, -ECANCELED, ERROR_CANCELLED, "cancelled before memory was sent");
    end(m, operation_state_CANCELLED);
}

static void migrate_out_tick(struct migrate_out *m)
{
    if (m->closing)
        return;
    switch (m->step) {
    case OUT_LOOK:
        if (m->process_ended)
            return fail_words(m, -ESRCH, ERROR_CONFLICT, "%s", "its VMM has ended");
        if (m->call == NULL && call_start(m, "GET", "/v1/vm/migration", NULL, VM_CONTROL_MS, on_look, &m->call) < 0)
            wake_in(m, MIGRATE_OUT_RETRY_MS);
        return;
    case OUT_WAIT:
        if (m->cancel || m->over)
            return give_up(m);
        if (m->peer_failure[0] != '\0')
            return fail_words(m, -EIO, ERROR_CONFLICT, "%s", m->peer_failure);
        if (m->process_ended)
            return fail_words(m, -ESRCH, ERROR_CONFLICT, "%s", "its VMM has ended");
        if (m->endpoint[0] != '\0')
            tunnel_begin(m);
        return;
    case OUT_TUNNEL:
        if (m->cancel || m->over)
            return give_up(m);
        if (m->peer_failure[0] != '\0')
            return fail_words(m, -EIO, ERROR_CONFLICT, "%s", m->peer_failure);
        if (ways_listen(m))
            step_to(m, OUT_BEGIN);
        return;
    case OUT_BEGIN:
        if (m->process_ended)
            return fail_words(m, -ESRCH, ERROR_CONFLICT, "%s", "its VMM has ended");
        if (m->call == NULL)
            begin(m);
        return;
    case OUT_FOLLOW:
        return follow(m);
    case OUT_PROPOSE:
        return propose(m);
    case OUT_DECIDE:
        return decide(m);
    case OUT_LEND:
        return lend(m);
    case OUT_ENDING:
        return ending(m);
    case OUT_ENDED:
        return ended(m);
    }
}

struct migrate_out *migrate_out_start(const struct migrate_out_options *options)
{
    struct migrate_out *m = NEW(struct migrate_out);
    m->options = *options;
    snprintf(m->operation, sizeof(m->operation), "%s", options->operation);
    snprintf(m->peer, sizeof(m->peer), "%s", options->peer);
    OBJECT_COPY(task_migration, &m->settings, options->settings);
    for (unsigned i = 0; i < WAYS; i++) {
        m->ways[i].out = m;
        m->ways[i].socket_path = vm_departure_path(options->vm, options->operation, i == WAY_DISKS);
    }
    uv_timer_init(options->context->loop, &m->timer);
    m->timer.data = m;
    wake_in(m, 0);
    return m;
}

void migrate_out_order(struct migrate_out *m, const char *endpoint, bool cancel)
{
    if (endpoint != NULL)
        snprintf(m->endpoint, sizeof(m->endpoint), "%s", endpoint);
    m->cancel |= cancel;
    wake_in(m, 0);
}

void migrate_out_peer_failed(struct migrate_out *m, const char *why)
{
    snprintf(m->peer_failure, sizeof(m->peer_failure), "%s", why);
    wake_in(m, 0);
}

void migrate_out_over(struct migrate_out *m, bool there)
{
    if (m->over)
        return;
    m->over = true;
    m->over_there = there;
    wake_in(m, 0);
}

bool migrate_out_is_done(const struct migrate_out *m)
{
    return m->step == OUT_ENDED && m->looked && (m->over || m->outcome == operation_state_SUCCEEDED);
}

void migrate_out_process_ended(struct migrate_out *m)
{
    m->process_ended = true;
    wake_in(m, 0);
}

/* ---- what it says of itself ---- */

const struct vmm_migration *migrate_out_figures(const struct migrate_out *m)
{
    return &m->figures;
}

static const char *follow_words(struct migrate_out *m)
{
    const struct vmm_migration *f = &m->figures;
    char left[48] = "";
    if (OBJECT_HAS(vmm_migration, f, expected_us))
        snprintf(left, sizeof(left), ", about %" PRIu64 " s left", (f->expected_us + 999999) / 1000000);
    snprintf(m->words, sizeof(m->words), "round %u: %" PRIu64 " MiB sent, it writes %" PRIu64 " MiB/s, slowed down by %u %%%s",
             f->rounds + 1, f->sent_bytes >> 20, (f->dirty_per_second * PAGE_BYTES) >> 20, f->throttle_percent, left);
    return m->words;
}

static const char *disks_words(struct migrate_out *m)
{
    snprintf(m->words, sizeof(m->words), "its disks: %" PRIu64 " MiB copied, %" PRIu64 " MiB left",
             m->figures.disk_copied_bytes >> 20, m->figures.disk_left_bytes >> 20);
    return m->words;
}

static const char *lend_words(struct migrate_out *m)
{
    const char *to = m->settings.to_name != NULL ? m->settings.to_name : "the target";
    uint64_t left_mib = (m->figures.dirty_pages * PAGE_BYTES + (1 << 20) - 1) >> 20;
    if (m->figures.phase == vmm_migration_phase_LOST)
        snprintf(m->words, sizeof(m->words), "stands still at %s, which cannot be reached: %" PRIu64 " MiB of its memory still to come", to, left_mib);
    else
        snprintf(m->words, sizeof(m->words), "runs at %s, %" PRIu64 " MiB of its memory still to come", to, left_mib);
    return m->words;
}

bool migrate_out_lends(const struct migrate_out *m)
{
    return m->step == OUT_LEND;
}

const char *migrate_out_step(const struct migrate_out *m)
{
    switch (m->step) {
    case OUT_LOOK:
    case OUT_WAIT:
        return "the target is made ready";
    case OUT_TUNNEL:
    case OUT_BEGIN:
        return "the way to the target is made";
    case OUT_FOLLOW:
        return m->unheard && m->figures.asks_pause ? "it could be stopped, but no majority of the controllers answers"
               : m->figures.phase == vmm_migration_phase_DISKS  ? disks_words((struct migrate_out *)m)
               : m->figures.phase == vmm_migration_phase_MEMORY ? follow_words((struct migrate_out *)m)
                                                                : "asking whether it fits there";
    case OUT_PROPOSE:
    case OUT_DECIDE:
        return "handing it over";
    case OUT_LEND:
        return lend_words((struct migrate_out *)m);
    case OUT_ENDING:
    case OUT_ENDED:
        break;
    }
    return m->there ? "it runs at the target" : "it stays where it is";
}

/* ---- closing ---- */

static void timer_closed(uv_handle_t *handle)
{
    struct migrate_out *m = handle->data;
    m->timer_closed = true;
    maybe_finish(m);
}

static void maybe_finish(struct migrate_out *m)
{
    if (!m->closing || !m->timer_closed || m->call != NULL || m->wait_call != NULL || m->tunnels > 0)
        return;
    void (*closed)(void *arg) = m->closed;
    void *arg = m->closed_arg;
    OBJECT_CLEAR(task_migration, &m->settings);
    OBJECT_CLEAR(vmm_migration, &m->figures);
    for (unsigned i = 0; i < WAYS; i++)
        free(m->ways[i].socket_path);
    free(m);
    if (closed != NULL)
        closed(arg);
}

void migrate_out_close(struct migrate_out *m, void (*closed)(void *arg), void *arg)
{
    m->closing = true;
    m->closed = closed;
    m->closed_arg = arg;
    if (m->call != NULL)
        http_call_cancel(m->call);
    if (m->wait_call != NULL)
        http_call_cancel(m->wait_call);
    tunnel_drop(m);
    uv_close((uv_handle_t *)&m->timer, timer_closed);
}
