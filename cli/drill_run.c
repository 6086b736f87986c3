/* The drills themselves. */
#include "cli/drill.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/drill_check.h"
#include "cli/drill_text.h"
#include "cli/output.h"

#define SETTLE_US 1500000   /* of watching before the fault: each run has been seen executing */
#define AFTER_US 2000000    /* and behind the end */
#define WAIT_MORE_S 60      /* beyond a fault's own time, for what is to happen */
#define MIGRATE_S 120
#define LOOK_US 100000
#define ATTEMPT_MS 5000

static void pause_us(int64_t us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000}, NULL);
}

static PRINTF_LIKE(2, 3) void fail(struct drill *d, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_array_append_new(d->failures, json_string(text));
    drill_watch_note(&d->watch, text);
}

static PRINTF_LIKE(2, 3) void tell(struct drill *d, const char *format, ...)
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

static int get(struct drill *d, const char *path, json_t **ret, struct error *err)
{
    struct reply reply = {0};
    int rc = client_request(&d->client, "GET", path, NULL, &reply, err);
    if (rc == 0)
        *ret = json_incref(reply.json);
    reply_finish(&reply);
    return rc;
}

/* At the controller @name itself. */
static bool turn_to(struct drill *d, const char *name)
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

static int order_fault(struct drill *d, enum route_id route, const char *target, const char *fault, unsigned seconds, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(route, target, "");
    json_t *body = json_pack("{s:s, s:s, s:i}", "drill", d->id, "fault", fault, "seconds", (int)seconds);
    int rc = client_attempt(&d->client, "POST", path, body, ATTEMPT_MS, &reply, err);
    json_decref(body);
    reply_finish(&reply);
    return rc;
}

static bool is_ready(struct drill *d, const char *controller)
{
    struct reply reply = {0};
    bool ready = turn_to(d, controller) && client_attempt(&d->client, "GET", "/readyz", NULL, 1000, &reply, NULL) == 0;
    reply_finish(&reply);
    return ready;
}

static bool leads(struct drill *d, const char *controller)
{
    json_t *now = NULL;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_controller_show, controller, "");
    bool yes = get(d, path, &now, NULL) == 0 && json_is_true(json_object_get(now, "leader"));
    json_decref(now);
    return yes;
}

static int hand_over(struct drill *d, const char *controller, struct error *err)
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_controller_transfer, controller, "");
    int rc = client_request(&d->client, "POST", path, NULL, &reply, err);
    reply_finish(&reply);
    return rc;
}

/* ---- waits ---- */

typedef bool (*condition)(struct drill *d, const void *arg);

static bool wait_for(struct drill *d, condition holds, const void *arg, unsigned seconds)
{
    int64_t end_us = drill_now_us() + (int64_t)seconds * 1000000;
    while (!holds(d, arg)) {
        if (drill_now_us() > end_us)
            return false;
        pause_us(LOOK_US);
    }
    return true;
}

static bool all_execute_elsewhere(struct drill *d, const void *arg)
{
    const json_t *vm;
    size_t i;
    bool all = true;
    (void)arg;
    pthread_mutex_lock(&d->watch.lock);
    json_array_foreach(d->vms, i, vm) all = all && drill_runs_elsewhere(&d->watch.runs, json_text(vm, "id"), d->host,
                                                                        (uint64_t)json_number(vm, "epoch")) != NULL;
    pthread_mutex_unlock(&d->watch.lock);
    return all;
}

/* It is up, and of the VMs that were taken from it no VMM is left there. */
static bool host_is_back(struct drill *d, const void *arg)
{
    json_t *host = NULL, *seen = NULL;
    const json_t *vm, *run;
    size_t i, j;
    (void)arg;
    CLEANUP_FREE char *show = client_path(ROUTE_ID_host_show, d->host, "");
    CLEANUP_FREE char *observe = client_path(ROUTE_ID_host_observation, d->host, "");
    bool back = get(d, show, &host, NULL) == 0 && strcmp(json_text(host, "state"), "up") == 0 && get(d, observe, &seen, NULL) == 0 &&
                !json_is_true(json_object_get(seen, "silent"));
    json_array_foreach(json_object_get(seen, "vms"), i, run)
        json_array_foreach(d->vms, j, vm)
            back = back && !(strcmp(json_text(run, "id"), json_text(vm, "id")) == 0 && json_number(run, "epoch") == json_number(vm, "epoch"));
    json_decref(host);
    json_decref(seen);
    return back;
}

