/* Getting one image; see image_fetch.h. */
#include "compute/agent/image_fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_client.h"
#include "common/http_range.h"
#include "common/log.h"
#include "common/sparse_file.h"
#include "compute/agent/image_stream.h"
#include "compute/agent/web_get.h"

#define COPY_BYTES (256u * 1024)
#define FILE_SCHEME "file://"
#define DIGEST_TEXT_SIZE 65

static const char zeros[64 * 1024];

/* One attempt at getting it. */
struct attempt {
    struct image_fetch *f;
    int fd;
    EVP_MD_CTX *hash;
    uint64_t offset; /* written and hashed */
    uint64_t there;  /* written by an earlier attempt, and perhaps not hashed yet */
    bool mixed;      /* not all of it is from the place that is asked */
    struct image_stream_reader reader;
};

static int fail(struct attempt *a, int code, enum error_kind kind, const char *what)
{
    return error_set(&a->f->err, code, kind, "image from %s: %s", a->f->place, what);
}

/* ---- what arrives ---- */

static int may_take(struct attempt *a, uint64_t size)
{
    const struct artifact *artifact = &a->f->artifact;
    if (atomic_load(&a->f->stop))
        return fail(a, -ECANCELED, ERROR_CANCELLED, "nothing waits for it any more");
    if (artifact->size_bytes != 0 && size > artifact->size_bytes - MIN(a->offset, artifact->size_bytes))
        return fail(a, -EBADMSG, ERROR_CHECKSUM, "it is longer than the size given for it");
    return 0;
}

static int hash_add(struct attempt *a, const void *data, size_t size)
{
    return EVP_DigestUpdate(a->hash, data, size) == 1 ? 0 : fail(a, -EIO, ERROR_INTERNAL, "cannot hash it");
}

static int hash_zeros(struct attempt *a, uint64_t size)
{
    while (size > 0) {
        size_t n = (size_t)MIN(size, (uint64_t)sizeof(zeros));
        int r = atomic_load(&a->f->stop) ? fail(a, -ECANCELED, ERROR_CANCELLED, "nothing waits for it any more")
                                         : hash_add(a, zeros, n);
        if (r < 0)
            return r;
        size -= n;
    }
    return 0;
}

static void advance(struct attempt *a, uint64_t size)
{
    a->offset += size;
    atomic_store(&a->f->done_bytes, a->offset);
}

static int take(struct attempt *a, const void *data, size_t size)
{
    int r = may_take(a, size);
    if (r == 0)
        r = hash_add(a, data, size);
    if (r < 0)
        return r;
    r = sparse_file_write(a->fd, data, size, a->offset);
    if (r < 0) {
        error_errno(&a->f->err, r, "image from %s: cannot write %s", a->f->place, a->f->part_path);
        if (r == -ENOSPC)
            a->f->err.kind = ERROR_NO_SPACE;
        return r;
    }
    advance(a, size);
    return 0;
}

static int take_hole(struct attempt *a, uint64_t size)
{
    int r = may_take(a, size);
    if (r == 0)
        r = hash_zeros(a, size);
    if (r == 0)
        advance(a, size);
    return r;
}

static int restart(struct attempt *a)
{
    a->offset = a->there = 0;
    a->mixed = false;
    atomic_store(&a->f->done_bytes, 0);
    if (ftruncate(a->fd, 0) < 0)
        return error_errno(&a->f->err, -errno, "cannot begin %s anew", a->f->part_path);
    return EVP_DigestInit_ex(a->hash, EVP_sha256(), NULL) == 1 ? 0 : fail(a, -EIO, ERROR_INTERNAL, "cannot hash it");
}

/* ---- a file, whole and by its holes ---- */

/* [*at, end) of @fd given to @take_data and @take_zeros. */
static int read_runs(struct attempt *a, int fd, uint64_t end, int (*take_data)(struct attempt *, const void *, size_t),
                     int (*take_zeros)(struct attempt *, uint64_t))
{
    CLEANUP_FREE char *buffer = xcalloc(1, COPY_BYTES);
    for (uint64_t at = 0, begin, stop; at < end; at = stop) {
        int r = sparse_file_next(fd, at, end, &begin, &stop);
        if (r < 0)
            return error_errno(&a->f->err, r, "image from %s: cannot read it", a->f->place);
        if (begin > at && (r = take_zeros(a, begin - at)) < 0)
            return r;
        while (begin < stop) {
            ssize_t n = pread(fd, buffer, (size_t)MIN(stop - begin, (uint64_t)COPY_BYTES), (off_t)begin);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return n < 0 ? error_errno(&a->f->err, -errno, "image from %s: cannot read it", a->f->place)
                             : fail(a, -EIO, ERROR_INTERNAL, "it became shorter while it was read");
            if ((r = take_data(a, buffer, (size_t)n)) < 0)
                return r;
            begin += (uint64_t)n;
        }
    }
    return 0;
}

