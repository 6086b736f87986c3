/* What /metrics says of the cluster's condition: each gauge that somebody is woken by, before and after what it is to tell. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/api/cluster_metrics.h"

#define ID(n) "00000000-0000-4000-8000-00000000000" n
#define HOUR_MS (UINT64_C(3600) * 1000)

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_voter(f, "c2", 2);
    fixture_voter(f, "c3", 3);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"a\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true,\"disks\":[{\"name\":\"root\",\"size_bytes\":1048576}],"
                 "\"labels\":{\"backup-policy\":\"nightly\"}}");
    fixture_vm_is(f, "a", vm_state_RUNNING);
    fixture_host(f, "n2", 8192);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static uint64_t now_ms(const struct fixture *f)
{
    return FIXTURE_EPOCH_MS + f->now_ms;
}

/* The number behind @gauge, labels included; -1: there is no such line. */
static long long says(struct fixture *f, const char *gauge)
{
    struct bytes_writer out = {0};
    char line[200];
    bytes_put_text(&out, "\n");
    cluster_metrics_put(f->state, now_ms(f), &out);
    bytes_put_u8(&out, 0);
    snprintf(line, sizeof line, "\n%s ", gauge);
    const char *found = strstr((const char *)out.data, line);
    long long number = found != NULL ? atoll(found + strlen(line)) : -1;
    bytes_writer_finish(&out);
    return number;
}

static void is(struct fixture *f, const char *gauge, long long wanted)
{
    long long number = says(f, gauge);
    if (number != wanted)
        fail_msg("%s is %lld, not %lld", gauge, number, wanted);
}

/* A point of the replica of VM a, which is being made. */
static void point_made(struct fixture *f, uint64_t number)
{
    const struct vm *vm = fixture_vm(f, "a");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    const struct record_index *operations = &fixture_get(f, object_kind_VM, "a")->of_vm.operations;
    assert_int_equal(operations->count, 1);
    OBJECT_TEXT(task_seen, seen, id, operations->items[0]->common->id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    OBJECT_TEXT(replica_result, &seen->replica, id, "0123456789abcdef0123456789abcdef");
    OBJECT_SET(replica_result, &seen->replica, number, number);
    object_mark(&task_seen_desc, seen, "replica");
    assert_non_null(vm->host);
    assert_int_equal(fixture_send(f, &report), 1);
}

/* The end of the VM's backup that is being made, as n1 says it. */
static void backup_ends(struct fixture *f, const char *failure)
{
    const struct record_index *operations = &fixture_get(f, object_kind_VM, "a")->of_vm.operations;
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    assert_int_equal(operations->count, 1);
    OBJECT_TEXT(task_seen, seen, id, operations->items[0]->common->id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, failure != NULL ? operation_state_FAILED : operation_state_SUCCEEDED);
    if (failure != NULL)
        OBJECT_TEXT(task_seen, seen, error_text, failure);
    else
        object_mark(&task_seen_desc, seen, "backup");
    assert_int_equal(fixture_send(f, &report), 1);
}

/* The store turns out to have one more of VM a, made just now, that cannot be read. */
static void damaged_found(struct fixture *f)
{
    char at[TIME_TEXT_BYTES];
    f->now_ms += 60000;
    fixture_must(f, ROUTE_ID_backup_store_attach, "nas", NULL);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    struct backup_found *found = OBJECT_ADD(backup_result, &seen->backup, found);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, operation_state_SUCCEEDED);
    object_mark(&task_seen_desc, seen, "backup");
    time_text_format(now_ms(f), at);
    OBJECT_TEXT(backup_found, found, id, ID("1"));
    OBJECT_TEXT(backup_found, found, created_at, at);
    OBJECT_TEXT(backup_found, found, vm, fixture_vm(f, "a")->id);
    OBJECT_TEXT(backup_found, found, vm_name, "a");
    OBJECT_TEXT(backup_found, found, damage, "a pack is gone");
    assert_int_equal(fixture_send(f, &report), 1);
}

