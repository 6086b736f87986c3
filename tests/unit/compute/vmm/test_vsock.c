/* virtio-vsock through the PCI transport and real Unix sockets: connections from both sides, credit both ways, endings,
 * a guest that breaks the rules or takes nothing, state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "compute/vmm/devices/vsock/vsock.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

enum { QUEUE_SIZE = 32, CID = 42, ROOM = 1 << 18, BUFFER = 4096, GUEST_PORT = 5000 };

struct bench {
    struct machine m;
    struct driver d;
    char folder[64], path[80];
    uint64_t buffers, scratch;
    unsigned next;
    uint64_t rx[QUEUE_SIZE]; /* address of the buffer at each descriptor */
    struct virtio_vsock_hdr h;
    uint8_t payload[BUFFER];
};

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    struct virtio_device *vdev;
    snprintf(b->folder, sizeof b->folder, "/tmp/test_vsock.XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->path, sizeof b->path, "%s/s", b->folder);
    machine_init(&b->m);
    struct vsock_options options = {.cid = CID, .path = b->path};
    assert_int_equal(vsock_create(&options, &b->m.memory, b->m.loop, &vdev, NULL), 0);
    driver_attach(&b->d, &b->m, vdev);
    driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
    b->buffers = driver_alloc(&b->d, (uint64_t)BUFFER * QUEUE_SIZE);
    b->scratch = driver_alloc(&b->d, 1 << 18);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    machine_finish(&b->m);
    assert_int_not_equal(access(b->path, F_OK), 0);
    assert_int_equal(rmdir(b->folder), 0);
    free(b);
    return 0;
}

static struct vsock *vsock_of(struct bench *b)
{
    return CONTAINER_OF(b->d.vdev, struct vsock, virtio);
}
static void turn(struct bench *b)
{
    for (unsigned i = 0; i < 8; i++)
        io_loop_run_once(b->m.loop, 0);
}

/* ---- the guest's side ---- */

static void offer(struct bench *b, unsigned queue, uint32_t size)
{
    uint64_t gpa = b->buffers + (uint64_t)BUFFER * (b->next++ % QUEUE_SIZE);
    struct segment segment = {gpa, size, true};
    b->rx[driver_add(&b->d, queue, &segment, 1)] = gpa;
    driver_kick(&b->d, queue);
}
static void say(struct bench *b, uint32_t host_port, uint16_t op, uint32_t flags, const void *data, uint32_t size)
{
    struct virtio_vsock_hdr h = {.src_cid = CID, .dst_cid = 2, .src_port = GUEST_PORT, .dst_port = host_port, .len = size,
                                 .type = 1, .op = op, .flags = flags, .buf_alloc = ROOM, .fwd_cnt = b->h.fwd_cnt};
    struct used_entry used = {0, 0};
    h.fwd_cnt = 0;
    memcpy(driver_at(&b->d, b->scratch, sizeof h + size), &h, sizeof h);
    if (size > 0)
        memcpy(driver_at(&b->d, b->scratch + sizeof h, size), data, size);
    struct segment segment = {b->scratch, (uint32_t)sizeof h + size, false};
    driver_add(&b->d, VSOCK_TX, &segment, 1);
    driver_kick(&b->d, VSOCK_TX);
    assert_true(driver_wait(&b->d, VSOCK_TX, &used));
}
/* The next packet to the guest: its op; header and payload in @b. 0: none. */
static unsigned hear(struct bench *b)
{
    struct used_entry used = {0, 0};
    turn(b);
    if (!driver_has_used(&b->d, VSOCK_RX))
        return 0;
    assert_true(driver_wait(&b->d, VSOCK_RX, &used));
    assert_true(used.size >= sizeof b->h);
    memcpy(&b->h, driver_at(&b->d, b->rx[used.head], used.size), sizeof b->h);
    memcpy(b->payload, driver_at(&b->d, b->rx[used.head] + sizeof b->h, BUFFER - sizeof b->h), used.size - sizeof b->h);
    assert_int_equal(b->h.src_cid, 2);
    assert_int_equal(b->h.dst_cid, CID);
    assert_int_equal(b->h.len, used.size - sizeof b->h);
    assert_int_equal(b->h.buf_alloc, VSOCK_BUFFER_BYTES);
    return b->h.op;
}
static void offer_some(struct bench *b, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        offer(b, VSOCK_RX, BUFFER);
}

/* ---- the host's side ---- */

