/* The agent's talk with the controllers: it reports, and the answer says what is wanted (POST /v1/node/report).
 *
 *   1. one report at a time; the answer waits at the controller until there is something new (long poll)
 *   2. an answer is obeyed, and the next report sent at once
 *   3. session_poke: something has changed here: a waiting report is taken back and a fresh one sent
 *   4. no answer, or an error: the next controller in turn, after 100 ms doubling to 2 s
 * A report is the whole of what there is and an answer the whole of what is wanted, so any of them may get lost.
 * One thread, the loop's; nothing is called back from inside a call. */
#ifndef COMPUTE_AGENT_SESSION_H
#define COMPUTE_AGENT_SESSION_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/http_client.h"
#include "schema/objects.h"

#define SESSION_WAIT_MS 20000 /* asked of the controller */
#define SESSION_GRACE_MS 8000 /* beyond what was asked: then the controller is taken for dead */
#define SESSION_BACKOFF_MS_MIN 100
#define SESSION_BACKOFF_MS_MAX 2000
#define SESSION_EVERY_MS 20           /* no two reports closer together */
#define SESSION_PATIENCE_DOUBLINGS 5u /* of SESSION_EVERY_MS, before a report is taken back */
#define SESSION_IDLE_MS 500           /* pause after an answer that came early and said nothing new */

struct session;

struct session_options {
    uv_loop_t *loop;
    struct http_client *http;
    struct tls_context *tls;
    const char *peer_prefix;               /* identity that the controllers must have; copied */
    const struct string_list *controllers; /* "host:port"; copied */
    /* Fill *report (zeroed before) but have_index and wait_ms. */
    void (*put_report)(struct node_report *report, void *arg);
    /* May this answer be obeyed? Negative with words: the next controller is asked. May be NULL. */
    int (*accept)(const struct node_orders *orders, void *arg, struct error *err);
    /* Obey an answer; borrowed. */
    void (*obey)(const struct node_orders *orders, void *arg);
    /* The controllers have told other addresses of theirs; borrowed. May be NULL. */
    void (*controllers_changed)(const struct string_list *controllers, void *arg);
    void *arg;
};

struct session_counters {
    uint64_t reports, answers, failures;
    bool connected; /* the last report was answered, or waits for its answer */
};

/* The first report goes out at once. */
struct session *session_start(const struct session_options *options);
void session_stop(struct session *session, void (*stopped)(void *arg), void *arg);
/* The controller that is asked at this time; borrowed until the next turn of the loop. */
const char *session_controller(const struct session *session);
/* Something that put_report() tells has changed. */
void session_poke(struct session *session);
/* Ask for all orders again, as if none had been given. */
void session_ask_again(struct session *session);
/* Report now, to the controller at @controller if it is a known one: the one under way is taken back. */
void session_move(struct session *session, const char *controller);
/* A drill: from true to false nothing is sent, and answers that still come are not obeyed. */
void session_silence(struct session *session, bool silent);
/* Index of the last answer obeyed; does a report wait for its answer? */
uint64_t session_have_index(const struct session *session);
bool session_waits(const struct session *session);
const struct session_counters *session_counters(const struct session *session);

#endif
