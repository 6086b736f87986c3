/* A limit on bytes a second, shared by all threads of a job that transfer. Each takes its bytes before it moves them,
 * in slices, and sleeps until they are due; what was not used is kept for a tenth of a second only. Any thread. */
#ifndef BACKUP_STORE_PACE_H
#define BACKUP_STORE_PACE_H

#include "common/base.h"

enum { STORE_PACE_SLICE_BYTES = 64 << 10 };

struct store_pace;
struct store_pace *store_pace_create(uint64_t bytes_per_s);
void store_pace_destroy(struct store_pace *pace); /* NULL is allowed */
/* Returns when @size bytes may go. NULL: at once. */
void store_pace_take(struct store_pace *pace, size_t size);
/* For tests, without sleeping: how long one that comes at @now_ns has to wait. */
uint64_t store_pace_due(struct store_pace *pace, size_t size, uint64_t now_ns);

#endif