static int client(struct bench *b, const char *greeting)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, b->path, strlen(b->path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(write(fd, greeting, strlen(greeting)), strlen(greeting));
    turn(b);
    return fd;
}
static void expect_text(struct bench *b, int fd, const char *text)
{
    char got[256] = "";
    turn(b);
    ssize_t n = read(fd, got, sizeof got - 1);
    assert_int_equal(n, strlen(text));
    assert_string_equal(got, text);
}
/* Closed by the other side, which may have left something unread. */
static bool at_end(int fd)
{
    char byte;
    ssize_t n = read(fd, &byte, 1);
    return n == 0 || (n < 0 && errno == ECONNRESET);
}
/* A connection of a client to the guest, open. */
static int opened(struct bench *b)
{
    char text[32];
    offer_some(b, 8);
    int fd = client(b, "CONNECT 5000\n");
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_REQUEST);
    assert_int_equal(b->h.dst_port, GUEST_PORT);
    say(b, b->h.src_port, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
    snprintf(text, sizeof text, "OK %u\n", b->h.src_port);
    expect_text(b, fd, text);
    return fd;
}

static void test_host_to_guest(void **state)
{
    struct bench *b = *state;
    int fd = opened(b);
    uint32_t port = b->h.src_port;
    assert_int_equal(write(fd, "hello guest", 11), 11);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RW);
    assert_memory_equal(b->payload, "hello guest", 11);
    say(b, port, VIRTIO_VSOCK_OP_RW, 0, "hello host", 10);
    expect_text(b, fd, "hello host");
    /* The client has said all; the guest may go on, and then ends too. */
    shutdown(fd, SHUT_WR);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_int_equal(b->h.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
    say(b, port, VIRTIO_VSOCK_OP_RW, 0, "late", 4);
    expect_text(b, fd, "late");
    say(b, port, VIRTIO_VSOCK_OP_SHUTDOWN, 3, NULL, 0);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    assert_true(at_end(fd));
    assert_int_equal(vsock_of(b)->connection_count, 0);
    close(fd);
}

static void test_greetings(void **state)
{
    struct bench *b = *state;
    static const char *const bad[] = {"GET / HTTP/1.1\n", "CONNECT\n", "CONNECT 4294967296\n", "CONNECT 5x\n",
                                      "CONNECT 55555555555555555555555555555555555555"};
    offer_some(b, 4);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        int fd = client(b, bad[i]);
        assert_true(at_end(fd));
        close(fd);
    }
    assert_int_equal(hear(b), 0);
    /* In pieces, with something for the guest right behind it. */
    int fd = client(b, "CONN");
    assert_int_equal(hear(b), 0);
    assert_int_equal(write(fd, "ECT 5000\nrest", 13), 13);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_REQUEST);
    say(b, b->h.src_port, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RW);
    assert_memory_equal(b->payload, "rest", 4);
    close(fd);
    /* Silence is not waited for. */
    fd = client(b, "");
    struct vsock_connection *c = LIST_ENTRY(vsock_of(b)->connections.prev, struct vsock_connection, link);
    assert_int_equal(c->state, VSOCK_GREETING);
    assert_false(list_empty(&c->timer.link));
    c->timer.callback(c->timer.arg);
    assert_true(at_end(fd));
    close(fd);
}

static void test_refused_by_guest(void **state)
{
    struct bench *b = *state;
    offer_some(b, 2);
    int fd = client(b, "CONNECT 5000\n");
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_REQUEST);
    say(b, b->h.src_port, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
    turn(b);
    assert_true(at_end(fd));
    assert_int_equal(vsock_of(b)->connection_count, 0);
    close(fd);
}

