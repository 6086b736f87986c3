/* The task image-import.
 *
 *   start --upload----> RECEIVING --all is there--> WORKING (a child, image_import.h) --> over
 *      |                   '-- pieces: image_upload.h  ^
 *      |---URL-----------------------------------------|
 *      '---snapshot---> COPYING (a child, image_snapshot.h)
 *
 * The child that copies has the rights of the VM's VMM, which has written what it reads, and what it may have made of them it may do to
 * the copy; so the one that hashes the copy and gives it its name is another.
 *
 * Begun twice it comes to the same: an upload is gone on with where it was, a copy of a snapshot is made anew, and <image>.done says that
 * all was done. That file, and an upload that nobody goes on with, go after a day at the agent's start. What failed or was cancelled is
 * removed at once. Cancel: at any time. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/image_import.h"
#include "compute/agent/image_snapshot.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"
#include "compute/agent/vmm_user.h"

#define LEFT_OVER_S 86400
#define NOBODY 65534u

struct image_task {
    struct agent_task *task;
    struct agent *agent;
    char image[IMAGE_UPLOAD_ID_LENGTH + 1];
    bool expected; /* pieces of it are taken */
    bool copied;   /* it was copied from a snapshot */
    bool has_room; /* made for what is being copied */
    struct task_child *child;
    struct error why; /* the child was killed for; code 0: for none */
};

static const struct image_source *source_of(const struct agent_task *task)
{
    return &task->order.task.image.image.source;
}

static void finish(struct image_task *t, enum operation_state state, const struct error *err)
{
    struct agent_task *task = t->task;
    bool remove = !t->agent->stopping && (task->stopping || state != operation_state_SUCCEEDED);
    if (t->expected)
        image_upload_release(&t->agent->uploads, t->image);
    if (remove)
        image_import_clean(t->agent->uploads.dir, t->image, true);
    free(t);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, err);
}

/* ---- the child ---- */

static void child_told(const struct task_seen *seen, void *arg)
{
    struct image_task *t = arg;
    if (!t->task->stopping)
        agent_task_progress(t->task, seen->step, seen->progress_done, seen->progress_total);
}

static void child_error(const struct task_seen *seen, struct error *err)
{
    error_set(err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
              seen->error_text != NULL ? seen->error_text : "it does not say why");
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct image_task *t = arg;
    struct error err = {.code = 0};
    t->child = NULL;
    if (seen->state == operation_state_SUCCEEDED && !t->task->stopping) {
        image_cache_adopt(t->agent->images, seen->image.sha256);
        OBJECT_COPY(image_result, &t->task->seen.image, &seen->image);
        object_mark(&task_seen_desc, &t->task->seen, "image");
    } else if (seen->state != operation_state_SUCCEEDED) {
        child_error(seen, &err);
    }
    finish(t, (enum operation_state)seen->state, &err);
}

static void work_fill(const struct image_task *t, struct image_work *work)
{
    const struct image_source *source = source_of(t->task);
    uint32_t base = t->agent->vm_context.places.user_base;
    OBJECT_TEXT(image_work, work, image, t->image);
    OBJECT_SET(image_work, work, format, source->format);
    if (t->copied)
        OBJECT_SET(image_work, work, copied, true);
    OBJECT_TEXT(image_work, work, url, source->url);
    OBJECT_TEXT(image_work, work, sha256, source->sha256);
    if (source->size_bytes > 0)
        OBJECT_SET(image_work, work, size_bytes, source->size_bytes);
    OBJECT_TEXT(image_work, work, work_dir, t->agent->uploads.dir);
    OBJECT_TEXT(image_work, work, images_dir, t->agent->images_dir);
    OBJECT_SET(image_work, work, user, base != 0 ? base + VMM_USERS : NOBODY); /* nobody else's */
    OBJECT_SET(image_work, work, web_user, vmm_user_of_web(base));
}

static void work_begin(struct image_task *t)
{
    struct image_work work = {0};
    struct error err;
    work_fill(t, &work);
    const struct task_child_options options = {.loop = t->agent->loop,
                                               .work = "image",
                                               .desc = &image_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = t};
    int r = task_child_start(&options, &t->child, &err);
    OBJECT_CLEAR(image_work, &work);
    if (r < 0)
        finish(t, operation_state_FAILED, &err);
}

/* ---- the copy of a snapshot ---- */

