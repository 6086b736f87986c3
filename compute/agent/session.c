/* Reports to the controllers; see session.h for the steps.
 *
 *   RESTING --timer--> CALLING --answer--> RESTING (0 ms, or a pause)
 *                         |--failure--> RESTING (backoff, next controller)
 *                         '--poke: taken back--> RESTING (0 ms)
 *
 * RESTING: the timer runs, its end sends. CALLING: there is a call; the timer runs only when a poke has come, and its
 * end takes the call back. A call is left SESSION_EVERY_MS of time before it is taken back, doubled for each one in a
 * row that was, so that the controllers can always answer however fast things change here. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/log.h"
#include "compute/agent/session.h"

#define SESSION_ID_SIZE 33u

struct session {
    struct session_options options; /* its pointers to texts are not used after the start */
    char *peer_prefix;
    struct string_list controllers;
    size_t at;              /* which of them is asked */
    struct http_call *call; /* CALLING */
    uv_timer_t timer;
    uint64_t have_index;  /* of the last answer obeyed */
    uint64_t asked_index; /* have_index of the report under way */
    uint64_t sent_ms;
    char id[SESSION_ID_SIZE]; /* of this start; with the number below it lets a late report be known */
    uint64_t sequence;        /* of the last report */
    unsigned failures;         /* in a row */
    unsigned taken_back_count; /* in a row */
    bool poked, taken_back;
    bool silent; /* a drill: nothing is sent or obeyed */
    struct session_counters counters;
    bool stopping, timer_closed;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

static void session_send(struct session *s);
static void session_maybe_finish(struct session *s);

static void list_copy(struct string_list *to, const struct string_list *from)
{
    to->count = from->count;
    to->items = xcalloc(MAX(from->count, (size_t)1), sizeof(*to->items));
    for (size_t i = 0; i < from->count; i++)
        to->items[i] = xstrdup(from->items[i]);
}

static void list_clear(struct string_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct string_list){NULL, 0};
}

static bool list_equal(const struct string_list *a, const struct string_list *b)
{
    bool equal = a->count == b->count;
    for (size_t i = 0; equal && i < a->count; i++)
        equal = strcmp(a->items[i], b->items[i]) == 0;
    return equal;
}

static void session_timer(uv_timer_t *timer)
{
    struct session *s = timer->data;
    if (s->call == NULL) {
        session_send(s);
        return;
    }
    s->taken_back = true;
    s->taken_back_count++;
    http_call_cancel(s->call); /* its end sends the fresh one */
}

/* Send in @ms, but not sooner than SESSION_EVERY_MS after the last time. */
static void session_send_in(struct session *s, uint64_t ms)
{
    uint64_t now = uv_now(s->options.loop), earliest = s->sent_ms + SESSION_EVERY_MS;
    if (now + ms < earliest)
        ms = earliest - now;
    uv_timer_start(&s->timer, session_timer, ms, 0);
}

/* Keep to the controllers that the cluster has now, going on with the one that has just answered. */
static void take_controllers(struct session *s, const struct string_list *controllers)
{
    if (controllers->count == 0 || list_equal(&s->controllers, controllers))
        return;
    struct string_list old = s->controllers;
    const char *current = old.items[s->at];
    list_copy(&s->controllers, controllers);
    s->at = 0;
    for (size_t i = 0; i < controllers->count; i++)
        if (strcmp(controllers->items[i], current) == 0)
            s->at = i;
    list_clear(&old);
    log_info("session-controllers", "count=%zu", controllers->count);
    if (s->options.controllers_changed != NULL)
        s->options.controllers_changed(controllers, s->options.arg);
}

static int take_answer(struct session *s, const struct http_answer *answer, struct error *err)
{
    struct node_orders orders = {.index = 0};
    if (answer->error != 0)
        return error_set(err, answer->error, answer->problem.kind, "%s", answer->problem.text);
    if (answer->status != 200)
        return error_set(err, -EPROTO, answer->problem.kind, "it answered %d: %s", answer->status,
                         answer->problem.text);
    int r = OBJECT_DECODE(node_orders, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &orders, err);
    if (r == 0 && s->options.accept != NULL && (r = s->options.accept(&orders, s->options.arg, err)) < 0)
        OBJECT_CLEAR(node_orders, &orders);
    if (r < 0)
        return r;
    bool news = orders.index != s->asked_index;
    bool early = uv_now(s->options.loop) - s->sent_ms < SESSION_IDLE_MS;
    s->have_index = orders.index;
    take_controllers(s, &orders.controllers);
    s->options.obey(&orders, s->options.arg);
    OBJECT_CLEAR(node_orders, &orders);
    if (!s->stopping)
        session_send_in(s, s->poked || news || !early ? 0 : SESSION_IDLE_MS);
    return 0;
}

static void session_failed(struct session *s, const struct error *err)
{
    uint64_t pause_ms = SESSION_BACKOFF_MS_MIN;
    for (unsigned i = 0; i < s->failures && pause_ms < SESSION_BACKOFF_MS_MAX; i++)
        pause_ms *= 2;
    if (s->failures < s->controllers.count) /* once for each of them; then it is known */
        log_warning("session-failed", "controller=%s error=\"%s\"", s->controllers.items[s->at], err->text);
    s->failures++;
    s->counters.failures++;
    s->counters.connected = false;
    s->at = (s->at + 1) % s->controllers.count;
    session_send_in(s, MIN(pause_ms, (uint64_t)SESSION_BACKOFF_MS_MAX));
}

