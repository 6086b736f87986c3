/* Event streams.
 *
 * The ring in the state is the buffer: a watcher holds only its position (a serial). When commands are applied, each
 * watcher whose queue is short gets the events after its position; one that reads slowly is passed over until it has
 * drained. So many have a turn of the loop together, the others come with the next one. If the ring has moved on beyond its position meanwhile, it is told to resync and cut off: never a silent
 * gap. Watchers without a filter at the same position share one formatted block. */
#include "controller/api/api_watch.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"

struct watcher {
    struct list link;
    struct service *service;
    struct http_request *request;
    uint64_t serial;  /* of the last event looked at */
    uint64_t passed;  /* events a filter has passed over since the reader was last told an id */
    int kind;         /* -1: all */
    char *needles[2]; /* "object_id":"..." and "object_name":"..."; NULL: all */
};

/* A block of formatted events, shared by watchers without a filter. */
struct block {
    uint64_t from, to; /* serials */
    struct bytes_writer text;
    bool gap, complete;
};

static bool wants(const struct watcher *watcher, const struct state_event *event)
{
    if (watcher->kind >= 0 && event->kind != (enum object_kind)watcher->kind)
        return false;
    if (watcher->needles[0] == NULL)
        return true;
    for (size_t i = 0; i < ARRAY_SIZE(watcher->needles); i++)
        if (memmem(event->json, event->json_size, watcher->needles[i], strlen(watcher->needles[i])) != NULL)
            return true;
    return false;
}

/* The value of "type" without parsing: canonical JSON has it once, before any text of users. */
static void put_type(const struct state_event *event, struct bytes_writer *out)
{
    static const char mark[] = "\"type\":\"";
    const char *at = memmem(event->json, event->json_size, mark, strlen(mark));
    const char *end =
        at == NULL ? NULL
                   : memchr(at + strlen(mark), '"', event->json_size - (size_t)(at - event->json) - strlen(mark));
    if (end == NULL)
        return;
    bytes_put_text(out, "event: ");
    bytes_put(out, at + strlen(mark), (size_t)(end - at) - strlen(mark));
    bytes_put_text(out, "\n");
}

/* Format what follows @watcher's position into @block. Read lock held. */
static void fill(struct watcher *watcher, const struct state *state, struct block *block)
{
    struct state_event event, next;
    block->from = block->to = watcher->serial;
    block->gap = false;
    bool more = state_event_next(state, block->to, &event);
    while (more && block->text.size < API_WATCH_BLOCK_BYTES) {
        if (event.serial != block->to + 1 && block->to != 0) {
            block->gap = true;
            break;
        }
        more = state_event_next(state, event.serial, &next);
        bool last_of_index = !more || next.index != event.index;
        if (wants(watcher, &event)) {
            if (last_of_index)
                bytes_put_format(&block->text, "id: %llu\n", (unsigned long long)event.index);
            put_type(&event, &block->text);
            bytes_put_text(&block->text, "data: ");
            bytes_put(&block->text, event.json, event.json_size);
            bytes_put_text(&block->text, "\n\n");
            watcher->passed = 0;
        } else if (++watcher->passed >= API_WATCH_ID_EVERY && last_of_index) {
            bytes_put_format(&block->text, "id: %llu\n\n", (unsigned long long)event.index);
            watcher->passed = 0;
        }
        block->to = event.serial;
        event = next;
    }
    block->complete = !more && !block->gap;
}

static void watcher_free(struct watcher *watcher)
{
    list_remove(&watcher->link);
    watcher->service->api.watcher_count--;
    free(watcher->needles[0]);
    free(watcher->needles[1]);
    free(watcher);
}

static void on_gone(struct http_request *request, void *arg)
{
    struct watcher *watcher = arg;
    watcher_free(watcher);
    http_stream_end(request);
}

static void end_stream(struct watcher *watcher)
{
    struct http_request *request = watcher->request;
    http_request_on_gone(request, NULL, NULL);
    watcher_free(watcher);
    http_stream_end(request);
}

