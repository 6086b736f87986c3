/* Counters of the API, and /metrics in Prometheus' text format. One thread, the API loop's. */
#ifndef CONTROLLER_API_API_METRICS_H
#define CONTROLLER_API_API_METRICS_H

#include "schema/routes.h"

#define API_METRICS_BUCKETS 12u

enum api_metrics_class { API_METRICS_READ, API_METRICS_WRITE, API_METRICS_REPORT, API_METRICS_CLASSES };

struct api_metrics {
    uint64_t requests[ROUTE_COUNT + 1][6]; /* by route (last: no route) and hundreds of the status; [0]: no answer */
    uint64_t forwarded[ROUTE_COUNT];
    struct {
        uint64_t buckets[API_METRICS_BUCKETS + 1]; /* the last one: longer than all bounds */
        uint64_t count, sum_us;
    } latency[API_METRICS_CLASSES];
    uint64_t unknown_outcomes, retries, replays;
    uint64_t reconcile_ticks, reconcile_commands, reconcile_us, reconcile_us_max;
    uint64_t watchers_cut;
};

/* @route NULL: the path or method was not known. */
void api_metrics_count(struct api_metrics *metrics, const struct route_desc *route, int status);
void api_metrics_time(struct api_metrics *metrics, const struct route_desc *route, uint64_t us);
/* The counters above as text; callers append gauges of their own with api_metrics_put. */
void api_metrics_text(const struct api_metrics *metrics, struct bytes_writer *out);
/* One number with its HELP and TYPE lines. @type: "counter" or "gauge". */
void api_metrics_put(struct bytes_writer *out, const char *name, const char *type, const char *help, uint64_t value);

#endif
