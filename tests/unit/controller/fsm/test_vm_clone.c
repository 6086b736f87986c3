/* Clones of VMs in the state: whose disks they have, that they come or go whole, what may not be done meanwhile, and what is refused. */
#include "tests/unit/controller/fsm_fixture.h"

#include "controller/fsm/command_codec.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define GIB (UINT64_C(1) << 30)

static const struct vm_disk *disk(struct fixture *f, const char *vm, const char *name)
{
    const struct vm_disk *found = own_disk_find(fixture_vm(f, vm), name);
    assert_non_null(found);
    return found;
}

/* n1 says how the last operation goes. */
static int task_says(struct fixture *f, enum operation_state state)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct task_seen *seen = OBJECT_ADD(node_report, &report, tasks);
    OBJECT_TEXT(task_seen, seen, id, f->decision.operation_id);
    OBJECT_SET(task_seen, seen, role, task_role_MAIN);
    OBJECT_SET(task_seen, seen, state, state);
    return fixture_send(f, &report);
}

static void refused(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *words)
{
    assert_int_equal(fixture_do(f, route, id, body), code);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

/* The same, and the last operation stays the one that others look at. */
static void refused_meanwhile(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *words)
{
    char operation[37];
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    refused(f, route, id, body, code, words);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
}

/* A shared pool on two hosts, a directory of each. VM "web" on the first, with "root" and "data" of 1 GiB in its host's directory, and one that
 * is only read; two addresses. It runs, and has snapshot "s". */
static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    fixture_must(f, ROUTE_ID_network_create, NULL,
                 "{\"name\":\"lan\",\"ipv4_subnet\":\"10.1.0.0/24\",\"pools\":[{\"first\":\"10.1.0.10\",\"last\":\"10.1.0.19\"}]}");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"web\",\"image\":\"tiny\",\"flavor\":\"small\",\"hostname\":\"www\",\"stop_grace_s\":7,"
                 "\"labels\":{\"app\":\"shop\",\"anti-affinity\":\"shop\"},\"nics\":[{\"network\":\"lan\",\"queues\":2}],"
                 "\"disks\":[{\"name\":\"root\",\"size_bytes\":1073741824},"
                 "{\"name\":\"data\",\"size_bytes\":1073741824},{\"name\":\"cd\",\"size_bytes\":1048576,\"read_only\":true}]}");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_host(f, "n2", 8192);
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/srv/nas\",\"hosts\":[\"n1\",\"n2\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"two\",\"kind\":\"dir\",\"path\":\"/srv/two\",\"hosts\":[\"n2\"]}");
    fixture_say_pool(f, "n1", "nas", 16 * GIB, 4 * GIB + GIB / 2);
    fixture_say_pool(f, "n2", "nas", 16 * GIB, 4 * GIB + GIB / 2);
    fixture_say_pool(f, "n2", "two", 16 * GIB, 8 * GIB);
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"s\"}");
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

/* What n1 is told of the last operation, which the caller clears. False: nothing. */
static bool ordered(struct fixture *f, struct task_order *ret)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    bool found = false;
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t i = 0; i < orders.tasks.count; i++) {
        const struct task_order *order = (const struct task_order *)orders.tasks.items + i;
        if (strcmp(order->id, f->decision.operation_id) != 0)
            continue;
        OBJECT_COPY(task_order, ret, order);
        found = true;
    }
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    return found;
}

static void has_what_the_other_has_and_is_its_own(struct fixture *f)
{
    const struct vm *web = fixture_vm(f, "web"), *new = fixture_vm(f, "new");
    const struct vm_nic *nic = new->nics.items, *its = web->nics.items;
    assert_string_not_equal(new->id, web->id);
    assert_string_equal(new->hostname, "new");
    assert_int_equal(new->stop_grace_s, 7);
    assert_int_equal(new->memory_bytes, web->memory_bytes);
    assert_string_equal(new->host, web->host);
    assert_string_equal(string_map_get(&new->labels, "app"), "shop");
    assert_null(string_map_get(&new->labels, "anti-affinity"));
    assert_int_equal(new->nics.count, 1);
    assert_int_equal(nic->queues, 2);
    assert_string_equal(nic->network, "lan");
    assert_string_not_equal(nic->mac, its->mac);
    assert_string_not_equal(nic->ips.items[0], its->ips.items[0]);
    assert_int_equal(new->disks.count, 3);
    assert_string_equal(disk(f, "new", "root")->place, f->decision.operation_id);
    assert_string_equal(disk(f, "new", "data")->place, f->decision.operation_id);
    assert_null(disk(f, "new", "cd")->place); /* its host makes it anew, as everywhere */
    assert_null(disk(f, "web", "root")->place);
    assert_true(new->unstarted && new->unmade);
}

