/* Handlers of GET routes on objects, and waiting for operations (?wait=). */
#ifndef CONTROLLER_API_API_READ_H
#define CONTROLLER_API_API_READ_H

#include "controller/api/api_call.h"

#define API_READ_LIST_INLINE_MAX 1000u /* objects that the loop goes through by itself: under a millisecond */
#define API_READ_LIST_WAIT_MS 30000u   /* for long reads that others asked for before */

/* A read that takes long, on a thread of the pool, one at a time. Part of a struct of the caller, who owns it again when @answer
 * is called, or when api_read_start says false. */
struct api_read_work {
    uv_work_t work;
    struct api_call *call;
    void (*make)(struct api_read_work *work);   /* on the thread */
    void (*answer)(struct api_read_work *work); /* on the loop: answers the call */
};

/* False: it is somebody else's turn. The call waits, and its route's handler is called again; or it was refused. */
bool api_read_start(struct api_read_work *work);

void api_read_list(struct api_call *call);
void api_read_show(struct api_call *call);
void api_read_placement(struct api_call *call);
void api_read_loss(struct api_call *call);
void api_read_operation(struct api_call *call);

/* Answer with call->operation_id: at its end or when ?wait= is over, whichever comes first. */
void api_read_await_operation(struct api_call *call);
/* Answer with it as it is now: 202 while it runs, else 200. */
void api_read_answer_operation(struct api_call *call);
/* The state has changed: answer those whose operation has ended. */
void api_read_applied(struct api *api);

#endif
