/* image create: a record alone (files that every host fetches by itself), or with the content: a file of this machine, which
 * is uploaded, a URL that a host imports, or a snapshot that the host which has it copies.
 *
 * Upload: checksum of the file; POST of the image; pieces from where the cluster says that it has come to, each to
 * whichever controller answers; then the operation is followed, which checks, converts and keeps it. Called again after
 * an end in the middle it finds the image by its name, sees the same checksum, and goes on. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/operation_wait.h"
#include "cli/output.h"
#include "cli/transfer.h"
#include "cli/verb_functions.h"
#include "common/http_range.h"
#include "schema/upload_protocol.h"

#define PIECE_MS 120000

struct upload {
    struct transfer transfer;
    uint64_t offset, size;
    bool told; /* the last answer said where it is */
    const char *path;
    int fd;
};

static void read_offset(const struct http_answer *answer, void *arg)
{
    struct upload *u = arg;
    u->told = http_range_number(http_answer_header(answer, UPLOAD_OFFSET_HEADER), &u->offset) == 0 && u->offset <= u->size;
}

/* Where it has come to. */
static int upload_ask(struct client *client, struct upload *u, const char *path, bool *ret_again, struct error *err)
{
    const struct http_call_options options = {.done = read_offset, .arg = u};
    int status;
    u->told = false;
    int rc = client_transfer(client, &options, path, &status, ret_again, err);
    if (rc == 0 && !u->told)
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the cluster does not say where the upload has come to");
    return rc;
}

static int upload_piece(struct client *client, struct upload *u, const char *path, char *piece, bool *ret_again, struct error *err)
{
    char offset[64];
    const char *headers[] = {offset, NULL};
    ssize_t n = pread(u->fd, piece, (size_t)MIN(u->size - u->offset, (uint64_t)UPLOAD_PIECE_BYTES_MAX), (off_t)u->offset);
    int status;
    *ret_again = false;
    if (n <= 0)
        return error_set(err, n < 0 ? -errno : -EIO, ERROR_INVALID, "cannot read %s: %s", u->path,
                         n < 0 ? strerror(errno) : "it has become shorter");
    snprintf(offset, sizeof offset, UPLOAD_OFFSET_HEADER ": %llu", (unsigned long long)u->offset);
    const struct http_call_options options = {
        .method = "PATCH",
        .headers = headers,
        .content_type = UPLOAD_CONTENT_TYPE,
        .body = piece,
        .body_size = (size_t)n,
        .deadline_ms = PIECE_MS,
        .done = read_offset,
        .arg = u,
    };
    u->told = false;
    int rc = client_transfer(client, &options, path, &status, ret_again, err);
    if (rc < 0 && u->told && err->kind == ERROR_CONFLICT)
        rc = 0; /* another place than we thought: an answer was lost */
    return rc;
}

static int upload_all(struct client *client, struct upload *u, const char *path, struct error *err)
{
    CLEANUP_FREE char *piece = xcalloc(1, UPLOAD_PIECE_BYTES_MAX);
    for (;;) {
        bool again = false;
        int rc = u->told ? 0 : upload_ask(client, u, path, &again, err);
        if (rc == 0) {
            transfer_progress(&u->transfer, u->offset);
            if (u->offset == u->size)
                return 0;
            rc = upload_piece(client, u, path, piece, &again, err);
        }
        if (rc == 0)
            continue;
        u->told = false;
        if (!again || !transfer_again(&u->transfer))
            return rc;
    }
}

/* ---- the image ---- */

static int source_of_snapshot(const struct invocation *call, const char *snapshot, json_t **ret, struct error *err)
{
    static const char *const others[] = {"file", "url", "format", "sha256"};
    const char *disk = invocation_option(call, "from-disk");
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        if (invocation_option(call, others[i]) != NULL)
            return error_set(err, -EINVAL, ERROR_INVALID, "--from-snapshot and --%s: one of them", others[i]);
    *ret = json_pack("{s:s}", "snapshot", snapshot);
    if (*ret != NULL && disk != NULL)
        json_object_set_new(*ret, "disk", json_string(disk));
    return *ret != NULL ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "--from-snapshot is not UTF-8");
}

static int source_of(const struct invocation *call, const char *file, int fd, json_t **ret, struct error *err)
{
    const char *snapshot = invocation_option(call, "from-snapshot");
    if (snapshot != NULL)
        return source_of_snapshot(call, snapshot, ret, err);
    const char *format = invocation_option(call, "format"), *sha256 = invocation_option(call, "sha256"), *url = invocation_option(call, "url");
    char hex[TRANSFER_SHA256_SIZE];
    uint64_t size = 0;
    json_t *source = json_object();
    if (format == NULL) {
        json_decref(source);
        return error_set(err, -EINVAL, ERROR_INVALID, "--format raw, qcow2, vmdk, vhdx or ova is needed: it is never guessed");
    }
    json_object_set_new(source, "format", json_string(format));
    if (file != NULL) {
        struct transfer t;
        transfer_begin(&t, call, "checksum", 0, 0);
        int rc = transfer_sha256(fd, file, &t, hex, &size, err);
        if (rc == 0 && sha256 != NULL && strcasecmp(sha256, hex) != 0)
            rc = error_set(err, -EBADMSG, ERROR_CHECKSUM, "%s has SHA-256 %s, and not the one given", file, hex);
        if (rc == 0 && size == 0)
            rc = error_set(err, -EINVAL, ERROR_INVALID, "%s is empty", file);
        if (rc < 0) {
            json_decref(source);
            return rc;
        }
        sha256 = hex;
        json_object_set_new(source, "size_bytes", json_integer((json_int_t)size));
    } else {
        json_object_set_new(source, "url", json_string(url));
    }
    if (sha256 != NULL)
        json_object_set_new(source, "sha256", json_string(sha256));
    *ret = source;
    return 0;
}

