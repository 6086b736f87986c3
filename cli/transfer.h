/* What transfers of files share: a line of progress, the checksum of a file, patience. */
#ifndef CLI_TRANSFER_H
#define CLI_TRANSFER_H

#include "cli/invocation.h"
#include "common/error.h"

#define TRANSFER_PAUSE_MS 500u
#define TRANSFER_SHA256_SIZE 65

struct transfer {
    const struct invocation *call;
    const char *what; /* "upload of debian" */
    uint64_t total;
    /* its own */
    uint64_t begin_ms, begin_bytes; /* of the rate */
    uint64_t shown_ms, progress_ms, done;
    unsigned shown_percent;
};

void transfer_begin(struct transfer *t, const struct invocation *call, const char *what, uint64_t done, uint64_t total);
/* A bar with rate and time left: now and then on a terminal, each tenth elsewhere. */
void transfer_progress(struct transfer *t, uint64_t done);
void transfer_end(struct transfer *t);
/* After an attempt that failed: wait a moment. False: nothing has moved for the call's --timeout, give up. */
bool transfer_again(struct transfer *t);
/* SHA-256 of a file in hexadecimal, holes read as such; @t (may be NULL) is told of it. */
int transfer_sha256(int fd, const char *path, struct transfer *t, char ret_hex[TRANSFER_SHA256_SIZE], uint64_t *ret_size,
                    struct error *err);

#endif
