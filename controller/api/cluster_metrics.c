/* Gauges of the cluster's condition: see cluster_metrics.h. */
#include "controller/api/cluster_metrics.h"

#include <string.h>

#include "controller/api/api_metrics.h"
#include "controller/fsm/backup_rules.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

#define STATES_MAX 16u
STATIC_ASSERT((unsigned)vm_state_COUNT < STATES_MAX && (unsigned)host_state_COUNT < STATES_MAX && (unsigned)backup_state_COUNT < STATES_MAX &&
                  (unsigned)volume_state_COUNT < STATES_MAX,
              "each state has its sum, and one that a newer version knows has one, too");

/* How a replica stands, the worst last. */
enum replica_kind { REPLICA_IN_SYNC, REPLICA_CURRENT, REPLICA_OUT_OF_SYNC, REPLICA_LATE, REPLICA_NONE, REPLICA_KINDS };
static const char *const replica_names[] = {"in-sync", "current", "out-of-sync", "late", "none"};

static void head_put(struct bytes_writer *out, const char *name, const char *help)
{
    bytes_put_format(out, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

static void one_put(struct bytes_writer *out, const char *name, const char *label, const char *value, uint64_t number)
{
    bytes_put_format(out, "%s{%s=\"%s\"} %llu\n", name, label, value, (unsigned long long)number);
}

static void states_put(struct bytes_writer *out, const char *name, const char *help, const char *const *names, const uint64_t *counts,
                       size_t count)
{
    head_put(out, name, help);
    for (size_t i = 0; i < count; i++)
        one_put(out, name, "state", names[i], counts[i]);
}

static bool is_as_wanted(const struct vm *vm)
{
    switch (vm->wanted) {
    case vm_wanted_RUNNING: return vm->state == vm_state_RUNNING;
    case vm_wanted_PAUSED: return vm->state == vm_state_PAUSED;
    case vm_wanted_STOPPED: return vm->state == vm_state_STOPPED;
    default: return false; /* it is to go, and is still there */
    }
}

static enum replica_kind replica_kind_of(const struct vm *vm)
{
    const struct vm_replica *replica = &vm->replica;
    bool has_point = OBJECT_HAS(vm, vm, replica) && replica->at != NULL && replica->epoch == vm->epoch;
    if (!has_point)
        return REPLICA_NONE;
    if (replica->late)
        return REPLICA_LATE;
    if (!replica_is_sync(vm))
        return REPLICA_CURRENT;
    return replica->in_sync ? REPLICA_IN_SYNC : REPLICA_OUT_OF_SYNC;
}

static void vms_put(const struct state *state, struct bytes_writer *out)
{
    uint64_t states[STATES_MAX] = {0}, replicas[REPLICA_KINDS] = {0}, not_as_wanted = 0, recovering = 0, oldest_ms = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        states[vm->state]++;
        not_as_wanted += !is_as_wanted(vm);
        recovering += vm->recovering;
        if (vm->replica_host == NULL)
            continue;
        enum replica_kind kind = replica_kind_of(vm);
        uint64_t at_ms = kind == REPLICA_NONE ? 0 : time_text_ms(vm->replica.at);
        replicas[kind]++;
        if (at_ms != 0 && kind != REPLICA_IN_SYNC && (oldest_ms == 0 || at_ms < oldest_ms))
            oldest_ms = at_ms;
    }
    states_put(out, "drover_vms", "VMs by what was last seen of them.", vm_state_desc.names, states, vm_state_COUNT);
    api_metrics_put(out, "drover_vms_not_as_wanted", "gauge",
                    "VMs that are not what their users want them to be, as `drover cluster status` lists them.", not_as_wanted);
    api_metrics_put(out, "drover_vms_recovering", "gauge", "VMs with ha whose host was lost and that no other host has yet.", recovering);
    states_put(out, "drover_replicas",
               "VMs that are to have a replica, by how it stands; none: there is no point that could stand in for the VM's disks.",
               replica_names, replicas, REPLICA_KINDS);
    if (oldest_ms != 0)
        api_metrics_put(out, "drover_replica_oldest_point_timestamp_seconds", "gauge",
                        "The oldest of the replicas' last points; those in sync left out.", oldest_ms / 1000);
}

/* ---- hosts and pools ---- */

static void hosts_put(const struct state *state, struct bytes_writer *out)
{
    static const struct {
        const char *name, *help;
    } gauges[] = {{"drover_host_memory_bytes", "Memory that a host has."},
                  {"drover_host_memory_committed_bytes", "Of it, promised to VMs."},
                  {"drover_host_disk_bytes", "Room for disks in a host's own directory."},
                  {"drover_host_disk_free_bytes", "Of it, free, about."}};
    size_t count = state_count(state, object_kind_HOST);
    uint64_t states[STATES_MAX] = {0};
    for (size_t i = 0; i < count; i++)
        states[state_at(state, object_kind_HOST, i)->host->state]++;
    states_put(out, "drover_hosts", "Hosts by what is held true of them.", host_state_desc.names, states, host_state_COUNT);
    for (size_t g = 0; g < ARRAY_SIZE(gauges); g++) {
        head_put(out, gauges[g].name, gauges[g].help);
        for (size_t i = 0; i < count; i++) {
            const struct record *record = state_at(state, object_kind_HOST, i);
            const struct host *host = record->host;
            const uint64_t values[] = {host->memory_bytes, record->of_host.committed_memory_bytes, host->disk_bytes, host->disk_free_bytes};
            one_put(out, gauges[g].name, "host", host->name, values[g]);
        }
    }
}

static const char *member_name(const struct state *state, const struct pool_host *member)
{
    const struct record *host = state_get(state, object_kind_HOST, member->host);
    return host != NULL ? host->common->name : member->host;
}

static void pools_put(const struct state *state, struct bytes_writer *out)
{
    static const struct {
        const char *name, *help;
    } gauges[] = {{"drover_pool_present", "1 where a host says that it has the pool, 0 where it cannot use it."},
                  {"drover_pool_size_bytes", "Size of the pool, as a host that has it says."},
                  {"drover_pool_free_bytes", "Of it, free, about."}};
    for (size_t g = 0; g < ARRAY_SIZE(gauges); g++) {
        head_put(out, gauges[g].name, gauges[g].help);
        for (size_t i = 0; i < state_count(state, object_kind_POOL); i++) {
            const struct pool *pool = state_at(state, object_kind_POOL, i)->pool;
            const struct pool_host *members = pool->members.items;
            for (size_t m = 0; m < pool->members.count; m++) {
                bool present = members[m].state == pool_host_state_PRESENT;
                const uint64_t values[] = {present, members[m].size_bytes, members[m].free_bytes};
                if (g == 0 || present)
                    bytes_put_format(out, "%s{pool=\"%s\",host=\"%s\"} %llu\n", gauges[g].name, pool->name,
                                     member_name(state, &members[m]), (unsigned long long)values[g]);
            }
        }
    }
}

/* ---- backups ---- */

struct policy_sums {
    uint64_t vms, late, failed, oldest_ms;
    bool lacking; /* a VM of it has no whole backup at all */
};

/* The newest backups of each VM. */
struct newest {
    struct map whole; /* struct backup by VM id: there, and not known to be damaged */
    struct map tried; /* struct backup by VM id: that a policy wanted, however it ended */
};

static void newest_keep(struct map *of, struct backup *backup)
{
    const struct backup *other = map_get(of, backup->vm);
    if (other == NULL || strcmp(backup->created_at, other->created_at) > 0)
        map_put(of, backup->vm, backup);
}

/* One of a time ahead of now stands for nothing, as for the schedule (controller/reconcile/backup_schedule.h). */
static void newest_find(const struct state *state, uint64_t now_ms, struct newest *ret)
{
    for (size_t i = 0; i < state_count(state, object_kind_BACKUP); i++) {
        struct backup *backup = state_at(state, object_kind_BACKUP, i)->backup;
        if (backup->vm == NULL || time_text_is_ahead(now_ms, backup->created_at))
            continue;
        if (backup->policy != NULL)
            newest_keep(&ret->tried, backup);
        if (backup->damage == NULL && (backup->state == backup_state_AVAILABLE || backup->state == backup_state_RESTORING))
            newest_keep(&ret->whole, backup);
    }
}

/* One more VM of @policy. */
static void policy_count(struct policy_sums *sums, const struct backup_policy *policy, const struct vm *vm, const struct newest *newest,
                         uint64_t now_ms)
{
    const struct backup *whole = map_get(&newest->whole, vm->id), *tried = map_get(&newest->tried, vm->id);
    const char *since = whole != NULL ? whole->created_at : vm->created_at;
    sums->vms++;
    sums->late += time_text_is_over(now_ms, since, policy->every_s * 1000 * CLUSTER_METRICS_LATE_PERIODS);
    sums->failed += tried != NULL && tried->state == backup_state_FAILED;
    sums->lacking = sums->lacking || whole == NULL;
    if (whole != NULL && (sums->oldest_ms == 0 || time_text_ms(whole->created_at) < sums->oldest_ms))
        sums->oldest_ms = time_text_ms(whole->created_at);
}

static void policies_put(const struct state *state, uint64_t now_ms, struct bytes_writer *out)
{
    size_t count = state_count(state, object_kind_BACKUP_POLICY);
    struct policy_sums *sums CLEANUP_FREE = xcalloc(count + 1, sizeof *sums);
    struct newest newest = {0};
    struct map numbers = {0};
    uint64_t without = 0;
    if (count > 0)
        newest_find(state, now_ms, &newest);
    for (size_t i = 0; i < count; i++)
        map_put(&numbers, state_at(state, object_kind_BACKUP_POLICY, i)->common->id, &sums[i]);
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        const char *name = string_map_get(&vm->labels, BACKUP_POLICY_LABEL);
        if (name == NULL || vm->unstarted || vm->wanted == vm_wanted_DELETED)
            continue;
        const struct record *policy = state_get(state, object_kind_BACKUP_POLICY, name);
        if (policy == NULL)
            without++;
        else
            policy_count(map_get(&numbers, policy->common->id), policy->backup_policy, vm, &newest, now_ms);
    }
    static const struct {
        const char *name, *help;
    } gauges[] = {{"drover_backup_policy_vms", "VMs that a policy is to back up."},
                  {"drover_backup_policy_vms_late", "Of them, those without a whole backup for twice the policy's every_s, also while it is paused."},
                  {"drover_backup_policy_vms_failed", "Of them, those whose last backup by a policy failed and of which none is being made."},
                  {"drover_backup_policy_oldest_timestamp_seconds",
                   "Of each VM's newest whole backup the oldest: when it was asked for; 0 where a VM has none."}};
    for (size_t g = 0; g < ARRAY_SIZE(gauges); g++) {
        head_put(out, gauges[g].name, gauges[g].help);
        for (size_t i = 0; i < count; i++) {
            const uint64_t values[] = {sums[i].vms, sums[i].late, sums[i].failed, sums[i].lacking ? 0 : sums[i].oldest_ms / 1000};
            if (g < 3 || sums[i].vms > 0)
                one_put(out, gauges[g].name, "policy", state_at(state, object_kind_BACKUP_POLICY, i)->common->name, values[g]);
        }
    }
    api_metrics_put(out, "drover_backup_policy_missing_vms", "gauge", "VMs whose label backup-policy names none that there is.", without);
    map_finish(&numbers);
    map_finish(&newest.whole);
    map_finish(&newest.tried);
}

