/* The task backup-boot on a real loop, with a shell script in the VMM's place, its control socket served by the test, and this very program
 * for the task's child: how it ends, and that nothing is left by then. THREADED: disks are made in the loop's pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "common/http_server.h"
#include "common/websocket_frame.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/task_child.h"
#include "tests/unit/scratch.h"

#define OPERATION "aaaaaaaa-0000-4000-8000-000000000001"
#define LEFT "aaaaaaaa-0000-4000-8000-000000000002"
#define STORE "bbbbbbbb-0000-4000-8000-000000000001"
#define DEADLINE_MS 120000
#define CHILD "BOOT_TEST_CHILD" /* environment: what the child does */
/* ends with this process at the latest, so that nothing stays behind */
#define VMM "#!/bin/sh\ncd \"${2%%/config.json}\"\nprintf '%s' >console.log\n%s\n"
#define STAYS "exec setpriv --pdeathsig KILL -- sleep 600"

struct fixture {
    uv_loop_t loop;
    uv_timer_t deadline, turn;
    char dir[64];
    struct agent agent;
    struct http_server *server;
    bool answers; /* the guest's agent */
    bool image_gone; /* orders are without the VM */
    unsigned pings, closed;
};

static void on_deadline(uv_timer_t *timer UNUSED)
{
    fail_msg("not within %d ms", DEADLINE_MS);
}
static void on_turn(uv_timer_t *timer UNUSED)
{
}
static void on_closed(void *arg)
{
    ((struct fixture *)arg)->closed++;
}

static void vmm_write(struct fixture *f, const char *says, const char *then)
{
    CLEANUP_FREE char *text = xasprintf(VMM, says, then);
    assert_int_equal(file_write_atomic(f->agent.vmm_path, text, strlen(text), 0755, NULL), 0);
}

static pid_t vmm_pid(struct fixture *f, const char *id)
{
    CLEANUP_FREE char *path = xasprintf("%s/boot/%s/vmm.lock", f->dir, id);
    struct vmm_process_id process;
    return vmm_process_look(path, &process, NULL) == 1 ? process.pid : 0;
}

static void control(struct http_request *request, void *arg)
{
    struct fixture *f = arg;
    /* one that has just ended answers as itself, too */
    const char *id = vmm_pid(f, OPERATION) == 0 && vmm_pid(f, LEFT) != 0 ? LEFT : OPERATION;
    CLEANUP_FREE char *text = xasprintf("{\"name\":\"boot\",\"vm_id\":\"%s\",\"epoch\":1,\"state\":\"running\"}", id);
    if (strcmp(request->path, "/v1/vm/agent") == 0) {
        f->pings++;
        http_respond(request, f->answers ? 200 : 409, "application/json", NULL, "{}", 2);
        return;
    }
    pid_t pid = vmm_pid(f, id);
    if (request->method == HTTP_PUT && pid > 0)
        kill(pid, SIGTERM);
    http_respond(request, 200, "application/json", NULL, text, strlen(text));
}

static void server_start(struct fixture *f)
{
    CLEANUP_FREE char *address = xasprintf("unix:%s/run/aaaaaaaa0000.sock", f->dir); /* of either id */
    const struct http_server_options options = {.address = address, .handler = control, .arg = f};
    if (f->server == NULL)
        assert_int_equal(http_server_start(&f->loop, &options, &f->server, NULL), 0);
}

static int setup(void **test)
{
    struct fixture *f = NEW(struct fixture);
    struct agent *a = &f->agent;
    strcpy(f->dir, "/tmp/task_boot.XXXXXX");
    assert_true(scratch_make(f->dir));
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->deadline);
    uv_timer_start(&f->deadline, on_deadline, DEADLINE_MS, 0);
    uv_timer_init(&f->loop, &f->turn);
    uv_timer_start(&f->turn, on_turn, 5, 5);
    a->loop = &f->loop;
    a->data_dir = xstrdup(f->dir);
    a->vmm_path = xasprintf("%s/vmm", f->dir);
    a->run_dir = xasprintf("%s/run", f->dir);
    a->images_dir = xasprintf("%s/images", f->dir);
    OBJECT_TEXT(node_identity, &a->identity, name, "n1");
    assert_int_equal(mkdir(a->run_dir, 0700), 0);
    assert_int_equal(http_client_create(&f->loop, &a->http, NULL), 0);
    assert_int_equal(image_cache_create(&f->loop, a->images_dir, 0, &a->images, NULL), 0);
    a->vm_context = (struct vm_context){
        .loop = &f->loop,
        .http = a->http,
        .images = a->images,
        .places = {.run_dir = a->run_dir, .images_dir = a->images_dir},
        .vmm_path = a->vmm_path,
        .boot_id = "11111111-2222-4333-8444-555555555555",
    };
    setenv(CHILD, "ready", 1);
    *test = f;
    return 0;
}

