/* The verbs of drover-backup that make, show and give back backups. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/backup_restore.h"
#include "backup/repo_catalog.h"
#include "backup/tool.h"
#include "common/file.h"

enum { CAT_BYTES = 1 << 20 };

/* ---- init ---- */

static int key_file_write(const char *path, const uint8_t *key, struct error *err)
{
    char text[REPO_KEY_TEXT_BYTES], line[REPO_KEY_TEXT_BYTES + 1];
    if (access(path, F_OK) == 0)
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s is there already: keys are not overwritten", path);
    int n = snprintf(line, sizeof line, "%s\n", repo_key_text(key, text));
    return file_write_atomic(path, line, (size_t)n, 0600, err);
}

/* With --key-file the store opens by a key of its own for the machines, beside the recovery key for people. */
int tool_init(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    uint8_t recovery[CHUNK_KEY_BYTES], working[CHUNK_KEY_BYTES];
    char text[REPO_KEY_TEXT_BYTES];
    int code = 0;
    if (o->encrypt && o->key_file != NULL) {
        repo_random(working, sizeof working);
        code = key_file_write(o->key_file, working, err);
        if (code < 0)
            return code;
    }
    code = tool_open(o, false, &place, err);
    if (code == 0)
        code = repo_init(place.store, o->encrypt,
                         o->chunk_bytes != 0 ? (uint32_t)o->chunk_bytes : REPO_CHUNK_BYTES_DEFAULT, recovery, err);
    if (code == 0 && o->encrypt && o->key_file != NULL) {
        struct repo repo;
        code = repo_open(place.store, recovery, &repo, err);
        if (code == 0)
            code = repo_header_add_key(&repo.header, recovery, "working", working, err);
        if (code == 0)
            code = repo_write_header(&repo, err);
    }
    if (code < 0 && o->encrypt && o->key_file != NULL)
        unlink(o->key_file);
    tool_close(&place);
    if (code < 0)
        return code;
    if (o->encrypt)
        printf("Recovery key of the store, shown this once; without a key nothing in it can be read:\n\n    %s\n\n",
               repo_key_text(recovery, text));
    if (o->encrypt && o->key_file != NULL)
        printf("The working key is in %s.\n", o->key_file);
    else if (!o->encrypt)
        printf("%s is a backup store now, not encrypted.\n", o->store);
    return 0;
}

int tool_key(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    uint8_t key[CHUNK_KEY_BYTES], add[CHUNK_KEY_BYTES];
    int code = tool_open(o, true, &place, err);
    if (code == 0 && o->remove_key != NULL)
        code = repo_header_remove_key(&place.repo.header, o->remove_key, err);
    if (code == 0 && o->add_key_file != NULL) {
        code = o->key_file == NULL ? error_set(err, -EINVAL, ERROR_INVALID,
                                               "adding a key needs --key-file, a key that opens the store")
                                   : tool_key_read(o->key_file, key, err);
        repo_random(add, sizeof add);
        if (code == 0)
            code =
                repo_header_add_key(&place.repo.header, key, o->key_name != NULL ? o->key_name : "added", add, err);
        if (code == 0)
            code = key_file_write(o->add_key_file, add, err);
    }
    if (code == 0 && (o->remove_key != NULL || o->add_key_file != NULL))
        code = repo_write_header(&place.repo, err);
    for (uint32_t i = 0; code == 0 && place.repo.header.encrypted && i < place.repo.header.slot_count; i++)
        printf("%s\n", place.repo.header.slots[i].name);
    tool_close(&place);
    return code;
}

/* ---- create ---- */

static const char *pair_value(const struct tool_pairs *pairs, const char *name)
{
    for (unsigned i = 0; i < pairs->count; i++)
        if (strcmp(pairs->items[i].name, name) == 0)
            return pairs->items[i].value;
    return NULL;
}

