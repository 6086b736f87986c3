/* Conditions of drills; see the header. */
#include "cli/drill_check.h"

#include <stdio.h>
#include <string.h>

#include "cli/drill_text.h"

#define VOTERS_MIN 3

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

/* Would each of its VMs with ha be started elsewhere? With room, labels, pools and pins as the controllers look at them. */
static bool all_would_start(const json_t *loss, char *detail, size_t detail_size)
{
    const json_t *vm;
    size_t i;
    snprintf(detail, detail_size, "%s", loss != NULL ? json_text(loss, "summary") : "the controllers do not say what would happen");
    json_array_foreach(json_object_get(loss, "vms"), i, vm)
    {
        if (!json_is_true(json_object_get(vm, "ha")) || strcmp(json_text(vm, "outcome"), "started") == 0)
            continue;
        snprintf(detail, detail_size, "VM %s would not be started elsewhere: %s", json_text(vm, "vm"), json_text(vm, "reason"));
        return false;
    }
    return loss != NULL;
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
    bool room = all_would_start(in->loss, detail, sizeof detail);
    put(checks, ok, "room for one host less", room, detail);
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
