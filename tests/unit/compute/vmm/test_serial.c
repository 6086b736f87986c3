/* The serial port as drivers use it: probing, FIFO, interrupts, loop-back, reset, save and load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "compute/vmm/devices/serial/serial.h"

struct port {
    struct irq_chip chip;
    struct bus ports;
    struct serial *serial;
    char sent[64];
    size_t sent_size;
    bool line;
};

static int on_line(struct irq_chip *chip, uint32_t gsi, bool high)
{
    assert_int_equal(gsi, 4);
    CONTAINER_OF(chip, struct port, chip)->line = high;
    return 0;
}
static const struct irq_chip_ops chip_ops = {.line_set = on_line};

static void on_output(void *arg, const void *data, size_t size)
{
    struct port *p = arg;
    assert_true(p->sent_size + size <= sizeof(p->sent));
    memcpy(p->sent + p->sent_size, data, size);
    p->sent_size += size;
}

static int setup(void **state)
{
    struct port *p = NEW(struct port);
    irq_chip_init(&p->chip, &chip_ops);
    bus_init(&p->ports, NULL);
    assert_int_equal(serial_create("serial0", &p->ports, 0x3f8, &p->chip, 4, on_output, p, &p->serial, NULL), 0);
    *state = p;
    return 0;
}
static int teardown(void **state)
{
    struct port *p = *state;
    struct device *d = serial_device(p->serial);
    d->ops->destroy(d);
    assert_int_equal(bus_read(&p->ports, 0x3f8, 1), 0xff); /* gone from the bus */
    bus_finish(&p->ports);
    free(p);
    return 0;
}

static uint8_t in(struct port *p, unsigned reg)
{
    return (uint8_t)bus_read(&p->ports, 0x3f8 + reg, 1);
}
static void out(struct port *p, unsigned reg, uint8_t value)
{
    bus_write(&p->ports, 0x3f8 + reg, 1, value);
}

static void bytes_go_out(void **state)
{
    struct port *p = *state;
    for (const char *c = "hello"; *c; c++) {
        assert_int_equal(in(p, 5) & 0x60, 0x60);
        out(p, 0, (uint8_t)*c);
    }
    assert_int_equal(p->sent_size, 5);
    assert_memory_equal(p->sent, "hello", 5);
    assert_false(p->line);
}

/* What a driver does to tell a 16550A from nothing and from older chips. */
static void probe_finds_a_16550a(void **state)
{
    struct port *p = *state;
    out(p, 1, 0);
    assert_int_equal(in(p, 1), 0);
    out(p, 1, 0x0f);
    assert_int_equal(in(p, 1), 0x0f);
    out(p, 1, 0);
    out(p, 4, 0x1a); /* loop, RTS, OUT2 */
    assert_int_equal(in(p, 6) & 0xf0, 0x90);
    out(p, 4, 0);
    out(p, 2, 1);
    assert_int_equal(in(p, 2) >> 6, 3);
    out(p, 7, 0xa5);
    assert_int_equal(in(p, 7), 0xa5);
    out(p, 3, 0x80);
    out(p, 0, 1);
    out(p, 1, 0);
    assert_int_equal(in(p, 0), 1);
    assert_int_equal(p->sent_size, 0); /* the divisor is not data */
    out(p, 3, 3);
    assert_int_equal(in(p, 5) & 1, 0);
}

static void received_bytes_interrupt(void **state)
{
    struct port *p = *state;
    out(p, 4, 8);
    out(p, 1, 1);
    assert_false(p->line);
    assert_int_equal(serial_receive(p->serial, (const uint8_t *)"ab", 2), 2);
    assert_true(p->line);
    assert_int_equal(in(p, 2) & 0x0f, 4);
    assert_int_equal(in(p, 5) & 1, 1);
    assert_int_equal(in(p, 0), 'a');
    assert_true(p->line);
    assert_int_equal(in(p, 0), 'b');
    assert_false(p->line);
    assert_int_equal(in(p, 5) & 1, 0);
}

static void empty_transmitter_interrupts_once(void **state)
{
    struct port *p = *state;
    out(p, 4, 8);
    out(p, 1, 2);
    assert_true(p->line);
    assert_int_equal(in(p, 2) & 0x0f, 2); /* reading IIR takes it back */
    assert_false(p->line);
    assert_int_equal(in(p, 2) & 0x0f, 1);
    out(p, 0, 'x');
    assert_true(p->line);
    out(p, 1, 0);
    assert_false(p->line);
}

static void interrupts_need_out2(void **state)
{
    struct port *p = *state;
    out(p, 1, 1);
    serial_receive(p->serial, (const uint8_t *)"a", 1);
    assert_false(p->line);
    out(p, 4, 8);
    assert_true(p->line);
}

static void queue_has_a_limit(void **state)
{
    struct port *p = *state;
    uint8_t data[SERIAL_QUEUE_BYTES + 1] = {1, 2};
    assert_int_equal(serial_receive(p->serial, data, sizeof(data)), SERIAL_QUEUE_BYTES);
    assert_int_equal(serial_receive(p->serial, data, 1), 0);
    assert_int_equal(in(p, 0), 1);
    assert_int_equal(serial_receive(p->serial, data, 2), 1);
    out(p, 2, 3); /* FCR: clear */
    assert_int_equal(in(p, 5) & 1, 0);
}

static void state_is_carried_over(void **state)
{
    struct port *p = *state;
    struct device *d = serial_device(p->serial);
    struct bytes_writer saved = {0};
    out(p, 4, 8);
    out(p, 1, 1);
    out(p, 7, 0x5a);
    serial_receive(p->serial, (const uint8_t *)"yz", 2);
    d->ops->save(d, &saved);
    d->ops->reset(d);
    assert_false(p->line);
    assert_int_equal(in(p, 7), 0);
    struct bytes_reader r = bytes_reader(saved.data, saved.size);
    assert_int_equal(d->ops->load(d, &r, NULL), 0);
    assert_int_equal(bytes_left(&r), 0);
    assert_true(p->line);
    assert_int_equal(in(p, 7), 0x5a);
    assert_int_equal(in(p, 0), 'y');
    assert_int_equal(in(p, 0), 'z');
    /* Every shorter piece, on a copy of its very size, is refused. */
    for (size_t size = 0; size < saved.size; size++) {
        uint8_t *piece = malloc(size ? size : 1);
        memcpy(piece, saved.data, size);
        r = bytes_reader(piece, size);
        assert_int_equal(d->ops->load(d, &r, NULL), -EINVAL);
        free(piece);
    }
    bytes_writer_finish(&saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(bytes_go_out),
        T(probe_finds_a_16550a),
        T(received_bytes_interrupt),
        T(empty_transmitter_interrupts_once),
        T(interrupts_need_out2),
        T(queue_has_a_limit),
        T(state_is_carried_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
