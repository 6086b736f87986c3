/* The machine of one VM on a real loop, with a shell script in the VMM's place and its control socket served by the
 * test: start, stop, delete, adoption after the agent's end, stale names, epochs, failures. THREADED: disks and
 * images are made in the loop's pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/file.h"
#include "common/http_server.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/migrate_in.h"
#include "compute/agent/replica_dir.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_watch.h"
#include "compute/agent/vm.h"
#include "tests/unit/scratch.h"

#define VM_ID "aaaaaaaa-0000-4000-8000-000000000001"
#define BOOT "11111111-2222-4333-8444-555555555555"
#define SHA_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define SHA_ABD "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9"
#define DEADLINE_MS 120000
/* ends with this process at the latest, so that nothing stays behind */
#define LONG_PROGRAM "#!/bin/sh\nexec setpriv --pdeathsig KILL -- sleep 600\n"

struct fixture {
    uv_loop_t loop;
    uv_timer_t deadline, turn; /* turn: no wait of the loop is longer than this */
    char dir[64], vms[96], run[96], images[96], program[96], kernel[96];
    struct vm_context context;
    struct http_client *http;
    struct image_cache *cache;
    struct http_server *server; /* the VMM's control socket */
    struct local_vm *vm;
    uint64_t epoch; /* that the VMM says it runs under */
    bool paused;
    unsigned stops, changes, closed;
    /* devices that the VMM has: disk root and, perhaps, nic2 */
    bool has_nic, refuse_disk;
    const char *disk_path; /* of its disk; NULL: any */
    const char *move_path; /* of a move of its disk that is held; NULL: there is none */
    bool has_no_disk;
    unsigned taken, given_up;
    /* a migration that its VMM is in */
    const char *phase;
    bool is_source;
    unsigned told_here, told_there, asked;
    const char *phase_taken;   /* that the word that it is ours leads to; NULL: done */
    unsigned memory_given_up;
    const char *phase_ordered; /* that its order to hand over leads to; NULL: to nothing */
    bool yields;               /* to a cancel */
    unsigned ordered, cancels;
    struct http_server *next_server; /* of the VMM that is to take over... */
    const char *next_phase;          /* ...which says so of itself */
    struct agent agent;              /* for tasks */
    unsigned unplugs, disk_changes, looks;
    unsigned long long disk_rate;
};

static void write_program(struct fixture *f, const char *text)
{
    assert_int_equal(file_write_atomic(f->program, text, strlen(text), 0755, NULL), 0);
}

static void on_deadline(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("not within %d ms", DEADLINE_MS);
}

static void on_turn(uv_timer_t *timer)
{
    (void)timer;
}

static void on_changed(struct local_vm *vm, void *arg)
{
    (void)vm;
    ((struct fixture *)arg)->changes++;
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/local_vm.XXXXXX");
    assert_true(scratch_make(f->dir));
    snprintf(f->vms, sizeof(f->vms), "%s/vms", f->dir);
    snprintf(f->run, sizeof(f->run), "%s/run", f->dir);
    snprintf(f->images, sizeof(f->images), "%s/images", f->dir);
    snprintf(f->program, sizeof(f->program), "%s/vmm", f->dir);
    snprintf(f->kernel, sizeof(f->kernel), "%s/kernel", f->dir);
    assert_int_equal(mkdir(f->vms, 0700) | mkdir(f->run, 0700), 0);
    assert_int_equal(file_write_atomic(f->kernel, "abc", 3, 0644, NULL), 0);
    write_program(f, LONG_PROGRAM);
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->deadline);
    uv_timer_start(&f->deadline, on_deadline, DEADLINE_MS, 0);
    uv_timer_init(&f->loop, &f->turn);
    uv_timer_start(&f->turn, on_turn, 5, 5);
    assert_int_equal(http_client_create(&f->loop, &f->http, NULL), 0);
    assert_int_equal(image_cache_create(&f->loop, f->images, 0, &f->cache, NULL), 0);
    f->context = (struct vm_context){
        .loop = &f->loop,
        .http = f->http,
        .images = f->cache,
        .places = {.vms_dir = f->vms, .run_dir = f->run, .images_dir = f->images},
        .vmm_path = f->program,
        .boot_id = BOOT,
        .changed = on_changed,
        .arg = f,
    };
    f->epoch = 1;
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->closed++;
}

static char *lock_path(struct fixture *f)
{
    return xasprintf("%s/%s/vmm.lock", f->vms, VM_ID);
}

/* The VMM's pid by its lock; 0 where none lives. */
static pid_t vmm_pid(struct fixture *f)
{
    CLEANUP_FREE char *path = lock_path(f);
    struct vmm_process_id id;
    return vmm_process_look(path, &id, NULL) == 1 ? id.pid : 0;
}

