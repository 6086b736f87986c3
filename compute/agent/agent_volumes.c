/* Making and removing volumes; see the header. */
#include "compute/agent/agent_volumes.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/task_child.h"

#define REASON_BYTES_MAX 400
#define KEY_BYTES 112 /* a volume's id and a place, or a VM's id, a disk and a place */

enum volume_step { VOLUME_IDLE, VOLUME_FETCHING, VOLUME_WORKING, VOLUME_FILLING };

struct agent_volume {
    struct agent *agent;
    char id[37];
    char key[KEY_BYTES]; /* "<id> <place>", "<id>/<disk> <place>": in the map, which borrows it */
    struct volume_order order;  /* the last one */
    struct volume_order worked; /* what the work under way is about */
    bool ordered; /* it is in the last answer */
    bool heard;   /* which came after the last try to fill it */
    bool done;    /* the last order is carried out */
    bool waited;  /* for a VM that has it still */
    bool stopping;
    enum volume_step step;
    uint64_t again_at_ms;
    char reason[REASON_BYTES_MAX + 1];
    struct image_wait *wait;
    struct pool_work work;
    char *image_path;
    struct task_child *child; /* FILLING */
    int status;
    struct error err;
};

static void look(struct agent_volume *v);

static void volume_free(struct agent_volume *v)
{
    OBJECT_CLEAR(volume_order, &v->order);
    OBJECT_CLEAR(volume_order, &v->worked);
    free(v->image_path);
    free(v);
}

static void news(const struct agent_volume *v)
{
    if (v->agent->session != NULL)
        session_poke(v->agent->session);
}

static void failed(struct agent_volume *v, const struct error *err)
{
    char before[sizeof v->reason];
    memcpy(before, v->reason, sizeof before);
    text_copy(v->reason, sizeof v->reason, err->text);
    if (strcmp(before, v->reason) != 0)
        log_warning("volume", "volume=%s error=\"%s\"", v->id, err->text);
    v->again_at_ms = uv_now(v->agent->loop) + AGENT_VOLUME_RETRY_MS;
    news(v);
}

/* ---- work: threads ---- */

/* What a move has left goes only where the disk itself is seen: a cluster that has lost the end of its log may not know which is which. */
static int kept_look(const struct agent_volume *v, const struct volume_order *order, struct error *err)
{
    struct vm_disk kept = {.name = order->disk, .volume = order->own ? NULL : order->id, .place = order->kept_place}; /* borrowed */
    const struct pool_order here = pool_dir_here(v->agent->vms_dir);
    int r = pool_dir_find(OBJECT_HAS(volume_order, order, kept_pool) ? &order->kept_pool : &here, order->id, &kept, err);
    if (r < 0)
        error_prefix(err, "what a move has left in %s is kept: ",
                     OBJECT_HAS(volume_order, order, pool) ? order->pool.name : "its host's directory");
    return r;
}

static int own_remove(const struct agent_volume *v, const struct volume_order *order, struct error *err)
{
    struct vm_disk left = {.name = order->disk, .place = order->place}; /* borrowed */
    const struct pool_order here = pool_dir_here(v->agent->vms_dir);
    return pool_dir_remove_disk(OBJECT_HAS(volume_order, order, pool) ? &order->pool : &here, order->id, &left, err);
}

static int image_work(const struct agent_volume *v, const struct volume_order *order, struct error *err)
{
    const char *program = v->agent->vm_context.places.rbd_path;
    if (order->own || OBJECT_HAS(volume_order, order, kept_pool)) /* of those there are no moves */
        return error_set(err, -EINVAL, ERROR_INTERNAL, "pool %s is of kind rbd and holds nothing that was moved", order->pool.name);
    return order->remove ? pool_rbd_remove(program, &order->pool, order->id, err)
                         : pool_rbd_make(program, &order->pool, order->id, order->size_bytes, err);
}

static void work_do(struct pool_work *work)
{
    struct agent_volume *v = CONTAINER_OF(work, struct agent_volume, work);
    const struct volume_order *order = &v->worked;
    const struct vm_disk disk = {.name = order->disk, .size_bytes = order->size_bytes, .volume = order->id, .place = order->place}; /* borrowed */
    v->err = (struct error){.code = 0};
    v->status = 0;
    if (OBJECT_HAS(volume_order, order, pool) && pool_rbd_is(&order->pool)) {
        v->status = image_work(v, order, &v->err);
        return;
    }
    if (order->remove && (order->own || OBJECT_HAS(volume_order, order, kept_pool)))
        v->status = kept_look(v, order, &v->err);
    if (order->own && v->status == 0)
        v->status = own_remove(v, order, &v->err);
    else if (order->remove && v->status == 0)
        v->status = pool_dir_remove_volume(&order->pool, order->id, order->place, &v->err);
    else if (!order->remove && !order->own)
        v->status = pool_dir_make_disk(&order->pool, order->id, &disk, v->image_path, false, &v->err);
}

