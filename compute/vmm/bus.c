/* Address spaces: a short sorted table, found by bisection. */
#include "compute/vmm/bus.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

void bus_init(struct bus *b, pthread_mutex_t *device_lock)
{
    memset(b, 0, sizeof(*b));
    b->device_lock = device_lock;
    ASSERT(pthread_rwlock_init(&b->table_lock, NULL) == 0);
}

void bus_finish(struct bus *b)
{
    pthread_rwlock_destroy(&b->table_lock);
}

/* How many ranges begin at or below @address. */
static size_t ranges_up_to(const struct bus *b, uint64_t address)
{
    size_t low = 0, high = b->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (b->ranges[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int range_insert(struct bus *b, const struct bus_range *range, struct error *err)
{
    uint64_t last = range->start + range->size - 1;
    if (b->count == BUS_RANGES_MAX)
        return error_set(err, -ENOSPC, ERROR_INTERNAL, "more than %d ranges on one bus", BUS_RANGES_MAX);
    size_t at = ranges_up_to(b, last);
    if (at > 0 && b->ranges[at - 1].start + (b->ranges[at - 1].size - 1) >= range->start)
        return error_set(err, -EEXIST, ERROR_CONFLICT,
                         "range %#" PRIx64 "-%#" PRIx64 " overlaps the one at %#" PRIx64, range->start, last,
                         b->ranges[at - 1].start);
    memmove(&b->ranges[at + 1], &b->ranges[at], (b->count - at) * sizeof(b->ranges[0]));
    b->ranges[at] = *range;
    b->count++;
    return 0;
}

int bus_add(struct bus *b, const struct bus_range *range, struct error *err)
{
    if (range->size == 0 || range->start + (range->size - 1) < range->start)
        return error_set(err, -EINVAL, ERROR_INVALID, "range at %#" PRIx64 " of size %#" PRIx64 " is not possible",
                         range->start, range->size);
    pthread_rwlock_wrlock(&b->table_lock);
    int code = range_insert(b, range, err);
    pthread_rwlock_unlock(&b->table_lock);
    return code;
}

void bus_remove(struct bus *b, uint64_t start)
{
    pthread_rwlock_wrlock(&b->table_lock);
    size_t at = ranges_up_to(b, start);
    if (at > 0 && b->ranges[at - 1].start == start) {
        memmove(&b->ranges[at - 1], &b->ranges[at], (b->count - at) * sizeof(b->ranges[0]));
        b->count--;
    }
    pthread_rwlock_unlock(&b->table_lock);
}

/* The range that answers the whole access. */
static bool range_find(struct bus *b, uint64_t address, unsigned size, struct bus_range *ret_range)
{
    bool found = false;
    pthread_rwlock_rdlock(&b->table_lock);
    size_t at = ranges_up_to(b, address);
    if (at > 0) {
        const struct bus_range *r = &b->ranges[at - 1];
        if (address - r->start < r->size && size <= r->size - (address - r->start)) {
            *ret_range = *r;
            found = true;
        }
    }
    pthread_rwlock_unlock(&b->table_lock);
    return found;
}

/* Take the device lock, then look again: the range may have moved while we waited for it. */
static bool range_enter(struct bus *b, uint64_t address, unsigned size, struct bus_range *ret_range, bool *ret_locked)
{
    *ret_locked = false;
    if (range_find(b, address, size, ret_range)) {
        if ((ret_range->flags & BUS_LOCKLESS) || !b->device_lock)
            return true;
        pthread_mutex_lock(b->device_lock);
        if (range_find(b, address, size, ret_range)) {
            *ret_locked = true;
            return true;
        }
        pthread_mutex_unlock(b->device_lock);
    }
    __atomic_fetch_add(&b->unclaimed, 1, __ATOMIC_RELAXED);
    return false;
}

uint64_t bus_read(struct bus *b, uint64_t address, unsigned size)
{
    struct bus_range range;
    bool locked;
    uint64_t ones = size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
    if (!range_enter(b, address, size, &range, &locked))
        return ones;
    uint64_t value = range.read ? range.read(range.arg, address - range.start, size) & ones : ones;
    if (locked)
        pthread_mutex_unlock(b->device_lock);
    return value;
}

void bus_write(struct bus *b, uint64_t address, unsigned size, uint64_t value)
{
    struct bus_range range;
    bool locked;
    if (!range_enter(b, address, size, &range, &locked))
        return;
    if (range.write)
        range.write(range.arg, address - range.start, size, value);
    if (locked)
        pthread_mutex_unlock(b->device_lock);
}
