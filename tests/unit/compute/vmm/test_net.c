/* virtio-net through the PCI transport, with one end of a socketpair in the tap's place: frames both ways, merged
 * buffers, a driver without buffers, a full tap, link state, the fail-stop hook, hostile rings; and a real tap where
 * the machine allows one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "compute/vmm/devices/net/net.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

enum { QUEUE_SIZE = 64, HEADER = NET_HEADER_BYTES };

struct bench {
    struct machine m;
    struct driver d;
    int wire; /* the network's end */
    uint64_t buffers;
    bool lease;
};
static const uint8_t mac[NET_MAC_BYTES] = {0x52, 0x54, 0, 1, 2, 3};

static bool ask_lease(void *arg)
{
    return *(bool *)arg;
}

static void attach(struct bench *b)
{
    struct virtio_device *vdev;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    struct net_options options = {.fd = pair[0], .mtu = 1400, .may_submit = ask_lease, .may_submit_arg = &b->lease};
    memcpy(options.mac, mac, sizeof mac);
    assert_int_equal(net_create(&options, &b->m.memory, b->m.loop, &vdev, NULL), 0);
    b->wire = pair[1];
    driver_attach(&b->d, &b->m, vdev);
}
static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    machine_init(&b->m);
    b->lease = true;
    attach(b);
    driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
    b->buffers = driver_alloc(&b->d, 1 << 20);
    *state = b;
    return 0;
}
/* As vmm_nic.cut: nothing is behind it, and the link is down. */
static int cut_setup(void **state)
{
    struct bench *b = NEW(struct bench);
    struct virtio_device *vdev;
    struct net_options options = {.awaited = true, .tap = "none", .may_submit = ask_lease, .may_submit_arg = &b->lease};
    memcpy(options.mac, mac, sizeof mac);
    machine_init(&b->m);
    b->lease = true;
    b->wire = -1;
    assert_int_equal(net_create(&options, &b->m.memory, b->m.loop, &vdev, NULL), 0);
    driver_attach(&b->d, &b->m, vdev);
    net_set_link(vdev, false);
    driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
    b->buffers = driver_alloc(&b->d, 1 << 20);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    machine_finish(&b->m);
    if (b->wire >= 0)
        close(b->wire);
    free(b);
    return 0;
}

static void turn(struct bench *b)
{
    for (unsigned i = 0; i < 5; i++)
        io_loop_run_once(b->m.loop, 0);
}
static uint8_t *buffer(struct bench *b, unsigned i)
{
    return driver_at(&b->d, b->buffers + 4096ull * i, 4096);
}
static void give_buffers(struct bench *b, unsigned first, unsigned count, uint32_t size)
{
    for (unsigned i = first; i < first + count; i++) {
        struct segment segment = {b->buffers + 4096ull * i, size, true};
        driver_add(&b->d, NET_QUEUE_RX, &segment, 1);
    }
    driver_kick(&b->d, NET_QUEUE_RX);
}
static void fill(uint8_t *frame, size_t size, unsigned seed)
{
    memset(frame, 0, HEADER);
    for (size_t i = HEADER; i < size; i++)
        frame[i] = (uint8_t)(seed + i * 31 + (i >> 8));
}

static void frames_go_out(void **state)
{
    struct bench *b = *state;
    uint8_t seen[2048];
    struct used_entry used = {0};
    fill(buffer(b, 0), HEADER + 100, 1);
    /* The header apart, or together with the frame. */
    struct segment split[] = {
        {b->buffers, HEADER, false}, {b->buffers + HEADER, 60, false}, {b->buffers + HEADER + 60, 40, false}};
    struct segment whole = {b->buffers, HEADER + 100, false};
    driver_add(&b->d, NET_QUEUE_TX, split, 3);
    driver_add(&b->d, NET_QUEUE_TX, &whole, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
        assert_int_equal(used.size, 0);
        assert_int_equal(read(b->wire, seen, sizeof seen), HEADER + 100);
        assert_memory_equal(seen, buffer(b, 0), HEADER + 100);
    }
    assert_int_equal(net_counters(b->d.vdev).tx_frames, 2);
    assert_int_equal(net_counters(b->d.vdev).tx_bytes, 200);
}

