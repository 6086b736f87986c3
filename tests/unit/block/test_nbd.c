/* NBD, both sides: a session byte by byte, what it refuses; the client and the server over real sockets, with requests at
 * once, holes, changed stretches, a server that dies and comes back, and one that talks nonsense. THREADED. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "block/block_sync.h"
#include "block/nbd_client.h"
#include "block/nbd_client_hello.h"
#include "block/nbd_server.h"
#include "block/nbd_wire.h"

enum { DISK_BYTES = 8 << 20, PIECE = 64 << 10 };

static void on_wake(void *arg)
{
    if (arg != NULL)
        ++*(unsigned *)arg;
}

static struct block *disk_make(bool read_only)
{
    int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    struct block *b = NULL;
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    assert_int_equal(block_sync_from_fd(fd, "disk", read_only, &b, NULL), 0);
    return b;
}

/* The first half has changed. */
static bool half_changed(void *arg UNUSED, uint64_t from, uint64_t *ret_end)
{
    bool changed = from < DISK_BYTES / 2;
    *ret_end = changed ? DISK_BYTES / 2 : DISK_BYTES;
    return changed;
}

/* ---- a session ---- */

/* Give it @size bytes in pieces of at most @step, with what it submits carried out. */
static size_t feed(struct nbd_session *s, struct block *b, const void *data, size_t size, size_t step)
{
    size_t given = 0, room;
    void *at;
    while (given < size && (at = nbd_session_room(s, &room)) != NULL) {
        size_t n = MIN(MIN(room, step), size - given);
        memcpy(at, (const uint8_t *)data + given, n);
        nbd_session_received(s, n);
        given += n;
        if (b->in_flight > 0)
            block_drain(b);
    }
    return given;
}

/* All that it has to say. */
static size_t take(struct nbd_session *s, uint8_t *to, size_t max)
{
    struct iovec iovecs[4];
    size_t got = 0;
    unsigned count;
    while ((count = nbd_session_output(s, iovecs, ARRAY_SIZE(iovecs))) > 0) {
        size_t n = MAX(iovecs[0].iov_len / 2, (size_t)1); /* not as it likes */
        assert_true(got + n <= max);
        memcpy(to + got, iovecs[0].iov_base, n);
        nbd_session_sent(s, n);
        got += n;
    }
    return got;
}

static struct nbd_session *session_of(const struct nbd_export *e)
{
    return nbd_session_create(
        &(struct nbd_session_options){.exports = e, .export_count = 1, .bytes_max = 1 << 20, .wake = on_wake});
}

static size_t option_put(uint8_t *at, uint32_t option, const void *data, size_t size)
{
    nbd_put32(nbd_put32(nbd_put64(at, NBD_OPTION_MAGIC), option), (uint32_t)size);
    memcpy(at + NBD_OPTION_HEAD_BYTES, data, size);
    return NBD_OPTION_HEAD_BYTES + size;
}

static size_t request_put(uint8_t *at, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset, uint32_t size)
{
    uint8_t *to = nbd_put16(nbd_put16(nbd_put32(at, NBD_REQUEST_MAGIC), flags), type);
    nbd_put32(nbd_put64(nbd_put64(to, cookie), offset), size);
    return NBD_REQUEST_HEAD_BYTES;
}