static bool controller_is_ready(struct drill *d, const void *arg)
{
    return is_ready(d, arg);
}

static bool controller_leads(struct drill *d, const void *arg)
{
    return leads(d, arg);
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

static void await_writes(struct drill *d, const char *after)
{
    pthread_mutex_lock(&d->watch.lock);
    struct write_wait wait = {d->watch.writes + 3};
    pthread_mutex_unlock(&d->watch.lock);
    if (!wait_for(d, writes_go_on, &wait, WAIT_MORE_S))
        fail(d, "the API answers no writes %d s after %s", WAIT_MORE_S, after);
}

/* ---- putting back ---- */

static void note_put_back(struct drill *d, const char *what, int rc, const struct error *err)
{
    json_array_append_new(d->put_back, json_pack("{s:s, s:b, s:s}", "what", what, "ok", rc == 0, "detail", rc == 0 ? "" : err->text));
    tell(d, "%s%s%s", what, rc == 0 ? "" : ": ", rc == 0 ? "" : err->text);
}

static int await_operation(struct drill *d, const char *id, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_operation_show, id, "?wait=2s");
    for (int64_t end_us = drill_now_us() + (int64_t)MIGRATE_S * 1000000; drill_now_us() < end_us;) {
        json_t *o = NULL;
        int rc = get(d, path, &o, err);
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

static void put_back_vm(struct drill *d, const json_t *vm)
{
    char what[200];
    struct error err = {.code = 0};
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_migrate, json_text(vm, "id"), "");
    json_t *body = json_pack("{s:s}", "to", d->host);
    int rc = client_request(&d->client, "POST", path, body, &reply, &err);
    if (rc == 0)
        rc = await_operation(d, json_text(reply.json, "id"), &err);
    snprintf(what, sizeof what, "VM %s migrated back to %s", json_text(vm, "name"), d->host);
    note_put_back(d, what, rc, &err);
    json_decref(body);
    reply_finish(&reply);
}

static void put_back(struct drill *d)
{
    const json_t *vm;
    size_t i;
    char what[200];
    struct error err = {.code = 0};
    if (d->kind->host)
        json_array_foreach(d->vms, i, vm) put_back_vm(d, vm);
    if (d->leader[0] == '\0' || leads(d, d->leader))
        return;
    int rc = hand_over(d, d->leader, &err);
    snprintf(what, sizeof what, "leadership handed back to %s", d->leader);
    note_put_back(d, what, rc, &err);
}

/* ---- the drills ---- */

static int silence_host(struct drill *d, struct error *err)
{
    int rc = order_fault(d, ROUTE_ID_host_drill, d->host, "silence", d->silent_s, err);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    tell(d, "host %s is silent for %u s", d->host, d->silent_s);
    return 0;
}

static void await_failover(struct drill *d)
{
    unsigned patience_s = d->silent_s + WAIT_MORE_S;
    if (wait_for(d, all_execute_elsewhere, NULL, patience_s))
        tell(d, "its VMs execute on other hosts");
    else
        fail(d, "not every VM of %s executes elsewhere %u s after it fell silent", d->host, patience_s);
    if (wait_for(d, host_is_back, NULL, patience_s))
        tell(d, "host %s is up again, and nothing is left there of what it lost", d->host);
    else
        fail(d, "host %s is not up and clean again", d->host);
}

static int run_host_loss(struct drill *d, struct error *err)
{
    int rc = silence_host(d, err);
    if (rc == 0)
        await_failover(d);
    return rc;
}

static int crash(struct drill *d, const char *controller, struct error *err)
{
    if (!turn_to(d, controller))
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "controller %s is not known", controller);
    int rc = order_fault(d, ROUTE_ID_controller_drill, controller, "crash", d->crash_s, err);
    if (rc == 0)
        tell(d, "controller %s, the leader, crashes and stays away for %u s", controller, d->crash_s);
    return rc;
}