static void it_comes_whole(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"snapshot\":\"s\"}");
    has_what_the_other_has_and_is_its_own(f);
    assert_true(ordered(f, &order));
    assert_int_equal(order.copy.disks.count, 2);
    const struct volume_move *copy = (const struct volume_move *)order.copy.disks.items + 1;
    assert_string_equal(copy->from.id, fixture_vm(f, "web")->id);
    assert_string_equal(copy->to.id, fixture_vm(f, "new")->id);
    assert_string_equal(copy->from.disk, "data");
    assert_string_equal(copy->to.place, f->decision.operation_id);
    assert_string_equal(copy->snapshot, fixture_get(f, object_kind_SNAPSHOT, "s")->common->id);
    OBJECT_CLEAR(task_order, &order);
    /* what its host says of it is not what it is: the task says that */
    assert_int_equal(fixture_vm_is(f, "new", vm_state_STOPPED), 0);
    assert_int_equal(fixture_vm(f, "new")->state, vm_state_STARTING);
    static const char making[] = "VM 'new' is being made of VM 'web' still";
    refused_meanwhile(f, ROUTE_ID_vm_start, "new", NULL, -EBUSY, making);
    refused_meanwhile(f, ROUTE_ID_vm_update, "new", "{\"ha_priority\":3}", -EBUSY, making);
    refused_meanwhile(f, ROUTE_ID_snapshot_create, "new", "{\"name\":\"t\"}", -EBUSY, making);
    refused_meanwhile(f, ROUTE_ID_vm_clone, "new", "{\"name\":\"newer\"}", -EBUSY, "a vm-clone of VM 'new' is under way");
    static const char cloned[] = "VM 'new' is being made of the disks of VM 'web'";
    refused_meanwhile(f, ROUTE_ID_snapshot_delete, "s", NULL, -EBUSY, cloned);
    refused_meanwhile(f, ROUTE_ID_vm_delete, "web", NULL, -EBUSY, cloned);
    refused_meanwhile(f, ROUTE_ID_vm_move_disk, "web", "{\"disk\":\"root\",\"pool\":\"nas\"}", -EBUSY, cloned);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(fixture_vm(f, "new")->state, vm_state_STOPPED);
    assert_false(fixture_vm(f, "new")->unstarted || fixture_vm(f, "new")->unmade);
    assert_null(fixture_vm(f, "new")->state_reason);
    /* each goes its way */
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    fixture_must(f, ROUTE_ID_vm_start, "new", NULL);
    fixture_vm_is(f, "new", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
}

/* What only reads, or is above the snapshot, goes along; the other way round, too. */
static void the_other_one_goes_on(void **test)
{
    struct fixture *f = *test;
    char clone[37];
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"snapshot\":\"s\"}");
    snprintf(clone, sizeof clone, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}");
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"more\",\"snapshot\":\"s\"}"); /* t is being made */
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"third\"}", -EBUSY, "a snapshot-create of VM 'web' is under way");
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", clone);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    fixture_vm_is(f, "new", vm_state_STOPPED);
}

static void of_one_that_is_off(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"freeze\":true,\"snapshot\":\"s\"}", -EINVAL, "that one was made already");
    fixture_vm_is(f, "web", vm_state_STOPPED);
    refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"freeze\":true}", -EINVAL, "this one does not run");
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STARTING);
    refused(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}", -EBUSY, "VM 'web' is starting, so that it is neither off nor does it run");
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"pool\":\"nas\",\"labels\":{\"k\":\"v\"},\"hostname\":\"h\"}");
    assert_string_equal(fixture_vm(f, "new")->hostname, "h");
    assert_null(string_map_get(&fixture_vm(f, "new")->labels, "app"));
    assert_true(ordered(f, &order));
    const struct volume_move *copy = order.copy.disks.items;
    assert_null(copy->snapshot);
    assert_false(OBJECT_HAS(volume_order, &copy->from, pool));
    assert_string_equal(copy->to.pool.name, "nas");
    OBJECT_CLEAR(task_order, &order);
    refused_meanwhile(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}", -EBUSY, "is being made of the disks of VM 'web'");
    /* its room is kept, everywhere: of 4.5 GiB 2 GiB and 1 MiB are its */
    const struct pool *nas = fixture_get(f, object_kind_POOL, "nas")->pool;
    assert_true(pool_room_bytes(f->state, nas, pool_member_find(nas, fixture_get(f, object_kind_HOST, "n2")->common->id)) == 2 * GIB + GIB / 2);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"second\",\"pool\":\"nas\"}");
    refused_meanwhile(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"third\",\"pool\":\"nas\"}", -ENOSPC, "'nas' has 4608 MiB free on host n1, of which 4096 MiB are kept");
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_true(fixture_vm(f, "second")->disks_made);
}

/* Its record goes to be deleted, and its host removes what there is of it. */
static void goes(struct fixture *f)
{
    const struct vm *new = fixture_vm(f, "new");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    bool told = false;
    assert_int_equal(new->wanted, vm_wanted_DELETED);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t i = 0; i < orders.vms.count; i++) {
        const struct vm_order *order = (const struct vm_order *)orders.vms.items + i;
        told |= strcmp(order->id, new->id) == 0 && order->wanted == vm_wanted_DELETED;
    }
    assert_true(told);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    assert_int_equal(fixture_vm_is(f, "new", vm_state_DELETED), 1);
    assert_null(state_get(f->state, object_kind_VM, "new"));
}