/* The VM that has it in the place that is to go; NULL: none. What is left of it where its VM was lost goes after all that is left of the VM. */
static const struct vm_order *used_by(const struct agent_volume *v)
{
    const struct local_vm *vm;
    for (size_t i = 0; (vm = map_next(&v->agent->vms, &i)) != NULL;) {
        const struct vm_order *order = vm_order_of(vm);
        const struct vm_disk *disks = order->disks.items;
        for (size_t k = 0; k < order->disks.count; k++)
            if (text_same(disks[k].volume, v->id) && text_same(disks[k].place, v->order.place))
                return order;
    }
    return NULL;
}

/* Is there a directory of a VM that could not be read? It may have anything. */
static bool has_unread(const struct agent *a)
{
    DIR *d = opendir(a->vms_dir);
    const struct dirent *entry;
    const char *rule;
    bool unread = false;
    while (d != NULL && !unread && (entry = readdir(d)) != NULL)
        unread = text_format_ok(FORMAT_id, entry->d_name, &rule) && map_get(&a->vms, entry->d_name) == NULL;
    if (d != NULL)
        closedir(d);
    return unread;
}

/* Is what is or was worked at not what is wanted by now? */
static bool is_outdated(const struct agent_volume *v)
{
    return !v->ordered || v->stopping || !object_equal(&volume_order_desc, &v->order, &v->worked);
}

/* v->status, v->err; may free it. */
static void work_ended(struct agent_volume *v)
{
    struct agent *a = v->agent;
    v->step = VOLUME_IDLE;
    if (v->stopping) {
        volume_free(v);
        agent_part_closed(a);
        return;
    }
    if (v->status < 0 && !is_outdated(v)) {
        failed(v, &v->err);
    } else if (v->status == 0 && !is_outdated(v)) {
        log_info(v->order.remove ? "volume-removed" : "volume-made", "%s=%s disk=%s pool=%s", v->order.own ? "vm" : "volume", v->id,
                 v->order.disk, OBJECT_HAS(volume_order, &v->order, pool) ? v->order.pool.name : "none");
        v->done = true;
        v->reason[0] = '\0';
        news(v);
    }
    agent_volumes_tick(a); /* it, and those that waited for it */
}

static void work_after(struct pool_work *work)
{
    struct agent_volume *v = CONTAINER_OF(work, struct agent_volume, work);
    work_ended(v);
}

/* ---- a child ---- */

/* In tenths: each is an entry of the controllers' log. */
static void fill_told(const struct task_seen *seen, void *arg)
{
    struct agent_volume *v = arg;
    char text[sizeof v->reason];
    uint64_t total = MAX(seen->progress_total, UINT64_C(1));
    snprintf(text, sizeof text, "%u %% of its image is there", (unsigned)(seen->progress_done * 10 / total * 10));
    if (is_outdated(v) || strcmp(text, v->reason) == 0)
        return;
    snprintf(v->reason, sizeof v->reason, "%s", text);
    news(v);
}

static void fill_done(const struct task_seen *seen, void *arg)
{
    struct agent_volume *v = arg;
    v->agent->volumes.filling--;
    v->child = NULL;
    v->err = (struct error){.code = 0};
    v->status = seen->state == operation_state_SUCCEEDED
                    ? 0
                    : error_set(&v->err, -EIO, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"), "%s",
                                seen->error_text != NULL ? seen->error_text : "drover-rbd does not say why it failed");
    work_ended(v);
}

