/* Who asks and whether they may. */
#include "controller/api/api_caller.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const role_words[] = {
    [ROUTE_ANY] = "anonymous", [ROUTE_USER] = "user", [ROUTE_HOST] = "host", [ROUTE_CONTROLLER] = "controller"};

/* spiffe://drover/<cluster id>/<role>/<id> */
static bool parse_identity(const char *uri, const char *cluster_id, struct api_caller *caller)
{
    static const char scheme[] = "spiffe://drover/";
    size_t cluster_length = strlen(cluster_id);
    if (strncmp(uri, scheme, strlen(scheme)) != 0)
        return false;
    const char *at = uri + strlen(scheme);
    if (strncmp(at, cluster_id, cluster_length) != 0 || at[cluster_length] != '/')
        return false;
    at += cluster_length + 1;
    for (enum route_role role = ROUTE_USER; role <= ROUTE_CONTROLLER; role++) {
        size_t n = strlen(role_words[role]);
        if (strncmp(at, role_words[role], n) != 0 || at[n] != '/')
            continue;
        const char *id = at + n + 1, *rule;
        if (*id == '\0' || strlen(id) >= sizeof caller->id || strchr(id, '/') != NULL ||
            !text_format_ok(FORMAT_any, id, &rule))
            return false;
        caller->role = role;
        snprintf(caller->id, sizeof caller->id, "%s", id);
        snprintf(caller->text, sizeof caller->text, "%s/%s", role_words[role], caller->id);
        snprintf(caller->identity, sizeof caller->identity, "%s", uri);
        return true;
    }
    return false;
}

/* A browser sends the certificate of its user along with whatever a page of anybody makes it send, forms and
 * WebSockets included, and says in Origin whose page that was (Fetch standard, RFC 6454). Programs send none. */
static int check_origin(const struct http_request *request, const struct api_caller *caller, struct error *err)
{
    static const char scheme[] = "https://";
    const char *origin = http_request_header(request, "Origin"), *host = http_request_header(request, "Host");
    if (origin == NULL || caller->role == ROUTE_ANY ||
        (host != NULL && strncmp(origin, scheme, strlen(scheme)) == 0 && strcmp(origin + strlen(scheme), host) == 0))
        return 0;
    return error_set_field(err, -EACCES, ERROR_FORBIDDEN, "Origin",
                           "is not this controller's: a page of another site may not use your certificate");
}

int api_caller_find(const struct http_request *request, const char *cluster_id, struct api_caller *ret_caller,
                    struct error *err)
{
    struct api_caller caller = {.role = ROUTE_ANY, .text = "anonymous"}, original = caller;
    if (request->peer[0] != '\0' && !parse_identity(request->peer, cluster_id, &caller))
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED, "your certificate is not one of this cluster's");
    if (check_origin(request, &caller, err) < 0)
        return -EACCES;
    const char *claimed = http_request_header(request, API_CALLER_HEADER);
    if (claimed == NULL) {
        *ret_caller = caller;
        return 0;
    }
    if (caller.role != ROUTE_CONTROLLER)
        return error_set(err, -EACCES, ERROR_FORBIDDEN, "only controllers may send " API_CALLER_HEADER);
    if (claimed[0] != '\0' && !parse_identity(claimed, cluster_id, &original))
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED, "the forwarded identity is not one of this cluster's");
    const char *hops = http_request_header(request, API_CALLER_HOPS_HEADER);
    original.hops = hops != NULL && hops[0] > '0' && hops[0] <= '9' ? (unsigned)(hops[0] - '0') : 1;
    *ret_caller = original;
    return 0;
}

int api_caller_authorise(const struct api_caller *caller, const struct route_desc *route, struct error *err)
{
    if (route->role == ROUTE_ANY || route->role == caller->role)
        return 0;
    if (caller->role == ROUTE_ANY)
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED,
                         "this needs a client certificate of a %s; the CLI takes it from its context",
                         role_words[route->role]);
    return error_set(err, -EACCES, ERROR_FORBIDDEN, "this is for certificates of a %s; yours is of a %s",
                     role_words[route->role], role_words[caller->role]);
}