/* By EXPORT_NAME, without structured replies, and byte by byte. */
static void session_plain(void **state UNUSED)
{
    struct nbd_export e = {.name = "disk", .block = disk_make(false), .access = NBD_ACCESS_WRITE};
    struct nbd_session *s = session_of(&e);
    uint8_t out[8192], in[4096], *at = in;
    assert_int_equal(take(s, out, sizeof out), NBD_HELLO_BYTES);
    at = nbd_put32(at, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
    at += option_put(at, 77, "?", 1);
    at += option_put(at, NBD_OPT_EXPORT_NAME, "disk", 4);
    assert_int_equal(feed(s, e.block, in, (size_t)(at - in), 1), at - in);
    assert_int_equal(nbd_session_export(s), 0);
    size_t n = take(s, out, sizeof out);
    assert_int_equal(nbd_get32(out + 12), NBD_REP_UNSUPPORTED);
    assert_int_equal(nbd_get64(out + n - 10), DISK_BYTES);
    assert_int_equal(nbd_get16(out + n - 2) & NBD_READ_ONLY, 0);
    at = in + request_put(in, NBD_CMD_FUA, NBD_CMD_WRITE, 5, 1024, 512);
    memset(at, 0x5a, 512);
    at += 512;
    at += request_put(at, 0, NBD_CMD_READ, 6, 512, 1024);
    at += request_put(at, 0, NBD_CMD_READ, 7, 100, 512);            /* not a sector */
    at += request_put(at, 0, NBD_CMD_READ, 8, DISK_BYTES - 512, 1024); /* past the end */
    at += request_put(at, 0, NBD_CMD_BLOCK_STATUS, 9, 0, 512);      /* no contexts */
    at += request_put(at, 0, NBD_CMD_DISCONNECT, 10, 0, 0);
    assert_int_equal(feed(s, e.block, in, (size_t)(at - in), 1), at - in);
    assert_int_equal(take(s, out, sizeof out), 16 + 16 + 1024 + 3 * 16);
    assert_int_equal(nbd_get32(out + 4), 0);
    assert_int_equal(nbd_get64(out + 8), 5);
    assert_int_equal(out[32], 0);
    assert_int_equal(out[32 + 512], 0x5a);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(nbd_get32(out + 32 + 1024 + 16 * i + 4), NBD_EINVAL);
    assert_true(nbd_session_is_over(s));
    assert_string_equal(nbd_session_reason(s), "");
    nbd_session_destroy(s);
    block_close(e.block);
}

/* What a client may not do is an error, by its kind of export, and it may go on. */
static void session_refuses(void **state UNUSED)
{
    static const struct {
        enum nbd_access access;
        uint16_t flags, type;
        uint32_t error; /* 0: it is done */
    } cases[] = {
        {NBD_ACCESS_READ, 0, NBD_CMD_WRITE, NBD_EPERM},
        {NBD_ACCESS_READ, NBD_CMD_REQ_ONE, NBD_CMD_WRITE, NBD_EINVAL},
        {NBD_ACCESS_READ, 0, NBD_CMD_TRIM, NBD_EPERM},
        {NBD_ACCESS_READ, 0, NBD_CMD_READ, 0},
        {NBD_ACCESS_READ_TRIM, 0, NBD_CMD_TRIM, 0},
        {NBD_ACCESS_READ_TRIM, 0, NBD_CMD_WRITE_ZEROES, NBD_EPERM},
        {NBD_ACCESS_WRITE, NBD_CMD_NO_HOLE, NBD_CMD_WRITE_ZEROES, 0},
        {NBD_ACCESS_WRITE, NBD_CMD_NO_HOLE, NBD_CMD_TRIM, NBD_EINVAL},
        {NBD_ACCESS_WRITE, 0, 99, NBD_EINVAL},
    };
    struct block *disk = disk_make(false);
    uint8_t payload[4096] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct nbd_export e = {.name = "disk", .block = disk, .access = cases[i].access};
        struct nbd_session *s = session_of(&e);
        uint8_t out[8192], in[256], *at = nbd_put32(in, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
        at += option_put(at, NBD_OPT_EXPORT_NAME, "", 0);
        at += request_put(at, cases[i].flags, cases[i].type, 1, 0, 4096);
        feed(s, disk, in, (size_t)(at - in), SIZE_MAX);
        if (cases[i].type == NBD_CMD_WRITE)
            feed(s, disk, payload, sizeof payload, 100);
        request_put(in, 0, NBD_CMD_READ, 2, 0, 512); /* and it goes on */
        feed(s, disk, in, NBD_REQUEST_HEAD_BYTES, SIZE_MAX);
        size_t n = take(s, out, sizeof out);
        assert_false(nbd_session_is_over(s));
        assert_int_equal(nbd_get32(out + NBD_HELLO_BYTES + 10 + 4), cases[i].error);
        size_t carries = cases[i].type == NBD_CMD_READ ? 4096 : 0;
        assert_int_equal(n, NBD_HELLO_BYTES + 10 + 16 + carries + 16 + 512);
        nbd_session_destroy(s);
    }
    block_close(disk);
}

/* One that asks and asks and never reads is not listened to any more, and goes on once it reads. */
static void session_is_limited(void **state UNUSED)
{
    struct nbd_export e = {.name = "disk", .block = disk_make(false), .access = NBD_ACCESS_READ};
    struct nbd_session *s = session_of(&e);
    uint8_t in[256], *at = nbd_put32(in, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
    CLEANUP_FREE uint8_t *out = xcalloc(1, 4 << 20);
    at += option_put(at, NBD_OPT_EXPORT_NAME, "", 0);
    feed(s, e.block, in, (size_t)(at - in), SIZE_MAX);
    unsigned asked = 0;
    size_t room;
    request_put(in, 0, NBD_CMD_READ, 1, 0, 256 << 10);
    while (feed(s, e.block, in, NBD_REQUEST_HEAD_BYTES, SIZE_MAX) == NBD_REQUEST_HEAD_BYTES)
        assert_true(++asked < 100);
    assert_int_equal(asked, 4); /* 1 MiB */
    assert_null(nbd_session_room(s, &room));
    take(s, out, 4 << 20);
    assert_non_null(nbd_session_room(s, &room));
    nbd_session_destroy(s);
    block_close(e.block);
}

/* ---- a client that comes again ---- */

/* A disk in memory that is slow: what it is asked for is carried out when it is drained. */
struct slow_disk {
    struct block block;
    struct list waiting, held;
    bool first_seen;
    uint8_t bytes[4096];
};

static int slow_submit(struct block *b, struct block_request *request)
{
    list_append(&CONTAINER_OF(b, struct slow_disk, block)->waiting, &request->link);
    return 0;
}

static void slow_one(struct slow_disk *d, struct block_request *r)
{
    list_remove(&r->link);
    for (uint64_t i = 0, at = r->offset; r->op == BLOCK_WRITE && i < r->iovec_count; at += r->iovecs[i++].iov_len)
        memcpy(d->bytes + at, r->iovecs[i].iov_base, r->iovecs[i].iov_len);
    r->result = 0;
    block_complete(&d->block, r);
}

static void slow_drain(struct block *b)
{
    struct slow_disk *d = CONTAINER_OF(b, struct slow_disk, block);
    while (!list_empty(&d->waiting))
        slow_one(d, LIST_ENTRY(d->waiting.next, struct block_request, link));
    while (!list_empty(&d->held))
        slow_one(d, LIST_ENTRY(d->held.next, struct block_request, link));
}

static void slow_init(struct slow_disk *d)
{
    static const struct block_ops ops = {.submit = slow_submit, .drain = slow_drain};
    *d = (struct slow_disk){.block = {.ops = &ops, .size_bytes = sizeof d->bytes, .block_bytes = 512}};
    list_init(&d->waiting);
    list_init(&d->held);
}

/* Without carrying out what it submits. */
static size_t give(struct nbd_session *s, const void *data, size_t size)
{
    size_t given = 0, room;
    void *at;
    while (given < size && (at = nbd_session_room(s, &room)) != NULL) {
        size_t n = MIN(room, size - given);
        memcpy(at, (const uint8_t *)data + given, n);
        nbd_session_received(s, n);
        given += n;
    }
    return given;
}

/* A session whose client has said who it is; and whether it was taken. */
static struct nbd_session *writer_session(const struct nbd_export *e, struct list *peers, uint8_t who, uint64_t number, bool *ret_taken)
{
    struct nbd_session *s = nbd_session_create(
        &(struct nbd_session_options){.exports = e, .export_count = 1, .peers = peers, .bytes_max = 1 << 20, .wake = on_wake});
    uint8_t in[256], out[256], id[NBD_WRITER_BYTES] = {who}, *at = nbd_put32(in, NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
    nbd_put64(id + NBD_WRITER_ID_BYTES, number);
    at += option_put(at, NBD_OPT_WRITER, id, sizeof id);
    assert_int_equal(give(s, in, (size_t)(at - in)), at - in);
    assert_true(take(s, out, sizeof out) >= NBD_HELLO_BYTES + NBD_REPLY_HEAD_BYTES);
    *ret_taken = nbd_get32(out + NBD_HELLO_BYTES + 12) == NBD_REP_ACK;
    size_t size = option_put(in, NBD_OPT_EXPORT_NAME, "", 0);
    if (*ret_taken)
        assert_int_equal(give(s, in, size), size);
    return s;
}

/* What an earlier connection of the same client has under way has left the disk before the new one is taken, and nothing comes after it. */
static void session_comes_again(void **state UNUSED)
{
    struct slow_disk disk;
    struct nbd_export e = {.name = "disk", .block = &disk.block, .access = NBD_ACCESS_WRITE};
    struct list peers;
    uint8_t in[2048], sink[2048];
    size_t room;
    bool taken;
    slow_init(&disk);
    list_init(&peers);
    struct nbd_session *old = writer_session(&e, &peers, 1, 7, &taken), *other = writer_session(&e, &peers, 2, 1, &taken);
    size_t size = request_put(in, 0, NBD_CMD_WRITE, 1, 0, 512);
    memset(in + size, 'a', 512);
    assert_int_equal(give(old, in, size + 512), size + 512);
    assert_int_equal(give(old, in, size + 100), size + 100); /* and one that has come in part */
    assert_int_equal(disk.block.in_flight, 1);
    struct nbd_session *again = writer_session(&e, &peers, 1, 8, &taken);
    assert_true(taken);
    assert_int_equal(disk.block.in_flight, 0);
    assert_int_equal(disk.bytes[0], 'a');
    assert_true(nbd_session_is_over(old) && nbd_session_room(old, &room) == NULL && nbd_session_reason(old)[0] != '\0');
    assert_int_equal(take(old, sink, sizeof sink), 0);
    memset(in + size, 'b', 512);
    assert_int_equal(give(again, in, size + 512), size + 512);
    /* The words of a connection that was given up come late: nothing of it, and the living one goes on. */
    struct nbd_session *late = writer_session(&e, &peers, 1, 6, &taken);
    assert_true(!taken && nbd_session_is_over(late) && !nbd_session_is_over(again));
    assert_false(nbd_session_is_over(other));
    block_drain(&disk.block);
    assert_int_equal(disk.bytes[0], 'b');
    nbd_session_destroy(old);
    nbd_session_destroy(again);
    nbd_session_destroy(late);
    nbd_session_destroy(other);
    assert_true(list_empty(&peers));
}

/* ---- client and server ---- */

struct bed {
    char directory[32];
    char *path;
    struct nbd_export exports[2];
    struct nbd_server *server;
    pthread_t thread;
};

static void *serve(void *arg)
{
    nbd_server_run(arg);
    return NULL;
}

static void bed_serve(struct bed *bed)
{
    struct error err = {0};
    struct nbd_server_options options = {.socket_path = bed->path, .exports = bed->exports, .export_count = 2};
    if (nbd_server_create(&options, &bed->server, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(pthread_create(&bed->thread, NULL, serve, bed->server), 0);
}

static void bed_kill(struct bed *bed)
{
    nbd_server_stop(bed->server);
    pthread_join(bed->thread, NULL);
    nbd_server_destroy(TAKE_PTR(bed->server));
}

static void bed_init(struct bed *bed, enum nbd_access access)
{
    *bed = (struct bed){.directory = "/tmp/drover-nbd-XXXXXX"};
    assert_non_null(mkdtemp(bed->directory));
    bed->path = xasprintf("%s/socket", bed->directory);
    bed->exports[0] =
        (struct nbd_export){.name = "disk", .block = disk_make(false), .access = access, .changed = half_changed, .changed_since = "then"};
    bed->exports[1] = (struct nbd_export){.name = "plain", .block = disk_make(false), .access = NBD_ACCESS_READ};
    bed_serve(bed);
}

static void bed_finish(struct bed *bed)
{
    bed_kill(bed);
    block_close(bed->exports[0].block);
    block_close(bed->exports[1].block);
    free(bed->path);
    assert_int_equal(rmdir(bed->directory), 0);
}

static struct block *client_open(struct bed *bed, const char *name, const char *since, unsigned reconnect_ms)
{
    struct nbd_client_options options = {
        .socket_path = bed->path, .export_name = name, .changed_since = since, .timeout_ms = 10000, .reconnect_ms = reconnect_ms};
    struct error err = {0};
    struct block *b = NULL;
    if (nbd_client_open(&options, &b, &err) < 0)
        fail_msg("%s", err.text);
    return b;
}

static void pattern(uint8_t *data, uint64_t offset, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = (offset + i) * 0x9e3779b97f4a7c15ull + 1;
        memcpy(data + i, &word, 8);
    }
}

static void ended_ok(struct block_request *request, int result)
{
    assert_int_equal(result, 0);
    request->offset = UINT64_MAX;
}

/* Many requests at once, in pieces of memory of odd lengths. */
static void transfers(void **state UNUSED)
{
    struct bed bed;
    bed_init(&bed, NBD_ACCESS_WRITE);
    struct block *b = client_open(&bed, "disk", NULL, 1000);
    enum { COUNT = DISK_BYTES / PIECE };
    CLEANUP_FREE uint8_t *wrote = xcalloc(1, DISK_BYTES), *found = xcalloc(1, DISK_BYTES);
    pattern(wrote, 0, DISK_BYTES);
    for (unsigned round = 0; round < 2; round++) {
        struct block_request requests[COUNT];
        struct iovec iovecs[COUNT][3];
        uint8_t *memory = round == 0 ? wrote : found;
        for (unsigned i = 0; i < COUNT; i++) {
            uint8_t *at = memory + (size_t)i * PIECE;
            iovecs[i][0] = (struct iovec){at, 1};
            iovecs[i][1] = (struct iovec){at + 1, 5000 + i};
            iovecs[i][2] = (struct iovec){at + 5001 + i, PIECE - 5001 - i};
            requests[i] = (struct block_request){.op = round == 0 ? BLOCK_WRITE : BLOCK_READ,
                                                 .offset = (uint64_t)i * PIECE,
                                                 .size = PIECE,
                                                 .iovecs = iovecs[i],
                                                 .iovec_count = 3,
                                                 .done = ended_ok};
            assert_int_equal(block_submit(b, &requests[i]), 0);
        }
        block_drain(b);
        for (unsigned i = 0; i < COUNT; i++)
            assert_true(requests[i].offset == UINT64_MAX);
        assert_int_equal(block_now(b, BLOCK_FLUSH, 0, NULL, 0), 0);
    }
    assert_memory_equal(wrote, found, DISK_BYTES);
    assert_int_equal(block_now(b, BLOCK_WRITE_ZEROES, PIECE, NULL, PIECE), 0);
    assert_int_equal(block_now(b, BLOCK_READ, PIECE, found, PIECE), 0);
    assert_true(found[0] == 0 && memcmp(found, found + 1, PIECE - 1) == 0);
    block_close(b);
    bed_finish(&bed);
}

static void extents(void **state UNUSED)
{
    struct bed bed;
    struct nbd_extent e;
    uint64_t start, end;
    uint8_t data[4096] = {1};
    bed_init(&bed, NBD_ACCESS_READ_TRIM);
    assert_int_equal(block_now(bed.exports[0].block, BLOCK_WRITE, 1 << 20, data, sizeof data), 0);
    struct block *b = client_open(&bed, "disk", "then", 1000), *plain = client_open(&bed, "plain", "then", 1000);
    struct block *of_another = client_open(&bed, "disk", "later", 1000);
    assert_true(nbd_client_has_changed(b) && !nbd_client_has_changed(plain) && !nbd_client_has_changed(of_another));
    assert_int_equal(nbd_client_extent(b, 0, DISK_BYTES, &e, NULL), 0);
    assert_true(e.zero && e.changed && e.end == 1 << 20);
    assert_int_equal(nbd_client_extent(b, 1 << 20, DISK_BYTES, &e, NULL), 0);
    assert_true(!e.zero && e.changed && e.end == (1 << 20) + 4096);
    assert_int_equal(nbd_client_extent(b, (1 << 20) + 4096, DISK_BYTES, &e, NULL), 0);
    assert_true(e.zero && e.changed && e.end == DISK_BYTES / 2); /* two contexts: the nearer end */
    assert_int_equal(nbd_client_extent(b, DISK_BYTES / 2, DISK_BYTES, &e, NULL), 0);
    assert_true(e.zero && !e.changed && e.end == DISK_BYTES);
    assert_int_equal(block_next_data(b, 4096, &start, &end), 1);
    assert_true(start == 1 << 20 && end == (1 << 20) + 4096);
    assert_int_equal(block_next_data(b, end, &start, &end), 0);
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, sizeof data), -EROFS); /* may trim, may not write: the server says so */
    assert_int_equal(block_now(b, BLOCK_DISCARD, 1 << 20, NULL, sizeof data), 0);
    block_close(b);
    block_close(plain);
    block_close(of_another);
    bed_finish(&bed);
}

static void no_such_thing(void **state UNUSED)
{
    struct bed bed;
    struct block *b = NULL;
    struct error err;
    bed_init(&bed, NBD_ACCESS_READ);
    struct nbd_client_options options = {.socket_path = bed.path, .export_name = "other"};
    assert_int_equal(nbd_client_open(&options, &b, &err), -ENOENT);
    assert_non_null(strstr(err.text, "other"));
    options.socket_path = "/tmp/drover-there-is-nobody";
    assert_true(nbd_client_open(&options, &b, &err) < 0);
    bed_finish(&bed);
}

/* The server dies with requests under way: they are answered when it is back. Without it for too long: errors, at once
 * from then on, and it works again when the server has come back after all. */
static void link_lost(void **state UNUSED)
{
    struct bed bed;
    uint8_t data[4096], found[4096];
    bed_init(&bed, NBD_ACCESS_WRITE);
    struct block *b = client_open(&bed, "disk", NULL, 60000);
    pattern(data, 0, sizeof data);
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, sizeof data), 0);
    bed_kill(&bed);
    struct iovec one = {found, sizeof found};
    struct block_request request = {
        .op = BLOCK_READ, .size = sizeof found, .iovecs = &one, .iovec_count = 1, .done = ended_ok};
    assert_int_equal(block_submit(b, &request), 0);
    bed_serve(&bed);
    block_drain(b);
    assert_memory_equal(data, found, sizeof data);
    /* The write was acknowledged, and not flushed before the server went: that is said, once. */
    assert_int_equal(block_now(b, BLOCK_FLUSH, 0, NULL, 0), -EIO);
    assert_int_equal(block_now(b, BLOCK_FLUSH, 0, NULL, 0), 0);
    bed_kill(&bed);
    bed_serve(&bed);
    assert_int_equal(block_now(b, BLOCK_READ, 0, found, sizeof found), 0);
    assert_int_equal(block_now(b, BLOCK_FLUSH, 0, NULL, 0), 0); /* nothing was lost this time */
    block_close(b);

    b = client_open(&bed, "disk", NULL, 1);
    bed_kill(&bed);
    struct error why;
    while (block_now(b, BLOCK_READ, 0, found, sizeof found) != -EIO)
        ;
    assert_int_equal(nbd_client_state(b, &why), NBD_CLIENT_DOWN);
    assert_true(why.code < 0 && why.text[0] != '\0');
    bed_serve(&bed);
    while (block_now(b, BLOCK_READ, 0, found, sizeof found) != 0)
        sched_yield(); /* it tries once a second */
    assert_int_equal(nbd_client_state(b, &why), NBD_CLIENT_UP);
    block_close(b);
    bed_finish(&bed);
}

