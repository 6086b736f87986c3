/* The verbs of drover-backup: one function each, called by main.c with what was typed. */
#ifndef BACKUP_TOOL_H
#define BACKUP_TOOL_H

#include <stdatomic.h>

#include "backup/backup_reader.h"
#include "backup/backup_writer.h"
#include "common/object.h"

enum { TOOL_LISTS_MAX = 64 };

/* "NAME=VALUE" options that may be given often. */
struct tool_pairs {
    struct {
        char *name;
        const char *value;
    } items[TOOL_LISTS_MAX];
    unsigned count;
};

struct tool_options {
    const char *store, *key_file, *credentials;
    const char *repository, *host; /* what must be there; what this host is called (NULL: as it calls itself) */
    const char *backup, *id, *parent, *vm, *vm_id, *definition, *consistency, *created_at;
    const char *key_name, *add_key_file, *remove_key;
    const char *at, *socket, *after, *forget_list;
    uint64_t page_bytes; /* of list; 0: all */
    struct tool_pairs disks, changed, labels;
    uint64_t limit, offset, length, chunk_bytes;
    const char *grace;
    bool has_length;
    unsigned threads, transfers, level;
    uint64_t keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly;
    struct tool_pairs forgotten; /* name: the id */
    bool encrypt, json, force, quick, dry_run, only_definition, no_collect, each, missing_ok;
    int progress_fd; /* -1: none */
    const atomic_bool *cancel;
};

/* Each returns 0 or a negative errno with words. */
int tool_init(const struct tool_options *o, struct error *err);
int tool_create(const struct tool_options *o, struct error *err);
int tool_list(const struct tool_options *o, struct error *err);
/* list --page-bytes: a line of JSON for each backup, with its VM's definition, in the order of the ids. */
int tool_list_page(const struct tool_options *o, struct error *err);
int tool_show(const struct tool_options *o, struct error *err);
int tool_restore(const struct tool_options *o, struct error *err);
int tool_cat(const struct tool_options *o, struct error *err);
int tool_mount(const struct tool_options *o, struct error *err);
int tool_serve(const struct tool_options *o, struct error *err);
int tool_verify(const struct tool_options *o, struct error *err);
int tool_prune(const struct tool_options *o, struct error *err);
int tool_key(const struct tool_options *o, struct error *err);

/* ---- shared ---- */

struct tool_place {
    struct store *store;
    struct store_pace *pace;
    struct repo repo;
    bool opened;
};
/* The store, and with @repo what is in it; tool_close after either result. */
int tool_open(const struct tool_options *o, bool repo, struct tool_place *ret_place, struct error *err);
void tool_close(struct tool_place *place);
/* The store, and the backup that --backup and --vm name; backup_reader_close and tool_close after either result. */
int tool_reader_open(const struct tool_options *o, struct tool_place *ret_place, struct backup_reader **ret_reader,
                     struct error *err);
/* A key out of a file: its text. */
int tool_key_read(const char *path, uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err);

/* Progress: a line on a terminal, JSON lines on a descriptor; at most five a second. */
struct tool_progress {
    int fd;
    bool terminal, shown;
    uint64_t next_ms, begun_ms;
};
void tool_progress_init(struct tool_progress *p, const struct tool_options *o);
void tool_progress_report(void *arg, const struct backup_progress *progress); /* backup_progress_cb */
/* The last line: @result a JSON object or NULL, or, where @code is negative, what went wrong. */
void tool_progress_end(struct tool_progress *p, const char *result, int code, const struct error *err);
/* "1.5 GiB" into @buffer; returns it. */
const char *tool_bytes_text(uint64_t bytes, char *buffer, size_t size);

#endif