static void session_done(const struct http_answer *answer, void *arg)
{
    struct session *s = arg;
    struct error err = {.code = 0};
    bool taken_back = s->taken_back;
    s->call = NULL;
    s->taken_back = false;
    if (s->stopping) {
        session_maybe_finish(s);
        return;
    }
    if (taken_back && answer->error == -ECANCELED) {
        session_send_in(s, 0);
        return;
    }
    uv_timer_stop(&s->timer);
    s->taken_back_count = 0;
    if (s->silent)
        return;
    if (take_answer(s, answer, &err) < 0) {
        session_failed(s, &err);
        return;
    }
    if (s->failures > 0)
        log_info("session-connected", "controller=%s", s->controllers.items[s->at]);
    s->failures = 0;
    s->counters.connected = true;
    s->counters.answers++;
}

static void session_send(struct session *s)
{
    struct node_report report = {.host = NULL};
    struct bytes_writer body = {.data = NULL};
    struct error err = {.code = 0};
    ASSERT(s->call == NULL);
    if (s->silent)
        return; /* session_silence(false) sends */
    s->poked = false;
    s->asked_index = s->have_index;
    s->options.put_report(&report, s->options.arg);
    OBJECT_TEXT(node_report, &report, session, s->id);
    OBJECT_SET(node_report, &report, sequence, ++s->sequence);
    OBJECT_SET(node_report, &report, have_index, s->have_index);
    OBJECT_SET(node_report, &report, wait_ms, SESSION_WAIT_MS);
    OBJECT_ENCODE(node_report, &report, &body);
    OBJECT_CLEAR(node_report, &report);
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/node/report", s->controllers.items[s->at]);
    const struct http_call_options options = {
        .method = "POST",
        .url = url,
        .body = body.data,
        .body_size = body.size,
        .deadline_ms = SESSION_WAIT_MS + SESSION_GRACE_MS,
        .tls = s->options.tls,
        .peer_prefix = s->peer_prefix,
        .done = session_done,
        .arg = s,
    };
    s->sent_ms = uv_now(s->options.loop);
    s->counters.reports++;
    int r = http_client_start(s->options.http, &options, &s->call, &err);
    bytes_writer_finish(&body);
    if (r < 0) {
        s->call = NULL;
        session_failed(s, &err);
    }
}

static void make_id(char id[SESSION_ID_SIZE])
{
    uint8_t random[(SESSION_ID_SIZE - 1) / 2];
    ASSERT(getrandom(random, sizeof random, 0) == sizeof random); /* never short at this size (getrandom(2)) */
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(id + 2 * i, 3, "%02x", random[i]);
}

struct session *session_start(const struct session_options *options)
{
    struct session *s = NEW(struct session);
    ASSERT(options->controllers->count > 0);
    s->options = *options;
    s->peer_prefix = xstrdup(options->peer_prefix);
    list_copy(&s->controllers, options->controllers);
    make_id(s->id);
    uv_timer_init(options->loop, &s->timer);
    s->timer.data = s;
    uv_timer_start(&s->timer, session_timer, 0, 0);
    return s;
}

void session_poke(struct session *s)
{
    if (s->stopping || s->poked)
        return;
    s->poked = true;
    if (s->call != NULL) {
        uint64_t patience_ms = (uint64_t)SESSION_EVERY_MS << MIN(s->taken_back_count, SESSION_PATIENCE_DOUBLINGS);
        uint64_t age_ms = uv_now(s->options.loop) - s->sent_ms;
        uv_timer_start(&s->timer, session_timer, age_ms < patience_ms ? patience_ms - age_ms : 0, 0);
    } else if (s->failures == 0) {
        session_send_in(s, 0);
    }
}

const char *session_controller(const struct session *s)
{
    return s->controllers.items[s->at];
}

void session_ask_again(struct session *s)
{
    s->have_index = 0;
    session_poke(s);
}

void session_move(struct session *s, const char *controller)
{
    if (s->stopping)
        return;
    for (size_t i = 0; i < s->controllers.count; i++)
        if (strcmp(s->controllers.items[i], controller) == 0)
            s->at = i;
    if (s->call == NULL) {
        session_send_in(s, 0);
    } else if (!s->taken_back) {
        s->taken_back = true;
        http_call_cancel(s->call); /* its end sends the fresh one */
    }
}

void session_silence(struct session *s, bool silent)
{
    s->silent = silent;
    if (s->stopping)
        return;
    if (!silent && s->call == NULL) {
        session_send_in(s, 0);
    } else if (silent && s->call != NULL && !s->taken_back) {
        s->taken_back = true;
        http_call_cancel(s->call);
    }
}

uint64_t session_have_index(const struct session *s)
{
    return s->have_index;
}

bool session_waits(const struct session *s)
{
    return s->call != NULL;
}

const struct session_counters *session_counters(const struct session *s)
{
    return &s->counters;
}

static void session_timer_closed(uv_handle_t *handle)
{
    struct session *s = handle->data;
    s->timer_closed = true;
    session_maybe_finish(s);
}

/* Every reason to stay alive. */
static void session_maybe_finish(struct session *s)
{
    if (!s->stopping || !s->timer_closed || s->call != NULL)
        return;
    void (*stopped)(void *arg) = s->stopped;
    void *arg = s->stopped_arg;
    list_clear(&s->controllers);
    free(s->peer_prefix);
    free(s);
    if (stopped != NULL)
        stopped(arg);
}

void session_stop(struct session *s, void (*stopped)(void *arg), void *arg)
{
    s->stopping = true;
    s->stopped = stopped;
    s->stopped_arg = arg;
    if (s->call != NULL)
        http_call_cancel(s->call);
    uv_close((uv_handle_t *)&s->timer, session_timer_closed);
}
