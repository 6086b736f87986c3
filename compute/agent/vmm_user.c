/* Numbers, and who owns what. Names in a directory that a VMM may write to are not trusted: nothing here follows a
 * symbolic link, and only a file with one name is handed over. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/seed_files.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_user.h"

#define NOBODY 65534u
#define TAKEN_OVER (-EKEYREVOKED) /* within here; -ESTALE comes from file servers, too */

int vmm_user_pick(uint32_t base, const char *vm_id, const bool taken[VMM_USERS], uid_t *ret_user)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    SHA256((const uint8_t *)vm_id, strlen(vm_id), hash);
    uint32_t first = (uint32_t)hash[0] << 8 | hash[1];
    for (uint32_t i = 0; i < VMM_USERS; i++) {
        uint32_t slot = (first + i) % VMM_USERS;
        if (taken[slot])
            continue;
        *ret_user = base + slot;
        return 0;
    }
    return -ENOSPC;
}

/* Those of directories of removed VMs whose files are still going away count as well. */
static int taken_collect(const char *vms_dir, uint32_t base, bool taken[VMM_USERS], struct error *err)
{
    struct dirent *entry;
    struct stat st;
    DIR *d = opendir(vms_dir);
    if (d == NULL)
        return error_errno(err, -errno, "cannot read %s", vms_dir);
    while ((entry = readdir(d)) != NULL)
        if (fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_gid >= base &&
            st.st_gid - base < VMM_USERS)
            taken[st.st_gid - base] = true;
    closedir(d);
    return 0;
}

static bool is_agents(const char *name)
{
    static const char *const names[] = {"vm.json", "config.json", "vmm.lock", "vmm.log", VM_NEXT_CONFIG, VM_NEXT_LOCK, SEED_FILE};
    size_t length = strlen(name);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return length > 4 && strcmp(name + length - 4, ".tmp") == 0;
}

uid_t vmm_user_of_shared(uint32_t base, const char *vm_id, unsigned turn)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    SHA256((const uint8_t *)vm_id, strlen(vm_id), hash);
    uint32_t number = (uint32_t)hash[0] << 16 | (uint32_t)hash[1] << 8 | hash[2];
    STATIC_ASSERT(VMM_USERS_SHARED == 1u << 24, "as many as three bytes say");
    return base + VMM_USERS_SHARED_FIRST + turn * VMM_USERS_SHARED + number;
}

/* VMM_USER_TURNS: of none. */
static unsigned turn_of(uint32_t base, const char *vm_id, uid_t user)
{
    unsigned turn = 0;
    while (turn < VMM_USER_TURNS && vmm_user_of_shared(base, vm_id, turn) != user)
        turn++;
    return turn;
}

/* As it is at the server now: what this host remembers of it may be of before another one gave it away. */
static int look_at(int directory, const char *name, struct statx *ret)
{
    int flags = AT_STATX_FORCE_SYNC | (name[0] == '\0' ? AT_EMPTY_PATH : AT_SYMLINK_NOFOLLOW);
    return statx(directory, name, flags, STATX_TYPE | STATX_MODE | STATX_UID | STATX_NLINK, ret) < 0 ? -errno : 0;
}

/* What is given away while another host may do the same with it: of which of the VM's turns it may be. */
struct turn_guard {
    uint32_t base;
    const char *vm_id;
    uint32_t allowed; /* one bit for each */
};

/* The last look before it: what waits in the kernel for its server is one call at most, and not all that is to come. */
static int guard_look(const struct turn_guard *guard, int fd)
{
    struct statx st;
    int r = guard != NULL ? look_at(fd, "", &st) : 0;
    if (guard == NULL || r < 0)
        return r;
    unsigned turn = turn_of(guard->base, guard->vm_id, st.stx_uid);
    return turn < VMM_USER_TURNS && (guard->allowed >> turn & 1) == 0 ? TAKEN_OVER : 0;
}

