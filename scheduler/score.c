/* The balance strategy; see the header. */
#include "scheduler/score.h"

/* Thousandths of @all that @used is. Shifted first where the product would not fit. */
static uint32_t fill(uint64_t used, uint64_t all)
{
    while (used > UINT64_MAX / SCORE_FULL) {
        used >>= 1;
        all >>= 1;
    }
    if (all == 0)
        return SCORE_FULL;
    return (uint32_t)MIN(used * SCORE_FULL / all, (uint64_t)SCORE_FULL);
}

uint32_t score_fill(const struct scheduler_view *view, size_t i, const struct place_request *request)
{
    uint32_t memory = fill(view->committed_memory_bytes[i] + request->memory_bytes, view->memory_bytes[i]);
    uint32_t vcpus = fill(view->committed_vcpus[i] + request->vcpus, view->vcpus[i]);
    return MAX(memory, vcpus);
}

uint32_t score_host(const struct scheduler_view *view, size_t i, const struct place_request *request)
{
    uint32_t bucket = score_fill(view, i, request) / SCORE_BUCKET;
    uint32_t full = SCORE_FULL / SCORE_BUCKET;
    if (bucket <= SCORE_SPREAD_BELOW / SCORE_BUCKET)
        return 2 * full - bucket + 1;
    return bucket + 1;
}