static void await_controller(struct drill *d, const char *controller)
{
    if (wait_for(d, controller_is_ready, controller, WAIT_MORE_S))
        tell(d, "controller %s is ready again", controller);
    else
        fail(d, "controller %s is not ready %d s after it was to be", controller, WAIT_MORE_S);
}

static int run_leader_loss(struct drill *d, struct error *err)
{
    int rc = crash(d, d->leader, err);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    await_writes(d, "the leader's loss");
    int64_t left_us = d->fault_us + d->crash_s * INT64_C(1000000) - drill_now_us();
    pause_us(MAX(left_us, (int64_t)0));
    await_controller(d, d->leader);
    return 0;
}

static size_t machine_length(const char *address)
{
    const char *colon = strrchr(address, ':');
    return colon != NULL ? (size_t)(colon - address) : strlen(address);
}

/* The controller on the machine of the host, else the leader. */
static const char *controller_of_host(struct drill *d)
{
    const json_t *host, *c, *found = NULL;
    size_t i, j;
    json_array_foreach(d->hosts, i, host)
        json_array_foreach(d->controllers, j, c)
        {
            const char *a = json_text(host, "address"), *b = json_text(c, "address");
            if (strcmp(json_text(host, "name"), d->host) == 0 && machine_length(a) == machine_length(b) &&
                strncmp(a, b, machine_length(a)) == 0 && strcmp(json_text(c, "role"), "voter") == 0)
                found = c;
        }
    return found != NULL ? json_text(found, "name") : d->leader;
}

static int run_host_and_leader_loss(struct drill *d, struct error *err)
{
    const char *leader = controller_of_host(d);
    int rc = 0;
    if (strcmp(leader, d->leader) != 0)
        rc = hand_over(d, leader, err);
    if (rc == 0 && !wait_for(d, controller_leads, leader, WAIT_MORE_S))
        rc = error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "controller %s does not lead after %d s", leader, WAIT_MORE_S);
    if (rc < 0)
        return rc;
    tell(d, "controller %s leads", leader);
    pause_us(SETTLE_US);
    rc = silence_host(d, err);
    if (rc < 0)
        return rc;
    if ((rc = crash(d, leader, err)) < 0)
        fail(d, "the leader did not crash: %s", err->text);
    await_failover(d);
    await_controller(d, leader);
    await_writes(d, "the leader's loss");
    return 0;
}

static int restart(struct drill *d, const char *controller, struct error *err)
{
    if (!turn_to(d, controller))
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "controller %s is not known", controller);
    int rc = order_fault(d, ROUTE_ID_controller_drill, controller, "restart", 0, err);
    if (rc < 0)
        return rc;
    d->fault_us = d->fault_us < 0 ? drill_now_us() : d->fault_us;
    tell(d, "controller %s restarts", controller);
    pause_us(AFTER_US / 2); /* or it would still be the old process that is ready */
    await_controller(d, controller);
    await_writes(d, "a restart");
    pause_us(AFTER_US);
    return 0;
}

/* The leader last, so that leadership moves once. */
static int run_rolling_restart(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    int rc = 0;
    json_array_foreach(d->controllers, i, c)
        if (rc == 0 && json_array_size(d->failures) == 0 && strcmp(json_text(c, "name"), d->leader) != 0)
            rc = restart(d, json_text(c, "name"), err);
    if (rc == 0 && json_array_size(d->failures) == 0)
        rc = restart(d, d->leader, err);
    return rc;
}

static const struct drill_kind kinds[] = {
    {"host-loss", "A host falls silent as if it had lost power or network: its VMs with ha are started elsewhere.", true, false, run_host_loss,
     "Guests of these VMs are started anew on other hosts, as after a loss of power"},
    {"leader-loss", "The leading controller crashes: another one takes over, and no VM notices.", false, true, run_leader_loss,
     "The API stops for a second or two"},
    {"host-and-leader-loss", "A host falls silent and the leading controller, that on the same machine if there is one, crashes.", true, true,
     run_host_and_leader_loss, "Guests of these VMs are started anew on other hosts, as after a loss of power; the API stops for a second or two"},
    {"rolling-restart", "Each controller is restarted in order, one after another, the leader last: no VM notices.", false, true,
     run_rolling_restart, "The API may stop for a second"},
};