static void copy_told(const struct task_seen *seen, void *arg)
{
    struct image_task *t = arg;
    child_told(seen, arg);
    if (t->has_room || seen->progress_total == 0)
        return;
    t->has_room = true;
    if (image_cache_make_room(t->agent->images, seen->progress_total, &t->why) < 0)
        task_child_kill(t->child); /* copy_done follows */
}

static void copy_done(const struct task_seen *seen, void *arg)
{
    struct image_task *t = arg;
    struct error err = {.code = 0};
    t->child = NULL;
    if (seen->state == operation_state_SUCCEEDED && !t->task->stopping && t->why.code == 0) {
        t->copied = true;
        work_begin(t);
    } else if (t->why.code != 0) {
        err = t->why;
        finish(t, operation_state_FAILED, &err);
    } else {
        child_error(seen, &err);
        finish(t, (enum operation_state)seen->state, &err);
    }
}

/* The disk of the VM as it is on this host; the caller frees. NULL in words: it has none. */
static char *copy_directory(const struct local_vm *vm, const char *name, const struct pool_order **ret_pool, struct error *err)
{
    const struct vm_order *order = vm != NULL ? vm_order_of(vm) : NULL;
    for (size_t i = 0; order != NULL && i < order->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)order->disks.items + i;
        char *directory = strcmp(disk->name, name) == 0 ? vm_files_layers_path(&vm_context_of(vm)->places, order, disk) : NULL;
        *ret_pool = pool_dir_of(order, disk);
        if (directory != NULL)
            return directory;
    }
    error_set(err, -ENOENT, ERROR_NOT_FOUND, "the VM has no disk %s here that could have a snapshot", name);
    return NULL;
}

static void copy_begin(struct image_task *t)
{
    const struct task *task = &t->task->order.task;
    const char *disk = source_of(t->task)->disk != NULL ? source_of(t->task)->disk : "";
    const struct local_vm *vm = map_get(&t->agent->vms, task->vm != NULL ? task->vm : "");
    const struct pool_order *pool = NULL;
    struct image_copy_work work = {0};
    struct error err;
    CLEANUP_FREE char *directory = copy_directory(vm, disk, &pool, &err);
    CLEANUP_FREE char *target = xasprintf("%s/%s.copy", t->agent->uploads.dir, t->image);
    int r = directory != NULL ? 0 : err.code;
    if (r == 0) {
        OBJECT_TEXT(image_copy_work, &work, snapshot, task->image.snapshot);
        OBJECT_TEXT(image_copy_work, &work, disk, disk);
        OBJECT_TEXT(image_copy_work, &work, directory, directory);
        OBJECT_TEXT(image_copy_work, &work, target, target);
        if (vm_user(vm) != geteuid())
            OBJECT_SET(image_copy_work, &work, user, vm_user(vm));
        if (pool != NULL) {
            OBJECT_COPY(pool_order, &work.pool, pool);
            object_mark(&image_copy_work_desc, &work, "pool");
        }
        const struct task_child_options options = {.loop = t->agent->loop,
                                                   .work = "image-copy",
                                                   .desc = &image_copy_work_desc,
                                                   .arguments = &work,
                                                   .told = copy_told,
                                                   .done = copy_done,
                                                   .arg = t};
        r = task_child_start(&options, &t->child, &err);
    }
    OBJECT_CLEAR(image_copy_work, &work);
    if (r < 0)
        finish(t, operation_state_FAILED, &err);
}

/* ---- the upload ---- */

static void received(uint64_t offset, void *arg)
{
    struct image_task *t = arg;
    uint64_t size = source_of(t->task)->size_bytes;
    agent_task_progress(t->task, "receiving the upload", offset, size);
    if (offset < size || !t->expected)
        return;
    image_upload_release(&t->agent->uploads, t->image);
    t->expected = false;
    work_begin(t);
}

static bool is_done(const struct image_task *t)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s.done", t->agent->uploads.dir, t->image);
    return access(path, F_OK) == 0;
}

