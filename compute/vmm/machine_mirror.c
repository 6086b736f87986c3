/* One mirror for each disk at most, below its device; see machine_mirror.h. */
#include "compute/vmm/machine_mirror.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/nbd_client.h"
#include "common/log.h"
#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/machine_changes.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_points.h"

enum { FLUSH_LOOKS = 20 }; /* between flushes of a target while it is copied, so that the last one has little to do */
enum { LOOK_MS = 50, NS_PER_MS = 1000000, LINK_TIMEOUT_MS = 10000, LINK_RECONNECT_MS = 5000 };
enum { CUT_LOOKS = 200 }; /* looks at a replica that find nothing under way, from one cut of the map of changes to the next */
enum { DEVICE_WAITS_MS = 4000 }; /* that a write of the guest's waits for the other host; then the mirror has failed */

struct machine_mirror {
    struct machine *machine;
    struct machine_slot *slot;
    struct block_mirror *mirror; /* NULL: it is over */
    struct block *target;        /* owned, until the device has it */
    bool is_remote, is_held;
    bool is_replica;             /* is_remote, for good */
    int link_fd;                 /* of a replica: the target's socket once more, to end its link without any lock; -1 */
    char keep[64];               /* of a replica: name of the state that it was last known to have */
    uint8_t cut;                 /* and which one that is to be, once a flush of it lasts */
    bool is_guarded, lasts;
    unsigned waits_ms;           /* that the guest waits for an answer at most */
    uint64_t copied_bytes;       /* as of the last look */
    uint64_t bytes_per_s;        /* that are copied at most; 0: as fast as it goes */
    struct vmm_disk to;          /* of a move */
    uint64_t held_at_us;
    int wake_fd;                 /* the NBD client's thread writes to it */
    struct io_handler *wake;
    struct io_timer look;
    uint64_t oldest;             /* request of the device's that waited for the target at the last look; 0: none */
    unsigned oldest_ms;          /* and how long it had */
    struct block_request flush;  /* of the target, while it is copied */
    bool is_flushing;
    int flush_failed;            /* what one of them said: the file would not say it again */
    unsigned looks;
    struct mirror_progress last; /* once it is over */
    char failure[256];
};

static struct blk *blk_of(const struct machine_mirror *mm)
{
    return blk_of_virtio(mm->slot->virtio);
}

/* ---- on the I/O thread, or with its lock ---- */

static void target_run(struct machine_mirror *mm)
{
    if (mm->is_remote && mm->target != NULL)
        nbd_client_run(mm->target);
}

static void on_wake(void *arg, uint32_t events UNUSED)
{
    struct machine_mirror *mm = arg;
    uint64_t count;
    (void)!read(mm->wake_fd, &count, sizeof(count));
    target_run(mm);
}

/* The NBD client's thread. */
static void wake(void *arg)
{
    const struct machine_mirror *mm = arg;
    uint64_t one = 1;
    (void)!write(mm->wake_fd, &one, sizeof(one));
}

static void on_control_look(void *arg);

static void limit_renew(struct machine_mirror *mm)
{
    if (mm->bytes_per_s != 0)
        block_mirror_allow(mm->mirror, MAX(mm->bytes_per_s * LOOK_MS / 1000, UINT64_C(1)));
}

/* A target that is silent must not hold the guest for as long as a link may be silent before it counts as lost. */
static void silence_look(struct machine_mirror *mm)
{
    uint64_t oldest = block_mirror_oldest(mm->mirror), copied = block_mirror_progress(mm->mirror).copied_bytes;
    bool same = oldest != 0 && oldest == mm->oldest && copied == mm->copied_bytes;
    mm->oldest_ms = same ? mm->oldest_ms + LOOK_MS : 0;
    mm->oldest = oldest;
    mm->copied_bytes = copied;
    if (mm->is_remote && mm->oldest_ms >= mm->waits_ms)
        nbd_client_break(mm->target);
}

static void on_flushed(struct block_request *request, int result)
{
    struct machine_mirror *mm = CONTAINER_OF(request, struct machine_mirror, flush);
    mm->is_flushing = false;
    if (result < 0 && result != -EAGAIN)
        mm->flush_failed = result;
}

