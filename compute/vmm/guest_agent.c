/* The guest's agent: one call at a time over a byte stream that may begin anywhere. See guest_agent.h for the states. */
#include "compute/vmm/guest_agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"

enum { MARK = 0xff, ANSWER_MS = 10000, NS_PER_MS = 1000000 };

struct guest_agent_call {
    struct list link;
    char *text; /* owned: the line to send */
    bool silent, is_freeze, is_thaw;
    bool was_frozen; /* of a freeze: the guest was frozen already when it was sent */
    unsigned timeout_ms;
    guest_agent_fn callback; /* NULL: nobody wants to know */
    void *arg;
};

static void next(struct guest_agent *g);

static struct guest_agent_call *first(struct guest_agent *g)
{
    return list_empty(&g->calls) ? NULL : LIST_ENTRY(g->calls.next, struct guest_agent_call, link);
}

static void end_call(struct guest_agent *g, const json_t *answer, const struct error *err)
{
    struct guest_agent_call *c = first(g);
    list_remove(&c->link);
    g->call_count--;
    if (c->callback != NULL)
        c->callback(c->arg, answer, err);
    free(c->text);
    free(c);
}

static void fail_call(struct guest_agent *g, int code, enum error_kind kind, const char *text)
{
    struct error err;
    error_set(&err, code, kind, "%s", text);
    end_call(g, NULL, &err);
}

static void fail_all(struct guest_agent *g, int code, enum error_kind kind, const char *text)
{
    for (unsigned left = g->call_count; left > 0; left--)
        fail_call(g, code, kind, text);
}

void guest_agent_flush(struct guest_agent *g)
{
    size_t taken = g->send(g->send_arg, g->out, g->out_size);
    memmove(g->out, g->out + taken, g->out_size - taken);
    g->out_size -= taken;
}

static void put(struct guest_agent *g, const char *data, size_t size)
{
    ASSERT(size <= sizeof g->out);
    if (g->out_size + size > sizeof g->out)
        g->out_size = 0; /* of a call that was given up; the sync finds the beginning */
    memcpy(g->out + g->out_size, data, size);
    g->out_size += size;
    guest_agent_flush(g);
}

static void send_sync(struct guest_agent *g)
{
    char text[128];
    /* The mark ends whatever half a command the agent has read. */
    int size = snprintf(text, sizeof text, "%c{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%llu}}\n", MARK,
                        (unsigned long long)++g->sync_id);
    g->state = GUEST_AGENT_SYNCING;
    g->out_size = 0;
    put(g, text, (size_t)size);
    io_timer_arm(g->loop, &g->timeout, (uint64_t)GUEST_AGENT_SYNC_MS * NS_PER_MS);
}

static void send_call(struct guest_agent *g)
{
    struct guest_agent_call *c = first(g);
    g->state = GUEST_AGENT_WAITING;
    if (c->is_freeze) {
        c->was_frozen = g->frozen;
        g->frozen = true; /* from here on it may have happened */
        if (!c->was_frozen) /* from now: it may have waited for other calls as long as its limit is */
            io_timer_arm(g->loop, &g->thaw, (uint64_t)c->timeout_ms * NS_PER_MS);
    }
    put(g, c->text, strlen(c->text));
    io_timer_arm(g->loop, &g->timeout, (uint64_t)c->timeout_ms * NS_PER_MS);
}

/* Go on with the first call that waits, if none is under way. */
static void next(struct guest_agent *g)
{
    if (g->state != GUEST_AGENT_IDLE || first(g) == NULL)
        return;
    if (g->synced)
        send_call(g);
    else
        send_sync(g);
}

static void on_timeout(void *arg)
{
    struct guest_agent *g = arg;
    struct guest_agent_call *c = first(g);
    bool silent_success = g->state == GUEST_AGENT_WAITING && c != NULL && c->silent;
    g->state = GUEST_AGENT_IDLE;
    g->synced = false;
    if (silent_success)
        end_call(g, NULL, &(struct error){0});
    else if (c != NULL)
        fail_call(g, -ETIMEDOUT, ERROR_TIMEOUT, "the guest's agent did not answer in time");
    next(g);
}

