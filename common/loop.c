/* Functions handed to a loop from other threads: a ring under a lock, and one uv_async_t that wakes the loop. */
#include "common/loop.h"

#include <errno.h>

/* Run what waits now, and not what these functions push, so that the loop gets its turn between. */
static void run_waiting(struct loop_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    for (size_t n = queue->count; n > 0; n--) {
        struct loop_item item = queue->items[queue->first];
        queue->first = (queue->first + 1) % queue->items_max;
        queue->count--;
        pthread_mutex_unlock(&queue->lock);
        item.function(item.arg);
        pthread_mutex_lock(&queue->lock);
    }
    bool again = queue->count > 0 && !queue->closing;
    pthread_mutex_unlock(&queue->lock);
    if (again)
        uv_async_send(&queue->async);
}

static void async_cb(uv_async_t *async)
{
    run_waiting(async->data);
}

int loop_queue_init(struct loop_queue *queue, uv_loop_t *loop, size_t items_max)
{
    ASSERT(items_max > 0);
    *queue = (struct loop_queue){.items_max = items_max};
    int rc = uv_async_init(loop, &queue->async, async_cb);
    if (rc < 0)
        return rc;
    queue->async.data = queue;
    queue->items = xcalloc(items_max, sizeof *queue->items);
    pthread_mutex_init(&queue->lock, NULL);
    return 0;
}

int loop_queue_push(struct loop_queue *queue, loop_function function, void *arg)
{
    int rc = 0;
    pthread_mutex_lock(&queue->lock);
    if (queue->closing)
        rc = -ECANCELED;
    else if (queue->count == queue->items_max)
        rc = -ENOBUFS;
    else
        queue->items[(queue->first + queue->count++) % queue->items_max] = (struct loop_item){function, arg};
    /* Within the lock: after it the queue may be closed and gone. */
    if (rc == 0)
        uv_async_send(&queue->async);
    pthread_mutex_unlock(&queue->lock);
    return rc;
}

static void closed_cb(uv_handle_t *handle)
{
    struct loop_queue *queue = handle->data;
    run_waiting(queue);
    pthread_mutex_destroy(&queue->lock);
    free(queue->items);
    queue->items = NULL;
    if (queue->closed != NULL)
        queue->closed(queue, queue->closed_arg);
}

void loop_queue_close(struct loop_queue *queue, void (*closed)(struct loop_queue *queue, void *arg), void *arg)
{
    pthread_mutex_lock(&queue->lock);
    queue->closing = true;
    pthread_mutex_unlock(&queue->lock);
    queue->closed = closed;
    queue->closed_arg = arg;
    uv_close((uv_handle_t *)&queue->async, closed_cb);
}
