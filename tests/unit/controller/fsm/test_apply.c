/* What each command does to the state: life of VMs, operations, idempotency, guards. */
#include "tests/unit/controller/fsm_fixture.h"

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    fixture_host(f, "n1", 8192);
    *test = f;
    return 0;
}
static int teardown(void **test)
{
    fixture_finish_all(*test);
    free(*test);
    return 0;
}

static void life_of_a_vm(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    const struct vm *vm = fixture_vm(f, "web");
    assert_int_equal(vm->epoch, 1);
    assert_int_equal(vm->generation, 1);
    assert_int_equal(vm->state, vm_state_STARTING);
    assert_int_equal(vm->vcpus, 1);
    assert_string_equal(vm->host_name, "n1");
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    assert_string_equal(f->result.operation_id, f->decision.operation_id);
    assert_int_equal(f->result.status, 202);
    assert_int_equal(fixture_vm_is(f, "web", vm_state_RUNNING), 1);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_non_null(fixture_operation(f)->ended_at);

    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    assert_int_equal(fixture_vm(f, "web")->generation, 2);
    assert_int_equal(fixture_vm(f, "web")->epoch, 1);
    fixture_vm_is(f, "web", vm_state_STOPPING);
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);

    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_STARTING);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    fixture_must(f, ROUTE_ID_vm_reboot, "web", NULL);
    assert_int_equal(fixture_vm(f, "web")->boot, 1);
    assert_int_equal(fixture_vm(f, "web")->epoch, 2);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_vm_pause, "web", NULL);
    fixture_vm_is(f, "web", vm_state_PAUSED);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_vm_resume, "web", NULL);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);

    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    assert_non_null(state_get(f->state, object_kind_VM, "web"));
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_start, "web", NULL), -ENOENT);
    assert_int_equal(f->error.kind, ERROR_CONFLICT);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL); /* again: harmless */
    fixture_vm_is(f, "web", vm_state_DELETED);
    assert_null(state_get(f->state, object_kind_VM, "web"));
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->of_host.committed_memory_bytes, 0);
}

static void starting_a_running_vm_is_harmless(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL); /* while it starts: follows the same start */
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    assert_int_equal(fixture_vm(f, "web")->generation, 1);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    uint64_t revision = fixture_vm(f, "web")->revision;
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_vm(f, "web")->epoch, 1);
    assert_int_equal(fixture_vm(f, "web")->revision, revision);
}

static void a_vm_that_ended_by_itself_starts_anew(void **test)
{
    struct fixture *f = *test;
    static const enum vm_state ends[] = {vm_state_STOPPED, vm_state_FAILED};
    fixture_create_vm(f, "web");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
        uint64_t epoch = fixture_vm(f, "web")->epoch;
        fixture_vm_is(f, "web", ends[i]);
        assert_int_equal(fixture_do(f, ROUTE_ID_vm_pause, "web", NULL), -EINVAL);
        assert_int_equal(fixture_do(f, ROUTE_ID_vm_reboot, "web", NULL), -EINVAL);
        assert_int_equal(fixture_do(f, ROUTE_ID_vm_resume, "web", NULL), -EINVAL);
        fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
        assert_int_equal(fixture_vm(f, "web")->epoch, epoch + 1);
        assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
        fixture_vm_is(f, "web", vm_state_RUNNING);
        assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    }
}

static void failure_ends_the_operation_with_its_reason(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    struct node_report report = fixture_report(f, "n1", 8192);
    struct vm_seen *seen = fixture_seen(&report, fixture_vm(f, "web"), vm_state_FAILED);
    OBJECT_TEXT(vm_seen, seen, reason, "the kernel's checksum differs");
    fixture_send(f, &report);
    assert_int_equal(fixture_operation(f)->state, operation_state_FAILED);
    assert_string_equal(fixture_operation(f)->error_code, "vm-failed");
    assert_string_equal(fixture_operation(f)->error_text, "the kernel's checksum differs");
    assert_string_equal(fixture_vm(f, "web")->state_reason, "the kernel's checksum differs");
}

