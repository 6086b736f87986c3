/* The host's networks; see the header. */
#include "compute/agent/host_network.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/ip_address.h"
#include "common/log.h"
#include "common/map.h"
#include "compute/agent/bridge.h"
#include "compute/agent/firewall.h"
#include "compute/agent/tap.h"
#include "compute/agent/vm_files.h"

/* A VM with its NICs: id, name, hostname and nics of its order. */
struct plugged {
    struct vm_order order;
    char taps[TAP_INDEX_MAX + 1][TAP_NAME_SIZE];
};

struct host_network {
    pthread_mutex_t facts, kernel; /* kernel is taken first */
    char *path;                    /* of networks.json */
    struct agent_networks known;
    struct map vms; /* struct plugged by id */
    uint64_t serial;
    bool stateless; /* this kernel cannot track connections on bridges */
    struct bytes_writer applied; /* under `kernel`: the transaction applied last */
};

/* ---- life ---- */

static int read_file(struct host_network *hn, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t size;
    int r = file_read(hn->path, HOST_NETWORK_JSON_BYTES_MAX, &text, &size, err);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        r = OBJECT_DECODE(agent_networks, text, size, OBJECT_STORED, &hn->known, err);
    if (r < 0)
        error_prefix(err, "%s: ", hn->path);
    return r;
}

int host_network_create(const char *data_dir, struct host_network **ret, struct error *err)
{
    struct host_network *hn = NEW(struct host_network);
    pthread_mutex_init(&hn->facts, NULL);
    pthread_mutex_init(&hn->kernel, NULL);
    hn->path = xasprintf("%s/networks.json", data_dir);
    int r = read_file(hn, err);
    if (r < 0) {
        host_network_destroy(hn);
        return r;
    }
    *ret = hn;
    return 0;
}

static void plugged_destroy(struct plugged *vm)
{
    if (vm == NULL)
        return;
    OBJECT_CLEAR(vm_order, &vm->order);
    free(vm);
}

void host_network_destroy(struct host_network *hn)
{
    struct plugged *vm;
    if (hn == NULL)
        return;
    for (size_t i = 0; (vm = map_next(&hn->vms, &i)) != NULL;)
        plugged_destroy(vm);
    map_finish(&hn->vms);
    OBJECT_CLEAR(agent_networks, &hn->known);
    bytes_writer_finish(&hn->applied);
    pthread_mutex_destroy(&hn->facts);
    pthread_mutex_destroy(&hn->kernel);
    free(hn->path);
    free(hn);
}

/* ---- facts ---- */

static void lock(struct host_network *hn)
{
    pthread_mutex_lock(&hn->facts);
}

static void unlock(struct host_network *hn)
{
    pthread_mutex_unlock(&hn->facts);
}

static const struct network *find(const struct host_network *hn, const char *name)
{
    for (size_t i = 0; name != NULL && i < hn->known.networks.count; i++) {
        const struct network *network = (const struct network *)hn->known.networks.items + i;
        if (strcmp(network->name, name) == 0)
            return network;
    }
    return NULL;
}

struct network *host_network_find(struct host_network *hn, const char *name)
{
    struct network *copy = NULL;
    lock(hn);
    const struct network *network = find(hn, name);
    if (network != NULL) {
        copy = NEW(struct network);
        OBJECT_COPY(network, copy, network);
    }
    unlock(hn);
    return copy;
}

static void keep_used(struct host_network *hn, struct agent_networks *new);

int host_network_learn(struct host_network *hn, const struct node_orders *orders, bool *ret_changed, struct error *err)
{
    struct agent_networks new = {.format = 0};
    struct bytes_writer out = {.data = NULL};
    OBJECT_SET(agent_networks, &new, format, 1);
    for (size_t i = 0; i < orders->networks.count; i++)
        OBJECT_COPY(network, (struct network *)OBJECT_ADD(agent_networks, &new, networks),
                    (const struct network *)orders->networks.items + i);
    for (size_t i = 0; i < orders->security_groups.count; i++)
        OBJECT_COPY(group_order, (struct group_order *)OBJECT_ADD(agent_networks, &new, security_groups),
                    (const struct group_order *)orders->security_groups.items + i);
    keep_used(hn, &new);
    lock(hn);
    bool same = object_equal(&agent_networks_desc, &hn->known, &new) ||
                (hn->known.format == 0 && new.networks.count == 0 && new.security_groups.count == 0);
    unlock(hn);
    int r = 0;
    if (!same) {
        OBJECT_ENCODE(agent_networks, &new, &out);
        r = file_write_atomic(hn->path, out.data, out.size, 0600, err);
        bytes_writer_finish(&out);
    }
    if (!same && r == 0) {
        lock(hn);
        OBJECT_CLEAR(agent_networks, &hn->known);
        hn->known = new;
        new = (struct agent_networks){.format = 0};
        hn->serial++;
        unlock(hn);
    }
    OBJECT_CLEAR(agent_networks, &new);
    if (r == 0)
        *ret_changed = !same;
    return r;
}

