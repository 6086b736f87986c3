/* virtio-vsock packets: what the guest says, and what it is told. */
#include <endian.h>
#include <linux/virtio_vsock.h>
#include <string.h>

#include "compute/vmm/devices/vsock/vsock.h"

STATIC_ASSERT(sizeof(struct virtio_vsock_hdr) == VSOCK_HEADER_BYTES, "the header is packed");

static struct vsock *vsock_of(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct vsock, virtio);
}

static bool usable(const struct vsock *v, unsigned queue)
{
    return virtio_device_running(&v->virtio) && !v->virtio.paused && v->virtio.queues[queue].ready;
}

/* ---- to the guest ---- */

/* Fill the popped chain with a packet; the payload has been put into `scratch`. */
static void packet_push(struct vsock *v, uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t flags,
                        uint32_t delivered, uint32_t size)
{
    struct virtio_vsock_hdr header = {
        .src_cid = htole64(VSOCK_CID_HOST),
        .dst_cid = htole64(v->cid),
        .src_port = htole32(host_port),
        .dst_port = htole32(guest_port),
        .len = htole32(size),
        .type = htole16(VIRTIO_VSOCK_TYPE_STREAM),
        .op = htole16(op),
        .flags = htole32(flags),
        .buf_alloc = htole32(VSOCK_BUFFER_BYTES),
        .fwd_cnt = htole32(delivered),
    };
    size_t given = virtio_chain_write(&v->chain, v->virtio.memory, 0, &header, sizeof header);
    given += virtio_chain_write(&v->chain, v->virtio.memory, sizeof header, v->scratch, size);
    virtio_queue_push(&v->virtio.queues[VSOCK_RX], v->chain.head, (uint32_t)given);
}

static bool has_payload(const struct vsock_connection *c)
{
    return c->state == VSOCK_OPEN && c->readable && !c->client_ended && vsock_connection_credit(c) > 0;
}

static struct vsock_connection *next_work(struct vsock *v)
{
    LIST_FOREACH(link, &v->connections)
    {
        struct vsock_connection *c = LIST_ENTRY(link, struct vsock_connection, link);
        if (c->tell != 0 || has_payload(c))
            return c;
    }
    return NULL;
}

/* One of the things that @c has to tell, in the popped chain. */
static void tell(struct vsock_connection *c)
{
    static const struct {
        enum vsock_tell bit;
        uint16_t op;
    } table[] = {
        {VSOCK_TELL_RST, VIRTIO_VSOCK_OP_RST},
        {VSOCK_TELL_REQUEST, VIRTIO_VSOCK_OP_REQUEST},
        {VSOCK_TELL_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE},
        {VSOCK_TELL_CREDIT, VIRTIO_VSOCK_OP_CREDIT_UPDATE},
        {VSOCK_TELL_SHUTDOWN, VIRTIO_VSOCK_OP_SHUTDOWN},
    };
    unsigned i = 0;
    while (!(c->tell & table[i].bit))
        i++;
    uint32_t flags = 0;
    if (table[i].bit == VSOCK_TELL_SHUTDOWN)
        flags = VIRTIO_VSOCK_SHUTDOWN_SEND | (c->state == VSOCK_CLOSED ? VIRTIO_VSOCK_SHUTDOWN_RCV : 0);
    c->told = c->delivered;
    packet_push(c->vsock, c->guest_port, c->host_port, table[i].op, flags, c->delivered, 0);
    c->tell &= ~(unsigned)table[i].bit;
    if (table[i].bit == VSOCK_TELL_RST)
        vsock_connection_destroy(c);
}

/* Payload of @c in the popped chain; where there turns out to be none the chain goes back. */
static void send_payload(struct vsock_connection *c)
{
    struct vsock *v = c->vsock;
    uint64_t room = MIN(v->chain.in_bytes - VSOCK_HEADER_BYTES, (uint64_t)sizeof v->scratch);
    size_t size = vsock_connection_read(c, v->scratch, (size_t)MIN(room, (uint64_t)vsock_connection_credit(c)));
    if (size == 0) {
        virtio_queue_unpop(&v->virtio.queues[VSOCK_RX], v->chain.head);
        return;
    }
    c->sent += (uint32_t)size;
    c->told = c->delivered;
    packet_push(v, c->guest_port, c->host_port, VIRTIO_VSOCK_OP_RW, 0, c->delivered, (uint32_t)size);
}

static void events_deliver(struct vsock *v)
{
    if (!v->tell_reset || !usable(v, VSOCK_EVENT) || !virtio_device_pop(&v->virtio, VSOCK_EVENT, &v->chain))
        return;
    struct virtio_vsock_event event = {htole32(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)};
    size_t given = virtio_chain_write(&v->chain, v->virtio.memory, 0, &event, sizeof event);
    virtio_queue_push(&v->virtio.queues[VSOCK_EVENT], v->chain.head, (uint32_t)given);
    v->tell_reset = false;
    virtio_device_interrupt(&v->virtio, VSOCK_EVENT);
}

