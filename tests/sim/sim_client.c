/* A client: asks for one thing at a time and asks again, with the same Idempotency-Key and perhaps of another controller,
 * until it has an answer. It remembers what was acknowledged, and knows which refusals cannot be. */
#include "tests/sim/sim_world.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RETRY_US SIM_SECOND
#define ALIVE_MAX 6u

static struct sim_world *world_of(const struct sim_client *client)
{
    return client->cluster->world;
}

/* ---- sending ---- */

static void transmit(struct sim_client *client)
{
    struct sim_cluster *cluster = client->cluster;
    unsigned at = world_of(client)->scripted ? 1 + (unsigned)(client->number % cluster->node_count) /* one after another */
                                             : (unsigned)sim_between(&cluster->sim, 1, cluster->node_count);
    struct sim_node *node = &cluster->nodes[at];
    client->sent_us = sim_local_us(&cluster->sim, &client->actor);
    client->request.number = ++client->number;
    if (cluster->mutations.world.new_key_for_retry)
        snprintf(client->request.key, sizeof client->request.key, "k%u-%llu", client->actor.id,
                 (unsigned long long)++client->keys);
    sim_world_send(cluster, &client->actor, &node->actor, &client->request, sim_fsm_deliver);
}

static void ask_again(struct sim *sim, struct sim_event *event)
{
    struct sim_client *client = CONTAINER_OF(event->actor, struct sim_client, actor);
    if (client->busy && event->value == client->number) {
        transmit(client);
        sim_after(sim, RETRY_US, ask_again, &client->actor, NULL)->value = client->number;
    }
}

/* They change nothing that is wanted of the VM: tasks. */
static bool about_tasks(enum route_id route)
{
    return route == ROUTE_ID_vm_migrate || route == ROUTE_ID_snapshot_create || route == ROUTE_ID_snapshot_revert ||
           route == ROUTE_ID_snapshot_delete || route == ROUTE_ID_operation_cancel;
}

static bool about_vms(enum route_id route)
{
    return route != ROUTE_ID_host_drain && route != ROUTE_ID_host_undrain && route != ROUTE_ID_host_disarm &&
           route != ROUTE_ID_host_arm && route != ROUTE_ID_ha_disarm && route != ROUTE_ID_ha_arm &&
           route != ROUTE_ID_cluster_update;
}

/* What stands in the path, if it is not the VM. */
static void snapshot_target(struct sim_client *client)
{
    struct world_message *request = &client->request;
    if (request->route == ROUTE_ID_operation_cancel)
        memcpy(request->target, client->vm->task_id, sizeof request->target);
    else if (request->route == ROUTE_ID_snapshot_revert || request->route == ROUTE_ID_snapshot_delete)
        snprintf(request->target, sizeof request->target, "%s-s%llu", client->vm->name,
                 (unsigned long long)sim_between(&client->cluster->sim, 1, MAX(client->vm->snapshots, 1u)));
}

int sim_client_ask(struct sim_client *client, enum route_id route, const char *target, const char *body, const char *key)
{
    struct sim_world *world = world_of(client);
    bool of_vm = about_vms(route);
    struct world_vm *known = of_vm ? sim_world_vm(world, target) : NULL;
    if (client->busy || (of_vm && known == NULL && world->vm_count == WORLD_VMS_MAX))
        return -EBUSY;
    if (of_vm && known == NULL) {
        known = &world->vms[world->vm_count++];
        snprintf(known->name, sizeof known->name, "%s", target);
    }
    if (route == ROUTE_ID_vm_delete)
        known->deletion_asked = true;
    free(client->request.text);
    client->request = (struct world_message){.kind = WORLD_REQUEST, .route = route};
    client->request.text = body != NULL ? xstrdup(body) : NULL;
    if (route != ROUTE_ID_vm_create)
        snprintf(client->request.target, sizeof client->request.target, "%s", target);
    if (key != NULL)
        snprintf(client->request.key, sizeof client->request.key, "%s", key);
    else
        snprintf(client->request.key, sizeof client->request.key, "k%u-%llu", client->actor.id,
                 (unsigned long long)++client->keys);
    client->vm = known;
    snprintf(client->target, sizeof client->target, "%s", target);
    if (of_vm)
        snapshot_target(client);
    client->busy = true;
    transmit(client);
    sim_after(&client->cluster->sim, RETRY_US, ask_again, &client->actor, NULL)->value = client->number;
    return 0;
}

