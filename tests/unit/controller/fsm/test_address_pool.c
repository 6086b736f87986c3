/* Networks, security groups and addresses: what is refused, who gets which address, and that it is given back. */
#include "tests/unit/controller/fsm_fixture.h"

#define VM "\"image\":\"tiny\",\"flavor\":\"small\""
#define LAN "\"nics\":[{\"network\":\"lan\"}]"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 65536);
    fixture_must(f, ROUTE_ID_network_create, NULL,
                 "{\"name\":\"lan\",\"ipv4_subnet\":\"192.0.2.0/24\",\"ipv4_gateway\":\"192.0.2.1\","
                 "\"pools\":[{\"first\":\"192.0.2.0\",\"last\":\"192.0.2.4\"}]}");
    fixture_must(f, ROUTE_ID_security_group_create, NULL,
                 "{\"name\":\"web\",\"rules\":[{\"direction\":\"inbound\",\"protocol\":\"tcp\",\"port_first\":80},"
                 "{\"direction\":\"inbound\",\"remote_group\":\"web\"}]}");
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static const struct vm_nic *nic_of(struct fixture *f, const char *vm)
{
    return fixture_vm(f, vm)->nics.items;
}

static void refusals(void **test)
{
    struct fixture *f = *test;
    static const struct {
        enum route_id route;
        const char *id, *body;
        enum error_kind kind;
        const char *field;
    } cases[] = {
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"192.0.2.1/24\"}", ERROR_INVALID, "/ipv4_subnet"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"2001:db8::/64\"}", ERROR_INVALID, "/ipv4_subnet"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv6_subnet\":\"192.0.2.0/24\"}", ERROR_INVALID, "/ipv6_subnet"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_gateway\":\"192.0.2.1\"}", ERROR_INVALID, "/ipv4_gateway"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"192.0.2.0/24\",\"ipv4_gateway\":\"192.0.3.1\"}", ERROR_INVALID, "/ipv4_gateway"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"192.0.2.0/24\",\"ipv4_gateway\":\"192.0.2.255\"}", ERROR_INVALID, "/ipv4_gateway"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"192.0.2.0/24\",\"pools\":[{\"first\":\"192.0.2.9\",\"last\":\"192.0.2.8\"}]}", ERROR_INVALID, "/pools/0/first"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"ipv4_subnet\":\"192.0.2.0/24\",\"pools\":[{\"first\":\"192.0.2.9\",\"last\":\"192.0.3.8\"}]}", ERROR_INVALID, "/pools/0/last"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"vlan\":42}", ERROR_INVALID, "/uplink"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"vlan\":4095,\"uplink\":\"eth1\"}", ERROR_INVALID, "/vlan"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"dhcp\":true}", ERROR_INVALID, "/dhcp"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"n\",\"dns_servers\":[\"one\"]}", ERROR_INVALID, "/dns_servers/0"},
        {ROUTE_ID_network_create, NULL, "{\"name\":\"lan\"}", ERROR_EXISTS, "/name"},
        {ROUTE_ID_network_update, "lan", "{\"ipv4_subnet\":\"10.0.0.0/8\"}", ERROR_INVALID, "/ipv4_subnet"},
        {ROUTE_ID_network_update, "lan", "{\"pools\":[{\"first\":\"10.0.0.1\",\"last\":\"10.0.0.2\"}]}", ERROR_INVALID, "/pools/0/first"},
        {ROUTE_ID_security_group_create, NULL, "{\"name\":\"g\",\"rules\":[{\"protocol\":\"tcp\"}]}", ERROR_INVALID, "/rules/0/direction"},
        {ROUTE_ID_security_group_create, NULL, "{\"name\":\"g\",\"rules\":[{\"direction\":\"inbound\",\"port_first\":80}]}", ERROR_INVALID, "/rules/0/port_first"},
        {ROUTE_ID_security_group_create, NULL, "{\"name\":\"g\",\"rules\":[{\"direction\":\"inbound\",\"protocol\":\"udp\",\"port_first\":80,\"port_last\":79}]}", ERROR_INVALID, "/rules/0/port_last"},
        {ROUTE_ID_security_group_create, NULL, "{\"name\":\"g\",\"rules\":[{\"direction\":\"inbound\",\"remote_group\":\"none\"}]}", ERROR_NOT_FOUND, "/rules/0/remote_group"},
        {ROUTE_ID_security_group_create, NULL, "{\"name\":\"g\",\"rules\":[{\"direction\":\"inbound\",\"remote_group\":\"web\",\"remote\":\"10.0.0.0/8\"}]}", ERROR_INVALID, "/rules/0/remote_group"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{}]}", ERROR_INVALID, "/nics/0/network"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"bridge\":\"br0\"}]}", ERROR_INVALID, "/nics/0/network"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"none\"}]}", ERROR_NOT_FOUND, "/nics/0/network"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"security_groups\":[\"none\"]}]}", ERROR_NOT_FOUND, "/nics/0/security_groups/0"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.3.7\"]}]}", ERROR_INVALID, "/nics/0/ips/0"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.1\"]}]}", ERROR_INVALID, "/nics/0/ips/0"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.255\"]}]}", ERROR_INVALID, "/nics/0/ips/0"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.9\"]},{\"network\":\"lan\",\"ips\":[\"192.0.2.9\"]}]}", ERROR_EXISTS, "/nics/1/ips/0"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"allocated\":true}]}", ERROR_INVALID, "/nics/0/allocated"},
    };
    uint64_t index = state_index(f->state);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        int rc = fixture_do(f, cases[i].route, cases[i].id, cases[i].body);
        if (rc >= 0 || f->error.kind != cases[i].kind || strcmp(f->error.field, cases[i].field) != 0)
            fail_msg("case %u: %d, kind %s, field '%s': %s", i, rc, error_kind_info(f->error.kind)->code, f->error.field, f->error.text);
    }
    assert_int_equal(state_index(f->state), index);
}

