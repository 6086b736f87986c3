/* The watchers of a drill; see the header. */
#include "cli/drill_watch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/drill_text.h"

#define ATTEMPT_MS 1500
#define PAGE "limit=1000"

int64_t drill_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int drill_client(struct client *client, const struct invocation *call, const json_t *controllers, struct error *err)
{
    const json_t *controller;
    size_t i;
    int rc = client_init(client, call, err);
    if (rc < 0) {
        client_finish(client);
        return rc;
    }
    for (i = 0; i < client->n_endpoints; i++)
        free(client->endpoints[i]);
    client->n_endpoints = 0;
    json_array_foreach(controllers, i, controller)
        if (client->n_endpoints < ENDPOINTS_MAX)
            client->endpoints[client->n_endpoints++] = xstrdup(json_text(controller, "address"));
    return 0;
}

static bool goes_on(struct drill_watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    bool on = !watch->stop;
    pthread_mutex_unlock(&watch->lock);
    return on;
}

static void rest(int64_t since_us)
{
    int64_t left_us = since_us + DRILL_WATCH_EVERY_US - drill_now_us();
    if (left_us > 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)left_us * 1000}, NULL);
}

/* ---- moments ---- */

/* Locked. */
static void add_moment(struct drill_watch *watch, enum drill_moment_kind kind, const char *subject, const char *value)
{
    if (watch->moment_count == DRILL_WATCH_MOMENTS_MAX)
        return;
    struct drill_moment *m = &watch->moments[watch->moment_count++];
    m->at_us = drill_now_us();
    m->kind = kind;
    snprintf(m->subject, sizeof m->subject, "%s", subject);
    snprintf(m->value, sizeof m->value, "%s", value);
}

void drill_watch_note(struct drill_watch *watch, const char *what)
{
    pthread_mutex_lock(&watch->lock);
    add_moment(watch, DRILL_DONE, what, "");
    pthread_mutex_unlock(&watch->lock);
}

int64_t drill_watch_first(struct drill_watch *watch, enum drill_moment_kind kind, const char *subject, const char *value, int64_t from_us)
{
    int64_t found = -1;
    pthread_mutex_lock(&watch->lock);
    for (size_t i = 0; i < watch->moment_count && found < 0; i++) {
        const struct drill_moment *m = &watch->moments[i];
        if (m->kind == kind && m->at_us >= from_us && (subject == NULL || strcmp(m->subject, subject) == 0) &&
            (value == NULL || strcmp(m->value, value) == 0))
            found = m->at_us;
    }
    pthread_mutex_unlock(&watch->lock);
    return found;
}

/* What was last noted of it; "" = nothing. Locked. */
static const char *last_value(const struct drill_watch *watch, enum drill_moment_kind kind, const char *subject)
{
    for (size_t i = watch->moment_count; i-- > 0;)
        if (watch->moments[i].kind == kind && strcmp(watch->moments[i].subject, subject) == 0)
            return watch->moments[i].value;
    return "";
}

static void note_change(struct drill_watch *watch, enum drill_moment_kind kind, const char *subject, const char *value)
{
    if (*value != '\0' && strcmp(last_value(watch, kind, subject), value) != 0)
        add_moment(watch, kind, subject, value);
}

/* ---- hosts ---- */

static void take_observation(struct drill_watcher *w, const struct reply *reply, int64_t asked_us, int64_t came_us)
{
    struct host_observation o = {.head = {0}};
    if (OBJECT_DECODE(host_observation, reply->body, reply->body_size, OBJECT_LENIENT, &o, NULL) < 0)
        return;
    const struct vm_observation *vms = o.vms.items;
    pthread_mutex_lock(&w->watch->lock);
    for (size_t i = 0; i < o.vms.count; i++)
        drill_runs_add(&w->watch->runs, w->host, &vms[i], asked_us, came_us);
    pthread_mutex_unlock(&w->watch->lock);
    OBJECT_CLEAR(host_observation, &o);
}

