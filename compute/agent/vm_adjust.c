/* See vm_adjust.h. One thing is under way at a time: a request, work in the pool, or a pause before the next look. */
#include "compute/agent/vm_adjust.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/log.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_rbd.h"
#include "compute/agent/tap.h"

enum phase {
    PHASE_REPLICA, PHASE_MOVES, PHASE_WHOLE, PHASE_LEAVE, PHASE_LOOK, PHASE_NETWORK, PHASE_PLUG, PHASE_DISKS, PHASE_SHOW, PHASE_HIDE, PHASE_TIDY,
    PHASE_GROW, PHASE_END
};
#define URL_SIZE 96

struct vm_adjust {
    const struct vm_context *context;
    struct vm_order order;
    char control_path[VM_FILES_CONTROL_PATH_SIZE];
    uid_t user;
    bool jailed;
    int pidfd;
    char *directory; /* of the volume that is being plugged in, as the VMM sees it */
    bool (*decided)(void *arg);
    void (*done)(void *arg, int status, const struct error *err);
    void *arg;

    enum phase phase;
    unsigned at;              /* number of the interface, or index of the disk */
    unsigned lacking;         /* bit: number of an interface */
    uint64_t force_at_ms;     /* of the unplug under way; 0: none is */
    char *used;               /* the file of the disk at hand, as its VMM sees it */
    bool forced, tidied;
    bool grown;               /* the image of the disk at hand is as large as it is to be */
    bool moves_only;
    bool takes;               /* the move at hand: the copy is the disk */
    char *before;             /* and the file that it was before */
    bool leaving;             /* the disks that are being detached come last: a guest may keep them */
    struct error disk_err;    /* of the first disk that was not done; its code 0: none */

    struct http_call *call;
    void (*answered)(struct vm_adjust *, const struct http_answer *);
    struct pool_work work;
    uv_timer_t timer;
    bool working, cancelled;
    int status;
    struct error err;
};

static void next(struct vm_adjust *a);
static void next_disk(struct vm_adjust *a);
static void disk_failed(struct vm_adjust *a, int status);

/* ---- its end ---- */

static void timer_closed(uv_handle_t *handle)
{
    struct vm_adjust *a = handle->data;
    void (*done)(void *arg, int status, const struct error *err) = a->done;
    void *arg = a->arg;
    int status = a->status;
    struct error err = a->err;
    OBJECT_CLEAR(vm_order, &a->order);
    free(a->used);
    free(a->before);
    free(a->directory);
    if (a->pidfd >= 0)
        close(a->pidfd);
    free(a);
    done(arg, status, &err);
}

static void end(struct vm_adjust *a, int status)
{
    a->status = status;
    a->phase = PHASE_END;
    if (!uv_is_closing((uv_handle_t *)&a->timer))
        uv_close((uv_handle_t *)&a->timer, timer_closed);
}

void vm_adjust_cancel(struct vm_adjust *a)
{
    a->cancelled = true;
    if (a->call != NULL)
        http_call_cancel(a->call);
    else if (!a->working) /* it waits */
        end(a, -ECANCELED);
}

/* ---- requests ---- */

static void on_answer(const struct http_answer *answer, void *arg)
{
    struct vm_adjust *a = arg;
    a->call = NULL;
    if (a->cancelled)
        end(a, -ECANCELED);
    else
        a->answered(a, answer);
}

static void ask(struct vm_adjust *a, const char *method, const char *path, const struct bytes_writer *body,
                void (*answered)(struct vm_adjust *, const struct http_answer *))
{
    char url[URL_SIZE];
    snprintf(url, sizeof(url), "http://vmm/v1/vm/%s", path);
    const struct http_call_options options = {
        .method = method,
        .url = url,
        .unix_socket = a->control_path,
        .body = body != NULL ? body->data : NULL,
        .body_size = body != NULL ? body->size : 0,
        .deadline_ms = VM_CONTROL_MS,
        .done = on_answer,
        .arg = a,
    };
    a->answered = answered;
    int r = http_client_start(a->context->http, &options, &a->call, &a->err);
    if (r < 0)
        end(a, r);
}