/* What is copied would gather in the page cache, and the guest would wait for all of it when the move ends. */
static void target_flush(struct machine_mirror *mm)
{
    if (mm->is_remote || mm->is_held || mm->is_flushing || ++mm->looks % FLUSH_LOOKS != 0)
        return;
    mm->flush = (struct block_request){.op = BLOCK_FLUSH, .done = on_flushed};
    mm->is_flushing = true;
    int code = block_submit(mm->target, &mm->flush);
    if (code < 0)
        on_flushed(&mm->flush, code);
}

static void on_lasts(struct block_request *request, int result)
{
    struct machine_mirror *mm = CONTAINER_OF(request, struct machine_mirror, flush);
    struct machine_changes *changes = mm->slot->changes;
    mm->is_flushing = false;
    mm->lasts = mm->lasts || result == 0;
    if (result == 0 && changes != NULL && mm->cut != 0)
        changed_map_keep(&changes->map, mm->keep, mm->cut);
    if (result == 0)
        mm->cut = 0;
}

/* What the guest was told lasts on both sides: then what it writes from @cut on is all that the replica may lack, whatever comes. */
static void replica_flush(struct machine_mirror *mm)
{
    mm->flush = (struct block_request){.op = BLOCK_FLUSH, .done = on_lasts};
    mm->is_flushing = true;
    int code = block_submit(block_mirror_front(mm->mirror), &mm->flush);
    if (code < 0)
        on_lasts(&mm->flush, code);
}

/* A new cut can be made at a moment when nothing is under way to the replica. */
static void replica_look(struct machine_mirror *mm)
{
    if (!mm->is_guarded || mm->is_flushing || block_mirror_progress(mm->mirror).state == MIRROR_FAILED)
        return;
    bool is_quiet = block_mirror_front(mm->mirror)->in_flight == 0 && ++mm->looks % CUT_LOOKS == 0;
    if (mm->lasts && !is_quiet)
        return;
    if (is_quiet && mm->slot->changes != NULL)
        mm->cut = changed_map_cut(&mm->slot->changes->map);
    replica_flush(mm);
}

/* Now and then: a lease may have come back, and what is level is taken over on the control loop. */
static void on_look(void *arg)
{
    struct machine_mirror *mm = arg;
    if (mm->mirror == NULL)
        return;
    limit_renew(mm);
    silence_look(mm);
    block_mirror_run(mm->mirror);
    target_flush(mm);
    if (mm->is_replica)
        replica_look(mm);
    if (!mm->is_remote && !mm->is_held && block_mirror_progress(mm->mirror).state != MIRROR_COPYING)
        io_loop_post(mm->machine->control, on_control_look, mm->machine);
    io_timer_arm(mm->machine->io, &mm->look, (uint64_t)LOOK_MS * NS_PER_MS);
}

/* The filter goes, and the mirror; the target is closed unless the device has it by now. Another host's has been flushed
 * where it is still wanted: its answers are not waited for any more. */
static void mirror_end(struct machine_mirror *mm)
{
    struct blk *blk = blk_of(mm);
    if (mm->mirror == NULL)
        return;
    if (mm->is_remote && mm->target != NULL)
        nbd_client_break(mm->target);
    block_drain(blk_top(blk));
    mm->last = block_mirror_progress(mm->mirror);
    blk_set_filter(blk, NULL, NULL, NULL);
    block_mirror_destroy(TAKE_PTR(mm->mirror));
    io_timer_cancel(&mm->look);
    ASSERT(!mm->is_flushing || (mm->target != NULL && !mm->is_replica));
    block_close(TAKE_PTR(mm->target));
    io_loop_remove(mm->machine->io, TAKE_PTR(mm->wake));
}

static void on_leaving(void *arg, struct blk *blk UNUSED)
{
    struct machine_mirror *mm = arg;
    mirror_end(mm);
    if (mm->last.state != MIRROR_FAILED)
        snprintf(mm->failure, sizeof(mm->failure), "the disk was taken away");
}

/* ---- beginning ---- */

void machine_mirror_free(struct machine_mirror *mm)
{
    if (mm == NULL)
        return;
    ASSERT(mm->mirror == NULL);
    close_fd(&mm->wake_fd);
    close_fd(&mm->link_fd);
    object_clear(&vmm_disk_desc, &mm->to);
    free(mm);
}

