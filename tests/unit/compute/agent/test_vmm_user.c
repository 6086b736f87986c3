/* Users of VMMs: which number a VM gets, that no two get the same, and who owns what afterwards. The part about owners
 * needs root, and is skipped without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_user.h"

#define BASE 1900000000u
#define VM_A "aaaaaaaa-0000-4000-8000-000000000001"
#define VM_B "bbbbbbbb-0000-4000-8000-000000000002"

struct fixture {
    char dir[64], vms[96], images[96];
    struct vm_places places;
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/vmm_user.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->vms, sizeof(f->vms), "%s/vms", f->dir);
    snprintf(f->images, sizeof(f->images), "%s/images", f->dir);
    assert_int_equal(mkdir(f->vms, 0700) | mkdir(f->images, 0755), 0);
    f->places = (struct vm_places){.vms_dir = f->vms, .run_dir = f->dir, .images_dir = f->images};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static bool needs_root(void)
{
    if (geteuid() == 0)
        return false;
    print_message("only root can give files away\n");
    return true;
}

static void make_vm(struct fixture *f, const char *id)
{
    CLEANUP_FREE char *dir = vm_files_path(&f->places, id, "");
    assert_int_equal(file_make_directories(dir, 0700, NULL), 0);
}

static void put(struct fixture *f, const char *id, const char *leaf, mode_t mode)
{
    CLEANUP_FREE char *path = vm_files_path(&f->places, id, leaf);
    assert_int_equal(file_write_atomic(path, "x", 1, mode, NULL), 0);
}

static uid_t allot(struct fixture *f, const char *id)
{
    struct error err;
    uid_t user = 0;
    assert_int_equal(vmm_user_allot(&f->places, BASE, id, false, &user, &err), 0);
    return user;
}

/* "owner:group mode" of a file of a VM. */
static void assert_owned(struct fixture *f, const char *id, const char *leaf, uid_t user, gid_t group, mode_t mode)
{
    CLEANUP_FREE char *path = vm_files_path(&f->places, id, leaf);
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_uid, user);
    assert_int_equal(st.st_gid, group);
    if (mode != 0)
        assert_int_equal(st.st_mode & 07777, mode);
}

static void test_pick(void **state)
{
    static bool taken[VMM_USERS];
    uid_t first, again, second, last = 0;
    (void)state;
    memset(taken, 0, sizeof(taken));
    assert_int_equal(vmm_user_pick(BASE, VM_A, taken, &first), 0);
    assert_int_equal(vmm_user_pick(BASE, VM_A, taken, &again), 0);
    assert_int_equal(first, again); /* the same wherever it is */
    assert_in_range(first, BASE, BASE + VMM_USERS - 1);
    taken[first - BASE] = true;
    assert_int_equal(vmm_user_pick(BASE, VM_A, taken, &second), 0);
    assert_int_equal(second, first + 1 < BASE + VMM_USERS ? first + 1 : BASE);
    /* all of them, each once */
    memset(taken, 0, sizeof(taken));
    for (unsigned i = 0; i < VMM_USERS; i++) {
        assert_int_equal(vmm_user_pick(BASE, VM_B, taken, &last), 0);
        assert_false(taken[last - BASE]);
        taken[last - BASE] = true;
    }
    assert_int_equal(vmm_user_pick(BASE, VM_B, taken, &last), -ENOSPC);
}

static void test_stays_and_is_nobody_elses(void **state)
{
    struct fixture *f = *state;
    static bool none[VMM_USERS];
    char id[37];
    uid_t other, wish;
    if (needs_root())
        return;
    make_vm(f, VM_A);
    uid_t user = allot(f, VM_A);
    assert_int_equal(allot(f, VM_A), user);
    /* another VM that would like to have the same number */
    for (unsigned i = 0;; i++) {
        snprintf(id, sizeof(id), "cccccccc-0000-4000-8000-%012x", i);
        assert_int_equal(vmm_user_pick(BASE, id, none, &wish), 0);
        if (wish == user)
            break;
    }
    make_vm(f, id);
    other = allot(f, id);
    assert_int_not_equal(other, user);
    /* what is being removed keeps its number: a VMM's files may be there still */
    CLEANUP_FREE char *from = vm_files_path(&f->places, VM_A, "");
    CLEANUP_FREE char *to = xasprintf("%s" VM_FILES_GONE, from);
    assert_int_equal(rename(from, to), 0);
    make_vm(f, VM_A);
    uid_t third = allot(f, VM_A);
    assert_int_not_equal(third, user);
    assert_int_not_equal(third, other);
    assert_int_equal(file_remove_tree(f->vms, VM_A VM_FILES_GONE, NULL), 0);
    assert_int_equal(allot(f, VM_A), third); /* it does not go back either */
}

