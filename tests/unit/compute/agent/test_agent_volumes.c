/* Volumes of Ceph that begin as an image: what is told on the way, when one counts as made, and what ends the child at it. And what the loss of a
 * host has left of one: it goes after all that is left of its VM. drover-rbd is played by this program,
 * which does what is written to a pipe beside --conf; it is also the agent whose children are started. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_volumes.h"
#include "compute/agent/image_cache.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_watch.h"
#include "compute/agent/task_child.h"
#include "tests/unit/scratch.h"

#define POOL "bbbbbbbb-0000-4000-8000-000000000001"
#define VOLUME "cccccccc-0000-4000-8000-000000000001"
#define OTHER "cccccccc-0000-4000-8000-000000000002"
#define THIRD "cccccccc-0000-4000-8000-000000000003"
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define TOLD "50 % of its image is there"

/* ---- drover-rbd ---- */

static const char *option(int argc, char **argv, const char *name)
{
    for (int i = 2; i < argc - 1; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return "";
}

/* "y": it is full; "n": it is not. Whatever else it is asked for is done. */
static int player(int argc, char **argv)
{
    char word = '\0';
    CLEANUP_FREE char *pipe = xasprintf("%s.%s", option(argc, argv, "--conf"), option(argc, argv, "--image"));
    if (strcmp(argv[1], "fill") != 0)
        return 0;
    if (strcmp(option(argc, argv, "--origin"), SHA) != 0 || access(option(argc, argv, "--from"), R_OK) < 0 ||
        strncmp(option(argc, argv, "--image"), "drover-cccccccc-", 16) != 0 || strcmp(option(argc, argv, "--pool"), "vms") != 0)
        return 3;
    puts("{\"state\":\"running\",\"progress_done\":59,\"progress_total\":100}");
    fflush(stdout);
    CLEANUP_FD int fd = open(pipe, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, &word, 1) != 1)
        return 4;
    puts(word == 'y' ? "{\"state\":\"succeeded\"}" : "{\"state\":\"failed\",\"error_code\":\"conflict\",\"error_text\":\"Ceph is full\"}");
    return word != 'y';
}

/* ---- the agent ---- */

struct world {
    struct agent agent;
    uv_loop_t loop;
    char dir[40], conf[64], images[64], vms[64], program[256];
    struct vm_context context; /* of the one VM */
    struct node_orders orders;
};

static struct volume_order *order_add(struct world *w, const char *id)
{
    struct volume_order *order = OBJECT_ADD(node_orders, &w->orders, volumes);
    CLEANUP_FREE char *pipe = xasprintf("%s.drover-%s", w->conf, id);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    OBJECT_TEXT(volume_order, order, id, id);
    OBJECT_TEXT(volume_order, order, disk, "vol-c");
    OBJECT_SET(volume_order, order, size_bytes, 1 << 20);
    OBJECT_TEXT(pool_order, &order->pool, id, POOL);
    OBJECT_TEXT(pool_order, &order->pool, name, "ceph");
    OBJECT_SET(pool_order, &order->pool, kind, pool_kind_RBD);
    OBJECT_TEXT(pool_order, &order->pool, path, w->conf);
    OBJECT_TEXT(pool_order, &order->pool, ceph_pool, "vms");
    object_mark(&volume_order_desc, order, "pool");
    OBJECT_TEXT(artifact, &order->image, sha256, SHA);
    object_mark(&volume_order_desc, order, "image");
    return order;
}

