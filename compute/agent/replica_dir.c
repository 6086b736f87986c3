/* Directories of replicas; see replica_dir.h. */
#include "compute/agent/replica_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "common/log.h"
#include "compute/agent/pool_dir.h"

#define GONE ".gone"
#define KEPT "kept"

static int pool_of(void *arg, const char *disk, struct layer_pool **ret_pool, struct error *err)
{
    struct replica_dir *dir = arg;
    CLEANUP_FREE char *path = xasprintf("%s/%s" REPLICA_DIR_LAYERS, dir->path, disk);
    if (strchr(disk, '/') != NULL || dir->pool_count == ARRAY_SIZE(dir->pools))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no disk's name, or one too many", disk);
    if (dir->make && mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make %s", path);
    int code = dir->make ? file_sync_directory(dir->path, err) : 0;
    if (code == 0 && access(path, F_OK) < 0)
        code = error_errno(err, -errno, "cannot open %s", path);
    if (code == 0)
        code = layer_pool_dir_create(path, NULL, NULL, ret_pool, err);
    if (code == 0)
        dir->pools[dir->pool_count++] = *ret_pool;
    return code;
}

static int lock_take(struct replica_dir *dir, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/lock", dir->path);
    dir->lock_fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (dir->lock_fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    if (flock(dir->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "another process is at work on %s", dir->path);
    return 0;
}

int replica_dir_open(const char *replicas_dir, const char *vm, bool make, struct replica_dir *ret_dir, struct error *err)
{
    *ret_dir = (struct replica_dir){.path = xasprintf("%s/%s", replicas_dir, vm), .lock_fd = -1, .make = make};
    int code = make ? file_make_directories(ret_dir->path, 0700, err) : 0;
    if (code == 0 && access(ret_dir->path, F_OK) < 0)
        code = error_errno(err, -errno, "there is no replica of the VM here");
    if (code == 0)
        code = lock_take(ret_dir, err);
    if (code == 0)
        code = layer_pool_dir_create(ret_dir->path, NULL, NULL, &ret_dir->records, err);
    if (code < 0) {
        replica_dir_close(ret_dir);
        return code;
    }
    ret_dir->places = (struct replica_places){.records = ret_dir->records, .pool = pool_of, .arg = ret_dir};
    return 0;
}

int replica_dir_check(const char *replicas_dir, const char *vms_dir, struct error *err)
{
    struct stat here, there;
    if (stat(replicas_dir, &here) < 0 || stat(vms_dir, &there) < 0 || here.st_dev == there.st_dev)
        return 0;
    return error_set(err, -EXDEV, ERROR_NOT_SUPPORTED,
                     "%s is on another file system than %s, so that a VM could not take its disks from there: put both on one", replicas_dir,
                     vms_dir);
}

void replica_dir_close(struct replica_dir *dir)
{
    while (dir->pool_count > 0)
        layer_pool_dir_destroy(dir->pools[--dir->pool_count]);
    layer_pool_dir_destroy(TAKE_PTR(dir->records));
    close_fd(&dir->lock_fd);
    free(TAKE_PTR(dir->path));
}

/* ---- removal ---- */

int replica_dir_remove(const char *replicas_dir, const char *vm, struct error *err)
{
    struct replica_dir dir;
    CLEANUP_FREE char *gone = xasprintf("%s/%s" GONE, replicas_dir, vm);
    CLEANUP_FREE char *gone_name = xasprintf("%s" GONE, vm);
    int code = replica_dir_open(replicas_dir, vm, false, &dir, err);
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    code = file_remove_tree(replicas_dir, gone_name, err);
    if (code == 0 && rename(dir.path, gone) < 0)
        code = error_errno(err, -errno, "cannot remove %s", dir.path);
    if (code == 0)
        code = file_sync_directory(replicas_dir, err);
    replica_dir_close(&dir);
    return code < 0 ? code : file_remove_tree(replicas_dir, gone_name, err);
}

static bool is_kept(const char *replicas_dir, const char *vm)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s/" KEPT, replicas_dir, vm);
    return access(path, F_OK) == 0;
}

void replica_dir_sweep(const char *replicas_dir, const struct string_list *wanted)
{
    DIR *d = opendir(replicas_dir);
    struct dirent *entry;
    const char *rule;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct error err = {.code = 0};
        const char *dot = strrchr(entry->d_name, '.');
        int code = 0;
        if (dot != NULL && dot != entry->d_name && strcmp(dot, GONE) == 0)
            code = file_remove_tree(replicas_dir, entry->d_name, &err);
        else if (text_format_ok(FORMAT_id, entry->d_name, &rule) && !string_list_has(wanted, entry->d_name) &&
                 !is_kept(replicas_dir, entry->d_name)) {
            code = replica_dir_remove(replicas_dir, entry->d_name, &err);
            if (code == 0)
                log_info("replica-removed", "vm=%s", entry->d_name);
        }
        if (code < 0 && code != -EBUSY)
            log_warning("replica-leftovers", "what=%s error=\"%s, ignoring\"", entry->d_name, err.text);
    }
    if (d != NULL)
        closedir(d);
}

void replica_dir_known(const struct replica_dir *dir)
{
    CLEANUP_FREE char *path = xasprintf("%s/" KEPT, dir->path);
    unlink(path);
}

void replica_dir_keep_all(const char *replicas_dir)
{
    DIR *d = opendir(replicas_dir);
    struct dirent *entry;
    const char *rule;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct error err = {.code = 0};
        CLEANUP_FREE char *path = xasprintf("%s/%s/" KEPT, replicas_dir, entry->d_name);
        if (text_format_ok(FORMAT_id, entry->d_name, &rule) && file_write_atomic(path, "", 0, 0600, &err) < 0)
            log_warning("replica-keep", "vm=%s error=\"%s, ignoring\"", entry->d_name, err.text);
    }
    if (d != NULL)
        closedir(d);
}

