/* A drill's report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere. The timeline is an SVG:
 * a lane for the host, one for the API's writes and one for each VM, with a bar for each host that it executed on. */
#ifndef CLI_DRILL_PAGE_H
#define CLI_DRILL_PAGE_H

#include <jansson.h>

#include "common/bytes.h"

/* @report as of drill_report.h; all text in it is taken for a stranger's and escaped. */
void drill_page_put(const json_t *report, struct bytes_writer *out);

#endif
