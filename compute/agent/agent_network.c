/* The host's networks between the agent's parts:
 *
 *   orders ---------> learn: networks.json ---+
 *   agent starts ---> loaded ------------------+--> stale --> rules applied in the thread pool --> fresh
 *   it fails --------------------------------- + <--- tried again with the next tick
 *
 * VMs that start and end plug and unplug themselves (vm_files.c), also in the thread pool; what of that concerns DHCP is
 * looked at here, for sockets belong to the loop. */
#include "common/log.h"
#include "compute/agent/agent.h"

int agent_network_start(struct agent *a, struct error *err)
{
    int r = host_network_create(a->data_dir, &a->network, err);
    if (r == 0)
        a->dhcp = dhcp_server_create(a->loop, a->network);
    return r;
}

void agent_network_loaded(struct agent *a)
{
    struct local_vm *vm;
    struct error err = {.code = 0};
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        host_network_adopt(a->network, vm_order_of(vm));
    /* Guests that run have their rules in the kernel still; these are the same, or newer. */
    if (host_network_apply(a->network, &err) < 0) {
        log_error("network-rules", "error=\"%s\"", err.text);
        a->network_stale = true;
    }
    dhcp_server_sync(a->dhcp);
}

void agent_network_learn(struct agent *a, const struct node_orders *orders)
{
    struct error err = {.code = 0};
    bool changed = false;
    if (host_network_learn(a->network, orders, &changed, &err) < 0)
        log_error("network-learn", "error=\"%s\"", err.text); /* the same orders come again */
    a->network_stale |= changed;
    agent_network_tick(a);
}

/* ---- rules, in the thread pool ---- */

static void work_apply(uv_work_t *work)
{
    struct agent *a = CONTAINER_OF(work, struct agent, network_work);
    struct error err = {.code = 0};
    int r = host_network_apply(a->network, &err);
    if (r < 0)
        log_error("network-rules", "error=\"%s\"", err.text);
    work->data = r < 0 ? a : NULL;
}

static void work_after(uv_work_t *work, int status)
{
    struct agent *a = CONTAINER_OF(work, struct agent, network_work);
    (void)status;
    a->network_busy = false;
    a->network_stale |= work->data != NULL; /* with the next tick of the timer: not at once, or it would spin */
    if (a->stopping)
        agent_part_closed(a);
}

void agent_network_tick(struct agent *a)
{
    if (a->stopping)
        return;
    dhcp_server_sync(a->dhcp);
    if (!a->network_stale || a->network_busy)
        return;
    a->network_stale = false;
    a->network_busy = true;
    int r = uv_queue_work(a->loop, &a->network_work, work_apply, work_after);
    ASSERT(r == 0);
}

void agent_network_stop(struct agent *a)
{
    if (a->network_busy)
        a->closing++;
    if (a->dhcp != NULL) {
        a->closing++;
        dhcp_server_close(a->dhcp, agent_part_closed, a);
        a->dhcp = NULL;
    }
}
