/* An address space -- ports or memory -- and who answers where. Ranges never overlap; what nobody claims reads all
 * ones and swallows writes, as on a real board.
 *
 * bus_read and bus_write are called by vCPU threads. They take the device lock around the handler unless its range
 * was added with BUS_LOCKLESS. bus_add and bus_remove: with the device lock held, or before vCPUs run. */
#ifndef COMPUTE_VMM_BUS_H
#define COMPUTE_VMM_BUS_H

#include <pthread.h>

#include "common/base.h"
#include "common/error.h"

#define BUS_RANGES_MAX 256

/* @offset within the range; @size 1, 2, 4 or 8, never reaching past the range's end. */
typedef uint64_t (*bus_read_fn)(void *arg, uint64_t offset, unsigned size);
typedef void (*bus_write_fn)(void *arg, uint64_t offset, unsigned size, uint64_t value);

enum { BUS_LOCKLESS = 1 }; /* the handlers are safe from any thread at once: no device lock for them */

struct bus_range {
    uint64_t start, size;
    unsigned flags;
    bus_read_fn read;   /* NULL: reads all ones */
    bus_write_fn write; /* NULL: ignored */
    void *arg;
};

struct bus {
    pthread_rwlock_t table_lock; /* guards ranges; never held while a handler runs */
    pthread_mutex_t *device_lock;
    size_t count;
    struct bus_range ranges[BUS_RANGES_MAX]; /* ascending by start */
    uint64_t unclaimed;                      /* accesses that nobody answered (atomic) */
};

/* @device_lock: the machine's, recursive not required; NULL in tests of one thread. */
void bus_init(struct bus *b, pthread_mutex_t *device_lock);
void bus_finish(struct bus *b);
/* -EEXIST when it would overlap a range that is there, -EINVAL for size 0 or an end past 2^64, -ENOSPC. */
int bus_add(struct bus *b, const struct bus_range *range, struct error *err);
/* Take away the range that begins at @start; nothing happens where there is none. */
void bus_remove(struct bus *b, uint64_t start);
uint64_t bus_read(struct bus *b, uint64_t address, unsigned size);
void bus_write(struct bus *b, uint64_t address, unsigned size, uint64_t value);

#endif
