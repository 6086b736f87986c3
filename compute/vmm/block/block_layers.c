/* A disk made of layers in the VMM: see block_layers.h. */
#include "compute/vmm/block/block_layers.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/layer_pool_dir.h"
#include "block/layer_source.h"
#include "common/log.h"

enum { FILL_RETRY_MS = 1000, NS_PER_MS = 1000000 };

struct block_layers {
    struct layer_pool *pool;
    struct layer_disk *disk;
    struct io_loop *loop;
    struct io_timer run;
    struct io_timer fill; /* one that is not whole: the filling is begun, or concluded */
    struct io_handler *source_handler;
    int source_fd; /* eventfd: something has come from the source */
    char *source_path, *source_name; /* owned; NULL: none */
    struct error fill_failure;       /* of the last try */
    struct block_file_options options;
    bool looking;  /* nothing is changed: it is opened to be read, and closed again */
    bool released; /* locks on it are nobody's */
};

static bool layers_may_submit(void *arg)
{
    const struct block_layers *l = arg;
    if (l->looking)
        return true;
    if (l->disk == NULL)
        return l->options.may_open == NULL || l->options.may_open(l->options.may_open_arg);
    return block_may_submit(&l->disk->chain->block);
}

static int file_open(void *arg, int fd, const char *name, bool read_only, struct block **ret_block, struct error *err)
{
    struct block_layers *l = arg;
    struct block_file_options options = l->options;
    const char *ending = strrchr(name, '.');
    options.name = name;
    options.read_only = read_only;
    options.unlocked = true; /* the pool locks */
    /* What other hosts reach leaves nothing in this one's page cache, from where it could still be written when the disk is
     * another's: nor the maps. */
    if (options.may_open == NULL)
        options.direct = options.direct && (ending == NULL || strcmp(ending, ".map") != 0);
    int code = block_file_from_fd(fd, &options, l->loop, ret_block, err);
    if (code == 0) {
        (*ret_block)->may_submit = layers_may_submit;
        (*ret_block)->may_submit_arg = l;
    }
    return code;
}

static void layers_run(void *arg)
{
    struct block_layers *l = arg;
    layer_chain_run(l->disk->chain);
}

static void layers_wake(void *arg)
{
    struct block_layers *l = arg;
    io_timer_arm(l->loop, &l->run, 0);
}

static void layers_free(struct block_layers *l)
{
    io_timer_cancel(&l->run);
    io_timer_cancel(&l->fill);
    io_loop_remove(l->loop, l->source_handler);
    close_fd(&l->source_fd);
    layer_pool_dir_destroy(l->pool);
    free(l->source_path);
    free(l->source_name);
    free(l);
}

/* ---- what is missing ---- */

static struct block *source_of(const struct block_layers *l)
{
    return l->disk != NULL && !layer_disk_is_whole(l->disk) ? l->disk->chain->layers[0]->data : NULL;
}

/* Any thread. */
static void source_wake(void *arg)
{
    const struct block_layers *l = arg;
    uint64_t one = 1;
    ssize_t n = write(l->source_fd, &one, sizeof one);
    (void)n; /* EAGAIN: it is awake */
}

static void on_source(void *arg, uint32_t events UNUSED)
{
    struct block_layers *l = arg;
    uint64_t count;
    ssize_t n = read(l->source_fd, &count, sizeof count);
    (void)n;
    if (source_of(l) != NULL)
        layer_source_run(source_of(l));
}

static int source_open(void *arg, const char *name UNUSED, uint64_t size_bytes, struct block **ret_block, struct error *err)
{
    struct block_layers *l = arg;
    const struct layer_source_options options = {.socket_path = l->source_path,
                                                 .export_name = l->source_name,
                                                 .size_bytes = size_bytes,
                                                 .wake = source_wake,
                                                 .wake_arg = l};
    if (l->source_handler == NULL) {
        l->source_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int code = l->source_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd")
                                    : io_loop_add(l->loop, l->source_fd, EPOLLIN, on_source, l, &l->source_handler, err);
        if (code < 0)
            return code;
    }
    return layer_source_open(&options, ret_block, err);
}