/* The host says how far it is, and no step any more: the event has the one that it was in. */
static void progress_without_a_step_keeps_the_last(void **test)
{
    struct fixture *f = *test;
    struct state_event e;
    struct event event = {0};
    fixture_create_vm(f, "web");
    for (unsigned i = 0; i < 2; i++) {
        struct node_report report = fixture_report(f, "n1", 8192);
        struct vm_seen *seen = fixture_seen(&report, fixture_vm(f, "web"), vm_state_STARTING);
        if (i == 0)
            OBJECT_TEXT(vm_seen, seen, step, "fetching the kernel from a place that is far away");
        OBJECT_SET(vm_seen, seen, progress_done, 1000 * (i + 1));
        OBJECT_SET(vm_seen, seen, progress_total, 10000);
        assert_int_equal(fixture_send(f, &report), 1);
    }
    uint64_t serial = 0;
    while (state_event_next(f->state, serial, &e))
        serial = e.serial;
    assert_int_equal(OBJECT_DECODE(event, e.json, e.json_size, OBJECT_STORED, &event, NULL), 0);
    assert_string_equal(event.message, "vm-create of web: fetching the kernel from a place that is far away");
    assert_string_equal(fixture_operation(f)->step, "fetching the kernel from a place that is far away");
    OBJECT_CLEAR(event, &event);
}

static void a_newer_wish_overtakes_an_older_one(void **test)
{
    struct fixture *f = *test;
    char create[STATE_ID_BYTES];
    fixture_create_vm(f, "web");
    strcpy(create, f->decision.operation_id);
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    const struct operation *operation = fixture_get(f, object_kind_OPERATION, create)->operation;
    assert_int_equal(operation->state, operation_state_CANCELLED);
    assert_string_equal(operation->error_text, "overtaken by a vm-stop");
}

/* A host that does not answer collects operations; that must not keep a VM from being stopped or deleted. */
static void a_newer_wish_needs_no_room(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    for (unsigned i = 1; i < STATE_VM_OPERATIONS_MAX; i++)
        fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_start, "web", NULL), -EBUSY);
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    assert_int_equal(fixture_vm(f, "web")->wanted, vm_wanted_DELETED);
    assert_int_equal(fixture_get(f, object_kind_VM, "web")->of_vm.operations.count, 1);
}

static void reports_are_believed_only_from_the_owner_under_its_epoch(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 1024);
    fixture_create_vm(f, "web");
    const struct vm *vm = fixture_vm(f, "web");
    assert_string_equal(vm->host_name, "n1");
    struct {
        const char *host;
        uint64_t epoch, generation;
        enum vm_state state;
    } cases[] = {
        {"n2", 1, 1, vm_state_RUNNING}, /* not its own */
        {"n1", 0, 1, vm_state_RUNNING}, /* of an earlier run */
        {"n1", 2, 1, vm_state_RUNNING}, /* of a run that never was */
        {"n1", 1, 1, vm_state_DELETED}, /* not asked for */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct command_seen command = {0};
        struct bytes_writer bytes = {0};
        OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
        object_mark(&command_seen_desc, &command, "request");
        OBJECT_TEXT(host, &command.host, id, fixture_get(f, object_kind_HOST, cases[i].host)->common->id);
        object_mark(&command_seen_desc, &command, "host");
        struct vm_seen *seen = OBJECT_ADD(command_seen, &command, vms);
        OBJECT_TEXT(vm_seen, seen, id, vm->id);
        OBJECT_SET(vm_seen, seen, epoch, cases[i].epoch);
        OBJECT_SET(vm_seen, seen, generation, cases[i].generation);
        OBJECT_SET(vm_seen, seen, state, cases[i].state);
        assert_int_equal(command_encode(COMMAND_seen, &command, &bytes, NULL), 0);
        assert_int_equal(fixture_apply(f, &bytes), 0);
        assert_int_equal(fixture_vm(f, "web")->state, vm_state_STARTING);
        assert_int_equal(fixture_vm(f, "web")->seen_generation, 0);
        bytes_writer_finish(&bytes);
        OBJECT_CLEAR(command_seen, &command);
    }
}

