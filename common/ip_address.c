/* Addresses by inet_pton(3) and inet_ntop(3); see the header. */
#include "common/ip_address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

unsigned ip_bits(const struct ip_address *ip)
{
    return ip->family == 4 ? 32 : 128;
}

static unsigned ip_bytes(const struct ip_address *ip)
{
    return ip_bits(ip) / 8;
}

bool ip_parse(const char *text, struct ip_address *ret)
{
    struct ip_address ip = {.family = 4};
    if (inet_pton(AF_INET, text, ip.bytes) != 1) {
        ip = (struct ip_address){.family = 6};
        if (inet_pton(AF_INET6, text, ip.bytes) != 1)
            return false;
    }
    *ret = ip;
    return true;
}

const char *ip_format(const struct ip_address *ip, char buffer[IP_TEXT_BYTES])
{
    if (inet_ntop(ip->family == 4 ? AF_INET : AF_INET6, ip->bytes, buffer, IP_TEXT_BYTES) == NULL)
        buffer[0] = '\0';
    return buffer;
}

/* Set (or, @value 0, clear) every bit behind the first @bits. */
static void fill_behind(struct ip_address *ip, unsigned bits, uint8_t value)
{
    for (unsigned i = 0; i < ip_bytes(ip); i++) {
        uint8_t mask = bits >= (i + 1) * 8 ? 0 : bits <= i * 8 ? 0xff : (uint8_t)(0xff >> (bits - i * 8));
        ip->bytes[i] = (uint8_t)((ip->bytes[i] & ~mask) | (value & mask));
    }
}

bool ip_prefix_parse(const char *text, struct ip_prefix *ret)
{
    char address[IP_TEXT_BYTES];
    const char *slash = strchr(text, '/');
    size_t n = slash != NULL ? (size_t)(slash - text) : strlen(text);
    struct ip_prefix prefix;
    if (n >= sizeof address)
        return false;
    memcpy(address, text, n);
    address[n] = '\0';
    if (!ip_parse(address, &prefix.base))
        return false;
    unsigned bits = ip_bits(&prefix.base), digits = 0, given = 0;
    for (const char *at = slash != NULL ? slash + 1 : ""; *at != '\0'; at++, digits++) {
        if (*at < '0' || *at > '9' || digits == 3)
            return false;
        given = given * 10 + (unsigned)(*at - '0');
    }
    if (slash != NULL && (digits == 0 || given > bits || (digits > 1 && slash[1] == '0')))
        return false;
    prefix.bits = (uint8_t)(slash != NULL ? given : bits);
    struct ip_address base = prefix.base;
    fill_behind(&base, prefix.bits, 0);
    if (ip_compare(&base, &prefix.base) != 0)
        return false;
    *ret = prefix;
    return true;
}

const char *ip_prefix_format(const struct ip_prefix *prefix, char buffer[CIDR_TEXT_BYTES])
{
    char address[IP_TEXT_BYTES];
    snprintf(buffer, CIDR_TEXT_BYTES, "%s/%u", ip_format(&prefix->base, address), prefix->bits);
    return buffer;
}

int ip_compare(const struct ip_address *a, const struct ip_address *b)
{
    return a->family != b->family ? (a->family < b->family ? -1 : 1) : memcmp(a->bytes, b->bytes, ip_bytes(a));
}

bool ip_prefix_has(const struct ip_prefix *prefix, const struct ip_address *ip)
{
    struct ip_address base = *ip;
    if (ip->family != prefix->base.family)
        return false;
    fill_behind(&base, prefix->bits, 0);
    return ip_compare(&base, &prefix->base) == 0;
}

struct ip_address ip_prefix_last(const struct ip_prefix *prefix)
{
    struct ip_address last = prefix->base;
    fill_behind(&last, prefix->bits, 0xff);
    return last;
}

bool ip_next(struct ip_address *ip)
{
    struct ip_address next = *ip;
    for (unsigned i = ip_bytes(ip); i-- > 0;)
        if (++next.bytes[i] != 0) {
            *ip = next;
            return true;
        }
    return false;
}
