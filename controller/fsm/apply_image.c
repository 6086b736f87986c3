/* Images that hosts hold or make: who is to keep them, and what hosts report of them (image_copies.h has the rules). */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/image_copies.h"

/* Hosts that are still to get it: they are to know who has it. */
static void tell_waiting(struct apply *a, const struct image *image)
{
    for (size_t i = 0; i < image->copies.count; i++) {
        const struct image_copy *copy = (const struct image_copy *)image->copies.items + i;
        if (copy->state != image_copy_state_HELD)
            state_host_orders_changed(a->state, copy->host, a->index);
    }
}

/* ---- distribution ---- */

static bool hosts_exist(struct apply *a, const struct string_list *hosts)
{
    for (size_t i = 0; i < hosts->count; i++)
        if (map_get(&a->state->tables[object_kind_HOST].by_id, hosts->items[i]) == NULL) {
            apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no host with id %s", hosts->items[i]);
            return false;
        }
    return true;
}

/* The last copies of what is nowhere else must not go. */
static bool may_drop(struct apply *a, const struct image *image, const struct command_image_copies *command)
{
    unsigned left = 0;
    for (size_t i = 0; i < image->copies.count; i++) {
        const struct image_copy *copy = (const struct image_copy *)image->copies.items + i;
        bool dropped = false;
        for (size_t k = 0; k < command->drop.count; k++)
            dropped |= strcmp(command->drop.items[k], copy->host) == 0;
        left += copy->keep && !dropped && copy->state == image_copy_state_HELD;
    }
    if (command->drop.count == 0 || left > 0 || !image_is_kept(image))
        return true;
    apply_refuse_field(a, -EBUSY, ERROR_IN_USE, "/drop", "would leave no host that keeps image '%s'; have another one keep it "
                       "first, and wait until it holds it", image->name);
    return false;
}

void apply_image_copies(struct apply *a, struct command_image_copies *command)
{
    struct record *record = apply_find(a, object_kind_IMAGE, command->id, command->if_revision);
    if (record == NULL || !hosts_exist(a, &command->add) || !hosts_exist(a, &command->drop))
        return;
    if (!image_has_copies(record->image)) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "image '%s' has no disk (yet) that hosts could keep", record->common->name);
        return;
    }
    if (!may_drop(a, record->image, command))
        return;
    if (a->check_only)
        return;
    bool changed = false;
    state_edit_begin(a->state, record);
    for (size_t i = 0; i < command->add.count + command->drop.count; i++) {
        bool keep = i < command->add.count;
        const char *id = keep ? command->add.items[i] : command->drop.items[i - command->add.count];
        const struct record *host = map_get(&a->state->tables[object_kind_HOST].by_id, id);
        if (!image_copy_keep(record->image, id, host->common->name, keep))
            continue;
        state_host_orders_changed(a->state, id, a->index);
        changed = true;
    }
    state_edit_end(a->state, record, changed ? a->index : record->common->revision);
    apply_answer(a, record);
    if (changed)
        apply_event(a, event_type_UPDATED, record, "image %s: %zu hosts have it or are to", record->common->name,
                    record->image->copies.count);
}

/* ---- what hosts report ---- */

void apply_images_seen(struct apply *a, const struct record *host, const struct object_list *images)
{
    for (size_t i = 0; i < images->count; i++) {
        const struct image_seen *seen = (const struct image_seen *)images->items + i;
        for (size_t k = 0; k < state_count(a->state, object_kind_IMAGE); k++) {
            struct record *record = a->state->tables[object_kind_IMAGE].order.items[k];
            struct image *image = record->image;
            if (!image_has_copies(image) || strcmp(image->disk.sha256, seen->sha256) != 0 ||
                !image_copy_differs(image, host->common->id, seen))
                continue;
            state_edit_begin(a->state, record);
            image_copy_see(image, host->common->id, host->common->name, seen);
            state_edit_end(a->state, record, a->index);
            apply_event(a, event_type_UPDATED, record, "image %s: host %s: %s%s%s", record->common->name, host->common->name,
                        seen->state == image_copy_state_WANTED ? "has it no longer" : image_copy_state_desc.names[seen->state],
                        seen->reason != NULL ? ": " : "", seen->reason != NULL ? seen->reason : "");
            if (seen->state == image_copy_state_HELD)
                tell_waiting(a, image);
            if (image_copy_find(image, host->common->id) != NULL && seen->state == image_copy_state_WANTED)
                state_host_orders_changed(a->state, host->common->id, a->index);
        }
    }
}

/* ---- imports, and copies of snapshots ---- */

