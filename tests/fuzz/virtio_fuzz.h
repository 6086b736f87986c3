/* What the virtio fuzz targets share: a machine without KVM whose guest memory is the input, and a guest that does to
 * one device what the input says. The input begins with a list of 12-byte operations, up to a zero one; what follows
 * is copied to the start of guest memory, where rings and descriptors are. */
#ifndef TESTS_FUZZ_VIRTIO_FUZZ_H
#define TESTS_FUZZ_VIRTIO_FUZZ_H

#include <stdio.h>

#include "common/log.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

enum {
    FUZZ_OPERATIONS_MAX = 64,
    FUZZ_OPERATION_BYTES = 12,
    FUZZ_DATA = 0x8000,  /* where its requests have their segments: there, too */
    FUZZ_RINGS = 0x1000, /* where a started driver's rings are: within what the input fills */
};

enum fuzz_operation {
    FUZZ_END,
    FUZZ_KICK,
    FUZZ_TURN,
    FUZZ_BAR_READ,
    FUZZ_BAR_WRITE,
    FUZZ_CONFIG_READ,
    FUZZ_CONFIG_WRITE,
    FUZZ_MEMORY_WRITE,
    FUZZ_START,
    FUZZ_PAUSE_SAVE_RESUME,
    FUZZ_REQUEST,
    FUZZ_LOAD_CHANGED,
    FUZZ_OPERATIONS
};

/* What a device or a bus has saved, as somebody who wants harm would hand it back: three bytes changed, perhaps cut. */
static inline void fuzz_change_state(struct bytes_writer *saved, uint16_t at, uint64_t value)
{
    if (saved->size == 0)
        return;
    saved->data[at % saved->size] ^= (uint8_t)value;
    saved->data[(value >> 8 & 0xffff) % saved->size] ^= (uint8_t)(value >> 24);
    saved->data[(value >> 32 & 0xffff) % saved->size] ^= (uint8_t)(value >> 48);
    if (value >> 56 == 0xff)
        saved->size = at % saved->size;
}

static inline void fuzz_save(struct driver *d)
{
    driver_pause(d);
    struct bytes_writer saved = driver_save(d);
    struct error err = {0};
    /* Whatever the guest has done to the device: what was saved can be loaded. */
    if (driver_load(d, saved.data, saved.size, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        ASSERT(!"own state is refused");
    }
    driver_resume(d);
    bytes_writer_finish(&saved);
}

/* Any state may come in; it is refused in words, or the device goes on with it. */
static inline void fuzz_load_changed(struct driver *d, uint16_t at, uint64_t value)
{
    struct error err = {0};
    driver_pause(d);
    struct bytes_writer saved = driver_save(d);
    fuzz_change_state(&saved, at, value);
    int code = driver_load(d, saved.data, saved.size, &err); /* -1: more than it took, for the machine to refuse */
    ASSERT(code == 0 || code == -1 || err.text[0] != '\0');
    bytes_writer_finish(&saved);
    /* What moves the BAR away only hides the device: it is where it was for what follows. */
    driver_config_write(d, PCI_COMMAND, 2, 0);
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR, 4, (uint32_t)d->bar);
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR + 4, 4, (uint32_t)(d->bar >> 32));
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    driver_resume(d);
}

