/* virtio-net: making the device, its configuration space and its course of life. Frames are in queue.c. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/epoll.h>

#include "common/log.h"
#include "compute/vmm/devices/net/net.h"

#define BIT(n) (1ull << (n))
enum { PCI_CLASS_ETHERNET = 0x020000 };

static struct net *of_virtio(const struct virtio_device *d)
{
    return CONTAINER_OF(d, struct net, virtio);
}

static void offloads_apply(struct net *net, uint64_t features)
{
    int code = net->is_tap ? tap_set_offloads(net->fd, features) : 0;
    if (code < 0)
        log_warning("net-offloads", "why=\"%s\", ignoring", strerror(-code));
}

static void net_start(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    offloads_apply(net, d->features);
    net_queue_watch(net);
}

static void net_reset(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    net->rx_pending_bytes = 0;
    net->rx_starved = net->tx_blocked = false;
    io_timer_cancel(&net->retry);
    offloads_apply(net, 0);
    /* Its own status is still set: watch nothing until the next start. */
    if (net->handler != NULL && net->watched != 0)
        io_loop_change(net->loop, net->handler, net->watched = 0);
}

static void net_pause(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    io_timer_cancel(&net->retry);
    net_queue_watch(net);
}

static void net_resume(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    if (virtio_device_running(d))
        offloads_apply(net, d->features); /* after a load the tap is another one */
    net->rx_starved = net->tx_blocked = false;
    net_queue_watch(net);
}

static void net_destroy(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    io_timer_cancel(&net->retry);
    io_loop_remove(net->loop, net->handler);
    close_fd(&net->fd);
    virtio_device_finish(d);
    free(net);
}

static const struct virtio_device_ops net_ops = {
    .start = net_start,
    .notify = net_queue_notify,
    .reset = net_reset,
    .pause = net_pause,
    .resume = net_resume,
    .save = net_state_save,
    .load = net_state_load,
    .destroy = net_destroy,
};

static uint64_t net_features(const struct net_options *options)
{
    uint64_t features = BIT(VIRTIO_NET_F_CSUM) | BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_MAC) |
                        BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_GUEST_ECN) |
                        BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_HOST_ECN) |
                        BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_STATUS);
    return options->mtu != 0 ? features | BIT(VIRTIO_NET_F_MTU) : features;
}

/* §5.1.4 */
static void net_fill_config(struct net *net)
{
    struct virtio_net_config config = {
        .status = htole16(net->link_up ? VIRTIO_NET_S_LINK_UP : 0),
        .max_virtqueue_pairs = htole16(1),
        .mtu = htole16(net->mtu),
    };
    STATIC_ASSERT(sizeof config <= VIRTIO_CONFIG_BYTES_MAX, "room for the configuration");
    memcpy(config.mac, net->mac, NET_MAC_BYTES);
    memcpy(net->virtio.config, &config, sizeof config);
    net->virtio.config_bytes = sizeof config;
}

static int backend_open(struct net *net, const struct net_options *options, struct error *err)
{
    net->fd = options->fd;
    int code = options->tap != NULL ? tap_open(options->tap, &net->fd, err) : 0;
    if (code < 0)
        return code;
    code = tap_prepare(net->fd, &net->is_tap, err);
    if (code == 0)
        code = io_loop_add(net->loop, net->fd, 0, net_queue_fd_ready, net, &net->handler, err);
    if (code < 0 && options->tap != NULL)
        close_fd(&net->fd);
    return code;
}

int net_create(const struct net_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err)
{
    if ((options->mac[0] & 1) != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "the MAC address of an interface is not a group address");
    struct net *net = NEW(struct net);
    net->loop = loop;
    net->link_up = true;
    net->mtu = options->mtu;
    memcpy(net->mac, options->mac, NET_MAC_BYTES);
    net->may_submit = options->may_submit;
    net->may_submit_arg = options->may_submit_arg;
    io_timer_init(&net->retry, net_queue_retry, net);
    int code = backend_open(net, options, err);
    if (code < 0) {
        free(net);
        return code;
    }
    virtio_device_init(&net->virtio, &net_ops, "net", VIRTIO_ID_NET, PCI_CLASS_ETHERNET, net_features(options),
                       memory, 2, NET_QUEUE_SIZE);
    net_fill_config(net);
    offloads_apply(net, 0);
    *ret_device = &net->virtio;
    return 0;
}

void net_set_link(struct virtio_device *device, bool up)
{
    struct net *net = of_virtio(device);
    if (net->link_up == up)
        return;
    net->link_up = up;
    net_fill_config(net);
    virtio_device_config_changed(device);
}

int net_announce(struct virtio_device *device)
{
    struct net *net = of_virtio(device);
    if (net->may_submit != NULL && !net->may_submit(net->may_submit_arg))
        return -EAGAIN;
    /* Header of no offload, then Ethernet to all, then RARP "reverse request" for our own address (RFC 903). */
    uint8_t frame[NET_HEADER_BYTES + 60] = {0};
    uint8_t *ethernet = frame + NET_HEADER_BYTES, *rarp = ethernet + 14;
    static const uint8_t fixed[] = {0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x03};
    memset(ethernet, 0xff, NET_MAC_BYTES);
    memcpy(ethernet + NET_MAC_BYTES, net->mac, NET_MAC_BYTES);
    ethernet[12] = 0x80;
    ethernet[13] = 0x35;
    memcpy(rarp, fixed, sizeof fixed);
    memcpy(rarp + 8, net->mac, NET_MAC_BYTES);
    memcpy(rarp + 18, net->mac, NET_MAC_BYTES);
    return write(net->fd, frame, sizeof frame) < 0 ? -errno : 0;
}

struct net_counters net_counters(const struct virtio_device *device)
{
    return of_virtio(device)->counters;
}