static void on_filled(void *arg, int result)
{
    struct block_layers *l = arg;
    if (result == 0) {
        log_info("disk-whole", "disk=%s", l->disk->name);
        return;
    }
    if (result != -EAGAIN && result != -ECANCELED) {
        if (l->fill_failure.code != result)
            log_warning("disk-fill-failed", "disk=%s error=\"%s\"", l->disk->name, strerror(-result));
        error_errno(&l->fill_failure, result, "what has come cannot be kept");
    }
    io_timer_arm(l->loop, &l->fill, (uint64_t)FILL_RETRY_MS * NS_PER_MS);
}

/* A merge is concluded where nothing of the disk is being told of. It opens no file: the layer has been written all along. */
static void fill_ready(void *arg)
{
    struct block_layers *l = arg;
    io_timer_arm(l->loop, &l->fill, 0);
}

static void fill_go_on(void *arg)
{
    struct block_layers *l = arg;
    struct layer_chain *chain = l->disk->chain;
    struct error err;
    if (chain->merge != NULL) {
        layer_merge_conclude(chain);
        return;
    }
    if (source_of(l) == NULL || chain->block.read_only || l->options.on_demand)
        return;
    chain->merge_ready = fill_ready;
    chain->merge_ready_arg = l;
    int code = layer_disk_fill(l->disk, on_filled, l, &err);
    if (code < 0)
        on_filled(l, code);
}

bool block_layers_filling(struct block *b, struct block_layers_fill *ret_fill)
{
    struct block_layers *l = CONTAINER_OF(b, struct layer_chain, block)->released_arg;
    struct block *source = source_of(l);
    const struct layer_merge *merge = source != NULL ? l->disk->chain->merge : NULL;
    uint64_t done = 0, total = 0;
    if (source == NULL)
        return false;
    if (merge != NULL)
        layer_merge_progress(merge, &done, &total);
    *ret_fill = (struct block_layers_fill){.done_bytes = MIN(done * LAYER_CLUSTER_BYTES, source->size_bytes),
                                           .total_bytes = source->size_bytes};
    if (!layer_source_is_stuck(source, &ret_fill->stuck) && merge == NULL)
        ret_fill->stuck = l->fill_failure;
    return true;
}

/* The block has been closed by its device. */
static void layers_released(void *arg)
{
    struct block_layers *l = arg;
    layer_disk_release(l->disk);
    layers_free(l);
}

/* Another process has it still: look at its size, and let go; block_own opens it. */
static int layers_look(struct block_layers *l, const char *name, bool read_only, struct layer_disk **ret_disk,
                       struct error *err)
{
    layer_pool_dir_set_unlocked(l->pool, true);
    l->looking = true;
    int code = layer_disk_open(l->pool, name, true, 0, ret_disk, err);
    layer_pool_dir_set_unlocked(l->pool, false);
    if (code == 0) {
        (*ret_disk)->epoch = l->options.epoch; /* that it is taken under */
        (*ret_disk)->chain->block.read_only = read_only;
        (*ret_disk)->chain->block.lost_with_process = !read_only;
        code = layer_disk_own(*ret_disk, false, err);
    }
    l->looking = false;
    return code;
}

/* The files are locked by somebody. A file server keeps the locks of a host that is gone for as long as it likes; but where
 * they belong to no higher epoch than ours, their owner has been proved to be held for good (docs/ha.md), or was an earlier VMM of
 * this host, of which there is one at a time: the record in the replicated state rules, and we go on without locks. In a migration
 * only where the source has let go of them before they could be ours (block_layers_released); else it is waited for. */
