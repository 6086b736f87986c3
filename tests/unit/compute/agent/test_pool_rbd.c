/* Pools of Ceph on a host: what drover-rbd is asked for and what is made of its answers; servers that are there once, outlive who
 * started them, come again, and end. drover-rbd itself is played by this program: see player(). (pthread) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/file.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_process.h"

#define VM "aaaaaaaa-0000-4000-8000-000000000001"
#define VOLUME "cccccccc-0000-4000-8000-00000000000%u"
#define MARK "5e8f1c2a-0000-4000-8000-000000000001/3"

/* ---- drover-rbd, as the tests want it ---- */

static const char *option(int argc, char **argv, const char *name)
{
    for (int i = 2; i < argc - 1; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return NULL;
}

static int fails(const char *words)
{
    fprintf(stderr, "something else\ndrover-rbd: %s\n", words);
    return 1;
}

static int plays_server(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (bind(fd, (const void *)&address, sizeof address) < 0 || chmod(path, 0600) < 0 || listen(fd, 1) < 0)
        return fails(strerror(errno));
    pause(); /* until a signal ends it */
    return 0;
}

/* Images are files beside --conf, which say how large they are. "status" fails where that is not there. */
static int player(int argc, char **argv)
{
    const char *verb = argv[1], *conf = option(argc, argv, "--conf"), *image = option(argc, argv, "--image");
    const char *size = option(argc, argv, "--size");
    CLEANUP_FREE char *path = xasprintf("%s.%s", conf, image != NULL ? image : "");
    char there[32] = "";
    if (access(conf, F_OK) < 0 || strcmp(option(argc, argv, "--pool"), "vms") != 0 || strcmp(option(argc, argv, "--user"), "drover") != 0)
        return fails("no such Ceph");
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool is_there = fd >= 0 && read(fd, there, sizeof there - 1) > 0;
    if (strcmp(verb, "status") == 0)
        return printf(MARK " 5000 3000\n") > 0 ? 0 : 1;
    if (strcmp(verb, "serve") == 0)
        return is_there ? plays_server(option(argc, argv, "--socket")) : fails("no such image");
    if (strcmp(verb, "remove") == 0)
        return unlink(path) == 0 || errno == ENOENT ? 0 : fails("in use");
    if (strcmp(verb, "create") == 0 && is_there && strcmp(there, size) != 0)
        return fails("it is there, and has another size");
    if (strcmp(verb, "grow") == 0 && !is_there)
        return fails("no such image");
    if (!is_there || strtoull(there, NULL, 10) < strtoull(size, NULL, 10))
        return file_write_atomic(path, size, strlen(size), 0600, NULL) == 0 ? 0 : fails("cannot");
    return 0;
}

/* ---- the fixture ---- */

struct fixture {
    char dir[32], conf[64], program[256];
    struct vm_places places;
    struct vm_order order;
    struct pool_order pool;
};

static void pool_fill(struct fixture *f, struct pool_order *pool)
{
    OBJECT_TEXT(pool_order, pool, id, "bbbbbbbb-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "ceph");
    OBJECT_SET(pool_order, pool, kind, pool_kind_RBD);
    OBJECT_TEXT(pool_order, pool, path, f->conf);
    OBJECT_TEXT(pool_order, pool, ceph_pool, "vms");
    OBJECT_TEXT(pool_order, pool, ceph_user, "drover");
}

static void disk_add(struct fixture *f, unsigned number)
{
    char name[16], volume[64];
    struct vm_disk *disk = OBJECT_ADD(vm_order, &f->order, disks);
    snprintf(name, sizeof name, "vol-%u", number);
    snprintf(volume, sizeof volume, VOLUME, number);
    OBJECT_TEXT(vm_disk, disk, name, name);
    OBJECT_TEXT(vm_disk, disk, pool, "ceph");
    OBJECT_TEXT(vm_disk, disk, volume, volume);
    OBJECT_SET(vm_disk, disk, attachment, 2);
    OBJECT_SET(vm_disk, disk, size_bytes, 1 << 20);
    struct error err;
    if (pool_rbd_make(f->program, &f->pool, volume, 1 << 20, &err) < 0)
        fail_msg("%s", err.text);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/pool-rbd.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->conf, sizeof f->conf, "%s/ceph.conf", f->dir);
    assert_int_equal(file_write_atomic(f->conf, "", 0, 0600, NULL), 0);
    ssize_t n = readlink("/proc/self/exe", f->program, sizeof f->program - 1);
    assert_true(n > 0);
    f->places = (struct vm_places){.vms_dir = f->dir, .rbd_path = f->program};
    CLEANUP_FREE char *disks = vm_files_path(&f->places, VM, "disks");
    assert_int_equal(file_make_directories(disks, 0700, NULL), 0);
    pool_fill(f, &f->pool);
    OBJECT_TEXT(vm_order, &f->order, id, VM);
    OBJECT_TEXT(vm_order, &f->order, name, "web");
    OBJECT_SET(vm_order, &f->order, epoch, 7);
    pool_fill(f, OBJECT_ADD(vm_order, &f->order, pools));
    disk_add(f, 1);
    disk_add(f, 2);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(pool_rbd_end(&f->places, VM, NULL, NULL), 0);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    OBJECT_CLEAR(vm_order, &f->order);
    OBJECT_CLEAR(pool_order, &f->pool);
    free(f);
    return 0;
}

static struct vm_disk *disk_at(struct fixture *f, size_t i)
{
    return (struct vm_disk *)f->order.disks.items + i;
}

/* 0: it has none. */
static struct vmm_process_id server_of(struct fixture *f, const char *disk)
{
    CLEANUP_FREE char *leaf = xasprintf("disks/%s.rbd.lock", disk);
    CLEANUP_FREE char *lock = vm_files_path(&f->places, VM, leaf);
    struct vmm_process_id id = {.pid = 0};
    int r = vmm_process_look(lock, &id, NULL);
    assert_true(r == 0 || r == 1);
    return id;
}

static void serve(struct fixture *f)
{
    struct error err;
    if (pool_rbd_serve(&f->places, &f->order, geteuid(), &err) < 0)
        fail_msg("%s", err.text);
}

static bool can_connect(struct fixture *f, const char *disk)
{
    CLEANUP_FREE char *path = pool_rbd_socket(&f->places, VM, disk);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return connect(fd, (const void *)&address, sizeof address) == 0;
}

/* ---- the tests ---- */

static void what_ceph_says_of_the_pool(void **state)
{
    struct fixture *f = *state;
    struct pool_seen seen = {0};
    pool_rbd_look(f->program, &f->pool, &seen);
    assert_true(seen.present && seen.size_bytes == 5000 && seen.free_bytes == 3000);
    assert_string_equal(seen.mark, MARK);
    OBJECT_CLEAR(pool_seen, &seen);
    OBJECT_TEXT(pool_order, &f->pool, mark, "another/3");
    pool_rbd_look(f->program, &f->pool, &seen);
    assert_true(!seen.present && strstr(seen.reason, "another Ceph cluster") != NULL);
    OBJECT_CLEAR(pool_seen, &seen);
    OBJECT_TEXT(pool_order, &f->pool, path, "/nowhere.conf");
    pool_rbd_look(f->program, &f->pool, &seen);
    assert_false(seen.present);
    assert_string_equal(seen.reason, "no such Ceph"); /* the last line, without the program's name */
    OBJECT_CLEAR(pool_seen, &seen);
    pool_rbd_look("/nowhere/drover-rbd", &f->pool, &seen);
    assert_true(!seen.present && strstr(seen.reason, "not installed") != NULL);
    OBJECT_CLEAR(pool_seen, &seen);
}

static void images_are_made_and_removed_twice_alike(void **state)
{
    struct fixture *f = *state;
    struct error err;
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pool_rbd_make(f->program, &f->pool, "x", 4096, &err), 0);
    assert_int_equal(pool_rbd_grow(f->program, &f->pool, "x", 8192, &err), 0);
    assert_int_equal(pool_rbd_grow(f->program, &f->pool, "x", 4096, &err), 0);
    assert_int_equal(pool_rbd_make(f->program, &f->pool, "x", 4096, &err), 0);  /* an old order */
    assert_int_equal(pool_rbd_make(f->program, &f->pool, "x", 16384, &err), 0); /* one that was enlarged meanwhile */
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pool_rbd_remove(f->program, &f->pool, "x", &err), 0);
    assert_true(pool_rbd_grow(f->program, &f->pool, "x", 4096, &err) < 0);
    assert_string_equal(err.text, "no such image");
}

