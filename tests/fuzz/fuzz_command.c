/* Any bytes as commands to a small cluster: applied or refused, never a crash, and the invariants hold. The input is
 * split at zero bytes: number of the command, then its JSON. Ids that exist in the cluster are in the dictionary of the
 * corpus: they are the constants below. */
#include <string.h>

#include "controller/fsm/apply.h"
#include "controller/fsm/check.h"
#include "controller/fsm/command_codec.h"

#define REQUEST "\"request\":{\"at\":\"2026-01-31T12:00:00.000Z\"}"
#define ID(last) "00000000-0000-4000-8000-00000000000" #last
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct {
    enum command number;
    const char *json;
} cluster[] = {
    {COMMAND_init, "{" REQUEST ",\"cluster\":{\"id\":\"" ID(1) "\",\"name\":\"c\",\"next_raft_id\":2},\"controller\":{\"id\":\"" ID(2) "\",\"name\":\"c1\",\"raft_id\":1}}"},
    {COMMAND_put, "{" REQUEST ",\"create\":true,\"image\":{\"id\":\"" ID(3) "\",\"name\":\"i\",\"kind\":\"kernel\",\"kernel\":{\"url\":\"file:///k\",\"sha256\":\"" SHA "\"}}}"},
    {COMMAND_put, "{" REQUEST ",\"create\":true,\"host\":{\"id\":\"" ID(4) "\",\"name\":\"n1\",\"cpus\":8,\"memory_bytes\":8589934592}}"},
    {COMMAND_put, "{" REQUEST ",\"create\":true,\"token\":{\"id\":\"" ID(5) "\",\"name\":\"t\",\"role\":\"host\",\"expires_at\":\"2027-01-31T12:00:00.000Z\"}}"},
    {COMMAND_vm_create, "{" REQUEST ",\"vm\":{\"id\":\"" ID(6) "\",\"name\":\"v\",\"image\":\"i\",\"vcpus\":1,\"memory_bytes\":268435456,\"wanted\":\"running\",\"host\":\"" ID(4) "\"},\"operation\":{\"id\":\"" ID(7) "\",\"kind\":\"vm-create\"}}"},
};

static void apply(struct state *state, unsigned number, const void *json, size_t size)
{
    struct bytes_writer command = {0};
    struct apply_result result;
    bytes_put_u16(&command, (uint16_t)number);
    bytes_put_u16(&command, COMMAND_VERSION);
    bytes_put_u32(&command, (uint32_t)size);
    bytes_put(&command, json, size);
    fsm_apply(state, state_index(state) + 1, command.data, command.size, &result);
    bytes_writer_finish(&command);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct state *state = state_create();
    struct error err;
    for (unsigned i = 0; i < ARRAY_SIZE(cluster); i++)
        apply(state, cluster[i].number, cluster[i].json, strlen(cluster[i].json));
    ASSERT(state_count(state, object_kind_VM) == 1 && check_state(state, &err) == 0);
    while (size > 0) {
        const uint8_t *end = memchr(data + 1, 0, size - 1);
        size_t length = end != NULL ? (size_t)(end - data) : size;
        apply(state, data[0] % 12, data + 1, length - 1);
        if (check_state(state, &err) < 0)
            assert_failed(err.text, __FILE__, __LINE__, __func__);
        size -= end != NULL ? length + 1 : length;
        data += end != NULL ? length + 1 : length;
    }
    state_destroy(state);
    return 0;
}
