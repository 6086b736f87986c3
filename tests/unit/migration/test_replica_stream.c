/* Points of a replica over a socket: what arrives is what was sent, wherever the connection is cut the replica keeps its last point,
 * and what is refused says why to both sides. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "migration/replica_stream.h"
#include "tests/unit/block/power_pool.h"
#include "tests/unit/unit_seed.h"

enum { CLUSTERS = 20, CLUSTER = 65536, DISKS = 2, EPOCH = 3 };
#define VM "7b0f9f6a-1111-4222-8333-444455556666"

/* ---- a disk of the source's: memory, and which clusters have changed ---- */

struct array {
    struct block block;
    struct bed *bed;
    uint8_t data[CLUSTERS * CLUSTER];
    bool changed[CLUSTERS];
};

static int array_submit(struct block *b, struct block_request *r)
{
    struct array *a = CONTAINER_OF(b, struct array, block);
    uint64_t at = r->offset;
    for (unsigned i = 0; i < r->iovec_count; at += r->iovecs[i++].iov_len)
        memcpy(r->iovecs[i].iov_base, a->data + at, r->iovecs[i].iov_len);
    r->result = 0;
    block_complete(b, r);
    return 0;
}

static void array_drain(struct block *b UNUSED)
{
}

static const struct block_ops array_ops = {.submit = array_submit, .drain = array_drain};

static void array_wait(const struct bed *bed);

static int array_extent(struct block *b, uint64_t from, uint64_t end UNUSED, struct nbd_extent *ret_extent, struct error *err UNUSED)
{
    const struct array *a = CONTAINER_OF(b, struct array, block);
    uint64_t cluster = from / CLUSTER;
    array_wait(a->bed);
    const uint8_t *at = a->data + cluster * CLUSTER;
    *ret_extent = (struct nbd_extent){.end = (cluster + 1) * CLUSTER, .changed = a->changed[cluster]};
    ret_extent->zero = at[0] == 0 && memcmp(at, at + 1, CLUSTER - 1) == 0;
    return 0;
}

/* ---- both sides ---- */

struct bed {
    struct power_pool *pool;
    struct array disks[DISKS];
    uint8_t last[DISKS][CLUSTERS * CLUSTER]; /* of the last complete point */
    uint64_t random, complete, known;
    char id[33];
    bool whole;
    uint64_t asked_number, sent_bytes;
    int *waits_for; /* a socket: disks are looked at when something has come there; NULL: at once */
};

static void array_wait(const struct bed *bed)
{
    struct pollfd p = {.fd = bed->waits_for != NULL ? *bed->waits_for : -1, .events = POLLIN};
    if (bed->waits_for != NULL)
        assert_int_equal(poll(&p, 1, 60000), 1);
}

static const char *const names[DISKS] = {"root", "data"};

static int pool_of(void *arg, const char *disk UNUSED, struct layer_pool **ret_pool, struct error *err UNUSED)
{
    *ret_pool = arg;
    return 0;
}

static struct bed *bed_create(uint64_t seed)
{
    struct bed *b = NEW(struct bed);
    b->pool = power_pool_create(seed);
    b->random = seed * 2654435761u + 1;
    for (unsigned i = 0; i < DISKS; i++)
        b->disks[i].bed = b, b->disks[i].block = (struct block){.ops = &array_ops, .size_bytes = CLUSTERS * CLUSTER, .block_bytes = 512};
    return b;
}

static void bed_destroy(struct bed *b)
{
    power_pool_destroy(b->pool);
    free(b);
}

static uint32_t chance(struct bed *b, uint32_t below)
{
    b->random ^= b->random << 13, b->random ^= b->random >> 7, b->random ^= b->random << 17;
    return (uint32_t)((b->random >> 20) % below);
}

