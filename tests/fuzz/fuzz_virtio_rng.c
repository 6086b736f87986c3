/* Fuzz target: virtio-rng requests in guest memory that the input fills. None is given more than its limit, none more than
 * it has room for, and what lies behind its buffers stays as it is. */
#include "compute/vmm/devices/rng/rng.h"
#include "tests/fuzz/virtio_fuzz.h"

enum { FENCE = 0x5a, FENCE_BYTES = 4096 };

/* One request with a fence behind it: @size bytes of room in @count pieces. */
static void request(struct driver *d, uint32_t size, unsigned count)
{
    struct rng *rng = CONTAINER_OF(d->vdev, struct rng, virtio);
    struct segment segments[4];
    uint64_t gpa = FUZZ_DATA, given = rng->given_bytes;
    if (d->queues[0].size < 4 || !virtio_device_running(d->vdev) || !d->vdev->queues[0].ready)
        return;
    for (unsigned i = 0; i < count; i++, gpa += size) {
        segments[i] = (struct segment){gpa, size, true};
        memset(driver_at(d, gpa, size + 1), 0, size + 1);
    }
    memset(driver_at(d, gpa, FENCE_BYTES), FENCE, FENCE_BYTES);
    driver_add(d, 0, segments, count);
    driver_kick(d, 0);
    ASSERT(rng->given_bytes - given <= RNG_REQUEST_BYTES_MAX * (uint64_t)RNG_BATCH_REQUESTS);
    const uint8_t *fence = driver_at(d, gpa, FENCE_BYTES);
    for (unsigned i = 0; i < FENCE_BYTES; i++)
        ASSERT(fence[i] == FENCE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct machine m;
    struct driver d;
    struct virtio_device *vdev;
    log_set_level(LOG_LEVEL_ERROR);
    machine_init(&m);
    ASSERT(rng_create(&m.memory, &vdev, NULL) == 0);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    for (size_t at = 0; at + 3 <= size && at < 48; at += 3)
        request(&d, 1u + data[at] * 16u + data[at + 1], 1 + (data[at + 2] & 3));
    fuzz_run(&d, data, size);
    driver_detach(&d);
    machine_finish(&m);
    return 0;
}
