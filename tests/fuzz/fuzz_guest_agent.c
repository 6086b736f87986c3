/* Fuzz target: what an agent in the guest may say, in pieces, while calls and a freeze are under way. */
#include "common/log.h"
#include "compute/vmm/guest_agent.h"

static size_t on_send(void *arg, const uint8_t *data UNUSED, size_t size)
{
    return MIN(size, *(size_t *)arg);
}
static void on_end(void *arg UNUSED, const json_t *answer, const struct error *err)
{
    ASSERT(answer != NULL || err->code != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct io_loop *loop;
    struct guest_agent agent;
    size_t room = size > 0 ? data[0] : 0;
    log_set_level(LOG_LEVEL_ERROR);
    if (loop == NULL)
        ASSERT(io_loop_create(&lock, &loop, NULL) == 0);
    guest_agent_init(&agent, loop, on_send, &room);
    guest_agent_opened(&agent, true);
    for (size_t at = 0; at < size;) {
        size_t piece = MIN(size - at, (size_t)(1 + data[at] % 64));
        (void)guest_agent_call(&agent, "guest-ping", NULL, false, 1000, on_end, NULL, NULL);
        if (data[at] % 5 == 0)
            (void)guest_agent_freeze(&agent, 1000, on_end, NULL, NULL);
        if (data[at] % 7 == 0)
            guest_agent_input(&agent, (const uint8_t *)"\xff{\"return\":1}\n", 14);
        if (data[at] % 11 == 0)
            agent.timeout.callback(agent.timeout.arg);
        if (data[at] % 13 == 0)
            agent.thaw.callback(agent.thaw.arg);
        guest_agent_input(&agent, data + at, piece);
        at += piece;
    }
    guest_agent_finish(&agent);
    return 0;
}