static void test_directory_of_an_earlier_agent(void **state)
{
    struct fixture *f = *state;
    static const char *const agents[] = {"vm.json", "config.json", "vmm.lock", "vmm.log"};
    if (needs_root())
        return;
    make_vm(f, VM_A);
    for (size_t i = 0; i < ARRAY_SIZE(agents); i++)
        put(f, VM_A, agents[i], 0600);
    put(f, VM_A, "console.log", 0600);
    put(f, VM_A, "uefi-variables.fd", 0600);
    CLEANUP_FREE char *link_path = vm_files_path(&f->places, VM_A, "link");
    CLEANUP_FREE char *pipe_path = vm_files_path(&f->places, VM_A, "pipe");
    CLEANUP_FREE char *json = vm_files_path(&f->places, VM_A, "vm.json");
    CLEANUP_FREE char *second = vm_files_path(&f->places, VM_A, "second-name");
    assert_int_equal(symlink(json, link_path) | mkfifo(pipe_path, 0600) | link(json, second), 0);
    uid_t user = allot(f, VM_A);
    assert_owned(f, VM_A, "", 0, user, 01770);
    assert_owned(f, VM_A, "console.log", user, user, 0600);
    assert_owned(f, VM_A, "uefi-variables.fd", user, user, 0600);
    for (size_t i = 0; i < ARRAY_SIZE(agents); i++)
        assert_owned(f, VM_A, agents[i], 0, getegid(), 0600);
    assert_owned(f, VM_A, "link", 0, getegid(), 0);
}

static void test_disks(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.epoch = 0};
    struct error err;
    if (needs_root())
        return;
    make_vm(f, VM_A);
    OBJECT_TEXT(vm_order, &order, id, VM_A);
    for (unsigned i = 0; i < 2; i++) {
        struct vm_disk *disk = OBJECT_ADD(vm_order, &order, disks);
        OBJECT_TEXT(vm_disk, disk, name, i == 0 ? "root" : "tools");
        OBJECT_SET(vm_disk, disk, read_only, i == 1);
    }
    CLEANUP_FREE char *disks = vm_files_path(&f->places, VM_A, "disks");
    assert_int_equal(mkdir(disks, 0700), 0);
    put(f, VM_A, "disks/root.raw", 0600);
    uid_t user = allot(f, VM_A);
    assert_int_equal(vmm_user_own_files(&f->places, &order, false, user, NULL, &err), -ENOENT); /* one is missing: said, not ignored */
    assert_non_null(strstr(err.text, "disks/tools.raw"));
    put(f, VM_A, "disks/tools.raw", 0600);
    assert_int_equal(vmm_user_own_files(&f->places, &order, false, user, NULL, &err), 0);
    assert_owned(f, VM_A, "disks", 0, user, 0710);
    assert_owned(f, VM_A, "disks/root.raw", user, user, 0600);
    assert_owned(f, VM_A, "disks/tools.raw", 0, user, 0640);
    OBJECT_CLEAR(vm_order, &order);
}

static mode_t mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode & 0777;
}

