/* Fuzz target: virtio-console ports, control messages and bytes in guest memory that the input fills. */
#include "compute/vmm/devices/vconsole/vconsole.h"
#include "tests/fuzz/virtio_fuzz.h"

static void on_output(void *arg, const uint8_t *data, size_t size)
{
    uint8_t *sum = arg;
    for (size_t i = 0; i < size; i++)
        *sum = (uint8_t)(*sum + data[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct machine m;
    static uint8_t sum;
    struct driver d;
    struct virtio_device *vdev;
    struct vconsole_port_options ports[] = {{.output = on_output, .arg = &sum},
                                            {.name = "agent", .output = on_output, .arg = &sum}};
    log_set_level(LOG_LEVEL_ERROR);
    machine_init(&m);
    ASSERT(vconsole_create(ports, 2, &m.memory, &vdev, NULL) == 0);
    driver_attach(&d, &m, vdev);
    fuzz_start(&d, data, size);
    vconsole_input(vdev, 0, data, size);
    vconsole_input(vdev, 1, data, size);
    fuzz_run(&d, data, size);
    vconsole_input(vdev, 1, data, size);
    driver_detach(&d);
    machine_finish(&m);
    return 0;
}
