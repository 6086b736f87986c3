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

/* ---- which disks, and where ---- */

bool replica_dir_copies(const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order *pool = !disk->read_only ? pool_dir_of(order, disk) : NULL;
    return vm_files_disk_moves(disk) || (pool != NULL && pool->kind == pool_kind_DIR);
}

void replica_dir_places(const struct vm_order *order, struct object_list *to)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct pool_order *pool = replica_dir_copies(order, &disks[i]) ? pool_dir_of(order, &disks[i]) : NULL;
        if (pool == NULL)
            continue;
        to->items = xrealloc(to->items, (to->count + 1) * sizeof(struct replica_place));
        struct replica_place *place = (struct replica_place *)to->items + to->count++;
        *place = (struct replica_place){.disk = NULL};
        OBJECT_TEXT(replica_place, place, disk, disks[i].name);
        if (disks[i].volume != NULL)
            OBJECT_SET(replica_place, place, volume, true);
        OBJECT_COPY(pool_order, &place->pool, pool);
        object_mark(&replica_place_desc, place, "pool");
    }
}

void replica_dir_places_clear(struct object_list *places)
{
    while (places->count > 0)
        OBJECT_CLEAR(replica_place, (struct replica_place *)places->items + --places->count);
    free(TAKE_PTR(places->items));
}

static const struct replica_place *place_find(const struct object_list *in_pools, const char *disk)
{
    const struct replica_place *places = in_pools != NULL ? in_pools->items : NULL;
    for (size_t i = 0; places != NULL && i < in_pools->count; i++)
        if (strcmp(places[i].disk, disk) == 0)
            return &places[i];
    return NULL;
}

static const struct pool_order *pool_find(const struct object_list *in_pools, const char *disk)
{
    const struct replica_place *place = place_find(in_pools, disk);
    return place != NULL ? &place->pool : NULL;
}

static bool is_volume(void *arg, const char *disk)
{
    const struct replica_dir *dir = arg;
    const struct replica_place *place = place_find(dir->in_pools, disk);
    return place != NULL && place->volume;
}

static const char *place_of(void *arg, const char *disk)
{
    const struct replica_dir *dir = arg;
    const struct pool_order *pool = pool_find(dir->in_pools, disk);
    return pool != NULL ? pool->id : NULL;
}

/* What a pool has of replicas; and of that of @vm. The caller frees. */
static char *all_in(const struct pool_order *pool)
{
    return xasprintf("%s/replicas", pool->path);
}

static char *part_in(const struct pool_order *pool, const char *vm)
{
    return xasprintf("%s/replicas/%s", pool->path, vm);
}

/* Never -ENOENT, which says of a disk that it is not there. */
static int pool_check(const struct pool_order *pool, struct error *err)
{
    int code = pool_dir_check(pool, err);
    if (code < 0)
        error_prefix(err, "the replica's pool %s: ", pool->name);
    return code == -ENOENT ? -ESTALE : code;
}

/* The directory that @disk's is in; the caller frees. */
static int parent_of(const struct replica_dir *dir, const char *disk, char **ret_path, struct error *err)
{
    const struct pool_order *pool = pool_find(dir->in_pools, disk);
    CLEANUP_FREE char *all = pool != NULL ? all_in(pool) : NULL;
    CLEANUP_FREE char *path = pool != NULL ? part_in(pool, dir->vm) : xstrdup(dir->path);
    int code = pool != NULL ? pool_check(pool, err) : 0;
    if (code == 0 && pool != NULL && dir->make) {
        code = file_make_directories(path, 0700, err);
        if (code == 0)
            code = file_sync_directory(pool->path, err);
        if (code == 0)
            code = file_sync_directory(all, err);
    }
    if (code == 0)
        *ret_path = TAKE_PTR(path);
    return code;
}

