/* Verification of a whole store, or of what one backup needs: reads every byte of every pack, compares every frame
 * with its hash and, with the key, every chunk with its name; then looks for every chunk of every backup. Names each damaged or lost pack, and
 * each backup and disk that it hurts. What it finds is noted in the store ("damaged/", repo_notes.h): damaged chunks
 * do not count as stored any more, and the next backup whose source has them writes them anew. Everything else can
 * still be restored.
 *
 * Blocking, with threads of its own. A store that is written meanwhile is fine. */
#ifndef BACKUP_REPO_VERIFY_H
#define BACKUP_REPO_VERIFY_H

#include "backup/backup_writer.h"

struct repo_verify_options {
    const char *backup;                       /* id of the only one that is looked at, with its packs; NULL: the whole store */
    unsigned threads;                         /* 0: one for each processor */
    bool quick;                               /* the stored bytes only: no decompressing, no names of chunks */
    bool no_notes;                            /* write nothing */
    void (*say)(void *arg, const char *text); /* a line about each damage; the caller's thread */
    void *say_arg;
    void (*judged)(void *arg, const char *backup, const char *damage); /* of each, once; @damage NULL: it is whole. Or NULL */
    void *judged_arg;
    backup_progress_cb progress;
    void *progress_arg;
    const atomic_bool *cancel;
};
struct repo_verify_result {
    uint64_t packs, frames, bytes;  /* looked at */
    uint64_t bad_packs, bad_frames; /* packs with damage; frames in them */
    uint64_t bad_objects;           /* manifests and indexes */
    uint64_t backups, hurt_backups;
    uint64_t lost_chunks; /* places of disks that cannot be restored */
};

/* 0: it was done, whatever was found; one backup that is not there is damage, too. Negative: it could not be done, in words. */
int repo_verify(struct repo *repo, const struct repo_verify_options *options, struct repo_verify_result *ret_result,
                struct error *err);
static inline bool repo_verify_clean(const struct repo_verify_result *r)
{
    return r->bad_packs + r->bad_frames + r->bad_objects + r->hurt_backups == 0;
}

#endif
