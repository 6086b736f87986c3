/* All backups of a store with what they are: see repo_catalog.h. */
#include "backup/repo_catalog.h"

#include <errno.h>
#include <string.h>

static int newest_first(const void *a, const void *b)
{
    const struct repo_catalog_item *x = a, *y = b;
    if ((x->damage.code < 0) != (y->damage.code < 0))
        return x->damage.code < 0 ? 1 : -1;
    if (x->created_ms != y->created_ms)
        return x->created_ms > y->created_ms ? -1 : 1;
    return strcmp(x->backup.id, y->backup.id);
}

int repo_catalog_load(struct repo *repo, struct repo_catalog *ret_catalog, struct error *err)
{
    struct repo_backups backups = {0};
    struct repo_catalog c = {0};
    int code = repo_backups_load(repo, &backups, err);
    if (code < 0)
        return code;
    c.items = xcalloc(MAX(backups.count, 1u), sizeof *c.items);
    for (size_t i = 0; code == 0 && i < backups.count; i++) {
        struct repo_catalog_item *item = &c.items[c.count];
        item->backup = backups.items[i];
        code = repo_manifest_read(repo, &item->backup, &item->manifest, &item->damage);
        if (code == -ENOENT) { /* removed meanwhile */
            code = 0;
            memset(item, 0, sizeof *item);
            continue;
        }
        if (code == -EBADMSG || code == -ENOTSUP || code == -EFBIG) {
            item->damage.code = code;
            code = 0;
        } else if (code == 0 && manifest_time_parse(item->manifest.head.created_at, &item->created_ms) < 0) {
            item->created_ms = 0;
        } else if (code < 0 && err != NULL) {
            *err = item->damage;
        }
        c.count++;
    }
    repo_backups_finish(&backups);
    if (code < 0) {
        repo_catalog_finish(&c);
        return code;
    }
    qsort(c.items, c.count, sizeof *c.items, newest_first);
    *ret_catalog = c;
    return 0;
}

void repo_catalog_finish(struct repo_catalog *catalog)
{
    for (size_t i = 0; i < catalog->count; i++)
        manifest_finish(&catalog->items[i].manifest);
    free(catalog->items);
    *catalog = (struct repo_catalog){0};
}

const struct repo_catalog_item *repo_catalog_newest(const struct repo_catalog *catalog, const char *vm,
                                                    const char *vm_name)
{
    for (size_t i = 0; i < catalog->count; i++) {
        const struct backup_manifest *head = &catalog->items[i].manifest.head;
        if (catalog->items[i].damage.code < 0)
            continue;
        if (vm != NULL ? head->vm != NULL && strcmp(head->vm, vm) == 0 : strcmp(head->vm_name, vm_name) == 0)
            return &catalog->items[i];
    }
    return NULL;
}

const struct repo_catalog_item *repo_catalog_find(const struct repo_catalog *catalog, const char *id)
{
    for (size_t i = 0; i < catalog->count; i++)
        if (strcmp(catalog->items[i].backup.id, id) == 0)
            return &catalog->items[i];
    return NULL;
}