static void or_goes_whole(void **test)
{
    static const enum operation_state ends[] = {operation_state_FAILED, operation_state_CANCELLED};
    static const char body[] = "{\"name\":\"new\",\"snapshot\":\"s\"}";
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        fixture_must(f, ROUTE_ID_vm_clone, "web", body);
        assert_int_equal(task_says(f, ends[i]), 1);
        goes(f);
    }
    /* deleted on the way: its task is to end, and how it does is no matter */
    fixture_must(f, ROUTE_ID_vm_clone, "web", body);
    char operation[37];
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_vm_delete, "new", NULL);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
    assert_true(ordered(f, &order) && order.cancel);
    OBJECT_CLEAR(task_order, &order);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    goes(f);
    fixture_must(f, ROUTE_ID_snapshot_delete, "s", NULL); /* nothing keeps it */
}

/* The host forgets it when it is back, with its files: it is nobody's then. */
static void its_host_is_lost(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"snapshot\":\"s\",\"pool\":\"nas\"}");
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, f->decision.operation_id)->operation;
    fixture_lose(f, "n1");
    assert_int_equal(operation->state, operation_state_FAILED);
    assert_null(state_get(f->state, object_kind_VM, "new"));
    assert_non_null(state_get(f->state, object_kind_VM, "web"));
}

static void what_is_refused(void **test)
{
    struct fixture *f = *test;
    const enum route_id go = ROUTE_ID_vm_clone;
    refused(f, go, "nobody", "{\"name\":\"new\"}", -ENOENT, "nobody");
    refused(f, go, "web", "{\"name\":\"web\",\"snapshot\":\"s\"}", -EEXIST, "web");
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"none\"}", -ENOENT, "VM 'web' has no snapshot 'none'");
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"s\",\"pool\":\"none\"}", -ENOENT, "there is no pool 'none'");
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"s\",\"pool\":\"two\"}", -EXDEV, "'two' is not on host n1, which has VM 'web'");
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"s\",\"labels\":{\"anti-affinity\":\"shop\"}}", -EBUSY, "keep it apart from a VM of host n1");
    assert_null(state_get(f->state, object_kind_VM, "new"));
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}");
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"t\"}", -EBUSY, "'t' is creating");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"bare\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"started\":false,\"disks\":[]}");
    refused(f, go, "bare", "{\"name\":\"new\"}", -EINVAL, "has no disk that it writes to");
    fixture_must(f, ROUTE_ID_vm_create, NULL,
                 "{\"name\":\"fresh\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n1\",\"started\":false,"
                 "\"disks\":[{\"name\":\"d\",\"size_bytes\":1048576}]}");
    fixture_vm_is(f, "fresh", vm_state_STOPPED);
    refused(f, go, "fresh", "{\"name\":\"new\"}", -EINVAL, "was never started and has no disks yet");
    f->if_revision = 1;
    refused(f, go, "web", "{\"name\":\"new\",\"snapshot\":\"s\"}", -ENOENT, "read it again");
}

/* What its host reports of it while its disks are made, which a leader that was late or of an older version has let through, is not how it is. */
static void a_report_does_not_make_it(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"snapshot\":\"s\"}");
    const enum vm_state states[] = {vm_state_STOPPED, vm_state_RUNNING, vm_state_FAILED};
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        struct command_seen command = {0};
        struct bytes_writer bytes = {0};
        OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
        object_mark(&command_seen_desc, &command, "request");
        OBJECT_TEXT(host, &command.host, id, fixture_get(f, object_kind_HOST, "n1")->common->id);
        object_mark(&command_seen_desc, &command, "host");
        struct vm_seen *seen = OBJECT_ADD(command_seen, &command, vms);
        OBJECT_TEXT(vm_seen, seen, id, fixture_vm(f, "new")->id);
        OBJECT_SET(vm_seen, seen, epoch, fixture_vm(f, "new")->epoch);
        OBJECT_SET(vm_seen, seen, generation, fixture_vm(f, "new")->generation);
        OBJECT_SET(vm_seen, seen, state, states[i]);
        assert_int_equal(command_encode(COMMAND_seen, &command, &bytes, NULL), 0);
        assert_int_equal(fixture_apply(f, &bytes), 0);
        assert_int_equal(fixture_vm(f, "new")->state, vm_state_STARTING);
        assert_int_equal(fixture_vm(f, "new")->seen_generation, 0);
        assert_true(fixture_vm(f, "new")->unmade);
        bytes_writer_finish(&bytes);
        OBJECT_CLEAR(command_seen, &command);
    }
    refused_meanwhile(f, ROUTE_ID_vm_start, "new", NULL, -EBUSY, "is being made of");
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(fixture_vm(f, "new")->state, vm_state_STOPPED);
}

/* It was made and started, and then the end of the log was lost: what may have run is not deleted. But where its host says that it was not made
 * it goes, as ever. */
