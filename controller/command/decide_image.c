/* Requests about images: what a new one must be, and which hosts keep it. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/image_copies.h"

#define REPLICAS 2 /* of an image that the cluster keeps: losing one host loses nothing */

/* ---- create ---- */

static int check_artifact(const struct artifact *artifact, const char *field, struct error *err)
{
    if (artifact->url != NULL)
        return 0;
    return error_set_field(err, -EINVAL, ERROR_INVALID, field,
                           "is missing: hosts fetch it from there; a disk without a URL is uploaded (source)");
}

/* Its bytes are told by nobody: the host that has it finds out what they are. */
static int check_snapshot_source(const struct image_source *source, struct error *err)
{
    static const char *const others[] = {"url", "sha256", "size_bytes"};
    char field[32];
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        if (!object_has(&image_source_desc, source, object_field(&image_source_desc, others[i])))
            continue;
        snprintf(field, sizeof field, "/source/%s", others[i]);
        return error_set_field(err, -EINVAL, ERROR_INVALID, field, "is not for a snapshot; leave one of the two out");
    }
    if (OBJECT_HAS(image_source, source, format) && source->format != image_format_RAW)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/format", "is raw where the image is made of a snapshot; leave it out");
    return 0;
}

static int check_source(const struct image_source *source, struct error *err)
{
    if (source->snapshot != NULL)
        return check_snapshot_source(source, err);
    if (source->disk != NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/disk", "is for an image that is made of a snapshot");
    if (!OBJECT_HAS(image_source, source, format))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/format",
                               "is missing: say raw, qcow2, vmdk, vhdx or ova; it is never guessed");
    if (source->url != NULL && strncmp(source->url, "file:", 5) == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/url", "must be http or https; a file of your own is uploaded");
    if (source->url == NULL && source->size_bytes == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/size_bytes", "is missing: an upload says beforehand how long it is");
    if (source->url == NULL && source->sha256 == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/sha256", "is missing: an upload says beforehand what it will be");
    return 0;
}

static int check_kernel(const struct image *image, struct error *err)
{
    if (!OBJECT_HAS(image, image, kernel))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/kernel", "is missing: an image of kind kernel needs one");
    if (OBJECT_HAS(image, image, firmware))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/firmware", "is for images of kind disk; a kernel is booted without one");
    if (OBJECT_HAS(image, image, source) && image->source.snapshot == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source", "is for images of kind disk, unless it is a snapshot");
    if (OBJECT_HAS(image, image, source) && OBJECT_HAS(image, image, disk))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/disk", "is made of the snapshot; leave one of the two out");
    int r = check_artifact(&image->kernel, "/kernel/url", err);
    if (r == 0 && OBJECT_HAS(image, image, initrd))
        r = check_artifact(&image->initrd, "/initrd/url", err);
    if (r == 0 && OBJECT_HAS(image, image, disk))
        r = check_artifact(&image->disk, "/disk/url", err);
    return r;
}

int decide_image_check(const struct image *image, struct error *err)
{
    if (image->kind == image_kind_KERNEL)
        return check_kernel(image, err);
    if (OBJECT_HAS(image, image, disk) == OBJECT_HAS(image, image, source))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/disk",
                               "an image of kind disk needs either a disk (a URL that hosts fetch by themselves) or a source "
                               "(an upload, a URL that is imported once, or a snapshot)");
    if (OBJECT_HAS(image, image, cmdline))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/cmdline", "is for images of kind kernel; a disk has its own boot loader's");
    if (OBJECT_HAS(image, image, kernel) || OBJECT_HAS(image, image, initrd))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/kernel", "an image of kind disk boots from its disk; leave kernel and initrd out");
    return OBJECT_HAS(image, image, disk) ? check_artifact(&image->disk, "/disk/url", err) : check_source(&image->source, err);
}

/* The host with the most room of those that take VMs; what is to be made of the file is not known before it is looked at. */
static const struct host *pick_host(const struct deciding *d, uint64_t size_bytes)
{
    const struct host *best = NULL;
    for (size_t i = 0; i < state_count(d->state, object_kind_HOST); i++) {
        const struct host *host = state_at(d->state, object_kind_HOST, i)->host;
        if (host->state == host_state_UP && host->schedulable && (best == NULL || host->disk_free_bytes > best->disk_free_bytes))
            best = host;
    }
    if (best == NULL)
        error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host is up and schedulable that could take the image");
    else if (best->disk_free_bytes < size_bytes) {
        error_set(d->err, -ENOSPC, ERROR_NO_SPACE, "the image has %llu MiB, and host %s, which has the most room, %llu MiB; free some",
                  (unsigned long long)(size_bytes >> 20), best->name, (unsigned long long)(best->disk_free_bytes >> 20));
        return NULL;
    }
    return best;
}

/* The image as it will be while its content is on the way. */
static void fill_image(const struct deciding *d, const struct image *body, const struct host *host, const char *operation,
                       struct image *image)
{
    char id[STATE_ID_BYTES];
    OBJECT_COPY(image, image, body);
    decide_uuid(d, id);
    OBJECT_TEXT(image, image, id, id);
    OBJECT_TEXT(image, image, created_at, d->context->now);
    OBJECT_SET(image, image, state,
               body->source.url == NULL && body->source.snapshot == NULL ? image_state_UPLOADING : image_state_IMPORTING);
    OBJECT_TEXT(image, image, host, host->id);
    OBJECT_TEXT(image, image, operation, operation);
    if (!OBJECT_HAS(image, body, replicas))
        OBJECT_SET(image, image, replicas, REPLICAS);
}

/* An operation from the beginning, so that its upload can be followed and cancelled like all that takes time. @command has
 * the image and the host. */
static int finish_task(struct deciding *d, struct command_task *command, const struct host *host)
{
    struct operation *operation = &command->operation;
    const struct image *image = &operation->task.image.image;
    OBJECT_TEXT(operation, operation, id, d->decision->operation_id);
    OBJECT_SET(operation, operation, kind, operation_kind_IMAGE_IMPORT);
    OBJECT_SET(operation, operation, target_kind, object_kind_IMAGE);
    OBJECT_TEXT(operation, operation, target_id, image->id);
    OBJECT_TEXT(operation, operation, target_name, image->name);
    OBJECT_SET(task, &operation->task, kind, task_kind_IMAGE_IMPORT);
    OBJECT_TEXT(task, &operation->task, host, host->id);
    object_mark(&task_image_desc, &operation->task.image, "image");
    object_mark(&task_desc, &operation->task, "image");
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, command, "operation");
    decide_request(d, 201, &command->request);
    decide_object(d, object_kind_IMAGE, image->id);
    decide_preview(d, &image_desc, image);
    snprintf(d->decision->summary, sizeof d->decision->summary, "image %s is made on host %s", image->name, host->name);
    return decide_finish(d, COMMAND_task, command);
}

static int create_by_task(struct deciding *d, const struct image *body)
{
    struct command_task command = {0};
    int r = decide_image_check(body, d->err);
    const struct host *host = r == 0 ? pick_host(d, body->source.size_bytes) : NULL;
    if (host == NULL)
        return r < 0 ? r : d->err->code;
    decide_uuid(d, d->decision->operation_id);
    fill_image(d, body, host, d->decision->operation_id, &command.operation.task.image.image);
    return finish_task(d, &command, host);
}

/* ---- of a snapshot ---- */

/* Which disk; one alone need not be named. Those of @snapshot, or, where its host did not say which they were (its agent was
 * restarted right then), those of @vm: a VM with snapshots keeps its disks. */
static const char *pick_disk(struct deciding *d, const struct snapshot *snapshot, const struct vm *vm, const char *wanted)
{
    const bool told = snapshot->disks.count > 0;
    const struct snapshot_disk *of_snapshot = snapshot->disks.items;
    const struct vm_disk *of_vm = vm->disks.items;
    const char *found = NULL, *one = NULL;
    char names[400] = "";
    size_t usable = 0, size = 0;
    for (size_t i = 0; i < (told ? snapshot->disks.count : vm->disks.count); i++) {
        const char *name = told ? of_snapshot[i].name : of_vm[i].name;
        if (!told && of_vm[i].read_only)
            continue;
        if (size < sizeof names)
            size += (size_t)snprintf(names + size, sizeof names - size, "%s%s", usable > 0 ? ", " : "", name);
        one = usable++ == 0 ? name : NULL;
        if (wanted != NULL && strcmp(name, wanted) == 0)
            found = name;
    }
    if (wanted == NULL && one == NULL)
        error_set_field(d->err, -EINVAL, ERROR_INVALID, "/source/disk", "is missing: snapshot '%s' has %zu disks, name one of %s",
                        snapshot->name, usable, names);
    else if (wanted != NULL && found == NULL)
        error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/source/disk", "is '%.20s', and snapshot '%s' has no disk of that name; it has %s",
                        wanted, snapshot->name, names);
    return wanted != NULL ? found : one;
}

static void take_artifact(struct image *image, const char *field, struct artifact *artifact, const struct artifact *from)
{
    OBJECT_COPY(artifact, artifact, from);
    object_mark(&image_desc, image, field);
}

/* It is to boot as its VM does. @from: the VM's image. */
static int fill_boot(struct deciding *d, const struct image *from, struct image *image)
{
    if (image->kind == image_kind_KERNEL && !OBJECT_HAS(image, image, kernel) && from->kind == image_kind_KERNEL) {
        take_artifact(image, "kernel", &image->kernel, &from->kernel);
        if (OBJECT_HAS(image, from, initrd) && !OBJECT_HAS(image, image, initrd))
            take_artifact(image, "initrd", &image->initrd, &from->initrd);
        if (image->cmdline == NULL && from->cmdline != NULL)
            OBJECT_TEXT(image, image, cmdline, from->cmdline);
    }
    if (image->kind == image_kind_DISK && !OBJECT_HAS(image, image, firmware)) {
        if (from->kind == image_kind_KERNEL)
            return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/kind",
                                   "the VM boots the kernel of image '%s', so its disk may have no boot loader: say kind kernel, and "
                                   "this image gets that kernel, or name the firmware (bios, uefi) that boots the disk by itself",
                                   from->name);
        OBJECT_SET(image, image, firmware, from->firmware); /* bios is 0 */
    }
    return 0;
}