/* A device or a pipe. */
static int read_through(struct attempt *a, int fd)
{
    CLEANUP_FREE char *buffer = xcalloc(1, COPY_BYTES);
    for (;;) {
        ssize_t n = read(fd, buffer, COPY_BYTES);
        if (n == 0)
            return 0;
        if (n < 0 && errno == EINTR)
            continue;
        int r = n < 0 ? error_errno(&a->f->err, -errno, "image from %s: cannot read it", a->f->place)
                      : take(a, buffer, (size_t)n);
        if (r < 0)
            return r;
    }
}

static int from_file(struct attempt *a)
{
    struct stat st;
    CLEANUP_FD int from = open(a->f->artifact.url + strlen(FILE_SCHEME), O_RDONLY | O_CLOEXEC);
    if (from < 0 || fstat(from, &st) < 0)
        return error_errno(&a->f->err, -errno, "image %s: this host cannot open it", a->f->artifact.url);
    int r = restart(a);
    if (r < 0)
        return r;
    if (!S_ISREG(st.st_mode))
        return read_through(a, from);
    atomic_store(&a->f->total_bytes, (uint64_t)st.st_size);
    return read_runs(a, from, (uint64_t)st.st_size, take, take_hole);
}

/* ---- what an earlier attempt has left ---- */

static int rehash(struct attempt *a, const void *data, size_t size)
{
    int r = may_take(a, size);
    if (r == 0)
        r = hash_add(a, data, size);
    a->offset += size;
    return r;
}

static int rehash_hole(struct attempt *a, uint64_t size)
{
    int r = hash_zeros(a, size);
    a->offset += size;
    return r;
}

static int go_on(struct attempt *a)
{
    struct stat st;
    snprintf(a->f->place, sizeof(a->f->place), "an earlier attempt");
    int r = fstat(a->fd, &st) < 0 ? -errno : 0;
    if (r == 0)
        a->there = (uint64_t)st.st_size;
    if (a->there > 0)
        r = read_runs(a, a->fd, (uint64_t)st.st_size, rehash, rehash_hole);
    if (r < 0 && r != -ECANCELED)
        return restart(a);
    atomic_store(&a->f->done_bytes, a->offset);
    return r;
}

/* ---- HTTP ---- */

/* @r: what became of the call, @err its words, or its server's. */
static int answer_judge(struct attempt *a, int r, int status, const struct error *err)
{
    if (a->f->err.code != 0) /* our own refusal of a piece says more than the client's word for it */
        return a->f->err.code;
    if (r < 0)
        return fail(a, r, err->kind, err->text);
    if (status >= 200 && status < 300)
        return 0;
    if (err->code != 0)
        return fail(a, err->kind == ERROR_OVERLOAD ? -EBUSY : -EIO, err->kind, err->text);
    return error_set(&a->f->err, -EIO, status == 404 ? ERROR_NOT_FOUND : ERROR_UNREACHABLE,
                     "image from %s: its server answers with HTTP status %d", a->f->place, status);
}

static int call_perform(struct attempt *a, const struct http_call_options *options)
{
    struct error err = {.code = 0};
    int status = 0;
    a->f->err = (struct error){.code = 0};
    int r = http_client_perform(options, &status, NULL, NULL, &err);
    return answer_judge(a, r, status, &err);
}

static int web_data(const void *data, size_t size, void *arg)
{
    return take(arg, data, size);
}

/* 200 is the whole from its beginning, whatever was asked for; 206 must be what was asked for. */
static int web_head(const struct web_get_head *head, void *arg)
{
    struct attempt *a = arg;
    struct http_range range;
    uint64_t length;
    if (head->status == 200 && a->offset > 0 && restart(a) < 0)
        return a->f->err.code;
    if (head->status == 206 && (http_range_parse_answer(head->content_range, &range) < 0 || range.first != a->offset ||
                                range.end != range.total))
        return fail(a, -EBADMSG, ERROR_UNREACHABLE, "its server gives another part than the one that was asked for");
    if (head->status == 206)
        atomic_store(&a->f->total_bytes, range.total);
    else if (http_range_number(head->content_length, &length) == 0)
        atomic_store(&a->f->total_bytes, length);
    return 0;
}