/* The driver finds its device, without a link: what it sends is taken and goes nowhere, and nothing comes. */
static void cut_off(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    struct segment whole = {b->buffers, HEADER + 100, false};
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 6, 2), 0);
    fill(buffer(b, 0), HEADER + 100, 1);
    give_buffers(b, 4, 4, 2048);
    for (unsigned i = 0; i < 3 * QUEUE_SIZE; i++) {
        driver_add(&b->d, NET_QUEUE_TX, &whole, 1);
        driver_kick(&b->d, NET_QUEUE_TX);
        assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
    }
    turn(b);
    assert_int_equal(net_counters(b->d.vdev).tx_dropped, 3 * QUEUE_SIZE);
    assert_int_equal(net_counters(b->d.vdev).tx_frames, 0);
    assert_int_equal(net_counters(b->d.vdev).rx_frames, 0);
}

/* A byte a second, both ways together: the rest waits where it is, and comes when the limit is lifted. */
static void limits_hold_frames_back(void **state)
{
    struct bench *b = *state;
    uint8_t frame[HEADER + 100] = {0}, seen[2048];
    struct used_entry used = {0};
    struct vmm_limits slow = {.bytes_per_second = 1, .bytes_burst = 1}, none = {.operations_burst = 0};
    struct segment whole = {b->buffers, HEADER + 100, false};
    fill(buffer(b, 0), HEADER + 100, 1);
    net_set_limits(b->d.vdev, &slow);
    for (unsigned i = 0; i < 5; i++)
        driver_add(&b->d, NET_QUEUE_TX, &whole, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    assert_int_equal(net_counters(b->d.vdev).tx_frames, 1); /* it goes into debt */
    give_buffers(b, 1, 2, 2048);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    for (unsigned i = 0; i < 3; i++)
        io_loop_run_once(b->m.loop, 10);
    assert_int_equal(net_counters(b->d.vdev).rx_frames, 0);
    assert_true(net_counters(b->d.vdev).throttled > 0);
    driver_pause(&b->d);
    driver_resume(&b->d);
    assert_int_equal(net_counters(b->d.vdev).tx_frames, 1);
    net_set_limits(b->d.vdev, &none);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
        assert_int_equal(read(b->wire, seen, sizeof seen), HEADER + 100);
    }
    assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
    assert_int_equal(used.size, HEADER + 100);
}

