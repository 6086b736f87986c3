/* Any bytes as a snapshot: refused in words, or a state that writes itself and reads back the same. */
#include <string.h>

#include "controller/fsm/snapshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct state *state = NULL, *again = NULL;
    struct error err = {0};
    if (snapshot_read(data, size, &state, &err) < 0) {
        ASSERT(err.text[0] != '\0' && state == NULL);
        return 0;
    }
    struct bytes_writer a = {0}, b = {0};
    snapshot_write(state, &a);
    ASSERT(snapshot_read(a.data, a.size, &again, &err) == 0);
    snapshot_write(again, &b);
    ASSERT(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    bytes_writer_finish(&a);
    bytes_writer_finish(&b);
    state_destroy(state);
    state_destroy(again);
    return 0;
}