/* All at once, but the first write: that one takes until it is waited for. */
static void run_all_but_first(void *arg)
{
    struct slow_disk *d = arg;
    while (!list_empty(&d->waiting)) {
        struct block_request *r = LIST_ENTRY(d->waiting.next, struct block_request, link);
        if (r->op != BLOCK_WRITE || d->first_seen) {
            slow_one(d, r);
            continue;
        }
        d->first_seen = true;
        list_remove(&r->link);
        list_append(&d->held, &r->link);
    }
}

static int socket_to(const char *path, bool listens)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (listens)
        assert_true(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4) == 0);
    else
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

struct network {
    const char *server;
    int listen_fd;
};

/* Connections one after the other; the server hears of no one's end before the last. */
static void *carry(void *arg)
{
    const struct network *net = arg;
    int to_server[8], client;
    unsigned count = 0;
    while (count < ARRAY_SIZE(to_server) && (client = accept(net->listen_fd, NULL, NULL)) >= 0) {
        struct pollfd fds[2] = {{.fd = client, .events = POLLIN}, {.fd = socket_to(net->server, false), .events = POLLIN}};
        uint8_t data[4096];
        ssize_t n = 1;
        to_server[count++] = fds[1].fd;
        while (n > 0 && poll(fds, 2, -1) > 0)
            for (unsigned k = 0; n > 0 && k < 2; k++)
                if (fds[k].revents != 0 && (n = recv(fds[k].fd, data, sizeof data, 0)) > 0)
                    n = send(fds[!k].fd, data, (size_t)n, MSG_NOSIGNAL);
        close(client);
    }
    while (count > 0)
        close(to_server[--count]);
    return NULL;
}

