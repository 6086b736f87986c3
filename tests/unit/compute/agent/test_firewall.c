/* Packet rules as text: JSON, whole, the same for the same, one family at a time; and that nft takes it, where it may run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <string.h>

#include "compute/agent/firewall.h"

static struct group_order web;
static struct vm_nic nic, plain;

static int setup(void **test UNUSED)
{
    static const char group[] = "{\"name\":\"web\",\"rules\":["
                                "{\"direction\":\"inbound\",\"protocol\":\"tcp\",\"port_first\":80,\"port_last\":89},"
                                "{\"direction\":\"inbound\",\"remote_group\":\"web\"},"
                                "{\"direction\":\"inbound\",\"remote_group\":\"none\"},"
                                "{\"direction\":\"inbound\",\"protocol\":\"icmpv6\",\"remote\":\"2001:db8::/32\"},"
                                "{\"direction\":\"outbound\",\"protocol\":\"udp\",\"port_first\":53,\"remote\":\"10.0.0.0/8\"}],"
                                "\"members\":[\"192.0.2.10\",\"2001:db8::7\"]}";
    static const char full[] = "{\"network\":\"lan\",\"mac\":\"52:54:00:00:00:01\",\"ips\":[\"192.0.2.10\",\"2001:db8::7\"],\"security_groups\":[\"web\",\"gone\"]}";
    static const char bare[] = "{\"bridge\":\"br0\",\"mac\":\"52:54:00:00:00:02\"}";
    struct error err = {0};
    assert_int_equal(OBJECT_DECODE(group_order, group, strlen(group), OBJECT_STORED, &web, &err), 0);
    assert_int_equal(OBJECT_DECODE(vm_nic, full, strlen(full), OBJECT_STORED, &nic, &err), 0);
    assert_int_equal(OBJECT_DECODE(vm_nic, bare, strlen(bare), OBJECT_STORED, &plain, &err), 0);
    return 0;
}

static int teardown(void **test UNUSED)
{
    OBJECT_CLEAR(group_order, &web);
    OBJECT_CLEAR(vm_nic, &nic);
    OBJECT_CLEAR(vm_nic, &plain);
    return 0;
}

static struct firewall_input input_of(const struct firewall_nic *nics, size_t count, bool stateless)
{
    return (struct firewall_input){nics, count, &web, 1, stateless};
}

static json_t *parsed(const struct firewall_input *input, struct bytes_writer *out)
{
    json_error_t error;
    firewall_text(input, out);
    json_t *root = json_loadb((const char *)out->data, out->size, 0, &error);
    if (root == NULL)
        fail_msg("no JSON at %d: %s", error.position, error.text);
    return root;
}

/* Rules of chain @name that end in @verdict. */
static unsigned count_rules(json_t *root, const char *name, const char *verdict)
{
    unsigned count = 0;
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(root, "nftables"), i, item)
    {
        json_t *rule = json_object_get(json_object_get(item, "add"), "rule"), *expr = json_object_get(rule, "expr");
        const char *chain = json_string_value(json_object_get(rule, "chain"));
        json_t *last = json_array_get(expr, json_array_size(expr) - 1);
        count += chain != NULL && strcmp(chain, name) == 0 && json_object_get(last, verdict) != NULL;
    }
    return count;
}

static void whole_and_the_same(void **test UNUSED)
{
    const struct firewall_nic nics[] = {{"tap0", &nic, true, true}, {"tap1", &plain, false, false}};
    const struct firewall_input input = input_of(nics, 2, false);
    struct bytes_writer a = {0}, b = {0};
    json_t *root = parsed(&input, &a);
    firewall_text(&input, &b);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    /* http for two families, the group for two, ICMPv6 for one; a group that is not known gives nothing */
    assert_int_equal(count_rules(root, "t-tap0", "accept"), 2 + 1 + 2 + 2 + 1);
    assert_int_equal(count_rules(root, "f-tap0", "accept"), 4 + 1);
    assert_true(count_rules(root, "s-tap0", "drop") >= 9);
    assert_int_equal(count_rules(root, "t-tap1", "drop") + count_rules(root, "s-tap1", "drop"), 0);
    json_decref(root);
    bytes_writer_finish(&a);
    bytes_writer_finish(&b);
}

static void nothing_needs_nothing(void **test UNUSED)
{
    const struct firewall_nic nics[] = {{"tap1", &plain, false, false}};
    const struct firewall_input input = input_of(nics, 1, false);
    struct bytes_writer out = {0};
    json_t *root = parsed(&input, &out);
    assert_false(firewall_needed(&input));
    assert_int_equal(json_array_size(json_object_get(root, "nftables")), 2);
    json_decref(root);
    bytes_writer_finish(&out);
}

static void nft_takes_it(void **test UNUSED)
{
    const struct firewall_nic nics[] = {{"tap0", &nic, true, true}, {"tap1", &nic, true, false}};
    struct error err = {0};
    if (unshare(CLONE_NEWNET) < 0) {
        print_message("a network namespace needs root: not tried\n");
        skip();
    }
    for (unsigned stateless = 0; stateless < 2; stateless++) {
        struct firewall_input input = input_of(nics, 2, stateless);
        struct bytes_writer out = {0};
        firewall_text(&input, &out);
        int r = firewall_apply(out.data, out.size, &err);
        bytes_writer_finish(&out);
        if (r == -ENOENT) {
            print_message("nft is not installed: not tried\n");
            skip();
        }
        if (r < 0 && (stateless || strstr(err.text, "Protocol error") == NULL)) /* a kernel without conntrack on bridges */
            fail_msg("%s", err.text);
    }
    static const char wrong[] = "{\"nftables\":[{\"add\":{\"tabel\":{}}}]}";
    assert_int_equal(firewall_apply(wrong, strlen(wrong), &err), -EIO);
    assert_true(strlen(err.text) > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole_and_the_same), cmocka_unit_test(nothing_needs_nothing),
                                       cmocka_unit_test(nft_takes_it)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
