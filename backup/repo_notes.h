/* Two small objects of a store:
 *
 *   "damaged/<16 digits>"    what a verification has found: frames that are not what they were. Their chunks do not
 * count as stored any more, so the next backup that has the data writes them again. "condemned/<16 digits>"  what a
 * collection is about to remove, and which sessions were there when it said so (repo_gc.h).
 *
 *   0 magic "DRVBDAMG" or "DRVBGONE" | 8 u32 version | 12 u32 packs | 16 u32 sessions | 20 zeroes (4)
 *     pack: hash[32] of its name | u32 frame (all ones: the whole pack)
 *     session: its 16 digits
 *     last 32: BLAKE3 of all before */
#ifndef BACKUP_REPO_NOTES_H
#define BACKUP_REPO_NOTES_H

#include "backup/chunk_hash.h"
#include "common/bytes.h"
#include "common/error.h"

enum {
    REPO_NOTES_VERSION = 1,
    REPO_NOTES_BYTES_MAX = 64 << 20,
    REPO_SESSION_TEXT_BYTES = 17, /* 16 digits and the terminator */
};
#define REPO_WHOLE_PACK UINT32_MAX

enum repo_note_kind { REPO_DAMAGED, REPO_CONDEMNED };

struct repo_note {
    struct chunk_hash pack;
    uint32_t frame;
};
struct repo_notes {
    struct repo_note *notes;
    uint32_t note_count, note_capacity;
    char (*sessions)[REPO_SESSION_TEXT_BYTES];
    uint32_t session_count;
};

void repo_notes_add(struct repo_notes *n, const struct chunk_hash *pack, uint32_t frame);
void repo_notes_add_session(struct repo_notes *n, const char *session);
void repo_notes_encode(const struct repo_notes *n, enum repo_note_kind kind, struct bytes_writer *out);
/* Adds to @n. -EBADMSG, -ENOTSUP in words. */
int repo_notes_decode(const void *data, size_t size, enum repo_note_kind kind, struct repo_notes *n,
                      struct error *err);
void repo_notes_finish(struct repo_notes *n);

#endif