/* A disk with layers: its image is opened to all VMMs; another file that a VMM has put under its name is not. */
static void test_image_of_layers(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.epoch = 0};
    struct error err;
    const char *sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    if (needs_root())
        return;
    make_vm(f, VM_A);
    OBJECT_TEXT(vm_order, &order, id, VM_A);
    OBJECT_TEXT(artifact, &order.disk, sha256, sha);
    struct vm_disk *disk = OBJECT_ADD(vm_order, &order, disks);
    OBJECT_TEXT(vm_disk, disk, name, "root");
    OBJECT_SET(vm_disk, disk, image, true);
    CLEANUP_FREE char *pool = vm_files_path(&f->places, VM_A, "disks/root.layers");
    CLEANUP_FREE char *image = xasprintf("%s/%s", f->images, sha), *linked = xasprintf("%s/%s.img", pool, sha);
    CLEANUP_FREE char *secret = xasprintf("%s/secret", f->dir);
    assert_int_equal(file_make_directories(pool, 0700, NULL), 0);
    assert_int_equal(file_write_atomic(image, "x", 1, 0600, NULL) | file_write_atomic(secret, "x", 1, 0600, NULL), 0);
    assert_int_equal(link(secret, linked), 0);
    uid_t user = allot(f, VM_A);
    assert_int_equal(vmm_user_own_files(&f->places, &order, false, user, NULL, &err), 0);
    assert_int_equal(mode_of(secret), 0600);
    assert_int_equal(mode_of(image), 0600);
    assert_int_equal(unlink(linked) | link(image, linked), 0);
    assert_int_equal(vmm_user_own_files(&f->places, &order, false, user, NULL, &err), 0);
    assert_int_equal(mode_of(image), 0644);
    assert_owned(f, VM_A, "disks/root.layers", user, user, 0700);
    OBJECT_CLEAR(vm_order, &order);
}