/* A server that is slow with a write until its client has given the connection up and come again: that write does not
 * undo what is written over the new one. */
static void write_outlives_link(void **state UNUSED)
{
    struct bed bed = {.directory = "/tmp/drover-nbd-XXXXXX"};
    struct slow_disk disk;
    struct error err = {0};
    struct block *b;
    pthread_t network;
    uint8_t data[512];
    slow_init(&disk);
    assert_non_null(mkdtemp(bed.directory));
    bed.path = xasprintf("%s/socket", bed.directory);
    CLEANUP_FREE char *way = xasprintf("%s/way", bed.directory);
    bed.exports[0] = (struct nbd_export){.name = "disk", .block = &disk.block, .access = NBD_ACCESS_WRITE};
    const struct nbd_server_options options = {
        .socket_path = bed.path, .exports = bed.exports, .export_count = 1, .run = run_all_but_first, .run_arg = &disk};
    assert_int_equal(nbd_server_create(&options, &bed.server, &err), 0);
    assert_int_equal(pthread_create(&bed.thread, NULL, serve, bed.server), 0);
    struct network net = {bed.path, socket_to(way, true)};
    assert_int_equal(pthread_create(&network, NULL, carry, &net), 0);
    const struct nbd_client_options to = {.socket_path = way, .export_name = "disk", .timeout_ms = 500, .reconnect_ms = 60000};
    assert_int_equal(nbd_client_open(&to, &b, &err), 0);
    memset(data, 'a', sizeof data);
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, sizeof data), 0); /* over the second connection */
    memset(data, 'b', sizeof data);
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, sizeof data), 0);
    block_close(b);
    shutdown(net.listen_fd, SHUT_RDWR);
    pthread_join(network, NULL);
    bed_kill(&bed);
    slow_drain(&disk.block);
    assert_int_equal(disk.bytes[0], 'b');
    close(net.listen_fd);
    unlink(way);
    free(bed.path);
    assert_int_equal(rmdir(bed.directory), 0);
}