/* @desc's object as the body. */
static void send_object(struct vm_adjust *a, const char *method, const char *path, const struct object_desc *desc, void *object,
                 void (*answered)(struct vm_adjust *, const struct http_answer *))
{
    struct bytes_writer body = {.data = NULL};
    object_encode(desc, object, &body);
    ask(a, method, path, &body, answered);
    bytes_writer_finish(&body);
    object_clear(desc, object);
}

static bool failed(struct vm_adjust *a, const struct http_answer *answer, const char *what)
{
    if (answer->error == 0 && answer->status / 100 == 2)
        return false;
    const char *why = answer->problem.text[0] != '\0' ? answer->problem.text : "its VMM answers something unknown";
    error_set(&a->err, -EPROTO, ERROR_INTERNAL, "%s: %s", what, why);
    end(a, answer->error != 0 ? answer->error : -EPROTO);
    return true;
}

/* The VMM says no about one disk: the others go on. Where it says nothing it is the end. */
static bool disk_refused(struct vm_adjust *a, const struct http_answer *answer, const char *what)
{
    if (answer->error != 0)
        return failed(a, answer, what);
    if (answer->status / 100 == 2)
        return false;
    error_set(&a->err, -EPROTO, ERROR_INTERNAL, "%s: %s", what,
              answer->problem.text[0] != '\0' ? answer->problem.text : "its VMM answers something unknown");
    disk_failed(a, -EPROTO);
    return true;
}

/* ---- 0: a session with a replica that is over ---- */

/* The last one that nobody counts on any more; 0: none. */
static uint64_t session_over(const struct vm_order *order)
{
    return order->replica_session - (order->replica_session > 0 && order->replica_held);
}

static void on_replica(struct vm_adjust *a, const struct http_answer *answer)
{
    if (answer->status != 404 && failed(a, answer, "its VMM cannot be told that a session with its replica is over")) /* 404: it knows none */
        return;
    a->phase = PHASE_MOVES;
    next(a);
}

static void replica(struct vm_adjust *a)
{
    struct vmm_replica_end order = {.session = 0};
    if (session_over(&a->order) == 0) {
        a->phase = PHASE_MOVES;
        next(a);
        return;
    }
    OBJECT_SET(vmm_replica_end, &order, session, session_over(&a->order));
    send_object(a, "PUT", "replica", &vmm_replica_end_desc, &order, on_replica);
}

/* ---- limits ---- */

bool vm_adjust_limits_same(const struct vmm_limits *a, const struct vmm_limits *b)
{
    return a->operations_per_second == b->operations_per_second && a->operations_burst == b->operations_burst &&
           a->bytes_per_second == b->bytes_per_second && a->bytes_burst == b->bytes_burst;
}

/* All four: what is absent in a patch would stay. */
static void limits_put(struct vmm_limits *to, const struct vmm_limits *from)
{
    OBJECT_SET(vmm_limits, to, operations_per_second, from->operations_per_second);
    OBJECT_SET(vmm_limits, to, operations_burst, from->operations_burst);
    OBJECT_SET(vmm_limits, to, bytes_per_second, from->bytes_per_second);
    OBJECT_SET(vmm_limits, to, bytes_burst, from->bytes_burst);
}

/* ---- 1: interfaces that are there ---- */

static const struct vm_nic *nic_numbered(const struct vm_order *order, unsigned number, size_t *ret_at)
{
    const struct vm_nic *nics = order->nics.items;
    for (size_t i = 0; i < order->nics.count; i++)
        if (nic_number(&nics[i], i) == number) {
            *ret_at = i;
            return &nics[i];
        }
    return NULL;
}

