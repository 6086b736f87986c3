/* The agent's HTTPS interface, for controllers: consoles, images, metrics, health; and for other agents: images.
 *
 *   GET /v1/images/<sha256>/stream   an image that is here, to another agent (image_serve.h)
 *   GET /v1/images/<sha256>          the same as plain bytes, for a person
 *   HEAD, PATCH /v1/uploads/<image>  an upload (image_upload.h)
 *   GET /v1/vms/<id>/console   WebSocket, binary messages both ways
 *   POST /v1/drill             fall silent for a while (agent_drill.h)
 *   GET /v1/observation        what each VMM has executed
 *   GET /metrics               Prometheus text
 *   GET /healthz               200 while the loop turns
 *
 * A certificate of the cluster with the role controller is needed for all of it, or for images that of a host. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/http_server.h"
#include "compute/agent/agent.h"
#include "compute/agent/console_bridge.h"
#include "schema/upload_protocol.h"

#define VMS_PATH "/v1/vms/"
#define ID_LENGTH 36

static void put_metric_head(struct bytes_writer *out, const char *name, const char *type, const char *help)
{
    bytes_put_format(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_host_metrics(struct agent *a, struct bytes_writer *out)
{
    const struct session_counters *session = session_counters(a->session);
    put_metric_head(out, "drover_host_memory_bytes", "gauge", "Memory of the host.");
    bytes_put_format(out, "drover_host_memory_bytes %llu\n", (unsigned long long)a->facts.memory_bytes);
    put_metric_head(out, "drover_host_disk_bytes", "gauge", "Size of the file system that holds disks.");
    bytes_put_format(out, "drover_host_disk_bytes %llu\n", (unsigned long long)a->facts.disk_bytes);
    put_metric_head(out, "drover_host_disk_free_bytes", "gauge", "Free room on it.");
    bytes_put_format(out, "drover_host_disk_free_bytes %llu\n", (unsigned long long)a->facts.disk_free_bytes);
    put_metric_head(out, "drover_agent_reports_total", "counter", "Reports sent to controllers.");
    bytes_put_format(out, "drover_agent_reports_total %llu\n", (unsigned long long)session->reports);
    put_metric_head(out, "drover_agent_report_failures_total", "counter", "Reports without an answer.");
    bytes_put_format(out, "drover_agent_report_failures_total %llu\n", (unsigned long long)session->failures);
    put_metric_head(out, "drover_agent_connected", "gauge", "1 while a controller answers.");
    bytes_put_format(out, "drover_agent_connected %d\n", session->connected);
}

static void put_migration_metrics(const struct agent *a, struct bytes_writer *out)
{
    const struct agent_migrations *m = &a->migrations;
    const struct {
        const char *name, *type, *help;
        uint64_t value;
    } rows[] = {
        {"drover_migrations_out_total", "counter", "VMs that were migrated from here.", m->out_total},
        {"drover_migrations_out_failed_total", "counter", "Migrations from here that failed or were cancelled.", m->out_failed_total},
        {"drover_migrations_in_total", "counter", "Migrations to here that were begun.", m->in_total},
        {"drover_migrations_in_postcopy_total", "counter", "Of these, in which the VM ran here before all of its memory was here.", m->in_lacking_total},
        {"drover_migrations_in_postcopy_lost_total", "counter", "Of these, in which what ran was lost, for not all of its memory came.", m->in_lost_total},
        {"drover_migrations_bytes_total", "counter", "What migrations from here have sent.", m->bytes_total},
        {"drover_migrations_downtime_microseconds_total", "counter", "How long VMs stood still for migrations from here.",
         m->downtime_us_total},
        {"drover_migrations_downtime_microseconds_max", "gauge", "The longest of these.", m->downtime_us_max},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        put_metric_head(out, rows[i].name, rows[i].type, rows[i].help);
        bytes_put_format(out, "%s %llu\n", rows[i].name, (unsigned long long)rows[i].value);
    }
}

/* One line for each VM; names of VMs have no characters that would have to be escaped (FORMAT_name). */
static void put_vm_metric(struct agent *a, struct bytes_writer *out, const char *name,
                          void (*put)(const struct local_vm *vm, struct bytes_writer *out))
{
    struct local_vm *vm;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;) {
        bytes_put_format(out, "%s{vm=\"%s\",id=\"%s\"} ", name, vm_order_of(vm)->name, vm_id(vm));
        put(vm, out);
    }
}

static void put_cpu(const struct local_vm *vm, struct bytes_writer *out)
{
    struct vmm_process_usage usage = {.cpu_ms = 0};
    vm_usage(vm, &usage);
    bytes_put_format(out, "%llu.%03u\n", (unsigned long long)(usage.cpu_ms / 1000), (unsigned)(usage.cpu_ms % 1000));
}

