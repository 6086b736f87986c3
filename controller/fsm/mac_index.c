/* MAC addresses in use; see the header. */
#include "controller/fsm/mac_index.h"

#include <string.h>

#include "controller/fsm/state_edit.h"

#define MAC_SIZE 18u

/* An entry; the map borrows its key. */
struct mac_use {
    unsigned count;
    char mac[MAC_SIZE];
};

static const char *key_of(const char *mac, char key[MAC_SIZE])
{
    size_t n = 0;
    for (; mac[n] != '\0' && n < MAC_SIZE - 1; n++)
        key[n] = mac[n] >= 'A' && mac[n] <= 'F' ? (char)(mac[n] - 'A' + 'a') : mac[n];
    key[n] = '\0';
    return key;
}

static const char *mac_of(const struct vm *vm, size_t nic)
{
    return ((const struct vm_nic *)vm->nics.items + nic)->mac;
}

void mac_index_add(struct map *index, const struct vm *vm)
{
    char key[MAC_SIZE];
    for (size_t i = 0; i < vm->nics.count; i++) {
        if (mac_of(vm, i) == NULL)
            continue;
        struct mac_use *use = map_get(index, key_of(mac_of(vm, i), key));
        if (use == NULL) {
            use = NEW(struct mac_use);
            memcpy(use->mac, key, sizeof use->mac);
            map_put(index, use->mac, use);
        }
        use->count++;
    }
}

void mac_index_remove(struct map *index, const struct vm *vm)
{
    char key[MAC_SIZE];
    for (size_t i = 0; i < vm->nics.count; i++) {
        struct mac_use *use = mac_of(vm, i) != NULL ? map_get(index, key_of(mac_of(vm, i), key)) : NULL;
        if (use != NULL && --use->count == 0)
            free(map_remove(index, use->mac));
    }
}

void mac_index_finish(struct map *index)
{
    struct mac_use *use;
    for (size_t i = 0; (use = map_next(index, &i)) != NULL;)
        free(use);
    map_finish(index);
}

unsigned mac_index_count(const struct map *index, const char *mac)
{
    char key[MAC_SIZE];
    const struct mac_use *use = map_get(index, key_of(mac, key));
    return use != NULL ? use->count : 0;
}

bool state_mac_in_use(const struct state *state, const char *mac)
{
    return mac_index_count(&state->macs, mac) > 0;
}