/* A VM whose disks moved to a shared pool while it ran: they are the user's that it was started with, where it came from. */
static void test_arrives_as_the_user_whose_its_disks_are(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct error err = {.code = 0};
    char path[128];
    uid_t user = 0, other = 0;
    if (needs_root())
        return;
    make_vm(f, VM_A);
    make_vm(f, VM_B);
    OBJECT_TEXT(vm_order, &order, id, VM_A);
    struct vm_disk *disk = OBJECT_ADD(vm_order, &order, disks);
    OBJECT_TEXT(vm_disk, disk, name, "root");
    OBJECT_TEXT(vm_disk, disk, pool, "nas");
    struct pool_order *pool = OBJECT_ADD(vm_order, &order, pools);
    OBJECT_TEXT(pool_order, pool, id, "bbbbbbbb-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "nas");
    OBJECT_SET(pool_order, pool, kind, pool_kind_SHARED_DIR);
    OBJECT_TEXT(pool_order, pool, path, f->dir);
    snprintf(path, sizeof path, "%s/vms/" VM_A "/root.layers", f->dir);
    /* not there, or root's: the one that it has everywhere */
    assert_int_equal(vmm_user_allot_arriving(&f->places, BASE, &order, &user, &err), 0);
    assert_int_equal(user, vmm_user_of_shared(BASE, VM_A, 0));
    assert_int_equal(file_make_directories(path, 0700, &err), 0);
    assert_int_equal(vmm_user_allot_arriving(&f->places, BASE, &order, &user, &err), 0);
    assert_int_equal(user, vmm_user_of_shared(BASE, VM_A, 0));
    /* another host's choice for it */
    assert_int_equal(chown(path, BASE + 7, BASE + 7), 0);
    for (unsigned i = 0; i < 2; i++) { /* asked again, after an agent's end: the same */
        assert_int_equal(vmm_user_allot_arriving(&f->places, BASE, &order, &user, &err), 0);
        assert_int_equal(user, BASE + 7);
        assert_owned(f, VM_A, "", 0, BASE + 7, 01770);
    }
    /* one that only arrives there says nothing: it is given to whoever the others are */
    OBJECT_SET(vm_disk, disk, arriving, true);
    assert_int_equal(vmm_user_allot_arriving(&f->places, BASE, &order, &user, &err), 0);
    assert_int_equal(user, vmm_user_of_shared(BASE, VM_A, 0));
    OBJECT_SET(vm_disk, disk, arriving, false);
    /* which here is another VM's already */
    other = allot(f, VM_B);
    assert_int_not_equal(other, BASE + 7);
    assert_int_equal(chown(path, other, other), 0);
    assert_int_equal(vmm_user_allot_arriving(&f->places, BASE, &order, &user, &err), -EBUSY);
    assert_non_null(strstr(err.text, "stop and start"));
    OBJECT_CLEAR(vm_order, &order);
}

/* ---- turns ---- */

/* Another host: the same pool, a directory of VMs of its own. */
struct turn_host {
    struct fixture *f;
    char vms[112];
    struct vm_places places;
    struct vmm_turn turn; /* as it has it written down */
};

static void host_make(struct turn_host *h, struct fixture *f, const char *name)
{
    *h = (struct turn_host){.f = f};
    snprintf(h->vms, sizeof h->vms, "%s/%s", f->dir, name);
    h->places = (struct vm_places){.vms_dir = h->vms, .run_dir = f->dir, .images_dir = f->images, .user_base = BASE};
    CLEANUP_FREE char *disks = vm_files_path(&h->places, VM_A, "disks");
    assert_int_equal(file_make_directories(disks, 0700, NULL), 0);
}

static const char *const shared_leaves[] = {"", "/root.disk", "/a.data", "/a.map"}; /* of each disk there */

/* A VM with two disks and a volume in a shared pool, as after its first start; and what is in them. */
static void shared_make(struct fixture *f, struct vm_order *order)
{
    OBJECT_TEXT(vm_order, order, id, VM_A);
    OBJECT_TEXT(vm_order, order, name, "a");
    struct pool_order *pool = OBJECT_ADD(vm_order, order, pools);
    OBJECT_TEXT(pool_order, pool, id, "bbbbbbbb-0000-4000-8000-000000000001");
    OBJECT_TEXT(pool_order, pool, name, "nas");
    OBJECT_SET(pool_order, pool, kind, pool_kind_SHARED_DIR);
    OBJECT_TEXT(pool_order, pool, path, f->dir);
    for (unsigned i = 0; i < 3; i++) {
        struct vm_disk *disk = OBJECT_ADD(vm_order, order, disks);
        OBJECT_TEXT(vm_disk, disk, name, i == 0 ? "root" : i == 1 ? "data" : "vol");
        OBJECT_TEXT(vm_disk, disk, pool, "nas");
        if (i == 2)
            OBJECT_TEXT(vm_disk, disk, volume, VM_B);
        CLEANUP_FREE char *layers = vm_files_layers_path(&(struct vm_places){.vms_dir = f->vms}, order, disk);
        assert_int_equal(file_make_directories(layers, 0700, NULL), 0);
        for (size_t k = 1; k < ARRAY_SIZE(shared_leaves); k++) {
            CLEANUP_FREE char *path = xasprintf("%s%s", layers, shared_leaves[k]);
            assert_int_equal(file_write_atomic(path, "x", 1, k == 2 ? 0666 : 0600, NULL), 0);
        }
    }
}

static uid_t turn_user(unsigned turn)
{
    return vmm_user_of_shared(BASE, VM_A, turn);
}

/* All that @order has in the pool is @user's. */
static void assert_shared(struct fixture *f, const struct vm_order *order, uid_t user)
{
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)order->disks.items + i;
        CLEANUP_FREE char *layers = vm_files_layers_path(&(struct vm_places){.vms_dir = f->vms}, order, disk);
        for (size_t k = 0; k < ARRAY_SIZE(shared_leaves); k++) {
            CLEANUP_FREE char *path = xasprintf("%s%s", layers, shared_leaves[k]);
            struct stat st;
            assert_int_equal(lstat(path, &st), 0);
            assert_int_equal(st.st_uid, user);
            assert_int_equal(st.st_mode & 0022, 0); /* and nobody else's to write to */
        }
    }
}

static void give(const struct vm_order *order, struct fixture *f, size_t disk, const char *leaf, uid_t user)
{
    CLEANUP_FREE char *layers =
        vm_files_layers_path(&(struct vm_places){.vms_dir = f->vms}, order, (const struct vm_disk *)order->disks.items + disk);
    CLEANUP_FREE char *path = xasprintf("%s%s", layers, leaf);
    assert_int_equal(chown(path, user, user), 0);
}

