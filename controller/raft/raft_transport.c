/* libraft's transport over mutual TLS.
 *
 * Happy path, connecting:  connect() -> TLS open, server is the id we want -> preamble -> socket pair, one end to
 *                          libraft -> libraft writes into it, the pump encrypts.
 * Happy path, accepting:   TLS open -> the certificate names a controller of this cluster -> preamble claims the same
 *                          id -> socket pair, one end to libraft -> what arrives is decrypted into it.
 *
 *   OPENING --TLS open--> PREAMBLE (accepting only) --> PUMPING --any end, error or silence--> dropped
 *                            +--another epoch--> REFUSED --a moment later--> dropped
 *
 * Failure modes: whatever goes wrong, the link is dropped: a connect request still waiting is answered with an error
 * (libraft tries again after its retry delay), otherwise libraft sees its end of the socket pair close. */
#include "controller/raft/raft_transport.h"

#include "common/bytes.h"
#include "common/list.h"
#include "common/log.h"
#include "common/tls_stream.h"
#include "controller/raft/raft_confirm.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { PREAMBLE_VERSION = 3, PREAMBLE_HEADER_BYTES = 32, PREAMBLE_BYTES_MAX = 32 + 256, LISTEN_BACKLOG = 64 };
/* What comes back to a connector: the first byte says what it is. */
enum { BACK_BEAT = 0, BACK_REFUSAL = 1, BACK_REFUSAL_BYTES = 9, BACK_MESSAGE_BYTES = 17 };

struct raft_transport {
    struct raft_uv_transport uv;
    uv_loop_t *loop;
    struct tls_context *tls;
    raft_id id;
    uint64_t epoch;
    void (*superseded)(void *arg, uint64_t epoch);
    void *superseded_arg;
    void (*received)(void *receiver, uint64_t id, const struct raft_confirm_message *message);
    void *receiver;
    char *peer_prefix;          /* spiffe://drover/<cluster>/controller/ */
    const char *listen_address; /* NULL: address */
    char address[RAFT_TRANSPORT_ADDRESS_MAX];
    uv_tcp_t listener;
    bool listening, closing;
    raft_uv_accept_cb accept_cb;
    raft_uv_transport_close_cb close_cb;
    struct list links;
    unsigned pending; /* accepted, not yet trusted */
};

enum link_state { LINK_OPENING, LINK_PREAMBLE, LINK_REFUSED, LINK_PUMPING };

struct link {
    struct raft_transport *transport;
    struct list in_links;
    enum link_state state;
    bool accepted;                   /* else: connecting */
    bool dropped;
    raft_id id;                      /* of the peer; 0 until it is known */
    struct raft_uv_connect *connect; /* waiting for the answer; connecting only */
    raft_uv_connect_cb connect_cb;
    struct tls_stream *stream; /* NULL once closed */
    uv_pipe_t pump;            /* our end of the socket pair */
    bool pump_open, pump_stopped, stream_paused;
    uint8_t preamble[PREAMBLE_BYTES_MAX];
    size_t preamble_size;
    uint8_t back[BACK_MESSAGE_BYTES]; /* connecting: what has come of something longer than a beat */
    size_t back_size;
    char read_buffer[65536];
};

struct pump_write {
    uv_write_t req;
    struct link *link;
    uint8_t data[];
};

/* --- Life of a link --------------------------------------------------------------------------------------------- */

static void transport_maybe_finish_close(struct raft_transport *t)
{
    raft_uv_transport_close_cb cb = t->close_cb;

    if (!t->closing || t->listening || !list_empty(&t->links) || cb == NULL)
        return;
    t->close_cb = NULL;
    cb(&t->uv);
}

static void link_free(struct link *link)
{
    struct raft_transport *t = link->transport;

    list_remove(&link->in_links);
    free(link);
    transport_maybe_finish_close(t);
}

static void link_pump_closed(uv_handle_t *handle)
{
    link_free(handle->data);
}