static int teardown(void **test)
{
    struct fixture *f = *test;
    struct agent *a = &f->agent;
    struct node_orders none = {.index = UINT64_MAX};
    agent_tasks_obey(a, &none);
    while (a->tasks.all.count > 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    map_finish(&a->tasks.all);
    agent_boots_free(a);
    if (f->server != NULL)
        http_server_stop(f->server, on_closed, f);
    image_cache_close(a->images, NULL, NULL);
    http_client_close(a->http, NULL, NULL);
    uv_close((uv_handle_t *)&f->deadline, NULL);
    uv_close((uv_handle_t *)&f->turn, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    OBJECT_CLEAR(node_identity, &a->identity);
    free(a->data_dir);
    free(a->vmm_path);
    free(a->run_dir);
    free(a->images_dir);
    free(f);
    return 0;
}

static void vm_fill(struct vm_order *order, const char *id)
{
    OBJECT_TEXT(vm_order, order, id, id);
    OBJECT_TEXT(vm_order, order, name, "boot");
    OBJECT_SET(vm_order, order, epoch, 1);
    OBJECT_SET(vm_order, order, generation, 1);
    OBJECT_SET(vm_order, order, wanted, vm_wanted_RUNNING);
    OBJECT_SET(vm_order, order, restart, restart_policy_NEVER);
    OBJECT_SET(vm_order, order, vcpus, 1);
    OBJECT_SET(vm_order, order, memory_bytes, 64u << 20);
    OBJECT_SET(vm_order, order, firmware, firmware_BIOS);
    struct vm_disk *disk = OBJECT_ADD(vm_order, order, disks);
    OBJECT_TEXT(vm_disk, disk, name, "root");
    OBJECT_SET(vm_disk, disk, size_bytes, 1u << 20);
    OBJECT_TEXT(vm_nic, (struct vm_nic *)OBJECT_ADD(vm_order, order, nics), bridge, "none-such");
}

static void obey(struct fixture *f, uint64_t index, const char *wait_for, uint32_t timeout_s, bool cancel)
{
    struct node_orders orders = {.index = index};
    struct task_order *order = OBJECT_ADD(node_orders, &orders, tasks);
    struct task_backup *arguments = &order->task.backup;
    OBJECT_TEXT(task_order, order, id, OPERATION);
    OBJECT_SET(task_order, order, role, task_role_MAIN);
    OBJECT_SET(task_order, order, cancel, cancel);
    OBJECT_SET(task, &order->task, kind, task_kind_BACKUP_BOOT);
    OBJECT_TEXT(task_backup, arguments, store, STORE);
    OBJECT_SET(task_boot, &arguments->boot, timeout_s, timeout_s);
    OBJECT_SET(task_boot, &arguments->boot, vcpus, 1);
    OBJECT_SET(task_boot, &arguments->boot, memory_bytes, 64u << 20);
    OBJECT_TEXT(task_boot, &arguments->boot, wait_for, wait_for);
    object_mark(&task_backup_desc, arguments, "boot");
    object_mark(&task_desc, &order->task, "backup");
    object_mark(&task_order_desc, order, "task");
    OBJECT_TEXT(backup_store, &order->store, name, "nas");
    OBJECT_TEXT(backup_store, &order->store, location, "/nowhere");
    object_mark(&task_order_desc, order, "store");
    if (!f->image_gone) {
        vm_fill(&order->boot, OPERATION);
        object_mark(&task_order_desc, order, "boot");
    }
    agent_tasks_obey(&f->agent, &orders);
    OBJECT_CLEAR(node_orders, &orders);
}

static const struct agent_task *task_of(struct fixture *f)
{
    size_t i = 0;
    return map_next(&f->agent.tasks.all, &i);
}

/* The number of names in the directory of VMs that are thrown away. */
static unsigned left(struct fixture *f)
{
    CLEANUP_FREE char *path = xasprintf("%s/boot", f->dir);
    unsigned count = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(d);
    return count;
}

static const struct task_seen *run_to_its_end(struct fixture *f, enum operation_state state)
{
    while (!task_of(f)->ended)
        uv_run(&f->loop, UV_RUN_ONCE);
    const struct task_seen *seen = &task_of(f)->seen;
    if (seen->state != (uint32_t)state)
        fail_msg("%s: %s", operation_state_desc.names[seen->state], seen->error_text != NULL ? seen->error_text : "");
    assert_int_equal(object_validate(&task_seen_desc, seen, OBJECT_CREATE, NULL), 0); /* as the controller will */
    assert_int_equal(left(f), 0);
    assert_int_equal(vmm_pid(f, OPERATION), 0);
    assert_null(f->agent.boots.at_work);
    return seen;
}

static void run_to_step(struct fixture *f, const char *step)
{
    while (task_of(f)->seen.step == NULL || strcmp(task_of(f)->seen.step, step) != 0)
        uv_run(&f->loop, UV_RUN_ONCE);
}

/* Of a VMM that ends before it has a control socket. */
static void begin_deaf(struct fixture *f, const char *wait_for, uint32_t timeout_s)
{
    if (f->agent.boots.directory == NULL)
        task_boot_ops.clean(&f->agent);
    obey(f, 1, wait_for, timeout_s, false);
}

/* It begins, and the test has its control socket once the VMM is there, for its start removes what lay there before. */
static void begin(struct fixture *f, const char *wait_for, uint32_t timeout_s)
{
    begin_deaf(f, wait_for, timeout_s);
    while (vmm_pid(f, OPERATION) == 0 && !task_of(f)->ended)
        uv_run(&f->loop, UV_RUN_ONCE);
    server_start(f);
}

static void a_line_is_seen(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "starting\\nready for work", STAYS);
    begin(f, "ready*work", 300);
    obey(f, 2, "ready*work", 300, false); /* the order comes again */
    CLEANUP_FREE char *config = xasprintf("%s/boot/" OPERATION "/config.json", f->dir);
    CLEANUP_FREE char *text = NULL;
    size_t size;
    assert_int_equal(file_read(config, 65536, &text, &size, NULL), 0);
    assert_non_null(strstr(text, "\"cut\":true"));
    assert_non_null(strstr(text, "\"on_demand\":true"));
    assert_non_null(strstr(text, "restore.sock"));
    const struct task_seen *seen = run_to_its_end(f, operation_state_SUCCEEDED);
    assert_true(seen->backup.booted);
    assert_string_equal(seen->backup.boot_seen, "its console said 'ready for work'");
    assert_int_equal(f->pings, 0);
}

static void the_agent_answers(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "nothing of interest\\n", STAYS);
    begin(f, NULL, 300);
    while (f->pings == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_false(task_of(f)->ended);
    f->answers = true;
    const struct task_seen *seen = run_to_its_end(f, operation_state_SUCCEEDED);
    assert_string_equal(seen->backup.boot_seen, "its guest's agent answered");
}

static void time_is_over(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "grub rescue> ", STAYS);
    begin(f, NULL, 0);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_true(seen->backup.booted);
    assert_string_equal(seen->error_code, "timeout");
    assert_non_null(strstr(seen->error_text, "boot_timeout_s"));
    assert_non_null(strstr(seen->error_text, "'grub rescue> '"));
}

