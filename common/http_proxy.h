/* Forwarding of one accepted request to another of our servers, and of its answer back: plain, chunked and event-
 * stream answers, WebSocket and raw upgrades. Used for follower -> leader and controller -> host.
 *
 *   1. connect (or take an idle connection to the same target)  failure: 502 unreachable / 504 timeout
 *   2. send the head (end-to-end headers, those of the target replacing the client's) and the body
 *   3. read the head of the answer                               failure: 502; after answer_timeout_ms: 504
 *   4. pipe its body, the slower side stopping the faster        failure: the client's connection is closed
 *      or, on 101: pipe bytes in both directions until either side ends
 * A client that goes away breaks off the other side. A request is sent once: nothing is repeated here, because a
 * write whose answer was lost may have been done. */
#ifndef COMMON_HTTP_PROXY_H
#define COMMON_HTTP_PROXY_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/http_server.h"
#include "common/tls.h"

#define HTTP_PROXY_QUEUE_BYTES_MAX (256 * 1024) /* per direction; the source pauses beyond */

/* All borrowed for the call, except @tls (counted). */
struct http_proxy_target {
    const char *endpoint;       /* "host:port", "[v6]:port" or "unix:/path" */
    struct tls_context *tls;    /* NULL: plain */
    const char *peer_prefix;    /* identity the other server must have; NULL: its host name is checked */
    const char *path_and_query; /* NULL: as the client sent them */
    /* "Name: value\r\n" lines to add; the client's own of these names are dropped; or NULL */
    const char *headers;
    const char *drop_headers;    /* comma-separated names of the client's headers not to send on, or NULL */
    unsigned connect_timeout_ms; /* 0 = 3 s */
    unsigned answer_timeout_ms;  /* until the head of the answer; 0 = 60 s */
    /* NULL: a failure before the answer's head is answered here. Else the request is the caller's again (to be tried
     * elsewhere, or answered); ERROR_UNKNOWN_OUTCOME where it may have been carried out. */
    void (*failed)(struct http_request *request, const struct error *err, void *arg);
    void *failed_arg;
};

struct http_proxy;
int http_proxy_create(uv_loop_t *loop, struct http_proxy **ret_proxy, struct error *err);
/* Exchanges in flight are broken off (their requests answered 503 where nothing was sent yet); then @closed. */
void http_proxy_close(struct http_proxy *proxy, void (*closed)(void *arg), void *arg);
/* 0: the request is the proxy's and will be answered. <0: it is still the caller's (answer @err). */
int http_proxy_start(struct http_proxy *proxy, struct http_request *request, const struct http_proxy_target *target,
                     struct error *err);

#endif