static void give_back(const struct vm_order *order, struct fixture *f, size_t disk, const char *leaf, uid_t is, uid_t user)
{
    CLEANUP_FREE char *layers =
        vm_files_layers_path(&(struct vm_places){.vms_dir = f->vms}, order, (const struct vm_disk *)order->disks.items + disk);
    CLEANUP_FREE char *path = xasprintf("%s%s", layers, leaf);
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_uid, is);
    give(order, f, disk, leaf, user);
}

static void take(struct turn_host *h, struct vm_order *order, uint64_t epoch)
{
    struct error err;
    OBJECT_SET(vm_order, order, epoch, epoch);
    assert_int_equal(vmm_user_take_turn(&h->places, BASE, order, &h->turn, &err), 0);
}

/* As the agent does before each start. */
static int begin(struct turn_host *h, struct vm_order *order, uint64_t epoch)
{
    struct error err;
    take(h, order, epoch);
    int r = vmm_user_own_files(&h->places, order, false, h->turn.user, &h->turn, &err);
    if (r == 0) {
        assert_owned(&(struct fixture){.places = h->places}, VM_A, "", 0, h->turn.user, 01770);
        h->turn.before = 0;
    }
    return r;
}

static void test_turns_are_nobody_elses(void **state)
{
    (void)state;
    for (unsigned i = 0; i < VMM_USER_TURNS; i++) {
        assert_in_range(turn_user(i), BASE + VMM_USERS_SHARED_FIRST + i * VMM_USERS_SHARED,
                        BASE + VMM_USERS_SHARED_FIRST + (i + 1) * VMM_USERS_SHARED - 1);
        assert_int_equal(turn_user(i) - turn_user(0), i * VMM_USERS_SHARED);
    }
    /* systemd has foreign users from there on */
    assert_true(BASE + VMM_USERS_SHARED_FIRST + (uint64_t)VMM_USER_TURNS * VMM_USERS_SHARED < 2147352576u);
}

static void test_each_life_on_another_host_takes_a_turn(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct turn_host one, two;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    host_make(&two, f, "two");
    shared_make(f, &order);
    assert_int_equal(begin(&one, &order, 1), 0); /* what nobody has had: as older versions have it */
    assert_shared(f, &order, turn_user(0));
    assert_int_equal(begin(&one, &order, 1), 0); /* its VMM has crashed */
    assert_int_equal(begin(&one, &order, 2), 0); /* it was off, and stayed here */
    assert_shared(f, &order, turn_user(0));
    for (unsigned i = 1; i < 20; i++) { /* to and fro */
        struct turn_host *to = i % 2 != 0 ? &two : &one;
        assert_int_equal(begin(to, &order, 2 + i), 0);
        assert_int_equal(begin(to, &order, 2 + i), 0);
        assert_shared(f, &order, turn_user(i % VMM_USER_TURNS));
    }
    assert_int_equal(begin(&two, &order, 23), 0); /* the life before was somewhere else, which nobody here has seen */
    assert_shared(f, &order, turn_user(20 % VMM_USER_TURNS));
    OBJECT_CLEAR(vm_order, &order);
}

/* A start that comes to nothing is begun again as often as it likes, and uses up one turn. */
static void test_one_turn_for_each_life(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct turn_host one, two;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    host_make(&two, f, "two");
    shared_make(f, &order);
    assert_int_equal(begin(&one, &order, 1), 0);
    for (unsigned i = 0; i < 3; i++) {
        take(&two, &order, 2);
        assert_int_equal(two.turn.user, turn_user(1));
        assert_int_equal(two.turn.before, 1);
        assert_owned(&(struct fixture){.places = two.places}, VM_A, "", 0, getegid(), 0700); /* as little as that */
    }
    assert_shared(f, &order, turn_user(0)); /* nothing was given away */
    give(&order, f, 0, "/a.data", turn_user(1)); /* it ends in the midst of that */
    take(&two, &order, 3);
    assert_int_equal(two.turn.user, turn_user(2)); /* of another life: who knows whether it was this host */
    two.turn = (struct vmm_turn){.epoch = 2, .user = turn_user(1), .before = 1};
    assert_int_equal(begin(&two, &order, 2), 0);
    assert_shared(f, &order, turn_user(1));
    OBJECT_CLEAR(vm_order, &order);
}

