/* Connections of the control socket.
 *
 * Happy path: bytes are gathered until head and body are whole, the body is decoded by the route's row, its function
 * answers into one buffer, which goes out in one write; left-over bytes are the next request. While a function keeps
 * its call (CONTROL_LATER) the connection is not read. Failure modes: anything malformed is answered with a problem
 * and the connection closed once the client has sent what it wanted to (else the answer would be lost with the unread
 * bytes); an answer that the socket does not take at once closes it too. */
#include "compute/vmm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/unix_socket.h"

struct control {
    struct machine *machine;
    struct unix_listener listener;
    struct list connections;
    unsigned connection_count;
    uint64_t requests;
};

struct control_connection {
    struct control *control;
    struct list link;
    int fd;
    struct io_handler *handler;
    size_t size, scanned;
    size_t discarded;          /* while `refused` */
    struct control_call *call; /* kept by a route's function, or NULL */
    bool keep_alive;           /* after that call */
    bool refused; /* answered and shut for writing; what still comes is thrown away until the client closes */
    char buffer[CONTROL_REQUEST_BYTES_MAX];
};

/* A whole request; texts point into the connection's buffer. */
struct request {
    struct http_head head;
    const char *body;
    size_t body_size;
};

enum outcome {
    KEEP,
    CLOSE,
    REFUSED,
    TAKEN,   /* the descriptor belongs to the console now */
    WAITING, /* for the end of `call` */
};

static enum outcome requests_take(struct control_connection *c);

/* ---- answers ---- */

/* True when all of it was taken. */
static bool answer_send(int fd, int status, const char *type, const struct bytes_writer *body, bool close_after)
{
    struct bytes_writer out = {0};
    bytes_put_format(&out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n", status,
                     http_reason(status), type, body->size, close_after ? "Connection: close\r\n" : "");
    bytes_put(&out, body->data, body->size);
    ssize_t n = send(fd, out.data, out.size, MSG_NOSIGNAL | MSG_DONTWAIT);
    bool whole = n == (ssize_t)out.size;
    bytes_writer_finish(&out);
    return whole;
}

static bool problem_send(int fd, const struct error *e, bool close_after)
{
    const struct error_kind_info *kind = error_kind_info(e->kind);
    struct problem problem = {.type = NULL};
    struct bytes_writer body = {0};
    OBJECT_TEXT(problem, &problem, type, "about:blank");
    OBJECT_TEXT(problem, &problem, title, kind->title);
    OBJECT_SET(problem, &problem, status, (uint32_t)kind->http_status);
    OBJECT_TEXT(problem, &problem, code, kind->code);
    OBJECT_TEXT(problem, &problem, detail, e->text);
    if (e->field[0]) {
        struct problem_field *field = OBJECT_ADD(problem, &problem, errors);
        CLEANUP_FREE char *pointer = xasprintf("#%s", e->field); /* as in the cluster's API: a URI fragment */
        OBJECT_TEXT(problem_field, field, pointer, pointer);
        OBJECT_TEXT(problem_field, field, detail, e->text);
    }
    OBJECT_ENCODE(problem, &problem, &body);
    OBJECT_CLEAR(problem, &problem);
    bool whole = answer_send(fd, kind->http_status, "application/problem+json", &body, close_after);
    bytes_writer_finish(&body);
    return whole;
}

/* ---- calls ---- */

static void call_destroy(struct control_call *call)
{
    if (call->body) {
        object_clear(call->route->body, call->body);
        free(call->body);
    }
    bytes_writer_finish(&call->answer);
    free(call);
}

/* Send what @call has come to. True when the connection may go on. */
static bool call_answer(struct control_connection *c, struct control_call *call, int code, const struct error *err)
{
    bool sent = code < 0 ? problem_send(c->fd, err, !c->keep_alive)
                         : answer_send(c->fd, call->status, "application/json", &call->answer, !c->keep_alive);
    return sent && c->keep_alive;
}

static int call_decode(struct control_call *call, const struct request *r, struct error *err)
{
    const struct object_desc *desc = call->route->body;
    const char *query = r->head.query;
    call->force = strcmp(query, "force=true") == 0;
    if (query[0] && !call->force && strcmp(query, "force=false") != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "\"?%.100s\" is not known here; \"?force=true\" is", query);
    if (call->force && !(call->route->flags & ROUTE_FORCE))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s takes no \"force\"", call->route->path);
    if (!desc->name)
        return 0;
    enum object_mode mode = call->route->method == ROUTE_PATCH ? OBJECT_PATCH : OBJECT_CREATE;
    call->body = xcalloc(1, desc->size);
    return object_decode(desc, r->body, r->body_size, mode, call->body, err);
}

