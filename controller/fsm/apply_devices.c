/* A change of a VM's lists of devices: they were completed where it was decided; here it is made sure that they still fit,
 * and that the host hears of them. */
#include "controller/fsm/apply_internal.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/address_pool.h"

static uint64_t row_bit(const char *field)
{
    return UINT64_C(1) << (object_field(&vm_desc, field) - vm_desc.fields);
}

static bool same_disks(const struct vm *vm, const struct vm *patch)
{
    const struct vm_disk *a = vm->disks.items, *b = patch->disks.items;
    bool same = vm->disks.count == patch->disks.count;
    for (size_t i = 0; same && i < vm->disks.count; i++)
        same = b[i].name != NULL && strcmp(a[i].name, b[i].name) == 0 && a[i].size_bytes == b[i].size_bytes;
    return same;
}

bool apply_devices_given(const struct vm *patch)
{
    return OBJECT_HAS(vm, patch, disks) || OBJECT_HAS(vm, patch, nics);
}

bool apply_devices_may_change(struct apply *a, const struct record *record, struct vm *patch, uint64_t if_generation)
{
    struct error error = {.code = 0};
    if (patch->head.cleared & (row_bit("disks") | row_bit("nics"))) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a VM's disks and nics cannot be taken away as a whole; give a list");
        return false;
    }
    if (apply_devices_given(patch) && if_generation != record->vm->generation) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' has been changed at the same moment; look at it and try again",
                     record->common->name);
        return false;
    }
    if (OBJECT_HAS(vm, patch, disks) && !same_disks(record->vm, patch)) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/disks", "are not those of VM '%s'", record->common->name);
        return false;
    }
    if (OBJECT_HAS(vm, patch, disks))
        own_disks_stay(record->vm, patch);
    int rc = OBJECT_HAS(vm, patch, nics) ? vm_nics_resolve(a->state, patch, &error) : 0;
    if (rc < 0)
        apply_refuse_field(a, rc, error.kind, error.field, "%s", error.text);
    return rc == 0;
}

void apply_devices_changed(struct vm *vm)
{
    OBJECT_SET(vm, vm, generation, vm->generation + 1);
    /* Where no host holds it nobody has to do anything. */
    if (vm->host == NULL && vm->wanted == vm_wanted_STOPPED)
        OBJECT_SET(vm, vm, seen_generation, vm->generation);
}
