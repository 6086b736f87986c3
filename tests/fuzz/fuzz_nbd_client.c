/* Whatever an NBD server says: the client ends with an answer or an error, and never writes outside of what it was given
 * to fill. The server's words lie in the socket before the client begins; then it hears no more. Also the file of
 * changed_map.h, which is as short. */
#include <string.h>
#include <sys/socket.h>

#include "block/changed_map.h"
#include "block/nbd_client_hello.h"
#include "block/nbd_wire.h"
#include "common/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void hello_try(const uint8_t *data, size_t size)
{
    struct nbd_hello hello;
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        return;
    /* Records of an option, a type, a length and so much data become replies; or the bytes are the server's as they are. */
    uint8_t words[8192], *at = nbd_put16(nbd_put64(nbd_put64(words, NBD_MAGIC), NBD_OPTION_MAGIC), NBD_FLAG_FIXED);
    bool is_made = size > 0 && (data[0] & 1);
    for (const uint8_t *end = data + size, *r = data + 1; is_made && end - r >= 3 && at - words < 7000;) {
        size_t n = MIN((size_t)r[2], (size_t)(end - r - 3));
        uint32_t type = r[1] & 0x80 ? NBD_REP_ERROR + (r[1] & 15) : r[1] & 7;
        at = nbd_put32(nbd_put32(nbd_put32(nbd_put64(at, NBD_REPLY_MAGIC), r[0] % 12), type), (uint32_t)n);
        memcpy(at, r + 3, n);
        at += n;
        r += 3 + n;
    }
    if (is_made) {
        data = words;
        size = (size_t)(at - words);
    }
    if (send(fds[1], data, size, MSG_DONTWAIT) == (ssize_t)size && shutdown(fds[1], SHUT_WR) == 0 &&
        nbd_hello_negotiate(fds[0], "disk", "then", &(struct nbd_writer){.number = 1}, 1000, &hello, NULL) == 0)
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
