/* Fuzz target: virtio-blk requests in guest memory that the input fills, on a block in memory that completes when the
 * device drains or the loop turns, in an order that the input chooses. */
#include "compute/vmm/devices/blk/blk.h"
#include "tests/fuzz/virtio_fuzz.h"

enum { DISK_BYTES = 1 << 20 };

/* Holds what was submitted; completes it on drain, or at once by a post to the loop. */
struct memory_block {
    struct block block;
    struct io_loop *loop;
    struct list held;
    uint8_t *disk;
    unsigned answers;
};

static void complete_all(void *arg)
{
    struct memory_block *m = arg;
    struct list now;
    list_init(&now);
    list_take(&now, &m->held);
    while (!list_empty(&now)) {
        bool last = ++m->answers % 3 == 0;
        struct list *link = last ? now.prev : now.next;
        struct block_request *r = LIST_ENTRY(link, struct block_request, link);
        list_remove(link);
        uint64_t offset = r->offset;
        for (unsigned i = 0; i < r->iovec_count && (r->op == BLOCK_READ || r->op == BLOCK_WRITE); i++) {
            ASSERT(offset + r->iovecs[i].iov_len <= DISK_BYTES);
            if (r->op == BLOCK_READ)
                memcpy(r->iovecs[i].iov_base, m->disk + offset, r->iovecs[i].iov_len);
            else
                memcpy(m->disk + offset, r->iovecs[i].iov_base, r->iovecs[i].iov_len);
            offset += r->iovecs[i].iov_len;
        }
        r->result = m->answers % 7 == 0 ? -5 : m->answers % 11 == 0 ? -11 : 0;
        block_complete(&m->block, r);
    }
}
static int memory_submit(struct block *b, struct block_request *r)
{
    struct memory_block *m = CONTAINER_OF(b, struct memory_block, block);
    list_append(&m->held, &r->link);
    io_loop_post(m->loop, complete_all, m);
    return 0;
}
static void memory_drain(struct block *b)
{
    struct memory_block *m = CONTAINER_OF(b, struct memory_block, block);
    while (b->in_flight > 0)
        complete_all(m);
}
static void memory_close(struct block *b UNUSED)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct block_ops ops = {.submit = memory_submit, .drain = memory_drain, .close = memory_close};
    static struct machine m;
    static uint8_t disk[DISK_BYTES];
    struct memory_block block = {
        .block = {.ops = &ops,
                  .size_bytes = DISK_BYTES,
                  .block_bytes = 4096,
                  .can_discard = true,
                  .can_write_zeroes = true},
        .disk = disk,
    };
    struct driver d;
    struct virtio_device *vdev;
    struct blk_options options = {.block = &block.block, .serial = "fuzz", .queues = 2};
    log_set_level(LOG_LEVEL_ERROR);
    machine_init(&m);
    block.loop = m.loop;
    list_init(&block.held);
    ASSERT(blk_create(&options, &m.memory, m.loop, &vdev, NULL) == 0);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    fuzz_run(&d, data, size);
    driver_detach(&d);
    io_loop_run_once(m.loop, 0); /* posts that are left must find nothing to do */
    machine_finish(&m);
    return 0;
}
