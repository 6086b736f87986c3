/* From what was watched to a report; see the header. */
#include "cli/drill_report.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/drill_page.h"
#include "cli/drill_text.h"
#include "cli/output.h"
#include "common/file.h"

/* ---- making it ---- */

static int64_t since(const struct drill *d, int64_t at_us)
{
    return at_us < 0 ? -1 : (at_us - d->fault_us) / 1000;
}

static json_t *vm_row(struct drill *d, const json_t *vm, enum drill_verdict *ret_verdict)
{
    const char *name = json_text(vm, "name"), *id = json_text(vm, "id");
    struct drill_watch *w = &d->watch;
    char why[300];
    const struct drill_run *old = drill_runs_find(&w->runs, id, json_text(vm, "host_name")), *new = NULL;
    *ret_verdict = drill_runs_judge(&w->runs, id, why, sizeof why);
    if (!d->kind->host)
        return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "name", name, "from", json_text(vm, "host_name"), "to", json_text(vm, "host_name"),
                         "once", drill_verdict_name(*ret_verdict), "why", why, "stood_still_ms",
                         (json_int_t)(old != NULL ? old->stall_us / 1000 : -1));
    if (*ret_verdict == DRILL_ONCE && (old == NULL || !old->executed)) {
        *ret_verdict = DRILL_UNSURE;
        snprintf(why, sizeof why, "what it executed on %s was not seen", d->host);
    }
    new = drill_runs_elsewhere(&w->runs, id, d->host, (uint64_t)json_number(vm, "epoch"));
    int64_t suspect = drill_watch_first(w, DRILL_HOST_STATE, d->host, "suspect", d->fault_us);
    int64_t lost = drill_watch_first(w, DRILL_HOST_STATE, d->host, "lost", d->fault_us);
    int64_t placed = drill_watch_first(w, DRILL_VM_HOST, name, new != NULL ? new->host : NULL, d->fault_us);
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "name", name, "from", d->host, "to",
                     new != NULL ? new->host : "", "suspect_ms", (json_int_t)since(d, suspect), "lost_ms", (json_int_t)since(d, lost),
                     "placed_ms", (json_int_t)since(d, placed), "executes_ms", (json_int_t)since(d, new != NULL ? new->first_until_us : -1),
                     "last_ms", (json_int_t)since(d, old != NULL && old->executed ? old->last_until_us : -1), "stood_still_ms",
                     (json_int_t)(old != NULL && old->executed && new != NULL ? (new->first_until_us - old->last_until_us) / 1000 : -1),
                     "once", drill_verdict_name(*ret_verdict), "why", why);
}

/* Of the slowest VM; each step's time is what it lasted. */
static json_t *make_steps(const json_t *vms)
{
    static const struct {
        const char *step, *from, *to;
    } rows[] = {{"detection", NULL, "suspect_ms"}, {"lease wait", "suspect_ms", "lost_ms"}, {"placement", "lost_ms", "placed_ms"},
                {"start", "placed_ms", "executes_ms"}, {"all", NULL, "executes_ms"}};
    json_t *steps = json_array();
    const json_t *vm, *slowest = NULL;
    size_t i;
    json_array_foreach(vms, i, vm)
        if (slowest == NULL || json_number(vm, "executes_ms") > json_number(slowest, "executes_ms"))
            slowest = vm;
    for (i = 0; slowest != NULL && i < ARRAY_SIZE(rows); i++) {
        int64_t from = rows[i].from != NULL ? json_number(slowest, rows[i].from) : 0, to = json_number(slowest, rows[i].to);
        json_array_append_new(steps, json_pack("{s:s, s:I}", "step", rows[i].step, "ms",
                                               (json_int_t)(from < 0 || to < 0 ? -1 : MAX(to - from, (int64_t)0))));
    }
    return steps;
}

