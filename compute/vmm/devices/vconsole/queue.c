/* virtio-console requests: bytes both ways, and the conversation about ports. */
#include <linux/virtio_console.h>
#include <string.h>

#include "compute/vmm/devices/vconsole/vconsole.h"

enum { CONTROL_TO_GUEST = 2, CONTROL_FROM_GUEST = 3, CONTROL_BYTES = 8 };

static struct vconsole *vconsole_of(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct vconsole, virtio);
}

static unsigned queue_to_guest(unsigned port)
{
    return port == 0 ? 0 : 2 * port + 2;
}

static unsigned port_of(unsigned queue)
{
    return queue < CONTROL_TO_GUEST ? 0 : (queue - 2) / 2;
}

static bool usable(const struct vconsole *c, unsigned queue)
{
    return virtio_device_running(&c->virtio) && !c->virtio.paused && c->virtio.queues[queue].ready;
}

/* Bytes for a guest that nobody reads there are kept back (§5.3.6.1: not before it is open). */
void vconsole_queue_feed(struct vconsole *c, unsigned port)
{
    struct vconsole_port *p = &c->ports[port];
    unsigned queue = queue_to_guest(port);
    bool multiport = virtio_device_has(&c->virtio, VIRTIO_CONSOLE_F_MULTIPORT);
    if (!usable(c, queue) || (multiport && !p->guest_open))
        return;
    while (p->input_size > 0 && virtio_device_pop(&c->virtio, queue, &c->to_guest)) {
        size_t given = virtio_chain_write(&c->to_guest, c->virtio.memory, 0, p->input, p->input_size);
        virtio_queue_push(&c->virtio.queues[queue], c->to_guest.head, (uint32_t)given);
        memmove(p->input, p->input + given, p->input_size - given);
        p->input_size = (uint16_t)(p->input_size - given);
        if (given == 0)
            break; /* a buffer without room; the next call tries the next one */
    }
    virtio_device_interrupt(&c->virtio, queue);
}

/* The guest has done something that may make room: whoever waits for it goes on. */
static void feed_and_tell(struct vconsole *c, unsigned port)
{
    struct vconsole_port *p = &c->ports[port];
    unsigned before = p->input_size;
    vconsole_queue_feed(c, port);
    if (before == VCONSOLE_INPUT_BYTES && p->input_size < before && p->options.room != NULL)
        p->options.room(p->options.arg);
}

/* One message, if the driver has left a buffer; false when it has not. What does not fit its buffer is cut. */
static bool tell(struct vconsole *c, unsigned port, uint16_t event, uint16_t value, const char *text)
{
    uint8_t message[CONTROL_BYTES + VCONSOLE_NAME_BYTES_MAX];
    size_t text_size = strlen(text);
    if (!virtio_device_pop(&c->virtio, CONTROL_TO_GUEST, &c->chain))
        return false;
    memset(message, 0, CONTROL_BYTES);
    message[0] = (uint8_t)port;
    message[4] = (uint8_t)event;
    message[6] = (uint8_t)value;
    memcpy(message + CONTROL_BYTES, text, text_size);
    size_t given = virtio_chain_write(&c->chain, c->virtio.memory, 0, message, CONTROL_BYTES + text_size);
    virtio_queue_push(&c->virtio.queues[CONTROL_TO_GUEST], c->chain.head, (uint32_t)given);
    return true;
}

static bool tell_next(struct vconsole *c, unsigned port)
{
    static const struct {
        enum vconsole_message bit;
        uint16_t event, value;
    } messages[] = {
        {VCONSOLE_TELL_ADD, VIRTIO_CONSOLE_PORT_ADD, 1},
        {VCONSOLE_TELL_CONSOLE, VIRTIO_CONSOLE_CONSOLE_PORT, 1},
        {VCONSOLE_TELL_NAME, VIRTIO_CONSOLE_PORT_NAME, 1},
        {VCONSOLE_TELL_OPEN, VIRTIO_CONSOLE_PORT_OPEN, 1},
    };
    struct vconsole_port *p = &c->ports[port];
    for (unsigned i = 0; i < ARRAY_SIZE(messages); i++) {
        if (!(p->pending & messages[i].bit))
            continue;
        const char *text = messages[i].bit == VCONSOLE_TELL_NAME ? p->name : "";
        if (!tell(c, port, messages[i].event, messages[i].value, text))
            return false;
        p->pending = (uint8_t)(p->pending & ~messages[i].bit);
    }
    return true;
}

