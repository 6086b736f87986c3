/* Handlers of the routes that change something: decide, propose, answer when applied. */
#ifndef CONTROLLER_API_API_WRITE_H
#define CONTROLLER_API_API_WRITE_H

#include "controller/api/api_call.h"
#include "controller/command/decide.h"

/* Answers the call when its command was applied and not refused: api_write_answer, or what has more to do first. */
typedef void (*api_write_applied)(struct api_call *call, const struct apply_result *result);

/* Every route that decide_route() knows. */
void api_write(struct api_call *call);
/* The same, with an end of the caller's; it gets repeats under an Idempotency-Key too. */
void api_write_then(struct api_call *call, api_write_applied applied);

/* --- the steps, for handlers with a decision of their own --- */

/* decide_context of a call; valid while @call and @now live. */
struct decision_context api_write_context(const struct api_call *call, const char now[ENVIRONMENT_TIME_SIZE]);
/* True: another call with the same Idempotency-Key is under way and this one waits for it. Else the key is this
 * call's. */
bool api_write_wait_for_key(struct api_call *call);
/* A decision failed: look once more after a barrier (the state may have been behind), then answer @err. */
void api_write_refuse(struct api_call *call, const struct error *err);
/* Propose; takes the command. */
void api_write_propose(struct api_call *call, struct decision *decision, api_write_applied applied);
/* The object made or changed, its operation, or nothing (204). */
void api_write_answer(struct api_call *call, const struct apply_result *result);

#endif
