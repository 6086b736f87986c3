/* Registers by offset, DLAB switching the first two (PC16550D, table II). Sending takes no time, so the transmitter
 * is always empty and its interrupt is pending from the moment it is enabled until it is read from IIR. */
#include "compute/vmm/devices/serial/serial.h"

#include <errno.h>
#include <string.h>

enum { DATA = 0, IER = 1, IIR = 2 /* FCR when written */, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCRATCH = 7 };
enum { IER_RECEIVED = 1, IER_SENT = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_SENT = 2, IIR_RECEIVED = 4, IIR_FIFOS = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RECEIVED = 2 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10 };
enum { LSR_READY = 1, LSR_EMPTY = 0x60 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RING = 0x40, MSR_CARRIER = 0x80 };
enum { STATE_VERSION = 1 };

struct serial {
    struct device device;
    struct irq_chip *chip;
    uint32_t irq;
    struct bus *ports;
    uint16_t port;
    serial_output_fn output;
    void *output_arg;
    uint8_t ier, fcr, lcr, mcr, scratch, divisor_low, divisor_high;
    bool sent_pending; /* "transmitter empty" has not been read from IIR yet */
    bool line_high;
    uint8_t queue[SERIAL_QUEUE_BYTES];
    size_t queue_start, queue_count;
};

static uint8_t iir_value(const struct serial *s)
{
    uint8_t fifos = s->fcr & FCR_ENABLE ? IIR_FIFOS : 0;
    if ((s->ier & IER_RECEIVED) && s->queue_count)
        return fifos | IIR_RECEIVED;
    if ((s->ier & IER_SENT) && s->sent_pending)
        return fifos | IIR_SENT;
    return fifos | IIR_NONE;
}

/* On a PC the interrupt is gated by OUT2; Linux and others set it, firmware that polls does not. */
static void line_tell(struct serial *s)
{
    s->line_high = !(iir_value(s) & IIR_NONE) && (s->mcr & MCR_OUT2);
    irq_line_set(s->chip, s->irq, s->line_high);
}

static void line_update(struct serial *s)
{
    bool high = !(iir_value(s) & IIR_NONE) && (s->mcr & MCR_OUT2);
    if (high != s->line_high)
        line_tell(s);
}

static uint8_t data_read(struct serial *s)
{
    uint8_t byte = 0;
    if (s->queue_count) {
        byte = s->queue[s->queue_start];
        s->queue_start = (s->queue_start + 1) % SERIAL_QUEUE_BYTES;
        s->queue_count--;
    }
    return byte;
}

/* In loop-back the four outputs come back as inputs; otherwise the other side is always ready. */
static uint8_t msr_value(const struct serial *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_CARRIER;
    return (uint8_t)((s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
                     (s->mcr & MCR_OUT1 ? MSR_RING : 0) | (s->mcr & MCR_OUT2 ? MSR_CARRIER : 0));
}

static uint8_t register_read(struct serial *s, unsigned offset)
{
    uint8_t value;
    switch (offset) {
    case DATA:
        return s->lcr & LCR_DLAB ? s->divisor_low : data_read(s);
    case IER:
        return s->lcr & LCR_DLAB ? s->divisor_high : s->ier;
    case IIR:
        value = iir_value(s);
        if ((value & 0x0f) == IIR_SENT)
            s->sent_pending = false;
        return value;
    case LCR:
        return s->lcr;
    case MCR:
        return s->mcr;
    case LSR:
        return (uint8_t)(LSR_EMPTY | (s->queue_count ? LSR_READY : 0));
    case MSR:
        return msr_value(s);
    default:
        return s->scratch;
    }
}

static void data_write(struct serial *s, uint8_t byte)
{
    if (s->mcr & MCR_LOOP)
        serial_receive(s, &byte, 1);
    else
        s->output(s->output_arg, &byte, 1);
    s->sent_pending = true;
}

static void register_write(struct serial *s, unsigned offset, uint8_t value)
{
    switch (offset) {
    case DATA:
        if (s->lcr & LCR_DLAB)
            s->divisor_low = value;
        else
            data_write(s, value);
        break;
    case IER:
        if (s->lcr & LCR_DLAB) {
            s->divisor_high = value;
            break;
        }
        if ((value & IER_SENT) && !(s->ier & IER_SENT))
            s->sent_pending = true;
        s->ier = value & 0x0f;
        break;
    case IIR:
        s->fcr = value & 0xc9;
        if (value & FCR_CLEAR_RECEIVED)
            s->queue_count = 0;
        break;
    case LCR:
        s->lcr = value;
        break;
    case MCR:
        s->mcr = value & 0x1f;
        break;
    case SCRATCH:
        s->scratch = value;
        break;
    default: /* LSR and MSR are read-only */
        break;
    }
}

static uint64_t serial_read(void *arg, uint64_t offset, unsigned size)
{
    struct serial *s = arg;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)register_read(s, (unsigned)offset + i) << (8 * i);
    line_update(s);
    return value;
}

