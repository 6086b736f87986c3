/* virtio-net state that outlives the process. A frame that waits for buffers is dropped, as networks may. */
#include "compute/vmm/devices/net/net.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct net, mac, BYTES, true),
    VIRTIO_STATE_FIELD(struct net, mtu, U16, true),
    VIRTIO_STATE_FIELD(struct net, link_up, BOOL, false),
    VIRTIO_STATE_FIELD(struct net, counters.rx_frames, U64, false),
    VIRTIO_STATE_FIELD(struct net, counters.rx_bytes, U64, false),
    VIRTIO_STATE_FIELD(struct net, counters.rx_dropped, U64, false),
    VIRTIO_STATE_FIELD(struct net, counters.tx_frames, U64, false),
    VIRTIO_STATE_FIELD(struct net, counters.tx_bytes, U64, false),
    VIRTIO_STATE_FIELD(struct net, counters.tx_dropped, U64, false),
};
static const struct virtio_state_table table = {"virtio-net", 1, ARRAY_SIZE(fields), fields};

void net_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF(d, struct net, virtio), out);
}

int net_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    struct net *net = CONTAINER_OF(d, struct net, virtio);
    bool link_was_up = net->link_up;
    int code = virtio_state_load(&table, net, in, err);
    if (code == 0 && net->link_up != link_was_up) {
        net->link_up = link_was_up;
        net_set_link(d, !link_was_up);
    }
    return code;
}
