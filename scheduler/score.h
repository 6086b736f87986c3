/* How well does a host suit? Strategy "balance": spread while a host stays at most half full, then pack, so that a small
 * load is shared out and a large one leaves whole hosts free for large VMs. Integers only: the same on every machine. */
#ifndef SCHEDULER_SCORE_H
#define SCHEDULER_SCORE_H

#include "scheduler/filter.h"

#define SCORE_FULL 1000u         /* fill of a full host, in thousandths */
#define SCORE_SPREAD_BELOW 500u  /* up to here the emptiest host is best, above it the fullest */
#define SCORE_BUCKET 10u         /* fills are compared in steps of 1 %: below that the name decides */

/* Fill of host @i with the VM on it: of memory or processors, whichever is fuller, in thousandths. */
uint32_t score_fill(const struct scheduler_view *view, size_t i, const struct place_request *request);
/* Higher is better; at least 1. Host @i must have passed the filters. */
uint32_t score_host(const struct scheduler_view *view, size_t i, const struct place_request *request);

#endif
