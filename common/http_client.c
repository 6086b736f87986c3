/* HTTP client: libcurl's multi_socket interface driven by a uv loop; see http_client.h.
 *
 * Happy path: start puts an easy handle into the multi; libcurl asks for its sockets to be watched (one uv_poll each,
 * allocated, freed when closed) and for one timer; after every action the finished transfers are taken out and told.
 *
 * Failures: cancelling, resuming, deadlines and the closing of the client never act inside a libcurl callback: they
 * leave a mark and the kick timer, and kick_cb does the work from the loop. Shutdown: every call ends with
 * -ECANCELED, the multi is cleaned up while its callbacks are still valid, then the handles close. */
#include "common/http_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/list.h"

#define HOST_CONNECTIONS_MAX 32L
#define IDLE_CONNECTIONS_MAX 64L
#define CONNECT_TIMEOUT_MS 5000L
#define PROBLEM_BYTES_MAX (64 * 1024)

struct http_client {
    uv_loop_t *loop;
    CURLM *multi;
    uv_timer_t timer, kick;
    struct list calls;
    struct list contexts; /* struct client_context: connections of libcurl point into them */
    unsigned handles;     /* not closed yet: timers, polls, calls' timers */
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct client_context {
    struct list link;
    struct tls_context *tls;
};

struct client_socket {
    uv_poll_t poll;
    struct http_client *client;
    curl_socket_t fd;
};

struct http_call {
    struct list link;
    struct http_client *client;
    uv_timer_t deadline;
    CURL *easy;
    struct curl_slist *headers;
    struct http_call_options options; /* pointers in it are not ours, but for `body`, `tls` and `peer_prefix` */
    char *peer_prefix;
    void *body;
    struct bytes_writer answer;
    int status; /* of the answer's head; 0 before */
    int error;  /* ours: why the transfer was broken off */
    bool ended; /* error holds, to be told by kick_cb */
    bool resume;
    char words[CURL_ERROR_SIZE];
};

static void kick_cb(uv_timer_t *timer);

static void kick(struct http_client *client)
{
    uv_timer_start(&client->kick, kick_cb, 0, 0);
}

/* Break off from the loop, later. */
static void call_end(struct http_call *call, int error)
{
    if (call->ended)
        return;
    call->ended = true;
    call->error = error;
    kick(call->client);
}

/* --- ends --- */

static void maybe_closed(struct http_client *client)
{
    if (--client->handles > 0)
        return;
    LIST_FOREACH_SAFE(link, &client->contexts)
    {
        struct client_context *c = LIST_ENTRY(link, struct client_context, link);
        tls_context_unref(c->tls);
        free(c);
    }
    void (*closed)(void *arg) = client->closed;
    void *arg = client->closed_arg;
    free(client);
    curl_global_cleanup();
    if (closed != NULL)
        closed(arg);
}

static int errno_of(const struct http_call *call, CURLcode code)
{
    long os_errno = 0;
    if (call->error != 0)
        return call->error;
    curl_easy_getinfo(call->easy, CURLINFO_OS_ERRNO, &os_errno);
    switch (code) {
    case CURLE_OK:
        return 0;
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_COULDNT_CONNECT:
        /* ECONNREFUSED is a statement about the other side, on which leases rest: only where the kernel made it. */
        return os_errno > 0 ? -(int)os_errno : -EHOSTUNREACH;
    case CURLE_COULDNT_RESOLVE_HOST:
        return -EHOSTUNREACH;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
        return -EACCES;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return -EINVAL;
    case CURLE_TOO_MANY_REDIRECTS:
        return -ELOOP;
    case CURLE_OUT_OF_MEMORY:
        return -ENOMEM;
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
        return -ECONNRESET;
    default:
        return -EPROTO;
    }
}

static enum error_kind kind_of(int error)
{
    switch (error) {
    case -ECANCELED:
        return ERROR_CANCELLED;
    case -ETIMEDOUT:
        return ERROR_TIMEOUT;
    case -EMSGSIZE:
        return ERROR_TOO_LARGE;
    case -EINVAL:
        return ERROR_INVALID;
    default:
        return ERROR_UNREACHABLE;
    }
}

static void describe_failure(const struct http_call *call, int error, CURLcode code, struct error *problem)
{
    const char *url = "", *words = call->words[0] != '\0' ? call->words : curl_easy_strerror(code);
    curl_easy_getinfo(call->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (call->ended || code == CURLE_OK || code == CURLE_WRITE_ERROR)
        words = error == -ETIMEDOUT  ? "no answer in time"
                : error == -EMSGSIZE ? "the answer is larger than expected"
                                     : strerror(-error);
    if (code == CURLE_PEER_FAILED_VERIFICATION && call->peer_prefix != NULL && strstr(words, "application") != NULL) {
        error_set(problem, error, kind_of(error), "%.256s: its certificate is of another identity than %.128s", url,
                  call->peer_prefix);
        return;
    }
    error_set(problem, error, kind_of(error), "%.256s: %s", url, words);
}

/* The cluster's API names it, and points to it; a VMM only points ("#/field"). */
static const char *problem_field_of(const json_t *doc)
{
    const char *field = json_string_value(json_object_get(doc, "field"));
    const char *pointer = json_string_value(json_object_get(json_array_get(json_object_get(doc, "errors"), 0), "pointer"));
    return field != NULL ? field : pointer != NULL ? pointer + (pointer[0] == '#') : "";
}

/* problem+json of the answer, so that the caller sees the server's code, field and words. */
static void read_problem(const struct http_answer *answer, struct error *problem)
{
    if (answer->status < 400 || answer->body_size > PROBLEM_BYTES_MAX ||
        strncmp(answer->content_type, "application/problem+json", 24) != 0)
        return;
    json_t *doc = json_loadb((const char *)answer->body, answer->body_size, 0, NULL);
    const char *code = json_string_value(json_object_get(doc, "code"));
    const char *detail = json_string_value(json_object_get(doc, "detail"));
    if (code != NULL)
        error_set_field(problem, -EBADE, error_kind_from_code(code), problem_field_of(doc), "%s",
                        detail != NULL ? detail : code);
    json_decref(doc);
}

static void deadline_closed_cb(uv_handle_t *handle)
{
    struct http_call *call = handle->data;
    struct http_client *client = call->client;
    free(call->peer_prefix);
    free(call->body);
    bytes_writer_finish(&call->answer);
    curl_slist_free_all(call->headers);
    free(call);
    maybe_closed(client);
}

const char *http_answer_header(const struct http_answer *answer, const char *name)
{
    struct curl_header *header;
    if (curl_easy_header(answer->call->easy, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
        return NULL;
    return header->value;
}

static void call_finish(struct http_call *call, CURLcode code)
{
    struct http_answer answer = {.status = call->status, .call = call};
    const char *content_type = NULL;
    curl_multi_remove_handle(call->client->multi, call->easy);
    list_remove(&call->link);
    bytes_put(&call->answer, "", 1);
    answer.body = call->answer.data;
    answer.body_size = call->answer.size - 1;
    answer.error = errno_of(call, code);
    curl_easy_getinfo(call->easy, CURLINFO_CONTENT_TYPE, &content_type);
    answer.content_type = content_type != NULL ? content_type : "";
    if (answer.error != 0)
        describe_failure(call, answer.error, code, &answer.problem);
    else
        read_problem(&answer, &answer.problem);
    if (call->options.done != NULL)
        call->options.done(&answer, call->options.arg);
    curl_easy_cleanup(call->easy);
    call->easy = NULL;
    uv_close((uv_handle_t *)&call->deadline, deadline_closed_cb);
}

/* --- libcurl and the loop --- */

static void take_finished(struct http_client *client)
{
    CURLMsg *message;
    int left;
    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        struct http_call *call = NULL;
        CURLcode code = message->data.result;
        if (message->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &call);
        call_finish(call, code);
    }
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct client_socket *s = CONTAINER_OF(poll, struct client_socket, poll);
    struct http_client *client = s->client;
    int running, flags = status < 0 ? CURL_CSELECT_ERR : 0;
    flags |= (events & UV_READABLE) != 0 ? CURL_CSELECT_IN : 0;
    flags |= (events & UV_WRITABLE) != 0 ? CURL_CSELECT_OUT : 0;
    curl_multi_socket_action(client->multi, s->fd, flags, &running);
    take_finished(client);
}

static void poll_closed_cb(uv_handle_t *handle)
{
    struct client_socket *s = CONTAINER_OF((uv_poll_t *)handle, struct client_socket, poll);
    struct http_client *client = s->client;
    free(s);
    maybe_closed(client);
}

static struct client_socket *socket_create(struct http_client *client, curl_socket_t fd)
{
    struct client_socket *s = NEW(struct client_socket);
    s->client = client;
    s->fd = fd;
    if (uv_poll_init_socket(client->loop, &s->poll, fd) < 0) {
        free(s);
        return NULL;
    }
    client->handles++;
    curl_multi_assign(client->multi, fd, s);
    return s;
}

static int socket_cb(CURL *easy, curl_socket_t fd, int what, void *client_arg, void *socket_arg)
{
    struct http_client *client = client_arg;
    struct client_socket *s = socket_arg;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (s == NULL)
            return 0;
        /* Stopped before libcurl closes the descriptor, whose number may be reused in this very tick. */
        uv_poll_stop(&s->poll);
        uv_close((uv_handle_t *)&s->poll, poll_closed_cb);
        curl_multi_assign(client->multi, fd, NULL);
        return 0;
    }
    if (s == NULL)
        s = socket_create(client, fd);
    if (s == NULL)
        return -1;
    int events = ((what & CURL_POLL_IN) != 0 ? UV_READABLE : 0) | ((what & CURL_POLL_OUT) != 0 ? UV_WRITABLE : 0);
    return uv_poll_start(&s->poll, events, poll_cb) < 0 ? -1 : 0;
}

static void timer_cb(uv_timer_t *timer)
{
    struct http_client *client = timer->data;
    int running;
    curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    take_finished(client);
}

/* libcurl must not be called from here; 0 ms therefore becomes the loop's next turn. */
static int timeout_cb(CURLM *multi, long timeout_ms, void *arg)
{
    struct http_client *client = arg;
    (void)multi;
    if (uv_is_closing((uv_handle_t *)&client->timer))
        return 0;
    if (timeout_ms < 0)
        uv_timer_stop(&client->timer);
    else
        uv_timer_start(&client->timer, timer_cb, (uint64_t)timeout_ms, 0);
    return 0;
}

static void handle_closed_cb(uv_handle_t *handle)
{
    maybe_closed(handle->data);
}

/* Everything that may not be done inside a libcurl callback. */
static void kick_cb(uv_timer_t *timer)
{
    struct http_client *client = timer->data;
    /* `done` may cancel or start others: begin anew after each. */
    bool again = true;
    while (again) {
        again = false;
        LIST_FOREACH(link, &client->calls)
        {
            struct http_call *call = LIST_ENTRY(link, struct http_call, link);
            if (call->ended) {
                call_finish(call, CURLE_OK);
                again = true;
                break;
            }
            if (call->resume) {
                call->resume = false;
                curl_easy_pause(call->easy, CURLPAUSE_CONT);
            }
        }
    }
    take_finished(client);
    if (!client->closing || !list_empty(&client->calls) || uv_is_closing((uv_handle_t *)timer))
        return;
    curl_multi_cleanup(client->multi);
    uv_close((uv_handle_t *)&client->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&client->kick, handle_closed_cb);
}

/* --- the transfer's callbacks --- */

static void deadline_cb(uv_timer_t *timer)
{
    call_end(timer->data, -ETIMEDOUT);
}

static bool is_streaming(const struct http_call *call)
{
    return call->options.on_data != NULL && call->status >= 200 && call->status <= 299;
}

static void restart_idle(struct http_call *call)
{
    if (call->options.idle_ms > 0)
        uv_timer_start(&call->deadline, deadline_cb, call->options.idle_ms, 0);
}

static size_t header_cb(char *data, size_t size, size_t count, void *arg)
{
    struct http_call *call = arg;
    long status = 0;
    if (size * count != 2 || data[0] != '\r')
        return size * count;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
    bool after_redirect = call->options.redirects_max > 0 && call->status >= 300 && call->status <= 399;
    if (status < 200 || (call->status != 0 && !after_redirect))
        return size * count; /* 100 Continue, or the end of trailers */
    call->status = (int)status;
    if (call->options.redirects_max > 0 && status >= 300 && status <= 399 && status != 304)
        return size * count; /* the answer that counts is still to come, or the call fails */
    if (is_streaming(call)) {
        uv_timer_stop(&call->deadline);
        restart_idle(call);
    }
    if (call->options.on_head != NULL && !call->ended)
        call->options.on_head(call->status, call->options.arg);
    if (call->options.on_headers != NULL && !call->ended) {
        const struct http_answer head = {.status = call->status, .call = call};
        int rc = call->options.on_headers(&head, call->options.arg);
        call->error = rc < 0 ? rc : call->error;
        return rc < 0 ? 0 : size * count;
    }
    return size * count;
}

static size_t write_cb(char *data, size_t size, size_t count, void *arg)
{
    struct http_call *call = arg;
    size_t total = size * count;
    if (call->ended)
        return 0;
    if (is_streaming(call)) {
        restart_idle(call);
        int rc = call->options.on_data(data, total, call->options.arg);
        if (rc == HTTP_CLIENT_PAUSE)
            return CURL_WRITEFUNC_PAUSE;
        if (rc < 0)
            call->error = rc;
        return rc < 0 ? 0 : total;
    }
    if (total > call->options.body_bytes_max - call->answer.size) {
        call->error = -EMSGSIZE;
        return 0;
    }
    bytes_put(&call->answer, data, total);
    return total;
}

static int progress_cb(void *arg, curl_off_t total, curl_off_t done, curl_off_t up_total, curl_off_t up_done)
{
    struct http_call *call = arg;
    (void)up_total, (void)up_done;
    if (done > 0 && !call->ended)
        call->options.on_progress((uint64_t)done, (uint64_t)total, call->options.arg);
    return 0;
}

static CURLcode ssl_ctx_cb(CURL *easy, void *ssl_ctx, void *arg)
{
    struct http_call *call = arg;
    (void)easy;
    return tls_context_apply(call->options.tls, ssl_ctx, call->peer_prefix) < 0 ? CURLE_SSL_CERTPROBLEM : CURLE_OK;
}

/* --- start --- */

static void keep_context(struct http_client *client, struct tls_context *tls)
{
    LIST_FOREACH(link, &client->contexts)
    if (LIST_ENTRY(link, struct client_context, link)->tls == tls)
        return;
    struct client_context *c = NEW(struct client_context);
    c->tls = tls_context_ref(tls);
    list_append(&client->contexts, &c->link);
}

static void set_tls(struct http_call *call)
{
    struct tls_context *tls = call->options.tls;
    if (tls == NULL)
        return;
    /* libcurl shares connections between calls whose settings are alike, and it does not know ours: this path is
     * read by nobody and makes the settings differ where context, generation or expected peer differ. */
    char *key = xasprintf("/nonexistent/%p.%u/%s", (void *)tls, tls_context_generation(tls),
                          call->peer_prefix != NULL ? call->peer_prefix : "");
    keep_context(call->client, tls);
    curl_easy_setopt(call->easy, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(call->easy, CURLOPT_CAPATH, key);
    curl_easy_setopt(call->easy, CURLOPT_SSL_CTX_FUNCTION, ssl_ctx_cb);
    curl_easy_setopt(call->easy, CURLOPT_SSL_CTX_DATA, call);
    curl_easy_setopt(call->easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_3);
    curl_easy_setopt(call->easy, CURLOPT_SSL_VERIFYHOST, call->peer_prefix != NULL ? 0L : 2L);
    free(key);
}

static void add_header(struct http_call *call, const char *line)
{
    struct curl_slist *list = curl_slist_append(call->headers, line);
    ASSERT(list != NULL);
    call->headers = list;
}

static void set_body(struct http_call *call, const char *method)
{
    const struct http_call_options *o = &call->options;
    bool takes_body = strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0;
    if (strcmp(method, "HEAD") == 0)
        curl_easy_setopt(call->easy, CURLOPT_NOBODY, 1L);
    else if (strcmp(method, "GET") != 0)
        curl_easy_setopt(call->easy, CURLOPT_CUSTOMREQUEST, method);
    if (!takes_body || (o->body_size == 0 && strcmp(method, "DELETE") == 0))
        return;
    call->body = xcalloc(1, o->body_size + 1);
    if (o->body_size > 0)
        memcpy(call->body, o->body, o->body_size);
    curl_easy_setopt(call->easy, CURLOPT_POSTFIELDS, call->body);
    curl_easy_setopt(call->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)o->body_size);
    char *type = xasprintf("Content-Type: %s", o->content_type != NULL ? o->content_type : "application/json");
    add_header(call, type);
    add_header(call, "Expect:");
    free(type);
}

static void set_transfer(struct http_call *call)
{
    CURL *easy = call->easy;
    curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, call->words);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    if (call->options.redirects_max > 0) {
        bool secure = strncmp(call->options.url, "https:", 6) == 0;
        curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
        curl_easy_setopt(easy, CURLOPT_MAXREDIRS, (long)call->options.redirects_max);
        curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
    } else {
        curl_easy_setopt(easy, CURLOPT_PROXY, ""); /* our peers are not behind the user's web proxy */
    }
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, header_cb);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, call);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, write_cb);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
    if (call->options.on_progress != NULL) {
        curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, progress_cb);
        curl_easy_setopt(easy, CURLOPT_XFERINFODATA, call);
    }
    if (call->options.unix_socket != NULL)
        curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, call->options.unix_socket);
}