/* ---- answers ---- */

static const char *short_name(enum route_id route)
{
    return schema_routes[route].symbol;
}

/* One key, one answer. */
static void check_answer(struct sim_client *client, const struct world_message *answer)
{
    struct sim_world *world = world_of(client);
    for (size_t i = 0; i < world->answer_count; i++) {
        const struct world_answer *first = &world->answers[i];
        if (strcmp(first->key, answer->key) != 0)
            continue;
        if (strcmp(first->object_id, answer->object_id) != 0 || strcmp(first->operation_id, answer->operation_id) != 0)
            sim_violation(&client->cluster->sim, "key %s has two answers: operations %s and %s", answer->key,
                          first->operation_id, answer->operation_id);
        return;
    }
    world->answers = xrealloc(world->answers, (world->answer_count + 1) * sizeof *world->answers);
    struct world_answer *new = &world->answers[world->answer_count++];
    memset(new, 0, sizeof *new);
    memcpy(new->key, answer->key, sizeof new->key);
    memcpy(new->object_id, answer->object_id, sizeof new->object_id);
    memcpy(new->operation_id, answer->operation_id, sizeof new->operation_id);
}

static void acknowledged(struct sim_client *client, const struct world_message *answer)
{
    static const struct {
        enum route_id route;
        enum vm_wanted wanted;
    } wants[] = {
        {ROUTE_ID_vm_create, vm_wanted_RUNNING}, {ROUTE_ID_vm_start, vm_wanted_RUNNING},
        {ROUTE_ID_vm_stop, vm_wanted_STOPPED},   {ROUTE_ID_vm_reboot, vm_wanted_RUNNING},
        {ROUTE_ID_vm_pause, vm_wanted_PAUSED},   {ROUTE_ID_vm_resume, vm_wanted_RUNNING},
        {ROUTE_ID_vm_delete, vm_wanted_DELETED},
    };
    struct world_vm *vm = client->vm;
    if (vm == NULL || client->request.route == ROUTE_ID_vm_update)
        return;
    if (about_tasks(client->request.route)) {
        memcpy(vm->task_id, answer->operation_id, sizeof vm->task_id);
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(wants); i++)
        if (wants[i].route == client->request.route)
            vm->wanted = wants[i].wanted;
    vm->exists = client->request.route != ROUTE_ID_vm_delete;
    memcpy(vm->id, answer->object_id, sizeof vm->id);
}

static void refused(struct sim_client *client, const struct world_message *answer)
{
    enum route_id route = client->request.route;
    bool task = about_tasks(route);
    if (client->vm == NULL)
        return;
    if (!task) /* those change nothing that is wanted of the VM */
        client->vm->uncertain = true;
    if (route == ROUTE_ID_vm_create && world_of(client)->leases && strstr(answer->words, "ha needs") != NULL)
        return; /* early: the controllers have no votes yet */
    bool impossible = answer->error == ERROR_KEY_REUSED || answer->error == ERROR_INTERNAL ||
                      (route == ROUTE_ID_vm_create && answer->error == ERROR_EXISTS) ||
                      (route == ROUTE_ID_snapshot_create && answer->error == ERROR_EXISTS) ||
                      (route != ROUTE_ID_vm_create && (!task || route == ROUTE_ID_snapshot_create) &&
                       client->vm->exists && answer->error == ERROR_NOT_FOUND);
    if (impossible && !world_of(client)->scripted)
        sim_violation(&client->cluster->sim, "%s of %s is refused, which cannot be: %s", short_name(route),
                      client->vm->name, answer->words);
}

static bool ask_elsewhere(const struct world_message *answer)
{
    return answer->error == ERROR_NO_LEADER || answer->error == ERROR_UNKNOWN_OUTCOME || answer->error == ERROR_OVERLOAD ||
           answer->error == ERROR_NOT_INITIALIZED;
}

