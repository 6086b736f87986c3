/* Requests that must be refused, with the field and the kind, and what is filled in for those that are not. */
#include "tests/unit/controller/fsm_fixture.h"

#include <strings.h>

#include "controller/fsm/mac_index.h"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_image_create, NULL,
                 "{\"name\":\"debian\",\"kind\":\"disk\",\"disk\":{\"url\":\"https://example.org/d.raw\",\"sha256\":\"" FIXTURE_SHA
                 "\",\"size_bytes\":2147483648}}");
    fixture_must(f, ROUTE_ID_flavor_create, NULL,
                 "{\"name\":\"large\",\"vcpus\":2,\"memory_bytes\":1073741824,\"disk_bytes\":10737418240}");
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
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
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"none\",\"flavor\":\"small\"}", ERROR_NOT_FOUND, "/image"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"none\"}", ERROR_NOT_FOUND, "/flavor"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\"}", ERROR_INVALID, "/vcpus"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1}", ERROR_INVALID, "/memory_bytes"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":16777217}", ERROR_INVALID, "/memory_bytes"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"vcpus\":2}", ERROR_INVALID, "/vcpus"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n7\"}", ERROR_NOT_FOUND, "/pin"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true}", ERROR_CONFLICT, "/ha"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"host\":\"n1\"}", ERROR_INVALID, "/host"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\"}]}", ERROR_INVALID, "/disks/0/size_bytes"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"image\":true}]}", ERROR_INVALID, "/disks/0/image"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"size_bytes\":1048576},{\"name\":\"d\",\"size_bytes\":1048576}]}", ERROR_INVALID, "/disks/1/name"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"size_bytes\":1048577}]}", ERROR_INVALID, "/disks/0/size_bytes"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"debian\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"image\":true,\"size_bytes\":1048576}]}", ERROR_INVALID, "/disks/0/size_bytes"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"debian\",\"flavor\":\"small\",\"disks\":[{\"name\":\"d\",\"image\":true},{\"name\":\"e\",\"image\":true}]}", ERROR_INVALID, "/disks/1/image"},
        {ROUTE_ID_vm_create, NULL, "{\"name\":\"01234567-0123-4123-8123-0123456789ab\",\"image\":\"tiny\",\"flavor\":\"small\"}", ERROR_INVALID, "/name"},
        {ROUTE_ID_vm_start, "none", NULL, ERROR_NOT_FOUND, ""},
        {ROUTE_ID_flavor_create, NULL, "{\"name\":\"small\",\"vcpus\":1,\"memory_bytes\":16777216}", ERROR_EXISTS, "/name"},
        {ROUTE_ID_flavor_create, NULL, "{\"name\":\"odd\",\"vcpus\":1,\"memory_bytes\":16777217}", ERROR_INVALID, "/memory_bytes"},
        {ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"kernel\"}", ERROR_INVALID, "/kernel"},
        {ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"disk\"}", ERROR_INVALID, "/disk"},
        {ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"kernel\",\"kernel\":{\"url\":\"https://example.org/k\",\"sha256\":\"" FIXTURE_SHA "\"},\"firmware\":\"bios\"}", ERROR_INVALID, "/firmware"},
        {ROUTE_ID_image_create, NULL, "{\"name\":\"i\",\"kind\":\"disk\",\"disk\":{\"url\":\"https://example.org/d\",\"sha256\":\"" FIXTURE_SHA "\"},\"cmdline\":\"quiet\"}", ERROR_INVALID, "/cmdline"},
        {ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"srv/backups\"}", ERROR_INVALID, "/location"},
        {ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"http://bucket\"}", ERROR_INVALID, "/location"},
        {ROUTE_ID_host_update, "n1", "{\"memory_reserve_bytes\":9007199254740992}", ERROR_INVALID, "/memory_reserve_bytes"},
        {ROUTE_ID_controller_remove, "c1", NULL, ERROR_CONFLICT, ""},
        {ROUTE_ID_controller_transfer, "c1", NULL, ERROR_NOT_SUPPORTED, ""},
        {ROUTE_ID_token_delete, "none", NULL, ERROR_NOT_FOUND, ""},
        {ROUTE_ID_operation_cancel, "none", NULL, ERROR_NOT_FOUND, ""},
    };
    uint64_t index = state_index(f->state);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        int rc = fixture_do(f, cases[i].route, cases[i].id, cases[i].body);
        if (rc >= 0 || f->error.kind != cases[i].kind || strcmp(f->error.field, cases[i].field) != 0)
            fail_msg("case %u: %d, kind %s, field '%s': %s", i, rc, error_kind_info(f->error.kind)->code, f->error.field, f->error.text);
        assert_true(strlen(f->error.text) > 0);
        assert_null(f->decision.command.data);
    }
    assert_int_equal(state_index(f->state), index); /* nothing was even proposed */
}

