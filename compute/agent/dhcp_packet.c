/* The DHCP answer; see the header. Byte offsets are those of RFC 2131 figure 1, behind Ethernet, IPv4 and UDP. */
#include "compute/agent/dhcp_packet.h"

#include <string.h>

enum {
    ETHERNET_BYTES = 14,
    IP_BYTES = 20, /* of our answer: without options */
    UDP_BYTES = 8,
    BOOTP_BYTES = 240, /* fixed part and cookie */
    BOOTP_BYTES_MIN = 300,
    HEADERS_BYTES = ETHERNET_BYTES + IP_BYTES + UDP_BYTES,
    PORT_SERVER = 67,
    PORT_CLIENT = 68,
    AT_XID = 4,
    AT_FLAGS = 10,
    AT_CIADDR = 12,
    AT_YIADDR = 16,
    AT_SIADDR = 20,
    AT_GIADDR = 24,
    AT_CHADDR = 28,
    AT_COOKIE = 236,
};
enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6, INFORM = 8 };
enum {
    OPTION_NETMASK = 1,
    OPTION_ROUTER = 3,
    OPTION_DNS = 6,
    OPTION_HOSTNAME = 12,
    OPTION_MTU = 26,
    OPTION_REQUESTED = 50,
    OPTION_LEASE = 51,
    OPTION_TYPE = 53,
    OPTION_SERVER = 54,
    OPTION_RENEW = 58,
    OPTION_REBIND = 59,
    OPTION_END = 255,
};
static const uint8_t cookie[4] = {99, 130, 83, 99};
static const uint8_t nobody[4];

/* What a question says, copied out of it. */
struct question {
    uint8_t type;
    uint8_t bootp[AT_COOKIE];
    uint8_t requested[4], server[4];
    bool has_requested, has_server;
};

static unsigned get_u16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static void put_u16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put_u32(uint8_t *at, uint32_t value)
{
    put_u16(at, value >> 16);
    put_u16(at + 2, value & 0xffff);
}

/* ---- the question ---- */

/* The UDP payload of a whole, unfragmented datagram for the server's port; NULL if it is anything else. */
static const uint8_t *find_bootp(const struct dhcp_lease *lease, const uint8_t *frame, size_t size, size_t *ret_size)
{
    if (size < HEADERS_BYTES + BOOTP_BYTES || size > DHCP_FRAME_BYTES_MAX || get_u16(frame + 12) != 0x0800 ||
        memcmp(frame + 6, lease->mac, sizeof(lease->mac)) != 0)
        return NULL;
    const uint8_t *ip = frame + ETHERNET_BYTES;
    size_t header = (size_t)(ip[0] & 15) * 4, total = get_u16(ip + 2);
    if (ip[0] >> 4 != 4 || header < IP_BYTES || total > size - ETHERNET_BYTES || total < header + UDP_BYTES ||
        (get_u16(ip + 6) & 0x3fff) != 0 || ip[9] != 17)
        return NULL;
    const uint8_t *udp = ip + header;
    size_t length = get_u16(udp + 4);
    if (get_u16(udp + 2) != PORT_SERVER || length < UDP_BYTES + BOOTP_BYTES || length > total - header)
        return NULL;
    *ret_size = length - UDP_BYTES;
    return udp + UDP_BYTES;
}

static void take_option(struct question *q, uint8_t code, const uint8_t *value, uint8_t length)
{
    if (code == OPTION_TYPE && length == 1) {
        q->type = value[0];
    } else if (code == OPTION_REQUESTED && length == 4) {
        memcpy(q->requested, value, 4);
        q->has_requested = true;
    } else if (code == OPTION_SERVER && length == 4) {
        memcpy(q->server, value, 4);
        q->has_server = true;
    }
}

static bool read_question(const struct dhcp_lease *lease, const uint8_t *bootp, size_t size, struct question *q)
{
    /* BOOTREQUEST over Ethernet, from the NIC itself and not through a relay */
    if (bootp[0] != 1 || bootp[1] != 1 || bootp[2] != 6 || memcmp(bootp + AT_CHADDR, lease->mac, 6) != 0 ||
        memcmp(bootp + AT_GIADDR, nobody, 4) != 0 || memcmp(bootp + AT_COOKIE, cookie, sizeof(cookie)) != 0)
        return false;
    memset(q, 0, sizeof(*q));
    memcpy(q->bootp, bootp, sizeof(q->bootp));
    for (size_t at = BOOTP_BYTES; at < size && bootp[at] != OPTION_END;) {
        uint8_t code = bootp[at++];
        if (code == 0)
            continue; /* padding has no length */
        if (at >= size || bootp[at] > size - at - 1)
            return false;
        take_option(q, code, bootp + at + 1, bootp[at]);
        at += 1u + bootp[at];
    }
    return true;
}

/* The type of the answer; 0: none. */
static uint8_t decide_type(const struct dhcp_lease *lease, const struct question *q)
{
    if (q->has_server && memcmp(q->server, lease->server, 4) != 0)
        return 0; /* it has chosen another server */
    if (q->type == DISCOVER)
        return OFFER;
    if (q->type == INFORM)
        return ACK;
    if (q->type != REQUEST)
        return 0;
    const uint8_t *wanted = q->has_requested ? q->requested : q->bootp + AT_CIADDR;
    return memcmp(wanted, lease->ip, 4) == 0 ? ACK : NAK;
}

/* ---- the answer ---- */

static uint8_t *put_option(uint8_t *at, uint8_t code, const void *value, size_t length)
{
    *at++ = code;
    *at++ = (uint8_t)length;
    memcpy(at, value, length);
    return at + length;
}

