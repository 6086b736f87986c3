/* drill list, run and report. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/drill.h"
#include "cli/drill_report.h"
#include "cli/drill_text.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

#define REPORT_COLUMNS "id,drill,result,cluster,host,begun_at"

static void put_last(json_t *row, const json_t *reports, const char *name)
{
    const json_t *report;
    size_t i;
    json_array_foreach(reports, i, report)
        if (strcmp(json_text(report, "drill"), name) == 0) {
            json_object_set(row, "last_at", json_object_get(report, "begun_at"));
            json_object_set(row, "last_result", json_object_get(report, "result"));
        }
}

int drill_list(const struct invocation *call, struct error *err)
{
    json_t *rows = json_array(), *reports = drill_report_list();
    const struct drill_kind *kind;
    (void)err;
    for (size_t i = 0; (kind = drill_kind_at(i)) != NULL; i++) {
        json_t *row = json_pack("{s:s, s:s}", "name", kind->name, "does", kind->help);
        put_last(row, reports, kind->name);
        json_array_append_new(rows, row);
    }
    output_list(call, rows, "name,last_at,last_result,does");
    json_decref(rows);
    json_decref(reports);
    return 0;
}

int drill_report(const struct invocation *call, struct error *err)
{
    const char *id = call->name;
    json_t *report = NULL;
    if (id == NULL) {
        json_t *reports = drill_report_list();
        output_list(call, reports, REPORT_COLUMNS);
        json_decref(reports);
        return 0;
    }
    int rc = drill_report_load(id, &report, err);
    if (rc == 0 && call->output == OUTPUT_TABLE)
        drill_report_print(report);
    else if (rc == 0)
        output_object(call, report);
    json_decref(report);
    return rc;
}

/* ---- run ---- */

static void print_checks(const struct invocation *call, const struct drill *d)
{
    char clean[400];
    const json_t *check;
    size_t i;
    json_array_foreach(d->checks, i, check)
        if (!call->quiet)
            fprintf(stderr, "  %-24s %-4s %s\n", json_text(check, "check"), json_is_true(json_object_get(check, "ok")) ? "ok" : "NOT",
                    output_clean(json_text(check, "detail"), clean, sizeof clean));
}

static int refuse_unready(const struct drill *d, struct error *err)
{
    const json_t *check;
    size_t i;
    json_array_foreach(d->checks, i, check)
        if (!json_is_true(json_object_get(check, "ok")))
            return error_set(err, -EINVAL, ERROR_CONFLICT, "no drill now: %s: %s", json_text(check, "check"), json_text(check, "detail"));
    return 0;
}

static int ask(const struct invocation *call, const struct drill *d, struct error *err)
{
    char question[700], clean[64];
    size_t vms = json_array_size(d->vms);
    if (d->kind->one_controller)
        snprintf(question, sizeof question, "%s on controller %s%s? %s.", d->kind->name, output_clean(d->controller, clean, sizeof clean),
                 strcmp(d->controller, d->leader) == 0 ? ", the leader" : "", d->kind->warning);
    else if (d->kind->host)
        snprintf(question, sizeof question, "%s on host %s, which runs %zu VM%s with ha? %s.", d->kind->name,
                 output_clean(d->host, clean, sizeof clean), vms, vms == 1 ? "" : "s", d->kind->warning);
    else
        snprintf(question, sizeof question, "%s of the cluster? %s.", d->kind->name, d->kind->warning);
    return confirm(call, "%s", question, err);
}

static int carry_out(const struct invocation *call, struct drill *d, struct error *err)
{
    char path[PATH_MAX];
    struct error unsaved = {.code = 0};
    int rc = drill_run(d, invocation_option(call, "stay") == NULL, err);
    if (rc < 0)
        return rc;
    json_t *report = drill_report_make(d);
    drill_watch_finish(&d->watch);
    if (call->output == OUTPUT_TABLE)
        drill_report_print(report);
    else
        output_object(call, report);
    if (drill_report_save(report, path, sizeof path, &unsaved) < 0)
        fprintf(stderr, "drover: the report could not be kept: %s\n", unsaved.text);
    else if (!call->quiet)
        fprintf(stderr, "report: %s\n", path);
    const char *first = json_string_value(json_array_get(json_object_get(report, "failures"), 0));
    if (strcmp(json_text(report, "result"), "failed") == 0)
        rc = error_set(err, -EPROTO, ERROR_CONFLICT, "the drill has failed: %s", first != NULL ? first : "see the report");
    json_decref(report);
    return rc;
}

/* --seconds: of every fault of the drill. */
static int take_seconds(const struct invocation *call, struct drill *d, struct error *err)
{
    const char *text = invocation_option(call, "seconds");
    char *end;
    if (text == NULL)
        return 0;
    unsigned long seconds = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || seconds > DRILL_SECONDS_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "--seconds takes a number up to %d, not '%s'", DRILL_SECONDS_MAX, text);
    d->silent_s = d->crash_s = (unsigned)seconds;
    return 0;
}

int drill_run_verb(const struct invocation *call, struct error *err)
{
    const struct drill_kind *kind = drill_kind_find(call->name);
    struct drill d;
    if (kind == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no drill '%s'; `drover drill list` shows what there is", call->name);
    if (!kind->host && invocation_option(call, "host") != NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--host: %s concerns no host", kind->name);
    if (!kind->one_controller && invocation_option(call, "controller") != NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--controller: %s concerns no single controller", kind->name);
    int rc = drill_init(&d, kind, invocation_option(call, "host"), invocation_option(call, "controller"), call, err);
    if (rc == 0) {
        print_checks(call, &d);
        rc = d.ready ? 0 : refuse_unready(&d, err);
    }
    if (rc == 0)
        rc = take_seconds(call, &d, err);
    if (rc == 0 && invocation_option(call, "check") == NULL) {
        rc = ask(call, &d, err);
        if (rc == 0)
            rc = carry_out(call, &d, err);
    }
    drill_finish(&d);
    return rc;
}
