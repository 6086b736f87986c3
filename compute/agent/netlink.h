/* Network interfaces of this host through rtnetlink (rtnetlink(7), linux/if_link.h): look, make, change, remove.
 * Short blocking calls. A struct netlink is used by one thread at a time. */
#ifndef COMPUTE_AGENT_NETLINK_H
#define COMPUTE_AGENT_NETLINK_H

#include "common/base.h"
#include "common/error.h"

#define NETLINK_NAME_SIZE 16  /* IFNAMSIZ */
#define NETLINK_ALIAS_SIZE 64 /* of those that we give; the kernel takes 255 */

struct mnl_socket;

struct netlink {
    struct mnl_socket *socket;
    unsigned sequence;
};

struct netlink_link {
    int index, master;      /* master: index of the bridge that it is a port of, 0 = none */
    int lower;              /* of a VLAN: the interface that carries it */
    uint32_t mtu;
    uint16_t vlan;          /* its id; 0 = it is no VLAN */
    bool up;
    char name[NETLINK_NAME_SIZE];
    char kind[16];                  /* "bridge", "vlan", "tun", "" */
    char alias[NETLINK_ALIAS_SIZE]; /* words that whoever made it gave it; cut off where longer */
};

int netlink_open(struct netlink *nl, struct error *err);
void netlink_close(struct netlink *nl); /* zeroed is fine */

/* -ENODEV (no words): there is none of that name. */
int netlink_look(struct netlink *nl, const char *name, struct netlink_link *ret);
/* Every interface; the caller frees *ret_links. */
int netlink_list(struct netlink *nl, struct netlink_link **ret_links, size_t *ret_count, struct error *err);
/* Whether the interface has an IP address that is not of the link only. */
int netlink_has_address(struct netlink *nl, int index, bool *ret, struct error *err);

/* Make them, down and without an alias (the kernel takes that only afterwards). -EEXIST where there is one of that name. */
int netlink_bridge_make(struct netlink *nl, const char *name, uint32_t mtu, struct error *err);
int netlink_vlan_make(struct netlink *nl, const char *name, int lower, uint16_t id, struct error *err);
/* Changes; 0 and NULL leave it as it is. @master -1: off the bridge. */
struct netlink_change {
    const char *alias;
    int master;
    uint32_t mtu;
    bool up, quiet; /* quiet: no IPv6 of its own: it speaks for others */
};
int netlink_change(struct netlink *nl, const char *name, const struct netlink_change *change, struct error *err);
/* A missing one is fine. */
int netlink_remove(struct netlink *nl, const char *name, struct error *err);

#endif
