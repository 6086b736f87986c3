/* virtio-vsock: making the device, pausing and resetting it. */
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/devices/vsock/vsock.h"

enum { PCI_CLASS_NETWORK_OTHER = 0x028000, CONFIG_BYTES = 8 };

static struct vsock *vsock_of(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct vsock, virtio);
}

static void connections_destroy(struct vsock *v)
{
    LIST_FOREACH_SAFE(link, &v->connections)
    {
        vsock_connection_destroy(LIST_ENTRY(link, struct vsock_connection, link));
    }
    v->reset_count = 0;
}

static void watch_all(struct vsock *v)
{
    LIST_FOREACH(link, &v->connections)
    {
        vsock_connection_watch(LIST_ENTRY(link, struct vsock_connection, link));
    }
}

static void vsock_reset(struct virtio_device *d)
{
    connections_destroy(vsock_of(d));
    vsock_of(d)->tell_reset = false;
}

static void vsock_pause(struct virtio_device *d)
{
    watch_all(vsock_of(d)); /* while paused: nothing is */
}

static void vsock_resume(struct virtio_device *d)
{
    watch_all(vsock_of(d)); /* notify follows, and delivers */
}

static void vsock_destroy(struct virtio_device *d)
{
    struct vsock *v = vsock_of(d);
    connections_destroy(v);
    unix_listener_stop(&v->listener);
    virtio_device_finish(d);
    free(v);
}

static const struct virtio_device_ops vsock_ops = {
    .notify = vsock_queue_notify,
    .reset = vsock_reset,
    .pause = vsock_pause,
    .resume = vsock_resume,
    .save = vsock_state_save,
    .load = vsock_state_load,
    .destroy = vsock_destroy,
};

int vsock_create(const struct vsock_options *options, struct guest_memory *memory, struct io_loop *loop,
                 struct virtio_device **ret_device, struct error *err)
{
    if (options->cid <= VSOCK_CID_HOST || options->cid >= UINT32_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/vsock/cid",
                               "the guest's CID is a number from 3 to 4294967294, not %llu",
                               (unsigned long long)options->cid);
    if (strlen(options->path) > VSOCK_PATH_BYTES_MAX)
        return error_set_field(err, -ENAMETOOLONG, ERROR_INVALID, "/vsock/path",
                               "the path of the vsock's socket has %d bytes at most", VSOCK_PATH_BYTES_MAX);
    struct vsock *v = NEW(struct vsock);
    virtio_device_init(&v->virtio, &vsock_ops, "vsock", VIRTIO_ID_VSOCK, PCI_CLASS_NETWORK_OTHER, 0, memory, VSOCK_QUEUES,
                       VSOCK_QUEUE_SIZE);
    v->virtio.config_bytes = CONFIG_BYTES;
    for (unsigned i = 0; i < CONFIG_BYTES; i++)
        v->virtio.config[i] = (uint8_t)(options->cid >> (8 * i));
    v->loop = loop;
    v->cid = options->cid;
    v->next_port = VSOCK_PORT_FIRST;
    list_init(&v->connections);
    snprintf(v->path, sizeof v->path, "%s", options->path);
    int code = vsock_listen(v, err);
    if (code < 0) {
        virtio_device_finish(&v->virtio);
        free(v);
        return code;
    }
    *ret_device = &v->virtio;
    return 0;
}
