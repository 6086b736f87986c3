/* A cluster in one struct for the tests of the state machine: a state, a counting clock, ids made of a counter. Every
 * command goes through the real codec, and the invariants are checked after each. */
#ifndef TESTS_UNIT_CONTROLLER_FSM_FIXTURE_H
#define TESTS_UNIT_CONTROLLER_FSM_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/command/decide.h"
#include "controller/fsm/apply.h"
#include "controller/fsm/check.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/snapshot.h"
#include "controller/fsm/time_text.h"
#include "controller/nodes/node_sync.h"
#include "controller/reconcile/reconcile.h"
#include "scheduler/view.h"

#define FIXTURE_EPOCH_MS UINT64_C(1769860800000) /* 2026-01-31T12:00:00.000Z */
#define FIXTURE_SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

struct fixture {
    struct state *state;
    struct state *twin; /* gets the same commands, where set */
    uint64_t now_ms, ids;
    char now[TIME_TEXT_BYTES];
    const char *key, *fingerprint; /* of the next request */
    uint64_t if_revision;
    bool dry_run, force;
    char resume_after[RECONCILE_NAME_SIZE]; /* of the leader's round */
    bool unchecked; /* leave the invariants to the test */
    struct decision decision;
    struct apply_result result;
    struct error error;
};

static inline void fixture_uuid(void *arg, char ret_id[STATE_ID_BYTES])
{
    struct fixture *f = arg;
    f->ids++;
    snprintf(ret_id, STATE_ID_BYTES, "%08llx-0000-4000-8000-%012llx",
             (unsigned long long)(f->ids * 2654435761u & 0xffffffff), (unsigned long long)f->ids);
}

static inline const char *fixture_now(struct fixture *f)
{
    time_text_format(FIXTURE_EPOCH_MS + (f->now_ms += 1), f->now);
    return f->now;
}

static inline struct decision_context fixture_context(struct fixture *f)
{
    return (struct decision_context){.now = fixture_now(f),
                                     .uuid = fixture_uuid,
                                     .uuid_arg = f,
                                     .by = "tester",
                                     .idempotency_key = f->key,
                                     .fingerprint = f->fingerprint,
                                     .if_revision = f->if_revision,
                                     .dry_run = f->dry_run,
                                     .force = f->force};
}

static inline void fixture_check(struct fixture *f)
{
    struct error error = {0};
    if (!f->unchecked && check_state(f->state, &error) < 0)
        fail_msg("after command %llu: %s", (unsigned long long)state_index(f->state), error.text);
}

static inline int fixture_apply(struct fixture *f, const struct bytes_writer *command)
{
    uint64_t index = state_index(f->state) + 1;
    fsm_apply(f->state, index, command->data, command->size, &f->result);
    if (f->twin != NULL) {
        struct apply_result result;
        fsm_apply(f->twin, index, command->data, command->size, &result);
        assert_int_equal(result.code, f->result.code);
        assert_string_equal(result.error.text, f->result.error.text);
    }
    f->error = f->result.error;
    fixture_check(f);
    return f->result.code;
}

/* Apply what was decided. */
static inline int fixture_finish(struct fixture *f, int rc)
{
    if (rc == 0 && !f->dry_run && !f->decision.repeated)
        rc = fixture_apply(f, &f->decision.command);
    return rc;
}

/* A request: decide and apply. Negative: refused by either, f->error says how. @body: JSON or NULL. */
static inline int fixture_do(struct fixture *f, enum route_id route, const char *id, const char *body)
{
    const struct route_desc *desc = &schema_routes[route];
    struct decision_context context = fixture_context(f);
    void *object = NULL;
    f->error = (struct error){0};
    decision_finish(&f->decision);
    if (body != NULL) {
        object = xcalloc(1, desc->body->size);
        enum object_mode mode = desc->method == ROUTE_PATCH ? OBJECT_PATCH : OBJECT_CREATE;
        int rc = object_decode(desc->body, body, strlen(body), mode, object, &f->error);
        if (rc < 0) {
            free(object);
            return rc;
        }
        if (route == ROUTE_ID_token_create)
            object_set_text(desc->body, object, "secret_sha256", FIXTURE_SHA);
    }
    int rc = decide_route(f->state, &context, route, id, id != NULL ? strlen(id) : 0, object, &f->decision, &f->error);
    if (object != NULL) {
        object_clear(desc->body, object);
        free(object);
    }
    return fixture_finish(f, rc);
}