static int fill_of_snapshot(struct deciding *d, const struct image *body, const struct record *vm, const struct snapshot *snapshot,
                            const struct host *host, struct command_task *command)
{
    struct task_image *task = &command->operation.task.image;
    const struct record *from = state_get(d->state, object_kind_IMAGE, vm->vm->image);
    const char *disk = pick_disk(d, snapshot, vm->vm, body->source.disk);
    if (disk == NULL)
        return d->err->code;
    fill_image(d, body, host, d->decision->operation_id, &task->image);
    OBJECT_TEXT(image_source, &task->image.source, snapshot, snapshot->name);
    OBJECT_TEXT(image_source, &task->image.source, disk, disk);
    OBJECT_SET(image_source, &task->image.source, format, image_format_RAW);
    OBJECT_TEXT(task_image, task, snapshot, snapshot->id);
    int r = from != NULL ? fill_boot(d, from->image, &task->image) : 0;
    return r < 0 ? r : decide_image_check(&task->image, d->err);
}

/* The host that has the snapshot makes it, and no other can. */
static int create_of_snapshot(struct deciding *d, const struct image *body)
{
    struct command_task command = {0};
    const struct record *record = state_get(d->state, object_kind_SNAPSHOT, body->source.snapshot);
    if (record == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/source/snapshot", "there is no snapshot '%.63s'",
                               body->source.snapshot);
    if (record->snapshot->volume != NULL)
        return error_set_field(d->err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/source/snapshot",
                               "is of volume '%s' alone, and images are made of snapshots of VMs: make one of its VM", record->snapshot->volume_name);
    const struct record *vm = state_get(d->state, object_kind_VM, record->snapshot->vm);
    ASSERT(vm != NULL); /* a snapshot goes with its VM */
    int r = check_snapshot_source(&body->source, d->err);
    if (r == 0)
        r = decide_task_of_vm(d, vm, &command.operation.task);
    const struct record *host = r == 0 ? state_get(d->state, object_kind_HOST, vm->vm->host) : NULL;
    if (r == 0 && host->host->state != host_state_UP)
        r = error_set_field(d->err, -EHOSTDOWN, ERROR_NO_HOST, "/source/snapshot",
                            "is on host %s, which is %s; try again when that is up", host->common->name,
                            host_state_desc.names[host->host->state]);
    decide_uuid(d, d->decision->operation_id);
    if (r == 0)
        r = fill_of_snapshot(d, body, vm, record->snapshot, host->host, &command);
    if (r == 0)
        return finish_task(d, &command, host->host);
    OBJECT_CLEAR(command_task, &command);
    return r;
}

