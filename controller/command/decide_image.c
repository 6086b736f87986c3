/* Requests about images: what a new one must be, and which hosts keep it. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/image_copies.h"

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
    return OBJECT_HAS(image, image, disk) ? check_artifact(&image->disk, "/disk/url", err)
                                          : error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/source", "is not there yet");
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
