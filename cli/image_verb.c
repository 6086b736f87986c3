/* Verbs about images that move bytes: download, distribute.
 *
 * download: FILE.part grows from where an earlier attempt ended (Range), the next controller goes on where one fails; then
 * the SHA-256 of the whole is compared with the image's, and the file gets its name. Zeros become holes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/transfer.h"
#include "cli/verb_functions.h"
#include "common/http_range.h"
#include "common/sparse_file.h"

#define IDLE_MS 30000
#define DISTRIBUTE_PAUSE_MS 300

/* ---- download ---- */

struct download {
    struct transfer transfer;
    const char *path; /* being written */
    int fd;
    uint64_t offset, size; /* size 0: not known */
    struct error err;
};

static int download_headers(const struct http_answer *head, void *arg)
{
    struct download *d = arg;
    struct http_range range;
    if (head->status == 206) {
        if (http_range_parse_answer(http_answer_header(head, "Content-Range"), &range) < 0 || range.first != d->offset ||
            range.end != range.total || (d->size != 0 && range.total != d->size))
            return error_set(&d->err, -EBADMSG, ERROR_INTERNAL, "the cluster gives another part than the one that was asked for");
    } else if (head->status == 200 && d->offset > 0) {
        d->offset = 0; /* the whole, from its beginning */
        if (ftruncate(d->fd, 0) < 0)
            return error_errno(&d->err, -errno, "cannot begin %s anew", d->path);
    }
    return 0;
}

static int download_data(const void *data, size_t size, void *arg)
{
    struct download *d = arg;
    int rc = sparse_file_write(d->fd, data, size, d->offset);
    if (rc < 0)
        return error_errno(&d->err, rc, "cannot write %s", d->path);
    d->offset += size;
    transfer_progress(&d->transfer, d->offset);
    return 0;
}

static int download_all(struct client *client, struct download *d, const char *path, struct error *err)
{
    for (;;) {
        char range[64];
        const char *headers[] = {range, NULL};
        bool more = false;
        int status = 0;
        snprintf(range, sizeof range, "Range: bytes=%llu-", (unsigned long long)d->offset);
        const struct http_call_options options = {
            .headers = d->offset > 0 ? headers : NULL,
            .idle_ms = IDLE_MS,
            .on_data = download_data,
            .on_headers = download_headers,
            .arg = d,
        };
        int rc = d->size != 0 && d->offset == d->size ? 0 : client_transfer(client, &options, path, &status, &more, err);
        if (d->err.code != 0) {
            *err = d->err;
            return d->err.code;
        }
        if (rc == 0 && (d->size == 0 || d->offset == d->size))
            return 0;
        if (rc < 0 && (!more || !transfer_again(&d->transfer)))
            return rc;
        if (rc == 0 && d->offset > d->size)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the image is longer than the %llu bytes it should have",
                             (unsigned long long)d->size);
    }
}

static int download_check(struct download *d, const char *sha256, const char *name, struct error *err)
{
    char hex[TRANSFER_SHA256_SIZE];
    uint64_t size;
    if (ftruncate(d->fd, (off_t)d->offset) < 0)
        return error_errno(err, -errno, "cannot write %s", d->path);
    int rc = transfer_sha256(d->fd, d->path, NULL, hex, &size, err);
    if (rc < 0 || strcmp(hex, sha256) == 0)
        return rc;
    unlink(d->path);
    return error_set(err, -EBADMSG, ERROR_CHECKSUM,
                     "what came has SHA-256 %s, and image %s has %s; it was thrown away, try again", hex, name, sha256);
}

static int image_get(struct client *client, const struct invocation *call, struct reply *ret, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_image_show, call->name, "");
    int rc = client_request(client, "GET", path, NULL, ret, err);
    if (rc == 0 && !json_is_object(ret->json))
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no image");
    return rc;
}