static void link_trusted(struct link *link)
{
    if (link->accepted && link->state != LINK_PUMPING)
        link->transport->pending--;
    link->state = LINK_PUMPING;
}

/* End it, whatever its state. The memory may go at once: the caller returns without touching the link. */
static void link_drop(struct link *link, int raft_status)
{
    struct raft_uv_connect *connect = TAKE_PTR(link->connect);

    if (link->dropped)
        return;
    link->dropped = true;
    if (link->accepted && link->state != LINK_PUMPING)
        link->transport->pending--;
    if (link->stream != NULL)
        tls_stream_close(TAKE_PTR(link->stream));
    if (connect != NULL)
        link->connect_cb(connect, NULL, raft_status);
    if (link->pump_open)
        uv_close((uv_handle_t *)&link->pump, link_pump_closed);
    else
        link_free(link);
}

static struct link *link_create(struct raft_transport *t, bool accepted)
{
    struct link *link = NEW(struct link);

    link->transport = t;
    link->accepted = accepted;
    list_append(&t->links, &link->in_links);
    if (accepted)
        t->pending++;
    return link;
}

/* --- The pump --------------------------------------------------------------------------------------------------- */

static void pump_alloc(uv_handle_t *handle, size_t suggested UNUSED, uv_buf_t *buf)
{
    struct link *link = handle->data;

    *buf = uv_buf_init(link->read_buffer, sizeof(link->read_buffer));
}

/* What libraft writes goes out; on an accepted link only its closing is of interest. */
static void pump_read(uv_stream_t *pump, ssize_t n, const uv_buf_t *buf)
{
    struct link *link = pump->data;

    if (n == 0)
        return;
    if (n < 0 || link->accepted || tls_stream_write(link->stream, buf->base, (size_t)n) != 0) {
        link_drop(link, RAFT_NOCONNECTION);
        return;
    }
    if (tls_stream_queued_bytes(link->stream) > RAFT_TRANSPORT_QUEUE_BYTES_MAX) {
        link->pump_stopped = true;
        uv_read_stop(pump);
    }
}

static void pump_written(uv_write_t *req, int status)
{
    struct pump_write *write = CONTAINER_OF(req, struct pump_write, req);
    struct link *link = write->link;

    free(write);
    if (link->dropped)
        return;
    if (status != 0) {
        link_drop(link, RAFT_NOCONNECTION);
        return;
    }
    if (link->stream_paused && link->pump.write_queue_size < RAFT_TRANSPORT_QUEUE_BYTES_MAX / 2) {
        link->stream_paused = false;
        tls_stream_resume(link->stream);
    }
}

static void pump_write(struct link *link, const uint8_t *data, size_t size)
{
    struct pump_write *write = xcalloc(1, sizeof(*write) + size);
    uv_buf_t buf = uv_buf_init((char *)write->data, (unsigned)size);

    write->link = link;
    memcpy(write->data, data, size);
    if (uv_write(&write->req, (uv_stream_t *)&link->pump, &buf, 1, pump_written) != 0) {
        free(write);
        link_drop(link, RAFT_NOCONNECTION);
        return;
    }
    if (link->pump.write_queue_size > RAFT_TRANSPORT_QUEUE_BYTES_MAX && !link->stream_paused) {
        link->stream_paused = true;
        tls_stream_pause(link->stream);
    }
}

/* Open the socket pair; the stream returned is libraft's end, which it closes and frees itself. */
static uv_stream_t *pump_open(struct link *link)
{
    uv_loop_t *loop = link->transport->loop;
    int fds[2], buffer_bytes = RAFT_TRANSPORT_QUEUE_BYTES_MAX;
    uv_pipe_t *theirs;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return NULL;
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
    theirs = raft_malloc(sizeof(*theirs));
    ASSERT(theirs != NULL);
    ASSERT(uv_pipe_init(loop, theirs, 0) == 0 && uv_pipe_open(theirs, fds[1]) == 0);
    ASSERT(uv_pipe_init(loop, &link->pump, 0) == 0 && uv_pipe_open(&link->pump, fds[0]) == 0);
    link->pump.data = link;
    link->pump_open = true;
    ASSERT(uv_read_start((uv_stream_t *)&link->pump, pump_alloc, pump_read) == 0);
    return (uv_stream_t *)theirs;
}

