/* A state that only moves along a table: legal moves, one setter, one log line for each move.
 *
 *   <6>vm-state vm=web1 from=starting to=running why="its VMM answers"
 *
 * The table is the drawing's other half: a machine's file shows the drawing, its table says the same to the computer,
 * and a move that is not in it is a mistake of ours that ends the process. The state is written by
 * state_machine_move() alone. No allocation, no I/O but the log line; the owner's thread. */
#ifndef COMMON_STATE_MACHINE_H
#define COMMON_STATE_MACHINE_H

#include "common/base.h"

#define STATE_MACHINE_STATES_MAX 32u
#define STATE_BIT(state) (UINT32_C(1) << (state))

struct state_machine_desc {
    const char *noun;         /* "vm": the key in the log line, and "<noun>-state" its event name */
    const char *const *names; /* count of them */
    const uint32_t *moves;    /* moves[from]: STATE_BIT of each state that may follow */
    unsigned count;           /* <= STATE_MACHINE_STATES_MAX */
};

struct state_machine {
    const struct state_machine_desc *desc;
    const char *name; /* of the one whose state it is, for the log; borrowed */
    unsigned state;   /* read it freely */
};

void state_machine_init(struct state_machine *machine, const struct state_machine_desc *desc, const char *name,
                        unsigned state);
/* Go to @to, which must be a legal move; to where it is already: nothing happens, nothing is logged. @why is a
 * printf format: a few words for the log. */
void state_machine_move(struct state_machine *machine, unsigned to, const char *why, ...) PRINTF_LIKE(3, 4);
bool state_machine_may(const struct state_machine *machine, unsigned to);
const char *state_machine_name(const struct state_machine *machine);

#endif