static void frames_that_cannot_be_are_dropped(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t seen[64];
    struct segment tiny = {b->buffers, HEADER + 13, false}, none = {b->buffers, 64, true};
    struct segment huge[] = {{b->buffers, 65536, false}, {b->buffers, 65536, false}};
    driver_add(&b->d, NET_QUEUE_TX, &tiny, 1);
    driver_add(&b->d, NET_QUEUE_TX, &none, 1);
    driver_add(&b->d, NET_QUEUE_TX, huge, 2);
    driver_kick(&b->d, NET_QUEUE_TX);
    for (unsigned i = 0; i < 3; i++)
        assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
    assert_int_equal(read(b->wire, seen, sizeof seen), -1);
    assert_int_equal(net_counters(b->d.vdev).tx_dropped, 3);
    assert_false(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void frames_come_in(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t frame[HEADER + 1000];
    give_buffers(b, 0, 4, 2048);
    for (unsigned i = 0; i < 4; i++) {
        fill(frame, sizeof frame - i, i);
        assert_int_equal(write(b->wire, frame, sizeof frame - i), sizeof frame - i);
        assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
        assert_int_equal(used.head, i);
        assert_int_equal(used.size, sizeof frame - i);
        assert_memory_equal(buffer(b, i) + HEADER, frame + HEADER, sizeof frame - i - HEADER);
        assert_int_equal(buffer(b, i)[10], 1); /* num_buffers */
    }
    assert_true(driver_interrupts(&b->d, 1) > 0);
    assert_int_equal(net_counters(b->d.vdev).rx_frames, 4);
}

static void long_frames_fill_several_buffers(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t frame[HEADER + 5000];
    uint64_t bitmap[FAKE_MEMORY_BYTES / 4096 / 64] = {0};
    fill(frame, sizeof frame, 3);
    assert_int_equal(memory_tracking_start(&b->m.memory, NULL), 0);
    give_buffers(b, 0, 5, 1526);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    size_t at = 0;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
        assert_int_equal(used.head, i);
        assert_memory_equal(buffer(b, i) + (i == 0 ? HEADER : 0), frame + at + (i == 0 ? HEADER : 0),
                            used.size - (i == 0 ? HEADER : 0));
        at += used.size;
    }
    assert_int_equal(at, sizeof frame);
    assert_int_equal(buffer(b, 0)[10], 4);
    assert_false(driver_has_used(&b->d, NET_QUEUE_RX));
    memory_tracking_fetch(&b->m.memory, 0, bitmap);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t page = b->buffers / 4096 + i;
        assert_true(bitmap[page / 64] >> (page % 64) & 1);
    }
}

static void a_driver_without_buffers_loses_nothing(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t frame[HEADER + 3000];
    for (unsigned i = 0; i < 10; i++) {
        fill(frame, sizeof frame, i);
        assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    }
    turn(b);
    give_buffers(b, 0, 1, 2048); /* half of what the first frame needs */
    turn(b);
    assert_false(driver_has_used(&b->d, NET_QUEUE_RX));
    for (unsigned i = 1; i < 20; i++)
        give_buffers(b, i, 1, 2048); /* one at a time, each with its kick */
    for (unsigned i = 0; i < 20; i++) {
        assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
        fill(frame, sizeof frame, i / 2);
        assert_int_equal(used.size, i % 2 == 0 ? 2048 : sizeof frame - 2048);
        assert_memory_equal(buffer(b, i) + (i % 2 == 0 ? HEADER : 0), frame + (i % 2 == 0 ? HEADER : 2048),
                            used.size - (i % 2 == 0 ? HEADER : 0));
    }
    assert_int_equal(net_counters(b->d.vdev).rx_dropped, 0);
}

static void without_merging_a_long_frame_is_dropped(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t frame[HEADER + 3000];
    driver_start(&b->d, ~(1ull << VIRTIO_NET_F_MRG_RXBUF), QUEUE_SIZE);
    fill(frame, sizeof frame, 1);
    give_buffers(b, 0, 3, 2048);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    assert_int_equal(write(b->wire, frame, HEADER + 100), HEADER + 100);
    assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
    assert_int_equal(used.head, 0);
    assert_int_equal(used.size, HEADER + 100);
    assert_int_equal(net_counters(b->d.vdev).rx_dropped, 1);
}