/* Words of somebody's own, of more than one byte each, cut anywhere. */
static void what_was_awaited_is_cut_at_a_character(void **test)
{
    struct fixture *f = *test;
    for (unsigned shift = 0; shift < 2; shift++) {
        struct node_orders none = {.index = 10 + shift};
        char awaited[201] = "";
        for (size_t at = shift; at + 2 < sizeof awaited; at += 2)
            memcpy(awaited + at, "\xc3\xa9", 3);
        memset(awaited, 'x', shift);
        vmm_write(f, "grub rescue> ", STAYS);
        obey(f, 5 * (shift + 1), awaited, 0, false);
        begin(f, awaited, 0);
        const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
        assert_true(websocket_valid_utf8((const uint8_t *)seen->error_text, strlen(seen->error_text)));
        assert_non_null(strstr(seen->error_text, "\xc3\xa9'; its console's last words: 'grub rescue> '"));
        agent_tasks_obey(&f->agent, &none);
        if (f->server != NULL)
            http_server_stop(TAKE_PTR(f->server), on_closed, f);
    }
}

static void it_goes_off(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "no root device\\n", "exit 0");
    begin_deaf(f, "login", 300);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_true(seen->backup.booted);
    assert_non_null(strstr(seen->error_text, "status 0"));
    assert_non_null(strstr(seen->error_text, "'no root device'"));
}