static void servers_are_there_once(void **state)
{
    struct fixture *f = *state;
    assert_true(pool_rbd_has_disks(&f->order));
    assert_false(pool_rbd_is_served(&f->places, &f->order));
    serve(f);
    assert_true(pool_rbd_is_served(&f->places, &f->order));
    struct vmm_process_id first = server_of(f, "vol-1"), second = server_of(f, "vol-2");
    assert_int_equal(first.epoch, 2ull << 32 | 7);
    assert_true(can_connect(f, "vol-1") && can_connect(f, "vol-2"));
    serve(f);
    assert_int_equal(server_of(f, "vol-1").pid, first.pid);
    /* one dies, and comes again; the other one is not touched */
    kill(first.pid, SIGKILL);
    while (pool_rbd_is_served(&f->places, &f->order))
        sched_yield();
    assert_false(can_connect(f, "vol-1"));
    serve(f);
    struct vmm_process_id again = server_of(f, "vol-1");
    assert_true(again.pid != 0 && again.pid != first.pid && can_connect(f, "vol-1"));
    assert_int_equal(server_of(f, "vol-2").pid, second.pid);
    assert_int_equal(kill(first.pid, 0), -1); /* and is no zombie */
    /* a new epoch is another server's */
    OBJECT_SET(vm_order, &f->order, epoch, 8);
    serve(f);
    assert_int_equal(server_of(f, "vol-1").epoch, 2ull << 32 | 8);
    assert_true(server_of(f, "vol-1").pid != again.pid && can_connect(f, "vol-1"));
}

