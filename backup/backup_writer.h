/* Making a backup: reads sources, stores what the store has not got, and writes the manifest last.
 *
 *   reader (the caller's thread)  extents -> skips zeroes and what is the same -> batches of chunks
 *   workers (threads)             hash -> known? -> new ones of a batch compressed together -> pack
 *   transfers (threads)           full packs -> store
 *
 * All queues are bounded: a slow store slows the reader, and memory stays at about threads MiB and transfers * 64
 * MiB. Order of what is written: packs, index, manifest. So after a crash at any point the backup is there whole or
 * not at all, and what was stored is found by the next attempt (repo_view_load) and not sent again.
 *
 * Incremental: what the source says is BACKUP_SAME is taken from the parent's lists without reading, unless the store
 * has lost it (damaged or missing packs): then it is read, and heals. Deduplication is over all backups of the store.
 *
 * Use: create, disk for each disk, commit, destroy. One thread. */
#ifndef BACKUP_BACKUP_WRITER_H
#define BACKUP_BACKUP_WRITER_H

#include <stdatomic.h>

#include "backup/backup_source.h"
#include "backup/repo.h"

enum {
    BACKUP_LEVEL_DEFAULT = 3,
    BACKUP_THREADS_MAX = 64,
    BACKUP_FRAME_BYTES = 1 << 20, /* chunks that are compressed together */
};

struct backup_progress {
    const char *step;      /* "reading", "storing", "finishing" */
    const char *disk;      /* NULL: none */
    uint64_t done_bytes;   /* of this disk, looked at */
    uint64_t total_bytes;  /* of this disk */
    uint64_t read_bytes;   /* all disks: read from sources */
    uint64_t new_bytes;    /* that the store had not got, before compression */
    uint64_t stored_bytes; /* sent to the store */
};
typedef void (*backup_progress_cb)(void *arg, const struct backup_progress *progress);

struct backup_writer_options {
    const char *id;     /* NULL: a new one */
    const char *parent; /* id, or NULL; one that cannot be read is an error */
    const char *vm;     /* id, or NULL */
    const char *vm_name;
    const char *consistency;         /* or NULL */
    const char *definition;          /* JSON text, or NULL; borrowed until commit */
    int64_t created_ms;              /* the moment that the disks show; 0: now */
    const struct string_map *labels; /* or NULL */
    unsigned threads;                /* 0: one for each processor */
    unsigned transfers;              /* 0: as the store says */
    int level;                       /* of zstd; 0: BACKUP_LEVEL_DEFAULT */
    backup_progress_cb progress;     /* or NULL; the caller's thread, often */
    void *progress_arg;
    const atomic_bool *cancel; /* or NULL; -ECANCELED soon after it is true */
};

struct backup_writer;

/* -EEXIST: there is a complete backup of that id; -ENOENT: no such parent; -EACCES; the store's; in words. */
int backup_writer_create(struct repo *repo, const struct backup_writer_options *options,
                         struct backup_writer **ret_writer, struct error *err);
const char *backup_writer_id(const struct backup_writer *w);
/* The parent's mark of that disk, for opening its source; NULL: no parent, no such disk, none. */
const char *backup_writer_parent_mark(const struct backup_writer *w, const char *disk);
/* Read a whole disk. @source is the writer's from here on, also on failure. -EEXIST: there was one of that name. */
int backup_writer_disk(struct backup_writer *w, const char *name, struct backup_source *source, struct error *err);
/* Make it complete. After 0 it is listed and survives a power cut. After -ESTALE it is not; after any other failure
 * it may be, whole, when the store did not say what became of the last request. @ret_manifest may be NULL. */
int backup_writer_commit(struct backup_writer *w, struct manifest *ret_manifest, struct error *err);
/* Before a commit: it is given up; what was stored stays for the next attempt, or a collection. NULL is allowed. */
void backup_writer_destroy(struct backup_writer *w);

#endif