static void look_at_next(struct vm_adjust *a)
{
    a->at++;
    a->force_at_ms = 0;
    a->forced = false;
    next(a);
}

static void on_look_again(uv_timer_t *timer)
{
    next(timer->data);
}

static void on_unplugged(struct vm_adjust *a, const struct http_answer *answer)
{
    if (answer->status != 404 && failed(a, answer, "an interface cannot be unplugged"))
        return;
    uv_timer_start(&a->timer, on_look_again, VM_UNPLUG_ASK_MS, 0);
}

static void unplug(struct vm_adjust *a)
{
    char path[URL_SIZE];
    uint64_t now = uv_now(a->context->loop);
    bool first = a->force_at_ms == 0;
    if (first)
        a->force_at_ms = now + VM_UNPLUG_MS;
    if (!first && now < a->force_at_ms) {
        uv_timer_start(&a->timer, on_look_again, VM_UNPLUG_ASK_MS, 0);
        return;
    }
    a->forced = !first;
    snprintf(path, sizeof(path), "nics/nic%u%s", a->at, a->forced ? "?force=true" : "");
    log_info("nic-unplug", "vm=%s nic=nic%u force=%d", a->order.name, a->at, a->forced);
    ask(a, "DELETE", path, NULL, on_unplugged);
}

static void on_nic_changed(struct vm_adjust *a, const struct http_answer *answer)
{
    if (!failed(a, answer, "the limits of an interface cannot be changed"))
        look_at_next(a);
}

static void nic_change(struct vm_adjust *a, const struct vm_nic *nic)
{
    struct vmm_nic patch = {.tap = NULL};
    char path[URL_SIZE];
    limits_put(&patch.limits, &nic->limits);
    object_mark(&vmm_nic_desc, &patch, "limits");
    snprintf(path, sizeof(path), "nics/nic%u", a->at);
    send_object(a, "PATCH", path, &vmm_nic_desc, &patch, on_nic_changed);
}

static void on_nic(struct vm_adjust *a, const struct http_answer *answer)
{
    size_t i;
    const struct vm_nic *nic = nic_numbered(&a->order, a->at, &i);
    struct vmm_nic_status status = {.rx_frames = 0};
    if (answer->status == 404) {
        a->lacking |= nic != NULL ? 1u << a->at : 0;
        look_at_next(a);
        return;
    }
    if (failed(a, answer, "its VMM does not say which interfaces it has"))
        return;
    if (OBJECT_DECODE(vmm_nic_status, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &status, &a->err) < 0) {
        end(a, -EPROTO);
        return;
    }
    bool same = nic != NULL && (nic->mac == NULL || (status.nic.mac != NULL && strcasecmp(nic->mac, status.nic.mac) == 0));
    bool limits = same && vm_adjust_limits_same(&nic->limits, &status.nic.limits);
    OBJECT_CLEAR(vmm_nic_status, &status);
    if (!same)
        unplug(a);
    else if (!limits)
        nic_change(a, nic);
    else
        look_at_next(a);
}

static void look(struct vm_adjust *a)
{
    char path[URL_SIZE];
    if (a->at > TAP_INDEX_MAX) {
        a->phase = PHASE_NETWORK;
        next(a);
        return;
    }
    snprintf(path, sizeof(path), "nics/nic%u", a->at);
    ask(a, "GET", path, NULL, on_nic);
}

/* ---- 2: the host's side ---- */

static const struct vm_disk *disk_at(const struct vm_adjust *a)
{
    return (const struct vm_disk *)a->order.disks.items + a->at;
}

/* The copy is the disk, and nothing is written to it alone before that is written down. */
static int copy_end(struct vm_adjust *a, const struct vm_disk *disk)
{
    const struct pool_order here = pool_dir_here(a->context->places.vms_dir);
    return pool_dir_copy_end(disk->pool != NULL ? pool_dir_of(&a->order, disk) : &here, a->order.id, disk, &a->err);
}

