/* Conditions of drills; see the header. */
#include "cli/drill_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/drill_text.h"

#define CPU_RATIO_PERCENT 400 /* where a host says none: the scheduler's own */
#define MEMORY_RESERVE_BYTES (INT64_C(512) << 20) /* where a host says none, this or a tenth: the scheduler's own */
#define VOTERS_MIN 3

static int64_t reserve(const json_t *host)
{
    return json_object_get(host, "memory_reserve_bytes") != NULL ? json_number(host, "memory_reserve_bytes")
                                                                  : MIN(MEMORY_RESERVE_BYTES, json_number(host, "memory_bytes") / 10);
}

json_t *drill_check_ha_vms(const json_t *vms, const char *host)
{
    json_t *found = json_array();
    const json_t *vm;
    size_t i;
    json_array_foreach(vms, i, vm)
        if (json_is_true(json_object_get(vm, "ha")) && strcmp(json_text(vm, "state"), "running") == 0 &&
            (host == NULL || strcmp(json_text(vm, "host_name"), host) == 0))
            json_array_append(found, (json_t *)(uintptr_t)vm);
    return found;
}

const char *drill_check_choose_host(const json_t *hosts, const json_t *vms)
{
    const char *chosen = NULL;
    size_t fewest = 0, i;
    const json_t *host;
    json_array_foreach(hosts, i, host)
    {
        json_t *its = drill_check_ha_vms(vms, json_text(host, "name"));
        size_t count = json_array_size(its);
        json_decref(its);
        if (count == 0 || strcmp(json_text(host, "state"), "up") != 0 || (chosen != NULL && count >= fewest))
            continue;
        chosen = json_text(host, "name");
        fewest = count;
    }
    return chosen;
}

/* ---- room ---- */

struct room {
    const char *name;
    int64_t memory_bytes, vcpus;
};

struct load {
    const char *name;
    int64_t memory_bytes, vcpus;
};

static int by_size(const void *a, const void *b)
{
    const struct load *x = a, *y = b;
    return x->memory_bytes < y->memory_bytes ? 1 : x->memory_bytes > y->memory_bytes ? -1 : 0;
}

static size_t find_rooms(const json_t *hosts, const char *but, struct room *rooms)
{
    const json_t *h;
    size_t count = 0, i;
    json_array_foreach(hosts, i, h)
    {
        int64_t ratio = json_number(h, "cpu_ratio_percent");
        if (strcmp(json_text(h, "name"), but) == 0 || strcmp(json_text(h, "state"), "up") != 0 ||
            json_is_false(json_object_get(h, "schedulable")) || json_is_true(json_object_get(h, "draining")))
            continue;
        rooms[count++] = (struct room){
            .name = json_text(h, "name"),
            .memory_bytes = json_number(h, "memory_bytes") - reserve(h) - json_number(h, "committed_memory_bytes"),
            .vcpus = json_number(h, "cpus") * (ratio > 0 ? ratio : CPU_RATIO_PERCENT) / 100 - json_number(h, "committed_vcpus"),
        };
    }
    return count;
}

static bool place(struct room *rooms, size_t count, const struct load *load)
{
    struct room *best = NULL;
    for (size_t i = 0; i < count; i++)
        if (rooms[i].memory_bytes >= load->memory_bytes && rooms[i].vcpus >= load->vcpus &&
            (best == NULL || rooms[i].memory_bytes > best->memory_bytes))
            best = &rooms[i];
    if (best == NULL)
        return false;
    best->memory_bytes -= load->memory_bytes;
    best->vcpus -= load->vcpus;
    return true;
}