static void servers_end(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *lock = vm_files_path(&f->places, VM, "disks/vol-1.rbd.lock");
    CLEANUP_FREE char *log = vm_files_path(&f->places, VM, "disks/vol-1.rbd.log");
    serve(f);
    OBJECT_SET(vm_disk, disk_at(f, 0), leaving, true);
    assert_true(pool_rbd_is_served(&f->places, &f->order));
    serve(f); /* as where another one is shown: what leaves may be used still */
    assert_int_not_equal(server_of(f, "vol-1").pid, 0);
    pid_t first = server_of(f, "vol-1").pid, second = server_of(f, "vol-2").pid;
    kill(first, SIGSTOP); /* does not end when asked: the guest has nothing of it any more, so it is killed */
    assert_int_equal(pool_rbd_end(&f->places, VM, "vol-1", NULL), 0);
    assert_true(access(lock, F_OK) < 0 && access(log, F_OK) < 0 && !can_connect(f, "vol-1"));
    assert_int_equal(kill(first, 0), -1);
    assert_int_equal(server_of(f, "vol-2").pid, second);
    /* of a disk that is not in the order any more, when its VMM is to be started */
    OBJECT_SET(vm_disk, disk_at(f, 0), leaving, false);
    serve(f);
    OBJECT_SET(vm_disk, disk_at(f, 0), leaving, true);
    assert_int_equal(pool_rbd_end_others(&f->places, &f->order, NULL), 0);
    assert_int_equal(server_of(f, "vol-1").pid, 0);
    assert_true(access(lock, F_OK) < 0);
    assert_int_equal(server_of(f, "vol-2").pid, second);
    assert_int_equal(pool_rbd_end(&f->places, VM, NULL, NULL), 0);
    assert_int_equal(pool_rbd_end(&f->places, VM, NULL, NULL), 0); /* again: nothing */
}

/* While a VMM lives: also of what it is to let go of, but of nothing that it has not been given yet. */
static void those_that_died_come_again(void **state)
{
    struct fixture *f = *state;
    assert_false(pool_rbd_have_died(&f->places, &f->order));
    serve(f);
    assert_false(pool_rbd_have_died(&f->places, &f->order));
    OBJECT_SET(vm_disk, disk_at(f, 0), leaving, true);
    disk_add(f, 3);
    kill(server_of(f, "vol-1").pid, SIGKILL);
    while (!pool_rbd_have_died(&f->places, &f->order))
        sched_yield();
    pid_t second = server_of(f, "vol-2").pid;
    assert_int_equal(pool_rbd_revive(&f->places, &f->order, geteuid(), NULL), 0);
    assert_true(can_connect(f, "vol-1") && server_of(f, "vol-2").pid == second && server_of(f, "vol-3").pid == 0);
    assert_false(pool_rbd_have_died(&f->places, &f->order));
}

static void why_there_is_no_server(void **state)
{
    struct fixture *f = *state;
    struct error err;
    assert_int_equal(pool_rbd_remove(f->program, &f->pool, disk_at(f, 1)->volume, &err), 0);
    assert_true(pool_rbd_serve(&f->places, &f->order, geteuid(), &err) < 0);
    assert_string_equal(err.text, "disk vol-2: no such image");
}

static void *serve_too(void *arg)
{
    serve(arg);
    return NULL;
}

/* The VM's next step and its supervision may be at it at once. */
static void two_at_once_start_one(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[4];
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, serve_too, f), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        pthread_join(threads[i], NULL);
    assert_true(pool_rbd_is_served(&f->places, &f->order));
    assert_true(can_connect(f, "vol-1") && can_connect(f, "vol-2"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_ceph_says_of_the_pool, setup, teardown),
        cmocka_unit_test_setup_teardown(images_are_made_and_removed_twice_alike, setup, teardown),
        cmocka_unit_test_setup_teardown(servers_are_there_once, setup, teardown),
        cmocka_unit_test_setup_teardown(servers_end, setup, teardown),
        cmocka_unit_test_setup_teardown(those_that_died_come_again, setup, teardown),
        cmocka_unit_test_setup_teardown(why_there_is_no_server, setup, teardown),
        cmocka_unit_test_setup_teardown(two_at_once_start_one, setup, teardown),
    };
    if (argc > 1)
        return player(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
