/* Fuzz target: virtio-balloon page numbers, statistics and reports in guest memory that the input fills. */
#include "compute/vmm/devices/balloon/balloon.h"
#include "tests/fuzz/virtio_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct machine m;
    struct driver d;
    struct virtio_device *vdev;
    log_set_level(LOG_LEVEL_ERROR);
    machine_init(&m);
    ASSERT(balloon_create(&m.memory, &vdev, NULL) == 0);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    fuzz_run(&d, data, size);
    balloon_stats_poll(vdev);
    driver_detach(&d);
    machine_finish(&m);
    return 0;
}
