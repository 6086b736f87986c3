/* The host's lease as this VM sees it: one shared page that the agent writes and the VMM obeys.
 *
 * The page (a file or memfd of at least 8 bytes) begins with a 64-bit little-endian deadline in CLOCK_BOOTTIME
 * nanoseconds, written with one atomic store; 0 means that no lease rules this VM. The watching thread pauses the
 * vCPUs LEASE_MARGIN_NS before the deadline; submission of disk and network I/O asks lease_allows_io() itself, so
 * that a thread which wakes late writes nothing. */
#ifndef COMPUTE_VMM_LEASE_H
#define COMPUTE_VMM_LEASE_H

#include "common/base.h"
#include "common/error.h"

#define LEASE_MARGIN_NS 500000000ull

struct lease {
    const uint64_t *page; /* mapped shared, read-only; NULL: no lease */
};

/* Map @path; -ENOENT and others in words. */
int lease_init(struct lease *l, const char *path, struct error *err);
void lease_finish(struct lease *l);
/* The deadline that holds now, 0 for none. */
uint64_t lease_deadline_ns(const struct lease *l);
/* May this VM touch disks and network at this instant? True without a lease; @l may be NULL. Any thread. */
bool lease_allows_io(const struct lease *l);

#endif
