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

static int check_kernel(const struct image *image, struct error *err)
{
    if (!OBJECT_HAS(image, image, kernel))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/kernel", "is missing: an image of kind kernel needs one");
    if (OBJECT_HAS(image, image, firmware))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/firmware", "is for images of kind disk; a kernel is booted without one");
    if (OBJECT_HAS(image, image, source))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source", "is for images of kind disk");
    int r = check_artifact(&image->kernel, "/kernel/url", err);
    if (r == 0 && OBJECT_HAS(image, image, initrd))
        r = check_artifact(&image->initrd, "/initrd/url", err);
    if (r == 0 && OBJECT_HAS(image, image, disk))
        r = check_artifact(&image->disk, "/disk/url", err);
    return r;
}

static int check_source(const struct image_source *source, struct error *err)
{
    if (source->url != NULL && strncmp(source->url, "file:", 5) == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/url", "must be http or https; a file of your own is uploaded");
    if (source->url == NULL && source->size_bytes == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/size_bytes", "is missing: an upload says beforehand how long it is");
    if (source->url == NULL && source->sha256 == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/source/sha256", "is missing: an upload says beforehand what it will be");
    return 0;
}

int decide_image_check(const struct image *image, struct error *err)
{
    if (image->kind == image_kind_KERNEL)
        return check_kernel(image, err);
    if (OBJECT_HAS(image, image, disk) == OBJECT_HAS(image, image, source))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/disk",
                               "an image of kind disk needs either a disk (a URL that hosts fetch by themselves) or a source "
                               "(an upload or a URL that is imported once)");
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
    OBJECT_SET(image, image, state, body->source.url == NULL ? image_state_UPLOADING : image_state_IMPORTING);
    OBJECT_TEXT(image, image, host, host->id);
    OBJECT_TEXT(image, image, operation, operation);
    if (!OBJECT_HAS(image, body, replicas))
        OBJECT_SET(image, image, replicas, REPLICAS);
}

/* An operation from the beginning, so that its upload can be followed and cancelled like all that takes time. */
static int create_by_task(struct deciding *d, const struct image *body)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    struct image *image = &operation->task.image.image;
    int r = decide_image_check(body, d->err);
    const struct host *host = r == 0 ? pick_host(d, body->source.size_bytes) : NULL;
    if (host == NULL)
        return r < 0 ? r : d->err->code;
    decide_uuid(d, d->decision->operation_id);
    fill_image(d, body, host, d->decision->operation_id, image);
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
    object_mark(&command_task_desc, &command, "operation");
    decide_request(d, 201, &command.request);
    decide_object(d, object_kind_IMAGE, image->id);
    decide_preview(d, &image_desc, image);
    snprintf(d->decision->summary, sizeof d->decision->summary, "image %s is made on host %s", image->name, host->name);
    return decide_finish(d, COMMAND_task, &command);
}

int decide_image_create(struct deciding *d, const struct image *body)
{
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
