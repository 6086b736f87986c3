/* Handlers of the routes that change something: decide, propose, answer when applied. */
#ifndef CONTROLLER_API_API_WRITE_H
#define CONTROLLER_API_API_WRITE_H

#include "controller/api/api_call.h"
#include "controller/command/decide.h"

/* Every route that decide_route() knows. */
void api_write(struct api_call *call);

/* --- the steps, for handlers with a decision of their own --- */

/* decide_context of a call; valid while @call and @now live. */
struct decision_context api_write_context(const struct api_call *call, const char now[ENVIRONMENT_TIME_SIZE]);
/* True: another call with the same Idempotency-Key is under way and this one waits for it. Else the key is this
 * call's. */
bool api_write_wait_for_key(struct api_call *call);
/* A decision failed: look once more after a barrier (the state may have been behind), then answer @err. */
void api_write_refuse(struct api_call *call, const struct error *err);
/* Propose; takes the command. @applied: answer the call, as api_write_answer does. It is called with a result that
 * was not refused. */
void api_write_propose(struct api_call *call, struct decision *decision,
                       void (*applied)(struct api_call *call, const struct apply_result *result));
/* The object made or changed, its operation, or nothing (204). */
void api_write_answer(struct api_call *call, const struct apply_result *result);

#endif
