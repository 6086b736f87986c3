/* How long the turns of a uv loop take: the time from one wait to the next, in which every other event of the loop has to
 * wait. It is the longest stall that a client can see, whichever callback is to blame.
 *
 *   turn = time between two uv_prepare callbacks, less the time spent waiting in the kernel (uv_metrics_idle_time)
 *
 * Kept: a histogram, the longest since the start, the longest of the last minute. Beside the wall time of the longest
 * turn stands the longest by processor time: on a busy machine the difference is time that other programs had.
 *
 * Thread: the loop's own; loop_meter_counts as well (other threads get a copy by ways of the owner). */
#ifndef COMMON_LOOP_METER_H
#define COMMON_LOOP_METER_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/bytes.h"

#define LOOP_METER_BUCKETS 15u
#define LOOP_METER_SLOTS 6u
#define LOOP_METER_SLOT_US UINT64_C(10000000) /* six slots of ten seconds: the last minute, to the slot */

struct loop_meter_counts {
    uint64_t buckets[LOOP_METER_BUCKETS + 1]; /* turns by time, upper bounds loop_meter_bounds_us; the last: longer */
    uint64_t turns, busy_us;
    uint64_t us_max;        /* the longest turn since the start */
    uint64_t cpu_us_max;    /* the longest by processor time */
    uint64_t recent_us_max; /* the longest of the last minute */
};
extern const uint64_t loop_meter_bounds_us[LOOP_METER_BUCKETS];

struct loop_meter {
    uv_prepare_t prepare;
    uint64_t begin_us, begin_cpu_us, begin_idle_us; /* of the turn under way; begin_us 0: none yet */
    uint64_t slot_number[LOOP_METER_SLOTS], slot_us_max[LOOP_METER_SLOTS];
    struct loop_meter_counts counts;
};

/* Measure @loop, which must not run yet. Memory is the caller's and lasts until the loop has ended. Does not keep the
 * loop alive. 0 or a negative errno of libuv. */
int loop_meter_start(struct loop_meter *meter, uv_loop_t *loop);
void loop_meter_stop(struct loop_meter *meter); /* closes the handle */
struct loop_meter_counts loop_meter_counts(const struct loop_meter *meter, uint64_t now_us);
/* One turn that ended at @now_us (uv_hrtime / 1000). For loop_meter_start's callback and tests. */
void loop_meter_record(struct loop_meter *meter, uint64_t now_us, uint64_t us, uint64_t cpu_us);

/* Prometheus text of several loops: @names[i] becomes the label of @counts[i]. */
void loop_meter_put(struct bytes_writer *out, const char *const names[], const struct loop_meter_counts counts[],
                    size_t count);

#endif
