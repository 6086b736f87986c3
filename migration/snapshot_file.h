/* A whole machine in a file: a stream (stream.h) of HEADER, a STATE for each part, its memory, END.
 *
 * Memory is there in one of two ways:
 *   image   (the header names the feature) IMAGE and END follow the states, and the file goes on with memory as it
 * is, region after region, at `offset`; pages of zeros are holes. A restore maps it and reads what is touched. IMAGE:
 * u64 offset, u64 memory bytes, u32 piece bytes, u32 0, then a u32 CRC32C of each piece. pages   PAGES between the
 * states and END, compressed or not. A restore reads all of it first. Disks are not part of it.
 *
 * Happy path of a save: begin (with the guest paused: header and states), memory (still paused; long), commit (the
 * guest may run again: fsync, rename). Or, of an image: begin_live and copy (the guest runs: all of its memory, then in rounds what it
 * has written meanwhile), stand (with the guest paused: header and states, before the image, where room was left), memory (still
 * paused: what it wrote last; short), commit (the guest may run again; checksums are made of the file). The file has a temporary
 * name beside @path until commit, so that @path is either what it was or whole. Failure modes: anything that cannot be written, or cancel: the temporary file is
 * removed.
 * Happy path of a restore: open (reads and checks header and states), load (memory, then states).
 * Failure modes: damaged, cut short, newer: refused in words by open or, in memory of the second kind, by load; the
 * guest must not run then. An image's memory is checked against its CRCs only when asked: that reads all of it.
 *
 * Threads: one at a time for each file; snapshot_progress() and snapshot_cancel() from any. */
#ifndef MIGRATION_SNAPSHOT_FILE_H
#define MIGRATION_SNAPSHOT_FILE_H

#include "migration/guest.h"
#include "migration/stream.h"

enum {
    SNAPSHOT_PIECE_BYTES = 1 << 20,
    SNAPSHOT_ALIGN_BYTES = 2 << 20, /* of the image within the file: large pages of a file system may match */
};

/* ---- saving ---- */

struct snapshot_writer;

struct snapshot_counts {
    uint64_t memory_bytes; /* looked at so far, zeros included; of a guest that runs, what it writes again is not counted */
    uint64_t data_bytes;   /* of these, pages with data */
    uint64_t file_bytes;   /* that were written for them */
};

/* Open the temporary file, write @header (its features are set here) and the guest's state. @guest is paused. */
int snapshot_begin(struct guest *guest, struct machine_description *header, const char *path, bool compress,
                   struct snapshot_writer **ret_writer, struct error *err);
/* An image, of a guest that runs and can tell which pages it writes (guest_ops.dirty_*). */
int snapshot_begin_live(struct guest *guest, const char *path, struct snapshot_writer **ret_writer, struct error *err);
/* Until little is left, or the guest writes as fast as it is copied. -ECANCELED after snapshot_cancel. */
int snapshot_copy(struct snapshot_writer *w, struct error *err);
/* @guest is paused from here on, until snapshot_memory has returned. @header as for snapshot_begin. */
int snapshot_stand(struct snapshot_writer *w, struct machine_description *header, struct error *err);
/* -ECANCELED after snapshot_cancel. The guest stands still until this returns. */
int snapshot_memory(struct snapshot_writer *w, struct error *err);
/* Make it last, under its name. */
int snapshot_commit(struct snapshot_writer *w, struct error *err);
/* Removes the temporary file unless committed. NULL is allowed. */
void snapshot_writer_destroy(struct snapshot_writer *w);
struct snapshot_counts snapshot_progress(const struct snapshot_writer *w);
void snapshot_cancel(struct snapshot_writer *w);

/* ---- restoring ---- */

struct snapshot_file;

/* Read up to where memory begins. -EBADMSG, -ENOTSUP in words. */
int snapshot_open(const char *path, struct snapshot_file **ret_file, struct error *err);
void snapshot_close(struct snapshot_file *f); /* NULL is allowed; memory that was mapped stays so */
const struct machine_description *snapshot_description(const struct snapshot_file *f);
enum {
    SNAPSHOT_VERIFY = 1, /* compare an image with its CRCs */
    SNAPSHOT_COPY = 2,   /* read it instead of mapping it: nothing depends on the file afterwards */
};
/* Memory and state into @guest, whose memory was never written. @how: of these. */
int snapshot_load(struct snapshot_file *f, struct guest *guest, unsigned how, struct error *err);

#endif
