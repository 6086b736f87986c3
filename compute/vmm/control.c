/* Connections and the four routes.
 *
 * Happy path: bytes are gathered until head and body are whole, the route answers into one buffer, which goes out in
 * one write; left-over bytes are the next request. Failure modes: anything malformed is answered with a problem and
 * the connection closed once the client has sent what it wanted to (else the answer would be lost with the unread
 * bytes); an answer that the socket does not take at once closes it too. */
#include "compute/vmm/control.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "common/http_parse.h"
#include "common/log.h"

struct control {
    struct machine *machine;
    int listen_fd;
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    struct io_handler *listen_handler;
    struct list connections;
    unsigned connection_count;
    uint64_t requests;
};

struct connection {
    struct control *control;
    struct list link;
    int fd;
    struct io_handler *handler;
    size_t size, scanned;
    size_t discarded; /* while `refused` */
    bool refused;     /* answered and shut for writing; what still comes is thrown away until the client closes */
    char buffer[CONTROL_REQUEST_BYTES_MAX];
};

/* A whole request; texts point into the connection's buffer. */
struct request {
    struct http_head head;
    const char *body;
    size_t body_size;
};

/* ---- answers ---- */

static void put_machine(struct bytes_writer *out, const struct machine *m)
{
    const struct vmm_config *c = m->config;
    bytes_put_text(out, "{\"name\":");
    json_put_string(out, c->name);
    bytes_put_text(out, ",\"vm_id\":");
    json_put_string(out, c->vm_id ? c->vm_id : "");
    bytes_put_format(out, ",\"epoch\":%" PRIu64 ",\"state\":\"%s\",\"pid\":%d", c->epoch,
                     machine_state_name(m->state), (int)getpid());
    bytes_put_format(out, ",\"machine\":\"pc-1\",\"vcpus\":%u,\"memory_bytes\":%" PRIu64 ",\"resets\":%" PRIu64,
                     c->vcpus, c->memory_bytes, m->resets);
    bytes_put_format(out, ",\"lease_held\":%s", lease_allows_io(&m->lease.lease) ? "true" : "false");
    if (m->state == MACHINE_FAILED) {
        bytes_put_text(out, ",\"failure\":");
        json_put_string(out, m->failure);
    }
    bytes_put_text(out, "}\n");
}

static void put_stats(struct bytes_writer *out, struct machine *m)
{
    struct vcpu_counters c = vcpu_set_counters(&m->vcpus);
    bytes_put_format(out, "{\"exits\":%" PRIu64 ",\"port_exits\":%" PRIu64 ",\"memory_exits\":%" PRIu64, c.exits,
                     c.port_exits, c.memory_exits);
    bytes_put_format(out, ",\"unclaimed_port_accesses\":%" PRIu64 ",\"unclaimed_memory_accesses\":%" PRIu64,
                     __atomic_load_n(&m->ports.unclaimed, __ATOMIC_RELAXED),
                     __atomic_load_n(&m->mmio.unclaimed, __ATOMIC_RELAXED));
    bytes_put_format(out, ",\"console_readers\":%u,\"console_readers_dropped\":%" PRIu64 ",\"lease_pauses\":%" PRIu64,
                     console_reader_count(m->console), m->console->followers_dropped,
                     __atomic_load_n(&m->lease.pauses, __ATOMIC_RELAXED));
    bytes_put_format(out, ",\"resets\":%" PRIu64 "}\n", m->resets);
}

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
    struct bytes_writer body = {0};
    bytes_put_format(&body, "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%d,\"code\":\"%s\",\"detail\":",
                     kind->title, kind->http_status, kind->code);
    json_put_string(&body, e->text);
    if (e->field[0]) {
        bytes_put_text(&body, ",\"field\":");
        json_put_string(&body, e->field);
    }
    bytes_put_text(&body, "}\n");
    bool whole = answer_send(fd, kind->http_status, "application/problem+json", &body, close_after);
    bytes_writer_finish(&body);
    return whole;
}

/* ---- routes ---- */

static const struct {
    const char *word;
    int (*move)(struct machine *, struct error *);
} moves[] = {
    {"running", machine_resume},
    {"paused", machine_pause},
    {"stopped", machine_stop},
    {"reset", machine_reset},
    {"powerbutton", machine_press_power_button},
};

static int state_put(struct machine *m, const struct request *r, struct error *err)
{
    json_error_t parse;
    json_t *body = json_loadb(r->body, r->body_size, JSON_REJECT_DUPLICATES, &parse);
    if (!body)
        return error_set(err, -EBADMSG, ERROR_MALFORMED, "the body is not JSON: %s", parse.text);
    const char *word = json_is_object(body) ? json_string_value(json_object_get(body, "state")) : NULL;
    int code = -EINVAL;
    if (!word || json_object_size(body) != 1) {
        error_set_field(err, code, ERROR_INVALID, "/state", "the body must be {\"state\": \"...\"} and nothing else");
    } else {
        error_set_field(err, code, ERROR_INVALID, "/state",
                        "the state must be running, paused, stopped, reset or powerbutton");
        for (size_t i = 0; i < ARRAY_SIZE(moves); i++)
            if (strcmp(word, moves[i].word) == 0)
                code = moves[i].move(m, err);
    }
    json_decref(body);
    return code;
}

enum outcome { KEEP, CLOSE, REFUSED, TAKEN /* the descriptor belongs to the console now */ };

static enum outcome console_get(struct connection *c, struct error *err)
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

