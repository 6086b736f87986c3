/* drover-backup, run for a task: its arguments, the descriptors that it inherits, its walls, and what it says.
 *
 * It is given no path of a VM's: disks come as connected sockets of NBD servers and go as opened files. So it needs the rights
 * to its store and no others:
 *
 *   s3://...      a user of its own (backup_work.program_user), no capabilities
 *   a directory   the user that owns the store, where that is not root and can get there, no capabilities; else root in a mount namespace
 *                 in which nothing but the store can be written, with CAP_DAC_OVERRIDE alone
 *
 * Keys and the store's credentials are in files without names that it inherits; neither its arguments nor its environment has
 * them. It may be wrong, or somebody else's by now: what it says is bounded and checked.
 *
 * Of the task's child; all calls block. */
#ifndef COMPUTE_AGENT_BACKUP_PROGRAM_H
#define COMPUTE_AGENT_BACKUP_PROGRAM_H

#include <jansson.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

enum { BACKUP_PROGRAM_ARGUMENTS_MAX = 96, BACKUP_PROGRAM_FILES_MAX = 24, BACKUP_PROGRAM_LINE_BYTES_MAX = 256 * 1024 };

struct backup_program {
    const struct backup_work *work;                    /* borrowed */
    char *arguments[BACKUP_PROGRAM_ARGUMENTS_MAX + 1]; /* owned, the last NULL */
    unsigned count;
    int files[BACKUP_PROGRAM_FILES_MAX]; /* owned; it inherits them under these numbers */
    unsigned file_count;
    /* Told of every line that is an object, and then nothing is told of its steps here; NULL: nobody. */
    void (*said)(void *arg, const json_t *line);
    void *said_arg;
    char repository[33]; /* identity of the one that it has opened, once it says so; "": it has touched nothing */
};

/* `drover-backup VERB` for the work's store, with its key, credentials and limit. backup_program_finish after either result. */
int backup_program_begin(struct backup_program *p, const char *verb, const struct backup_work *work, struct error *err);
void backup_program_finish(struct backup_program *p);
void backup_program_flag(struct backup_program *p, const char *name);
void backup_program_option(struct backup_program *p, const char *name, const char *value);
/* @text as a file without a name: --@name /dev/fd/N. */
int backup_program_text(struct backup_program *p, const char *name, const char *text, struct error *err);
/* It inherits @fd, which becomes the program's. */
void backup_program_inherit(struct backup_program *p, int fd);
/* To its end. 0 and, where it said so, its result in *ret_result (owned by the caller); or its own words. @ret_removed: takes
 * the backups that it says it has removed, or found (backup_found.h); may be NULL. */
int backup_program_run(struct backup_program *p, json_t **ret_result, struct backup_result *ret_removed, struct error *err);

#endif