static struct http_call *call_create(struct http_client *client, const struct http_call_options *options, CURL *easy)
{
    struct http_call *call = NEW(struct http_call);
    call->client = client;
    call->options = *options;
    call->easy = easy;
    call->peer_prefix = options->peer_prefix != NULL ? xstrdup(options->peer_prefix) : NULL;
    if (call->options.body_bytes_max == 0)
        call->options.body_bytes_max = HTTP_CLIENT_BODY_BYTES_MAX;
    set_transfer(call);
    set_body(call, options->method != NULL ? options->method : "GET");
    for (size_t i = 0; options->headers != NULL && options->headers[i] != NULL; i++)
        add_header(call, options->headers[i]);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call->headers);
    set_tls(call);
    uv_timer_init(client->loop, &call->deadline);
    call->deadline.data = call;
    client->handles++;
    list_append(&client->calls, &call->link);
    return call;
}

static bool is_plain_url(const char *url)
{
    for (const char *p = url; *p != '\0'; p++)
        if (*p <= 0x20 || *p >= 0x7f)
            return false;
    return strncmp(url, "http://", 7) == 0 || strncmp(url, "https://", 8) == 0;
}

int http_client_start(struct http_client *client, const struct http_call_options *options,
                      struct http_call **ret_call, struct error *err)
{
    unsigned deadline_ms = options->deadline_ms > 0 ? options->deadline_ms : HTTP_CLIENT_DEADLINE_MS;
    if (client->closing)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the client is closing");
    if (!is_plain_url(options->url))
        return error_set(err, -EINVAL, ERROR_INVALID, "the URL must begin with http:// or https:// and be escaped");
    CURL *easy = curl_easy_init();
    if (easy == NULL)
        return error_errno(err, -ENOMEM, "cannot start a transfer");
    if (curl_easy_setopt(easy, CURLOPT_URL, options->url) != CURLE_OK) {
        curl_easy_cleanup(easy);
        return error_set(err, -EINVAL, ERROR_INVALID, "the URL cannot be used");
    }
    struct http_call *call = call_create(client, options, easy);
    uv_timer_start(&call->deadline, deadline_cb, deadline_ms, 0);
    if (curl_multi_add_handle(client->multi, easy) != CURLM_OK)
        call_end(call, -ENOMEM);
    if (ret_call != NULL)
        *ret_call = call;
    return 0;
}

