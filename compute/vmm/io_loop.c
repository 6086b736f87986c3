/* The I/O thread.
 *
 * Happy path: epoll_wait without the lock; take the device lock; run each fetched handler that is still alive, then
 * timers that are due, then what was posted before this round; drop the lock.
 * A handler removed while its event lies in the fetched array is only marked dead, and freed after the round.
 * Failure modes: none at run time; descriptors that epoll refuses are refused at io_loop_add. */
#include "compute/vmm/io_loop.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#define EVENTS_MAX 64

struct io_handler {
    struct list link; /* in handlers, or in dead once removed */
    int fd;
    bool dead;
    io_fn callback;
    void *arg;
};

struct posted {
    struct list link;
    io_post_fn callback;
    void *arg;
};

struct io_loop {
    pthread_mutex_t *device_lock;
    int epoll_fd;
    int wake_fd;                /* eventfd: posted work, timers armed from outside, stop */
    struct list handlers, dead; /* guarded by the device lock */
    struct list timers;         /* armed, ascending by due time; device lock */
    pthread_mutex_t post_lock;  /* guards posts; never held while something runs */
    struct list posts;
    bool stopping; /* atomic */
    bool running;
    pthread_t thread;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void wake(struct io_loop *loop)
{
    uint64_t one = 1;
    ssize_t n = write(loop->wake_fd, &one, sizeof(one));
    (void)n; /* EAGAIN means that it is awake already */
}

int io_loop_create(pthread_mutex_t *device_lock, struct io_loop **ret_loop, struct error *err)
{
    struct io_loop *loop = NEW(struct io_loop);
    loop->device_lock = device_lock;
    list_init(&loop->handlers);
    list_init(&loop->dead);
    list_init(&loop->timers);
    list_init(&loop->posts);
    pthread_mutex_init(&loop->post_lock, NULL);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) < 0) {
        int code = error_errno(err, -errno, "cannot create the I/O loop");
        io_loop_destroy(loop);
        return code;
    }
    *ret_loop = loop;
    return 0;
}

static void handlers_free(struct list *handlers)
{
    LIST_FOREACH_SAFE(link, handlers)
    {
        list_remove(link);
        free(LIST_ENTRY(link, struct io_handler, link));
    }
}

void io_loop_destroy(struct io_loop *loop)
{
    if (!loop)
        return;
    io_loop_stop(loop);
    handlers_free(&loop->handlers);
    handlers_free(&loop->dead);
    LIST_FOREACH_SAFE(link, &loop->posts)
    {
        list_remove(link);
        free(LIST_ENTRY(link, struct posted, link));
    }
    LIST_FOREACH_SAFE(timer, &loop->timers)
    {
        list_remove(timer);
    }
    close_fd(&loop->epoll_fd);
    close_fd(&loop->wake_fd);
    pthread_mutex_destroy(&loop->post_lock);
    free(loop);
}

/* Milliseconds until the first timer, bounded by @timeout_ms. */
static int timeout_until_timer(struct io_loop *loop, int timeout_ms)
{
    if (list_empty(&loop->timers))
        return timeout_ms;
    uint64_t due = LIST_ENTRY(loop->timers.next, struct io_timer, link)->due_ns, now = now_ns();
    uint64_t wait_ms = due <= now ? 0 : MIN((due - now + 999999) / 1000000, 3600000ull);
    return timeout_ms < 0 || (uint64_t)timeout_ms > wait_ms ? (int)wait_ms : timeout_ms;
}

static void run_timers(struct io_loop *loop)
{
    uint64_t now = now_ns();
    while (!list_empty(&loop->timers)) {
        struct io_timer *timer = LIST_ENTRY(loop->timers.next, struct io_timer, link);
        if (timer->due_ns > now)
            return;
        list_remove(&timer->link);
        timer->callback(timer->arg);
    }
}

static void run_posts(struct io_loop *loop)
{
    struct list batch;
    list_init(&batch);
    pthread_mutex_lock(&loop->post_lock);
    list_take(&batch, &loop->posts);
    pthread_mutex_unlock(&loop->post_lock);
    LIST_FOREACH_SAFE(link, &batch)
    {
        struct posted *p = LIST_ENTRY(link, struct posted, link);
        list_remove(link);
        p->callback(p->arg);
        free(p);
    }
}