/* In the pool: what the phase is about. */
static void work_do(struct pool_work *work)
{
    struct vm_adjust *a = CONTAINER_OF(work, struct vm_adjust, work);
    const struct vm_places *places = &a->context->places;
    uid_t user = a->jailed ? a->user : 0;
    if (a->phase == PHASE_NETWORK)
        a->status = vm_files_network(places, &a->order, a->user, &a->err);
    else if (a->phase == PHASE_WHOLE)
        a->status = copy_end(a, disk_at(a));
    else if (a->phase == PHASE_LEAVE)
        a->status = vm_files_hide_old(places, &a->order, a->before, user, a->pidfd, &a->err);
    else if (a->phase == PHASE_TIDY)
        a->status = vm_files_hide_others(places, &a->order, disk_at(a), a->used, user, a->pidfd, &a->err);
    else if (a->phase == PHASE_GROW)
        a->status = pool_rbd_grow(places->rbd_path, pool_dir_of(&a->order, disk_at(a)), disk_at(a)->volume, disk_at(a)->size_bytes, &a->err);
    else if (a->phase == PHASE_SHOW)
        a->status = vm_files_show(places, &a->order, disk_at(a), user, a->pidfd, &a->directory, &a->err);
    else
        a->status = vm_files_hide(places, &a->order, disk_at(a), user, a->pidfd, &a->err);
}

static void volume_plug(struct vm_adjust *a);
static void move_end(struct vm_adjust *a, bool take);
static void move_next(struct vm_adjust *a);

static void work_after(struct pool_work *work)
{
    struct vm_adjust *a = CONTAINER_OF(work, struct vm_adjust, work);
    a->working = false;
    if (a->cancelled || (a->status < 0 && a->phase == PHASE_NETWORK)) {
        end(a, a->cancelled ? -ECANCELED : a->status);
        return;
    }
    if (a->phase == PHASE_WHOLE) {
        move_end(a, a->status == 0);
    } else if (a->phase == PHASE_LEAVE) {
        if (a->status < 0) /* it goes with the VMM */
            log_warning("disk-view", "vm=%s disk=%s error=\"%s, ignoring\"", a->order.name, disk_at(a)->name, a->err.text);
        move_next(a);
    } else if (a->status < 0) {
        disk_failed(a, a->status);
    } else if (a->phase == PHASE_NETWORK) {
        a->phase = PHASE_PLUG;
        a->at = 0;
        next(a);
    } else if (a->phase == PHASE_SHOW) {
        volume_plug(a);
    } else if (a->phase == PHASE_TIDY || a->phase == PHASE_GROW) {
        a->grown = a->phase == PHASE_GROW;
        a->phase = PHASE_DISKS; /* the same disk again */
        next(a);
    } else {
        log_info("disk-unplugged", "vm=%s disk=%s", a->order.name, disk_at(a)->name);
        next_disk(a);
    }
}

static void work_begin(struct vm_adjust *a)
{
    CLEANUP_FREE char *lane = a->phase != PHASE_NETWORK ? pool_work_lane(&a->order.pools) : NULL;
    a->working = true;
    pool_work_begin(a->context->pool_works, a->context->loop, lane, &a->work, work_do, work_after);
}

/* ---- 3: interfaces that are to come ---- */

static void on_plugged(struct vm_adjust *a, const struct http_answer *answer)
{
    if (failed(a, answer, "an interface cannot be plugged in"))
        return;
    log_info("nic-plugged", "vm=%s nic=nic%u", a->order.name, a->at);
    a->at++;
    next(a);
}

static void plug(struct vm_adjust *a)
{
    struct vmm_nic nic = {.tap = NULL};
    size_t i;
    while (a->at <= TAP_INDEX_MAX && !(a->lacking >> a->at & 1))
        a->at++;
    if (a->at > TAP_INDEX_MAX || nic_numbered(&a->order, a->at, &i) == NULL) {
        a->phase = PHASE_DISKS;
        a->at = 0;
        next(a);
        return;
    }
    vm_files_nic(&a->context->places, &a->order, i, &nic);
    send_object(a, "POST", "nics", &vmm_nic_desc, &nic, on_plugged);
}

