/* A task's work in a process of its own: what is heavy on the processor, takes long in system calls, or reads what
 * strangers wrote, never stands in the way of the agent's loop, can be ended at any moment, and takes nothing with it.
 *
 *   agent  runs  drover-agent task WORK PID, with the work's arguments (JSON) on its standard input
 *   child  does the function of that name, and writes lines of JSON (struct task_seen) to its standard output: how far
 *          it is (state running), and as the last one how it ended, with its results; its words for people go where the
 *          agent's go
 *
 * It ends with the agent (PR_SET_PDEATHSIG), with SIGKILL when it is given up, and with its standard input: one that ended
 * without a last line has failed. The loop's thread. */
#ifndef COMPUTE_AGENT_TASK_CHILD_H
#define COMPUTE_AGENT_TASK_CHILD_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <sys/types.h>
#include <uv.h>

#include "common/error.h"
#include "schema/objects.h"

#define TASK_CHILD_INPUT_BYTES_MAX (1u << 20)
#define TASK_CHILD_LINE_BYTES_MAX (512u * 1024)

struct task_child;

struct task_child_options {
    uv_loop_t *loop;
    const char *work;             /* name of the function in the child */
    const struct object_desc *desc; /* of its arguments */
    const void *arguments;        /* encoded before task_child_start returns */
    /* A line that is not the last; borrowed. May be NULL. */
    void (*told)(const struct task_seen *seen, void *arg);
    /* Exactly once, later; the child has ended and its memory here is gone. @seen: the last word (borrowed), or made up:
     * failed with the reason where there was none, cancelled after task_child_kill; its step then is the last one that was told of, which may
     * have come too late for `told`. */
    void (*done)(const struct task_seen *seen, void *arg);
    void *arg;
};

int task_child_start(const struct task_child_options *options, struct task_child **ret_child, struct error *err);
/* SIGKILL; done follows. */
void task_child_kill(struct task_child *child);
/* SIGTERM, for a work that takes it as a wish to come to an end. */
void task_child_ask(struct task_child *child);

/* ---- in the child ---- */

/* Tell how far it is. */
void task_child_tell(const char *step, uint64_t done, uint64_t total);
/* The same, with all else that there is to say. */
void task_child_tell_seen(const struct task_seen *seen);
/* The same, and that others can begin on what is ready. */
void task_child_tell_ready(const char *step);
/* What a work is: 0 with results in @ret_seen (zeroed before), or negative errno in words. */
typedef int (*task_child_work)(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
/* `drover-agent task WORK PARENT`: the exit status. @parent: the agent's process. */
int task_child_main(const char *work, pid_t parent);

/* The works; each in its kind's file. */
int task_snapshot_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_backup_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_replicate_send_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_replicate_receive_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_session_serve_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_volume_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_clone_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err); /* task_volume.c */
int task_image_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int task_image_copy_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
/* Of a backup's child (backup_disks.h), with a backup_work that has no secrets. */
int backup_disks_serve_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int backup_disks_look_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
int backup_disks_place_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);

#endif