/* --- Connecting ------------------------------------------------------------------------------------------------- */

static void connector_open(struct tls_stream *stream, void *arg)
{
    struct link *link = arg;
    struct raft_transport *t = link->transport;
    struct bytes_writer preamble = {0};
    struct raft_uv_connect *connect = link->connect;
    uv_stream_t *theirs;
    int rv;

    bytes_put_u64(&preamble, PREAMBLE_VERSION);
    bytes_put_u64(&preamble, t->id);
    bytes_put_u64(&preamble, t->epoch);
    bytes_put_u64(&preamble, strlen(t->address));
    bytes_put_text(&preamble, t->address);
    rv = tls_stream_write(stream, preamble.data, preamble.size);
    bytes_writer_finish(&preamble);
    theirs = rv == 0 ? pump_open(link) : NULL;
    if (theirs == NULL) {
        link_drop(link, RAFT_NOCONNECTION);
        return;
    }
    link->connect = NULL;
    link_trusted(link);
    tls_stream_set_timer(stream, RAFT_TRANSPORT_SILENCE_MS);
    link->connect_cb(connect, theirs, 0);
}

static void transport_superseded(struct raft_transport *t, uint64_t epoch)
{
    if (epoch > t->epoch && t->superseded != NULL)
        t->superseded(t->superseded_arg, epoch);
}

static void connector_refused(struct link *link, uint64_t epoch)
{
    log_warning("raft-refused", "by=%llu address=%s its-epoch=%llu our-epoch=%llu", link->id,
                tls_stream_peer_address(link->stream), (unsigned long long)epoch,
                (unsigned long long)link->transport->epoch);
    transport_superseded(link->transport, epoch);
    link_drop(link, RAFT_UNAUTHORIZED);
}

static size_t back_bytes(uint8_t kind)
{
    switch (kind) {
    case BACK_BEAT: return 1;
    case BACK_REFUSAL: return BACK_REFUSAL_BYTES;
    case RAFT_CONFIRM_QUESTION:
    case RAFT_CONFIRM_ANSWER: return BACK_MESSAGE_BYTES;
    }
    return 0;
}

/* All of link->back has come. */
static void connector_back(struct link *link)
{
    struct raft_transport *t = link->transport;
    struct bytes_reader reader = bytes_reader(link->back + 1, link->back_size - 1);
    struct raft_confirm_message message = {.kind = link->back[0]};

    link->back_size = 0;
    if (message.kind == (enum raft_confirm_kind)BACK_REFUSAL) {
        connector_refused(link, bytes_get_u64(&reader));
    } else if (message.kind != (enum raft_confirm_kind)BACK_BEAT && t->received != NULL) {
        message.term = bytes_get_u64(&reader);
        message.round = bytes_get_u64(&reader);
        t->received(t->receiver, link->id, &message);
    }
}

static void connector_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct link *link = arg;

    tls_stream_set_timer(stream, RAFT_TRANSPORT_SILENCE_MS);
    for (size_t i = 0; i < size; i++) {
        link->back[link->back_size++] = data[i];
        if (back_bytes(link->back[0]) == 0) {
            log_warning("raft-peer-refused", "id=%llu address=%s why=\"it sends what nobody knows\"", link->id,
                        tls_stream_peer_address(stream));
            link_drop(link, RAFT_NOCONNECTION);
            return;
        }
        if (link->back_size < back_bytes(link->back[0]))
            continue;
        bool last = link->back[0] == BACK_REFUSAL;
        connector_back(link);
        if (last)
            return; /* the link may be gone */
    }
}

