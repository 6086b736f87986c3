/* A 16550A serial port (National PC16550D): what it sends goes to a callback at once, what it receives waits in a
 * queue.
 *
 * Threads: with the device lock held (device.h), serial_receive too. */
#ifndef COMPUTE_VMM_DEVICES_SERIAL_SERIAL_H
#define COMPUTE_VMM_DEVICES_SERIAL_SERIAL_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"
#include "compute/vmm/irq.h"

#define SERIAL_QUEUE_BYTES 4096u /* received and not read yet: pasted text, not a file transfer */

struct serial;
typedef void (*serial_output_fn)(void *arg, const void *data, size_t size);

/* At @port of @ports with line @irq of @chip. On success it is released by its device's destroy. */
int serial_create(const char *name, struct bus *ports, uint16_t port, struct irq_chip *chip, uint32_t irq,
                  serial_output_fn output, void *output_arg, struct serial **ret_serial, struct error *err);
struct device *serial_device(struct serial *s);
/* Bytes from outside for the guest; returns how many fitted. */
size_t serial_receive(struct serial *s, const uint8_t *data, size_t size);

#endif
