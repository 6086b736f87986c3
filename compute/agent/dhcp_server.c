/* Packet sockets (packet(7)) on taps; see the header. */
#include "compute/agent/dhcp_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/ip_address.h"
#include "common/log.h"
#include "common/map.h"
#include "compute/agent/tap.h"

#define BATCH_FRAMES 16u /* per wake-up, then others have their turn */
#define BUFFER_BYTES 65536

/* One tap. */
struct dhcp_port {
    uv_poll_t poll;
    struct dhcp_server *server; /* NULL: closing */
    char tap[TAP_NAME_SIZE];
    unsigned index; /* of the interface: another one of that name is another tap */
    int fd;
    bool wanted; /* while syncing */
    struct dhcp_lease lease;
    uint64_t second; /* the second that `answers` counts in */
    unsigned answers;
};

struct dhcp_server {
    uv_loop_t *loop;
    struct host_network *network;
    struct map ports; /* by tap */
    uint64_t serial;
    bool incomplete; /* a tap was missing */
    unsigned open;   /* ports that the loop still holds */
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* ---- the lease of a NIC ---- */

static bool ipv4_of(const char *text, uint8_t ret[4])
{
    struct ip_address ip;
    if (text == NULL || !ip_parse(text, &ip) || ip.family != 4)
        return false;
    memcpy(ret, ip.bytes, 4);
    return true;
}

static bool mac_of(const char *text, uint8_t ret[6])
{
    unsigned b[6];
    if (text == NULL || sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]) != 6)
        return false;
    for (unsigned i = 0; i < 6; i++)
        ret[i] = (uint8_t)b[i];
    return true;
}

bool dhcp_server_lease(const struct vm_order *order, const struct vm_nic *nic, const struct network *network,
                       struct dhcp_lease *ret)
{
    struct dhcp_lease lease = {.mtu = (uint16_t)MIN(network->mtu, UINT32_C(65535))};
    struct ip_prefix subnet;
    bool found = false;
    for (size_t i = 0; !found && i < nic->ips.count; i++)
        found = ipv4_of(nic->ips.items[i], lease.ip);
    if (!found || !mac_of(nic->mac, lease.mac) || network->ipv4_subnet == NULL ||
        !ip_prefix_parse(network->ipv4_subnet, &subnet) || subnet.base.family != 4)
        return false;
    for (unsigned bit = 0; bit < subnet.bits; bit++)
        lease.netmask[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
    memcpy(lease.server, subnet.base.bytes, 4);
    if (ipv4_of(network->ipv4_gateway, lease.gateway))
        memcpy(lease.server, lease.gateway, 4);
    for (size_t i = 0; i < network->dns_servers.count && lease.dns_count < DHCP_DNS_MAX; i++)
        lease.dns_count += ipv4_of(network->dns_servers.items[i], lease.dns[lease.dns_count]);
    snprintf(lease.hostname, sizeof(lease.hostname), "%s", order->hostname != NULL ? order->hostname : order->name);
    *ret = lease;
    return true;
}

/* ---- sockets ---- */

static bool may_answer(struct dhcp_port *port)
{
    uint64_t second = uv_now(port->server->loop) / 1000;
    if (second != port->second) {
        port->second = second;
        port->answers = 0;
    }
    return port->answers++ < DHCP_ANSWERS_S;
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct dhcp_port *port = CONTAINER_OF(poll, struct dhcp_port, poll);
    uint8_t frame[DHCP_FRAME_BYTES_MAX], answer[DHCP_ANSWER_BYTES_MAX];
    (void)events;
    if (status < 0 && port->server != NULL) {
        /* The tap went down. That was an error of the socket, after which the loop does not watch it any more; once
         * read it is gone, and the socket goes on when the tap comes up again. */
        int error = 0;
        socklen_t length = sizeof(error);
        getsockopt(port->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        int r = uv_poll_start(&port->poll, UV_READABLE, on_readable);
        ASSERT(r == 0);
        return;
    }
    for (unsigned i = 0; status == 0 && port->server != NULL && i < BATCH_FRAMES; i++) {
        ssize_t n = recv(port->fd, frame, sizeof(frame), MSG_TRUNC);
        if (n < 0)
            break; /* nothing more, or the tap is down */
        size_t size = (size_t)n <= sizeof(frame) ? dhcp_answer(&port->lease, frame, (size_t)n, answer) : 0;
        if (size > 0 && may_answer(port) && send(port->fd, answer, size, 0) < 0)
            log_debug("dhcp-send", "tap=%s error=\"%s\", ignoring", port->tap, strerror(errno));
    }
}

/* IPv4, UDP, whole, to port 67: all else stays in the kernel. */
static int filter_set(int fd)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IP, 0, 8),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 6),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, 4, 0),
        BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14),
        BPF_STMT(BPF_LD | BPF_H | BPF_IND, 16),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 67, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const struct sock_fprog program = {ARRAY_SIZE(code), code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) < 0 ? -errno : 0;
}

