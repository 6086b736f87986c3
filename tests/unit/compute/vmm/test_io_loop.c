/* THREADED. The I/O loop: events, removal within a round, timers in order, work posted by other threads under the
 * lock; and the console on top of it: ring, several readers, a reader that does not read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "compute/vmm/console.h"
#include "compute/vmm/io_loop.h"

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    int fds[2];
    struct io_handler *handlers[2];
    unsigned calls;
    char order[8];
    size_t order_size;
};

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    pthread_mutex_init(&b->lock, NULL);
    assert_int_equal(io_loop_create(&b->lock, &b->loop, NULL), 0);
    for (unsigned i = 0; i < 2; i++)
        b->fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    io_loop_destroy(b->loop);
    close(b->fds[0]);
    close(b->fds[1]);
    pthread_mutex_destroy(&b->lock);
    free(b);
    return 0;
}

static void ring_bell(int fd)
{
    uint64_t one = 1;
    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static void on_event(void *arg, uint32_t events)
{
    struct bench *b = arg;
    assert_true(events & EPOLLIN);
    assert_int_equal(pthread_mutex_trylock(&b->lock), EBUSY); /* the device lock is held */
    b->calls++;
}

static void events_are_called(void **state)
{
    struct bench *b = *state;
    assert_int_equal(io_loop_add(b->loop, b->fds[0], EPOLLIN, on_event, b, &b->handlers[0], NULL), 0);
    io_loop_run_once(b->loop, 0);
    assert_int_equal(b->calls, 0);
    ring_bell(b->fds[0]);
    io_loop_run_once(b->loop, -1);
    assert_int_equal(b->calls, 1);
    io_loop_remove(b->loop, b->handlers[0]);
    io_loop_run_once(b->loop, 0);
    assert_int_equal(b->calls, 1);
    assert_int_equal(io_loop_add(b->loop, -1, EPOLLIN, on_event, b, &b->handlers[0], NULL), -EBADF);
}

/* Both events are fetched in one round; whoever comes first removes the other. */
static void on_event_remove_other(void *arg, uint32_t events)
{
    struct bench *b = arg;
    (void)events;
    b->calls++;
    for (unsigned i = 0; i < 2; i++) {
        io_loop_remove(b->loop, b->handlers[i]);
        b->handlers[i] = NULL;
    }
}
static void removed_handler_never_fires(void **state)
{
    struct bench *b = *state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(io_loop_add(b->loop, b->fds[i], EPOLLIN, on_event_remove_other, b, &b->handlers[i], NULL),
                         0);
        ring_bell(b->fds[i]);
    }
    io_loop_run_once(b->loop, -1);
    io_loop_run_once(b->loop, 0);
    assert_int_equal(b->calls, 1);
}

static void note(struct bench *b, char c)
{
    assert_true(b->order_size < sizeof(b->order) - 1);
    b->order[b->order_size++] = c;
}
static void note_a(void *arg)
{
    note(arg, 'a');
}
static void note_b(void *arg)
{
    note(arg, 'b');
}
static void note_c(void *arg)
{
    note(arg, 'c');
}

static void timers_fire_in_order(void **state)
{
    struct bench *b = *state;
    struct io_timer timers[3];
    io_timer_init(&timers[0], note_a, b);
    io_timer_init(&timers[1], note_b, b);
    io_timer_init(&timers[2], note_c, b);
    do { /* again where so much time went by between two of these lines that they are due in another order */
        io_timer_arm(b->loop, &timers[2], 3000000);
        io_timer_arm(b->loop, &timers[0], 1000000);
        io_timer_arm(b->loop, &timers[1], 2000000);
    } while (timers[0].due_ns >= timers[1].due_ns || timers[1].due_ns >= timers[2].due_ns);
    while (b->order_size < 3)
        io_loop_run_once(b->loop, -1);
    assert_string_equal(b->order, "abc");
    io_timer_arm(b->loop, &timers[0], 0);
    io_timer_cancel(&timers[0]);
    io_loop_run_once(b->loop, 0);
    assert_int_equal(b->order_size, 3);
}

