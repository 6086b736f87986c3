/* The rules, as text; see the header for what they are. */
#include "compute/agent/firewall.h"

#include <stdio.h>
#include <string.h>

#include "common/ip_address.h"

#define TABLE "\"family\":\"bridge\",\"table\":\"drover\""
#define DROP "{\"drop\":null}"
#define ACCEPT "{\"accept\":null}"
#define PAYLOAD(protocol, field) "{\"payload\":{\"protocol\":\"" protocol "\",\"field\":\"" field "\"}}"
#define MATCH(op, left, right) "{\"match\":{\"op\":\"" op "\",\"left\":" left ",\"right\":" right "}}"
#define ETHER_TYPE(type) MATCH("==", PAYLOAD("ether", "type"), type)
#define UDP_PORT(field, port) MATCH("==", PAYLOAD("udp", field), port)
#define META(key) "{\"meta\":{\"key\":\"" key "\"}}"
#define ND_TARGET "{\"payload\":{\"base\":\"th\",\"offset\":64,\"len\":128}}" /* RFC 4861 §4.4 */
#define ND_TARGET_10 "{\"payload\":{\"base\":\"th\",\"offset\":64,\"len\":10}}"
#define ND_TYPES "[\"nd-router-solicit\",\"nd-router-advert\",\"nd-neighbor-solicit\",\"nd-neighbor-advert\"]"

/* ---- commands ---- */

static void command_begin(struct bytes_writer *out)
{
    bytes_put_text(out, out->data[out->size - 1] == '[' ? "" : ",\n");
}

static void add_chain(struct bytes_writer *out, const char *prefix, const char *name)
{
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"chain\":{" TABLE ",\"name\":\"%s%s\"}}}", prefix, name);
}

static void add_base_chain(struct bytes_writer *out, const char *name, const char *hook, int priority)
{
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"chain\":{" TABLE ",\"name\":\"%s\",\"type\":\"filter\",\"hook\":\"%s\",\"prio\":%d,\"policy\":\"accept\"}}}",
                     name, hook, priority);
}

static void rule_begin(struct bytes_writer *out, const char *prefix, const char *name)
{
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"rule\":{" TABLE ",\"chain\":\"%s%s\",\"expr\":[", prefix, name);
}

static void rule_end(struct bytes_writer *out, const char *verdict)
{
    bytes_put_format(out, "%s]}}}", verdict);
}

/* A rule that is the same for all. */
static void rule(struct bytes_writer *out, const char *prefix, const char *name, const char *expressions)
{
    rule_begin(out, prefix, name);
    rule_end(out, expressions);
}

/* ---- addresses ---- */

static bool has_family(const struct string_list *ips, unsigned family)
{
    struct ip_address ip;
    for (size_t i = 0; i < ips->count; i++)
        if (ip_parse(ips->items[i], &ip) && ip.family == family)
            return true;
    return false;
}

/* {"set":[...]} of the addresses of one family, and @more besides (JSON values, each with a comma before it). */
static void put_ips(struct bytes_writer *out, const struct string_list *ips, unsigned family, const char *more)
{
    struct ip_address ip;
    const char *comma = "";
    bytes_put_text(out, "{\"set\":[");
    for (size_t i = 0; i < ips->count; i++)
        if (ip_parse(ips->items[i], &ip) && ip.family == family) {
            bytes_put_format(out, "%s\"%s\"", comma, ips->items[i]);
            comma = ",";
        }
    bytes_put_format(out, "%s]}", more);
}

static void match_ips(struct bytes_writer *out, const char *op, const char *left, const struct string_list *ips,
                      unsigned family, const char *more)
{
    bytes_put_format(out, "{\"match\":{\"op\":\"%s\",\"left\":%s,\"right\":", op, left);
    put_ips(out, ips, family, more);
    bytes_put_text(out, "}},");
}

/* ---- what a VM may send as ---- */

static void spoof_ipv4(struct bytes_writer *out, const struct firewall_nic *nic)
{
    rule(out, "s-", nic->tap, ETHER_TYPE("\"ip\"") "," UDP_PORT("sport", "67") "," DROP);
    if (nic->dhcp)
        rule(out, "s-", nic->tap, ETHER_TYPE("\"ip\"") "," UDP_PORT("dport", "67") "," DROP);
    if (has_family(&nic->nic->ips, 4)) {
        rule(out, "s-", nic->tap,
             ETHER_TYPE("\"ip\"") "," MATCH("==", PAYLOAD("ip", "saddr"), "\"0.0.0.0\"") "," UDP_PORT("sport", "68") "," UDP_PORT(
                 "dport", "67") "," ACCEPT);
        rule_begin(out, "s-", nic->tap);
        match_ips(out, "!=", PAYLOAD("ip", "saddr"), &nic->nic->ips, 4, "");
        rule_end(out, DROP);
    }
    rule(out, "s-", nic->tap, ETHER_TYPE("\"ip\"") "," ACCEPT);
}

