/* DHCP questions and answers: what is answered with what, what is not answered, and frames that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "compute/agent/dhcp_packet.h"
#include "compute/agent/dhcp_server.h"
#include "tests/unit/unit_seed.h"

enum { BOOTP = 42, OPTIONS = BOOTP + 240 };

static const struct dhcp_lease lease = {
    .mac = {0x52, 0x54, 0, 1, 2, 3},
    .ip = {192, 0, 2, 10},
    .netmask = {255, 255, 255, 0},
    .server = {192, 0, 2, 1},
    .gateway = {192, 0, 2, 1},
    .dns = {{192, 0, 2, 53}, {192, 0, 2, 54}},
    .dns_count = 2,
    .mtu = 1400,
    .hostname = "web1",
};

static void put16(uint8_t *at, unsigned v)
{
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

/* A question of @type with @options behind the type; returns its size. */
static size_t question(uint8_t *frame, uint8_t type, const char *options, size_t options_size)
{
    size_t bootp = 240 + 3 + options_size + 1;
    memset(frame, 0, OPTIONS + 3 + options_size + 1);
    memset(frame, 255, 6);
    memcpy(frame + 6, lease.mac, 6);
    put16(frame + 12, 0x0800);
    frame[14] = 0x45;
    put16(frame + 16, (unsigned)(28 + bootp));
    frame[23] = 17;
    memset(frame + 30, 255, 4);
    put16(frame + 34, 68);
    put16(frame + 36, 67);
    put16(frame + 38, (unsigned)(8 + bootp));
    memcpy(frame + BOOTP, "\1\1\6\0\xde\xad\xbe\xef", 8);
    memcpy(frame + BOOTP + 28, lease.mac, 6);
    memcpy(frame + BOOTP + 236, "\x63\x82\x53\x63\x35\1", 6);
    frame[OPTIONS + 2] = type;
    memcpy(frame + OPTIONS + 3, options, options_size);
    frame[OPTIONS + 3 + options_size] = 255;
    return OPTIONS + 3 + options_size + 1;
}

/* Option @code of an answer, or NULL. */
static const uint8_t *option(const uint8_t *answer, size_t size, uint8_t code)
{
    for (size_t at = OPTIONS; at < size && answer[at] != 255; at += 2u + answer[at + 1])
        if (answer[at] == code)
            return answer + at + 2;
    return NULL;
}