static int slot_check(struct machine *m, struct machine_slot *slot, struct error *err)
{
    if (slot->detached)
        return error_set(err, -ENODEV, ERROR_CONFLICT, "disk %s has been taken away by force", slot->id);
    if (slot->disk.read_only)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "disk %s is only read; give the VM another one instead", slot->id);
    struct point_report points = machine_points_report(m);
    if (points.busy || points.merging) /* they hold on to the disk's layers */
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a snapshot of the VM is being made or removed; try again when it is");
    pthread_mutex_lock(&m->device_lock);
    bool has_filter = blk_of_virtio(slot->virtio)->filter != NULL;
    pthread_mutex_unlock(&m->device_lock);
    return has_filter ? error_set(err, -EBUSY, ERROR_CONFLICT, "disk %s is being backed up or moved; wait for its end", slot->id)
                      : 0;
}

/* The newest of the disk's layers that the target has, too. -ESTALE: it has none. */
static int layer_shared(const struct machine_mirror *mm, const struct vmm_migration_disk *disk, int *ret_above)
{
    if (mm->slot->disk.format != disk_format_LAYERS)
        return -ESTALE;
    struct layer_disk *layers = block_layers_disk(blk_of(mm)->block);
    if (disk->since != NULL)
        return layer_disk_since(layers, disk->since, ret_above);
    const struct layer *lowest = layers->chain->layers[0];
    *ret_above = 0;
    return lowest->map_file == NULL && strcmp(lowest->name, disk->base) == 0 ? 0 : -ESTALE;
}

/* @disk NULL, or without layers of its own: the target is all zeroes. With a base that is not this disk's it may be anything. */
static int marks_make(struct machine_mirror *mm, const struct vmm_migration_disk *disk, struct error *err)
{
    struct block *block = blk_of(mm)->block;
    uint64_t first = 0, count;
    enum layer_state state;
    int above, code;
    if (disk == NULL || (disk->since == NULL && disk->base == NULL)) {
        code = block_mirror_mark_data(mm->mirror);
        return code < 0 ? error_errno(err, code, "cannot tell where disk %s has data", mm->slot->id) : 0;
    }
    if (layer_shared(mm, disk, &above) < 0) {
        if (disk->since != NULL)
            return error_set_field(err, -EINVAL, ERROR_INVALID, "/disks", "disk %s has no layer %.40s", mm->slot->id, disk->since);
        block_mirror_mark(mm->mirror, 0, block->size_bytes);
        return 0;
    }
    for (; layer_chain_changed(block_layers_disk(block)->chain, above, first, &first, &count, &state); first += count)
        block_mirror_mark(mm->mirror, first * LAYER_CLUSTER_BYTES, count * LAYER_CLUSTER_BYTES);
    return 0;
}

/* What the replica may lack; and from here on it is known what is written. Nothing is under way. */
static int replica_marks_make(struct machine_mirror *mm, const struct vmm_replica_order *order, struct error *err)
{
    struct block *block = blk_of(mm)->block;
    struct machine_slot *slot = mm->slot;
    int base = -1, code = 0;
    if (slot->changes == NULL)
        slot->changes = machine_changes_begin(&slot->disk, block);
    if (slot->changes != NULL) {
        mm->cut = changed_map_cut(&slot->changes->map);
        base = order->base != NULL ? changed_map_find(&slot->changes->map, order->base) : -1;
    }
    if (base < 0 && order->empty) {
        code = block_mirror_mark_data(mm->mirror);
        return code < 0 ? error_errno(err, code, "cannot tell where disk %s has data", slot->id) : 0;
    }
    for (uint64_t from = 0, end; from < block->size_bytes; from = end) {
        bool changed = true;
        end = block->size_bytes;
        if (base >= 0)
            changed = changed_map_since(&slot->changes->map, (uint8_t)base, from, &end);
        end = MIN(end, block->size_bytes);
        if (changed)
            block_mirror_mark(mm->mirror, from, end - from);
    }
    return 0;
}

/* Between device and disk, and copying. With the device lock held; @mm has its target. */
static int mirror_put(struct machine_mirror *mm, const struct vmm_migration_disk *disk, const struct vmm_replica_order *replica,
                      struct error *err)
{
    struct blk *blk = blk_of(mm);
    struct block_mirror_options options = {.source = blk->block, .target = mm->target};
    int code = block_mirror_create(&options, &mm->mirror, err);
    block_drain(blk_top(blk));
    if (code == 0)
        code = replica != NULL ? replica_marks_make(mm, replica, err) : marks_make(mm, disk, err);
    if (code < 0) {
        block_mirror_destroy(TAKE_PTR(mm->mirror));
        return code;
    }
    blk_set_filter(blk, block_mirror_front(mm->mirror), on_leaving, mm);
    limit_renew(mm);
    block_mirror_run(mm->mirror);
    io_timer_arm(mm->machine->io, &mm->look, (uint64_t)LOOK_MS * NS_PER_MS);
    return 0;
}