static void hosts_and_vms(void **test)
{
    struct fixture *f = *test;
    is(f, "drover_hosts{state=\"up\"}", 2);
    is(f, "drover_hosts{state=\"lost\"}", 0);
    is(f, "drover_vms{state=\"running\"}", 1);
    is(f, "drover_vms_not_as_wanted", 0);
    is(f, "drover_host_memory_bytes{host=\"n1\"}", 8192ll << 20);
    is(f, "drover_host_memory_committed_bytes{host=\"n1\"}", 256ll << 20);
    is(f, "drover_host_memory_committed_bytes{host=\"n2\"}", 0);
    fixture_vm_is(f, "a", vm_state_FAILED);
    is(f, "drover_vms{state=\"running\"}", 0);
    is(f, "drover_vms{state=\"failed\"}", 1);
    is(f, "drover_vms_not_as_wanted", 1);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    is(f, "drover_vms_not_as_wanted", 0);
    fixture_lose(f, "n2");
    is(f, "drover_hosts{state=\"up\"}", 1);
    is(f, "drover_hosts{state=\"lost\"}", 1);
}

static void replicas(void **test)
{
    struct fixture *f = *test;
    is(f, "drover_replicas{state=\"none\"}", 0);
    is(f, "drover_replica_oldest_point_timestamp_seconds", -1);
    fixture_must(f, ROUTE_ID_vm_update, "a", "{\"replica_host\":\"n2\"}");
    is(f, "drover_replicas{state=\"none\"}", 1);
    f->now_ms += 60000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    uint64_t begun_s = now_ms(f) / 1000;
    point_made(f, 1);
    is(f, "drover_replicas{state=\"none\"}", 0);
    is(f, "drover_replicas{state=\"current\"}", 1);
    is(f, "drover_replica_oldest_point_timestamp_seconds", (long long)begun_s);
    fixture_must(f, ROUTE_ID_vm_stop, "a", NULL);
    fixture_vm_is(f, "a", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_start, "a", NULL);
    is(f, "drover_replicas{state=\"none\"}", 1); /* of another run: what its disks become now no point knows */
    fixture_vm_is(f, "a", vm_state_RUNNING);
    f->now_ms += 60000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    begun_s = now_ms(f) / 1000;
    point_made(f, 2);
    is(f, "drover_replicas{state=\"current\"}", 1);
    f->now_ms += HOUR_MS;
    while (fixture_reconcile(f, NULL) > 0) /* begins the next one, and says that the last one is old */
        ;
    is(f, "drover_replicas{state=\"current\"}", 0);
    is(f, "drover_replicas{state=\"late\"}", 1);
    is(f, "drover_replica_oldest_point_timestamp_seconds", (long long)begun_s);
}

/* One that needs nothing of its host waits for another one; one whose disk is there alone waits for its host. */
static void recovering(void **test)
{
    struct fixture *f = *test;
    fixture_lose(f, "n2");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"ha\":true}");
    fixture_vm_is(f, "b", vm_state_RUNNING);
    is(f, "drover_vms_recovering", 0);
    fixture_lose(f, "n1");
    is(f, "drover_vms_recovering", 1);
    fixture_host(f, "n3", 8192);
    fixture_reconcile(f, NULL);
    is(f, "drover_vms_recovering", 0);
}