/* ---- 4: disks ---- */

static void next_disk(struct vm_adjust *a)
{
    a->phase = PHASE_DISKS;
    a->at++;
    a->tidied = a->grown = false;
    a->force_at_ms = 0;
    a->forced = false;
    next(a);
}

/* a->err says why. */
static void disk_failed(struct vm_adjust *a, int status)
{
    if (a->disk_err.code == 0) {
        a->disk_err = a->err;
        a->disk_err.code = status;
    }
    next_disk(a);
}

static void on_disk_changed(struct vm_adjust *a, const struct http_answer *answer)
{
    if (!disk_refused(a, answer, "a disk cannot be changed"))
        next_disk(a);
}

/* ---- volumes that come and go ---- */

static void on_disk_plugged(struct vm_adjust *a, const struct http_answer *answer)
{
    if (disk_refused(a, answer, "a volume cannot be plugged in"))
        return;
    log_info("disk-plugged", "vm=%s disk=%s", a->order.name, disk_at(a)->name);
    next_disk(a);
}

static void volume_plug(struct vm_adjust *a)
{
    struct vmm_disk disk = {.path = NULL};
    vm_files_disk(&a->context->places, &a->order, disk_at(a), a->directory, &disk);
    free(a->directory);
    a->directory = NULL;
    send_object(a, "POST", "disks", &vmm_disk_desc, &disk, on_disk_plugged);
}

/* Its pool first: calls to one whose server is gone would never end. */
static void volume_show(struct vm_adjust *a)
{
    const struct pool_order *pool = pool_dir_of(&a->order, disk_at(a));
    int r = pool == NULL                ? error_set(&a->err, -EINVAL, ERROR_INTERNAL, "the order does not describe the pool of disk %s",
                                                    disk_at(a)->name)
            : a->context->pools != NULL ? pool_watch_there(a->context->pools, pool->id, pool->name, &a->err)
                                        : 0;
    if (r < 0) {
        disk_failed(a, r);
        return;
    }
    a->phase = PHASE_SHOW;
    work_begin(a);
}

static void on_disk_unplugged(struct vm_adjust *a, const struct http_answer *answer)
{
    if (answer->status != 404 && disk_refused(a, answer, "a disk cannot be unplugged"))
        return;
    uv_timer_start(&a->timer, on_look_again, VM_UNPLUG_ASK_MS, 0);
}

/* The VMM has it still. */
static void volume_unplug(struct vm_adjust *a)
{
    const struct vm_disk *disk = disk_at(a);
    char path[URL_SIZE];
    uint64_t now = uv_now(a->context->loop);
    bool first = a->force_at_ms == 0, over = !first && now >= a->force_at_ms;
    if (first)
        a->force_at_ms = now + VM_UNPLUG_MS;
    if (over && (!disk->forced || a->forced)) {
        error_set(&a->err, -EAGAIN, ERROR_TIMEOUT,
                  "the guest has not let go of disk %s yet; unmount it there, or detach the volume with force", disk->name);
        disk_failed(a, -EAGAIN);
        return;
    }
    if (!first && !over) {
        uv_timer_start(&a->timer, on_look_again, VM_UNPLUG_ASK_MS, 0);
        return;
    }
    a->forced = over;
    if (over)
        a->force_at_ms = now + VM_UNPLUG_MS;
    snprintf(path, sizeof(path), "disks/%s%s", disk->name, over ? "?force=true" : "");
    log_info("disk-unplug", "vm=%s disk=%s force=%d", a->order.name, disk->name, over);
    ask(a, "DELETE", path, NULL, on_disk_unplugged);
}

static bool is_decided(const struct vm_adjust *a)
{
    return a->decided == NULL || a->decided(a->arg);
}

