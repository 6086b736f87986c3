/* virtio-console with several ports (virtio 1.2 §5.3): byte streams between the guest and us. One may be the guest's
 * console (hvc0); the others are found in the guest by name, as /dev/virtio-ports/<name>.
 *
 *   driver: DEVICE_READY --> us: PORT_ADD for each --> driver: PORT_READY --> us: CONSOLE_PORT or PORT_NAME, PORT_OPEN
 *   guest opens or closes its end: driver sends PORT_OPEN 1 or 0
 *
 * Queues: port 0 has 0 (to the guest) and 1 (from it); 2 and 3 are for control; port n > 0 has 2n+2 and 2n+3.
 * What has to be told to the driver is a set of bits for each port, not a list: it cannot grow, whatever a driver does.
 * A driver without MULTIPORT sees port 0 alone. */
#ifndef COMPUTE_VMM_DEVICES_VCONSOLE_H
#define COMPUTE_VMM_DEVICES_VCONSOLE_H

#include "compute/vmm/virtio/virtio_device.h"

enum {
    VCONSOLE_PORTS_MAX = 4,
    VCONSOLE_QUEUE_SIZE = 64,
    VCONSOLE_INPUT_BYTES = 4096,  /* for the guest and not taken by it yet, for each port */
    VCONSOLE_NAME_BYTES_MAX = 63,
    VCONSOLE_BATCH_REQUESTS = 32, /* per call, then the other devices have their turn */
    VCONSOLE_PIECE_BYTES = 1024,  /* handed to `output` at a time */
    VCONSOLE_REQUEST_BYTES_MAX = 1 << 20, /* taken from one request; drivers send pages. The rest of a longer one is lost */
};

/* Our end of a port. Called with the device lock held. */
struct vconsole_port_options {
    const char *name; /* NULL: this port is the guest's console */
    /* The guest has written. Takes all. */
    void (*output)(void *arg, const uint8_t *data, size_t size);
    /* The guest has opened or closed its end; after a reset it is closed. NULL: of no interest. */
    void (*opened)(void *arg, bool open);
    /* vconsole_input has room again, after it has not taken all. Never from within it. NULL: of no interest. */
    void (*room)(void *arg);
    void *arg;
};

struct vconsole_port {
    struct vconsole_port_options options; /* name: a copy in `name` */
    char name[VCONSOLE_NAME_BYTES_MAX + 1];
    uint8_t pending;              /* messages to the driver that wait for a buffer: bits of enum vconsole_message */
    bool ready;                   /* the driver has the port */
    bool guest_open;              /* somebody in the guest has it open */
    uint16_t input_size;          /* bytes of `input` */
    uint8_t input[VCONSOLE_INPUT_BYTES];
};

enum vconsole_message {
    VCONSOLE_TELL_ADD = 1 << 0,
    VCONSOLE_TELL_CONSOLE = 1 << 1,
    VCONSOLE_TELL_NAME = 1 << 2,
    VCONSOLE_TELL_OPEN = 1 << 3,
};

struct vconsole {
    struct virtio_device virtio;
    unsigned port_count;
    struct vconsole_port ports[VCONSOLE_PORTS_MAX];
    struct virtio_chain chain; /* the request being served */
    struct virtio_chain to_guest; /* the buffer being filled: `output` may feed while a request is being read */
};

/* 1 to VCONSOLE_PORTS_MAX ports, of which the first may be the console (one without a name). Names are cut to fit. */
int vconsole_create(const struct vconsole_port_options *ports, unsigned port_count, struct guest_memory *memory,
                    struct virtio_device **ret_device, struct error *err);
/* For the guest, at port @port: as many bytes as there is room for are taken; returns how many. */
size_t vconsole_input(struct virtio_device *d, unsigned port, const uint8_t *data, size_t size);
/* Somebody in the guest has the port open (a console port: the driver has it). */
bool vconsole_is_open(const struct virtio_device *d, unsigned port);

/* queue.c */
void vconsole_queue_notify(struct virtio_device *d, unsigned queue);
void vconsole_queue_reset(struct virtio_device *d);
/* Give the guest what waits for it, as far as it has buffers; tells nobody of the room that makes. */
void vconsole_queue_feed(struct vconsole *c, unsigned port);
/* state.c */
void vconsole_state_save(const struct virtio_device *d, struct bytes_writer *out);
int vconsole_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