/* A file that is @user's from now on. */
static int hand_over(int directory, const char *name, uid_t user, const struct turn_guard *guard)
{
    struct stat st;
    CLEANUP_FD int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP || errno == ENXIO ? 0 : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return 0;
    int r = guard_look(guard, fd);
    if (r < 0)
        return r;
    if ((st.st_mode & 022) != 0 && fchmod(fd, st.st_mode & 0755) < 0) /* whoever had it before writes to it no more */
        return -errno;
    return fchown(fd, user, user) < 0 ? -errno : 0;
}

static int directory_take(const char *path, uid_t user, struct error *err)
{
    struct dirent *entry;
    int r = 0, fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        r = -errno;
        close_fd(&fd);
        return error_errno(err, r, "cannot open %s", path);
    }
    while (r == 0 && (entry = readdir(d)) != NULL)
        if (entry->d_type == DT_REG && !is_agents(entry->d_name))
            r = hand_over(fd, entry->d_name, user, NULL);
    /* The group last: it says that all is done. */
    if (r == 0 && (fchmod(fd, 0700) < 0 || fchown(fd, 0, user) < 0 || fchmod(fd, 01770) < 0))
        r = -errno;
    closedir(d);
    return r < 0 ? error_errno(err, r, "cannot give %s to user %u", path, user) : 0;
}

uid_t vmm_user_of_web(uint32_t base)
{
    return base != 0 ? base + VMM_USER_WEB : NOBODY;
}

int vmm_user_allot(const struct vm_places *places, uint32_t base, const char *vm_id, bool shared, uid_t *ret_user,
                   struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, "");
    CLEANUP_FREE bool *taken = xcalloc(VMM_USERS, sizeof(bool));
    struct stat st;
    uid_t user;
    if (lstat(path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    user = shared ? vmm_user_of_shared(base, vm_id, 0) : st.st_gid;
    if (st.st_gid == user && (shared || (st.st_gid >= base && st.st_gid - base < VMM_USERS))) {
        *ret_user = st.st_gid;
        return 0;
    }
    int r = shared ? 0 : taken_collect(places->vms_dir, base, taken, err);
    if (r == 0 && !shared && vmm_user_pick(base, vm_id, taken, &user) < 0)
        r = error_set(err, -ENOSPC, ERROR_NO_SPACE, "all %u users for VMMs are taken; this host has too many VMs",
                      VMM_USERS);
    if (r == 0)
        r = directory_take(path, user, err);
    if (r == 0)
        *ret_user = user;
    return r;
}

/* Whose the disks in shared pools are: if they are of one of the VM's turns that one; 0: there are none, or they are nobody's. */
static uid_t user_of_files(const struct vm_places *places, const struct vm_order *order, uint32_t base)
{
    const struct vm_disk *disks = order->disks.items;
    struct statx st;
    uid_t user = 0;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        if (disks[i].leaving || disks[i].arriving || pool == NULL || pool->kind != pool_kind_SHARED_DIR)
            continue;
        CLEANUP_FREE char *layers = vm_files_layers_path(places, order, &disks[i]);
        if (layers == NULL || look_at(AT_FDCWD, layers, &st) < 0)
            continue;
        if (turn_of(base, order->id, st.stx_uid) < VMM_USER_TURNS)
            return st.stx_uid;
        if (user == 0 && st.stx_uid >= base && st.stx_uid - base < VMM_USERS)
            user = st.stx_uid;
    }
    return user;
}