static void on_disk(struct vm_adjust *a, const struct http_answer *answer)
{
    const struct vm_disk *disk = disk_at(a);
    struct vmm_disk_status status = {.reads = 0};
    struct vmm_disk patch = {.path = NULL};
    char path[URL_SIZE];
    if (answer->status == 404 && disk->volume == NULL) { /* taken away by hand: not ours to bring back */
        next_disk(a);
        return;
    }
    if (answer->status == 404 && !disk->leaving) {
        volume_show(a);
        return;
    }
    if (answer->status == 404) {
        a->phase = PHASE_HIDE;
        work_begin(a);
        return;
    }
    if (disk_refused(a, answer, "its VMM does not say which disks it has"))
        return;
    if (OBJECT_DECODE(vmm_disk_status, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &status, &a->err) < 0) {
        end(a, -EPROTO);
        return;
    }
    if ((disk->volume != NULL || !disk->read_only) && !a->tidied && is_decided(a)) { /* what a move has left in its view */
        free(a->used);
        a->used = status.disk.path != NULL ? xstrdup(status.disk.path) : NULL;
        OBJECT_CLEAR(vmm_disk_status, &status);
        a->tidied = true;
        a->phase = PHASE_TIDY;
        work_begin(a);
        return;
    }
    char place[37];
    const char *there = status.disk.path != NULL ? vm_files_place_of(disk, status.disk.path, place) : disk->place;
    if (is_decided(a) && status.move.path == NULL && !disk->leaving && !status.detached && !text_same(there, disk->place)) {
        error_set(&a->err, -ESTALE, ERROR_CONFLICT,
                  "its VMM has disk %s at %.200s, and the cluster says that it is elsewhere (place %s), perhaps for what it knew of a move is "
                  "lost: do not stop it before what it has is backed up", disk->name, status.disk.path,
                  disk->place != NULL ? disk->place : "none");
        OBJECT_CLEAR(vmm_disk_status, &status);
        disk_failed(a, -ESTALE);
        return;
    }
    bool grows = disk->volume != NULL && status.disk.size_bytes < disk->size_bytes, detached = status.detached;
    bool same = status.disk.on_disk_error == disk->on_disk_error && vm_adjust_limits_same(&status.disk.limits, &disk->limits) && !grows;
    OBJECT_CLEAR(vmm_disk_status, &status);
    if (disk->leaving && !detached) {
        volume_unplug(a);
        return;
    }
    if (disk->leaving) { /* its files are closed; the guest keeps a dead device until it looks */
        a->phase = PHASE_HIDE;
        work_begin(a);
        return;
    }
    if (detached && disk->volume != NULL) {
        error_set(&a->err, -EBUSY, ERROR_CONFLICT,
                  "disk %s was taken away by force, and the guest keeps the dead device; reboot the VM to have it again", disk->name);
        disk_failed(a, -EBUSY);
        return;
    }
    if (same) {
        next_disk(a);
        return;
    }
    if (grows && !a->grown && pool_rbd_is(pool_dir_of(&a->order, disk))) { /* its VMM only looks at how large it is */
        a->phase = PHASE_GROW;
        work_begin(a);
        return;
    }
    limits_put(&patch.limits, &disk->limits);
    object_mark(&vmm_disk_desc, &patch, "limits");
    OBJECT_SET(vmm_disk, &patch, on_disk_error, disk->on_disk_error); /* no-space is 0, and where it is not given */
    if (grows)
        OBJECT_SET(vmm_disk, &patch, size_bytes, disk->size_bytes);
    snprintf(path, sizeof(path), "disks/%s", disk->name);
    send_object(a, "PATCH", path, &vmm_disk_desc, &patch, on_disk_changed);
}

