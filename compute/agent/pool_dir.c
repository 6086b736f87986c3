/* The directory of a pool; see the header. */
#include "compute/agent/pool_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/disk_file.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/vm_files.h"

#define MARKER_BYTES_MAX 4096
#define PARTS_OLD_S 3600 /* what is being made and has not changed for so long is nobody's */
#define WHOLE "whole"         /* of a copy: its layers are all there */
#define WHOLE_END ".whole"
#define LINK_TRIES 3u    /* of a link to an image that another host has just removed */

const struct pool_order *pool_dir_of(const struct vm_order *order, const struct vm_disk *disk)
{
    const struct pool_order *pools = order->pools.items;
    for (size_t i = 0; disk->pool != NULL && i < order->pools.count; i++)
        if (strcmp(pools[i].name, disk->pool) == 0)
            return &pools[i];
    return NULL;
}

struct pool_order pool_dir_here(const char *vms_dir)
{
    return (struct pool_order){.path = (char *)(uintptr_t)vms_dir, .name = (char *)(uintptr_t)"host"};
}

bool pool_dir_is_here(const struct pool_order *pool)
{
    return pool->id == NULL;
}

bool pool_dir_shared(const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++) {
        const struct pool_order *pool = pool_dir_of(order, &disks[i]);
        if (pool != NULL && pool->kind == pool_kind_SHARED_DIR)
            return true;
    }
    return false;
}

bool pool_dir_reached(const struct vm_order *order)
{
    return pool_dir_shared(order) || pool_rbd_has_disks(order);
}

static void random_text(char ret[POOL_DIR_MARK_BYTES])
{
    uint8_t bytes[(POOL_DIR_MARK_BYTES - 1) / 2];
    ssize_t n = getrandom(bytes, sizeof bytes, 0);
    ASSERT(n == (ssize_t)sizeof bytes); /* never less for so few (getrandom(2)) */
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(ret + 2 * i, 3, "%02x", bytes[i]);
}

/* ---- the marker ---- */

/* -ENOENT: there is none. The caller clears *ret. */
static int marker_read(const struct pool_order *pool, struct pool_marker *ret, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/" POOL_DIR_MARKER, pool->path);
    CLEANUP_FREE char *text = NULL;
    struct pool_marker marker = {0};
    size_t size;
    int r = file_read(path, MARKER_BYTES_MAX, &text, &size, err);
    if (r == 0)
        r = OBJECT_DECODE(pool_marker, text, size, OBJECT_STORED, &marker, err);
    if (r < 0) {
        if (r != -ENOENT)
            error_prefix(err, "%s: ", path);
        return r;
    }
    *ret = marker;
    return 0;
}

/* Made aside, and put there only where none is: two that do this at once agree on one. */
static int marker_make(const struct pool_order *pool, struct error *err)
{
    struct pool_marker marker = {0};
    struct bytes_writer out = {.data = NULL};
    char mark[POOL_DIR_MARK_BYTES];
    random_text(mark);
    CLEANUP_FREE char *path = xasprintf("%s/" POOL_DIR_MARKER, pool->path);
    CLEANUP_FREE char *part = xasprintf("%s/.drover-pool.%s", pool->path, mark);
    OBJECT_SET(pool_marker, &marker, format, 1);
    OBJECT_TEXT(pool_marker, &marker, pool, pool->id);
    OBJECT_TEXT(pool_marker, &marker, mark, mark);
    OBJECT_TEXT(pool_marker, &marker, name, pool->name);
    OBJECT_ENCODE(pool_marker, &marker, &out);
    OBJECT_CLEAR(pool_marker, &marker);
    int r = file_write_atomic(part, out.data, out.size, 0644, err);
    bytes_writer_finish(&out);
    if (r == 0 && link(part, path) < 0 && errno != EEXIST)
        r = error_errno(err, -errno, "cannot mark %s", pool->path);
    unlink(part);
    return r < 0 ? r : file_sync_directory(pool->path, err);
}

