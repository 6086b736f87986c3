/* Requests about VMs: complete the description, choose the host, name the wanted state. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "controller/command/host_view.h"
#include "controller/fsm/address_pool.h"
#include "controller/fsm/mac_index.h"

#define MIB (UINT64_C(1) << 20)
#define SECTOR_BYTES 512u
#define NOTE_BYTES_MAX 701u
#define MAC_DRAWS_MAX 64u
#define DISKS_MAX 16u /* of a VMM; a seed disk is one of them */

/* ---- completing the description ---- */

static int fill_size(struct deciding *d, struct vm *vm)
{
    const struct record *flavor = state_get(d->state, object_kind_FLAVOR, vm->flavor);
    if (vm->flavor != NULL && flavor == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/flavor", "there is no flavor '%s'", vm->flavor);
    if (flavor != NULL && (OBJECT_HAS(vm, vm, vcpus) || OBJECT_HAS(vm, vm, memory_bytes)))
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, OBJECT_HAS(vm, vm, vcpus) ? "/vcpus" : "/memory_bytes",
                               "is given by flavor '%s'; leave one of the two out", flavor->common->name);
    if (flavor != NULL && OBJECT_HAS(flavor, flavor->flavor, cpu_model)) {
        if (OBJECT_HAS(vm, vm, cpu_model))
            return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/cpu_model",
                                   "is given by flavor '%s'; leave one of the two out", flavor->common->name);
        OBJECT_SET(vm, vm, cpu_model, flavor->flavor->cpu_model);
    }
    if (flavor != NULL) {
        OBJECT_SET(vm, vm, vcpus, flavor->flavor->vcpus);
        OBJECT_SET(vm, vm, memory_bytes, flavor->flavor->memory_bytes);
    }
    if (vm->vcpus == 0)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/vcpus", "is missing: give a flavor, or vcpus and memory_bytes");
    if (vm->memory_bytes == 0)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/memory_bytes",
                               "is missing: give a flavor, or vcpus and memory_bytes");
    if (vm->memory_bytes % MIB != 0)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/memory_bytes",
                               "is %llu; it must be a multiple of 1 MiB (1048576)", (unsigned long long)vm->memory_bytes);
    return 0;
}

static int disk_error(struct deciding *d, size_t i, const char *field, const char *text)
{
    char pointer[64];
    snprintf(pointer, sizeof pointer, "/disks/%zu/%s", i, field);
    return error_set_field(d->err, -EINVAL, ERROR_INVALID, pointer, "%s", text);
}

/* A VM without disks of its own gets one: the image's, or an empty one where only the flavor asks for it. */
static void add_default_disk(struct vm *vm, const struct image *image, uint64_t flavor_disk_bytes)
{
    bool from_image = OBJECT_HAS(image, image, disk);
    if (OBJECT_HAS(vm, vm, disks) || (!from_image && flavor_disk_bytes == 0))
        return;
    struct vm_disk *disk = OBJECT_ADD(vm, vm, disks);
    OBJECT_TEXT(vm_disk, disk, name, "root");
    if (from_image)
        OBJECT_SET(vm_disk, disk, image, true);
}

