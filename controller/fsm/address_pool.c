/* Addresses of networks; see the header. */
#include "controller/fsm/address_pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "controller/fsm/state_edit.h"

#define KEY_BYTES 128u
#define POINTER_BYTES 96u

/* ---- the index ---- */

static const char *key_of(const char *network, const char *address, char buffer[KEY_BYTES])
{
    size_t n = (size_t)snprintf(buffer, KEY_BYTES, "%s|%s", network, address);
    for (char *at = buffer; n > 0 && *at != '\0'; at++)
        if (*at >= 'A' && *at <= 'F')
            *at = (char)(*at - 'A' + 'a'); /* a MAC address may be written either way */
    return buffer;
}

/* Call @each for every key of @vm until it is false. */
static bool each_key(const struct vm *vm, bool (*each)(void *arg, const char *key), void *arg)
{
    char key[KEY_BYTES];
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        if (nic->network == NULL)
            continue;
        if (nic->mac != NULL && !each(arg, key_of(nic->network, nic->mac, key)))
            return false;
        for (size_t k = 0; k < nic->ips.count; k++)
            if (!each(arg, key_of(nic->network, nic->ips.items[k], key)))
                return false;
    }
    return true;
}

/* An entry; the map borrows its key. */
struct address_owner {
    struct record *vm;
    char key[];
};

const struct record *address_owner_of(const struct state *state, const char *network, const char *address)
{
    char key[KEY_BYTES];
    const struct address_owner *owner = map_get(&state->addresses, key_of(network, address, key));
    return owner != NULL ? owner->vm : NULL;
}

struct indexing {
    struct map *index;
    struct record *vm;
};

static bool key_is_free(void *arg, const char *key)
{
    struct indexing *i = arg;
    return map_get(i->index, key) == NULL;
}

static bool key_add(void *arg, const char *key)
{
    struct indexing *i = arg;
    struct address_owner *owner = xcalloc(1, sizeof *owner + strlen(key) + 1);
    owner->vm = i->vm;
    strcpy(owner->key, key);
    struct address_owner *twin = map_put(i->index, owner->key, owner);
    if (twin == NULL)
        return true;
    map_put(i->index, twin->key, twin); /* the VM names it twice: one entry, and it cannot be linked */
    free(owner);
    return false;
}

static bool key_remove(void *arg, const char *key)
{
    struct indexing *i = arg;
    free(map_remove(i->index, key));
    return true;
}

static bool key_count(void *arg, const char *key UNUSED)
{
    ++*(size_t *)arg;
    return true;
}

bool address_index_add(struct map *index, struct record *vm)
{
    struct indexing i = {index, vm};
    return each_key(vm->vm, key_is_free, &i) && each_key(vm->vm, key_add, &i);
}

void address_index_finish(struct map *index)
{
    struct address_owner *owner;
    for (size_t i = 0; (owner = map_next(index, &i)) != NULL;)
        free(owner);
    map_finish(index);
}

void address_index_remove(struct map *index, const struct record *vm)
{
    struct indexing i = {index, NULL};
    each_key(vm->vm, key_remove, &i);
}

size_t address_index_count(const struct vm *vm)
{
    size_t count = 0;
    each_key(vm, key_count, &count);
    return count;
}

/* ---- networks ---- */

static int bad(struct error *err, const char *field, const char *text)
{
    return error_set_field(err, -EINVAL, ERROR_INVALID, field, "%s", text);
}

/* Text of a stored field: its format has been checked, so that parsing it again cannot fail. */
static struct ip_prefix subnet_of(const struct network *network, unsigned family)
{
    struct ip_prefix prefix = {.bits = 0};
    const char *text = family == 4 ? network->ipv4_subnet : network->ipv6_subnet;
    return text != NULL && ip_prefix_parse(text, &prefix) ? prefix : (struct ip_prefix){.bits = 0};
}

/* The network's own address and, of IPv4, that of all hosts: nobody's (but in subnets of one or two). */
static bool is_reserved(const struct ip_prefix *subnet, const struct ip_address *ip)
{
    struct ip_address last = ip_prefix_last(subnet);
    if (subnet->bits + 1u >= ip_bits(ip))
        return false;
    return ip_compare(ip, &subnet->base) == 0 || (ip->family == 4 && ip_compare(ip, &last) == 0);
}

static int check_subnet(const char *text, unsigned family, const char *field, struct error *err)
{
    struct ip_prefix subnet;
    if (text == NULL)
        return 0;
    if (!ip_prefix_parse(text, &subnet) || subnet.base.family != family)
        return bad(err, field, family == 4 ? "is not IPv4" : "is not IPv6");
    return 0;
}