static inline void fixture_must(struct fixture *f, enum route_id route, const char *id, const char *body)
{
    if (fixture_do(f, route, id, body) < 0)
        fail_msg("%s %s: %s %s", schema_routes[route].symbol, id ? id : "", f->error.field, f->error.text);
}

/* Refused with @code, of @field, in words that have @words. */
static inline void fixture_refused(struct fixture *f, enum route_id route, const char *id, const char *body, int code, const char *field,
                                   const char *words)
{
    assert_int_equal(fixture_do(f, route, id, body), code);
    assert_string_equal(f->error.field, field);
    if (strstr(f->error.text, words) == NULL)
        fail_msg("not '%s' but '%s'", words, f->error.text);
}

static inline const struct record *fixture_get(struct fixture *f, enum object_kind kind, const char *name)
{
    const struct record *record = state_get(f->state, kind, name);
    if (record == NULL)
        fail_msg("there is no %s %s", object_kind_desc.names[kind], name);
    return record;
}
static inline const struct vm *fixture_vm(struct fixture *f, const char *name)
{
    return fixture_get(f, object_kind_VM, name)->vm;
}
static inline const struct operation *fixture_operation(struct fixture *f)
{
    return fixture_get(f, object_kind_OPERATION, f->decision.operation_id)->operation;
}

/* A host joins. */
static inline void fixture_join(struct fixture *f, const char *name)
{
    struct join_request request = {0};
    struct decision_context context = fixture_context(f);
    uint64_t raft_id;
    const struct record *token = state_get(f->state, object_kind_TOKEN, "hosts");
    if (token == NULL) {
        fixture_must(f, ROUTE_ID_token_create, NULL, "{\"name\":\"hosts\",\"role\":\"host\",\"ttl_s\":604800}");
        token = fixture_get(f, object_kind_TOKEN, "hosts");
    }
    OBJECT_SET(join_request, &request, role, role_HOST);
    OBJECT_TEXT(join_request, &request, name, name);
    OBJECT_TEXT(join_request, &request, address, "192.0.2.1:7445");
    decision_finish(&f->decision);
    int rc = fixture_finish(f, decide_join(f->state, &context, token->common->id, &request, &f->decision, &raft_id, &f->error));
    OBJECT_CLEAR(join_request, &request);
    if (rc < 0)
        fail_msg("join of %s: %s", name, f->error.text);
}

/* One more controller with a vote; @number is a digit. */
static inline void fixture_voter(struct fixture *f, const char *name, unsigned number)
{
    char body[300];
    struct command_put put = {0};
    struct bytes_writer command = {0};
    snprintf(body, sizeof body,
             "{\"id\":\"0000000%u-0000-4000-8000-00000000dddd\",\"name\":\"%s\",\"raft_id\":%u,\"role\":\"voter\","
             "\"address\":\"192.0.2.%u:7443\",\"raft_address\":\"192.0.2.%u:7444\"}", number, name, number, number, number);
    assert_int_equal(OBJECT_DECODE(controller, body, strlen(body), OBJECT_STORED, &put.controller, NULL), 0);
    object_mark(&command_put_desc, &put, "controller");
    object_mark(&command_put_desc, &put, "request");
    OBJECT_TEXT(command_request, &put.request, at, fixture_now(f));
    OBJECT_SET(command_put, &put, create, true);
    assert_int_equal(command_encode(COMMAND_put, &put, &command, NULL), 0);
    assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    OBJECT_CLEAR(command_put, &put);
}

/* The report of host @name with 8 processors and @mib of memory; add VMs with fixture_seen. */
static inline struct node_report fixture_report(struct fixture *f, const char *name, uint64_t mib)
{
    struct node_report report = {0};
    OBJECT_TEXT(node_report, &report, host, fixture_get(f, object_kind_HOST, name)->common->id);
    OBJECT_TEXT(node_report, &report, name, name);
    OBJECT_TEXT(node_report, &report, address, "192.0.2.1:7445");
    OBJECT_TEXT(node_report, &report, boot_id, "boot-1");
    OBJECT_TEXT(node_report, &report, kvm, "svm");
    OBJECT_TEXT(node_report, &report, version, "1");
    OBJECT_SET(node_report, &report, generation, fixture_get(f, object_kind_HOST, name)->host->generation);
    OBJECT_SET(node_report, &report, cpus, 8);
    OBJECT_SET(node_report, &report, memory_bytes, mib << 20);
    OBJECT_SET(node_report, &report, disk_bytes, UINT64_C(1) << 40);
    OBJECT_SET(node_report, &report, shared_arrivals, true);
    OBJECT_SET(node_report, &report, replica_pools, true);
    OBJECT_SET(node_report, &report, replica_volumes, true);
    OBJECT_SET(node_report, &report, postcopy, true);
    return report;
}