static void a_full_tap_is_waited_for(void **state)
{
    enum { FRAMES = 600 };
    struct bench *b = *state;
    struct used_entry used = {0};
    static uint8_t seen[HEADER + 4000];
    unsigned read_back = 0, done = 0;
    for (unsigned i = 0; i < FRAMES; i++) {
        struct segment segment = {b->buffers + 4096ull * (i % 32), HEADER + 4000, false};
        uint8_t *frame = buffer(b, i % 32);
        while (b->d.queues[NET_QUEUE_TX].avail_index - b->d.queues[NET_QUEUE_TX].used_index >= 32) {
            turn(b);
            if (driver_has_used(&b->d, NET_QUEUE_TX)) {
                assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
                done++;
            } else {
                ssize_t n = read(b->wire, seen, sizeof seen);
                assert_int_equal(n, sizeof seen);
                assert_int_equal(seen[HEADER] | seen[HEADER + 1] << 8, read_back++);
            }
        }
        fill(frame, HEADER + 4000, i);
        frame[HEADER] = (uint8_t)i;
        frame[HEADER + 1] = (uint8_t)(i >> 8);
        driver_add(&b->d, NET_QUEUE_TX, &segment, 1);
        driver_kick(&b->d, NET_QUEUE_TX);
    }
    for (; read_back < FRAMES; turn(b))
        if (read(b->wire, seen, sizeof seen) > 0)
            assert_int_equal(seen[HEADER] | seen[HEADER + 1] << 8, read_back++);
    for (; done < FRAMES; done++)
        assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
    assert_int_equal(net_counters(b->d.vdev).tx_frames, FRAMES);
    assert_int_equal(net_counters(b->d.vdev).tx_dropped, 0);
}

