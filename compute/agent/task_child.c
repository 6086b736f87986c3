/* Both sides of a task's child; see the header.
 *
 * Happy path of the agent's side:
 *   1. task_child_start: two pipes, uv_spawn, arguments written, standard input closed
 *   2. lines come: told
 *   3. the process has ended and its output as well: done, with the last line
 * Failure modes: it cannot be run (-errno at once, done never comes); a line that is none (it is killed, and has failed);
 * it ends by a signal or a status (failed, in words). */
#include "compute/agent/task_child.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/log.h"
#include "compute/agent/pool_rbd.h"

struct task_child {
    struct task_child_options options;
    uv_process_t process;
    uv_pipe_t input, output;
    uv_write_t write;
    struct bytes_writer arguments;
    struct bytes_writer line; /* what has come of one that is not whole */
    struct task_seen last;    /* the last line, once it says that it is */
    char *step;            /* that it told of last */
    bool has_last, killed, bad;
    unsigned open; /* handles */
    int64_t exit_status;
    int exit_signal;
};

/* ---- the agent's side ---- */

static void finish(struct task_child *child)
{
    struct task_seen made_up = {0};
    char text[128];
    if (!child->has_last) { /* one that was done before it could be killed is done */
        OBJECT_SET(task_seen, &made_up, state, child->killed ? operation_state_CANCELLED : operation_state_FAILED);
        if (child->killed)
            snprintf(text, sizeof text, "it was cancelled");
        else if (child->bad)
            snprintf(text, sizeof text, "its child process said what is not to be understood");
        else if (child->exit_signal != 0)
            snprintf(text, sizeof text, "its child process was ended by signal %d (%s)", child->exit_signal,
                     strsignal(child->exit_signal));
        else
            snprintf(text, sizeof text, "its child process ended with status %d and without a word",
                     (int)child->exit_status);
        OBJECT_TEXT(task_seen, &made_up, error_code,
                    error_kind_info(child->killed ? ERROR_CANCELLED : ERROR_INTERNAL)->code);
        OBJECT_TEXT(task_seen, &made_up, error_text, text);
        OBJECT_TEXT(task_seen, &made_up, step, child->step);
    }
    void (*done)(const struct task_seen *, void *) = child->options.done;
    void *arg = child->options.arg;
    struct task_seen last = child->last;
    bool own = child->has_last;
    bytes_writer_finish(&child->line);
    bytes_writer_finish(&child->arguments);
    free(child->step);
    free(child);
    if (done != NULL) /* else it never ran */
        done(own ? &last : &made_up, arg);
    OBJECT_CLEAR(task_seen, &last);
    OBJECT_CLEAR(task_seen, &made_up);
}

static void on_closed(uv_handle_t *handle)
{
    struct task_child *child = handle->data;
    if (--child->open == 0)
        finish(child);
}

static void close_once(uv_handle_t *handle)
{
    if (!uv_is_closing(handle))
        uv_close(handle, on_closed);
}

static void on_exit_of(uv_process_t *process, int64_t exit_status, int exit_signal)
{
    struct task_child *child = process->data;
    child->exit_status = exit_status;
    child->exit_signal = exit_signal;
    close_once((uv_handle_t *)process);
}

static void take_line(struct task_child *child, const char *line, size_t size)
{
    struct task_seen seen = {0};
    struct error err = {.code = 0};
    if (child->has_last || child->bad)
        return;
    if (OBJECT_DECODE(task_seen, line, size, OBJECT_STORED, &seen, &err) < 0) {
        log_error("task-child", "work=%s error=\"%s\"", child->options.work, err.text);
        child->bad = true;
        uv_process_kill(&child->process, SIGKILL);
        return;
    }
    if (seen.state != operation_state_RUNNING) {
        child->last = seen;
        child->has_last = true;
        return;
    }
    if (seen.step != NULL) {
        free(child->step);
        child->step = xstrdup(seen.step);
    }
    if (child->options.told != NULL && !child->killed)
        child->options.told(&seen, child->options.arg);
    OBJECT_CLEAR(task_seen, &seen);
}

static void on_alloc(uv_handle_t *handle UNUSED, size_t suggested UNUSED, uv_buf_t *buf)
{
    *buf = uv_buf_init(xcalloc(1, 4096), 4096);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct task_child *child = stream->data;
    const char *at = buf->base, *end = at + MAX(n, (ssize_t)0), *newline;
    while (at < end && (newline = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        bytes_put(&child->line, at, (size_t)(newline - at));
        take_line(child, (const char *)child->line.data, child->line.size);
        child->line.size = 0;
        at = newline + 1;
    }
    if (at < end && child->line.size + (size_t)(end - at) <= TASK_CHILD_LINE_BYTES_MAX)
        bytes_put(&child->line, at, (size_t)(end - at));
    else if (at < end)
        take_line(child, "", 0); /* too long: as one that is none */
    free(buf->base);
    if (n < 0)
        close_once((uv_handle_t *)stream);
}

static void on_written(uv_write_t *write, int status UNUSED)
{
    struct task_child *child = CONTAINER_OF(write, struct task_child, write);
    close_once((uv_handle_t *)&child->input);
}

static int spawn(struct task_child *child)
{
    char parent[16];
    snprintf(parent, sizeof parent, "%d", getpid());
    const char *const words[] = {"drover-agent", "task", child->options.work, parent, NULL};
    char *argv[ARRAY_SIZE(words)];
    memcpy(argv, words, sizeof argv); /* uv_spawn changes none of them */
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE, .data.stream = (uv_stream_t *)&child->input},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&child->output},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
    };
    const uv_process_options_t options = {
        .exit_cb = on_exit_of, .file = "/proc/self/exe", .args = argv, .stdio_count = 3, .stdio = stdio};
    return uv_spawn(child->options.loop, &child->process, &options);
}