static void fill_begin(struct agent_volume *v, const char *image_path)
{
    struct rbd_fill fill = {.volume = NULL};
    const struct task_child_options options = {.loop = v->agent->loop,
                                               .work = "rbd-fill",
                                               .desc = &rbd_fill_desc,
                                               .arguments = &fill,
                                               .told = fill_told,
                                               .done = fill_done,
                                               .arg = v};
    struct error err = {.code = 0};
    OBJECT_CLEAR(volume_order, &v->worked);
    OBJECT_COPY(volume_order, &v->worked, &v->order);
    OBJECT_COPY(pool_order, &fill.pool, &v->order.pool);
    object_mark(&rbd_fill_desc, &fill, "pool");
    OBJECT_TEXT(rbd_fill, &fill, volume, v->order.id);
    OBJECT_SET(rbd_fill, &fill, size_bytes, v->order.size_bytes);
    OBJECT_TEXT(rbd_fill, &fill, path, image_path);
    OBJECT_TEXT(rbd_fill, &fill, sha256, v->order.image.sha256);
    OBJECT_TEXT(rbd_fill, &fill, program, v->agent->vm_context.places.rbd_path);
    int r = task_child_start(&options, &v->child, &err);
    OBJECT_CLEAR(rbd_fill, &fill);
    if (r < 0) {
        failed(v, &err);
        return;
    }
    v->step = VOLUME_FILLING;
    v->heard = false;
    v->agent->volumes.filling++;
}

/* ---- begin ---- */

/* The pools that it is about (pool_work.h); the host's own directory counts as one. The caller frees. */
static char *lane_of(const struct volume_order *order)
{
    return xasprintf("%s %s", OBJECT_HAS(volume_order, order, pool) ? order->pool.id : "here",
                     OBJECT_HAS(volume_order, order, kept_pool) ? order->kept_pool.id : "");
}

static bool work_may_begin(const struct agent_volume *v)
{
    CLEANUP_FREE char *lane = lane_of(&v->order);
    return !pool_work_is_full(&v->agent->pool_works, lane);
}

static void work_begin(struct agent_volume *v, const char *image_path)
{
    OBJECT_CLEAR(volume_order, &v->worked);
    OBJECT_COPY(volume_order, &v->worked, &v->order);
    free(v->image_path);
    v->image_path = image_path != NULL ? xstrdup(image_path) : NULL;
    CLEANUP_FREE char *lane = lane_of(&v->order);
    v->step = VOLUME_WORKING;
    pool_work_begin(&v->agent->pool_works, v->agent->loop, lane, &v->work, work_do, work_after);
}

/* ---- its image ---- */

static void on_image(int status, const struct error *err, const char *path UNUSED, void *arg)
{
    struct agent_volume *v = arg;
    v->step = VOLUME_IDLE;
    v->wait = NULL;
    if (v->stopping) {
        struct agent *a = v->agent;
        volume_free(v);
        agent_part_closed(a);
        return;
    }
    if (status < 0)
        failed(v, err);
    look(v); /* finds it */
}

static void image_fetch(struct agent_volume *v)
{
    struct error err = {.code = 0};
    if (image_cache_get(v->agent->images, &v->order.image, on_image, v, &v->wait, &err) == 0)
        v->step = VOLUME_FETCHING;
    else
        failed(v, &err);
}

/* ---- decisions ---- */

static void forget(struct agent_volume *v)
{
    map_remove(&v->agent->volumes.all, v->key);
    volume_free(v);
}

/* The next step. May free it. */
static void look(struct agent_volume *v)
{
    char path[IMAGE_CACHE_PATH_BYTES_MAX];
    struct error err = {.code = 0};
    if (v->step != VOLUME_IDLE)
        return;
    if (!v->ordered) {
        forget(v);
        return;
    }
    if (v->done || uv_now(v->agent->loop) < v->again_at_ms)
        return;
    if (v->order.remove && (task_volume_works(v->agent, v->id) || task_clone_works(v->agent, v->id)))
        return; /* the copy that is to go is being given up just now; asked again with the tick */
    const struct vm_order *user = v->order.lost ? used_by(v) : NULL;
    bool unread = v->order.lost && user == NULL && has_unread(v->agent);
    if ((user != NULL || unread) && !v->waited) { /* that goes by the same orders, as a rule: nothing to tell of */
        v->waited = true;
        v->again_at_ms = uv_now(v->agent->loop) + AGENT_VOLUME_RETRY_MS;
        return;
    }
    if (unread) {
        error_set(&err, -EBUSY, ERROR_CONFLICT, "a VM in %s of this host could not be read, and may have it", v->agent->vms_dir);
        failed(v, &err);
        return;
    }
    if (user != NULL) {
        error_set(&err, -EBUSY, ERROR_CONFLICT, "VM %s is still on this host, and has it", user->name != NULL ? user->name : user->id);
        failed(v, &err);
        return;
    }
    bool has_image = !v->order.remove && v->order.image.sha256 != NULL;
    bool is_filled = has_image && OBJECT_HAS(volume_order, &v->order, pool) && pool_rbd_is(&v->order.pool);
    if (OBJECT_HAS(volume_order, &v->order, pool) && pool_watch_there(&v->agent->pools, v->order.pool.id, v->order.pool.name, &err) < 0)
        failed(v, &err);
    else if (has_image && image_cache_find(v->agent->images, &v->order.image, path, sizeof path) < 0)
        image_fetch(v);
    else if (is_filled && v->heard && v->agent->volumes.filling < AGENT_VOLUMES_FILLING_MAX)
        fill_begin(v, path);
    else if (!is_filled && work_may_begin(v))
        work_begin(v, has_image ? path : NULL);
}

