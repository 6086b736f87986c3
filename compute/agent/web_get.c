/* Both sides of it; see web_get.h. Failure modes: no process, a child that ends without a last word (its words for people are in the
 * agent's log), that is silent, or that says what it may not; each is an error in words. */
#include "compute/agent/web_get.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "common/http_client.h"
#include "compute/agent/task_walls.h"

#define LOOK_MS 200
#define WORK_BYTES_MAX 4096

extern char **environ; /* proxies are named there */

struct record {
    uint32_t kind, size;
};

/* ---- getting it, in whichever process ---- */

struct direct {
    const struct web_get_options *options;
    int refused; /* a callback's own error */
};

static int direct_stops(const struct direct *d)
{
    return d->options->stop != NULL && atomic_load(d->options->stop) ? -ECANCELED : 0;
}

static int direct_headers(const struct http_answer *head, void *arg)
{
    struct direct *d = arg;
    struct web_get_head seen = {0};
    if (head->status < 200 || head->status > 299)
        return 0;
    const char *range = http_answer_header(head, "Content-Range"), *length = http_answer_header(head, "Content-Length");
    OBJECT_SET(web_get_head, &seen, status, (uint32_t)head->status);
    if (range != NULL && strlen(range) <= 200) /* longer: not one, and as none to whoever parses it */
        OBJECT_TEXT(web_get_head, &seen, content_range, range);
    if (length != NULL && strlen(length) <= 40)
        OBJECT_TEXT(web_get_head, &seen, content_length, length);
    d->refused = d->options->on_head(&seen, d->options->arg);
    OBJECT_CLEAR(web_get_head, &seen);
    return d->refused;
}

static int direct_data(const void *data, size_t size, void *arg)
{
    struct direct *d = arg;
    d->refused = direct_stops(d);
    if (d->refused == 0)
        d->refused = d->options->on_data(data, size, d->options->arg);
    return d->refused;
}

static int direct_get(const struct web_get_options *options, int *ret_status, struct error *err)
{
    char range[48];
    const char *const headers[] = {range, NULL};
    struct direct d = {.options = options};
    struct error own = {.code = 0};
    snprintf(range, sizeof range, "Range: bytes=%llu-", (unsigned long long)options->offset);
    const struct http_call_options call = {
        .url = options->url,
        .headers = options->offset > 0 ? headers : NULL,
        .idle_ms = WEB_GET_IDLE_MS,
        .redirects_max = WEB_GET_REDIRECTS_MAX,
        .on_data = direct_data,
        .on_headers = direct_headers,
        .arg = &d,
    };
    *ret_status = 0;
    int r = http_client_perform(&call, ret_status, NULL, NULL, &own);
    if (d.refused < 0)
        return d.refused;
    if (err != NULL)
        *err = own;
    return r;
}

/* ---- the child ---- */

static void say(enum web_get_kind kind, const void *data, size_t size)
{
    const struct record record = {.kind = kind, .size = (uint32_t)size};
    const struct {
        const void *data;
        size_t size;
    } parts[] = {{&record, sizeof record}, {data, size}};
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++)
        for (size_t at = 0; at < parts[i].size;) {
            ssize_t n = write(STDOUT_FILENO, (const char *)parts[i].data + at, parts[i].size - at);
            if (n < 0 && errno != EINTR)
                _exit(1); /* nobody reads any more */
            at += (size_t)MAX(n, (ssize_t)0);
        }
}

static int say_head(const struct web_get_head *head, void *arg UNUSED)
{
    struct bytes_writer out = {0};
    OBJECT_ENCODE(web_get_head, head, &out);
    say(WEB_GET_HEAD, out.data, out.size);
    bytes_writer_finish(&out);
    return 0;
}

static int say_data(const void *data, size_t size, void *arg UNUSED)
{
    for (size_t at = 0; at < size; at += WEB_GET_DATA_BYTES_MAX)
        say(WEB_GET_DATA, (const char *)data + at, MIN(size - at, (size_t)WEB_GET_DATA_BYTES_MAX));
    return 0;
}

