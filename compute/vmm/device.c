/* The machine's list of devices, walked for each thing that is asked of all. */
#include "compute/vmm/device.h"

#include <stdio.h>

void device_init(struct device *d, const struct device_ops *ops, const char *name)
{
    d->ops = ops;
    snprintf(d->name, sizeof(d->name), "%s", name);
    list_init(&d->link);
}

void device_list_reset(struct list *devices)
{
    LIST_FOREACH(link, devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        if (d->ops->reset)
            d->ops->reset(d);
    }
}

void device_list_pause(struct list *devices)
{
    LIST_FOREACH(link, devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        if (d->ops->pause)
            d->ops->pause(d);
    }
}

void device_list_resume(struct list *devices)
{
    LIST_FOREACH(link, devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        if (d->ops->resume)
            d->ops->resume(d);
    }
}

void device_list_destroy(struct list *devices)
{
    while (!list_empty(devices)) {
        struct device *d = LIST_ENTRY(devices->prev, struct device, link);
        list_remove(&d->link);
        d->ops->destroy(d);
    }
}