void sim_client_deliver(struct sim_actor *to, struct sim_actor *from UNUSED, void *data)
{
    struct sim_client *client = CONTAINER_OF(to, struct sim_client, actor);
    struct world_message *answer = data;
    bool retry = answer->code < 0 && ask_elsewhere(answer);
    if (answer->code == 0)
        check_answer(client, answer); /* a late one as well */
    if (client->busy && strcmp(answer->key, client->request.key) == 0) {
        if (retry && answer->number == client->number) {
            client->number++; /* the timer of the last attempt is off */
            sim_after(&client->cluster->sim, sim_between(&client->cluster->sim, 20 * SIM_MS, 200 * SIM_MS), ask_again,
                      &client->actor, NULL)->value = client->number;
        } else if (!retry) {
            client->busy = false;
            if (answer->code == 0)
                acknowledged(client, answer);
            else
                refused(client, answer);
            sim_world_tell(client->cluster, "client %u: %s %s: %s", client->actor.id - WORLD_CLIENT_ID + 1,
                           short_name(client->request.route), client->target, answer->code == 0 ? "accepted" : answer->words);
            if (client->answered != NULL)
                client->answered(client, answer);
        }
    }
    sim_world_message_free(answer);
}

/* ---- by itself ---- */

/* Fields that not every VM has, each with a comma behind it. */
static void put_some(struct sim_client *client, bool ha, unsigned group, char text[200])
{
    static const char *const policies[] = {"always", "never"};
    struct sim *sim = &client->cluster->sim;
    size_t at = 0;
    text[0] = '\0';
    if (group != 0)
        at += (size_t)snprintf(text + at, 200 - at, "\"labels\":{\"anti-affinity\":\"g%u\"},", group);
    if (ha && sim_chance(sim, 500))
        at += (size_t)snprintf(text + at, 200 - at, "\"ha_priority\":%u,", sim_chance(sim, 500) ? 10 : 500);
    if (sim_chance(sim, 200))
        at += (size_t)snprintf(text + at, 200 - at, "\"restart\":\"%s\",", policies[sim_below(sim, ARRAY_SIZE(policies))]);
    if (sim_chance(sim, 300))
        snprintf(text + at, 200 - at, "\"stop_grace_s\":%u,", (unsigned)sim_below(sim, SIM_VM_IMPATIENT_S + 1));
}

static void create_one(struct sim_client *client)
{
    struct sim *sim = &client->cluster->sim;
    char name[WORLD_NAME_BYTES], body[500], some[200];
    snprintf(name, sizeof name, "vm-%u-%u", client->actor.id, world_of(client)->vm_count);
    bool ha = world_of(client)->leases && sim_chance(sim, 700); /* without disks: those are on one host only */
    unsigned group = sim_chance(sim, 400) ? (unsigned)sim_between(sim, 1, WORLD_GROUPS) : 0;
    put_some(client, ha, group, some);
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":%llu,%s%s}", name,
             (unsigned long long)(sim_between(sim, 100, 600) << 20), some,
             ha                     ? "\"ha\":true"
             : sim_chance(sim, 500) ? "\"disks\":[]" /* such a one can migrate, too */
                                    : "\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}]");
    if (sim_client_ask(client, ROUTE_ID_vm_create, name, body, NULL) == 0)
        client->vm->group = group;
}

static void snapshot_one(struct sim_client *client, struct world_vm *vm)
{
    static const enum route_id routes[] = {ROUTE_ID_snapshot_create, ROUTE_ID_snapshot_create, ROUTE_ID_snapshot_revert,
                                           ROUTE_ID_snapshot_delete, ROUTE_ID_operation_cancel};
    enum route_id route = routes[sim_below(&client->cluster->sim, ARRAY_SIZE(routes))];
    char body[80];
    if (vm->task_id[0] == '\0')
        route = ROUTE_ID_snapshot_create;
    if (route == ROUTE_ID_snapshot_create)
        snprintf(body, sizeof body, "{\"name\":\"%s-s%u\"}", vm->name, ++vm->snapshots);
    sim_client_ask(client, route, vm->name, route == ROUTE_ID_snapshot_create ? body : NULL, NULL);
}

