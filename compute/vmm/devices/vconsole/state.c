/* virtio-console state that outlives the process: u16 version, u8 ports; for each port u8 pending, ready, guest_open,
 * u16 bytes of input, those bytes. */
#include <errno.h>
#include <string.h>

#include "compute/vmm/devices/vconsole/vconsole.h"

enum {
    STATE_VERSION = 1,
    PENDING_ALL = VCONSOLE_TELL_ADD | VCONSOLE_TELL_CONSOLE | VCONSOLE_TELL_NAME | VCONSOLE_TELL_OPEN,
};

void vconsole_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    const struct vconsole *c = CONTAINER_OF((struct virtio_device *)d, struct vconsole, virtio);
    bytes_put_u16(out, STATE_VERSION);
    bytes_put_u8(out, (uint8_t)c->port_count);
    for (unsigned i = 0; i < c->port_count; i++) {
        const struct vconsole_port *p = &c->ports[i];
        bytes_put_u8(out, p->pending);
        bytes_put_u8(out, p->ready);
        bytes_put_u8(out, p->guest_open);
        bytes_put_u16(out, p->input_size);
        bytes_put(out, p->input, p->input_size);
    }
}

static int refuse(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_INVALID, "state of virtio-console does not fit: %s", what);
}

static bool port_load(struct vconsole_port *p, struct bytes_reader *in)
{
    uint8_t pending = bytes_get_u8(in), ready = bytes_get_u8(in), open = bytes_get_u8(in);
    uint16_t size = bytes_get_u16(in);
    if (in->bad || pending & ~PENDING_ALL || ready > 1 || open > 1 || size > VCONSOLE_INPUT_BYTES)
        return false;
    const void *input = bytes_get(in, size);
    if (input == NULL)
        return false;
    p->pending = pending;
    p->ready = ready;
    p->input_size = size;
    memcpy(p->input, input, size);
    if (p->guest_open != (bool)open && p->options.opened != NULL)
        p->options.opened(p->options.arg, open);
    p->guest_open = open;
    return true;
}

int vconsole_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    struct vconsole *c = CONTAINER_OF(d, struct vconsole, virtio);
    uint16_t version = bytes_get_u16(in);
    uint8_t ports = bytes_get_u8(in);
    if (in->bad || version != STATE_VERSION)
        return refuse(err, "its version is not known here");
    if (ports != c->port_count)
        return refuse(err, "the number of ports differs");
    for (unsigned i = 0; i < c->port_count; i++)
        if (!port_load(&c->ports[i], in))
            return refuse(err, "a port");
    return 0;
}
