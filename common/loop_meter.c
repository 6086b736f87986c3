/* Turns of a loop, measured; see the header. libuv tells the time that it has waited since 1.39, and counts no wait at
 * all where events were there already. */
#include "common/loop_meter.h"

#include <time.h>

const uint64_t loop_meter_bounds_us[LOOP_METER_BUCKETS] = {500,   1000,  2000,  3000,   5000,   7000,   10000,  15000,
                                                           20000, 30000, 50000, 100000, 200000, 500000, 1000000};

static uint64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void loop_meter_record(struct loop_meter *meter, uint64_t now_us, uint64_t us, uint64_t cpu)
{
    struct loop_meter_counts *counts = &meter->counts;
    uint64_t number = now_us / LOOP_METER_SLOT_US;
    unsigned bucket = 0, slot = (unsigned)(number % LOOP_METER_SLOTS);
    while (bucket < LOOP_METER_BUCKETS && us > loop_meter_bounds_us[bucket])
        bucket++;
    counts->buckets[bucket]++;
    counts->turns++;
    counts->busy_us += us;
    counts->us_max = MAX(counts->us_max, us);
    counts->cpu_us_max = MAX(counts->cpu_us_max, cpu);
    if (meter->slot_number[slot] != number)
        meter->slot_us_max[slot] = 0;
    meter->slot_number[slot] = number;
    meter->slot_us_max[slot] = MAX(meter->slot_us_max[slot], us);
}

struct loop_meter_counts loop_meter_counts(const struct loop_meter *meter, uint64_t now_us)
{
    struct loop_meter_counts counts = meter->counts;
    uint64_t number = now_us / LOOP_METER_SLOT_US;
    for (unsigned slot = 0; slot < LOOP_METER_SLOTS; slot++)
        if (meter->slot_number[slot] + LOOP_METER_SLOTS > number)
            counts.recent_us_max = MAX(counts.recent_us_max, meter->slot_us_max[slot]);
    return counts;
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct loop_meter *meter = prepare->data;
    uint64_t now = uv_hrtime() / 1000, idle = uv_metrics_idle_time(prepare->loop) / 1000, cpu = cpu_us();
    if (meter->begin_us != 0) {
        uint64_t all = now - meter->begin_us, waited = idle - meter->begin_idle_us;
        loop_meter_record(meter, now, all > waited ? all - waited : 0, cpu - meter->begin_cpu_us);
    }
    meter->begin_us = now;
    meter->begin_idle_us = idle;
    meter->begin_cpu_us = cpu;
}

int loop_meter_start(struct loop_meter *meter, uv_loop_t *loop)
{
    *meter = (struct loop_meter){.begin_us = 0};
    int rc = uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
    if (rc == 0)
        rc = uv_prepare_init(loop, &meter->prepare);
    if (rc < 0)
        return rc;
    meter->prepare.data = meter;
    uv_prepare_start(&meter->prepare, on_prepare);
    uv_unref((uv_handle_t *)&meter->prepare);
    return 0;
}

void loop_meter_stop(struct loop_meter *meter)
{
    uv_close((uv_handle_t *)&meter->prepare, NULL);
}

/* --- text --- */

static void put_seconds(struct bytes_writer *out, uint64_t us)
{
    bytes_put_format(out, "%llu.%06llu", (unsigned long long)(us / 1000000), (unsigned long long)(us % 1000000));
}

static void put_histogram(struct bytes_writer *out, const char *name, const struct loop_meter_counts *counts)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i <= LOOP_METER_BUCKETS; i++) {
        sum += counts->buckets[i];
        bytes_put_format(out, "drover_loop_turn_seconds_bucket{loop=\"%s\",le=\"", name);
        if (i < LOOP_METER_BUCKETS)
            put_seconds(out, loop_meter_bounds_us[i]);
        else
            bytes_put_text(out, "+Inf");
        bytes_put_format(out, "\"} %llu\n", (unsigned long long)sum);
    }
    bytes_put_format(out, "drover_loop_turn_seconds_sum{loop=\"%s\"} ", name);
    put_seconds(out, counts->busy_us);
    bytes_put_format(out, "\ndrover_loop_turn_seconds_count{loop=\"%s\"} %llu\n", name,
                     (unsigned long long)counts->turns);
}

static void put_gauge(struct bytes_writer *out, const char *metric, const char *help, const char *const names[],
                      const struct loop_meter_counts counts[], size_t count, size_t offset)
{
    bytes_put_format(out, "# HELP %s %s\n# TYPE %s gauge\n", metric, help, metric);
    for (size_t i = 0; i < count; i++) {
        const uint64_t *value = (const void *)((const char *)&counts[i] + offset);
        bytes_put_format(out, "%s{loop=\"%s\"} %llu\n", metric, names[i], (unsigned long long)*value);
    }
}

void loop_meter_put(struct bytes_writer *out, const char *const names[], const struct loop_meter_counts counts[],
                    size_t count)
{
    bytes_put_text(out, "# HELP drover_loop_turn_seconds Time from one wait of a loop to the next: all other events wait.\n"
                        "# TYPE drover_loop_turn_seconds histogram\n");
    for (size_t i = 0; i < count; i++)
        put_histogram(out, names[i], &counts[i]);
    put_gauge(out, "drover_loop_turn_microseconds_max", "The longest turn since the start.", names, counts, count,
              offsetof(struct loop_meter_counts, us_max));
    put_gauge(out, "drover_loop_turn_cpu_microseconds_max", "The longest by processor time.", names, counts, count,
              offsetof(struct loop_meter_counts, cpu_us_max));
    put_gauge(out, "drover_loop_turn_recent_microseconds_max", "The longest turn of the last minute.", names, counts,
              count, offsetof(struct loop_meter_counts, recent_us_max));
}
