/* One request on its way; the drawing is in the header. */
#include "controller/api/api_call.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "controller/api/api_forward.h"
#include "controller/cluster_init.h"
#include "controller/environment.h"

static void finish(struct api_call *call, int status)
{
    struct api *api = &call->service->api;
    struct list followers;
    api_metrics_count(&api->metrics, call->route, status);
    if (call->route != NULL && !call->waited)
        api_metrics_time(&api->metrics, call->route, environment_monotonic_us() - call->started_us);
    ASSERT(list_empty(&call->link));
    if (call->holds_key)
        map_remove(&api->keys, call->key);
    list_init(&followers);
    list_take(&followers, &call->same_key);
    if (call->body != NULL)
        object_clear(call->route->body, call->body);
    free(call->body);
    bytes_writer_finish(&call->answer_body);
    free(call);
    LIST_FOREACH_SAFE(link, &followers)
    {
        struct api_call *next = LIST_ENTRY(link, struct api_call, link);
        api_call_unwait(next);
        api_call_run(next);
    }
}

static void put_index(const struct api_call *call, struct bytes_writer *headers)
{
    bytes_put_format(headers, "X-Drover-Index: %llu\r\n",
                     (unsigned long long)MAX(call->index, call->service->applied_index));
}

void api_call_error(struct api_call *call, const struct error *err)
{
    struct bytes_writer headers = {0};
    int status = error_kind_info(err->kind)->http_status;
    put_index(call, &headers);
    bytes_put_u8(&headers, 0);
    if (status >= 500)
        log_debug("api-error", "request=%s status=%d code=%s", call->request->id, status,
                  error_kind_info(err->kind)->code);
    http_respond_error_headers(call->request, err, (const char *)headers.data);
    bytes_writer_finish(&headers);
    finish(call, status);
}

void api_call_answer(struct api_call *call, int status, const char *content_type, const char *headers,
                     struct bytes_writer *body)
{
    struct bytes_writer all = {0};
    put_index(call, &all);
    if (headers != NULL)
        bytes_put_text(&all, headers);
    bytes_put_u8(&all, 0);
    if (body != NULL && body->size > 0)
        http_respond_take(call->request, status, content_type, (const char *)all.data, TAKE_PTR(body->data),
                          body->size, free);
    else
        http_respond(call->request, status, content_type, (const char *)all.data, "", 0);
    bytes_writer_finish(&all);
    if (body != NULL)
        bytes_writer_finish(body);
    finish(call, status);
}

void api_call_answer_json(struct api_call *call, int status, const char *headers, struct bytes_writer *body)
{
    api_call_answer(call, status, body != NULL && body->size > 0 ? "application/json" : NULL, headers, body);
}

void api_call_release(struct api_call *call, int status)
{
    call->waited = true;
    finish(call, status);
}

void api_call_pass_to_host(struct api_call *call, const char *host_id, const char *address, const char *path_and_query,
                           unsigned connect_timeout_ms)
{
    struct service *service = call->service;
    struct error err;
    char identity[256];
    const struct http_proxy_target target = {
        .endpoint = address,
        .tls = service->tls,
        .peer_prefix = cluster_identity(service->dir.identity.cluster_id, "host", host_id, identity),
        .path_and_query = path_and_query,
        .drop_headers = API_CALLER_HEADER,
        .connect_timeout_ms = connect_timeout_ms,
    };
    if (http_proxy_start(service->api.proxy, call->request, &target, &err) < 0)
        api_call_error(call, &err);
    else
        api_call_release(call, 0);
}

/* A call that waited and whose client has gone meanwhile: what was not begun is not done any more. The client cannot hear of it, and may have
 * asked again elsewhere: a repeat under the same key may be refused, and then this one must not be carried out after all. */
static bool drop_if_gone(struct api_call *call)
{
    if (!http_request_is_gone(call->request))
        return false;
    log_debug("api-client-gone", "request=%s", call->request->id);
    http_release(call->request);
    finish(call, 0);
    return true;
}

/* --- waiting --- */

int api_call_wait(struct api_call *call, struct list *list, uint32_t wait_ms, void (*on_deadline)(struct api_call *))
{
    struct api *api = &call->service->api;
    ASSERT(list_empty(&call->link));
    if (api->waiting >= API_WAITING_MAX)
        return -EBUSY;
    api->waiting++;
    call->waited = true;
    call->deadline_ms = environment_monotonic_ms() + wait_ms;
    call->on_deadline = on_deadline;
    list_append(list, &call->link);
    return 0;
}

