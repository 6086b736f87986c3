/* The verbs of drover-backup that keep a store in order: verify and prune. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/repo_catalog.h"
#include "backup/repo_gc.h"
#include "backup/repo_verify.h"
#include "backup/tool.h"
#include "common/file.h"
#include "common/retention.h"

#define FORGET_LIST_BYTES_MAX (1u << 20)
#define AHEAD_MS INT64_C(60000)

/* ---- verify ---- */

struct verdict {
    const struct tool_options *o;
    char first[200]; /* of what is damaged */
};

static void say(void *arg, const char *text)
{
    struct verdict *v = arg;
    if (v->first[0] == '\0')
        snprintf(v->first, sizeof v->first, "%s", text);
    fprintf(stderr, "%s\n", text);
}

static void judged(void *arg, const char *backup, const char *damage)
{
    const struct verdict *v = arg;
    struct bytes_writer line = {0};
    if (!v->o->each)
        return;
    bytes_put_format(&line, "{\"backup\":\"%s\"", backup);
    if (damage != NULL) {
        bytes_put_text(&line, ",\"damage\":");
        json_put_string(&line, damage);
    }
    bytes_put_text(&line, "}\n");
    fwrite(line.data, 1, line.size, stdout);
    fflush(stdout); /* whole lines: progress is written to the same pipe, past this buffer */
    bytes_writer_finish(&line);
}

/* --backup: an id, or latest; "" where all are meant. */
static int verified_choose(const struct tool_options *o, struct repo *repo, char ret_id[REPO_ID_TEXT_BYTES], struct error *err)
{
    struct repo_catalog c;
    ret_id[0] = '\0';
    if (o->backup == NULL)
        return o->vm == NULL && o->vm_id == NULL
                   ? 0
                   : error_set(err, -EINVAL, ERROR_INVALID, "--vm goes with --backup latest; without them the whole store is verified");
    if (strcmp(o->backup, "latest") != 0) {
        snprintf(ret_id, REPO_ID_TEXT_BYTES, "%s", o->backup);
        return repo_id_ok(o->backup) ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "--backup takes an id, or latest");
    }
    int code = repo_catalog_load(repo, &c, err);
    if (code < 0)
        return code;
    const struct repo_catalog_item *newest = repo_catalog_newest(&c, o->vm_id, o->vm);
    if (newest != NULL)
        memcpy(ret_id, newest->backup.id, REPO_ID_TEXT_BYTES);
    repo_catalog_finish(&c);
    return newest != NULL ? 0 : error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no backup of that VM in %s", o->store);
}

/* Of one backup it is that alone: a pack may be damaged where it does not need it, or has it elsewhere as well. */
static bool is_clean(const struct tool_options *o, const struct repo_verify_result *r)
{
    return o->backup != NULL ? r->hurt_backups == 0 : repo_verify_clean(r);
}

static void verified_print(const struct tool_options *o, const char *json, const struct repo_verify_result *r)
{
    if (o->each)
        printf("{\"verified\":true}\n");
    else if (o->json)
        printf("%s\n", json);
    else
        printf("%" PRIu64 " packs, %" PRIu64 " frames, %" PRIu64 " backups: %s\n", r->packs, r->frames, r->backups,
               is_clean(o, r) ? "all is well" : "there is damage");
    fflush(stdout); /* before the last word on another descriptor */
}

int tool_verify(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct tool_progress progress;
    struct verdict verdict = {.o = o};
    struct repo_verify_result r = {0};
    struct repo_verify_options options = {.threads = o->threads,
                                          .quick = o->quick,
                                          .no_notes = o->dry_run,
                                          .say = say,
                                          .say_arg = &verdict,
                                          .judged = judged,
                                          .judged_arg = &verdict,
                                          .progress = tool_progress_report,
                                          .progress_arg = &progress,
                                          .cancel = o->cancel};
    struct error local = {0};
    char text[512] = "", id[REPO_ID_TEXT_BYTES];
    if (err == NULL)
        err = &local;
    tool_progress_init(&progress, o);
    int code = tool_open(o, true, &place, err);
    if (code == 0)
        code = verified_choose(o, &place.repo, id, err);
    options.backup = code == 0 && id[0] != '\0' ? id : NULL;
    if (code == 0)
        code = repo_verify(&place.repo, &options, &r, err);
    snprintf(text, sizeof text,
             "{\"packs\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"backups\":%" PRIu64
             ",\"bad_packs\":%" PRIu64 ",\"bad_frames\":%" PRIu64 ",\"bad_objects\":%" PRIu64
             ",\"hurt_backups\":%" PRIu64 ",\"lost_chunks\":%" PRIu64 "}",
             r.packs, r.frames, r.bytes, r.backups, r.bad_packs, r.bad_frames, r.bad_objects, r.hurt_backups,
             r.lost_chunks);
    if (code == 0)
        verified_print(o, text, &r);
    if (code == 0 && !is_clean(o, &r))
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM,
                         "%" PRIu64 " of %" PRIu64 " backups are hurt; %" PRIu64
                         " packs are damaged (%s). The next backup of what is still there mends what it can",
                         r.hurt_backups, r.backups, r.bad_packs, verdict.first);
    tool_progress_end(&progress, text, code, err);
    tool_close(&place);
    return code;
}