/* ---- answers ---- */

static void take_answer(struct guest_agent *g, const json_t *line)
{
    const json_t *value = json_object_get(line, "return"), *problem = json_object_get(line, "error");
    struct guest_agent_call *c = first(g);
    if (value == NULL && problem == NULL)
        return; /* an event, or nothing that we know */
    if (c->is_thaw && value != NULL) {
        g->frozen = false;
        io_timer_cancel(&g->thaw);
    }
    if (c->is_freeze && value == NULL)
        g->frozen = c->was_frozen; /* the agent thaws by itself what it froze before it failed, and nothing else */
    io_timer_cancel(&g->timeout);
    g->state = GUEST_AGENT_IDLE;
    if (value != NULL) {
        end_call(g, value, &(struct error){0});
    } else {
        const char *text = json_string_value(json_object_get(problem, "desc"));
        char words[300];
        snprintf(words, sizeof words, "the guest's agent refuses: %.250s", text ? text : "without words");
        for (char *at = words; *at; at++)
            if (*at < ' ' || *at > '~') /* a guest's words in our logs and answers; and the cut may be in a letter */
                *at = (unsigned char)*at < ' ' ? ' ' : '?';
        fail_call(g, -EREMOTEIO, ERROR_CONFLICT, words);
    }
    next(g);
}

static void take_line(struct guest_agent *g)
{
    json_error_t parse;
    json_t *line = json_loadb(g->line, g->line_size, JSON_REJECT_DUPLICATES, &parse);
    if (g->state == GUEST_AGENT_SYNCING) {
        const json_t *id = json_object_get(line, "return");
        if (json_is_integer(id) && json_integer_value(id) == (json_int_t)g->sync_id) {
            io_timer_cancel(&g->timeout);
            g->synced = true;
            g->state = GUEST_AGENT_IDLE;
            next(g);
        }
    } else if (g->state == GUEST_AGENT_WAITING) {
        if (json_is_object(line)) {
            take_answer(g, line);
        } else {
            io_timer_cancel(&g->timeout);
            g->state = GUEST_AGENT_IDLE;
            g->synced = false;
            fail_call(g, -EBADMSG, ERROR_INTERNAL, "the guest's agent answered with what is no JSON object");
            next(g);
        }
    }
    json_decref(line);
}

void guest_agent_input(struct guest_agent *g, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (data[i] == MARK) {
            g->line_size = 0; /* what came before belongs to nobody */
            g->line_lost = false;
        } else if (data[i] != '\n') {
            g->line_lost = g->line_lost || g->line_size == GUEST_AGENT_LINE_BYTES_MAX;
            if (!g->line_lost)
                g->line[g->line_size++] = (char)data[i];
        } else {
            if (g->line_lost)
                g->line_size = 0; /* an empty line is no JSON: the call fails */
            if (g->line_size > 0 || g->line_lost)
                take_line(g);
            g->line_size = 0;
            g->line_lost = false;
        }
    }
}

void guest_agent_opened(struct guest_agent *g, bool open)
{
    struct guest_agent_call *c = first(g);
    bool silent_success = !open && g->state == GUEST_AGENT_WAITING && c != NULL && c->silent;
    io_timer_cancel(&g->timeout);
    g->state = open ? GUEST_AGENT_IDLE : GUEST_AGENT_CLOSED;
    g->synced = false;
    g->line_size = g->out_size = 0;
    g->line_lost = false;
    if (silent_success)
        end_call(g, NULL, &(struct error){0});
    fail_all(g, -ENOTCONN, ERROR_CONFLICT, "the guest's agent has closed its channel");
}

/* ---- calls ---- */

