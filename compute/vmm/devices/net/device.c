/* virtio-net: making the device, its configuration space and its course of life. Frames are in queue.c. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/devices/net/net.h"

#define BIT(n) (1ull << (n))
enum { PCI_CLASS_ETHERNET = 0x020000, NS_PER_MS = 1000000 };

static struct net *of_virtio(const struct virtio_device *d)
{
    return CONTAINER_OF(d, struct net, virtio);
}

void net_apply_offloads(struct net *net, uint64_t offloads)
{
    net->offloads = offloads;
    int code = net->is_tap ? tap_set_offloads(net->pairs[0].fd, offloads) : 0;
    if (code < 0)
        log_warning("net-offloads", "why=\"%s\", ignoring", strerror(-code));
}

void net_use_pairs(struct net *net, uint16_t pairs)
{
    net->pairs_active = pairs;
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        int code = net->is_tap && net_has_queues(net) && !pair->gone ? tap_set_queue(pair->fd, i < pairs) : 0;
        if (code < 0)
            log_warning("net-queues", "pair=%u why=\"%s\", ignoring", i, strerror(-code));
        pair->rx_starved = pair->tx_blocked = false;
        net_queue_watch(pair);
    }
}

static void net_start(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    net_apply_offloads(net, d->features);
    net_use_pairs(net, 1); /* more when the driver says so (§5.1.5) */
}

void net_set_limits(struct virtio_device *d, const struct vmm_limits *limits)
{
    struct net *net = of_virtio(d);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    rate_limit_set(&net->limit, limits, (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec);
    net_queue_unthrottle(net); /* they may be looser now */
}

static void net_reset(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    net->announcing = false;
    io_timer_cancel(&net->throttle);
    net_fill_config(net);
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        pair->rx_pending_bytes = 0;
        pair->rx_starved = pair->tx_blocked = false;
        io_timer_cancel(&pair->retry);
        /* Its own status is still set: watch nothing until the next start. */
        if (pair->handler != NULL && pair->watched != 0)
            io_loop_change(net->loop, pair->handler, pair->watched = 0);
    }
    net_apply_offloads(net, 0);
}

static void net_pause(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    io_timer_cancel(&net->announce);
    io_timer_cancel(&net->throttle);
    for (unsigned i = 0; i < net->pair_count; i++) {
        io_timer_cancel(&net->pairs[i].retry);
        net_queue_watch(&net->pairs[i]);
    }
}

static void announce_next(void *arg)
{
    struct net *net = arg;
    int code = net_announce(&net->virtio);
    if (code < 0 && code != -EAGAIN)
        log_warning("net-announce", "why=\"%s\", ignoring", strerror(-code));
    if (++net->announce_round < NET_ANNOUNCE_ROUNDS)
        io_timer_arm(net->loop, &net->announce, (uint64_t)NET_ANNOUNCE_MS * net->announce_round * NS_PER_MS);
}

static void net_resume(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    if (net->loaded) {
        net->loaded = false;
        net->announce_round = 0;
        announce_next(net);
    }
    if (!virtio_device_running(d))
        return;
    net_apply_offloads(net, net->offloads); /* after a load the tap is another one */
    net_use_pairs(net, net->pairs_active);
}

static void pairs_close(struct net *net)
{
    io_timer_cancel(&net->throttle);
    for (unsigned i = 0; i < net->pair_count; i++) {
        io_timer_cancel(&net->pairs[i].retry);
        if (net->pairs[i].handler != NULL)
            io_loop_remove(net->loop, net->pairs[i].handler);
    }
}

static void net_destroy(struct virtio_device *d)
{
    struct net *net = of_virtio(d);
    io_timer_cancel(&net->announce);
    pairs_close(net);
    for (unsigned i = 0; i < net->pair_count; i++)
        close_fd(&net->pairs[i].fd);
    virtio_device_finish(d);
    free(net->pairs);
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
                        BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_CTRL_VQ) |
                        BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | BIT(VIRTIO_NET_F_GUEST_ANNOUNCE);
    if (options->pairs > 1)
        features |= BIT(VIRTIO_NET_F_MQ);
    return options->mtu != 0 ? features | BIT(VIRTIO_NET_F_MTU) : features;
}

