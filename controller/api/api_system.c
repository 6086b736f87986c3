/* Health, readiness, metrics, OpenAPI. */
#include "controller/api/api_system.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_read.h"
#include "controller/api/cluster_metrics.h"
#include "controller/environment.h"
#include "schema/commands.h"

void api_healthz(struct api_call *call)
{
    struct bytes_writer body = {0};
    bytes_put_text(&body, "ok\n");
    api_call_answer(call, 200, "text/plain", NULL, &body);
}

void api_readyz(struct api_call *call)
{
    struct service *service = call->service;
    struct bytes_writer body = {0};
    struct error err;
    service_lock_state(service);
    bool initialized = state_initialized(service->state);
    service_unlock_state(service);
    if (!initialized) {
        error_set(&err, -EAGAIN, ERROR_NOT_INITIALIZED,
                  "this controller has not yet got the cluster's state from a leader");
        api_call_error(call, &err);
    } else if (service->leader.leader_id == 0 || (service_leads(service) && !service->ready)) {
        error_set(&err, -EAGAIN, ERROR_NO_LEADER, "there is no leader at this moment");
        api_call_error(call, &err);
    } else {
        bytes_put_text(&body, "ok\n");
        api_call_answer(call, 200, "text/plain", NULL, &body);
    }
}

void api_openapi(struct api_call *call)
{
    struct bytes_writer body = {0};
    schema_openapi(&body);
    api_call_answer_json(call, 200, "Cache-Control: max-age=300\r\n", &body);
}

/* --- metrics --- */