static void test_files_of_differing_turns(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct turn_host one, two;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    host_make(&two, f, "two");
    shared_make(f, &order);
    assert_int_equal(begin(&one, &order, 1), 0);
    /* another host was lost while it gave them away; beyond the last turn comes the first one */
    for (size_t i = 0; i < 3; i++)
        give(&order, f, i, "", turn_user(7));
    give(&order, f, 1, "/a.data", turn_user(7));
    assert_int_equal(begin(&two, &order, 3), 0);
    assert_shared(f, &order, turn_user(1));
    /* a volume that was away, as a later turn than that of the disks */
    give(&order, f, 2, "/a.data", turn_user(2));
    assert_int_equal(begin(&one, &order, 4), 0);
    assert_shared(f, &order, turn_user(3));
    /* users of others, and nobody's */
    give(&order, f, 0, "/a.map", BASE + 5);
    give(&order, f, 0, "/a.data", 0);
    give(&order, f, 2, "/a.data", vmm_user_of_shared(BASE, VM_B, 3));
    assert_int_equal(begin(&two, &order, 5), 0);
    assert_shared(f, &order, turn_user(4));
    give(&order, f, 2, "/a.data", turn_user(1)); /* an earlier one: it follows the disks, and not that */
    assert_int_equal(begin(&one, &order, 6), 0);
    assert_shared(f, &order, turn_user(5));
    OBJECT_CLEAR(vm_order, &order);
}

/* All that says which turn is the last one has become another VM's: not the first turn, of which a host may still have them open. */
static void test_volumes_of_another_vm(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct turn_host one;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    shared_make(f, &order);
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < ARRAY_SIZE(shared_leaves); k++)
            give(&order, f, i, shared_leaves[k], vmm_user_of_shared(BASE, VM_B, 0));
    for (uint64_t epoch = 7; epoch < 15; epoch += 7) {
        assert_int_equal(begin(&one, &order, epoch), 0);
        assert_int_not_equal(one.turn.user, turn_user(0));
        assert_shared(f, &order, one.turn.user);
        one.turn = (struct vmm_turn){.epoch = 0};
        for (size_t i = 0; i < 3; i++)
            for (size_t k = 0; k < ARRAY_SIZE(shared_leaves); k++)
                give(&order, f, i, shared_leaves[k], vmm_user_of_shared(BASE, VM_B, 0));
    }
    OBJECT_CLEAR(vm_order, &order);
}

/* A host that was slow does not take the disks from the VMM of another one. */
static void test_taken_over_meanwhile(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct error err;
    struct turn_host one, two;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    host_make(&two, f, "two");
    shared_make(f, &order);
    assert_int_equal(begin(&one, &order, 1), 0);
    assert_int_equal(begin(&two, &order, 2), 0);
    OBJECT_SET(vm_order, &order, epoch, 1);
    assert_int_equal(vmm_user_own_files(&one.places, &order, false, one.turn.user, &one.turn, &err), -ESTALE);
    assert_non_null(strstr(err.text, "another host"));
    assert_shared(f, &order, turn_user(1));
    /* not even those that come first are touched: it is the second disk that tells */
    for (size_t i = 0; i < ARRAY_SIZE(shared_leaves); i++)
        give(&order, f, 0, shared_leaves[i], turn_user(0));
    const struct vmm_turn late = {.epoch = 1, .user = turn_user(2), .before = 1};
    assert_int_equal(vmm_user_own_files(&one.places, &order, false, late.user, &late, &err), -ESTALE);
    for (size_t i = 0; i < ARRAY_SIZE(shared_leaves); i++)
        give_back(&order, f, 0, shared_leaves[i], turn_user(0), turn_user(1));
    assert_shared(f, &order, turn_user(1));
    /* by the VM's own disks in the pool: a volume is of any turn */
    assert_int_equal(begin(&two, &order, 2), 0);
    give(&order, f, 2, "/a.data", turn_user(6));
    assert_int_equal(begin(&two, &order, 2), 0);
    assert_shared(f, &order, turn_user(1));
    /* what a migration brings is another host's to give away */
    OBJECT_SET(vm_order, &order, epoch, 1);
    assert_int_equal(vmm_user_own_files(&one.places, &order, true, one.turn.user, &one.turn, &err), 0);
    assert_shared(f, &order, turn_user(1));
    OBJECT_CLEAR(vm_order, &order);
}