static int locks_pass_over(struct block_layers *l, const char *name, struct error *err)
{
    struct layer_disk *seen;
    layer_pool_dir_set_unlocked(l->pool, true);
    int code = layer_disk_open(l->pool, name, true, 0, &seen, err);
    if (code == 0) {
        uint64_t epoch = layer_chain_top(seen->chain)->header.epoch;
        layer_disk_close(seen);
        /* Of what was released to us nobody else can have had our epoch. */
        if (epoch > l->options.epoch || (l->released && epoch == l->options.epoch))
            code = error_set(err, -ESTALE, ERROR_CONFLICT, "disk %s belongs to epoch %llu; this is %llu", name,
                             (unsigned long long)epoch, (unsigned long long)l->options.epoch);
        else
            log_warning("disk-locks-passed-over", "disk=%s epoch=%llu theirs=%llu", name, (unsigned long long)l->options.epoch,
                        (unsigned long long)epoch);
    }
    if (code < 0)
        layer_pool_dir_set_unlocked(l->pool, false);
    return code;
}

static int layers_own(void *arg, bool own, struct error *err)
{
    struct block_layers *l = arg;
    int code = layer_disk_own(l->disk, own, err);
    if (code == -EBUSY && own && l->released && (code = locks_pass_over(l, l->disk->name, err)) == 0)
        code = layer_disk_own(l->disk, true, err);
    if (code == 0 && own)
        l->released = false; /* by whoever had it before; who has it next may hold it for good reason */
    return code;
}

static int head_path_split(const char *path, char **ret_directory, char **ret_name, struct error *err)
{
    const char *slash = strrchr(path, '/'), *ending = strrchr(path, '.');
    if (slash == NULL || ending == NULL || ending < slash || strcmp(ending, ".disk") != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/path",
                               "a disk with layers is given as <directory>/<name>.disk, not %s", path);
    *ret_directory = xasprintf("%.*s", (int)(slash == path ? 1 : slash - path), path);
    *ret_name = xasprintf("%.*s", (int)(ending - slash - 1), slash + 1);
    return 0;
}

int block_layers_open(const char *path, const struct block_file_options *options, struct io_loop *loop,
                      struct block **ret_block, struct error *err)
{
    CLEANUP_FREE char *directory = NULL, *name = NULL;
    struct layer_disk *disk = NULL;
    int code = head_path_split(path, &directory, &name, err);
    if (code < 0)
        return code;
    struct block_layers *l = NEW(struct block_layers);
    l->loop = loop;
    l->options = *options;
    io_timer_init(&l->run, layers_run, l);
    io_timer_init(&l->fill, fill_go_on, l);
    l->source_fd = -1;
    l->source_path = options->source_path != NULL ? xstrdup(options->source_path) : NULL;
    l->source_name = options->source_name != NULL ? xstrdup(options->source_name) : NULL;
    code = layer_pool_dir_create(directory, file_open, l, &l->pool, err);
    if (code == 0 && l->source_path != NULL && l->source_name != NULL) {
        l->pool->source = source_open;
        l->pool->source_arg = l;
    }
    if (code == 0 && options->may_open != NULL)
        layer_pool_dir_set_guard(l->pool, layers_may_submit, l);
    if (code == 0 && options->unlocked)
        code = layers_look(l, name, options->read_only, &disk, err);
    else if (code == 0)
        code = layer_disk_open(l->pool, name, options->read_only, options->epoch, &disk, err);
    if (code == -EBUSY && !options->unlocked && !options->read_only && options->may_open != NULL && options->epoch != 0)
        code = locks_pass_over(l, name, err);
    if (code == 0 && disk == NULL)
        code = layer_disk_open(l->pool, name, false, options->epoch, &disk, err);
    if (code < 0) {
        layers_free(l);
        return code;
    }
    l->disk = disk;
    disk->chain->wake = layers_wake;
    disk->chain->wake_arg = l;
    disk->chain->own = layers_own;
    disk->chain->released = layers_released;
    disk->chain->released_arg = l;
    *ret_block = &disk->chain->block;
    if (!layer_disk_is_whole(disk))
        io_timer_arm(loop, &l->fill, 0);
    return 0;
}

static struct block_layers *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct layer_chain, block)->released_arg;
}

void block_layers_released(struct block *b)
{
    struct block_layers *l = of_block(b);
    l->released = l->options.unlocked && l->options.may_open != NULL && l->options.epoch != 0;
}

struct layer_disk *block_layers_disk(struct block *b)
{
    return of_block(b)->disk;
}
