/* What drills are made of; see the header. */
#include "cli/drill_steps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/drill_text.h"
#include "cli/output.h"

#define MIGRATE_S 120
#define LOOK_US 100000
#define ATTEMPT_MS 5000
#define RESERVE_S 240 /* longer than any fault, and than what is waited for behind it until the next order */
#define KNOW_S 10

void drill_pause_us(int64_t us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000}, NULL);
}

void drill_fail(struct drill *d, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_array_append_new(d->failures, json_string(text));
    drill_watch_note(&d->watch, text);
}

void drill_tell(struct drill *d, const char *format, ...)
{
    char text[400], clean[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    drill_watch_note(&d->watch, text);
    output_progress(d->call, output_clean(text, clean, sizeof clean), true);
}

/* ---- requests ---- */

int drill_get(struct drill *d, const char *path, json_t **ret, struct error *err)
{
    struct reply reply = {0};
    int rc = client_request(&d->client, "GET", path, NULL, &reply, err);
    if (rc == 0)
        *ret = json_incref(reply.json);
    reply_finish(&reply);
    return rc;
}

/* At the controller @name itself. */
bool drill_turn_to(struct drill *d, const char *name)
{
    const json_t *controller;
    size_t i;
    json_array_foreach(d->controllers, i, controller)
        if (strcmp(json_text(controller, "name"), name) == 0 && i < d->client.n_endpoints) {
            d->client.at = i;
            return true;
        }
    return false;
}

int drill_reserve(struct drill *d, struct error *err)
{
    struct reply reply = {0};
    json_t *body = json_pack("{s:s, s:i}", "drill", d->id, "seconds", RESERVE_S);
    int rc = client_request(&d->client, "POST", "/v1/drill", body, &reply, err);
    json_decref(body);
    reply_finish(&reply);
    return rc;
}

int drill_release(struct drill *d, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_drill_end, d->id, "");
    int rc = client_request(&d->client, "DELETE", path, NULL, &reply, err);
    reply_finish(&reply);
    return rc;
}

/* A controller that lags may not know of the drill yet. */
static bool knows_of_drill(struct drill *d, const void *arg)
{
    struct reply reply = {0};
    bool knows = drill_turn_to(d, arg) &&
                 client_attempt(&d->client, "GET", "/v1/cluster?consistency=stale", NULL, ATTEMPT_MS, &reply, NULL) == 0 &&
                 strcmp(json_text(reply.json, "drill"), d->id) == 0;
    reply_finish(&reply);
    return knows;
}

static int order(struct drill *d, enum route_id route, const char *target, const char *fault, unsigned seconds, json_t *more, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(route, target, "");
    json_t *body = json_pack("{s:s, s:s, s:i}", "drill", d->id, "fault", fault, "seconds", (int)seconds);
    if (more != NULL)
        json_object_update(body, more);
    int rc = client_attempt(&d->client, "POST", path, body, ATTEMPT_MS, &reply, err);
    json_decref(body);
    reply_finish(&reply);
    return rc;
}

int drill_order_host(struct drill *d, const char *fault, unsigned seconds, json_t *more, struct error *err)
{
    int rc = drill_reserve(d, err);
    return rc == 0 ? order(d, ROUTE_ID_host_drill, d->host, fault, seconds, more, err) : rc;
}

int drill_order_controller(struct drill *d, const char *controller, const char *fault, unsigned seconds, json_t *more, struct error *err)
{
    int rc = drill_reserve(d, err);
    if (rc < 0)
        return rc;
    if (!drill_wait(d, knows_of_drill, controller, KNOW_S))
        return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "controller %s does not answer, or lags behind the others", controller);
    drill_turn_to(d, controller);
    return order(d, ROUTE_ID_controller_drill, controller, fault, seconds, more, err);
}

bool drill_leads(struct drill *d, const char *controller)
{
    json_t *now = NULL;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_controller_show, controller, "");
    bool yes = drill_get(d, path, &now, NULL) == 0 && json_is_true(json_object_get(now, "leader"));
    json_decref(now);
    return yes;
}

