/* Pairs of streams; see migrate_tunnel.h.
 *
 *   a pair:  ACCEPTED --near is open, its peer is the right one--> CONNECTING --far is open--> RELAYING --either ends--> gone
 *
 * `near` is the stream that came in, `far` the one made for it. Near is not read before far is open. */
#include "compute/agent/migrate_tunnel.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "common/list.h"
#include "common/log.h"
#include "common/tls_stream.h"

struct pair;

struct side {
    struct pair *pair;
    struct side *other;
    struct tls_stream *stream; /* NULL: gone */
    bool open;
};

struct pair {
    struct list link;
    struct migrate_tunnel *tunnel;
    struct side near, far;
};

struct migrate_tunnel {
    uv_loop_t *loop;
    struct tls_context *tls;
    bool is_source;
    char *connect, *peer, *path; /* path: of the Unix socket that is ours, to be removed; NULL: none */
    char endpoint[300];
    char failure[256];
    struct list pairs;
    unsigned count;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener;
    void (*closed)(void *arg);
    void *closed_arg;
};

static void pair_free(struct pair *p)
{
    if (p->near.stream != NULL || p->far.stream != NULL)
        return;
    p->tunnel->count--;
    list_remove(&p->link);
    free(p);
}

/* What was read from the side that is gone is sent to the other before that is closed. */
static void side_finish(struct side *s)
{
    struct tls_stream *stream = s->stream;
    s->stream = NULL;
    if (stream != NULL && s->open)
        tls_stream_finish(stream, MIGRATE_TUNNEL_LINGER_MS);
    else if (stream != NULL)
        tls_stream_close(stream);
}

static void pair_end(struct pair *p)
{
    side_finish(&p->near);
    side_finish(&p->far);
    pair_free(p);
}

static void failure_note(struct migrate_tunnel *t, const char *what, const char *who, const char *why)
{
    snprintf(t->failure, sizeof(t->failure), "%s %.80s: %.140s", what, who, why);
    for (char *at = t->failure; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
    log_warning("tunnel", "error=\"%s\"", t->failure);
}

static void on_open(struct tls_stream *stream, void *arg);

static void on_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct side *s = arg;
    if (s->other->stream == NULL || tls_stream_write(s->other->stream, data, size) < 0)
        return; /* its end comes from the loop, and ends this side */
    if (tls_stream_queued_bytes(s->other->stream) > MIGRATE_TUNNEL_QUEUE_BYTES_MAX)
        tls_stream_pause(stream);
}

static void on_drain(struct tls_stream *stream, void *arg)
{
    struct side *s = arg;
    (void)stream;
    if (s->other->stream != NULL && s->other->open)
        tls_stream_resume(s->other->stream);
}

static void on_end(struct tls_stream *stream, int status, void *arg)
{
    struct side *s = arg;
    struct pair *p = s->pair;
    if (!s->open)
        failure_note(p->tunnel, s == &p->far ? "cannot reach" : "refused a connection from",
                     s == &p->far ? p->tunnel->connect : tls_stream_peer_address(stream),
                     status == UV_EOF ? "it has closed the connection" : tls_stream_failure(stream));
    tls_stream_close(stream);
    s->stream = NULL;
    side_finish(s->other);
    pair_free(p);
}

static const struct tls_stream_callbacks side_callbacks = {
    .on_open = on_open, .on_data = on_data, .on_drain = on_drain, .on_end = on_end};

/* The other side of a pair whose first is there. */
static void far_connect(struct pair *p)
{
    struct migrate_tunnel *t = p->tunnel;
    struct tls_stream_options options = {.tls = t->is_source ? t->tls : NULL, .peer_prefix = t->peer};
    struct error err = {.code = 0};
    tls_stream_pause(p->near.stream);
    if (tls_stream_connect(t->loop, t->connect, &options, &side_callbacks, &p->far, &p->far.stream, &err) == 0)
        return;
    p->far.stream = NULL;
    failure_note(t, "cannot reach", t->connect, err.text);
    pair_end(p);
}

static void on_open(struct tls_stream *stream, void *arg)
{
    struct side *s = arg;
    struct pair *p = s->pair;
    s->open = true;
    if (s == &p->far) {
        tls_stream_resume(p->near.stream);
    } else if (!p->tunnel->is_source && strcmp(tls_stream_peer(stream), p->tunnel->peer) != 0) {
        failure_note(p->tunnel, "refused a connection from", tls_stream_peer_address(stream),
                     "its certificate is not that of the host which the VM comes from");
        s->open = false; /* nothing is to be sent to it any more */
        pair_end(p);
    } else {
        far_connect(p);
    }
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct migrate_tunnel *t = listener->data;
    struct tls_stream_options options = {.tls = t->is_source ? NULL : t->tls, .client_check = TLS_CLIENT_REQUIRED};
    struct pair *p = NEW(struct pair);
    p->tunnel = t;
    p->near = (struct side){.pair = p, .other = &p->far};
    p->far = (struct side){.pair = p, .other = &p->near};
    if (status < 0 || tls_stream_accept(listener, &options, &side_callbacks, &p->near, &p->near.stream) < 0) {
        log_warning("tunnel", "error=\"cannot accept a connection\" status=%d", status);
        free(p);
        return;
    }
    t->count++;
    list_append(&t->pairs, &p->link);
    if (t->count > MIGRATE_TUNNEL_CONNECTIONS_MAX) {
        failure_note(t, "refused a connection from", tls_stream_peer_address(p->near.stream), "too many are open");
        pair_end(p);
    }
}