static int from_web(struct attempt *a)
{
    const struct web_get_options options = {
        .url = a->f->artifact.url,
        .offset = a->offset,
        .user = a->f->web_user,
        .stop = &a->f->stop,
        .on_head = web_head,
        .on_data = web_data,
        .arg = a,
    };
    struct error err = {.code = 0};
    int status = 0;
    a->f->err = (struct error){.code = 0};
    int r = web_get_perform(&options, &status, &err);
    return r == -ECANCELED ? may_take(a, 0) : answer_judge(a, r, status, &err);
}

static int peer_data(const void *data, size_t size, void *arg)
{
    struct attempt *a = arg;
    struct error err = {.code = 0};
    int r = image_stream_reader_feed(&a->reader, data, size, &err);
    if (r < 0 && a->f->err.code == 0)
        fail(a, r, err.kind, err.text);
    return r;
}

static int peer_run(const void *data, size_t size, uint64_t offset, void *arg)
{
    struct attempt *a = arg;
    ASSERT(offset == a->offset);
    return take(a, data, size);
}

static int peer_hole(uint64_t size, uint64_t offset, void *arg)
{
    struct attempt *a = arg;
    ASSERT(offset == a->offset);
    return take_hole(a, size);
}

static int peer_headers(const struct http_answer *head, void *arg)
{
    struct attempt *a = arg;
    uint64_t size, given = a->f->artifact.size_bytes;
    if (head->status != 200)
        return 0;
    if (http_range_number(http_answer_header(head, "X-Drover-Image-Size"), &size) < 0 || size < a->offset ||
        (given != 0 && size != given))
        return fail(a, -EBADMSG, ERROR_CHECKSUM, "what it has under this checksum is of another size");
    atomic_store(&a->f->total_bytes, size);
    a->reader.size = size;
    return 0;
}

static int from_peer(struct attempt *a, const struct image_peer *peer)
{
    const struct image_fetch_identity *identity = a->f->identity;
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/images/%s/stream?from=%llu", peer->address,
                                       a->f->artifact.sha256, (unsigned long long)a->offset);
    CLEANUP_FREE char *prefix = xasprintf("%s%s", identity->host_prefix, peer->host);
    const struct http_call_options options = {
        .url = url,
        .tls = identity->tls,
        .peer_prefix = prefix,
        .idle_ms = IMAGE_FETCH_IDLE_MS,
        .on_data = peer_data,
        .on_headers = peer_headers,
        .arg = a,
    };
    image_stream_reader_init(&a->reader, 0, a->offset);
    a->reader.on_data = peer_run;
    a->reader.on_hole = peer_hole;
    a->reader.arg = a;
    int r = call_perform(a, &options);
    if (r == 0 && !a->reader.ended)
        r = fail(a, -ECONNRESET, ERROR_UNREACHABLE, "it broke off");
    return r;
}

/* ---- places ---- */

static bool is_file(const struct image_fetch *f)
{
    return f->artifact.url != NULL && strncmp(f->artifact.url, FILE_SCHEME, strlen(FILE_SCHEME)) == 0;
}

static size_t places(const struct image_fetch *f)
{
    size_t peers = f->identity != NULL && f->identity->tls != NULL ? f->peers.count : 0;
    return peers + (f->artifact.url != NULL);
}

/* Place @i: a file first, for it costs nothing; agents; then the web, which is the farthest. */
static int from_place(struct attempt *a, size_t i)
{
    struct image_fetch *f = a->f;
    bool file = is_file(f);
    if (f->artifact.url != NULL && i == (file ? 0 : places(f) - 1)) {
        snprintf(f->place, sizeof(f->place), "%s", f->artifact.url);
        return file ? from_file(a) : from_web(a);
    }
    const struct image_peer *peer = (const struct image_peer *)f->peers.items + (i - file);
    snprintf(f->place, sizeof(f->place), "host %s", peer->address);
    return from_peer(a, peer);
}

