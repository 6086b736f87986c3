/* What came of a drill: one JSON document, which is kept, and from which the table and the page (drill_page.h) are made.
 *
 *   drill, id, cluster, host, controller (that failed alone), leader, begun_at
 *   result    passed; slow: all is as it should be, but later than promised; unsure: the watch was too coarse to show that no VM
 *             executed twice; failed
 *   checks    [{check, ok, detail}]     failures  [text]     put_back  [{what, ok, detail}]
 *   steps     [{step, ms}]              detection, lease wait, placement, start, all: of the slowest VM; other drills have steps of their own
 *   vms       [{name, from, to, suspect_ms, lost_ms, placed_ms, executes_ms, last_ms, stood_still_ms, once, why}]
 *   writes    {answered, failed, longest_gap_ms, gaps: [{from_ms, to_ms}]}
 *   runs      [{vm, host, epoch, from_ms, to_ms}]
 *   timeline  [{at_ms, what}]
 * Milliseconds count from the fault; -1: not seen. */
#ifndef CLI_DRILL_REPORT_H
#define CLI_DRILL_REPORT_H

#include "cli/drill.h"

#define DRILL_REPORT_BYTES_MAX (16u << 20)

/* Of a drill that drill_run has ended with 0. The caller decrefs. */
json_t *drill_report_make(struct drill *drill);
/* The table, on standard output. */
void drill_report_print(const json_t *report);
/* <id>.json and <id>.html into the directory of drill_report_directory. */
int drill_report_save(const json_t *report, char *ret_path, size_t path_size, struct error *err);
/* $DROVER_DRILLS, else drover/drills below $XDG_STATE_HOME or ~/.local/state. */
int drill_report_directory(char *path, size_t size, struct error *err);
/* The report of @id; the caller decrefs. */
int drill_report_load(const char *id, json_t **ret, struct error *err);
/* Every report that is kept, oldest first; the caller decrefs. Those that cannot be read are left out. */
json_t *drill_report_list(void);

#endif