static int setup(void **state)
{
    struct world *w = NEW(struct world);
    struct node_orders known = {0};
    strcpy(w->dir, "/tmp/agent-volumes.XXXXXX");
    assert_true(scratch_make(w->dir));
    snprintf(w->conf, sizeof w->conf, "%s/ceph.conf", w->dir);
    snprintf(w->images, sizeof w->images, "%s/images", w->dir);
    assert_int_equal(mkdir(w->images, 0700), 0);
    CLEANUP_FREE char *image = xasprintf("%s/" SHA, w->images);
    assert_int_equal(file_write_atomic(image, "disk", 4, 0600, NULL), 0);
    assert_true(readlink("/proc/self/exe", w->program, sizeof w->program - 1) > 0);
    assert_int_equal(uv_loop_init(&w->loop), 0);
    w->agent.loop = &w->loop;
    w->agent.closing = 1; /* the test's */
    w->agent.vm_context.places.rbd_path = w->program;
    assert_int_equal(image_cache_create(&w->loop, w->images, 0, &w->agent.images, NULL), 0);
    /* a directory under that id: that it is looked at is no matter here */
    struct pool_order *pool = OBJECT_ADD(node_orders, &known, pools);
    OBJECT_TEXT(pool_order, pool, id, POOL);
    OBJECT_TEXT(pool_order, pool, name, "ceph");
    OBJECT_SET(pool_order, pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, pool, path, w->dir);
    OBJECT_SET(pool_order, pool, make, true);
    pool_watch_learn(&w->agent.pools, &known.pools);
    OBJECT_CLEAR(node_orders, &known);
    order_add(w, VOLUME);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    agent_volumes_stop(&w->agent);
    while (w->agent.closing > 1)
        uv_run(&w->loop, UV_RUN_ONCE);
    image_cache_close(w->agent.images, NULL, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    pool_watch_finish(&w->agent.pools);
    OBJECT_CLEAR(node_orders, &w->orders);
    assert_int_equal(file_remove_tree("/tmp", w->dir + 5, NULL), 0);
    free(w);
    return 0;
}

static struct volume_order *order_at(struct world *w, size_t i)
{
    return (struct volume_order *)w->orders.volumes.items + i;
}

/* What the next report says of the volume. */
static bool is_said(struct world *w, const char *id, bool made, bool gone, const char *reason)
{
    struct node_report report = {0};
    bool found = false;
    agent_volumes_put(&w->agent, &report);
    for (size_t i = 0; i < report.volumes.count; i++) {
        const struct volume_seen *seen = (const struct volume_seen *)report.volumes.items + i;
        found = found || (strcmp(seen->id, id) == 0 && seen->made == made && seen->gone == gone && text_same(seen->reason, reason));
    }
    OBJECT_CLEAR(node_report, &report);
    return found;
}

static void until_said(struct world *w, const char *id, bool made, bool gone, const char *reason)
{
    while (!is_said(w, id, made, gone, reason))
        uv_run(&w->loop, UV_RUN_ONCE);
}

/* To the child that fills it, once it listens. */
static void say(struct world *w, const char *id, const char *word)
{
    CLEANUP_FREE char *pipe = xasprintf("%s.drover-%s", w->conf, id);
    CLEANUP_FD int fd = -1;
    while ((fd = open(pipe, O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0) {
        assert_int_equal(errno, ENXIO);
        uv_run(&w->loop, UV_RUN_NOWAIT);
        sched_yield();
    }
    assert_int_equal(write(fd, word, 1), 1);
}

static void on_closed(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

static void on_time(uv_timer_t *timer)
{
    uv_close((uv_handle_t *)timer, on_closed);
}

/* The loop's clock is not the test's. */
static void wait_ms(struct world *w, unsigned ms)
{
    uv_timer_t timer;
    bool over = false;
    uv_timer_init(&w->loop, &timer);
    timer.data = &over;
    uv_timer_start(&timer, on_time, ms, 0);
    while (!over)
        uv_run(&w->loop, UV_RUN_ONCE);
}

static void made_when_all_is_there(void **state)
{
    struct world *w = *state;
    agent_volumes_obey(&w->agent, &w->orders);
    assert_true(is_said(w, VOLUME, false, false, NULL));
    until_said(w, VOLUME, false, false, TOLD);
    agent_volumes_obey(&w->agent, &w->orders); /* the same again changes nothing */
    assert_true(is_said(w, VOLUME, false, false, TOLD) && w->agent.volumes.filling == 1);
    assert_true(agent_volumes_use(&w->agent, SHA));
    say(w, VOLUME, "y");
    until_said(w, VOLUME, true, false, NULL);
    assert_false(agent_volumes_use(&w->agent, SHA));
    assert_int_equal(w->agent.volumes.filling, 0);
}

static void a_failure_is_told_and_tried_again_when_asked(void **state)
{
    struct world *w = *state;
    agent_volumes_obey(&w->agent, &w->orders);
    say(w, VOLUME, "n");
    until_said(w, VOLUME, false, false, "Ceph is full");
    /* not by itself, however long it takes: the order may be an old one */
    wait_ms(w, AGENT_VOLUME_RETRY_MS + 1);
    agent_volumes_tick(&w->agent);
    assert_int_equal(w->agent.volumes.filling, 0);
    agent_volumes_obey(&w->agent, &w->orders);
    assert_int_equal(w->agent.volumes.filling, 1);
    say(w, VOLUME, "y");
    until_said(w, VOLUME, true, false, NULL);
}

static void removed_in_the_middle(void **state)
{
    struct world *w = *state;
    agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, VOLUME, false, false, TOLD);
    OBJECT_SET(volume_order, order_at(w, 0), remove, true);
    for (unsigned i = 0; i < 2; i++)
        agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, VOLUME, false, true, NULL); /* not before the child has ended */
    assert_int_equal(w->agent.volumes.filling, 0);
}

static void larger_in_the_middle(void **state)
{
    struct world *w = *state;
    agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, VOLUME, false, false, TOLD);
    OBJECT_SET(volume_order, order_at(w, 0), size_bytes, 2 << 20);
    agent_volumes_obey(&w->agent, &w->orders);
    assert_true(is_said(w, VOLUME, false, false, NULL));
    until_said(w, VOLUME, false, false, TOLD); /* another child */
    say(w, VOLUME, "y");
    until_said(w, VOLUME, true, false, NULL);
}

static void nobodys_any_more(void **state)
{
    struct world *w = *state;
    const struct node_orders none = {0};
    agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, VOLUME, false, false, TOLD);
    agent_volumes_obey(&w->agent, &none);
    assert_false(is_said(w, VOLUME, false, false, TOLD));
    while (w->agent.volumes.all.count > 0)
        uv_run(&w->loop, UV_RUN_ONCE);
    assert_int_equal(w->agent.volumes.filling, 0);
}