static struct machine_mirror *mirror_new(struct machine *m, struct machine_slot *slot, bool is_remote)
{
    struct machine_mirror *mm = NEW(struct machine_mirror);
    mm->machine = m;
    mm->slot = slot;
    mm->is_remote = is_remote;
    mm->waits_ms = DEVICE_WAITS_MS;
    mm->wake_fd = mm->link_fd = -1;
    io_timer_init(&mm->look, on_look, mm);
    return mm;
}

/* @mm is the slot's from here on, whatever comes of it; the last one goes. */
static int mirror_start(struct machine_mirror *mm, const struct vmm_migration_disk *disk, const struct vmm_replica_order *replica,
                        struct error *err)
{
    struct machine *m = mm->machine;
    pthread_mutex_lock(&m->device_lock);
    int code = mirror_put(mm, disk, replica, err);
    if (code < 0) {
        block_close(TAKE_PTR(mm->target));
        io_loop_remove(m->io, TAKE_PTR(mm->wake));
    }
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0) {
        machine_mirror_free(mm);
        return code;
    }
    machine_mirror_free(mm->slot->mirror);
    mm->slot->mirror = mm;
    log_info("disk-mirror", "vm=%s disk=%s to=%s", m->config->name, mm->slot->id, mm->is_remote ? "another host" : mm->to.path);
    return 0;
}

int machine_mirror_move(struct machine *m, struct machine_slot *slot, const struct vmm_disk *to, struct error *err)
{
    int code = machine_changeable(m, err);
    if (code == 0)
        code = machine_fill_check(m, err);
    if (code == 0)
        code = slot_check(m, slot, err);
    if (code < 0)
        return code;
    struct machine_mirror *mm = mirror_new(m, slot, false);
    object_copy(&vmm_disk_desc, &mm->to, to);
    pthread_mutex_lock(&m->device_lock);
    code = machine_slot_open_disk(m, to, &mm->target, err);
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0) {
        machine_mirror_free(mm);
        return code;
    }
    return mirror_start(mm, NULL, NULL, err);
}

int machine_mirror_link(struct machine *m, const struct vmm_migration_disk *disk, const char *path,
                        struct machine_mirror **ret_link, struct error *err)
{
    struct machine_mirror *mm = mirror_new(m, NULL, true);
    struct nbd_client_options options = {.socket_path = path,
                                         .export_name = disk->id,
                                         .timeout_ms = LINK_TIMEOUT_MS,
                                         .reconnect_ms = LINK_RECONNECT_MS,
                                         .wake = wake,
                                         .wake_arg = mm};
    mm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = mm->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd") : nbd_client_open(&options, &mm->target, err);
    if (code < 0) {
        error_prefix(err, "disk %s: ", disk->id);
        machine_mirror_free(mm);
        return code;
    }
    *ret_link = mm;
    return 0;
}

static int replica_connect(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    int code = error_errno(err, -errno, "cannot connect to the replica at %s", path);
    close_fd(&fd);
    return code;
}

int machine_mirror_link_replica(struct machine *m, const char *disk, const struct vmm_replica_order *order, struct machine_mirror **ret_link,
                                struct error *err)
{
    struct machine_mirror *mm = mirror_new(m, NULL, true);
    struct nbd_client_options options = {
        .has_fd = true, .export_name = disk, .timeout_ms = order->patience_ms, .wake = wake, .wake_arg = mm};
    mm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = mm->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd") : replica_connect(order->path, err);
    if (code >= 0) {
        options.fd = code;
        mm->link_fd = fcntl(code, F_DUPFD_CLOEXEC, 0);
        code = nbd_client_open(&options, &mm->target, err);
    }
    if (code < 0) {
        error_prefix(err, "disk %s: ", disk);
        machine_mirror_free(mm);
        return code;
    }
    *ret_link = mm;
    return 0;
}

void machine_mirror_unlink(struct machine_mirror *link)
{
    if (link == NULL)
        return;
    nbd_client_break(link->target);
    block_close(TAKE_PTR(link->target));
    machine_mirror_free(link);
}