static int check_gateway(const struct state *state, const struct network *network, unsigned family, const char *field,
                         struct error *err)
{
    const char *text = family == 4 ? network->ipv4_gateway : network->ipv6_gateway;
    struct ip_prefix subnet = subnet_of(network, family);
    struct ip_address ip;
    if (text == NULL)
        return 0;
    if (!ip_parse(text, &ip) || ip.family != family)
        return bad(err, field, family == 4 ? "is not IPv4" : "is not IPv6");
    if (subnet.base.family == 0)
        return bad(err, field, "is given, but the network has no such subnet");
    if (!ip_prefix_has(&subnet, &ip) || is_reserved(&subnet, &ip))
        return bad(err, field, "is no address of the network's subnet");
    char canonical[IP_TEXT_BYTES]; /* as VMs have it: the text is the user's */
    const struct record *vm =
        network->name != NULL ? address_owner_of(state, network->name, ip_format(&ip, canonical)) : NULL;
    if (vm != NULL)
        return error_set_field(err, -EEXIST, ERROR_EXISTS, field, "is the address of VM '%s'", vm->common->name);
    return 0;
}

static int check_pools(const struct network *network, struct error *err)
{
    for (size_t i = 0; i < network->pools.count; i++) {
        const struct address_range *range = (const struct address_range *)network->pools.items + i;
        struct ip_address first, last;
        char field[POINTER_BYTES];
        snprintf(field, sizeof field, "/pools/%zu/first", i);
        if (!ip_parse(range->first, &first) || !ip_parse(range->last, &last) || first.family != last.family ||
            ip_compare(&first, &last) > 0)
            return bad(err, field, "and last must be of one family and in order");
        struct ip_prefix subnet = subnet_of(network, first.family);
        if (subnet.base.family == 0 || !ip_prefix_has(&subnet, &first))
            return bad(err, field, "is outside of the network's subnets");
        snprintf(field, sizeof field, "/pools/%zu/last", i);
        if (!ip_prefix_has(&subnet, &last))
            return bad(err, field, "is outside of the network's subnets");
    }
    return 0;
}

int network_check(const struct state *state, const struct network *network, struct error *err)
{
    int rc = check_subnet(network->ipv4_subnet, 4, "/ipv4_subnet", err);
    if (rc == 0)
        rc = check_subnet(network->ipv6_subnet, 6, "/ipv6_subnet", err);
    if (rc == 0)
        rc = check_gateway(state, network, 4, "/ipv4_gateway", err);
    if (rc == 0)
        rc = check_gateway(state, network, 6, "/ipv6_gateway", err);
    if (rc == 0)
        rc = check_pools(network, err);
    if (rc < 0)
        return rc;
    if (OBJECT_HAS(network, network, vlan) && network->uplink == NULL)
        return bad(err, "/uplink", "is missing: a VLAN needs the interface that carries it");
    if (network->uplink != NULL && network->bridge != NULL && strcmp(network->uplink, network->bridge) == 0)
        return bad(err, "/bridge", "is the uplink itself; a bridge is an interface of its own");
    if (network->dhcp && network->ipv4_subnet == NULL)
        return bad(err, "/dhcp", "needs an ipv4_subnet");
    return 0;
}

/* ---- security groups ---- */

static int check_rule(const struct state *state, const char *own_id, const char *own_name, struct security_rule *rule,
                      size_t i, struct error *err)
{
    char field[POINTER_BYTES];
    bool ported = rule->protocol == rule_protocol_TCP || rule->protocol == rule_protocol_UDP;
    snprintf(field, sizeof field, "/rules/%zu/port_first", i);
    if (!ported && (OBJECT_HAS(security_rule, rule, port_first) || OBJECT_HAS(security_rule, rule, port_last)))
        return bad(err, field, "is for tcp and udp only: name the protocol");
    if (OBJECT_HAS(security_rule, rule, port_last) && !OBJECT_HAS(security_rule, rule, port_first))
        return bad(err, field, "is missing: port_last needs it");
    snprintf(field, sizeof field, "/rules/%zu/port_last", i);
    if (OBJECT_HAS(security_rule, rule, port_last) && rule->port_last < rule->port_first)
        return bad(err, field, "is below port_first");
    snprintf(field, sizeof field, "/rules/%zu/remote_group", i);
    if (rule->remote_group == NULL)
        return 0;
    if (rule->remote != NULL)
        return bad(err, field, "and remote cannot both be given; make two rules");
    const struct record *other = state_get(state, object_kind_SECURITY_GROUP, rule->remote_group);
    bool own = strcmp(rule->remote_group, own_name) == 0 || strcmp(rule->remote_group, own_id) == 0 ||
               (other != NULL && strcmp(other->common->id, own_id) == 0);
    if (!own && other == NULL)
        return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, field, "there is no security group '%s'", rule->remote_group);
    OBJECT_TEXT(security_rule, rule, remote_group, own ? own_name : other->common->name);
    return 0;
}

