/* Uploads; see image_upload.h. An upload that is released while a piece of it is being written lives until that is done. */
#include "compute/agent/image_upload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_range.h"
#include "common/sparse_file.h"
#include "schema/upload_protocol.h"

struct upload {
    char id[IMAGE_UPLOAD_ID_LENGTH + 1];
    struct image_uploads *uploads;
    int fd;
    uint64_t offset, size_bytes;
    bool released;
    image_upload_told told;
    void *arg;
    /* the piece being written */
    struct http_request *request; /* NULL: none */
    uv_work_t work;
    int status;
};

static void upload_free(struct upload *u)
{
    close(u->fd);
    free(u);
}

char *image_upload_path(const struct image_uploads *uploads, const char *id)
{
    return xasprintf("%s/%s.source", uploads->dir, id);
}

/* ---- the worker ---- */

static void piece_write(uv_work_t *work)
{
    struct upload *u = CONTAINER_OF(work, struct upload, work);
    const struct http_request *request = u->request;
    struct stat st;
    off_t end = (off_t)(u->offset + request->body_size);
    u->status = sparse_file_write(u->fd, request->body, request->body_size, u->offset);
    /* The data before the size of zeros behind them: after a power cut the size says how much is there. */
    if (u->status == 0 && (fdatasync(u->fd) < 0 || fstat(u->fd, &st) < 0 ||
                           (st.st_size != end && (ftruncate(u->fd, end) < 0 || fdatasync(u->fd) < 0))))
        u->status = -errno;
}

/* ---- the loop's thread ---- */

static void answer(struct upload *u, struct http_request *request, int status, const struct error *err)
{
    char headers[160];
    snprintf(headers, sizeof(headers), UPLOAD_OFFSET_HEADER ": %llu\r\n" UPLOAD_LENGTH_HEADER ": %llu\r\nCache-Control: no-store\r\n",
             (unsigned long long)u->offset, (unsigned long long)u->size_bytes);
    if (err != NULL)
        http_respond_error_headers(request, err, headers);
    else
        http_respond(request, status, NULL, headers, "", 0);
}

static void piece_written(uv_work_t *work, int uv_status)
{
    struct upload *u = CONTAINER_OF(work, struct upload, work);
    struct image_uploads *uploads = u->uploads;
    struct http_request *request = u->request;
    struct error err;
    (void)uv_status;
    u->request = NULL;
    uploads->busy--;
    if (u->status == 0)
        u->offset += request->body_size;
    else if (ftruncate(u->fd, (off_t)u->offset) < 0) /* what was written of it may be anything */
        u->status = -errno;
    if (u->status == -ENOSPC || u->status == -EDQUOT)
        error_set(&err, -ENOSPC, ERROR_NO_SPACE, "the host that takes the upload has no room left; free some there and go on, or "
                  "cancel the upload and begin again");
    else if (u->status < 0)
        error_errno(&err, u->status, "cannot write the upload");
    answer(u, request, 204, u->status < 0 ? &err : NULL);
    if (u->released)
        upload_free(u);
    else if (u->status == 0)
        u->told(u->offset, u->arg);
    if (uploads->busy == 0 && uploads->closed != NULL)
        uploads->closed(uploads->closed_arg);
}

static int piece_check(const struct upload *u, const struct http_request *request, struct error *err)
{
    uint64_t at;
    if (http_range_number(http_request_header(request, UPLOAD_OFFSET_HEADER), &at) < 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, UPLOAD_OFFSET_HEADER, "must say at which byte of the upload the piece begins");
    if (u->request != NULL)
        return error_set(err, -EBUSY, ERROR_OVERLOAD, "another piece of this upload is being written; one at a time");
    if (at != u->offset)
        return error_set_field(err, -ESTALE, ERROR_CONFLICT, UPLOAD_OFFSET_HEADER, "is %llu, and the upload has come to %llu; go on there",
                               (unsigned long long)at, (unsigned long long)u->offset);
    if (request->body_size > u->size_bytes - u->offset)
        return error_set(err, -EFBIG, ERROR_INVALID, "the upload would have more than the %llu bytes that were announced",
                         (unsigned long long)u->size_bytes);
    return 0;
}

void image_upload_handle(struct image_uploads *uploads, struct http_request *request, const char *id)
{
    struct upload *u = map_get(&uploads->all, id);
    struct error err;
    if (u == NULL || uploads->closed != NULL) {
        error_set(&err, -EAGAIN, ERROR_OVERLOAD, "this host does not expect the upload (yet); ask again in a moment");
        http_respond_error(request, &err);
    } else if (request->method == HTTP_GET || request->method == HTTP_HEAD) {
        answer(u, request, 200, NULL);
    } else if (request->method != HTTP_PATCH) {
        error_set(&err, -EINVAL, ERROR_METHOD, "an upload takes HEAD, GET and PATCH");
        http_respond_error(request, &err);
    } else if (piece_check(u, request, &err) < 0) {
        answer(u, request, 0, &err);
    } else if (request->body_size == 0) {
        answer(u, request, 204, NULL);
    } else {
        u->request = request;
        uploads->busy++;
        int r = uv_queue_work(uploads->loop, &u->work, piece_write, piece_written);
        ASSERT(r == 0);
    }
}

int image_upload_init(struct image_uploads *uploads, uv_loop_t *loop, const char *dir, struct error *err)
{
    *uploads = (struct image_uploads){.loop = loop, .dir = xstrdup(dir)};
    return file_make_directories(dir, 0700, err);
}

void image_upload_close(struct image_uploads *uploads, void (*closed)(void *arg), void *arg)
{
    uploads->closed = closed;
    uploads->closed_arg = arg;
    if (uploads->busy == 0)
        closed(arg);
}

void image_upload_finish(struct image_uploads *uploads)
{
    struct upload *u;
    for (size_t i = 0; (u = map_next(&uploads->all, &i)) != NULL;)
        upload_free(u);
    map_finish(&uploads->all);
    free(uploads->dir);
    *uploads = (struct image_uploads){.busy = 0};
}

int image_upload_expect(struct image_uploads *uploads, const char *id, uint64_t size_bytes, image_upload_told told, void *arg,
                        struct error *err)
{
    CLEANUP_FREE char *path = image_upload_path(uploads, id);
    struct stat st;
    ASSERT(map_get(&uploads->all, id) == NULL);
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make %s", path);
    if (fstat(fd, &st) < 0 || ((uint64_t)st.st_size > size_bytes && (ftruncate(fd, 0) < 0 || fstat(fd, &st) < 0))) {
        int r = error_errno(err, -errno, "cannot use %s", path);
        close(fd);
        return r;
    }
    struct upload *u = NEW(struct upload);
    snprintf(u->id, sizeof(u->id), "%s", id);
    u->uploads = uploads;
    u->fd = fd;
    u->offset = (uint64_t)st.st_size;
    u->size_bytes = size_bytes;
    u->told = told;
    u->arg = arg;
    map_put(&uploads->all, u->id, u);
    told(u->offset, arg);
    return 0;
}

void image_upload_release(struct image_uploads *uploads, const char *id)
{
    struct upload *u = map_remove(&uploads->all, id);
    if (u == NULL)
        return;
    u->released = true;
    if (u->request == NULL)
        upload_free(u);
}
