/* One request on the control socket, as the functions behind the routes see it.
 *
 * A route is a row of schema/vmm_routes.def and a function below, in a file for each concern (control_vm.c,
 * control_devices.c, ...), named in the table of control_routes.c. By then the body has been decoded and checked
 * by its row; the function fills `answer`, of the kind that its row names, or sets `err`:
 *
 *   return 0               `answer` goes out (200, or `status`)
 *   return < 0             a problem made of @err goes out
 *   return CONTROL_LATER   the function keeps the call and ends it once with control_call_end, from the control loop;
 *                          other connections are served meanwhile. The client may be gone by then: that is no
 *                          concern of the function's.
 *
 * Threads: everything on the control loop, with the device lock not held. */
#ifndef COMPUTE_VMM_CONTROL_CALL_H
#define COMPUTE_VMM_CONTROL_CALL_H

#include "common/http_parse.h"
#include "compute/vmm/machine.h"
#include "schema/vmm_routes.h"

enum {
    CONTROL_LATER = 1,
    CONTROL_ID_SIZE = 64, /* of the segment at {id}, terminator included */
};

struct control_connection;

struct control_call {
    struct machine *machine;
    const struct route_desc *route;
    char id[CONTROL_ID_SIZE];   /* "" where the path has none */
    bool force;                 /* ?force=true */
    void *body;                 /* the row's object, decoded; NULL where it has none. Released with the call */
    struct bytes_writer answer; /* JSON */
    int status;                 /* 200 unless set */

    struct control_connection *connection; /* control.c's; NULL once the client is gone */
};

typedef int (*control_fn)(struct control_call *, struct error *err);

/* End a call that was kept. It is gone afterwards. */
void control_call_end(struct control_call *call, int code, const struct error *err);

/* control_routes.c: the function of each route; NULL for the console, which takes the connection over. */
control_fn control_route_function(const struct route_desc *route);
int control_openapi(struct control_call *call, struct error *err);

/* control_vm.c */
int control_vm_show(struct control_call *call, struct error *err);
int control_vm_move(struct control_call *call, struct error *err);
int control_vm_stats(struct control_call *call, struct error *err);

/* control_guest.c */
int control_balloon_show(struct control_call *call, struct error *err);
int control_balloon_set(struct control_call *call, struct error *err);
int control_agent_show(struct control_call *call, struct error *err);
int control_agent_call(struct control_call *call, struct error *err);

/* control_devices.c: disks and network interfaces */
int control_disk_list(struct control_call *call, struct error *err);
int control_disk_plug(struct control_call *call, struct error *err);
int control_disk_show(struct control_call *call, struct error *err);
int control_disk_move(struct control_call *call, struct error *err);
int control_disk_move_end(struct control_call *call, struct error *err);
int control_disk_move_cancel(struct control_call *call, struct error *err);
int control_disk_change(struct control_call *call, struct error *err);
int control_nic_list(struct control_call *call, struct error *err);
int control_nic_plug(struct control_call *call, struct error *err);
int control_nic_show(struct control_call *call, struct error *err);
int control_nic_change(struct control_call *call, struct error *err);
int control_device_unplug(struct control_call *call, struct error *err);

/* control_backup.c */
int control_backup_show(struct control_call *call, struct error *err);
int control_backup_begin(struct control_call *call, struct error *err);
int control_backup_end(struct control_call *call, struct error *err);

/* control_migrate.c */
int control_migration_show(struct control_call *call, struct error *err);
int control_migration_start(struct control_call *call, struct error *err);
int control_migration_wait(struct control_call *call, struct error *err);
int control_migration_cancel(struct control_call *call, struct error *err);
int control_migration_permit(struct control_call *call, struct error *err);
int control_migration_decide(struct control_call *call, struct error *err);

/* control_points.c */
int control_fill_show(struct control_call *call, struct error *err);
int control_point_list(struct control_call *call, struct error *err);
int control_point_take(struct control_call *call, struct error *err);
int control_point_drop(struct control_call *call, struct error *err);

/* control_replica.c */
int control_replica_show(struct control_call *call, struct error *err);
int control_replica_begin(struct control_call *call, struct error *err);
int control_replica_end(struct control_call *call, struct error *err);

/* control_snapshot.c */
int control_snapshot_show(struct control_call *call, struct error *err);
int control_snapshot_write(struct control_call *call, struct error *err);
int control_snapshot_cancel(struct control_call *call, struct error *err);

#endif