static void close_vm(struct fixture *f)
{
    unsigned closed = f->closed;
    vm_close(f->vm, on_closed, f);
    while (f->closed == closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    f->vm = NULL;
}

static void stop_one_server(struct fixture *f, struct http_server **server)
{
    unsigned closed = f->closed;
    if (*server == NULL)
        return;
    http_server_stop(TAKE_PTR(*server), on_closed, f);
    while (f->closed == closed)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void stop_server(struct fixture *f)
{
    stop_one_server(f, &f->server);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *path = lock_path(f);
    struct vmm_process_id id;
    int r;
    struct node_orders none = {.index = UINT64_MAX};
    agent_tasks_obey(&f->agent, &none);
    while (f->agent.tasks.all.count > 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    map_finish(&f->agent.tasks.all);
    map_finish(&f->agent.vms);
    if (f->vm != NULL)
        close_vm(f);
    while ((r = vmm_process_look(path, &id, NULL)) == -EAGAIN)
        usleep(1000); /* it writes its name just now, and that gives no event */
    if (r == 1) {
        kill(id.pid, SIGKILL);
        waitpid(id.pid, NULL, 0);
    }
    stop_server(f);
    stop_one_server(f, &f->next_server);
    image_cache_close(f->cache, NULL, NULL);
    http_client_close(f->http, NULL, NULL);
    uv_close((uv_handle_t *)&f->deadline, NULL);
    uv_close((uv_handle_t *)&f->turn, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

/* ---- the VMM's control socket ---- */

static void put_status(struct fixture *f, struct http_request *request)
{
    CLEANUP_FREE char *text = xasprintf("{\"name\":\"web1\",\"vm_id\":\"" VM_ID "\",\"epoch\":%llu,\"state\":\"%s\"}",
                                        (unsigned long long)f->epoch, f->paused ? "paused" : "running");
    http_respond(request, 200, "application/json", NULL, text, strlen(text));
}

static void put_device(struct fixture *f, struct http_request *request)
{
    const char *disk = "/v1/vm/disks/root";
    CLEANUP_FREE char *text = NULL;
    f->looks++;
    if (strcmp(request->path, "/v1/vm/disks/root/move") == 0 && f->move_path != NULL) {
        bool take = strstr((const char *)request->body, "\"take\":true") != NULL;
        f->taken += take;
        f->given_up += !take;
        f->move_path = NULL;
        text = xasprintf("{}");
    } else if (strcmp(request->path, "/v1/vm/nics/nic2") == 0 && f->has_nic) {
        if (request->method == HTTP_DELETE) {
            f->unplugs++;
            f->has_nic = false;
        }
        text = xasprintf("{\"nic\":{\"tap\":\"t\",\"mac\":\"52:54:00:00:00:02\",\"id\":\"nic2\"}}");
    } else if (strcmp(request->path, disk) == 0 && f->move_path != NULL) {
        text = xasprintf("{\"disk\":{\"path\":\"/d\",\"id\":\"root\",\"size_bytes\":1048576},\"move\":{\"state\":\"held\",\"path\":\"%s\"}}",
                         f->move_path);
    } else if (strcmp(request->path, disk) == 0 && !f->has_no_disk) {
        const char *rate = strstr((const char *)request->body, "\"operations_per_second\":");
        if (request->method == HTTP_PATCH && !f->refuse_disk) {
            f->disk_changes++;
            f->disk_rate = rate != NULL ? strtoull(strchr(rate, ':') + 1, NULL, 10) : 0;
        }
        text = xasprintf("{\"disk\":{\"path\":\"%s\",\"id\":\"root\",\"limits\":{\"operations_per_second\":%llu}}}",
                         f->disk_path != NULL ? f->disk_path : "/d", f->disk_rate);
    }
    bool refused = text == NULL || (request->method == HTTP_PATCH && f->refuse_disk);
    if (refused && text != NULL)
        http_respond(request, 409, "application/json", NULL, "{}", 2);
    else if (refused)
        http_respond(request, 404, "application/json", NULL, "{}", 2);
    else
        http_respond(request, 200, "application/json", NULL, text, strlen(text));
}

static void put_migration(struct fixture *f, struct http_request *request)
{
    if (request->method == HTTP_PUT) {
        f->told_here += strstr((const char *)request->body, "\"here\"") != NULL;
        f->told_there += strstr((const char *)request->body, "\"there\"") != NULL;
        bool gives_up = strstr((const char *)request->body, "\"give_up\":true") != NULL;
        f->memory_given_up += gives_up;
        f->phase = f->phase_taken != NULL && !gives_up ? f->phase_taken : "done";
        if (gives_up && vmm_pid(f) != 0)
            kill(vmm_pid(f), SIGKILL);
    }
    f->asked += request->method == HTTP_GET;
    if (request->method == HTTP_POST) {
        f->ordered++;
        f->phase = f->phase_ordered;
        f->is_source = f->phase_ordered != NULL;
    } else if (request->method == HTTP_DELETE) {
        f->cancels++;
        f->phase = f->yields ? "cancelled" : f->phase;
    }
    CLEANUP_FREE char *text = xasprintf("{\"phase\":\"%s\",\"direction\":\"%s\"%s}", f->phase != NULL ? f->phase : "idle",
                                        f->is_source ? "out" : "in", f->phase_taken != NULL ? ",\"postcopy\":true" : "");
    http_respond(request, 200, "application/json", NULL, text, strlen(text));
}

static void control(struct http_request *request, void *arg)
{
    struct fixture *f = arg;
    if (strcmp(request->path, "/v1/vm/migration") == 0) {
        put_migration(f, request);
        return;
    }
    if (strncmp(request->path, "/v1/vm/", 7) == 0 && strcmp(request->path, "/v1/vm/state") != 0) {
        put_device(f, request);
        return;
    }
    if (request->method == HTTP_PUT && strstr((const char *)request->body, "stopped") != NULL) {
        f->stops++;
        if (vmm_pid(f) != 0)
            kill(vmm_pid(f), SIGTERM);
    } else if (request->method == HTTP_PUT) {
        f->paused = strstr((const char *)request->body, "paused") != NULL;
    }
    put_status(f, request);
}

static void start_server(struct fixture *f)
{
    CLEANUP_FREE char *address = xasprintf("unix:%s/aaaaaaaa0000.sock", f->run);
    const struct http_server_options options = {.address = address, .handler = control, .arg = f};
    assert_int_equal(http_server_start(&f->loop, &options, &f->server, NULL), 0);
}

/* ---- orders ---- */

static void fill_order(struct fixture *f, struct vm_order *order, uint32_t wanted, uint64_t epoch,
                       uint64_t generation)
{
    CLEANUP_FREE char *url = xasprintf("file://%s", f->kernel);
    *order = (struct vm_order){.epoch = 0};
    OBJECT_TEXT(vm_order, order, id, VM_ID);
    OBJECT_TEXT(vm_order, order, name, "web1");
    OBJECT_SET(vm_order, order, epoch, epoch);
    OBJECT_SET(vm_order, order, generation, generation);
    OBJECT_SET(vm_order, order, wanted, wanted);
    OBJECT_SET(vm_order, order, vcpus, 1);
    OBJECT_SET(vm_order, order, memory_bytes, 64u << 20);
    OBJECT_TEXT(artifact, &order->kernel, url, url);
    OBJECT_TEXT(artifact, &order->kernel, sha256, SHA_ABC);
    object_mark(&vm_order_desc, order, "kernel");
    struct vm_disk *disk = OBJECT_ADD(vm_order, order, disks);
    OBJECT_TEXT(vm_disk, disk, name, "root");
    OBJECT_SET(vm_disk, disk, size_bytes, 1u << 20);
}

/* The first one makes the VM, with index 10; the others have @index. */
static void give_order(struct fixture *f, struct vm_order *order, uint64_t index)
{
    if (f->vm == NULL)
        f->vm = vm_create(&f->context, order, 10);
    else
        vm_give_order(f->vm, order, index);
    OBJECT_CLEAR(vm_order, order);
}

static void give(struct fixture *f, uint32_t wanted, uint64_t epoch, uint64_t generation)
{
    struct vm_order order;
    fill_order(f, &order, wanted, epoch, generation);
    give_order(f, &order, 11);
}

/* Run the loop until the VM is in @state and has reached @generation. */
static void run_until(struct fixture *f, enum vm_state state, uint64_t generation)
{
    for (;;) {
        struct vm_seen seen = {.id = NULL};
        vm_put_seen(f->vm, &seen);
        bool there = seen.state == (uint32_t)state && seen.generation == generation;
        OBJECT_CLEAR(vm_seen, &seen);
        if (there)
            return;
        uv_run(&f->loop, UV_RUN_ONCE);
    }
}

static pid_t run_until_process(struct fixture *f, pid_t other_than)
{
    pid_t pid;
    /* one look a turn: it may end between two */
    while ((pid = vmm_pid(f)) == 0 || pid == other_than)
        uv_run(&f->loop, UV_RUN_ONCE);
    return pid;
}

static bool reason_has(struct fixture *f, const char *words)
{
    struct vm_seen seen = {.id = NULL};
    vm_put_seen(f->vm, &seen);
    bool has = seen.reason != NULL && strstr(seen.reason, words) != NULL;
    OBJECT_CLEAR(vm_seen, &seen);
    return has;
}

static bool reason_is(struct fixture *f, const char *words)
{
    struct vm_seen seen = {.id = NULL};
    vm_put_seen(f->vm, &seen);
    bool is = seen.reason != NULL ? strcmp(seen.reason, words) == 0 : words[0] == '\0';
    OBJECT_CLEAR(vm_seen, &seen);
    return is;
}

/* A new VM up to RUNNING; its pid. */
static pid_t run_new(struct fixture *f)
{
    give(f, vm_wanted_RUNNING, 1, 1);
    pid_t pid = run_until_process(f, 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
    return pid;
}

static bool file_exists(struct fixture *f, const char *leaf)
{
    CLEANUP_FREE char *path = vm_files_path(&f->context.places, VM_ID, leaf);
    return access(path, F_OK) == 0;
}

static unsigned count_files(const char *dir)
{
    CLEANUP_FREE char *command = xasprintf("find %s -mindepth 1 | wc -l", dir);
    FILE *p = popen(command, "r");
    unsigned n = 0;
    assert_int_equal(fscanf(p, "%u", &n), 1);
    pclose(p);
    return n;
}

static void test_life(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    pid_t pid = run_new(f);
    assert_true(file_exists(f, "vm.json") && file_exists(f, "config.json"));
    CLEANUP_FREE char *disk = vm_files_path(&f->context.places, VM_ID, "disks/root.layers/root.disk");
    assert_int_equal(stat(disk, &st), 0); /* a disk without an image has layers, too */
    assert_non_null(vm_control_path(f->vm));
    give(f, vm_wanted_PAUSED, 1, 2);
    run_until(f, vm_state_PAUSED, 2);
    assert_true(f->paused);
    give(f, vm_wanted_RUNNING, 1, 3);
    run_until(f, vm_state_RUNNING, 3);
    assert_int_equal(vmm_pid(f), pid);
    give(f, vm_wanted_STOPPED, 1, 4);
    run_until(f, vm_state_STOPPED, 4);
    assert_int_equal(f->stops, 1);
    assert_int_equal(vmm_pid(f), 0);
    assert_int_equal(vm_restarts(f->vm), 0);
    give(f, vm_wanted_DELETED, 1, 5);
    run_until(f, vm_state_DELETED, 5);
    assert_true(vm_is_gone(f->vm));
    assert_int_equal(count_files(f->vms), 0);
    give(f, vm_wanted_DELETED, 1, 6); /* another order, before the controllers have heard */
    assert_int_equal(count_files(f->vms), 0);
}

static void test_agent_ends_and_comes_back(void **state)
{
    struct fixture *f = *state;
    pid_t pid = run_new(f);
    unsigned stops = f->stops;
    close_vm(f);
    assert_int_equal(kill(pid, 0), 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(vm_state_of(f->vm),
                     vm_state_RUNNING); /* from the first moment: for the guest nothing has changed */
    while (vm_control_path(f->vm) == NULL)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), pid);
    give(f, vm_wanted_RUNNING, 1, 1); /* the same order again */
    run_until(f, vm_state_RUNNING, 1);
    assert_int_equal(vmm_pid(f), pid);
    assert_int_equal(f->stops, stops);
    vm_forget(f->vm, true);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(count_files(f->vms), 0);
}

/* The agent dies between the start of the VMM and the writing of its state: vm.json knows of no process. */
static void test_agent_dies_before_it_wrote_the_pid(void **state)
{
    struct fixture *f = *state;
    give(f, vm_wanted_RUNNING, 1, 1);
    pid_t pid = run_until_process(f, 0);
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
    assert_int_equal(vmm_pid(f), pid);
}

/* vm.json names a process that lives, and is not a VMM. */
static void test_stale_pid_in_file(void **state)
{
    struct fixture *f = *state;
    struct agent_vm file = {.format = 0};
    OBJECT_SET(agent_vm, &file, format, 1);
    fill_order(f, &file.order, vm_wanted_RUNNING, 1, 1);
    object_mark(&agent_vm_desc, &file, "order");
    OBJECT_SET(agent_vm, &file, pid, (uint64_t)getpid());
    OBJECT_SET(agent_vm, &file, state, vm_state_RUNNING);
    OBJECT_SET(agent_vm, &file, generation, 1);
    OBJECT_TEXT(agent_vm, &file, boot_id, BOOT);
    assert_int_equal(vm_files_save(&f->context.places, &file, NULL), 0);
    OBJECT_CLEAR(agent_vm, &file);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    /* not started either: the VM may have gone elsewhere meanwhile */
    while (!reason_has(f, "waiting for the controllers"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), 0);
    assert_int_equal(vm_state_of(f->vm), vm_state_STARTING);
    give(f, vm_wanted_RUNNING, 1, 1); /* the controllers say that it has not */
    assert_int_not_equal(run_until_process(f, 0), getpid());
    assert_int_equal(vm_restarts(f->vm), 1);
}

/* Somebody holds the lock whose name is not known: nothing may be started beside it. */
static void test_held_lock_with_a_stale_name(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *path = lock_path(f), *dir = vm_files_path(&f->context.places, VM_ID, "");
    char name[128];
    int lock_fd;
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(vmm_process_lock(path, &lock_fd, NULL), 0);
    int length = snprintf(name, sizeof(name), "%d 1 " BOOT " 1\n", getpid()); /* our number, another start time */
    assert_int_equal(pwrite(lock_fd, name, (size_t)length, 0), length);
    give(f, vm_wanted_RUNNING, 1, 1);
    for (unsigned i = 0; i < 20; i++) {
        uv_run(&f->loop, UV_RUN_ONCE);
        assert_false(file_exists(f, "vmm.log")); /* no VMM was started */
    }
    close(lock_fd);
    while (!file_exists(f, "vmm.log"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_not_equal(run_until_process(f, getpid()), getpid());
}

static void test_higher_epoch_starts_anew(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *path = lock_path(f);
    struct vmm_process_id id;
    pid_t pid = run_new(f);
    stop_server(f); /* and it does not answer any more: it is killed */
    give(f, vm_wanted_RUNNING, 2, 2);
    assert_int_not_equal(run_until_process(f, pid), pid);
    assert_int_equal(vmm_process_look(path, &id, NULL), 1);
    assert_int_equal(id.epoch, 2);
    /* a VMM that says it is of another epoch is not taken for ours */
    f->epoch = 1;
    start_server(f);
    for (unsigned i = 0; i < 20; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vm_state_of(f->vm), vm_state_STARTING);
    f->epoch = 2;
    run_until(f, vm_state_RUNNING, 2);
}

static void test_killed_vmm_is_started_again(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *images = vm_files_path(&f->context.places, VM_ID, VM_BACKUP_SOCKET);
    pid_t pid = run_new(f);
    assert_int_equal(file_write_atomic(images, "", 0, 0600, NULL), 0); /* what it showed of its disks */
    kill(pid, SIGKILL);
    pid_t second = run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
    assert_int_not_equal(second, pid);
    assert_int_equal(vm_restarts(f->vm), 1);
    assert_int_equal(access(images, F_OK), -1);
    /* and while no agent was there */
    assert_int_equal(file_write_atomic(images, "", 0, 0600, NULL), 0);
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(access(images, F_OK), 0); /* it lives */
    close_vm(f);
    kill(second, SIGKILL);
    waitpid(second, NULL, 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(access(images, F_OK), -1);
}

static void test_program_that_ends_at_once(void **state)
{
    struct fixture *f = *state;
    write_program(f, "#!/bin/sh\necho '<3>start-failed error=\"no luck\"' >&2\nexit 1\n");
    give(f, vm_wanted_RUNNING, 1, 1);
    run_until(f, vm_state_FAILED, 1);
    assert_true(reason_has(f, "ended with status 1: start-failed error='no luck'"));
    write_program(f, LONG_PROGRAM); /* and once it is mended, it runs without anybody asking */
    run_until_process(f, 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
}

static void test_wrong_checksum_is_final(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_write_atomic(f->kernel, "abd", 3, 0644, NULL), 0);
    give(f, vm_wanted_RUNNING, 1, 1);
    run_until(f, vm_state_FAILED, 1);
    assert_true(reason_has(f, "SHA-256"));
    assert_int_equal(file_write_atomic(f->kernel, "abc", 3, 0644, NULL), 0);
    give(f, vm_wanted_RUNNING, 2, 2); /* a new order tries again */
    run_until_process(f, 0);
}

static void test_disk_that_has_gone_is_not_made_anew(void **state)
{
    struct fixture *f = *state;
    run_new(f);
    give(f, vm_wanted_STOPPED, 1, 2);
    run_until(f, vm_state_STOPPED, 2);
    close_vm(f);
    CLEANUP_FREE char *disk = vm_files_path(&f->context.places, VM_ID, "disks/root.layers/root.disk");
    assert_int_equal(unlink(disk), 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    give(f, vm_wanted_RUNNING, 2, 3);
    run_until(f, vm_state_FAILED, 3);
    assert_true(reason_has(f, "missing"));
}

/* A clone that did not come to its end is not taken for a VM. */
static void test_half_disks_are_not_started(void **state)
{
    struct fixture *f = *state;
    struct vm_order order;
    CLEANUP_FREE char *home = vm_files_path(&f->context.places, VM_ID, "");
    assert_int_equal(file_make_directories(home, 0700, NULL), 0);
    assert_int_equal(vm_files_set_half(&f->context.places, VM_ID, true, NULL), 0);
    fill_order(f, &order, vm_wanted_RUNNING, 1, 1);
    f->vm = vm_create(&f->context, &order, 10);
    OBJECT_CLEAR(vm_order, &order);
    run_until(f, vm_state_FAILED, 1);
    assert_true(reason_has(f, "not whole"));
    CLEANUP_FREE char *disks = vm_files_path(&f->context.places, VM_ID, "disks");
    assert_int_not_equal(access(disks, F_OK), 0);
    assert_int_equal(vm_files_set_half(&f->context.places, VM_ID, false, NULL), 0);
    assert_int_equal(vm_files_set_half(&f->context.places, VM_ID, false, NULL), 0); /* twice is fine */
    f->epoch = 2;
    give(f, vm_wanted_RUNNING, 2, 2);
    (void)run_until_process(f, 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 2);
}

/* A point that comes for it is being given up: that is no failure of the VM's, which would be its last where it is not started again. */
static void test_one_whose_replica_is_still_at_work_waits(void **state)
{
    struct fixture *f = *state;
    struct vm_order order;
    struct replica_dir at_work;
    CLEANUP_FREE char *replicas = xasprintf("%s/replicas", f->run);
    f->context.places.replicas_dir = replicas;
    assert_int_equal(replica_dir_open(replicas, VM_ID, true, NULL, &at_work, NULL), 0);
    fill_order(f, &order, vm_wanted_RUNNING, 1, 1);
    OBJECT_SET(vm_order, &order, restart, restart_policy_NEVER);
    /* a word of its own: what makes disks or an interface may be told to come again as well */
    assert_int_equal(vm_files_prepare(&f->context.places, &order, geteuid(), false, false, NULL), -EINPROGRESS);
    f->vm = vm_create(&f->context, &order, 10);
    OBJECT_CLEAR(vm_order, &order);
    while (!reason_has(f, "at work"))
        uv_run(&f->loop, UV_RUN_ONCE);
    struct vm_seen seen = {.id = NULL};
    vm_put_seen(f->vm, &seen);
    assert_int_equal(seen.state, vm_state_STARTING);
    OBJECT_CLEAR(vm_seen, &seen);
    replica_dir_close(&at_work);
    assert_int_equal(replica_dir_remove(replicas, &(struct object_list){.count = 0}, VM_ID, NULL), 0);
    (void)run_until_process(f, 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
    f->context.places.replicas_dir = NULL;
}

/* One that never ends is a failure, which the controllers hear of. */
static void test_one_whose_replica_stays_at_work_fails(void **state)
{
    struct fixture *f = *state;
    struct vm_order order;
    struct replica_dir at_work;
    CLEANUP_FREE char *replicas = xasprintf("%s/replicas", f->run);
    f->context.places.replicas_dir = replicas;
    f->context.at_work_ms = 250;
    assert_int_equal(replica_dir_open(replicas, VM_ID, true, NULL, &at_work, NULL), 0);
    fill_order(f, &order, vm_wanted_RUNNING, 1, 1);
    OBJECT_SET(vm_order, &order, restart, restart_policy_NEVER);
    f->vm = vm_create(&f->context, &order, 10);
    OBJECT_CLEAR(vm_order, &order);
    while (!reason_has(f, "at work"))
        uv_run(&f->loop, UV_RUN_ONCE);
    run_until(f, vm_state_FAILED, 1);
    assert_true(reason_has(f, "at work"));
    replica_dir_close(&at_work);
    assert_int_equal(replica_dir_remove(replicas, &(struct object_list){.count = 0}, VM_ID, NULL), 0);
    f->context.places.replicas_dir = NULL;
}

static void test_order_to_delete_what_is_not_there(void **state)
{
    struct fixture *f = *state;
    give(f, vm_wanted_DELETED, 5, 9);
    run_until(f, vm_state_DELETED, 9);
    struct vm_seen seen = {.id = NULL};
    vm_put_seen(f->vm, &seen);
    assert_int_equal(seen.epoch, 5);
    OBJECT_CLEAR(vm_seen, &seen);
    assert_int_equal(count_files(f->vms), 0);
}

static void test_guest_powers_off(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *exit_path = vm_files_path(&f->context.places, VM_ID, "exit.json");
    pid_t pid = run_new(f);
    /* the agent is away while the guest powers off: the VMM's parting word tells */
    close_vm(f);
    CLEANUP_FREE char *word = xasprintf("{\"status\":0,\"pid\":%d}", pid);
    assert_int_equal(file_write_atomic(exit_path, word, strlen(word), 0600, NULL), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    give(f, vm_wanted_RUNNING, 1, 1);
    run_until(f, vm_state_STOPPED, 1);
    assert_true(reason_has(f, "powered off"));
    close_vm(f); /* and it stays off after another restart of the agent */
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    give(f, vm_wanted_RUNNING, 1, 1);
    for (unsigned i = 0; i < 3; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(vm_state_of(f->vm), vm_state_STOPPED);
    assert_int_equal(vmm_pid(f), 0);
    give(f, vm_wanted_RUNNING, 2, 2); /* until somebody starts it */
    run_until_process(f, 0);
}

/* Whether a VMM lives cannot be told at the agent's start: nothing may be concluded until it can. */
static void test_unknown_is_not_stopped(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *lock = lock_path(f), *aside = xasprintf("%s/lock", f->dir);
    pid_t pid = run_new(f);
    close_vm(f);
    assert_int_equal(rename(lock, aside) | mkdir(lock, 0700), 0); /* cannot be opened */
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    give(f, vm_wanted_STOPPED, 1, 2);
    while (!reason_has(f, "cannot open"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_not_equal(vm_state_of(f->vm), vm_state_STOPPED);
    assert_int_equal(rmdir(lock) | rename(aside, lock), 0);
    run_until(f, vm_state_STOPPED, 2);
    assert_int_equal(f->stops, 1);
    assert_int_equal(waitpid(pid, NULL, WNOHANG), pid);
}

/* A removal that meets a VMM takes nothing away from it. */
static void test_removal_meets_a_vmm(void **state)
{
    struct fixture *f = *state;
    pid_t pid = run_new(f);
    CLEANUP_FREE char *socket = xstrdup(vm_control_path(f->vm));
    close_vm(f);
    assert_int_equal(vm_files_remove(&f->context.places, VM_ID, NULL, true, NULL), -EAGAIN);
    assert_int_equal(access(socket, F_OK), 0);
    assert_int_equal(kill(pid, 0), 0);
    assert_true(file_exists(f, "vm.json"));
}

/* What was made ready for one order is not taken for that of the next. */
/* Give an order whose disk has @rate as its limit. */
static void give_limited(struct fixture *f, uint64_t generation, uint64_t rate)
{
    struct vm_order order;
    fill_order(f, &order, vm_wanted_RUNNING, 1, generation);
    struct vm_disk *disk = order.disks.items;
    OBJECT_SET(vmm_limits, &disk->limits, operations_per_second, rate);
    object_mark(&vm_disk_desc, disk, "limits");
    vm_give_order(f->vm, &order, 11);
    OBJECT_CLEAR(vm_order, &order);
}

static void test_devices_of_a_running_vm_follow(void **state)
{
    struct fixture *f = *state;
    pid_t pid = run_new(f);
    assert_int_equal(f->looks, 0); /* it was started with what the order says */
    f->has_nic = true; /* which the order has not */
    give_limited(f, 2, 500);
    run_until(f, vm_state_RUNNING, 2);
    assert_int_equal(f->disk_rate, 500);
    assert_int_equal(f->unplugs, 1);
    assert_false(f->has_nic);
    /* Nothing differs: nothing is told again. */
    unsigned changes = f->disk_changes, looks = f->looks;
    give_limited(f, 3, 500);
    run_until(f, vm_state_RUNNING, 3);
    assert_int_equal(f->looks, looks);
    /* A VMM that refuses: the VM goes on, says why, and it is tried again. */
    f->refuse_disk = true;
    give_limited(f, 4, 0);
    while (!reason_has(f, "a disk cannot be changed"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vm_state_of(f->vm), vm_state_RUNNING);
    f->refuse_disk = false;
    run_until(f, vm_state_RUNNING, 4);
    assert_int_equal(f->disk_rate, 0);
    assert_int_equal(f->disk_changes, changes + 1);
    assert_int_equal(vmm_pid(f), pid);
    /* Another agent finds out by itself what there is to do. */
    give_limited(f, 5, 70);
    close_vm(f);
    struct error err;
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, &err), 0);
    run_until(f, vm_state_RUNNING, 5);
    assert_int_equal(f->disk_rate, 70);
    /* The end comes in the midst of it. */
    give_limited(f, 6, 80);
    uv_run(&f->loop, UV_RUN_ONCE);
    give(f, vm_wanted_STOPPED, 1, 7);
    run_until(f, vm_state_STOPPED, 7);
}

/* ---- volumes that move ---- */

#define VOLUME "cccccccc-0000-4000-8000-000000000001"
#define PLACE "dddddddd-0000-4000-8000-000000000001"

/* One in the fixture's directory. */
static struct pool_order *pool_add(struct fixture *f, struct vm_order *order)
{
    struct pool_seen seen = {0};
    CLEANUP_FREE char *path = xasprintf("%s/pool", f->dir);
    (void)mkdir(path, 0755);
    struct pool_order *pool = OBJECT_ADD(vm_order, order, pools);
    OBJECT_TEXT(pool_order, pool, id, "eeeeeeee-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "fast");
    OBJECT_SET(pool_order, pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, pool, path, path);
    OBJECT_SET(pool_order, pool, make, true);
    pool_dir_look(pool, &seen);
    assert_true(seen.present);
    OBJECT_CLEAR(pool_seen, &seen);
    return pool;
}

/* An order whose disk is a volume there, at PLACE; with an interface that cannot be made ready. */
static void give_volume(struct fixture *f, uint64_t generation)
{
    struct vm_order order;
    fill_order(f, &order, vm_wanted_RUNNING, 1, generation);
    const struct pool_order *pool = pool_add(f, &order);
    struct vm_disk *disk = order.disks.items;
    OBJECT_TEXT(vm_disk, disk, pool, "fast");
    OBJECT_TEXT(vm_disk, disk, volume, VOLUME);
    OBJECT_TEXT(vm_disk, disk, place, PLACE);
    CLEANUP_FREE char *layers = pool_dir_disk(pool, VM_ID, disk);
    assert_int_equal(file_make_directories(layers, 0700, NULL), 0);
    struct vm_nic *nic = OBJECT_ADD(vm_order, &order, nics);
    OBJECT_TEXT(vm_nic, nic, mac, "52:54:00:00:00:03");
    OBJECT_TEXT(vm_nic, nic, bridge, "none-such");
    vm_give_order(f->vm, &order, 11);
    OBJECT_CLEAR(vm_order, &order);
}

/* Whatever is wrong with a network a guest does not wait for its disk; but nobody tells which it is before that is decided. */
static void test_a_disk_that_is_held_is_told_first(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *whole = xasprintf("%s/pool/volumes/" VOLUME "." PLACE "/whole", f->dir);
    run_new(f);
    f->move_path = "/x/" VOLUME "." PLACE "/root.disk";
    vm_hold(f->vm, true);
    give_volume(f, 2);
    while (!reason_has(f, "none-such"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(f->taken + f->given_up == 0 && access(whole, F_OK) < 0);
    vm_hold(f->vm, false);
    while (f->taken + f->given_up == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(f->taken == 1 && access(whole, F_OK) == 0); /* and whole, before anything was written to it alone */
    assert_int_equal(vm_state_of(f->vm), vm_state_RUNNING);
    /* one to another place has come to nothing */
    f->move_path = "/x/" VOLUME ".ffffffff-0000-4000-8000-000000000001/root.disk";
    vm_hold(f->vm, true);
    vm_hold(f->vm, false);
    while (f->given_up == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->taken, 1);
    /* and a guest that is to shut down has to write */
    struct vm_order order = {.head = {0}};
    f->move_path = "/x/" VOLUME "." PLACE "/root.disk";
    vm_hold(f->vm, true);
    OBJECT_COPY(vm_order, &order, vm_order_of(f->vm));
    OBJECT_SET(vm_order, &order, wanted, vm_wanted_STOPPED);
    OBJECT_SET(vm_order, &order, stop_grace_s, 600);
    OBJECT_SET(vm_order, &order, generation, 3);
    vm_give_order(f->vm, &order, 12);
    OBJECT_CLEAR(vm_order, &order);
    for (unsigned i = 0; i < 20; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->taken, 1);
    vm_hold(f->vm, false);
    while (f->taken == 1)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(f->stops == 0 && f->given_up == 1);
}

/* After a recovery that has lost all of a move: the VMM goes on with what it has, and nobody takes the other copy for it unsaid. */
static void test_a_disk_that_is_elsewhere_is_told_of(void **state)
{
    struct fixture *f = *state;
    run_new(f);
    f->disk_path = "/x/vms/" VM_ID "/disks/root." PLACE ".layers/root.disk";
    give_limited(f, 2, 500);
    while (!reason_has(f, "root." PLACE ".layers/root.disk, and the cluster says that it is elsewhere (place none)"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->disk_changes, 0);
    assert_int_equal(vm_state_of(f->vm), vm_state_RUNNING);
    f->disk_path = NULL;
    run_until(f, vm_state_RUNNING, 2);
    assert_int_equal(f->disk_rate, 500);
}

/* The task begins on the VM that there is. */
static void move_begins(struct fixture *f, bool cancel)
{
    struct node_orders orders = {.index = 12};
    f->agent.loop = &f->loop;
    f->agent.http = f->http;
    if (map_get(&f->agent.vms, VM_ID) == NULL)
        map_put(&f->agent.vms, VM_ID, f->vm);
    struct task_order *order = OBJECT_ADD(node_orders, &orders, tasks);
    OBJECT_TEXT(task_order, order, id, PLACE);
    OBJECT_SET(task_order, order, role, task_role_MAIN);
    if (cancel)
        OBJECT_SET(task_order, order, cancel, true);
    OBJECT_SET(task, &order->task, kind, task_kind_VOLUME_MOVE);
    OBJECT_TEXT(task, &order->task, vm, VM_ID);
    OBJECT_SET(task, &order->task, epoch, 1);
    object_mark(&task_order_desc, order, "task");
    OBJECT_TEXT(volume_order, &order->move.from, id, VOLUME);
    OBJECT_TEXT(volume_order, &order->move.from, disk, "root");
    OBJECT_TEXT(volume_order, &order->move.to, id, VOLUME);
    OBJECT_TEXT(volume_order, &order->move.to, disk, "root");
    OBJECT_TEXT(volume_order, &order->move.to, place, PLACE);
    object_mark(&volume_move_desc, &order->move, "from");
    object_mark(&volume_move_desc, &order->move, "to");
    object_mark(&task_order_desc, order, "move");
    agent_tasks_obey(&f->agent, &orders);
    OBJECT_CLEAR(node_orders, &orders);
}

static void move_ends(struct fixture *f, enum operation_state state, const char *words)
{
    struct node_report report = {.head = {0}};
    while (agent_tasks_running(&f->agent))
        uv_run(&f->loop, UV_RUN_ONCE);
    agent_tasks_put(&f->agent, &report);
    const struct task_seen *seen = report.tasks.items;
    if (seen->state != (uint32_t)state)
        fail_msg("state %u: \"%s\"", seen->state, seen->error_text != NULL ? seen->error_text : "");
    if (words != NULL && strstr(seen->error_text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", seen->error_text, words);
    OBJECT_CLEAR(node_report, &report);
}

static void test_a_move_of_what_the_vmm_has_not_ends(void **state)
{
    struct fixture *f = *state;
    run_new(f);
    f->has_no_disk = true;
    move_begins(f, false);
    move_ends(f, operation_state_FAILED, "let it go");
}

static void test_a_move_is_cancelled_though_the_vmm_is_silent(void **state)
{
    struct fixture *f = *state;
    run_new(f);
    stop_server(f);
    move_begins(f, false);
    for (unsigned i = 0; i < 20; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(agent_tasks_running(&f->agent));
    move_begins(f, true);
    move_ends(f, operation_state_CANCELLED, "stays where it is");
    assert_int_equal(f->given_up, 0);
}

/* Held before this agent was there: another one may have said so. It is said again, and the VMM is told nothing. */
static void test_a_move_that_is_held_already_has_succeeded(void **state)
{
    struct fixture *f = *state;
    struct node_orders none = {.index = 13};
    run_new(f);
    f->move_path = "/x/" VOLUME "." PLACE "/root.disk";
    move_begins(f, false);
    move_ends(f, operation_state_SUCCEEDED, NULL);
    assert_int_equal(f->taken + f->given_up, 0);
    /* its VMM ends: no other one before the order is gone */
    pid_t pid = vmm_pid(f);
    kill(pid, SIGKILL);
    while (vm_has_process(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    waitpid(pid, NULL, 0);
    stop_server(f);
    while (!reason_has(f, "task") && vmm_pid(f) == 0 && !reason_has(f, "status"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), 0);
    agent_tasks_obey(&f->agent, &none);
    assert_true(run_until_process(f, pid) != pid);
}

/* A VM that is to run does not wait for a copy of hours. */
static void test_a_vm_that_is_to_run_is_not_copied_below(void **state)
{
    struct fixture *f = *state;
    pid_t pid = run_new(f);
    kill(pid, SIGKILL);
    while (vm_has_process(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    waitpid(pid, NULL, 0);
    stop_server(f);
    move_begins(f, false);
    move_ends(f, operation_state_FAILED, "is to run");
}

static void test_changed_order_is_prepared(void **state)
{
    struct fixture *f = *state;
    struct vm_order order;
    CLEANUP_FREE char *image = xasprintf("%s/" SHA_ABD, f->images);
    run_new(f);
    give(f, vm_wanted_STOPPED, 1, 2);
    run_until(f, vm_state_STOPPED, 2);
    stop_server(f);
    assert_int_equal(file_write_atomic(f->kernel, "abd", 3, 0644, NULL), 0);
    fill_order(f, &order, vm_wanted_RUNNING, 2, 3);
    OBJECT_TEXT(artifact, &order.kernel, sha256, SHA_ABD);
    vm_give_order(f->vm, &order, 12);
    OBJECT_CLEAR(vm_order, &order);
    run_until_process(f, 0);
    assert_int_equal(access(image, F_OK), 0);
}

/* ---- migrations ---- */

#define MIGRATION "bbbbbbbb-0000-4000-8000-000000000001"
#define OTHER_MIGRATION "bbbbbbbb-0000-4000-8000-000000000002"

static const char *arrival_why;

static void arrive(struct fixture *f)
{
    struct vm_order order;
    write_program(f, "#!/bin/sh\necho \"$@\" > ${0%vmm}arguments\nexec setpriv --pdeathsig KILL -- sleep 600\n");
    fill_order(f, &order, vm_wanted_RUNNING, 2, 1);
    f->vm = vm_create_arriving(&f->context, &order, MIGRATION, 10);
    OBJECT_CLEAR(vm_order, &order);
    f->epoch = 2;
    f->phase = "ready";
    run_until_process(f, 0);
    start_server(f);
    while (vm_arrival_of(f->vm, &arrival_why) != VM_ARRIVAL_LISTENING)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void give_by(struct fixture *f, const char *migration)
{
    struct vm_order order;
    fill_order(f, &order, vm_wanted_RUNNING, 2, 1);
    OBJECT_TEXT(vm_order, &order, handover, migration);
    vm_give_order(f->vm, &order, 11);
    OBJECT_CLEAR(vm_order, &order);
}

/* Of the process that was started last, as soon as it has said them. */
static bool arguments_have(struct fixture *f, const char *word)
{
    CLEANUP_FREE char *path = xasprintf("%s/arguments", f->dir), *text = NULL;
    size_t size;
    while (file_read(path, 4096, &text, &size, NULL) < 0 || size == 0 || text[size - 1] != '\n') {
        free(TAKE_PTR(text));
        uv_run(&f->loop, UV_RUN_ONCE); /* its timers turn it */
    }
    return strstr(text, word) != NULL;
}

static void arguments_forget(struct fixture *f)
{
    CLEANUP_FREE char *path = xasprintf("%s/arguments", f->dir);
    assert_int_equal(unlink(path), 0);
}

/* What the migration has brought of its disks so far: a mark beside them, which goes when they are made anew. */
static void disk_fill(struct fixture *f)
{
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/disks/brought", f->vms);
    assert_int_equal(file_write_atomic(path, "half", 4, 0600, NULL), 0);
}

static bool disk_is_filled(struct fixture *f)
{
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/disks/brought", f->vms);
    return access(path, F_OK) == 0;
}

static bool file_has(struct fixture *f, const char *name, const char *word)
{
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/%s", f->vms, name), *text = NULL;
    size_t size;
    assert_int_equal(file_read(path, 65536, &text, &size, NULL), 0);
    return strstr(text, word) != NULL;
}

static bool config_has(struct fixture *f, const char *word)
{
    return file_has(f, "config.json", word);
}

static void test_an_arrival_runs_only_by_its_own_migration(void **state)
{
    struct fixture *f = *state;
    arrive(f);
    pid_t pid = vmm_pid(f);
    assert_true(arguments_have(f, "--incoming unix:"));
    assert_true(arguments_have(f, "--incoming-disks unix:"));
    assert_true(config_has(f, "\"copied\""));
    disk_fill(f);
    assert_string_equal(vm_arriving(f->vm), MIGRATION);
    assert_int_equal(f->told_here, 0);
    give_by(f, MIGRATION);
    run_until(f, vm_state_RUNNING, 1);
    assert_int_equal(f->told_here, 1);
    assert_int_equal(vmm_pid(f), pid); /* the one that has the guest */
    assert_null(vm_arriving(f->vm));
    assert_int_equal(f->stops, 0);
    kill(pid, SIGKILL); /* and if it fails now, its disk is what it is */
    pid_t next = run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
    assert_true(next != 0 && disk_is_filled(f));
    assert_false(config_has(f, "\"copied\""));
}

/* It is this host's, at the same epoch, but not by what its VMM waits for: that is of another time and must not run. */
static void test_what_waits_for_another_migration_is_ended(void **state)
{
    struct fixture *f = *state;
    arrive(f);
    pid_t pid = vmm_pid(f);
    assert_true(arguments_have(f, "--incoming unix:"));
    arguments_forget(f);
    disk_fill(f);
    give_by(f, OTHER_MIGRATION);
    pid_t next = run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
    assert_true(next != 0 && next != pid);
    assert_int_equal(f->told_here, 0);
    assert_false(arguments_have(f, "--incoming"));
    assert_false(disk_is_filled(f)); /* half a disk is none */
}

/* It was handed over, ran, and was stopped and started by somebody, and no agent was here to see any of it: the order says
 * nothing of the migration any more, and what lies here are the VM's only disks. */
static void test_disks_of_a_vm_that_went_on_since_are_whole(void **state)
{
    struct fixture *f = *state;
    arrive(f);
    pid_t pid = vmm_pid(f);
    disk_fill(f);
    close_vm(f);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    f->epoch = 3;
    give(f, vm_wanted_RUNNING, 3, 2);
    pid_t next = run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 2);
    assert_true(next != 0 && disk_is_filled(f));
    assert_false(config_has(f, "\"copied\""));
}

/* The same over a restart of the agent; and an arrival whose VMM dies is not begun again by itself. */
static void test_an_arrival_is_known_again_and_may_fail(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    arrive(f);
    pid_t pid = vmm_pid(f);
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, &err), 0);
    assert_string_equal(vm_arriving(f->vm), MIGRATION);
    while (vm_arrival_of(f->vm, &arrival_why) != VM_ARRIVAL_LISTENING)
        uv_run(&f->loop, UV_RUN_ONCE);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    while (vm_arrival_of(f->vm, &arrival_why) != VM_ARRIVAL_FAILED)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), 0);
    vm_forget(f->vm, true);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(count_files(f->vms), 0);
}

/* ---- part of its memory is where it was ---- */

/* It is this host's and runs; its VMM is asked about its memory, until that says something else. */
static pid_t lack(struct fixture *f)
{
    f->phase_taken = "postcopy";
    arrive(f);
    give_by(f, MIGRATION);
    run_until(f, vm_state_RUNNING, 1);
    assert_true(vm_lacks_memory(f->vm) && reason_has(f, "part of its memory is still on its way"));
    assert_string_equal(vm_taking(f->vm), MIGRATION);
    assert_null(vm_arriving(f->vm));
    return vmm_pid(f);
}

static void run_until_reason(struct fixture *f, const char *words)
{
    while (!reason_has(f, words))
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void test_one_that_lacks_memory_runs_and_is_looked_at_until_it_has_all(void **state)
{
    struct fixture *f = *state;
    const char *why;
    pid_t pid = lack(f);
    f->phase = "lost";
    run_until_reason(f, "stands still");
    f->phase = "postcopy";
    run_until_reason(f, "still on its way");
    give(f, vm_wanted_PAUSED, 2, 2); /* its VMM could not: it is done when all is there */
    unsigned asked = f->asked;
    while (f->asked < asked + 2)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_false(f->paused);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_NONE);
    f->phase = "done";
    run_until(f, vm_state_PAUSED, 2);
    assert_int_equal(vmm_pid(f), pid);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_WHOLE);
    assert_int_equal(vm_arrival_end_of(f->vm, OTHER_MIGRATION, &why), VM_ARRIVAL_END_NONE);
    close_vm(f); /* it had told nobody */
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_WHOLE);
    assert_string_equal(vm_arrival_noted(f->vm), MIGRATION);
    assert_true(file_has(f, "vm.json", "arrived"));
    vm_arrival_forget(f->vm);
    assert_null(vm_arrival_noted(f->vm));
    assert_false(file_has(f, "vm.json", "arrived"));
    assert_int_equal(f->memory_given_up, 0);
}

/* Its VMM ends: what ran is lost, that is said, and it is begun anew with its disks. */
static void test_one_that_lacked_memory_and_ended_is_begun_anew(void **state)
{
    struct fixture *f = *state;
    const char *why;
    pid_t pid = lack(f);
    disk_fill(f);
    kill(pid, SIGKILL);
    run_until_reason(f, "what ran is lost, for not all of its memory had come");
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_BROKEN);
    assert_non_null(strstr(why, "signal 9"));
    assert_null(vm_taking(f->vm));
    pid_t next = run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
    assert_true(next != 0 && disk_is_filled(f));
    assert_true(reason_is(f, ""));
}

/* The source has nothing more: while it is connected that may be wrong, and once it is lost it is not waited for. */
static void test_what_nothing_more_comes_of_is_given_up(void **state)
{
    struct fixture *f = *state;
    const char *why;
    pid_t pid = lack(f);
    vm_give_up_waiting(f->vm, "host n1 was declared lost");
    unsigned asked = f->asked;
    while (f->asked < asked + 2)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->memory_given_up, 0);
    f->phase = "lost";
    run_until_reason(f, "what ran is lost, for not all of its memory had come from the host where it was before: host n1 was declared lost");
    assert_int_equal(f->memory_given_up, 1);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_BROKEN);
    run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
}

static void test_one_that_stands_still_for_too_long_is_given_up(void **state)
{
    struct fixture *f = *state;
    f->context.lost_ms = 300;
    lack(f);
    f->phase = "lost";
    run_until_reason(f, "stands still");
    run_until_reason(f, "could not be reached for");
    assert_int_equal(f->memory_given_up, 1);
}

/* What its user wants goes before, and is no loss. */
static void test_one_that_lacks_memory_can_be_stopped(void **state)
{
    struct fixture *f = *state;
    const char *why;
    lack(f);
    f->phase = "lost";
    run_until_reason(f, "stands still");
    give(f, vm_wanted_STOPPED, 2, 2);
    run_until(f, vm_state_STOPPED, 2);
    assert_int_equal(f->stops, 1);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_STOPPED);
}

/* An agent before it saw it run, and its VMM died with that: nobody says that all went well. */
static void test_an_agent_that_comes_after_its_end_does_not_take_it_for_whole(void **state)
{
    struct fixture *f = *state;
    const char *why;
    pid_t pid = lack(f);
    close_vm(f);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_NONE);
    give_by(f, MIGRATION);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_BROKEN);
    run_until_process(f, pid);
    stop_server(f); /* its socket went with the VMM before */
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
    assert_int_equal(vm_arrival_end_of(f->vm, MIGRATION, &why), VM_ARRIVAL_END_BROKEN);
}

#define SOURCE_HOST "dddddddd-0000-4000-8000-000000000001"

/* In the tunnel's place: what is on the disk when the source could be let in. Ends with its input. */
static int tunnel_main(char **argv)
{
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/vm.json", argv[3]), *text = NULL;
    size_t size;
    bool shut = file_read(path, 65536, &text, &size, NULL) < 0 || strstr(text, "arrival_shut") != NULL;
    fputs(shut ? "{\"failure\":\"nobody says that somebody is let in\"}\n" : "{\"endpoint\":\"192.0.2.1:49152\"}\n", stdout);
    fflush(stdout);
    while (!shut && read(STDIN_FILENO, &(char){0}, 1) > 0)
        ;
    return shut;
}

static void in_progress(void *arg UNUSED)
{
}

static void in_failed(void *arg, const struct error *err)
{
    *(struct error *)arg = *err;
}

/* From then on what arrives may be taken over by others: that lasts before a way from the source is there. */
static void test_the_source_is_let_in_by_a_word_that_lasts(void **state)
{
    struct fixture *f = *state;
    const struct migrate_context context = {.loop = &f->loop, .data_dir = f->vms, .listen = "127.0.0.1:0"};
    struct error failure = {.code = 0};
    unsigned closed = f->closed;
    arrive(f);
    assert_true(file_has(f, "vm.json", "\"arrival_shut\":true"));
    const struct migrate_in_options options = {.context = &context, .vm = f->vm, .operation = MIGRATION, .source = SOURCE_HOST,
                                               .progress = in_progress, .failed = in_failed, .arg = &failure};
    struct migrate_in *in = migrate_in_start(&options);
    while (migrate_in_endpoint(in) == NULL && failure.code == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    migrate_in_close(in, on_closed, f);
    while (f->closed == closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_string_equal(failure.text, "");
    assert_false(file_has(f, "vm.json", "arrival_shut"));
}

/* A disk that is to be filled in a pool that other hosts reach: before anybody was let in to fill it nobody can have taken the VM over with it, and
 * it goes with what else there is, also when the cluster has had it removed already, before it was made. Afterwards the cluster alone knows whose
 * it is. */
static void test_what_arrives_in_a_shared_pool(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *layers = xasprintf("%s/pool/vms/" VM_ID "/root." MIGRATION ".layers", f->dir);
    write_program(f, "#!/bin/sh\nexec setpriv --pdeathsig KILL -- sleep 600\n");
    enum { PREPARED, BEGUN, LET_IN, CASES };
    for (unsigned begun = PREPARED; begun < CASES; begun++) {
        struct vm_order order;
        fill_order(f, &order, vm_wanted_RUNNING, 2, 1);
        struct pool_order *pool = pool_add(f, &order);
        OBJECT_SET(pool_order, pool, kind, pool_kind_SHARED_DIR);
        struct vm_disk *disk = order.disks.items;
        OBJECT_TEXT(vm_disk, disk, pool, "fast");
        OBJECT_TEXT(vm_disk, disk, place, MIGRATION);
        OBJECT_SET(vm_disk, disk, arriving, true);
        struct vm_nic *nic = begun ? NULL : OBJECT_ADD(vm_order, &order, nics); /* which cannot be made ready */
        if (nic != NULL) {
            OBJECT_TEXT(vm_nic, nic, mac, "52:54:00:00:00:03");
            OBJECT_TEXT(vm_nic, nic, bridge, "none-such");
        }
        f->vm = vm_create_arriving(&f->context, &order, MIGRATION, 10);
        OBJECT_CLEAR(vm_order, &order);
        if (begun)
            (void)run_until_process(f, 0);
        assert_int_equal(file_has(f, "vm.json", "\"arrival_shut\":true"), begun != PREPARED);
        if (begun == LET_IN) {
            assert_int_equal(vm_arrival_open(f->vm, &(struct error){0}), 0);
            assert_false(file_has(f, "vm.json", "arrival_shut")); /* already, and an older agent can read it */
        }
        if (begun)
            kill(vmm_pid(f), SIGKILL);
        while (vm_arrival_of(f->vm, &arrival_why) != VM_ARRIVAL_FAILED)
            uv_run(&f->loop, UV_RUN_ONCE);
        assert_int_equal(access(layers, F_OK), 0);
        if (begun == BEGUN) { /* over a restart of the agent, too */
            close_vm(f);
            assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
        }
        vm_forget(f->vm, false);
        while (!vm_is_gone(f->vm))
            uv_run(&f->loop, UV_RUN_ONCE);
        assert_int_equal(access(layers, F_OK) == 0, begun == LET_IN);
        close_vm(f);
    }
}

static void give_at(struct fixture *f, uint32_t wanted, uint64_t generation, const char *place)
{
    struct vm_order order;
    fill_order(f, &order, wanted, 1, generation);
    OBJECT_TEXT(vm_disk, order.disks.items, place, place);
    give_order(f, &order, 10 + generation);
}

/* Its cluster was rebuilt from a survivor that knows nothing of a disk's move: it is not started with what the disk was before, as long as the
 * copy is there that it had last. */
static void test_a_disk_that_the_cluster_has_forgotten_of(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *disks = xasprintf("%s/" VM_ID "/disks", f->vms), *moved = xasprintf("%s/root." PLACE ".layers", disks);
    CLEANUP_FREE char *head = xasprintf("%s/root.disk", moved);
    write_program(f, "#!/bin/sh\nexec setpriv --pdeathsig KILL -- sleep 600\n");
    give_at(f, vm_wanted_STOPPED, 1, PLACE);
    run_until(f, vm_state_STOPPED, 1);
    assert_int_equal(file_make_directories(moved, 0700, NULL), 0);
    assert_int_equal(file_write_atomic(head, "x", 1, 0600, NULL), 0);
    f->context.cluster_epoch = 2;
    vm_new_cluster_epoch(f->vm);
    give_at(f, vm_wanted_RUNNING, 2, NULL);
    run_until(f, vm_state_FAILED, 2);
    assert_true(reason_has(f, "was moved by orders that the cluster has lost") && reason_has(f, "root." PLACE ".layers"));
    close_vm(f); /* the same of the next agent */
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    give_at(f, vm_wanted_RUNNING, 3, NULL);
    run_until(f, vm_state_FAILED, 3);
    assert_true(reason_has(f, "was moved by orders that the cluster has lost"));
    assert_int_equal(vmm_pid(f), 0);
    /* somebody has looked at both */
    assert_int_equal(file_remove_tree(disks, "root." PLACE ".layers", NULL), 0);
    give_at(f, vm_wanted_RUNNING, 4, NULL);
    pid_t pid = run_until_process(f, 0);
    assert_true(pid != 0);
    /* and where nothing was lost a disk is where the order says */
    CLEANUP_FREE char *path = xasprintf("%s/" VM_ID "/vm.json", f->vms), *text = NULL;
    size_t size;
    assert_int_equal(file_read(path, 65536, &text, &size, NULL), 0);
    assert_null(strstr(text, "elsewhere"));
}

/* A VM that is deleted, and has disks, or only leftovers of moves, in a pool that is away: its reason says what can be done, and when that is
 * done it goes. */
static void test_a_removal_says_what_it_waits_for(void **state)
{
    struct fixture *f = *state;
    struct pool_watches watches = {.learned = false};
    struct node_orders all = {.index = 0};
    struct error err = {.code = 0};
    CLEANUP_FREE char *path = xasprintf("%s/none", f->dir);
    struct pool_order *pool = OBJECT_ADD(node_orders, &all, pools);
    OBJECT_TEXT(pool_order, pool, id, "eeeeeeee-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "fast");
    OBJECT_SET(pool_order, pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, pool, path, path);
    pool_watch_learn(&watches, &all.pools);
    while (pool_watch_there(&watches, pool->id, "fast", &err) == 0)
        sched_yield(); /* its thread looks */
    f->context.pools = &watches;
    for (unsigned left = 0; left < 2; left++) {
        struct vm_order order;
        fill_order(f, &order, vm_wanted_DELETED, 1, 1);
        OBJECT_COPY(pool_order, OBJECT_ADD(vm_order, &order, pools), pool);
        if (!left)
            OBJECT_TEXT(vm_disk, order.disks.items, pool, "fast");
        f->vm = vm_create(&f->context, &order, 10);
        while (!reason_has(f, left ? "drover vm forget-left web1 --disk NAME" : "its disks there are to be removed"))
            uv_run(&f->loop, UV_RUN_ONCE);
        assert_true(reason_has(f, "pool fast is not there"));
        if (left) { /* it was forgotten: the pool is in its order no more */
            OBJECT_CLEAR(pool_order, order.pools.items);
            order.pools.count = 0;
            OBJECT_SET(vm_order, &order, generation, 2);
            vm_give_order(f->vm, &order, 11);
            while (!vm_is_gone(f->vm))
                uv_run(&f->loop, UV_RUN_ONCE);
        }
        OBJECT_CLEAR(vm_order, &order);
        close_vm(f);
    }
    f->context.pools = NULL;
    pool_watch_finish(&watches);
    OBJECT_CLEAR(node_orders, &all);
}

/* Order @generation for the VM with its disk in @pool. */
static void give_in_pool(struct fixture *f, const struct pool_order *pool, uint64_t generation)
{
    struct vm_order order;
    fill_order(f, &order, vm_wanted_RUNNING, 1, generation);
    OBJECT_COPY(pool_order, OBJECT_ADD(vm_order, &order, pools), pool);
    OBJECT_TEXT(vm_disk, order.disks.items, pool, "fast");
    give_order(f, &order, 10 + generation);
}

/* The pool of a running VM's disk goes and comes again: the VM goes on running, and says so as long. */
static void test_one_that_runs_says_that_its_pool_is_away(void **state)
{
    struct fixture *f = *state;
    struct pool_watches watches = {.learned = false};
    struct pool_works works = {.lanes = {.count = 0}};
    struct node_orders all = {.index = 0};
    struct pool_seen seen = {.id = NULL};
    struct error err = {.code = 0};
    CLEANUP_FREE char *path = xasprintf("%s/pool", f->dir), *aside = xasprintf("%s/aside", f->dir);
    struct pool_order *pool = OBJECT_ADD(node_orders, &all, pools);
    assert_int_equal(mkdir(path, 0700), 0);
    OBJECT_TEXT(pool_order, pool, id, "eeeeeeee-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "fast");
    OBJECT_SET(pool_order, pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, pool, path, path);
    OBJECT_SET(pool_order, pool, make, true);
    pool_dir_look(pool, &seen);
    OBJECT_TEXT(pool_order, pool, mark, seen.mark);
    OBJECT_SET(pool_order, pool, make, false);
    OBJECT_CLEAR(pool_seen, &seen);
    f->context.pools = &watches;
    f->context.pool_works = &works;
    pool_watch_learn(&watches, &all.pools);
    give_in_pool(f, pool, 1);
    run_until_process(f, 0);
    start_server(f);
    run_until(f, vm_state_RUNNING, 1);
    assert_true(reason_is(f, ""));
    assert_int_equal(rename(path, aside), 0);
    while (pool_watch_there(&watches, pool->id, "fast", &err) == 0)
        uv_run(&f->loop, UV_RUN_ONCE); /* its thread looks */
    give_in_pool(f, pool, 2);
    run_until(f, vm_state_RUNNING, 2);
    assert_true(reason_has(f, "a pool of its disks is away: pool fast is not there: "));
    assert_int_equal(rename(aside, path), 0);
    while (pool_watch_there(&watches, pool->id, "fast", &err) < 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    give_in_pool(f, pool, 3);
    run_until(f, vm_state_RUNNING, 3);
    assert_true(reason_is(f, ""));
    close_vm(f);
    pool_watch_finish(&watches);
    f->context.pools = NULL;
    f->context.pool_works = NULL;
    OBJECT_CLEAR(node_orders, &all);
}

/* While a migration takes it away, a VMM that ends is not started again, neither by this agent nor by the next. */
static void test_one_that_leaves_is_not_started_again(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    pid_t pid = run_new(f);
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    kill(pid, SIGKILL);
    while (!reason_has(f, "the controllers say"))
        uv_run(&f->loop, UV_RUN_ONCE);
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, &err), 0);
    give(f, vm_wanted_RUNNING, 1, 1); /* still its own, says an answer from before */
    while (!reason_has(f, "the controllers say"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), 0);
    vm_leave_end(f->vm);
    run_until_process(f, pid);
    run_until(f, vm_state_RUNNING, 1);
}

/* A VMM that was quicker than its agent has written down how its migration went. */
static void test_one_that_has_left_says_how_it_went(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    CLEANUP_FREE char *exit_path = vm_files_path(&f->context.places, VM_ID, "exit.json");
    pid_t pid = run_new(f);
    assert_null(vm_departed(f->vm));
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    close_vm(f);
    CLEANUP_FREE char *word = xasprintf("{\"status\":7,\"pid\":%d,\"migration\":{\"downtime_us\":4711,\"rounds\":3}}", pid);
    assert_int_equal(file_write_atomic(exit_path, word, strlen(word), 0600, NULL), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_non_null(vm_departed(f->vm));
    assert_int_equal(vm_departed(f->vm)->downtime_us, 4711);
    assert_int_equal(vm_departed(f->vm)->rounds, 3);
}

/* The orders say that it is another's before its VMM has heard whose: it is not for them to say that it is the target's. */
static void test_one_that_leaves_and_is_forgotten_waits_for_a_word(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    (void)run_new(f);
    f->phase = "ready";
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    vm_forget(f->vm, false);
    while (!reason_has(f, "not this host's"))
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(f->told_there, 0);
    assert_int_equal(f->stops, 0);
    assert_true(vm_has_process(f->vm));
    vm_not_left(f->vm);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->told_there, 0);
    assert_int_equal(count_files(f->vms), 0);
}

/* One that is nobody's is no target's. */
static void test_one_that_leaves_and_is_nobodys_is_stopped(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    pid_t pid = run_new(f);
    f->phase = "ready";
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    vm_forget(f->vm, true);
    while (f->stops == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->told_there, 0);
    kill(pid, SIGTERM);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
}

/* It runs elsewhere, and its VMM has what is missing there: it is not ended with the time that is for it to end by itself, also by the next
 * agent, before that is over. */
static void test_one_that_lends_is_kept_until_it_has_given_all(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    pid_t pid = run_new(f);
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    vm_lend_begin(f->vm, false); /* before anybody could make it another host's: it is this one's still */
    give(f, vm_wanted_PAUSED, 1, 2);
    run_until(f, vm_state_PAUSED, 2);
    vm_forget(f->vm, false);
    while (!reason_has(f, "part of its memory is still here"))
        uv_run(&f->loop, UV_RUN_ONCE);
    vm_lend_begin(f->vm, true);
    while (!reason_has(f, "part of its memory is still here"))
        uv_run(&f->loop, UV_RUN_ONCE);
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, &err), 0);
    assert_true(vm_lends(f->vm));
    vm_forget(f->vm, false);
    while (!reason_has(f, "part of its memory is still here"))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), pid);
    assert_int_equal(f->stops, 0);
    assert_non_null(vm_control_path(f->vm)); /* it is asked how far it is */
    vm_lend_end(f->vm);
    assert_false(file_has(f, "vm.json", "lends"));
    vm_left(f->vm);
    kill(pid, SIGTERM);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(count_files(f->vms), 0);
}

/* Nobody waits for the memory of what was deleted. */
static void test_one_that_lends_and_is_nobodys_is_stopped(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    run_new(f);
    assert_int_equal(vm_leave_begin(f->vm, MIGRATION, &err), 0);
    vm_lend_begin(f->vm, true);
    vm_forget(f->vm, true);
    while (!vm_is_gone(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->stops, 1);
    assert_int_equal(count_files(f->vms), 0);
}

/* ---- a new VMM for it, and an agent that ends meanwhile ---- */

#define UPGRADE "cccccccc-0000-4000-8000-000000000003"

static pid_t next_pid(struct fixture *f)
{
    CLEANUP_FREE char *path = vm_files_path(&f->context.places, VM_ID, VM_NEXT_LOCK);
    struct vmm_process_id id;
    return vmm_process_look(path, &id, NULL) == 1 ? id.pid : 0;
}

/* A VM that runs and a process that is to take it over, as an agent that is killed leaves them, and the next agent. */
static pid_t two_are_found(struct fixture *f, pid_t *ret_next)
{
    struct error err = {.code = 0};
    pid_t pid = run_new(f);
    if (vm_successor_start(f->vm, UPGRADE, &err) < 0)
        fail_msg("%s", err.text);
    while ((*ret_next = next_pid(f)) == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    CLEANUP_FREE char *socket = xasprintf("%s/aaaaaaaa0000.sock", f->run), *second = xasprintf("%s2", socket);
    assert_int_equal(link(socket, second), 0); /* the new one's, which is served as well */
    close_vm(f);
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    while (!vm_has_successor(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(kill(pid, 0) == 0 && kill(*ret_next, 0) == 0);
    assert_int_equal(vm_state_of(f->vm), vm_state_RUNNING);
    return pid;
}

static void end_and_reap(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_both_of_an_upgrade_are_found_and_it_goes_on(void **state)
{
    struct fixture *f = *state;
    f->context.orphan_ms = 20; /* even so: it is being handed over */
    f->phase = "go";
    f->is_source = true;
    pid_t next, pid = two_are_found(f, &next);
    CLEANUP_FREE char *exit_path = vm_files_path(&f->context.places, VM_ID, "exit.json");
    CLEANUP_FREE char *word = xasprintf("{\"status\":7,\"pid\":%d,\"migration\":{\"downtime_us\":4711}}", pid);
    give(f, vm_wanted_RUNNING, 1, 1);
    for (unsigned asked = f->asked; f->asked == asked;)
        uv_run(&f->loop, UV_RUN_ONCE);
    run_until(f, vm_state_RUNNING, 1);
    assert_int_equal(file_write_atomic(exit_path, word, strlen(word), 0600, NULL), 0);
    end_and_reap(pid);
    while (vmm_pid(f) != next)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_false(vm_has_successor(f->vm));
    assert_string_equal(vm_upgraded(f->vm), UPGRADE);
    assert_int_equal(vm_departed(f->vm)->downtime_us, 4711);
    assert_int_equal(vm_restarts(f->vm), 0);
    assert_false(file_exists(f, VM_NEXT_LOCK) || file_exists(f, VM_NEXT_CONFIG) || file_exists(f, "exit.json"));
    close_vm(f); /* and the agent after that one knows whose it is */
    assert_int_equal(vm_load(&f->context, VM_ID, &f->vm, NULL), 0);
    assert_int_equal(vm_state_of(f->vm), vm_state_RUNNING);
    assert_int_equal(kill(next, 0), 0);
}

static void test_an_old_vmm_that_was_found_takes_the_new_one_along(void **state)
{
    struct fixture *f = *state;
    pid_t next, pid = two_are_found(f, &next);
    give(f, vm_wanted_RUNNING, 1, 1);
    while (vm_control_path(f->vm) == NULL)
        uv_run(&f->loop, UV_RUN_ONCE);
    end_and_reap(pid);
    assert_int_not_equal(run_until_process(f, pid), next);
    assert_int_equal(kill(next, 0), -1);
    assert_int_equal(vm_restarts(f->vm), 1);
    assert_null(vm_upgraded(f->vm));
}

/* No task asks for it any more: it is ended if the one that runs the VM says that it hands nothing over, and the VM goes on. */
static void test_a_new_vmm_that_nobody_wants_is_ended(void **state)
{
    struct fixture *f = *state;
    f->context.orphan_ms = 20;
    pid_t next, pid = two_are_found(f, &next);
    f->phase = "memory";
    f->is_source = true;
    give(f, vm_wanted_RUNNING, 1, 1);
    for (unsigned asked = f->asked; f->asked < asked + 3;)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(vm_has_successor(f->vm) && kill(next, 0) == 0);
    f->phase = "failed";
    while (vm_has_successor(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), pid);
    assert_int_equal(vm_restarts(f->vm), 0);
    assert_false(file_exists(f, VM_NEXT_LOCK) || file_exists(f, VM_NEXT_CONFIG));
}

/* A task has taken it up: it is that one's to end. */
static void test_a_new_vmm_that_is_taken_up_is_left(void **state)
{
    struct fixture *f = *state;
    pid_t next;
    f->context.orphan_ms = 20;
    two_are_found(f, &next);
    vm_successor_take_up(f->vm);
    unsigned asked = f->asked;
    give(f, vm_wanted_RUNNING, 1, 1);
    run_until(f, vm_state_RUNNING, 1);
    for (unsigned i = 0; i < 20; i++) /* 5 ms at most each */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->asked, asked);
    assert_true(vm_has_successor(f->vm));
    vm_successor_end(f->vm);
    while (vm_has_successor(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
}

/* ---- the task that has it done, and VMMs that do not come to an end ---- */

static void control_next(struct http_request *request, void *arg)
{
    struct fixture *f = arg;
    CLEANUP_FREE char *text = xasprintf("{\"phase\":\"%s\",\"direction\":\"in\"}", f->next_phase);
    http_respond(request, 200, "application/json", NULL, text, strlen(text));
}

/* The task begins; the new VMM waits, and the old one is ordered. Their pids. */
static pid_t task_begins(struct fixture *f, pid_t *ret_next)
{
    CLEANUP_FREE char *address = xasprintf("unix:%s/aaaaaaaa0000.sock2", f->run);
    const struct http_server_options options = {.address = address, .handler = control_next, .arg = f};
    struct node_orders orders = {.index = 12};
    pid_t pid = run_new(f);
    f->agent.loop = &f->loop;
    f->agent.http = f->http;
    f->agent.upgrade_late_ms = 300;
    f->next_phase = "connect";
    map_put(&f->agent.vms, VM_ID, f->vm);
    struct task_order *order = OBJECT_ADD(node_orders, &orders, tasks);
    OBJECT_TEXT(task_order, order, id, UPGRADE);
    OBJECT_SET(task_order, order, role, task_role_MAIN);
    OBJECT_SET(task, &order->task, kind, task_kind_VM_UPGRADE);
    OBJECT_TEXT(task, &order->task, vm, VM_ID);
    OBJECT_SET(task, &order->task, epoch, 1);
    object_mark(&task_order_desc, order, "task");
    agent_tasks_obey(&f->agent, &orders);
    OBJECT_CLEAR(node_orders, &orders);
    while ((*ret_next = next_pid(f)) == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(http_server_start(&f->loop, &options, &f->next_server, NULL), 0);
    while (f->ordered == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    return pid;
}

/* How the task has ended, with @words in why. */
static void task_ends(struct fixture *f, enum operation_state state, const char *words)
{
    struct node_report report = {.head = {0}};
    while (agent_tasks_running(&f->agent))
        uv_run(&f->loop, UV_RUN_ONCE);
    agent_tasks_put(&f->agent, &report);
    const struct task_seen *seen = report.tasks.items;
    assert_int_equal(report.tasks.count, 1);
    assert_int_equal(seen->state, state);
    if (strstr(seen->error_text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", seen->error_text, words);
    OBJECT_CLEAR(node_report, &report);
}

static void new_one_ends(struct fixture *f, pid_t pid)
{
    while (vm_has_successor(f->vm))
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f), pid);
    assert_int_equal(vm_restarts(f->vm), 0);
}

static void test_an_upgrade_that_takes_too_long_is_cancelled(void **state)
{
    struct fixture *f = *state;
    pid_t next;
    f->phase_ordered = "memory";
    f->yields = true;
    pid_t pid = task_begins(f, &next);
    task_ends(f, operation_state_FAILED, "goes on in the VMM that it is in");
    assert_true(f->cancels == 1 && f->ordered == 1);
    new_one_ends(f, pid);
}

/* The order was taken, and nothing has come of it. */
static void test_an_upgrade_that_does_not_begin_is_given_up(void **state)
{
    struct fixture *f = *state;
    pid_t next, pid = task_begins(f, &next);
    task_ends(f, operation_state_FAILED, "was never told to hand it over");
    new_one_ends(f, pid);
}

/* Too late to be cancelled, and no end comes: one of the two has the guest, and nobody ends either. */
static void test_an_upgrade_without_an_end_leaves_both(void **state)
{
    struct fixture *f = *state;
    pid_t next;
    f->phase_ordered = "go";
    pid_t pid = task_begins(f, &next);
    task_ends(f, operation_state_FAILED, "does not say which of the two has it");
    for (unsigned i = 0; i < 50; i++) /* one that was ended is known to have ended by then */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(f->cancels == 1 && vm_has_successor(f->vm));
    assert_true(kill(pid, 0) == 0 && kill(next, 0) == 0);
    vm_successor_end(f->vm);
    new_one_ends(f, pid);
}

/* The old one does not know whether the new one has it: that is asked itself, and left where it says that it has. */
static void test_a_new_vmm_is_ended_only_if_it_does_not_say_that_it_runs(void **state)
{
    struct fixture *f = *state;
    pid_t next;
    f->phase_ordered = "unknown";
    pid_t pid = task_begins(f, &next);
    f->agent.upgrade_late_ms = 60000;
    f->next_phase = "go";
    for (unsigned i = 0; i < 100; i++) /* 5 ms at most each, and a look in 25 */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_true(vm_has_successor(f->vm) && kill(next, 0) == 0);
    f->next_phase = "stop";
    new_one_ends(f, pid);
    f->phase = "failed";
    task_ends(f, operation_state_FAILED, "goes on in the VMM that it is in");
}

/* ---- its host goes down ---- */

/* It has no more time than the others, however much it was given before. */
static void test_a_guest_that_is_being_stopped_as_its_host_goes_down(void **state)
{
    struct fixture *f = *state;
    struct vm_order order;
    run_new(f);
    fill_order(f, &order, vm_wanted_STOPPED, 1, 2);
    OBJECT_SET(vm_order, &order, stop_grace_s, 3600);
    vm_give_order(f->vm, &order, 11);
    OBJECT_CLEAR(vm_order, &order);
    run_until(f, vm_state_STOPPING, 1);
    for (unsigned i = 0; i < 50; i++)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->stops, 0);
    f->context.down_until_ms = uv_now(&f->loop);
    f->context.down = true;
    vm_go_down(f->vm);
    for (unsigned i = 0; i < 100 && f->stops == 0; i++) /* 5 ms at most each */
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(f->stops, 1);
    run_until(f, vm_state_STOPPED, 2);
}

int main(int argc, char **argv)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_life),
        T(test_agent_ends_and_comes_back),
        T(test_agent_dies_before_it_wrote_the_pid),
        T(test_stale_pid_in_file),
        T(test_held_lock_with_a_stale_name),
        T(test_higher_epoch_starts_anew),
        T(test_killed_vmm_is_started_again),
        T(test_program_that_ends_at_once),
        T(test_wrong_checksum_is_final),
        T(test_disk_that_has_gone_is_not_made_anew),
        T(test_half_disks_are_not_started),
        T(test_one_whose_replica_is_still_at_work_waits),
        T(test_one_whose_replica_stays_at_work_fails),
        T(test_order_to_delete_what_is_not_there),
        T(test_guest_powers_off),
        T(test_unknown_is_not_stopped),
        T(test_removal_meets_a_vmm),
        T(test_changed_order_is_prepared),
        T(test_devices_of_a_running_vm_follow),
        T(test_a_disk_that_is_held_is_told_first),
        T(test_a_disk_that_is_elsewhere_is_told_of),
        T(test_a_move_of_what_the_vmm_has_not_ends),
        T(test_a_move_is_cancelled_though_the_vmm_is_silent),
        T(test_a_move_that_is_held_already_has_succeeded),
        T(test_a_vm_that_is_to_run_is_not_copied_below),
        T(test_one_that_has_left_says_how_it_went),
        T(test_an_arrival_runs_only_by_its_own_migration),
        T(test_what_waits_for_another_migration_is_ended),
        T(test_disks_of_a_vm_that_went_on_since_are_whole),
        T(test_an_arrival_is_known_again_and_may_fail),
        T(test_the_source_is_let_in_by_a_word_that_lasts),
        T(test_what_arrives_in_a_shared_pool),
        T(test_a_removal_says_what_it_waits_for),
        T(test_one_that_runs_says_that_its_pool_is_away),
        T(test_a_disk_that_the_cluster_has_forgotten_of),
        T(test_one_that_leaves_is_not_started_again),
        T(test_one_that_leaves_and_is_forgotten_waits_for_a_word),
        T(test_one_that_leaves_and_is_nobodys_is_stopped),
        T(test_one_that_lacks_memory_runs_and_is_looked_at_until_it_has_all),
        T(test_one_that_lacked_memory_and_ended_is_begun_anew),
        T(test_what_nothing_more_comes_of_is_given_up),
        T(test_one_that_stands_still_for_too_long_is_given_up),
        T(test_one_that_lacks_memory_can_be_stopped),
        T(test_an_agent_that_comes_after_its_end_does_not_take_it_for_whole),
        T(test_one_that_lends_is_kept_until_it_has_given_all),
        T(test_one_that_lends_and_is_nobodys_is_stopped),
        T(test_both_of_an_upgrade_are_found_and_it_goes_on),
        T(test_an_old_vmm_that_was_found_takes_the_new_one_along),
        T(test_a_new_vmm_that_nobody_wants_is_ended),
        T(test_a_new_vmm_that_is_taken_up_is_left),
        T(test_an_upgrade_that_takes_too_long_is_cancelled),
        T(test_an_upgrade_that_does_not_begin_is_given_up),
        T(test_an_upgrade_without_an_end_leaves_both),
        T(test_a_new_vmm_is_ended_only_if_it_does_not_say_that_it_runs),
        T(test_a_guest_that_is_being_stopped_as_its_host_goes_down),
    };
    if (argc > 3 && strcmp(argv[1], "tunnel") == 0)
        return tunnel_main(argv);
    signal(SIGPIPE, SIG_IGN); /* as the agent's main does: a VMM may end while it is written to */
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
