/* virtio-net frames.
 *
 * Receive:   tap readable -> read one frame -> as many buffers as it takes -> published together -> interrupt.
 *            Too few buffers: the frame waits in rx_buffer and the tap is not watched until the driver notifies.
 * Transmit:  chain -> writev to the tap -> used. The tap is full: the chain goes back, and EPOLLOUT brings us here
 * again. Frames that cannot be (too short, too long, refused by the tap) are dropped and counted; the driver gets its
 * buffer back either way. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "common/log.h"
#include "compute/vmm/devices/net/net.h"

enum {
    ETHERNET_BYTES = 14,
    NS_PER_MS = 1000000,
};

static bool is_live(const struct net *net)
{
    return virtio_device_running(&net->virtio) && !net->virtio.paused && !net->gone;
}

static bool may_submit(const struct net *net)
{
    return net->may_submit == NULL || net->may_submit(net->may_submit_arg);
}

static void retry_later(struct net *net)
{
    io_timer_arm(net->loop, &net->retry, (uint64_t)NET_RETRY_MS * NS_PER_MS);
}

void net_queue_watch(struct net *net)
{
    uint32_t want = 0;
    if (is_live(net) && net->virtio.queues[NET_QUEUE_RX].ready && !net->rx_starved)
        want |= EPOLLIN;
    if (is_live(net) && net->tx_blocked)
        want |= EPOLLOUT;
    if (net->handler != NULL && want != net->watched)
        io_loop_change(net->loop, net->handler, want);
    net->watched = want;
}

/* ---- receive ---- */

struct taken_buffer {
    uint16_t head;
    uint32_t bytes;
};

/* Copy @size bytes of rx_buffer into buffers of the driver, at most @most of them. The number of buffers, 0 when
 * there are not enough (all were put back), negative when the frame can never fit or the driver broke the rules. */
static int frame_scatter(struct net *net, uint32_t size, int most, struct taken_buffer *taken)
{
    struct virtio_queue *q = &net->virtio.queues[NET_QUEUE_RX];
    uint32_t done = 0;
    int count = 0, result = 0;
    while (done < size) {
        if (count == most) {
            result = -EMSGSIZE;
            break;
        }
        if (!virtio_device_pop(&net->virtio, NET_QUEUE_RX, &net->chain)) {
            result = q->broken ? -EBADMSG : 0;
            break;
        }
        if (net->chain.in_bytes < (count == 0 ? NET_HEADER_BYTES : 1)) {
            virtio_device_needs_reset(&net->virtio, "receive buffer without room");
            return -EBADMSG;
        }
        uint32_t piece = (uint32_t)MIN((uint64_t)(size - done), net->chain.in_bytes);
        virtio_chain_write(&net->chain, net->virtio.memory, 0, net->rx_buffer + done, piece);
        taken[count++] = (struct taken_buffer){net->chain.head, piece};
        done += piece;
    }
    if (done == size)
        return count;
    while (count > 0 && !q->broken)
        virtio_queue_unpop(q, taken[--count].head);
    return result;
}

/* num_buffers, which the header in rx_buffer has as 1, when it turned out to be more: read the first buffer again. */
static bool header_set_count(struct net *net, uint16_t head, uint16_t count)
{
    struct virtio_queue *q = &net->virtio.queues[NET_QUEUE_RX];
    uint16_t number = htole16(count), position = head;
    if (count == 1)
        return true;
    if (virtio_queue_retake(q, &position, &net->chain) < 0) {
        virtio_device_needs_reset(&net->virtio, q->reason);
        return false;
    }
    virtio_chain_write(&net->chain, net->virtio.memory, offsetof(struct virtio_net_hdr_v1, num_buffers), &number,
                       sizeof number);
    return true;
}

/* The frame in rx_buffer to the driver; false when it must wait for buffers. */
static bool frame_deliver(struct net *net)
{
    struct virtio_queue *q = &net->virtio.queues[NET_QUEUE_RX];
    struct taken_buffer taken[NET_MERGE_MAX];
    uint32_t size = net->rx_pending_bytes;
    bool merge = virtio_device_has(&net->virtio, VIRTIO_NET_F_MRG_RXBUF);
    int count = frame_scatter(net, size, merge ? NET_MERGE_MAX : 1, taken);
    if (count == 0)
        return false;
    net->rx_pending_bytes = 0;
    if (count < 0) {
        net->counters.rx_dropped++;
        return true;
    }
    if (!header_set_count(net, taken[0].head, (uint16_t)count))
        return true;
    for (int i = 0; i < count; i++)
        virtio_queue_push_held(q, (uint16_t)i, taken[i].head, taken[i].bytes);
    virtio_queue_publish(q, (uint16_t)count);
    net->counters.rx_frames++;
    net->counters.rx_bytes += size - NET_HEADER_BYTES;
    return true;
}