struct old_server {
    int listen_fd;
    struct slow_disk disk;
};

/* One that knows nothing of NBD_OPT_WRITER: it hangs up when it has begun the first connection's first read, and the second one's
 * first write. */
static void *serve_old(void *arg)
{
    struct old_server *o = arg;
    const struct nbd_export e = {.name = "disk", .block = &o->disk.block, .access = NBD_ACCESS_WRITE};
    for (unsigned i = 0; i < 3; i++) { /* the third one goes by itself */
        struct nbd_session *s = session_of(&e);
        int fd = accept(o->listen_fd, NULL, NULL);
        assert_true(fd >= 0);
        while (true) {
            struct iovec out[4];
            size_t room;
            for (unsigned count; (count = nbd_session_output(s, out, ARRAY_SIZE(out))) > 0;)
                nbd_session_sent(s, (size_t)writev(fd, out, (int)count));
            void *at = nbd_session_room(s, &room);
            ssize_t n = recv(fd, at, room, 0);
            assert_true(n > 0 || (n == 0 && i == 2));
            if (n == 0)
                break;
            nbd_session_received(s, (size_t)n);
            if (list_empty(&o->disk.waiting))
                continue;
            if (LIST_ENTRY(o->disk.waiting.next, struct block_request, link)->op == (i == 0 ? BLOCK_READ : BLOCK_WRITE))
                break;
            block_drain(&o->disk.block);
        }
        nbd_session_destroy(s);
        close(fd);
    }
    return NULL;
}