/* The address that a neighbour advertisement is about is none of its own (link-local ones are told apart before). */
static void match_targets(struct bytes_writer *out, const struct string_list *ips)
{
    struct ip_address ip;
    const char *comma = "";
    bytes_put_text(out, "{\"match\":{\"op\":\"!=\",\"left\":" ND_TARGET ",\"right\":{\"set\":[");
    for (size_t i = 0; i < ips->count; i++) {
        if (!ip_parse(ips->items[i], &ip) || ip.family != 6)
            continue;
        bytes_put_format(out, "%s\"0x", comma);
        for (unsigned k = 0; k < sizeof(ip.bytes); k++)
            bytes_put_format(out, "%02x", ip.bytes[k]);
        bytes_put_text(out, "\"");
        comma = ",";
    }
    bytes_put_text(out, "]}}},");
}

static void spoof_ipv6(struct bytes_writer *out, const struct firewall_nic *nic)
{
    rule(out, "s-", nic->tap, MATCH("==", PAYLOAD("icmpv6", "type"), "{\"set\":[\"nd-router-advert\",\"nd-redirect\"]}") "," DROP);
    rule(out, "s-", nic->tap, ETHER_TYPE("\"ip6\"") "," UDP_PORT("sport", "547") "," DROP);
    if (has_family(&nic->nic->ips, 6)) {
        rule(out, "s-", nic->tap,
             MATCH("==", PAYLOAD("ip6", "saddr"), "\"::\"") "," MATCH("==", PAYLOAD("icmpv6", "type"),
                                                                     "{\"set\":[\"nd-neighbor-solicit\",143]}") "," ACCEPT);
        rule_begin(out, "s-", nic->tap);
        bytes_put_text(out, MATCH("==", PAYLOAD("icmpv6", "type"), "\"nd-neighbor-advert\"") "," MATCH("!=", ND_TARGET_10, "1018") ",");
        match_targets(out, &nic->nic->ips);
        rule_end(out, DROP);
        rule_begin(out, "s-", nic->tap);
        match_ips(out, "!=", PAYLOAD("ip6", "saddr"), &nic->nic->ips, 6, ",{\"prefix\":{\"addr\":\"fe80::\",\"len\":10}}");
        rule_end(out, DROP);
    }
    rule(out, "s-", nic->tap, ETHER_TYPE("\"ip6\"") "," ACCEPT);
}

static void spoof_chain(struct bytes_writer *out, const struct firewall_nic *nic)
{
    add_chain(out, "s-", nic->tap);
    rule_begin(out, "s-", nic->tap);
    bytes_put_format(out, MATCH("!=", PAYLOAD("ether", "saddr"), "\"%s\"") ",", nic->nic->mac);
    rule_end(out, DROP);
    rule_begin(out, "s-", nic->tap);
    bytes_put_format(out, MATCH("!=", PAYLOAD("arp", "saddr ether"), "\"%s\"") ",", nic->nic->mac);
    rule_end(out, DROP);
    if (has_family(&nic->nic->ips, 4)) { /* 0.0.0.0: asking whether its own address is free (RFC 5227) */
        rule_begin(out, "s-", nic->tap);
        match_ips(out, "!=", PAYLOAD("arp", "saddr ip"), &nic->nic->ips, 4, ",\"0.0.0.0\"");
        rule_end(out, DROP);
    }
    /* 0x8035: RARP, by which a VMM tells where the VM is now */
    rule(out, "s-", nic->tap, MATCH("==", PAYLOAD("ether", "type"), "{\"set\":[\"arp\",\"0x8035\"]}") "," ACCEPT);
    spoof_ipv4(out, nic);
    spoof_ipv6(out, nic);
    rule(out, "s-", nic->tap, DROP);
}

/* ---- security groups ---- */

static const struct group_order *group_find(const struct firewall_input *input, const char *name, size_t *ret_index)
{
    for (size_t i = 0; i < input->group_count; i++)
        if (strcmp(input->groups[i].name, name) == 0) {
            *ret_index = i;
            return &input->groups[i];
        }
    return NULL;
}