const struct drill_kind *drill_kind_at(size_t at)
{
    return at < ARRAY_SIZE(kinds) ? &kinds[at] : NULL;
}

const struct drill_kind *drill_kind_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* ---- life ---- */

static void make_id(struct drill *d)
{
    uint16_t chance = 0;
    char day[32];
    time_t now = time(NULL);
    struct tm tm;
    ASSERT(getrandom(&chance, sizeof chance, 0) == (ssize_t)sizeof chance);
    gmtime_r(&now, &tm);
    strftime(day, sizeof day, "%Y%m%d-%H%M%S", &tm);
    strftime(d->begun_at, sizeof d->begun_at, "%Y-%m-%dT%H:%M:%SZ", &tm);
    snprintf(d->id, sizeof d->id, "drill-%s-%04x", day, chance);
}

static int look(struct drill *d, struct error *err)
{
    int rc = get(d, "/v1/cluster", &d->cluster, err);
    if (rc == 0)
        rc = get(d, "/v1/hosts?limit=1000", &d->hosts, err);
    if (rc == 0)
        rc = get(d, "/v1/vms?limit=1000&filter=ha%3Dtrue", &d->all_vms, err);
    if (rc == 0)
        rc = get(d, "/v1/operations?limit=1000&filter=state%3Drunning", &d->operations, err);
    return rc;
}

static int connect_all(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    int rc = client_init(&d->client, d->call, err);
    if (rc == 0)
        rc = get(d, "/v1/controllers", &d->controllers, err);
    client_finish(&d->client);
    if (rc == 0)
        rc = drill_client(&d->client, d->call, d->controllers, err);
    json_array_foreach(d->controllers, i, c)
        if (json_is_true(json_object_get(c, "leader")))
            snprintf(d->leader, sizeof d->leader, "%s", json_text(c, "name"));
    return rc;
}

int drill_init(struct drill *d, const struct drill_kind *kind, const char *host, const struct invocation *call, struct error *err)
{
    *d = (struct drill){.kind = kind, .call = call, .fault_us = -1, .silent_s = DRILL_SILENT_S, .crash_s = DRILL_CRASH_S, .put_back = json_array(), .failures = json_array()};
    make_id(d);
    int rc = connect_all(d, err);
    if (rc == 0)
        rc = look(d, err);
    if (rc < 0)
        return rc;
    if (kind->host && host == NULL)
        host = drill_check_choose_host(d->hosts, d->all_vms);
    if (kind->host && host == NULL)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "no host runs a VM with ha, so there would be nothing to see; make one (`drover vm create NAME --ha ...`)");
    snprintf(d->host, sizeof d->host, "%s", kind->host ? host : "");
    d->vms = drill_check_ha_vms(d->all_vms, kind->host ? d->host : NULL);
    const struct drill_check_input input = {.cluster = d->cluster,
                                            .controllers = d->controllers,
                                            .hosts = d->hosts,
                                            .vms = d->all_vms,
                                            .operations = d->operations,
                                            .host = kind->host ? d->host : NULL,
                                            .needs_ha_vm = kind->host};
    d->checks = drill_check(&input, &d->ready);
    return 0;
}

void drill_finish(struct drill *d)
{
    json_t *all[] = {d->cluster, d->controllers, d->hosts, d->all_vms, d->operations, d->vms, d->checks, d->put_back, d->failures};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        json_decref(all[i]);
    client_finish(&d->client);
}

int drill_run(struct drill *d, bool puts_back, struct error *err)
{
    d->begin_us = drill_now_us();
    int rc = drill_watch_start(&d->watch, d->call, d->id, d->controllers, d->hosts, err);
    if (rc < 0)
        return rc;
    pause_us(SETTLE_US);
    rc = d->kind->run(d, err);
    if (rc == 0)
        pause_us(AFTER_US);
    d->end_us = drill_now_us();
    drill_watch_stop(&d->watch); /* a migration has two VMMs of a VM, and is no part of what is judged */
    if (rc == 0 && puts_back)
        put_back(d);
    if (rc < 0)
        drill_watch_finish(&d->watch);
    return rc;
}