static void test_guest_to_host(void **state)
{
    struct bench *b = *state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    offer_some(b, 8);
    say(b, 77, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0); /* nobody listens */
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    assert_int_equal(b->h.src_port, 77);
    snprintf(address.sun_path, sizeof address.sun_path, "%s_77", b->path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    say(b, 77, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RESPONSE);
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(fd >= 0);
    say(b, 77, VIRTIO_VSOCK_OP_RW, 0, "up", 2);
    expect_text(b, fd, "up");
    /* A service that goes away at once is noticed by the guest's next words. */
    close(fd);
    say(b, 77, VIRTIO_VSOCK_OP_RW, 0, "gone?", 5);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_int_equal(b->h.flags, VIRTIO_VSOCK_SHUTDOWN_SEND); /* it says no more... */
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_int_equal(b->h.flags, 3); /* ...and does not listen either */
    say(b, 77, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
    assert_int_equal(vsock_of(b)->connection_count, 0);
    close(listener);
    unlink(address.sun_path);
}

/* The guest is given 64 KiB of credit, gets more as the client reads, and loses the connection if it takes more. */
static void test_credit_of_guest(void **state)
{
    struct bench *b = *state;
    static char block[VSOCK_BUFFER_BYTES];
    int fd = opened(b), small = 4096;
    uint32_t port = b->h.src_port;
    struct vsock_connection *c = LIST_ENTRY(vsock_of(b)->connections.next, struct vsock_connection, link);
    assert_int_equal(setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    for (unsigned i = 0; i < 64 && c->out_size < 40000; i++)
        say(b, port, VIRTIO_VSOCK_OP_RW, 0, block, 16384);
    assert_true(c->out_size >= 40000);
    uint32_t delivered = c->delivered;
    say(b, port, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, NULL, 0);
    unsigned op;
    while ((op = hear(b)) == VIRTIO_VSOCK_OP_CREDIT_UPDATE && b->h.fwd_cnt != delivered)
        ;
    assert_int_equal(op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    /* The client reads: the guest hears of it by itself. */
    size_t total = 0;
    ssize_t n;
    while (turn(b), (n = read(fd, block, sizeof block)) > 0)
        total += (size_t)n;
    assert_int_equal(c->out_size, 0);
    assert_int_equal(total, c->delivered);
    offer_some(b, 4);
    uint32_t before = delivered;
    while ((op = hear(b)) == VIRTIO_VSOCK_OP_CREDIT_UPDATE)
        delivered = b->h.fwd_cnt;
    assert_true(delivered > before);
    assert_true(total - delivered < VSOCK_BUFFER_BYTES / 2);
    /* More than the credit. */
    for (unsigned i = 0; i < 64 && vsock_of(b)->connection_count > 0; i++)
        say(b, port, VIRTIO_VSOCK_OP_RW, 0, block, 32768);
    assert_int_equal(vsock_of(b)->connection_count, 0);
    while ((op = hear(b)) == VIRTIO_VSOCK_OP_CREDIT_UPDATE)
        ;
    assert_int_equal(op, VIRTIO_VSOCK_OP_RST);
    close(fd);
}

/* A guest with little room gets no more than that. */
static void test_credit_of_client(void **state)
{
    struct bench *b = *state;
    int fd = opened(b);
    uint32_t port = b->h.src_port;
    struct vsock_connection *c = LIST_ENTRY(vsock_of(b)->connections.next, struct vsock_connection, link);
    c->guest_room = 5;
    assert_int_equal(write(fd, "0123456789", 10), 10);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RW);
    assert_int_equal(b->h.len, 5);
    assert_int_equal(hear(b), 0);
    assert_int_equal(c->watched, 0); /* nothing to wait for: no busy loop */
    struct virtio_vsock_hdr h = {.src_cid = CID, .dst_cid = 2, .src_port = GUEST_PORT, .dst_port = port, .type = 1,
                                 .op = VIRTIO_VSOCK_OP_CREDIT_UPDATE, .buf_alloc = 5, .fwd_cnt = 3};
    struct used_entry used = {0, 0};
    memcpy(driver_at(&b->d, b->scratch, sizeof h), &h, sizeof h);
    struct segment segment = {b->scratch, sizeof h, false};
    driver_add(&b->d, VSOCK_TX, &segment, 1);
    driver_kick(&b->d, VSOCK_TX);
    assert_true(driver_wait(&b->d, VSOCK_TX, &used));
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RW);
    assert_int_equal(b->h.len, 3);
    assert_memory_equal(b->payload, "567", 3);
    close(fd);
}

/* Refusals are bounded: a guest that takes none is not listened to any more, until it does. */
static void test_flood(void **state)
{
    struct bench *b = *state;
    unsigned taken = 0;
    struct used_entry used = {0, 0};
    for (unsigned i = 0; i < 2 * VSOCK_RESETS_MAX; i++) {
        struct virtio_vsock_hdr h = {.src_cid = CID, .dst_cid = 2, .src_port = i, .dst_port = 9, .type = 1,
                                     .op = VIRTIO_VSOCK_OP_RW, .buf_alloc = ROOM};
        uint64_t gpa = b->scratch + 64ull * i;
        memcpy(driver_at(&b->d, gpa, sizeof h), &h, sizeof h);
        struct segment segment = {gpa, sizeof h, false};
        driver_add(&b->d, VSOCK_TX, &segment, 1);
        driver_kick(&b->d, VSOCK_TX);
        turn(b);
        if (!driver_has_used(&b->d, VSOCK_TX))
            break;
        assert_true(driver_wait(&b->d, VSOCK_TX, &used));
        taken++;
    }
    assert_int_equal(taken, VSOCK_RESETS_MAX);
    offer_some(b, 1);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    assert_true(driver_wait(&b->d, VSOCK_TX, &used)); /* the one that was left lying */
}

/* The list of refusals fills and empties within one notification: the rest of what was sent is not forgotten. */
static void test_flood_at_once(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0, 0};
    unsigned sent = VSOCK_RESETS_MAX + 2, taken = 0;
    for (unsigned i = 0; i < sent; i++) {
        struct virtio_vsock_hdr h = {.src_cid = CID, .dst_cid = 2, .src_port = i, .dst_port = 9, .type = 1,
                                     .op = VIRTIO_VSOCK_OP_RW, .buf_alloc = ROOM};
        uint64_t gpa = b->scratch + 64ull * i;
        memcpy(driver_at(&b->d, gpa, sizeof h), &h, sizeof h);
        struct segment segment = {gpa, sizeof h, false};
        driver_add(&b->d, VSOCK_TX, &segment, 1);
        if (i >= VSOCK_RESETS_MAX - 1 && i + 1 < sent)
            continue; /* the last three at once */
        if (i + 1 == sent) { /* a buffer that nobody was told of is there when they are taken */
            struct segment buffer = {b->buffers, BUFFER, true};
            driver_add(&b->d, VSOCK_RX, &buffer, 1);
        }
        driver_kick(&b->d, VSOCK_TX);
        for (turn(b); driver_has_used(&b->d, VSOCK_TX); taken++)
            assert_true(driver_wait(&b->d, VSOCK_TX, &used));
    }
    assert_int_equal(taken, VSOCK_RESETS_MAX + 1); /* one refusal has gone out: one more was taken */
}

static void test_nonsense(void **state)
{
    struct bench *b = *state;
    int fd = opened(b);
    struct virtio_vsock_hdr good = {.src_cid = CID, .dst_cid = 2, .src_port = GUEST_PORT, .dst_port = b->h.src_port,
                                    .type = 1, .op = VIRTIO_VSOCK_OP_RW, .buf_alloc = ROOM};
    struct virtio_vsock_hdr bad[] = {good, good, good, good};
    bad[0].src_cid = 43;
    bad[1].dst_cid = 5;
    bad[2].type = 2;
    bad[3].len = 1; /* more than there is */
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct used_entry used = {0, 0};
        memcpy(driver_at(&b->d, b->scratch, sizeof good), &bad[i], sizeof good);
        struct segment segment = {b->scratch, sizeof good, false};
        driver_add(&b->d, VSOCK_TX, &segment, 1);
        driver_kick(&b->d, VSOCK_TX);
        assert_true(driver_wait(&b->d, VSOCK_TX, &used));
        assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    }
    assert_int_equal(vsock_of(b)->connection_count, 1);
    /* A header cut short, and a buffer too small for one. */
    struct used_entry used = {0, 0};
    struct segment segment = {b->scratch, 20, false};
    driver_add(&b->d, VSOCK_TX, &segment, 1);
    driver_kick(&b->d, VSOCK_TX);
    assert_true(driver_wait(&b->d, VSOCK_TX, &used));
    /* An op that is not known ends the connection. */
    say(b, good.dst_port, 99, 0, NULL, 0);
    assert_int_equal(vsock_of(b)->connection_count, 0);
    turn(b);
    assert_true(at_end(fd));
    close(fd);
}