static void put_rss(const struct local_vm *vm, struct bytes_writer *out)
{
    struct vmm_process_usage usage = {.rss_bytes = 0};
    vm_usage(vm, &usage);
    bytes_put_format(out, "%llu\n", (unsigned long long)usage.rss_bytes);
}

static void put_running(const struct local_vm *vm, struct bytes_writer *out)
{
    bytes_put_format(out, "%d\n", vm_state_of(vm) == vm_state_RUNNING);
}

static void put_restarts(const struct local_vm *vm, struct bytes_writer *out)
{
    bytes_put_format(out, "%llu\n", (unsigned long long)vm_restarts(vm));
}

static void handle_metrics(struct agent *a, struct http_request *request)
{
    struct bytes_writer out = {.data = NULL};
    put_host_metrics(a, &out);
    put_migration_metrics(a, &out);
    put_metric_head(&out, "drover_vm_cpu_seconds_total", "counter", "Processor time of the VM's VMM and its vCPUs.");
    put_vm_metric(a, &out, "drover_vm_cpu_seconds_total", put_cpu);
    put_metric_head(&out, "drover_vm_resident_bytes", "gauge",
                    "Resident memory of the VM's VMM, guest memory included.");
    put_vm_metric(a, &out, "drover_vm_resident_bytes", put_rss);
    put_metric_head(&out, "drover_vm_running", "gauge", "1 while the VM runs.");
    put_vm_metric(a, &out, "drover_vm_running", put_running);
    put_metric_head(&out, "drover_vm_restarts_total", "counter", "Restarts by the agent.");
    put_vm_metric(a, &out, "drover_vm_restarts_total", put_restarts);
    http_respond_take(request, 200, "text/plain; version=0.0.4", NULL, out.data, out.size, free);
}

/* The VM's id in "/v1/vms/<id>/console"; NULL: another path. */
static struct local_vm *console_vm(struct agent *a, const char *path, bool *ret_is_console)
{
    const char *id = path + strlen(VMS_PATH);
    *ret_is_console = strncmp(path, VMS_PATH, strlen(VMS_PATH)) == 0 && strlen(id) > ID_LENGTH &&
                      strcmp(id + ID_LENGTH, "/console") == 0;
    return *ret_is_console ? map_get_n(&a->vms, id, ID_LENGTH) : NULL;
}

static void handle_console(struct agent *a, struct local_vm *vm, struct http_request *request)
{
    struct error err = {.code = 0};
    if (vm == NULL) {
        error_set(&err, -ENOENT, ERROR_NOT_FOUND, "this host has no such VM");
        http_respond_error(request, &err);
    } else if (vm_control_path(vm) == NULL) {
        error_set(&err, -ENOTCONN, ERROR_CONFLICT, "the VM does not run, so it has no console; start it");
        http_respond_error(request, &err);
    } else {
        console_bridge_start(request, vm_control_path(vm), &a->consoles);
    }
}

static bool is_of(const struct agent *a, const struct http_request *request, enum role role)
{
    char prefix[TLS_IDENTITY_MAX];
    snprintf(prefix, sizeof(prefix), "spiffe://drover/%s/%s/", a->identity.cluster_id, role_desc.names[role]);
    return tls_identity_matches(request->peer, prefix);
}

static void handle(struct http_request *request, void *arg)
{
    struct agent *a = arg;
    struct error err = {.code = 0};
    bool is_console, controller = is_of(a, request, role_CONTROLLER);
    struct local_vm *vm = console_vm(a, request->path, &is_console);
    if ((controller || is_of(a, request, role_HOST)) && agent_images_handle(a, request, controller))
        return;
    if (controller && agent_drill_handle(a, request))
        return;
    if (!controller)
        error_set(&err, -EACCES, ERROR_FORBIDDEN,
                  "only controllers of this cluster may talk to its agents; ask a controller");
    else if (request->method != HTTP_GET)
        error_set(&err, -EINVAL, ERROR_METHOD, "there is nothing here but GET");
    else if (is_console)
        return handle_console(a, vm, request);
    else if (strcmp(request->path, "/metrics") == 0 && a->session != NULL)
        return handle_metrics(a, request);
    else if (strcmp(request->path, "/healthz") == 0)
        return http_respond(request, 200, "text/plain", NULL, "ok\n", 3);
    else
        error_set(&err, -ENOENT, ERROR_NOT_FOUND, "there is /healthz, /metrics, /v1/observation, /v1/drill, /v1/images/<sha256> and /v1/vms/<id>/console");
    http_respond_error(request, &err);
}

int agent_server_start(struct agent *agent, const char *listen, struct error *err)
{
    const struct http_server_options options = {
        .address = listen,
        .tls = agent->tls,
        .client_check = TLS_CLIENT_REQUIRED,
        .limits = {.body_bytes_max = UPLOAD_PIECE_BYTES_MAX},
        .handler = handle,
        .arg = agent,
    };
    return http_server_start(agent->loop, &options, &agent->server, err);
}
