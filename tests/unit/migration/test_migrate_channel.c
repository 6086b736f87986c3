/* Descriptors that come before a stream: what is sent arrives, and of what else may come nothing is taken and nothing left open. */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "migration/migrate_channel.h"

static const bool never;

struct pair {
    struct migrate_channel source, target;
    unsigned open_before;
};

static unsigned open_count(void)
{
    unsigned count = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

static void pair_init(struct pair *p)
{
    int fds[2];
    p->open_before = open_count();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    migrate_channel_init(&p->source, fds[0], &never, 60000);
    migrate_channel_init(&p->target, fds[1], &never, 60000);
}

static void pair_finish(struct pair *p)
{
    migrate_channel_finish(&p->source);
    migrate_channel_finish(&p->target);
    assert_int_equal(open_count(), p->open_before);
}

/* As a source may that was not written by us: @count descriptors with @size bytes. */
static void send_raw(struct pair *p, const void *data, size_t size, size_t count)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = {0};
    struct iovec io = {.iov_base = (void *)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(count * sizeof(int));
        for (size_t i = 0; i < count; i++)
            memcpy(CMSG_DATA(rights) + i * sizeof(int), &p->source.fd, sizeof(int));
    }
    assert_int_equal(sendmsg(p->source.fd, &message, MSG_NOSIGNAL), size);
}

static void refused(const void *data, size_t size, size_t count)
{
    struct pair p;
    struct error err = {0};
    int fds[GUEST_HANDLES_MAX];
    size_t got = 77;
    pair_init(&p);
    send_raw(&p, data, size, count);
    assert_int_equal(migrate_channel_take_handles(&p.target, fds, &got, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "hands nothing over"));
    assert_int_equal(got, 77);
    pair_finish(&p);
}

static void what_is_handed_over_arrives(void **state)
{
    static const size_t counts[] = {1, 3, GUEST_HANDLES_MAX};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        struct pair p;
        int fds[GUEST_HANDLES_MAX], taken[GUEST_HANDLES_MAX];
        struct stat mine, theirs;
        size_t got;
        uint8_t byte;
        pair_init(&p);
        for (size_t k = 0; k < counts[i]; k++)
            fds[k] = p.source.fd;
        assert_int_equal(migrate_channel_put_handles(&p.source, fds, counts[i], NULL), 0);
        assert_int_equal(migrate_channel_write(&p.source, "x", 1, NULL), 0); /* what follows is the stream's */
        assert_int_equal(migrate_channel_take_handles(&p.target, taken, &got, NULL), 0);
        assert_int_equal(got, counts[i]);
        assert_int_equal(fstat(p.source.fd, &mine), 0);
        for (size_t k = 0; k < got; k++) {
            assert_int_equal(fstat(taken[k], &theirs), 0);
            assert_int_equal(theirs.st_ino, mine.st_ino);
            close(taken[k]);
        }
        assert_int_equal(migrate_channel_read(&p.target, &byte, 1, NULL), 1);
        assert_int_equal(byte, 'x');
        pair_finish(&p);
    }
}

static void anything_else_is_refused_and_closed(void **state)
{
    uint64_t good[3] = {htole64(MIGRATE_HANDLES_MAGIC), htole64(2), 0}, wrong[2] = {htole64(1), htole64(2)};
    uint64_t many[2] = {htole64(MIGRATE_HANDLES_MAGIC), htole64(GUEST_HANDLES_MAX + 1)};
    uint64_t none[2] = {htole64(MIGRATE_HANDLES_MAGIC), 0};
    (void)state;
    refused(good, 16, 0); /* none come with it */
    refused(good, 16, 1);
    refused(good, 16, 3);
    refused(good, 15, 2);
    refused(wrong, 16, 2);
    refused(many, 16, GUEST_HANDLES_MAX + 1);
    refused(none, 16, 0);
    refused("a stream as it begins in a migration", 36, 0);
}

static void a_source_that_ends_is_noticed(void **state)
{
    struct pair p;
    int fds[GUEST_HANDLES_MAX];
    size_t got;
    (void)state;
    pair_init(&p);
    migrate_channel_finish(&p.source);
    assert_true(migrate_channel_take_handles(&p.target, fds, &got, NULL) < 0);
    pair_finish(&p);
    pair_init(&p);
    p.target.patience_ms = 1;
    assert_int_equal(migrate_channel_take_handles(&p.target, fds, &got, NULL), -ETIMEDOUT);
    pair_finish(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_handed_over_arrives),
        cmocka_unit_test(anything_else_is_refused_and_closed),
        cmocka_unit_test(a_source_that_ends_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