static void member_set(struct bytes_writer *out, const struct string_list *members, size_t index, unsigned family)
{
    const char *comma = "";
    struct ip_address ip;
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"set\":{" TABLE ",\"name\":\"g%zu-%u\",\"type\":\"%s\"}}}", index, family,
                     family == 4 ? "ipv4_addr" : "ipv6_addr");
    if (!has_family(members, family))
        return;
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"element\":{" TABLE ",\"name\":\"g%zu-%u\",\"elem\":[", index, family);
    for (size_t i = 0; i < members->count; i++)
        if (ip_parse(members->items[i], &ip) && ip.family == family) {
            bytes_put_format(out, "%s\"%s\"", comma, members->items[i]);
            comma = ",";
        }
    bytes_put_text(out, "]}}}");
}

/* By number where there is no port: a small system has no /etc/protocols for nft to look names up in. */
static void put_protocol(struct bytes_writer *out, const struct security_rule *r)
{
    static const unsigned numbers[] = {
        [rule_protocol_TCP] = 6, [rule_protocol_UDP] = 17, [rule_protocol_ICMP] = 1, [rule_protocol_ICMPV6] = 58};
    if (r->protocol == rule_protocol_ANY)
        return;
    if (!OBJECT_HAS(security_rule, r, port_first)) {
        bytes_put_format(out, MATCH("==", META("l4proto"), "%u") ",", numbers[r->protocol]);
        return;
    }
    uint32_t last = OBJECT_HAS(security_rule, r, port_last) ? r->port_last : r->port_first;
    bytes_put_format(out, "{\"match\":{\"op\":\"==\",\"left\":{\"payload\":{\"protocol\":\"%s\",\"field\":\"dport\"}},\"right\":",
                     r->protocol == rule_protocol_TCP ? "tcp" : "udp");
    if (last == r->port_first)
        bytes_put_format(out, "%u}},", last);
    else
        bytes_put_format(out, "{\"range\":[%u,%u]}}},", r->port_first, last);
}

/* One rule for one IP family, unless it is about the other. */
static void put_rule(struct bytes_writer *out, const struct firewall_input *input, const char *prefix, const char *tap,
                     const struct security_rule *r, unsigned family)
{
    struct ip_prefix remote = {.bits = 0};
    const char *protocol = family == 4 ? "ip" : "ip6", *field = r->direction == rule_direction_INBOUND ? "saddr" : "daddr";
    char address[IP_TEXT_BYTES];
    size_t group = 0;
    if (r->remote != NULL && (!ip_prefix_parse(r->remote, &remote) || remote.base.family != family))
        return;
    if (r->remote_group != NULL && group_find(input, r->remote_group, &group) == NULL)
        return;
    if (r->protocol == (family == 4 ? rule_protocol_ICMPV6 : rule_protocol_ICMP))
        return;
    rule_begin(out, prefix, tap);
    bytes_put_format(out, MATCH("==", PAYLOAD("ether", "type"), "\"%s\"") ",", protocol);
    if (r->remote_group != NULL)
        bytes_put_format(out, "{\"match\":{\"op\":\"==\",\"left\":{\"payload\":{\"protocol\":\"%s\",\"field\":\"%s\"}},\"right\":\"@g%zu-%u\"}},",
                         protocol, field, group, family);
    else if (remote.bits > 0)
        bytes_put_format(out, "{\"match\":{\"op\":\"==\",\"left\":{\"payload\":{\"protocol\":\"%s\",\"field\":\"%s\"}},"
                              "\"right\":{\"prefix\":{\"addr\":\"%s\",\"len\":%u}}}},",
                         protocol, field, ip_format(&remote.base, address), remote.bits);
    put_protocol(out, r);
    rule_end(out, ACCEPT);
}

static void put_rules(struct bytes_writer *out, const struct firewall_input *input, const char *prefix,
                      const struct firewall_nic *nic, enum rule_direction direction)
{
    for (size_t i = 0; i < nic->nic->security_groups.count; i++) {
        size_t at;
        const struct group_order *group = group_find(input, nic->nic->security_groups.items[i], &at);
        for (size_t k = 0; group != NULL && k < group->rules.count; k++) {
            const struct security_rule *r = (const struct security_rule *)group->rules.items + k;
            if (r->direction != (uint32_t)direction)
                continue;
            put_rule(out, input, prefix, nic->tap, r, 4);
            put_rule(out, input, prefix, nic->tap, r, 6);
        }
    }
}

