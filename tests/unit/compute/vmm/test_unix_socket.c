/* Listening at a Unix socket: clients come in; a file left behind is replaced, one in use is not; without descriptors the
 * listener rests instead of spinning, and the client is taken as soon as there is one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compute/vmm/unix_socket.h"

enum { ROUNDS = 200, CLIENTS_MAX = 4 };

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct unix_listener listener;
    char folder[64], path[80];
    int accepted[CLIENTS_MAX];
    unsigned count;
};

static void on_accepted(void *arg, int fd)
{
    struct bench *b = arg;
    assert_true(b->count < CLIENTS_MAX);
    b->accepted[b->count++] = fd;
}

static int start(struct bench *b, struct unix_listener *l, struct error *err)
{
    int fd, code = unix_socket_listen(b->path, "the test's socket", "/path", &fd, err);
    return code < 0 ? code : unix_listener_start(l, fd, b->path, "test", b->loop, on_accepted, b, err);
}

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    snprintf(b->folder, sizeof b->folder, "/tmp/test_unix_socket.XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->path, sizeof b->path, "%s/s", b->folder);
    pthread_mutex_init(&b->lock, NULL);
    assert_int_equal(io_loop_create(&b->lock, &b->loop, NULL), 0);
    assert_int_equal(start(b, &b->listener, NULL), 0);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    unix_listener_stop(&b->listener);
    unix_listener_stop(&b->listener); /* nothing is left to do */
    for (unsigned i = 0; i < b->count; i++)
        close(b->accepted[i]);
    io_loop_destroy(b->loop);
    pthread_mutex_destroy(&b->lock);
    assert_int_equal(rmdir(b->folder), 0); /* and so the socket's file is gone */
    free(b);
    return 0;
}

static int client_connect(struct bench *b)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, b->path, strlen(b->path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void test_clients(void **state)
{
    struct bench *b = *state;
    struct stat st;
    assert_int_equal(stat(b->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    int first = client_connect(b), second = client_connect(b);
    for (unsigned i = 0; i < ROUNDS && b->count < 2; i++)
        io_loop_run_once(b->loop, 10);
    assert_int_equal(b->count, 2);
    assert_int_equal(b->listener.refusals, 0);
    close(first);
    close(second);
}

static void test_path(void **state)
{
    struct bench *b = *state;
    struct unix_listener other;
    struct error err = {0};
    assert_int_equal(start(b, &other, &err), -EADDRINUSE);
    assert_int_equal(access(b->path, F_OK), 0); /* still ours */
    /* What a process that was killed leaves behind. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    unix_listener_stop(&b->listener);
    memcpy(address.sun_path, b->path, strlen(b->path) + 1);
    assert_int_equal(access(b->path, F_OK), -1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    assert_int_equal(start(b, &b->listener, NULL), 0);
    /* Renamed, with another's in its place: that stays. */
    char moved[sizeof address.sun_path];
    snprintf(moved, sizeof moved, "%s2", b->path);
    assert_int_equal(rename(b->path, moved), 0);
    assert_int_equal(start(b, &other, NULL), 0);
    unix_listener_stop(&b->listener);
    assert_int_equal(access(b->path, F_OK), 0);
    assert_int_equal(unlink(moved), 0);
    unix_listener_stop(&other);
    assert_int_equal(access(b->path, F_OK), -1);
    assert_int_equal(start(b, &b->listener, NULL), 0);
    char path[sizeof address.sun_path + 8];
    memset(path, 'x', sizeof path);
    path[sizeof address.sun_path] = '\0';
    assert_int_equal(unix_socket_listen(path, "it", "/path", &fd, &err), -ENAMETOOLONG);
    assert_string_equal(err.field, "/path");
}

static void test_no_descriptors(void **state)
{
    struct bench *b = *state;
    struct rlimit before, none;
    int fd = client_connect(b);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (unsigned i = 0; i < ROUNDS; i++)
        io_loop_run_once(b->loop, 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(b->count, 0);
    assert_true(b->listener.refusals >= 1);
    assert_true(b->listener.refusals < ROUNDS / 10); /* one for each rest, however slow the machine is */
    assert_false(list_empty(&b->listener.rest.link));
    for (unsigned i = 0; i < ROUNDS && b->count == 0; i++)
        io_loop_run_once(b->loop, 10);
    assert_int_equal(b->count, 1);
    close(fd);
}

/* Taken down while it rests: its timer finds nothing. */
static void test_stop_at_rest(void **state)
{
    struct bench *b = *state;
    struct rlimit before, none;
    int fd = client_connect(b);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    io_loop_run_once(b->loop, 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(b->listener.refusals, 1);
    unix_listener_stop(&b->listener);
    assert_true(list_empty(&b->listener.rest.link));
    io_loop_run_once(b->loop, 0);
    assert_int_equal(b->count, 0);
    close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {T(test_clients), T(test_path), T(test_no_descriptors), T(test_stop_at_rest)};
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