/* Two at once; what needs no image does not wait for them. */
static void others_wait(void **state)
{
    struct world *w = *state;
    order_add(w, OTHER);
    order_add(w, THIRD);
    agent_volumes_obey(&w->agent, &w->orders);
    assert_int_equal(w->agent.volumes.filling, AGENT_VOLUMES_FILLING_MAX);
    struct volume_order *empty = order_add(w, "cccccccc-0000-4000-8000-000000000004");
    OBJECT_CLEAR(artifact, &empty->image);
    empty->head.present &= ~(UINT64_C(1) << (object_field(&volume_order_desc, "image") - volume_order_desc.fields));
    agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, "cccccccc-0000-4000-8000-000000000004", true, false, NULL);
    for (unsigned i = 0; i < w->orders.volumes.count - 1; i++)
        say(w, order_at(w, i)->id, "y");
    until_said(w, VOLUME, true, false, NULL);
    until_said(w, OTHER, true, false, NULL);
    until_said(w, THIRD, true, false, NULL);
}

/* ---- what the loss of this host has left ---- */

#define VM "dddddddd-0000-4000-8000-000000000001"
#define PLACE "eeeeeeee-0000-4000-8000-000000000001"

/* A volume in a directory of this host's, in that place, which is to go; it is there. */
static char *left_make(struct world *w)
{
    struct volume_order *order = order_at(w, 0);
    CLEANUP_FREE char *vms = xasprintf("%s/vms", w->dir);
    char *path = xasprintf("%s/volumes/" VOLUME "." PLACE, w->dir);
    OBJECT_CLEAR(artifact, &order->image);
    order->head.present &= ~(UINT64_C(1) << (object_field(&volume_order_desc, "image") - volume_order_desc.fields));
    OBJECT_SET(pool_order, &order->pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, &order->pool, path, w->dir);
    OBJECT_TEXT(volume_order, order, place, PLACE);
    OBJECT_SET(volume_order, order, remove, true);
    OBJECT_SET(volume_order, order, lost, true);
    struct pool_seen seen = {0};
    OBJECT_SET(pool_order, &order->pool, make, true);
    pool_dir_look(&order->pool, &seen);
    OBJECT_SET(pool_order, &order->pool, make, false);
    OBJECT_CLEAR(pool_seen, &seen);
    assert_int_equal(file_make_directories(path, 0700, NULL), 0);
    assert_int_equal(file_make_directories(vms, 0700, NULL), 0);
    w->agent.vms_dir = w->vms;
    snprintf(w->vms, sizeof w->vms, "%s", vms);
    return path;
}