static void start(struct agent_task *task)
{
    struct image_task *t = NEW(struct image_task);
    const struct image_source *source = source_of(task);
    struct error err;
    t->task = task;
    t->agent = task->agent;
    task->state = t;
    snprintf(t->image, sizeof(t->image), "%s", task->order.task.image.image.id != NULL ? task->order.task.image.image.id : "");
    int r = image_cache_make_room(t->agent->images, source->size_bytes, &err);
    if (r == 0 && (source->url != NULL || is_done(t))) {
        work_begin(t);
        return;
    }
    if (r == 0 && task->order.task.image.snapshot != NULL) {
        copy_begin(t);
        return;
    }
    if (r == 0)
        r = image_upload_expect(&t->agent->uploads, t->image, source->size_bytes, received, t, &err);
    if (r < 0) {
        finish(t, operation_state_FAILED, &err);
        return;
    }
    t->expected = true;
    CLEANUP_FREE char *path = image_upload_path(&t->agent->uploads, t->image);
    struct stat st;
    if (stat(path, &st) == 0) /* perhaps all of it is there from before a restart */
        received((uint64_t)st.st_size, t);
}

static void end_early(struct image_task *t)
{
    struct error err;
    if (t->child != NULL) {
        task_child_kill(t->child); /* child_done follows */
        return;
    }
    error_set(&err, -ECANCELED, ERROR_CANCELLED, "cancelled before all of it was there");
    finish(t, operation_state_CANCELLED, &err);
}

static void on_end_asked(struct agent_task *task)
{
    end_early(task->state);
}

/* What earlier agents left that nobody will ask for any more. */
static void clean(struct agent *agent)
{
    DIR *d = opendir(agent->uploads.dir);
    struct dirent *entry;
    struct stat st;
    const char *rule;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        char id[IMAGE_UPLOAD_ID_LENGTH + 1] = "";
        memcpy(id, entry->d_name, strnlen(entry->d_name, IMAGE_UPLOAD_ID_LENGTH));
        if (!text_format_ok(FORMAT_id, id, &rule) || fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        bool old = time(NULL) - st.st_mtime > LEFT_OVER_S;
        const char *suffix = entry->d_name + IMAGE_UPLOAD_ID_LENGTH;
        if (old)
            image_import_clean(agent->uploads.dir, id, true);
        else if (strcmp(suffix, ".raw") == 0 || strcmp(suffix, ".copy") == 0)
            unlinkat(dirfd(d), entry->d_name, 0);
        else if (strcmp(suffix, ".root") == 0)
            unlinkat(dirfd(d), entry->d_name, AT_REMOVEDIR);
    }
    if (d != NULL)
        closedir(d);
}

const struct agent_task_ops task_image_ops = {.start = start, .cancel = on_end_asked, .stop = on_end_asked, .clean = clean};

/* ---- in the child ---- */

static void tell(const char *step, uint64_t done, uint64_t total, void *arg)
{
    (void)arg;
    task_child_tell(step, done, total);
}

int task_image_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err)
{
    const struct image_import_listener listener = {.progress = tell};
    struct image_work work = {0};
    int r = OBJECT_DECODE(image_work, arguments, size, OBJECT_STORED, &work, err);
    if (r == 0)
        r = image_import_run(&work, &listener, &ret_seen->image, err);
    if (r == 0)
        object_mark(&task_seen_desc, ret_seen, "image");
    OBJECT_CLEAR(image_work, &work);
    return r;
}

/* From here on the child may do no more than the VM's VMM could: what that user cannot get to by its path was opened before. */
static int copy_become(const struct image_copy_work *work, char *ret_directory, size_t size, struct error *err)
{
    const struct task_walls walls = {.user = work->user, .group = work->user};
    int fd = open(work->directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", work->directory);
    snprintf(ret_directory, size, "/proc/self/fd/%d", fd);
    return work->user != 0 ? task_walls_raise(&walls, err) : 0;
}

int task_image_copy_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    const struct image_import_listener listener = {.progress = tell};
    struct image_copy_work work = {0};
    char directory[32];
    int r = OBJECT_DECODE(image_copy_work, arguments, size, OBJECT_STORED, &work, err);
    if (r < 0)
        return r;
    if (OBJECT_HAS(image_copy_work, &work, pool))
        r = pool_dir_check(&work.pool, err);
    CLEANUP_FD int fd = r == 0 ? open(work.target, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
    if (r == 0 && fd < 0)
        r = error_errno(err, -errno, "cannot make %s", work.target);
    if (r == 0)
        r = copy_become(&work, directory, sizeof directory, err);
    if (r == 0)
        r = image_snapshot_copy(directory, work.disk, work.snapshot, fd, &listener, err);
    OBJECT_CLEAR(image_copy_work, &work);
    return r;
}
