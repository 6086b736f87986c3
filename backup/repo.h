/* A store with backups in it: what is where, who is at work in it, and what counts as complete.
 *
 *   drover-store             header and keys (repo_key.h)
 *   packs/ab/<64 digits>     chunks (pack.h)
 *   indexes/<16 digits>      the indexes of many packs (chunk_index.h)
 *   backups/<id>-<session>   manifests (manifest.h)
 *   active/<session>         a backup that is being made: its maker rewrites it every REPO_BEAT_MS
 *   fences/<session>         a session that a collection has given up; whatever it still writes does not count
 *   damaged/, condemned/     repo_notes.h
 *
 * A backup is complete, and listed, when its manifest is there and its session is not fenced. Who lists reads the
 * manifests' names first and the fences after; repo_gc.h has the proof that what is listed can be restored whoever
 * dies or sleeps when.
 *
 * Blocking; a repo may be used by several threads once it is open. */
#ifndef BACKUP_REPO_H
#define BACKUP_REPO_H

#include "backup/chunk_index.h"
#include "backup/manifest.h"
#include "backup/repo_notes.h"
#include "backup/store.h"

enum {
    REPO_BEAT_MS = 60 * 1000,
    REPO_SILENCE_MS = 15 * 60 * 1000, /* of an active session, by the store's clock: then it may be given up */
    REPO_ID_TEXT_BYTES = 37,
};
#define REPO_HEADER_NAME STORE_SIGN

struct repo {
    struct store *store; /* borrowed */
    struct repo_header header;
    struct repo_keys keys;
};

/* Make @store a store of backups. -EEXIST in words: it is one. @ret_key: the recovery key where @encrypted. */
int repo_init(struct store *store, bool encrypted, uint32_t chunk_bytes, uint8_t ret_key[CHUNK_KEY_BYTES],
              struct error *err);
/* @key: NULL, or what opens it. -ENOENT: no store there; -EACCES: the wrong key; -EBADMSG, -ENOTSUP; in words. */
int repo_open(struct store *store, const uint8_t *key, struct repo *ret_repo, struct error *err);
/* For writing and restoring: -EACCES in words where the store is encrypted and was opened without a key. */
int repo_need_key(const struct repo *repo, struct error *err);
void repo_close(struct repo *repo); /* wipes the keys */
/* After changing repo->header (keys). */
int repo_write_header(struct repo *repo, struct error *err);

/* ---- backups ---- */

struct repo_backup {
    char id[REPO_ID_TEXT_BYTES];
    char session[REPO_SESSION_TEXT_BYTES];
    uint64_t size_bytes; /* of the manifest */
};
struct repo_backups {
    struct repo_backup *items; /* by id */
    size_t count;
};
/* The complete ones, each id once. */
int repo_backups_load(struct repo *repo, struct repo_backups *ret_backups, struct error *err);
/* All manifests of complete ones, or of those with @id (NULL: any). There may be two of one id; what is listed and read is the first, but it must not be that the other
 * comes up when this one is removed, and what it needs has been collected. */
int repo_manifests_load(struct repo *repo, const char *id, struct repo_backups *ret_manifests, struct error *err);
/* All manifests of @id, which is an id. None: fine. */
int repo_backup_remove(struct repo *repo, const char *id, struct error *err);
void repo_backups_finish(struct repo_backups *backups);
/* -ENOENT: no complete backup of that id; -EBADMSG: damaged; in words that name it. */
int repo_manifest_load(struct repo *repo, const char *id, struct manifest *ret_manifest, struct error *err);
int repo_manifest_read(struct repo *repo, const struct repo_backup *backup, struct manifest *ret_manifest,
                       struct error *err);
/* "backups/<id>-<session>" into MANIFEST_NAME_BYTES. */
const char *repo_manifest_name(const char *id, const char *session, char *ret_name);
/* -EINVAL unless an id as text (lower-case UUID). */
bool repo_id_ok(const char *text);
void repo_id_make(char ret_id[REPO_ID_TEXT_BYTES]);
void repo_session_make(char ret_session[REPO_SESSION_TEXT_BYTES]);

/* ---- the chunks of a store ---- */

struct repo_view {
    struct chunk_index index;
    struct store_listing packs;
    struct store_listing indexes, condemned, damaged; /* the objects that were read */
    char (*bad_packs)[PACK_NAME_BYTES];               /* there, but what is in them cannot be told */
    uint32_t bad_pack_count;
    uint32_t bad_index_count;
    bool *indexed; /* of each pack of the index: an index object tells of it */
};
/* Read what the store has. In a session, after repo_session_begin: see the proof in repo_gc.h for the order. A pack
 * that no index tells of is read itself: so what an interrupted backup has stored is found again. Damaged packs,
 * indexes and lists are left out and counted, never an error. */
int repo_view_load(struct repo *repo, struct repo_view *ret_view, struct error *err);
void repo_view_finish(struct repo_view *view);
/* Put an index object of the packs @chosen (of view->index); its name into @ret_name (STORE_NAME_BYTES), may be NULL.
 */
int repo_index_write(struct repo *repo, const struct chunk_index *index, const bool *chosen, char *ret_name,
                     struct error *err);
int repo_notes_write(struct repo *repo, enum repo_note_kind kind, const struct repo_notes *notes, char *ret_name,
                     struct error *err);

/* ---- sessions ---- */

struct repo_session;
/* Say that a backup is being made: durable when it returns; a thread goes on saying so. @ret_session is
 * ended with repo_session_end. */
int repo_session_begin(struct repo *repo, struct repo_session **ret_session, struct error *err);
const char *repo_session_name(const struct repo_session *session);
/* -ESTALE (CONFLICT) in words: it was given up by a collection. */
int repo_session_check(struct repo_session *session, struct error *err);
/* Say that it is over, so that no collection waits for it or gives it up any more; a repo_session_check after it
 * tells whether one has done so before. */
void repo_session_leave(struct repo_session *session);
/* @keep: leave "active" behind as a crash would, because it is not known whether the manifest was written. */
void repo_session_end(struct repo_session *session, bool keep);

#endif
