/* virtio-console through the PCI transport: the conversation about ports, bytes both ways, a driver without buffers,
 * one without MULTIPORT, reset, state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <linux/virtio_console.h>

#include "common/log.h"
#include "compute/vmm/devices/vconsole/vconsole.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

enum { QUEUE_SIZE = 16, RX0 = 0, TX0 = 1, CONTROL_RX = 2, CONTROL_TX = 3, RX1 = 4, TX1 = 5, BUFFER = 128 };
#define AGENT "org.example.agent"

struct end {
    char data[4096];
    size_t size;
    bool open;
    unsigned changes, rooms;
    struct virtio_device *answers; /* each piece of output is answered there, at port 1, with a byte */
};
struct bench {
    struct machine m;
    struct driver d;
    struct end ends[2];
    uint64_t buffers, scratch;
    unsigned next;
};

static void on_output(void *arg, const uint8_t *data, size_t size)
{
    struct end *e = arg;
    assert_true(size <= sizeof e->data - e->size);
    memcpy(e->data + e->size, data, size);
    e->size += size;
    if (e->answers != NULL)
        vconsole_input(e->answers, 1, (const uint8_t *)"!", 1);
}
static void on_room(void *arg)
{
    struct end *e = arg;
    e->rooms++;
}
static void on_opened(void *arg, bool open)
{
    struct end *e = arg;
    e->open = open;
    e->changes++;
}

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    struct virtio_device *vdev;
    machine_init(&b->m);
    struct vconsole_port_options ports[] = {
        {.output = on_output, .opened = on_opened, .arg = &b->ends[0]},
        {.name = AGENT, .output = on_output, .opened = on_opened, .room = on_room, .arg = &b->ends[1]},
    };
    assert_int_equal(vconsole_create(ports, 2, &b->m.memory, &vdev, NULL), 0);
    driver_attach(&b->d, &b->m, vdev);
    driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
    b->buffers = driver_alloc(&b->d, 1 << 16);
    b->scratch = driver_alloc(&b->d, 1 << 16);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    machine_finish(&b->m);
    free(b);
    return 0;
}

/* One receive buffer on @queue; returns its address. */
static uint64_t offer(struct bench *b, unsigned queue)
{
    uint64_t gpa = b->buffers + BUFFER * (b->next++ % 256);
    struct segment segment = {gpa, BUFFER, true};
    driver_add(&b->d, queue, &segment, 1);
    return gpa;
}
static void say(struct bench *b, uint32_t port, uint16_t event, uint16_t value)
{
    struct virtio_console_control message = {port, event, value};
    struct used_entry used;
    memcpy(driver_at(&b->d, b->scratch, sizeof message), &message, sizeof message);
    struct segment segment = {b->scratch, sizeof message, false};
    driver_add(&b->d, CONTROL_TX, &segment, 1);
    driver_kick(&b->d, CONTROL_TX);
    assert_true(driver_wait(&b->d, CONTROL_TX, &used));
}
static void expect(struct bench *b, uint64_t gpa, uint32_t port, uint16_t event, uint16_t value, const char *text)
{
    struct virtio_console_control message;
    struct used_entry used;
    assert_true(driver_has_used(&b->d, CONTROL_RX));
    assert_true(driver_wait(&b->d, CONTROL_RX, &used));
    assert_int_equal(used.size, sizeof message + strlen(text));
    memcpy(&message, driver_at(&b->d, gpa, sizeof message), sizeof message);
    assert_int_equal(message.id, port);
    assert_int_equal(message.event, event);
    assert_int_equal(message.value, value);
    assert_memory_equal(driver_at(&b->d, gpa + sizeof message, 1 + strlen(text)), text, strlen(text));
}
static void send_bytes(struct bench *b, unsigned queue, const char *text)
{
    struct used_entry used;
    memcpy(driver_at(&b->d, b->scratch, strlen(text)), text, strlen(text));
    struct segment segment = {b->scratch, (uint32_t)strlen(text), false};
    driver_add(&b->d, queue, &segment, 1);
    driver_kick(&b->d, queue);
    assert_true(driver_wait(&b->d, queue, &used));
}