static void defaults(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"debian\",\"flavor\":\"large\",\"nics\":[{\"bridge\":\"br0\"},{\"bridge\":\"br0\",\"mac\":\"52:54:00:00:00:01\"}]}");
    const struct vm *vm = fixture_vm(f, "a");
    assert_int_equal(vm->vcpus, 2);
    assert_int_equal(vm->restart, restart_policy_ON_FAILURE);
    assert_int_equal(vm->wanted, vm_wanted_RUNNING);
    assert_int_equal(vm->disks.count, 1);
    const struct vm_disk *disk = vm->disks.items;
    assert_string_equal(disk->name, "root");
    assert_true(disk->image);
    assert_int_equal(disk->size_bytes, 10737418240);
    const struct vm_nic *nics = vm->nics.items;
    assert_memory_equal(nics[0].mac, "52:54:00:", 9);
    assert_string_equal(nics[1].mac, "52:54:00:00:00:01");
    assert_string_equal(vm->placement, "n1, the only one of 1 hosts that fits: 13 % full with it");
    assert_false(OBJECT_HAS(vm, vm, started));
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"debian\",\"flavor\":\"small\",\"started\":false}");
    vm = fixture_vm(f, "b");
    assert_int_equal(vm->wanted, vm_wanted_STOPPED);
    assert_int_equal(((struct vm_disk *)vm->disks.items)->size_bytes, 2147483648);
    const struct host *host = fixture_get(f, object_kind_HOST, "n1")->host;
    assert_true(host->schedulable);
    assert_int_equal(host->cpu_ratio_percent, 400);
    assert_int_equal(view_host_memory_bytes(host) >> 20, 8192 - 512);
    assert_int_equal(view_host_vcpus(host), 32);
}

/* The address that a draw gives is another VM's already (written in capitals, on another bridge): it is drawn again. */
static void a_mac_in_use_is_drawn_again(void **test)
{
    struct fixture *f = *test;
    static const char b[] = "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"nics\":[{\"bridge\":\"br0\"}]}";
    char body[200], mac[18] = "";
    uint64_t before = f->ids;
    f->ids = 1000; /* the draws of "b" */
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_vm_create, NULL, b);
    f->dry_run = false;
    const char *at = memmem(f->decision.preview.data, f->decision.preview.size, "52:54:00:", 9);
    assert_non_null(at);
    memcpy(mac, at, 17);
    for (char *c = mac; *c != '\0'; c++)
        *c = *c >= 'a' && *c <= 'f' ? (char)(*c - 'a' + 'A') : *c;
    f->ids = before;
    snprintf(body, sizeof body,
             "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"nics\":[{\"bridge\":\"br1\",\"mac\":\"%s\"}]}", mac);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    assert_true(state_mac_in_use(f->state, mac));
    f->ids = 1000;
    fixture_must(f, ROUTE_ID_vm_create, NULL, b);
    const char *drawn = ((const struct vm_nic *)fixture_vm(f, "b")->nics.items)->mac;
    assert_memory_equal(drawn, "52:54:00:", 9);
    assert_int_not_equal(strcasecmp(drawn, mac), 0);
    fixture_must(f, ROUTE_ID_vm_delete, "a", NULL);
    fixture_vm_is(f, "a", vm_state_DELETED);
    assert_null(state_get(f->state, object_kind_VM, "a"));
    assert_false(state_mac_in_use(f->state, mac));
    assert_true(state_mac_in_use(f->state, drawn));
}

