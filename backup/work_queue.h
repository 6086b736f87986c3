/* A bounded queue between threads: who puts waits while it is full, who takes while it is empty. Closing ends both.
 */
#ifndef BACKUP_WORK_QUEUE_H
#define BACKUP_WORK_QUEUE_H

#include <pthread.h>

#include "common/base.h"

struct work_queue {
    pthread_mutex_t lock;
    pthread_cond_t not_full, not_empty;
    void **items;
    unsigned max, count, first;
    bool closed;
};

void work_queue_init(struct work_queue *q, unsigned max);
void work_queue_finish(struct work_queue *q);
/* False: it is closed, @item is still the caller's. */
bool work_queue_put(struct work_queue *q, void *item);
/* NULL: it is closed and empty. */
void *work_queue_take(struct work_queue *q);
/* NULL: it is empty at this moment. */
void *work_queue_try(struct work_queue *q);
/* No more puts; what is in it is still taken. */
void work_queue_close(struct work_queue *q);

#endif