/* That says nothing of the backup. */
static void its_vmm_cannot(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "", "echo '<3>machine no memory' >&2\nexit 1");
    begin_deaf(f, "login", 300);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_false(seen->backup.booted);
    assert_non_null(strstr(seen->error_text, "no memory"));
}

static void the_store_is_not_there(void **test)
{
    struct fixture *f = *test;
    setenv(CHILD, "refuse", 1);
    vmm_write(f, "", STAYS);
    begin(f, "login", 300);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_false(seen->backup.booted);
    assert_string_equal(seen->error_text, "is the share mounted?");
    assert_string_equal(seen->error_code, "not-found");
}

/* Before it is begun, and while it boots. */
static void a_full_host_says_nothing_of_the_backup(void **test)
{
    struct fixture *f = *test;
    struct agent *a = &f->agent;
    struct node_orders none = {.index = 2};
    vmm_write(f, "early\\n", STAYS);
    task_boot_ops.clean(a);
    a->boots.free_bytes_min = UINT64_MAX;
    obey(f, 1, "login", 300, false);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_string_equal(seen->error_code, "no-space");
    assert_false(seen->backup.booted);
    agent_tasks_obey(a, &none);
    a->boots.free_bytes_min = 0;
    obey(f, 3, "login", 300, false);
    begin(f, "login", 300);
    run_to_step(f, "it boots");
    a->boots.free_bytes_min = UINT64_MAX;
    seen = run_to_its_end(f, operation_state_FAILED);
    assert_string_equal(seen->error_code, "no-space");
    assert_false(seen->backup.booted);
}