static void a_dry_run_changes_nothing(void **test)
{
    struct fixture *f = *test;
    uint64_t index = state_index(f->state);
    f->dry_run = true;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    assert_null(f->decision.command.data);
    struct vm vm;
    assert_int_equal(OBJECT_DECODE(vm, (char *)f->decision.preview.data, f->decision.preview.size, OBJECT_STORED, &vm, NULL), 0);
    assert_string_equal(vm.host_name, "n1");
    OBJECT_CLEAR(vm, &vm);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"none\",\"flavor\":\"small\"}"), -ENOENT);
    fixture_must(f, ROUTE_ID_image_delete, "tiny", NULL);
    assert_non_null(state_get(f->state, object_kind_IMAGE, "tiny"));
    assert_int_equal(state_index(f->state), index);
}

static void a_token_is_shown_without_its_hash(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer json = {0};
    fixture_must(f, ROUTE_ID_token_create, NULL, "{\"name\":\"t\",\"role\":\"host\"}");
    state_put_json(f->state, fixture_get(f, object_kind_TOKEN, "t"), &json);
    bytes_put_u8(&json, 0);
    assert_null(strstr((char *)json.data, FIXTURE_SHA));
    assert_non_null(strstr(fixture_get(f, object_kind_TOKEN, "t")->json, FIXTURE_SHA));
    bytes_writer_finish(&json);
}

static void nobody_joins_as_a_user(void **test)
{
    struct fixture *f = *test;
    assert_int_equal(fixture_do(f, ROUTE_ID_token_create, NULL, "{\"name\":\"t\",\"role\":\"user\"}"), -EINVAL);
    assert_string_equal(f->error.field, "/role");
}

static void placement_is_explained(void **test)
{
    struct fixture *f = *test;
    struct placement placement = {0};
    fixture_host(f, "n2", 1024);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":2147483648}");
    assert_int_equal(decide_placement(f->state, fixture_vm(f, "a"), &placement, NULL), 0);
    assert_string_equal(placement.host, "n1");
    assert_int_equal(placement.hosts.count, 2);
    const struct placement_host *hosts = placement.hosts.items;
    assert_true(hosts[0].chosen);
    assert_string_equal(hosts[1].reason, "needs 2048 MiB, 921 of 921 MiB are free");
    assert_string_equal(hosts[1].rejected, "memory");
    assert_int_equal(object_validate(&placement_desc, &placement, OBJECT_STORED, &f->error), 0);
    OBJECT_CLEAR(placement, &placement);
}

/* ---- devices of a VM that is there ---- */

static const struct vm_nic *nic_at(struct fixture *f, const char *vm, size_t i)
{
    return (const struct vm_nic *)fixture_vm(f, vm)->nics.items + i;
}

static void lan_make(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_network_create, NULL,
                 "{\"name\":\"lan\",\"ipv4_subnet\":\"192.0.2.0/24\",\"pools\":[{\"first\":\"192.0.2.10\",\"last\":\"192.0.2.12\"}]}");
    fixture_must(f, ROUTE_ID_security_group_create, NULL, "{\"name\":\"web\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"debian\",\"flavor\":\"small\",\"nics\":[{\"network\":\"lan\",\"mac\":\"52:54:00:00:00:01\"}]}");
}