static void say_end(int code, int status, const struct error *err)
{
    struct web_get_end end = {0};
    struct bytes_writer out = {0};
    OBJECT_SET(web_get_end, &end, status, (uint32_t)status);
    if (code < 0)
        OBJECT_SET(web_get_end, &end, error, (uint32_t)-code);
    if (err->text[0] != '\0') {
        OBJECT_TEXT(web_get_end, &end, error_code, error_kind_info(err->kind)->code);
        OBJECT_TEXT(web_get_end, &end, error_text, err->text);
    }
    OBJECT_ENCODE(web_get_end, &end, &out);
    say(WEB_GET_END, out.data, out.size);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(web_get_end, &end);
}

static int read_work(struct web_get_work *work, struct error *err)
{
    char text[WORK_BYTES_MAX];
    size_t size = 0;
    for (ssize_t n = 1; n != 0 && size < sizeof text;) {
        n = read(STDIN_FILENO, text + size, sizeof text - size);
        if (n < 0 && errno != EINTR)
            return error_errno(err, -errno, "cannot read what to get");
        size += (size_t)MAX(n, (ssize_t)0);
        n = n < 0 ? 1 : n;
    }
    return OBJECT_DECODE(web_get_work, text, size, OBJECT_STORED, work, err);
}

int web_get_main(pid_t parent)
{
    struct web_get_work work = {0};
    struct error err = {.code = 0};
    int status = 0;
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it ended before that was said */
        return 1;
    int r = read_work(&work, &err);
    if (r == 0) {
        const struct task_walls walls = {.user = work.user, .group = work.user};
        r = task_walls_raise(&walls, &err);
    }
    if (r == 0 && getppid() != parent) /* a change of user takes the signal back for a moment */
        return 1;
    if (r == 0) {
        const struct web_get_options options = {
            .url = work.url, .offset = work.offset, .on_head = say_head, .on_data = say_data};
        r = direct_get(&options, &status, &err);
    }
    say_end(r, status, &err);
    OBJECT_CLEAR(web_get_work, &work);
    return r < 0 ? 1 : 0;
}

/* ---- the caller's side ---- */

struct reader {
    const struct web_get_options *options;
    int fd;
    uint8_t *data; /* WEB_GET_DATA_BYTES_MAX */
    bool ended;
    struct web_get_end end;
    struct error *err;
};

static int broken(const struct reader *r, const char *what)
{
    return error_set(r->err, -EPROTO, ERROR_INTERNAL, "the process that gets %.200s %s", r->options->url, what);
}

/* Exactly @size bytes; -ENODATA: it has ended. */
static int read_exactly(struct reader *r, void *data, size_t size)
{
    unsigned silent_ms = 0;
    for (size_t got = 0; got < size;) {
        struct pollfd look = {.fd = r->fd, .events = POLLIN};
        int ready = poll(&look, 1, LOOK_MS);
        if (r->options->stop != NULL && atomic_load(r->options->stop))
            return -ECANCELED;
        if (ready <= 0) {
            silent_ms += ready == 0 ? LOOK_MS : 0;
            if (silent_ms >= WEB_GET_SILENT_MS)
                return error_set(r->err, -ETIMEDOUT, ERROR_UNREACHABLE, "the process that gets %.200s has said nothing for %u s",
                                 r->options->url, WEB_GET_SILENT_MS / 1000);
            continue;
        }
        ssize_t n = read(r->fd, (char *)data + got, size - got);
        if (n == 0)
            return -ENODATA;
        if (n < 0 && errno != EINTR)
            return error_errno(r->err, -errno, "cannot read from the process that gets %.200s", r->options->url);
        silent_ms = 0;
        got += (size_t)MAX(n, (ssize_t)0);
    }
    return 0;
}

static int take_head(struct reader *r, size_t size)
{
    struct web_get_head head = {0};
    if (OBJECT_DECODE(web_get_head, (const char *)r->data, size, OBJECT_STORED, &head, NULL) < 0)
        return broken(r, "says what is no answer of a server");
    int code = r->options->on_head(&head, r->options->arg);
    OBJECT_CLEAR(web_get_head, &head);
    return code;
}