void vsock_queue_deliver(struct vsock *v)
{
    events_deliver(v);
    if (!usable(v, VSOCK_RX))
        return;
    bool was_full = v->reset_count == VSOCK_RESETS_MAX;
    unsigned packets = 0;
    for (struct vsock_connection *c; packets < VSOCK_BATCH_PACKETS; packets++) {
        c = v->reset_count > 0 ? NULL : next_work(v);
        if ((v->reset_count == 0 && c == NULL) || !virtio_device_pop(&v->virtio, VSOCK_RX, &v->chain))
            break;
        if (v->chain.in_bytes < VSOCK_HEADER_BYTES) {
            virtio_queue_push(&v->virtio.queues[VSOCK_RX], v->chain.head, 0); /* of no use to anybody */
        } else if (c == NULL) {
            struct vsock_reset r = v->resets[--v->reset_count];
            packet_push(v, r.guest_port, r.host_port, VIRTIO_VSOCK_OP_RST, 0, 0, 0);
        } else {
            list_remove(&c->link);
            list_append(&v->connections, &c->link);
            if (c->tell != 0)
                tell(c);
            else if (v->chain.in_bytes > VSOCK_HEADER_BYTES)
                send_payload(c);
            else
                virtio_queue_push(&v->virtio.queues[VSOCK_RX], v->chain.head, 0);
        }
    }
    virtio_device_interrupt(&v->virtio, VSOCK_RX);
    LIST_FOREACH(link, &v->connections)
    {
        vsock_connection_watch(LIST_ENTRY(link, struct vsock_connection, link));
    }
    if (packets == VSOCK_BATCH_PACKETS)
        v->virtio.transport->ops->queue_again(v->virtio.transport, VSOCK_RX);
    /* Room for refusals again: what the guest has sent meanwhile was left lying, and it was told not to notify. */
    if (was_full && v->reset_count < VSOCK_RESETS_MAX)
        v->virtio.transport->ops->queue_again(v->virtio.transport, VSOCK_TX);
}

/* ---- from the guest ---- */

static void refuse(struct vsock *v, const struct virtio_vsock_hdr *h)
{
    ASSERT(v->reset_count < VSOCK_RESETS_MAX); /* the caller has looked */
    v->resets[v->reset_count++] = (struct vsock_reset){le32toh(h->src_port), le32toh(h->dst_port)};
}

/* A packet of a connection that is there. */
static void hear_connection(struct vsock_connection *c, const struct virtio_vsock_hdr *h)
{
    struct vsock *v = c->vsock;
    uint32_t flags = le32toh(h->flags);
    c->guest_room = le32toh(h->buf_alloc);
    c->guest_taken = le32toh(h->fwd_cnt);
    switch (le16toh(h->op)) {
    case VIRTIO_VSOCK_OP_RESPONSE:
        if (c->state == VSOCK_ASKING)
            vsock_connection_accepted(c);
        break;
    case VIRTIO_VSOCK_OP_RST:
        vsock_connection_destroy(c);
        break;
    case VIRTIO_VSOCK_OP_RW:
        if (c->state == VSOCK_OPEN && !vsock_connection_write(c, &v->chain, sizeof *h, le32toh(h->len))) {
            refuse(v, h);
            vsock_connection_destroy(c);
        }
        break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        c->guest_ended = c->guest_ended || (flags & VIRTIO_VSOCK_SHUTDOWN_SEND);
        c->guest_deaf = c->guest_deaf || (flags & VIRTIO_VSOCK_SHUTDOWN_RCV);
        vsock_connection_shut(c);
        break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        c->tell |= VSOCK_TELL_CREDIT;
        break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break;
    default: /* REQUEST for what is there, or nothing known */
        refuse(v, h);
        vsock_connection_destroy(c);
        break;
    }
}

static void hear(struct vsock *v)
{
    struct virtio_vsock_hdr h;
    if (virtio_chain_read(&v->chain, 0, &h, sizeof h) < sizeof h)
        return; /* not even a header: nobody to answer */
    uint32_t guest_port = le32toh(h.src_port), host_port = le32toh(h.dst_port);
    bool ours = le64toh(h.src_cid) == v->cid && le64toh(h.dst_cid) == VSOCK_CID_HOST &&
                le16toh(h.type) == VIRTIO_VSOCK_TYPE_STREAM && le32toh(h.len) <= v->chain.out_bytes - sizeof h;
    struct vsock_connection *c = ours ? vsock_connection_find(v, guest_port, host_port) : NULL;
    if (c != NULL) {
        hear_connection(c, &h);
    } else if (ours && le16toh(h.op) == VIRTIO_VSOCK_OP_REQUEST &&
               (c = vsock_connection_open(v, guest_port, host_port)) != NULL) {
        c->guest_room = le32toh(h.buf_alloc);
        c->guest_taken = le32toh(h.fwd_cnt);
        c->tell |= VSOCK_TELL_RESPONSE;
    } else if (le16toh(h.op) != VIRTIO_VSOCK_OP_RST) {
        refuse(v, &h);
    }
}

static void take(struct vsock *v)
{
    struct virtio_device *d = &v->virtio;
    unsigned taken = 0;
    bool full = false;
    do {
        virtio_queue_ask_notify(&d->queues[VSOCK_TX], false);
        while (taken < VSOCK_BATCH_PACKETS && !(full = v->reset_count == VSOCK_RESETS_MAX) &&
               virtio_device_pop(d, VSOCK_TX, &v->chain)) {
            uint16_t head = v->chain.head;
            hear(v);
            virtio_queue_push(&d->queues[VSOCK_TX], head, 0);
            taken++;
        }
    } while (taken < VSOCK_BATCH_PACKETS && !full && virtio_queue_ask_notify(&d->queues[VSOCK_TX], true));
    virtio_device_interrupt(d, VSOCK_TX);
    if (taken == VSOCK_BATCH_PACKETS)
        d->transport->ops->queue_again(d->transport, VSOCK_TX);
}

void vsock_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct vsock *v = vsock_of(d);
    if (queue == VSOCK_TX)
        take(v);
    vsock_queue_deliver(v);
}