static void a_recovered_cluster_keeps_what_may_have_run(void **test)
{
    struct fixture *f = *test;
    static const char *const names[] = {"new", "ran"};
    char operation[37];
    for (size_t i = 0; i < 2; i++) {
        char body[80];
        snprintf(body, sizeof body, "{\"name\":\"%s\",\"snapshot\":\"s\"}", names[i]);
        fixture_must(f, ROUTE_ID_vm_clone, "web", body);
        if (i == 0)
            snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    }
    const struct record *survivor = state_at(f->state, object_kind_CONTROLLER, 0);
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, survivor->common->id), 0);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
    assert_int_equal(task_says(f, operation_state_FAILED), 1);
    assert_int_equal(fixture_vm(f, "new")->wanted, vm_wanted_DELETED);
    fixture_lose(f, "n1");
    assert_null(state_get(f->state, object_kind_VM, "new"));
    assert_int_equal(fixture_vm(f, "ran")->wanted, vm_wanted_STOPPED);
    assert_int_equal(fixture_vm(f, "ran")->state, vm_state_STOPPED);
}

/* A replica that comes from a snapshot of the state while it is made goes on as the others. */
static void it_outlasts_a_restart(void **test)
{
    struct fixture *f = *test;
    struct error error = {0};
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"snapshot\":\"s\"}");
    struct bytes_writer bytes = fixture_snapshot(f->state);
    struct state *restored = NULL;
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &restored, &error), 0);
    fixture_same_bytes(f->state, restored);
    f->twin = restored;
    bytes_writer_finish(&bytes);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    fixture_same_bytes(f->state, restored);
}

/* ---- of one that runs, by a snapshot of its own ---- */

/* That one; NULL: there is none (any more). */
static const struct snapshot *own(struct fixture *f)
{
    const struct snapshot *found = NULL;
    for (size_t i = 0; i < state_count(f->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(f->state, object_kind_SNAPSHOT, i)->snapshot;
        assert_true(found == NULL || snapshot->clone == NULL);
        found = snapshot->clone != NULL ? snapshot : found;
    }
    return found;
}

/* n1 says how what is done with it goes; the last operation stays the one that others look at. False: nothing is. */
static bool own_says(struct fixture *f, enum operation_state state)
{
    char operation[37], id[37] = "";
    const struct record_index *all = &fixture_get(f, object_kind_VM, "web")->of_vm.operations;
    for (size_t i = 0; own(f) != NULL && i < all->count; i++)
        if (strcmp(all->items[i]->operation->target_id, own(f)->id) == 0)
            snprintf(id, sizeof id, "%s", all->items[i]->common->id);
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", id);
    bool said = id[0] != '\0' && task_says(f, state) == 1;
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
    return said;
}

/* What it was made for is over, however: the leader has it removed. */
static void own_goes(struct fixture *f)
{
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_int_equal(own(f)->state, snapshot_state_DELETING);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_true(own_says(f, operation_state_SUCCEEDED));
    assert_null(own(f));
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

static const struct operation *last(struct fixture *f)
{
    return fixture_get(f, object_kind_OPERATION, f->decision.operation_id)->operation;
}

static void one_that_runs_is_cloned_by_a_snapshot_of_its_own(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"freeze\":true}");
    assert_int_equal(last(f)->kind, operation_kind_VM_CLONE);
    assert_string_equal(last(f)->step, "waiting for a snapshot of VM web");
    has_what_the_other_has_and_is_its_own(f);
    assert_non_null(own(f));
    assert_string_equal(own(f)->clone, fixture_vm(f, "new")->id);
    assert_true(strncmp(own(f)->name, "new-clone-", 10) == 0 && own(f)->freeze && own(f)->state == snapshot_state_CREATING);
    assert_false(ordered(f, &order)); /* there is nothing to copy yet */
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_true(own_says(f, operation_state_SUCCEEDED));
    assert_string_equal(last(f)->step, "waiting for host n1");
    assert_true(ordered(f, &order));
    assert_string_equal(((const struct volume_move *)order.copy.disks.items)->snapshot, own(f)->id);
    OBJECT_CLEAR(task_order, &order);
    refused_meanwhile(f, ROUTE_ID_snapshot_delete, own(f)->id, NULL, -EBUSY, "VM 'new' is being made of the disks of VM 'web'");
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(fixture_vm(f, "new")->state, vm_state_STOPPED);
    own_goes(f);
    assert_non_null(state_get(f->state, object_kind_SNAPSHOT, "s")); /* somebody's */
}

/* It ends badly, or is to end, before there is a snapshot, and after it. */
static void and_that_goes_however_it_ends(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    static const char body[] = "{\"name\":\"new\"}";
    fixture_must(f, ROUTE_ID_vm_clone, "web", body);
    assert_true(own_says(f, operation_state_FAILED));
    assert_null(own(f));
    assert_int_equal(last(f)->state, operation_state_FAILED);
    assert_non_null(strstr(last(f)->error_text, "no snapshot of VM web was made for it: host n1: "));
    goes(f);
    /* cancelled, which the host of the snapshot hears */
    static const enum operation_state ends[] = {operation_state_CANCELLED, operation_state_SUCCEEDED};
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        fixture_must(f, ROUTE_ID_vm_clone, "web", body);
        char operation[37];
        snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
        fixture_must(f, ROUTE_ID_operation_cancel, operation, NULL);
        snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
        const struct record_index *all = &fixture_get(f, object_kind_VM, "web")->of_vm.operations;
        assert_true(all->count == 1 && all->items[0]->operation->cancel_asked);
        assert_true(own_says(f, ends[i]));
        if (ends[i] == operation_state_SUCCEEDED) { /* it was there before */
            assert_true(ordered(f, &order) && order.cancel);
            OBJECT_CLEAR(task_order, &order);
            assert_int_equal(fixture_reconcile(f, NULL), 0);
            assert_int_equal(task_says(f, operation_state_CANCELLED), 1);
            own_goes(f);
        }
        assert_int_equal(last(f)->state, operation_state_CANCELLED);
        goes(f);
    }
    /* deleted */
    fixture_must(f, ROUTE_ID_vm_clone, "web", body);
    fixture_must(f, ROUTE_ID_vm_delete, "new", NULL);
    goes(f);
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* it is being made still */
    assert_true(own_says(f, operation_state_SUCCEEDED));
    own_goes(f);
    /* failed while it is copied */
    fixture_must(f, ROUTE_ID_vm_clone, "web", body);
    assert_true(own_says(f, operation_state_SUCCEEDED));
    assert_int_equal(task_says(f, operation_state_FAILED), 1);
    own_goes(f);
}

