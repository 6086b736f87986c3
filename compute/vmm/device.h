/* What the machine asks of every device, whatever bus it sits on.
 *
 * The device lock: one mutex of the machine (io_loop.h). Every callback of a device -- port, memory, configuration
 * space, I/O loop, and those below -- is called with it held, so a device needs no lock of its own and a removed
 * handler never fires again. A device must not block in a callback for longer than a disk takes. */
#ifndef COMPUTE_VMM_DEVICE_H
#define COMPUTE_VMM_DEVICE_H

#include "common/bytes.h"
#include "common/error.h"
#include "common/list.h"

struct device;

struct device_ops {
    /* Back to power-on state; requests in flight are waited for or disowned, guest memory is not touched after. */
    void (*reset)(struct device *);
    /* vCPUs stand still. Finish all I/O in flight and take up no new, so that state and memory stay as they are. */
    void (*pause)(struct device *);
    /* vCPUs are about to run. Look at every queue and raise every interrupt once: eventfds carry no state over. */
    void (*resume)(struct device *);
    /* State between pause and resume. Save appends to @out; load reads exactly what save wrote and refuses
     * anything else with words. Either may be NULL: nothing to keep. */
    void (*save)(struct device *, struct bytes_writer *out);
    int (*load)(struct device *, struct bytes_reader *in, struct error *err);
    /* Release everything, the struct included. Never called while paused I/O is outstanding. */
    void (*destroy)(struct device *);
};

/* Embedded in each device. Every pointer of the vtable but destroy may be NULL. */
struct device {
    const struct device_ops *ops;
    char name[32];    /* unique within the machine and stable between versions: "serial0", "virtio-blk3" */
    struct list link; /* in the machine's list, in order of creation */
};

/* Fill in the embedded struct; @name is cut to fit. */
void device_init(struct device *d, const struct device_ops *ops, const char *name);
/* The callbacks over a whole list; a missing one is passed over. load names the device in its errors. */
void device_list_reset(struct list *devices);
void device_list_pause(struct list *devices);
void device_list_resume(struct list *devices);
void device_list_destroy(struct list *devices); /* newest first */

#endif