static void connector_silent(struct tls_stream *stream UNUSED, void *arg)
{
    struct link *link = arg;

    log_info("raft-peer-silent", "id=%llu address=%s", link->id, tls_stream_peer_address(link->stream));
    link_drop(link, RAFT_NOCONNECTION);
}

static void connector_drain(struct tls_stream *stream UNUSED, void *arg)
{
    struct link *link = arg;

    if (!link->pump_stopped)
        return;
    link->pump_stopped = false;
    uv_read_start((uv_stream_t *)&link->pump, pump_alloc, pump_read);
}

static void link_end(struct tls_stream *stream, int status, void *arg)
{
    struct link *link = arg;

    if (link->state != LINK_PUMPING)
        log_debug("raft-link-failed", "side=%s why=\"%s\"", link->accepted ? "accept" : "connect",
                  tls_stream_failure(stream));
    link_drop(link, status == -EACCES || status == -EPERM ? RAFT_UNAUTHORIZED : RAFT_NOCONNECTION);
}

static const struct tls_stream_callbacks connector_callbacks = {
    .on_open = connector_open,
    .on_data = connector_data,
    .on_drain = connector_drain,
    .on_timer = connector_silent,
    .on_end = link_end,
};

static int transport_connect(struct raft_uv_transport *uv, struct raft_uv_connect *req, raft_id id,
                             const char *address, raft_uv_connect_cb cb)
{
    struct raft_transport *t = uv->impl;
    struct link *link = link_create(t, false);
    char *peer = xasprintf("%s%llu", t->peer_prefix, id);
    struct tls_stream_options options = {
        .tls = t->tls, .peer_prefix = peer, .open_timeout_ms = RAFT_TRANSPORT_OPEN_TIMEOUT_MS};
    struct error err = {0};
    int rv = tls_stream_connect(t->loop, address, &options, &connector_callbacks, link, &link->stream, &err);

    free(peer);
    link->id = id;
    if (rv != 0) {
        log_warning("raft-connect-failed", "id=%llu address=%s why=\"%s\"", id, address, err.text);
        link_drop(link, RAFT_NOCONNECTION); /* its request is not set: no callback */
        return RAFT_NOCONNECTION;
    }
    req->cb = cb;
    link->connect = req;
    link->connect_cb = cb;
    return 0;
}

/* --- Accepting -------------------------------------------------------------------------------------------------- */

int raft_transport_parse_preamble(const void *data, size_t size, uint64_t *ret_id, uint64_t *ret_epoch,
                                  char ret_address[RAFT_TRANSPORT_ADDRESS_MAX])
{
    struct bytes_reader reader = bytes_reader(data, size);
    uint64_t version, id, epoch, length;
    const char *address;

    if (size < PREAMBLE_HEADER_BYTES)
        return 0;
    version = bytes_get_u64(&reader);
    id = bytes_get_u64(&reader);
    epoch = bytes_get_u64(&reader);
    length = bytes_get_u64(&reader);
    if (version != PREAMBLE_VERSION || id == 0 || length == 0 || length >= RAFT_TRANSPORT_ADDRESS_MAX)
        return -EBADMSG;
    if (bytes_left(&reader) < length)
        return 0;
    address = bytes_get(&reader, (size_t)length);
    if (memchr(address, '\0', (size_t)length) != NULL)
        return -EBADMSG;
    memcpy(ret_address, address, (size_t)length);
    ret_address[length] = '\0';
    *ret_id = id;
    *ret_epoch = epoch;
    return (int)(PREAMBLE_HEADER_BYTES + length);
}

/* The id in the peer's certificate, 0 where it is no controller of this cluster. */
static raft_id acceptor_peer_id(const struct raft_transport *t, const char *peer)
{
    size_t prefix_length = strlen(t->peer_prefix);
    char *end;
    raft_id id;

    if (strncmp(peer, t->peer_prefix, prefix_length) != 0 || peer[prefix_length] < '1' || peer[prefix_length] > '9')
        return 0;
    errno = 0;
    id = strtoull(peer + prefix_length, &end, 10);
    return errno == 0 && *end == '\0' ? id : 0;
}

