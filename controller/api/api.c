/* The API as a whole: start, stop, the table of handlers, deadlines. */
#include "controller/api/api.h"

#include <errno.h>
#include <string.h>

#include "controller/api/api_call.h"
#include "controller/api/api_console.h"
#include "controller/api/api_drill.h"
#include "controller/api/api_lease.h"
#include "controller/api/api_image.h"
#include "controller/api/api_member.h"
#include "controller/api/api_node.h"
#include "controller/api/api_read.h"
#include "controller/api/api_system.h"
#include "controller/api/api_token.h"
#include "controller/api/api_watch.h"
#include "controller/api/api_write.h"
#include "controller/environment.h"
#include "schema/upload_protocol.h"

const api_handler api_handlers[ROUTE_COUNT] = {
    [ROUTE_ID_cluster_show] = api_read_show,
    [ROUTE_ID_cluster_update] = api_write,
    [ROUTE_ID_controller_list] = api_read_list,
    [ROUTE_ID_controller_show] = api_read_show,
    [ROUTE_ID_controller_remove] = api_member_remove,
    [ROUTE_ID_controller_promote] = api_member_promote,
    [ROUTE_ID_controller_transfer] = api_member_transfer,
    [ROUTE_ID_host_list] = api_read_list,
    [ROUTE_ID_host_show] = api_read_show,
    [ROUTE_ID_host_update] = api_write,
    [ROUTE_ID_host_remove] = api_write,
    [ROUTE_ID_host_drain] = api_write,
    [ROUTE_ID_host_undrain] = api_write,
    [ROUTE_ID_host_disarm] = api_write,
    [ROUTE_ID_host_arm] = api_write,
    [ROUTE_ID_host_loss] = api_read_loss,
    [ROUTE_ID_host_drill] = api_drill_host,
    [ROUTE_ID_host_observation] = api_drill_observation,
    [ROUTE_ID_controller_drill] = api_drill_controller,
    [ROUTE_ID_drill_begin] = api_write,
    [ROUTE_ID_drill_end] = api_write,
    [ROUTE_ID_ha_disarm] = api_write,
    [ROUTE_ID_ha_arm] = api_write,
    [ROUTE_ID_node_lease] = api_node_lease,
    [ROUTE_ID_lease_look] = api_lease_look,
    [ROUTE_ID_flavor_list] = api_read_list,
    [ROUTE_ID_flavor_create] = api_write,
    [ROUTE_ID_flavor_show] = api_read_show,
    [ROUTE_ID_flavor_update] = api_write,
    [ROUTE_ID_flavor_delete] = api_write,
    [ROUTE_ID_image_list] = api_read_list,
    [ROUTE_ID_image_create] = api_write,
    [ROUTE_ID_image_show] = api_read_show,
    [ROUTE_ID_image_update] = api_write,
    [ROUTE_ID_image_delete] = api_write,
    [ROUTE_ID_image_distribute] = api_write,
    [ROUTE_ID_image_content] = api_image_content,
    [ROUTE_ID_image_upload_show] = api_image_upload,
    [ROUTE_ID_image_upload] = api_image_upload,
    [ROUTE_ID_network_list] = api_read_list,
    [ROUTE_ID_network_create] = api_write,
    [ROUTE_ID_network_show] = api_read_show,
    [ROUTE_ID_network_update] = api_write,
    [ROUTE_ID_network_delete] = api_write,
    [ROUTE_ID_security_group_list] = api_read_list,
    [ROUTE_ID_security_group_create] = api_write,
    [ROUTE_ID_security_group_show] = api_read_show,
    [ROUTE_ID_security_group_update] = api_write,
    [ROUTE_ID_security_group_delete] = api_write,
    [ROUTE_ID_snapshot_list] = api_read_list,
    [ROUTE_ID_snapshot_create] = api_write,
    [ROUTE_ID_snapshot_show] = api_read_show,
    [ROUTE_ID_snapshot_update] = api_write,
    [ROUTE_ID_snapshot_revert] = api_write,
    [ROUTE_ID_snapshot_clone] = api_write,
    [ROUTE_ID_snapshot_delete] = api_write,
    [ROUTE_ID_backup_store_list] = api_read_list,
    [ROUTE_ID_backup_store_create] = api_write,
    [ROUTE_ID_backup_store_show] = api_read_show,
    [ROUTE_ID_backup_store_update] = api_write,
    [ROUTE_ID_backup_store_delete] = api_write,
    [ROUTE_ID_backup_store_attach] = api_write,
    [ROUTE_ID_backup_store_verify] = api_write,
    [ROUTE_ID_backup_store_prune] = api_write,
    [ROUTE_ID_backup_policy_list] = api_read_list,
    [ROUTE_ID_backup_policy_create] = api_write,
    [ROUTE_ID_backup_policy_show] = api_read_show,
    [ROUTE_ID_backup_policy_update] = api_write,
    [ROUTE_ID_backup_policy_delete] = api_write,
    [ROUTE_ID_backup_list] = api_read_list,
    [ROUTE_ID_backup_create] = api_write,
    [ROUTE_ID_backup_show] = api_read_show,
    [ROUTE_ID_backup_update] = api_write,
    [ROUTE_ID_backup_delete] = api_write,
    [ROUTE_ID_backup_restore] = api_write,
    [ROUTE_ID_backup_verify] = api_write,
    [ROUTE_ID_pool_list] = api_read_list,
    [ROUTE_ID_pool_create] = api_write,
    [ROUTE_ID_pool_show] = api_read_show,
    [ROUTE_ID_pool_update] = api_write,
    [ROUTE_ID_pool_delete] = api_write,
    [ROUTE_ID_volume_list] = api_read_list,
    [ROUTE_ID_volume_create] = api_write,
    [ROUTE_ID_volume_show] = api_read_show,
    [ROUTE_ID_volume_update] = api_write,
    [ROUTE_ID_volume_attach] = api_write,
    [ROUTE_ID_volume_detach] = api_write,
    [ROUTE_ID_volume_move] = api_write,
    [ROUTE_ID_volume_snapshot] = api_write,
    [ROUTE_ID_volume_forget_left] = api_write,
    [ROUTE_ID_volume_delete] = api_write,
    [ROUTE_ID_vm_list] = api_read_list,
    [ROUTE_ID_vm_create] = api_write,
    [ROUTE_ID_vm_show] = api_read_show,
    [ROUTE_ID_vm_update] = api_write,
    [ROUTE_ID_vm_delete] = api_write,
    [ROUTE_ID_vm_start] = api_write,
    [ROUTE_ID_vm_stop] = api_write,
    [ROUTE_ID_vm_reboot] = api_write,
    [ROUTE_ID_vm_pause] = api_write,
    [ROUTE_ID_vm_resume] = api_write,
    [ROUTE_ID_vm_migrate] = api_write,
    [ROUTE_ID_vm_move_disk] = api_write,
    [ROUTE_ID_vm_clone] = api_write,
    [ROUTE_ID_vm_forget_left] = api_write,
    [ROUTE_ID_vm_upgrade] = api_write,
    [ROUTE_ID_vm_placement] = api_read_placement,
    [ROUTE_ID_vm_console_ticket] = api_console_ticket,
    [ROUTE_ID_vm_console] = api_console,
    [ROUTE_ID_operation_list] = api_read_list,
    [ROUTE_ID_operation_show] = api_read_operation,
    [ROUTE_ID_operation_cancel] = api_write,
    [ROUTE_ID_token_list] = api_read_list,
    [ROUTE_ID_token_create] = api_write,
    [ROUTE_ID_token_delete] = api_write,
    [ROUTE_ID_event_stream] = api_watch,
    [ROUTE_ID_join] = api_join,
    [ROUTE_ID_node_report] = api_node_report,
    [ROUTE_ID_node_handover] = api_node_handover,
    [ROUTE_ID_metrics] = api_metrics_show,
    [ROUTE_ID_healthz] = api_healthz,
    [ROUTE_ID_readyz] = api_readyz,
    [ROUTE_ID_openapi] = api_openapi,
};