/* ---- listening ---- */

static int listen_unix(struct migrate_tunnel *t, const struct migrate_tunnel_options *o, struct error *err)
{
    if (strlen(o->listen) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID,
                         "%s is longer than the path of a socket may be, 107 bytes; give the agent a shorter --data", o->listen);
    mode_t mask = umask(0177);
    int r = uv_pipe_bind(&t->listener.pipe, o->listen);
    umask(mask);
    if (r < 0)
        return error_errno(err, r, "cannot listen at %s", o->listen);
    t->path = xstrdup(o->listen);
    snprintf(t->endpoint, sizeof(t->endpoint), "%s", o->listen);
    if (o->owner != geteuid() && lchown(o->listen, o->owner, (gid_t)-1) < 0)
        return error_errno(err, -errno, "cannot give %s to its user", o->listen);
    return 0;
}

static int listen_tcp(struct migrate_tunnel *t, const struct migrate_tunnel_options *o, struct error *err)
{
    struct sockaddr_storage address;
    int size = sizeof(address);
    char host[INET6_ADDRSTRLEN];
    int r = tls_stream_parse_address(o->listen, &address);
    if (r < 0)
        return error_set(err, r, ERROR_INVALID, "%s is no address of numbers to listen at", o->listen);
    r = uv_tcp_bind(&t->listener.tcp, (const struct sockaddr *)&address, 0);
    if (r == 0)
        r = uv_tcp_getsockname(&t->listener.tcp, (struct sockaddr *)&address, &size);
    if (r < 0)
        return error_errno(err, r, "cannot listen at %s", o->listen);
    bool v6 = address.ss_family == AF_INET6;
    const struct sockaddr_in *in = (const struct sockaddr_in *)&address;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&address;
    if (v6)
        uv_ip6_name(in6, host, sizeof(host));
    else
        uv_ip4_name(in, host, sizeof(host));
    snprintf(t->endpoint, sizeof(t->endpoint), v6 ? "[%s]:%u" : "%s:%u", host, ntohs(v6 ? in6->sin6_port : in->sin_port));
    return 0;
}

int migrate_tunnel_start(const struct migrate_tunnel_options *o, struct migrate_tunnel **ret_tunnel, struct error *err)
{
    struct migrate_tunnel *t = NEW(struct migrate_tunnel);
    int r = o->is_source ? uv_pipe_init(o->loop, &t->listener.pipe, 0) : uv_tcp_init(o->loop, &t->listener.tcp);
    ASSERT(r == 0);
    t->listener.handle.data = t;
    t->loop = o->loop;
    t->tls = tls_context_ref(o->tls);
    t->is_source = o->is_source;
    t->connect = xstrdup(o->connect);
    t->peer = xstrdup(o->peer);
    list_init(&t->pairs);
    r = o->is_source ? listen_unix(t, o, err) : listen_tcp(t, o, err);
    if (r == 0 && (r = uv_listen(&t->listener.stream, MIGRATE_TUNNEL_CONNECTIONS_MAX, on_connection)) < 0)
        error_errno(err, r, "cannot listen at %s", o->listen);
    if (r < 0) {
        migrate_tunnel_stop(t, NULL, NULL);
        return r;
    }
    *ret_tunnel = t;
    return 0;
}

const char *migrate_tunnel_endpoint(const struct migrate_tunnel *tunnel)
{
    return tunnel->endpoint;
}

const char *migrate_tunnel_failure(const struct migrate_tunnel *tunnel)
{
    return tunnel->failure;
}

static void listener_closed(uv_handle_t *handle)
{
    struct migrate_tunnel *t = handle->data;
    void (*closed)(void *arg) = t->closed;
    void *arg = t->closed_arg;
    tls_context_unref(t->tls);
    free(t->connect);
    free(t->peer);
    free(t->path);
    free(t);
    if (closed != NULL)
        closed(arg);
}

void migrate_tunnel_stop(struct migrate_tunnel *t, void (*closed)(void *arg), void *arg)
{
    t->closed = closed;
    t->closed_arg = arg;
    LIST_FOREACH_SAFE(link, &t->pairs)
    {
        struct pair *p = LIST_ENTRY(link, struct pair, link);
        p->near.open = p->far.open = false; /* at once */
        pair_end(p);
    }
    if (t->path != NULL)
        unlink(t->path);
    uv_close(&t->listener.handle, listener_closed);
}
