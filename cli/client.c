/* Requests to the cluster with retries over its controllers. */
#include "cli/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/context.h"
#include "common/file.h"
#include "common/http_client.h"
#include "common/pki.h"

#define ATTEMPT_MS 10000
#define LIST_PAGE 1000
#define PAUSE_MS 150
#define API_PORT "7443"

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

char *client_escape(const char *text)
{
    struct bytes_writer w = {0};
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("-._~", c) != NULL)
            bytes_put_u8(&w, c);
        else
            bytes_put_format(&w, "%%%02X", c);
    }
    bytes_put_u8(&w, 0);
    return (char *)w.data;
}

char *client_path(enum route_id route, const char *id, const char *query)
{
    const char *path = schema_routes[route].path, *hole = strstr(path, "{id}");
    if (hole == NULL)
        return xasprintf("%s%s", path, query);
    CLEANUP_FREE char *escaped = client_escape(id);
    return xasprintf("%.*s%s%s%s", (int)(hole - path), path, escaped, hole + 4, query);
}

const char *client_endpoint(const struct client *client)
{
    return client->endpoints[client->at];
}

char *client_endpoint_parse(const char *typed, struct error *err)
{
    const char *host = strncmp(typed, "https://", 8) == 0 ? typed + 8 : typed, *rule;
    int length = (int)strlen(host);
    length -= length > 0 && host[length - 1] == '/';
    CLEANUP_FREE char *plain = xasprintf("%.*s", length, host);
    const char *colon = strchr(plain, ':');
    bool bare = plain[0] != '[' && colon != NULL && strchr(colon + 1, ':') != NULL; /* an IPv6 address without a port */
    bool closed = length > 0 && plain[length - 1] == ']';
    char *address = bare                      ? xasprintf("[%s]:" API_PORT, plain)
                    : closed || colon == NULL ? xasprintf("%s:" API_PORT, plain)
                                              : xstrdup(plain);
    if (text_format_ok(FORMAT_address, address, &rule))
        return address;
    free(address);
    error_set(err, -EINVAL, ERROR_INVALID, "the endpoint '%s' must be %s", typed, rule);
    return NULL;
}

static int add_endpoints(struct client *client, const char *list, struct error *err)
{
    CLEANUP_FREE char *copy = xstrdup(list);
    char *rest = NULL;
    for (char *word = strtok_r(copy, ", ", &rest); word != NULL; word = strtok_r(NULL, ", ", &rest)) {
        char *address = client_endpoint_parse(word, err);
        if (address == NULL)
            return -EINVAL;
        if (client->n_endpoints == ENDPOINTS_MAX) {
            free(address);
            return error_set(err, -E2BIG, ERROR_INVALID, "more than %d endpoints", ENDPOINTS_MAX);
        }
        client->endpoints[client->n_endpoints++] = address;
    }
    return 0;
}

static const char *given(const char *option, const char *variable)
{
    const char *value = option ? option : getenv(variable);
    return value != NULL && *value != '\0' ? value : NULL;
}

/* Our own certificate names the cluster: spiffe://drover/<cluster>/user/<name>. Any certificate of the cluster's
 * authority would do for TLS, those of hosts included, and a host is not to see what is meant for a controller. */
static int load_identity(struct client *client, const char *ca, const char *cert, const char *key, struct error *err)
{
    static const char scheme[] = "spiffe://drover/";
    CLEANUP_FREE char *pem = NULL;
    struct pki_info info;
    int rc = tls_context_load(ca, cert, key, &client->tls, err);
    if (rc == -EINVAL)
        error_prefix(err, "%s, %s, %s: ", ca, cert, key);
    if (rc == 0)
        rc = file_read(cert, TLS_PEM_BYTES_MAX, &pem, NULL, err);
    if (rc == 0)
        rc = pki_read_info(pem, &info, err);
    if (rc < 0)
        return rc;
    const char *cluster = info.uri + strlen(scheme);
    size_t length = strncmp(info.uri, scheme, strlen(scheme)) == 0 ? strcspn(cluster, "/") : 0;
    if (length == 0 || cluster[length] != '/')
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is not a certificate that a Drover cluster gave out", cert);
    client->controllers = xasprintf("%s%.*s/controller/", scheme, (int)length, cluster);
    return 0;
}