void http_call_cancel(struct http_call *call)
{
    call_end(call, -ECANCELED);
}

void http_call_resume(struct http_call *call)
{
    call->resume = true;
    kick(call->client);
}

int http_client_create(uv_loop_t *loop, struct http_client **ret_client, struct error *err)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return error_errno(err, -ENOMEM, "cannot start libcurl");
    CURLM *multi = curl_multi_init();
    if (multi == NULL) {
        curl_global_cleanup();
        return error_errno(err, -ENOMEM, "cannot start libcurl");
    }
    struct http_client *client = NEW(struct http_client);
    client->loop = loop;
    client->multi = multi;
    list_init(&client->calls);
    list_init(&client->contexts);
    uv_timer_init(loop, &client->timer);
    uv_timer_init(loop, &client->kick);
    client->timer.data = client->kick.data = client;
    client->handles = 2;
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_cb);
    curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, client);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timeout_cb);
    curl_multi_setopt(multi, CURLMOPT_TIMERDATA, client);
    curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, HOST_CONNECTIONS_MAX);
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, IDLE_CONNECTIONS_MAX);
    *ret_client = client;
    return 0;
}

void http_client_close(struct http_client *client, void (*closed)(void *arg), void *arg)
{
    ASSERT(!client->closing);
    client->closing = true;
    client->closed = closed;
    client->closed_arg = arg;
    LIST_FOREACH(link, &client->calls)
    call_end(LIST_ENTRY(link, struct http_call, link), -ECANCELED);
    kick(client);
}