static void nics_come_and_go(void **test)
{
    struct fixture *f = *test;
    char body[300], mac[18];
    lan_make(f);
    uint64_t generation = fixture_vm(f, "a")->generation;
    assert_int_equal(nic_at(f, "a", 0)->number, 0);
    /* One more: the first keeps its address, the second gets one of its own. */
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"nics\":[{\"mac\":\"52:54:00:00:00:01\"},{\"network\":\"lan\"}]}");
    assert_int_equal(fixture_vm(f, "a")->generation, generation + 1);
    assert_string_equal(nic_at(f, "a", 0)->ips.items[0], "192.0.2.10");
    assert_string_equal(nic_at(f, "a", 0)->network, "lan");
    assert_string_equal(nic_at(f, "a", 1)->ips.items[0], "192.0.2.11");
    assert_int_equal(nic_at(f, "a", 1)->number, 1);
    snprintf(mac, sizeof mac, "%s", nic_at(f, "a", 1)->mac);
    /* The first goes, a third comes: numbers stay, and the one that goes is not used at once. */
    snprintf(body, sizeof body, "{\"nics\":[{\"mac\":\"%s\"},{\"network\":\"lan\"}]}", mac);
    fixture_must(f, ROUTE_ID_vm_update, "a", body);
    assert_string_equal(nic_at(f, "a", 0)->mac, mac);
    assert_int_equal(nic_at(f, "a", 0)->number, 1);
    assert_string_equal(nic_at(f, "a", 0)->ips.items[0], "192.0.2.11");
    assert_int_equal(nic_at(f, "a", 1)->number, 2);
    /* What it gave up is another's to have; and none is left now. */
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"debian\",\"flavor\":\"small\",\"nics\":[{\"network\":\"lan\"}]}");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "b",
                                "{\"nics\":[{\"network\":\"lan\"},{\"network\":\"lan\"}]}"), -ENOSPC);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"nics\":[]}");
    assert_int_equal(fixture_vm(f, "a")->nics.count, 0);
    assert_false(state_mac_in_use(f->state, mac));
    snprintf(body, sizeof body, "{\"nics\":[{\"mac\":\"%s\"},{\"network\":\"lan\"}]}", nic_at(f, "b", 0)->mac);
    fixture_must(f, ROUTE_ID_vm_update, "b", body);
}

static void limits_and_groups_change(void **test)
{
    struct fixture *f = *test;
    lan_make(f);
    fixture_must(f, ROUTE_ID_vm_update, "a",
                 "{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"limits\":{\"bytes_per_second\":1000},\"security_groups\":[\"web\"]}],"
                 "\"disks\":[{\"name\":\"root\",\"limits\":{\"operations_per_second\":50},\"on_disk_error\":\"pause\"}]}");
    const struct vm_disk *disk = fixture_vm(f, "a")->disks.items;
    assert_int_equal(nic_at(f, "a", 0)->limits.bytes_per_second, 1000);
    assert_string_equal(nic_at(f, "a", 0)->security_groups.items[0], "web");
    assert_int_equal(disk->limits.operations_per_second, 50);
    assert_int_equal(disk->on_disk_error, disk_error_policy_PAUSE);
    assert_int_equal(disk->size_bytes, 2147483648); /* not given: as it is */
    /* What is not given stays. */
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"nics\":[{\"mac\":\"52:54:00:00:00:01\"}]}");
    assert_int_equal(nic_at(f, "a", 0)->limits.bytes_per_second, 1000);
    assert_int_equal(nic_at(f, "a", 0)->security_groups.count, 1);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"security_groups\":[]}]}");
    assert_int_equal(nic_at(f, "a", 0)->security_groups.count, 0);
}

