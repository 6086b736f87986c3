/* A patch of a VM's lists of disks and network interfaces: completed from what the VM has, so that the command says all
 * of it.
 *
 * The lists of a patch are as they are to be. Items are found by the disk's name and the interface's MAC; fields that an
 * item does not give stay as they are. Disks neither come nor go so. An interface without a MAC, or with a new one, is a
 * new one; one that is missing is taken away. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "controller/fsm/address_pool.h"

#define POINTER_BYTES 64

static int refuse(struct deciding *d, const char *list, size_t i, const char *field, const char *text)
{
    char pointer[POINTER_BYTES];
    snprintf(pointer, sizeof pointer, "/%s/%zu/%s", list, i, field);
    return error_set_field(d->err, -EINVAL, ERROR_INVALID, pointer, "%s", text);
}

static bool is_among(const char *name, const char *const *names)
{
    while (*names != NULL && strcmp(*names, name) != 0)
        names++;
    return *names != NULL;
}

/* The first field that @after has otherwise than @before and that is not among @changeable; NULL: there is none. */
static const char *field_changed(const struct object_desc *desc, void *before, void *after, const char *const *changeable)
{
    struct object_head *a = before, *b = after;
    const uint64_t in_a = a->present, in_b = b->present;
    const char *changed = NULL;
    for (unsigned i = 0; i < desc->n_fields && changed == NULL; i++) {
        a->present = in_a & UINT64_C(1) << i;
        b->present = in_b & UINT64_C(1) << i;
        if (!is_among(desc->fields[i].name, changeable) && !object_equal(desc, before, after))
            changed = desc->fields[i].name;
    }
    a->present = in_a;
    b->present = in_b;
    return changed;
}

/* @item of a patch becomes @held with what it gives laid over. */
static int item_complete(struct deciding *d, const struct object_desc *desc, const char *list, size_t i, void *item,
                         void *held, const char *const *changeable)
{
    CLEANUP_FREE void *whole = xcalloc(1, desc->size);
    object_copy(desc, whole, held);
    object_merge(desc, whole, item);
    object_clear(desc, item);
    memcpy(item, whole, desc->size);
    const char *field = field_changed(desc, held, item, changeable);
    return field == NULL ? 0 : refuse(d, list, i, field, "cannot be changed");
}

static int disks_complete(struct deciding *d, const struct vm *vm, struct vm *patch)
{
    static const char *const changeable[] = {"limits", "on_disk_error", NULL};
    struct vm_disk *items = patch->disks.items, *held = vm->disks.items;
    if (patch->disks.count != vm->disks.count)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/disks",
                               "has %zu items and the VM %zu disks: a patch changes disks, it neither adds nor removes them",
                               patch->disks.count, vm->disks.count);
    for (size_t i = 0; i < patch->disks.count; i++) {
        if (strcmp(items[i].name, held[i].name) != 0)
            return refuse(d, "disks", i, "name", "is not that of the VM's disk at this place: keep names and order");
        int rc = item_complete(d, &vm_disk_desc, "disks", i, &items[i], &held[i], changeable);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static uint32_t nic_number(const struct vm *vm, size_t i)
{
    const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
    return OBJECT_HAS(vm_nic, nic, number) ? nic->number : (uint32_t)i;
}

static struct vm_nic *nic_held(const struct vm *vm, const char *mac, size_t *ret_at)
{
    struct vm_nic *nics = vm->nics.items;
    for (size_t i = 0; mac != NULL && i < vm->nics.count; i++)
        if (nics[i].mac != NULL && strcasecmp(nics[i].mac, mac) == 0) {
            *ret_at = i;
            return &nics[i];
        }
    return NULL;
}

/* The lowest number that is neither one of the VM's, also of one that goes now, nor of an earlier new one. */
static uint32_t number_free(const struct vm *vm, const struct vm *patch)
{
    uint64_t used = 0;
    uint32_t number = 0;
    for (size_t i = 0; i < vm->nics.count; i++)
        used |= UINT64_C(1) << nic_number(vm, i);
    for (size_t i = 0; i < patch->nics.count; i++)
        if (OBJECT_HAS(vm_nic, (struct vm_nic *)patch->nics.items + i, number))
            used |= UINT64_C(1) << nic_number(patch, i);
    while (used >> number & 1)
        number++;
    return number;
}

/* When all numbers are in use by some that stay and some that go, one of those that go. */
static uint32_t number_reused(const struct vm *patch)
{
    uint64_t used = 0;
    uint32_t number = 0;
    for (size_t i = 0; i < patch->nics.count; i++)
        if (OBJECT_HAS(vm_nic, (struct vm_nic *)patch->nics.items + i, number))
            used |= UINT64_C(1) << nic_number(patch, i);
    while (used >> number & 1)
        number++;
    return number;
}

static int nics_complete(struct deciding *d, const struct vm *vm, struct vm *patch)
{
    static const char *const changeable[] = {"limits", "security_groups", NULL};
    const uint64_t number_max = object_field(&vm_nic_desc, "number")->max;
    struct vm_nic *items = patch->nics.items;
    uint64_t taken = 0;
    size_t at;
    for (size_t i = 0; i < patch->nics.count; i++) {
        struct vm_nic *held = nic_held(vm, items[i].mac, &at);
        if (held == NULL)
            continue;
        if (taken >> at & 1)
            return refuse(d, "nics", i, "mac", "is that of another interface of this list too");
        taken |= UINT64_C(1) << at;
        OBJECT_TEXT(vm_nic, &items[i], mac, held->mac); /* as it is written there */
        int rc = item_complete(d, &vm_nic_desc, "nics", i, &items[i], held, changeable);
        if (rc < 0)
            return rc;
        OBJECT_SET(vm_nic, &items[i], number, nic_number(vm, at));
    }
    for (size_t i = 0; i < patch->nics.count; i++)
        if (!OBJECT_HAS(vm_nic, &items[i], number)) {
            uint32_t number = number_free(vm, patch);
            OBJECT_SET(vm_nic, &items[i], number, number <= number_max ? number : number_reused(patch));
        }
    int rc = decide_nics_fill(d, patch);
    return rc < 0 ? rc : vm_nics_resolve(d->state, patch, d->err);
}

int decide_vm_update(struct deciding *d, const char *id, size_t id_length, const struct vm *body)
{
    bool disks = OBJECT_HAS(vm, body, disks), nics = OBJECT_HAS(vm, body, nics);
    struct vm patch;
    if (!disks && !nics)
        return decide_update(d, object_kind_VM, id, id_length, body);
    const struct record *record = decide_target(d, object_kind_VM, id, id_length);
    if (record == NULL)
        return -ENOENT;
    memset(&patch, 0, sizeof patch);
    OBJECT_COPY(vm, &patch, body);
    OBJECT_TEXT(vm, &patch, id, record->common->id);
    int rc = disks ? disks_complete(d, record->vm, &patch) : 0;
    if (rc == 0 && nics)
        rc = nics_complete(d, record->vm, &patch);
    if (rc == 0)
        rc = decide_update_of(d, object_kind_VM, id, id_length, &patch, record->vm->generation);
    OBJECT_CLEAR(vm, &patch);
    return rc;
}
