/* The REST API of a controller: HTTPS with mutual TLS, the routes of schema/routes.def, one handler each.
 *
 *   handler of http_server -> api_call_start (api_call.c): accept, authorise
 *      -> not the leader: forward (api_forward.c) -> leader: read after a barrier, or decide and propose
 *      -> answer
 *
 * Everything here runs on the API loop's thread. Limits are named in this file; every wait has a deadline. */
#ifndef CONTROLLER_API_API_H
#define CONTROLLER_API_API_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/http_proxy.h"
#include "common/http_server.h"
#include "common/list.h"
#include "common/map.h"
#include "controller/api/api_metrics.h"
#include "controller/api/console_ticket.h"

#define API_TICK_MS 50u /* how late a deadline may be noticed */
#define API_LEADER_WAIT_MS 2000u /* to find and reach a leader, before 503; an election takes 0.5 to 1.5 s */
#define API_CONNECT_MS 1000u  /* to the leader */
#define API_MEMBER_WAIT_MS 10000u /* for Raft to leave out a controller that was removed */
#define API_ATTEMPTS_MAX 8u   /* tries of one request across changes of leader */
#define API_WAITING_MAX 8192u /* requests that wait for something, of all kinds */
#define API_WATCHERS_MAX 2048u
#define API_POLLS_MAX 4096u    /* agents' long polls */
#define API_JSON_BYTES_MAX (1u << 20) /* of a body that is not a piece of an upload */
#define API_KEY_BYTES_MAX 255u /* of an Idempotency-Key */

struct service;

struct api {
    struct service *service;
    struct http_server *server;
    struct http_proxy *proxy;
    uv_timer_t timer;
    struct list leader_waiters;    /* api_call: no leader, or not yet ready */
    struct list operation_waiters; /* api_call: ?wait= */
    struct list polls;             /* api_call: node reports */
    struct list member_waiters;    /* api_call: Raft's configuration has to follow the table */
    struct list list_waiters;      /* api_call: long lists, which a thread makes one by one (api_read.c) */
    bool list_busy;
    struct list watchers;          /* api_watch.c */
    size_t watch_due;              /* watchers, from the first of the list, that have to be given what is new */
    uv_idle_t watch_idle;          /* active while there are any */
    size_t waiting, watcher_count, poll_count;
    struct map keys; /* Idempotency-Key -> api_call in flight */
    struct console_tickets tickets;
    struct api_metrics metrics;
    struct bytes_writer cluster_metrics; /* of a large cluster, as last made (api_system.c) */
    uint64_t cluster_metrics_until_ms;   /* steady clock: good for so long */
    uint64_t started_ms;
    uint64_t drill_until_ms; /* steady clock: until then a host is silent, and no other is to be */
    char drill[64];          /* the drill that made it so */
    unsigned image_turn; /* whose turn it is to give an image's content */
    bool stopping, server_closed, proxy_closed;
};

/* @address: where to listen. */
int api_start(struct api *api, struct service *service, const char *address, struct error *err);
/* End all that waits, with an answer where one can be given. The raft node must still be there. */
void api_stop(struct api *api);
void api_finish(struct api *api); /* after the loop has ended */
/* Raft tells of another leader, or this one has become ready. */
void api_leader_changed(struct api *api);
/* Commands up to the controller's applied_index are applied here. */
void api_applied(struct api *api);

#endif
