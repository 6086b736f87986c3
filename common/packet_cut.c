/* Packets are dropped for a while; see the header. */
#include "common/packet_cut.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/log.h"
#include "common/nft_run.h"

#define TABLE "inet drover_drill_" /* and the role */
#define TABLE_BEFORE "inet drover_drill" /* of all roles, as earlier versions had it */
#define MARK_BYTES_MAX 64

static int run(const char *text, size_t size, struct error *err)
{
    return nft_run(text, size, false, PACKET_CUT_DEADLINE_MS, err);
}

/* 4 or 6; 0: no address of another machine. */
static int family(const char *text)
{
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, text, &four) == 1)
        return (ntohl(four.s_addr) >> 24) == 127 || four.s_addr == 0 ? 0 : 4;
    if (inet_pton(AF_INET6, text, &six) == 1)
        return IN6_IS_ADDR_LOOPBACK(&six) || IN6_IS_ADDR_UNSPECIFIED(&six) ? 0 : 6;
    return 0;
}

static int check(const struct string_list *far, unsigned *ret_fours, unsigned *ret_sixes, struct error *err)
{
    unsigned fours = 0, sixes = 0;
    if (far->count == 0 || far->count > PACKET_CUT_FAR_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/far", "from 1 to %u addresses of other machines are needed", PACKET_CUT_FAR_MAX);
    for (size_t i = 0; i < far->count; i++) {
        int kind = family(far->items[i]);
        if (kind == 0)
            return error_set_field(err, -EINVAL, ERROR_INVALID, "/far", "'%.60s' is no IPv4 or IPv6 address of another machine", far->items[i]);
        fours += kind == 4;
        sixes += kind == 6;
    }
    *ret_fours = fours;
    *ret_sixes = sixes;
    return 0;
}

/* ---- text ---- */

static void put_ports(struct bytes_writer *out, const uint16_t *ports, unsigned count)
{
    bytes_put_text(out, "{ ");
    for (unsigned i = 0; i < count; i++)
        bytes_put_format(out, "%s%u", i > 0 ? ", " : "", ports[i]);
    bytes_put_text(out, " }");
}

/* @own, @other: sport or dport; @side: saddr or daddr. */
static void put_chain(struct bytes_writer *out, const struct packet_cut_rules *rules, const char *hook, const char *own, const char *other,
                      const char *side)
{
    static const char *const sets[][2] = {{"ip", "@far4"}, {"ip6", "@far6"}};
    bytes_put_format(out, "  chain %s { type filter hook %s priority -300; policy accept;\n", hook, hook);
    if (rules->own_count == 0 && rules->open_port != 0)
        bytes_put_format(out, "    tcp %s %u accept\n", own, rules->open_port);
    for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
        if (rules->own_count == 0) {
            bytes_put_format(out, "    %s %s %s drop\n", sets[i][0], side, sets[i][1]);
            continue;
        }
        bytes_put_format(out, "    %s %s %s tcp %s ", sets[i][0], side, sets[i][1], own);
        put_ports(out, rules->own, rules->own_count);
        bytes_put_text(out, " drop\n");
        if (rules->theirs_count == 0)
            continue;
        bytes_put_format(out, "    %s %s %s tcp %s ", sets[i][0], side, sets[i][1], other);
        put_ports(out, rules->theirs, rules->theirs_count);
        bytes_put_text(out, " drop\n");
    }
    bytes_put_text(out, "  }\n");
}

/* Whether it is there or not. */
static void put_removal(struct bytes_writer *out, const char *table, const char *role)
{
    bytes_put_format(out, "add table %s%s\ndelete table %s%s\n", table, role, table, role);
}

static void put_table(struct bytes_writer *out, const char *role, const struct packet_cut_rules *rules)
{
    put_removal(out, TABLE, role);
    bytes_put_format(out, "table " TABLE "%s {\n"
                     "  set far4 { type ipv4_addr; flags timeout; }\n  set far6 { type ipv6_addr; flags timeout; }\n", role);
    put_chain(out, rules, "input", "dport", "sport", "saddr");
    put_chain(out, rules, "output", "sport", "dport", "daddr");
    bytes_put_text(out, "}\n");
}

static void put_elements(struct bytes_writer *out, const char *role, const struct string_list *far, int kind, unsigned seconds)
{
    unsigned n = 0;
    bytes_put_format(out, "add element " TABLE "%s far%d { ", role, kind);
    for (size_t i = 0; i < far->count; i++)
        if (family(far->items[i]) == kind)
            bytes_put_format(out, "%s%s timeout %us", n++ > 0 ? ", " : "", far->items[i], seconds);
    bytes_put_text(out, " }\n");
}

/* ---- life ---- */

static int write_mark(const char *role, const char *mark, struct error *err)
{
    CLEANUP_FREE char *name = xasprintf(TABLE "%s\n", role);
    return file_write_atomic(mark, name, strlen(name), 0600, err);
}

int packet_cut_prepare(const char *role, const char *mark, const struct packet_cut_rules *rules, const struct string_list *far,
                       unsigned seconds, char **ret_elements, struct error *err)
{
    struct bytes_writer table = {.data = NULL}, elements = {.data = NULL};
    unsigned fours = 0, sixes = 0;
    int r = check(far, &fours, &sixes, err);
    if (r == 0 && (seconds < 1 || seconds > PACKET_CUT_SECONDS_MAX)) /* 0 would be for ever */
        r = error_set_field(err, -EINVAL, ERROR_INVALID, "/seconds", "it must be from 1 to %u", PACKET_CUT_SECONDS_MAX);
    if (r < 0 || (r = write_mark(role, mark, err)) < 0)
        return r;
    put_table(&table, role, rules);
    r = run((const char *)table.data, table.size, err);
    bytes_writer_finish(&table);
    if (r < 0) {
        unlink(mark);
        return r;
    }
    if (fours > 0)
        put_elements(&elements, role, far, 4, seconds);
    if (sixes > 0)
        put_elements(&elements, role, far, 6, seconds);
    bytes_put_u8(&elements, 0);
    *ret_elements = (char *)elements.data;
    return 0;
}

int packet_cut_begin(const char *elements, struct error *err)
{
    return run(elements, strlen(elements), err);
}

static void remove_table(const char *table, const char *role)
{
    struct bytes_writer text = {.data = NULL};
    struct error err = {.code = 0};
    put_removal(&text, table, role);
    if (run((const char *)text.data, text.size, &err) < 0)
        log_warning("drill-table-stays", "%s; it drops nothing any more", err.text);
    bytes_writer_finish(&text);
}

void packet_cut_end(const char *role, const char *mark)
{
    remove_table(TABLE, role);
    unlink(mark);
}

void packet_cut_clean(const char *role, const char *mark)
{
    CLEANUP_FREE char *name = NULL;
    size_t size;
    if (access(mark, F_OK) < 0)
        return;
    if (file_read(mark, MARK_BYTES_MAX, &name, &size, NULL) == 0 && strcmp(name, TABLE_BEFORE "\n") == 0)
        remove_table(TABLE_BEFORE, "");
    packet_cut_end(role, mark);
}

uint16_t packet_cut_port(const char *address)
{
    const char *colon = address != NULL ? strrchr(address, ':') : NULL;
    unsigned long port = colon != NULL ? strtoul(colon + 1, NULL, 10) : 0;
    return port <= UINT16_MAX ? (uint16_t)port : 0;
}
