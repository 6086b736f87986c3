/* Fuzz target: virtio-vsock packets in guest memory that the input fills, with a client that has connected and one
 * service that the guest may reach. The sockets live below the directory of the process's own pid in /tmp. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "compute/vmm/devices/vsock/vsock.h"
#include "tests/fuzz/virtio_fuzz.h"

static char folder[64], path[80], service_path[96];
static int service_fd = -1;

static void clean_up(void)
{
    unlink(service_path);
    rmdir(folder);
}

static int socket_at(const char *at, bool listening)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", at);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listening)
        ASSERT(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 128) == 0);
    else
        ASSERT(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static void set_up(void)
{
    snprintf(folder, sizeof folder, "/tmp/fuzz_vsock.XXXXXX");
    ASSERT(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/s", folder);
    snprintf(service_path, sizeof service_path, "%s_1", path);
    service_fd = socket_at(service_path, true);
    atexit(clean_up);
}

/* A packet as a driver would send it, its fields partly chosen by the input. */
static void packet(struct driver *d, const struct vsock *v, const uint8_t *raw)
{
    static const uint32_t ports[] = {1, 0, 5, 77};
    uint32_t host_port = raw[0] & 4 ? v->next_port : ports[raw[0] & 3], size = raw[2] * 16u;
    uint64_t gpa = FUZZ_DATA;
    struct {
        uint64_t src_cid, dst_cid;
        uint32_t src_port, dst_port, len;
        uint16_t type, op;
        uint32_t flags, buf_alloc, fwd_cnt;
    } __attribute__((packed)) header = {3,  2, 5, host_port, raw[0] & 8 ? size + 1 : size, 1, raw[1] % 9, raw[3], raw[4] * 256u,
                                        raw[5]};
    memcpy(driver_at(d, gpa, sizeof header), &header, sizeof header);
    struct segment segment = {gpa, (uint32_t)sizeof header + size, false};
    struct segment room = {gpa + 8192, 4096, true};
    if (d->queues[VSOCK_RX].size > 0 && d->queues[VSOCK_TX].size > 0) {
        driver_add(d, VSOCK_RX, &room, 1);
        driver_kick(d, VSOCK_RX);
        driver_add(d, VSOCK_TX, &segment, 1);
        driver_kick(d, VSOCK_TX);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct machine m;
    struct driver d;
    struct virtio_device *vdev;
    log_set_level(LOG_LEVEL_ERROR);
    if (service_fd < 0)
        set_up();
    machine_init(&m);
    struct vsock_options options = {.cid = 3, .path = path};
    ASSERT(vsock_create(&options, &m.memory, m.loop, &vdev, NULL) == 0);
    struct vsock *v = CONTAINER_OF(vdev, struct vsock, virtio);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    int client = socket_at(path, false), served = -1;
    ASSERT(write(client, "CONNECT 5\nhello", 15) == 15);
    for (unsigned i = 0; i < 4; i++)
        io_loop_run_once(m.loop, 0);
    for (size_t at = 0; at + 6 <= size && at < 96; at += 6) {
        packet(&d, v, data + at);
        if (served < 0)
            served = accept4(service_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (data[at] & 16)
            (void)send(client, "more", 4, MSG_NOSIGNAL); /* it may have been cut off */
        io_loop_run_once(m.loop, 0);
    }
    fuzz_run(&d, data, size);
    driver_detach(&d);
    close(client);
    if (served >= 0)
        close(served);
    while ((served = accept4(service_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        close(served);
    machine_finish(&m);
    return 0;
}
