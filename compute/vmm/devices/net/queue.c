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
#include <time.h>

#include "common/log.h"
#include "compute/vmm/devices/net/net.h"

enum {
    ETHERNET_BYTES = 14,
    NS_PER_MS = 1000000,
};

static bool is_live(const struct net_pair *pair)
{
    const struct net *net = pair->net;
    return virtio_device_running(&net->virtio) && !net->virtio.paused && !pair->gone && pair->index < net->pairs_active;
}

static struct virtio_queue *queue_of(const struct net_pair *pair, unsigned which)
{
    return &pair->net->virtio.queues[2 * pair->index + which];
}

static bool may_submit(const struct net *net)
{
    return net->may_submit == NULL || net->may_submit(net->may_submit_arg);
}

static void retry_later(struct net_pair *pair)
{
    io_timer_arm(pair->net->loop, &pair->retry, (uint64_t)NET_RETRY_MS * NS_PER_MS);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Does the next frame wait for the rate limit? */
static bool is_throttled(struct net *net)
{
    uint64_t wait = rate_limit_is_set(&net->limit) ? rate_limit_wait_ns(&net->limit, now_ns()) : 0;
    if (wait == 0)
        return false;
    if (list_empty(&net->throttle.link)) {
        net->counters.throttled++;
        io_timer_arm(net->loop, &net->throttle, wait);
    }
    return true;
}

void net_queue_watch(struct net_pair *pair)
{
    uint32_t want = 0;
    if (is_live(pair) && queue_of(pair, NET_QUEUE_RX)->ready && !pair->rx_starved &&
        list_empty(&pair->net->throttle.link))
        want |= EPOLLIN;
    if (is_live(pair) && pair->tx_blocked)
        want |= EPOLLOUT;
    if (pair->handler != NULL && want != pair->watched)
        io_loop_change(pair->net->loop, pair->handler, want);
    pair->watched = want;
}

/* ---- receive ---- */

struct taken_buffer {
    uint16_t head;
    uint32_t bytes;
};

/* Copy @size bytes of rx_buffer into buffers of the driver, at most @most of them. The number of buffers, 0 when
 * there are not enough (all were put back), negative when the frame can never fit or the driver broke the rules. */
static int frame_scatter(struct net_pair *pair, uint32_t size, int most, struct taken_buffer *taken)
{
    struct virtio_queue *q = queue_of(pair, NET_QUEUE_RX);
    uint32_t done = 0;
    int count = 0, result = 0;
    while (done < size) {
        if (count == most) {
            result = -EMSGSIZE;
            break;
        }
        if (!virtio_device_pop(&pair->net->virtio, 2 * pair->index + NET_QUEUE_RX, &pair->chain)) {
            result = q->broken ? -EBADMSG : 0;
            break;
        }
        if (pair->chain.in_bytes < (count == 0 ? NET_HEADER_BYTES : 1)) {
            virtio_device_needs_reset(&pair->net->virtio, "receive buffer without room");
            return -EBADMSG;
        }
        uint32_t piece = (uint32_t)MIN((uint64_t)(size - done), pair->chain.in_bytes);
        virtio_chain_write(&pair->chain, pair->net->virtio.memory, 0, pair->rx_buffer + done, piece);
        taken[count++] = (struct taken_buffer){pair->chain.head, piece};
        done += piece;
    }
    if (done == size)
        return count;
    while (count > 0 && !q->broken)
        virtio_queue_unpop(q, taken[--count].head);
    return result;
}

/* num_buffers, which the header in rx_buffer has as 1, when it turned out to be more: read the first buffer again. */
static bool header_set_count(struct net_pair *pair, uint16_t head, uint16_t count)
{
    struct virtio_queue *q = queue_of(pair, NET_QUEUE_RX);
    uint16_t number = htole16(count), position = head;
    if (count == 1)
        return true;
    if (virtio_queue_retake(q, &position, &pair->chain) < 0) {
        virtio_device_needs_reset(&pair->net->virtio, q->reason);
        return false;
    }
    virtio_chain_write(&pair->chain, pair->net->virtio.memory, offsetof(struct virtio_net_hdr_v1, num_buffers), &number,
                       sizeof number);
    return true;
}

/* The frame in rx_buffer to the driver; false when it must wait for buffers. */
static bool frame_deliver(struct net_pair *pair)
{
    struct virtio_queue *q = queue_of(pair, NET_QUEUE_RX);
    struct taken_buffer taken[NET_MERGE_MAX];
    uint32_t size = pair->rx_pending_bytes;
    bool merge = virtio_device_has(&pair->net->virtio, VIRTIO_NET_F_MRG_RXBUF);
    int count = frame_scatter(pair, size, merge ? NET_MERGE_MAX : 1, taken);
    if (count == 0)
        return false;
    pair->rx_pending_bytes = 0;
    if (count < 0) {
        pair->net->counters.rx_dropped++;
        return true;
    }
    if (!header_set_count(pair, taken[0].head, (uint16_t)count))
        return true;
    for (int i = 0; i < count; i++)
        virtio_queue_push_held(q, (uint16_t)i, taken[i].head, taken[i].bytes);
    virtio_queue_publish(q, (uint16_t)count);
    pair->net->counters.rx_frames++;
    pair->net->counters.rx_bytes += size - NET_HEADER_BYTES;
    return true;
}

/* One frame from the tap into rx_buffer; false when there is none. */
static bool frame_read(struct net_pair *pair)
{
    ssize_t n = read(pair->fd, pair->rx_buffer, sizeof pair->rx_buffer);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        log_debug("net-read", "why=\"%s\", ignoring", strerror(errno));
    if (n < 0)
        return false;
    if (n == 0) {
        pair->gone = true; /* the other end of a socket was closed */
        return false;
    }
    if (n < NET_HEADER_BYTES + ETHERNET_BYTES || !pair->net->link_up) {
        pair->net->counters.rx_dropped++;
        return true;
    }
    uint16_t one = htole16(1);
    memcpy(pair->rx_buffer + offsetof(struct virtio_net_hdr_v1, num_buffers), &one, sizeof one);
    pair->rx_pending_bytes = (uint32_t)n;
    rate_limit_charge(&pair->net->limit, (uint64_t)n - NET_HEADER_BYTES);
    return true;
}

static void receive(struct net_pair *pair)
{
    struct virtio_device *d = &pair->net->virtio;
    struct virtio_queue *q = queue_of(pair, NET_QUEUE_RX);
    if (!is_live(pair) || !q->ready) {
        net_queue_watch(pair);
        return;
    }
    pair->rx_starved = false;
    for (unsigned frames = 0; frames < NET_BATCH_FRAMES && is_live(pair); frames++) {
        if (pair->rx_pending_bytes == 0 && (is_throttled(pair->net) || !frame_read(pair)))
            break;
        if (pair->rx_pending_bytes == 0)
            continue;
        uint16_t offered = virtio_queue_offered(q);
        if (frame_deliver(pair))
            continue;
        /* Buffers that came before the driver knew that it must notify: look again. */
        virtio_queue_ask_notify(q, true);
        pair->rx_starved = virtio_queue_offered(q) == offered;
        if (pair->rx_starved)
            break;
    }
    virtio_device_interrupt(d, 2 * pair->index + NET_QUEUE_RX);
    net_queue_watch(pair);
}

/* ---- transmit ---- */

/* False when the tap takes no more for now. */
static bool frame_send(struct net_pair *pair)
{
    const struct virtio_chain *c = &pair->chain;
    bool fits =
        c->out_bytes >= NET_HEADER_BYTES + ETHERNET_BYTES && c->out_bytes <= NET_HEADER_BYTES + NET_FRAME_BYTES_MAX;
    ssize_t n = -1;
    if (fits && pair->net->link_up) {
        do
            n = writev(pair->fd, c->segments, c->out_count);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EAGAIN)
            return false;
    }
    if (n < 0) {
        pair->net->counters.tx_dropped++;
    } else {
        rate_limit_charge(&pair->net->limit, c->out_bytes - NET_HEADER_BYTES);
        pair->net->counters.tx_frames++;
        pair->net->counters.tx_bytes += c->out_bytes - NET_HEADER_BYTES;
    }
    return true;
}

