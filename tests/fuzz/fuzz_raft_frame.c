/* Whatever bytes a log entry, a snapshot or a connecting peer holds: readers stay inside them and end. */
#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_transport.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char address[RAFT_TRANSPORT_ADDRESS_MAX];
    struct raft_group group;
    const void *found;
    size_t found_size;
    uint64_t number, epoch;
    int rv;

    if (raft_group_open(&group, data, size) == 0)
        while (raft_group_next(&group, &found, &found_size) > 0)
            ASSERT((const uint8_t *)found >= data && (const uint8_t *)found + found_size <= data + size);
    if (raft_snapshot_open(data, size, &number, &found, &found_size) == 0)
        ASSERT((const uint8_t *)found + found_size <= data + size);
    rv = raft_transport_parse_preamble(data, size, &number, &epoch, address);
    ASSERT(rv < 0 || (size_t)rv <= size);
    return 0;
}