static json_t *make_writes(const struct drill *d)
{
    const struct drill_watch *w = &d->watch;
    json_t *gaps = json_array();
    for (size_t i = 0; i < w->gap_count; i++)
        json_array_append_new(gaps, json_pack("{s:I, s:I}", "from_ms", (json_int_t)((w->gaps[i].from_us - d->fault_us) / 1000), "to_ms",
                                              (json_int_t)((w->gaps[i].to_us - d->fault_us) / 1000)));
    return json_pack("{s:I, s:I, s:I, s:o}", "answered", (json_int_t)w->writes, "failed", (json_int_t)w->writes_failed, "longest_gap_ms",
                     (json_int_t)(w->longest_gap_us / 1000), "gaps", gaps);
}

static const char *vm_name(const struct drill *d, const char *id)
{
    const json_t *vm;
    size_t i;
    json_array_foreach(d->all_vms, i, vm)
        if (strcmp(json_text(vm, "id"), id) == 0)
            return json_text(vm, "name");
    return NULL;
}

static json_t *make_runs(const struct drill *d)
{
    json_t *runs = json_array();
    for (size_t i = 0; i < d->watch.runs.count; i++) {
        const struct drill_run *run = &d->watch.runs.items[i];
        const char *name = vm_name(d, run->vm);
        int64_t from_us = run->begun_us < d->begin_us ? d->begin_us : run->first_until_us; /* shown where it is known to be */
        if (run->executed && name != NULL) /* those without ha are nobody's concern here */
            json_array_append_new(runs, json_pack("{s:s, s:s, s:I, s:I, s:I}", "vm", name, "host", run->host, "epoch",
                                                  (json_int_t)run->epoch, "from_ms",
                                                  (json_int_t)((from_us - d->fault_us) / 1000), "to_ms",
                                                  (json_int_t)((run->last_until_us - d->fault_us) / 1000)));
    }
    return runs;
}

static json_t *make_timeline(const struct drill *d)
{
    json_t *timeline = json_array();
    for (size_t i = 0; i < d->watch.moment_count; i++) {
        const struct drill_moment *m = &d->watch.moments[i];
        char what[400];
        switch (m->kind) {
        case DRILL_HOST_STATE:
            snprintf(what, sizeof what, "host %s is %s", m->subject, m->value);
            break;
        case DRILL_VM_HOST:
            snprintf(what, sizeof what, "VM %s belongs to %s", m->subject, m->value);
            break;
        case DRILL_VM_STATE:
            snprintf(what, sizeof what, "VM %s is %s", m->subject, m->value);
            break;
        case DRILL_LEADER:
            snprintf(what, sizeof what, "controller %s leads", m->value);
            break;
        case DRILL_DONE:
            snprintf(what, sizeof what, "%s", m->subject);
            break;
        }
        json_array_append_new(timeline, json_pack("{s:I, s:s, s:b}", "at_ms", (json_int_t)((m->at_us - d->fault_us) / 1000), "what", what,
                                                  "own", m->kind == DRILL_DONE));
    }
    return timeline;
}

/* The worst of all. */
static const char *judge(const struct drill *d, const json_t *vms, enum drill_verdict worst)
{
    const json_t *vm;
    size_t i;
    bool slow = d->kind->limit_writes_us > 0 && d->watch.longest_gap_us > d->kind->limit_writes_us;
    if (worst == DRILL_TWICE || json_array_size(d->failures) > 0)
        return "failed";
    json_array_foreach(vms, i, vm)
        if (d->kind->host && (json_number(vm, "executes_ms") < 0 || json_number(vm, "executes_ms") > DRILL_LIMIT_FAILOVER_US / 1000))
            slow = true;
    return worst == DRILL_UNSURE ? "unsure" : slow ? "slow" : "passed";
}