/* A clone's disks, or restored ones. */
static void test_filled_before_its_first_start(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct error err;
    struct turn_host one;
    uid_t user = 0;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    shared_make(f, &order);
    for (size_t i = 0; i < 3; i++)
        give(&order, f, i, "", BASE + 7); /* copied of another VM, whose number on this host that is */
    assert_int_equal(vmm_user_allot_filled(&one.places, BASE, &order, &user, &err), 1);
    assert_int_equal(user, turn_user(0));
    give(&order, f, 1, "", turn_user(3)); /* it was started elsewhere */
    assert_int_equal(vmm_user_allot_filled(&one.places, BASE, &order, &user, &err), 0);
    assert_int_equal(user, turn_user(3));
    assert_owned(&(struct fixture){.places = one.places}, VM_A, "", 0, turn_user(3), 01770);
    OBJECT_CLEAR(vm_order, &order);
}

/* A disk of the host's own may be of the turn that the VM was when it was here last. */
static void test_local_disks_say_nothing(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct turn_host one;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    shared_make(f, &order);
    struct vm_disk *local = OBJECT_ADD(vm_order, &order, disks);
    OBJECT_TEXT(vm_disk, local, name, "local");
    CLEANUP_FREE char *layers = vm_files_layers_path(&one.places, &order, local), *head = xasprintf("%s/local.disk", layers);
    assert_int_equal(file_make_directories(layers, 0700, NULL) | file_write_atomic(head, "x", 1, 0600, NULL), 0);
    assert_int_equal(chown(head, turn_user(5), turn_user(5)) | chown(layers, turn_user(5), turn_user(5)), 0);
    for (uint64_t epoch = 1; epoch < 3; epoch++) {
        assert_int_equal(begin(&one, &order, epoch), 0);
        assert_owned(&(struct fixture){.places = one.places}, VM_A, "disks/local.layers/local.disk", turn_user(0), turn_user(0), 0600);
    }
    OBJECT_CLEAR(vm_order, &order);
}

static void test_arrives_as_the_turn_that_runs(void **state)
{
    struct fixture *f = *state;
    struct vm_order order = {.head = {0}};
    struct error err;
    struct turn_host one, two;
    uid_t user = 0;
    if (needs_root())
        return;
    host_make(&one, f, "one");
    host_make(&two, f, "two");
    shared_make(f, &order);
    assert_int_equal(begin(&one, &order, 1), 0);
    assert_int_equal(begin(&two, &order, 2), 0);
    assert_int_equal(vmm_user_allot_arriving(&one.places, BASE, &order, &user, &err), 0);
    assert_int_equal(user, turn_user(1));
    assert_owned(&(struct fixture){.places = one.places}, VM_A, "", 0, turn_user(1), 01770);
    /* it came by migration, and is begun anew there: the life of before was another host's */
    assert_int_equal(begin(&one, &order, 3), 0);
    assert_shared(f, &order, turn_user(2));
    OBJECT_CLEAR(vm_order, &order);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_pick),
        T(test_stays_and_is_nobody_elses),
        T(test_arrives_as_the_user_whose_its_disks_are),
        T(test_directory_of_an_earlier_agent),
        T(test_disks),
        T(test_image_of_layers),
        cmocka_unit_test(test_turns_are_nobody_elses),
        T(test_each_life_on_another_host_takes_a_turn),
        T(test_one_turn_for_each_life),
        T(test_files_of_differing_turns),
        T(test_volumes_of_another_vm),
        T(test_taken_over_meanwhile),
        T(test_filled_before_its_first_start),
        T(test_local_disks_say_nothing),
        T(test_arrives_as_the_turn_that_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