static void serial_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct serial *s = arg;
    for (unsigned i = 0; i < size; i++)
        register_write(s, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
    line_update(s);
}

size_t serial_receive(struct serial *s, const uint8_t *data, size_t size)
{
    size_t n = MIN(size, SERIAL_QUEUE_BYTES - s->queue_count);
    for (size_t i = 0; i < n; i++)
        s->queue[(s->queue_start + s->queue_count + i) % SERIAL_QUEUE_BYTES] = data[i];
    s->queue_count += n;
    line_update(s);
    return n;
}

static void serial_reset(struct device *d)
{
    struct serial *s = CONTAINER_OF(d, struct serial, device);
    s->ier = s->fcr = s->lcr = s->mcr = s->scratch = s->divisor_high = 0;
    s->divisor_low = 12; /* 9600 baud */
    s->sent_pending = false;
    s->queue_start = s->queue_count = 0;
    line_update(s);
}

static void serial_save(struct device *d, struct bytes_writer *out)
{
    struct serial *s = CONTAINER_OF(d, struct serial, device);
    const uint8_t registers[] = {s->ier,     s->fcr,         s->lcr,          s->mcr,
                                 s->scratch, s->divisor_low, s->divisor_high, s->sent_pending};
    bytes_put_u8(out, STATE_VERSION);
    bytes_put(out, registers, sizeof(registers));
    bytes_put_u32(out, (uint32_t)s->queue_count);
    for (size_t i = 0; i < s->queue_count; i++)
        bytes_put_u8(out, s->queue[(s->queue_start + i) % SERIAL_QUEUE_BYTES]);
}

static int serial_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct serial *s = CONTAINER_OF(d, struct serial, device);
    uint8_t version = bytes_get_u8(in);
    const uint8_t *r = bytes_get(in, 8);
    uint32_t count = bytes_get_u32(in);
    const uint8_t *queue = count <= SERIAL_QUEUE_BYTES ? bytes_get(in, count) : NULL;
    if (in->bad || version != STATE_VERSION || !r || !queue || r[7] > 1)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    s->ier = r[0] & 0x0f;
    s->fcr = r[1];
    s->lcr = r[2];
    s->mcr = r[3] & 0x1f;
    s->scratch = r[4];
    s->divisor_low = r[5];
    s->divisor_high = r[6];
    s->sent_pending = r[7];
    memcpy(s->queue, queue, count);
    s->queue_start = 0;
    s->queue_count = count;
    line_tell(s); /* whatever the chip knew before */
    return 0;
}

static void serial_destroy(struct device *d)
{
    struct serial *s = CONTAINER_OF(d, struct serial, device);
    bus_remove(s->ports, s->port);
    free(s);
}

static const struct device_ops serial_ops = {
    .reset = serial_reset, .save = serial_save, .load = serial_load, .destroy = serial_destroy};

int serial_create(const char *name, struct bus *ports, uint16_t port, struct irq_chip *chip, uint32_t irq,
                  serial_output_fn output, void *output_arg, struct serial **ret_serial, struct error *err)
{
    struct serial *s = NEW(struct serial);
    *s = (struct serial){
        .chip = chip, .irq = irq, .ports = ports, .port = port, .output = output, .output_arg = output_arg};
    struct bus_range range = {.start = port, .size = 8, .read = serial_read, .write = serial_write, .arg = s};
    int code = bus_add(ports, &range, err);
    if (code < 0) {
        free(s);
        return code;
    }
    device_init(&s->device, &serial_ops, name);
    serial_reset(&s->device);
    *ret_serial = s;
    return 0;
}

struct device *serial_device(struct serial *s)
{
    return &s->device;
}
