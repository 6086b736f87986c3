/* Lists of damaged and condemned packs: see repo_notes.h. */
#include "backup/repo_notes.h"

#include <errno.h>
#include <string.h>

#define SESSION_DIGITS (REPO_SESSION_TEXT_BYTES - 1)

static const char *const magics[] = {[REPO_DAMAGED] = "DRVBDAMG", [REPO_CONDEMNED] = "DRVBGONE"};

void repo_notes_add(struct repo_notes *n, const struct chunk_hash *pack, uint32_t frame)
{
    if (n->note_count == n->note_capacity) {
        n->note_capacity = MAX(n->note_capacity * 2, 32u);
        n->notes = xrealloc(n->notes, n->note_capacity * sizeof *n->notes);
    }
    n->notes[n->note_count++] = (struct repo_note){*pack, frame};
}

void repo_notes_add_session(struct repo_notes *n, const char *session)
{
    n->sessions = xrealloc(n->sessions, (n->session_count + 1) * sizeof *n->sessions);
    memset(n->sessions[n->session_count], 0, sizeof *n->sessions);
    memcpy(n->sessions[n->session_count++], session, MIN(strlen(session), (size_t)SESSION_DIGITS));
}

void repo_notes_encode(const struct repo_notes *n, enum repo_note_kind kind, struct bytes_writer *out)
{
    struct chunk_hash hash;
    size_t from = out->size;
    bytes_put(out, magics[kind], 8);
    bytes_put_u32(out, REPO_NOTES_VERSION);
    bytes_put_u32(out, n->note_count);
    bytes_put_u32(out, n->session_count);
    bytes_put_u32(out, 0);
    for (uint32_t i = 0; i < n->note_count; i++) {
        bytes_put(out, n->notes[i].pack.bytes, CHUNK_HASH_BYTES);
        bytes_put_u32(out, n->notes[i].frame);
    }
    for (uint32_t i = 0; i < n->session_count; i++)
        bytes_put(out, n->sessions[i], SESSION_DIGITS);
    chunk_hash_plain(out->data + from, out->size - from, &hash);
    bytes_put(out, hash.bytes, CHUNK_HASH_BYTES);
}

int repo_notes_decode(const void *data, size_t size, enum repo_note_kind kind, struct repo_notes *n,
                      struct error *err)
{
    struct chunk_hash hash, pack;
    if (size < 24 + CHUNK_HASH_BYTES || memcmp(data, magics[kind], 8) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a list of packs does not begin as one");
    struct bytes_reader r = bytes_reader((const uint8_t *)data + 8, size - 8 - CHUNK_HASH_BYTES);
    uint32_t version = bytes_get_u32(&r), notes = bytes_get_u32(&r), sessions = bytes_get_u32(&r);
    bytes_get_u32(&r);
    if (version != REPO_NOTES_VERSION)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "a list of packs has format %u; this program knows format %d", version, REPO_NOTES_VERSION);
    chunk_hash_plain(data, size - CHUNK_HASH_BYTES, &hash);
    if (memcmp(hash.bytes, (const uint8_t *)data + size - CHUNK_HASH_BYTES, CHUNK_HASH_BYTES) != 0 ||
        bytes_left(&r) != (uint64_t)notes * (CHUNK_HASH_BYTES + 4) + (uint64_t)sessions * SESSION_DIGITS)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a list of packs is damaged");
    for (uint32_t i = 0; i < notes; i++) {
        memcpy(pack.bytes, bytes_get(&r, CHUNK_HASH_BYTES), CHUNK_HASH_BYTES);
        repo_notes_add(n, &pack, bytes_get_u32(&r));
    }
    for (uint32_t i = 0; i < sessions; i++) {
        char session[REPO_SESSION_TEXT_BYTES] = "";
        memcpy(session, bytes_get(&r, SESSION_DIGITS), SESSION_DIGITS);
        repo_notes_add_session(n, session);
    }
    return 0;
}

void repo_notes_finish(struct repo_notes *n)
{
    free(n->notes);
    free(n->sessions);
    *n = (struct repo_notes){0};
}