int vmm_user_allot_arriving(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, order->id, "");
    CLEANUP_FREE bool *taken = xcalloc(VMM_USERS, sizeof(bool));
    struct stat st;
    uid_t user = user_of_files(places, order, base);
    if (user == 0)
        return vmm_user_allot(places, base, order->id, pool_dir_shared(order), ret_user, err);
    if (lstat(path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    bool picked = user - base < VMM_USERS; /* by another host, in its own range */
    int r = picked && st.st_gid != user ? taken_collect(places->vms_dir, base, taken, err) : 0;
    if (r == 0 && picked && taken[user - base])
        r = error_set(err, -EBUSY, ERROR_CONFLICT,
                      "another VM of this host has the user %u, whose disks of this one in shared pools are: stop and start this one before it is "
                      "migrated, or name another host", user);
    if (r == 0 && st.st_gid != user)
        r = directory_take(path, user, err);
    if (r == 0)
        *ret_user = user;
    return r;
}

int vmm_user_allot_filled(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err)
{
    bool has_turn = turn_of(base, order->id, user_of_files(places, order, base)) < VMM_USER_TURNS; /* copies are whose they were before */
    if (has_turn)
        return vmm_user_allot_arriving(places, base, order, ret_user, err);
    int r = vmm_user_allot(places, base, order->id, pool_dir_shared(order), ret_user, err);
    return r < 0 ? r : 1;
}

/* ---- turns ---- */

/* Whose files there are: one bit for each turn. */
struct turns_seen {
    uint32_t own, volumes;
    bool others; /* some are of users that are none of its turns, nor root */
};

static void turn_note(struct turns_seen *seen, uint32_t base, const char *vm_id, bool is_volume, uid_t user)
{
    unsigned turn = turn_of(base, vm_id, user);
    if (turn < VMM_USER_TURNS && is_volume)
        seen->volumes |= 1u << turn;
    else if (turn < VMM_USER_TURNS)
        seen->own |= 1u << turn;
    else
        seen->others |= user != 0;
}

/* A disk that is still to be made is nobody's. */
static int turns_look_disk(const char *layers, uint32_t base, const char *vm_id, bool is_volume, struct turns_seen *seen, struct error *err)
{
    struct dirent *entry;
    struct statx st;
    int r = 0, fd = open(layers, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        r = -errno;
        close_fd(&fd);
        return error_errno(err, r, "cannot open %s", layers);
    }
    r = look_at(fd, "", &st); /* its list is read anew after that, if it has changed */
    if (r == 0)
        turn_note(seen, base, vm_id, is_volume, st.stx_uid);
    while (r == 0 && (entry = readdir(d)) != NULL) {
        if (entry->d_type != DT_REG && entry->d_type != DT_UNKNOWN)
            continue;
        r = look_at(fd, entry->d_name, &st);
        if (r == -ENOENT) /* removed since it was listed */
            r = 0;
        else if (r == 0 && S_ISREG(st.stx_mode) && st.stx_nlink == 1)
            turn_note(seen, base, vm_id, is_volume, st.stx_uid);
    }
    closedir(d);
    return r < 0 ? error_errno(err, r, "cannot look at the files in %s", layers) : 0;
}

static int turns_look(const struct vm_places *places, const struct vm_order *order, uint32_t base, struct turns_seen *ret, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    int r = 0;
    *ret = (struct turns_seen){.own = 0};
    for (size_t i = 0; r == 0 && i < order->disks.count; i++) {
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        if (disks[i].leaving || pool == NULL || pool->kind != pool_kind_SHARED_DIR)
            continue;
        CLEANUP_FREE char *layers = vm_files_layers_path(places, order, &disks[i]);
        r = turns_look_disk(layers, base, order->id, disks[i].volume != NULL, ret, err);
    }
    return r;
}

/* The newest of @turns: what follows it is not there. */
static unsigned turn_newest(uint32_t turns)
{
    unsigned turn = 0;
    while (turn < VMM_USER_TURNS && ((turns >> turn & 1) == 0 || (turns >> ((turn + 1) % VMM_USER_TURNS) & 1) != 0))
        turn++;
    return turn;
}

/* One that nothing is of. Volumes may have an older one than the VM's own disks, for they may have been away. */
static unsigned turn_next(const struct turns_seen *seen, uint64_t epoch)
{
    uint32_t all = seen->own | seen->volumes;
    unsigned newest = turn_newest(seen->own != 0 ? seen->own : all);
    for (unsigned i = 1; all != 0 && i < VMM_USER_TURNS; i++)
        if ((all >> ((newest + i) % VMM_USER_TURNS) & 1) == 0)
            return (newest + i) % VMM_USER_TURNS;
    /* Nobody knows which was the last one where all is somebody else's: rather not one of a life not long ago. */
    return all == 0 && !seen->others ? 0 : 1 + (unsigned)(epoch % (VMM_USER_TURNS - 1));
}

static int directory_give(const struct vm_places *places, const char *vm_id, uid_t user, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, vm_id, "");
    struct stat st;
    if (lstat(path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    return st.st_gid != user ? directory_take(path, user, err) : 0;
}

int vmm_user_take_turn(const struct vm_places *places, uint32_t base, const struct vm_order *order, struct vmm_turn *turn, struct error *err)
{
    unsigned last = turn->user != 0 ? turn_of(base, order->id, turn->user) : VMM_USER_TURNS;
    bool begun = last < VMM_USER_TURNS && turn->epoch == order->epoch;
    /* Nobody can have had it between two lives of this host that follow one another. */
    bool follows = last < VMM_USER_TURNS && turn->epoch + 1 == order->epoch && turn->before == 0;
    struct turns_seen seen = {.own = 0};
    int r = begun ? 0 : turns_look(places, order, base, &seen, err);
    if (r == 0 && follows && (seen.own & ~(1u << last)) == 0) {
        turn->epoch = order->epoch;
    } else if (r == 0 && !begun) {
        unsigned next = turn_next(&seen, order->epoch);
        *turn = (struct vmm_turn){.epoch = order->epoch, .user = vmm_user_of_shared(base, order->id, next), .before = seen.own};
        log_info("vm-turn", "vm=%s epoch=%llu turn=%u user=%u before=0x%x volumes=0x%x", order->name, (unsigned long long)order->epoch, next,
                 turn->user, seen.own, seen.volumes);
    }
    return r == 0 && pool_rbd_has_disks(order) ? directory_give(places, order->id, turn->user, err) : r; /* servers of those are begun first */
}

static const char taken_over[] =
    "its disks in shared pools were given to another user since this host had them, so another host has begun it; where it is to run here all the "
    "same, stop and start it";

/* Nobody has taken it over since: his VMM would lose its disks. Only the VM's own disks say that, for volumes come and go. */
static int turn_check(const struct vm_places *places, const struct vm_order *order, const struct turn_guard *guard, struct error *err)
{
    struct turns_seen seen;
    int r = turns_look(places, order, guard->base, &seen, err);
    return r == 0 && (seen.own & ~guard->allowed) != 0 ? error_set(err, -ESTALE, ERROR_CONFLICT, "%s", taken_over) : r;
}

/* ---- files ---- */

/* A file in a directory that only root writes to. */
static int file_own(const char *path, uid_t user, uid_t group, mode_t mode, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fchown(fd, user, group) < 0 || fchmod(fd, mode) < 0)
        return error_errno(err, -errno, "cannot give %s to user %u", path, group);
    return 0;
}

/* A disk with layers: the directory and all in it, but for the image, which has another name besides and stays root's;
 * all VMMs may read it. */
static int layers_own(const char *path, const char *images_dir, const char *image_sha256, uid_t user, const struct turn_guard *guard,
                      struct error *err)
{
    struct dirent *entry;
    struct statx seen;
    int r = 0, fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        r = -errno;
        close_fd(&fd);
        return error_errno(err, r, "cannot open %s", path);
    }
    r = look_at(fd, "", &seen); /* none that another host has made is missing in its list */
    while (r == 0 && (entry = readdir(d)) != NULL)
        if (entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN)
            r = hand_over(fd, entry->d_name, user, guard);
    if (r == 0)
        r = guard_look(guard, fd);
    if (r == 0 && (fchown(fd, user, user) < 0 || fchmod(fd, 0700) < 0))
        r = -errno;
    closedir(d);
    if (r == TAKEN_OVER)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "%s", taken_over);
    if (r < 0)
        return error_errno(err, r, "cannot give %s to user %u", path, user);
    CLEANUP_FREE char *image = xasprintf("%s/%s.img", path, image_sha256 != NULL ? image_sha256 : "");
    CLEANUP_FD int image_fd = open(image, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    CLEANUP_FREE char *kept = xasprintf("%s/%s", images_dir, image_sha256 != NULL ? image_sha256 : "");
    struct stat st, of_kept;
    /* The VMM may have put another file under that name: only what is the image is opened to all. */
    bool closed = image_fd >= 0 && fstat(image_fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == 0 &&
                  (st.st_mode & 0444) != 0444 && lstat(kept, &of_kept) == 0 && of_kept.st_dev == st.st_dev &&
                  of_kept.st_ino == st.st_ino;
    return closed && fchmod(image_fd, 0644) < 0 ? error_errno(err, -errno, "cannot open %s to user %u", image, user) : 0;
}

static int disk_own(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                    const struct turn_guard *guard, struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *path = vm_files_disk_path(places, order, disk);
    const struct pool_order *pool = pool_dir_of(order, disk);
    CLEANUP_FREE char *images = pool != NULL ? pool_dir_images(pool) : xstrdup(places->images_dir);
    if (layers != NULL)
        return layers_own(layers, images, order->disk.sha256, user, guard, err);
    return disk->read_only ? file_own(path, 0, user, 0640, err) : file_own(path, user, user, 0600, err);
}

int vmm_user_own_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                      struct error *err)
{
    return disk_own(places, order, disk, user, NULL, err);
}

