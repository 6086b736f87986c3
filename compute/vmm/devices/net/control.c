/* Commands of the driver on the control queue (virtio 1.2 §5.1.6.5): one chain each, class and command and their data to
 * read, one byte for the outcome to write. A command that makes no sense is answered with an error, not obeyed in part. */
#include <endian.h>
#include <linux/virtio_net.h>
#include <string.h>

#include "compute/vmm/devices/net/net.h"

#define BIT(n) (1ull << (n))
#define GUEST_OFFLOADS                                                                                               \
    (BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) | BIT(VIRTIO_NET_F_GUEST_TSO6) |                    \
     BIT(VIRTIO_NET_F_GUEST_ECN) | BIT(VIRTIO_NET_F_GUEST_UFO))

unsigned net_control_queue(const struct net *net)
{
    return virtio_device_has(&net->virtio, VIRTIO_NET_F_MQ) ? 2 * net->pair_count : 2;
}

static bool set_pairs(struct net *net, const struct virtio_chain *chain)
{
    uint16_t pairs = 0;
    if (!virtio_device_has(&net->virtio, VIRTIO_NET_F_MQ) || chain->out_bytes != 4)
        return false;
    virtio_chain_read(chain, 2, &pairs, sizeof pairs);
    pairs = le16toh(pairs);
    if (pairs < VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN || pairs > net->pair_count)
        return false;
    net_use_pairs(net, pairs);
    return true;
}

static bool set_offloads(struct net *net, const struct virtio_chain *chain)
{
    uint64_t offloads = 0;
    if (!virtio_device_has(&net->virtio, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) || chain->out_bytes != 10)
        return false;
    virtio_chain_read(chain, 2, &offloads, sizeof offloads);
    offloads = le64toh(offloads);
    /* What was not negotiated cannot be turned on. */
    if ((offloads & ~(GUEST_OFFLOADS & net->virtio.features)) != 0)
        return false;
    net_apply_offloads(net, offloads);
    return true;
}

static bool announced(struct net *net)
{
    if (!virtio_device_has(&net->virtio, VIRTIO_NET_F_GUEST_ANNOUNCE))
        return false;
    net->announcing = false;
    net_fill_config(net); /* quietly: the driver knows, for it says so */
    return true;
}

static bool obey(struct net *net, const struct virtio_chain *chain)
{
    struct virtio_net_ctrl_hdr command = {.class = 0xff};
    if (virtio_chain_read(chain, 0, &command, sizeof command) != sizeof command)
        return false;
    if (command.class == VIRTIO_NET_CTRL_MQ && command.cmd == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
        return set_pairs(net, chain);
    if (command.class == VIRTIO_NET_CTRL_GUEST_OFFLOADS && command.cmd == VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
        return set_offloads(net, chain);
    if (command.class == VIRTIO_NET_CTRL_ANNOUNCE && command.cmd == VIRTIO_NET_CTRL_ANNOUNCE_ACK)
        return announced(net);
    return false;
}

void net_control_notify(struct net *net)
{
    struct virtio_device *d = &net->virtio;
    unsigned queue = net_control_queue(net), done = 0;
    struct virtio_queue *q = &d->queues[queue];
    struct virtio_chain *chain = &net->pairs[0].chain;
    if (!virtio_device_has(d, VIRTIO_NET_F_CTRL_VQ))
        return;
    do {
        virtio_queue_ask_notify(q, false);
        while (done < NET_CONTROL_BATCH && virtio_device_pop(d, queue, chain)) {
            uint8_t outcome = obey(net, chain) ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
            uint32_t written = (uint32_t)virtio_chain_write(chain, d->memory, 0, &outcome, sizeof outcome);
            virtio_queue_push(q, chain->head, written);
            done++;
        }
    } while (done < NET_CONTROL_BATCH && virtio_queue_ask_notify(q, true));
    if (done >= NET_CONTROL_BATCH)
        d->transport->ops->queue_again(d->transport, queue);
    virtio_device_interrupt(d, queue);
}