static void disks(struct vm_adjust *a)
{
    char path[URL_SIZE];
    while (a->at < a->order.disks.count && disk_at(a)->leaving != a->leaving)
        a->at++;
    if (a->at >= a->order.disks.count && !a->leaving) {
        a->leaving = true;
        a->at = 0;
        next(a);
        return;
    }
    if (a->at >= a->order.disks.count) {
        a->err = a->disk_err;
        end(a, a->disk_err.code);
        return;
    }
    snprintf(path, sizeof(path), "disks/%s", disk_at(a)->name);
    ask(a, "GET", path, NULL, on_disk);
}

/* ---- 0: moves of disks that come to their end ---- */

static void move_next(struct vm_adjust *a)
{
    a->phase = PHASE_MOVES;
    a->at++;
    next(a);
}

/* Where it has not been heard it is said again by the next run, which this one's failure brings. */
static void on_move_ended(struct vm_adjust *a, const struct http_answer *answer)
{
    if (answer->error != 0 || answer->status / 100 != 2) {
        error_set(&a->disk_err, -EAGAIN, ERROR_CONFLICT, "the move of disk %s cannot be ended: %.300s", disk_at(a)->name,
                  answer->problem.text[0] != '\0' ? answer->problem.text : "its VMM does not answer");
    } else if (a->takes && a->before != NULL) {
        a->phase = PHASE_LEAVE;
        work_begin(a);
        return;
    }
    move_next(a);
}

static void move_end(struct vm_adjust *a, bool take)
{
    struct vmm_disk_move_end end = {.path = NULL};
    char path[URL_SIZE];
    log_info("disk-move-ends", "vm=%s disk=%s to=%s taken=%d", a->order.name, disk_at(a)->name, a->used, take);
    if (!take && a->takes) { /* that it is whole could not be written down: again, with the next run */
        a->disk_err = a->err;
        a->disk_err.code = -EAGAIN;
        move_next(a);
        return;
    }
    OBJECT_TEXT(vmm_disk_move_end, &end, path, a->used);
    OBJECT_SET(vmm_disk_move_end, &end, take, take);
    snprintf(path, sizeof path, "disks/%s/move", disk_at(a)->name);
    send_object(a, "PUT", path, &vmm_disk_move_end_desc, &end, on_move_ended);
}

/* One is under way, and nobody is at it any more: by the order the copy is the volume, or is not. That it is whole is written down before
 * anything is written to it alone. */
static void on_move_seen(struct vm_adjust *a, const struct http_answer *answer)
{
    const struct vm_disk *disk = disk_at(a);
    struct vmm_disk_status status = {.reads = 0};
    struct error err;
    if (answer->error != 0 || answer->status != 200 ||
        OBJECT_DECODE(vmm_disk_status, (const char *)answer->body, answer->body_size, OBJECT_LENIENT, &status, &err) < 0 ||
        status.move.path == NULL || !is_decided(a)) {
        OBJECT_CLEAR(vmm_disk_status, &status);
        move_next(a);
        return;
    }
    const struct pool_order *pool = pool_dir_of(&a->order, disk);
    a->takes = status.move.state == vmm_disk_move_state_HELD && disk->place != NULL && strstr(status.move.path, disk->place) != NULL &&
               (disk->pool == NULL || pool != NULL);
    free(a->used);
    free(a->before);
    a->used = xstrdup(status.move.path);
    a->before = status.disk.path != NULL ? xstrdup(status.disk.path) : NULL;
    OBJECT_CLEAR(vmm_disk_status, &status);
    if (!a->takes) {
        move_end(a, false);
        return;
    }
    if (pool != NULL && a->context->pools != NULL && pool_watch_there(a->context->pools, pool->id, pool->name, &a->err) < 0) {
        move_end(a, false);
        return;
    }
    a->phase = PHASE_WHOLE;
    work_begin(a);
}