int drill_hand_over(struct drill *d, const char *controller, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_controller_transfer, controller, "");
    int rc = client_request(&d->client, "POST", path, NULL, &reply, err);
    reply_finish(&reply);
    return rc;
}

/* ---- waits ---- */

bool drill_wait(struct drill *d, drill_condition holds, const void *arg, unsigned seconds)
{
    int64_t end_us = drill_now_us() + (int64_t)seconds * 1000000;
    while (!holds(d, arg)) {
        if (drill_now_us() > end_us)
            return false;
        drill_pause_us(LOOK_US);
    }
    return true;
}

bool drill_controller_ready(struct drill *d, const void *arg)
{
    struct reply reply = {0};
    bool ready = drill_turn_to(d, arg) && client_attempt(&d->client, "GET", "/readyz", NULL, 1000, &reply, NULL) == 0;
    reply_finish(&reply);
    return ready;
}

struct write_wait {
    uint64_t writes;
};

static bool writes_go_on(struct drill *d, const void *arg)
{
    const struct write_wait *wait = arg;
    pthread_mutex_lock(&d->watch.lock);
    bool on = d->watch.writes > wait->writes;
    pthread_mutex_unlock(&d->watch.lock);
    return on;
}

void drill_await_writes(struct drill *d, const char *after)
{
    pthread_mutex_lock(&d->watch.lock);
    struct write_wait wait = {d->watch.writes + 3};
    pthread_mutex_unlock(&d->watch.lock);
    if (!drill_wait(d, writes_go_on, &wait, DRILL_WAIT_MORE_S))
        drill_fail(d, "the API answers no writes %d s after %s", DRILL_WAIT_MORE_S, after);
}

/* ---- putting back ---- */

void drill_note_put_back(struct drill *d, const char *what, int rc, const struct error *err)
{
    json_array_append_new(d->put_back, json_pack("{s:s, s:b, s:s}", "what", what, "ok", rc == 0, "detail", rc == 0 ? "" : err->text));
    drill_tell(d, "%s%s%s", what, rc == 0 ? "" : ": ", rc == 0 ? "" : err->text);
}

int drill_await_operation(struct drill *d, const char *id, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_operation_show, id, "?wait=2s");
    for (int64_t end_us = drill_now_us() + (int64_t)MIGRATE_S * 1000000; drill_now_us() < end_us;) {
        json_t *o = NULL;
        int rc = drill_get(d, path, &o, err);
        const char *state = json_text(o, "state");
        bool ended = rc < 0 || strcmp(state, "running") != 0;
        if (rc == 0 && ended && strcmp(state, "succeeded") != 0)
            rc = error_set(err, -EPROTO, ERROR_CONFLICT, "%s", json_text(o, "error_text"));
        json_decref(o);
        if (ended)
            return rc;
    }
    return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "it is not done after %d s", MIGRATE_S);
}

void drill_await_controller(struct drill *d, const char *controller)
{
    if (drill_wait(d, drill_controller_ready, controller, DRILL_WAIT_MORE_S))
        drill_tell(d, "controller %s is ready again", controller);
    else
        drill_fail(d, "controller %s is not ready %d s after it was to be", controller, DRILL_WAIT_MORE_S);
}

void drill_await_end(struct drill *d, unsigned seconds)
{
    int64_t left_us = d->fault_us + seconds * INT64_C(1000000) - drill_now_us();
    drill_pause_us(MAX(left_us, (int64_t)0));
}

void drill_step(struct drill *d, const char *name, int64_t begin_us)
{
    json_array_append_new(d->steps, json_pack("{s:s, s:I}", "step", name, "ms", (json_int_t)((drill_now_us() - begin_us) / 1000)));
}

int drill_do(struct drill *d, const char *method, const char *path, const json_t *body, json_t **ret, struct error *err)
{
    struct reply reply = {0};
    int rc = client_request(&d->client, method, path, body, &reply, err);
    if (rc == 0 && reply.status == 202)
        rc = drill_await_operation(d, json_text(reply.json, "id"), err);
    if (rc == 0 && ret != NULL)
        *ret = json_incref(reply.json);
    reply_finish(&reply);
    return rc;
}