static enum outcome request_answer(struct connection *c, const struct request *r)
{
    struct machine *m = c->control->machine;
    struct bytes_writer body = {0};
    struct error err = {0};
    bool get = r->head.method == HTTP_GET, sent;
    int code = 0;
    if (strcmp(r->head.path, "/v1/vm/console") == 0 && get)
        return console_get(c, &err);
    if (strcmp(r->head.path, "/v1/vm") == 0 && get)
        put_machine(&body, m);
    else if (strcmp(r->head.path, "/v1/vm/stats") == 0 && get)
        put_stats(&body, m);
    else if (strcmp(r->head.path, "/v1/vm/state") == 0 && r->head.method == HTTP_PUT)
        code = state_put(m, r, &err);
    else if (strcmp(r->head.path, "/v1/vm") == 0 || strcmp(r->head.path, "/v1/vm/stats") == 0 ||
             strcmp(r->head.path, "/v1/vm/console") == 0 || strcmp(r->head.path, "/v1/vm/state") == 0)
        code = error_set(&err, -EINVAL, ERROR_METHOD, "%s is for %s", r->head.path,
                         strcmp(r->head.path, "/v1/vm/state") ? "GET" : "PUT");
    else
        code = error_set(&err, -ENOENT, ERROR_NOT_FOUND,
                         "there is /v1/vm, /v1/vm/state, /v1/vm/stats and /v1/vm/console");
    if (code == 0 && body.size == 0)
        put_machine(&body, m);
    if (code < 0)
        sent = problem_send(c->fd, &err, !r->head.keep_alive);
    else
        sent = answer_send(c->fd, 200, "application/json", &body, !r->head.keep_alive);
    bytes_writer_finish(&body);
    return sent && r->head.keep_alive ? KEEP : CLOSE;
}

/* ---- connections ---- */

static void connection_destroy(struct connection *c)
{
    io_loop_remove(c->control->machine->control, c->handler);
    close_fd(&c->fd);
    list_remove(&c->link);
    c->control->connection_count--;
    free(c);
}

static enum outcome refuse(struct connection *c, enum error_kind kind, const char *text)
{
    struct error err = {0};
    error_set(&err, -EINVAL, kind, "%s", text);
    return problem_send(c->fd, &err, true) ? REFUSED : CLOSE;
}

/* Answer the request at the start of the buffer, if it is whole. *ret_used is 0 when more is needed. */
static enum outcome request_take(struct connection *c, size_t *ret_used)
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

static enum outcome requests_take(struct connection *c)
{
    while (true) {
        size_t used;
        enum outcome outcome = request_take(c, &used);
        if (outcome != KEEP || used == 0)
            return outcome;
        memmove(c->buffer, c->buffer + used, c->size - used);
        c->size -= used;
        c->scanned = 0;
    }
}

static void on_connection(void *arg, uint32_t events)
{
    struct connection *c = arg;
    (void)events;
    if (c->refused)
        c->size = 0;
    ssize_t n = recv(c->fd, c->buffer + c->size, sizeof(c->buffer) - c->size, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && c->refused && (c->discarded += (size_t)n) < CONTROL_DISCARD_BYTES_MAX)
        return;
    if (n > 0 && !c->refused) {
        c->size += (size_t)n;
        enum outcome outcome = requests_take(c);
        c->refused = outcome == REFUSED;
        if (outcome == KEEP || (c->refused && shutdown(c->fd, SHUT_WR) == 0))
            return;
    }
    connection_destroy(c);
}

static void on_listen(void *arg, uint32_t events)
{
    struct control *control = arg;
    struct error err;
    (void)events;
    int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (control->connection_count >= CONTROL_CONNECTIONS_MAX) {
        error_set(&err, -EUSERS, ERROR_OVERLOAD, "%u control connections are open already", CONTROL_CONNECTIONS_MAX);
        err.field[0] = 0;
        problem_send(fd, &err, true);
        close(fd);
        return;
    }
    struct connection *c = NEW(struct connection);
    c->control = control;
    c->fd = fd;
    list_append(&control->connections, &c->link);
    control->connection_count++;
    if (io_loop_add(control->machine->control, fd, EPOLLIN, on_connection, c, &c->handler, NULL) < 0)
        connection_destroy(c);
}

/* ---- the socket ---- */

/* A file that a dead process left behind; a socket that answers is not ours to take. */
static void stale_remove(const struct sockaddr_un *address)
{
    struct stat st;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && lstat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
        connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED)
        unlink(address->sun_path);
}

static int listen_at(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set_field(err, -ENAMETOOLONG, ERROR_INVALID, "/control_path",
                               "the path of the control socket has more than %zu bytes",
                               sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make a control socket");
    stale_remove(&address);
    mode_t mask = umask(0177);
    int bound = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    int code = -errno;
    umask(mask);
    if (bound == 0 && listen(fd, 16) == 0)
        return fd;
    code = error_errno(err, bound < 0 ? code : -errno, "cannot listen at %s", path);
    close(fd);
    return code;
}

int control_create(struct machine *m, const char *path, struct control **ret_control, struct error *err)
{
    int fd = listen_at(path, err);
    if (fd < 0)
        return fd;
    struct control *c = NEW(struct control);
    c->machine = m;
    c->listen_fd = fd;
    snprintf(c->path, sizeof(c->path), "%s", path);
    list_init(&c->connections);
    int code = io_loop_add(m->control, fd, EPOLLIN, on_listen, c, &c->listen_handler, err);
    if (code < 0) {
        control_destroy(c);
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
        connection_destroy(LIST_ENTRY(link, struct connection, link));
    }
    io_loop_remove(c->machine->control, c->listen_handler);
    close(c->listen_fd);
    unlink(c->path);
    free(c);
}