static int socket_open(unsigned index)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)index};
    int one = 1, size = BUFFER_BYTES;
    /* without a protocol until the filter is there: nothing is queued before */
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = filter_set(fd);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one));
    if (r == 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        r = -errno;
    if (r == 0)
        return fd;
    close(fd);
    return r;
}

/* ---- ports ---- */

static void maybe_closed(struct dhcp_server *server)
{
    if (!server->closing || server->open > 0)
        return;
    void (*closed)(void *arg) = server->closed;
    void *arg = server->closed_arg;
    map_finish(&server->ports);
    free(server);
    if (closed != NULL)
        closed(arg);
}

static void on_port_closed(uv_handle_t *handle)
{
    struct dhcp_port *port = CONTAINER_OF((uv_poll_t *)handle, struct dhcp_port, poll);
    struct dhcp_server *server = handle->data;
    close(port->fd);
    free(port);
    server->open--;
    maybe_closed(server);
}

static void port_close(struct dhcp_port *port)
{
    map_remove(&port->server->ports, port->tap);
    port->server = NULL;
    uv_close((uv_handle_t *)&port->poll, on_port_closed);
}

static void port_open(struct dhcp_server *server, const char *tap, unsigned index, const struct dhcp_lease *lease)
{
    int fd = socket_open(index);
    if (fd < 0) {
        log_warning("dhcp-socket", "tap=%s error=\"%s\", ignoring: its guest gets no answer", tap, strerror(-fd));
        server->incomplete = true;
        return;
    }
    struct dhcp_port *port = NEW(struct dhcp_port);
    port->server = server;
    port->fd = fd;
    port->index = index;
    port->lease = *lease;
    port->wanted = true;
    snprintf(port->tap, sizeof(port->tap), "%s", tap);
    int r = uv_poll_init(server->loop, &port->poll, fd);
    ASSERT(r == 0);
    port->poll.data = server;
    r = uv_poll_start(&port->poll, UV_READABLE, on_readable);
    ASSERT(r == 0);
    map_put(&server->ports, port->tap, port);
    server->open++;
}

static void want(void *arg, const char *tap, const struct vm_order *order, const struct vm_nic *nic, const struct network *network)
{
    struct dhcp_server *server = arg;
    struct dhcp_port *port = map_get(&server->ports, tap);
    struct dhcp_lease lease;
    unsigned index = if_nametoindex(tap);
    server->incomplete |= index == 0;
    if (index == 0 || !dhcp_server_lease(order, nic, network, &lease))
        return;
    if (port != NULL && port->index != index) {
        port_close(port);
        port = NULL;
    }
    if (port == NULL) {
        port_open(server, tap, index, &lease);
        return;
    }
    port->wanted = true;
    port->lease = lease;
}

void dhcp_server_sync(struct dhcp_server *server)
{
    struct dhcp_port *port;
    uint64_t serial = host_network_serial(server->network);
    if (server->closing || (serial == server->serial && !server->incomplete))
        return;
    server->serial = serial;
    server->incomplete = false;
    for (size_t i = 0; (port = map_next(&server->ports, &i)) != NULL;)
        port->wanted = false;
    host_network_each_lease(server->network, want, server);
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; !again && (port = map_next(&server->ports, &i)) != NULL;)
            again = !port->wanted;
        if (again)
            port_close(port);
    }
}

struct dhcp_server *dhcp_server_create(uv_loop_t *loop, struct host_network *network)
{
    struct dhcp_server *server = NEW(struct dhcp_server);
    server->loop = loop;
    server->network = network;
    return server;
}

void dhcp_server_close(struct dhcp_server *server, void (*closed)(void *arg), void *arg)
{
    struct dhcp_port *port;
    if (server == NULL)
        return;
    server->closing = true;
    server->closed = closed;
    server->closed_arg = arg;
    for (size_t i = 0; (port = map_next(&server->ports, &i)) != NULL; i = 0)
        port_close(port);
    maybe_closed(server);
}
