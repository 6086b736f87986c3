/* The drills themselves. */
#include "cli/drill_steps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/drill_check.h"
#include "cli/drill_text.h"
#include "cli/output.h"

#define HAND_OVERS_MAX 4
#define SETTLE_US 1500000   /* of watching before the fault: each run has been seen executing */
#define AFTER_US 2000000    /* and behind the end */

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
    bool back = drill_get(d, show, &host, NULL) == 0 && strcmp(json_text(host, "state"), "up") == 0 && drill_get(d, observe, &seen, NULL) == 0 &&
                !json_is_true(json_object_get(seen, "silent"));
    json_array_foreach(json_object_get(seen, "vms"), i, run)
        json_array_foreach(d->vms, j, vm)
            back = back && !(strcmp(json_text(run, "id"), json_text(vm, "id")) == 0 && json_number(run, "epoch") == json_number(vm, "epoch"));
    json_decref(host);
    json_decref(seen);
    return back;
}

static bool controller_leads(struct drill *d, const void *arg)
{
    return drill_leads(d, arg);
}

/* ---- putting back ---- */

static void put_back_vm(struct drill *d, const json_t *vm)
{
    char what[200];
    struct error err = {.code = 0};
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_migrate, json_text(vm, "id"), "");
    json_t *body = json_pack("{s:s}", "to", d->host);
    int rc = client_request(&d->client, "POST", path, body, &reply, &err);
    if (rc == 0)
        rc = drill_await_operation(d, json_text(reply.json, "id"), &err);
    snprintf(what, sizeof what, "VM %s migrated back to %s", json_text(vm, "name"), d->host);
    drill_note_put_back(d, what, rc, &err);
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
    if (d->leader[0] == '\0' || drill_leads(d, d->leader))
        return;
    int rc = drill_hand_over(d, d->leader, &err);
    snprintf(what, sizeof what, "leadership handed back to %s", d->leader);
    drill_note_put_back(d, what, rc, &err);
}

/* ---- the drills ---- */

static int silence_host(struct drill *d, struct error *err)
{
    int rc = drill_order_host(d, "silence", d->silent_s, NULL, err);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    drill_tell(d, "host %s is silent for %u s", d->host, d->silent_s);
    return 0;
}

void drill_await_failover(struct drill *d)
{
    unsigned patience_s = d->silent_s + DRILL_WAIT_MORE_S;
    if (drill_wait(d, all_execute_elsewhere, NULL, patience_s))
        drill_tell(d, "its VMs execute on other hosts");
    else
        drill_fail(d, "not every VM of %s executes elsewhere %u s after it fell silent", d->host, patience_s);
    if (drill_wait(d, host_is_back, NULL, patience_s))
        drill_tell(d, "host %s is up again, and nothing is left there of what it lost", d->host);
    else
        drill_fail(d, "host %s is not up and clean again", d->host);
}

static int run_host_loss(struct drill *d, struct error *err)
{
    int rc = silence_host(d, err);
    if (rc == 0)
        drill_await_failover(d);
    return rc;
}

static int crash(struct drill *d, const char *controller, struct error *err)
{
    int rc = drill_order_controller(d, controller, "crash", d->crash_s, NULL, err);
    if (rc == 0)
        drill_tell(d, "controller %s, the leader, crashes and stays away for %u s", controller, d->crash_s);
    return rc;
}

static int run_leader_loss(struct drill *d, struct error *err)
{
    int rc = crash(d, d->leader, err);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    drill_await_writes(d, "the leader's loss");
    drill_await_end(d, d->crash_s);
    drill_await_controller(d, d->leader);
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

/* Until it leads: what was handed over may go on to another one by an election, on a busy machine. */
static int have_it_lead(struct drill *d, const char *controller, struct error *err)
{
    for (unsigned i = 0; i < HAND_OVERS_MAX; i++) {
        int rc = drill_leads(d, controller) ? 0 : drill_hand_over(d, controller, err);
        if (rc < 0)
            return rc;
        if (drill_wait(d, controller_leads, controller, DRILL_WAIT_MORE_S / HAND_OVERS_MAX))
            return 0;
    }
    return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "controller %s does not lead after %d s", controller, DRILL_WAIT_MORE_S);
}