/* @link is the slot's, or gone. */
static int link_take(struct machine *m, struct machine_slot *slot, struct machine_mirror *link, struct error *err)
{
    int code = slot_check(m, slot, err);
    if (code == 0) {
        pthread_mutex_lock(&m->device_lock);
        code = io_loop_add(m->io, link->wake_fd, EPOLLIN, on_wake, link, &link->wake, err);
        pthread_mutex_unlock(&m->device_lock);
    }
    if (code < 0) {
        machine_mirror_unlink(link);
        return code;
    }
    link->slot = slot;
    return 0;
}

int machine_mirror_begin(struct machine *m, struct machine_slot *slot, struct machine_mirror *link,
                         const struct vmm_migration_disk *disk, uint64_t bytes_per_s, struct error *err)
{
    int code = link_take(m, slot, link, err);
    if (code < 0)
        return code;
    link->bytes_per_s = bytes_per_s;
    return mirror_start(link, disk, NULL, err);
}

int machine_mirror_replicate(struct machine *m, struct machine_slot *slot, struct machine_mirror *link,
                             const struct vmm_replica_order *order, struct error *err)
{
    int code = link_take(m, slot, link, err);
    if (code < 0)
        return code;
    link->is_replica = true;
    link->waits_ms = order->patience_ms;
    snprintf(link->keep, sizeof(link->keep), "%s", order->keep);
    return mirror_start(link, NULL, order, err);
}

/* ---- a move's end (control loop) ---- */

/* With the device lock held, as the next one. Both are the same then, and synced; or negative errno. */
static int move_settle(struct machine_mirror *mm)
{
    struct blk *blk = blk_of(mm);
    block_drain(blk_top(blk));
    int code = block_mirror_settle(mm->mirror);
    if (code == 0 && mm->to.hold)
        code = block_now(blk->block, BLOCK_FLUSH, 0, NULL, 0);
    if (code == 0)
        code = block_now(mm->target, BLOCK_FLUSH, 0, NULL, 0);
    return code == 0 ? mm->flush_failed : code;
}

/* They are. */
static void move_take(struct machine_mirror *mm)
{
    struct blk *blk = blk_of(mm);
    struct block *old = blk->block, *target = TAKE_PTR(mm->target);
    mirror_end(mm);
    blk->block = target;
    block_close(old);
}

static void move_done(struct machine_mirror *mm)
{
    struct vmm_disk *disk = &mm->slot->disk;
    log_info("disk-moved", "vm=%s disk=%s from=%s to=%s copied_bytes=%llu", mm->machine->config->name, mm->slot->id,
             disk->path, mm->to.path, (unsigned long long)mm->last.copied_bytes);
    machine_changes_end(TAKE_PTR(mm->slot->changes), false); /* the next backup reads everything */
    OBJECT_TEXT(vmm_disk, disk, path, mm->to.path);
    OBJECT_SET(vmm_disk, disk, format, mm->to.format);
    OBJECT_SET(vmm_disk, disk, direct, mm->to.direct);
    OBJECT_SET(vmm_disk, disk, engine, mm->to.engine);
    OBJECT_SET(vmm_disk, disk, shared, mm->to.shared); /* who reaches it is the new file's matter, too */
    if (OBJECT_HAS(vmm_disk, &mm->to, epoch))
        OBJECT_SET(vmm_disk, disk, epoch, mm->to.epoch);
}

static void move_failed(struct machine_mirror *mm, int code)
{
    char quoted[300];
    if (mm->failure[0] == '\0')
        snprintf(mm->failure, sizeof(mm->failure), "the new disk failed: %s", strerror(-code));
    log_warning("disk-not-moved", "vm=%s disk=%s to=%s why=%s", mm->machine->config->name, mm->slot->id, mm->to.path,
                log_quote(mm->failure, quoted, sizeof(quoted)));
}

static void move_look(struct machine_mirror *mm)
{
    struct machine *m = mm->machine;
    int code = -EAGAIN;
    pthread_mutex_lock(&m->device_lock);
    enum mirror_state state = mm->mirror != NULL ? block_mirror_progress(mm->mirror).state : MIRROR_COPYING;
    bool is_due = !mm->is_held && (state == MIRROR_FAILED || (state == MIRROR_LEVEL && !mm->to.hold));
    if (is_due)
        code = move_settle(mm);
    if (is_due && code == 0)
        move_take(mm);
    if (is_due && code < 0 && code != -EAGAIN) {
        mirror_end(mm);
        mm->last.state = MIRROR_FAILED;
    }
    pthread_mutex_unlock(&m->device_lock);
    if (is_due && code == 0)
        move_done(mm);
    else if (is_due && code != -EAGAIN)
        move_failed(mm, code);
}

