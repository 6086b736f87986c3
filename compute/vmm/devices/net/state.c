/* virtio-net state that outlives the process. A frame that waits for buffers is dropped, as networks may. */
#include <errno.h>

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
    /* from version 2 */
    VIRTIO_STATE_FIELD(struct net, pairs_active, U16, false),
    VIRTIO_STATE_FIELD(struct net, offloads, U64, false),
    VIRTIO_STATE_FIELD(struct net, announcing, BOOL, false),
};
static const struct virtio_state_table table = {"virtio-net", 2, ARRAY_SIZE(fields), fields};

void net_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF(d, struct net, virtio), out);
}

int net_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    struct net *net = CONTAINER_OF(d, struct net, virtio);
    bool link_was_up = net->link_up;
    net->offloads = d->features; /* what version 1 had in force */
    int code = virtio_state_load(&table, net, in, err);
    if (code < 0)
        return code;
    net->offloads &= d->features;
    if (net->pairs_active == 0 || net->pairs_active > net->pair_count) {
        net->pairs_active = 1;
        return error_set(err, -EBADMSG, ERROR_INVALID, "state of virtio-net does not fit: the number of queue pairs in use");
    }
    if (net->link_up != link_was_up) {
        net->link_up = link_was_up;
        net_set_link(d, !link_was_up);
    }
    net_fill_config(net);
    net->loaded = true;
    return 0;
}
