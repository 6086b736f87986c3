/* A bounded queue between threads: see work_queue.h. */
#include "backup/work_queue.h"

void work_queue_init(struct work_queue *q, unsigned max)
{
    *q = (struct work_queue){.max = max, .items = xcalloc(max, sizeof *q->items)};
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->not_full, NULL);
    pthread_cond_init(&q->not_empty, NULL);
}

void work_queue_finish(struct work_queue *q)
{
    if (q->items == NULL)
        return;
    pthread_cond_destroy(&q->not_empty);
    pthread_cond_destroy(&q->not_full);
    pthread_mutex_destroy(&q->lock);
    free(q->items);
    q->items = NULL;
}

bool work_queue_put(struct work_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == q->max && !q->closed)
        pthread_cond_wait(&q->not_full, &q->lock);
    bool put = !q->closed;
    if (put) {
        q->items[(q->first + q->count++) % q->max] = item;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return put;
}

static void *take_first(struct work_queue *q)
{
    void *item = NULL;
    if (q->count > 0) {
        item = q->items[q->first];
        q->first = (q->first + 1) % q->max;
        q->count--;
        pthread_cond_signal(&q->not_full);
    }
    return item;
}

void *work_queue_take(struct work_queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == 0 && !q->closed)
        pthread_cond_wait(&q->not_empty, &q->lock);
    void *item = take_first(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}

void *work_queue_try(struct work_queue *q)
{
    pthread_mutex_lock(&q->lock);
    void *item = take_first(q);
    pthread_mutex_unlock(&q->lock);
    return item;
}

void work_queue_close(struct work_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_full);
    pthread_cond_broadcast(&q->not_empty);
    pthread_mutex_unlock(&q->lock);
}
