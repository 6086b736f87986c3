/* Whatever an NBD client says: the session stays within its limits, every block request is carried out or refused, and
 * what it answers to is bounded. The disk is memory; requests end when drained. The first byte chooses the kind of export,
 * whether it is brought
 * to the transmission first, and whether what follows is taken as it is or made into options or requests that have their
 * magic numbers. */
#include <string.h>

#include "block/nbd_session.h"
#include "block/nbd_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DISK_BYTES = 1 << 20, BYTES_MAX = 1 << 18 };

struct memory_disk {
    struct block block;
    struct list queue;
    uint8_t *bytes;
};

static int disk_submit(struct block *b, struct block_request *request)
{
    list_append(&CONTAINER_OF(b, struct memory_disk, block)->queue, &request->link);
    return 0;
}

static void disk_drain(struct block *b)
{
    struct memory_disk *d = CONTAINER_OF(b, struct memory_disk, block);
    while (!list_empty(&d->queue)) {
        struct block_request *r = LIST_ENTRY(d->queue.next, struct block_request, link);
        uint64_t at = r->offset;
        list_remove(&r->link);
        for (unsigned i = 0; i < r->iovec_count; at += r->iovecs[i++].iov_len)
            memcpy(r->op == BLOCK_READ ? r->iovecs[i].iov_base : d->bytes + at,
                   r->op == BLOCK_READ ? d->bytes + at : r->iovecs[i].iov_base, r->iovecs[i].iov_len);
        r->result = 0;
        block_complete(b, r);
    }
}

static int disk_next_data(struct block *b UNUSED, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    *ret_start = (from + 65535) / 65536 * 65536;
    *ret_end = *ret_start + 4096;
    return *ret_end <= DISK_BYTES;
}

static void disk_close(struct block *b UNUSED)
{
}

static bool changed(void *arg UNUSED, uint64_t from, uint64_t *ret_end)
{
    *ret_end = MIN((from / 131072 + 1) * 131072, (uint64_t)DISK_BYTES);
    return from / 131072 % 2 == 0;
}

static void no_wake(void *arg UNUSED)
{
}

static void feed(struct nbd_session *s, struct block *b, const uint8_t *data, size_t size)
{
    struct iovec iovecs[4];
    size_t room;
    void *at;
    while (size > 0 && !nbd_session_is_over(s)) {
        at = nbd_session_room(s, &room);
        if (at != NULL) {
            size_t n = MIN(room, size);
            memcpy(at, data, n);
            nbd_session_received(s, n);
            data += n;
            size -= n;
            continue;
        }
        block_drain(b);
        uint64_t held = 0;
        for (unsigned n; (n = nbd_session_output(s, iovecs, 4)) > 0;) {
            size_t sum = 0;
            for (unsigned i = 0; i < n; i++)
                sum += iovecs[i].iov_len;
            nbd_session_sent(s, sum);
            held += sum;
        }
        ASSERT(held <= 2 * BYTES_MAX + NBD_REQUEST_BYTES_MAX);
        if (nbd_session_room(s, &room) == NULL && !nbd_session_is_over(s))
            ASSERT(!"it neither wants anything nor is it over");
    }
}

/* Records of a kind, a length and so much data. */
static void feed_options(struct nbd_session *s, struct block *b, const uint8_t *data, size_t size)
{
    uint8_t head[NBD_OPTION_HEAD_BYTES];
    while (size >= 2) {
        size_t n = MIN((size_t)data[1], size - 2);
        uint32_t option = data[0] % 12 == 11 ? NBD_OPT_WRITER : data[0] % 12;
        nbd_put32(nbd_put32(nbd_put64(head, NBD_OPTION_MAGIC), option), (uint32_t)n);
        feed(s, b, head, sizeof head);
        feed(s, b, data + 2, n);
        data += 2 + n;
        size -= 2 + n;
    }
}