static void *watch_host(void *arg)
{
    struct drill_watcher *w = arg;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_host_observation, w->host, "");
    while (goes_on(w->watch)) {
        struct reply reply = {0};
        int64_t asked_us = drill_now_us();
        if (client_attempt(&w->client, "GET", path, NULL, ATTEMPT_MS, &reply, NULL) == 0)
            take_observation(w, &reply, asked_us, drill_now_us());
        reply_finish(&reply);
        rest(asked_us);
    }
    return NULL;
}

/* ---- writes ---- */

/* Locked. */
static void note_answer(struct drill_watch *watch, int64_t last_us, int64_t now_us)
{
    watch->writes++;
    watch->longest_gap_us = MAX(watch->longest_gap_us, now_us - last_us);
    if (now_us - last_us > DRILL_WATCH_GAP_US && watch->gap_count < DRILL_WATCH_GAPS_MAX)
        watch->gaps[watch->gap_count++] = (struct drill_gap){last_us, now_us};
}

static void *watch_writes(void *arg)
{
    struct drill_watcher *w = arg;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_flavor_update, w->watch->flavor, "");
    int64_t last_us = drill_now_us();
    for (unsigned n = 0; goes_on(w->watch); n++) {
        struct reply reply = {0};
        char value[16];
        snprintf(value, sizeof value, "%u", n);
        json_t *body = json_pack("{s:{s:s}}", "labels", "drill", value);
        int64_t asked_us = drill_now_us();
        int rc = client_attempt(&w->client, "PATCH", path, body, ATTEMPT_MS, &reply, NULL);
        int64_t now_us = drill_now_us();
        pthread_mutex_lock(&w->watch->lock);
        if (rc == 0) {
            note_answer(w->watch, last_us, now_us);
            last_us = now_us;
        } else {
            w->watch->writes_failed++;
        }
        pthread_mutex_unlock(&w->watch->lock);
        json_decref(body);
        reply_finish(&reply);
        if (rc == 0)
            rest(asked_us);
        else
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    return NULL;
}

/* ---- the state ---- */

/* @plural with its query begun. */
static json_t *get_list(struct client *client, const char *plural)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = xasprintf("/v1/%sconsistency=stale&" PAGE, plural);
    json_t *list = NULL;
    if (client_attempt(client, "GET", path, NULL, ATTEMPT_MS, &reply, NULL) == 0 && json_is_array(reply.json))
        list = json_incref(reply.json);
    reply_finish(&reply);
    return list;
}

/* Locked. */
static void note_lists(struct drill_watch *watch, const json_t *controllers, const json_t *hosts, const json_t *vms)
{
    const json_t *o;
    size_t i;
    json_array_foreach(controllers, i, o)
        if (json_is_true(json_object_get(o, "leader")))
            note_change(watch, DRILL_LEADER, "cluster", json_text(o, "name"));
    json_array_foreach(hosts, i, o) note_change(watch, DRILL_HOST_STATE, json_text(o, "name"), json_text(o, "state"));
    json_array_foreach(vms, i, o)
    {
        if (!json_is_true(json_object_get(o, "ha")))
            continue;
        note_change(watch, DRILL_VM_HOST, json_text(o, "name"), json_text(o, "host_name"));
        note_change(watch, DRILL_VM_STATE, json_text(o, "name"), json_text(o, "state"));
    }
}

static void *watch_state(void *arg)
{
    struct drill_watcher *w = arg;
    while (goes_on(w->watch)) {
        int64_t asked_us = drill_now_us();
        json_t *controllers = get_list(&w->client, "controllers?"), *hosts = get_list(&w->client, "hosts?");
        json_t *vms = get_list(&w->client, "vms?filter=ha%3Dtrue&");
        pthread_mutex_lock(&w->watch->lock);
        note_lists(w->watch, controllers, hosts, vms);
        pthread_mutex_unlock(&w->watch->lock);
        json_decref(controllers);
        json_decref(hosts);
        json_decref(vms);
        rest(asked_us);
    }
    return NULL;
}

