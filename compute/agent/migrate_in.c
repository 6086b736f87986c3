/* The target's side of a migration; see migrate_in.h. */
#include "compute/agent/migrate_in.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/tunnel_program.h"

enum step { IN_PREPARE, IN_TUNNEL, IN_READY, IN_ENDED };
enum { WAY_MEMORY, WAY_DISKS, WAYS };
enum { AGAIN_MS = 300 }; /* before another tunnel is opened in the place of one that has ended */

struct way {
    struct migrate_in *in;
    struct tunnel_child *tunnel;
    char endpoint[120]; /* "": it does not listen yet */
};

struct migrate_in {
    struct migrate_in_options options; /* its texts are copies */
    char operation[37], source[37];
    enum step step;
    uv_timer_t timer;
    struct way ways[WAYS];
    unsigned way_count;
    char endpoint[256]; /* of the ways, with a space between */
    struct error failure;
    bool told;
    bool broken; /* IN_READY: the tunnel has ended, and another is to be opened when it is gone */

    bool closing, timer_closed;
    unsigned tunnels; /* that are being closed */
    void (*closed)(void *arg);
    void *closed_arg;
};

static void migrate_in_tick(struct migrate_in *m);
static void maybe_finish(struct migrate_in *m);

static void on_timer(uv_timer_t *timer)
{
    migrate_in_tick(timer->data);
}

static void wake_in(struct migrate_in *m, uint64_t ms)
{
    if (!m->closing)
        uv_timer_start(&m->timer, on_timer, ms, 0);
}

static void wake(struct migrate_in *m)
{
    wake_in(m, 0);
}

static void tunnel_gone(void *arg)
{
    struct migrate_in *m = arg;
    m->tunnels--;
    if (m->broken)
        wake_in(m, AGAIN_MS);
    maybe_finish(m);
}

static void tunnel_drop(struct migrate_in *m)
{
    for (unsigned i = 0; i < WAYS; i++) {
        if (m->ways[i].tunnel == NULL)
            continue;
        m->tunnels++;
        tunnel_child_stop(TAKE_PTR(m->ways[i].tunnel), tunnel_gone, m);
    }
}

static void fail(struct migrate_in *m, const struct error *err)
{
    m->failure = *err;
    m->step = IN_ENDED;
    tunnel_drop(m);
    wake(m);
}

static void tunnel_listening(void *arg, const char *endpoint)
{
    struct way *way = arg;
    struct migrate_in *m = way->in;
    if (m->step != IN_TUNNEL)
        return;
    snprintf(way->endpoint, sizeof(way->endpoint), "%.119s", endpoint);
    for (unsigned i = 0; i < m->way_count; i++)
        if (m->ways[i].endpoint[0] == '\0')
            return;
    snprintf(m->endpoint, sizeof(m->endpoint), "%s%s%s", m->ways[WAY_MEMORY].endpoint, m->way_count > 1 ? " " : "",
             m->way_count > 1 ? m->ways[WAY_DISKS].endpoint : "");
    m->step = IN_READY;
    log_info("migrate-in", "vm=%s operation=%s endpoint=%s", vm_order_of(m->options.vm)->name, m->operation, m->endpoint);
    m->options.progress(m->options.arg);
}

static void tunnel_ended(void *arg, const char *why)
{
    struct migrate_in *m = ((struct way *)arg)->in;
    struct error err = {.code = 0};
    error_set(&err, -EIO, ERROR_INTERNAL, "the way from the source cannot be made: %.400s", why);
    if (m->step == IN_TUNNEL && !m->options.again)
        return fail(m, &err);
    m->broken = true; /* before it is this host's its migration ends with the tunnel, or it waits for another one */
    if (vm_is_taking(m->options.vm))
        wake_in(m, AGAIN_MS);
    log_warning("tunnel-ended", "vm=%s why=\"%s\"", vm_order_of(m->options.vm)->name, why); /* the VMMs will say so */
}

static int way_begin(struct migrate_in *m, unsigned i, const char *address, struct error *err)
{
    static const struct tunnel_child_callbacks callbacks = {.listening = tunnel_listening, .ended = tunnel_ended};
    const struct migrate_context *context = m->options.context;
    const struct tunnel_program_options options = {
        .data_dir = context->data_dir, .peer = m->source, .listen = context->listen, .connect = address};
    m->ways[i].in = m;
    return tunnel_child_start(context->loop, &options, &callbacks, &m->ways[i], &m->ways[i].tunnel, err);
}

