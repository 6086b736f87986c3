/* drover-backup list --page-bytes: what a store has, also what of it cannot be read ({"id","damage"}), for a cluster that does not know it (the agent's task backup-attach). By
 * id, so that who asks again with the last one goes on; only the manifests of one page are read. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backup/tool.h"

/* The manifest's head with one field more. */
static void line_make(const struct manifest *m, struct bytes_writer *out)
{
    OBJECT_ENCODE(backup_manifest, &m->head, out);
    ASSERT(out->size > 0 && out->data[out->size - 1] == '}');
    if (m->definition != NULL) {
        out->size--;
        bytes_put_text(out, ",\"definition\":");
        json_put_string(out, m->definition);
        bytes_put_text(out, "}");
    }
    bytes_put_text(out, "\n");
}

struct page {
    uint64_t bytes, bytes_max;
    uint32_t damaged;
    bool more;
    const char *after; /* the last one on it */
};

/* 1: the page is full, and this one is for the next. */
static int backup_print(struct repo *repo, const struct repo_backup *backup, struct page *page, struct error *err)
{
    struct manifest m = {0};
    struct bytes_writer line = {0};
    struct error why = {0};
    int code = repo_manifest_read(repo, backup, &m, &why);
    if (code == -ENOENT) /* removed meanwhile */
        return 0;
    bool damaged = code == -EBADMSG || code == -ENOTSUP || code == -EFBIG;
    if (damaged) {
        bytes_put_format(&line, "{\"id\":\"%s\",\"damage\":", backup->id);
        json_put_string(&line, why.text);
        bytes_put_text(&line, "}\n");
    } else if (code < 0) {
        if (err != NULL)
            *err = why;
        return code;
    } else {
        line_make(&m, &line);
    }
    page->more = page->bytes > 0 && page->bytes + line.size > page->bytes_max;
    if (!page->more) {
        fwrite(line.data, 1, line.size, stdout);
        page->after = backup->id;
        page->damaged += damaged;
    }
    page->bytes += line.size;
    bytes_writer_finish(&line);
    manifest_finish(&m);
    return page->more ? 1 : 0;
}

static int page_print(const struct tool_options *o, struct repo *repo, struct error *err)
{
    struct repo_backups backups = {0};
    struct page page = {.bytes_max = o->page_bytes};
    int code = repo_need_key(repo, err);
    if (code == 0)
        code = repo_backups_load(repo, &backups, err);
    if (code < 0)
        return code;
    for (size_t i = 0; code == 0 && i < backups.count; i++)
        if (o->after == NULL || strcmp(backups.items[i].id, o->after) > 0)
            code = backup_print(repo, &backups.items[i], &page, err);
    if (code >= 0)
        printf("{\"more\":%s,\"damaged\":%" PRIu32 ",\"after\":\"%s\"}\n", page.more ? "true" : "false", page.damaged,
               page.after != NULL ? page.after : "");
    repo_backups_finish(&backups);
    fflush(stdout); /* before the last word on another descriptor */
    return MIN(code, 0);
}

int tool_list_page(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct tool_progress progress;
    struct error local = {0};
    tool_progress_init(&progress, o);
    if (err == NULL)
        err = &local;
    int code = tool_open(o, true, &place, err);
    if (code == 0)
        code = page_print(o, &place.repo, err);
    tool_close(&place);
    tool_progress_end(&progress, NULL, code, err);
    return code;
}