static void acceptor_refuse(struct link *link, const char *why)
{
    log_warning("raft-peer-refused", "peer=%s address=%s why=\"%s\"", tls_stream_peer(link->stream),
                tls_stream_peer_address(link->stream), why);
    link_drop(link, RAFT_UNAUTHORIZED);
}

static void acceptor_open(struct tls_stream *stream, void *arg)
{
    struct link *link = arg;

    link->id = acceptor_peer_id(link->transport, tls_stream_peer(stream));
    if (link->id == 0 || link->id == link->transport->id) {
        acceptor_refuse(link, "the certificate is not another controller's of this cluster");
        return;
    }
    link->state = LINK_PREAMBLE;
    tls_stream_set_timer(stream, RAFT_TRANSPORT_OPEN_TIMEOUT_MS);
}

/* The same peer connected before: that connection is dead, or soon will be. */
static void acceptor_replace(struct link *link)
{
    LIST_FOREACH (at, &link->transport->links) {
        struct link *old = LIST_ENTRY(at, struct link, in_links);

        if (old != link && !old->dropped && old->accepted && old->id == link->id && old->state == LINK_PUMPING) {
            link_drop(old, RAFT_NOCONNECTION); /* its pump is open: the memory stays until later */
            return;
        }
    }
}

/* Say why, and leave it the time to arrive. */
static void acceptor_refuse_epoch(struct link *link, uint64_t epoch)
{
    struct raft_transport *t = link->transport;
    struct bytes_writer refusal = {0};

    log_warning("raft-peer-refused", "peer=%s address=%s why=\"it is of epoch %llu of the cluster, this one of %llu\"",
                tls_stream_peer(link->stream), tls_stream_peer_address(link->stream), (unsigned long long)epoch,
                (unsigned long long)t->epoch);
    link->state = LINK_REFUSED;
    bytes_put_u8(&refusal, BACK_REFUSAL);
    bytes_put_u64(&refusal, t->epoch);
    tls_stream_write(link->stream, refusal.data, refusal.size);
    bytes_writer_finish(&refusal);
    tls_stream_set_timer(link->stream, RAFT_TRANSPORT_REFUSAL_MS);
    transport_superseded(t, epoch);
}

/* Returns how many bytes of @data were the preamble's; the link may be gone when it is negative. */
static ssize_t acceptor_preamble(struct link *link, const uint8_t *data, size_t size)
{
    struct raft_transport *t = link->transport;
    size_t had = link->preamble_size, take = MIN(size, sizeof(link->preamble) - had);
    char address[RAFT_TRANSPORT_ADDRESS_MAX];
    uv_stream_t *theirs;
    uint64_t id, epoch;
    int length;

    memcpy(link->preamble + had, data, take);
    link->preamble_size += take;
    length = raft_transport_parse_preamble(link->preamble, link->preamble_size, &id, &epoch, address);
    if (length == 0)
        return (ssize_t)size;
    if (length < 0 || id != link->id) {
        acceptor_refuse(link, length < 0 ? "malformed preamble" : "it claims another controller's id");
        return -EBADMSG;
    }
    if (epoch != t->epoch) {
        acceptor_refuse_epoch(link, epoch);
        return (ssize_t)size;
    }
    acceptor_replace(link);
    theirs = pump_open(link);
    if (theirs == NULL) {
        link_drop(link, RAFT_NOCONNECTION);
        return -EMFILE;
    }
    link_trusted(link);
    tls_stream_set_timer(link->stream, RAFT_TRANSPORT_BEAT_MS);
    t->accept_cb(&t->uv, id, address, theirs);
    return link->dropped ? -ECANCELED : (ssize_t)((size_t)length - had);
}

