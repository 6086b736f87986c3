/* Leases at work in a controller: its table of supports (any controller), and on a ready leader the looks at the other
 * controllers and the judgement of hosts, whose commands are proposed.
 *
 *   api_node_lease, api_lease_look (api/api_lease.c) ---> table
 *   timer, leader: own view and POST /v1/controller/lease to each other voter ---> judge ---> host_suspect, _lost, _clear
 *
 * Answers need neither Raft nor a log write. The API loop's thread. */
#ifndef CONTROLLER_LEASE_DRIVER_H
#define CONTROLLER_LEASE_DRIVER_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/http_client.h"
#include "controller/lease/lease_judge.h"

#define LEASE_DRIVER_TICK_MS 50u
#define LEASE_DRIVER_LOOK_DEADLINE_MS 1500u

struct service;

struct lease_driver_peer {
    struct lease_driver *driver; /* NULL: free */
    uint64_t raft_id;
    char address[256];
    struct http_call *call;
    uint64_t term, next_ms; /* of the look under way; steady clock */
    bool named;             /* still a voter */
};

struct lease_driver {
    struct service *service;
    struct http_client *http;
    struct lease_table table;
    struct lease_judge judge;
    struct lease_driver_peer peers[LEASE_VOTERS_MAX];
    uv_timer_t timer;
    uint64_t own_next_ms;
    unsigned outstanding; /* commands proposed and not answered */
    bool suspects;        /* look often */
    bool stopping;
};

int lease_driver_start(struct lease_driver *driver, struct service *service, struct error *err);
/* Leadership lost or won: forget what was looked at. */
void lease_driver_reset(struct lease_driver *driver);
/* Commands have been applied. */
void lease_driver_applied(struct lease_driver *driver);
void lease_driver_stop(struct lease_driver *driver);
void lease_driver_finish(struct lease_driver *driver); /* after the loop has ended */
/* Nanoseconds of CLOCK_BOOTTIME. */
uint64_t lease_driver_now_ns(void);

#endif
