/* The way of another thread to what only the control loop may do: a function is run there, and waited for.
 *
 *   posted --loop comes to it--> running --> done
 *      +---- gate closed: abandoned, the loop drops it ----> -ECANCELED
 *
 * Threads: control_gate_run from any but the control loop's; the rest on the control loop's. */
#ifndef COMPUTE_VMM_CONTROL_GATE_H
#define COMPUTE_VMM_CONTROL_GATE_H

#include "common/error.h"
#include "compute/vmm/io_loop.h"

typedef int (*control_gate_fn)(void *arg, struct error *err);

struct control_gate {
    struct io_loop *loop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;
};

void control_gate_init(struct control_gate *g, struct io_loop *loop);
/* Nobody waits any more (control_gate_close, and the threads joined). */
void control_gate_finish(struct control_gate *g);
/* What @function answers; -ECANCELED, without having run it, once the gate is closed. */
int control_gate_run(struct control_gate *g, control_gate_fn function, void *arg, struct error *err);
/* Let go of all who wait: the loop does not turn any more. */
void control_gate_close(struct control_gate *g);

#endif
