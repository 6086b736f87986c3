/* Fuzz target: virtio-net frames and buffers in guest memory that the input fills; the network is a socketpair on
 * which some frames wait. */
#include <fcntl.h>
#include <sys/socket.h>

#include "compute/vmm/devices/net/net.h"
#include "tests/fuzz/virtio_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct machine m;
    static const uint32_t lengths[] = {30, 60, 1514, 9000, 2, 40000};
    static uint8_t frame[65536], sink[1 << 17];
    struct driver d;
    struct virtio_device *vdev;
    struct net_options options = {.mac = {2, 0, 0, 0, 0, 1}};
    int pair[2], second[2];
    log_set_level(LOG_LEVEL_ERROR);
    ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, second) == 0);
    machine_init(&m);
    options.fd = pair[0];
    options.more_fds = second; /* two pairs, where the input's second byte is odd */
    options.pairs = 1 + (size > 1 && data[1] & 1);
    ASSERT(net_create(&options, &m.memory, m.loop, &vdev, NULL) == 0);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++)
        ASSERT(write(pair[1], frame, lengths[i]) == (ssize_t)lengths[i]);
    fuzz_run(&d, data, size);
    for (unsigned i = 0; i < 64 && read(pair[1], sink, sizeof sink) > 0; i++)
        io_loop_run_once(m.loop, 0);
    driver_detach(&d);
    close(pair[1]);
    close(second[1]);
    if (options.pairs == 1)
        close(second[0]);
    machine_finish(&m);
    return 0;
}