static inline struct vm_seen *fixture_seen(struct node_report *report, const struct vm *vm, enum vm_state state)
{
    struct vm_seen *seen = OBJECT_ADD(node_report, report, vms);
    OBJECT_TEXT(vm_seen, seen, id, vm->id);
    OBJECT_SET(vm_seen, seen, epoch, vm->epoch);
    OBJECT_SET(vm_seen, seen, generation, vm->generation);
    OBJECT_SET(vm_seen, seen, state, state);
    return seen;
}

/* Send the report. 1: it made a command, 0: nothing differed. Clears it. */
static inline int fixture_send(struct fixture *f, struct node_report *report)
{
    struct bytes_writer command = {0};
    struct error error = {0};
    int rc = node_sync_changes(f->state, fixture_now(f), report, &command, &error);
    if (rc < 0)
        fail_msg("report: %s", error.text);
    OBJECT_CLEAR(node_report, report);
    bool any = command.size > 0;
    if (any)
        assert_int_equal(fixture_apply(f, &command), 0);
    bytes_writer_finish(&command);
    return any;
}

/* The host of @name is there with @mib of memory. */
static inline void fixture_host(struct fixture *f, const char *name, uint64_t mib)
{
    fixture_join(f, name);
    struct node_report report = fixture_report(f, name, mib);
    assert_int_equal(fixture_send(f, &report), 1);
}

/* Host @name gives its lease up: it is lost from now on. */
static inline void fixture_lose(struct fixture *f, const char *name)
{
    struct command_host_lost command = {0};
    struct bytes_writer bytes = {0};
    OBJECT_TEXT(command_host_lost, &command, id, fixture_get(f, object_kind_HOST, name)->common->id);
    OBJECT_SET(command_host_lost, &command, generation, fixture_get(f, object_kind_HOST, name)->host->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, 0);
    OBJECT_SET(command_host_lost, &command, left, true);
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    object_mark(&command_host_lost_desc, &command, "request");
    assert_int_equal(command_encode(COMMAND_host_lost, &command, &bytes, NULL), 0);
    assert_int_equal(fixture_apply(f, &bytes), 0);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(command_host_lost, &command);
}

/* The VM's host reports it in @state, at the newest generation. */
static inline int fixture_vm_is(struct fixture *f, const char *name, enum vm_state state)
{
    const struct vm *vm = fixture_vm(f, name);
    const struct host *host = fixture_get(f, object_kind_HOST, vm->host)->host;
    struct node_report report = fixture_report(f, vm->host_name, host->memory_bytes >> 20);
    OBJECT_SET(node_report, &report, cpus, host->cpus);
    fixture_seen(&report, vm, state);
    return fixture_send(f, &report);
}

/* The leader's tick; returns how many commands were applied. */
static inline unsigned fixture_reconcile(struct fixture *f, const struct reconcile_input *given)
{
    struct reconcile_output *output = NEW(struct reconcile_output);
    struct reconcile_input input = given != NULL ? *given : (struct reconcile_input){.now_ms = 1, .leader_since_ms = 1};
    input.now = fixture_now(f);
    input.uuid = fixture_uuid;
    input.uuid_arg = f;
    input.resume_after = f->resume_after;
    reconcile_tick(f->state, &input, output);
    memcpy(f->resume_after, output->resume_after, sizeof f->resume_after);
    unsigned count = output->count;
    for (unsigned i = 0; i < count; i++)
        fixture_apply(f, &output->commands[i]);
    reconcile_output_finish(output);
    free(output);
    return count;
}

static inline void fixture_empty(struct fixture *f)
{
    *f = (struct fixture){.state = state_create()};
}

static inline void fixture_make_cluster(struct fixture *f)
{
    struct cluster cluster = {0};
    struct controller controller = {0};
    struct decision_context context = fixture_context(f);
    OBJECT_TEXT(cluster, &cluster, name, "test");
    OBJECT_TEXT(controller, &controller, name, "c1");
    OBJECT_TEXT(controller, &controller, address, "192.0.2.1:7443");
    OBJECT_TEXT(controller, &controller, raft_address, "192.0.2.1:7444");
    OBJECT_SET(controller, &controller, raft_id, 1);
    decision_finish(&f->decision);
    int rc = fixture_finish(f, decide_init(f->state, &context, &cluster, &controller, &f->decision, &f->error));
    OBJECT_CLEAR(cluster, &cluster);
    OBJECT_CLEAR(controller, &controller);
    if (rc < 0)
        fail_msg("init: %s", f->error.text);
}

