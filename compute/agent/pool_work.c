/* Threads for work that looks into pools; see the header. */
#include "compute/agent/pool_work.h"

#include <pthread.h>
#include <string.h>

#include "common/log.h"

struct pool_lane {
    struct pool_works *works;
    uv_loop_t *loop;
    char *key;
    unsigned at_work;
    struct list waiting; /* struct pool_work */
};

/* ---- libuv's threads ---- */

static void on_loop_run(uv_work_t *uv_work)
{
    struct pool_work *work = CONTAINER_OF(uv_work, struct pool_work, on_loop);
    work->run(work);
}

static void on_loop_after(uv_work_t *uv_work, int status UNUSED)
{
    struct pool_work *work = CONTAINER_OF(uv_work, struct pool_work, on_loop);
    work->after(work);
}

static void on_loop_begin(uv_loop_t *loop, struct pool_work *work)
{
    int r = uv_queue_work(loop, &work->on_loop, on_loop_run, on_loop_after);
    ASSERT(r == 0);
}

/* ---- a lane's ---- */

static void *thread_run(void *arg)
{
    struct pool_work *work = arg;
    work->run(work);
    uv_async_send(&work->ended);
    return NULL;
}

static void lane_go_on(struct pool_lane *lane);

/* The loop has let go of the handle: the memory may go. */
static void on_closed(uv_handle_t *handle)
{
    struct pool_work *work = CONTAINER_OF((uv_async_t *)handle, struct pool_work, ended);
    struct pool_lane *lane = work->lane;
    lane->at_work--;
    lane_go_on(lane);
    work->after(work);
}

static void on_ended(uv_async_t *async)
{
    struct pool_work *work = CONTAINER_OF(async, struct pool_work, ended);
    pthread_join(work->thread, NULL); /* it has nothing left to do */
    uv_close((uv_handle_t *)async, on_closed);
}

static void in_lane_after(uv_work_t *uv_work, int status UNUSED)
{
    struct pool_work *work = CONTAINER_OF(uv_work, struct pool_work, on_loop);
    uv_close((uv_handle_t *)&work->ended, on_closed);
}

static void thread_begin(struct pool_lane *lane, struct pool_work *work)
{
    int r = uv_async_init(lane->loop, &work->ended, on_ended);
    ASSERT(r == 0);
    lane->at_work++;
    r = pthread_create(&work->thread, NULL, thread_run, work);
    if (r == 0)
        return;
    log_warning("pool-work", "error=\"no thread: %s; one of libuv's does it\"", strerror(r));
    r = uv_queue_work(lane->loop, &work->on_loop, on_loop_run, in_lane_after); /* the loop itself may not wait */
    ASSERT(r == 0);
}

static void lane_go_on(struct pool_lane *lane)
{
    while (lane->at_work < POOL_WORK_AT_ONCE && !list_empty(&lane->waiting)) {
        struct pool_work *work = LIST_ENTRY(lane->waiting.next, struct pool_work, link);
        list_remove(&work->link);
        thread_begin(lane, work);
    }
    if (lane->at_work > 0)
        return;
    map_remove(&lane->works->lanes, lane->key);
    if (lane->works->lanes.count == 0)
        map_finish(&lane->works->lanes); /* nothing is kept where nothing is at work */
    free(lane->key);
    free(lane);
}

static struct pool_lane *lane_of(struct pool_works *works, uv_loop_t *loop, const char *key)
{
    struct pool_lane *lane = map_get(&works->lanes, key);
    if (lane != NULL)
        return lane;
    lane = NEW(struct pool_lane);
    lane->works = works;
    lane->loop = loop;
    lane->key = xstrdup(key);
    list_init(&lane->waiting);
    map_put(&works->lanes, lane->key, lane);
    return lane;
}

/* ---- from outside ---- */

void pool_work_begin(struct pool_works *works, uv_loop_t *loop, const char *lane, struct pool_work *work,
                     void (*run)(struct pool_work *), void (*after)(struct pool_work *))
{
    work->run = run;
    work->after = after;
    if (works == NULL || lane == NULL) {
        on_loop_begin(loop, work);
        return;
    }
    work->lane = lane_of(works, loop, lane);
    list_append(&work->lane->waiting, &work->link);
    lane_go_on(work->lane);
}

char *pool_work_lane(const struct object_list *pools)
{
    const struct pool_order *all = pools->items;
    char *lane = NULL;
    for (size_t i = 0; i < pools->count; i++) {
        char *longer = xasprintf("%s%s%s", lane != NULL ? lane : "", lane != NULL ? " " : "", all[i].id);
        free(lane);
        lane = longer;
    }
    return lane;
}

bool pool_work_is_full(const struct pool_works *works, const char *lane)
{
    const struct pool_lane *at = works != NULL && lane != NULL ? map_get(&works->lanes, lane) : NULL;
    return at != NULL && at->at_work >= POOL_WORK_AT_ONCE;
}