static void a_late_report_does_not_go_back(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    fixture_vm_is(f, "web", vm_state_RUNNING);
    struct node_report late = fixture_report(f, "n1", 8192);
    fixture_seen(&late, fixture_vm(f, "web"), vm_state_RUNNING);
    struct bytes_writer command = {0};
    /* Made while it differed, applied when it is old. */
    ((struct vm_seen *)late.vms.items)->restarts = 1;
    assert_int_equal(node_sync_changes(f->state, fixture_now(f), &late, &command, NULL), 0);
    assert_true(command.size > 0);
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    fixture_vm_is(f, "web", vm_state_STOPPED);
    assert_int_equal(fixture_apply(f, &command), 0);
    assert_int_equal(fixture_vm(f, "web")->state, vm_state_STOPPED);
    bytes_writer_finish(&command);
    OBJECT_CLEAR(node_report, &late);
}

static int place(struct fixture *f, const char *vm, uint64_t from_epoch, const char *host)
{
    struct command_vm_place command = {0};
    struct bytes_writer bytes = {0};
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    object_mark(&command_vm_place_desc, &command, "request");
    OBJECT_TEXT(command_vm_place, &command, id, fixture_vm(f, vm)->id);
    OBJECT_SET(command_vm_place, &command, from_epoch, from_epoch);
    if (host != NULL)
        OBJECT_TEXT(command_vm_place, &command, host, fixture_get(f, object_kind_HOST, host)->common->id);
    OBJECT_TEXT(command_vm_place, &command, note, "because");
    command_encode(COMMAND_vm_place, &command, &bytes, NULL);
    int rc = fixture_apply(f, &bytes);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(command_vm_place, &command);
    return rc;
}

static void place_guards(void **test)
{
    struct fixture *f = *test;
    fixture_host(f, "n2", 1024);
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"big\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":17179869184}");
    assert_null(fixture_vm(f, "big")->host);
    assert_int_equal(fixture_vm(f, "big")->state, vm_state_PENDING);
    assert_int_equal(place(f, "big", 1, "n1"), -ESTALE);
    assert_int_equal(place(f, "big", 0, "n1"), -ENOSPC); /* does not fit */
    assert_int_equal(f->error.kind, ERROR_NO_HOST);
    assert_int_equal(place(f, "big", 0, NULL), 0); /* a note only */
    assert_string_equal(fixture_vm(f, "big")->placement, "because");
    assert_int_equal(fixture_vm(f, "big")->epoch, 0);
    fixture_create_vm(f, "web");
    assert_int_equal(place(f, "web", 1, "n2"), -EBUSY); /* its owner is not lost */
    assert_string_equal(fixture_vm(f, "web")->host_name, "n1");
    fixture_must(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"pin\",\"image\":\"tiny\",\"vcpus\":64,\"memory_bytes\":16777216,\"pin\":\"n2\"}");
    assert_int_equal(place(f, "pin", 0, "n1"), -EINVAL);
}

static void one_key_one_object(void **test)
{
    struct fixture *f = *test;
    f->key = "k1";
    f->fingerprint = "f1";
    fixture_create_vm(f, "web");
    struct bytes_writer again = f->decision.command;
    f->decision.command = (struct bytes_writer){0};
    char id[STATE_ID_BYTES], operation[STATE_ID_BYTES];
    strcpy(id, f->result.object_id);
    strcpy(operation, f->result.operation_id);
    uint64_t first = f->result.index;
    fixture_apply(f, &again); /* the command came twice: a retry after a lost answer */
    assert_int_equal(f->result.code, 0);
    assert_true(f->result.repeated);
    assert_string_equal(f->result.object_id, id);
    assert_string_equal(f->result.operation_id, operation);
    assert_int_equal(f->result.index, first);
    assert_int_equal(f->result.status, 202);
    bytes_writer_finish(&again);
    fixture_create_vm(f, "web"); /* decide knows it as well */
    assert_true(f->decision.repeated);
    assert_string_equal(f->decision.object_id, id);
    assert_string_equal(f->decision.operation_id, operation);
    f->fingerprint = "f2";
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_create, NULL, "{\"name\":\"w\",\"image\":\"tiny\",\"flavor\":\"small\"}"), -EEXIST);
    assert_int_equal(f->error.kind, ERROR_KEY_REUSED);
    f->key = NULL;
    fixture_must(f, ROUTE_ID_vm_stop, "web", NULL);
    f->now_ms += 25 * 3600 * 1000; /* by the time of commands it is forgotten after a day */
    fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    assert_null(state_answer(f->state, "k1"));
}

