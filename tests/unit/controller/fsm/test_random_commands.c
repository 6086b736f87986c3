/* Random streams of requests, reports, ticks and repeats: the invariants hold after each command, two states that get
 * the same commands are equal byte for byte, and so is one that was saved and read back on the way. Then every VM is
 * brought to rest: no operation may be left running. */
#include "tests/unit/controller/fsm_fixture.h"

#define STREAMS 30u
#define STEPS 400u
#define HOSTS 3u

struct walk {
    struct fixture f;
    uint64_t random;
    struct bytes_writer old[8]; /* commands to be applied again, late */
};

static unsigned pick(struct walk *w, unsigned below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (unsigned)((w->random * UINT64_C(2685821657736338717)) >> 33) % below;
}

static const struct record *random_of(struct walk *w, enum object_kind kind)
{
    size_t count = state_count(w->f.state, kind);
    return count > 0 ? state_at(w->f.state, kind, pick(w, (unsigned)count)) : NULL;
}

static void keep_for_later(struct walk *w, const struct bytes_writer *command)
{
    struct bytes_writer *slot = &w->old[pick(w, ARRAY_SIZE(w->old))];
    bytes_writer_finish(slot);
    bytes_put(slot, command->data, command->size);
}

/* Volumes come, go from VM to VM, grow and go. */
static void volume_request(struct walk *w)
{
    char body[120];
    const struct record *volume = random_of(w, object_kind_VOLUME), *vm = random_of(w, object_kind_VM);
    unsigned what = pick(w, 8);
    if (volume == NULL || what == 0) {
        snprintf(body, sizeof body, "{\"name\":\"v%u\",\"pool\":\"%s\",\"size_bytes\":%u}", pick(w, 6), pick(w, 2) ? "nas" : "ssd",
                 1048576 * (1 + pick(w, 4)));
        fixture_do(&w->f, ROUTE_ID_volume_create, NULL, body);
    } else if (what < 4 && vm != NULL) {
        snprintf(body, sizeof body, "{\"vm\":\"%s\"}", vm->common->name);
        fixture_do(&w->f, ROUTE_ID_volume_attach, volume->common->id, body);
    } else if (what < 6) {
        fixture_do(&w->f, ROUTE_ID_volume_detach, volume->common->id, NULL);
    } else if (what == 6) {
        snprintf(body, sizeof body, "{\"size_bytes\":%u}", 1048576 * (1 + pick(w, 8)));
        fixture_do(&w->f, ROUTE_ID_volume_update, volume->common->id, body);
    } else {
        fixture_do(&w->f, ROUTE_ID_volume_delete, volume->common->id, NULL);
    }
}

static void request(struct walk *w)
{
    static const enum route_id routes[] = {ROUTE_ID_vm_start, ROUTE_ID_vm_stop,   ROUTE_ID_vm_reboot,
                                           ROUTE_ID_vm_pause, ROUTE_ID_vm_resume, ROUTE_ID_vm_delete};
    char body[200], key[16], name[16];
    bool keyed = pick(w, 3) == 0;
    snprintf(key, sizeof key, "k%u", pick(w, 40));
    w->f.key = keyed ? key : NULL;
    w->f.fingerprint = pick(w, 8) == 0 ? "b" : "a";
    const struct record *vm = random_of(w, object_kind_VM);
    unsigned what = pick(w, 18);
    if (what >= 14) {
        volume_request(w);
    } else if (what < 3 || vm == NULL) {
        snprintf(body, sizeof body, "{\"name\":\"vm%u\",\"image\":\"tiny\",\"vcpus\":%u,\"memory_bytes\":%u%s%s}", pick(w, 12),
                 1 + pick(w, 8), 16777216 * (1 + pick(w, 40)), pick(w, 4) == 0 ? ",\"started\":false" : "",
                 pick(w, 5) == 0 ? ",\"pin\":\"n1\"" : "");
        fixture_do(&w->f, ROUTE_ID_vm_create, NULL, body);
    } else if (what < 10) {
        fixture_do(&w->f, routes[pick(w, ARRAY_SIZE(routes))], vm->common->id, NULL);
    } else if (what == 10) {
        snprintf(name, sizeof name, "{\"name\":\"vm%u\"}", pick(w, 12));
        fixture_do(&w->f, ROUTE_ID_vm_update, vm->common->id, name);
    } else if (what == 11) {
        fixture_do(&w->f, ROUTE_ID_vm_migrate, vm->common->id, NULL);
    } else if (what == 12) {
        const struct record *operation = random_of(w, object_kind_OPERATION), *host = random_of(w, object_kind_HOST);
        if (operation != NULL && host != NULL) {
            snprintf(body, sizeof body, "{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu}",
                     pick(w, 4) != 0 && operation->operation->task.host != NULL ? operation->operation->task.host : host->common->id,
                     operation->common->id, (unsigned long long)(vm->vm->epoch + (pick(w, 4) == 0)));
            fixture_do(&w->f, ROUTE_ID_node_handover, NULL, body);
        }
    } else {
        const struct record *operation = random_of(w, object_kind_OPERATION);
        if (operation != NULL)
            fixture_do(&w->f, ROUTE_ID_operation_cancel, operation->common->id, NULL);
    }
    if (w->f.decision.command.size > 0)
        keep_for_later(w, &w->f.decision.command);
    w->f.key = NULL;
}