static void cut_off(struct watcher *watcher)
{
    static const char text[] =
        "event: resync\ndata: {\"code\":\"resync\",\"detail\":\"events were dropped before you read "
        "them; read the lists again and watch from their X-Drover-Index\"}\n\n";
    watcher->service->api.metrics.watchers_cut++;
    http_stream_write(watcher->request, text, strlen(text));
    end_stream(watcher);
}

/* Send what there is, block by block, as long as the reader keeps up. False: the watcher is gone or going. */
static bool pump(struct watcher *watcher, struct block *shared)
{
    struct service *service = watcher->service;
    bool plain = watcher->kind < 0 && watcher->needles[0] == NULL;
    for (;;) {
        if (http_stream_queued_bytes(watcher->request) >= API_WATCH_QUEUE_BYTES)
            return true; /* on_drained goes on */
        if (!plain || shared->from != watcher->serial || shared->to == shared->from) {
            shared->text.size = 0;
            service_lock_state(service);
            fill(watcher, service->state, shared);
            service_unlock_state(service);
        }
        bool complete = shared->complete, gap = shared->gap;
        watcher->serial = shared->to;
        int r = shared->text.size > 0 ? http_stream_write(watcher->request, shared->text.data, shared->text.size) : 0;
        if (!plain)
            shared->from = shared->to; /* not for others */
        if (r < 0)
            return false; /* on_gone follows */
        if (gap) {
            cut_off(watcher);
            return false;
        }
        if (complete)
            return true;
    }
}

static void on_drained(struct http_request *request, void *arg)
{
    struct block block = {.from = 0};
    (void)request;
    pump(arg, &block);
    bytes_writer_finish(&block.text);
}

/* Some of those that are due: they change to the end of the list. One that goes away meanwhile is counted still, and
 * another one is looked at once too often instead. */
static void pump_due(struct api *api)
{
    struct block block = {.from = 0};
    for (unsigned i = 0; i < API_WATCH_TURN && api->watch_due > 0; i++) {
        if (list_empty(&api->watchers)) {
            api->watch_due = 0;
            break;
        }
        api->watch_due--;
        struct watcher *watcher = LIST_ENTRY(api->watchers.next, struct watcher, link);
        list_remove(&watcher->link);
        list_append(&api->watchers, &watcher->link);
        pump(watcher, &block);
    }
    bytes_writer_finish(&block.text);
}

static void on_idle(uv_idle_t *idle)
{
    struct api *api = idle->data;
    pump_due(api);
    if (api->watch_due == 0)
        uv_idle_stop(idle);
}

void api_watch_applied(struct api *api)
{
    bool under_way = api->watch_due > 0;
    api->watch_due = api->watcher_count;
    if (under_way)
        return; /* on_idle comes to all of them */
    pump_due(api);
    if (api->watch_due > 0)
        uv_idle_start(&api->watch_idle, on_idle);
}

void api_watch_start(struct api *api)
{
    ASSERT(uv_idle_init(api->service->loop, &api->watch_idle) == 0);
    api->watch_idle.data = api;
}

void api_watch_stop(struct api *api)
{
    while (!list_empty(&api->watchers))
        end_stream(LIST_ENTRY(api->watchers.next, struct watcher, link));
    uv_close((uv_handle_t *)&api->watch_idle, NULL);
}

/* --- beginning --- */

/* Where to begin: Last-Event-ID, else ?after=, else now. Read lock held. */
static int find_start(struct api_call *call, uint64_t *ret_serial, struct error *err)
{
    const struct state *state = call->service->state;
    const char *last = http_request_header(call->request, "Last-Event-ID");
    uint64_t after = call->query.after;
    struct state_event event;
    if (last != NULL && last[0] != '\0') {
        char *end;
        errno = 0;
        after = strtoull(last, &end, 10);
        if (*end != '\0' || errno != 0 || last[0] < '0' || last[0] > '9')
            return error_set_field(err, -EINVAL, ERROR_INVALID, "Last-Event-ID", "it must be an index");
    } else if (!call->query.has_after) {
        *ret_serial = state_events_serial(state);
        return 0;
    }
    if (!state_events_complete(state, after))
        return error_set(
            err, -ESTALE, ERROR_GONE,
            "events after %llu are no longer held; read the lists again and watch from their X-Drover-Index",
            (unsigned long long)after);
    *ret_serial = state_event_after(state, after, &event) ? event.serial - 1 : state_events_serial(state);
    return 0;
}