/* --parent: an id, "none", or the newest of the same VM where it was not given. */
static int parent_choose(const struct tool_options *o, struct repo *repo, char ret_id[REPO_ID_TEXT_BYTES],
                         struct error *err)
{
    struct repo_catalog catalog;
    ret_id[0] = '\0';
    if (o->parent != NULL && strcmp(o->parent, "none") == 0)
        return 0;
    if (o->parent != NULL && strcmp(o->parent, "latest") != 0) {
        snprintf(ret_id, REPO_ID_TEXT_BYTES, "%s", o->parent);
        return strlen(o->parent) < REPO_ID_TEXT_BYTES
                   ? 0
                   : error_set(err, -EINVAL, ERROR_INVALID, "--parent takes an id, latest or none");
    }
    int code = repo_catalog_load(repo, &catalog, err);
    if (code < 0)
        return code;
    const struct repo_catalog_item *newest = repo_catalog_newest(&catalog, o->vm_id, o->vm);
    if (newest != NULL)
        memcpy(ret_id, newest->backup.id, REPO_ID_TEXT_BYTES);
    repo_catalog_finish(&catalog);
    return 0;
}

static int disks_write(const struct tool_options *o, struct backup_writer *w, struct error *err)
{
    int code = 0;
    for (unsigned i = 0; code == 0 && i < o->disks.count; i++) {
        const char *name = o->disks.items[i].name, *changed = pair_value(&o->changed, name);
        struct backup_source *source = NULL;
        code = backup_source_open(o->disks.items[i].value, backup_writer_parent_mark(w, name), &source, err);
        if (code == 0 && changed != NULL) {
            code = backup_source_changes(source, changed, &source, err);
            if (code < 0)
                backup_source_close(source);
        }
        if (code == 0)
            code = backup_writer_disk(w, name, source, err);
    }
    return code;
}