static int marker_check(const struct pool_order *pool, const struct pool_marker *marker, struct error *err)
{
    if (strcmp(marker->pool, pool->id) != 0)
        return error_set(err, -ESTALE, ERROR_CONFLICT,
                         "%s belongs to another pool (%s, '%s'); if nobody needs that any more, remove its " POOL_DIR_MARKER,
                         pool->path, marker->pool, marker->name != NULL ? marker->name : "");
    if (pool->mark != NULL && strcmp(marker->mark, pool->mark) != 0)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "%s is another directory of the pool than it was; is it mounted?",
                         pool->path);
    return 0;
}

static int missing(const struct pool_order *pool, struct error *err)
{
    struct stat st;
    if (stat(pool->path, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", pool->path);
    return error_set(err, -ENOENT, ERROR_NOT_FOUND, "%s has no " POOL_DIR_MARKER "; is it mounted?", pool->path);
}

int pool_dir_check(const struct pool_order *pool, struct error *err)
{
    struct pool_marker marker;
    if (pool_dir_is_here(pool))
        return 0;
    int r = marker_read(pool, &marker, err);
    if (r == -ENOENT)
        return missing(pool, err);
    if (r < 0)
        return r;
    r = marker_check(pool, &marker, err);
    OBJECT_CLEAR(pool_marker, &marker);
    return r;
}

/* ---- what there is ---- */

/* Can files be made and given to the users of VMMs, and written past the page cache where other hosts reach them? */
static int writable_check(const struct pool_order *pool, struct error *err)
{
    char random[POOL_DIR_MARK_BYTES];
    random_text(random);
    CLEANUP_FREE char *path = xasprintf("%s/.drover-probe.%s", pool->path, random);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    CLEANUP_FD int direct_fd = -1;
    struct stat st;
    int r = 0;
    if (fd < 0)
        return error_errno(err, -errno, "cannot write to %s", pool->path);
    if (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (geteuid() == 0 && fchown(fd, 1, 1) < 0))
        r = error_set(err, -EPERM, ERROR_FORBIDDEN,
                      "%s does not let root own files and give them away; export it with no_root_squash", pool->path);
    if (r == 0 && pool->kind == pool_kind_SHARED_DIR) {
        direct_fd = open(path, O_WRONLY | O_DIRECT | O_NOFOLLOW | O_CLOEXEC);
        if (direct_fd < 0)
            r = error_errno(err, -errno, "the file system of %s has no direct I/O (O_DIRECT), which a shared pool needs", pool->path);
    }
    unlink(path);
    return r;
}

static int directories_make(const struct pool_order *pool, struct error *err)
{
    static const char *const names[] = {"vms", "volumes", "images"};
    int r = 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = xasprintf("%s/%s", pool->path, names[i]);
        r = file_make_directories(path, 0700, err);
    }
    return r;
}

static int look(const struct pool_order *pool, struct pool_seen *seen, struct error *err)
{
    struct pool_marker marker = {0};
    struct statvfs fs;
    int r = marker_read(pool, &marker, err);
    if (r == -ENOENT && pool->make && access(pool->path, X_OK) == 0) {
        r = marker_make(pool, err);
        if (r == 0)
            r = marker_read(pool, &marker, err);
    }
    if (r == -ENOENT)
        return missing(pool, err);
    if (r < 0)
        return r;
    r = marker_check(pool, &marker, err);
    if (r == 0)
        OBJECT_TEXT(pool_seen, seen, mark, marker.mark);
    OBJECT_CLEAR(pool_marker, &marker);
    if (r == 0 && statvfs(pool->path, &fs) < 0)
        r = error_errno(err, -errno, "cannot look at %s", pool->path);
    if (r < 0)
        return r;
    OBJECT_SET(pool_seen, seen, size_bytes, (uint64_t)fs.f_blocks * fs.f_frsize);
    OBJECT_SET(pool_seen, seen, free_bytes, (uint64_t)fs.f_bavail * fs.f_frsize);
    if (fs.f_bavail == 0)
        return 0; /* full is not gone: nothing can be made to see whether it could */
    r = directories_make(pool, err);
    return r < 0 ? r : writable_check(pool, err);
}

void pool_dir_look(const struct pool_order *pool, struct pool_seen *ret)
{
    struct error err = {.code = 0};
    char text[400];
    OBJECT_TEXT(pool_seen, ret, id, pool->id);
    if (look(pool, ret, &err) == 0) {
        OBJECT_SET(pool_seen, ret, present, true);
        return;
    }
    text_copy(text, sizeof text, err.text);
    OBJECT_SET(pool_seen, ret, present, false);
    OBJECT_TEXT(pool_seen, ret, reason, text);
}

/* ---- disks ---- */

/* Whose a disk is: a VM's, or a volume's own. */
static char *volume_name(const char *volume_id, const char *place)
{
    return xasprintf("%s%s%s", volume_id, place != NULL ? "." : "", place != NULL ? place : "");
}

static char *owner_path(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk)
{
    if (disk->volume == NULL)
        return pool_dir_is_here(pool) ? xasprintf("%s/%s/disks", pool->path, vm_id) : xasprintf("%s/vms/%s", pool->path, vm_id);
    CLEANUP_FREE char *name = volume_name(disk->volume, disk->place);
    return xasprintf("%s/volumes/%s", pool->path, name);
}

/* In its owner's directory, which a volume has for itself alone. */
static char *own_name(const struct vm_disk *disk, const char *end)
{
    bool is_placed = disk->volume == NULL && disk->place != NULL;
    return xasprintf("%s%s%s%s", disk->name, is_placed ? "." : "", is_placed ? disk->place : "", end);
}

char *pool_dir_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk)
{
    CLEANUP_FREE char *owner = owner_path(pool, vm_id, disk);
    CLEANUP_FREE char *name = own_name(disk, ".layers");
    return xasprintf("%s/%s", owner, name);
}

