/* A disk behind a connection: see block_nbd.h. */
#include "compute/vmm/block/block_nbd.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/nbd_client.h"

enum { LEAVE_WAIT_MS = 20000, BLOCK_BYTES = 4096 };

struct block_nbd {
    struct block block;
    struct block_nbd_options options;
    struct block *link; /* NULL: the disk is not ours */
    char *path;
    struct io_loop *loop;
    struct io_handler *handler;
    int wake_fd; /* eventfd: something has come */
};

/* One of the device's, handed on. */
struct nbd_handed {
    struct block_request request;
    struct block_request *from;
    struct block_nbd *of;
};

static struct block_nbd *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct block_nbd, block);
}

static void handed_done(struct block_request *request, int result)
{
    struct nbd_handed *h = CONTAINER_OF(request, struct nbd_handed, request);
    struct block_request *from = h->from;
    struct block_nbd *n = h->of;
    free(h);
    from->result = result;
    block_complete(&n->block, from);
}

static int nbd_submit(struct block *block, struct block_request *from)
{
    struct block_nbd *n = of_block(block);
    if (n->link == NULL)
        return -ENOTCONN;
    struct nbd_handed *h = NEW(struct nbd_handed);
    *h = (struct nbd_handed){.request = {.op = from->op,
                                         .may_unmap = from->may_unmap,
                                         .offset = from->offset,
                                         .size = from->size,
                                         .iovecs = from->iovecs,
                                         .iovec_count = from->iovec_count,
                                         .done = handed_done},
                             .from = from,
                             .of = n};
    int code = block_submit(n->link, &h->request);
    if (code < 0)
        free(h);
    return code;
}

static void nbd_drain(struct block *block)
{
    if (of_block(block)->link != NULL)
        block_drain(of_block(block)->link);
}

/* ---- the connection ---- */

/* Any thread. */
static void link_wake(void *arg)
{
    const struct block_nbd *n = arg;
    uint64_t one = 1;
    ssize_t written = write(n->wake_fd, &one, sizeof one);
    (void)written; /* EAGAIN: it is awake */
}

static void on_wake(void *arg, uint32_t events UNUSED)
{
    struct block_nbd *n = arg;
    uint64_t count;
    ssize_t got = read(n->wake_fd, &count, sizeof count);
    (void)got;
    if (n->link != NULL)
        nbd_client_run(n->link);
}

static bool link_may_submit(void *arg)
{
    const struct block_nbd *n = arg;
    return block_may_submit(&n->block);
}

static int link_open(struct block_nbd *n, struct error *err)
{
    const struct nbd_client_options options = {.socket_path = n->path,
                                               .read_only = n->options.read_only,
                                               .patient = true,
                                               .durable = true,
                                               .wake = link_wake,
                                               .wake_arg = n};
    int code = nbd_client_open(&options, &n->link, err);
    if (code < 0) {
        n->link = NULL;
        return code;
    }
    n->link->may_submit = link_may_submit;
    n->link->may_submit_arg = n;
    return 0;
}

/* Is it what its guest has been told that it is? */
static int link_check(const struct block_nbd *n, struct error *err)
{
    const struct block *b = &n->block, *link = n->link;
    if (link->size_bytes < b->size_bytes)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the disk has %llu bytes, not %llu", (unsigned long long)link->size_bytes,
                         (unsigned long long)b->size_bytes);
    if (link->read_only == b->read_only && link->can_discard >= b->can_discard && link->can_write_zeroes >= b->can_write_zeroes)
        return 0;
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the server of the disk cannot do what the one before it could");
}

static int nbd_own(struct block *block, bool own, struct error *err)
{
    struct block_nbd *n = of_block(block);
    int code = 0;
    if (!own && n->link != NULL) {
        code = nbd_client_leave(n->link, LEAVE_WAIT_MS, err);
        n->link = NULL;
    } else if (own && n->link == NULL && link_open(n, err) < 0) {
        code = -EBUSY; /* the server is not there yet, or cannot have it yet: a guest that has been handed over is worth the wait */
        if (err != NULL)
            err->code = code;
    } else if (own && (code = link_check(n, err)) < 0) {
        block_close(n->link);
        n->link = NULL;
    }
    return code;
}

void block_nbd_give_up(struct block *block)
{
    if (of_block(block)->link != NULL)
        nbd_client_break(of_block(block)->link);
}

static int nbd_grow(struct block *block, uint64_t size_bytes, struct error *err)
{
    struct block_nbd *n = of_block(block);
    int code = n->link == NULL ? error_set(err, -EBUSY, ERROR_CONFLICT, "the disk is on its way to another VMM")
               : n->link->size_bytes < size_bytes ? block_grow(n->link, size_bytes, err)
                                                  : 0;
    if (code == 0)
        block->size_bytes = size_bytes;
    return code;
}

static void nbd_close(struct block *block)
{
    struct block_nbd *n = of_block(block);
    if (n->link != NULL && nbd_client_state(n->link, NULL) != NBD_CLIENT_UP)
        nbd_client_break(n->link); /* it need not wait for a greeting */
    block_close(n->link);
    io_loop_remove(n->loop, n->handler);
    close_fd(&n->wake_fd);
    free(n->path);
    free(n);
}

/* No next_data: to ask the server would be to wait for it, with all of the machine. */
static const struct block_ops nbd_ops = {.submit = nbd_submit,
                                         .drain = nbd_drain,
                                         .own = nbd_own,
                                         .close = nbd_close,
                                         .grow = nbd_grow};

int block_nbd_open(const char *path, const struct block_nbd_options *options, struct io_loop *loop, struct block **ret_block,
                   struct error *err)
{
    if (options->unowned && options->size_bytes == 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/size_bytes", "is needed of a disk that another process has still");
    struct block_nbd *n = NEW(struct block_nbd);
    n->options = *options;
    n->path = xstrdup(path);
    n->loop = loop;
    n->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    n->block = (struct block){.ops = &nbd_ops,
                              .size_bytes = options->size_bytes,
                              .block_bytes = BLOCK_BYTES,
                              .read_only = options->read_only,
                              .can_discard = !options->read_only,
                              .can_write_zeroes = !options->read_only};
    int code = n->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd")
                              : io_loop_add(loop, n->wake_fd, EPOLLIN, on_wake, n, &n->handler, err);
    if (code == 0 && !options->unowned && (code = link_open(n, err)) == 0) {
        const struct block *link = n->link;
        n->block.size_bytes = link->size_bytes;
        n->block.read_only = link->read_only;
        n->block.can_discard = link->can_discard && !link->read_only;
        n->block.can_write_zeroes = link->can_write_zeroes && !link->read_only;
    }
    if (code < 0) {
        nbd_close(&n->block);
        return code;
    }
    *ret_block = &n->block;
    return 0;
}
