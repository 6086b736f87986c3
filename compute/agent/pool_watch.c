/* Threads that look at pools; see the header. What a thread and the loop share is under the mutex; whichever of the two
 * lets go last frees it. */
#include "compute/agent/pool_watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"

#define FREE_STEPS 64u /* free room is news when it has changed by such a part of all */
#define END_WAIT_S 1 /* for a thread that is at work; after that it is taken for stuck */

struct pool_watch {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t thread;
    char id[37];       /* of the pool: the map's key */
    struct pool_order order;
    struct pool_seen seen;
    bool looked;       /* seen says something, of this order */
    bool stop, ended, left;
    uint64_t busy_since_ms; /* 0: it sleeps */
    uint64_t number;   /* of what is seen; raised when it changes */
    uint64_t told;     /* the loop's own */
    bool told_silent;  /* the loop's own */
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void watch_free(struct pool_watch *w)
{
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->mutex);
    OBJECT_CLEAR(pool_order, &w->order);
    OBJECT_CLEAR(pool_seen, &w->seen);
    free(w);
}

/* ---- the thread ---- */

/* With the mutex held. */
static void take(struct pool_watch *w, const struct pool_order *of, struct pool_seen *seen)
{
    if (!object_equal(&pool_order_desc, &w->order, of)) { /* of an order that counts no more */
        OBJECT_CLEAR(pool_seen, seen);
        return;
    }
    uint64_t step = w->seen.size_bytes / FREE_STEPS, held = w->seen.free_bytes;
    if (w->looked && held <= seen->free_bytes + step && seen->free_bytes <= held + step && OBJECT_HAS(pool_seen, seen, free_bytes))
        OBJECT_SET(pool_seen, seen, free_bytes, held);
    if (!w->looked || !object_equal(&pool_seen_desc, &w->seen, seen))
        w->number++;
    OBJECT_CLEAR(pool_seen, &w->seen);
    w->seen = *seen;
    w->looked = true;
}

static void sleep_until_wanted(struct pool_watch *w, const struct pool_order *of)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (pool_rbd_is(of) && w->seen.present ? POOL_WATCH_RBD_MS : POOL_WATCH_MS) / 1000;
    while (!w->stop && object_equal(&pool_order_desc, &w->order, of))
        if (pthread_cond_timedwait(&w->wake, &w->mutex, &end) == ETIMEDOUT)
            break;
}

static void *watch_run(void *arg)
{
    struct pool_watch *w = arg;
    pthread_mutex_lock(&w->mutex);
    while (!w->stop) {
        struct pool_order order = {0};
        struct pool_seen seen = {0};
        OBJECT_COPY(pool_order, &order, &w->order);
        w->busy_since_ms = now_ms();
        pthread_mutex_unlock(&w->mutex);
        if (pool_rbd_is(&order))
            pool_rbd_look(NULL, &order, &seen);
        else
            pool_dir_look(&order, &seen);
        pthread_mutex_lock(&w->mutex);
        w->busy_since_ms = 0;
        take(w, &order, &seen);
        sleep_until_wanted(w, &order);
        OBJECT_CLEAR(pool_order, &order);
    }
    w->ended = true;
    bool left = w->left;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    if (left)
        watch_free(w);
    return NULL;
}

/* ---- the loop ---- */

static struct pool_watch *watch_begin(const struct pool_order *order)
{
    struct pool_watch *w = NEW(struct pool_watch);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, &attr);
    pthread_condattr_destroy(&attr);
    snprintf(w->id, sizeof w->id, "%s", order->id);
    OBJECT_COPY(pool_order, &w->order, order);
    int r = pthread_create(&w->thread, NULL, watch_run, w);
    if (r == 0)
        return w;
    log_warning("pool-watch", "pool=%s error=\"no thread: %s\"", order->name, strerror(r)); /* with the next orders again */
    watch_free(w);
    return NULL;
}

static void watch_end(struct pool_watch *w)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += END_WAIT_S;
    pthread_t thread = w->thread;
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_signal(&w->wake);
    while (!w->ended && pthread_cond_timedwait(&w->wake, &w->mutex, &end) != ETIMEDOUT)
        ;
    w->left = !w->ended;
    bool ended = w->ended;
    pthread_mutex_unlock(&w->mutex);
    if (!ended) {
        log_warning("pool-watch", "error=\"a pool does not answer; its thread is left behind\"");
        pthread_detach(thread);
        return;
    }
    pthread_join(thread, NULL);
    watch_free(w);
}