/* Answers to what the other direction let pass. */
static void put_answers(struct bytes_writer *out, const struct firewall_input *input, const char *prefix, const char *tap, bool inbound)
{
    if (!input->stateless) {
        rule(out, prefix, tap, MATCH("in", "{\"ct\":{\"key\":\"state\"}}", "[\"established\",\"related\"]") "," ACCEPT);
        return;
    }
    rule(out, prefix, tap,
         "{\"match\":{\"op\":\"!=\",\"left\":{\"&\":[" PAYLOAD("tcp", "flags") ",{\"|\":[\"syn\",\"ack\"]}]},\"right\":\"syn\"}}," ACCEPT);
    if (inbound) {
        for (unsigned family = 4; family <= 6; family += 2) {
            rule_begin(out, prefix, tap);
            bytes_put_format(out, "{\"match\":{\"op\":\"==\",\"left\":{\"concat\":[" META("oifname") ",{\"payload\":{\"protocol\":\"%s\",\"field\":\"saddr\"}},"
                             PAYLOAD("udp", "sport") "," PAYLOAD("udp", "dport") "]},\"right\":\"@asked%u\"}},", family == 4 ? "ip" : "ip6", family);
            rule_end(out, ACCEPT);
        }
    }
    rule(out, prefix, tap,
         MATCH("==", PAYLOAD("icmp", "type"), "{\"set\":[\"echo-reply\",\"destination-unreachable\",\"time-exceeded\",\"parameter-problem\"]}") "," ACCEPT);
    rule(out, prefix, tap,
         MATCH("==", PAYLOAD("icmpv6", "type"),
               "{\"set\":[\"echo-reply\",\"destination-unreachable\",\"packet-too-big\",\"time-exceeded\",\"parameter-problem\"]}") "," ACCEPT);
}

static bool has_outbound(const struct firewall_input *input, const struct firewall_nic *nic)
{
    for (size_t i = 0; i < nic->nic->security_groups.count; i++) {
        size_t at;
        const struct group_order *group = group_find(input, nic->nic->security_groups.items[i], &at);
        for (size_t k = 0; group != NULL && k < group->rules.count; k++)
            if (((const struct security_rule *)group->rules.items + k)->direction == rule_direction_OUTBOUND)
                return true;
    }
    return false;
}

static void from_chain(struct bytes_writer *out, const struct firewall_input *input, const struct firewall_nic *nic)
{
    add_chain(out, "f-", nic->tap);
    for (unsigned family = 4; input->stateless && family <= 6; family += 2) {
        rule_begin(out, "f-", nic->tap);
        bytes_put_format(out, "{\"set\":{\"op\":\"add\",\"elem\":{\"elem\":{\"val\":{\"concat\":[" META("iifname") ",{\"payload\":{\"protocol\":\"%s\",\"field\":\"daddr\"}},"
                         PAYLOAD("udp", "dport") "," PAYLOAD("udp", "sport") "]},\"timeout\":60}},\"set\":\"@asked%u\"}}", family == 4 ? "ip" : "ip6", family);
        rule_end(out, "");
    }
    if (!has_outbound(input, nic))
        return;
    rule(out, "f-", nic->tap, MATCH("==", PAYLOAD("ether", "type"), "{\"set\":[\"arp\",\"0x8035\"]}") "," ACCEPT);
    rule(out, "f-", nic->tap, MATCH("==", PAYLOAD("icmpv6", "type"), "{\"set\":" ND_TYPES "}") "," ACCEPT);
    rule(out, "f-", nic->tap, UDP_PORT("sport", "68") "," UDP_PORT("dport", "67") "," ACCEPT);
    put_answers(out, input, "f-", nic->tap, false);
    put_rules(out, input, "f-", nic, rule_direction_OUTBOUND);
    rule(out, "f-", nic->tap, DROP);
}

static void to_chain(struct bytes_writer *out, const struct firewall_input *input, const struct firewall_nic *nic)
{
    add_chain(out, "t-", nic->tap);
    if (nic->dhcp) /* ours is handed to the tap itself and does not come this way */
        rule(out, "t-", nic->tap, ETHER_TYPE("\"ip\"") "," UDP_PORT("sport", "67") "," UDP_PORT("dport", "68") "," DROP);
    if (nic->nic->security_groups.count == 0)
        return;
    rule(out, "t-", nic->tap, MATCH("==", PAYLOAD("ether", "type"), "{\"set\":[\"arp\",\"0x8035\"]}") "," ACCEPT);
    rule(out, "t-", nic->tap, MATCH("==", PAYLOAD("icmpv6", "type"), "{\"set\":" ND_TYPES "}") "," ACCEPT);
    if (!nic->dhcp)
        rule(out, "t-", nic->tap, ETHER_TYPE("\"ip\"") "," UDP_PORT("sport", "67") "," UDP_PORT("dport", "68") "," ACCEPT);
    put_answers(out, input, "t-", nic->tap, true);
    put_rules(out, input, "t-", nic, rule_direction_INBOUND);
    rule(out, "t-", nic->tap, DROP);
}

