/* One connection of a migration: a stream socket that is written and read by one thread, with patience that ends, a
 * limit of bandwidth, and a way to be given up from another thread.
 *
 * Failure modes of reading and writing, in words: -ECANCELED once *cancel is set (within CHANNEL_SLICE_MS), -ETIMEDOUT
 * when nothing moves for patience_ms or deadline_us has passed, -ECONNRESET at the end of the peer, or what the socket says.
 * Threads: one for each channel; *cancel is set and *written is read by any. */
#ifndef MIGRATION_MIGRATE_CHANNEL_H
#define MIGRATION_MIGRATE_CHANNEL_H

#include "migration/guest.h"
#include "migration/migrate_wire.h"

enum { CHANNEL_SLICE_MS = 50, CHANNEL_BURST_MS = 20 };

struct migrate_channel {
    int fd;                   /* owned */
    const bool *cancel;       /* atomic */
    unsigned patience_ms;     /* 0: for ever */
    uint64_t deadline_us;     /* of migrate_now_us(): no longer, however much moves; 0: none */
    uint64_t bytes_per_s_max; /* 0: none */
    uint64_t free_at_us;      /* when the limit allows the next write */
    uint64_t *written;        /* counts bytes, atomic; NULL: nobody counts. Borrowed */
    uint8_t *buffer;          /* of migrate_channel_section; owned */
};

void migrate_channel_init(struct migrate_channel *c, int fd, const bool *cancel, unsigned patience_ms);
void migrate_channel_finish(struct migrate_channel *c);
/* As far as this side knows. */
bool migrate_channel_is_open(const struct migrate_channel *c);

/* A stream_write_fn: @arg is the channel. */
int migrate_channel_write(void *arg, const void *data, size_t size, struct error *err);
/* Up to @size bytes, at least one. */
ssize_t migrate_channel_read(struct migrate_channel *c, void *data, size_t size, struct error *err);

/* MIGRATE_HANDLES_MAGIC with descriptors, before anything else; the peer gets copies. */
int migrate_channel_put_handles(struct migrate_channel *c, const int *fds, size_t count, struct error *err);
/* The other side: *ret_count of them in @ret_fds, the caller's. -EBADMSG where something else comes. */
int migrate_channel_take_handles(struct migrate_channel *c, int ret_fds[GUEST_HANDLES_MAX], size_t *ret_count,
                                 struct error *err);

/* The next reply, of whatever kind; a REFUSED is an error with the peer's words. */
int migrate_channel_reply(struct migrate_channel *c, struct migrate_reply *ret_reply, struct error *err);
/* The same, which must be of @kind. */
int migrate_channel_expect(struct migrate_channel *c, enum migrate_reply_kind kind, struct migrate_reply *ret_reply,
                           struct error *err);
int migrate_channel_answer(struct migrate_channel *c, enum migrate_reply_kind kind, uint64_t value, const char *text,
                           struct error *err);
/* The next section of @reader's stream; its payload is valid until the next call. */
int migrate_channel_section(struct migrate_channel *c, struct stream_reader *reader, struct stream_section *ret_section,
                            struct error *err);

uint64_t migrate_now_us(void); /* CLOCK_MONOTONIC */

#endif
