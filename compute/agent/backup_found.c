/* See backup_found.h. */
#include "compute/agent/backup_found.h"

#include <string.h>

static void found_disk_add(const json_t *from, struct backup_found *found)
{
    const char *name = json_string_value(json_object_get(from, "name"));
    if (name == NULL || found->disks.count >= object_field(&backup_found_desc, "disks")->max)
        return;
    struct snapshot_disk *to = OBJECT_ADD(backup_found, found, disks);
    OBJECT_TEXT(snapshot_disk, to, name, name);
    OBJECT_SET(snapshot_disk, to, size_bytes, (uint64_t)json_integer_value(json_object_get(from, "size_bytes")));
}

/* How one stands, by drover-backup verify --each. */
static void verified_add(const json_t *said, const char *id, struct backup_result *result)
{
    const char *damage = json_string_value(json_object_get(said, "damage")), *rule;
    if (!text_format_ok(FORMAT_id, id, &rule))
        return;
    if (damage != NULL && result->hurt.count < object_field(&backup_result_desc, "hurt")->max) {
        struct backup_hurt *hurt = OBJECT_ADD(backup_result, result, hurt);
        CLEANUP_FREE char *text = xasprintf("%.*s", (int)object_field(&backup_hurt_desc, "text")->max, damage);
        OBJECT_TEXT(backup_hurt, hurt, id, id);
        OBJECT_TEXT(backup_hurt, hurt, text, text_format_ok(FORMAT_any, text, &rule) ? text : "it is damaged");
    } else if (damage == NULL && result->verified.count < object_field(&backup_result_desc, "verified")->max) {
        struct string_list *list = &result->verified;
        list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
        list->items[list->count++] = xstrdup(id);
        object_mark(&backup_result_desc, result, "verified");
    }
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
    /* names of disks and VMs that were made by hand may be such as no VM here can have */
    if (object_validate(&backup_found_desc, &found, OBJECT_CREATE, NULL) == 0 &&
        result->found.count < object_field(&backup_result_desc, "found")->max) {
        OBJECT_COPY(backup_found, (struct backup_found *)OBJECT_ADD(backup_result, result, found), &found);
    } else {
        OBJECT_SET(backup_result, result, damaged, result->damaged + 1);
    }
    OBJECT_CLEAR(backup_found, &found);
}
