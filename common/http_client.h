/* HTTP client: libcurl's multi interface on a uv loop, or blocking for the CLI.
 *
 * Start contract: http_client_start returns <0 and `done` never comes, or 0 and `done` comes exactly once, later,
 * from the loop; the call is gone when `done` returns. The program must ignore SIGPIPE.
 * Only http, https and Unix sockets. */
#ifndef COMMON_HTTP_CLIENT_H
#define COMMON_HTTP_CLIENT_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/tls.h"

#define HTTP_CLIENT_DEADLINE_MS 30000
#define HTTP_CLIENT_BODY_BYTES_MAX (64 * 1024 * 1024)
#define HTTP_CLIENT_PAUSE 1 /* of on_data: not taken, offer it again after http_call_resume */

struct http_client;
struct http_call;

struct http_answer {
    int status; /* HTTP status; 0 where no answer came */
    /* 0, or negative errno: -ECANCELED, -ETIMEDOUT, -ECONNREFUSED, -EMSGSIZE, -EPROTO, -EACCES (TLS), ... */
    int error;
    struct error problem; /* filled when error != 0, or when the answer is problem+json: its code and detail */
    const uint8_t *body;  /* borrowed until done returns; a 0 byte follows; never NULL */
    size_t body_size;
    const char *content_type;     /* "" where there is none */
    const struct http_call *call; /* for http_answer_header */
};
/* Header of the answer, any case; NULL. */
const char *http_answer_header(const struct http_answer *answer, const char *name);

typedef void (*http_client_done)(const struct http_answer *answer, void *arg);

/* All pointers are borrowed for the call of start only, except @tls (counted) and @arg. */
struct http_call_options {
    const char *method;         /* NULL = "GET" */
    const char *url;            /* "https://host:port/path?query" */
    const char *unix_socket;    /* path: connect there whatever the URL's host */
    const char *const *headers; /* "Name: value", NULL-terminated; or NULL */
    const char *content_type;   /* of the body; NULL = application/json */
    const void *body;           /* copied */
    size_t body_size;
    unsigned deadline_ms;    /* whole call; 0 = HTTP_CLIENT_DEADLINE_MS. Streams: until the head of the answer */
    unsigned idle_ms;        /* streams: silence after which the call fails with -ETIMEDOUT; 0 = none */
    size_t body_bytes_max;   /* of a collected answer; 0 = HTTP_CLIENT_BODY_BYTES_MAX; beyond: -EMSGSIZE */
    struct tls_context *tls; /* for https; NULL: what this machine trusts, no certificate */
    const char *peer_prefix; /* identity the server must have, instead of the host name check */
    /* For calls into the world (images): redirects to follow, from https to https only, and the proxy of the
     * environment is used. 0 = our own peers: neither. */
    unsigned redirects_max;
    /* Streaming: a 2xx body goes here piece by piece and is not collected. 0 taken; HTTP_CLIENT_PAUSE; <0: end the
     * call with that error. Other answers are collected as always. */
    int (*on_data)(const void *data, size_t size, void *arg);
    void (*on_head)(int status, void *arg); /* may be NULL */
    /* The same with the headers (http_answer_header), before any of the body; <0 ends the call with that error. May be
     * NULL. */
    int (*on_headers)(const struct http_answer *head, void *arg);
    /* bytes received; total 0 = unknown; may be NULL */
    void (*on_progress)(uint64_t done, uint64_t total, void *arg);
    http_client_done done;
    void *arg;
};

int http_client_create(uv_loop_t *loop, struct http_client **ret_client, struct error *err);
/* Calls in flight end with -ECANCELED; then @closed (may be NULL) and the memory is gone. */
void http_client_close(struct http_client *client, void (*closed)(void *arg), void *arg);
/* @ret_call may be NULL. */
int http_client_start(struct http_client *client, const struct http_call_options *options,
                      struct http_call **ret_call, struct error *err);
void http_call_cancel(struct http_call *call); /* done follows with -ECANCELED */
void http_call_resume(struct http_call *call);

/* Blocking, on a loop of its own: @done is called before it returns (it may be NULL in the options). Returns
 * the answer's error. *ret_body (caller frees; may be NULL) and *ret_status filled when an answer came. Safe to
 * call from any thread, but not within a callback of another loop. */
int http_client_perform(const struct http_call_options *options, int *ret_status, char **ret_body,
                        size_t *ret_body_size, struct error *err);

/* Server-Sent Events out of a stream's bytes (WHATWG HTML §9.2.6). Zero-initialised; finish frees. */
struct http_event {
    const char *id;   /* last id seen, "" before the first */
    const char *name; /* "message" where none was given */
    const char *data; /* lines joined by \n */
    size_t data_size;
};
struct http_event_reader {
    char *line, *data;
    size_t line_size, line_capacity, data_size, data_capacity;
    char id[128], name[64];
    bool skip_lf, has_data;
    size_t event_bytes_max; /* 0 = 1 MiB */
    void (*on_event)(const struct http_event *event, void *arg);
    void *arg;
};
/* 0, or -EMSGSIZE: a line or event beyond event_bytes_max. */
int http_event_reader_feed(struct http_event_reader *reader, const void *data, size_t size);
void http_event_reader_finish(struct http_event_reader *reader);

#endif