int decide_image_create(struct deciding *d, const struct image *body)
{
    if (OBJECT_HAS(image, body, source) && body->source.snapshot != NULL)
        return create_of_snapshot(d, body);
    return body->kind == image_kind_DISK && OBJECT_HAS(image, body, source) ? create_by_task(d, body)
                                                                            : decide_create(d, object_kind_IMAGE, body);
}

/* ---- distribution ---- */

static void add_id(struct command_image_copies *command, struct string_list *list, const char *field, const char *id)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i], id) == 0)
            return;
    list->items = xrealloc(list->items, (list->count + 1) * sizeof(*list->items));
    list->items[list->count++] = xstrdup(id);
    object_mark(&command_image_copies_desc, command, field);
}

static int add_named(struct deciding *d, const struct string_list *names, struct command_image_copies *command,
                     struct string_list *list, const char *list_field, const char *field)
{
    for (size_t i = 0; i < names->count; i++) {
        const struct record *host = state_get(d->state, object_kind_HOST, names->items[i]);
        if (host == NULL)
            return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, field, "there is no host '%.63s'", names->items[i]);
        add_id(command, list, list_field, host->common->id);
    }
    return 0;
}

int decide_image_distribute(struct deciding *d, const char *id, size_t id_length, const struct image_distribution *body)
{
    struct command_image_copies command = {0};
    const struct record *record = decide_target(d, object_kind_IMAGE, id, id_length);
    if (record == NULL)
        return -ENOENT;
    int r = add_named(d, &body->hosts, &command, &command.add, "add", "/hosts");
    if (r == 0)
        r = add_named(d, &body->drop, &command, &command.drop, "drop", "/drop");
    for (size_t i = 0; r == 0 && body->hosts.count + body->drop.count == 0 && i < state_count(d->state, object_kind_HOST); i++)
        add_id(&command, &command.add, "add", state_at(d->state, object_kind_HOST, i)->common->id);
    if (r < 0) {
        OBJECT_CLEAR(command_image_copies, &command);
        return r;
    }
    decide_request(d, 200, &command.request);
    OBJECT_TEXT(command_image_copies, &command, id, record->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_image_copies, &command, if_revision, d->context->if_revision);
    decide_preview(d, record->desc, record->object);
    snprintf(d->decision->summary, sizeof d->decision->summary, "image %s: %zu hosts are to keep it, %zu need not",
             record->common->name, command.add.count, command.drop.count);
    return decide_finish(d, COMMAND_image_copies, &command);
}
