/* What the verbs of drover-backup share: opening the store, keys, progress. */
#include "backup/tool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/store_pace.h"
#include "common/file.h"

/* 32 hex digits and a NUL. */
enum { TOOL_REPOSITORY_BYTES = 33 };

static void line_write(int fd, const struct bytes_writer *line)
{
    for (size_t at = 0; at < line->size;) {
        ssize_t n = write(fd, line->data + at, line->size - at);
        if (n < 0 && errno != EINTR)
            return; /* nobody listens any more: the work goes on */
        at += n > 0 ? (size_t)n : 0;
    }
}

int tool_key_read(const char *path, uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err)
{
    char *text = NULL;
    int code = file_read(path, 4096, &text, NULL, err);
    if (code < 0)
        return code;
    code = repo_key_parse(text, ret_key, err);
    memset(text, 0, strlen(text));
    free(text);
    if (code < 0)
        error_prefix(err, "%s: ", path);
    return code;
}

/* --credentials: where the store looks for them. Before there is a second thread. */
static int credentials_take(const char *path, struct error *err)
{
    char *text = NULL;
    int code = file_read(path, 4096, &text, NULL, err);
    if (code < 0)
        return code;
    char *secret = strchr(text, '\n'), *end = secret != NULL ? strchr(secret + 1, '\n') : NULL;
    if (secret == NULL || secret == text || end == secret + 1 || (end != NULL && end[1] != '\0') || secret[1] == '\0') {
        code = error_set(err, -EINVAL, ERROR_INVALID, "%s: an access key and a secret key are needed, a line each", path);
    } else {
        *secret++ = '\0';
        if (end != NULL)
            *end = '\0';
        if (setenv("AWS_ACCESS_KEY_ID", text, 1) < 0 || setenv("AWS_SECRET_ACCESS_KEY", secret, 1) < 0)
            code = error_errno(err, -errno, "cannot take the credentials of %s", path);
        explicit_bzero(secret, strlen(secret));
    }
    free(text);
    return code;
}

static void repository_text(const struct repo *repo, char ret[TOOL_REPOSITORY_BYTES])
{
    chunk_hex_text(repo->header.id, sizeof repo->header.id, ret);
}

/* --repository: a share that is not mounted shows an empty directory, or another store. @there: NULL: none. */
static int repository_other(const struct tool_options *o, const char *there, struct error *err)
{
    char own[65] = "", place[256];
    (void)gethostname(own, sizeof own - 1);
    text_copy(place, sizeof place, o->store);
    const char *host = o->host != NULL ? o->host : own;
    if (there == NULL)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "at %s is no repository, and not %.32s: is the share mounted on %.63s?",
                         place, o->repository, host);
    return error_set(err, -ESTALE, ERROR_CONFLICT, "at %s is repository %.32s, not %.32s: is the share mounted on %.63s?", place,
                     there, o->repository, host);
}

/* And say which it is, before anything is done: who hears it knows that something may have been. */
static int repository_open(const struct tool_options *o, const uint8_t *key, struct tool_place *p, struct error *err)
{
    char text[TOOL_REPOSITORY_BYTES];
    struct bytes_writer line = {0};
    int code = repo_open(p->store, key, &p->repo, err);
    if (code == -ENOENT && o->repository != NULL)
        return repository_other(o, NULL, err);
    if (code < 0)
        return code;
    p->opened = true;
    repository_text(&p->repo, text);
    if (o->repository != NULL && strcmp(o->repository, text) != 0)
        return repository_other(o, text, err);
    bytes_put_format(&line, "{\"repository\":\"%s\"}\n", text);
    if (o->progress_fd >= 0)
        line_write(o->progress_fd, &line);
    bytes_writer_finish(&line);
    return 0;
}

