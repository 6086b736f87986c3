/* Who asks: the identity in the client's certificate, or, on a request that another controller forwarded, the one
 * that controller vouches for. Authorisation is by role alone: user, host (only for itself), controller. Pure. */
#ifndef CONTROLLER_API_API_CALLER_H
#define CONTROLLER_API_API_CALLER_H

#include "common/http_server.h"
#include "schema/routes.h"

/* Header with the original identity (empty: none) on requests from one controller to another. */
#define API_CALLER_HEADER "X-Drover-Forwarded-Identity"
#define API_CALLER_HOPS_HEADER "X-Drover-Hops" /* how often it was forwarded, one digit */
#define API_CALLER_HOPS_MAX 3u
#define API_CALLER_ID_MAX 128

struct api_caller {
    enum route_role role; /* ROUTE_ANY: nobody we know */
    char id[API_CALLER_ID_MAX];
    char text[API_CALLER_ID_MAX + 16]; /* "user/admin", "host/<id>"; "anonymous" */
    char identity[256];                /* the whole URI, "" where there is none */
    unsigned hops;                     /* controllers it came through; 0 = straight from the client */
};

/* -EACCES: the certificate is of another cluster, a client claims to be a controller, or a page of another site uses
 * the certificate of whoever looks at it. */
int api_caller_find(const struct http_request *request, const char *cluster_id, struct api_caller *ret_caller,
                    struct error *err);
/* May @caller use @route? -EACCES with ERROR_UNAUTHENTICATED or ERROR_FORBIDDEN. */
int api_caller_authorise(const struct api_caller *caller, const struct route_desc *route, struct error *err);

#endif