static void test_ports(void **state)
{
    struct bench *b = *state;
    uint64_t gpas[6];
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 4), 2);
    for (unsigned i = 0; i < 6; i++)
        gpas[i] = offer(b, CONTROL_RX);
    say(b, UINT32_MAX, VIRTIO_CONSOLE_DEVICE_READY, 1);
    expect(b, gpas[0], 0, VIRTIO_CONSOLE_PORT_ADD, 1, "");
    expect(b, gpas[1], 1, VIRTIO_CONSOLE_PORT_ADD, 1, "");
    say(b, 0, VIRTIO_CONSOLE_PORT_READY, 1);
    expect(b, gpas[2], 0, VIRTIO_CONSOLE_CONSOLE_PORT, 1, "");
    expect(b, gpas[3], 0, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
    say(b, 1, VIRTIO_CONSOLE_PORT_READY, 1);
    expect(b, gpas[4], 1, VIRTIO_CONSOLE_PORT_NAME, 1, AGENT);
    expect(b, gpas[5], 1, VIRTIO_CONSOLE_PORT_OPEN, 1, "");
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    assert_true(b->ends[1].open && !b->ends[0].open);
    assert_true(vconsole_is_open(b->d.vdev, 1));
    say(b, 7, VIRTIO_CONSOLE_PORT_OPEN, 1); /* no such port */
    say(b, 1, 99, 1);                       /* no such event */
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 0);
    assert_false(b->ends[1].open);
    assert_false(driver_has_used(&b->d, CONTROL_RX));
}

/* A driver that has left no buffer is told as soon as it does. */
static void test_without_buffers(void **state)
{
    struct bench *b = *state;
    say(b, UINT32_MAX, VIRTIO_CONSOLE_DEVICE_READY, 1);
    for (unsigned i = 0; i < 100; i++)
        say(b, 1, VIRTIO_CONSOLE_PORT_READY, 1);
    const uint16_t events[] = {VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_PORT_NAME,
                               VIRTIO_CONSOLE_PORT_OPEN};
    const uint32_t ports[] = {0, 1, 1, 1};
    for (unsigned i = 0; i < ARRAY_SIZE(events); i++) {
        uint64_t gpa = offer(b, CONTROL_RX);
        driver_kick(&b->d, CONTROL_RX);
        expect(b, gpa, ports[i], events[i], 1, events[i] == VIRTIO_CONSOLE_PORT_NAME ? AGENT : "");
    }
    offer(b, CONTROL_RX);
    driver_kick(&b->d, CONTROL_RX);
    assert_false(driver_has_used(&b->d, CONTROL_RX));
}

static void test_bytes(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    send_bytes(b, TX1, "from the guest");
    assert_int_equal(b->ends[1].size, 14);
    assert_memory_equal(b->ends[1].data, "from the guest", 14);
    assert_int_equal(b->ends[0].size, 0);
    /* Kept until the guest has opened the port and left a buffer. */
    uint64_t gpa = offer(b, RX1);
    driver_kick(&b->d, RX1);
    assert_int_equal(vconsole_input(b->d.vdev, 1, (const uint8_t *)"to it", 5), 5);
    assert_false(driver_has_used(&b->d, RX1));
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    assert_true(driver_wait(&b->d, RX1, &used));
    assert_int_equal(used.size, 5);
    assert_memory_equal(driver_at(&b->d, gpa, 5), "to it", 5);
    /* More than fits: the rest stays with the caller; then in order, over several buffers. */
    uint8_t many[VCONSOLE_INPUT_BYTES + 100];
    for (unsigned i = 0; i < sizeof many; i++)
        many[i] = (uint8_t)(i * 7);
    assert_int_equal(vconsole_input(b->d.vdev, 1, many, sizeof many), VCONSOLE_INPUT_BYTES);
    assert_int_equal(vconsole_input(b->d.vdev, 1, many, 1), 0);
    for (unsigned i = 0; i < VCONSOLE_INPUT_BYTES / BUFFER; i++) {
        gpa = offer(b, RX1);
        driver_kick(&b->d, RX1);
        assert_true(driver_wait(&b->d, RX1, &used));
        assert_int_equal(used.size, BUFFER);
        assert_memory_equal(driver_at(&b->d, gpa, BUFFER), many + i * BUFFER, BUFFER);
    }
    offer(b, RX1);
    driver_kick(&b->d, RX1);
    assert_false(driver_has_used(&b->d, RX1));
}

