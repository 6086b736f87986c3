/* A change of an object (the verbs `update`), as its user means it: the API takes a map or a list as a whole, and "one more label" or
 * "one more rule" is not to take the others away unasked. */
#ifndef CLI_CHANGE_H
#define CLI_CHANGE_H

#include "cli/client.h"

/* PATCH @path (query included) of the verb's route with what @call says. Where that rests on what the object has, it is read,
 * and changed under the revision that was read; where somebody else was faster, once more with what there is now. Labels are laid
 * over those that it has. Where a list leaves out what is there, that is asked first (as confirm()). As client_request() else. */
int change_request(const struct invocation *call, struct client *client, const char *path, struct reply *ret, struct error *err);

#endif