static void tell_all(struct vconsole *c)
{
    if (!usable(c, CONTROL_TO_GUEST))
        return;
    for (unsigned port = 0; port < c->port_count && tell_next(c, port); port++)
        ;
    virtio_device_interrupt(&c->virtio, CONTROL_TO_GUEST);
}

static void port_opened(struct vconsole_port *p, bool open)
{
    if (p->guest_open == open)
        return;
    p->guest_open = open;
    if (p->options.opened != NULL)
        p->options.opened(p->options.arg, open);
}

static void hear(struct vconsole *c)
{
    uint8_t raw[CONTROL_BYTES] = {0};
    if (virtio_chain_read(&c->chain, 0, raw, sizeof raw) < sizeof raw)
        return;
    struct bytes_reader in = bytes_reader(raw, sizeof raw);
    uint32_t port = bytes_get_u32(&in);
    uint16_t event = bytes_get_u16(&in), value = bytes_get_u16(&in);
    if (event == VIRTIO_CONSOLE_DEVICE_READY) {
        for (unsigned i = 0; value == 1 && i < c->port_count; i++)
            c->ports[i].pending |= VCONSOLE_TELL_ADD;
    } else if (port >= c->port_count) {
        return;
    } else if (event == VIRTIO_CONSOLE_PORT_READY && value == 1) {
        struct vconsole_port *p = &c->ports[port];
        p->ready = true;
        p->pending |= p->name[0] != '\0' ? VCONSOLE_TELL_NAME : VCONSOLE_TELL_CONSOLE;
        p->pending |= VCONSOLE_TELL_OPEN;
    } else if (event == VIRTIO_CONSOLE_PORT_OPEN) {
        port_opened(&c->ports[port], value == 1);
        feed_and_tell(c, port);
    }
}

static void listen(struct vconsole *c, unsigned port)
{
    struct vconsole_port *p = &c->ports[port];
    uint8_t piece[VCONSOLE_PIECE_BYTES];
    size_t size;
    for (uint64_t at = 0; at < VCONSOLE_REQUEST_BYTES_MAX && (size = virtio_chain_read(&c->chain, at, piece, sizeof piece)) > 0;
         at += size)
        p->options.output(p->options.arg, piece, size);
}

/* A queue from the guest. */
static void serve(struct vconsole *c, unsigned queue)
{
    struct virtio_device *d = &c->virtio;
    unsigned taken = 0;
    do {
        virtio_queue_ask_notify(&d->queues[queue], false);
        while (taken < VCONSOLE_BATCH_REQUESTS && virtio_device_pop(d, queue, &c->chain)) {
            if (queue == CONTROL_FROM_GUEST)
                hear(c);
            else
                listen(c, port_of(queue));
            virtio_queue_push(&d->queues[queue], c->chain.head, 0);
            taken++;
        }
    } while (taken < VCONSOLE_BATCH_REQUESTS && virtio_queue_ask_notify(&d->queues[queue], true));
    virtio_device_interrupt(d, queue);
    if (queue == CONTROL_FROM_GUEST)
        tell_all(c);
    if (taken == VCONSOLE_BATCH_REQUESTS)
        d->transport->ops->queue_again(d->transport, queue);
}

void vconsole_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct vconsole *c = vconsole_of(d);
    if (queue == CONTROL_TO_GUEST)
        tell_all(c);
    else if (queue % 2 == 0)
        feed_and_tell(c, port_of(queue));
    else
        serve(c, queue);
}

void vconsole_queue_reset(struct virtio_device *d)
{
    struct vconsole *c = vconsole_of(d);
    for (unsigned i = 0; i < c->port_count; i++) {
        c->ports[i].pending = 0;
        c->ports[i].ready = false;
        c->ports[i].input_size = 0;
        port_opened(&c->ports[i], false);
    }
}