/* ---- life ---- */

static int add_watcher(struct drill_watch *watch, const json_t *controllers, const char *host, void *(*run)(void *arg), struct error *err)
{
    struct drill_watcher *w = &watch->watchers[watch->watcher_count];
    int rc = drill_client(&w->client, watch->call, controllers, err);
    if (rc < 0)
        return rc;
    w->watch = watch;
    w->client.at = watch->watcher_count % MAX(w->client.n_endpoints, (size_t)1);
    snprintf(w->host, sizeof w->host, "%s", host);
    watch->watcher_count++;
    rc = -pthread_create(&w->thread, NULL, run, w);
    w->started = rc == 0;
    return rc < 0 ? error_errno(err, rc, "cannot start a thread") : 0;
}

static int make_flavor(struct drill_watch *watch, const json_t *controllers, bool make, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    int rc = drill_client(&client, watch->call, controllers, err);
    if (rc < 0)
        return rc;
    if (make) {
        json_t *body = json_pack("{s:s, s:i, s:I}", "name", watch->flavor, "vcpus", 1, "memory_bytes", (json_int_t)16777216);
        rc = client_request(&client, "POST", "/v1/flavors", body, &reply, err);
        json_decref(body);
    } else {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_flavor_delete, watch->flavor, "");
        rc = client_request(&client, "DELETE", path, NULL, &reply, err);
    }
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

int drill_watch_start(struct drill_watch *watch, const struct invocation *call, const char *name, const json_t *controllers,
                      const json_t *hosts, struct error *err)
{
    const json_t *host;
    size_t i;
    *watch = (struct drill_watch){.call = call};
    snprintf(watch->flavor, sizeof watch->flavor, "%s", name);
    if (json_array_size(hosts) > DRILL_WATCH_HOSTS_MAX)
        return error_set(err, -E2BIG, ERROR_NOT_SUPPORTED, "a drill watches at most %u hosts; there are %zu", DRILL_WATCH_HOSTS_MAX,
                         json_array_size(hosts));
    int rc = make_flavor(watch, controllers, true, err);
    if (rc < 0)
        return rc;
    watch->moments = xcalloc(DRILL_WATCH_MOMENTS_MAX, sizeof *watch->moments);
    pthread_mutex_init(&watch->lock, NULL);
    rc = add_watcher(watch, controllers, "", watch_state, err);
    if (rc == 0)
        rc = add_watcher(watch, controllers, "", watch_writes, err);
    json_array_foreach(hosts, i, host)
        if (rc == 0)
            rc = add_watcher(watch, controllers, json_text(host, "name"), watch_host, err);
    if (rc == 0)
        return 0;
    drill_watch_stop(watch);
    drill_watch_finish(watch);
    return rc;
}

void drill_watch_stop(struct drill_watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    watch->stop = true;
    pthread_mutex_unlock(&watch->lock);
    for (size_t i = 0; i < watch->watcher_count; i++)
        if (watch->watchers[i].started) {
            pthread_join(watch->watchers[i].thread, NULL);
            watch->watchers[i].started = false;
        }
}

void drill_watch_finish(struct drill_watch *watch)
{
    struct error err = {.code = 0};
    json_t *controllers = json_array();
    for (size_t i = 0; watch->watcher_count > 0 && i < watch->watchers[0].client.n_endpoints; i++)
        json_array_append_new(controllers, json_pack("{s:s}", "address", watch->watchers[0].client.endpoints[i]));
    if (json_array_size(controllers) > 0 && make_flavor(watch, controllers, false, &err) < 0)
        fprintf(stderr, "drover: flavor %s, which the drill wrote to, could not be removed: %s\n", watch->flavor, err.text);
    json_decref(controllers);
    for (size_t i = 0; i < watch->watcher_count; i++)
        client_finish(&watch->watchers[i].client);
    pthread_mutex_destroy(&watch->lock);
    drill_runs_finish(&watch->runs);
    free(watch->moments);
    watch->moments = NULL;
}