static const char *text_at(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));
    return text != NULL ? text : "";
}

/* There is one of that name: is it this very upload, or of this very snapshot, begun and not ended? */
static int go_on_with(struct client *client, const struct invocation *call, const json_t *source, struct reply *ret, struct error *err)
{
    struct error exists = *err;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_image_show, call->name, "");
    int rc = client_request(client, "GET", path, NULL, ret, err);
    if (rc < 0)
        return rc;
    const json_t *theirs = json_object_get(ret->json, "source");
    if (strcmp(text_at(ret->json, "state"), "uploading") == 0 && strcmp(text_at(theirs, "sha256"), text_at(source, "sha256")) == 0 &&
        strcmp(text_at(theirs, "format"), text_at(source, "format")) == 0)
        return 0;
    if (strcmp(text_at(ret->json, "state"), "importing") == 0 && text_at(source, "snapshot")[0] != '\0' &&
        strcmp(text_at(theirs, "snapshot"), text_at(source, "snapshot")) == 0 &&
        (json_object_get(source, "disk") == NULL || strcmp(text_at(theirs, "disk"), text_at(source, "disk")) == 0))
        return 0;
    *err = exists;
    if (strcmp(text_at(ret->json, "state"), "failed") == 0)
        return error_set(err, exists.code, ERROR_EXISTS, "image %s exists and has failed: %.300s; remove it first (drover image delete %s)",
                         call->name, text_at(ret->json, "state_reason"), call->name);
    return exists.code;
}

static int make_image(struct client *client, const struct invocation *call, json_t *source, struct reply *ret, struct error *err)
{
    json_t *body = NULL;
    int rc = body_build(call, &image_desc, &body, err);
    if (rc < 0)
        return rc;
    if (json_object_get(source, "snapshot") == NULL || json_object_get(body, "kind") == NULL) /* one of those may be of kind kernel */
        json_object_set_new(body, "kind", json_string("disk"));
    json_object_set(body, "source", source);
    rc = client_request(client, "POST", invocation_option(call, "dry-run") != NULL ? "/v1/images?dry_run=true" : "/v1/images", body, ret, err);
    json_decref(body);
    if (rc < 0 && err->kind == ERROR_EXISTS) {
        reply_finish(ret);
        rc = go_on_with(client, call, source, ret, err);
    }
    return rc;
}

static int send_content(struct client *client, const struct invocation *call, const char *file, int fd, uint64_t size, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_image_upload, call->name, "");
    CLEANUP_FREE char *what = xasprintf("upload of %s", call->name);
    struct upload u = {.fd = fd, .path = file, .size = size};
    transfer_begin(&u.transfer, call, what, 0, size);
    int rc = upload_all(client, &u, path, err);
    if (rc == 0)
        transfer_end(&u.transfer);
    return rc;
}

static int create_with_content(struct client *client, const struct invocation *call, const char *file, struct error *err)
{
    struct reply reply = {0};
    json_t *source = NULL, *operation = NULL;
    CLEANUP_FD int fd = file != NULL && invocation_option(call, "from-snapshot") == NULL ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (file != NULL && fd < 0)
        return error_set(err, -errno, ERROR_INVALID, "cannot open %s: %s", file, strerror(errno));
    int rc = source_of(call, file, fd, &source, err);
    if (rc == 0)
        rc = make_image(client, call, source, &reply, err);
    CLEANUP_FREE char *id = xstrdup(text_at(reply.json, "operation"));
    bool dry = invocation_option(call, "dry-run") != NULL;
    if (rc == 0 && file != NULL && !dry)
        rc = send_content(client, call, file, fd, (uint64_t)json_integer_value(json_object_get(source, "size_bytes")), err);
    if (!dry && id[0] != '\0' && (rc == 0 || err->kind == ERROR_CONFLICT)) /* a conflict: it has failed there, and says why */
        if (file != NULL || call->wait)
            rc = operation_wait(call, client, id, &operation, err);
    if (rc == 0 && call->output != OUTPUT_TABLE)
        output_object(call, operation != NULL ? operation : reply.json);
    else if (rc == 0 && !call->quiet)
        printf("image %s: %s%s\n", call->name, dry ? "would be done" : operation != NULL ? "done" : "accepted, operation ",
               dry || operation != NULL ? "" : id);
    json_decref(operation);
    json_decref(source);
    reply_finish(&reply);
    return rc;
}

int image_create(const struct invocation *call, struct error *err)
{
    const char *file = invocation_option(call, "file"), *url = invocation_option(call, "url");
    const char *snapshot = invocation_option(call, "from-snapshot");
    struct client client;
    if (snapshot == NULL && invocation_option(call, "from-disk") != NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--from-disk says which disk of --from-snapshot, which is missing");
    if (file == NULL && url == NULL && snapshot == NULL)
        return request_verb(call, err);
    if (snapshot == NULL && file != NULL && url != NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--file and --url: one of them");
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = create_with_content(&client, call, file, err);
    client_finish(&client);
    return rc;
}