/* §5.1.4 */
void net_fill_config(struct net *net)
{
    struct virtio_net_config config = {
        .status = htole16((uint16_t)((net->link_up ? VIRTIO_NET_S_LINK_UP : 0) | (net->announcing ? VIRTIO_NET_S_ANNOUNCE : 0))),
        .max_virtqueue_pairs = htole16((uint16_t)net->pair_count),
        .mtu = htole16(net->mtu),
    };
    STATIC_ASSERT(sizeof config <= VIRTIO_CONFIG_BYTES_MAX, "room for the configuration");
    memcpy(config.mac, net->mac, NET_MAC_BYTES);
    memcpy(net->virtio.config, &config, sizeof config);
    net->virtio.config_bytes = sizeof config;
}

static int pair_open(struct net *net, struct net_pair *pair, const struct net_options *options, struct error *err)
{
    int code = options->tap != NULL ? tap_open(options->tap, net_has_queues(net), &pair->fd, err) : 0;
    if (code == 0)
        code = tap_prepare(pair->fd, &net->is_tap, err);
    if (code == 0)
        code = io_loop_add(net->loop, pair->fd, 0, net_queue_fd_ready, pair, &pair->handler, err);
    return code;
}

unsigned net_handles(const struct virtio_device *d, int *fds)
{
    const struct net *net = of_virtio(d);
    for (unsigned i = 0; i < net->pair_count; i++)
        fds[i] = net->pairs[i].fd;
    return net->pair_count;
}

int net_adopt(struct virtio_device *d, const int *fds, struct error *err)
{
    const struct net_options options = {.tap = NULL};
    struct net *net = of_virtio(d);
    int code = 0;
    for (unsigned i = 0; i < net->pair_count; i++) {
        ASSERT(net->pairs[i].fd < 0);
        net->pairs[i].fd = fds[i];
    }
    for (unsigned i = 0; code == 0 && i < net->pair_count; i++)
        code = pair_open(net, &net->pairs[i], &options, err);
    return code; /* what was opened goes with the device */
}

/* All pairs or, with what the caller gave still the caller's, none. */
static int backend_open(struct net *net, const struct net_options *options, struct error *err)
{
    int code = 0;
    io_timer_init(&net->throttle, net_queue_unthrottle, net);
    for (unsigned i = 0; i < net->pair_count; i++) {
        struct net_pair *pair = &net->pairs[i];
        pair->net = net;
        pair->index = i;
        pair->fd = options->tap != NULL || options->awaited ? -1 : i == 0 ? options->fd : options->more_fds[i - 1];
        io_timer_init(&pair->retry, net_queue_retry, pair);
    }
    for (unsigned i = 0; code == 0 && !options->awaited && i < net->pair_count; i++)
        code = pair_open(net, &net->pairs[i], options, err);
    if (code == 0)
        return 0;
    pairs_close(net);
    for (unsigned i = 0; options->tap != NULL && i < net->pair_count; i++)
        close_fd(&net->pairs[i].fd);
    return code;
}

int net_create(const struct net_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err)
{
    if ((options->mac[0] & 1) != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "the MAC address of an interface is not a group address");
    if (options->pairs > NET_PAIRS_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "an interface has up to %d pairs of queues, not %u", NET_PAIRS_MAX,
                         options->pairs);
    struct net *net = NEW(struct net);
    net->loop = loop;
    net->link_up = true;
    net->mtu = options->mtu;
    memcpy(net->mac, options->mac, NET_MAC_BYTES);
    net->may_submit = options->may_submit;
    net->may_submit_arg = options->may_submit_arg;
    net->pair_count = MAX(options->pairs, 1u);
    net->pairs_active = 1;
    io_timer_init(&net->announce, announce_next, net);
    net->pairs = xcalloc(net->pair_count, sizeof *net->pairs);
    int code = backend_open(net, options, err);
    if (code < 0) {
        free(net->pairs);
        free(net);
        return code;
    }
    virtio_device_init(&net->virtio, &net_ops, "net", VIRTIO_ID_NET, PCI_CLASS_ETHERNET, net_features(options), memory,
                       (uint16_t)(2 * net->pair_count + 1), NET_QUEUE_SIZE);
    net_fill_config(net);
    net_apply_offloads(net, 0);
    net_use_pairs(net, 1);
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
    if (virtio_device_has(device, VIRTIO_NET_F_GUEST_ANNOUNCE) && virtio_device_running(device)) {
        net->announcing = true;
        net_fill_config(net);
        virtio_device_config_changed(device);
    }
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
    return write(net->pairs[0].fd, frame, sizeof frame) < 0 ? -errno : 0;
}

struct net_counters net_counters(const struct virtio_device *device)
{
    return of_virtio(device)->counters;
}