/* Is it where other hosts reach it, and another's still? */
static bool disk_stays(const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order *pool = pool_dir_of(order, disk);
    return pool != NULL && pool->kind == pool_kind_SHARED_DIR && !disk->arriving;
}

/* One disk. Of those in shared pools another host may have begun the VM since: @guard. */
static int disk_take(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                     const struct turn_guard *guard, struct error *err)
{
    bool guarded = guard != NULL && disk_stays(order, disk);
    int r = guarded && disk->volume != NULL ? turn_check(places, order, guard, err) : 0;
    return r == 0 ? disk_own(places, order, disk, user, guarded && disk->volume == NULL ? guard : NULL, err) : r;
}

int vmm_user_own_files(const struct vm_places *places, const struct vm_order *order, bool arriving, uid_t user, const struct vmm_turn *turn,
                       struct error *err)
{
    CLEANUP_FREE char *disks_dir = vm_files_path(places, order->id, "disks");
    const struct artifact *images[] = {&order->kernel, &order->initrd};
    const struct vm_disk *disks = order->disks.items;
    unsigned mine = turn_of(places->user_base, order->id, user);
    bool fenced = turn != NULL && turn->user == user && !arriving && mine < VMM_USER_TURNS;
    const struct turn_guard allowed = {
        .base = places->user_base, .vm_id = order->id, .allowed = fenced ? turn->before | 1u << mine : 0};
    const struct turn_guard *guard = fenced ? &allowed : NULL;
    int r = fenced ? turn_check(places, order, guard, err) : 0;
    if (r == 0 && fenced) /* and not before: until then whoever looks at its disks does so as the user before */
        r = directory_give(places, order->id, user, err);
    if (r == 0)
        r = file_own(disks_dir, 0, user, 0710, err);
    for (size_t i = 0; r == 0 && i < order->disks.count; i++)
        r = disks[i].leaving || pool_rbd_is(pool_dir_of(order, &disks[i])) || (arriving && disk_stays(order, &disks[i]))
                ? 0
                : disk_take(places, order, &disks[i], user, guard, err);
    if (r == 0 && seed_files_wanted(order)) {
        CLEANUP_FREE char *path = vm_files_path(places, order->id, SEED_FILE);
        r = file_own(path, 0, user, 0640, err);
    }
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(images); i++) {
        if (images[i]->sha256 == NULL)
            continue;
        CLEANUP_FREE char *path = xasprintf("%s/%s", places->images_dir, images[i]->sha256);
        r = file_own(path, 0, 0, 0644, err);
    }
    return r;
}