static const struct pool_order *order_of(const struct object_list *orders, const char *id)
{
    const struct pool_order *all = orders->items;
    for (size_t i = 0; i < orders->count; i++)
        if (strcmp(all[i].id, id) == 0)
            return &all[i];
    return NULL;
}

static void watch_change(struct pool_watch *w, const struct pool_order *order)
{
    pthread_mutex_lock(&w->mutex);
    if (!object_equal(&pool_order_desc, &w->order, order)) {
        OBJECT_CLEAR(pool_order, &w->order);
        OBJECT_COPY(pool_order, &w->order, order);
        w->looked = false;
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->mutex);
}

void pool_watch_learn(struct pool_watches *watches, const struct object_list *orders)
{
    const struct pool_order *all = orders->items;
    struct pool_watch *w;
    watches->learned = true;
    for (size_t i = 0; (w = map_next(&watches->all, &i)) != NULL;) {
        if (order_of(orders, w->id) != NULL)
            continue;
        map_remove(&watches->all, w->id);
        watch_end(w);
        i = 0; /* the map has changed */
    }
    for (size_t i = 0; i < orders->count; i++) {
        w = map_get(&watches->all, all[i].id);
        if (w != NULL) {
            watch_change(w, &all[i]);
            continue;
        }
        w = watch_begin(&all[i]);
        if (w != NULL)
            map_put(&watches->all, w->id, w);
    }
}

/* With the mutex held: has the call lasted too long? */
static bool is_silent(const struct pool_watch *w)
{
    return w->busy_since_ms != 0 && now_ms() - w->busy_since_ms > POOL_WATCH_SILENT_MS;
}

bool pool_watch_news(const struct pool_watches *watches)
{
    struct pool_watch *w;
    bool news = false;
    for (size_t i = 0; !news && (w = map_next(&watches->all, &i)) != NULL;) {
        pthread_mutex_lock(&w->mutex);
        news = w->told != w->number || w->told_silent != is_silent(w);
        pthread_mutex_unlock(&w->mutex);
    }
    return news;
}

static void put_one(struct pool_watch *w, struct node_report *report)
{
    pthread_mutex_lock(&w->mutex);
    w->told = w->number;
    w->told_silent = is_silent(w);
    if (w->told_silent) {
        struct pool_seen *seen = OBJECT_ADD(node_report, report, pools);
        OBJECT_TEXT(pool_seen, seen, id, w->order.id);
        OBJECT_SET(pool_seen, seen, present, false);
        OBJECT_TEXT(pool_seen, seen, reason,
                    pool_rbd_is(&w->order) ? "Ceph does not answer" : "its file system does not answer; is its server there?");
    } else if (w->looked) {
        OBJECT_COPY(pool_seen, (struct pool_seen *)OBJECT_ADD(node_report, report, pools), &w->seen);
    }
    pthread_mutex_unlock(&w->mutex);
}

void pool_watch_put(struct pool_watches *watches, struct node_report *report)
{
    struct pool_watch *w;
    for (size_t i = 0; (w = map_next(&watches->all, &i)) != NULL;)
        put_one(w, report);
}

int pool_watch_there(const struct pool_watches *watches, const char *pool_id, const char *name, struct error *err)
{
    struct pool_watch *w = map_get(&watches->all, pool_id);
    int r = 0;
    if (w == NULL && !watches->learned)
        return error_set(err, -EAGAIN, ERROR_UNREACHABLE, "no controller has said yet where pool %s is", name);
    if (w == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "pool %s is none of this host", name);
    pthread_mutex_lock(&w->mutex);
    if (is_silent(w))
        r = error_set(err, -EAGAIN, ERROR_UNREACHABLE, "pool %s does not answer; is its server there?", name);
    else if (w->looked && !w->seen.present)
        r = error_set(err, -EAGAIN, ERROR_UNREACHABLE, "pool %s is not there: %s", name,
                      w->seen.reason != NULL ? w->seen.reason : "it does not say why");
    pthread_mutex_unlock(&w->mutex);
    return r;
}

void pool_watch_finish(struct pool_watches *watches)
{
    struct pool_watch *w;
    for (size_t i = 0; (w = map_next(&watches->all, &i)) != NULL;)
        watch_end(w);
    map_finish(&watches->all);
}
