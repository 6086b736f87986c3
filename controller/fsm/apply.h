/* Apply a committed command to the state. Deterministic and never failing: a command that no longer fits (the world has
 * changed between decide and apply) changes nothing and is answered with a refusal in words, the same on every controller.
 *
 * Each change sets revision = index, makes the record's JSON anew and appends an event.
 *
 * Thread: the caller's, under the write lock of the state. */
#ifndef CONTROLLER_FSM_APPLY_H
#define CONTROLLER_FSM_APPLY_H

#include "controller/fsm/state.h"
#include "schema/commands.h"

struct apply_result {
    int code;            /* 0, or negative errno: refused, see error */
    struct error error;
    uint64_t index;      /* of the command; of the first one where repeated */
    bool repeated;       /* this Idempotency-Key was answered before; the fields below are of that answer */
    bool fatal;          /* the command is of a newer version: this controller must stop (and be upgraded), or it would
                          * fall out of step with the others. code is -EPROTONOSUPPORT, nothing was changed, the index
                          * has not moved */
    uint32_t status;     /* HTTP status of the answer: request.answer_status as decided */
    enum object_kind object_kind;
    char object_id[STATE_ID_BYTES]; /* made or changed; "" = none, or it is gone */
    char operation_id[STATE_ID_BYTES]; /* its operation; "" = none */
};

/* @index must be above state_index(). @command is any bytes (command_codec.h); borrowed. */
void fsm_apply(struct state *state, uint64_t index, const void *command, size_t size, struct apply_result *ret_result);

/* Would the command be refused now? Runs the very checks of its apply, and changes nothing but @payload (struct
 * command_<name>: names are made canonical). 0, or the code of the refusal with @err filled. Under the read lock. */
int fsm_check(const struct state *state, enum command number, void *payload, struct error *err);

/* Does the word of its host that it starts @record no more change anything? Not while an operation of it is under way: it is said again. */
bool vm_release_counts(const struct record *record, const struct vm_seen *seen);
/* Has @vm to be started elsewhere when its host is lost? *ret_why (may be NULL): a literal, why not, or NULL. */
bool lease_vm_recovers(const struct state *state, const struct vm *vm, const char **ret_why);

#endif