static void tunnel_begin(struct migrate_in *m)
{
    CLEANUP_FREE char *address = vm_arrival_address(m->options.vm), *disks = vm_arrival_disks_address(m->options.vm);
    struct error err = {.code = 0};
    m->way_count = disks != NULL ? WAYS : WAY_DISKS;
    int r = vm_arrival_open(m->options.vm, &err);
    if (r == 0)
        r = way_begin(m, WAY_MEMORY, address, &err);
    if (r == 0 && disks != NULL)
        r = way_begin(m, WAY_DISKS, disks, &err);
    if (r < 0)
        return fail(m, &err);
    m->step = IN_TUNNEL;
    m->options.progress(m->options.arg);
}

/* For what it lacks of its memory. */
static void tunnel_again(struct migrate_in *m)
{
    CLEANUP_FREE char *address = vm_arrival_address(m->options.vm);
    struct error err = {.code = 0};
    if (m->tunnels > 0)
        return; /* its end comes back */
    if (m->broken && m->ways[WAY_MEMORY].tunnel != NULL)
        return tunnel_drop(m);
    m->broken = false;
    m->options.again = true;
    m->way_count = WAY_DISKS;
    m->ways[WAY_MEMORY].endpoint[0] = '\0';
    if (way_begin(m, WAY_MEMORY, address, &err) < 0) {
        log_warning("migrate-in", "vm=%s operation=%s error=\"%s\"", vm_order_of(m->options.vm)->name, m->operation, err.text);
        m->broken = true;
        return wake_in(m, AGAIN_MS);
    }
    m->step = IN_TUNNEL;
}

static void migrate_in_tick(struct migrate_in *m)
{
    const char *why;
    struct error err = {.code = 0};
    if (m->closing)
        return;
    if (m->step == IN_ENDED) {
        if (!m->told) {
            m->told = true;
            m->options.failed(m->options.arg, &m->failure);
        }
        return;
    }
    if (vm_is_taking(m->options.vm) && (m->broken || (m->options.again && m->step == IN_PREPARE)))
        return tunnel_again(m);
    enum vm_arrival arrival = vm_arrival_of(m->options.vm, &why);
    if (arrival == VM_ARRIVAL_FAILED) {
        error_set(&err, -EIO, ERROR_CONFLICT, "%.500s", why);
        fail(m, &err);
    } else if (arrival == VM_ARRIVAL_LISTENING && m->step == IN_PREPARE) {
        tunnel_begin(m);
    } else if (m->step == IN_PREPARE) {
        m->options.progress(m->options.arg);
    }
}

struct migrate_in *migrate_in_start(const struct migrate_in_options *options)
{
    struct migrate_in *m = NEW(struct migrate_in);
    m->options = *options;
    snprintf(m->operation, sizeof(m->operation), "%s", options->operation);
    snprintf(m->source, sizeof(m->source), "%s", options->source);
    uv_timer_init(options->context->loop, &m->timer);
    m->timer.data = m;
    wake(m);
    return m;
}

void migrate_in_vm_changed(struct migrate_in *m)
{
    wake(m);
}

const char *migrate_in_endpoint(const struct migrate_in *m)
{
    return m->step == IN_READY ? m->endpoint : NULL;
}

const char *migrate_in_step(const struct migrate_in *m)
{
    static const char *const words[] = {"preparing", "opening the way from the source", "waiting for the source", "failed"};
    return words[m->step];
}

static void timer_closed(uv_handle_t *handle)
{
    struct migrate_in *m = handle->data;
    m->timer_closed = true;
    maybe_finish(m);
}

static void maybe_finish(struct migrate_in *m)
{
    if (!m->closing || !m->timer_closed || m->tunnels > 0)
        return;
    void (*closed)(void *arg) = m->closed;
    void *arg = m->closed_arg;
    free(m);
    if (closed != NULL)
        closed(arg);
}

void migrate_in_close(struct migrate_in *m, void (*closed)(void *arg), void *arg)
{
    m->closing = true;
    m->closed = closed;
    m->closed_arg = arg;
    tunnel_drop(m);
    uv_close((uv_handle_t *)&m->timer, timer_closed);
}