/* One file in the directory of a host (vm_files.h); NULL: it is none that could be so. */
static char *raw_path(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk)
{
    return pool_dir_is_here(pool) && disk->place == NULL ? xasprintf("%s/%s/disks/%s.raw", pool->path, vm_id, disk->name) : NULL;
}

int pool_dir_find(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err)
{
    CLEANUP_FREE char *layers = pool_dir_disk(pool, vm_id, disk);
    CLEANUP_FREE char *head = xasprintf("%s/%s.disk", layers, disk->name);
    CLEANUP_FREE char *raw = raw_path(pool, vm_id, disk);
    int r = pool_dir_check(pool, err);
    if (r < 0 || access(head, F_OK) == 0 || (errno == ENOENT && raw != NULL && access(raw, F_OK) == 0))
        return r;
    return error_errno(err, -errno, "%s is not where it is to be: %s", disk->volume != NULL ? "the volume" : "the disk", head);
}

char *pool_dir_images(const struct pool_order *pool)
{
    return xasprintf("%s/images", pool->path);
}

/* The image's copy in the pool, made where there is none. The caller frees *ret_path. */
static int image_copy(const struct pool_order *pool, const char *image_path, char **ret_path, struct error *err)
{
    char random[POOL_DIR_MARK_BYTES];
    random_text(random);
    const char *slash = strrchr(image_path, '/');
    ASSERT(slash != NULL);
    CLEANUP_FREE char *path = xasprintf("%s/images%s", pool->path, slash);
    CLEANUP_FREE char *part = xasprintf("%s/images/.%s", pool->path, random);
    if (access(path, F_OK) < 0) {
        int r = disk_file_make(part, 0, image_path, err); /* whole sectors: it can be shared */
        /* All VMMs may read it that are shown it: which VM a volume will be attached to is not known when it is made. */
        if (r == 0 && (chmod(part, 0644) < 0 || rename(part, path) < 0))
            r = error_errno(err, -errno, "cannot make %s", path);
        if (r < 0) {
            unlink(part);
            return r;
        }
    }
    *ret_path = TAKE_PTR(path);
    return 0;
}

/* The whole disk in @directory, which nobody else knows of. */
static int disk_fill(const struct pool_order *pool, const char *directory, const struct vm_disk *disk, const char *image_path,
                     struct error *err)
{
    int r = -ENOENT;
    for (unsigned i = 0; r == -ENOENT && i < LINK_TRIES; i++) {
        CLEANUP_FREE char *copy = NULL;
        r = image_path != NULL ? image_copy(pool, image_path, &copy, err) : 0;
        if (r == 0)
            r = disk_file_clone(directory, disk->name, disk->size_bytes, copy, err);
    }
    return r == -EXDEV ? error_set(err, r, ERROR_INTERNAL, "the file system of %s knows no second names of files", pool->path) : r;
}