static int create_check(const struct tool_options *o, int64_t *ret_created_ms, struct error *err)
{
    if (o->vm == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--vm is needed: the name of the VM");
    if (o->disks.count == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "--disk NAME=SOURCE is needed, once for each disk");
    if (o->changed.count > 0 && (o->parent == NULL || !repo_id_ok(o->parent)))
        return error_set(err, -EINVAL, ERROR_INVALID,
                         "--changed needs --parent ID: what it tells is since that backup");
    for (unsigned i = 0; i < o->changed.count; i++)
        if (pair_value(&o->disks, o->changed.items[i].name) == NULL)
            return error_set(err, -EINVAL, ERROR_INVALID, "--changed names %s, which is no --disk",
                             o->changed.items[i].name);
    if (o->created_at != NULL && manifest_time_parse(o->created_at, ret_created_ms) < 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "--created-at is a time like 2026-01-31T12:00:00.000Z");
    return 0;
}

static void created_print(const struct tool_options *o, const struct manifest *m, const struct bytes_writer *json)
{
    char stored[24];
    if (o->json) {
        printf("%.*s\n", (int)json->size, (const char *)json->data);
        return;
    }
    printf("%s  %s  %zu disk%s  stored %s in %" PRIu64 ".%" PRIu64 " s\n", m->head.id, m->head.vm_name,
           m->head.disks.count, m->head.disks.count == 1 ? "" : "s",
           tool_bytes_text(m->head.stored_bytes, stored, sizeof stored), m->head.duration_ms / 1000,
           m->head.duration_ms / 100 % 10);
}

/* Has another run, which was taken for dead, completed it as well? Then nobody knows whose content others will read. */
static bool is_only_one(struct repo *repo, const char *id)
{
    struct repo_backups all;
    if (repo_manifests_load(repo, id, &all, NULL) < 0)
        return false;
    bool one = all.count == 1;
    repo_backups_finish(&all);
    return one;
}

/* *ret_made: by this run, and of the disks as they are now. */
static int create_run(const struct tool_options *o, struct repo *repo, struct backup_writer_options *options,
                      struct manifest *ret_manifest, bool *ret_made, struct error *err)
{
    struct backup_writer *w = NULL;
    int code = backup_writer_create(repo, options, &w, err);
    *ret_made = false;
    /* a job that was begun again after it had ended: nothing is left to do */
    if (code == -EEXIST)
        return repo_manifest_load(repo, options->id, ret_manifest, err);
    if (code == 0)
        code = disks_write(o, w, err);
    if (code == 0)
        code = backup_writer_commit(w, ret_manifest, err);
    backup_writer_destroy(w);
    *ret_made = code == 0 && is_only_one(repo, ret_manifest->head.id);
    return code;
}

int tool_create(const struct tool_options *o, struct error *err)
{
    struct tool_place place = {0};
    struct tool_progress progress;
    struct string_pair pairs[TOOL_LISTS_MAX];
    struct string_map labels = {.pairs = pairs, .count = o->labels.count};
    struct manifest m = {0};
    struct bytes_writer json = {0};
    bool made = false;
    char parent[REPO_ID_TEXT_BYTES];
    CLEANUP_FREE char *definition = NULL;
    struct backup_writer_options options = {.id = o->id,
                                            .vm = o->vm_id,
                                            .vm_name = o->vm,
                                            .consistency = o->consistency,
                                            .threads = o->threads,
                                            .transfers = o->transfers,
                                            .level = (int)o->level,
                                            .progress = tool_progress_report,
                                            .progress_arg = &progress,
                                            .cancel = o->cancel,
                                            .labels = &labels};
    tool_progress_init(&progress, o);
    for (unsigned i = 0; i < o->labels.count; i++)
        pairs[i] = (struct string_pair){o->labels.items[i].name, (char *)(uintptr_t)o->labels.items[i].value};
    int code = create_check(o, &options.created_ms, err);
    if (code == 0 && o->definition != NULL)
        code = file_read(o->definition, MANIFEST_DEFINITION_BYTES_MAX, &definition, NULL, err);
    if (code == 0)
        code = tool_open(o, true, &place, err);
    if (code == 0)
        code = parent_choose(o, &place.repo, parent, err);
    if (code == 0) {
        options.definition = definition;
        options.parent = parent[0] != '\0' ? parent : NULL;
        code = create_run(o, &place.repo, &options, &m, &made, err);
    }
    if (code == 0) {
        manifest_tell_content(&m, place.repo.header.chunk_bytes);
        OBJECT_ENCODE(backup_manifest, &m.head, &json);
        json.size--; /* the brace */
        bytes_put_format(&json, ",\"made\":%s}", made ? "true" : "false");
        bytes_put_u8(&json, 0);
        json.size--;
    }
    tool_progress_end(&progress, (const char *)json.data, code, err);
    if (code == 0)
        created_print(o, &m, &json);
    bytes_writer_finish(&json);
    manifest_finish(&m);
    tool_close(&place);
    return code;
}

/* ---- list, show ---- */

static uint64_t disks_bytes(const struct manifest *m)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < m->head.disks.count; i++)
        bytes += manifest_disk_at(m, i)->size_bytes;
    return bytes;
}

static void list_json(const struct repo_catalog *c)
{
    struct bytes_writer out = {0};
    bytes_put_text(&out, "[");
    for (size_t i = 0, n = 0; i < c->count; i++) {
        if (c->items[i].damage.code < 0)
            continue;
        bytes_put_text(&out, n++ > 0 ? ",\n " : "");
        OBJECT_ENCODE(backup_manifest, &c->items[i].manifest.head, &out);
    }
    bytes_put_text(&out, "]\n");
    fwrite(out.data, 1, out.size, stdout);
    bytes_writer_finish(&out);
}

