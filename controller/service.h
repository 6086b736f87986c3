/* One running controller: the struct that owns all of its parts, and what happens when Raft tells of a new leader or
 * of applied commands.
 *
 *             +-------------------- API loop = main thread -----------------------------+
 *   clients --> http_server -> api/ (accept, authorise, decide, answer)  driver (reconcile)|
 *             |      |  forwards: http_proxy          reads `state` under the read lock    |
 *             +------|----------------------------------------------------------------------+
 *                    v propose, barrier        ^ results, leader, applied (reply loop)
 *             +-------------------- raft_node's own thread: log, peers, apply under the write lock
 *
 * All members belong to the main thread but `state`, which is shared under `state_lock` and read for short times. */
#ifndef CONTROLLER_SERVICE_H
#define CONTROLLER_SERVICE_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <pthread.h>
#include <uv.h>

#include "common/http_proxy.h"
#include "common/http_server.h"
#include "common/loop_meter.h"
#include "common/tls.h"
#include "controller/api/api.h"
#include "controller/controller_drill.h"
#include "controller/data_dir.h"
#include "controller/driver.h"
#include "controller/fsm/state.h"
#include "controller/lease_driver.h"
#include "controller/raft/raft_node.h"

#define SERVICE_TRANSFER_WAIT_MS 3000u /* at SIGTERM, for another leader to be found */

struct service_options {
    const char *listen; /* of the API; NULL: the address of the identity */
};

struct service {
    struct data_dir dir;
    char *ca_sha256; /* fingerprint of the CA certificate, for join tokens */
    uv_loop_t *loop;
    struct tls_context *tls;
    struct state *state;
    pthread_rwlock_t state_lock;
    struct raft_node *raft;
    struct raft_node_leader leader; /* as last told */
    bool ready;                     /* this one leads, and all that was acknowledged before is applied here */
    uint64_t ready_since_ms;        /* steady clock */
    uint64_t applied_index;
    bool change_busy;            /* a change of Raft's configuration is under way */
    unsigned voters_asked;       /* commands that change who counts: proposed, and not answered */
    uint64_t membership_next_ms; /* no change of ours before this time */
    uint64_t voters_wait_ms, voters_say_ms; /* a change of who counts waits for the last one: since when, 0: none; said again at */
    uint64_t welcome_since_ms;   /* a controller is kept from counting, as hosts do not have its support yet; 0: none */
    bool init_proposed;          /* and not answered */
    bool init_file_gone;         /* init.json, recover.json */
    bool barrier_busy;           /* service_become_ready's */
    bool stopping, closing;
    uv_signal_t signals[2]; /* SIGTERM, SIGINT */
    uv_timer_t stop_timer, watchdog_timer;
    struct controller_drill drill;
    bool restart; /* after the loop has ended: start again */
    struct loop_meter meter; /* of the API loop */
    struct api api;
    struct driver driver;
    struct lease_driver leases;
};

/* @dir has been loaded and is taken over. Blocks while the Raft log is read. */
int service_start(struct service *service, uv_loop_t *loop, struct data_dir *dir,
                  const struct service_options *options, struct error *err);
/* Hand leadership over, end every request, stop Raft; the loop then ends by itself. */
void service_stop(struct service *service);
/* After the loop has ended. */
void service_finish(struct service *service);

/* Does this one lead, as far as it knows? */
bool service_leads(const struct service *service);
/* Barrier of a new leader: until it succeeds the state may lack what was acknowledged before. */
void service_become_ready(struct service *service);
/* A peer or a host is at a higher epoch of the cluster, which was recovered without this controller: says so in the data
 * directory and ends the process. Any thread. */
#define SERVICE_EPOCHS_AHEAD_MAX 1000u

/* A host with our certificate follows @epoch of the cluster. One above ours ends this process: the cluster was recovered without us, and
 * what we order would be carried out beside what it orders. -EINVAL: it is so far ahead that no recoveries can have made it. */
int service_hears_epoch(struct service *service, const char *host, uint64_t epoch, struct error *err);
_Noreturn void service_superseded(struct service *service, uint64_t epoch);
/* raft_node_change, one at a time with those of the membership driver. @done must call service_change_done first. */
int service_change(struct service *service, enum raft_node_change change, uint64_t raft_id, const char *address,
                   raft_node_change_cb done, void *arg, struct error *err);
void service_change_done(struct service *service);
bool service_is_voter(struct service *service, uint64_t raft_id);
/* Is every member that Raft counts, or may count again, in the table of controllers? */
bool service_members_follow(struct service *service);
unsigned service_voters(struct service *service);
/* May the controllers with a vote change now? Not before a majority has told its hosts of the last change (controller/lease/), nor
 * while one is being agreed. */
bool service_voters_settled(struct service *service);
/* For whom that waits, a sentence for operators. */
void service_voters_wait_for(struct service *service, struct lease_judge_words *ret);
/* Let the state be read; short. */
static inline void service_lock_state(struct service *service)
{
    ASSERT(pthread_rwlock_rdlock(&service->state_lock) == 0);
}
static inline void service_unlock_state(struct service *service)
{
    ASSERT(pthread_rwlock_unlock(&service->state_lock) == 0);
}

#endif