static void what_of_devices_cannot_change(void **test)
{
    struct fixture *f = *test;
    lan_make(f);
    static const struct {
        const char *body;
        enum error_kind kind;
        const char *field;
    } cases[] = {
        {"{\"disks\":[]}", ERROR_INVALID, "/disks"},
        {"{\"disks\":null}", ERROR_INVALID, ""},
        {"{\"nics\":null}", ERROR_INVALID, ""},
        {"{\"disks\":[{\"name\":\"other\"}]}", ERROR_INVALID, "/disks/0/name"},
        {"{\"disks\":[{\"name\":\"root\",\"size_bytes\":4294967296}]}", ERROR_INVALID, "/disks/0/size_bytes"},
        {"{\"disks\":[{\"name\":\"root\",\"read_only\":true}]}", ERROR_INVALID, "/disks/0/read_only"},
        {"{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"queues\":2}]}", ERROR_INVALID, "/nics/0/queues"},
        {"{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"bridge\":\"br0\"}]}", ERROR_INVALID, "/nics/0/bridge"},
        {"{\"nics\":[{\"mac\":\"52:54:00:00:00:01\"},{\"mac\":\"52:54:00:00:00:01\"}]}", ERROR_INVALID, "/nics/1/mac"},
        {"{\"nics\":[{\"network\":\"none\"}]}", ERROR_NOT_FOUND, "/nics/0/network"},
        {"{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"security_groups\":[\"none\"]}]}", ERROR_NOT_FOUND, "/nics/0/security_groups/0"},
        {"{\"nics\":[{\"mac\":\"52:54:00:00:00:01\",\"number\":3}]}", ERROR_INVALID, "/nics/0/number"},
    };
    uint64_t index = state_index(f->state);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        int rc = fixture_do(f, ROUTE_ID_vm_update, "a", cases[i].body);
        if (rc >= 0 || f->error.kind != cases[i].kind || strcmp(f->error.field, cases[i].field) != 0)
            fail_msg("case %u: %d, kind %s, field '%s': %s", i, rc, error_kind_info(f->error.kind)->code, f->error.field, f->error.text);
    }
    assert_int_equal(state_index(f->state), index);
}

/* Two changes that were decided from the same state: the second is refused, or it would take back the first. */
static void one_of_two_changes_at_once_is_refused(void **test)
{
    struct fixture *f = *test;
    struct bytes_writer first = {0};
    lan_make(f);
    struct decision_context context = fixture_context(f);
    struct vm body;
    static const char text[] = "{\"nics\":[{\"mac\":\"52:54:00:00:00:01\"},{\"network\":\"lan\"}]}";
    assert_int_equal(OBJECT_DECODE(vm, text, sizeof text - 1, OBJECT_PATCH, &body, &f->error), 0);
    decision_finish(&f->decision);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_update, "a", 1, &body, &f->decision, &f->error), 0);
    OBJECT_CLEAR(vm, &body);
    bytes_put(&first, f->decision.command.data, f->decision.command.size);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"nics\":[]}");
    assert_int_equal(fixture_apply(f, &first), -ESTALE);
    assert_int_equal(f->error.kind, ERROR_CONFLICT);
    assert_int_equal(fixture_vm(f, "a")->nics.count, 0);
    bytes_writer_finish(&first);
}

static void a_cpu_model_comes_from_the_flavor_or_the_vm(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_flavor_create, NULL,
                 "{\"name\":\"v2\",\"vcpus\":1,\"memory_bytes\":67108864,\"cpu_model\":\"x86-64-v2\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"v2\"}");
    assert_int_equal(fixture_vm(f, "a")->cpu_model, cpu_kind_X86_64_V2);
    assert_int_equal(fixture_vm(f, "a")->state, vm_state_PENDING); /* n1 has not said that it can be it */
    assert_non_null(strstr(fixture_vm(f, "a")->placement, "x86-64-v2"));
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL,
                                "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"v2\",\"cpu_model\":\"host\"}"), -EINVAL);
    assert_string_equal(f->error.field, "/cpu_model");
    assert_true(fixture_do(f, ROUTE_ID_vm_create, NULL,
                           "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"cpu_model\":\"z80\"}") < 0);
    assert_string_equal(f->error.field, "/cpu_model");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"cpu_model\":\"host\"}");
    assert_string_equal(fixture_vm(f, "b")->host_name, "n1");
}

