/* What a backup has of its VM besides the disks: see backup_definition.h. */
#include "controller/fsm/backup_definition.h"

#include <string.h>

void backup_definition_put(const struct state *state, const struct record *vm, struct bytes_writer *out)
{
    bool any = false;
    state_put_json(state, vm, out);
    ASSERT(out->size > 0 && out->data[out->size - 1] == '}');
    for (size_t i = 0; i < vm->vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->vm->nics.items + i;
        const struct record *network = nic->network != NULL ? state_get(state, object_kind_NETWORK, nic->network) : NULL;
        for (size_t k = 0; k < i && network != NULL; k++) {
            const struct vm_nic *before = (const struct vm_nic *)vm->vm->nics.items + k;
            if (before->network != NULL && strcmp(before->network, nic->network) == 0)
                network = NULL; /* it is there already */
        }
        if (network == NULL)
            continue;
        out->size -= any ? 0 : 1;
        bytes_put_text(out, any ? "," : ",\"networks\":[");
        state_put_json(state, network, out);
        any = true;
    }
    if (any)
        bytes_put_text(out, "]}");
}