static void two_decisions_for_one_name(void **test)
{
    struct fixture *f = *test;
    struct decision_context context = fixture_context(f);
    struct vm vm = {0};
    struct decision a = {0}, b = {0};
    OBJECT_TEXT(vm, &vm, name, "web");
    OBJECT_TEXT(vm, &vm, image, "tiny");
    OBJECT_TEXT(vm, &vm, flavor, "small");
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &a, NULL), 0);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &b, NULL), 0);
    assert_int_equal(fixture_apply(f, &a.command), 0);
    assert_int_equal(fixture_apply(f, &b.command), -EEXIST); /* apply judges again */
    assert_int_equal(f->error.kind, ERROR_EXISTS);
    assert_string_equal(f->error.field, "/name");
    decision_finish(&a);
    decision_finish(&b);
    OBJECT_CLEAR(vm, &vm);
}

static void a_host_that_filled_up_meanwhile(void **test)
{
    struct fixture *f = *test;
    struct decision_context context = fixture_context(f);
    struct vm vm = {0};
    struct decision a = {0}, b = {0};
    OBJECT_TEXT(vm, &vm, name, "a");
    OBJECT_TEXT(vm, &vm, image, "tiny");
    OBJECT_SET(vm, &vm, vcpus, 1);
    OBJECT_SET(vm, &vm, memory_bytes, UINT64_C(6) << 30);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &a, NULL), 0);
    OBJECT_TEXT(vm, &vm, name, "b");
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &b, NULL), 0);
    assert_int_equal(fixture_apply(f, &a.command), 0);
    assert_int_equal(fixture_apply(f, &b.command), 0);
    assert_null(fixture_vm(f, "b")->host);
    assert_string_equal(fixture_vm(f, "b")->placement, "n1 has no room: needs 6144 MiB, 6144 of 7680 MiB are taken");
    decision_finish(&a);
    decision_finish(&b);
    OBJECT_CLEAR(vm, &vm);
}

static void what_is_used_stays(void **test)
{
    struct fixture *f = *test;
    fixture_create_vm(f, "web");
    assert_int_equal(fixture_do(f, ROUTE_ID_image_delete, "tiny", NULL), -EBUSY);
    assert_int_equal(f->error.kind, ERROR_IN_USE);
    assert_string_equal(f->error.text, "image 'tiny' cannot be removed: VM 'web' uses it");
    assert_int_equal(fixture_do(f, ROUTE_ID_flavor_delete, "small", NULL), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_host_remove, "n1", NULL), -EBUSY);
    assert_int_equal(fixture_do(f, ROUTE_ID_image_update, "tiny", "{\"name\":\"other\"}"), -EBUSY);
    fixture_must(f, ROUTE_ID_image_update, "tiny", "{\"labels\":{\"a\":\"b\"}}");
    fixture_must(f, ROUTE_ID_vm_delete, "web", NULL);
    fixture_vm_is(f, "web", vm_state_DELETED);
    fixture_must(f, ROUTE_ID_image_update, "tiny", "{\"name\":\"other\"}");
    fixture_must(f, ROUTE_ID_image_delete, "other", NULL);
    fixture_must(f, ROUTE_ID_host_remove, "n1", NULL);
}

