/* All backups of a store with what they are, the newest first. */
#ifndef BACKUP_REPO_CATALOG_H
#define BACKUP_REPO_CATALOG_H

#include "backup/repo.h"

struct repo_catalog_item {
    struct repo_backup backup;
    struct manifest manifest; /* where `damage` is empty */
    int64_t created_ms;
    struct error damage; /* code 0: none */
};
struct repo_catalog {
    struct repo_catalog_item *items;
    size_t count;
};

/* Damaged manifests are items with what is wrong, at the end; never an error of the whole. */
int repo_catalog_load(struct repo *repo, struct repo_catalog *ret_catalog, struct error *err);
void repo_catalog_finish(struct repo_catalog *catalog);
/* The newest backup of a VM, by its id or (NULL) its name; NULL: none. */
const struct repo_catalog_item *repo_catalog_newest(const struct repo_catalog *catalog, const char *vm,
                                                    const char *vm_name);
/* By id; NULL: none. */
const struct repo_catalog_item *repo_catalog_find(const struct repo_catalog *catalog, const char *id);

#endif