/* Take every call out of @list that is due at @now (UINT64_MAX: all) and let it go on. A call may join a list again
 * meanwhile, so those that are due are set aside first. */
static void fire_due(struct list *list, uint64_t now)
{
    struct list due;
    list_init(&due);
    LIST_FOREACH_SAFE(link, list)
    {
        struct api_call *call = LIST_ENTRY(link, struct api_call, link);
        if (call->deadline_ms > now)
            continue;
        list_remove(link);
        list_append(&due, link);
    }
    while (!list_empty(&due)) {
        struct api_call *call = LIST_ENTRY(due.next, struct api_call, link);
        api_call_unwait(call);
        call->on_deadline(call);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct api *api = timer->data;
    uint64_t now = environment_monotonic_ms();
    fire_due(&api->leader_waiters, now);
    fire_due(&api->operation_waiters, now);
    fire_due(&api->polls, now);
    fire_due(&api->list_waiters, now);
    fire_due(&api->member_waiters, now);
}

int api_start(struct api *api, struct service *service, const char *address, struct error *err)
{
    *api = (struct api){.service = service, .started_ms = environment_monotonic_ms()};
    list_init(&api->leader_waiters);
    list_init(&api->operation_waiters);
    list_init(&api->polls);
    list_init(&api->list_waiters);
    list_init(&api->member_waiters);
    list_init(&api->watchers);
    int r = http_proxy_create(service->loop, &api->proxy, err);
    if (r < 0)
        return r;
    struct http_server_options options = {
        .address = address,
        .tls = service->tls,
        .client_check = TLS_CLIENT_OPTIONAL, /* healthz and join have none; every other route asks for an identity */
        .limits = {.body_bytes_max = UPLOAD_PIECE_BYTES_MAX},
        .handler = api_call_start,
        .arg = service,
    };
    r = http_server_start(service->loop, &options, &api->server, err);
    if (r < 0) {
        http_proxy_close(api->proxy, NULL, NULL);
        return r;
    }
    api_watch_start(api);
    ASSERT(uv_timer_init(service->loop, &api->timer) == 0);
    api->timer.data = api;
    return uv_timer_start(&api->timer, on_tick, API_TICK_MS, API_TICK_MS);
}

void api_stop(struct api *api)
{
    api->stopping = true;
    api_watch_stop(api);
    fire_due(&api->leader_waiters, UINT64_MAX);
    fire_due(&api->operation_waiters, UINT64_MAX);
    fire_due(&api->polls, UINT64_MAX);
    fire_due(&api->list_waiters, UINT64_MAX);
    fire_due(&api->member_waiters, UINT64_MAX);
    http_proxy_close(api->proxy, NULL, NULL);
    http_server_stop(api->server, NULL, NULL);
    uv_close((uv_handle_t *)&api->timer, NULL);
}

void api_finish(struct api *api)
{
    map_finish(&api->keys);
    console_tickets_finish(&api->tickets);
    bytes_writer_finish(&api->cluster_metrics);
}

void api_leader_changed(struct api *api)
{
    if (api->stopping)
        return;
    fire_due(&api->leader_waiters, UINT64_MAX);
    api_node_applied(api);
}

void api_applied(struct api *api)
{
    if (api->stopping)
        return;
    api_read_applied(api);
    api_node_applied(api);
    api_watch_applied(api);
}