static void guest_writes(struct bed *b)
{
    for (unsigned i = 0; i < 6; i++) {
        unsigned disk = chance(b, DISKS), cluster = chance(b, CLUSTERS);
        memset(b->disks[disk].data + cluster * CLUSTER, chance(b, 3) == 0 ? 0 : 1 + (int)chance(b, 255), CLUSTER);
        b->disks[disk].changed[cluster] = true;
    }
}

static int source_open(void *arg, struct replica_source *source, const char *id UNUSED, uint64_t number, struct error *err UNUSED)
{
    struct bed *b = arg;
    b->asked_number = number;
    source->whole = number == 0 || b->whole;
    source->count = DISKS;
    for (unsigned i = 0; i < DISKS; i++)
        source->disks[i] = (struct replica_source_disk){.name = names[i], .block = &b->disks[i].block, .extent = array_extent};
    return 0;
}

struct receiving {
    struct bed *bed;
    int fd, code;
    struct error err;
};

static void *receiver(void *arg)
{
    struct receiving *r = arg;
    const struct replica_places places = {.records = &r->bed->pool->pool, .pool = pool_of, .arg = &r->bed->pool->pool};
    struct replica_store store;
    r->code = replica_store_open(&places, VM, true, &store, &r->err);
    if (r->code == 0) {
        r->code = replica_receive(r->fd, &store, EPOCH, &r->err);
        replica_store_close(&store);
    }
    shutdown(r->fd, SHUT_WR); /* as the tunnel would: what was said arrives */
    return NULL;
}

/* Hands on what comes from @from until @left bytes are gone, then nobody hears anything any more. */
struct relay {
    int from, to;
    uint64_t left, passed;
};

static void *relay(void *arg)
{
    struct relay *r = arg;
    uint8_t buffer[4096];
    ssize_t n;
    while (r->left > 0 && (n = recv(r->from, buffer, MIN(sizeof buffer, r->left), 0)) > 0) {
        r->left -= (uint64_t)n;
        r->passed += (uint64_t)n;
        if (send(r->to, buffer, (size_t)n, MSG_NOSIGNAL) != n)
            break;
    }
    shutdown(r->to, SHUT_WR);
    shutdown(r->from, SHUT_RD);
    return NULL;
}

/* One point, of which @bytes of the source's stream get through. Returns replica_send's code. */
static int point_ship(struct bed *b, uint64_t epoch, uint64_t bytes, uint64_t *ret_passed, struct receiving *ret_received, struct error *err)
{
    struct replica_source source = {
        .epoch = epoch, .known_id = b->known > 0 ? b->id : NULL, .known_number = b->known, .open = source_open, .arg = b};
    struct replica_sent sent;
    int near[2], far[2], *waits = b->waits_for;
    pthread_t threads[3];
    b->waits_for = waits != NULL ? &near[0] : NULL;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, near), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, far), 0);
    *ret_received = (struct receiving){.bed = b, .fd = far[1]};
    struct relay out = {near[1], far[0], bytes, 0}, back = {far[0], near[1], UINT64_MAX, 0};
    assert_int_equal(pthread_create(&threads[0], NULL, receiver, ret_received), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, relay, &out), 0);
    assert_int_equal(pthread_create(&threads[2], NULL, relay, &back), 0);
    int code = replica_send(near[0], &source, &sent, err);
    b->sent_bytes = sent.bytes;
    b->waits_for = waits;
    shutdown(near[0], SHUT_RDWR);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2; i++) {
        close(near[i]);
        close(far[i]);
    }
    if (ret_passed != NULL)
        *ret_passed = out.passed;
    if (ret_received->code == 0) { /* also where its last word was lost */
        b->complete++;
        for (unsigned i = 0; i < DISKS; i++) {
            memcpy(b->last[i], b->disks[i].data, sizeof b->last[i]);
            memset(b->disks[i].changed, 0, sizeof b->disks[i].changed);
        }
    }
    if (code == 0)
        assert_int_equal(sent.number, b->complete);
    snprintf(b->id, sizeof b->id, "%s", sent.id);
    return code;
}