static void patches_touch_only_their_fields(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"labels\":{\"rack\":\"a\"},\"schedulable\":false}");
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"cpu_ratio_percent\":100}");
    const struct host *host = fixture_get(f, object_kind_HOST, "n1")->host;
    assert_false(host->schedulable);
    assert_string_equal(string_map_get(&host->labels, "rack"), "a");
    assert_int_equal(host->cpus, 8);
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"labels\":null}");
    assert_int_equal(fixture_get(f, object_kind_HOST, "n1")->host->labels.count, 0);
    assert_int_equal(fixture_do(f, ROUTE_ID_host_update, "n1", "{\"name\":\"n9\"}"), -EINVAL);
    f->if_revision = 1;
    assert_int_equal(fixture_do(f, ROUTE_ID_host_update, "n1", "{\"schedulable\":true}"), -ENOENT);
    assert_int_equal(f->error.kind, ERROR_STALE);
    f->if_revision = fixture_get(f, object_kind_HOST, "n1")->common->revision;
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"schedulable\":true}");
    f->if_revision = 0;
    fixture_create_vm(f, "web");
    fixture_create_vm(f, "db");
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "web", "{\"name\":\"db\"}"), -EEXIST);
    fixture_must(f, ROUTE_ID_vm_update, "web", "{\"name\":\"www\",\"restart\":\"never\"}");
    assert_int_equal(fixture_vm(f, "www")->restart, restart_policy_NEVER);
    assert_null(state_get(f->state, object_kind_VM, "web"));
    assert_int_equal(fixture_do(f, ROUTE_ID_vm_update, "www", "{\"ha\":true}"), -EPERM);
    assert_string_equal(f->error.text, "ha needs 3 controllers with a vote, there are 1");
}

static void a_vm_without_a_host_needs_nobody(void **test)
{
    struct fixture *f = *test;
    const char *body = "{\"name\":\"big\",\"image\":\"tiny\",\"vcpus\":1,\"memory_bytes\":17179869184}";
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
    fixture_must(f, ROUTE_ID_vm_stop, "big", NULL);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    fixture_must(f, ROUTE_ID_vm_start, "big", NULL);
    assert_int_equal(fixture_vm(f, "big")->state, vm_state_PENDING);
    assert_int_equal(fixture_operation(f)->state, operation_state_RUNNING);
    char start[STATE_ID_BYTES];
    strcpy(start, f->decision.operation_id);
    fixture_must(f, ROUTE_ID_vm_delete, "big", NULL);
    assert_int_equal(fixture_operation(f)->state, operation_state_SUCCEEDED);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, start)->operation->state, operation_state_CANCELLED);
    assert_null(state_get(f->state, object_kind_VM, "big"));
}

static void operations_are_cancelled_once(void **test)
{
    struct fixture *f = *test;
    char id[STATE_ID_BYTES];
    fixture_create_vm(f, "web");
    strcpy(id, f->decision.operation_id);
    fixture_must(f, ROUTE_ID_operation_cancel, id, NULL);
    assert_int_equal(fixture_get(f, object_kind_OPERATION, id)->operation->state, operation_state_CANCELLED);
    assert_int_equal(fixture_do(f, ROUTE_ID_operation_cancel, id, NULL), -EALREADY);
    assert_int_equal(f->error.kind, ERROR_CONFLICT);
}

static void ended_operations_are_bounded(void **test)
{
    struct fixture *f = *test;
    char first[STATE_ID_BYTES];
    fixture_create_vm(f, "web");
    strcpy(first, f->decision.operation_id);
    fixture_vm_is(f, "web", vm_state_RUNNING);
    f->unchecked = true;
    for (unsigned i = 0; i < STATE_OPERATIONS_ENDED_MAX; i++)
        fixture_must(f, ROUTE_ID_vm_start, "web", NULL);
    f->unchecked = false;
    fixture_check(f);
    assert_int_equal(state_count(f->state, object_kind_OPERATION), STATE_OPERATIONS_ENDED_MAX);
    assert_null(state_get(f->state, object_kind_OPERATION, first));
    assert_non_null(state_get(f->state, object_kind_OPERATION, f->decision.operation_id));
}