/* What a host says of its tasks: anything, or that they have ended. */
static void put_tasks(struct walk *w, const struct record *host, struct node_report *r, bool ended)
{
    for (size_t i = 0; i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        bool is_main = strcmp(operation->task.host, host->common->id) == 0;
        if (!ended && pick(w, 2) == 0)
            continue;
        struct task_seen *seen = OBJECT_ADD(node_report, r, tasks);
        OBJECT_TEXT(task_seen, seen, id, operation->id);
        OBJECT_SET(task_seen, seen, role, is_main ? task_role_MAIN : task_role_PEER);
        OBJECT_SET(task_seen, seen, state, ended ? operation_state_FAILED : (enum operation_state)pick(w, operation_state_COUNT));
        if (pick(w, 2) == 0)
            OBJECT_TEXT(task_seen, seen, error_text, "for some reason");
        if (!is_main && pick(w, 2) == 0)
            OBJECT_SET(task_seen, seen, ready, true);
    }
}

/* What a host says of volumes: what it was asked for, or was not, is done or not. */
static void put_volumes(struct walk *w, struct node_report *r)
{
    for (size_t i = 0; i < state_count(w->f.state, object_kind_VOLUME); i++) {
        if (pick(w, 2) == 0)
            continue;
        struct volume_seen *seen = OBJECT_ADD(node_report, r, volumes);
        OBJECT_TEXT(volume_seen, seen, id, state_at(w->f.state, object_kind_VOLUME, i)->common->id);
        OBJECT_SET(volume_seen, seen, made, pick(w, 2) == 0);
        OBJECT_SET(volume_seen, seen, gone, pick(w, 4) == 0);
        if (pick(w, 4) == 0)
            OBJECT_TEXT(volume_seen, seen, reason, "for some reason");
    }
}

/* A host reports about its VMs: mostly the truth of some agent, at times an old epoch, another's VM, a wild state. */
static void report(struct walk *w)
{
    const struct record *host = random_of(w, object_kind_HOST);
    struct node_report r = fixture_report(&w->f, host->common->name, pick(w, 10) == 0 ? 700 : 1024);
    for (size_t i = 0; i < state_count(w->f.state, object_kind_VM); i++) {
        const struct vm *vm = state_at(w->f.state, object_kind_VM, i)->vm;
        if (pick(w, 3) == 0)
            continue;
        struct vm_seen *seen = fixture_seen(&r, vm, (enum vm_state)pick(w, vm_state_COUNT));
        if (pick(w, 4) == 0)
            seen->epoch = pick(w, 4);
        if (pick(w, 4) == 0)
            seen->generation = pick(w, 6);
        if (pick(w, 4) == 0)
            OBJECT_TEXT(vm_seen, seen, reason, "for some reason");
    }
    put_tasks(w, host, &r, false);
    put_volumes(w, &r);
    struct bytes_writer command = {0};
    assert_int_equal(node_sync_changes(w->f.state, fixture_now(&w->f), &r, &command, NULL), 0);
    OBJECT_CLEAR(node_report, &r);
    if (command.size > 0) {
        keep_for_later(w, &command);
        if (pick(w, 5) != 0) /* else it comes late or never */
            fixture_apply(&w->f, &command);
    }
    bytes_writer_finish(&command);
}

static void step(struct walk *w)
{
    struct reconcile_input silence = {.now_ms = 1000000};
    switch (pick(w, 10)) {
    case 0:
        fixture_reconcile(&w->f, NULL);
        break;
    case 1:
        if (pick(w, 5) == 0)
            fixture_reconcile(&w->f, &silence);
        break;
    case 2: {
        const struct bytes_writer *old = &w->old[pick(w, ARRAY_SIZE(w->old))];
        if (old->size > 0)
            fixture_apply(&w->f, old);
        break;
    }
    case 3:
    case 4:
    case 5:
        report(w);
        break;
    default:
        request(w);
    }
}

