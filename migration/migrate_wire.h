/* What is said in a live migration beside memory and state: sections of tag MIGRATE in the streams from source to
 * target (stream.h), and replies the other way on the same sockets.
 *
 * Up to MIGRATE_CHANNELS_MAX connections, each a stream of its own with the same header. Number 0 carries everything;
 * the others only pages: a page always travels on the same one, so that none overtakes another of its kind.
 *
 *   source                                               target
 *   -- channel 0 ----------------------------------------------------------------------------------------------
 *   HEADER, OPEN, STATE "check-..."..., CHECK     ->     is this a machine for me?        -> ACCEPTED | REFUSED
 *   (others: HEADER, OPEN                         ->                                      -> ACCEPTED | REFUSED)
 *   PAGES..., SYNC n          the guest runs      ->     applied                          -> SYNCED n      each round
 *   (the guest stands still)
 *   STATE..., PAGES..., VERIFY..., FINAL          ->     all channels at FINAL, compared,
 *   (others: PAGES..., FINAL)                            loaded                           -> READY | REFUSED
 *   GO: from here on the source never resumes     ->     runs                             -> RUNNING
 *   or CANCEL: it goes on itself                  ->     ends
 *
 * Post-copy (version 2; the target says in ACCEPTED whether it can): the target runs before all memory is there, and asks
 * for the pages that are touched. Memory at the source stays as it is from the pause on.
 *
 *   STATE..., LACK..., FINAL (POSTCOPY)           ->     drops what is lacking; loaded, and   -> READY
 *   (others: FINAL (POSTCOPY), then at once          what the loading touches is asked for:
 *    PAGES..., SYNC n                             ->     what is lacking is put into place   -> SYNCED n
 *    the last one: pages that were asked for      <-                                         <- WANTED page)
 *   GO                                            ->     runs                             -> RUNNING
 *   (on all: PAGES..., SYNC n                     ->                                      -> SYNCED n)
 *   DONE: all that was lacking has been sent      ->     is it all?                       -> COMPLETE
 *
 *   When a connection is lost after GO both sides drop all of them; the target holds its guest still. The source
 *   connects again (each: HEADER, OPEN with RESUME; -> ACCEPTED) and goes on with PAGES, from what was not SYNCED on.
 *
 * Hand-over on one host: the source's memory is the target's as well, and so are taps, by descriptor. Before anything else
 * channel 0, the only one, carries MIGRATE_HANDLES_MAGIC and u64 their number (SCM_RIGHTS, unix(7)); no page is sent.
 *
 *   section MIGRATE   u16 kind, u16 0, u32 number, then by kind:
 *     OPEN    number = channel; u32 channels, u32 flags (1: VERIFY follows; 2: RESUME), 16 bytes that name this
 *             migration
 *     CHECK   -
 *     SYNC    number = round
 *     VERIFY  number = region; u64 first piece; a u32 CRC32C for each MIGRATE_PIECE_BYTES of it
 *     FINAL   number = flags (1: the guest was paused by its user; 2: post-copy; 4: the source has let go of disks that other
 *             hosts reach; refused by those who do not know it)
 *     GO      u64 epoch that the target owns it with; 0: there is no cluster
 *     CANCEL  text
 *     LACK    number = region; u64 first page, a multiple of 64; then a bit for each page that the target has not, the
 *             lowest first, whole u64. Ascending; what is not told is there, or zero
 *     DONE    -
 *   reply    u32 magic, u16 kind, u16 bytes of text, u64 value, text, u32 CRC32C of all before
 *
 * Both sides treat what comes as hostile: lengths are judged first, order is checked by the receiver of each. */
#ifndef MIGRATION_MIGRATE_WIRE_H
#define MIGRATION_MIGRATE_WIRE_H

#include "migration/stream.h"