static void replica_check(struct bed *b)
{
    const struct replica_places places = {.records = &b->pool->pool, .pool = pool_of, .arg = &b->pool->pool};
    CLEANUP_FREE uint8_t *held = xcalloc(1, CLUSTERS * CLUSTER);
    struct replica_store store;
    char name[32];
    assert_int_equal(replica_store_open(&places, VM, false, &store, NULL), 0);
    assert_int_equal(store.record.number, b->complete);
    replica_store_close(&store);
    snprintf(name, sizeof name, "p%llu", (unsigned long long)b->complete);
    for (unsigned i = 0; b->complete > 0 && i < DISKS; i++) {
        struct layer_disk *disk;
        assert_int_equal(layer_disk_open_snapshot(&b->pool->pool, names[i], name, &disk, NULL), 0);
        assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, 0, held, CLUSTERS * CLUSTER), 0);
        assert_memory_equal(held, b->last[i], CLUSTERS * CLUSTER);
        layer_disk_close(disk);
    }
}

static void points_arrive(void **state UNUSED)
{
    struct bed *b = bed_create(unit_seed());
    struct receiving received;
    struct error err = {.code = 0};
    uint64_t first, passed;
    guest_writes(b);
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, &first, &received, &err), 0);
    replica_check(b);
    for (unsigned i = 0; i < 6; i++) {
        guest_writes(b);
        b->whole = i == 3; /* as after a VMM that was killed */
        assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, &passed, &received, &err), 0);
        assert_int_equal(b->asked_number, i + 1);
        replica_check(b);
    }
    b->whole = false;
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, &passed, &received, &err), 0);
    assert_true(passed < 1024); /* nothing has changed */
    bed_destroy(b);
}

static void a_cut_leaves_the_last_point(void **state UNUSED)
{
    struct bed *b = bed_create(unit_seed());
    struct receiving received;
    struct error err = {.code = 0};
    unsigned cuts = 0;
    guest_writes(b);
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    guest_writes(b);
    for (uint64_t bytes = 0; bytes < UINT64_C(64) << 20; bytes += bytes < 400 ? 7 : 31 * 1024 + chance(b, 9000), cuts++) {
        int code = point_ship(b, EPOCH, bytes, NULL, &received, &err);
        replica_check(b);
        if (code == 0)
            break;
        assert_int_not_equal(received.code, 0);
        assert_int_equal(b->complete, 1);
    }
    assert_int_equal(b->complete, 2);
    assert_true(cuts > 50);
    bed_destroy(b);
}

static void what_is_refused_says_why(void **state UNUSED)
{
    struct bed *b = bed_create(1);
    struct receiving received;
    struct error err = {.code = 0};
    guest_writes(b);
    assert_int_equal(point_ship(b, EPOCH - 1, UINT64_MAX, NULL, &received, &err), -EIO); /* an owner of the past */
    assert_int_equal(received.code, -ESTALE);
    assert_non_null(strstr(err.text, "epoch 3"));
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    b->disks[1].block.size_bytes -= CLUSTER; /* another disk than before */
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), -EIO);
    assert_non_null(strstr(err.text, "other disks"));
    replica_check(b);
    bed_destroy(b);
}

/* Its host has no room, say: the rest of the disks would go over the link for nothing. */
static void who_is_refused_sends_no_more(void **state UNUSED)
{
    struct bed *b = bed_create(2);
    struct receiving received;
    struct error err = {.code = 0};
    int none = -1;
    for (unsigned i = 0; i < 10; i++)
        guest_writes(b);
    b->waits_for = &none;
    assert_int_equal(point_ship(b, EPOCH - 1, UINT64_MAX, NULL, &received, &err), -EIO);
    assert_non_null(strstr(err.text, "epoch 3"));
    assert_int_equal(b->sent_bytes, 0);
    b->waits_for = NULL;
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    assert_true(b->sent_bytes > 0);
    replica_check(b);
    bed_destroy(b);
}