/* What an agent does in the end: everything as it is wanted. */
static void come_to_rest(struct walk *w)
{
    static const enum vm_state reached[] = {[vm_wanted_RUNNING] = vm_state_RUNNING,
                                            [vm_wanted_PAUSED] = vm_state_PAUSED,
                                            [vm_wanted_STOPPED] = vm_state_STOPPED,
                                            [vm_wanted_DELETED] = vm_state_DELETED};
    struct fixture *f = &w->f;
    fixture_must(f, ROUTE_ID_host_update, "n1", "{\"memory_reserve_bytes\":0,\"cpu_ratio_percent\":6400}");
    for (unsigned round = 0; round < 3; round++) {
        struct node_report r = fixture_report(f, "n1", 1 << 20);
        fixture_send(f, &r);
        fixture_reconcile(f, NULL);
        for (size_t i = state_count(f->state, object_kind_VM); i-- > 0;) {
            const struct vm *vm = state_at(f->state, object_kind_VM, i)->vm;
            if (vm->host != NULL)
                fixture_vm_is(f, vm->name, reached[vm->wanted]);
        }
        for (size_t i = 0; i < state_count(f->state, object_kind_HOST); i++) {
            const struct record *host = state_at(f->state, object_kind_HOST, i);
            struct node_report tasks = fixture_report(f, host->common->name, host->host->memory_bytes >> 20);
            put_tasks(w, host, &tasks, true);
            fixture_send(f, &tasks);
        }
    }
    for (size_t i = 0; i < state_count(f->state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(f->state, object_kind_VOLUME, i)->volume;
        const struct record *vm = state_get(f->state, object_kind_VM, volume->vm);
        if (volume->state == volume_state_DETACHING || (volume->state == volume_state_ATTACHING && vm->vm->host != NULL))
            fail_msg("at rest, volume %s is %s", volume->name, volume_state_desc.names[volume->state]);
    }
    for (size_t i = 0; i < state_count(f->state, object_kind_OPERATION); i++) {
        const struct operation *operation = state_at(f->state, object_kind_OPERATION, i)->operation;
        if (operation->state == operation_state_RUNNING)
            fail_msg("at rest, %s of %s still runs: %s", operation_kind_desc.names[operation->kind], operation->target_name,
                     operation->step);
    }
}

/* One for all hosts, and a directory of each of two. */
static void make_pools(struct fixture *f)
{
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"nas\",\"kind\":\"shared-dir\",\"path\":\"/n\",\"hosts\":[\"n1\",\"n2\",\"n3\"]}");
    fixture_must(f, ROUTE_ID_pool_create, NULL, "{\"name\":\"ssd\",\"kind\":\"dir\",\"path\":\"/s\",\"hosts\":[\"n1\",\"n2\"]}");
    for (unsigned i = 1; i <= HOSTS; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        struct node_report r = fixture_report(f, name, 1024);
        for (size_t k = 0; k < state_count(f->state, object_kind_POOL); k++) {
            struct pool_seen *seen = OBJECT_ADD(node_report, &r, pools);
            OBJECT_TEXT(pool_seen, seen, id, state_at(f->state, object_kind_POOL, k)->common->id);
            OBJECT_SET(pool_seen, seen, present, true);
            OBJECT_TEXT(pool_seen, seen, mark, "aa");
            OBJECT_SET(pool_seen, seen, size_bytes, UINT64_C(1) << 40);
            OBJECT_SET(pool_seen, seen, free_bytes, UINT64_C(1) << 39);
        }
        fixture_send(f, &r);
    }
}

static void walk(uint64_t seed)
{
    struct walk w = {.random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    fixture_init(&w.f);
    for (unsigned i = 1; i <= HOSTS; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        fixture_host(&w.f, name, 1024);
    }
    make_pools(&w.f);
    struct bytes_writer snapshot = fixture_snapshot(w.f.state);
    assert_int_equal(snapshot_read(snapshot.data, snapshot.size, &w.f.twin, NULL), 0);
    bytes_writer_finish(&snapshot);
    for (unsigned i = 0; i < STEPS; i++) {
        step(&w);
        if (i % 50 == 49) { /* the twin starts again from a snapshot of itself */
            fixture_same_bytes(w.f.state, w.f.twin);
            snapshot = fixture_snapshot(w.f.twin);
            assert_int_equal(snapshot_restore(w.f.twin, snapshot.data, snapshot.size, NULL), 0);
            bytes_writer_finish(&snapshot);
        }
    }
    come_to_rest(&w);
    fixture_same_bytes(w.f.state, w.f.twin);
    for (unsigned i = 0; i < ARRAY_SIZE(w.old); i++)
        bytes_writer_finish(&w.old[i]);
    fixture_finish_all(&w.f);
}

static void random_streams(void **test UNUSED)
{
    const char *given = getenv("SEED");
    uint64_t first = given != NULL ? strtoull(given, NULL, 10) : 1;
    for (uint64_t seed = first; seed < first + (given != NULL ? 1 : STREAMS); seed++) {
        printf("seed %llu\n", (unsigned long long)seed);
        walk(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_streams)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
