/* The query parameters of a request, all of them, checked against what its route takes: an unknown or misspelt one is
 * refused, because a dropped ?dry_run=true or ?filter= would do something else than was asked. Pure. */
#ifndef CONTROLLER_API_API_QUERY_H
#define CONTROLLER_API_API_QUERY_H

#include "common/http_server.h"
#include "schema/routes.h"

#define API_QUERY_WAIT_MS_MAX 300000u
#define API_QUERY_LIMIT_MAX 20000
#define API_QUERY_TEXT_MAX 512

struct api_query {
    bool stale; /* ?consistency=stale */
    bool dry_run, force;
    uint32_t wait_ms; /* 0: do not wait */
    uint32_t limit;   /* 0: all */
    bool has_after;
    uint64_t after; /* events: index after which to begin */
    char filter[API_QUERY_TEXT_MAX];
    char fields[API_QUERY_TEXT_MAX];
    char cursor[64];  /* name after which the list goes on; "" = from the start */
    char kind[32];    /* events: of objects of this kind only */
    char object[64];  /* events: of the object with this id or name only */
    char ticket[129]; /* console */
};

/* -EINVAL with the parameter as field ("?limit"). */
int api_query_parse(const struct http_request *request, const struct route_desc *route, struct api_query *ret_query,
                    struct error *err);
/* "30s", "500ms", "2m" or plain seconds, as milliseconds. -EINVAL. */
int api_query_duration(const char *text, uint32_t max_ms, uint32_t *ret_ms);

#endif
