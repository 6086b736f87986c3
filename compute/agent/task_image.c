/* The task image-import.
 *
 *   start --upload--> RECEIVING --all is there--> WORKING (a child, image_import.h) --> over
 *      |                 ^  '-- pieces: image_upload.h
 *      '---URL-----------'---------------------------^
 *
 * Begun twice it comes to the same: an upload is gone on with where it was, and <image>.done says that all was done. That
 * file, and an upload that nobody goes on with, go after a day at the agent's start. What failed or was cancelled is
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
#include "compute/agent/task_child.h"
#include "compute/agent/vmm_user.h"

#define LEFT_OVER_S 86400
#define NOBODY 65534u

struct image_task {
    struct agent_task *task;
    struct agent *agent;
    char image[IMAGE_UPLOAD_ID_LENGTH + 1];
    bool expected; /* pieces of it are taken */
    struct task_child *child;
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
        error_set(&err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                  seen->error_text != NULL ? seen->error_text : "it does not say why");
    }
    finish(t, (enum operation_state)seen->state, &err);
}

static void work_fill(const struct image_task *t, struct image_work *work)
{
    const struct image_source *source = source_of(t->task);
    uint32_t base = t->agent->vm_context.places.user_base;
    OBJECT_TEXT(image_work, work, image, t->image);
    OBJECT_SET(image_work, work, format, source->format);
    OBJECT_TEXT(image_work, work, url, source->url);
    OBJECT_TEXT(image_work, work, sha256, source->sha256);
    if (source->size_bytes > 0)
        OBJECT_SET(image_work, work, size_bytes, source->size_bytes);
    OBJECT_TEXT(image_work, work, work_dir, t->agent->uploads.dir);
    OBJECT_TEXT(image_work, work, images_dir, t->agent->images_dir);
    OBJECT_SET(image_work, work, user, base != 0 ? base + VMM_USERS : NOBODY); /* nobody else's */
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
        else if (strcmp(suffix, ".raw") == 0)
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
