/* virtio-net (virtio 1.2 §5.1) on a tap: up to NET_PAIRS_MAX pairs of queues, checksum and TSO offload both ways, merged
 * receive buffers; MAC address, MTU and link status in config space; a control queue for the number of pairs in use,
 * for offloads and for announcements.
 *
 * Each pair has a queue of the tap of its own, on which the kernel spreads the flows; pairs that the driver does not use
 * are detached from the tap, so that nothing is put where nobody looks. All pairs are served by the one I/O thread: what
 * several queues give is that the guest's processors do not wait for one another.
 *
 * The tap carries struct virtio_net_hdr_v1 (12 bytes) before each frame, which is what the driver sees as well: the
 * kernel does the offloads, we only carry. Nothing blocks: a tap that is full is watched until it takes more, a
 * driver without receive buffers leaves frames in the tap's own queue, whose length bounds them. */
#ifndef COMPUTE_VMM_DEVICES_NET_H
#define COMPUTE_VMM_DEVICES_NET_H

#include "compute/vmm/io_loop.h"
#include "compute/vmm/rate_limit.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    NET_QUEUE_SIZE = 256,
    NET_FRAME_BYTES_MAX = 65535 + 14 + 4, /* the largest offloaded frame: IP packet, Ethernet header, VLAN tag */
    NET_BATCH_FRAMES = 64,                /* per call, then the other devices have their turn */
    NET_MAC_BYTES = 6,
    NET_HEADER_BYTES = 12, /* struct virtio_net_hdr_v1 */
    NET_MERGE_MAX = 64,    /* receive buffers that one frame may take */
    NET_RETRY_MS = 100,    /* between tries while the lease is lost */
    NET_ANNOUNCE_ROUNDS = 5,   /* after a load: a switch may just be learning, or lose one */
    NET_ANNOUNCE_MS = 150, /* between them, each time that much more */
    NET_PAIRS_MAX = 8,     /* VIRTIO_QUEUES_MAX: two queues each, and one for control */
};

struct net_options {
    bool awaited;    /* another process will hand over its descriptors (net_adopt): tap and fd are not used */
    const char *tap; /* name of an existing or new tap; NULL: use fd */
    int fd;          /* an open tap, or a packet-preserving socket whose frames begin with the 12-byte
                        header; owned by the device once net_create has succeeded */
    unsigned pairs;      /* of queues; 0 is 1. With a tap of several queues (IFF_MULTI_QUEUE) where it is more than 1 */
    const int *more_fds; /* with fd: pairs - 1 others, for the pairs behind the first; owned alike */
    uint8_t mac[NET_MAC_BYTES];
    uint16_t mtu;                  /* told to the guest; 0: not told */
    bool (*may_submit)(void *arg); /* fail-stop hook, as in block.h: false keeps frames in the queue; NULL: always */
    void *may_submit_arg;
};

struct net_counters {
    uint64_t rx_frames, rx_bytes, rx_dropped;
    uint64_t tx_frames, tx_bytes, tx_dropped;
    uint64_t throttled; /* times that a rate limit made it wait */
};

struct net;

/* A receive and a transmit queue, and the tap's queue behind them. */
struct net_pair {
    struct net *net;
    unsigned index;
    int fd;               /* owned */
    bool gone;            /* the tap was taken away from under us */
    struct io_handler *handler;
    uint32_t watched;     /* epoll events that the handler waits for */
    bool rx_starved;      /* the driver has no buffers: leave frames in the tap until it notifies */
    bool tx_blocked;      /* the tap takes no more: wait for EPOLLOUT */
    struct io_timer retry; /* armed while frames wait for the lease */
    struct virtio_chain chain; /* the request being served */
    uint32_t rx_pending_bytes; /* of a frame in rx_buffer that waits for buffers; 0: none */
    uint8_t rx_buffer[NET_HEADER_BYTES + NET_FRAME_BYTES_MAX];
};