static void a_removal_that_failed_is_tried_again(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    assert_true(own_says(f, operation_state_SUCCEEDED));
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}");
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* somebody is at work there */
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_true(own_says(f, operation_state_FAILED));
    assert_int_equal(own(f)->state, snapshot_state_FAILED);
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    f->now_ms += RECONCILE_SNAPSHOT_AGAIN_MS;
    own_goes(f);
}

/* Both of its tasks end in one entry of the log. */
static void its_host_is_lost_before_there_is_a_snapshot(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"pool\":\"nas\"}");
    const struct operation *operation = last(f);
    fixture_lose(f, "n1");
    assert_int_equal(operation->state, operation_state_FAILED);
    assert_non_null(strstr(operation->error_text, "no snapshot of VM web was made for it: ")); /* once */
    assert_null(own(f));
    assert_null(state_get(f->state, object_kind_VM, "new"));
}

/* ---- with volumes ---- */

static const struct volume *volume(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VOLUME, name)->volume;
}

/* n1 says that it has made a volume, or (@gone) removed it. */
static int volume_says(struct fixture *f, const char *name, bool gone)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct volume_seen *seen = OBJECT_ADD(node_report, &report, volumes);
    OBJECT_TEXT(volume_seen, seen, id, volume(f, name)->id);
    OBJECT_TEXT(volume_seen, seen, place, volume(f, name)->place);
    if (gone)
        OBJECT_SET(volume_seen, seen, gone, true);
    else
        OBJECT_SET(volume_seen, seen, made, true);
    return fixture_send(f, &report);
}

static void volume_make(struct fixture *f, const char *name, const char *pool)
{
    char body[160];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"pool\":\"%s\",\"size_bytes\":1048576,\"labels\":{\"of\":\"%s\"}}", name, pool, name);
    fixture_must(f, ROUTE_ID_volume_create, NULL, body);
    assert_int_equal(volume_says(f, name, false), 1);
    fixture_must(f, ROUTE_ID_volume_attach, name, "{\"vm\":\"web\"}");
    fixture_vm_is(f, "web", (enum vm_state)fixture_vm(f, "web")->state);
    assert_int_equal(volume(f, name)->state, volume_state_ATTACHED);
}

/* "web-data" in the shared pool, limited, and "log" in a directory of n1. */
static void with_volumes(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/srv/ssd\",\"hosts\":[\"n1\"]}");
    fixture_say_pool(f, "n1", "ssd", 16 * GIB, 8 * GIB);
    volume_make(f, "web-data", "nas");
    volume_make(f, "log", "ssd");
    const struct vm_disk *disks = fixture_vm(f, "web")->disks.items;
    char body[400];
    snprintf(body, sizeof body,
             "{\"disks\":[{\"name\":\"root\"},{\"name\":\"data\"},{\"name\":\"cd\"},{\"name\":\"%s\",\"limits\":{\"operations_per_second\":500}},"
             "{\"name\":\"%s\"}]}", disks[3].name, disks[4].name);
    fixture_must(f, ROUTE_ID_vm_update, "web", body);
    fixture_vm_is(f, "web", vm_state_RUNNING);
}

static void made_with_it(struct fixture *f, const char *name, const char *origin, const char *pool)
{
    const struct volume *new = volume(f, name), *its = volume(f, origin);
    assert_string_equal(new->vm, fixture_vm(f, "new")->id);
    assert_string_equal(new->vm_name, "new");
    assert_string_equal(new->origin, its->id);
    assert_string_equal(new->disk, its->disk); /* the serial number that the guest knows it by */
    assert_string_equal(new->pool, pool);
    assert_true(text_same(new->host, strcmp(pool, "ssd") == 0 ? "n1" : NULL));
    assert_string_equal(new->place, f->decision.operation_id);
    assert_int_equal(new->size_bytes, its->size_bytes);
    assert_int_equal(new->attachments, 1);
    assert_string_equal(string_map_get(&new->labels, "of"), origin);
    assert_non_null(volume_disk_find(fixture_vm(f, "new"), new->id));
}