/* One frame from the tap into rx_buffer; false when there is none. */
static bool frame_read(struct net *net)
{
    ssize_t n = read(net->fd, net->rx_buffer, sizeof net->rx_buffer);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        log_debug("net-read", "why=\"%s\", ignoring", strerror(errno));
    if (n < 0)
        return false;
    if (n == 0) {
        net->gone = true; /* the other end of a socket was closed */
        return false;
    }
    if (n < NET_HEADER_BYTES + ETHERNET_BYTES || !net->link_up) {
        net->counters.rx_dropped++;
        return true;
    }
    uint16_t one = htole16(1);
    memcpy(net->rx_buffer + offsetof(struct virtio_net_hdr_v1, num_buffers), &one, sizeof one);
    net->rx_pending_bytes = (uint32_t)n;
    return true;
}

static void receive(struct net *net)
{
    struct virtio_device *d = &net->virtio;
    struct virtio_queue *q = &d->queues[NET_QUEUE_RX];
    if (!is_live(net) || !q->ready) {
        net_queue_watch(net);
        return;
    }
    net->rx_starved = false;
    for (unsigned frames = 0; frames < NET_BATCH_FRAMES && is_live(net); frames++) {
        if (net->rx_pending_bytes == 0 && !frame_read(net))
            break;
        if (net->rx_pending_bytes == 0)
            continue;
        uint16_t offered = virtio_queue_offered(q);
        if (frame_deliver(net))
            continue;
        /* Buffers that came before the driver knew that it must notify: look again. */
        virtio_queue_ask_notify(q, true);
        net->rx_starved = virtio_queue_offered(q) == offered;
        if (net->rx_starved)
            break;
    }
    virtio_device_interrupt(d, NET_QUEUE_RX);
    net_queue_watch(net);
}

/* ---- transmit ---- */

/* False when the tap takes no more for now. */
static bool frame_send(struct net *net)
{
    const struct virtio_chain *c = &net->chain;
    bool fits =
        c->out_bytes >= NET_HEADER_BYTES + ETHERNET_BYTES && c->out_bytes <= NET_HEADER_BYTES + NET_FRAME_BYTES_MAX;
    ssize_t n = -1;
    if (fits && net->link_up) {
        do
            n = writev(net->fd, c->segments, c->out_count);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EAGAIN)
            return false;
    }
    if (n < 0) {
        net->counters.tx_dropped++;
    } else {
        net->counters.tx_frames++;
        net->counters.tx_bytes += c->out_bytes - NET_HEADER_BYTES;
    }
    return true;
}

static void transmit(struct net *net)
{
    struct virtio_device *d = &net->virtio;
    struct virtio_queue *q = &d->queues[NET_QUEUE_TX];
    unsigned frames = 0;
    if (!is_live(net) || !q->ready) {
        net_queue_watch(net);
        return;
    }
    net->tx_blocked = false;
    do {
        virtio_queue_ask_notify(q, false);
        while (!net->tx_blocked && frames < NET_BATCH_FRAMES && virtio_device_pop(d, NET_QUEUE_TX, &net->chain)) {
            if (!may_submit(net)) {
                virtio_queue_unpop(q, net->chain.head);
                retry_later(net);
                goto out;
            }
            net->tx_blocked = !frame_send(net);
            if (net->tx_blocked)
                virtio_queue_unpop(q, net->chain.head);
            else
                virtio_queue_push(q, net->chain.head, 0);
            frames++;
        }
    } while (!net->tx_blocked && frames < NET_BATCH_FRAMES && virtio_queue_ask_notify(q, true));
    if (frames >= NET_BATCH_FRAMES)
        d->transport->ops->queue_again(d->transport, NET_QUEUE_TX);
out:
    virtio_device_interrupt(d, NET_QUEUE_TX);
    net_queue_watch(net);
}

void net_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct net *net = CONTAINER_OF(d, struct net, virtio);
    if (queue == NET_QUEUE_RX)
        receive(net);
    else
        transmit(net);
}

void net_queue_retry(void *arg)
{
    transmit(arg);
}

void net_queue_fd_ready(void *arg, uint32_t events)
{
    struct net *net = arg;
    if ((events & EPOLLIN) != 0)
        receive(net);
    if ((events & EPOLLOUT) != 0)
        transmit(net);
    if ((events & (EPOLLHUP | EPOLLERR)) != 0 && (events & EPOLLIN) == 0)
        net->gone = true;
    if (net->gone && net->handler != NULL) {
        log_warning("net-gone", "why=\"the tap was closed\", nothing is carried any more");
        io_loop_remove(net->loop, net->handler);
        net->handler = NULL;
    }
}
