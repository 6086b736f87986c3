/* The host's end of a network interface: a tap whose frames carry virtio headers (kernel: networking/tuntap). */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>

#include "compute/vmm/devices/net/net.h"

int tap_open(const char *name, bool queues, int *ret_fd, struct error *err)
{
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues ? IFF_MULTI_QUEUE : 0))};
    if (name[0] == 0 || strlen(name) >= sizeof request.ifr_name)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is no name for a tap: 1 to %zu characters", name,
                         sizeof request.ifr_name - 1);
    memcpy(request.ifr_name, name, strlen(name));
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open /dev/net/tun");
    if (ioctl(fd, TUNSETIFF, &request) < 0) {
        int code = error_errno(err, -errno, "cannot attach to tap %s", name);
        close(fd);
        return code;
    }
    *ret_fd = fd;
    return 0;
}

int tap_prepare(int fd, bool *ret_is_tap, struct error *err)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_errno(err, -errno, "cannot use descriptor %d for a network interface", fd);
    struct ifreq request = {0};
    if (ioctl(fd, TUNGETIFF, &request) < 0) {
        *ret_is_tap = false; /* a socket: its frames are as they are */
        return 0;
    }
    if ((request.ifr_flags & IFF_TAP) == 0 || (request.ifr_flags & IFF_VNET_HDR) == 0 ||
        (request.ifr_flags & IFF_NO_PI) == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "%.*s must be a tap with IFF_VNET_HDR and IFF_NO_PI",
                         (int)sizeof request.ifr_name, request.ifr_name);
    int header_bytes = NET_HEADER_BYTES;
    if (ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return error_errno(err, -errno, "cannot set the header size of tap %.*s", (int)sizeof request.ifr_name,
                           request.ifr_name);
    *ret_is_tap = true;
    return 0;
}

int tap_set_offloads(int fd, uint64_t features)
{
    unsigned long offloads = 0;
    if ((features >> VIRTIO_NET_F_GUEST_CSUM & 1) != 0) {
        offloads |= TUN_F_CSUM; /* the kernel takes the others only with it */
        offloads |= (features >> VIRTIO_NET_F_GUEST_TSO4 & 1) != 0 ? TUN_F_TSO4 : 0;
        offloads |= (features >> VIRTIO_NET_F_GUEST_TSO6 & 1) != 0 ? TUN_F_TSO6 : 0;
        offloads |= (features >> VIRTIO_NET_F_GUEST_ECN & 1) != 0 ? TUN_F_TSO_ECN : 0;
    }
    return ioctl(fd, TUNSETOFFLOAD, offloads) < 0 ? -errno : 0;
}

int tap_set_queue(int fd, bool attached)
{
    struct ifreq request = {.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};
    if (ioctl(fd, TUNSETQUEUE, &request) == 0)
        return 0;
    return errno == EINVAL ? 0 : -errno; /* it is so already */
}
