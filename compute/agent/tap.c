/* Taps by ioctl (Documentation/networking/tuntap.rst, linux/sockios.h); see tap.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "compute/agent/netlink.h"
#include "compute/agent/tap.h"

STATIC_ASSERT(TAP_NAME_SIZE == IFNAMSIZ, "names of interfaces");

void tap_name(const char *vm_id, unsigned index, char buffer[TAP_NAME_SIZE])
{
    char digits[11];
    unsigned n = 0;
    ASSERT(index <= TAP_INDEX_MAX);
    for (const char *at = vm_id; *at != '\0' && n < 10; at++)
        if (*at != '-')
            digits[n++] = *at;
    digits[n] = '\0';
    snprintf(buffer, TAP_NAME_SIZE, "dv%sn%u", digits, index);
}

bool tap_exists(const char *name)
{
    return if_nametoindex(name) != 0;
}

static struct ifreq request_of(const char *name)
{
    struct ifreq request = {.ifr_flags = 0};
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    return request;
}

static int interface_up(int control, const char *name)
{
    struct ifreq request = request_of(name);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        return -errno;
    request.ifr_flags |= IFF_UP;
    return ioctl(control, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
}

static int bridge_check(int control, const char *bridge, bool make, struct error *err)
{
    int r;
    if (if_nametoindex(bridge) != 0)
        return 0;
    if (!make)
        return error_set(
            err, -ENODEV, ERROR_NOT_FOUND,
            "this host has no bridge %s; make it (ip link add %s type bridge; ip link set %s up), or start the "
            "agent with --bridge-create",
            bridge, bridge, bridge);
    if (ioctl(control, SIOCBRADDBR, bridge) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make bridge %s", bridge);
    r = interface_up(control, bridge);
    return r < 0 ? error_errno(err, r, "cannot bring bridge %s up", bridge) : 0;
}

/* Open the tap @name, making it where it is missing; the descriptor holds it until it is closed. */
static int tap_open(const char *name, bool queues, struct error *err)
{
    struct ifreq request = request_of(name);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open /dev/net/tun");
    request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues ? IFF_MULTI_QUEUE : 0));
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        int r = -errno;
        close(fd);
        return error_errno(err, r, "cannot make tap %s", name);
    }
    return fd;
}

/* It is on a bridge already: on this one, which is fine, or on that of a card which had its number before. */
static int tap_bridge_move(const char *name, const char *bridge, struct error *err)
{
    struct netlink nl = {.socket = NULL};
    struct netlink_link link;
    int index = (int)if_nametoindex(bridge), r = netlink_open(&nl, err);
    if (r == 0 && (r = netlink_look(&nl, name, &link)) < 0)
        error_errno(err, r, "cannot look at tap %s", name);
    if (r == 0 && link.master != index)
        r = netlink_change(&nl, name, &(struct netlink_change){.master = index}, err);
    netlink_close(&nl);
    return r;
}

/* @fd -1: whoever has it open keeps it, and its owner stays. */
static int tap_configure(int fd, int control, const char *name, uid_t owner, const char *bridge, struct error *err)
{
    struct ifreq on_bridge = request_of(bridge), mtu = request_of(bridge);
    int r;
    if (fd >= 0 && (ioctl(fd, TUNSETOWNER, (unsigned long)owner) < 0 || ioctl(fd, TUNSETPERSIST, 1ul) < 0))
        return error_errno(err, -errno, "cannot keep tap %s", name);
    /* a packet that fits the bridge has to fit its port */
    if (ioctl(control, SIOCGIFMTU, &mtu) == 0) {
        snprintf(mtu.ifr_name, sizeof(mtu.ifr_name), "%s", name);
        if (ioctl(control, SIOCSIFMTU, &mtu) < 0)
            return error_errno(err, -errno, "cannot set the MTU of tap %s", name);
    }
    on_bridge.ifr_ifindex = (int)if_nametoindex(name);
    r = ioctl(control, SIOCBRADDIF, &on_bridge) < 0 ? -errno : 0;
    if (r == -EBUSY && (r = tap_bridge_move(name, bridge, err)) < 0)
        return r;
    if (r < 0) {
        if (r == -EOPNOTSUPP || r == -EINVAL)
            return error_set(err, r, ERROR_INVALID, "interface %s of this host is no bridge; name a bridge", bridge);
        return error_errno(err, r, "cannot put tap %s on bridge %s", name, bridge);
    }
    r = interface_up(control, name);
    return r < 0 ? error_errno(err, r, "cannot bring tap %s up", name) : 0;
}

int tap_create(const char *name, uid_t owner, const char *bridge, bool queues, bool make_bridge, struct error *err)
{
    CLEANUP_FD int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return error_errno(err, -errno, "cannot open a socket");
    int r = bridge_check(control, bridge, make_bridge, err);
    if (r < 0)
        return r;
    bool made = !tap_exists(name);
    int opened = tap_open(name, queues, err);
    if (opened == -EINVAL && !made && tap_destroy(name, err) == 0) { /* a card with another number of queues had its number */
        made = true;
        opened = tap_open(name, queues, err);
    }
    CLEANUP_FD int fd = opened;
    if (fd < 0 && (made || fd != -EBUSY))
        return fd;
    r = tap_configure(fd, control, name, owner, bridge, err);
    if (r < 0 && made)
        ioctl(fd, TUNSETPERSIST, 0ul); /* closing it removes it then */
    return r;
}

int tap_destroy(const char *name, struct error *err)
{
    if (!tap_exists(name))
        return 0;
    /* -EINVAL: it was made with several queues */
    int r = tap_open(name, false, err);
    CLEANUP_FD int fd = r == -EINVAL ? tap_open(name, true, err) : r;
    if (fd < 0)
        return fd;
    if (ioctl(fd, TUNSETPERSIST, 0ul) < 0)
        return error_errno(err, -errno, "cannot remove tap %s", name);
    return 0;
}