/* A request of a shape that drivers use: up to four segments of likely sizes, in memory that the input fills. */
static inline void fuzz_request(struct driver *d, uint16_t shape, uint64_t value)
{
    static const uint32_t sizes[] = {16, 1, 512, 12, 1024, 4096, 1526, 60};
    struct segment segments[4];
    unsigned count = 1 + (shape & 3), queue = (shape >> 2) % d->vdev->queue_count;
    if (d->queues[queue].size < 4)
        return;
    for (unsigned i = 0; i < count; i++, value >>= 16) {
        segments[i] = (struct segment){FUZZ_DATA + 64 * (value >> 8 & 0xff), sizes[value & 7], (value & 8) != 0};
        /* Often the outer framing is right, so that what is inside is reached. */
        if ((shape & 0x100) != 0)
            segments[i].writable = i > 0 && (i + 1 == count || (shape & 0x200) != 0);
    }
    if ((shape & 0x400) != 0) {
        /* A disk request's header: read, write, flush, id, discard, write zeroes (§5.2.6); to others it is just
         * bytes. */
        static const uint8_t types[] = {0, 1, 4, 8, 11, 13, 2, 5};
        uint8_t header[16] = {types[shape >> 11 & 7], [8] = (uint8_t)(shape >> 14)};
        memcpy(driver_at(d, segments[0].gpa, sizeof header), header, sizeof header);
        segments[0].size = sizeof header;
    }
    driver_add(d, queue, segments, count);
    driver_kick(d, queue);
}

/* Do what @data says to @d; returns when it is used up. */
static inline void fuzz_run(struct driver *d, const uint8_t *data, size_t size)
{
    struct bytes_reader in = bytes_reader(data, size);
    struct bytes_reader rest = in;
    for (unsigned i = 0; i < FUZZ_OPERATIONS_MAX; i++) {
        const uint8_t *op = bytes_get(&rest, FUZZ_OPERATION_BYTES);
        if (op == NULL || op[0] % FUZZ_OPERATIONS == FUZZ_END)
            break;
    }
    if (!rest.bad) {
        size_t fill = MIN(bytes_left(&rest), (size_t)1 << 16);
        memcpy(driver_at(d, 0, 1 << 16), bytes_get(&rest, fill), fill);
    }
    for (unsigned i = 0; i < FUZZ_OPERATIONS_MAX; i++) {
        uint8_t operation = bytes_get_u8(&in) % FUZZ_OPERATIONS;
        unsigned width = 1u << (bytes_get_u8(&in) & 3);
        uint16_t at = bytes_get_u16(&in);
        uint64_t value = bytes_get_u64(&in);
        if (in.bad)
            return;
        switch ((enum fuzz_operation)operation) {
        case FUZZ_KICK:
            driver_kick(d, at % d->vdev->queue_count);
            break;
        case FUZZ_TURN:
            io_loop_run_once(d->m->loop, 0);
            break;
        case FUZZ_BAR_READ:
            driver_read(d, at % VIRTIO_PCI_BAR_BYTES & ~(width - 1u), width);
            break;
        case FUZZ_BAR_WRITE:
            driver_write(d, at % VIRTIO_PCI_BAR_BYTES & ~(width - 1u), width, value);
            break;
        case FUZZ_CONFIG_READ:
            driver_config_read(d, at % 256 & ~3u, 4);
            break;
        case FUZZ_CONFIG_WRITE:
            /* Not the BAR: a driver that has lost its device has nothing more to do. */
            if (at % 256 < 0x10 || at % 256 >= 0x28)
                driver_config_write(d, at % 256 & ~(MIN(width, 4u) - 1u), MIN(width, 4u), (uint32_t)value);
            break;
        case FUZZ_MEMORY_WRITE:
            memcpy(driver_at(d, at, 8), &value, width);
            break;
        case FUZZ_START:
            d->free_gpa = FUZZ_RINGS;
            driver_start(d, value, (uint16_t)(1u << (at % 6)));
            break;
        case FUZZ_PAUSE_SAVE_RESUME:
            fuzz_save(d);
            break;
        case FUZZ_REQUEST:
            fuzz_request(d, at, value);
            break;
        case FUZZ_LOAD_CHANGED:
            fuzz_load_changed(d, at, value);
            break;
        case FUZZ_END:
        case FUZZ_OPERATIONS:
            return;
        }
    }
}

/* Rings as a driver would set them up, then overwritten by the input: gets past the outer checks at once. */
static inline void fuzz_start(struct driver *d, const uint8_t *data, size_t size)
{
    d->free_gpa = FUZZ_RINGS;
    driver_start(d, size > 0 && data[0] & 0x80 ? 0 : UINT64_MAX, 16);
}

#endif