static void keep_network(const struct host_network *hn, const char *name, struct agent_networks *new)
{
    const struct network *old = find(hn, name);
    bool there = old == NULL;
    for (size_t n = 0; !there && n < new->networks.count; n++)
        there = strcmp(((const struct network *)new->networks.items + n)->name, old->name) == 0;
    if (!there)
        OBJECT_COPY(network, (struct network *)OBJECT_ADD(agent_networks, new, networks), old);
}

static const struct group_order *find_group(const struct agent_networks *in, const char *name)
{
    for (size_t i = 0; i < in->security_groups.count; i++) {
        const struct group_order *group = (const struct group_order *)in->security_groups.items + i;
        if (strcmp(group->name, name) == 0)
            return group;
    }
    return NULL;
}

/* Also the groups that its rules name: their members stay as they were last known. */
static void keep_group(const struct host_network *hn, const char *name, bool named_too, struct agent_networks *new)
{
    const struct group_order *old = find_group(&hn->known, name);
    if (old == NULL || find_group(new, name) != NULL)
        return;
    OBJECT_COPY(group_order, (struct group_order *)OBJECT_ADD(agent_networks, new, security_groups), old);
    for (size_t i = 0; named_too && i < old->rules.count; i++) {
        const struct security_rule *rule = (const struct security_rule *)old->rules.items + i;
        if (rule->remote_group != NULL)
            keep_group(hn, rule->remote_group, false, new);
    }
}

/* A VM that the controllers have taken from this host is told of no more, but until it is gone its network stays known,
 * and its security groups: without them it might send what it may not. */
static void keep_used(struct host_network *hn, struct agent_networks *new)
{
    struct plugged *vm;
    lock(hn);
    for (size_t i = 0; (vm = map_next(&hn->vms, &i)) != NULL;)
        for (size_t k = 0; k < vm->order.nics.count; k++) {
            const struct vm_nic *nic = (const struct vm_nic *)vm->order.nics.items + k;
            keep_network(hn, nic->network, new);
            for (size_t g = 0; g < nic->security_groups.count; g++)
                keep_group(hn, nic->security_groups.items[g], true, new);
        }
    unlock(hn);
}

void host_network_adopt(struct host_network *hn, const struct vm_order *order)
{
    struct plugged *vm = NEW(struct plugged);
    ASSERT(order->nics.count <= ARRAY_SIZE(vm->taps));
    OBJECT_TEXT(vm_order, &vm->order, id, order->id);
    OBJECT_TEXT(vm_order, &vm->order, name, order->name);
    OBJECT_TEXT(vm_order, &vm->order, hostname, order->hostname);
    for (size_t i = 0; i < order->nics.count; i++) {
        struct vm_nic *nic = OBJECT_ADD(vm_order, &vm->order, nics);
        OBJECT_COPY(vm_nic, nic, (const struct vm_nic *)order->nics.items + i);
        tap_name(order->id, nic_number(nic, i), vm->taps[i]);
    }
    lock(hn);
    plugged_destroy(map_remove(&hn->vms, order->id));
    map_put(&hn->vms, vm->order.id, vm);
    hn->serial++;
    unlock(hn);
}

static void forget(struct host_network *hn, const char *vm_id)
{
    lock(hn);
    plugged_destroy(map_remove(&hn->vms, vm_id));
    hn->serial++;
    unlock(hn);
}

uint64_t host_network_serial(struct host_network *hn)
{
    lock(hn);
    uint64_t serial = hn->serial;
    unlock(hn);
    return serial;
}