static void link_state_is_told(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t frame[HEADER + 60], seen[128];
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE, 4), 0x52 | 0x54 << 8 | 1u << 24);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 6, 2), VIRTIO_NET_S_LINK_UP);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 10, 2), 1400);
    uint8_t generation = (uint8_t)driver_read(&b->d, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
    driver_interrupts(&b->d, 0);
    pthread_mutex_lock(&b->m.lock);
    net_set_link(b->d.vdev, false);
    pthread_mutex_unlock(&b->m.lock);
    assert_int_equal(driver_interrupts(&b->d, 0), 1);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 6, 2), 0);
    assert_int_not_equal(driver_read(&b->d, VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
    /* Nothing is carried. */
    give_buffers(b, 0, 2, 2048);
    fill(frame, sizeof frame, 0);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    struct segment segment = {b->buffers + 4 * 4096, 100, false};
    driver_add(&b->d, NET_QUEUE_TX, &segment, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
    assert_int_equal(read(b->wire, seen, sizeof seen), -1);
    turn(b);
    assert_false(driver_has_used(&b->d, NET_QUEUE_RX));
    pthread_mutex_lock(&b->m.lock);
    net_set_link(b->d.vdev, true);
    pthread_mutex_unlock(&b->m.lock);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
}

static void lost_lease_holds_frames_back(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    uint8_t seen[2048];
    struct segment segment = {b->buffers, 200, false};
    b->lease = false;
    driver_add(&b->d, NET_QUEUE_TX, &segment, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    turn(b);
    assert_false(driver_has_used(&b->d, NET_QUEUE_TX));
    assert_int_equal(read(b->wire, seen, sizeof seen), -1);
    assert_int_equal(net_announce(b->d.vdev), -EAGAIN);
    b->lease = true;
    assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used)); /* by the retry timer */
    assert_int_equal(read(b->wire, seen, sizeof seen), 200);
}

static void pause_save_and_go_on_elsewhere(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    struct error err = {0};
    uint8_t frame[HEADER + 60], seen[128];
    give_buffers(b, 0, 8, 2048);
    fill(frame, sizeof frame, 0);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
    driver_pause(&b->d);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    struct segment segment = {b->buffers + 20 * 4096, 100, false};
    driver_add(&b->d, NET_QUEUE_TX, &segment, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    turn(b);
    assert_false(driver_has_used(&b->d, NET_QUEUE_RX));
    assert_false(driver_has_used(&b->d, NET_QUEUE_TX));
    struct bytes_writer saved = driver_save(&b->d);
    struct driver before = b->d;
    driver_detach(&b->d);
    close(b->wire);
    attach(b);
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    b->d.bar = before.bar;
    b->d.free_gpa = before.free_gpa;
    memcpy(b->d.queues, before.queues, sizeof before.queues);
    assert_int_equal(net_counters(b->d.vdev).rx_frames, 1);
    driver_resume(&b->d);
    /* It says where it is now, and again, before and while frames go on. */
    assert_int_equal(read(b->wire, seen, sizeof seen), HEADER + 60);
    assert_memory_equal(seen + HEADER + 6, mac, sizeof mac);
    assert_true(driver_wait(&b->d, NET_QUEUE_TX, &used));
    assert_int_equal(read(b->wire, seen, sizeof seen), 100);
    for (unsigned i = 0; read(b->wire, seen, sizeof seen) < 0 && i < 100; i++)
        io_loop_run_once(b->m.loop, 100);
    assert_memory_equal(seen + HEADER + 6, mac, sizeof mac);
    assert_int_equal(seen[HEADER + 12] << 8 | seen[HEADER + 13], 0x8035);
    assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
    assert_true(driver_wait(&b->d, NET_QUEUE_RX, &used));
    bytes_writer_finish(&saved);
}

static void hostile_buffers_need_a_reset(void **state)
{
    struct bench *b = *state;
    uint8_t frame[HEADER + 60] = {0};
    const struct segment rows[] = {{b->buffers, 4096, false}, {b->buffers, 5, true}, {FAKE_MEMORY_BYTES, 2048, true}};
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
        assert_int_equal(write(b->wire, frame, sizeof frame), sizeof frame);
        driver_add(&b->d, NET_QUEUE_RX, &rows[i], 1);
        driver_kick(&b->d, NET_QUEUE_RX);
        turn(b);
        assert_true(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
        turn(b);
    }
}

static void the_other_end_may_go_away(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    struct segment segment = {b->buffers, 200, false};
    shutdown(b->wire, SHUT_RDWR);
    turn(b);
    driver_add(&b->d, NET_QUEUE_TX, &segment, 1);
    driver_kick(&b->d, NET_QUEUE_TX);
    turn(b);
    (void)used;
    assert_false(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* In a network namespace of a child, so that nothing is left: exit status 0 good, 77 no tap here. */
/* Queues of one tap as the kernel counts them: IFF_DETACH_QUEUE set in what TUNGETIFF says of a detached one. */
static bool is_detached(int fd)
{
    struct ifreq request = {.ifr_flags = 0};
    return ioctl(fd, TUNGETIFF, &request) == 0 && (request.ifr_flags & IFF_DETACH_QUEUE) != 0;
}

/* A real tap of several queues: those that are not in use are detached from it. */
static int queues_child(struct machine *m)
{
    struct error err = {0};
    struct virtio_device *vdev;
    struct net_options options = {.tap = "drtest1", .mac = {2, 0, 0, 0, 0, 9}, .pairs = 4};
    if (net_create(&options, &m->memory, m->loop, &vdev, &err) < 0)
        return 10;
    struct net *net = CONTAINER_OF(vdev, struct net, virtio);
    for (unsigned active = 4; active > 0; active--) {
        net_use_pairs(net, (uint16_t)active);
        for (unsigned i = 0; i < 4; i++)
            if (is_detached(net->pairs[i].fd) != (i >= active))
                return 11;
    }
    net_use_pairs(net, 2);
    if (is_detached(net->pairs[1].fd) || !is_detached(net->pairs[2].fd))
        return 12;
    vdev->ops->destroy(vdev);
    return 0;
}

static int tap_child(void)
{
    struct error err = {0};
    struct machine m;
    struct driver d;
    struct virtio_device *vdev;
    if (unshare(CLONE_NEWNET) < 0)
        return 77;
    machine_init(&m);
    struct net_options options = {.tap = "drtest0", .mac = {2, 0, 0, 0, 0, 9}};
    if (net_create(&options, &m.memory, m.loop, &vdev, &err) < 0)
        return err.code == -ENOENT || err.code == -EPERM || err.code == -EACCES ? 77 : 1;
    driver_attach(&d, &m, vdev);
    driver_start(&d, UINT64_MAX, QUEUE_SIZE);
    struct ifreq request = {.ifr_name = "drtest0", .ifr_flags = IFF_UP};
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        return 2;
    /* What the kernel sends on its own (IPv6 router solicitation, MLD) is enough to see that the tap speaks. */
    uint64_t buffers = driver_alloc(&d, 65536);
    for (unsigned i = 0; i < 16; i++) {
        struct segment segment = {buffers + 4096ull * i, 4096, true};
        driver_add(&d, NET_QUEUE_RX, &segment, 1);
    }
    driver_kick(&d, NET_QUEUE_RX);
    struct used_entry used = {0};
    if (!driver_wait(&d, NET_QUEUE_RX, &used) || used.size < HEADER + 14)
        return 3;
    if (net_announce(vdev) < 0)
        return 4;
    struct virtio_net_hdr_v1 header;
    memcpy(&header, driver_at(&d, buffers, sizeof header), sizeof header);
    if (le16toh(header.num_buffers) != 1)
        return 5;
    driver_detach(&d);
    int result = queues_child(&m);
    machine_finish(&m);
    close(control);
    return result;
}

static void a_real_tap_works(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0)
        _exit(tap_child());
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("no network namespace or /dev/net/tun for this user\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void interfaces_that_cannot_be_are_refused(void **state)
{
    struct bench *b = *state;
    struct virtio_device *vdev = NULL;
    struct error err = {0};
    struct net_options options = {.tap = "a-name-that-is-too-long", .mac = {2}};
    assert_int_equal(net_create(&options, &b->m.memory, b->m.loop, &vdev, &err), -EINVAL);
    options = (struct net_options){.fd = b->wire, .mac = {1}};
    assert_int_equal(net_create(&options, &b->m.memory, b->m.loop, &vdev, &err), -EINVAL);
    options = (struct net_options){.fd = -1, .mac = {2}};
    assert_int_equal(net_create(&options, &b->m.memory, b->m.loop, &vdev, &err), -EBADF);
    assert_null(vdev);
}

/* ---- several pairs and the control queue ---- */

enum { PAIRS = 3 };

struct wide {
    struct bench b; /* wire: that of pair 0 */
    int wires[PAIRS];
};

static void wide_setup(struct wide *w)
{
    struct virtio_device *vdev;
    int ours[PAIRS];
    memset(w, 0, sizeof *w);
    machine_init(&w->b.m);
    w->b.lease = true;
    for (unsigned i = 0; i < PAIRS; i++) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        ours[i] = pair[0];
        w->wires[i] = pair[1];
    }
    struct net_options options = {.fd = ours[0], .more_fds = ours + 1, .pairs = PAIRS};
    memcpy(options.mac, mac, sizeof mac);
    assert_int_equal(net_create(&options, &w->b.m.memory, w->b.m.loop, &vdev, NULL), 0);
    driver_attach(&w->b.d, &w->b.m, vdev);
}
static void wide_start(struct wide *w, uint64_t features)
{
    w->b.d.free_gpa = 0x10000;
    driver_start(&w->b.d, features, QUEUE_SIZE);
    w->b.buffers = driver_alloc(&w->b.d, 1 << 18);
}
static void wide_teardown(struct wide *w)
{
    driver_detach(&w->b.d);
    machine_finish(&w->b.m);
    for (unsigned i = 0; i < PAIRS; i++)
        close(w->wires[i]);
}

/* The outcome of a command on control queue @queue: 0 OK, 1 an error, 0xee nothing written. */
static uint8_t command(struct bench *b, unsigned queue, uint8_t class, uint8_t cmd, const void *data, uint32_t size)
{
    struct used_entry used = {0};
    uint8_t *at = buffer(b, 60);
    at[0] = class;
    at[1] = cmd;
    memcpy(at + 2, data, size);
    at[100] = 0xee;
    struct segment segments[] = {{b->buffers + 60 * 4096, 2, false}, {b->buffers + 60 * 4096 + 2, size, false}, {b->buffers + 60 * 4096 + 100, 1, true}};
    if (size == 0)
        segments[1] = segments[2];
    driver_add(&b->d, queue, segments, size == 0 ? 2 : 3);
    driver_kick(&b->d, queue);
    assert_true(driver_wait(&b->d, queue, &used));
    assert_int_equal(used.size, 1);
    return at[100];
}

static bool sends_on(struct wide *w, unsigned pair)
{
    uint8_t seen[256];
    struct segment segment = {w->b.buffers, HEADER + 60, false};
    fill(buffer(&w->b, 0), HEADER + 60, pair);
    driver_add(&w->b.d, 2 * pair + NET_QUEUE_TX, &segment, 1);
    driver_kick(&w->b.d, 2 * pair + NET_QUEUE_TX);
    turn(&w->b);
    return read(w->wires[pair], seen, sizeof seen) == HEADER + 60;
}

static bool receives_on(struct wide *w, unsigned pair)
{
    uint8_t frame[HEADER + 60];
    struct segment segment = {w->b.buffers + 4096 * (1 + pair), 2048, true};
    fill(frame, sizeof frame, pair);
    driver_add(&w->b.d, 2 * pair, &segment, 1);
    driver_kick(&w->b.d, 2 * pair);
    assert_int_equal(write(w->wires[pair], frame, sizeof frame), sizeof frame);
    turn(&w->b);
    return driver_has_used(&w->b.d, 2 * pair);
}

static void pairs_are_used_when_the_driver_says_so(void **state UNUSED)
{
    struct wide w;
    wide_setup(&w);
    wide_start(&w, UINT64_MAX);
    assert_int_equal(driver_read(&w.b.d, VIRTIO_PCI_AT_DEVICE + 8, 2), PAIRS);
    assert_true(sends_on(&w, 0) && receives_on(&w, 0));
    assert_false(sends_on(&w, 1) || receives_on(&w, 1));
    const unsigned control = 2 * PAIRS;
    static const uint16_t none;
    const uint16_t two = htole16(2), all = htole16(PAIRS), more = htole16(PAIRS + 1);
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 0, &none, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 0, &more, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 0, &two, 1), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 1, &two, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, control, 77, 0, &two, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 0, "", 0), VIRTIO_NET_ERR);
    assert_false(sends_on(&w, 1));
    assert_int_equal(command(&w.b, control, VIRTIO_NET_CTRL_MQ, 0, &all, 2), VIRTIO_NET_OK);
    turn(&w.b);
    assert_true(driver_has_used(&w.b.d, 2)); /* what had waited on pair 1 */
    assert_true(sends_on(&w, 2) && receives_on(&w, 2));
    /* Saved and loaded: as many as before. */
    driver_pause(&w.b.d);
    struct bytes_writer saved = driver_save(&w.b.d);
    driver_detach(&w.b.d);
    for (unsigned i = 0; i < PAIRS; i++)
        close(w.wires[i]);
    struct driver before = w.b.d;
    struct virtio_device *vdev;
    int ours[PAIRS];
    for (unsigned i = 0; i < PAIRS; i++) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        ours[i] = pair[0];
        w.wires[i] = pair[1];
    }
    struct net_options options = {.fd = ours[0], .more_fds = ours + 1, .pairs = PAIRS};
    memcpy(options.mac, mac, sizeof mac);
    assert_int_equal(net_create(&options, &w.b.m.memory, w.b.m.loop, &vdev, NULL), 0);
    driver_attach(&w.b.d, &w.b.m, vdev);
    assert_int_equal(driver_load(&w.b.d, saved.data, saved.size, NULL), 0);
    memcpy(w.b.d.queues, before.queues, sizeof before.queues);
    w.b.d.bar = before.bar;
    w.b.d.free_gpa = before.free_gpa;
    driver_resume(&w.b.d);
    assert_true(sends_on(&w, 1));
    for (uint8_t seen[256]; read(w.wires[1], seen, sizeof seen) > 0;)
        ; /* what had waited there while pair 1 was not used */
    /* A reset: one again. */
    wide_start(&w, UINT64_MAX);
    assert_true(sends_on(&w, 0));
    assert_false(sends_on(&w, 1));
    bytes_writer_finish(&saved);
    wide_teardown(&w);
}

