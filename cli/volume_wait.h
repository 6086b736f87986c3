/* Following a volume until its host, or its VM's, has done what was asked for. */
#ifndef CLI_VOLUME_WAIT_H
#define CLI_VOLUME_WAIT_H

#include <jansson.h>

#include "cli/client.h"

/* Until it is available, attached with all that its VM is to have, or gone; -ETIMEDOUT says what hinders it. *ret_volume (the caller
 * decrefs; NULL: gone). */
int volume_wait(const struct invocation *call, struct client *client, const char *id, json_t **ret_volume, struct error *err);

#endif