/* Where the server cannot end what it has of an earlier connection a write that was under way there is not sent once more. */
static void server_cannot_end(void **state UNUSED)
{
    struct error err = {0};
    struct block *b;
    pthread_t thread;
    uint8_t data[512] = {1};
    CLEANUP_FREE char *path = xasprintf("/tmp/drover-nbd-old-%d", getpid());
    struct old_server old = {.listen_fd = socket_to(path, true)};
    slow_init(&old.disk);
    assert_int_equal(pthread_create(&thread, NULL, serve_old, &old), 0);
    const struct nbd_client_options to = {.socket_path = path, .export_name = "disk", .timeout_ms = 10000, .reconnect_ms = 60000};
    assert_int_equal(nbd_client_open(&to, &b, &err), 0);
    assert_int_equal(block_now(b, BLOCK_READ, 0, data, sizeof data), 0); /* reads do no harm */
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, sizeof data), -EIO);
    assert_int_equal(nbd_client_state(b, &err), NBD_CLIENT_REFUSED);
    assert_non_null(strstr(err.text, "writes"));
    block_close(b);
    pthread_join(thread, NULL);
    close(old.listen_fd);
    unlink(path);
}

static void ended_with_eio(struct block_request *request, int result)
{
    assert_int_equal(result, -EIO);
    request->offset = UINT64_MAX;
}

