/* IPv4 and IPv6 addresses and prefixes as values: read, write, compare, count. Pure; any thread. */
#ifndef COMMON_IP_ADDRESS_H
#define COMMON_IP_ADDRESS_H

#include "common/base.h"

#define IP_TEXT_BYTES 46   /* INET6_ADDRSTRLEN: the longest address with its NUL */
#define CIDR_TEXT_BYTES 50 /* with "/128" */

struct ip_address {
    uint8_t family;    /* 4 or 6; 0 = none */
    uint8_t bytes[16]; /* network order; the first 4 of IPv4, zeros behind them */
};
struct ip_prefix {
    struct ip_address base; /* bits behind the prefix are zero */
    uint8_t bits;
};

/* Dotted decimal or RFC 4291 text; nothing before or behind it. */
bool ip_parse(const char *text, struct ip_address *ret);
/* Canonical text (RFC 5952 for IPv6); returns @buffer. */
const char *ip_format(const struct ip_address *ip, char buffer[IP_TEXT_BYTES]);
/* "address/bits"; a bare address is a prefix of all its bits. Refused where bits behind the prefix are set. */
bool ip_prefix_parse(const char *text, struct ip_prefix *ret);
const char *ip_prefix_format(const struct ip_prefix *prefix, char buffer[CIDR_TEXT_BYTES]);

unsigned ip_bits(const struct ip_address *ip); /* 32 or 128 */
/* Order by family, then by value: as memcmp. */
int ip_compare(const struct ip_address *a, const struct ip_address *b);
bool ip_prefix_has(const struct ip_prefix *prefix, const struct ip_address *ip);
struct ip_address ip_prefix_last(const struct ip_prefix *prefix);
/* The next address; false, and @ip untouched, after the last there is. */
bool ip_next(struct ip_address *ip);

#endif