static void its_volumes_are_made_with_it(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    with_volumes(f);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    const struct record *nas = fixture_get(f, object_kind_POOL, "nas");
    made_with_it(f, "new-data", "web-data", "nas");
    made_with_it(f, "new-log", "log", "ssd");
    assert_int_equal(volume(f, "new-data")->state, volume_state_ATTACHING);
    assert_null(volume(f, "new-data")->snapshot); /* it goes */
    assert_int_equal(last(f)->volumes.count, 2);
    assert_string_equal(last(f)->volumes.items[0], "new-data");
    assert_string_equal(last(f)->volumes.items[1], "new-log");
    assert_string_equal(f->decision.summary, "host n1 makes VM new of VM web, with volumes new-data, new-log");
    const struct vm_disk *disks = fixture_vm(f, "new")->disks.items, *its = fixture_vm(f, "web")->disks.items;
    assert_int_equal(fixture_vm(f, "new")->disks.count, 5);
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(disks[i].name, its[i].name);
    assert_int_equal(disks[3].limits.operations_per_second, 500);
    assert_int_equal(disks[3].attachment, 1);
    const struct pool_host *member = pool_member_find(nas->pool, fixture_get(f, object_kind_HOST, "n2")->common->id);
    assert_true(pool_room_bytes(f->state, nas->pool, member) == 4 * GIB + GIB / 2 - (1 << 20));
    /* one of them grows before there is a snapshot of it */
    char operation[37];
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    fixture_must(f, ROUTE_ID_volume_update, "log", "{\"size_bytes\":2097152}");
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
    assert_int_equal(volume(f, "new-log")->size_bytes, 1 << 20);
    assert_false(ordered(f, &order));
    assert_true(own_says(f, operation_state_SUCCEEDED));
    assert_int_equal(volume(f, "new-log")->size_bytes, 2 << 20);
    assert_int_equal(volume_disk_find(fixture_vm(f, "new"), volume(f, "new-log")->id)->size_bytes, 2 << 20);
    assert_true(ordered(f, &order));
    assert_int_equal(order.copy.disks.count, 4);
    const struct volume_move *copy = (const struct volume_move *)order.copy.disks.items + 3;
    assert_string_equal(copy->from.id, volume(f, "log")->id);
    assert_string_equal(copy->to.id, volume(f, "new-log")->id);
    assert_null(copy->from.place);
    assert_string_equal(copy->to.place, f->decision.operation_id);
    assert_string_equal(copy->to.pool.name, "ssd");
    assert_false(copy->from.own || copy->to.own);
    assert_string_equal(copy->snapshot, own(f)->id);
    OBJECT_CLEAR(task_order, &order);
    /* what may not be done meanwhile, with the new and with the old; what only reads goes along */
    refused_meanwhile(f, ROUTE_ID_volume_delete, "new-data", NULL, -EBUSY, "volume 'new-data' is being made with VM 'new' still");
    refused_meanwhile(f, ROUTE_ID_volume_detach, "new-data", NULL, -EBUSY, "a vm-clone of VM 'new' is under way");
    refused_meanwhile(f, ROUTE_ID_volume_snapshot, "new-data", "{\"name\":\"t\"}", -EBUSY, "VM 'new' is being made");
    refused_meanwhile(f, ROUTE_ID_volume_move, "web-data", "{\"pool\":\"ssd\"}", -EBUSY, "VM 'new' is being made of the disks of VM 'web'");
    refused_meanwhile(f, ROUTE_ID_volume_detach, "web-data", NULL, -EBUSY, "volume 'new-data' of VM 'new' is being made of volume 'web-data'");
    fixture_must(f, ROUTE_ID_snapshot_create, "web", "{\"name\":\"t\"}");
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(volume(f, "new-data")->state, volume_state_ATTACHED);
    assert_null(volume(f, "new-data")->state_reason);
    own_goes(f);
    fixture_must(f, ROUTE_ID_snapshot_delete, "t", NULL);
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    /* volumes like any others, but that no VM has both */
    fixture_must(f, ROUTE_ID_vm_start, "new", NULL);
    fixture_vm_is(f, "new", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_volume_detach, "new-data", NULL);
    fixture_vm_is(f, "new", vm_state_RUNNING);
    fixture_refused(f, ROUTE_ID_volume_attach, "new-data", "{\"vm\":\"web\"}", -EEXIST, "/vm", "one was made of the other");
    fixture_must(f, ROUTE_ID_volume_delete, "new-data", NULL);
    assert_int_equal(volume_says(f, "new-data", true), 1);
    fixture_must(f, ROUTE_ID_vm_clone, "new", "{\"name\":\"next\"}");
    assert_non_null(state_get(f->state, object_kind_VOLUME, "next-log"));
}

/* They are nobody's, and a host is told to remove what there is, at that place. */
static void volume_goes(struct fixture *f, const char *name, const char *place)
{
    struct node_report report = fixture_report(f, "n1", 8192);
    struct node_orders orders = {0};
    bool told = false;
    assert_int_equal(volume(f, name)->state, volume_state_DELETING);
    assert_null(volume(f, name)->vm);
    assert_int_equal(node_sync_orders(f->state, &report, &orders, &f->error), 0);
    for (size_t k = 0; k < 2; k++) {
        const struct object_list *list = k == 0 ? &orders.volumes : &orders.moved_volumes;
        for (size_t i = 0; i < list->count; i++) {
            const struct volume_order *order = (const struct volume_order *)list->items + i;
            told |= strcmp(order->id, volume(f, name)->id) == 0 && order->remove && text_same(order->place, place);
        }
    }
    assert_true(told);
    OBJECT_CLEAR(node_orders, &orders);
    OBJECT_CLEAR(node_report, &report);
    assert_int_equal(volume_says(f, name, true), 1);
    assert_null(state_get(f->state, object_kind_VOLUME, name));
}

