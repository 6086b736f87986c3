/* A report that the controllers take: they refuse a body of more than a MiB, and with it all that the host has to say. */
#ifndef COMPUTE_AGENT_REPORT_BOUND_H
#define COMPUTE_AGENT_REPORT_BOUND_H

#include "schema/objects.h"

#define REPORT_BYTES_MAX (1000u * 1024) /* of a MiB; the session adds a few fields of its own */
#define REPORT_REASON_BYTES 80u         /* what is left of a reason where all of them are too much */

/* Bytes of @text that a report cannot have, which are no UTF-8 or no character for people, become '?'. */
void report_words(char *text);

/* The reasons that @report has may have come from anybody, other hosts for one: what words cannot have is taken out, for controllers
 * refuse all of a report that holds such, and with it all that the host has to say. Then make @report at most @bytes_max as JSON: first its reasons are shortened; then the tasks with most to tell are left out, until one is
 * left that tells of its result: they are told in a later report, when the orders for those that were told are gone. What the host
 * has is never left out. True: something was cut. */
bool report_bound(struct node_report *report, size_t bytes_max);

#endif