static int find_kind(const struct api_call *call, int *ret_kind, struct error *err)
{
    *ret_kind = -1;
    for (unsigned i = 0; i < object_kind_COUNT; i++)
        if (strcmp(object_kind_desc.names[i], call->query.kind) == 0)
            *ret_kind = (int)i;
    if (call->query.kind[0] != '\0' && *ret_kind < 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?kind", "'%s' is no kind of object", call->query.kind);
    return 0;
}

static char *make_needle(const char *field, const char *value)
{
    struct bytes_writer text = {0};
    bytes_put_format(&text, "\"%s\":", field);
    json_put_string(&text, value);
    bytes_put_u8(&text, 0);
    return (char *)text.data;
}

static struct watcher *make_watcher(struct api_call *call, struct error *err)
{
    struct watcher *watcher = NEW(struct watcher);
    watcher->service = call->service;
    watcher->request = call->request;
    list_init(&watcher->link);
    service_lock_state(call->service);
    int r = find_start(call, &watcher->serial, err);
    call->index = MAX(call->index, state_index(call->service->state));
    service_unlock_state(call->service);
    if (r < 0 || find_kind(call, &watcher->kind, err) < 0) {
        free(watcher);
        return NULL;
    }
    if (call->query.object[0] != '\0') {
        watcher->needles[0] = make_needle("object_id", call->query.object);
        watcher->needles[1] = make_needle("object_name", call->query.object);
    }
    call->service->api.watcher_count++;
    return watcher;
}

static void answer_list(struct api_call *call, struct watcher *watcher)
{
    const struct state *state = call->service->state;
    struct bytes_writer body = {0};
    struct state_event event;
    size_t count = 0;
    uint64_t serial = watcher->serial;
    bytes_put_text(&body, "[");
    service_lock_state(call->service);
    for (; state_event_next(state, serial, &event); serial = event.serial) {
        if (!wants(watcher, &event))
            continue;
        bytes_put_text(&body, count++ > 0 ? "," : "");
        bytes_put(&body, event.json, event.json_size);
    }
    call->index = MAX(call->index, state_index(state));
    service_unlock_state(call->service);
    bytes_put_text(&body, "]\n");
    watcher_free(watcher);
    api_call_answer_json(call, 200, NULL, &body);
}

static void begin_stream(struct api_call *call, struct watcher *watcher)
{
    static const char hello[] = "retry: 1000\n\n";
    struct service *service = call->service;
    struct block block = {.from = 0};
    char headers[64];
    snprintf(headers, sizeof headers, "X-Drover-Index: %llu\r\n", (unsigned long long)call->index);
    struct http_stream_options options = {.content_type = "text/event-stream",
                                          .headers = headers,
                                          .keepalive = ": keep-alive\n\n",
                                          .keepalive_ms = 15000,
                                          .drained = on_drained,
                                          .drained_arg = watcher};
    http_stream_begin(call->request, &options);
    http_request_on_gone(call->request, on_gone, watcher);
    list_append(&service->api.watchers, &watcher->link);
    api_call_release(call, 200);
    if (http_stream_write(watcher->request, hello, strlen(hello)) == 0)
        pump(watcher, &block);
    bytes_writer_finish(&block.text);
}

void api_watch(struct api_call *call)
{
    struct error err;
    const char *accept = http_request_header(call->request, "Accept");
    bool list =
        accept != NULL && strstr(accept, "application/json") != NULL && strstr(accept, "text/event-stream") == NULL;
    if (!list && call->service->api.watcher_count >= API_WATCHERS_MAX) {
        error_set(&err, -EBUSY, ERROR_OVERLOAD, "%u event streams are open here already; ask another controller",
                  API_WATCHERS_MAX);
        api_call_error(call, &err);
        return;
    }
    struct watcher *watcher = make_watcher(call, &err);
    if (watcher == NULL)
        api_call_error(call, &err);
    else if (list)
        answer_list(call, watcher);
    else
        begin_stream(call, watcher);
}