static void or_go_with_it(void **test)
{
    static const enum operation_state ends[] = {operation_state_FAILED, operation_state_CANCELLED, operation_state_SUCCEEDED};
    struct fixture *f = *test;
    char operation[37];
    with_volumes(f);
    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
        snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
        assert_true(own_says(f, operation_state_SUCCEEDED));
        if (ends[i] == operation_state_SUCCEEDED) { /* deleted on the way, and its host has done it all the same */
            fixture_must(f, ROUTE_ID_vm_delete, "new", NULL);
            snprintf(f->decision.operation_id, sizeof f->decision.operation_id, "%s", operation);
            assert_int_equal(volume(f, "new-log")->state, volume_state_ATTACHING); /* its host may be at it still */
        }
        assert_int_equal(task_says(f, ends[i]), 1);
        assert_null(volume_disk_any(fixture_vm(f, "new")));
        volume_goes(f, "new-data", operation);
        volume_goes(f, "new-log", operation);
        goes(f);
        own_goes(f);
    }
    /* no snapshot comes to be */
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    snprintf(operation, sizeof operation, "%s", f->decision.operation_id);
    assert_true(own_says(f, operation_state_FAILED));
    volume_goes(f, "new-data", operation);
    volume_goes(f, "new-log", operation);
    goes(f);
    assert_int_equal(volume(f, "web-data")->state, volume_state_ATTACHED);
    fixture_must(f, ROUTE_ID_volume_detach, "web-data", NULL);
}

/* In a shared pool another host removes what there is; in a directory of the lost one nobody does before it is back. */
static void and_with_their_host(void **test)
{
    struct fixture *f = *test;
    with_volumes(f);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    assert_true(own_says(f, operation_state_SUCCEEDED));
    fixture_lose(f, "n1");
    assert_null(state_get(f->state, object_kind_VM, "new"));
    assert_int_equal(volume(f, "new-data")->state, volume_state_DELETING);
    assert_int_equal(volume(f, "new-log")->state, volume_state_DELETING);
    assert_string_equal(volume_worker(f->state, volume(f, "new-data")), fixture_get(f, object_kind_HOST, "n2")->common->id);
    assert_null(volume_worker(f->state, volume(f, "new-log")));
}

static void volumes_of_one_that_is_off(void **test)
{
    struct fixture *f = *test;
    struct task_order order = {.id = NULL};
    with_volumes(f);
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    /* all of it in another pool; of what is no part of the named snapshot nothing is taken */
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"then\",\"snapshot\":\"s\"}");
    assert_null(volume_disk_any(fixture_vm(f, "then")));
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\",\"pool\":\"ssd\"}");
    made_with_it(f, "new-data", "web-data", "ssd");
    made_with_it(f, "new-log", "log", "ssd");
    assert_true(ordered(f, &order));
    assert_int_equal(order.copy.disks.count, 4);
    assert_null(((const struct volume_move *)order.copy.disks.items + 2)->snapshot);
    OBJECT_CLEAR(task_order, &order);
    refused_meanwhile(f, ROUTE_ID_volume_detach, "log", NULL, -EBUSY, "volume 'new-log' of VM 'new' is being made of volume 'log'");
    assert_int_equal(task_says(f, operation_state_SUCCEEDED), 1);
    assert_int_equal(volume(f, "new-log")->state, volume_state_ATTACHED);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"bare\",\"without_volumes\":true}");
    assert_int_equal(fixture_vm(f, "bare")->disks.count, 3);
    assert_int_equal(last(f)->volumes.count, 0);
    fixture_must(f, ROUTE_ID_volume_detach, "log", NULL); /* that is no part of it */
    refused_meanwhile(f, ROUTE_ID_volume_attach, "log", "{\"vm\":\"bare\"}", -EBUSY, "");
    refused_meanwhile(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"late\"}", -EBUSY, "volume 'log' of VM 'web' is detaching; wait for that");
}

