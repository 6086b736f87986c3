/* Fuzz target: the PCI transport, MSI-X and the virtqueue, by every register a guest can reach. Device: virtio-rng.
 */
#include "compute/vmm/devices/rng/rng.h"
#include "tests/fuzz/virtio_fuzz.h"

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
    fuzz_run(&d, data, size);
    driver_detach(&d);
    machine_finish(&m);
    return 0;
}
