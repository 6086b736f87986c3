/* Labels of a VM that name something: where that is not there they are taken all the same, for it may come, and do nothing. */
#ifndef CLI_LABEL_CHECK_H
#define CLI_LABEL_CHECK_H

#include "cli/client.h"

/* After a request of @call that gave a VM labels: a line on standard error for each that names nothing. */
void labels_check(const struct invocation *call, struct client *client);

#endif
