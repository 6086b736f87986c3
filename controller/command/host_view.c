/* From state to scheduler; see the header. */
#include "controller/command/host_view.h"

#include <string.h>

#include "controller/fsm/pool_members.h"

void host_view_fill(const struct state *state, const struct record *vm, struct scheduler_view *view)
{
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        bool own = vm != NULL && vm->vm->host != NULL && strcmp(vm->vm->host, host->common->id) == 0;
        view_add(view, host->host, host->of_host.committed_memory_bytes - (own ? vm->vm->memory_bytes : 0),
                 host->of_host.committed_vcpus - (own ? vm->vm->vcpus : 0));
    }
}

struct place_request host_view_request(const struct vm *vm)
{
    return (struct place_request){
        .memory_bytes = vm->memory_bytes, .vcpus = vm->vcpus, .pin = vm->pin, .cpu_model = (enum cpu_kind)vm->cpu_model};
}

static bool one_comes(const struct state *state, const struct record *host, const struct vm *vm)
{
    for (size_t i = 0; i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        bool comes = operation_keeps_room(operation) && strcmp(operation->task.peer, host->common->id) == 0;
        const struct record *other = comes ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
        if (other != NULL && state_vms_apart(vm, other->vm))
            return true;
    }
    return false;
}

uint8_t *host_view_apart(const struct state *state, const struct vm *vm)
{
    if (state_vm_label(vm, STATE_APART_LABEL) == NULL)
        return NULL;
    uint8_t *apart = xcalloc(state_count(state, object_kind_HOST) + 1, sizeof *apart);
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        apart[i] = state_host_apart(host, vm) || one_comes(state, host, vm);
    }
    return apart;
}

uint8_t *host_view_tried(const struct state *state, const struct vm *vm)
{
    uint8_t *tried = xcalloc(state_count(state, object_kind_HOST) + 1, sizeof *tried);
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const char *id = state_at(state, object_kind_HOST, i)->common->id;
        tried[i] = vm->host != NULL && strcmp(vm->host, id) == 0;
        for (size_t k = 0; k < vm->tried.count; k++)
            tried[i] |= strcmp(vm->tried.items[k], id) == 0;
    }
    return tried;
}

uint8_t *host_view_pools(const struct state *state, const struct vm *vm)
{
    if (!vm_has_pools(vm))
        return NULL;
    uint8_t *pools = xcalloc(state_count(state, object_kind_HOST) + 1, sizeof *pools);
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const char *host = state_at(state, object_kind_HOST, i)->common->id;
        pools[i] = vm_pool_missing(state, vm, host) != NULL ? PLACE_POOLS_MISSING
                   : vm_pool_full(state, vm, host) != NULL  ? PLACE_POOLS_FULL
                                                            : PLACE_POOLS_THERE;
    }
    return pools;
}
