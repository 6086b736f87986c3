/* Functions pushed to a loop from several threads (pthread): each runs once, in its thread's order; limits; closing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <sched.h>

#include "common/loop.h"

#define THREADS 4
#define EACH 5000

struct item {
    unsigned thread, number;
};

static struct item items[THREADS][EACH];
static unsigned next_number[THREADS], wrong, total;

static void run_item(void *arg)
{
    const struct item *item = arg;
    wrong += next_number[item->thread]++ != item->number;
    total++;
}

struct pusher {
    struct loop_queue *queue;
    unsigned thread;
};

static void *push_all(void *arg)
{
    struct pusher *p = arg;
    for (unsigned i = 0; i < EACH; i++) {
        items[p->thread][i] = (struct item){p->thread, i};
        while (loop_queue_push(p->queue, run_item, &items[p->thread][i]) == -ENOBUFS)
            sched_yield();
    }
    return NULL;
}

static void count_closed(struct loop_queue *queue, void *arg)
{
    (void)queue;
    ++*(unsigned *)arg;
}

static void test_threads(void **state)
{
    uv_loop_t loop;
    struct loop_queue queue;
    pthread_t threads[THREADS];
    struct pusher pushers[THREADS];
    unsigned closed = 0;
    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(loop_queue_init(&queue, &loop, 64), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        pushers[i] = (struct pusher){&queue, i};
        assert_int_equal(pthread_create(&threads[i], NULL, push_all, &pushers[i]), 0);
    }
    while (total < THREADS * EACH)
        uv_run(&loop, UV_RUN_ONCE);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    loop_queue_close(&queue, count_closed, &closed);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(closed, 1);
    assert_int_equal(wrong, 0);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void count(void *arg)
{
    ++*(unsigned *)arg;
}

static struct loop_queue *again_queue;

static void push_again(void *arg)
{
    unsigned *ran = arg;
    if (++*ran < 5)
        assert_int_equal(loop_queue_push(again_queue, push_again, ran), 0);
}

static void test_limit_and_close(void **state)
{
    uv_loop_t loop;
    struct loop_queue queue;
    unsigned ran = 0, closed = 0;
    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(loop_queue_init(&queue, &loop, 2), 0);
    again_queue = &queue;
    assert_int_equal(loop_queue_push(&queue, push_again, &ran), 0);
    while (ran < 5)
        uv_run(&loop, UV_RUN_ONCE);
    ran = 0;
    assert_int_equal(loop_queue_push(&queue, count, &ran), 0);
    assert_int_equal(loop_queue_push(&queue, count, &ran), 0);
    assert_int_equal(loop_queue_push(&queue, count, &ran), -ENOBUFS);
    loop_queue_close(&queue, count_closed, &closed);
    assert_int_equal(loop_queue_push(&queue, count, &ran), -ECANCELED);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(ran, 2); /* what waited still ran */
    assert_int_equal(closed, 1);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads), cmocka_unit_test(test_limit_and_close)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
