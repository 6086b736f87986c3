/* What travels: the count. */
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {VIRTIO_STATE_FIELD(struct pvpanic, panics, U64, false)};
static const struct virtio_state_table table = {"pvpanic", 1, ARRAY_SIZE(fields), fields};

void pvpanic_save(struct device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF(d, struct pvpanic, device), out);
}

int pvpanic_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    return virtio_state_load(&table, CONTAINER_OF(d, struct pvpanic, device), in, err);
}
