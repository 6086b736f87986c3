/* See backup_boot.h. */
#include "controller/fsm/backup_boot.h"
#include "controller/fsm/volume_disks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NO_FIELD UINT64_C(0)
#define MIB (UINT64_C(1) << 20)

/* What of a definition the guest sees of its machine. The rest is of the cluster that it was in. */
static uint64_t fields_taken(void)
{
    static const char *const taken[] = {"image", "vcpus", "memory_bytes", "cpu_model", "cmdline", "disks",
                                        "nics",  "hostname", "ssh_keys", "user_data", "labels"};
    uint64_t fields = NO_FIELD;
    for (size_t i = 0; i < ARRAY_SIZE(taken); i++)
        fields |= UINT64_C(1) << (object_field(&vm_desc, taken[i]) - vm_desc.fields);
    return fields;
}

static const struct snapshot_disk *disk_in(const struct backup *backup, const char *name)
{
    for (size_t i = 0; i < backup->disks.count; i++) {
        const struct snapshot_disk *disk = (const struct snapshot_disk *)backup->disks.items + i;
        if (disk->name != NULL && strcmp(disk->name, name) == 0)
            return disk;
    }
    return NULL;
}

static void disk_clear(struct vm_disk *disk, const char *field)
{
    disk->head.present &= ~(UINT64_C(1) << (object_field(&vm_disk_desc, field) - vm_disk_desc.fields));
}

/* In the host's own directory, whatever pool or volume it was. */
static int disk_take(const struct backup *backup, struct vm_disk *disk, struct error *err)
{
    const struct snapshot_disk *had = disk->name != NULL ? disk_in(backup, disk->name) : NULL;
    if (disk->name == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/boot", "the backup's definition has a disk without a name");
    if (!disk->read_only && had == NULL && backup->disks.count > 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/boot",
                               "disk '%s' of the VM is not in the backup, so nothing can be said of how that would boot", disk->name);
    OBJECT_TEXT(vm_disk, disk, pool, NULL);
    OBJECT_TEXT(vm_disk, disk, volume, NULL);
    disk->attachment = 0;
    disk->leaving = disk->forced = false;
    disk_clear(disk, "attachment");
    disk_clear(disk, "leaving");
    disk_clear(disk, "forced");
    own_disk_forget_places(disk);
    if (disk->read_only) /* as its image has it */
        return 0;
    OBJECT_SET(vm_disk, disk, image, false);
    if (had != NULL)
        OBJECT_SET(vm_disk, disk, size_bytes, MAX(had->size_bytes, MIB));
    return 0;
}

static int needs_check(const struct state *state, const struct vm *vm, struct error *err)
{
    if (vm->image == NULL || vm->vcpus == 0 || vm->memory_bytes == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/boot",
                               "the backup's definition does not say what its VM was (image, processors, memory): make a VM of it by "
                               "hand and restore the backup to that");
    if (state_get(state, object_kind_IMAGE, vm->image) == NULL)
        return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, "/boot",
                               "there is no image '%s', which the VM in the backup boots: import it", vm->image);
    return 0;
}

int backup_boot_vm(const struct state *state, const struct backup *backup, const char *id, struct vm *ret_vm, struct error *err)
{
    struct vm then = {0};
    struct error why = {.code = 0};
    const char *text = backup->definition;
    char name[16];
    if (text == NULL || OBJECT_DECODE(vm, text, strlen(text), OBJECT_LENIENT, &then, &why) < 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/boot",
                               "the backup does not say what its VM was (%.200s): make a VM by hand, with disks of the same names, and "
                               "restore the backup to that",
                               text == NULL ? "it has no definition" : why.text);
    struct vm taken = then; /* borrowed: merge copies */
    taken.head.present &= fields_taken();
    object_merge(&vm_desc, ret_vm, &taken);
    OBJECT_CLEAR(vm, &then);
    int rc = needs_check(state, ret_vm, err);
    for (size_t i = 0; rc == 0 && i < ret_vm->disks.count; i++)
        rc = disk_take(backup, (struct vm_disk *)ret_vm->disks.items + i, err);
    OBJECT_TEXT(vm, ret_vm, id, id);
    snprintf(name, sizeof name, "boot-%.8s", id); /* in logs of its host: not to be taken for the VM itself */
    OBJECT_TEXT(vm, ret_vm, name, name);
    if (ret_vm->hostname == NULL)
        OBJECT_TEXT(vm, ret_vm, hostname, backup->vm_name);
    OBJECT_SET(vm, ret_vm, epoch, 1);
    OBJECT_SET(vm, ret_vm, generation, 1);
    OBJECT_SET(vm, ret_vm, wanted, vm_wanted_RUNNING);
    OBJECT_SET(vm, ret_vm, restart, restart_policy_NEVER);
    OBJECT_SET(vm, ret_vm, stop_forced, true);
    return rc == 0 ? object_validate(&vm_desc, ret_vm, OBJECT_STORED, err) : rc;
}

const struct operation *backup_boot_on(const struct record *host)
{
    for (size_t i = 0; i < host->of_host.tasks.count; i++)
        if (operation_boots(host->of_host.tasks.items[i]->operation))
            return host->of_host.tasks.items[i]->operation;
    return NULL;
}
