/* Work handed to a uv loop from other threads: a bounded queue of functions and one uv_async_t.
 *
 * Pushed from any thread; run on the loop's thread in order of pushing. Close from the loop's thread, when no thread
 * pushes any more; functions still queued then are run before the close callback. */
#ifndef COMMON_LOOP_H
#define COMMON_LOOP_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <pthread.h>
#include <uv.h>

typedef void (*loop_function)(void *arg);

struct loop_item {
    loop_function function;
    void *arg;
};
struct loop_queue {
    uv_async_t async;
    pthread_mutex_t lock; /* items, first, count, closing */
    struct loop_item *items;
    size_t items_max, first, count;
    bool closing;
    void (*closed)(struct loop_queue *queue, void *arg);
    void *closed_arg;
};

/* Memory is the caller's and must last until @closed of loop_queue_close. The async handle keeps the loop alive
 * unless the caller unrefs it: uv_unref((uv_handle_t *)&queue->async). */
int loop_queue_init(struct loop_queue *queue, uv_loop_t *loop, size_t items_max);
/* -ENOBUFS: items_max functions wait already. -ECANCELED: closing. */
int loop_queue_push(struct loop_queue *queue, loop_function function, void *arg);
void loop_queue_close(struct loop_queue *queue, void (*closed)(struct loop_queue *queue, void *arg), void *arg);

#endif