/* A cluster with the image "tiny", the flavor "small" (1 vCPU, 256 MiB) and nothing else. */
static inline void fixture_init(struct fixture *f)
{
    fixture_empty(f);
    fixture_make_cluster(f);
    fixture_must(f, ROUTE_ID_image_create, NULL,
                 "{\"name\":\"tiny\",\"kind\":\"kernel\",\"kernel\":{\"url\":\"file:///boot/k\",\"sha256\":\"" FIXTURE_SHA
                 "\"},\"cmdline\":\"console=ttyS0\"}");
    fixture_must(f, ROUTE_ID_flavor_create, NULL, "{\"name\":\"small\",\"vcpus\":1,\"memory_bytes\":268435456}");
}

static inline void fixture_finish_all(struct fixture *f)
{
    decision_finish(&f->decision);
    state_destroy(f->state);
    state_destroy(f->twin);
    *f = (struct fixture){0};
}

static inline void fixture_create_vm(struct fixture *f, const char *name)
{
    char body[200];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"image\":\"tiny\",\"flavor\":\"small\"}", name);
    fixture_must(f, ROUTE_ID_vm_create, NULL, body);
}

/* @command with what every request has, applied as it is: what the leader of another version might have decided. */
static inline int fixture_apply_put(struct fixture *f, struct command_put *command)
{
    struct bytes_writer bytes = {0};
    OBJECT_TEXT(command_request, &command->request, at, fixture_now(f));
    object_mark(&command_put_desc, command, "request");
    assert_int_equal(command_encode(COMMAND_put, command, &bytes, NULL), 0);
    int rc = fixture_apply(f, &bytes);
    bytes_writer_finish(&bytes);
    OBJECT_CLEAR(command_put, command);
    return rc;
}

/* The cluster goes on from @survivor (an id) alone. */
static inline int fixture_recover(struct fixture *f, uint64_t epoch, const char *survivor)
{
    struct command_recover command = {0};
    struct bytes_writer bytes = {0};
    object_mark(&command_recover_desc, &command, "request");
    OBJECT_TEXT(command_request, &command.request, at, fixture_now(f));
    OBJECT_SET(command_recover, &command, epoch, epoch);
    OBJECT_TEXT(command_recover, &command, survivor, survivor);
    assert_int_equal(command_encode(COMMAND_recover, &command, &bytes, NULL), 0);
    int rc = fixture_apply(f, &bytes);
    OBJECT_CLEAR(command_recover, &command);
    bytes_writer_finish(&bytes);
    return rc;
}

/* Host @name reports pool @pool of @size_bytes with @free_bytes of room; 0: it is not there. */
static inline void fixture_say_pool(struct fixture *f, const char *name, const char *pool, uint64_t size_bytes, uint64_t free_bytes)
{
    struct node_report report = fixture_report(f, name, 8192);
    struct pool_seen *seen = OBJECT_ADD(node_report, &report, pools);
    OBJECT_TEXT(pool_seen, seen, id, fixture_get(f, object_kind_POOL, pool)->common->id);
    OBJECT_SET(pool_seen, seen, present, free_bytes > 0);
    bool is_dir = fixture_get(f, object_kind_POOL, pool)->pool->kind == pool_kind_DIR; /* one for each host */
    OBJECT_TEXT(pool_seen, seen, mark, is_dir ? name : "aa");
    OBJECT_SET(pool_seen, seen, size_bytes, size_bytes);
    OBJECT_SET(pool_seen, seen, free_bytes, free_bytes);
    fixture_send(f, &report);
}

static inline struct bytes_writer fixture_snapshot(const struct state *state)
{
    struct bytes_writer out = {0};
    snapshot_write(state, &out);
    return out;
}

static inline void fixture_same_bytes(const struct state *a, const struct state *b)
{
    struct bytes_writer x = fixture_snapshot(a), y = fixture_snapshot(b);
    if (x.size != y.size)
        fail_msg("snapshots of %zu and %zu bytes", x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    bytes_writer_finish(&x);
    bytes_writer_finish(&y);
}

#endif