/* VMs name their policy by a label, and nothing tells that one is not backed up any more. */
static void a_policy_that_vms_have_stays(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"nightly\",\"store\":\"nas\",\"every_s\":86400}");
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"hourly\",\"store\":\"nas\",\"every_s\":3600}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"backup-policy\":\"nightly\"}}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    CLEANUP_FREE char *id = xasprintf("{\"labels\":{\"backup-policy\":\"%s\"}}", fixture_get(f, object_kind_BACKUP_POLICY, "nightly")->common->id);
    fixture_must(f, ROUTE_ID_vm_update, "b", id);
    assert_int_equal(fixture_do(f, ROUTE_ID_backup_policy_delete, "nightly", NULL), -EBUSY);
    assert_int_equal(f->error.kind, ERROR_IN_USE);
    assert_non_null(strstr(f->error.text, "VM 'a' and 1 more backed up"));
    fixture_must(f, ROUTE_ID_backup_policy_delete, "hourly", NULL); /* nobody's */
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"labels\":{}}");
    assert_int_equal(fixture_do(f, ROUTE_ID_backup_policy_delete, "nightly", NULL), -EBUSY);
    assert_non_null(strstr(f->error.text, "VM 'b' backed up"));
    f->force = true;
    fixture_must(f, ROUTE_ID_backup_policy_delete, "nightly", NULL);
    assert_null(state_get(f->state, object_kind_BACKUP_POLICY, "nightly"));
}

static void a_vm_that_others_wait_for_keeps_its_name(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"db\",\"image\":\"tiny\",\"flavor\":\"small\"}");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"ha-after\":\"db\"}}");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "db", "{\"name\":\"db1\"}"), -EBUSY);
    assert_string_equal(f->error.field, "/name");
    assert_string_equal(f->error.text, "VM 'db' cannot be renamed: VM 'web' has its name in the label ha-after");
    fixture_must(f, ROUTE_ID_vm_update, "db", "{\"name\":\"db\"}"); /* that is no change */
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"name\":\"web1\"}");
    fixture_must(f, ROUTE_ID_vm_update, "web1", "{\"labels\":{}}");
    fixture_must(f, ROUTE_ID_vm_update, "db", "{\"name\":\"db1\"}");
}

static void nothing_before_init(void **test UNUSED)
{
    struct fixture f;
    fixture_empty(&f);
    assert_int_equal(fixture_do(&f, ROUTE_ID_flavor_create, NULL, "{\"name\":\"s\",\"vcpus\":1,\"memory_bytes\":16777216}"), -EAGAIN);
    assert_int_equal(f.error.kind, ERROR_NOT_INITIALIZED);
    fixture_make_cluster(&f);
    assert_int_equal(state_voters(f.state), 1);
    assert_int_equal(state_cluster(f.state)->next_raft_id, 2);
    assert_int_equal(state_cluster(f.state)->lease_ttl_ms, 5000);
    fixture_finish_all(&f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(refusals),
        TEST(defaults),
        TEST(a_mac_in_use_is_drawn_again),
        TEST(a_dry_run_changes_nothing),
        TEST(a_token_is_shown_without_its_hash),
        TEST(nobody_joins_as_a_user),
        TEST(placement_is_explained),
        TEST(nics_come_and_go),
        TEST(limits_and_groups_change),
        TEST(what_of_devices_cannot_change),
        TEST(one_of_two_changes_at_once_is_refused),
        TEST(a_policy_that_vms_have_stays),
        TEST(a_vm_that_others_wait_for_keeps_its_name),
        TEST(a_cpu_model_comes_from_the_flavor_or_the_vm),
        cmocka_unit_test(nothing_before_init),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