static uint8_t *put_times(uint8_t *at)
{
    uint8_t seconds[4];
    put_u32(seconds, DHCP_LEASE_S);
    at = put_option(at, OPTION_LEASE, seconds, 4);
    put_u32(seconds, DHCP_LEASE_S / 2);
    at = put_option(at, OPTION_RENEW, seconds, 4);
    put_u32(seconds, DHCP_LEASE_S / 8 * 7);
    return put_option(at, OPTION_REBIND, seconds, 4);
}

/* At most 3 + 6 + 18 + 6 + 6 + 26 + 66 + 4 + 1 bytes. */
static uint8_t *put_options(uint8_t *at, const struct dhcp_lease *lease, uint8_t type, bool leased)
{
    uint8_t mtu[2];
    at = put_option(at, OPTION_TYPE, &type, 1);
    at = put_option(at, OPTION_SERVER, lease->server, 4);
    if (type != NAK) {
        if (leased)
            at = put_times(at);
        at = put_option(at, OPTION_NETMASK, lease->netmask, 4);
        if (memcmp(lease->gateway, nobody, 4) != 0)
            at = put_option(at, OPTION_ROUTER, lease->gateway, 4);
        if (lease->dns_count > 0)
            at = put_option(at, OPTION_DNS, lease->dns, MIN(lease->dns_count, DHCP_DNS_MAX) * 4);
        size_t length = strnlen(lease->hostname, sizeof(lease->hostname));
        if (length > 0)
            at = put_option(at, OPTION_HOSTNAME, lease->hostname, length);
        put_u16(mtu, lease->mtu);
        if (lease->mtu != 0)
            at = put_option(at, OPTION_MTU, mtu, 2);
    }
    *at++ = OPTION_END;
    return at;
}

/* RFC 1071 sum of @size bytes on top of @sum, not folded. */
static uint32_t sum_bytes(uint32_t sum, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i + 1 < size; i += 2)
        sum += get_u16(data + i);
    return size % 2 != 0 ? sum + ((uint32_t)data[size - 1] << 8) : sum;
}

static unsigned fold(uint32_t sum)
{
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum & 0xffff;
}

static void put_headers(uint8_t *frame, const struct dhcp_lease *lease, size_t bootp_size, const uint8_t *to_mac,
                        const uint8_t *to_ip)
{
    uint8_t *ip = frame + ETHERNET_BYTES, *udp = ip + IP_BYTES;
    size_t udp_size = UDP_BYTES + bootp_size;
    /* From the NIC's own address with one bit turned: an address that is nobody's, and not the guest's. */
    memcpy(frame, to_mac, 6);
    memcpy(frame + 6, lease->mac, 6);
    frame[11] ^= 1;
    frame[6] |= 2;
    put_u16(frame + 12, 0x0800);
    ip[0] = 0x45;
    ip[1] = 0x10;
    put_u16(ip + 2, (unsigned)(IP_BYTES + udp_size));
    ip[8] = 64;
    ip[9] = 17;
    memcpy(ip + 12, lease->server, 4);
    memcpy(ip + 16, to_ip, 4);
    put_u16(ip + 10, fold(sum_bytes(0, ip, IP_BYTES)));
    put_u16(udp, PORT_SERVER);
    put_u16(udp + 2, PORT_CLIENT);
    put_u16(udp + 4, (unsigned)udp_size);
    uint32_t sum = sum_bytes(17u + (uint32_t)udp_size, ip + 12, 8);
    unsigned check = fold(sum_bytes(sum, udp, udp_size));
    put_u16(udp + 6, check == 0 ? 0xffff : check);
}

size_t dhcp_answer(const struct dhcp_lease *lease, const void *frame, size_t size, uint8_t *ret_answer)
{
    static const uint8_t everybody_mac[6] = {255, 255, 255, 255, 255, 255}, everybody_ip[4] = {255, 255, 255, 255};
    struct question q;
    size_t bootp_size = 0;
    const uint8_t *question = find_bootp(lease, frame, size, &bootp_size);
    if (question == NULL || !read_question(lease, question, bootp_size, &q))
        return 0;
    uint8_t type = decide_type(lease, &q), *bootp = ret_answer + HEADERS_BYTES;
    if (type == 0)
        return 0;
    bool inform = q.type == INFORM, has_address = memcmp(q.bootp + AT_CIADDR, nobody, 4) != 0;
    bool broadcast = type == NAK || (!has_address && (q.bootp[AT_FLAGS] & 0x80) != 0);
    memset(ret_answer, 0, DHCP_ANSWER_BYTES_MAX);
    bootp[0] = 2;
    bootp[1] = 1;
    bootp[2] = 6;
    memcpy(bootp + AT_XID, q.bootp + AT_XID, 4);
    memcpy(bootp + AT_FLAGS, q.bootp + AT_FLAGS, 2);
    if (type == ACK)
        memcpy(bootp + AT_CIADDR, q.bootp + AT_CIADDR, 4);
    if (type != NAK && !inform)
        memcpy(bootp + AT_YIADDR, lease->ip, 4);
    memcpy(bootp + AT_CHADDR, lease->mac, 6);
    memcpy(bootp + AT_COOKIE, cookie, sizeof(cookie));
    uint8_t *end = put_options(bootp + BOOTP_BYTES, lease, type, !inform);
    bootp_size = MAX((size_t)(end - bootp), (size_t)BOOTP_BYTES_MIN);
    put_headers(ret_answer, lease, bootp_size, broadcast ? everybody_mac : lease->mac,
                broadcast ? everybody_ip : has_address ? q.bootp + AT_CIADDR : lease->ip);
    return HEADERS_BYTES + bootp_size;
}