void api_call_unwait(struct api_call *call)
{
    if (list_empty(&call->link))
        return;
    list_remove(&call->link);
    call->service->api.waiting--;
}

static void refuse_overload(struct api_call *call)
{
    struct error err;
    error_set(&err, -EBUSY, ERROR_OVERLOAD, "too many requests wait here; try again in a moment");
    api_call_error(call, &err);
}

static void refuse_no_leader(struct api_call *call)
{
    struct error err;
    error_set(&err, -ENOTCONN, ERROR_NO_LEADER,
              "no leader was found within %u ms: a majority of the controllers must be running and reach each other; "
              "?consistency=stale reads what this one holds",
              API_LEADER_WAIT_MS);
    api_call_error(call, &err);
}

/* Look again when Raft tells of a change, and every tick, until the time for a leader is over. */
static void wait_for_leader(struct api_call *call)
{
    uint64_t now = environment_monotonic_ms();
    if (call->service->stopping || (call->leader_deadline_ms != 0 && now >= call->leader_deadline_ms)) {
        refuse_no_leader(call);
        return;
    }
    if (call->leader_deadline_ms == 0)
        call->leader_deadline_ms = now + API_LEADER_WAIT_MS;
    if (api_call_wait(call, &call->service->api.leader_waiters, API_TICK_MS, api_call_run) < 0)
        refuse_overload(call);
}

void api_call_retry(struct api_call *call, const struct error *err)
{
    call->barrier_done = false;
    if (++call->attempts >= API_ATTEMPTS_MAX || call->service->stopping) {
        api_call_error(call, err);
        return;
    }
    call->service->api.metrics.retries++;
    if (api_call_wait(call, &call->service->api.leader_waiters, API_TICK_MS, api_call_run) < 0)
        refuse_overload(call);
}

/* --- running --- */

static void on_barrier(void *arg, int status, uint64_t index)
{
    struct api_call *call = arg;
    struct error err;
    switch (status) {
    case 0:
        if (drop_if_gone(call))
            return;
        call->index = MAX(call->index, index);
        call->barrier_done = true;
        api_handlers[call->route->id](call);
        return;
    case -ENOTCONN:
        error_set(&err, status, ERROR_NO_LEADER, "the leader changed meanwhile; nothing was changed; ask again");
        api_call_retry(call, &err);
        return;
    case -EAGAIN:
        error_set(&err, status, ERROR_OVERLOAD, "too many requests wait to be agreed on; ask again in a second");
        break;
    case -ENOSPC: /* a barrier is an entry of the log */
        error_set(&err, status, ERROR_NO_SPACE,
                  "the disk of a majority of the controllers is full; free some space there; ?consistency=stale reads "
                  "what this one holds");
        break;
    default:
        error_set(&err, status, ERROR_NO_LEADER, "this controller is stopping; ask another one");
    }
    api_call_error(call, &err);
}

int api_call_barrier(struct api_call *call)
{
    return raft_node_barrier(call->service->raft, on_barrier, call);
}

static void start_barrier(struct api_call *call)
{
    int r = api_call_barrier(call);
    if (r < 0)
        on_barrier(call, r, 0);
}

/* Must this controller be sure that it is still the leader before it answers? A console's ticket is in the leader's
 * memory. A report is compared with the state by its own rule, the index that the agent has come to; but an agent that
 * has just started knows none, and what it is told it starts: not from the state of a leader that has been replaced. Before a
 * hand-over it is the very question whether a majority answers. */
static bool needs_barrier(const struct api_call *call)
{
    if (call->route->id == ROUTE_ID_node_report)
        return ((const struct node_report *)call->body)->have_index == 0;
    if (call->route->id == ROUTE_ID_node_handover)
        return ((const struct node_handover *)call->body)->check;
    return call->route->method == ROUTE_GET && call->route->id != ROUTE_ID_vm_console;
}

void api_call_run(struct api_call *call)
{
    struct service *service = call->service;
    if (drop_if_gone(call))
        return;
    if ((call->route->flags & ROUTE_LOCAL) || call->query.stale) {
        api_handlers[call->route->id](call);
    } else if (service->ready) {
        if (!call->barrier_done && needs_barrier(call))
            start_barrier(call);
        else
            api_handlers[call->route->id](call);
    } else if (service->leader.leader_id == 0 || service_leads(service) || call->caller.hops >= API_CALLER_HOPS_MAX) {
        wait_for_leader(call);
    } else if (api_forward(call) < 0) {
        wait_for_leader(call);
    }
}

/* --- start: accept and authorise --- */

