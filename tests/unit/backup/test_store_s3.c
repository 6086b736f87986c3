/* Lists of servers that write times in their own ways: one on loopback answers each request with the same list. Signatures, errors and
 * retries are tried with a real server (tests/process/test_backup_s3.py). THREADED: it has a thread of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backup/store_s3.h"

#define WHOLE_MS INT64_C(1714557600000) /* 2024-05-01T10:00:00Z */

struct server {
    int fd;
    pthread_t thread;
    const char *times[8]; /* LastModified of p/packs/0, 1 ...; "": there is none */
};
struct seen {
    int64_t modified_ms[8];
    unsigned count;
};

static void answer(const struct server *s, int fd)
{
    char request[8192], list[4096];
    size_t size = 0;
    while (size < sizeof request - 1 && (size < 4 || memcmp(request + size - 4, "\r\n\r\n", 4) != 0))
        if (read(fd, request + size++, 1) != 1)
            return;
    int n = snprintf(list, sizeof list, "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>");
    for (unsigned i = 0; i < ARRAY_SIZE(s->times) && s->times[i] != NULL; i++) {
        n += snprintf(list + n, sizeof list - (size_t)n, "<Contents><Key>p/packs/%u</Key>", i);
        if (s->times[i][0] != '\0')
            n += snprintf(list + n, sizeof list - (size_t)n, "<LastModified>%s</LastModified>", s->times[i]);
        n += snprintf(list + n, sizeof list - (size_t)n, "<Size>%u</Size></Contents>", i + 1);
    }
    n += snprintf(list + n, sizeof list - (size_t)n, "</ListBucketResult>");
    dprintf(fd, "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n, list);
}

/* Until it is shut. */
static void *serve(void *arg)
{
    const struct server *s = arg;
    int fd;
    while ((fd = accept(s->fd, NULL, NULL)) >= 0) {
        answer(s, fd);
        close(fd);
    }
    return NULL;
}

static int on_entry(void *arg, const struct store_entry *entry)
{
    struct seen *seen = arg;
    char name[16];
    snprintf(name, sizeof name, "packs/%u", seen->count);
    assert_string_equal(entry->name, name);
    assert_int_equal(entry->size_bytes, seen->count + 1);
    seen->modified_ms[seen->count++] = entry->modified_ms;
    return 0;
}

static void list(struct server *s, struct seen *ret_seen)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    struct store *store;
    struct error err = {0};
    *ret_seen = (struct seen){0};
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(s->fd, 8), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&address, &length), 0);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
    CLEANUP_FREE char *location = xasprintf("s3://bucket/p?endpoint=http://127.0.0.1:%u", ntohs(address.sin_port));
    assert_int_equal(setenv("AWS_ACCESS_KEY_ID", "test", 1), 0);
    assert_int_equal(setenv("AWS_SECRET_ACCESS_KEY", "testing", 1), 0);
    assert_int_equal(setenv("no_proxy", "*", 1), 0);
    assert_int_equal(store_s3_create(location, &store, &err), 0);
    if (store_list(store, "packs/", on_entry, ret_seen, &err) < 0)
        fail_msg("%s", err.text);
    store_destroy(store);
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
}

/* RFC 3339 leaves open how many digits of a second there are. */
static void fractions_of_any_length(void **test UNUSED)
{
    struct server s = {.times = {"2024-05-01T10:00:00Z", "2024-05-01T10:00:00.1Z", "2024-05-01T10:00:00.12Z", "2024-05-01T10:00:00.123Z",
                                 "2024-05-01T10:00:00.123456789Z", "2024-05-01T10:00:00.000Z"}};
    const int64_t more[] = {0, 100, 120, 123, 123, 0};
    struct seen seen;
    list(&s, &seen);
    assert_int_equal(seen.count, ARRAY_SIZE(more));
    for (unsigned i = 0; i < seen.count; i++)
        assert_int_equal(seen.modified_ms[i], WHOLE_MS + more[i]);
}

/* What cannot be read is young, whatever is done with it: nothing goes for its age. And the list is one all the same. */
static void what_cannot_be_read_is_young(void **test UNUSED)
{
    struct server s = {.times = {"2024-05-01T10:00:00+00:00", "Wed, 01 May 2024 10:00:00 GMT", "", "1714557600", "2024-05-01T10:00:00.5",
                                 "2024-05-01T10:00:00Z"}};
    struct seen seen;
    list(&s, &seen);
    assert_int_equal(seen.count, 6);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(seen.modified_ms[i], STORE_TIME_UNKNOWN);
    assert_int_equal(seen.modified_ms[5], WHOLE_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fractions_of_any_length),
        cmocka_unit_test(what_cannot_be_read_is_young),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