void io_loop_run_once(struct io_loop *loop, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    pthread_mutex_lock(loop->device_lock);
    timeout_ms = timeout_until_timer(loop, timeout_ms);
    pthread_mutex_unlock(loop->device_lock);
    int n = epoll_wait(loop->epoll_fd, events, EVENTS_MAX, timeout_ms);
    pthread_mutex_lock(loop->device_lock);
    for (int i = 0; i < n; i++) {
        struct io_handler *h = events[i].data.ptr;
        if (!h) {
            uint64_t count;
            ssize_t got = read(loop->wake_fd, &count, sizeof(count));
            (void)got;
        } else if (!h->dead) {
            h->callback(h->arg, events[i].events);
        }
    }
    run_timers(loop);
    run_posts(loop);
    handlers_free(&loop->dead);
    pthread_mutex_unlock(loop->device_lock);
}

static void *io_loop_main(void *arg)
{
    struct io_loop *loop = arg;
    while (!__atomic_load_n(&loop->stopping, __ATOMIC_ACQUIRE))
        io_loop_run_once(loop, -1);
    return NULL;
}

int io_loop_start(struct io_loop *loop, struct error *err)
{
    ASSERT(!loop->running);
    __atomic_store_n(&loop->stopping, false, __ATOMIC_RELEASE);
    int code = pthread_create(&loop->thread, NULL, io_loop_main, loop);
    if (code)
        return error_errno(err, -code, "cannot start the I/O thread");
    pthread_setname_np(loop->thread, "io");
    loop->running = true;
    return 0;
}

void io_loop_stop(struct io_loop *loop)
{
    if (!loop->running)
        return;
    __atomic_store_n(&loop->stopping, true, __ATOMIC_RELEASE);
    wake(loop);
    pthread_join(loop->thread, NULL);
    loop->running = false;
}

int io_loop_add(struct io_loop *loop, int fd, uint32_t events, io_fn callback, void *arg,
                struct io_handler **ret_handler, struct error *err)
{
    struct io_handler *h = NEW(struct io_handler);
    h->fd = fd;
    h->callback = callback;
    h->arg = arg;
    struct epoll_event event = {.events = events, .data.ptr = h};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int code = error_errno(err, -errno, "cannot watch descriptor %d", fd);
        free(h);
        return code;
    }
    list_append(&loop->handlers, &h->link);
    *ret_handler = h;
    return 0;
}

void io_loop_change(struct io_loop *loop, struct io_handler *h, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = h};
    ASSERT(!h->dead);
    ASSERT(epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, h->fd, &event) == 0);
}

void io_loop_remove(struct io_loop *loop, struct io_handler *h)
{
    if (!h)
        return;
    ASSERT(!h->dead);
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, h->fd, NULL);
    h->dead = true;
    list_remove(&h->link);
    list_append(&loop->dead, &h->link);
}

void io_timer_init(struct io_timer *timer, io_post_fn callback, void *arg)
{
    list_init(&timer->link);
    timer->due_ns = 0;
    timer->callback = callback;
    timer->arg = arg;
}

void io_timer_arm(struct io_loop *loop, struct io_timer *timer, uint64_t delay_ns)
{
    io_timer_cancel(timer);
    timer->due_ns = now_ns() + delay_ns;
    struct list *after = &loop->timers;
    while (after->prev != &loop->timers && LIST_ENTRY(after->prev, struct io_timer, link)->due_ns > timer->due_ns)
        after = after->prev;
    list_append(after, &timer->link); /* appending before `after` keeps the order */
    if (loop->timers.next == &timer->link)
        wake(loop);
}

void io_timer_cancel(struct io_timer *timer)
{
    list_remove(&timer->link);
}

void io_loop_post(struct io_loop *loop, io_post_fn callback, void *arg)
{
    struct posted *p = NEW(struct posted);
    p->callback = callback;
    p->arg = arg;
    pthread_mutex_lock(&loop->post_lock);
    list_append(&loop->posts, &p->link);
    pthread_mutex_unlock(&loop->post_lock);
    wake(loop);
}
