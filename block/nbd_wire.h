/* The numbers of the Network Block Device protocol (doc/proto.md of the NBD project: "fixed newstyle", structured
 * replies, metadata contexts) and their big-endian form. What both sides allow each other at most is here as well.
 *
 * An option of our own, NBD_OPT_WRITER: {16 bytes that are the client's, u64 number of its connection}. Acknowledged, nothing
 * that this client has asked for on connections of lower numbers is carried out any more: what has begun has left the disk,
 * what comes later is not read. A connection that is later than a living one of a higher number is refused, and ends.
 *
 * Contexts: base:allocation, and our own
 *   drover:changed:<name>   what may have changed since the state of that name (changed_map.h): bit 0 set; clear: it is the
 *                           same as then. Offered under that one name alone, so that nobody takes it for another state. */
#ifndef BLOCK_NBD_WIRE_H
#define BLOCK_NBD_WIRE_H

#include <endian.h>
#include <string.h>

#include "common/base.h"

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_MAGIC UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC UINT32_C(0x668e33ef)

#define NBD_CONTEXT_ALLOCATION "base:allocation"
#define NBD_CONTEXT_CHANGED "drover:changed:" /* and the name, at most NBD_SINCE_BYTES_MAX bytes */

enum {
    NBD_FLAG_FIXED = 1 << 0,     /* of the handshake, both sides */
    NBD_FLAG_NO_ZEROES = 1 << 1,
};

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED = 8,
    NBD_OPT_LIST_CONTEXTS = 9,
    NBD_OPT_SET_CONTEXTS = 10,
    NBD_OPT_WRITER = 0x44525752, /* "DRWR": far from what the protocol may give a meaning to */
};

#define NBD_REP_ERROR UINT32_C(0x80000000)
enum nbd_rep {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_CONTEXT = 4,
};
#define NBD_REP_UNSUPPORTED (NBD_REP_ERROR + 1)
#define NBD_REP_POLICY (NBD_REP_ERROR + 2)
#define NBD_REP_INVALID (NBD_REP_ERROR + 3)
#define NBD_REP_UNKNOWN (NBD_REP_ERROR + 6)
#define NBD_REP_TOO_BIG (NBD_REP_ERROR + 9)

enum { NBD_INFO_EXPORT = 0, NBD_INFO_BLOCK_SIZE = 3 };

enum { /* of the transmission */
    NBD_HAS_FLAGS = 1 << 0,
    NBD_READ_ONLY = 1 << 1,
    NBD_SEND_FLUSH = 1 << 2,
    NBD_SEND_FUA = 1 << 3,
    NBD_SEND_TRIM = 1 << 5,
    NBD_SEND_WRITE_ZEROES = 1 << 6,
    NBD_SEND_DF = 1 << 7,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISCONNECT = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};
enum { /* of a command */
    NBD_CMD_FUA = 1 << 0,
    NBD_CMD_NO_HOLE = 1 << 1,
    NBD_CMD_DF = 1 << 2,
    NBD_CMD_REQ_ONE = 1 << 3,
};

enum { NBD_CHUNK_DONE = 1 << 0 };
enum nbd_chunk {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_DATA = 1,
    NBD_CHUNK_HOLE = 2,
    NBD_CHUNK_STATUS = 5,
    NBD_CHUNK_ERROR = 0x8001,
    NBD_CHUNK_ERROR_OFFSET = 0x8002,
};

enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1, NBD_STATE_CHANGED = 1 << 0 };

enum nbd_errno {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

enum { /* limits */
    NBD_NAME_BYTES_MAX = 255,
    NBD_SINCE_BYTES_MAX = 63,
    NBD_OPTION_BYTES_MAX = 4096,      /* data of one option */
    NBD_OPTIONS_MAX = 64,             /* before the transmission */
    NBD_QUERIES_MAX = 16,             /* of one option */
    NBD_REQUEST_BYTES_MAX = 1 << 25,  /* = BLOCK_REQUEST_BYTES_MAX */
    NBD_REQUESTS_MAX = 32,            /* at once on a connection */
    NBD_EXTENTS_MAX = 512,            /* in one reply */
};

enum { /* sizes on the wire */
    NBD_HELLO_BYTES = 18,
    NBD_CLIENT_FLAGS_BYTES = 4,
    NBD_OPTION_HEAD_BYTES = 16,
    NBD_WRITER_ID_BYTES = 16,
    NBD_WRITER_BYTES = NBD_WRITER_ID_BYTES + 8, /* data of NBD_OPT_WRITER */
    NBD_REPLY_HEAD_BYTES = 20,
    NBD_REQUEST_HEAD_BYTES = 28,
    NBD_SIMPLE_HEAD_BYTES = 16,
    NBD_CHUNK_HEAD_BYTES = 20,
};

static inline uint8_t *nbd_put16(uint8_t *at, uint16_t v)
{
    v = htobe16(v);
    memcpy(at, &v, 2);
    return at + 2;
}
static inline uint8_t *nbd_put32(uint8_t *at, uint32_t v)
{
    v = htobe32(v);
    memcpy(at, &v, 4);
    return at + 4;
}
static inline uint8_t *nbd_put64(uint8_t *at, uint64_t v)
{
    v = htobe64(v);
    memcpy(at, &v, 8);
    return at + 8;
}
static inline uint16_t nbd_get16(const uint8_t *at)
{
    uint16_t v;
    memcpy(&v, at, 2);
    return be16toh(v);
}
static inline uint32_t nbd_get32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, 4);
    return be32toh(v);
}
static inline uint64_t nbd_get64(const uint8_t *at)
{
    uint64_t v;
    memcpy(&v, at, 8);
    return be64toh(v);
}

#endif
