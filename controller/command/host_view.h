/* The scheduler's view of the state, and placing one VM in it. */
#ifndef CONTROLLER_COMMAND_HOST_VIEW_H
#define CONTROLLER_COMMAND_HOST_VIEW_H

#include "controller/fsm/state.h"
#include "scheduler/place.h"

/* Fill @view (zeroed) with every host. What @vm (NULL = none) holds of its host is counted as free. Borrows names. */
void host_view_fill(const struct state *state, const struct record *vm, struct scheduler_view *view);
struct place_request host_view_request(const struct vm *vm);
/* For each host, in host_view_fill's order, whether it holds a VM that @vm is kept apart from, or one is on its way there by a migration;
 * NULL: @vm has no such label. The caller frees. This is for the leader that decides: apply counts no migrations, and judges none by it
 * (state_host_apart), so two decisions that do not know of each other, with one of them a migration, may bring two of a group together. */
uint8_t *host_view_apart(const struct state *state, const struct vm *vm);
/* Which hosts have tried to start @vm and could not, its own among them; in the same order. The caller frees. */
uint8_t *host_view_tried(const struct state *state, const struct vm *vm);
/* What each host has of the pools of @vm's disks, in the same order: enum place_pools; NULL: it has none in pools. The caller
 * frees. */
uint8_t *host_view_pools(const struct state *state, const struct vm *vm);

#endif