/* A server that takes connections and says nothing, as one that was stopped: whoever gives the link up need not wait. */
static void given_up_while_silent(void **state UNUSED)
{
    struct bed bed;
    uint8_t found[4096];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timespec from, to;
    bed_init(&bed, NBD_ACCESS_WRITE);
    struct block *b = client_open(&bed, "disk", NULL, 60000);
    bed_kill(&bed);
    int silent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", bed.path);
    assert_int_equal(bind(silent, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(silent, 4), 0);
    struct iovec one = {found, sizeof found};
    struct block_request request = {
        .op = BLOCK_READ, .size = sizeof found, .iovecs = &one, .iovec_count = 1, .done = ended_with_eio};
    assert_int_equal(block_submit(b, &request), 0);
    int peer = accept(silent, NULL, NULL); /* it is in the handshake, or soon will be */
    assert_true(peer >= 0);
    clock_gettime(CLOCK_MONOTONIC, &from);
    nbd_client_break(b);
    block_drain(b);
    assert_true(request.offset == UINT64_MAX);
    assert_int_equal(block_now(b, BLOCK_READ, 0, found, sizeof found), -EIO); /* and so it stays */
    block_close(b);
    clock_gettime(CLOCK_MONOTONIC, &to);
    assert_true(to.tv_sec - from.tv_sec < 8); /* not the 10 s that the handshake may take */
    close(peer);
    close(silent);
    unlink(bed.path);
    bed_serve(&bed);
    bed_finish(&bed);
}

/* Sockets that were connected by others: the server ends with the last of them, and there is no way back to it. */
static void handed_over(void **state UNUSED)
{
    struct nbd_export e = {.name = "disk", .block = disk_make(false), .access = NBD_ACCESS_READ};
    const struct nbd_server_options options = {.adopted_only = true, .exports = &e, .export_count = 1};
    struct nbd_server *server;
    struct block *b[2];
    struct error err = {0};
    pthread_t thread;
    int fds[2][2];
    uint8_t data[4096];
    assert_int_equal(nbd_server_create(&options, &server, &err), 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds[i]), 0);
        assert_int_equal(nbd_server_adopt(server, fds[i][0]), 0);
    }
    assert_int_equal(pthread_create(&thread, NULL, serve, server), 0);
    for (unsigned i = 0; i < 2; i++) {
        const struct nbd_client_options to = {.has_fd = true, .fd = fds[i][1], .export_name = "disk", .reconnect_ms = 60000};
        if (nbd_client_open(&to, &b[i], &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(block_now(b[i], BLOCK_READ, 0, data, sizeof data), 0);
    }
    block_close(b[0]);
    assert_int_equal(block_now(b[1], BLOCK_READ, 4096, data, sizeof data), 0);
    nbd_server_stop(server);
    pthread_join(thread, NULL);
    nbd_server_destroy(server);
    assert_int_equal(block_now(b[1], BLOCK_READ, 0, data, sizeof data), -EIO); /* at once, not after reconnect_ms */
    assert_int_equal(nbd_client_state(b[1], &err), NBD_CLIENT_REFUSED);
    block_close(b[1]);
    /* one that is no server's end */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds[0]), 0);
    close(fds[0][0]);
    const struct nbd_client_options to_none = {.has_fd = true, .fd = fds[0][1]};
    assert_true(nbd_client_open(&to_none, &b[0], &err) < 0 && err.text[0] != '\0');
    assert_int_equal(nbd_server_create(&options, &server, &err), 0);
    nbd_server_run(server); /* nobody: ends */
    nbd_server_destroy(server);
    block_close(e.block);
}