/* Our end answers while it is being given a long request: the rest of the request is what the guest has sent. */
static void test_answers_within(void **state)
{
    struct bench *b = *state;
    static char text[3 * VCONSOLE_PIECE_BYTES + 1];
    struct used_entry used;
    for (unsigned i = 0; i < sizeof text - 1; i++)
        text[i] = (char)('a' + i / 7 % 26);
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    for (unsigned i = 0; i < 3; i++)
        offer(b, RX1);
    b->ends[1].answers = b->d.vdev;
    send_bytes(b, TX1, text);
    assert_int_equal(b->ends[1].size, sizeof text - 1);
    assert_memory_equal(b->ends[1].data, text, sizeof text - 1);
    for (unsigned i = 0; i < 3; i++)
        assert_true(driver_wait(&b->d, RX1, &used));
}

/* Who is told of room may hand in more at once: never while handing in. */
static void test_room(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    uint8_t many[VCONSOLE_INPUT_BYTES] = {0};
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    assert_int_equal(vconsole_input(b->d.vdev, 1, many, sizeof many - 10), sizeof many - 10);
    offer(b, RX1); /* and no kick: it is found while handing in */
    assert_int_equal(vconsole_input(b->d.vdev, 1, many, 60), 60);
    assert_int_equal(b->ends[1].rooms, 0);
    assert_true(driver_wait(&b->d, RX1, &used));
    assert_true(vconsole_input(b->d.vdev, 1, many, sizeof many) < sizeof many);
    offer(b, RX1);
    driver_kick(&b->d, RX1);
    assert_true(driver_wait(&b->d, RX1, &used));
    assert_int_equal(b->ends[1].rooms, 1);
}

static void test_single_port(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    driver_start(&b->d, ~(1ull << VIRTIO_CONSOLE_F_MULTIPORT), QUEUE_SIZE);
    assert_true(vconsole_is_open(b->d.vdev, 0));
    assert_false(vconsole_is_open(b->d.vdev, 1));
    offer(b, RX0);
    driver_kick(&b->d, RX0);
    assert_int_equal(vconsole_input(b->d.vdev, 0, (const uint8_t *)"x", 1), 1);
    assert_true(driver_wait(&b->d, RX0, &used));
    send_bytes(b, TX0, "y");
    assert_int_equal(b->ends[0].size, 1);
}

static void test_reset(void **state)
{
    struct bench *b = *state;
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    vconsole_input(b->d.vdev, 0, (const uint8_t *)"old", 3);
    driver_set_status(&b->d, 0);
    assert_false(b->ends[1].open);
    assert_false(vconsole_is_open(b->d.vdev, 1));
    driver_start(&b->d, UINT64_MAX, QUEUE_SIZE);
    say(b, 0, VIRTIO_CONSOLE_PORT_OPEN, 1);
    offer(b, RX0);
    driver_kick(&b->d, RX0);
    assert_false(driver_has_used(&b->d, RX0)); /* nothing of the time before */
}

static void test_state(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    struct error err;
    say(b, 1, VIRTIO_CONSOLE_PORT_READY, 1);
    say(b, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    vconsole_input(b->d.vdev, 1, (const uint8_t *)"kept", 4);
    driver_pause(&b->d);
    struct bytes_writer saved = driver_save(&b->d);
    struct vconsole *c = CONTAINER_OF(b->d.vdev, struct vconsole, virtio);
    c->ports[1].pending = 0;
    c->ports[1].guest_open = false;
    c->ports[1].input_size = 0;
    unsigned changes = b->ends[1].changes;
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    assert_int_equal(b->ends[1].changes, changes + 1);
    driver_resume(&b->d);
    uint64_t gpa = offer(b, RX1);
    driver_kick(&b->d, RX1);
    assert_true(driver_wait(&b->d, RX1, &used));
    assert_memory_equal(driver_at(&b->d, gpa, 4), "kept", 4);
    gpa = offer(b, CONTROL_RX);
    driver_kick(&b->d, CONTROL_RX);
    expect(b, gpa, 1, VIRTIO_CONSOLE_PORT_NAME, 1, AGENT);
    /* Cut short anywhere, it is refused. */
    for (size_t size = 0; size < saved.size; size++)
        assert_true(driver_load(&b->d, saved.data, size, &err) < 0);
    bytes_writer_finish(&saved);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_ports), T(test_without_buffers), T(test_bytes), T(test_answers_within),
        T(test_room),  T(test_single_port),     T(test_reset), T(test_state),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
