/* Following an operation to its end. */
#ifndef CLI_OPERATION_WAIT_H
#define CLI_OPERATION_WAIT_H

#include "cli/client.h"

/* Shows progress until operation @id has ended or the call's time is up. 0 succeeded; negative errno with the
 * operation's own error otherwise. *ret_operation (may be NULL): its last state; the caller decrefs. */
int operation_wait(const struct invocation *call, struct client *client, const char *id, json_t **ret_operation, struct error *err);

#endif