static void size_await(struct fixture *f, const char *path, off_t size)
{
    struct stat st = {.st_size = 0};
    while (stat(path, &st) < 0 || st.st_size < size)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void nor_does_a_store_that_is_waited_for(void **test)
{
    struct fixture *f = *test;
    CLEANUP_FREE char *count = xasprintf("%s/children", f->dir);
    setenv(CHILD, "stuck", 1);
    setenv(CHILD "_COUNT", count, 1);
    vmm_write(f, "early\\n", STAYS);
    task_boot_ops.clean(&f->agent);
    obey(f, 1, "login", 0, false);
    size_await(f, count, 2); /* what the child said is in the pipe */
    uv_run(&f->loop, UV_RUN_ONCE);
    begin(f, "login", 0);
    const struct task_seen *seen = run_to_its_end(f, operation_state_FAILED);
    assert_non_null(strstr(seen->error_text, "waits for the store: where is it?"));
    assert_string_equal(seen->error_code, "timeout");
    assert_false(seen->backup.booted);
    unsetenv(CHILD "_COUNT");
}

static void cancelled(void **test)
{
    struct fixture *f = *test;
    vmm_write(f, "early\\n", STAYS);
    begin(f, "login", 300);
    run_to_step(f, "it boots");
    obey(f, 2, "login", 300, true);
    const struct task_seen *seen = run_to_its_end(f, operation_state_CANCELLED);
    assert_false(seen->backup.booted);
    /* and before it has its disks */
    struct node_orders none = {.index = 3};
    agent_tasks_obey(&f->agent, &none);
    setenv(CHILD, "wait", 1);
    obey(f, 4, "login", 300, false);
    while (f->agent.boots.at_work == NULL)
        uv_run(&f->loop, UV_RUN_ONCE);
    obey(f, 5, "login", 300, true);
    run_to_its_end(f, operation_state_CANCELLED);
}

/* Orders that come then are without the VM: it goes on with what it began with. */
static void its_image_goes_meanwhile(void **test)
{
    struct fixture *f = *test;
    struct agent_task other = {.agent = &f->agent};
    CLEANUP_FREE char *gate = xasprintf("%s/gate", f->dir);
    vmm_write(f, "web1 login:", STAYS);
    task_boot_ops.clean(&f->agent);
    assert_int_equal(mkfifo(gate, 0600), 0);
    setenv(CHILD, "gate", 1);
    setenv(CHILD "_GATE", gate, 1);
    f->agent.boots.at_work = &other;
    obey(f, 1, "login", 300, false);
    run_to_step(f, "waiting for the end of another VM that a backup was booted in here");
    f->image_gone = true;
    obey(f, 2, "login", 300, false);
    f->agent.boots.at_work = NULL;
    while (f->agent.boots.at_work == NULL || left(f) == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    obey(f, 3, "login", 300, false);
    CLEANUP_FD int open_gate = open(gate, O_RDWR | O_CLOEXEC);
    assert_true(open_gate >= 0);
    begin(f, "login", 300); /* an answer from before, which is older than that of 3 */
    run_to_its_end(f, operation_state_SUCCEEDED);
    unsetenv(CHILD "_GATE");
}

/* Its child goes: the guest has nothing else to read from. */
static void a_child_that_ends_is_begun_again(void **test)
{
    struct fixture *f = *test;
    setenv(CHILD, "short", 1);
    vmm_write(f, "early\\n", STAYS);
    begin(f, NULL, 300);
    run_to_step(f, "it boots");
    CLEANUP_FREE char *count = xasprintf("%s/children", f->dir);
    setenv(CHILD "_COUNT", count, 1);
    size_await(f, count, 2);
    unsetenv(CHILD "_COUNT");
    assert_false(task_of(f)->ended);
    f->answers = true;
    run_to_its_end(f, operation_state_SUCCEEDED);
}

/* What an agent that was killed has left goes first, whatever it is. */
static void leftovers_go(void **test)
{
    struct fixture *f = *test;
    struct agent *a = &f->agent;
    struct vm_order order = {.id = NULL};
    vmm_write(f, "login", STAYS);
    task_boot_ops.clean(a);
    vm_fill(&order, LEFT);
    struct local_vm *vm = vm_create(&a->boots.context, &order, 0);
    OBJECT_CLEAR(vm_order, &order);
    while (vmm_pid(f, LEFT) == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    pid_t pid = vmm_pid(f, LEFT);
    server_start(f);
    vm_close(vm, on_closed, f); /* as when the agent is killed: the VMM stays */
    while (f->closed == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f, LEFT), pid);
    CLEANUP_FREE char *bare = xasprintf("%s/boot/cccccccc-0000-4000-8000-000000000001/disks", f->dir); /* no vm.json yet */
    assert_int_equal(file_make_directories(bare, 0700, NULL), 0);
    agent_boots_free(a);
    task_boot_ops.clean(a);
    assert_int_equal(a->boots.leftovers.count, 1);
    obey(f, 1, "login", 300, false);
    run_to_step(f, "waiting for the end of another VM that a backup was booted in here");
    while (vmm_pid(f, OPERATION) == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(vmm_pid(f, LEFT), 0);
    assert_int_equal(a->boots.leftovers.count, 0);
    http_server_stop(TAKE_PTR(f->server), on_closed, f);
    server_start(f);
    run_to_its_end(f, operation_state_SUCCEEDED);
}

/* ---- the child ---- */

static void count_child(void)
{
    const char *path = getenv(CHILD "_COUNT");
    FILE *file = path != NULL ? fopen(path, "a") : NULL;
    if (file != NULL && (fputc('x', file) == EOF || fclose(file) != 0))
        _exit(1);
}

static int child_main(void)
{
    const char *mode = getenv(CHILD);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    count_child();
    if (strcmp(mode, "refuse") == 0) {
        printf("{\"state\":\"failed\",\"error_code\":\"not-found\",\"error_text\":\"is the share mounted?\"}\n");
        return 1;
    }
    if (strcmp(mode, "gate") == 0 && open(getenv(CHILD "_GATE"), O_RDONLY | O_CLOEXEC) < 0) /* until the test opens it */
        return 1;
    if (strcmp(mode, "wait") != 0)
        task_child_tell_ready("the VM can be started");
    if (strcmp(mode, "stuck") == 0) {
        task_child_tell("what the guest reads waits for the store: where is it?", 0, 0);
        count_child();
    }
    if (strcmp(mode, "short") == 0)
        return 1;
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(the_agent_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(time_is_over, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_awaited_is_cut_at_a_character, setup, teardown),
        cmocka_unit_test_setup_teardown(it_goes_off, setup, teardown),
        cmocka_unit_test_setup_teardown(its_vmm_cannot, setup, teardown),
        cmocka_unit_test_setup_teardown(the_store_is_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_host_says_nothing_of_the_backup, setup, teardown),
        cmocka_unit_test_setup_teardown(nor_does_a_store_that_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelled, setup, teardown),
        cmocka_unit_test_setup_teardown(its_image_goes_meanwhile, setup, teardown),
        cmocka_unit_test_setup_teardown(a_child_that_ends_is_begun_again, setup, teardown),
        cmocka_unit_test_setup_teardown(leftovers_go, setup, teardown),
    };
    if (argc == 4 && strcmp(argv[1], "task") == 0)
        return child_main();
    signal(SIGPIPE, SIG_IGN); /* as the agent does */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
