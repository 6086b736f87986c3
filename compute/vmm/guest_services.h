/* What a VM's guest may do for us if it likes: give memory back (balloon), and obey an agent (a virtio-console port).
 * Both are there when the configuration says so. With the device lock held (device.h). */
#ifndef COMPUTE_VMM_GUEST_SERVICES_H
#define COMPUTE_VMM_GUEST_SERVICES_H

#include "compute/vmm/guest_agent.h"
#include "compute/vmm/virtio/virtio_device.h"

struct guest_services {
    struct virtio_device *balloon; /* borrowed: the machine's list has it. NULL: none */
    struct virtio_device *channel; /* the same; port 0 is the agent's */
    struct guest_agent agent;      /* in use while there is a channel */
};

/* Make the device; the caller puts it on the bus, which owns it from then on. */
int guest_balloon_create(struct guest_services *s, struct guest_memory *memory, struct error *err);
int guest_channel_create(struct guest_services *s, struct guest_memory *memory, struct io_loop *loop,
                         struct error *err);
/* Ask the agent to power off; false when none listens. */
bool guest_services_ask_shutdown(struct guest_services *s);
/* Before the devices are destroyed. */
void guest_services_finish(struct guest_services *s);

#endif