int task_child_start(const struct task_child_options *options, struct task_child **ret_child, struct error *err)
{
    struct task_child *child = NEW(struct task_child);
    child->options = *options;
    object_encode(options->desc, options->arguments, &child->arguments);
    uv_pipe_init(options->loop, &child->input, 0);
    uv_pipe_init(options->loop, &child->output, 0);
    child->process.data = child->input.data = child->output.data = child;
    int r = spawn(child);
    child->open = 3;
    if (r < 0) {
        child->options.done = NULL;
        close_once((uv_handle_t *)&child->process);
        close_once((uv_handle_t *)&child->input);
        close_once((uv_handle_t *)&child->output);
        return error_errno(err, r, "cannot run a child process");
    }
    r = uv_read_start((uv_stream_t *)&child->output, on_alloc, on_read);
    ASSERT(r == 0);
    uv_buf_t buf = uv_buf_init((char *)child->arguments.data, (unsigned)child->arguments.size);
    if (uv_write(&child->write, (uv_stream_t *)&child->input, &buf, 1, on_written) < 0)
        close_once((uv_handle_t *)&child->input);
    *ret_child = child;
    return 0;
}

void task_child_kill(struct task_child *child)
{
    child->killed = true;
    if (!uv_is_closing((uv_handle_t *)&child->process))
        uv_process_kill(&child->process, SIGKILL);
}

void task_child_ask(struct task_child *child)
{
    if (!uv_is_closing((uv_handle_t *)&child->process))
        uv_process_kill(&child->process, SIGTERM);
}

/* ---- the child's side ---- */

static const struct {
    const char *name;
    task_child_work work;
} works[] = {
    {"snapshot", task_snapshot_work},
    {"backup", task_backup_work},
    {"image", task_image_work},
    {"volume", task_volume_work},
    {"rbd-fill", pool_rbd_fill_work},
    {"clone", task_clone_work},
    {"image-copy", task_image_copy_work},
    {"replicate-send", task_replicate_send_work},
    {"replicate-receive", task_replicate_receive_work},
    {"replicate-serve", task_session_serve_work},
    {"disks-serve", backup_disks_serve_work},
    {"disks-place", backup_disks_place_work},
    {"disks-look", backup_disks_look_work},
};

static void put_line(const struct task_seen *seen)
{
    struct bytes_writer out = {0};
    OBJECT_ENCODE(task_seen, seen, &out);
    bytes_put_u8(&out, '\n');
    for (size_t at = 0; at < out.size;) {
        ssize_t n = write(STDOUT_FILENO, out.data + at, out.size - at);
        if (n < 0 && errno != EINTR)
            _exit(1); /* nobody listens any more */
        at += (size_t)MAX(n, (ssize_t)0);
    }
    bytes_writer_finish(&out);
}

void task_child_tell(const char *step, uint64_t done, uint64_t total)
{
    struct task_seen seen = {0};
    OBJECT_SET(task_seen, &seen, state, operation_state_RUNNING);
    if (step != NULL)
        OBJECT_TEXT(task_seen, &seen, step, step);
    OBJECT_SET(task_seen, &seen, progress_done, done);
    OBJECT_SET(task_seen, &seen, progress_total, total);
    put_line(&seen);
    OBJECT_CLEAR(task_seen, &seen);
}

void task_child_tell_seen(const struct task_seen *seen)
{
    put_line(seen);
}

void task_child_tell_ready(const char *step)
{
    struct task_seen seen = {0};
    OBJECT_SET(task_seen, &seen, state, operation_state_RUNNING);
    OBJECT_TEXT(task_seen, &seen, step, step);
    OBJECT_SET(task_seen, &seen, ready, true);
    put_line(&seen);
    OBJECT_CLEAR(task_seen, &seen);
}

static int read_input(struct bytes_writer *input)
{
    char buffer[4096];
    ssize_t n;
    while ((n = read(STDIN_FILENO, buffer, sizeof buffer)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || input->size + (size_t)n > TASK_CHILD_INPUT_BYTES_MAX)
            return -EINVAL;
        bytes_put(input, buffer, (size_t)n);
    }
    return 0;
}

int task_child_main(const char *name, pid_t parent)
{
    struct bytes_writer input = {0};
    struct task_seen seen = {0};
    struct error err = {.code = 0};
    unsigned i = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* the agent ended before that was said */
        return 1;
    while (i < ARRAY_SIZE(works) && strcmp(works[i].name, name) != 0)
        i++;
    int r = i == ARRAY_SIZE(works) ? error_set(&err, -ENOTSUP, ERROR_NOT_SUPPORTED, "there is no work '%.40s'", name)
                                   : read_input(&input);
    if (r == 0)
        r = works[i].work((const char *)input.data, input.size, &seen, &err);
    bytes_writer_finish(&input);
    if (r < 0 && err.text[0] == '\0')
        error_errno(&err, r, "it did not work");
    OBJECT_SET(task_seen, &seen, state, r < 0 ? operation_state_FAILED : operation_state_SUCCEEDED);
    if (r < 0) {
        OBJECT_TEXT(task_seen, &seen, error_code, error_kind_info(err.kind)->code);
        OBJECT_TEXT(task_seen, &seen, error_text, err.text);
    }
    put_line(&seen);
    OBJECT_CLEAR(task_seen, &seen);
    return r < 0 ? 1 : 0;
}