static void on_control_look(void *arg)
{
    struct machine *m = arg;
    for (unsigned i = 0; i < PCI_SLOTS && !m->frozen && !machine_has_ended(m); i++)
        if (m->slots.slots[i].mirror != NULL && !m->slots.slots[i].mirror->is_remote)
            move_look(m->slots.slots[i].mirror);
}

bool machine_mirror_is_held(const struct machine_slot *slot)
{
    return slot->mirror != NULL && slot->mirror->is_held && slot->mirror->mirror != NULL;
}

const char *machine_mirror_path(const struct machine_slot *slot)
{
    const struct machine_mirror *mm = slot->mirror;
    return mm != NULL && mm->mirror != NULL && !mm->is_remote ? mm->to.path : NULL;
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int machine_mirror_hold(struct machine *m, struct machine_slot *slot, struct error *err)
{
    struct machine_mirror *mm = slot->mirror;
    if (machine_mirror_is_held(slot))
        return 0;
    if (mm == NULL || mm->mirror == NULL || mm->is_remote || !mm->to.hold || m->frozen)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "disk %s is not in a move that can be held now", slot->id);
    pthread_mutex_lock(&m->device_lock);
    mm->held_at_us = now_us();
    int code = block_mirror_progress(mm->mirror).state == MIRROR_LEVEL ? move_settle(mm) : -EAGAIN;
    if (code == 0) {
        block_mirror_hold(mm->mirror);
        mm->is_held = true;
    } else if (code != -EAGAIN) {
        mirror_end(mm);
        mm->last.state = MIRROR_FAILED;
    }
    pthread_mutex_unlock(&m->device_lock);
    if (code != 0 && code != -EAGAIN)
        move_failed(mm, code);
    return code == 0 ? 0 : error_set(err, code, ERROR_CONFLICT, "the copies of disk %s are not level: %s", slot->id, strerror(-code));
}

int machine_mirror_take(struct machine *m, struct machine_slot *slot, struct error *err)
{
    if (!machine_mirror_is_held(slot))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "disk %s is not held at the end of a move", slot->id);
    uint64_t held_us = now_us() - slot->mirror->held_at_us;
    pthread_mutex_lock(&m->device_lock);
    move_take(slot->mirror);
    pthread_mutex_unlock(&m->device_lock);
    log_info("disk-taken", "vm=%s disk=%s held_us=%llu", m->config->name, slot->id, (unsigned long long)held_us);
    move_done(slot->mirror);
    return 0;
}

int machine_mirror_cancel(struct machine *m, struct machine_slot *slot, struct error *err)
{
    struct machine_mirror *mm = slot->mirror;
    if (mm == NULL || mm->mirror == NULL || mm->is_remote)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "disk %s is not being moved", slot->id);
    pthread_mutex_lock(&m->device_lock);
    mirror_end(mm);
    pthread_mutex_unlock(&m->device_lock);
    mm->last.state = MIRROR_FAILED;
    snprintf(mm->failure, sizeof(mm->failure), "it was cancelled");
    return 0;
}

/* ---- looking ---- */

bool machine_mirror_progress(struct machine *m, const struct machine_slot *slot, struct mirror_progress *ret_progress,
                             char *ret_failure)
{
    const struct machine_mirror *mm = slot->mirror;
    if (mm == NULL)
        return false;
    pthread_mutex_lock(&m->device_lock);
    *ret_progress = mm->mirror != NULL ? block_mirror_progress(mm->mirror) : mm->last;
    pthread_mutex_unlock(&m->device_lock);
    if (ret_failure != NULL)
        snprintf(ret_failure, sizeof(mm->failure), "%s", mm->failure);
    return true;
}

bool machine_mirror_is_active(const struct machine *m)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].mirror != NULL && m->slots.slots[i].mirror->mirror != NULL)
            return true;
    return false;
}