/* A directory of a VM of which nothing could be read: it may be this one's. Told of when it is not about to go anyhow. */
static void what_is_left_waits_for_a_vm_that_cannot_be_read(void **state)
{
    struct world *w = *state;
    CLEANUP_FREE char *left = left_make(w), *vm = xasprintf("%s/vms/" VM, w->dir);
    assert_int_equal(mkdir(vm, 0700), 0);
    agent_volumes_obey(&w->agent, &w->orders);
    assert_true(is_said(w, VOLUME, false, false, NULL));
    wait_ms(w, AGENT_VOLUME_RETRY_MS + 1);
    agent_volumes_tick(&w->agent);
    assert_false(is_said(w, VOLUME, false, false, NULL));
    assert_int_equal(access(left, F_OK), 0);
    assert_int_equal(rmdir(vm), 0);
    wait_ms(w, AGENT_VOLUME_RETRY_MS + 1);
    agent_volumes_tick(&w->agent);
    until_said(w, VOLUME, false, true, NULL);
    assert_int_equal(access(left, F_OK), -1);
}

static void on_changed(struct local_vm *vm UNUSED, void *arg UNUSED) {}

static void on_vm_closed(void *arg)
{
    *(bool *)arg = true;
}

/* A VM of this host's that is off, and has the volume in @place. */
static struct local_vm *vm_make(struct world *w, const char *place)
{
    struct vm_order order = {.id = NULL};
    struct vm_disk *disk = OBJECT_ADD(vm_order, &order, disks);
    w->context = (struct vm_context){.loop = &w->loop, .images = w->agent.images, .boot_id = "boot", .changed = on_changed,
                                     .places = {.vms_dir = w->vms, .run_dir = w->dir, .images_dir = w->images}};
    OBJECT_TEXT(vm_order, &order, id, VM);
    OBJECT_TEXT(vm_order, &order, name, "web");
    OBJECT_SET(vm_order, &order, wanted, vm_wanted_STOPPED);
    OBJECT_SET(vm_order, &order, generation, 1);
    OBJECT_TEXT(vm_disk, disk, name, "vol-c");
    OBJECT_TEXT(vm_disk, disk, volume, VOLUME);
    OBJECT_TEXT(vm_disk, disk, place, place);
    struct local_vm *vm = vm_create(&w->context, &order, 1);
    OBJECT_CLEAR(vm_order, &order);
    map_put(&w->agent.vms, VM, vm);
    return vm;
}

static void vm_goes(struct world *w, struct local_vm *vm)
{
    bool closed = false;
    map_remove(&w->agent.vms, VM);
    vm_close(vm, on_vm_closed, &closed);
    while (!closed)
        uv_run(&w->loop, UV_RUN_ONCE);
    map_finish(&w->agent.vms);
    assert_int_equal(file_remove_tree(w->vms, VM, NULL), 0);
}

/* It goes by the same orders, and may be at work still. */
static void what_is_left_waits_for_the_vm_that_has_it(void **state)
{
    struct world *w = *state;
    CLEANUP_FREE char *left = left_make(w);
    struct local_vm *vm = vm_make(w, PLACE);
    agent_volumes_obey(&w->agent, &w->orders);
    wait_ms(w, AGENT_VOLUME_RETRY_MS + 1);
    agent_volumes_tick(&w->agent);
    assert_true(is_said(w, VOLUME, false, false, "VM web is still on this host, and has it"));
    assert_int_equal(access(left, F_OK), 0);
    vm_goes(w, vm);
    wait_ms(w, AGENT_VOLUME_RETRY_MS + 1);
    agent_volumes_tick(&w->agent);
    until_said(w, VOLUME, false, true, NULL);
    assert_int_equal(access(left, F_OK), -1);
}

/* It came back since: that is another copy. */
static void what_is_left_waits_for_no_vm_that_has_another_copy(void **state)
{
    struct world *w = *state;
    CLEANUP_FREE char *left = left_make(w);
    struct local_vm *vm = vm_make(w, OTHER);
    agent_volumes_obey(&w->agent, &w->orders);
    until_said(w, VOLUME, false, true, NULL);
    assert_int_equal(access(left, F_OK), -1);
    vm_goes(w, vm);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(made_when_all_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failure_is_told_and_tried_again_when_asked, setup, teardown),
        cmocka_unit_test_setup_teardown(removed_in_the_middle, setup, teardown),
        cmocka_unit_test_setup_teardown(larger_in_the_middle, setup, teardown),
        cmocka_unit_test_setup_teardown(nobodys_any_more, setup, teardown),
        cmocka_unit_test_setup_teardown(others_wait, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_left_waits_for_a_vm_that_cannot_be_read, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_left_waits_for_the_vm_that_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_left_waits_for_no_vm_that_has_another_copy, setup, teardown),
    };
    if (argc > 3 && strcmp(argv[1], "task") == 0)
        return task_child_main(argv[2], (pid_t)atoi(argv[3]));
    if (argc > 1)
        return player(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
