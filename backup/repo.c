/* A store with backups in it: see repo.h. */
#include "backup/repo.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int repo_init(struct store *store, bool encrypted, uint32_t chunk_bytes, uint8_t ret_key[CHUNK_KEY_BYTES],
              struct error *err)
{
    struct repo_header header;
    bool there;
    int code = store_has(store, REPO_HEADER_NAME, &there, err);
    if (code == 0 && there)
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s is a backup store already", store->location);
    if (code < 0)
        return code;
    code = repo_header_make(encrypted, chunk_bytes, &header, ret_key, err);
    if (code < 0)
        return code;
    struct repo repo = {.store = store, .header = header};
    return repo_write_header(&repo, err);
}

int repo_write_header(struct repo *repo, struct error *err)
{
    struct bytes_writer out = {0};
    repo_header_encode(&repo->header, &out);
    int code = store_put(repo->store, REPO_HEADER_NAME, out.data, out.size, err);
    bytes_writer_finish(&out);
    return code;
}

int repo_open(struct store *store, const uint8_t *key, struct repo *ret_repo, struct error *err)
{
    struct repo repo = {.store = store};
    CLEANUP_FREE uint8_t *data = NULL;
    size_t size = 0;
    int code = store_read(store, REPO_HEADER_NAME, REPO_HEADER_BYTES_MAX, &data, &size, err);
    if (code == -ENOENT)
        return error_set(err, code, ERROR_NOT_FOUND, "there is no backup store at %s; `drover-backup init` makes one",
                         store->location);
    if (code == 0)
        code = repo_header_decode(data, size, &repo.header, err);
    if (code == 0)
        code = repo_header_open(&repo.header, key, &repo.keys, err);
    if (code < 0) {
        error_prefix(err, "store %s: ", store->location);
        return code;
    }
    *ret_repo = repo;
    return 0;
}

int repo_need_key(const struct repo *repo, struct error *err)
{
    if (repo->keys.present)
        return 0;
    return error_set(err, -EACCES, ERROR_FORBIDDEN, "the store %s is encrypted: this needs its key",
                     repo->store->location);
}

void repo_close(struct repo *repo)
{
    repo_keys_wipe(&repo->keys);
}

/* ---- names ---- */

bool repo_id_ok(const char *text)
{
    const char *rule;
    return text != NULL && text_format_ok(FORMAT_id, text, &rule);
}