/* ---- all of it ---- */

static bool needs_from(const struct firewall_input *input, const struct firewall_nic *nic)
{
    return nic->nic->security_groups.count > 0 && (input->stateless || has_outbound(input, nic));
}

static bool needs_to(const struct firewall_input *input UNUSED, const struct firewall_nic *nic)
{
    return nic->dhcp || nic->nic->security_groups.count > 0;
}

static bool needs_spoof(const struct firewall_input *input UNUSED, const struct firewall_nic *nic)
{
    return nic->anti_spoof;
}

bool firewall_needed(const struct firewall_input *input)
{
    for (size_t i = 0; i < input->nic_count; i++)
        if (needs_spoof(input, &input->nics[i]) || needs_to(input, &input->nics[i]))
            return true;
    return false;
}

/* By a map: a packet pays for the rules of its own NIC only. */
static void jump_rule(struct bytes_writer *out, const struct firewall_input *input, const char *chain, const char *key,
                      const char *prefix, bool (*needs)(const struct firewall_input *, const struct firewall_nic *))
{
    const char *comma = "";
    for (size_t i = 0; i < input->nic_count; i++) {
        if (!needs(input, &input->nics[i]))
            continue;
        if (comma[0] == '\0') {
            rule_begin(out, chain, "");
            bytes_put_format(out, "{\"vmap\":{\"key\":{\"meta\":{\"key\":\"%s\"}},\"data\":{\"set\":[", key);
        }
        bytes_put_format(out, "%s[\"%s\",{\"jump\":{\"target\":\"%s%s\"}}]", comma, input->nics[i].tap, prefix, input->nics[i].tap);
        comma = ",";
    }
    if (comma[0] != '\0')
        rule_end(out, "]}}}");
}

static void asked_set(struct bytes_writer *out, unsigned family)
{
    command_begin(out);
    bytes_put_format(out, "{\"add\":{\"set\":{" TABLE ",\"name\":\"asked%u\",\"type\":[\"ifname\",\"%s\",\"inet_service\",\"inet_service\"],"
                          "\"flags\":[\"timeout\"],\"timeout\":60,\"size\":65536}}}",
                     family, family == 4 ? "ipv4_addr" : "ipv6_addr");
}

void firewall_text(const struct firewall_input *input, struct bytes_writer *out)
{
    /* added first, so that there is something to delete */
    bytes_put_text(out, "{\"nftables\":[{\"add\":{\"table\":{\"family\":\"bridge\",\"name\":\"drover\"}}},\n"
                        "{\"delete\":{\"table\":{\"family\":\"bridge\",\"name\":\"drover\"}}}");
    if (!firewall_needed(input)) {
        bytes_put_text(out, "]}");
        return;
    }
    bytes_put_text(out, ",\n{\"add\":{\"table\":{\"family\":\"bridge\",\"name\":\"drover\"}}}");
    for (size_t i = 0; i < input->group_count; i++) {
        member_set(out, &input->groups[i].members, i, 4);
        member_set(out, &input->groups[i].members, i, 6);
    }
    for (unsigned family = 4; input->stateless && family <= 6; family += 2)
        asked_set(out, family);
    add_base_chain(out, "spoof", "prerouting", -300);
    add_base_chain(out, "from", "prerouting", -150);
    add_base_chain(out, "to", "postrouting", 0);
    for (size_t i = 0; i < input->nic_count; i++) {
        if (needs_spoof(input, &input->nics[i]))
            spoof_chain(out, &input->nics[i]);
        if (needs_from(input, &input->nics[i]))
            from_chain(out, input, &input->nics[i]);
        if (needs_to(input, &input->nics[i]))
            to_chain(out, input, &input->nics[i]);
    }
    jump_rule(out, input, "spoof", "iifname", "s-", needs_spoof);
    jump_rule(out, input, "from", "iifname", "f-", needs_from);
    jump_rule(out, input, "to", "oifname", "t-", needs_to);
    bytes_put_text(out, "]}\n");
}
