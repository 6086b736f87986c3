/* The page that a VM's VMM obeys: 8 bytes, little-endian, the deadline of the host's lease in nanoseconds of CLOCK_BOOTTIME;
 * 0 = no lease rules the VM, 1 = it may not run. Shared memory of a file that the VMM can only read, on a file system in
 * memory: a write to it must never wait for a disk.
 *
 *   lease_page_open   when a VMM is to be started: made anew
 *   lease_page_adopt  when one was found running: the page that it obeys, as it is
 *   lease_page_put    one atomic store
 *
 * The file outlives the agent, and what is in it is obeyed until it runs out. One thread. */
#ifndef COMPUTE_AGENT_LEASE_PAGE_H
#define COMPUTE_AGENT_LEASE_PAGE_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

struct lease_page {
    uint64_t *word; /* NULL: not open */
};

/* Map @path; where it is missing make it, with @value in it; a page that is there keeps its place (a VMM may have it mapped)
 * and gets the value. */
int lease_page_open(struct lease_page *page, const char *path, uint64_t value, struct error *err);
/* Map what process @pid has mapped of the file that was made as @path, also where its name is gone or another file has it
 * (proc(5), /proc/pid/map_files: CAP_SYS_ADMIN); @path itself where the process has not come to that yet. -ENOENT: there is
 * neither. */
int lease_page_adopt(struct lease_page *page, const char *path, pid_t pid, struct error *err);
void lease_page_put(struct lease_page *page, uint64_t value); /* nothing where it is not open */
uint64_t lease_page_get(const struct lease_page *page);
void lease_page_close(struct lease_page *page); /* zeroed is fine; the file stays */

#endif