static void *post_all(void *arg)
{
    struct bench *b = arg;
    io_loop_post(b->loop, note_a, b);
    io_loop_post(b->loop, note_b, b);
    io_loop_post(b->loop, note_c, b);
    return NULL;
}
static void posts_run_on_the_thread(void **state)
{
    struct bench *b = *state;
    pthread_t other;
    assert_int_equal(io_loop_start(b->loop, NULL), 0);
    assert_int_equal(pthread_create(&other, NULL, post_all, b), 0);
    pthread_join(other, NULL);
    for (bool done = false; !done;) {
        pthread_mutex_lock(&b->lock);
        done = b->order_size == 3;
        pthread_mutex_unlock(&b->lock);
    }
    io_loop_stop(b->loop);
    assert_string_equal(b->order, "abc");
}

/* ---- console ---- */

static int pair_follow(struct console *c)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(console_follow(c, pair[0], NULL), 0);
    return pair[1];
}
static size_t typed;
static size_t on_typed(void *arg, const uint8_t *data, size_t size)
{
    (void)arg;
    (void)data;
    typed += size;
    return size;
}

static void readers_see_the_past_and_the_present(void **state)
{
    struct bench *b = *state;
    struct console *c = NEW(struct console);
    char text[64] = "";
    console_init(c, b->loop);
    console_set_input(c, on_typed, NULL);
    console_output(c, "before ", 7);
    int one = pair_follow(c), two = pair_follow(c);
    console_output(c, "after", 5);
    for (unsigned i = 0; i < 20 && recv(one, text, sizeof(text), MSG_PEEK) < 12; i++)
        io_loop_run_once(b->loop, 10);
    assert_int_equal(recv(one, text, sizeof(text), 0), 12);
    assert_memory_equal(text, "before after", 12);
    assert_int_equal(recv(two, text, sizeof(text), 0), 12);
    assert_memory_equal(text, "before after", 12);
    typed = 0;
    assert_int_equal(send(two, "xyz", 3, 0), 3);
    io_loop_run_once(b->loop, -1);
    assert_int_equal(typed, 3);
    close(one); /* hangs up */
    while (console_reader_count(c) == 2)
        io_loop_run_once(b->loop, -1);
    assert_int_equal(console_reader_count(c), 1);
    close(two);
    console_finish(c);
    free(c);
}

static void slow_reader_is_cut_off(void **state)
{
    struct bench *b = *state;
    struct console *c = NEW(struct console);
    static char data[CONSOLE_RING_BYTES];
    console_init(c, b->loop);
    int slow = pair_follow(c), small = 4096;
    setsockopt(slow, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    /* Far more than ring and socket hold together: the guest's side never waits. */
    for (unsigned i = 0; i < 64; i++) {
        console_output(c, data, sizeof(data));
        io_loop_run_once(b->loop, 0);
    }
    for (unsigned i = 0; i < 100 && console_reader_count(c); i++) {
        ssize_t n;
        while ((n = recv(slow, data, sizeof(data), 0)) > 0)
            ;
        io_loop_run_once(b->loop, 10);
    }
    assert_int_equal(console_reader_count(c), 0);
    assert_int_equal(c->followers_dropped, 1);
    close(slow);
    console_finish(c);
    free(c);
}

static void readers_have_a_limit(void **state)
{
    struct bench *b = *state;
    struct console *c = NEW(struct console);
    int ends[CONSOLE_READERS_MAX], pair[2];
    console_init(c, b->loop);
    for (unsigned i = 0; i < CONSOLE_READERS_MAX; i++)
        ends[i] = pair_follow(c);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(console_follow(c, pair[0], NULL), -EUSERS);
    assert_int_equal(fcntl(pair[0], F_GETFD), -1); /* closed all the same */
    close(pair[1]);
    for (unsigned i = 0; i < CONSOLE_READERS_MAX; i++)
        close(ends[i]);
    console_finish(c);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(events_are_called),       T(removed_handler_never_fires),          T(timers_fire_in_order),
        T(posts_run_on_the_thread), T(readers_see_the_past_and_the_present), T(slow_reader_is_cut_off),
        T(readers_have_a_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
