/* What drover-backup list --page-bytes and verify --each say of a store, for the tasks backup-attach and backup-verify. */
#ifndef COMPUTE_AGENT_BACKUP_FOUND_H
#define COMPUTE_AGENT_BACKUP_FOUND_H

#include <jansson.h>

#include "schema/objects.h"

/* One line: a backup, which is added to result->found, with its damage where it cannot be read or is not such as a cluster can have; how the
 * page ends; how a backup stands, for result->verified or hurt; or that all were looked at. Never more than the object's bounds. */
void backup_found_add(const json_t *said, struct backup_result *result);

#endif