static int line_make(const char *command, const json_t *arguments, char **ret_text, struct error *err)
{
    json_t *object = json_pack("{s:s}", "execute", command);
    if (object != NULL && arguments != NULL)
        json_object_set(object, "arguments", (json_t *)arguments);
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (text == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "the command is no valid UTF-8");
    size_t size = strlen(text);
    if (size + 2 > GUEST_AGENT_OUT_BYTES_MAX) {
        free(text);
        return error_set(err, -E2BIG, ERROR_TOO_LARGE, "a command for the guest's agent has %d bytes at most",
                         GUEST_AGENT_OUT_BYTES_MAX - 2);
    }
    char *line = xcalloc(1, size + 2);
    memcpy(line, text, size);
    line[size] = '\n';
    free(text);
    *ret_text = line;
    return 0;
}

static int call_add(struct guest_agent *g, const char *command, const json_t *arguments,
                    const struct guest_agent_call *how, struct error *err)
{
    if (g->state == GUEST_AGENT_CLOSED)
        return error_set(err, -ENOTCONN, ERROR_CONFLICT,
                         "no agent answers in the guest; install and start qemu-guest-agent there");
    if (g->call_count == GUEST_AGENT_CALLS_MAX)
        return error_set(err, -EBUSY, ERROR_OVERLOAD, "%d calls wait for the guest's agent already",
                         GUEST_AGENT_CALLS_MAX);
    char *text = NULL;
    int code = line_make(command, arguments, &text, err);
    if (code < 0)
        return code;
    struct guest_agent_call *c = NEW(struct guest_agent_call);
    *c = *how;
    c->text = text;
    list_append(&g->calls, &c->link);
    g->call_count++;
    next(g);
    return 0;
}

int guest_agent_call(struct guest_agent *g, const char *command, const json_t *arguments, bool silent,
                     unsigned timeout_ms, guest_agent_fn callback, void *arg, struct error *err)
{
    struct guest_agent_call how = {.silent = silent, .timeout_ms = timeout_ms, .callback = callback, .arg = arg};
    return call_add(g, command, arguments, &how, err);
}

int guest_agent_freeze(struct guest_agent *g, unsigned limit_ms, guest_agent_fn callback, void *arg, struct error *err)
{
    if (limit_ms < 1 || limit_ms > GUEST_AGENT_FREEZE_MS_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/limit_ms", "a freeze lasts 1 to %d ms, not %u",
                               GUEST_AGENT_FREEZE_MS_MAX, limit_ms);
    struct guest_agent_call how = {.is_freeze = true, .timeout_ms = limit_ms, .callback = callback, .arg = arg};
    return call_add(g, "guest-fsfreeze-freeze", NULL, &how, err);
}

int guest_agent_thaw(struct guest_agent *g, guest_agent_fn callback, void *arg, struct error *err)
{
    struct guest_agent_call how = {.is_thaw = true, .timeout_ms = ANSWER_MS, .callback = callback, .arg = arg};
    return call_add(g, "guest-fsfreeze-thaw", NULL, &how, err);
}

/* The limit of a freeze has passed. Tried again until it is answered: a guest must not stay frozen for want of one
 * message. An agent that has gone and come back is asked as well. */
static void on_thaw(void *arg)
{
    struct guest_agent *g = arg;
    if (!g->frozen)
        return;
    log_warning("guest-thaw", "why=\"the limit of the freeze has passed\"");
    (void)guest_agent_thaw(g, NULL, NULL, NULL);
    io_timer_arm(g->loop, &g->thaw, (uint64_t)ANSWER_MS * NS_PER_MS);
}

void guest_agent_init(struct guest_agent *g, struct io_loop *loop, guest_agent_send_fn send, void *send_arg)
{
    *g = (struct guest_agent){.loop = loop, .send = send, .send_arg = send_arg};
    list_init(&g->calls);
    io_timer_init(&g->timeout, on_timeout, g);
    io_timer_init(&g->thaw, on_thaw, g);
    g->line = xcalloc(1, GUEST_AGENT_LINE_BYTES_MAX);
}

void guest_agent_finish(struct guest_agent *g)
{
    io_timer_cancel(&g->timeout);
    io_timer_cancel(&g->thaw);
    g->state = GUEST_AGENT_CLOSED;
    fail_all(g, -ECANCELED, ERROR_CANCELLED, "the VM ends");
    free(g->line);
    g->line = NULL;
}