static void events_tell_what_happened(void **test)
{
    struct fixture *f = *test;
    struct state_event e;
    uint64_t before = state_index(f->state);
    assert_false(state_event_after(f->state, before, &e));
    fixture_create_vm(f, "web");
    assert_true(state_event_after(f->state, before, &e));
    assert_int_equal(e.index, before + 1);
    struct event event;
    assert_int_equal(OBJECT_DECODE(event, e.json, e.json_size, OBJECT_STORED, &event, NULL), 0);
    assert_string_equal(event.message, "VM web made, on host n1");
    assert_string_equal(event.by, "tester");
    assert_int_equal(event.type, event_type_CREATED);
    OBJECT_CLEAR(event, &event);
    assert_true(state_event_next(f->state, e.serial, &e)); /* its operation, at the same index */
    assert_int_equal(e.index, before + 1);
    assert_int_equal(e.kind, object_kind_OPERATION);
    assert_false(state_event_next(f->state, e.serial, &e));
    assert_true(state_events_complete(f->state, 0));
    f->unchecked = true;
    for (unsigned i = 0; i < STATE_EVENTS_MAX; i++)
        fixture_must(f, ROUTE_ID_image_update, "tiny", i % 2 ? "{\"labels\":null}" : "{\"labels\":{\"a\":\"b\"}}");
    f->unchecked = false;
    fixture_check(f);
    assert_false(state_events_complete(f->state, 0));
    assert_true(state_events_complete(f->state, state_index(f->state) - STATE_EVENTS_MAX + 1));
    assert_true(state_event_after(f->state, state_index(f->state) - 1, &e));
    assert_int_equal(e.index, state_index(f->state));
    assert_true(state_event_after(f->state, 0, &e)); /* the oldest held */
    assert_int_equal(e.serial, state_events_serial(f->state) - STATE_EVENTS_MAX + 1);
}

/* Of c1 and c2 the first is left. */
static void lost_controllers_are_dropped(struct fixture *f)
{
    const struct record *c1 = state_at(f->state, object_kind_CONTROLLER, 0);
    char id[STATE_ID_BYTES];
    snprintf(id, sizeof id, "%s", c1->common->id);
    assert_int_equal(fixture_recover(f, 2, "99999999-9999-4999-8999-999999999999"), -ENOENT);
    assert_int_equal(state_count(f->state, object_kind_CONTROLLER), 2);
    assert_int_equal(fixture_recover(f, 2, id), 0);
    assert_int_equal(state_count(f->state, object_kind_CONTROLLER), 1);
    assert_string_equal(state_at(f->state, object_kind_CONTROLLER, 0)->common->id, id);
    assert_int_equal(state_cluster(f->state)->epoch, 2);
    assert_int_equal(state_voters(f->state), 1);
    assert_int_equal(fixture_recover(f, 2, id), -ESTALE); /* once */
}

static void controllers_join_with_ids_of_their_own(void **test)
{
    struct fixture *f = *test;
    struct join_request request = {0};
    uint64_t raft_id = 0, again = 0;
    fixture_must(f, ROUTE_ID_token_create, NULL, "{\"name\":\"t\",\"role\":\"controller\"}");
    const struct token *token = fixture_get(f, object_kind_TOKEN, "t")->token;
    assert_int_equal(time_text_ms(token->expires_at) - time_text_ms(token->created_at), 3600 * 1000);
    OBJECT_SET(join_request, &request, role, role_CONTROLLER);
    OBJECT_TEXT(join_request, &request, name, "c2");
    OBJECT_TEXT(join_request, &request, address, "192.0.2.2:7443");
    OBJECT_TEXT(join_request, &request, raft_address, "192.0.2.2:7444");
    struct decision_context context = fixture_context(f);
    struct decision a = {0}, b = {0};
    assert_int_equal(decide_join(f->state, &context, token->id, &request, &a, &raft_id, NULL), 0);
    assert_int_equal(raft_id, 2);
    assert_int_equal(fixture_apply(f, &a.command), 0);
    assert_int_equal(decide_join(f->state, &context, token->id, &request, &b, &again, NULL), 0);
    assert_int_equal(again, 2); /* asks again: the same identity */
    assert_string_equal(a.object_id, b.object_id);
    assert_int_equal(fixture_apply(f, &b.command), 0);
    assert_int_equal(state_cluster(f->state)->next_raft_id, 3);
    assert_int_equal(state_voters(f->state), 1);
    fixture_must(f, ROUTE_ID_controller_promote, "c2", NULL);
    assert_int_equal(state_voters(f->state), 2);
    lost_controllers_are_dropped(f);
    fixture_must(f, ROUTE_ID_token_create, NULL, "{\"name\":\"t2\",\"role\":\"controller\"}");
    decision_finish(&b);
    assert_int_equal(decide_join(f->state, &context, fixture_get(f, object_kind_TOKEN, "t2")->common->id, &request, &b, &again, NULL), 0);
    assert_int_equal(again, 3); /* its name is free again, its Raft id is not */
    assert_int_equal(fixture_apply(f, &b.command), 0);
    fixture_must(f, ROUTE_ID_controller_promote, "c2", NULL);
    decision_finish(&b);
    assert_int_equal(decide_join(f->state, &context, token->id, &request, &b, &again, &f->error), -EEXIST);
    f->now_ms += 2 * 3600 * 1000;
    context = fixture_context(f);
    OBJECT_TEXT(join_request, &request, name, "c3");
    assert_int_equal(decide_join(f->state, &context, token->id, &request, &b, &again, &f->error), -EPERM);
    assert_int_equal(f->error.kind, ERROR_FORBIDDEN);
    decision_finish(&a);
    decision_finish(&b);
    OBJECT_CLEAR(join_request, &request);
}