static const struct route_desc *route_of(const struct request *r, char id[CONTROL_ID_SIZE], struct error *err)
{
    static const int methods[HTTP_METHOD_COUNT] = {
        [HTTP_GET] = ROUTE_GET + 1,     [HTTP_POST] = ROUTE_POST + 1,     [HTTP_PUT] = ROUTE_PUT + 1,
        [HTTP_PATCH] = ROUTE_PATCH + 1, [HTTP_DELETE] = ROUTE_DELETE + 1,
    };
    const char *segment = NULL;
    size_t length = 0;
    bool known = false;
    int method = methods[r->head.method];
    const struct route_desc *route =
        route_table_find(&vmm_route_table, method ? (enum route_method)(method - 1) : ROUTE_GET, r->head.path,
                         &segment, &length, &known);
    if (route && method && length < CONTROL_ID_SIZE) {
        if (length)
            memcpy(id, segment, length);
        return route;
    }
    if (known && length < CONTROL_ID_SIZE)
        error_set(err, -EINVAL, ERROR_METHOD, "%.100s does not take %s; GET /v1/openapi.json shows what there is",
                  r->head.path, http_method_name(r->head.method));
    else
        error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no %.100s; GET /v1/openapi.json shows what there is",
                  r->head.path);
    return NULL;
}