static bool has_ipv4(const struct vm_nic *nic)
{
    struct ip_address ip;
    for (size_t i = 0; i < nic->ips.count; i++)
        if (ip_parse(nic->ips.items[i], &ip) && ip.family == 4)
            return true;
    return false;
}

static bool wants_dhcp(const struct vm_nic *nic, const struct network *network)
{
    return network != NULL && network->dhcp && network->ipv4_subnet != NULL && nic->mac != NULL && has_ipv4(nic);
}

void host_network_each_lease(struct host_network *hn,
                             void (*each)(void *arg, const char *tap, const struct vm_order *order, const struct vm_nic *nic,
                                          const struct network *network),
                             void *arg)
{
    struct plugged *vm;
    lock(hn);
    for (size_t i = 0; (vm = map_next(&hn->vms, &i)) != NULL;)
        for (size_t k = 0; k < vm->order.nics.count; k++) {
            const struct vm_nic *nic = (const struct vm_nic *)vm->order.nics.items + k;
            const struct network *network = find(hn, nic->network);
            if (wants_dhcp(nic, network))
                each(arg, vm->taps[k], &vm->order, nic, network);
        }
    unlock(hn);
}

/* ---- rules ---- */

static bool is_spoof_checked(const struct vm_nic *nic)
{
    return OBJECT_HAS(vm_nic, nic, anti_spoof) ? nic->anti_spoof : nic->network != NULL;
}

static int compare_nics(const void *a, const void *b)
{
    return strcmp(((const struct firewall_nic *)a)->tap, ((const struct firewall_nic *)b)->tap);
}

/* The transaction for all that is known, with the same text for the same facts. */
static void write_rules(struct host_network *hn, struct bytes_writer *out)
{
    struct plugged *vm;
    lock(hn);
    struct firewall_nic *nics = xcalloc(hn->vms.count * (TAP_INDEX_MAX + 1) + 1, sizeof(*nics));
    struct firewall_input input = {.nics = nics,
                                   .groups = hn->known.security_groups.items,
                                   .group_count = hn->known.security_groups.count,
                                   .stateless = hn->stateless};
    for (size_t i = 0; (vm = map_next(&hn->vms, &i)) != NULL;)
        for (size_t k = 0; k < vm->order.nics.count; k++) {
            const struct vm_nic *nic = (const struct vm_nic *)vm->order.nics.items + k;
            nics[input.nic_count++] = (struct firewall_nic){
                .tap = vm->taps[k],
                .nic = nic,
                .anti_spoof = nic->mac != NULL && is_spoof_checked(nic),
                .dhcp = wants_dhcp(nic, find(hn, nic->network)),
            };
        }
    qsort(nics, input.nic_count, sizeof(*nics), compare_nics);
    firewall_text(&input, out);
    unlock(hn);
    free(nics);
}

static bool same_bytes(const struct bytes_writer *a, const struct bytes_writer *b)
{
    return a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0);
}

/* Nothing needs a rule: only the table has to go. */
static bool is_empty(const struct bytes_writer *text)
{
    struct firewall_input none = {.nics = NULL};
    struct bytes_writer empty = {.data = NULL};
    firewall_text(&none, &empty);
    bool same = same_bytes(text, &empty);
    bytes_writer_finish(&empty);
    return same;
}

/* Under `kernel`. */
static int apply_locked(struct host_network *hn, struct error *err)
{
    struct bytes_writer text = {.data = NULL};
    struct error error = {.code = 0};
    write_rules(hn, &text);
    if (same_bytes(&text, &hn->applied)) {
        bytes_writer_finish(&text);
        return 0;
    }
    int r = firewall_apply(text.data, text.size, &error);
    if (r == -EIO && !hn->stateless && memmem(text.data, text.size, "\"ct\"", 4) != NULL) {
        lock(hn);
        hn->stateless = true;
        unlock(hn);
        bytes_writer_finish(&text);
        write_rules(hn, &text);
        int again = firewall_apply(text.data, text.size, NULL);
        if (again == 0)
            log_warning("firewall-stateless",
                        "why=\"this kernel cannot track connections on bridges (nf_conntrack_bridge): security groups guess what is an answer\"");
        else
            hn->stateless = false; /* that was not the reason */
        r = again == 0 ? 0 : r;
    }
    if (r == -ENOENT && is_empty(&text) && hn->applied.size == 0)
        r = 0; /* a host without nft has no rules of ours either */
    if (r < 0) {
        bytes_writer_finish(&text);
        if (err != NULL)
            *err = error;
        return r;
    }
    bytes_writer_finish(&hn->applied);
    hn->applied = text;
    return 0;
}

