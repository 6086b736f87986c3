/* Frames of a point; see replica_stream.h. */
#include "migration/replica_stream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/bytes.h"

#define MAGIC UINT32_C(0x50524744) /* "DGRP" */
enum { HEADER_BYTES = 32 };
enum frame_type { FRAME_HELLO = 1, FRAME_POINT, FRAME_DATA, FRAME_ZERO, FRAME_END, FRAME_DONE, FRAME_REFUSED };

struct frame {
    uint8_t type, disk;
    uint64_t offset, size;
    uint32_t payload_bytes;
    uint8_t *payload; /* of REPLICA_PIECE_BYTES + 1, the caller's */
};

/* ---- frames ---- */

static int send_all(int fd, const void *data, size_t size, struct error *err)
{
    const uint8_t *at = data;
    while (size > 0) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, -EPIPE, ERROR_UNREACHABLE, "the other side of the replication is gone: %s",
                             n < 0 && errno == EAGAIN ? "it takes nothing any more" : strerror(n < 0 ? errno : EPIPE));
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int receive_all(int fd, void *data, size_t size, struct error *err)
{
    uint8_t *at = data;
    while (size > 0) {
        ssize_t n = recv(fd, at, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, -ECONNRESET, ERROR_UNREACHABLE, "the other side of the replication %s",
                             n == 0 ? "has closed the connection" : errno == EAGAIN ? "says nothing any more" : strerror(errno));
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int frame_send(int fd, const struct frame *f, const void *payload, struct error *err)
{
    struct bytes_writer out = {.data = NULL};
    bytes_put_u32(&out, MAGIC);
    bytes_put_u8(&out, f->type);
    bytes_put_u8(&out, f->disk);
    bytes_put_u16(&out, 0);
    bytes_put_u64(&out, f->offset);
    bytes_put_u64(&out, f->size);
    bytes_put_u32(&out, f->payload_bytes);
    bytes_put_u32(&out, bytes_crc32c(0, payload, f->payload_bytes));
    int code = send_all(fd, out.data, out.size, err);
    bytes_writer_finish(&out);
    return code == 0 && f->payload_bytes > 0 ? send_all(fd, payload, f->payload_bytes, err) : code;
}

static int object_send(int fd, uint8_t type, const struct object_desc *desc, const void *object, struct error *err)
{
    struct bytes_writer out = {.data = NULL};
    object_encode(desc, object, &out);
    const struct frame f = {.type = type, .payload_bytes = (uint32_t)out.size};
    int code = frame_send(fd, &f, out.data, err);
    bytes_writer_finish(&out);
    return code;
}

static int frame_receive(int fd, struct frame *f, struct error *err)
{
    uint8_t header[HEADER_BYTES];
    int code = receive_all(fd, header, sizeof header, err);
    if (code < 0)
        return code;
    struct bytes_reader r = bytes_reader(header, sizeof header);
    uint32_t magic = bytes_get_u32(&r);
    f->type = bytes_get_u8(&r);
    f->disk = bytes_get_u8(&r);
    (void)bytes_get_u16(&r);
    f->offset = bytes_get_u64(&r);
    f->size = bytes_get_u64(&r);
    f->payload_bytes = bytes_get_u32(&r);
    uint32_t sum = bytes_get_u32(&r);
    uint32_t most = f->type == FRAME_DATA ? REPLICA_PIECE_BYTES : REPLICA_TEXT_BYTES_MAX;
    if (magic != MAGIC || f->payload_bytes > most)
        return error_set(err, -EPROTO, ERROR_INVALID, "the other side of the replication does not speak its protocol");
    code = receive_all(fd, f->payload, f->payload_bytes, err);
    if (code < 0)
        return code;
    f->payload[f->payload_bytes] = '\0';
    if (bytes_crc32c(0, f->payload, f->payload_bytes) != sum)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a piece of the replication was damaged on its way");
    return 0;
}

/* The next one, of @type; REFUSED is an error in the other side's words, and all else one of ours. */
static int frame_expect(int fd, struct frame *f, uint8_t type, struct error *err)
{
    int code = frame_receive(fd, f, err);
    if (code < 0 || f->type == type)
        return code;
    if (f->type != FRAME_REFUSED)
        return error_set(err, -EPROTO, ERROR_INVALID, "the other side of the replication sends frame %u, not %u", f->type, type);
    for (uint8_t *at = f->payload; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
    return error_set(err, -EIO, ERROR_CONFLICT, "its host: %.400s", (const char *)f->payload);
}

static int object_receive(const struct frame *f, const struct object_desc *desc, void *object, struct error *err)
{
    return object_decode(desc, (const char *)f->payload, f->payload_bytes, OBJECT_STORED, object, err);
}

/* ---- the source ---- */

struct sending {
    int fd;
    struct replica_source *source;
    uint8_t *piece;
    uint64_t frames, bytes, looked_at, total;
    bool first; /* the replica has nothing yet, and reads as zeroes */
};

/* It says nothing before the end, unless it refuses: what is still to be sent would be for nothing then. */
static int refusal_look(struct sending *s, struct error *err)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0 ? error_set(err, -EPIPE, ERROR_UNREACHABLE, "the other side of the replication has ended it") : 0;
}

static int content_send(struct sending *s, unsigned disk, uint64_t from, uint64_t end, struct error *err)
{
    struct block *b = s->source->disks[disk].block;
    int code = 0;
    for (; code == 0 && from < end; from += MIN(end - from, (uint64_t)REPLICA_PIECE_BYTES)) {
        uint64_t size = MIN(end - from, (uint64_t)REPLICA_PIECE_BYTES);
        if ((code = refusal_look(s, err)) < 0)
            return code;
        code = block_now(b, BLOCK_READ, from, s->piece, size);
        if (code < 0)
            return error_errno(err, code, "cannot read disk %s", s->source->disks[disk].name);
        const struct frame f = {.type = FRAME_DATA, .disk = (uint8_t)disk, .offset = from, .size = size, .payload_bytes = (uint32_t)size};
        code = frame_send(s->fd, &f, s->piece, err);
        s->frames++;
        s->bytes += size;
        if (s->source->sent != NULL)
            s->source->sent(s->source->arg, s->looked_at + from + size, s->total);
    }
    return code;
}

static int disk_send(struct sending *s, unsigned disk, struct error *err)
{
    const struct replica_source_disk *d = &s->source->disks[disk];
    struct nbd_extent e;
    int code = 0;
    for (uint64_t from = 0; code == 0 && from < d->block->size_bytes; from = e.end) {
        code = (d->extent != NULL ? d->extent : nbd_client_extent)(d->block, from, d->block->size_bytes, &e, err);
        if (code < 0)
            return code;
        if ((!s->source->whole && !e.changed) || (s->first && e.zero))
            continue;
        if ((code = refusal_look(s, err)) < 0)
            return code;
        const struct frame zero = {.type = FRAME_ZERO, .disk = (uint8_t)disk, .offset = from, .size = e.end - from};
        code = e.zero ? frame_send(s->fd, &zero, NULL, err) : content_send(s, disk, from, e.end, err);
        s->frames += e.zero;
    }
    s->looked_at += d->block->size_bytes;
    return code;
}

static int point_send(struct sending *s, struct error *err)
{
    struct replica_point point = {.epoch = 0};
    OBJECT_SET(replica_point, &point, epoch, s->source->epoch);
    OBJECT_SET(replica_point, &point, whole, s->source->whole);
    for (unsigned i = 0; i < s->source->count; i++) {
        struct replica_disk *disk = OBJECT_ADD(replica_point, &point, disks);
        OBJECT_TEXT(replica_disk, disk, name, s->source->disks[i].name);
        OBJECT_SET(replica_disk, disk, size_bytes, s->source->disks[i].block->size_bytes);
        s->total += s->source->disks[i].block->size_bytes;
    }
    int code = object_send(s->fd, FRAME_POINT, &replica_point_desc, &point, err);
    OBJECT_CLEAR(replica_point, &point);
    for (unsigned i = 0; code == 0 && i < s->source->count; i++)
        code = disk_send(s, i, err);
    const struct frame end = {.type = FRAME_END, .size = s->frames};
    return code == 0 ? frame_send(s->fd, &end, NULL, err) : code;
}

/* What the replica has: the disks are opened for that. */
static int hello_take(struct sending *s, struct frame *f, struct replica_sent *ret_sent, struct error *err)
{
    struct replica_hello hello = {.format = 0};
    int code = frame_expect(s->fd, f, FRAME_HELLO, err);
    if (code == 0)
        code = object_receive(f, &replica_hello_desc, &hello, err);
    if (code < 0)
        return code;
    snprintf(ret_sent->id, sizeof ret_sent->id, "%s", hello.id);
    s->first = hello.number == 0;
    bool lost = s->source->known_id != NULL && strcmp(hello.id, s->source->known_id) == 0 && hello.number < s->source->known_number;
    code = s->source->open(s->source->arg, s->source, hello.id, lost ? 0 : hello.number, err);
    OBJECT_CLEAR(replica_hello, &hello);
    return code;
}

/* A source whose replica has refused something finds its connection closed, or a word there: the reason may be there to be read. */
static int reason_take(int fd, struct frame *f, int code, struct error *err)
{
    struct error said = {.code = 0};
    if (frame_expect(fd, f, FRAME_DONE, &said) != -EIO)
        return code;
    *err = said;
    return -EIO;
}

int replica_send(int fd, struct replica_source *source, struct replica_sent *ret_sent, struct error *err)
{
    struct replica_point done = {.epoch = 0};
    CLEANUP_FREE uint8_t *piece = xcalloc(1, REPLICA_PIECE_BYTES), *payload = xcalloc(1, REPLICA_PIECE_BYTES + 1);
    struct sending s = {.fd = fd, .source = source, .piece = piece};
    struct frame f = {.payload = payload};
    *ret_sent = (struct replica_sent){.number = 0};
    int code = hello_take(&s, &f, ret_sent, err);
    if (code < 0)
        return code;
    code = point_send(&s, err);
    if (code == -EPIPE)
        code = reason_take(fd, &f, code, err);
    if (code == 0)
        code = frame_expect(fd, &f, FRAME_DONE, err);
    if (code == 0)
        code = object_receive(&f, &replica_point_desc, &done, err);
    if (code == 0 && done.number == 0)
        code = error_set(err, -EPROTO, ERROR_INVALID, "its host says that the point is complete, and not which one it is");
    ret_sent->number = done.number;
    ret_sent->bytes = s.bytes;
    OBJECT_CLEAR(replica_point, &done);
    return code;
}

/* ---- the replica's host ---- */

static int content_take(struct replica_store *store, const struct frame *f, bool whole, struct error *err)
{
    if (f->type == FRAME_ZERO)
        return replica_store_zero(store, f->disk, f->offset, f->size, err);
    if (f->payload_bytes != f->size)
        return error_set(err, -EPROTO, ERROR_INVALID, "a piece of %llu bytes comes with %u", (unsigned long long)f->size, f->payload_bytes);
    return replica_store_write(store, f->disk, f->offset, f->payload, f->payload_bytes, whole, err);
}

static int point_begin(struct replica_store *store, const struct frame *f, uint64_t epoch, bool *ret_whole, struct error *err)
{
    struct replica_point point = {.epoch = 0};
    int code = object_receive(f, &replica_point_desc, &point, err);
    if (code < 0)
        return code;
    *ret_whole = point.whole;
    if (point.epoch != epoch)
        code = error_set(err, -ESTALE, ERROR_CONFLICT, "a point of epoch %llu is expected, not of %llu", (unsigned long long)epoch,
                         (unsigned long long)point.epoch);
    else if (!point.whole && store->record.number == 0)
        code = error_set(err, -EINVAL, ERROR_INVALID, "the first point has to be a whole one");
    else
        code = replica_store_begin(store, epoch, &point.disks, err);
    OBJECT_CLEAR(replica_point, &point);
    return code;
}

static int point_receive(int fd, struct replica_store *store, uint64_t epoch, struct frame *f, struct error *err)
{
    struct replica_hello hello = {.format = 0};
    uint64_t frames = 0;
    bool whole;
    OBJECT_SET(replica_hello, &hello, format, REPLICA_FORMAT);
    OBJECT_TEXT(replica_hello, &hello, id, store->record.id);
    OBJECT_SET(replica_hello, &hello, number, store->record.number);
    int code = object_send(fd, FRAME_HELLO, &replica_hello_desc, &hello, err);
    OBJECT_CLEAR(replica_hello, &hello);
    if (code == 0)
        code = frame_expect(fd, f, FRAME_POINT, err);
    if (code == 0)
        code = point_begin(store, f, epoch, &whole, err);
    while (code == 0 && (code = frame_receive(fd, f, err)) == 0 && (f->type == FRAME_DATA || f->type == FRAME_ZERO)) {
        code = content_take(store, f, whole, err);
        frames++;
    }
    if (code == 0 && (f->type != FRAME_END || f->size != frames))
        code = error_set(err, -EPROTO, ERROR_INVALID, "the point does not end as it should");
    return code == 0 ? replica_store_commit(store, err) : code;
}

int replica_receive(int fd, struct replica_store *store, uint64_t epoch, struct error *err)
{
    CLEANUP_FREE uint8_t *payload = xcalloc(1, REPLICA_PIECE_BYTES + 1);
    struct frame f = {.payload = payload};
    struct replica_point done = {.epoch = 0};
    int code = point_receive(fd, store, epoch, &f, err);
    if (code < 0) {
        replica_store_give_up(store);
        const struct frame refused = {.type = FRAME_REFUSED, .payload_bytes = (uint32_t)strlen(err->text)};
        (void)frame_send(fd, &refused, err->text, NULL);
        shutdown(fd, SHUT_WR);
        while (recv(fd, payload, REPLICA_PIECE_BYTES, 0) > 0)
            ; /* closed with something unread, the reason might not arrive */
        return code;
    }
    OBJECT_SET(replica_point, &done, epoch, epoch);
    OBJECT_SET(replica_point, &done, number, store->record.number);
    (void)object_send(fd, FRAME_DONE, &replica_point_desc, &done, NULL); /* it is complete, whoever hears of it */
    OBJECT_CLEAR(replica_point, &done);
    return 0;
}