static int find_route(struct api_call *call, struct error *err)
{
    static const struct {
        enum http_method http;
        enum route_method route;
    } methods[] = {{HTTP_GET, ROUTE_GET}, {HTTP_HEAD, ROUTE_GET},    {HTTP_POST, ROUTE_POST},
                   {HTTP_PUT, ROUTE_PUT}, {HTTP_PATCH, ROUTE_PATCH}, {HTTP_DELETE, ROUTE_DELETE}};
    const char *path = call->request->path, *id = NULL;
    size_t id_length = 0;
    bool known = false;
    for (size_t i = 0; i < ARRAY_SIZE(methods) && call->route == NULL; i++)
        if (methods[i].http == call->request->method)
            call->route = route_find(methods[i].route, path, &id, &id_length, &known);
    if (call->request->method == HTTP_OPTIONS)
        route_find(ROUTE_GET, path, &id, &id_length, &known);
    if (call->route == NULL && known)
        return error_set(err, -EINVAL, ERROR_METHOD,
                         "this path does not take %s; /v1/openapi.json lists what it takes",
                         http_method_name(call->request->method));
    if (call->route == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no such path; /v1/openapi.json lists them");
    if (strstr(call->route->path, "{id}") == NULL)
        return 0;
    const char *rule;
    ssize_t n = http_percent_decode(id, id_length, call->id, sizeof call->id);
    if (n == -ENOBUFS)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "no id or name is longer than %zu bytes",
                         sizeof call->id - 1);
    if (n <= 0 || !text_format_ok(FORMAT_any, call->id, &rule))
        return error_set(err, -EINVAL, ERROR_INVALID, "the id or name in the path is not well-formed");
    return 0;
}

static void make_fingerprint(struct api_call *call)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    const struct http_request *request = call->request;
    /* Of the query only what changes the meaning: a repeat may wait for longer. */
    const char *force = strstr(request->query, "force=true") != NULL ? "force" : "";
    const char *parts[] = {http_method_name(request->method), request->path, call->caller.identity, force};
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    ASSERT(md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1);
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
        ASSERT(EVP_DigestUpdate(md, parts[i], strlen(parts[i]) + 1) == 1);
    ASSERT(EVP_DigestUpdate(md, request->body, request->body_size) == 1);
    ASSERT(EVP_DigestFinal_ex(md, digest, NULL) == 1);
    EVP_MD_CTX_free(md);
    for (size_t i = 0; i < 32; i++)
        snprintf(call->fingerprint + 2 * i, 3, "%02x", digest[i]);
}

static int read_key(struct api_call *call, struct error *err)
{
    const char *key = http_request_header(call->request, "Idempotency-Key"), *rule;
    if (key == NULL || call->route->method == ROUTE_GET || call->route->id == ROUTE_ID_node_report)
        return 0;
    if (key[0] == '\0' || strlen(key) > API_KEY_BYTES_MAX || !text_format_ok(FORMAT_any, key, &rule))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "Idempotency-Key", "it must have 1 to %u bytes of UTF-8",
                               API_KEY_BYTES_MAX);
    memcpy(call->key, key, strlen(key) + 1);
    make_fingerprint(call);
    return 0;
}

/* "<revision>" in quotes, or * for any. */
static int read_if_match(struct api_call *call, struct error *err)
{
    const char *text = http_request_header(call->request, "If-Match");
    if (text == NULL || call->route->method == ROUTE_GET || strcmp(text, "*") == 0)
        return 0;
    size_t length = strlen(text);
    uint64_t revision = 0;
    bool good = length >= 3 && length <= 21 && text[0] == '"' && text[length - 1] == '"';
    for (size_t i = 1; good && i < length - 1; i++) {
        good = text[i] >= '0' && text[i] <= '9' && revision <= OBJECT_INTEGER_MAX / 10;
        revision = revision * 10 + (uint64_t)(text[i] - '0');
    }
    if (!good || revision == 0 || revision > OBJECT_INTEGER_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "If-Match",
                               "it must be one ETag as this API gives them, such as \"42\", or *");
    call->if_match = revision;
    return 0;
}

static bool content_type_ok(const char *type)
{
    static const char *const good[] = {"application/json", "application/merge-patch+json"};
    if (type == NULL)
        return true;
    size_t length = strcspn(type, "; \t");
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        if (length == strlen(good[i]) && strncasecmp(type, good[i], length) == 0)
            return true;
    return false;
}

