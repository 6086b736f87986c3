/* Frames of log entries and snapshots, the transport's preamble and addresses: exact round trips, golden bytes, and
 * every single damaged or missing byte refused (inputs are exact-size copies, so that ASan sees a read too far). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_transport.h"

#include <errno.h>
#include <string.h>

static struct bytes_writer make_group(void)
{
    struct bytes_writer out = {0};

    raft_group_begin(&out, 0x1122334455667788, 7);
    raft_group_add(&out, "hello", 5);
    raft_group_add(&out, "12345678", 8);
    raft_group_end(&out, 2);
    return out;
}

/* 0 where the whole group reads well. */
static int read_group(const void *data, size_t size, unsigned *ret_count)
{
    struct raft_group group;
    const void *command;
    size_t command_size;
    unsigned count = 0;
    int rv = raft_group_open(&group, data, size);

    while (rv == 0 && (rv = raft_group_next(&group, &command, &command_size)) > 0) {
        count++;
        rv = 0;
        if (count > 2)
            return -E2BIG;
        assert_memory_equal(command, count == 1 ? "hello" : "12345678", command_size);
        if (count == 2 && raft_group_next(&group, &command, &command_size) == 0)
            break;
    }
    *ret_count = count;
    return rv;
}

static void test_group(void **state UNUSED)
{
    struct bytes_writer out = make_group();
    struct raft_group group;
    const void *command;
    size_t size;

    assert_int_equal(out.size, RAFT_GROUP_HEADER_BYTES + raft_group_command_bytes(5) + raft_group_command_bytes(8));
    assert_int_equal(out.size % 8, 0);
    assert_memory_equal(out.data, "DRVG\1\0\0\0\2\0\0\0", 12);
    assert_int_equal(raft_group_open(&group, out.data, out.size), 0);
    assert_true(group.proposer == 0x1122334455667788 && group.sequence == 7 && group.count == 2);
    assert_int_equal(raft_group_next(&group, &command, &size), 1);
    assert_int_equal(size, 5);
    assert_memory_equal(command, "hello", 5);
    assert_int_equal(raft_group_next(&group, &command, &size), 1);
    assert_int_equal(size, 8);
    assert_int_equal(raft_group_next(&group, &command, &size), 0);
    bytes_writer_finish(&out);
}

static void test_damaged_group_is_refused(void **state UNUSED)
{
    struct bytes_writer out = make_group();
    unsigned count, refused = 0;

    for (size_t size = 0; size < out.size; size++) { /* cut short */
        uint8_t *copy = malloc(size + 1);

        memcpy(copy, out.data, size);
        copy = realloc(copy, size > 0 ? size : 1);
        assert_true(read_group(copy, size, &count) < 0 || count < 2);
        free(copy);
    }
    for (size_t at = 0; at < out.size; at++) { /* one byte changed */
        uint8_t *copy = malloc(out.size);

        memcpy(copy, out.data, out.size);
        copy[at] ^= 0x41;
        refused += read_group(copy, out.size, &count) < 0;
        free(copy);
    }
    assert_int_equal(refused, out.size - 3); /* all but the padding behind "hello" */
    out.data[4] = 2;                         /* a newer version, its checksum right */
    raft_group_end(&out, 2);
    assert_int_equal(read_group(out.data, out.size, &count), -EPROTONOSUPPORT);
    bytes_writer_finish(&out);
}