int tool_list(const struct tool_options *o, struct error *err)
{
    if (o->page_bytes > 0)
        return tool_list_page(o, err);
    struct tool_place place;
    struct repo_catalog c = {0};
    int code = tool_open(o, true, &place, err);
    if (code == 0)
        code = repo_catalog_load(&place.repo, &c, err);
    if (code == 0 && o->json)
        list_json(&c);
    else if (code == 0)
        printf("%-36s  %-24s  %-20s  %5s  %10s  %10s\n", "ID", "CREATED", "VM", "DISKS", "SIZE", "STORED");
    for (size_t i = 0; code == 0 && i < c.count; i++) {
        const struct repo_catalog_item *item = &c.items[i];
        char size[24], stored[24];
        if (item->damage.code < 0)
            fprintf(stderr, "damaged: %s\n", item->damage.text);
        else if (!o->json)
            printf("%-36s  %-24s  %-20s  %5zu  %10s  %10s\n", item->backup.id, item->manifest.head.created_at,
                   item->manifest.head.vm_name, item->manifest.head.disks.count,
                   tool_bytes_text(disks_bytes(&item->manifest), size, sizeof size),
                   tool_bytes_text(item->manifest.head.stored_bytes, stored, sizeof stored));
    }
    repo_catalog_finish(&c);
    tool_close(&place);
    return code;
}

/* --backup: an id, or "latest" with --vm or --vm-id. */
static int backup_choose(const struct tool_options *o, struct repo *repo, char ret_id[REPO_ID_TEXT_BYTES],
                         struct error *err)
{
    struct repo_catalog catalog;
    if (o->backup != NULL && strcmp(o->backup, "latest") != 0) {
        if (!repo_id_ok(o->backup))
            return error_set(err, -EINVAL, ERROR_INVALID, "--backup takes an id or latest, not '%.64s'", o->backup);
        memcpy(ret_id, o->backup, REPO_ID_TEXT_BYTES);
        return 0;
    }
    if (o->backup == NULL || (o->vm == NULL && o->vm_id == NULL))
        return error_set(err, -EINVAL, ERROR_INVALID, "--backup ID is needed, or --backup latest with --vm NAME");
    int code = repo_catalog_load(repo, &catalog, err);
    if (code < 0)
        return code;
    const struct repo_catalog_item *newest = repo_catalog_newest(&catalog, o->vm_id, o->vm);
    if (newest != NULL)
        memcpy(ret_id, newest->backup.id, REPO_ID_TEXT_BYTES);
    else
        code = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no backup of %s in %s",
                         o->vm_id != NULL ? o->vm_id : o->vm, repo->store->location);
    repo_catalog_finish(&catalog);
    return code;
}

int tool_show(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct manifest m = {0};
    struct bytes_writer json = {0};
    char id[REPO_ID_TEXT_BYTES];
    int code = tool_open(o, true, &place, err);
    if (code == 0)
        code = backup_choose(o, &place.repo, id, err);
    if (code == 0)
        code = repo_manifest_load(&place.repo, id, &m, err);
    if (code == 0 && o->only_definition && m.sealed && m.definition == NULL)
        code = repo_need_key(&place.repo, err);
    if (code == 0 && o->only_definition) {
        printf("%s\n", m.definition != NULL ? m.definition : "{}");
    } else if (code == 0) {
        OBJECT_ENCODE(backup_manifest, &m.head, &json);
        printf("%.*s\n", (int)json.size, (const char *)json.data);
    }
    bytes_writer_finish(&json);
    manifest_finish(&m);
    tool_close(&place);
    return code;
}

/* ---- restore, cat ---- */

/* "fd:N": a file that this program was started with. */
static int inherited_open(const char *text, bool *ret_zeroed, int *ret_fd, struct error *err)
{
    struct stat st;
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    bool ok = text[0] >= '0' && text[0] <= '9' && *end == '\0' && number > STDERR_FILENO && number <= INT32_MAX;
    int fd = ok ? dup((int)number) : -1;
    if (fd < 0 || fstat(fd, &st) < 0) {
        close_fd(&fd);
        return error_set(err, -EINVAL, ERROR_INVALID, "'fd:%.20s' is no file that this program was started with", text);
    }
    *ret_zeroed = S_ISREG(st.st_mode) && st.st_size == 0;
    *ret_fd = fd;
    return 0;
}

