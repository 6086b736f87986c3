/* Table-driven states; see state_machine.h. */
#include <stdarg.h>
#include <stdio.h>

#include "common/log.h"
#include "common/state_machine.h"

void state_machine_init(struct state_machine *machine, const struct state_machine_desc *desc, const char *name,
                        unsigned state)
{
    ASSERT(desc->count <= STATE_MACHINE_STATES_MAX && state < desc->count);
    *machine = (struct state_machine){desc, name, state};
}

bool state_machine_may(const struct state_machine *machine, unsigned to)
{
    return to < machine->desc->count && (machine->desc->moves[machine->state] & STATE_BIT(to)) != 0;
}

const char *state_machine_name(const struct state_machine *machine)
{
    return machine->desc->names[machine->state];
}

void state_machine_move(struct state_machine *machine, unsigned to, const char *why, ...)
{
    const struct state_machine_desc *desc = machine->desc;
    char words[512], quoted[600], event[32];
    va_list args;
    if (to == machine->state)
        return;
    ASSERT(state_machine_may(machine, to));
    va_start(args, why);
    vsnprintf(words, sizeof(words), why, args);
    va_end(args);
    snprintf(event, sizeof(event), "%s-state", desc->noun);
    log_info(event, "%s=%s from=%s to=%s why=%s", desc->noun, machine->name, desc->names[machine->state],
             desc->names[to], log_quote(words, quoted, sizeof(quoted)));
    machine->state = to;
}