static int run_host_and_leader_loss(struct drill *d, struct error *err)
{
    const char *leader = controller_of_host(d);
    int rc = have_it_lead(d, leader, err);
    if (rc < 0)
        return rc;
    drill_tell(d, "controller %s leads", leader);
    drill_pause_us(SETTLE_US);
    rc = silence_host(d, err);
    if (rc < 0)
        return rc;
    if ((rc = crash(d, leader, err)) < 0)
        drill_fail(d, "the leader did not crash: %s", err->text);
    drill_await_failover(d);
    drill_await_controller(d, leader);
    drill_await_writes(d, "the leader's loss");
    return 0;
}

static int restart(struct drill *d, const char *controller, struct error *err)
{
    int rc = drill_order_controller(d, controller, "restart", 0, NULL, err);
    if (rc < 0)
        return rc;
    d->fault_us = d->fault_us < 0 ? drill_now_us() : d->fault_us;
    drill_tell(d, "controller %s restarts", controller);
    drill_pause_us(AFTER_US / 2); /* or it would still be the old process that is ready */
    drill_await_controller(d, controller);
    drill_await_writes(d, "a restart");
    drill_pause_us(AFTER_US);
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
     "Guests of these VMs are started anew on other hosts, as after a loss of power", NULL, false, 0, 0},
    {"leader-loss", "The leading controller crashes: another one takes over, and no VM notices.", false, true, run_leader_loss,
     "The API stops for a second or two", NULL, false, DRILL_LIMIT_WRITES_US, 0},
    {"host-and-leader-loss", "A host falls silent and the leading controller, that on the same machine if there is one, crashes.", true, true,
     run_host_and_leader_loss, "Guests of these VMs are started anew on other hosts, as after a loss of power; the API stops for a second or two",
     NULL, false, 0, 0},
    {"rolling-restart", "Each controller is restarted in order, one after another, the leader last: no VM notices.", false, true,
     run_rolling_restart, "The API may stop for a second", NULL, false, DRILL_LIMIT_WRITES_US, 0},
    {"network-partition", "A host is cut off from all other machines by its kernel: its VMs with ha are started elsewhere.", true, false,
     drill_run_network_partition,
     "Guests of these VMs are started anew on other hosts, as after a loss of power; what else that host has to do with them stops meanwhile",
     drill_check_network_partition, false, 0, 0},
    {"controller-partition", "A controller, the leader where none is named, is cut off from the others: another one leads, and no VM notices.",
     false, true, drill_run_controller_partition, "The API stops for some seconds", drill_check_controller_partition, true, DRILL_LIMIT_CUT_US,
     DRILL_SILENT_S},
    {"slow-disk", "A controller, the leader where none is named, writes its log slowly: changes go on, and no VM notices.", false, true,
     drill_run_slow_disk, "Changes through the API may be slower", NULL, true, DRILL_LIMIT_WRITES_US, DRILL_SILENT_S},
    {"quorum-loss", "All controllers but the leader are lost for good: it is recovered alone, they are refused when they are back, and join anew.",
     false, true, drill_run_quorum_loss, "The API stops until the cluster is recovered; all other controllers are wiped and join anew",
     drill_check_quorum_loss, false, 0, DRILL_LOST_S},
    {"backup-restore", "A VM of the drill's own is backed up, deleted and restored, and what is on its disks compared.", false, false,
     drill_run_backup_restore, "Nothing but a VM of the drill's own is touched", drill_check_backup_restore, false, 0, 0},
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
    int rc = drill_get(d, "/v1/cluster", &d->cluster, err);
    if (rc == 0)
        rc = client_list(&d->client, ROUTE_ID_host_list, NULL, &d->hosts, err);
    if (rc == 0)
        rc = client_list(&d->client, ROUTE_ID_vm_list, "ha=true", &d->all_vms, err);
    if (rc == 0)
        rc = client_list(&d->client, ROUTE_ID_operation_list, "state=running", &d->operations, err);
    return rc;
}

/* What the controllers would do. None such host, or one that is lost already, is a condition that does not hold. */
static int drill_loss(struct drill *d, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_host_loss, d->host, "");
    int rc = drill_get(d, path, &d->loss, err);
    return rc < 0 && err->kind != ERROR_NOT_FOUND && err->kind != ERROR_CONFLICT ? rc : 0;
}