/* ---- promotion ---- */

static char *place_of(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order here = pool_dir_here(places->vms_dir);
    return pool_dir_disk(&here, order->id, disk);
}

static int disks_move(const struct vm_places *places, const struct vm_order *order, const struct replica_dir *dir, struct error *err)
{
    CLEANUP_FREE char *disks_dir = vm_files_path(places, order->id, "disks");
    const struct vm_disk *disks = order->disks.items;
    int code = 0;
    for (size_t i = 0; code == 0 && i < order->disks.count; i++) {
        if (!vm_files_disk_moves(&disks[i]))
            continue;
        CLEANUP_FREE char *from = xasprintf("%s/%s" REPLICA_DIR_LAYERS, dir->path, disks[i].name);
        CLEANUP_FREE char *to = place_of(places, order, &disks[i]);
        if (rename(from, to) < 0 && (errno != ENOENT || access(to, F_OK) < 0)) /* moved already: before we were cut off */
            code = error_errno(err, -errno, "cannot move disk %s of the replica to its place", disks[i].name);
    }
    return code < 0 ? code : file_sync_directory(disks_dir, err);
}

/* The last step of an earlier promotion was cut off, or nothing is there. */
static int disks_check(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        CLEANUP_FREE char *path = place_of(places, order, &disks[i]);
        if (vm_files_disk_moves(&disks[i]) && access(path, F_OK) < 0)
            return error_set(err, -ENOENT, ERROR_NOT_FOUND,
                             "the replica that the VM is to be started from is not here, and nothing is made in its place; bring its disks "
                             "here from the host that it was on, which keeps them (docs/ha.md), or restore the VM from a backup");
    }
    return 0;
}

static int promote(const struct vm_places *places, const struct vm_order *order, struct replica_dir *dir, struct error *err)
{
    struct replica_store store;
    int code = replica_store_open(&dir->places, order->id, false, &store, err);
    if (code < 0)
        return code;
    const struct replica_known known = {
        .id = order->replica.id, .number = order->replica.number, .session = order->replica.session};
    code = replica_store_promote(&store, &known, order->epoch, err);
    if (code == 0)
        log_info("replica-promoted", "vm=%s point=%llu epoch=%llu", order->id, (unsigned long long)store.record.number,
                 (unsigned long long)order->epoch);
    replica_store_close(&store);
    return code == 0 ? disks_move(places, order, dir, err) : code;
}

int replica_dir_promote(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    bool wanted = OBJECT_HAS(vm_order, order, replica);
    struct replica_dir dir;
    if (places->replicas_dir == NULL)
        return 0;
    int code = replica_dir_open(places->replicas_dir, order->id, false, &dir, err);
    if (code == -ENOENT)
        return wanted ? disks_check(places, order, err) : 0;
    if (code < 0)
        return code;
    if (wanted)
        code = promote(places, order, &dir, err);
    else if (vm_files_disks_move(order))
        code = error_set(err, -EEXIST, ERROR_CONFLICT,
                         "a replica of the VM lies in %s, and the order to start it does not say that it is to be used; move it away if it is not needed",
                         dir.path);
    replica_dir_close(&dir);
    return code == 0 && wanted ? replica_dir_remove(places->replicas_dir, order->id, err) : code;
}