static enum outcome console_get(struct control_connection *c, struct error *err)
{
    static const char head[] =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: drover-console\r\n\r\n";
    struct console *console = c->control->machine->console;
    if (console_reader_count(console) >= CONSOLE_READERS_MAX) {
        error_set(err, -EUSERS, ERROR_OVERLOAD, "the console has %u readers already", CONSOLE_READERS_MAX);
        problem_send(c->fd, err, true);
        return CLOSE;
    }
    if (send(c->fd, head, sizeof(head) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof(head) - 1)
        return CLOSE;
    io_loop_remove(console->loop, c->handler);
    c->handler = NULL;
    int fd = c->fd;
    c->fd = -1;
    console_follow(console, fd, err);
    return TAKEN;
}

static enum outcome request_answer(struct control_connection *c, const struct request *r)
{
    struct error err = {0};
    struct control_call *call = NEW(struct control_call);
    c->keep_alive = r->head.keep_alive;
    call->machine = c->control->machine;
    call->status = 200;
    call->route = route_of(r, call->id, &err);
    int code = call->route ? call_decode(call, r, &err) : -ENOENT;
    if (code == 0 && call->route->id == VMM_ROUTE_vm_console) {
        call_destroy(call);
        return console_get(c, &err);
    }
    call->connection = c;
    if (code == 0)
        code = control_route_function(call->route)(call, &err);
    if (code == CONTROL_LATER) {
        c->call = call;
        io_loop_change(c->control->machine->control, c->handler, 0);
        return WAITING;
    }
    bool go_on = call_answer(c, call, code, &err);
    call_destroy(call);
    return go_on ? KEEP : CLOSE;
}

/* ---- connections ---- */

static void connection_destroy(struct control_connection *c)
{
    if (c->call)
        c->call->connection = NULL;
    io_loop_remove(c->control->machine->control, c->handler);
    close_fd(&c->fd);
    list_remove(&c->link);
    c->control->connection_count--;
    free(c);
}

static enum outcome refuse(struct control_connection *c, enum error_kind kind, const char *text)
{
    struct error err = {0};
    error_set(&err, -EINVAL, kind, "%s", text);
    return problem_send(c->fd, &err, true) ? REFUSED : CLOSE;
}

/* Answer the request at the start of the buffer, if it is whole. *ret_used is 0 when more is needed. */
static enum outcome request_take(struct control_connection *c, size_t *ret_used)
{
    struct request r = {0};
    *ret_used = 0;
    ssize_t head_size = http_head_size(c->buffer, c->size, &c->scanned);
    if (head_size < 0)
        return refuse(c, head_size == -431 ? ERROR_TOO_LARGE : ERROR_MALFORMED, "this is not an HTTP/1.1 request");
    if (head_size == 0)
        return c->size == sizeof(c->buffer) ? refuse(c, ERROR_TOO_LARGE, "the request is larger than 16 KiB") : KEEP;
    /* The head is parsed in place, which must happen once: on a copy, because the body may still be missing. */
    CLEANUP_FREE char *head = malloc((size_t)head_size);
    if (!head)
        return CLOSE;
    memcpy(head, c->buffer, (size_t)head_size);
    if (http_parse_request(head, (size_t)head_size, &r.head) < 0)
        return refuse(c, ERROR_MALFORMED, "the request's head is malformed");
    if (r.head.chunked || r.head.content_length > sizeof(c->buffer) - (size_t)head_size)
        return refuse(c, ERROR_TOO_LARGE, "the body must have a Content-Length, and head and body at most 16 KiB");
    if (c->size - (size_t)head_size < r.head.content_length)
        return KEEP;
    r.body = c->buffer + head_size;
    r.body_size = (size_t)r.head.content_length;
    *ret_used = (size_t)head_size + r.body_size;
    c->control->requests++;
    return request_answer(c, &r);
}

static enum outcome requests_take(struct control_connection *c)
{
    while (true) {
        size_t used;
        enum outcome outcome = request_take(c, &used);
        if ((outcome != KEEP && outcome != WAITING) || used == 0)
            return outcome;
        memmove(c->buffer, c->buffer + used, c->size - used);
        c->size -= used;
        c->scanned = 0;
        if (outcome == WAITING)
            return outcome;
    }
}

/* What follows from @outcome: the connection goes on or is gone. */
static void outcome_settle(struct control_connection *c, enum outcome outcome)
{
    c->refused = outcome == REFUSED;
    if (outcome == KEEP || outcome == WAITING || (c->refused && shutdown(c->fd, SHUT_WR) == 0))
        return;
    connection_destroy(c);
}

void control_call_end(struct control_call *call, int code, const struct error *err)
{
    struct control_connection *c = call->connection;
    ASSERT(code <= 0 && (!c || c->call == call));
    if (c) {
        c->call = NULL;
        bool go_on = call_answer(c, call, code, err);
        io_loop_change(c->control->machine->control, c->handler, EPOLLIN);
        outcome_settle(c, go_on ? requests_take(c) : CLOSE);
    }
    call_destroy(call);
}

static void on_connection(void *arg, uint32_t events)
{
    struct control_connection *c = arg;
    (void)events;
    if (c->call) { /* not reading: the client hung up */
        connection_destroy(c);
        return;
    }
    if (c->refused)
        c->size = 0;
    ssize_t n = recv(c->fd, c->buffer + c->size, sizeof(c->buffer) - c->size, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && c->refused && (c->discarded += (size_t)n) < CONTROL_DISCARD_BYTES_MAX)
        return;
    if (n > 0 && !c->refused) {
        c->size += (size_t)n;
        outcome_settle(c, requests_take(c));
        return;
    }
    connection_destroy(c);
}

static void on_client(void *arg, int fd)
{
    struct control *control = arg;
    struct error err;
    if (control->connection_count >= CONTROL_CONNECTIONS_MAX) {
        error_set(&err, -EUSERS, ERROR_OVERLOAD, "%u control connections are open already", CONTROL_CONNECTIONS_MAX);
        err.field[0] = 0;
        problem_send(fd, &err, true);
        close(fd);
        return;
    }
    struct control_connection *c = NEW(struct control_connection);
    c->control = control;
    c->fd = fd;
    list_append(&control->connections, &c->link);
    control->connection_count++;
    if (io_loop_add(control->machine->control, fd, EPOLLIN, on_connection, c, &c->handler, NULL) < 0)
        connection_destroy(c);
}

/* ---- the socket ---- */

int control_bind(const char *path, int *ret_fd, struct error *err)
{
    return unix_socket_bind(path, "the control socket", "/control_path", ret_fd, err);
}

int control_create(struct machine *m, const char *path, int fd, struct control **ret_control, struct error *err)
{
    struct control *c = NEW(struct control);
    c->machine = m;
    list_init(&c->connections);
    int code = unix_socket_answer(fd, path, err);
    if (code == 0) {
        code = unix_listener_start(&c->listener, fd, path, "control", m->control, on_client, c, err);
    } else {
        unlink(path);
        close(fd);
    }
    if (code < 0) {
        free(c);
        return code;
    }
    *ret_control = c;
    return 0;
}

void control_destroy(struct control *c)
{
    if (!c)
        return;
    LIST_FOREACH_SAFE(link, &c->connections)
    {
        connection_destroy(LIST_ENTRY(link, struct control_connection, link));
    }
    unix_listener_stop(&c->listener);
    free(c);
}