struct net {
    struct virtio_device virtio;
    bool is_tap;          /* takes the tap's ioctls */
    struct io_loop *loop; /* borrowed */
    bool link_up;
    bool loaded;          /* its state comes from another place: announce when it goes on */
    unsigned announce_round; /* done so far, while `announce` is armed */
    struct io_timer announce;
    bool announcing;      /* VIRTIO_NET_S_ANNOUNCE is set until the driver has acknowledged it */
    uint8_t mac[NET_MAC_BYTES];
    uint16_t mtu;
    uint16_t pairs_active; /* of `pairs`: those that the driver uses, 1 after each start */
    uint64_t offloads;     /* VIRTIO_NET_F_GUEST_* in force, as bits */
    bool (*may_submit)(void *arg);
    void *may_submit_arg;
    struct rate_limit limit;  /* both ways and all pairs together */
    struct io_timer throttle; /* armed while it keeps frames in the tap and in the rings */
    unsigned turn; /* whose the next move is when the limit lets go */
    struct net_counters counters;
    unsigned pair_count;
    struct net_pair *pairs;
};

int net_create(const struct net_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err);
/* Cable in or out: the guest sees it in config space; while it is out nothing is carried. */
void net_set_link(struct virtio_device *device, bool up);
/* Tell the network where the MAC address lives: done by the device itself, NET_ANNOUNCE_ROUNDS times, when it goes on after a
 * load (restore, migration), and never before it goes on: one RARP broadcast in the guest's name (RFC 903,
 * operation 3), and the guest is asked to announce its addresses itself where its driver can (§5.1.6.5.4). 0, -EAGAIN
 * without a lease, or the tap's error. */
int net_announce(struct virtio_device *device);

struct net_counters net_counters(const struct virtio_device *device);
/* Change the rate limits; with the device lock held. Frames above them wait in the guest's rings and in the tap, whose
 * queue drops what it cannot hold. */
void net_set_limits(struct virtio_device *device, const struct vmm_limits *limits);

/* What is behind each of its pairs, for a process that is to carry its frames in this one's stead: borrowed descriptors in
 * @fds, at most NET_PAIRS_MAX. Returns how many. */
unsigned net_handles(const struct virtio_device *device, int *fds);
/* The other side, for a device that was made `awaited`: as many as it has pairs; the device's from now on, also on failure. With
 * the device lock held. */
int net_adopt(struct virtio_device *device, const int *fds, struct error *err);

/* tap.c: a queue of the tap with 12-byte headers, or @fd made into one; refused in words where it cannot be. @queues:
 * the tap has several. */
int tap_open(const char *name, bool queues, int *ret_fd, struct error *err);
int tap_prepare(int fd, bool *ret_is_tap, struct error *err);
/* What the guest takes: VIRTIO_NET_F_GUEST_* of @features. */
int tap_set_offloads(int fd, uint64_t features);
/* Let the tap put frames into the queue of @fd, or not. One that is so already is fine. */
int tap_set_queue(int fd, bool attached);

/* device.c */
/* The driver uses the first @pairs of the pairs from now on. */
void net_use_pairs(struct net *net, uint16_t pairs);
void net_apply_offloads(struct net *net, uint64_t offloads);
void net_fill_config(struct net *net);
static inline bool net_has_queues(const struct net *net)
{
    return net->pair_count > 1;
}

/* queue.c. Pair n has the queues 2n (receive) and 2n + 1 (transmit). */
enum { NET_QUEUE_RX, NET_QUEUE_TX };
void net_queue_notify(struct virtio_device *d, unsigned queue);
void net_queue_fd_ready(void *pair, uint32_t events);
void net_queue_retry(void *pair);
void net_queue_unthrottle(void *net);
/* Wait for what is wanted now: frames while there is room for them, space while some wait to be sent. */
void net_queue_watch(struct net_pair *pair);

/* control.c: the control queue. It stands behind the pairs that the driver knows of: without VIRTIO_NET_F_MQ behind the
 * first, whatever the device has (§5.1.2). */
enum { NET_CONTROL_BATCH = 64 };
unsigned net_control_queue(const struct net *net);
void net_control_notify(struct net *net);

/* state.c */
void net_state_save(const struct virtio_device *d, struct bytes_writer *out);
int net_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