bool drill_check_room(const json_t *hosts, const json_t *vms, const char *host, char *detail, size_t detail_size)
{
    size_t count = json_array_size(vms), i;
    CLEANUP_FREE struct room *rooms = xcalloc(json_array_size(hosts) + 1, sizeof *rooms);
    CLEANUP_FREE struct load *loads = xcalloc(count + 1, sizeof *loads);
    size_t room_count = find_rooms(hosts, host, rooms);
    const json_t *vm;
    json_array_foreach(vms, i, vm) loads[i] =
        (struct load){.name = json_text(vm, "name"), .memory_bytes = json_number(vm, "memory_bytes"), .vcpus = json_number(vm, "vcpus")};
    qsort(loads, count, sizeof *loads, by_size);
    for (i = 0; i < count; i++)
        if (!place(rooms, room_count, &loads[i])) {
            snprintf(detail, detail_size, "no other host has room for VM %s (%" PRId64 " MiB, %" PRId64 " vCPUs)%s", loads[i].name,
                     loads[i].memory_bytes >> 20, loads[i].vcpus, i > 0 ? " once the larger ones are placed" : "");
            return false;
        }
    snprintf(detail, detail_size, "%zu other hosts have room for its %zu VMs with ha", room_count, count);
    return true;
}

/* ---- conditions ---- */

static void put(json_t *checks, bool *all, const char *what, bool ok, const char *detail)
{
    json_array_append_new(checks, json_pack("{s:s, s:b, s:s}", "check", what, "ok", ok, "detail", detail));
    *all = *all && ok;
}

static size_t count_where(const json_t *list, const char *field, const char *value)
{
    const json_t *o;
    size_t n = 0, i;
    json_array_foreach(list, i, o) n += strcmp(json_text(o, field), value) == 0;
    return n;
}

static void check_host(const struct drill_check_input *in, json_t *checks, bool *ok)
{
    char detail[400];
    const json_t *h, *found = NULL;
    size_t i;
    json_array_foreach(in->hosts, i, h)
        if (strcmp(json_text(h, "name"), in->host) == 0)
            found = h;
    snprintf(detail, sizeof detail, "%s%s", found != NULL ? "" : "there is no host ", in->host);
    put(checks, ok, "host", found != NULL, detail);
    bool armed = found != NULL && !json_is_true(json_object_get(found, "ha_disarmed"));
    put(checks, ok, "host armed", armed, armed ? "it can be declared lost" : "`drover host arm` first");
    json_t *vms = drill_check_ha_vms(in->vms, in->host);
    bool room = drill_check_room(in->hosts, vms, in->host, detail, sizeof detail);
    put(checks, ok, "room for one host less", room, detail);
    json_decref(vms);
}

json_t *drill_check(const struct drill_check_input *in, bool *ret_ok)
{
    char detail[400];
    json_t *checks = json_array();
    size_t voters = count_where(in->controllers, "role", "voter"), up = count_where(in->hosts, "state", "up");
    size_t hosts = json_array_size(in->hosts), running = json_array_size(in->operations);
    bool ok = true;
    snprintf(detail, sizeof detail, "%zu controllers have a vote%s", voters, voters < VOTERS_MIN ? ": a drill needs three" : "");
    if (!in->calm)
        put(checks, &ok, "controllers", voters >= VOTERS_MIN, detail);
    snprintf(detail, sizeof detail, "%zu of %zu are up", up, hosts);
    put(checks, &ok, "hosts", up == hosts && hosts > 0, detail);
    bool armed = !json_is_true(json_object_get(in->cluster, "ha_disarmed"));
    if (!in->calm)
        put(checks, &ok, "ha armed", armed, armed ? "yes" : "`drover ha arm` first");
    snprintf(detail, sizeof detail, running == 0 ? "none" : "%zu: wait for their end (`drover operation list`)", running);
    put(checks, &ok, "operations under way", running == 0, detail);
    if (in->host != NULL)
        check_host(in, checks, &ok);
    if (in->needs_ha_vm) {
        json_t *vms = drill_check_ha_vms(in->vms, in->host);
        size_t count = json_array_size(vms);
        snprintf(detail, sizeof detail, "%zu%s", count,
                 count > 0 ? "" : ": there would be nothing to see; make one (`drover vm create NAME --ha ...`)");
        put(checks, &ok, "VMs with ha that run", count > 0, detail);
        json_decref(vms);
    }
    *ret_ok = ok;
    return checks;
}
