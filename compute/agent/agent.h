/* The agent: owner of all that runs on the loop of drover-agent: VMs, images, session, server. One loop thread. */
#ifndef COMPUTE_AGENT_AGENT_H
#define COMPUTE_AGENT_AGENT_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/list.h"
#include "common/map.h"
#include "common/tls.h"
#include "compute/agent/agent_drill.h"
#include "compute/agent/agent_volumes.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/agent_lease.h"
#include "compute/agent/dhcp_server.h"
#include "compute/agent/host_facts.h"
#include "compute/agent/host_network.h"
#include "compute/agent/image_cache.h"
#include "compute/agent/image_serve.h"
#include "compute/agent/image_upload.h"
#include "compute/agent/pool_watch.h"
#include "compute/agent/session.h"
#include "compute/agent/task_boot.h"
#include "compute/agent/task_migrate.h"
#include "compute/agent/task_replicate.h"
#include "compute/agent/vm.h"
#include "compute/agent/vmm_cgroup.h"
#include "schema/objects.h"

#define AGENT_VERSION "0.1.0"
#define AGENT_PROGRESS_MS 1000 /* how often the progress of downloads is told */
#define AGENT_SHUTDOWN_S 90u    /* that guests have when the host goes down, where the orders do not say */
#define AGENT_DOWN_LOOK_MS 100  /* between looks whether they are off */
/* Until every VMM has seen that it may not run (a few looks at its page), and what it had begun to write to shared disks before is
 * done: the margin that a lease which runs out leaves, too. */
#define AGENT_LEAVE_HOLD_MS 600
#define AGENT_LEAVE_TICKS_MAX 5u /* of that time, for the controllers to hear of it */
#define AGENT_JSON_BYTES_MAX (256 * 1024)

struct http_server;

/* Whether guests get memory that another VMM of the host can be handed (`vm upgrade`). AUTO: where the kernel gives huge pages to
 * such memory as well (/sys/kernel/mm/transparent_hugepage/shmem_enabled). */
enum agent_shared_memory { AGENT_SHARED_AUTO, AGENT_SHARED_ALWAYS, AGENT_SHARED_NEVER };

/* Borrowed for the call of agent_start. */
struct agent_options {
    const char *data_dir; /* absolute */
    const char *vmm_path; /* drover-vmm, absolute */
    const char *listen;   /* NULL: the address of identity.json */
    bool make_bridges;
    uint32_t vmm_user_base; /* vmm_user.h; 0: VMMs run as the agent does */
    enum agent_shared_memory shared_memory;
};

struct agent {
    uv_loop_t *loop;
    char *data_dir, *vms_dir, *run_dir, *images_dir, *replicas_dir, *lease_dir, *vmm_path;
    int lock_fd; /* of the data directory: one agent at a time */
    struct node_identity identity;
    bool report_cut; /* the last report was larger than the controllers take */
    struct host_facts facts; /* as of the last report */
    enum cpu_kind cpu_baseline;
    struct tls_context *tls;
    struct http_client *http;
    struct image_cache *images;
    struct image_fetch_identity image_identity;
    struct image_serve_list image_serves;
    struct image_uploads uploads;
    struct vm_context vm_context;
    struct vmm_cgroups cgroups;
    char isolation[201]; /* what keeps VMMs apart, for the host's status */
    struct map vms;      /* struct local_vm by id */
    struct agent_tasks tasks;
    struct pool_watches pools;
    struct pool_works pool_works;
    struct agent_volumes volumes;
    struct agent_migrations migrations;
    struct agent_replicas replicas;
    struct agent_boots boots;
    uint64_t generation; /* lease generation of this host, as told */
    uint64_t arming;     /* as told and carried out (node_orders) */
    struct agent_lease lease;
    struct agent_drill drill;
    bool lease_started;
    uint32_t shutdown_s; /* for guests when the host goes down, as told; 0: AGENT_SHUTDOWN_S */
    bool left;           /* the lease is given up, and the controllers are told */
    unsigned leave_ticks; /* since then, of AGENT_LEAVE_HOLD_MS */
    uv_timer_t leave_timer;
    void (*leave_done)(void *arg);
    void *leave_arg;
    unsigned upgrade_late_ms; /* how long a VM may take to be handed over to its new VMM; 0: 2 min (tests: less) */
    bool ask_again;      /* an order had to wait: get all of them again when a VM has gone */
    struct session *session;
    struct http_server *server;
    struct list consoles;
    struct host_network *network;
    struct dhcp_server *dhcp;
    uv_work_t network_work;                /* packet rules being applied */
    bool network_busy, network_stale;      /* stale: the rules are to be applied anew */
    uv_timer_t progress;
    unsigned closing; /* things that still end */
    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

/* Data directory, its VMs and what runs of them, server and session. On failure nothing is left. */
int agent_start(uv_loop_t *loop, const struct agent_options *options, struct agent **ret_agent, struct error *err);
/* The host goes down in order: its guests are shut down, each with the time that its VM gives it and all with that of the cluster
 * (shutdown_timeout_s), and no VM is started any more. Then the lease is given up: what a migration has not brought to its end
 * is held, and the controllers may start VMs elsewhere without waiting for the lease. Then, or after some seconds without an
 * answer, @done (once); the agent should then be stopped. */
void agent_leave(struct agent *agent, void (*done)(void *arg), void *arg);
/* Guests and their VMMs go on. Then @stopped, and the memory is gone. */
void agent_stop(struct agent *agent, void (*stopped)(void *arg), void *arg);

/* agent_network.c: networks of the host between orders, VMs and kernel. */
int agent_network_start(struct agent *agent, struct error *err); /* before the VMs are loaded */
void agent_network_loaded(struct agent *agent);                  /* after: rules and DHCP for what runs */
void agent_network_learn(struct agent *agent, const struct node_orders *orders);
void agent_network_tick(struct agent *agent); /* whatever is stale is tried again */
void agent_network_stop(struct agent *agent); /* counts in agent->closing */

/* agent_images.c: images of the host between orders, VMs and other agents. */
int agent_images_start(struct agent *agent, struct error *err); /* the cache is there */
void agent_images_learn(struct agent *agent, const struct node_orders *orders);
void agent_images_put_seen(struct agent *agent, struct node_report *report);
void agent_images_tick(struct agent *agent);
void agent_images_stop(struct agent *agent); /* counts in agent->closing; the server has been told to stop */
void agent_images_finish(struct agent *agent);
/* Is it about images? Then the request is answered. @controller: it is of one, else of a host of the cluster. */
bool agent_images_handle(struct agent *agent, struct http_request *request, bool controller);

/* agent.c: something may have changed for @vm, which may be closed by this. */
void agent_vm_look(struct agent *agent, struct local_vm *vm);
/* agent.c: one of agent->closing has closed. */
void agent_part_closed(void *agent);

/* agent_server.c: the HTTPS interface. */
int agent_server_start(struct agent *agent, const char *listen, struct error *err);

#endif
