/* Imports; see image_import.h. */
#include "compute/agent/image_import.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_range.h"
#include "common/sparse_file.h"
#include "compute/agent/image_convert.h"
#include "compute/agent/ova_archive.h"
#include "compute/agent/web_get.h"

#define PIECE_BYTES (1u << 20)
#define DONE_BYTES_MAX 4096u
#define DIGEST_TEXT_SIZE 65

struct import {
    const struct image_work *work;
    const struct image_import_listener *listener;
    struct error *err;
    char *source, *raw, *done, *root;
    /* fetching */
    int fd;
    uint64_t offset, total;
};

static void tell(const struct import *i, const char *step, uint64_t done, uint64_t total)
{
    if (i->listener != NULL)
        i->listener->progress(step, done, total, i->listener->arg);
}

/* ---- 2. the URL ---- */

static int fetch_head(const struct web_get_head *head, void *arg)
{
    struct import *i = arg;
    struct http_range range;
    uint64_t length;
    if (head->status == 206 && (http_range_parse_answer(head->content_range, &range) < 0 || range.first != i->offset ||
                                range.end != range.total))
        return error_set(i->err, -EBADMSG, ERROR_UNREACHABLE, "%s: gives another part than the one that was asked for", i->work->url);
    if (head->status == 200 && i->offset > 0) {
        i->offset = 0;
        if (ftruncate(i->fd, 0) < 0)
            return error_errno(i->err, -errno, "cannot begin %s anew", i->source);
    }
    if (head->status == 206)
        i->total = range.total;
    else if (http_range_number(head->content_length, &length) == 0)
        i->total = length;
    return 0;
}

static int fetch_data(const void *data, size_t size, void *arg)
{
    struct import *i = arg;
    if (i->work->size_bytes != 0 && size > i->work->size_bytes - MIN(i->offset, i->work->size_bytes))
        return error_set(i->err, -EBADMSG, ERROR_CHECKSUM, "%s: is longer than the size given for it", i->work->url);
    int r = sparse_file_write(i->fd, data, size, i->offset);
    if (r < 0) {
        error_errno(i->err, r, "cannot write %s", i->source);
        if (r == -ENOSPC)
            i->err->kind = ERROR_NO_SPACE;
        return r;
    }
    i->offset += size;
    tell(i, "fetching", i->offset, MAX(i->total, i->offset));
    return 0;
}

