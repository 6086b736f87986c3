/* Copies of an image; see image_copies.h. */
#include "controller/fsm/image_copies.h"

#include <string.h>

struct image_copy *image_copy_find(const struct image *image, const char *host_id)
{
    for (size_t i = 0; i < image->copies.count; i++) {
        struct image_copy *copy = (struct image_copy *)image->copies.items + i;
        if (strcmp(copy->host, host_id) == 0)
            return copy;
    }
    return NULL;
}

bool image_has_copies(const struct image *image)
{
    return image->disk.sha256 != NULL && (image->kind == image_kind_DISK || image->disk.url == NULL);
}

bool image_is_kept(const struct image *image)
{
    return image_has_copies(image) && image->disk.url == NULL;
}

unsigned image_copies_held(const struct image *image, const char *without)
{
    unsigned n = 0;
    for (size_t i = 0; i < image->copies.count; i++) {
        const struct image_copy *copy = (const struct image_copy *)image->copies.items + i;
        n += copy->state == image_copy_state_HELD && (without == NULL || strcmp(copy->host, without) != 0);
    }
    return n;
}

static enum image_copy_state state_of(const struct image_seen *seen)
{
    return seen != NULL ? (enum image_copy_state)seen->state : image_copy_state_WANTED;
}

static const char *reason_of(const struct image_seen *seen)
{
    return seen != NULL && seen->reason != NULL ? seen->reason : "";
}

bool image_copy_differs(const struct image *image, const char *host_id, const struct image_seen *seen)
{
    const struct image_copy *copy = image_copy_find(image, host_id);
    if (copy == NULL) /* on its way for a VM: nobody else can use it yet */
        return state_of(seen) == image_copy_state_HELD;
    return copy->state != state_of(seen) || strcmp(copy->reason != NULL ? copy->reason : "", reason_of(seen)) != 0;
}

static struct image_copy *copy_add(struct image *image, const char *host_id, const char *host_name)
{
    struct image_copy *copy = OBJECT_ADD(image, image, copies);
    OBJECT_TEXT(image_copy, copy, host, host_id);
    OBJECT_TEXT(image_copy, copy, name, host_name);
    OBJECT_SET(image_copy, copy, state, image_copy_state_WANTED);
    return copy;
}

bool image_copy_remove(struct image *image, const char *host_id)
{
    struct image_copy *copies = image->copies.items, *copy = image_copy_find(image, host_id);
    if (copy == NULL)
        return false;
    OBJECT_CLEAR(image_copy, copy);
    memmove(copy, copy + 1, (size_t)(copies + image->copies.count - (copy + 1)) * sizeof(*copy));
    image->copies.count--;
    return true;
}

bool image_copy_see(struct image *image, const char *host_id, const char *host_name, const struct image_seen *seen)
{
    struct image_copy *copy = image_copy_find(image, host_id);
    if (!image_copy_differs(image, host_id, seen))
        return false;
    if (copy != NULL && !copy->keep && state_of(seen) != image_copy_state_HELD)
        return image_copy_remove(image, host_id);
    if (copy == NULL)
        copy = copy_add(image, host_id, host_name);
    OBJECT_SET(image_copy, copy, state, state_of(seen));
    OBJECT_TEXT(image_copy, copy, reason, reason_of(seen)[0] != '\0' ? reason_of(seen) : NULL);
    return true;
}

bool image_copy_keep(struct image *image, const char *host_id, const char *host_name, bool keep)
{
    struct image_copy *copy = image_copy_find(image, host_id);
    if (copy == NULL && !keep)
        return false;
    if (copy != NULL && copy->keep == keep)
        return false;
    if (!keep && copy->state != image_copy_state_HELD)
        return image_copy_remove(image, host_id);
    if (copy == NULL)
        copy = copy_add(image, host_id, host_name);
    OBJECT_SET(image_copy, copy, keep, keep);
    return true;
}