int client_init(struct client *client, const struct invocation *call, struct error *err)
{
    const char *endpoint = given(call->endpoint, "DROVER_ENDPOINT");
    *client = (struct client){.timeout_s = call->timeout_s};
    if (endpoint != NULL && call->context == NULL) {
        const char *ca = given(call->ca, "DROVER_CA"), *cert = given(call->cert, "DROVER_CERT"), *key = given(call->key, "DROVER_KEY");
        if (ca == NULL || cert == NULL || key == NULL)
            return error_set(err, -EINVAL, ERROR_INVALID,
                             "an endpoint needs --ca, --cert and --key too (or DROVER_CA, DROVER_CERT, DROVER_KEY)");
        int rc = add_endpoints(client, endpoint, err);
        return rc < 0 ? rc : load_identity(client, ca, cert, key, err);
    }
    struct cli_context context = {0};
    int rc = context_current(call->context, &context, err);
    for (size_t i = 0; rc == 0 && i < context.endpoints.count; i++)
        rc = add_endpoints(client, context.endpoints.items[i], err);
    if (rc == 0)
        rc = load_identity(client, context.ca, context.cert, context.key, err);
    OBJECT_CLEAR(cli_context, &context);
    return rc;
}

void client_finish(struct client *client)
{
    for (size_t i = 0; i < client->n_endpoints; i++)
        free(client->endpoints[i]);
    tls_context_unref(client->tls);
    free(client->controllers);
    *client = (struct client){0};
}

void reply_finish(struct reply *reply)
{
    json_decref(reply->json);
    free(reply->body);
    *reply = (struct reply){0};
}

static void random_key(char key[40])
{
    uint8_t r[16];
    ASSERT(getrandom(r, sizeof r, 0) == (ssize_t)sizeof r);
    r[6] = (uint8_t)((r[6] & 0x0f) | 0x40); /* RFC 9562: version 4, variant 10 */
    r[8] = (uint8_t)((r[8] & 0x3f) | 0x80);
    snprintf(key, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", r[0], r[1], r[2], r[3], r[4], r[5],
             r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]);
}

/* An answer of 400 and above in words; the problem document's own where there is one. */
static int problem_error(const struct reply *reply, struct error *err)
{
    struct problem p;
    if (reply->body != NULL && OBJECT_DECODE(problem, reply->body, reply->body_size, OBJECT_LENIENT, &p, NULL) == 0) {
        const struct problem_field *f = p.errors.count ? p.errors.items : NULL;
        error_set_field(err, -EPROTO, p.code ? error_kind_from_code(p.code) : ERROR_INTERNAL, f && f->pointer ? f->pointer : "",
                        "%s", p.detail ? p.detail : p.title ? p.title : "the controller gave no reason");
        OBJECT_CLEAR(problem, &p);
        return -EPROTO;
    }
    return error_set(err, -EPROTO, ERROR_INTERNAL, "the controller answered with status %d and no reason", reply->status);
}

static void take_cursor(const struct http_answer *answer, void *arg)
{
    struct reply *reply = arg;
    const char *cursor = http_answer_header(answer, "X-Drover-Cursor");
    snprintf(reply->cursor, sizeof reply->cursor, "%s", cursor ? cursor : "");
}

static int attempt(struct client *client, const struct http_call_options *base, const char *path, struct reply *ret, struct error *err)
{
    CLEANUP_FREE char *url = xasprintf("https://%s%s", client_endpoint(client), path);
    struct http_call_options options = *base;
    options.url = url;
    options.tls = client->tls;
    options.peer_prefix = client->controllers;
    options.done = take_cursor;
    options.arg = ret;
    reply_finish(ret);
    return http_client_perform(&options, &ret->status, &ret->body, &ret->body_size, err);
}

/* Worth another try: nobody there, nobody leading, too busy, a leader that did not answer the controller in between (504). */
static bool again(int rc, const struct reply *reply)
{
    return rc == 0 ? reply->status >= 502 && reply->status <= 504 : rc != -EINVAL && rc != -EACCES && rc != -EMSGSIZE;
}

/* The URL says nothing that the endpoint does not. */
static void name_endpoint(const struct client *client, struct error *err)
{
    const char *words = err != NULL && strncmp(err->text, "https://", 8) == 0 ? strstr(err->text, ": ") : NULL;
    if (words != NULL)
        memmove(err->text, words + 2, strlen(words + 2) + 1);
    error_prefix(err, "%s: ", client_endpoint(client));
}

