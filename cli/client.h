/* The CLI's side of the REST API: tries every controller, repeats what can be repeated without harm. */
#ifndef CLI_CLIENT_H
#define CLI_CLIENT_H

#include <jansson.h>

#include "cli/invocation.h"
#include "common/http_client.h"
#include "common/tls.h"

#define ENDPOINTS_MAX 16

struct client {
    char *endpoints[ENDPOINTS_MAX]; /* host:port */
    size_t n_endpoints, at;
    struct tls_context *tls;
    char *controllers; /* identity prefix that whoever answers must have: a controller of our own cluster */
    unsigned timeout_s;
    uint64_t if_revision; /* writes are refused (ERROR_STALE) unless the object has this revision; 0 = any */
};

struct reply {
    int status;
    char *body; /* text; owned by the reply */
    size_t body_size;
    json_t *json; /* parsed body, or NULL; owned by the reply */
    char cursor[256]; /* of a list: where the next page begins; "" = that was all */
};

/* From options, environment or the contexts file. -ENOENT tells how to make a cluster known. */
int client_init(struct client *client, const struct invocation *call, struct error *err);
void client_finish(struct client *client);
/* "host:port" of an API address as it is typed: https:// and a last / are left out, port 7443 is added where there is none, and brackets
 * around an IPv6 address where it is bare. NULL with words where it is none. The caller frees it. */
char *client_endpoint_parse(const char *typed, struct error *err);

/* One request. @path begins with '/', query included; @body may be NULL. A controller that does not answer, or
 * answers 502 to 504, is followed by the next one until the call's time is up; a write carries an Idempotency-Key, so that
 * a repeat gets the first answer. Answers of 400 and above: negative errno, @err from the problem document. */
int client_request(struct client *client, const char *method, const char *path, const json_t *body, struct reply *ret,
                   struct error *err);
/* One attempt, of @deadline_ms, at the controller whose turn it is; where it fails the next one's turn has come. Errors as of
 * client_request; @err may be NULL. */
int client_attempt(struct client *client, const char *method, const char *path, const json_t *body, unsigned deadline_ms,
                   struct reply *ret, struct error *err);
void reply_finish(struct reply *reply);
/* For transfers, whose caller goes on by itself where one attempt has ended: one request to the controller whose turn it
 * is. @base: all but url, tls and peer_prefix. 0: answered, *ret_status below 400. <0: @err in words, and *ret_again says
 * whether another attempt makes sense; the next controller's turn has come then. */
int client_transfer(struct client *client, const struct http_call_options *base, const char *path, int *ret_status,
                    bool *ret_again, struct error *err);
/* All pages of a list as one array, which the caller decrefs. @filter as of the API's ?filter=, or NULL. */
int client_list(struct client *client, enum route_id route, const char *filter, json_t **ret, struct error *err);
/* Path of a route with {id} filled in (percent-encoded) and @query ("" or "?..."). The caller frees. */
char *client_path(enum route_id route, const char *id, const char *query);
/* @text for use in a query. The caller frees. */
char *client_escape(const char *text);
const char *client_endpoint(const struct client *client);

#endif