static void damaged_commands_are_refused_and_newer_ones_stop_us(void **test)
{
    struct fixture *f = *test;
    struct apply_result result;
    static const uint8_t newer[] = {2, 0, 2, 0, 2, 0, 0, 0, '{', '}'}, unknown[] = {200, 0, 1, 0, 2, 0, 0, 0, '{', '}'},
                         empty[] = {2, 0, 1, 0, 2, 0, 0, 0, '{', '}'};
    static const char field[] = "\2\0\1\0\11\0\0\0{\"new\":1}", nested[] = "\2\0\1\0\30\0\0\0{\"request\":{\"new\":true}}";
    uint64_t index = state_index(f->state);
    fsm_apply(f->state, index + 1, field, sizeof field - 1, &result);
    assert_int_equal(result.code, -EPROTONOSUPPORT);
    assert_true(result.fatal); /* the others may know it, and have applied it */
    assert_non_null(strstr(result.error.text, "/new"));
    fsm_apply(f->state, index + 1, nested, sizeof nested - 1, &result);
    assert_true(result.fatal);
    assert_non_null(strstr(result.error.text, "/request/new"));
    fsm_apply(f->state, index + 1, newer, sizeof newer, &result);
    assert_int_equal(result.code, -EPROTONOSUPPORT);
    assert_true(result.fatal);
    fsm_apply(f->state, index + 1, unknown, sizeof unknown, &result);
    assert_true(result.fatal);
    assert_int_equal(state_index(f->state), index);
    fsm_apply(f->state, index + 1, empty, sizeof empty, &result);
    assert_int_equal(result.code, -EINVAL);
    assert_false(result.fatal);
    assert_int_equal(state_index(f->state), index + 1);
    fsm_apply(f->state, index + 2, empty, 5, &result);
    assert_int_equal(result.code, -EBADMSG);
    fixture_check(f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(life_of_a_vm),
        TEST(starting_a_running_vm_is_harmless),
        TEST(a_vm_that_ended_by_itself_starts_anew),
        TEST(failure_ends_the_operation_with_its_reason),
        TEST(progress_without_a_step_keeps_the_last),
        TEST(a_newer_wish_overtakes_an_older_one),
        TEST(a_newer_wish_needs_no_room),
        TEST(reports_are_believed_only_from_the_owner_under_its_epoch),
        TEST(a_late_report_does_not_go_back),
        TEST(place_guards),
        TEST(one_key_one_object),
        TEST(two_decisions_for_one_name),
        TEST(a_host_that_filled_up_meanwhile),
        TEST(what_is_used_stays),
        TEST(patches_touch_only_their_fields),
        TEST(a_vm_without_a_host_needs_nobody),
        TEST(operations_are_cancelled_once),
        TEST(ended_operations_are_bounded),
        TEST(events_tell_what_happened),
        TEST(controllers_join_with_ids_of_their_own),
        TEST(damaged_commands_are_refused_and_newer_ones_stop_us),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