json_t *drill_report_make(struct drill *d)
{
    json_t *vms = json_array();
    const json_t *vm;
    size_t i;
    enum drill_verdict worst = DRILL_ONCE, verdict;
    json_array_foreach(d->vms, i, vm)
    {
        json_array_append_new(vms, vm_row(d, vm, &verdict));
        worst = MAX(worst, verdict);
        if (verdict == DRILL_TWICE)
            json_array_append_new(d->failures, json_sprintf("VM %s executed twice", json_text(vm, "name")));
        if (!d->kind->host && drill_watch_first(&d->watch, DRILL_VM_HOST, json_text(vm, "name"), NULL, d->fault_us) >= 0)
            json_array_append_new(d->failures, json_sprintf("VM %s was given to another host, and nothing was to notice", json_text(vm, "name")));
    }
    json_t *report = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "drill", d->kind->name, "id", d->id, "cluster",
                               json_text(d->cluster, "name"), "host", d->host, "leader", d->leader, "begun_at", d->begun_at, "result",
                               judge(d, vms, worst));
    json_object_set_new(report, "lasted_ms", json_integer((json_int_t)((d->end_us - d->begin_us) / 1000)));
    if (d->controller[0] != '\0')
        json_object_set_new(report, "controller", json_string(d->controller));
    json_object_set(report, "checks", d->checks);
    json_object_set(report, "failures", d->failures);
    json_object_set_new(report, "steps", d->kind->host ? make_steps(vms) : json_incref(d->steps));
    json_object_set_new(report, "vms", vms);
    json_object_set_new(report, "writes", make_writes(d));
    json_object_set_new(report, "runs", make_runs(d));
    json_object_set_new(report, "timeline", make_timeline(d));
    json_object_set(report, "put_back", d->put_back);
    return report;
}

/* ---- the table ---- */

static const char *seconds(int64_t ms, char buffer[24])
{
    if (ms < 0)
        snprintf(buffer, 24, "-");
    else
        snprintf(buffer, 24, "%" PRId64 ".%02" PRId64 " s", ms / 1000, ms % 1000 / 10);
    return buffer;
}

static void print_vms(const json_t *report)
{
    char clean[3][80], time[3][24];
    const json_t *vm;
    size_t i;
    printf("\n%-20s %-12s %-12s %12s %12s %12s  %s\n", "VM", "FROM", "TO", "LAST THERE", "EXECUTES", "STOOD STILL", "EXECUTED");
    json_array_foreach(json_object_get(report, "vms"), i, vm)
    {
        bool moves = json_object_get(vm, "executes_ms") != NULL;
        printf("%-20s %-12s %-12s %12s %12s %12s  %s\n", output_clean(json_text(vm, "name"), clean[0], sizeof clean[0]),
               output_clean(json_text(vm, "from"), clean[1], sizeof clean[1]), output_clean(json_text(vm, "to"), clean[2], sizeof clean[2]),
               moves ? seconds(json_number(vm, "last_ms"), time[0]) : "-", moves ? seconds(json_number(vm, "executes_ms"), time[1]) : "-",
               seconds(json_number(vm, "stood_still_ms"), time[2]), json_text(vm, "once"));
    }
}

void drill_report_print(const json_t *report)
{
    char clean[700], time[24];
    const json_t *o, *writes = json_object_get(report, "writes");
    size_t i;
    printf("%s of cluster %s, %s: %s\n", json_text(report, "drill"), output_clean(json_text(report, "cluster"), clean, sizeof clean),
           json_text(report, "begun_at"), json_text(report, "result"));
    json_array_foreach(json_object_get(report, "failures"), i, o)
        printf("  failed: %s\n", output_clean(json_string_value(o) ? json_string_value(o) : "", clean, sizeof clean));
    if (json_array_size(json_object_get(report, "steps")) > 0)
        printf("\n%-14s %10s\n", "STEP", "LASTED");
    json_array_foreach(json_object_get(report, "steps"), i, o)
        printf("%-14s %10s\n", json_text(o, "step"), seconds(json_number(o, "ms"), time));
    if (json_array_size(json_object_get(report, "vms")) > 0)
        print_vms(report);
    printf("\nwrites: %" PRId64 " answered, %" PRId64 " not, %s the longest time without one\n", json_number(writes, "answered"),
           json_number(writes, "failed"), seconds(json_number(writes, "longest_gap_ms"), time));
    json_array_foreach(json_object_get(report, "put_back"), i, o)
        printf("%s%s%s\n", output_clean(json_text(o, "what"), clean, sizeof clean), json_is_true(json_object_get(o, "ok")) ? "" : ": not done, ",
               json_text(o, "detail"));
}

