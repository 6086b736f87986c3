/* Drills that cut a host or a controller off, and slow a controller's disk down. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/drill_steps.h"
#include "cli/drill_text.h"

#define SLOW_DISK_MS 500 /* that each write of the log takes longer */

/* ---- addresses ---- */

/* The machine of "name:port", "192.0.2.1:7443" or "[2001:db8::1]:7443". */
static void machine_of(const char *address, char machine[256])
{
    const char *colon = strrchr(address, ':');
    size_t length = colon != NULL ? (size_t)(colon - address) : strlen(address);
    if (length >= 2 && address[0] == '[' && address[length - 1] == ']') {
        address++;
        length -= 2;
    }
    snprintf(machine, 256, "%.*s", (int)MIN(length, (size_t)255), address);
}

static bool has_text(const json_t *list, const char *text)
{
    const json_t *item;
    size_t i;
    json_array_foreach(list, i, item)
        if (strcmp(json_string_value(item), text) == 0)
            return true;
    return false;
}

/* Every IP address of @address, an "address:port" of the API, into @list, once. */
static void add_addresses(json_t *list, const char *address)
{
    char machine[256], text[INET6_ADDRSTRLEN];
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    struct addrinfo *found = NULL;
    machine_of(address, machine);
    if (machine[0] == '\0' || getaddrinfo(machine, NULL, &hints, &found) != 0)
        return;
    for (const struct addrinfo *at = found; at != NULL; at = at->ai_next)
        if (getnameinfo(at->ai_addr, at->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) == 0 && !has_text(list, text))
            json_array_append_new(list, json_string(text));
    freeaddrinfo(found);
}

static const json_t *named(const json_t *list, const char *name)
{
    const json_t *o;
    size_t i;
    json_array_foreach(list, i, o)
        if (strcmp(json_text(o, "name"), name) == 0)
            return o;
    return NULL;
}

/* Of the machine that is to be cut off. */
static json_t *own_addresses(const struct drill *d)
{
    json_t *own = json_array();
    const json_t *o = d->kind->host ? named(d->hosts, d->host) : named(d->controllers, d->controller);
    add_addresses(own, json_text(o, "address"));
    if (!d->kind->host)
        add_addresses(own, json_text(o, "raft_address"));
    return own;
}

/* Of all other machines of the cluster. */
static json_t *far_addresses(const struct drill *d)
{
    json_t *all = json_array(), *own = own_addresses(d), *far = json_array();
    const json_t *o;
    size_t i;
    json_array_foreach(d->controllers, i, o)
    {
        add_addresses(all, json_text(o, "address"));
        add_addresses(all, json_text(o, "raft_address"));
    }
    json_array_foreach(d->hosts, i, o) add_addresses(all, json_text(o, "address"));
    json_array_foreach(all, i, o)
        if (!has_text(own, json_string_value(o)))
            json_array_append(far, (json_t *)(uintptr_t)o);
    json_decref(all);
    json_decref(own);
    return far;
}

/* Is that an address of the machine that we run on? */
static bool is_here(const char *text)
{
    struct sockaddr_in four = {.sin_family = AF_INET};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    bool is_four = inet_pton(AF_INET, text, &four.sin_addr) == 1;
    if (!is_four && inet_pton(AF_INET6, text, &six.sin6_addr) != 1)
        return false;
    int fd = socket(is_four ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool here = fd >= 0 && (is_four ? bind(fd, (struct sockaddr *)&four, sizeof four) : bind(fd, (struct sockaddr *)&six, sizeof six)) == 0;
    if (fd >= 0)
        close(fd);
    return here;
}

/* ---- conditions ---- */

static bool put_check(struct drill *d, const char *what, bool ok, const char *detail)
{
    json_array_append_new(d->checks, json_pack("{s:s, s:b, s:s}", "check", what, "ok", ok, "detail", detail));
    return ok;
}

/* Whoever is cut off with the machine sees nothing of what happens. */
static bool check_from_elsewhere(struct drill *d)
{
    json_t *own = own_addresses(d);
    const json_t *o;
    size_t i;
    bool here = false;
    json_array_foreach(own, i, o) here = here || is_here(json_string_value(o));
    bool ok = put_check(d, "watched from elsewhere", !here && json_array_size(own) > 0,
                        here ? "this is the machine that would be cut off: run the drill from another one"
                        : json_array_size(own) > 0 ? "yes" : "its address cannot be resolved here");
    json_decref(own);
    return ok;
}

bool drill_check_network_partition(struct drill *d)
{
    return named(d->hosts, d->host) == NULL || check_from_elsewhere(d);
}

bool drill_check_controller_partition(struct drill *d)
{
    bool voter = strcmp(json_text(named(d->controllers, d->controller), "role"), "voter") == 0;
    voter = put_check(d, "it has a vote", voter, d->controller);
    return check_from_elsewhere(d) && voter;
}

/* ---- the drills ---- */

int drill_run_network_partition(struct drill *d, struct error *err)
{
    json_t *more = json_pack("{s:o}", "far", far_addresses(d));
    int rc = drill_order_host(d, "cut", d->silent_s, more, err);
    json_decref(more);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    drill_tell(d, "host %s is cut off for %u s", d->host, d->silent_s);
    drill_await_failover(d);
    drill_await_writes(d, "the cut");
    return 0;
}

int drill_run_controller_partition(struct drill *d, struct error *err)
{
    json_t *more = json_pack("{s:o}", "far", far_addresses(d));
    int rc = drill_order_controller(d, d->controller, "cut", d->crash_s, more, err);
    json_decref(more);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    drill_tell(d, "controller %s is cut off for %u s", d->controller, d->crash_s);
    drill_await_writes(d, "the cut");
    drill_await_end(d, d->crash_s);
    drill_await_controller(d, d->controller);
    drill_await_writes(d, "the end of the cut");
    return 0;
}

int drill_run_slow_disk(struct drill *d, struct error *err)
{
    json_t *more = json_pack("{s:i}", "delay_ms", SLOW_DISK_MS);
    int rc = drill_order_controller(d, d->controller, "slow-disk", d->crash_s, more, err);
    json_decref(more);
    if (rc < 0)
        return rc;
    d->fault_us = drill_now_us();
    drill_tell(d, "each write of controller %s takes %d ms longer for %u s", d->controller, SLOW_DISK_MS, d->crash_s);
    drill_await_end(d, d->crash_s);
    drill_await_controller(d, d->controller);
    drill_await_writes(d, "the slow disk");
    return 0;
}