static int check(struct attempt *a)
{
    struct image_fetch *f = a->f;
    uint8_t digest[EVP_MAX_MD_SIZE];
    char hex[DIGEST_TEXT_SIZE] = "";
    unsigned size = 0;
    if (f->artifact.size_bytes != 0 && a->offset != f->artifact.size_bytes)
        return fail(a, -EBADMSG, ERROR_CHECKSUM, "it is shorter than the size given for it");
    if (EVP_DigestFinal_ex(a->hash, digest, &size) != 1)
        return fail(a, -EIO, ERROR_INTERNAL, "cannot hash it");
    for (unsigned i = 0; i < size; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    if (strcmp(hex, f->artifact.sha256) != 0)
        return error_set(&f->err, -EBADMSG, ERROR_CHECKSUM,
                         "image from %s: its SHA-256 is %s, and not the %s given for it; correct the image or its checksum",
                         f->place, hex, f->artifact.sha256);
    return 0;
}

static bool is_final(int status)
{
    return status == 0 || status == -ECANCELED || status == -ENOSPC;
}

/* All places go on where the one before has ended. -EBADMSG with *ret_bad: that place alone gave what was wrong. */
static int fetch_together(struct attempt *a, size_t *ret_bad)
{
    size_t count = places(a->f), i;
    int r = is_file(a->f) ? restart(a) : go_on(a);
    *ret_bad = count;
    if (r < 0)
        return r;
    for (i = 0, r = -ENOENT; i < count && !is_final(r); i++) {
        if (i > 0)
            log_info("image-place", "sha256=%s error=\"%s, ignoring\"", a->f->artifact.sha256, a->f->err.text);
        a->mixed = a->offset > 0;
        r = from_place(a, i);
        if (r == -EBADMSG)
            *ret_bad = i;
        if (r == -EBADMSG && restart(a) < 0)
            return a->f->err.code;
    }
    if (r == 0 && (r = check(a)) < 0)
        *ret_bad = a->mixed ? count : i - 1;
    return r;
}

/* Each from the beginning, for who is to blame cannot be told from what several gave. */
static int fetch_alone(struct attempt *a, size_t bad)
{
    size_t count = places(a->f);
    struct error wrong = a->f->err;
    int r = wrong.code;
    for (size_t i = 0; i < count && !is_final(r); i++) {
        if (i == bad)
            continue;
        log_warning("image-place", "sha256=%s error=\"%s, ignoring\"", a->f->artifact.sha256, a->f->err.text);
        if (restart(a) < 0)
            return a->f->err.code;
        r = from_place(a, i);
        if (r == 0)
            r = check(a);
        if (r == -EBADMSG)
            wrong = a->f->err;
    }
    if (!is_final(r))
        a->f->err = wrong; /* says more than that another place cannot be reached */
    return is_final(r) ? r : wrong.code;
}

static int keep(struct attempt *a)
{
    struct image_fetch *f = a->f;
    if (ftruncate(a->fd, (off_t)a->offset) < 0 || fchmod(a->fd, 0644) < 0 || fsync(a->fd) < 0 ||
        rename(f->part_path, f->final_path) < 0)
        return error_errno(&f->err, -errno, "image from %s: cannot keep it as %s", f->place, f->final_path);
    return file_sync_directory(f->dir, &f->err);
}

static int attempt_run(struct attempt *a)
{
    struct image_fetch *f = a->f;
    size_t bad;
    if (EVP_DigestInit_ex(a->hash, EVP_sha256(), NULL) != 1)
        return fail(a, -ENOMEM, ERROR_INTERNAL, "cannot hash it");
    if (places(f) == 0)
        return error_set(&f->err, -ENOENT, ERROR_NOT_FOUND, "image %s: no host that runs holds it, and it has no URL",
                         f->artifact.sha256);
    int r = fetch_together(a, &bad);
    if (r == -EBADMSG)
        r = fetch_alone(a, bad);
    return r < 0 ? r : keep(a);
}

/* What was reached is worth keeping only where the rest may come; also by an attempt whose end this one has not come to again. */
static void part_leave(struct attempt *a, int status)
{
    uint64_t reached = MAX(a->offset, a->there);
    bool again = status != -EBADMSG && status != -ENOSPC && reached > 0 && !is_file(a->f);
    if (!again || ftruncate(a->fd, (off_t)reached) < 0)
        unlink(a->f->part_path);
}

void image_fetch_run(struct image_fetch *f)
{
    struct attempt a = {.f = f};
    f->err = (struct error){.code = 0};
    atomic_store(&f->done_bytes, 0);
    a.fd = open(f->part_path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (a.fd < 0) {
        f->status = error_errno(&f->err, -errno, "cannot make %s", f->part_path);
        return;
    }
    a.hash = EVP_MD_CTX_new();
    ASSERT(a.hash != NULL);
    f->status = attempt_run(&a);
    if (f->status < 0)
        part_leave(&a, f->status);
    EVP_MD_CTX_free(a.hash);
    close(a.fd);
}