/* First of all: a guest may be waiting, and what is wrong with a network or another disk is nothing to it. */
static void moves(struct vm_adjust *a)
{
    char path[URL_SIZE];
    while (a->at < a->order.disks.count && disk_at(a)->volume == NULL && disk_at(a)->read_only) /* that are never moved */
        a->at++;
    if (a->at >= a->order.disks.count && a->moves_only) {
        a->err = a->disk_err;
        end(a, a->disk_err.code);
        return;
    }
    if (a->at >= a->order.disks.count) {
        a->phase = PHASE_LOOK;
        a->at = 0;
        next(a);
        return;
    }
    snprintf(path, sizeof(path), "disks/%s", disk_at(a)->name);
    ask(a, "GET", path, NULL, on_move_seen);
}

/* ---- from outside ---- */

static void next(struct vm_adjust *a)
{
    static void (*const phases[])(struct vm_adjust *) = {
        [PHASE_REPLICA] = replica, [PHASE_MOVES] = moves, [PHASE_LOOK] = look, [PHASE_NETWORK] = work_begin, [PHASE_PLUG] = plug, [PHASE_DISKS] = disks};
    phases[a->phase](a);
}

static void on_start(uv_timer_t *timer)
{
    next(timer->data);
}

static bool has_disk(const struct vm_order *order, const char *name)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (strcmp(disks[i].name, name) == 0)
            return true;
    return false;
}

/* @disk of @from, as one that leaves. */
static void add_leaving(struct vm_order *to, const struct vm_order *from, const struct vm_disk *disk)
{
    const struct pool_order *pool = pool_dir_of(from, disk);
    struct vm_disk *leaves = OBJECT_ADD(vm_order, to, disks);
    OBJECT_COPY(vm_disk, leaves, disk);
    OBJECT_SET(vm_disk, leaves, leaving, true);
    OBJECT_SET(vm_disk, leaves, forced, true);
    if (pool != NULL && pool_dir_of(to, disk) == NULL)
        OBJECT_COPY(pool_order, (struct pool_order *)OBJECT_ADD(vm_order, to, pools), pool);
}

void vm_adjust_dropped(const struct vm_order *before, const struct vm_order *after, struct vm_order *dropped)
{
    const struct vm_disk *disks = before->disks.items;
    for (size_t i = 0; i < before->disks.count; i++)
        if (disks[i].volume != NULL && !has_disk(after, disks[i].name) && !has_disk(dropped, disks[i].name))
            add_leaving(dropped, before, &disks[i]);
}

struct vm_adjust *vm_adjust_start(const struct vm_adjust_options *options)
{
    const struct vm_disk *dropped = options->dropped->disks.items;
    struct vm_adjust *a = NEW(struct vm_adjust);
    a->context = options->context;
    OBJECT_COPY(vm_order, &a->order, options->order);
    for (size_t i = 0; i < options->dropped->disks.count; i++)
        if (!has_disk(&a->order, dropped[i].name)) /* or it was wanted again meanwhile */
            add_leaving(&a->order, options->dropped, &dropped[i]);
    snprintf(a->control_path, sizeof(a->control_path), "%s", options->control_path);
    a->user = options->user;
    a->jailed = options->jailed;
    a->pidfd = options->pidfd >= 0 ? fcntl(options->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
    a->decided = options->decided;
    a->moves_only = options->moves_only;
    a->done = options->done;
    a->arg = options->arg;
    uv_timer_init(a->context->loop, &a->timer);
    a->timer.data = a;
    uv_timer_start(&a->timer, on_start, 0, 0);
    return a;
}

static bool same_list(const struct object_desc *desc, const struct object_list *a, const struct object_list *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; same && i < a->count; i++)
        same = object_equal(desc, (const char *)a->items + i * desc->size, (const char *)b->items + i * desc->size);
    return same;
}

bool vm_adjust_needed(const struct vm_order *before, const struct vm_order *after)
{
    return !same_list(&vm_nic_desc, &before->nics, &after->nics) || !same_list(&vm_disk_desc, &before->disks, &after->disks) ||
           session_over(before) != session_over(after);
}
