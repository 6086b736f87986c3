/* The child and its parent; see tunnel_program.h. */
#include "compute/agent/tunnel_program.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/log.h"
#include "compute/agent/migrate_tunnel.h"
#include "schema/objects.h"

#define LINE_BYTES_MAX 1024u
#define JSON_BYTES_MAX (256u * 1024)
#define LOOK_MS 100u /* how soon a failure is told */
#define END_MS 3000u /* after which a child that was told to end is killed */

/* ---- the child ---- */

struct program {
    struct migrate_tunnel *tunnel;
    uv_pipe_t input;
    uv_timer_t timer;
    char said[LINE_BYTES_MAX]; /* the failure that was told last */
};

static void say(const char *field, const char *text)
{
    struct tunnel_line line = {.head = {0}};
    struct bytes_writer out = {.data = NULL};
    object_set_text(&tunnel_line_desc, &line, field, text);
    OBJECT_ENCODE(tunnel_line, &line, &out);
    printf("%.*s\n", (int)out.size, (const char *)out.data);
    fflush(stdout);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(tunnel_line, &line);
}

static void on_look(uv_timer_t *timer)
{
    struct program *p = timer->data;
    const char *failure = migrate_tunnel_failure(p->tunnel);
    if (strcmp(failure, p->said) == 0)
        return;
    snprintf(p->said, sizeof(p->said), "%s", failure);
    say("failure", failure);
}

static void input_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    static char nothing[64]; /* nobody says anything there */
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init(nothing, sizeof(nothing));
}

static void input_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    struct program *p = stream->data;
    (void)buffer;
    if (n >= 0)
        return;
    uv_close((uv_handle_t *)&p->input, NULL);
    uv_close((uv_handle_t *)&p->timer, NULL);
    migrate_tunnel_stop(p->tunnel, NULL, NULL);
}

static int tunnel_open(const struct tunnel_program_options *o, uv_loop_t *loop, struct migrate_tunnel **ret_tunnel,
                       struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/identity.json", o->data_dir);
    CLEANUP_FREE char *ca = xasprintf("%s/ca.pem", o->data_dir);
    CLEANUP_FREE char *cert = xasprintf("%s/cert.pem", o->data_dir);
    CLEANUP_FREE char *key = xasprintf("%s/key.pem", o->data_dir);
    CLEANUP_FREE char *text = NULL;
    struct node_identity identity = {.head = {0}};
    struct tls_context *tls = NULL;
    size_t size;
    int r = file_read(path, JSON_BYTES_MAX, &text, &size, err);
    if (r == 0)
        r = OBJECT_DECODE(node_identity, text, size, OBJECT_STORED, &identity, err);
    if (r == 0)
        r = tls_context_load(ca, cert, key, &tls, err);
    if (r == 0) {
        CLEANUP_FREE char *peer = xasprintf("spiffe://drover/%s/host/%s", identity.cluster_id, o->peer);
        const struct migrate_tunnel_options options = {.loop = loop,
                                                       .tls = tls,
                                                       .is_source = o->is_source,
                                                       .listen = o->listen,
                                                       .connect = o->connect,
                                                       .peer = peer,
                                                       .owner = o->owner};
        r = migrate_tunnel_start(&options, ret_tunnel, err);
    }
    tls_context_unref(tls);
    OBJECT_CLEAR(node_identity, &identity);
    return r;
}

int tunnel_program_run(const struct tunnel_program_options *options)
{
    struct program p = {.tunnel = NULL};
    struct error err = {.code = 0};
    uv_loop_t loop;
    int r = uv_loop_init(&loop);
    if (r == 0)
        r = tunnel_open(options, &loop, &p.tunnel, &err);
    if (r == 0) {
        uv_pipe_init(&loop, &p.input, 0);
        uv_timer_init(&loop, &p.timer);
        p.input.data = p.timer.data = &p;
        r = uv_pipe_open(&p.input, STDIN_FILENO);
        if (r == 0)
            r = uv_read_start((uv_stream_t *)&p.input, input_alloc, input_read);
        if (r < 0)
            error_errno(&err, r, "standard input is no pipe");
    }
    if (r < 0) {
        say("failure", err.text);
        return 1;
    }
    uv_timer_start(&p.timer, on_look, LOOK_MS, LOOK_MS);
    say("endpoint", migrate_tunnel_endpoint(p.tunnel));
    uv_run(&loop, UV_RUN_DEFAULT);
    r = uv_loop_close(&loop);
    ASSERT(r == 0);
    return 0;
}

/* ---- the parent ---- */

struct tunnel_child {
    struct tunnel_child_callbacks callbacks;
    void *arg;
    uv_process_t process;
    uv_pipe_t input, output; /* the child's */
    uv_timer_t timer;
    char line[LINE_BYTES_MAX];
    size_t length;
    char failure[LINE_BYTES_MAX];
    char ending[LINE_BYTES_MAX]; /* how it ended */
    bool has_ended, has_said_all, told, stopping;
    unsigned open; /* handles */
    void (*closed)(void *arg);
    void *closed_arg;
};

static void child_handle_closed(uv_handle_t *handle)
{
    struct tunnel_child *c = handle->data;
    if (--c->open > 0)
        return;
    void (*closed)(void *arg) = c->closed;
    void *arg = c->closed_arg;
    free(c);
    if (closed != NULL)
        closed(arg);
}