/* ---- prune ---- */

static bool same_vm(const struct repo_catalog_item *a, const struct repo_catalog_item *b)
{
    const struct backup_manifest *x = &a->manifest.head, *y = &b->manifest.head;
    if (x->vm != NULL || y->vm != NULL)
        return x->vm != NULL && y->vm != NULL && strcmp(x->vm, y->vm) == 0;
    return strcmp(x->vm_name, y->vm_name) == 0;
}

static bool chosen_vm(const struct tool_options *o, const struct repo_catalog_item *item)
{
    const struct backup_manifest *head = &item->manifest.head;
    return (o->vm == NULL || strcmp(head->vm_name, o->vm) == 0) &&
           (o->vm_id == NULL || (head->vm != NULL && strcmp(head->vm, o->vm_id) == 0));
}

/* Does it count for rules? One of a time still to come, which a clock that was wrong gave it, would stand for those that are made after it. */
static bool counts(const struct repo_catalog_item *item, int64_t now_ms)
{
    return item->damage.code == 0 && item->created_ms <= now_ms + AHEAD_MS;
}

static int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Marks in @goes the backups that the rules let go. */
static void rules_apply(const struct tool_options *o, const struct repo_catalog *c, bool *goes)
{
    const struct retention_rules rules = {o->keep_last,   o->keep_hourly,  o->keep_daily,
                                          o->keep_weekly, o->keep_monthly, o->keep_yearly};
    CLEANUP_FREE bool *done = xcalloc(c->count + 1, sizeof *done);
    CLEANUP_FREE int64_t *times = xcalloc(c->count + 1, sizeof *times);
    CLEANUP_FREE size_t *members = xcalloc(c->count + 1, sizeof *members);
    CLEANUP_FREE unsigned *reasons = xcalloc(c->count + 1, sizeof *reasons);
    const int64_t now_ms = clock_ms();
    for (size_t i = 0; retention_has_rules(&rules) && i < c->count; i++) {
        size_t n = 0;
        if (done[i] || !counts(&c->items[i], now_ms) || !chosen_vm(o, &c->items[i]))
            continue;
        for (size_t k = i; k < c->count; k++) /* the newest first */
            if (counts(&c->items[k], now_ms) && same_vm(&c->items[i], &c->items[k])) {
                done[k] = true;
                times[n] = c->items[k].created_ms;
                members[n++] = k;
            }
        retention_choose(&rules, times, n, reasons);
        for (size_t k = 0; k < n; k++)
            goes[members[k]] = reasons[k] == 0;
    }
}

/* Whoever reads it takes it for done, also when we are killed behind it: a whole line, at once. */
static void removed_print(const struct tool_options *o, const char *id, const char *created_at, const char *vm_name)
{
    printf("%s %.36s  %s  %s\n", o->dry_run ? "would remove" : "removed", id, created_at, vm_name);
    fflush(stdout);
}

static int forgotten_mark_one(const struct tool_options *o, const struct repo_catalog *c, const char *id, bool *goes,
                              struct error *err)
{
    const struct repo_catalog_item *item = repo_catalog_find(c, id);
    if (item != NULL)
        goes[item - c->items] = true;
    else if (!o->missing_ok)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no backup %.64s in %s", id, o->store);
    else if (!o->json && !o->dry_run)
        removed_print(o, id, "(it was not there)", "");
    return 0;
}

static int forgotten_mark(const struct tool_options *o, const struct repo_catalog *c, bool *goes, struct error *err)
{
    CLEANUP_FREE char *list = NULL;
    size_t size;
    int code = o->forget_list != NULL ? file_read(o->forget_list, FORGET_LIST_BYTES_MAX, &list, &size, err) : 0;
    for (unsigned i = 0; code == 0 && i < o->forgotten.count; i++)
        code = forgotten_mark_one(o, c, o->forgotten.items[i].name, goes, err);
    for (char *rest = NULL, *id = list != NULL ? strtok_r(list, "\n", &rest) : NULL; code == 0 && id != NULL;
         id = strtok_r(NULL, "\n", &rest))
        code = repo_id_ok(id) ? forgotten_mark_one(o, c, id, goes, err)
                              : error_set(err, -EINVAL, ERROR_INVALID, "--forget-list: '%.64s' is no id of a backup", id);
    return code;
}

