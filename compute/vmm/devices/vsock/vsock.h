/* virtio-vsock (virtio 1.2 §5.10): stream connections between the guest and this host, carried by Unix sockets.
 *
 *   host to guest: connect to `path`, write "CONNECT <port>\n", read "OK <port>\n" (or the end), then bytes both ways
 *   guest to host: a connection to CID 2, port <n>, ends at the Unix socket `path`_<n>, if somebody listens there
 *
 *   GREETING --"CONNECT n"--> ASKING --RESPONSE--> OPEN --both ends shut--> CLOSED (waits for the guest's RST, or is
 *      (host's client)                    guest's REQUEST --^                        let go when room is needed)
 *
 * GREETING and ASKING end by themselves: a client that says nothing for VSOCK_GREETING_MS, and one that the guest does
 * not answer for VSOCK_ANSWER_MS, is let go.
 *
 * Flow control is by credit (§5.10.6.3): the guest may have VSOCK_BUFFER_BYTES on the way to a client of ours and no
 * more (a guest that sends more loses the connection); we read from a client only what the guest has room for. What
 * has to be told to the guest is a set of bits for each connection, refusals are a bounded list: when it is full no
 * more is taken from the guest until it has taken some of ours. So nothing grows, whatever either side does.
 *
 * Connections do not move with a VM: after a load the guest is told that its transport was reset. */
#ifndef COMPUTE_VMM_DEVICES_VSOCK_H
#define COMPUTE_VMM_DEVICES_VSOCK_H

#include "compute/vmm/io_loop.h"
#include "compute/vmm/unix_socket.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    VSOCK_QUEUE_SIZE = 128,
    VSOCK_RX = 0, /* to the guest */
    VSOCK_TX = 1,
    VSOCK_EVENT = 2,
    VSOCK_QUEUES = 3,
    VSOCK_HEADER_BYTES = 44,
    VSOCK_CID_HOST = 2,
    VSOCK_CONNECTIONS_MAX = 64,
    VSOCK_BUFFER_BYTES = 65536,  /* from the guest, not yet taken by the client: the credit that we give */
    VSOCK_PACKET_BYTES = 65536,  /* payload of one packet to the guest, at most */
    VSOCK_RESETS_MAX = 64,       /* refusals that wait for a buffer of the guest's */
    VSOCK_BATCH_PACKETS = 64,    /* per call, then the other devices have their turn */
    VSOCK_GREETING_BYTES = 32,   /* "CONNECT 4294967295\n" fits */
    VSOCK_GREETING_MS = 5000,    /* for a client to say it */
    VSOCK_ANSWER_MS = 10000,     /* for the guest to answer what a client has asked for */
    VSOCK_PATH_BYTES_MAX = 96,   /* with "_<port>" behind it, it still fits a Unix address */
    VSOCK_PORT_FIRST = 1 << 30,  /* our side of connections to the guest: counts up from here */
};

enum vsock_state { VSOCK_GREETING, VSOCK_ASKING, VSOCK_OPEN, VSOCK_CLOSED };

/* What waits to be told to the guest. */
enum vsock_tell {
    VSOCK_TELL_REQUEST = 1 << 0,
    VSOCK_TELL_RESPONSE = 1 << 1,
    VSOCK_TELL_CREDIT = 1 << 2,
    VSOCK_TELL_SHUTDOWN = 1 << 3,
    VSOCK_TELL_RST = 1 << 4, /* and the connection is gone then */
};

struct vsock_connection {
    struct list link; /* in the device's list; who was served goes to its end */
    struct vsock *vsock;
    enum vsock_state state;
    int fd; /* -1 once CLOSED */
    struct io_handler *handler;
    uint32_t watched; /* events that `handler` waits for; 0: there is none */
    uint32_t guest_port, host_port;
    unsigned tell;
    bool readable;  /* the client may have bytes for us */
    bool client_ended, guest_ended;                  /* will send no more */
    bool guest_deaf;                                 /* will receive no more */
    uint32_t guest_room, guest_taken, sent;          /* its buffer, how much it has consumed, what we have sent in all */
    uint32_t delivered, told;                        /* given to the client in all, and as the guest knows it */
    struct io_timer timer; /* armed in GREETING and ASKING */
    size_t greeting_size;
    char greeting[VSOCK_GREETING_BYTES];
    size_t out_size;
    uint8_t *out; /* owned: VSOCK_BUFFER_BYTES, from the guest to the client */
};

struct vsock_reset {
    uint32_t guest_port, host_port;
};

struct vsock {
    struct virtio_device virtio;
    struct io_loop *loop; /* borrowed */
    uint64_t cid;
    char path[VSOCK_PATH_BYTES_MAX + 1];
    struct unix_listener listener;
    struct list connections;
    unsigned connection_count;
    uint32_t next_port;
    struct vsock_reset resets[VSOCK_RESETS_MAX];
    unsigned reset_count;
    bool tell_reset;           /* the guest is to be told that the transport was reset */
    struct virtio_chain chain; /* the packet being dealt with */
    uint8_t scratch[VSOCK_PACKET_BYTES];
};

struct vsock_options {
    uint64_t cid;     /* the guest's: 3 to UINT32_MAX - 1 */
    const char *path; /* of the Unix socket; a file that nobody listens at any more is replaced. Mode 0600 */
};

int vsock_create(const struct vsock_options *options, struct guest_memory *memory, struct io_loop *loop,
                 struct virtio_device **ret_device, struct error *err);

/* queue.c: packets */
void vsock_queue_notify(struct virtio_device *d, unsigned queue);
/* Tell the guest what waits, as far as it has buffers. */
void vsock_queue_deliver(struct vsock *v);

/* connection.c: the ends at Unix sockets */
int vsock_listen(struct vsock *v, struct error *err);
/* A connection of the guest's to our port @host_port; NULL when nobody takes it. */
struct vsock_connection *vsock_connection_open(struct vsock *v, uint32_t guest_port, uint32_t host_port);
struct vsock_connection *vsock_connection_find(struct vsock *v, uint32_t guest_port, uint32_t host_port);
void vsock_connection_destroy(struct vsock_connection *c);
/* The guest has accepted what a client asked for. */
void vsock_connection_accepted(struct vsock_connection *c);
/* Bytes of the guest's; false when they are more than the credit that it was given. */
bool vsock_connection_write(struct vsock_connection *c, const struct virtio_chain *chain, uint64_t offset, uint32_t size);
/* The guest has shut one or both directions; deals with what follows. */
void vsock_connection_shut(struct vsock_connection *c);
/* Up to @size bytes of the client's; 0: none now. At the end of its stream the guest is to be told. */
size_t vsock_connection_read(struct vsock_connection *c, uint8_t *data, size_t size);
/* How much the guest has room for. */
uint32_t vsock_connection_credit(const struct vsock_connection *c);
/* Watch the socket for what is of interest now. */
void vsock_connection_watch(struct vsock_connection *c);

/* state.c */
void vsock_state_save(const struct virtio_device *d, struct bytes_writer *out);
int vsock_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