int security_group_check(const struct state *state, const char *own_id, const char *own_name, struct security_group *group,
                         struct error *err)
{
    for (size_t i = 0; i < group->rules.count; i++) {
        int rc = check_rule(state, own_id, own_name, (struct security_rule *)group->rules.items + i, i, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

bool vm_in_group(const struct vm *vm, const char *name)
{
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        for (size_t k = 0; k < nic->security_groups.count; k++)
            if (strcmp(nic->security_groups.items[k], name) == 0)
                return true;
    }
    return false;
}

bool vm_on_network(const struct vm *vm, const char *name)
{
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        if (nic->network != NULL && strcmp(nic->network, name) == 0)
            return true;
    }
    return false;
}

/* ---- NICs of a VM ---- */

struct resolving {
    const struct state *state;
    const struct record *own; /* the VM itself where it is there already: what it has is not another's */
    struct vm *vm;
    size_t at; /* index of the NIC */
    const struct network *network;
    struct error *err;
};

static int nic_bad(const struct resolving *r, int code, enum error_kind kind, const char *field, const char *text)
{
    char pointer[POINTER_BYTES];
    snprintf(pointer, sizeof pointer, "/nics/%zu/%s", r->at, field);
    return error_set_field(r->err, code, kind, pointer, "%s", text);
}

static int nic_names_none(const struct resolving *r, const char *field, const char *noun, const char *name)
{
    char words[200];
    snprintf(words, sizeof words, "there is no %s '%.63s'; `drover %s list` shows those that are", noun, name, noun);
    return nic_bad(r, -ENOENT, ERROR_NOT_FOUND, field, words);
}

static struct vm_nic *nic_of(const struct resolving *r, size_t i)
{
    return (struct vm_nic *)r->vm->nics.items + i;
}

/* Has another VM, or an earlier NIC of this one, @address on the network? */
static bool is_taken(const struct resolving *r, const char *address)
{
    const struct record *owner = address_owner_of(r->state, r->network->name, address);
    if (owner != NULL && owner != r->own)
        return true;
    for (size_t i = 0; i < r->at; i++) {
        const struct vm_nic *nic = nic_of(r, i);
        if (nic->network == NULL || strcmp(nic->network, r->network->name) != 0)
            continue;
        if (nic->mac != NULL && strcasecmp(nic->mac, address) == 0)
            return true;
        for (size_t k = 0; k < nic->ips.count; k++)
            if (strcmp(nic->ips.items[k], address) == 0)
                return true;
    }
    return false;
}

/* IPv6 can be written in many ways, and a gateway is as the user wrote it. */
static bool is_gateway(const struct network *network, const struct ip_address *address)
{
    const char *text = address->family == 4 ? network->ipv4_gateway : network->ipv6_gateway;
    struct ip_address gateway;
    return text != NULL && ip_parse(text, &gateway) && ip_compare(&gateway, address) == 0;
}

/* The lowest free address from @first to @last; false: none among the first ADDRESS_SCAN_MAX. */
static bool first_free(const struct resolving *r, const struct ip_prefix *subnet, struct ip_address first,
                       const struct ip_address *last, char ret_text[IP_TEXT_BYTES])
{
    for (unsigned n = 0; n < ADDRESS_SCAN_MAX && ip_compare(&first, last) <= 0; n++) {
        ip_format(&first, ret_text);
        if (!is_reserved(subnet, &first) && !is_gateway(r->network, &first) && !is_taken(r, ret_text))
            return true;
        if (!ip_next(&first))
            break;
    }
    return false;
}

static bool choose(const struct resolving *r, unsigned family, char ret_text[IP_TEXT_BYTES])
{
    const struct address_range *pools = r->network->pools.items;
    struct ip_prefix subnet = subnet_of(r->network, family);
    bool named = false;
    for (size_t i = 0; i < r->network->pools.count; i++) {
        struct ip_address first, last;
        if (!ip_parse(pools[i].first, &first) || !ip_parse(pools[i].last, &last) || first.family != family)
            continue;
        named = true;
        if (first_free(r, &subnet, first, &last, ret_text))
            return true;
    }
    struct ip_address end = ip_prefix_last(&subnet);
    return !named && first_free(r, &subnet, subnet.base, &end, ret_text);
}

static void set_ips(struct vm_nic *nic, char texts[][IP_TEXT_BYTES], size_t count)
{
    for (size_t i = 0; i < nic->ips.count; i++)
        free(nic->ips.items[i]);
    nic->ips.items = xrealloc(nic->ips.items, MAX(count, (size_t)1) * sizeof *nic->ips.items);
    nic->ips.count = count;
    for (size_t i = 0; i < count; i++)
        nic->ips.items[i] = xstrdup(texts[i]);
    object_mark(&vm_nic_desc, nic, "ips");
    OBJECT_SET(vm_nic, nic, allocated, true);
}

static int give_addresses(const struct resolving *r, struct vm_nic *nic)
{
    char texts[2][IP_TEXT_BYTES];
    size_t count = 0;
    bool still_free = nic->ips.count > 0;
    for (size_t i = 0; i < nic->ips.count; i++)
        still_free &= !is_taken(r, nic->ips.items[i]);
    if (still_free)
        return 0;
    for (unsigned family = 4; family <= 6; family += 2) {
        if (subnet_of(r->network, family).base.family == 0)
            continue;
        if (!choose(r, family, texts[count++]))
            return nic_bad(r, -ENOSPC, ERROR_CONFLICT, "network",
                           family == 4 ? "has no free IPv4 address; give it a larger pool, or name an address"
                                       : "has no free IPv6 address; give it a larger pool, or name an address");
    }
    if (count > 0)
        set_ips(nic, texts, count);
    return 0;
}

/* Addresses that the user has named. */
static int check_address(const struct resolving *r, struct vm_nic *nic, size_t i)
{
    struct ip_address ip;
    char text[IP_TEXT_BYTES], field[40];
    snprintf(field, sizeof field, "ips/%zu", i);
    if (!ip_parse(nic->ips.items[i], &ip))
        return nic_bad(r, -EINVAL, ERROR_INVALID, field, "is no address");
    ip_format(&ip, text); /* one way to write it */
    free(nic->ips.items[i]);
    nic->ips.items[i] = xstrdup(text);
    if (r->network == NULL)
        return 0;
    struct ip_prefix subnet = subnet_of(r->network, ip.family);
    if (subnet.base.family == 0 || !ip_prefix_has(&subnet, &ip) || is_reserved(&subnet, &ip))
        return nic_bad(r, -EINVAL, ERROR_INVALID, field, "is no address of the network's subnets");
    if (is_gateway(r->network, &ip))
        return nic_bad(r, -EINVAL, ERROR_INVALID, field, "is the network's gateway");
    if (is_taken(r, text))
        return nic_bad(r, -EEXIST, ERROR_EXISTS, field, "is another VM's; choose another, or none");
    for (size_t k = 0; k < i; k++)
        if (strcmp(nic->ips.items[k], text) == 0)
            return nic_bad(r, -EINVAL, ERROR_INVALID, field, "is given twice");
    return 0;
}

static int resolve_groups(const struct resolving *r, struct vm_nic *nic)
{
    for (size_t i = 0; i < nic->security_groups.count; i++) {
        char **name = &nic->security_groups.items[i], field[40];
        const struct record *group = state_get(r->state, object_kind_SECURITY_GROUP, *name);
        snprintf(field, sizeof field, "security_groups/%zu", i);
        if (group == NULL)
            return nic_names_none(r, field, "security-group", *name);
        char *copy = xstrdup(group->common->name);
        free(*name);
        *name = copy;
    }
    return 0;
}

static int resolve_nic(struct resolving *r, struct vm_nic *nic)
{
    const struct record *network = state_get(r->state, object_kind_NETWORK, nic->network);
    int rc = 0;
    r->network = network != NULL ? network->network : NULL;
    if ((nic->network == NULL) == (nic->bridge == NULL))
        return nic_bad(r, -EINVAL, ERROR_INVALID, "network", "or bridge is needed, and only one of the two");
    if (nic->network != NULL && network == NULL)
        return nic_names_none(r, "network", "network", nic->network);
    if (network != NULL)
        OBJECT_TEXT(vm_nic, nic, network, network->common->name);
    if (network != NULL && nic->mac != NULL && is_taken(r, nic->mac))
        return nic_bad(r, -EEXIST, ERROR_EXISTS, "mac", "is another VM's on this network; choose another, or none");
    if (network != NULL && (nic->allocated || nic->ips.count == 0))
        rc = give_addresses(r, nic);
    else
        for (size_t i = 0; rc == 0 && i < nic->ips.count; i++)
            rc = check_address(r, nic, i);
    return rc < 0 ? rc : resolve_groups(r, nic);
}

int vm_nics_resolve(const struct state *state, struct vm *vm, struct error *err)
{
    struct resolving r = {.state = state, .own = vm->id != NULL ? map_get(&state->tables[object_kind_VM].by_id, vm->id) : NULL, .vm = vm, .err = err};
    for (; r.at < vm->nics.count; r.at++) {
        int rc = resolve_nic(&r, nic_of(&r, r.at));
        if (rc < 0)
            return rc;
    }
    return 0;
}