static void child_close_all(struct tunnel_child *c)
{
    uv_handle_t *const handles[] = {(uv_handle_t *)&c->process, (uv_handle_t *)&c->input, (uv_handle_t *)&c->output,
                                    (uv_handle_t *)&c->timer};
    for (size_t i = 0; i < ARRAY_SIZE(handles); i++)
        if (!uv_is_closing(handles[i]))
            uv_close(handles[i], child_handle_closed);
}

/* Its end is told once both are known: that it has gone, and all that it said. */
static void child_tell_end(struct tunnel_child *c)
{
    if (!c->has_ended || !c->has_said_all || c->told || c->stopping)
        return;
    c->told = true;
    c->callbacks.ended(c->arg, c->failure[0] != '\0' ? c->failure : c->ending);
}

static void child_line(struct tunnel_child *c)
{
    struct tunnel_line line = {.head = {0}};
    struct error err = {.code = 0};
    if (OBJECT_DECODE(tunnel_line, c->line, c->length, OBJECT_LENIENT, &line, &err) < 0)
        return;
    if (line.failure != NULL)
        snprintf(c->failure, sizeof(c->failure), "%s", line.failure);
    if (line.endpoint != NULL && !c->stopping)
        c->callbacks.listening(c->arg, line.endpoint);
    OBJECT_CLEAR(tunnel_line, &line);
}

static void child_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct tunnel_child *c = handle->data;
    (void)suggested;
    if (c->length == sizeof(c->line))
        c->length = 0; /* a line that nobody of ours writes */
    *buffer = uv_buf_init(c->line + c->length, (unsigned)(sizeof(c->line) - c->length));
}

static void child_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    struct tunnel_child *c = stream->data;
    (void)buffer;
    if (n < 0) {
        uv_read_stop(stream);
        c->has_said_all = true;
        child_tell_end(c);
        return;
    }
    size_t all = c->length + (size_t)n;
    char *end;
    while (!c->stopping && (end = memchr(c->line, '\n', all)) != NULL) {
        size_t used = (size_t)(end - c->line) + 1;
        c->length = used - 1;
        child_line(c);
        memmove(c->line, c->line + used, all - used);
        all -= used;
    }
    c->length = all;
}

static void child_exited(uv_process_t *process, int64_t status, int signal_number)
{
    struct tunnel_child *c = process->data;
    c->has_ended = true;
    if (signal_number != 0)
        snprintf(c->ending, sizeof(c->ending), "the tunnel was ended by signal %d", signal_number);
    else
        snprintf(c->ending, sizeof(c->ending), "the tunnel ended with status %lld", (long long)status);
    if (c->stopping)
        child_close_all(c);
    else
        child_tell_end(c);
}

static int child_spawn(struct tunnel_child *c, uv_loop_t *loop, const struct tunnel_program_options *o)
{
    char owner[16];
    char *argv[] = {(char *)"drover-agent", (char *)"tunnel", (char *)"--data", (char *)o->data_dir, (char *)"--peer",
                    (char *)o->peer, (char *)"--listen", (char *)o->listen, (char *)"--connect", (char *)o->connect,
                    (char *)"--source-user", owner, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE, .data.stream = (uv_stream_t *)&c->input},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&c->output},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
    };
    uv_process_options_t options = {
        .exit_cb = child_exited, .file = "/proc/self/exe", .args = argv, .stdio = stdio, .stdio_count = ARRAY_SIZE(stdio)};
    snprintf(owner, sizeof(owner), "%u", o->owner);
    if (!o->is_source)
        argv[ARRAY_SIZE(argv) - 3] = NULL;
    return uv_spawn(loop, &c->process, &options);
}

int tunnel_child_start(uv_loop_t *loop, const struct tunnel_program_options *options,
                       const struct tunnel_child_callbacks *callbacks, void *arg, struct tunnel_child **ret_child,
                       struct error *err)
{
    struct tunnel_child *c = NEW(struct tunnel_child);
    c->callbacks = *callbacks;
    c->arg = arg;
    c->open = 4;
    uv_pipe_init(loop, &c->input, 0);
    uv_pipe_init(loop, &c->output, 0);
    uv_timer_init(loop, &c->timer);
    c->process.data = c->input.data = c->output.data = c->timer.data = c;
    int r = child_spawn(c, loop, options);
    if (r == 0)
        r = uv_read_start((uv_stream_t *)&c->output, child_alloc, child_read);
    if (r < 0) {
        c->stopping = true;
        child_close_all(c);
        return error_errno(err, r, "cannot start a tunnel");
    }
    *ret_child = c;
    return 0;
}

const char *tunnel_child_failure(const struct tunnel_child *child)
{
    return child->failure;
}

static void child_overdue(uv_timer_t *timer)
{
    struct tunnel_child *c = timer->data;
    uv_process_kill(&c->process, SIGKILL); /* its end comes through child_exited */
}

void tunnel_child_stop(struct tunnel_child *c, void (*closed)(void *arg), void *arg)
{
    c->stopping = true;
    c->closed = closed;
    c->closed_arg = arg;
    if (c->has_ended) {
        child_close_all(c);
        return;
    }
    uv_close((uv_handle_t *)&c->input, child_handle_closed); /* that tells it */
    uv_timer_start(&c->timer, child_overdue, END_MS, 0);
}