static int connect_all(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    int rc = client_init(&d->client, d->call, err);
    if (rc == 0)
        rc = drill_get(d, "/v1/controllers", &d->controllers, err);
    client_finish(&d->client);
    if (rc == 0)
        rc = drill_client(&d->client, d->call, d->controllers, err);
    json_array_foreach(d->controllers, i, c)
        if (json_is_true(json_object_get(c, "leader")))
            snprintf(d->leader, sizeof d->leader, "%s", json_text(c, "name"));
    return rc;
}

static int choose_controller(struct drill *d, const char *controller, struct error *err)
{
    const json_t *c;
    size_t i;
    snprintf(d->controller, sizeof d->controller, "%s", controller != NULL ? controller : d->leader);
    json_array_foreach(d->controllers, i, c)
        if (strcmp(json_text(c, "name"), d->controller) == 0)
            return 0;
    return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no controller '%s'", d->controller);
}

int drill_init(struct drill *d, const struct drill_kind *kind, const char *host, const char *controller, const struct invocation *call,
               struct error *err)
{
    *d = (struct drill){.kind = kind,
                        .call = call,
                        .fault_us = -1,
                        .silent_s = kind->seconds > 0 ? kind->seconds : DRILL_SILENT_S,
                        .crash_s = kind->seconds > 0 ? kind->seconds : DRILL_CRASH_S,
                        .put_back = json_array(),
                        .failures = json_array(),
                        .steps = json_array()};
    make_id(d);
    int rc = connect_all(d, err);
    if (rc == 0)
        rc = look(d, err);
    if (rc == 0 && kind->one_controller)
        rc = choose_controller(d, controller, err);
    if (rc < 0)
        return rc;
    if (kind->host && host == NULL)
        host = drill_check_choose_host(d->hosts, d->all_vms);
    if (kind->host && host == NULL)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "no host runs a VM with ha, so there would be nothing to see; make one (`drover vm create NAME --ha ...`)");
    snprintf(d->host, sizeof d->host, "%s", kind->host ? host : "");
    d->vms = drill_check_ha_vms(d->all_vms, kind->host ? d->host : NULL);
    if (kind->host && drill_loss(d, err) < 0)
        return err->code;
    const struct drill_check_input input = {.cluster = d->cluster,
                                            .controllers = d->controllers,
                                            .hosts = d->hosts,
                                            .vms = d->all_vms,
                                            .operations = d->operations,
                                            .host = kind->host ? d->host : NULL,
                                            .loss = d->loss,
                                            .calm = !kind->host && !kind->controller,
                                            .needs_ha_vm = kind->host};
    d->checks = drill_check(&input, &d->ready);
    if (kind->check != NULL)
        d->ready = kind->check(d) && d->ready;
    return 0;
}

void drill_finish(struct drill *d)
{
    json_t *all[] = {d->cluster, d->controllers, d->hosts, d->all_vms, d->operations, d->vms, d->loss, d->checks, d->put_back, d->failures, d->steps};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        json_decref(all[i]);
    client_finish(&d->client);
}

int drill_run(struct drill *d, bool puts_back, struct error *err)
{
    struct error unended = {.code = 0};
    d->begin_us = drill_now_us();
    int rc = drill_reserve(d, err);
    if (rc < 0)
        return rc;
    rc = drill_watch_start(&d->watch, d->call, d->id, d->controllers, d->hosts, err);
    if (rc < 0) {
        drill_release(d, NULL);
        return rc;
    }
    drill_pause_us(SETTLE_US);
    rc = d->kind->run(d, err);
    if (rc == 0)
        drill_pause_us(AFTER_US);
    d->end_us = drill_now_us();
    drill_watch_stop(&d->watch); /* a migration has two VMMs of a VM, and is no part of what is judged */
    if (rc == 0 && puts_back)
        put_back(d);
    if (drill_release(d, &unended) < 0)
        fprintf(stderr, "drover: the cluster does not know yet that the drill has ended: %s\n", unended.text);
    if (rc < 0)
        drill_watch_finish(&d->watch);
    return rc;
}