/* Its host's disk has lost points that it had said were there: what has changed since them is not all that it lacks. */
static void a_replica_that_has_gone_back_is_sent_all(void **state UNUSED)
{
    struct bed *b = bed_create(unit_seed());
    struct receiving received;
    struct error err = {.code = 0};
    guest_writes(b);
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    guest_writes(b);
    memset(b->disks[0].changed, 0, sizeof b->disks[0].changed); /* since the point that is lost */
    memset(b->disks[1].changed, 0, sizeof b->disks[1].changed);
    b->known = 2;
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    assert_int_equal(b->asked_number, 0);
    replica_check(b);
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    assert_int_equal(b->asked_number, 2); /* no less than is known */
    b->known = 9;
    b->id[0] ^= 1; /* of another replica, that was begun anew since */
    assert_int_equal(point_ship(b, EPOCH, UINT64_MAX, NULL, &received, &err), 0);
    assert_int_equal(b->asked_number, 3);
    bed_destroy(b);
}

/* ---- another side that does not keep to it ---- */

enum { HELLO = 1, POINT, DATA, ZERO, END, DONE };

static void frame_put(int fd, uint32_t magic, uint8_t type, uint8_t disk, uint64_t offset, uint64_t size, const char *payload, uint32_t bytes,
                      uint32_t wrong)
{
    struct bytes_writer out = {.data = NULL};
    bytes_put_u32(&out, magic);
    bytes_put_u8(&out, type);
    bytes_put_u8(&out, disk);
    bytes_put_u16(&out, 0);
    bytes_put_u64(&out, offset);
    bytes_put_u64(&out, size);
    bytes_put_u32(&out, bytes);
    bytes_put_u32(&out, bytes_crc32c(0, payload, strlen(payload)) ^ wrong);
    bytes_put(&out, payload, strlen(payload));
    assert_int_equal(send(fd, out.data, out.size, MSG_NOSIGNAL), (ssize_t)out.size);
    bytes_writer_finish(&out);
}

#define MAGIC UINT32_C(0x50524744)
#define A_POINT "{\"epoch\":3,\"whole\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":65536}]}"

