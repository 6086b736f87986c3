/* What a host knows of its networks outlives the controllers' orders as long as a VM needs it. The kernel is not asked:
 * that is tests/process/test_network.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "compute/agent/host_network.h"

static struct node_orders orders_of(const char *json)
{
    struct node_orders orders;
    struct error err;
    if (OBJECT_DECODE(node_orders, json, strlen(json), OBJECT_STORED, &orders, &err) < 0)
        fail_msg("%s at %s", err.text, err.field);
    return orders;
}

static void learn(struct host_network *hn, const char *json, bool changes)
{
    struct node_orders orders = orders_of(json);
    bool changed = false;
    assert_int_equal(host_network_learn(hn, &orders, &changed, NULL), 0);
    assert_int_equal(changed, changes);
    OBJECT_CLEAR(node_orders, &orders);
}

#define ID "9b2f1c7e-0d3a-4f60-8a55-1f2e3d4c5b6a"
#define HEAD "{\"index\":7,\"generation\":1,\"vms\":[]"
#define FULL                                                                                                         \
    HEAD ",\"networks\":[{\"id\":\"" ID "\",\"name\":\"lan\"}],\"security_groups\":["                                \
         "{\"name\":\"guard\",\"rules\":[{\"direction\":\"outbound\",\"remote_group\":\"peers\"}]},"                    \
         "{\"name\":\"peers\",\"members\":[\"192.0.2.9\"]},{\"name\":\"other\"}]}"

static void what_a_vm_uses_stays(void **state)
{
    (void)state;
    static const char vm[] = "{\"id\":\"" ID "\",\"name\":\"a\",\"nics\":[{\"network\":\"lan\",\"mac\":\"52:54:00:00:00:01\","
                             "\"security_groups\":[\"guard\"]}]}";
    char dir[] = "/tmp/host-network.XXXXXX", path[64];
    struct host_network *hn;
    struct vm_order order;
    struct error err;
    char *text;
    size_t size;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/networks.json", dir);
    assert_int_equal(host_network_create(dir, &hn, NULL), 0);
    learn(hn, FULL, true);
    if (OBJECT_DECODE(vm_order, vm, strlen(vm), OBJECT_LENIENT, &order, &err) < 0)
        fail_msg("%s at %s", err.text, err.field);
    host_network_adopt(hn, &order);
    OBJECT_CLEAR(vm_order, &order);
    /* The VM is another host's by now, and still runs here: what it may send must not widen. */
    learn(hn, HEAD "}", true);
    assert_int_equal(file_read(path, 65536, &text, &size, NULL), 0);
    assert_non_null(memmem(text, size, "\"lan\"", 5));
    assert_non_null(memmem(text, size, "\"name\":\"guard\"", 14));
    assert_non_null(memmem(text, size, "\"name\":\"peers\"", 14));
    assert_null(memmem(text, size, "\"name\":\"other\"", 14));
    free(text);
    learn(hn, HEAD "}", false);
    host_network_destroy(hn);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_a_vm_uses_stays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
