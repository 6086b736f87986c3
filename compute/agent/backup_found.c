/* See backup_found.h. */
#include "compute/agent/backup_found.h"

#include <errno.h>
#include <string.h>

enum {
    DAMAGE_BYTES_MAX = 400, /* as the schema has it */
    VERDICT_BYTES = 40,     /* as JSON */
    HURT_BYTES = 480,
    VERDICTS_BYTES_MAX = 400 * 1024, /* of one task: less than its child's line may have (TASK_CHILD_LINE_BYTES_MAX) */
};

static void found_disk_add(const json_t *from, struct backup_found *found)
{
    const char *name = json_string_value(json_object_get(from, "name"));
    if (name == NULL || found->disks.count >= object_field(&backup_found_desc, "disks")->max)
        return;
    struct snapshot_disk *to = OBJECT_ADD(backup_found, found, disks);
    OBJECT_TEXT(snapshot_disk, to, name, name);
    OBJECT_SET(snapshot_disk, to, size_bytes, (uint64_t)json_integer_value(json_object_get(from, "size_bytes")));
}

/* Is there room in a report for one verdict more? Counted as if each were the largest. */
static bool verdict_fits(struct backup_result *result)
{
    if (result->verified.count * VERDICT_BYTES + result->hurt.count * HURT_BYTES < VERDICTS_BYTES_MAX &&
        result->hurt.count < object_field(&backup_result_desc, "hurt")->max &&
        result->verified.count < object_field(&backup_result_desc, "verified")->max)
        return true;
    OBJECT_SET(backup_result, result, cut, true);
    return false;
}

/* How one stands, by drover-backup verify --each. */
static void verified_add(const json_t *said, const char *id, struct backup_result *result)
{
    const char *damage = json_string_value(json_object_get(said, "damage")), *rule;
    if (!text_format_ok(FORMAT_id, id, &rule) || !verdict_fits(result))
        return;
    if (damage != NULL) {
        struct backup_hurt *hurt = OBJECT_ADD(backup_result, result, hurt);
        char text[DAMAGE_BYTES_MAX + 1];
        text_copy(text, sizeof text, damage);
        OBJECT_TEXT(backup_hurt, hurt, id, id);
        OBJECT_TEXT(backup_hurt, hurt, text, text_format_ok(FORMAT_any, text, &rule) ? text : "it is damaged");
    } else {
        struct string_list *list = &result->verified;
        list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
        list->items[list->count++] = xstrdup(id);
        object_mark(&backup_result_desc, result, "verified");
    }
}

/* What is wrong with it is all that is known of it besides its id. */
static void damaged_add(const char *id, const char *damage, struct backup_result *result)
{
    struct backup_found *found = OBJECT_ADD(backup_result, result, found);
    char text[DAMAGE_BYTES_MAX + 1];
    const char *rule;
    text_copy(text, sizeof text, damage);
    OBJECT_TEXT(backup_found, found, id, id);
    OBJECT_TEXT(backup_found, found, damage, text_format_ok(FORMAT_any, text, &rule) ? text : "it cannot be read");
}

/* Names of disks and VMs that were made by hand may be such as no VM here can have: it is listed, with that as its damage. */
static void found_add(const struct backup_found *found, const char *damage, struct backup_result *result)
{
    struct error why = {.code = 0};
    const char *rule;
    if (found->id == NULL || !text_format_ok(FORMAT_id, found->id, &rule) ||
        result->found.count >= object_field(&backup_result_desc, "found")->max) {
        OBJECT_SET(backup_result, result, damaged, result->damaged + 1);
        return;
    }
    if (damage == NULL && (found->created_at == NULL || found->vm_name == NULL))
        error_set(&why, -EINVAL, ERROR_INVALID, "it does not say %s", found->created_at == NULL ? "when it was made" : "of which VM it is");
    else if (damage == NULL && object_validate(&backup_found_desc, found, OBJECT_CREATE, &why) == 0)
        OBJECT_COPY(backup_found, (struct backup_found *)OBJECT_ADD(backup_result, result, found), found);
    if (damage == NULL && why.code != 0)
        error_prefix(&why, "a cluster cannot take it, drover-backup can (%s): ", why.field);
    if (damage != NULL || why.code != 0)
        damaged_add(found->id, damage != NULL ? damage : why.text, result);
}

static void after_set(const char *id, struct backup_result *result)
{
    const char *rule;
    if (id != NULL && text_format_ok(FORMAT_id, id, &rule))
        OBJECT_TEXT(backup_result, result, after, id);
}

void backup_found_add(const json_t *said, struct backup_result *result)
{
    static const char *const texts[] = {"id", "created_at", "vm", "vm_name", "parent", "definition"};
    struct backup_found found = {0};
    size_t index;
    const json_t *disk, *consistency = json_object_get(said, "consistency");
    if (json_is_string(json_object_get(said, "backup"))) {
        verified_add(said, json_string_value(json_object_get(said, "backup")), result);
        return;
    }
    if (json_is_true(json_object_get(said, "verified"))) {
        OBJECT_SET(backup_result, result, complete, true);
        return;
    }
    if (json_is_boolean(json_object_get(said, "more"))) {
        OBJECT_SET(backup_result, result, more, json_is_true(json_object_get(said, "more")));
        OBJECT_SET(backup_result, result, damaged, (uint32_t)json_integer_value(json_object_get(said, "damaged")));
        after_set(json_string_value(json_object_get(said, "after")), result);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        const char *text = json_string_value(json_object_get(said, texts[i]));
        if (text != NULL && strlen(text) <= object_field(&backup_found_desc, texts[i])->max)
            object_set_text(&backup_found_desc, &found, texts[i], text);
    }
    for (unsigned i = 0; json_is_string(consistency) && i < snapshot_consistency_COUNT; i++)
        if (strcmp(snapshot_consistency_desc.names[i], json_string_value(consistency)) == 0)
            OBJECT_SET(backup_found, &found, consistency, i);
    json_array_foreach(json_object_get(said, "disks"), index, disk)
        found_disk_add(disk, &found);
    OBJECT_SET(backup_found, &found, stored_bytes, (uint64_t)json_integer_value(json_object_get(said, "stored_bytes")));
    OBJECT_SET(backup_found, &found, duration_ms, (uint64_t)json_integer_value(json_object_get(said, "duration_ms")));
    found_add(&found, json_string_value(json_object_get(said, "damage")), result);
    OBJECT_CLEAR(backup_found, &found);
}
