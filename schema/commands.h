/* Numbers of the Raft commands and the object that each carries, expanded from commands.def. */
#ifndef SCHEMA_COMMANDS_H
#define SCHEMA_COMMANDS_H

#include "schema/objects.h"

enum command {
#define COMMAND(number, name, doc) COMMAND_##name = number,
#include "schema/commands.def"
#undef COMMAND
};

struct command_desc {
    enum command number;
    const char *name, *doc;
    const struct object_desc *payload;
};

/* The command of @number, or NULL: a newer controller's command, or damage. */
const struct command_desc *command_find(unsigned number);

#endif