static int take_record(struct reader *r)
{
    struct record record;
    int code = read_exactly(r, &record, sizeof record);
    if (code < 0)
        return code == -ENODATA ? broken(r, "ended without a word") : code;
    if (record.size == 0 || record.size > (record.kind == WEB_GET_DATA ? WEB_GET_DATA_BYTES_MAX : WEB_GET_JSON_BYTES_MAX))
        return broken(r, "says more than it may");
    code = read_exactly(r, r->data, record.size);
    if (code < 0)
        return code == -ENODATA ? broken(r, "ended in the middle of a word") : code;
    switch (record.kind) {
    case WEB_GET_HEAD:
        return take_head(r, record.size);
    case WEB_GET_DATA:
        return r->options->on_data(r->data, record.size, r->options->arg);
    case WEB_GET_END:
        r->ended = true;
        return OBJECT_DECODE(web_get_end, (const char *)r->data, record.size, OBJECT_STORED, &r->end, NULL) < 0
                   ? broken(r, "says what is no end")
                   : 0;
    default:
        return broken(r, "says what nobody knows");
    }
}

static int end_take(const struct reader *r, int *ret_status, struct error *err)
{
    const struct web_get_end *end = &r->end;
    *ret_status = (int)end->status;
    if (end->error_text != NULL)
        error_set(err, end->error != 0 ? -(int)end->error : -EIO,
                  error_kind_from_code(end->error_code != NULL ? end->error_code : ""), "%s", end->error_text);
    else if (end->error != 0)
        error_errno(err, -(int)end->error, "cannot get %.200s", r->options->url);
    return -(int)end->error;
}

static int child_start(int input, int output, pid_t *ret_pid)
{
    char parent[16];
    snprintf(parent, sizeof parent, "%d", getpid());
    const char *const words[] = {"drover-agent", "web-get", parent, NULL};
    char *argv[ARRAY_SIZE(words)];
    memcpy(argv, words, sizeof argv); /* posix_spawn changes none of them */
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    int r = -posix_spawn(ret_pid, "/proc/self/exe", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return r;
}

/* What to get fits into a pipe that nobody has read from yet. */
static int child_tell(int fd, const struct web_get_options *options)
{
    struct web_get_work work = {0};
    struct bytes_writer out = {0};
    OBJECT_TEXT(web_get_work, &work, url, options->url);
    OBJECT_SET(web_get_work, &work, offset, options->offset);
    OBJECT_SET(web_get_work, &work, user, (uint32_t)options->user);
    OBJECT_ENCODE(web_get_work, &work, &out);
    int r = out.size <= WORK_BYTES_MAX && write(fd, out.data, out.size) == (ssize_t)out.size ? 0 : -EIO;
    bytes_writer_finish(&out);
    OBJECT_CLEAR(web_get_work, &work);
    return r;
}

static int child_get(const struct web_get_options *options, int *ret_status, struct error *err)
{
    struct error own = {.code = 0};
    struct reader r = {.options = options, .err = &own};
    int input[2] = {-1, -1}, output[2] = {-1, -1};
    pid_t pid = -1;
    *ret_status = 0;
    int code = pipe2(input, O_CLOEXEC) < 0 || pipe2(output, O_CLOEXEC) < 0 ? -errno : child_tell(input[1], options);
    if (code == 0)
        code = child_start(input[0], output[1], &pid);
    close_fd(&input[0]);
    close_fd(&input[1]);
    close_fd(&output[1]);
    if (code < 0) {
        close_fd(&output[0]);
        return error_errno(err, code, "cannot run a process to get %.200s", options->url);
    }
    r.fd = output[0];
    r.data = xcalloc(1, WEB_GET_DATA_BYTES_MAX);
    while (code == 0 && !r.ended)
        code = take_record(&r);
    kill(pid, SIGKILL); /* what it had to say it has said */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (code == 0)
        code = end_take(&r, ret_status, &own);
    if (err != NULL)
        *err = own;
    close_fd(&output[0]);
    free(r.data);
    OBJECT_CLEAR(web_get_end, &r.end);
    return code;
}

int web_get_perform(const struct web_get_options *options, int *ret_status, struct error *err)
{
    if (options->user == 0 || geteuid() != 0)
        return direct_get(options, ret_status, err);
    return child_get(options, ret_status, err);
}
