/* Images to others; see image_serve.h. The struct is the worker's between uv_queue_work and its after-callback, but for
 * `gone`, which only the loop's thread looks at. */
#include "compute/agent/image_serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/http_range.h"
#include "common/log.h"
#include "common/sparse_file.h"
#include "compute/agent/image_stream.h"

STATIC_ASSERT(IMAGE_SERVE_PIECE_BYTES <= IMAGE_STREAM_DATA_MAX, "a piece is a frame");

struct serve {
    struct list link;
    struct image_serve_list *list;
    struct http_request *request;
    uv_work_t work;
    int fd;
    bool framed, reading, gone;
    uint64_t offset, end, size; /* next byte, where to end, of the file */
    /* the worker's */
    uint8_t *piece; /* room for a frame's head before the data */
    size_t piece_size;
    bool last;
    int status;
};

/* ---- the worker: one piece ---- */

static void serve_read(struct serve *s)
{
    uint64_t begin = s->offset, stop = s->end;
    uint8_t *data = s->piece + IMAGE_STREAM_HEAD_BYTES;
    if (s->framed)
        s->status = sparse_file_next(s->fd, s->offset, s->end, &begin, &stop);
    if (s->status < 0)
        return;
    size_t want = (size_t)MIN(stop - begin, (uint64_t)IMAGE_SERVE_PIECE_BYTES), got = 0;
    while (got < want) {
        ssize_t n = pread(s->fd, data + got, want - got, (off_t)(begin + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            s->status = n < 0 ? -errno : -EIO; /* it never becomes shorter */
            return;
        }
        got += (size_t)n;
    }
    s->offset = begin + got;
    s->piece_size = got;
    s->last = s->offset == s->end;
    if (s->framed && got > 0)
        image_stream_put_head(s->piece, begin, (uint32_t)got);
}

static void serve_work(uv_work_t *work)
{
    struct serve *s = CONTAINER_OF(work, struct serve, work);
    s->status = 0;
    s->piece_size = 0;
    serve_read(s);
}

/* ---- the loop's thread ---- */

static void serve_next(struct serve *s);

static void serve_free(struct serve *s)
{
    struct image_serve_list *list = s->list;
    list_remove(&s->link);
    list->count--;
    close(s->fd);
    free(s->piece);
    free(s);
    if (list->count == 0 && list->closed != NULL)
        list->closed(list->closed_arg);
}

static void serve_gone(struct http_request *request, void *arg)
{
    struct serve *s = arg;
    s->gone = true;
    if (s->reading)
        return;
    http_stream_end(request);
    serve_free(s);
}

static void serve_write(struct serve *s)
{
    uint8_t head[IMAGE_STREAM_HEAD_BYTES];
    size_t skip = s->framed ? 0 : IMAGE_STREAM_HEAD_BYTES;
    if (s->piece_size > 0)
        http_stream_write(s->request, s->piece + skip, s->piece_size + IMAGE_STREAM_HEAD_BYTES - skip);
    if (s->last && s->framed) {
        image_stream_put_head(head, s->size, 0);
        http_stream_write(s->request, head, sizeof(head));
    }
}

static void serve_after(uv_work_t *work, int uv_status)
{
    struct serve *s = CONTAINER_OF(work, struct serve, work);
    struct http_request *request = s->request;
    (void)uv_status;
    s->reading = false;
    if (s->status < 0)
        log_error("image-serve", "error=\"%s\"", strerror(-s->status));
    if (!s->gone && s->status == 0)
        serve_write(s);
    if (!s->gone && s->status == 0 && !s->last) {
        if (http_stream_queued_bytes(request) == 0)
            serve_next(s);
        return; /* else serve_drained, or serve_gone */
    }
    http_request_on_gone(request, NULL, NULL);
    if (s->status < 0 && !s->gone)
        http_release(request);
    else
        http_stream_end(request);
    serve_free(s);
}

static void serve_next(struct serve *s)
{
    s->reading = true;
    int r = uv_queue_work(http_request_loop(s->request), &s->work, serve_work, serve_after);
    ASSERT(r == 0);
}

static void serve_drained(struct http_request *request, void *arg)
{
    struct serve *s = arg;
    (void)request;
    if (!s->reading && !s->gone)
        serve_next(s);
}

static int serve_open(struct image_serve_list *list, const char *path, int *ret_fd, uint64_t *ret_size, struct error *err)
{
    struct stat st;
    if (list->count >= IMAGE_SERVE_MAX)
        return error_set(err, -EBUSY, ERROR_OVERLOAD, "this host sends %u images already; ask another holder, or later",
                         IMAGE_SERVE_MAX);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, -errno, ERROR_NOT_FOUND, "this host does not hold that image (any more)");
    if (fstat(fd, &st) < 0) {
        int r = error_errno(err, -errno, "cannot read the image");
        close(fd);
        return r;
    }
    *ret_fd = fd;
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static void serve_begin(struct image_serve_list *list, struct http_request *request, int fd, const struct http_range *range,
                        const struct http_stream_options *options, bool framed)
{
    struct serve *s = NEW(struct serve);
    struct http_stream_options with = *options;
    *s = (struct serve){.list = list, .request = request, .fd = fd, .framed = framed, .offset = range->first,
                        .end = range->end, .size = range->total};
    s->piece = xcalloc(1, IMAGE_STREAM_HEAD_BYTES + IMAGE_SERVE_PIECE_BYTES);
    list_append(&list->active, &s->link);
    list->count++;
    with.drained = serve_drained;
    with.drained_arg = s;
    http_request_on_gone(request, serve_gone, s);
    http_stream_begin(request, &with);
    if (!s->reading)
        serve_next(s);
}

void image_serve_init(struct image_serve_list *list)
{
    *list = (struct image_serve_list){.count = 0};
    list_init(&list->active);
}

void image_serve_close(struct image_serve_list *list, void (*closed)(void *arg), void *arg)
{
    if (list->count == 0) {
        closed(arg);
        return;
    }
    list->closed = closed;
    list->closed_arg = arg;
}

void image_serve_stream(struct image_serve_list *list, struct http_request *request, const char *path)
{
    struct error err;
    struct http_range range = {.first = 0};
    char from[24], headers[64];
    int fd;
    uint64_t size;
    if (serve_open(list, path, &fd, &size, &err) < 0) {
        http_respond_error(request, &err);
        return;
    }
    ssize_t n = http_request_parameter(request, "from", from, sizeof(from));
    if ((n != -ENOENT && (n < 0 || http_range_number(from, &range.first) < 0)) || range.first > size) {
        close(fd);
        error_set_field(&err, -EINVAL, ERROR_INVALID, "?from", "must be a byte of the image, which has %llu",
                        (unsigned long long)size);
        http_respond_error(request, &err);
        return;
    }
    range.end = range.total = size;
    snprintf(headers, sizeof(headers), "X-Drover-Image-Size: %llu\r\n", (unsigned long long)size);
    serve_begin(list, request, fd, &range, &(struct http_stream_options){.content_type = IMAGE_STREAM_TYPE, .headers = headers},
                true);
}

void image_serve_content(struct image_serve_list *list, struct http_request *request, const char *path)
{
    struct error err;
    struct http_range range;
    char headers[160];
    int fd, n = 0;
    uint64_t size;
    if (serve_open(list, path, &fd, &size, &err) < 0) {
        http_respond_error(request, &err);
        return;
    }
    int r = http_range_parse_request(http_request_header(request, "Range"), size, &range);
    if (r == -ERANGE) {
        close(fd);
        snprintf(headers, sizeof(headers), "Content-Range: bytes */%llu\r\n", (unsigned long long)size);
        http_respond(request, 416, NULL, headers, "", 0);
        return;
    }
    if (r == 0)
        range = (struct http_range){.first = 0, .end = size, .total = size};
    n = snprintf(headers, sizeof(headers), "Accept-Ranges: bytes\r\nX-Drover-Image-Size: %llu\r\n", (unsigned long long)size);
    if (r == 1)
        snprintf(headers + n, sizeof(headers) - (size_t)n, "Content-Range: bytes %llu-%llu/%llu\r\n",
                 (unsigned long long)range.first, (unsigned long long)(range.end - 1), (unsigned long long)size);
    serve_begin(list, request, fd, &range,
                &(struct http_stream_options){
                    .status = r == 1 ? 206 : 200, .content_type = "application/octet-stream", .headers = headers},
                false);
}