static void the_lowest_free_one(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM "," LAN "}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.3\"]}]}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"c\"," VM "," LAN "}");
    assert_string_equal(nic_of(f, "a")->ips.items[0], "192.0.2.2"); /* .0 is the network's, .1 the gateway */
    assert_true(nic_of(f, "a")->allocated);
    assert_string_equal(nic_of(f, "b")->ips.items[0], "192.0.2.3");
    assert_false(nic_of(f, "b")->allocated);
    assert_string_equal(nic_of(f, "c")->ips.items[0], "192.0.2.4");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\"," VM "," LAN "}"), -ENOSPC);
    assert_string_equal(f->error.field, "/nics/0/network");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.3\"]}]}"), -EEXIST);
    /* outside of the pool is fine when named */
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"d\"," VM ",\"nics\":[{\"network\":\"lan\",\"ips\":[\"192.0.2.77\"]}]}");
    /* given back once its host holds nothing of it */
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"e\"," VM "," LAN "}");
    assert_string_equal(nic_of(f, "e")->ips.items[0], "192.0.2.2");
}

/* Two requests decided on the same state: both are answered, with different addresses. */
static void decided_at_the_same_time(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer commands[2] = {{0}};
    for (unsigned i = 0; i < 2; i++) {
        const char *body = i == 0 ? "{\"name\":\"a\"," VM "," LAN "}" : "{\"name\":\"b\"," VM "," LAN "}";
        struct decision_context context = fixture_context(f);
        struct vm vm;
        assert_int_equal(OBJECT_DECODE(vm, body, strlen(body), OBJECT_CREATE, &vm, &f->error), 0);
        decision_finish(&f->decision);
        assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &f->decision, &f->error), 0);
        OBJECT_CLEAR(vm, &vm);
        commands[i] = f->decision.command;
        f->decision.command = (struct bytes_writer){0};
    }
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(fixture_apply(f, &commands[i]), 0);
        bytes_writer_finish(&commands[i]);
    }
    assert_string_equal(nic_of(f, "a")->ips.items[0], "192.0.2.2");
    assert_string_equal(nic_of(f, "b")->ips.items[0], "192.0.2.3");
}

static void both_families(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_network_create, NULL,
                 "{\"name\":\"six\",\"ipv4_subnet\":\"10.0.0.0/30\",\"ipv6_subnet\":\"2001:db8::/64\",\"ipv6_gateway\":\"2001:DB8:0::1\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"six\"},{\"network\":\"six\"}]}");
    const struct vm_nic *nics = nic_of(f, "a");
    assert_string_equal(nics[0].ips.items[0], "10.0.0.1");
    assert_string_equal(nics[0].ips.items[1], "2001:db8::2");
    assert_string_equal(nics[1].ips.items[0], "10.0.0.2");
    assert_string_equal(nics[1].ips.items[1], "2001:db8::3");
    assert_int_equal(fixture_do(f, ROUTE_ID_network_update, "six", "{\"ipv4_gateway\":\"10.0.0.2\"}"), -EEXIST);
    assert_int_equal(fixture_do(f, ROUTE_ID_network_update, "six", "{\"ipv6_gateway\":\"2001:db8:0::3\"}"), -EEXIST);
    assert_true(fixture_get(f, object_kind_NETWORK, "six")->network->dhcp);
}