static int backups_remove(const struct tool_options *o, struct repo *repo, uint64_t *ret_removed, struct error *err)
{
    struct repo_catalog c;
    int code = repo_catalog_load(repo, &c, err);
    if (code < 0)
        return code;
    CLEANUP_FREE bool *goes = xcalloc(c.count + 1, sizeof *goes);
    rules_apply(o, &c, goes);
    code = forgotten_mark(o, &c, goes, err);
    for (size_t i = 0; code == 0 && i < c.count; i++) {
        const struct repo_catalog_item *item = &c.items[i];
        if (!goes[i])
            continue;
        if (!o->dry_run)
            code = repo_backup_remove(repo, item->backup.id, err);
        if (code < 0)
            break;
        ++*ret_removed;
        if (!o->json)
            removed_print(o, item->backup.id, item->damage.code < 0 ? "(damaged)" : item->manifest.head.created_at,
                          item->damage.code < 0 ? "" : item->manifest.head.vm_name);
    }
    repo_catalog_finish(&c);
    return code;
}

static void pruned_print(const struct tool_options *o, const char *json, uint64_t removed,
                         const struct repo_gc_result *r)
{
    char freed[24], written[24];
    if (o->json) {
        printf("%s\n", json);
        return;
    }
    printf("%" PRIu64 " backups%s removed; %" PRIu64 " of %" PRIu64 " packs (%s)%s", removed,
           o->dry_run ? " would be" : "", r->removed_packs, r->packs,
           tool_bytes_text(r->removed_bytes, freed, sizeof freed), o->dry_run ? " would go" : " gone");
    if (r->repacked_packs > 0)
        printf(", %" PRIu64 " repacked (%s written)", r->repacked_packs,
               tool_bytes_text(r->written_bytes, written, sizeof written));
    if (r->waiting_packs > 0)
        printf("; %" PRIu64 " packs go with a later prune, when %" PRIu64 " sessions at work have ended",
               r->waiting_packs, r->waiting_sessions);
    printf("\n");
}

int tool_prune(const struct tool_options *o, struct error *err)
{
    struct tool_place place;
    struct tool_progress progress;
    struct repo_gc_result r = {0};
    struct repo_gc_options options = {.grace_ms = REPO_GC_GRACE_MS,
                                      .silence_ms = REPO_SILENCE_MS,
                                      .keep_percent = REPO_GC_KEEP_PERCENT,
                                      .dry_run = o->dry_run,
                                      .progress = tool_progress_report,
                                      .progress_arg = &progress,
                                      .cancel = o->cancel};
    char text[512] = "", *end = NULL;
    uint64_t removed = 0;
    tool_progress_init(&progress, o);
    if (o->grace != NULL)
        options.grace_ms = strtoull(o->grace, &end, 10) * 1000;
    int code = end != NULL && (*end != '\0' || end == o->grace)
                   ? error_set(err, -EINVAL, ERROR_INVALID, "--grace takes seconds, not '%.64s'", o->grace)
                   : 0;
    int opened = tool_open(o, true, &place, code == 0 ? err : NULL);
    code = code < 0 ? code : opened;
    if (code == 0)
        code = backups_remove(o, &place.repo, &removed, err);
    if (code == 0 && !o->no_collect)
        code = repo_gc(&place.repo, &options, &r, err);
    if (code == 0)
        snprintf(text, sizeof text,
                 "{\"removed_backups\":%" PRIu64 ",\"packs\":%" PRIu64 ",\"removed_packs\":%" PRIu64
                 ",\"removed_bytes\":%" PRIu64 ",\"repacked_packs\":%" PRIu64 ",\"written_bytes\":%" PRIu64
                 ",\"waiting_packs\":%" PRIu64 ",\"waiting_sessions\":%" PRIu64 "}",
                 removed, r.packs, r.removed_packs, r.removed_bytes, r.repacked_packs, r.written_bytes,
                 r.waiting_packs, r.waiting_sessions);
    tool_progress_end(&progress, text, code, err);
    if (code == 0)
        pruned_print(o, text, removed, &r);
    tool_close(&place);
    return code;
}