static int fetch(struct import *i)
{
    struct error err = {.code = 0};
    struct stat st;
    int status = 0;
    i->fd = open(i->source, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (i->fd < 0 || fstat(i->fd, &st) < 0)
        return error_errno(i->err, -errno, "cannot make %s", i->source);
    i->offset = (uint64_t)st.st_size;
    /* Nothing tells whether an earlier run's part is of the same file: with a checksum the whole shows it, without one it is begun anew. */
    if (i->work->sha256 == NULL && i->offset > 0 && (i->work->size_bytes == 0 || i->offset != i->work->size_bytes)) {
        i->offset = 0;
        if (ftruncate(i->fd, 0) < 0)
            return error_errno(i->err, -errno, "cannot begin %s anew", i->source);
    }
    if (i->work->size_bytes != 0 && i->offset == i->work->size_bytes)
        return 0;
    const struct web_get_options options = {
        .url = i->work->url,
        .offset = i->offset,
        .user = i->work->web_user,
        .on_head = fetch_head,
        .on_data = fetch_data,
        .arg = i,
    };
    int r = web_get_perform(&options, &status, &err);
    if (i->err->code != 0)
        return i->err->code;
    if (r < 0)
        return error_set(i->err, r, err.kind, "%s", err.text);
    if (status == 416 && i->offset > 0)
        return 0; /* an earlier run had all of it */
    if (status < 200 || status > 299)
        return error_set(i->err, -EIO, status == 404 ? ERROR_NOT_FOUND : ERROR_UNREACHABLE, "%s: its server answers with HTTP status %d",
                         i->work->url, status);
    return ftruncate(i->fd, (off_t)i->offset) < 0 ? error_errno(i->err, -errno, "cannot write %s", i->source) : 0;
}

/* ---- 3. and 5. checksums ---- */

static int hash_file(struct import *i, const char *path, const char *step, char ret_hex[DIGEST_TEXT_SIZE], uint64_t *ret_size)
{
    static const char zeros[64 * 1024];
    uint8_t digest[EVP_MAX_MD_SIZE];
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(i->err, -errno, "cannot open %s", path);
    CLEANUP_FREE char *piece = xcalloc(1, PIECE_BYTES);
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    ASSERT(hash != NULL && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1);
    uint64_t size = (uint64_t)st.st_size, begin = 0, stop = 0;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < size;) {
        if (at >= stop)
            r = sparse_file_next(fd, at, size, &begin, &stop);
        size_t n = (size_t)MIN(begin - MIN(begin, at), (uint64_t)sizeof(zeros));
        const char *data = zeros;
        if (r == 0 && n == 0) {
            ssize_t got = pread(fd, piece, (size_t)MIN(stop - at, (uint64_t)PIECE_BYTES), (off_t)at);
            r = got < 0 ? (errno == EINTR ? 0 : -errno) : got == 0 ? -EIO : 0;
            n = got > 0 ? (size_t)got : 0;
            data = piece;
        }
        if (r == 0 && n > 0)
            ASSERT(EVP_DigestUpdate(hash, data, n) == 1);
        at += n;
        if (at / (64 * PIECE_BYTES) != (at - n) / (64 * PIECE_BYTES))
            tell(i, step, at, size);
    }
    ASSERT(EVP_DigestFinal_ex(hash, digest, NULL) == 1);
    EVP_MD_CTX_free(hash);
    if (r < 0)
        return error_errno(i->err, r, "cannot read %s", path);
    for (unsigned k = 0; k < 32; k++)
        snprintf(ret_hex + 2 * k, 3, "%02x", digest[k]);
    *ret_size = size;
    return 0;
}

static int source_check(struct import *i, char hex[DIGEST_TEXT_SIZE], uint64_t *ret_size)
{
    const struct image_work *work = i->work;
    int r = hash_file(i, i->source, work->copied ? "computing the checksum" : "comparing the checksum", hex, ret_size);
    if (r < 0)
        return r;
    if (work->size_bytes != 0 && *ret_size != work->size_bytes)
        return error_set(i->err, -EBADMSG, ERROR_CHECKSUM, "the file has %llu bytes, and not the %llu given for it: it is cut off, or "
                         "another one", (unsigned long long)*ret_size, (unsigned long long)work->size_bytes);
    if (work->sha256 != NULL && strcmp(hex, work->sha256) != 0)
        return error_set(i->err, -EBADMSG, ERROR_CHECKSUM, "the file's SHA-256 is %s, and not the %s given for it; correct the file or "
                         "its checksum", hex, work->sha256);
    return *ret_size > 0 ? 0 : error_set(i->err, -EBADMSG, ERROR_CHECKSUM, "the file is empty");
}

/* ---- 4. conversion ---- */

static int read_source(void *data, size_t size, uint64_t offset, void *arg)
{
    const int *fd = arg;
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(*fd, (char *)data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        got += (size_t)n;
    }
    return 0;
}