int tool_open(const struct tool_options *o, bool repo, struct tool_place *ret_place, struct error *err)
{
    struct tool_place *p = ret_place;
    uint8_t key[CHUNK_KEY_BYTES];
    *p = (struct tool_place){0};
    if (o->store == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/store",
                               "--store is needed: an absolute path or s3://BUCKET[/PREFIX]");
    int code = o->credentials != NULL ? credentials_take(o->credentials, err) : 0;
    if (code == 0)
        code = store_open(o->store, &p->store, err);
    if (code == 0 && o->limit > 0)
        p->store->pace = p->pace = store_pace_create(o->limit);
    if (code == 0 && repo && o->key_file != NULL)
        code = tool_key_read(o->key_file, key, err);
    if (code == 0 && repo)
        code = repository_open(o, o->key_file != NULL ? key : NULL, p, err);
    memset(key, 0, sizeof key);
    return code;
}

void tool_close(struct tool_place *place)
{
    if (place->opened)
        repo_close(&place->repo);
    store_destroy(place->store);
    store_pace_destroy(place->pace);
    *place = (struct tool_place){0};
}

const char *tool_bytes_text(uint64_t bytes, char *buffer, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    for (; value >= 1000 && unit + 1 < ARRAY_SIZE(units); unit++)
        value /= 1024;
    snprintf(buffer, size, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return buffer;
}

/* ---- progress ---- */

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void tool_progress_init(struct tool_progress *p, const struct tool_options *o)
{
    *p = (struct tool_progress){
        .fd = o->progress_fd, .terminal = o->progress_fd < 0 && isatty(STDERR_FILENO), .begun_ms = now_ms()};
}

void tool_progress_report(void *arg, const struct backup_progress *progress)
{
    struct tool_progress *p = arg;
    uint64_t now = now_ms();
    struct bytes_writer line = {0};
    if ((p->fd < 0 && !p->terminal) || now < p->next_ms)
        return;
    p->next_ms = now + 200;
    if (p->fd >= 0) {
        bytes_put_format(&line, "{\"step\":\"%s\"", progress->step);
        if (progress->disk != NULL) {
            bytes_put_text(&line, ",\"disk\":");
            json_put_string(&line, progress->disk);
        }
        bytes_put_format(&line,
                         ",\"done_bytes\":%" PRIu64 ",\"total_bytes\":%" PRIu64 ",\"read_bytes\":%" PRIu64
                         ",\"new_bytes\":%" PRIu64 ",\"stored_bytes\":%" PRIu64 "}\n",
                         progress->done_bytes, progress->total_bytes, progress->read_bytes, progress->new_bytes,
                         progress->stored_bytes);
        line_write(p->fd, &line);
    } else {
        char done[24], total[24], stored[24];
        unsigned percent =
            progress->total_bytes > 0 ? (unsigned)(progress->done_bytes * 100 / progress->total_bytes) : 0;
        bytes_put_format(&line, "\r%s %s: %3u %% of %s, read %s, stored %s\033[K", progress->step,
                         progress->disk != NULL ? progress->disk : "", percent,
                         tool_bytes_text(progress->total_bytes, total, sizeof total),
                         tool_bytes_text(progress->read_bytes, done, sizeof done),
                         tool_bytes_text(progress->stored_bytes, stored, sizeof stored));
        line_write(STDERR_FILENO, &line);
        p->shown = true;
    }
    bytes_writer_finish(&line);
}

void tool_progress_end(struct tool_progress *p, const char *result, int code, const struct error *err)
{
    struct bytes_writer line = {0};
    if (p->shown)
        line_write(STDERR_FILENO, &(struct bytes_writer){.data = (uint8_t[]){'\r', 27, '[', 'K'}, .size = 4});
    if (p->fd < 0)
        return;
    if (code < 0) {
        bytes_put_format(&line, "{\"step\":\"failed\",\"code\":\"%s\",\"text\":", error_kind_info(err->kind)->code);
        json_put_string(&line, err->text);
        bytes_put_text(&line, "}\n");
    } else {
        bytes_put_format(&line, "{\"step\":\"done\"%s%s}\n", result != NULL ? ",\"result\":" : "",
                         result != NULL ? result : "");
    }
    line_write(p->fd, &line);
    bytes_writer_finish(&line);
}
