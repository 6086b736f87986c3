/* The limit on bytes a second: a clock of when the next byte is due. See store_pace.h. */
#include "backup/store_pace.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#define SECOND_NS UINT64_C(1000000000)

struct store_pace {
    pthread_mutex_t lock;
    uint64_t bytes_per_s;
    uint64_t next_ns; /* when the next byte is due */
};

struct store_pace *store_pace_create(uint64_t bytes_per_s)
{
    struct store_pace *pace = NEW(struct store_pace);
    pace->bytes_per_s = MAX(bytes_per_s, 1u);
    pthread_mutex_init(&pace->lock, NULL);
    return pace;
}

void store_pace_destroy(struct store_pace *pace)
{
    if (pace == NULL)
        return;
    pthread_mutex_destroy(&pace->lock);
    free(pace);
}

uint64_t store_pace_due(struct store_pace *pace, size_t size, uint64_t now_ns)
{
    pthread_mutex_lock(&pace->lock);
    if (pace->next_ns + SECOND_NS / 10 < now_ns)
        pace->next_ns = now_ns - SECOND_NS / 10;
    uint64_t wait_ns = pace->next_ns > now_ns ? pace->next_ns - now_ns : 0;
    pace->next_ns += (uint64_t)((double)size * (double)SECOND_NS / (double)pace->bytes_per_s);
    pthread_mutex_unlock(&pace->lock);
    return wait_ns;
}

void store_pace_take(struct store_pace *pace, size_t size)
{
    struct timespec now;
    if (pace == NULL)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t wait_ns = store_pace_due(pace, size, (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec);
    struct timespec left = {.tv_sec = (time_t)(wait_ns / SECOND_NS), .tv_nsec = (long)(wait_ns % SECOND_NS)};
    while (wait_ns > 0 && nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}