static int download_image(struct client *client, const struct invocation *call, const json_t *image, struct error *err)
{
    const json_t *disk = json_object_get(image, "disk");
    const char *sha256 = json_string_value(json_object_get(disk, "sha256"));
    CLEANUP_FREE char *part = xasprintf("%s.part", call->file);
    CLEANUP_FREE char *path = client_path(ROUTE_ID_image_content, call->name, "");
    CLEANUP_FREE char *what = xasprintf("download of %s", call->name);
    struct download d = {.path = part, .size = (uint64_t)json_integer_value(json_object_get(disk, "size_bytes"))};
    struct stat st;
    if (sha256 == NULL)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "image %s has no disk to download", call->name);
    if (access(call->file, F_OK) == 0)
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s exists; remove it or choose another name", call->file);
    d.fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (d.fd < 0 || fstat(d.fd, &st) < 0)
        return error_errno(err, -errno, "cannot open %s", part);
    d.offset = d.size != 0 && (uint64_t)st.st_size <= d.size ? (uint64_t)st.st_size : 0;
    transfer_begin(&d.transfer, call, what, d.offset, d.size);
    int rc = download_all(client, &d, path, err);
    if (rc == 0)
        rc = download_check(&d, sha256, call->name, err);
    if (rc == 0)
        transfer_end(&d.transfer);
    if (rc == 0 && (fsync(d.fd) < 0 || rename(part, call->file) < 0))
        rc = error_errno(err, -errno, "cannot keep %s as %s", part, call->file);
    close(d.fd);
    return rc;
}

int image_download(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = image_get(&client, call, &reply, err);
    if (rc == 0)
        rc = download_image(&client, call, reply.json, err);
    if (rc == 0 && !call->quiet && call->output == OUTPUT_TABLE)
        printf("image %s: is in %s\n", call->name, call->file);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

/* ---- distribute ---- */

/* Hosts that are to keep it and have it; "n2 (why not)" of the first that has not. */
static void count_copies(const json_t *image, size_t *ret_held, size_t *ret_wanted, char *why, size_t why_size)
{
    const json_t *copy;
    size_t i;
    *ret_held = *ret_wanted = 0;
    why[0] = '\0';
    json_array_foreach(json_object_get(image, "copies"), i, copy)
    {
        const char *state = json_string_value(json_object_get(copy, "state"));
        const char *reason = json_string_value(json_object_get(copy, "reason"));
        const char *host = json_string_value(json_object_get(copy, "name"));
        bool held = state != NULL && strcmp(state, "held") == 0;
        if (!json_is_true(json_object_get(copy, "keep")))
            continue;
        ++*ret_wanted;
        *ret_held += held;
        if (!held && why[0] == '\0')
            snprintf(why, why_size, "%s (%s%s%s)", host != NULL ? host : "?", state != NULL ? state : "?",
                     reason != NULL ? ": " : "", reason != NULL ? reason : "");
    }
}

static int distribute_wait(struct client *client, const struct invocation *call, struct error *err)
{
    char why[500], line[700], clean[700], shown[700] = "";
    time_t end = time(NULL) + call->timeout_s;
    for (;;) {
        struct reply reply = {0};
        size_t held = 0, wanted = 0;
        int rc = image_get(client, call, &reply, err);
        if (rc == 0)
            count_copies(reply.json, &held, &wanted, why, sizeof why);
        reply_finish(&reply);
        if (rc < 0)
            return rc;
        snprintf(line, sizeof line, "image %s: %zu of %zu hosts have it%s%s", call->name, held, wanted, why[0] != '\0' ? "; " : "", why);
        if (strcmp(line, shown) != 0)
            output_progress(call, output_clean(line, clean, sizeof clean), held == wanted);
        snprintf(shown, sizeof shown, "%s", line);
        if (held == wanted)
            return 0;
        if (time(NULL) >= end)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "%zu of %zu hosts have it after %u s; they go on: %.300s", held, wanted,
                             call->timeout_s, why);
        nanosleep(&(struct timespec){.tv_nsec = DISTRIBUTE_PAUSE_MS * 1000000L}, NULL);
    }
}

int image_distribute(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    json_t *body = NULL;
    bool dry = invocation_option(call, "dry-run") != NULL;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = body_build(call, &image_distribution_desc, &body, err);
    if (rc == 0) {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_image_distribute, call->name, dry ? "?dry_run=true" : "");
        rc = client_request(&client, "POST", path, body, &reply, err);
    }
    if (rc == 0 && call->wait && !dry)
        rc = distribute_wait(&client, call, err);
    if (rc == 0 && call->output != OUTPUT_TABLE)
        output_object(call, reply.json);
    else if (rc == 0 && !call->quiet)
        printf("image %s: %s\n", call->name, dry ? "would be done" : "done");
    json_decref(body);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}