static int read_body(struct api_call *call, struct error *err)
{
    const struct http_request *request = call->request;
    const struct object_desc *desc = call->route->body;
    bool empty = request->body_size == 0;
    if (call->route->id == ROUTE_ID_image_upload)
        return 0; /* bytes, for a host to look at */
    if (request->body_size > API_JSON_BYTES_MAX)
        return error_set(err, -E2BIG, ERROR_TOO_LARGE, "the body has %zu bytes; %u are the most", request->body_size, API_JSON_BYTES_MAX);
    if (desc == NULL || desc->name == NULL) {
        if (empty || (request->body_size == 2 && memcmp(request->body, "{}", 2) == 0))
            return 0;
        return error_set_field(err, -EINVAL, ERROR_INVALID, "", "%s %s takes no body",
                               route_method_name(call->route->method), call->route->path);
    }
    if (!empty && !content_type_ok(http_request_header(request, "Content-Type")))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "Content-Type", "it must be application/json");
    if (empty && (call->route->flags & ROUTE_BARE))
        return 0;
    if (empty)
        return error_set(err, -EBADMSG, ERROR_MALFORMED, "the body is missing: it must be a %s as JSON", desc->name);
    call->body = xcalloc(1, desc->size);
    int r = object_decode(desc, (const char *)request->body, request->body_size,
                          call->route->method == ROUTE_PATCH ? OBJECT_PATCH : OBJECT_CREATE, call->body, err);
    if (r == 0 && call->route->id == ROUTE_ID_node_report)
        call->poll_ms = (uint32_t)((const struct node_report *)call->body)->wait_ms;
    return r;
}

/* A certificate outlives the membership of its controller, and a controller is believed about whom it asks for: only
 * one that is in the table may. This table may lag behind one that has just joined, so that only a leader is sure. */
static int check_peer(const struct api_call *call, struct error *err)
{
    struct service *service = call->service;
    const char *id = strrchr(call->request->peer, '/');
    bool known = false;
    if (call->caller.role != ROUTE_CONTROLLER && call->caller.hops == 0)
        return 0; /* it is not a controller that speaks here */
    service_lock_state(service);
    known = !state_initialized(service->state);
    for (size_t i = 0; i < state_count(service->state, object_kind_CONTROLLER) && !known; i++)
        known = id != NULL && strtoull(id + 1, NULL, 10) ==
                                  state_at(service->state, object_kind_CONTROLLER, i)->controller->raft_id;
    service_unlock_state(service);
    if (known)
        return 0;
    return service->ready ? error_set(err, -EACCES, ERROR_FORBIDDEN, "your certificate is of a controller that was removed")
                          : error_set(err, -EAGAIN, ERROR_NO_LEADER, "your controller is not known here; ask the leader");
}

static int accept_call(struct api_call *call, struct error *err)
{
    struct service *service = call->service;
    int r;
    if ((r = find_route(call, err)) < 0 ||
        (r = api_caller_find(call->request, service->dir.identity.cluster_id, &call->caller, err)) < 0 ||
        (r = check_peer(call, err)) < 0 || (r = api_caller_authorise(&call->caller, call->route, err)) < 0 ||
        (r = api_query_parse(call->request, call->route, &call->query, err)) < 0 || (r = read_key(call, err)) < 0 ||
        (r = read_if_match(call, err)) < 0)
        return r;
    return read_body(call, err);
}

static struct api_call *make_call(struct http_request *request, struct service *service)
{
    struct api_call *call = NEW(struct api_call);
    call->service = service;
    call->request = request;
    call->started_us = environment_monotonic_us();
    snprintf(call->caller.text, sizeof call->caller.text, "anonymous");
    list_init(&call->link);
    list_init(&call->same_key);
    return call;
}

void api_call_start(struct http_request *request, void *arg)
{
    struct api_call *call = make_call(request, arg);
    struct error err;
    if (accept_call(call, &err) < 0)
        api_call_error(call, &err);
    else
        api_call_run(call);
}

void api_call_again(struct http_request *request, struct service *service, const struct error *why)
{
    struct api_call *call = make_call(request, service);
    struct error err;
    call->leader_deadline_ms = (uint64_t)(uintptr_t)request->data;
    uint64_t now = environment_monotonic_ms();
    if (accept_call(call, &err) < 0)
        api_call_error(call, &err);
    else if (service->stopping || now >= call->leader_deadline_ms ||
             (why->kind == ERROR_UNKNOWN_OUTCOME && call->route->method != ROUTE_GET && call->key[0] == '\0') ||
             api_call_wait(call, &service->api.leader_waiters, API_TICK_MS, api_call_run) < 0)
        api_call_error(call, why);
    else
        service->api.metrics.retries++;
}