struct liar {
    int fd;
    const uint8_t *data;
    size_t size;
};

/* Says what it has to say, whatever it is asked. */
static void *lie(void *arg)
{
    struct liar *l = arg;
    uint8_t sink[4096];
    (void)!send(l->fd, l->data, l->size, MSG_NOSIGNAL);
    shutdown(l->fd, SHUT_WR);
    while (recv(l->fd, sink, sizeof sink, 0) > 0)
        ;
    return NULL;
}

/* Servers that end in the middle, or say something else: an error in words, each time. */
static void servers_that_lie(void **state UNUSED)
{
    uint8_t good[512], *at = nbd_put16(nbd_put64(nbd_put64(good, NBD_MAGIC), NBD_OPTION_MAGIC), NBD_FLAG_FIXED);
    at = nbd_put32(nbd_put32(nbd_put32(nbd_put64(at, NBD_REPLY_MAGIC), NBD_OPT_STRUCTURED), NBD_REP_UNSUPPORTED), 0);
    at = nbd_put32(nbd_put32(nbd_put32(nbd_put64(at, NBD_REPLY_MAGIC), NBD_OPT_GO), NBD_REP_INFO), 12);
    at = nbd_put16(nbd_put64(nbd_put16(at, NBD_INFO_EXPORT), 1 << 20), NBD_HAS_FLAGS);
    at = nbd_put32(nbd_put32(nbd_put32(nbd_put64(at, NBD_REPLY_MAGIC), NBD_OPT_GO), NBD_REP_ACK), 0);
    size_t whole = (size_t)(at - good);
    for (size_t i = 0; i <= 2 * whole; i++) {
        uint8_t bad[512];
        memcpy(bad, good, whole);
        if (i > whole)
            bad[i - whole - 1] ^= 0x80;
        int fds[2];
        pthread_t thread;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        struct liar liar = {fds[1], bad, i <= whole ? i : whole};
        assert_int_equal(pthread_create(&thread, NULL, lie, &liar), 0);
        struct error err = {0};
        struct nbd_hello hello;
        int code = nbd_hello_negotiate(fds[0], "disk", NULL, NULL, 10000, &hello, &err);
        if (i == whole)
            assert_true(code == 0 && hello.size_bytes == 1 << 20);
        else if (i < whole)
            assert_true(code < 0 && err.text[0] != '\0');
        close(fds[0]);
        pthread_join(thread, NULL);
        close(fds[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(session_plain), cmocka_unit_test(session_refuses), cmocka_unit_test(session_is_limited),
        cmocka_unit_test(transfers),     cmocka_unit_test(extents),         cmocka_unit_test(no_such_thing),
        cmocka_unit_test(link_lost),     cmocka_unit_test(servers_that_lie),
        cmocka_unit_test(given_up_while_silent), cmocka_unit_test(handed_over),
        cmocka_unit_test(session_comes_again), cmocka_unit_test(write_outlives_link), cmocka_unit_test(server_cannot_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
