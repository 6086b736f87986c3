/* Transfers of files; see transfer.h. */
#include "cli/transfer.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/output.h"
#include "common/sparse_file.h"

#define BAR_WIDTH 30
#define SHOW_MS 200
#define PIECE_BYTES (1u << 20)

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void transfer_begin(struct transfer *t, const struct invocation *call, const char *what, uint64_t done, uint64_t total)
{
    *t = (struct transfer){.call = call, .what = what, .total = total, .begin_bytes = done, .done = done};
    t->begin_ms = t->progress_ms = now_ms();
}

static void show(struct transfer *t, bool last)
{
    char bar[BAR_WIDTH + 1], line[300];
    uint64_t ms = now_ms() - t->begin_ms, moved = t->done - MIN(t->done, t->begin_bytes);
    uint64_t rate = ms > 0 ? moved * 1000 / ms : 0, left_s = rate > 0 ? (t->total - t->done) / rate : 0;
    size_t filled = t->total > 0 ? (size_t)(t->done * BAR_WIDTH / t->total) : BAR_WIDTH;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', filled);
    bar[BAR_WIDTH] = '\0';
    int n = snprintf(line, sizeof line, "%s [%s] %llu of %llu MiB, %llu MiB/s", t->what, bar,
                     (unsigned long long)(t->done >> 20), (unsigned long long)(t->total >> 20), (unsigned long long)(rate >> 20));
    if (!last && ms > 1000 && rate > 0)
        snprintf(line + n, sizeof line - (size_t)n, ", %llu:%02llu left", (unsigned long long)(left_s / 60),
                 (unsigned long long)(left_s % 60));
    output_progress(t->call, line, last);
}

void transfer_progress(struct transfer *t, uint64_t done)
{
    uint64_t now = now_ms();
    done = MIN(done, t->total);
    if (done != t->done)
        t->progress_ms = now;
    t->done = done;
    unsigned percent = t->total > 0 ? (unsigned)(done * 100 / t->total) : 100;
    bool due = isatty(STDERR_FILENO) ? now - t->shown_ms >= SHOW_MS : percent / 10 != t->shown_percent / 10;
    if (!due)
        return;
    t->shown_ms = now;
    t->shown_percent = percent;
    show(t, false);
}

void transfer_end(struct transfer *t)
{
    show(t, true);
}

bool transfer_again(struct transfer *t)
{
    nanosleep(&(struct timespec){.tv_nsec = TRANSFER_PAUSE_MS * 1000000L}, NULL);
    return now_ms() - t->progress_ms < (uint64_t)t->call->timeout_s * 1000;
}

static int hash_run(EVP_MD_CTX *hash, int fd, uint64_t at, uint64_t end, char *piece, struct transfer *t)
{
    while (at < end) {
        ssize_t n = pread(fd, piece, (size_t)MIN(end - at, (uint64_t)PIECE_BYTES), (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        ASSERT(EVP_DigestUpdate(hash, piece, (size_t)n) == 1);
        at += (uint64_t)n;
        if (t != NULL)
            transfer_progress(t, at);
    }
    return 0;
}

static void hash_hole(EVP_MD_CTX *hash, uint64_t size)
{
    static const char zeros[64 * 1024];
    for (; size > 0; size -= MIN(size, (uint64_t)sizeof zeros))
        ASSERT(EVP_DigestUpdate(hash, zeros, (size_t)MIN(size, (uint64_t)sizeof zeros)) == 1);
}

int transfer_sha256(int fd, const char *path, struct transfer *t, char ret_hex[TRANSFER_SHA256_SIZE], uint64_t *ret_size,
                    struct error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    struct stat st;
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    CLEANUP_FREE char *piece = xcalloc(1, PIECE_BYTES);
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    ASSERT(hash != NULL && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1);
    uint64_t size = rc == 0 ? (uint64_t)st.st_size : 0;
    if (t != NULL)
        t->total = size;
    for (uint64_t at = 0, begin, end; rc == 0 && at < size; at = end) {
        rc = sparse_file_next(fd, at, size, &begin, &end);
        if (rc < 0)
            break;
        hash_hole(hash, begin - at);
        rc = hash_run(hash, fd, begin, end, piece, t);
    }
    ASSERT(EVP_DigestFinal_ex(hash, digest, NULL) == 1);
    EVP_MD_CTX_free(hash);
    if (rc < 0)
        return error_set(err, rc, ERROR_INVALID, "cannot read %s: %s", path, strerror(-rc));
    for (unsigned i = 0; i < 32; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
    *ret_size = size;
    return 0;
}