int host_network_apply(struct host_network *hn, struct error *err)
{
    pthread_mutex_lock(&hn->kernel);
    int r = apply_locked(hn, err);
    pthread_mutex_unlock(&hn->kernel);
    return r;
}

/* ---- a VM comes and goes ---- */

/* @nic's bridge, made where it is missing; its name is in @ret_bridge. */
static int bridge_of(struct host_network *hn, const struct vm_nic *nic, char ret_bridge[NETLINK_NAME_SIZE], struct error *err)
{
    struct netlink nl = {.socket = NULL};
    if (nic->network == NULL) {
        snprintf(ret_bridge, NETLINK_NAME_SIZE, "%s", nic->bridge != NULL ? nic->bridge : "");
        return 0;
    }
    struct network *network = host_network_find(hn, nic->network);
    if (network == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "network %s is not known to this host yet", nic->network);
    bridge_name(network, ret_bridge);
    int r = netlink_open(&nl, err);
    if (r == 0)
        r = bridge_ensure(&nl, network, err);
    netlink_close(&nl);
    OBJECT_CLEAR(network, network);
    free(network);
    return r;
}

static int plug_nic(struct host_network *hn, const struct vm_order *order, unsigned i, uid_t owner, bool make_bridges,
                    struct error *err)
{
    const struct vm_nic *nic = (const struct vm_nic *)order->nics.items + i;
    char tap[TAP_NAME_SIZE], bridge[NETLINK_NAME_SIZE];
    int r = bridge_of(hn, nic, bridge, err);
    tap_name(order->id, nic_number(nic, i), tap);
    if (r == 0)
        r = tap_create(tap, owner, bridge, nic->queues > 1, make_bridges, err);
    if (r < 0)
        error_prefix(err, "network interface %u: ", i);
    return r;
}

/* Taps of NICs that the VM has no more. */
static int unplug_others(const struct vm_order *order, struct error *err)
{
    const struct vm_nic *nics = order->nics.items;
    unsigned used = 0;
    int r = 0;
    for (size_t i = 0; i < order->nics.count; i++)
        used |= 1u << nic_number(&nics[i], i);
    for (unsigned number = 0; r == 0 && number <= TAP_INDEX_MAX; number++) {
        char tap[TAP_NAME_SIZE];
        tap_name(order->id, number, tap);
        if (!(used >> number & 1) && tap_exists(tap))
            r = tap_destroy(tap, err);
    }
    return r;
}

int host_network_plug(struct host_network *hn, const struct vm_order *order, uid_t owner, bool make_bridges, struct error *err)
{
    int r = 0;
    pthread_mutex_lock(&hn->kernel);
    r = unplug_others(order, err); /* before its rules go */
    if (r == 0)
        host_network_adopt(hn, order);
    for (unsigned i = 0; r == 0 && i < order->nics.count; i++)
        r = plug_nic(hn, order, i, owner, make_bridges, err);
    if (r == 0)
        r = apply_locked(hn, err);
    pthread_mutex_unlock(&hn->kernel);
    return r;
}

int host_network_unplug(struct host_network *hn, const char *vm_id, struct error *err)
{
    struct netlink nl = {.socket = NULL};
    int r = 0;
    pthread_mutex_lock(&hn->kernel);
    for (unsigned i = 0; r == 0 && i <= TAP_INDEX_MAX; i++) {
        char tap[TAP_NAME_SIZE];
        tap_name(vm_id, i, tap);
        r = tap_destroy(tap, err);
    }
    if (r == 0) {
        forget(hn, vm_id);
        r = apply_locked(hn, err);
    }
    if (r == 0)
        r = netlink_open(&nl, err);
    if (r == 0)
        r = bridge_sweep(&nl, err);
    netlink_close(&nl);
    pthread_mutex_unlock(&hn->kernel);
    return r;
}