/* What administrators do with hosts. Nothing is left drained or disarmed for good: sim_fsm.c's end counts on it. */
static void manage_hosts(struct sim_client *client)
{
    static const enum route_id routes[] = {ROUTE_ID_host_drain, ROUTE_ID_host_undrain, ROUTE_ID_host_undrain,
                                           ROUTE_ID_host_disarm, ROUTE_ID_host_arm, ROUTE_ID_ha_disarm, ROUTE_ID_ha_arm};
    const struct sim_world *world = world_of(client);
    struct sim *sim = &client->cluster->sim;
    enum route_id route = routes[sim_below(sim, world->leases ? ARRAY_SIZE(routes) : 3)];
    bool all = route == ROUTE_ID_ha_disarm || route == ROUTE_ID_ha_arm;
    sim_client_ask(client, route, all ? "" : world->agents[sim_below(sim, world->agent_count)].name, NULL, NULL);
}

/* Quiet times: everything is undone, one after another. */
static bool undo_one(struct sim_client *client)
{
    const struct sim_world *world = world_of(client);
    unsigned hosts = world->agent_count, step = client->undone;
    if (step > 2 * hosts || client->actor.id != WORLD_CLIENT_ID)
        return false;
    if (client->busy)
        return true;
    client->undone++;
    if (step < hosts)
        sim_client_ask(client, ROUTE_ID_host_undrain, world->agents[step].name, NULL, NULL);
    else if (world->leases && step < 2 * hosts)
        sim_client_ask(client, ROUTE_ID_host_arm, world->agents[step - hosts].name, NULL, NULL);
    else if (world->leases)
        sim_client_ask(client, ROUTE_ID_ha_arm, "", NULL, NULL);
    return true;
}

/* Of its own VMs that exist; by chance. */
static struct world_vm *one_of_mine(struct sim_client *client, unsigned *ret_alive)
{
    struct sim_world *world = world_of(client);
    struct world_vm *found = NULL;
    char prefix[16];
    snprintf(prefix, sizeof prefix, "vm-%u-", client->actor.id);
    *ret_alive = 0;
    for (unsigned i = 0; i < world->vm_count; i++)
        if (world->vms[i].exists && strncmp(world->vms[i].name, prefix, strlen(prefix)) == 0 &&
            sim_below(&client->cluster->sim, ++*ret_alive) == 0)
            found = &world->vms[i];
    return found;
}

static void next(struct sim *sim, struct sim_event *event)
{
    static const enum route_id routes[] = {ROUTE_ID_vm_start, ROUTE_ID_vm_stop,   ROUTE_ID_vm_start,  ROUTE_ID_vm_reboot,
                                           ROUTE_ID_vm_pause, ROUTE_ID_vm_resume, ROUTE_ID_vm_delete, ROUTE_ID_vm_stop};
    struct sim_client *client = CONTAINER_OF(event->actor, struct sim_client, actor);
    unsigned alive;
    struct world_vm *vm = one_of_mine(client, &alive);
    if (sim->now_us > client->cluster->quiet_us) {
        if (undo_one(client))
            sim_after(sim, 50 * SIM_MS, next, &client->actor, NULL);
        return;
    }
    if (!client->busy && (vm == NULL || (alive < ALIVE_MAX && sim_chance(sim, 300))))
        create_one(client);
    else if (!client->busy && sim_chance(sim, 250))
        snapshot_one(client, vm);
    else if (!client->busy && sim_chance(sim, 300))
        sim_client_ask(client, ROUTE_ID_vm_migrate, vm->name, "{}", NULL);
    else if (!client->busy && sim_chance(sim, 60))
        manage_hosts(client);
    else if (!client->busy)
        sim_client_ask(client, routes[sim_below(sim, ARRAY_SIZE(routes))], vm->name, NULL, NULL);
    sim_after(sim, sim_between(sim, 50 * SIM_MS, 2 * SIM_SECOND), next, &client->actor, NULL);
}

/* ---- life ---- */

void sim_client_init(struct sim_client *client, struct sim_cluster *cluster, unsigned number)
{
    client->cluster = cluster;
    client->actor.id = WORLD_CLIENT_ID + number;
    client->actor.kind = "client";
}

void sim_client_start(struct sim_client *client)
{
    client->actor.up = true;
    if (!client->quiet)
        sim_after(&client->cluster->sim, 3 * SIM_SECOND, next, &client->actor, NULL);
}

void sim_client_finish(struct sim_client *client)
{
    free(client->request.text);
    client->request.text = NULL;
}
