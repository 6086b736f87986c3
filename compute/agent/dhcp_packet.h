/* DHCPv4 (RFC 2131, 2132) for one VM: a frame of the guest in, the answer's frame out. Its lease is fixed, so there is no
 * state: whoever asks with the NIC's own MAC address gets the NIC's own address. Pure; the frame is a guest's and may be
 * anything.
 *
 *   DISCOVER --> OFFER      REQUEST, of the right address --> ACK, of another --> NAK      INFORM --> ACK without a lease
 *   anything else, or for another server --> no answer */
#ifndef COMPUTE_AGENT_DHCP_PACKET_H
#define COMPUTE_AGENT_DHCP_PACKET_H

#include "common/base.h"

#define DHCP_FRAME_BYTES_MAX 1514u /* longer frames are not looked at */
#define DHCP_ANSWER_BYTES_MAX 590u /* Ethernet, IP, UDP and the 548 bytes that every client takes (RFC 2131 §2) */
#define DHCP_DNS_MAX 6u
#define DHCP_LEASE_S 86400u /* long, for an agent that is away does not answer; T1 is the half */

struct dhcp_lease {
    uint8_t mac[6];
    uint8_t ip[4], netmask[4];
    uint8_t server[4];  /* who we say that we are: the gateway, or else an address that nobody has */
    uint8_t gateway[4]; /* zeros: none */
    uint8_t dns[DHCP_DNS_MAX][4];
    unsigned dns_count;
    uint16_t mtu;      /* 0: not told */
    char hostname[64]; /* "": not told */
};

/* The size of the answer in @ret_answer (DHCP_ANSWER_BYTES_MAX bytes), an Ethernet frame; 0: there is none. */
size_t dhcp_answer(const struct dhcp_lease *lease, const void *frame, size_t size, uint8_t *ret_answer);

#endif