static void put_raft(const struct raft_node_status *status, struct bytes_writer *out)
{
    const struct {
        const char *name, *type, *help;
        uint64_t value;
    } rows[] = {
        {"drover_raft_leading", "gauge", "1 on the leader.", status->leader.role == RAFT_NODE_LEADER},
        {"drover_raft_leader_id", "gauge", "Raft id of the leader, 0 = none known.", status->leader.leader_id},
        {"drover_raft_term", "counter", "Raft term.", status->leader.term},
        {"drover_raft_index", "counter", "Commands applied.", status->index},
        {"drover_raft_log_applied", "counter", "Log entries applied.", status->raft_applied},
        {"drover_raft_log_commit", "counter", "Log entries committed.", status->raft_commit},
        {"drover_raft_log_last", "counter", "Log entries held.", status->raft_last},
        {"drover_raft_members", "gauge", "Members of the configuration.", status->member_count},
        {"drover_raft_proposals", "gauge", "Commands waiting or in flight.", status->proposals},
        {"drover_raft_proposals_refused_total", "counter", "Commands refused because too many waited.",
         status->commands_refused},
        {"drover_raft_groups_total", "counter", "Log entries proposed here.", status->groups},
        {"drover_raft_reads_asked_total", "counter", "Rounds of questions to the voters that readers were answered by.",
         status->reads_asked},
        {"drover_raft_reads_logged_total", "counter", "Barrier entries written for readers.", status->reads_logged},
        {"drover_raft_no_space", "gauge", "1 while the disk has no room.", status->no_space},
        {"drover_raft_reserve_bytes", "gauge", "Held for snapshots on a full disk.", status->reserve_bytes},
        {"drover_raft_reserves_given_up_total", "counter", "How often that was needed.", status->reserves_given_up},
        {"drover_raft_writes_held_total", "counter", "Writes of the log that waited for room.", status->writes_held},
        {"drover_raft_cuts_held_total", "counter", "Cuts of the log that waited for a snapshot.", status->cuts_held},
        {"drover_raft_disk_writes_total", "counter", "Writes of the log.", status->disk_writes},
        {"drover_raft_disk_write_microseconds_total", "counter", "Time in them.", status->disk_write_us},
        {"drover_raft_disk_write_microseconds_max", "gauge", "The slowest.", status->disk_write_us_max},
        {"drover_raft_apply_microseconds_total", "counter", "Time in the state machine.", status->apply_us},
        {"drover_raft_apply_microseconds_max", "gauge", "The slowest group.", status->apply_us_max},
        {"drover_raft_snapshots_total", "counter", "Snapshots taken.", status->snapshots_taken},
        {"drover_raft_snapshots_restored_total", "counter", "Snapshots restored.", status->snapshots_restored},
        {"drover_raft_snapshot_bytes", "gauge", "Size of the last snapshot.", status->snapshot_bytes},
        {"drover_raft_snapshot_microseconds", "gauge", "Time of the last snapshot.", status->snapshot_us},
        {"drover_raft_restore_microseconds", "gauge", "Time of the last restore of a snapshot.", status->restore_us},
        {"drover_raft_restoring", "gauge", "1 while a snapshot or much of the log is taken over; reads here are older.",
         status->restoring},
        {"drover_raft_entries_deferred_total", "counter", "Log entries that had to wait for that.",
         status->entries_deferred},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        api_metrics_put(out, rows[i].name, rows[i].type, rows[i].help, rows[i].value);
}

static void put_objects(struct service *service, struct bytes_writer *out)
{
    bytes_put_text(out, "# HELP drover_objects Objects in the state.\n# TYPE drover_objects gauge\n");
    service_lock_state(service);
    for (unsigned kind = 0; kind < object_kind_COUNT; kind++)
        if (kind != object_kind_EVENT)
            bytes_put_format(out, "drover_objects{kind=\"%s\"} %zu\n", object_kind_desc.names[kind],
                             state_count(service->state, (enum object_kind)kind));
    service_unlock_state(service);
}

static void put_loops(const struct service *service, const struct raft_node_status *status, struct bytes_writer *out)
{
    static const char *const names[] = {"api", "raft"};
    struct loop_meter_counts counts[] = {loop_meter_counts(&service->meter, environment_monotonic_us()), status->turns};
    loop_meter_put(out, names, counts, ARRAY_SIZE(names));
}

static void put_cluster(struct service *service, struct bytes_writer *out)
{
    service_lock_state(service);
    cluster_metrics_put(service->state, environment_unix_ms(), out);
    service_unlock_state(service);
}

static uint64_t resident_bytes(void)
{
    size_t rss = 0;
    return uv_resident_set_memory(&rss) == 0 ? rss : 0;
}

static void metrics_answer(struct api_call *call, const struct bytes_writer *cluster)
{
    struct service *service = call->service;
    struct api *api = &service->api;
    struct raft_node_status *status CLEANUP_FREE = NEW(struct raft_node_status);
    struct bytes_writer body = {0};
    const struct http_server_counters *http = http_server_counters(api->server);
    raft_node_status(service->raft, status);
    api_metrics_text(&api->metrics, &body);
    put_raft(status, &body);
    put_objects(service, &body);
    bytes_put(&body, cluster->data, cluster->size);
    put_loops(service, status, &body);
    api_metrics_put(&body, "drover_http_connections", "gauge", "Open connections.", http->connections);
    api_metrics_put(&body, "drover_http_accepted_total", "counter", "Connections accepted.", http->accepted);
    api_metrics_put(&body, "drover_http_refused_total", "counter", "Connections refused.", http->refused);
    api_metrics_put(&body, "drover_http_bad_requests_total", "counter", "Requests that were not well-formed.",
                    http->bad_requests);
    api_metrics_put(&body, "drover_http_timeouts_total", "counter", "Connections closed because a client was slow.",
                    http->timeouts);
    api_metrics_put(&body, "drover_api_watchers", "gauge", "Event streams.", api->watcher_count);
    api_metrics_put(&body, "drover_api_waiting", "gauge", "Requests that wait for something.", api->waiting);
    api_metrics_put(&body, "drover_api_ready", "gauge", "1 on a leader that answers.", service->ready);
    api_metrics_put(&body, "drover_process_resident_bytes", "gauge", "Memory of the process.", resident_bytes());
    api_call_answer(call, 200, "text/plain; version=0.0.4", NULL, &body);
}

/* What a look at each VM and each backup of a large cluster gives: by the thread that makes long lists, and good for some seconds,
 * for anybody may ask. */
struct metrics_work {
    struct api_read_work read;
    struct bytes_writer text;
};

static void make_metrics(struct api_read_work *read)
{
    put_cluster(read->call->service, &CONTAINER_OF(read, struct metrics_work, read)->text);
}

static void answer_metrics(struct api_read_work *read)
{
    struct metrics_work *work = CONTAINER_OF(read, struct metrics_work, read);
    struct api *api = &read->call->service->api;
    bytes_writer_finish(&api->cluster_metrics);
    api->cluster_metrics = work->text;
    api->cluster_metrics_until_ms = environment_monotonic_ms() + API_METRICS_GOOD_MS;
    metrics_answer(read->call, &api->cluster_metrics);
    free(work);
}

static bool is_large(struct service *service)
{
    service_lock_state(service);
    size_t count = state_count(service->state, object_kind_VM) + state_count(service->state, object_kind_BACKUP);
    service_unlock_state(service);
    return count > API_READ_LIST_INLINE_MAX;
}

void api_metrics_show(struct api_call *call)
{
    struct service *service = call->service;
    struct bytes_writer text = {0};
    if (!is_large(service)) {
        put_cluster(service, &text);
        metrics_answer(call, &text);
        bytes_writer_finish(&text);
    } else if (environment_monotonic_ms() < service->api.cluster_metrics_until_ms) {
        metrics_answer(call, &service->api.cluster_metrics);
    } else {
        struct metrics_work *work = NEW(struct metrics_work);
        work->read = (struct api_read_work){.call = call, .make = make_metrics, .answer = answer_metrics};
        if (!api_read_start(&work->read))
            free(work);
    }
}
