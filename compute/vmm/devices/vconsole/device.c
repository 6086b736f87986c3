/* virtio-console: making the device, and its host side. */
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/devices/vconsole/vconsole.h"

enum {
    PCI_CLASS_COMMUNICATION_OTHER = 0x078000,
    CONFIG_PORTS = 4, /* max_nr_ports; cols and rows before it are of a feature that is not offered */
    CONFIG_BYTES = 8,
};

static struct vconsole *vconsole_of(const struct virtio_device *d)
{
    return CONTAINER_OF((struct virtio_device *)d, struct vconsole, virtio);
}

static void vconsole_destroy(struct virtio_device *d)
{
    virtio_device_finish(d);
    free(vconsole_of(d));
}

static const struct virtio_device_ops vconsole_ops = {
    .notify = vconsole_queue_notify,
    .reset = vconsole_queue_reset,
    .save = vconsole_state_save,
    .load = vconsole_state_load,
    .destroy = vconsole_destroy,
};

int vconsole_create(const struct vconsole_port_options *ports, unsigned port_count, struct guest_memory *memory,
                    struct virtio_device **ret_device, struct error *err UNUSED)
{
    ASSERT(port_count >= 1 && port_count <= VCONSOLE_PORTS_MAX);
    struct vconsole *c = NEW(struct vconsole);
    virtio_device_init(&c->virtio, &vconsole_ops, "console", VIRTIO_ID_CONSOLE, PCI_CLASS_COMMUNICATION_OTHER,
                       1ull << VIRTIO_CONSOLE_F_MULTIPORT, memory, (uint16_t)(2 * port_count + 2), VCONSOLE_QUEUE_SIZE);
    c->port_count = port_count;
    for (unsigned i = 0; i < port_count; i++) {
        ASSERT(ports[i].name != NULL || i == 0);
        c->ports[i].options = ports[i];
        snprintf(c->ports[i].name, sizeof c->ports[i].name, "%s", ports[i].name ? ports[i].name : "");
    }
    c->virtio.config_bytes = CONFIG_BYTES;
    c->virtio.config[CONFIG_PORTS] = (uint8_t)port_count;
    *ret_device = &c->virtio;
    return 0;
}

size_t vconsole_input(struct virtio_device *d, unsigned port, const uint8_t *data, size_t size)
{
    struct vconsole *c = vconsole_of(d);
    ASSERT(port < c->port_count);
    struct vconsole_port *p = &c->ports[port];
    size_t taken = 0, piece;
    do {
        piece = MIN(size - taken, (size_t)(VCONSOLE_INPUT_BYTES - p->input_size));
        memcpy(p->input + p->input_size, data + taken, piece);
        p->input_size = (uint16_t)(p->input_size + piece);
        taken += piece;
        vconsole_queue_feed(c, port); /* may make room at once, which is no reason to call `room` */
    } while (taken < size && p->input_size < VCONSOLE_INPUT_BYTES);
    return taken;
}

bool vconsole_is_open(const struct virtio_device *d, unsigned port)
{
    const struct vconsole *c = vconsole_of(d);
    ASSERT(port < c->port_count);
    if (!virtio_device_running(d))
        return false;
    if (!virtio_device_has(d, VIRTIO_CONSOLE_F_MULTIPORT))
        return port == 0;
    return c->ports[port].guest_open;
}
