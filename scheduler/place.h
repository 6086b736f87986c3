/* Choose a host for a VM and keep, for every host, why it was taken or refused. Deterministic: the highest score, ties by
 * name. The record is numbers; words are made of them only when somebody asks (place_explain). */
#ifndef SCHEDULER_PLACE_H
#define SCHEDULER_PLACE_H

#include "scheduler/score.h"

#define PLACE_NONE SIZE_MAX

struct place_result {
    size_t chosen; /* host, or PLACE_NONE */
    size_t rejected_by[FILTER_COUNT]; /* how many hosts; [FILTER_PASSED]: how many could */
    size_t count, capacity;
    uint8_t *verdicts; /* of each host: enum filter */
    uint32_t *scores;  /* of each host, 0 where refused */
};

/* @result zeroed or used before (its memory is used again). */
void place_vm(const struct scheduler_view *view, const struct place_request *request, struct place_result *result);
void place_result_finish(struct place_result *result);

/* One sentence: "n2, the best of 3 hosts that fit: 25 % full with it", "no host fits: 2 with too little memory (...)". */
void place_summary(const struct scheduler_view *view, const struct place_request *request,
                   const struct place_result *result, char *buffer, size_t size);
/* Everything in words, the best host first, then the refused ones by name. @ret zeroed; the caller clears it. */
void place_explain(const struct scheduler_view *view, const struct place_request *request,
                   const struct place_result *result, struct placement *ret);

#endif