static void policies(void **test)
{
    struct fixture *f = *test;
    is(f, "drover_backup_policy_missing_vms", 1);
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"nightly\",\"store\":\"nas\",\"every_s\":86400}");
    is(f, "drover_backup_policy_missing_vms", 0);
    is(f, "drover_backup_policy_vms{policy=\"nightly\"}", 1);
    is(f, "drover_backup_policy_vms_late{policy=\"nightly\"}", 0);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", 0);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    backup_ends(f, "the store is full");
    is(f, "drover_backups{state=\"failed\"}", 1);
    is(f, "drover_backup_policy_vms_failed{policy=\"nightly\"}", 1);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", 0);
    f->now_ms += HOUR_MS;
    uint64_t asked_s = now_ms(f) / 1000;
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    is(f, "drover_backup_policy_vms_failed{policy=\"nightly\"}", 0); /* the record of the one that failed goes when the next one begins */
    backup_ends(f, NULL);
    is(f, "drover_backups{state=\"available\"}", 1);
    is(f, "drover_backup_policy_vms_failed{policy=\"nightly\"}", 0);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", (long long)asked_s);
    damaged_found(f);
    is(f, "drover_backups_damaged", 1);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", (long long)asked_s);
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"b\",\"image\":\"tiny\",\"flavor\":\"small\",\"labels\":{\"backup-policy\":\"nightly\"},\"started\":false}");
    is(f, "drover_backup_policy_vms{policy=\"nightly\"}", 1); /* it has no disks yet */
    f->now_ms += 47 * HOUR_MS;
    is(f, "drover_backup_policy_vms_late{policy=\"nightly\"}", 0);
    f->now_ms += 2 * HOUR_MS;
    is(f, "drover_backup_policy_vms_late{policy=\"nightly\"}", 1);
    fixture_must(f, ROUTE_ID_vm_start, "b", NULL);
    is(f, "drover_backup_policy_vms{policy=\"nightly\"}", 2);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", 0);
    is(f, "drover_backup_store_damaged{store=\"nas\"}", 0);
    is(f, "drover_backup_store_verified_timestamp_seconds{store=\"nas\"}", 0);
}

/* A clock that was ahead when a backup was made: that one does not stand for those that were not made since. */
static void clock_ahead(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_backup_store_create, NULL, "{\"name\":\"nas\",\"location\":\"/srv/backups\"}");
    fixture_must(f, ROUTE_ID_backup_policy_create, NULL, "{\"name\":\"nightly\",\"store\":\"nas\",\"every_s\":86400}");
    f->now_ms += 24 * 365 * HOUR_MS;
    fixture_reconcile(f, NULL);
    backup_ends(f, NULL);
    f->now_ms -= 24 * 362 * HOUR_MS;
    is(f, "drover_backups{state=\"available\"}", 1);
    is(f, "drover_backup_policy_vms_late{policy=\"nightly\"}", 1);
    is(f, "drover_backup_policy_oldest_timestamp_seconds{policy=\"nightly\"}", 0);
}

static void pools(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"fast\",\"kind\":\"dir\",\"path\":\"/srv/fast\",\"hosts\":[\"n1\",\"n2\"]}");
    is(f, "drover_pool_present{pool=\"fast\",host=\"n1\"}", 0);
    struct node_report report = fixture_report(f, "n1", 8192);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, fixture_get(f, object_kind_POOL, "fast")->common->id);
    OBJECT_SET(pool_seen, seen, present, true);
    OBJECT_TEXT(pool_seen, seen, mark, "0123456789abcdef0123456789abcdef");
    OBJECT_SET(pool_seen, seen, size_bytes, UINT64_C(64) << 30);
    OBJECT_SET(pool_seen, seen, free_bytes, UINT64_C(48) << 30);
    assert_int_equal(fixture_send(f, &report), 1);
    is(f, "drover_pool_present{pool=\"fast\",host=\"n1\"}", 1);
    is(f, "drover_pool_present{pool=\"fast\",host=\"n2\"}", 0);
    is(f, "drover_pool_size_bytes{pool=\"fast\",host=\"n1\"}", 64ll << 30);
    is(f, "drover_pool_free_bytes{pool=\"fast\",host=\"n1\"}", 48ll << 30);
    is(f, "drover_pool_free_bytes{pool=\"fast\",host=\"n2\"}", -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(hosts_and_vms, setup, teardown),
        cmocka_unit_test_setup_teardown(replicas, setup, teardown),
        cmocka_unit_test_setup_teardown(recovering, setup, teardown),
        cmocka_unit_test_setup_teardown(policies, setup, teardown),
        cmocka_unit_test_setup_teardown(clock_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(pools, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
