/* Numbers, and who owns what. Names in a directory that a VMM may write to are not trusted: nothing here follows a
 * symbolic link, and only a file with one name is handed over. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/stat.h>

#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/seed_files.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_user.h"

#define NOBODY 65534u

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

/* Files that a VMM made when it was still root. */
static int hand_over(int directory, const char *name, uid_t user)
{
    struct stat st;
    CLEANUP_FD int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ELOOP || errno == ENXIO ? 0 : -errno;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return 0;
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
            r = hand_over(fd, entry->d_name, user);
    /* The group last: it says that all is done. */
    if (r == 0 && (fchmod(fd, 0700) < 0 || fchown(fd, 0, user) < 0 || fchmod(fd, 01770) < 0))
        r = -errno;
    closedir(d);
    return r < 0 ? error_errno(err, r, "cannot give %s to user %u", path, user) : 0;
}

uid_t vmm_user_of_shared(uint32_t base, const char *vm_id)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    SHA256((const uint8_t *)vm_id, strlen(vm_id), hash);
    uint32_t number = (uint32_t)hash[0] << 16 | (uint32_t)hash[1] << 8 | hash[2];
    STATIC_ASSERT(VMM_USERS_SHARED == 1u << 24, "as many as three bytes say");
    return base + VMM_USERS_SHARED_FIRST + number;
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
    user = shared ? vmm_user_of_shared(base, vm_id) : st.st_gid;
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

/* Whose the disks in shared pools are; 0: there are none, or they are nobody's. */
static uid_t user_of_files(const struct vm_places *places, const struct vm_order *order, uint32_t base)
{
    const struct vm_disk *disks = order->disks.items;
    struct stat st;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        if (disks[i].leaving || disks[i].arriving || pool == NULL || pool->kind != pool_kind_SHARED_DIR)
            continue;
        CLEANUP_FREE char *layers = vm_files_layers_path(places, order, &disks[i]);
        if (layers != NULL && lstat(layers, &st) == 0 && st.st_uid >= base && st.st_uid - base < VMM_USERS_SHARED_FIRST + VMM_USERS_SHARED)
            return st.st_uid;
    }
    return 0;
}

int vmm_user_allot_arriving(const struct vm_places *places, uint32_t base, const struct vm_order *order, uid_t *ret_user, struct error *err)
{
    CLEANUP_FREE char *path = vm_files_path(places, order->id, "");
    CLEANUP_FREE bool *taken = xcalloc(VMM_USERS, sizeof(bool));
    struct stat st;
    uid_t user = user_of_files(places, order, base);
    if (user == 0 || user - base >= VMM_USERS)
        return vmm_user_allot(places, base, order->id, pool_dir_shared(order), ret_user, err);
    if (lstat(path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    int r = st.st_gid != user ? taken_collect(places->vms_dir, base, taken, err) : 0;
    if (r == 0 && taken[user - base])
        r = error_set(err, -EBUSY, ERROR_CONFLICT,
                      "another VM of this host has the user %u, whose disks of this one in shared pools are: stop and start this one before it is "
                      "migrated, or name another host", user);
    if (r == 0 && st.st_gid != user)
        r = directory_take(path, user, err);
    if (r == 0)
        *ret_user = user;
    return r;
}

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
static int layers_own(const char *path, const char *images_dir, const char *image_sha256, uid_t user, struct error *err)
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
        if (entry->d_type == DT_REG)
            r = hand_over(fd, entry->d_name, user);
    if (r == 0 && (fchown(fd, user, user) < 0 || fchmod(fd, 0700) < 0))
        r = -errno;
    closedir(d);
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

int vmm_user_own_disk(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user,
                      struct error *err)
{
    CLEANUP_FREE char *layers = vm_files_layers_path(places, order, disk);
    CLEANUP_FREE char *path = vm_files_disk_path(places, order, disk);
    const struct pool_order *pool = pool_dir_of(order, disk);
    CLEANUP_FREE char *images = pool != NULL ? pool_dir_images(pool) : xstrdup(places->images_dir);
    if (layers != NULL)
        return layers_own(layers, images, order->disk.sha256, user, err);
    return disk->read_only ? file_own(path, 0, user, 0640, err) : file_own(path, user, user, 0600, err);
}

/* Is it where other hosts reach it, and another's still? */
static bool disk_stays(const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order *pool = pool_dir_of(order, disk);
    return pool != NULL && pool->kind == pool_kind_SHARED_DIR && !disk->arriving;
}

int vmm_user_own_files(const struct vm_places *places, const struct vm_order *order, bool arriving, uid_t user, struct error *err)
{
    CLEANUP_FREE char *disks_dir = vm_files_path(places, order->id, "disks");
    const struct artifact *images[] = {&order->kernel, &order->initrd};
    const struct vm_disk *disks = order->disks.items;
    int r = file_own(disks_dir, 0, user, 0710, err);
    for (size_t i = 0; r == 0 && i < order->disks.count; i++)
        r = disks[i].leaving || pool_rbd_is(pool_dir_of(order, &disks[i])) || (arriving && disk_stays(order, &disks[i]))
                ? 0
                : vmm_user_own_disk(places, order, &disks[i], user, err);
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