void repo_id_make(char ret_id[REPO_ID_TEXT_BYTES])
{
    uint8_t b[16];
    char hex[33];
    repo_random(b, sizeof b);
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40); /* RFC 9562 §5.4 */
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    chunk_hex_text(b, sizeof b, hex);
    snprintf(ret_id, REPO_ID_TEXT_BYTES, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

void repo_session_make(char ret_session[REPO_SESSION_TEXT_BYTES])
{
    uint8_t b[8];
    repo_random(b, sizeof b);
    chunk_hex_text(b, sizeof b, ret_session);
}

const char *repo_manifest_name(const char *id, const char *session, char *ret_name)
{
    snprintf(ret_name, MANIFEST_NAME_BYTES, "backups/%s-%s", id, session);
    return ret_name;
}

/* "backups/<id>-<session>" taken apart. */
static bool manifest_name_parse(const char *name, struct repo_backup *ret)
{
    uint8_t session[8];
    const char *id = name + strlen("backups/");
    if (strlen(name) != strlen("backups/") + 36 + 1 + 16 || id[36] != '-' ||
        chunk_hex_parse(id + 37, sizeof session, session) < 0)
        return false;
    memcpy(ret->id, id, 36);
    ret->id[36] = '\0';
    memcpy(ret->session, id + 37, REPO_SESSION_TEXT_BYTES);
    return repo_id_ok(ret->id);
}

/* ---- backups ---- */

static int backup_compare(const void *a, const void *b)
{
    int order = strcmp(((const struct repo_backup *)a)->id, ((const struct repo_backup *)b)->id);
    return order != 0 ? order
                      : strcmp(((const struct repo_backup *)a)->session, ((const struct repo_backup *)b)->session);
}

/* Manifests first, fences after: see repo_gc.h. */
static int manifests_load(struct repo *repo, const char *prefix, struct repo_backups *ret_backups, struct error *err)
{
    struct store_listing names = {0}, fences = {0};
    struct repo_backups all = {0};
    int code = store_listing_load(repo->store, prefix, &names, err);
    if (code == 0 && names.count > 0)
        code = store_listing_load(repo->store, "fences/", &fences, err);
    all.items = xcalloc(MAX(names.count, 1u), sizeof *all.items);
    for (size_t i = 0; code == 0 && i < names.count; i++) {
        struct repo_backup *b = &all.items[all.count];
        char fence[STORE_NAME_BYTES];
        if (!manifest_name_parse(names.items[i].name, b))
            continue;
        b->size_bytes = names.items[i].size_bytes;
        snprintf(fence, sizeof fence, "fences/%s", b->session);
        all.count += store_listing_find(&fences, fence) == NULL;
    }
    store_listing_finish(&names);
    store_listing_finish(&fences);
    if (code < 0) {
        free(all.items);
        return code;
    }
    qsort(all.items, all.count, sizeof *all.items, backup_compare);
    *ret_backups = all;
    return 0;
}

/* A task that was begun anew, because its first end could not be seen yet, makes two manifests of one id: either will do. */
static int backups_load(struct repo *repo, const char *prefix, struct repo_backups *ret_backups, struct error *err)
{
    size_t kept = 0;
    int code = manifests_load(repo, prefix, ret_backups, err);
    if (code < 0)
        return code;
    struct repo_backup *items = ret_backups->items;
    for (size_t i = 0; i < ret_backups->count; i++)
        if (kept == 0 || strcmp(items[kept - 1].id, items[i].id) != 0)
            items[kept++] = items[i];
    ret_backups->count = kept;
    return 0;
}

int repo_backups_load(struct repo *repo, struct repo_backups *ret_backups, struct error *err)
{
    return backups_load(repo, "backups/", ret_backups, err);
}

int repo_manifests_load(struct repo *repo, const char *id, struct repo_backups *ret_manifests, struct error *err)
{
    char prefix[MANIFEST_NAME_BYTES] = "backups/";
    if (id != NULL)
        snprintf(prefix, sizeof prefix, "backups/%s-", id);
    return manifests_load(repo, prefix, ret_manifests, err);
}

int repo_backup_remove(struct repo *repo, const char *id, struct error *err)
{
    char prefix[MANIFEST_NAME_BYTES];
    struct store_listing names = {0};
    ASSERT(repo_id_ok(id));
    snprintf(prefix, sizeof prefix, "backups/%s-", id);
    int code = store_listing_load(repo->store, prefix, &names, err);
    for (size_t i = 0; code == 0 && i < names.count; i++)
        code = store_remove(repo->store, names.items[i].name, err);
    store_listing_finish(&names);
    return code;
}

void repo_backups_finish(struct repo_backups *backups)
{
    free(backups->items);
    *backups = (struct repo_backups){0};
}

int repo_manifest_read(struct repo *repo, const struct repo_backup *backup, struct manifest *ret_manifest,
                       struct error *err)
{
    char name[MANIFEST_NAME_BYTES];
    struct manifest m;
    CLEANUP_FREE uint8_t *data = NULL;
    size_t size = 0;
    int code = store_read(repo->store, repo_manifest_name(backup->id, backup->session, name), MANIFEST_BYTES_MAX,
                          &data, &size, err);
    if (code == 0)
        code = manifest_decode(data, size, &repo->keys, repo->header.chunk_bytes, &m, err);
    if (code < 0) {
        error_prefix(err, "backup %s: ", backup->id);
        return code;
    }
    if (strcmp(m.head.id, backup->id) != 0) {
        manifest_finish(&m);
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "backup %s: the manifest is of another backup", backup->id);
    }
    *ret_manifest = m;
    return 0;
}

int repo_manifest_load(struct repo *repo, const char *id, struct manifest *ret_manifest, struct error *err)
{
    char prefix[MANIFEST_NAME_BYTES];
    struct repo_backups found = {0};
    if (!repo_id_ok(id))
        return error_set(err, -EINVAL, ERROR_INVALID, "'%.64s' is no id of a backup", id);
    snprintf(prefix, sizeof prefix, "backups/%s-", id);
    int code = backups_load(repo, prefix, &found, err);
    if (code == 0 && found.count == 0)
        code = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no backup %s in %s", id, repo->store->location);
    if (code == 0)
        code = repo_manifest_read(repo, &found.items[0], ret_manifest, err);
    repo_backups_finish(&found);
    return code;
}
