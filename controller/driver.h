/* The reconciler's driver: on a ready leader it runs controller/reconcile at a steady pace and soon after changes,
 * and proposes what it says. One run at a time: the next begins when every command of the last one is answered. It
 * also keeps the leader's volatile table of when each host last reported. */
#ifndef CONTROLLER_DRIVER_H
#define CONTROLLER_DRIVER_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/map.h"
#include "controller/reconcile/reconcile.h"

#define DRIVER_TICK_MS 200u /* between runs while nothing else asks for one */
#define DRIVER_SOON_MS 20u  /* after a change of the state */
#define DRIVER_FULL_TOLD_MS 600000u
/* At least so many times the last run's time lie between runs: a tenth of the loop at most. */
#define DRIVER_REST 10u

struct service;

struct driver_node {
    char host[64];
    uint64_t last_report_ms; /* steady clock */
};

struct driver {
    struct service *service;
    uv_timer_t timer;
    struct map nodes;     /* host id -> struct driver_node */
    unsigned outstanding; /* commands proposed and not answered */
    uint64_t last_us;     /* time that the last run took */
    bool again;           /* there was more to do */
    uint64_t full_told_ms; /* when the log was last told that a table is full; 0: never */
    char resume_after[RECONCILE_NAME_SIZE]; /* where the round goes on */
};

void driver_start(struct driver *driver, struct service *service);
/* Leadership lost or won: forget the volatile table. */
void driver_reset(struct driver *driver);
/* The state has changed. */
void driver_wake(struct driver *driver);
/* An agent's report has come. */
void driver_seen(struct driver *driver, const char *host_id);
void driver_stop(struct driver *driver);   /* closes the timer */
void driver_finish(struct driver *driver); /* after the loop has ended */

#endif