static void what_is_used_stays(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"nics\":[{\"network\":\"lan\",\"security_groups\":[\"web\"]}]}");
    assert_int_equal(fixture_do(f, ROUTE_ID_network_delete, "lan", NULL), -EBUSY);
    assert_int_equal(f->error.kind, ERROR_IN_USE);
    assert_int_equal(fixture_do(f, ROUTE_ID_security_group_delete, "web", NULL), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_network_update, "lan", "{\"name\":\"wan\"}"), -EBUSY);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_network_delete, "lan", NULL);
    /* another group's rule names it; its own does not keep it */
    fixture_must(f, ROUTE_ID_security_group_create, NULL, "{\"name\":\"db\",\"rules\":[{\"direction\":\"inbound\",\"remote_group\":\"web\"}]}");
    assert_int_equal(fixture_do(f, ROUTE_ID_security_group_delete, "web", NULL), -EBUSY);
    fixture_must(f, ROUTE_ID_security_group_delete, "db", NULL);
    fixture_must(f, ROUTE_ID_security_group_delete, "web", NULL);
}

static void hosts_are_told(void **test)
{
    struct fixture *f = *test;
    struct node_orders orders = {0};
    struct node_report report = {0};
    fixture_must(f, ROUTE_ID_network_create, NULL, "{\"name\":\"other\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM ",\"hostname\":\"alpha\",\"nics\":[{\"network\":\"lan\",\"security_groups\":[\"web\"]}]}");
    const struct record *host = fixture_get(f, object_kind_HOST, "n1");
    OBJECT_TEXT(node_report, &report, host, host->common->id);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    assert_int_equal(object_validate(&node_orders_desc, &orders, OBJECT_STORED, &f->error), 0);
    assert_int_equal(orders.networks.count, 1);
    assert_string_equal(((struct network *)orders.networks.items)->name, "lan");
    const struct group_order *group = orders.security_groups.items;
    assert_int_equal(orders.security_groups.count, 1);
    assert_int_equal(group->rules.count, 2);
    assert_int_equal(group->members.count, 1);
    assert_string_equal(group->members.items[0], "192.0.2.2");
    assert_string_equal(((struct vm_order *)orders.vms.items)->hostname, "alpha");
    OBJECT_CLEAR(node_orders, &orders);
    /* a change of a network or group, and a VM that comes, is news for the host */
    uint64_t before = state_host_orders_index(host);
    fixture_must(f, ROUTE_ID_network_update, "lan", "{\"mtu\":1400}");
    assert_true(state_host_orders_index(host) > before);
    before = state_host_orders_index(host);
    fixture_must(f, ROUTE_ID_security_group_update, "web", "{\"rules\":[{\"direction\":\"inbound\",\"remote_group\":\"web\"}]}");
    assert_true(state_host_orders_index(host) > before);
    before = state_host_orders_index(host);
    fixture_must(f, ROUTE_ID_network_update, "other", "{\"mtu\":1400}");
    assert_int_equal(state_host_orders_index(host), before);
    fixture_host(f, "n2", 65536);
    before = state_host_orders_index(host);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\"," VM ",\"pin\":\"n2\",\"nics\":[{\"network\":\"lan\",\"security_groups\":[\"web\"]}]}");
    assert_true(state_host_orders_index(host) > before);
    OBJECT_CLEAR(node_report, &report);
}

static void snapshots_keep_them(void **test)
{
    struct fixture *f = *test;
    struct state *read = NULL;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\"," VM "," LAN "}");
    struct bytes_writer bytes = fixture_snapshot(f->state);
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &read, &f->error), 0);
    assert_int_equal(check_state(read, &f->error), 0);
    fixture_same_bytes(f->state, read);
    f->twin = read;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\"," VM "," LAN "}");
    fixture_same_bytes(f->state, read);
    assert_string_equal(nic_of(f, "b")->ips.items[0], "192.0.2.3");
    bytes_writer_finish(&bytes);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(refusals),          TEST(the_lowest_free_one), TEST(decided_at_the_same_time), TEST(both_families),
        TEST(what_is_used_stays), TEST(hosts_are_told),      TEST(snapshots_keep_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