/* Records of 6 bytes; a write's payload is made up. */
static void feed_requests(struct nbd_session *s, struct block *b, const uint8_t *data, size_t size)
{
    static const uint8_t payload[65536];
    uint8_t head[NBD_REQUEST_HEAD_BYTES];
    for (; size >= 6; data += 6, size -= 6) {
        uint32_t bytes = data[4] * 512u + (data[5] & 0x80 ? data[5] : 0);
        uint8_t *at = nbd_put16(nbd_put16(nbd_put32(head, NBD_REQUEST_MAGIC), data[0]), data[1] % 9);
        nbd_put32(nbd_put64(nbd_put64(at, size), (uint64_t)nbd_get16(data + 2) * 512), bytes);
        feed(s, b, head, sizeof head);
        for (uint32_t sent = 0; data[1] % 9 == NBD_CMD_WRITE && sent < bytes; sent += MIN(bytes - sent, 65536u))
            feed(s, b, payload, MIN(bytes - sent, 65536u));
    }
}

/* A session of the client 0, its first, that writes. */
static struct nbd_session *earlier_session(const struct nbd_session_options *options, struct block *b)
{
    uint8_t begin[128] = {0}, *at = nbd_put32(begin, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
    static const uint8_t payload[512];
    at = nbd_put32(nbd_put32(nbd_put64(at, NBD_OPTION_MAGIC), NBD_OPT_WRITER), NBD_WRITER_BYTES);
    at = nbd_put64(at + NBD_WRITER_ID_BYTES, 1);
    at = nbd_put32(nbd_put32(nbd_put64(at, NBD_OPTION_MAGIC), NBD_OPT_EXPORT_NAME), 0);
    at = nbd_put16(nbd_put16(nbd_put32(at, NBD_REQUEST_MAGIC), 0), NBD_CMD_WRITE);
    at = nbd_put32(nbd_put64(nbd_put64(at, 1), 0), sizeof payload);
    struct nbd_session *s = nbd_session_create(options);
    feed(s, b, begin, (size_t)(at - begin));
    feed(s, b, payload, sizeof payload);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t disk_bytes[DISK_BYTES];
    static const struct block_ops ops = {
        .submit = disk_submit, .drain = disk_drain, .close = disk_close, .next_data = disk_next_data};
    struct memory_disk disk = {.block = {.ops = &ops,
                                         .size_bytes = DISK_BYTES,
                                         .block_bytes = 4096,
                                         .can_discard = true,
                                         .can_write_zeroes = true},
                               .bytes = disk_bytes};
    list_init(&disk.queue);
    if (size > 0) {
        struct nbd_export exports[] = {
            {.name = "a", .block = &disk.block, .access = data[0] % 3, .changed = changed, .changed_since = "x"},
            {.name = "b", .block = &disk.block, .access = NBD_ACCESS_READ},
        };
        struct list peers;
        list_init(&peers);
        const struct nbd_session_options options = {
            .exports = exports, .export_count = 2, .peers = &peers, .bytes_max = BYTES_MAX, .wake = no_wake};
        struct nbd_session *earlier = earlier_session(&options, &disk.block), *s = nbd_session_create(&options);
        uint8_t begin[128], *at = nbd_put32(begin, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
        at = nbd_put32(nbd_put32(nbd_put64(at, NBD_OPTION_MAGIC), NBD_OPT_STRUCTURED), 0);
        at = nbd_put32(nbd_put32(nbd_put64(at, NBD_OPTION_MAGIC), NBD_OPT_SET_CONTEXTS), 8 + 4 + 15 + 4 + 16);
        at = nbd_put32(nbd_put32(nbd_put32(at, 0), 2), 15);
        memcpy(at, NBD_CONTEXT_ALLOCATION, 15);
        at = nbd_put32(at + 15, 16);
        memcpy(at, NBD_CONTEXT_CHANGED "x", 16);
        at += 16;
        if (data[0] & 0x80)
            feed(s, &disk.block, begin, (size_t)(at - begin));
        if (data[0] & 0x40) {
            at = nbd_put32(nbd_put32(nbd_put64(begin, NBD_OPTION_MAGIC), NBD_OPT_EXPORT_NAME), 0);
            feed(s, &disk.block, begin, (size_t)(at - begin));
        }
        if (data[0] & 0x20 && nbd_session_export(s) >= 0)
            feed_requests(s, &disk.block, data + 1, size - 1);
        else if (data[0] & 0x20)
            feed_options(s, &disk.block, data + 1, size - 1);
        else
            feed(s, &disk.block, data + 1, size - 1);
        nbd_session_destroy(s);
        nbd_session_destroy(earlier);
    }
    return 0;
}
