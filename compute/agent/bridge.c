/* Making and sweeping of bridges; see the header. */
#include "compute/agent/bridge.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ALIAS_PREFIX "drover "

static void name_of(const char *prefix, const char *id, char buffer[NETLINK_NAME_SIZE])
{
    char digits[11];
    unsigned n = 0;
    for (const char *at = id; *at != '\0' && n < sizeof(digits) - 1; at++)
        if (*at != '-')
            digits[n++] = *at;
    digits[n] = '\0';
    snprintf(buffer, NETLINK_NAME_SIZE, "%s%s", prefix, digits);
}

void bridge_name(const struct network *network, char buffer[NETLINK_NAME_SIZE])
{
    if (network->bridge != NULL)
        snprintf(buffer, NETLINK_NAME_SIZE, "%s", network->bridge);
    else
        name_of("db", network->id, buffer);
}

static void alias_of(const struct network *network, char buffer[NETLINK_ALIAS_SIZE])
{
    snprintf(buffer, NETLINK_ALIAS_SIZE, ALIAS_PREFIX "%s", network->id);
}

static bool is_ours(const struct netlink_link *link)
{
    return strncmp(link->alias, ALIAS_PREFIX, strlen(ALIAS_PREFIX)) == 0;
}

/* Put @port, an interface that is there, on the bridge and bring it up. */
static int port_ensure(struct netlink *nl, const struct netlink_link *port, const struct netlink_link *bridge,
                       uint32_t mtu, struct error *err)
{
    const struct netlink_change change = {
        .master = port->master == bridge->index ? 0 : bridge->index, .mtu = port->mtu < mtu ? mtu : 0, .up = true};
    if (port->master == bridge->index && port->up && change.mtu == 0)
        return 0;
    return netlink_change(nl, port->name, &change, err);
}

static int vlan_ensure(struct netlink *nl, const struct network *network, const struct netlink_link *uplink,
                       const struct netlink_link *bridge, uint32_t mtu, struct error *err)
{
    char name[NETLINK_NAME_SIZE], alias[NETLINK_ALIAS_SIZE];
    struct netlink_link port;
    const struct netlink_change up = {.up = true}, own = {.alias = alias, .quiet = true};
    name_of("dl", network->id, name);
    alias_of(network, alias);
    int r = uplink->up ? 0 : netlink_change(nl, uplink->name, &up, err);
    if (r == 0 && netlink_look(nl, name, &port) == -ENODEV)
        r = netlink_vlan_make(nl, name, uplink->index, (uint16_t)network->vlan, err);
    if (r == -EOPNOTSUPP)
        return error_set(err, r, ERROR_NOT_SUPPORTED, "this host's kernel has no VLANs (8021q), which network %s needs",
                         network->name);
    if (r == 0)
        r = netlink_look(nl, name, &port);
    if (r == 0 && port.alias[0] == '\0') /* new, or an agent was killed between the two */
        r = netlink_change(nl, name, &own, err);
    return r < 0 ? r : port_ensure(nl, &port, bridge, mtu, err);
}

static int uplink_ensure(struct netlink *nl, const struct network *network, const struct netlink_link *bridge,
                         uint32_t mtu, struct error *err)
{
    struct netlink_link uplink;
    bool addressed;
    if (network->uplink == NULL)
        return 0;
    if (netlink_look(nl, network->uplink, &uplink) < 0)
        return error_set(err, -ENODEV, ERROR_NOT_FOUND,
                         "this host has no interface %s, the uplink of network %s; name one that every host has",
                         network->uplink, network->name);
    if (network->vlan != 0)
        return vlan_ensure(nl, network, &uplink, bridge, mtu, err);
    if (uplink.master == bridge->index)
        return port_ensure(nl, &uplink, bridge, mtu, err);
    if (uplink.master != 0)
        return error_set(err, -EBUSY, ERROR_CONFLICT,
                         "interface %s of this host, the uplink of network %s, is part of another bridge or bond; name that bridge instead",
                         network->uplink, network->name);
    int r = netlink_has_address(nl, uplink.index, &addressed, err);
    if (r < 0)
        return r;
    if (addressed)
        return error_set(err, -EBUSY, ERROR_CONFLICT,
                         "interface %s of this host, the uplink of network %s, has addresses of the host, which a bridge would cut off; "
                         "make a bridge with these addresses and name it, or use a VLAN",
                         network->uplink, network->name);
    return port_ensure(nl, &uplink, bridge, mtu, err);
}

int bridge_ensure(struct netlink *nl, const struct network *network, struct error *err)
{
    char name[NETLINK_NAME_SIZE], alias[NETLINK_ALIAS_SIZE];
    uint32_t mtu = network->mtu != 0 ? network->mtu : BRIDGE_MTU_DEFAULT;
    const struct netlink_change up = {.up = true, .mtu = mtu}, own = {.alias = alias, .quiet = true};
    struct netlink_link bridge;
    int r = 0;
    bridge_name(network, name);
    alias_of(network, alias);
    bool existed = netlink_look(nl, name, &bridge) == 0;
    if (!existed)
        r = netlink_bridge_make(nl, name, mtu, err);
    if (r == 0)
        r = netlink_look(nl, name, &bridge);
    /* a name of our own making is ours: an agent may have been killed before it gave the alias */
    if (r == 0 && bridge.alias[0] == '\0' && (!existed || network->bridge == NULL))
        r = netlink_change(nl, name, &own, err);
    if (r == 0)
        r = netlink_look(nl, name, &bridge);
    if (r < 0)
        return r;
    if (strcmp(bridge.kind, "bridge") != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "interface %s of this host is no bridge; network %s needs one", name,
                         network->name);
    if (!is_ours(&bridge))
        return 0; /* the host's own: its ways out are the host's business */
    if (strcmp(bridge.alias, alias) != 0)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "bridge %s of this host belongs to another network than %s; give them different bridges",
                         name, network->name);
    r = uplink_ensure(nl, network, &bridge, mtu, err);
    if (r == 0 && (!bridge.up || bridge.mtu != mtu))
        r = netlink_change(nl, name, &up, err);
    return r;
}

/* ---- sweeping ---- */

/* Taps, also of others, keep it. */
static bool is_used(const struct netlink_link *bridge, const struct netlink_link *links, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (links[i].master == bridge->index && strcmp(links[i].kind, "tun") == 0)
            return true;
    return false;
}

int bridge_sweep(struct netlink *nl, struct error *err)
{
    CLEANUP_FREE struct netlink_link *links = NULL;
    size_t count = 0;
    int r = netlink_list(nl, &links, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        const struct netlink_link *bridge = &links[i];
        if (strcmp(bridge->kind, "bridge") != 0 || !is_ours(bridge) || is_used(bridge, links, count))
            continue;
        for (size_t k = 0; r == 0 && k < count; k++)
            if (strcmp(links[k].kind, "vlan") == 0 && strcmp(links[k].alias, bridge->alias) == 0)
                r = netlink_remove(nl, links[k].name, err);
        if (r == 0)
            r = netlink_remove(nl, bridge->name, err); /* an uplink becomes free by that */
    }
    return r;
}
