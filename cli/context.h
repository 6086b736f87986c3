/* contexts.json: the clusters that the CLI knows, at $DROVER_CONTEXTS or ~/.config/drover/contexts.json. */
#ifndef CLI_CONTEXT_H
#define CLI_CONTEXT_H

#include "schema/objects.h"

/* The context of @name, or the current one where NULL; @ret is cleared by the caller. */
int context_current(const char *name, struct cli_context *ret, struct error *err);
/* Add or replace, and make current. Paths must be absolute. */
int context_store(const struct cli_context *context, struct error *err);

#endif
