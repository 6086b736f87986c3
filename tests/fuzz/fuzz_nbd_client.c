/* Whatever an NBD server says: the client ends with an answer or an error, and never writes outside of what it was given
 * to fill. The server's words lie in the socket before the client begins; then it hears no more. Also the file of
 * changed_map.h, which is as short. */
#include <string.h>
#include <sys/socket.h>

#include "block/changed_map.h"
#include "block/nbd_client_hello.h"
#include "common/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void hello_try(const uint8_t *data, size_t size)
{
    struct nbd_hello hello;
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        return;
    if (send(fds[1], data, size, MSG_DONTWAIT) == (ssize_t)size && shutdown(fds[1], SHUT_WR) == 0 &&
        nbd_hello_negotiate(fds[0], "disk", "then", 1000, &hello, NULL) == 0)
        ASSERT(hello.size_bytes > 0 && hello.size_bytes % 512 == 0);
    close(fds[0]);
    close(fds[1]);
}

static void map_try(const uint8_t *data, size_t size)
{
    uint8_t stamp[CHANGED_STAMP_BYTES] = {0};
    struct changed_map map;
    uint64_t end;
    CLEANUP_FREE uint8_t *mended = xcalloc(1, size + 4);
    uint32_t crc = bytes_crc32c(0, data, size);
    memcpy(mended, data, size);
    memcpy(mended + size, &crc, 4);
    if (changed_map_init(&map, 64 * CHANGED_CLUSTER_BYTES) == 0) {
        if (changed_map_decode(&map, mended, size + 4, stamp, NULL) == 0)
            for (unsigned i = 0; i < map.base_count; i++) {
                ASSERT(map.bases[i].period < map.current && strlen(map.bases[i].name) > 0);
                (void)changed_map_since(&map, map.bases[i].period, 0, &end);
                ASSERT(end > 0 && end <= map.size_bytes);
            }
        (void)changed_map_cut(&map);
    }
    changed_map_finish(&map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] & 1)
        hello_try(data + 1, size - 1);
    else
        map_try(data + 1, size - 1);
    return 0;
}
