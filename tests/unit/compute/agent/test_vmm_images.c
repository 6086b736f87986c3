/* Images asked of a VMM: a snapshot that it makes is waited for, and nothing else is. The VMM is a thread that gives the answers of a list,
 * one to each connection, in the order that the test has them in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "compute/agent/task_child.h"
#include "compute/agent/vmm_images.h"

#define NONE {"GET /v1/vm/backup", 200, "{\"phase\":\"none\"}"}
#define BUSY {"GET /v1/vm/points", 200, "{\"busy\":true}"}
#define IDLE {"GET /v1/vm/points", 200, "{\"busy\":false}"}
#define REFUSED {"POST /v1/vm/backup", 409, "{\"code\":\"conflict\",\"detail\":\"not now\"}"}
#define INVALID {"POST /v1/vm/backup", 400, "{\"code\":\"invalid\",\"detail\":\"not so\"}"}
#define OPEN {"POST /v1/vm/backup", 201, "{\"phase\":\"open\",\"name\":\"b\"}"}

struct answer {
    const char *asked; /* what has to be asked here */
    int status;
    const char *body;
};

struct vmm {
    int listener;
    pthread_t thread;
    const struct answer *answers;
    unsigned count, given;
    char wrong[512]; /* asked instead */
};

static void *vmm_run(void *arg)
{
    struct vmm *v = arg;
    for (unsigned i = 0; i < v->count; i++) {
        const struct answer *a = &v->answers[i];
        char request[4096] = "", text[1024];
        int fd = accept(v->listener, NULL, NULL);
        if (fd < 0)
            break;
        (void)!recv(fd, request, sizeof request - 1, 0); /* one send of a few bytes */
        if (strncmp(request, a->asked, strlen(a->asked)) != 0)
            snprintf(v->wrong, sizeof v->wrong, "%u: %.400s", i, request);
        int n = snprintf(text, sizeof text, "HTTP/1.1 %d x\r\nContent-Length: %zu\r\n\r\n%s", a->status, strlen(a->body), a->body);
        (void)!write(fd, text, (size_t)n);
        close(fd);
        v->given++;
    }
    return NULL;
}

/* In the place of task_child.c's. */
static char told[256];

void task_child_tell(const char *step, uint64_t done UNUSED, uint64_t total UNUSED)
{
    snprintf(told, sizeof told, "%s", step);
}

/* All answers were wanted, and nothing else. */
static int begin(const struct answer *answers, unsigned count, struct error *err)
{
    struct vmm v = {.answers = answers, .count = count};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct vmm_backup_order order = {.name = NULL};
    struct vmm_backup images = {.phase = 0};
    char directory[] = "/tmp/vmm-images-XXXXXX";
    told[0] = '\0';
    assert_non_null(mkdtemp(directory));
    snprintf(address.sun_path, sizeof address.sun_path, "%s/control", directory);
    v.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool listens = bind(v.listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(v.listener, 4) == 0 &&
                   pthread_create(&v.thread, NULL, vmm_run, &v) == 0;
    OBJECT_TEXT(vmm_backup_order, &order, name, "b");
    OBJECT_TEXT(vmm_backup_order, &order, path, "/b.sock");
    int code = listens ? vmm_images_begin(address.sun_path, &order, &images, err) : -EIO;
    shutdown(v.listener, SHUT_RDWR); /* who waits for more waits for nothing */
    if (listens)
        pthread_join(v.thread, NULL);
    close(v.listener);
    unlink(address.sun_path);
    rmdir(directory);
    OBJECT_CLEAR(vmm_backup_order, &order);
    OBJECT_CLEAR(vmm_backup, &images);
    assert_true(listens);
    assert_string_equal(v.wrong, "");
    assert_int_equal(v.given, count);
    return code;
}

static void a_snapshot_is_waited_for(void **state UNUSED)
{
    static const struct answer answers[] = {NONE, REFUSED, BUSY, BUSY, IDLE, OPEN};
    struct error err;
    assert_int_equal(begin(answers, ARRAY_SIZE(answers), &err), 0);
    assert_non_null(strstr(told, "waiting for a snapshot"));
}

/* Between the refusal and the look at why; and there is another one then. */
static void one_that_has_just_ended(void **state UNUSED)
{
    static const struct answer answers[] = {NONE, REFUSED, IDLE, REFUSED, BUSY, IDLE, REFUSED, IDLE, OPEN};
    struct error err;
    assert_int_equal(begin(answers, ARRAY_SIZE(answers), &err), 0);
}

static void what_else_it_refuses_for_is_told(void **state UNUSED)
{
    static const struct answer conflict[] = {NONE, REFUSED, IDLE, REFUSED, IDLE}, invalid[] = {NONE, INVALID};
    struct error err;
    assert_int_equal(begin(conflict, ARRAY_SIZE(conflict), &err), -EIO);
    assert_string_equal(err.text, "its VMM: not now");
    assert_int_equal(err.kind, ERROR_CONFLICT);
    assert_int_equal(begin(invalid, ARRAY_SIZE(invalid), &err), -EIO);
    assert_string_equal(err.text, "its VMM: not so");
    assert_string_equal(told, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_snapshot_is_waited_for),
        cmocka_unit_test(one_that_has_just_ended),
        cmocka_unit_test(what_else_it_refuses_for_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