/* --- blocking --- */

struct perform {
    struct http_client *client;
    const struct http_call_options *options;
    int status, error;
    char *body;
    size_t body_size;
    struct error problem;
};

static void perform_done(const struct http_answer *answer, void *arg)
{
    struct perform *p = arg;
    p->status = answer->status;
    p->error = answer->error;
    p->problem = answer->problem;
    p->body_size = answer->body_size;
    p->body = xcalloc(1, answer->body_size + 1);
    memcpy(p->body, answer->body, answer->body_size);
    if (p->options->done != NULL)
        p->options->done(answer, p->options->arg);
    http_client_close(p->client, NULL, NULL);
}

static int perform_head_data(const void *data, size_t size, void *arg)
{
    struct perform *p = arg;
    return p->options->on_data(data, size, p->options->arg);
}

static void perform_head(int status, void *arg)
{
    struct perform *p = arg;
    p->options->on_head(status, p->options->arg);
}

static int perform_headers(const struct http_answer *head, void *arg)
{
    struct perform *p = arg;
    return p->options->on_headers(head, p->options->arg);
}

static void perform_progress(uint64_t done, uint64_t total, void *arg)
{
    struct perform *p = arg;
    p->options->on_progress(done, total, p->options->arg);
}

static int perform_start(struct perform *p, struct error *err)
{
    struct http_call_options options = *p->options;
    options.done = perform_done;
    options.arg = p;
    if (options.on_data != NULL)
        options.on_data = perform_head_data;
    if (options.on_head != NULL)
        options.on_head = perform_head;
    if (options.on_headers != NULL)
        options.on_headers = perform_headers;
    if (options.on_progress != NULL)
        options.on_progress = perform_progress;
    int rc = http_client_start(p->client, &options, NULL, err);
    if (rc < 0)
        http_client_close(p->client, NULL, NULL);
    return rc;
}

int http_client_perform(const struct http_call_options *options, int *ret_status, char **ret_body,
                        size_t *ret_body_size, struct error *err)
{
    struct perform p = {.options = options};
    uv_loop_t loop;
    int rc = uv_loop_init(&loop);
    if (rc < 0)
        return error_errno(err, rc, "cannot start a loop");
    rc = http_client_create(&loop, &p.client, err);
    if (rc == 0)
        rc = perform_start(&p, err);
    uv_run(&loop, UV_RUN_DEFAULT);
    ASSERT(uv_loop_close(&loop) == 0);
    if (rc < 0)
        return rc;
    if (err != NULL && p.problem.code != 0)
        *err = p.problem;
    if (p.error == 0 && ret_status != NULL)
        *ret_status = p.status;
    if (p.error == 0 && ret_body_size != NULL)
        *ret_body_size = p.body_size;
    if (p.error == 0 && ret_body != NULL)
        *ret_body = TAKE_PTR(p.body);
    free(p.body);
    return p.error;
}