enum {
    MIGRATE_VERSION = 2,     /* of the newest steps; a step is written with the version that it came with */
    MIGRATE_CHANNELS_MAX = 16,
    MIGRATE_ID_BYTES = 16,
    MIGRATE_PIECE_BYTES = 1 << 20,
    MIGRATE_PIECES_MAX = 65536, /* of one VERIFY section */
    MIGRATE_LACK_BYTES_MAX = 65536, /* of one LACK section: 2 GiB of memory */
    MIGRATE_TEXT_BYTES_MAX = 500,
    MIGRATE_REPLY_BYTES = 16, /* before the text */
};
#define MIGRATE_HANDLES_MAGIC UINT64_C(0x444e414852564f52) /* "ROVRHAND" */

enum migrate_kind {
    MIGRATE_OPEN = 1,
    MIGRATE_CHECK,
    MIGRATE_SYNC,
    MIGRATE_VERIFY,
    MIGRATE_FINAL,
    MIGRATE_GO,
    MIGRATE_CANCEL,
    MIGRATE_LACK, /* from here on: version 2 */
    MIGRATE_DONE,
    MIGRATE_KIND_END,
};
enum {
    MIGRATE_OPEN_VERIFY = 1,
    MIGRATE_OPEN_RESUME = 2,
    MIGRATE_FINAL_PAUSED = 1,
    MIGRATE_FINAL_POSTCOPY = 2,
    MIGRATE_FINAL_RELEASED = 4,
};

struct migrate_step {
    enum migrate_kind kind;
    uint32_t number;
    uint32_t channels, flags;     /* OPEN */
    uint8_t id[MIGRATE_ID_BYTES]; /* OPEN */
    uint64_t value;               /* VERIFY: first piece; GO: epoch; LACK: first page */
    const uint8_t *bits;          /* LACK: little-endian u64 words, in the section's payload */
    uint32_t bits_bytes;
    const uint8_t *crcs;          /* VERIFY: little-endian, in the section's payload */
    uint32_t crc_count;
    char text[MIGRATE_TEXT_BYTES_MAX + 1]; /* CANCEL */
};

int migrate_step_put(struct stream_writer *out, const struct migrate_step *step, struct error *err);
/* -EBADMSG for anything that is not as above. */
int migrate_step_decode(const struct stream_section *section, struct migrate_step *ret_step, struct error *err);

enum migrate_reply_kind {
    MIGRATE_ACCEPTED = 1,
    MIGRATE_SYNCED,
    MIGRATE_READY,
    MIGRATE_RUNNING,
    MIGRATE_REFUSED,
    MIGRATE_WANTED,
    MIGRATE_COMPLETE,
    MIGRATE_REPLY_END,
};
#define MIGRATE_CAN_POSTCOPY (1ull << 32) /* in ACCEPTED, beside the version */
/* WANTED: the region in the highest byte, the page in the others. */
static inline uint64_t migrate_wanted(size_t region, uint64_t page)
{
    return (uint64_t)region << 56 | page;
}

struct migrate_reply {
    enum migrate_reply_kind kind;
    uint64_t value; /* ACCEPTED: version and MIGRATE_CAN_...; SYNCED: round; RUNNING: microseconds from GO until the guest ran;
                     * WANTED: migrate_wanted() */
    char text[MIGRATE_TEXT_BYTES_MAX + 1]; /* REFUSED */
};
#define MIGRATE_REPLY_BYTES_MAX (MIGRATE_REPLY_BYTES + MIGRATE_TEXT_BYTES_MAX + 4)

void migrate_reply_encode(const struct migrate_reply *reply, struct bytes_writer *out);
/* How many bytes the reply that begins at @data has, judged by its first MIGRATE_REPLY_BYTES; -EBADMSG in words. */
ssize_t migrate_reply_size(const uint8_t *data, struct error *err);
int migrate_reply_decode(const uint8_t *data, size_t size, struct migrate_reply *ret_reply, struct error *err);

#endif