static void test_snapshot(void **state UNUSED)
{
    struct bytes_writer out = {0};
    const void *found;
    size_t size;
    uint64_t index;

    raft_snapshot_begin(&out);
    bytes_put(&out, "the state", 9);
    raft_snapshot_end(&out, 42);
    assert_int_equal(out.size, 56);
    assert_memory_equal(out.data, "DRVS\1\0\50\0\52\0\0\0\0\0\0\0\11\0\0\0\0\0\0\0", 24);
    assert_int_equal(raft_snapshot_open(out.data, out.size, &index, &found, &size), 0);
    assert_int_equal(index, 42);
    assert_int_equal(size, 9);
    assert_memory_equal(found, "the state", 9);
    for (size_t cut = 0; cut < out.size; cut++) {
        uint8_t *copy = malloc(cut > 0 ? cut : 1);

        memcpy(copy, out.data, cut);
        assert_int_equal(raft_snapshot_open(copy, cut, &index, &found, &size), -EBADMSG);
        free(copy);
    }
    for (size_t at = 0; at < RAFT_SNAPSHOT_HEADER_BYTES + 9 - 8; at++) {
        if (at >= 36 && at < 40)
            continue; /* unused */
        out.data[at] ^= 0x10;
        assert_true(raft_snapshot_open(out.data, out.size, &index, &found, &size) < 0);
        out.data[at] ^= 0x10;
    }
    bytes_writer_finish(&out);
}

static void test_preamble(void **state UNUSED)
{
    struct bytes_writer out = {0};
    char address[RAFT_TRANSPORT_ADDRESS_MAX];
    uint64_t id, epoch;

    bytes_put_u64(&out, 3);
    bytes_put_u64(&out, 3);
    bytes_put_u64(&out, 7);
    bytes_put_u64(&out, 14);
    bytes_put_text(&out, "127.0.0.1:7444and what follows");
    for (size_t size = 0; size < 46; size++)
        assert_int_equal(raft_transport_parse_preamble(out.data, size, &id, &epoch, address), 0);
    assert_int_equal(raft_transport_parse_preamble(out.data, out.size, &id, &epoch, address), 46);
    assert_int_equal(id, 3);
    assert_int_equal(epoch, 7);
    assert_string_equal(address, "127.0.0.1:7444");

    out.data[24] = 0; /* no address; then one of 256 bytes and more; then another version; then no id */
    assert_int_equal(raft_transport_parse_preamble(out.data, out.size, &id, &epoch, address), -EBADMSG);
    out.data[25] = 1;
    assert_int_equal(raft_transport_parse_preamble(out.data, out.size, &id, &epoch, address), -EBADMSG);
    out.data[31] = 0xff;
    assert_int_equal(raft_transport_parse_preamble(out.data, out.size, &id, &epoch, address), -EBADMSG);
    memcpy(out.data + 24, "\16\0\0\0\0\0\0\0", 8);
    out.data[34] = '\0';
    assert_int_equal(raft_transport_parse_preamble(out.data, out.size, &id, &epoch, address), -EBADMSG);
    out.data[0] = 2;
    assert_int_equal(raft_transport_parse_preamble(out.data, 32, &id, &epoch, address), -EBADMSG);
    out.data[0] = 3;
    out.data[8] = 0;
    assert_int_equal(raft_transport_parse_preamble(out.data, 32, &id, &epoch, address), -EBADMSG);
    bytes_writer_finish(&out);
}

static void test_address(void **state UNUSED)
{
    static const char *const bad[] = {"",    "host",   "host:",      ":7444", "host:port", "host:70000",
                                      "1:2:3", "[::1]", "[]:1", "host:123456"};
    char host[RAFT_TRANSPORT_ADDRESS_MAX], port[8], longest[400];
    struct error err;

    assert_int_equal(raft_transport_parse_address("c1.example.org:7444", host, port, &err), 0);
    assert_string_equal(host, "c1.example.org");
    assert_string_equal(port, "7444");
    assert_int_equal(raft_transport_parse_address("[2001:db8::1]:65535", host, port, &err), 0);
    assert_string_equal(host, "2001:db8::1");
    assert_string_equal(port, "65535");
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(raft_transport_parse_address(bad[i], host, port, &err), -EINVAL);
    memset(longest, 'a', sizeof(longest));
    strcpy(longest + 300, ":1");
    assert_int_equal(raft_transport_parse_address(longest, host, port, &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group),    cmocka_unit_test(test_damaged_group_is_refused),
        cmocka_unit_test(test_snapshot), cmocka_unit_test(test_preamble),
        cmocka_unit_test(test_address),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