/* ---- files ---- */

int drill_report_directory(char *path, size_t size, struct error *err)
{
    const char *own = getenv("DROVER_DRILLS"), *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (own != NULL && *own != '\0')
        snprintf(path, size, "%s", own);
    else if (state != NULL && *state != '\0')
        snprintf(path, size, "%s/drover/drills", state);
    else if (home != NULL && *home != '\0')
        snprintf(path, size, "%s/.local/state/drover/drills", home);
    else
        return error_set(err, -ENOENT, ERROR_INVALID, "HOME is not set: set it, or DROVER_DRILLS to a directory for the reports of drills");
    return 0;
}

int drill_report_save(const json_t *report, char *ret_path, size_t path_size, struct error *err)
{
    char directory[PATH_MAX - 100];
    int rc = drill_report_directory(directory, sizeof directory, err);
    if (rc == 0)
        rc = file_make_directories(directory, 0700, err);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *json_path = xasprintf("%s/%s.json", directory, json_text(report, "id"));
    CLEANUP_FREE char *page_path = xasprintf("%s/%s.html", directory, json_text(report, "id"));
    CLEANUP_FREE char *text = json_dumps(report, JSON_INDENT(2));
    struct bytes_writer page = {0};
    drill_page_put(report, &page);
    rc = file_write_atomic(json_path, text, strlen(text), 0600, err);
    if (rc == 0)
        rc = file_write_atomic(page_path, page.data, page.size, 0600, err);
    bytes_writer_finish(&page);
    if (rc == 0)
        snprintf(ret_path, path_size, "%s", page_path);
    return rc;
}

int drill_report_load(const char *id, json_t **ret, struct error *err)
{
    char directory[PATH_MAX - 100];
    CLEANUP_FREE char *text = NULL;
    const char *rule;
    size_t size = 0;
    if (!text_format_ok(FORMAT_name, id, &rule))
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is no id of a drill; `drover drill report` lists them", id);
    int rc = drill_report_directory(directory, sizeof directory, err);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *path = xasprintf("%s/%s.json", directory, id);
    rc = file_read(path, DRILL_REPORT_BYTES_MAX, &text, &size, err);
    if (rc == -ENOENT)
        return error_set(err, rc, ERROR_NOT_FOUND, "there is no report %s; `drover drill report` lists them", path);
    if (rc < 0)
        return rc;
    *ret = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    return *ret != NULL ? 0 : error_set(err, -EBADMSG, ERROR_MALFORMED, "%s is not a report", path);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

json_t *drill_report_list(void)
{
    char directory[PATH_MAX - 100], **names = NULL;
    size_t count = 0;
    json_t *list = json_array(), *report;
    DIR *d = drill_report_directory(directory, sizeof directory, NULL) == 0 ? opendir(directory) : NULL;
    for (struct dirent *entry; d != NULL && (entry = readdir(d)) != NULL;) {
        char *dot = strrchr(entry->d_name, '.');
        if (dot == NULL || strcmp(dot, ".json") != 0)
            continue;
        names = xrealloc(names, (count + 1) * sizeof *names);
        names[count++] = xasprintf("%.*s", (int)(dot - entry->d_name), entry->d_name);
    }
    if (d != NULL)
        closedir(d);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        if (drill_report_load(names[i], &report, NULL) == 0)
            json_array_append_new(list, report);
        free(names[i]);
    }
    free(names);
    return list;
}