static void what_is_refused_of_volumes(void **test)
{
    struct fixture *f = *test;
    const enum route_id go = ROUTE_ID_vm_clone;
    char body[100], name[60];
    with_volumes(f);
    fixture_must(f, ROUTE_ID_volume_create, NULL, "{\"name\":\"new-log\",\"pool\":\"nas\",\"size_bytes\":1048576}");
    fixture_refused(f, go, "web", "{\"name\":\"new\"}", -EEXIST, "/name", "the clone of volume 'log' the name 'new-log', which another volume has");
    assert_null(state_get(f->state, object_kind_VM, "new"));
    assert_null(state_get(f->state, object_kind_VOLUME, "new-data"));
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    snprintf(body, sizeof body, "{\"name\":\"%s\"}", name);
    fixture_refused(f, go, "web", body, -EINVAL, "/name", "is too long for its volumes: that of volume 'web-data' would be");
    /* two would have one name: the longer one has its whole one */
    volume_make(f, "data", "nas");
    fixture_must(f, go, "web", "{\"name\":\"two\"}");
    assert_string_equal(volume(f, "two-data")->origin, volume(f, "data")->id);
    assert_string_equal(volume(f, "two-web-data")->origin, volume(f, "web-data")->id);
    assert_int_equal(last(f)->volumes.count, 3);
    assert_true(own_says(f, operation_state_FAILED));
    /* one that is on its way */
    fixture_must(f, ROUTE_ID_volume_detach, "data", NULL);
    refused(f, go, "web", "{\"name\":\"three\"}", -EBUSY, "volume 'data' of VM 'web' is detaching; wait for that");
}

static void volumes_outlast_a_restart_and_a_recovery(void **test)
{
    struct fixture *f = *test;
    struct error error = {0};
    with_volumes(f);
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    assert_true(own_says(f, operation_state_SUCCEEDED));
    struct bytes_writer bytes = fixture_snapshot(f->state);
    struct state *restored = NULL;
    assert_int_equal(snapshot_read(bytes.data, bytes.size, &restored, &error), 0);
    fixture_same_bytes(f->state, restored);
    f->twin = restored;
    bytes_writer_finish(&bytes);
    const struct record *survivor = state_at(f->state, object_kind_CONTROLLER, 0);
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, survivor->common->id), 0);
    fixture_lose(f, "n1");
    fixture_same_bytes(f->state, restored);
    /* it may have run, with them */
    assert_int_equal(fixture_vm(f, "new")->state, vm_state_STOPPED);
    assert_int_equal(volume(f, "new-data")->state, volume_state_ATTACHED);
    assert_string_equal(volume(f, "new-data")->vm, fixture_vm(f, "new")->id);
    /* or not: with no other VM before that is seen, but by force */
    assert_true(volume(f, "new-data")->unproven && volume(f, "new-log")->unproven);
}

/* The task's end was lost; who deletes the VM before it is told keeps what may have been written, and who starts it knows. */
static void volumes_that_a_recovery_has_left_in_doubt(void **test)
{
    struct fixture *f = *test;
    with_volumes(f);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"far\",\"image\":\"tiny\",\"flavor\":\"small\",\"pin\":\"n2\",\"disks\":[]}");
    fixture_must(f, ROUTE_ID_vm_clone, "web", "{\"name\":\"new\"}");
    assert_true(own_says(f, operation_state_SUCCEEDED));
    const struct record *survivor = state_at(f->state, object_kind_CONTROLLER, 0);
    assert_int_equal(fixture_recover(f, state_cluster(f->state)->epoch + 1, survivor->common->id), 0);
    fixture_must(f, ROUTE_ID_vm_delete, "new", NULL);
    fixture_lose(f, "n1"); /* which may have it, and write */
    assert_int_equal(volume(f, "new-data")->state, volume_state_ATTACHING);
    f->force = true;
    fixture_must(f, ROUTE_ID_vm_delete, "new", NULL);
    f->force = false;
    assert_null(state_get(f->state, object_kind_VM, "new"));
    assert_int_equal(volume(f, "new-data")->state, volume_state_AVAILABLE);
    fixture_refused(f, ROUTE_ID_volume_attach, "new-data", "{\"vm\":\"far\"}", -EBUSY, "", "volume 'new-data' may be half: the cluster was recovered");
    f->force = true;
    fixture_must(f, ROUTE_ID_volume_attach, "new-data", "{\"vm\":\"far\"}");
    f->force = false;
    assert_true(volume(f, "new-data")->unproven);
    fixture_vm_is(f, "far", vm_state_RUNNING);
    assert_false(volume(f, "new-data")->unproven);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_comes_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(the_other_one_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(of_one_that_is_off, setup, teardown),
        cmocka_unit_test_setup_teardown(or_goes_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(its_host_is_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_report_does_not_make_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_recovered_cluster_keeps_what_may_have_run, setup, teardown),
        cmocka_unit_test_setup_teardown(it_outlasts_a_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_runs_is_cloned_by_a_snapshot_of_its_own, setup, teardown),
        cmocka_unit_test_setup_teardown(and_that_goes_however_it_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(a_removal_that_failed_is_tried_again, setup, teardown),
        cmocka_unit_test_setup_teardown(its_host_is_lost_before_there_is_a_snapshot, setup, teardown),
        cmocka_unit_test_setup_teardown(its_volumes_are_made_with_it, setup, teardown),
        cmocka_unit_test_setup_teardown(or_go_with_it, setup, teardown),
        cmocka_unit_test_setup_teardown(and_with_their_host, setup, teardown),
        cmocka_unit_test_setup_teardown(volumes_of_one_that_is_off, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused_of_volumes, setup, teardown),
        cmocka_unit_test_setup_teardown(volumes_outlast_a_restart_and_a_recovery, setup, teardown),
        cmocka_unit_test_setup_teardown(volumes_that_a_recovery_has_left_in_doubt, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
