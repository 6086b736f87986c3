/* Counters of the API as Prometheus text. */
#include "controller/api/api_metrics.h"

#include <string.h>

static const uint64_t bounds_us[API_METRICS_BUCKETS] = {250,   500,   1000,   2000,   5000,    10000,
                                                        25000, 50000, 100000, 250000, 1000000, 5000000};
static const char *const class_names[] = {"read", "write", "report"};

void api_metrics_count(struct api_metrics *metrics, const struct route_desc *route, int status)
{
    unsigned class = status >= 100 && status < 600 ? (unsigned)status / 100 : 0;
    metrics->requests[route != NULL ? route->id : ROUTE_COUNT][class]++;
}

static enum api_metrics_class class_of(const struct route_desc *route)
{
    if (route->id == ROUTE_ID_node_report)
        return API_METRICS_REPORT;
    return route->method == ROUTE_GET ? API_METRICS_READ : API_METRICS_WRITE;
}

void api_metrics_time(struct api_metrics *metrics, const struct route_desc *route, uint64_t us)
{
    enum api_metrics_class class = class_of(route);
    unsigned i = 0;
    while (i < API_METRICS_BUCKETS && us > bounds_us[i])
        i++;
    metrics->latency[class].buckets[i]++;
    metrics->latency[class].count++;
    metrics->latency[class].sum_us += us;
}

void api_metrics_put(struct bytes_writer *out, const char *name, const char *type, const char *help, uint64_t value)
{
    bytes_put_format(out, "# HELP %s %s\n# TYPE %s %s\n%s %llu\n", name, help, name, type, name,
                     (unsigned long long)value);
}

static void put_requests(const struct api_metrics *metrics, struct bytes_writer *out)
{
    static const char *const classes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
    bytes_put_text(out, "# HELP drover_api_requests_total Requests by route and kind of answer.\n"
                        "# TYPE drover_api_requests_total counter\n");
    for (unsigned route = 0; route <= ROUTE_COUNT; route++)
        for (unsigned class = 0; class < ARRAY_SIZE(classes); class ++)
            if (metrics->requests[route][class] > 0)
                bytes_put_format(out, "drover_api_requests_total{route=\"%s\",status=\"%s\"} %llu\n",
                                 route < ROUTE_COUNT ? schema_routes[route].symbol : "none", classes[class],
                                 (unsigned long long)metrics->requests[route][class]);
    uint64_t forwarded = 0;
    for (unsigned route = 0; route < ROUTE_COUNT; route++)
        forwarded += metrics->forwarded[route];
    api_metrics_put(out, "drover_api_forwarded_total", "counter", "Requests handed on to the leader.", forwarded);
}

static void put_latencies(const struct api_metrics *metrics, struct bytes_writer *out)
{
    bytes_put_text(out, "# HELP drover_api_request_seconds Time from a whole request to its answer, waits excluded.\n"
                        "# TYPE drover_api_request_seconds histogram\n");
    for (unsigned class = 0; class < API_METRICS_CLASSES; class ++) {
        uint64_t sum = 0;
        for (unsigned i = 0; i <= API_METRICS_BUCKETS; i++) {
            sum += metrics->latency[class].buckets[i];
            bytes_put_format(out, "drover_api_request_seconds_bucket{class=\"%s\",le=\"", class_names[class]);
            if (i < API_METRICS_BUCKETS)
                bytes_put_format(out, "%llu.%06llu", (unsigned long long)(bounds_us[i] / 1000000),
                                 (unsigned long long)(bounds_us[i] % 1000000));
            else
                bytes_put_text(out, "+Inf");
            bytes_put_format(out, "\"} %llu\n", (unsigned long long)sum);
        }
        bytes_put_format(out, "drover_api_request_seconds_sum{class=\"%s\"} %llu.%06llu\n", class_names[class],
                         (unsigned long long)(metrics->latency[class].sum_us / 1000000),
                         (unsigned long long)(metrics->latency[class].sum_us % 1000000));
        bytes_put_format(out, "drover_api_request_seconds_count{class=\"%s\"} %llu\n", class_names[class],
                         (unsigned long long)metrics->latency[class].count);
    }
}

void api_metrics_text(const struct api_metrics *metrics, struct bytes_writer *out)
{
    put_requests(metrics, out);
    put_latencies(metrics, out);
    api_metrics_put(out, "drover_api_unknown_outcomes_total", "counter", "Writes answered with unknown-outcome.",
                    metrics->unknown_outcomes);
    api_metrics_put(out, "drover_api_retries_total", "counter", "Requests tried again after a change of leader.",
                    metrics->retries);
    api_metrics_put(out, "drover_api_replays_total", "counter", "Repeats answered from an Idempotency-Key.",
                    metrics->replays);
    api_metrics_put(out, "drover_api_watchers_cut_total", "counter", "Watchers cut off because they read too slowly.",
                    metrics->watchers_cut);
    api_metrics_put(out, "drover_reconcile_ticks_total", "counter", "Runs of the reconciler.",
                    metrics->reconcile_ticks);
    api_metrics_put(out, "drover_reconcile_commands_total", "counter", "Commands that the reconciler proposed.",
                    metrics->reconcile_commands);
    api_metrics_put(out, "drover_reconcile_microseconds_total", "counter", "Time in the reconciler.",
                    metrics->reconcile_us);
    api_metrics_put(out, "drover_reconcile_microseconds_max", "gauge", "Longest run of the reconciler.",
                    metrics->reconcile_us_max);
}
