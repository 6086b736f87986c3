/* THREADED. A disk that another process serves to one client at a time: requests that wait for a server that has died, letting go and
 * taking back, one that has grown, what is refused; and that the server takes nobody else meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "block/block_sync.h"
#include "block/nbd_client.h"
#include "block/nbd_server.h"
#include "compute/vmm/block/block_nbd.h"

enum { DISK_BYTES = 4 << 20, PIECE = 64 << 10 };

struct bed {
    char directory[40];
    char *path;
    struct block *disk;
    struct nbd_server *server;
    pthread_t thread;
    atomic_uint taken, let_go; /* by the server's hook */
    atomic_bool refuses;
    atomic_ullong size_bytes; /* that the disk has when it is taken next */
    pthread_mutex_t lock;
    struct io_loop *loop;
};

static void *serve(void *arg)
{
    nbd_server_run(arg);
    return NULL;
}

/* As drover-rbd's: nothing is under way when it is let go of. */
static int on_own(void *arg, bool own)
{
    struct bed *bed = arg;
    if (own && atomic_load(&bed->refuses))
        return -EPERM;
    assert_int_equal(bed->disk->in_flight, 0);
    assert_int_equal(atomic_load(&bed->taken), atomic_load(&bed->let_go) + !own);
    atomic_fetch_add(own ? &bed->taken : &bed->let_go, 1);
    return own ? block_grow(bed->disk, atomic_load(&bed->size_bytes), NULL) : 0;
}

static void bed_serve(struct bed *bed)
{
    struct error err = {0};
    struct nbd_export export = {.name = "disk", .block = bed->disk, .access = NBD_ACCESS_WRITE};
    static struct nbd_export exports[1];
    exports[0] = export;
    const struct nbd_server_options options = {
        .socket_path = bed->path, .exports = exports, .export_count = 1, .own = on_own, .own_arg = bed};
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

static void bed_init(struct bed *bed)
{
    int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    *bed = (struct bed){.directory = "/tmp/drover-block-nbd-XXXXXX", .size_bytes = DISK_BYTES};
    assert_non_null(mkdtemp(bed->directory));
    bed->path = xasprintf("%s/socket", bed->directory);
    assert_true(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
    assert_int_equal(block_sync_from_fd(fd, "disk", false, &bed->disk, NULL), 0);
    pthread_mutex_init(&bed->lock, NULL);
    assert_int_equal(io_loop_create(&bed->lock, &bed->loop, NULL), 0);
    bed_serve(bed);
}

static void bed_finish(struct bed *bed)
{
    bed_kill(bed);
    assert_int_equal(atomic_load(&bed->taken), atomic_load(&bed->let_go));
    io_loop_destroy(bed->loop);
    pthread_mutex_destroy(&bed->lock);
    block_close(bed->disk);
    free(bed->path);
    assert_int_equal(rmdir(bed->directory), 0);
}

static struct block *open_it(struct bed *bed, const struct block_nbd_options *options)
{
    struct block *b = NULL;
    struct error err = {0};
    if (block_nbd_open(bed->path, options, bed->loop, &b, &err) < 0)
        fail_msg("%s", err.text);
    return b;
}

static void fill(uint8_t *data, unsigned number)
{
    for (unsigned i = 0; i < PIECE; i++)
        data[i] = (uint8_t)(number * 37 + i / 512);
}

static void has(struct block *b, uint64_t offset, unsigned number)
{
    CLEANUP_FREE uint8_t *wanted = xcalloc(1, PIECE), *found = xcalloc(1, PIECE);
    fill(wanted, number);
    assert_int_equal(block_now(b, BLOCK_READ, offset, found, PIECE), 0);
    assert_memory_equal(wanted, found, PIECE);
}

struct ask {
    struct block_request request;
    struct iovec iovec;
    uint8_t data[PIECE];
    int result;
};

static void ask_done(struct block_request *request, int result)
{
    CONTAINER_OF(request, struct ask, request)->result = result;
}

static void ask(struct ask *a, struct block *b, enum block_op op, unsigned number)
{
    fill(a->data, number);
    a->iovec = (struct iovec){a->data, PIECE};
    a->result = 1;
    a->request = (struct block_request){.op = op, .done = ask_done};
    if (op == BLOCK_WRITE) {
        a->request.offset = (uint64_t)number * PIECE;
        a->request.size = PIECE;
        a->request.iovecs = &a->iovec;
        a->request.iovec_count = 1;
    }
    assert_int_equal(block_submit(b, &a->request), 0);
}

/* More often than a client that is not patient would try; and what was acknowledged and not flushed is no reason to fail a flush. */
static void a_server_that_dies_is_waited_for(void **state UNUSED)
{
    enum { DEATHS = NBD_CLIENT_TRIES_MAX + 2, ASKS = 4 };
    struct bed bed;
    uint8_t *data = xcalloc(1, PIECE);
    bed_init(&bed);
    struct block *b = open_it(&bed, &(struct block_nbd_options){.read_only = false});
    assert_int_equal(b->size_bytes, DISK_BYTES);
    assert_false(b->lost_with_process);
    struct ask *asks = xcalloc(ASKS, sizeof *asks);
    for (unsigned i = 0; i < DEATHS; i++) {
        fill(data, 40);
        assert_int_equal(block_now(b, BLOCK_WRITE, 40ull * PIECE, data, PIECE), 0); /* not flushed */
        bed_kill(&bed);
        for (unsigned k = 0; k < ASKS; k++)
            ask(&asks[k], b, k == 0 ? BLOCK_FLUSH : BLOCK_WRITE, i * ASKS + k);
        io_loop_run_once(bed.loop, 1);
        for (unsigned k = 0; k < ASKS; k++)
            assert_int_equal(asks[k].result, 1);
        bed_serve(&bed);
        for (bool all = false; !all;) { /* by the loop, as in a VMM */
            io_loop_run_once(bed.loop, -1);
            all = true;
            for (unsigned k = 0; k < ASKS; k++)
                all = all && asks[k].result == 0;
        }
        has(b, (i * ASKS + 1ull) * PIECE, i * ASKS + 1);
    }
    bed_kill(&bed);
    ask(&asks[0], b, BLOCK_WRITE, 7);
    block_nbd_give_up(b); /* but not for ever, if its guest is to have it no more */
    block_drain(b);
    assert_int_equal(asks[0].result, -EIO);
    bed_serve(&bed);
    block_close(b);
    free(asks);
    free(data);
    bed_finish(&bed);
}

static void one_client_at_a_time(void **state UNUSED)
{
    struct bed bed;
    struct error err = {0};
    uint8_t *data = xcalloc(1, PIECE);
    bed_init(&bed);
    struct block *first = open_it(&bed, &(struct block_nbd_options){.read_only = false}), *second = NULL;
    const struct nbd_client_options other = {.socket_path = bed.path, .timeout_ms = 200};
    assert_int_equal(nbd_client_open(&other, &second, &err), -ETIMEDOUT); /* it waits in the kernel */
    assert_int_equal(atomic_load(&bed.taken), 1);
    second = open_it(&bed, &(struct block_nbd_options){.unowned = true, .size_bytes = DISK_BYTES});
    assert_int_equal(atomic_load(&bed.taken), 1); /* not even asked for */
    fill(data, 3);
    assert_int_equal(block_now(first, BLOCK_WRITE, 0, data, PIECE), 0);
    unsigned before = atomic_load(&bed.let_go);
    assert_int_equal(block_own(first, false, &err), 0);
    assert_true(atomic_load(&bed.let_go) > before); /* by the time that we are told so */
    assert_int_equal(block_own(second, true, &err), 0);
    has(second, 0, 3);
    assert_int_equal(block_own(second, false, &err), 0);
    assert_int_equal(block_own(first, true, &err), 0);
    has(first, 0, 3);
    assert_int_equal(block_own(first, true, &err), 0); /* again: nothing */
    block_close(second);
    block_close(first);
    free(data);
    bed_finish(&bed);
}

static bool ask_lease(void *arg)
{
    return *(bool *)arg;
}

static void what_is_refused(void **state UNUSED)
{
    struct bed bed;
    struct error err = {0};
    bool leased = true;
    uint8_t *data = xcalloc(1, PIECE);
    struct block *b = NULL;
    bed_init(&bed);
    assert_int_equal(block_nbd_open("/tmp/nowhere.sock", &(struct block_nbd_options){.read_only = false}, bed.loop, &b, &err), -ENOENT);
    assert_int_equal(block_nbd_open(bed.path, &(struct block_nbd_options){.unowned = true}, bed.loop, &b, &err), -EINVAL);
    b = open_it(&bed, &(struct block_nbd_options){.unowned = true, .size_bytes = 2 * DISK_BYTES});
    assert_int_equal(block_own(b, true, &err), -ESTALE); /* it is smaller than the guest believes */
    block_close(b);
    b = open_it(&bed, &(struct block_nbd_options){.unowned = true, .size_bytes = DISK_BYTES});
    atomic_store(&bed.refuses, true);
    assert_int_equal(block_own(b, true, &err), -EBUSY);
    assert_int_equal(block_grow(b, 2 * DISK_BYTES, &err), -EBUSY);
    atomic_store(&bed.refuses, false);
    assert_int_equal(block_own(b, true, &err), 0);
    b->may_submit = ask_lease;
    b->may_submit_arg = &leased;
    leased = false;
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, PIECE), -EAGAIN);
    leased = true;
    assert_int_equal(block_now(b, BLOCK_WRITE, 0, data, PIECE), 0);
    block_close(b);
    free(data);
    bed_finish(&bed);
}

