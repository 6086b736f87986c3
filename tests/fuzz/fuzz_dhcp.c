/* Any frame of a guest to the DHCP answer: what comes back is nothing or a whole answer. */
#include <stdlib.h>
#include <string.h>

#include "compute/agent/dhcp_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct dhcp_lease lease = {
        .mac = {0x52, 0x54, 0, 1, 2, 3}, .ip = {192, 0, 2, 10}, .server = {192, 0, 2, 1}, .dns_count = 6, .mtu = 1500, .hostname = "guest"};
    uint8_t answer[DHCP_ANSWER_BYTES_MAX];
    size_t n = dhcp_answer(&lease, data, size, answer);
    if (n > sizeof answer || (n > 0 && n < 342))
        abort();
    /* the same with what would stop it at the door put right, so that the options are reached */
    if (size < 300 || size > DHCP_FRAME_BYTES_MAX)
        return 0;
    uint8_t *frame = malloc(size);
    memcpy(frame, data, size);
    memcpy(frame + 6, lease.mac, 6);
    memcpy(frame + 12, "\x08\x00\x45", 3);
    frame[16] = (uint8_t)((size - 14) >> 8);
    frame[17] = (uint8_t)(size - 14);
    frame[20] = frame[21] = 0;
    frame[23] = 17;
    memcpy(frame + 36, "\x00\x43", 2);
    frame[38] = (uint8_t)((size - 34) >> 8);
    frame[39] = (uint8_t)(size - 34);
    memcpy(frame + 42, "\1\1\6", 3);
    memset(frame + 42 + 24, 0, 4);
    memcpy(frame + 42 + 28, lease.mac, 6);
    memcpy(frame + 42 + 236, "\x63\x82\x53\x63", 4);
    n = dhcp_answer(&lease, frame, size, answer);
    if (n > sizeof answer || (n > 0 && n < 342))
        abort();
    free(frame);
    return 0;
}