static void a_source_that_says_anything(void **state UNUSED)
{
    static const struct {
        const char *point; /* NULL: the frame comes instead of it */
        uint32_t magic;
        uint8_t type, disk;
        uint64_t offset, size;
        const char *payload;
        uint32_t bytes, wrong; /* bytes: 0: the payload's */
        int code;
    } all[] = {
        {NULL, 7, POINT, 0, 0, 0, A_POINT, 0, 0, -EPROTO},
        {NULL, MAGIC, POINT, 0, 0, 0, A_POINT, 1 << 30, 0, -EPROTO},
        {NULL, MAGIC, POINT, 0, 0, 0, A_POINT, 0, 1, -EBADMSG},
        {NULL, MAGIC, END, 0, 0, 0, "", 0, 0, -EPROTO},
        {NULL, MAGIC, POINT, 0, 0, 0, "{\"epoch\":3,\"disks\":[{\"name\":\"root\",\"size_bytes\":65536}]}", 0, 0, -EINVAL},
        {NULL, MAGIC, POINT, 0, 0, 0, "{\"epoch\":3,\"whole\":true,\"disks\":[{\"name\":\"../x\",\"size_bytes\":65536}]}", 0, 0, -EINVAL},
        {NULL, MAGIC, POINT, 0, 0, 0, "{\"epoch\":3,\"whole\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1}]}", 0, 0, -EINVAL},
        {NULL, MAGIC, POINT, 0, 0, 0, "{\"epoch\":3,\"whole\":true}", 0, 0, -EINVAL},
        {A_POINT, MAGIC, DATA, 1, 0, 4, "abcd", 0, 0, -ERANGE},
        {A_POINT, MAGIC, DATA, 0, 0, 512, "abcd", 0, 0, -EPROTO},
        {A_POINT, MAGIC, DATA, 0, 0, 4, "abcd", 0, 0, -ERANGE},
        {A_POINT, MAGIC, DATA, 0, 0, 4, "abcd", (1 << 20) + 1, 0, -EPROTO},
        {A_POINT, MAGIC, ZERO, 0, UINT64_MAX - 511, 1024, "", 0, 0, -ERANGE},
        {A_POINT, MAGIC, ZERO, 0, 0, 0, "", 0, 0, -ERANGE},
        {A_POINT, MAGIC, ZERO, 255, 0, 512, "", 0, 0, -ERANGE},
        {A_POINT, MAGIC, END, 0, 0, 1, "", 0, 0, -EPROTO}, /* of a piece that never came */
        {A_POINT, MAGIC, DONE, 0, 0, 0, "", 0, 0, -EPROTO},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
        struct bed *b = bed_create(1);
        struct receiving received = {.bed = b};
        pthread_t thread;
        int fds[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        received.fd = fds[1];
        if (all[i].point != NULL)
            frame_put(fds[0], MAGIC, POINT, 0, 0, 0, all[i].point, (uint32_t)strlen(all[i].point), 0);
        frame_put(fds[0], all[i].magic, all[i].type, all[i].disk, all[i].offset, all[i].size, all[i].payload,
                  all[i].bytes != 0 ? all[i].bytes : (uint32_t)strlen(all[i].payload), all[i].wrong);
        shutdown(fds[0], SHUT_WR);
        assert_int_equal(pthread_create(&thread, NULL, receiver, &received), 0);
        pthread_join(thread, NULL);
        if (received.code != all[i].code)
            fail_msg("%u: %d, %s", i, received.code, received.err.text);
        replica_check(b); /* no point */
        close(fds[0]);
        close(fds[1]);
        bed_destroy(b);
    }
}

static void a_replica_that_says_anything(void **state UNUSED)
{
    static const char hello[] = "{\"format\":1,\"id\":\"0123456789abcdef0123456789abcdef\",\"number\":0}";
    static const struct {
        const char *hello, *done;
        uint8_t type;
        int code;
    } all[] = {
        {"{\"format\":2,\"id\":\"0123456789abcdef0123456789abcdef\",\"number\":0}", "", DONE, -EINVAL},
        {"{\"format\":1,\"id\":\"0123\",\"number\":0}", "", DONE, -EINVAL},
        {hello, "{\"number\":0}", DONE, -EPROTO}, /* no point is number 0 */
        {hello, "{}", DONE, -EPROTO},
        {hello, "no", DONE, -EBADMSG},
        {hello, "{\"number\":1}", END, -EPROTO},
        {hello, "{\"number\":1}", DONE, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
        struct bed *b = bed_create(1);
        struct replica_source source = {.epoch = EPOCH, .open = source_open, .arg = b};
        struct replica_sent sent;
        struct error err = {.code = 0};
        int fds[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        frame_put(fds[0], MAGIC, HELLO, 0, 0, 0, all[i].hello, (uint32_t)strlen(all[i].hello), 0);
        frame_put(fds[0], MAGIC, all[i].type, 0, 0, 0, all[i].done, (uint32_t)strlen(all[i].done), 0);
        int code = replica_send(fds[1], &source, &sent, &err);
        if (code != all[i].code)
            fail_msg("%u: %d, %s", i, code, err.text);
        close(fds[0]);
        close(fds[1]);
        bed_destroy(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_arrive),
        cmocka_unit_test(a_cut_leaves_the_last_point),
        cmocka_unit_test(what_is_refused_says_why),
        cmocka_unit_test(who_is_refused_sends_no_more),
        cmocka_unit_test(a_replica_that_has_gone_back_is_sent_all),
        cmocka_unit_test(a_source_that_says_anything),
        cmocka_unit_test(a_replica_that_says_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