int client_request(struct client *client, const char *method, const char *path, const json_t *body, struct reply *ret,
                   struct error *err)
{
    char key_header[64], if_match[48], key[40];
    uint64_t end = now_ms() + (uint64_t)client->timeout_s * 1000;
    CLEANUP_FREE char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    random_key(key);
    snprintf(key_header, sizeof key_header, "Idempotency-Key: %s", key);
    snprintf(if_match, sizeof if_match, "If-Match: \"%" PRIu64 "\"", client->if_revision);
    bool writes = strcmp(method, "GET") != 0;
    const char *headers[] = {"Accept: application/json", writes ? key_header : NULL,
                             writes && client->if_revision != 0 ? if_match : NULL, NULL};
    struct http_call_options options = {
        .method = method, .headers = headers, .body = text, .body_size = text ? strlen(text) : 0, .content_type = "application/json"};
    bool unsure = false; /* an earlier attempt may have been carried out */
    int rc;
    *ret = (struct reply){0};
    for (unsigned tries = 0;; tries++) {
        uint64_t left = end - MIN(end, now_ms());
        bool waits = strstr(path, "wait=") != NULL;
        options.deadline_ms = (unsigned)MAX(waits ? left : MIN(left, (uint64_t)ATTEMPT_MS), (uint64_t)100);
        rc = attempt(client, &options, path, ret, err);
        if (!again(rc, ret) || now_ms() + PAUSE_MS >= end)
            break;
        unsure = unsure || (rc < 0 && rc != -ECONNREFUSED) || (rc == 0 && ret->status == 504); /* others say that nothing was done */
        client->at = (client->at + 1) % client->n_endpoints;
        if (tries % client->n_endpoints == client->n_endpoints - 1)
            pause_ms(PAUSE_MS);
    }
    if (rc < 0) {
        name_endpoint(client, err);
        if (err != NULL && err->kind == ERROR_INTERNAL)
            err->kind = rc == -ETIMEDOUT ? ERROR_TIMEOUT : ERROR_UNREACHABLE;
        if (client->n_endpoints > 1 && err != NULL && (err->kind == ERROR_TIMEOUT || err->kind == ERROR_UNREACHABLE))
            error_prefix(err, "none of %zu controllers answers, the last one asked was ", client->n_endpoints);
        return rc;
    }
    if (unsure && ret->status == 404 && strcmp(method, "DELETE") == 0)
        ret->status = 204; /* our own earlier attempt removed it */
    if (ret->status >= 400)
        return problem_error(ret, err);
    if (ret->body_size > 0)
        ret->json = json_loadb(ret->body, ret->body_size, JSON_REJECT_DUPLICATES, NULL);
    return 0;
}

int client_attempt(struct client *client, const char *method, const char *path, const json_t *body, unsigned deadline_ms,
                   struct reply *ret, struct error *err)
{
    struct error unheard = {.code = 0}, *words = err != NULL ? err : &unheard;
    CLEANUP_FREE char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    const char *const headers[] = {"Accept: application/json", NULL};
    const struct http_call_options options = {.method = method,
                                              .headers = headers,
                                              .body = text,
                                              .body_size = text ? strlen(text) : 0,
                                              .content_type = "application/json",
                                              .deadline_ms = deadline_ms};
    *ret = (struct reply){0};
    int rc = attempt(client, &options, path, ret, words);
    if (rc < 0)
        name_endpoint(client, words);
    else if (ret->status >= 400)
        rc = problem_error(ret, words);
    else if (ret->body_size > 0)
        ret->json = json_loadb(ret->body, ret->body_size, JSON_REJECT_DUPLICATES, NULL);
    if (rc < 0)
        client->at = (client->at + 1) % client->n_endpoints;
    return rc;
}

int client_transfer(struct client *client, const struct http_call_options *base, const char *path, int *ret_status,
                    bool *ret_again, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *url = xasprintf("https://%s%s", client_endpoint(client), path);
    struct http_call_options options = *base;
    options.url = url;
    options.tls = client->tls;
    options.peer_prefix = client->controllers;
    int rc = http_client_perform(&options, &reply.status, &reply.body, &reply.body_size, err);
    *ret_again = again(rc, &reply);
    *ret_status = reply.status;
    if (rc < 0)
        name_endpoint(client, err);
    else if (reply.status >= 400)
        rc = problem_error(&reply, err);
    if (*ret_again)
        client->at = (client->at + 1) % client->n_endpoints;
    reply_finish(&reply);
    return rc;
}

int client_list(struct client *client, enum route_id route, const char *filter, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *escaped = client_escape(filter != NULL ? filter : "");
    CLEANUP_FREE char *cursor = xstrdup("");
    json_t *all = json_array();
    for (;;) {
        struct reply reply;
        CLEANUP_FREE char *query = xasprintf("?limit=%d%s%s%s%s", LIST_PAGE, *escaped ? "&filter=" : "", escaped,
                                             *cursor ? "&cursor=" : "", cursor);
        CLEANUP_FREE char *path = client_path(route, "", query);
        int rc = client_request(client, "GET", path, NULL, &reply, err);
        if (rc == 0 && !json_is_array(reply.json))
            rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's list is not a list");
        if (rc < 0) {
            reply_finish(&reply);
            json_decref(all);
            return rc;
        }
        json_array_extend(all, reply.json);
        free(TAKE_PTR(cursor));
        cursor = client_escape(reply.cursor);
        bool more = *cursor != '\0';
        reply_finish(&reply);
        if (!more)
            break;
    }
    *ret = all;
    return 0;
}