static void acceptor_data(struct tls_stream *stream UNUSED, const uint8_t *data, size_t size, void *arg)
{
    struct link *link = arg;

    if (link->state == LINK_REFUSED)
        return;
    if (link->state == LINK_PREAMBLE) {
        ssize_t used = acceptor_preamble(link, data, size);

        if (used < 0)
            return;
        data += used;
        size -= (size_t)used;
    }
    if (size > 0)
        pump_write(link, data, size);
}

static void acceptor_timer(struct tls_stream *stream, void *arg)
{
    static const uint8_t beat[1] = {BACK_BEAT};
    struct link *link = arg;

    if (link->state == LINK_REFUSED) {
        link_drop(link, RAFT_UNAUTHORIZED);
        return;
    }
    if (link->state != LINK_PUMPING) {
        acceptor_refuse(link, "no preamble in time");
        return;
    }
    if (tls_stream_queued_bytes(stream) < RAFT_TRANSPORT_QUEUE_BYTES_MAX)
        tls_stream_write(stream, beat, sizeof(beat));
    tls_stream_set_timer(stream, RAFT_TRANSPORT_BEAT_MS);
}

static const struct tls_stream_callbacks acceptor_callbacks = {
    .on_open = acceptor_open,
    .on_data = acceptor_data,
    .on_timer = acceptor_timer,
    .on_end = link_end,
};

static void transport_connection(uv_stream_t *listener, int status)
{
    struct raft_transport *t = listener->data;
    struct tls_stream_options options = {
        .tls = t->tls, .client_check = TLS_CLIENT_REQUIRED, .open_timeout_ms = RAFT_TRANSPORT_OPEN_TIMEOUT_MS};
    struct link *link;

    if (status != 0)
        return;
    link = link_create(t, true);
    if (tls_stream_accept(listener, &options, &acceptor_callbacks, link, &link->stream) != 0 ||
        t->pending > RAFT_TRANSPORT_PENDING_MAX)
        link_drop(link, RAFT_TOOMANY);
}

static int transport_listen(struct raft_uv_transport *uv, raft_uv_accept_cb cb)
{
    struct raft_transport *t = uv->impl;
    const char *address = t->listen_address != NULL ? t->listen_address : t->address;
    char host[RAFT_TRANSPORT_ADDRESS_MAX], port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found = NULL;
    struct error err = {0};
    int rv;

    if (raft_transport_parse_address(address, host, port, &err) != 0 ||
        (rv = getaddrinfo(host, port, &hints, &found)) != 0) {
        snprintf(uv->errmsg, sizeof(uv->errmsg), "cannot listen on %.180s: no such address", address);
        return RAFT_INVALID;
    }
    ASSERT(uv_tcp_init(t->loop, &t->listener) == 0);
    t->listener.data = t;
    t->listening = true;
    t->accept_cb = cb;
    rv = uv_tcp_bind(&t->listener, found->ai_addr, 0);
    if (rv == 0)
        rv = uv_listen((uv_stream_t *)&t->listener, LISTEN_BACKLOG, transport_connection);
    freeaddrinfo(found);
    if (rv != 0) {
        snprintf(uv->errmsg, sizeof(uv->errmsg), "cannot listen on %.180s: %.40s", address, uv_strerror(rv));
        return rv == UV_EADDRINUSE ? RAFT_DUPLICATEADDRESS : RAFT_INVALID;
    }
    return 0;
}

/* --- The transport ---------------------------------------------------------------------------------------------- */

static int transport_init(struct raft_uv_transport *uv, raft_id id, const char *address)
{
    struct raft_transport *t = uv->impl;

    if (id != t->id || strlen(address) >= sizeof(t->address))
        return RAFT_INVALID;
    strcpy(t->address, address);
    return 0;
}

static void transport_listener_closed(uv_handle_t *handle)
{
    struct raft_transport *t = handle->data;

    t->listening = false;
    transport_maybe_finish_close(t);
}