static void without_mq_control_is_the_third_queue(void **state UNUSED)
{
    struct wide w;
    const uint16_t two = htole16(2);
    wide_setup(&w);
    wide_start(&w, ~(1ull << VIRTIO_NET_F_MQ));
    assert_int_equal(command(&w.b, 2, VIRTIO_NET_CTRL_MQ, 0, &two, 2), VIRTIO_NET_ERR);
    assert_int_equal(command(&w.b, 2, VIRTIO_NET_CTRL_ANNOUNCE, 0, "", 0), VIRTIO_NET_OK);
    assert_true(sends_on(&w, 0) && receives_on(&w, 0));
    wide_teardown(&w);
}

static void offloads_are_what_was_negotiated(void **state)
{
    struct bench *b = *state;
    struct net *net = CONTAINER_OF(b->d.vdev, struct net, virtio);
    const uint64_t none = 0, csum = htole64(1ull << VIRTIO_NET_F_GUEST_CSUM);
    const uint64_t other = htole64(1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO6);
    driver_start(&b->d, ~(1ull << VIRTIO_NET_F_GUEST_TSO6), QUEUE_SIZE);
    assert_int_equal(command(b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &none, 8), VIRTIO_NET_OK);
    assert_int_equal(net->offloads, 0);
    assert_int_equal(command(b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &csum, 8), VIRTIO_NET_OK);
    assert_int_equal(net->offloads, 1ull << VIRTIO_NET_F_GUEST_CSUM);
    assert_int_equal(command(b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &other, 8), VIRTIO_NET_ERR);
    assert_int_equal(command(b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, &csum, 4), VIRTIO_NET_ERR);
    assert_int_equal(net->offloads, 1ull << VIRTIO_NET_F_GUEST_CSUM);
}

