/* virtio-net (virtio 1.2 §5.1) on a tap: one receive and one transmit queue, checksum and TSO offload both ways,
 * merged receive buffers, MAC address and link status in config space.
 *
 * The tap carries struct virtio_net_hdr_v1 (12 bytes) before each frame, which is what the driver sees as well: the
 * kernel does the offloads, we only carry. Nothing blocks: a tap that is full is watched until it takes more, a driver
 * without receive buffers leaves frames in the tap's own queue, whose length bounds them. */
#ifndef COMPUTE_VMM_DEVICES_NET_H
#define COMPUTE_VMM_DEVICES_NET_H

#include "compute/vmm/io_loop.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    NET_QUEUE_SIZE = 256,
    NET_FRAME_BYTES_MAX = 65535 + 14 + 4, /* the largest offloaded frame: IP packet, Ethernet header, VLAN tag */
    NET_BATCH_FRAMES = 64,                /* per call, then the other devices have their turn */
    NET_MAC_BYTES = 6,
};

struct net_options {
    const char *tap;             /* name of an existing or new tap; NULL: use fd */
    int fd;                      /* an open tap, or a packet-preserving socket whose frames begin with the 12-byte
                                    header; owned by the device once net_create has succeeded */
    uint8_t mac[NET_MAC_BYTES];
    uint16_t mtu;                /* told to the guest; 0: not told */
    bool (*may_submit)(void *arg); /* fail-stop hook, as in block.h: false keeps frames in the queue; NULL: always */
    void *may_submit_arg;
};

int net_create(const struct net_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err);
/* Cable in or out: the guest sees it in config space; while it is out nothing is carried. */
void net_set_link(struct virtio_device *device, bool up);

struct net_counters {
    uint64_t rx_frames, rx_bytes, rx_dropped;
    uint64_t tx_frames, tx_bytes, tx_dropped;
};
struct net_counters net_counters(const struct virtio_device *device);

#endif