static int find_disk(struct import *i, uint64_t size, struct image_convert *convert)
{
    struct ova_entry disk;
    CLEANUP_FD int fd = open(i->source, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(i->err, -errno, "cannot open %s", i->source);
    int r = ova_find_disk(read_source, &fd, size, &disk, i->err);
    if (r < 0)
        return r;
    if (disk.size == 0)
        return error_set(i->err, -EBADMSG, ERROR_CHECKSUM, "the disk of the OVA, %s, is empty", disk.name);
    convert->format = image_format_VMDK;
    convert->offset = disk.offset;
    convert->size = disk.size;
    return 0;
}

static void converting(unsigned permille, void *arg)
{
    tell(arg, "converting", permille, 1000);
}

static int convert(struct import *i, uint64_t source_size)
{
    struct image_convert c = {
        .format = i->work->format,
        .source = i->source,
        .target = i->raw,
        .root = i->root,
        .user = i->work->user,
        .progress = converting,
        .arg = i,
    };
    uint64_t size;
    int r = i->work->format == image_format_OVA ? find_disk(i, source_size, &c) : 0;
    if (r == 0)
        r = image_convert_run(&c, &size, i->err);
    rmdir(i->root);
    return r;
}

/* ---- 6. the end ---- */

static int keep(struct import *i, const char *path, const struct image_result *result)
{
    CLEANUP_FREE char *final = xasprintf("%s/%s", i->work->images_dir, result->sha256);
    struct bytes_writer out = {0};
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);
    bool there = stat(final, &st) == 0 && (uint64_t)st.st_size == result->size_bytes; /* the same content, checked once */
    if (fd < 0 || (!there && (fchown(fd, 0, 0) < 0 && geteuid() == 0)))
        return error_errno(i->err, -errno, "cannot take %s", path);
    if (!there && (fchmod(fd, 0644) < 0 || fsync(fd) < 0 || rename(path, final) < 0))
        return error_errno(i->err, -errno, "cannot keep it as %s", final);
    int r = file_sync_directory(i->work->images_dir, i->err);
    if (r < 0)
        return r;
    OBJECT_ENCODE(image_result, result, &out);
    r = file_write_atomic(i->done, out.data, out.size, 0600, i->err);
    bytes_writer_finish(&out);
    return r;
}

static bool done_already(const struct import *i, struct image_result *ret)
{
    CLEANUP_FREE char *text = NULL;
    size_t size;
    if (file_read(i->done, DONE_BYTES_MAX, &text, &size, NULL) < 0 ||
        OBJECT_DECODE(image_result, text, size, OBJECT_STORED, ret, NULL) < 0)
        return false;
    CLEANUP_FREE char *final = xasprintf("%s/%s", i->work->images_dir, ret->sha256);
    if (access(final, F_OK) == 0)
        return true;
    OBJECT_CLEAR(image_result, ret);
    return false;
}

static int import(struct import *i, struct image_result *result)
{
    const char *disk = i->work->format == image_format_RAW ? i->source : i->raw;
    char hex[DIGEST_TEXT_SIZE];
    uint64_t size;
    int r = i->work->url != NULL ? fetch(i) : 0;
    if (r == 0)
        r = source_check(i, hex, &size);
    if (r == 0 && i->work->format != image_format_RAW)
        r = convert(i, size);
    if (r == 0 && i->work->format != image_format_RAW)
        r = hash_file(i, i->raw, "reading the disk", hex, &size);
    if (r < 0)
        return r;
    OBJECT_TEXT(image_result, result, sha256, hex);
    OBJECT_SET(image_result, result, size_bytes, size);
    return keep(i, disk, result);
}

int image_import_run(const struct image_work *work, const struct image_import_listener *listener, struct image_result *ret_result,
                     struct error *err)
{
    struct image_result result = {0};
    struct error own = {.code = 0};
    struct import i = {.work = work, .listener = listener, .err = &own, .fd = -1};
    i.source = xasprintf("%s/%s.%s", work->work_dir, work->image, work->copied ? "copy" : "source");
    i.raw = xasprintf("%s/%s.raw", work->work_dir, work->image);
    i.done = xasprintf("%s/%s.done", work->work_dir, work->image);
    i.root = xasprintf("%s/%s.root", work->work_dir, work->image);
    int r = done_already(&i, &result) ? 0 : import(&i, &result);
    if (r < 0) {
        unlink(i.raw);
        OBJECT_CLEAR(image_result, &result);
        if (err != NULL)
            *err = own;
    } else {
        unlink(i.raw);
        unlink(i.source);
        *ret_result = result;
    }
    close_fd(&i.fd);
    free(i.source);
    free(i.raw);
    free(i.done);
    free(i.root);
    return r;
}

void image_import_clean(const char *work_dir, const char *image, bool source)
{
    static const char *const suffixes[] = {"raw", "done", "root", "copy", "source"};
    for (size_t k = 0; k < ARRAY_SIZE(suffixes) - !source; k++) {
        CLEANUP_FREE char *path = xasprintf("%s/%s.%s", work_dir, image, suffixes[k]);
        if (unlink(path) < 0 && errno == EISDIR)
            rmdir(path);
    }
}