static void the_guest_is_asked_to_announce(void **state)
{
    struct bench *b = *state;
    uint8_t seen[128];
    driver_interrupts(&b->d, 0);
    pthread_mutex_lock(&b->m.lock);
    assert_int_equal(net_announce(b->d.vdev), 0);
    pthread_mutex_unlock(&b->m.lock);
    assert_int_equal(read(b->wire, seen, sizeof seen), HEADER + 60); /* ours: RARP */
    assert_memory_equal(seen + HEADER + 6, mac, sizeof mac);
    assert_memory_equal(seen + HEADER + 12, "\x80\x35", 2);
    assert_int_equal(driver_interrupts(&b->d, 0), 1);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 6, 2), VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE);
    assert_int_equal(command(b, 2, VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, "", 0), VIRTIO_NET_OK);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 6, 2), VIRTIO_NET_S_LINK_UP);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    static const struct CMUnitTest tests[] = {
        T(frames_go_out),
        T(frames_that_cannot_be_are_dropped),
        T(frames_come_in),
        T(long_frames_fill_several_buffers),
        T(a_driver_without_buffers_loses_nothing),
        T(without_merging_a_long_frame_is_dropped),
        T(a_full_tap_is_waited_for),
        T(link_state_is_told),
        T(lost_lease_holds_frames_back),
        T(pause_save_and_go_on_elsewhere),
        T(hostile_buffers_need_a_reset),
        T(the_other_end_may_go_away),
        cmocka_unit_test(a_real_tap_works),
        T(interfaces_that_cannot_be_are_refused),
        cmocka_unit_test(pairs_are_used_when_the_driver_says_so),
        cmocka_unit_test(without_mq_control_is_the_third_queue),
        T(offloads_are_what_was_negotiated),
        T(limits_hold_frames_back),
        T(the_guest_is_asked_to_announce),
        cmocka_unit_test_setup_teardown(cut_off, cut_setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
