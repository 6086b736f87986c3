/* A byte stream over TCP or a Unix socket, with or without TLS, client or server, in a uv loop.
 *
 *   connecting/handshaking --on_open--> open --on_data...--> --on_end--> ended --tls_stream_close--> gone
 *
 * Rules that the owner can lean on:
 * - Callbacks never come from inside a call of this interface; all come from the loop.
 * - on_end comes once at most, with a negative errno (UV_EOF: the peer has finished); nothing after it. The owner
 * must
 *   then call tls_stream_close (it may do so from inside). No callback at all after tls_stream_close.
 * - Everything is closed by tls_stream_close or tls_stream_finish; memory goes by itself when the handles are closed.
 * - Output is queued without bound: the owner looks at tls_stream_queued_bytes before writing, and stops its source
 *   until on_drain. Input stops with tls_stream_pause: what has been read stays here (one read's worth at most).
 * - The program must ignore SIGPIPE (main.c), or a peer that has gone ends the process.
 * - One timer is lent to the owner while the stream is open (tls_stream_set_timer). */
#ifndef COMMON_TLS_STREAM_H
#define COMMON_TLS_STREAM_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/list.h"
#include "common/tls.h"

#define TLS_STREAM_READ_BYTES_MAX (64 * 1024)    /* one on_data */
#define TLS_STREAM_FLIGHT_BYTES_MAX (256 * 1024) /* encrypted ahead of the socket */
#define TLS_STREAM_TURN_BYTES_MAX (256 * 1024)   /* encrypted and sent in one go: then the loop's other events have a turn */

/* With struct tls_stream_pace, at one time of the loop's clock, which is read twice a turn: */
#define TLS_STREAM_TURN_HANDSHAKES_MAX 4u        /* handshakes begun */
#define TLS_STREAM_TURN_NS_MAX 6000000u          /* time in which input is handled: what comes then waits in the kernel */
#define TLS_STREAM_TURN_ADMITTED 64u             /* of the streams that wait, so many may read in the next turn */

struct tls_stream;

/* Shared by the streams of a listener: libuv hands out a thousand events before it turns again, and hundreds of peers may
 * come, ask or go at once (after a restart all agents and watchers do; a handshake costs a millisecond in two steps).
 * Input beyond the limit stays in the kernel and has its turn later, first come, first served; at least one stream has
 * some in each turn, however long it takes. Must outlive the streams. The fields are tls_stream.c's. */
struct tls_stream_pace {
    uv_idle_t idle;      /* runs while any wait */
    struct list waiting; /* streams */
    uint64_t tickets;    /* given to those that ever waited */
    uint64_t turn_ms;    /* uv_now of the turn that is counted */
    unsigned steps;      /* handshakes begun */
    uint64_t spent_ns;   /* on input: TLS, parsing, what the owners do in their callbacks, and freeing what ends */
    uint64_t free_ns;    /* that the last stream took to be freed: charged when one is closed */
};
void tls_stream_pace_init(struct tls_stream_pace *pace, uv_loop_t *loop);
/* When all its streams are gone. @closed gets the idle handle, with @data in it. */
void tls_stream_pace_close(struct tls_stream_pace *pace, uv_close_cb closed, void *data);

struct tls_stream_callbacks {
    void (*on_open)(struct tls_stream *stream, void *arg); /* connected, handshake done, peer known; may be NULL */
    void (*on_data)(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg);
    void (*on_drain)(struct tls_stream *stream, void *arg); /* the queue has become empty; may be NULL */
    void (*on_timer)(struct tls_stream *stream, void *arg); /* of tls_stream_set_timer; may be NULL */
    void (*on_end)(struct tls_stream *stream, int status, void *arg);
};

struct tls_stream_options {
    struct tls_context *tls;            /* NULL: plain bytes */
    enum tls_client_check client_check; /* server side */
    const char *peer_prefix;  /* client side: what the server's identity must begin with; NULL: check host */
    struct tls_stream_pace *pace; /* server side; NULL: none */
    unsigned open_timeout_ms; /* connect and handshake together; 0 = TLS_STREAM_OPEN_TIMEOUT_MS */
};
#define TLS_STREAM_OPEN_TIMEOUT_MS 10000

/* Connect to "host:port", "[v6]:port" or "unix:/path" (names are resolved in the thread pool). 0: on_open or
 * on_end will come. <0: neither (-EINVAL: @endpoint unreadable). */
int tls_stream_connect(uv_loop_t *loop, const char *endpoint, const struct tls_stream_options *options,
                       const struct tls_stream_callbacks *callbacks, void *arg, struct tls_stream **ret_stream,
                       struct error *err);
/* Accept one connection from @listener inside its connection callback; on_open or on_end will come. */
int tls_stream_accept(uv_stream_t *listener, const struct tls_stream_options *options,
                      const struct tls_stream_callbacks *callbacks, void *arg, struct tls_stream **ret_stream);

/* The address that an endpoint of numbers names; -EINVAL for names of hosts. */
int tls_stream_parse_address(const char *endpoint, struct sockaddr_storage *ret_address);

/* Queue bytes: copied, or taken over together with the function that frees them (called on failure too).
 * 0, or -EPIPE once ended, finishing or closed. */
int tls_stream_write(struct tls_stream *stream, const void *data, size_t size);
int tls_stream_write_take(struct tls_stream *stream, void *data, size_t size, void (*free_data)(void *data));
/* Between cork and uncork output is gathered, so that many small writes leave as one. They nest. */
void tls_stream_cork(struct tls_stream *stream);
void tls_stream_uncork(struct tls_stream *stream);
size_t tls_stream_queued_bytes(const struct tls_stream *stream); /* not yet taken by the kernel */
uint64_t tls_stream_sent_bytes(const struct tls_stream *stream); /* since the start, as seen by the socket */

void tls_stream_pause(struct tls_stream *stream);
void tls_stream_resume(struct tls_stream *stream);
/* Give back bytes that belong to the next owner: they come first with the next on_data. */
void tls_stream_unread(struct tls_stream *stream, const void *data, size_t size);
/* Another owner: its callbacks from now on. */
void tls_stream_set_callbacks(struct tls_stream *stream, const struct tls_stream_callbacks *callbacks, void *arg);
/* on_timer once, @timeout_ms from now; 0 stops it. */
void tls_stream_set_timer(struct tls_stream *stream, uint64_t timeout_ms);
/* Called once, when the stream's memory is about to go (for counting); survives tls_stream_set_callbacks. */
void tls_stream_set_release(struct tls_stream *stream, void (*release)(struct list *link, void *arg), void *arg);
struct list *tls_stream_link(struct tls_stream *stream); /* for lists of the one who set the release function */
struct tls_stream *tls_stream_from_link(struct list *link);

/* Send what is queued, say goodbye, close; after @linger_ms close anyway. No callback any more. */
void tls_stream_finish(struct tls_stream *stream, unsigned linger_ms);
void tls_stream_close(struct tls_stream *stream);
/* As if the peer had broken off: the owner gets on_end(@status). */
void tls_stream_abort(struct tls_stream *stream, int status);

uv_loop_t *tls_stream_loop(const struct tls_stream *stream);
const char *tls_stream_peer(const struct tls_stream *stream);         /* identity or "" */
const char *tls_stream_peer_address(const struct tls_stream *stream); /* "192.0.2.1:4711", "unix" */
/* Words for the status of on_end ("certificate verify failed", "connection refused"...). */
const char *tls_stream_failure(const struct tls_stream *stream);

#endif