static void test_state(void **state)
{
    struct bench *b = *state;
    struct error err;
    struct used_entry used = {0, 0};
    int fd = opened(b);
    uint32_t port = b->h.src_port;
    driver_pause(&b->d);
    assert_int_equal(write(fd, "while paused", 12), 12);
    turn(b);
    assert_int_equal(hear(b), 0);
    struct bytes_writer saved = driver_save(&b->d);
    driver_resume(&b->d);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RW); /* here it goes on */
    vsock_of(b)->next_port = 0;
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    bytes_writer_finish(&saved);
    assert_int_equal(vsock_of(b)->next_port, port);
    driver_resume(&b->d);
    offer(b, VSOCK_EVENT, 16);
    assert_true(driver_wait(&b->d, VSOCK_EVENT, &used));
    assert_int_equal(used.size, 4);
    assert_int_equal(*(uint32_t *)driver_at(&b->d, b->rx[used.head], 4), VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
    close(fd);
    /* A reset of the device ends everything. */
    driver_set_status(&b->d, 0);
    assert_int_equal(vsock_of(b)->connection_count, 0);
}

/* A guest that does not answer holds no place for ever, whether it has heard of the client or not. */
static void test_guest_silent(void **state)
{
    struct bench *b = *state;
    int deaf = client(b, "CONNECT 5000\n"); /* no buffer: it cannot even be told */
    struct vsock_connection *c = LIST_ENTRY(vsock_of(b)->connections.prev, struct vsock_connection, link);
    assert_int_equal(c->state, VSOCK_ASKING);
    assert_false(list_empty(&c->timer.link));
    c->timer.callback(c->timer.arg);
    assert_true(at_end(deaf));
    assert_int_equal(vsock_of(b)->connection_count, 0);
    offer_some(b, 1);
    int fd = client(b, "CONNECT 5000\n");
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_REQUEST);
    uint32_t port = b->h.src_port;
    c = LIST_ENTRY(vsock_of(b)->connections.prev, struct vsock_connection, link);
    assert_false(list_empty(&c->timer.link));
    c->timer.callback(c->timer.arg);
    assert_true(at_end(fd));
    assert_int_equal(c->state, VSOCK_CLOSED); /* to be told, and to be let go where room is needed */
    offer_some(b, 2);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    assert_int_equal(b->h.src_port, port);
    assert_int_equal(vsock_of(b)->connection_count, 0);
    say(b, port, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0); /* too late */
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_RST);
    close(deaf);
    close(fd);
    /* Once it has answered, time does not matter. */
    fd = opened(b);
    c = LIST_ENTRY(vsock_of(b)->connections.prev, struct vsock_connection, link);
    assert_true(list_empty(&c->timer.link));
    close(fd);
}