bool machine_mirror_lets_grow(const struct machine *m, const struct machine_slot *slot)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        const struct machine_mirror *mm = m->slots.slots[i].mirror;
        if (mm != NULL && mm->mirror != NULL && (!mm->is_replica || mm == slot->mirror))
            return false;
    }
    return true;
}

/* Why a mirror to another host has failed, in words. */
static int remote_failed(const struct machine_mirror *mm, int code, struct error *err)
{
    struct error link = {0};
    if (mm->target != NULL)
        (void)nbd_client_state(mm->target, &link);
    return error_set(err, code, ERROR_UNREACHABLE, "disk %s cannot be copied to the target: %s%s%.200s", mm->slot->id, strerror(-code),
                     link.text[0] ? ": " : "", link.text);
}

int machine_mirrors_look(struct machine *m, uint64_t *ret_left, uint64_t *ret_copied, bool *ret_level, struct error *err)
{
    int code = 0;
    *ret_left = *ret_copied = 0;
    *ret_level = true;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_mirror *mm = m->slots.slots[i].mirror;
        if (mm == NULL || !mm->is_remote || mm->is_replica || mm->mirror == NULL)
            continue;
        struct mirror_progress p = block_mirror_progress(mm->mirror);
        *ret_left += p.left_bytes;
        *ret_copied += p.copied_bytes;
        *ret_level &= p.state == MIRROR_LEVEL;
        if (p.state == MIRROR_FAILED)
            code = remote_failed(mm, p.failure, err);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

int machine_mirrors_settle(struct machine *m, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_mirror *mm = m->slots.slots[i].mirror;
        if (mm == NULL || !mm->is_remote || mm->is_replica || mm->mirror == NULL)
            continue;
        block_drain(blk_top(blk_of(mm)));
        code = block_mirror_settle(mm->mirror);
        if (code == 0)
            code = block_now(blk_of(mm)->block, BLOCK_FLUSH, 0, NULL, 0);
        if (code == 0)
            code = block_now(mm->target, BLOCK_FLUSH, 0, NULL, 0);
        if (code < 0)
            code = remote_failed(mm, code, err);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

void machine_mirrors_end(struct machine *m)
{
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct machine_mirror *mm = m->slots.slots[i].mirror;
        if (mm != NULL && mm->is_remote && !mm->is_replica)
            mirror_end(mm);
    }
    pthread_mutex_unlock(&m->device_lock);
}

/* ---- to a replica ---- */

static struct machine_mirror *replica_at(const struct machine *m, unsigned slot)
{
    struct machine_mirror *mm = m->slots.slots[slot].mirror;
    return mm != NULL && mm->is_replica && mm->mirror != NULL ? mm : NULL;
}

int machine_mirrors_replica_look(struct machine *m, unsigned count, bool *ret_level, bool *ret_lasts, struct error *err)
{
    unsigned found = 0;
    int code = 0;
    *ret_level = *ret_lasts = true;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_mirror *mm = replica_at(m, i);
        if (mm == NULL)
            continue;
        struct mirror_progress p = block_mirror_progress(mm->mirror);
        found++;
        *ret_level &= p.state == MIRROR_LEVEL;
        *ret_lasts &= mm->lasts;
        if (p.state == MIRROR_FAILED)
            code = remote_failed(mm, p.failure, err);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code == 0 && found != count ? error_set(err, -ENODEV, ERROR_CONFLICT, "a disk of the VM was taken away") : code;
}

int machine_mirrors_replica_guard(struct machine *m, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_mirror *mm = replica_at(m, i);
        if (mm == NULL || mm->is_guarded)
            continue;
        code = block_mirror_guard(mm->mirror);
        mm->is_guarded = code == 0;
        if (mm->is_guarded)
            replica_flush(mm);
        else
            code = code == -EAGAIN ? 0 : remote_failed(mm, code, err); /* discards are copied just now */
    }
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

/* Whoever drains a disk with the device lock held may be waiting for a replica that is silent: without its link he waits no longer. */
void machine_mirrors_replica_break(struct machine *m)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        const struct machine_mirror *mm = m->slots.slots[i].mirror;
        if (mm != NULL && mm->link_fd >= 0)
            (void)shutdown(mm->link_fd, SHUT_RDWR);
    }
}

void machine_mirrors_replica_end(struct machine *m)
{
    machine_mirrors_replica_break(m);
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (replica_at(m, i) != NULL)
            mirror_end(replica_at(m, i));
    pthread_mutex_unlock(&m->device_lock);
}