static void stores_put(const struct state *state, struct bytes_writer *out)
{
    size_t count = state_count(state, object_kind_BACKUP_STORE);
    head_put(out, "drover_backup_store_damaged", "1 where the last verification of a store found damage.");
    for (size_t i = 0; i < count; i++) {
        const struct backup_store *store = state_at(state, object_kind_BACKUP_STORE, i)->backup_store;
        one_put(out, "drover_backup_store_damaged", "store", store->name, store->damage != NULL);
    }
    head_put(out, "drover_backup_store_verified_timestamp_seconds", "When all of a store was last verified; 0: never.");
    for (size_t i = 0; i < count; i++) {
        const struct backup_store *store = state_at(state, object_kind_BACKUP_STORE, i)->backup_store;
        one_put(out, "drover_backup_store_verified_timestamp_seconds", "store", store->name, time_text_ms(store->verified_at) / 1000);
    }
}

static void backups_put(const struct state *state, uint64_t now_ms, struct bytes_writer *out)
{
    uint64_t states[STATES_MAX] = {0}, damaged = 0;
    for (size_t i = 0; i < state_count(state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(state, object_kind_BACKUP, i)->backup;
        states[backup->state]++;
        damaged += backup->damage != NULL;
    }
    states_put(out, "drover_backups", "Backups by where they stand.", backup_state_desc.names, states, backup_state_COUNT);
    api_metrics_put(out, "drover_backups_damaged", "gauge", "Backups of which something was found damaged.", damaged);
    policies_put(state, now_ms, out);
    stores_put(state, out);
}

static void volumes_put(const struct state *state, struct bytes_writer *out)
{
    uint64_t states[STATES_MAX] = {0};
    for (size_t i = 0; i < state_count(state, object_kind_VOLUME); i++)
        states[state_at(state, object_kind_VOLUME, i)->volume->state]++;
    states_put(out, "drover_volumes", "Volumes by where they stand.", volume_state_desc.names, states, volume_state_COUNT);
}

void cluster_metrics_put(const struct state *state, uint64_t now_ms, struct bytes_writer *out)
{
    hosts_put(state, out);
    vms_put(state, out);
    pools_put(state, out);
    volumes_put(state, out);
    backups_put(state, now_ms, out);
}