static int pool_of(void *arg, const char *disk, struct layer_pool **ret_pool, struct error *err)
{
    struct replica_dir *dir = arg;
    CLEANUP_FREE char *parent = NULL;
    if (strchr(disk, '/') != NULL || dir->pool_count == ARRAY_SIZE(dir->pools))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no disk's name, or one too many", disk);
    int code = parent_of(dir, disk, &parent, err);
    if (code < 0)
        return code;
    CLEANUP_FREE char *path = xasprintf("%s/%s" REPLICA_DIR_LAYERS, parent, disk);
    if (dir->make && mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make %s", path);
    code = dir->make ? file_sync_directory(parent, err) : 0;
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

int replica_dir_open(const char *replicas_dir, const char *vm, bool make, const struct object_list *in_pools, struct replica_dir *ret_dir,
                     struct error *err)
{
    *ret_dir =
        (struct replica_dir){.path = xasprintf("%s/%s", replicas_dir, vm), .vm = vm, .in_pools = in_pools, .lock_fd = -1, .make = make};
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
    ret_dir->places = (struct replica_places){.records = ret_dir->records, .pool = pool_of, .place = place_of, .is_volume = is_volume, .arg = ret_dir};
    return 0;
}

int replica_dir_check_pools(const struct object_list *in_pools, const char *vm, struct error *err)
{
    const struct replica_place *places = in_pools->items;
    int code = 0;
    for (size_t i = 0; code == 0 && i < in_pools->count; i++) {
        CLEANUP_FREE char *replicas = all_in(&places[i].pool);
        CLEANUP_FREE char *vms = xasprintf("%s/vms", places[i].pool.path);
        CLEANUP_FREE char *volumes = xasprintf("%s/volumes", places[i].pool.path);
        CLEANUP_FREE char *left = xasprintf("%s/%s", vms, vm);
        code = pool_check(&places[i].pool, err);
        if (code == 0)
            code = replica_dir_check(replicas, vms, err);
        if (code == 0)
            code = replica_dir_check(replicas, volumes, err);
        if (code == 0 && (access(left, F_OK) == 0 || errno != ENOENT))
            code = error_set(err, -EBUSY, ERROR_CONFLICT,
                             "something of the VM itself is still in pool %s of the replica's host: %s; remove it there, for the VM is another host's",
                             places[i].pool.name, left);
    }
    return code;
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

/* @name of @all, at once and for good. */
static int entry_remove(const char *all, const char *name, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", all, name);
    CLEANUP_FREE char *gone = xasprintf("%s" GONE, path);
    CLEANUP_FREE char *gone_name = xasprintf("%s" GONE, name);
    int code = file_remove_tree(all, gone_name, err);
    if (code == 0 && rename(path, gone) < 0 && errno != ENOENT)
        code = error_errno(err, -errno, "cannot remove %s", path);
    if (code == 0)
        code = file_sync_directory(all, err);
    return code < 0 ? code : file_remove_tree(all, gone_name, err);
}

static bool has_part(const struct pool_order *pool, const char *vm)
{
    CLEANUP_FREE char *path = part_in(pool, vm);
    return pool->kind == pool_kind_DIR && access(path, F_OK) == 0;
}

int replica_dir_remove(const char *replicas_dir, const struct object_list *pools, const char *vm, struct error *err)
{
    const struct pool_order *all = pools->items;
    struct replica_dir dir;
    bool parts = false;
    for (size_t i = 0; i < pools->count; i++)
        parts = parts || has_part(&all[i], vm);
    int code = replica_dir_open(replicas_dir, vm, parts, NULL, &dir, err); /* what is in pools alone is removed under the lock, too */
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    for (size_t i = 0; code == 0 && i < pools->count; i++) {
        CLEANUP_FREE char *replicas = all_in(&all[i]);
        if (has_part(&all[i], vm) && (code = pool_check(&all[i], err)) == 0)
            code = entry_remove(replicas, vm, err);
    }
    if (code == 0)
        code = entry_remove(replicas_dir, vm, err);
    replica_dir_close(&dir);
    return code;
}

static bool is_kept(const char *replicas_dir, const char *vm)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s/" KEPT, replicas_dir, vm);
    return access(path, F_OK) == 0;
}

/* Those in @all, which is @replicas_dir or what a pool has of it. */
static void sweep_in(const char *all, const char *replicas_dir, const struct object_list *pools, const struct string_list *wanted)
{
    DIR *d = opendir(all);
    struct dirent *entry;
    const char *rule;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct error err = {.code = 0};
        const char *dot = strrchr(entry->d_name, '.');
        int code = 0;
        if (dot != NULL && dot != entry->d_name && strcmp(dot, GONE) == 0)
            code = file_remove_tree(all, entry->d_name, &err);
        else if (text_format_ok(FORMAT_id, entry->d_name, &rule) && !string_list_has(wanted, entry->d_name) &&
                 !is_kept(replicas_dir, entry->d_name)) {
            code = replica_dir_remove(replicas_dir, pools, entry->d_name, &err);
            if (code == 0)
                log_info("replica-removed", "vm=%s", entry->d_name);
        }
        if (code < 0 && code != -EBUSY)
            log_warning("replica-leftovers", "what=%s error=\"%s, ignoring\"", entry->d_name, err.text);
    }
    if (d != NULL)
        closedir(d);
}

void replica_dir_sweep(const char *replicas_dir, const struct object_list *pools, const struct string_list *wanted)
{
    const struct pool_order *all = pools->items;
    sweep_in(replicas_dir, replicas_dir, pools, wanted);
    for (size_t i = 0; i < pools->count; i++) {
        CLEANUP_FREE char *in_pool = all_in(&all[i]);
        if (all[i].kind == pool_kind_DIR && access(in_pool, F_OK) == 0 && pool_dir_check(&all[i], NULL) == 0)
            sweep_in(in_pool, replicas_dir, pools, wanted);
    }
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

static char *place_of_vm(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order here = pool_dir_here(places->vms_dir);
    const struct pool_order *pool = pool_dir_of(order, disk);
    return pool_dir_disk(pool != NULL ? pool : &here, order->id, disk);
}

/* One whose parent lasts: what is moved there is nowhere else. */
static int disk_move(const struct vm_places *places, const struct vm_order *order, const struct replica_dir *dir, const struct vm_disk *disk,
                     struct error *err)
{
    CLEANUP_FREE char *parent = NULL;
    CLEANUP_FREE char *to = place_of_vm(places, order, disk);
    CLEANUP_FREE char *home = xstrdup(to);
    *strrchr(home, '/') = '\0';
    int code = parent_of(dir, disk->name, &parent, err);
    if (code == 0)
        code = file_make_directories(home, 0700, err);
    if (code < 0)
        return code;
    CLEANUP_FREE char *from = xasprintf("%s/%s" REPLICA_DIR_LAYERS, parent, disk->name);
    CLEANUP_FREE char *above = xstrdup(home);
    *strrchr(above, '/') = '\0';
    if (rename(from, to) < 0 && (errno != ENOENT || access(to, F_OK) < 0)) /* moved already: before we were cut off */
        return error_errno(err, -errno, "cannot move disk %s of the replica to its place", disk->name);
    code = file_sync_directory(home, err);
    return code < 0 ? code : file_sync_directory(above, err);
}

static int disks_move(const struct vm_places *places, const struct vm_order *order, const struct replica_dir *dir, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    int code = 0;
    for (size_t i = 0; code == 0 && i < order->disks.count; i++)
        code = replica_dir_copies(order, &disks[i]) ? disk_move(places, order, dir, &disks[i], err) : 0;
    return code;
}

/* The last step of an earlier promotion was cut off, or nothing is there. */
static int disks_check(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        CLEANUP_FREE char *path = place_of_vm(places, order, &disks[i]);
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        bool copied = replica_dir_copies(order, &disks[i]);
        int code = copied && pool != NULL ? pool_check(pool, err) : 0;
        if (code < 0)
            return code;
        if (copied && access(path, F_OK) < 0)
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

static bool copies_any(const struct vm_order *order)
{
    bool any = false;
    for (size_t i = 0; !any && i < order->disks.count; i++)
        any = replica_dir_copies(order, (const struct vm_disk *)order->disks.items + i);
    return any;
}

static int take(const struct vm_places *places, const struct vm_order *order, const struct object_list *in_pools, struct error *err)
{
    bool wanted = OBJECT_HAS(vm_order, order, replica);
    struct replica_dir dir;
    int code = replica_dir_open(places->replicas_dir, order->id, false, in_pools, &dir, err);
    if (code == -ENOENT)
        return wanted ? disks_check(places, order, err) : 0;
    if (code < 0)
        return code;
    if (wanted)
        code = promote(places, order, &dir, err);
    else if (copies_any(order))
        code = error_set(err, -EEXIST, ERROR_CONFLICT,
                         "a replica of the VM lies in %s, and the order to start it does not say that it is to be used; move it away if it is not needed",
                         dir.path);
    replica_dir_close(&dir);
    return code == 0 && wanted ? replica_dir_remove(places->replicas_dir, &order->pools, order->id, err) : code;
}

int replica_dir_promote(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    struct object_list in_pools = {.count = 0};
    if (places->replicas_dir == NULL)
        return 0;
    replica_dir_places(order, &in_pools);
    int code = take(places, order, &in_pools, err);
    replica_dir_places_clear(&in_pools);
    return code;
}