static void transport_close(struct raft_uv_transport *uv, raft_uv_transport_close_cb cb)
{
    struct raft_transport *t = uv->impl;

    t->closing = true;
    LIST_FOREACH_SAFE (at, &t->links)
        link_drop(LIST_ENTRY(at, struct link, in_links), RAFT_CANCELED);
    t->close_cb = cb;
    if (t->listening)
        uv_close((uv_handle_t *)&t->listener, transport_listener_closed);
    else
        transport_maybe_finish_close(t);
}

int raft_transport_create(const struct raft_transport_config *config, uv_loop_t *loop,
                          struct raft_transport **ret_transport, struct error *err)
{
    struct tls_identity identity = {
        .ca_pem = config->ca_pem, .certificate_pem = config->certificate_pem, .key_pem = config->key_pem};
    struct raft_transport *t = NEW(struct raft_transport);
    int rv = tls_context_create(&identity, &t->tls, err);

    if (rv != 0) {
        error_prefix(err, "raft transport: ");
        free(t);
        return rv;
    }
    t->loop = loop;
    t->id = config->id;
    t->epoch = config->epoch;
    t->superseded = config->superseded;
    t->superseded_arg = config->arg;
    t->received = config->received;
    t->receiver = config->receiver;
    t->listen_address = config->listen_address;
    t->peer_prefix = xasprintf("spiffe://drover/%s/controller/", config->cluster_id);
    list_init(&t->links);
    t->uv = (struct raft_uv_transport){
        .version = 1,
        .impl = t,
        .init = transport_init,
        .listen = transport_listen,
        .connect = transport_connect,
        .close = transport_close,
    };
    *ret_transport = t;
    return 0;
}

void raft_transport_destroy(struct raft_transport *t)
{
    if (t == NULL)
        return;
    ASSERT(list_empty(&t->links) && !t->listening);
    tls_context_unref(t->tls);
    free(t->peer_prefix);
    free(t);
}

struct raft_uv_transport *raft_transport_uv(struct raft_transport *t)
{
    return &t->uv;
}

bool raft_transport_send(struct raft_transport *t, uint64_t id, const struct raft_confirm_message *message)
{
    struct bytes_writer out = {0};
    bool sent = false;

    bytes_put_u8(&out, (uint8_t)message->kind);
    bytes_put_u64(&out, message->term);
    bytes_put_u64(&out, message->round);
    LIST_FOREACH (at, &t->links) {
        struct link *link = LIST_ENTRY(at, struct link, in_links);

        if (!link->dropped && link->accepted && link->id == id && link->state == LINK_PUMPING) {
            sent = tls_stream_queued_bytes(link->stream) < RAFT_TRANSPORT_QUEUE_BYTES_MAX &&
                   tls_stream_write(link->stream, out.data, out.size) == 0;
            break;
        }
    }
    bytes_writer_finish(&out);
    return sent;
}

int raft_transport_parse_address(const char *address, char ret_host[RAFT_TRANSPORT_ADDRESS_MAX], char ret_port[8],
                                 struct error *err)
{
    const char *colon = strrchr(address, ':'), *host = address;
    size_t host_length, port_length = colon != NULL ? strlen(colon + 1) : 0;

    if (colon == NULL || port_length == 0 || port_length > 5 || strspn(colon + 1, "0123456789") != port_length ||
        atoi(colon + 1) > UINT16_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is no address: it must end with :port", address);
    host_length = (size_t)(colon - address);
    if (host[0] == '[' && host_length >= 2 && host[host_length - 1] == ']') {
        host++;
        host_length -= 2;
    } else if (memchr(host, ':', host_length) != NULL) {
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is no address: write IPv6 as [address]:port", address);
    }
    if (host_length == 0 || host_length >= RAFT_TRANSPORT_ADDRESS_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is no address: the host is missing or too long", address);
    memcpy(ret_host, host, host_length);
    ret_host[host_length] = '\0';
    memcpy(ret_port, colon + 1, port_length + 1);
    return 0;
}