int pool_dir_make_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, const char *image_path,
                       bool made, struct error *err)
{
    char random[POOL_DIR_MARK_BYTES];
    random_text(random);
    CLEANUP_FREE char *owner_dir = owner_path(pool, vm_id, disk);
    CLEANUP_FREE char *final = pool_dir_disk(pool, vm_id, disk);
    CLEANUP_FREE char *head = xasprintf("%s/%s.disk", final, disk->name);
    CLEANUP_FREE char *part_name = xasprintf(".%s.%s", disk->name, random);
    CLEANUP_FREE char *part = xasprintf("%s/%s", owner_dir, part_name);
    int r = pool_dir_check(pool, err);
    if (r < 0)
        return r;
    if (access(head, F_OK) == 0)
        return 0;
    if (errno != ENOENT || made)
        return error_errno(err, -errno, "disk %s was made once and is missing now: %s", disk->name, head);
    r = file_make_directories(owner_dir, 0700, err);
    if (r == 0)
        r = disk_fill(pool, part, disk, image_path, err);
    /* On a directory with something in it this fails, and so on the disk of another host that was as far as we are. */
    if (r == 0 && rename(part, final) < 0 && access(head, F_OK) < 0)
        r = error_errno(err, -errno, "cannot make %s", final);
    if (file_remove_tree(owner_dir, part_name, NULL) < 0 && r == 0)
        log_warning("pool-part", "path=%s error=\"cannot be removed, ignoring\"", part);
    return r < 0 ? r : file_sync_directory(owner_dir, err);
}

/* Images that no disk is above any more, and what killed agents left of copies. Others may do the same now. */
static void images_collect(const struct pool_order *pool)
{
    CLEANUP_FREE char *path = xasprintf("%s/images", pool->path);
    struct dirent *entry;
    struct stat st;
    DIR *d = opendir(path);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        if (fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) || st.st_nlink > 1)
            continue;
        if (entry->d_name[0] != '.' || st.st_mtime + PARTS_OLD_S < time(NULL))
            unlinkat(dirfd(d), entry->d_name, 0);
    }
    if (d != NULL)
        closedir(d);
}

/* @id in @all. */
static int entry_remove(const struct pool_order *pool, const char *all, const char *id, struct error *err)
{
    CLEANUP_FREE char *dir = xasprintf("%s/%s", all, id);
    CLEANUP_FREE char *gone_name = xasprintf("%s" VM_FILES_GONE, id);
    CLEANUP_FREE char *gone = xasprintf("%s/%s", all, gone_name);
    int r = pool_dir_check(pool, err);
    if (r < 0) {
        error_prefix(err, "the disks in pool %s cannot be removed: ", pool->name);
        return r;
    }
    if (access(dir, F_OK) == 0) {
        r = file_remove_tree(all, gone_name, err); /* another host may be at it, too */
        if (r == 0 && rename(dir, gone) < 0 && errno != ENOENT)
            r = error_errno(err, -errno, "cannot remove %s", dir);
        if (r == 0)
            r = file_sync_directory(all, err);
    }
    if (r == 0)
        r = file_remove_tree(all, gone_name, err);
    if (r == 0 && !pool_dir_is_here(pool))
        images_collect(pool);
    return r;
}

static int owner_remove(const struct pool_order *pool, const char *kind, const char *id, struct error *err)
{
    CLEANUP_FREE char *all = xasprintf("%s/%s", pool->path, kind);
    return entry_remove(pool, all, id, err);
}

int pool_dir_remove_vm(const struct pool_order *pool, const char *vm_id, struct error *err)
{
    return owner_remove(pool, "vms", vm_id, err);
}

int pool_dir_remove_volume(const struct pool_order *pool, const char *volume_id, const char *place, struct error *err)
{
    CLEANUP_FREE char *name = volume_name(volume_id, place);
    return owner_remove(pool, "volumes", name, err);
}

