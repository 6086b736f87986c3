/* Listening side of the HTTP server: sockets, limits, start and stop; requests are http_connection.c's.
 *
 * Running out of descriptors: libuv keeps a spare one and closes the connections that wait, so that the listener
 * does not spin; they are counted as refused. */
#include "common/http_connection.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define LISTEN_BACKLOG 1024

static void set_default(unsigned *value, unsigned standard)
{
    if (*value == 0)
        *value = standard;
}

static void set_default_size(size_t *value, size_t standard)
{
    if (*value == 0)
        *value = standard;
}

static void fill_limits(struct http_limits *limits)
{
    set_default(&limits->connections_max, 8 * 1024);
    set_default(&limits->handshakes_max, 256);
    set_default_size(&limits->body_bytes_max, 1024 * 1024);
    set_default_size(&limits->bodies_bytes_max, 256 * 1024 * 1024);
    set_default_size(&limits->write_queue_bytes_max, 4 * 1024 * 1024);
    set_default(&limits->handshake_timeout_ms, 10000);
    set_default(&limits->header_timeout_ms, 10000);
    set_default(&limits->body_timeout_ms, 30000);
    set_default(&limits->idle_timeout_ms, 75000);
    set_default(&limits->write_timeout_ms, 30000);
}

const char *http_server_date(struct http_server *server)
{
    static const char days[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t now = time(NULL);
    struct tm tm;
    if (now != server->date_s && gmtime_r(&now, &tm) != NULL) {
        server->date_s = now;
        /* The widths are given so that the compiler sees them fit; strftime would follow the locale. */
        snprintf(server->date, sizeof server->date, "%s, %02u %s %04u %02u:%02u:%02u GMT", days[tm.tm_wday],
                 (unsigned)tm.tm_mday % 100, months[tm.tm_mon], (unsigned)(tm.tm_year + 1900) % 10000,
                 (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100, (unsigned)tm.tm_sec % 100);
    }
    return server->date;
}

/* --- life --- */

static void pace_closed_cb(uv_handle_t *handle)
{
    struct http_server *server = handle->data;
    void (*closed)(void *arg) = server->closed;
    void *arg = server->closed_arg;
    tls_context_unref(server->tls);
    free(server);
    if (closed != NULL)
        closed(arg);
}

void http_server_maybe_free(struct http_server *server)
{
    if (server->stopping && !server->listener_open && server->counters.connections == 0)
        tls_stream_pace_close(&server->pace, pace_closed_cb, server);
}

static void listener_closed_cb(uv_handle_t *handle)
{
    struct http_server *server = handle->data;
    server->listener_open = false;
    http_server_maybe_free(server);
}

void http_server_stop(struct http_server *server, void (*closed)(void *arg), void *arg)
{
    ASSERT(!server->stopping);
    server->stopping = true;
    server->closed = closed;
    server->closed_arg = arg;
    LIST_FOREACH(link, &server->streams)
    tls_stream_abort(tls_stream_from_link(link), -ECANCELED);
    uv_close(&server->listener.handle, listener_closed_cb);
}

/* --- start --- */

static void connection_cb(uv_stream_t *listener, int status)
{
    struct http_server *server = listener->data;
    if (status < 0)
        server->counters.refused++;
    else if (server->tls != NULL && server->counters.handshakes >= server->limits.handshakes_max)
        server->accept_waiting = true; /* not accepted: libuv asks for no more until it is */
    else
        http_connection_accept(server);
}

/* A socket file that nobody answers on is left over from a crash. */
static void remove_stale_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;
    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode) || strlen(path) >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, strlen(path) + 1);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == ECONNREFUSED)
        unlink(path);
}

static int bind_unix(struct http_server *server, const char *path, mode_t mode)
{
    int rc = uv_pipe_init(server->loop, &server->listener.pipe, 0);
    ASSERT(rc == 0);
    server->listener_open = true;
    if (strlen(path) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        return -ENAMETOOLONG;
    remove_stale_socket(path);
    rc = uv_pipe_bind(&server->listener.pipe, path);
    /* Nobody can connect before listen, so that the mode is never wider than asked for. */
    if (rc == 0 && chmod(path, mode != 0 ? mode : 0600) < 0)
        rc = -errno;
    return rc;
}

static int bind_tcp(struct http_server *server, const char *address)
{
    struct sockaddr_storage parsed;
    int rc = uv_tcp_init(server->loop, &server->listener.tcp);
    ASSERT(rc == 0);
    server->listener_open = true;
    rc = tls_stream_parse_address(address, &parsed);
    if (rc < 0)
        return rc;
    return uv_tcp_bind(&server->listener.tcp, (struct sockaddr *)&parsed, 0);
}

int http_server_start(uv_loop_t *loop, const struct http_server_options *options, struct http_server **ret_server,
                      struct error *err)
{
    bool is_unix = strncmp(options->address, "unix:", 5) == 0;
    struct http_server *server = NEW(struct http_server);
    server->loop = loop;
    list_init(&server->streams);
    tls_stream_pace_init(&server->pace, loop);
    server->tls = options->tls != NULL ? tls_context_ref(options->tls) : NULL;
    server->client_check = options->client_check;
    server->limits = options->limits;
    fill_limits(&server->limits);
    server->handler = options->handler;
    server->arg = options->arg;
    int rc = uv_random(NULL, NULL, &server->request_prefix, sizeof server->request_prefix, 0, NULL);
    ASSERT(rc == 0);
    rc = is_unix ? bind_unix(server, options->address + 5, options->unix_mode) : bind_tcp(server, options->address);
    server->listener.handle.data = server;
    if (rc == 0)
        rc = uv_listen(&server->listener.stream, LISTEN_BACKLOG, connection_cb);
    if (rc < 0) {
        http_server_stop(server, NULL, NULL);
        return error_errno(err, rc, "cannot listen on %s", options->address);
    }
    *ret_server = server;
    return 0;
}

unsigned http_server_port(const struct http_server *server)
{
    struct sockaddr_storage address;
    int size = sizeof address;
    if (server->listener.handle.type != UV_TCP ||
        uv_tcp_getsockname(&server->listener.tcp, (struct sockaddr *)&address, &size) < 0)
        return 0;
    return ntohs(((struct sockaddr_in *)&address)->sin_port); /* the same place in sockaddr_in6 */
}

const struct http_server_counters *http_server_counters(const struct http_server *server)
{
    return &server->counters;
}