static void obey_one(struct agent *a, const struct volume_order *order)
{
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s%s%s %s", order->id, order->own ? "/" : "", order->own ? order->disk : "",
             order->place != NULL ? order->place : "");
    struct agent_volume *v = map_get(&a->volumes.all, key);
    if (v == NULL) {
        v = NEW(struct agent_volume);
        v->agent = a;
        snprintf(v->id, sizeof v->id, "%s", order->id);
        memcpy(v->key, key, sizeof key);
        map_put(&a->volumes.all, v->key, v);
    }
    v->ordered = v->heard = true;
    if (!object_equal(&volume_order_desc, &v->order, order)) {
        OBJECT_CLEAR(volume_order, &v->order);
        OBJECT_COPY(volume_order, &v->order, order);
        v->done = v->waited = false;
        v->again_at_ms = 0;
        v->reason[0] = '\0';
    }
}

void agent_volumes_obey(struct agent *a, const struct node_orders *orders)
{
    const struct object_list *const lists[] = {&orders->volumes, &orders->moved_volumes, &orders->left_disks};
    struct agent_volume *v;
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL;)
        v->ordered = false;
    for (size_t k = 0; k < ARRAY_SIZE(lists); k++)
        for (size_t i = 0; i < lists[k]->count; i++)
            obey_one(a, (const struct volume_order *)lists[k]->items + i);
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL;)
        if (v->step == VOLUME_FILLING && is_outdated(v))
            task_child_ask(v->child);
    agent_volumes_tick(a);
}

void agent_volumes_tick(struct agent *a)
{
    size_t count = 0;
    struct agent_volume *v;
    CLEANUP_FREE struct agent_volume **all = xcalloc(a->volumes.all.count + 1, sizeof *all);
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL;)
        all[count++] = v;
    for (size_t i = 0; i < count; i++) /* some are forgotten by it */
        look(all[i]);
}

/* ---- from outside ---- */

void agent_volumes_put(const struct agent *a, struct node_report *report)
{
    const size_t most = object_field(&node_report_desc, "volumes")->max; /* of three lists of orders that are as long each */
    const struct agent_volume *v;
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL && report->volumes.count < most;) {
        if (!v->ordered) /* its work is ending still, and nobody asks any more */
            continue;
        struct volume_seen *seen = OBJECT_ADD(node_report, report, volumes);
        OBJECT_TEXT(volume_seen, seen, id, v->id);
        OBJECT_TEXT(volume_seen, seen, place, v->order.place);
        OBJECT_TEXT(volume_seen, seen, disk, v->order.own ? v->order.disk : NULL);
        OBJECT_SET(volume_seen, seen, made, v->done && !v->order.remove);
        OBJECT_SET(volume_seen, seen, gone, v->done && v->order.remove);
        if (v->reason[0] != '\0')
            OBJECT_TEXT(volume_seen, seen, reason, v->reason);
    }
}

bool agent_volumes_use(const struct agent *a, const char *sha256)
{
    const struct agent_volume *v;
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL;)
        if (!v->done && v->order.image.sha256 != NULL && strcmp(v->order.image.sha256, sha256) == 0)
            return true;
    return false;
}

void agent_volumes_stop(struct agent *a)
{
    struct agent_volume *v;
    for (size_t i = 0; (v = map_next(&a->volumes.all, &i)) != NULL;) {
        v->stopping = true;
        if (v->step == VOLUME_IDLE) {
            volume_free(v);
            continue;
        }
        a->closing++;
        if (v->wait != NULL)
            image_cache_cancel(v->wait);
        if (v->child != NULL)
            task_child_ask(v->child);
    }
    map_finish(&a->volumes.all);
}