static void it_grows_when_the_server_has_it_larger(void **state UNUSED)
{
    struct bed bed;
    struct error err = {0};
    uint8_t *data = xcalloc(1, PIECE);
    bed_init(&bed);
    struct block *b = open_it(&bed, &(struct block_nbd_options){.read_only = false});
    struct ask *a = xcalloc(1, sizeof *a);
    assert_int_equal(block_grow(b, 2 * DISK_BYTES, &err), -EAGAIN);
    assert_int_equal(b->size_bytes, DISK_BYTES);
    atomic_store(&bed.size_bytes, 3 * DISK_BYTES);
    ask(a, b, BLOCK_WRITE, 5); /* under way meanwhile */
    assert_int_equal(block_grow(b, 2 * DISK_BYTES, &err), 0);
    assert_int_equal(b->size_bytes, 2 * DISK_BYTES);
    block_drain(b);
    assert_int_equal(a->result, 0);
    has(b, 5ull * PIECE, 5);
    fill(data, 9);
    assert_int_equal(block_now(b, BLOCK_WRITE, 2 * DISK_BYTES - PIECE, data, PIECE), 0);
    has(b, 2 * DISK_BYTES - PIECE, 9);
    assert_int_equal(block_grow(b, 3 * DISK_BYTES, &err), 0); /* it is so large, and may be known to be */
    block_close(b);
    free(a);
    free(data);
    bed_finish(&bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_server_that_dies_is_waited_for),
        cmocka_unit_test(one_client_at_a_time),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(it_grows_when_the_server_has_it_larger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
