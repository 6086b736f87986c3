/* Which function stands behind which row of schema/vmm_routes.def. */
#include "compute/vmm/control_call.h"

static const control_fn functions[VMM_ROUTE_COUNT] = {
    /* clang-format off */
    [VMM_ROUTE_vm_show] = control_vm_show,
    [VMM_ROUTE_vm_move] = control_vm_move,
    [VMM_ROUTE_vm_stats] = control_vm_stats,
    [VMM_ROUTE_balloon_show] = control_balloon_show,
    [VMM_ROUTE_balloon_set] = control_balloon_set,
    [VMM_ROUTE_agent_show] = control_agent_show,
    [VMM_ROUTE_agent_call] = control_agent_call,
    [VMM_ROUTE_disk_list] = control_disk_list,
    [VMM_ROUTE_disk_plug] = control_disk_plug,
    [VMM_ROUTE_disk_show] = control_disk_show,
    [VMM_ROUTE_disk_change] = control_disk_change,
    [VMM_ROUTE_disk_move] = control_disk_move,
    [VMM_ROUTE_disk_move_end] = control_disk_move_end,
    [VMM_ROUTE_disk_move_cancel] = control_disk_move_cancel,
    [VMM_ROUTE_disk_unplug] = control_device_unplug,
    [VMM_ROUTE_nic_list] = control_nic_list,
    [VMM_ROUTE_nic_plug] = control_nic_plug,
    [VMM_ROUTE_nic_show] = control_nic_show,
    [VMM_ROUTE_nic_change] = control_nic_change,
    [VMM_ROUTE_nic_unplug] = control_device_unplug,
    [VMM_ROUTE_snapshot_show] = control_snapshot_show,
    [VMM_ROUTE_snapshot_write] = control_snapshot_write,
    [VMM_ROUTE_snapshot_cancel] = control_snapshot_cancel,
    [VMM_ROUTE_backup_show] = control_backup_show,
    [VMM_ROUTE_backup_begin] = control_backup_begin,
    [VMM_ROUTE_backup_end] = control_backup_end,
    [VMM_ROUTE_replica_show] = control_replica_show,
    [VMM_ROUTE_replica_begin] = control_replica_begin,
    [VMM_ROUTE_replica_end] = control_replica_end,
    [VMM_ROUTE_fill_show] = control_fill_show,
    [VMM_ROUTE_point_list] = control_point_list,
    [VMM_ROUTE_point_take] = control_point_take,
    [VMM_ROUTE_point_drop] = control_point_drop,
    [VMM_ROUTE_migration_show] = control_migration_show,
    [VMM_ROUTE_migration_start] = control_migration_start,
    [VMM_ROUTE_migration_wait] = control_migration_wait,
    [VMM_ROUTE_migration_cancel] = control_migration_cancel,
    [VMM_ROUTE_migration_permit] = control_migration_permit,
    [VMM_ROUTE_migration_decide] = control_migration_decide,
    [VMM_ROUTE_openapi] = control_openapi,
    /* clang-format on */
};

control_fn control_route_function(const struct route_desc *route)
{
    return functions[route->id];
}

int control_openapi(struct control_call *call, struct error *err UNUSED)
{
    route_table_openapi(&vmm_route_table, &call->answer);
    return 0;
}