int pool_dir_remove_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err)
{
    CLEANUP_FREE char *owner = owner_path(pool, vm_id, disk);
    CLEANUP_FREE char *layers = own_name(disk, ".layers");
    CLEANUP_FREE char *whole = own_name(disk, WHOLE_END);
    CLEANUP_FREE char *raw = own_name(disk, ".raw");
    const char *const names[] = {whole, pool_dir_is_here(pool) && disk->place == NULL ? raw : NULL, layers};
    int r = pool_dir_check(pool, err);
    if (r == 0 && access(owner, F_OK) < 0 && errno == ENOENT)
        return 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++)
        r = names[i] != NULL ? entry_remove(pool, owner, names[i], err) : 0;
    if (r == 0 && !pool_dir_is_here(pool))
        (void)rmdir(owner); /* the last one of the VM there */
    return r;
}

/* ---- copies ---- */

/* What is made and removed at once: @entry of @all, which itself is in @above. And what says that it is whole. */
struct copy {
    char *above, *all, *entry, *whole;
};

static struct copy copy_of(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk)
{
    struct copy copy;
    if (disk->volume != NULL) {
        copy.above = xstrdup(pool->path);
        copy.all = xasprintf("%s/volumes", pool->path);
        copy.entry = volume_name(disk->volume, disk->place);
        copy.whole = xasprintf("%s/%s/" WHOLE, copy.all, copy.entry); /* beside its layers */
    } else {
        CLEANUP_FREE char *mark = own_name(disk, WHOLE_END);
        copy.above = pool_dir_is_here(pool) ? xasprintf("%s/%s", pool->path, vm_id) : xasprintf("%s/vms", pool->path);
        copy.all = owner_path(pool, vm_id, disk);
        copy.entry = own_name(disk, ".layers");
        copy.whole = xasprintf("%s/%s", copy.all, mark);
    }
    return copy;
}

static void copy_forget(struct copy *copy)
{
    free(copy->above);
    free(copy->all);
    free(copy->entry);
    free(copy->whole);
}

int pool_dir_copy_begin(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, uid_t user, char **ret_directory,
                        struct error *err)
{
    CLEANUP_FREE char *directory = pool_dir_disk(pool, vm_id, disk);
    struct copy copy = copy_of(pool, vm_id, disk);
    int r = pool_dir_check(pool, err);
    if (r == 0)
        r = file_make_directories(copy.all, 0700, err);
    if (r == 0 && unlink(copy.whole) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", copy.whole);
    if (r == 0)
        r = file_sync_directory(copy.all, err); /* before anything else of it goes */
    if (r == 0)
        r = file_remove_tree(copy.all, copy.entry, err);
    if (r == 0)
        r = file_make_directories(directory, 0700, err);
    if (r == 0) /* a VMM may be all that writes to it from here on, until what was is removed */
        r = file_sync_directory(copy.all, err);
    if (r == 0)
        r = file_sync_directory(copy.above, err);
    if (r == 0 && user != geteuid() && chown(directory, user, user) < 0)
        r = error_errno(err, -errno, "cannot give %s away", directory);
    if (r == 0)
        *ret_directory = TAKE_PTR(directory);
    copy_forget(&copy);
    return r;
}

int pool_dir_copy_end(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err)
{
    CLEANUP_FREE char *owner_dir = owner_path(pool, vm_id, disk);
    struct copy copy = copy_of(pool, vm_id, disk);
    int r = pool_dir_check(pool, err);
    if (r == 0)
        r = file_sync_directory(owner_dir, err);
    if (r == 0)
        r = file_sync_directory(copy.all, err);
    if (r == 0)
        r = file_sync_directory(copy.above, err);
    if (r == 0)
        r = file_write_atomic(copy.whole, "", 0, 0600, err);
    copy_forget(&copy);
    return r;
}

int pool_dir_copy_is_whole(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err)
{
    struct stat st;
    struct copy copy = copy_of(pool, vm_id, disk);
    int r = lstat(copy.whole, &st) == 0 ? 1 : errno == ENOENT ? 0 : error_errno(err, -errno, "cannot look at %s", copy.whole);
    copy_forget(&copy);
    return r;
}
