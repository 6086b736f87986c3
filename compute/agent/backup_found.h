/* What drover-backup list --page-bytes says of a store, for the task backup-attach. */
#ifndef COMPUTE_AGENT_BACKUP_FOUND_H
#define COMPUTE_AGENT_BACKUP_FOUND_H

#include <jansson.h>

#include "schema/objects.h"

/* One line: a backup, which is added to result->found where it is such as a cluster can have (else it counts as damaged), or
 * how the page ends. Never more than the object's bounds. */
void backup_found_add(const json_t *said, struct backup_result *result);

#endif