static unsigned sum16(const uint8_t *at, size_t size, unsigned sum)
{
    for (size_t i = 0; i < size; i += 2)
        sum += (unsigned)at[i] << 8 | (i + 1 < size ? at[i + 1] : 0u);
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static size_t ask(const uint8_t *frame, size_t size, uint8_t answer[DHCP_ANSWER_BYTES_MAX])
{
    uint8_t *exact = malloc(size > 0 ? size : 1); /* of that very size: a sanitizer sees one byte too far */
    memcpy(exact, frame, size);
    size_t n = dhcp_answer(&lease, exact, size, answer);
    free(exact);
    return n;
}

static void discover(void **test UNUSED)
{
    uint8_t frame[600], answer[DHCP_ANSWER_BYTES_MAX];
    size_t n = ask(frame, question(frame, 1, "", 0), answer);
    assert_true(n >= 342 && n <= DHCP_ANSWER_BYTES_MAX);
    assert_memory_equal(answer, lease.mac, 6); /* it did not ask for a broadcast */
    assert_memory_not_equal(answer + 6, lease.mac, 6);
    assert_int_equal(sum16(answer + 14, 20, 0), 0xffff);
    assert_int_equal(sum16(answer + 34, n - 34, sum16(answer + 26, 8, 17 + (unsigned)(n - 34))), 0xffff);
    assert_memory_equal(answer + BOOTP + 4, "\xde\xad\xbe\xef", 4);
    assert_memory_equal(answer + BOOTP + 16, lease.ip, 4);
    assert_int_equal(*option(answer, n, 53), 2);
    assert_memory_equal(option(answer, n, 1), lease.netmask, 4);
    assert_memory_equal(option(answer, n, 3), lease.gateway, 4);
    assert_memory_equal(option(answer, n, 6), lease.dns, 8);
    assert_memory_equal(option(answer, n, 12), "web1", 4);
    assert_memory_equal(option(answer, n, 26), "\x05\x78", 2);
    assert_memory_equal(option(answer, n, 51), "\x00\x01\x51\x80", 4);
    assert_memory_equal(option(answer, n, 54), lease.server, 4);
    size_t size = question(frame, 1, "", 0);
    frame[BOOTP + 10] = 0x80;
    n = ask(frame, size, answer);
    assert_memory_equal(answer, "\xff\xff\xff\xff\xff\xff", 6);
    assert_memory_equal(answer + 30, "\xff\xff\xff\xff", 4);
}

static void request(void **test UNUSED)
{
    uint8_t frame[600], answer[DHCP_ANSWER_BYTES_MAX];
    size_t n = ask(frame, question(frame, 3, "\x32\4\xc0\0\2\x0a\x36\4\xc0\0\2\1", 12), answer);
    assert_int_equal(*option(answer, n, 53), 5);
    n = ask(frame, question(frame, 3, "\x32\4\xc0\0\2\x0b", 6), answer);
    assert_int_equal(*option(answer, n, 53), 6); /* of another address: no */
    assert_memory_equal(answer + BOOTP + 16, "\0\0\0\0", 4);
    assert_null(option(answer, n, 51));
    assert_int_equal(ask(frame, question(frame, 3, "\x32\4\xc0\0\2\x0a\x36\4\xc0\0\2\2", 12), answer), 0); /* of another server */
    size_t size = question(frame, 3, "", 0); /* renewal: by its address */
    memcpy(frame + BOOTP + 12, lease.ip, 4);
    n = ask(frame, size, answer);
    assert_int_equal(*option(answer, n, 53), 5);
    size = question(frame, 8, "", 0); /* INFORM */
    memcpy(frame + BOOTP + 12, lease.ip, 4);
    n = ask(frame, size, answer);
    assert_int_equal(*option(answer, n, 53), 5);
    assert_null(option(answer, n, 51));
    assert_memory_equal(answer + BOOTP + 16, "\0\0\0\0", 4);
    assert_int_equal(ask(frame, question(frame, 7, "", 0), answer), 0); /* RELEASE: it is the NIC's all the same */
    assert_int_equal(ask(frame, question(frame, 2, "", 0), answer), 0); /* an OFFER is no question */
}

static void not_answered(void **test UNUSED)
{
    static const struct {
        size_t at;
        uint8_t value;
        const char *what;
    } lies[] = {
        {6, 0x02, "another MAC address"},   {12, 0x86, "not IPv4"},           {14, 0x65, "not version 4"},
        {14, 0x44, "a header too short"},   {14, 0x4f, "a header too long"},  {16, 0xff, "longer than the frame"},
        {20, 0x20, "more fragments"},       {21, 0x01, "a later fragment"},   {23, 6, "not UDP"},
        {37, 68, "another port"},           {38, 0xff, "UDP too long"},       {BOOTP, 2, "an answer"},
        {BOOTP + 2, 7, "a longer address"}, {BOOTP + 28, 0, "another's"},     {BOOTP + 24, 1, "through a relay"},
        {BOOTP + 236, 0, "no cookie"},      {OPTIONS + 1, 200, "an option that ends behind the end"},
    };
    uint8_t frame[600], answer[DHCP_ANSWER_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
        size_t size = question(frame, 1, "", 0);
        frame[lies[i].at] = lies[i].value;
        if (ask(frame, size, answer) != 0)
            fail_msg("answered: %s", lies[i].what);
    }
    /* the last option says that it is longer than the frame */
    assert_int_equal(ask(frame, question(frame, 1, "\x32\4\xc0", 3), answer), 0);
    size_t size = question(frame, 1, "", 0);
    for (size_t cut = 0; cut < size; cut++)
        assert_int_equal(ask(frame, cut, answer), 0);
}

static void random_frames(void **test UNUSED)
{
    unsigned seed = (unsigned)unit_seed();
    uint8_t frame[DHCP_FRAME_BYTES_MAX + 10], answer[DHCP_ANSWER_BYTES_MAX];
    for (unsigned i = 0; i < 200000; i++) {
        size_t size = question(frame, (uint8_t)(rand_r(&seed) % 10), "\x32\4\xc0\0\2\x0a\x0c\3one\x37\2\1\3", 15);
        for (unsigned k = (unsigned)rand_r(&seed) % 4; k > 0; k--)
            frame[(unsigned)rand_r(&seed) % size] = (uint8_t)rand_r(&seed);
        size_t n = ask(frame, rand_r(&seed) % 4 == 0 ? (unsigned)rand_r(&seed) % size : size, answer);
        assert_true(n == 0 || (n >= 342 && n <= sizeof answer));
    }
}

static void leases(void **test UNUSED)
{
    struct vm_order order = {.name = (char *)"db-7"};
    struct vm_nic nic = {.mac = (char *)"52:54:00:AB:cd:ef"};
    struct network network = {.ipv4_subnet = (char *)"10.0.0.0/22", .mtu = 1400};
    char *ips[] = {(char *)"2001:db8::1", (char *)"10.0.1.7"}, *dns[] = {(char *)"2001:db8::53", (char *)"10.0.0.53"};
    struct dhcp_lease got;
    assert_false(dhcp_server_lease(&order, &nic, &network, &got));
    nic.ips = (struct string_list){ips, 2};
    network.dns_servers = (struct string_list){dns, 2};
    assert_true(dhcp_server_lease(&order, &nic, &network, &got));
    assert_memory_equal(got.mac, "\x52\x54\0\xab\xcd\xef", 6);
    assert_memory_equal(got.ip, "\x0a\0\1\7", 4);
    assert_memory_equal(got.netmask, "\xff\xff\xfc\0", 4);
    assert_memory_equal(got.server, "\x0a\0\0\0", 4); /* no gateway */
    assert_memory_equal(got.gateway, "\0\0\0\0", 4);
    assert_int_equal(got.dns_count, 1);
    assert_string_equal(got.hostname, "db-7");
    network.ipv4_gateway = (char *)"10.0.0.1";
    assert_true(dhcp_server_lease(&order, &nic, &network, &got));
    assert_memory_equal(got.server, "\x0a\0\0\1", 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(discover), cmocka_unit_test(request), cmocka_unit_test(not_answered),
                                       cmocka_unit_test(random_frames), cmocka_unit_test(leases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