static int fill_disk(struct deciding *d, struct vm *vm, size_t i, const struct image *image, uint64_t flavor_disk_bytes)
{
    struct vm_disk *disks = vm->disks.items, *disk = &disks[i];
    uint64_t image_bytes = disk->image ? image->disk.size_bytes : 0;
    for (size_t k = 0; k < i; k++) {
        if (strcmp(disks[k].name, disk->name) == 0)
            return disk_error(d, i, "name", "is the name of another disk of this VM too");
        if (disks[k].image && disk->image)
            return disk_error(d, i, "image", "only one disk can begin as a copy of the image's disk");
    }
    if (disk->image && !OBJECT_HAS(image, image, disk))
        return disk_error(d, i, "image", "the image has no disk to copy");
    if (disk->size_bytes == 0 && i == 0 && flavor_disk_bytes > image_bytes)
        OBJECT_SET(vm_disk, disk, size_bytes, flavor_disk_bytes);
    if (disk->size_bytes == 0 && image_bytes > 0)
        OBJECT_SET(vm_disk, disk, size_bytes, MAX((image_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES, MIB));
    if (disk->size_bytes == 0 && !disk->image)
        return disk_error(d, i, "size_bytes", "is missing: only the disk of an image has a size of its own");
    if (disk->size_bytes % SECTOR_BYTES != 0)
        return disk_error(d, i, "size_bytes", "must be a multiple of 512");
    if (disk->size_bytes != 0 && disk->size_bytes < image_bytes)
        return disk_error(d, i, "size_bytes", "is smaller than the image's disk");
    return 0;
}

/* The pool that the disk names, else the VM's; by its name. */
static int fill_pool(struct deciding *d, const struct vm *vm, size_t i)
{
    struct vm_disk *disk = (struct vm_disk *)vm->disks.items + i;
    const char *wanted = disk->pool != NULL ? disk->pool : vm->pool;
    const struct record *pool = state_get(d->state, object_kind_POOL, wanted);
    char pointer[64];
    if (wanted == NULL)
        return 0;
    snprintf(pointer, sizeof pointer, "/disks/%zu/pool", i);
    if (pool == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, disk->pool != NULL ? pointer : "/pool", "there is no pool '%s'",
                               wanted);
    OBJECT_TEXT(vm_disk, disk, pool, pool->common->name);
    return 0;
}

static int fill_disks(struct deciding *d, struct vm *vm)
{
    const struct record *image = state_get(d->state, object_kind_IMAGE, vm->image);
    const struct record *flavor = state_get(d->state, object_kind_FLAVOR, vm->flavor);
    uint64_t flavor_disk_bytes = flavor != NULL ? flavor->flavor->disk_bytes : 0;
    if (vm->image == NULL)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/image", "is missing: name the image that it boots");
    if (image == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/image", "there is no image '%s'", vm->image);
    if (image->image->kind == image_kind_DISK && vm->cmdline != NULL)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/cmdline", "the image boots by its own boot loader; leave it out");
    add_default_disk(vm, image->image, flavor_disk_bytes);
    bool seed = vm->user_data != NULL || vm->ssh_keys != NULL || vm->hostname != NULL;
    if (seed && vm->disks.count >= DISKS_MAX)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/disks",
                               "has %zu items, and hostname, ssh_keys and user_data need one more disk; the limit is %u",
                               vm->disks.count, DISKS_MAX);
    for (size_t i = 0; i < vm->disks.count; i++) {
        int rc = fill_disk(d, vm, i, image->image, flavor_disk_bytes);
        if (rc == 0)
            rc = fill_pool(d, vm, i);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static bool mac_is_taken(const struct deciding *d, const struct vm *vm, const char *mac)
{
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        if (nic->mac != NULL && strcasecmp(nic->mac, mac) == 0)
            return true;
    }
    return state_mac_in_use(d->state, mac);
}

/* 52:54:00 is the locally administered range of virtual machines; the rest comes from a random id. With 100,000 NICs one
 * draw in 170 hits an address that is in use: it is drawn again. */
int decide_nics_fill(struct deciding *d, struct vm *vm)
{
    for (size_t i = 0; i < vm->nics.count; i++) {
        struct vm_nic *nic = (struct vm_nic *)vm->nics.items + i;
        char id[STATE_ID_BYTES], mac[18];
        unsigned draws = 0;
        if (nic->mac != NULL)
            continue;
        do {
            if (draws++ == MAC_DRAWS_MAX)
                return error_set(d->err, -ENOSPC, ERROR_NO_SPACE, "no free MAC address was found; give one for each NIC");
            decide_uuid(d, id);
            snprintf(mac, sizeof mac, "52:54:00:%.2s:%.2s:%.2s", id, id + 2, id + 4);
        } while (mac_is_taken(d, vm, mac));
        OBJECT_TEXT(vm_nic, nic, mac, mac);
    }
    return 0;
}

static void choose_host(struct deciding *d, struct vm *vm)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = host_view_request(vm);
    const struct record *pin = state_get(d->state, object_kind_HOST, vm->pin);
    char note[NOTE_BYTES_MAX];
    CLEANUP_FREE uint8_t *apart = host_view_apart(d->state, vm);
    CLEANUP_FREE uint8_t *pools = host_view_pools(d->state, vm);
    if (pin != NULL)
        request.pin = pin->common->name;
    request.apart = apart;
    request.pools = pools;
    host_view_fill(d->state, NULL, &view);
    place_vm(&view, &request, &result);
    place_summary(&view, &request, &result, note, sizeof note);
    OBJECT_TEXT(vm, vm, placement, note);
    if (result.chosen != PLACE_NONE) {
        OBJECT_TEXT(vm, vm, host, view.ids[result.chosen]);
        OBJECT_TEXT(vm, vm, host_name, view.names[result.chosen]);
        OBJECT_SET(vm, vm, epoch, 1);
    }
    snprintf(d->decision->summary, sizeof d->decision->summary, "VM %s is made: %.180s", vm->name, note);
    place_result_finish(&result);
    view_finish(&view);
}

static void new_operation(struct deciding *d, enum operation_kind kind, struct operation *operation)
{
    decide_uuid(d, d->decision->operation_id);
    OBJECT_TEXT(operation, operation, id, d->decision->operation_id);
    OBJECT_SET(operation, operation, kind, kind);
}

int decide_vm_create(struct deciding *d, const struct vm *body)
{
    struct command_vm_create command = {0};
    struct vm *vm = &command.vm;
    char id[STATE_ID_BYTES];
    OBJECT_COPY(vm, vm, body);
    int rc = vm->backup != NULL ? decide_vm_from_backup(d, vm) : 0;
    if (rc == 0)
        rc = fill_size(d, vm);
    if (rc == 0)
        rc = fill_disks(d, vm);
    if (rc < 0) {
        OBJECT_CLEAR(command_vm_create, &command);
        return rc;
    }
    decide_uuid(d, id);
    OBJECT_TEXT(vm, vm, id, id);
    rc = decide_nics_fill(d, vm);
    if (rc == 0)
        rc = vm_nics_resolve(d->state, vm, d->err);
    if (rc < 0) {
        OBJECT_CLEAR(command_vm_create, &command);
        return rc;
    }
    choose_host(d, vm);
    bool started = !OBJECT_HAS(vm, vm, started) || vm->started;
    OBJECT_SET(vm, vm, wanted, started ? vm_wanted_RUNNING : vm_wanted_STOPPED);
    vm->started = false; /* a wish of the moment, not a property */
    vm->head.present &= ~(UINT64_C(1) << (object_field(&vm_desc, "started") - vm_desc.fields));
    if (!OBJECT_HAS(vm, vm, restart))
        OBJECT_SET(vm, vm, restart, restart_policy_ON_FAILURE);
    new_operation(d, operation_kind_VM_CREATE, &command.operation);
    object_mark(&command_vm_create_desc, &command, "vm");
    object_mark(&command_vm_create_desc, &command, "operation");
    decide_request(d, 202, &command.request);
    decide_object(d, object_kind_VM, id);
    decide_preview(d, &vm_desc, vm);
    return decide_finish(d, COMMAND_vm_create, &command);
}

/* ---- want ---- */

static const struct {
    enum route_id route;
    enum operation_kind kind;
    enum vm_wanted wanted;
    bool reboot;
} wants[] = {
    {ROUTE_ID_vm_delete, operation_kind_VM_DELETE, vm_wanted_DELETED, false},
    {ROUTE_ID_vm_start, operation_kind_VM_START, vm_wanted_RUNNING, false},
    {ROUTE_ID_vm_stop, operation_kind_VM_STOP, vm_wanted_STOPPED, false},
    {ROUTE_ID_vm_reboot, operation_kind_VM_REBOOT, vm_wanted_RUNNING, true},
    {ROUTE_ID_vm_pause, operation_kind_VM_PAUSE, vm_wanted_PAUSED, false},
    {ROUTE_ID_vm_resume, operation_kind_VM_RESUME, vm_wanted_RUNNING, false},
};

int decide_vm_want(struct deciding *d, enum route_id route, const char *id, size_t id_length)
{
    struct command_vm_want command = {0};
    const struct record *record = decide_target(d, object_kind_VM, id, id_length);
    unsigned row = 0;
    if (record == NULL)
        return -ENOENT;
    while (wants[row].route != route)
        ASSERT(++row < ARRAY_SIZE(wants));
    decide_request(d, 202, &command.request);
    OBJECT_TEXT(command_vm_want, &command, id, record->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_vm_want, &command, if_revision, d->context->if_revision);
    OBJECT_SET(command_vm_want, &command, wanted, wants[row].wanted);
    if (wants[row].reboot)
        OBJECT_SET(command_vm_want, &command, reboot, true);
    if (d->context->force)
        OBJECT_SET(command_vm_want, &command, force, true);
    new_operation(d, wants[row].kind, &command.operation);
    object_mark(&command_vm_want_desc, &command, "operation");
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s of %s",
             operation_kind_desc.names[wants[row].kind], record->common->name);
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_vm_want, &command);
}

/* ---- where it would go ---- */

int decide_placement(const struct state *state, const struct vm *vm, struct placement *ret, struct error *err)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    struct place_request request = host_view_request(vm);
    if (vm->vcpus == 0 || vm->memory_bytes == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "the VM has no size yet");
    CLEANUP_FREE uint8_t *apart = host_view_apart(state, vm);
    CLEANUP_FREE uint8_t *pools = host_view_pools(state, vm);
    request.apart = apart;
    request.pools = pools;
    host_view_fill(state, state_get(state, object_kind_VM, vm->id), &view);
    place_vm(&view, &request, &result);
    place_explain(&view, &request, &result, ret);
    place_result_finish(&result);
    view_finish(&view);
    return 0;
}