static bool import_may_begin(struct apply *a, const struct operation *operation)
{
    const struct image *image = &operation->task.image.image;
    if (!OBJECT_HAS(task, &operation->task, image) || image->id == NULL || strcmp(image->id, operation->target_id) != 0) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the operation has no image");
        return false;
    }
    return apply_may_insert(a, object_kind_IMAGE, (const struct record_common *)image) &&
           (operation->task.image.snapshot == NULL || snapshot_may_be_read(a, operation, operation->task.image.snapshot));
}

static void import_begun(struct apply *a, const struct operation *operation)
{
    struct image image = {0};
    OBJECT_COPY(image, &image, &operation->task.image.image);
    struct record *record = state_insert(a->state, object_kind_IMAGE, &image, a->index);
    const char *snapshot = record->image->source.snapshot;
    apply_event(a, event_type_CREATED, record, "image %s made: its content is %s%s", record->common->name,
                snapshot != NULL                                ? "copied from snapshot "
                : record->image->state == image_state_UPLOADING ? "to be uploaded"
                                                                : "fetched",
                snapshot != NULL ? snapshot : "");
}

/* Its host has it, and keeps it. */
static void import_take(struct apply *a, struct image *image, const char *host_id, const struct image_result *result)
{
    const struct record *host = map_get(&a->state->tables[object_kind_HOST].by_id, host_id);
    struct image_seen seen = {0};
    OBJECT_TEXT(artifact, &image->disk, sha256, result->sha256);
    OBJECT_SET(artifact, &image->disk, size_bytes, result->size_bytes);
    object_mark(&image_desc, image, "disk");
    OBJECT_SET(image, image, state, image_state_READY);
    OBJECT_SET(image_seen, &seen, state, image_copy_state_HELD);
    if (host == NULL)
        return;
    image_copy_keep(image, host_id, host->common->name, true);
    image_copy_see(image, host_id, host->common->name, &seen);
    state_host_orders_changed(a->state, host_id, a->index);
}

static void import_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                         const struct task_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_IMAGE].by_id, operation->target_id);
    bool whole = state == operation_state_SUCCEEDED && seen != NULL && OBJECT_HAS(task_seen, seen, image) &&
                 seen->image.sha256 != NULL && seen->image.size_bytes > 0;
    char why[APPLY_TEXT_BYTES_MAX];
    if (record == NULL || record->image->state == image_state_READY)
        return;
    if (state == operation_state_CANCELLED) {
        apply_event(a, event_type_DELETED, record, "image %s is gone: cancelled", record->common->name);
        state_remove(a->state, record);
        return;
    }
    apply_text(why, sizeof why, "%s", text != NULL ? text : "its host does not say why");
    state_edit_begin(a->state, record);
    if (whole) {
        import_take(a, record->image, operation->task.host, &seen->image);
    } else {
        OBJECT_SET(image, record->image, state, image_state_FAILED);
        OBJECT_TEXT(image, record->image, state_reason, why);
    }
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "image %s %s%s", record->common->name, whole ? "can be used" : "could not be had: ",
                whole ? "" : why);
}

const struct task_kind_ops task_image_import = {.may_begin = import_may_begin, .begun = import_begun, .ended = import_ended};

bool apply_image_may_go(struct apply *a, const struct record *record)
{
    const struct record *operation = state_get(a->state, object_kind_OPERATION, record->image->operation);
    if (operation == NULL || operation->operation->state != operation_state_RUNNING)
        return true;
    apply_refuse(a, -EBUSY, ERROR_IN_USE, "image '%s' is being made; cancel that first: operation cancel %s", record->common->name,
                 operation->common->id);
    return false;
}

/* ---- hosts that go ---- */

bool apply_host_may_leave_images(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_IMAGE); i++) {
        const struct record *record = state_at(a->state, object_kind_IMAGE, i);
        const struct image_copy *copy = image_copy_find(record->image, host->common->id);
        if (copy == NULL || copy->state != image_copy_state_HELD || !image_is_kept(record->image) ||
            image_copies_held(record->image, host->common->id) > 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE,
                     "host '%s' cannot be removed: it has the only copy of image '%s'; have another host keep it "
                     "(image distribute), or remove the image", host->common->name, record->common->name);
        return false;
    }
    return true;
}

void apply_host_leaves_images(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_IMAGE); i++) {
        struct record *record = a->state->tables[object_kind_IMAGE].order.items[i];
        if (image_copy_find(record->image, host->common->id) == NULL)
            continue;
        state_edit_begin(a->state, record);
        image_copy_remove(record->image, host->common->id);
        state_edit_end(a->state, record, a->index);
    }
}
