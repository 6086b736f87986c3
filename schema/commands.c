/* The table of Raft commands, expanded from commands.def. */
#include "schema/commands.h"

static const struct command_desc commands[] = {
#define COMMAND(number, name, doc) {COMMAND_##name, #name, doc, &command_##name##_desc},
#include "schema/commands.def"
#undef COMMAND
};

const struct command_desc *command_find(unsigned number)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (commands[i].number == number)
            return &commands[i];
    return NULL;
}