static int target_open(const struct tool_options *o, const char *target, bool *ret_zeroed, int *ret_fd,
                       struct error *err)
{
    const char *path = strncmp(target, "file:/", 6) == 0 ? target + 5 : target;
    if (strncmp(target, "fd:", 3) == 0)
        return inherited_open(target + 3, ret_zeroed, ret_fd, err);
    if (path[0] != '/')
        return error_set(err, -EINVAL, ERROR_INVALID, "'%.100s' is no target: file:/PATH or fd:N is", target);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    *ret_zeroed = fd >= 0;
    if (fd < 0 && errno == EEXIST && !o->force)
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s is there already; --force writes over it", path);
    if (fd < 0 && errno == EEXIST)
        fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    *ret_fd = fd;
    return 0;
}

static int disks_restore(const struct tool_options *o, struct backup_reader *r,
                         struct backup_restore_options *options, struct error *err)
{
    int code = o->disks.count > 0
                   ? 0
                   : error_set(err, -EINVAL, ERROR_INVALID, "--disk NAME=TARGET is needed, once for each disk");
    for (unsigned i = 0; code == 0 && i < o->disks.count; i++) {
        CLEANUP_FD int fd = -1;
        size_t disk;
        code = backup_reader_disk(r, o->disks.items[i].name, &disk, err);
        if (code == 0)
            code = target_open(o, o->disks.items[i].value, &options->zeroed, &fd, err);
        if (code == 0)
            code = backup_restore_disk(r, disk, fd, options, err);
    }
    return code;
}

int tool_reader_open(const struct tool_options *o, struct tool_place *ret_place, struct backup_reader **ret_reader,
                     struct error *err)
{
    char id[REPO_ID_TEXT_BYTES];
    *ret_reader = NULL;
    int code = tool_open(o, true, ret_place, err);
    if (code == 0)
        code = backup_choose(o, &ret_place->repo, id, err);
    return code == 0 ? backup_reader_open(&ret_place->repo, id, 0, ret_reader, err) : code;
}

int tool_restore(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct tool_progress progress;
    struct backup_reader *r = NULL;
    struct backup_restore_options options = {
        .threads = o->threads, .progress = tool_progress_report, .progress_arg = &progress, .cancel = o->cancel};
    tool_progress_init(&progress, o);
    int code = tool_reader_open(o, &place, &r, err);
    if (code == 0)
        code = disks_restore(o, r, &options, err);
    backup_reader_close(r);
    tool_close(&place);
    tool_progress_end(&progress, NULL, code, err);
    return code;
}

static int range_cat(const struct tool_options *o, struct backup_reader *r, size_t disk, uint64_t size,
                     struct error *err)
{
    CLEANUP_FREE uint8_t *buffer = xcalloc(1, CAT_BYTES);
    uint64_t end = o->has_length && o->length < size - o->offset ? o->offset + o->length : size;
    int code = 0;
    for (uint64_t at = o->offset; code == 0 && at < end; at += CAT_BYTES) {
        size_t part = (size_t)MIN((uint64_t)CAT_BYTES, end - at);
        code = backup_reader_read(r, disk, at, buffer, part, err);
        if (code == 0 && fwrite(buffer, 1, part, stdout) != part)
            code = error_errno(err, -errno, "cannot write to standard output");
    }
    if (code == 0 && fflush(stdout) != 0)
        code = error_errno(err, -errno, "cannot write to standard output");
    return code;
}

int tool_cat(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct backup_reader *r = NULL;
    size_t disk = 0;
    int code = tool_reader_open(o, &place, &r, err);
    if (code == 0 && o->disks.count != 1)
        code = error_set(err, -EINVAL, ERROR_INVALID, "--disk NAME is needed, once");
    if (code == 0)
        code = backup_reader_disk(r, o->disks.items[0].name, &disk, err);
    if (code == 0) {
        uint64_t size = manifest_disk_at(backup_reader_manifest(r), disk)->size_bytes;
        code = o->offset > size
                   ? error_set(err, -ERANGE, ERROR_INVALID, "--offset is beyond the disk's %" PRIu64 " bytes", size)
                   : range_cat(o, r, disk, size, err);
    }
    backup_reader_close(r);
    tool_close(&place);
    return code;
}