/* A descriptor's number is another's as soon as it is closed: the connection must not close it again. */
static void test_closed_once(void **state)
{
    struct bench *b = *state;
    int fd = opened(b), others[8];
    uint32_t port = b->h.src_port;
    struct vsock_connection *c = LIST_ENTRY(vsock_of(b)->connections.next, struct vsock_connection, link);
    int number = c->fd;
    close(fd);
    assert_int_equal(hear(b), VIRTIO_VSOCK_OP_SHUTDOWN);
    say(b, port, VIRTIO_VSOCK_OP_RW, 0, "gone?", 5);
    turn(b);
    assert_int_equal(c->state, VSOCK_CLOSED);
    bool taken = false;
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        others[i] = dup(STDERR_FILENO);
        taken = taken || others[i] == number;
    }
    assert_true(taken);
    say(b, port, VIRTIO_VSOCK_OP_RST, 0, NULL, 0);
    assert_int_equal(vsock_of(b)->connection_count, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
        assert_int_equal(close(others[i]), 0);
}

static void test_options(void **state)
{
    struct bench *b = *state;
    struct virtio_device *vdev;
    struct error err;
    char path[200];
    memset(path, 'x', sizeof path);
    path[VSOCK_PATH_BYTES_MAX + 1] = '\0';
    assert_int_equal(vsock_create(&(struct vsock_options){2, b->path}, &b->m.memory, b->m.loop, &vdev, &err), -EINVAL);
    assert_string_equal(err.field, "/vsock/cid");
    assert_int_equal(vsock_create(&(struct vsock_options){3, path}, &b->m.memory, b->m.loop, &vdev, &err), -ENAMETOOLONG);
    assert_string_equal(err.field, "/vsock/path");
    /* Somebody listens there: us. */
    assert_int_equal(vsock_create(&(struct vsock_options){3, b->path}, &b->m.memory, b->m.loop, &vdev, &err), -EADDRINUSE);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_host_to_guest), T(test_greetings),        T(test_refused_by_guest), T(test_guest_to_host),
        T(test_credit_of_guest), T(test_credit_of_client), T(test_flood), T(test_flood_at_once),          T(test_nonsense),
        T(test_guest_silent),  T(test_closed_once),
        T(test_state),         T(test_options),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