static void transmit(struct net_pair *pair)
{
    struct virtio_device *d = &pair->net->virtio;
    struct virtio_queue *q = queue_of(pair, NET_QUEUE_TX);
    unsigned frames = 0;
    if (!is_live(pair) || !q->ready) {
        net_queue_watch(pair);
        return;
    }
    pair->tx_blocked = false;
    do {
        virtio_queue_ask_notify(q, false);
        while (!pair->tx_blocked && frames < NET_BATCH_FRAMES) {
            if (is_throttled(pair->net))
                goto out;
            if (!virtio_device_pop(d, 2 * pair->index + NET_QUEUE_TX, &pair->chain))
                break;
            if (!may_submit(pair->net)) {
                virtio_queue_unpop(q, pair->chain.head);
                retry_later(pair);
                goto out;
            }
            pair->tx_blocked = !frame_send(pair);
            if (pair->tx_blocked)
                virtio_queue_unpop(q, pair->chain.head);
            else
                virtio_queue_push(q, pair->chain.head, 0);
            frames++;
        }
    } while (!pair->tx_blocked && frames < NET_BATCH_FRAMES && virtio_queue_ask_notify(q, true));
    if (frames >= NET_BATCH_FRAMES)
        d->transport->ops->queue_again(d->transport, 2 * pair->index + NET_QUEUE_TX);
out:
    virtio_device_interrupt(d, 2 * pair->index + NET_QUEUE_TX);
    net_queue_watch(pair);
}

void net_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct net *net = CONTAINER_OF(d, struct net, virtio);
    if (queue == net_control_queue(net))
        net_control_notify(net);
    else if (queue / 2 >= net->pair_count)
        return; /* the control queue's place when the driver knows of more pairs than one: it does not here */
    else if (queue % 2 == NET_QUEUE_RX)
        receive(&net->pairs[queue / 2]);
    else
        transmit(&net->pairs[queue / 2]);
}

void net_queue_unthrottle(void *arg)
{
    struct net *net = arg;
    unsigned turns = 2 * net->pair_count, first = net->turn++;
    io_timer_cancel(&net->throttle);
    /* The first takes all that the limit has left: were it always the same, a guest that is sent much could send nothing. */
    for (unsigned i = 0; i < turns; i++) {
        unsigned turn = (first + i) % turns;
        if (turn % 2 == 0)
            receive(&net->pairs[turn / 2]);
        else
            transmit(&net->pairs[turn / 2]);
    }
}

void net_queue_retry(void *arg)
{
    transmit(arg);
}

void net_queue_fd_ready(void *arg, uint32_t events)
{
    struct net_pair *pair = arg;
    if ((events & EPOLLIN) != 0)
        receive(pair);
    if ((events & EPOLLOUT) != 0)
        transmit(pair);
    if ((events & (EPOLLHUP | EPOLLERR)) != 0 && (events & EPOLLIN) == 0)
        pair->gone = true;
    if (pair->gone && pair->handler != NULL) {
        log_warning("net-gone", "why=\"the tap was closed\", nothing is carried any more");
        io_loop_remove(pair->net->loop, pair->handler);
        pair->handler = NULL;
    }
}
